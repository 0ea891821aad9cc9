"""Bringing back: find the bytes, prove them, plan, ask, do, and say what was compared.

The lock is held from the plan to the comparison, so that no run backs up a half-restored stack.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import AquadError, RestoreFailed
from aquad.core.escape import escaped
from aquad.jobs.run import Work
from aquad.jobs.shelf import Shelf
from aquad.repository.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aquad.repository.repository import Repository
    from aquad.stream.artifact import Facts, Reader, RunContext, Source, Step


EVERYTHING = "restore all"
"""The job's name in the journal."""


class Order(NamedTuple):
    """One component to be brought back, by its source, to a target of that source's kind."""

    component: str
    source: Source[Any]
    reader: Reader
    target: object


class Plan(NamedTuple):
    component: str
    origin: str
    steps: Sequence[Step]
    last_milliseconds: int | None
    """What its last restore took; None when it was never restored."""

    @property
    def overwrites(self) -> list[str]:
        return [step.overwrites for step in self.steps if step.overwrites]


def open_backup(
    repository: Repository, component: str, text: str, *, trusted: bool, advance: Callable[[int], None] = lambda _: None
) -> Reader:
    """Of a shelf that is asked once."""
    return Shelf(repository, trusted=trusted).open(component, text, advance)


def plan(repository: Repository, orders: Sequence[Order]) -> list[Plan]:
    """Look, and touch nothing. Raises RestoreFailed when a target's disk is too small."""
    took = {e["component"]: e["milliseconds"] for e in repository.journal.entries() if e["event"] == "restored"}
    plans = [
        Plan(
            order.component,
            order.reader.origin,
            order.source.plan_restore(order.reader, order.target),
            took.get(order.component),
        )
        for order in orders
    ]
    _check_space(plans)
    return plans


def restore(
    repository: Repository, orders: Sequence[Order], confirm: Callable[[Sequence[Plan]], None], run: RunContext
) -> Work:
    """`confirm` is shown the plan and raises ConfirmationNeeded unless somebody agrees.

    The components come one after the other; the first that fails ends it, the error says which were done, and `unfinished`
    what is left. One that overwrites holds the schedule until it has come to its end: nothing half-restored is backed up.
    """
    plans = plan(repository, orders)
    confirm(plans)
    half = _half_restored(repository) | {one.component for one in plans if one.overwrites}
    if half:
        _hold(repository, half, run)
    repository.journal.append(
        "restore_started", run=run.run_id, orders=[[order.component, order.reader.origin] for order in orders]
    )
    done: dict[str, Facts] = {}
    for order in orders:
        run.progress.stage(f"restoring {order.component}", None)
        started = run.clock.monotonic()
        try:
            facts = order.source.restore(order.reader, order.target, run)
        except AquadError as error:
            if len(orders) > 1:
                error.message += f" (restored before that: {', '.join(done) or 'nothing'})"
                error.hint = f"{error.hint} When that is mended, go on with: aquad restore resume".strip()
            raise
        milliseconds = int((run.clock.monotonic() - started) * 1000)
        repository.journal.append(
            "restored",
            run=run.run_id,
            component=order.component,
            origin=escaped(order.reader.origin),
            milliseconds=milliseconds,
            kept=facts.get("kept") or [],
        )
        done[order.component] = facts
    if half and half <= done.keys():
        repository.journal.append("released", cause="restore")
    elif half & done.keys():
        _hold(repository, half - done.keys(), run)
    skipped = [f"{component}: {line}" for component, facts in done.items() for line in facts.get("skipped", [])]
    return Work("warning" if skipped else "success", "; ".join(skipped), {"restored": sorted(done), "facts": done})


def _hold(repository: Repository, components: set[str], run: RunContext) -> None:
    names = ", ".join(sorted(components))
    reason = f"the restore of {names} did not come to its end: try it again, or say `aquad release`"
    repository.journal.append(
        "held", until=None, reason=reason, cause="restore", run=run.run_id, components=sorted(components)
    )


def _half_restored(repository: Repository) -> set[str]:
    """What earlier restores left half-way, and nobody has brought back since."""
    hold = History.of(repository.journal.entries()).holds.get("restore")
    return set(hold.components) if hold else set()


class Unfinished(NamedTuple):
    """A restore of everything that did not come to its end. `left`: component and origin, in order."""

    run: str
    at: str
    done: Sequence[str]
    left: Sequence[tuple[str, str]]


def unfinished(entries: Iterable[Mapping[str, Any]]) -> Unfinished | None:
    """What the newest restore of everything left undone, or None. One that is still under way is unfinished too."""
    found: Unfinished | None = None
    everything = ""
    for entry in entries:
        match entry["event"]:
            case "run_started" if entry["job"] == EVERYTHING:
                everything = entry["run"]
            case "restore_started" if entry["run"] == everything:
                left = [(component, origin) for component, origin in entry["orders"]]
                found = Unfinished(everything, entry["at"], [], left)
            case "restored" if found and entry["run"] == found.run:
                done = [*found.done, entry["component"]]
                found = found._replace(done=done, left=[one for one in found.left if one[0] not in done])
    return found if found and found.left else None


def _check_space(plans: Sequence[Plan]) -> None:
    needed: dict[int, tuple[int, str]] = {}
    for step in (step for one in plans for step in one.steps if step.needs_bytes and step.on_path):
        where = Path(step.on_path)
        while not where.exists():
            where = where.parent
        device = where.stat().st_dev
        needed[device] = (needed.get(device, (0, ""))[0] + step.needs_bytes, str(where))
    for count, path in needed.values():
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        if free < count:
            raise RestoreFailed(
                f"restore to {path}: {count} bytes are needed, {free} are free",
                "Free space there, or restore elsewhere with --to. Nothing was changed.",
            )
