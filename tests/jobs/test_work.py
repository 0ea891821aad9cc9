"""A run's report is the last thing it does, and decides nothing."""

from datetime import UTC, timedelta

from aquad.core.errors import Damaged
from aquad.jobs.full import Space
from aquad.jobs.prune import Rules
from aquad.jobs.run import run_job
from aquad.jobs.work import Jobs
from aquad.repository.retention import Policy
from tests.small import LIMITS, FakeClock, Words, back_up, journal, make_repository

DAY = timedelta(days=1)
POLICY = Policy({"full": 30 * DAY, "incremental": 7 * DAY}, minimum_verified=2, period=DAY)
RULES = Rules(POLICY, required=["words"], trash=7 * DAY, log_age=90 * DAY, log_bytes=10**9)


def run(repository, source):
    def unreadable(_now):
        raise Damaged("read the journal: on purpose")

    jobs = Jobs(repository, lambda _: [source], Space(), RULES, unreadable, UTC, "test")
    return run_job(repository, "full", jobs.of("full"), clock=FakeClock(), zone=UTC, limits=LIMITS)


def test_a_clock_far_ahead_takes_nothing_from_the_journal(tmp_path):
    clock = FakeClock()
    repository = make_repository(tmp_path / "backups", clock)
    back_up(repository, Words(), clock=clock)
    jobs = Jobs(repository, lambda _: [], Space(), RULES, lambda _: [], UTC, "test")

    def rotations_after_cleanup():
        run_job(repository, "cleanup", jobs.of("cleanup"), clock=clock, zone=UTC, limits=LIMITS)
        return [entry["event"] for entry in journal(repository.root)].count("journal_rotated")

    clock.move(400 * 86400)
    assert rotations_after_cleanup() == 0
    clock.move(-399 * 86400)
    assert rotations_after_cleanup() == 1


def test_without_a_report_a_good_backup_is_one_with_a_warning(tmp_path):
    repository = make_repository(tmp_path / "backups")
    work = run(repository, Words())
    assert (work.outcome, work.reason) == ("warning", "report: read the journal: on purpose")
    assert [entry["event"] for entry in journal(repository.root)].count("backup_sealed") == 1


def test_without_a_report_a_bad_run_still_says_what_was_bad(tmp_path):
    repository = make_repository(tmp_path / "backups")
    work = run(repository, Words(fails=True))
    assert work.outcome == "failed"
    assert work.reason.startswith("words: read words: on purpose")
    assert work.reason.endswith("; report: read the journal: on purpose")
