"""Compress behind the caller: it reads in its own thread (children must be started there), one thread deflates.

The file that takes the result hashes and writes in a thread of its own. The heavy calls release the interpreter's lock, so
that the whole runs at the speed of its slowest stage. The number of chunks under way is bounded.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKS_UNDER_WAY = 8


class Pipeline:
    """Use it as a context manager. `push` raises what an earlier chunk met; leaving the block ends the thread."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._deflating = ThreadPoolExecutor(1, "deflate")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deflating.shutdown(cancel_futures=True)

    def push(self, transform: Callable[[], bytes]) -> None:
        """Queue one chunk: `transform`, then `write` of its result, run in the deflating thread, in order."""
        self._under_way.append(self._deflating.submit(lambda: self._write(transform())))
        if len(self._under_way) > CHUNKS_UNDER_WAY:
            self._under_way.popleft().result()

    def drain(self) -> None:
        """Wait until all that was pushed was handed to `write`."""
        while self._under_way:
            self._under_way.popleft().result()
