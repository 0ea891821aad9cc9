"""Is the size, the duration or the number of rows of a component unlike its own history? Pure: numbers in, one sentence out.

Logarithms, because sizes move by factors: half is as far away as double. Medians, because one bad night in the history must not
hide the next. The caller passes what was measured since the last `accept`, oldest first; what was accepted is nobody's news.

What is told apart from an anomaly, and how:
- growth: a robust slope carries the median forward. A trend never excuses shrinking: who loses 5 % a day wants to hear of it.
- a weekly rhythm: what one backup in seven does is part of the usual spread.
- rotation (a log that starts again each month): the same deviation came back twice before, at equal distances.

Limits: a change that stays becomes the usual after half of the window, without `accept` (nothing at all never does). A rotation
is known after its second time: a log that starts again each month, and is all there is, means 20 alarms in the first four months
and none after (10 simulated years). The third of three incidents at equal distances is taken for one.

Measured over 200 simulated years of dailies for each shape (still, 1 to 3 % growth a day, quiet or busy weekends):
- false alarms: at most 0.08 a year where values move by 10 % (standard deviation), none at 2 %;
- found at 10 %: 73 % of what falls to exactly a half, 92 % to 0.45, 68 % of what doubles, all that falls to a tenth or to nothing
  (with quiet weekends 50, 74 and 46 %); at 2 % all of these, and changes by 30 %, but with quiet weekends half of the halvings;
- a leak of 5 % a day, found within 30 days in a still component: at 2 % always, in the median on day 5. At 10 % losing always
  (day 13), growing hardly ever (4 %), and with quiet weekends never: it looks like growth, and the forecast of the disk
  (`space.full_at`) is the alarm for it.
"""

from __future__ import annotations

from datetime import datetime
from math import expm1, log, log1p
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.observe.reports import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

Measure = Literal["size", "duration", "rows"]

WINDOW = 30
"""Backups that say what is usual: a month of dailies, a week of dumps every six hours."""

ENOUGH = 7
"""Samples before anything is judged: a week of dailies has seen each day of the week."""

MEMORY = 100
"""Backups among which a rotation is looked for: three months of dailies."""

THRESHOLD = 6.0
"""In scaled MADs. The MAD of so few values is itself uncertain by a fifth; 6 of them are at least 4 real deviations. At 5, false
alarms are three times as many (0.09 a year for a still component of 10 % noise), for 14 % more halvings found."""

VISIBLE = 1.25
"""A quarter more, or the same factor less, is the smallest change that is worth a sentence."""

FLOOR = log(VISIBLE) / THRESHOLD
"""The least spread. Equal values have a MAD of 0, and then any byte more would be infinitely unusual; with this floor
a perfectly still component is unlike itself when it moves by the factor `VISIBLE`, and not before."""

SPREAD = 1.19
"""Where the outermost of seven lie under a normal curve, in standard deviations."""

ALIKE = 2 / 3
"""A deviation is like an earlier one if their logarithms differ by no more than this factor."""

GAIN: dict[Measure, int] = {"size": 1 << 20, "rows": 100, "duration": 60}
"""Growth below it disturbs nobody, whatever the factor: no disk fills by it, no night is lost."""

LOSS: dict[Measure, int] = {"size": 4096, "rows": 10}
"""Loss matters sooner: a few configuration files are small, and all there is."""


class Sample(NamedTuple):
    """One measured value of one backup."""

    at: datetime
    value: int


class Anomaly(NamedTuple):
    """`typical`: what was expected. `score`: how far away, in usual deviations. `explanation`: one sentence for a person."""

    component: str
    measure: Measure
    value: int
    typical: int
    score: float
    explanation: str


class _Usual(NamedTuple):
    """`source` says in the sentence where `typical` comes from."""

    typical: int
    scale: float
    source: str


def anomaly(component: str, measure: Measure, history: Sequence[int], value: int) -> Anomaly | None:
    """Judge `value` (bytes, whole seconds, or rows) by `history`, which holds the values before it, oldest first."""
    if value == 0 and measure != "duration":
        usual = _before_nothing(history)
        if usual is None:
            return None
    else:
        if len(history) < ENOUGH:
            return None
        usual = _usual(history)
        if not _unlike(measure, usual, value) or _comes_back(history, _distance(usual, value)):
            return None
    sentence = f"{component}: {_change(measure, usual.typical, value)} ({usual.source})"
    return Anomaly(component, measure, value, usual.typical, _score(usual, value), sentence)


