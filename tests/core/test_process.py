"""Children and time; what their exit status is good for is tested where they are used."""

import time

import pytest

from aquad.core.errors import ChildFailed
from aquad.core.process import TERMINATION_GRACE_SECONDS, Child


def shell(script, **options):
    return Child(["sh", "-c", script], environment={}, **options)


def test_whoever_is_slow_to_take_the_bytes_does_not_make_the_child_a_stuck_one():
    taken = []
    with shell("echo a; sleep 0.3; echo b", stall_seconds=0.8) as child:
        for chunk in child.chunks():
            taken.append(chunk)
            time.sleep(1.2)  # a disk that is stuck for a moment
    assert b"".join(taken) == b"a\nb\n"


def test_a_child_that_is_stuck_is_ended_without_grace():
    started = time.monotonic()
    with shell("trap '' TERM; echo a; sleep 60", stall_seconds=0.5) as child:
        with pytest.raises(ChildFailed, match=r"run sh: no byte for 0\.5 s"):
            list(child.chunks())
        assert time.monotonic() - started < TERMINATION_GRACE_SECONDS


def test_a_child_that_is_not_done_at_the_deadline_is_ended():
    with (
        shell("while :; do echo a; sleep 0.1; done", deadline=time.monotonic() + 0.5) as child,
        pytest.raises(ChildFailed, match="not done at the run's deadline"),
    ):
        list(child.chunks())
