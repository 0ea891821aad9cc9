"""What a run says to the daemon while it works, one JSON object a line: cli/reporting.py is the other end."""

from __future__ import annotations

import json


class Reports:
    """How far a run is. `began_at`: when it first said something, by the daemon's monotonic clock: it has the lock since."""

    def __init__(self) -> None:
        self._rest = b""
        self.began_at: float | None = None
        self.stage = ""
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self.error = ""

    def take(self, said: bytes, monotonic: float) -> None:
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            report = json.loads(line)
            match report["event"]:
                case "stage":
                    self.stage, self.total_bytes, self.done_bytes = report["stage"], report["total_bytes"], 0
                    self.began_at = self.began_at or monotonic
                case "progress":
                    self.done_bytes = report["bytes"]
                case "error":
                    self.error = report["text"]
