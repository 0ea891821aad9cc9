"""The stack of a soak: a small PostgreSQL, a volume, a checkout; and the accidents that happen to it."""

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from aquad.core.clock import from_text, to_text
from aquad.core.errors import RepositoryWriteFailed
from aquad.core.process import Supervised
from aquad.daemon.keeper import Keeper
from aquad.daemon.notifier import Notifier
from aquad.demo import playground
from aquad.demo.ahead import Ahead
from aquad.jobs.slots import ORDER
from aquad.jobs.trail.audit import verify_audit
from aquad.observe.metrics import Counters
from aquad.repository.history import History
from aquad.wiring import Wiring
from tests.servers.postgres import Server
from tests.soak import told

DISK_BYTES = 96 << 20
SETTINGS = """
stack = "soak"
time_zone = "Europe/Berlin"
[repository]
path = "{top}/disk/backups"
minimum_free = "5%"
[encryption]
mode = "off"
[limits]
retry_delay = "5m"
[postgres]
host = "127.0.0.1"
port = {port}
password_file = "{password}"
bin_dir = "{bin}"
databases = ["soak"]
[configs]
root = "{top}/checkout"
[volumes.data]
path = "{top}/volume"
[web]
listen = "off"
"""


class Quiet:
    """A log that counts."""

    def __init__(self):
        self.counts = Counter()

    def info(self, event, **_):
        self.counts[event] += 1

    warning = error = info


