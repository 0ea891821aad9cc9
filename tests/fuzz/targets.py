"""What is fed with junk: each target lets typed errors pass, on one line and printable; anything else it raises is a defect.

`run` says whether the junk was taken for good. Seeds are what the real code writes. Where a checksum would stop every changed input at the door, it is computed anew.
"""

import contextlib
import json
import os
import re
import tarfile
import threading
import zlib
from io import BytesIO
from typing import NamedTuple

from aquad.core.errors import AquadError, Damaged, RepositoryRefused, SettingsInvalid
from aquad.jobs import verify
from aquad.repository import manifest
from aquad.repository.reader import _index_lines
from aquad.settings import generate, load
from aquad.stream.artifact import Silent, StoredArtifact
from aquad.stream.gpg.envelope import HEAD_BYTES, envelope
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.tree import checked
from aquad.stream.tarball.unpack import _streamed, content
from tests.keys import secret_file
from tests.small import Words, back_up, make_repository
from tests.stream.files import IndexedFile, IndexedReader

BLOCK = 512
COMMON = [b"..", b"/", b"\0", b"\n", b"\x1b[31m", b"\xff", b"-1", b"0", b"9" * 30, b"\xe2\x80\xae", b"[" * 40, b"1e999"]


class Target(NamedTuple):
    """`words`: what a fuzzer may put in."""

    name: str
    run: object
    seeds: list[bytes]
    words: list[bytes]
    longest: int


@contextlib.contextmanager
def only(*allowed, lines=False):
    """Let these errors pass. `lines`: the message may have several."""
    try:
        yield
    except allowed as error:
        text = str(error).replace("\n", "") if lines else str(error)
        assert not isinstance(error, AquadError) or text.isprintable(), text


def gzipped(plain):
    """Stored, not deflated: that costs nothing, and inflating is not what is tested."""
    state = zlib.compressobj(0, zlib.DEFLATED, 31)
    return state.compress(plain) + state.flush()


def manifests(directory):
    """The bytes as they are; and what is JSON in them sealed anew, so that it comes past the digest."""
    clear = make_repository(directory / "backups")
    back_up(clear, Words("one"), Words("two", archive=False))
    back_up(clear, Words("one", fails=True), Words("two"))
    seeds = [path.read_bytes() for path in sorted(clear.layout.manifests.glob("*.json"))]

    def run(junk):
        with only(Damaged, RepositoryRefused):
            manifest.parse(junk, "x")
        try:
            text = {**json.loads(junk)}
            text["manifest_sha256"] = manifest._digest(text)
            sealed = manifest._text(text)
        except (ValueError, TypeError, RecursionError):
            return False
        with only(Damaged, RepositoryRefused):
            backup = manifest.parse(sealed, "x")
            assert backup.stored_bytes == sum(file.stored_bytes for file in backup.files())
            assert manifest.parse(manifest.render(backup), "x").components == backup.components
            return True
        return False

    return Target("manifest", run, seeds, [*COMMON, b"null", b"true", b"NaN", b"{}", b"[]", b'"format": 2'], 8192)


def tree(directory):
    """One of every kind of member."""
    top = directory / "tree"
    (top / "deep").mkdir(parents=True)
    (top / "file").write_bytes(b"x" * 600)
    os.setxattr(top / "file", "user.note", b"\xff")
    os.link(top / "file", top / "deep/hard")
    os.symlink("../file", top / "deep/link")
    os.mkfifo(top / "fifo")
    (top / os.fsdecode(b"\xff\n\x1b[31m")).touch()
    (top / ("long" * 40)).write_bytes(b"")
    with (top / "sparse").open("wb") as file:
        file.truncate(4 << 20)
        file.seek(2 << 20), file.write(b"island")
    return top


def packed(directory):
    """A real archive, its index, and what it holds."""
    path = directory / "x.tar.gz"
    out = IndexedFile(path)
    facts = write_tree([Root(tree(directory), b".")], out, advance=lambda _: None, cancel=threading.Event())
    out.finish(plain_bytes=0, facts={})
    return path, out.members_, facts


def indexes(directory):
    """Lines of an index beside the archive they belong to: what a restore reads of them, and what verification does."""
    path, lines, facts = packed(directory)
    artifact = StoredArtifact(
        path.name, True, path.stat().st_size, facts.tar_bytes, [], {"members": facts.members, "files": facts.files}
    )
    whole = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
    reader = IndexedReader(path, None)

    def read(junk):
        return _index_lines(iter([gzipped(junk)]), path.name)

    def run(junk):
        with only(Damaged):
            for line in read(junk):
                member = checked(line)
                assert member.disk_bytes >= 0
                assert member.mode_to_set <= 0o7777
                assert b"\0" not in member.name + member.link
                if member.type == "file":
                    for _ in content(reader, path.name, member):
                        pass
        with only(Damaged):
            for _ in _index_lines(iter([junk]), path.name):
                pass
        with only(Damaged):
            verify._check_members(artifact, read(junk), reader, Silent())
            return True
        return False

    words = [
        *COMMON,
        b"null",
        b"NaN",
        b"true",
        b'"type": "hardlink"',
        b'"chunks": [[',
        b'"segments": [[',
        b'"xattrs": {',
    ]
    return Target("index", run, [b"".join(whole), gzipped(whole[0]), *whole], words, 8192)


