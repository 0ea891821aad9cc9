"""What goes wrong with a server while it is dumped or before it is restored, on real servers. Ids are those of the fault model."""

import threading
import time

import psycopg
import pytest

from aquad.core.errors import RestoreFailed
from aquad.jobs.restore import Order, open_backup, plan
from aquad.jobs.run import Limits
from aquad.sources.postgres.dump import Postgres
from aquad.sources.postgres.restore import PostgresTarget
from tests.keys import secret_file
from tests.servers.proxy import Toxic, ToxicProxy
from tests.small import Words, mounted, needs_root
from tests.sources.postgres.test_round_trip import back_up, repository_in, source


@pytest.fixture
def large(shared_server):
    """A database of some 120 MB."""
    with shared_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS faulty WITH (FORCE)")
        connection.execute("CREATE DATABASE faulty")
    with shared_server.connect("faulty") as connection:
        connection.execute("CREATE TABLE t AS SELECT i, repeat('x', 500) AS x FROM generate_series(1, 200000) i")
    yield shared_server
    with shared_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS faulty WITH (FORCE)")


def sessions(server, name="aquad %"):
    with server.connect() as connection:
        query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE %s ORDER BY 1"
        return [row[0] for row in connection.execute(query, (name,)).fetchall()]


def impatient(seconds):
    return Limits(deadline_seconds=60, stall_seconds=seconds)


def test_D4_a_dump_gives_up_waiting_for_a_lock_and_names_the_table(large, tmp_path):
    with large.connect("faulty") as holder, holder.transaction():
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        result = back_up(repository_in(tmp_path / "b"), source(large, databases=["faulty"]), limits=impatient(3))
    assert result.outcome == "failed"
    assert "LOCK TABLE public.t IN ACCESS SHARE MODE" in result.reason
    assert sessions(large) == []


def test_C3_a_peer_that_is_stuck_is_given_up(large, tmp_path):
    repository = repository_in(tmp_path / "b")
    with ToxicProxy(large.host, large.port, Toxic("stall", after=20_000_000)) as proxy:
        login = large.login._replace(port=proxy.port)
        started = time.monotonic()
        result = back_up(repository, source(large, login=login, databases=["faulty"]), limits=impatient(2))
        assert proxy.struck.is_set()
        assert time.monotonic() - started < 20
    assert result.outcome == "failed"
    assert "no byte for 2 s" in result.reason
    assert repository.catalog().backups == []


def test_C3_connections_of_the_tools_have_the_keepalive_timer_running(large, tmp_path):
    """/proc/net/tcp, column `tr`: 02 is the keepalive timer (proc_net_tcp of the kernel's documentation)."""
    seen = set()

    def look():
        give_up = time.monotonic() + 20
        while not seen and time.monotonic() < give_up:
            with open("/proc/net/tcp") as table:
                for line in list(table)[1:]:
                    fields = line.split()
                    if fields[2] == f"0100007F:{large.port:04X}" and fields[3] == "01" and fields[5].startswith("02:"):
                        seen.add(fields[5])

    with large.connect("faulty") as holder, holder.transaction():
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")  # so that pg_dump waits where it can be looked at
        thread = threading.Thread(target=look)
        thread.start()
        back_up(repository_in(tmp_path / "b"), source(large, databases=["faulty"]), limits=impatient(2))
        thread.join()
    (timer,) = seen
    assert int(timer.partition(":")[2], 16) <= 500, "hundredths of a second until the first probe: 5 s"


def test_a_database_that_is_dropped_while_it_is_dumped_is_a_failure_that_names_it(large, tmp_path):
    done = threading.Event()

    def drop():
        while not done.is_set():
            with large.connect() as connection:
                copying = "SELECT 1 FROM pg_stat_activity WHERE datname = 'faulty' AND query LIKE 'COPY%' AND state = 'active'"
                if connection.execute(copying).fetchone():
                    connection.execute("DROP DATABASE faulty WITH (FORCE)")
                    return

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        repository = repository_in(tmp_path / "b")
        result = back_up(repository, source(large, databases=["faulty"]))
    finally:
        done.set()
        thread.join()
    assert result.outcome == "failed"
    assert "dump database faulty" in result.reason
    assert repository.catalog().backups == []


def test_a_user_who_may_not_ask_is_a_failed_component_and_the_others_are_sealed(large, tmp_path):
    large.psql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE timid LOGIN PASSWORD 'timid'")
    try:
        login = large.login._replace(user="timid", password_file=secret_file(tmp_path / "password", "timid"))
        repository = repository_in(tmp_path / "b")
        result = back_up(repository, source(large, login=login), Words())
        assert result.outcome == "failed"
        assert f"postgres: ask PostgreSQL {login}: permission denied for function pg_control_system" in result.reason
        (sealed,) = repository.catalog().backups
        assert [(c.name, c.outcome) for c in sealed.components] == [("postgres", "failed"), ("words", "success")]
    finally:
        large.psql("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC; DROP ROLE timid")


def test_D17_sessions_of_dead_runs_are_ended_and_no_others(large, tmp_path):
    repository = repository_in(tmp_path / "b")
    repository.journal.append("run_started", run="0ddba115", job="full", slot=None)

    def session(name):
        return psycopg.connect(
            host=str(large.directory), port=large.port, user="postgres", dbname="postgres", application_name=name
        )

    with session("aquad 0ddba115"), session("aquad 0therrun"):
        assert sessions(large) == ["aquad 0ddba115", "aquad 0therrun"]
        assert back_up(repository, source(large, databases=["postgres"])).outcome == "success"
        assert sessions(large) == ["aquad 0therrun"]
        large.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aquad 0therrun'")


@needs_root
def test_O3_space_on_the_server_is_looked_at_before_anything_is_made(large, tmp_path):
    repository = repository_in(tmp_path / "b")
    back_up(repository, source(large, databases=["faulty"]))
    reader = open_backup(repository, "postgres", "latest", trusted=False)
    with mounted(tmp_path / "data", "tmpfs", "size=1m") as data_path:
        postgres = Postgres(login=large.login, databases=[], bin_dir=str(large.bin), data_path=data_path)
        with pytest.raises(RestoreFailed, match="bytes are needed"):
            plan(repository, [Order("postgres", postgres, reader, PostgresTarget(database="faulty"))])
        (planned,) = plan(
            repository, [Order("postgres", postgres, reader, PostgresTarget(database="faulty", in_place=True))]
        )
        assert planned.overwrites == ["database faulty, which is GONE before the new one is there"]
        plan(repository, [Order("postgres", postgres, reader, PostgresTarget(login=large.login, database="faulty"))])
    unseen = source(large).plan_restore(reader, PostgresTarget(database="faulty"))
    assert any("free space on the server is not known" in step.warning for step in unseen)
