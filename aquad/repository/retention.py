"""Which backups go, and why each of the others stays. No I/O: it is told what there is, and decides.

Newer and older go by `sequence`, which no clock can turn back. What justifies that another backup goes is only ever a
backup that was verified, together with all that it needs. A low disk is not asked about: it loosens nothing.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.core.errors import RepositoryRefused
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

Kind = Literal["full", "incremental", "weekly"]
State = Literal["good", "damaged", "unverified"]

PATIENCE = 3
"""So many periods without a good backup, or without any sign of time passing, are no longer ordinary."""
FEWEST = 10
SHARE = 5
"""The cap of a run is a fifth of the kind, and `FEWEST` where a fifth is less."""
SLACK = timedelta(minutes=1)
"""A clock may be so far behind the newest backup: time servers set it back by as much in ordinary operation."""
FOR_EVER = datetime.max.replace(tzinfo=UTC)


class Candidate(NamedTuple):
    """One sealed backup, as retention sees it."""

    id: str
    kind: Kind
    sequence: int
    started_at: datetime
    components: frozenset[str]
    """Those that are good in it."""
    state: State
    """By its last verification."""
    kept_until: datetime | None
    """By the operator's `keep`; `FOR_EVER` without an end."""
    needs: frozenset[str]


class Policy(NamedTuple):
    age: Mapping[Kind, timedelta]
    minimum_verified: int
    period: timedelta
    """Between two fulls."""


class Cleaned(NamedTuple):
    """The last completed cleanup of a kind, by the order of the journal and not by the clock; and the age it went by."""

    at: datetime
    age: timedelta


class Decision(NamedTuple):
    id: str
    kind: Kind
    keep: bool
    reason: str


def decide(
    backups: Iterable[Candidate],
    policy: Policy,
    *,
    now: datetime,
    kinds: Collection[Kind],
    required: Collection[str],
    cleaned: Mapping[Kind, Cleaned],
    everything: bool = False,
    unreadable: Collection[str] = (),
    pinned: Collection[str] = (),
) -> list[Decision]:
    """One decision for each backup, newest first. Removed in this order, no kill leaves a backup without what it needs.

    `kinds`: those that may go in this run. `required`: the components that the settings name today. `cleaned`: no entry
    for a kind that was never cleaned. `everything`: without caps, and by a clock that is behind. `unreadable`: manifests
    that could not be read. `pinned`: what a restore uses right now. Raises RepositoryRefused where no answer is safe.
    """
    newest_first = sorted(backups, key=_order, reverse=True)
    good = _restorable(newest_first)
    _check_policy(policy, kinds)
    _check_catalog(unreadable)
    if not everything:
        _check_clock(newest_first, good, now)
    taken = _taken_at(newest_first, now)
    stays: dict[str, str] = {}
    for grounds in (
        _not_asked_about(newest_first, kinds, pinned, now),
        _not_due(newest_first, policy, taken, now),
        _floor(newest_first, good, policy.minimum_verified),
        _better_than_none(newest_first, good),
        _frozen(newest_first, good, required, PATIENCE * policy.period, now),
    ):
        for id_, reason in grounds:
            stays.setdefault(id_, reason)
    _add_needed(newest_first, stays)
    due = [backup for backup in newest_first if backup.id not in stays]
    capped = {} if everything else _capped(newest_first, due, policy, cleaned, taken, now)
    stays |= _beyond_cap(due, capped, Counter(backup.kind for backup in newest_first))
    return [
        Decision(b.id, b.kind, b.id in stays, stays.get(b.id) or _too_old(b, policy, taken, now)) for b in newest_first
    ]


def _order(backup: Candidate) -> tuple[int, datetime, str]:
    return backup.sequence, backup.started_at, backup.id


def _restorable(newest_first: Sequence[Candidate]) -> set[str]:
    """Those that count: good themselves, and everything that they need is there and good. What is needed is older."""
    good: set[str] = set()
    for backup in reversed(newest_first):
        if backup.state == "good" and backup.needs <= good:
            good.add(backup.id)
    return good


def _check_policy(policy: Policy, kinds: Collection[Kind]) -> None:
    wrong = [f"no age is set for {kind} backups" for kind in sorted(kinds) if kind not in policy.age]
    wrong += [f"the age for {kind} backups is {age}" for kind, age in policy.age.items() if age <= timedelta(0)]
    if policy.minimum_verified < 1:
        wrong.append(f"the number of good backups that always stay is {policy.minimum_verified}")
    if policy.period <= timedelta(0):
        wrong.append(f"the time between two full backups is {policy.period}")
    if wrong:
        raise RepositoryRefused(
            f"prune the repository: {'; '.join(wrong)}", "Correct [retention] in the settings; nothing was removed."
        )


