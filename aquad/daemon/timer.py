"""What wakes the daemon: APScheduler in a thread, at every slot, every retry, and as a heartbeat. Its owner.

It is an alarm clock and nothing else: which slot is due is decided by `jobs/slots.py`, so none of its ways to drop, double or
forget a run matters. All the same: UTC, no misfire limit, one instance, in memory (https://apscheduler.readthedocs.io/en/3.x/).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aquad.jobs.schedule import Rule

HEARTBEAT_SECONDS = 30


class RuleTrigger(BaseTrigger):  # type: ignore[misc] # - APScheduler has no types
    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:  # noqa: ARG002 - its signature
        return self.rule.after(now)


class Timer:
    """`ring` is called in the timer's thread, and must be quick."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._moments: dict[str, datetime] = {}
        self._scheduler: Any = BackgroundScheduler(
            timezone=UTC,
            daemon=True,
            executors={"default": DebugExecutor()},  # in its own thread: there is nothing to wait for
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self, rules: Mapping[str, Rule]) -> None:
        self.change(rules)
        self._scheduler.start()

    def change(self, rules: Mapping[str, Rule]) -> None:
        """Ring by these rules, and by what the clock says now."""
        self._scheduler.remove_all_jobs()
        self._moments.clear()
        self._scheduler.add_job(self._ring, "interval", seconds=HEARTBEAT_SECONDS)
        for rule in rules.values():
            self._scheduler.add_job(self._ring, RuleTrigger(rule))

    def ring_at(self, moment: datetime, why: str) -> None:
        """Ring once more, then. A later call with the same `why` replaces it."""
        if self._moments.get(why) != moment:
            self._moments[why] = moment
            self._scheduler.add_job(self._ring, DateTrigger(moment), id=why, replace_existing=True)

    def is_alive(self) -> bool:
        thread = self._scheduler._thread  # noqa: SLF001 - APScheduler does not tell otherwise whether its thread lives
        return thread is not None and thread.is_alive()

    def stop(self) -> None:
        if self.is_alive():
            self._scheduler.shutdown(wait=False)
