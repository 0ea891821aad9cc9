"""A small AquaStream: databases with rows of every common type, a checkout, and volumes with awkward files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aquad.demo.server import EmbeddedServer

VOLUMES = ("kafka_data", "zookeeper_data", "elasticsearch_certs", "nginx_logs")
ROLES = """
CREATE ROLE aqua_app LOGIN PASSWORD 'app'; CREATE ROLE aqua_readers; CREATE ROLE "Crew Lead";
GRANT aqua_readers TO aqua_app, "Crew Lead"; ALTER ROLE aqua_app SET work_mem TO '8MB';
CREATE DATABASE aquastream_db OWNER aqua_app; CREATE DATABASE reporting;
COMMENT ON DATABASE aquastream_db IS 'the demo'; ALTER DATABASE aquastream_db SET timezone TO 'Europe/Warsaw';
GRANT CONNECT ON DATABASE aquastream_db TO aqua_readers
"""
TABLES = """
CREATE SCHEMA users; CREATE SCHEMA crew; CREATE SCHEMA events; CREATE SCHEMA notifications;
CREATE TYPE crew.rank AS ENUM ('deckhand', 'mate', 'captain');
CREATE TABLE users.accounts (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE, born date, balance numeric(12,2), ratio float8,
  active boolean, created timestamptz, profile jsonb, tags text[], avatar bytea, address inet, token uuid, initials text GENERATED ALWAYS AS (left(email, 2)) STORED);
INSERT INTO users.accounts (email, born, balance, ratio, active, created, profile, tags, avatar, address, token)
  SELECT 'sailor' || i || '@example.com', date '1970-01-01' + i % 9000, i / 7.0, sqrt(i), i % 3 = 0, timestamptz '2024-01-01' + i * interval '1 min',
  jsonb_build_object('boat', i % 100, 'note', E'ünïcode\\n' || i), ARRAY['a' || i, NULL, 'b"c'], decode(md5(i::text), 'hex'), '10.0.0.1'::inet + i, md5(i::text)::uuid
  FROM generate_series(1, 30000) i;
CREATE TABLE crew.members (id int PRIMARY KEY, rank crew.rank, span interval, shift int4range, at time, weight real, small smallint);
INSERT INTO crew.members SELECT i, (ARRAY['deckhand', 'mate', 'captain'])[1 + i % 3]::crew.rank, i * interval '1 hour', int4range(i, i + 8), time '06:00' + i * interval '1 s', i / 3.0, i % 1000
  FROM generate_series(1, 10000) i;
