"""The nightly verification: everything is read within a week, whatever comes and goes; and the newest is looked into."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from aquad.core.clock import to_text
from aquad.jobs.nightly import choose, verify_some
from aquad.repository.history import History
from aquad.stream.artifact import RunContext
from tests.small import FakeClock, Words, back_up, journal, make_repository

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


class Backup:
    def __init__(self, number, kind, stored_bytes):
        self.sequence, self.kind, self.stored_bytes = number, kind, stored_bytes
        self.id = f"{number}_{kind}"


@pytest.mark.parametrize("seed", range(20))
def test_B8_all_that_is_stored_is_read_within_a_week(seed):
    """A year of nights, with backups of very different sizes that come and go, and nights without a run."""
    dice = random.Random(seed)
    backups, history, read = [], History(), {}
    for night in range(200):
        now = BEGIN + timedelta(days=night, hours=4.5)
        for hours, kind in ((-2.5, "full"), (-10, "incremental"), (-16, "incremental")):
            if dice.random() < 0.95:
                backups.insert(0, Backup(len(read), kind, dice.choice([1, 100, 100, 100_000])))
                _verify(history, read, backups[0], now + timedelta(hours=hours), "bytes")
        if night % 7 == 6:
            backups.insert(0, Backup(len(read), "weekly", 1000))
            _verify(history, read, backups[0], now - timedelta(hours=3), "bytes")
        if dice.random() < 0.3:
            backups.pop(dice.randrange(len(backups)))
        chosen = choose(backups, history, now)
        assert backups[0] in chosen.content
        for backup in chosen.content:
            _verify(history, read, backup, now, "content")
        for backup in chosen.bytes:
            _verify(history, read, backup, now, "bytes")
        assert all(now - read[backup.id] <= WEEK for backup in backups)


def test_what_was_never_verified_comes_first():
    history = History()
    backups = [Backup(number, "full", 100) for number in range(9, 0, -1)]
    for backup in backups[:-1]:
        _verify(history, {}, backup, BEGIN, "bytes")
    assert choose(backups, history, BEGIN + timedelta(hours=5)).bytes[0] is backups[-1]


def test_the_newest_of_each_kind_is_looked_into_once_a_week():
    history = History()
    weekly, full = Backup(1, "weekly", 1), Backup(2, "full", 1)
    _verify(history, {}, weekly, BEGIN, "content")
    assert choose([full, weekly], history, BEGIN + timedelta(days=5)).content == [full]
    assert set(choose([full, weekly], history, BEGIN + timedelta(days=6)).content) == {full, weekly}


def test_work_is_shared_out_over_the_week():
    """Not all on the seventh night."""
    history = History()
    backups = [Backup(number, "full", 100) for number in range(71, 0, -1)]
    for backup in backups:
        _verify(history, {}, backup, BEGIN, "bytes")
    assert len(choose(backups, history, BEGIN + timedelta(days=1)).bytes) == 10


def test_nothing_is_chosen_where_there_is_nothing():
    assert choose([], History(), BEGIN) == ([], [])


def test_a_damaged_one_fails_the_run_after_all_others_and_raises_an_alert(tmp_path):
    clock = FakeClock()
    repository = make_repository(tmp_path / "backups", clock)
    for _ in range(3):
        back_up(repository, Words(archive=False), clock=clock)
        clock.move(86400)
    victim = repository.catalog().backups[2]
    path = repository.root / victim.files()[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    clock.move(8 * 86400)
    work = verify_some(repository, RunContext(run_id="r", timestamp="t", clock=clock))
    assert (work.outcome, work.exit_code, work.details["damaged"]) == ("failed", 14, [victim.id])
    assert work.details["verified"] == {"content": 1, "bytes": 2}
    (alert,) = [line for line in journal(repository.root) if line["event"] == "alert"]
    assert (alert["rule"], alert["level"], alert["backup"]) == ("damaged", "critical", victim.id)
    assert repository.good_catalog().latest().id != victim.id


def _verify(history, read, backup, moment, level):
    read[backup.id] = moment
    history.add({"event": "verified", "backup": backup.id, "at": to_text(moment), "level": level, "outcome": "success"})
