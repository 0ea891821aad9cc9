"""Building a tree below one directory from hostile input: every path is walked by descriptors, never through a symlink."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import Damaged, RestoreFailed
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
KINDS = {"file", "dir", "symlink", "hardlink", "fifo", "char", "block"}
LIMITS = {"mode": 0o7777, "uid": 2**32 - 2, "gid": 2**32 - 2, "size": 2**63 - 1}
SECONDS = 2**62
DISK_BLOCK = 4096
IN_THE_WAY = {errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
EXCHANGE = 2
"""RENAME_EXCHANGE (linux/fs.h)."""


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

    @property
    def disk_bytes(self) -> int:
        """What its data takes on a disk: whole blocks, and nothing for holes."""
        segments = self.line.get("segments", [[0, self.size]])
        return sum(-(-length // DISK_BLOCK) * DISK_BLOCK for _, length in segments)

    @property
    def owner_can_be_kept(self) -> bool:
        return os.geteuid() == 0 or (self.uid, self.gid) == (os.geteuid(), os.getegid())

    @property
    def mode_to_set(self) -> int:
        """Without setuid and setgid when the owner is another than it was, as `cp -p` does (POSIX, cp)."""
        return self.mode if self.type == "dir" or self.owner_can_be_kept else self.mode & ~0o6000


def checked(line: Mapping[str, Any]) -> Member:
    """Raises Damaged for a line that no archive of ours has: a path that leaves the tree, an unknown type, a bad number."""
    try:
        path = base64.b64decode(line["path_base64"]) if "path_base64" in line else line["path"].encode()
        link = base64.b64decode(line["link_base64"]) if "link_base64" in line else line.get("link", "").encode()
        major, minor = line.get("device", (0, 0))
        xattrs = {str(name): base64.b64decode(value) for name, value in line.get("xattrs", {}).items()}
        for name, value in line.get("xattrs_base64", {}).items():
            xattrs[os.fsdecode(base64.b64decode(name))] = base64.b64decode(value)
        texts = (link, *map(os.fsencode, xattrs))
        if line["type"] not in KINDS or not _sane(line, (major, minor)) or any(b"\0" in text for text in texts):
            raise ValueError(line["type"])
    except (KeyError, ValueError, TypeError, AttributeError, UnicodeError) as error:
        raise Damaged(f"read index: a member is not what aquad writes: {escaped(str(line)[:200])}") from error
    where = components(path)
    if (not where and line["type"] != "dir") or (line["type"] == "hardlink" and not components(link)):
        raise Damaged(f"read index: {escaped(path)} names no {line['type']}")
    mode, uid, gid, mtime_ns, size = (line[key] for key in ("mode", "uid", "gid", "mtime_ns", "size"))
    return Member(where, line["type"], mode, uid, gid, mtime_ns, size, link, (major, minor), xattrs, line)


def _sane(line: Mapping[str, Any], device: tuple[int, int]) -> bool:
    """Whether its numbers are numbers, and such as the kernel takes. Raises KeyError, TypeError, ValueError."""
    stretches = (*line.get("segments", ()), *([start, length] for start, length, _ in line.get("chunks", ())))
    return (
        all(isinstance(line[key], int) and 0 <= line[key] <= limit for key, limit in LIMITS.items())
        and isinstance(line["mtime_ns"], int)
        and abs(line["mtime_ns"]) < SECONDS * 10**9
        and isinstance(line.get("header_bytes", 0), int)
        and all(isinstance(number, int) and 0 <= number < 2**31 for number in device)
        and all(
            isinstance(number, int) and 0 <= number < 2**63 for start, length in stretches for number in (start, length)
        )
    )


def components(path: bytes) -> tuple[bytes, ...]:
    """Raises Damaged when the path is absolute or leaves the tree."""
    parts = tuple(part for part in path.split(b"/") if part not in {b"", b"."})
    if path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise Damaged(
            f"restore {escaped(path)}: the path leads out of the archive",
            "This archive is hostile or damaged: nothing of it was written.",
        )
    return parts


@contextlib.contextmanager
def directory_below(
    root: int, path: Sequence[bytes], make: Callable[[int, Sequence[bytes]], None] | None = None
) -> Iterator[int]:
    """A descriptor of a directory; no symlink is followed on the way. `make` makes a missing one in the one above it.

    Raises OSError.
    """
    fd = os.dup(root)
    try:
        for depth, part in enumerate(path, start=1):
            try:
                below = os.open(part, DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if make is None:
                    raise
                make(fd, path[:depth])
                below = os.open(part, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def make_like_above(above: int, path: Sequence[bytes]) -> None:
    """Make a directory of which nothing is known: mode and owner are those of the one above it."""
    like = os.fstat(above)
    os.mkdir(path[-1], 0o700 | (like.st_mode & 0o777), dir_fd=above)
    if os.geteuid() == 0:
        os.chown(path[-1], like.st_uid, like.st_gid, dir_fd=above, follow_symlinks=False)


def exchange(one: tuple[int, bytes], other: tuple[int, bytes]) -> bool:
    """Two names (directory, leaf) change places in one step. False where kernel or file system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)  # musl has none
    if renameat2 is None:
        return False
    if renameat2(*one, *other, EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), os.fsdecode(other[1]))


