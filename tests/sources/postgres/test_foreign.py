"""A FILE that is in no manifest: what pg_dump and pg_dumpall wrote, restored because somebody vouched for it."""

import gzip
import subprocess

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import AquadError, Damaged, InvalidUse, RestoreFailed
from aquad.jobs.restore import open_backup
from aquad.repository.reader import FileReader
from aquad.sources.postgres.restore import PostgresTarget
from aquad.stream.artifact import RunContext
from tests.keys import NO_KEYS
from tests.servers.rich import RICH, cluster, fingerprint
from tests.sources.postgres.test_round_trip import back_up, backup_file, repository_in, source


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A server with the rich database; tests here leave its databases as they are."""
    from tests.servers.postgres import Server

    server = Server(16).start()
    server.psql(RICH)
    yield server
    server.close()


@pytest.fixture
def shop(shared_server):
    """A live database with a comment and a setting of its own."""
    shared_server.psql(
        "DROP DATABASE IF EXISTS shop WITH (FORCE); CREATE DATABASE shop; COMMENT ON DATABASE shop IS 'live';".replace(
            "; ", ";\n"
        )
    )
    shared_server.psql("ALTER DATABASE shop SET work_mem TO '7MB'")
    shared_server.psql("CREATE TABLE items AS SELECT i, 'item ' || i AS name FROM generate_series(1, 1000) i", "shop")
    yield shared_server
    for name in ("shop", *source(shared_server).kept_aside()):
        shared_server.psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def tool(server, name, *arguments):
    command = [str(server.bin / name), "-h", str(server.directory), "-p", str(server.port), "-U", "postgres"]
    return subprocess.run([*command, *arguments], check=True, capture_output=True).stdout


def bring_back(postgres, path, stamp="20300101_000000", **options):
    reader, target = FileReader(path, NO_KEYS), PostgresTarget(**options)
    postgres.plan_restore(reader, target)
    return postgres.restore(reader, target, RunContext(run_id="test", timestamp=stamp, clock=SystemClock()))


def about_shop(server):
    query = "SELECT shobj_description(oid, 'pg_database'), (SELECT setconfig::text FROM pg_db_role_setting WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = 'shop'"
    with server.connect() as connection:
        return connection.execute(query).fetchone()


def items(server, database="shop"):
    with server.connect(database) as connection:
        return connection.execute("SELECT count(*) FROM items").fetchone()[0]


def same_cluster(one, other):
    """But for the bootstrap role, which exists everywhere."""
    first, second = cluster(one), cluster(other)
    roles = next(iter(first))
    strip = lambda rows: [row for row in rows if row[0] != "postgres"]
    return strip(first.pop(roles)) == strip(second.pop(roles)) and first == second


class TestWhole:
    @pytest.mark.parametrize("kind", ["ours", "pg_dumpall", "pg_dumpall.gz"])
    def test_a_whole_cluster_into_an_empty_one(self, rich, new_server, tmp_path, kind):
        path = tmp_path / "dump"
        if kind == "ours":
            repository = repository_in(tmp_path / "b")
            back_up(repository, source(rich))
            path.write_bytes(backup_file(repository).read_bytes())
        else:
            text = tool(rich, "pg_dumpall")
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        empty = new_server(16)
        facts = bring_back(source(empty), path)
        assert facts["databases"]["rich"]["rows"] == 2000 + 500 + 1 + 2 + 3 + 1
        assert fingerprint(empty) == fingerprint(rich)
        assert same_cluster(empty, rich)
        assert source(empty).kept_aside() == []

    def test_from_an_older_major_with_its_own_tools(self, new_server, tmp_path):
        old, new = new_server(14), new_server(16)
        old.psql("CREATE ROLE app; CREATE DATABASE shop OWNER app")
        old.psql("CREATE TABLE items AS SELECT i FROM generate_series(1, 70) i", "shop")
        path = tmp_path / "dump.sql"
        path.write_bytes(tool(old, "pg_dumpall"))
        bring_back(source(new), path)
        assert items(new) == 70
        path.write_bytes(tool(new, "pg_dumpall"))
        with pytest.raises(RestoreFailed, match="it is PostgreSQL 14, the backup is of 16"):
            bring_back(source(old), path)


class TestOneDatabase:
    def test_a_plain_dump_needs_a_name_and_is_swapped_in(self, shop, tmp_path):
        path = tmp_path / "shop.sql"
        path.write_bytes(tool(shop, "pg_dump", "shop"))
        shop.psql("DELETE FROM items", "shop")
        with pytest.raises(RestoreFailed, match="--database NAME"):
            bring_back(source(shop), path)
        bring_back(source(shop), path, database="shop", to_name="shop look")
        assert (items(shop, "shop look"), items(shop)) == (1000, 0)
        facts = bring_back(source(shop), path, database="shop")
        assert facts["kept"] == ["shop_before_20300101_000000"]
        assert items(shop) == 1000
        assert items(shop, "shop_before_20300101_000000") == 0
        shop.psql('DROP DATABASE "shop look"')

    def test_one_of_many_and_what_is_said_of_the_database_itself(self, shop, tmp_path):
        path = tmp_path / "all.sql.gz"
        path.write_bytes(gzip.compress(tool(shop, "pg_dumpall")))
        shop.psql("COMMENT ON DATABASE shop IS 'changed'; DELETE FROM items", "shop")
        bring_back(source(shop), path, database="shop", to_name="shop copy")
        assert about_shop(shop)[0] == "changed", "the live database felt what was said of its copy"
        with shop.connect("shop copy") as connection:
            assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        bring_back(source(shop), path, database="shop")
        assert about_shop(shop) == ("live", "{work_mem=7MB}")
        assert items(shop) == 1000
        shop.psql('DROP DATABASE "shop copy"')

    def test_a_dump_that_creates_its_database(self, shop, tmp_path):
        path = tmp_path / "shop.sql"
        path.write_bytes(tool(shop, "pg_dump", "--create", "--clean", "shop"))
        shop.psql("DELETE FROM items", "shop")
        bring_back(source(shop), path)
        assert items(shop) == 1000
        assert items(shop, "shop_before_20300101_000000") == 0, "its DROP DATABASE was carried out"


class TestBadFiles:
    @pytest.fixture
    def dump(self, shop):
        return tool(shop, "pg_dumpall")

    def refused(self, server, tmp_path, content, match, error=RestoreFailed, **options):
        path = tmp_path / "bad"
        path.write_bytes(content)
        with pytest.raises(error, match=match):
            bring_back(source(server), path, **options)
        assert items(server) == 1000
        assert about_shop(server) == ("live", "{work_mem=7MB}")
        assert source(server).kept_aside() == []

    def test_G4_cut_off_anywhere(self, shop, dump, tmp_path):
        for end in (len(dump) // 3, len(dump) // 2, len(dump) - 200):
            self.refused(shop, tmp_path, dump[:end], "does not end as pg_dump")
        packed = gzip.compress(dump)
        self.refused(shop, tmp_path, packed[: len(packed) // 2], "middle of a gzip member", Damaged)

    def test_G5_commands_to_psql_are_refused_before_anything_runs(self, shop, dump, tmp_path):
        pwned = tmp_path / "PWNED"
        for line in (b"\\! touch %s", b"\\copy items to program 'touch %s'", b"\\o %s", b"\\i /etc/passwd"):
            hostile = line.replace(b"%s", bytes(pwned))
            self.refused(shop, tmp_path, dump.replace(b"\nSET ", b"\n" + hostile + b"\nSET ", 1), "a command to psql")
        inline = b"\nSELECT 1 \\g |touch " + bytes(pwned) + b"\n"
        marker = b"\n\\connect shop\n"
        assert marker in dump
        at = dump.index(b"\nSET ", dump.index(marker))
        self.refused(shop, tmp_path, dump[:at] + inline + dump[at:], "restrict", AquadError, database="shop")
        assert not pwned.exists()

    def test_bad_sql_leaves_the_live_database(self, shop, dump, tmp_path):
        broken = dump.replace(b"CREATE TABLE public.items", b"CREATE TABLE no_schema.items")
        assert broken != dump
        self.refused(shop, tmp_path, broken, "no_schema", database="shop")

    def test_a_row_that_is_lost_on_the_way_is_noticed(self, shop, dump, tmp_path):
        trigger = b"CREATE RULE r AS ON INSERT TO public.items DO INSTEAD NOTHING;\n"
        of_shop = dump.index(b"\\connect shop")  # the server may have other databases with such a table
        at = dump.index(b"\n--\n-- Data for Name: items", of_shop)
        silent = dump[:at] + b"\nDELETE FROM public.items;\n" + trigger + dump[at:]
        end = silent.index(b"\n\\.\n", at + len(trigger)) + 4
        silent = silent[:end] + b"DELETE FROM public.items WHERE i = 7;\n" + silent[end:]
        self.refused(shop, tmp_path, silent, r"public\.items of shop: 999 rows, sealed were 1000", database="shop")

    def test_an_archive_of_pg_dump_is_named_as_such(self, shop, tmp_path):
        self.refused(shop, tmp_path, tool(shop, "pg_dump", "-Fc", "shop"), "pg_restore --file", database="shop")

    def test_nobody_vouched_for_it(self, shop, dump, tmp_path):
        path = tmp_path / "dump.sql"
        path.write_bytes(dump)
        with pytest.raises(InvalidUse, match="--trusted"):
            open_backup(repository_in(tmp_path / "b"), "postgres", str(path), trusted=False)
