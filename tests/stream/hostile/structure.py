"""Crafted archives, second part: numbers, extended headers, sparse maps, and what is cut off, put together or appended."""

import bz2
import gzip
import lzma
import zlib

from aquad.core.errors import AquadError, Damaged, RestoreFailed
from tests.stream.hostile.cases import Case
from tests.stream.hostile.forge import (
    BLOCK,
    DIRECTORY,
    END,
    FILE,
    HARD,
    SYMLINK,
    block,
    gnu_long,
    gz,
    member,
    old_sparse,
    pax,
    record,
    sparse,
    summed,
    tar,
)

EIB = 1 << 60
GOOD = member(b"f", data=b"x" * 600)
"""A file of two blocks of data."""
TOO_LARGE = AquadError
"""Damaged, or RestoreFailed where the file system knows no file of that size."""


def ignored(*paths):
    """Some versions of tarfile refuse it, some go on as if it were not there."""
    return (set(paths), Damaged)


def numbers():
    for name, size in (
        ("negative", -512),
        ("minus one", -1),
        ("8 EiB", 8 * EIB - 1),
        ("2^70", 2**70),
        ("1 PiB", 1 << 50),
    ):
        for kind in (FILE, b"x", b"g", b"L", b"K"):
            what = tar(block(b"f", kind, size=size), bytes(BLOCK))
            yield Case(f"size {name} of type {kind.decode()}", what, TOO_LARGE if kind == FILE else Damaged)
    for name, size in (("negative", -512), ("8 EiB", 8 * EIB - 1)):
        for kind, there in ((DIRECTORY, {b"d"}), (SYMLINK, {b"d"}), (HARD, {b"d", b"f"})):
            what = tar(member(b"f"), block(b"d", kind, size=size, link=b"f"))
            yield Case(f"size {name} of type {kind.decode()}, which has no data", what, there | {b"f"})
    for at, field in ((100, "mode"), (108, "uid"), (116, "gid"), (124, "size"), (136, "mtime")):
        for name, text in (
            ("letters", b"zzzzzzz\0"),
            ("sign", b"-000001\0"),
            ("nothing", bytes(8)),
            ("eights", b"8888888\0"),
        ):
            harmless = name == "nothing" or (name == "sign" and field in {"mode", "mtime"})
            what = tar(block(b"f", patches=[(at, text)]))
            yield Case(f"{field} of {name}", what, {b"f"} if harmless else Damaged)
    header = bytearray(block(b"f"))
    for name, at, text in (("wrong", 148, b"000001\0 "), ("empty", 148, bytes(8)), ("letters", 148, b"checksum")):
        header[at : at + len(text)] = text
        yield Case(f"checksum {name}", tar(bytes(header)), Damaged)
        yield Case(f"checksum {name}, between others", tar(GOOD, bytes(header), member(b"g")), Damaged)
        yield Case(f"checksum {name}, of the last", tar(GOOD, bytes(header)), Damaged)
    yield Case("no magic", tar(block(b"f", patches=[(257, bytes(8))])), {b"f"})
    yield Case("all of a header is 0xff", tar(summed(b"\xff" * BLOCK)), Damaged)


