"""`prune`, `trash`, `keep`, `unkeep` and `run cleanup` as processes: what they print, refuse, and how they end."""

import json
import os
import pty
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aquad.jobs.full import Space, take_full
from aquad.jobs.run import run_job
from tests.faults.harness.stacks import fill, volume
from tests.small import LIMITS, FakeClock, journal, make_repository, open_repository

MEMORY = Path("/dev/shm")
DAYS, DUE = 42, 12
"""A backup a day, the newest a few hours old; so many of them are older than 30 days, two more than go in one run."""
RACES = 20
SETTINGS = """\
stack = "small"
time_zone = "UTC"
[repository]
path = "{top}/backups"
minimum_free = "1%"
[configs]
root = "{top}/live"
paths = ["small"]
optional_paths = []
[volumes.data]
path = "{top}/live"
service = "data"
quiesce = "none"
[encryption]
mode = "off"
"""


@pytest.fixture(scope="module")
def quick():
    with tempfile.TemporaryDirectory(prefix="aquad-cli-", dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def pristine(quick):
    fill(quick / "live", b"of a volume")
    clock = FakeClock(datetime.now(UTC) - timedelta(days=DAYS - 1, hours=5))
    repository = make_repository(quick / "pristine", clock)
    sources = [volume(quick / "live")]
    for _ in range(DAYS):
        run_job(
            repository,
            "full",
            lambda run: take_full(repository, sources, run, space=Space()),
            clock=clock,
            zone=UTC,
            limits=LIMITS,
        )
        clock.move(86400)
    return repository.root


class Stack:
    """`aquad` as a process on a fresh copy."""

    def __init__(self, top, pristine):
        self.top, self.backups = top, top / "backups"
        self._pristine = pristine
        self.settings = top / "settings.toml"
        self.settings.write_text(SETTINGS.format(top=top))
        self.fresh()

    def fresh(self):
        shutil.rmtree(self.backups, ignore_errors=True)
        shutil.copytree(self._pristine, self.backups)
        self.taken = sorted(path.stem for path in (self.backups / "manifests").glob("*.json"))

    def command(self, *arguments):
        return [sys.executable, "-m", "aquad", "-c", str(self.settings), *map(str, arguments)]

    def run(self, *arguments):
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
        )

    def ok(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments):
        found = json.loads(self.ok("--json", *arguments))
        assert found["schema_version"] == 1
        return found

    def refused(self, code, *arguments):
        """One clear message, and no traceback."""
        done = self.run(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith(("aquad: ", "Usage: ")), done.stderr
        return done.stderr

    def listed(self):
        return sorted(path.stem for path in (self.backups / "manifests").glob("*.json"))

    def in_trash(self):
        return sorted(os.listdir(self.backups / "trash"))

    def events(self, name):
        return [entry for entry in journal(self.backups) if entry["event"] == name]


@pytest.fixture
def stack(quick, pristine):
    return Stack(quick, pristine)


def tree(top):
    return {
        str(path.relative_to(top)): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in sorted(top.rglob("*"))
    }


class TestPrune:
    def test_dry_run_names_every_backup_with_its_reason_and_touches_nothing(self, stack):
        before = tree(stack.backups)
        lines = stack.ok("prune", "--dry-run").splitlines()
        assert tree(stack.backups) == before
        rows = {words[1]: words for line in lines[1:] if (words := line.split(maxsplit=3))}
        assert sorted(rows) == stack.taken
        assert all(len(words) == 4 and words[3] for words in rows.values())
        goes = [id_ for id_ in stack.taken if rows[id_][0] == "GOES"]
        assert goes == stack.taken[:10]
        assert "full backups stay 30 days" in rows[stack.taken[0]][3]
        assert "aquad prune --all" in rows[stack.taken[10]][3]
        assert "newest good backup of data" in rows[stack.taken[-1]][3] or "stay 30 days" in rows[stack.taken[-1]][3]

    def test_dry_run_as_json(self, stack):
        before = tree(stack.backups)
        found = stack.json("prune", "--dry-run")
        assert tree(stack.backups) == before
        assert sorted(one["id"] for one in found["decisions"]) == stack.taken
        assert sorted(one["id"] for one in found["decisions"] if not one["keep"]) == stack.taken[:10]
        assert all(one["reason"] and one["kind"] == "full" for one in found["decisions"])
        assert (found["emptied"], found["reports"]) == ([], [])

    def test_reports_too_go_only_after_it_was_asked(self, stack):
        stack.ok("prune", "--all", "--yes")
        old = open_repository(stack.backups, FakeClock(datetime.now(UTC) - timedelta(days=100)))
        report = stack.backups / "backup_report_old.txt"
        report.write_text("x")
        old.journal.append("report_written", run="x", backup=None, path=report.name)
        said = stack.refused(2, "prune")
        assert "--yes" in said
        assert "1 reports" in said
        assert report.exists()
        stack.ok("prune", "--yes")
        assert not report.exists()

    def test_without_a_terminal_it_needs_yes(self, stack):
        before = {path: what for path, what in tree(stack.backups).items() if not path.startswith("state")}
        said = stack.refused(2, "prune")
        assert "--yes" in said
        assert "10 backups" in said
        stack.refused(2, "--json", "prune", "--all")
        assert {path: what for path, what in tree(stack.backups).items() if not path.startswith("state")} == before

    @pytest.mark.parametrize("answer", ["n", "y"])
    def test_in_a_terminal_it_asks(self, stack, answer):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            stack.command("prune"), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            os.close(theirs)
            os.write(ours, f"{answer}\n".encode())
            said = process.communicate(timeout=30)[0]
        os.close(ours)
        assert "Remove what is named above?" in said
        assert process.returncode == {"n": 2, "y": 0}[answer], said
        assert len(stack.in_trash()) == {"n": 0, "y": 10}[answer]

    def test_prune_then_all_then_nothing(self, stack):
        said = stack.ok("prune", "--yes")
        assert "10 backups went to the trash" in said
        assert stack.in_trash() == stack.taken[:10]
        found = stack.json("prune", "--all", "--yes")
        assert (found["outcome"], sorted(found["removed"])) == ("success", stack.taken[10:DUE])
        assert stack.listed() == stack.taken[DUE:]
        assert "0 backups" in stack.ok("prune", "--yes")
        assert stack.json("prune", "--yes")["removed"] == []
        assert [entry["outcome"] for entry in stack.events("run_ended")][-4:] == ["success"] * 4
        assert all("by" in entry for entry in stack.events("pruned"))
        stack.ok("verify", "all")

    def test_an_unreadable_manifest(self, stack):
        path = stack.backups / "manifests" / f"{stack.taken[20]}.json"
        path.write_bytes(path.read_bytes()[:-5])
        for command in (
            ["prune", "--dry-run"],
            ["prune", "--yes"],
            ["run", "cleanup"],
            ["run", "cleanup", "--dry-run"],
        ):
            said = stack.refused(1, *command)
            assert stack.taken[20] in said
            assert "nothing was removed" in said
        assert stack.in_trash() == []

    def test_a_strange_clock(self, stack):
        repository = open_repository(stack.backups, FakeClock(datetime.now(UTC) + timedelta(days=3)))
        run_job(
            repository,
            "full",
            lambda run: take_full(repository, [volume(stack.top / "live")], run, space=Space()),
            clock=repository.clock,
            zone=UTC,
            limits=LIMITS,
        )
        assert "clock" in stack.refused(1, "prune", "--yes")
        assert stack.in_trash() == []
        stack.ok("prune", "--all", "--yes")
        assert stack.in_trash() == stack.taken[:DUE]


class TestTrash:
    def test_list_restore_keep_and_empty(self, stack):
        assert "empty" in stack.ok("trash", "list")
        assert stack.json("trash", "list")["trash"] == []
        stack.ok("prune", "--yes")
        first, second = stack.taken[:2]
        said = stack.ok("trash", "list")
        assert all(id_ in said for id_ in stack.taken[:10])
        rows = stack.json("trash", "list")["trash"]
        assert [(row["id"], row["kind"]) for row in rows] == [(id_, "full") for id_ in stack.taken[:10]]
        assert all(row["removed_at"].endswith("Z") for row in rows)
        assert f"aquad keep {first}" in stack.ok("trash", "restore", first)
        assert "no backup of that id" in stack.refused(10, "trash", "restore", first)
        assert first in stack.ok("list")
        assert "good" in stack.ok("verify", first, "--level", "content")
        assert any(
            one["id"] == first and not one["keep"] for one in stack.json("prune", "--dry-run", "--all")["decisions"]
        )
        stack.ok("keep", first)
        stack.ok("prune", "--all", "--yes")
        assert first in stack.listed()
        assert "--yes" in stack.refused(2, "trash", "empty")
        assert second in stack.in_trash()
        assert f"deleted {DUE - 1}" in stack.ok("trash", "empty", "--yes")
        assert stack.in_trash() == []
        assert "deleted 0" in stack.ok("trash", "empty")
        assert "trash list" in stack.refused(10, "trash", "restore", second)
        stack.ok("verify", "all")

    def test_restore_by_a_prefix(self, stack):
        stack.ok("prune", "--yes")
        stack.ok("trash", "restore", stack.taken[0][:13])
        assert stack.taken[0] in stack.listed()
        assert "fits" in stack.refused(10, "trash", "restore", "2")

    def test_a_name_that_is_taken(self, stack):
        stack.ok("prune", "--yes")
        name = f"volumes_{stack.taken[0][:15]}"
        (stack.backups / name).write_text("mine")
        before = tree(stack.backups / "trash"), stack.listed()
        assert name in stack.refused(1, "trash", "restore", stack.taken[0])
        assert (tree(stack.backups / "trash"), stack.listed()) == before
        assert (stack.backups / name).read_text() == "mine"

    @pytest.mark.parametrize("form", ["{}/", "../trash/{}"])
    def test_a_path_for_an_id(self, form, stack):
        stack.ok("prune", "--yes")
        done = stack.run("trash", "restore", form.format(stack.taken[0]))
        assert done.returncode in {0, 10}, done.stderr
        stack.ok("run", "cleanup", "--dry-run")
        assert (stack.taken[0] in stack.listed()) != (stack.taken[0] in stack.in_trash())
        assert "manifest.json" in os.listdir(stack.backups / "trash" / stack.taken[1])
        assert len(stack.listed()) + len(list(stack.backups.glob("trash/*/manifest.json"))) == DAYS


class TestKeep:
    def test_for_ever_until_and_no_longer(self, stack):
        first, second, third = stack.taken[:3]
        tomorrow = datetime.now(UTC) + timedelta(days=2)
        assert "for ever" in stack.ok("keep", first[:13])
        assert f"{tomorrow:%Y-%m-%d}" in stack.ok("keep", second[:13], "--until", f"{tomorrow:%Y-%m-%d}")
        assert "that is over" in stack.refused(2, "keep", third, "--until", "2020-01-01")
        reasons = {one["id"]: one for one in stack.json("prune", "--dry-run", "--all")["decisions"]}
        assert (reasons[first]["keep"], reasons[second]["keep"], reasons[third]["keep"]) == (True, True, False)
        assert "for ever" in reasons[first]["reason"]
        assert f"until {tomorrow:%Y-%m-%d}" in reasons[second]["reason"]
        stack.ok("prune", "--all", "--yes")
        assert stack.in_trash() == stack.taken[2:DUE]
        assert first in stack.ok("unkeep", first[:13])
        assert "nobody keeps it" in stack.refused(10, "unkeep", first)
        stack.ok("prune", "--all", "--yes")
        assert first in stack.in_trash()

    def test_bad_input(self, stack):
        assert "no backup has that id" in stack.refused(10, "keep", "1999")
        assert "fits" in stack.refused(10, "keep", "20")
        assert "fits" in stack.refused(10, "unkeep", "20")
        stack.refused(2, "keep", stack.taken[0], "--until", "tomorrow")
        stack.refused(2, "keep")
        assert stack.events("kept") == []


class TestCleanup:
    def test_dry_run_touches_nothing_and_the_run_does_it(self, stack):
        before = tree(stack.backups)
        said = stack.ok("run", "cleanup", "--dry-run")
        assert said.count("GOES") == 10
        assert tree(stack.backups) == before
        assert "removed 10" in stack.ok("run", "cleanup")
        assert stack.in_trash() == stack.taken[:10]
        (report,) = stack.backups.glob("backup_report_*.txt")
        text = report.read_text()
        assert all(id_ in text for id_ in stack.taken[:10])
        assert stack.json("run", "cleanup")["outcome"] == "success"
        assert stack.in_trash() == stack.taken[:DUE], "the first cleanup was capped, and the next takes the rest"
        stack.ok("verify", "all")

    def test_dry_run_as_json(self, stack):
        found = stack.json("run", "cleanup", "--dry-run")
        assert sum(not one["keep"] for one in found["decisions"]) == 10


@pytest.mark.parametrize(
    "command", [["prune"], ["trash", "list"], ["trash", "restore"], ["trash", "empty"], ["keep"], ["unkeep"], ["run"]]
)
def test_help_has_examples(command, stack):
    said = stack.ok(*command, "--help")
    assert "Example" in said
    assert f"aquad {' '.join(command)}" in said


class TestTogether:
    """I4: prune beside who reads, as processes."""

    def test_verify_waits_and_what_went_meanwhile_is_not_damaged(self, stack):
        repository = open_repository(stack.backups)
        with repository.removing(0):
            process = subprocess.Popen(stack.command("verify", "all"), stdout=subprocess.PIPE, text=True)
            time.sleep(1.5)
            assert process.poll() is None, "it did not wait"
            repository.trash.put(repository.catalog().find(stack.taken[0]))
        said = process.communicate(timeout=30)[0]
        assert "DAMAGED" not in said
        assert process.returncode == 0

    def test_prune_waits_for_who_verifies(self, stack):
        with open_repository(stack.backups).reading():
            process = subprocess.Popen(stack.command("prune", "--yes"), stdout=subprocess.DEVNULL)
            time.sleep(1.0)
            assert process.poll() is None, "it did not wait"
            assert stack.in_trash() == []
        assert process.wait(30) == 0
        assert len(stack.in_trash()) == 10

    def test_races(self, stack):
        rng, codes = random.Random(20), set()
        for race in range(RACES):
            stack.fresh()
            shutil.rmtree(stack.top / "to", ignore_errors=True)
            oldest = stack.taken[0]
            reader = [
                ["verify", "all"],
                ["restore", "volume", "data", oldest, "--to", stack.top / "to", "--yes"],
                ["--json", "list"],
                ["verify", oldest],
            ][race % 4]
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            commands = [stack.command("prune", "--all", "--yes"), stack.command(*reader)]
            first = race // 4 % 2
            one = subprocess.Popen(commands[first], **options)
            time.sleep(rng.random() * 0.25)
            other = subprocess.Popen(commands[1 - first], **options)
            said = {first: one.communicate(timeout=60), 1 - first: other.communicate(timeout=60)}
            pruned, read = (one, other) if first == 0 else (other, one)
            codes.add((reader[0], read.returncode))
            assert pruned.returncode in {0, 11}, said[0]
            allowed = {"verify": {0, 10}, "restore": {0, 10, 11}, "--json": {0}}[reader[0]]
            assert read.returncode in allowed, (reader, read.returncode, said[1])
            if reader[0] == "--json":
                assert json.loads(said[1][0])["unreadable"] == []
            if reader[0] == "restore" and read.returncode != 0:
                assert not (stack.top / "to").exists(), "it began, and did not end"
            assert {entry["outcome"] for entry in stack.events("verified")} == {"success"}
            left = stack.taken[DUE:] if pruned.returncode == 0 else stack.taken
            assert stack.listed() == left
        assert len(codes) >= 3
