"""Writing the archive: two processes make small members, two threads the chunks of big files, the caller's thread keeps the order.

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

import xxhash

from aquad.core.errors import SourceFailed
from aquad.core.escape import escaped
from aquad.stream.tarball.content import (
    CHUNK_BYTES,
    Chunk,
    Content,
    FileHead,
    Small,
    big_chunk,
    changed_since,
    deflated,
    made,
    open_file,
    pieces_of,
    xattrs_of,
)
from aquad.stream.tarball.header import BLOCK, header
from aquad.stream.tarball.member import member_of, named, status_lines, xattr_lines
from aquad.stream.tarball.scan import Entry, Root, Walk, unreadable
from aquad.stream.tarball.worker import FILES, Workers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from aquad.stream.artifact import RawFile

NAMED = 100
"""So many changed or skipped paths are named; the rest is counted."""
PATH_MAX = 4096
READ_AHEAD_BYTES = 16 << 20
"""So far the disk reads ahead of the workers in a big file: a nightly backup finds nothing in memory."""
BATCH_BYTES = 1 << 20
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
        self.content, self.stored = hashlib.sha256(), xxhash.xxh3_128()
        self.hashing: deque[Future[None]] = deque()
        self.chunks: list[list[int]] = []
        self.shrunk = False


class _Packer:
    def __init__(self, out: RawFile, advance: Callable[[int], None], cancel: threading.Event, workers: int) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(workers, "deflate")
        self._workers = Workers(workers)
        self._make = made
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._advance = advance
        self._cancel = cancel
        self._depth = 2 * workers
        self._batch: list[tuple[dict[str, Any], Small]] = []
        self._batch_bytes = 0
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        """What the workers make, in the archive's order, and who writes it."""
        self._big_fds: set[int] = set()
        self._links: dict[tuple[int, int], bytes] = {}
        self._changed: list[str] = []
        self._skipped: list[str] = []
        self._long: list[str] = []
        self._changed_count = self._skipped_count = self._grown = 0
        self._added = self._members = self._files = self._plain_bytes = self._tar_bytes = 0

    def run(self, roots: Sequence[Root]) -> TreeFacts:
        walk = Walk(self._skip, lambda path: self._note(path, "vanished"))
        for root in roots:
            for entry in walk.entries(root):
                self._stop_if_cancelled(entry.path)
                self._add(entry)
        self._flush()
        self._settle(0)
        if self._members != self._added:
            raise SourceFailed(
                f"archive: {self._added} members were added and {self._members} written",
                "This is a bug: please report it.",
            )
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
        for _, small in self._batch:
            if small.fd >= 0:
                os.close(small.fd)
        self._pool.shutdown()
        self._workers.close()
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
                self._queue_plain(entry, member, header(entry.path, status, link=first, hard=True))
                return
        if stat.S_ISREG(status.st_mode):
            if not self._add_file(entry, member) and self._links.get(identity) == entry.path:
                del self._links[identity]
            return
        link = b""
        try:
            xattrs = xattrs_of(entry)
            if stat.S_ISLNK(status.st_mode):
                link = os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory))
                member |= named("link", link)
        except FileNotFoundError:
            if not stat.S_ISDIR(status.st_mode):  # of a directory the walk says it, which cannot enter it
                self._note(entry.path, "vanished")
            return
        except OSError as error:  # replaced by something else, or not for us
            raise unreadable(entry.path, error) from error
        member |= xattr_lines(xattrs)
        self._queue_plain(entry, member, header(entry.path, status, link=link, xattrs=xattrs))

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
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (
            entry.status.st_dev,
            entry.status.st_ino,
        ):
            self._note(entry.path, "replaced while it was read")
            # What other names of the old file there are keep its bytes: the next of them is the file.
            self._links.pop((entry.status.st_dev, entry.status.st_ino), None)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                return False
        os.posix_fadvise(fd, 0, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)  # so that the disk is ahead of the workers
        member |= {**status_lines(status), "size": status.st_size}
        self._files += 1
        self._plain_bytes += status.st_size
        if status.st_size <= CHUNK_BYTES:
            self._queue(member, Small(entry.path, status, fd, b""), status.st_size)
        else:
            self._add_big_file(member, entry.path, fd, status)
        return True

    def _add_big_file(self, member: dict[str, Any], path: bytes, fd: int, status: os.stat_result) -> None:
        self._flush()
        self._added += 1
        self._big_fds.add(fd)
        head, segments, left, lines = FileHead.of(path, fd, status)
        big = _BigFile({**member, **lines}, fd, status)
        padding = bytes(-left % BLOCK)
        for piece in pieces_of(segments):
            self._stop_if_cancelled(path)
            left -= sum(length for _, length in piece)
            os.posix_fadvise(fd, piece[-1][0] + READ_AHEAD_BYTES, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
            future = self._pool.submit(big_chunk, fd, piece, head, b"" if left else padding)
            self._waiting.append((future, partial(self._take_chunk, big, last=not left)))
            self._settle(self._depth)
            head = b""

    def _take_chunk(self, big: _BigFile, chunk: Chunk, *, last: bool) -> None:
        big.hashing.append(self._hasher.submit(_hash, big.content, chunk.blocks))
        while len(big.hashing) > self._depth:
            big.hashing.popleft().result()
        big.stored.update(chunk.stored)
        big.chunks.append([self._out.tell(), len(chunk.stored), chunk.plain_bytes])
        self._out.write(chunk.stored)
        self._advance(chunk.plain_bytes)
        big.shrunk = big.shrunk or chunk.shrunk
        if last:
            note = "shrunk" if big.shrunk else changed_since(big.fd, big.status)
            self._big_fds.remove(big.fd)
            os.close(big.fd)
            for future in big.hashing:
                future.result()
            self._finish({**big.member, "sha256": big.content.hexdigest()}, big.chunks, big.stored.hexdigest(), note)

    def _queue_plain(self, entry: Entry, member: dict[str, Any], head: bytes) -> None:
        member["header_bytes"] = len(head)
        self._queue(member, Small(entry.path, entry.status, -1, head), len(head))

    def _queue(self, member: dict[str, Any], small: Small, size: int) -> None:
        self._added += 1
        self._batch.append((member, small))
        self._batch_bytes += size
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= FILES:
            self._flush()
            self._workers.start()  # only now: most trees are smaller than a batch, which a thread makes as well
            self._make = self._workers.make
            self._settle(self._depth)

    def _flush(self) -> None:
        if self._batch:
            members, smalls = [member for member, _ in self._batch], [small for _, small in self._batch]
            self._batch, self._batch_bytes = [], 0
            self._waiting.append((self._pool.submit(self._make, smalls), partial(self._take_batch, members)))

    def _take_batch(self, members: Sequence[dict[str, Any]], contents: Sequence[Content]) -> None:
        for member, content in zip(members, contents, strict=True):
            chunks = [[self._out.tell(), len(content.stored), content.plain_bytes]]
            self._out.write(content.stored)
            self._advance(content.plain_bytes)
            self._finish({**member, **content.lines}, chunks, content.stored_xxh3, content.note)

    def _settle(self, left: int) -> None:
        """Write what is made, until no more than `left` are under way."""
        while len(self._waiting) > left:
            future, take = self._waiting.popleft()
            take(future.result())

    def _stop_if_cancelled(self, path: bytes) -> None:
        if self._cancel.is_set():
            raise SourceFailed(f"archive {escaped(path)}: cancelled")

    def _finish(self, member: dict[str, Any], chunks: list[list[int]], stored_xxh3: str, note: str) -> None:
        if note == "grown":
            self._grown += 1
        elif note:
            self._note(
                base64.b64decode(member["path_base64"]) if "path_base64" in member else member["path"].encode(), note
            )
        if note:
            member["note"] = note
        self._members += 1
        self._tar_bytes += sum(plain for _, _, plain in chunks)
        self._out.record(
            {
                **member,
                "offset": chunks[0][0],
                "length": self._out.tell() - chunks[0][0],
                "chunks": chunks,
                "stored_xxh3": stored_xxh3,
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
