"""A draft: work in progress, invisible to every listing, on the same file system as the repository it will be sealed into."""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, Any

import msgspec

from aquad.core.errors import RepositoryWriteFailed
from aquad.repository import layout
from aquad.repository.hashed import BUFFER_BYTES, HashedFile
from aquad.repository.manifest import ArtifactRecord, EncryptionRecord, FileRecord, PartRecord
from aquad.storage import files
from aquad.stream.gzip import Deflate
from aquad.stream.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from aquad.repository.encryption import Encryption
    from aquad.stream.artifact import Facts, Part


class RawArtifact:
    """A `RawFile`: its writer compresses; members are recorded in an index beside the manifest."""

    def __init__(
        self, file: HashedFile, index: HashedFile | None, records: list[ArtifactRecord], encryption: EncryptionRecord
    ) -> None:
        self._file = file
        self._index = index
        self._deflate = Deflate()
        self._records = records
        self._encryption = encryption
        self._lines: list[bytes] = []
        self._lines_bytes = 0

    def write(self, stored: bytes) -> None:
        self._file.write(stored)

    def tell(self) -> int:
        return self._file.written_bytes

    @property
    def is_clear(self) -> bool:
        return self._file.is_clear

    @property
    def shares_blocks(self) -> bool:
        return self._file.shares_blocks and self._index is not None

    def copy_from(self, fd: int, offset: int, length: int, stored: bytes | None, xxh3: str) -> None:
        self._file.copy_from(fd, offset, length, stored, xxh3)

    def record(self, member: Mapping[str, Any]) -> None:
        line = msgspec.json.encode(member, order="sorted") + b"\n"
        self._lines.append(line)
        self._lines_bytes += len(line)
        if self._lines_bytes > BUFFER_BYTES:
            self._write_lines()

    def finish(self, *, plain_bytes: int, facts: Facts) -> None:
        index = None
        if self._index is not None:
            self._write_lines()
            self._index.write(self._deflate.flush())
            index = self._index.seal()
        sealed = self._file.seal()
        self._records.append(
            ArtifactRecord(
                **sealed.model_dump(),
                index=index,
                plain_bytes=plain_bytes,
                plain_sha256=None,
                compression="gzip",
                encryption=self._encryption,
                facts=facts,
                parts=[],
            )
        )

    def abandon(self) -> None:
        self._file.abandon()
        if self._index is not None:
            self._index.abandon()

    def _write_lines(self) -> None:
        if self._index is not None:
            self._index.write(self._deflate.compress(b"".join(self._lines)))
        self._lines, self._lines_bytes = [], 0


class AsideArtifact(RawArtifact):
    """What a restore replaces, kept outside of any backup. Its file gets its name when it is whole."""

    def __init__(self, file: HashedFile, directory: Path) -> None:
        super().__init__(file, None, [], EncryptionRecord())
        self._directory = directory

    def finish(self, *, plain_bytes: int, facts: Facts) -> None:
        super().finish(plain_bytes=plain_bytes, facts=facts)
        unfinished = self._directory / self._file.path
        files.rename(unfinished, unfinished.with_suffix(""))
        files.sync_directory(self._directory)

    def abandon(self) -> None:
        super().abandon()
        unfinished = self._directory / self._file.path
        for path in (unfinished, unfinished.with_suffix("")):
            if os.path.lexists(path):
                files.remove(path)
        if not any(self._directory.iterdir()):
            files.remove_directory(self._directory)


class DraftSink:
    """The draft of one component."""

    def __init__(self, draft: Draft, component: str) -> None:
        self._draft = draft
        self._component = component
        self._open: list[HashedFile] = []
        self.records: list[ArtifactRecord] = []

    def add(self, path: str, parts: Iterable[Part], *, gzip: bool) -> None:
        file = self._create(path)
        stored_parts: list[PartRecord] = []
        plain_digest = hashlib.sha256()
        with Pipeline(file.write) as pipeline:
            for part in parts:
                offset, plain_bytes = file.written_bytes, 0
                deflate = Deflate() if gzip else None
                for chunk in part.chunks:
                    plain_bytes += len(chunk)
                    pipeline.push(_transformed(chunk, plain_digest, deflate))
                if deflate:
                    pipeline.push(deflate.flush)
                pipeline.drain()
                length = file.written_bytes - offset
                stored_parts.append(
                    PartRecord(
                        name=part.name, offset=offset, length=length, plain_bytes=plain_bytes, facts=part.facts()
                    )
                )
        sealed = file.seal()
        self.records.append(
            ArtifactRecord(
                **sealed.model_dump(),
                plain_bytes=sum(part.plain_bytes for part in stored_parts),
                plain_sha256=plain_digest.hexdigest(),
                compression="gzip" if gzip else "none",
                encryption=self._draft.encryption.record,
                facts={},
                parts=stored_parts,
            )
        )

    def raw(self, path: str, *, indexed: bool = False) -> RawArtifact:
        index = self._create(layout.index_path(self._draft.id, self._component)) if indexed else None
        return RawArtifact(self._create(path), index, self.records, self._draft.encryption.record)

    def close(self) -> None:
        """Close whatever a failed source left open."""
        for file in self._open:
            file.abandon()

    def discard(self) -> None:
        """Remove what a failed source wrote: it is not sealed."""
        self.close()
        for file in self._open:
            where = self._draft.path / file.path
            if where.exists():
                files.remove(where)
            _remove_empty_parents(self._draft.path, where.parent)

    def _create(self, path: str) -> HashedFile:
        encryption = self._draft.encryption
        file = HashedFile(self._draft.path, encryption.name(path), encryption.cipher)
        self._open.append(file)
        return file


class Draft:
    """`drafts/<id>/`, held by a lock of its own, so that recovery leaves it alone while its run lives."""

    def __init__(self, where: layout.Layout, backup_id: str, encryption: Encryption) -> None:
        self.id = backup_id
        self.encryption = encryption
        self.timestamp = layout.timestamp_of(backup_id)
        self.kind = layout.kind_of(backup_id)
        self.path = where.drafts / backup_id
        files.make_directory(self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            files.sync_directory(where.drafts)
        except RepositoryWriteFailed:
            self.close()  # or the draft would pass for that of a living run
            raise

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def sink(self, component: str) -> DraftSink:
        return DraftSink(self, component)

    def write_file(self, path: str, content: bytes) -> FileRecord:
        file = HashedFile(self.path, path)
        try:
            file.write(content)
            return file.seal()
        finally:
            file.abandon()

    def sync_directories(self) -> None:
        for directory, _, _ in os.walk(self.path):
            files.sync_directory(self.path / directory)


def _transformed(chunk: bytes, plain_digest: Any, deflate: Deflate | None) -> Callable[[], bytes]:
    def transform() -> bytes:
        plain_digest.update(chunk)
        return deflate.compress(chunk) if deflate else chunk

    return transform


def _remove_empty_parents(below: Path, directory: Path) -> None:
    while directory != below and directory.is_dir() and not any(directory.iterdir()):
        files.remove_directory(directory)
        directory = directory.parent
