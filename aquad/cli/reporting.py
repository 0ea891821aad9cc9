"""How a run that the daemon started tells it how far it is: JSON Lines into a pipe. aquad/daemon/reports.py reads them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

SECONDS = 1.0
TEXT_CHARACTERS = 2000


class Reporting:
    """A `Progress`. A daemon that does not read loses lines; it never holds a run up."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._done = 0
        self._said_at = 0.0

    def stage(self, name: str, total_bytes: int | None) -> None:
        self._done = 0
        self.say(event="stage", stage=name[:200], total_bytes=total_bytes)

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said_at >= SECONDS:
            self._said_at = time.monotonic()
            self.say(event="progress", bytes=self._done)

    def error(self, text: str) -> None:
        self.say(event="error", text=text[:TEXT_CHARACTERS])

    def say(self, **report: Any) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # harmless because the journal has what matters
            os.write(self._fd, json.dumps(report).encode() + b"\n")
