"""Reports for people: plain text that is still readable in ten years."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, tzinfo


BACKUPS = {"full", "postgres", "weekly"}
"""Jobs that make a backup."""


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Taken(NamedTuple):
    """One component of a backup, beside the backup before. `rows`: None where there are no tables."""

    name: str
    outcome: str
    consistency: str | None
    stored_bytes: int
    plain_bytes: int
    seconds: float
    rows: int | None
    former_bytes: int | None
    former_rows: int | None


class RunReport(NamedTuple):
    """What `backup_report_<timestamp>.txt` says. `backup`: the manifest's content; None when nothing was sealed."""

    job: str
    run: str
    by: str
    slot: datetime | None
    started_at: datetime
    finished_at: datetime
    zone: tzinfo
    outcome: str
    reason: str
    backup: Mapping[str, Any] | None
    taken: Sequence[Taken]
    verified: str
    strange: Sequence[str]
    """Sentences on sizes, durations and rows that are unlike those before."""
    retention: Sequence[str]
    disk: str
    coming: Sequence[tuple[str, datetime]]


def both_times(moment: datetime | None, zone: tzinfo) -> str:
    """Local time of the schedule's zone, and UTC where that is another."""
    if moment is None:
        return "never"
    local = moment.astimezone(zone)
    text = local.strftime("%Y-%m-%d %H:%M:%S %Z")
    return text if not local.utcoffset() else f"{text} ({moment:%H:%M:%S} UTC)"


def duration(seconds: float | None) -> str:
    """90061 -> '1d 1h'."""
    if seconds is None:
        return "-"
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} {int(seconds % size // small)}{smaller}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def backup_report(report: RunReport) -> str:
    """Return the report as plain text."""
    backup, zone = report.backup, report.zone
    slot = f", for the slot {both_times(report.slot, zone)}" if report.slot else ", by hand"
    lines = [
        f"aquad backup report: {backup['id'] if backup else f'run {report.run}'}",
        "",
        f"Job          {report.job}{slot}, by {escaped(report.by)}",
        f"Started      {both_times(report.started_at, zone)}",
        f"Finished     {both_times(report.finished_at, zone)}, after {duration((report.finished_at - report.started_at).total_seconds())}",
        f"Outcome      {report.outcome}" + (f": {escaped(report.reason)}" if report.reason else ""),
    ]
    if backup is not None:
        lines += [
            f"Stack        {escaped(backup['stack'])} on {escaped(backup['host'])}",
            f"Encryption   {encryption_text(backup)}",
            f"Verified     {report.verified}",
        ]
    elif report.job in BACKUPS:
        lines.append("NOTHING WAS SEALED: there is no new backup.")
    lines += ["", *_table(report.taken)]
    for component in backup["components"] if backup else ():
        lines += _component(component)
    lines += [*_section("Unlike before", report.strange), *_section("Retention", report.retention)]
    lines += [f"Disk: {report.disk}", "", "Next runs:"]
    lines += [f"  {job:9}{both_times(at, zone)}" for job, at in report.coming] or [
        "  none: the schedule is switched off"
    ]
    if backup is not None:
        lines += ["", f"Restore with aquad:  aquad restore plan all {backup['id']}"]
        lines.append(
            "Restore by hand:     docs/format.md; every file opens with tar, zcat and psql (.gpg: first gpg --decrypt)."
        )
    return "\n".join([*lines, ""])


def _table(taken: Sequence[Taken]) -> list[str]:
    if not taken:
        return []
    rows = [("what", "outcome", "stored", "last time", "unpacked", "took", "rows", "last time")]
    rows += [
        (
            one.name,
            one.outcome,
            human_bytes(one.stored_bytes),
            "-" if one.former_bytes is None else human_bytes(one.former_bytes),
            human_bytes(one.plain_bytes),
            duration(one.seconds),
            "-" if one.rows is None else str(one.rows),
            "-" if one.former_rows is None else str(one.former_rows),
        )
        for one in taken
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows] + [
        ""
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {escaped(line)}" for line in lines), ""] if lines else []


def encryption_text(backup: Mapping[str, Any]) -> str:
    """How the artifacts are encrypted, and which keys open them."""
    used = [artifact["encryption"] for component in backup["components"] for artifact in component["artifacts"]]
    if not used or any(one["mode"] == "off" for one in used):
        return "off: whoever reads these files reads the data"
    return ", ".join(sorted({f"{one['mode']} ({', '.join(one['key_ids'])})" for one in used}))


def _component(component: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{component['name']}: {component['outcome']}"
        + (f" ({component['consistency']})" if component["consistency"] else "")
    ]
    if component["reason"]:
        lines.append(f"  NOT IN THIS BACKUP: {escaped(component['reason'])}")
    for artifact in component["artifacts"]:
        lines.append(
            f"  {artifact['path']}  {human_bytes(artifact['stored_bytes'])}, {human_bytes(artifact['plain_bytes'])} unpacked"
        )
        lines.append(f"    sha256 {artifact['stored_sha256']}")
    reused = component["facts"].get("reused")
    if reused:
        lines.append(
            f"  {reused} of {component['facts']['members']} members were unchanged, and copied from the backup before"
        )
    lines += [f"  WARNING: {escaped(warning)}" for warning in component["warnings"]]
    lines += [f"  note: {escaped(note)}" for note in component["notes"]]
    return [*lines, ""]
