"""The manifests on the disk: read whole, or once and in a few words for whoever lives long and looks often."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import Damaged, NoSuchBackup, RepositoryRefused
from aquad.repository import manifest
from aquad.repository.catalog import Catalog, Unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aquad.repository.manifest import Manifest


class Part(NamedTuple):
    """A component of a backup."""

    name: str
    outcome: str
    consistency: str | None
    stored_bytes: int
    plain_bytes: int
    milliseconds: int


class Brief(NamedTuple):
    id: str
    kind: str
    sequence: int
    started_at: str
    finished_at: str
    slot: str | None
    outcome: str
    stored_bytes: int
    plain_bytes: int
    parts: Sequence[Part]

    @classmethod
    def of(cls, backup: Manifest) -> Brief:
        parts = [
            Part(one.name, one.outcome, one.consistency, one.stored_bytes, one.plain_bytes, one.milliseconds)
            for one in backup.components
        ]
        return cls(
            backup.id,
            backup.kind,
            backup.sequence,
            backup.started_at,
            backup.finished_at,
            backup.slot,
            backup.outcome,
            backup.stored_bytes,
            backup.plain_bytes,
            parts,
        )

    def component(self, name: str) -> Part | None:
        """The good component of that name."""
        return next((one for one in self.parts if one.name == name and one.outcome != "failed"), None)


class Manifests:
    """Those of one repository, in one directory. Needs no lock, and works on a read-only mount."""

    def __init__(self, directory: Path, repository_id: str) -> None:
        self._directory = directory
        self._repository_id = repository_id
        self._known: dict[str, tuple[tuple[int, ...], Brief | Unreadable]] = {}

    def all(self) -> Catalog[Manifest]:
        found = [self._read(path) for path in self._paths()]
        return Catalog.of(
            [one for one in found if one and not isinstance(one, Unreadable)],
            [one for one in found if isinstance(one, Unreadable)],
        )

    def one(self, backup: str) -> Manifest:
        """Raises NoSuchBackup when it has gone since, and Damaged."""
        try:
            return self._parsed(self._directory / f"{backup}.json")
        except FileNotFoundError as error:
            raise NoSuchBackup(f"read manifest {backup}: it is not there any more") from error

    def briefs(self) -> Catalog[Brief]:
        """Of what is remembered only those are read again of which the file system says that they are others by now."""
        known = {}
        for path in self._paths():
            stamp = _stamp(path)
            former = self._known.get(path.stem)
            if former and former[0] == stamp:
                known[path.stem] = former
            elif (found := self._read(path)) is not None:
                known[path.stem] = stamp, found if isinstance(found, Unreadable) else Brief.of(found)
        self._known = known
        briefs = [one for _, one in known.values()]
        return Catalog.of(
            [one for one in briefs if isinstance(one, Brief)], [one for one in briefs if isinstance(one, Unreadable)]
        )

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("*.json"))

    def _read(self, path: Path) -> Manifest | Unreadable | None:
        """None: it went to the trash since the directory was read."""
        try:
            return self._parsed(path)
        except (Damaged, RepositoryRefused, OSError) as error:
            return Unreadable(path.stem, str(error)) if os.path.lexists(path) else None

    def _parsed(self, path: Path) -> Manifest:
        if path.stat().st_size > manifest.MAXIMUM_BYTES:
            raise Damaged(f"read manifest {path.stem}: {path.stat().st_size} bytes are too many")
        sealed = manifest.parse(path.read_bytes(), path.stem)
        if sealed.id != path.stem or sealed.repository_id != self._repository_id:
            raise Damaged(
                f"read manifest {path.stem}: it is that of {sealed.id} in repository {sealed.repository_id}",
                "Somebody moved or swapped it.",
            )
        return sealed


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
