"""Bringing databases back: beside the live one, counted, and only then swapped in. The old one is kept until discarded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import Error

from aquad.core.errors import RestoreFailed
from aquad.core.escape import escaped
from aquad.sources.postgres import psql, server, swap, tools
from aquad.sources.postgres.copy_rows import IDENTIFIER
from aquad.stream.artifact import Step
from aquad.stream.gzip import inflate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aquad.sources.postgres.server import Login
    from aquad.sources.postgres.tools import Tools
    from aquad.stream.artifact import Facts, Reader, RunContext, StoredArtifact

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


class PostgresRestore:
    def __init__(self, *, login: Login, bin_dir: str) -> None:
        self._login = login
        self._bin_dir = bin_dir

    def plan_restore(self, reader: Reader, target: PostgresTarget) -> list[Step]:
        chosen = _chosen(reader, target)
        login = target.login or self._login
        with server.connect(login) as connection:
            facts = server.server_facts(connection)
            live = {d["name"]: d for d in server.database_facts(connection, facts["server_version"])}
            empty = swap.is_empty(login, live, facts["roles"])
            slots = connection.execute(
                b"SELECT slot_name, database FROM pg_replication_slots WHERE database IS NOT NULL"
            ).fetchall()
        found = tools.find(facts["server_version"] // 10000, self._bin_dir)
        if facts["server_version"] // 10000 < reader.facts["server_version"] // 10000:
            raise RestoreFailed(
                f"restore to {login}: it is PostgreSQL {facts['server_version'] // 10000}, the backup is of {reader.facts['server_version'] // 10000}",
                "Restore to the same major or a newer one.",
            )
        older = facts["server_version"] % 10000 < int(reader.facts["tool_version"].partition(".")[2] or 0)
        warning = (
            f"the server's minor is older than the tools {reader.facts['tool_version']} that wrote the dump"
            if older
            else ""
        )
        steps = [Step(f"into {login} with psql {found.version}", warning=warning)]
        missing = sorted(set(reader.facts["roles"]) - set(facts["roles"]))
        if missing:
            steps.append(Step(f"create missing roles: {', '.join(escaped(role) for role in missing)}"))
        if target.with_globals:
            steps.append(
                Step("alter existing roles as they were", overwrites="attributes and passwords of existing roles")
            )
        for database in chosen:
            steps += self._steps(
                database, live, target, empty=empty, slots=[slot for slot, of in slots if of == database["name"]]
            )
        return steps

    @staticmethod
    def _steps(
        database: dict[str, Any], live: dict[str, Any], target: PostgresTarget, *, empty: bool, slots: Sequence[str]
    ) -> list[Step]:
        name = target.to_name or database["name"]
        shown = escaped(name)
        if name in MADE_BY_INITDB:
            if not empty:
                return [Step(f"leave database {shown} as it is: it is only restored into an empty cluster")]
            return [Step(f"fill database {shown} in place: the cluster is empty")]
        size = (
            "its schema"
            if target.schema_only
            else f"about {database['size_bytes'] >> 20} MiB on the server's disk, beside what is there"
        )
        if name not in live:
            return [Step(f"create database {shown} and fill it ({size}), compare row counts")]
        warning = f"logical slots of the old database: {', '.join(slots)}" if slots else ""
        if target.in_place:
            return [
                Step(
                    f"DROP database {shown}, then create and fill it",
                    overwrites=f"database {shown}, which is GONE before the new one is there",
                    warning=warning,
                )
            ]
        kept = "kept until `aquad restore discard`"
        return [
            Step(f"create and fill a new database ({size}), compare row counts"),
            Step(
                f"end the sessions of {shown}, rename it ({kept}), put the new one in its place",
                overwrites=f"database {shown} (the old one is {kept})",
                warning=warning,
            ),
        ]

    def restore(self, reader: Reader, target: PostgresTarget, run: RunContext) -> Facts:
        login = target.login or self._login
        chosen = _chosen(reader, target)
        with server.connect(login, run_id=run.run_id) as connection:
            facts = server.server_facts(connection)
            live = {d["name"]: d for d in server.database_facts(connection, facts["server_version"])}
            empty = swap.is_empty(login, live, facts["roles"])
        work = _Work(reader, target, login, tools.find(facts["server_version"] // 10000, self._bin_dir), run)
        try:
            work.globals(set(facts["roles"]))
            restored = {}
            for database in chosen:
                name = target.to_name or database["name"]
                if name in MADE_BY_INITDB:
                    if empty:
                        restored[name] = work.fill_in_place(database)
                else:
                    restored[name] = work.one(database, name, exists=name in live)
        except Error as error:
            server.end_sessions(login, run.run_id)
            raise RestoreFailed(
                f"restore to {login}: {escaped(str(error).strip())}",
                "The live databases are as they were, but for those restored before.",
            ) from error
        return {"server": str(login), "databases": restored}

    def kept_aside(self) -> list[str]:
        """Databases that a restore replaced, on the configured server."""
        return swap.kept_aside(self._login)

    def discard(self, database: str) -> None:
        """Drop one of them. Raises RestoreFailed for a database that is none."""
        swap.discard(self._login, database)


class _Work:
    """One restore under way."""

    def __init__(self, reader: Reader, target: PostgresTarget, login: Login, found: Tools, run: RunContext) -> None:
        self._reader = reader
        self._target = target
        self._login = login
        self._tools = found
        self._run = run
        suffix = ".sql" if target.schema_only else ".sql.gz"
        self._artifact = next(artifact for artifact in reader.artifacts if artifact.path.endswith(suffix))

    def globals(self, existing: set[str]) -> None:
        """Create the roles that are missing. Those that exist are only altered when that was asked for."""
        text = b"".join(self._part("globals")).decode("utf-8", "surrogateescape")
        chosen = [statement for statement in psql.statements(text) if self._wanted(statement, existing)]
        if chosen:
            psql.feed(
                self._login,
                "postgres",
                ["\n".join(chosen).encode("utf-8", "surrogateescape") + b"\n"],
                self._tools,
                self._run,
            )

    def _wanted(self, statement: str, existing: set[str]) -> bool:
        membership = MEMBERSHIP.match(statement)
        if membership:
            return self._target.with_globals or any(_unquoted(role) not in existing for role in membership.groups())
        role = ROLE_STATEMENT.match(statement)
        if role is None:
            return False
        exists = _unquoted(role[1]) in existing
        return not exists or (self._target.with_globals and not statement.startswith("CREATE ROLE"))

    def fill_in_place(self, database: dict[str, Any]) -> dict[str, Any]:
        name = database["name"]
        psql.feed(self._login, name, self._body(database), self._tools, self._run)
        psql.feed(self._login, "postgres", self._properties(database), self._tools, self._run)
        return self._compared(database, name)

    def one(self, database: dict[str, Any], name: str, *, exists: bool) -> dict[str, Any]:
        """Beside, compared, swapped. Whatever fails, the half-made database goes and the live one stays."""
        stamp = self._run.timestamp
        if exists and self._target.in_place:
            swap.drop(self._login, name)
            exists = False
        new = swap.free_name(self._login, f"aquad_new_{stamp}")
        swap.create(self._login, new, database)
        kept = None
        try:
            # Before the rows: a materialised view is computed anew, and must see the database's own time zone.
            swap.apply_settings(self._login, new, [entry for entry in database["settings"] if entry["role"] is None])
            psql.feed(self._login, new, self._body(database), self._tools, self._run)
            compared = self._compared(database, new)
            kept = swap.put_in_place(self._login, new, name, stamp=stamp, exists=exists)
        finally:
            if kept is None:
                swap.drop(self._login, new, missing_ok=True)
        if name == database["name"]:
            psql.feed(self._login, "postgres", self._properties(database), self._tools, self._run)
        else:
            swap.apply_properties(self._login, name, database)
        return {**compared, "kept": kept}

    def _compared(self, database: dict[str, Any], name: str) -> dict[str, Any]:
        """Count every table and compare with what passed while the dump was taken."""
        if self._target.schema_only:
            return {"tables": len(database["rows"]), "rows": 0}
        total = 0
        with server.connect(self._login, name, run_id=self._run.run_id) as connection:
            for table, sealed in database["rows"].items():
                if sealed is None or TABLE.fullmatch(table.encode("utf-8", "surrogateescape")) is None:
                    continue
                row = connection.execute(f"SELECT count(*) FROM ONLY {table}".encode()).fetchone()  # noqa: S608 - matched above
                found = row[0] if row else None
                if found != sealed:
                    raise RestoreFailed(
                        f"compare table {escaped(table)} of {escaped(database['name'])}: {found} rows, sealed were {sealed}",
                        "The live database is as it was.",
                    )
                total += sealed
        return {"tables": len(database["rows"]), "rows": total}

    def _body(self, database: dict[str, Any]) -> Iterator[bytes]:
        kind = "schema" if self._target.schema_only else "body"
        for chunk in self._part(f"{database['name']}:{kind}"):
            self._run.progress.advance(len(chunk))
            yield chunk

    def _properties(self, database: dict[str, Any]) -> Iterator[bytes]:
        """The text without its first line, by which psql would connect to the database: aquad makes the connections."""
        text = b"".join(self._part(f"{database['name']}:properties"))
        yield text.partition(b"\n")[2]

    def _part(self, name: str) -> Iterator[bytes]:
        return part_chunks(self._reader, self._artifact, name)


def part_chunks(reader: Reader, artifact: StoredArtifact, name: str) -> Iterator[bytes]:
    part = next((part for part in artifact.parts if part.name == name), None)
    if part is None:
        raise RestoreFailed(f"restore from {reader.origin}: {escaped(artifact.path)} has no part {escaped(name)}")
    stored = reader.read(artifact.path, part.offset, part.length)
    return inflate(stored, artifact.path) if artifact.gzip else stored


def _chosen(reader: Reader, target: PostgresTarget) -> list[dict[str, Any]]:
    if not reader.sealed:
        raise RestoreFailed(
            f"restore postgres from {escaped(reader.origin)}: aquad restores dumps of its own repository",
            f"By hand, into an empty server: zcat {escaped(reader.origin)} | psql -X -d postgres",
        )
    databases: list[dict[str, Any]] = reader.facts["databases"]
    if target.database is None:
        return databases
    chosen = [database for database in databases if database["name"] == target.database]
    if not chosen:
        names = ", ".join(escaped(database["name"]) for database in databases)
        raise RestoreFailed(
            f"restore database {escaped(target.database)}: {reader.origin} has none of that name", f"It has {names}."
        )
    return chosen


def _unquoted(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier
