"""The directory of a repository: seen to be ours before anything is read, and made before anything is written."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from aquad.core.errors import RepositoryRefused, RepositoryWriteFailed
from aquad.core.escape import escaped
from aquad.repository import layout
from aquad.repository import marker as markers
from aquad.storage import files

if TYPE_CHECKING:
    from pathlib import Path

    from aquad.repository.marker import Marker

RESERVE_BYTES = 256 << 10
PLENTY_BYTES = 4 * RESERVE_BYTES
"""So much has to be free before some of it is laid by."""


def recognised(root: Path, stack: str) -> Marker:
    """Raises RepositoryRefused: missing, not mounted, open to others, foreign, of another stack, or of a newer format."""
    if not root.is_dir():
        raise RepositoryRefused(
            f"open repository {root}: there is no such directory",
            "Is it mounted? A new one is made by `aquad init`.",
        )
    mode = stat.S_IMODE(root.stat().st_mode)
    if mode & 0o077:
        raise RepositoryRefused(
            f"open repository {root}: its mode is {mode:04o}, open to others", f"Run: chmod 700 {root}"
        )
    try:
        marker = markers.read(layout.Layout(root).marker)
    except FileNotFoundError as error:
        raise RepositoryRefused(
            f"open repository {root}: no {layout.MARKER} in it",
            "Is the backup disk mounted there? Only if this is to be a new repository: `aquad init`.",
        ) from error
    except PermissionError as error:
        raise RepositoryRefused(
            f"open repository {root}: permission denied", "Run aquad as the owner of the repository."
        ) from error
    if marker.stack != stack:
        raise RepositoryRefused(
            f"open repository {root}: it belongs to stack {marker.stack!r}, the settings say {stack!r}",
            "Check repository.path and stack.",
        )
    device = root.stat().st_dev
    for name in layout.DIRECTORIES:
        directory = root / name
        if directory.is_dir() and directory.stat().st_dev != device:
            raise RepositoryRefused(
                f"open repository {root}: {name}/ is on another file system",
                "Drafts can only be sealed by rename: unmount it.",
            )
    return marker


def prepare(root: Path) -> None:
    """Make the directories in a missing or empty one; going on after a death half-way."""
    if not root.exists():
        files.make_directory(root)
        files.sync_directory(root.parent)
    foreign = [
        p.name
        for p in root.iterdir()
        if p.name not in {*layout.DIRECTORIES, files.unfinished(layout.Layout(root).marker).name, "lost+found"}
    ]
    if foreign:
        raise RepositoryRefused(
            f"init {root}: there is something in it already: {escaped(min(foreign))}",
            "Choose an empty directory.",
        )
    if stat.S_IMODE(root.stat().st_mode) & 0o077:
        root.chmod(0o700)
    complete(root)
    files.sync_directory(root)


def complete(root: Path) -> None:
    """Make the directories that are missing: also those that an older aquad did not make."""
    for name in layout.DIRECTORIES:
        if not (root / name).is_dir():
            files.make_directory(root / name)


def keep_reserve(root: Path) -> None:
    """Lay by a little space while there is plenty, so that something can be removed when there is none.

    Removing needs some: for the lock, the journal, and the names in the trash (faults B2).
    """
    path = layout.Layout(root).reserve
    if path.exists() or _free_bytes(root) < PLENTY_BYTES:
        return
    try:
        files.replace(path, bytes(RESERVE_BYTES))
    except RepositoryWriteFailed as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise


def spend_reserve(root: Path) -> None:
    """Give it back when next to nothing is free; the next run lays by another, once there is space."""
    path = layout.Layout(root).reserve
    if _free_bytes(root) < RESERVE_BYTES and path.exists():
        files.remove(path)
        files.sync_directory(path.parent)


def _free_bytes(root: Path) -> int:
    disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize
