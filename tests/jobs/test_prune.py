"""Retention carried out: what goes, when, in which order, and when nothing may."""

import json
import os
import shutil
import tempfile
import threading
from contextlib import contextmanager
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from aquad.core.errors import AquadError, LockHeld, RepositoryRefused, RepositoryWriteFailed
from aquad.jobs import prune
from aquad.jobs.full import Space, take_full
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import Work, run_job
from aquad.jobs.verify import verify
from aquad.repository import lock
from aquad.repository.history import History
from aquad.repository.report import write_report
from aquad.repository.retention import Decision, Policy
from aquad.storage import files
from aquad.stream.artifact import Silent
from tests.faults.harness.seam import CHANGING
from tests.faults.harness.stacks import RestoringVolume, contents
from tests.small import LIMITS, FakeClock, Words, journal, make_repository, open_repository

MEMORY = Path("/dev/shm")
DAY = timedelta(days=1)
AGES = {"full": 30 * DAY, "incremental": 7 * DAY, "weekly": 84 * DAY}
ALL_KINDS = tuple(AGES)
FULLS = ("full",)


def rules(**changes):
    return prune.Rules(Policy(AGES, 3, DAY), ("words",), 7 * DAY, 90 * DAY, 10**9)._replace(**changes)


@pytest.fixture(scope="module")
def made():
    """Repositories of so many days, each made once: `0`, and what tests ask for."""
    with tempfile.TemporaryDirectory(prefix="aquad-prune-", dir=MEMORY if MEMORY.is_dir() else None) as directory:
        make_repository(Path(directory) / "0")
        yield Path(directory)


@pytest.fixture
def repository(made):
    root = made / "backups"
    shutil.copytree(made / "0", root)
    yield open_repository(root, FakeClock())
    shutil.rmtree(root)


def days(repository, count, kind="full"):
    """A backup a day; the clock stands a day after the last."""
    root = repository.root
    known = root.with_name(f"{count}")
    if kind == "full" and not any(repository.layout.manifests.iterdir()) and count > 5:
        if not known.exists():
            shutil.copytree(root, known)
            _days(open_repository(known, FakeClock()), count, kind)
        shutil.rmtree(root)
        shutil.copytree(known, root)
        repository.clock.move(86400 * count)
        taken = sorted(ids(repository))
        assert len(taken) == count
        return taken
    return _days(repository, count, kind)


def _days(repository, count, kind):
    taken = []
    for _ in range(count):
        done = run_job(
            repository,
            "full",
            lambda run: take_full(repository, [Words()], run, space=Space(), kind=kind),
            clock=repository.clock,
            zone=UTC,
            limits=LIMITS,
        )
        taken.append(done.details["backup"])
        repository.clock.move(86400)
    return taken


def decide(repository, *, rules=rules(), kinds=FULLS, everything=False, logs=True):  # noqa: B008 - never changed
    return prune.decide(repository, rules, kinds=kinds, now=repository.clock.now(), everything=everything, logs=logs)


def carry_out(repository, pruning=None, *, rules=rules(), kinds=FULLS):  # noqa: B008 - never changed
    pruning = pruning or decide(repository, rules=rules, kinds=kinds)
    with repository.writing(run_id="prunes", command="prune"):
        prune.carry_out(repository, pruning, rules, kinds)
    return pruning


def ids(repository):
    return {backup.id for backup in repository.catalog().backups}


def in_trash(repository):
    return {one.id for one in repository.trash.contents()}


def events(repository, *names):
    return [entry for entry in journal(repository.root) if entry["event"] in names]