def _check_catalog(unreadable: Collection[str]) -> None:
    """What a damaged manifest needs is not known, nor what it would count for: so nothing goes before it is dealt with."""
    if unreadable:
        names = ", ".join(escaped(name) for name in sorted(unreadable)[:5])
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise RepositoryRefused(
            f"prune the repository: the manifest of {names}{more} cannot be read",
            "`aquad verify all` says what is wrong with it; nothing was removed.",
        )


def _check_clock(newest_first: Sequence[Candidate], good: AbstractSet[str], now: datetime) -> None:
    """By the newest in sequence: one backup that was taken under a clock far ahead does not stop retention until then."""
    newest = next((backup for backup in newest_first if backup.id in good), None)
    if newest is not None and newest.started_at - now > SLACK:
        raise RepositoryRefused(
            f"prune the repository: the clock says {_date(now)}, but its newest good backup {newest.id} is "
            f"of {_date(newest.started_at)}",
            "Set the clock; if it is right, take a full backup or use `aquad prune --all`. Nothing was removed.",
        )


def _taken_at(newest_first: Sequence[Candidate], now: datetime) -> dict[str, datetime]:
    """When each was taken, at the earliest: never before one that is older in sequence, whatever its own clock said.

    So what was taken under a clock that had fallen back to 1970 is not 50 years old the day after.
    """
    taken: dict[str, datetime] = {}
    latest = datetime.min.replace(tzinfo=UTC)
    for backup in reversed(newest_first):
        if backup.started_at <= now:
            latest = max(latest, backup.started_at)
        taken[backup.id] = max(latest, backup.started_at)
    return taken


def _not_asked_about(
    newest_first: Sequence[Candidate], kinds: Collection[Kind], pinned: Collection[str], now: datetime
) -> Iterator[tuple[str, str]]:
    for backup in newest_first:
        if backup.kind not in kinds:
            yield backup.id, f"{backup.kind} backups are not looked at in this run"
        elif backup.id in pinned:
            yield backup.id, "a restore uses it now"
        elif backup.kept_until == FOR_EVER:
            yield backup.id, "`aquad keep` holds it for ever"
        elif backup.kept_until is not None and backup.kept_until > now:
            yield backup.id, f"`aquad keep` holds it until {_date(backup.kept_until)}"
        elif backup.started_at > now:
            yield backup.id, f"it is of {_date(backup.started_at)}, which the clock has not reached"


def _not_due(
    newest_first: Sequence[Candidate], policy: Policy, taken: Mapping[str, datetime], now: datetime
) -> Iterator[tuple[str, str]]:
    """Ages are differences: a date so far ahead as the settings allow cannot be written down."""
    for backup in newest_first:
        age = policy.age.get(backup.kind)
        if age is None or now - taken[backup.id] < age:
            yield backup.id, _age_and_limit(backup, policy, taken, now)


def _floor(newest_first: Sequence[Candidate], good: AbstractSet[str], minimum: int) -> Iterator[tuple[str, str]]:
    """Those of one kind do not count for another: dumps every 6 hours must not push out the fulls."""
    seen: set[str] = set()
    count: Counter[tuple[Kind, str]] = Counter()
    for backup in newest_first:
        if backup.id not in good:
            continue
        for component in sorted(backup.components):
            count[backup.kind, component] += 1
            if component not in seen:
                seen.add(component)
                yield backup.id, f"it is the newest good backup of {component}"
            elif count[backup.kind, component] <= minimum:
                yield backup.id, f"it is one of the {minimum} newest good {backup.kind} backups of {component}"


def _better_than_none(newest_first: Sequence[Candidate], good: AbstractSet[str]) -> Iterator[tuple[str, str]]:
    covered = {component for backup in newest_first if backup.id in good for component in backup.components}
    for backup in newest_first:
        for component in sorted(backup.components - covered):
            yield backup.id, f"there is no good backup of {component}, and one that may be damaged is better than none"


