"""H3: every call of every job fails, once or from there on, or takes only half of what it is given."""

import errno
from functools import partial

import pytest

from tests.faults.harness import cases
from tests.faults.harness.counts import ALL
from tests.faults.harness.places import Directory
from tests.faults.harness.seam import Fail, Shorten
from tests.faults.harness.sweep import sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if ALL else 300)]


CODES = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.ENOMEM, errno.EINTR, errno.EROFS]


def one_of(at, *, lasting):
    """Another error at each call."""
    return Fail(at, CODES[at % len(CODES)], lasting=lasting)


@pytest.mark.parametrize("case", cases.ALL)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from_here_on"])
def test_B1_B3_B6_errors(case, lasting, make_case, quick, counts):
    case = make_case(case)
    place = Directory(case.pristine, quick / "work")
    each = [partial(Fail, code=code, lasting=lasting) for code in CODES]
    for fail in each if ALL else [partial(one_of, lasting=lasting)]:
        sweep(case.action, place, case.laws, counts, fail, limit=5, live=case.live)


@pytest.mark.parametrize("case", cases.ALL)
@pytest.mark.parametrize("lasting", [False, True] if ALL else [True])
def test_B1_short_writes_are_harmless(case, lasting, make_case, quick, counts):
    case = make_case(case)
    place = Directory(case.pristine, quick / "work")
    sweep(case.action, place, case.laws, counts, partial(Shorten, lasting=lasting), limit=2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_A7_B6_errors_during_the_recovery_from_a_sigkill(code, quick, counts):
    (quick / "counted").mkdir()
    at = cases.calls_of_a_full_run(quick / "counted") * 4 // 5
    case = cases.recovering(quick, at)
    fail = partial(Fail, code=code, lasting=True)
    sweep(case.action, Directory(case.pristine, quick / "work"), case.laws, counts, fail, limit=3)
