"""The comparison of the demo fails when anything differs, however small: on trees, and on a real server."""

import os
import shutil
import socket
import subprocess

import pytest

from aquad.demo import compare
from tests.demo.people import IS_ROOT

MOMENT = 1_700_000_000_123_456_789


def make(top):
    (top / "directory").mkdir(parents=True)
    for name in ("file", "directory/other", "second"):
        (top / name).write_bytes(b"content of " + name.encode())
        (top / name).chmod(0o640)
    os.link(top / "file", top / "hard link")
    (top / "symbolic link").symlink_to("file")
    os.mkfifo(top / "fifo")
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.write(b"data")
    still(top)


def still(top):
    """The same times for all: what is to be noticed here is anything else."""
    for path in (*top.rglob("*"), top):
        os.utime(path, ns=(MOMENT, MOMENT), follow_symlinks=False)


def one_byte(top):
    with (top / "directory" / "other").open("r+b") as file:
        file.seek(5)
        file.write(b"!")


def filled_hole(top):
    content = (top / "sparse").read_bytes()
    (top / "sparse").unlink()
    (top / "sparse").write_bytes(content)


def separate_files(top):
    (top / "hard link").unlink()
    shutil.copy2(top / "file", top / "hard link")


def other_link(top):
    (top / "symbolic link").unlink()
    (top / "symbolic link").symlink_to("second")


