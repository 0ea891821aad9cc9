r"""What a restore reads from: a dump of ours, whose parts the manifest names, or a FILE that somebody vouched for.

A FILE is what pg_dump or pg_dumpall write as plain SQL, ours too. It is read through once before anything is done: which
databases are in it, how many rows, and that it is whole. Its `\connect` lines say where a text belongs, and are not carried
out; statements about a database itself are kept apart, for the live one of that name must not feel them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from psycopg import ProgrammingError, conninfo, sql

from aquad.core.errors import RestoreFailed
from aquad.core.escape import escaped
from aquad.sources.postgres import swap
from aquad.sources.postgres.copy_rows import IDENTIFIER, RowCounter, unquoted
from aquad.sources.postgres.script import GAP, LEAD, Piece, pieces
from aquad.stream.gzip import inflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from aquad.sources.postgres.server import Login
    from aquad.stream.artifact import Facts, Reader

    Feed = Callable[[str, Iterable[bytes]], None]
    """Runs a text in one database."""

CREATE = re.compile(
    LEAD + rb"CREATE" + GAP + rb"DATABASE" + GAP + rb"(" + IDENTIFIER + rb")(.*);", re.DOTALL | re.IGNORECASE
)
ABOUT = re.compile(
    LEAD
    + rb"(?:(?P<alter>ALTER)|(?P<drop>DROP)|(?P<comment>COMMENT"
    + GAP
    + rb"ON)|(?:GRANT|REVOKE)\s[^;]*?\sON|SECURITY\s+LABEL\s[^;]*?\sON|ALTER\s+(?:ROLE|USER)\s+"
    + IDENTIFIER
    + rb"\s+IN)"
    + GAP
    + rb"DATABASE"
    + GAP
    + rb"(?:IF\s+EXISTS\s+)?(?P<name>"
    + IDENTIFIER
    + rb")",
    re.DOTALL | re.IGNORECASE,
)
ENCODING_SET = re.compile(LEAD + rb"SET\s+client_encoding\s", re.IGNORECASE)
CONNECT = re.compile(rb"\\c(?:onnect)? (?:-reuse-previous=on )?(.*)", re.DOTALL)
ENCODING = re.compile(rb"\\encoding (\w+)")
DUMPED_FROM = re.compile(rb"\n-- Dumped from database version (\d+)")
ROLE = re.compile(r'CREATE ROLE ("(?:[^"]|"")+"|[^\s;]+)')
CLUSTER_HEADER = b"-- PostgreSQL database cluster dump\n"
CLUSTER_TRAILER = b"-- PostgreSQL database cluster dump complete\n"
TRAILER = re.compile(rb"\n-- PostgreSQL database (?:cluster )?dump complete\n--\s*\Z")
TAIL_BYTES = 4096


class Database(NamedTuple):
    """`rows`: per table as pg_dump writes its name, None where they were not counted. `size_bytes`: on disk, or about that."""

    name: str
    rows: Mapping[str, int | None]
    size_bytes: int


class Dump(Protocol):
    databases: Sequence[Database]
    roles: Sequence[str]
    major: int | None
    """Of the server that was dumped; None where the text does not say."""

    @property
    def tool_version(self) -> str:
        """Of the tools that wrote it, or ''."""
        ...

    def globals(self) -> str:
        """Statements that make roles, and others."""
        ...

    def create(self, login: Login, feed: Feed, name: str, database: Database) -> None:
        """Make an empty database under another name."""
        ...

    def body(self, database: Database, *, schema_only: bool) -> Iterator[bytes]: ...

    def about(self, database: Database) -> Sequence[bytes]:
        """Statements about the database itself, by its own name: settings, rights, comment. Each stands for itself."""
        ...


def renamed(statements: Iterable[bytes], name: str, kind: Literal["settings", "rights", "comment"]) -> Iterator[bytes]:
    """Those of one kind, for a database of another name. DROP is of none."""
    for statement in statements:
        found = _about(statement)
        if found is not None and found["drop"] is None:
            of = "settings" if found["alter"] else "comment" if found["comment"] else "rights"
            if of == kind:
                yield statement[: found.start("name")] + _quoted(name) + statement[found.end("name") :] + b"\n"


def _about(statement: bytes) -> re.Match[bytes] | None:
    """Match a statement about a database, also behind one that sets the encoding of its text."""
    encoding = ENCODING_SET.match(statement)
    return ABOUT.match(statement, statement.index(b";") + 1 if encoding else 0)


class SealedDump:
    """A dump of ours."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._facts: dict[str, Facts] = {facts["name"]: facts for facts in reader.facts["databases"]}
        self.databases: Sequence[Database] = [
            Database(name, facts["rows"], facts["size_bytes"]) for name, facts in self._facts.items()
        ]
        self.roles: Sequence[str] = reader.facts["roles"]
        self.major: int | None = reader.facts["server_version"] // 10000

    @property
    def tool_version(self) -> str:
        return str(self._reader.facts["tool_version"])

    def globals(self) -> str:
        return b"".join(self._part("globals", ".sql.gz")).decode("utf-8", "surrogateescape")

    def create(self, login: Login, feed: Feed, name: str, database: Database) -> None:  # noqa: ARG002 - the facts are enough
        swap.create(login, name, self._facts[database.name])

    def body(self, database: Database, *, schema_only: bool) -> Iterator[bytes]:
        if schema_only:
            return self._part(f"{database.name}:schema", ".sql")
        return self._part(f"{database.name}:body", ".sql.gz")

    def about(self, database: Database) -> Sequence[bytes]:
        text = b"".join(self._part(f"{database.name}:properties", ".sql.gz"))
        # Without its first line, by which psql would connect to the database: aquad makes the connections.
        found = [piece.text for piece in pieces([text.partition(b"\n")[2]]) if piece.kind == "statement"]
        encoding = next((statement for statement in found if ENCODING_SET.match(statement)), b"")
        return [encoding + statement for statement in found if ABOUT.match(statement)]

    def _part(self, name: str, suffix: str) -> Iterator[bytes]:
        artifact = next(artifact for artifact in self._reader.artifacts if artifact.path.endswith(suffix))
        part = next((part for part in artifact.parts if part.name == name), None)
        if part is None:
            raise RestoreFailed(
                f"restore from {self._reader.origin}: {escaped(artifact.path)} has no part {escaped(name)}"
            )
        stored = self._reader.read(artifact.path, part.offset, part.length)
        return inflate(stored, artifact.path) if artifact.gzip else stored


