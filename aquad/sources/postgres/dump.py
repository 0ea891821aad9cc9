"""PostgreSQL, logical: every database and the globals, by the stock tools of the server's major, as one file for `psql`.

`postgres_backup` is globals, then for each database `create`, `properties` and `body`, each a gzip member of its own, so
that one database can be had without reading the others. `postgres_schema` is the same without rows.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import AquadError, ChildFailed, SourceFailed
from aquad.core.escape import escaped
from aquad.core.process import PIPE_BYTES, Child
from aquad.sources.postgres import server, swap, tools
from aquad.sources.postgres.copy_rows import RowCounter
from aquad.sources.postgres.restore import PostgresRestore
from aquad.stream.artifact import Finding, Part, Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aquad.sources.postgres.server import Login, ToolAccess
    from aquad.sources.postgres.tools import Tools
    from aquad.stream.artifact import Facts, Reader, RunContext, Sink

LOCK_WAIT_SHARE = 0.5
"""Of the time without a byte after which a dump is given up: pg_dump gives up first, and says which table it waits for."""
ABOUT_THE_DATABASE = re.compile(
    r"\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:COMMENT|ACL|SECURITY LABEL) - DATABASE) "
)
_RECONNECT = re.compile(
    rb"^\\unrestrict (\w+)\n(?:\\encoding \w+\n)?\n?\\connect [^\n]*\n\n?\\restrict \1\n", re.MULTILINE
)
"""pg_restore connects once more behind the database's settings. Known by its token: text in a comment cannot look like it."""
MADE_BY_INITDB = {"postgres", "template1"}


class _Job(NamedTuple):
    """What each child of one dump needs."""

    login: Login
    tools: Tools
    access: ToolAccess
    run: RunContext

    def child(self, tool: str, *arguments: str, keep_fds: Sequence[int] = (), stdin: bool = False) -> Child:
        return Child(
            [self.tools.path(tool), *arguments],
            environment=self.access.environment,
            keep_fds=(*self.run.keep_fds, self.access.passfile_fd, *keep_fds),
            stdin=stdin,
            stall_seconds=self.run.stall_seconds if tool != "pg_restore" else None,
            deadline=self.run.deadline,
        )

    def dump(self, database: str, *arguments: str) -> Child:
        options = (
            "--no-password",
            f"--lock-wait-timeout={int(self.run.stall_seconds * 1000 * LOCK_WAIT_SHARE)}",
            f"--dbname={server.conninfo(self.login, database)}",
        )
        return self.child("pg_dump", *options, *arguments)


