"""Locks of the repository: flock, so that the kernel releases them whatever happens to their holder.

`lock` is exclusive for whoever writes; `readers.lock` is shared by those who only read, so that nothing is removed under
them. A lock belongs to the run, never to the daemon. Children inherit the descriptor: a child that outlives its run keeps
the repository locked until it has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aquad.core.errors import LockHeld, RepositoryWriteFailed
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL_SECONDS = 0.2


@contextmanager
def exclusive(path: Path, *, holder: dict[str, str], wait_seconds: float = 0.0) -> Iterator[int]:
    """Hold `path` alone and write into it who does. Yields the descriptor. Raises LockHeld, naming the holder."""
    fd = files.open_log(path)
    try:
        _lock(fd, path, fcntl.LOCK_EX, wait_seconds)
        files.truncate(fd, 0, path)
        files.write(fd, json.dumps(holder).encode(), path)
        yield fd
        files.truncate(fd, 0, path)
    finally:
        os.close(fd)


@contextmanager
def shared(path: Path, *, wait_seconds: float = 0.0) -> Iterator[int | None]:
    """Hold `path` with other readers. On a read-only file system there is nobody to be kept out, and no lock: None."""
    try:
        fd = files.open_log(path)
    except RepositoryWriteFailed:
        yield None
        return
    try:
        _lock(fd, path, fcntl.LOCK_SH, wait_seconds)
        yield fd
    finally:
        os.close(fd)


def holder(path: Path) -> str:
    """Who holds it alone right now; empty when nobody does, or nobody can tell."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # harmless because a lock that cannot be opened is held by nobody that we could name
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)
    return ""


def _lock(fd: int, path: Path, kind: int, wait_seconds: float) -> None:
    give_up_at = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= give_up_at:
                raise LockHeld(
                    f"lock {path}: held by {_holder(fd)}",
                    "Wait for it (--wait SECONDS), or end that process with SIGTERM.",
                ) from error
            time.sleep(POLL_SECONDS)
        else:
            return


def _holder(fd: int) -> str:
    try:
        who = json.loads(os.pread(fd, 4096, 0))
        run = f"run {who['run']}, " if "run" in who else ""
        return f"{who['command']} ({run}process {who['pid']}) since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has not said who it is"
