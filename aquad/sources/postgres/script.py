r"""Reading a plain dump as psql would: statements, the rows of COPY, and the lines that are commands to psql itself.

For a FILE of no manifest, whose parts nobody recorded. What is quoted, a comment or a row is no command, whatever it looks
like. Memory is bounded: a long statement comes in pieces. A text that is cut wrongly fails in psql, where nothing but SQL
is allowed (see psql.py); it cannot do more than its SQL could.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TOKEN = re.compile(
    rb"""(?<![A-Za-z0-9_\x80-\xff])[eE]'|'|"|(?<![A-Za-z0-9_$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"""
    rb"""|--|/\*|;|\n\\"""
)
"""What ends a stretch of plain SQL (PostgreSQL manual, Lexical Structure)."""
ENDS = {b"'": re.compile(rb"'"), b'"': re.compile(rb'"'), b"--": re.compile(rb"\n"), b"/*": re.compile(rb"\*/")}
"""A doubled quote is an end and a beginning."""
ESCAPED_END = re.compile(rb"\\.|'", re.DOTALL)
ROWS_END = re.compile(rb"\n\\\.\n")
SPACE = rb"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)"
"""White space, or a comment. No text fits in two ways, so that nothing is tried twice; possessive quantifiers, which would
say the same, are broken before Python 3.11.5.
"""
LEAD, GAP = SPACE + b"*", SPACE + b"+"
COPY = re.compile(LEAD + rb"COPY\s.*\sFROM\s+stdin(?:\s+WITH\b.*)?;", re.DOTALL | re.IGNORECASE)
MARGIN_BYTES = 140
"""No token is longer: a dollar quote's name has 63 bytes at most, twice that in an odd encoding."""
PIECE_BYTES = 1 << 20


class Piece(NamedTuple):
    """`command` is one line without its end. A long `statement` goes on in pieces of kind `more`."""

    kind: Literal["statement", "more", "rows", "command"]
    text: bytes


def pieces(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Cut a script. All pieces but commands, in order, are the script without its command lines."""
    reading = _Reading(chunks)
    while not reading.done:
        reading.step()
        yield from reading.ready
        reading.ready.clear()


class _Reading:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._text = b"\n"  # so that a command in the first line is one
        self._at = 0
        self._kind: Literal["statement", "more", "rows"] = "statement"
        self._end: re.Pattern[bytes] | None = None
        """What ends the quoted text, the comment or the rows that the position is in; None in plain SQL."""
        self._whole = False
        self.ready: list[Piece] = []
        self.done = False

    def step(self) -> None:
        """Go on to the next token or the end of what was read; read more where that is not enough."""
        pattern = self._end or TOKEN
        found = pattern.search(self._text, self._at)
        if found is None or (found.end() > len(self._text) - MARGIN_BYTES and not self._whole):
            self._at = max(self._at, min(found.start() if found else len(self._text), len(self._text) - MARGIN_BYTES))
            self._read()
        elif self._end is not None:
            self._leave(found)
        else:
            self._enter(found)

    def _read(self) -> None:
        if self._whole:
            self._emit(len(self._text))
            self.done = True
            return
        if self._at > PIECE_BYTES:
            self._emit(self._at, more=True)
        chunk = next(self._chunks, None)
        self._whole = chunk is None
        self._text += chunk or b""

    def _leave(self, found: re.Match[bytes]) -> None:
        self._at = found.end()
        if self._end is ESCAPED_END and found[0] != b"'":
            return
        if self._end is ENDS[b"--"]:
            self._at -= 1  # the newline may begin a command
        elif self._end is ROWS_END:
            self._at -= 1
            self._emit(self._at)
        self._end = None

    def _enter(self, found: re.Match[bytes]) -> None:
        token = found[0]
        self._at = found.end()
        if token == b";":
            copy = self._kind == "statement" and COPY.fullmatch(self._text, 0, self._at) is not None
            self._emit(self._at)
            if copy:
                self._kind, self._end = "rows", ROWS_END
        elif token == b"\n\\":
            self._command(found.start() + 1)
        elif token.lower() == b"e'":
            self._end = ESCAPED_END
        else:
            self._end = ENDS.get(token) or re.compile(re.escape(token))

    def _command(self, start: int) -> None:
        end = self._text.find(b"\n", start)
        while end < 0 and not self._whole:
            chunk = next(self._chunks, None)
            self._whole = chunk is None
            self._text += chunk or b""
            end = self._text.find(b"\n", start)
        end = end if end >= 0 else len(self._text)
        self._emit(start, more=True)
        self.ready.append(Piece("command", self._text[: end - start]))
        self._text = self._text[end - start :]
        self._kind = "statement"

    def _emit(self, end: int, *, more: bool = False) -> None:
        """Hand out the text before `end`; `more`: its statement, or its rows, go on."""
        if end:
            self.ready.append(Piece(self._kind, self._text[:end]))
        self._text, self._at = self._text[end:], 0
        if self._kind == "statement" and more:
            self._kind = "more"
        elif not more:
            self._kind = "statement"
