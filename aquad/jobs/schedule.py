"""Cron rules, with a law of their own for the days on which clocks are changed. No I/O: the time is passed in.

A rule with a fixed hour (no `*` and no `/` in that field) is a promise of the local calendar: each slot comes once a
local day. Where the clocks jump over it, it comes at the first minute after the jump; where they go back, only the first
time. A rule with `*` or `/` there is a pace: it fires at every minute whose local time matches, in both passes of an hour
that comes twice, and nothing is made up for an hour that does not come.

cronsim is asked for local times only, never with a zone: its stepping through a zone loses slots where the clocks change
by half an hour (Lord Howe), and its rules for fixed hours differ from ours.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import heappop, heappush
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING

from cronsim import CronSim, CronSimError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CLOSEST_MINUTES = 5
"""A backup takes minutes: a rule that fires more often is a slip of the pen."""
PIECE = r"(?:\*|\d{1,2}(?:-\d{1,2})?)(?:/\d{1,2})?"
HIGHEST = (59, 23, 31, 12, 7)
FIELDS = "five fields of numbers: minute 0-59, hour 0-23, day 1-31, month 1-12, weekday 0-7 (Sunday is 0 and 7)"


class Rule:
    """A cron rule of five fields in a time zone. Moments are aware, of any zone; slots are whole minutes, in UTC.

    Day and weekday are read as Debian's cron reads them: where one begins with `*` both have to match, else one is enough.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        """Raises ValueError that says what is allowed."""
        self._expression, self._zone = _checked(expression), zone
        self._fixed = not {"*", "/"} & set(self._expression.split()[1])
        try:
            self.after(datetime(2000, 1, 1, tzinfo=UTC))
        except OverflowError as error:  # such as 30 2/22 31 3 */7: on each such Sunday Berlin leaves 02:30 out
            raise ValueError(
                "a rule that fires; this one finds no minute in its time zone until the year 9999"
            ) from error

    def after(self, moment: datetime) -> datetime:
        """The first slot later than `moment`."""
        return next(self._from(moment))

    def slots(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Those later than `after` and not later than `until`, in order."""
        return takewhile(lambda slot: slot <= until, self._from(after))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The newest of `slots`, looked for in longer and longer spans that end at `until`: years of downtime are not walked."""
        until = until.astimezone(UTC)
        whole = until - after.astimezone(UTC)
        span = min(HOUR, whole)
        while not (newest := deque(self.slots(until - span, until), maxlen=1)) and span < whole:
            span = min(2 * span, whole)
        return newest[0] if newest else None

    def count(self, after: datetime, until: datetime, at_most: int) -> int:
        return sum(1 for _ in islice(self.slots(after, until), at_most))

    def _from(self, moment: datetime) -> Iterator[datetime]:
        """All that are later than `moment`, in order.

        Local times come in the order of their first passes; second passes are held back until it is their turn.
        """
        last = moment.astimezone(UTC)
        wall = moment.astimezone(self._zone).replace(tzinfo=None, fold=0)
        first, second = self._offsets(wall)
        held: list[datetime] = []
        # Within an hour that comes twice, also local times that are over may come again.
        for match in CronSim(self._expression, wall - (first - second)):
            instants = self._instants(match)
            for instant in instants:
                heappush(held, instant)
            while instants and held and held[0] <= instants[0]:
                slot = heappop(held)
                if slot > last:
                    last = slot
                    yield slot

    def _instants(self, wall: datetime) -> Sequence[datetime]:
        """When the rule fires for a local time that matches: once, in some hours of the year twice or never."""
        first, second = self._offsets(wall)
        instant = wall.replace(tzinfo=UTC)
        if first == second:
            return (instant - first,)
        if first > second:
            return (instant - first,) if self._fixed else (instant - first, instant - second)
        return (self._end_of_gap(instant - second, instant - first),) if self._fixed else ()

    def _end_of_gap(self, earlier: datetime, later: datetime) -> datetime:
        """The first minute after the change of the clocks that lies between the two."""
        offset = later.astimezone(self._zone).utcoffset()
        minutes = range((later - earlier) // MINUTE)
        changed = bisect_left(
            minutes, True, key=lambda minute: (earlier + minute * MINUTE).astimezone(self._zone).utcoffset() == offset
        )
        return earlier + changed * MINUTE

    def _offsets(self, wall: datetime) -> tuple[timedelta, timedelta]:
        """Of the two passes of a local time: equal on all days but those on which the clocks are changed."""
        first, second = (wall.replace(tzinfo=self._zone, fold=fold).utcoffset() for fold in (0, 1))
        return first or timedelta(), second or timedelta()


def _checked(expression: str) -> str:
    fields = expression.split()
    if len(fields) != len(HIGHEST) or not all(map(_well_formed, fields, HIGHEST)):
        raise ValueError(FIELDS)
    # cronsim reads 5-5/10 as 5-59/10.
    text = re.sub(r"(\d+)-(\d+)/\d+", lambda m: m[1] if int(m[1]) == int(m[2]) else m[0], " ".join(fields))
    try:
        rule = CronSim(text, datetime(2000, 1, 1))  # noqa: DTZ001 - local times have no zone
    except CronSimError as error:
        # Of 32 as of 30 February it says that the day is bad.
        fault = "a day of the month that its months have (30 2 never comes)" if "day-of-month" in str(error) else FIELDS
        raise ValueError(fault) from error
    times = sorted(hour * 60 + minute for hour in rule.hours for minute in rule.minutes)
    if min(b - a for a, b in pairwise([*times, times[0] + 24 * 60])) < CLOSEST_MINUTES:
        raise ValueError(f"a rule that leaves {CLOSEST_MINUTES} minutes or more from one firing to the next")
    return text


def _well_formed(field: str, highest: int) -> bool:
    """The numbers themselves are cronsim's to check; but it takes names, `L` and `#` too, and steps over all bounds."""
    steps = (int(step) for step in re.findall(r"/(\d+)", field))
    return bool(re.fullmatch(rf"{PIECE}(?:,{PIECE})*", field, re.ASCII)) and all(step <= highest for step in steps)
