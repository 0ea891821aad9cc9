"""Keeps the schedule of one repository: looks at clock and journal, records what ended, starts what is due.

It holds nothing that is not in the journal but the run that is under way, and which slots it saw come.
"""

from __future__ import annotations

import os
import secrets
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aquad import __version__
from aquad.core.clock import from_text, to_text
from aquad.core.errors import AquadError, InvalidUse, LockHeld
from aquad.daemon.reports import Reports
from aquad.jobs import slots
from aquad.jobs.slots import Ledger, Slot
from aquad.repository import lock
from aquad.repository.history import History

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aquad.jobs.slots import Attempt, Ending, Turn
    from aquad.observe.logs import Log
    from aquad.repository.repository import Repository
    from aquad.wiring import Wiring

    Start = Callable[[Wiring, Turn], "Supervised"]
    """Makes a run by these settings a child process."""

IN_TIME_SECONDS = 300
"""A slot seen so soon was seen come: it waits for its turn, however long that takes."""
BACK_SECONDS = 60
"""Time servers set clocks by less."""
GRACE_SECONDS = 60
"""A run ends itself at its deadline; after this it is ended, and killed after as much again."""
RESTARTS, RESTARTS_SECONDS = 5, 600
LAST_CHILDREN_SECONDS = 3.0
"""The children of a run that was killed are killed with it, and hold the lock until they are gone."""
JOBS = {"full": "full", "incremental": "postgres", "weekly": "weekly"}
"""Which job makes a backup of which kind."""


class LockLost(AquadError):
    """Another daemon may keep the repository by now."""


class Supervised(Protocol):
    """A run as a child process: core/process.py."""

    pid: int
    pidfd: int
    report_fd: int

    def poll(self) -> int | None: ...

    def reports(self) -> bytes: ...

    def signal(self, number: signal.Signals) -> None: ...

    def close(self) -> None: ...


class Running(NamedTuple):
    turn: Turn
    child: Supervised
    reports: Reports


