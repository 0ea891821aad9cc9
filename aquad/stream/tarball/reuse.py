"""Unchanged files cost nothing: their members are copied from the previous archive, as they are stored there.

A file is unchanged when its inode, size, mtime and ctime are what the index says, and both times were already
MARGIN_NS old when all that was dirty on its file system began to be written to the disk (`synced_at_ns`), before it was
read. Then its pages were clean when it was read, or became so later than they were dirtied; whoever stores into a clean
page, through a mapping too, moves the times. A store into a page that is dirty already moves nothing: that is what the
writing out is for. Times that somebody set back leave the ctime. Only on file systems that are known to do so.
"""

from __future__ import annotations

import base64
import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from aquad.core import filesystem
from aquad.core.errors import Damaged
from aquad.core.escape import escaped
from aquad.stream.tarball.member import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aquad.stream.artifact import Reader
    from aquad.stream.tarball.scan import Entry

KNOWN = {filesystem.EXT4, filesystem.XFS, filesystem.BTRFS}
MARGIN_NS = 2 * 10**9
PIECE_BYTES = 1 << 20
IN_MEMORY_BYTES = 4 << 20
"""A run of members up to this size is read once, and written from memory."""
RUN_MEMBERS = 1000
SHARED_BYTES = 64 << 10
"""Members from this size on begin where their blocks can be shared with the previous archive."""
DISK_BLOCK = 4096
PAD_HEADER = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
EMPTY = b"\x03\0" + bytes(8)
PAD_BYTES = len(PAD_HEADER) + 6 + len(EMPTY)


class Former:
    """The previous archive and its index. Ask in the order of the walk, which is that of the archive.

    `damage` names members whose stored bytes are no longer those of the index: they are never copied.
    """

    def __init__(self, lines: Iterator[Mapping[str, Any]], fd: int) -> None:
        self.fd = fd
        self.damage: list[str] = []
        self._lines = lines
        self._line: Mapping[str, Any] = {}
        self._key: tuple[bytes, ...] = ()

    def unchanged(self, entry: Entry) -> Mapping[str, Any] | None:
        """The index line of an entry that is what it was, and whose stored bytes are too; None otherwise."""
        wanted = tuple(entry.path.split(b"/"))
        while self._key < wanted:
            line = next(self._lines, None)
            if line is None:
                self._key = (b"\xff" * 256,)  # behind every name
                break
            self._line, self._key = line, tuple(_name(line).split(b"/"))
        return self._line if self._key == wanted and is_unchanged(self._line, entry) else None

    def read(self, line: Mapping[str, Any]) -> tuple[bool, bytes | None]:
        """Whether the stored bytes of a member are those of the index; and they themselves, when they are few."""
        digest = xxhash.xxh3_128()
        kept: list[bytes] | None = [] if line["length"] <= IN_MEMORY_BYTES else None
        for piece in pieces(self.fd, line["offset"], line["length"]):
            digest.update(piece)
            if kept is not None:
                kept.append(piece)
        if digest.hexdigest() != line["stored_xxh3"]:
            self.damage.append(f"member {escaped(_name(line))}: its stored bytes are not those of the index")
            return False, None
        return True, None if kept is None else b"".join(kept)


@contextlib.contextmanager
def opened(previous: Reader | None, damage: list[str]) -> Iterator[Former | None]:
    """The previous archive, to copy from; what is found rotten in it goes to `damage`."""
    archive = previous.artifacts[0].path if previous else ""
    lines = previous.members(archive) if previous else None
    try:
        fd = previous.descriptor(archive) if previous and lines else None
    except Damaged as error:
        damage.append(str(error))
        fd = None
    if lines is None or fd is None:
        yield None
        return
    former = Former(lines, fd)
    try:
        yield former
    finally:
        os.close(fd)
        damage += former.damage


class Run(NamedTuple):
    """Members that lie one behind the other in the previous archive, and are copied at once."""

    offset: int
    members: list[Mapping[str, Any]]
    stored: list[bytes]
    """What was read of them. Nothing of a large one, which is a run of its own and is read again as it is copied."""

    @property
    def length(self) -> int:
        last = self.members[-1]
        return int(last["offset"]) + int(last["length"]) - self.offset

    def takes(self, line: Mapping[str, Any], former: Former) -> bool:
        """Whether a member lies right behind, but for padding, and there is room."""
        end = self.offset + self.length
        between = int(line["offset"]) - end
        if self.length + int(line["length"]) > IN_MEMORY_BYTES or len(self.members) >= RUN_MEMBERS:
            return False
        return between == 0 or (between == line.get("pad") and os.pread(former.fd, between, end) == padding(between))

    def add(self, line: Mapping[str, Any], stored: bytes | None) -> None:
        if self.members and line["pad"]:
            self.stored.append(padding(line["pad"]))
        if stored is not None:
            self.stored.append(stored)
        self.members.append(line)

    def stored_bytes(self) -> bytes | None:
        stored = b"".join(self.stored)
        return stored or None


def is_unchanged(line: Mapping[str, Any], entry: Entry) -> bool:
    status, synced_at = entry.status, line.get("synced_at_ns")
    return (
        synced_at is not None
        and "note" not in line
        and line["type"] == KINDS.get(status.st_mode & 0o170000)
        and (line["inode"], line["mtime_ns"], line["ctime_ns"])
        == (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        and (line["type"] != "file" or line["size"] == status.st_size)
        and max(status.st_mtime_ns, status.st_ctime_ns) + MARGIN_NS <= synced_at
    )


def synced_at(fd: int) -> int | None:
    """Bring the file system of `fd` to the disk; return when that began. None where times prove nothing."""
    if filesystem.kind(fd) not in KNOWN:
        return None
    began = time.time_ns()
    try:
        filesystem.sync(fd)
    except OSError:  # harmless because nothing of this archive will be reused then
        return None
    return began


def padding(length: int) -> bytes:
    """An empty gzip member of `length` bytes, filled up by an extra field (RFC 1952, 2.3.1.1)."""
    extra = length - len(PAD_HEADER) - 2 - len(EMPTY)
    return PAD_HEADER + struct.pack("<H2sH", extra, b"aq", extra - 4) + bytes(extra - 4) + EMPTY


def padding_to(position: int, congruent: int) -> int:
    """How long a padding brings `position` to the same place in a disk block as `congruent`; 0 when it is there."""
    short = (congruent - position) % DISK_BLOCK
    return short if short == 0 or short >= PAD_BYTES else short + DISK_BLOCK


def pieces(fd: int, offset: int, length: int) -> Iterator[bytes]:
    """Yield a stretch of a file; less where it ends before."""
    end = offset + length
    while offset < end:
        piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
        if not piece:
            return
        offset += len(piece)
        yield piece


def _name(line: Mapping[str, Any]) -> bytes:
    encoded = line.get("path_base64")
    return base64.b64decode(encoded) if encoded else str(line["path"]).encode()