class World:
    """`accidents`: how often, in a thousand slots, something goes wrong; by its name."""

    def __init__(self, top: Path, server: Server, begin: datetime, seed: int, accidents: dict[str, int]):
        self.top, self.server, self.accidents = top, server, accidents
        self.dice = random.Random(seed)
        self.log = Quiet()
        self.happened = Counter()
        self.rotten = set()
        self._remembered = 0
        self.memory = []
        self.clock = Ahead(begin - datetime.now(UTC))
        self._disk()
        playground.make_checkout(top / "checkout")
        (top / "volume").mkdir()
        for number in range(20):
            (top / "volume" / f"file{number}").write_bytes(self.dice.randbytes(3000))
        with server.connect() as connection:
            connection.execute("DROP DATABASE IF EXISTS soak WITH (FORCE)")
            connection.execute("CREATE DATABASE soak")
        with server.connect("soak") as connection:
            connection.execute("CREATE TABLE readings AS SELECT i, md5(i::text) FROM generate_series(1, 500) i")
        self.settings = top / "settings.toml"
        self.settings.write_text(
            SETTINGS.format(top=top, port=server.port, password=server.password_file, bin=server.bin) + told.SETTINGS
        )
        self.aquad("init")
        self.keeper = None
        self.begin_daemon()

    @property
    def backups(self):
        return self.top / "disk" / "backups"

    @property
    def ballast(self):
        """What fills the disk, for one slot or two."""
        return self.top / "disk" / "ballast"

    def wiring(self):
        wiring = Wiring.load(self.settings, "daemon")
        wiring.clock = self.clock
        return wiring

    def argv(self, *command):
        by = str(self.clock.by.total_seconds())
        return [sys.executable, "-m", "aquad.demo.ahead", by, "-c", str(self.settings), *command]

    def aquad(self, *command):
        """By hand; returns the exit code."""
        done = subprocess.run(self.argv(*command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    def begin_daemon(self):
        wiring = self.wiring()
        self.keeper = Keeper(wiring, wiring.repository(), self._start, self.log)
        counters = Counters(CollectorRegistry(), ORDER, told.CHANNELS)
        self.post = told.Post(self.dice)
        self.notifier = Notifier(self.post.send, counters, self.log, self.clock.now())

    def tell(self, trouble=""):
        """As the daemon's loop does it; what was refused once is tried again later."""
        now = self.told_at = self.clock.now()
        seen = self.wiring().picture(self.keeper.repository, now).overview
        for _ in range(8):
            look_at = self.notifier.tick(self.wiring(), self.keeper, seen, trouble)
            if look_at > now and self.notifier.child is None:
                return

    def live_until(self, end):
        while self.clock.now() < end:
            self._change_data()
            self._something_happens()
            self._tick()
            self._wait_for_run()
            coming = self.wiring().coming(self.clock.now(), 1)[0][1]
            retry_at = self._tick()
            self.tell()
            at = min(coming, retry_at) if retry_at else coming
            self.clock.by += max(at - self.clock.now(), timedelta(0))

    def settle(self):
        """An hour in which nothing happens: what was refused is told, and what ended just now is over."""
        for _ in range(4):
            self.clock.by += timedelta(minutes=16)
            self._tick()
            self._wait_for_run()
            self._tick()
            self.post.refuses = 0
            self.tell()

    def end(self):
        self._end_daemon(crash=False)
        self._unmount()

    def check(self):
        """Every run ended, no good backup was lost, the journal is whole."""
        repository = self.wiring().repository()
        entries = list(repository.journal.entries())
        self._remember(entries)
        catalog, history = repository.catalog(), History.of(entries)
        assert not catalog.unreadable
        audit = verify_audit(repository.journal, catalog)
        assert audit.problems == []
        started = {e["run"] for e in entries if e["event"] == "run_started"}
        ended = Counter(e["run"] for e in entries if e["event"] == "run_ended")
        assert {run for run in started if ended[run] != 1} == set()
        there = {backup.id for backup in catalog.backups}
        sealed = {e["backup"] for e in entries if e["event"] == "backup_sealed"}
        pruned = {e["backup"] for e in entries if e["event"] == "pruned"}
        assert sealed - pruned - there == set()
        good = [backup for backup in catalog.backups if backup.id not in history.damaged]
        for component in ("configs", "data", "postgres"):
            assert any(backup.component(component) for backup in good)
        return entries, catalog, history

    def lines(self):
        """Every line of the journal: it forgets what is older than three months, and whoever judges does not."""
        return [json.loads(line) for line in (self.top / "lines").read_text().splitlines()]

    def _remember(self, entries):
        """In a file, for the memory is the daemon's, and measured."""
        with (self.top / "lines").open("a") as file:
            for entry in entries:
                if entry["line"] > self._remembered:
                    file.write(json.dumps(entry) + "\n")
                    self._remembered = entry["line"]

    def _tick(self):
        """As the daemon's loop does it: what cannot be written now is tried again, when somebody has made room."""
        self.memory.append(_resident_bytes())
        while True:
            try:
                return self.keeper.tick()
            except RepositoryWriteFailed as error:
                self.happened["journal not written"] += 1
                self.tell(str(error))
                self._pass(self.dice.uniform(0.02, 2))
                self.ballast.unlink(missing_ok=True)

    def _start(self, _wiring, turn):
        slot = ["--slot", to_text(turn.slot.at), "--attempt", str(turn.attempt)]
        return Supervised(self.argv("-q", "run", turn.slot.job, *slot))

    def _wait_for_run(self):
        while self.keeper.running is not None:
            child = self.keeper.running.child
            if self._chance("kill a run"):
                select.select([child.pidfd], [], [], self.dice.uniform(0.1, 1.5))
                child.signal(signal.SIGKILL)
            elif self._chance("kill the daemon"):
                select.select([child.pidfd], [], [], self.dice.uniform(0.1, 1.5))
                self._end_daemon(crash=True)
                self._pass(self.dice.choice([0.1, 0.5, 3, 20, 60]))
                self.begin_daemon()
                self._tick()
                continue
            select.select([child.pidfd], [], [], 120)
            self._pass(self.dice.uniform(0.01, 0.6))
            self._tick()

    def _end_daemon(self, *, crash):
        running = self.keeper.running
        if running is not None:
            running.child.signal(signal.SIGKILL if crash else signal.SIGTERM)
            select.select([running.child.pidfd], [], [])
        if crash:
            if running is not None:
                running.child.poll()
                running.child.close()
            self.keeper.close()
        else:
            with suppress(RepositoryWriteFailed):  # the loop does the same, and says so in its log
                self.keeper.stopped("SIGTERM")
            self.keeper.close()
        self.keeper = None

    def _something_happens(self):
        if self._chance("stop the daemon"):
            self._end_daemon(crash=False)
            self._pass(self.dice.choice([0.01, 0.2, 2, 30, 90]))
            self.begin_daemon()
        if self._chance("hold"):
            self.aquad("hold", "--for", f"{self.dice.randrange(1, 13)}h", "soak")
        if self._chance("by hand"):
            job = self.dice.choice([("run", "full"), ("run", "postgres"), ("run", "verify"), ("prune", "--yes")])
            assert self.aquad(*job) in {0, 1, 3, 14}
        if self._chance("rot"):
            self._rot()
        if self.ballast.exists():
            self.ballast.unlink()
        elif self._chance("full disk"):
            left = os.statvfs(self.ballast.parent).f_bavail * os.statvfs(self.ballast.parent).f_frsize
            self.ballast.write_bytes(bytes(max(0, left - self.dice.choice([0, 20_000, 200_000]))))

    def _rot(self):
        """One bit of one stored file of a backup that is not the newest of its kind."""
        catalog = self.wiring().repository().catalog()
        backup = self.dice.choice(catalog.backups[5:] or catalog.backups)
        path = self.backups / self.dice.choice(backup.files()).path
        stored = bytearray(path.read_bytes())
        stored[self.dice.randrange(len(stored))] ^= 1 << self.dice.randrange(8)
        path.write_bytes(stored)
        self.rotten.add((backup.id, self.clock.now()))

    def _change_data(self):
        for _ in range(self.dice.randrange(4)):
            path = self.top / "volume" / f"file{self.dice.randrange(20)}"
            path.write_bytes(self.dice.randbytes(self.dice.randrange(2000, 4000)))
        with self.server.connect("soak") as connection:
            connection.execute("INSERT INTO readings VALUES (1, 'x')")

    def _chance(self, name):
        if self.dice.randrange(1000) >= self.accidents.get(name, 0):
            return False
        self.happened[name] += 1
        return True

    def _pass(self, hours):
        self.clock.by += timedelta(hours=hours)

    def _disk(self):
        """A small disk of its own, that can be full; as an ordinary user a directory, and it is never full."""
        disk = self.top / "disk"
        disk.mkdir()
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "none", disk], check=True)
        else:
            self.accidents = {**self.accidents, "full disk": 0}

    def _unmount(self):
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", self.top / "disk"], check=True)


def _resident_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def uncovered(rule, job, entries, begin, end):
    """Slots between two moments and how many endings each has, where that is not one."""
    endings = [e for e in entries if e["event"] == "slot_ended" and e["job"] == job]
    counts = Counter()
    for entry in endings:
        last = from_text(entry["slot"])
        first = from_text(entry.get("first", entry["slot"]))
        for slot in rule.slots(first - timedelta(microseconds=1), last):
            counts[slot] += 1
    return {slot: counts[slot] for slot in rule.slots(begin, end) if counts[slot] != 1}