def tree(root):
    """Names, bytes and times; without locks, which every reader touches."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.name not in {"lock", "readers.lock"}:
            stat = path.lstat()
            found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else None, stat.st_mtime_ns
    return found


class Watching:
    """Stands for `os` in the seam: tells each changing call, with its arguments, before it is done."""

    def __init__(self, tell):
        self._tell = tell

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CHANGING:
            return function

        def told(*arguments, **keywords):
            self._tell(name, arguments)
            return function(*arguments, **keywords)

        return told


@contextmanager
def watching(tell):
    files.os = Watching(tell)
    try:
        yield
    finally:
        files.os = os


class TestBackups:
    def test_what_is_due_goes_and_the_rest_stays_with_a_reason_each(self, repository):
        taken = days(repository, 35)
        pruning = carry_out(repository)
        gone = set(taken[:6])
        assert {one.id for one in pruning.decisions} == set(taken)
        assert all(one.reason for one in pruning.decisions)
        assert set(pruning.remove) == gone == in_trash(repository)
        assert ids(repository) == set(taken) - gone
        verdicts = verify(repository, repository.catalog().backups, "bytes", Silent())
        assert not [problem for verdict in verdicts for problem in verdict.problems]

    def test_again_there_is_nothing_to_do(self, repository):
        days(repository, 32)
        carry_out(repository)
        assert decide(repository).remove == []

    def test_only_the_kinds_that_are_asked_about(self, repository):
        old = days(repository, 5, "incremental")
        days(repository, 32)
        assert not set(old) & set(decide(repository).remove)
        assert set(decide(repository, kinds=ALL_KINDS).remove) > set(old[:2])

    def test_deciding_touches_nothing(self, repository):
        days(repository, 32)
        before = tree(repository.root)
        assert decide(repository).remove
        assert tree(repository.root) == before

    def test_each_decision_is_in_the_journal_before_the_manifest_goes(self, repository):
        taken = days(repository, 32)
        seen = []

        def tell(name, arguments):
            if name in {"rename", "unlink", "rmdir"} and "trash" in str(arguments):
                told = {entry["backup"] for entry in events(repository, "pruned")}
                seen.append([id_ for id_ in taken if id_ in str(arguments) and id_ not in told])

        with watching(tell):
            carry_out(repository)
        assert seen
        assert not any(seen)
        told = events(repository, "pruned")
        assert [entry["kind"] for entry in told] == ["full"] * 3
        assert all("old" in entry["reason"] for entry in told)

    def test_cleaned_comes_last_and_names_the_ages(self, repository):
        days(repository, 32)
        carry_out(repository)
        last = journal(repository.root)[-1]
        assert (last["event"], last["ages"]) == ("cleaned", {"full": 30 * 86400})
        assert History.of(repository.journal.entries()).cleaned["full"].age == 30 * DAY

    def test_it_is_not_called_cleaned_when_a_step_failed(self, repository):
        days(repository, 32)
        (repository.root / "backup_report_1.txt").write_text("x")
        pruning = decide(repository)._replace(reports=["backup_report_1.txt"])

        def tell(name, arguments):
            if name == "unlink" and "report" in str(arguments):
                raise OSError(5, "on purpose")

        with watching(tell), pytest.raises(RepositoryWriteFailed):
            carry_out(repository, pruning)
        assert events(repository, "cleaned") == []
        assert len(in_trash(repository)) == 3, "what was done before stays done"
        carry_out(repository)
        assert len(events(repository, "cleaned")) == 1

    def test_P4_a_manifest_that_somebody_removed_since_it_was_decided(self, repository):
        taken = days(repository, 32)
        pruning = decide(repository)
        repository.layout.manifest(taken[1]).unlink()
        carry_out(repository, pruning)
        assert in_trash(repository) == {taken[0], taken[2]}

    def test_P4_a_report_that_somebody_removed_since_it_was_decided(self, repository):
        days(repository, 1)
        carry_out(repository, prune.Pruning([], [], ["backup_report_1.txt"]))
        assert events(repository, "cleaned")

    def test_what_was_taken_back_would_go_again_and_keep_prevents_it(self, repository):
        taken = days(repository, 32)
        carry_out(repository)
        with repository.writing(run_id="takes back", command="trash restore"):
            repository.trash.take_back(taken[2])
            repository.journal.append("trash_restored", backup=taken[2])
        assert taken[2] in ids(repository)
        assert taken[2] in decide(repository).remove
        repository.journal.append("kept", backup=taken[2], until=None)
        assert taken[2] not in decide(repository).remove
        carry_out(repository)
        assert taken[2] in ids(repository)
        repository.journal.append("unkept", backup=taken[2])
        carry_out(repository)
        assert taken[2] in in_trash(repository)


class TestRefusals:
    def refused(self, repository, match, **options):
        before = tree(repository.root)
        with pytest.raises(RepositoryRefused, match=match):
            decide(repository, **options)
        assert tree(repository.root) == before

    def test_a_manifest_that_cannot_be_read(self, repository):
        taken = days(repository, 32)
        path = repository.layout.manifest(taken[20])
        path.write_bytes(path.read_bytes()[:-2])
        self.refused(repository, taken[20])

    def test_a_clock_that_is_behind(self, repository):
        days(repository, 32)
        repository.clock.move(-5 * 86400)
        self.refused(repository, "clock")

    def test_no_age(self, repository):
        days(repository, 32)
        self.refused(repository, "no age", rules=rules(policy=Policy({}, 3, DAY)))

    def test_a_journal_that_was_edited(self, repository):
        days(repository, 32)
        text = repository.layout.journal.read_text()
        repository.layout.journal.write_text(text.replace('"level":"bytes"', '"level":"quick"', 1))
        before = tree(repository.root)
        with pytest.raises(AquadError):
            decide(repository)
        assert tree(repository.root) == before

    @pytest.mark.parametrize("years", [1, 50])
    def test_a_clock_far_ahead_deletes_nothing_for_good(self, repository, years):
        """What is in the trash is what one needs who finds out that the clock was wrong."""
        days(repository, 32)
        carry_out(repository)
        (repository.root / "backup_report_1.txt").write_text("x")
        repository.journal.append("report_written", run="x", backup=None, path="backup_report_1.txt")
        repository.clock.move(years * 365 * 86400)
        pruning = decide(repository)
        assert pruning.remove == []
        assert (pruning.empty, pruning.reports, pruning.clock_ahead) == ([], [], True)


class TestTrash:
    def test_it_stays_as_long_as_the_settings_say_by_the_journal(self, repository):
        taken = days(repository, 30)
        carry_out(repository)
        bin_ = repository.layout.trash / taken[0]
        os.utime(bin_, (1, 1))
        repository.clock.move(7 * 86400)
        assert decide(repository).empty == []
        repository.clock.move(1)
        pruning = decide(repository)
        assert pruning.empty == [taken[0]]
        carry_out(repository, pruning)
        assert in_trash(repository) == set()
        assert [entry["backup"] for entry in events(repository, "trash_emptied")] == [taken[0]]

    def test_by_the_time_of_the_directory_where_the_journal_has_no_line(self, repository):
        (taken,) = days(repository, 1)
        with repository.writing(run_id="x", command="x"):
            repository.trash.put(repository.catalog().find(taken))
        now = repository.clock.now().timestamp()
        bin_ = repository.layout.trash / taken
        os.utime(bin_, (now - 7 * 86400, now - 7 * 86400))
        assert decide(repository).empty == []
        os.utime(bin_, (now - 7 * 86400 - 1, now - 7 * 86400 - 1))
        assert decide(repository).empty == [taken]

    def test_the_line_comes_before_the_deletion(self, repository):
        taken = days(repository, 30)
        carry_out(repository)
        repository.clock.move(8 * 86400)
        pruning, untold = decide(repository), []

        def tell(name, arguments):
            if name in {"rename", "unlink", "rmdir"} and f"trash/{taken[0]}" in str(arguments):
                untold.append(not events(repository, "trash_emptied"))

        with watching(tell):
            carry_out(repository, pruning)
        assert untold
        assert not any(untold)

    def test_what_a_dead_run_left_goes_too(self, repository):
        days(repository, 1)
        draft = repository.begin("full")
        draft.write_file("words.txt", b"x")
        draft.close()
        with repository.writing(run_id="x", command="x"):
            pass
        assert in_trash(repository) == {draft.id}
        assert decide(repository).empty == []
        repository.clock.move(8 * 86400)
        carry_out(repository)
        assert in_trash(repository) == set()

    def test_a_foreign_directory_is_not_told_to_be_deleted(self, repository):
        days(repository, 1)
        mine = repository.layout.trash / "mine"
        mine.mkdir()
        (mine / "file").write_text("x")
        os.utime(mine, (1, 1))
        carry_out(repository)
        assert (mine / "file").exists()
        assert decide(repository).empty == []
        assert events(repository, "trash_emptied") == []

    def test_the_directory_that_a_killed_removal_made_says_nothing_of_a_living_backup(self, repository):
        """K6: killed between mkdir and rename; the backup lives, and nobody may read that it was deleted."""
        (taken,) = days(repository, 1)
        repository.journal.append("pruned", backup=taken, kind="full", reason="on purpose")
        (repository.layout.trash / taken).mkdir()
        repository.clock.move(8 * 86400)
        carry_out(repository)
        assert taken in ids(repository)
        assert events(repository, "trash_emptied") == []


class TestReports:
    def report(self, repository, text="a report", stamp=None):
        stamp = stamp or f"{repository.clock.now():%Y%m%d_%H%M%S}"
        named = []

        def record(file):
            repository.journal.append("report_written", run="x", backup=None, **file.model_dump())
            named.append(file.path)

        write_report(repository.layout, stamp, text, record)
        return named[0]

    def test_by_age(self, repository):
        first = self.report(repository)
        repository.clock.move(86400)
        second = self.report(repository)
        repository.clock.move(89 * 86400)
        assert decide(repository).reports == []
        repository.clock.move(1)
        pruning = carry_out(repository)
        assert pruning.reports == [first]
        assert not (repository.root / first).exists()
        assert (repository.root / second).exists()
        assert [entry["paths"] for entry in events(repository, "reports_removed")] == [[first]]
        assert decide(repository).reports == []

    def test_by_size_the_oldest_first(self, repository):
        reports = []
        for _ in range(5):
            reports.append(self.report(repository, "x" * 1000))
            repository.clock.move(60)
        assert decide(repository, rules=rules(log_bytes=5000)).reports == []
        assert set(decide(repository, rules=rules(log_bytes=4999)).reports) == {reports[0]}
        assert set(decide(repository, rules=rules(log_bytes=2000)).reports) == set(reports[:3])

    def test_not_where_logs_are_not_asked_about(self, repository):
        self.report(repository)
        repository.clock.move(100 * 86400)
        assert decide(repository, logs=False).reports == []

    def test_K8_one_that_the_journal_does_not_name_never_goes(self, repository):
        ours = self.report(repository)
        for name in ("backup_report_x.txt", "backup_report_20200101_000000.txt"):
            (repository.root / name).write_text("x" * 10_000)
        repository.clock.move(100 * 86400)
        assert carry_out(repository, rules=rules(log_bytes=1)).reports == [ours]
        assert len(list(repository.root.glob("backup_report_*"))) == 2

    def test_K8_a_link_under_its_name_is_not_followed(self, repository, tmp_path):
        ours = self.report(repository)
        (tmp_path / "outside").write_text("precious")
        (repository.root / ours).unlink()
        os.symlink(tmp_path / "outside", repository.root / ours)
        repository.clock.move(100 * 86400)
        carry_out(repository)
        assert (tmp_path / "outside").read_text() == "precious"

    def test_one_that_went_by_hand_is_no_error(self, repository):
        ours = self.report(repository)
        (repository.root / ours).unlink()
        repository.clock.move(100 * 86400)
        carry_out(repository)

    def test_no_report_is_gone_without_a_line_when_it_was_killed_in_between(self, repository):
        ours = self.report(repository)
        repository.clock.move(100 * 86400)

        def tell(name, arguments):
            if name == "write" and b"reports_removed" in bytes(arguments[1]):
                raise KeyboardInterrupt

        with watching(tell), pytest.raises(KeyboardInterrupt):
            carry_out(repository)
        carry_out(repository)
        told = [path for entry in events(repository, "reports_removed") for path in entry["paths"]]
        assert ((repository.root / ours).exists(), told) == (False, [ours])

    def test_what_still_stands_survives_the_trimming_of_the_journal(self, repository):
        days(repository, 2)
        ours = self.report(repository)
        carry_out(repository)
        before = History.of(repository.journal.entries())
        prune.trim_journal(repository, rules(log_bytes=1), repository.clock.now())
        after = History.of(repository.journal.entries())
        assert after.cleaned == before.cleaned
        assert after.reports.keys() == before.reports.keys() == {ours}


class TestReaders:
    """I4: nothing is removed under who reads."""

    @pytest.fixture
    def impatient(self, monkeypatch):
        monkeypatch.setattr(prune, "READERS_SECONDS", 0.3)
        monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)

    def test_who_verifies_keeps_pruning_waiting(self, repository, impatient):
        taken = days(repository, 30)
        pruning = decide(repository)
        with repository.reading():
            before = tree(repository.root)
            with pytest.raises(LockHeld):
                carry_out(repository, pruning)
            assert tree(repository.root) == before
        assert events(repository, "pruned", "cleaned") == []
        carry_out(repository)
        assert in_trash(repository) == {taken[0]}

    def test_pruning_goes_on_when_the_reader_has_ended(self, repository, monkeypatch):
        days(repository, 30)
        monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
        pruning, begun = decide(repository), threading.Event()

        def read():
            with open_repository(repository.root).reading():
                begun.set()
                threading.Event().wait(0.3)
                assert in_trash(repository) == set()

        reader = threading.Thread(target=read)
        reader.start()
        begun.wait()
        carry_out(repository, pruning)
        reader.join()
        assert len(in_trash(repository)) == 1

    def test_where_nothing_goes_nobody_is_waited_for(self, repository, impatient):
        """A full backup must not wait for a verification, and be called a warning, for nothing."""
        days(repository, 2)
        with repository.reading():
            carry_out(repository)
        assert events(repository, "cleaned")

    def test_pruning_keeps_who_verifies_waiting(self, repository):
        days(repository, 1)
        other = open_repository(repository.root)
        with repository.removing(0), pytest.raises(LockHeld, match="prune"), other.reading(0):
            pytest.fail("somebody read while data was removed")

    def test_what_went_while_verify_waited_is_not_damaged(self, repository, monkeypatch):
        """It chose its backups before it had the lock."""
        taken = days(repository, 2)
        chosen = repository.catalog().backups
        repository.trash.put(repository.catalog().find(taken[0]))
        verdicts = verify(repository, chosen, "bytes", Silent())
        assert not [problem for verdict in verdicts for problem in verdict.problems]
        assert taken[0] not in History.of(repository.journal.entries()).damaged

    def test_a_manifest_that_goes_while_the_catalog_is_read_is_not_damaged(self, repository, monkeypatch):
        taken = days(repository, 3)
        plain, oldest = repository.manifests._parsed, repository.catalog().find(taken[0])

        def read(path):
            if path.stem == taken[0] and path.exists():
                repository.trash.put(oldest)
            return plain(path)

        monkeypatch.setattr(repository.manifests, "_parsed", read)
        catalog = repository.catalog()
        assert catalog.unreadable == ()
        assert [backup.id for backup in catalog.backups] == [taken[2], taken[1]]

    def test_a_restore_of_what_went_meanwhile_changes_nothing(self, tmp_path):
        """It chose and compared its backup before it had the lock."""
        stack = RestoringVolume()
        root = stack.make(tmp_path) / "backups"
        repository = stack.open(root)
        reader = open_backup(repository, "data", "latest", trusted=False)
        order = Order("data", stack.source(root), reader, stack.target(repository))
        repository.trash.put(repository.catalog().find("latest"))
        with pytest.raises(AquadError):
            run_job(
                repository,
                "restore",
                lambda run: restore(repository, [order], lambda _: None, run),
                clock=FakeClock(),
                zone=UTC,
                limits=LIMITS,
            )
        assert contents(stack.live(tmp_path)) == stack.todays_content
        assert History.of(repository.journal.entries()).holds == {}, "nothing was half restored"

    def test_a_run_of_another_holds_it_off_altogether(self, repository):
        days(repository, 30)

        def work(_):
            with pytest.raises(LockHeld):
                carry_out(open_repository(repository.root, repository.clock))
            return Work("success")

        run_job(repository, "full", work, clock=repository.clock, zone=UTC, limits=LIMITS)
        assert in_trash(repository) == set()


class TestWords:
    def test_sentences_and_details(self, repository):
        taken = days(repository, 32)
        pruning = decide(repository)._replace(empty=["x"], reports=["backup_report_1.txt"])
        said = prune.sentences(pruning, FULLS, 2)
        assert [line for line in said if "goes to the trash" in line] == said[:3]
        assert all(any(id_ in line for line in said[:3]) for id_ in taken[:3])
        assert "x in the trash is deleted for good" in said
        assert said[-1] == "27 more stay"
        assert prune.details(pruning) == {
            "removed": pruning.remove,
            "emptied": ["x"],
            "reports_removed": ["backup_report_1.txt"],
        }
        assert prune.details(prune.Pruning([Decision("a", "full", True, "x")], [], [])) == {}
        assert json.dumps(prune.details(pruning))
