"""Databases beside databases: making one anew, putting it in the place of another, keeping and dropping the old one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from psycopg import sql

from aquad.core.errors import RestoreFailed, SourceFailed, Unreachable
from aquad.core.escape import escaped
from aquad.sources.postgres import server

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from aquad.sources.postgres.server import Login

NAME_BYTES = 63
LET_IN_ATTEMPTS = 10
HALF_RESTORED = f"{server.ASIDE}: half restored, may be dropped"
KEPT_BYTES = 40
USER_TABLES = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r','p','m','S','v') AND nspname !~ '^(pg_|information_schema$)'"
PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
LOCALE_OPTION = {"i": "ICU_LOCALE", "b": "BUILTIN_LOCALE"}


def is_empty(login: Login, databases: Mapping[str, Any], roles: Collection[str]) -> bool:
    """No database but postgres and the templates, no user tables in them, no role but the bootstrap one."""
    if set(databases) - {"postgres", "template1"} or len(roles) > 1:
        return False
    return all(server.query(login, name, USER_TABLES)[0][0] == 0 for name in databases)


def free_name(login: Login, wanted: str) -> str:
    """`wanted`, or with a number behind it, cut to what PostgreSQL keeps of a name."""
    taken = {name for (name,) in server.query(login, "postgres", "SELECT datname FROM pg_database")}
    candidate, number = _cut(wanted, NAME_BYTES), 2
    while candidate in taken:
        candidate, number = f"{_cut(wanted, NAME_BYTES - 4)}_{number}", number + 1
    return candidate


def create(login: Login, name: str, facts: Mapping[str, Any]) -> None:
    """CREATE DATABASE as the facts say: encoding, locale, provider, owner; from template0."""
    options = [
        sql.SQL("TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            *(sql.Literal(facts[key]) for key in ("encoding", "collate", "ctype"))
        ),
        sql.SQL("OWNER {}").format(sql.Identifier(facts["owner"])),
    ]
    if server.query(login, "postgres", "SELECT 1 FROM pg_tablespace WHERE spcname = %s", (facts["tablespace"],)):
        options.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(facts["tablespace"])))
    provider = facts["locale_provider"]
    if provider in LOCALE_OPTION and facts["locale"]:
        options.append(
            sql.SQL(f"LOCALE_PROVIDER {PROVIDERS[provider]} {LOCALE_OPTION[provider]} {{}}").format(
                sql.Literal(facts["locale"])
            )
        )
    try:
        _execute(login, sql.SQL("CREATE DATABASE {} ").format(sql.Identifier(name)) + sql.SQL(" ").join(options))
        mark_half_restored(login, name)
    except SourceFailed as error:
        raise RestoreFailed(f"create database {escaped(name)}: {error.message}", "Nothing was changed.") from error


def mark_half_restored(login: Login, name: str, place: str = "") -> None:
    """So that no backup takes it, and `discard` drops it, should the restore die. `place`: whose place it is about to take."""
    comment = sql.Literal(HALF_RESTORED + (f", for {place}" if place else ""))
    _execute(login, sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), comment))


def put_in_place(login: Login, new: str, name: str, *, stamp: str, exists: bool) -> str:
    """Swap by two renames in one transaction; return the name the old database is kept under, or ''.

    Connections to the old one are forbidden meanwhile, and allowed again on every path. Raises SourceFailed, Unreachable: then
    everything has its old name.
    """
    mark_half_restored(login, new, name)
    _end_sessions(login, new)
    kept = free_name(login, f"{_cut(name, KEPT_BYTES)}_before_{stamp}") if exists else ""
    old = name if exists else ""
    try:
        if exists:
            _allow(login, name, allowed=False)
            _end_sessions(login, name)
        with server.connect(login, answer_seconds=server.CHANGE_SECONDS) as connection, connection.transaction():
            if exists:
                connection.execute(_rename(name, kept))
            connection.execute(_rename(new, name))
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(sql.Identifier(name)))
            if exists:
                connection.execute(
                    sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                        sql.Identifier(kept), sql.Literal(f"{server.ASIDE}: {name} before the restore of {stamp}")
                    )
                )
        old = kept
    finally:
        if old:
            _let_in(login, old)
    return kept


def _let_in(login: Login, name: str) -> None:
    """Allow connections again, also when the server was away for a moment. Raises RestoreFailed with what to do by hand."""
    for _ in range(LET_IN_ATTEMPTS):
        try:
            _allow(login, name, allowed=True)
        except (SourceFailed, Unreachable) as error:
            failure = error
            time.sleep(1)
        else:
            return
    raise RestoreFailed(
        f"let connections into database {escaped(name)} again: {failure.message}",
        f'Nobody can use it until somebody runs: ALTER DATABASE "{escaped(name)}" WITH ALLOW_CONNECTIONS true',
    ) from failure


def after_dead_restores(login: Login) -> list[str]:
    """Let connections in again where a restore died between shutting them out and the swap; return the names."""
    ours = "starts_with(shobj_description(oid, 'pg_database'), %s)"
    marked = server.query(
        login,
        "postgres",
        f"SELECT datname, datallowconn, shobj_description(oid, 'pg_database') FROM pg_database WHERE {ours}",  # noqa: S608 - ours
        (server.ASIDE,),
    )
    places = [comment.partition(f"{HALF_RESTORED}, for ")[2] for _, _, comment in marked]
    shut = "SELECT datname FROM pg_database WHERE datname = ANY(%s) AND NOT datallowconn"
    shut_out = [name for name, allowed, _ in marked if not allowed]
    shut_out += [name for (name,) in server.query(login, "postgres", shut, (places,))]
    for name in shut_out:
        _allow(login, name, allowed=True)
    return shut_out


def drop(login: Login, name: str, *, missing_ok: bool = False) -> None:
    if server.query(login, "postgres", "SELECT 1 FROM pg_database WHERE datname = %s AND datistemplate", (name,)):
        _execute(login, sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(sql.Identifier(name)))
    clause = sql.SQL("IF EXISTS " if missing_ok else "")
    _execute(login, sql.SQL("DROP DATABASE {}{} WITH (FORCE)").format(clause, sql.Identifier(name)))


def kept_aside(login: Login) -> list[str]:
    rows = server.query(
        login,
        "postgres",
        "SELECT datname FROM pg_database WHERE starts_with(shobj_description(oid, 'pg_database'), %s) ORDER BY 1",
        (server.ASIDE,),
    )
    return [name for (name,) in rows]


def discard(login: Login, name: str) -> None:
    if name not in kept_aside(login):
        raise RestoreFailed(
            f"discard database {escaped(name)}: no restore kept it aside", "`aquad status` lists what can be discarded."
        )
    drop(login, name)


def _allow(login: Login, name: str, *, allowed: bool) -> None:
    _execute(
        login,
        sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(
            sql.Identifier(name), sql.SQL("true" if allowed else "false")
        ),
    )


def _end_sessions(login: Login, name: str) -> None:
    """And wait until they are gone: a rename is refused while one lives."""
    server.query(
        login,
        "postgres",
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        (name,),
        answer_seconds=server.CHANGE_SECONDS,
    )


def _rename(old: str, new: str) -> sql.Composed:
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))


def _execute(login: Login, statement: sql.Composed) -> None:
    server.query(login, "postgres", statement, answer_seconds=server.CHANGE_SECONDS)


def _cut(name: str, length: int) -> str:
    return name.encode()[:length].decode("utf-8", "ignore")
