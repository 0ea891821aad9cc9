"""Writing the archive: two threads read and deflate, one hashes big files, the caller's thread keeps the order.

A file that changes under the reader never breaks the archive: what shrank is read again, and padded and named if it goes
on shrinking; what grew is stored at its first size; what changed is named.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import SourceFailed
from aquad.core.escape import escaped
from aquad.stream.tarball.content import (
    CHUNK_BYTES,
    Content,
    big_chunk,
    changed_since,
    data_segments,
    deflated,
    made,
    open_file,
    pieces_of,
    small_file,
    whole,
    xattrs_of,
    xattrs_of_fd,
)
from aquad.stream.tarball.header import BLOCK, header
from aquad.stream.tarball.member import member_of, named, status_lines, xattr_lines
from aquad.stream.tarball.scan import Entry, Root, Walk, unreadable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from aquad.stream.artifact import RawFile

NAMED = 100
"""So many changed or skipped paths are named; the rest is counted."""
PATH_MAX = 4096
BATCH_BYTES = 1 << 20
BATCH_MEMBERS = 32
"""Small members go to a worker together: one at a time, handing them over would cost more than the work."""


class TreeFacts(NamedTuple):
    members: int
    files: int
    plain_bytes: int
    tar_bytes: int
    changed: list[str]
    changed_count: int
    grown: int
    skipped: list[str]
    skipped_count: int
    long_paths: list[str]


def write_tree(
    roots: Sequence[Root], out: RawFile, *, advance: Callable[[int], None], cancel: threading.Event, workers: int = 2
) -> TreeFacts:
    """Write all members and the end of the archive; `out.finish` is the caller's. Raises SourceFailed: nothing is skipped."""
    with contextlib.closing(_Packer(out, advance, cancel, workers)) as packer:
        return packer.run(roots)


class _BigFile:
    """A file of many chunks, until its last one is written."""

    def __init__(self, member: dict[str, Any], fd: int, status: os.stat_result) -> None:
        self.member = member
        self.fd = fd
        self.status = status
        self.content, self.stored = hashlib.sha256(), hashlib.sha256()
        self.hashing: deque[Future[None]] = deque()
        self.chunks: list[list[int]] = []
        self.shrunk = False


