"""H4: the whole process is killed with its real children; what the seam of the fork sweep could hide shows here."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_commands import Stack

POINTS = 40


@pytest.fixture
def stack(tmp_path, shared_server):
    stack = Stack(tmp_path, shared_server)
    with shared_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS killed WITH (FORCE)")
        connection.execute("CREATE DATABASE killed")
    with shared_server.connect("killed") as connection:
        connection.execute("CREATE TABLE t AS SELECT i, repeat('z', 700) AS t FROM generate_series(1, 30000) i")
    stack.settings.write_text(stack.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["killed"]'))
    stack.ok("init")
    stack.ok("run", "full")
    return stack


def tools_of(stack):
    """Dump tools that still run against this stack's server."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if "pg_dump" in line and f"port={stack.server.port}" in line]


def test_A1_A5_sigkill_at_40_points_with_real_children(stack):
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
