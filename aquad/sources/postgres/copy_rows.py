"""Counting rows on a plain dump as it passes, at the speed of memory: one line of a COPY block is one row.

A block begins with a COPY line behind pg_dump's own comment `-- Data for Name: ...; Type: TABLE DATA; ...`, so that a
function body with a COPY line in it is none. A table that appears twice, or in a shape not expected, is not counted
(None), never counted wrong.
"""

from __future__ import annotations

import re

from aquad.core.errors import SourceFailed

IDENTIFIER = rb'(?:[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*|"(?:[^"]|"")+")'
START = re.compile(
    rb"\n-- Data for Name: [^\n]*; Type: TABLE DATA; Schema: [^\n]*\n--\n\nCOPY ("
    + IDENTIFIER
    + rb"\."
    + IDENTIFIER
    + rb") (?:\((?:[^\"()]|\"(?:[^\"]|\"\")+\")*\))? ?FROM stdin;\n",
    re.DOTALL,
)
COMMENT = b"\n-- Data for Name: "
END = b"\n\\.\n"
TRAILER = b"\n-- PostgreSQL database dump complete\n"
HEADER_BYTES = 1 << 20
"""A COPY line with 1,600 columns of 63 bytes is shorter."""
TAIL_BYTES = 4096


def unquoted(identifier: str) -> str:
    """Return the name that an SQL identifier, quoted or not, stands for."""
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier


class RowCounter:
    """Feed it every chunk, in order; then ask for `rows`. Any chunking gives the same answer."""

    def __init__(self) -> None:
        self._rows: dict[str, int | None] = {}
        self._table: str | None = None
        self._count = 0
        self._held = b"\n"
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk[-TAIL_BYTES:])[-TAIL_BYTES:]
        text = self._held + chunk
        position = 0
        while position < len(text):
            position, more = self._inside(text, position) if self._table is not None else self._outside(text, position)
            if not more:
                break
        self._held = text[position:]

    def rows(self) -> dict[str, int | None]:
        """Rows per table, as pg_dump writes its name."""
        return self._rows

    def check_end(self) -> None:
        """Raises SourceFailed when the dump has no end."""
        if TRAILER not in self._tail or self._table is not None:
            raise SourceFailed(
                "dump: it does not end with 'PostgreSQL database dump complete'", "The server or the network ended it."
            )

    def _outside(self, text: bytes, position: int) -> tuple[int, bool]:
        found = text.find(COMMENT, position)
        if found < 0:
            return max(position, len(text) - len(COMMENT) + 1), False
        match = START.match(text, found)
        if match is None:
            # The COPY line may still be under way; a comment that is none of a table's is passed over.
            whole = text.find(b"FROM stdin;\n", found) >= 0 or len(text) - found > HEADER_BYTES
            return (found + 1, True) if whole else (found, False)
        self._table = match[1].decode("utf-8", "surrogateescape")
        self._count = 0
        return match.end() - 1, True

    def _inside(self, text: bytes, position: int) -> tuple[int, bool]:
        """What is counted ends with the byte at `position`; a block's end may begin there."""
        # A block ends with a backslash, and most rows have none: looking for one byte is ten times faster than for four.
        backslash = text.find(b"\\", position)
        end = text.find(END, max(position, backslash - 1)) if backslash >= 0 else -1
        if end < 0:
            stop = max(position, len(text) - len(END) + 1)
            self._count += text.count(b"\n", position + 1, stop + 1)
            return stop, False
        self._count += text.count(b"\n", position + 1, end + 1)
        table = self._table or ""
        self._rows[table] = None if table in self._rows else self._count
        self._table = None
        return end + len(END) - 1, True
