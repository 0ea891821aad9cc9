"""Processes that make the small members: one interpreter's lock would have two threads wait for each other at each file.

A worker is handed open files over a private socket (so that it can open nothing by itself that was not walked to), a batch
at a time, and answers with what is to be written. Big files need none of this: their chunks are long calls without the lock.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from aquad.core.errors import AquadError, ChildFailed
from aquad.core.process import Child
from aquad.stream.tarball.content import Content, Small, made

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES = 128
"""The kernel passes 253 descriptors at once (unix(7), SCM_MAX_FD)."""


class Workers:
    """Up to `count` processes. `start` belongs to the main thread, for a child dies with the thread that started it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._all: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def start(self) -> None:
        """Start them, the first time."""
        while len(self._all) < self._count:
            worker = _Worker()
            self._all.append(worker)
            self._free.put(worker)

    def make(self, batch: Sequence[Small]) -> list[Content]:
        """Make a batch in the next free process; its files are closed here, whatever happens. May be called from any thread."""
        worker = self._free.get()
        try:
            return worker.make(batch)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        for worker in self._all:
            worker.close()


class _Worker:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = Child(
                [sys.executable, "-I", "-m", __name__, str(theirs.fileno())],
                environment={},
                keep_fds=[theirs.fileno()],
            )
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))

    def make(self, batch: Sequence[Small]) -> list[Content]:
        """Raises what the worker raised; ChildFailed when it is gone."""
        fds = [small.fd for small in batch if small.fd >= 0]
        try:
            socket.send_fds(self._socket, [b"\0"], fds)
            self._connection.send(batch)
        except OSError as error:
            raise self._gone() from error
        finally:
            for fd in fds:
                os.close(fd)
        try:
            answer: list[Content] | AquadError = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(answer, AquadError):
            raise answer
        return answer

    def close(self) -> None:
        """End it: nothing that it might still do is wanted."""
        self._connection.close()
        self._socket.close()
        self._child.end()

    def _gone(self) -> ChildFailed:
        said = self._child.last_words()
        self._child.end()
        return ChildFailed(
            f"archive small files: the process that reads them is gone: {said or 'it said nothing'}",
            "Was it killed for lack of memory? Look into the kernel's log.",
        )


def main(fd: int) -> None:
    """Serve batches until the other end closes. SIGINT is the parent's to handle: we have a process group of our own."""
    with socket.socket(fileno=fd) as ours, Connection(os.dup(fd)) as connection:
        while True:
            sign, fds, _, _ = socket.recv_fds(ours, 1, FILES)
            if not sign:
                return
            passed = iter(fds)
            batch = [small._replace(fd=next(passed)) if small.fd >= 0 else small for small in connection.recv()]
            answer: list[Content] | AquadError
            try:
                answer = made(batch)
            except AquadError as error:
                answer = error
            connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
