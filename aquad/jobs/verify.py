"""Verification: stored bytes are read again and compared with what was sealed. Restoring for real is a drill, another word.

quick    the files are there, with the sealed size and closed to others
bytes    every stored byte is read, every file has its sealed SHA-256
content  and everything is inflated: the plain digests, the members of archives, the parts of dumps

A verification that could not finish is not a pass: what cannot be read is a problem, and the next backup is looked at.
What is encrypted to a key that is not here is verified as far as its bytes, and the verdict says so.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import xxhash

from aquad.core.errors import Damaged, InvalidUse, RepositoryWriteFailed, WrongKey
from aquad.core.escape import escaped
from aquad.repository.reader import BackupReader, Directory, check_file
from aquad.stream.gzip import inflate
from aquad.stream.tarball.reuse import padding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import ArtifactRecord, Manifest
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import Progress, StoredArtifact

Level = Literal["quick", "bytes", "content"]


class Verdict(NamedTuple):
    backup: str
    level: Level
    """What was reached: less than was asked for where keys are not here."""
    problems: Sequence[str]
    unchecked: Sequence[str]
    """What could not be looked into, and which key it needs."""
    recorded: bool
    """False where the journal could not be written (a read-only mount): the verdict stands, but nobody will remember it."""


def verify(repository: Repository, backups: Sequence[Manifest], level: Level, progress: Progress) -> list[Verdict]:
    """Verify each backup, the bad ones too, and write each verdict into the journal."""
    verdicts = []
    with repository.reading():
        for backup in backups:
            if not os.path.lexists(repository.layout.manifest(backup.id)):
                continue  # it went to the trash since it was chosen
            problems, unchecked = _look(repository, backup, level, progress)
            reached: Level = "bytes" if unchecked and not problems else level
            try:
                outcome = "failed" if problems else "success"
                repository.journal.append(
                    "verified", backup=backup.id, level=reached, outcome=outcome, problems=problems[:20]
                )
                recorded = True
            except RepositoryWriteFailed:  # harmless because the verdict is returned, and says that it was not recorded
                recorded = False
            verdicts.append(Verdict(backup.id, reached, problems, unchecked, recorded))
    return verdicts


def unreadable(catalog: Catalog[Manifest], level: Level) -> list[Verdict]:
    """The verdicts on backups whose manifest is damaged."""
    return [Verdict(one.id, level, [one.reason], [], recorded=False) for one in catalog.unreadable]


def _look(repository: Repository, backup: Manifest, level: Level, progress: Progress) -> tuple[list[str], list[str]]:
    """Problems, and what no key here opens. Digests are compared beside, in a thread of their own."""
    if level != "content":
        progress.stage(backup.id, backup.stored_bytes)
        return _problems(repository.root, backup, level, progress.advance), []
    progress.stage(f"{backup.id}, bytes and content", 2 * backup.stored_bytes)
    over = threading.Event()

    def advance(count: int) -> None:
        if over.is_set():
            raise InvalidUse("verify: ended")
        progress.advance(count)

    with ThreadPoolExecutor(1, "bytes") as pool:
        digests = pool.submit(_problems, repository.root, backup, level, advance)
        try:
            inside, unchecked = _content_problems(repository, backup, progress)
            return digests.result() or inside, unchecked
        finally:
            over.set()


def _problems(root: Path, backup: Manifest, level: Level, advance: Callable[[int], None]) -> list[str]:
    problems = []
    for file in backup.files():
        try:
            check_file(root, file, read=level != "quick", advance=advance)
            mode = stat.S_IMODE((root / file.path).lstat().st_mode)
            if mode & 0o077:
                problems.append(f"verify {file.path}: its mode is {mode:04o}, open to others. Run: chmod 600 on it.")
        except Damaged as error:
            problems.append(str(error))
    return problems


def _content_problems(repository: Repository, backup: Manifest, progress: Progress) -> tuple[list[str], list[str]]:
    """Problems, and what no key here opens."""
    problems, unchecked = [], []
    for component in backup.components:
        reader = BackupReader(Directory(repository.root), backup, component, repository.gpg)
        for artifact, record in zip(reader.artifacts, component.artifacts, strict=True):
            try:
                _check_content(artifact, record, reader, progress)
            except WrongKey as error:
                unchecked.append(error.message)
            except Damaged as error:
                problems.append(str(error))
    return problems, unchecked


def _check_content(artifact: StoredArtifact, record: ArtifactRecord, reader: BackupReader, progress: Progress) -> None:
    members = reader.members(artifact.path)
    if members is not None:
        _check_members(artifact, members, reader, progress)
        return
    digest, total, position = hashlib.sha256(), 0, 0
    for part in artifact.parts:
        name, before = f"{artifact.path}, part {escaped(part.name)}", total
        _expect(name, "offset", part.offset, position)
        for chunk in _plain(artifact, reader, part.offset, part.length):
            digest.update(chunk)
            total += len(chunk)
        _expect(name, "plain bytes", total - before, part.plain_bytes)
        position += part.length
        progress.advance(part.length)
    for chunk in _plain(artifact, reader, position, None):
        digest.update(chunk)
        total += len(chunk)
    _expect(artifact.path, "plain bytes", total, artifact.plain_bytes)
    if record.plain_sha256 is not None:
        _expect(artifact.path, "plain SHA-256", digest.hexdigest(), record.plain_sha256)


def _plain(artifact: StoredArtifact, reader: BackupReader, offset: int, length: int | None) -> Iterator[bytes]:
    stored = reader.read(artifact.path, offset, length)
    return inflate(stored, artifact.path) if artifact.gzip else stored


def _check_members(artifact: StoredArtifact, members: Any, reader: BackupReader, progress: Progress) -> None:
    """Every stretch of the archive belongs to one member, in order; the last is the tar's end of zero blocks."""
    position, total = 0, 0
    counts = {"members": 0, "files": 0}
    for member in members:
        counts["members"] += 1
        counts["files"] += member.get("type") == "file"
        name = f"{artifact.path}, member {escaped(str(member.get('path')))}"
        try:
            pad = member.get("pad", 0)
            _expect(name, "offset", member["offset"], position + pad)
            if pad:
                _expect(name, "padding before it", b"".join(reader.read(artifact.path, position, pad)), padding(pad))
            total += _check_member(reader, artifact.path, name, member)
            position += pad + member["length"]
            progress.advance(member["length"])
        except (KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise Damaged(f"verify {name}: its line in the index is not what aquad writes: {error!r}") from error
    end = b"".join(inflate(reader.read(artifact.path, position), artifact.path))
    if len(end) < 1024 or end.strip(b"\0"):
        raise Damaged(f"verify {artifact.path}: it does not end with two zero blocks")
    _expect(artifact.path, "plain bytes", total + len(end), artifact.plain_bytes)
    for what, count in counts.items():
        if what in artifact.facts:
            _expect(artifact.path, what, count, artifact.facts[what])


def _check_member(reader: BackupReader, path: str, name: str, member: Mapping[str, Any]) -> int:
    stored, content, total, position = xxhash.xxh3_128(), hashlib.sha256(), 0, member["offset"]
    segments = member.get("segments")
    left = sum(length for _, length in segments) if segments is not None else member["size"]
    for offset, length, plain_bytes in member["chunks"]:
        _expect(name, "chunk offset", offset, position)
        position += length
        chunks = list(reader.read(path, offset, length))
        for chunk in chunks:
            stored.update(chunk)
        before = total
        for plain in inflate(chunks, name):
            start = max(0, member["header_bytes"] - total)
            piece = plain[start:][:left]
            left -= len(piece)
            content.update(piece)
            total += len(plain)
        _expect(name, "plain bytes of a chunk", total - before, plain_bytes)
    _expect(name, "stored length", position - member["offset"], member["length"])
    _expect(name, "stored XXH3", stored.hexdigest(), member["stored_xxh3"])
    if member["type"] == "file":
        _expect(name, "SHA-256", content.hexdigest(), member["sha256"])
        _expect(name, "bytes that are missing", left, 0)
    return total


def _expect(name: str, what: str, found: object, sealed: object) -> None:
    if found != sealed:
        raise Damaged(f"verify {name}: {what} {escaped(str(found))}, sealed was {escaped(str(sealed))}")
