"""Volumes: directories of a service, taken whole by the tar engine, and brought back in place.

A volume that is empty, or has lost nine tenths of its files since the last backup, is more often a missing mount than a
tidy service: refused, so that a good backup is not followed by thirty empty ones.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.core.errors import RestoreFailed, SourceFailed
from aquad.core.escape import escaped
from aquad.stream.artifact import Finding, Step, Taken
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.unpack import extract, list_members

if TYPE_CHECKING:
    from collections.abc import Callable
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


class Volume:
    def __init__(
        self, *, name: str, path: Path, quiesce: Literal["none", "live"], may_shrink: bool, accepted: bool
    ) -> None:
        self.component = name
        self._path = path
        self._quiesce = quiesce
        self._may_shrink = may_shrink
        self._accepted = accepted

    def check(self) -> list[Finding]:
        if not self._path.is_dir():
            return [
                Finding(
                    "error", self.component, f"{self._path} is not there", "Mount the volume there, or change its path."
                )
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
        return sum(_blocks(os.path.join(above, name)) for above, _, names in os.walk(self._path) for name in names)

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:
        if not self._path.is_dir():
            raise SourceFailed(f"read volume {self.component}: {self._path} is not there", "Is the volume mounted?")
        out = sink.raw(f"volumes_{run.timestamp}/{self.component}.tar.gz", indexed=True)
        tree = write_tree([Root(self._path, b".")], out, advance=run.progress.advance, cancel=run.cancel)
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
        return Taken("live" if self._quiesce == "live" else "files", facts, warnings, notes)

    def _shrunk(self, files: int, previous: Reader | None) -> list[str]:
        before = int(previous.facts.get("files", 0)) if previous else 0
        if files and files * 10 > before * (10 - LOST_TENTHS):
            return []
        what = f"{files} files, {before} last time" if before else "it is empty"
        if self._accepted:
            return []
        if self._may_shrink:
            return [what]
        if not before and previous:
            return []
        raise SourceFailed(
            f"read volume {self.component} at {self._path}: {what}",
            f"Is it mounted? If this is right: aquad accept {self.component}",
        )

    def plan_restore(self, reader: Reader, target: VolumeTarget) -> list[Step]:
        artifact = reader.artifacts[0]
        where = target.to or self._path
        chosen = [m for m in list_members(reader, artifact.path) if _fits(target.only)(m.name)]
        if target.only and not chosen:
            raise RestoreFailed(
                f"restore {self.component}: no path fits {escaped(target.only)!r}",
                "Patterns are as in a shell, below the volume: 'topics/*'.",
            )
        size = sum(member.size for member in chosen if "segments" not in member.line)
        if target.to is not None:
            if target.only is None and where.exists() and any(where.iterdir()):
                raise RestoreFailed(
                    f"restore {self.component} to {where}: there is something in it",
                    "Choose an empty directory. Nothing was changed.",
                )
            return [Step(f"write {len(chosen)} members into {where}", needs_bytes=size, on_path=str(where))]
        steps = []
        old = os.listdir(where) if where.is_dir() else []
        if target.only is None and old:
            steps.append(
                Step(f"archive what is in {where} into aside/ of the repository (dropped by `aquad restore discard`)")
            )
            steps.append(Step(f"empty {where}", overwrites=f"volume {self.component} at {where}"))
        text = f"write {len(chosen)} members into {where}"
        steps.append(
            Step(
                text,
                overwrites=f"files that fit {target.only} in {where}" if target.only else "",
                needs_bytes=0 if old else size,
                on_path=str(where),
                warning="stop the service that writes it first" if old else "",
            )
        )
        return steps

    def restore(self, reader: Reader, target: VolumeTarget, run: RunContext) -> Facts:
        where = target.to or self._path
        try:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            if target.to is None and target.only is None and any(where.iterdir()):
                self._set_aside(where, target, run)
                _empty(where)
        except OSError as error:
            raise RestoreFailed(f"restore {self.component} to {where}: {error}", "Is it mounted writable?") from error
        only = _fits(target.only) if target.only else None
        facts = extract(
            reader, reader.artifacts[0].path, where, only=only, advance=run.progress.advance, cancel=run.cancel
        )
        expected = reader.facts.get("files")
        if only is None and expected is not None and facts.files + _hard_links(reader) < expected:
            raise RestoreFailed(
                f"restore {self.component} to {where}: {facts.files} files were written, {expected} were sealed"
            )
        return {**facts._asdict(), "to": str(where)}

    def _set_aside(self, where: Path, target: VolumeTarget, run: RunContext) -> None:
        if target.aside is None:
            raise RestoreFailed(f"restore {self.component}: nowhere to keep what is in {where}")
        out = target.aside(run.timestamp)
        tree = write_tree([Root(where, b".")], out, advance=run.progress.advance, cancel=run.cancel)
        out.finish(plain_bytes=tree.tar_bytes, facts={})


def _fits(pattern: str | None) -> Callable[[bytes], bool]:
    if pattern is None:
        return lambda _: True
    wanted = os.fsencode(pattern)
    return lambda name: fnmatch.fnmatchcase(name, wanted) or name.startswith(wanted.rstrip(b"/") + b"/")


def _hard_links(reader: Reader) -> int:
    return sum(1 for member in list_members(reader, reader.artifacts[0].path) if member.type == "hardlink")


def _empty(directory: Path) -> None:
    """Remove what is in it, not the directory itself: it may be a mount point. Symlinks are removed, not followed."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:  # harmless because this is an estimate, and the file is gone
        return 0