def resummed(blocks):
    """Every block that looks like a header gets the checksum it should have."""
    out = bytearray(blocks)
    for at in range(0, len(out) - BLOCK + 1, BLOCK):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])
    return bytes(out)


def old_forms():
    """Headers that we do not write, and GNU tar and old tars do."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
            for name, kind in (
                ("d", b"5"),
                ("d/f", b"0"),
                ("d/l", b"2"),
                ("d/h", b"1"),
                ("n" * 101, b"0"),
                ("c", b"3"),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.uid, info.mtime = kind, "d/f" if kind in b"12" else "", 1000, 10**9
                info.size = 5 if kind == b"0" and form != tarfile.USTAR_FORMAT else 0
                if form != tarfile.USTAR_FORMAT or len(name) < 100:
                    archive.addfile(info, BytesIO(b"hello"[: info.size]))
        yield out.getvalue()
    for numbers in ("GNU.sparse.map", "GNU.sparse.offset"):
        info = tarfile.TarInfo("s")
        info.size = 512
        info.pax_headers = {
            "GNU.sparse.size": "4096",
            "GNU.sparse.numblocks": "1",
            numbers: "0,512" if numbers.endswith("map") else "0",
            "GNU.sparse.numbytes": "512",
        }
        yield info.tobuf(tarfile.PAX_FORMAT) + bytes(BLOCK) + bytes(2 * BLOCK)
    sparse = bytearray(tarfile.TarInfo("old sparse").tobuf(tarfile.GNU_FORMAT))
    sparse[156:157], sparse[124:135], sparse[483:494] = b"S", b"%011o" % 512, b"%011o" % 4096
    sparse[386:397], sparse[398:409] = b"%011o" % 1024, b"%011o" % 512
    yield bytes(sparse) + bytes(3 * BLOCK)


def headers(directory):
    """Blocks of a tar that has no index: read through, and listed without a look at the data."""
    path, lines, _ = packed(directory)
    stored = path.read_bytes()
    members = [zlib.decompress(stored[line["offset"] :][: line["length"]], 31) for line in lines]
    seeds = [b"".join(members) + bytes(2 * BLOCK), *(one + bytes(2 * BLOCK) for one in members), *old_forms()]

    class Bytes:
        def __init__(self, plain):
            self._stored = gzipped(plain)

        def read(self, path):
            return iter([self._stored])

    def run(junk):
        reader = Bytes(resummed(junk))
        with only(Damaged):
            for _, data in _streamed(reader, "x"):
                for _ in data:
                    pass
        with only(Damaged):
            for member, _ in _streamed(reader, "x"):
                assert {b"", b".", b".."}.isdisjoint(member.path)
            return True
        return False

    words = [
        *COMMON,
        b"ustar\x0000",
        b"ustar  \0",
        b"\x80" + b"\xff" * 11,
        b"GNU.sparse.major=1\n",
        b"S",
        b"x",
        b"g",
        b"L",
    ]
    return Target("headers", run, seeds, words, 6144)


def settings(directory):
    """A file; and behind a zero byte the environment, a setting a line."""
    path = directory / "settings.toml"
    seeds = [
        *(section.encode() for section in re.split(r"\n(?=\[)", generate())),
        b'stack = "mine"\n[postgres]\nhost = "db"\nport = 6000\0POSTGRES__DATABASES=["a"]\nSTACK=other',
        b'\0VOLUMES__DATA__PATH=/srv/x\nVOLUMES__DATA__MAY_SHRINK=true\nLIMITS__DEADLINE={"full": "2h"}',
        b'[volumes.data]\npath = "/srv/x"\n[encryption]\nmode = "passphrase"\npassphrase_file = "/run/x"\n',
        b'[limits]\ndeadline = { full = "4h" }\n[schedule]\nfull = "*/5 0-6,12 * * 1"\n',
    ]

    def run(junk):
        text, _, rest = junk.partition(b"\0")
        path.write_bytes(text)
        pairs = (line.partition("=") for line in os.fsdecode(rest).split("\n"))
        environ = {f"AQUAD__{name}": value for name, _, value in pairs}
        with only(SettingsInvalid, lines=True):
            load(path, environ).settings.zone({})
            return True
        return False

    words = [
        *COMMON,
        b'"',
        b"'''",
        b"[[",
        b"]]",
        b"= {",
        b"\\u0000",
        b"time_zone",
        b"volumes.",
        b"__",
        b"inf",
        b"1979-05-27",
    ]
    return Target("settings", run, seeds, words, 1024)


def envelopes(directory):
    gpg = Gpg(Keys(passphrase_file=secret_file(directory / "passphrase", "of the fuzzer")))
    try:
        sealed = gpg.sealed("passphrase", b"plain")
    finally:
        gpg.end()
    to_a_key = bytes([0x84, 12, 3]) + bytes.fromhex("1122334455667788") + b"\x01\0\0"
    seeds = [sealed, to_a_key + sealed, to_a_key * 2 + sealed, b"\xd2\xff\0\0\1\0" + bytes(256)]

    def run(junk):
        with only(ValueError):
            found = envelope(junk[:HEAD_BYTES])
            assert found.protected
            assert all(len(key_id) == 16 for key_id in found.key_ids)
            return True
        return False

    return Target("envelope", run, seeds, [b"\x84", b"\x8c", b"\xd2", b"\xff\xff\xff\xff", b"\x03", b"\x04"], 1024)


TARGETS = {"manifest": manifests, "index": indexes, "headers": headers, "settings": settings, "envelope": envelopes}
