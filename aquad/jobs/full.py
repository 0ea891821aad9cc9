"""The full backup: every source is taken into one draft, what is good is sealed, and read back from the disk."""

from __future__ import annotations

import os
import platform
import socket
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aquad import __version__
from aquad.core.clock import to_text
from aquad.core.errors import AquadError, RepositoryRefused, SourceFailed
from aquad.jobs.run import Work
from aquad.observe.space import needed, shortage
from aquad.repository import layout
from aquad.repository.manifest import ComponentRecord, JournalAnchor, Manifest
from aquad.repository.reader import BackupReader, Directory
from aquad.stream.artifact import Taken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from aquad.repository.catalog import Catalog
    from aquad.repository.draft import Draft
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import Reader, RunContext, Source


NOTHING = Taken("files", {})
"""What was taken of a component that failed."""


class Space(NamedTuple):
    """What has to stay free on the repository's file system, as a share or in bytes."""

    minimum_free_percent: float = 0.0
    minimum_free_bytes: int = 0
    live: Mapping[str, Path] = {}
    """Where the live data of the sources lies: a disk that they share with the repository must not fill up."""

    def reserve(self, root: Path) -> int:
        """What has to stay free, in bytes."""
        disk = os.statvfs(root)
        return max(self.minimum_free_bytes, int(disk.f_blocks * disk.f_frsize * self.minimum_free_percent / 100))


def take_full(
    repository: Repository,
    sources: Sequence[Source[Any]],
    run: RunContext,
    *,
    space: Space,
    kind: Literal["full", "incremental"] = "full",
) -> Work:
    """Take, read back, seal. With a failed component the good ones are sealed, and the run has failed all the same.

    `kind`: a backup of some components only, between two full ones, is an incremental.
    """
    catalog = repository.good_catalog()
    repository.encryption.prove()
    _check_space(repository, catalog, [source.component for source in sources], space)
    started_at = run.clock.now()
    with drafting(repository, kind) as draft:
        run = replace(run, timestamp=draft.timestamp)
        errors: list[AquadError] = []
        components = [
            _take(repository, source, draft, _previous(repository, catalog, source.component), run, errors)
            for source in sources
        ]
        outcomes = {"components": {component.name: component.outcome for component in components}}
        good = [component for component in components if component.good]
        failed = [f"{component.name}: {component.reason}" for component in components if not component.good]
        if not good:
            repository.abandon(draft)
            codes = {error.exit_code for error in errors}
            code = codes.pop() if len(codes) == 1 else 1
            return Work("failed", "; ".join(failed), outcomes, code, retryable=_may_help(errors))
        sealed = repository.seal(draft, manifest_of(repository, draft, components, run, started_at))
    # Each file was read back from the disk and compared before it was sealed.
    repository.journal.append("verified", backup=sealed.id, level="bytes", outcome="success", run=run.run_id)
    details = {"backup": sealed.id, **outcomes}
    if failed:
        return Work("failed", "; ".join(failed), details, retryable=_may_help(errors))
    warnings = [f"{c.name}: {warning}" for c in components for warning in c.warnings]
    return Work("warning" if warnings else "success", "; ".join(warnings), details)


@contextmanager
def drafting(repository: Repository, kind: layout.Kind) -> Iterator[Draft]:
    """A draft that is sealed in the block. An error removes it, because its run knows how it ended; what a signal or a bug
    leaves, and what was about to be sealed, stays for recovery.
    """
    draft = repository.begin(kind)
    try:
        yield draft
    except (AquadError, OSError):
        if not repository.layout.manifest(draft.id).exists() and not (draft.path / "names.json").exists():
            repository.abandon(draft)
        raise
    finally:
        draft.close()


def _may_help(errors: Sequence[AquadError]) -> bool:
    """Whether trying again may bring what is missing."""
    return any(error.retryable for error in errors)


def accepted(repository: Repository) -> set[str]:
    """Components that somebody accepted since their last good backup."""
    names: set[str] = set()
    for entry in repository.journal.entries():
        if entry["event"] == "accepted":
            names.add(entry["component"])
        elif entry["event"] == "run_ended":
            names -= {name for name, outcome in entry.get("components", {}).items() if outcome != "failed"}
    return names


