"""A tar of nothing but files, made to be read by a few strict lines: what else a tar can hold is refused, not interpreted.

tarfile builds the headers, and reads a single block of 512 bytes; it never sees the stream.
"""

from __future__ import annotations

import re
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import Damaged
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
END = bytes(2 * BLOCK)
PAX_BYTES = 64 << 10
"""A header holds a path and a size; what is longer is not one of ours."""
PADDING_BYTES = 20 * BLOCK
"""GNU tar fills the end of an archive up to so many bytes (tar manual, "The Blocking Factor of an Archive")."""
RECORD = re.compile(rb"([1-9]\d{0,5}) ([^=\n]+)=")
SIZE = re.compile(r"\d{1,18}")
HINT = "Use another copy of the archive, or another backup."


class Entry(NamedTuple):
    path: str
    size: int
    offset: int
    """Of its data in the plain stream."""


def header(path: str, size: int, mtime: int) -> bytes:
    """What stands before a file, which is then padded by `padding`."""
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = size, mtime, 0o600
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def first_name(block: bytes) -> str:
    """The name in a tar's first block; empty when it is none, or that of something else than a file."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        return ""
    return info.name if info.type == tarfile.REGTYPE else ""


class PlainTar:
    """Reads such a tar from its beginning to its end. Every method raises Damaged; `name` is for messages.

    Memory is bounded whatever the bytes say. Between two entries the data of the first has to be taken whole.
    """

    def __init__(self, pieces: Iterator[bytes], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._rest = memoryview(b"")
        self.position = 0

    def entries(self) -> Iterator[Entry]:
        """The files, to the end of the archive, and nothing behind it."""
        while (entry := self._next()) is not None:
            yield entry
            if self.position != entry.offset + entry.size:
                raise ValueError(f"{entry.path} was not taken whole")
            self._exactly(-entry.size % BLOCK)
        self._check_end()

    def data(self, entry: Entry) -> Iterator[bytes]:
        left = entry.size
        while left:
            piece = self._upto(left)
            if not piece:
                raise self._damaged(f"{escaped(entry.path)}: {left} bytes are missing", "It was cut off.")
            left -= len(piece)
            yield piece

    def _next(self) -> Entry | None:
        block = self._exactly(BLOCK)
        if not block.strip(b"\0"):
            return None
        info, records = self._parsed(block), {}
        if info.type == tarfile.XHDTYPE:
            if not 0 < info.size <= PAX_BYTES:
                raise self._damaged(f"a header of {info.size} bytes, at most {PAX_BYTES} are read")
            records = self._records(self._exactly(info.size))
            self._exactly(-info.size % BLOCK)
            info = self._parsed(self._exactly(BLOCK))
        path, size = records.get("path", info.name), self._size(records.get("size"), info.size)
        if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            raise self._damaged(f"{escaped(path)} is of type {info.type!r}, and only files belong into it")
        if any(key.startswith("GNU.sparse") for key in records):
            raise self._damaged(f"{escaped(path)} is sparse, and only whole files belong into it")
        if path.startswith("/") or ".." in path.split("/"):
            raise self._damaged(f"{escaped(path)} leaves the directory it is unpacked into")
        return Entry(path, size, self.position)

    def _check_end(self) -> None:
        """Two zero blocks; tarfile would take one, or none, for an end."""
        second, padded = self._exactly(BLOCK), 0
        while not second.strip(b"\0") and padded <= PADDING_BYTES:
            second = self._upto(PADDING_BYTES)
            if not second:
                return
            padded += len(second)
        raise self._damaged("something follows its end")

    def _size(self, text: str | None, otherwise: int) -> int:
        if text is not None and not SIZE.fullmatch(text):
            raise self._damaged(f"a size of {escaped(text[:40])}")
        size = otherwise if text is None else int(text)
        if size < 0:
            raise self._damaged(f"a size of {size}")
        return size

    def _parsed(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._damaged(f"a header at {self.position - BLOCK}: {escaped(str(error))}") from error

    def _records(self, raw: bytes) -> dict[str, str]:
        """Of a PAX header: `<length> <key>=<value>\\n`, where the length counts itself."""
        found, position = {}, 0
        while position < len(raw):
            match = RECORD.match(raw, position)
            end = position + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(raw) or raw[end - 1 : end] != b"\n":
                raise self._damaged(f"a PAX header at {self.position}: no record at {position}")
            try:
                found[match[2].decode()] = raw[match.end() : end - 1].decode()
            except UnicodeDecodeError as error:
                raise self._damaged(f"a PAX header at {self.position}: {error.reason}") from error
            position = end
        return found

    def _upto(self, count: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        piece, self._rest = bytes(self._rest[:count]), self._rest[count:]
        self.position += len(piece)
        return piece

    def _exactly(self, count: int) -> bytes:
        """`count` is small: all of it comes into memory."""
        found = b""
        while len(found) < count:
            piece = self._upto(count - len(found))
            if not piece:
                raise self._damaged("it ends in the middle", "It was cut off: use another copy.")
            found += piece
        return found

    def _damaged(self, what: str, hint: str = HINT) -> Damaged:
        return Damaged(f"read {self._name}: {what}", hint)
