"""The demo ended in the middle: no process is left, no directory, and no half of a playground."""

import os
import signal

import pytest

from tests.demo.people import ended, until, wait_for

pytestmark = pytest.mark.timeout(90)


def ended_words(code):
    return f"demo: {'interrupted' if code == 130 else 'terminated'}; nothing is left behind\n"


class TestInterrupted:
    @pytest.mark.parametrize(
        ("moment", "number", "code"),
        [
            ("1. A stack", signal.SIGHUP, 143),
            ("$ aquad run full", signal.SIGTERM, 143),
            ("configs from ", signal.SIGINT, 130),
        ],
    )
    def test_nothing_is_left(self, myself, moment, number, code):
        demo = myself.start()
        until(demo, moment)
        for _ in range(3):  # impatient
            os.killpg(demo.pid, number)
        ended_with, _, err = ended(demo)
        assert ended_with == code
        assert err.endswith(ended_words(code))
        assert myself.left() == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_no_half_of_a_playground_is_kept(self, myself, number):
        demo = myself.start("--keep", "half")
        wait_for((myself.home / "half" / "server" / "data").exists)  # initdb is at work
        code = 128 + number
        os.killpg(demo.pid, number)
        assert ended(demo)[::2] == (code, ended_words(code))
        assert os.listdir(myself.home) == ["tmp"]
        assert myself.left() == []

    def test_a_reader_that_goes_away_leaves_nothing_either(self, myself):
        demo = myself.start()
        demo.stdout.close()
        wait_for(lambda: demo.poll() is not None)
        assert demo.returncode == 1
        assert myself.left() == []
