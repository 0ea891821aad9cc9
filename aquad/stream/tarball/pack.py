"""Writing the archive: two threads read and deflate, the caller's thread keeps the order and writes.

A file that changes under the reader never breaks the archive: what shrank is read again, and padded and named if it goes
on shrinking; what grew is stored at its first size; what changed is named.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from isal import isal_zlib

from aquad.core.errors import SourceFailed
from aquad.core.escape import escaped
from aquad.stream.gzip import LEVEL, WINDOW
from aquad.stream.tarball.header import BLOCK, header
from aquad.stream.tarball.scan import Entry, Root, Walk, unreadable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from aquad.stream.artifact import RawFile

CHUNK_BYTES = 4 << 20
SAMPLE_BYTES = 64 << 10
WORTH_DEFLATING = 0.97
ATTEMPTS = 3
NAMED = 100
"""So many changed or skipped paths are named; the rest is counted."""
PATH_MAX = 4096


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


class _Content(NamedTuple):
    """What a worker made of a member, or of one chunk of a big file."""

    stored: bytes
    plain_bytes: int
    data: bytes | None
    sha256: str
    note: str


def write_tree(
    roots: Sequence[Root], out: RawFile, *, advance: Callable[[int], None], cancel: threading.Event, workers: int = 2
) -> TreeFacts:
    """Write all members and the end of the archive; `out.finish` is the caller's. Raises SourceFailed: nothing is skipped."""
    with ThreadPoolExecutor(workers, "deflate") as pool:
        return _Packer(out, pool, advance, cancel, 2 * workers + 2).run(roots)


class _Packer:
    def __init__(
        self,
        out: RawFile,
        pool: ThreadPoolExecutor,
        advance: Callable[[int], None],
        cancel: threading.Event,
        depth: int,
    ) -> None:
        self._out = out
        self._pool = pool
        self._advance = advance
        self._cancel = cancel
        self._depth = depth
        self._waiting: deque[tuple[dict[str, Any], Future[_Content]]] = deque()
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
                if self._cancel.is_set():
                    raise SourceFailed(f"archive {escaped(root.name)}: cancelled")
                self._add(entry)
        self._drain(0)
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

    def _add(self, entry: Entry) -> None:
        status = entry.status
        if len(entry.path) >= PATH_MAX:
            self._long.append(escaped(entry.path)[:200])
        member = _member(entry)
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = self._links.setdefault(identity, entry.path)
            if first != entry.path:
                member |= {"type": "hardlink", "size": 0, **_named("link", first)}
                self._queue_plain(member, header(entry.path, status, link=first, hard=True))
                return
        if stat.S_ISREG(status.st_mode):
            if not self._add_file(entry, member) and self._links.get(identity) == entry.path:
                del self._links[identity]
            return
        xattrs, link = _xattrs_of(entry), None
        if stat.S_ISLNK(status.st_mode):
            link = os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory))
            member |= _named("link", link)
        member |= _xattr_lines(xattrs)
        self._queue_plain(member, header(entry.path, status, link=link, xattrs=xattrs))

    def _add_file(self, entry: Entry, member: dict[str, Any]) -> bool:
        """Open it here, read it in a worker. False when it vanished meanwhile."""
        try:
            fd = _open(entry)
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
        xattrs = xattrs_of_fd(fd)
        segments = data_segments(fd, status) if status.st_blocks * 512 < status.st_size else None
        size = sum(length for _, length in segments) if segments is not None else status.st_size
        member |= {**_status_lines(status), "size": status.st_size, **_xattr_lines(xattrs)}
        if segments is not None:
            member["segments"] = [list(segment) for segment in segments]
        head = header(entry.path, status, size=size, xattrs=xattrs, segments=segments)
        member["header_bytes"] = len(head)
        self._files += 1
        self._plain_bytes += status.st_size
        if size <= CHUNK_BYTES:
            self._queue(member, self._pool.submit(_small_file, fd, status, head, segments or [(0, status.st_size)]))
        else:
            self._add_big_file(member, fd, status, head, segments or [(0, status.st_size)])
        return True

    def _add_big_file(
        self, member: dict[str, Any], fd: int, status: os.stat_result, head: bytes, segments: Sequence[tuple[int, int]]
    ) -> None:
        self._drain(0)
        content, stored, offset, shrunk = hashlib.sha256(), hashlib.sha256(), self._out.tell(), False
        chunks: list[list[int]] = []
        pieces = _pieces(segments)
        waiting: deque[Future[_Content]] = deque()
        try:
            total = sum(length for _, length in segments)
            done = 0
            for number, piece in enumerate(pieces):
                done += sum(length for _, length in piece)
                tail = bytes(-total % BLOCK) if done == total else b""
                waiting.append(self._pool.submit(_big_chunk, fd, piece, head if number == 0 else b"", tail))
                while len(waiting) > self._depth or (waiting and done == total):
                    chunk = waiting.popleft().result()
                    content.update(chunk.data or b"")
                    stored.update(chunk.stored)
                    chunks.append([self._out.tell(), len(chunk.stored), chunk.plain_bytes])
                    self._out.write(chunk.stored)
                    self._advance(chunk.plain_bytes)
                    shrunk = shrunk or bool(chunk.note)
            note = "shrunk" if shrunk else _changed_since(fd, status)
        finally:
            for late in waiting:
                late.cancel()
            self._pool.submit(os.close, fd)
        self._finish(member, offset, chunks, content.hexdigest(), stored.hexdigest(), note)

    def _queue_plain(self, member: dict[str, Any], head: bytes) -> None:
        member["header_bytes"] = len(head)
        self._queue(member, self._pool.submit(lambda: _Content(deflated([head]), len(head), None, "", "")))

    def _queue(self, member: dict[str, Any], content: Future[_Content]) -> None:
        self._waiting.append((member, content))
        self._drain(self._depth)

    def _drain(self, left: int) -> None:
        while len(self._waiting) > left:
            member, future = self._waiting.popleft()
            made = future.result()
            offset = self._out.tell()
            self._out.write(made.stored)
            self._advance(made.plain_bytes)
            chunks = [[offset, len(made.stored), made.plain_bytes]]
            self._finish(member, offset, chunks, made.sha256, hashlib.sha256(made.stored).hexdigest(), made.note)

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


