"""The report of a month for people: change log and incident report. What went as it should is short, everything else is told whole."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from aquad.core.escape import escaped
from aquad.observe.reports import both_times, duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import tzinfo

    from aquad.observe.month import Hold, Incident, Month, Restore, Run

DONE = {"success", "warning"}
HEAD = 14
"""Columns before what is said in the summary."""


def monthly_report(month: Month, zone: tzinfo) -> str:
    """Return it as plain text."""
    lines = [
        f"aquad monthly report: {escaped(month.stack)}, {month.begin.astimezone(zone):%B %Y}",
        "",
        f"From      {both_times(month.begin, zone)}",
        f"Until     {both_times(month.end, zone)}",
        f"Made      {both_times(month.made_at, zone)}",
    ]
    if month.made_at < month.end:
        lines.append("THE MONTH IS NOT OVER: this is how it stands now.")
    if month.missing:
        lines.append(f"NOT WHOLE: {escaped(month.missing)}.")
    sections: list[tuple[str, Iterable[str]]] = [
        ("Summary", _summary(month, zone)),
        ("Incidents", (line for one in month.incidents for line in _incident(one, month, zone))),
        ("Holds of the schedule", (line for one in month.holds for line in _hold(one, zone))),
        ("Restores", (line for one in month.restores for line in _restore(one, zone))),
        ("Verifications", _verifications(month, zone)),
        ("Runs", _runs(month.runs, zone)),
        ("Changes", (f"{both_times(c.at, zone)}  {escaped(c.by)}: {escaped(c.what)}" for c in month.changes)),
    ]
    for title, told in sections:
        lines += ["", f"{title}:", *(f"  {line}" for line in list(told) or ["none"])]
    return "\n".join([*lines, ""])


def _summary(month: Month, zone: tzinfo) -> Iterator[str]:
    yield from _counted("Runs", month.run_counts)
    yield from _counted("Slots", month.slot_counts)
    if month.availability is None:
        yield _line("Availability", "no slot of the schedule was due")
    else:
        total = sum(sum(outcomes.values()) for outcomes in month.slot_counts.values())
        share = f"{int(month.availability * 1000) / 10} %"  # cut, not rounded: 100 % is said of nothing less
        yield _line("Availability", f"{share} of {total} slots of the schedule ended in success or warning")
    checked = month.verifications
    unknown = f", and {checked.size_unknown} that are gone, of unknown size" if checked.size_unknown else ""
    known = checked.good - checked.size_unknown
    yield _line("Verified", f"{known} good backups, {human_bytes(checked.bytes)}{unknown}")
    yield _line("Damaged", f"{len(checked.damaged)} backups were found damaged")
    still = sum(one.state == "open" for one in month.incidents)
    yield _line("Incidents", f"{len(month.incidents)}, of which {still} are still open")
    for one in month.restores:
        ended = _outcome(one.run) + (f" after {duration(one.run.seconds)}" if one.run.seconds is not None else "")
        yield _line("Restore", f"{escaped(one.run.job)} on {both_times(one.run.started_at, zone)}: {ended}")
    if not month.restores:
        yield _line("Restores", "none")
    gone = ", ".join(f"{count} {escaped(kind)}" for kind, count in sorted(month.removed.items())) or "none"
    yield _line("Removed", f"backups to the trash: {gone}; deleted for good: {month.deleted}")
    when = "now" if month.made_at < month.end else "at the end of the month"
    yield f"Newest good backup of each component {when}:"
    for newest in month.newest:
        backup = escaped(newest.backup) if newest.backup else "NONE"
        taken = f", taken {both_times(newest.taken_at, zone)}" if newest.taken_at else ""
        yield f"  {escaped(newest.component)}: {backup}{taken}"
    if not month.newest:
        yield "  none: there was no backup"


def _counted(title: str, counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not counts:
        yield _line(title, "none")
    for job, outcomes in sorted(counts.items()):
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        yield _line(title, f"{escaped(job)}: {escaped(told)}")
        title = ""


def _line(title: str, text: str) -> str:
    return f"{title:{HEAD}}{text}"


def _incident(one: Incident, month: Month, zone: tzinfo) -> Iterator[str]:
    times = f", {one.times} times" if one.times > 1 else ""
    before = " (before this month)" if one.started_at < month.begin else ""
    subject = f" of {escaped(one.subject)}" if one.subject else ""
    yield f"{escaped(one.level).upper()} {escaped(one.rule)}{subject}{times}"
    yield f"  since {both_times(one.started_at, zone)}{before}"
    if one.state == "open":
        yield f"  STILL OPEN, found last {both_times(one.last_at, zone)}"
    elif one.ended_at is not None:
        lasted = duration((one.ended_at - one.started_at).total_seconds())
        yield f"  until {both_times(one.ended_at, zone)}, after {lasted}: {escaped(one.ended_by)}"
    elif one.times > 1:
        yield f"  found last {both_times(one.last_at, zone)}"
    yield f"  cause: {escaped(one.cause) or 'none was given'}"
    if one.last_cause:
        yield f"  at last: {escaped(one.last_cause)}"


def _hold(hold: Hold, zone: tzinfo) -> Iterator[str]:
    meant = f"until {both_times(hold.until, zone)}" if hold.until else "without an end"
    yield f"{both_times(hold.since, zone)}, {meant}, by {escaped(hold.by)} ({escaped(hold.cause)})"
    yield f"  why: {escaped(hold.reason)}"
    if hold.ended_at is None:
        yield "  IT STILL HOLDS"
    else:
        yield f"  ended {both_times(hold.ended_at, zone)}: {escaped(hold.ended_by)}"


def _restore(one: Restore, zone: tzinfo) -> Iterator[str]:
    yield from _run(one.run, zone)
    for part in one.components:
        took = "NOT BROUGHT BACK" if part.seconds is None else f"took {duration(part.seconds)}"
        yield f"  {escaped(part.component)} from {escaped(part.origin)}: {took}"
    if not one.components:
        yield "  nothing was touched"


def _verifications(month: Month, zone: tzinfo) -> Iterator[str]:
    yield from (line.rstrip() for line in _levels(month.verifications.counts))
    for one in month.incidents:
        if one.rule == "damaged":
            end = f"until {both_times(one.ended_at, zone)}: {one.ended_by}" if one.ended_at else "STILL DAMAGED"
            yield f"DAMAGED {escaped(one.subject)}, found {both_times(one.started_at, zone)}, {escaped(end)}"
            yield f"  {escaped(one.cause)}"


def _levels(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for level, outcomes in sorted(counts.items()):
        good = outcomes.get("success", 0)
        yield f"{escaped(level)}: {good} good, {sum(outcomes.values()) - good} damaged"


def _runs(runs: Sequence[Run], zone: tzinfo) -> Iterator[str]:
    """A day on which nothing happened is one line; whatever was no success, and whatever was tried again or by hand, is told whole."""
    folded = 0
    for day, of_day in groupby(runs, lambda run: f"{run.started_at.astimezone(zone):%Y-%m-%d %a}"):
        all_of_day = list(of_day)
        quiet = all(run.outcome == "success" for run in all_of_day)
        short = [run for run in all_of_day if quiet and run.attempt == 1]
        if short:
            folded += len(short)
            yield f"{day}  {_jobs(short, zone)}: success"
        for run in all_of_day:
            if run not in short:
                yield from _run(run, zone)
    if folded:
        yield f"{folded} of {len(runs)} runs are folded into lines of a day: successes at the first attempt; `--json` has each."


def _jobs(runs: Sequence[Run], zone: tzinfo) -> str:
    """When each began."""
    jobs: dict[str, list[str]] = {}
    for run in runs:
        took = f" ({duration(run.seconds)})" if run.seconds is not None else ""
        jobs.setdefault(run.job, []).append(f"{run.started_at.astimezone(zone):%H:%M}{took}")
    return "; ".join(f"{escaped(job)} {', '.join(times)}" for job, times in jobs.items())


def _run(run: Run, zone: tzinfo) -> Iterator[str]:
    slot = "by hand" if run.slot is None else f"slot {both_times(run.slot, zone)}, attempt {run.attempt or 1}"
    yield f"{both_times(run.started_at, zone)}  {escaped(run.job)}: {_outcome(run)}"
    took = f", {duration(run.seconds)}" if run.seconds is not None else ""
    found = "found dead" if run.outcome == "interrupted" else "ended"
    end = f"{found} {both_times(run.ended_at, zone)}{took}; " if run.ended_at else ""
    backup = f"; backup {escaped(run.backup)}" if run.backup else ""
    yield f"  {end}{slot}, by {escaped(run.by) or 'somebody'}, run {escaped(run.run)}{backup}"
    if run.reason:
        yield f"  cause: {escaped(run.reason)}"
    if not run.counted:
        yield "  it began before this month, and is counted there"


def _outcome(run: Run) -> str:
    if run.outcome is None:
        return "NO END YET"
    return run.outcome if run.outcome in DONE else escaped(run.outcome).upper()
