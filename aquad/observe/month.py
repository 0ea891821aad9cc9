"""What happened in one month: filled by jobs/trail/monthly.py, shown by monthly.py for people, and as it is for machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Run:
    run: str
    job: str
    slot: datetime | None
    """None: it was started by hand."""
    attempt: int | None
    by: str
    started_at: datetime
    ended_at: datetime | None
    """For a run that died: when that was found."""
    seconds: float | None
    outcome: str | None
    """None: no end is recorded."""
    reason: str
    backup: str | None
    counted: bool
    """False: it began before the month, and is counted there."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """One component of a restore. `seconds`: None when it was not brought back."""

    component: str
    origin: str
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Restore:
    run: Run
    components: Sequence[Restored]
    """Empty when it ended before anything was touched."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that was wrong from one moment to another."""

    rule: str
    subject: str
    """A job, a component, a backup; empty where there is but one."""
    level: str
    state: Literal["open", "over", "moment"]
    """moment: nobody can say when it was over, for it did not last."""
    started_at: datetime
    last_at: datetime
    ended_at: datetime | None
    ended_by: str
    times: int
    """How often it was found, failed or missed."""
    cause: str
    last_cause: str
    """Empty when it is the first still."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """`until`: as it was meant; None for a hold without an end. `ended_at`: None while it lasts."""

    cause: str
    by: str
    reason: str
    since: datetime
    until: datetime | None
    ended_at: datetime | None
    ended_by: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """`what`: a sentence. `key`, `before`, `after`: of a setting."""

    at: datetime
    by: str
    event: str
    what: str
    key: str | None = None
    before: Any = None
    after: Any = None


@dataclass(frozen=True, kw_only=True)
class Verifications:
    counts: Mapping[str, Mapping[str, int]]
    """By level, then by outcome."""
    good: int
    """Backups of which every byte was read, and was what had been sealed."""
    bytes: int
    """Stored bytes of these, each counted once."""
    size_unknown: int
    """Of these, backups that are gone, with their sizes."""
    damaged: Sequence[str]
    """Backups that a verification of the month found damaged."""


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest good backup of a component; None when there was none."""

    component: str
    backup: str | None
    taken_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Month:
    month: str
    stack: str
    zone: str
    begin: datetime
    end: datetime
    made_at: datetime
    missing: str
    """What the journal does not tell of this month any more; empty when it is whole."""
    run_counts: Mapping[str, Mapping[str, int]]
    """By job, then by outcome; and so for slots."""
    slot_counts: Mapping[str, Mapping[str, int]]
    availability: float | None
    """The share of all slots that ended in success or warning; None when there were none."""
    verifications: Verifications
    removed: Mapping[str, int]
    """Backups that went to the trash, by kind."""
    deleted: int
    """What was deleted for good out of the trash."""
    newest: Sequence[Newest]
    """At the end of the month, or now."""
    runs: Sequence[Run]
    restores: Sequence[Restore]
    incidents: Sequence[Incident]
    holds: Sequence[Hold]
    changes: Sequence[Change]
