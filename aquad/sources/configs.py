"""Configuration: the listed paths of the stack's checkout, flattened as operators expect them in the archive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import RestoreFailed, SourceFailed
from aquad.core.escape import escaped
from aquad.stream.artifact import Finding, Step, Taken
from aquad.stream.tarball.pack import write_tree
from aquad.stream.tarball.scan import Root
from aquad.stream.tarball.unpack import extract, list_members

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from aquad.stream.artifact import Facts, Reader, RunContext, Sink

ENVIRONMENT_FILE = ".env"
STAGING = ".aquad-restore-"


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
        notes = [Finding("ok", self.component, f"{path} is not there (optional)") for path in missing]
        return [Finding("ok", self.component, f"{len(chosen)} paths below {self._root} can be read"), *notes]

    def size_bytes(self) -> int:
        chosen, _ = self._chosen()
        total = 0
        for relative in chosen.values():
            top = self._root / relative
            total += sum(path.lstat().st_size for path in ([top] if top.is_file() else top.rglob("*")))
        return total

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:  # noqa: ARG002 - every source is asked alike
        chosen, missing = self._chosen()
        out = sink.raw(f"configs_{run.timestamp}.tar.gz", indexed=True)
        roots = [Root(self._root / relative, os.fsencode(name)) for name, relative in chosen.items()]
        tree = write_tree(roots, out, advance=run.progress.advance, cancel=run.cancel)
        facts: Facts = {**tree._asdict(), "paths": chosen}
        out.finish(plain_bytes=tree.tar_bytes, facts=facts)
        warnings = (
            [f"{tree.changed_count} files changed while they were read: {'; '.join(tree.changed[:5])}"]
            if tree.changed_count
            else []
        )
        return Taken(
            "files", facts, warnings, [*(f"{path} is not there (optional)" for path in missing), *tree.skipped]
        )

    def _chosen(self) -> tuple[dict[str, str], list[str]]:
        """Archive name -> path below the root, and the optional paths that are not there."""
        chosen: dict[str, str] = {}
        missing = []
        for relative in [*self._paths, *self._optional_paths]:
            if not os.path.lexists(self._root / relative):
                if relative in self._optional_paths:
                    missing.append(relative)
                    continue
                raise SourceFailed(
                    f"read configuration: {self._root / relative} is not there",
                    "Correct configs.paths, or move it to optional_paths.",
                )
            name = PurePosixPath(relative).name
            if name in chosen:
                raise SourceFailed(
                    f"read configuration: {chosen[name]} and {relative} would both be {name} in the archive",
                    "Name a directory above one of them.",
                )
            chosen[name] = relative
        return chosen, missing

    def plan_restore(self, reader: Reader, target: ConfigsTarget) -> list[Step]:
        if target.to is not None:
            if target.to.exists() and any(target.to.iterdir()):
                raise RestoreFailed(
                    f"restore configs to {target.to}: there is something in it",
                    "Choose an empty directory. Nothing was changed.",
                )
            return [
                Step(
                    f"write the configuration into {target.to}",
                    needs_bytes=reader.artifacts[0].plain_bytes,
                    on_path=str(target.to),
                )
            ]
        self._places(reader)
        steps = []
        with self._staged(reader, None) as staging:
            for state, staged, place in self._compared(reader, staging):
                overwrites = str(place) if state == "changed" else ""
                steps.append(
                    Step(
                        f"{state}: {place}",
                        overwrites=overwrites,
                        warning=_secrets_warning(staged, place) if overwrites else "",
                    )
                )
        return steps

    def restore(self, reader: Reader, target: ConfigsTarget, run: RunContext) -> Facts:
        if target.to is not None:
            target.to.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = extract(
                reader, reader.artifacts[0].path, target.to, advance=run.progress.advance, cancel=run.cancel
            )
            return {**facts._asdict(), "to": str(target.to)}
        counts = {"new": 0, "changed": 0, "same": 0}
        kept = self._root / f"aquad-before-{run.timestamp}"
        try:
            with self._staged(reader, run.cancel) as staging:
                for state, staged, place in self._compared(reader, staging):
                    counts[state] += 1
                    if state != "same":
                        self._put(staged, place, kept)
                self._dress_directories(reader)
        except OSError as error:
            raise RestoreFailed(f"restore configs: {error}", f"What was replaced so far is in {kept}.") from error
        return {**counts, "kept": str(kept) if counts["changed"] else ""}

    def _places(self, reader: Reader) -> dict[str, str]:
        places: dict[str, str] | None = reader.facts.get("paths")
        if places is None:
            raise RestoreFailed(
                f"restore configs from {reader.origin}: no manifest says where its files belong",
                "Restore it with --to DIR and look.",
            )
        return places

    @contextlib.contextmanager
    def _staged(self, reader: Reader, cancel: threading.Event | None) -> Iterator[Path]:
        """The archive's content in a directory of its own below the root, so that renames stay on one file system."""
        import threading

        try:
            self._root.mkdir(parents=True, exist_ok=True)
            staging = Path(mkdtemp(prefix=STAGING, dir=self._root))
        except OSError as error:
            raise RestoreFailed(f"restore configs to {self._root}: {error}", "Is it mounted writable?") from error
        try:
            extract(
                reader, reader.artifacts[0].path, staging, advance=lambda _: None, cancel=cancel or threading.Event()
            )
            yield staging
        finally:
            shutil.rmtree(staging)

    def _compared(self, reader: Reader, staging: Path) -> Iterator[tuple[str, Path, Path]]:
        """(new | changed | same, staged file, its place) for everything that is no directory."""
        for name, relative in sorted(self._places(reader).items()):
            top = staging / name
            found = (
                [top]
                if top.is_symlink() or not top.is_dir()
                else sorted(p for p in top.rglob("*") if p.is_symlink() or not p.is_dir())
            )
            for staged in found:
                place = self._root / relative / staged.relative_to(top) if staged != top else self._root / relative
                yield (
                    ("new" if not os.path.lexists(place) else "same" if _equal(staged, place) else "changed"),
                    staged,
                    place,
                )

    def _put(self, staged: Path, place: Path, kept: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            keep = kept / place.relative_to(self._root)
            kept.mkdir(mode=0o700, exist_ok=True)
            keep.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place, keep)
        os.rename(staged, place)

    def _dress_directories(self, reader: Reader) -> None:
        """Modes, owners and times of directories, from the deepest up."""
        places = self._places(reader)
        members = [member for member in list_members(reader, reader.artifacts[0].path) if member.type == "dir"]
        for member in sorted(members, key=lambda one: len(one.path), reverse=True):
            top, *below = (os.fsdecode(part) for part in member.path)
            place = self._root.joinpath(places[top], *below)
            place.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(place, member.uid, member.gid)
            place.chmod(member.mode)
            os.utime(place, ns=(member.mtime_ns, member.mtime_ns))


def _equal(one: Path, other: Path) -> bool:
    first, second = one.lstat(), other.lstat()
    if (first.st_mode, first.st_uid, first.st_gid) != (second.st_mode, second.st_uid, second.st_gid):
        return False
    if one.is_symlink():
        return os.readlink(one) == os.readlink(other)
    if not one.is_file():
        return True
    return first.st_size == second.st_size and _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()


def _secrets_warning(staged: Path, place: Path) -> str:
    """The keys of an environment file whose values would change; never the values."""
    if staged.name != ENVIRONMENT_FILE:
        return ""
    old, new = _assignments(place), _assignments(staged)
    changed = sorted(key for key in new if key in old and old[key] != new[key])
    if not changed:
        return ""
    return f"values of {', '.join(escaped(key) for key in changed)} would change; they may have been rotated since the backup"


def _assignments(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8", "surrogateescape").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip().removeprefix("export ").strip(): value for key, _, value in pairs}
