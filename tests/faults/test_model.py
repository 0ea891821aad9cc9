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
from aquad.repository.history import History
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
EXAMPLES = 70
STEPS = 20
WHO_HOLDS_IT = 3
"""The call that writes into the lock who holds it."""

picks = st.integers(0, 999)
near_picks = st.integers(0, 3) | picks
faults = st.builds(
    Fault,
    percent=st.integers(0, 105) | st.integers(55, 85),  # from the first rename to the last line of a full run
    code=st.sampled_from([KILL, errno.ENOSPC, errno.EIO]),
    lasting=st.booleans(),
    torn=st.booleans(),
)
sometimes_faults = st.one_of(st.none(), st.none(), faults)
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
    @initialize(mode=st.sampled_from(["off", "off", "off", "passphrase"]), seconds=st.sampled_from([0, 1]))
    def begin(self, mode, seconds):
        """`seconds`: between two jobs."""
        self.encrypting, self.verified, self.seconds = mode != "off", {}, seconds
        if self.encrypting:
            self.attempt_change(mode, None)
        self.live.mkdir()
        for number, name in enumerate(["a", "b", "d/e"]):
            change(self.live, "write", name, 700, number)
        self.back_up("none")

    @rule(broken=st.sampled_from(["none", "none", "none", "words", "data", "both"]))
    def back_up(self, broken):
        """Of what is good."""
        previous = self.memory.latest("data", self.known_to_be_damaged())
        rotten = self.memory.damaged(previous, "data") if previous else set()
        outcome, sealed = self.attempt("full", None, lambda: self.full(broken))
        failed = {"none": [], "both": ["words", "data"]}.get(broken, [broken])
        assert drafts(self.root) == {}
        assert (sealed is None) == (broken == "both")
        assert sealed is None or [c["name"] for c in sealed["components"] if c["outcome"] == "failed"] == failed
        assert outcome in {"success", "warning"} or failed
        assert outcome != "warning" or rotten
        if rotten and not failed and not previous.encrypted and self.mode == "off":
            archive, index = previous.own["data"]
            assert outcome == "warning" or not (archive not in self.memory.disk or index in rotten)

    def known_to_be_damaged(self):
        """By the journal: nothing is copied from those."""
        return History.of(self.repository.journal.entries()).damaged

    @rule(which=st.sampled_from([0, 0, 0, 1]), place=picks)
    def back_up_after_rot(self, which, place):
        """What rots in an archive, or in its index, does not come into the next."""
        newest = self.memory.latest("data", self.known_to_be_damaged())
        if newest and newest.own["data"][which] in self.memory.disk:
            self.flip(newest.own["data"][which], place)
        self.back_up("none")

    @rule(fault=faults, broken=st.sampled_from(["none", "none", "none", "words", "data", "both"]))
    def back_up_with_an_error(self, fault, broken):
        outcome, sealed = self.attempt("full", fault, lambda: self.full(broken))
        assert sealed or outcome not in {"success", "warning"}

    @rule(fault=faults)
    def back_up_and_die(self, fault):
        outcome, sealed = self.attempt("full", fault._replace(code=KILL), self.full)
        assert sealed or outcome == "killed"

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

    @rule(pick=near_picks)
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

    @rule(pick=near_picks, fault=sometimes_faults)
    @with_one_of(lambda self: self.with_data()[::-1])
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

    @rule(how=st.sampled_from(["flip", "flip", "flip", "truncate", "append"]), pick=near_picks, place=picks)
    @with_one_of(World.present)
    def file_rots(self, path, how, place):
        stored = self.memory.disk[path]
        match how:
            case "flip":
                self.flip(path, place)
            case "truncate":
                self.put(path, stored[: place * len(stored) // 1000])
            case "append":
                self.put(path, stored + b"x")

    @rule(what=st.sampled_from(["file", "file", "manifest", "backup"]), pick=near_picks)
    @with_one_of(World.present)
    def somebody_deletes(self, path, what):
        owner = self.memory.owner(path)
        for gone in {"file": [path], "manifest": [owner.manifest], "backup": owner.files}[what]:
            self.put(gone, None)

    @rule(alike=st.booleans(), pick=near_picks, another=picks)
    @with_one_of(World.present)
    def somebody_swaps(self, path, alike, another):
        """Two files; with `alike` those of the same name in two backups."""
        mine, theirs = self.memory.owner(path), picked([*self.memory.backups.values()], another)
        other = path.replace(mine.id[:15], theirs.id[:15]) if alike else picked(self.present(), another)
        if other in self.memory.disk:
            one, two = self.memory.disk[path], self.memory.disk[other]
            self.put(path, two)
            self.put(other, one)

    @rule(pick=near_picks)
    @with_one_of(lambda self: self.memory.broken())
    def somebody_mends(self, broken):
        """It is brought from another copy of the repository."""
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
