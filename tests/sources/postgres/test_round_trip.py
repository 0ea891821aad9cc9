"""Real servers: what is dumped comes back, beside the live data, compared and swapped."""

import subprocess
import threading
import time
from datetime import UTC
from pathlib import Path

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import AquadError, RestoreFailed, Unreachable
from aquad.jobs.full import Space, take_full
from aquad.jobs.restore import open_backup
from aquad.jobs.run import Limits, run_job
from aquad.repository.repository import Repository
from aquad.sources.postgres.dump import Postgres
from aquad.sources.postgres.restore import PostgresTarget
from aquad.stream.artifact import RunContext
from tests.servers.postgres import MAJORS, binaries
from tests.servers.rich import RICH, TABLES, cluster, fingerprint


def source(server, **options):
    return Postgres(
        login=options.pop("login", server.login),
        databases=options.pop("databases", []),
        bin_dir=options.pop("bin_dir", str(server.bin)),
    )


def repository_in(path):
    return Repository.create(path, stack="test", encryption="off", clock=SystemClock(), zone=UTC)


LIMITS = Limits(deadline_seconds=120, stall_seconds=30)


def back_up(repository, *sources, limits=LIMITS):
    return run_job(
        repository,
        "full",
        lambda run: take_full(repository, sources, run, space=Space()),
        clock=SystemClock(),
        zone=UTC,
        limits=limits,
    )


