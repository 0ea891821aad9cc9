"""Reading the archive: by its index in parallel, or, for a FILE that has none, from its beginning to its end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
import tarfile
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import Damaged, RestoreFailed
from aquad.core.escape import escaped
from aquad.stream.gzip import inflate
from aquad.stream.tarball.header import ACL_KEYWORDS, XATTR, acl_binary, unescaped_xattr
from aquad.stream.tarball.inflated import HEADER_BYTES, NO_LIMIT, Inflated
from aquad.stream.tarball.tree import Member, TreeWriter, checked, components

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from aquad.stream.artifact import Reader

NONSENSE = (tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError, struct.error)
"""What tarfile and `_line` raise over headers that somebody made up."""
UNDER_WAY = 16
PIECE_BYTES = 1 << 20
TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
}


class ExtractFacts(NamedTuple):
    members: int
    files: int
    plain_bytes: int
    skipped: list[str]


def list_members(reader: Reader, path: str) -> Iterator[Member]:
    """Every member, checked, without its content."""
    lines = reader.members(path)
    if lines is not None:
        yield from (checked(line) for line in lines)
    else:
        yield from (member for member, _ in _streamed(reader, path))


def extract(
    reader: Reader,
    path: str,
    target: Path,
    *,
    only: Callable[[bytes], bool] | None = None,
    advance: Callable[[int], None],
    cancel: threading.Event,
    workers: int = 2,
) -> ExtractFacts:
    """Bring members back below `target`, an existing directory. Raises Damaged and RestoreFailed.

    With an index every line is checked before the first byte is written, and each file's SHA-256 after.
    """
    indexed = reader.members(path) is not None
    try:
        with contextlib.closing(TreeWriter(target)) as tree:
            chosen = _chosen(_pairs(reader, path, indexed=indexed), only, _stand_ins(reader, path, only))
            parallel = indexed and not reader.forwards_only(path)
            with ThreadPoolExecutor(workers, "inflate") as pool:
                facts = _Extraction(reader, path, tree, advance, cancel).run(chosen, pool if parallel else None)
            tree.finish()
    except OSError as error:
        raise RestoreFailed(
            f"restore to {os.path.realpath(target)}: {os.strerror(error.errno or 0)}",
            "Look at the disk and the rights there.",
        ) from error
    sealed = reader.facts.get("members"), reader.facts.get("files")
    if only is None and None not in sealed and (facts.members, facts.files) != sealed:
        raise RestoreFailed(
            f"restore to {target}: {facts.members} members and {facts.files} files were written, sealed were {sealed[0]} and {sealed[1]}"
        )
    return facts


def refuse_unless_empty(target: Path, what: str) -> None:
    """Raises RestoreFailed when `target` is there, and is anything but an empty directory."""
    try:
        entries = os.listdir(target)
    except FileNotFoundError:
        if not os.path.islink(target):
            return
        entries = ["a symlink to nowhere"]
    except OSError as error:
        raise RestoreFailed(
            f"restore {what} to {target}: {os.strerror(error.errno or 0)}",
            "Choose an empty directory. Nothing was changed.",
        ) from error
    if entries:
        raise RestoreFailed(
            f"restore {what} to {target}: there is something in it", "Choose an empty directory. Nothing was changed."
        )


def _stand_ins(reader: Reader, path: str, only: Callable[[bytes], bool] | None) -> dict[bytes, tuple[bytes, ...]]:
    """Read and check the whole index. Of files that are chosen by the name of a hard link alone: that name."""
    names: dict[bytes, tuple[bytes, ...]] = {}
    if only is None and reader.members(path) is None:
        return names  # without an index that would be to read the archive twice for nothing
    for member in list_members(reader, path):
        if only is not None and member.type == "hardlink" and only(member.name):
            first = b"/".join(components(member.link))
            if not only(first):
                names.setdefault(first, member.path)
    return names


def _chosen(
    pairs: Iterator[tuple[Member, Iterator[bytes] | None]],
    only: Callable[[bytes], bool] | None,
    stand_ins: Mapping[bytes, tuple[bytes, ...]],
) -> Iterator[tuple[Member, Iterator[bytes] | None]]:
    for member, data in pairs:
        if only is None:
            yield member, data
        elif member.name in stand_ins:
            yield member._replace(path=stand_ins[member.name]), data
        elif only(member.name):
            other = stand_ins.get(b"/".join(components(member.link))) if member.type == "hardlink" else None
            if other is None:
                yield member, data
            elif other != member.path:
                yield member._replace(link=b"/".join(other)), data


def _pairs(reader: Reader, path: str, *, indexed: bool) -> Iterator[tuple[Member, Iterator[bytes] | None]]:
    if indexed:
        yield from ((member, None) for member in list_members(reader, path))
    else:
        yield from _streamed(reader, path)


class _Extraction:
    def __init__(
        self, reader: Reader, path: str, tree: TreeWriter, advance: Callable[[int], None], cancel: threading.Event
    ) -> None:
        self._reader = reader
        self._path = path
        self._tree = tree
        self._advance = advance
        self._cancel = cancel
        self._over = threading.Event()

    def run(
        self, members: Iterator[tuple[Member, Iterator[bytes] | None]], pool: ThreadPoolExecutor | None
    ) -> ExtractFacts:
        count = files = plain_bytes = 0
        under_way: deque[Future[None]] = deque()
        try:
            for member, data in members:
                self._stop_if_over()
                count += 1
                fd = self._tree.add(member)
                if fd is None:
                    continue
                files, plain_bytes = files + 1, plain_bytes + member.size
                if pool is None:
                    self._fill(member, fd, data)
                else:
                    under_way.append(pool.submit(self._fill, member, fd, None))
                    if len(under_way) > UNDER_WAY:
                        under_way.popleft().result()
            for future in under_way:
                future.result()
        finally:
            self._over.set()  # whatever ended this (Ctrl-C too) also ends the files that are under way
        return ExtractFacts(count, files, plain_bytes, self._tree.skipped)

    def _stop_if_over(self) -> None:
        if self._cancel.is_set() or self._over.is_set():
            raise RestoreFailed("restore: cancelled")

    def _fill(self, member: Member, fd: int, data: Iterator[bytes] | None) -> None:
        """Write a file's bytes at their places and compare them with the index; holes stay holes."""
        try:
            os.ftruncate(fd, member.size)
            segments = member.line.get("segments", [[0, member.size]])
            digest = hashlib.sha256()
            _place(
                fd,
                segments,
                self._watched(data if data is not None else content(self._reader, self._path, member), digest),
                member,
            )
            if data is None and digest.hexdigest() != member.line.get("sha256"):
                raise Damaged(
                    f"restore {escaped(member.name)}: its bytes are not those of the index", "Use another backup."
                )
            self._tree.dress(member, fd)
        finally:
            os.close(fd)

    def _watched(self, data: Iterator[bytes], digest: Any) -> Iterator[bytes]:
        for piece in data:
            self._stop_if_over()
            digest.update(piece)
            self._advance(len(piece))
            yield piece


