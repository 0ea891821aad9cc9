"""What tarfile reads from: the inflated stream, of which it gets no more for one member's headers than a member may have."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 16 << 20
"""More than one member's headers take, with a sparse map of half a million stretches. tarfile holds them in memory."""
NO_LIMIT = 2**63


class Inflated(io.RawIOBase):
    """`total`: bytes so far. `data_end`: where the last one was that is not zero. `limit`: no more may be read now."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.total = self.data_end = 0
        self.limit = HEADER_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size or size < 0:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
            if kept := len(chunk.rstrip(b"\0")):
                self.data_end = self.total + kept
            self.total += len(chunk)
            if self.total > self.limit:
                raise tarfile.HeaderError(f"a member's headers are longer than {HEADER_BYTES} bytes")
        wanted, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return wanted
