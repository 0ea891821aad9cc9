"""Reading stretches of stored files, of the stream inside gpg where they are encrypted, which never comes to a disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aquad.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aquad.stream.gpg.gpg import Gpg

READ_BYTES = 1 << 20
IN_MEMORY_BYTES = 16 << 20
KEPT_BYTES = 1 << 20


def file_chunks(path: Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield bytes of a file. Raises Damaged when it is missing, unreadable, or ends before `length`."""
    try:
        with path.open("rb", buffering=0) as stored:
            stored.seek(offset)
            left = length
            while left is None or left > 0:
                chunk = stored.read(READ_BYTES if left is None else min(READ_BYTES, left))
                if not chunk:
                    break
                if left is not None:
                    left -= len(chunk)
                yield chunk
    except OSError as error:
        raise Damaged(
            f"read {path}: {os.strerror(error.errno or 0)}", "Use another backup, or a copy kept elsewhere."
        ) from error
    if left:
        raise Damaged(
            f"read {path}: {left} bytes are missing at its end", "Use another backup, or a copy kept elsewhere."
        )


def forget(path: Path, offset: int = 0, length: int = 0) -> None:
    """Take a stretch of a file (0: to its end) out of the page cache, so that it is read from the disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # harmless because reading it says the same, with its name
        return
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Stored(Protocol):
    """A stored file as it was sealed, wherever its bytes lie."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def chunks(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a stretch; to the end without `length`. Raises Damaged when it ends before that."""
        ...

    def descriptor(self) -> int | None:
        """Open it, to copy from; None where it is no file of its own. Raises Damaged."""
        ...


class OnDisk(NamedTuple):
    """A file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def chunks(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return file_chunks(self.path, offset, length)

    def descriptor(self) -> int | None:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Damaged(f"read {self.path}: {os.strerror(error.errno or 0)}", "Use another backup.") from error


class Plain(Protocol):
    """What is in a stored file."""

    @property
    def forwards_only(self) -> bool:
        """Whether going back means to begin again, and one reader at a time is all there may be."""
        ...

    def descriptor(self) -> int | None:
        """Open it, to copy from; None when it is encrypted. Raises Damaged."""
        ...

    def prove(self) -> None:
        """Make sure that it can be opened. Raises WrongKey and Damaged."""
        ...

    def read(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a stretch; to the end without `length`. Raises Damaged when it ends before that."""
        ...


def plain(stored: Stored, gpg: Gpg | None, parts: Sequence[tuple[int, int]] = ()) -> Plain:
    """`gpg`: what opens it; None when it is not encrypted."""
    return ClearFile(stored) if gpg is None else EncryptedFile(stored, gpg, parts)


class ClearFile:
    forwards_only = False

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def descriptor(self) -> int | None:
        return self._stored.descriptor()

    def prove(self) -> None:
        pass

    def read(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._stored.chunks(offset, length)


class EncryptedFile:
    """Opened whole once, before the first byte is handed out: gpg's verdict comes at the end of a file.

    A small file stays in memory. A large one is decrypted again for its readers, forwards: reading at an earlier place
    starts from the beginning. `parts` (offset, length) that are small are kept as they pass, for they are what is asked for
    again. One reader at a time.
    """

    def __init__(self, stored: Stored, gpg: Gpg, parts: Sequence[tuple[int, int]] = ()) -> None:
        self._stored = stored
        self._gpg = gpg
        self._memory: bytes | None = None
        self._proved = False
        self._small = [(offset, length) for offset, length in parts if length <= KEPT_BYTES]
        self._kept: dict[tuple[int, int], bytearray] = {}
        self._stream: Iterator[bytes] = iter(())
        self._begin()

    @property
    def forwards_only(self) -> bool:
        """Whether going back means to decrypt from the beginning."""
        self.prove()
        return self._memory is None

    def descriptor(self) -> int | None:
        return None

    def prove(self) -> None:
        """Have gpg open all of it, once. Raises WrongKey and Damaged."""
        if self._proved:
            return
        memory: bytearray | None = bytearray()
        for chunk in self._decrypted():
            if memory is not None:
                memory += chunk
                memory = memory if len(memory) <= IN_MEMORY_BYTES else None
        self._memory = None if memory is None else bytes(memory)
        self._proved = True

    def read(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a stretch; to the end without `length`. Raises Damaged when it ends before that."""
        self.prove()
        kept = self._memory[offset:] if self._memory is not None else None
        if length is not None:
            part = self._kept.get((offset, length))
            kept = (
                kept[:length] if kept is not None else bytes(part) if part is not None and len(part) == length else None
            )
        if kept is not None:
            if length is not None and len(kept) < length:
                raise self._short(length - len(kept))
            yield from (kept[i : i + KEPT_BYTES] for i in range(0, len(kept), KEPT_BYTES))
            return
        yield from self._forwards(offset, length)

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()
        self._begin()

    def _begin(self) -> None:
        self._stream, self._rest, self._position = iter(()), b"", -1

    def _decrypted(self) -> Iterator[bytes]:
        return self._gpg.decrypted(self._stored.chunks, self._stored.name)

    def _forwards(self, offset: int, length: int | None) -> Iterator[bytes]:
        if not 0 <= self._position <= offset:
            self.close()
            self._stream, self._position = self._decrypted(), 0
        mine = self._stream
        left = length
        while left is None or left > 0:
            chunk = self._rest or next(self._stream, b"")
            self._rest = b""
            if not chunk:
                break
            start = min(len(chunk), max(0, offset - self._position))
            end = len(chunk) if left is None else min(len(chunk), start + left)
            self._rest = chunk[end:]
            self._keep(chunk[:end])
            self._position += end
            if start < end:
                left = None if left is None else left - (end - start)
                yield chunk[start:end]
                if mine is not self._stream:
                    raise Damaged(f"read {self._stored.name}: two readers at once", "This is a bug: please report it.")
        if left:
            raise self._short(left)

    def _keep(self, passed: bytes) -> None:
        """Remember what lies in small parts."""
        end = self._position + len(passed)
        for offset, length in self._small:
            if offset < end and self._position < offset + length:
                piece = passed[max(0, offset - self._position) : offset + length - self._position]
                part = self._kept.setdefault((offset, length), bytearray())
                if offset + len(part) == max(offset, self._position):
                    part += piece

    def _short(self, left: int) -> Damaged:
        return Damaged(
            f"read {self._stored.name}: {left} bytes are missing at the end of its stream",
            "Use another backup, or a copy kept elsewhere.",
        )
