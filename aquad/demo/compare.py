"""What is compared before and after: rows and a checksum of each table, roles, and everything about each file."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import psycopg

    from aquad.demo.server import EmbeddedServer

TABLES = """SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  WHERE relkind IN ('r', 'm') AND nspname !~ '^(pg_|information_schema)' ORDER BY 1"""
CONTENT = {
    "sequences": "SELECT schemaname, sequencename, last_value, increment_by FROM pg_sequences ORDER BY 1, 2",
    "large objects": "SELECT loid::text, pageno, md5(data) FROM pg_largeobject ORDER BY pg_largeobject.loid, 2",
    "definitions": """WITH own AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)')
      SELECT oid::regclass::text, CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) WHEN relkind IN ('i', 'I') THEN pg_get_indexdef(oid) END
        FROM pg_class WHERE relnamespace IN (SELECT oid FROM own)
      UNION ALL SELECT attrelid::regclass || '.' || attname, format_type(atttypid, atttypmod) || attnotnull::text || attidentity::text
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace IN (SELECT oid FROM own) AND attnum > 0 AND NOT attisdropped
      UNION ALL SELECT conrelid::regclass || ': ' || conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace IN (SELECT oid FROM own)
      UNION ALL SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace IN (SELECT oid FROM own) AND prokind <> 'a'
      ORDER BY 1, 2""",
    "owners and grants": """SELECT oid::regclass::text, relowner::regrole::text, (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(relacl) a)
      FROM pg_class WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)' ORDER BY 1""",
}
"""Of each database, beside the rows of its tables."""
CLUSTER = {
    "roles": "SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname !~ '^pg_' AND rolname <> 'postgres' ORDER BY 1",
    "memberships": "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members WHERE roleid::regrole::text !~ '^pg_' ORDER BY 1, 2",
    "databases": "SELECT datname, pg_get_userbyid(datdba), shobj_description(oid, 'pg_database') FROM pg_database WHERE NOT datistemplate ORDER BY 1",
    "settings": "SELECT d.datname, setconfig::text FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = setdatabase ORDER BY 1, 2",
}


class Thing(NamedTuple):
    """One line of the table: how much there is of it, and a digest of all of it."""

    amount: str
    digest: str


def databases(server: EmbeddedServer, names: tuple[str, ...] = ("aquastream_db", "reporting")) -> dict[str, Thing]:
    seen = {}
    for database in names:
        with server.connect(database) as connection:
            for (table,) in connection.execute(TABLES.encode()).fetchall():
                query = f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ONLY {table} t"  # noqa: S608 - quoted by the server
                row = connection.execute(query.encode()).fetchone() or (0, "")
                seen[f"table {database} {table}"] = Thing(f"{row[0]} rows", _digest(row))
            seen |= {f"{name} of {database}": _answer(connection, query) for name, query in CONTENT.items()}
    with server.connect() as connection:
        return seen | {name: _answer(connection, query) for name, query in CLUSTER.items()}


def _answer(connection: psycopg.Connection[tuple[object, ...]], query: str) -> Thing:
    rows = connection.execute(query.encode()).fetchall()
    return Thing(f"{len(rows)}", _digest(rows))


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def tree(label: str, top: Path, skip: frozenset[bytes] = frozenset()) -> dict[str, Thing]:
    """Content, mode, owner, time of modification, links, holes and xattrs of everything below a directory."""
    lines, count = [], 0
    inodes: dict[int, bytes] = {}
    root = os.fsencode(top)
    for above, directories, names in os.walk(root):
        directories.sort()
        for name in [b".", *sorted(directories), *sorted(names)]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            if relative in skip:
                continue
            first = inodes.setdefault(status.st_ino, relative)
            xattrs = [
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in sorted(os.listxattr(path, follow_symlinks=False))
            ]
            count += name != b"."
            lines.append(
                (
                    relative,
                    first,
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_rdev,
                    status.st_mtime_ns,
                    _content(path, status),
                    xattrs,
                )
            )
    return {label: Thing(f"{count} entries", _digest(sorted(lines)))}


def _content(path: bytes, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    with open(path, "rb") as file:
        # Not by st_blocks: a file system that compresses, or has not yet written, counts other blocks than a moment later.
        holes = bool(status.st_size) and os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest(), holes


def differences(before: Mapping[str, Thing], after: Mapping[str, Thing]) -> list[str]:
    """The names that are missing, new, or not equal. No things at all are a difference too."""
    if not before:
        return ["nothing was compared"]
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
