"""A draft: work in progress, invisible to every listing, on the same file system as the repository it will be sealed into."""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from isal import isal_zlib

from aquad.core.errors import Damaged, RepositoryRefused, RepositoryWriteFailed
from aquad.repository import layout
from aquad.repository.manifest import ArtifactRecord, FileRecord, PartRecord
from aquad.repository.reader import file_chunks, forget
from aquad.storage import files
from aquad.stream.gzip import Deflate
from aquad.stream.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from aquad.stream.artifact import Facts, Part

BUFFER_BYTES = 512 << 10
BUFFERS_UNDER_WAY = 4
SYNC_BYTES = 32 << 20
"""A long file goes to the disk, and is read back from there, as it is written: little is left to wait for at its end."""


class HashedFile:
    """A new file, written in a thread of its own, behind its writer; `seal` makes it durable, and proves it.

    Its SHA-256 is that of what the disk holds. That this is what was written, a CRC-32 on both sides says: one in four
    thousand million damages passes it, at a tenth of a second digest's cost (and a tar's index has digests of its own).

    `write` raises what an earlier write met, `seal` at the latest.
    """

    def __init__(self, directory: Path, path: str) -> None:
        self.path = path
        self._where = directory / path
        _make_parents(directory, self._where.parent)
        self._fd = files.create(self._where)
        self._crc = 0
        self._storing = ThreadPoolExecutor(1, "store")
        self._under_way: deque[Future[None]] = deque()
        self._read_back = ReadBack(self._where)
        self._failure: RepositoryWriteFailed | None = None
        self._buffer: list[bytes] = []
        self._buffered_bytes = self._unsynced_bytes = 0
        self.stored_bytes = 0

    def write(self, stored: bytes) -> None:
        self.stored_bytes += len(stored)
        self._buffered_bytes += len(stored)
        self._buffer.append(stored)
        if self._buffered_bytes >= BUFFER_BYTES:
            self._flush(BUFFERS_UNDER_WAY)

    def seal(self) -> FileRecord:
        """Write what is under way, fsync, read back from the disk and compare, close. Raises Damaged."""
        if self._failure is not None:
            raise self._failure
        self._flush(0)
        self._storing.shutdown()
        self._sync(to_the_end=True)
        fd, self._fd = self._fd, -1
        files.close(fd, self._where)
        return FileRecord(
            path=self.path, stored_bytes=self.stored_bytes, stored_sha256=self._read_back.compared(self._crc)
        )

    def abandon(self) -> None:
        self._storing.shutdown(cancel_futures=True)  # before the descriptor goes: its number may soon be another file's
        self._read_back.close()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _flush(self, left: int) -> None:
        if self._buffer:
            self._under_way.append(self._storing.submit(self._store, self._buffer))
            self._buffer, self._buffered_bytes = [], 0
        while len(self._under_way) > left:
            try:
                self._under_way.popleft().result()
            except RepositoryWriteFailed as error:
                self._failure = error  # nothing makes this file whole again
                raise

    def _store(self, buffer: list[bytes]) -> None:
        stored = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        self._crc = isal_zlib.crc32(stored, self._crc)
        files.write(self._fd, stored, self._where)
        self._unsynced_bytes += len(stored)
        if self._unsynced_bytes >= SYNC_BYTES:
            self._sync()

    def _sync(self, *, to_the_end: bool = False) -> None:
        """Up to a page's end, for only whole pages leave the page cache."""
        files.sync(self._fd, self._where)
        rest = 0 if to_the_end else self._read_back.beyond_a_page(self._unsynced_bytes)
        self._read_back.follow(self._unsynced_bytes - rest)
        self._unsynced_bytes = rest


class ReadBack:
    """Hashes a file on the disk, in a thread of its own, as far as it was synced: what memory still holds proves nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = ThreadPoolExecutor(1, "read back")
        self._under_way: list[Future[None]] = []
        self._digest, self._crc = hashlib.sha256(), 0
        self._offset = 0

    def beyond_a_page(self, length: int) -> int:
        """How many of the next `length` bytes lie on a page that they do not fill."""
        return (self._offset + length) % mmap.PAGESIZE

    def follow(self, length: int) -> None:
        """Read the next `length` bytes, which were synced."""
        self._under_way.append(self._reading.submit(self._read, self._offset, length))
        self._offset += length

    def compared(self, crc: int) -> str:
        """Wait until all of it was read; return its SHA-256. Raises Damaged when the disk holds something else."""
        self._reading.shutdown()
        for future in self._under_way:
            future.result()
        if self._crc != crc:
            raise Damaged(
                f"read back {self._path}: the disk holds other bytes than were written",
                "Look into the kernel's log; do not trust this disk.",
            )
        return self._digest.hexdigest()

    def close(self) -> None:
        self._reading.shutdown(cancel_futures=True)

    def _read(self, offset: int, length: int) -> None:
        forget(self._path, offset, length)
        for chunk in file_chunks(self._path, offset, length):
            self._digest.update(chunk)
            self._crc = isal_zlib.crc32(chunk, self._crc)


class RawArtifact:
    """A `RawFile`: its writer compresses; members are recorded in an index beside the manifest."""

    def __init__(self, file: HashedFile, index: HashedFile | None, records: list[ArtifactRecord]) -> None:
        self._file = file
        self._index = index
        self._deflate = Deflate()
        self._records = records
        self._lines: list[bytes] = []
        self._lines_bytes = 0

    def write(self, stored: bytes) -> None:
        self._file.write(stored)

    def tell(self) -> int:
        return self._file.stored_bytes

    def record(self, member: Mapping[str, Any]) -> None:
        line = json.dumps(member, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"
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
        super().__init__(file, None, [])
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
                offset, plain_bytes = file.stored_bytes, 0
                deflate = Deflate() if gzip else None
                for chunk in part.chunks:
                    plain_bytes += len(chunk)
                    pipeline.push(_transformed(chunk, plain_digest, deflate))
                if deflate:
                    pipeline.push(deflate.flush)
                pipeline.drain()
                length = file.stored_bytes - offset
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
                facts={},
                parts=stored_parts,
            )
        )

    def raw(self, path: str, *, indexed: bool = False) -> RawArtifact:
        index = self._create(layout.index_path(self._draft.id, self._component)) if indexed else None
        return RawArtifact(self._create(path), index, self.records)

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
        file = HashedFile(self._draft.path, path)
        self._open.append(file)
        return file


class Draft:
    """`drafts/<id>/`, held by a lock of its own, so that recovery leaves it alone while its run lives."""

    def __init__(self, where: layout.Layout, backup_id: str) -> None:
        self.id = backup_id
        self.timestamp = layout.timestamp_of(backup_id)
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


def _make_parents(below: Path, directory: Path) -> None:
    """Make the directories between `below` and `directory`, 0700. A path that leaves `below` is a bug of its source."""
    if ".." in directory.parts or not directory.is_relative_to(below):
        raise RepositoryRefused(f"create a file in {directory}: it is outside the draft {below}")
    if directory != below and not directory.is_dir():
        _make_parents(below, directory.parent)
        files.make_directory(directory)


def _remove_empty_parents(below: Path, directory: Path) -> None:
    while directory != below and directory.is_dir() and not any(directory.iterdir()):
        files.remove_directory(directory)
        directory = directory.parent
