"""Backups that are opened for a restore: an ID, `latest`, an id's prefix, or a FILE, and never a byte that was not proved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aquad.core.errors import Damaged, InvalidUse, NoSuchBackup
from aquad.core.escape import escaped
from aquad.repository.enclosed import Enclosed, is_archive
from aquad.repository.reader import BackupReader, Directory, FileReader, check_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aquad.repository.manifest import ArtifactRecord, ComponentRecord, Manifest
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import Reader

    Advance = Callable[[int], None]


def _unwatched(_: int) -> None:
    """Progress that nobody looks at."""


class Shelf:
    """A weekly archive is read through once, however many components come out of it.

    `trusted`: somebody vouches for a FILE that no manifest of this repository names.
    """

    def __init__(self, repository: Repository, *, trusted: bool) -> None:
        self._repository = repository
        self._trusted = trusted
        self._archives: dict[Path, Enclosed] = {}

    def components(self, text: str, advance: Advance = _unwatched) -> list[str]:
        """The good components of an ID, or of an archive. Raises as `open` does."""
        path = _path(text)
        if path is None:
            backup = self._repository.catalog().find(text)
            path = _archive_of(self._repository, backup)
        elif not os.path.exists(path):
            raise NoSuchBackup(
                f"open {escaped(text[:200])}: there is no such file, and no backup has that id",
                "`aquad list` shows what there is.",
            )
        elif not is_archive(path):
            raise InvalidUse(
                f"restore all {escaped(text)}: it is no weekly archive",
                "Say which component it is: restore postgres, configs or volume.",
            )
        if path is not None:
            backup = self._archive(path, advance).backup
        return [component.name for component in backup.components if component.good]

    def open(self, component: str, text: str, advance: Advance = _unwatched) -> Reader:
        """Return it after every byte of it was compared with its manifest.

        Raises NoSuchBackup, Damaged, and InvalidUse for a FILE of no manifest for which nobody vouched.
        """
        with self._repository.reading():  # or what goes to the trash meanwhile would be called damaged
            return self._open(component, text, advance)

    def _open(self, component: str, text: str, advance: Advance) -> Reader:
        path = _path(text)
        if path is None:
            damaged_too = text != "latest"
            catalog = self._repository.catalog() if damaged_too else self._repository.good_catalog()
            return self._sealed(catalog.find(text, component), component, advance)
        if is_archive(path):
            return self._enclosed(path, component, str(path.resolve()), advance)
        return self._file(component, path, advance)

    def _sealed(self, backup: Manifest, component: str, advance: Advance) -> Reader:
        path = _archive_of(self._repository, backup)
        if path is not None:
            return self._enclosed(path, component, backup.id, advance)
        record = _good(backup, component, backup.id)
        place = Directory(self._repository.root)
        for artifact in record.artifacts:
            place.check(artifact, advance)
            if artifact.index is not None:
                place.check(artifact.index)
        reader = BackupReader(place, backup, record, self._repository.gpg)
        reader.prove()
        return reader

    def _enclosed(self, path: Path, component: str, origin: str, advance: Advance) -> Reader:
        enclosed = self._archive(path, advance)
        record = _good(enclosed.backup, component, f"{origin}, an archive of {enclosed.backup.id}")
        reader = BackupReader(enclosed, enclosed.backup, record, self._repository.gpg, origin)
        reader.prove()
        return reader

    def _archive(self, path: Path, advance: Advance) -> Enclosed:
        """An archive of ours, also a copy of one that lies elsewhere; else one for which somebody vouches."""
        if (known := self._archives.get(path.resolve())) is not None:
            return known
        ours = _archives(self._repository)
        at_home = ours.get(path.resolve())
        if at_home is not None:
            check_file(self._repository.root, at_home, read=False)
        elif not self._trusted and path.stat().st_size not in {record.stored_bytes for record in ours.values()}:
            raise _not_ours("anything", path)
        enclosed = Enclosed.open(path.resolve(), advance)
        if at_home is not None and enclosed.stored_sha256 != at_home.stored_sha256:
            raise Damaged(
                f"verify {at_home.path}: SHA-256 {enclosed.stored_sha256[:16]}..., sealed was {at_home.stored_sha256[:16]}...",
                "Use another backup, or a copy kept elsewhere; nothing was changed.",
            )
        if not self._trusted and enclosed.stored_sha256 not in {record.stored_sha256 for record in ours.values()}:
            raise _not_ours("anything", path)
        self._archives[path.resolve()] = enclosed
        return enclosed

    def _file(self, component: str, path: Path, advance: Advance) -> Reader:
        root, absolute = self._repository.root.resolve(), path.resolve()
        name = str(absolute.relative_to(root)) if absolute.is_relative_to(root) else None
        for backup in self._repository.catalog().backups if name else ():
            owner = next((c for c in backup.components for a in c.artifacts if a.path == name), None)
            if owner is not None:
                if owner.name != component:
                    raise InvalidUse(
                        f"restore {component} from {escaped(name or '')}: that file is {owner.name} of {backup.id}"
                    )
                return self._sealed(backup, component, advance)
        reader = FileReader(path, self._repository.gpg)
        if not self._trusted:
            raise _not_ours(component, path)
        return reader


def _path(text: str) -> Path | None:
    return Path(text) if "/" in text or os.path.isfile(text) else None


def _archives(repository: Repository) -> Mapping[Path, ArtifactRecord]:
    """The archives that our manifests name."""
    weeklies = [backup for backup in repository.catalog().backups if backup.kind == "weekly"]
    records = [artifact for backup in weeklies for component in backup.components for artifact in component.artifacts]
    return {(repository.root / record.path).resolve(): record for record in records}


def _archive_of(repository: Repository, backup: Manifest) -> Path | None:
    return repository.root / backup.components[0].artifacts[0].path if backup.kind == "weekly" else None


def _good(backup: Manifest, component: str, where: str) -> ComponentRecord:
    record = backup.component(component)
    if record is None:
        have = ", ".join(escaped(c.name) for c in backup.components if c.good)
        raise NoSuchBackup(
            f"open {component} of {escaped(where)}: it is not in this backup, which has {have}",
            f"`aquad list --component {component}` shows others.",
        )
    return record


def _not_ours(component: str, path: Path) -> InvalidUse:
    return InvalidUse(
        f"restore {component} from {escaped(str(path))}: no manifest of this repository names that file, so nothing proves what is in it",
        "Say --trusted if you know where it comes from.",
    )
