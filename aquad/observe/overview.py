"""What the outside sees of us: one frozen picture, filled by jobs/overview.py, shown by status, and later by metrics and pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from aquad.observe.month import Incident
    from aquad.observe.space import Level


@dataclass(frozen=True, kw_only=True)
class ComponentView:
    name: str
    backup: str | None
    """The newest backup in which this component is good."""
    recovery_point_at: datetime | None
    age_seconds: int | None
    objective_seconds: int | None
    stale: bool
    consistency: str | None
    stored_bytes: int
    plain_bytes: int
    milliseconds: int | None
    """What it took to take it, in that backup."""
    unusual: bool
    """Its newest size, duration or number of rows was unlike those before, and nobody has accepted that."""
    unusual_score: float | None
    """How far away its size was, in usual deviations; None where it was not."""
    last_attempt: str
    """success, warning, failed, or never"""
    verified_at: datetime | None
    verified_level: str
    restore_milliseconds: int | None
    """Measured at the last restore; None when it was never restored."""

    def at(self, now: datetime, grace_seconds: int) -> ComponentView:
        """The same, as old as it is then."""
        if self.recovery_point_at is None:
            return self
        age = int((now - self.recovery_point_at).total_seconds())
        stale = self.objective_seconds is not None and age > self.objective_seconds + grace_seconds
        return replace(self, age_seconds=age, stale=stale)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """The last run of a job, as far as the journal goes back. `outcome`: never, where there was none."""

    job: str
    outcome: str
    ended_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class LevelView:
    """Verification of one level. `good`: no backup that exists was found damaged by it; None before the first."""

    level: str
    good: bool | None
    good_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    stack: str
    repository: str
    created_at: datetime
    grace_seconds: int
    """What a run itself may take, before anything is called stale."""
    encryption: str
    now: datetime
    components: Sequence[ComponentView]
    backups: int
    retained: Mapping[str, int]
    """Backups of each kind."""
    stored_bytes: int
    free_bytes: int
    disk_bytes: int
    disk_level: Level
    disk_full_at: datetime | None
    """When it is full, at this pace; None: not in sight."""
    unreadable: Sequence[str]
    aside: Sequence[str]
    """Directories in the repository, and databases on the server, that restores kept."""
    unfinished_restore: str
    """What the newest restore of everything left undone; empty when nothing."""
    drafts: Sequence[str]
    last_run: str
    runs: Sequence[RunView]
    levels: Sequence[LevelView]
    daemon: str
    """Who keeps the schedule; empty when no daemon does."""
    running: str
    """Which run has the lock; empty when none has."""
    held: str
    """Why the schedule is held, and until when; empty when it is not."""
    held_since: datetime | None
    coming: Sequence[tuple[str, datetime]]
    incidents: Sequence[Incident]
    """What is wrong, by the journal, and not over."""
    warnings: Sequence[str]

    @property
    def stale(self) -> bool:
        return any(component.stale for component in self.components)

    def at(self, now: datetime) -> Overview:
        """The same, with everything as old as it is then."""
        return replace(self, now=now, components=[view.at(now, self.grace_seconds) for view in self.components])


def status_json(seen: Overview) -> dict[str, Any]:
    """What `status --json` prints, and /api/v1/status answers."""
    return {**asdict(seen), "stale": seen.stale}
