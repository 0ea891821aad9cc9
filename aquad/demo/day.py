"""A day of the daemon in seconds: the real keeper of the schedule and real runs, under a clock that is set to the next slot."""

from __future__ import annotations

import select
import signal
import sys
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from aquad.core.clock import to_text
from aquad.core.process import Supervised
from aquad.daemon.keeper import Keeper
from aquad.demo import interruption
from aquad.demo.ahead import Ahead
from aquad.observe.logs import make_log
from aquad.wiring import Wiring

if TYPE_CHECKING:
    from pathlib import Path

    from aquad.jobs.slots import Turn

SUNDAY = 6


class Sunday:
    """`settings`: of a repository that is made when the day begins."""

    def __init__(self, settings: Path) -> None:
        self.settings = settings
        self.clock = Ahead()
        self.clock.by = _next_sunday(self.clock.now()) - self.clock.now()

    def argv(self, *command: str) -> list[str]:
        """`aquad COMMAND` at that time."""
        by = str(self.clock.by.total_seconds())
        return [sys.executable, "-m", "aquad.demo.ahead", by, "-c", str(self.settings), *command]

    def live(self) -> list[str]:
        """Keep the schedule for a day, which has all the jobs of a week; return the reports that were written."""
        wiring = Wiring.load(self.settings, "daemon")
        wiring.clock = self.clock
        repository = wiring.repository()
        keeper = Keeper(wiring, repository, self._start, make_log(self.clock, wiring.zone, sys.stdout, as_json=False))
        end = self.clock.now() + timedelta(days=1)
        try:
            while self.clock.now() < end:
                keeper.tick()
                while keeper.running is not None:
                    with interruption.allowed():
                        select.select([keeper.running.child.pidfd], [], [])
                    keeper.tick()
                _, at = wiring.coming(self.clock.now(), 1)[0]
                self.clock.by += at - self.clock.now()
        finally:
            if keeper.running is not None:
                keeper.running.child.signal(signal.SIGTERM)
                select.select([keeper.running.child.pidfd], [], [])
            keeper.stopped("the end of the demo")
        written = [entry["path"] for entry in repository.journal.entries() if entry["event"] == "report_written"]
        return [(repository.root / path).read_text() for path in written]

    def _start(self, _wiring: Wiring, turn: Turn) -> Supervised:
        slot = ["--slot", to_text(turn.slot.at), "--attempt", str(turn.attempt)]
        return Supervised(self.argv("-q", "run", turn.slot.job, *slot))


def _next_sunday(now: datetime) -> datetime:
    """Half an hour after it began, in UTC."""
    ahead = (SUNDAY - now.weekday()) % 7 or 7
    return datetime.combine(now.date() + timedelta(days=ahead), time(0, 30), UTC)