class ForeignDump:
    """A FILE of no manifest. `alone`: the name for what a dump of one database without its name holds."""

    tool_version = ""

    def __init__(self, reader: Reader, alone: str | None) -> None:
        self._reader = reader
        self.major: int | None = None
        self._globals: list[bytes] = []
        self._creates: dict[str, bytes] = {}
        self._about: dict[str, list[bytes]] = {}
        self._encoding = b""
        self._is_cluster = False
        counters: dict[str | None, RowCounter] = {}
        sizes: dict[str | None, int] = {}
        for database, text in self._texts(survey=True):
            counters.setdefault(database, RowCounter()).feed(text)
            sizes[database] = sizes.get(database, 0) + len(text)
        self._alone = None
        names: list[str | None] = [name for name in counters if name is not None]
        if not names and not self._creates and None in counters:
            self._alone = alone
            names = [None]
            if alone is None:
                raise RestoreFailed(
                    f"restore postgres from {escaped(reader.origin)}: it is a dump of one database that does not say which",
                    "Say where it goes: --database NAME. Nothing was changed.",
                )
        self.databases: Sequence[Database] = [
            Database(name or alone or "", counters[name].rows(), sizes[name]) for name in names
        ]
        self.roles: Sequence[str] = [unquoted(role) for role in ROLE.findall(self.globals())]

    def globals(self) -> str:
        return b"".join(self._globals).decode("utf-8", "surrogateescape")

    def create(self, login: Login, feed: Feed, name: str, database: Database) -> None:
        options = self._creates.get(database.name, b" TEMPLATE template0")
        feed("postgres", [b"CREATE DATABASE " + _quoted(name) + options + b";\n"])
        swap.mark_half_restored(login, name)

    def body(self, database: Database, *, schema_only: bool) -> Iterator[bytes]:
        if schema_only:
            raise RestoreFailed(
                f"restore the schema alone from {escaped(self._reader.origin)}: a file of no manifest holds rows and schema as one",
                "Restore all of it under another name (--to-name), or use a backup of the repository.",
            )
        wanted = None if self._alone is not None else database.name
        return (text for name, text in self._texts(survey=False) if name == wanted)

    def about(self, database: Database) -> Sequence[bytes]:
        return self._about.get(database.name, [])

    def _texts(self, *, survey: bool) -> Iterator[tuple[str | None, bytes]]:
        """The texts that go into each database (None: before any is named), without commands, and what is about databases."""
        database: str | None = None
        tail, cluster = b"", 0
        for piece in pieces(self._plain()):
            if survey and piece.kind != "command":
                tail = (tail + piece.text[-TAIL_BYTES:])[-TAIL_BYTES:]
                self._is_cluster = self._is_cluster or CLUSTER_HEADER in piece.text
                cluster += piece.text.count(CLUSTER_HEADER) - piece.text.count(CLUSTER_TRAILER)
            if piece.kind == "command":
                database, text = self._obey(piece.text, database)
                if text:
                    yield database, text
            elif not (piece.kind == "statement" and self._keep_apart(piece, database, survey=survey)):
                yield database, piece.text
        if survey and (cluster or not TRAILER.search(tail)):
            raise RestoreFailed(
                f"restore postgres from {escaped(self._reader.origin)}: it does not end as pg_dump or pg_dumpall end a dump",
                "It was cut off, or is no plain dump (of an archive: pg_restore --file=dump.sql ARCHIVE). Nothing was changed.",
            )

    def _keep_apart(self, piece: Piece, database: str | None, *, survey: bool) -> bool:
        """True for a statement that goes into no database's body."""
        created, about = CREATE.fullmatch(piece.text), ABOUT.match(piece.text)
        if survey:
            version = DUMPED_FROM.search(piece.text)
            self.major = int(version[1]) if version else self.major
            if created:
                self._creates[_name(created[1])] = created[2]
            elif about:
                self._about.setdefault(_name(about["name"]), []).append(self._encoding + piece.text)
            elif ENCODING_SET.match(piece.text):
                self._encoding = piece.text
            elif database is None and self._is_cluster:
                self._globals.append(piece.text)
        return created is not None or about is not None

    def _obey(self, line: bytes, database: str | None) -> tuple[str | None, bytes]:
        """What a command changes: the database that the text goes to, or the text. Raises for one that no dump has."""
        connect, encoding = CONNECT.fullmatch(line), ENCODING.fullmatch(line)
        if connect is not None:
            return _connected(connect[1]), b""
        if encoding is not None:
            return database, b"SET client_encoding = '" + encoding[1] + b"';\n"
        if line.startswith((b"\\restrict ", b"\\unrestrict ")):
            return database, b""
        raise RestoreFailed(
            f"restore postgres from {escaped(self._reader.origin)}: {escaped(line[:80])} is a command to psql that no dump holds",
            "This file is hostile or was written by hand: run it yourself, if you know what it does. Nothing was changed.",
        )

    def _plain(self) -> Iterator[bytes]:
        (artifact,) = self._reader.artifacts
        stored = self._reader.read(artifact.path)
        return inflate(stored, artifact.path) if artifact.gzip else stored


def open_dump(reader: Reader, alone: str | None) -> Dump:
    return SealedDump(reader) if reader.sealed else ForeignDump(reader, alone)


def _connected(argument: bytes) -> str:
    """The database of a `\\connect` line: a name, quoted or not, or a connection string."""
    text = argument.decode("utf-8", "surrogateescape")
    bare = unquoted(text) if not text.startswith("'") else text[1:-1].replace("''", "'")
    if "=" not in bare:
        return bare
    try:
        found: Any = conninfo.conninfo_to_dict(bare).get("dbname")
    except ProgrammingError as error:
        raise RestoreFailed(f"read \\connect {escaped(text)}: {escaped(str(error).strip())}") from error
    return str(found)


def _name(identifier: bytes) -> str:
    return unquoted(identifier.decode("utf-8", "surrogateescape"))


def _quoted(name: str) -> bytes:
    return sql.Identifier(name).as_bytes(None)
