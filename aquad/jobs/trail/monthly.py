"""One month out of the journal: every run, slot, verification, restore, incident and change. No I/O: it is handed the lines.

It reads them once, from the oldest on, and remembers what belongs to the month and what still stands.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text, to_text
from aquad.core.errors import InvalidUse
from aquad.jobs.schedule import Rule
from aquad.jobs.slots import COUNTED, DONE
from aquad.jobs.trail.changes import Changes, Holds
from aquad.jobs.trail.incidents import Incidents
from aquad.observe.month import Month, Newest, Restore, Restored, Run, Verifications
from aquad.observe.reports import both_times
from aquad.repository.history import History

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import tzinfo

    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import Manifest
    from aquad.repository.trash import Removed
    from aquad.storage.chain import Entry

FIRST_YEAR = 1970
MINUTE = timedelta(minutes=1)
RESTORE, DISCARD = "restore ", "restore discard"


class Window(NamedTuple):
    """A month of the schedule's zone: from `begin` on, before `end`."""

    name: str
    begin: datetime
    end: datetime


class Fact(NamedTuple):
    """What a manifest says of a backup. `components`: the good ones."""

    taken_at: datetime
    stored_bytes: int
    components: frozenset[str]


UNKNOWN = Fact(datetime.min.replace(tzinfo=UTC), 0, frozenset())


def window(text: str | None, now: datetime, zone: tzinfo) -> Window:
    """The month `text`, or the one before that of `now`. Raises InvalidUse for what is no month, or has not begun."""
    local = now.astimezone(zone)
    if text is None:
        before = local.replace(day=1) - timedelta(days=1)
        text = f"{before:%Y-%m}"
    match = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text)
    if match is None or int(match[1]) < FIRST_YEAR:
        raise InvalidUse(f"report --month {text[:80]}: not a month", "Say it as 2024-08.")
    year, month = int(match[1]), int(match[2])
    if (year, month) > (local.year, local.month):
        raise InvalidUse(f"report --month {text}: it has not begun", f"It is {both_times(now, zone)}.")
    next_ = (year + 1, 1) if month == 12 else (year, month + 1)
    begin, end = (datetime(*first, 1, tzinfo=zone).astimezone(UTC) for first in ((year, month), next_))
    return Window(text, begin, end)


def facts(catalog: Catalog[Manifest], trash: Iterable[Removed]) -> dict[str, Fact]:
    """Of each backup that is there, in the trash too."""
    backups = [*catalog.backups, *(one.backup for one in trash if one.backup is not None)]
    return {
        backup.id: Fact(
            from_text(backup.started_at),
            backup.stored_bytes,
            _good_components(backup),
        )
        for backup in backups
    }


def month_of(
    entries: Iterable[Entry],
    known: Mapping[str, Fact],
    window: Window,
    *,
    stack: str,
    zone: tzinfo,
    now: datetime,
    removed: int = 0,
) -> Month:
    """`known`: what the manifests say. `removed`: so many lines of the journal's head were removed, but for what stands."""
    runs, slots, backups = _Runs(window), _Slots(window, zone), _Backups(window, known)
    incidents, holds = Incidents(window.begin, window.end, removed), Holds(window.begin, window.end)
    changes, whole = Changes(window.begin, window.end, zone), _Whole(window, removed)
    for entry in entries:
        for reader in (whole, runs, slots, backups, incidents, holds, changes):
            reader.add(entry)
    told, restores = runs.all()
    return Month(
        month=window.name,
        stack=stack,
        zone=str(zone),
        begin=window.begin,
        end=window.end,
        made_at=now,
        missing=whole.missing(zone),
        run_counts=_counts((run.job, run.outcome or "no end yet", 1) for run in told if run.counted),
        slot_counts=slots.counts,
        availability=slots.availability(),
        verifications=backups.verifications(),
        removed=backups.removed,
        deleted=backups.deleted,
        newest=backups.newest(),
        runs=told,
        restores=restores,
        incidents=incidents.all(),
        holds=holds.all(now),
        changes=changes.all,
    )