def records():
    for key, value in (
        ("mtime", b"nan"), ("mtime", b"inf"), ("mtime", b"1e400"), ("mtime", b"-"), ("mtime", b"1.5.5"), ("mtime", b"0x10"),
        ("mtime", b"9" * 30), ("mtime", b"9" * 5000), ("uid", b"-1"), ("gid", b"4294967295"), ("size", b"-512"),
        ("size", b"9" * 25), ("GNU.sparse.size", b"x"), ("GNU.sparse.map", b"a,b"), ("GNU.sparse.map", b"-5,5"),
        ("GNU.sparse.map", b"0,-5"), ("GNU.sparse.map", b"0,9223372036854775807"), ("GNU.sparse.realsize", b"-1"),
        ("SCHILY.acl.access", b"nonsense"), ("SCHILY.acl.access", b"user:99999999999:rwx"), ("size", b"100"),
    ):  # fmt: skip
        keys = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"} if key == "GNU.sparse.realsize" else {}
        name = f"record {key} {value[:30].decode()} of {len(value)}"
        yield Case(name, tar(pax({**keys, key.encode(): value}), GOOD), Damaged)
    yield Case("record size of 8 EiB", tar(pax({b"size": b"%d" % (8 * EIB - 1)}), GOOD), TOO_LARGE)
    for key, value in (
        ("uid", b"9" * 5000),
        ("size", b"9" * 5000),
        ("GNU.sparse.map", b"0"),
        ("GNU.sparse.map", b"0,1,2"),
    ):
        name = f"record {key} {value[:30].decode()} of {len(value)}"
        yield Case(name, tar(pax({key.encode(): value}), GOOD), ignored(b"f"))
    for key, value in (
        ("comment", b"x" * 100_000),
        ("uname", b"\xff"),
        ("nobody.knows", b"\x1b[31m"),
        ("ctime", b"nan"),
        ("atime", b"-"),
    ):
        yield Case(f"record {key} is harmless", tar(pax({key.encode(): value}), GOOD), {b"f"})
    for name, text in (
        ("without a length", b"path=evil\n"),
        ("of length 0", b"0 path=evil\n"),
        ("of length 5", b"5 path=evil\n"),
        ("longer than all", b"9999 path=evil\n"),
        ("of negative length", b"-14 path=evil\n"),
        ("without an equals sign", b"10 pathev\n"),
        ("without a newline", b"13 path=evil."),
        ("of a length with many digits", b"9" * 5000 + b" path=evil\n"),
        ("of zeros", bytes(100)),
    ):
        yield Case(f"record {name}", tar(pax(text), GOOD), (Damaged, {b"f"}, {b"evil"}))
    yield Case(
        "records that are not UTF-8 and say so", tar(pax({b"hdrcharset": b"BINARY", b"path": b"\xff"}), GOOD), {b"\xff"}
    )
    yield Case("records of an unknown charset", tar(pax({b"hdrcharset": b"rot13"}), GOOD), {b"f"})
    yield Case("path twice", tar(pax(record(b"path", b"good") + record(b"path", b"../bad")), GOOD), Damaged)
    yield Case("header of a header", tar(pax({b"path": b"../bad"}), pax({b"comment": b"x"}), GOOD), Damaged)
    yield Case("headers one in another, 3000", tar(*[pax({b"comment": b"x"})] * 3000, GOOD), Damaged)
    yield Case("long names one in another, 3000", tar(*[gnu_long(b"x")] * 3000, GOOD), Damaged)


def maps():
    data = b"x" * BLOCK
    bad = {
        "negative offset": ([-512, 512], 4096),
        "negative length": ([0, -512], 4096),
        "beyond its size": ([4096, 512], 4096),
        "longer than its data": ([0, 4096], 8192),
        "of the largest numbers": ([2**63 - 1, 2**63 - 1], 4096),
        "of larger numbers": ([0, 2**70], 2**70),
        "of a negative size": ([0, 512], -1),
    }
    fine = {
        "whole": ([0, 512], 512),
        "shorter than its data": ([0, 100], 4096),
        "of nothing": ([], 4096),
        "out of order": ([2048, 256, 0, 256], 4096),
        "overlapping": ([0, 256, 128, 256], 4096),
        "twice the same": ([0, 256, 0, 256], 4096),
        "of empty stretches": ([0, 0] * 1000 + [0, 512], 4096),
        "with a hole of a tebibyte": ([1 << 40, 512], (1 << 40) + 512),
    }
    for name, (numbers_, real) in bad.items():
        yield Case(f"map {name}", tar(sparse(numbers_, real, data)), Damaged)
        if len(numbers_) == 2:
            yield Case(f"old map {name}", tar(old_sparse([numbers_], real, data)), Damaged)
    for name, (numbers_, real) in fine.items():
        yield Case(f"map {name}", tar(sparse(numbers_, real, data)), {b"s"})
    exabytes = sparse([8 * EIB - 513, 512], 8 * EIB - 1, data)
    yield Case("map of 8 EiB", tar(exabytes), (RestoreFailed, {b"s"}))
    yield Case("map of minus one pair", tar(sparse([0, 1], 4096, data, count=-1)), ignored(b"s"))
    for name, text in (
        ("letters", b"a\nb\nc\n"),
        ("no number", b"\n\n\n"),
        ("half a pair", b"1\n0\n"),
        ("more pairs than there are", b"1000\n0\n1\n"),
        ("2^63 pairs", b"9223372036854775807\n0\n1\n"),
        ("no newline", b"1" * 2 * BLOCK),
        ("zeros", bytes(BLOCK)),
    ):
        yield Case(f"map of {name}", tar(sparse(text, 4096, data)), Damaged)
    yield Case(
        "old map that goes on in a block that is none", tar(old_sparse([(0, 512)], 512, data, more=True)), Damaged
    )
    yield Case(
        "old map that goes on for ever",
        tar(old_sparse([], 512, b"", more=True), (bytes(504) + b"\x01" + bytes(7)) * 2000),
        Damaged,
    )
    yield Case("old map that goes on behind the end of the file", gz(old_sparse([], 512, more=True)), Damaged)
    yield Case("map whose member is larger than it says", tar(sparse([0, 512], 512, data, size=8 * EIB - 1)), Damaged)
    yield Case("map whose member is smaller than the map", tar(sparse([0, 512], 512, data, size=0)), Damaged)


