"""Bringing databases back: beside the live one, counted, and only then swapped in. The old one is kept until discarded."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import AquadError, RestoreFailed, SourceFailed, Unreachable
from aquad.core.escape import escaped
from aquad.sources.postgres import psql, server, swap, tools
from aquad.sources.postgres.copy_rows import IDENTIFIER, unquoted
from aquad.sources.postgres.dumps import open_dump, renamed
from aquad.stream.artifact import Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from psycopg import Connection

    from aquad.sources.postgres.dumps import Database, Dump
    from aquad.sources.postgres.server import Login
    from aquad.sources.postgres.tools import Tools
    from aquad.stream.artifact import Facts, Reader, RunContext

MADE_BY_INITDB = ("template1", "postgres")
TABLE = re.compile(IDENTIFIER + rb"\." + IDENTIFIER)
ROLE_STATEMENT = re.compile(r'(?:CREATE ROLE|ALTER ROLE|COMMENT ON ROLE) ("(?:[^"]|"")+"|[^\s;]+)')
MEMBERSHIP = re.compile(r'GRANT ("(?:[^"]|"")+"|[^\s;,]+) TO ("(?:[^"]|"")+"|[^\s;,]+)')


class PostgresTarget(NamedTuple):
    """`login`: another server, None for the configured one. `database`: only this one, None for all of the backup."""

    login: Login | None = None
    database: str | None = None
    to_name: str | None = None
    schema_only: bool = False
    in_place: bool = False
    with_globals: bool = False


class _Live(NamedTuple):
    """What the server holds before the restore."""

    version: int
    roles: Sequence[str]
    databases: Mapping[str, Mapping[str, Any]]
    empty: bool
    slots: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, login: Login, run_id: str = "") -> _Live:
        with server.connect(login, run_id=run_id) as connection:
            facts = server.server_facts(connection)
            databases = {d["name"]: d for d in server.database_facts(connection, facts["server_version"])}
            slots = connection.execute(
                b"SELECT slot_name::text, database::text FROM pg_replication_slots WHERE database IS NOT NULL"
            ).fetchall()
        empty = swap.is_empty(login, databases, facts["roles"])
        return cls(facts["server_version"], facts["roles"], databases, empty, [(slot, of) for slot, of in slots])

    @property
    def major(self) -> int:
        return self.version // 10000

    @property
    def minor(self) -> int:
        return self.version % 10000


class PostgresRestore:
    """`data_path`: where the configured server's data directory is mounted here; only its free space is looked at."""

    def __init__(self, *, login: Login, bin_dir: str, data_path: Path | None) -> None:
        self._login = login
        self._bin_dir = bin_dir
        self._data_path = data_path

    def plan_restore(self, reader: Reader, target: PostgresTarget) -> list[Step]:
        dump = _dump(reader, target)
        chosen = _chosen(reader, dump, target)
        login = target.login or self._login
        live = _Live.of(login)
        found = tools.find(live.major, self._bin_dir)
        if dump.major is not None and live.major < dump.major:
            raise RestoreFailed(
                f"restore to {login}: it is PostgreSQL {live.major}, the backup is of {dump.major}",
                "Restore to the same major or a newer one.",
            )
        older = bool(dump.tool_version) and live.minor < int(dump.tool_version.partition(".")[2] or 0)
        warning = f"the server's minor is older than the tools {dump.tool_version} that wrote the dump" if older else ""
        steps = [Step(f"into {login} with psql {found.version}", warning=warning)]
        missing = sorted(set(dump.roles) - set(live.roles))
        if missing:
            steps.append(Step(f"create missing roles: {', '.join(escaped(role) for role in missing)}"))
        if target.with_globals:
            steps.append(
                Step("alter existing roles as they were", overwrites="attributes and passwords of existing roles")
            )
        for database in chosen:
            steps += self._steps(database, live, target)
        return steps

    def _steps(self, database: Database, live: _Live, target: PostgresTarget) -> list[Step]:
        name = target.to_name or database.name
        shown = escaped(name)
        if name in MADE_BY_INITDB:
            if not live.empty and name in {target.database, target.to_name}:
                raise RestoreFailed(
                    f"restore database {shown}: it is only restored into an empty cluster",
                    "Restore it under another name: --to-name NAME. Nothing was changed.",
                )
            if not live.empty:
                return [Step(f"leave database {shown} as it is: it is only restored into an empty cluster")]
            return [Step(f"fill database {shown} in place: the cluster is empty")]
        old = live.databases.get(name)
        freed = int(old["size_bytes"]) if old and target.in_place else 0
        fill = self._fill(database, target, freed)
        if old is None:
            return [fill._replace(text=f"create database {shown} and {fill.text}")]
        slots = [slot for slot, of in live.slots if of == name]
        warning = f"logical slots of the old database: {', '.join(slots)}" if slots else ""
        if target.in_place:
            gone = f"database {shown}, which is GONE before the new one is there"
            return [Step(f"DROP database {shown}", overwrites=gone, warning=warning), fill]
        kept = "kept until `aquad restore discard`"
        return [
            fill._replace(text=f"make a new database beside it and {fill.text}"),
            Step(
                f"end the sessions of {shown}, rename it ({kept}), put the new one in its place",
                overwrites=f"database {shown} (the old one is {kept})",
                warning=warning,
            ),
        ]

    def _fill(self, database: Database, target: PostgresTarget, freed_bytes: int) -> Step:
        """The step that needs the space of the whole database, on a disk that is only seen where it is mounted here."""
        if target.schema_only:
            return Step("fill it with the schema")
        text = f"fill it (about {database.size_bytes >> 20} MiB on the server's disk), compare row counts"
        if target.login is None and self._data_path is not None and self._data_path.is_dir():
            return Step(text, needs_bytes=max(0, database.size_bytes - freed_bytes), on_path=str(self._data_path))
        return Step(text, warning="free space on the server is not known here: look there first (df)")

    def restore(self, reader: Reader, target: PostgresTarget, run: RunContext) -> Facts:
        dump = _dump(reader, target)
        chosen = _chosen(reader, dump, target)
        login = target.login or self._login
        swap.after_dead_restores(login)
        live = _Live.of(login, run.run_id)
        work = _Work(dump, target, login, tools.find(live.major, self._bin_dir), run)
        try:
            work.globals(set(live.roles))
            restored: dict[str, dict[str, Any]] = {}
            skipped = []
            for database in chosen:
                name = target.to_name or database.name
                if name in MADE_BY_INITDB:
                    if live.empty:
                        restored[name] = work.fill_in_place(database)
                    elif database.rows:
                        skipped.append(f"database {name} has tables, and is only restored into an empty cluster")
                else:
                    restored[name] = work.one(database, name, exists=name in live.databases)
        except (SourceFailed, Unreachable) as error:
            server.end_sessions(login, [run.run_id])
            raise RestoreFailed(
                f"restore to {login}: {error.message}",
                f"The live databases are as they were, but for those restored before. {error.hint}",
            ) from error
        kept = [one["kept"] for one in restored.values() if one.get("kept")]
        kept = kept if target.login is None else []
        return {"server": str(login), "databases": restored, "kept": kept, "skipped": skipped}

    def kept_aside(self) -> list[str]:
        """Databases that a restore replaced, on the configured server."""
        return swap.kept_aside(self._login)

    def discard(self, database: str) -> None:
        """Drop one of them. Raises RestoreFailed for a database that is none."""
        swap.discard(self._login, database)


