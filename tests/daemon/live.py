"""A live daemon of a small stack with a real PostgreSQL, as a process."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.cli.test_commands import Stack
from tests.servers.ports import free_port
from tests.small import journal

SCHEDULE = """
[schedule]
full = "0 HOUR * * *"
weekly = "off"
cleanup = "off"
verify = "off"
postgres = "off"
[limits]
retry_delay = "2s"
stop = "6s"
"""


class Live(Stack):
    """`full` is the only job, and its next slot is far away: what runs is the first full backup, and its retries."""

    def __init__(self, top, server):
        super().__init__(top, server)
        hour = (time.gmtime().tm_hour + 12) % 24
        text = self.settings.read_text().replace("[postgres]", '[postgres]\ndatabases = ["shop"]')
        text = text.replace("127.0.0.1:9480", "off")
        self.settings.write_text(text + SCHEDULE.replace("HOUR", str(hour)))

    @contextmanager
    def daemon(self, *, script="", env=None, prefix=()):
        """`script`: Python that is run in the daemon's process before it begins."""
        code = f"import sys\n{script}\nfrom aquad.cli import main\nmain()"
        command = [*prefix, sys.executable, "-c", code, "-c", str(self.settings), "serve"]
        log = (self.top / "daemon.log").open("a")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            log.close()

    def listens(self):
        """Have it serve HTTP; returns the address."""
        port = free_port()
        self.settings.write_text(self.settings.read_text().replace('listen = "off"', f'listen = "127.0.0.1:{port}"'))
        return f"http://127.0.0.1:{port}"

    def log(self):
        return (self.top / "daemon.log").read_text()

    def start(self, *arguments):
        """A command that goes on beside the test."""
        command = [sys.executable, "-m", "aquad", "-c", str(self.settings), *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def lines(self, event):
        if not (self.backups / "state" / "audit.jsonl").exists():
            return []
        return [line for line in journal(self.backups) if line["event"] == event]

    def wait_for(self, what, seconds=60):
        """Until `what` returns something true; that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s in vain\n{self.log()}\n{self._tail()}")

    def wait_for_line(self, event, number=1, seconds=60):
        return self.wait_for(lambda: self.lines(event)[number - 1 :], seconds)[0]

    def _tail(self):
        path = self.backups / "state" / "audit.jsonl"
        return "".join(path.read_text().splitlines(keepends=True)[-8:]) if path.exists() else "no journal"

    @contextmanager
    def stuck_dump(self):
        """pg_dump waits for a lock as long as this lasts."""
        with self.server.connect("shop") as connection, connection.transaction():
            connection.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            yield


def children(pid):
    """Process ids of all descendants."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def catches(pid, number):
    """Whether it has a handler for a signal: before that, Python itself has just begun."""
    try:
        (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return False
    return bool(int(mask, 16) >> (number - 1) & 1)


def state(pid):
    """R, S, Z, ...; nothing when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def outcomes(lines):
    return [line["outcome"] for line in lines]
