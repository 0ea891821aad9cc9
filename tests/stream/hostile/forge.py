"""Archives that no honest program writes, put together by hand: tarfile would refuse to make many of them."""

import gzip
import os

BLOCK = 512
END = bytes(2 * BLOCK)
FILE, HARD, SYMLINK, CHAR, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


def number(value, width):
    """Octal where it fits; else base 256, as GNU tar writes large and negative numbers."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % 256 ** (width - 1)).to_bytes(width - 1)


def block(
    name=b"f",
    kind=FILE,
    *,
    size=0,
    link=b"",
    mode=0o644,
    uid=None,
    gid=None,
    mtime=10**9,
    prefix=b"",
    device=(1, 3),
    patches=(),
):
    """One header. `patches`: (offset, bytes) written over it before the checksum is made."""
    fields = [
        (0, name[:100]),
        (100, number(mode, 8)),
        (108, number(os.geteuid() if uid is None else uid, 8)),
        (116, number(os.getegid() if gid is None else gid, 8)),
        (124, number(size, 12)),
        (136, number(mtime, 12)),
        (156, kind),
        (157, link[:100]),
        (257, b"ustar\x0000"),
        (329, number(device[0], 8)),
        (337, number(device[1], 8)),
        (345, prefix),
        *patches,
    ]
    header = bytearray(BLOCK)
    for at, text in fields:
        header[at : at + len(text)] = text
    return summed(header)


def summed(header):
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padded(data):
    return data + bytes(-len(data) % BLOCK)


def record(key, value):
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    return b"%d %s=%s\n" % (bare + len(str(length)), key, value)


def pax(text, kind=b"x", size=None):
    """An extended header. `text`: a dict, or the bytes as they are to stand there; `size`: what it says of itself."""
    if isinstance(text, dict):
        text = b"".join(record(key, value) for key, value in text.items())
    return block(b"././@PaxHeader", kind, size=len(text) if size is None else size) + padded(text)


def gnu_long(name, kind=b"L"):
    return block(b"././@LongLink", kind, size=len(name) + 1) + padded(name + b"\0")


def member(name=b"f", kind=FILE, *, link=b"", data=b"", **fields):
    """A member, with an extended header where its name or link is too long, or has a zero byte."""
    long = {
        key: text
        for key, text in ((b"path", name), (b"linkpath", link))
        if len(text) > 100 or b"\0" in text.rstrip(b"\0")
    }
    fields.setdefault("size", len(data))
    return (pax(long) if long else b"") + block(name, kind, link=link, **fields) + padded(data)


def sparse(numbers, real, data=b"", *, size=None, count=None):
    """GNU format 1.0: the map stands before the data. `numbers`: offsets and lengths, or the map's bytes."""
    if not isinstance(numbers, bytes):
        numbers = b"".join(b"%d\n" % one for one in [len(numbers) // 2 if count is None else count, *numbers])
    content = padded(numbers) + data
    keys = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": b"s",
        b"GNU.sparse.realsize": b"%d" % real,
    }
    return pax(keys) + block(b"GNUSparseFile.0/s", size=len(content) if size is None else size) + padded(content)


def old_sparse(stretches, real, data=b"", *, more=False, size=None):
    """GNU's oldest format: four stretches in the header. `more`: it says that a block of further ones follows."""
    patches = [(257, b"ustar  \0"), (345, bytes(12)), (483, number(real, 12)), (482, b"\x01" if more else b"\0")]
    for place, (offset, length) in enumerate(stretches):
        patches += [(386 + 24 * place, number(offset, 12)), (398 + 24 * place, number(length, 12))]
    return block(b"s", b"S", size=len(data) if size is None else size, patches=patches) + padded(data)


def gz(plain):
    return gzip.compress(plain, 1, mtime=0)


def tar(*members):
    return gz(b"".join(members) + END)
