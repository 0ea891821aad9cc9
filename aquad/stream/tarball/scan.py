"""Walking a tree by directory descriptors: symlinks are never followed, devices never opened, paths may be of any length."""

from __future__ import annotations

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

    def _below(
        self, above: int, leaf: str, path: bytes, status: os.stat_result, *, follow: bool = False
    ) -> Iterator[Entry]:
        try:
            here = os.open(
                leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=above
            )
        except FileNotFoundError:
            self._vanished(path)
            return
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            for name in sorted(os.listdir(here), key=os.fsencode):
                below = path + b"/" + os.fsencode(name)
                try:
                    found = os.stat(name, dir_fd=here, follow_symlinks=False)
                except FileNotFoundError:
                    self._vanished(below)
                    continue
                if stat.S_ISSOCK(found.st_mode):
                    self._skip(below, "a socket")
                    continue
                yield Entry(below, found, here, name)
                if stat.S_ISDIR(found.st_mode):
                    if found.st_dev == status.st_dev:
                        yield from self._below(here, name, below, found)
                    else:
                        self._skip(below, "another file system is mounted there")
        finally:
            os.close(here)


def unreadable(path: bytes, error: OSError) -> SourceFailed:
    hint = "Nothing is skipped in silence: give aquad the right to read it (run it as root, or with DAC_READ_SEARCH)."
    return SourceFailed(
        f"read {escaped(path)}: {os.strerror(error.errno or 0)}", hint if isinstance(error, PermissionError) else ""
    )
