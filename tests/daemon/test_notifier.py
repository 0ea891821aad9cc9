"""The daemon's side of alerts under a set clock: when it tries again, whom it tells of that, and what a bad child does to it (M1)."""

import json
import signal
from datetime import UTC, timedelta
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from aquad.core.errors import ChildFailed
from aquad.daemon.notifier import CHILD_SECONDS, Notifier
from aquad.observe.metrics import Counters
from aquad.repository import lock
from tests.observe.test_metrics import overview, view
from tests.small import FakeClock, journal, make_repository

MINUTES = [1, 2, 4, 8, 15, 15]


class Child:
    """A sender that says what it is told to."""

    pid = pidfd = report_fd = 0

    def __init__(self, batch):
        self.batch, self.status, self.said, self.signals = batch, None, b"", []

    def poll(self):
        return self.status

    def reports(self):
        said, self.said = self.said, b""
        return said

    def signal(self, number):
        self.signals.append(number)
        self.status = -number

    def close(self):
        self.closed = True

    def answer(self, errors, retry_after=0):
        """`errors`: by channel; all others are taken."""
        for number, channel, _ in self.batch:
            receipt = {"number": number, "channel": channel, "error": errors.get(channel, ""), "note": ""}
            receipt |= {"event": "receipt", "retry_after_seconds": retry_after}
            self.said += json.dumps(receipt).encode() + b"\n"
        self.status = 0


class Log:
    def info(self, *_, **__): ...

    warning = error = info


class World:
    def __init__(self, directory):
        self.clock = FakeClock()
        self.repository = make_repository(directory / "backups", clock=self.clock)
        self.keeper = SimpleNamespace(repository=self.repository, began=SimpleNamespace(lines=0))
        self.channels = {"slack": ("warning", "critical"), "email": ("warning", "critical")}
        self.wiring = SimpleNamespace(clock=self.clock, zone=UTC, alert_levels=lambda: self.channels)
        self.registry = CollectorRegistry()
        self.children, self.cannot_start = [], False
        self.seen = overview(view("postgres", None), created_at=self.clock.now(), now=self.clock.now())
        self.notifier = self.made()

    def made(self):
        registry = self.registry = CollectorRegistry()
        counters = Counters(registry, ["full"], self.channels)
        return Notifier(self._send, counters, Log(), self.clock.now())

    def _send(self, _wiring, batch):
        if self.cannot_start:
            raise ChildFailed("start python: no memory")
        self.children.append(Child(json.loads(batch)))
        return self.children[-1]

    def tick(self, trouble="", seen="as it is"):
        seen = self.seen if seen == "as it is" else seen
        return self.notifier.tick(self.wiring, self.keeper, seen, trouble)

    def fail(self, job="full"):
        self.repository.journal.append("run_started", run="r1", job=job)
        self.repository.journal.append("run_ended", run="r1", job=job, outcome="failed", reason="why")

    def sent(self):
        """Channels and titles of the last batch."""
        return [(channel, text[1]) for _, channel, text in self.children[-1].batch]

    def alerts(self):
        lines = journal(self.repository.root)
        return [(e["event"], e["rule"], e["component"]) for e in lines if e["event"] in {"alert", "alert_over"}]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_it_tries_again_ever_later_tells_the_others_and_is_glad_when_it_works(world):
    world.fail()
    world.tick()
    assert world.sent() == [("slack", "s: CRITICAL run of full failed"), ("email", "s: CRITICAL run of full failed")]
    world.children[-1].answer({"slack": "it answers 500"})
    world.tick()
    assert len(world.children) == 1, "slack is not tried at once"
    for number, minutes in enumerate(MINUTES[:-1], start=2):
        world.clock.move(minutes * 60 - 1)
        world.tick()
        known = len(world.children)
        world.clock.move(1)
        world.tick()
        assert len(world.children) == known + 1, minutes
        assert ("slack", "s: CRITICAL run of full failed") in world.sent()
        world.children[-1].answer({"slack": "it answers 500"})
        world.tick()
        while world.notifier.child:  # what the others are to be told of it
            assert world.sent() == [("email", "s: WARNING alerts cannot be delivered by slack")]
            world.children[-1].answer({})
            world.tick()
        assert ("alert", "channel_fails", "slack") in world.alerts() or number < 3
    assert world.alerts() == [("alert", "channel_fails", "slack")]
    assert world.notifier.waiting >= 1
    world.clock.move(15 * 60)
    world.tick()
    world.children[-1].answer({})
    world.tick()
    assert world.alerts() == [("alert", "channel_fails", "slack"), ("alert_over", "channel_fails", "slack")]
    text = generate_latest(world.registry).decode()
    assert 'aquad_notifications_total{channel="slack",outcome="failed"} 6.0' in text
    assert 'aquad_notifications_total{channel="slack",outcome="delivered"} 1.0' in text


def test_it_waits_as_long_as_it_is_asked_to(world):
    world.fail()
    world.tick()
    world.children[-1].answer({"slack": "it answers 429"}, retry_after=600)
    world.tick()
    world.clock.move(599)
    world.tick()
    assert len(world.children) == 1
    world.clock.move(1)
    world.tick()
    assert world.sent() == [("slack", "s: CRITICAL run of full failed")]


