"""Retention: a table for each law, and random histories in which an independent judge looks at every decision.

The judge below knows the laws, not the code: it says of each backup that goes why it may, and of each that stays why it
must. `AQUAD_FAULTS=all` tries twenty times as many histories.
"""

import os
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise

import pytest

from aquad.core.errors import RepositoryRefused
from aquad.repository.retention import FOR_EVER, Candidate, Cleaned, Policy, decide

ALL = os.environ.get("AQUAD_FAULTS") == "all"
HISTORIES = 100_000 if ALL else 5_000
SHARES = 4
"""So many tests of them, for several processes."""
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NOW = datetime(2024, 6, 1, 3, tzinfo=UTC)
KINDS = ("full", "incremental", "weekly")
AGES = {"full": 30 * DAY, "incremental": 7 * DAY, "weekly": 84 * DAY}
POLICY = Policy(AGES, 3, DAY)


def backup(sequence, at, components="p", state="good", *, kind="full", needs=(), kept_until=None, name=None):
    """Each letter of `components` is one."""
    return Candidate(
        name or f"{kind[0]}{sequence}", kind, sequence, at, frozenset(components), state, kept_until, frozenset(needs)
    )


def daily(days, *rest, until=NOW - HOUR, first=1, **named):
    """A full a day, the newest at `until`."""
    return [backup(first + n, until - (days - 1 - n) * DAY, *rest, **named) for n in range(days)]


def after_a_month(age=30 * DAY):
    return dict.fromkeys(KINDS, Cleaned(NOW - 31 * DAY, age))


def in_time(backups):
    """Numbered as a clock that never failed would have had them taken."""
    return [b._replace(sequence=n) for n, b in enumerate(sorted(backups, key=lambda b: (b.started_at, b.sequence)))]


def plan(
    backups, policy=POLICY, *, now=NOW, kinds=KINDS, required="p", cleaned=None, everything=True, lost=False, **rest
):
    """Without caps, if not said otherwise: most laws are about other things. `lost`: the clock was, numbers are as given."""
    return decide(
        backups if lost else in_time(backups),
        policy,
        now=now,
        kinds=kinds,
        required=required,
        cleaned=cleaned or {},
        everything=everything,
        **rest,
    )


def gone(decisions):
    """Numbers of those that go."""
    return sorted(int(decision.id[1:]) for decision in decisions if not decision.keep)


def why(decisions, id_):
    return next(decision.reason for decision in decisions if decision.id == id_)


# ---- what the function is


def test_each_backup_has_one_decision_whatever_the_order_it_came_in():
    backups = [*daily(50), *(backup(100 + n, NOW - n * HOUR, kind="incremental", needs=["f50"]) for n in range(9))]
    expected = plan(backups)
    assert [decision.id for decision in expected] == [b.id for b in in_time(backups)[::-1]]
    shuffled = list(backups)
    for seed in range(20):
        random.Random(seed).shuffle(shuffled)
        assert plan(shuffled) == expected
    assert plan([]) == []


def test_what_is_of_age_goes_and_the_reason_says_how_old_it_is():
    decisions = plan(daily(50))
    assert gone(decisions) == list(range(1, 21))
    assert why(decisions, "f1") == "it is 49 days old; full backups stay 30 days"
    assert why(decisions, "f21") == "it is 29 days old; full backups stay 30 days"
    assert why(decisions, "f50") == "it is 60 minutes old; full backups stay 30 days"


def test_one_goes_at_its_age_and_not_a_microsecond_before():
    rest = daily(5)
    tick = timedelta(microseconds=1)
    assert gone(plan([backup(0, NOW - 30 * DAY), *rest])) == [0]
    assert gone(plan([backup(0, NOW - 30 * DAY + tick), *rest])) == []


def test_kinds_that_are_not_asked_for_stay():
    backups = [*daily(50), *(backup(60 + n, NOW - 20 * DAY, kind="incremental") for n in range(9))]
    decisions = plan(backups, kinds=["incremental"])
    assert gone(decisions) == [60, 61, 62, 63, 64, 65]
    assert why(decisions, "f1") == "full backups are not looked at in this run"


def test_an_age_beyond_the_calendar_keeps_everything():
    """`999999w` is a valid setting."""
    assert gone(plan(daily(50), POLICY._replace(age=dict.fromkeys(KINDS, timedelta(weeks=999_999))))) == []


# ---- K1: only good backups count


