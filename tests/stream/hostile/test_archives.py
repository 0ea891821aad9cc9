"""G1-G4: crafted archives, read from beginning to end as a FILE is. Around the target not a byte and not a time changes."""

import os
import subprocess

import pytest

from aquad.repository.reader import FileReader
from aquad.stream.tarball.unpack import list_members
from tests.keys import NO_KEYS
from tests.stream.hostile import cases, structure
from tests.stream.hostile.world import assert_printable, attempt, extracted, make_outside, names, seen

CASES = [*cases.CASES, *structure.CASES]
MOST_DISK_BYTES = 8 << 20
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def place(tmp_path):
    """Where an archive lies, with the sentinels beside the targets."""
    place = tmp_path / "place"
    make_outside(place)
    yield place
    subprocess.run(["rm", "-rf", place], check=True)


def stored(case, place):
    path = place / "evil.tar.gz"
    path.write_bytes(case.stored if isinstance(case.stored, bytes) else case.stored(os.fsencode(place / "outside")))
    return FileReader(path, NO_KEYS)


def test_there_are_at_least_200_of_them():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.timeout(30)
@by_name
def test_G1_G4_an_archive_does_what_it_may_and_nothing_else(place, case):
    reader = stored(case, place)
    targets = [place / "target", place / "chosen"]
    for target in targets:
        target.mkdir()
        if case.before:
            case.before(target)
    before = seen(place, but=targets)
    for target, options in zip(targets, ({}, {"only": lambda _: True}), strict=True):
        facts, error = attempt(lambda target=target, options=options: extracted(reader, target, **options))
        assert seen(place, but=targets) == before
        assert_printable(error, facts)
        there, disk_bytes = names(target)
        assert disk_bytes < MOST_DISK_BYTES
        choices = case.expected if isinstance(case.expected, tuple) else (case.expected,)
        became = there if error is None else error
        assert any(became == one if isinstance(one, set) else isinstance(became, one) for one in choices), became


@pytest.mark.timeout(30)
@by_name
def test_G1_G4_looking_at_an_archive_writes_nothing(place, case):
    reader = stored(case, place)
    before = seen(place)
    members, error = attempt(lambda: list(list_members(reader, "evil.tar.gz")))
    assert seen(place) == before
    assert error is None or error.message.isprintable()
    assert error is None or not isinstance(case.expected, set)
    assert {b"", b".", b".."}.isdisjoint(part for member in members or [] for part in member.path)
