"""H6, H8: cron rules against a walk over all real minutes. The walk knows neither cronsim nor Rule."""

import os
import random
import re
import time
from array import array
from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from itertools import islice, product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquad.jobs.schedule import Rule

YEARS = 10 if os.environ.get("AQUAD_FAULTS") == "all" else 2
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ZONES = {  # and where the years begin; a 29 February is in the first two everywhere
    "UTC": date(2022, 3, 1),
    "Europe/Berlin": date(2022, 3, 1),
    "America/New_York": date(2022, 3, 1),
    "Australia/Lord_Howe": date(2022, 3, 1),  # by half an hour
    "Africa/Casablanca": date(2022, 3, 1),  # back for Ramadan
    "Europe/Moscow": date(2010, 3, 1),  # summer time until 2010, for good in 2011, and off again in 2014
    "Africa/Cairo": date(2022, 3, 1),  # the gap begins at midnight, since 2023
    "America/Nuuk": date(2022, 3, 1),  # the gap ends at midnight, the fold goes back to the day before
}
EXPRESSIONS = [
    "0 2 * * *",
    "30 2 * * *",
    "*/15 2 * * *",
    "0 3 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "15 1-3 * * *",
    "0,5,30,55 1,2,3 * * *",
    "7-59/13 2 * * *",
    "5-5/10 2 * * *",
    "0 1 * * 0",
    "0 1 * * 7",
    "30 2 * * 5-7",
    "0 3 1 * *",
    "45 1 29 2 *",
    "30 2 13 * 5",  # one of both
    "30 2 */2 * 0,3",  # both
    "0 2 25-31 3,10 */7",  # both: the Sundays on which most of Europe changes its clocks
    "30 2 31 1-12/2 *",
    "0 */6 * * *",
    "*/30 * * 3-4,10-11 *",
    "45 * * * *",
    "10 1/2 * 3-4 0",
    "0 0-4/2 * * 1",
    "*/30 */3 29 2 0",
]
DENSE = ["*/30 * * * *", "*/15 */2 * * *", "*/20 0-4,22-23 * * *"]
ALL = EXPRESSIONS + DENSE


def real(minute):
    return EPOCH + minute * MINUTE


def minute_of(moment):
    return (moment - EPOCH) // MINUTE


@cache
def years(name):
    """From and until, as minutes since 1970."""
    begin = ZONES[name]
    return tuple(
        minute_of(datetime(year, begin.month, begin.day, tzinfo=UTC)) for year in (begin.year, begin.year + YEARS)
    )


@cache
def walked(name):
    """When each local minute of those years comes first, and when it comes again."""
    zone = ZoneInfo(name)
    offset = lambda minute: real(minute).astimezone(zone).utcoffset() // MINUTE
    start, stop = years(name)
    base = start - 5 * 1440
    first, again = array("q", [-1]) * (stop - start + 10 * 1440), {}
    for hour in range(start - 3 * 1440, stop + 3 * 1440, 60):
        same = offset(hour) if offset(hour) == offset(hour + 60) else None
        for minute in range(hour, hour + 60):
            local = minute + (offset(minute) if same is None else same)
            if first[local - base] < 0:
                first[local - base] = minute
            else:
                again[local] = minute
    return base, first, again


def values(field, low, high):
    found = set()
    for piece in field.split(","):
        span, stepped, step = piece.partition("/")
        begin, ranged, end = span.partition("-")
        if span == "*":
            begin, end = low, high
        elif not ranged:
            end = high if stepped else begin
        found |= set(range(int(begin), int(end) + 1, int(step or 1)))
    return found


