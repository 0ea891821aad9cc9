"""B7, B8: the disk gives other bytes than were written, or none: `verify --level bytes` names the file, and goes on."""

import os
import random

import pytest

from aquad.core.errors import Damaged
from aquad.jobs.restore import open_backup
from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import needs_root
from tests.faults.harness.rot import bad_disk
from tests.faults.harness.stacks import WORDS, Stack, fill, volume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200 if ALL else 300), needs_root]
POINTS = 600 if ALL else 30


@pytest.fixture
def disk(quick):
    """A repository of two backups of a dump and a volume, on a bad disk."""
    fill(quick / "live", b"of a volume")
    (quick / "live" / "large").write_bytes(os.urandom(300_000))
    stack = Stack(WORDS, volume(quick / "live"))
    top = stack.make(quick / "pristine", 2)
    with bad_disk(top / "backups", quick) as disk:
        disk.stack = stack
        yield disk


def judged(repository):
    """Backup -> its problems."""
    return {v.backup: v.problems for v in verify(repository, repository.catalog().backups, "bytes", Silent())}


@pytest.mark.parametrize("kind", ["flip", "cannot_read"])
def test_B7_B8_what_a_bad_disk_gives_is_found_and_the_other_backup_is_good(disk, kind, counts):
    repository = disk.stack.open(disk.root)
    good, bad = repository.catalog().backups
    rng = random.Random(7)
    assert judged(repository) == {good.id: [], bad.id: []}
    for number in range(POINTS):
        file = bad.files()[number % len(bad.files())]
        getattr(disk, kind)(file.path, rng.randrange(file.stored_bytes))
        counts.fault("corruptions" if kind == "flip" else "read errors")
        problems = judged(repository)
        if not (len(problems[bad.id]) == 1 and f"{file.path}: " in problems[bad.id][0] and problems[good.id] == []):
            counts.breaks("lies", f"{kind} in {file.path}: {problems}")
        if kind == "cannot_read" and "Input/output error" not in problems[bad.id][0]:
            counts.breaks("lies", f"{kind} in {file.path}: it says {problems[bad.id][0]}")
    disk.mend()
    assert judged(repository) == {good.id: [], bad.id: []}
    counts.check()


@pytest.mark.parametrize("kind", ["flip", "cannot_read"])
def test_B7_B8_nothing_is_restored_from_a_bad_file(disk, kind, counts):
    repository = disk.stack.open(disk.root)
    for component in ("words", "data"):
        record = repository.catalog().find("latest").component(component)
        for file in (record.artifacts[0], record.artifacts[0].index or record.artifacts[0]):
            getattr(disk, kind)(file.path, file.stored_bytes // 2)
            counts.fault("corruptions" if kind == "flip" else "read errors")
            with pytest.raises(Damaged, match=file.path):
                open_backup(repository, component, "latest", trusted=False)


def test_B7_a_manifest_that_cannot_be_read_is_shown_and_hides_nothing_else(disk, counts):
    repository = disk.stack.open(disk.root)
    good, bad = repository.catalog().backups
    disk.cannot_read(f"manifests/{bad.id}.json", 0)
    counts.fault("read errors")
    catalog = repository.catalog()
    assert [one.id for one in catalog.backups] == [good.id]
    assert [one.id for one in catalog.unreadable] == [bad.id]
    assert "Input/output error" in catalog.unreadable[0].reason
