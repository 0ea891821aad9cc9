"""The names in the repository. They are the interface: an operator without aquad finds every file by them.

No I/O here. Times in names are in the schedule's zone; order is by `sequence`, never by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime, tzinfo
    from pathlib import Path

MARKER = "aquad-repository.json"
FORMAT = 1
DIRECTORIES = ("manifests", "weekly", "drafts", "aside", "trash", "state")
Kind = Literal["full", "incremental", "weekly"]
SHARED = ("manifests", "weekly")
"""Directories in which several backups have something."""
ID = re.compile(r"(?P<timestamp>\d{8}_\d{6})_(?P<kind>full|incremental|weekly)")


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
    def daemon_lock(self) -> Path:
        return self.root / "state" / "daemon.lock"

    @property
    def notify_lock(self) -> Path:
        return self.root / "state" / "notify.lock"

    @property
    def reserve(self) -> Path:
        return self.root / "state" / "reserve"

    @property
    def unfinished_report(self) -> Path:
        return self.root / "state" / "report.new"

    @property
    def readers_lock(self) -> Path:
        return self.root / "state" / "readers.lock"

    def manifest(self, backup_id: str) -> Path:
        return self.manifests / f"{backup_id}.json"


def timestamp(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).strftime("%Y%m%d_%H%M%S")


def timestamp_of(backup_id: str) -> str:
    """Raises ValueError when it is not an id."""
    return _parsed(backup_id)["timestamp"]


def kind_of(backup_id: str) -> Kind:
    """Raises ValueError when it is not an id."""
    kind = _parsed(backup_id)["kind"]
    return "full" if kind == "full" else "incremental" if kind == "incremental" else "weekly"


def _parsed(backup_id: str) -> re.Match[str]:
    match = ID.fullmatch(backup_id)
    if match is None:
        raise ValueError(f"{backup_id!r} is not the id of a backup")
    return match


def top(path: str) -> str:
    """`volumes_x/kafka.tar.gz` -> `volumes_x`; `manifests/x.index/y` -> `manifests/x.index`: what is renamed as a whole."""
    first, _, rest = path.partition("/")
    return f"{first}/{rest.partition('/')[0]}" if first in SHARED else first


def index_path(backup_id: str, component: str) -> str:
    return f"manifests/{backup_id}.index/{component}.jsonl.gz"


def encrypted(path: str) -> str:
    return f"{path}.gpg"


def report_path(stamp: str) -> str:
    return f"backup_report_{stamp}.txt"
