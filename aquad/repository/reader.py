"""Reading sealed bytes: for a restore, which must not see a byte that was not sealed, and for verification."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from aquad.core.errors import Damaged, NoSuchBackup
from aquad.core.escape import escaped
from aquad.stream.artifact import Facts, StoredArtifact, StoredPart
from aquad.stream.gzip import inflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aquad.repository.manifest import ComponentRecord, FileRecord, Manifest

READ_BYTES = 1 << 20


def file_chunks(path: Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield bytes of a file. Raises Damaged when it is missing, unreadable, or ends before `length`."""
    try:
        with path.open("rb", buffering=0) as stored:
            stored.seek(offset)
            left = length
            while left is None or left > 0:
                chunk = stored.read(READ_BYTES if left is None else min(READ_BYTES, left))
                if not chunk:
                    break
                if left is not None:
                    left -= len(chunk)
                yield chunk
    except OSError as error:
        raise Damaged(
            f"read {path}: {os.strerror(error.errno or 0)}", "Use another backup, or a copy kept elsewhere."
        ) from error
    if left:
        raise Damaged(
            f"read {path}: {left} bytes are missing at its end", "Use another backup, or a copy kept elsewhere."
        )


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


def forget(path: Path, offset: int = 0, length: int = 0) -> None:
    """Take a stretch of a file (0: to its end) out of the page cache, so that it is read from the disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # harmless because reading it says the same, with its name
        return
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class BackupReader:
    """One good component of one sealed backup. Its files are read whole and compared before this is handed out."""

    sealed = True

    def __init__(self, root: Path, backup: Manifest, component: ComponentRecord) -> None:
        self._root = root
        self._component = component
        self.origin = backup.id

    @property
    def facts(self) -> Facts:
        return self._component.facts

    @property
    def artifacts(self) -> Sequence[StoredArtifact]:
        return [
            StoredArtifact(
                path=record.path,
                gzip=record.compression == "gzip",
                stored_bytes=record.stored_bytes,
                plain_bytes=record.plain_bytes,
                parts=[StoredPart(p.name, p.offset, p.length, p.plain_bytes, p.facts) for p in record.parts],
                facts=record.facts,
            )
            for record in self._component.artifacts
        ]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return file_chunks(self._root / path, offset, length)

    def members(self, path: str) -> Iterator[Mapping[str, Any]] | None:
        record = next(r for r in self._component.artifacts if r.path == path)
        return _index_lines(self._root / record.index.path) if record.index else None


class FileReader:
    """A FILE that is in no manifest: nothing is known of it but its bytes."""

    sealed = False

    def __init__(self, path: Path) -> None:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a file")
            with path.open("rb") as stored:
                gzip = stored.read(2) == b"\x1f\x8b"
                size = os.fstat(stored.fileno()).st_size
        except OSError as error:
            raise NoSuchBackup(
                f"open {escaped(str(path)[:200])}: {error.strerror}, and no backup has that id",
                "`aquad list` shows what there is.",
            ) from error
        self._path = path
        self.origin = str(path)
        self.facts: Facts = {}
        self.artifacts: Sequence[StoredArtifact] = [StoredArtifact(path.name, gzip, size, 0, [], {})]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:  # noqa: ARG002 - there is only one
        return file_chunks(self._path, offset, length)

    def members(self, path: str) -> Iterator[Mapping[str, Any]] | None:  # noqa: ARG002 - there is only one
        return None


def _index_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    rest = b""
    for chunk in inflate(file_chunks(path), path.name):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            try:
                member = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Damaged(f"read index {path.name}: a line is not JSON") from error
            if not isinstance(member, dict):
                raise Damaged(f"read index {path.name}: a line is not an object")
            yield member
    if rest:
        raise Damaged(f"read index {path.name}: its last line has no end")
