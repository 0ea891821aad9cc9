"""The repository on the local disk: the only writer of it, and the protocol that makes a backup exist all at once.

begin -> files, each fsynced -> `names.json` -> renames to the final names -> fsync of the directories -> manifest last.
A process or a power supply that dies anywhere in between leaves a draft, and no backup. Whoever writes holds the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from aquad.core.clock import Clock, to_text
from aquad.core.errors import RepositoryRefused
from aquad.repository import grounds, layout, lock, manifest, recovery
from aquad.repository import marker as markers
from aquad.repository.draft import AsideArtifact, Draft
from aquad.repository.encryption import Encryption, choose
from aquad.repository.hashed import HashedFile
from aquad.repository.history import History
from aquad.repository.manifests import Manifests
from aquad.repository.marker import Marker
from aquad.repository.trash import NAMES, Trash, drop, sync_parents
from aquad.storage import files
from aquad.storage.journal import Journal
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo
    from pathlib import Path

    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import Manifest
    from aquad.stream.gpg.gpg import Mode


class Repository:
    """Made by `open`: then the directory was seen to be ours."""

    def __init__(
        self,
        root: Path,
        marker: Marker,
        clock: Clock,
        zone: tzinfo,
        gpg: Gpg | None,
        wanted_encryption: str = "",
        by: str = "",
    ) -> None:
        self.root = root
        self.marker = marker
        self.layout = layout.Layout(root)
        self.journal = Journal(self.layout.journal, clock, by)
        self.gpg = gpg or Gpg(Keys())
        self.encryption = Encryption.of(marker, self.gpg, wanted_encryption)
        self.clock = clock
        self.trash = Trash(self.layout)
        self.manifests = Manifests(self.layout.manifests, marker.id)
        self._zone = zone

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        stack: str,
        clock: Clock,
        zone: tzinfo,
        gpg: Gpg | None = None,
        wanted_encryption: str = "",
        by: str = "",
    ) -> Repository:
        """`wanted_encryption`: of the settings; empty when they leave it to the marker. `by`: who, for the journal.

        Raises RepositoryRefused: missing, not mounted, open to others, foreign, of another stack, or of a newer format.
        """
        marker = grounds.recognised(root, stack)
        return cls(root, marker, clock, zone, gpg, wanted_encryption, by)

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        stack: str,
        encryption: Mode,
        clock: Clock,
        zone: tzinfo,
        gpg: Gpg | None = None,
        by: str = "",
    ) -> Repository:
        """Make a new repository in a missing or empty directory; going on after a death half-way. The marker comes last.

        Raises RepositoryRefused; WrongKey before anything is made.
        """
        where = layout.Layout(root)
        if where.marker.exists():
            raise RepositoryRefused(
                f"init {root}: it is a repository already ({markers.read(where.marker).id})",
                "`aquad status` shows what is in it.",
            )
        gpg = gpg or Gpg(Keys())
        record, probe = choose(encryption, gpg)
        grounds.prepare(root)
        marker = Marker(
            id=str(uuid.uuid4()),
            format=layout.FORMAT,
            stack=stack,
            created_at=to_text(clock.now()),
            encryption=record,
            probe=probe,
        )
        markers.write(where.marker, marker)
        repository = cls(root, marker, clock, zone, gpg, by=by)
        repository.journal.append("repository_created", repository=marker.id, encryption=record.model_dump())
        return repository

    def change_encryption(self, mode: Mode) -> None:
        """Encrypt new backups otherwise from now on; those that are there stay as they are. The caller holds the lock."""
        record, probe = choose(mode, self.gpg)
        self.marker = self.marker.model_copy(update={"encryption": record, "probe": probe})
        markers.write(self.layout.marker, self.marker)
        self.encryption = Encryption.of(self.marker, self.gpg, mode)
        self.journal.append("encryption_changed", encryption=record.model_dump())

    @contextmanager
    def writing(self, *, run_id: str, command: str, wait_seconds: float = 0.0) -> Iterator[int]:
        """Hold the lock and tidy up after dead runs. Yields the lock's descriptor, for children to inherit."""
        holder = {"run": run_id, "command": command, "pid": str(os.getpid()), "since": to_text(self.clock.now())}
        with lock.exclusive(self.layout.lock, holder=holder, wait_seconds=wait_seconds) as fd:
            self.recover()
            yield fd

    @contextmanager
    def reading(self, wait_seconds: float = 60.0) -> Iterator[int | None]:
        """Nothing is removed meanwhile. Raises LockHeld when somebody removes for longer than that."""
        with lock.shared(self.layout.readers_lock, wait_seconds=wait_seconds) as fd:
            yield fd

    def spend_reserve(self) -> None:
        """Before something is removed from a disk that is full."""
        grounds.spend_reserve(self.root)

    @contextmanager
    def removing(self, wait_seconds: float) -> Iterator[None]:
        """Wait for all readers, and keep others out. The caller holds the lock for writing."""
        holder = {"command": "prune", "pid": str(os.getpid()), "since": to_text(self.clock.now())}
        with lock.exclusive(self.layout.readers_lock, holder=holder, wait_seconds=wait_seconds):
            yield

    def catalog(self) -> Catalog[Manifest]:
        """Read every manifest. Needs no lock, also works on a read-only mount."""
        return self.manifests.all()

    def good_catalog(self) -> Catalog[Manifest]:
        """Without the backups of which the journal says that they are damaged."""
        return self.catalog().without(History.of(self.journal.entries()).damaged)

    def begin(self, kind: str) -> Draft:
        """Start a draft under a name that nothing has or ever had: if this second is taken, the next free one."""
        where = self.layout
        taken = {
            path.name[:15] for directory in (where.manifests, where.trash, where.drafts) for path in directory.iterdir()
        }
        roots = " ".join(os.listdir(self.root))
        moment = self.clock.now()
        taken |= {entry["backup"][:15] for entry in self.journal.entries() if entry["event"] == "backup_taken"}
        while (stamp := layout.timestamp(moment, self._zone)) in taken or stamp in roots:
            moment += timedelta(seconds=1)
        return Draft(self.layout, f"{stamp}_{kind}", self.encryption)

    def next_sequence(self) -> int:
        """Higher than that of any backup there ever was, also of those that are gone."""
        given = [int(entry["sequence"]) for entry in self.journal.entries() if "sequence" in entry]
        return max([0, *given, *(m.sequence for m in self.catalog().backups)]) + 1

    def seal(self, draft: Draft, unsealed: Manifest) -> Manifest:
        """Make the draft a backup. Raises RepositoryWriteFailed; then recovery finds the draft."""
        rendered = manifest.render(unsealed)
        sealed = manifest.parse(rendered, draft.id)
        promised = _top_names(draft)
        record = {
            "names": promised,
            "files": [
                {"path": f.path, "stored_bytes": f.stored_bytes, "stored_sha256": f.stored_sha256}
                for f in sealed.files()
            ],
        }
        draft.sync_directories()
        files.replace(draft.path / NAMES, json.dumps(record, indent=1).encode())
        for name in promised:
            if os.path.lexists(self.root / name):
                raise RepositoryRefused(
                    f"seal {draft.id}: {name} exists already", "Somebody put it there meanwhile: move it away."
                )
            files.rename(draft.path / name, self.root / name)
        sync_parents(self.root, promised)
        draft_manifest = draft.path / "manifest.json"
        draft.write_file(draft_manifest.name, rendered)
        files.rename(draft_manifest, self.layout.manifest(draft.id))
        files.sync_directory(self.layout.manifests)
        self.journal.append(
            "backup_sealed", backup=draft.id, sequence=sealed.sequence, manifest_sha256=sealed.manifest_sha256
        )
        self._drop(draft.path)
        return sealed

    def abandon(self, draft: Draft) -> None:
        """Remove a draft that will not be sealed: its run knows that it failed, and says so."""
        self._drop(draft.path)

    def aside(self, stamp: str, name: str) -> AsideArtifact:
        """A file for what a restore replaces: `aside/<timestamp>/<name>.tar.gz`; never counted as a backup.

        Until it is finished its name ends in `.unfinished`, so that nobody takes a part of it for all.
        """
        directory, file = self.layout.aside / stamp, self.encryption.name(f"{name}.tar.gz")
        if os.path.lexists(directory / file):
            raise RepositoryRefused(
                f"keep aside {name}: {directory} holds one of this very second already", "Wait a second, and try again."
            )
        if not directory.is_dir():
            files.make_directory(directory)
            files.sync_directory(self.layout.aside)
        return AsideArtifact(HashedFile(directory, f"{file}.unfinished", self.encryption.cipher), directory)

    def discard_aside(self, stamp: str) -> None:
        """Remove what one restore kept aside."""
        self._drop(self.layout.aside / stamp)

    def recover(self) -> list[recovery.Rescue]:
        """Record dead runs as interrupted and move their leavings to the trash. May be killed and called again."""
        marker = files.unfinished(self.layout.marker)
        if os.path.lexists(marker):  # left by a change of the encryption
            files.remove(marker)
        grounds.complete(self.root)
        grounds.keep_reserve(self.root)
        self.trash.finish(self._owned)
        dead = recovery.interrupted(self.journal.entries())
        left = [
            recovery.Left(path.name, _promised(path)) for path in sorted(self.layout.drafts.iterdir()) if _is_free(path)
        ]
        if not dead and not left:
            return []
        sealed = [path.stem for path in self.layout.manifests.glob("*.json")]
        below = [f"{top}/{name}" for top in layout.SHARED for name in os.listdir(self.root / top)]
        present = [*os.listdir(self.root), *below]
        decisions = recovery.decide(left, sealed, self._owned(), present)
        for rescue in decisions:
            self._carry_out(rescue)
        for run in dead:
            self.journal.append(
                "run_ended",
                **{key: run[key] for key in ("run", "job", "slot", "attempt", "wants") if key in run},
                outcome="interrupted",
                reason="the process died",
            )
        return decisions

    def _owned(self) -> list[str]:
        """The top-level names that belong to living backups."""
        return [layout.top(file.path) for backup in self.catalog().backups for file in backup.files()]

    def _carry_out(self, rescue: recovery.Rescue) -> None:
        draft = self.layout.drafts / rescue.id
        if rescue.sealed:
            self._drop(draft)
            return
        bin_ = self.layout.trash / rescue.id
        if not bin_.is_dir():
            files.make_directory(bin_)
            files.sync_directory(self.layout.trash)
        for name in rescue.move:
            files.rename(self.root / name, _free_name(bin_ / name.rpartition("/")[2]))
        sync_parents(self.root, rescue.move)
        files.rename(draft, _free_name(bin_ / "draft"))
        files.sync_directory(bin_)
        files.sync_directory(self.layout.drafts)
        self.journal.append("draft_to_trash", draft=rescue.id, moved=list(rescue.move), reason=rescue.reason)

    def _drop(self, top: Path) -> None:
        drop(top)
        files.sync_directory(top.parent)


def _top_names(draft: Draft) -> list[str]:
    names = [name for name in os.listdir(draft.path) if name not in {*layout.SHARED, NAMES}]
    below = [
        f"{top}/{name}" for top in layout.SHARED if (draft.path / top).is_dir() for name in os.listdir(draft.path / top)
    ]
    return sorted([*names, *below])


def _promised(draft: Path) -> list[str]:
    """The names in a dead draft's `names.json`; none when it never got so far. It was put in place whole."""
    try:
        return [str(name) for name in json.loads((draft / NAMES).read_bytes())["names"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # nothing was renamed before names.json stood there, so there is nothing to move but the draft


def _is_free(draft: Path) -> bool:
    fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _free_name(path: Path) -> Path:
    """Return `path`, or with a number behind it if that is taken (by a recovery that was killed)."""
    candidate, number = path, 2
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate
