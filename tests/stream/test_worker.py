"""The processes that make small members: what they make is what a thread makes, and their end is noticed."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from aquad.core.errors import ChildFailed, SourceFailed
from aquad.stream.tarball.content import Small, made
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.worker import FILES, Workers
from tests.stream.test_pack import Recorder


@pytest.fixture
def workers():
    workers = Workers(2)
    workers.start()
    yield workers
    workers.close()


def opened(directory: Path, count: int) -> list[Small]:
    smalls = []
    for number in range(count):
        path = directory / f"{number:04}"
        if not path.exists():
            path.write_bytes(os.urandom(100 + number))
        fd = os.open(path, os.O_RDONLY)
        smalls.append(Small(os.fsencode(path.name), os.fstat(fd), fd, b""))
    return smalls


def descriptors() -> int:
    gc.collect()  # what earlier tests left
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return {
        child for thread in Path("/proc/self/task").iterdir() for child in (thread / "children").read_text().split()
    }


def test_a_process_makes_what_a_thread_makes(workers, tmp_path):
    before = descriptors()
    plain = Small(b"head", os.stat(tmp_path), -1, b"h" * 512)
    assert workers.make([*opened(tmp_path, FILES - 1), plain]) == made([*opened(tmp_path, FILES - 1), plain])
    assert descriptors() == before


def test_a_failure_in_a_process_is_raised_here_and_the_next_batch_is_made(workers, tmp_path):
    before = descriptors()
    smalls = opened(tmp_path, 3)
    memory = os.open("/proc/self/mem", os.O_RDONLY)  # reading it at 0 is an I/O error
    os.dup2(memory, smalls[1].fd)
    os.close(memory)
    with pytest.raises(SourceFailed, match="Input/output error"):
        workers.make(smalls)
    assert len(workers.make(opened(tmp_path, 3))) == 3
    assert descriptors() == before


def test_A3_a_killed_process_is_a_failure_that_says_so(workers, tmp_path):
    for worker in workers._all:  # and no other child: a server of other tests may be one
        os.kill(worker._child.pid, signal.SIGKILL)
    before = descriptors()
    with pytest.raises(ChildFailed, match="the process that reads them is gone"):
        workers.make(opened(tmp_path, 5))
    assert descriptors() == before - 2, "the files are closed, and the two pipes of the process that is gone"


def test_a_tree_of_many_files_uses_processes_and_leaves_none(tmp_path):
    for number in range(3 * FILES):
        (tmp_path / f"{number:04}").write_text(f"file {number}\n" * 20)
    before, seen = (descriptors(), children()), set()
    out = Recorder()

    def advance(_count: int) -> None:
        seen.update(children())

    facts = write_tree([Root(tmp_path, b".")], out, advance=advance, cancel=threading.Event())
    assert facts.files == 3 * FILES
    assert [line["path"] for line in out.lines] == [".", *(f"./{number:04}" for number in range(3 * FILES))]
    assert len(seen - before[1]) == 2
    assert (descriptors(), children()) == before


def test_A5_they_end_with_the_process_that_started_them(tmp_path):
    """SIGKILL of the parent: nothing it could do itself."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        workers = Workers(2)
        workers.start()
        os.write(write, " ".join(str(worker._child.pid) for worker in workers._all).encode())
        time.sleep(60)
    started = os.read(read, 1000).decode().split()
    assert len(started) == 2
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(read), os.close(write)
    give_up = time.monotonic() + 5
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes() for child in started
    ):
        assert time.monotonic() < give_up, "a worker outlived its parent"
        time.sleep(0.02)
