"""Reports for people: plain text that is still readable in ten years."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def backup_report(backup: Mapping[str, Any]) -> str:
    """Return `backup_report_<timestamp>.txt` for a manifest's content."""
    lines = [
        f"aquad backup report: {backup['id']}",
        "",
        f"Stack        {escaped(backup['stack'])} on {escaped(backup['host'])}",
        f"Started      {backup['started_at']}",
        f"Finished     {backup['finished_at']}",
        f"Outcome      {backup['outcome']}",
        f"Encryption   {encryption_text(backup)}",
        "",
    ]
    for component in backup["components"]:
        lines += _component(component)
    lines += [
        "Restore with aquad:  aquad restore plan all " + backup["id"],
        "Restore by hand:     see docs/format.md; every file opens with tar, zcat and psql (.gpg: first gpg --decrypt).",
        "",
    ]
    return "\n".join(lines)


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
