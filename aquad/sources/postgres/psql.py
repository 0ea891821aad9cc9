r"""Feeding SQL text to psql so that nothing in it is a command to psql itself.

Every text goes in behind a `\restrict` with a fresh random key of ours (CVE-2025-8714): from there on psql refuses every
backslash command but `\.`, in mid-line too. The text's own `\restrict` and `\unrestrict` lines, known by their token, are cut.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from aquad.core.errors import ChildFailed, RestoreFailed
from aquad.core.escape import escaped
from aquad.core.process import Child
from aquad.sources.postgres import server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aquad.sources.postgres.server import Login
    from aquad.sources.postgres.tools import Tools
    from aquad.stream.artifact import RunContext

HEAD_BYTES = 64 << 10
TOKEN = re.compile(rb"\A(?:--[^\n]*\n|\n)*(\\restrict ([A-Za-z0-9]{1,256})\n)")
"""Behind nothing but comments: a line that looks so in a function's body is the user's own."""


def feed(login: Login, database: str, chunks: Iterable[bytes], tools: Tools, run: RunContext) -> None:
    """Run a text in one database, stopping at the first error. Raises RestoreFailed with what psql said."""
    if not tools.knows_restrict:
        raise RestoreFailed(
            f"restore with psql {tools.version}: it does not know \\restrict",
            "Set postgres.bin_dir to newer tools of this major (14.19, 15.14, 16.10, 17.6, 18).",
        )
    argv = [
        tools.path("psql"),
        "--no-psqlrc",
        "--quiet",
        "--no-password",
        "--set=ON_ERROR_STOP=1",
        "--output=/dev/null",
        f"--dbname={server.conninfo(login, database)}",
    ]
    with server.tool_access(login, run.run_id) as access:
        try:
            with Child(
                argv,
                environment=access.environment,
                keep_fds=(*run.keep_fds, access.passfile_fd),
                stdin=True,
                deadline=run.deadline,
            ) as child:
                child.feed(restricted(chunks))
        except ChildFailed as error:
            raise RestoreFailed(
                f"restore into database {escaped(database)}: {error.message}", "The live database is as it was."
            ) from error


def restricted(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Put our own lock in front, and cut the text's own, whatever the chunking."""
    yield b"\\restrict " + secrets.token_hex(16).encode() + b"\n"
    stream = iter(chunks)
    head = b""
    while len(head) < HEAD_BYTES and (chunk := next(stream, b"")):
        head += chunk
    token = TOKEN.search(head)
    if token is None:
        yield head
        yield from stream
        return
    end = b"\n\\unrestrict " + token[2] + b"\n"
    held = b"\n" + head[: token.start(1)] + head[token.end(1) :]
    yield from _without(end, held, stream)


def _without(needle: bytes, held: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        found = held.find(needle)
        if found >= 0:
            yield held[: found + 1]
            held = held[found + len(needle) - 1 :]
            continue
        keep = len(needle) - 1
        if len(held) > keep:
            yield held[:-keep]
            held = held[-keep:]
        chunk = next(stream, b"")
        if not chunk:
            yield held
            return
        held += chunk


def statements(text: str) -> Iterator[str]:
    """Cut plain SQL (no dollar quotes: globals have none) into statements, minding quoted text; comments are dropped."""
    pattern = re.compile(r"""--[^\n]*\n|'(?:[^']|'')*'|"(?:[^"]|"")*"|\\[^\n]*\n|;|[^'";\\-]+|.""", re.DOTALL)
    statement = ""
    for piece in pattern.findall(text):
        if piece.startswith(("--", "\\")) and piece.endswith("\n"):
            continue
        statement += piece
        if piece == ";":
            yield statement.strip()
            statement = ""
