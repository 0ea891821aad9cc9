"""A weekly archive: one backup in one file, with its manifest first. Nothing of it is unpacked to be read.

It is believed when it was read through once: every file that its manifest names is there, once, with the sealed size and
digest. Where the bytes of each lie is remembered, so that a restore inflates what it needs and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import Damaged
from aquad.core.escape import escaped
from aquad.repository import layout, manifest
from aquad.repository.plain import file_chunks, forget
from aquad.stream import plaintar
from aquad.stream.gzip import inflate
from aquad.stream.stretches import Stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aquad.repository.manifest import FileRecord, Manifest
    from aquad.stream.plaintar import Entry, PlainTar

COMPONENT = "archive"
"""What a weekly backup consists of."""
FILE_NAME = re.compile(r"weekly_backup_\d{4}_week_\d{2}(?:_\d+)?\.tar\.gz")
MANIFEST_NAME = re.compile(rf"manifests/({layout.ID.pattern})\.json")
FOREIGN_BYTES = 64 << 20
"""What nobody wrote into it on purpose is passed over, but not for ever."""


def is_archive(path: Path) -> bool:
    """Whether a file is a weekly archive, by its name or by how it begins."""
    if not os.path.isfile(path):
        return False
    if FILE_NAME.fullmatch(path.name):
        return True
    head = b""
    try:
        for piece in inflate(file_chunks(path), str(path)):
            head += piece
            if len(head) >= plaintar.BLOCK:
                break
    except Damaged:
        return False
    return MANIFEST_NAME.fullmatch(plaintar.first_name(head[: plaintar.BLOCK])) is not None


class Enclosed:
    """The backup in an archive that was read through: where its files lie. `path` says where the archive does."""

    def __init__(
        self, path: Path, backup: Manifest, stored_sha256: str, stretches: Stretches, found: dict[str, Entry]
    ) -> None:
        self.path = path
        self.backup = backup
        self.stored_sha256 = stored_sha256
        """Of the archive itself."""
        self._stretches = stretches
        self._found = found

    @classmethod
    def open(cls, path: Path, advance: Callable[[int], None] = lambda _: None) -> Enclosed:
        """Read all of it. Raises Damaged when a byte of the backup in it is not what was sealed."""
        forget(path)
        name, digest = escaped(str(path)), hashlib.sha256()

        def stored() -> Iterator[bytes]:
            for chunk in file_chunks(path):
                digest.update(chunk)
                advance(len(chunk))
                yield chunk

        stretches = Stretches(lambda offset, length: file_chunks(path, offset, length), name)
        passing = _Pass(plaintar.PlainTar(stretches.scan(stored()), name), name)
        return cls(path, passing.backup, digest.hexdigest(), stretches, passing.found)

    def file(self, path: str) -> EnclosedFile:
        """A file that the manifest names."""
        return EnclosedFile(f"{self.path}: {path}", self._stretches, self._found[path])

    def check(self, file: FileRecord, advance: Callable[[int], None] = lambda _: None) -> None:
        """It was compared when the archive was read through."""


class EnclosedFile(NamedTuple):
    name: str
    stretches: Stretches
    entry: Entry

    def chunks(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        there = max(0, self.entry.size - offset)
        if offset < 0 or (length is not None and length > there):
            raise Damaged(
                f"read {escaped(self.name)}: {length} bytes at {offset}, it has {self.entry.size}",
                "Use another backup, or a copy kept elsewhere.",
            )
        return self.stretches.read(self.entry.offset + offset, there if length is None else length)

    def descriptor(self) -> int | None:
        return None


class _Pass:
    """From the first byte to the last."""

    def __init__(self, tar: PlainTar, name: str) -> None:
        self._tar = tar
        self._name = name
        self._foreign_bytes = 0
        self.found: dict[str, Entry] = {}
        entries = tar.entries()
        self.backup = self._manifest(next(entries, None))
        self._wanted = self._named()
        for entry in entries:
            self._take(entry)
        missing = sorted(self._wanted.keys() - self.found.keys())
        if missing:
            raise self._damaged(missing[0], f"it is not in it, and {len(missing) - 1} others are not")

    def _manifest(self, entry: Entry | None) -> Manifest:
        named = MANIFEST_NAME.fullmatch(entry.path) if entry is not None else None
        if entry is None or named is None:
            first = f"it begins with {escaped(entry.path[:200])}" if entry else "it is empty"
            raise Damaged(f"read {self._name}: {first}, and not with a manifest", "It is no weekly archive of aquad.")
        if entry.size > manifest.MAXIMUM_BYTES:
            raise self._damaged(entry.path, f"{entry.size} bytes are too many")
        backup = manifest.parse(b"".join(self._tar.data(entry)), f"{self._name}: {entry.path}")
        if backup.id != named[1]:
            raise self._damaged(entry.path, f"it is that of {escaped(backup.id)}")
        self._manifest_path = entry.path
        return backup

    def _named(self) -> dict[str, FileRecord]:
        wanted: dict[str, FileRecord] = {}
        for file in self.backup.files():
            if file.path in wanted or file.path == self._manifest_path:
                raise self._damaged(file.path, "the manifest names it twice")
            wanted[file.path] = file
        return wanted

    def _take(self, entry: Entry) -> None:
        if entry.path in self.found or entry.path == self._manifest_path:
            raise self._damaged(entry.path, "it is there twice")
        wanted = self._wanted.get(entry.path)
        if wanted is None:
            self._foreign_bytes += plaintar.BLOCK + entry.size
            if self._foreign_bytes > FOREIGN_BYTES:
                raise self._damaged(
                    entry.path, f"no manifest names it, and more than {FOREIGN_BYTES} bytes of such files"
                )
            for _ in self._tar.data(entry):
                pass
            return
        if entry.size != wanted.stored_bytes:
            raise self._damaged(entry.path, f"{entry.size} bytes, sealed were {wanted.stored_bytes}")
        digest = hashlib.sha256()
        for piece in self._tar.data(entry):
            digest.update(piece)
        if digest.hexdigest() != wanted.stored_sha256:
            raise self._damaged(
                entry.path, f"SHA-256 {digest.hexdigest()[:16]}..., sealed was {escaped(wanted.stored_sha256[:16])}..."
            )
        self.found[entry.path] = entry

    def _damaged(self, path: str, what: str) -> Damaged:
        return Damaged(
            f"read {self._name}: {escaped(path)}: {what}",
            "Use another copy of the archive, or another backup; nothing was changed.",
        )