def deflated(pieces: Sequence[bytes]) -> bytes:
    """One gzip member; stored without compression when a sample shows that it would not shrink."""
    plain = b"".join(pieces)
    sample = plain[len(plain) // 2 :][:SAMPLE_BYTES]
    if len(plain) > SAMPLE_BYTES and len(isal_zlib.compress(sample, LEVEL)) > WORTH_DEFLATING * len(sample):
        store = zlib.compressobj(0, zlib.DEFLATED, WINDOW)
        return store.compress(plain) + store.flush()
    state = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, WINDOW)
    stored: bytes = state.compress(plain) + state.flush()
    return stored


def data_segments(fd: int, status: os.stat_result) -> list[tuple[int, int]]:
    """The stretches that hold data; a last empty one at the end of a file that ends in a hole (as GNU tar writes it)."""
    segments, position = [], 0
    while position < status.st_size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # harmless because ENXIO means: nothing but a hole is left
            break
        position = min(os.lseek(fd, start, os.SEEK_HOLE), status.st_size)
        if start < position:
            segments.append((start, position - start))
    if position < status.st_size or not segments:
        segments.append((status.st_size, 0))
    return segments


def xattrs_of_fd(target: int | str) -> dict[str, bytes]:
    try:
        return (
            {
                name: os.getxattr(target, name, follow_symlinks=False)
                for name in sorted(os.listxattr(target, follow_symlinks=False))
            }
            if isinstance(target, str)
            else {name: os.getxattr(target, name) for name in sorted(os.listxattr(target))}
        )
    except OSError:  # harmless because a file system without xattrs has none to lose
        return {}


