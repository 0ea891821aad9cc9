"""Writing the archive: two processes make small members, two threads the chunks of big files, the caller's thread keeps the order.

A file that changes under the reader never breaks the archive: what shrank is read again, and padded and named if it goes
on shrinking; what grew is stored at its first size; what changed is named.
"""

from __future__ import annotations

import contextlib
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import SourceFailed
from aquad.core.escape import escaped
from aquad.stream.tarball.archive import NAMED, Archive, BigFile
from aquad.stream.tarball.content import (
    CHUNK_BYTES,
    FileHead,
    Small,
    big_chunk,
    made,
    open_file,
    pieces_of,
    xattrs_of,
)
from aquad.stream.tarball.header import BLOCK, header
from aquad.stream.tarball.member import member_of, named, status_lines, xattr_lines
from aquad.stream.tarball.reuse import Former, Run, synced_at
from aquad.stream.tarball.scan import Entry, Root, Walk, unreadable
from aquad.stream.tarball.worker import FILES, Workers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from aquad.stream.artifact import RawFile

PATH_MAX = 4096
DONE: Future[None] = Future()
DONE.set_result(None)
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
    reused: int


def write_tree(
    roots: Sequence[Root],
    out: RawFile,
    *,
    advance: Callable[[int], None],
    cancel: threading.Event,
    workers: int = 2,
    reusable: bool = False,
    former: Former | None = None,
) -> TreeFacts:
    """Write all members and the end of the archive; `out.finish` is the caller's. Raises SourceFailed: nothing is skipped.

    `reusable`: note what the next archive needs to copy unchanged members. `former`: copy them from there.
    """
    with contextlib.closing(_Packer(out, advance, cancel, workers, former, reusable=reusable)) as packer:
        return packer.run(roots)


