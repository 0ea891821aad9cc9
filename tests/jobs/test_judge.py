"""A backup beside those before it, and what is left of the disk: sentences for the report, alerts in the journal."""

from datetime import timedelta

from aquad.core.clock import to_text
from aquad.jobs import judge
from aquad.repository.history import History
from tests.small import FakeClock, Words, back_up, journal, make_repository

NIGHTS = 8


def nights(tmp_path, sizes):
    clock = FakeClock()
    repository = make_repository(tmp_path / "backups", clock)
    for size in sizes:
        back_up(repository, Words(text=b"x" * size, archive=False), clock=clock)
        clock.move(86400)
    return repository, clock


def judged(repository):
    catalog = repository.catalog()
    return judge.judge(repository, catalog, History.of(repository.journal.entries()), catalog.backups[0])


def alerts(repository):
    return [line for line in journal(repository.root) if line["event"] == "alert"]


def test_D2_half_the_size_is_an_alert_with_its_reason(tmp_path):
    repository, _ = nights(tmp_path, [100_000] * NIGHTS + [45_000])
    (sentence,) = judged(repository)
    assert "words" in sentence
    (alert,) = alerts(repository)
    assert (alert["rule"], alert["level"], alert["component"]) == ("size_anomaly", "warning", "words")
    assert alert["text"] == sentence


def test_the_usual_size_is_none(tmp_path):
    repository, _ = nights(tmp_path, [100_000] * NIGHTS + [101_000])
    assert judged(repository) == []
    assert alerts(repository) == []


def test_accept_makes_it_the_new_normal(tmp_path):
    repository, clock = nights(tmp_path, [100_000] * NIGHTS + [45_000])
    repository.journal.append("accepted", component="words")
    clock.move(86400)
    back_up(repository, Words(text=b"x" * 45_000, archive=False), clock=clock)
    assert judged(repository) == []


def test_the_backup_before_is_told_beside_it(tmp_path):
    repository, _ = nights(tmp_path, [1000, 2000])
    catalog = repository.catalog()
    former = judge.former(catalog, catalog.backups[0], "words")
    assert former.backup == catalog.backups[1].id
    assert judge.former(catalog, catalog.backups[1], "words") is None


def test_rows_are_those_of_all_tables_that_were_counted(tmp_path):
    repository, _ = nights(tmp_path, [10])
    record = repository.catalog().backups[0].components[0]
    assert judge.rows(record) is None
    databases = [{"name": "a", "rows": {"t": 3, "u": None}}, {"name": "b", "rows": {"v": 4}}]
    assert judge.rows(record.model_copy(update={"facts": {"databases": databases}})) == 7


def test_the_disk_and_the_day_on_which_it_is_full(tmp_path):
    repository, clock = nights(tmp_path, [10])
    seen = judge.disk(repository, [], clock.now())
    now = clock.now()
    lines = [
        {
            "event": "run_ended",
            "at": to_text(now - timedelta(days=day)),
            "free_bytes": seen.free_bytes + day * seen.free_bytes // 10,
        }
        for day in range(20, 0, -1)
    ]
    full_at = judge.disk(repository, judge.free_space(lines), now).full_at
    assert timedelta(days=8) < full_at - now < timedelta(days=12)
