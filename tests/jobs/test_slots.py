"""A6, A8, H1-H6, H9: what is decided about slots; a table for each, and a daemon that lives through random histories.

The simulated daemon asks Ledger and plan just as daemon/keeper.py does, and forgets all but the journal when it is killed. The
oracle beside it knows what happened, not how it is decided. `AQUAD_FAULTS=all` tries twenty times as many histories.
"""

import os
import random
from bisect import bisect_right
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import count
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from aquad.core.clock import from_text, to_text
from aquad.jobs import slots
from aquad.jobs.schedule import Rule
from aquad.jobs.slots import COUNTED, DONE, ORDER, Ledger, Policy, Slot, plan
from aquad.jobs.trail.standing import standing
from aquad.repository.history import History

ALL = os.environ.get("AQUAD_FAULTS") == "all"
HISTORIES = 800 if ALL else 40
SHARES = 4
"""So many tests of them, for several processes."""
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=n) for n in (1, 60, 3600, 86400))
YEAR = 365 * DAY
IN_TIME, BACK = 300 * SECOND, 60 * SECOND
"""As in keeper.py."""
AQUASTREAM = {
    "full": "0 2 * * *",
    "postgres": "0 */6 * * *",
    "weekly": "0 1 * * 0",
    "cleanup": "0 3 1 * *",
    "verify": "30 4 * * *",
}
POLICY = Policy(catch_up=DAY, retries=2, retry_delay=5 * MINUTE)


