"""XFS and btrfs: the second archive shares the blocks of the first, and costs what changed (V5)."""

import os
import random
import subprocess
import time

import pytest

from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from tests.faults.harness.places import Disk
from tests.small import needs_root
from tests.sources.test_unchanged import TWICE, Unchanging


def used_bytes(point):
    os.sync()
    status = os.statvfs(point)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@needs_root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_the_second_archive_costs_what_changed(tmp_path, kind):
    with Disk(kind, None, tmp_path, size=512 << 20) as disk:
        point = disk.mountpoint
        (point / "x").mkdir()
        stack = Unchanging(point / "x")
        rng = random.Random(5)
        for number in range(30):
            (stack.path / f"big{number:02}").write_bytes(rng.randbytes(rng.randrange(1 << 20, 3 << 20)))
        for number in range(400):
            (stack.path / f"small{number:03}").write_bytes(rng.randbytes(rng.randrange(1000, 40_000)))
        time.sleep(TWICE)
        stack.take()
        (stack.path / "big07").write_bytes(rng.randbytes(1 << 20))
        (stack.path / "small222").write_bytes(b"changed")
        before = used_bytes(point)
        stack.take()
        new = used_bytes(point) - before
        size = stack.archive.stat().st_size
        assert stack.manifest.facts["reused"] == 429, "all but the two, and the directory"
        (verdict,) = verify(stack.repository, [stack.repository.catalog().find("latest")], "content", Silent())
        assert verdict.problems == []
        assert new - (1 << 20) < 0.03 * size, f"{new} new bytes on the disk, of {size}"
        subprocess.run(["tar", "--compare", "-zf", stack.archive, "-C", stack.path], check=True)
        shared = stack.archive.read_bytes()
        stack.repository.root.joinpath("volumes_20240802_020000", "data.tar.gz").unlink()
        assert stack.archive.read_bytes() == shared, "blocks live as long as one file needs them"
