"""The journal looked at: by filters, and whether it is what was written. Verification goes on after what it finds."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.clock import to_text
from aquad.core.escape import escaped
from aquad.storage import chain
from aquad.storage.chain import Head, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import Manifest
    from aquad.storage.chain import Entry, Log, Opened
    from aquad.storage.journal import Journal

PROBLEMS = 20
"""More are counted, not told."""
LINE_BYTES = 64 << 20
"""A longer line is none of ours: it is looked at in pieces, each of which is a problem."""


class Anchor(NamedTuple):
    """Somebody saw line number `lines` with the digest `hash`."""

    whose: str
    lines: int
    hash: str


class Audit(NamedTuple):
    lines: int
    files: int
    problems: Sequence[str]
    more: int
    """How many problems are not told."""
    anchors: int
    """How many anchors were compared and fitted."""
    newest: Anchor | None
    """That of the newest manifest: whatever was done to the journal up to there shows."""
    end: Position
    """Where the journal ends: what to keep elsewhere."""
    notes: Sequence[str]


def verify_audit(journal: Journal, catalog: Catalog[Manifest], kept_elsewhere: Iterable[Position] = ()) -> Audit:
    """Read every line, and compare with what manifests and `kept_elsewhere` say of it. `catalog` was read before this.

    Finds any changed, removed, added or reordered line up to the newest anchor. Raises RepositoryRefused when a file cannot
    be opened, and nothing for what is in it.
    """
    of_manifests = [Anchor(f"the manifest of {b.id}", b.journal.lines, b.journal.hash) for b in catalog.backups]
    check = _Check([*of_manifests, *(Anchor("the anchor kept elsewhere", *one) for one in kept_elsewhere)])
    with journal.opened() as opened:
        check.read(opened)
    check.compare()
    newest = of_manifests[0] if of_manifests else None
    notes = [
        *check.notes,
        *(f"the manifest of {escaped(bad.id)} is damaged: its anchor was not compared" for bad in catalog.unreadable),
        *_limits(newest, check.end),
    ]
    return Audit(check.lines, check.files, check.problems, check.more, check.fitted, newest, check.end, notes)


def show_audit(
    entries: Iterable[Entry],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    event: str | None = None,
    backup: str | None = None,
    job: str | None = None,
    outcome: str | None = None,
    by: str | None = None,
    limit: int | None = None,
) -> list[Entry]:
    """The lines that fit all that is asked for, the newest `limit` of them, in order.

    From `since` on, before `until`. `backup`, `by`: how it begins. `job`: also what its runs wrote without naming it.
    """
    first, last = to_text(since) if since else "", to_text(until) if until else "~"
    jobs: dict[object, object] = {}
    found: deque[Entry] = deque(maxlen=limit)
    for entry in entries:
        of_job = entry.get("job")
        if job is not None and "run" in entry:
            of_job = jobs[entry["run"]] = of_job or jobs.get(entry["run"])
        fits = (
            first <= entry["at"] < last
            and event in {None, entry["event"]}
            and outcome in {None, entry.get("outcome")}
            and job in {None, of_job}
            and (backup is None or str(entry.get("backup", "")).startswith(backup))
            and (by is None or str(entry.get("by", "")).startswith(by))
        )
        if fits:
            found.append(entry)
    return list(found)


def _limits(newest: Anchor | None, end: Position) -> list[str]:
    """What no look at this repository can find, and what helps."""
    if newest is None:
        after = "no manifest holds an anchor: lines"
    else:
        after = f"lines after line {newest.lines}, which {newest.whose} holds as its anchor,"
    return [
        f"{after} can be cut off from the end, and the last one can be changed, without a trace here",
        "who rewrites the journal and the manifests together leaves no trace here",
        f"an anchor that is kept elsewhere shows both; write down: {end.lines} {end.hash}",
    ]


class _Check:
    def __init__(self, anchors: Sequence[Anchor]) -> None:
        self.lines = self.files = self.fitted = self.more = 0
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.end = Position(0, chain.FIRST)
        self._anchors = anchors
        self._wanted = {(anchor.lines, anchor.hash) for anchor in anchors}
        self._found: set[tuple[int, str]] = set()
        self._head = chain.NOTHING_REMOVED
        self._known = True
        """Whether it is known what the next line has to follow."""
        self._told_of_head = False
        self._carried = 0

    def read(self, opened: Opened) -> None:
        head = chain.head_in(opened.anchor)
        if head is None:
            self._known = False
            self._problem("audit.anchor: it is not what aquad writes, so that nobody knows where the journal begins")
        else:
            self._head, self.end = head, Position(head.lines, head.hash)
        for log in opened.logs:
            if log.number is not None and log.number <= self._head.lines:
                self.notes.append(f"{log.name} is of the removed head: the next cleanup removes it")
            else:
                self._read(log)
        if head is not None and head.lines:
            self._check_head(head)

    def compare(self) -> None:
        """With what somebody saw once."""
        head, uncompared = self._head, 0
        for anchor in self._anchors:
            position = anchor.lines, anchor.hash
            if position in self._found or position == (head.lines, head.hash):
                self.fitted += 1
            elif 0 < anchor.lines < head.lines:
                uncompared += 1
            elif anchor.lines > self.end.lines:
                self._problem(
                    f"{anchor.whose} names line {anchor.lines}, and the journal ends with line {self.end.lines}: its end is lost, or it began anew"
                )
            else:
                self._problem(f"{anchor.whose} names line {anchor.lines}, which is not what stood there then")
        if uncompared:
            self.notes.append(f"{uncompared} anchors name lines of the removed head, and were not compared")

    def _read(self, log: Log) -> None:
        self.files += 1
        try:
            for stored in iter(lambda: log.stream.readline(LINE_BYTES), b""):
                if stored.endswith(b"\n") or len(stored) == LINE_BYTES:
                    self._line(log.name, stored.removesuffix(b"\n"))
                elif log.number is None:
                    self.notes.append(
                        f"{log.name} ends with {len(stored)} bytes of a torn line: the next writer drops it"
                    )
                else:
                    self._problem(f"{log.name}: its last line is torn")
        except OSError as error:
            self._problem(f"{log.name}: it cannot be read after line {self.end.lines}: {os.strerror(error.errno or 0)}")
        if log.number is not None and self.end.lines != log.number:
            self._problem(f"{log.name}: it ends with line {self.end.lines}")

    def _line(self, name: str, line: bytes) -> None:
        self.lines += 1
        digest, entry = hashlib.sha256(line).hexdigest(), chain.entry_in(line)
        if entry is None:
            self.end = Position(self.end.lines + 1, digest)
            self._problem(f"{name}: line {self.end.lines} is not what aquad writes")
            return
        number = entry["line"]
        if self._known:
            self._follow(name, entry)
        else:
            self._head = Head(number - 1, "", number, 0)
            self._known = True
        self.end = Position(number, digest)
        if (number, digest) in self._wanted:
            self._found.add((number, digest))
        head = self._head
        if entry["event"] == "journal_shortened":
            self._told_of_head |= all(entry.get(key) == value for key, value in head._asdict().items())
        elif entry["event"] == "carried" and head.carried_from <= number < head.carried_from + head.carried_lines:
            self._carried += 1

    def _follow(self, name: str, entry: Entry) -> None:
        number, expected = entry["line"], self.end.lines + 1
        if number > expected:
            missing = f"line {expected} is" if number == expected + 1 else f"lines {expected} to {number - 1} are"
            self._problem(f"{name}: before line {number}, {missing} missing")
        elif number < expected:
            self._problem(f"{name}: line {number} stands where line {expected} belongs")
        elif entry.get("previous") != self.end.hash:
            self._problem(f"{name}: line {number} does not follow line {self.end.lines}: one of the two was changed")

    def _check_head(self, head: Head) -> None:
        if not self._told_of_head:
            self._problem(
                f"audit.anchor says that lines 1 to {head.lines} were removed, and no line of the journal tells of just that"
            )
        elif self._carried != head.carried_lines:
            self._problem(
                f"{self._carried} of {head.carried_lines} lines that carry what stands of the removed head are there"
            )

    def _problem(self, what: str) -> None:
        if len(self.problems) < PROBLEMS:
            self.problems.append(what)
        else:
            self.more += 1
