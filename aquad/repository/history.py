"""What the journal says of each backup, and of the schedule. No I/O: it is handed the lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import from_text
from aquad.repository.retention import FOR_EVER, Cleaned, Kind, State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

LEVELS = ("quick", "bytes", "content")


class Verdict(NamedTuple):
    """The last verification of a backup."""

    at: datetime
    level: str
    good: bool


class Hold(NamedTuple):
    """The schedule is held: by an operator, or by a restore (`run`) that has not brought these components back whole."""

    since: datetime
    until: datetime
    reason: str
    run: str | None
    components: Sequence[str]
    by: str


@dataclass
class History:
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    read_at: dict[str, datetime] = field(default_factory=dict)
    """When every stored byte was last read and was what had been sealed."""
    content_at: dict[str, datetime] = field(default_factory=dict)
    """When it was last inflated too, and every digest inside was that of the backup."""
    kept: dict[str, datetime] = field(default_factory=dict)
    """Until when somebody keeps a backup from retention."""
    accepted_at: dict[str, datetime] = field(default_factory=dict)
    """When somebody last took the size of a component as the new normal."""
    holds: dict[str, Hold] = field(default_factory=dict)
    """By their cause: operator, restore."""
    cleaned: dict[Kind, Cleaned] = field(default_factory=dict)
    """The last cleanup of each kind that came to its end."""
    removed_at: dict[str, datetime] = field(default_factory=dict)
    """When a backup, or what a dead run left, went to the trash."""
    reports: dict[str, datetime] = field(default_factory=dict)
    """Paths of reports that were written and not removed."""
    _failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> History:
        history = cls()
        for entry in entries:
            history.add(entry)
        return history

    @property
    def damaged(self) -> frozenset[str]:
        """Backups of which a verification said so, and none that looked as closely has said otherwise since."""
        return frozenset(self._failed)

    @property
    def damaged_at(self) -> Mapping[str, str]:
        """By backup, the level of the closest look that found it damaged."""
        return self._failed

    def state(self, backup: str) -> State:
        return "damaged" if backup in self._failed else "good" if backup in self.read_at else "unverified"

    def holding(self, now: datetime, running: Collection[str] = ()) -> Hold | None:
        """The hold that is in force. A restore that is among the `running` has the lock, and due runs wait for it."""
        holds = [hold for hold in self.holds.values() if now < hold.until and hold.run not in running]
        return max(holds, key=lambda hold: hold.until, default=None)

    def add(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "verified":
                self._verified(entry["backup"], from_text(entry["at"]), entry["level"], entry["outcome"] == "success")
            case "kept":
                until = entry.get("until")
                self.kept[entry["backup"]] = from_text(until) if until else FOR_EVER
            case "unkept":
                self.kept.pop(entry["backup"], None)
            case "accepted":
                self.accepted_at[entry["component"]] = from_text(entry["at"])
            case "held":
                until = from_text(entry["until"]) if entry.get("until") else FOR_EVER
                since = from_text(entry["at"])
                hold = Hold(
                    since, until, entry["reason"], entry.get("run"), entry.get("components", ()), entry.get("by", "")
                )
                self.holds[entry["cause"]] = hold
            case "released" if entry["cause"] == "restore":
                self.holds.pop("restore", None)
            case "released":
                self.holds.clear()
            case _:
                self._retention(entry)

    def _retention(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "pruned" | "draft_to_trash":
                self.removed_at[entry.get("backup") or entry["draft"]] = from_text(entry["at"])
            case "trash_restored":
                self.removed_at.pop(entry["backup"], None)
            case "cleaned":
                for kind, age_seconds in entry["ages"].items():
                    self.cleaned[kind] = Cleaned(from_text(entry["at"]), timedelta(seconds=age_seconds))
            case "report_written":
                self.reports[entry["path"]] = from_text(entry["at"])
            case "reports_removed":
                for path in entry["paths"]:
                    self.reports.pop(path, None)

    def _verified(self, backup: str, at: datetime, level: str, good: bool) -> None:
        self.verdicts[backup] = Verdict(at, level, good)
        failed = self._failed.get(backup)
        if not good:
            self._failed[backup] = max(level, failed or level, key=LEVELS.index)
        elif failed and LEVELS.index(level) >= LEVELS.index(failed):
            del self._failed[backup]
        if good and level != "quick":
            self.read_at[backup] = at
        if good and level == "content":
            self.content_at[backup] = at