def wrappings():
    plain = GOOD + END
    stored = gz(plain)
    for name, whole in {
        "nothing": b"",
        "nothing in gzip": gz(b""),
        "one block of zeros": gz(bytes(BLOCK)),
        "not compressed": plain,
        "noise": bytes(range(256)) * 40,
        "noise in gzip": gz(bytes(range(1, 256)) * 40),
        "bzip2": bz2.compress(plain),
        "xz": lzma.compress(plain),
        "zlib": zlib.compress(plain),
        "gzip in gzip": gz(stored),
        "gzip, cut off": stored[:-9],
        "gzip without its trailer": stored[:-8],
        "gzip with half its trailer": stored[:-4],
        "gzip of a wrong CRC": stored[:-8] + bytes(4) + stored[-4:],
        "gzip of a wrong length": stored[:-4] + b"\xff\xff\xff\x7f",
        "gzip of a header alone": stored[:10],
        "gzip of an endless name": b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100_000,
        "gzip of another method": b"\x1f\x8b\x07" + stored[3:],
        "rubbish behind gzip": stored + b"rubbish",
        "zeros behind gzip": stored + bytes(1000),
        "half a member behind gzip": stored + stored[:20],
        "one after the other": stored * 2,
        "one after the other, the first without an end": gz(GOOD) + gz(member(b"g")),
        "no end": gz(GOOD),
        "half an end": gz(GOOD + bytes(BLOCK)),
        "an end that is not aligned": gz(GOOD + bytes(1000)),
        "one behind the end of another": gz(plain + plain),
        "a byte behind the end": gz(plain + bytes(BLOCK - 1) + b"x"),
        "one zero block between members": gz(GOOD + bytes(BLOCK) + member(b"g") + END),
    }.items():
        yield Case(f"file of {name}", whole, Damaged)
    for name, whole in {
        "zeros behind the end": gz(plain + bytes(64 << 10)),
        "an end alone": gz(END),
        "members of gzip, a byte each": b"".join(gz(plain[at : at + 1]) for at in range(len(plain))),
        "members of gzip, and empty ones": gz(b"") * 100 + stored + gz(b"") * 100,
        "gzip of unknown flags": b"\x1f\x8b\x08\xe0" + stored[4:],
        "gzip with a name and a comment": gzip_with_texts(plain),
    }.items():
        yield Case(f"file of {name}", whole, set() if name == "an end alone" else {b"f"})
    yield Case("the same name 500 times", tar(*[member(b"f", data=b"x" * 50)] * 500), {b"f"})
    yield Case("the same link 500 times", tar(*[member(b"l", SYMLINK, link=b"x")] * 500), {b"l"})


def gzip_with_texts(plain):
    stored = gzip.compress(plain, 1)
    return stored[:3] + b"\x18" + stored[4:10] + b"../evil\x1b\0" + b"c" * 5000 + b"\0" + stored[10:]


CASES = [*numbers(), *records(), *maps(), *wrappings()]
