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
NAME_BYTES = 100
USTAR = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
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
XATTR = b"SCHILY.xattr."


def header(
    path: bytes,
    status: os.stat_result,
    *,
    size: int = 0,
    link: bytes = b"",
    hard: bool = False,
    xattrs: Mapping[str, bytes] | None = None,
    segments: Sequence[tuple[int, int]] | None = None,
) -> bytes:
    """Return the blocks before a member's data; for sparse files the map too. `size`: bytes of data in the archive.

    POSIX.1-2001, pax Interchange Format. By hand, because tarfile takes five times as long, which a million files feel.
    """
    kind = stat.S_IFMT(status.st_mode)
    name = path + b"/" if kind == stat.S_IFDIR else path
    records = _attributes(xattrs or {})
    if status.st_mtime_ns % 10**9:
        records[b"mtime"] = _seconds(status.st_mtime_ns)
    sparse_map = b""
    if segments is not None:
        sparse_map = _map(segments)
        records |= _sparse(name, status.st_size)
        above, _, leaf = name.rpartition(b"/")
        name = (above or b".") + b"/GNUSparseFile.0/" + leaf
        size += len(sparse_map)
    for key, text in ((b"path", name), (b"linkpath", link)):
        if len(text) > NAME_BYTES or not text.isascii():
            records[key] = text
    numbers = _numbers(status, size)
    for key, (number, limit) in numbers.items():
        if not 0 <= number < limit:
            records.setdefault(key, b"%d" % number)
    block = _block(
        name,
        tarfile.LNKTYPE if hard else TYPES[kind],
        mode=stat.S_IMODE(status.st_mode),
        numbers=[number if 0 <= number < limit else 0 for number, limit in numbers.values()],
        link=link,
        device=status.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
    )
    return _extended(records) + block + sparse_map


def escaped_xattr(name: bytes) -> bytes:
    """As GNU tar has it, for what ends the name of a record is `=`."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def unescaped_xattr(name: str) -> str:
    return name.replace("%3D", "=").replace("%25", "%")


def _attributes(xattrs: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Extended attributes as GNU tar and star write them; ACLs as text, which GNU tar wants."""
    return {
        ACL_KEYWORDS[name].encode() if name in ACL_KEYWORDS else XATTR + escaped_xattr(os.fsencode(name)): (
            acl_text(value).encode() if name in ACL_KEYWORDS else value
        )
        for name, value in xattrs.items()
    }


def _sparse(name: bytes, real_bytes: int) -> dict[bytes, bytes]:
    return {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % real_bytes,
    }


def _numbers(status: os.stat_result, size: int) -> dict[bytes, tuple[int, int]]:
    """Each number of the block, and the first that does not fit into its octal field."""
    return {
        b"uid": (status.st_uid, 8**7),
        b"gid": (status.st_gid, 8**7),
        b"size": (size, 8**11),
        b"mtime": (status.st_mtime_ns // 10**9, 8**11),
    }


def _map(segments: Sequence[tuple[int, int]]) -> bytes:
    """The sparse map of GNU format 1.0: decimal numbers, a line each, filled up to a block."""
    numbers = [len(segments), *(number for segment in segments for number in segment)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(-len(text) % BLOCK)


def _seconds(nanoseconds: int) -> bytes:
    whole, rest = divmod(abs(nanoseconds), 10**9)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", whole, rest)


def _extended(records: Mapping[bytes, bytes]) -> bytes:
    """The extended header of one member: `length key=value` lines; nothing when there are none."""
    if not records:
        return b""
    lines = [_record(key, value) for key, value in records.items()]
    text = b"".join(lines)
    if not _is_utf8(text):
        text = _record(b"hdrcharset", b"BINARY") + text
    return (
        _block(b"././@PaxHeader", tarfile.XHDTYPE, mode=0o644, numbers=[0, 0, len(text), 0])
        + text
        + bytes(-len(text) % BLOCK)
    )


def _record(key: bytes, value: bytes) -> bytes:
    """The length counts its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _block(name: bytes, kind: bytes, *, mode: int, numbers: Sequence[int], link: bytes = b"", device: int = 0) -> bytes:
    """One ustar block. `numbers`: uid, gid, size, mtime. Names that are too long are cut: a record says them whole."""
    uid, gid, size, mtime = numbers
    block = USTAR.pack(
        name,
        b"%07o" % mode,
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % mtime,
        b" " * 8,
        kind,
        link,
        b"ustar",
        b"00",
        b"",
        b"",
        b"%07o" % os.major(device),
        b"%07o" % os.minor(device),
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


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
