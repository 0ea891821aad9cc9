"""What is swept: an action, what it begins with, and its laws.

Each is made below `memory`; `disk` is for what has to lie on a file system that keeps times.
"""

import os
import shutil
import time
from typing import Any, NamedTuple

from aquad.stream.gpg.keys import Keys
from tests.faults.harness.child import run_struck
from tests.faults.harness.laws import Laws
from tests.faults.harness.removing import GONE, IN_TRASH, LISTED, RemovalLaws, Removing
from tests.faults.harness.seam import Fault, Kill
from tests.faults.harness.stacks import (
    WORDS,
    Founding,
    RestoringConfigs,
    RestoringElsewhere,
    RestoringVolume,
    Stack,
    fill,
    volume,
)
from tests.keys import secret_file


class Case(NamedTuple):
    """`live`: what it changes outside of the repository is swept too."""

    action: Any
    pristine: Any
    laws: Laws
    live: bool = False


def full(memory, disk):
    """Of a dump and a small volume."""
    fill(memory / "live", b"of a volume")
    stack = Stack(WORDS, volume(memory / "live"))
    top = stack.make(memory / "pristine")
    return Case(stack.back_up, top, Laws(stack, top, adds=1))


def copying(memory, disk):
    """Of a volume whose members are copied from the archive before."""
    live = disk / "live"
    fill(live, b"of a volume")
    for number in range(3):
        (live / f"blocks {number}").write_bytes(os.urandom(200_000))
    time.sleep(0.1)
    stack = Stack(volume(live))
    top = stack.make(memory / "pristine")
    shutil.copytree(top, memory / "look")
    assert stack.back_up(memory / "look" / "backups") == "success"
    (component,) = stack.open(memory / "look" / "backups").catalog().find("latest").components
    assert component.facts["reused"] > 5, "put the tests' temporary directory on ext4, XFS or btrfs"
    return Case(stack.back_up, top, Laws(stack, top, adds=1))


def encrypted(memory, disk):
    stack = Stack(keys=_keys(memory), encryption="passphrase")
    top = stack.make(memory / "pristine")
    laws = Laws(stack, top, adds=1)
    stack.end()
    return Case(stack.back_up, top, laws)


def verifying(memory, disk):
    stack = Stack()
    top = stack.make(memory / "pristine", 2)
    return Case(stack.verify, top, Laws(stack, top))


def archiving(memory, disk):
    """A weekly archive of a dump and a small volume."""
    fill(memory / "live", b"of a volume")
    stack = Stack(WORDS, volume(memory / "live"))
    top = stack.make(memory / "pristine")
    return Case(stack.archive, top, Laws(stack, top, adds=1))


def restoring_volume(memory, disk):
    stack = RestoringVolume()
    top = stack.make(memory / "pristine")
    return Case(stack.restore, top, Laws(stack, top, also=stack.law), live=True)


def restoring_elsewhere(memory, disk):
    stack = RestoringElsewhere(memory)
    top = stack.make(memory / "pristine")
    return Case(stack.restore_afresh, top, Laws(stack, top, also=stack.law))


def restoring_configs(memory, disk):
    stack = RestoringConfigs()
    top = stack.make(memory / "pristine")
    return Case(stack.restore, top, Laws(stack, top, also=stack.law), live=True)


def discarding(memory, disk):
    stack = RestoringVolume()
    top = stack.make(memory / "pristine")
    assert stack.restore(top / "backups") == "success"

    def nothing_left(top, ended, breaks):
        if ended.outcome == "success" and os.listdir(top / "backups" / "aside"):
            breaks("lies", "it said success, and something is left in aside/")

    return Case(stack.discard, top, Laws(stack, top, also=nothing_left))


def changing_encryption(memory, disk):
    stack = Stack(keys=_keys(memory))
    top = stack.make(memory / "pristine")
    laws = Laws(stack, top, changes_marker=True)
    stack.end()
    return Case(stack.change_encryption, top, laws)


def founding(memory, disk):
    top = memory / "pristine"
    top.mkdir()
    stack = Founding()
    return Case(stack.found, top, Laws(stack, top))


def pruning(memory, disk):
    """Two go to the trash, one out of it, and a report goes."""
    stack = Removing(memory)
    top = stack.make(memory / "pristine")
    after = {**dict.fromkeys(stack.old, IN_TRASH), stack.trashed: GONE}
    return Case(stack.prune, top, RemovalLaws(stack, top, stack.prune, after))


def taking_back(memory, disk):
    stack = Removing(memory)
    top = stack.make(memory / "pristine")
    return Case(stack.take_back, top, RemovalLaws(stack, top, stack.take_back, {stack.trashed: LISTED}))


def emptying(memory, disk):
    stack = Removing(memory)
    top = stack.make(memory / "pristine")
    return Case(stack.empty, top, RemovalLaws(stack, top, stack.empty, {stack.trashed: GONE}))


def recovering_from_pruning(memory, at):
    """From a pruning that was killed at a call; None when it has fewer calls."""
    whole = pruning(memory, memory)
    if not run_struck(whole.action, whole.pristine / "backups", Kill(at)).killed:
        return None
    return Case(whole.laws.stack.recover, whole.pristine, whole.laws.of_recovery())


def recovering(memory, at):
    """From a full run that was killed at a call; None when it has fewer calls."""
    whole = full(memory, memory)
    if not run_struck(whole.action, whole.pristine / "backups", Kill(at)).killed:
        return None
    stack = Stack()
    return Case(stack.recover, whole.pristine, Laws(stack, whole.pristine))


def calls_of_a_full_run(memory):
    whole = full(memory, memory)
    return run_struck(whole.action, whole.pristine / "backups", Fault()).calls


def _keys(directory):
    return Keys(passphrase_file=secret_file(directory / "passphrase", "x"))


ALL = (
    full,
    copying,
    encrypted,
    verifying,
    archiving,
    restoring_volume,
    restoring_elsewhere,
    restoring_configs,
    discarding,
    changing_encryption,
    founding,
    pruning,
    taking_back,
    emptying,
)
