"""What a worker makes of a member: its bytes read as they were found, deflated, and hashed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash
from isal import isal_zlib

from aquad.core.errors import AquadError, SourceFailed
from aquad.stream.gzip import WINDOW
from aquad.stream.tarball.header import BLOCK, header
from aquad.stream.tarball.member import xattr_lines
from aquad.stream.tarball.scan import Entry, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_BYTES = 2 << 20
LEVEL = 2
"""A tenth slower than 1 and a twentieth smaller; what is smaller is also hashed, written and read back sooner."""
SAMPLE_BYTES = 64 << 10
WORTH_DEFLATING = 0.97
ATTEMPTS = 3


class Small(NamedTuple):
    """A member that is made in one go. `fd`: an open file, which whoever makes the member closes; -1: `head` is all of it."""

    path: bytes
    status: os.stat_result
    fd: int
    head: bytes


class Content(NamedTuple):
    """What was made of a small member. `lines`: what its index line says that was not known before it was read."""

    stored: bytes
    plain_bytes: int
    stored_xxh3: str
    note: str
    lines: dict[str, Any]


class Chunk(NamedTuple):
    """What was made of one chunk of a big file. `blocks` were read: their digest is not known before the last chunk."""

    stored: bytes
    plain_bytes: int
    blocks: Sequence[bytes]
    shrunk: bool


def made(batch: Sequence[Small]) -> list[Content]:
    """Make all of them, so that each file is closed; then raise the first failure."""
    contents, failure = [], None
    for small in batch:
        try:
            contents.append(_small_file(small) if small.fd >= 0 else _whole([small.head], "", {}))
        except AquadError as error:
            failure = failure or error
        except OSError as error:
            failure = failure or unreadable(small.path, error)
    if failure is not None:
        raise failure
    return contents


def _whole(pieces: Sequence[bytes], note: str, lines: dict[str, Any]) -> Content:
    """A member of one gzip member."""
    stored = deflated(pieces)
    return Content(stored, sum(map(len, pieces)), xxhash.xxh3_128_hexdigest(stored), note, lines)


def deflated(pieces: Sequence[bytes]) -> bytes:
    """One gzip member; stored without compression when a sample shows that it would not shrink."""
    largest = max(pieces, key=len)
    sample = memoryview(largest)[len(largest) // 2 :][:SAMPLE_BYTES]
    if len(largest) > SAMPLE_BYTES and len(isal_zlib.compress(sample, LEVEL)) > WORTH_DEFLATING * len(sample):
        state: Any = zlib.compressobj(0, zlib.DEFLATED, WINDOW)
    else:
        state = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, WINDOW)
    return b"".join([*(state.compress(piece) for piece in pieces), state.flush()])


def data_segments(fd: int, status: os.stat_result) -> list[tuple[int, int]]:
    """The stretches that hold data; a last empty one at the end of a file that ends in a hole (as GNU tar writes it)."""
    segments, position = [], 0
    while position < status.st_size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(os.lseek(fd, start, os.SEEK_HOLE), status.st_size)
        except OSError:  # harmless because ENXIO means: nothing but a hole is left, or the file has just been cut off
            break
        if start < position:
            segments.append((start, position - start))
    if position < status.st_size or not segments:
        segments.append((status.st_size, 0))
    return segments


def xattrs_of_fd(target: int | str) -> dict[str, bytes]:
    """Raises OSError."""
    itself = {"follow_symlinks": False} if isinstance(target, str) else {}
    found = {}
    try:
        for name in sorted(os.listxattr(target, **itself)):
            try:
                found[name] = os.getxattr(target, name, **itself)
            except OSError as error:
                if error.errno != errno.ENODATA:  # it was taken away since it was listed
                    raise
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # a file system without xattrs has none to lose
            raise
    return found


def xattrs_of(entry: Entry) -> dict[str, bytes]:
    """By a descriptor for directories, by /proc for what must not be opened. Raises OSError."""
    if not stat.S_ISDIR(entry.status.st_mode):
        return xattrs_of_fd(f"/proc/self/fd/{entry.directory}/{entry.leaf}")
    fd = os.open(entry.leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=entry.directory)
    try:
        return xattrs_of_fd(fd)
    finally:
        os.close(fd)


def open_file(entry: Entry) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(entry.leaf, flags | os.O_NOATIME, dir_fd=entry.directory)
    except PermissionError:  # O_NOATIME is for the owner alone; reading may still be allowed
        return os.open(entry.leaf, flags, dir_fd=entry.directory)


def _small_file(small: Small) -> Content:
    fd, status = small.fd, small.status
    try:
        member = FileHead.of(small.path, fd, status)
        for _ in range(ATTEMPTS):
            blocks, complete = _read(fd, member.segments)
            if complete:
                break
        note = changed_since(fd, status) if complete else "shrunk"
    finally:
        os.close(fd)
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    padding = bytes(-sum(map(len, blocks)) % BLOCK)
    return _whole([member.head, *blocks, padding], note, {**member.lines, "sha256": digest.hexdigest()})


class FileHead(NamedTuple):
    """What stands before a file's bytes, the stretches that hold them, and what the index says of both."""

    head: bytes
    segments: Sequence[tuple[int, int]]
    data_bytes: int
    lines: dict[str, Any]

    @classmethod
    def of(cls, path: bytes, fd: int, status: os.stat_result) -> FileHead:
        try:
            xattrs = xattrs_of_fd(fd)
        except OSError as error:
            raise unreadable(path, error) from error
        sparse = data_segments(fd, status) if status.st_blocks * 512 < status.st_size else None
        size = status.st_size if sparse is None else sum(length for _, length in sparse)
        head = header(path, status, size=size, xattrs=xattrs, segments=sparse)
        lines = {"header_bytes": len(head), **xattr_lines(xattrs)}
        if sparse is not None:
            lines["segments"] = [list(segment) for segment in sparse]
        return cls(head, sparse or [(0, status.st_size)], size, lines)


def big_chunk(fd: int, piece: Sequence[tuple[int, int]], head: bytes, tail: bytes) -> Chunk:
    blocks, complete = _read(fd, piece)
    pieces = [head, *blocks, tail]
    return Chunk(deflated(pieces), sum(map(len, pieces)), blocks, not complete)


def _read(fd: int, segments: Sequence[tuple[int, int]]) -> tuple[list[bytes], bool]:
    """Read the stretches; what is no longer there becomes zeros, and the answer is False."""
    blocks, complete = [], True
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
                complete = False
                block = bytes(length - got)
            blocks.append(block)
            got += len(block)
    return blocks, complete


def changed_since(fd: int, before: os.stat_result) -> str:
    now = os.fstat(fd)
    if now.st_size > before.st_size:
        return "grown"
    return (
        "changed while it was read"
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        else ""
    )


def pieces_of(segments: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
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
    elif not any(length for _, length in segments):
        yield [segments[-1]]  # nothing but a hole: its header is still to be written
