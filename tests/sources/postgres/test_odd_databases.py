"""Databases that are odd in what they are set to, named, or made of; each comes back as it was."""

import subprocess
from pathlib import Path

import pytest

from aquad.core.errors import RestoreFailed, Unreachable
from aquad.sources.postgres import psql, server, swap
from aquad.sources.postgres.copy_rows import RowCounter
from tests.sources.postgres.test_foreign import bring_back as bring_back_file
from tests.sources.postgres.test_foreign import tool
from tests.sources.postgres.test_round_trip import back_up, bring_back, repository_in, source


@pytest.fixture(scope="module")
def odd_server():
    from tests.servers.postgres import Server

    made = Server(16).start()
    yield made
    made.close()


@pytest.fixture
def odd(odd_server):
    """Make a database `odd`; whatever a test leaves is dropped."""
    odd_server.psql("CREATE DATABASE odd")
    odd_server.psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 50) i", "odd")
    yield odd_server
    with odd_server.connect() as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname !~ '^(postgres|template)'"):
            swap.drop(odd_server.login, name)


def ask(server_, query, database="postgres", values=None):
    with server_.connect(database) as connection:
        return connection.execute(query, values).fetchone()


class TestSettings:
    def test_lists_stay_lists_under_another_name_too(self, odd, tmp_path):
        odd.psql("CREATE SCHEMA app", "odd")
        odd.psql("""ALTER DATABASE odd SET search_path = app, "$user", public""")
        odd.psql("ALTER DATABASE odd SET session_preload_libraries = auto_explain, pg_prewarm")
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd, databases=["odd"]))
        bring_back(repository, source(odd), database="odd", to_name="odd2")
        bring_back(repository, source(odd), database="odd")
        for name in ("odd", "odd2"):
            assert ask(odd, "SELECT current_schemas(false)::text", name) == ("{app,public}",)
            assert ask(odd, "SHOW session_preload_libraries", name) == ("auto_explain, pg_prewarm",)

    def test_a_timeout_that_is_meant_for_the_application_is_not_meant_for_us(self, odd, tmp_path):
        odd.psql("ALTER DATABASE odd SET statement_timeout = '1ms'")
        odd.psql("ALTER DATABASE odd SET default_transaction_read_only = on")
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd, databases=["odd"]))
        bring_back(repository, source(odd), database="odd")
        assert ask(odd, "SHOW statement_timeout", "odd") == ("1ms",)

    def test_it_is_not_meant_for_a_tool_either_from_its_first_query_on(self, odd):
        odd.psql("ALTER DATABASE odd SET statement_timeout = '1ms'")
        with server.tool_access(odd.login, "test") as access:
            argv = [odd.bin / "psql", "-XAtd", server.conninfo(odd.login, "odd"), "-c", "SHOW statement_timeout"]
            said = subprocess.run(argv, env=access.environment, pass_fds=[access.passfile_fd], capture_output=True)
        assert said.stdout == b"0\n", said.stderr

    def test_percent_signs(self, odd, tmp_path):
        odd.psql(
            """COMMENT ON DATABASE odd IS '50% of it, %s'; ALTER DATABASE odd RENAME TO "100%s" """.partition(";")[0]
        )
        odd.psql('ALTER DATABASE odd RENAME TO "100%s"')
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd, databases=["100%s"]))
        bring_back(repository, source(odd))
        assert ask(
            odd, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", values=("100%s",)
        ) == ("50% of it, %s",)
        for name in source(odd).kept_aside():
            source(odd).discard(name)
        assert source(odd).kept_aside() == []

    def test_a_comment_in_another_encoding(self, odd, tmp_path):
        odd.psql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
        odd.psql("SET client_encoding = 'UTF8'; COMMENT ON DATABASE latin IS 'café'", "latin")
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd, databases=["latin"]))
        bring_back(repository, source(odd), database="latin")
        assert ask(odd, "SHOW server_encoding", "latin") == ("LATIN1",)
        with odd.connect("latin") as connection:
            connection.execute("SET client_encoding = 'UTF8'")
            found = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'latin'"
            assert connection.execute(found).fetchone() == ("café",)

    def test_a_template_is_replaced_and_discarded_like_any_other(self, odd, tmp_path):
        odd.psql("ALTER DATABASE odd IS_TEMPLATE true")
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd, databases=["odd"]))
        bring_back(repository, source(odd), database="odd", in_place=True)
        bring_back(repository, source(odd), database="odd")
        assert ask(odd, "SELECT datistemplate FROM pg_database WHERE datname = 'odd'") == (True,)
        (kept,) = source(odd).kept_aside()
        source(odd).discard(kept)


def test_rows_that_an_extension_makes_itself_are_no_difference(odd, tmp_path):
    """As PostGIS does with spatial_ref_sys: the dump holds the user's rows alone."""
    share = Path(subprocess.run([odd.bin / "pg_config", "--sharedir"], capture_output=True, text=True).stdout.strip())
    made = {
        share / "extension" / "aquad_test.control": "default_version = '1'\n",
        share / "extension" / "aquad_test--1.sql": "CREATE TABLE refs (i int, own bool DEFAULT false);"
        "INSERT INTO refs SELECT i FROM generate_series(1, 1000) i;"
        "SELECT pg_extension_config_dump('refs', 'WHERE own');",
    }
    try:
        for path, text in made.items():
            path.write_text(text)
            path.chmod(0o644)
        odd.psql("CREATE EXTENSION aquad_test; INSERT INTO refs VALUES (7, true)", "odd")
        repository = repository_in(tmp_path / "b")
        assert back_up(repository, source(odd, databases=["odd"])).outcome == "success"
        bring_back(repository, source(odd), database="odd")
        assert ask(odd, "SELECT count(*) FROM refs", "odd") == (1001,)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


