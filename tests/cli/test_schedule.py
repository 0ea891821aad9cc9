"""The jobs of the schedule by hand, what comes next, and holding it."""

import json
import os
import signal
import subprocess
import sys
import time

from tests.small import journal


def lines(stack, event):
    return [line for line in journal(stack.backups) if line["event"] == event]


class TestJobs:
    def test_postgres_is_an_incremental_that_latest_prefers_for_its_component(self, stack):
        stack.ok("run", "full")
        assert "_incremental" in stack.ok("run", "postgres")
        (backup, full) = json.loads(stack.ok("--json", "list"))["backups"]
        assert (backup["kind"], list(backup["components"])) == ("incremental", ["postgres"])
        plan = stack.ok("restore", "plan", "all", "latest")
        assert f"postgres from {backup['id']}" in plan
        assert f"configs from {full['id']}" in plan
        assert stack.ok("list", "--kind", "incremental").count("_incremental") == 1

    def test_every_backup_has_a_report_of_its_run_and_so_has_a_failure(self, stack):
        stack.ok("run", "full")
        report = next(stack.backups.glob("backup_report_*")).read_text()
        backup = stack.latest()
        for said in (backup, "by hand", "every stored byte was read back", "1000", "Next runs", "full", "Disk:"):
            assert said in report, said
        (written,) = lines(stack, "report_written")
        assert written["backup"] == backup
        assert written["stored_sha256"] == _sha256(stack.backups / written["path"])
        bad = stack.changed(f"port = {stack.server.port}", "port = 1")
        stack.run("run", "postgres", settings=bad)
        failed = next(p for p in stack.backups.glob("backup_report_*") if "NOTHING WAS SEALED" in p.read_text())
        assert "Outcome      failed" in failed.read_text()

    def test_weekly_is_a_full_and_its_archive(self, stack):
        said = stack.ok("run", "weekly")
        assert "_weekly" in said
        kinds = [backup["kind"] for backup in json.loads(stack.ok("--json", "list"))["backups"]]
        assert kinds == ["weekly", "full"]
        (archive,) = (stack.backups / "weekly").iterdir()
        names = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.split()
        assert any(name.startswith("postgres_backup_") for name in names)
        assert "restored configs" in stack.ok("restore", "configs", archive, "--to", stack.top / "look")

    def test_verify_reads_and_looks_into_what_is_due(self, stack):
        stack.ok("run", "full")
        stack.ok("run", "postgres")
        assert "would look into" in stack.ok("run", "verify", "--dry-run")
        assert "verified" in stack.ok("run", "verify")
        assert {line["level"] for line in lines(stack, "verified")[2:]} == {"content"}
        path = next(stack.backups.glob("postgres_backup_*"))
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        stack.settings.write_text(stack.settings.read_text())
        assert "damaged" in stack.run("run", "verify").stderr
        assert stack.run("run", "verify").returncode == 14
        assert lines(stack, "alert")[0]["rule"] == "damaged"
        assert "is damaged, and never counted" in stack.ok("status")

    def test_a_damaged_backup_is_never_latest(self, stack):
        stack.ok("run", "full")
        good = stack.latest()
        stack.ok("run", "postgres")
        path = (
            stack.backups
            / json.loads(stack.ok("--json", "show", "latest"))["backup"]["components"][0]["artifacts"][0]["path"]
        )
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        stack.refused(14, "verify", "latest")
        assert f"postgres from {good}" in stack.ok("restore", "plan", "all", "latest")

    def test_a_run_that_is_not_done_at_its_deadline(self, stack):
        slow = stack.changed("[postgres]", '[limits]\ndeadline = { full = "2s" }\n[postgres]')
        with stack.server.connect("shop") as connection, connection.transaction():
            connection.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            begun = time.monotonic()
            said = stack.refused(1, "run", "full", settings=slow)
            assert time.monotonic() - begun < 20
        assert "deadline" in said
        (ended,) = lines(stack, "run_ended")
        assert (ended["outcome"], "deadline of full" in ended["reason"]) == ("failed", True)
        stack.ok("run", "full")
        assert list((stack.backups / "drafts").iterdir()) == []

    def test_wrong_use(self, stack):
        assert "--component" in stack.refused(2, "run", "weekly", "--component", "configs")
        assert "not a time" in stack.refused(2, "run", "full", "--slot", "yesterday")