def _take(
    repository: Repository,
    source: Source[Any],
    draft: Draft,
    previous: Reader | None,
    run: RunContext,
    errors: list[AquadError],
) -> ComponentRecord:
    """What fails is recorded, and put into `errors`."""
    sink = draft.sink(source.component)
    last_bytes = sum(artifact.plain_bytes for artifact in previous.artifacts) if previous else None
    run.progress.stage(source.component, last_bytes)  # about as much as last time
    started = run.clock.monotonic()
    reason, taken = "", NOTHING
    try:
        taken = source.take(sink, previous, run)
        if not sink.records:
            raise RepositoryRefused(f"take {source.component}: it produced no artifact")
    except (AquadError, OSError) as failure:
        error = failure if isinstance(failure, AquadError) else SourceFailed(f"take {source.component}: {failure}")
        sink.discard()
        errors.append(error)
        reason, taken = str(error), NOTHING
    finally:
        sink.close()
    warnings = list(taken.warnings)
    if taken.damage and previous is not None:
        _mark_damaged(repository, previous.origin, source.component, taken.damage, run)
        warnings.append(f"backup {previous.origin} is damaged: {'; '.join(taken.damage[:3])}")
    return ComponentRecord(
        name=source.component,
        outcome="failed" if reason else "warning" if warnings else "success",
        reason=reason,
        consistency=None if reason else taken.consistency,
        facts=taken.facts,
        warnings=warnings,
        notes=list(taken.notes),
        milliseconds=int((run.clock.monotonic() - started) * 1000),
        artifacts=[] if reason else sink.records,
    )


def manifest_of(
    repository: Repository, draft: Draft, components: Sequence[ComponentRecord], run: RunContext, started_at: datetime
) -> Manifest:
    outcomes = {component.outcome for component in components}
    sequence = repository.next_sequence()
    # Both are given away before there is a manifest, for its line comes after it, and may be lost.
    anchor = repository.journal.append("backup_taken", run=run.run_id, backup=draft.id, sequence=sequence)
    return Manifest(
        format=layout.FORMAT,
        id=draft.id,
        sequence=sequence,
        kind=draft.kind,
        repository_id=repository.marker.id,
        stack=repository.marker.stack,
        host=socket.gethostname(),
        started_at=to_text(started_at),
        finished_at=to_text(run.clock.now()),
        slot=to_text(run.slot) if run.slot else None,
        outcome="partial" if "failed" in outcomes else "warning" if "warning" in outcomes else "success",
        needs=[],
        components=list(components),
        software={
            "aquad": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        },
        journal=JournalAnchor(lines=anchor.lines, hash=anchor.hash),
    )


def _previous(repository: Repository, catalog: Catalog[Manifest], component: str) -> Reader | None:
    newest = catalog.latest(component)
    record = newest.component(component) if newest else None
    return BackupReader(Directory(repository.root), newest, record, repository.gpg) if newest and record else None


def _mark_damaged(repository: Repository, backup: str, component: str, damage: Sequence[str], run: RunContext) -> None:
    """A verification that nobody ordered: unchanged files are only copied when their stored bytes are what was sealed."""
    problems = [f"{component}: {problem}" for problem in damage[:20]]
    repository.journal.append(
        "verified", backup=backup, level="content", outcome="failed", problems=problems, run=run.run_id
    )


def _check_space(repository: Repository, catalog: Catalog[Manifest], components: Sequence[str], space: Space) -> None:
    """Refuse before the first byte when what the last ones took does not fit above what has to stay free."""
    histories = [_sizes(catalog, name) for name in components]
    disk = os.statvfs(repository.root)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    device = repository.root.stat().st_dev
    neighbours = [name for name, path in space.live.items() if path.exists() and path.stat().st_dev == device]
    short = shortage(
        size=size,
        free=free,
        expected=sum(map(needed, histories)),
        reserve=space.reserve(repository.root),
        last=sum(history[-1] for history in histories if history),
        shares_device_with=", ".join(neighbours[:3]) or None,
    )
    if short:
        raise RepositoryRefused(
            f"start backup in {repository.root}: {short}",
            "Free space, or lower repository.minimum_free; nothing was removed to make room.",
        )
    if disk.f_files and disk.f_favail < 100:
        raise RepositoryRefused(
            f"start backup in {repository.root}: {disk.f_favail} inodes are free", "Remove files you do not need."
        )


def _sizes(catalog: Catalog[Manifest], component: str) -> list[int]:
    """Stored bytes of a component, the oldest first."""
    return [record.stored_bytes for backup in reversed(catalog.backups) if (record := backup.component(component))]