def bring_back(repository, postgres, stamp="20300101_000000", **options):
    reader = open_backup(repository, "postgres", "latest", trusted=False)
    run = RunContext(run_id="test", timestamp=stamp, clock=SystemClock())
    target = PostgresTarget(**options)
    postgres.plan_restore(reader, target)
    return postgres.restore(reader, target, run)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A server with the rich database, and a backup of it. Tests that change the server take one of their own."""
    from tests.servers.postgres import Server

    server = Server(16).start()
    server.psql(RICH)
    repository = repository_in(tmp_path_factory.mktemp("rich") / "backups")
    assert back_up(repository, source(server)).outcome == "success"
    yield server, repository
    server.close()


def backup_file(repository) -> Path:
    return next(repository.root.glob("postgres_backup_*.sql.gz"))


class TestTaking:
    def test_rows_are_counted_as_they_pass(self, rich):
        server, repository = rich
        component = repository.catalog().find("latest").component("postgres")
        rows = {d["name"]: d["rows"] for d in component.facts["databases"]}
        with server.connect("rich") as connection:
            for table, count in rows["rich"].items():
                assert connection.execute(f"SELECT count(*) FROM ONLY {table}").fetchone() == (count,), table
        assert rows["rich"]["app.things"] == 2000
        assert rows["rich"]["app.child"] == 2
        assert len(rows["rich"]) == 8
        assert rows["Second DB'=x"] == {"public.latin": 2}

    def test_facts_say_what_the_server_is(self, rich):
        server, repository = rich
        facts = repository.catalog().find("latest").component("postgres").facts
        with server.connect() as connection:
            assert connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone() == (
                facts["system_identifier"],
            )
        assert facts["server_version"] // 10000 == 16
        assert "app" in facts["roles"]
        database = next(d for d in facts["databases"] if d["name"] == "rich")
        assert {e["name"] for e in database["extensions"]} == {"plpgsql", "hstore", "citext"}

    @pytest.mark.parametrize("psql", ["16", "16.2"])
    def test_by_hand_with_zcat_and_psql_into_an_empty_server(self, rich, new_server, psql):
        server, repository = rich
        target = new_server(16)
        tool = str(binaries("16.2") / "psql") if psql == "16.2" else str(target.bin / "psql")
        command = f"zcat '{backup_file(repository)}' | '{tool}' -X -q -h '{target.directory}' -p {target.port} -U postgres -d postgres"
        said = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        errors = [line for line in said.stderr.splitlines() if "ERROR" in line]
        assert [e for e in errors if 'role "postgres" already exists' not in e] == []
        assert fingerprint(target) == fingerprint(server)
        assert cluster(target) == cluster(server)

    def test_the_schema_alone_restores_by_hand(self, rich, new_server):
        server, repository = rich
        target = new_server(16)
        text = next(repository.root.glob("postgres_schema_*.sql")).read_bytes()
        command = [
            str(target.bin / "psql"),
            "-X",
            "-q",
            "-h",
            str(target.directory),
            "-p",
            str(target.port),
            "-U",
            "postgres",
        ]
        said = subprocess.run(command, input=text, capture_output=True)
        assert [
            line for line in said.stderr.splitlines() if b"ERROR" in line and b'"postgres" already' not in line
        ] == []
        with server.connect("rich") as one, target.connect("rich") as other:
            assert other.execute(TABLES).fetchall() == one.execute(TABLES).fetchall() != []

    def test_D1_tools_of_another_major_are_refused_before_anything_is_written(self, shared_server, tmp_path):
        repository = repository_in(tmp_path / "b")
        result = back_up(repository, source(shared_server, bin_dir=str(binaries(17))))
        assert result.outcome == "failed"
        assert "tools of PostgreSQL 16" in result.reason
        assert "version 17" in result.reason
        assert not list(repository.root.glob("postgres*"))

    def test_wrong_password_and_server_down_are_unreachable(self, shared_server, tmp_path):
        wrong = tmp_path / "wrong"
        wrong.write_text("no"), wrong.chmod(0o600)
        with pytest.raises(Unreachable, match="password authentication failed"):
            source(shared_server, login=shared_server.login._replace(password_file=wrong)).check()
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
            source(shared_server, login=shared_server.login._replace(port=1)).check()

    def test_a_role_that_may_not_read_a_table_is_a_failure(self, shared_server, tmp_path):
        shared_server.psql("CREATE ROLE weak LOGIN SUPERUSER PASSWORD 'w'; CREATE DATABASE closed;")
        shared_server.psql("CREATE TABLE secret (a int)", "closed")
        shared_server.psql("ALTER ROLE weak NOSUPERUSER; GRANT pg_monitor TO weak")
        password = tmp_path / "w"
        password.write_text("w"), password.chmod(0o600)
        result = back_up(
            repository_in(tmp_path / "b"),
            source(shared_server, login=shared_server.login._replace(user="weak", password_file=password)),
        )
        assert result.outcome == "failed"
        assert "permission denied" in result.reason

    def test_D3_a_killed_backend_is_a_failure_and_leaves_no_session(self, shared_server, tmp_path):
        shared_server.psql("CREATE DATABASE large")
        shared_server.psql("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 200000) i", "large")
        done = threading.Event()

        def kill():
            while not done.is_set():
                with shared_server.connect() as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'aquad %' AND query LIKE 'COPY%'"
                    )
                time.sleep(0.02)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            repository = repository_in(tmp_path / "b")
            result = back_up(repository, source(shared_server, databases=["large"]))
        finally:
            done.set()
            thread.join()
        assert result.outcome == "failed"
        assert repository.catalog().backups == []
        with shared_server.connect() as connection:
            assert connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'aquad %'"
            ).fetchone() == (0,)

    def test_D5_a_new_database_is_covered_and_one_without_connections_is_named(self, shared_server, tmp_path):
        shared_server.psql("CREATE DATABASE fresh; CREATE DATABASE shut ALLOW_CONNECTIONS false;")
        repository = repository_in(tmp_path / "b")
        result = back_up(repository, source(shared_server))
        assert result.outcome == "warning"
        assert "shut" in result.reason
        facts = repository.catalog().find("latest").component("postgres").facts
        assert "fresh" in [d["name"] for d in facts["databases"]]
        assert facts["skipped_databases"] == ["shut"]

    def test_a_database_that_is_not_there_is_named(self, shared_server, tmp_path):
        result = back_up(repository_in(tmp_path / "b"), source(shared_server, databases=["nowhere"]))
        assert "nowhere" in result.reason

    def test_N2_no_password_in_arguments_or_environment(self, rich, tmp_path):
        server, _ = rich
        seen, done = [], threading.Event()

        def watch():
            while not done.is_set():
                for entry in Path("/proc").glob("[0-9]*"):
                    for name in ("cmdline", "environ"):
                        try:
                            seen.append((entry / name).read_bytes())
                        except OSError:
                            pass

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            back_up(repository_in(tmp_path / "b"), source(server))
        finally:
            done.set()
            thread.join()
        assert any(b"pg_dump" in one for one in seen)
        assert any(b"PGPASSFILE=/proc/self/fd/" in one for one in seen), "the password is in no file with a name"
        assert not [one for one in seen if b"se:cr" in one]


class TestRestoring:
    def test_a_whole_cluster_beside_the_live_one(self, new_server, tmp_path):
        server = new_server(16)
        server.psql(RICH)
        before = fingerprint(server), cluster(server)
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(server))
        server.psql("DELETE FROM app.things; DROP TABLE app.child", "rich")
        server.psql("ALTER ROLE app PASSWORD 'rotated since'")
        postgres = source(server)
        facts = bring_back(repository, postgres)
        assert fingerprint(server) == before[0]
        assert facts["databases"]["rich"]["rows"] == 2000 + 500 + 1 + 2 + 3 + 1
        after = cluster(server)
        password = next(iter(before[1]))
        assert {k: v for k, v in after.items() if k != password} == {
            k: v for k, v in before[1].items() if k != password
        }
        assert after[password] != before[1][password], "an existing role's password was reset"
        assert postgres.kept_aside() == ["Second DB'=x_before_20300101_000000", "rich_before_20300101_000000"]
        assert back_up(repository, postgres).outcome == "success"
        names = [d["name"] for d in repository.catalog().find("latest").component("postgres").facts["databases"]]
        assert not [name for name in names if "_before_" in name]
        with server.connect("rich_before_20300101_000000") as connection:
            assert connection.execute("SELECT count(*) FROM app.things").fetchone() == (0,)
        for name in postgres.kept_aside():
            postgres.discard(name)
        assert postgres.kept_aside() == []
        with pytest.raises(RestoreFailed, match="no restore kept it"):
            postgres.discard("rich")

    @pytest.mark.parametrize("major", MAJORS)
    def test_into_an_empty_cluster_of_each_major(self, major, new_server, tmp_path):
        server = new_server(major)
        server.psql(RICH)
        repository = repository_in(tmp_path / "b")
        assert back_up(repository, source(server)).outcome == "success"
        before = fingerprint(server), cluster(server)
        server.close()
        empty = new_server(major)
        bring_back(repository, source(empty))
        after = fingerprint(empty), cluster(empty)
        password = next(iter(before[1]))
        strip = lambda rows: [row for row in rows if row[0] != "postgres"]
        assert after[0] == before[0]
        assert strip(after[1].pop(password)) == strip(before[1].pop(password))
        assert after[1] == before[1]

    def test_one_database_under_another_name_leaves_the_original_alone(self, rich):
        server, repository = rich
        before = fingerprint(server), cluster(server)
        bring_back(repository, source(server), database="rich", to_name="Rich copy")
        assert fingerprint(server) == before[0]
        copy = fingerprint(server, database="Rich copy", second=False)
        assert {k[1]: v for k, v in copy.items() if isinstance(k, tuple)} == {
            k[1]: v for k, v in before[0].items() if isinstance(k, tuple) and k[0] == "rich"
        }
        with server.connect() as connection:
            query = "SELECT datacl::text, datconnlimit, shobj_description(oid, 'pg_database'), pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
            one, other = (connection.execute(query, (name,)).fetchone() for name in ("rich", "Rich copy"))
            assert one[1:] == other[1:]
            assert set(one[0].strip("{}").split(",")) == set(other[0].strip("{}").split(","))
        server.psql('DROP DATABASE "Rich copy"')

    def test_schema_only(self, rich):
        server, repository = rich
        bring_back(repository, source(server), database="rich", to_name="hollow", schema_only=True)
        with server.connect("hollow") as connection:
            assert connection.execute("SELECT count(*) FROM app.things").fetchone() == (0,)
            assert (
                connection.execute("SELECT count(*) FROM pg_proc WHERE pronamespace = 'app'::regnamespace").fetchone()[
                    0
                ]
                >= 4
            )
        server.psql("DROP DATABASE hollow")

    def test_to_another_server(self, rich, new_server):
        server, repository = rich
        other = new_server(16)
        bring_back(repository, source(server), login=other.login)
        assert fingerprint(other) == fingerprint(server)

    def test_to_an_older_major_is_refused(self, rich, new_server):
        _, repository = rich
        old = new_server(15)
        with pytest.raises(RestoreFailed, match="it is PostgreSQL 15"):
            bring_back(repository, source(old))

    def test_O1_a_wrong_row_count_leaves_the_live_database(self, rich, monkeypatch):
        server, repository = rich
        before = fingerprint(server)
        postgres = source(server)
        reader = open_backup(repository, "postgres", "latest", trusted=False)
        next(d for d in reader.facts["databases"] if d["name"] == "rich")["rows"]["app.things"] = 1999
        with pytest.raises(RestoreFailed, match=r"app\.things of rich: 2000 rows, sealed were 1999"):
            postgres.restore(
                reader,
                PostgresTarget(database="rich"),
                RunContext(run_id="t", timestamp="20300101_000000", clock=SystemClock()),
            )
        assert fingerprint(server) == before
        assert postgres.kept_aside() == []

    def test_O2_a_killed_psql_leaves_the_live_database(self, rich):
        server, repository = rich
        before = fingerprint(server)
        done = threading.Event()

        def kill():
            while not done.is_set():
                with server.connect() as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'aquad_new%'"
                    )

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            with pytest.raises(AquadError):
                bring_back(repository, source(server), database="rich")
        finally:
            done.set()
            thread.join()
        assert fingerprint(server) == before
        assert source(server).kept_aside() == []

    def test_in_place_drops_and_makes_anew(self, rich):
        server, repository = rich
        before = fingerprint(server)
        bring_back(repository, source(server), database="rich", in_place=True)
        assert fingerprint(server) == before
        assert source(server).kept_aside() == []

    def test_a_database_the_backup_does_not_have_is_named(self, rich):
        server, repository = rich
        with pytest.raises(RestoreFailed, match="nowhere"):
            bring_back(repository, source(server), database="nowhere")

    def test_G5_backslash_commands_in_a_text_do_nothing(self, shared_server, tmp_path):
        from aquad.sources.postgres import psql, tools

        found = tools.find(16, str(shared_server.bin))
        run = RunContext(run_id="t", timestamp="x", clock=SystemClock())
        for number, line in enumerate(
            (
                r"\! touch {}",
                r"SELECT 1 \g |touch {}",
                r"\o {}",
                r"SELECT 1; \! touch {}",
                r"\copy pg_class to program 'touch {}'",
                "\\unrestrict x\n\\! touch {}",
            )
        ):
            path = tmp_path / f"PWNED{number}"
            with pytest.raises(RestoreFailed):
                psql.feed(shared_server.login, "postgres", [line.format(path).encode() + b"\n"], found, run)
            assert not path.exists()
        text = b"\\restrict abc\nSELECT 1;\n\\unrestrict abc\n"
        psql.feed(shared_server.login, "postgres", [text[:5], text[5:]], found, run)
