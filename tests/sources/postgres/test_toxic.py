"""Peers that end, garble, slow or forget a connection, at each moment of a dump and of a restore. Real servers behind a proxy."""

import time

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import AquadError
from aquad.jobs.restore import open_backup
from aquad.jobs.verify import verify
from aquad.sources.postgres import server as aquad_server
from aquad.sources.postgres.restore import PostgresTarget
from aquad.stream.artifact import RunContext, Silent
from tests.servers.proxy import Toxic, ToxicProxy
from tests.sources.postgres.test_faults import impatient
from tests.sources.postgres.test_network import children
from tests.sources.postgres.test_round_trip import back_up, repository_in, source

BOUND_SECONDS = 25
"""Far more than the stall, the grace for a child that was told to end, and connections that are not made."""
ROWS = 4000
MOMENTS = {"before a byte": 0.0, "in the middle": 0.5, "near the end": 0.999}
LAST = {"but for the last byte": -1, "after the last byte": 0}
KINDS = ["reset", "end", "stall", "garbage"]
UNFINISHED = [
    (kind, moment) for kind in KINDS for moment in MOMENTS if moment != "near the end" or kind in {"reset", "end"}
]
"""Whatever ends in a stall takes seconds, and is near the end what it is in the middle."""


@pytest.fixture(autouse=True)
def short_wait_for_connections(monkeypatch):
    monkeypatch.setattr(aquad_server, "CONNECT_SECONDS", 2)


@pytest.fixture(scope="module")
def small(shared_server):
    """With a database of some 2 MB."""
    shared_server.psql("DROP DATABASE IF EXISTS toxic WITH (FORCE)")
    shared_server.psql("CREATE DATABASE toxic")
    shared_server.psql(f"CREATE TABLE t AS SELECT i, repeat('x', 500) AS x FROM generate_series(1, {ROWS}) i", "toxic")
    yield shared_server
    shared_server.psql("DROP DATABASE IF EXISTS toxic WITH (FORCE)")


def through(server, proxy):
    return source(server, login=server.login._replace(port=proxy.port), databases=["toxic"])


@pytest.fixture(scope="module")
def dump_bytes(small, tmp_path_factory):
    """That come from the server while it is backed up."""
    with ToxicProxy(small.host, small.port) as proxy:
        repository = repository_in(tmp_path_factory.mktemp("counted") / "b")
        assert back_up(repository, through(small, proxy)).outcome == "success"
    return proxy.passed["client"]


@pytest.fixture(scope="module")
def sealed(small, tmp_path_factory):
    """A repository with a good backup, and the bytes that go to the server while it is restored."""
    repository = repository_in(tmp_path_factory.mktemp("sealed") / "b")
    assert back_up(repository, source(small, databases=["toxic"])).outcome == "success"
    with ToxicProxy(small.host, small.port) as proxy:
        restored = restore(repository, through(small, proxy), to_name="counted")
    assert restored["databases"]["counted"]["rows"] == ROWS
    small.psql("DROP DATABASE counted")
    return repository, proxy.passed["server"]


def restore(repository, postgres, **options):
    reader = open_backup(repository, "postgres", "latest", trusted=False)
    run = RunContext(
        run_id="toxic", timestamp="20300101_000000", clock=SystemClock(), deadline=time.monotonic() + 4, stall_seconds=2
    )
    return postgres.restore(reader, PostgresTarget(database="toxic", **options), run)


def backed_up_through(server, toxic, path):
    """The result and the repository of a backup that ended in bounded time and left no child behind."""
    repository, before = repository_in(path), children()
    started = time.monotonic()
    with ToxicProxy(server.host, server.port, toxic) as proxy:
        result = back_up(repository, through(server, proxy), limits=impatient(2))
    assert time.monotonic() - started < BOUND_SECONDS
    assert children() == before
    return result, repository, proxy


def must_have_failed(result, repository, proxy):
    assert result.outcome == "failed"
    assert f":{proxy.port}" in result.reason or "run pg_dump" in result.reason
    assert repository.catalog().backups == []
    assert not list(repository.root.glob("postgres*"))


