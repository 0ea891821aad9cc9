"""`aquad` under a clock that is ahead: python -m aquad.demo.ahead SECONDS ARGUMENTS. So a day of the daemon takes seconds."""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta

from aquad.core.clock import SystemClock


class Ahead(SystemClock):
    """`by`: how far; it goes on with the machine's clock."""

    def __init__(self, by: timedelta = timedelta(0)) -> None:
        self.by = by

    def now(self) -> datetime:
        return super().now() + self.by


def main() -> None:
    by = timedelta(seconds=float(sys.argv.pop(1)))

    def ahead(_: SystemClock) -> datetime:
        return datetime.now(UTC) + by

    SystemClock.now = ahead  # type: ignore[assignment,method-assign] # - whoever asks for the time is told this one
    runpy.run_module("aquad", run_name="__main__")


if __name__ == "__main__":
    main()