class TestNext:
    def test_local_time_and_utc(self, stack):
        warsaw = stack.changed('stack = "aquastream"', 'stack = "aquastream"\ntime_zone = "Europe/Warsaw"')
        said = stack.ok("next", "-n", "5", settings=warsaw)
        assert ("CET" in said) or ("CEST" in said)
        assert "UTC" in said
        runs = json.loads(stack.ok("--json", "next", "-n", "30"))["runs"]
        assert len(runs) == 30
        assert runs == sorted(runs, key=lambda run: run["at"])
        assert {run["job"] for run in runs} >= {"full", "postgres", "verify"}

    def test_nothing_comes_when_all_is_off(self, stack):
        off = "\n".join(f'{job} = "off"' for job in ("full", "postgres", "weekly", "cleanup", "verify"))
        settings = stack.changed("[postgres]", f"[schedule]\n{off}\n[postgres]")
        assert "switched off" in stack.ok("next", settings=settings)


class TestHold:
    def test_hold_and_release(self, stack):
        assert "held until" in stack.ok("hold", "--for", "90m", "migration of orders")
        assert "HELD: migration of orders" in stack.ok("status")
        assert json.loads(stack.ok("--json", "status"))["held"].startswith("migration of orders")
        assert f"({os.geteuid()})" in lines(stack, "held")[0]["by"]
        assert "released" in stack.ok("release")
        assert "HELD" not in stack.ok("status")
        assert "not held" in stack.refused(2, "release")
        assert "not a duration" in stack.refused(2, "hold", "--for", "soon", "why")

    def test_a_restore_that_failed_half_way_holds_until_it_has_worked(self, stack):
        stack.ok("run", "full")
        volume = stack.top / "volumes" / "nginx_logs"
        restore = [sys.executable, "-m", "aquad", "-c", stack.settings, "restore", "all", "latest", "--yes"]
        with stack.server.connect("shop") as connection, connection.transaction():
            connection.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            process = subprocess.Popen(restore, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _until(lambda: lines(stack, "restored"))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert volume.is_dir()
        assert "did not come to its end" in stack.ok("status")
        stack.ok("restore", "configs", "latest", "--yes")
        assert "HELD" in stack.ok("status")
        stack.ok("restore", "resume", "--yes")
        assert "HELD" not in stack.ok("status")
        assert lines(stack, "released")[0]["cause"] == "restore"

    def test_one_that_is_not_agreed_to_holds_nothing(self, stack):
        stack.ok("run", "full")
        stack.refused(2, "restore", "all", "latest")
        assert "HELD" not in stack.ok("status")


class TestAudit:
    def test_show_by_filters(self, stack):
        stack.ok("run", "full")
        stack.ok("hold", "--for", "1h", "just so")
        said = stack.ok("audit", "show", "--event", "run_ended")
        assert said.count("\n") == 1
        assert "outcome=success" in said
        assert f"({os.geteuid()})" in said
        assert "no line fits" in stack.ok("audit", "show", "--outcome", "failed")
        assert [e["event"] for e in json.loads(stack.ok("--json", "audit", "show", "-n", "1"))["entries"]] == ["held"]

    def test_verify_and_an_anchor_kept_elsewhere(self, stack):
        stack.ok("run", "full")
        said = stack.ok("audit", "verify")
        assert "as it was written" in said
        lines_, hash_ = said.rsplit("write down: ", 1)[1].split()
        stack.ok("audit", "verify", "--anchor", f"{lines_}:{hash_}")
        path = stack.backups / "state" / "audit.jsonl"
        whole = path.read_text().splitlines(keepends=True)
        path.write_text("".join(whole[:-1]))
        stack.ok("audit", "verify")  # the tail is cut, and no manifest tells
        assert "PROBLEM" in stack.run("audit", "verify", "--anchor", f"{lines_}:{hash_}").stdout
        path.write_text("".join(whole).replace('"success"', '"successs"', 1))
        assert stack.run("audit", "verify").returncode == 14
        assert "not LINES:HASH" in stack.refused(2, "audit", "verify", "--anchor", "x")


def _until(what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def _sha256(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