@cache
def expected(name, expression):
    """The slots of those years, as minutes since 1970."""
    base, first, again = walked(name)
    start, stop = years(name)
    fields = zip(expression.split(), ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)), strict=True)
    minutes, hours, days, months, weekdays = (values(field, *bounds) for field, bounds in fields)
    day_field, hour_field, weekday_field = (expression.split()[number] for number in (2, 1, 4))
    combine = all if "*" in (day_field[0], weekday_field[0]) else any
    found = set()
    for number in range(start // 1440 - 2, stop // 1440 + 2):
        day = date(1970, 1, 1) + number * DAY
        weekday = day.isoweekday()
        if day.month not in months or not combine([day.day in days, weekday in weekdays or weekday % 7 in weekdays]):
            continue
        for hour, minute in product(hours, minutes):
            local = number * 1440 + hour * 60 + minute
            if "*" in hour_field or "/" in hour_field:
                found |= {first[local - base], again.get(local, -1)}
            else:
                while first[local - base] < 0:
                    local += 1
                found.add(first[local - base])
    return sorted(minute for minute in found if start < minute <= stop)


@cache
def changes(name):
    """The real minutes at which the clocks are changed."""
    zone = ZoneInfo(name)
    offset = lambda minute: real(minute).astimezone(zone).utcoffset()
    return [
        minute
        for hour in range(*years(name), 60)
        if offset(hour) != offset(hour + 60)
        for minute in range(hour + 1, hour + 61)
        if offset(minute - 1) != offset(minute)
    ]


@cache
def rule(name, expression):
    return Rule(expression, ZoneInfo(name))


def test_the_years_of_the_walk_hold_changes_of_the_clocks():
    assert changes("UTC") == []
    assert all(len(changes(name)) >= 2 for name in ZONES if name != "UTC")
    assert {len(walked(name)[2]) // 30 for name in ("Europe/Berlin", "America/New_York")} == {2 * YEARS}
    assert len(walked("Australia/Lord_Howe")[2]) == 30 * YEARS
    assert len(walked("Africa/Casablanca")[2]) == (120 if YEARS == 2 else 660)  # two Ramadans begin in 2030
    assert len(walked("Europe/Moscow")[2]) == (60 if YEARS == 2 else 120)


@pytest.mark.parametrize("name", ZONES)
def test_H6_every_slot_of_years_is_that_of_a_walk_over_all_minutes(name):
    start, stop = map(real, years(name))
    # Of the dense ones two years of the zone with most changes; of the others their days of changes, below.
    for expression in ALL if YEARS > 2 or name == "Africa/Casablanca" else EXPRESSIONS:
        slots = list(rule(name, expression).slots(start, stop))
        assert all(slot.tzinfo is UTC for slot in slots)
        assert slots == [real(minute) for minute in expected(name, expression)], expression


@pytest.mark.parametrize("name", ZONES)
def test_H6_the_next_slot_is_the_same_from_every_moment_around_a_change(name):
    """Whoever starts in the first pass of an hour, in the second, or a second before a gap."""
    _, stop = years(name)
    for change, expression in product(changes(name), ALL):
        slots = expected(name, expression)
        for minute in (
            *range(change - 130, change + 130, 9),
            change - 60,
            change - 30,
            change,
            change + 30,
            change + 60,
        ):
            place = bisect_right(slots, minute)
            if minute >= stop or place == len(slots):
                continue
            moment = real(minute) + timedelta(seconds=(minute * 7) % 60, microseconds=minute % 3)
            assert rule(name, expression).after(moment) == real(slots[place]), (expression, moment)
            assert rule(name, expression).after(real(slots[place]) - timedelta(microseconds=1)) == real(slots[place])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_H6_slots_after_latest_and_count_agree_from_any_moment(data):
    name, expression = data.draw(st.sampled_from(list(ZONES))), data.draw(st.sampled_from(ALL))
    start, stop = years(name)
    begin = data.draw(st.integers(start, stop - 60 * 1440))
    if data.draw(st.booleans()) and changes(name):
        begin = min(data.draw(st.sampled_from(changes(name))) + data.draw(st.integers(-200, 200)), stop)
    zone = data.draw(st.sampled_from([UTC, ZoneInfo(name), ZoneInfo("Asia/Kathmandu"), timezone(-DAY / 3)]))
    after = (real(begin) + timedelta(microseconds=data.draw(st.integers(0, 59_999_999)))).astimezone(zone)
    until = after.astimezone(UTC) + timedelta(minutes=data.draw(st.integers(-5, 10_000)))
    mine = rule(name, expression)
    slots = list(mine.slots(after, until))

    assert slots == [real(m) for m in expected(name, expression) if after < real(m) <= until] or until > real(stop)
    assert slots == sorted(set(slots))
    assert mine.latest(after, until.astimezone(zone)) == (slots[-1] if slots else None)
    for at_most in (0, 1, 3, 10_000):
        assert mine.count(after, until, at_most) == min(len(slots), at_most)
    stepped, moment = [], after
    while (moment := mine.after(moment)) <= until:
        stepped.append(moment)
    assert stepped == slots
    for slot in slots[:20]:
        assert mine.after(slot - timedelta(microseconds=1)) == slot
        assert mine.latest(slot - MINUTE, slot) == slot


def local(zone, expression, begin, until):
    """The slots between two days, as local time and what it is called there."""
    span = (datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) for day in (begin, until))
    return [f"{slot.astimezone(ZoneInfo(zone)):%d %H:%M %Z}" for slot in Rule(expression, ZoneInfo(zone)).slots(*span)]


@pytest.mark.parametrize(
    ("expression", "slots"),
    [
        ("30 2 * * *", ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"]),
        ("0 2 * * *", ["28 02:00 CET", "29 03:00 CEST", "30 02:00 CEST"]),
        ("0 2-3 29 * *", ["29 03:00 CEST"]),
        ("*/15 2 29 * *", ["29 03:00 CEST"]),
        ("30 2,3 29 * *", ["29 03:00 CEST", "29 03:30 CEST"]),
        ("30 */2 29 3 */7", [f"29 {hour:02}:30 CE{'S' * (hour > 2)}T" for hour in range(0, 24, 2) if hour != 2]),
        ("30 * 29 3 */7", [f"29 {hour:02}:30 CE{'S' * (hour > 2)}T" for hour in range(24) if hour != 2]),
    ],
)
def test_H6_in_the_gap_of_spring_a_fixed_hour_comes_at_its_end(expression, slots):
    assert local("Europe/Berlin", expression, "2026-03-28", "2026-03-31") == slots


@pytest.mark.parametrize(
    ("expression", "slots"),
    [
        ("30 2 * * *", ["24 02:30 CEST", "25 02:30 CEST", "26 02:30 CET"]),
        ("0 2 25 * *", ["25 02:00 CEST"]),
        ("*/30 1-3 25 * *", ["25 01:00 CEST", "25 01:30 CEST", "25 02:00 CEST", "25 02:30 CEST", "25 03:00 CET", "25 03:30 CET"]),
        ("*/30 2/24 25 * *", None),
        ("*/30 2/12 25 * *", [*(f"25 02:{minute} CE{s}T" for s in ("S", "") for minute in ("00", "30")), "25 14:00 CET", "25 14:30 CET"]),
    ],
)  # fmt: skip
def test_H6_in_the_fold_of_autumn_a_fixed_hour_comes_once(expression, slots):
    if slots is None:
        with pytest.raises(ValueError, match="five fields"):
            Rule(expression, UTC)
    else:
        assert local("Europe/Berlin", expression, "2026-10-24", "2026-10-27") == slots


def test_H6_at_lord_howe_the_half_hour_that_comes_twice_is_not_lost():
    """What cronsim loses when it steps through the zone: 01:45 again, and 02:00."""
    assert local("Australia/Lord_Howe", "45 * * * *", "2026-04-05T00:00", "2026-04-05T03:00") == [
        "05 00:45 +11",
        "05 01:45 +11",
        "05 01:45 +1030",
        "05 02:45 +1030",
    ]
    assert local("Australia/Lord_Howe", "*/15 */2 * * *", "2026-04-05T00:45", "2026-04-05T02:30") == [
        "05 02:00 +1030",
        "05 02:15 +1030",
        "05 02:30 +1030",
    ]


def test_H6_a_day_that_a_zone_left_out_is_made_up_for_once():
    assert local("Pacific/Apia", "30 2 * * *", "2011-12-29", "2012-01-01") == ["29 02:30 -10", "31 00:00 +14", "31 02:30 +14"]  # fmt: skip


def test_H1_three_years_of_downtime_cost_milliseconds():
    until = datetime(2026, 10, 25, 0, 59, 59, tzinfo=UTC)
    for expression in [*ALL, "*/5 * * * *", "*/5 * 29 2 *", "0 2 29 2 */7"]:
        mine = rule("Europe/Berlin", expression)
        costs = []
        for _ in range(3):
            begun = time.perf_counter()
            newest = mine.latest(until - 3 * 365 * DAY, until)
            costs.append(time.perf_counter() - begun)
        assert min(costs) < 0.05, expression
        assert newest is None or (newest <= until < mine.after(newest))
        if len(slots := list(islice(mine.slots(until - 3 * 365 * DAY, until), 2000))) < 2000:
            assert newest == (slots[-1] if slots else None), expression
    assert rule("Europe/Berlin", "*/5 * * * *").count(until - 3 * 365 * DAY, until, 100) == 100


def test_sunday_is_0_and_7_and_debian_joins_day_and_weekday():
    start, stop = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    days = lambda text: {slot.date() for slot in Rule(text, UTC).slots(start, stop)}
    assert days("0 1 * * 0") == days("0 1 * * 7") == days("0 1 * * */7") == days("0 1 * * 7,0")
    assert all(day.isoweekday() == 7 for day in days("0 1 * * 0"))
    assert {day.day == 13 or day.isoweekday() == 5 for day in days("0 1 13 * 5")} == {True}
    assert len(days("0 1 13 * 5")) == 12 + 52 - 3
    assert days("0 1 */1 * 5") == days("0 1 * * 5")
    assert days("0 1 1-31 * 5") == days("0 1 * * *")


@pytest.mark.parametrize(
    "expression",
    ["0 0 30 2 *", "0 0 31 2 *", "0 2 31 4,6,9,11 *", "0 2 30-31 2 */2", "0 2 30,31 2 *", "0 2 31/1 4 *", "0 2 32 * *"],
)
def test_H8_rules_that_never_fire_are_refused(expression):
    with pytest.raises(ValueError, match="a day of the month that its months have"):
        Rule(expression, UTC)


def test_H8_a_pace_that_only_falls_into_gaps_is_refused():
    assert Rule("30 2/22 31 3 */7", UTC).after(EPOCH) > EPOCH
    with pytest.raises(ValueError, match="finds no minute in its time zone"):
        Rule("30 2/22 31 3 */7", ZoneInfo("Europe/Berlin"))


def test_H8_rare_rules_fire():
    assert Rule("0 0 30 2 1", UTC).after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 2, 2, tzinfo=UTC)
    # No leap year in 2100: forty years without a Sunday on 29 February.
    leap_sunday = Rule("0 0 29 2 */7", UTC)
    assert leap_sunday.after(datetime(2088, 3, 1, tzinfo=UTC)) == datetime(2128, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "*/4 * * * *", "*/2 2 * * *", "0-59 2 * * *", "0,1 2 * * *", "5,9 1 1 1 *", "*/7 * * * *", "0,58 * * * *", "0,56 2-3 * * *", "59 23 * * *,", "58,1 23,0 * * *"],
)  # fmt: skip
def test_H8_rules_closer_than_five_minutes_are_refused(expression):
    with pytest.raises(ValueError, match=r"5 minutes or more|five fields"):
        Rule(expression, UTC)


