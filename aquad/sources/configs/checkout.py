"""The stack's checkout as it stands: what a restore would change in it, and changing it one file at a time.

To look writes nothing: members are compared with their places by the archive's index. What differs is then unpacked beside,
and changes places with what is there, each in one step: whoever dies in between leaves old files and new ones, and of
each that was replaced the old one in `aquad-before-<time>/`. Places are walked to from the root by descriptors, so that
no symlink leads out of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.core.errors import Damaged, RestoreFailed
from aquad.core.escape import escaped
from aquad.stream.tarball.member import KINDS
from aquad.stream.tarball.tree import components, directory_below, exchange, make_like_above
from aquad.stream.tarball.unpack import extract, list_members

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aquad.stream.artifact import Reader, RunContext
    from aquad.stream.tarball.tree import Member, TreeWriter

STAGING = ".aquad-restore-"
KEPT = "aquad-before-"
EMPTY = b".aquad-empty"
NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
PIECE_BYTES = 1 << 20


class Change(NamedTuple):
    """A member of the archive, its place below the root, and what a restore does there.

    `differs`: in what; `replaces`: what is there has to go; `loses_owner`: its owner was another, and we are not root.
    """

    member: Member
    data: Member
    """Whose bytes it has: its own, or of a hard link those of the file."""
    place: tuple[bytes, ...]
    state: Literal["new", "changed", "same"]
    differs: tuple[str, ...] = ()
    replaces: bool = False
    loses_owner: bool = False


def changes(reader: Reader, root: Path, live: int | None) -> list[Change]:
    """What a restore does at each place, parents first. `live`: the root, open; None when it is not there.

    Raises Damaged and RestoreFailed.
    """
    members = {member.name: member for member in list_members(reader, reader.artifacts[0].path)}
    tops = _tops(reader, root)
    found: dict[tuple[bytes, ...], Change] = {}
    for member in members.values():
        data = members.get(b"/".join(components(member.link))) if member.type == "hardlink" else member
        if data is None or member.path[:1] not in tops:
            raise Damaged(f"restore {escaped(member.name)}: the manifest and the index disagree about it")
        place = (*tops[member.path[:1]], *member.path[1:])
        found[place] = _compared(member, data, place, live)  # once, where a listed path lies below another one
    return list(found.values())


def _tops(reader: Reader, root: Path) -> dict[tuple[bytes, ...], tuple[bytes, ...]]:
    """Name in the archive -> place below the root. A symlink above a place may lead about in the root, never out of it."""
    places: dict[str, str] | None = reader.facts.get("paths")
    if places is None:
        raise RestoreFailed(
            f"restore configs from {reader.origin}: no manifest says where its files belong",
            "Restore it with --to DIR and look.",
        )
    top = os.path.realpath(os.fsencode(root))
    tops: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
    for name, relative in places.items():
        parts = components(os.fsencode(relative))
        real = existing = os.path.realpath(os.path.join(top, *parts[:-1]))
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not parts or os.path.commonpath([top, real]) != top or not os.path.isdir(existing):
            raise RestoreFailed(
                f"restore configs to {root / relative}: {escaped(existing)} is in the way",
                "It is no directory below the root: look at it, or restore with --to DIR. Nothing was changed.",
            )
        tops[(os.fsencode(name),)] = (*components(os.path.relpath(real, top)), parts[-1])
    return tops


def _compared(member: Member, data: Member, place: tuple[bytes, ...], live: int | None) -> Change:
    change = Change(member, data, place, "new", loses_owner=not member.owner_can_be_kept)
    if live is None:
        return change
    try:
        with directory_below(live, place[:-1]) as above:
            if os.fstat(above).st_dev != os.fstat(live).st_dev:
                raise RestoreFailed(
                    f"restore configs to {escaped(b'/'.join(place))}: another file system is mounted there",
                    "Restore with --to DIR and copy it. Nothing was changed.",
                )
            status = os.stat(place[-1], dir_fd=above, follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "socket")
            if kind != data.type:
                return change._replace(state="changed", differs=(f"a {kind} is there",), replaces=True)
            differs = tuple(_differences(member, data, status, above, place[-1]))
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return change
        raise
    if differs:
        return change._replace(state="changed", differs=differs, replaces=member.type != "dir")
    other_owner = (status.st_uid, status.st_gid) != (member.uid, member.gid)
    return change._replace(state="same", loses_owner=other_owner and os.geteuid() != 0)


def _differences(member: Member, data: Member, status: os.stat_result, above: int, leaf: bytes) -> Iterator[str]:
    """In what the thing there differs. Times do not count; owners do for root, for nobody else could give them back."""
    mode = stat.S_IMODE(status.st_mode)
    if data.type == "file" and not _same_content(data, status, above, leaf):
        yield "content"
    if data.type == "symlink" and os.readlink(leaf, dir_fd=above) != data.link:
        yield "target"
    if data.type != "symlink" and mode not in {member.mode, member.mode_to_set}:
        yield f"mode {mode:o} becomes {member.mode_to_set:o}"
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (member.uid, member.gid):
        yield f"owner {status.st_uid}:{status.st_gid} becomes {member.uid}:{member.gid}"


def _same_content(data: Member, status: os.stat_result, above: int, leaf: bytes) -> bool:
    """Compare with the index: the digest of the stretches that hold data, and zeros between them."""
    if status.st_size != data.size:
        return False
    digest, position = hashlib.sha256(), 0
    try:
        with opened(leaf, os.O_NOFOLLOW | os.O_NONBLOCK, above) as fd:
            for offset, length in data.line.get("segments", [[0, data.size]]):
                if any(piece.strip(b"\0") for piece in pieces(fd, position, offset)):
                    return False
                for piece in pieces(fd, offset, offset + length):
                    digest.update(piece)
                position = offset + length
    except PermissionError:  # what may not be read is not known to be the same; replaced, it is kept like all else
        return False
    return digest.hexdigest() == data.line.get("sha256")


def replace(reader: Reader, root: Path, found: Sequence[Change], live: TreeWriter, run: RunContext) -> str:
    """Unpack what differs beside, and put it in place. Returns the directory of what was replaced, if anything was.

    Raises Damaged and RestoreFailed, whose hint says where the old is.
    """
    names = {c.member.name for c in found if c.state != "same" and c.member.type != "dir"}
    with _staging(live.root, STAGING + run.timestamp) as staging:
        facts = extract(
            reader,
            reader.artifacts[0].path,
            Path(f"/proc/self/fd/{staging}"),
            only=names.__contains__,
            advance=run.progress.advance,
            cancel=run.cancel,
        )
        live.skipped.extend(facts.skipped)
        kept = _new_directory(live.root, KEPT + run.timestamp) if any(c.replaces for c in found) else ""
        touched = {c.place[:-1] for c in found if c.state != "same"}
        try:
            for change in found:
                if run.cancel.is_set():
                    raise RestoreFailed("restore configs: cancelled")
                _put(change, live, staging, kept)
                if change.member.type == "dir" and (change.state != "same" or change.place in touched):
                    live.add(change.member._replace(path=change.place))
            live.finish()
        except RestoreFailed as error:
            said = f"What was replaced so far is in {root / kept}." if kept else "Nothing was replaced."
            error.hint = f"{error.hint} {said}".strip()
            raise
    return kept


def _put(change: Change, live: TreeWriter, staging: int, kept: str) -> None:
    if change.replaces:
        with live.parent(change.place) as here, live.parent((os.fsencode(kept), *change.place)) as old:
            _swap(change, here, staging, old)
    elif change.state == "new" and change.member.type != "dir":
        with live.parent(change.place) as here, directory_below(staging, change.member.path[:-1]) as beside:
            os.rename(change.member.path[-1], change.place[-1], src_dir_fd=beside, dst_dir_fd=here)


def _swap(change: Change, here: int, staging: int, old: int) -> None:
    """New and old change places in one step where the file system can do that; else the old one goes first."""
    leaf, fresh = change.place[-1], change.member.path[-1]
    with directory_below(staging, change.member.path[:-1], make_like_above) as beside:
        if change.member.type == "dir":  # under its own name lies what is to be in it, which comes by itself
            fresh = EMPTY
            os.mkdir(fresh, 0o700, dir_fd=beside)
        os.rename(fresh, leaf, src_dir_fd=beside, dst_dir_fd=old)
        if not exchange((old, leaf), (here, leaf)):
            os.rename(leaf, fresh, src_dir_fd=old, dst_dir_fd=beside)
            os.rename(leaf, leaf, src_dir_fd=here, dst_dir_fd=old)
            os.rename(fresh, leaf, src_dir_fd=beside, dst_dir_fd=here)


def leftovers(live: int) -> dict[str, list[str]]:
    """What killed restores left: each one's staging directory, and where it kept what it had replaced."""
    names = sorted(os.listdir(live))
    return {
        name: [kept for kept in names if kept.startswith(KEPT + name.removeprefix(STAGING))]
        for name in names
        if name.startswith(STAGING) and stat.S_ISDIR(os.stat(name, dir_fd=live, follow_symlinks=False).st_mode)
    }


@contextlib.contextmanager
def _staging(live: int, name: str) -> Iterator[int]:
    """A directory to unpack into, on the root's own file system. What a killed restore leaves of it, the next one removes."""
    os.mkdir(name, 0o700, dir_fd=live)
    try:
        with opened(name, os.O_DIRECTORY | os.O_NOFOLLOW, live) as fd:
            yield fd
    finally:
        shutil.rmtree(name, dir_fd=live)


def _new_directory(live: int, name: str) -> str:
    """Make it, with a number behind its name if that is taken: what an earlier restore kept is never touched."""
    number, free = 1, name
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(free, 0o700, dir_fd=live)
            return free
        number += 1
        free = f"{name}.{number}"


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int, above: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


def pieces(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (piece := os.pread(fd, min(end - start, PIECE_BYTES), start)):
        start += len(piece)
        yield piece
