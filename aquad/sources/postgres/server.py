"""The owner of psycopg: logging in, asking the server what it holds, and the connection settings of its tools."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from aquad.core import secret
from aquad.core.errors import InvalidUse, SourceFailed, Unreachable
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from aquad.stream.artifact import RunContext

CONNECT_SECONDS = 10
ANSWER_SECONDS = 300.0
"""So long a question may take. A server that is stuck answers keepalives all the same."""
CHANGE_SECONDS = 1800.0
"""So long a change may take: making or dropping a database writes, or removes, all of its files."""
logging.getLogger("psycopg").addHandler(
    logging.NullHandler()
)  # what matters it raises; its warnings are no message of ours
_KEEPALIVES: dict[str, Any] = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "120000",
}
"""A half-open network is noticed after 14 s; libpq's defaults take hours. With bytes under way there are no keepalives: then
after two minutes, for a server that takes no bytes while its disk is stuck must not lose its restore (tcp(7), TCP_USER_TIMEOUT).
"""
OPTIONS = " ".join(
    f"-c {setting}"
    for setting in (
        "statement_timeout=0",
        "lock_timeout=0",
        "idle_in_transaction_session_timeout=0",
        "default_transaction_read_only=off",
    )
)
"""What a database or a role sets for the application is not meant for us."""
ASIDE = "aquad: kept aside"
"""The comment of a database that a restore replaced begins so: it is left out of backups, and listed by `status`."""
APPLICATION = "aquad"


class Login(NamedTuple):
    host: str
    port: int
    user: str
    password_file: Path | None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


def login_of_url(url: str, password_file: Path | None) -> Login:
    """Raises InvalidUse for a URL with a password in it: it would stand in every process list."""
    parts = urlsplit(url)
    try:
        port = parts.port or 5432
    except ValueError as error:
        raise InvalidUse(f"restore --to {escaped(parts.hostname or '')}: its port is no number") from error
    if parts.password is not None:
        raise InvalidUse(
            "restore --to: there is a password in the URL", "Write it to a file of mode 0600 and say --password-file."
        )
    if parts.scheme not in {"postgres", "postgresql"} or not parts.hostname:
        raise InvalidUse(
            f"restore --to {escaped(url)}: not a URL such as postgresql://user@host:5432",
            "Name the database with --database.",
        )
    return Login(unquote(parts.hostname), port, unquote(parts.username or "postgres"), password_file)


def password(login: Login) -> str | None:
    """Read the password. Raises InvalidUse when its file is missing, empty, or readable by others."""
    if login.password_file is None:
        return None
    stored = secret.read(login.password_file, "password file", InvalidUse)
    try:
        text = stored.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidUse(f"read password file {login.password_file}: it is not text") from error
    if not text:
        raise InvalidUse(f"read password file {login.password_file}: it is empty", "Write the password into it.")
    return text


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """One whose server has `answer_seconds` for each answer; psycopg itself would wait for ever.

    Raises Unreachable when there is none or the connection is gone, SourceFailed when the answer is an error.
    """

    peer = ""
    answer_seconds: float | None = None

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        try:
            return super().wait(_in_time(gen, self.answer_seconds), *arguments, **options)
        except TimeoutError as error:
            self.close()  # or leaving it would ask for a rollback, and wait again
            raise Unreachable(
                f"ask PostgreSQL {self.peer}: no answer for {self.answer_seconds:g} s",
                "Is the server or the network stuck? How long a backup waits is limits.stall.",
            ) from error
        except psycopg.Error as error:
            said = f"ask PostgreSQL {self.peer}: {escaped(str(error).strip())}"
            if self.closed:
                raise Unreachable(said, "Is it up? Its log says why the connection ended.") from error
            raise SourceFailed(said, "The server refuses it: its log says more.") from error


def _in_time(waiting: Generator[Any, Any, Any], seconds: float | None) -> Generator[Any, Any, Any]:
    """What psycopg waits with: it yields what it waits for, and is resumed ten times a second."""
    until = None if seconds is None else time.monotonic() + seconds
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and until is not None and time.monotonic() > until:
                raise TimeoutError
            wanted = waiting.send(ready)
    except StopIteration as end:
        return end.value


def connect(
    login: Login, database: str = "postgres", *, run_id: str = "", answer_seconds: float | None = ANSWER_SECONDS
) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect in autocommit. Raises Unreachable: server down, wrong password, no such database, no answer in time."""
    try:
        connection = _Connection.connect(
            host=login.host,
            port=login.port,
            user=login.user,
            password=password(login),
            dbname=database,
            connect_timeout=CONNECT_SECONDS,
            application_name=f"{APPLICATION} {run_id}".strip(),
            options=OPTIONS,
            autocommit=True,
            **_KEEPALIVES,
        )
    except psycopg.Error as error:
        reason = escaped(str(error).strip().splitlines()[0])
        raise Unreachable(
            f"connect to PostgreSQL {login}, database {escaped(database)}: {reason}",
            "Is it up, and are host, user and password_file right?",
        ) from error
    connection.peer, connection.answer_seconds = str(login), answer_seconds
    return connection


