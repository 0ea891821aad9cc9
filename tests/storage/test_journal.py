"""The journal's files: rotation, removal with carrying, and what a death at any call leaves."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import threading
from datetime import UTC, datetime

import pytest

from aquad.core.errors import Damaged, RepositoryRefused, RepositoryWriteFailed
from aquad.jobs.trail.audit import verify_audit
from aquad.jobs.trail.standing import standing
from aquad.repository.catalog import Catalog
from aquad.storage import chain, journal
from aquad.storage.journal import Journal
from tests.faults.harness.child import run_struck
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import Directory, Disk, needs_root
from tests.faults.harness.seam import Cut, Fail, Fault, Kill, Tear
from tests.faults.harness.sweep import AFTER_THE_END, chosen
from tests.small import FakeClock

NOBODY = Catalog.of([], [])
EVER = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = datetime(2100, 1, 1, tzinfo=UTC)
HUGE = 1 << 60


class Ticking(FakeClock):
    def now(self):
        self.move(1)
        return self.moment


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(journal, "ROTATE_BYTES", 600)


def journal_in(state, **options):
    return Journal(state / "audit.jsonl", Ticking(), **options)


def names(state):
    return sorted(path.name for path in state.iterdir())


def numbers(entries):
    return [entry["number"] for entry in entries if entry["event"] == "test"]


def found(state):
    return verify_audit(journal_in(state), NOBODY).problems


def nothing(_entries):
    return []


def those(*wanted):
    return lambda entries: [e for e in entries if e.get("number") in wanted]


class TestWriting:
    def test_every_line_says_who(self, state):
        journal_in(state, by="root (0)").append("test", number=1)
        journal_in(state).append("test", number=2)
        assert [entry.get("by") for entry in journal_in(state).entries()] == ["root (0)", None]

    def test_a_line_may_be_longer_than_what_is_read_at_once(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        log.append("test", number=2, reason="x" * 3_000_000)
        log.append("test", number=3)
        assert numbers(log.entries()) == [1, 2, 3]

    @pytest.mark.parametrize("junk", [b"\0" * 100_000, b"{", b'{"line":1e999', b"\xff\xfe"])
    def test_a_torn_end_is_dropped_whatever_it_is(self, state, junk):
        log = journal_in(state)
        log.append("test", number=1)
        with (state / "audit.jsonl").open("ab") as stream:
            stream.write(junk)
        log.append("test", number=2)
        assert [e["event"] for e in log.entries()] == ["test", "journal_torn", "test"]
        assert found(state) == []

    @pytest.mark.parametrize(
        "junk", [b"[]", b"{}", b'{"line":Infinity}', b'{"line":"1","event":"x","at":""}', b"[" * 100_000, b"\xff" * 9]
    )
    def test_a_whole_line_of_junk_is_damage(self, state, junk):
        log = journal_in(state)
        log.append("test", number=1)
        with (state / "audit.jsonl").open("ab") as stream:
            stream.write(junk + b"\n")
        with pytest.raises(Damaged):
            log.append("test", number=2)
        with pytest.raises(Damaged):
            list(log.entries())
        assert found(state)


class TestRotation:
    @pytest.mark.usefixtures("small_files")
    def test_a_large_file_is_set_aside_and_the_chain_goes_on(self, state):
        log = journal_in(state)
        positions = [log.append("test", number=number) for number in range(30)]
        assert len(names(state)) > 5
        assert all((state / name).stat().st_size < 900 for name in names(state))
        assert numbers(log.entries()) == list(range(30))
        for name in names(state)[:-1]:
            last = json.loads((state / name).read_bytes().splitlines()[-1])
            assert name == f"audit-{last['line']:09}.jsonl"
        newest = json.loads((state / "audit.jsonl").read_bytes().splitlines()[0])
        assert newest["event"] == "journal_rotated"
        assert newest["previous"] in {position.hash for position in positions}
        assert found(state) == []

    def test_by_order(self, state):
        log = journal_in(state)
        assert not log.rotate()
        log.append("test", number=1)
        assert log.rotate()
        assert names(state) == ["audit-000000001.jsonl", "audit.jsonl"]
        assert not log.rotate(), "there is nothing in it yet"
        log.append("test", number=2)
        assert log.rotate()
        assert names(state) == ["audit-000000001.jsonl", "audit-000000003.jsonl", "audit.jsonl"]
        assert numbers(log.entries()) == [1, 2]

    @pytest.mark.parametrize("left", [None, b"", b'{"line":2,"ev'])
    def test_a_missing_empty_or_torn_file_goes_on_from_the_newest_rotated_one(self, state, left):
        log = journal_in(state)
        log.append("test", number=1)
        log.rotate()
        (state / "audit.jsonl").unlink()
        if left is not None:
            (state / "audit.jsonl").write_bytes(left)
        assert numbers(log.entries()) == [1]
        log.append("test", number=2)
        assert numbers(log.entries()) == [1, 2]
        assert found(state) == []

    def test_without_any_file_it_goes_on_from_the_anchor(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        log.rotate()
        log.remove_before(NEVER, HUGE, nothing)
        (state / "audit.jsonl").unlink()
        assert log.append("test", number=2).lines == 3
        assert [e["event"] for e in log.entries()] == ["journal_rotated", "test"]

    def test_nothing_is_renamed_onto_another_file(self, state, monkeypatch):
        log = journal_in(state)
        log.append("test", number=1)
        log.append("test", number=2)
        shutil.copy(state / "audit.jsonl", state / "audit-000000002.jsonl")
        monkeypatch.setattr(journal, "ROTATE_BYTES", 10)
        before = (state / "audit-000000002.jsonl").read_bytes()
        log.append("test", number=3)
        assert (state / "audit-000000002.jsonl").read_bytes() == before
        assert found(state)

    def test_a_rotated_file_with_a_torn_end_is_damage(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        log.append("test", number=2)
        log.rotate()
        rotated = state / "audit-000000002.jsonl"
        rotated.write_bytes(rotated.read_bytes()[:-5])
        with pytest.raises(Damaged, match="torn"):
            list(log.entries())
        (state / "audit.jsonl").unlink()
        with pytest.raises(Damaged, match="does not end with line 2"):
            log.append("test", number=3)

    def test_a_name_that_leads_nowhere_is_said(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        (state / "audit-000000009.jsonl").symlink_to("nowhere")
        with pytest.raises(RepositoryRefused, match="leads nowhere"):
            list(log.entries())

    def test_the_reader_sees_each_line_once_while_another_rotates_and_removes(self, state):
        """Between the opening of the files and the reading of each line."""
        log = journal_in(state)
        for number in range(5):
            log.append("test", number=number)
        reader = log.entries()
        seen = [next(reader)["number"]]
        log.rotate()
        log.append("test", number=5)
        log.rotate()
        log.remove_before(NEVER, HUGE, nothing)
        seen += numbers(reader)
        assert seen == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("what", ["rotate", "remove"])
    @pytest.mark.parametrize("call", range(8))
    def test_a_rotation_or_removal_while_the_files_are_opened(self, state, monkeypatch, what, call):
        log = journal_in(state)
        for number in range(3):
            log.append("test", number=number)
            log.rotate()
        log.append("test", number=3)
        calls = iter(range(100))
        disturbed, path_type = [], type(state)
        really = path_type.open

        def disturbing(path, *arguments, **options):
            if not disturbed and next(calls) == call:
                disturbed.append(path)
                log.rotate() if what == "rotate" else log.remove_before(NEVER, HUGE, those(0, 2))
            return really(path, *arguments, **options)

        monkeypatch.setattr(path_type, "open", disturbing)
        seen = numbers(log.entries())
        monkeypatch.undo()
        assert seen in ([0, 1, 2, 3], [0, 2, 3])
        if disturbed:
            assert numbers(log.entries()) == ([0, 1, 2, 3] if what == "rotate" else [0, 2, 3])


class TestRemoval:
    def test_by_age_of_the_last_line_whole_files_and_never_the_current_one(self, state):
        log = journal_in(state)
        ends = []
        for number in range(3):
            log.append("test", number=number)
            ends.append(list(log.entries())[-1]["at"])
            log.rotate()
        just = datetime.fromisoformat(ends[1])
        removed = log.remove_before(just, HUGE, nothing)
        assert removed == (("audit-000000001.jsonl",), 1, 0), "what is just as old as that stays"
        assert log.remove_before(just, HUGE, nothing).files == ()
        removed = log.remove_before(NEVER, HUGE, nothing)
        assert len(removed.files) == 2
        assert log.remove_before(NEVER, 0, nothing).files == ()
        assert names(state) == ["audit.anchor", "audit.jsonl"]
        assert numbers(log.entries()) == []
        log.append("test", number=9)
        assert numbers(log.entries()) == [9]
        assert found(state) == []

    def test_by_size_the_oldest_first(self, state):
        log = journal_in(state)
        for number in range(6):
            log.append("test", number=number, text="x" * 1000)
            log.rotate()
        log.remove_before(EVER, 4500, nothing)
        assert numbers(log.entries()) == [3, 4, 5] or numbers(log.entries()) == [2, 3, 4, 5]
        assert sum(path.stat().st_size for path in state.iterdir()) < 5500

    def test_what_stands_comes_first_as_it_was_and_again_after_the_next_removal(self, state):
        log = journal_in(state, by="daemon")
        for number in range(6):
            log.append("test", number=number)
            log.rotate()
        whole = {e["number"]: e for e in log.entries() if e["event"] == "test"}
        for _ in range(3):
            log.append("test", number=6)
            log.rotate()
            log.remove_before(NEVER, HUGE, those(1, 3, 4))
            kept = [e for e in log.entries() if e["event"] == "test"]
            assert kept == [whole[1], whole[3], whole[4]]
            assert found(state) == []

    def test_what_is_carried_is_no_second_time_there(self, state):
        """A removal that was killed before audit.anchor: its carried lines count for nothing."""
        log = journal_in(state)
        log.append("test", number=1)
        log.rotate()
        ended = run_struck(lambda _: journal_in(state).remove_before(NEVER, HUGE, those(1)), state, Kill(6))
        assert ended.killed
        assert b'"carried"' in (state / "audit.jsonl").read_bytes()
        assert not (state / "audit.anchor").exists()
        assert numbers(log.entries()) == [1]
        log.remove_before(NEVER, HUGE, those(1))
        assert numbers(log.entries()) == [1]
        assert found(state) == []

    def test_what_a_killed_removal_left_counts_no_more_and_goes_with_the_next_one(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        log.rotate()
        at = 0
        while not (state / "audit.anchor").exists():
            at += 1
            run_struck(lambda _: journal_in(state).remove_before(NEVER, HUGE, those(1)), state, Kill(at))
        assert (state / "audit-000000001.jsonl").exists()
        assert numbers(log.entries()) == [1]
        assert found(state) == []
        assert log.remove_before(EVER, HUGE, nothing).files == ()
        assert names(state) == ["audit.anchor", "audit.jsonl"]
        assert numbers(log.entries()) == [1]

    def test_nothing_is_removed_of_a_broken_chain(self, state):
        log = journal_in(state)
        for number in range(3):
            log.append("test", number=number)
            log.rotate()
        path = state / "audit-000000001.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"number":0', b'"number":7'))
        before = names(state)
        with pytest.raises(Damaged):
            log.remove_before(NEVER, HUGE, nothing)
        assert names(state) == before

    @pytest.mark.parametrize("junk", [b"", b"{}", b"null", b"[1]", b"\xff", b'{"lines":1e99}'])
    def test_an_anchor_of_junk_is_damage(self, state, junk):
        log = journal_in(state)
        log.append("test", number=1)
        (state / "audit.anchor").write_bytes(junk)
        with pytest.raises(Damaged, match=r"audit\.anchor"):
            list(log.entries())
        assert "audit.anchor" in found(state)[0]

    def test_carried_lines_that_are_gone_are_missed(self, state):
        log = journal_in(state)
        log.append("test", number=1)
        log.rotate()
        log.remove_before(NEVER, HUGE, those(1))
        log.append("test", number=2)
        lines = (state / "audit.jsonl").read_bytes().splitlines(keepends=True)
        (state / "audit.jsonl").write_bytes(lines[0])
        with pytest.raises(Damaged, match="carry"):
            list(log.entries())
        assert found(state)


def lived(state):
    """A journal with rotated files, facts that stand, and a removal behind it."""
    log = journal_in(state)
    for number in range(4):
        log.append("accepted", component=f"c{number}")
        log.rotate()
    log.remove_before(EVER, 900, lambda entries: standing(entries, []))
    assert (state / "audit.anchor").exists()
    assert len(names(state)) > 3
    return log


def accepted(state):
    return [e["component"] for e in journal_in(state).entries() if e["event"] == "accepted"]


def append_with_rotation(state):
    journal.ROTATE_BYTES = 100
    for component in ("new1", "new2", "new3"):
        journal_in(state).append("accepted", component=component)


def remove_all(state):
    log = journal_in(state)
    log.rotate()
    log.remove_before(NEVER, HUGE, lambda entries: standing(entries, []))


FACTS = ["c0", "c1", "c2", "c3"]
NEW = ["new1", "new2", "new3"]


def check_laws(state):
    """The chain is whole, nothing that stood is lost, and what comes after works."""
    now = accepted(state)
    assert now[:4] == FACTS
    assert now[4:] == NEW[: len(now) - 4]
    assert found(state) == []
    for _ in range(2):
        journal_in(state).append("accepted", component="after")
        remove_all(state)
        assert [*dict.fromkeys(accepted(state))] == [*now, "after"]
        assert found(state) == []
    assert names(state) == ["audit.anchor", "audit.jsonl"]
    return now


@pytest.mark.parametrize("action", [append_with_rotation, remove_all])
@pytest.mark.parametrize(
    "fault",
    [Kill, Tear, lambda at: Fail(at, errno.ENOSPC), lambda at: Fail(at, errno.EIO, lasting=True)],
    ids=["kill", "tear", "ENOSPC", "EIO"],
)
def test_A1_B1_a_death_or_a_failure_at_every_call_leaves_a_whole_chain_and_every_fact(tmp_path, action, fault):
    place = Directory(tmp_path / "pristine", tmp_path / "state")
    place.pristine.mkdir()
    lived(place.pristine)
    at = 1
    while True:
        state = place.fresh()
        ended = run_struck(action, state, fault(at))
        if ended.outcome not in {"", "raised"}:
            break
        check_laws(state)
        at += 1
    assert ended.calls < at
    assert at > 15


@needs_root
@pytest.mark.faults
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("action", [append_with_rotation, remove_all])
def test_A4_power_cuts_leave_a_whole_chain_and_every_fact(tmp_path, action, kind):
    (tmp_path / "pristine").mkdir()
    lived(tmp_path / "pristine")
    with Disk(kind, tmp_path / "pristine", tmp_path) as disk:
        calls = run_struck(action, disk.fresh(), Fault()).calls
        for at in [*chosen(calls, limit=8), AFTER_THE_END]:
            for neighbour in (True, False) if ALL else (True,):
                state = disk.fresh()
                ended = run_struck(action, state, Cut(at, disk.mountpoint, neighbour=neighbour))
                assert ended.killed
                disk.settle()
                now = check_laws(state)
                if at == AFTER_THE_END and action is append_with_rotation:
                    assert now == [*FACTS, *NEW], "it had said that they were written"


def _append_and_rotate(state, who, count):
    journal.ROTATE_BYTES = 2000
    log = Journal(state / "audit.jsonl", Ticking(), by=who)
    for number in range(count):
        log.append("test", number=number)
        if number % 7 == 0:
            log.rotate()


def test_two_processes_append_and_rotate_and_no_line_is_lost(state):
    count = 150
    children = [
        multiprocessing.get_context("fork").Process(target=_append_and_rotate, args=(state, who, count))
        for who in ("a", "b")
    ]
    for child in children:
        child.start()
    reader, last = journal_in(state), {}
    while any(child.is_alive() for child in children):
        lines = [(e["line"], e.get("by"), e.get("number")) for e in reader.entries()]
        assert [line for line, _, _ in lines] == list(range(1, len(lines) + 1))
        assert len(lines) >= last.get("lines", 0)
        last["lines"] = len(lines)
    for child in children:
        child.join()
        assert child.exitcode == 0
    entries = list(reader.entries())
    for who in ("a", "b"):
        assert numbers(e for e in entries if e["by"] == who) == list(range(count))
    assert len(names(state)) > 10
    assert found(state) == []


def test_who_waited_for_the_lock_of_a_renamed_file_writes_into_the_new_one(state, monkeypatch):
    log = journal_in(state)
    log.append("test", number=1)
    opened, really = threading.Event(), journal.files.open_log
    go = threading.Event()

    def slowly(path):
        fd = really(path)
        if threading.current_thread().name == "late" and not opened.is_set():
            opened.set()
            go.wait(10)
        return fd

    monkeypatch.setattr(journal.files, "open_log", slowly)
    late = threading.Thread(target=lambda: journal_in(state).append("test", number=3), name="late")
    late.start()
    opened.wait(10)
    log.append("test", number=2)
    log.rotate()
    go.set()
    late.join()
    assert numbers(log.entries()) == [1, 2, 3]
    assert found(state) == []
    assert len((state / "audit-000000002.jsonl").read_bytes().splitlines()) == 2


def test_P5_a_million_events_stay_within_caps(state, monkeypatch):
    """Without fsync, which is not what is looked at."""
    total, size = (1_000_000, 4 << 20) if ALL else (30_000, 200_000)
    monkeypatch.setattr(journal, "ROTATE_BYTES", size)
    monkeypatch.setattr(journal.files, "sync", lambda *_: None)
    monkeypatch.setattr(journal.files, "sync_directory", lambda *_: None)
    log, largest = journal_in(state), 0
    log.append("accepted", component="first")
    for number in range(total):
        log.append("test", number=number)
        if number % (total // 20) == 0:
            log.remove_before(EVER, 4 * size, lambda entries: standing(entries, []))
            largest = max(largest, sum(path.stat().st_size for path in state.iterdir()))
    assert largest <= 5 * size
    assert accepted(state) == ["first"]
    assert numbers(log.entries())[-1] == total - 1
    assert found(state) == []


def test_what_is_read_only_is_read(state):
    log = lived(state)
    before = {name: (state / name).read_bytes() for name in names(state)}
    list(log.entries())
    assert found(state) == []
    assert before == {name: (state / name).read_bytes() for name in names(state)}


def test_an_append_that_fails_leaves_no_descriptor(state):
    log = journal_in(state)
    log.append("test", number=1)
    there = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with (state / "audit.jsonl").open("ab") as stream:
            stream.write(b"junk\n")
        with contextlib.suppress(Damaged, RepositoryWriteFailed):
            log.append("test", number=2)
    with contextlib.suppress(Damaged):
        list(log.entries())
    assert len(os.listdir("/proc/self/fd")) == there


def test_the_head_is_what_it_was_written_as():
    head = chain.Head(7, "a" * 64, 9, 2)
    assert chain.head_in(head.stored()) == head