def test_K1_a_streak_of_400_failures_loses_nothing_that_the_floor_covers():
    """Each night a backup is sealed that turns out damaged, or holds half, or nothing is sealed; cleanup runs each night."""
    good = daily(40, "pe")
    backups, cleaned = list(good), {}
    for night in range(1, 401):
        now = NOW + night * DAY
        if night % 3:
            backups.append(backup(100 + night, now - HOUR, "pe" if night % 3 == 1 else "e", "damaged"))
        decisions = plan(backups, now=now, required="pe", cleaned=cleaned, everything=False)
        going = {decision.id for decision in decisions if not decision.keep}
        if night > 2:
            assert not going, "frozen from the third night on"
        backups = [b for b in backups if b.id not in going]
        cleaned = {kind: Cleaned(now, AGES[kind]) for kind in KINDS}
    assert set(good[-27:]) <= set(backups)


def test_K1_without_a_freeze_the_floor_still_holds_through_a_streak():
    """The same for a component that the settings no longer name."""
    backups = daily(40, "x")
    decisions = plan([*backups, *daily(400, "x", "damaged", until=NOW + 400 * DAY, first=100)], now=NOW + 400 * DAY)
    assert {38, 39, 40}.isdisjoint(gone(decisions))
    assert why(decisions, "f40") == "it is the newest good backup of x"
    assert why(decisions, "f39") == "it is one of the 3 newest good full backups of x"


