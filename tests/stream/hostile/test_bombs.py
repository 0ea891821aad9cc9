"""G3: small files that would become large: they end soon, in a bounded memory, and what they say they need is seen before."""

import gzip
import json
import os
import resource
import signal
import subprocess

import pytest

from aquad.core.errors import AquadError
from aquad.repository.reader import FileReader
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.stream.tarball.unpack import list_members
from tests.keys import NO_KEYS
from tests.stream.files import IndexedReader
from tests.stream.hostile.forge import BLOCK, DIRECTORY, END, SYMLINK, block, gz, member, pax, sparse, tar
from tests.stream.hostile.world import extracted, names

MIB = 1 << 20
SECONDS = 40
MEMORY_BYTES = 160 * MIB
"""More than the threads' stacks and what is read at once, less than any of the bombs."""


def bounded(act, memory=MEMORY_BYTES):
    """Run `act` in a child that may not use much memory or time; return the name of its error, and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.alarm(SECONDS)
        with open("/proc/self/statm") as status:
            size = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory,) * 2)
        try:
            answer = "", act()
        except AquadError as error:
            answer = type(error).__name__, str(error)
        except BaseException as error:  # noqa: BLE001 - it must not come back as a second test process
            answer = f"defect: {error!r}", None
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(answer)


def many(pattern, megabytes):
    """So much of a pattern, in gzip, at no cost."""
    return gzip.compress(pattern * (8 * MIB // len(pattern)), 1, mtime=0) * (megabytes // 8)


@pytest.fixture
def bomb(tmp_path):
    def make(*pieces):
        path = tmp_path / "bomb.tar.gz"
        path.write_bytes(b"".join(pieces))
        assert path.stat().st_size < 16 * MIB
        return FileReader(path, NO_KEYS)

    return make


def listed(reader):
    return sum(1 for _ in list_members(reader, "bomb.tar.gz"))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_G3_headers_that_would_fill_the_memory_are_refused(bomb, kind):
    reader = bomb(gz(block(b"f", kind, size=1 << 30)), many(b"x", 1024), gz(END))
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_records_that_would_fill_the_memory_are_refused(bomb):
    reader = bomb(gz(block(b"f", b"x", size=1 << 30)), many(b"16 comment=1234\n", 1024), gz(END))
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_a_chain_of_old_sparse_headers_ends(bomb):
    first = block(b"s", b"S", patches=[(257, b"ustar  \0"), (482, b"\x01")])
    more = (b"%011o\0%011o\0" % (512, 512)) * 21 + b"\x01" + bytes(7)
    reader = bomb(gz(first), many(more, 1024), gz(END))
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_headers_before_headers_end(bomb):
    reader = bomb(many(pax({b"comment": b"x"}, b"g"), 512), gz(END))
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_a_hundred_thousand_members_take_no_memory(bomb):
    reader = bomb(many(block(b"f"), 56), gz(END))
    assert bounded(lambda: listed(reader), 32 * MIB) == ["", 56 * MIB // BLOCK]


def test_G3_zeros_behind_the_end_take_no_memory(bomb):
    reader = bomb(gz(member(b"f") + END), many(b"\0", 512))
    assert bounded(lambda: listed(reader)) == ["", 1]


@pytest.mark.parametrize("kind", [b"f", b"l", b"d"])
def test_G3_the_same_name_over_and_over_leaves_one(bomb, tmp_path, kind):
    one = {b"f": member(b"n", data=b"x"), b"l": member(b"n", SYMLINK, link=b"x"), b"d": member(b"n", DIRECTORY)}[kind]
    reader = bomb(gz(one * 5000 + END))
    (tmp_path / "target").mkdir()
    assert bounded(lambda: extracted(reader, tmp_path / "target").members) == ["", 5000]
    assert names(tmp_path / "target")[0] == {b"n"}


def test_G3_directories_deeper_than_a_path_can_say(bomb, tmp_path):
    reader = bomb(tar(member(b"d/" * 4000 + b"f")))
    (tmp_path / "target").mkdir()
    try:
        assert bounded(lambda: extracted(reader, tmp_path / "target").files) == ["", 1]
    finally:
        subprocess.run(["rm", "-rf", "target"], cwd=tmp_path, check=True)


def test_G3_a_size_that_lies_takes_no_more_disk_than_there_is_data(bomb, tmp_path):
    reader = bomb(gz(block(b"f", size=1 << 40)), many(b"x", 32))
    (tmp_path / "target").mkdir()
    assert bounded(lambda: extracted(reader, tmp_path / "target").files)[0] == "Damaged"
    assert names(tmp_path / "target")[1] <= 33 * MIB
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_a_sparse_file_of_tebibytes_takes_no_disk(bomb, tmp_path):
    reader = bomb(tar(sparse([1 << 42, 512], (1 << 42) + 512, b"x" * 512)))
    (tmp_path / "target").mkdir()
    assert bounded(lambda: extracted(reader, tmp_path / "target").files) == ["", 1]
    assert (tmp_path / "target/s").stat().st_size == (1 << 42) + 512
    assert names(tmp_path / "target")[1] < MIB


@pytest.mark.parametrize("numbers", [b"1\n", b"1"], ids=["numbers", "a number"])
def test_G3_a_map_without_end_is_refused(bomb, numbers):
    keys = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"512"}
    count = b"999999999\n".ljust(BLOCK, b"1")
    reader = bomb(gz(pax(keys) + block(b"s", size=1 << 30) + count), many(numbers, 1024), gz(END))
    assert bounded(lambda: listed(reader))[0] == "Damaged"


def test_G3_the_plan_says_what_a_bomb_would_take(bomb, tmp_path):
    """A job compares that with what is free, and asks, before anything is written."""
    volume = Volume(name="data", path=tmp_path / "data", quiesce="none", may_shrink=False, accepted=False)
    reader = bomb(gz(block(b"f", size=512 * MIB)), many(b"\0", 512), gz(END))
    steps = bounded(lambda: [step.needs_bytes for step in volume.plan_restore(reader, VolumeTarget(tmp_path / "to"))])
    assert steps == ["", [512 * MIB]]
    reader = bomb(gz(block(b"f", size=1 << 40)), many(b"\0", 64), gz(END))
    assert bounded(lambda: volume.plan_restore(reader, VolumeTarget(tmp_path / "to")))[0] == "Damaged"
    assert not (tmp_path / "to").exists()


def test_G3_a_chunk_that_inflates_to_more_than_its_line_says(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(many(b"\0", 512))
    line = {
        "path": "f",
        "type": "file",
        "mode": 0o600,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "mtime_ns": 0,
        "size": 5,
    }
    stretch = {"chunks": [[0, path.stat().st_size, 5]], "header_bytes": 0, "sha256": "0" * 64}
    reader = IndexedReader(path, [line | stretch])
    (tmp_path / "target").mkdir()
    assert bounded(lambda: extracted(reader, tmp_path / "target").files)[0] == "Damaged"
    assert names(tmp_path / "target")[1] <= 8192