class TestPostgresItself:
    def test_asked_for_by_name_it_is_refused_on_a_cluster_that_is_not_empty(self, odd, tmp_path):
        repository = repository_in(tmp_path / "b")
        back_up(repository, source(odd))
        for options in ({"database": "postgres"}, {"database": "odd", "to_name": "postgres"}):
            with pytest.raises(RestoreFailed, match="only restored into an empty cluster"):
                bring_back(repository, source(odd), **options)

    def test_tables_in_it_that_stay_behind_are_said(self, odd, tmp_path):
        odd.psql("CREATE TABLE precious AS SELECT 1 AS a")
        try:
            repository = repository_in(tmp_path / "b")
            back_up(repository, source(odd))
            facts = bring_back(repository, source(odd))
            assert facts["skipped"] == ["database postgres has tables, and is only restored into an empty cluster"]
        finally:
            odd.psql("DROP TABLE precious")


class TestShutOut:
    def test_a_restore_that_fails_in_the_middle_of_the_swap_lets_connections_in_again(self, odd, monkeypatch):
        odd.psql("CREATE DATABASE fresh")
        calls = []

        def failing(login, database="postgres", **options):
            calls.append(database)
            if len(calls) == failing.at:
                raise Unreachable("connect: too many clients")
            return connect(login, database, **options)

        connect = server.connect
        monkeypatch.setattr(server, "connect", failing)
        for at in range(1, 30):
            calls.clear()
            failing.at = at
            try:
                swap.put_in_place(odd.login, "fresh", "odd", stamp=f"x{at}", exists=True)
            except Unreachable:
                assert ask(odd, "SELECT datallowconn FROM pg_database WHERE datname = 'odd'") == (True,), at
                assert ask(odd, "SELECT count(*) FROM t", "odd") == (50,)
            else:
                break
        assert 4 < at < 29

    def test_A1_what_a_killed_restore_shut_out_is_let_in_by_the_next_run(self, odd, tmp_path):
        odd.psql("CREATE DATABASE half"), odd.psql("CREATE DATABASE closed")
        swap.mark_half_restored(odd.login, "half", "odd")
        for name in ("odd", "closed"):
            odd.psql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        repository = repository_in(tmp_path / "b")
        repository.journal.append("run_started", run="dead", job="restore postgres", slot=None)
        back_up(repository, source(odd))
        facts = repository.catalog().find("latest").component("postgres").facts
        assert "odd" in [database["name"] for database in facts["databases"]]
        assert facts["skipped_databases"] == ["closed"], "what somebody shut on purpose stays shut"


class TestFiles:
    def test_a_function_body_is_no_role(self, odd, tmp_path):
        odd.psql(
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1;\n CREATE ROLE tenant SUPERUSER; END $$",
            "odd",
        )
        path = tmp_path / "odd.sql"
        path.write_bytes(tool(odd, "pg_dump", "odd"))
        bring_back_file(source(odd), path, database="odd", to_name="odd2")
        assert ask(odd, "SELECT count(*) FROM pg_roles WHERE rolname = 'tenant'") == (0,)

    @pytest.mark.parametrize(
        "statement",
        [
            "COMMENT ON DATABASE /* x */ odd IS 'touched';",
            "DROP /* x */ DATABASE odd;",
            "DROP -- x\nDATABASE IF EXISTS odd;",
            "ALTER/**/DATABASE odd SET work_mem = '9MB';",
            "ALTER USER postgres IN DATABASE odd SET work_mem = '9MB';",
        ],
    )
    def test_odd_spelling_does_not_reach_the_live_database(self, odd, tmp_path, statement):
        odd.psql("COMMENT ON DATABASE odd IS 'live'")
        text = tool(odd, "pg_dump", "odd")
        at = text.index(b"\nCREATE TABLE")
        path = tmp_path / "odd.sql"
        path.write_bytes(text[:at] + b"\n" + statement.encode() + text[at:])
        bring_back_file(source(odd), path, database="odd2")
        assert ask(odd, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'odd'") == (
            "live",
        )
        assert ask(odd, "SHOW work_mem", "odd") == ("4MB",)

    def test_a_right_for_a_role_that_is_missing_leaves_the_live_database(self, odd, tmp_path):
        odd.psql("CREATE ROLE gone"), odd.psql("GRANT CONNECT ON DATABASE odd TO gone")
        path = tmp_path / "odd.sql"
        path.write_bytes(tool(odd, "pg_dump", "--create", "odd"))
        odd.psql("REVOKE ALL ON DATABASE odd FROM gone"), odd.psql("DROP ROLE gone")
        odd.psql("TRUNCATE t", "odd")
        with pytest.raises(RestoreFailed, match='role "gone" does not exist'):
            bring_back_file(source(odd), path)
        assert ask(odd, "SELECT count(*) FROM t", "odd") == (0,)
        assert source(odd).kept_aside() == []


def test_a_line_like_restrict_in_a_text_is_the_users_own():
    text = b"--\n-- x\n--\n\nCREATE FUNCTION f() AS $$\n\\restrict abc\nb\n\\unrestrict abc\n$$;\n"
    assert b"".join(psql.restricted([text])).partition(b"\n")[2] == text


def test_a_row_of_any_length_is_held_in_no_memory():
    counter = RowCounter()
    counter.feed(b"\n-- Data for Name: t; Type: TABLE DATA; Schema: s; Owner: o\n--\n\nCOPY s.t (a) FROM stdin;\n")
    for _ in range(64):
        counter.feed(b"x" * (1 << 20))
        assert len(counter._held) < 100
    counter.feed(b"\n2\n\\.\n")
    assert counter.rows() == {"s.t": 2}
