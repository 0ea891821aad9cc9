"""A repository, the live data it protects, and the jobs on them, each with a fault if wanted."""

import os
import select
import shutil
import signal
import tempfile
from datetime import UTC
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine

from aquad.core.errors import AquadError
from aquad.jobs.full import Space, take_full
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import Limits, run_job
from aquad.repository.repository import Repository
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys
from tests.faults.model_disk import KILL, QuickOs, standing_for_os, tree_on_disk
from tests.faults.model_memory import MARKER, Memory, check_content
from tests.keys import secret_file
from tests.small import FakeClock, Words
from tests.stream.test_tarball import fingerprint

CODES = {"success": 0, "warning": 3, "failed": 1, "raised": 4}


GIVES_UP_SECONDS = 20
"""For who halts with the journal's lock, and should not have let anybody so far."""


class Child:
    """A process that does some work."""

    def __init__(self, work):
        self.id = os.fork()
        if self.id == 0:
            code = 70
            try:
                code = CODES[work()]
            finally:
                os._exit(code)

    def ended(self):
        """How its work ended, once it has."""
        _, status = os.waitpid(self.id, 0)
        self.id = 0
        if os.WIFSIGNALED(status):
            return "killed"
        return next(name for name, code in CODES.items() if code == os.WEXITSTATUS(status))


class Halted(Child):
    """One that stops at a call until it is told to go on."""

    def __init__(self, at, work):
        (self._its, self._go), (self._said, self._say) = os.pipe(), os.pipe()

        def halt(_name, number):
            if number == at:
                os.write(self._say, b"x")
                select.select([self._its], [], [], GIVES_UP_SECONDS)

        def halting():
            with standing_for_os(QuickOs(halt)):
                return work()

        super().__init__(halting)
        os.close(self._say)

    def is_halted(self):
        """Wait until it has stopped, or has ended before that."""
        return os.read(self._said, 1) == b"x"

    def end(self, *, killed):
        if killed:
            os.kill(self.id, signal.SIGKILL)
        os.write(self._go, b"x")
        return self.ended()

    def close(self):
        if self.id:
            self.end(killed=True)
        for fd in (self._its, self._go, self._said):
            os.close(fd)


class World(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="aquad-model-"))
        self.root, self.live = self.top / "backups", self.top / "live"
        self.gpg = Gpg(Keys(passphrase_file=secret_file(self.top / "passphrase", "x")))
        self.clock = FakeClock()
        self.repository = Repository.create(
            self.root, stack="model", encryption="off", clock=self.clock, zone=UTC, gpg=self.gpg
        )
        self.memory = Memory(self.root)
        self.words = b"the first words\n"
        self.seconds = 0
        self.calls = {"full": 90, "restore": 40, "discard": 20, "encrypt": 20}
        self.ended = True
        """Whether every run that was started has to have its outcome by now."""

    def teardown(self):
        self.gpg.end()
        shutil.rmtree(self.top)

    @property
    def mode(self):
        return self.repository.marker.encryption.mode

    def with_data(self):
        """Backups of the volume that can be asked for, the damaged ones first."""
        there = [backup for backup in self.memory.listed() if "data" in backup.own]
        return sorted(there, key=lambda backup: not self.memory.damaged(backup, "data"))

    def present(self):
        """Files of backups, those of the newest first."""
        newest_first = sorted(self.memory.backups.values(), key=lambda backup: -backup.sequence)
        return [
            path for backup in newest_first for path in sorted(backup.files, reverse=True) if path in self.memory.disk
        ]

    def put(self, path, stored):
        """By hand: change a file, or remove it."""
        where = self.root / path
        if stored is None:
            self.memory.disk.pop(path, None)
            where.unlink(missing_ok=True)
            return
        where.parent.mkdir(mode=0o700, exist_ok=True)
        where.write_bytes(stored)
        where.chmod(0o600)
        self.memory.disk[path] = stored

    def flip(self, path, place):
        """One bit of a file, which may be empty."""
        stored = bytearray(self.memory.disk[path])
        if stored:
            stored[place * len(stored) // 1000] ^= 1 << place % 8
        self.put(path, bytes(stored))

    def opened(self, path):
        stored = self.memory.disk[path]
        return b"".join(self.gpg.decrypted(lambda: iter([stored]), path)) if path.endswith(".gpg") else stored

    def attempt(self, job, fault, work, may_change=()):
        """How it ended, and the manifest that it sealed. Without a fault, its errors are raised."""
        outcome = "raised"
        try:
            outcome = self._killed(job, fault, work) if fault and fault.code == KILL else self._done(job, fault, work)
        finally:
            sealed = self.learn(outcome, faulty=fault is not None, may_change=may_change)
        return outcome, sealed

    def learn(self, outcome, *, faulty, may_change=()):
        self.clock.move(self.seconds)
        self.ended = outcome in {"success", "warning", "failed"} or (self.ended and not faulty)
        sealed = self.memory.learn(may_change=may_change, tidy=outcome in {"success", "warning"})
        if sealed:
            remembered = self.memory.remember(sealed, fingerprint(self.live))
            check_content(self.repository, remembered, tree_on_disk(self.live), self.words)
        return sealed

    def _done(self, job, fault, work):
        with standing_for_os(fault.double(self.calls[job]) if fault else QuickOs()) as double:
            try:
                outcome = work()
            except AquadError:
                if fault is None:
                    raise
                return "raised"
        if fault is None:
            self.calls[job] = double.number
        return outcome

    def _killed(self, job, fault, work):
        return Child(lambda: self._done(job, fault, work)).ended()

    def run(self, job, work, wait_seconds=5):
        limits = Limits(deadline_seconds=None, stall_seconds=60, wait_seconds=wait_seconds)
        return run_job(self.repository, job, work, clock=self.clock, zone=UTC, limits=limits).outcome

    def full(self, broken="none", wait_seconds=5):
        sources = [
            Words(text=self.words, archive=False, fails=broken in {"words", "both"}),
            self.volume(self.top / "missing" if broken in {"data", "both"} else self.live),
        ]
        return self.run("full", lambda run: take_full(self.repository, sources, run, space=Space()), wait_seconds)

    def attempt_change(self, mode, fault):
        """Of the encryption of new backups."""

        def work():
            with self.repository.writing(run_id="init", command="init", wait_seconds=5):
                self.repository.change_encryption(mode)
            return "success"

        self.attempt("encrypt", fault, work, may_change=[MARKER, f".{MARKER}.new"])

    def volume(self, where):
        return Volume(name="data", path=where, quiesce="none", may_shrink=True, accepted=True)

    def bring_back(self, backup, to):
        def work(run):
            reader = open_backup(self.repository, "data", backup.id, trusted=False)
            target = VolumeTarget(to, None, lambda stamp: self.repository.aside(stamp, "data"))
            return restore(
                self.repository, [Order("data", self.volume(self.live), reader, target)], lambda _: None, run
            )

        return self.run("restore", work)
