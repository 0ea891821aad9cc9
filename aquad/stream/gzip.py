"""gzip by isal: five times faster than zlib at nearly its ratio, and readable by every gunzip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isal import igzip_lib, isal_zlib

from aquad.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LEVEL = 1
WINDOW = 31
"""wbits of a gzip member (zlib manual, deflateInit2)."""
INFLATED_BYTES = 256 << 10
FED_BYTES = 4 << 10
"""Of a member at first, then ever more: what follows its end is copied, and a chunk may hold thousands of small ones."""
IsalError: Any = igzip_lib.IsalError


class Deflate:
    """One gzip member."""

    def __init__(self) -> None:
        self._state = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, WINDOW)

    def compress(self, plain: bytes) -> bytes:
        stored: bytes = self._state.compress(plain)
        return stored

    def flush(self) -> bytes:
        stored: bytes = self._state.flush()
        return stored


def inflate(chunks: Iterable[bytes], name: str, begins: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """Yield the plain bytes of concatenated gzip members, a bounded piece at a time.

    `begins` is told where each member begins, when all that lies before it was taken. Raises Damaged when a member is
    corrupt, cut off, or followed by something else.
    """
    state, passed = None, 0
    try:
        for chunk in chunks:
            view, position, step = memoryview(chunk), 0, FED_BYTES
            while position < len(chunk):
                if state is None:
                    begins(passed + position)
                    state, step = isal_zlib.decompressobj(WINDOW), FED_BYTES
                fed = view[position : position + step]
                plain = state.decompress(fed, INFLATED_BYTES)
                position += len(fed) - len(state.unused_data if state.eof else state.unconsumed_tail)
                step *= 2
                if state.eof:
                    state = None
                if plain:
                    yield plain
            passed += len(chunk)
        while state is not None and not state.eof:
            plain = state.decompress(b"", INFLATED_BYTES)
            if not plain:
                break
            yield plain
    except IsalError as error:
        raise Damaged(f"inflate {name}: {error}", "The file is corrupt: use another backup.") from error
    if state is not None and not state.eof:
        raise Damaged(
            f"inflate {name}: it ends in the middle of a gzip member", "The file was cut off: use another backup."
        )