class Postgres(PostgresRestore):
    component = "postgres"

    def __init__(self, *, login: Login, databases: Sequence[str], bin_dir: str, data_path: Path | None = None) -> None:
        super().__init__(login=login, bin_dir=bin_dir, data_path=data_path)
        self._databases = databases

    def check(self) -> list[Finding]:
        with server.connect(self._login) as connection:
            facts = server.server_facts(connection)
            found = tools.find(facts["server_version"] // 10000, self._bin_dir)
            known = server.database_facts(connection, facts["server_version"])
        findings = [
            Finding(
                "ok",
                "postgres",
                f"{self._login} is {facts['server_version_text'].split(' on ')[0]}, tools {found.version} in {found.directory}",
            )
        ]
        if not found.knows_restrict:
            findings.append(
                Finding(
                    "warning",
                    "postgres",
                    f"psql {found.version} does not know \\restrict: nothing could be restored with it",
                    "Update the client tools.",
                )
            )
        findings += [
            Finding("warning", "postgres", f"database {escaped(d['name'])} allows no connections: it is in no backup")
            for d in known
            if not d["allow_connections"] and not d["aside"]
        ]
        return findings

    def size_bytes(self) -> int:
        """Bytes of all databases on the server."""
        with server.connect(self._login) as connection:
            (facts, _) = self._known(connection)
        return sum(int(database["size_bytes"]) for database in facts)

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:
        if run.former_runs:
            server.end_sessions(self._login, run.former_runs)
            swap.after_dead_restores(self._login)
        with server.connect(self._login, run_id=run.run_id, answer_seconds=run.stall_seconds) as connection:
            facts = server.server_facts(connection)
            databases, skipped = self._known(connection)
        found = tools.find(facts["server_version"] // 10000, self._bin_dir)
        for database in databases:
            if "\n" in database["name"] or "\r" in database["name"]:
                raise SourceFailed(
                    f"dump database {escaped(database['name'])}: pg_dump refuses a newline in a name",
                    "Rename the database.",
                )
        try:
            with (
                server.tool_access(self._login, run.run_id) as access,
                tempfile.TemporaryFile(prefix="aquad-") as spool,
                tempfile.TemporaryFile(prefix="aquad-") as chosen,
            ):
                job = _Job(self._login, found, access, run)
                texts = _Texts(job, spool, chosen)
                sink.add(
                    f"postgres_backup_{run.timestamp}.sql.gz", self._backup_parts(job, texts, databases), gzip=True
                )
                sink.add(f"postgres_schema_{run.timestamp}.sql", self._schema_parts(texts, databases), gzip=False)
        except AquadError:
            server.end_sessions(self._login, [run.run_id])
            raise
        warnings = _another_cluster(facts, previous)
        warnings += [f"database {escaped(name)} allows no connections: it is not in this backup" for name in skipped]
        return Taken(
            "snapshot",
            {**facts, "tool_version": found.version, "databases": databases, "skipped_databases": skipped},
            warnings,
        )

    def _known(self, connection: Any) -> tuple[list[dict[str, Any]], list[str]]:
        """The databases to be dumped, and those that cannot be."""
        (version,) = connection.execute("SELECT current_setting('server_version_num')::int").fetchone()
        found = [database for database in server.database_facts(connection, version) if not database["aside"]]
        missing = set(self._databases) - {database["name"] for database in found}
        if missing:
            raise SourceFailed(
                f"dump database {escaped(min(missing))}: the server has none of that name",
                "Correct postgres.databases.",
            )
        wanted = [database for database in found if not self._databases or database["name"] in self._databases]
        return [d for d in wanted if d["allow_connections"]], [d["name"] for d in wanted if not d["allow_connections"]]

    def _backup_parts(self, job: _Job, texts: _Texts, databases: Sequence[dict[str, Any]]) -> Iterator[Part]:
        yield _part("globals", texts.globals(), job.run)
        for database in databases:
            name = database["name"]
            database["extensions"] = server.extensions(self._login, name, job.run)
            create, properties = texts.create_and_properties(name)
            yield _part(f"{name}:create", iter([create]), job.run)
            yield _part(f"{name}:properties", iter([properties]), job.run)
            counter = RowCounter()

            def facts(database: dict[str, Any] = database, counter: RowCounter = counter) -> Facts:
                counter.check_end()
                database["rows"] = counter.rows()
                return {"database": database["name"], "rows": database["rows"]}

            yield _part(f"{name}:body", _body(job, name, counter), job.run, facts)

    @staticmethod
    def _schema_parts(texts: _Texts, databases: Sequence[dict[str, Any]]) -> Iterator[Part]:
        yield _part("globals", texts.globals(), None)
        for database in databases:
            create, properties = texts.create_and_properties(database["name"])
            yield _part(f"{database['name']}:create", iter([create]), None)
            yield _part(f"{database['name']}:properties", iter([properties]), None)
            yield _part(f"{database['name']}:schema", texts.schema(database["name"]), None)


class _Texts:
    """The short texts: globals, and what is said of each database, cut from one schema-only archive of it.

    `spool` holds the archives, `chosen` what pg_restore is to make of one: files without a name, for a killed run leaves none.
    """

    def __init__(self, job: _Job, spool: IO[bytes], chosen: IO[bytes]) -> None:
        self._job = job
        self._spool, self._chosen = spool, chosen
        self._archives: dict[str, tuple[int, int]] = {}
        """Where each begins and ends."""
        self._about: dict[str, tuple[bytes, bytes]] = {}
        self._globals: list[bytes] = []

    def globals(self) -> Iterator[bytes]:
        if not self._globals:
            self._globals = list(self._dump_globals())
        yield from self._globals

    def _dump_globals(self) -> Iterator[bytes]:
        login = self._job.login
        with self._job.child(
            "pg_dumpall", "--globals-only", "--no-password", f"--dbname={server.conninfo(login, 'postgres')}"
        ) as child:
            yield from child.chunks()

    def create_and_properties(self, database: str) -> tuple[bytes, bytes]:
        """Both end where the text connects to somewhere else: `create` in `postgres`, `properties` in the database itself."""
        if database not in self._about:
            self._about[database] = self._dump_about(database)
        return self._about[database]

    def _dump_about(self, database: str) -> tuple[bytes, bytes]:
        listing = b"".join(self._restored(database, "--create", "--list")).decode("utf-8", "surrogateescape")
        kept = [line for line in listing.splitlines() if ABOUT_THE_DATABASE.match(line)]
        self._chosen.seek(0)
        self._chosen.truncate()
        self._chosen.write("\n".join(kept).encode("utf-8", "surrogateescape") + b"\n")
        self._chosen.flush()
        use_list = f"--use-list=/proc/self/fd/{self._chosen.fileno()}"
        text = b"".join(self._restored(database, "--create", use_list, "--file=-"))
        before, connect, after = text.partition(b"\n\\connect ")
        if not connect:
            raise SourceFailed(
                f"dump database {escaped(database)}: its CREATE DATABASE was not found",
                "This version of pg_dump is not known.",
            )
        create = connect_line("postgres") + (b"" if database in MADE_BY_INITDB else before + b"\n")
        return create, connect_line(database) + _RECONNECT.sub(b"", after.partition(b"\n")[2])

    def schema(self, database: str) -> Iterator[bytes]:
        yield from self._restored(database, "--schema-only", "--file=-")

    def _archive(self, database: str) -> tuple[int, int]:
        if database not in self._archives:
            begin = self._spool.seek(0, os.SEEK_END)
            options = ("--create", "--schema-only", "--format=custom")
            try:
                with _named(database), self._job.dump(database, *options) as child:
                    self._spool.writelines(child.chunks())
                    self._spool.flush()
            except OSError as error:
                raise SourceFailed(
                    f"dump database {escaped(database)}: write its schema to {tempfile.gettempdir()}: {error.strerror}",
                    "Make room there, or set TMPDIR.",
                ) from error
            self._archives[database] = begin, self._spool.tell()
        return self._archives[database]

    def _restored(self, database: str, *arguments: str) -> Iterator[bytes]:
        archive, keep_fds = self._archive(database), [self._chosen.fileno()]
        with _named(database), self._job.child("pg_restore", *arguments, keep_fds=keep_fds, stdin=True) as child:
            yield from child.through(self._stored(*archive))

    def _stored(self, position: int, end: int) -> Iterator[bytes]:
        while position < end:
            chunk = os.pread(self._spool.fileno(), min(PIPE_BYTES, end - position), position)
            position += len(chunk)
            yield chunk


def connect_line(database: str) -> bytes:
    r"""The line that makes psql change to a database of any name: a bare name with `=` in it would be read as conninfo."""
    quoted = database.replace("\\", "\\\\").replace("'", "\\'")
    conninfo = f"dbname='{quoted}'".replace('"', '""')
    return f'\\connect -reuse-previous=on "{conninfo}"\n'.encode("utf-8", "surrogateescape")


def _body(job: _Job, database: str, counter: RowCounter) -> Iterator[bytes]:
    with _named(database), job.dump(database, "--format=plain") as child:
        for chunk in child.chunks():
            counter.feed(chunk)
            yield chunk


@contextlib.contextmanager
def _named(database: str) -> Iterator[None]:
    try:
        yield
    except ChildFailed as error:
        raise SourceFailed(f"dump database {escaped(database)}: {error.message}", error.hint) from error


def _part(name: str, chunks: Iterator[bytes], run: RunContext | None, facts: Callable[[], Facts] = dict) -> Part:
    return Part(name, _watched(chunks, run) if run else chunks, facts)


def _watched(chunks: Iterator[bytes], run: RunContext) -> Iterator[bytes]:
    for chunk in chunks:
        run.progress.advance(len(chunk))
        yield chunk


def _another_cluster(facts: Mapping[str, Any], previous: Reader | None) -> list[str]:
    """A warning, not a refusal: after a disaster the new cluster must be backed up the same night."""
    before = previous.facts.get("system_identifier") if previous else None
    if before is None or before == facts["system_identifier"]:
        return []
    return [
        f"another cluster answers under this name: system identifier {facts['system_identifier']}, last time {before}"
    ]
