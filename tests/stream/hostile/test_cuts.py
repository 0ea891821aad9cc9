"""G4: an archive cut, doubled or changed at every block; what is found is damage, and never an error without a type."""

import subprocess
import zlib
from itertools import accumulate

import pytest

from aquad.core.errors import Damaged
from aquad.repository.reader import FileReader
from tests.fuzz.targets import packed
from tests.keys import NO_KEYS
from tests.stream.hostile.forge import BLOCK, END, gz
from tests.stream.hostile.world import assert_printable, attempt, extracted, make_outside, seen


class Cutter:
    """A real archive of one of every kind of member, and what is restored of its changed copies."""

    def __init__(self, top):
        self.top = top
        make_outside(top)
        path, lines, _ = packed(top)
        self.stored = path.read_bytes()
        self.edges = [line["offset"] for line in lines]
        self.pieces = [zlib.decompress(self.stored[line["offset"] :][: line["length"]], 31) for line in lines]
        self.plain = b"".join(self.pieces) + END
        self.before = seen(top)

    def restore(self, stored):
        path, target = self.top / "cut.tar.gz", self.top / "target"
        path.write_bytes(stored)
        target.mkdir()
        facts, error = attempt(lambda: extracted(FileReader(path, NO_KEYS), target))
        subprocess.run(["rm", "-rf", target, path], check=True)
        after = seen(self.top)
        del after[b"."], self.before[b"."]
        assert after == self.before
        self.before = seen(self.top)
        assert_printable(error, facts)
        return error

    @property
    def blocks(self):
        return range(0, len(self.plain), BLOCK)


@pytest.fixture(scope="module")
def cutter(tmp_path_factory):
    return Cutter(tmp_path_factory.mktemp("cuts"))


def test_as_it_is_it_comes_back(cutter):
    assert cutter.restore(gz(cutter.plain)) is None
    assert cutter.restore(cutter.stored) is None
    assert len(cutter.blocks) > 20


def test_G4_cut_at_every_block_it_is_damaged(cutter):
    assert [at for at in cutter.blocks if not isinstance(cutter.restore(gz(cutter.plain[:at])), Damaged)] == []


def test_G4_cut_within_every_block_it_is_damaged(cutter):
    found = [cutter.restore(gz(cutter.plain[: at + 1 + at % 511])) for at in cutter.blocks]
    assert [error for error in found if not isinstance(error, Damaged)] == []


def test_G4_cut_at_every_gzip_member_it_is_damaged(cutter):
    """Every prefix is whole gzip, and whole members of tar."""
    found = [cutter.restore(cutter.stored[:at]) for at in cutter.edges]
    assert [error for error in found if not isinstance(error, Damaged)] == []


@pytest.mark.parametrize(
    "junk", [b"x", b"\0" * 511 + b"x", b"ustar" * 200, END + b"x"], ids=["byte", "block", "text", "zeros"]
)
def test_G4_what_follows_the_end_is_damage(cutter, junk):
    assert isinstance(cutter.restore(gz(cutter.plain + junk)), Damaged)
    assert isinstance(cutter.restore(cutter.stored + gz(junk)), Damaged)
    assert isinstance(cutter.restore(cutter.stored + junk), Damaged)


def test_G4_joined_with_itself_anywhere_but_at_a_header_it_is_damaged(cutter):
    found = {at: cutter.restore(gz(cutter.plain[:at] + cutter.plain)) for at in cutter.blocks if at}
    ends = set(accumulate(map(len, cutter.pieces)))
    assert {found[at] for at in ends} == {None}, "members that come twice are but a longer archive"
    assert sum(isinstance(error, Damaged) for error in found.values()) > len(ends)


@pytest.mark.parametrize("how", ["lost", "twice", "zeros", "noise"])
def test_G4_a_block_changed_ends_in_a_typed_error_or_in_nothing_worse(cutter, how):
    noise = bytes(range(1, 129)) * 4
    become = {
        "lost": lambda _: b"",
        "twice": lambda block: block * 2,
        "zeros": lambda _: bytes(BLOCK),
        "noise": lambda _: noise,
    }
    errors = 0
    for at in cutter.blocks:
        block = cutter.plain[at : at + BLOCK]
        changed = cutter.plain[:at] + become[how](block) + cutter.plain[at + BLOCK :]
        errors += cutter.restore(gz(changed)) is not None
    assert errors >= len(cutter.pieces) - 2
