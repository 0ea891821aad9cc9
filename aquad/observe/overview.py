"""What the outside sees of us: one frozen picture, filled by jobs/overview.py, shown by status, and later by metrics and pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


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
    last_attempt: str
    """success, warning, failed, or never"""
    verified_at: datetime | None
    verified_level: str
    restore_milliseconds: int | None
    """Measured at the last restore; None when it was never restored."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    stack: str
    repository: str
    encryption: str
    now: datetime
    components: Sequence[ComponentView]
    backups: int
    stored_bytes: int
    free_bytes: int
    unreadable: Sequence[str]
    aside: Sequence[str]
    """Directories in the repository, and databases on the server, that restores kept."""
    unfinished_restore: str
    """What the newest restore of everything left undone; empty when nothing."""
    drafts: Sequence[str]
    last_run: str
    daemon: str
    """Who keeps the schedule; empty when no daemon does."""
    running: str
    """Which run has the lock; empty when none has."""
    held: str
    """Why the schedule is held, and until when; empty when it is not."""
    coming: Sequence[tuple[str, datetime]]
    warnings: Sequence[str]

    @property
    def stale(self) -> bool:
        return any(component.stale for component in self.components)
