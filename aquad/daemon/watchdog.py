"""Ends a daemon whose loop stands still: the container's restart is better than a schedule that nobody keeps."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

LOOK_SECONDS = 30.0
LOOKS = 6
"""So often in a row it has to see no beat: three minutes of its own running, of which a suspended machine has none."""


class Watchdog:
    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._beats = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def beat(self) -> None:
        self._beats += 1

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _watch(self) -> None:
        seen, looks = -1, 0
        while looks < LOOKS:
            time.sleep(self._look_seconds)
            looks = looks + 1 if seen == self._beats else 0
            seen = self._beats
        print(  # noqa: T201 - the log may be what it hangs on
            f"aquad: the daemon's loop has stood still for {LOOKS * self._look_seconds:g} s: exit, to be started afresh",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)