@pytest.mark.parametrize("state", ["damaged", "unverified"])
def test_K1_what_is_not_known_to_be_good_does_not_count(state):
    old = daily(6, until=NOW - 100 * DAY)
    assert gone(plan([*old, *daily(20, "p", state, first=10)], required="")) == [1, 2, 3]
    assert gone(plan([*old, *daily(20, first=10)], required="")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("minimum", [1, 2, 3, 7])
def test_K1_the_floor_is_by_kind_and_component(minimum):
    policy = POLICY._replace(minimum_verified=minimum)
    incrementals = [backup(50 + n, NOW - 100 * DAY + n * HOUR, "p", kind="incremental") for n in range(10)]
    backups = [*daily(10, "pe", until=NOW - 100 * DAY), *incrementals, *daily(10, "e", first=20)]
    decisions = plan(backups, policy, required="")
    assert gone(decisions) == [*range(1, 11 - minimum), *range(50, 60 - minimum)]


def test_K1_the_newest_good_one_stays_with_everything():
    old = [backup(1, NOW - 900 * DAY, "x"), backup(2, NOW - 899 * DAY, "x", "damaged"), *daily(5, first=10)]
    decisions = plan(old, POLICY._replace(minimum_verified=1))
    assert gone(decisions) == [2]
    assert why(decisions, "f1") == "it is the newest good backup of x"


@pytest.mark.parametrize("state", ["damaged", "unverified"])
def test_K1_where_none_is_good_a_damaged_one_is_better_than_none(state):
    decisions = plan([*daily(40, "x", state, until=NOW - 50 * DAY), *daily(5, first=100)])
    assert gone(decisions) == []
    assert why(decisions, "f1") == "there is no good backup of x, and one that may be damaged is better than none"


def test_K1_damaged_and_unverified_ones_go_by_age_like_others():
    backups = [
        backup(1, NOW - 40 * DAY, "p", "damaged"),
        backup(2, NOW - 39 * DAY, "p", "unverified"),
        backup(3, NOW - 20 * DAY, "p", "damaged"),
        *daily(5, first=10),
    ]
    decisions = plan(backups)
    assert gone(decisions) == [1, 2]
    assert why(decisions, "f1") == "it is 40 days old; full backups stay 30 days, and damaged"


def test_K1_one_that_needs_what_is_damaged_or_missing_does_not_count():
    base = backup(1, NOW - 60 * DAY)
    for needed in (backup(2, NOW - DAY, "q", "damaged"), backup(2, NOW - DAY, "q", "unverified"), None):
        chain = [backup(3 + n, NOW - HOUR, needs=["f2"] if n == 0 else [f"f{2 + n}"]) for n in range(4)]
        backups = [base, *([needed] if needed else []), *chain]
        assert why(plan(backups, required=""), "f1") == "it is the newest good backup of p"


# ---- K1, H4: the freeze


def test_K1_nothing_goes_while_a_required_component_has_no_young_good_backup():
    backups = [*daily(50, "pe", until=NOW - 3 * DAY), *daily(2, "e", first=90), backup(0, NOW - 80 * DAY, "e")]
    decisions = plan(backups, required="pe")
    assert gone(decisions) == [0], "what does not hold the component may go"
    assert why(decisions, "f1") == (
        "there was no good backup of p since 2024-05-29 03:00 UTC, 3 days ago: what holds it stays until there is"
    )
    assert gone(plan(backups, required="e")) == list(range(24))
    a_little_later = daily(50, "pe", until=NOW - 3 * DAY + timedelta(microseconds=1))
    assert gone(plan(a_little_later, required="pe")) == list(range(1, 23))


@pytest.mark.parametrize("kind", KINDS)
def test_K1_a_good_backup_of_any_kind_ends_the_freeze(kind):
    old = daily(50, until=NOW - 20 * DAY)
    assert gone(plan(old)) == []
    assert gone(plan([*old, backup(99, NOW - 2 * DAY, kind=kind)]))
    for state in ("damaged", "unverified"):
        assert gone(plan([*old, backup(99, NOW - 2 * DAY, "p", state, kind=kind)])) == []


def test_K1_a_component_that_nothing_holds_yet_freezes_nothing():
    assert gone(plan(daily(50), required="pz")) == list(range(1, 21))


@pytest.mark.parametrize("years", [1, 14, 76])
@pytest.mark.parametrize("everything", [False, True])
def test_H4_a_clock_that_jumped_ahead_removes_nothing(years, everything):
    now = NOW + years * 365 * DAY
    assert gone(plan(daily(50), now=now, everything=everything, cleaned=after_a_month())) == []


def test_H4_after_a_jump_the_first_good_backup_ends_the_freeze_but_not_the_cap():
    now = NOW + 3650 * DAY
    backups = [*daily(100), backup(200, now - HOUR)]
    decisions = plan(backups, now=now, everything=False, cleaned=after_a_month())
    assert gone(decisions) == list(range(1, 21))
    assert why(decisions, "f21") == (
        "it is due, but after a standstill or a jump of the clock only 20 full backups go in one run; "
        "`aquad prune --all` removes all"
    )


def test_H4_a_good_backup_from_the_future_proves_no_youth():
    ahead = backup(1, NOW + 900 * DAY)
    assert gone(plan([ahead, *daily(50, until=NOW - 20 * DAY, first=10)], lost=True)) == []


# ---- what is needed, kept, or in use


def test_K5_what_a_kept_one_needs_stays():
    chain = [backup(n, NOW - (60 - n) * DAY, "q", needs=[f"f{n - 1}"] if n > 1 else []) for n in range(1, 41)]
    decisions = plan([*chain, *daily(5, first=100)])
    assert gone(decisions) == []
    assert why(decisions, "f1") == "f2 needs it"


def test_K5_a_chain_of_several_kinds_goes_when_its_last_goes():
    base = backup(1, NOW - 50 * DAY)
    chain = [
        backup(2 + n, NOW - (40 - n) * DAY, kind="incremental", needs=["f1", f"i{1 + n}"][: n + 1]) for n in range(9)
    ]
    later = [backup(20 + n, NOW - 2 * DAY, kind="incremental") for n in range(3)]
    assert gone(plan([base, *chain, *later, *daily(5, first=50)])) == list(range(1, 11))
    held = [*chain[:-1], chain[-1]._replace(kept_until=FOR_EVER)]
    assert gone(plan([base, *held, *later, *daily(5, first=50)])) == []


def test_K5_a_chain_longer_than_the_cap_goes_from_its_end():
    """Oldest first alone would never remove anything: the oldest is needed by those that the cap leaves."""
    chain = [backup(1, NOW - 90 * DAY), *(backup(n, NOW - 80 * DAY, needs=[f"f{n - 1}"]) for n in range(2, 31))]
    recent = daily(5, first=100)
    left, rounds = [*chain, *recent], 0
    while len(left) > len(recent):
        decisions = plan(left, everything=False)
        assert len(gone(decisions)) == 10
        left = [b for b in left if b.id not in {d.id for d in decisions if not d.keep}]
        rounds += 1
    assert rounds == 3


def test_K5_a_need_that_is_not_there_or_goes_in_a_circle_keeps_the_function_alive():
    circle = [backup(1, NOW - 90 * DAY, needs=["f2"]), backup(2, NOW - 90 * DAY, needs=["f1", "nowhere"])]
    assert gone(plan([*circle, *daily(5, first=10)])) == []
    itself = backup(3, NOW - 90 * DAY, needs=["f3"])
    assert gone(plan([itself, *daily(5, first=10)])) == []
    assert gone(plan([backup(4, NOW - 90 * DAY, needs=["nowhere"]), *daily(5, first=10)])) == [4]


@pytest.mark.parametrize(
    ("until", "stays", "reason"),
    [
        (NOW + DAY, True, "`aquad keep` holds it until 2024-06-02 03:00 UTC"),
        (FOR_EVER, True, "`aquad keep` holds it for ever"),
        (NOW, False, "it is 49 days old; full backups stay 30 days"),
        (NOW - DAY, False, "it is 49 days old; full backups stay 30 days"),
    ],
)
def test_K9_what_is_kept_by_hand_stays(until, stays, reason):
    first, *rest = daily(50)
    decisions = plan([first._replace(kept_until=until), *rest])
    assert (1 not in gone(decisions)) is stays
    assert why(decisions, "f1") == reason
    assert gone(decisions)[-1] == 20


def test_K9_what_a_restore_uses_stays_and_what_that_needs():
    first, second, *rest = daily(50)
    decisions = plan([first, second._replace(needs=frozenset(["f1"])), *rest], pinned=["f2", "gone"])
    assert gone(decisions) == list(range(3, 21))
    assert why(decisions, "f2") == "a restore uses it now"
    assert why(decisions, "f1") == "f2 needs it"


def test_K8_it_names_nothing_that_it_was_not_given():
    backups = daily(50, needs=["foreign"])
    assert {decision.id for decision in plan(backups, pinned=["other"], required="pz")} == {b.id for b in backups}


# ---- refusals


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (POLICY._replace(age=AGES | {"full": timedelta(0)}), "the age for full backups is 0:00:00"),
        (POLICY._replace(age=AGES | {"weekly": -DAY}), "the age for weekly backups is -1 day"),
        (POLICY._replace(age={"full": DAY}), "no age is set for incremental backups; no age is set for weekly"),
        (POLICY._replace(age={}), "no age is set for full backups"),
        (POLICY._replace(minimum_verified=0), "the number of good backups that always stay is 0"),
        (POLICY._replace(minimum_verified=-1), "the number of good backups that always stay is -1"),
        (POLICY._replace(period=timedelta(0)), "the time between two full backups is 0:00:00"),
    ],
)
def test_K4_a_policy_that_keeps_nothing_is_refused(policy, said, everything):
    with pytest.raises(RepositoryRefused, match=said) as raised:
        plan(daily(50), policy, everything=everything)
    assert raised.value.hint == "Correct [retention] in the settings; nothing was removed."


