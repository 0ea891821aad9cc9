"""The names in the repository. They are the interface: an operator without aquad finds every file by them.

No I/O here. Times in names are in the schedule's zone; order is by `sequence`, never by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime, tzinfo
    from pathlib import Path

MARKER = "aquad-repository.json"
FORMAT = 1
DIRECTORIES = ("manifests", "drafts", "aside", "trash", "state")
ID = re.compile(r"(?P<timestamp>\d{8}_\d{6})_(?P<kind>[a-z]+)")


class Layout(NamedTuple):
    root: Path

    @property
    def marker(self) -> Path:
        return self.root / MARKER

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def drafts(self) -> Path:
        return self.root / "drafts"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def aside(self) -> Path:
        return self.root / "aside"

    @property
    def journal(self) -> Path:
        return self.root / "state" / "audit.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "state" / "lock"

    @property
    def readers_lock(self) -> Path:
        return self.root / "state" / "readers.lock"

    def manifest(self, backup_id: str) -> Path:
        return self.manifests / f"{backup_id}.json"


def timestamp(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).strftime("%Y%m%d_%H%M%S")


def timestamp_of(backup_id: str) -> str:
    """Raises ValueError when it is not an id."""
    match = ID.fullmatch(backup_id)
    if match is None:
        raise ValueError(f"{backup_id!r} is not the id of a backup")
    return match["timestamp"]


def index_path(backup_id: str, component: str) -> str:
    return f"manifests/{backup_id}.index/{component}.jsonl.gz"


def encrypted(path: str) -> str:
    return f"{path}.gpg"


def report_path(stamp: str) -> str:
    return f"backup_report_{stamp}.txt"
