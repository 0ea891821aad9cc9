"""docs/format.md and the README tell how to restore without aquad: their own lines are run here, with names filled in."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aquad.demo import compare, playground
from tests.cli.test_commands import Stack

ROOT = Path(__file__).parents[1]
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="docs/format.md uses jq: apt-get install jq")


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    shared_server.psql("DROP DATABASE IF EXISTS documented WITH (FORCE); ".strip())
    shared_server.psql("CREATE DATABASE documented")
    shared_server.psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 321) i", "documented")
    stack.settings.write_text(
        stack.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["documented"]')
    )
    stack.ok("init")
    stack.ok("run", "full")
    return stack


def documented(name, beginning):
    """The indented line of a document that begins so."""
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines() if line.startswith("    ")]
    (found,) = [line for line in lines if line.startswith(beginning)]
    return found


def run(stack, line, **names):
    """Run a documented line in the repository; `names` replace what stands there for them."""
    for name, value in names.items():
        assert name in line, (name, line)
        line = line.replace(name, str(value))
    environment = {**os.environ, "PGHOST": str(stack.server.directory), "PGPORT": str(stack.server.port)}
    environment["PATH"] = f"{stack.server.bin}:{environment['PATH']}"
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=stack.backups, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def manifest(stack):
    (path,) = (stack.backups / "manifests").glob("*.json")
    return path.stem, json.loads(path.read_text())


def test_an_archive_comes_back_with_gnu_tar(stack):
    backup, _ = manifest(stack)
    target = stack.top / "by hand"
    target.mkdir()
    line = documented("docs/format.md", "tar -xzpf volumes_")
    run(stack, line.replace("DIR", f"'{target}'"), **{"<ts>": backup[:15], "<name>": "zookeeper_data"})
    assert compare.tree("x", target) == compare.tree("x", stack.top / "volumes" / "zookeeper_data")


@needs_jq
def test_one_file_comes_back_by_the_index(stack):
    backup, _ = manifest(stack)
    names = {"<id>": backup, "<name>": "zookeeper_data", "./a/b": "./log.0007"}
    member = json.loads(run(stack, documented("docs/format.md", "zcat manifests/<id>.index"), **names))
    target = stack.top / "one"
    target.mkdir()
    names = {"<ts>": backup[:15], "<name>": "zookeeper_data", "OFFSET": member["offset"], "LENGTH": member["length"]}
    run(stack, documented("docs/format.md", "dd if=volumes_").replace("DIR", str(target)), **names)
    assert [path.name for path in target.iterdir()] == ["log.0007"]
    assert (target / "log.0007").read_bytes() == b"txn" * 7


def test_one_database_comes_back_alone(stack):
    backup, content = manifest(stack)
    (postgres,) = [c for c in content["components"] if c["name"] == "postgres"]
    (body,) = [part for part in postgres["artifacts"][0]["parts"] if part["name"] == "documented:body"]
    stack.server.psql("DROP DATABASE IF EXISTS by_hand")
    stack.server.psql("CREATE DATABASE by_hand")
    names = {"<ts>": backup[:15], "OFFSET": body["offset"], "LENGTH": body["length"], "NEW_NAME": "by_hand"}
    run(stack, documented("docs/format.md", "dd if=postgres_backup_"), **names)
    with stack.server.connect("by_hand") as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (321,)
    stack.server.psql("DROP DATABASE by_hand")


@needs_jq
def test_a_weekly_archive_opens_with_gnu_tar_and_proves_itself(stack):
    backup, _ = manifest(stack)
    stack.ok("run", "weekly")
    (path,) = (stack.backups / "weekly").iterdir()
    names = dict(zip(("<year>", "<ww>"), re.findall(r"\d+", path.name)[:2], strict=True))
    target = stack.top / "unpacked"
    target.mkdir()
    run(stack, documented("docs/format.md", "tar -xzf weekly/").replace("DIR", str(target)), **names)
    (inner,) = (target / "manifests").glob("*.json")
    assert inner.stem > backup
    stack.backups = target
    said = run(stack, documented("docs/format.md", "jq -cjS"), **{"<id>": inner.stem})
    assert said.split()[0] == json.loads(inner.read_bytes())["manifest_sha256"]
    assert run(stack, documented("docs/format.md", "jq -r"), **{"<id>": inner.stem}).count(": OK") == 7
    stack.backups = path.parents[1]
    line = documented("docs/format.md", "tar -xzOf weekly/").partition(" | psql")[0]
    assert "CREATE DATABASE documented" in run(stack, line, **names, **{"<ts>": inner.stem[:15]})


@needs_jq
def test_the_digests_of_the_manifest_and_of_every_artifact(stack):
    backup, content = manifest(stack)
    said = run(stack, documented("docs/format.md", "jq -cjS"), **{"<id>": backup})
    assert said.split()[0] == content["manifest_sha256"]
    said = run(stack, documented("docs/format.md", "jq -r"), **{"<id>": backup})
    assert said.count(": OK") == len([a for c in content["components"] for a in c["artifacts"]]) == 7


def test_the_readme_restores_by_hand(stack):
    backup, _ = manifest(stack)
    target = stack.top / "look"
    target.mkdir()
    line = documented("README.md", "tar -xzpf configs_").replace("/tmp/look", str(target))
    run(stack, re.sub(r"\d{8}_\d{6}", backup[:15], line))
    assert {path.name for path in target.iterdir()} == {"docker-compose.yml", ".env", "monitoring", "scripts", "run.sh"}
    assert playground.CHECKOUT["run.sh"][1] == (target / "run.sh").read_bytes()
