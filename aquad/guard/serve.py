"""Listens on a unix socket, for one group, until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from aquad.core.errors import AquadError
from aquad.guard.app import Guard
from aquad.guard.engine import Engine
from aquad.guard.holds import Holds
from aquad.guard.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from aquad.observe.logs import Log

END_SECONDS = 8.0
"""So long what is held may take to go on at the end; Docker waits 10 s."""


def serve(
    *,
    path: Path,
    engine_path: Path,
    state: Path,
    project: str,
    services: Collection[str],
    max_pause_seconds: float,
    gid: int,
    log: Log,
) -> None:
    """`gid`: the group that may ask. Raises AquadError when it cannot listen, or has no place for its ledger."""
    engine = Engine(engine_path)
    try:
        holds = Holds(engine, Ledger(state), log, max_pause_seconds=max_pause_seconds)
        listening = _listening(path, gid)
    except OSError as error:
        raise AquadError(
            f"start the guard at {path} with its ledger in {state}: {error}", "Both must be writable for the guard."
        ) from error
    threading.Thread(target=holds.watch, name="watch", daemon=True).start()
    guard = Guard(engine, holds, log, project=project, services=services)
    config = uvicorn.Config(
        guard,
        http="h11",  # it reads strictly: what could be read in two ways is refused
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    log.info("guarding", project=project, services=" ".join(sorted(services)), socket=str(path))
    _Server(config).run(sockets=[listening])
    if not holds.end_all(END_SECONDS):
        log.error("not everything goes on again: the next guard will try")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which in the end sends itself the signal once more, and would die of it before what is held goes on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield


def _listening(path: Path, gid: int) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # nobody connects before it has its group and mode
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, -1, gid)
    path.chmod(0o660)
    listening.listen(64)
    return listening