CREATE TABLE events.log (at timestamptz NOT NULL, kind text, payload jsonb) PARTITION BY RANGE (at);
CREATE TABLE events.log_2024 PARTITION OF events.log FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE events.log_2025 PARTITION OF events.log FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO events.log SELECT timestamptz '2024-01-01' + i * interval '15 min', 'kind' || i % 10, jsonb_build_object('i', i) FROM generate_series(1, 50000) i;
CREATE INDEX ON events.log (at); CREATE INDEX ON users.accounts USING gin (profile);
CREATE TABLE notifications."Sent Mail" (id serial, "to" text, body text); INSERT INTO notifications."Sent Mail" ("to", body) SELECT 'x' || i, repeat('Ahoy! ', i % 50) FROM generate_series(1, 10000) i;
CREATE VIEW crew.captains AS SELECT * FROM crew.members WHERE rank = 'captain';
CREATE MATERIALIZED VIEW events.daily AS SELECT date_trunc('day', at) AS day, count(*) AS n FROM events.log GROUP BY 1;
CREATE FUNCTION users.adults() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM users.accounts WHERE born < '2006-01-01' $$;
GRANT SELECT ON ALL TABLES IN SCHEMA users TO aqua_readers; SELECT lo_from_bytea(4711, '\\x00ff00ff'::bytea)
"""
REPORTING = "CREATE TABLE monthly (month date, total numeric); INSERT INTO monthly SELECT date '2020-01-01' + i * 31, i * 3.14 FROM generate_series(1, 60) i"
CONFIG_PARENTS = frozenset({b".", b"infra", b"infra/docker", b"infra/docker/compose"})
"""Directories of the checkout that only lead to configuration: they are in no backup."""
CHECKOUT = {
    "infra/docker/compose/docker-compose.yml": (
        0o644,
        b"services:\n  postgres:\n    image: postgres:16.2-alpine3.19\n",
    ),
    "infra/docker/compose/.env": (0o600, b"POSTGRES_PASSWORD=not-a-real-one\nELASTIC_PASSWORD=neither\n"),
    "infra/monitoring/prometheus/prometheus.yml": (0o644, b"scrape_configs: []\n"),
    "infra/monitoring/grafana/dashboards/aqua.json": (0o640, b'{"panels": []}\n'),
    "infra/scripts/backup.sh": (0o755, b"#!/bin/sh\necho aquad does this now\n"),
    "infra/scripts/deep/er/check.sh": (0o700, b"#!/bin/sh\ntrue\n"),
    "run.sh": (0o755, b"#!/bin/sh\necho start\n"),
}


def fill_databases(server: EmbeddedServer) -> None:
    with server.connect() as connection:
        for statement in ROLES.split(";"):
            connection.execute(statement.encode())
    for database, text in (("aquastream_db", TABLES), ("reporting", REPORTING)):
        with server.connect(database) as connection:
            connection.execute(text.encode())


def empty_databases(server: EmbeddedServer) -> None:
    """Lose them: databases and roles."""
    with server.connect() as connection:
        for statement in (
            "DROP DATABASE aquastream_db",
            "DROP DATABASE reporting",
            "DROP ROLE aqua_app",
            "DROP ROLE aqua_readers",
            'DROP ROLE "Crew Lead"',
        ):
            connection.execute(statement.encode())


def make_checkout(top: Path) -> None:
    for name, (mode, content) in CHECKOUT.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    os.symlink("prometheus.yml", top / "infra/monitoring/prometheus/current.yml")


def make_volumes(top: Path) -> None:
    rng = random.Random(2024)  # noqa: S311 - the same files in each demo
    for name in VOLUMES:
        (top / name).mkdir(parents=True)
    kafka = top / "kafka_data"
    (kafka / "topic-0").mkdir()
    (kafka / "topic-0" / "00000000000000000000.log").write_bytes(rng.randbytes(6 << 20))
    with (kafka / "topic-0" / "00000000000000000000.index").open("wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(10 << 20)
        sparse.write(b"entry" * 100)
    (kafka / "meta.properties").write_text("cluster.id=demo\n")
    zookeeper = top / "zookeeper_data"
    for number in range(300):
        (zookeeper / f"log.{number:04}").write_bytes(b"txn" * number)
    os.link(zookeeper / "log.0001", zookeeper / "hard link")
    os.symlink("log.0002", zookeeper / "symlink")
    os.symlink("/nowhere", zookeeper / "dangling")
    certs = top / "elasticsearch_certs"
    (certs / "ca").mkdir(mode=0o750)
    (certs / "ca" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (certs / "ca" / "ca.crt").chmod(0o640)
    logs = os.fsencode(top / "nginx_logs")
    for odd in (b"with space", b"new\nline", b"\xff not utf-8", "ünïcode ☃".encode(), b"-rf", b"n" * 255, b"empty"):
        with open(os.path.join(logs, odd), "wb") as file:
            file.write(odd if odd != b"empty" else b"")
    os.mkfifo(os.path.join(logs, b"fifo"))
    os.utime(os.path.join(logs, b"-rf"), ns=(1, 10**18 + 987654321))
    if os.geteuid() == 0:
        for path in kafka.rglob("*"):
            os.chown(path, 1000, 1001)


def empty_directory(top: Path) -> None:
    """Lose everything in it."""
    for above, directories, names in os.walk(os.fsencode(top), topdown=False):
        for name in names:
            os.unlink(os.path.join(above, name))
        for name in directories:
            path = os.path.join(above, name)
            (os.unlink if os.path.islink(path) else os.rmdir)(path)


def settings_text(top: Path, server: EmbeddedServer, backups: str = "backups") -> str:
    volumes = "".join(f"[volumes.{name}]\npath = {_quoted(top / 'volumes' / name)}\n" for name in VOLUMES)
    return f"""\
stack = "aquastream"
[repository]
path = {_quoted(top / backups)}
minimum_free = "1%"
[encryption]
mode = "off"
[postgres]
host = "127.0.0.1"
port = {server.port}
password_file = {_quoted(server.password_file)}
bin_dir = {_quoted(server.bin_dir)}
[configs]
root = {_quoted(top / "checkout")}
[web]
listen = "127.0.0.1:9480"
{volumes}"""


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # a JSON string is a TOML string
