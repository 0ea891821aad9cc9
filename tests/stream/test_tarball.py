import gzip
import hashlib
import os
import random
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time

import pytest
import xxhash

from aquad.core.errors import Damaged, RestoreFailed, SourceFailed
from aquad.repository.reader import FileReader
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.unpack import extract, list_members
from tests.keys import NO_KEYS
from tests.stream.files import IndexedFile, IndexedReader

ROOT = os.geteuid() == 0


def packed(source, out, **options):
    file = IndexedFile(out)
    try:
        facts = write_tree([Root(source, b".")], file, advance=lambda _: None, cancel=threading.Event(), **options)
    finally:
        file.finish(plain_bytes=0, facts={})
    return facts, IndexedReader(out, file.members_)


def unpacked(reader, target, **options):
    target.mkdir()
    return extract(
        reader, reader.artifacts[0].path, target, advance=lambda _: None, cancel=threading.Event(), **options
    )


def awkward_tree(top):
    top.mkdir()
    rng = random.Random(7)
    raw = os.fsencode(top)
    (top / "empty").touch()
    (top / "text").write_bytes(b"line\n" * 1000)
    (top / "big").write_bytes(rng.randbytes(5 << 20) + b"compressible " * 300_000)
    (top / "setuid").write_bytes(b"x"), (top / "setuid").chmod(0o4751)
    (top / "deep").mkdir(mode=0o711)
    (top / "deep" / "er").mkdir()
    (top / "deep" / "er" / "file").write_bytes(b"deep")
    (top / "empty dir").mkdir()
    os.link(top / "text", top / "deep" / "text again")
    os.symlink("text", top / "link"), os.symlink("/nowhere/at all", top / "dangling")
    os.mkfifo(top / "fifo")
    for name in (
        b"new\nline",
        b"\xff\xfe not utf-8",
        b"-rf",
        b"\x1b[31mred",
        b"n" * 255,
        "snöwman ☃".encode(),
        b" ",
        b"back\\slash",
    ):
        with open(os.path.join(raw, name), "wb") as file:
            file.write(name)
    with (top / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20), file.write(b"island" * 1000)
        file.seek(40 << 20), file.write(b"another")
    with (top / "sparse ending in data").open("wb") as file:
        file.seek(9 << 20), file.write(b"end")
    os.setxattr(top / "text", "user.note", b"\x00\xff binary")
    for name in ("user.a=b", "user.100%", "user.%3D", "user.snöw", b"user.\xff\xfe", "user.two\nlines"):
        os.setxattr(top / "text", name, b"odd")
        os.setxattr(top / "deep", name, b"odd")
    acl = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, bits, who in (
            (1, 6, 0xFFFFFFFF),
            (2, 4, 12345),
            (4, 4, 0xFFFFFFFF),
            (16, 4, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        )
    )
    os.setxattr(top / "deep" / "er" / "file", "system.posix_acl_access", acl)
    if ROOT:
        os.chown(top / "text", 70, 1001), os.lchown(top / "link", 12, 34)
        os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for number, (above, directories, files) in enumerate(os.walk(raw, topdown=False)):
        for name in [*files, *directories, b"."]:
            os.utime(os.path.join(above, name), ns=(10**18 + number, 10**18 + 123456789), follow_symlinks=False)
    return top


def fingerprint(top):
    seen, inodes = {}, {}
    raw = os.fsencode(top)
    for above, directories, files in os.walk(raw):
        for name in [b".", *directories, *files]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content = None
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            relative = os.path.relpath(path, raw)
            first = inodes.setdefault(status.st_ino, relative)
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
            seen[relative] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size * (kind != stat.S_IFDIR),
                status.st_rdev,
                content,
                xattrs,
                first,
            )
    return seen


