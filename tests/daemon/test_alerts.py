"""Alerts of a live daemon and of runs by hand, to a real mail server and to one that answers as Slack does (M1, M3, M4, M5)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon.live import children
from tests.servers.hooks import PATH, Hooks
from tests.servers.mail import Certificates, Mail
from tests.small import mounted, needs_root

QUICK = """
from datetime import timedelta
import aquad.observe.alerts as alerts, aquad.daemon.notifier as notifier, aquad.daemon.timer as timer
alerts.STEADY = timedelta(seconds=1)
notifier.TROUBLE = timedelta(seconds=1)
notifier.DELAYS = [timedelta(seconds=1)]
timer.HEARTBEAT_SECONDS = 1
"""
VOLUME = "volumes/nginx_logs"


@pytest.fixture
def mail(tmp_path):
    certificates = Certificates(tmp_path)
    with Mail(certificates.context("127.0.0.1")) as server:
        server.ca = certificates.file
        yield server


@pytest.fixture
def slack():
    with Hooks() as hooks:
        yield hooks


@pytest.fixture
def told(live, mail, slack):
    """The stack with both channels, and a repository."""
    secrets = {"webhook": slack.url, "mail": "mail secret", "ping": slack.url}
    for name, text in secrets.items():
        (live.top / name).write_text(text)
        (live.top / name).chmod(0o600)
    live.settings.write_text(
        live.settings.read_text()
        + f"""
[alerts.slack]
webhook_url_file = "{live.top}/webhook"
[alerts.email]
host = "127.0.0.1"
port = {mail.port}
ca_file = "{mail.ca}"
user = "aquad"
password_file = "{live.top}/mail"
sender = "aquad@company.com"
levels = ["critical"]
"""
    )
    live.ok("init")
    return live


@contextmanager
def broken(live):
    """A volume is not mounted."""
    path = live.top / VOLUME
    os.rename(path, f"{path}.away")
    try:
        yield
    finally:
        if not path.exists():
            os.rename(f"{path}.away", path)


def fill(path):
    """To the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def mend(live):
    os.rename(f"{live.top / VOLUME}.away", live.top / VOLUME)


class TestDaemon:
    def test_a_failed_backup_is_told_at_once_worse_after_its_retries_and_once_when_it_is_over(self, told, slack, mail):
        with broken(told), told.daemon(script=QUICK):
            told.wait_for(lambda: slack.taken)
            assert "WARNING run of full failed" in slack.titles()[0]
            assert "no good backup" in slack.text(0)
            told.wait_for(lambda: len(slack.taken) == 2 and mail.messages, 60)
            assert "CRITICAL run of full failed" in slack.titles()[1]
            assert "nginx_logs is not there. Is the volume mounted?" in slack.text(1)
            assert "docs/runbook.md, run_failed" in slack.text(1)
            assert "CRITICAL run of full failed" in mail.texts()[0][0]
            mend(told)
            told.ok("run", "full")
            told.wait_for(lambda: "RESOLVED" in slack.titles()[-1] and "RESOLVED" in mail.texts()[-1][0], 60)
            newest = told.latest()
            assert newest in slack.text()
            time.sleep(1)
        assert (len(slack.taken), len(mail.messages)) == (3, 2)
        kinds = [(line["channel"], line["notices"][0]["kind"]) for line in told.lines("notified")]
        assert sorted(kinds) == sorted(
            [("slack", "fired")] * 2 + [("slack", "resolved"), ("email", "fired"), ("email", "resolved")]
        )

    def test_M1_what_one_channel_does_not_take_survives_a_restart_and_is_told_on_another(self, told, slack, mail):
        slack.mode = "broken"
        told.settings.write_text(told.settings.read_text().replace('levels = ["critical"]\n', ""))
        with broken(told):
            with told.daemon(script=QUICK) as process:
                told.wait_for_line("slot_ended")
                told.wait_for(lambda: any("alerts cannot be delivered by slack" in title for title, _ in mail.texts()))
                told.wait_for(lambda: heard(told, "email", "run_failed", "critical"))
                assert slack.refused >= 3
                assert any("it answers 500" in text for _, text in mail.texts())
                process.send_signal(signal.SIGKILL)
                process.wait()
            slack.mode = "ok"
            known = len(mail.messages)
            with told.daemon(script=QUICK):
                told.wait_for(lambda: slack.taken)
                told.wait_for(lambda: any("RESOLVED alerts cannot" in title for title, _ in mail.texts()))
                told.wait_for(lambda: told.lines("alert_over"))
        assert "CRITICAL run of full failed" in slack.titles()[0]
        assert not [title for title, _ in mail.texts()[known:] if "CRITICAL" in title], "email had heard of it"

    def test_two_channels_do_not_wait_for_each_other(self, told, slack, mail):
        slack.mode = "hang"
        with broken(told), told.daemon():
            told.wait_for(lambda: mail.messages, 60)
            assert told.wait_for_line("notified")["channel"] == "email"

    def test_an_end_that_comes_while_something_is_sent_leaves_no_child_and_tells_later(self, told, slack):
        slack.mode = "hang"
        with broken(told), told.daemon() as process:
            sender = told.wait_for(lambda: [one for one in children(process.pid) if "send" in _argv(one)])
            process.send_signal(signal.SIGTERM)
            assert process.wait(12) == 0
            assert not any("send" in _argv(one) for one in sender)
        slack.mode = "ok"
        with told.daemon():
            told.wait_for(lambda: slack.taken)

    def test_M4_no_secret_is_told(self, told, slack, mail):
        """The settings' own secrets, wherever they come from: here from the name of a volume's file."""
        path = told.top / "volumes" / "mail secret"
        text = told.settings.read_text().replace(str(told.top / VOLUME), str(path))
        told.settings.write_text(text)
        with told.daemon():
            told.wait_for(lambda: slack.taken and mail.messages, 60)
        for text in [slack.text(number) for number in range(len(slack.taken))] + [text for _, text in mail.texts()]:
            assert "mail secret" not in text
            assert PATH not in text
            assert "*** is not there" in text

    @needs_root
    def test_A8_a_full_disk_cannot_silence_it(self, told, slack, mail):
        """Nothing can be written, not even that it was told; it is told once all the same, and written down later."""
        with mounted(told.top / "disk", "tmpfs", "size=32m,mode=700") as disk:
            shutil.rmtree(told.backups)
            told.settings.write_text(told.settings.read_text().replace(str(told.backups), str(disk / "backups")))
            told.backups = disk / "backups"
            told.ok("init")
            told.ok("run", "full")
            fill(disk / "ballast")
            for size in (900, 90):
                while told.run("hold", "--for", "1s", "x" * size).returncode == 0:
                    pass
            with told.daemon(script=QUICK):
                told.wait_for(lambda: any("cannot be written or read" in title for title in slack.titles()), 60)
                told.wait_for(lambda: any("cannot be written or read" in title for title, _ in mail.texts()), 60)
                assert not told.lines("notified")
                assert not told.lines("alert")
                time.sleep(3)
                (disk / "ballast").unlink()
                told.wait_for(lambda: any("RESOLVED the repository cannot" in title for title in slack.titles()), 60)
            assert len([title for title in slack.titles() if "the repository cannot" in title]) == 2
            assert told.lines("notified")

    def test_a_verified_success_is_pinged_and_nothing_else(self, told, slack):
        told.settings.write_text(told.settings.read_text() + f'[alerts.ping]\nurl_file = "{told.top}/ping"\n')
        with broken(told), told.daemon(script=QUICK):
            told.wait_for_line("slot_ended")
            time.sleep(2)
            assert slack.pings == 0
            mend(told)
            told.ok("run", "full")
            told.wait_for(lambda: slack.pings == 1, 60)