class TreeWriter:
    """Creates members below `root`, which exists. Directories' modes and times are set by `finish`, after their content."""

    def __init__(self, root: Path) -> None:
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories: list[Member] = []
        self._links: list[Member] = []
        self._as_root = os.geteuid() == 0
        self._other_owner = False
        self.skipped: list[str] = []

    def close(self) -> None:
        os.close(self.root)

    def add(self, member: Member) -> int | None:
        """Make one member; for a file return a descriptor to write its bytes to, then call `dress` and close it."""
        if member.type == "dir":
            with self.parent(member.path) as parent:
                if member.path:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(member.path[-1], 0o700, dir_fd=parent)
                    os.close(os.open(member.path[-1], DIRECTORY, dir_fd=parent))
            self._directories.append(member)
        elif member.type in {"symlink", "hardlink"}:
            self._links.append(member)
        else:
            with self.parent(member.path) as parent:
                return self._make(member, parent)
        return None

    def finish(self) -> None:
        """Links, then the modes and times of directories from the deepest up; then everything is on the disk."""
        for member in self._links:
            with self.parent(member.path) as parent:
                self._clear(parent, member.path[-1])
                if member.type == "symlink":
                    os.symlink(member.link, member.path[-1], dir_fd=parent)
                    self._dress_by_name(member, parent)
                else:
                    target = components(member.link)
                    with self.parent(target) as other:
                        if not stat.S_ISREG(os.stat(target[-1], dir_fd=other, follow_symlinks=False).st_mode):
                            raise Damaged(f"restore {escaped(member.name)}: it is a hard link to what is no file")
                        os.link(target[-1], member.path[-1], src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        for member in sorted(self._directories, key=lambda one: len(one.path), reverse=True):
            with self.parent((*member.path, b".")) as fd:
                self.dress(member, fd)
        if self._other_owner:
            self.skipped.insert(0, f"owners: only root may restore them, all of it belongs to user {os.geteuid()} now")
        if ctypes.CDLL(None, use_errno=True).syncfs(self.root) != 0:
            raise RestoreFailed(
                f"restore: syncfs: {os.strerror(ctypes.get_errno())}",
                "The disk did not take it all: restore again, elsewhere.",
            )

    def dress(self, member: Member, fd: int) -> None:
        """Owner first (it clears setuid), then mode, xattrs, times."""
        self._other_owner = self._other_owner or not member.owner_can_be_kept
        if self._as_root:
            os.fchown(fd, member.uid, member.gid)
        elif os.fstat(fd).st_uid != os.geteuid():
            self._skip(member, "its mode and times: it was there before, and belongs to another user")
            return
        os.fchmod(fd, member.mode_to_set)
        for name, value in member.xattrs.items():
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
        self._other_owner = self._other_owner or not member.owner_can_be_kept
        if self._as_root:
            os.chown(leaf, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if member.type != "symlink":
            os.chmod(leaf, member.mode_to_set, dir_fd=parent)
        for name, value in member.xattrs.items():
            try:
                os.setxattr(f"/proc/self/fd/{parent}/{os.fsdecode(leaf)}", name, value, follow_symlinks=False)
            except OSError as error:
                self._skip(member, f"its {escaped(name)}: {os.strerror(error.errno or 0)}")
        os.utime(leaf, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    @contextlib.contextmanager
    def parent(self, path: Sequence[bytes]) -> Iterator[int]:
        """A descriptor of the directory above; missing ones are made (an archive may begin in the middle, `--only` does).

        An OSError in it or on the way becomes RestoreFailed with the path.
        """
        try:
            with directory_below(self.root, path[:-1], make_like_above) as fd:
                yield fd
        except OSError as error:
            raise RestoreFailed(
                f"restore {escaped(b'/'.join(path))}: {os.strerror(error.errno or 0)}",
                "Something is in the way, or the archive is hostile."
                if error.errno in IN_THE_WAY
                else "Look at the disk and the rights there.",
            ) from error

    @staticmethod
    def _clear(parent: int, leaf: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leaf, dir_fd=parent)

    def _skip(self, member: Member, what: str) -> None:
        if len(self.skipped) < 100:
            self.skipped.append(f"{escaped(member.name)}: {what}")


def owners_lost(count: int) -> str:
    """What to say of so many members whose owner cannot be given back."""
    return f"{count} of them belonged to another user or group: only root may restore that" if count else ""
