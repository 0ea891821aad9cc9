"""The journal `state/audit.jsonl`: what happened, in order, one JSON object a line, each with the digest of the line before.

A line is appended under flock and fsynced before `append` returns. A last line without its newline is what a dying writer
left: the next writer drops it and notes how many bytes it dropped. The chain shows edits; it cannot show a cut tail, which
only an anchor kept elsewhere can (each manifest holds one).

A file that has grown large is renamed to `audit-<last line>.jsonl`, and the chain goes on in a new one: whoever finds no
line in `audit.jsonl` goes on from the newest renamed file, so that a death anywhere in between changes nothing. Whole old
files are removed by `remove_before`. Then `audit.anchor` says where the chain begins, and what still stands is written anew
first, as `carried` lines. Putting `audit.anchor` in place is the moment at which the head is gone and these lines count.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.clock import Clock, to_text
from aquad.core.errors import Damaged, RepositoryRefused
from aquad.storage import chain, files
from aquad.storage.chain import FIRST, Entry, Head, Log, Opened, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

ROTATE_BYTES = 16 << 20


class Removed(NamedTuple):
    """What `remove_before` did: names of files, their lines, and how many lines were carried."""

    files: Sequence[str]
    lines: int
    carried: int


class Journal:
    """`by`: who writes, in every line unless it is empty."""

    def __init__(self, path: Path, clock: Clock, by: str = "") -> None:
        self._path = path
        self._clock = clock
        self._by = by

    def append(self, event: str, **fields: Any) -> Position:
        """Append one line, durably. Raises RepositoryWriteFailed; Damaged when the last line cannot be read."""
        with self._locked() as (fd, before):
            end = self._write(fd, before, [(event, fields)])
            files.sync(fd, self._path)
        return end

    def stamp(self) -> tuple[int, ...]:
        """Another one when it has grown since; empty where that cannot be told."""
        with suppress(FileNotFoundError):  # harmless because it is so in every rotation, and the renamed file is read
            status = self._path.stat()
            return status.st_ino, status.st_size, status.st_mtime_ns
        return ()

    def rotate(self) -> bool:
        """Begin a new file, so that the old one can be removed once it is old. False when there is nothing in this one."""
        with self._locked() as (fd, end):
            done = self._set_aside(fd, end)
        with self._locked():  # it begins the new one
            return done

    def entries(self) -> Iterator[Entry]:
        """Yield the lines from the oldest on; a torn last one is left out.

        What stands of a removed head comes first, as it was written once. It is the stream of before, with lines left out:
        nothing stands in it twice, or later than it did.

        Raises Damaged when the chain is broken, RepositoryRefused when it cannot be read.
        """
        with self.opened() as opened:
            head = chain.head_of(opened.anchor, self._path)
            logs = [log for log in opened.logs if log.number is None or log.number > head.lines]
            with self._reading():
                yield from chain.carried(head, logs, self._path)
            end = Position(head.lines, head.hash)
            for log in logs:
                for line in self._lines(log):
                    entry = chain.parsed(line, self._path)
                    if entry["line"] != end.lines + 1 or entry.get("previous") != end.hash:
                        raise Damaged(
                            f"read journal {self._path.with_name(log.name)}: line {entry['line']} does not follow line {end.lines}",
                            "It was edited or damaged; `aquad audit verify` and a copy kept elsewhere tell more.",
                        )
                    end = Position(entry["line"], hashlib.sha256(line[:-1]).hexdigest())
                    if entry["event"] != "carried":
                        yield entry

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Every file, as they are at one moment; rotation and removal meanwhile change nothing. Takes no lock."""
        while True:
            with ExitStack() as stack, self._reading():
                before = self._state()
                try:
                    logs = self._open(before[1], stack)
                except FileNotFoundError as error:
                    if self._state() == before:
                        raise RepositoryRefused(
                            f"read journal {error.filename}: that name leads nowhere", "Somebody made a link of it."
                        ) from error
                    continue
                if self._state() != before:
                    continue
                kept = stack.pop_all()
            with kept:
                yield Opened(before[0], logs)
                return

    def remove_before(
        self, oldest: datetime, most_bytes: int, standing: Callable[[Iterable[Entry]], Iterable[Entry]]
    ) -> Removed:
        """Remove rotated files whose last line is older than `oldest`, and what makes the journal larger than `most_bytes`.

        Oldest first, and never the current file. `standing` chooses the lines that must not be lost. Whoever calls has seen
        that the clock is right. May be killed and called again. Raises Damaged, and removes nothing, when the chain is broken.
        """
        with self._locked() as (fd, end):
            self._sweep(chain.head_of(self._anchor(), self._path))
            doomed = self._doomed(oldest, most_bytes, os.fstat(fd).st_size)
            if not doomed:
                return Removed((), 0, 0)
            last = self._last_of(doomed[-1])
            before = chain.head_of(self._anchor(), self._path).lines
            entries = self.entries()
            facts = [entry for entry in standing(entries) if entry["line"] <= last.lines]
            deque(entries, maxlen=0)  # to the end, whatever was asked for: the chain has to be whole
            head = Head(last.lines, last.hash, end.lines + 1, len(facts))
            told = {"files": len(doomed), **head._asdict()}
            block = [*(("carried", {"entry": fact}) for fact in facts), ("journal_shortened", told)]
            self._write(fd, end, block)
            files.sync(fd, self._path)
            files.replace(chain.anchor_path(self._path), head.stored())
            self._sweep(head)
        names = tuple(chain.rotated_path(self._path, number).name for number in doomed)
        return Removed(names, last.lines - before, len(facts))

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, Position]]:
        """Hold the current file: begun, its torn end dropped, and not too large. Yields it, and where it ends."""
        while True:
            fd = files.open_log(self._path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not self._is_current(fd):  # somebody renamed it while we waited
                    continue
                end = self._mended(fd)
                if os.fstat(fd).st_size > ROTATE_BYTES and self._set_aside(fd, end):
                    continue
                yield fd, end
                return
            finally:
                files.close(fd, self._path)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _mended(self, fd: int) -> Position:
        """Drop a torn end, and begin a file that has no line yet."""
        line, torn = chain.last_line(fd)
        if torn:
            files.truncate(fd, os.fstat(fd).st_size - torn, self._path)
        missing: list[tuple[str, Mapping[str, Any]]] = []
        if line is None:
            files.sync_directory(self._path.parent)
            end = self._before()
            missing += [("journal_rotated", {})] if end.lines else []
        else:
            end = self._position(line)
        missing += [("journal_torn", {"dropped_bytes": torn})] if torn else []
        if missing:
            end = self._write(fd, end, missing)
            files.sync(fd, self._path)
        return end

    def _before(self) -> Position:
        """Where the chain stands before the first line of the current file."""
        head = chain.head_of(self._anchor(), self._path)
        numbers = chain.rotated_numbers(self._path)
        if numbers and numbers[-1] > head.lines:
            return self._last_of(numbers[-1])
        return Position(head.lines, head.hash)

    def _last_of(self, number: int) -> Position:
        path = chain.rotated_path(self._path, number)
        with self._reading(), path.open("rb") as stream:
            line, torn = chain.last_line(stream.fileno())
        end = self._position(line) if line is not None else Position(0, FIRST)
        if torn or end.lines != number:
            raise Damaged(
                f"read journal {path}: it does not end with line {number}", "`aquad audit verify` tells more about it."
            )
        return end

    def _set_aside(self, fd: int, end: Position) -> bool:
        """Rename the current file, unless it is only begun.

        Not onto another: harmless because then it only grows on, and `audit verify` says so.
        """
        target, before = chain.rotated_path(self._path, end.lines), self._before().lines
        if end.lines <= before + (before > 0) or os.path.lexists(target):
            return False
        files.sync(fd, self._path)  # whoever died before us may have written without it
        files.rename(self._path, target)
        files.sync_directory(self._path.parent)
        return True

    def _doomed(self, oldest: datetime, most_bytes: int, current_bytes: int) -> list[int]:
        numbers = chain.rotated_numbers(self._path)
        with self._reading():
            sizes = {number: chain.rotated_path(self._path, number).stat().st_size for number in numbers}
        total, limit, doomed = current_bytes + sum(sizes.values()), to_text(oldest), []
        for number in numbers:
            if total <= most_bytes and self._last_entry(number)["at"] >= limit:
                break
            doomed.append(number)
            total -= sizes[number]
        return doomed

    def _last_entry(self, number: int) -> Entry:
        with self._reading(), chain.rotated_path(self._path, number).open("rb") as stream:
            return chain.parsed(chain.last_line(stream.fileno())[0] or b"", self._path)

    def _sweep(self, head: Head) -> None:
        """Remove the files of the removed head: they count no more since `audit.anchor` says so."""
        gone = [number for number in chain.rotated_numbers(self._path) if number <= head.lines]
        for number in gone:
            files.remove(chain.rotated_path(self._path, number))
        if gone:
            files.sync_directory(self._path.parent)

    def _write(self, fd: int, after: Position, events: Iterable[tuple[str, Mapping[str, Any]]]) -> Position:
        """Write lines in one go."""
        by, lines = {"by": self._by} if self._by else {}, []
        for event, fields in events:
            start = {"line": after.lines + 1, "at": to_text(self._clock.now()), "event": event}
            entry = {**start, **by, **fields, "previous": after.hash}
            line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode()
            lines.append(line + b"\n")
            after = Position(after.lines + 1, hashlib.sha256(line).hexdigest())
        files.write(fd, b"".join(lines), self._path)
        return after

    def _position(self, line: bytes) -> Position:
        return Position(chain.parsed(line, self._path)["line"], hashlib.sha256(line).hexdigest())

    def _state(self) -> tuple[bytes | None, list[int]]:
        """What rotation and removal change."""
        return self._anchor(), chain.rotated_numbers(self._path)

    def _anchor(self) -> bytes | None:
        try:
            with self._reading(), chain.anchor_path(self._path).open("rb") as stream:
                return stream.read(chain.ANCHOR_BYTES)
        except FileNotFoundError:
            return None

    def _open(self, numbers: Sequence[int], stack: ExitStack) -> list[Log]:
        logs = []
        for number in numbers:
            path = chain.rotated_path(self._path, number)
            logs.append(Log(path.name, number, stack.enter_context(path.open("rb"))))
        with suppress(FileNotFoundError):  # harmless because the chain has not gone on since the last rotation
            logs.append(Log(self._path.name, None, stack.enter_context(self._path.open("rb"))))
        return logs

    def _lines(self, log: Log) -> Iterator[bytes]:
        """The whole lines. Only the file that is written to may end without a newline."""
        with self._reading():
            for line in log.stream:
                if line.endswith(b"\n"):
                    yield line
                elif log.number is not None:
                    raise Damaged(f"read journal {self._path.with_name(log.name)}: its last line is torn")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RepositoryRefused(
                f"read journal {error.filename or self._path}: {os.strerror(error.errno or 0)}",
                "Look at the disk and the limits (ulimit).",
            ) from error