def socket_for_fifo(top):
    (top / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(top, os.O_PATH)
        made.bind(f"/proc/self/fd/{here}/fifo")
        os.close(here)


CHANGES = {
    "one byte": one_byte,
    "a mode": lambda top: (top / "file").chmod(0o641),
    "the mode of a directory": lambda top: (top / "directory").chmod(0o701),
    "a filled hole": filled_hole,
    "a hard link that is a file of its own": separate_files,
    "the target of a link": other_link,
    "a socket for a FIFO": socket_for_fifo,
    "one file less": lambda top: (top / "second").unlink(),
    "one empty file more": lambda top: (top / "directory" / "new").touch(),
    "another name": lambda top: (top / "second").rename(top / "third"),
    "an empty directory more": lambda top: (top / "directory" / "empty").mkdir(),
}
OF_ROOT = {
    "an owner": lambda top: os.chown(top / "file", 1000, -1),
    "a group": lambda top: os.chown(top / "directory", -1, 1000),
    "the owner of a link": lambda top: os.lchown(top / "symbolic link", 1000, -1),
}


@pytest.fixture
def tree(tmp_path):
    make(tmp_path / "tree")
    return tmp_path / "tree"


class TestTrees:
    def test_equal_to_itself_and_to_a_faithful_copy(self, tree, tmp_path):
        before = compare.tree("tree", tree)
        assert before["tree"].amount == "8 entries"
        subprocess.run(["cp", "-a", tree, tmp_path / "copy"], check=True)
        assert compare.differences(before, compare.tree("tree", tmp_path / "copy")) == []

    @pytest.mark.parametrize("change", CHANGES | OF_ROOT if IS_ROOT else CHANGES)
    def test_notices(self, tree, change):
        before = compare.tree("tree", tree)
        (CHANGES | OF_ROOT)[change](tree)
        still(tree)
        assert compare.differences(before, compare.tree("tree", tree)) == ["tree"]

    @pytest.mark.parametrize("name", [".", "file", "directory", "symbolic link", "fifo"])
    def test_notices_a_nanosecond(self, tree, name):
        before = compare.tree("tree", tree)
        os.utime(tree / name, ns=(MOMENT, MOMENT + 1), follow_symlinks=False)
        assert compare.differences(before, compare.tree("tree", tree)) == ["tree"]

    def test_notices_an_attribute(self, tree):
        before = compare.tree("tree", tree)
        os.setxattr(tree / "file", "user.origin", b"here")
        with_one = compare.tree("tree", tree)
        os.setxattr(tree / "file", "user.origin", b"there")
        assert len({before["tree"], with_one["tree"], compare.tree("tree", tree)["tree"]}) == 3

    def test_leaves_out_only_what_it_is_told_to(self, tree):
        before = compare.tree("tree", tree, frozenset({b"directory"}))
        (tree / "directory").chmod(0o711)
        assert compare.tree("tree", tree, frozenset({b"directory"})) == before
        (tree / "directory" / "other").chmod(0o600)
        assert compare.tree("tree", tree, frozenset({b"directory"})) != before


SEA = """
CREATE TABLE ships (id int PRIMARY KEY, name text); INSERT INTO ships SELECT i, 'ship ' || i FROM generate_series(1, 100) i;
CREATE TABLE empty (id int); CREATE SEQUENCE numbers; SELECT nextval('numbers');
CREATE VIEW fleet AS SELECT name FROM ships; SELECT lo_from_bytea(4711, '\\x0102');
CREATE FUNCTION two() RETURNS int LANGUAGE sql AS 'SELECT 2'
"""
STATEMENTS = {
    "UPDATE ships SET name = name || ' ' WHERE id = 50": ["table demo_sea public.ships"],
    "UPDATE ships SET name = NULL WHERE id = 50": ["table demo_sea public.ships"],
    "UPDATE ships SET id = -id WHERE id = 50": ["table demo_sea public.ships"],
    "DELETE FROM ships WHERE id = 51": ["table demo_sea public.ships"],
    "INSERT INTO empty VALUES (NULL)": ["table demo_sea public.empty"],
    "SELECT nextval('numbers')": ["sequences of demo_sea"],
    "SELECT lo_put(4711, 1, '\\x03')": ["large objects of demo_sea"],
    "CREATE OR REPLACE VIEW fleet AS SELECT lower(name) AS name FROM ships": ["definitions of demo_sea"],
    "CREATE OR REPLACE FUNCTION two() RETURNS int LANGUAGE sql AS 'SELECT 3'": ["definitions of demo_sea"],
    "ALTER TABLE empty ALTER id TYPE bigint": ["definitions of demo_sea"],
    "GRANT SELECT ON fleet TO demo_sailor": ["owners and grants of demo_sea"],
    "ALTER TABLE empty OWNER TO demo_sailor": ["owners and grants of demo_sea"],
    "ALTER ROLE demo_sailor PASSWORD 'other'": ["roles"],
    "GRANT pg_monitor, demo_captain TO demo_sailor": ["memberships"],
    "ALTER ROLE demo_sailor SET work_mem TO '9MB'": ["settings"],
    "COMMENT ON DATABASE demo_sea IS 'changed'": ["databases"],
    "DROP TABLE empty": ["table demo_sea public.empty", "definitions of demo_sea", "owners and grants of demo_sea"],
}


@pytest.fixture
def sea(shared_server):
    with shared_server.connect() as connection:
        for statement in (
            "CREATE ROLE demo_captain",
            "CREATE ROLE demo_sailor PASSWORD 'sea'",
            "CREATE DATABASE demo_sea",
        ):
            connection.execute(statement)
    with shared_server.connect("demo_sea") as connection:
        connection.execute(SEA)
    yield shared_server
    with shared_server.connect() as connection:
        for statement in ("DATABASE demo_sea", "ROLE demo_sailor", "ROLE demo_captain"):
            connection.execute(f"DROP {statement}")


class TestDatabases:
    def test_notices(self, sea):
        """Each change alone: every one is made after the last was seen."""
        before = compare.databases(sea, ("demo_sea",))
        assert before["table demo_sea public.ships"].amount == "100 rows"
        assert compare.databases(sea, ("demo_sea",)) == before
        for statement, expected in STATEMENTS.items():
            with sea.connect("demo_sea") as connection:
                connection.execute(statement)
            after = compare.databases(sea, ("demo_sea",))
            assert compare.differences(before, after) == expected, statement
            before = after

    def test_a_database_that_is_gone_is_all_of_it_gone(self, sea):
        before = compare.databases(sea, ("demo_sea",))
        assert set(compare.differences(before, compare.databases(sea, ()))) == {
            name for name in before if "demo_sea" in name
        }


def test_nothing_compared_is_no_proof():
    assert compare.differences({}, {}) == ["nothing was compared"]
