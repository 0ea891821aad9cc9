"""Walking a tree by directory descriptors: symlinks are never followed, devices never opened, paths may be of any length."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import SourceFailed
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Root(NamedTuple):
    """A file or directory on disk, and its name in the archive (b"." for a whole volume)."""

    path: Path
    name: bytes


class Entry(NamedTuple):
    """One thing found. `directory` and `leaf` open it (openat); they are valid until the next entry is asked for."""

    path: bytes
    status: os.stat_result
    directory: int
    leaf: str


class Walk:
    """Yields the entries below a root, parents first, names in order. Other file systems are not entered."""

    def __init__(self, skip: Callable[[bytes, str], None], vanished: Callable[[bytes], None]) -> None:
        self._skip = skip
        self._vanished = vanished

    def entries(self, root: Root) -> Iterator[Entry]:
        """Raises SourceFailed when the root is missing, or something cannot be read."""
        try:
            above = os.open(root.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(os.fsencode(root.path.parent), error) from error
        try:
            # The root itself may be a symlink (a mount by another name); nothing below it is followed.
            status = os.stat(root.path.name or ".", dir_fd=above, follow_symlinks=root.name == b".")
            yield Entry(root.name, status, above, root.path.name or ".")
            if stat.S_ISDIR(status.st_mode):
                yield from self._below(above, root.path.name or ".", root.name, status, follow=root.name == b".")
        except OSError as error:
            raise unreadable(os.fsencode(root.path), error) from error
        finally:
            os.close(above)

    def _below(self, above: int, leaf: str, path: bytes, status: os.stat_result, *, follow: bool) -> Iterator[Entry]:
        """By a stack of its own, one open directory a level: a tree is deeper than Python's stack if somebody wants it so."""
        stack = [_Level.of(above, leaf, path, follow=follow)]
        try:
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    os.close(stack.pop().directory)
                    continue
                below = level.path + b"/" + os.fsencode(name)
                try:
                    found = os.stat(name, dir_fd=level.directory, follow_symlinks=False)
                    if stat.S_ISSOCK(found.st_mode):
                        self._skip(below, "a socket")
                        continue
                    yield Entry(below, found, level.directory, name)
                    if not stat.S_ISDIR(found.st_mode):
                        continue
                    if found.st_dev == status.st_dev:
                        stack.append(_Level.of(level.directory, name, below, follow=False))
                    else:
                        self._skip(below, "another file system is mounted there")
                except FileNotFoundError:
                    self._vanished(below)
        finally:
            for level in stack:
                os.close(level.directory)


class _Level(NamedTuple):
    """A directory that the walk is in, and the names in it that were not looked at yet."""

    path: bytes
    directory: int
    names: Iterator[str]

    @classmethod
    def of(cls, above: int, leaf: str, path: bytes, *, follow: bool) -> _Level:
        """Raises FileNotFoundError when it has vanished, SourceFailed when it cannot be read."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        try:
            with contextlib.ExitStack() as opened:
                directory = os.open(leaf, flags, dir_fd=above)
                opened.callback(os.close, directory)
                names = sorted(os.listdir(directory), key=os.fsencode)
                opened.pop_all()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreadable(path, error) from error
        return cls(path, directory, iter(names))


def unreadable(path: bytes, error: OSError) -> SourceFailed:
    hint = "Nothing is skipped in silence: give aquad the right to read it (run it as root, or with DAC_READ_SEARCH)."
    return SourceFailed(
        f"read {escaped(path)}: {os.strerror(error.errno or 0)}", hint if isinstance(error, PermissionError) else ""
    )
