"""Fills the Overview from the catalog and the journal; nothing is remembered anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from aquad.core.clock import from_text, to_text
from aquad.jobs.discard import kept_databases
from aquad.jobs.judge import disk
from aquad.jobs.keys import is_confirmed
from aquad.jobs.restore import EVERYTHING, unfinished
from aquad.jobs.run import attempts
from aquad.jobs.slots import ORDER
from aquad.jobs.trail.incidents import ANOMALIES, Incidents
from aquad.observe.overview import ComponentView, LevelView, Overview, RunView
from aquad.repository.history import LEVELS, History
from aquad.repository.lock import holder
from aquad.repository.retention import FOR_EVER, Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from aquad.repository.catalog import Catalog
    from aquad.repository.history import Hold, Verdict
    from aquad.repository.manifests import Brief
    from aquad.repository.repository import Repository


class Picture(NamedTuple):
    """The overview, and what it was seen in. All of it stays as it is, so that any thread may read it."""

    overview: Overview
    catalog: Catalog[Brief]
    verdicts: Mapping[str, Verdict]


def picture(
    repository: Repository,
    components: Sequence[str],
    *,
    objectives: Mapping[str, int],
    grace_seconds: int,
    now: datetime,
    coming: Sequence[tuple[str, datetime]] = (),
) -> Picture:
    """`objectives`: seconds that a component's newest good backup may be old; `grace_seconds` is for the run itself."""
    catalog = repository.manifests.briefs()
    told = _Told(now)
    for entry in repository.journal.entries():
        told.add(entry)
    good = catalog.without(told.history.damaged)
    space = disk(repository, told.free, now)
    hold = told.history.holding(now)
    seen = Overview(
        stack=repository.marker.stack,
        repository=str(repository.root),
        created_at=from_text(repository.marker.created_at),
        grace_seconds=grace_seconds,
        encryption=repository.marker.encryption.mode,
        now=now,
        components=[_component(name, good, told, objectives.get(name)) for name in components],
        backups=len(catalog.backups),
        retained={kind: sum(one.kind == kind for one in catalog.backups) for kind in get_args(Kind)},
        stored_bytes=sum(backup.stored_bytes for backup in catalog.backups),
        free_bytes=space.free_bytes,
        disk_bytes=space.size_bytes,
        disk_level=space.level,
        disk_full_at=space.full_at,
        unreadable=[one.id for one in catalog.unreadable],
        aside=[*sorted(path.name for path in repository.layout.aside.iterdir()), *kept_databases(told.restores)],
        unfinished_restore=_unfinished(told.restores),
        drafts=sorted(path.name for path in repository.layout.drafts.iterdir()),
        last_run=told.last_run,
        runs=[told.runs.get(job) or RunView(job=job, outcome="never", ended_at=None, seconds=None) for job in ORDER],
        levels=[told.level(level, {backup.id for backup in catalog.backups}) for level in LEVELS],
        daemon=holder(repository.layout.daemon_lock),
        running=holder(repository.layout.lock),
        held=_held(hold),
        held_since=hold and hold.since,
        coming=coming,
        incidents=[one for one in told.incidents.all() if one.state == "open"],
        warnings=_warnings(repository, catalog, told),
    )
    return Picture(seen.at(now), catalog, told.history.verdicts)


class _Told:
    """What the journal says, in one reading: it may be long, and is not kept."""

    def __init__(self, now: datetime) -> None:
        self.history = History()
        self.incidents = Incidents(now, FOR_EVER)
        self.scores: dict[str, float] = {}
        self.attempts: dict[str, str] = {}
        self.restored: dict[str, int] = {}
        self.runs: dict[str, RunView] = {}
        self.good_at: dict[str, datetime | None] = {}
        """By level of verification, when it last found a backup good; None: it never did."""
        self.free: list[tuple[datetime, int]] = []
        self.restores: list[Mapping[str, Any]] = []
        """Lines on restores of everything, and on what is kept aside."""
        self.keys: list[Mapping[str, Any]] = []
        self.last_run = "never"

    def add(self, entry: Mapping[str, Any]) -> None:
        self.history.add(entry)
        self.incidents.add(entry)
        match entry["event"]:
            case "run_ended":
                self._run_ended(entry)
            case "run_started" if entry["job"] == EVERYTHING:
                self.restores.append(entry)
            case "restore_started":
                self.restores.append(entry)
            case "restored":
                self.restores.append(entry)
                self.restored[entry["component"]] = entry["milliseconds"]
            case "verified":
                good = entry["outcome"] == "success"
                self.good_at[entry["level"]] = from_text(entry["at"]) if good else self.good_at.get(entry["level"])
            case "alert" if entry["rule"] == "size_anomaly" and "score" in entry:
                self.scores[entry["component"]] = entry["score"]
            case "key_confirmed":
                self.keys.append(entry)

    def _run_ended(self, entry: Mapping[str, Any]) -> None:
        self.last_run = f"{entry['job']} {entry['outcome']} at {entry['at']}"
        self.attempts |= attempts(entry)
        took = entry.get("milliseconds")
        self.runs[entry["job"]] = RunView(
            job=entry["job"],
            outcome=entry["outcome"],
            ended_at=from_text(entry["at"]),
            seconds=None if took is None else took / 1000,
        )
        if "free_bytes" in entry:
            self.free.append((from_text(entry["at"]), entry["free_bytes"]))
        if entry.get("discarded"):
            self.restores.append(entry)

    def level(self, level: str, there: Collection[str]) -> LevelView:
        """`there`: backups that exist; what was found damaged stays so until it is gone, whatever was read after it."""
        if level not in self.good_at:
            return LevelView(level=level, good=None, good_at=None)
        bad = any(found == level and backup in there for backup, found in self.history.damaged_at.items())
        return LevelView(level=level, good=not bad, good_at=self.good_at[level])


def _warnings(repository: Repository, catalog: Catalog[Brief], told: _Told) -> list[str]:
    warnings = [f"{u.id}: {u.reason}" for u in catalog.unreadable]
    warnings += [f"{one.id} is damaged, and never counted" for one in catalog.backups if one.id in told.history.damaged]
    if repository.marker.encryption.mode == "off":
        warnings.append("encryption is off: whoever reads the repository reads the data")
    elif not is_confirmed(told.keys, repository.marker.encryption):
        warnings.append("nobody has proved that the key is kept elsewhere too: `aquad key confirm`")
    return warnings


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


def _component(name: str, catalog: Catalog[Brief], told: _Told, objective: int | None) -> ComponentView:
    newest = catalog.latest(name)
    part = newest.component(name) if newest else None
    taken_at = from_text(newest.started_at) if newest else None
    verdict = told.history.verdicts.get(newest.id) if newest else None
    return ComponentView(
        name=name,
        backup=newest.id if newest else None,
        recovery_point_at=taken_at,
        age_seconds=None,
        objective_seconds=objective,
        stale=taken_at is None,
        consistency=part.consistency if part else None,
        stored_bytes=part.stored_bytes if part else 0,
        plain_bytes=part.plain_bytes if part else 0,
        milliseconds=part.milliseconds if part else None,
        unusual=any(told.incidents.is_open(rule, name) for rule in ANOMALIES),
        unusual_score=told.scores.get(name) if told.incidents.is_open("size_anomaly", name) else None,
        last_attempt=told.attempts.get(name, "never"),
        verified_at=verdict.at if verdict else None,
        verified_level="" if verdict is None else verdict.level if verdict.good else "DAMAGED",
        restore_milliseconds=told.restored.get(name),
    )
