"""A sample of the crafted archives is brought back in place, over a volume that has something in it and a way out of it."""

import os

import pytest

from tests.sources.test_volumes import Stack
from tests.stream.hostile.test_archives import CASES, stored
from tests.stream.hostile.world import assert_printable, attempt, make_outside, names, seen

SAMPLE = [case for case in CASES[::8] if case.before is None]
LIVE = {"live/file": b"live", "sentinel": b"mine"}


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    make_outside(tmp_path)
    (stack.path / "live").mkdir()
    for name, text in LIVE.items():
        (stack.path / name).write_bytes(text)
    for name in ("link", "a", "n", "d"):
        os.symlink("../outside", stack.path / name)
    return stack


def test_the_sample_has_both_kinds():
    assert len(SAMPLE) > 60
    assert sum(isinstance(case.expected, set) for case in SAMPLE) > 5


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_G1_G4_in_place_nothing_outside_is_touched_and_what_was_there_is_kept(stack, case):
    reader = stored(case, stack.top)
    volatile = [stack.path, stack.repository.root]
    before, volume = seen(stack.top, but=volatile), seen(stack.path)
    _, refused = attempt(lambda: stack.plan(reader=reader))
    assert (seen(stack.top, but=volatile), seen(stack.path)) == (before, volume), "a plan touches nothing"
    facts, error = attempt(lambda: stack.restore(reader=reader))
    assert seen(stack.top, but=volatile) == before
    assert stack.kept() == LIVE
    there, _ = names(stack.path)
    if isinstance(case.expected, set):
        assert (refused, error, there) == (None, None, case.expected)
    elif not isinstance(case.expected, tuple):
        assert isinstance(error, case.expected)
    if error:
        assert_printable(error, facts)
        assert f"{stack.path} is incomplete now. What it replaced is in aside/" in error.hint
    else:
        assert all(text.isprintable() for text in facts["skipped"])


@pytest.mark.parametrize("case", SAMPLE[::3], ids=lambda case: case.name)
def test_G1_G4_with_a_pattern_only_what_fits_is_touched(stack, case):
    reader = stored(case, stack.top)
    volatile = [stack.path, stack.repository.root]
    before, live = seen(stack.top, but=volatile), seen(stack.path / "live")
    _, refused = attempt(lambda: stack.plan(only="[!l]*", reader=reader))
    _, error = attempt(lambda: stack.restore(only="[!l]*", reader=reader))
    assert seen(stack.top, but=volatile) == before
    assert seen(stack.path / "live") == live
    assert error is not None or refused is None
    for one in filter(None, (refused, error)):
        assert_printable(one, None)
