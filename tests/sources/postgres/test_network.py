"""A network between aquad and a real server that loses every packet without a word, or is slow. Ids are those of the fault model."""

import threading
import time
from datetime import UTC
from pathlib import Path

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import AquadError
from aquad.jobs.full import Space, take_full
from aquad.jobs.restore import open_backup
from aquad.jobs.run import run_job
from aquad.jobs.verify import verify
from aquad.sources.postgres import server as aquad_server
from aquad.sources.postgres.restore import PostgresTarget
from aquad.stream.artifact import RunContext, Silent
from tests.servers import debian
from tests.servers.network import FarServer, private_network
from tests.small import needs_root
from tests.sources.postgres.test_faults import impatient, sessions
from tests.sources.postgres.test_round_trip import back_up, repository_in, source

pytestmark = needs_root
CONNECT_SECONDS = 3
"""Instead of aquad's own 10 s, for the test's time."""
SLACK_SECONDS = 10
ROWS = 60_000
"""Of 500 bytes: more than what pipes and sockets between the server's disk and aquad hold."""


@pytest.fixture(scope="module")
def far():
    """A network, and a server behind it."""
    try:
        with private_network() as network:
            server = FarServer(network).start()
            try:
                yield network, server
            finally:
                server.close()
    except debian.Unavailable as error:
        pytest.skip(f"NOT TESTED over a network: no iproute2 here, and it cannot be downloaded: {error}")
    except PermissionError as error:
        pytest.skip(f"NOT TESTED over a network: this root may not make one: {error}")


@pytest.fixture(autouse=True)
def network(far, monkeypatch):
    monkeypatch.setattr(aquad_server, "CONNECT_SECONDS", CONNECT_SECONDS)
    network, _ = far
    yield network
    network.heal()


@pytest.fixture
def server(far):
    """With a database of some 30 MB."""
    _, server = far
    server.psql("DROP DATABASE IF EXISTS faulty WITH (FORCE)")
    server.psql("CREATE DATABASE faulty")
    server.psql(f"CREATE TABLE t AS SELECT i, repeat('x', 500) AS x FROM generate_series(1, {ROWS}) i", "faulty")
    return server


class Once(Silent):
    """Does something as soon as so many bytes have passed."""

    def __init__(self, after, act):
        self._left = after
        self._act = act

    def advance(self, count):
        before, self._left = self._left, self._left - count
        if before > 0 >= self._left:
            self._act()


def watched_back_up(repository, server, progress, *, stall_seconds):
    return run_job(
        repository,
        "full",
        lambda run: take_full(repository, [source(server, databases=["faulty"])], run, space=Space()),
        clock=SystemClock(),
        zone=UTC,
        limits=impatient(stall_seconds),
        progress=progress,
    )


def children():
    """The processes that this one has."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def await_no_sessions(server):
    give_up = time.monotonic() + SLACK_SECONDS
    while left := sessions(server):
        assert time.monotonic() < give_up, left
        time.sleep(0.02)


def test_C3_half_open_network_in_the_middle_of_a_dump_is_a_failure_and_the_next_backup_works(network, server, tmp_path):
    repository = repository_in(tmp_path / "b")
    before = children()
    cut_at = []

    def cut():
        network.cut()
        cut_at.append(time.monotonic())

    result = watched_back_up(repository, server, Once(1_000_000, cut), stall_seconds=2)
    assert time.monotonic() - cut_at[0] < 2 + CONNECT_SECONDS + SLACK_SECONDS
    assert result.outcome == "failed"
    assert "dump database faulty: run pg_dump: no byte for 2 s" in result.reason
    assert repository.catalog().backups == []
    assert not list(repository.root.glob("postgres*"))
    assert children() == before
    assert len(sessions(server)) == 1, "the server was not told"
    network.heal()
    assert back_up(repository, source(server, databases=["faulty"])).outcome == "success"
    await_no_sessions(server)


def test_C1_a_network_that_is_cut_before_the_connection_fails_in_the_time_for_a_connection(network, server, tmp_path):
    repository = repository_in(tmp_path / "b")
    network.cut()
    started = time.monotonic()
    result = back_up(repository, source(server, databases=["faulty"]))
    assert CONNECT_SECONDS - 1 < time.monotonic() - started < CONNECT_SECONDS + SLACK_SECONDS
    assert result.outcome == "failed"
    assert f"connect to PostgreSQL {server.login}" in result.reason
    assert "timeout" in result.reason
    assert repository.catalog().backups == []


def test_C3_half_open_network_in_the_middle_of_a_restore_leaves_the_old_database_and_names_the_half_one(
    network, server, tmp_path
):
    repository = repository_in(tmp_path / "b")
    postgres = source(server, databases=["faulty"])
    assert back_up(repository, postgres).outcome == "success"
    server.psql("CREATE TABLE newer AS SELECT 1", "faulty")
    before = children()
    reader = open_backup(repository, "postgres", "latest", trusted=False)
    run = RunContext(
        run_id="halfopen",
        timestamp="20300101_000000",
        clock=SystemClock(),
        deadline=time.monotonic() + 5,
        progress=Once(10_000_000, network.cut),
    )
    started = time.monotonic()
    with pytest.raises(AquadError) as raised:
        postgres.restore(reader, PostgresTarget(database="faulty"), run)
    assert "restore into database aquad_new_20300101_000000: run psql: not done" in str(raised.value)
    assert "aquad restore discard aquad_new_20300101_000000" in raised.value.hint
    assert time.monotonic() - started < 5 + 2 * CONNECT_SECONDS + SLACK_SECONDS
    assert children() == before
    assert sessions(server) == ["aquad halfopen"], "the server was not told"
    network.heal()
    with server.connect("faulty") as connection:
        assert connection.execute("SELECT count(*) FROM newer").fetchone() == (1,)
    assert postgres.kept_aside() == ["aquad_new_20300101_000000"]
    postgres.discard("aquad_new_20300101_000000")
    await_no_sessions(server)


def test_C4_a_slow_network_is_not_mistaken_for_one_that_is_stuck(network, far, tmp_path):
    _, server = far
    server.psql("DROP DATABASE IF EXISTS faulty WITH (FORCE)")
    server.psql("CREATE DATABASE faulty")
    server.psql(
        "CREATE TABLE t AS SELECT i, gen_random_uuid() AS a, gen_random_uuid() AS b FROM generate_series(1, 20000) i",
        "faulty",
    )
    repository = repository_in(tmp_path / "b")
    network.slow(400_000)
    started = time.monotonic()
    result = back_up(repository, source(server, databases=["faulty"]), limits=impatient(3))
    assert time.monotonic() - started > 3, "the network was not slow"
    assert result.outcome == "success", result.reason
    (verdict,) = verify(repository, repository.catalog().backups, "content", Silent())
    assert (verdict.level, verdict.problems) == ("content", [])


def test_C3_a_network_that_is_cut_for_two_seconds_loses_no_byte(network, server, tmp_path):
    repository = repository_in(tmp_path / "b")
    timers = []

    def cut():
        network.cut()
        timers.append(threading.Timer(2, network.heal))
        timers[0].start()

    result = watched_back_up(repository, server, Once(1_000_000, cut), stall_seconds=20)
    timers[0].join()
    assert result.outcome == "success", result.reason
    (verdict,) = verify(repository, repository.catalog().backups, "content", Silent())
    assert (verdict.level, verdict.problems) == ("content", [])
    (database,) = repository.catalog().find("latest").component("postgres").facts["databases"]
    assert database["rows"] == {"public.t": ROWS}
