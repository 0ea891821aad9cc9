"""The disk of the repository: how full it is, when it will be full, and whether a run may start. Pure: bytes and times in.

The forecast must live with saw-teeth: free space falls each night and comes back with the monthly cleanup, so the pace of the
last weeks says nothing of the year. What counts is whether the low points fall from one period to the next.

Limits of `full_at`, on purpose:
- it knows of no cleanup that it has not seen: before the first one it goes on with the fall so far;
- cleanups must come at least every 31 days;
- a single large step (somebody stored something) is taken for a trend until it is 31 days old;
- a fall that has just begun shows after about four days, if it is twice as steep as the steepest week before, and else after weeks.
Measured on 50 simulated disks, each asked on 130 days, whose saw-tooth is bounded (noise: a third of a day's fall): the nearest day
it named was 229 days away, while a plain slope of 30 days says "within two weeks" on one day in ten.
The levels and the check before each run stand beside it for that reason.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

from aquad.observe.reports import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WARNING, CRITICAL = 80, 85
"""Per cent used."""

DAY = timedelta(days=1)

PERIOD = 31
"""Days that hold a low point of every saw-tooth: the longest month."""

TREND = 30
"""Days whose slope is taken while there are not two periods to compare."""

SPRINT = 7
"""Days in which a sudden fall is looked for. A week: the weekly archive must not look like one."""

HORIZON = 3650
"""Days; a disk that is full later than that is not filling up."""


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


def level(size_bytes: int, free_bytes: int, used_bytes: int | None = None) -> Level:
    """`free_bytes`: what we may still write (`f_bavail`). `used_bytes` (`f_blocks - f_bfree`) makes the share that of `df`.

    `df` leaves out what is kept for root, used / (used + free). Without `used_bytes` that part counts as used: earlier, never later.
    """
    used = size_bytes - free_bytes if used_bytes is None else used_bytes
    whole = used + free_bytes
    if whole <= 0:  # some file systems in user space tell no size
        return Level.OK
    if 100 * used >= CRITICAL * whole:
        return Level.CRITICAL
    return Level.WARNING if 100 * used >= WARNING * whole else Level.OK


def full_at(samples: Sequence[tuple[datetime, int]], free_bytes: int, now: datetime) -> datetime | None:
    """The day on which nothing is free, from (time, free bytes) of the past. None: free space does not fall, or fewer than 3 days are known."""
    if free_bytes <= 0:
        return now
    days = _lowest_of_days([*samples, (now, free_bytes)], now)
    if len(days) < 3:
        return None
    left = [left for left in (_by_low_points(days, free_bytes), _by_sprint(days, free_bytes)) if left is not None]
    soonest = max(min(left, default=HORIZON), 0)
    return now + soonest * DAY if soonest < HORIZON else None


def needed(history_stored_bytes: Sequence[int]) -> int:
    """What the next run may need, from the sizes of those before it, oldest first; 0 with none.

    A fifth more than the last, for growth. And no less than the largest of a week, because the last may have been a small one.
    """
    if not history_stored_bytes:
        return 0
    return max(-(-history_stored_bytes[-1] * 6 // 5), *history_stored_bytes[-7:])


def shortage(*, size: int, free: int, expected: int, reserve: int, last: int, shares_device_with: str | None) -> str:
    """Why a run that needs `expected` bytes must not start; empty if it may.

    `last`: stored bytes of the last run. `shares_device_with`: the source on the same disk, as a person knows it. Filling the disk
    of a live database breaks what the backup is for, so more must stay free there: a tenth, and room for two more such runs.
    """
    keep, why = reserve, "the reserve"
    if shares_device_with is not None:
        for least, reason in ((-(-size // 10), "a tenth of the disk"), (2 * last, "twice the last backup")):
            if least > keep:
                keep, why = least, f"{reason}, because {shares_device_with} is on the same disk"
    if free - expected >= keep:
        return ""
    return f"{human_bytes(free)} are free, about {human_bytes(expected)} are needed, and {human_bytes(keep)} must stay free ({why})"


def _lowest_of_days(samples: Sequence[tuple[datetime, int]], now: datetime) -> dict[int, int]:
    """The lowest free space of each day, by its age. Days count back from now: no zone is involved. The future is ignored."""
    days: dict[int, int] = {}
    for at, free in samples:
        if at <= now:
            age = (now - at) // DAY
            days[age] = min(free, days.get(age, free))
    return days


def _by_low_points(days: Mapping[int, int], free: int) -> float | None:
    """Days that are left when the low points go on as they fell from one period to the next."""
    width = min((max(days) + 1) // 2, PERIOD)
    recent = _low_point({age: value for age, value in days.items() if age < width})
    before = _low_point({age: value for age, value in days.items() if width <= age < 2 * width})
    if recent is None or before is None:
        return None
    pace = (before[1] - recent[1]) / width
    if width == PERIOD:
        return recent[1] / pace - recent[0] if pace > 0 else None
    # Not yet two periods: the low points of short windows, and the slope of the days, must both say that it falls.
    pace = min(pace, _pace({age: value for age, value in days.items() if age < TREND}))
    return free / pace if pace > 0 else None


def _low_point(days: Mapping[int, int]) -> tuple[int, int] | None:
    """Age and value of the lowest day but a few: a tenth may be dips, such as a large file that was there for a day."""
    lowest = sorted(days.items(), key=lambda day: day[1])
    return lowest[len(lowest) // 10] if lowest else None


def _by_sprint(days: Mapping[int, int], free: int) -> float | None:
    """Days that are left at the pace of this week, if that is twice the pace of any week before."""
    weeks = [
        _pace({age: days[age] for age in range(start, start + SPRINT) if age in days})
        for start in range(SPRINT, min(max(days) + 1, SPRINT + 2 * PERIOD))
    ]
    pace = _pace({age: days[age] for age in range(SPRINT) if age in days})
    if not weeks or pace <= 0 or pace < 2 * max(weeks):
        return None
    return free / pace


def _pace(days: Mapping[int, int]) -> float:
    """Bytes a day by which free space falls: Theil and Sen's median of the slopes between all pairs of days."""
    points = sorted(days.items())
    slopes = [
        (old - young) / (old_age - young_age)
        for at, (young_age, young) in enumerate(points)
        for old_age, old in points[at + 1 :]
    ]
    return median(slopes) if slopes else 0.0