class TestWriting:
    @pytest.mark.parametrize("by", ["gnu tar", "index", "stream"])
    def test_everything_comes_back(self, tmp_path, by):
        source = awkward_tree(tmp_path / "source")
        before = fingerprint(source)
        facts, reader = packed(source, tmp_path / "x.tar.gz")
        target = tmp_path / "target"
        if by == "gnu tar":
            target.mkdir()
            command = [
                "tar",
                "-xzpf",
                tmp_path / "x.tar.gz",
                "-C",
                target,
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--numeric-owner",
                "--delay-directory-restore",
            ]
            subprocess.run(command, check=True, capture_output=True)
        else:
            found = unpacked(reader if by == "index" else FileReader(tmp_path / "x.tar.gz", NO_KEYS), target)
            assert found.skipped == []
            assert found.files == facts.files
        after = fingerprint(target)
        assert after.keys() == before.keys()
        assert {p: (before[p], after[p]) for p in before if before[p] != after[p]} == {}
        assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
        assert facts.changed_count == facts.skipped_count == 0

    def test_the_index_says_where_each_member_lies(self, tmp_path):
        _, reader = packed(awkward_tree(tmp_path / "source"), tmp_path / "x.tar.gz")
        stored = (tmp_path / "x.tar.gz").read_bytes()
        position = 0
        for member in reader.lines:
            assert member["offset"] == position == member["chunks"][0][0]
            piece = stored[position : position + member["length"]]
            assert xxhash.xxh3_128_hexdigest(piece) == member["stored_xxh3"]
            plain = b""
            for offset, length, size in member["chunks"]:
                chunk = gzip.decompress(stored[offset : offset + length])
                assert len(chunk) == size
                plain += chunk
            if member["type"] == "file":
                size = sum(n for _, n in member["segments"]) if "segments" in member else member["size"]
                assert hashlib.sha256(plain[member["header_bytes"] :][:size]).hexdigest() == member["sha256"]
            position += member["length"]
        assert gzip.decompress(stored[position:]) == bytes(1024)

    def test_F11_a_sparse_tebibyte_costs_nothing(self, tmp_path):
        (tmp_path / "source").mkdir()
        with (tmp_path / "source" / "huge").open("wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 39), file.write(b"x")
        started = time.monotonic()
        packed(tmp_path / "source", tmp_path / "x.tar.gz")
        assert time.monotonic() - started < 5
        assert (tmp_path / "x.tar.gz").stat().st_size < 10_000

    @pytest.mark.parametrize("by", ["index", "stream", "gnu tar"])
    def test_F11_a_file_that_is_one_hole_comes_back(self, tmp_path, by):
        (tmp_path / "s").mkdir()
        for name, size in (("small", 4096), ("large", 10 << 20)):
            with (tmp_path / "s" / name).open("wb") as file:
                file.truncate(size)
        os.link(tmp_path / "s" / "large", tmp_path / "s" / "other name")
        facts, reader = packed(tmp_path / "s", tmp_path / "s.tar.gz")
        assert facts.members == 4
        if by == "gnu tar":
            (tmp_path / "t").mkdir()
            subprocess.run(["tar", "-xzpf", tmp_path / "s.tar.gz", "-C", tmp_path / "t"], check=True)
        else:
            if by == "stream":
                reader.lines = None
                reader.members = lambda _path: None
            unpacked(reader, tmp_path / "t")
        assert fingerprint(tmp_path / "t") == fingerprint(tmp_path / "s")
        assert (tmp_path / "t" / "large").stat().st_blocks == 0

    def test_F12_a_socket_is_skipped_with_a_note(self, tmp_path):
        (tmp_path / "s").mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s" / "sock"))
            facts, reader = packed(tmp_path / "s", tmp_path / "x.tar.gz")
        assert facts.skipped == ["./sock: a socket"]
        assert [m["path"] for m in reader.lines] == ["."]

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_F12_another_file_system_is_not_entered(self, tmp_path):
        below = tmp_path / "s" / "mnt"
        below.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
        try:
            (below / "foreign").touch()
            facts, reader = packed(tmp_path / "s", tmp_path / "x.tar.gz")
        finally:
            subprocess.run(["umount", below], check=True)
        assert [m["path"] for m in reader.lines] == [".", "./mnt"]
        assert facts.skipped == ["./mnt: another file system is mounted there"]

    def test_a_path_beyond_4096_bytes_comes_back_by_index(self, tmp_path):
        (tmp_path / "s").mkdir()
        fd = os.open(tmp_path / "s", os.O_RDONLY)
        for _ in range(18):
            os.mkdir("d" * 250, dir_fd=fd)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        facts, reader = packed(tmp_path / "s", tmp_path / "x.tar.gz")
        assert len(facts.long_paths) == 3
        assert unpacked(reader, tmp_path / "t").files == 1
        assert (
            len([m for m in list_members(IndexedReader(*_again(tmp_path, reader)), "x.tar.gz") if len(m.name) > 4096])
            == 3
        )
        for name in ("s", "t"):
            subprocess.run(["rm", "-rf", name], cwd=tmp_path, check=True)

    def test_F12_a_tree_deeper_than_the_stack_of_python_comes_back(self, tmp_path):
        (tmp_path / "s").mkdir()
        path = tmp_path / "s"
        for _ in range(500):
            path /= "d"
        os.makedirs(path)
        (path / "file").write_text("deep")
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(300)
        try:
            facts, reader = packed(tmp_path / "s", tmp_path / "s.tar.gz")
        finally:
            sys.setrecursionlimit(limit)
        assert facts.members == 502
        assert [line["path"] for line in reader.lines][-1] == "./" + "d/" * 500 + "file"

    @pytest.mark.skipif(not ROOT, reason="needs an ordinary user beside root")
    def test_F10_what_cannot_be_read_is_an_error(self, tmp_path):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "private").write_bytes(b"x"), (tmp_path / "s" / "private").chmod(0)
        for directory in (tmp_path, *tmp_path.parents[:-2]):
            directory.chmod(0o755)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgid(65534), os.setuid(65534)
                write_tree(
                    [Root(tmp_path / "s", b".")],
                    IndexedFile(os.devnull),
                    advance=lambda _: None,
                    cancel=threading.Event(),
                )
            except SourceFailed as error:
                status = 0 if "private" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    def test_F9_the_archive_stays_whole_while_the_tree_moves(self, tmp_path):
        source = tmp_path / "s"
        source.mkdir()
        for number in range(60):
            (source / f"f{number:02}").write_bytes(os.urandom(200_000))
        (source / "big").write_bytes(bytes(9 << 20))
        stop = threading.Event()

        def disturb():
            rng = random.Random(3)
            while not stop.is_set():
                path = source / f"f{rng.randrange(60):02}"
                match rng.randrange(4):
                    case 0:
                        path.unlink(missing_ok=True)
                    case 1:
                        path.write_bytes(bytes(rng.randrange(300_000)))
                    case 2:
                        with path.open("ab") as file:
                            file.write(b"more" * 1000)
                    case 3:
                        (source / "new").write_bytes(b"replaced"), os.replace(source / "new", path)
                with (source / "big").open("r+b") as file:
                    file.truncate(rng.randrange(9 << 20))

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            noted = 0
            for number in range(25):
                facts, reader = packed(source, tmp_path / f"{number}.tar.gz")
                noted += facts.changed_count + facts.grown
                with tarfile.open(tmp_path / f"{number}.tar.gz") as archive:
                    sizes = {m.name: m.size for m in archive}
                assert sizes == {m["path"]: m["size"] for m in reader.lines}
                unpacked(reader, tmp_path / f"t{number}")
        finally:
            stop.set()
            thread.join()
        assert noted > 0

    def test_a_missing_root_is_an_error(self, tmp_path):
        with pytest.raises(SourceFailed, match="gone"):
            packed(tmp_path / "gone", tmp_path / "x.tar.gz")


