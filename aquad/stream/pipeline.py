"""Compress and store while the caller reads: three threads, a bounded number of chunks between them.

The caller's thread reads (children must be started there), one thread deflates, one hashes and writes. The heavy calls
release the interpreter's lock, so that the whole runs at the speed of its slowest stage.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKS_UNDER_WAY = 8


class Pipeline:
    """Use it as a context manager. `push` raises what an earlier stage raised; leaving the block ends the threads."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._deflating = ThreadPoolExecutor(1, "deflate")
        self._storing = ThreadPoolExecutor(1, "store")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deflating.shutdown(cancel_futures=True)
        self._storing.shutdown(cancel_futures=True)

    def push(self, transform: Callable[[], bytes]) -> None:
        """Queue one chunk: `transform` runs in the deflating thread, its result is written in order."""
        stored = self._deflating.submit(transform)
        self._under_way.append(self._storing.submit(lambda: self._write(stored.result())))
        if len(self._under_way) > CHUNKS_UNDER_WAY:
            self._under_way.popleft().result()

    def drain(self) -> None:
        """Wait until all that was pushed is written."""
        while self._under_way:
            self._under_way.popleft().result()
