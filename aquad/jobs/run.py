"""One run: lock, recovery, journal, deadline, outcome. The work itself knows none of these words.

The outcome is built here and nowhere else, from what the work returned or raised. This is the one place below the doors
that catches everything.
"""

from __future__ import annotations

import secrets
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aquad.core.clock import to_text
from aquad.core.errors import AquadError, DeadlinePassed, Terminated
from aquad.core.escape import escaped
from aquad.repository import layout
from aquad.repository.history import History
from aquad.stream.artifact import Progress, RunContext, Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime, tzinfo

    from aquad.core.clock import Clock
    from aquad.repository.repository import Repository

Outcome = Literal["success", "warning", "failed", "aborted", "skipped"]
REASON_CHARACTERS = 2000
FORMER_RUNS = 50


class Work(NamedTuple):
    """What a piece of work returns: an outcome it chose on purpose, and why."""

    outcome: Literal["success", "warning", "failed"]
    reason: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    failure_code: int = 1
    """The exit code of a failure: that of its one cause, where there is but one and nothing came of the run."""
    retryable: bool = False
    """Whether trying again may help."""

    @property
    def exit_code(self) -> int:
        return {"success": 0, "warning": 3, "failed": self.failure_code}[self.outcome]


class Limits(NamedTuple):
    deadline_seconds: float | None
    stall_seconds: float
    wait_seconds: float = 0.0


class Turn(NamedTuple):
    """For which slot of the schedule a run is, and how often it was tried; a run by hand has none."""

    slot: datetime
    attempt: int


def run_job(
    repository: Repository,
    job: str,
    work: Callable[[RunContext], Work],
    *,
    clock: Clock,
    zone: tzinfo,
    limits: Limits,
    progress: Progress | None = None,
    turn: Turn | None = None,
    wants: Sequence[str] = (),
) -> Work:
    """Run `work` under the lock and record exactly one outcome. What the work raised is raised again, after that.

    `wants`: the components that it is to back up, so that one which it never came to has failed with it.

    Raises LockHeld before anything is recorded: a run that never began has no outcome. Raises DeadlinePassed in the main
    thread, out of whatever is done there, where the door made SIGALRM do so.
    """
    run_id = secrets.token_hex(4)
    with repository.writing(run_id=run_id, command=job, wait_seconds=limits.wait_seconds) as lock_fd:
        started = clock.monotonic()
        context = RunContext(
            run_id=run_id,
            timestamp=layout.timestamp(clock.now(), zone),
            clock=clock,
            slot=turn.slot if turn else None,
            deadline=None if limits.deadline_seconds is None else started + limits.deadline_seconds,
            stall_seconds=limits.stall_seconds,
            progress=progress or Silent(),
            former_runs=_former_runs(repository),
            keep_fds=(lock_fd,),
        )
        record = _Record(repository, context, job, started, turn, wants)
        if turn is not None and (why := _held(repository, clock)):
            record.ended("skipped", why)
            return Work("success", why)
        return _recorded(record, context, job, work, limits)


def attempts(ended: Mapping[str, Any]) -> dict[str, str]:
    """By a `run_ended` line, how it went with each component: one that a bad run never came to has failed with it."""
    tried: dict[str, str] = {}
    if ended["outcome"] not in {"success", "warning", "skipped"}:
        tried = dict.fromkeys(ended.get("wants", ()), "failed")
    return {**tried, **ended.get("components", {})}


def _recorded(
    record: _Record, context: RunContext, job: str, work: Callable[[RunContext], Work], limits: Limits
) -> Work:
    try:
        with _deadline(limits.deadline_seconds):
            result = work(context)
    except AquadError as error:
        record.ended("failed", str(error), retryable=error.retryable)
        raise
    except DeadlinePassed:
        context.cancel.set()
        record.ended("failed", f"not done after {limits.deadline_seconds:g} s, the deadline of {job}")
        raise
    except (KeyboardInterrupt, Terminated) as error:
        context.cancel.set()
        record.ended("aborted", f"ended by {'Ctrl-C' if isinstance(error, KeyboardInterrupt) else 'a signal'}")
        raise
    except BaseException as error:
        record.ended("failed", f"{type(error).__name__}: {error}")
        raise
    record.ended(result.outcome, result.reason, result.details, retryable=result.retryable)
    return result


def _held(repository: Repository, clock: Clock) -> str:
    """Why a run of the schedule must not begin: it may have waited for a restore that failed."""
    hold = History.of(repository.journal.entries()).holding(clock.now())
    return f"the schedule is held: {hold.reason}" if hold else ""


@contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """An alarm of the kernel: nothing that a run waits for can outlast it, and the time of a suspended machine is not counted."""
    if seconds is None or signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _former_runs(repository: Repository) -> tuple[str, ...]:
    ended = (entry for entry in repository.journal.entries() if entry["event"] == "run_ended")
    return tuple(entry["run"] for entry in ended if entry["outcome"] not in {"success", "warning"})[-FORMER_RUNS:]


class _Record:
    """The run's two lines in the journal."""

    def __init__(
        self,
        repository: Repository,
        run: RunContext,
        job: str,
        started: float,
        turn: Turn | None,
        wants: Sequence[str],
    ) -> None:
        self._journal = repository.journal
        self._run = run
        self._started = started
        self._about: dict[str, Any] = {"run": run.run_id, "job": job, "slot": None}
        if turn is not None:
            self._about |= {"slot": to_text(turn.slot), "attempt": turn.attempt}
        if wants:
            self._about["wants"] = list(wants)
        self._journal.append("run_started", **self._about)

    def ended(
        self, outcome: Outcome, reason: str, details: dict[str, Any] | None = None, *, retryable: bool = False
    ) -> None:
        self._journal.append(
            "run_ended",
            **self._about,
            outcome=outcome,
            reason=escaped(reason)[:REASON_CHARACTERS],
            milliseconds=int((self._run.clock.monotonic() - self._started) * 1000),
            **({"retryable": True} if retryable else {}),
            **(details or {}),
        )
