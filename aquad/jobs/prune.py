"""Retention carried out: what the decisions say goes to the trash, and what was long enough in the trash is deleted.

Everything is decided before anything is touched, so that `--dry-run` is the same without the last step.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text
from aquad.jobs.trail.standing import standing
from aquad.repository import retention
from aquad.repository.history import History
from aquad.repository.retention import Candidate, Decision, Kind, Policy
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import Manifest
    from aquad.repository.repository import Repository
    from aquad.repository.trash import Removed

READERS_SECONDS = 600
"""Who verifies or restores is waited for so long."""


class Rules(NamedTuple):
    """`required`: the components of the settings. `log_age`, `log_bytes`: for reports, and for old files of the journal."""

    policy: Policy
    required: Collection[str]
    trash: timedelta
    log_age: timedelta
    log_bytes: int


class Pruning(NamedTuple):
    """What is to be done. `empty`: ids in the trash. `reports`: their paths. `clock_ahead`: nothing is deleted for good."""

    decisions: Sequence[Decision]
    empty: Sequence[str]
    reports: Sequence[str]
    clock_ahead: bool = False

    @property
    def deleted(self) -> list[str]:
        return [*self.empty, *self.reports]

    @property
    def remove(self) -> list[str]:
        return [decision.id for decision in self.decisions if not decision.keep]


def decide(
    repository: Repository,
    rules: Rules,
    *,
    kinds: Collection[Kind],
    now: datetime,
    everything: bool = False,
    logs: bool,
) -> Pruning:
    """Look, and touch nothing. Raises RepositoryRefused where no decision is safe."""
    catalog, history = repository.catalog(), History.of(repository.journal.entries())
    decisions = retention.decide(
        candidates(catalog, history),
        rules.policy,
        now=now,
        kinds=kinds,
        required=rules.required,
        cleaned=history.cleaned,
        everything=everything,
        unreadable=[one.id for one in catalog.unreadable],
    )
    if not everything and _is_far_ahead(catalog, history, rules, now):
        return Pruning(decisions, [], [], clock_ahead=True)
    removed = [one for one in repository.trash.contents() if one.deletable]
    old = [one.id for one in removed if now - removed_at(one, history) > rules.trash]
    return Pruning(decisions, old, _old_reports(repository, history, rules, now) if logs else [])


def _is_far_ahead(catalog: Catalog[Manifest], history: History, rules: Rules, now: datetime) -> bool:
    """No good backup is young: as after a jump of the clock, and then nothing may be deleted for good."""
    good = [from_text(backup.started_at) for backup in catalog.backups if history.state(backup.id) == "good"]
    return bool(good) and now - max(good) > retention.PATIENCE * rules.policy.period + rules.trash


def candidates(catalog: Catalog[Manifest], history: History) -> list[Candidate]:
    return [
        Candidate(
            id=backup.id,
            kind=backup.kind,
            sequence=backup.sequence,
            started_at=from_text(backup.started_at),
            components=frozenset(component.name for component in backup.components if component.good),
            state=history.state(backup.id),
            kept_until=history.kept.get(backup.id),
            needs=frozenset(backup.needs),
        )
        for backup in catalog.backups
    ]


def carry_out(repository: Repository, pruning: Pruning, rules: Rules, kinds: Collection[Kind]) -> None:
    """The caller holds the lock. Raises LockHeld when readers do not end. May be killed anywhere, and done again."""
    backups = {backup.id: backup for backup in repository.catalog().backups}
    doomed = [one for one in pruning.decisions if not one.keep and one.id in backups]
    with repository.removing(READERS_SECONDS) if doomed or pruning.empty else nullcontext():
        for decision in doomed:
            repository.journal.append("pruned", backup=decision.id, kind=decision.kind, reason=decision.reason)
            repository.trash.put(backups[decision.id])
        for name in pruning.empty:
            repository.journal.append("trash_emptied", backup=name)
            repository.trash.empty(name)
    if pruning.reports:
        for path in pruning.reports:
            if (repository.root / path).is_file():
                files.remove(repository.root / path)
        files.sync_directory(repository.root)
        repository.journal.append("reports_removed", paths=list(pruning.reports))
    repository.journal.append("cleaned", ages={kind: int(rules.policy.age[kind].total_seconds()) for kind in kinds})


def sentences(pruning: Pruning, kinds: Collection[Kind], staying: int) -> list[str]:
    """For a report: all that goes, and so many of these kinds that stay; each with its reason."""
    gone = [f"{one.id} goes to the trash: {one.reason}" for one in pruning.decisions if not one.keep]
    gone += [f"{name} in the trash is deleted for good" for name in pruning.empty]
    gone += [f"{path} is deleted" for path in pruning.reports]
    kept = [f"{one.id} stays: {one.reason}" for one in pruning.decisions if one.keep and one.kind in kinds]
    more = [f"{len(kept) - staying} more stay"] if len(kept) > staying else []
    return [*gone, *kept[:staying], *more]


def details(pruning: Pruning) -> dict[str, Any]:
    """For the journal's line of the run."""
    found: Mapping[str, Sequence[str]] = {
        "removed": pruning.remove,
        "emptied": pruning.empty,
        "reports_removed": pruning.reports,
    }
    return {key: list(names) for key, names in found.items() if names}


def trim_journal(repository: Repository, rules: Rules, now: datetime) -> None:
    """Begin a new file of the journal, and remove those that are too old or too many; what still stands is kept."""
    repository.journal.rotate()
    alive = {backup.id for backup in repository.catalog().backups} | {one.id for one in repository.trash.contents()}
    repository.journal.remove_before(now - rules.log_age, rules.log_bytes, lambda entries: standing(entries, alive))


def removed_at(removed: Removed, history: History) -> datetime:
    return history.removed_at.get(removed.id) or datetime.fromtimestamp(removed.removed_at, UTC)


def _old_reports(repository: Repository, history: History, rules: Rules, now: datetime) -> list[str]:
    """Beyond their age, or beyond the size of all, the oldest first. Only what the journal names is looked at."""
    old, total = [], 0
    for path, at in sorted(history.reports.items(), key=lambda item: item[1], reverse=True):
        file = repository.root / path
        if not os.path.lexists(file) and now - at > rules.log_age:
            old.append(path)  # gone, and perhaps with a run that was killed before it said so
        if not file.is_file() or file.is_symlink():
            continue
        total += file.stat().st_size
        if now - at > rules.log_age or total > rules.log_bytes:
            old.append(path)
    return old
