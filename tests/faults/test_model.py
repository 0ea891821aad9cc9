"""H6: any jobs, faults and accidents in any order, against a dictionary of what was sealed.

`AQUAD_FAULTS=all` tries twenty times as many orders.
"""

import errno
import functools
import os
import shutil
from contextlib import closing
from datetime import UTC, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aquad.core import filesystem
from aquad.core.errors import AquadError, Damaged, LockHeld, NoSuchBackup
from aquad.jobs.discard import discard
from aquad.repository import layout
from aquad.repository.repository import Repository
from aquad.stream.gpg import gpg as gpg_module
from aquad.stream.tarball import content, pack, reuse
from tests.faults.model_disk import (
    KILL,
    Fault,
    QuickOs,
    change,
    drafts,
    is_below,
    standing_for_os,
    tree_in_tar,
    tree_on_disk,
    wait_for_file_times,
)
from tests.faults.model_memory import (
    check_catalog,
    check_journal,
    check_verdicts,
)
from tests.faults.model_world import Halted, World
from tests.stream.test_tarball import fingerprint

ALL = os.environ.get("AQUAD_FAULTS") == "all"
EXAMPLES = 50
STEPS = 20
WHO_HOLDS_IT = 3
"""The call that writes into the lock who holds it."""

picks = st.integers(0, 999)
ACCIDENTS = ["flip"] * 4 + ["truncate", "append", "delete", "delete manifest", "delete backup", "swap"]

near_picks = st.integers(0, 3) | picks
faults = st.builds(
    Fault,
    percent=st.integers(0, 105) | st.integers(55, 85),  # from the first rename to the last line of a full run
    code=st.sampled_from([KILL, errno.ENOSPC, errno.EIO]),
    lasting=st.booleans(),
    torn=st.booleans(),
)
sometimes_faults = st.none() | faults
changes = st.tuples(
    st.sampled_from(["write", "set back", "append", "remove", "rename", "mode", "link", "symlink"]),
    st.sampled_from(["a", "b", "c", "d/e"]),
    st.sampled_from([0, 1, 500, 512, 3000, 30_000]),
    picks,
)


def picked(choices, number):
    return choices[number % len(choices)]


def with_one_of(choices):
    """A rule for one of what is there, if there is any.

    No precondition: what is there after a fault is not the same each time, and Hypothesis has to draw the same.
    """

    def decorated(function):
        @functools.wraps(function)
        def on_one(self, pick, **rest):
            there = choices(self)
            if there:
                function(self, picked(there, pick), **rest)

        return on_one

    return decorated


class NoServer:
    """No databases are kept aside."""

    def kept_aside(self):
        return []

    def discard(self, name):
        raise AssertionError(name)


