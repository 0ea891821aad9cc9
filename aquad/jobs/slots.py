"""Which slots of the schedule are due, and how each one ends. No I/O: it reads the journal's lines, and decides.

A slot is a job and the moment at which its rule fires. It ends in exactly one `slot_ended` line. All that the daemon does
follows from the journal and the clock, so that a daemon that was killed anywhere goes on where the last one was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from aquad.jobs.schedule import Rule

ORDER = ("full", "weekly", "postgres", "cleanup", "verify")
"""Of slots of the same moment."""
COUNTED = 100_000
"""More missed slots are not counted one by one."""
DONE = {"success", "warning"}
NOT_RUN = {"skipped", "missed"}


class Slot(NamedTuple):
    job: str
    at: datetime


class Attempt(NamedTuple):
    run: str
    number: int
    outcome: str | None
    """None: no `run_ended` yet."""
    ended_at: datetime
    retryable: bool
    reason: str


class Policy(NamedTuple):
    """`catch_up`: a slot missed while nobody was there is made up if it is younger."""

    catch_up: timedelta
    retries: int
    retry_delay: timedelta


class Ending(NamedTuple):
    """`first`, `number`: a line may stand for all slots from `first` to its own, that many."""

    slot: Slot
    outcome: str
    reason: str
    first: datetime | None = None
    number: int = 1


class Turn(NamedTuple):
    """A slot that is to be run, for the `attempt`th time, not before `not_before`."""

    slot: Slot
    attempt: int
    not_before: datetime


class Plan(NamedTuple):
    endings: Sequence[Ending]
    turns: Sequence[Turn]
    """In the order in which they are to be run."""


@dataclass
class Ledger:
    """What the journal says of slots."""

    attempts: dict[Slot, list[Attempt]] = field(default_factory=dict)
    ended: dict[str, set[datetime]] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    """When the rule of a job was changed last: slots before that are none of it."""
    begun_at: datetime | None = None
    """When a daemon was here for the first time."""
    running: set[str] = field(default_factory=set)
    """Runs, of slots and by hand, that have no end yet."""
    _slots: dict[str, Slot] = field(default_factory=dict)
    _not_run: set[Slot] = field(default_factory=set)
    _ahead: set[Slot] = field(default_factory=set)
    """Run and ended by a clock that was ahead: they are not run again when their time comes."""

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> Ledger:
        ledger = cls()
        for entry in entries:
            ledger.add(entry)
        return ledger

    def add(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "run_started":
                self.running.add(entry["run"])
                self._put(entry, None)
            case "run_ended":
                self.running.discard(entry["run"])
                self._put(entry, entry["outcome"])
            case "daemon_stopped" if entry.get("run") in self._slots:
                slot = self._slots[entry["run"]]
                self.attempts[slot] = [
                    one._replace(retryable=True) if one.run == entry["run"] else one for one in self.attempts[slot]
                ]
            case "slot_ended":
                slot = Slot(entry["job"], from_text(entry["slot"]))
                self._end(slot, entry["outcome"], from_text(entry["at"]))
            case "settings":
                self.begun_at = self.begun_at or from_text(entry["at"])
                for key in entry["changed"]:
                    section, _, job = key.partition(".")
                    if section == "schedule":
                        self.since[job] = from_text(entry["at"])
                    elif key == "time_zone":
                        self.since |= dict.fromkeys(ORDER, from_text(entry["at"]))
            case "clock_went_back":
                self._went_back(from_text(entry["to"]))

    def add_backup(self, job: str, at: datetime) -> None:
        """A manifest names its slot: where the journal was lost, that is all there is to know of it."""
        if Slot(job, at) not in self.attempts:
            self.ended.setdefault(job, set()).add(at)

    def is_open(self, slot: Slot) -> bool:
        return slot.at not in self.ended.get(slot.job, ()) and slot not in self._ahead

    def newest_ended(self, job: str, now: datetime) -> datetime | None:
        """Those in the future, of a clock that was ahead once, say nothing."""
        return max((at for at in self.ended.get(job, ()) if at <= now), default=None)

    def tried(self) -> set[Slot]:
        return {*self.attempts, *self._ahead}

    def unfinished(self, job: str) -> list[Slot]:
        """Open slots that were tried, the oldest first."""
        return sorted(slot for slot in self.attempts if slot.job == job and self.is_open(slot))

    def _end(self, slot: Slot, outcome: str, at: datetime) -> None:
        if slot.at > at:  # it was begun before the clock went back
            self._ahead.add(slot)
            return
        self.ended.setdefault(slot.job, set()).add(slot.at)
        (self._not_run.add if outcome in NOT_RUN else self._not_run.discard)(slot)

    def _went_back(self, to: datetime) -> None:
        """All that was due until `to` is accounted for where endings lie beyond it; what was only passed over beyond it is
        judged anew when its time comes.
        """
        for job, ended in self.ended.items():
            beyond = {at for at in ended if at > to}
            if beyond:
                self._ahead |= {Slot(job, at) for at in beyond} - self._not_run
                self.ended[job] = ended - beyond | {to}
        self.since = {job: min(at, to) for job, at in self.since.items()}
        self.begun_at = min(self.begun_at, to) if self.begun_at else None

    def _put(self, entry: Mapping[str, Any], outcome: str | None) -> None:
        if not entry.get("slot"):
            return
        slot = Slot(entry["job"], from_text(entry["slot"]))
        self._slots[entry["run"]] = slot
        attempt = Attempt(
            run=entry["run"],
            number=entry.get("attempt", 1),
            outcome=outcome,
            ended_at=from_text(entry["at"]),
            retryable=outcome == "interrupted" or entry.get("retryable", False),
            reason=entry.get("reason", ""),
        )
        others = [one for one in self.attempts.get(slot, []) if one.run != attempt.run]
        self.attempts[slot] = [*others, attempt]


def plan(
    rules: Mapping[str, Rule],
    ledger: Ledger,
    policy: Policy,
    *,
    now: datetime,
    started_at: datetime,
    first: datetime | None = None,
    noticed: Collection[Slot] = (),
    under_way: Slot | None = None,
    hold: str = "",
) -> Plan:
    """Decide about every slot up to `now`.

    `started_at`: of this daemon. `first`: the slot of the very first full backup, where there is none yet: the moment the
    repository was made. `noticed`: slots that were seen when they were due: they wait for their turn, however long that
    takes. `under_way`: what a process was started for, whether it has begun or waits for the lock. `hold`: why the schedule is
    held; empty when it is not.
    """
    endings: list[Ending] = []
    turns: list[Turn] = []
    # Before the first daemon there was nobody, and there is nothing to account for.
    first = max(first, ledger.begun_at or first) if first else None
    for job in sorted({slot.job for slot in ledger.attempts} - rules.keys()):
        endings += _given_up(ledger, ledger.unfinished(job))
    for job, rule in rules.items():
        known = ledger.newest_ended(job, now)
        before = _begin(known or ledger.begun_at, ledger.since.get(job), now, started_at)
        newest = rule.latest(before, now)
        due = Slot(job, newest) if newest else None
        if due is not None:
            tried_too = ledger.tried() | ({under_way} if under_way else set())
            endings += _passed_over(rule, tried_too, due, before, noticed, hold)
        elif job == "full" and first and known is None:
            due = Slot(job, first)
        tried = ledger.unfinished(job)
        # Of those that were tried the newest goes on, also beside an older one that a clock which went back brings.
        going_on = tried[-1:] if due is None or tried[-1:] > [due] else []
        for slot in sorted(filter(ledger.is_open, {*going_on, *([due] if due else [])} - {under_way})):
            decision = _decide(slot, ledger, policy, now, fresh=slot in noticed or slot.at == first, hold=hold)
            if isinstance(decision, Ending):
                endings.append(decision)
            elif decision is not None:
                turns.append(decision)
        endings += _given_up(ledger, [slot for slot in tried if slot not in {due, under_way, *going_on}])
    return Plan(endings, sorted(turns, key=lambda turn: (turn.slot.at, ORDER.index(turn.slot.job))))


def _begin(known: datetime | None, since: datetime | None, now: datetime, started_at: datetime) -> datetime:
    """From when on slots are to be accounted for. What lies in the future was written by a clock that was ahead."""
    return max((at for at in (known, since) if at is not None and at <= now), default=min(started_at, now))


def _given_up(ledger: Ledger, slots: Iterable[Slot]) -> Iterator[Ending]:
    """Slots that were tried, and are no longer tried again, because the next one is due: they end as they are."""
    for slot in slots:
        last = ledger.attempts[slot][-1]
        if last.outcome is not None:
            yield Ending(slot, last.outcome, last.reason)


def _passed_over(
    rule: Rule, all_tried: Collection[Slot], due: Slot, before: datetime, noticed: Collection[Slot], hold: str
) -> Iterator[Ending]:
    """Slots before the one that is due now: nobody was there, or their turn did not come. Those that were tried part them."""
    tried = sorted(at for job, at in all_tried if job == due.job and before < at < due.at)
    for begin, end in pairwise([before, *tried, due.at]):
        newest = rule.latest(begin, end - timedelta(microseconds=1))
        if newest is None:
            continue
        slot, number, oldest = Slot(due.job, newest), rule.count(begin, newest, COUNTED), rule.after(begin)
        if hold:
            yield Ending(slot, "skipped", f"the schedule is held: {hold}", oldest, number)
        elif slot in noticed:
            yield Ending(slot, "skipped", "its turn had not come when the next one was due", oldest, number)
        else:
            yield Ending(slot, "missed", "no daemon was there to run it", oldest, number)


def _decide(
    slot: Slot, ledger: Ledger, policy: Policy, now: datetime, *, fresh: bool, hold: str
) -> Ending | Turn | None:
    attempts = ledger.attempts.get(slot)
    if not attempts:
        if hold:
            return Ending(slot, "skipped", f"the schedule is held: {hold}")
        if fresh or now - slot.at <= policy.catch_up:
            return Turn(slot, 1, min(slot.at, now))
        return Ending(slot, "missed", "no daemon was there to run it, and it is too old to be made up")
    last = attempts[-1]
    if last.outcome is None:
        return None
    if last.outcome not in DONE and last.retryable and last.number <= policy.retries and not hold:
        # An end in the future is that of a clock that was ahead, and nothing to wait for.
        not_before = last.ended_at + policy.retry_delay if last.ended_at <= now else now
        return Turn(slot, last.number + 1, not_before)
    return Ending(slot, last.outcome, last.reason)
