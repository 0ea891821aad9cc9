"""The command line as processes: what it prints, its exit codes, and bad input of every kind (issue: one clear message each)."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from aquad.demo import compare, playground
from tests.servers.postgres import binaries

ROOT = os.geteuid() == 0


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Stack:
    """A playground with a real server, its settings, and `aquad` as a process."""

    def __init__(self, top, server):
        self.top, self.server = top, server
        playground.make_checkout(top / "checkout")
        playground.make_volumes(top / "volumes")
        server.bin_dir = server.bin
        self.settings = top / "settings.toml"
        self.settings.write_text(playground.settings_text(top, server))
        self.backups = top / "backups"

    def run(self, *arguments, settings=None, env=None, **options):
        command = [sys.executable, "-m", "aquad", "-c", str(settings or self.settings), *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            timeout=60,
            **options,
        )

    def ok(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, code, *arguments, **options):
        """One clear message, no traceback; what it said."""
        done = self.run(*arguments, **options)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith(("aquad: ", "Usage: ", "Error: ")), done.stderr
        return done.stderr

    def changed(self, old, new):
        path = self.top / "changed.toml"
        text = self.settings.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    def latest(self):
        return json.loads(self.ok("--json", "list"))["backups"][0]["id"]


class TestVerbs:
    def test_the_whole_way(self, stack):
        out = stack.ok("run", "full")
        assert "success" in out
        assert "read back and compared" in out
        backup = stack.latest()
        assert backup in stack.ok("list")
        shown = stack.ok("show", "latest")
        assert "shop: 1 tables, 1000 rows" in shown
        assert "good (content)" in stack.ok("verify", "all", "--level", "content")
        status = stack.ok("status", "--check")
        assert "encryption is off" in status
        assert "never restored" in status
        before = {n: compare.tree(n, stack.top / "volumes" / n) for n in playground.VOLUMES}
        for name in playground.VOLUMES:
            playground.empty_directory(stack.top / "volumes" / name)
        playground.empty_directory(stack.top / "checkout")
        with stack.server.connect("shop") as connection:
            connection.execute("TRUNCATE items")
        assert "compared with what was sealed" in stack.ok("restore", "all", "latest", "--yes")
        assert {n: compare.tree(n, stack.top / "volumes" / n) for n in playground.VOLUMES} == before
        with stack.server.connect("shop") as connection:
            assert connection.execute("SELECT count(*) FROM items").fetchone() == (1000,)
        assert "(last time)" in stack.ok("status")
        assert re.search(
            r"configs from \w+ \(took [\d.]+s last time\)", stack.ok("restore", "plan", "configs", "latest")
        )
        assert "discarded shop_before_" in stack.ok("restore", "discard", "--yes")

    def test_json_has_a_schema_version(self, stack):
        stack.ok("run", "full")
        for command in (
            ["list"],
            ["show", "latest"],
            ["status"],
            ["verify", "latest"],
            ["restore", "plan", "all", "latest"],
            ["check"],
            ["version"],
            ["config", "show"],
        ):
            done = stack.run("--json", *command)
            assert json.loads(done.stdout)["schema_version"] == 1, command
        lines = stack.run("--json", "run", "full")
        assert json.loads(lines.stdout)["outcome"] == "success"
        assert all(json.loads(line)["schema_version"] == 1 for line in lines.stderr.splitlines())

    def test_a_component_alone_and_latest_by_component(self, stack):
        stack.ok("run", "full")
        stack.ok("run", "full", "--component", "configs")
        assert "shop" in stack.ok("restore", "plan", "postgres", "latest")
        assert "not in this backup" in stack.refused(10, "restore", "plan", "postgres", stack.latest())

    def test_deleting_every_index_changes_nothing(self, stack):
        stack.ok("run", "full")
        before = stack.ok("list"), json.loads(stack.ok("--json", "status"))["components"][0]["backup"]
        (stack.backups / "state" / "lock").unlink()
        (stack.backups / "state" / "state.db").unlink(missing_ok=True)
        assert (stack.ok("list"), json.loads(stack.ok("--json", "status"))["components"][0]["backup"]) == before

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_list_and_verify_work_on_a_read_only_mount(self, stack):
        stack.ok("run", "full")
        subprocess.run(["mount", "--bind", stack.backups, stack.backups], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", stack.backups], check=True)
            assert stack.latest()
            assert "good" in stack.ok("verify", "latest")
            assert "ead-only" in stack.refused(1, "run", "full")
        finally:
            subprocess.run(["umount", stack.backups], check=True)

    def test_restore_to_a_directory_and_only_some_files(self, stack):
        stack.ok("run", "full")
        stack.ok("restore", "volume", "zookeeper_data", "latest", "--to", stack.top / "look", "--only", "log.000[1-3]")
        assert sorted(p.name for p in (stack.top / "look").iterdir()) == ["log.0001", "log.0002", "log.0003"]
        stack.ok("restore", "configs", "latest", "--to", stack.top / "conf")
        assert stat.S_IMODE((stack.top / "conf" / ".env").stat().st_mode) == 0o600
        assert {p.name for p in (stack.top / "conf").iterdir()} == {
            "docker-compose.yml",
            ".env",
            "monitoring",
            "scripts",
            "run.sh",
        }

    def test_a_live_volume_is_kept_aside(self, stack):
        stack.ok("run", "full")
        live = stack.top / "volumes" / "nginx_logs"
        (live / "written since").write_text("keep me")
        stack.ok("restore", "volume", "nginx_logs", "latest", "--yes")
        assert not (live / "written since").exists()
        (archive,) = (stack.backups / "aside").rglob("nginx_logs.tar.gz")
        stack.ok("restore", "volume", "nginx_logs", archive, "--trusted", "--to", stack.top / "old")
        assert (stack.top / "old" / "written since").read_text() == "keep me"
        assert archive.parent.name in stack.ok("status")
        stack.ok("restore", "discard", archive.parent.name, "--yes")
        assert list((stack.backups / "aside").iterdir()) == []

    def test_status_names_databases_that_a_restore_kept_until_they_are_discarded(self, stack):
        stack.ok("run", "full", "--component", "postgres")
        stack.ok("restore", "postgres", "latest", "--yes")
        (kept,) = [
            name for name in json.loads(stack.ok("--json", "status"))["aside"] if name.startswith("shop_before_")
        ]
        assert f"kept aside by a restore: {kept}" in stack.ok("status")
        assert f"would drop {kept}" in stack.ok("restore", "discard", "--dry-run")
        with stack.server.connect() as connection:
            connection.execute(f'DROP DATABASE "{kept}" WITH (FORCE)')
        assert "gone from the server" in stack.ok("restore", "discard", "--yes")
        assert json.loads(stack.ok("--json", "status"))["aside"] == []

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_O2_a_restore_of_everything_that_failed_goes_on(self, stack):
        stack.ok("run", "full")
        volumes = stack.top / "volumes"
        before = {n: compare.tree(n, volumes / n) for n in playground.VOLUMES}
        assert "no restore of everything is unfinished" in stack.refused(10, "restore", "resume", "--yes")
        locked = volumes / "zookeeper_data"
        (locked / "written since").write_text("x")
        subprocess.run(["mount", "--bind", locked, locked], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", locked], check=True)
        try:
            said = stack.refused(1, "restore", "all", "latest", "--yes")
        finally:
            subprocess.run(["umount", locked], check=True)
        assert "restored before that: configs, kafka_data" in said
        assert "aquad restore resume" in said
        assert "UNFINISHED restore" in stack.ok("status")
        plan = stack.ok("restore", "resume", "--dry-run")
        assert "zookeeper_data from" in plan
        assert "kafka_data" not in plan
        stack.ok("run", "full", "--component", "configs")  # a later backup does not change what is left to restore
        stack.ok("restore", "resume", "--yes")
        assert {n: compare.tree(n, volumes / n) for n in playground.VOLUMES} == before
        assert "UNFINISHED" not in stack.ok("status")
        stack.refused(10, "restore", "resume", "--yes")

    def test_the_environment_does_not_say_where_the_server_is(self, stack):
        misleading = {"PGHOSTADDR": "192.0.2.1", "PGSERVICE": "nonsense"}
        assert "success" in stack.ok("run", "full", "--component", "postgres", env=misleading)
        assert "shop: 1 tables, 1000 rows" in stack.ok("show", "latest", env=misleading)

    def test_quiet_and_verbose(self, stack):
        assert stack.ok("-q", "run", "full", "--component", "configs") == ""
        loud = stack.run("-v", "run", "full", "--component", "configs")
        assert re.search(r"^\d\d:\d\d:\d\d configs$", loud.stderr, re.MULTILINE)
        assert "-q or -v" in stack.refused(2, "-q", "-v", "list")

    def test_configs_show_what_changes_and_never_a_secret(self, stack):
        stack.ok("run", "full")
        env = stack.top / "checkout/infra/docker/compose/.env"
        env.write_text("POSTGRES_PASSWORD=rotated-secret\nELASTIC_PASSWORD=neither\n")
        (stack.top / "checkout/run.sh").unlink()
        plan = stack.ok("restore", "plan", "configs", "latest")
        assert "changed: " in plan
        assert "new: " in plan
        assert "same: " in plan
        assert "values of POSTGRES_PASSWORD would change; they may have been rotated" in plan
        assert "ELASTIC_PASSWORD" not in plan
        assert "rotated-secret" not in plan
        assert "not-a-real-one" not in plan
        stack.ok("restore", "configs", "latest", "--yes")
        assert "not-a-real-one" in env.read_text()
        (kept,) = (stack.top / "checkout").glob("aquad-before-*/infra/docker/compose/.env")
        assert "rotated-secret" in kept.read_text()
        assert stat.S_IMODE(kept.parents[3].stat().st_mode) == 0o700

    def test_a_volume_that_went_empty_is_refused_until_accepted(self, stack):
        stack.ok("run", "full")
        playground.empty_directory(stack.top / "volumes" / "zookeeper_data")
        assert "aquad accept zookeeper_data" in stack.refused(1, "run", "full", "--component", "zookeeper_data")
        stack.ok("accept", "zookeeper_data")
        stack.ok("run", "full", "--component", "zookeeper_data")

    def test_config_commands(self, stack):
        shown = stack.ok("config", "show", env={"AQUAD__LIMITS__STALL": "90s"})
        assert "environment AQUAD__LIMITS__STALL" in shown
        assert "settings.toml:2" in shown
        assert "good" in stack.ok("config", "validate")
        generated = stack.top / "generated.toml"
        generated.write_text(stack.ok("config", "generate"))
        assert generated.read_text() == (Path(__file__).parents[2] / "settings.toml").read_text()
        stack.ok("config", "validate", settings=generated)

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, stack, shell):
        assert "_AQUAD_COMPLETE" in stack.ok("completion", shell)


class TestBadInput:
    def test_unknown_subcommand_and_job(self, stack):
        assert "nonsense" in stack.refused(2, "nonsense")
        stack.refused(2, "run", "nonsense")
        assert "no_such" in stack.refused(2, "run", "full", "--component", "no_such")

    def test_server_down_and_wrong_password(self, stack):
        down = stack.changed(f"port = {stack.server.port}", "port = 1")
        assert "127.0.0.1:1" in stack.refused(13, "run", "full", "--component", "postgres", settings=down)
        wrong = stack.top / "wrong"
        wrong.write_text("no"), wrong.chmod(0o600)
        settings = stack.changed(str(stack.server.password_file), str(wrong))
        assert "password authentication failed" in stack.refused(
            13, "run", "full", "--component", "postgres", settings=settings
        )
        missing = stack.changed(str(stack.server.password_file), "/nowhere/password")
        assert "/nowhere/password" in stack.refused(2, "run", "full", "--component", "postgres", settings=missing)
        wrong.chmod(0o644)
        settings = stack.changed(str(stack.server.password_file), str(wrong))
        assert "chmod 600" in stack.refused(2, "run", "full", "--component", "postgres", settings=settings)

    def test_no_tools_of_that_major(self, stack):
        settings = stack.changed(str(stack.server.bin), str(binaries(15)))
        said = stack.refused(1, "run", "full", "--component", "postgres", settings=settings)
        assert "tools of PostgreSQL 16" in said
        assert not list(stack.backups.glob("postgres*"))

    def test_repository_missing_foreign_newer(self, stack):
        assert "no such directory" in stack.refused(
            1, "list", settings=stack.changed(str(stack.backups), "/nowhere/at/all")
        )
        (stack.top / "empty").mkdir(mode=0o700)
        assert "mounted" in stack.refused(
            1, "run", "full", settings=stack.changed(str(stack.backups), str(stack.top / "empty"))
        )
        assert "belongs to stack" in stack.refused(1, "list", env={"AQUAD__STACK": "other"})
        marker = stack.backups / "aquad-repository.json"
        marker.write_text(marker.read_text().replace('"format": 1', '"format": 9'))
        assert "newer aquad" in stack.refused(1, "list")

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_B1_repository_full(self, stack):
        stack.ok("run", "full", "--component", "configs")
        small = stack.top / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", small], check=True)
        try:
            settings = stack.changed(str(stack.backups), str(small))
            stack.ok("init", settings=settings)
            stack.ok("run", "full", "--component", "configs", settings=settings)
            said = stack.refused(1, "run", "full", "--component", "kafka_data", settings=settings)
            assert "No space left on device" in said
            assert len(json.loads(stack.ok("--json", "list", settings=settings))["backups"]) == 1
            stack.ok("verify", "all", settings=settings)
            stack.ok("run", "full", "--component", "configs", settings=settings)
        finally:
            subprocess.run(["umount", small], check=True)

    def test_source_directory_missing(self, stack):
        shutil.rmtree(stack.top / "volumes" / "nginx_logs")
        done = stack.run("run", "full")
        assert done.returncode == 1
        assert "nginx_logs is not there" in done.stderr
        listed = json.loads(stack.ok("--json", "list"))["backups"][0]
        assert listed["outcome"] == "partial"
        assert listed["components"]["nginx_logs"] == "failed"
        assert listed["components"]["postgres"] == "success"

    def test_configuration_path_missing(self, stack):
        (stack.top / "checkout" / "run.sh").unlink()
        assert "run.sh is not there" in stack.refused(1, "run", "full", "--component", "configs")

    def test_unknown_and_ambiguous_ids(self, stack):
        assert "there is no backup" in stack.refused(10, "show", "latest")
        stack.ok("run", "full", "--component", "configs")
        stack.ok("run", "full", "--component", "configs")
        assert "fits 2 backups" in stack.refused(10, "show", "2")
        assert "no backup has that id" in stack.refused(10, "restore", "plan", "configs", "1999")
        assert "too long" in stack.refused(10, "restore", "plan", "configs", "/" + "x" * 300)
        assert "no backup has that id" in stack.refused(10, "restore", "plan", "configs", "x" * 300)
        assert "not a file" in stack.refused(10, "restore", "plan", "configs", "/tmp/")
        assert "No such file" in stack.refused(10, "restore", "plan", "configs", "/nowhere/x.tar.gz")

    @pytest.mark.parametrize("damage", ["flip", "truncate", "swap", "remove"])
    def test_a_damaged_artifact_is_refused_before_anything_is_touched(self, stack, damage):
        stack.ok("run", "full")
        archive = next(stack.backups.rglob("zookeeper_data.tar.gz"))
        stored = archive.read_bytes()
        match damage:
            case "flip":
                archive.write_bytes(stored[:100] + bytes([stored[100] ^ 1]) + stored[101:])
            case "truncate":
                archive.write_bytes(stored[:-1])
            case "swap":
                shutil.copy(archive.with_name("kafka_data.tar.gz"), archive)
            case "remove":
                archive.unlink()
        live = stack.top / "volumes" / "zookeeper_data"
        before = compare.tree("x", live)
        assert "zookeeper_data.tar.gz" in stack.refused(14, "restore", "volume", "zookeeper_data", "latest", "--yes")
        assert "zookeeper_data.tar.gz" in stack.run("verify", "latest").stdout
        assert stack.run("verify", "latest").returncode == 14
        assert compare.tree("x", live) == before

    def test_a_file_of_no_manifest_needs_trusted(self, stack):
        stack.ok("run", "full")
        copy = stack.top / "copy.tar.gz"
        shutil.copy(next(stack.backups.rglob("zookeeper_data.tar.gz")), copy)
        assert "--trusted" in stack.refused(2, "restore", "volume", "zookeeper_data", copy, "--to", stack.top / "t")
        stack.ok("restore", "volume", "zookeeper_data", copy, "--trusted", "--to", stack.top / "t")
        assert compare.tree("x", stack.top / "t") == compare.tree("x", stack.top / "volumes" / "zookeeper_data")

    def test_a_dump_of_no_manifest_is_restored_when_somebody_vouches_for_it(self, stack):
        dump = stack.top / "shop.sql"
        server = stack.server
        command = [server.bin / "pg_dump", "-h", server.directory, "-p", str(server.port), "-U", "postgres", "shop"]
        dump.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
        assert "--trusted" in stack.refused(2, "restore", "postgres", dump, "--database", "shop")
        assert "--yes" in stack.refused(2, "restore", "postgres", dump, "--trusted", "--database", "shop")
        with server.connect("shop") as connection:
            connection.execute("TRUNCATE items")
        stack.ok("restore", "postgres", dump, "--trusted", "--database", "shop", "--yes")
        with server.connect("shop") as connection:
            assert connection.execute("SELECT count(*) FROM items").fetchone() == (1000,)
        stack.ok("restore", "discard", "--yes")

    def test_O1_live_data_is_not_overwritten_without_yes(self, stack):
        stack.ok("run", "full")
        (stack.top / "volumes" / "nginx_logs" / "live").write_text("x")
        assert "--yes" in stack.refused(2, "restore", "volume", "nginx_logs", "latest")
        assert "--yes" in stack.refused(2, "restore", "postgres", "latest")
        assert (stack.top / "volumes" / "nginx_logs" / "live").exists()
        assert stack.run("restore", "all", "latest", "--dry-run").returncode == 0
        assert (stack.top / "volumes" / "nginx_logs" / "live").exists()

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_O3_a_target_disk_that_is_too_small_is_refused_first(self, stack):
        stack.ok("run", "full")
        small = stack.top / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
        try:
            assert "bytes are needed" in stack.refused(
                1, "restore", "volume", "kafka_data", "latest", "--to", small / "x"
            )
            assert list(small.iterdir()) == []
        finally:
            subprocess.run(["umount", small], check=True)

    def test_I2_lock_held_by_another_process(self, stack):
        script = "import sys, time\nfrom pathlib import Path\nfrom tests.small import open_repository, FakeClock\nfrom aquad.repository.repository import Repository\nfrom datetime import UTC\nr = Repository.open(Path(sys.argv[1]), stack='aquastream', clock=FakeClock(), zone=UTC)\nwith r.writing(run_id='beef', command='full'):\n  print('held', flush=True)\n  time.sleep(60)\n"
        with subprocess.Popen([sys.executable, "-c", script, str(stack.backups)], stdout=subprocess.PIPE) as holder:
            holder.stdout.readline()
            assert f"full (run beef, process {holder.pid}) since 2024-08-02T02:00:00" in stack.refused(
                11, "run", "full"
            )
            assert stack.run("list").returncode == 0
            holder.kill()

    def test_I1_two_runs_racing(self, stack):
        command = [sys.executable, "-m", "aquad", "-c", str(stack.settings), "run", "full"]
        for _ in range(3):
            racing = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
            codes = sorted(one.wait() for one in racing)
            assert set(codes) <= {0, 11}
            assert 0 in codes
        stack.ok("verify", "all")

    def test_terminal_closed_in_the_middle(self, stack):
        with stack.server.connect("shop") as connection:
            connection.execute(
                "CREATE TABLE large AS SELECT i, repeat('y', 900) AS t FROM generate_series(1, 200000) i"
            )
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "aquad", "-c", str(stack.settings), "run", "full"]
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        time.sleep(1.0)
        os.close(ours)
        assert process.wait(20) in {0, 1, 143}
        stack.ok("run", "full", "--component", "configs")
        stack.ok("verify", "all")

    def test_without_any_standard_input_or_with_a_full_output_there_is_no_traceback(self, stack):
        stack.ok("run", "full", "--component", "nginx_logs")
        command = f"{sys.executable} -m aquad -c {stack.settings}"
        closed = subprocess.run(
            ["bash", "-c", f"{command} restore volume nginx_logs latest <&-"], capture_output=True, text=True
        )
        assert (closed.returncode, "--yes" in closed.stderr, "Traceback" in closed.stderr) == (2, True, False)
        full = subprocess.run(["bash", "-c", f"{command} list >/dev/full"], capture_output=True, text=True)
        assert (full.returncode, "Traceback" in full.stderr) == (1, False)
        assert "No space left on device" in full.stderr

    def test_A2_a_signal_that_python_dropped_is_not_the_last_one_heard(self):
        script = (
            "import os, signal, time\nimport aquad.cli as cli\ncli.TIDY_SECONDS = 0.2\n"
            "class Deaf:\n  def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\n"
            "def work(**_):\n  Deaf()\n  print('heard nothing', flush=True)\n  time.sleep(30)\n"
            "cli.root.main = work\ncli.main()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout.readline() == "heard nothing\n"
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 143

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
    def test_A2_ended_at_random_moments(self, stack, number):
        with stack.server.connect("shop") as connection:
            connection.execute("CREATE TABLE large AS SELECT i, repeat('y', 900) AS t FROM generate_series(1, 50000) i")
        command = [sys.executable, "-m", "aquad", "-c", str(stack.settings), "run", "full"]
        codes = set()
        for delay in (0.3, 0.45, 0.6, 0.75, 0.9, 1.1):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(delay)
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
            assert "Traceback" not in said, said
            codes.add(process.returncode)
            assert process.returncode in {0, 130 if number == signal.SIGINT else 143, -number}, said
        assert codes != {0}
        stack.ok("run", "full", "--component", "configs")
        stack.ok("verify", "all")
        assert os.listdir(stack.backups / "drafts") == []
