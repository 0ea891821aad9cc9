"""H1: the weekly archive, killed at every call while it is made: it is sealed and good, or it is not listed."""

import pytest

from tests.faults.harness import cases
from tests.faults.harness.places import Directory
from tests.faults.harness.seam import Kill
from tests.faults.harness.sweep import sweep

pytestmark = pytest.mark.faults


def test_A1_sigkill_at_every_call_while_the_archive_is_made(make_case, quick, counts):
    case = make_case(cases.archiving)
    ended = sweep(case.action, Directory(case.pristine, quick / "work"), case.laws, counts, Kill)
    assert len(ended) > 40
    assert sum(one.killed for one in ended) >= len(ended) - 2