class TestByHand:
    def test_without_a_daemon_a_run_tells_before_it_ends(self, told, slack, mail):
        with broken(told):
            assert told.run("run", "full").returncode == 1
            assert "CRITICAL run of full failed" in slack.titles()[0]
            assert "CRITICAL run of full failed" in mail.texts()[0][0]
            assert told.run("run", "full").returncode == 1
        assert (len(slack.taken), len(mail.messages)) == (1, 1)

    def test_what_a_channel_refuses_is_said_and_told_on_the_other(self, told, slack, mail):
        told.settings.write_text(told.settings.read_text().replace('levels = ["critical"]\n', ""))
        slack.mode = "gone"
        with broken(told):
            said = told.run("run", "full").stderr
        assert re.search(r"an alert was not delivered by slack: .*it answers 404, 'no_service'", said)
        assert any("alerts cannot be delivered by slack" in title for title, _ in mail.texts())

    def test_a_good_run_says_nothing_and_pings(self, told, slack, mail):
        told.settings.write_text(told.settings.read_text() + f'[alerts.ping]\nurl_file = "{told.top}/ping"\n')
        told.ok("run", "full")
        assert (slack.taken, mail.messages, slack.pings) == ([], [], 1)

    def test_a_backup_is_no_less_good_where_nothing_can_be_told(self, told):
        script = (
            "import aquad.jobs.overview as overview\n"
            "def bad(*_, **__): raise OSError(5, 'Input/output error')\n"
            "overview.picture = bad\n"
            "from aquad.cli import main\n"
            "main()"
        )
        command = [sys.executable, "-c", script, "-c", told.settings, "run", "full"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        assert (done.returncode, "success" in done.stdout) == (3, True), done.stderr
        assert "aquad: nobody was told: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_beside_a_daemon_the_daemon_tells(self, told, slack):
        with told.daemon(script=QUICK):
            told.wait_for_line("slot_ended")
            with broken(told):
                assert told.run("run", "full").returncode == 1
            told.wait_for(lambda: slack.taken, 60)
        assert len(slack.taken) == 1


class TestCommand:
    def test_each_channel_gets_a_test(self, told, slack, mail):
        assert told.ok("alerts", "test").split("\n")[:2] == ["email   taken", "slack   taken"]
        assert "TEST of aquad's alerts" in slack.titles()[0]
        assert "TEST of aquad's alerts" in mail.texts()[0][0]
        told.ok("alerts", "test", "slack")
        assert (len(slack.taken), len(mail.messages)) == (2, 1)

    def test_one_that_is_refused(self, told, slack):
        slack.mode = "busy"
        done = told.run("--json", "alerts", "test")
        assert done.returncode == 1
        assert '"rate_limited"' in done.stdout.replace("\\", "")

    def test_none(self, told):
        assert "There are slack, email" in told.refused(2, "alerts", "test", "sms")
        path = told.changed("[alerts.slack]", "[alerts.sms]")
        path.write_text(path.read_text().partition("[alerts.sms]")[0])
        assert "set [alerts]" in told.refused(2, "alerts", "test", settings=path)


def heard(live, channel, rule, level):
    """Whether it stands in the journal that a channel was told; a daemon that dies before that tells again."""
    lines = [line for line in live.lines("notified") if line["channel"] == channel]
    return any((one["rule"], one["level"]) == (rule, level) for line in lines for one in line["notices"])


def _argv(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
