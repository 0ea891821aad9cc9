"""The keeper of the schedule under a clock that is set, with runs that are none: what no real run can be made to do in time."""

import os
import resource
import signal
from datetime import UTC, datetime, timedelta

import pytest

from aquad.core.clock import from_text, to_text
from aquad.core.errors import RepositoryRefused, RepositoryWriteFailed
from aquad.daemon.keeper import Keeper
from aquad.jobs.full import Space, take_full
from aquad.jobs.run import Turn, run_job
from aquad.settings import load
from aquad.wiring import Wiring
from tests.small import LIMITS, FakeClock, Words, journal

SETTINGS = """
stack = "small"
[repository]
path = "{top}/backups"
[encryption]
mode = "off"
[schedule]
full = "0 2 * * *"
postgres = "0 */6 * * *"
weekly = "off"
cleanup = "off"
verify = "off"
"""
MONDAY = datetime(2024, 7, 1, 1, 0, tzinfo=UTC)


class Silent:
    def info(self, *_, **__):
        pass

    warning = error = info


class Pretender:
    """A run as the keeper sees it; `end` is what a real one does to the journal."""

    def __init__(self, world, turn):
        self.world, self.turn = world, turn
        self.pid = self.pidfd = self.report_fd = -1
        self.said, self.signals, self.status = b"", [], None
        self.run = f"run{len(world.started)}"

    def begin(self):
        self._line("run_started")
        self.said = b'{"event": "stage", "stage": "configs", "total_bytes": 1}\n'

    def end(self, outcome="success", status=0, **more):
        self._line("run_ended", outcome=outcome, reason="", milliseconds=1, **more)
        self.status = status

    def seal(self):
        """A real backup."""
        run_job(
            self.world.repository,
            self.turn.slot.job,
            lambda run: take_full(self.world.repository, [Words()], run, space=Space()),
            clock=self.world.clock,
            zone=UTC,
            limits=LIMITS,
            turn=Turn(self.turn.slot.at, self.turn.attempt),
        )
        self.status = 0

    def _line(self, event, **more):
        slot = to_text(self.turn.slot.at)
        about = {"run": self.run, "job": self.turn.slot.job, "slot": slot, "attempt": self.turn.attempt}
        self.world.repository.journal.append(event, **about, **more)

    def poll(self):
        return self.status

    def reports(self):
        said, self.said = self.said, b""
        return said

    def signal(self, number):
        self.signals.append(number)

    def close(self):
        pass


class World:
    def __init__(self, top):
        path = top / "settings.toml"
        path.write_text(SETTINGS.format(top=top))
        self.wiring = Wiring(load(path, {}), "daemon")
        self.clock = self.wiring.clock = FakeClock(MONDAY)
        self.repository = self.wiring.create_repository("off")
        self.started = []
        self.keeper = None

    def daemon(self):
        self.keeper = Keeper(self.wiring, self.wiring.repository(), self._start, Silent())
        return self.keeper

    def crash(self):
        self.keeper.close()

    def move(self, **span):
        """Time passes while the daemon looks each half minute."""
        end = self.clock.now() + timedelta(**span)
        while self.clock.now() < end:
            self.clock.move(30)
            self.keeper.tick()

    def live(self, **span):
        """`move`, and every run that was started succeeds at once."""
        end = self.clock.now() + timedelta(**span)
        while self.clock.now() < end:
            self.move(seconds=30)
            if self.keeper.running is not None:
                self.started[-1].begin()
                self.started[-1].end()
                self.keeper.tick()

    def slots(self):
        return [one.turn.slot for one in self.started]

    def lines(self, event):
        return [line for line in journal(self.repository.root) if line["event"] == event]

    def first_full(self):
        """The one that a new repository begins with."""
        self.keeper.tick()
        self.started[-1].begin()
        self.started[-1].end()
        self.keeper.tick()

    def _start(self, wiring, turn):
        self.started.append(Pretender(self, turn))
        self.started[-1].wiring = wiring
        return self.started[-1]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.daemon()
    return world


def test_the_first_full_has_the_moment_of_the_repository_as_its_slot(world):
    world.first_full()
    assert [line["slot"] for line in world.lines("slot_ended")] == [to_text(MONDAY)]
    world.move(hours=0.9)
    assert len(world.started) == 1


