"""Building a tree below one directory from hostile input: every path is walked by descriptors, never through a symlink."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import Damaged, RestoreFailed
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
KINDS = {"file", "dir", "symlink", "hardlink", "fifo", "char", "block"}


class Member(NamedTuple):
    """One line of the index, checked. `path` and `link` as components: nothing absolute, no `..`, no empty one."""

    path: tuple[bytes, ...]
    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: bytes
    device: tuple[int, int]
    xattrs: Mapping[str, bytes]
    line: Mapping[str, Any]

    @property
    def name(self) -> bytes:
        return b"/".join(self.path)


def checked(line: Mapping[str, Any]) -> Member:
    """Raises Damaged for a line that no archive of ours has: a path that leaves the tree, an unknown type, a bad number."""
    try:
        path = base64.b64decode(line["path_base64"]) if "path_base64" in line else line["path"].encode()
        link = base64.b64decode(line["link_base64"]) if "link_base64" in line else line.get("link", "").encode()
        major, minor = line.get("device", (0, 0))
        xattrs = {str(name): base64.b64decode(value) for name, value in line.get("xattrs", {}).items()}
        mode, uid, gid, mtime_ns, size = numbers = [line[key] for key in ("mode", "uid", "gid", "mtime_ns", "size")]
        if (
            line["type"] not in KINDS
            or not all(isinstance(number, int) for number in (*numbers, major, minor))
            or line["size"] < 0
        ):
            raise ValueError(line["type"])
    except (KeyError, ValueError, TypeError, AttributeError, UnicodeError) as error:
        raise Damaged(f"read index: a member is not what aquad writes: {escaped(str(line)[:200])}") from error
    if line["type"] == "hardlink":
        components(link)
    return Member(components(path), line["type"], mode, uid, gid, mtime_ns, size, link, (major, minor), xattrs, line)


def components(path: bytes) -> tuple[bytes, ...]:
    """Raises Damaged when the path is absolute or leaves the tree."""
    parts = tuple(part for part in path.split(b"/") if part not in {b"", b"."})
    if path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise Damaged(
            f"restore {escaped(path)}: the path leads out of the archive",
            "This archive is hostile or damaged: nothing of it was written.",
        )
    return parts


class TreeWriter:
    """Creates members below `root`, which exists. Directories' modes and times are set by `finish`, after their content."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories: list[Member] = []
        self._links: list[Member] = []
        self._as_root = os.geteuid() == 0
        self.skipped: list[str] = []

    def close(self) -> None:
        os.close(self._root)

    def add(self, member: Member) -> int | None:
        """Make one member; for a file return a descriptor to write its bytes to, then call `dress` and close it."""
        if member.type == "dir":
            with self._parent(member.path) as parent:
                if member.path:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(member.path[-1], 0o700, dir_fd=parent)
                    os.close(os.open(member.path[-1], DIRECTORY, dir_fd=parent))
            self._directories.append(member)
        elif member.type in {"symlink", "hardlink"}:
            self._links.append(member)
        else:
            with self._parent(member.path) as parent:
                return self._make(member, parent)
        return None

    def finish(self) -> None:
        """Links, then the modes and times of directories from the deepest up; then everything is on the disk."""
        for member in self._links:
            with self._parent(member.path) as parent:
                self._clear(parent, member.path[-1])
                if member.type == "symlink":
                    os.symlink(member.link, member.path[-1], dir_fd=parent)
                    self._dress_by_name(member, parent)
                else:
                    target = components(member.link)
                    with self._parent(target) as other:
                        if not stat.S_ISREG(os.stat(target[-1], dir_fd=other, follow_symlinks=False).st_mode):
                            raise Damaged(f"restore {escaped(member.name)}: it is a hard link to what is no file")
                        os.link(target[-1], member.path[-1], src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        for member in sorted(self._directories, key=lambda one: len(one.path), reverse=True):
            with self._parent((*member.path, b".")) as fd:
                self.dress(member, fd)
        if ctypes.CDLL(None, use_errno=True).syncfs(self._root) != 0:
            raise RestoreFailed(
                f"restore: syncfs: {os.strerror(ctypes.get_errno())}",
                "The disk did not take it all: restore again, elsewhere.",
            )

    def dress(self, member: Member, fd: int) -> None:
        """Owner first (it clears setuid), then mode, xattrs, times."""
        if self._as_root:
            os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        for name, value in member.xattrs.items():
            if not self._as_root and not name.startswith("user."):
                self._skip(member, f"its {name}: only root may set it")
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                self._skip(member, f"its {escaped(name)}: {os.strerror(error.errno or 0)}")
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _make(self, member: Member, parent: int) -> int | None:
        leaf = member.path[-1]
        self._clear(parent, leaf)
        if member.type == "file":
            return os.open(
                leaf, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
            )
        if member.type == "fifo":
            os.mkfifo(leaf, 0o600, dir_fd=parent)
        elif self._as_root:
            kind = stat.S_IFCHR if member.type == "char" else stat.S_IFBLK
            os.mknod(leaf, 0o600 | kind, os.makedev(*member.device), dir_fd=parent)
        else:
            self._skip(member, "a device: only root may make it")
            return None
        self._dress_by_name(member, parent)
        return None

    def _dress_by_name(self, member: Member, parent: int) -> None:
        leaf = member.path[-1]
        if self._as_root:
            os.chown(leaf, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if member.type != "symlink":
            os.chmod(leaf, member.mode, dir_fd=parent)
        for name, value in member.xattrs.items():
            try:
                os.setxattr(f"/proc/self/fd/{parent}/{os.fsdecode(leaf)}", name, value, follow_symlinks=False)
            except OSError as error:
                self._skip(member, f"its {escaped(name)}: {os.strerror(error.errno or 0)}")
        os.utime(leaf, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    @contextlib.contextmanager
    def _parent(self, path: tuple[bytes, ...]) -> Iterator[int]:
        """A descriptor of the directory above; missing ones are made (an archive may begin in the middle, `--only` does)."""
        fd = os.dup(self._root)
        try:
            for part in path[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
                below = os.open(part, DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        except (NotADirectoryError, OSError) as error:
            raise RestoreFailed(
                f"restore {escaped(b'/'.join(path))}: {os.strerror(error.errno or 0)}",
                "Something is in the way, or the archive is hostile.",
            ) from error
        finally:
            os.close(fd)

    @staticmethod
    def _clear(parent: int, leaf: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leaf, dir_fd=parent)

    def _skip(self, member: Member, what: str) -> None:
        if len(self.skipped) < 100:
            self.skipped.append(f"{escaped(member.name)}: {what}")