def _usual(history: Sequence[int]) -> _Usual:
    """Median and spread of the last values along their trend."""
    logs = [log1p(value) for value in history[-WINDOW:]]
    count = len(logs)
    middle, slope = median(logs), _growth(logs)
    # What began within the last seven must not widen the spread that it is judged by.
    settled = logs[:-ENOUGH] if count >= 2 * ENOUGH else logs
    left = sorted(value - middle - slope * (at - (count - 1) / 2) for at, value in enumerate(settled))
    # Five equal weekdays make the MAD 0 and each Sunday a wonder. What one in seven does, to either side, is usual too.
    seventh = max(len(left) // ENOUGH, 1)
    outer = (left[-seventh] - left[seventh - 1]) / 2 / SPREAD
    centre = median(left)
    scale = max(FLOOR, 1.4826 * median(abs(value - centre) for value in left), outer)
    typical = round(expm1(middle + slope * (count + 1) / 2))
    what = "backup" if count == 1 else f"{count} backups"
    return _Usual(typical, scale, f"growth over the last {what}" if slope else f"median of the last {what}")


def _growth(logs: Sequence[float]) -> float:
    """Theil and Sen's slope a backup: the median of the slopes between all pairs. 0 for shrinking, and for what nobody would see."""
    slopes = [(logs[late] - logs[early]) / (late - early) for late in range(len(logs)) for early in range(late)]
    slope = median(slopes) if slopes else 0.0
    return slope if slope * len(logs) / 2 > FLOOR else 0.0


def _before_nothing(history: Sequence[int]) -> _Usual | None:
    """What was usual before the nothing began, however long it lasts: it is never its own excuse. None if nothing is usual."""
    before = list(history)
    while before and before[-1] == 0:
        before.pop()
    if len(before) < ENOUGH:
        before = [value for value in before if value]
    if not before or median(before[-WINDOW:]) == 0:
        return None
    return _usual(before)


def _score(usual: _Usual, value: int) -> float:
    return _distance(usual, value) / usual.scale


def _distance(usual: _Usual, value: int) -> float:
    return log1p(value) - log1p(usual.typical)


def _unlike(measure: Measure, usual: _Usual, value: int) -> bool:
    change, score = value - usual.typical, _score(usual, value)
    if measure == "duration":
        # A quick run is no harm, and its missing data shows in size and rows. A slow one is weather until it takes twice as long:
        # the spread of a quiet month knows nothing of a busy disk. Seconds double by the start of a process alone.
        return change >= GAIN[measure] and value >= 2 * usual.typical and score > THRESHOLD
    if change < 0:
        return -change >= LOSS[measure] and (2 * value <= usual.typical or _far(usual, value))
    return change >= GAIN[measure] and (value >= 2 * usual.typical or _far(usual, value))


def _far(usual: _Usual, value: int) -> bool:
    return abs(_score(usual, value)) > THRESHOLD


def _comes_back(history: Sequence[int], distance: float) -> bool:
    """Whether such a deviation stood one and two periods ago, with others between, for any period of at least 3.

    Incidents seldom keep a calendar, rotations do; the slack is a seventh, for months are not equally long. Each old value is
    judged by what was usual at its time: in a growing history all that is old is small.
    """
    marks = []  # marks[0] is the backup before this one
    for at in range(len(history) - 1, max(len(history) - MEMORY, ENOUGH) - 1, -1):
        old = _distance(_usual(history[:at]), history[at])
        marks.append(old * distance > 0 and ALIKE * abs(distance) <= abs(old) <= abs(distance) / ALIKE)
    for period in range(3, len(marks) // 2 + 1):
        slack = period // 7
        once = marks[period - 1 - slack : period + slack]
        twice = marks[2 * period - 1 - slack : 2 * period + slack]
        others = not all(marks[: period - 1]) and not all(marks[period : 2 * period - 1])
        if any(once) and any(twice) and others:
            return True
    return False


def _change(measure: Measure, typical: int, value: int) -> str:
    """'1.2 GiB, half of the usual 2.4 GiB'."""
    now, usual = _text(measure, value), _text(measure, typical)
    if value == 0:
        return f"nothing, where {usual} are usual"
    if typical == 0:
        return f"{now}, where nothing is usual"
    return f"{now}, {_ratio(value / typical)} the usual {usual}"


def _ratio(ratio: float) -> str:
    """Words where a person would use them. Never '0% of': that would be nothing."""
    for below, words in (
        (0.01, "less than 1% of"),
        (0.45, f"{ratio:.0%} of"),
        (0.55, "half of"),
        (1.0, f"{1 - ratio:.0%} less than"),
        (1.9, f"{ratio - 1:.0%} more than"),
        (2.1, "double"),
    ):
        if ratio < below:
            return words
    return f"{ratio:.1f} times"


def _text(measure: Measure, value: int) -> str:
    if measure == "size":
        return human_bytes(value)
    if measure == "rows":
        return f"{value:,} rows"
    hours, minutes, seconds = value // 3600, value // 60 % 60, value % 60
    parts = ((hours, "h"), (minutes, "min"), (seconds if not hours else 0, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"
