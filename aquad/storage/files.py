"""The system calls that change the repository, and nothing else.

Every write, fsync, rename, unlink and mkdir below the repository goes through here, so that a test can end the process,
cut the power or fail the call at each of them by replacing this module's `os`. Every failure becomes
RepositoryWriteFailed with the verb and the path. Nothing is retried: after a failed fsync the kernel has forgotten the
error, and only writing the data afresh is safe (PostgreSQL wiki, "Fsync Errors").
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aquad.core.errors import RepositoryWriteFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


DISK_BLOCK = 4096


@contextmanager
def _failing(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryWriteFailed(verb, str(path), error) from error


def create(path: Path) -> int:
    """Open a new file for writing, 0600. Fails if anything has that name already."""
    with _failing("create", path):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def open_log(path: Path) -> int:
    """Open a file for reading and appending, 0600, made if it is not there."""
    with _failing("open", path):
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write(fd: int, stored: bytes | bytearray | memoryview, path: Path) -> None:
    """Write all of it: a short write goes on where it stopped."""
    rest = memoryview(stored)
    with _failing("write", path):
        while rest:
            rest = rest[os.write(fd, rest) :]


def share(source_fd: int, offset: int, fd: int, length: int, path: Path) -> None:
    """Append a stretch of another file. Whole blocks are shared where both lie alike: the rest must not go with them."""
    with _failing("copy", path):
        head = min(length, -offset % DISK_BLOCK)
        middle = (length - head) // DISK_BLOCK * DISK_BLOCK
        for part in (head, middle, length - head - middle):
            left = part
            while left:
                count = os.copy_file_range(source_fd, fd, left, offset)
                if not count:
                    raise OSError(errno.EIO, "the file to copy from has become shorter")
                offset, left = offset + count, left - count


def truncate(fd: int, length: int, path: Path) -> None:
    with _failing("truncate", path):
        os.ftruncate(fd, length)


def sync(fd: int, path: Path) -> None:
    with _failing("fsync", path):
        os.fsync(fd)


def close(fd: int, path: Path) -> None:
    with _failing("close", path):
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Rename within the repository. The caller holds the lock and has seen that `target` is free or ours to replace."""
    with _failing("rename", source):
        os.rename(source, target)


def make_directory(path: Path) -> None:
    with _failing("make directory", path):
        os.mkdir(path, 0o700)


def remove(path: Path) -> None:
    with _failing("remove", path):
        os.unlink(path)


def remove_directory(path: Path) -> None:
    with _failing("remove directory", path):
        os.rmdir(path)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    with _failing("fsync directory", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def unfinished(path: Path) -> Path:
    """What `replace` leaves when it dies."""
    return path.with_name(f".{path.name}.new")


def replace(path: Path, stored: bytes) -> None:
    """Put a small file in place whole, whatever happens: temp, fsync, rename, fsync of the directory."""
    temporary = unfinished(path)
    if os.path.lexists(temporary):  # left by a run that died here
        remove(temporary)
    fd = create(temporary)
    try:
        write(fd, stored, temporary)
        sync(fd, temporary)
    finally:
        close(fd, temporary)
    rename(temporary, path)
    sync_directory(path.parent)
