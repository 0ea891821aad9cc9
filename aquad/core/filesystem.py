"""What Python's os module does not know of file systems: their kind, and to bring all of one to the disk."""

from __future__ import annotations

import ctypes
import os

EXT4, XFS, BTRFS = 0xEF53, 0x58465342, 0x9123683E
"""linux/magic.h"""
_libc = ctypes.CDLL(None, use_errno=True)


def kind(fd: int) -> int:
    """The magic number of the file system that a file lies on; 0 when it cannot be told. f_type comes first (statfs(2))."""
    record = (ctypes.c_long * 32)()
    return 0 if _libc.fstatfs(fd, record) else record[0] & 0xFFFFFFFF


def sync(fd: int) -> None:
    """Write all that is dirty on the file system of `fd` to its disk (syncfs(2)). Raises OSError."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
