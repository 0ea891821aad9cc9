"""The disk of the repository: levels, the check before a run, and the day it is full on simulated disks."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aquad.observe.space import Level, full_at, level, needed, shortage

GIB = 1 << 30
START = datetime(2024, 1, 1, 3, tzinfo=UTC)
DAY = timedelta(days=1)


# -- levels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "free", "used", "expected"),
    [
        (100, 21, None, Level.OK),
        (100, 20, None, Level.WARNING),
        (100, 16, None, Level.WARNING),
        (100, 15, None, Level.CRITICAL),
        (100, 0, None, Level.CRITICAL),
        (1000, 201, None, Level.OK),
        (1000, 151, None, Level.WARNING),
        (0, 0, None, Level.OK),
        (100, 20, 75, Level.OK),  # 5 are kept for root: df says 79 %
        (100, 19, 76, Level.WARNING),  # 80 %
        (100, 14, 81, Level.CRITICAL),  # 85.3 %
        (100, 0, 95, Level.CRITICAL),
    ],
)
def test_levels_are_those_of_df(size, free, used, expected):
    assert level(size, free, used) == expected


ORDER = [Level.CRITICAL, Level.WARNING, Level.OK]


@given(st.integers(1, 1 << 60), st.lists(st.integers(0, 1 << 60), min_size=2))
def test_more_free_space_is_never_a_worse_level(size, frees):
    found = [ORDER.index(level(size, free)) for free in sorted(min(free, size) for free in frees)]
    assert found == sorted(found)


# -- before a run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], 0),
        ([0], 0),
        ([100], 120),
        ([101], 122),  # rounded up
        ([500, 100], 500),
        ([500, 1, 1, 1, 1, 1, 1, 100], 120),  # older than the last seven
        ([100, 110, 120], 144),
    ],
)
def test_B5_what_the_next_run_needs(history, expected):
    assert needed(history) == expected


def check(free, *, size=1000 * GIB, expected=12 * GIB, reserve=5 * GIB, last=10 * GIB, shared=None):
    return shortage(size=size, free=free, expected=expected, reserve=reserve, last=last, shares_device_with=shared)


@pytest.mark.parametrize(
    ("free", "reserve", "goes"),
    [(17 * GIB, 5 * GIB, True), (17 * GIB - 1, 5 * GIB, False), (12 * GIB, 0, True), (12 * GIB - 1, 0, False)],
)
def test_B5_the_next_run_must_fit_above_the_reserve(free, reserve, goes):
    assert (check(free, reserve=reserve) == "") == goes


@pytest.mark.parametrize(
    ("size", "last", "reserve", "free", "goes"),
    [
        (1000, 10, 5, 112, True),  # a tenth of the disk
        (1000, 10, 5, 111, False),
        (1001, 10, 5, 112, False),  # rounded up
        (100, 10, 5, 32, True),  # twice the last
        (100, 10, 5, 31, False),
        (100, 10, 50, 62, True),  # the reserve, where it is more
        (100, 10, 50, 61, False),
        (100, 0, 5, 22, True),  # before the first backup
        (100, 0, 5, 21, False),
    ],
)
def test_P6_more_must_stay_free_beside_a_live_database(size, last, reserve, free, goes):
    said = check(free, size=size, expected=12, reserve=reserve, last=last, shared="postgres")
    assert (said == "") == goes
    assert check(free, size=size, expected=12, reserve=5, last=last) == ""


def test_B5_P6_the_refusal_says_what_and_why():
    assert check(16 * GIB) == ("16.0 GiB are free, about 12.0 GiB are needed, and 5.0 GiB must stay free (the reserve)")
    assert check(100 * GIB, shared="postgres (/srv/pg)") == (
        "100.0 GiB are free, about 12.0 GiB are needed, and 100.0 GiB must stay free "
        "(a tenth of the disk, because postgres (/srv/pg) is on the same disk)"
    )
    assert "20.0 GiB must stay free (twice the last backup, because" in check(
        30 * GIB, size=100 * GIB, shared="postgres"
    )


amounts = st.integers(0, 1 << 50)
numbers = st.fixed_dictionaries(dict.fromkeys(("size", "expected", "reserve", "last"), amounts))


@given(numbers, amounts, amounts, st.sampled_from([None, "postgres"]))
def test_B5_more_free_space_never_turns_go_into_refuse(given_, free, more, shared):
    assume(not shortage(free=free, shares_device_with=shared, **given_))
    assert not shortage(free=free + more, shares_device_with=shared, **given_)


@given(numbers, amounts)
def test_P6_a_shared_disk_is_never_watched_less(given_, free):
    if not shortage(free=free, shares_device_with="postgres", **given_):
        assert not shortage(free=free, shares_device_with=None, **given_)


@given(st.lists(amounts, min_size=1), st.integers(0, 1 << 40))
def test_B5_a_larger_history_never_needs_less(history, more):
    assert needed([*history[:-1], history[-1] + more]) >= needed(history) >= history[-1]


# -- the day it is full ------------------------------------------------------------------------------------------------


def forecast(free, today=None):
    """Days from the last of the daily values `free` until the disk is full, or None."""
    samples = [(START + day * DAY, value) for day, value in enumerate(free)]
    now = samples[-1][0]
    at = full_at(samples, free[-1] if today is None else today, now)
    return None if at is None else (at - now) / DAY


def saw(days, *, top=1000, pace=10, period=30, creep=0.0, noise=0.0, seed=1):
    """Free GiB: falls by `pace` each day, comes back every `period`, and is less by `creep` after each."""
    rng = random.Random(seed)
    return [
        int((top - pace * (day % period) - creep * (day // period) + rng.gauss(0, noise)) * GIB) for day in range(days)
    ]


def test_a_steady_fall_is_followed():
    for days in (3, 5, 10, 30, 61, 62, 90, 200):
        free = [1000 * GIB - day * 4 * GIB for day in range(days)]
        assert forecast(free) == pytest.approx(free[-1] / (4 * GIB), rel=0.02), days


def test_noise_moves_the_day_by_little():
    rng = random.Random(3)
    free = [int((1000 - 4 * day + rng.gauss(0, 4)) * GIB) for day in range(120)]
    assert forecast(free) == pytest.approx(free[-1] / (4 * GIB), rel=0.15)


def test_no_fall_no_day():
    assert forecast([500 * GIB] * 100) is None
    assert forecast([(500 + day) * GIB for day in range(100)]) is None
    assert forecast([500 * GIB] * 10) is None


def test_fewer_than_three_days_say_nothing():
    assert full_at([], 100, START) is None
    assert forecast([300, 200]) is None
    hours = [(START + timedelta(hours=hour), 1000 - hour) for hour in range(40)]
    assert full_at(hours, 900, START + timedelta(hours=40)) is None


def test_a_full_disk_is_full_now():
    assert full_at([], 0, START) == START


def test_later_than_ten_years_is_never():
    assert forecast([4_000_000 - 1000 * day for day in range(100)]) is None
    assert forecast([3_000_000 - 1000 * day for day in range(100)]) == pytest.approx(2901, abs=1)


@pytest.mark.parametrize("period", [1, 7, 28, 30, 31])
@pytest.mark.parametrize("top", [320, 1000])
def test_a_bounded_saw_tooth_is_not_full_soon(period, top):
    """Also on the eve of a cleanup. Windows of 31 days cut shorter teeth differently: that is a day far away, never a near one."""
    low = top - 10 * (period - 1)
    free = saw(200, period=period, top=top)
    for day in range(70, 200):
        left = forecast(free[: day + 1])
        assert left is None or left > low * 31 / 20, day


def test_a_bounded_saw_tooth_with_noise_is_not_full_soon():
    """Low points at 30 % of a tooth: noise makes days far away, none near."""
    for seed in range(5):
        free = saw(200, top=400, noise=3, seed=seed)
        for day in range(70, 200):
            left = forecast(free[: day + 1])
            assert left is None or left > 60, (seed, day)


def test_calendar_months_are_no_trend():
    free, left = [], 400
    for day in range(365):
        left = 400 if (START + day * DAY).day == 1 else left - 10
        free.append(left * GIB)
    for day in range(70, 365):
        left = forecast(free[: day + 1])
        assert left is None or left > 60, day


def test_a_saw_tooth_that_sinks_is_full_at_its_low_point():
    """Each low point is 40 lower: the forecast must be right within one period, wherever in the tooth it is asked."""
    free = saw(600, creep=40)
    full = next(day for day, value in enumerate(free) if value <= 0)
    for day in range(95, full):
        assert day + forecast(free[: day + 1]) == pytest.approx(full, abs=max(35, (full - day) / 5)), day


def test_the_first_month_follows_the_fall_it_has_seen():
    """It cannot know of a cleanup that never came: a limit, and one that errs to the early side."""
    assert forecast(saw(30, top=400)) == pytest.approx(11, abs=1)


def test_after_the_first_cleanup_the_next_is_expected():
    free = saw(75, top=400)
    assert all(left is None or left > 20 for left in (forecast(free[: day + 1]) for day in range(36, 75)))


def test_a_dip_of_a_day_is_forgotten():
    free = [500 * GIB] * 100
    free[90] = 10 * GIB
    assert forecast(free) is None


def test_a_step_stays_a_trend_for_a_month_only():
    free = [900 * GIB] * 70 + [600 * GIB] * 70
    assert forecast(free[:85]) is not None
    assert forecast(free[:105]) is None


def test_a_sudden_fall_is_seen_at_once():
    free = saw(95)
    for _ in range(4):
        free.append(free[-1] - 100 * GIB)
    assert forecast(free) == pytest.approx(free[-1] / (100 * GIB), abs=1.5)
    assert forecast(saw(99)) is None


def test_a_weekly_archive_is_no_sudden_fall():
    free = [(3000 - 10 * day - 60 * (day // 7)) * GIB for day in range(100)]
    for day in range(75, 100):
        assert forecast(free[: day + 1]) > 25, day


def test_many_samples_a_day_and_gaps_change_nothing():
    free = [(START + timedelta(hours=hour), 1000 * GIB - hour * GIB // 6) for hour in range(24 * 90)]
    now = free[-1][0]
    whole = full_at(free, free[-1][1], now)
    rng = random.Random(2)
    some = full_at(rng.sample(free, 300), free[-1][1], now)
    assert abs(some - whole) < 10 * DAY
    off = [sample for sample in free if not 20 <= (now - sample[0]) / DAY < 28]
    assert abs(full_at(off, free[-1][1], now) - whole) < 10 * DAY


def test_samples_from_the_future_are_ignored():
    free = [(START + day * DAY, 1000 - day) for day in range(50)]
    now = free[-1][0]
    future = [(now + day * DAY, 1) for day in range(1, 30)]
    assert full_at([*free, *future], 951, now) == full_at(free, 951, now)


def test_one_step_in_the_first_weeks_is_no_trend():
    assert forecast([1000] * 8 + [500] * 2) is None


def test_the_lowest_hour_of_a_day_counts():
    """Working files of the night are part of what must fit."""
    free = [
        (START + day * DAY + timedelta(hours=hour), low - 4 * day)
        for day in range(90)
        for hour, low in ((0, 1400), (2, 1000), (3, 1400))
    ]
    now = free[-1][0]
    assert (full_at(free, free[-1][1], now) - now) / DAY == pytest.approx((1000 - 4 * 89) / 4, abs=2)


histories = st.lists(st.tuples(st.integers(0, 200 * 24), st.integers(0, 1 << 50)), max_size=80)


@given(histories, st.integers(-5, 1 << 50))
def test_a_forecast_is_never_in_the_past(history, free):
    now = START + 200 * DAY
    at = full_at([(START + timedelta(hours=hour), value) for hour, value in history], free, now)
    assert at is None or now <= at < now + 3651 * DAY


@given(st.integers(10, 60), st.lists(st.integers(1, 50_000), min_size=2, unique=True))
def test_a_steeper_fall_is_full_sooner(days, paces):
    dates = [forecast([1_000_000_000 - pace * day for day in range(days)]) for pace in sorted(paces)]
    for slow, steep in pairwise(dates):
        assert slow is None or (steep is not None and steep < slow)
