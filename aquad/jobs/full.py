"""The full backup: every source is taken into one draft, what is good is sealed, and read back from the disk."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aquad import __version__
from aquad.core.clock import to_text
from aquad.core.errors import AquadError, RepositoryRefused, SourceFailed
from aquad.jobs.run import Work
from aquad.observe.reports import backup_report
from aquad.repository import layout
from aquad.repository.manifest import ComponentRecord, FileRecord, JournalAnchor, Manifest
from aquad.repository.reader import BackupReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from aquad.repository.catalog import Catalog
    from aquad.repository.draft import Draft
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import Reader, RunContext, Source

GROWTH = 6, 5
"""A backup may be a fifth larger than the last one before the space for it is in doubt."""


class Space(NamedTuple):
    """What has to stay free on the repository's file system, as a share or in bytes."""

    minimum_free_percent: float = 0.0
    minimum_free_bytes: int = 0


def take_full(repository: Repository, sources: Sequence[Source[Any]], run: RunContext, *, space: Space) -> Work:
    """Take, seal, read back. With a failed component the good ones are sealed, and the run has failed all the same."""
    catalog = repository.catalog()
    repository.encryption.prove()
    _check_space(repository, catalog, [source.component for source in sources], space)
    started_at = run.clock.now()
    draft = repository.begin("full")
    try:
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
            return Work("failed", "; ".join(failed), outcomes, codes.pop() if len(codes) == 1 else 1)
        sealed = repository.seal(draft, _manifest(repository, draft, components, run, started_at))
    except (AquadError, OSError):
        # Kept from the recovery of the next run, because this one knows how it ended. What a signal or a bug leaves stays for it.
        if not repository.layout.manifest(draft.id).exists() and not (draft.path / "names.json").exists():
            repository.abandon(draft)
        raise
    finally:
        draft.close()
    # Each file was read back from the disk and compared before it was sealed.
    repository.journal.append("verified", backup=sealed.id, level="bytes", outcome="success", run=run.run_id)
    details = {"backup": sealed.id, **outcomes}
    if failed:
        return Work("failed", "; ".join(failed), details)
    warnings = [f"{c.name}: {warning}" for c in components for warning in c.warnings]
    return Work("warning" if warnings else "success", "; ".join(warnings), details)


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
    outcome: Literal["success", "warning", "failed"] = "success"
    try:
        taken = source.take(sink, previous, run)
        if not sink.records:
            raise RepositoryRefused(f"take {source.component}: it produced no artifact")
    except (AquadError, OSError) as failure:
        error = failure if isinstance(failure, AquadError) else SourceFailed(f"take {source.component}: {failure}")
        sink.discard()
        errors.append(error)
        return ComponentRecord(
            name=source.component,
            outcome="failed",
            reason=str(error),
            consistency=None,
            facts={},
            warnings=[],
            notes=[],
            artifacts=[],
        )
    finally:
        sink.close()
    warnings = list(taken.warnings)
    if taken.damage and previous is not None:
        _mark_damaged(repository, previous.origin, source.component, taken.damage, run)
        warnings.append(f"backup {previous.origin} is damaged: {'; '.join(taken.damage[:3])}")
    if warnings:
        outcome = "warning"
    return ComponentRecord(
        name=source.component,
        outcome=outcome,
        reason="",
        consistency=taken.consistency,
        facts=taken.facts,
        warnings=warnings,
        notes=list(taken.notes),
        artifacts=sink.records,
    )


def _manifest(
    repository: Repository, draft: Draft, components: Sequence[ComponentRecord], run: RunContext, started_at: datetime
) -> Manifest:
    outcomes = {component.outcome for component in components}
    sequence = repository.next_sequence()
    # Both are given away before there is a manifest, for its line comes after it, and may be lost.
    anchor = repository.journal.append("backup_taken", run=run.run_id, backup=draft.id, sequence=sequence)
    unsealed = Manifest(
        format=layout.FORMAT,
        id=draft.id,
        sequence=sequence,
        kind="full",
        repository_id=repository.marker.id,
        stack=repository.marker.stack,
        host=socket.gethostname(),
        started_at=to_text(started_at),
        finished_at=to_text(run.clock.now()),
        slot=None,
        outcome="partial" if "failed" in outcomes else "warning" if "warning" in outcomes else "success",
        needs=[],
        components=list(components),
        report=FileRecord(path=layout.report_path(draft.timestamp), stored_bytes=0, stored_sha256=""),
        software={
            "aquad": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        },
        journal=JournalAnchor(lines=anchor.lines, hash=anchor.hash),
    )
    report = draft.write_file(unsealed.report.path, backup_report(unsealed.model_dump(mode="json")).encode())
    return unsealed.model_copy(update={"report": report})


def _previous(repository: Repository, catalog: Catalog, component: str) -> Reader | None:
    newest = catalog.latest(component)
    record = newest.component(component) if newest else None
    return BackupReader(repository.root, newest, record, repository.gpg) if newest and record else None


def _mark_damaged(repository: Repository, backup: str, component: str, damage: Sequence[str], run: RunContext) -> None:
    """A verification that nobody ordered: unchanged files are only copied when their stored bytes are what was sealed."""
    problems = [f"{component}: {problem}" for problem in damage[:20]]
    repository.journal.append(
        "verified", backup=backup, level="content", outcome="failed", problems=problems, run=run.run_id
    )


def _check_space(repository: Repository, catalog: Catalog, components: Sequence[str], space: Space) -> None:
    """Refuse before the first byte when the last sizes and a fifth do not fit above the reserve."""
    expected = 0
    for name in components:
        newest = catalog.latest(name)
        record = newest.component(name) if newest else None
        expected += sum(artifact.stored_bytes for artifact in record.artifacts) if record else 0
    expected = expected * GROWTH[0] // GROWTH[1]
    disk = os.statvfs(repository.root)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    reserve = max(space.minimum_free_bytes, int(size * space.minimum_free_percent / 100))
    if free - expected < reserve:
        raise RepositoryRefused(
            f"start backup in {repository.root}: {free} bytes are free, about {expected} are needed and {reserve} must stay free",
            "Free space, or lower repository.minimum_free; nothing was removed to make room.",
        )
    if disk.f_files and disk.f_favail < 100:
        raise RepositoryRefused(
            f"start backup in {repository.root}: {disk.f_favail} inodes are free", "Remove files you do not need."
        )