def query(
    login: Login,
    database: str,
    text: str | sql.Composed,
    values: tuple[object, ...] = (),
    *,
    run_id: str = "",
    answer_seconds: float = ANSWER_SECONDS,
) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own."""
    with connect(login, database, run_id=run_id, answer_seconds=answer_seconds) as connection:
        cursor = (
            connection.execute(text, values or None)
            if isinstance(text, sql.Composed)
            else connection.execute(text.encode(), values or None)
        )
        return cursor.fetchall() if cursor.description else []


class ToolAccess(NamedTuple):
    """What a PostgreSQL tool needs to log in: its environment, and a descriptor that it must inherit."""

    environment: Mapping[str, str]
    passfile_fd: int


@contextlib.contextmanager
def tool_access(login: Login, run_id: str) -> Iterator[ToolAccess]:
    """The password is in a file of mode 0600 that has no name and is in memory alone: a killed run leaves nothing of it."""
    passfile = os.memfd_create("aquad-pgpass")
    try:
        os.fchmod(passfile, 0o600)  # libpq ignores one that others may read
        secret = password(login)
        if secret is not None:
            line = f"*:*:*:*:{secret.replace(chr(92), chr(92) * 2).replace(':', chr(92) + ':')}\n"
            os.write(passfile, line.encode())
        environment = {
            "PGPASSFILE": f"/proc/self/fd/{passfile}",
            "PGAPPNAME": f"{APPLICATION} {run_id}",
            "PGCONNECT_TIMEOUT": str(CONNECT_SECONDS),
            "PGOPTIONS": OPTIONS,  # pg_dump switches the application's time-outs off itself, but not before its first query
        }
        yield ToolAccess(environment, passfile)
    finally:
        os.close(passfile)


def conninfo(login: Login, database: str) -> str:
    """A connection string without the password, for a tool's --dbname."""
    return psycopg.conninfo.make_conninfo(
        host=login.host, port=login.port, user=login.user, dbname=database, **_KEEPALIVES
    )


def end_sessions(login: Login, runs: Sequence[str]) -> None:
    """End what the tools of these runs left behind on the server: they hold its snapshot, and vacuum waits for it."""
    names = [f"{APPLICATION} {run_id}" for run_id in runs]
    with contextlib.suppress(Unreachable, SourceFailed):  # harmless because the next run ends them
        query(
            login,
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(%s) AND pid <> pg_backend_pid()",
            (names,),
            answer_seconds=CONNECT_SECONDS,
        )


def server_facts(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, Any]:
    version, text = _row(connection, "SELECT current_setting('server_version_num')::int, version()")
    (system,) = _row(connection, "SELECT system_identifier FROM pg_control_system()")
    (timeline,) = _row(connection, "SELECT timeline_id FROM pg_control_checkpoint()")
    roles = [role for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1")]
    return {
        "server_version": version,
        "server_version_text": text,
        "system_identifier": str(system),
        "timeline": timeline,
        "roles": roles,
    }


def database_facts(connection: psycopg.Connection[tuple[Any, ...]], version: int) -> list[dict[str, Any]]:
    """What is needed to make each database anew, under any name; settings, rights and comment are in its dump.

    Of the comment only whether it is ours: it is in the database's own encoding, which may not be that of this connection.
    """
    locale = "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "NULL"
    provider = "datlocprovider::text" if version >= 150000 else "'c'"
    rows = connection.execute(
        f"""SELECT datname, pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {locale}, rolname, spcname, datconnlimit,
            pg_database_size(d.oid), datistemplate, datallowconn, coalesce(starts_with(shobj_description(d.oid, 'pg_database'), '{ASIDE}'), false)
            FROM pg_database d JOIN pg_roles a ON a.oid = datdba JOIN pg_tablespace t ON t.oid = dattablespace
            WHERE datname <> 'template0' ORDER BY datname""".encode()  # noqa: S608 - the names are ours
    ).fetchall()
    keys = [
        "name",
        "encoding",
        "collate",
        "ctype",
        "locale_provider",
        "locale",
        "owner",
        "tablespace",
        "connection_limit",
        "size_bytes",
        "is_template",
        "allow_connections",
        "aside",
    ]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def extensions(login: Login, database: str, run: RunContext) -> list[dict[str, str]]:
    text = "SELECT extname, extversion FROM pg_extension ORDER BY 1"
    rows = query(login, database, text, run_id=run.run_id, answer_seconds=run.stall_seconds)
    return [{"name": name, "version": version} for name, version in rows]


def _row(connection: psycopg.Connection[tuple[Any, ...]], text: str) -> tuple[Any, ...]:
    row = connection.execute(text.encode()).fetchone()
    if row is None:
        raise Unreachable(f"ask PostgreSQL {text!r}: no answer")
    return row
