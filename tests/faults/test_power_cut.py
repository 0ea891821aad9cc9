"""H2: the power goes at every call of every job, on ext4 and XFS; what was said to be done before is there afterwards."""

from functools import partial

import pytest

from tests.faults.harness import cases
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import Disk, needs_root
from tests.faults.harness.seam import Cut
from tests.faults.harness.sweep import chosen, sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if ALL else 300), needs_root]
KINDS = ["ext4", "xfs"]


def cut_at_each_call(case, disk, counts, limit):
    """With and without another file that is brought to the disk right before: a job is not alone on its disk."""
    for neighbour in (True, False) if ALL else (True,):
        fault = partial(Cut, top=disk.mountpoint, neighbour=neighbour)
        ended = sweep(case.action, disk, case.laws, counts, fault, limit=limit, live=case.live)
        assert ended[-1].outcome == "success", "the last cut comes after the end"
        assert all(one.killed for one in ended[:-3]), "the power was not cut"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases.ALL)
def test_A4_power_cut(case, kind, make_case, quick, counts):
    case = make_case(case)
    with Disk(kind, case.pristine, quick) as disk:
        cut_at_each_call(case, disk, counts, limit=5)


@pytest.mark.parametrize("kind", KINDS)
def test_A4_A7_power_cut_during_the_recovery_from_a_sigkill(kind, quick, counts):
    (quick / "counted").mkdir()
    for at in chosen(cases.calls_of_a_full_run(quick / "counted"), limit=2)[:: 3 if ALL else 1]:
        directory = quick / f"killed at {at}"
        directory.mkdir()
        case = cases.recovering(directory, at)
        if case is not None:
            with Disk(kind, case.pristine, directory) as disk:
                cut_at_each_call(case, disk, counts, limit=3)