def _again(tmp_path, reader):
    return tmp_path / "x.tar.gz", reader.lines


class TestReading:
    def test_only_what_fits(self, tmp_path):
        _, reader = packed(awkward_tree(tmp_path / "s"), tmp_path / "x.tar.gz")
        unpacked(reader, tmp_path / "t", only=lambda name: name == b"deep/er/file")
        assert [p.name for p in (tmp_path / "t").rglob("*") if p.is_file()] == ["file"]

    @pytest.mark.parametrize("indexed", [True, False], ids=["index", "stream"])
    def test_every_flipped_byte_of_data_is_found(self, tmp_path, indexed):
        source = tmp_path / "s"
        source.mkdir()
        (source / "a").write_bytes(os.urandom(3000)), (source / "b").write_bytes(b"text " * 500)
        _, reader = packed(source, tmp_path / "x.tar.gz")
        good = (tmp_path / "x.tar.gz").read_bytes()
        before = fingerprint(source)
        lies = []
        for number, position in enumerate(range(0, len(good), 7)):
            flipped = bytearray(good)
            flipped[position] ^= 1 << number % 8
            (tmp_path / "x.tar.gz").write_bytes(flipped)
            target = tmp_path / f"t{number}"
            try:
                unpacked(reader if indexed else FileReader(tmp_path / "x.tar.gz", NO_KEYS), target)
            except Damaged:
                continue
            if fingerprint(target) != before:
                lies.append(position)
        assert lies == []

    def test_G4_an_archive_without_its_end_is_refused(self, tmp_path):
        source = tmp_path / "s"
        source.mkdir()
        for name in "abc":
            (source / name).write_bytes(b"x" * 100)
        _, reader = packed(source, tmp_path / "x.tar.gz")
        stored = (tmp_path / "x.tar.gz").read_bytes()
        for number, member in enumerate(
            [*reader.lines[1:], {"offset": reader.lines[-1]["offset"] + reader.lines[-1]["length"]}]
        ):
            (tmp_path / "cut.tar.gz").write_bytes(stored[: member["offset"]])
            with pytest.raises(Damaged):
                unpacked(FileReader(tmp_path / "cut.tar.gz", NO_KEYS), tmp_path / f"t{number}")
        (tmp_path / "two.tar.gz").write_bytes(stored + stored)
        with pytest.raises(Damaged):
            unpacked(FileReader(tmp_path / "two.tar.gz", NO_KEYS), tmp_path / "two")

    def hostile(self, tmp_path, *members):
        with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
            for name, kind, link in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, link
                archive.addfile(info)
        return FileReader(tmp_path / "evil.tar.gz", NO_KEYS)

    @pytest.mark.parametrize(
        "members",
        [
            [("../outside/sentinel", tarfile.REGTYPE, "")],
            [("/etc/aquad-was-here", tarfile.REGTYPE, "")],
            [("a/../../outside/sentinel", tarfile.REGTYPE, "")],
            [("hard", tarfile.LNKTYPE, "../outside/sentinel")],
            [("hard", tarfile.LNKTYPE, "/etc/passwd")],
            [
                ("link", tarfile.SYMTYPE, "../outside"),
                ("hard", tarfile.LNKTYPE, "link/sentinel"),
                ("link/x", tarfile.DIRTYPE, ""),
            ],
        ],
    )
    def test_G1_nothing_leaves_the_tree(self, tmp_path, members):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "sentinel").write_bytes(b"whole")
        with pytest.raises((Damaged, RestoreFailed)):
            unpacked(self.hostile(tmp_path, *members), tmp_path / "t")
        assert os.listdir(tmp_path / "outside") == ["sentinel"]
        assert (tmp_path / "outside" / "sentinel").read_bytes() == b"whole"
        assert (tmp_path / "outside" / "sentinel").stat().st_nlink == 1
        assert not os.path.exists("/etc/aquad-was-here")

    def test_G1_a_symlink_already_there_is_not_written_through(self, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "t").mkdir()
        os.symlink("../outside", tmp_path / "t" / "link")
        with pytest.raises(RestoreFailed):
            extract(
                self.hostile(tmp_path, ("link/x", tarfile.REGTYPE, "")),
                "evil.tar.gz",
                tmp_path / "t",
                advance=lambda _: None,
                cancel=threading.Event(),
            )
        assert os.listdir(tmp_path / "outside") == []