class _Runs:
    """Runs that began in the month, and those from before that reached into it and were no success."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._under_way: dict[str, Run] = {}
        self._parts: dict[str, dict[str, Restored]] = {}
        self._runs: list[Run] = []
        self._restores: list[Restore] = []

    def add(self, entry: Entry) -> None:
        match entry["event"]:
            case "run_started":
                self._under_way[entry["run"]] = self._run(entry, from_text(entry["at"]), entry.get("by", ""))
            case "restore_started":
                orders = [Restored(component=name, origin=origin, seconds=None) for name, origin in entry["orders"]]
                self._parts[entry["run"]] = {one.component: one for one in orders}
            case "restored":
                done = Restored(
                    component=entry["component"], origin=entry["origin"], seconds=entry["milliseconds"] / 1000
                )
                self._parts.setdefault(entry["run"], {})[done.component] = done
            case "run_ended":
                self._keep(self._ended(entry))

    def all(self) -> tuple[list[Run], list[Restore]]:
        """Those without an end too."""
        for run in list(self._under_way.values()):
            self._keep(run)
        self._under_way.clear()
        return sorted(self._runs, key=_start), sorted(self._restores, key=lambda one: _start(one.run))

    def _run(self, entry: Entry, started_at: datetime, by: str) -> Run:
        return Run(
            run=entry["run"],
            job=entry["job"],
            slot=from_text(entry["slot"]) if entry.get("slot") else None,
            attempt=entry.get("attempt"),
            by=by,
            started_at=started_at,
            ended_at=None,
            seconds=None,
            outcome=None,
            reason="",
            backup=None,
            counted=self._window.begin <= started_at < self._window.end,
        )

    def _ended(self, entry: Entry) -> Run:
        at, milliseconds = from_text(entry["at"]), entry.get("milliseconds")
        run = self._under_way.pop(entry["run"], None)
        if run is None:
            run = self._run(entry, at - timedelta(milliseconds=milliseconds or 0), entry.get("by", ""))
        return replace(
            run,
            ended_at=at,
            seconds=None if milliseconds is None else milliseconds / 1000,
            outcome=entry["outcome"],
            reason=entry.get("reason", ""),
            backup=entry.get("backup"),
        )

    def _keep(self, run: Run) -> None:
        parts = self._parts.pop(run.run, {})
        reaches = run.started_at < self._window.end and (run.ended_at is None or run.ended_at >= self._window.begin)
        if not run.counted and (not reaches or run.outcome in DONE):
            return
        self._runs.append(run)
        if run.job.startswith(RESTORE) and run.job != DISCARD:
            self._restores.append(Restore(run=run, components=tuple(parts.values())))


class _Slots:
    """A slot belongs to the month in which it was due, whenever its end was written."""

    def __init__(self, window: Window, zone: tzinfo) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self._window, self._zone = window, zone
        self._expressions: Mapping[str, Any] = {}

    def add(self, entry: Entry) -> None:
        if entry["event"] == "settings":
            self._expressions = entry.get("values", {})
        elif entry["event"] == "slot_ended" and (count := self._of_month(entry)):
            outcomes = self.counts.setdefault(entry["job"], {})
            outcomes[entry["outcome"]] = outcomes.get(entry["outcome"], 0) + count

    def availability(self) -> float | None:
        total = sum(count for outcomes in self.counts.values() for count in outcomes.values())
        done = sum(outcomes.get(outcome, 0) for outcomes in self.counts.values() for outcome in DONE)
        return done / total if total else None

    def _of_month(self, entry: Entry) -> int:
        """How many of the slots that this line stands for are of the month: by the rule of then, where it tells of a part."""
        _, begin, end = self._window
        last = from_text(entry["slot"])
        first, count = from_text(entry.get("first") or entry["slot"]), entry.get("count", 1)
        if begin <= first and last < end:
            return int(count)
        if last < begin or first >= end:
            return 0
        expression = self._expressions.get(f"schedule.{entry['job']}", "off")
        if expression == "off":
            return int(count) if last < end else 0
        rule = Rule(expression, self._zone)
        return min(rule.count(max(first, begin) - MINUTE, min(last, end - MINUTE), COUNTED), int(count))


class _Backups:
    """What was verified, removed, and good at the end of the month."""

    def __init__(self, window: Window, known: Mapping[str, Fact]) -> None:
        self.removed: dict[str, int] = {}
        self.deleted = 0
        self._known = known
        self._begin, self._end = to_text(window.begin), to_text(window.end)
        self._history = History()
        self._levels: dict[str, dict[str, int]] = {}
        self._good: dict[str, None] = {}
        self._damaged: dict[str, None] = {}
        self._taken = {id_: fact for id_, fact in known.items() if fact.taken_at < window.end}
        self._gone: dict[str, Fact] = {}
        self._components = {name for fact in self._taken.values() for name in fact.components}

    def add(self, entry: Entry) -> None:
        if entry["at"] >= self._end:
            return
        match entry["event"]:
            case "run_ended" if entry.get("backup"):
                self._take(entry)
            case "pruned":
                self._count_removed(entry)
                self._gone[entry["backup"]] = self._taken.pop(entry["backup"], UNKNOWN)
            case "trash_restored":
                self._taken[entry["backup"]] = self._gone.pop(entry["backup"], UNKNOWN)
            case "trash_emptied":
                self._gone.pop(entry["backup"], None)
                self.deleted += entry["at"] >= self._begin
            case "verified":
                self._history.add(entry)
                if entry["at"] >= self._begin:
                    self._verified(entry)

    def verifications(self) -> Verifications:
        good = [id_ for id_ in self._good if id_ not in self._history.damaged]
        sizes = [self._known[id_].stored_bytes for id_ in good if id_ in self._known]
        return Verifications(
            counts=self._levels,
            good=len(good),
            bytes=sum(sizes),
            size_unknown=len(good) - len(sizes),
            damaged=list(self._damaged),
        )

    def newest(self) -> list[Newest]:
        found: dict[str, tuple[datetime, str]] = {}
        for id_, fact in self._taken.items():
            for name in fact.components if id_ not in self._history.damaged else ():
                found[name] = max(found.get(name, (fact.taken_at, id_)), (fact.taken_at, id_))
        pairs = [(name, found.get(name)) for name in sorted(self._components)]
        return [Newest(component=name, backup=one and one[1], taken_at=one and one[0]) for name, one in pairs]

    def _take(self, entry: Entry) -> None:
        """Its manifest says the same, where it is still there."""
        outcomes = entry.get("components", {})
        self._components |= outcomes.keys()
        if entry["backup"] in self._taken or entry["backup"] in self._gone:
            return
        started_at = from_text(entry["at"]) - timedelta(milliseconds=entry.get("milliseconds", 0))
        good = frozenset(name for name, outcome in outcomes.items() if outcome != "failed")
        self._taken[entry["backup"]] = Fact(started_at, 0, good)

    def _count_removed(self, entry: Entry) -> None:
        if entry["at"] >= self._begin:
            self.removed[entry["kind"]] = self.removed.get(entry["kind"], 0) + 1

    def _verified(self, entry: Entry) -> None:
        outcomes = self._levels.setdefault(entry["level"], {})
        outcomes[entry["outcome"]] = outcomes.get(entry["outcome"], 0) + 1
        if entry["outcome"] != "success":
            self._damaged[entry["backup"]] = None
        elif entry["level"] != "quick":
            self._good[entry["backup"]] = None


class _Whole:
    """Whether the journal still tells all of the month."""

    def __init__(self, window: Window, removed: int) -> None:
        self._window, self._removed = window, removed
        self._first: datetime | None = None
        """Of the lines that are left without a gap."""
        self._from_the_beginning = False

    def add(self, entry: Entry) -> None:
        if entry["line"] > self._removed and self._first is None:
            self._first = from_text(entry["at"])
            self._from_the_beginning = not self._removed and entry["event"] == "repository_created"

    def missing(self, zone: tzinfo) -> str:
        if self._from_the_beginning or self._first is None or self._first <= self._window.begin:
            return ""
        since = both_times(self._first, zone)
        if self._removed:
            return f"lines of the journal from before {since} were removed, but for what still stands"
        return f"the journal begins anew at {since}: what it said before is lost"


def _good_components(backup: Manifest) -> frozenset[str]:
    """None of a weekly archive: it holds a full backup once more."""
    return frozenset(one.name for one in backup.components if one.good and backup.kind != "weekly")


def _counts(found: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for one, other, number in found:
        inner = counts.setdefault(one, {})
        inner[other] = inner.get(other, 0) + number
    return counts


def _start(run: Run) -> datetime:
    return run.started_at
