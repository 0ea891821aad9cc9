"""What the journal says of backups and holds, from its lines alone."""

from datetime import UTC, datetime, timedelta

import pytest

from aquad.core.clock import to_text
from aquad.repository.history import History
from aquad.repository.retention import FOR_EVER

MONDAY = datetime(2024, 7, 1, tzinfo=UTC)


def at(hours):
    return to_text(MONDAY + timedelta(hours=hours))


def verified(hours, level, outcome, backup="b"):
    return {"event": "verified", "at": at(hours), "backup": backup, "level": level, "outcome": outcome}


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        ([], "unverified"),
        ([("quick", "success")], "unverified"),
        ([("bytes", "success")], "good"),
        ([("content", "success")], "good"),
        ([("bytes", "success"), ("bytes", "failed")], "damaged"),
        ([("bytes", "failed"), ("quick", "success")], "damaged"),
        ([("content", "failed"), ("bytes", "success")], "damaged"),
        ([("content", "failed"), ("content", "success")], "good"),
        ([("bytes", "failed"), ("content", "success")], "good"),
        ([("content", "failed"), ("quick", "failed"), ("bytes", "success")], "damaged"),
        ([("quick", "failed"), ("bytes", "success")], "good"),
    ],
)
def test_a_verdict_is_only_lifted_by_one_that_looked_as_closely(verdicts, state):
    history = History.of(verified(n, *verdict) for n, verdict in enumerate(verdicts))
    assert history.state("b") == state
    assert (history.damaged == {"b"}) == (state == "damaged")


def test_when_it_was_last_read_and_looked_into():
    lines = [verified(1, "content", "success"), verified(2, "bytes", "success"), verified(3, "bytes", "failed")]
    history = History.of(lines)
    assert history.content_at["b"] == MONDAY + timedelta(hours=1)
    assert history.read_at["b"] == MONDAY + timedelta(hours=2)
    assert history.verdicts["b"].at == MONDAY + timedelta(hours=3)


def test_kept_until_and_for_ever_and_no_longer():
    lines = [
        {"event": "kept", "at": at(0), "backup": "a", "until": at(9)},
        {"event": "kept", "at": at(0), "backup": "b", "until": None},
        {"event": "kept", "at": at(0), "backup": "c", "until": None},
        {"event": "unkept", "at": at(1), "backup": "c"},
    ]
    assert History.of(lines).kept == {"a": MONDAY + timedelta(hours=9), "b": FOR_EVER}


class TestHolds:
    OPERATOR = {"event": "held", "at": at(0), "until": at(4), "reason": "x", "cause": "operator", "by": "me"}
    RESTORE = {
        "event": "held",
        "at": at(1),
        "until": None,
        "reason": "y",
        "cause": "restore",
        "run": "r",
        "components": ["configs"],
    }

    def test_one_ends_by_itself(self):
        history = History.of([self.OPERATOR])
        assert history.holding(MONDAY + timedelta(hours=3)).reason == "x"
        assert history.holding(MONDAY + timedelta(hours=4)) is None

    def test_that_of_a_restore_is_in_force_when_its_run_has_ended(self):
        history = History.of([self.RESTORE])
        assert history.holding(MONDAY, running={"r"}) is None
        assert history.holding(MONDAY).components == ["configs"]

    def test_a_restore_that_worked_ends_its_own_and_no_other(self):
        history = History.of([self.OPERATOR, self.RESTORE, {"event": "released", "at": at(2), "cause": "restore"}])
        assert history.holding(MONDAY).reason == "x"

    def test_an_operator_ends_all(self):
        history = History.of([self.OPERATOR, self.RESTORE, {"event": "released", "at": at(2), "cause": "operator"}])
        assert history.holding(MONDAY) is None