@pytest.mark.parametrize("expression", ["*/5 * * * *", "0,58 2 * * *", "0,55 * * * *", "4-59/5 1 * * *", "0 * * * *", "*/9 0-22/2 * * *", "0,59 1-23/2 * * *"])  # fmt: skip
def test_H8_rules_as_close_as_five_minutes_are_not(expression):
    assert Rule(expression, UTC).after(EPOCH) > EPOCH


NOT_A_FIELD = ["", "-", "-1", "1-", "a", "L", "1L", "LW", "W", "?", "#", "1#1", "H", "1,", ",1", "1,,2", "1-2-3", "1--2", "*/", "*/0", "/5", "*/*", "*-5", "**", "1/2/3", "3-1", "1.5", "+1", "0x1", "1e1", "99", "100", "1-99", "*/99", "1/-1", "٣", "½", "\uff11", "*\0", "@", "JAN", "mon", "MON-FRI", "_1", "9" * 5000, "é", "1;2", "~", "R"]  # fmt: skip
BAD = [
    *{
        " ".join([*start[:place], field, *start[place + 1 :]])
        for place, field in product(range(5), NOT_A_FIELD)
        for start in (["0", "2", "*", "*", "*"], ["*/15", "1-3", "1", "1", "1"])
    },
    *(f"{start}{top}{rest}" for start, top, rest in [("", 60, " * * * *"), ("0 ", 24, " * * *"), ("0 2 ", 32, " * *"), ("0 2 ", 0, " * *"), ("0 2 * ", 13, " *"), ("0 2 * ", 0, " *"), ("0 2 * * ", 8, "")]),
    *["", " ", "*", "0 2", "0 2 * *", "0 2 * * * *", "* * * * * *", "0 0 2 * * *", "0 2 * * * root", "@daily", "@reboot", "@every 5m", "daily", "off", "every day", "0 2 * * *;", "02:00", "0 2 * * * # nightly", "0\0 2 * * *", "TZ=UTC 0 2 * * *", "*/60 * * * *", "0 */24 * * *", "*/90 * * * *"],
]  # fmt: skip


