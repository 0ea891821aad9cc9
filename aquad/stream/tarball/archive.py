"""Writing what was made, in order: members get their places, their padding and their lines in the index."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import xxhash

from aquad.core.escape import escaped
from aquad.stream.tarball.content import Chunk, Content, changed_since, deflated
from aquad.stream.tarball.header import BLOCK
from aquad.stream.tarball.reuse import SHARED_BYTES, Former, Run, padding, padding_to

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aquad.stream.artifact import RawFile

NAMED = 100
"""So many changed or skipped paths are named; the rest is counted."""


class BigFile:
    """A file of many chunks, until its last one is written."""

    def __init__(self, member: dict[str, Any], fd: int, status: os.stat_result) -> None:
        self.member = member
        self.fd = fd
        self.status = status
        self.content, self.stored = hashlib.sha256(), xxhash.xxh3_128()
        self.hashing: deque[Future[None]] = deque()
        self.chunks: list[list[int]] = []
        self.shrunk = False


class Archive:
    """What the workers make waits here for its turn. `depth`: of how many pieces each digest may be behind."""

    def __init__(self, out: RawFile, advance: Callable[[int], None], depth: int) -> None:
        self._out = out
        self._advance = advance
        self._depth = depth
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        """What is being made, in the archive's order, and who writes it."""
        self.big_fds: set[int] = set()
        self.changed: list[str] = []
        self.changed_count = self.grown = self.members = self.tar_bytes = 0

    def close(self) -> None:
        self._hasher.shutdown()
        for fd in self.big_fds:
            os.close(fd)

    def expect(self, future: Future[Any], take: Callable[[Any], None]) -> None:
        self._waiting.append((future, take))

    def settle(self, left: int) -> None:
        """Write what is made, until no more than `left` are under way."""
        while len(self._waiting) > left:
            future, take = self._waiting.popleft()
            take(future.result())

    def end(self) -> None:
        """Write the end of the archive."""
        self._out.write(deflated([bytes(2 * BLOCK)]))
        self.tar_bytes += 2 * BLOCK

    def take_batch(self, members: Sequence[dict[str, Any]], contents: Sequence[Content]) -> None:
        for member, content in zip(members, contents, strict=True):
            member["pad"] = self._pad(len(content.stored))
            chunks = [[self._out.tell(), len(content.stored), content.plain_bytes]]
            self._out.write(content.stored)
            self._advance(content.plain_bytes)
            self._finish({**member, **content.lines}, chunks, content.stored_xxh3, content.note)

    def take_chunk(self, big: BigFile, chunk: Chunk, *, last: bool) -> None:
        big.hashing.append(self._hasher.submit(_hash, big.content, chunk.blocks))
        while len(big.hashing) > self._depth:
            big.hashing.popleft().result()
        big.stored.update(chunk.stored)
        if not big.chunks:
            big.member["pad"] = self._pad(SHARED_BYTES)
        big.chunks.append([self._out.tell(), len(chunk.stored), chunk.plain_bytes])
        self._out.write(chunk.stored)
        self._advance(chunk.plain_bytes)
        big.shrunk = big.shrunk or chunk.shrunk
        if last:
            note = "shrunk" if big.shrunk else changed_since(big.fd, big.status)
            self.big_fds.remove(big.fd)
            os.close(big.fd)
            for future in big.hashing:
                future.result()
            self._finish({**big.member, "sha256": big.content.hexdigest()}, big.chunks, big.stored.hexdigest(), note)

    def take_run(self, former: Former, run: Run, _: None) -> None:
        before = self._pad(run.length, run.offset)
        shift = self._out.tell() - run.offset
        self._out.copy_from(former.fd, run.offset, run.length, run.stored_bytes(), run.members[0]["stored_xxh3"])
        for number, line in enumerate(run.members):
            plain_bytes = sum(plain for _, _, plain in line["chunks"])
            self.members, self.tar_bytes = self.members + 1, self.tar_bytes + plain_bytes
            self._advance(plain_bytes)
            chunks = [[offset + shift, length, plain] for offset, length, plain in line["chunks"]]
            pad = line["pad"] if number else before  # what lay before the first member there is not copied
            self._out.record({**line, "offset": line["offset"] + shift, "chunks": chunks, "pad": pad})

    def _pad(self, length: int, congruent: int = 0) -> int:
        """Begin a large member where its blocks can be shared by copies of it; return how many bytes that took."""
        if not self._out.shares_blocks or length < SHARED_BYTES:
            return 0
        short = padding_to(self._out.tell(), congruent)
        if short:
            self._out.write(padding(short))
        return short

    def _finish(self, member: dict[str, Any], chunks: list[list[int]], stored_xxh3: str, note: str) -> None:
        if note == "grown":
            self.grown += 1
        elif note:
            self.note(
                base64.b64decode(member["path_base64"]) if "path_base64" in member else member["path"].encode(), note
            )
        if note:
            member["note"] = note
        self.members += 1
        self.tar_bytes += sum(plain for _, _, plain in chunks)
        self._out.record(
            {
                **member,
                "offset": chunks[0][0],
                "length": self._out.tell() - chunks[0][0],
                "chunks": chunks,
                "stored_xxh3": stored_xxh3,
            }
        )

    def note(self, path: bytes, what: str) -> None:
        self.changed_count += 1
        if len(self.changed) < NAMED:
            self.changed.append(f"{escaped(path)}: {what}")


def _hash(digest: Any, blocks: Sequence[bytes]) -> None:
    for block in blocks:
        digest.update(block)
