"""What is wrong now, whatever happened before: a component without a recent backup, a disk that fills up, a schedule that is held.

No I/O. Their beginning and their end become lines of the journal, `alert` and `alert_over`, so that everybody learns of both.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import to_text
from aquad.observe.reports import duration, human_bytes
from aquad.observe.space import Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aquad.observe.overview import ComponentView, Overview

RULES = ("stale", "disk", "schedule_held")
HELD = timedelta(days=1)
"""Whoever holds the schedule for longer may have forgotten it."""
Line = tuple[str, dict[str, Any]]
"""An event of the journal, and its fields."""


class Condition(NamedTuple):
    """`text`: what is wrong. `subject`: a component, or nothing."""

    rule: str
    subject: str
    level: str
    text: str


def conditions(seen: Overview) -> list[Condition]:
    return [*_stale(seen), *_disk(seen), *_held(seen)]


def changes(found: Sequence[Condition], known: Mapping[tuple[str, str], str], seen: Overview) -> list[Line]:
    """Lines that are still to be written. `known`: the levels of what the journal says is wrong, by rule and subject."""
    lines: list[Line] = []
    for one in found:
        level = known.get((one.rule, one.subject))
        if level is None or (level != "critical" and one.level == "critical"):
            more = {"full_at": to_text(seen.disk_full_at)} if one.rule == "disk" and seen.disk_full_at else {}
            fields = {"rule": one.rule, "level": one.level, "component": one.subject or None, "text": one.text, **more}
            lines.append(("alert", fields))
    wrong = {(one.rule, one.subject) for one in found}
    for rule, subject in known:
        if rule in RULES and (rule, subject) not in wrong:
            text = _over(rule, subject, seen)
            lines.append(("alert_over", {"rule": rule, "component": subject or None, "text": text}))
    return lines


def _stale(seen: Overview) -> Iterator[Condition]:
    """Beyond twice its objective it is critical. What was never backed up is as old as the repository."""
    for view in seen.components:
        age, objective = _age(view, seen), view.objective_seconds
        if objective is not None and age > objective + seen.grace_seconds:
            text = f"the newest good backup is {duration(age)} old" if view.backup else "there is no good backup of it"
            level = "critical" if age > 2 * objective else "warning"
            yield Condition("stale", view.name, level, f"{view.name}: {text}; allowed are {duration(objective)}")


def _age(view: ComponentView, seen: Overview) -> float:
    return (seen.now - (view.recovery_point_at or seen.created_at)).total_seconds()


def _disk(seen: Overview) -> Iterator[Condition]:
    if seen.disk_level is not Level.OK:
        level = "critical" if seen.disk_level is Level.CRITICAL else "warning"
        yield Condition("disk", "", level, f"the disk of {seen.repository}: {_space(seen)}")


def _space(seen: Overview) -> str:
    text = f"{human_bytes(seen.free_bytes)} of {human_bytes(seen.disk_bytes)} are free"
    return text + (f"; at this pace it is full on {seen.disk_full_at:%Y-%m-%d}" if seen.disk_full_at else "")


def _held(seen: Overview) -> Iterator[Condition]:
    if seen.held_since is not None and seen.now - seen.held_since > HELD:
        yield Condition(
            "schedule_held", "", "warning", f"the schedule is held since {to_text(seen.held_since)}: {seen.held}"
        )


def _over(rule: str, subject: str, seen: Overview) -> str:
    if rule == "disk":
        return _space(seen)
    if rule == "schedule_held":
        return "it is not held any more" if seen.held_since is None else "it was held anew"
    view = next((view for view in seen.components if view.name == subject), None)
    return f"{view.backup} is good" if view else "nobody wants backups of it any more"
