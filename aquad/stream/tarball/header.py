"""PAX headers: numeric owners, nanoseconds, names of any bytes and length, xattrs, ACLs, sparse files (GNU 1.0)."""

from __future__ import annotations

import os
import stat
import struct
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCK = 512
ACL_KEYWORDS = {"system.posix_acl_access": "SCHILY.acl.access", "system.posix_acl_default": "SCHILY.acl.default"}
ACL_TAGS = {0x01: "user:", 0x02: "user:{}", 0x04: "group:", 0x08: "group:{}", 0x10: "mask:", 0x20: "other:"}
"""Tags of the kernel's ACL xattr, version 2 (linux/posix_acl_xattr.h)."""
TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def header(
    path: bytes,
    status: os.stat_result,
    *,
    size: int = 0,
    link: bytes | None = None,
    hard: bool = False,
    xattrs: Mapping[str, bytes] | None = None,
    segments: Sequence[tuple[int, int]] | None = None,
) -> bytes:
    """Return the blocks before a member's data; for sparse files the map too. `size`: bytes of data in the archive."""
    info = tarfile.TarInfo(os.fsdecode(path))
    kind = stat.S_IFMT(status.st_mode)
    info.type = tarfile.LNKTYPE if hard else TYPES[kind]
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = status.st_mtime_ns // 10**9
    info.linkname = os.fsdecode(link or b"")
    info.size = size
    if kind in {stat.S_IFCHR, stat.S_IFBLK}:
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    pax = (
        {"mtime": f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}"}
        if status.st_mtime_ns % 10**9
        else {}
    )
    for name, value in (xattrs or {}).items():
        if name in ACL_KEYWORDS:
            pax[ACL_KEYWORDS[name]] = acl_text(value)
        else:
            pax[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    sparse_map = b""
    if segments is not None:
        numbers = [len(segments), *(number for segment in segments for number in segment)]
        sparse_map = b"".join(b"%d\n" % number for number in numbers)
        sparse_map += bytes(-len(sparse_map) % BLOCK)
        pax |= {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(status.st_size),
        }
        above, _, leaf = info.name.rpartition("/")
        info.name = f"{above or '.'}/GNUSparseFile.0/{leaf}"
        info.size += len(sparse_map)
    info.pax_headers = pax
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + sparse_map


def acl_text(value: bytes) -> str:
    """`user::rw-,user:1000:r--,...` of the kernel's binary form, numeric ids."""
    entries = []
    for tag, rights, identity in struct.iter_unpack("<HHI", value[4:]):
        who = ACL_TAGS[tag].format(identity)
        entries.append(
            f"{who}:" + "".join(letter if rights & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        )
    return ",".join(entries)


def acl_binary(text: str) -> bytes:
    """The reverse of `acl_text`; GNU tar's own text too (numeric ids). Raises ValueError."""
    tags = {form: tag for tag, form in ACL_TAGS.items()}
    packed = [struct.pack("<I", 2)]
    for line in text.replace("\n", ",").split(","):
        entry = line.strip()
        if not entry:
            continue
        who, identity, rights = entry.split(":")[:3]
        tag = tags[f"{who}:{{}}" if identity else f"{who}:"]
        bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in rights)
        packed.append(struct.pack("<HHI", tag, bits, int(identity) if identity else 0xFFFFFFFF))
    return b"".join(packed)
