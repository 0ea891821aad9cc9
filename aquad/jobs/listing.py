"""What `list` and `show` tell a machine of backups; the same over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aquad.core.clock import to_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aquad.repository.catalog import Unreadable
    from aquad.repository.history import Verdict
    from aquad.repository.manifest import Manifest
    from aquad.repository.manifests import Brief


def listed(
    backups: Sequence[Brief], unreadable: Sequence[Unreadable], verdicts: Mapping[str, Verdict]
) -> dict[str, Any]:
    rows = [
        {
            "id": backup.id,
            "kind": backup.kind,
            "sequence": backup.sequence,
            "started_at": backup.started_at,
            "finished_at": backup.finished_at,
            "outcome": backup.outcome,
            "stored_bytes": backup.stored_bytes,
            "plain_bytes": backup.plain_bytes,
            "components": {part.name: part.outcome for part in backup.parts},
            "verified": _verified(verdicts.get(backup.id)),
        }
        for backup in backups
    ]
    return {"backups": rows, "unreadable": [one._asdict() for one in unreadable]}


def shown(backup: Manifest, verdict: Verdict | None) -> dict[str, Any]:
    return {"backup": backup.model_dump(mode="json"), "verified": _verified(verdict)}


def said(verdict: Verdict | None) -> str:
    """For people."""
    if verdict is None:
        return "never"
    return f"{verdict.level}, {to_text(verdict.at)[:16]}Z" if verdict.good else "DAMAGED"


def _verified(verdict: Verdict | None) -> dict[str, Any] | None:
    return verdict and {
        "level": verdict.level,
        "outcome": "success" if verdict.good else "failed",
        "at": to_text(verdict.at),
    }
