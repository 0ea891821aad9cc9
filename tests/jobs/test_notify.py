"""The journal as the outbox: what is told to whom, by lines of a real journal, and what happens when it cannot be written (M1, M3)."""

from datetime import timedelta

import pytest

from aquad.core.errors import RepositoryWriteFailed
from aquad.jobs.notify import Notices, Outbox
from aquad.jobs.trail.standing import standing
from aquad.observe.space import Level
from tests.observe.test_metrics import overview, view
from tests.small import FakeClock, make_repository

BOTH = {"slack": ("warning", "critical"), "sms": ("critical",)}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def repository(tmp_path, clock):
    return make_repository(tmp_path / "backups", clock=clock)


def planned(outbox, repository, clock, channels=BOTH):
    plan = outbox.notices(repository, clock.now()).plan(channels, clock.now())
    return plan, [
        (one.channel, one.message.level, [(n.kind, n.incident.rule) for n in one.message.notices])
        for one in plan.outgoing
    ]


def deliver(outbox, repository, clock, channels=BOTH):
    plan, told = planned(outbox, repository, clock, channels)
    for one in plan.outgoing:
        outbox.note_told(repository, clock.now(), one)
    return told


def run(repository, clock, outcome, *, slot=None, run="r1", job="full", **more):
    repository.journal.append("run_started", run=run, job=job, **({"slot": slot} if slot else {}))
    repository.journal.append(
        "run_ended", run=run, job=job, outcome=outcome, reason="why", **({"slot": slot} if slot else {}), **more
    )


def test_a_failed_run_is_told_once_and_its_end_once(repository, clock):
    outbox = Outbox()
    run(repository, clock, "failed")
    assert deliver(outbox, repository, clock) == [
        ("slack", "critical", [("fired", "run_failed")]),
        ("sms", "critical", [("fired", "run_failed")]),
    ]
    assert deliver(Outbox(), repository, clock) == []
    run(repository, clock, "success", run="r2", components={"postgres": "success"})
    assert deliver(outbox, repository, clock) == []
    clock.move(900)
    assert deliver(outbox, repository, clock) == [
        ("slack", "critical", [("resolved", "run_failed")]),
        ("sms", "critical", [("resolved", "run_failed")]),
    ]
    assert deliver(Outbox(), repository, clock) == []


def test_while_a_run_of_the_schedule_is_tried_again_no_telephone_rings(repository, clock):
    outbox, slot = Outbox(), "2024-08-02T02:00:00.000000Z"
    run(repository, clock, "failed", slot=slot)
    assert deliver(outbox, repository, clock) == [("slack", "warning", [("fired", "run_failed")])]
    repository.journal.append("slot_ended", job="full", slot=slot, outcome="failed", reason="why")
    outbox.alert(
        repository, clock.now(), "run_failed", "critical", f"full of {slot} failed: why", job="full", slot=slot
    )
    assert deliver(outbox, repository, clock) == [
        ("slack", "critical", [("fired", "run_failed")]),
        ("sms", "critical", [("fired", "run_failed")]),
    ]


def test_M3_a_thousand_failures(repository, clock):
    """One alert, and a reminder every four hours that counts the rest."""
    told = []
    for number in range(1000):
        run(repository, clock, "failed", run=f"r{number}")
        if number % 50 == 0:
            told += deliver(Outbox(), repository, clock, {"slack": ("critical",)})
        clock.move(60)
    assert [kinds[0][0] for _, _, kinds in told] == ["fired", "again", "again", "again"]


def test_warnings_wait_while_the_schedule_is_held(repository, clock):
    repository.journal.append("held", cause="operator", reason="a migration", until=None)
    outbox = Outbox()
    outbox.alert(repository, clock.now(), "size_anomaly", "warning", "half", component="postgres")
    assert deliver(outbox, repository, clock) == []
    repository.journal.append("released", cause="operator")
    assert deliver(outbox, repository, clock) == [("slack", "warning", [("fired", "size_anomaly")])]


