"""Weekly archives as operators meet them: made, shown, verified, and restored from, on this host and on a new one."""

import json
import resource
import shutil

import pytest

from aquad.demo import compare, playground
from tests.cli.test_commands import Stack


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    shared_server.psql("DROP DATABASE IF EXISTS archived WITH (FORCE)")
    shared_server.psql("CREATE DATABASE archived")
    shared_server.psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 123) i", "archived")
    stack.settings.write_text(stack.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["archived"]'))
    stack.ok("init")
    stack.ok("run", "weekly")
    return stack


def ids(stack, kind):
    return [b["id"] for b in json.loads(stack.ok("--json", "list", "--kind", kind))["backups"]]


def volumes(stack):
    return {name: compare.tree(name, stack.top / "volumes" / name) for name in playground.VOLUMES}


def destroy(stack):
    for name in playground.VOLUMES:
        playground.empty_directory(stack.top / "volumes" / name)
    playground.empty_directory(stack.top / "checkout")
    stack.server.psql("TRUNCATE t", "archived")


def rows(stack):
    with stack.server.connect("archived") as connection:
        return connection.execute("SELECT count(*) FROM t").fetchone()[0]


def test_everything_comes_back_here_and_on_a_new_host(stack):
    (weekly,), (full,) = ids(stack, "weekly"), ids(stack, "full")
    (path,) = (stack.backups / "weekly").iterdir()
    assert "archive" in stack.ok("show", weekly)
    assert "good (content)" in stack.ok("verify", str(path), "--level", "content")
    assert f"from {full}" in stack.ok("restore", "plan", "all", "latest"), "the weekly is newer, and not meant"
    before = volumes(stack)
    planned = stack.ok("restore", "plan", "all", weekly)
    for name in ("configs", *playground.VOLUMES, "postgres"):
        assert f"{name} from {weekly}" in planned
    assert volumes(stack) == before
    copy = stack.top / "elsewhere.tar.gz"
    shutil.copy(path, copy)
    destroy(stack)
    stack.ok("restore", "all", weekly, "--yes")
    assert (volumes(stack), rows(stack)) == (before, 123)
    destroy(stack)
    stack.ok("restore", "all", copy, "--yes")
    assert (volumes(stack), rows(stack)) == (before, 123)
    stack.ok("restore", "discard", "--yes")

    shutil.rmtree(stack.backups)
    stack.ok("init")
    destroy(stack)
    nothing = volumes(stack)
    for verb in (["all"], ["postgres"], ["configs"], ["volume", "kafka_data"]):
        assert "--trusted" in stack.refused(2, "restore", *verb, copy, "--yes")
    assert (volumes(stack), rows(stack)) == (nothing, 0)
    assert f"postgres from {copy}" in stack.ok("restore", "plan", "all", copy, "--trusted")
    stack.ok(
        "restore", "postgres", copy, "--trusted", "--yes", "--database", "archived", "--to-name", "archived_beside"
    )
    with stack.server.connect("archived_beside") as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (123,)
    stack.server.psql("DROP DATABASE archived_beside")
    stack.ok("restore", "all", copy, "--trusted", "--yes")
    assert (volumes(stack), rows(stack)) == (before, 123)


def test_damage_is_said_before_anything_is_touched(stack):
    (weekly,) = ids(stack, "weekly")
    (path,) = (stack.backups / "weekly").iterdir()
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)
    destroy(stack)
    before = volumes(stack)
    for what in (weekly, path):
        said = stack.refused(14, "restore", "all", what, "--yes")
        assert path.name in said
    assert (volumes(stack), rows(stack)) == (before, 0)
    assert "DAMAGED" in stack.run("verify", weekly).stdout
    assert "no weekly archive" in stack.refused(2, "restore", "all", next(stack.backups.glob("configs_*")), "--yes")
    assert "no such file" in stack.refused(10, "restore", "all", stack.top / "nothing.tar.gz", "--yes")
    assert "no such file" in stack.refused(10, "restore", "all", "/" + "x" * 5000, "--yes")


def test_a_full_backup_is_not_forgotten_where_its_archive_fails(stack):
    sizes = sorted(path.stat().st_size for path in stack.backups.rglob("*") if path.is_file())
    enough_for_every_part_alone = (sizes[-2] + sizes[-1]) // 2

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (enough_for_every_part_alone,) * 2)

    assert "archive: " in stack.refused(1, "run", "weekly", preexec_fn=limit)
    ended = json.loads(stack.ok("--json", "audit", "show", "--event", "run_ended"))["entries"][-1]
    assert (ended["job"], ended["outcome"]) == ("weekly", "failed")
    newest = ids(stack, "full")[0]
    assert ended["backup"] == newest
    written = json.loads(stack.ok("--json", "audit", "show", "--event", "report_written"))["entries"][-1]
    assert newest in (stack.backups / written["path"]).read_text()