def at(text):
    """`2024-06-03 02:00` in UTC; a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


BEGUN = at("2024-06-03 00:30")
TWO = at("2024-06-04 02:00")
"""A slot of `full`, after that of the day before has ended."""


# ---- lines of the journal


def settings(moment, *changed):
    return {"event": "settings", "at": to_text(moment), "changed": {key: [0, 1] for key in changed}, "values": {}}


def started(run, job, slot, moment, attempt=1):
    about = {"slot": to_text(slot), "attempt": attempt} if slot else {"slot": None}
    return {"event": "run_started", "at": to_text(moment), "run": run, "job": job, **about}


def ended(run, job, slot, moment, outcome="success", attempt=1, *, retryable=False, reason="why"):
    line = started(run, job, slot, moment, attempt) | {"event": "run_ended", "outcome": outcome, "reason": reason}
    return line | ({"retryable": True} if retryable else {})


def stopped(run, moment):
    return {"event": "daemon_stopped", "at": to_text(moment), "run": run, "reason": "SIGTERM"}


def closed(job, slot, outcome="success", first=None, number=1, moment=None):
    more = {"first": to_text(first), "count": number} if number > 1 else {}
    line = {"event": "slot_ended", "at": to_text(moment or slot), "job": job, "slot": to_text(slot)}
    return line | {"outcome": outcome, "reason": "why", **more}


def went_back(seen, to):
    return {"event": "clock_went_back", "at": to_text(to), "seen": to_text(seen), "to": to_text(to)}


def a_run(run, job, slot, begin, end, outcome="success", attempt=1, **rest):
    return [started(run, job, slot, begin, attempt), ended(run, job, slot, end, outcome, attempt, **rest)]


QUIET = [settings(BEGUN), closed("full", at("2024-06-03 02:00"))]
"""All is well until the slot of 4 June."""


def rules(zone=UTC, **expressions):
    return {job: Rule(text, zone) for job, text in (expressions or {"full": AQUASTREAM["full"]}).items()}


def decide(entries, now, *, policy=POLICY, started_at=None, by=None, lost=(), **rest):
    """By the one rule of `full`, if not said otherwise; a daemon that has just been started."""
    ledger = Ledger.of(entries)
    for job, slot in lost:
        ledger.add_backup(job, slot)
    return plan(by or rules(), ledger, policy, now=now, started_at=started_at or now, **rest)


def ends(plan_):
    return [(e.slot.job, e.slot.at, e.outcome, e.first or e.slot.at, e.number) for e in plan_.endings]


def turns(plan_):
    return [(t.slot.job, t.slot.at, t.attempt, t.not_before) for t in plan_.turns]


# ---- H1: nobody was there


@pytest.mark.parametrize(
    ("span", "missed", "made_up"),
    [
        (MINUTE, 0, True),
        (HOUR, 0, True),
        (DAY - MINUTE, 0, True),
        (DAY, 1, True),
        (10 * DAY + HOUR, 10, True),
        (3 * YEAR, 3 * 365, True),
    ],
)
def test_H1_the_latest_slot_is_made_up_once_and_the_others_are_missed_in_one_line(span, missed, made_up):
    """Down from a minute before 02:00 on 4 June, until `span` after that slot."""
    now = TWO + span
    found = decide(QUIET, now)
    latest = TWO + (span // DAY) * DAY
    assert turns(found) == [("full", latest, 1, latest)] * made_up
    assert ends(found) == [("full", latest - DAY, "missed", TWO, missed)] * bool(missed)
    again = decide([*QUIET, *map(line_of, found.endings)], now)
    assert (ends(again), turns(again)) == ([], turns(found))
    assert not decide([*QUIET, *map(line_of, found.endings), closed("full", latest)], now + SECOND).turns


def line_of(ending, moment=None):
    return closed(*ending.slot, ending.outcome, ending.first, ending.number, moment)


def test_H1_catch_up_is_an_age_and_what_is_as_old_is_made_up():
    young = POLICY._replace(catch_up=3 * HOUR)
    assert turns(decide(QUIET, TWO + 3 * HOUR, policy=young)) == [("full", TWO, 1, TWO)]
    found = decide(QUIET, TWO + 3 * HOUR + SECOND, policy=young)
    assert (ends(found), turns(found)) == ([("full", TWO, "missed", TWO, 1)], [])
    assert "too old" in found.endings[0].reason
    nothing = POLICY._replace(catch_up=timedelta())
    assert turns(decide(QUIET, TWO, policy=nothing)) == [("full", TWO, 1, TWO)]
    assert ends(decide(QUIET, TWO + SECOND, policy=nothing)) == [("full", TWO, "missed", TWO, 1)]


def test_H1_two_lines_when_the_latest_is_too_old_as_well():
    found = decide(QUIET, at("2024-06-10 22:00"), policy=POLICY._replace(catch_up=HOUR))
    assert ends(found) == [
        ("full", at("2024-06-09 02:00"), "missed", TWO, 6),
        ("full", at("2024-06-10 02:00"), "missed", at("2024-06-10 02:00"), 1),
    ]
    again = decide([*QUIET, line_of(found.endings[0])], at("2024-06-10 22:00"), policy=POLICY._replace(catch_up=HOUR))
    assert again.endings == found.endings[1:], "killed between the two lines"


def test_H1_years_are_counted_once_and_never_walked_again():
    """`latest` finds the newest slot without a walk; only the one line of passed-over slots counts them, up to COUNTED."""

    class Counting(Rule):
        walked = 0

        def _from(self, moment):
            for slot in super()._from(moment):
                Counting.walked += 1
                yield slot

    by = {"postgres": Counting(AQUASTREAM["postgres"], UTC)}
    entries, now = [settings(BEGUN)], BEGUN + 3 * YEAR
    found = decide(entries, now, by=by)
    assert Counting.walked < 4 * 3 * 365 + 100
    (missed,) = found.endings
    assert missed.number == by["postgres"].count(BEGUN, now, COUNTED) - 1
    Counting.walked = 0
    assert not decide([*entries, line_of(missed)], now, by=by).endings
    assert Counting.walked < 100
    often = decide(entries, BEGUN + 3 * YEAR, by=rules(full="*/10 * * * *"))
    assert (often.endings[0].number, len(often.turns)) == (COUNTED, 1)


def test_H1_before_the_first_daemon_there_was_nothing_to_miss():
    assert ends(decide([], BEGUN)) == ends(decide([settings(BEGUN)], BEGUN)) == []
    assert turns(decide([settings(BEGUN)], BEGUN + HOUR)) == []


# ---- H2: late


@pytest.mark.parametrize("late", [0, 1, 2, 30, 299, 3600, 86400])
def test_H2_a_slot_that_was_seen_is_never_dropped_for_being_late(late):
    """The daemon was busy, or another run was under way."""
    now = TWO + late * SECOND
    policy = POLICY._replace(catch_up=timedelta())
    found = decide(QUIET, now, policy=policy, started_at=BEGUN, noticed={Slot("full", TWO)})
    if late < 86400:
        assert (ends(found), turns(found)) == ([], [("full", TWO, 1, TWO)])
    else:
        assert ends(found)[0] == ("full", TWO, "skipped", TWO, 1)
    assert not decide(QUIET, TWO - SECOND, noticed={Slot("full", TWO)}).turns


# ---- H3: longer than its period


def test_H3_while_a_run_is_longer_than_its_period_one_waits_and_the_others_are_skipped():
    six = at("2024-06-03 06:00")
    entries = [settings(BEGUN), started("a", "postgres", six, six)]
    decided = partial(decide, by=rules(postgres=AQUASTREAM["postgres"]), started_at=BEGUN)
    noon, evening, midnight = (six + n * HOUR for n in (6, 12, 18))
    found = decided(entries, noon, noticed={Slot("postgres", noon)})
    assert (ends(found), turns(found)) == ([], [("postgres", noon, 1, noon)])
    found = decided(entries, evening, noticed={Slot("postgres", noon), Slot("postgres", evening)})
    assert ends(found) == [("postgres", noon, "skipped", noon, 1)]
    assert "its turn had not come" in found.endings[0].reason
    entries += [line_of(found.endings[0])]
    entries += [ended("a", "postgres", six, midnight - HOUR)]
    found = decided(entries, midnight - HOUR, noticed={Slot("postgres", evening)})
    assert ends(found) == [("postgres", six, "success", six, 1)]
    assert turns(found) == [("postgres", evening, 1, evening)]


def test_H3_passed_over_slots_are_counted_in_one_line():
    """Seen by a daemon that then heard nothing for long: the last one tells how the line is called."""
    six = at("2024-06-03 06:00")
    entries = [settings(BEGUN), started("a", "postgres", six, six)]
    found = decide(
        entries,
        six + 30 * HOUR,
        by=rules(postgres=AQUASTREAM["postgres"]),
        started_at=BEGUN,
        noticed={Slot("postgres", six + 24 * HOUR)},
    )
    assert ends(found) == [("postgres", six + 24 * HOUR, "skipped", six + 6 * HOUR, 4)]


# ---- H4, H5: clocks that jump


@pytest.mark.parametrize("year", [2038, 2100])
def test_H4_H5_forward_one_run_a_job_and_back_all_as_before(year):
    ahead = at(f"{year}-02-01 12:10")
    by = rules(full=AQUASTREAM["full"], verify="10 12 * * *")
    world = World(by, start=BEGUN)
    world.start()
    world.up_to(BEGUN + 2 * HOUR)
    assert world.fired() == [("full", at("2024-06-03 02:00"))]
    world.jump(ahead - world.now)
    world.up_for(HOUR)
    assert world.fired()[1:] == [("full", at(f"{year}-02-01 02:00")), ("verify", at(f"{year}-02-01 12:10"))]
    world.jump(BEGUN + 4 * HOUR - world.now)
    world.up_to(world.true + 2 * DAY)
    fired = world.fired()[3:]
    assert fired == [
        ("verify", at("2024-06-03 12:10")),
        ("full", at("2024-06-04 02:00")),
        ("verify", at("2024-06-04 12:10")),
        ("full", at("2024-06-05 02:00")),
    ]


def test_H5_what_was_run_ahead_is_not_run_again_when_its_time_comes():
    world = World(rules(**AQUASTREAM), start=at("2024-06-03 21:00"))
    world.start()
    world.jump(6 * HOUR)
    world.up_for(HOUR)
    ahead = [("postgres", at("2024-06-04 00:00")), ("full", TWO)]
    assert world.fired() == ahead
    world.jump(-6 * HOUR)
    world.up_for(12 * HOUR)
    assert world.fired() == [*ahead, ("verify", at("2024-06-04 04:30")), ("postgres", at("2024-06-04 06:00"))]


def test_H5_what_was_only_missed_by_a_clock_that_was_ahead_is_run_when_its_time_comes():
    """A day and a half ahead: 02:00 of the next day is missed there, and that of the day after is made up."""
    world = World(rules(), start=BEGUN)
    world.start()
    world.jump(50 * HOUR)
    world.up_for(HOUR)
    assert world.fired() == [("full", at("2024-06-05 02:00"))]
    world.jump(-50 * HOUR)
    world.up_for(5 * DAY + HOUR)
    assert [slot.day for _, slot in world.fired()] == [5, 3, 4, 6, 7, 8]


def test_H5_a_clock_that_goes_back_and_forth_fires_nothing_twice():
    world = World(rules(**AQUASTREAM), start=BEGUN)
    world.start()
    for step in (3 * HOUR, -2 * HOUR, 30 * DAY, -30 * DAY, -2 * HOUR, 7 * HOUR, -90 * SECOND, -2 * YEAR, 2 * YEAR):
        world.up_for(5 * HOUR)
        world.jump(step)
    world.up_for(3 * DAY)
    fired = world.fired()
    assert len(fired) == len(set(fired))


def test_H5_the_first_start_under_a_clock_that_was_ahead():
    """The first settings, a change of a rule, and the first full are of 2038; the clock is right again before the next start."""
    ahead, now = at("2038-01-19 03:14"), at("2024-06-03 12:00")
    entries = [settings(ahead), settings(ahead + HOUR, "schedule.full"), went_back(ahead + 2 * HOUR, now)]
    assert not turns(decide(entries, now))
    assert turns(decide(entries, TWO, started_at=now)) == [("full", TWO, 1, TWO)]
    found = decide(entries, TWO + 2 * DAY + HOUR)
    assert ends(found) == [("full", TWO + DAY, "missed", TWO, 2)], "down for two days since it went back"
    assert turns(found) == [("full", TWO + 2 * DAY, 1, TWO + 2 * DAY)]
    found = decide(entries, now, first=ahead)
    assert [(slot, not_before) for _, slot, _, not_before in turns(found)] == [(ahead, now)], "not in 2038"


def test_H5_the_first_full_that_failed_ahead_has_one_ending():
    ahead, now = at("2038-01-19 03:14"), at("2024-06-03 12:00")
    entries = [settings(ahead), *a_run("a", "full", ahead, ahead, ahead + MINUTE, "failed")]
    (ending,) = decide(entries, ahead + HOUR, first=ahead).endings
    entries += [line_of(ending, ahead + HOUR), went_back(ahead + HOUR, now)]
    found = decide(entries, now + HOUR, started_at=now, first=ahead)
    assert (ends(found), turns(found)) == ([], [])


def test_H5_a_retry_is_not_put_off_by_an_end_that_lies_in_the_future():
    ahead = TWO + 50 * DAY
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, ahead, "failed", retryable=True), went_back(ahead, TWO + HOUR)]
    assert turns(decide(entries, TWO + HOUR)) == [("full", TWO, 2, TWO + HOUR)]


def test_H5_a_backup_of_a_clock_that_was_ahead_blocks_nothing_when_the_journal_is_lost():
    two = at("2024-06-03 02:00")
    assert turns(decide([settings(BEGUN)], two, lost=[("full", at("2038-01-19 02:00"))])) == [("full", two, 1, two)]


def test_H5_a_run_that_began_under_a_clock_that_was_ahead_is_ended_and_the_next_slot_is_run():
    ahead = TWO + 100 * DAY
    entries = [*QUIET, started("a", "full", ahead, ahead), went_back(ahead, TWO - HOUR)]
    assert decide(entries, TWO - HOUR) == ([], [])
    assert turns(decide(entries, TWO, started_at=BEGUN)) == [("full", TWO, 1, TWO)]
    entries += [ended("a", "full", ahead, TWO + MINUTE)]
    found = decide(entries, TWO + MINUTE, started_at=BEGUN)
    assert ends(found) == [("full", ahead, "success", ahead, 1)]
    assert turns(found) == [("full", TWO, 1, TWO)]


def test_H5_a_clock_of_1970_and_back_again():
    world = World(rules(full=AQUASTREAM["full"], cleanup=AQUASTREAM["cleanup"]), start=BEGUN)
    world.start()
    world.up_for(DAY)
    before = world.fired()
    world.kill()
    world.jump(at("1970-01-01 00:00") - world.now)
    world.start()
    world.up_for(3 * HOUR)
    assert world.fired()[len(before) :] == [
        ("full", at("1970-01-01 02:00")),
        ("cleanup", at("1970-01-01 03:00")),
    ]
    world.jump(world.true - world.now)
    world.up_for(DAY)
    assert len(world.fired()) == len(set(world.fired()))
    assert ("full", at("2024-06-05 02:00")) in world.fired()


# ---- H6: the days on which clocks are changed


@pytest.mark.parametrize(
    ("zone", "begin", "expression", "expected"),
    [
        ("Europe/Berlin", "2024-10-26 12:00", "30 2 * * *", ["10-27 00:30", "10-28 01:30"]),
        ("Europe/Berlin", "2024-03-30 12:00", "30 2 * * *", ["03-31 01:00", "04-01 00:30"]),
        ("America/New_York", "2024-11-02 12:00", "30 1 * * *", ["11-03 05:30", "11-04 06:30"]),
        ("Australia/Lord_Howe", "2024-04-06 06:00", "45 1 * * *", ["04-06 14:45", "04-07 15:15"]),
    ],
)
def test_H6_a_daily_slot_is_run_once_on_the_day_the_clocks_are_changed(zone, begin, expression, expected):
    world = World(rules(ZoneInfo(zone), full=expression), start=at(begin))
    world.start()
    world.up_for(44 * HOUR)
    assert [f"{slot:%m-%d %H:%M}" for _, slot in world.fired()] == expected
    assert [line["outcome"] for line in world.of("slot_ended")] == ["success"] * 2


# ---- H9: suspended


@pytest.mark.parametrize("span", [5 * MINUTE, 3 * HOUR, 3 * DAY + HOUR])
def test_H9_a_machine_that_slept_over_slots_is_like_one_that_was_down(span):
    world = World(rules(), start=BEGUN)
    world.start()
    world.up_to(TWO - MINUTE)
    world.suspend(span)
    world.up_for(2 * HOUR)
    latest = TWO + span // DAY * DAY
    assert world.fired() == [("full", at("2024-06-03 02:00")), ("full", latest)]
    missed = [line for line in world.of("slot_ended") if line["outcome"] == "missed"]
    assert [line["count"] for line in missed] == [3] * (span > DAY)


# ---- A6: interrupted


def test_A6_an_interrupted_slot_is_tried_again_after_the_delay_and_not_for_ever():
    entries, moment = list(QUIET), TWO
    for attempt in (1, 2, 3):
        assert turns(decide(entries, moment)) == [("full", TWO, attempt, moment)]
        entries += [started(f"r{attempt}", "full", TWO, moment, attempt)]
        assert decide(entries, moment + MINUTE) == ([], []), "until it is known to be dead"
        entries += [ended(f"r{attempt}", "full", TWO, moment + 2 * MINUTE, "interrupted", attempt)]
        moment += 7 * MINUTE
        if attempt < 3:
            assert turns(decide(entries, moment - MINUTE)) == [("full", TWO, attempt + 1, moment)]
    found = decide(entries, moment)
    assert (ends(found), turns(found)) == ([("full", TWO, "interrupted", TWO, 1)], [])
    assert decide([*entries, line_of(found.endings[0])], moment + HOUR) == ([], [])


def test_A6_in_a_crash_loop_of_20_starts_a_minute_the_job_is_started_once():
    world = World(rules(), start=BEGUN)
    world.start()
    world.up_to(TWO - MINUTE)
    world.kill()
    world.pass_time(MINUTE)
    for _ in range(20):
        world.start()
        world.up_for(2 * SECOND)
        world.kill()
        world.pass_time(SECOND)
    assert world.fired().count(("full", TWO)) == 1
    assert len(world.tried[Slot("full", TWO)]) == 1
    world.start()
    world.up_for(HOUR)
    assert len(world.tried[Slot("full", TWO)]) == 2
    assert world.of("slot_ended")[-1]["outcome"] == "success"


def test_A6_a_loop_that_never_gets_a_run_done_ends_with_its_slot():
    world = World(rules(), start=at("2024-06-03 01:59"))
    for _ in range(60):
        world.start()
        world.up_for(2 * MINUTE)
        world.kill()
        world.pass_time(MINUTE)
    assert len(world.fired()) == 1
    assert len(world.tried[world.fired()[0]]) == 3
    assert [line["outcome"] for line in world.of("slot_ended")] == ["interrupted"]


# ---- A8: the journal is lost


def test_A8_manifests_say_which_slots_were_and_one_is_made_up():
    by = rules(**AQUASTREAM)
    lost = [("full", TWO - DAY), ("full", TWO - 2 * DAY), ("postgres", at("2024-06-03 18:00"))]
    now = TWO + HOUR
    found = decide([settings(now)], now, by=by, lost=lost)
    assert turns(found) == [("postgres", at("2024-06-04 00:00"), 1, at("2024-06-04 00:00")), ("full", TWO, 1, TWO)]
    assert ends(found) == [], "of weekly, cleanup and verify nothing is known"
    assert not decide([settings(now)], now, lost=[*lost, ("full", TWO)]).turns
    found = decide([settings(now)], now, lost=[("full", TWO - 10 * DAY)])
    assert ends(found) == [("full", TWO - DAY, "missed", TWO - 9 * DAY, 9)]
    assert turns(found) == [("full", TWO, 1, TWO)]


def test_A8_a_manifest_says_nothing_of_a_slot_that_the_journal_knows():
    """Killed between the seal and the run's end: the journal's word is the last."""
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, "interrupted")]
    assert turns(decide(entries, TWO + HOUR, lost=[("full", TWO)])) == [("full", TWO, 2, TWO + 6 * MINUTE)]
    open_ = [*QUIET, started("a", "full", TWO, TWO)]
    assert decide(open_, TWO + HOUR, lost=[("full", TWO)]) == ([], [])
    done = [*open_, ended("a", "full", TWO, TWO + MINUTE)]
    assert ends(decide(done, TWO + HOUR, lost=[("full", TWO)])) == [("full", TWO, "success", TWO, 1)]


# ---- held


def test_hold_skips_what_is_due_and_says_why():
    found = decide(QUIET, TWO, started_at=BEGUN, noticed={Slot("full", TWO)}, hold="migration")
    assert (ends(found), turns(found)) == ([("full", TWO, "skipped", TWO, 1)], [])
    assert found.endings[0].reason == "the schedule is held: migration"
    found = decide(QUIET, TWO + 3 * DAY, hold="migration")
    assert ends(found) == [
        ("full", TWO + 2 * DAY, "skipped", TWO, 3),
        ("full", TWO + 3 * DAY, "skipped", TWO + 3 * DAY, 1),
    ]
    assert {ending.reason for ending in found.endings} == {"the schedule is held: migration"}
    after = [*QUIET, *map(line_of, found.endings)]
    assert decide(after, TWO + 3 * DAY + HOUR) == ([], []), "what was skipped is not made up after the release"


def test_hold_gives_up_a_retry_and_leaves_a_running_run_alone():
    failed = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, "failed", retryable=True)]
    found = decide(failed, TWO + HOUR, hold="migration")
    assert (ends(found), turns(found)) == ([("full", TWO, "failed", TWO, 1)], [])
    running = [*QUIET, started("a", "full", TWO, TWO)]
    assert decide(running, TWO + HOUR, hold="migration") == ([], [])
    done = [*running, ended("a", "full", TWO, TWO + HOUR)]
    assert ends(decide(done, TWO + HOUR, hold="migration")) == [("full", TWO, "success", TWO, 1)]


def test_hold_of_a_restore_begins_when_it_has_failed_and_due_slots_wait_for_it_until_then():
    world = World(rules(), start=BEGUN)
    world.start()
    world.up_to(TWO - MINUTE)
    run = world.by_hand("restore", 2 * HOUR, held=True)
    world.up_for(HOUR)
    assert ("full", TWO) not in world.fired()
    assert world.of("slot_ended")[-1]["slot"] != to_text(TWO), "it waits"
    world.up_for(2 * HOUR)
    assert world.of("slot_ended")[-1]["slot"] == to_text(TWO)
    assert world.of("slot_ended")[-1]["outcome"] == "skipped"
    assert run in world.of("slot_ended")[-1]["reason"]
    world.release()
    world.up_for(DAY)
    assert world.fired() == [("full", at("2024-06-03 02:00")), ("full", TWO + DAY)]


def test_a_hold_that_is_over_holds_nothing():
    world = World(rules(postgres=AQUASTREAM["postgres"]), start=BEGUN)
    world.start()
    world.hold(7 * HOUR)
    world.up_for(14 * HOUR)
    assert [line["outcome"] for line in world.of("slot_ended")] == ["skipped", "success"]


# ---- retries


def test_a_run_that_failed_is_tried_again_when_that_may_help():
    entries = list(QUIET)
    for attempt in (1, 2, 3):
        begin = TWO + attempt * HOUR
        entries += a_run(f"r{attempt}", "full", TWO, begin, begin + MINUTE, "failed", attempt, retryable=True)
        found = decide(entries, begin + 2 * MINUTE)
        if attempt < 3:
            assert (ends(found), turns(found)) == ([], [("full", TWO, attempt + 1, begin + 6 * MINUTE)])
    assert (ends(found), turns(found)) == ([("full", TWO, "failed", TWO, 1)], [])
    assert found.endings[0].reason == "why"


@pytest.mark.parametrize("outcome", ["success", "warning", "failed", "aborted"])
def test_an_outcome_that_is_final(outcome):
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, outcome)]
    found = decide(entries, TWO + MINUTE)
    assert (ends(found), turns(found)) == ([("full", TWO, outcome, TWO, 1)], [])


@pytest.mark.parametrize("outcome", sorted(DONE))
def test_success_is_final_whatever_else_the_line_says(outcome):
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, outcome, retryable=True), stopped("a", TWO + HOUR)]
    assert ends(decide(entries, TWO + HOUR)) == [("full", TWO, outcome, TWO, 1)]


def test_no_retries():
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, "failed", retryable=True)]
    assert ends(decide(entries, TWO + HOUR, policy=POLICY._replace(retries=0))) == [("full", TWO, "failed", TWO, 1)]


def test_a_retry_is_given_up_when_the_next_slot_is_due():
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + DAY - MINUTE, "failed", retryable=True)]
    assert turns(decide(entries, TWO + DAY - SECOND)) == [("full", TWO, 2, TWO + DAY + 4 * MINUTE)]
    found = decide(entries, TWO + DAY)
    assert ends(found) == [("full", TWO, "failed", TWO, 1)]
    assert turns(found) == [("full", TWO + DAY, 1, TWO + DAY)]


def test_an_interrupted_slot_is_given_up_after_a_downtime_and_what_lies_between_is_missed():
    entries = [*QUIET, started("a", "full", TWO, TWO)]
    now = TWO + 5 * DAY
    assert ends(decide(entries, now)) == [("full", TWO + 4 * DAY, "missed", TWO + DAY, 4)]
    entries += [ended("a", "full", TWO, now, "interrupted")]
    found = decide(entries, now)
    assert ends(found) == [
        ("full", TWO + 4 * DAY, "missed", TWO + DAY, 4),
        ("full", TWO, "interrupted", TWO, 1),
    ]
    assert turns(found) == [("full", now, 1, now)]


def test_what_an_operator_ends_is_final_and_what_the_daemon_ended_with_itself_is_not():
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, "aborted")]
    assert ends(decide(entries, TWO + HOUR)) == [("full", TWO, "aborted", TWO, 1)]
    assert turns(decide([*entries, stopped("a", TWO + MINUTE)], TWO + HOUR)) == [("full", TWO, 2, TWO + 6 * MINUTE)]
    for other in ("b", None):
        assert ends(decide([*entries, stopped(other, TWO + MINUTE)], TWO + HOUR)) == [("full", TWO, "aborted", TWO, 1)]
    killed = [*QUIET, started("a", "full", TWO, TWO), stopped("a", TWO + MINUTE)]
    killed += [ended("a", "full", TWO, TWO + HOUR, "interrupted")]
    assert turns(decide(killed, TWO + HOUR)) == [("full", TWO, 2, TWO + HOUR + 5 * MINUTE)]


def test_only_the_last_attempt_decides_and_daemon_stopped_is_about_its_own():
    entries = [*QUIET, *a_run("a", "full", TWO, TWO, TWO + MINUTE, "aborted"), stopped("a", TWO + MINUTE)]
    entries += a_run("b", "full", TWO, TWO + HOUR, TWO + 2 * HOUR, "failed", 2)
    assert ends(decide(entries, TWO + 3 * HOUR)) == [("full", TWO, "failed", TWO, 1)]


def test_runs_by_hand_are_no_ones_slot():
    ledger = Ledger.of([*QUIET, started("a", "full", None, TWO), started("b", "restore", None, TWO)])
    assert (ledger.running, ledger.attempts) == ({"a", "b"}, {})
    ledger.add(ended("a", "full", None, TWO + MINUTE))
    assert ledger.running == {"b"}
    assert turns(decide([*QUIET, *a_run("a", "full", None, TWO, TWO + MINUTE)], TWO + HOUR)) == [("full", TWO, 1, TWO)]


# ---- the first full


def test_the_first_full_is_due_at_once_and_has_its_own_slot():
    entries = [settings(BEGUN)]
    found = decide(entries, BEGUN, first=BEGUN)
    assert turns(found) == [("full", BEGUN, 1, BEGUN)]
    entries += a_run("a", "full", BEGUN, BEGUN, BEGUN + MINUTE)
    found = decide(entries, BEGUN + MINUTE, first=BEGUN)
    assert ends(found) == [("full", BEGUN, "success", BEGUN, 1)]
    entries += [line_of(found.endings[0])]
    assert decide(entries, BEGUN + HOUR) == ([], [])
    two = at("2024-06-03 02:00")
    assert turns(decide(entries, two)) == [("full", two, 1, two)]


def test_the_first_full_is_due_however_old_the_repository_is_and_only_a_full():
    found = decide([settings(BEGUN)], BEGUN, first=BEGUN - YEAR, by=rules(**AQUASTREAM))
    assert [slot.job for slot, _, _ in found.turns] == ["full"]
    assert not found.endings


def test_the_first_full_may_fail_and_is_tried_again_or_left_to_the_next_slot():
    entries = [settings(BEGUN), *a_run("a", "full", BEGUN, BEGUN, BEGUN + MINUTE, "failed", retryable=True)]
    assert turns(decide(entries, BEGUN + HOUR, first=BEGUN)) == [("full", BEGUN, 2, BEGUN + 6 * MINUTE)]
    two = at("2024-06-03 02:00")
    found = decide(entries, two, first=BEGUN)
    assert (ends(found), turns(found)) == ([("full", BEGUN, "failed", BEGUN, 1)], [("full", two, 1, two)])
    final = [settings(BEGUN), *a_run("a", "full", BEGUN, BEGUN, BEGUN + MINUTE, "failed")]
    (ending,) = decide(final, BEGUN + HOUR, first=BEGUN).endings
    assert decide([*final, line_of(ending)], BEGUN + HOUR, first=BEGUN) == ([], [])


def test_after_the_first_full_nothing_is_made_up_from_before_the_first_daemon():
    """`init` on Thursday, `serve` on Monday at 09:00."""
    world = World(rules(), start=at("2024-06-03 09:00"), created_at=at("2024-05-30 17:00"))
    world.start()
    world.up_for(10 * HOUR)
    assert len(world.fired()) == 1, "the first full, and not the slot of 02:00 after it"
    assert [line["outcome"] for line in world.of("slot_ended")] == ["success"]


# ---- settings


def test_a_changed_rule_makes_up_nothing_from_before_the_change():
    change = at("2024-06-04 12:00")
    by = rules(full="0 11 * * *")
    entries = [*QUIET, closed("full", TWO), settings(change, "schedule.full")]
    assert decide(entries, change + HOUR, by=by) == ([], [])
    eleven = at("2024-06-05 11:00")
    assert turns(decide(entries, eleven, by=by)) == [("full", eleven, 1, eleven)]
    other = [*QUIET, closed("full", TWO), settings(change, "schedule.verify", "schedule.catch_up", "limits.retries")]
    assert turns(decide(other, change + HOUR, by=by)) == [("full", change - HOUR, 1, change - HOUR)]


def test_a_changed_zone_is_a_change_of_every_rule():
    change = at("2024-06-04 01:00")
    berlin = ZoneInfo("Europe/Berlin")
    by = rules(berlin, **AQUASTREAM)
    entries = [settings(BEGUN), *(closed(job, TWO - DAY) for job in ORDER), settings(change, "time_zone")]
    assert decide(entries, change + HOUR, by=by) == ([], []), "02:00 in Berlin was at 00:00"
    found = decide(entries, at("2024-06-05 00:00"), by=by)
    assert ("full", at("2024-06-05 00:00"), 1, at("2024-06-05 00:00")) in turns(found)


def test_a_slot_that_is_tried_is_ended_also_when_its_rule_was_changed_meanwhile():
    entries = [*QUIET, started("a", "full", TWO, TWO), settings(TWO + MINUTE, "schedule.full")]
    entries += [ended("a", "full", TWO, TWO + HOUR)]
    assert ends(decide(entries, TWO + HOUR, by=rules(full="0 11 * * *"))) == [("full", TWO, "success", TWO, 1)]
    entries[-1] = ended("a", "full", TWO, TWO + HOUR, "failed", retryable=True)
    found = decide(entries, TWO + HOUR, by=rules(full="0 11 * * *"))
    assert turns(found) == [("full", TWO, 2, TWO + HOUR + 5 * MINUTE)]


def test_a_job_that_is_switched_off_and_on_makes_up_nothing():
    off = [*QUIET, settings(TWO - HOUR, "schedule.full")]
    assert decide(off, TWO, by=rules(verify="30 4 1 1 *")) == ([], [])
    on = [*off, settings(TWO + 10 * DAY + HOUR, "schedule.full")]
    assert decide(on, TWO + 10 * DAY + 2 * HOUR) == ([], [])
    assert turns(decide(on, TWO + 11 * DAY)) == [("full", TWO + 11 * DAY, 1, TWO + 11 * DAY)]


@pytest.mark.parametrize(("outcome", "retryable"), [("success", False), ("failed", True), ("interrupted", False)])
def test_a_slot_that_was_tried_is_ended_when_its_job_was_switched_off(outcome, retryable):
    entries = [*QUIET, started("a", "full", TWO, TWO), settings(TWO + MINUTE, "schedule.full")]
    by = rules(verify="30 4 1 1 *")
    assert decide(entries, TWO + MINUTE, by=by) == ([], []), "it is running"
    entries += [ended("a", "full", TWO, TWO + HOUR, outcome, retryable=retryable)]
    found = decide(entries, TWO + HOUR, by=by)
    assert (ends(found), turns(found)) == ([("full", TWO, outcome, TWO, 1)], [])


# ---- several at once


def test_due_slots_are_run_in_the_order_of_their_time_and_then_of_their_worth():
    sunday = at("2024-09-01 12:00")  # and the first of the month
    entries = [settings(at("2024-08-31 20:00"))]
    found = decide(entries, sunday, by=dict(reversed(rules(**AQUASTREAM).items())))
    assert [f"{slot.job} {slot.at:%d %H:%M}" for slot, _, _ in found.turns] == [
        "weekly 01 01:00",
        "full 01 02:00",
        "cleanup 01 03:00",
        "verify 01 04:30",
        "postgres 01 12:00",
    ]
    same = decide(entries, sunday, by=rules(**dict.fromkeys(reversed(ORDER), "0 9 * * *")))
    assert [slot.job for slot, _, _ in same.turns] == list(ORDER)
    assert [ending.slot.job for ending in found.endings] == ["postgres"]


def test_a_waiting_retry_keeps_no_other_job_waiting():
    entries = [settings(TWO - HOUR), *a_run("a", "full", TWO, TWO, TWO + MINUTE, "failed", retryable=True)]
    by = rules(full=AQUASTREAM["full"], verify="3 2 * * *")
    assert turns(decide(entries, TWO + 3 * MINUTE, by=by)) == [
        ("full", TWO, 2, TWO + 6 * MINUTE),
        ("verify", TWO + 3 * MINUTE, 1, TWO + 3 * MINUTE),
    ]


# ---- a daemon that is simulated, and what has to be true of it


class Killed(BaseException):
    """By the world, in the middle of a tick."""


class World:
    """Journal, manifests, a clock, and a daemon that is up or not. `true`: what the time is; `now`: what the clock says.

    `fate` of a slot and an attempt: how long the run takes, its outcome, and whether trying again may help.
    """

    def __init__(self, by, *, start, policy=POLICY, created_at=None, fate=None, deadly=lambda: False):
        self.rules, self.policy, self.true, self.skew = dict(by), policy, start, timedelta()
        self.created_at, self.deadly = created_at, deadly
        self.firsts = {created_at}  # slots of the first full
        self.fate = fate or (lambda slot, attempt: (10 * MINUTE, "success", False))
        self.journal, self.manifests, self.names = [], [], count(1)
        self.late = timedelta
        self.daemon = self.hand = None
        self.history = History()
        self.tried = defaultdict(list)  # of each slot the outcomes of its attempts; None while one runs
        self.valid = defaultdict(list)  # of each job the spans of slots that have an ending: from, until, whether run
        self.eras = []  # job, rule, from, until
        self.changed = {}
        self.stops = set()
        self.unseen = {}

    @property
    def now(self):
        return self.true + self.skew

    # -- what can be done to it

    def start(self):
        assert self.daemon is None
        ledger, self.history = Ledger.of(self.journal), History.of(self.journal)
        for job, slot in self.manifests:
            ledger.add_backup(job, slot)
        last = from_text(self.journal[-1]["at"]) if self.journal else None
        self.daemon = SimpleNamespace(
            ledger=ledger, started_at=self.now, seen_at=self.now, noticed={}, running=None, seen=set(), retry_at=None
        )
        self.append("daemon_started")
        if last and last > self.now + BACK:
            self._went_back(last)
        self._note_settings()

    def kill(self):
        self.daemon = None

    def stop(self):
        """TERM: the run under way ends with the daemon."""
        running = self.daemon.running
        if running:
            self._end_run(running, "aborted", False)
            self.stops.add(running.run)
        self.append("daemon_stopped", reason="SIGTERM", run=running.run if running else None)
        self.daemon = None

    def pass_time(self, span):
        self.true += span

    def suspend(self, span):
        """The machine sleeps: runs and waiting go on after it."""
        self.true += span
        for one in (self.daemon.running if self.daemon else None, self.hand):
            if one:
                one.ends_at += span

    def jump(self, span):
        self.skew += span

    def hold(self, span):
        self.append("held", until=to_text(self.now + span), reason="by hand", cause="operator")

    def release(self):
        self.append("released", cause="operator")

    def by_hand(self, job, span, *, held=False, outcome="failed"):
        """A run that an operator starts; with `held` it is a restore, and holds the schedule unless it ends well."""
        assert self.hand is None
        run = f"hand{next(self.names)}"
        self.append("run_started", run=run, job=job, slot=None)
        if held:
            self.append("held", until=None, reason=f"restore {run}", cause="restore", run=run)
        self.hand = SimpleNamespace(run=run, job=job, ends_at=self.true + span, outcome=outcome, held=held)
        return run

    def change(self, by, *keys):
        """Other settings: noted at once by a daemon that is up, by the next one if not."""
        for job in ORDER:
            if "time_zone" in keys or f"schedule.{job}" in keys:
                self.changed[job] = by.get(job)
        self.rules = dict(by)
        self.unseen |= dict.fromkeys(keys)
        if self.daemon:
            self._note_settings()

    def rotate(self):
        """All that is left of the journal is what still stands."""
        self.journal = standing([{**line, "line": number} for number, line in enumerate(self.journal)], ())

    def lose_journal(self):
        assert self.daemon is None
        self.journal.clear()
        self.tried.clear()
        self.stops.clear()
        self.valid.clear()
        self.eras, self.unseen, self.changed, self.hand = [], {}, {}, None
        for job, slot in self.manifests:
            self.valid[job].append((slot, slot, True))

    def up_for(self, span):
        self.up_to(self.true + span)

    def up_to(self, true):
        """The daemon is woken by slots, ends of runs and retries, and looks when nothing happens for long."""
        while True:
            self.tick()
            if self.true >= true:
                return
            wakes = [rule.after(self.now) - self.skew for rule in self.rules.values()]
            wakes += [one.ends_at for one in (self.daemon.running, self.hand) if one]
            wakes += [self.daemon.retry_at - self.skew] if self.daemon.retry_at else []
            wake = min(wakes, default=true) + self.late()
            self.true = max(self.true + SECOND, min(wake, true))

    def fired(self):
        """Slots in the order in which they were started first."""
        return [
            Slot(line["job"], from_text(line["slot"])) for line in self.of("run_started") if line.get("attempt") == 1
        ]

    def of(self, event):
        return [line for line in self.journal if line["event"] == event]

    # -- what keeper.py does

    def append(self, event, **rest):
        line = {"event": event, "at": to_text(self.now), **rest}
        self.journal.append(line)
        self.history.add(line)
        if self.daemon:
            self.daemon.ledger.add(line)
        return line

    def tick(self):
        self._look_after_hand()
        daemon, now = self.daemon, self.now
        if daemon.running and daemon.running.ends_at <= self.true:
            self._end_run(daemon.running, daemon.running.outcome, daemon.running.retryable)
            daemon.running = None
        if daemon.seen_at - now > BACK:
            self._went_back(daemon.seen_at)
        daemon.seen_at = now
        if daemon.running is None:
            self._tidy()
        self._notice()
        hold = self.history.holding(now, daemon.ledger.running)
        found = plan(
            self.rules,
            daemon.ledger,
            self.policy,
            now=now,
            started_at=daemon.started_at,
            first=self._first(),
            noticed={slot for slots in daemon.noticed.values() for slot in slots},
            hold=hold.reason if hold else "",
        )
        for ending in found.endings:
            self._end(ending, hold)
            if self.deadly():
                raise Killed
        ready = [turn for turn in found.turns if turn.not_before <= now]
        if daemon.running is None and self.hand is None and ready:
            self._run(ready[0], hold)
        daemon.retry_at = min((turn.not_before for turn in found.turns if turn.not_before > now), default=None)
        if daemon.running is None and self.hand is None and not hold:
            self._check_idle(found)

    def _look_after_hand(self):
        if self.hand and self.hand.ends_at <= self.true:
            hand, self.hand = self.hand, None
            if hand.held and hand.outcome == "success":
                self.append("released", cause="restore")
            self.append("run_ended", run=hand.run, job=hand.job, slot=None, outcome=hand.outcome, reason="")

    def _tidy(self):
        for line in self.of("run_started")[-5:]:
            if line["run"] in self.daemon.ledger.running and not (self.hand and self.hand.run == line["run"]):
                run = SimpleNamespace(run=line["run"], line=line)
                self._end_run(run, "interrupted", False)

    def _notice(self):
        daemon, now = self.daemon, self.now
        for job, rule in self.rules.items():
            former = [slot for slot in daemon.noticed.get(job, ()) if slot.at <= now]
            newest = rule.latest(max([daemon.started_at, *(slot.at for slot in former)]), now)
            if newest is not None and now - newest <= IN_TIME:
                former.append(Slot(job, newest))
            daemon.noticed[job] = former[-2:]
            daemon.seen |= {*former}

    def _first(self):
        if self.created_at is None or self.daemon.ledger.newest_ended("full", self.now) is not None:
            return None
        return None if any(job == "full" for job, _ in self.manifests) else self.created_at

    def _went_back(self, seen):
        self.append("clock_went_back", seen=to_text(seen), to=to_text(self.now))
        self.daemon.started_at = min(self.daemon.started_at, self.now)
        self.daemon.seen = {slot for slot in self.daemon.seen if slot.at <= self.now}
        # Judged there without having been run, slots are judged anew; what was run is not run again.
        for job, spans in self.valid.items():
            cut = [(first, last if ran else min(last, self.now), ran) for first, last, ran in spans]
            self.valid[job] = [span for span in cut if span[0] <= span[1]]
        self.firsts.add(self.now)
        no_later = lambda moment: moment and min(moment, self.now)
        self.eras = [(job, rule, no_later(begin), no_later(end)) for job, rule, begin, end in self.eras]

    def _note_settings(self):
        if not self.of("settings"):
            self.append("settings", changed={}, values={})
            self.changed = {}
            known = {job: max((at for name, at in self.manifests if name == job), default=self.now) for job in ORDER}
            self.eras = [(job, rule, min(known[job], self.now), None) for job, rule in self.rules.items()]
            self.firsts.add(self.now)
        elif self.unseen:
            self.append("settings", changed={key: [0, 1] for key in self.unseen}, values={})
            over = lambda job, end: end is None and job in self.changed
            self.eras = [(job, rule, begin, self.now if over(job, end) else end) for job, rule, begin, end in self.eras]
            self.eras += [(job, rule, self.now, None) for job, rule in self.changed.items() if rule]
        self.unseen, self.changed = {}, {}

    def _run(self, turn, hold):
        self._check_turn(turn, hold)
        span, outcome, retryable = self.fate(turn.slot, turn.attempt)
        run = f"run{next(self.names)}"
        line = self.append("run_started", run=run, job=turn.slot.job, slot=to_text(turn.slot.at), attempt=turn.attempt)
        self.daemon.running = SimpleNamespace(
            run=run, line=line, ends_at=self.true + span, outcome=outcome, retryable=retryable
        )
        self.tried[turn.slot].append(SimpleNamespace(run=run, outcome=None, retryable=False, ended_at=None))

    def _end_run(self, run, outcome, retryable):
        about = {key: run.line[key] for key in ("run", "job", "slot", "attempt") if key in run.line}
        more = {"retryable": True} if retryable else {}
        if about["slot"]:
            slot = Slot(about["job"], from_text(about["slot"]))
            last = next(one for one in self.tried[slot] if one.run == run.run)
            last.outcome, last.retryable, last.ended_at = outcome, retryable, self.now
            if outcome in DONE and slot.job in {"full", "postgres", "weekly"}:
                self.manifests.append(slot)
        self.append("run_ended", **about, outcome=outcome, reason=outcome, **more)

    def _end(self, ending, hold):
        self._check_ending(ending, hold)
        more = {"first": to_text(ending.first), "count": ending.number} if ending.number > 1 else {}
        job, slot = ending.slot
        self.append("slot_ended", job=job, slot=to_text(slot), outcome=ending.outcome, reason=ending.reason, **more)
        self.valid[job].append((ending.first or slot, slot, ending.slot in self.tried))

    # -- the oracle

    def era(self, job):
        """The rule of a job as it is now, and since when."""
        return next(
            ((rule, begin) for name, rule, begin, end in self.eras if name == job and end is None), (None, None)
        )

    def newest(self, job):
        rule, begin = self.era(job)
        return rule.latest(begin, self.now) if rule and begin < self.now else None

    def has_ending(self, slot):
        return [span for span in self.valid[slot.job] if span[0] <= slot.at <= span[1]]

    def may_be_tried_again(self, slot):
        last = self.tried[slot][-1]
        return (
            last.outcome not in DONE
            and (last.retryable or last.outcome == "interrupted" or last.run in self.stops)
            and len(self.tried[slot]) <= self.policy.retries
        )

    def _check_turn(self, turn, hold):
        slot, former = turn.slot, self.tried[turn.slot]
        newest = self.newest(slot.job)
        assert not hold
        assert not self.daemon.ledger.running, "one at a time"
        assert not self.has_ending(slot)
        assert turn.attempt == len(former) + 1
        assert slot.at <= self.now or former or slot.at in self.firsts
        if former:
            assert self.may_be_tried_again(slot)
            assert not former[-1].ended_at <= self.now < former[-1].ended_at + self.policy.retry_delay
        elif slot.at not in self.firsts:
            assert slot.at == newest
            assert self.now - slot.at <= self.policy.catch_up or slot in self.daemon.seen

    def _check_ending(self, ending, hold):
        slot = ending.slot
        first, newest = ending.first or slot.at, self.newest(slot.job)
        passed_over = newest is not None and newest > slot.at
        for begin, end, _ in self.valid[slot.job]:
            assert end < first or slot.at < begin, f"a second ending: {ending}"
        if slot in self.tried:
            last = self.tried[slot][-1]
            assert (ending.number, ending.outcome, ending.reason) == (1, last.outcome, last.outcome)
            off = slot.job not in self.rules
            assert last.outcome is not None
            assert not self.may_be_tried_again(slot) or passed_over or hold or off or slot.at > self.now, (
                f"given up too soon: {ending}"
            )
            return
        assert not any(job == slot.job and first <= tried <= slot.at for job, tried in self.tried)
        if slot.at not in self.firsts:
            rule, begin = self.era(slot.job)
            assert first > begin
            among = rule.count(first - SECOND, slot.at, COUNTED)
            assert (ending.number, rule.after(slot.at - SECOND)) == (among, slot.at)
            assert rule.after(first - SECOND) == first
        if ending.outcome == "skipped" and hold:
            assert hold.reason in ending.reason
        elif ending.outcome == "skipped":
            assert passed_over
            assert slot in self.daemon.seen
        else:
            assert ending.outcome == "missed"
            assert slot not in self.daemon.seen, f"it was seen: {ending}"
            assert passed_over or self.now - slot.at > self.policy.catch_up

    def _check_idle(self, found):
        """Nothing runs though it could: then everything that is due was tried, or has its ending, or waits for its retry."""
        first = self._first() if "full" in self.rules else None
        assert first is None or any(job == "full" for job, _ in self.tried), "the first full was not begun"
        for job in self.rules:
            newest = self.newest(job)
            slot = Slot(job, newest)
            if newest is None or self.has_ending(slot):
                continue
            assert slot in self.tried, f"not tried: {slot} at {self.now}"
            assert [turn for turn in found.turns if turn.slot == slot and turn.not_before > self.now]

    def check_all(self):
        """Each slot since the first start has one ending. To be called when the daemon has come to rest.

        Where the clock went back, that is since the earliest moment to which it went; of a slot that was then still to come
        the ending counts that was written later, but that of a slot that had been run by then.
        """
        for job, rule, begin, end in self.eras:
            for moment in rule.slots(begin, min(end or self.now, self.now)):
                slot = Slot(job, moment)
                spans = self.has_ending(slot)
                # What was due when its rule was changed, and not begun, is a slot of no rule any more.
                gone = end is not None and slot not in self.tried
                assert len(spans) == 1 or (gone and not spans), f"{slot}: {spans or 'no ending'}"
        for slot, attempts in self.tried.items():
            assert len(attempts) <= 1 + self.policy.retries
            assert len(self.has_ending(slot)) == 1, f"no ending: {slot}"


class Walked(Rule):
    """The same slots, walked once for all histories."""

    LOW, HIGH = at("2024-01-01 00:00"), at("2025-01-01 00:00")

    def __init__(self, expression, zone):
        super().__init__(expression, zone)
        self._known = list(super().slots(self.LOW, self.HIGH))

    def _span(self, after, until):
        return bisect_right(self._known, after), bisect_right(self._known, until)

    def after(self, moment):
        if hasattr(self, "_known") and self.LOW <= moment < self._known[-1]:
            return self._known[bisect_right(self._known, moment)]
        return super().after(moment)

    def slots(self, after, until):
        if after >= self.LOW and until <= self.HIGH:
            return iter(self._known[slice(*self._span(after, until))])
        return super().slots(after, until)

    def latest(self, after, until):
        if after >= self.LOW and until <= self.HIGH:
            begin, end = self._span(after, until)
            return self._known[end - 1] if begin < end else None
        return super().latest(after, until)


@cache
def walked(expression, zone):
    return Walked(expression, ZoneInfo(zone))


ODD = {
    "full": ["30 2 * * *", "15 1-3 * * *", "0 12 * * 1-5", "59 23 */2 * *"],
    "postgres": ["0 * * * *", "*/30 */4 * * *", "45 1,13 * * *"],
    "weekly": ["30 2 * * 7", "0 1 * * *"],
    "cleanup": ["0 0 1,15 * *", "0 3 * * 1"],
    "verify": ["30 2 * * *", "0 2 * * *", "*/20 4 * * *"],
}
HOMES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]
BEGINNINGS = ["2024-02-25", "2024-03-28", "2024-04-01", "2024-06-10", "2024-09-28", "2024-10-20"]
QUICK = (MINUTE, "success", False)


class Life:
    """Some weeks of a world in which everything happens."""

    def __init__(self, seed, *, jumps):
        self.rng = random.Random(seed)
        self.jumps = jumps
        self.zone = self.rng.choice(HOMES)
        self.expressions = {job: self.any_rule(job) for job in ORDER}
        start = at(f"{self.rng.choice(BEGINNINGS)} 00:00") + self.rng.randrange(1440) * MINUTE
        policy = Policy(
            catch_up=self.rng.choice([DAY, DAY, 3 * HOUR, timedelta(), 10 * DAY]),
            retries=self.rng.choice([2, 2, 0, 1, 5]),
            retry_delay=self.rng.choice([5, 5, 1, 90]) * MINUTE,
        )
        self.world = World(
            self.by(),
            start=start,
            policy=policy,
            created_at=self.rng.choice([None, start, start - self.rng.randrange(90) * HOUR]),
            fate=self.fate,
            deadly=lambda: self.rng.random() < 0.02,
        )
        self.world.late = lambda: self.rng.choice([0, 0, 0, 1, 20, 150]) * SECOND
        self.until = start + 40 * DAY

    def any_rule(self, job):
        return AQUASTREAM[job] if self.rng.random() < 0.7 else self.rng.choice(ODD[job])

    def by(self):
        return {job: walked(text, self.zone) for job, text in self.expressions.items() if text}

    def fate(self, slot, attempt):
        minutes = self.rng.choice([1, 5, 10, 20, 40, 40, 90, 400, 1000])
        if self.rng.random() < 0.02:
            minutes = self.rng.randrange(5000)
        ends_ = [("success", False)] * 14 + [("warning", False), ("failed", False), ("aborted", False)]
        ends_ += [("failed", True), ("failed", True), ("failed", True), ("interrupted", False)]
        return minutes * MINUTE, *self.rng.choice(ends_)

    def some_time(self):
        return self.rng.choice([MINUTE, 20 * MINUTE, 3 * HOUR, 11 * HOUR, 40 * HOUR, 9 * DAY]) * self.rng.random()

    def live(self):
        world, rng = self.world, self.rng
        acts = [self.pause, self.pause, self.stop, self.loop, self.suspend, self.hold, self.by_hand, self.change]
        acts += [self.jump] * 6 if self.jumps else [self.lose]
        while world.true < self.until:
            if world.daemon is None:
                world.start()
            self.up(DAY * rng.choice([0.01, 0.3, 1, 4]) * rng.random())
            if world.daemon:
                rng.choice(acts)()
        self.rest()
        world.check_all()

    def up(self, span):
        try:
            self.world.up_for(span)
        except Killed:
            self.world.kill()

    def rest(self):
        """The clock is right again, nothing is held, and all that is open is ended."""
        world = self.world
        world.deadly, world.fate = (lambda: False), (lambda slot, attempt: QUICK)
        if world.daemon is None:
            world.start()
        if self.rng.random() < 0.5:
            world.jump(world.true - world.now)
        world.release()
        world.up_for(MINUTE)
        while world.daemon.running or world.hand or world.daemon.retry_at:
            world.up_for(10 * MINUTE)

    # -- what happens

    def pause(self):
        self.world.kill()
        if not self.jumps and self.rng.random() < 0.2:  # what an earlier clock had seen is not all carried over
            self.world.rotate()
        self.world.pass_time(self.some_time())

    def stop(self):
        self.world.stop()
        self.world.pass_time(self.some_time())

    def loop(self):
        for _ in range(self.rng.randrange(2, 12)):
            self.world.kill()
            self.world.pass_time(self.rng.randrange(1, 200) * SECOND)
            self.world.start()
            self.up(self.rng.randrange(1, 400) * SECOND)
        self.world.kill()

    def suspend(self):
        self.world.suspend(self.some_time())

    def hold(self):
        if self.rng.random() < 0.3:
            self.world.release()
        self.world.hold(self.some_time() + MINUTE)

    def by_hand(self):
        if self.world.hand is None:
            held = self.rng.random() < 0.3
            outcome = "success" if self.rng.random() < 0.7 else "failed"
            self.world.by_hand("restore" if held else "full", self.some_time() / 4, held=held, outcome=outcome)
            if held and outcome == "failed":
                self.up(self.world.hand.ends_at - self.world.true + 9 * HOUR)
                self.world.release()

    def change(self):
        if self.rng.random() < 0.3:
            self.zone = self.rng.choice(HOMES)
            keys = ["time_zone"]
        else:
            job = self.rng.choice(ORDER)
            self.expressions[job] = None if self.rng.random() < 0.3 else self.any_rule(job)
            keys = [f"schedule.{job}", "limits.stall"]
        if self.rng.random() < 0.3:
            self.pause()
        self.world.change(self.by(), *keys)

    def lose(self):
        self.world.kill()
        self.world.lose_journal()

    def jump(self):
        world, rng = self.world, self.rng
        span = rng.choice([50 * SECOND, 10 * MINUTE, 5 * HOUR, 31 * HOUR, 20 * DAY, 150 * DAY]) * rng.random()
        back = timedelta() if rng.random() < 0.3 else world.true - world.now
        world.jump(rng.choice([span, span, -span, back, back, back]))
        if rng.random() < 0.3:
            self.pause()


@pytest.mark.parametrize("jumps", [False, True], ids=["true clock", "clock that jumps"])
@pytest.mark.parametrize("share", range(SHARES))
def test_every_slot_of_a_random_history_has_exactly_one_ending(share, jumps, monkeypatch):
    monkeypatch.setattr(slots, "from_text", cache(from_text))  # half of the time goes into it
    for seed in range(share, HISTORIES, SHARES):
        try:
            Life(seed, jumps=jumps).live()
        except AssertionError as error:
            error.add_note(f"Life({seed}, jumps={jumps})")
            raise
