"""One run: lock, recovery, journal, deadline, outcome. The work itself knows none of these words.

The outcome is built here and nowhere else, from what the work returned or raised. This is the one place below the doors
that catches everything.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aquad.core.errors import AquadError, Terminated
from aquad.core.escape import escaped
from aquad.repository import layout
from aquad.stream.artifact import Progress, RunContext, Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from aquad.core.clock import Clock
    from aquad.repository.repository import Repository

Outcome = Literal["success", "warning", "failed", "aborted"]
REASON_CHARACTERS = 2000
FORMER_RUNS = 50


class Work(NamedTuple):
    """What a piece of work returns: an outcome it chose on purpose, and why."""

    outcome: Literal["success", "warning", "failed"]
    reason: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    failure_code: int = 1
    """The exit code of a failure: that of its one cause, where there is but one and nothing came of the run."""

    @property
    def exit_code(self) -> int:
        return {"success": 0, "warning": 3, "failed": self.failure_code}[self.outcome]


class Limits(NamedTuple):
    deadline_seconds: float | None
    stall_seconds: float
    wait_seconds: float = 0.0


def run_job(
    repository: Repository,
    job: str,
    work: Callable[[RunContext], Work],
    *,
    clock: Clock,
    zone: tzinfo,
    limits: Limits,
    progress: Progress | None = None,
) -> Work:
    """Run `work` under the lock and record exactly one outcome. What the work raised is raised again, after that.

    Raises LockHeld before anything is recorded: a run that never began has no outcome.
    """
    run_id = secrets.token_hex(4)
    with repository.writing(run_id=run_id, command=job, wait_seconds=limits.wait_seconds) as lock_fd:
        started = clock.monotonic()
        context = RunContext(
            run_id=run_id,
            timestamp=layout.timestamp(clock.now(), zone),
            clock=clock,
            deadline=None if limits.deadline_seconds is None else started + limits.deadline_seconds,
            stall_seconds=limits.stall_seconds,
            progress=progress or Silent(),
            former_runs=_former_runs(repository),
            keep_fds=(lock_fd,),
        )
        record = _Record(repository, context, job, started)
        try:
            result = work(context)
        except AquadError as error:
            record.ended("failed", str(error))
            raise
        except (KeyboardInterrupt, Terminated) as error:
            context.cancel.set()
            record.ended("aborted", f"ended by {'Ctrl-C' if isinstance(error, KeyboardInterrupt) else 'a signal'}")
            raise
        except BaseException as error:
            record.ended("failed", f"{type(error).__name__}: {error}")
            raise
        record.ended(result.outcome, result.reason, result.details)
        return result


def _former_runs(repository: Repository) -> tuple[str, ...]:
    ended = (entry for entry in repository.journal.entries() if entry["event"] == "run_ended")
    return tuple(entry["run"] for entry in ended if entry["outcome"] not in {"success", "warning"})[-FORMER_RUNS:]


class _Record:
    """The run's two lines in the journal."""

    def __init__(self, repository: Repository, run: RunContext, job: str, started: float) -> None:
        self._journal = repository.journal
        self._run = run
        self._job = job
        self._started = started
        self._journal.append("run_started", run=run.run_id, job=job, slot=None)

    def ended(self, outcome: Outcome, reason: str, details: dict[str, Any] | None = None) -> None:
        self._journal.append(
            "run_ended",
            run=self._run.run_id,
            job=self._job,
            slot=None,
            outcome=outcome,
            reason=escaped(reason)[:REASON_CHARACTERS],
            milliseconds=int((self._run.clock.monotonic() - self._started) * 1000),
            **(details or {}),
        )
