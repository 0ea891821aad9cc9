"""H4: the real program with its real children: killed at any time and at any call, failed by the disk, and watched by strace.

What the seam of the other sweeps could hide shows here.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_commands import Stack
from tests.faults.harness import cases
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import Directory
from tests.faults.harness.process import FAILS, KILL, NO_SPACE, Program, sweep_program
from tests.faults.harness.stacks import fill
from tests.keys import secret_file

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if ALL else 300)]
POINTS = 40 if ALL else 20
SETTINGS = """\
stack = "small"
time_zone = "UTC"
[repository]
path = "{top}/work/backups"
minimum_free = "1%"
[configs]
root = "{top}/live"
paths = ["small", "directory"]
optional_paths = []
[volumes.data]
path = "{top}/live"
service = "data"
quiesce = "none"
[encryption]
mode = "{encryption}"
passphrase_file = "{top}/passphrase"
[postgres]
host = "127.0.0.1"
port = {server.port}
password_file = "{server.password_file}"
bin_dir = "{server.bin}"
databases = ["killed"]
"""
ALONE = ("--component", "configs", "--component", "data")
WITH_CHILDREN = ("--component", "postgres")
"""pg_dump, and gpg for what is encrypted. Keys made from passphrases take a while."""


def make_database(server, rows):
    with server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS killed WITH (FORCE)")
        connection.execute("CREATE DATABASE killed")
    with server.connect("killed") as connection:
        connection.execute(f"CREATE TABLE t AS SELECT i, repeat('z', 700) AS t FROM generate_series(1, {rows}) i")


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    make_database(shared_server, 30_000)
    stack.settings.write_text(stack.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["killed"]'))
    stack.ok("init")
    stack.ok("run", "full")
    return stack


def tools_of(stack):
    """Dump tools that still run against this stack's server."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if "pg_dump" in line and f"port={stack.server.port}" in line]


def test_A1_A5_sigkill_at_any_time_with_real_children(stack, counts):
    rng = random.Random(40)
    command = [sys.executable, "-m", "aquad", "-c", str(stack.settings), "run", "full"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - started
    killed = point = 0
    while killed < POINTS:
        assert point < 4 * POINTS, "too few runs were hit"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * ((point * 7 % POINTS) + rng.random()) / POINTS)
        point += 1
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        give_up = time.monotonic() + 5
        while tools_of(stack):
            assert time.monotonic() < give_up, "a child outlived its run"
            time.sleep(0.02)
        if point % 8 == 0:
            stack.ok("verify", "all")
    counts.fault("kills", killed)
    stack.ok("run", "full")
    listed = json.loads(stack.ok("--json", "list"))
    assert listed["unreadable"] == []
    assert {backup["outcome"] for backup in listed["backups"]} == {"success"}
    stack.ok("verify", "all", "--level", "content")
    assert os.listdir(stack.backups / "drafts") == []
    journal = [json.loads(line) for line in (stack.backups / "state" / "audit.jsonl").read_text().splitlines()]
    runs = [e["run"] for e in journal if e["event"] == "run_started"]
    ended = [e["run"] for e in journal if e["event"] == "run_ended"]
    assert sorted(runs) == sorted(ended)
    assert [e["outcome"] for e in journal if e["event"] == "run_ended"].count("interrupted") >= POINTS // 4


@pytest.fixture
def make_program(quick, tmp_path, shared_server):
    """Makes `aquad` with arguments. Its settings protect what a case of the sweeps protects."""
    make_database(shared_server, 100)

    def make(*arguments, encryption="off"):
        fill(quick / "live", b"of a volume")
        settings = tmp_path / "settings.toml"
        settings.write_text(SETTINGS.format(top=quick, server=shared_server, encryption=encryption))
        return Program(quick / "work" / "backups", tmp_path, "-c", settings, *arguments)

    return make


@pytest.mark.parametrize(
    ("case", "components", "encryption", "limits"),
    [
        (cases.full, ALONE, "off", {KILL: 7, FAILS: 4, NO_SPACE: 3}),
        (cases.encrypted, WITH_CHILDREN, "passphrase", {KILL: 2, FAILS: 2, NO_SPACE: 0}),
    ],
    ids=["alone", "with_pg_dump_and_gpg"],
)
def test_A1_B1_B6_a_fault_at_a_system_call_of_the_real_program(
    case, components, encryption, limits, make_case, make_program, quick, counts
):
    case = make_case(case)
    program = make_program("run", "full", *components, encryption=encryption)
    ended = sweep_program(program, Directory(case.pristine, quick / "work"), case.laws, counts, limits)
    assert sum(one.calls > 0 for one in ended) >= len(ended) * 9 // 10, "strace missed what it was to hit"


class TestSeamAndStraceSeeTheSame:
    """Of one run, by call and path, each as often: `record` compares them."""

    def test_in_what_each_command_changes(self, make_program, quick):
        (quick / "work").mkdir()
        secret_file(quick / "passphrase", "x")
        for least, encryption, command in (
            (10, "off", ["init"]),
            (60, "off", ["run", "full"]),
            (3, "off", ["verify", "all", "--level", "content"]),
            (20, "off", ["restore", "all", "latest", "--yes"]),
            (10, "off", ["restore", "discard", "--yes"]),
            (10, "passphrase", ["init", "--encryption", "passphrase"]),
        ):
            assert len(make_program(*command, encryption=encryption).record()) >= least, command

    def test_in_the_recovery_from_a_sigkill(self, make_program, make_case, quick):
        place = Directory(make_case(cases.full).pristine, quick / "work")
        program = make_program("run", "full", *ALONE)
        place.fresh()
        calls = program.record()
        seals = next(call for call in calls if call.kind == "rename" and call.path.endswith("manifest.json"))
        place.fresh()
        assert program.strike(seals, KILL).killed
        assert len(program.record()) > len(calls), "nothing was recovered"
