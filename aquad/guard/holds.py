"""What stands still because somebody asked, and on what it hangs: when that is over, it goes on again, whatever died.

A lease is a connection that stays open. It is over when the connection ends, or so many seconds after the first container
was held by it. What is held without a lease hangs on one of its own, that only time ends. Entries of an earlier guard hang on
nothing, and go on at once.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aquad.core.errors import AquadError, Unreachable
from aquad.guard.engine import STOP_SECONDS, Answer
from aquad.guard.ledger import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from aquad.guard.engine import Engine
    from aquad.guard.ledger import Ledger
    from aquad.observe.logs import Log

LONGEST_RETRY_SECONDS = 5.0
SETTLE_SECONDS = 5.0
"""So long a container may take to show that it goes on; then the watch tries again."""
STOP_LEASE_SECONDS = 600.0


class Refused(AquadError):
    """The Engine was not asked."""


@dataclass(eq=False)
class Lease:
    seconds: float
    on_end: Callable[[], None] = lambda: None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    until: float | None = None
    """By the monotonic clock; None as long as nothing is held."""
    is_over: bool = False


class Holds:
    """Used from several threads; `watch` runs in one of its own."""

    def __init__(self, engine: Engine, ledger: Ledger, log: Log, *, max_pause_seconds: float) -> None:
        self._engine, self._ledger, self._log = engine, ledger, log
        self._max_pause_seconds = max_pause_seconds
        self._changed = threading.Condition()
        self._leases: dict[str, Lease] = {}
        self._busy: set[str] = set()
        self._retry: dict[str, tuple[float, float]] = {}
        """By container: when it is tried again, and how long was waited for that."""
        self._is_ending = False
        entries, complaint = ledger.read()
        if complaint:
            log.error("ledger lost: whoever is paused stays so until somebody looks", complaint=complaint)
        self._held = {entry.container: entry for entry in entries}

    def lease(self, seconds: float, on_end: Callable[[], None]) -> Lease:
        lease = Lease(min(seconds, STOP_LEASE_SECONDS), on_end)
        with self._changed:
            self._leases[lease.id] = lease
        return lease

    def end(self, lease: Lease) -> None:
        """May be called twice."""
        with self._changed:
            lease.is_over = True
            self._leases.pop(lease.id, None)
            self._changed.notify_all()

    def end_all(self, seconds: float) -> bool:
        """Let everything go on; whether it did. What did not is in the ledger, for the next guard."""
        until = time.monotonic() + seconds
        with self._changed:
            self._is_ending = True
            self._leases.clear()
            self._changed.notify_all()
            while self._held and time.monotonic() < until:
                self._changed.wait(0.1)
            return not self._held

    def hold(self, wanted: Entry, query: Mapping[str, str]) -> Answer:
        """`wanted`: without its `started_at`. Raises Refused, Unreachable, and OSError when the ledger cannot be written."""
        with self._alone(wanted.container):
            found = self._engine.inspect(wanted.container)
            state = found["State"] if found else {}
            if not state.get("Running") or state.get("Paused"):
                raise Refused(f"{wanted.verb} {wanted.service}: it is {state.get('Status', 'gone')}")
            entry = wanted._replace(started_at=state["StartedAt"])
            self._enter(entry)
            seconds = self._max_pause_seconds if entry.verb == "pause" else STOP_SECONDS
            answer = self._engine.ask("POST", f"/containers/{entry.container}/{entry.verb}", query, seconds=seconds)
            if not answer.is_good and self._goes_on(entry):
                self._leave(entry)
            return answer

    def release(self, verb: Literal["unpause", "start"], container: str) -> Answer:
        """Good only where it runs at the end. Raises Refused, Unreachable."""
        with self._alone(container):
            answer = self._engine.ask("POST", f"/containers/{container}/{verb}")
            goes_on = self._settled(container, verb)
            if goes_on and container in self._held:
                self._leave(self._held[container])
            return Answer(204, "", b"") if goes_on else answer

    def watch(self) -> None:
        """Let go on what hangs on nothing any more. Ends with the process."""
        while True:
            with self._changed:
                due = self._due()
                if not due:
                    self._changed.wait(self._seconds_to_the_next())
                    continue
            for entry in due:
                self._undo(entry)

    def _due(self) -> list[Entry]:
        now, due = time.monotonic(), []
        for entry in self._held.values():
            lease = self._leases.get(entry.lease)
            if lease is not None and lease.until is not None and lease.until <= now and not lease.is_over:
                self._log.error("held for too long: it goes on", service=entry.service, seconds=lease.seconds)
                lease.is_over = True
                lease.on_end()
            if (lease is None or lease.is_over) and self._retry.get(entry.container, (0, 0))[0] <= now:
                due.append(entry)
        return [entry for entry in due if entry.container not in self._busy]

    def _seconds_to_the_next(self) -> float | None:
        moments = [lease.until for lease in self._leases.values() if lease.until is not None and not lease.is_over]
        moments += [at for at, _ in self._retry.values()]
        return max(0.01, min(moments) - time.monotonic()) if moments else None

    def _undo(self, entry: Entry) -> None:
        try:
            with self._alone(entry.container):
                if self._goes_on(entry) or self._told_to_go_on(entry):
                    self._leave(entry)
                    self._log.warning("let go on", service=entry.service, container=entry.container[:12])
                    return
        except Refused:  # somebody else moves it just now
            pass
        except (Unreachable, OSError) as error:
            self._log.error("cannot let go on yet", service=entry.service, error=str(error))
        with self._changed:
            waited = min(LONGEST_RETRY_SECONDS, 2 * self._retry.get(entry.container, (0, 0.05))[1])
            self._retry[entry.container] = time.monotonic() + waited, waited

    def _told_to_go_on(self, entry: Entry) -> bool:
        verb: Literal["unpause", "start"] = "unpause" if entry.verb == "pause" else "start"
        self._engine.ask("POST", f"/containers/{entry.container}/{verb}")
        return self._settled(entry.container, verb)

    def _settled(self, container: str, verb: str) -> bool:
        """Whether two looks in a row say that it runs. Engine 20.10 now and then answers "not paused" to an unpause, says
        "running" for a moment, and leaves the container frozen: then it is told once more.
        """
        until, looks = time.monotonic() + SETTLE_SECONDS, 0
        while time.monotonic() < until:
            found = self._engine.inspect(container)
            if found is None:
                return False
            if found["State"]["Running"] and not found["State"]["Paused"]:
                looks += 1
                if looks == 2:
                    return True
            elif verb == "unpause" and not found["State"]["Running"]:
                return False
            else:
                looks = 0
                self._engine.ask("POST", f"/containers/{container}/{verb}")
            time.sleep(0.02)
        return False

    def _goes_on(self, entry: Entry) -> bool:
        """Whether nothing is left to be undone: it is gone, was started anew, or runs."""
        found = self._engine.inspect(entry.container)
        if found is None or found["State"]["StartedAt"] != entry.started_at:
            return True
        state = found["State"]
        if entry.verb == "pause":
            return not state["Paused"] and (not state["Running"] or self._settled(entry.container, "unpause"))
        return bool(state["Running"])

    def _enter(self, entry: Entry) -> None:
        with self._changed:
            lease = self._leases.get(entry.lease) if entry.lease else Lease(self._max_pause_seconds)
            if lease is None or lease.is_over or self._is_ending:
                raise Refused(f"{entry.verb} {entry.service}: the lease is over")
            longest = self._max_pause_seconds if entry.verb == "pause" else STOP_LEASE_SECONDS
            entry = entry._replace(lease=lease.id)
            self._ledger.write([*self._held.values(), entry])
            self._held[entry.container] = entry
            self._leases[lease.id] = lease
            until = time.monotonic() + min(lease.seconds, longest)
            lease.until = until if lease.until is None else min(lease.until, until)
            self._changed.notify_all()

    def _leave(self, entry: Entry) -> None:
        with self._changed:
            self._held.pop(entry.container, None)
            self._retry.pop(entry.container, None)
            self._ledger.write(self._held.values())
            lease = self._leases.get(entry.lease)
            if lease and (lease.is_over or not any(one.lease == lease.id for one in self._held.values())):
                lease.until = None
            self._changed.notify_all()

    @contextlib.contextmanager
    def _alone(self, container: str) -> Iterator[None]:
        """Raises Refused while another request moves the same container."""
        with self._changed:
            if container in self._busy:
                raise Refused(f"container {container[:12]} is being moved by another request")
            self._busy.add(container)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(container)
                self._changed.notify_all()
