"""Whether a component is unlike its own history: tables, simulated years, laws."""

import random
from itertools import pairwise
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquad.observe.sizes import ENOUGH, anomaly

GIB = 1 << 30
MIB = 1 << 20


def judge(history, value, measure="size"):
    return anomaly("postgres", measure, history, value)


def year(shape, seed, noise=0.1, days=365):
    rng = random.Random(seed)
    start = rng.randrange(7)
    return [int(shape(day + start) * exp(rng.gauss(0, noise)) * GIB) for day in range(days)]


def alarms(values, since=0):
    return [day for day in range(since, len(values)) if judge(values[max(0, day - 130) : day], values[day])]


SHAPES = {
    "still": lambda day: 1,
    "grows 1 % a day": lambda day: 1.01**day,
    "grows 3 % a day": lambda day: 1.03**day,
    "shrinks 1 % a day": lambda day: 0.99**day,
    "quiet weekends": lambda day: 0.7 if day % 7 >= 5 else 1,
    "quiet Sundays": lambda day: 0.7 if day % 7 == 6 else 1,
    "busy Sundays": lambda day: 1.3 if day % 7 == 6 else 1,
    "grows, quiet weekends": lambda day: 1.01**day * (0.7 if day % 7 >= 5 else 1),
}


# -- false alarms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_an_ordinary_year_is_silent(shape):
    """Measured over 200 years each at 10 % noise: 0.08 alarms a year at most, 0 at 2 %."""
    assert sum(len(alarms(year(SHAPES[shape], seed, noise=0.02))) for seed in range(2)) == 0
    assert sum(len(alarms(year(SHAPES[shape], seed))) for seed in range(3)) <= 1


def test_a_rotation_is_known_from_its_third_time_on():
    weekly = year(lambda day: 0.5 + day % 7, 1, noise=0.05, days=130)
    assert alarms(weekly, since=60) == []
    monthly = year(lambda day: 0.5 + day % 30, 1, noise=0.05, days=190)
    assert alarms(monthly[:60])
    assert alarms(monthly, since=120) == []


def test_months_are_not_equally_long():
    lengths = [31, 28, 31, 30, 31, 30]
    values = [MIB * (1 + 10 * day) for length in lengths for day in range(length)]
    assert alarms(values, since=120) == []


# -- detection ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["still", "grows 1 % a day", "grows 3 % a day"])
@pytest.mark.parametrize("factor", [0, 0.1, 0.5, 0.7, 1.4, 2, 10])
def test_a_jump_is_seen_also_in_a_growing_component(shape, factor):
    for seed in range(3):
        values = year(SHAPES[shape], seed, noise=0.02, days=100)
        for day in (20, 60, 99):
            assert judge(values[:day], int(values[day] * factor)), (seed, day)


def test_most_halvings_are_seen_in_a_restless_component():
    """Measured over 1000 halvings each: 73 % of those to exactly a half, 93 % of those to 0.45, all to a tenth."""
    seen = 0
    for seed in range(40):
        values = year(SHAPES["still"], seed, days=61)
        seen += judge(values[:60], int(values[60] * 0.45)) is not None
        assert judge(values[:60], int(values[60] * 0.1))
    assert seen >= 34


@pytest.mark.parametrize("factor", [1.05, 0.95])
def test_a_leak_of_5_percent_a_day_is_seen_within_a_week(factor):
    for seed in range(8):
        values = year(SHAPES["still"], seed, noise=0.02, days=70)
        leaking = [int(value * factor ** max(0, day - 59)) for day, value in enumerate(values)]
        assert alarms(leaking[:67], since=60), seed


def test_steady_loss_is_no_trend_that_excuses():
    assert judge([int(GIB * 0.95**day) for day in range(60)], int(GIB * 0.95**60))