def must_be_whole(result, repository):
    assert result.outcome == "success", result.reason
    (verdict,) = verify(repository, repository.catalog().backups, "content", Silent())
    assert (verdict.level, verdict.problems) == ("content", [])
    (database,) = repository.catalog().find("latest").component("postgres").facts["databases"]
    assert database["rows"] == {"public.t": ROWS}


@pytest.mark.parametrize("kind", ["refuse", "reset at connect"])
def test_C1_a_server_that_takes_no_connection_is_named(small, tmp_path, kind):
    result, repository, proxy = backed_up_through(small, Toxic(kind), tmp_path / "b")
    must_have_failed(result, repository, proxy)
    assert f"connect to PostgreSQL {small.login._replace(port=proxy.port)}" in result.reason


@pytest.mark.parametrize(("kind", "moment"), UNFINISHED)
def test_C2_C3_a_connection_that_goes_wrong_before_the_dump_is_whole_is_a_failure(
    small, dump_bytes, tmp_path, kind, moment
):
    toxic = Toxic(kind, after=int(dump_bytes * MOMENTS[moment]))
    result, repository, proxy = backed_up_through(small, toxic, tmp_path / "b")
    assert proxy.struck.is_set()
    must_have_failed(result, repository, proxy)


@pytest.mark.parametrize(
    "after", [700, 1500, 3000], ids=["after the login", "while asked for databases", "in pg_dumpall"]
)
def test_C3_a_server_that_is_stuck_before_the_first_dump_is_given_up(small, tmp_path, after):
    result, repository, proxy = backed_up_through(small, Toxic("stall", after=after), tmp_path / "b")
    assert proxy.struck.is_set()
    assert result.outcome == "failed"
    assert "no answer for 2 s" in result.reason or "run pg_dumpall: no byte for 2 s" in result.reason
    assert repository.catalog().backups == []


@pytest.mark.parametrize("after", [700, 1500], ids=["after the login", "while asked for databases"])
@pytest.mark.parametrize("kind", ["reset", "end", "garbage"])
def test_C2_a_connection_that_goes_wrong_while_the_server_is_asked_is_a_failure(small, tmp_path, kind, after):
    result, repository, proxy = backed_up_through(small, Toxic(kind, after=after), tmp_path / "b")
    assert proxy.struck.is_set()
    must_have_failed(result, repository, proxy)
    assert f"ask PostgreSQL {small.login._replace(port=proxy.port)}: " in result.reason


@pytest.mark.parametrize("moment", LAST)
@pytest.mark.parametrize("kind", KINDS)
def test_C2_C3_at_the_last_byte_a_backup_is_whole_or_failed(small, dump_bytes, tmp_path, kind, moment):
    toxic = Toxic(kind, after=dump_bytes + LAST[moment])
    result, repository, proxy = backed_up_through(small, toxic, tmp_path / "b")
    if result.outcome == "failed":
        must_have_failed(result, repository, proxy)
    else:
        must_be_whole(result, repository)


@pytest.mark.parametrize(
    "toxic", [Toxic("rate", amount=2_000_000), Toxic("latency", amount=0.005)], ids=lambda t: t.kind
)
def test_C4_a_slow_peer_is_waited_for(small, tmp_path, toxic):
    result, repository, proxy = backed_up_through(small, toxic, tmp_path / "b")
    assert proxy.struck.is_set()
    must_be_whole(result, repository)


@pytest.mark.parametrize("kind", ["reset", "end", "stall"])
def test_C2_C3_a_connection_that_goes_wrong_in_the_middle_of_a_restore_leaves_the_old_database(small, sealed, kind):
    repository, restore_bytes = sealed
    before = children()
    started = time.monotonic()
    with (
        ToxicProxy(small.host, small.port, Toxic(kind, after=restore_bytes // 2, towards="server")) as proxy,
        pytest.raises(AquadError) as raised,
    ):
        restore(repository, through(small, proxy))
    assert proxy.struck.is_set()
    assert f":{proxy.port}" in str(raised.value) or "run psql" in str(raised.value)
    assert time.monotonic() - started < BOUND_SECONDS
    assert children() == before
    postgres = source(small)
    with small.connect("toxic") as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
    (half,) = postgres.kept_aside()
    assert half == "aquad_new_20300101_000000"
    postgres.discard(half)