def _frozen(
    newest_first: Sequence[Candidate],
    good: AbstractSet[str],
    required: Collection[str],
    patience: timedelta,
    now: datetime,
) -> Iterator[tuple[str, str]]:
    """Also the guard against a clock that jumped ahead: no good backup is young then. One from the future proves nothing."""
    for component in sorted(required):
        holding = [backup for backup in newest_first if component in backup.components]
        dates = [b.started_at for b in holding if b.id in good and b.started_at - now <= SLACK]
        if not dates or now - max(dates) >= patience:
            since = f"since {_date(max(dates))}, {_span(now - max(dates))} ago" if dates else "up to now"
            for backup in holding:
                yield backup.id, f"there was no good backup of {component} {since}: what holds it stays until there is"


def _add_needed(newest_first: Sequence[Candidate], stays: dict[str, str]) -> None:
    there = {backup.id: backup for backup in newest_first}
    queue = [backup for backup in newest_first if backup.id in stays]
    for backup in queue:  # it grows on the way
        for need in sorted(backup.needs):
            if need in there and need not in stays:
                stays[need] = f"{backup.id} needs it"
                queue.append(there[need])


def _capped(
    newest_first: Sequence[Candidate],
    due: Sequence[Candidate],
    policy: Policy,
    cleaned: Mapping[Kind, Cleaned],
    taken: Mapping[str, datetime],
    now: datetime,
) -> dict[str, str]:
    """What did not fall due by nothing but time since the last cleanup of its kind, and why that is in doubt.

    A first cleanup is in doubt whole: under a daemon that runs from the start nothing is due in it, so what is due was
    taken by hand or under other rules, and nobody has yet seen what the settings do to it. Settings: the longer of the
    two ages has to have passed, or a change from 365 to 3 days would take a whole month of young backups for ordinary.
    """
    jumped = {kind for kind in cleaned if _jumped(newest_first, cleaned[kind].at, PATIENCE * policy.period, now)}
    capped = {}
    for backup in due:
        last = cleaned.get(backup.kind)
        if last is None:
            capped[backup.id] = "in the first cleanup"
        elif backup.kind in jumped:
            capped[backup.id] = "after a standstill or a jump of the clock"
        else:
            age = max(policy.age[backup.kind], last.age)
            if not last.at - taken[backup.id] < age <= now - taken[backup.id]:
                capped[backup.id] = "of those that did not just come of age"
    return capped


def _jumped(newest_first: Sequence[Candidate], cleaned_at: datetime, patience: timedelta, now: datetime) -> bool:
    """Whether time went on since the last cleanup without a trace, or backwards. Traces are backups of any kind."""
    traces = sorted([cleaned_at, now, *(b.started_at for b in newest_first if cleaned_at < b.started_at <= now)])
    return cleaned_at > now or any(later - earlier > patience for earlier, later in pairwise(traces))


def _beyond_cap(due: Sequence[Candidate], capped: Mapping[str, str], there: Mapping[Kind, int]) -> dict[str, str]:
    """Oldest first, and nothing before all that needs it has gone: else a chain that is longer than the cap stays for ever."""
    by_id = {backup.id: backup for backup in due}
    waits_for = Counter(need for backup in due for need in backup.needs)
    caps = {kind: max(FEWEST, count // SHARE) for kind, count in there.items()}
    used: Counter[Kind] = Counter()
    gone: set[str] = set()
    stays = {}
    free = [(_order(backup), backup) for backup in due if not waits_for[backup.id]]
    heapify(free)
    while free:
        _, backup = heappop(free)
        if backup.id in capped and used[backup.kind] == caps[backup.kind]:
            stays[backup.id] = (
                f"it is due, but {capped[backup.id]} only {caps[backup.kind]} {backup.kind} backups go in one run; "
                "`aquad prune --all` removes all"
            )
            continue
        used[backup.kind] += backup.id in capped
        gone.add(backup.id)
        for need in backup.needs:
            waits_for[need] -= 1
            if not waits_for[need] and need in by_id:
                heappush(free, (_order(by_id[need]), by_id[need]))
    for backup in due:
        if backup.id not in gone:
            stays |= dict.fromkeys(backup.needs & by_id.keys() - stays.keys(), f"{backup.id} needs it")
    return stays


def _too_old(backup: Candidate, policy: Policy, taken: Mapping[str, datetime], now: datetime) -> str:
    state = "" if backup.state == "good" else f", and {backup.state}"
    return _age_and_limit(backup, policy, taken, now) + state


def _age_and_limit(backup: Candidate, policy: Policy, taken: Mapping[str, datetime], now: datetime) -> str:
    age = policy.age.get(backup.kind)
    limit = f"; {backup.kind} backups stay {_span(age)}" if age else ""
    return f"it is {_span(now - taken[backup.id])} old{limit}"


def _date(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if abs(seconds) >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