def test_one_bad_night_in_the_history_hides_nothing():
    history = [GIB] * 20 + [GIB // 100] + [GIB] * 5
    assert judge(history, GIB) is None
    assert judge(history, GIB // 2)


def test_what_is_wrong_twice_is_wrong():
    history = [GIB] * 30
    for _ in range(10):
        assert judge(history, GIB // 3)
        history.append(GIB // 3)


def test_incidents_without_a_calendar_are_no_rotation():
    history = [GIB] * 100
    history[60] = history[91] = GIB // 3
    assert judge(history, GIB // 3)
    history[91], history[80] = GIB, GIB // 3
    assert judge(history, GIB // 3) is None  # the third in equal distances; see the module for the price


def test_peaks_do_not_excuse_a_hole():
    history = [GIB] * 100
    history[60] = history[80] = 3 * GIB
    assert judge(history, GIB // 3)
    assert judge(history, 3 * GIB) is None


# -- D2: a dump that is empty or short ---------------------------------------------------------------------------------


def test_D2_a_tenth_of_the_usual_dump():
    found = judge([1000 * MIB] * 7, 99 * MIB)
    assert found is not None
    assert (found.value, found.typical) == (99 * MIB, 1000 * MIB)
    assert found.score < -6


@pytest.mark.parametrize("measure", ["size", "rows"])
def test_D2_nothing_where_there_was_something_needs_one_sample(measure):
    assert judge([], 0, measure) is None
    assert judge([0], 0, measure) is None
    found = judge([500], 0, measure)
    assert found is not None
    assert found.typical == 500
    assert judge([500] * 30, 0, measure)


def test_D2_nothing_is_never_its_own_excuse():
    for days in range(40):
        assert judge([500] * 10 + [0] * days, 0)


def test_D2_nothing_where_nothing_is_usual():
    assert judge([0] * 30, 0, "rows") is None
    assert judge([0] * 30 + [3], 0, "rows") is None


# -- the guards and the floor ------------------------------------------------------------------------------------------


def test_guards_hold_whatever_the_spread_is():
    wild = [GIB, 2 * GIB, GIB, 2 * GIB, GIB, 2 * GIB, GIB, 2 * GIB, GIB]  # median GIB
    assert judge(wild, GIB // 2)
    assert judge([*wild[:-1], 2 * GIB], 4 * GIB)


@pytest.mark.parametrize(
    ("value", "cries"),
    [
        (GIB, False),
        (GIB * 101 // 100, False),
        (GIB * 99 // 100, False),
        (GIB * 124 // 100, False),
        (GIB * 126 // 100, True),
        (GIB * 81 // 100, False),
        (GIB * 79 // 100, True),
        (GIB // 2, True),
        (2 * GIB, True),
    ],
)
def test_equal_values_move_by_a_quarter_before_they_cry(value, cries):
    assert (judge([GIB] * 30, value) is not None) == cries


@pytest.mark.parametrize(
    ("measure", "usual", "value", "cries"),
    [
        ("size", 300_000, 900_000, False),  # no disk fills by it
        ("size", 300_000, 1_500_000, True),
        ("size", 16_000, 8_000, True),  # configuration files are small, and all there is
        ("size", 6_000, 3_000, False),
        ("rows", 30, 90, False),
        ("rows", 200, 400, True),
        ("rows", 12, 3, False),
        ("rows", 30, 15, True),
    ],
)
def test_what_is_too_little_to_matter(measure, usual, value, cries):
    assert (judge([usual] * 10, value, measure) is not None) == cries


def test_fewer_than_seven_samples_say_nothing():
    for count in range(ENOUGH):
        assert judge([GIB] * count, 1) is None
    assert judge([GIB] * ENOUGH, 1)


@pytest.mark.parametrize(
    ("usual", "value", "cries"),
    [
        (600, 1, False),
        (600, 0, False),
        (600, 1190, False),
        (600, 1201, True),
        (10, 50, False),
        (10, 69, False),  # less than a minute more
        (10, 90, True),
        (50, 105, False),
    ],
)
def test_only_a_much_longer_duration_matters(usual, value, cries):
    assert (judge([usual] * 30, value, "duration") is not None) == cries


def test_a_restless_duration_is_left_alone():
    rng = random.Random(1)
    history = [int(600 * exp(rng.gauss(0, 0.4))) for _ in range(30)]
    assert judge(history, 1500, "duration") is None
    assert judge(history, 30_000, "duration")


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "history", "value", "words"),
    [
        (
            "size",
            [GIB * 24 // 10] * 40,
            GIB * 12 // 10,
            "1.2 GiB, half of the usual 2.4 GiB (median of the last 30 backups)",
        ),
        ("size", [GIB] * 8, 2 * GIB, "2.0 GiB, double the usual 1.0 GiB (median of the last 8 backups)"),
        ("size", [GIB] * 8, 31 * GIB // 10, "3.1 GiB, 3.1 times the usual 1.0 GiB (median of the last 8 backups)"),
        ("size", [GIB] * 8, GIB // 10, "102.4 MiB, 10% of the usual 1.0 GiB (median of the last 8 backups)"),
        ("size", [GIB] * 8, 20, "20 B, less than 1% of the usual 1.0 GiB (median of the last 8 backups)"),
        ("size", [GIB], 0, "nothing, where 1.0 GiB are usual (median of the last backup)"),
        ("size", [0] * 8, 2 * MIB, "2.0 MiB, where nothing is usual (median of the last 8 backups)"),
        (
            "rows",
            [1_000_000] * 9,
            700_000,
            "700,000 rows, 30% less than the usual 1,000,000 rows (median of the last 9 backups)",
        ),
        (
            "rows",
            [1_000_000] * 9,
            1_400_000,
            "1,400,000 rows, 40% more than the usual 1,000,000 rows (median of the last 9 backups)",
        ),
        ("duration", [2400] * 9, 7510, "2 h 5 min, 3.1 times the usual 40 min (median of the last 9 backups)"),
        ("duration", [1] * 9, 90, "1 min 30 s, 90.0 times the usual 1 s (median of the last 9 backups)"),
    ],
)
def test_explanations_are_for_people(measure, history, value, words):
    assert judge(history, value, measure).explanation == f"postgres: {words}"


def test_growth_is_named_where_it_is_expected():
    values = [int(GIB * 1.03**day) for day in range(40)]
    found = judge(values, values[-1] // 2)
    assert "usual 3.3 GiB (growth over the last 30 backups)" in found.explanation
    assert found.typical == pytest.approx(GIB * 1.03**40, rel=0.01)


# -- laws --------------------------------------------------------------------------------------------------------------

counts = st.integers(0, 1 << 50)


@given(
    st.lists(counts, max_size=60),
    counts,
    st.sampled_from(["size", "duration", "rows"]),
)
def test_it_always_has_an_answer(history, value, measure):
    found = judge(history, value, measure)
    if found is not None:
        assert found.value == value
        assert (found.score > 0) == (value > found.typical)
        assert found.explanation.isprintable()
        assert " 0% " not in found.explanation


@given(st.integers(1, 1 << 50), st.integers(ENOUGH, 60), st.sampled_from(["size", "duration", "rows"]))
def test_a_still_history_expects_itself(value, count, measure):
    assert judge([value] * count, value, measure) is None


@given(st.integers(MIB, 1 << 45), st.lists(st.integers(0, 1 << 46), min_size=2, max_size=8))
def test_further_away_is_never_more_usual(usual, values):
    history = [usual] * 30
    for side in (
        sorted(v for v in values if v >= usual),
        sorted((v for v in values if v <= usual), reverse=True),
    ):
        for near, far in pairwise(side):
            assert not (judge(history, near) and not judge(history, far))
