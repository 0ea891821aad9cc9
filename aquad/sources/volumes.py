"""Volumes: directories of a service, taken whole by the tar engine, and brought back in place.

A volume that is empty, or has lost nine tenths of its files since the last backup, is more often a missing mount than a
tidy service: refused, so that a good backup is not followed by thirty empty ones.

A restore in place keeps what it replaces in the repository's `aside/`, and only then touches the volume: all of it, or with
`only` the files that fit. Nothing is followed out of the volume, and no file system below it is entered.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import shutil
import stat
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.core.errors import AquadError, Damaged, InvalidUse, RestoreFailed, SourceFailed
from aquad.core.escape import escaped
from aquad.stream.artifact import Finding, Step, Taken
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.reuse import opened
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.tree import directory_below, owners_lost
from aquad.stream.tarball.unpack import extract, list_members, refuse_unless_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aquad.stream.artifact import Facts, RawFile, Reader, RunContext, Sink

LOST_TENTHS = 9


class VolumeTarget(NamedTuple):
    """`to`: an empty or missing directory, None for the volume's own place. `only`: a pattern for paths below it.

    `aside`: where the old content is archived before it is replaced, by the restore's timestamp; needed when `to` is None.
    """

    to: Path | None = None
    only: str | None = None
    aside: Callable[[str], RawFile] | None = None


class _Chosen(NamedTuple):
    """What is to be written. `paths`: with a pattern, each path that fits it, and whether a directory is to be there."""

    members: int
    disk_bytes: int
    losing_owners: int
    paths: Mapping[tuple[bytes, ...], bool]


class _There(NamedTuple):
    """What stands where that is to be written: what is replaced; with a pattern its size, and directories that are missing."""

    replaced: Sequence[Root] = ()
    disk_bytes: int = 0
    missing: frozenset[bytes] = frozenset()


class Volume:
    def __init__(
        self,
        *,
        name: str,
        path: Path,
        quiesce: Literal["none", "live"],
        may_shrink: bool,
        accepted: bool,
        service: str = "",
    ) -> None:
        """`service`: who writes it, for messages."""
        self.component = name
        self._path = path
        self._quiesce = quiesce
        self._may_shrink = may_shrink
        self._accepted = accepted
        self._writer = service or "the service that writes it"

    def check(self) -> list[Finding]:
        if not self._path.is_dir():
            return [
                Finding("error", self.component, f"{self._path} is not there", "Mount it there, or change its path.")
            ]
        if not os.access(self._path, os.R_OK | os.X_OK):
            return [
                Finding("error", self.component, f"{self._path} cannot be read", "Give aquad the right to read it.")
            ]
        if self._quiesce == "live":
            return [
                Finding(
                    "warning",
                    self.component,
                    "is read while it is written",
                    "Such a copy never counts as a consistent backup of its service.",
                )
            ]
        return [Finding("ok", self.component, f"{self._path} can be read")]

    def size_bytes(self) -> int:
        """Bytes on disk today. Raises SourceFailed."""
        if not self._path.is_dir():
            raise SourceFailed(f"measure {self._path}: there is no such directory")
        return _disk_bytes(self._path)

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:
        if not self._path.is_dir():
            raise SourceFailed(f"read volume {self.component}: {self._path} is not there", "Is the volume mounted?")
        out = sink.raw(f"volumes_{run.timestamp}/{self.component}.tar.gz", indexed=True)
        damage: list[str] = []
        with opened(previous if out.is_clear else None, damage) as former:
            tree = write_tree(
                [Root(self._path, b".")],
                out,
                advance=run.progress.advance,
                cancel=run.cancel,
                reusable=out.is_clear,
                former=former,
            )
        warnings = self._shrunk(tree.files, previous)
        facts: Facts = {**tree._asdict(), "quiesce": self._quiesce}
        out.finish(plain_bytes=tree.tar_bytes, facts=facts)
        if tree.changed_count:
            warnings.append(f"{tree.changed_count} files changed while they were read: {'; '.join(tree.changed[:5])}")
        if self._quiesce == "live":
            warnings.append("it was read while it was written: this is no consistent backup of its service")
        notes = [*tree.skipped, *(f"{path}: longer than GNU tar can restore; aquad can" for path in tree.long_paths)]
        if tree.grown:
            notes.append(f"{tree.grown} files grew while they were read, and are stored at their first size")
        return Taken("live" if self._quiesce == "live" else "files", facts, warnings, notes, damage)

    def _shrunk(self, files: int, previous: Reader | None) -> list[str]:
        before = int(previous.facts.get("files", 0)) if previous else 0
        if self._accepted or (files and files * 10 > before * (10 - LOST_TENTHS)):
            return []
        what = f"{files} files, {before} last time" if before else "it is empty"
        if self._may_shrink:
            return [what]
        if not before and previous:
            return []
        raise SourceFailed(
            f"read volume {self.component} at {self._path}: {what}",
            f"Is it mounted? If this is right: aquad accept {self.component}",
        )

    def plan_restore(self, reader: Reader, target: VolumeTarget) -> list[Step]:
        where, chosen = target.to or self._path, self._chosen(reader, target.only)
        text, owners = f"write {chosen.members} members into {where}", owners_lost(chosen.losing_owners)
        if target.to is not None:
            refuse_unless_empty(where, self.component)
            return [Step(text, needs_bytes=chosen.disk_bytes, on_path=str(where), warning=owners)]
        there = self._there(chosen, target)
        steps, overwrites = [], ""
        if there.replaced:
            what = f"{len(there.replaced)} files of {where}" if target.only else f"what is in {where}"
            steps.append(Step(f"archive {what} into aside/ of the repository (dropped by `aquad restore discard`)"))
        if there.replaced and target.only:
            overwrites = f"files that fit {target.only} in {where}"
        elif there.replaced:
            steps.append(Step(f"empty {where}", overwrites=f"volume {self.component} at {where}"))
        warnings = [
            "" if where.is_dir() else f"{where} is not there, and will be made: is the volume mounted?",
            "" if not where.is_dir() or _writable(where) else f"{where} cannot be written: is it mounted read-only?",
            f"stop {self._writer} first" if there.replaced or target.only else "",
            owners,
        ]
        freed = there.disk_bytes if target.only else _disk_bytes(where)
        needs = max(0, chosen.disk_bytes - freed)
        return [*steps, Step(text, overwrites, needs, str(where), "; ".join(filter(None, warnings)))]

    def restore(self, reader: Reader, target: VolumeTarget, run: RunContext) -> Facts:
        where, whole = target.to or self._path, target.only is None
        chosen = None if whole else self._chosen(reader, target.only)
        there = self._there(chosen, target)
        fits = _fits(target.only)
        try:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RestoreFailed(f"restore {self.component} to {where}: {error}", "Is it mounted writable?") from error
        if not _writable(where):
            raise RestoreFailed(
                f"restore {self.component} to {where}: it cannot be written",
                "Is it mounted read-only? Nothing was changed.",
            )
        aside = self._set_aside(there.replaced, target, run) if there.replaced else ""
        try:
            if there.replaced and whole:
                _empty(where)
            facts = extract(
                reader,
                reader.artifacts[0].path,
                where,
                only=None if whole else lambda name: fits(name) or name in there.missing,
                advance=run.progress.advance,
                cancel=run.cancel,
            )
        except OSError as error:
            raise RestoreFailed(f"restore {self.component}: {error}", _half_done(where, aside)) from error
        except (RestoreFailed, Damaged) as error:
            error.hint = f"{error.hint} {_half_done(where, aside)}".strip()
            raise
        return {**facts._asdict(), "to": str(where), "aside": aside}

    def _chosen(self, reader: Reader, only: str | None) -> _Chosen:
        """Read the whole index. Raises Damaged, and RestoreFailed when nothing fits."""
        fits, paths = _fits(only), {}
        count = size = losing = 0
        for member in list_members(reader, reader.artifacts[0].path):
            if fits(member.name):
                count, size = count + 1, size + member.disk_bytes
                losing += not member.owner_can_be_kept
                if only is not None:
                    paths[member.path] = member.type == "dir"
        if only is not None and not paths:
            raise RestoreFailed(
                f"restore {self.component}: no path fits {escaped(only)!r}",
                "Patterns are as in a shell, below the volume: 'topics/*'. Nothing was changed.",
            )
        return _Chosen(count, size, losing, paths)

    def _there(self, chosen: _Chosen | None, target: VolumeTarget) -> _There:
        """Look at what would be replaced. Raises RestoreFailed where it could not be, and for mounts that would be emptied."""
        where = target.to or self._path
        try:
            if chosen is not None and target.only is not None:
                return _standing(where, chosen.paths)
            if target.to is not None or not os.path.lexists(where) or not os.listdir(where):
                return _There()
        except OSError as error:
            raise RestoreFailed(
                f"restore {self.component} to {where}: {escaped(str(error))}",
                "Something is in the way: look at it, or restore with --to DIR. Nothing was changed.",
            ) from error
        for point in _mounts_below(where):
            raise RestoreFailed(
                f"restore {self.component}: {escaped(point)} is a mount below {where}",
                "It would be emptied, and is in no backup of this volume: unmount it, or restore with --to DIR. Nothing was changed.",
            )
        return _There([Root(where, b".")])

    def _set_aside(self, roots: Sequence[Root], target: VolumeTarget, run: RunContext) -> str:
        """Archive what will be replaced; nothing was replaced before this returns."""
        if target.aside is None:
            raise RestoreFailed(f"restore {self.component}: nowhere to keep what is in {self._path}")
        try:
            with contextlib.ExitStack() as unfinished:
                out = target.aside(run.timestamp)
                unfinished.callback(out.abandon)
                tree = write_tree(roots, out, advance=run.progress.advance, cancel=run.cancel)
                if tree.changed_count or tree.grown:
                    raise RestoreFailed(
                        f"restore {self.component}: files changed while they were set aside: {'; '.join(tree.changed[:5])}",
                        f"Stop {self._writer}.",
                    )
                out.finish(plain_bytes=tree.tar_bytes, facts={})
                unfinished.pop_all()
        except AquadError as error:
            error.hint = f"{error.hint} Nothing in {self._path} was changed.".strip()
            raise
        return f"aside/{run.timestamp}/{self.component}.tar.gz"


def _half_done(where: Path, aside: str) -> str:
    return f"{where} is incomplete now." + (f" What it replaced is in {aside} of the repository." if aside else "")


def _writable(where: Path) -> bool:
    return os.access(where, os.W_OK | os.X_OK, effective_ids=True)


def _fits(pattern: str | None) -> Callable[[bytes], bool]:
    """Whether a path fits, or a directory above it does. Raises InvalidUse for a pattern of nothing."""
    if pattern is None:
        return lambda _: True
    wanted = os.fsencode(pattern).removeprefix(b"./").strip(b"/")
    if not wanted:
        raise InvalidUse("restore --only: the pattern is empty", "Leave --only out to restore all of the volume.")

    def fits(name: bytes) -> bool:
        parts = name.split(b"/") if name else []
        above = (b"/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        return any(path == wanted or fnmatch.fnmatchcase(path, wanted) for path in above)

    return fits


def _standing(where: Path, paths: Mapping[tuple[bytes, ...], bool]) -> _There:
    """What stands at these paths. Raises OSError when something else is where a directory must be, or the reverse."""
    directories = {path[:depth] for path in paths for depth in range(1, len(path))}
    directories |= {path for path, is_directory in paths.items() if is_directory}
    if not os.path.lexists(where):
        return _There(missing=frozenset([b"", *map(b"/".join, directories)]))
    replaced, size, missing = [], 0, set()
    top = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in directories:
            with contextlib.suppress(FileNotFoundError), directory_below(top, path):
                continue
            missing.add(path)
        for path in sorted(paths.keys() - directories):
            with contextlib.suppress(FileNotFoundError), directory_below(top, path[:-1]) as above:
                status = os.stat(path[-1], dir_fd=above, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path[-1])
                if not stat.S_ISSOCK(status.st_mode):
                    name = b"/".join(path)
                    replaced.append(Root(where / os.fsdecode(name), b"./" + name))
                    size += status.st_blocks * 512
    finally:
        os.close(top)
    return _There(replaced, size, frozenset(map(b"/".join, missing)))


def _mounts_below(directory: Path) -> Iterator[str]:
    """Mount points by proc_pid_mountinfo(5), for a bind mount has the device of what is around it."""
    top = os.path.realpath(directory)
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))
            if point.startswith(f"{top}/"):
                yield point


def _empty(directory: Path) -> None:
    """Remove what is in it, not the directory itself: it may be a mount point. Symlinks are removed, not followed."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _disk_bytes(top: Path) -> int:
    """What is in it takes on the disk, a file of several names once; an estimate, for it may change meanwhile."""
    found = (_status(os.path.join(above, name)) for above, _, names in os.walk(top) for name in names)
    files = {(status.st_dev, status.st_ino): status.st_blocks * 512 for status in found if status}
    return sum(files.values())


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:  # harmless because this is for an estimate, and the file is gone
        return None
