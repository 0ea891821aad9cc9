"""B8, B9, B10: whatever is changed in a stored file or a manifest is found; only the damaged file is read again."""

import random

import pytest

from aquad.core.errors import Damaged
from aquad.jobs.verify import verify
from aquad.repository import manifest
from aquad.repository.reader import check_file
from aquad.stream.artifact import Silent
from aquad.stream.gpg.keys import Keys
from tests.faults.harness.counts import ALL
from tests.faults.harness.stacks import WORDS, Stack, fill, volume
from tests.keys import secret_file

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800 if ALL else 300)]
CHANGES = 6000 if ALL else 600
BLOCK = 4096


def flip(content, at, rng):
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def zero(content, at, rng):
    """A block that was lost."""
    start = at // BLOCK * BLOCK
    end = min(start + BLOCK, len(content))
    return content[:start] + bytes(end - start) + content[end:]


def overwrite(content, at, rng):
    """Bytes of elsewhere, misdirected."""
    other = rng.randbytes(min(16, len(content) - at))
    return content[:at] + other + content[at + len(other) :]


def shift(content, at, rng):
    """A byte is lost, and one of nothing comes at the end: the length is right."""
    return content[:at] + content[at + 1 :] + b"\0"


def truncate(content, at, rng):
    return content[:at]


def append(content, at, rng):
    return content + rng.randbytes(1 + at % 5)


EACH = [flip, flip, flip, zero, overwrite, shift, truncate, append]


@pytest.fixture(params=["plain", "encrypted"])
def repository(request, quick, make_case):
    """Two backups of a dump and a volume. `make_case` is asked for its quick passphrase."""
    fill(quick / "live", b"of a volume")
    (quick / "live" / "large").write_bytes(random.Random(2).randbytes(20_000))
    sources = (WORDS, volume(quick / "live"))
    stack = Stack(*sources)
    if request.param == "encrypted":
        stack = Stack(*sources, keys=Keys(passphrase_file=secret_file(quick / "p", "x")), encryption="passphrase")
    top = stack.make(quick / "pristine", 2)
    yield stack.open(top / "backups")
    stack.end()


def test_B8_B9_every_change_of_stored_bytes_is_found(repository, counts):
    rng = random.Random(8)
    files = [file for backup in repository.catalog().backups for file in backup.files()]
    contents = [(repository.root / file.path).read_bytes() for file in files]
    assert {path.path.rpartition(".")[2] for path in files} <= {"gz", "gpg", "txt"}
    for number in range(CHANGES):
        which = number % len(files)
        file, good = files[which], contents[which]
        change = rng.choice(EACH)
        bad = change(good, rng.randrange(len(good)), rng)
        if bad == good:
            continue
        found = is_found(repository.root, file, bad)
        counts.fault("corruptions")
        if not found:
            counts.breaks("lies", f"{change.__name__} in {file.path} was not found")
        (repository.root / file.path).write_bytes(good)
    for file, other in zip(files, contents[1:] + contents[:1], strict=True):
        good = (repository.root / file.path).read_bytes()
        counts.fault("corruptions")
        if not is_found(repository.root, file, other):
            counts.breaks("lies", f"another file in the place of {file.path} was not found")
        (repository.root / file.path).write_bytes(good)
    verdicts = verify(repository, repository.catalog().backups, "content", Silent())
    assert [verdict.problems for verdict in verdicts] == [[], []]
    counts.check()


def is_found(root, file, bad):
    (root / file.path).write_bytes(bad)
    try:
        check_file(root, file, read=True)
    except Damaged as error:
        return file.path in str(error)
    return False


def test_B10_every_byte_of_a_manifest(repository, counts):
    rng = random.Random(10)
    for backup in repository.catalog().backups:
        good = repository.layout.manifest(backup.id).read_bytes()
        for at in range(0, len(good), 1 if ALL else 40):
            for change in (flip, truncate):
                bad = change(good, at, rng)
                counts.fault("corruptions")
                try:
                    manifest.parse(bad, backup.id)
                except Damaged:
                    continue
                counts.breaks("lies", f"{change.__name__} at byte {at} of the manifest of {backup.id} was not found")
    counts.check()


def test_B9_swapped_manifests(repository, counts):
    first, second = (repository.layout.manifest(backup.id) for backup in repository.catalog().backups)
    ours, theirs = first.read_bytes(), second.read_bytes()
    first.write_bytes(theirs), second.write_bytes(ours)
    counts.fault("corruptions", 2)
    catalog = repository.catalog()
    assert (len(catalog.backups), len(catalog.unreadable)) == (0, 2)
