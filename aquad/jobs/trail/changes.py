"""What somebody changed, and what happened to daemon, clock and journal: the change log. Holds of the schedule beside it. No I/O."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aquad.core.clock import from_text, to_text
from aquad.observe.month import Change, Hold
from aquad.observe.reports import both_times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime, tzinfo

CLEANING = {"prune", "cleanup"}
"""Jobs that do nothing but remove: by hand, what they remove is somebody's change."""

SENTENCES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "repository_created": lambda e: f"the repository was made, encryption {_encryption(e)}",
    "encryption_changed": lambda e: f"encryption of new backups: {_encryption(e)}",
    "key_confirmed": lambda e: f"proved that the key is kept elsewhere too: {_encryption(e)}",
    "accepted": lambda e: f"the present size of {e['component']} was taken as the new normal",
    "unkept": lambda e: f"{e['backup']} is left to retention again",
    "trash_restored": lambda e: f"{e['backup']} was taken back from the trash",
    "draft_to_trash": lambda e: f"{e['draft']} went to the trash: {e['reason']}",
    "daemon_stopped": lambda e: f"the daemon stopped: {e['reason']}",
    "journal_torn": lambda e: f"the journal had a torn end: {e['dropped_bytes']} bytes of it were dropped",
    "journal_shortened": lambda e: (
        f"the journal was shortened: its first {e['lines']} lines are gone but for what stands"
    ),
}
"""Of events that tell all themselves; the others need to know what came before."""


class Changes:
    def __init__(self, begin: datetime, end: datetime, zone: tzinfo) -> None:
        self.all: list[Change] = []
        self._begin, self._end, self._zone = to_text(begin), to_text(end), zone
        self._by_hand: tuple[str, str] | None = None
        """Run and job of what somebody does by hand just now."""
        self._up = False

    def add(self, entry: Mapping[str, Any]) -> None:
        told = list(self._changes(entry))
        if self._begin <= entry["at"] < self._end:
            self.all += told

    def _changes(self, entry: Mapping[str, Any]) -> Iterator[Change]:
        event = entry["event"]
        if event in SENTENCES:
            yield _change(entry, SENTENCES[event](entry))
        match event:
            case "run_started":
                self._by_hand = None if entry.get("slot") else (entry["run"], entry["job"])
            case "run_ended":
                self._by_hand = None
                for name in entry.get("discarded", ()):
                    yield _change(entry, f"{name}, kept aside by a restore, was discarded")
            case "settings":
                yield from _settings(entry)
            case "pruned" if self._by_hand and self._by_hand[1] in CLEANING:
                yield _change(entry, f"{entry['backup']} was removed by hand ({self._by_hand[1]}): {entry['reason']}")
            case "trash_emptied" if self._by_hand and self._by_hand[1] in {*CLEANING, "trash empty"}:
                yield _change(entry, f"{entry['backup']} was deleted by hand ({self._by_hand[1]}), for good")
            case _:
                yield from self._told_with_times(entry)
        self._up = event == "daemon_started" or (self._up and event != "daemon_stopped")

    def _told_with_times(self, entry: Mapping[str, Any]) -> Iterator[Change]:
        match entry["event"]:
            case "kept":
                until = from_text(entry["until"]) if entry.get("until") else None
                end = f"until {both_times(until, self._zone)}" if until else "for ever"
                yield _change(entry, f"{entry['backup']} is kept from retention {end}")
            case "clock_went_back":
                seen, to = from_text(entry["seen"]), from_text(entry["to"])
                told = f"from {both_times(seen, self._zone)} to {both_times(to, self._zone)}"
                yield _change(entry, f"the clock went back {told}")
            case "daemon_started":
                yield self._started(entry)

    def _started(self, entry: Mapping[str, Any]) -> Change:
        died = "; the one before it died without a word" if self._up else ""
        return _change(entry, f"the daemon started, version {entry.get('version', 'unknown')}{died}")


class Holds:
    """Those that reach into the time from `begin` to `end`. `now`: whoever looks."""

    def __init__(self, begin: datetime, end: datetime) -> None:
        self._begin, self._end = begin, end
        self._standing: dict[str, Hold] = {}
        self._over: list[Hold] = []

    def add(self, entry: Mapping[str, Any]) -> None:
        if entry["event"] not in {"held", "released"}:
            return
        at, cause = from_text(entry["at"]), entry["cause"]
        if entry["event"] == "released":
            for one in ["restore"] if cause == "restore" else list(self._standing):
                how = "the restore came to its end" if cause == "restore" else f"released by {_who(entry)}"
                self._close(one, at, how)
        else:
            until = from_text(entry["until"]) if entry.get("until") else None
            hold = Hold(
                cause=cause,
                by=_who(entry),
                reason=entry["reason"],
                since=at,
                until=until,
                ended_at=None,
                ended_by="",
            )
            before = self._standing.get(cause)
            if cause == "restore" and before is not None:
                hold = replace(before, reason=entry["reason"])  # it goes on, for other components
            else:
                self._close(cause, at, f"held anew by {_who(entry)}")
            self._standing[cause] = hold

    def all(self, now: datetime) -> list[Hold]:
        for cause in list(self._standing):
            until = self._standing[cause].until
            if until is not None and until <= now:
                self._close(cause, now, "")
        left = [hold for hold in self._standing.values() if hold.since < self._end]
        return sorted([*self._over, *left], key=lambda hold: hold.since)

    def _close(self, cause: str, at: datetime, how: str) -> None:
        hold = self._standing.pop(cause, None)
        if hold is None:
            return
        if hold.until is not None and hold.until <= at:
            at, how = hold.until, "it ran out"
        if hold.since < self._end and at > self._begin:
            self._over.append(replace(hold, ended_at=at, ended_by=how))


def _settings(entry: Mapping[str, Any]) -> Iterator[Change]:
    if not entry["changed"]:
        yield _change(entry, f"the settings were recorded for the first time, {len(entry.get('values', ()))} of them")
    for key, (before, after) in entry["changed"].items():
        told = f"{key}: {_value(before)} became {_value(after)}"
        yield replace(_change(entry, told), key=key, before=before, after=after)


def _change(entry: Mapping[str, Any], what: str) -> Change:
    return Change(at=from_text(entry["at"]), by=_who(entry), event=entry["event"], what=what)


def _who(entry: Mapping[str, Any]) -> str:
    return entry.get("by") or "somebody"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _encryption(entry: Mapping[str, Any]) -> str:
    record = entry["encryption"]
    keys = ", ".join(record.get("key_ids", ()))
    return str(record["mode"]) + (f" ({keys})" if keys else "")
