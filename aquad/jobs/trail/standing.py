"""Which lines of the journal still stand: what has to be carried when the file that holds them is removed. No I/O.

The law: whoever reads the lines that stand, and after them the lines of the files that are left, learns the same as from
the whole journal. Carried lines keep their order, so it is enough to keep, of each fact, the line that decides it now, and
with a line that opens something the one that closes it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import TYPE_CHECKING, Any

from aquad.jobs.discard import kept_databases
from aquad.jobs.restore import EVERYTHING, unfinished
from aquad.jobs.run import FORMER_RUNS, attempts
from aquad.jobs.slots import NOT_RUN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from aquad.storage.chain import Entry


Keys = Callable[["Entry", Collection[str]], list[Hashable]]
"""What a line says something of, where its backup is among those that exist."""
ENDED = 10_000
"""So many ends of slots are remembered before those that nobody needs are forgotten."""


def _of_backup(what: str, *names: str, named: str = "backup") -> Keys:
    def keys(entry: Entry, backups: Collection[str]) -> list[Hashable]:
        there = entry[named] in backups
        return [(what, entry[named], *(entry[name] for name in names))] if there else []

    return keys


def _run_ended(entry: Entry, _: Collection[str]) -> list[Hashable]:
    components = attempts(entry)
    return [
        ("job", entry.get("job")),
        *(("attempt", name) for name in components),
        *(("good", name) for name, outcome in components.items() if outcome != "failed"),
    ]


def _nothing(_: Entry, __: Collection[str]) -> list[Hashable]:
    return []


def _only(*key: Hashable) -> Keys:
    return lambda _, __: [key]


def _by(what: str, *names: str) -> Keys:
    return lambda entry, _: [(what, *(entry.get(name) for name in names))]


DECIDED: Mapping[str, Keys] = {
    "repository_created": _only("created"),  # when all this began
    "encryption_changed": _only("encryption"),  # how new backups are encrypted, and since when
    "key_confirmed": lambda e, _: [("key", json.dumps(e["encryption"], sort_keys=True))],  # each key: one may come back
    "settings": lambda e, _: [
        ("setting", key) for key in ("", *e.get("changed", ()))
    ],  # since when each rule is as it is
    "run_started": _nothing,  # only without an end, or for its slot or restore: see below
    "run_ended": _run_ended,  # the last of each job; the last and the last good attempt of each component
    "slot_ended": _by("slot", "job"),  # the last of each job; below, the highest too
    "daemon_started": _nothing,  # a thing of the past
    "daemon_stopped": _nothing,  # only for a slot that is open: see below
    "backup_taken": _nothing,  # the highest sequence stands by itself; names are in the past
    "backup_sealed": _of_backup("sealed"),  # the only witness of a manifest's digest beside the manifest
    "verified": _of_backup(
        "verified", "level", "outcome"
    ),  # the last of each level and outcome: what failed at `content` is not mended by `bytes`
    "kept": _of_backup("kept"),  # the last word about a backup that exists
    "unkept": _of_backup("kept"),  # the same fact
    "pruned": _of_backup("trash"),  # since when and why a backup is in the trash
    "draft_to_trash": _of_backup("trash", named="draft"),  # the same of what a dead run left
    "trash_restored": _of_backup("trash"),  # the same fact
    "trash_emptied": _nothing,  # what it tells of is gone
    "cleaned": lambda e, _: [("cleaned", kind) for kind in e["ages"]],  # what falls due after it by time alone may go
    "report_written": _nothing,  # until it is removed: see below
    "reports_removed": _nothing,  # what it tells of is gone
    "accepted": _by("accepted", "component"),  # the new normal, until it is accepted anew
    "held": _by("held", "cause"),  # the schedule stays held; `released` is kept too, so that its order decides
    "released": _by("released", "cause"),  # the same fact
    "restore_started": _nothing,  # only of a restore of everything that is unfinished: see below
    "restored": _by("restored", "component"),  # how long it took; below, what it kept aside
    "alert": _by(
        "alert", "rule", "component", "job", "backup"
    ),  # whether it is on: it must neither be forgotten nor raised again
    "alert_over": _by("alert", "rule", "component", "job", "backup"),  # the same fact
    "notified": lambda e, backups: [  # whether a channel knows of it: it must neither hear of it again nor miss its end
        ("notified", e["channel"], one["rule"], one["subject"])
        for one in e["notices"]
        if one["rule"] != "damaged" or one["subject"] in backups
    ],
    "clock_went_back": _nothing,  # after a line of the clock that was ahead: see below
    "journal_rotated": _nothing,  # about files of the journal that are gone
    "journal_torn": _nothing,  # the same
    "journal_shortened": _nothing,  # `audit.anchor` says it
}
"""Of each event: under which keys its newest line stands. What is not here is not carried."""


def standing(entries: Iterable[Entry], backups: Collection[str]) -> list[Entry]:
    """Return the lines that still stand, in order. `backups`: ids of what exists, and of what is in the trash."""
    facts = _Facts(backups)
    for entry in entries:
        facts.add(entry)
    lines = {entry["line"]: entry for entry in facts.all()}
    return [lines[line] for line in sorted(lines)]


class _Facts:
    """What is remembered does not grow with the journal, but with what is in the repository and was restored."""

    def __init__(self, backups: Collection[str]) -> None:
        self._backups = backups
        self._last: dict[Hashable, Entry] = {}
        self._first_settings: list[Entry] = []
        self._failed: deque[Entry] = deque(maxlen=FORMER_RUNS)
        self._sequence: Entry | None = None
        self._highest: dict[Any, Entry] = {}
        self._running: dict[Any, Entry] = {}
        self._tried: dict[tuple[Any, Any], list[Entry]] = {}
        self._slots: dict[Any, tuple[Any, Any]] = {}
        self._ended: dict[tuple[Any, Any], Entry] = {}
        self._restores: list[Entry] = []
        self._reports: dict[str, Entry] = {}
        self._recent: deque[Entry] = deque(maxlen=ENDED)
        self._ahead: list[Entry] = []
        self._went_back: list[Entry] = []

    def add(self, entry: Entry) -> None:
        event = entry["event"]
        for key in DECIDED.get(event, _nothing)(entry, self._backups):
            self._last[key] = entry
        if "sequence" in entry and (self._sequence is None or entry["sequence"] >= self._sequence["sequence"]):
            self._sequence = entry  # no sequence is ever given twice
        if event == "settings" and not self._first_settings:
            self._first_settings = [entry]  # since when there are slots to be accounted for
        self._add_run(entry)
        self._add_slot(entry)
        self._add_report(entry)
        of_run = event in {"run_started", "run_ended"} and (entry["job"] == EVERYTHING or entry.get("discarded"))
        if of_run or event in {"restored", "restore_started"}:
            self._restores.append(entry)

    def _add_run(self, entry: Entry) -> None:
        match entry["event"]:
            case "run_started":
                self._running[entry["run"]] = entry  # its end is still to be recorded
            case "run_ended":
                self._running.pop(entry["run"], None)
                if entry["outcome"] not in {"success", "warning"}:
                    self._failed.append(entry)  # sessions that they left are ended

    def _add_slot(self, entry: Entry) -> None:
        """Attempts at a slot stand until the slot has ended."""
        slot = entry.get("job"), entry.get("slot")
        match entry["event"]:
            case "run_started" | "run_ended" if slot[1]:
                self._slots[entry["run"]] = slot
                self._tried.setdefault(slot, []).append(entry)
            case "daemon_stopped" if entry.get("run") in self._slots:
                self._tried.setdefault(self._slots[entry["run"]], []).append(entry)
            case "slot_ended":
                if slot in self._tried:
                    self._ended[slot] = entry
                    if len(self._ended) > ENDED:
                        self._ended = dict(self._ends(self._chosen()))
                if entry["outcome"] not in NOT_RUN:  # a clock that goes back may open it again
                    for one in self._tried.pop(slot, []):
                        self._slots.pop(one["run"], None)
                self._add_end(entry)
            case "clock_went_back":
                self._went_back.append(entry)
                self._ahead += [one for one in self._recent if one["slot"] > entry["to"]]
                self._highest = {job: one for job, one in self._highest.items() if one["slot"] <= entry["to"]}

    def _add_end(self, entry: Entry) -> None:
        highest = self._highest.get(entry["job"])
        self._recent.append(entry)
        if entry["slot"] > entry["at"]:
            self._ahead.append(entry)  # its time is still to come, and it must not be run again then
        elif highest is None or entry["slot"] >= highest["slot"]:
            self._highest[entry["job"]] = entry  # the next one begins there

    def _add_report(self, entry: Entry) -> None:
        """Its name and digest stand nowhere else, and what no line names is never removed."""
        match entry["event"]:
            case "report_written":
                self._reports[entry["path"]] = entry
            case "reports_removed":
                for path in entry["paths"]:
                    self._reports.pop(path, None)

    def all(self) -> Iterator[Entry]:
        chosen = list(self._chosen())
        chosen += dict(self._ends(chosen)).values()  # else their slots would seem to be open, and be ended once more
        yield from chosen
        for back in self._went_back:
            if any(_is_ahead(entry, back) for entry in chosen):
                yield back

    def _ends(self, chosen: Iterable[Entry]) -> Iterator[tuple[tuple[Any, Any], Entry]]:
        for entry in chosen:
            slot = entry.get("job"), entry.get("slot")
            if slot in self._ended:
                yield slot, self._ended[slot]

    def _chosen(self) -> Iterator[Entry]:
        yield from self._last.values()
        yield from self._first_settings
        yield from self._failed
        yield from self._reports.values()
        yield from self._running.values()
        yield from self._highest.values()
        for entry in self._ahead:
            highest = self._highest.get(entry["job"])
            if highest is None or entry["slot"] > highest["slot"]:
                yield entry
        for tried in self._tried.values():
            yield from tried
        if self._sequence is not None:
            yield self._sequence
        yield from self._of_restores()

    def _of_restores(self) -> Iterator[Entry]:
        """An unfinished restore of everything; what restores kept aside, and for each line of these what was discarded since."""
        left = unfinished(self._restores)
        runs = {left.run} if left else set()
        kept = set(kept_databases(self._restores))
        restored = [
            entry
            for entry in self._restores
            if entry["event"] == "restored"
            and (kept & {*entry.get("kept", ())} or entry["run"] in runs or entry in self._last.values())
        ]
        names = {name for entry in restored for name in entry.get("kept", ())}
        yield from restored
        for entry in self._restores:
            if (entry["event"] != "restored" and entry["run"] in runs) or names & {*entry.get("discarded", ())}:
                yield entry


def _is_ahead(entry: Entry, back: Entry) -> bool:
    """Whether an earlier line tells of a time that had not come when the clock went back."""
    told = {"slot_ended": "slot", "settings": "at"}.get(entry["event"])
    return told is not None and entry["line"] < back["line"] and bool(entry[told] > back["to"])