def content(reader: Reader, path: str, member: Member) -> Iterator[bytes]:
    """The data of a file that has an index: without its header, without the padding behind it, and without its holes."""
    skip = member.line.get("header_bytes", 0)
    left = sum(length for _, length in member.line["segments"]) if "segments" in member.line else member.size
    for offset, length, _ in member.line.get("chunks", ()):
        for plain in inflate(reader.read(path, offset, length), escaped(member.name)):
            piece = plain[skip:]
            skip = max(0, skip - len(plain))
            piece, left = piece[:left], left - min(left, len(piece))
            if piece:
                yield piece


def _place(fd: int, segments: list[list[int]], data: Iterator[bytes], member: Member) -> None:
    rest = b""
    for offset, length in segments:
        position, end = offset, offset + length
        if end > member.size or offset < 0 or length < 0:
            raise Damaged(f"restore {escaped(member.name)}: its sparse map lies")
        while position < end:
            rest = rest or next(data, b"")
            if not rest:
                raise Damaged(f"restore {escaped(member.name)}: {end - position} bytes are missing in the archive")
            written = os.pwrite(fd, memoryview(rest)[: end - position], position)
            position, rest = position + written, rest[written:]
    if rest or next(data, b""):
        raise Damaged(f"restore {escaped(member.name)}: the archive holds more bytes than its index says")


