"""The files of the journal: their names, how one line follows another, and what is left of a head that was removed.

`audit.jsonl` is written to; `audit-<last line>.jsonl` were, and are never changed again; `audit.anchor` says where the chain
begins once the oldest of them are gone. Reads only.
"""

from __future__ import annotations

import json
import os
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from aquad.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Entry = dict[str, Any]

FIRST = "0" * 64
TAIL_BYTES = 1 << 16
ANCHOR_BYTES = 1 << 16
"""More is no anchor."""


NUMBERS = 10**18
"""No journal has so many lines."""


class Position(NamedTuple):
    """Where the journal stood: number of lines, digest of the last one."""

    lines: int
    hash: str


class Head(NamedTuple):
    """What was removed: lines 1 to `lines`, of which the last had `hash`.

    What still stands of it was carried, as `carried_lines` lines from `carried_from` on.
    """

    lines: int
    hash: str
    carried_from: int
    carried_lines: int

    def stored(self) -> bytes:
        return json.dumps(self._asdict(), indent=1).encode() + b"\n"


NOTHING_REMOVED = Head(0, FIRST, 1, 0)


class Log(NamedTuple):
    """One file of the journal, opened. `number`: of its last line; None for the one that is written to."""

    name: str
    number: int | None
    stream: BinaryIO


class Opened(NamedTuple):
    """All files as they were at one moment, from the oldest on. `anchor`: the bytes of `audit.anchor`, None without one."""

    anchor: bytes | None
    logs: Sequence[Log]


def anchor_path(path: Path) -> Path:
    return path.with_suffix(".anchor")


def rotated_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number:09}{path.suffix}")


def rotated_numbers(path: Path) -> list[int]:
    """The last line's number of each rotated file beside `path`, ascending."""
    name = re.compile(rf"{re.escape(path.stem)}-([0-9]{{9,18}}){re.escape(path.suffix)}")
    try:
        there = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    numbers = {int(match[1]) for match in map(name.fullmatch, there) if match}
    return sorted(number for number in numbers if rotated_path(path, number).name in there)


def head_in(stored: bytes | None) -> Head | None:
    """What the bytes of `audit.anchor` say; None when aquad did not write them."""
    if stored is None:
        return NOTHING_REMOVED
    try:
        head = Head(**json.loads(stored))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (head.lines, head.carried_from, head.carried_lines)
    sound = all(type(number) is int and 0 <= number < NUMBERS for number in numbers) and type(head.hash) is str
    return head if sound and head.carried_from > head.lines > 0 else None


def head_of(stored: bytes | None, path: Path) -> Head:
    """What `head_in` says. Raises Damaged."""
    head = head_in(stored)
    if head is None:
        raise Damaged(
            f"read {anchor_path(path)}: it is not what aquad writes",
            "The newest journal_shortened line of the journal tells what belongs into it.",
        )
    return head


def entry_in(line: bytes) -> Entry | None:
    """What one line holds; None when aquad did not write it."""
    try:
        entry: Entry = json.loads(line)
        sound = type(entry["line"]) is int and type(entry["event"]) is str and type(entry["at"]) is str
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return entry if sound and 0 < entry["line"] < NUMBERS else None


def parsed(line: bytes, path: Path) -> Entry:
    """What `entry_in` says. Raises Damaged."""
    entry = entry_in(line)
    if entry is None:
        raise Damaged(f"read journal {path}: a line is not what aquad writes", "Keep the file; move it aside to go on.")
    return entry


def last_line(fd: int) -> tuple[bytes | None, int]:
    """Return the last whole line of a file (None when there is none), and how many bytes of a torn one follow it."""
    size, count = os.fstat(fd).st_size, TAIL_BYTES
    while True:
        tail = os.pread(fd, count, max(0, size - count))
        whole, newline, torn = tail.rpartition(b"\n")
        _, before, last = whole.rpartition(b"\n")
        if before or count >= size:
            return (last if newline else None), len(torn)
        count *= 4


def carried(head: Head, logs: Sequence[Log], path: Path) -> Iterator[Entry]:
    """What stands of the removed head, as it was written once; the streams are at their beginning again after that."""
    before = head.lines
    for log in logs:
        if log.number is not None and log.number < head.carried_from:
            before = log.number
            continue
        skip = head.carried_from - before - 1
        found = [parsed(line, path) for line in islice(log.stream, skip, skip + head.carried_lines)]
        log.stream.seek(0)
        if len(found) != head.carried_lines or not all(_carries(entry) for entry in found):
            break
        yield from (entry["entry"] for entry in found)
        return
    if head.carried_lines:
        raise Damaged(
            f"read journal {path}: it lacks the lines from {head.carried_from} on, which carry what stands of its removed head",
            "It was edited or damaged; `aquad audit verify` tells more. Move state/audit* aside to go on.",
        )


def _carries(entry: Entry) -> bool:
    original = entry.get("entry")
    return (
        entry["event"] == "carried"
        and isinstance(original, dict)
        and type(original.get("line")) is int
        and type(original.get("event")) is str
        and type(original.get("at")) is str
    )
