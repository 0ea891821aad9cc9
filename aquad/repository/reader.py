"""Reading sealed bytes: for a restore, which must not see a byte that was not sealed, and for verification."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from aquad.core.errors import Damaged, NoSuchBackup
from aquad.core.escape import escaped
from aquad.repository.plain import OnDisk, Plain, Stored, file_chunks, forget, plain
from aquad.stream.artifact import Facts, StoredArtifact, StoredPart
from aquad.stream.gpg.envelope import HEAD_BYTES, is_encrypted
from aquad.stream.gzip import inflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aquad.repository.manifest import ComponentRecord, FileRecord, Manifest
    from aquad.stream.gpg.gpg import Gpg


def check_file(root: Path, file: FileRecord, *, read: bool, advance: Callable[[int], None] = lambda _: None) -> None:
    """Raise Damaged unless the file has the sealed size and, if `read`, the sealed digest."""
    path = root / file.path
    hint = "Use another backup, or a copy kept elsewhere; nothing was changed."
    try:
        status = path.lstat()
    except OSError as error:
        raise Damaged(f"verify {file.path}: {os.strerror(error.errno or 0)}", hint) from error
    if not path.is_file() or path.is_symlink() or status.st_size != file.stored_bytes:
        raise Damaged(f"verify {file.path}: {status.st_size} bytes, sealed were {file.stored_bytes}", hint)
    if read:
        forget(path)
        digest = hashlib.sha256()
        for chunk in file_chunks(path):
            digest.update(chunk)
            advance(len(chunk))
        if digest.hexdigest() != file.stored_sha256:
            raise Damaged(
                f"verify {file.path}: SHA-256 {digest.hexdigest()[:16]}..., sealed was {file.stored_sha256[:16]}...",
                hint,
            )


_LINE = msgspec.json.Decoder(dict[str, str | int | list[int | list[int]] | dict[str, str]])
"""What a line may hold: nothing that is deeper than what can be printed."""


class Place(Protocol):
    """Where the files of a backup lie: in a directory, or in an archive."""

    def file(self, path: str) -> Stored: ...

    def check(self, file: FileRecord, advance: Callable[[int], None] = lambda _: None) -> None:
        """Compare every byte of it with what was sealed. Raises Damaged."""
        ...


class Directory(NamedTuple):
    """The repository on the disk."""

    root: Path

    def file(self, path: str) -> Stored:
        return OnDisk(self.root / path)

    def check(self, file: FileRecord, advance: Callable[[int], None] = lambda _: None) -> None:
        check_file(self.root, file, read=True, advance=advance)


class BackupReader:
    """One good component of one sealed backup. Its files are read whole and compared before this is handed out."""

    sealed = True

    def __init__(
        self, place: Place, backup: Manifest, component: ComponentRecord, gpg: Gpg, origin: str | None = None
    ) -> None:
        self._place = place
        self._component = component
        self.origin = origin or backup.id
        self._files: dict[str, Plain] = {}
        self._indexes: dict[str, Plain] = {}
        for record in component.artifacts:
            parts = [(part.offset, part.length) for part in record.parts]
            is_clear = record.encryption.mode == "off"
            name = record.path if is_clear else record.path.removesuffix(".gpg")
            self._files[name] = plain(place.file(record.path), None if is_clear else gpg, parts)
            if record.index is not None:
                self._indexes[name] = plain(place.file(record.index.path), None if is_clear else gpg)

    def prove(self) -> None:
        """Have gpg open what is encrypted. Raises WrongKey and Damaged."""
        for file in (*self._files.values(), *self._indexes.values()):
            file.prove()

    @property
    def facts(self) -> Facts:
        return self._component.facts

    @property
    def artifacts(self) -> Sequence[StoredArtifact]:
        return [
            StoredArtifact(
                path=name,
                gzip=record.compression == "gzip",
                stored_bytes=record.stored_bytes,
                plain_bytes=record.plain_bytes,
                parts=[StoredPart(p.name, p.offset, p.length, p.plain_bytes, p.facts) for p in record.parts],
                facts=record.facts,
            )
            for name, record in zip(self._files, self._component.artifacts, strict=True)
        ]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._files[path].read(offset, length)

    def descriptor(self, path: str) -> int | None:
        index = self._component.artifacts[list(self._files).index(path)].index
        if index is not None:  # or its rot would say what is to be copied
            self._place.check(index)
        return self._files[path].descriptor()

    def forwards_only(self, path: str) -> bool:
        return self._files[path].forwards_only

    def members(self, path: str) -> Iterator[Mapping[str, Any]] | None:
        return _index_lines(self._indexes[path].read(), path) if path in self._indexes else None


class FileReader:
    """A FILE that is in no manifest: nothing is known of it but its bytes."""

    sealed = False

    def __init__(self, path: Path, gpg: Gpg) -> None:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a file")
            with path.open("rb") as stored:
                encrypted = is_encrypted(stored.read(HEAD_BYTES))
                size = os.fstat(stored.fileno()).st_size
        except OSError as error:
            raise NoSuchBackup(
                f"open {escaped(str(path)[:200])}: {error.strerror}, and no backup has that id",
                "`aquad list` shows what there is.",
            ) from error
        self._file = plain(OnDisk(path), gpg if encrypted else None)
        self._file.prove()
        gzip = b"".join(islice(self._file.read(), 1))[:2] == b"\x1f\x8b"
        self.origin = str(path)
        self.facts: Facts = {}
        self.artifacts: Sequence[StoredArtifact] = [StoredArtifact(path.name, gzip, size, 0, [], {})]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:  # noqa: ARG002 - there is only one
        return self._file.read(offset, length)

    def descriptor(self, path: str) -> int | None:  # noqa: ARG002 - there is only one
        return self._file.descriptor()

    def forwards_only(self, path: str) -> bool:  # noqa: ARG002 - there is only one
        return self._file.forwards_only

    def members(self, path: str) -> Iterator[Mapping[str, Any]] | None:  # noqa: ARG002 - there is only one
        return None


def _index_lines(stored: Iterator[bytes], name: str) -> Iterator[Mapping[str, Any]]:
    rest = b""
    for chunk in inflate(stored, name):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            try:
                member = _LINE.decode(line)
            except ValueError as error:
                raise Damaged(f"read index {name}: a line is not one of an index") from error
            yield member
    if rest:
        raise Damaged(f"read index {name}: its last line has no end")
