"""What was wrong, from when to when, and why. No I/O: it is handed the journal's lines, from the oldest on.

Alerts and failures of the same rule and subject are one incident until something says that it is over. What says so is
different for each rule, and stands here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from aquad.core.clock import from_text
from aquad.jobs.slots import DONE, ORDER
from aquad.observe.month import Incident
from aquad.repository.history import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

ANOMALIES = ("size_anomaly", "duration_anomaly", "rows_anomaly")
LASTING = {
    *ANOMALIES,
    "settings_invalid",
    "daemon_restarts",
    "disk",
    "stale",
    "schedule_held",
    "channel_fails",
    "repository",
}
"""Something says when they are over; of other alerts nobody can tell."""
TOGETHER = timedelta(days=1)
"""Alerts of which nothing says when they are over belong together when they come so soon after each other."""


@dataclass
class _Case:
    rule: str
    subject: str
    level: str
    started_at: datetime
    last_at: datetime
    times: int
    cause: str
    last_cause: str = ""
    moment: bool = False
    of_manifest: bool = False
    """Found by an alert alone: its manifest is damaged, and there is no verdict on its bytes."""

    def told(self, ended_at: datetime | None = None, ended_by: str = "") -> Incident:
        state: Literal["open", "over", "moment"] = "moment" if self.moment else "over" if ended_at else "open"
        return Incident(
            rule=self.rule,
            subject=self.subject,
            level=self.level,
            state=state,
            started_at=self.started_at,
            last_at=self.last_at,
            ended_at=ended_at and max(ended_at, self.started_at),
            ended_by=ended_by,
            times=self.times,
            cause=self.cause,
            last_cause=self.last_cause,
        )


class Incidents:
    """Those that reach into the time from `begin` to `end`; nothing else is remembered.

    Of the first `removed` lines of the journal only some are left: what lay between two of them is not known, so a later
    one begins an incident anew.
    """

    def __init__(self, begin: datetime, end: datetime, removed: int = 0) -> None:
        self._begin, self._end, self._removed = begin, end, removed
        self._cases: dict[tuple[str, str], _Case] = {}
        self._over: list[Incident] = []
        self._started: dict[str, datetime] = {}
        self._restoring: dict[str, bool] = {}
        """Restores that have touched something, and whether the schedule is held until they are done."""
        self._raised: dict[tuple[str, str], datetime] = {}
        self._endings: dict[str, Mapping[str, Any]] = {}
        self._tried: dict[str, tuple[str | None, str]] = {}
        self._whole: dict[str, set[str]] = {}
        """By job, the components of its last run for a slot."""
        self._damaged: dict[str, str] = {}
        """At which level a backup failed; also of backups in the trash."""

    def all(self) -> list[Incident]:
        left = [case.told() for case in self._cases.values() if self._reaches(case, None)]
        return sorted([*self._over, *left], key=lambda one: (one.started_at, one.rule, one.subject))

    def is_open(self, rule: str, subject: str) -> bool:
        return (rule, subject) in self._cases

    def levels(self) -> dict[tuple[str, str], str]:
        """Of what is open, by rule and subject."""
        return {key: case.level for key, case in self._cases.items()}

    def add(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "run_started":
                self._started[entry["run"]] = from_text(entry["at"])
            case "run_ended":
                self._run_ended(entry)
            case "slot_ended":
                self._slot_ended(entry)
            case "alert":
                self._alert(entry)
            case "alert_over":
                self._close(entry["rule"], entry["component"] or "", entry, entry["text"])
            case "verified":
                self._verified(entry)
            case "accepted":
                for rule in ANOMALIES:
                    self._close(rule, entry["component"], entry, f"accepted by {entry.get('by') or 'somebody'}")
            case "settings" | "daemon_started":
                how = "other settings were taken" if entry["event"] == "settings" else "a daemon started with good ones"
                self._close("settings_invalid", "", entry, how)
            case _:
                self._of_backups_and_restores(entry)

    def _of_backups_and_restores(self, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "pruned":
                self._close("damaged", entry["backup"], entry, "the backup went to the trash")
            case "trash_restored" if entry["backup"] in self._damaged:
                self._open(
                    "damaged", entry["backup"], entry, "it came back from the trash, damaged as before", "critical"
                )
            case "trash_emptied":
                self._damaged.pop(entry["backup"], None)
                self._close("damaged", entry["backup"], entry, "the backup was deleted")
            case "restore_started":
                self._restoring.setdefault(entry["run"], False)
            case "held" if entry["cause"] == "restore":
                self._restoring[entry["run"]] = True
            case "released":
                how = (
                    "a restore came to its end"
                    if entry["cause"] == "restore"
                    else f"released by {entry.get('by') or 'somebody'}"
                )
                for _, job in [key for key in self._cases if key[1].startswith("restore ")]:
                    self._close_runs(job, entry, how)

    def _run_ended(self, entry: Mapping[str, Any]) -> None:
        job, run, outcome, at = entry["job"], entry["run"], entry["outcome"], from_text(entry["at"])
        started = self._started.pop(run, at - timedelta(milliseconds=entry.get("milliseconds", 0)))
        good = {name for name, result in entry.get("components", {}).items() if result != "failed"}
        if outcome not in DONE:
            self._failed(entry, started)
        elif entry.get("slot") or good >= self._whole.get(job, set()):
            self._close_runs(job, entry, f"run {run} of {job} ended in {outcome}")
        if entry.get("slot"):
            self._whole[job] = set(entry.get("components", ())) or self._whole.get(job, set())
            if outcome in DONE:
                self._close("daemon_restarts", "", entry, f"run {run} of {job} ended in {outcome}")
        self._restoring.pop(run, None)
        for name in good:
            for rule in ANOMALIES:
                self._close_unless_raised(
                    rule, name, started, entry, f"backup {entry.get('backup')} raised no such alert"
                )
        if job == "verify" and "damaged" in entry:
            for key in [
                key for key, case in self._cases.items() if case.of_manifest and key[1] not in entry["damaged"]
            ]:
                self._close(*key, entry, f"run {run} of verify did not find it any more")

    def _failed(self, entry: Mapping[str, Any], started: datetime) -> None:
        """A failure of a job of the schedule lasts until the job succeeds; one by hand does not last, except for half a restore."""
        job, rule = entry["job"], f"run_{entry['outcome']}"
        restoring = self._restoring.get(entry["run"])
        if job.startswith("restore ") and restoring is None and job != "restore discard":
            return  # nothing was touched
        # While it is tried again, nobody has to get up; the alert at the end of its slot says when somebody has.
        level = "warning" if entry.get("slot") else _level(rule)
        self._open(rule, job, entry, entry.get("reason", ""), level, started=started)
        self._tried[job] = entry.get("slot"), entry["outcome"]
        if job not in ORDER and not restoring:
            self._close(rule, job, entry, "it did not outlast its run")

    def _slot_ended(self, entry: Mapping[str, Any]) -> None:
        job, outcome = entry["job"], entry["outcome"]
        self._endings[job] = entry
        if outcome == "missed" or (
            outcome not in DONE and outcome != "skipped" and self._tried.get(job) != (entry["slot"], outcome)
        ):
            self._ended(entry)

    def _ended(self, ending: Mapping[str, Any]) -> None:
        """A missed or skipped slot began to be missed when it was due, not when somebody wrote it down."""
        rule, due = f"run_{ending['outcome']}", from_text(ending.get("first") or ending["slot"])
        count = ending.get("count", 1)
        self._open(rule, ending["job"], ending, ending.get("reason", ""), _level(rule), started=due, times=count)

    def _alert(self, entry: Mapping[str, Any]) -> None:
        rule, at = entry["rule"], from_text(entry["at"])
        if rule.startswith("run_"):
            self._alert_of_run(entry)
        elif rule == "damaged":
            backup = entry.get("backup") or entry["text"].partition(" is damaged")[0]
            case = self._cases.get((rule, backup))
            if case is None or case.of_manifest:
                self._open(rule, backup, entry, entry["text"], entry["level"]).of_manifest = True
        else:
            subject = entry.get("component") or ""
            self._raised[rule, subject] = at
            case = self._cases.get((rule, subject))
            if case is not None and case.moment and at - case.last_at > TOGETHER:
                self._tell(self._cases.pop((rule, subject)), None, "")
            self._open(rule, subject, entry, entry["text"], entry["level"]).moment = rule not in LASTING

    def _alert_of_run(self, entry: Mapping[str, Any]) -> None:
        """The line of the slot stands right before it, and has told all but the level."""
        match = re.match(r"(\S+) of (\S+) ", entry["text"])
        job = entry.get("job") or (match[1] if match else "")
        ending = self._endings.get(job)
        case = self._cases.get((entry["rule"], job))
        if ending is None or f" {ending['slot']} " not in entry["text"]:
            if entry["line"] > self._removed:
                self._open(entry["rule"], job, entry, entry["text"], entry["level"])
        elif ending["outcome"] == "skipped":
            self._ended(ending)
        elif case is not None:
            case.level = entry["level"]

    def _verified(self, entry: Mapping[str, Any]) -> None:
        """A look that is not as close as the one that found damage does not say that it is gone."""
        backup, level = entry["backup"], entry["level"]
        failed = self._damaged.get(backup)
        if entry["outcome"] != "success":
            self._damaged[backup] = max(level, failed or level, key=LEVELS.index)
            problem = next(iter(entry.get("problems", ())), "")
            self._open("damaged", backup, entry, f"found by a verification of level {level}: {problem}", "critical")
        elif failed is None or LEVELS.index(level) >= LEVELS.index(failed):
            self._damaged.pop(backup, None)
            self._close("damaged", backup, entry, f"a verification of level {level} found it good")

    def _open(
        self,
        rule: str,
        subject: str,
        entry: Mapping[str, Any],
        cause: str,
        level: str,
        *,
        started: datetime | None = None,
        times: int = 1,
    ) -> _Case:
        at = from_text(entry["at"])
        case = self._cases.get((rule, subject))
        if case is None or entry["line"] <= self._removed:
            case = _Case(rule, subject, level, started or at, at, times, cause)
            self._cases[rule, subject] = case
            return case
        case.times += times
        case.last_at = at
        case.last_cause = cause if cause != case.cause else ""
        case.level = "critical" if "critical" in {level, case.level} else level
        case.of_manifest = False
        return case

    def _close_runs(self, job: str, entry: Mapping[str, Any], how: str) -> None:
        for rule, subject in [key for key in self._cases if key[0].startswith("run_") and key[1] == job]:
            self._close(rule, subject, entry, how)

    def _close_unless_raised(
        self, rule: str, subject: str, started: datetime, entry: Mapping[str, Any], how: str
    ) -> None:
        raised = self._raised.get((rule, subject))
        if raised is None or raised < started:
            self._close(rule, subject, entry, how)

    def _close(self, rule: str, subject: str, entry: Mapping[str, Any], how: str) -> None:
        case = self._cases.pop((rule, subject), None)
        if case is not None:
            self._tell(case, from_text(entry["at"]), how)

    def _tell(self, case: _Case, ended_at: datetime | None, how: str) -> None:
        if self._reaches(case, ended_at):
            self._over.append(case.told(ended_at, how))

    def _reaches(self, case: _Case, ended_at: datetime | None) -> bool:
        last = case.last_at if case.moment else ended_at
        return case.started_at < self._end and (last is None or max(last, case.started_at) >= self._begin)


def _level(rule: str) -> str:
    """As the daemon alerts."""
    return "critical" if rule == "run_failed" else "warning"