def _xattrs_of(entry: Entry) -> dict[str, bytes]:
    """By a descriptor for directories, by /proc for what must not be opened."""
    if not stat.S_ISDIR(entry.status.st_mode):
        return xattrs_of_fd(f"/proc/self/fd/{entry.directory}/{entry.leaf}")
    try:
        fd = os.open(entry.leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=entry.directory)
    except OSError as error:
        raise unreadable(entry.path, error) from error
    try:
        return xattrs_of_fd(fd)
    finally:
        os.close(fd)


def _open(entry: Entry) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(entry.leaf, flags | os.O_NOATIME, dir_fd=entry.directory)
    except PermissionError:  # O_NOATIME is for the owner alone; reading may still be allowed
        return os.open(entry.leaf, flags, dir_fd=entry.directory)


def _small_file(fd: int, status: os.stat_result, head: bytes, segments: Sequence[tuple[int, int]]) -> _Content:
    try:
        for _ in range(ATTEMPTS):
            data, whole = _read(fd, segments)
            if whole:
                break
        note = _changed_since(fd, status) if whole else "shrunk"
    finally:
        os.close(fd)
    padding = bytes(-len(data) % BLOCK)
    return _Content(
        deflated([head, data, padding]),
        len(head) + len(data) + len(padding),
        None,
        hashlib.sha256(data).hexdigest(),
        note,
    )


def _big_chunk(fd: int, piece: Sequence[tuple[int, int]], head: bytes, tail: bytes) -> _Content:
    data, whole = _read(fd, piece)
    return _Content(
        deflated([head, data, tail]), len(head) + len(data) + len(tail), data, "", "" if whole else "shrunk"
    )


def _read(fd: int, segments: Sequence[tuple[int, int]]) -> tuple[bytes, bool]:
    """Read the stretches; what is no longer there becomes zeros, and the answer is False."""
    read, whole = bytearray(), True
    for offset, length in segments:
        got = 0
        while got < length:
            try:
                block = os.pread(fd, length - got, offset + got)
            except OSError as error:
                raise SourceFailed(
                    f"read a file at byte {offset + got}: {os.strerror(error.errno or 0)}",
                    "The disk below the source is failing.",
                ) from error
            if not block:
                whole = False
                read += bytes(length - got)
                break
            read += block
            got += len(block)
    return bytes(read), whole


def _changed_since(fd: int, before: os.stat_result) -> str:
    now = os.fstat(fd)
    if now.st_size > before.st_size:
        return "grown"
    return (
        "changed while it was read"
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        else ""
    )


def _pieces(segments: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut the stretches into lists of CHUNK_BYTES in all."""
    piece: list[tuple[int, int]] = []
    room = CHUNK_BYTES
    for offset, length in segments:
        position, left = offset, length
        while left:
            take = min(left, room)
            piece.append((position, take))
            position, left, room = position + take, left - take, room - take
            if not room:
                yield piece
                piece, room = [], CHUNK_BYTES
    if piece:
        yield piece


KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def _member(entry: Entry) -> dict[str, Any]:
    status = entry.status
    member: dict[str, Any] = {
        **_named("path", entry.path),
        "type": KINDS[stat.S_IFMT(status.st_mode)],
        "size": 0,
        **_status_lines(status),
    }
    if member["type"] in {"char", "block"}:
        member["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    return member


def _status_lines(status: os.stat_result) -> dict[str, Any]:
    return {
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "dev": status.st_dev,
    }


def _named(key: str, name: bytes) -> dict[str, str]:
    """A name as text; bytes that are not UTF-8 as U+FFFD, and then the true ones in base64 beside it."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        return {key: name.decode("utf-8", "replace"), f"{key}_base64": base64.b64encode(name).decode()}


def _xattr_lines(xattrs: dict[str, bytes]) -> dict[str, Any]:
    return {"xattrs": {name: base64.b64encode(value).decode() for name, value in xattrs.items()}} if xattrs else {}