class _Packer:
    def __init__(self, out: RawFile, advance: Callable[[int], None], cancel: threading.Event, workers: int) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(workers, "deflate")
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._advance = advance
        self._cancel = cancel
        self._depth = 3 * workers
        self._batch: list[tuple[dict[str, Any], Callable[[], Content]]] = []
        self._batch_bytes = 0
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        """What the workers make, in the archive's order, and who writes it."""
        self._big_fds: set[int] = set()
        self._links: dict[tuple[int, int], bytes] = {}
        self._changed: list[str] = []
        self._skipped: list[str] = []
        self._long: list[str] = []
        self._changed_count = self._skipped_count = self._grown = 0
        self._members = self._files = self._plain_bytes = self._tar_bytes = 0

    def run(self, roots: Sequence[Root]) -> TreeFacts:
        walk = Walk(self._skip, lambda path: self._note(path, "vanished"))
        for root in roots:
            for entry in walk.entries(root):
                self._stop_if_cancelled(entry.path)
                self._add(entry)
        self._flush()
        self._settle(0)
        self._out.write(deflated([bytes(2 * BLOCK)]))
        self._tar_bytes += 2 * BLOCK
        return TreeFacts(
            self._members,
            self._files,
            self._plain_bytes,
            self._tar_bytes,
            self._changed,
            self._changed_count,
            self._grown,
            self._skipped,
            self._skipped_count,
            self._long,
        )

    def close(self) -> None:
        """End the workers. Each closes the small files it was handed; big ones are closed when nobody reads them any more."""
        if self._batch:
            self._pool.submit(made, [make for _, make in self._batch])
        self._pool.shutdown()
        self._hasher.shutdown()
        for fd in self._big_fds:
            os.close(fd)

    def _add(self, entry: Entry) -> None:
        status = entry.status
        if len(entry.path) >= PATH_MAX:
            self._long.append(escaped(entry.path)[:200])
        member = member_of(entry)
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = self._links.setdefault(identity, entry.path)
            if first != entry.path:
                member |= {"type": "hardlink", "size": 0, **named("link", first)}
                self._queue_plain(member, header(entry.path, status, link=first, hard=True))
                return
        if stat.S_ISREG(status.st_mode):
            if not self._add_file(entry, member) and self._links.get(identity) == entry.path:
                del self._links[identity]
            return
        xattrs, link = xattrs_of(entry), b""
        if stat.S_ISLNK(status.st_mode):
            link = os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory))
            member |= named("link", link)
        member |= xattr_lines(xattrs)
        self._queue_plain(member, header(entry.path, status, link=link, xattrs=xattrs))

    def _add_file(self, entry: Entry, member: dict[str, Any]) -> bool:
        """Open it here, read it in a worker. False when it vanished meanwhile."""
        try:
            fd = open_file(entry)
        except FileNotFoundError:
            self._note(entry.path, "vanished")
            return False
        except OSError as error:
            raise unreadable(entry.path, error) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_ino != entry.status.st_ino:
            self._note(entry.path, "replaced while it was read")
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                return False
        os.posix_fadvise(fd, 0, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)  # so that the disk is ahead of the workers
        xattrs = xattrs_of_fd(fd)
        segments = data_segments(fd, status) if status.st_blocks * 512 < status.st_size else None
        size = sum(length for _, length in segments) if segments is not None else status.st_size
        member |= {**status_lines(status), "size": status.st_size, **xattr_lines(xattrs)}
        if segments is not None:
            member["segments"] = [list(segment) for segment in segments]
        head = header(entry.path, status, size=size, xattrs=xattrs, segments=segments)
        member["header_bytes"] = len(head)
        self._files += 1
        self._plain_bytes += status.st_size
        if size <= CHUNK_BYTES:
            self._queue(member, partial(small_file, fd, status, head, segments or [(0, status.st_size)]), size)
        else:
            self._add_big_file(member, fd, status, head, segments or [(0, status.st_size)])
        return True

    def _add_big_file(
        self, member: dict[str, Any], fd: int, status: os.stat_result, head: bytes, segments: Sequence[tuple[int, int]]
    ) -> None:
        self._flush()
        big = _BigFile(member, fd, status)
        self._big_fds.add(fd)
        total = left = sum(length for _, length in segments)
        for piece in pieces_of(segments):
            self._stop_if_cancelled(member["path"].encode())
            left -= sum(length for _, length in piece)
            tail = b"" if left else bytes(-total % BLOCK)
            future = self._pool.submit(big_chunk, fd, piece, head, tail)
            self._waiting.append((future, partial(self._take_chunk, big, last=not left)))
            self._settle(self._depth)
            head = b""

    def _take_chunk(self, big: _BigFile, chunk: Content, *, last: bool) -> None:
        big.hashing.append(self._hasher.submit(_hash, big.content, chunk.blocks))
        big.hashing.append(self._hasher.submit(big.stored.update, chunk.stored))
        while len(big.hashing) > self._depth:
            big.hashing.popleft().result()
        big.chunks.append([self._out.tell(), len(chunk.stored), chunk.plain_bytes])
        self._out.write(chunk.stored)
        self._advance(chunk.plain_bytes)
        big.shrunk = big.shrunk or bool(chunk.note)
        if last:
            note = "shrunk" if big.shrunk else changed_since(big.fd, big.status)
            self._big_fds.remove(big.fd)
            os.close(big.fd)
            for future in big.hashing:
                future.result()
            offset = big.chunks[0][0]
            self._finish(big.member, offset, big.chunks, big.content.hexdigest(), big.stored.hexdigest(), note)

    def _queue_plain(self, member: dict[str, Any], head: bytes) -> None:
        member["header_bytes"] = len(head)
        self._queue(member, partial(whole, [head]), len(head))

    def _queue(self, member: dict[str, Any], make: Callable[[], Content], size: int) -> None:
        self._batch.append((member, make))
        self._batch_bytes += size
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_MEMBERS:
            self._flush()
            self._settle(self._depth)

    def _flush(self) -> None:
        """Hand the batch of small members to a worker."""
        if self._batch:
            members, makes = [member for member, _ in self._batch], [make for _, make in self._batch]
            self._batch, self._batch_bytes = [], 0
            self._waiting.append((self._pool.submit(made, makes), partial(self._take_batch, members)))

    def _take_batch(self, members: Sequence[dict[str, Any]], contents: Sequence[Content]) -> None:
        for member, content in zip(members, contents, strict=True):
            offset = self._out.tell()
            self._out.write(content.stored)
            self._advance(content.plain_bytes)
            chunks = [[offset, len(content.stored), content.plain_bytes]]
            self._finish(member, offset, chunks, content.sha256, content.stored_sha256, content.note)

    def _settle(self, left: int) -> None:
        """Write what is made, until no more than `left` are under way."""
        while len(self._waiting) > left:
            future, take = self._waiting.popleft()
            take(future.result())

    def _stop_if_cancelled(self, path: bytes) -> None:
        if self._cancel.is_set():
            raise SourceFailed(f"archive {escaped(path)}: cancelled")

    def _finish(
        self, member: dict[str, Any], offset: int, chunks: list[list[int]], sha256: str, stored_sha256: str, note: str
    ) -> None:
        if note == "grown":
            self._grown += 1
        elif note:
            self._note(
                base64.b64decode(member["path_base64"]) if "path_base64" in member else member["path"].encode(), note
            )
        if note:
            member["note"] = note
        if sha256:
            member["sha256"] = sha256
        self._members += 1
        self._tar_bytes += sum(plain for _, _, plain in chunks)
        self._out.record(
            {
                **member,
                "offset": offset,
                "length": self._out.tell() - offset,
                "chunks": chunks,
                "stored_sha256": stored_sha256,
            }
        )

    def _note(self, path: bytes, what: str) -> None:
        self._changed_count += 1
        if len(self._changed) < NAMED:
            self._changed.append(f"{escaped(path)}: {what}")

    def _skip(self, path: bytes, why: str) -> None:
        self._skipped_count += 1
        if len(self._skipped) < NAMED:
            self._skipped.append(f"{escaped(path)}: {why}")


def _hash(digest: Any, blocks: Sequence[bytes]) -> None:
    for block in blocks:
        digest.update(block)
