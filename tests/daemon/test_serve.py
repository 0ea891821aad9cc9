"""`aquad serve` as a process, with real runs: its beginning, its end, its accidents."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon.live import catches, children, outcomes, state
from tests.small import needs_root

DEAD = {"", "Z"}
"""Gone, or only not yet reaped by whoever adopted it."""
PATIENCE_SECONDS = 8.5
"""limits.stop is 6 s here; Docker waits 10."""
ALL = os.environ.get("AQUAD_FAULTS") == "all"


QUICK_WATCHDOG = """
import aquad.daemon.loop as loop, aquad.daemon.timer as timer, aquad.daemon.watchdog as watchdog
watchdog.Watchdog.__init__.__defaults__ = (0.3,)
loop.LOOK_SECONDS = 0.5
timer.HEARTBEAT_SECONDS = 0.25
"""
"""The timer rings twice a look, as it does in earnest: or a run that says nothing for two seconds is the death of its thread."""


class TestBeginning:
    def test_an_empty_directory_is_waited_for_and_init_starts_the_first_full(self, live):
        with live.daemon() as process:
            live.wait_for(lambda: "waiting for the repository" in live.log())
            assert live.log().count("aquad init") == 1
            assert "aquad init" in live.refused(1, "status")
            live.ok("init")
            ended = live.wait_for_line("slot_ended")
            assert (ended["job"], ended["outcome"], ended["by"]) == ("full", "success", "daemon")
            assert ended["slot"] == live.lines("settings")[0]["at"]  # the moment at which there was a daemon
            assert process.poll() is None
            assert "next:" in live.ok("status")
        with live.daemon():
            live.wait_for_line("daemon_started", 2)
            time.sleep(1)
        assert len(live.lines("run_started")) == 1
        assert "NO DAEMON" in live.ok("status")

    def test_I1_a_second_daemon_is_refused(self, live):
        live.ok("init")
        with live.daemon():
            live.wait_for_line("daemon_started")
            second = live.run("serve")
            assert second.returncode == 11
            assert "held by the daemon (process " in second.stderr

    def test_I2_runs_by_hand_beside_it_take_turns(self, live):
        live.ok("init")
        with live.daemon():
            live.wait_for_line("run_started")
            by_hand = live.run("run", "full", "--wait", "30")
            assert by_hand.returncode == 0, by_hand.stderr
            live.wait_for_line("slot_ended")
        starts = [line["run"] for line in live.lines("run_started")]
        ends = [line["run"] for line in live.lines("run_ended")]
        assert starts == ends
        assert [line["by"].split()[0] for line in live.lines("run_ended")] == [
            "daemon",
            "root" if os.geteuid() == 0 else live.lines("run_ended")[1]["by"].split()[0],
        ]

    def test_I2_all_else_by_hand_beside_it(self, live):
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            live.ok("list")
            live.ok("verify", "all")
            live.ok("restore", "configs", "latest", "--to", live.top / "look")
            live.ok("restore", "volume", "nginx_logs", "latest", "--yes")
            live.ok("prune", "--yes")
            live.ok("audit", "verify")
            assert process.poll() is None
        assert "error" not in live.log()

    def test_a_daemon_that_begins_in_the_middle_of_a_run_waits_for_it(self, live):
        live.ok("init")
        with live.stuck_dump():
            by_hand = subprocess.Popen(
                [sys.executable, "-m", "aquad", "-c", live.settings, "run", "full", "--component", "postgres"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            live.wait_for_line("run_started")
            with live.daemon():
                live.wait_for(lambda: "run started" in live.log())
                time.sleep(1)
                assert len(live.lines("run_started")) == 1
                by_hand.send_signal(signal.SIGTERM)
                by_hand.wait()
                live.wait_for_line("run_started", 2)
        assert [line["outcome"] for line in live.lines("run_ended")][:1] == ["aborted"]

    def test_settings_and_every_change_of_them_stand_in_the_journal(self, live):
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            live.settings.write_text(live.settings.read_text().replace('stop = "6s"', 'stop = "7s"'))
            process.send_signal(signal.SIGHUP)
            changed = live.wait_for_line("settings", 2)
            assert changed["changed"] == {"limits.stop": ["6s", "7s"]}
            live.settings.write_text(live.settings.read_text().replace('stop = "7s"', 'stop = "soon"'))
            process.send_signal(signal.SIGHUP)
            alert = live.wait_for_line("alert")
            assert alert["rule"] == "settings_invalid"
            assert "limits.stop" in alert["text"]
            assert process.poll() is None
            assert len(live.lines("settings")) == 2

    def test_P2_a_run_has_the_settings_that_the_daemon_took_not_the_broken_file(self, live):
        good = live.settings.read_text().replace('["shop"]', '["shop", "postgres"]')
        with live.daemon() as process:
            live.wait_for(lambda: "waiting for the repository" in live.log())
            live.settings.write_text(good)
            process.send_signal(signal.SIGHUP)
            live.wait_for(lambda: "settings read" in live.log())
            live.settings.write_text("nonsense")
            process.send_signal(signal.SIGHUP)
            live.wait_for(lambda: "settings not taken, the old ones stay" in live.log())
            copy = live.top / "copy.toml"
            copy.write_text(good)
            subprocess.run([sys.executable, "-m", "aquad", "-c", copy, "init"], check=True)
            assert live.wait_for_line("slot_ended")["outcome"] == "success"
        [manifest] = [json.loads(path.read_text()) for path in (live.backups / "manifests").glob("*.json")]
        postgres = next(one for one in manifest["components"] if one["name"] == "postgres")
        assert [one["name"] for one in postgres["facts"]["databases"]] == ["postgres", "shop"]

    def test_only_what_it_needs_is_loaded(self, live):
        live.ok("init")
        script = "import atexit\natexit.register(lambda: print('MODULES', *sorted(sys.modules)))"
        with live.daemon(script=script) as process:
            live.wait_for_line("slot_ended")
            process.send_signal(signal.SIGTERM)
            process.wait(10)
        loaded = set(next(line for line in live.log().splitlines() if line.startswith("MODULES")).split())
        assert "apscheduler" in loaded
        unwanted = (
            "psycopg",
            "docker",
            "elasticsearch",
            "obstore",
            "numpy",
            "aquad.jobs.full",
            "aquad.sources",
        )
        assert sorted(loaded & set(unwanted)) == []


class TestEnding:
    def test_A2_idle_it_ends_at_once(self, live):
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert live.lines("daemon_stopped")[0]["reason"] == "SIGTERM"

    def test_A2_a_run_is_ended_within_the_time_and_tried_again_by_the_next_daemon(self, live):
        live.ok("init")
        with live.daemon() as process, live.stuck_dump():
            live.wait_for(lambda: _dumps(process.pid))
            family = children(process.pid)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            assert time.monotonic() - begun < PATIENCE_SECONDS
            assert {state(pid) for pid in family} <= DEAD
        assert outcomes(live.lines("run_ended")) == ["aborted"]
        assert live.lines("slot_ended") == []
        with live.daemon():
            ended = live.wait_for_line("slot_ended")
        assert ended["outcome"] == "success"
        assert [line["attempt"] for line in live.lines("run_started")] == [1, 2]

    def test_A2_a_run_that_does_not_listen_is_killed_and_recorded(self, live):
        """And the watchdog, which would bark much sooner, sees that the loop is alive."""
        live.ok("init")
        with live.daemon(script=QUICK_WATCHDOG) as process, live.stuck_dump():
            live.wait_for(lambda: _dumps(process.pid))
            os.kill(children(process.pid)[0], signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert outcomes(live.lines("run_ended")) == ["interrupted"]
        assert live.lines("daemon_stopped")

    def test_A2_at_random_moments(self, live):
        """Whatever it is doing: it is gone in time, leaves no process, and every run has its outcome."""
        live.ok("init")
        live.settings.write_text(live.settings.read_text().replace('retry_delay = "2s"', 'retry_delay = "1s"'))
        dice = random.Random(4)
        for number in range(40 if ALL else 10):
            with live.daemon() as process:
                live.wait_for(lambda: catches(process.pid, signal.SIGTERM))
                time.sleep(dice.uniform(0, 3.0))
                family = children(process.pid)
                begun = time.monotonic()
                process.send_signal(signal.SIGTERM)
                code = process.wait(15)
                assert time.monotonic() - begun < PATIENCE_SECONDS
                assert code in {0, 143}, live.log()  # 143: it was not a daemon yet
                assert {state(pid) for pid in family} <= DEAD
            assert len(live.lines("run_started")) == len(live.lines("run_ended"))
            if live.lines("slot_ended"):
                live.backups.rename(live.top / f"backups-{number}")
                live.ok("init")

    def test_A1_killed_in_a_run(self, live):
        """Its children die with it; the next daemon records the run as interrupted, and tries once more after the delay."""
        live.ok("init")
        with live.daemon() as process, live.stuck_dump():
            live.wait_for(lambda: _dumps(process.pid))
            family = children(process.pid)
            process.kill()
            process.wait()
            live.wait_for(lambda: all(state(pid) in DEAD for pid in family), 10)
        assert live.lines("run_ended") == []
        with live.daemon():
            live.wait_for_line("slot_ended")
        assert outcomes(live.lines("run_ended")) == ["interrupted", "success"]
        assert list((live.backups / "drafts").iterdir()) == []

    def test_A3_the_run_alone_is_killed(self, live):
        live.ok("init")
        with live.daemon() as process, live.stuck_dump():
            live.wait_for(lambda: _dumps(process.pid))
            os.kill(children(process.pid)[0], signal.SIGKILL)
            live.wait_for_line("run_ended")
            assert process.poll() is None
        assert outcomes(live.lines("run_ended")) == ["interrupted"]

    def test_A6_a_crash_loop_starts_the_job_once(self, live):
        live.ok("init")
        live.settings.write_text(live.settings.read_text().replace('retry_delay = "2s"', 'retry_delay = "5m"'))
        with live.stuck_dump():
            for number in range(20 if ALL else 8):
                with live.daemon() as process:
                    live.wait_for_line("daemon_started", number + 1)
                    live.wait_for_line("run_started")
                    process.kill()
                    process.wait()
        assert len(live.lines("run_started")) == 1
        assert [line["rule"] for line in live.lines("alert")] == ["daemon_restarts"]


class TestAccidents:
    def test_A9_the_timer_dies(self, live):
        live.ok("init")
        script = (
            "import aquad.daemon.loop as loop, aquad.daemon.timer as timer\n"
            "loop.LOOK_SECONDS = 1\n"
            "def bad(*_): raise RuntimeError('on purpose')\n"
            "timer.RuleTrigger.get_next_fire_time = bad\n"
        )
        with live.daemon(script=script) as process:
            assert process.wait(20) == 1
        assert "timer" in live.log()

    def test_A10_the_loop_stands_still(self, live):
        live.ok("init")
        script = (
            "import time, aquad.daemon.keeper as keeper, aquad.daemon.watchdog as watchdog\n"
            "watchdog.Watchdog.__init__.__defaults__ = (0.1,)\n"
            "keeper.Keeper.tick = lambda _: time.sleep(9999)\n"
        )
        with live.daemon(script=script) as process:
            assert process.wait(20) == 1
        assert "has stood still" in live.log()
        assert "in _tick" in live.log()  # where it stood

    def test_H9_stopped_for_a_while_it_goes_on(self, live):
        """As a machine that is suspended: the watchdog counts its own looks, of which there are none meanwhile."""
        live.ok("init")
        with live.daemon(script=QUICK_WATCHDOG) as process:
            live.wait_for_line("slot_ended")
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            process.send_signal(signal.SIGCONT)
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert len(live.lines("run_started")) == 1

    def test_B11_the_repository_goes_and_comes_back(self, live):
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            live.backups.rename(live.top / "away")
            live.backups.mkdir(mode=0o700)
            process.send_signal(signal.SIGHUP)
            live.wait_for(lambda: "cannot keep the schedule" in live.log())
            assert list(live.backups.iterdir()) == []
            live.backups.rmdir()
            (live.top / "away").rename(live.backups)
            process.send_signal(signal.SIGHUP)
            live.wait_for(lambda: "all is well again" in live.log())
            assert process.poll() is None

    def test_B11_the_repository_goes_with_a_run_in_it_and_comes_back(self, live):
        """Its end cannot be recorded meanwhile, and that keeps nobody busy."""
        live.ok("init")
        with live.daemon() as process:
            with live.stuck_dump():
                live.wait_for(lambda: _dumps(process.pid))
                live.backups.rename(live.top / "away")
                os.kill(children(process.pid)[0], signal.SIGKILL)
                live.wait_for(lambda: "cannot keep the schedule" in live.log())
                before = _processor_seconds(process.pid)
                time.sleep(2)
                assert _processor_seconds(process.pid) - before < 0.5
                (live.top / "away").rename(live.backups)
                live.wait_for_line("run_ended")
            assert live.wait_for_line("slot_ended")["outcome"] == "success"
        assert outcomes(live.lines("run_ended")) == ["interrupted", "success"]

    def test_A8_the_journal_is_being_rotated(self, live):
        """For a moment, or until the next writer where that one was killed, there is no file under its name."""
        live.ok("init")
        with live.daemon() as process:
            with live.stuck_dump():
                live.wait_for(lambda: _dumps(process.pid))
                path = live.backups / "state" / "audit.jsonl"
                last = len(path.read_text().splitlines())
                path.rename(path.with_name(f"audit-{last:09}.jsonl"))
                process.send_signal(signal.SIGCHLD)  # which makes it look
                time.sleep(1)
                assert process.poll() is None, live.log()
            assert live.wait_for_line("slot_ended")["outcome"] == "success"
        assert live.lines("run_started") == []
        assert outcomes(live.lines("run_ended")) == ["success"]

    def test_I5_its_lock_was_removed(self, live):
        live.ok("init")
        with live.daemon() as process:
            live.wait_for_line("slot_ended")
            (live.backups / "state" / "daemon.lock").unlink()
            process.send_signal(signal.SIGHUP)
            assert process.wait(15) == 1
        assert "not the file that this daemon has locked" in live.log()
        with live.daemon():
            live.wait_for_line("daemon_started", 2)

    @needs_root
    def test_as_process_1_it_reaps_orphans(self, live):
        live.ok("init")
        with live.daemon(prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")) as outer:
            live.wait_for_line("slot_ended")
            inner = children(outer.pid)[0]
            enter = ["nsenter", "-t", str(inner), "-p", "-m"]
            subprocess.run([*enter, "sh", "-c", "(sleep 0.2 &) ; exit 0"], check=True)
            time.sleep(1)
            assert [pid for pid in children(inner) if state(pid) == "Z"] == []
            os.kill(inner, signal.SIGTERM)
            assert outer.wait(15) == 0


def _processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _dumps(pid):
    return [child for child in children(pid) if b"pg_dump" in _command(child)]


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _processes(settings):
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and str(settings).encode() in _command(pid)]


@pytest.fixture(autouse=True)
def _nothing_is_left(live):
    yield
    live.wait_for(lambda: not _processes(live.settings), 10)
