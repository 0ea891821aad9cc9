"""The weekly archive: a backup whole in one ordinary file, with its manifest, for another shelf and for `tar -xzf`."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aquad.core.clock import from_text
from aquad.core.errors import Damaged, RepositoryRefused, SourceFailed
from aquad.jobs.full import drafting, manifest_of
from aquad.repository import layout, manifest
from aquad.repository.enclosed import COMPONENT
from aquad.repository.hashed import HashedFile
from aquad.repository.manifest import ArtifactRecord, ComponentRecord
from aquad.repository.plain import file_chunks, forget
from aquad.repository.reader import check_file
from aquad.stream import plaintar
from aquad.stream.pipeline import Pipeline
from aquad.stream.stretches import Cutter, member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aquad.repository.manifest import FileRecord, Manifest
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import RunContext
    from aquad.stream.stretches import Way

OVERHEAD = 101, 100


def archive(repository: Repository, backup: Manifest, run: RunContext, *, reserve_bytes: int = 0) -> Manifest:
    """Put a sealed backup whole into one file, and seal that as a backup of kind weekly. The caller holds the lock.

    `reserve_bytes`: what has to stay free on the disk. Raises Damaged, and nothing is sealed, when a byte of the backup is not
    what was sealed; it is recorded as damaged then.
    """
    _check_space(repository, backup, reserve_bytes)
    started_at, started = run.clock.now(), run.clock.monotonic()
    with drafting(repository, "weekly") as draft:
        path = free_path(repository.root, backup.id)
        run.progress.stage(COMPONENT, backup.stored_bytes)
        file = HashedFile(draft.path, path)
        try:
            record = _written(repository, backup, file, run)
        except Damaged as error:
            # A verification that nobody ordered, and as good as one.
            repository.journal.append(
                "verified", backup=backup.id, level="bytes", outcome="failed", problems=[str(error)], run=run.run_id
            )
            raise
        finally:
            file.abandon()
        milliseconds = int((run.clock.monotonic() - started) * 1000)
        unsealed = manifest_of(repository, draft, [_component(backup, record, milliseconds)], run, started_at)
        sealed = repository.seal(draft, unsealed.model_copy(update={"outcome": backup.outcome}))
    # The file was read back from the disk and compared before it was sealed.
    repository.journal.append("verified", backup=sealed.id, level="bytes", outcome="success", run=run.run_id)
    return sealed


def free_path(root: Path, backup_id: str) -> str:
    """`weekly/weekly_backup_<year>_week_<week>.tar.gz`: ISO year and week of the backup's start, as its id has it."""
    day = datetime.strptime(layout.timestamp_of(backup_id), "%Y%m%d_%H%M%S").date()  # noqa: DTZ007 - in the schedule's zone already
    year, week, _ = day.isocalendar()
    path = stem = f"weekly/weekly_backup_{year}_week_{week:02}"
    number = 2
    while os.path.lexists(root / f"{path}.tar.gz"):
        path, number = f"{stem}_{number}", number + 1
    return f"{path}.tar.gz"


def _written(repository: Repository, backup: Manifest, file: HashedFile, run: RunContext) -> ArtifactRecord:
    mtime = int(from_text(backup.started_at).timestamp())
    digest, plain_bytes = hashlib.sha256(), 0

    with Pipeline(file.write) as pipeline:

        def take(plain: bytes, way: Way) -> None:
            nonlocal plain_bytes
            plain_bytes += len(plain)
            pipeline.push(_made(plain, way, digest))

        cutter = Cutter(take)
        stored = _manifest_bytes(repository, backup)
        name = f"manifests/{backup.id}.json"
        cutter.write(plaintar.header(name, len(stored), mtime) + stored + plaintar.padding(len(stored)), "deflated")
        for record, way in _files(backup):
            cutter.write(plaintar.header(record.path, record.stored_bytes, mtime), way)
            for chunk in _compared(repository.root, record, run):
                cutter.write(chunk, way)
            cutter.write(plaintar.padding(record.stored_bytes), way)
        cutter.write(plaintar.END, "deflated")
        cutter.flush()
        pipeline.drain()
    sealed = file.seal()
    return ArtifactRecord(
        **sealed.model_dump(),
        plain_bytes=plain_bytes,
        plain_sha256=digest.hexdigest(),
        compression="gzip",
        facts={},
        parts=[],
    )


def _made(plain: bytes, way: Way, digest: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        digest.update(plain)
        return member(plain, way)

    return make


def _files(backup: Manifest) -> Iterator[tuple[FileRecord, Way]]:
    """Indexes first, for they say what is in the rest. What is compressed or encrypted becomes no smaller."""
    artifacts = [artifact for component in backup.components for artifact in component.artifacts]
    for artifact in artifacts:
        if artifact.index is not None:
            yield artifact.index, "stored"
    for artifact in artifacts:
        plain = artifact.compression == "none" and artifact.encryption.mode == "off"
        yield artifact, "deflated" if plain else "stored"


def _manifest_bytes(repository: Repository, backup: Manifest) -> bytes:
    path = repository.layout.manifest(backup.id)
    stored = b"".join(file_chunks(path))
    if manifest.parse(stored, backup.id).manifest_sha256 != backup.manifest_sha256:
        raise Damaged(f"archive {backup.id}: its manifest is another than was sealed", "Somebody changed it.")
    return stored


def _compared(root: Path, record: FileRecord, run: RunContext) -> Iterator[bytes]:
    """The bytes of a file, from the disk. Raises Damaged at its end when they are not what was sealed."""
    check_file(root, record, read=False)
    path, digest = root / record.path, hashlib.sha256()
    forget(path)
    for chunk in file_chunks(path, 0, record.stored_bytes):
        if run.cancel.is_set():
            raise SourceFailed(f"archive {record.path}: cancelled")
        digest.update(chunk)
        run.progress.advance(len(chunk))
        yield chunk
    forget(path)
    if digest.hexdigest() != record.stored_sha256:
        raise Damaged(
            f"archive {record.path}: SHA-256 {digest.hexdigest()[:16]}..., sealed was {record.stored_sha256[:16]}...",
            "Look into the kernel's log, and take a new full backup.",
        )


def _component(backup: Manifest, record: ArtifactRecord, milliseconds: int) -> ComponentRecord:
    good = [component for component in backup.components if component.good]
    labels = {component.consistency for component in good}
    incomplete = [f"{backup.id} has {c.name} as {c.outcome}" for c in backup.components if c.outcome != "success"]
    return ComponentRecord(
        name=COMPONENT,
        outcome="warning" if incomplete else "success",
        reason="",
        # Where they differ, each stands in the manifest inside; of the archive it is true that its files were copied whole.
        consistency=labels.pop() if len(labels) == 1 else "files",
        facts={"backup": backup.id, "components": {c.name: c.outcome for c in backup.components}},
        warnings=incomplete,
        notes=[],
        milliseconds=milliseconds,
        artifacts=[record],
    )


def _check_space(repository: Repository, backup: Manifest, reserve_bytes: int) -> None:
    needed = backup.stored_bytes * OVERHEAD[0] // OVERHEAD[1] + (16 << 20)
    disk = os.statvfs(repository.root)
    free = disk.f_bavail * disk.f_frsize
    if free - needed < reserve_bytes:
        raise RepositoryRefused(
            f"archive {backup.id}: {free} bytes are free, {needed} are needed and {reserve_bytes} must stay free",
            "Free space; the backup itself is sealed and good.",
        )
