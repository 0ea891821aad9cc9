"""APScheduler as an alarm clock: each of its traps that design.md names, as far as it is left (the rules are those of jobs/schedule.py)."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from aquad.daemon.timer import RuleTrigger, Timer
from aquad.jobs.schedule import Rule


class EverySecond:
    """A rule that no settings can have: for tests that have no five minutes."""

    def after(self, moment):
        return moment.replace(microsecond=0) + timedelta(seconds=1)


@pytest.fixture
def timer():
    rings = []
    timer = Timer(lambda: rings.append(time.monotonic()))
    timer.rings = rings
    yield timer
    timer.stop()


def wait_for(what, seconds=5):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not what():
        time.sleep(0.02)
    return what()


def test_it_rings_at_every_slot(timer):
    timer.start({"full": EverySecond()})
    assert wait_for(lambda: len(timer.rings) >= 3)


def test_what_is_late_is_not_dropped(timer):
    """By default what is more than a second late is."""
    timer.start({})
    timer.ring_at(datetime.now(UTC) - timedelta(hours=1), "retry")
    assert wait_for(lambda: timer.rings)


def test_the_next_ring_replaces_the_one_before(timer):
    timer.start({})
    timer.ring_at(datetime.now(UTC) + timedelta(seconds=0.3), "retry")
    timer.ring_at(datetime.now(UTC) + timedelta(hours=1), "retry")
    time.sleep(0.8)
    assert timer.rings == []


def test_other_rules_are_followed_from_now_on(timer):
    timer.start({"full": EverySecond()})
    assert wait_for(lambda: timer.rings)
    timer.change({})
    time.sleep(0.2)
    count = len(timer.rings)
    time.sleep(1.5)
    assert len(timer.rings) == count
    timer.change({"full": EverySecond()})
    assert wait_for(lambda: len(timer.rings) > count)


def test_sunday_is_sunday():
    """In APScheduler's own crontab 0 is Monday."""
    trigger = RuleTrigger(Rule("0 1 * * 0", UTC))
    assert trigger.get_next_fire_time(None, datetime(2024, 7, 1, tzinfo=UTC)) == datetime(2024, 7, 7, 1, tzinfo=UTC)


def test_its_thread_is_seen_to_live_and_to_die(timer):
    assert not timer.is_alive()
    timer.start({})
    assert timer.is_alive()
    timer.stop()
    assert wait_for(lambda: not timer.is_alive())
