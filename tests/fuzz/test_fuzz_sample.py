"""G6, N1: a sample of what `python -m tests.fuzz` does at length: what the real code wrote, changed here and there."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXAMPLES = 1000


def changed(target):
    """Seeds of a target after a few changes: other bytes, words that mean something, pieces gone, twice, or of another."""
    word = st.one_of(st.sampled_from(target.words), st.binary(min_size=1, max_size=4))
    change = st.tuples(st.sampled_from(["replace", "insert", "cut", "repeat", "splice"]), st.integers(0, 2**16), word)

    def apply(seed, changes, other):
        for kind, where, what in changes:
            at = where % (len(seed) + 1)
            match kind:
                case "replace":
                    seed = seed[:at] + what + seed[at + len(what) :]
                case "insert":
                    seed = seed[:at] + what + seed[at:]
                case "cut":
                    seed = seed[:at] + seed[at + where % 64 :]
                case "repeat":
                    seed = seed[:at] + seed[at : at + 64] * 2 + seed[at + 64 :]
                case "splice":
                    seed = seed[:at] + other[at:]
        return seed[: target.longest]

    seeds = st.sampled_from(target.seeds)
    return st.builds(apply, seeds, st.lists(change, max_size=6), seeds)


@pytest.mark.parametrize("name", TARGETS)
def test_G6_junk_ends_in_a_typed_error(tmp_path_factory, name):
    target = TARGETS[name](tmp_path_factory.mktemp(name))
    assert True in {target.run(seed) for seed in target.seeds}, "what the real code wrote is good"

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(target))
    def feed(junk):
        target.run(junk)

    feed()
