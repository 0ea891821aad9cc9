"""One fault at each call of an action, and the laws after each."""

import os

from tests.faults.harness.child import run_struck
from tests.faults.harness.counts import ALL
from tests.faults.harness.seam import Cut, Fail, Fault, Kill, Shorten, Tear

TELLING = {"write", "copy_file_range", "fsync", "rename", "ftruncate"}
"""After a failure of these nobody knows what is on the disk (PostgreSQL wiki, "Fsync Errors")."""
AFTER_THE_END = 10**9
KINDS = {Kill: "kills", Tear: "kills", Cut: "power cuts", Fail: "I/O errors", Shorten: "short writes"}


def sweep(action, place, laws, counts, fault, *, step=1, limit=None, live=False):
    """`fault(at)` makes the fault of a call. Without AQUAD_FAULTS=all only each `step`-th, and at most `limit` of them.

    The action is run on the repository `backups` of each fresh copy. Threads and gpg make the number of calls vary a little.
    Power is also cut after the end. Returns how each ended.
    """
    top = place.fresh()
    whole = run_struck(action, top / "backups", Fault(), live=live)
    assert whole.outcome in {"success", "warning"}, whole
    laws.check(top, whole, counts, "no fault")
    place.settle()
    ended = []
    for at in [*chosen(whole.calls, step, limit), *([AFTER_THE_END] if isinstance(fault(1), Cut) else [])]:
        top, struck = place.fresh(), fault(at)
        one = run_struck(action, top / "backups", struck, live=live)
        place.settle()
        ended.append(one)
        if one.killed or one.calls >= at:
            counts.fault(KINDS[type(struck)])
        where = f"{type(struck).__name__} at call {at} of {whole.calls}"
        if isinstance(struck, Shorten) and one.outcome != whole.outcome:
            counts.breaks("stuck", f"{where}: {one.outcome}, {one.error}")
        if isinstance(struck, Fail):
            judge(one, struck, counts, where)
        laws.check(top, one, counts, where)
    counts.check()
    return ended


def judge(ended, struck, counts, where):
    """What is said of a call that failed."""
    if ended.outcome == "raised" and os.strerror(struck.code) not in ended.error:
        counts.breaks("lies", f"{where}: it says {ended.error}")
    if ended.outcome == "success" and TELLING & {*ended.struck}:
        counts.breaks("lies", f"{where}: {', '.join(ended.struck)} failed, and it said success")


def chosen(total, step=1, limit=None):
    """Numbers from 1 to `total`: all of them in `make faults`; else each `step`-th, and of these `limit`, evenly, with the last."""
    if ALL:
        return list(range(1, total + 1))
    some = list(range(1, total + 1, step))
    if limit is None or len(some) <= limit:
        return some
    return [some[round(index * (len(some) - 1) / (limit - 1))] for index in range(limit)]
