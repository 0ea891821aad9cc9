"""H1: SIGKILL at every call, of every job; by default at a sample of them."""

import pytest

from tests.faults.harness import cases
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import Directory
from tests.faults.harness.seam import Kill, Tear
from tests.faults.harness.sweep import chosen, sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if ALL else 300)]


@pytest.mark.parametrize("case", cases.ALL)
@pytest.mark.parametrize("fault", [Kill, Tear], ids=["before", "in_the_middle"])
def test_A1_O2_L4_sigkill(case, fault, make_case, quick, counts):
    case = make_case(case)
    place = Directory(case.pristine, quick / "work")
    ended = sweep(case.action, place, case.laws, counts, fault, limit=6, live=case.live)
    assert sum(one.killed for one in ended) >= len(ended) - 2


def test_A7_sigkill_during_the_recovery_from_a_sigkill(quick, counts):
    (quick / "counted").mkdir()
    for at in chosen(cases.calls_of_a_full_run(quick / "counted"), limit=4):
        directory = quick / f"killed at {at}"
        directory.mkdir()
        case = cases.recovering(directory, at)
        if case is not None:
            sweep(case.action, Directory(case.pristine, quick / "work"), case.laws, counts, Kill, limit=4)
