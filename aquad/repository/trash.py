"""What retention removed: kept in `trash/<id>/` with its manifest, until it is emptied, or brought back.

Removing begins with the manifest: the backup ceases to exist at once, and its data follows, now or in the next run. Bringing
back ends with it. Only what a manifest or a dead run's `names.json` names is ever touched; the caller holds the lock.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import Damaged, NoSuchBackup, RepositoryRefused
from aquad.core.escape import escaped
from aquad.repository import layout, manifest
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from aquad.repository.manifest import Manifest

MANIFEST = "manifest.json"
EMPTYING = "emptying.json"
"""The manifest of what is being deleted: it cannot be brought back any more."""
NAMES = "names.json"
DRAFT = re.compile(r"draft(\.\d+)*")


class Removed(NamedTuple):
    """One directory of the trash. `backup`: None for what a dead run left."""

    id: str
    backup: Manifest | None
    removed_at: float
    """Seconds since the epoch, by the directory's own time."""
    deletable: bool
    """Not so when its manifest is damaged: nobody knows then which of its files are ours."""


class Trash:
    def __init__(self, where: layout.Layout) -> None:
        self._where = where

    def contents(self) -> list[Removed]:
        """What can be brought back, what is being deleted, and what dead runs left, by id; nothing that is not ours."""
        found = []
        for bin_ in self._bins():
            backup, sealed = self._manifest(bin_), os.path.lexists(bin_ / MANIFEST)
            deletable = backup is not None or self._manifest(bin_, EMPTYING) is not None or bool(_drafts(bin_))
            if sealed or deletable:
                found.append(Removed(bin_.name, backup, bin_.stat().st_mtime, deletable))
        return found

    def _bins(self) -> list[Path]:
        paths = sorted(self._where.trash.iterdir())
        return [path for path in paths if layout.ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def put(self, backup: Manifest) -> None:
        """Remove a backup: when its manifest is in the trash it is gone, also when this is killed after that."""
        bin_ = self._where.trash / backup.id
        if bin_.is_symlink() or os.path.lexists(bin_ / MANIFEST):
            raise RepositoryRefused(
                f"remove {backup.id}: trash/{backup.id} is taken", "Somebody put something there: move it away."
            )
        if not bin_.is_dir():
            files.make_directory(bin_)
            files.sync_directory(self._where.trash)
        files.rename(self._where.manifest(backup.id), bin_ / MANIFEST)
        files.sync_directory(bin_)
        files.sync_directory(self._where.manifests)
        self._follow(self._tops(backup), backup.id)

    def finish(self, owned: Callable[[], Collection[str]]) -> None:
        """Let data follow its manifest, where a run was killed in between. `owned`: top-level names of living manifests."""
        for bin_ in self._bins():
            if not any(names for _, _, names in os.walk(bin_)):  # left by one that was killed
                self._remove_empty(bin_)
        for removed in self.contents():
            tops = self._tops(removed.backup) if removed.backup else []
            if any(os.path.lexists(self._where.root / top) for top in tops) and not set(tops) & set(owned()):
                self._follow(tops, removed.id)

    def take_back(self, backup_id: str) -> Manifest:
        """Make a removed backup one again. Raises NoSuchBackup; RepositoryRefused when a name it needs is taken."""
        backup = self._find(backup_id)
        bin_, tops = self._where.trash / backup.id, self._tops(backup)
        for top in tops:
            if os.path.lexists(bin_ / _name(top)) and os.path.lexists(self._where.root / top):
                raise RepositoryRefused(
                    f"take back {backup.id}: {top} exists in the repository", "Somebody put it there: move it away."
                )
        manifest_ = self._where.manifest(backup.id)
        if os.path.lexists(manifest_) and manifest_.read_bytes() != (bin_ / MANIFEST).read_bytes():
            raise RepositoryRefused(
                f"take back {backup.id}: it has a manifest, which is another", "Somebody put it there: move it away."
            )
        for file in backup.files():
            if not (self._where.root / file.path).is_file() and not _in_trash(bin_, file.path).is_file():
                raise Damaged(
                    f"take back {backup.id}: {file.path} is missing",
                    "Somebody removed it. What is left of the backup lies in the trash as it was.",
                )
        for top in tops:
            if os.path.lexists(bin_ / _name(top)):
                files.rename(bin_ / _name(top), self._where.root / top)
        sync_parents(self._where.root, tops)
        files.rename(bin_ / MANIFEST, manifest_)
        files.sync_directory(self._where.manifests)
        files.sync_directory(bin_)
        self._remove_empty(bin_)
        return backup

    def empty(self, backup_id: str) -> None:
        """Delete for good. What nobody of us put there stays."""
        bin_ = self._where.trash / backup_id
        if self._manifest(bin_) is not None:
            files.rename(bin_ / MANIFEST, bin_ / EMPTYING)
            files.sync_directory(bin_)
        backup = self._manifest(bin_, EMPTYING)
        if backup is not None:
            for file in backup.files():
                _drop_file(bin_, file.path)
            files.remove(bin_ / EMPTYING)
        for draft in _drafts(bin_):
            self._drop_promised(bin_, draft)
            drop(draft)
        self._remove_empty(bin_)

    def _follow(self, tops: Sequence[str], backup_id: str) -> None:
        bin_ = self._where.trash / backup_id
        # What has a name already there is not ours: somebody copied it, and what is copied over is lost.
        there = [top for top in tops if os.path.lexists(self._where.root / top)]
        left = [top for top in there if not os.path.lexists(bin_ / _name(top))]
        for top in left:
            files.rename(self._where.root / top, bin_ / _name(top))
        if left:
            files.sync_directory(bin_)
            sync_parents(self._where.root, left)

    def _tops(self, backup: Manifest) -> list[str]:
        return sorted({layout.top(file.path) for file in backup.files()})

    def _manifest(self, bin_: Path, name: str = MANIFEST) -> Manifest | None:
        try:
            backup = manifest.parse((bin_ / name).read_bytes(), bin_.name)
        except (OSError, Damaged, RepositoryRefused):
            return None
        return backup if backup.id == bin_.name else None

    def _find(self, text: str) -> Manifest:
        """The backup of an id, or of a prefix that fits but one. Raises NoSuchBackup."""
        there = [one.backup for one in self.contents() if one.backup]
        matches = [b for b in there if b.id == text] or [b for b in there if text and b.id.startswith(text)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise NoSuchBackup(f"take back {escaped(text)}: it fits {len(matches)} backups", "Give more of the id.")
        raise NoSuchBackup(
            f"take back {escaped(text)}: the trash has no backup of that id",
            "`aquad trash list` shows what it has.",
        )

    def _drop_promised(self, bin_: Path, draft: Path) -> None:
        """What recovery moved here because the draft's `names.json` named it."""
        try:
            names = [str(file["path"]) for file in json.loads((draft / NAMES).read_bytes())["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        for name in names:
            _drop_file(bin_, name)

    def _remove_empty(self, bin_: Path) -> None:
        """Remove the directories that are empty now: what somebody else put there keeps its own."""
        for directory, _, _ in os.walk(bin_, topdown=False):
            if not os.listdir(directory):
                files.remove_directory(bin_ / directory)
        files.sync_directory(self._where.trash)


def sync_parents(root: Path, names: Iterable[str]) -> None:
    """Make it durable that these names below the repository came or went."""
    for directory in sorted({(root / name).parent for name in names}):
        files.sync_directory(directory)


def drop(top: Path) -> None:
    """Remove a file, or a directory of ours with all that is in it; one that is not there is none."""
    if not os.path.lexists(top):
        return
    if top.is_symlink() or not top.is_dir():
        files.remove(top)
        return
    for directory, below, names in os.walk(top, topdown=False):
        for name in names:
            files.remove(top / directory / name)
        for name in below:
            if (top / directory / name).is_symlink():
                files.remove(top / directory / name)
        files.remove_directory(top / directory)


def _drafts(bin_: Path) -> list[Path]:
    there = sorted(bin_.iterdir()) if bin_.is_dir() else []
    return [path for path in there if DRAFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _in_trash(bin_: Path, path: str) -> Path:
    top = layout.top(path)
    return bin_ / (_name(top) + path.removeprefix(top))


def _drop_file(bin_: Path, path: str) -> None:
    """Remove a file of ours: not through a link, and not what somebody put in its place."""
    file = _in_trash(bin_, path)
    linked = any((bin_ / above).is_symlink() for above in file.relative_to(bin_).parents)
    if not linked and file.is_file() and not file.is_symlink():
        files.remove(file)


def _name(top: str) -> str:
    return top.rpartition("/")[2]