def test_H8_hundreds_of_bad_expressions_are_refused():
    assert len(set(BAD)) >= 400
    for expression in BAD:
        with pytest.raises(ValueError) as caught:
            Rule(expression, UTC)
        assert type(caught.value) is ValueError, expression
        assert re.match(r"five fields of numbers|a rule that leaves|a day of the month", str(caught.value)), expression


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.text(max_size=30)
    | st.lists(st.text("0123456789*,-/ ", max_size=6), min_size=4, max_size=6).map(" ".join)
    | st.tuples(*[st.text("0123456789*,-/LW#", min_size=1, max_size=4)] * 5).map(" ".join)
)
def test_H8_any_text_is_a_rule_or_a_value_error(text):
    try:
        mine = Rule(text, UTC)
    except ValueError as error:
        assert type(error) is ValueError
    else:
        assert mine.after(EPOCH) > EPOCH


def test_H8_whatever_is_accepted_fires_as_the_walk_says():
    """Random rules of all shapes: those that Rule takes have the slots of the walk, also after a change of the clocks."""
    dice = random.Random(8)
    accepted = 0
    while accepted < 150:
        expression = " ".join(_field(dice, low, high) for low, high in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)))
        try:
            Rule(expression, UTC)
        except ValueError:
            continue
        accepted += 1
        name = dice.choice(list(ZONES))
        start, stop = map(real, years(name))
        slots = list(islice(rule(name, expression).slots(start, stop), 1000))
        assert slots == [real(minute) for minute in expected(name, expression)[:1000]], (name, expression)


def _field(dice, low, high):
    begin, end = sorted((dice.randint(low, high), dice.randint(low, high)))
    step = dice.randint(1, high)
    return dice.choice(["*", "*", "*", f"*/{step}", f"{begin}", f"{begin}-{end}", f"{begin}-{end}/{step}", f"{begin}/{step}", f"{begin},{end}"])  # fmt: skip
