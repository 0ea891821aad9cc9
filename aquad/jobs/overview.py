"""Fills the Overview from the catalog and the journal; nothing is remembered anywhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aquad.core.clock import from_text, to_text
from aquad.jobs.discard import kept_databases
from aquad.jobs.keys import is_confirmed
from aquad.jobs.restore import unfinished
from aquad.observe.overview import ComponentView, Overview
from aquad.repository.history import History
from aquad.repository.lock import holder
from aquad.repository.retention import FOR_EVER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from aquad.repository.catalog import Catalog
    from aquad.repository.history import Hold
    from aquad.repository.repository import Repository


def overview(
    repository: Repository,
    components: Sequence[str],
    *,
    objectives: Mapping[str, int],
    grace_seconds: int,
    now: datetime,
    coming: Sequence[tuple[str, datetime]] = (),
) -> Overview:
    """`objectives`: seconds that a component's newest good backup may be old; `grace_seconds` is for the run itself."""
    catalog = repository.catalog()
    entries = list(repository.journal.entries())
    history = History.of(entries)
    good = catalog.without(history.damaged)
    disk = os.statvfs(repository.root)
    views = [_component(name, good, entries, objectives.get(name), grace_seconds, now) for name in components]
    runs = [entry for entry in entries if entry["event"] == "run_ended"]
    last = f"{runs[-1]['job']} {runs[-1]['outcome']} at {runs[-1]['at']}" if runs else "never"
    warnings = [f"{u.id}: {u.reason}" for u in catalog.unreadable]
    warnings += [
        f"{backup.id} is damaged, and never counted" for backup in catalog.backups if backup.id in history.damaged
    ]
    if repository.marker.encryption.mode == "off":
        warnings.append("encryption is off: whoever reads the repository reads the data")
    elif not is_confirmed(entries, repository.marker.encryption):
        warnings.append("nobody has proved that the key is kept elsewhere too: `aquad key confirm`")
    return Overview(
        stack=repository.marker.stack,
        repository=str(repository.root),
        encryption=repository.marker.encryption.mode,
        now=now,
        components=views,
        backups=len(catalog.backups),
        stored_bytes=sum(backup.stored_bytes for backup in catalog.backups),
        free_bytes=disk.f_bavail * disk.f_frsize,
        unreadable=[one.id for one in catalog.unreadable],
        aside=[*sorted(path.name for path in repository.layout.aside.iterdir()), *kept_databases(entries)],
        unfinished_restore=_unfinished(entries),
        drafts=sorted(path.name for path in repository.layout.drafts.iterdir()),
        last_run=last,
        daemon=holder(repository.layout.daemon_lock),
        running=holder(repository.layout.lock),
        held=_held(history.holding(now)),
        coming=coming,
        warnings=warnings,
    )


def _held(hold: Hold | None) -> str:
    if hold is None:
        return ""
    until = "until somebody releases it" if hold.until == FOR_EVER else f"until {to_text(hold.until)}"
    return f"{hold.reason} ({until}, by {hold.by})"


def _unfinished(entries: Sequence[Mapping[str, Any]]) -> str:
    found = unfinished(entries)
    if found is None:
        return ""
    return f"run {found.run} of {found.at}: {', '.join(name for name, _ in found.left)} not restored"


def _component(
    name: str,
    catalog: Catalog,
    entries: Sequence[Mapping[str, Any]],
    objective: int | None,
    grace_seconds: int,
    now: datetime,
) -> ComponentView:
    newest = catalog.latest(name)
    record = newest.component(name) if newest else None
    taken_at = from_text(newest.started_at) if newest else None
    age = int((now - taken_at).total_seconds()) if taken_at else None
    attempts = [e["components"][name] for e in entries if e["event"] == "run_ended" and name in e.get("components", {})]
    verdicts = [e for e in entries if e["event"] == "verified" and newest and e["backup"] == newest.id]
    verdict = verdicts[-1] if verdicts else None
    restored = [e for e in entries if e["event"] == "restored" and e["component"] == name]
    return ComponentView(
        name=name,
        backup=newest.id if newest else None,
        recovery_point_at=taken_at,
        age_seconds=age,
        objective_seconds=objective,
        stale=age is None or (objective is not None and age > objective + grace_seconds),
        consistency=record.consistency if record else None,
        stored_bytes=sum(a.stored_bytes for a in record.artifacts) if record else 0,
        plain_bytes=sum(a.plain_bytes for a in record.artifacts) if record else 0,
        last_attempt=attempts[-1] if attempts else "never",
        verified_at=from_text(verdict["at"]) if verdict else None,
        verified_level="" if verdict is None else verdict["level"] if verdict["outcome"] == "success" else "DAMAGED",
        restore_milliseconds=restored[-1]["milliseconds"] if restored else None,
    )
