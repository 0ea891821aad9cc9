"""The packer's own order and descriptors; what it writes is read back in test_tarball."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from aquad.core.errors import SourceFailed
from aquad.stream.tarball import pack
from aquad.stream.tarball.content import CHUNK_BYTES, open_file
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aquad.stream.tarball.scan import Entry


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left for the collector is not ours
    return len(os.listdir("/proc/self/fd"))


class Recorder:
    """A RawFile that keeps the index alone."""

    is_clear, shares_blocks = True, False

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self._stored_bytes = 0

    def write(self, stored: bytes) -> None:
        self._stored_bytes += len(stored)

    def tell(self) -> int:
        return self._stored_bytes

    def record(self, member: Mapping[str, Any]) -> None:
        self.lines.append(member)

    def finish(self, *, plain_bytes: int, facts: dict[str, Any]) -> None: ...


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}-big").write_bytes(os.urandom(3 * CHUNK_BYTES + number))
        for small in range(5):
            (tmp_path / f"{number}-small-{small}").write_bytes(os.urandom(1000))
    return tmp_path


def test_big_and_small_members_lie_in_the_order_of_their_names_without_gaps(volume: Path) -> None:
    out = Recorder()
    write_tree([Root(volume, b".")], out, advance=lambda _count: None, cancel=threading.Event())
    assert [line["path"] for line in out.lines] == [".", *sorted(f"./{name}" for name in os.listdir(volume))]
    end = 0
    for line in out.lines:
        assert line["offset"] == end
        assert sum(length for _, length, _ in line["chunks"]) == line["length"]
        end += line["length"]


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_a_cancelled_archive_leaves_no_file_open(volume: Path, stop_after: int) -> None:
    before = open_descriptors()
    cancel, seen = threading.Event(), []

    def advance(count: int) -> None:
        seen.append(count)
        if len(seen) == stop_after:
            cancel.set()

    with pytest.raises(SourceFailed, match="cancelled"):
        write_tree([Root(volume, b".")], Recorder(), advance=advance, cancel=cancel)
    assert open_descriptors() == before


def test_F12_a_file_that_becomes_a_fifo_before_it_is_opened_is_named_and_left_out(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced_first(entry: Entry) -> int:
        if entry.leaf == "3-small-1":
            (volume / entry.leaf).unlink()
            os.mkfifo(volume / entry.leaf)
        return open_file(entry)

    monkeypatch.setattr(pack, "open_file", replaced_first)
    before = open_descriptors()
    out = Recorder()
    facts = write_tree([Root(volume, b".")], out, advance=lambda _count: None, cancel=threading.Event())
    assert facts.changed == ["./3-small-1: replaced while it was read"]
    assert "./3-small-1" not in {line["path"] for line in out.lines}
    assert open_descriptors() == before


def indexed(volume: Path) -> tuple[dict[str, Mapping[str, Any]], Any]:
    out = Recorder()
    facts = write_tree([Root(volume, b".")], out, advance=lambda _count: None, cancel=threading.Event())
    return {line["path"]: line for line in out.lines}, facts


def hooked(monkeypatch: pytest.MonkeyPatch, leaf: str, act: Callable[[], object]) -> None:
    """Do something between the moment a file is seen and that in which it is opened."""

    def acted_first(entry: Entry) -> int:
        if entry.leaf == leaf:
            act()
        return open_file(entry)

    monkeypatch.setattr(pack, "open_file", acted_first)


def test_F9_other_names_of_a_file_that_is_replaced_keep_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "v"
    volume.mkdir()
    (volume / "a").write_bytes(b"old")
    for name in "bc":
        os.link(volume / "a", volume / name)
    (tmp_path / "new").write_bytes(b"newer")
    hooked(monkeypatch, "a", lambda: os.rename(tmp_path / "new", volume / "a"))
    lines, facts = indexed(volume)
    assert facts.changed == ["./a: replaced while it was read"]
    assert (lines["./b"]["type"], lines["./b"]["size"]) == ("file", 3)
    assert (lines["./c"]["type"], lines["./c"]["link"]) == ("hardlink", "./b")


@pytest.mark.parametrize("kind", ["symlink", "directory"])
def test_F9_what_vanishes_after_it_was_seen_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    volume = tmp_path / "v"
    volume.mkdir()
    (volume / "a").write_bytes(b"a")
    thing = volume / "b"
    (thing.mkdir if kind == "directory" else lambda: thing.symlink_to("a"))()
    member_of = pack.member_of

    def vanishes(entry: Entry) -> dict[str, Any]:
        if entry.leaf == "b":
            (thing.rmdir if kind == "directory" else thing.unlink)()
        return member_of(entry)

    monkeypatch.setattr(pack, "member_of", vanishes)
    lines, facts = indexed(volume)
    assert facts.changed == ["./b: vanished"]
    assert set(lines) == {".", "./a"}


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES + 1])
def test_F9_a_sparse_file_that_is_cut_off_is_padded_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    volume = tmp_path / "v"
    volume.mkdir()
    with (volume / "a").open("wb") as file:
        file.truncate(size)
        file.write(b"x" * 8192)
    fds: list[int] = []

    def cut_off(entry: Entry) -> int:
        fds.append(open_file(entry))
        return fds[-1]

    monkeypatch.setattr(pack, "open_file", cut_off)
    monkeypatch.setattr(pack.os, "posix_fadvise", lambda *_: os.truncate(volume / "a", 0))
    lines, facts = indexed(volume)
    assert lines["./a"]["size"] == size
    assert facts.members == 2