def test_conditions_begin_and_end_in_the_journal(repository, clock):
    outbox = Outbox()
    bad = overview(view("postgres", 8), disk_level=Level.CRITICAL, now=clock.now(), held_since=None)
    bad = bad.at(bad.components[0].recovery_point_at + timedelta(hours=8))
    for _ in range(3):
        outbox.note_conditions(repository, bad)
    outbox.note_conditions(repository, overview(view("postgres", 0)))
    lines = [(e["event"], e["rule"]) for e in repository.journal.entries() if e["event"].startswith("alert")]
    assert lines == [("alert", "stale"), ("alert", "disk"), ("alert_over", "stale"), ("alert_over", "disk")]


class Full:
    """A repository on a disk that takes no byte, until it does again. Reading goes on."""

    def __init__(self, repository):
        self.repository, self.full, self.journal = repository, True, self

    def entries(self):
        return self.repository.journal.entries()

    def append(self, event, **fields):
        if self.full:
            raise RepositoryWriteFailed("write", "audit.jsonl", OSError(28, "No space left on device"))
        return self.repository.journal.append(event, **fields)


def test_A8_on_a_full_disk_all_is_told_once_and_written_down_later_in_order(repository, clock):
    disk, outbox = Full(repository), Outbox()
    outbox.note_conditions(disk, overview(disk_level=Level.CRITICAL, now=clock.now()))
    outbox.note_conditions(disk, overview(disk_level=Level.CRITICAL, now=clock.now()))
    assert deliver(outbox, disk, clock, {"slack": ("critical",)}) == [("slack", "critical", [("fired", "disk")])]
    assert deliver(outbox, disk, clock, {"slack": ("critical",)}) == []
    assert not [e for e in repository.journal.entries() if e["event"] in {"alert", "notified"}]
    disk.full = False
    outbox.note_conditions(disk, overview(now=clock.now()))
    outbox.flush(disk)
    events = [e["event"] for e in repository.journal.entries() if e["event"] in {"alert", "alert_over", "notified"}]
    assert events == ["alert", "notified", "alert_over"]
    clock.move(900)
    assert deliver(outbox, disk, clock, {"slack": ("critical",)}) == [("slack", "critical", [("resolved", "disk")])]


def test_without_any_repository_it_is_told_from_memory(clock):
    outbox = Outbox()
    outbox.alert(None, clock.now(), "repository", "critical", "it is not mounted")
    assert deliver(outbox, None, clock, {"slack": ("critical",)}) == [("slack", "critical", [("fired", "repository")])]
    assert deliver(outbox, None, clock, {"slack": ("critical",)}) == []
    outbox.over(None, clock.now(), "repository", "it is mounted")
    clock.move(900)
    assert deliver(outbox, None, clock, {"slack": ("critical",)}) == [
        ("slack", "critical", [("resolved", "repository")])
    ]


def test_a_channel_that_fails_is_told_on_the_others(repository, clock):
    outbox = Outbox()
    outbox.alert(repository, clock.now(), "channel_fails", "warning", "it answers 500", component="slack")
    both = {"slack": ("warning",), "email": ("warning",)}
    assert deliver(outbox, repository, clock, both) == [("email", "warning", [("fired", "channel_fails")])]
    outbox.over(repository, clock.now(), "channel_fails", "a message was taken", component="slack")
    clock.move(900)
    assert deliver(outbox, repository, clock, both) == [("email", "warning", [("resolved", "channel_fails")])]


def test_what_was_told_is_known_when_the_head_of_the_journal_is_gone(repository, clock):
    outbox = Outbox()
    run(repository, clock, "failed")
    outbox.alert(repository, clock.now(), "stale", "critical", "old", component="configs")
    outbox.alert(repository, clock.now(), "channel_fails", "warning", "500", component="email")
    deliver(outbox, repository, clock)
    lines = standing(list(repository.journal.entries()), [])
    notices = Notices(clock.now())
    for line in lines:
        notices.add(line)
    assert notices.plan(BOTH, clock.now()).outgoing == []
    assert notices.levels().keys() == {("run_failed", "full"), ("stale", "configs"), ("channel_fails", "email")}


def test_look_at_is_the_first_of_all_channels(repository, clock):
    outbox = Outbox()
    run(repository, clock, "failed")
    deliver(outbox, repository, clock)
    run(repository, clock, "success", run="r2", components={"postgres": "success"})
    plan, _ = planned(outbox, repository, clock)
    assert plan.look_at == clock.now() + timedelta(minutes=15)
