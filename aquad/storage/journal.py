"""The journal `state/audit.jsonl`: what happened, in order, one JSON object a line, each with the digest of the line before.

A line is appended under flock and fsynced before `append` returns. A last line without its newline is what a dying writer
left: the next writer drops it and notes how many bytes it dropped. The chain shows edits; it cannot show a cut tail, which
only an anchor kept elsewhere can (each manifest holds one).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import Clock, to_text
from aquad.core.errors import Damaged, RepositoryRefused
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FIRST = "0" * 64
TAIL_BYTES = 1 << 20
"""A line is never longer: errors in it are capped where they are made."""


class Position(NamedTuple):
    """Where the journal stood: number of lines, digest of the last one."""

    lines: int
    hash: str


class Journal:
    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def append(self, event: str, **fields: Any) -> Position:
        """Append one line, durably. Raises RepositoryWriteFailed; Damaged when the last line cannot be read."""
        fd = files.open_log(self._path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            position, torn = self._end(fd)
            if torn:
                files.truncate(fd, os.fstat(fd).st_size - torn, self._path)
                position = self._write(fd, position, "journal_torn", {"dropped_bytes": torn})
            position = self._write(fd, position, event, fields)
            files.sync(fd, self._path)
        finally:
            files.close(fd, self._path)
        return position

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the lines from the oldest on; a torn last one is left out.

        Raises Damaged when the chain is broken, RepositoryRefused when it cannot be read.
        """
        previous = FIRST
        try:
            with self._path.open("rb") as log:
                for number, line in enumerate(log, start=1):
                    if not line.endswith(b"\n"):
                        return
                    entry = self._parsed(line)
                    if entry.get("line") != number or entry.get("previous") != previous:
                        raise Damaged(
                            f"read journal {self._path}: line {number} does not follow the line before",
                            "It was edited or damaged; `aquad audit verify` and a copy kept elsewhere tell more.",
                        )
                    previous = hashlib.sha256(line[:-1]).hexdigest()
                    yield entry
        except FileNotFoundError:
            return
        except OSError as error:
            raise RepositoryRefused(
                f"read journal {self._path}: {os.strerror(error.errno or 0)}",
                "Look at the disk and the limits (ulimit).",
            ) from error

    def _write(self, fd: int, after: Position, event: str, fields: Mapping[str, Any]) -> Position:
        entry = {
            "line": after.lines + 1,
            "at": to_text(self._clock.now()),
            "event": event,
            **fields,
            "previous": after.hash,
        }
        line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode()
        files.write(fd, line + b"\n", self._path)
        return Position(after.lines + 1, hashlib.sha256(line).hexdigest())

    def _end(self, fd: int) -> tuple[Position, int]:
        """Return the position after the last whole line, and how many bytes of a torn one follow it."""
        size = os.fstat(fd).st_size
        tail = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        whole, newline, torn = tail.rpartition(b"\n")
        if not newline:
            return Position(0, FIRST), size
        last = whole.rpartition(b"\n")[2]
        return Position(int(self._parsed(last)["line"]), hashlib.sha256(last).hexdigest()), len(torn)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            int(entry["line"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged(
                f"read journal {self._path}: a line is not what aquad writes", "Keep the file; move it aside to go on."
            ) from error
        whole: dict[str, Any] = entry
        return whole
