"""Writing one file of a draft so that it is known to be on the disk."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import xxhash

from aquad.core import filesystem
from aquad.core.errors import AquadError, Damaged, RepositoryRefused
from aquad.repository.manifest import FileRecord
from aquad.repository.plain import file_chunks, forget
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aquad.stream.gpg.gpg import Encrypting

    Cipher = Callable[[Callable[[bytes], None]], Encrypting]
    """Starts one encrypted stream; what comes out of it goes to the argument."""

BUFFER_BYTES = 512 << 10
BUFFERS_UNDER_WAY = 4
SYNC_BYTES = 32 << 20
"""A long file goes to the disk, and is read back from there, as it is written: little is left to wait for at its end."""
STRETCHES_UNDER_WAY = 4
SHARING = {filesystem.XFS, filesystem.BTRFS}


class HashedFile:
    """A new file, written in a thread of its own, behind its writer; `seal` makes it durable, and proves it.

    Its SHA-256 is that of what the disk holds; that this is what was written, XXH3 on both sides says, a tenth of the cost:
    disks make mistakes, they do not forge.

    `write` raises what an earlier write met, `seal` at the latest.
    """

    def __init__(self, directory: Path, path: str, encrypting: Cipher | None = None) -> None:
        self.path = path
        self._where = directory / path
        _make_parents(directory, self._where.parent)
        self._fd = files.create(self._where)
        self._kept = xxhash.xxh3_128()
        self._storing = ThreadPoolExecutor(1, "store")
        self._under_way: deque[Future[None]] = deque()
        self._proof = Proof(self._fd, self._where)
        self._failure: AquadError | None = None
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self.stored_bytes = self.written_bytes = 0
        """What is on the disk, and what was written: the same, unless it is encrypted."""
        self.shares_blocks = encrypting is None and filesystem.kind(self._fd) in SHARING
        self._source, self._shares = -1, False
        self._encrypting: Encrypting | None = None
        if encrypting is not None:
            try:
                self._encrypting = encrypting(self._keep)  # last, for it may write at once
            except AquadError:
                self.abandon()
                files.remove(self._where)
                raise

    def write(self, chunk: bytes) -> None:
        self.written_bytes += len(chunk)
        self._buffered_bytes += len(chunk)
        self._buffer.append(chunk)
        if self._buffered_bytes >= BUFFER_BYTES:
            self._flush(BUFFERS_UNDER_WAY)

    @property
    def is_clear(self) -> bool:
        return self._encrypting is None

    def copy_from(self, fd: int, offset: int, length: int, stored: bytes | None, xxh3: str) -> None:
        """Append a stretch of another file, always the same one. `stored`: its bytes; else `xxh3` is their digest."""
        self._flush(BUFFERS_UNDER_WAY)
        if self._source < 0:
            self._source = os.dup(fd)  # ours, for the thread may still read when the caller has closed his
            self._shares = self.shares_blocks and os.fstat(fd).st_dev == os.fstat(self._fd).st_dev
        self.written_bytes += length
        self._under_way.append(self._storing.submit(self._copy, offset, length, stored, xxh3))

    def seal(self) -> FileRecord:
        """Write what is under way, fsync, read back from the disk and compare, close. Raises Damaged."""
        if self._failure is not None:
            raise self._failure
        self._flush(0)
        self._storing.shutdown()
        if self._encrypting is not None:
            self._encrypting.finish()
            self._encrypting.end()
        sha256 = self._proof.of_all(self.stored_bytes, self._kept.digest())
        fd, self._fd = self._fd, -1
        files.close(fd, self._where)
        self._close_source()
        return FileRecord(path=self.path, stored_bytes=self.stored_bytes, stored_sha256=sha256)

    def abandon(self) -> None:
        if self._encrypting is not None:
            self._encrypting.stop()  # or the thread that feeds it might wait for ever
        self._storing.shutdown(cancel_futures=True)  # before the descriptor goes: its number may soon be another file's
        if self._encrypting is not None:
            self._encrypting.end()
        self._proof.close()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._close_source()

    def _close_source(self) -> None:
        if self._source >= 0:
            fd, self._source = self._source, -1
            os.close(fd)

    def _flush(self, left: int) -> None:
        if self._buffer:
            self._under_way.append(self._storing.submit(self._store, self._buffer))
            self._buffer, self._buffered_bytes = [], 0
        while len(self._under_way) > left:
            try:
                self._under_way.popleft().result()
            except AquadError as error:
                self._failure = error  # nothing makes this file whole again
                raise

    def _store(self, buffer: list[bytes]) -> None:
        chunk = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        if self._encrypting is not None:
            self._encrypting.write(chunk)
        else:
            self._keep(chunk)

    def _copy(self, offset: int, length: int, stored: bytes | None, xxh3: str) -> None:
        copied = xxhash.xxh3_128()
        while length:
            piece = stored or os.pread(self._source, min(BUFFER_BYTES, length), offset)
            if not piece:
                break
            copied.update(piece)
            if self._shares:
                self._kept.update(piece)
                files.share(self._source, offset, self._fd, len(piece), self._where)
                self.stored_bytes += len(piece)
                self._proof.up_to(self.stored_bytes)
            else:
                self._keep(piece)
            offset, length = offset + len(piece), length - len(piece)
        if stored is None and copied.hexdigest() != xxh3:
            raise Damaged(
                f"copy to {self._where}: the previous archive holds other bytes than a moment ago",
                "Verify it, look into the kernel's log, and run the backup again.",
            )

    def _keep(self, stored: bytes) -> None:
        self._kept.update(stored)
        files.write(self._fd, stored, self._where)
        self.stored_bytes += len(stored)
        self._proof.up_to(self.stored_bytes)


class Proof:
    """Brings a file to the disk, reads it back from there and hashes it, in a thread of its own, behind its writer.

    What memory still holds proves nothing. The first failure is the file's end: a second fsync would succeed, though what
    the first one could not write is lost (PostgreSQL wiki, "Fsync Errors").
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._syncing, self._reading = ThreadPoolExecutor(1, "sync"), ThreadPoolExecutor(1, "prove")
        self._under_way: deque[Future[None]] = deque()
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        self._offset = 0

    def up_to(self, length: int) -> None:
        """Prove what is written, in stretches of whole pages (no others leave the page cache). Raises earlier failures."""
        if length - self._offset >= SYNC_BYTES:
            self._prove(length - length % mmap.PAGESIZE)
            self._wait(STRETCHES_UNDER_WAY)

    def of_all(self, length: int, xxh3: bytes) -> str:
        """Return the SHA-256 of what the disk holds. Raises Damaged when that is not what was written."""
        self._prove(length)
        self._wait(0)
        self._reading.shutdown()
        self._syncing.shutdown()
        if self._xxh3.digest() != xxh3:
            raise Damaged(
                f"read back {self._path}: the disk holds other bytes than were written",
                "Look into the kernel's log; do not trust this disk.",
            )
        return self._sha256.hexdigest()

    def close(self) -> None:
        self._syncing.shutdown(cancel_futures=True)
        self._reading.shutdown(cancel_futures=True)

    def _prove(self, end: int) -> None:
        stretch = self._offset, end - self._offset
        self._under_way.append(self._reading.submit(self._read, self._syncing.submit(self._sync, *stretch), *stretch))
        self._offset = end

    def _wait(self, left: int) -> None:
        while len(self._under_way) > left or (self._under_way and self._under_way[0].done()):
            self._under_way.popleft().result()

    def _sync(self, offset: int, length: int) -> None:
        files.sync(self._fd, self._path)
        forget(self._path, offset, length)

    def _read(self, synced: Future[None], offset: int, length: int) -> None:
        synced.result()
        for chunk in file_chunks(self._path, offset, length):
            self._sha256.update(chunk)
            self._xxh3.update(chunk)
        forget(self._path, offset, length)  # it would only push out what the stack has in memory


def _make_parents(below: Path, directory: Path) -> None:
    """Make the directories between `below` and `directory`, 0700. A path that leaves `below` is a bug of its source."""
    if ".." in directory.parts or not directory.is_relative_to(below):
        raise RepositoryRefused(f"create a file in {directory}: it is outside the draft {below}")
    if directory != below and not directory.is_dir():
        _make_parents(below, directory.parent)
        files.make_directory(directory)
