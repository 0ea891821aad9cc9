"""A file of many small gzip members, which can be entered at any of them: written so, and read at random.

A member holds no more than `MEMBER_BYTES` of the plain stream. What is compressed or encrypted already is stored in it as it
is (RFC 1951, 3.2.4): to deflate it again would cost hours and save nothing.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from aquad.core.errors import Damaged
from aquad.stream.gzip import WINDOW, Deflate, inflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Chunks = Callable[[int, int | None], Iterator[bytes]]
    """Stored bytes: offset, and length or to the end."""

Way = Literal["deflated", "stored"]
WRITTEN_BYTES = 1 << 20
"""Of the plain stream in a member that is written: what has to be inflated for one byte of it."""
MEMBER_BYTES = 4 << 20
"""More in one member is refused: nothing in it could be had without inflating all of it."""
STORED_BYTES = 8 << 20
KEPT = 4


def member(plain: bytes, way: Way) -> bytes:
    """One gzip member."""
    if way == "deflated":
        deflate = Deflate()
        return deflate.compress(plain) + deflate.flush()
    storing = zlib.compressobj(0, zlib.DEFLATED, WINDOW)
    return storing.compress(plain) + storing.flush()


class Cutter:
    """Cuts a plain stream into what becomes one member each, and hands it on."""

    def __init__(self, take: Callable[[bytes, Way], None]) -> None:
        self._take = take
        self._way: Way = "deflated"
        self._buffer = bytearray()

    def write(self, plain: bytes, way: Way) -> None:
        if way != self._way:
            self.flush()
            self._way = way
        self._buffer += plain
        while len(self._buffer) >= WRITTEN_BYTES:
            self._hand_on(WRITTEN_BYTES)

    def flush(self) -> None:
        if self._buffer:
            self._hand_on(len(self._buffer))

    def _hand_on(self, count: int) -> None:
        plain = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._take(plain, self._way)


class Stretches:
    """Where a file can be entered: every few members, so that what is remembered of them is little, however many there are.

    `chunks` reads the file; `name` is for messages. `scan` once, then `read` what is wanted.
    """

    def __init__(self, chunks: Chunks, name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._plain, self._stored = array("Q", [0]), array("Q", [0])
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        """The last stretches that were read: the small files of an archive are asked for one by one."""
        self._lock = threading.Lock()

    def scan(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the plain bytes of all of it, and remember where its members lie. Raises Damaged."""
        total = begun = 0

        def begins(place: int) -> None:
            nonlocal begun
            begun = total
            if total - self._plain[-1] >= WRITTEN_BYTES or place - self._stored[-1] >= STORED_BYTES:
                self._plain.append(total)
                self._stored.append(place)

        for piece in inflate(stored, self._name, begins):
            total += len(piece)
            if total - begun > MEMBER_BYTES:
                raise Damaged(
                    f"read {self._name}: one of its gzip members holds more than {MEMBER_BYTES} bytes",
                    "It was compressed anew, or aquad did not make it: unpack it with tar, and restore its files one by one.",
                )
            yield piece

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a stretch of the plain stream. Raises Damaged. May be called from several threads."""
        number = bisect_right(self._plain, offset) - 1
        while length > 0:
            if number == len(self._plain):
                raise Damaged(f"read {self._name}: {length} bytes are missing at its end", "It has changed meanwhile.")
            start = offset - self._plain[number]
            piece = self._stretch(number)[start : start + length]
            if piece:
                yield piece
            offset, length, number = offset + len(piece), length - len(piece), number + 1

    def _stretch(self, number: int) -> bytes:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        last = number + 1 == len(self._stored)
        place = self._stored[number]
        length = None if last else self._stored[number + 1] - place
        plain = b"".join(inflate(self._chunks(place, length), self._name))
        if not last and len(plain) != self._plain[number + 1] - self._plain[number]:
            raise Damaged(f"read {self._name}: it has changed since it was read through", "Try again.")
        with self._lock:
            self._kept[number] = plain
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return plain
