"""Tells the channels what they are to be told, by children that do the waiting.

What is to be told, and what was, stands in the journal, or in the Outbox while nothing can be written.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import to_text
from aquad.core.errors import AquadError, ChildFailed, LockHeld, RepositoryWriteFailed
from aquad.jobs.notify import Outbox, Outgoing
from aquad.observe.messages import Text, written
from aquad.observe.reports import BACKUPS
from aquad.repository import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from aquad.daemon.keeper import Keeper, Supervised
    from aquad.observe.logs import Log
    from aquad.observe.metrics import Counters
    from aquad.observe.overview import Overview
    from aquad.repository.repository import Repository
    from aquad.wiring import Wiring

    Send = Callable[[Wiring, bytes], Supervised]
    """Makes a child that sends a batch, by these settings."""

LOOK = timedelta(minutes=5)
"""So often it looks what has grown old, or full, while nothing happened."""
TROUBLE = timedelta(minutes=1)
"""Trouble that lasts so long is told."""
DELAYS = [timedelta(minutes=minutes) for minutes in (1, 2, 4, 8, 15)]
"""After so long a channel that refused is tried again."""
LONGEST = timedelta(hours=1)
"""Whatever it asks for, it is not left alone for longer."""
FAILURES = 3
"""A channel that refused so often in a row is an alert on the others."""
CHILD_SECONDS = 300.0
LAST_SECONDS = 1.0
AGAIN = timedelta(seconds=5)
PING = "ping"
NOTHING = Text("", "", [])


class Failing(NamedTuple):
    times: int
    not_before: datetime


class Batch(NamedTuple):
    """What a child is sending: by number."""

    child: Supervised
    outgoing: dict[int, Outgoing | None]
    """None: the ping."""
    end_monotonic: float
    holding: ExitStack


class Notifier:
    def __init__(self, send: Send, counters: Counters, log: Log, now: datetime) -> None:
        self._send = send
        self._counters = counters
        self._log = log
        self._outbox = Outbox()
        self._batch: Batch | None = None
        self._rest = b""
        self._stamp: tuple[int, ...] = ()
        self._look_at = self._seen_at = now
        self._failing: dict[str, Failing] = {}
        """Channels that refused; after a restart they are tried at once."""
        self._known_failing: set[str] = set()
        """Of which the journal says so."""
        self._trouble_since: datetime | None = None
        self._told_trouble = False
        self._success_line = self._pinged_line = 0
        self.waiting = 0

    @property
    def child(self) -> Supervised | None:
        return self._batch.child if self._batch else None

    def tick(self, wiring: Wiring, keeper: Keeper | None, seen: Overview | None, trouble: str) -> datetime:
        """Do what is to be done now; return when to be called again at the latest. `seen`: None where the repository cannot be
        read. `trouble`: why the schedule cannot be kept, or nothing.
        """
        now = wiring.clock.now()
        if now < self._seen_at:  # the clock went back: what was to be done later would wait that much longer
            self._look_at = now
            self._failing = {name: one._replace(not_before=now) for name, one in self._failing.items()}
        self._seen_at = now
        repository = keeper.repository if keeper and seen else None
        self._hear(wiring, repository, now)
        self._note_trouble(repository, trouble, now)
        news = repository is not None and repository.journal.stamp() != self._stamp
        if self._batch is None and (news or now >= self._look_at):
            self._outbox.flush(repository)
            if keeper and repository:
                self._note_successes(repository, keeper.began.lines)
            self._look(wiring, repository, seen and seen.at(now), now)
        return self._look_at

    def close(self, wiring: Wiring, keeper: Keeper | None) -> None:
        """The daemon ends. What is not confirmed within a moment is told again by the next one."""
        if self._batch is not None:
            select.select([self._batch.child.pidfd], [], [], LAST_SECONDS)
            self._hear(wiring, keeper.repository if keeper else None, wiring.clock.now())
        if self._batch is not None:
            self._batch.child.signal(signal.SIGKILL)
            self._put_away(self._batch)

    def _look(self, wiring: Wiring, repository: Repository | None, seen: Overview | None, now: datetime) -> None:
        if seen is not None:
            self._outbox.note_conditions(repository, seen)
        self._stamp = repository.journal.stamp() if repository else ()
        channels = wiring.alert_levels()
        notices = self._outbox.notices(repository, now)
        self._known_failing = {subject for rule, subject in notices.levels() if rule == "channel_fails"}
        plan = notices.plan(channels, now)
        self.waiting = len(plan.outgoing)
        wanted: list[Outgoing | None] = [one for one in plan.outgoing if self._is_ready(one.channel, now)]
        if PING in channels and self._is_ping_due(seen) and self._is_ready(PING, now):
            wanted.append(None)
        moments = [plan.look_at, *(one.not_before for one in self._failing.values())]
        if self._trouble_since and not self._told_trouble:
            moments.append(self._trouble_since + TROUBLE)
        self._look_at = min([now + LOOK, *(one for one in moments if one and one > now)])
        if wanted:
            self._start(wiring, repository, seen, wanted, now)

    def _is_ready(self, channel: str, now: datetime) -> bool:
        failing = self._failing.get(channel)
        return failing is None or failing.not_before <= now

    def _is_ping_due(self, seen: Overview | None) -> bool:
        return self._success_line > self._pinged_line and seen is not None and not seen.stale

    def _note_successes(self, repository: Repository, since: int) -> None:
        """Those of this daemon's time: what is missed by a restart, the next success says."""
        for entry in repository.journal.entries():
            of_backup = entry["event"] == "run_ended" and entry["job"] in BACKUPS and entry["line"] > since
            if of_backup and entry["outcome"] in {"success", "warning"}:
                self._success_line = entry["line"]

    def _start(
        self,
        wiring: Wiring,
        repository: Repository | None,
        seen: Overview | None,
        wanted: Sequence[Outgoing | None],
        now: datetime,
    ) -> None:
        texts = [(one.channel, written(one.message, seen, wiring.zone)) if one else (PING, NOTHING) for one in wanted]
        batch = json.dumps([(number, *text) for number, text in enumerate(texts)]).encode()
        with ExitStack() as holding:
            try:
                if repository is not None:
                    holder = {"command": "the daemon's alerts", "pid": str(os.getpid()), "since": to_text(now)}
                    holding.enter_context(lock.exclusive(repository.layout.notify_lock, holder=holder))
            except LockHeld:  # somebody by hand tells the same right now
                self._look_at = now + AGAIN
                return
            except RepositoryWriteFailed:  # harmless because nobody else can lock it either, and it must be told
                pass
            try:
                child = self._send(wiring, batch)
            except ChildFailed as error:
                self._log.error("alerts cannot be sent", error=str(error))
                self._look_at = now + DELAYS[0]
                return
            self._rest = b""
            end = wiring.clock.monotonic() + CHILD_SECONDS
            self._batch = Batch(child, dict(enumerate(wanted)), end, holding.pop_all())

    def _hear(self, wiring: Wiring, repository: Repository | None, now: datetime) -> None:
        batch = self._batch
        if batch is None:
            return
        status = batch.child.poll()
        *lines, self._rest = (self._rest + batch.child.reports()).split(b"\n")
        for line in lines:
            self._take(json.loads(line), batch, repository, now)
        if status is None:
            if wiring.clock.monotonic() > batch.end_monotonic:
                batch.child.signal(signal.SIGKILL)
            return
        if status:
            for channel in {one.channel if one else PING for one in batch.outgoing.values()}:
                self._refused(channel, f"the sender ended with status {status}", 0, repository, now)
        self._put_away(batch)
        self._look_at = now

    def _put_away(self, batch: Batch) -> None:
        batch.child.close()
        with suppress(AquadError):  # harmless because the kernel has released the lock
            batch.holding.close()
        self._batch = None

    def _take(self, receipt: Mapping[str, Any], batch: Batch, repository: Repository | None, now: datetime) -> None:
        one, channel = batch.outgoing.pop(receipt["number"]), receipt["channel"]
        if receipt["error"]:
            self._refused(channel, receipt["error"], receipt["retry_after_seconds"], repository, now)
            return
        self._counters.told(channel, "delivered")
        self._failing.pop(channel, None)
        if one is None:
            self._pinged_line = self._success_line
        else:
            self._outbox.note_told(repository, now, one)
        self._log.info("alert delivered", channel=channel, note=receipt["note"])
        if channel in self._known_failing:
            self._known_failing.remove(channel)
            self._outbox.over(repository, now, "channel_fails", "a message was taken", component=channel)

    def _refused(
        self, channel: str, why: str, retry_after_seconds: int, repository: Repository | None, now: datetime
    ) -> None:
        times = self._failing[channel].times + 1 if channel in self._failing else 1
        asked = min(timedelta(seconds=retry_after_seconds), LONGEST)
        delay = max(DELAYS[min(times, len(DELAYS)) - 1], asked)
        self._failing[channel] = Failing(times, now + delay)
        self._counters.told(channel, "failed")
        self._log.error("alert not delivered", channel=channel, error=why, again_in=str(delay))
        if times >= FAILURES and channel not in self._known_failing:
            self._known_failing.add(channel)
            self._outbox.alert(repository, now, "channel_fails", "warning", why, component=channel)

    def _note_trouble(self, repository: Repository | None, trouble: str, now: datetime) -> None:
        if not trouble:
            if self._told_trouble:
                self._outbox.over(repository, now, "repository", "the schedule is kept again")
                self._look_at = now
            self._trouble_since, self._told_trouble = None, False
            return
        if self._trouble_since is None:
            self._trouble_since = now
            self._look_at = min(self._look_at, now + TROUBLE)
        if not self._told_trouble and now - self._trouble_since >= TROUBLE:
            self._outbox.alert(
                repository, now, "repository", "critical", f"since {to_text(self._trouble_since)}: {trouble}"
            )
            self._told_trouble = True
            self._look_at = now