class Machine(World):
    @initialize(mode=st.sampled_from(["off", "off", "off", "passphrase"]))
    def begin(self, mode):
        self.encrypting, self.verified = mode != "off", {}
        if self.encrypting:
            self.attempt_change(mode, None)
        self.live.mkdir()
        for number, name in enumerate(["a", "b", "d/e"]):
            change(self.live, "write", name, 700, number)
        self.back_up()

    @rule()
    def back_up(self):
        previous = self.memory.latest("data")
        rotten = self.memory.damaged(previous, "data") if previous else set()
        outcome, sealed = self.attempt("full", None, self.full)
        assert [component["outcome"] == "failed" for component in sealed["components"]] == [False, False]
        assert outcome == "success" or rotten
        if rotten and not previous.encrypted and self.mode == "off":
            archive, index = previous.own["data"]
            assert outcome == "warning" or not (archive not in self.memory.disk or index in rotten)

    @rule(place=picks)
    def back_up_after_rot(self, place):
        """What rots in an archive does not come into the next."""
        newest = self.memory.latest("data")
        if newest and newest.own["data"][0] in self.memory.disk:
            self.flip(newest.own["data"][0], place)
        self.back_up()

    @rule(broken=st.sampled_from(["words", "data", "both"]))
    def back_up_what_is_good(self, broken):
        outcome, sealed = self.attempt("full", None, lambda: self.full(broken))
        assert outcome == "failed"
        assert drafts(self.root) == {}
        if broken == "both":
            assert sealed is None
        else:
            assert [c["name"] for c in sealed["components"] if c["outcome"] == "failed"] == [broken]

    @rule(fault=faults, broken=st.sampled_from(["none", "none", "none", "words", "data", "both"]))
    def back_up_with_a_fault(self, fault, broken):
        outcome, sealed = self.attempt("full", fault, lambda: self.full(broken))
        assert sealed or outcome not in {"success", "warning"}

    @rule(percent=st.integers(0, 100) | st.integers(93, 100), killed=st.booleans())
    def back_up_twice_at_once(self, percent, killed):
        """A child stops in the middle; meanwhile nobody else can begin; then it goes on, or is killed."""
        at = 2 + percent * (self.calls["full"] - 2) // 100  # the first call opens the lock
        with closing(Halted(at, self.full)) as child:
            if child.is_halted():
                before = self.repository.layout.journal.read_bytes()
                holder = "full" if at > WHO_HOLDS_IT else "held by"
                with standing_for_os(QuickOs()), pytest.raises(LockHeld, match=holder):
                    self.full(wait_seconds=0)
                assert self.repository.layout.journal.read_bytes() == before
                old = [b.id for b in self.repository.catalog().backups if b.id in self.memory.backups]
                assert old == [backup.id for backup in self.memory.listed()]
            outcome = child.end(killed=killed)
        sealed = self.learn(outcome, faulty=killed)
        assert sealed or outcome == "killed"

    @rule(pick=picks)
    @with_one_of(World.with_data)
    def restore_elsewhere(self, backup):
        to = self.top / "elsewhere"
        if self.memory.damaged(backup, "data"):
            with pytest.raises(Damaged):
                self.attempt("restore", None, lambda: self.bring_back(backup, to))
            assert not to.exists()
        else:
            assert self.attempt("restore", None, lambda: self.bring_back(backup, to))[0] == "success"
            assert fingerprint(to) == backup.fingerprint
            shutil.rmtree(to)

    @rule(pick=picks, fault=sometimes_faults)
    @with_one_of(World.with_data)
    def restore_in_place(self, backup, fault):
        tree, before = tree_on_disk(self.live), fingerprint(self.live)
        directory = f"aside/{layout.timestamp(self.clock.now(), UTC)}"
        name = f"{directory}/data.tar.gz" + ".gpg" * (self.mode != "off")
        taken = len(tree) > 1 and any(path in self.memory.disk for path in (name, f"{name}.unfinished"))
        may_fail = fault or taken or self.memory.damaged(backup, "data")
        wait_for_file_times()
        try:
            work = lambda: self.bring_back(backup, None)
            outcome, _ = self.attempt("restore", fault, work, may_change=[] if taken else [directory])
        except AquadError:
            assert may_fail
            outcome = "raised"
        else:
            assert outcome == "success" or may_fail
        after = fingerprint(self.live)
        assert after == backup.fingerprint if outcome == "success" else after in (before, backup.fingerprint)
        if len(tree) > 1 and after != before:
            assert tree_in_tar(self.opened(name)) == tree, "what a restore replaced is not kept"

    @rule(pick=st.none() | picks, fault=sometimes_faults)
    def discard_what_is_aside(self, pick, fault):
        there = sorted(os.listdir(self.root / "aside"))
        wanted = None if pick is None or not there else picked(there, pick)
        work = lambda run: discard(self.repository, NoServer(), wanted, lambda _: None, run)
        go = [f"aside/{name}" for name in ([wanted] if wanted else there)]
        try:
            outcome, _ = self.attempt("discard", fault, lambda: self.run("discard", work), may_change=go)
        except NoSuchBackup:
            assert not there
        else:
            assert fault or not any(is_below(path, go) for path in self.memory.disk)
            assert fault or outcome == "success"

    @precondition(lambda self: self.encrypting)
    @rule(mode=st.sampled_from(["off", "passphrase"]), fault=sometimes_faults)
    def change_encryption(self, mode, fault):
        former = self.mode
        self.attempt_change(mode, fault)
        self.open_again()
        assert self.mode == mode or (fault and self.mode == former)

    @rule()
    def open_again(self):
        self.repository = Repository.open(self.root, stack="model", clock=self.clock, zone=UTC, gpg=self.gpg)

    @rule(level=st.sampled_from(["quick", "bytes", "content"]))
    def verify_all(self, level):
        check_verdicts(self.repository, self.memory, level)

    # The world

    @rule(edits=st.lists(changes, min_size=1, max_size=4), words=picks)
    def live_data_changes(self, edits, words):
        wait_for_file_times()
        for edit in edits:
            change(self.live, *edit)
        self.words = b"word %d\n" % words * (words % 7)

    @rule(seconds=st.sampled_from([1, -1, 2, 3600, -3600, 86400, -86400, 400 * 86400, -400 * 86400]))
    def clock_jumps(self, seconds):
        self.clock.moment += timedelta(seconds=seconds)

    # Accidents

    @rule(kind=st.sampled_from(ACCIDENTS), pick=near_picks, place=picks)
    @with_one_of(World.present)
    def accident(self, path, kind, place):
        """The disk, or somebody, changes a file of a backup, takes it away or all of its backup, or swaps it with another."""
        stored = self.memory.disk[path]
        owner = next(backup for backup in self.memory.backups.values() if path in backup.files)
        match kind:
            case "flip":
                self.flip(path, place)
            case "truncate":
                self.put(path, stored[: place * len(stored) // 1000])
            case "append":
                self.put(path, stored + b"x")
            case "delete":
                self.put(path, None)
            case "delete manifest":
                self.put(owner.manifest, None)
            case "delete backup":
                for file in owner.files:
                    self.put(file, None)
            case "swap":
                other = picked(self.present(), place)
                self.put(path, self.memory.disk[other])
                self.put(other, stored)

    @rule(pick=near_picks)
    @with_one_of(lambda self: self.memory.broken())
    def file_is_mended(self, broken):
        """Somebody brings it from another copy of the repository."""
        backup, path = broken
        self.put(path, self.memory.backups[backup].files[path])

    @invariant()
    def disk_and_catalog(self):
        check_catalog(self.repository, self.memory)
        if self.memory.disk != self.verified:
            check_verdicts(self.repository, self.memory, "bytes")
            self.verified = dict(self.memory.disk)

    @invariant()
    def journal(self):
        check_journal(self.repository, self.memory, ended=self.ended)


@pytest.mark.faults
@pytest.mark.timeout(3600 if ALL else 300)
def test_H6_any_order_of_jobs_faults_and_accidents(monkeypatch):
    monkeypatch.setattr(filesystem, "sync", lambda _fd: None)
    monkeypatch.setattr(reuse, "MARGIN_NS", 0)
    monkeypatch.setattr(reuse, "IN_MEMORY_BYTES", 16_000)
    for module in (content, pack):
        monkeypatch.setattr(module, "CHUNK_BYTES", 8_000)
    quick = tuple("--s2k-count=65536" if word.startswith("--s2k-count") else word for word in gpg_module.SYMMETRIC)
    monkeypatch.setattr(gpg_module, "SYMMETRIC", quick)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES * 20 if ALL else EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not ALL,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
