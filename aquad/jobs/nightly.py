"""The verification of every night: all that is stored is read within a week, and the newest is looked into."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import Damaged
from aquad.jobs.run import Work
from aquad.jobs.verify import unreadable, verify
from aquad.repository.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aquad.jobs.verify import Level, Verdict
    from aquad.repository.manifest import Manifest
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import RunContext

PERIOD = timedelta(days=7)
NIGHT = timedelta(days=1)
NEVER = datetime.min.replace(tzinfo=UTC)


class Chosen(NamedTuple):
    content: Sequence[Manifest]
    """To be looked into: the newest of each kind."""
    bytes: Sequence[Manifest]
    """To be read: those whose week ends before the next night, and of the others a seventh, the oldest verification first."""


def choose(backups: Sequence[Manifest], history: History, now: datetime) -> Chosen:
    """`backups`: newest first. No I/O."""
    newest = {backup.kind: backup for backup in reversed(backups)}
    content = [backup for backup in newest.values() if backup is backups[0] or _content_is_old(backup, history, now)]
    others = [backup for backup in backups if backup not in content]
    looked_at = {backup.id: _looked_at(backup, history) for backup in others}
    others.sort(key=lambda backup: (looked_at[backup.id], backup.sequence))
    share = sum(backup.stored_bytes for backup in others) / (PERIOD / NIGHT)
    chosen, stored_bytes = [], 0
    for backup in others:
        if stored_bytes >= share and now - looked_at[backup.id] < PERIOD - NIGHT:
            break
        chosen.append(backup)
        stored_bytes += backup.stored_bytes
    return Chosen(content, chosen)


def verify_some(repository: Repository, run: RunContext) -> Work:
    """Verify what is chosen. A damaged backup makes the run fail, when all of it is done; each is an alert."""
    catalog, history = repository.catalog(), History.of(repository.journal.entries())
    chosen = choose(catalog.backups, history, run.clock.now())
    verdicts = [
        *verify(repository, chosen.content, "content", run.progress),
        *verify(repository, chosen.bytes, "bytes", run.progress),
        *unreadable(catalog, "quick"),
    ]
    bad = [verdict for verdict in verdicts if verdict.problems]
    for verdict in bad:
        repository.journal.append(
            "alert",
            rule="damaged",
            level="critical",
            component=None,
            backup=verdict.backup,
            text=f"{verdict.backup} is damaged: {verdict.problems[0]}",
        )
    details = {"verified": _counts(verdicts), "damaged": [verdict.backup for verdict in bad]}
    if bad:
        names = ", ".join(verdict.backup for verdict in bad[:5])
        reason = f"{len(bad)} of {len(verdicts)} backups are damaged: {names}: {bad[0].problems[0]}"
        return Work("failed", reason, details, Damaged.exit_code)
    unchecked = [line for verdict in verdicts for line in verdict.unchecked]
    return Work("warning" if unchecked else "success", "; ".join(unchecked[:3]), details)


def _content_is_old(backup: Manifest, history: History, now: datetime) -> bool:
    return now - history.content_at.get(backup.id, NEVER) >= PERIOD - NIGHT


def _looked_at(backup: Manifest, history: History) -> datetime:
    """Also when it was found damaged: that is known, and the next one is read."""
    verdict = history.verdicts.get(backup.id)
    return max(history.read_at.get(backup.id, NEVER), verdict.at if verdict and not verdict.good else NEVER)


def _counts(verdicts: Sequence[Verdict]) -> dict[Level, int]:
    counts: dict[Level, int] = {}
    for verdict in verdicts:
        counts[verdict.level] = counts.get(verdict.level, 0) + 1
    return counts
