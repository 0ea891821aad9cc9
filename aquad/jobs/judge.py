"""What a sealed backup looks like beside those before it, and what is left of the disk. What is strange goes to the journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text
from aquad.observe import space
from aquad.observe.reports import human_bytes
from aquad.observe.sizes import MEMORY, WINDOW, anomaly
from aquad.observe.space import Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from aquad.observe.sizes import Measure
    from aquad.repository.catalog import Catalog
    from aquad.repository.history import History
    from aquad.repository.manifest import ComponentRecord, Manifest
    from aquad.repository.repository import Repository


class Former(NamedTuple):
    """The same component in the backup before: stored bytes and rows."""

    backup: str
    stored_bytes: int
    rows: int | None


class Disk(NamedTuple):
    size_bytes: int
    free_bytes: int
    level: Level
    full_at: datetime | None

    def __str__(self) -> str:
        text = f"{human_bytes(self.free_bytes)} of {human_bytes(self.size_bytes)} are free"
        text += "" if self.level is Level.OK else f" ({self.level})"
        return text + (f"; at this pace it is full on {self.full_at:%Y-%m-%d}" if self.full_at else "")


def rows(component: ComponentRecord) -> int | None:
    """All rows that were counted in the dumps; None where there are no tables."""
    tables = [
        count
        for database in component.facts.get("databases", [])
        for count in database.get("rows", {}).values()
        if count is not None
    ]
    return sum(tables) if tables else None


def former(catalog: Catalog[Manifest], backup: Manifest, component: str) -> Former | None:
    for earlier in catalog.backups:
        record = earlier.component(component)
        if earlier.sequence < backup.sequence and record:
            return Former(earlier.id, record.stored_bytes, rows(record))
    return None


def judge(repository: Repository, catalog: Catalog[Manifest], history: History, backup: Manifest) -> list[str]:
    """Compare with the history since the last `accept`; return the sentences, which are alerts in the journal too."""
    sentences = []
    for record in backup.components:
        if not record.good:
            continue
        past = _past(catalog, history, backup, record.name)
        for measure, values, value in _measures(past, record):
            found = anomaly(record.name, measure, values, value)
            if found is not None:
                sentences.append(found.explanation)
                repository.journal.append(
                    "alert",
                    rule=f"{measure}_anomaly",
                    level="warning",
                    component=record.name,
                    text=found.explanation,
                    score=round(found.score, 1),
                )
    return sentences


def disk(repository: Repository, samples: Sequence[tuple[datetime, int]], now: datetime) -> Disk:
    """Free space now, and when it ends, by what earlier runs found: times and free bytes."""
    found = os.statvfs(repository.root)
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return Disk(size, free, space.level(size, free, used), space.full_at(samples, free, now))


def free_space(entries: Iterable[Mapping[str, Any]]) -> list[tuple[datetime, int]]:
    """What earlier runs found."""
    return [(from_text(e["at"]), e["free_bytes"]) for e in entries if e["event"] == "run_ended" and "free_bytes" in e]


def _past(catalog: Catalog[Manifest], history: History, backup: Manifest, component: str) -> list[ComponentRecord]:
    """The oldest first; from before an `accept` nothing counts."""
    since = history.accepted_at.get(component)
    records = [
        record
        for earlier in catalog.backups
        if earlier.sequence < backup.sequence and (since is None or from_text(earlier.started_at) > since)
        if (record := earlier.component(component))
    ]
    return records[: MEMORY + WINDOW][::-1]


def _measures(past: list[ComponentRecord], record: ComponentRecord) -> Iterable[tuple[Measure, list[int], int]]:
    yield "size", [one.plain_bytes for one in past], record.plain_bytes
    yield "duration", [one.milliseconds // 1000 for one in past], record.milliseconds // 1000
    counted = rows(record)
    if counted is not None:
        yield "rows", [count for one in past if (count := rows(one)) is not None], counted