def test_K4_an_age_is_needed_only_for_what_is_looked_at():
    decisions = plan([*daily(50), backup(99, NOW, kind="weekly")], POLICY._replace(age={"full": DAY}), kinds=["full"])
    assert gone(decisions) == list(range(1, 48)), "the floor: the weekly does not count for it"


@pytest.mark.parametrize("everything", [False, True])
def test_a_catalog_that_could_not_be_read_whole_is_refused(everything):
    with pytest.raises(RepositoryRefused) as raised:
        plan(daily(50), unreadable=[f"bad{n}" for n in range(7)], everything=everything)
    assert raised.value.message == (
        "prune the repository: the manifest of bad0, bad1, bad2, bad3, bad4 and 2 more cannot be read"
    )
    assert "verify all" in raised.value.hint
    with pytest.raises(RepositoryRefused, match=r"manifest of a\\nb cannot"):
        plan(daily(5), unreadable=["a\nb"])


def test_K3_a_clock_that_is_behind_is_refused_unless_everything():
    backups = daily(50)
    newest = backups[-1].started_at
    for behind in (timedelta(seconds=61), DAY, 20_000 * DAY):
        with pytest.raises(RepositoryRefused, match="its newest good backup f50 is of 2024-06-01 02:00 UTC") as raised:
            plan(backups, lost=True, now=newest - behind, everything=False)
        assert "--all" in raised.value.hint
        assert 50 not in gone(plan(backups, lost=True, now=newest - behind))
    assert gone(plan(backups, lost=True, now=newest - timedelta(seconds=60), everything=False, cleaned=after_a_month()))


def test_K3_only_a_good_one_says_that_the_clock_is_behind():
    backups = [*daily(50), backup(99, NOW + 50 * DAY, "p", "unverified")]
    decisions = plan(backups, lost=True, everything=False, cleaned=after_a_month())
    assert len(gone(decisions)) == 20
    assert why(decisions, "f99") == "it is of 2024-07-21 03:00 UTC, which the clock has not reached"


def test_K3_one_backup_from_the_year_2100_does_not_stop_retention_until_then():
    ahead = backup(10, datetime(2100, 1, 1, tzinfo=UTC))
    backups = [*daily(9, until=NOW - 51 * DAY), ahead, *daily(50, first=11)]
    decisions = plan(backups, lost=True, everything=False, cleaned=after_a_month())
    assert 10 not in gone(decisions)
    assert gone(decisions) == [*range(1, 10), *range(11, 31)]


def test_K3_backups_from_the_future_stay_with_everything_even_damaged():
    backups = [*daily(5), *daily(9, "p", "damaged", until=NOW + 300 * DAY, first=10)]
    assert gone(plan(backups, lost=True)) == []
    assert gone(plan(backups, lost=True, now=NOW - 300 * DAY)) == []


def test_K3_what_was_taken_under_a_clock_at_1970_is_not_54_years_old():
    """A machine without a battery: its clock stood at 1970 for ten days, then it was set again."""
    lost = daily(10, until=datetime(1970, 1, 10, tzinfo=UTC), first=100)
    backups = [*daily(40, until=NOW - 11 * DAY), *lost, backup(200, NOW - HOUR)]
    decisions = plan(backups, lost=True)
    assert gone(decisions) == list(range(1, 22))
    assert why(decisions, "f100") == "it is 11 days old; full backups stay 30 days"
    assert gone(plan(backups, lost=True, now=NOW + 19 * DAY + HOUR, required=""))[-1] == 107, (
        "in their turn, but for three"
    )


