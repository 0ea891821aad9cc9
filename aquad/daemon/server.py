"""Serves metrics and health in a thread of the daemon. The owner of uvicorn."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from aquad.core.errors import AquadError

if TYPE_CHECKING:
    from starlette.applications import Starlette

CONNECTIONS = 64
"""More at a time are refused."""
IDLE_SECONDS = 75
"""Longer than Prometheus' pause between two scrapes, so that it keeps its connection."""


class Server:
    """Raises AquadError when somebody else listens there."""

    def __init__(self, app: Starlette, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, int(port)), family=family, backlog=CONNECTIONS)
        except OSError as error:
            raise AquadError(
                f"listen on {listen}: {os.strerror(error.errno or 0)}", "Look at web.listen in the settings."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,  # uvicorn would wake up for it every second
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
        )
        self._thread = threading.Thread(
            target=_Quiet(config).run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()


class _Quiet(uvicorn.Server):
    """It ends with the daemon, so it need not look ten times a second whether it should."""

    async def main_loop(self) -> None:
        self.server_state.default_headers = self.config.encoded_headers
        await asyncio.Event().wait()
