"""What to do with what dead runs left. No I/O: it is told what is there, and decides.

Only what `names.json` names is moved, and never a path that a sealed manifest names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Left(NamedTuple):
    """A draft whose run is dead: the top-level names its `names.json` promised (none if it got not so far)."""

    id: str
    promised: Sequence[str]


class Rescue(NamedTuple):
    """`move`: names below the repository that go to `trash/<id>/`; the draft itself follows them, or is dropped."""

    id: str
    sealed: bool
    move: Sequence[str]
    reason: str


def decide(left: Iterable[Left], sealed: Iterable[str], named: Iterable[str], present: Iterable[str]) -> list[Rescue]:
    """`sealed`: ids with a manifest (also a damaged one). `named`: top-level names that manifests own. `present`: those on disk."""
    owned, there, complete = set(named), set(present), set(sealed)
    decisions = []
    for draft in left:
        if draft.id in complete:
            decisions.append(Rescue(draft.id, True, (), "its backup is sealed; only the empty draft was left"))
        else:
            move = [name for name in draft.promised if name in there and name not in owned]
            decisions.append(Rescue(draft.id, False, move, "its run ended before the backup was sealed"))
    return decisions


def interrupted(entries: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The `run_started` lines that no `run_ended` answers."""
    started: dict[object, Mapping[str, object]] = {}
    for entry in entries:
        if entry["event"] == "run_started":
            started[entry["run"]] = entry
        elif entry["event"] == "run_ended":
            started.pop(entry["run"], None)
    return list(started.values())
