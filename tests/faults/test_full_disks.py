"""B1, B3, B4: real disks, quotas and limits that are used up in the middle of a backup, at every amount that is left."""

import errno
import os
import random
import resource
from functools import partial

import pytest

from tests.faults.harness.child import run_struck
from tests.faults.harness.counts import ALL
from tests.faults.harness.laws import Laws
from tests.faults.harness.places import Directory, Disk, Memory, Quota, needs_root
from tests.faults.harness.seam import Fault
from tests.faults.harness.stacks import WORDS, Stack
from tests.small import Words

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800 if ALL else 300)]
LARGE = Words("large", random.Random(1).randbytes(150_000), archive=False)
"""Nothing tells before that it will not fit: the last backup was small."""
PAGE = 4096
SAYS = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EFBIG)),
    "B are free, about",
    "inodes are free",
)


class Hungry(Words):
    """While it is read, somebody else takes all inodes of the repository's disk but `left`."""

    def __init__(self, others, left):
        super().__init__("large", archive=False)
        self._others, self._left = others, left

    def take(self, sink, previous, run):
        self._others.mkdir()
        for number in range(os.statvfs(self._others).f_favail - self._left):
            (self._others / str(number)).touch()
        return super().take(sink, previous, run)


@pytest.fixture
def stack(quick):
    stack = Stack(WORDS)
    stack.make(quick / "pristine")
    return stack


def run_out(place, stack, counts, action, amounts, kind, leave=None, make_room=None):
    """Back up with each of `amounts` left: then too the old backup is good, and with room again all is well."""
    laws = Laws(stack, place.pristine, adds=1)
    outcomes = set()
    for amount in amounts:
        top = place.fresh()
        if leave:
            leave(amount)
        ended = run_struck(partial(action, amount), top / "backups", Fault())
        counts.fault(kind)
        outcomes.add(ended.outcome)
        if ended.outcome == "raised" and not any(words in ended.error for words in SAYS):
            counts.breaks("lies", f"with {amount} left it says {ended.error}")
        if stack.verify(top / "backups") == "failed":
            counts.breaks("losses", f"with {amount} left the old backup does not verify")
        if make_room:
            make_room()
        laws.check(top, ended, counts, f"{amount} left")
    counts.check()
    assert "success" in outcomes, "there was never enough"
    assert outcomes & {"raised", "failed"}, "there was always enough"


def amounts(step, last):
    return [*range(0, last, step if ALL else max(step, last // 6)), last]


def back_up_large(_amount, root):
    return Stack(WORDS, LARGE).back_up(root)


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_B1_the_disk_is_full(kind, stack, quick, counts):
    pristine = quick / "pristine"
    place = Memory(pristine, quick, "size=2m") if kind == "tmpfs" else Disk(kind, pristine, quick, 16 << 20)
    with place as disk:
        run_out(disk, stack, counts, back_up_large, amounts(PAGE, 100 * PAGE), "full disks", disk.leave, disk.make_room)


@needs_root
def test_B3_the_quota_is_used_up(stack, quick, counts):
    with Quota(quick / "pristine", quick) as disk:
        sweep = amounts(8 * PAGE, 160 * PAGE)
        run_out(disk, stack, counts, back_up_large, sweep, "full disks", disk.leave, disk.make_room)


@needs_root
def test_B4_there_are_no_inodes(stack, quick, counts):
    with Memory(quick / "pristine", quick, "size=4m,nr_inodes=300") as disk:
        others = disk.mountpoint / "others"

        def back_up(left, root):
            return Stack(WORDS, Hungry(others, left)).back_up(root)

        def make_room():
            for path in others.iterdir():
                path.unlink()
            others.rmdir()

        run_out(disk, stack, counts, back_up, amounts(1, 20), "full disks", make_room=make_room)


def test_B3_no_more_files_may_be_open(stack, quick, counts):
    def back_up(left, root):
        used = {int(fd) for fd in os.listdir("/proc/self/fd")}
        limit = [number for number in range(1000) if number not in used][left]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return back_up_large(left, root)

    run_out(Directory(quick / "pristine", quick / "work"), stack, counts, back_up, amounts(1, 20), "limits")


def test_B3_no_file_may_be_larger(stack, quick, counts):
    def back_up(left, root):
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return back_up_large(left, root)

    run_out(Directory(quick / "pristine", quick / "work"), stack, counts, back_up, amounts(PAGE, 50 * PAGE), "limits")