def _streamed(reader: Reader, path: str) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """The members of an archive without an index, made by aquad or by GNU tar. Raises Damaged when it is cut off."""
    plain = Inflated(inflate(reader.read(path), path))
    try:
        with tarfile.open(
            fileobj=plain, mode="r|", encoding="utf-8", errors="surrogateescape", bufsize=PIECE_BYTES
        ) as archive:
            for info in archive:
                plain.limit = NO_LIMIT
                yield checked(_line(info, path)), _data(archive, info)
                _pass(archive, info)
                plain.limit = plain.total + HEADER_BYTES
            plain.limit = NO_LIMIT
            _check_end(archive, plain, path)
    except NONSENSE as error:
        raise Damaged(f"read {path}: {escaped(str(error))}", "The archive is damaged or cut off.") from error


def _check_end(archive: tarfile.TarFile, plain: Inflated, path: str) -> None:
    """Tarfile accepts an archive that ends at any member's end, or at a broken header; only two zero blocks are an end."""
    stream: Any = archive.fileobj
    while stream.read(PIECE_BYTES):
        pass
    if plain.data_end > archive.offset or plain.total - archive.offset < 1024:
        raise Damaged(
            f"read {path}: it does not end with two zero blocks", "The archive was cut off, or something follows it."
        )


def _line(info: tarfile.TarInfo, path: str) -> Mapping[str, Any]:
    if info.type not in TYPES:
        raise Damaged(f"read {path}: {escaped(info.name)} is of type {info.type!r}, which aquad does not restore")
    xattrs = {
        unescaped_xattr(key.removeprefix(XATTR.decode())): value.encode("utf-8", "surrogateescape")
        for key, value in info.pax_headers.items()
        if key.startswith(XATTR.decode())
    }
    for name, keyword in ACL_KEYWORDS.items():
        if keyword in info.pax_headers:
            xattrs[name] = acl_binary(info.pax_headers[keyword])
    whole, _, fraction = info.pax_headers.get("mtime", str(int(info.mtime))).partition(".")
    nanoseconds = int(fraction.ljust(9, "0")[:9] or 0)
    mtime_ns = int(whole) * 10**9 + (-nanoseconds if whole.startswith("-") else nanoseconds)
    line: dict[str, Any] = {
        "path": "",
        "path_base64": base64.b64encode(os.fsencode(info.name)).decode(),
        "link_base64": base64.b64encode(os.fsencode(info.linkname)).decode(),
        "type": TYPES[info.type],
        "mode": info.mode & 0o7777,
        "uid": info.uid,
        "gid": info.gid,
        "mtime_ns": mtime_ns,
        "size": info.size if TYPES[info.type] == "file" else 0,
        "device": (info.devmajor, info.devminor),
        "xattrs": {name: base64.b64encode(value).decode() for name, value in xattrs.items()},
    }
    sparse: Any = getattr(info, "sparse", None)
    if sparse is not None:
        line["segments"] = [[offset, length] for offset, length in sparse if length]
    return line


def _data(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    """The bytes of a file as they stand in the archive; of a sparse one only those of its segments."""
    if TYPES[info.type] != "file":
        return
    stream: Any = archive.fileobj
    sparse: Any = getattr(info, "sparse", None)
    left = info.size if sparse is None else sum(length for _, length in sparse)
    stream.seek(info.offset_data)
    yield from _stretch(stream, left, info)


def _pass(archive: Any, info: tarfile.TarInfo) -> None:
    """Read on to the next header: tarfile would look for it for years where a size lies. And forget this one."""
    for _ in _stretch(archive.fileobj, max(0, archive.offset - archive.fileobj.tell()), info):
        pass
    archive.members.clear()  # a million of them take more than a gigabyte


def _stretch(stream: Any, left: int, info: tarfile.TarInfo) -> Iterator[bytes]:
    while left:
        piece = stream.read(min(left, PIECE_BYTES))
        if not piece:
            raise Damaged(f"read {escaped(info.name)}: {left} bytes are missing in the archive")
        left -= len(piece)
        yield piece