class _Work:
    """One restore under way."""

    def __init__(self, dump: Dump, target: PostgresTarget, login: Login, found: Tools, run: RunContext) -> None:
        self._dump = dump
        self._target = target
        self._login = login
        self._tools = found
        self._run = run

    def globals(self, existing: set[str]) -> None:
        """Create the roles that are missing. Those that exist are only altered when that was asked for."""
        text = self._dump.globals()
        chosen = [statement for statement in psql.statements(text) if self._wanted(statement, existing)]
        if chosen:
            self._feed("postgres", ["\n".join(chosen).encode("utf-8", "surrogateescape") + b"\n"])

    def _wanted(self, statement: str, existing: set[str]) -> bool:
        membership = MEMBERSHIP.match(statement)
        if membership:
            return self._target.with_globals or any(unquoted(role) not in existing for role in membership.groups())
        role = ROLE_STATEMENT.match(statement)
        if role is None:
            return False
        exists = unquoted(role[1]) in existing
        return not exists or (self._target.with_globals and not statement.startswith("CREATE ROLE"))

    def fill_in_place(self, database: Database) -> dict[str, Any]:
        name, about = database.name, self._dump.about(database)
        self._feed(name, self._body(database))
        compared = self._compared(database, name)
        for kind in ("settings", "rights", "comment"):
            self._feed(name, renamed(about, name, kind))
        return compared

    def one(self, database: Database, name: str, *, exists: bool) -> dict[str, Any]:
        """Beside, compared, swapped. Whatever fails, the half-made database goes and the live one stays."""
        stamp = self._run.timestamp
        if exists and self._target.in_place:
            swap.drop(self._login, name)
            exists = False
        new = swap.free_name(self._login, f"aquad_new_{stamp}")
        about = self._dump.about(database)
        kept = None
        try:
            self._dump.create(self._login, self._feed, new, database)
            # Before the rows: a materialised view is computed anew, and must see the database's own time zone.
            self._feed(new, renamed(about, new, "settings"))
            self._feed(new, self._body(database))
            compared = self._compared(database, new)
            self._feed(new, renamed(about, new, "rights"))
            kept = swap.put_in_place(self._login, new, name, stamp=stamp, exists=exists)
        finally:
            if kept is None:
                self._drop_half(new)
        try:
            self._feed(name, renamed(about, name, "comment"))
        except RestoreFailed as error:
            said = f"the old one is kept as {escaped(kept)}" if kept else "there was none before"
            error.message = f"comment on database {escaped(name)}, which IS restored ({said}): {error.message}"
            error.hint = "Set the comment by hand; all else is there."
            raise
        return {**compared, "kept": kept}

    def _drop_half(self, new: str) -> None:
        """Why the restore failed is worth more than why its half cannot be dropped: it is marked as one, and can wait."""
        cause = sys.exception()
        try:
            swap.drop(self._login, new, missing_ok=True)
        except (SourceFailed, Unreachable):
            if isinstance(cause, AquadError):
                cause.hint = f"{cause.hint} Drop the half restored one when the server answers again: aquad restore discard {new}".lstrip()

    def _feed(self, database: str, chunks: Iterable[bytes]) -> None:
        psql.feed(self._login, database, chunks, self._tools, self._run)

    def _compared(self, database: Database, name: str) -> dict[str, Any]:
        """Count every table and compare with what passed while the dump was taken."""
        if self._target.schema_only:
            return {"tables": len(database.rows), "rows": 0}
        total = 0
        left = None if self._run.deadline is None else max(1.0, self._run.deadline - self._run.clock.monotonic())
        with server.connect(self._login, name, run_id=self._run.run_id, answer_seconds=left) as connection:
            for table, sealed in database.rows.items():
                if sealed is None or TABLE.fullmatch(table.encode("utf-8", "surrogateescape")) is None:
                    continue
                row = connection.execute(f"SELECT count(*) FROM ONLY {table}".encode()).fetchone()  # noqa: S608 - matched above
                found = row[0] if row else -1
                # Of an extension's table the dump holds the user's rows; CREATE EXTENSION made the others.
                if found != sealed and not (found > sealed and _of_an_extension(connection, table)):
                    raise RestoreFailed(
                        f"compare table {escaped(table)} of {escaped(database.name)}: {found} rows, sealed were {sealed}",
                        "The live database is as it was.",
                    )
                total += sealed
        return {"tables": len(database.rows), "rows": total}

    def _body(self, database: Database) -> Iterator[bytes]:
        for chunk in self._dump.body(database, schema_only=self._target.schema_only):
            self._run.progress.advance(len(chunk))
            yield chunk


def _of_an_extension(connection: Connection[tuple[Any, ...]], table: str) -> bool:
    query = "SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = to_regclass(%s) AND deptype = 'e'"
    return connection.execute(query, (table,)).fetchone() is not None


def _dump(reader: Reader, target: PostgresTarget) -> Dump:
    return open_dump(reader, target.database or target.to_name)


def _chosen(reader: Reader, dump: Dump, target: PostgresTarget) -> Sequence[Database]:
    if target.database is None:
        return dump.databases
    chosen = [database for database in dump.databases if database.name == target.database]
    if not chosen:
        names = ", ".join(escaped(database.name) for database in dump.databases)
        raise RestoreFailed(
            f"restore database {escaped(target.database)}: {escaped(reader.origin)} has none of that name",
            f"It has {names}.",
        )
    return chosen