# ---- K7: caps


def test_K7_what_came_of_age_since_the_last_cleanup_is_not_capped():
    assert gone(plan(daily(61), everything=False, cleaned=after_a_month())) == list(range(1, 32))


@pytest.mark.parametrize(("there", "cap"), [(40, 10), (50, 10), (54, 10), (55, 11), (100, 20), (365, 73)])
def test_K7_a_first_cleanup_is_capped_oldest_first(there, cap):
    decisions = plan(daily(there), POLICY._replace(age=AGES | {"full": 3 * DAY}), everything=False)
    assert gone(decisions) == list(range(1, cap + 1))
    assert why(decisions, f"f{cap + 1}") == (
        f"it is due, but in the first cleanup only {cap} full backups go in one run; `aquad prune --all` removes all"
    )


@pytest.mark.parametrize("old_age", [30, 365])
def test_K7_a_change_from_365_to_3_days_is_capped(old_age):
    """Also what would have come of age by the new setting since the last cleanup: by the old one it did not."""
    policy = POLICY._replace(age=AGES | {"full": 3 * DAY})
    backups = daily(old_age + 31)
    decisions = plan(backups, policy, everything=False, cleaned=after_a_month(old_age * DAY))
    cap = max(10, len(backups) // 5)
    of_age = 31  # by the old setting, since the last cleanup
    assert gone(decisions) == list(range(1, of_age + cap + 1))
    assert "of those that did not just come of age only" in why(decisions, f"f{of_age + cap + 1}")
    assert len(gone(plan(backups, policy, cleaned=after_a_month(old_age * DAY)))) == len(backups) - 3


def test_K7_a_longer_age_is_no_reason_for_a_cap():
    policy = POLICY._replace(age=AGES | {"full": 60 * DAY})
    assert len(gone(plan(daily(91), policy, everything=False, cleaned=after_a_month(30 * DAY)))) == 31


def test_K7_each_kind_has_its_own_cap():
    backups = [
        *daily(60),
        *daily(100, kind="incremental", first=200),
        *daily(60, kind="weekly", first=400, until=NOW - 90 * DAY),
    ]
    decisions = plan(backups, POLICY, everything=False)
    assert gone(decisions) == [*range(1, 13), *range(200, 220), *range(400, 412)]
    cleaned = {"full": Cleaned(NOW - 31 * DAY, 30 * DAY)}
    decisions = plan(backups, POLICY, everything=False, cleaned=cleaned)
    assert gone(decisions) == [*range(1, 31), *range(200, 220), *range(400, 412)]


def test_K7_a_due_moment_counts_from_just_after_the_last_cleanup():
    at = NOW - 20 * DAY
    cleaned = {"full": Cleaned(at, 30 * DAY)}
    earlier = [backup(n, at - 30 * DAY) for n in range(1, 12)]
    since = [backup(n, at - 30 * DAY + timedelta(microseconds=1)) for n in range(12, 30)]
    decisions = plan([*earlier, *since, *daily(21, first=50)], everything=False, cleaned=cleaned)
    assert gone(decisions) == [*range(1, 11), *range(12, 30)], "one of the earlier is over the cap of 10"


@pytest.mark.parametrize(
    ("until", "cleaned_at", "capped"),
    [
        (NOW - HOUR, NOW - 31 * DAY, False),
        (NOW - 3 * DAY + HOUR, NOW - 31 * DAY, False),
        (NOW - HOUR, NOW + HOUR, True),
    ],
)
def test_K7_a_gap_or_a_cleanup_in_the_future_makes_the_clock_suspicious(until, cleaned_at, capped):
    cleaned = {"full": Cleaned(cleaned_at, 30 * DAY)}
    decisions = plan(daily(90, until=until), everything=False, cleaned=cleaned)
    assert ("after a standstill" in " ".join(d.reason for d in decisions)) is capped


@pytest.mark.parametrize("gap", [0, 5, 12, 28])
@pytest.mark.parametrize(("missing", "capped"), [(2, False), (3, True)])
def test_K7_the_gap_may_be_anywhere_since_the_last_cleanup(gap, missing, capped):
    """Two missing days are a gap of exactly three periods, which still passes. 0: just after the cleanup; 28: up to now."""
    since = daily(31, first=100)
    backups = [*daily(60, until=NOW - 31 * DAY - HOUR), *since[:gap], *since[gap + missing :]]
    decisions = plan(backups, everything=False, cleaned=after_a_month(), required="")
    assert ("after a standstill" in " ".join(d.reason for d in decisions)) is capped


def test_K7_backups_of_any_kind_and_state_are_traces_of_time():
    cleaned = after_a_month()
    old, new = daily(60, until=NOW - 32 * DAY), daily(5, first=100)
    traces = [backup(200 + n, NOW - 5 * DAY - n * DAY, "p", "damaged", kind="incremental") for n in range(27)]
    assert len(gone(plan([*old, *new], kinds=["full"], everything=False, cleaned=cleaned))) == 13
    with_traces = gone(plan([*old, *new, *traces], kinds=["full"], everything=False, cleaned=cleaned))
    assert len(with_traces) > 13


# ---- K10: dates


def test_K10_every_night_from_2020_to_2040_keeps_exactly_what_is_young():
    """Over each ISO year's edge, each leap day, and with a second full in the same second on each edge."""
    at = datetime(2020, 1, 1, 2, tzinfo=UTC)
    backups, sequence = [], 0
    cleaned = {}
    while at < datetime(2040, 1, 10, tzinfo=UTC):
        for second in range(2 if at.isocalendar()[1] in {1, 52, 53} else 1):
            sequence += 1
            backups.append(backup(sequence, at, name=f"{at + second * timedelta(seconds=1):%Y%m%d_%H%M%S}_full"))
        if at.weekday() == 6:
            year, week, _ = at.isocalendar()
            sequence += 1
            backups.append(backup(sequence, at, kind="weekly", name=f"weekly_{year}_{week:02}"))
        if at.day == 1 or at.isocalendar()[1] in {1, 53}:
            now = at + HOUR
            decisions = plan(backups, now=now, cleaned=cleaned, everything=False)
            assert len({d.id for d in decisions}) == len(backups) == len(decisions)
            going = {d.id for d in decisions if not d.keep}
            assert going == {b.id for b in backups if now - b.started_at >= AGES[b.kind]}
            backups = [b for b in backups if b.id not in going]
            cleaned = {kind: Cleaned(now, AGES[kind]) for kind in KINDS}
        at += DAY
    assert sequence > 8000


def test_K10_of_two_in_the_same_second_the_later_in_sequence_is_the_newer():
    twins = [backup(n, NOW - 50 * DAY, name=name) for n, name in ((7, "f7"), (8, "f8"))]
    for backups in (twins, twins[::-1]):
        assert gone(plan(backups, POLICY._replace(minimum_verified=1), required="")) == [7]


# ---- histories


class Judge:
    """What the laws say of one cleanup. Written from them, the slow and plain way, and sharing nothing with the code."""

    def __init__(self, backups, policy, *, now, kinds, required, cleaned, everything, pinned):
        self.backups, self.policy, self.now, self.kinds = backups, policy, now, kinds
        self.required, self.cleaned, self.everything, self.pinned = required, cleaned, everything, pinned
        self.oldest_first = sorted(backups, key=lambda b: b.sequence)
        self.by_id = {b.id: b for b in backups}
        self.counts = {}
        self.good = [b for b in reversed(self.oldest_first) if self.is_good(b)]
        groups = defaultdict(list)
        for b in self.good:
            for component in b.components:
                groups[b.kind, component].append(b.id)
        self.floor = {id_ for ids in groups.values() for id_ in ids[: policy.minimum_verified]}
        self.covered = {component for _, component in groups}
        self.frozen = {component for component in required if not any(map(self.is_young, self.holding(component)))}
        reached = accumulate((b.started_at for b in self.oldest_first if b.started_at <= now), max)
        self.age = {b.id: now - next(reached) for b in self.oldest_first if b.started_at <= now}
        self.suspicious = {kind for kind in cleaned if self.is_suspicious(cleaned[kind].at)}

    def is_good(self, b):
        if b.id not in self.counts:
            self.counts[b.id] = b.state == "good" and all(
                need in self.by_id and self.is_good(self.by_id[need]) for need in b.needs
            )
        return self.counts[b.id]

    def holding(self, component):
        return [b for b in self.good if component in b.components]

    def is_young(self, b):
        return b.started_at <= self.now + timedelta(minutes=1) and self.now - b.started_at < 3 * self.policy.period

    def is_suspicious(self, at):
        points = sorted({at, self.now} | {b.started_at for b in self.backups if at <= b.started_at <= self.now})
        return at > self.now or any(b - a > 3 * self.policy.period for a, b in pairwise(points))

    def clock_is_behind(self):
        return bool(self.good) and self.good[0].started_at > self.now + timedelta(minutes=1)

    def must_stay(self, b):
        """By a law that looks at it alone."""
        return (
            b.kind not in self.kinds
            or b.started_at > self.now
            or self.age[b.id] < self.policy.age[b.kind]
            or b.id in self.pinned
            or (b.kept_until is not None and b.kept_until > self.now)
            or b.id in self.floor
            or not b.components <= self.covered
            or not b.components.isdisjoint(self.frozen)
        )

    def is_doubtful(self, b):
        """It may go, but did not fall due by time alone."""
        if self.everything:
            return False
        if b.kind not in self.cleaned or b.kind in self.suspicious:
            return True
        last = self.cleaned[b.kind]
        over = self.age[b.id] - max(self.policy.age[b.kind], last.age)
        return not timedelta(0) <= over < self.now - last.at

    def check(self, decisions):
        assert sorted(d.id for d in decisions) == sorted(self.by_id)
        removed = {d.id for d in decisions if not d.keep}
        staying = [b for b in self.backups if b.id not in removed]
        needed = {need for b in staying for need in b.needs}
        wrongly = [b for b in self.backups if b.id in removed and (b.id in needed or self.must_stay(b))]
        assert not wrongly, wrongly
        idle = [b for b in staying if not self.must_stay(b) and b.id not in needed]
        for kind in KINDS:
            of_kind = [b for b in self.oldest_first if b.kind == kind]
            used = [b for b in of_kind if b.id in removed and self.is_doubtful(b)]
            cap = max(10, len(of_kind) // 5)
            assert len(used) <= cap
            waiting = [b for b in idle if b.kind == kind]
            assert not waiting or (len(used) == cap and all(map(self.is_doubtful, waiting))), waiting
            chained = {need for b in self.backups for need in b.needs}
            assert all(b.id in chained or b.sequence > used[-1].sequence for b in waiting), "oldest first"
        assert all(d.reason for d in decisions)
        seen["removed"] += len(removed)
        seen["judged"] += 1
        seen["needed"] += any(b.id in needed and not self.must_stay(b) for b in staying)
        seen["capped"] += any(" go in one run" in d.reason for d in decisions)
        seen["frozen"] += bool(self.frozen)
        seen["jumped"] += bool(self.suspicious)


seen = defaultdict(int)
STATES = {
    "good": ["good"],
    "damaged": ["damaged"],
    "unverified": ["unverified"],
    "mixed": ["good", "good", "damaged", "unverified"],
}
STEPS = {
    "begin": {"days": [2, 5, 10, 30], "minimum": [1, 2, 3, 4]},
    "run": {
        "nights": [1, 2, 5, 9, 16],
        "state": ["good", "good", "good", "good", *STATES],
        "components": ["pe", "pe", "pe", "pe", "p", "e", "pex"],
        "incrementals": [0, 1, 2],
        "tidy": [False, True],
    },
    "fail": {"nights": [1, 3, 10, 400], "sealing": [0, 0, 3, 8], "kinds": [KINDS, ("full",)]},
    "find": {"pick": range(60), "number": [1, 1, 3, 30], "state": ["damaged", "damaged", "unverified", "good"]},
    "keep": {"pick": range(60), "days": [None, -1, 1, 20, "ever"]},
    "pin": {"pick": range(60)},
    "lose": {"pick": range(60)},
    "jump": {
        "hours": [-0.01, -1, 2, 30, -30, 100, -100, 24 * 40, -24 * 40, 24 * 4000, -24 * 4000],
        "tidy": [False, True],
    },
    "set": {
        "kind": KINDS,
        "days": [1, 3, 10, 40],
        "minimum": [1, 2, 3, 4],
        "required": ["pe", "pe", "p", "pex", "z"],
        "period": [1, 1, 1, 7],
    },
    "clean": {
        "kinds": [KINDS, KINDS, ("full",), ("incremental", "weekly")],
        "everything": [False, False, False, True],
        "killed_after": [None, None, 1, 5],
    },
}
"""Every step of a history, and what each of its arguments may be. What stands twice comes twice as often."""
WEIGHTS = {"run": 8, "clean": 6, "find": 2, "begin": 0}
LENGTH = 18


class History:
    """One step is some nights of a daemon, or one thing that goes wrong, or one that an operator does."""

    def begin(self, days, minimum):
        self.now, self.sequence, self.backups, self.cleaned, self.pinned = NOW, 0, {}, {}, set()
        self.required = frozenset("pe")
        self.policy = Policy({"full": days * DAY, "incremental": 2 * DAY, "weekly": 3 * days * DAY}, minimum, DAY)

    def seal(self, kind, components, state, needs=()):
        self.sequence += 1
        made = backup(self.sequence, self.now, components, state, kind=kind, needs=needs)
        self.backups[made.id] = made
        return made

    def run(self, nights, state, components, incrementals, tidy):
        """Good, partial, damaged and unverified fulls, increments that need each other, weeklies; with the daily cleanup."""
        states = STATES[state]
        for night in range(nights):
            self.now += DAY
            last = self.seal("full", components, states[night % len(states)])
            for number in range(incrementals):
                last = self.seal("incremental", components[0], states[(night + number) % len(states)], [last.id])
            if self.now.weekday() == 6:
                self.seal("weekly", components, states[night % len(states)])
            if tidy and night % 8 == 0:
                self.tidy(("incremental",))

    def fail(self, nights, sealing, kinds):
        """Nothing is sealed, or what is sealed is damaged; cleanups go on. What the floor covers stays."""
        before = self.judge(KINDS).floor
        for _ in range(3):
            self.now += nights * DAY / 3
            for _ in range(sealing):  # at the same moment
                self.seal("full", "pe", "damaged")
            self.tidy(kinds)
        assert before <= set(self.backups)
        seen["streaks of 400"] += nights == 400 and bool(before)

    def picked(self, pick):
        """0 is the newest."""
        ids = sorted(self.backups, key=lambda id_: -self.backups[id_].sequence)
        return ids[pick % len(ids)] if ids else None

    def find(self, pick, number, state):
        """Verification finds another state than before, of some that were taken after each other."""
        for offset in range(min(number, len(self.backups))):
            id_ = self.picked(pick + offset)
            self.backups[id_] = self.backups[id_]._replace(state=state)

    def keep(self, pick, days):
        id_ = self.picked(pick)
        if id_:
            until = FOR_EVER if days == "ever" else days and self.now + days * DAY
            self.backups[id_] = self.backups[id_]._replace(kept_until=until)

    def pin(self, pick):
        self.pinned = {self.picked(pick)} if not self.pinned else set()

    def lose(self, pick):
        """Somebody deletes a backup by hand."""
        self.backups.pop(self.picked(pick), None)

    def jump(self, hours, tidy):
        self.now += hours * HOUR
        if tidy:
            self.tidy(KINDS)

    def set(self, kind, days, minimum, required, period):
        self.policy = Policy(self.policy.age | {kind: days * DAY}, minimum, period * DAY)
        self.required = frozenset(required)

    def clean(self, kinds, everything, killed_after):
        self.tidy(kinds, everything=everything, killed_after=killed_after)

    def arguments(self, kinds, everything):
        return {
            "now": self.now,
            "kinds": kinds,
            "required": self.required,
            "cleaned": self.cleaned,
            "everything": everything,
            "pinned": self.pinned,
        }

    def judge(self, kinds, *, everything=False):
        return Judge(list(self.backups.values()), self.policy, **self.arguments(kinds, everything))

    def tidy(self, kinds, *, everything=False, killed_after=None):
        """Decide, have it judged, and carry it out, or as much of it as there is time for."""
        judge = self.judge(kinds, everything=everything)
        try:
            decisions = decide(self.backups.values(), self.policy, **self.arguments(kinds, everything))
        except RepositoryRefused:
            assert judge.clock_is_behind()
            assert not everything
            seen["refused"] += 1
            return
        assert everything or not judge.clock_is_behind()
        judge.check(decisions)
        removed = [decision.id for decision in decisions if not decision.keep][:killed_after]
        for id_ in removed:
            del self.backups[id_]
        assert set(removed).isdisjoint(need for b in self.backups.values() for need in b.needs), "also after a kill"
        if killed_after is None:
            self.cleaned = self.cleaned | {kind: Cleaned(self.now, self.policy.age[kind]) for kind in kinds}


def replay(steps):
    """The law that the history breaks, if any."""
    history = History()
    try:
        for name, arguments in steps:
            getattr(history, name)(**arguments)
    except AssertionError as error:
        return error
    return None


def drawn(seed):
    rng = random.Random(seed)
    names = ["begin", *rng.choices(list(STEPS), [WEIGHTS.get(name, 1) for name in STEPS], k=LENGTH)]
    return [(name, {key: rng.choice(values) for key, values in STEPS[name].items()}) for name in names]


def shortened(steps):
    """Without what it does not need to break a law: each step works wherever it stands."""
    kept = list(steps)
    for step in reversed(steps[1:]):
        without = [other for other in kept if other is not step]
        if replay(without):
            kept = without
    return kept


@pytest.mark.faults
@pytest.mark.timeout(3600 if ALL else 300)
@pytest.mark.parametrize("share", range(SHARES))
def test_K1_K3_K5_K7_K9_histories(share):
    """Drawn by `random` and not by Hypothesis, whose own work for a step is several times that of retention and judge.

    What breaks a law is shortened, and is the same history each time by its seed.
    """
    seen.clear()
    seeds = range(share, HISTORIES, SHARES)
    for seed in seeds:
        steps = drawn(seed)
        if replay(steps):
            short = shortened(steps)
            lines = "\n".join(f"  {name} {arguments}" for name, arguments in short)
            pytest.fail(f"history {seed} breaks a law:\n{lines}\n{replay(short)}")
    often = {"removed": 20, "judged": 8, "needed": 0.5, "capped": 0.4, "frozen": 3, "jumped": 1, "refused": 0.1}
    often |= {"streaks of 400": 0.1}
    assert {what: seen[what] / len(seeds) for what, least in often.items() if seen[what] < least * len(seeds)} == {}