def test_each_slot_is_run_when_it_is_due(world):
    world.first_full()
    for hour, job in ((2, "full"), (6, "postgres"), (12, "postgres"), (18, "postgres"), (24, "postgres"), (26, "full")):
        at = datetime(2024, 7, 1, tzinfo=UTC) + timedelta(hours=hour)
        world.move(seconds=(at - world.clock.now()).total_seconds())
        assert world.started[-1].turn.slot == (job, at)
        world.started[-1].begin()
        world.started[-1].end()
        world.keeper.tick()
    assert {line["outcome"] for line in world.lines("slot_ended")} == {"success"}


def test_settings_that_cannot_be_recorded_are_not_taken(world, tmp_path):
    world.first_full()
    changed = tmp_path / "changed.toml"
    changed.write_text((tmp_path / "settings.toml").read_text().replace("*/6", "*/3"))
    other = Wiring(load(changed, {}), "daemon")
    journal_bytes = world.repository.layout.journal.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal_bytes, hard))
    try:
        with pytest.raises(RepositoryWriteFailed):
            world.keeper.change(other, after_bad_ones=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    world.live(hours=3)
    assert [(run.turn.slot.job, run.wiring) for run in world.started[1:]] == [("full", world.wiring)]
    world.keeper.change(other, after_bad_ones=False)
    world.live(hours=4)
    assert {run.wiring for run in world.started[2:]} == {other}
    assert [list(line["changed"]) for line in world.lines("settings")] == [[], ["schedule.postgres"]]


def test_a_run_that_outlives_its_deadline_is_ended_and_then_killed(world):
    """It ends itself, by an alarm of the kernel; this is for one that does not even do that."""
    world.keeper.tick()
    run = world.started[-1]
    world.move(hours=5)
    assert run.signals == []  # it waits for its turn, and has no deadline yet
    run.begin()
    world.move(hours=4)
    assert run.signals == []
    world.move(minutes=2)
    assert set(run.signals) == {signal.SIGTERM}
    world.move(minutes=2)
    assert run.signals[-1] == signal.SIGKILL


def test_A3_a_run_that_left_no_outcome_is_recorded_as_interrupted(world):
    world.keeper.tick()
    world.started[-1].begin()
    world.started[-1].status = -9
    world.keeper.tick()
    assert [line["outcome"] for line in world.lines("run_ended")] == ["interrupted"]
    assert world.lines("slot_ended") == []
    world.move(minutes=6)
    assert [one.turn.attempt for one in world.started] == [1, 2]


def test_a_run_that_never_began_has_an_outcome_too(world):
    world.keeper.tick()
    world.started[-1].said = b'{"event": "error", "text": "lock x: held by restore all"}\n'
    world.started[-1].status = 11
    world.keeper.tick()
    (ended,) = world.lines("run_ended")
    assert (ended["outcome"], ended["reason"]) == ("failed", "it did not begin: lock x: held by restore all")
    assert ended["retryable"]


def test_three_attempts_and_an_alert(world):
    for number in range(3):
        world.keeper.tick()
        world.started[-1].begin()
        world.started[-1].end("failed", 1, retryable=True)
        world.keeper.tick()
        assert len(world.lines("alert")) == (number == 2)
        world.move(minutes=5, seconds=30)
    assert [one.turn.attempt for one in world.started] == [1, 2, 3]
    (alert,) = world.lines("alert")
    assert (alert["rule"], alert["level"]) == ("run_failed", "critical")
    assert [line["outcome"] for line in world.lines("slot_ended")] == ["failed"]


def test_a_hold_skips_in_silence_and_ends_by_itself(world):
    world.first_full()
    until = to_text(world.clock.now() + timedelta(hours=6))
    world.repository.journal.append("held", until=until, reason="migration", cause="operator")
    world.move(hours=5.5)
    assert len(world.started) == 1
    skipped = world.lines("slot_ended")[1:]
    assert [(line["job"], line["outcome"]) for line in skipped] == [("full", "skipped"), ("postgres", "skipped")]
    assert "migration" in skipped[0]["reason"]
    assert world.lines("alert") == []
    world.move(hours=6)
    assert world.started[-1].turn.slot == ("postgres", datetime(2024, 7, 1, 12, tzinfo=UTC))


def test_a_restore_that_is_under_way_makes_runs_wait_and_a_failed_one_holds(world):
    world.first_full()
    journal_ = world.repository.journal
    journal_.append("run_started", run="r", job="restore all", slot=None)
    journal_.append("held", until=None, reason="the restore", cause="restore", run="r", components=["configs"])
    with world.repository.writing(run_id="x", command="restore all"):  # it is alive: recovery must not record its end
        pass
    assert [line["outcome"] for line in world.lines("run_ended")][-1] == "interrupted"  # so this one was dead
    world.move(hours=2)
    assert len(world.started) == 1
    assert world.lines("slot_ended")[-1]["outcome"] == "skipped"
    journal_.append("released", cause="operator")
    world.move(hours=5)
    assert world.started[-1].turn.slot.job == "postgres"


def test_H5_a_clock_that_went_back_fires_nothing_twice(world):
    world.first_full()
    world.live(hours=1.2)
    world.clock.moment -= timedelta(hours=3)
    world.live(hours=8)
    assert len(world.lines("clock_went_back")) == 1
    day = datetime(2024, 7, 1, tzinfo=UTC)
    expected = [("full", day + timedelta(hours=2)), ("postgres", day), ("postgres", day + timedelta(hours=6))]
    assert world.slots()[1:] == expected


def test_H4_a_clock_that_was_in_2038_for_a_moment(world):
    world.first_full()
    world.clock.moment += timedelta(days=365 * 14)
    world.live(minutes=5)
    assert [slot.job for slot in world.slots()] == ["full", "full", "postgres"]  # one a job
    world.clock.moment -= timedelta(days=365 * 14)
    world.live(hours=6)
    day = datetime(2024, 7, 1, tzinfo=UTC)
    assert world.slots()[3:] == [("full", day + timedelta(hours=2)), ("postgres", day + timedelta(hours=6))]


def test_A8_the_journal_was_lost(world):
    """Manifests name their slots: what they have is not done again. One alert, and the schedule goes on."""
    for _ in range(2):
        world.keeper.tick()
        world.started[-1].seal()
        world.keeper.tick()
        world.move(hours=1.2)
    assert world.slots() == [("full", MONDAY), ("full", datetime(2024, 7, 1, 2, tzinfo=UTC))]
    world.crash()
    world.repository.layout.journal.unlink()
    world.daemon()
    assert [line["rule"] for line in world.lines("alert")] == ["journal_lost"]
    world.live(hours=4)
    assert world.slots()[2:] == [("postgres", datetime(2024, 7, 1, 6, tzinfo=UTC))]


def test_B11_a_foreign_directory_is_not_kept(world, tmp_path):
    world.first_full()
    world.repository.root.rename(tmp_path / "away")
    world.repository.root.mkdir(mode=0o700)
    world.clock.move(3600)
    with pytest.raises(RepositoryRefused, match="no aquad-repository"):
        world.keeper.tick()
    assert os.listdir(world.repository.root) == []


def test_a_crash_loop_is_an_alert_also_where_the_daemon_dies_right_before_it(world, monkeypatch):
    world.crash()
    with monkeypatch.context() as dying:
        dying.setattr(Keeper, "alert", lambda *_, **__: None)
        for _ in range(5):
            world.daemon()
            world.crash()
    assert world.lines("alert") == []
    for _ in range(3):
        world.daemon()
        world.crash()
    assert [line["text"] for line in world.lines("alert")] == ["the daemon was started 7 times in 10 minutes"]


def test_what_the_daemon_itself_ended_is_tried_again_and_what_an_operator_ended_is_not(world):
    world.keeper.tick()
    run = world.started[-1]
    run.begin()
    run.end("aborted", 143)
    world.keeper.stopped("SIGTERM")
    assert world.lines("daemon_stopped")[0]["run"] == run.run
    world.clock.move(600)
    world.daemon()
    world.keeper.tick()
    assert world.started[-1].turn.attempt == 2
    world.started[-1].begin()
    world.started[-1].end("aborted", 143)
    world.keeper.tick()
    assert [line["outcome"] for line in world.lines("slot_ended")] == ["aborted"]
    world.move(minutes=20)
    assert len(world.started) == 2


def test_times_are_those_of_the_clock_that_was_passed_in(world):
    world.first_full()
    assert all(from_text(line["at"]).year == 2024 for line in journal(world.repository.root))