class Keeper:
    """Made for a repository that is there. Raises LockHeld when another daemon keeps it."""

    def __init__(self, wiring: Wiring, repository: Repository, start: Start, log: Log) -> None:
        self._wiring = wiring
        self.repository = repository
        self._start = start
        self._log = log
        self._clock = wiring.clock
        self._started_at = self._seen_at = self._clock.now()
        self._stamp: tuple[int, ...] = ()
        self._noticed: set[Slot] = set()
        self._slots_of_backups = [
            (JOBS[backup.kind], from_text(backup.slot)) for backup in repository.catalog().backups if backup.slot
        ]
        self.running: Running | None = None
        with ExitStack() as holding:
            holder = _holder(to_text(self._clock.now()))
            self._lock_fd = holding.enter_context(lock.exclusive(repository.layout.daemon_lock, holder=holder))
            self._begin()
            self._holding = holding.pop_all()

    def tick(self) -> datetime | None:
        """Do what is to be done now; return when to be called again at the latest for a retry. Raises AquadError, and LockLost,
        after which it must not be called again.
        """
        self._check_place()
        now = self._clock.now()
        self._look_after()
        self._read()
        self._check_clock(now)
        self._seen_at = now
        if self.running is None and self._ledger.running:
            self._tidy()
        plan = self._plan(now)
        for ending in plan.endings:
            self._end(ending)
        waiting = [turn for turn in plan.turns if turn.not_before > now]
        if self.running is None:
            turn = next((turn for turn in plan.turns if turn.not_before <= now), None)
            if turn is not None:
                self._run(turn)
        return min((turn.not_before for turn in waiting), default=None)

    def change(self, wiring: Wiring, *, after_bad_ones: bool) -> None:
        """Go on by other settings of the same repository. `after_bad_ones`: that they are good again is news by itself."""
        self._note_settings(wiring, always=after_bad_ones)
        self._wiring = wiring

    def stopped(self, reason: str) -> None:
        """Record the end of this daemon; the run that it ended with itself is tried again by the next one."""
        turn = self.running.turn if self.running else None
        self._look_after()
        attempt = self._attempt(turn) if turn else None
        cut_short = attempt is not None and attempt.outcome in {"aborted", "interrupted"}
        self.repository.journal.append(
            "daemon_stopped", reason=reason, run=attempt.run if attempt and cut_short else None
        )
        self.close()

    def close(self) -> None:
        """Let another daemon keep the schedule."""
        self._holding.close()

    def _begin(self) -> None:
        entries = list(self.repository.journal.entries())
        starts = [from_text(e["at"]) for e in entries if e["event"] == "daemon_started"]
        now = self._clock.now()
        recent = [at for at in starts if 0 <= (now - at).total_seconds() < RESTARTS_SECONDS]
        self.began = self.repository.journal.append("daemon_started", version=__version__, pid=os.getpid())
        alerts = [from_text(e["at"]) for e in entries if e["event"] == "alert" and e["rule"] == "daemon_restarts"]
        if len(recent) >= RESTARTS and not (alerts and alerts[-1] >= recent[0]):
            self.alert(
                "daemon_restarts",
                "warning",
                f"the daemon was started {len(recent) + 1} times in {RESTARTS_SECONDS // 60} minutes",
            )
        if not entries and self.repository.catalog().backups:
            self.alert(
                "journal_lost", "critical", "the journal is gone: what ran and what was verified is not known any more"
            )
        if entries and from_text(entries[-1]["at"]).timestamp() > now.timestamp() + BACK_SECONDS:
            self.repository.journal.append("clock_went_back", seen=entries[-1]["at"], to=to_text(now))
        self._note_settings(self._wiring)
        self._read()

    def _note_settings(self, wiring: Wiring, *, always: bool = False) -> None:
        """Every change of settings stands in the journal, with what it was before; the first line has them all."""
        values = wiring.settings_values()
        entries = self.repository.journal.entries()
        before = None
        for entry in entries:
            before = entry["values"] if entry["event"] == "settings" else before
        if before is None:
            self.repository.journal.append("settings", changed={}, values=values)
        elif always or before != values:
            keys = sorted({*before, *values})
            changed = {key: [before.get(key), values.get(key)] for key in keys if before.get(key) != values.get(key)}
            self.repository.journal.append("settings", changed=changed, values=values)
            self._log.info("settings changed", keys=", ".join(changed))

    def _read(self) -> None:
        """Read the journal when it has grown; it holds three months, and is read in a moment."""
        stamp = self.repository.journal.stamp()
        if stamp and stamp == self._stamp:
            return
        ledger, history = Ledger(), History()
        for entry in self.repository.journal.entries():
            ledger.add(entry)
            history.add(entry)
        for job, at in self._slots_of_backups:
            ledger.add_backup(job, at)
        self._ledger, self._history, self._stamp = ledger, history, stamp

    def _plan(self, now: datetime) -> slots.Plan:
        rules = self._wiring.rules()
        # What a clock that was ahead saw come has not come; of each job the last two are enough.
        self._noticed = {slot for slot in self._noticed if slot.at <= now and slot.job in rules}
        for job, rule in rules.items():
            newest = rule.latest(max([self._started_at, *(slot.at for slot in self._noticed if slot.job == job)]), now)
            if newest is not None and (now - newest).total_seconds() <= IN_TIME_SECONDS:
                former = sorted(slot for slot in self._noticed if slot.job == job)
                self._noticed = self._noticed - set(former[:-1]) | {Slot(job, newest)}
        hold = self._history.holding(now, self._ledger.running)
        return slots.plan(
            rules,
            self._ledger,
            self._wiring.slot_policy(),
            now=now,
            started_at=self._started_at,
            first=self._first(),
            noticed=self._noticed,
            under_way=self.running.turn.slot if self.running else None,
            hold=hold.reason if hold else "",
        )

    def _first(self) -> datetime | None:
        """The slot of the very first full backup: there is none yet, and none was tried for that."""
        if self._ledger.newest_ended("full", self._clock.now()) is not None:
            return None
        if any(backup.kind == "full" for backup in self.repository.catalog().backups):
            return None
        return from_text(self.repository.marker.created_at)

    def _run(self, turn: Turn) -> None:
        self.running = Running(turn, self._start(self._wiring, turn), Reports())
        self._log.info("run started", job=turn.slot.job, slot=to_text(turn.slot.at), attempt=turn.attempt)

    def _look_after(self) -> None:
        """Hear what the run says; end it when it does not end itself; see that its outcome is recorded."""
        if self.running is None:
            return
        turn, child, reports = self.running
        status = child.poll()
        reports.take(child.reports(), self._clock.monotonic())
        if status is None:
            self._check_deadline(turn, child, reports)
            return
        self._read()
        attempt = self._attempt(turn)
        if attempt is not None and attempt.outcome is None:
            self._tidy(wait_seconds=LAST_CHILDREN_SECONDS)
        elif attempt is None:
            self.repository.journal.append(
                "run_ended",
                run=secrets.token_hex(4),
                job=turn.slot.job,
                slot=to_text(turn.slot.at),
                attempt=turn.attempt,
                wants=self._wiring.wants(turn.slot.job),
                outcome="failed",
                reason=f"it did not begin: {reports.error or _how(status)}",
                retryable=status != InvalidUse.exit_code,
            )
        self._read()
        attempt = self._attempt(turn)
        if attempt is not None:
            self._log.info(
                "run ended", job=turn.slot.job, run=attempt.run, outcome=attempt.outcome, reason=attempt.reason
            )
        child.close()
        self.running = None

    def _attempt(self, turn: Turn) -> Attempt | None:
        attempts = self._ledger.attempts.get(turn.slot, [])
        return next((one for one in attempts if one.number == turn.attempt), None)

    def _check_deadline(self, turn: Turn, child: Supervised, reports: Reports) -> None:
        deadline = self._wiring.limits(turn.slot.job).deadline_seconds
        if deadline is None or reports.began_at is None:
            return
        late = self._clock.monotonic() - reports.began_at - deadline
        if late > 2 * GRACE_SECONDS:
            child.signal(signal.SIGKILL)
        elif late > GRACE_SECONDS:
            child.signal(signal.SIGTERM)

    def _tidy(self, wait_seconds: float = 0.0) -> None:
        """Have a dead run recorded, and what it left put away; a living one does so itself when it begins."""
        try:
            with self.repository.writing(run_id=secrets.token_hex(4), command="daemon", wait_seconds=wait_seconds):
                pass
        except LockHeld:
            return
        self._read()

    def _end(self, ending: Ending) -> None:
        slot = ending.slot
        more = {"first": to_text(ending.first), "count": ending.number} if ending.first and ending.number > 1 else {}
        self.repository.journal.append(
            "slot_ended", job=slot.job, slot=to_text(slot.at), outcome=ending.outcome, reason=ending.reason, **more
        )
        if ending.outcome in slots.DONE:
            return
        self._log.warning(
            "slot ended", job=slot.job, slot=to_text(slot.at), outcome=ending.outcome, reason=ending.reason, **more
        )
        if not self._history.holding(self._clock.now(), self._ledger.running):
            self.alert(
                f"run_{ending.outcome}",
                "critical" if ending.outcome == "failed" else "warning",
                f"{slot.job} of {to_text(slot.at)} {ending.outcome}: {ending.reason}",
                job=slot.job,
                slot=to_text(slot.at),
            )

    def alert(self, rule: str, level: str, text: str, **about: str) -> None:
        self.repository.journal.append("alert", rule=rule, level=level, component=None, text=text, **about)

    def _check_clock(self, now: datetime) -> None:
        if (self._seen_at - now).total_seconds() > BACK_SECONDS:
            self.repository.journal.append("clock_went_back", seen=to_text(self._seen_at), to=to_text(now))
            self._log.warning("the clock went back", seen=to_text(self._seen_at), to=to_text(now))
            self._started_at = min(self._started_at, now)

    def _check_place(self) -> None:
        """The directory may have been unmounted, and another daemon may have made the lock anew."""
        self._wiring.repository()
        path = self.repository.layout.daemon_lock
        if not path.exists() or path.stat().st_ino != os.fstat(self._lock_fd).st_ino:
            raise LockLost(f"look at {path}: it is not the file that this daemon has locked", "Somebody removed it.")


def _holder(since: str) -> dict[str, str]:
    return {"command": "the daemon", "pid": str(os.getpid()), "since": since}


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