def test_nobody_is_left_alone_for_longer_than_an_hour(world):
    world.fail()
    world.tick()
    world.children[-1].answer({"slack": "it answers 429", "email": "no"}, retry_after=10**9)
    world.tick()
    world.clock.move(3600)
    world.tick()
    assert len(world.children) == 2


def test_a_clock_that_goes_back_keeps_nobody_waiting(world):
    world.fail()
    world.tick()
    world.children[-1].answer({"slack": "it answers 500"})
    world.tick()
    world.clock.move(-86400)
    world.tick()
    assert world.sent() == [("slack", "s: CRITICAL run of full failed")]


def test_a_sender_that_dies_or_hangs_has_delivered_nothing(world):
    world.fail()
    world.tick()
    world.children[-1].status = -signal.SIGKILL
    world.tick()
    world.clock.move(60)
    world.tick()
    assert len(world.children) == 2
    world.clock.move(CHILD_SECONDS + 1)
    world.tick()
    assert world.children[-1].signals == [signal.SIGKILL]
    world.tick()
    assert world.notifier.child is None
    world.clock.move(120)
    world.tick()
    assert len(world.children) == 3


def test_what_a_dying_sender_had_delivered_counts(world):
    world.fail()
    world.tick()
    child = world.children[-1]
    child.batch = child.batch[:1]
    child.answer({})
    child.status = 1
    world.tick()
    world.clock.move(60)
    world.tick()
    assert world.sent() == [("email", "s: CRITICAL run of full failed")]


def test_a_sender_that_cannot_be_started_is_tried_again(world):
    world.cannot_start = True
    world.fail()
    world.tick()
    world.cannot_start = False
    world.clock.move(60)
    world.tick()
    assert len(world.children) == 1


def test_one_deliverer_at_a_time(world):
    world.fail()
    with lock.exclusive(world.repository.layout.notify_lock, holder={"command": "x", "pid": "1", "since": "y"}):
        assert world.tick() == world.clock.now() + timedelta(seconds=5)
        assert world.children == []
    world.clock.move(5)
    world.tick()
    assert len(world.children) == 1
    assert lock.holder(world.repository.layout.notify_lock).startswith("the daemon's alerts")
    world.children[-1].answer({})
    world.tick()
    assert lock.holder(world.repository.layout.notify_lock) == ""


def test_trouble_is_told_when_it_lasts_and_the_journal_hears_of_it_later(world):
    world.tick()
    assert world.tick("no disk", seen=None) <= world.clock.now() + timedelta(minutes=1)
    assert world.children == []
    world.clock.move(60)
    world.tick("no disk", seen=None)
    assert world.sent()[0] == ("slack", "CRITICAL the repository cannot be written or read")
    world.children[-1].answer({})
    world.tick("no disk", seen=None)
    world.clock.move(3600)
    world.tick("no disk", seen=None)
    assert len(world.children) == 1
    assert world.alerts() == []
    world.tick()
    assert world.alerts() == [("alert", "repository", None), ("alert_over", "repository", None)]
    world.clock.move(900)
    world.tick()
    assert ("slack", "s: RESOLVED the repository cannot be written or read") in world.sent()


def test_trouble_that_is_short_is_no_news(world):
    world.tick("no disk", seen=None)
    world.clock.move(30)
    world.tick()
    world.clock.move(600)
    world.tick()
    assert (world.children, world.alerts()) == ([], [])


def test_what_grows_old_is_seen_without_any_line_of_the_journal(world):
    world.tick()
    world.clock.move(8 * 3600)
    world.tick()
    assert world.alerts() == [("alert", "stale", "postgres")]
    assert ("slack", "s: WARNING no recent backup of postgres") in world.sent()


class TestPing:
    @pytest.fixture
    def world(self, world):
        world.channels = {"ping": ()}
        world.seen = overview(now=world.clock.now())
        world.tick()
        return world

    def succeed(self, world, job="full", outcome="success"):
        world.repository.journal.append("run_ended", run="r", job=job, outcome=outcome)
        world.tick()

    def test_once_for_each_success(self, world):
        self.succeed(world)
        assert world.sent() == [("ping", "")]
        world.children[-1].answer({})
        world.tick()
        world.clock.move(3600)
        world.tick()
        assert len(world.children) == 1
        self.succeed(world)
        assert len(world.children) == 2

    @pytest.mark.parametrize(("job", "outcome"), [("verify", "success"), ("full", "failed"), ("cleanup", "success")])
    def test_not_for_anything_else(self, world, job, outcome):
        self.succeed(world, job, outcome)
        assert world.children == []

    def test_not_while_something_is_too_old(self, world):
        world.seen = overview(view("postgres", None), now=world.clock.now())
        self.succeed(world)
        assert world.children == []

    def test_not_for_what_was_before_the_daemon(self, world):
        world.keeper.began.lines = 1000
        self.succeed(world)
        assert world.children == []

    def test_one_that_is_refused_is_tried_again(self, world):
        self.succeed(world)
        world.children[-1].answer({"ping": "it answers 500"})
        world.tick()
        world.clock.move(60)
        world.tick()
        assert len(world.children) == 2
