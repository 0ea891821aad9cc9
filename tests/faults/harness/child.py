"""An action in a forked child, which may die of it."""

import json
import os
import select
import signal
import time
import traceback
from typing import NamedTuple

from aquad.core.errors import AquadError
from tests.faults.harness.seam import Seam

HANGS_SECONDS = 60


class Ended(NamedTuple):
    """`outcome`: what the action returned, `raised`, or nothing when it died before it said anything.

    `struck`: the names of the system calls in the repository that met the fault.
    """

    killed: bool
    calls: int
    struck: list[str]
    outcome: str
    error: str


def run_struck(action, root, fault, *, live=False) -> Ended:
    """Run `action(root)` with a fault. Raises AssertionError for what is no AquadError, and for a hang."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _be_struck(action, root, fault, live, theirs)
    os.close(theirs)
    said = _said(ours, child)
    _, status = os.waitpid(child, 0)
    report = json.loads(said or b'{"calls": 0, "struck": [], "outcome": "", "error": ""}')
    assert report["outcome"] != "crashed", report["error"]
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, f"a child ended with {os.WEXITSTATUS(status)}"
    return Ended(killed, **report)


def _be_struck(action, root, fault, live, out):
    """Never returns."""
    try:
        seam = Seam(fault)
        seam.install(live=live)
        try:
            outcome, error = str(action(root)), ""
        except (AquadError, OSError) as raised:  # the command line says these in words
            outcome, error = "raised", str(raised)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent says it
            outcome, error = "crashed", traceback.format_exc()
        report = {"calls": seam.calls, "struck": sorted(seam.struck), "outcome": outcome, "error": error}
        os.write(out, json.dumps(report).encode())
        if outcome != "crashed":
            fault.end()
        os._exit(0)
    finally:
        os._exit(70)


def _said(pipe, child) -> bytes:
    """All that came. The pipe ends when the last process that was forked off has ended."""
    said, give_up = b"", time.monotonic() + HANGS_SECONDS
    try:
        while True:
            if not select.select([pipe], [], [], max(0, give_up - time.monotonic()))[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise AssertionError(f"the action hangs, or left a process behind; it had said {said!r}")
            piece = os.read(pipe, 1 << 16)
            if not piece:
                return said
            said += piece
    finally:
        os.close(pipe)