class _Packer:
    def __init__(
        self,
        out: RawFile,
        advance: Callable[[int], None],
        cancel: threading.Event,
        workers: int,
        former: Former | None,
        *,
        reusable: bool,
    ) -> None:
        self._former = former
        self._reusable = reusable
        self._synced: dict[str, int] = {}
        """What every index line of this root says besides."""
        self._run: Run | None = None
        """Members to be copied; while there is one, no batch is begun."""
        self._pool = ThreadPoolExecutor(workers, "deflate")
        self._workers = Workers(workers)
        self._make = made
        self._cancel = cancel
        self._depth = 2 * workers
        self._archive = Archive(out, advance, self._depth)
        self._batch: list[tuple[dict[str, Any], Small]] = []
        self._batch_bytes = 0
        self._links: dict[tuple[int, int], bytes] = {}
        self._skipped: list[str] = []
        self._long: list[str] = []
        self._skipped_count = self._added = self._files = self._plain_bytes = self._reused = 0

    def run(self, roots: Sequence[Root]) -> TreeFacts:
        walk = Walk(self._skip, lambda path: self._archive.note(path, "vanished"))
        for root in roots:
            self._synced = _synced(root) if self._reusable else {}
            for entry in walk.entries(root):
                self._stop_if_cancelled(entry.path)
                self._add(entry)
        self._close_run()
        self._flush()
        archive = self._archive
        archive.settle(0)
        if archive.members != self._added:
            raise SourceFailed(
                f"archive: {self._added} members were added and {archive.members} written",
                "This is a bug: please report it.",
            )
        archive.end()
        return TreeFacts(
            archive.members,
            self._files,
            self._plain_bytes,
            archive.tar_bytes,
            archive.changed,
            archive.changed_count,
            archive.grown,
            self._skipped,
            self._skipped_count,
            self._long,
            self._reused,
        )

    def close(self) -> None:
        """End the workers. Each closes the small files it was handed; big ones are closed when nobody reads them any more."""
        for _, small in self._batch:
            if small.fd >= 0:
                os.close(small.fd)
        self._pool.shutdown()
        self._workers.close()
        self._archive.close()

    def _add(self, entry: Entry) -> None:
        status = entry.status
        if len(entry.path) >= PATH_MAX:
            self._long.append(escaped(entry.path)[:200])
        member = member_of(entry) | self._synced
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = self._links.setdefault(identity, entry.path)
            if first != entry.path:
                member |= {"type": "hardlink", "size": 0, **named("link", first)}
                self._queue_plain(entry, member, header(entry.path, status, link=first, hard=True))
                return
        if self._former is not None:
            line = self._former.unchanged(entry)
            if line is not None and self._reuse(self._former, entry, line):
                return
        if not stat.S_ISREG(status.st_mode):
            self._add_other(entry, member)
        elif not self._add_file(entry, member) and self._links.get(identity) == entry.path:
            del self._links[identity]

    def _add_other(self, entry: Entry, member: dict[str, Any]) -> None:
        """What is all header: directories, links, fifos, devices."""
        status, link = entry.status, b""
        try:
            xattrs = xattrs_of(entry)
            if stat.S_ISLNK(status.st_mode):
                link = os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory))
                member |= named("link", link)
        except FileNotFoundError:
            if not stat.S_ISDIR(status.st_mode):  # of a directory the walk says it, which cannot enter it
                self._archive.note(entry.path, "vanished")
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
            self._archive.note(entry.path, "vanished")
            return False
        except OSError as error:
            raise unreadable(entry.path, error) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (
            entry.status.st_dev,
            entry.status.st_ino,
        ):
            self._archive.note(entry.path, "replaced while it was read")
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

    def _reuse(self, former: Former, entry: Entry, line: Mapping[str, Any]) -> bool:
        """Copy it from the previous archive. False when its bytes there are damaged."""
        sound, stored = former.read(line)
        if not sound:
            return False
        self._flush()
        if self._run is None or not self._run.takes(line, former):
            self._close_run()
            self._run = Run(line["offset"], [], [])
        self._run.add({**line, **status_lines(entry.status)}, stored)
        self._added, self._reused = self._added + 1, self._reused + 1
        if line["type"] == "file":
            self._files, self._plain_bytes = self._files + 1, self._plain_bytes + int(line["size"])
        return True

    def _close_run(self) -> None:
        if self._run is not None and self._former is not None:
            self._archive.expect(DONE, partial(self._archive.take_run, self._former, self._run))
            self._run = None
            self._archive.settle(self._depth)

    def _add_big_file(self, member: dict[str, Any], path: bytes, fd: int, status: os.stat_result) -> None:
        self._close_run()
        self._flush()
        self._added += 1
        self._archive.big_fds.add(fd)
        head, segments, left, lines = FileHead.of(path, fd, status)
        big = BigFile({**member, **lines}, fd, status)
        padding = bytes(-left % BLOCK)
        for piece in pieces_of(segments):
            self._stop_if_cancelled(path)
            left -= sum(length for _, length in piece)
            os.posix_fadvise(fd, piece[-1][0] + READ_AHEAD_BYTES, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
            future = self._pool.submit(big_chunk, fd, piece, head, b"" if left else padding)
            self._archive.expect(future, partial(self._archive.take_chunk, big, last=not left))
            self._archive.settle(self._depth)
            head = b""

    def _queue_plain(self, entry: Entry, member: dict[str, Any], head: bytes) -> None:
        member["header_bytes"] = len(head)
        self._queue(member, Small(entry.path, entry.status, -1, head), len(head))

    def _queue(self, member: dict[str, Any], small: Small, size: int) -> None:
        self._close_run()
        self._added += 1
        self._batch.append((member, small))
        self._batch_bytes += size
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= FILES:
            self._flush()
            self._workers.start()  # only now: most trees are smaller than a batch, which a thread makes as well
            self._make = self._workers.make
            self._archive.settle(self._depth)

    def _flush(self) -> None:
        if self._batch:
            members, smalls = [member for member, _ in self._batch], [small for _, small in self._batch]
            self._batch, self._batch_bytes = [], 0
            self._archive.expect(self._pool.submit(self._make, smalls), partial(self._archive.take_batch, members))

    def _stop_if_cancelled(self, path: bytes) -> None:
        if self._cancel.is_set():
            raise SourceFailed(f"archive {escaped(path)}: cancelled")

    def _skip(self, path: bytes, why: str) -> None:
        self._skipped_count += 1
        if len(self._skipped) < NAMED:
            self._skipped.append(f"{escaped(path)}: {why}")


def _synced(root: Root) -> dict[str, int]:
    fd = os.open(root.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        began = synced_at(fd)
    finally:
        os.close(fd)
    return {} if began is None else {"synced_at_ns": began}
