"""Who is told what, and when. A pure decision: it is handed the incidents, and what a channel was told before.

An incident is told once when it begins, and once when it has stayed over for a while. A critical one is told at once;
what repeats of it is counted in a reminder. Warnings are few in an hour; beyond that they wait, and come together in a digest.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aquad.core.clock import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from aquad.observe.month import Incident

Key = tuple[str, str]
"""Rule and subject."""
Kind = Literal["fired", "again", "resolved", "passed"]
"""It began; it goes on; it is over; it began and was over before anybody was told."""

WARNINGS, WARNINGS_TIME = 5, timedelta(hours=1)
REPEATED, STILL_OPEN = timedelta(hours=4), timedelta(days=1)
"""A reminder of a critical incident comes after so long where it repeated itself, and where it is just not mended."""
STEADY = timedelta(minutes=15)
"""Over for so long: it is not about to come back."""
NEWS = timedelta(days=1)
"""What is over for longer is told to nobody who has not heard of it."""
HELD = "schedule_held"
CHANNEL_FAILS = "channel_fails"


class Notice(NamedTuple):
    """What a message says of one incident. `repeats`: how often it was found since this channel was told last."""

    kind: Kind
    incident: Incident
    repeats: int = 0


class Message(NamedTuple):
    """More than one notice: a digest."""

    level: str
    notices: Sequence[Notice]

    def told(self) -> list[dict[str, Any]]:
        """For the journal's `notified` line."""
        return [
            {
                "kind": kind,
                "rule": incident.rule,
                "subject": incident.subject,
                "level": incident.level,
                "started_at": to_text(incident.started_at),
                "times": incident.times,
            }
            for kind, incident, _ in self.notices
        ]


class Known(NamedTuple):
    """The last that a channel heard of a rule and subject."""

    kind: str
    level: str
    at: datetime
    started_at: datetime
    times: int

    @property
    def is_open(self) -> bool:
        return self.kind in {"fired", "again"}


class Told:
    """What one channel was told, by the journal's `notified` lines."""

    def __init__(self) -> None:
        self.known: dict[Key, Known] = {}
        self.warnings_at: list[datetime] = []

    def add(self, at: datetime, level: str, notices: Iterable[Mapping[str, Any]]) -> None:
        if level == "warning":
            self.warnings_at = [*self.warnings_at, at][-WARNINGS:]
        for one in notices:
            self.known[one["rule"], one["subject"]] = Known(
                one["kind"], one["level"], at, from_text(one["started_at"]), one["times"]
            )


class Due(NamedTuple):
    """Messages to send now; when to look again, where nothing new happens until then."""

    messages: Sequence[Message]
    look_at: datetime | None


def due(
    channel: str,
    levels: Collection[str],
    incidents: Iterable[Incident],
    told: Told,
    *,
    now: datetime,
    muted: bool = False,
) -> Due:
    """`levels`: those that this channel is for. `muted`: the schedule is held, and warnings wait."""
    episodes: dict[Key, list[Incident]] = defaultdict(list)
    for incident in incidents:
        if incident.rule != CHANNEL_FAILS or incident.subject != channel:
            episodes[incident.rule, incident.subject].append(incident)
    notices, moments = [], []
    for key, of_key in episodes.items():
        known = told.known.get(key)
        if (known is None or not known.is_open) and of_key[-1].level not in levels:
            continue
        found = _notice(sorted(of_key, key=lambda one: one.started_at), known, now)
        if isinstance(found, datetime):
            moments.append(found)
        elif found is not None:
            notices.append(found)
    critical = [Message("critical", [one]) for one in notices if one.incident.level == "critical"]
    warnings = [one for one in notices if one.incident.level != "critical" and (not muted or one.incident.rule == HELD)]
    sent = [at for at in told.warnings_at if now - WARNINGS_TIME < at <= now]
    left = WARNINGS - len(sent)
    if warnings and left <= 0:
        moments.append(sent[0] + WARNINGS_TIME)
    return Due([*critical, *_few(warnings, left)], min(moments, default=None))


def _few(warnings: Sequence[Notice], left: int) -> list[Message]:
    """At most `left` messages; the last one takes all that is left over."""
    if left <= 0 or not warnings:
        return []
    alone = len(warnings) if len(warnings) <= left else left - 1
    messages = [Message("warning", [one]) for one in warnings[:alone]]
    return [*messages, Message("warning", warnings[alone:])] if warnings[alone:] else messages


def _notice(episodes: Sequence[Incident], known: Known | None, now: datetime) -> Notice | datetime | None:
    """What is to be told of one rule and subject; or when there will be something, if nothing happens until then."""
    newest = episodes[-1]
    repeats = _repeats(episodes, known)
    if known is not None and known.is_open:
        if newest.state == "open":
            return _goes_on(newest, known, repeats, now)
        over_at = (newest.ended_at or newest.last_at) + STEADY
        return Notice("resolved", newest, repeats) if now >= over_at else over_at
    if newest.state == "open":
        return Notice("fired", newest, repeats)
    ended_at = newest.ended_at or newest.last_at
    if now - ended_at > NEWS or (known is not None and ended_at <= known.at) or not repeats:
        return None
    if known is not None and known.level == newest.level and now < known.at + REPEATED:
        return known.at + REPEATED
    return Notice("passed", newest, repeats)


def _goes_on(newest: Incident, known: Known, repeats: int, now: datetime) -> Notice | datetime | None:
    if newest.level != "critical":
        return None
    if known.level != "critical":
        return Notice("fired", newest, repeats)
    remind_at = known.at + (REPEATED if repeats else STILL_OPEN)
    return Notice("again", newest, repeats) if now >= remind_at else remind_at


def _repeats(episodes: Sequence[Incident], known: Known | None) -> int:
    """How often it was found since the channel was told."""
    if known is None:
        return sum(one.times for one in episodes)
    return sum(
        max(0, one.times - known.times) if one.started_at == known.started_at else one.times
        for one in episodes
        if one.last_at > known.at
    )
