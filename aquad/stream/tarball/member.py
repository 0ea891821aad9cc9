"""The lines of the member index, as docs/format.md gives them."""

from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aquad.stream.tarball.scan import Entry

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def member_of(entry: Entry) -> dict[str, Any]:
    status = entry.status
    member: dict[str, Any] = {
        **named("path", entry.path),
        "type": KINDS[stat.S_IFMT(status.st_mode)],
        "size": 0,
        **status_lines(status),
    }
    if member["type"] in {"char", "block"}:
        member["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    return member


def status_lines(status: os.stat_result) -> dict[str, Any]:
    return {
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "dev": status.st_dev,
    }


def named(key: str, name: bytes) -> dict[str, str]:
    """A name as text; bytes that are not UTF-8 as U+FFFD, and then the true ones in base64 beside it."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        return {key: name.decode("utf-8", "replace"), f"{key}_base64": base64.b64encode(name).decode()}


def xattr_lines(xattrs: dict[str, bytes]) -> dict[str, Any]:
    """Names that are no printable text by themselves, in base64 too."""
    texts, others = {}, {}
    for name, value in xattrs.items():
        stored = base64.b64encode(value).decode()
        if name.isprintable():
            texts[name] = stored
        else:
            others[base64.b64encode(os.fsencode(name)).decode()] = stored
    return ({"xattrs": texts} if texts else {}) | ({"xattrs_base64": others} if others else {})
