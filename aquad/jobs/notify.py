"""What the channels are to be told now, by the journal: the alerts in it, and what it says that each channel was told.

The journal is the outbox: what it does not say was told is told, after whatever accident.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text, to_text
from aquad.core.errors import AquadError
from aquad.jobs.conditions import changes, conditions
from aquad.jobs.trail.incidents import Incidents
from aquad.observe.alerts import NEWS, Message, Told, due
from aquad.repository.history import History
from aquad.repository.retention import FOR_EVER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from aquad.observe.overview import Overview
    from aquad.repository.repository import Repository


class Outgoing(NamedTuple):
    channel: str
    message: Message


class Plan(NamedTuple):
    """What is to be sent now; when there will be more if nothing happens until then."""

    outgoing: Sequence[Outgoing]
    look_at: datetime | None


class Notices:
    """The journal, read for alerts."""

    def __init__(self, now: datetime) -> None:
        self._incidents = Incidents(now - 2 * NEWS, FOR_EVER)
        self._told: dict[str, Told] = defaultdict(Told)
        self._history = History()

    def add(self, entry: Mapping[str, Any]) -> None:
        self._incidents.add(entry)
        self._history.add(entry)
        if entry["event"] == "notified":
            self._told[entry["channel"]].add(from_text(entry["at"]), entry["level"], entry["notices"])

    def is_open(self, rule: str, subject: str) -> bool:
        return self._incidents.is_open(rule, subject)

    def levels(self) -> Mapping[tuple[str, str], str]:
        return self._incidents.levels()

    def plan(self, channels: Mapping[str, Collection[str]], now: datetime) -> Plan:
        """`channels`: levels by name."""
        incidents = self._incidents.all()
        muted = self._history.holding(now) is not None
        outgoing, moments = [], []
        for channel, levels in channels.items():
            found = due(channel, levels, incidents, self._told[channel], now=now, muted=muted)
            outgoing += [Outgoing(channel, message) for message in found.messages]
            moments += [found.look_at] if found.look_at else []
        return Plan(outgoing, min(moments, default=None))


class Outbox:
    """The journal, and what could not be written into it yet: a full disk, or one that is gone, must not silence anybody.

    `repository` is None where there is none, or it cannot be read.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[str, datetime, Mapping[str, Any]]] = []
        self.error = ""
        """Why something is still to be written; empty when nothing is."""

    def write(self, repository: Repository | None, now: datetime, event: str, **fields: Any) -> None:
        """Never raises: what cannot be written is remembered."""
        self._pending.append((event, now, fields))
        self.flush(repository)

    def flush(self, repository: Repository | None) -> None:
        try:
            while repository is not None and self._pending:
                event, _, fields = self._pending[0]
                repository.journal.append(event, **fields)
                self._pending.pop(0)
            self.error = ""
        except AquadError as error:  # harmless because it is remembered, and tried again
            self.error = str(error)

    def notices(self, repository: Repository | None, now: datetime) -> Notices:
        """What both say."""
        notices, line = Notices(now), 0
        for entry in repository.journal.entries() if repository is not None else ():
            notices.add(entry)
            line = entry["line"]
        for number, (event, at, fields) in enumerate(self._pending, start=line + 1):
            notices.add({"line": number, "at": to_text(at), "event": event, **fields})
        return notices

    def note_conditions(self, repository: Repository | None, seen: Overview) -> None:
        """Write what has begun to be wrong, and what is not wrong any more."""
        known = self.notices(repository, seen.now).levels()
        for event, fields in changes(conditions(seen), known, seen):
            self.write(repository, seen.now, event, **fields)

    def note_told(self, repository: Repository | None, now: datetime, one: Outgoing) -> None:
        level, notices = one.message.level, one.message.told()
        self.write(repository, now, "notified", channel=one.channel, level=level, notices=notices)

    def alert(
        self, repository: Repository | None, now: datetime, rule: str, level: str, text: str, **about: Any
    ) -> None:
        self.write(repository, now, "alert", **{"rule": rule, "level": level, "component": None, "text": text, **about})

    def over(
        self, repository: Repository | None, now: datetime, rule: str, text: str, component: str | None = None
    ) -> None:
        self.write(repository, now, "alert_over", rule=rule, component=component, text=text)
