"""Configuration: the listed paths of the stack's checkout, flattened as operators expect them in the archive."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import RestoreFailed, SourceFailed
from aquad.core.escape import escaped
from aquad.sources.configs import environment
from aquad.sources.configs.checkout import KEPT, Change, changes, leftovers, opened, pieces, replace
from aquad.stream.artifact import Finding, Step, Taken
from aquad.stream.tarball.member import KINDS
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.tree import TreeWriter, directory_below, owners_lost
from aquad.stream.tarball.unpack import content, extract, list_members, refuse_unless_empty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aquad.stream.artifact import Facts, Reader, RunContext, Sink


class ConfigsTarget(NamedTuple):
    """`to`: a directory that gets the flattened archive; None: each file at its place below the root."""

    to: Path | None = None


class Configs:
    component = "configs"

    def __init__(self, *, root: Path, paths: Sequence[str], optional_paths: Sequence[str]) -> None:
        self._root = root
        self._paths = paths
        self._optional_paths = optional_paths

    def check(self) -> list[Finding]:
        try:
            chosen, missing = self._chosen()
        except SourceFailed as error:
            return [Finding("error", self.component, error.message, error.hint)]
        locked = [path for path in self._everything(chosen) if not _readable(path)]
        if locked:
            return [
                Finding("error", self.component, f"{escaped(locked[0])} cannot be read", "Give aquad the right to.")
            ]
        notes = [Finding("ok", self.component, f"{path} is not there (optional)") for path in missing]
        warnings = [
            Finding("warning", self.component, text, "List what it leads to.") for text in self._bare_links(chosen)
        ]
        return [Finding("ok", self.component, f"{len(chosen)} paths below {self._root} can be read"), *notes, *warnings]

    def size_bytes(self) -> int:
        chosen, _ = self._chosen()
        return sum(os.lstat(path).st_size for path in self._everything(chosen) if os.path.lexists(path))

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:  # noqa: ARG002 - every source is asked alike
        chosen, missing = self._chosen()
        out = sink.raw(f"configs_{run.timestamp}.tar.gz", indexed=True)
        roots = [Root(self._root / relative, os.fsencode(name)) for name, relative in chosen.items()]
        tree = write_tree(roots, out, advance=run.progress.advance, cancel=run.cancel)
        facts: Facts = {**tree._asdict(), "paths": chosen}
        out.finish(plain_bytes=tree.tar_bytes, facts=facts)
        warnings = self._bare_links(chosen)
        if tree.changed_count:
            warnings.append(f"{tree.changed_count} files changed while they were read: {'; '.join(tree.changed[:5])}")
        return Taken(
            "files", facts, warnings, [*(f"{path} is not there (optional)" for path in missing), *tree.skipped]
        )

    def _chosen(self) -> tuple[dict[str, str], list[str]]:
        """Archive name -> path below the root, and the optional paths that are not there."""
        chosen: dict[str, str] = {}
        missing = []
        for relative in [*self._paths, *self._optional_paths]:
            name = PurePosixPath(relative).name
            try:
                kind = stat.S_IFMT((self._root / relative).lstat().st_mode)
            except (FileNotFoundError, NotADirectoryError) as error:
                if relative in self._optional_paths:
                    missing.append(relative)
                    continue
                raise SourceFailed(
                    f"read configuration: {self._root / relative} is not there",
                    "Correct configs.paths, or move it to optional_paths.",
                ) from error
            except OSError as error:
                raise SourceFailed(f"read configuration: {error}", "Give aquad the right to read it.") from error
            if not name or kind not in KINDS:
                raise SourceFailed(
                    f"read configuration: {relative!r} is {'a socket' if name else 'all of the checkout'}",
                    "List files and directories below it.",
                )
            if name in chosen:
                raise SourceFailed(
                    f"read configuration: {chosen[name]} and {relative} would both be {name} in the archive",
                    "Name a directory above one of them.",
                )
            chosen[name] = relative
        return chosen, missing

    def _everything(self, chosen: Mapping[str, str]) -> Iterator[str]:
        for relative in chosen.values():
            top = os.path.join(self._root, relative)
            yield top
            if not os.path.islink(top):
                for above, directories, names in os.walk(top):
                    yield from (os.path.join(above, name) for name in (*directories, *names))

    def _bare_links(self, chosen: Mapping[str, str]) -> list[str]:
        """Listed symlinks to what is not listed: of these the backup has the link, and nothing else."""
        tops = [self._root / relative for relative in chosen.values()]
        real = [Path(os.path.realpath(top)) for top in tops if not top.is_symlink()]
        return [
            f"{relative} is a symlink to {escaped(os.readlink(top))}, which is not in the backup"
            for relative, top in zip(chosen.values(), tops, strict=True)
            if top.is_symlink() and not any(Path(os.path.realpath(top)).is_relative_to(other) for other in real)
        ]

    def plan_restore(self, reader: Reader, target: ConfigsTarget) -> list[Step]:
        if target.to is not None:
            refuse_unless_empty(target.to, self.component)
            members = list(list_members(reader, reader.artifacts[0].path))
            size = sum(member.disk_bytes for member in members)
            losing = sum(not member.owner_can_be_kept for member in members)
            text = f"write the configuration into {target.to}"
            return [Step(text, needs_bytes=size, on_path=str(target.to), warning=owners_lost(losing))]
        with self._live() as live:
            found = changes(reader, self._root, live)
            return [
                *self._leftovers(live),
                *(self._step(reader, change, live) for change in found if _worth_showing(change)),
                *self._remarks(found, live),
            ]

    @contextlib.contextmanager
    def _live(self) -> Iterator[int | None]:
        """The root, open to be looked at; None when it is not there."""
        try:
            with contextlib.ExitStack() as stack:
                there = os.path.lexists(self._root)
                yield stack.enter_context(opened(self._root, os.O_DIRECTORY)) if there else None
        except OSError as error:
            raise RestoreFailed(f"look at {self._root}: {escaped(str(error))}", "Nothing was changed.") from error

    def _leftovers(self, live: int | None) -> Iterator[Step]:
        for name, kept in (leftovers(live) if live is not None else {}).items():
            what = f"what it replaced is in {', '.join(kept)}" if kept else "it had replaced nothing"
            yield Step(f"remove {self._root / name}", warning=f"left by a restore that was killed: {what}")

    def _step(self, reader: Reader, change: Change, live: int | None) -> Step:
        where = self._root.joinpath(*map(os.fsdecode, change.place))
        why = f" ({', '.join(change.differs)})" if change.differs else ""
        return Step(
            f"{change.state}: {where}{why}",
            overwrites=str(where) if change.state == "changed" else "",
            needs_bytes=change.member.disk_bytes if change.state != "same" else 0,
            on_path=str(self._root),
            warning=_secrets(reader, change, live) if live is not None and change.replaces else "",
        )

    def _remarks(self, found: Sequence[Change], live: int | None) -> Iterator[Step]:
        if any(change.replaces for change in found):
            yield Step(f"keep what is replaced in {self._root / KEPT}<time>")
        writable = live is None or os.access(".", os.W_OK, dir_fd=live, effective_ids=True)
        if not writable and any(change.state != "same" for change in found):
            yield Step(f"write below {self._root}", warning="that is not possible: is it mounted read-only?")
        losing = sum(change.loses_owner for change in found)
        if losing:
            yield Step("leave owners as they are, and do not compare them", warning=owners_lost(losing))

    def restore(self, reader: Reader, target: ConfigsTarget, run: RunContext) -> Facts:
        artifact = reader.artifacts[0].path
        try:
            if target.to is not None:
                target.to.mkdir(mode=0o700, parents=True, exist_ok=True)
                facts = extract(reader, artifact, target.to, advance=run.progress.advance, cancel=run.cancel)
                return {**facts._asdict(), "to": str(target.to)}
            self._root.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(TreeWriter(self._root)) as live:
                for name in leftovers(live.root):
                    shutil.rmtree(name, dir_fd=live.root)
                found = changes(reader, self._root, live.root)
                differs = any(change.state != "same" for change in found)
                kept = replace(reader, self._root, found, live, run) if differs else ""
        except OSError as error:
            raise RestoreFailed(
                f"restore configs to {target.to or self._root}: {escaped(str(error))}", "Is it mounted writable?"
            ) from error
        states = [change.state for change in found if _worth_showing(change)]
        counts = {state: states.count(state) for state in ("new", "changed", "same")}
        return {**counts, "kept": str(self._root / kept) if kept else "", "skipped": [*dict.fromkeys(live.skipped)]}


def _worth_showing(change: Change) -> bool:
    return change.state != "same" or change.member.type != "dir"


def _secrets(reader: Reader, change: Change, live: int) -> str:
    """What to say of the values of an environment file that would be replaced."""
    if "content" not in change.differs or not environment.is_environment(os.fsdecode(change.place[-1])):
        return ""
    limit = environment.MAXIMUM_BYTES + 1
    try:
        with (
            directory_below(live, change.place[:-1]) as above,
            opened(change.place[-1], os.O_NOFOLLOW | os.O_NONBLOCK, above) as fd,
        ):
            old = b"".join(pieces(fd, 0, limit))
    except PermissionError:
        return environment.UNKNOWN
    new = b""
    for piece in content(reader, reader.artifacts[0].path, change.data):
        new += piece
        if len(new) >= limit:
            break
    return environment.warning(old, new)


def _readable(path: str) -> bool:
    rights = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
    return os.path.islink(path) or os.access(path, rights, effective_ids=True)
