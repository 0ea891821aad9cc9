"""What is seen of a repository, by its manifests and its journal."""

import contextlib
import errno
import os
from datetime import UTC, timedelta

import pytest

from aquad.core.errors import AquadError, RepositoryWriteFailed
from aquad.jobs.overview import picture
from aquad.jobs.run import Limits, Work, run_job
from tests.small import FakeClock, Words, back_up, make_repository


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "backups", clock=FakeClock())


def seen(repository):
    now = repository.clock.now()
    return picture(repository, ["words"], objectives={"words": 3600}, grace_seconds=60, now=now).overview


def taken(repository):
    repository.clock.move(60)
    back_up(repository, Words(), clock=repository.clock)
    return repository.catalog().backups[0].id


def verified(repository, backup, outcome, level="content"):
    repository.journal.append("verified", backup=backup, level=level, outcome=outcome, problems=[])


def level(repository, name="content"):
    return next(one.good for one in seen(repository).levels if one.level == name)


class TestVerification:
    """A good backup that was read after a damaged one does not hide it."""

    def test_never(self, repository):
        taken(repository)
        assert level(repository) is None

    def test_a_damaged_backup_is_seen_whatever_was_read_after_it(self, repository):
        old, new = taken(repository), taken(repository)
        verified(repository, old, "failed")
        verified(repository, new, "success")
        assert level(repository) is False
        verified(repository, old, "success", "quick")
        assert level(repository) is False, "not as close a look"
        verified(repository, old, "success")
        assert level(repository) is True

    def test_one_that_is_gone_is_not_missed(self, repository):
        old, _ = taken(repository), taken(repository)
        verified(repository, old, "failed")
        repository.trash.put(repository.catalog().find(old))
        assert level(repository) is True

    def test_each_level_says_what_it_found(self, repository):
        old = taken(repository)
        verified(repository, old, "success", "quick")
        verified(repository, old, "failed", "content")
        assert (level(repository, "quick"), level(repository, "content")) == (True, False)


def test_what_is_open_is_shown_with_its_score_and_not_what_is_over(repository):
    taken(repository)
    anomaly = {"rule": "size_anomaly", "level": "warning", "component": "words", "text": "half", "score": -8.5}
    repository.journal.append("alert", **anomaly)
    (one,) = seen(repository).incidents
    assert (one.rule, one.subject, one.cause) == ("size_anomaly", "words", "half")
    (view,) = seen(repository).components
    assert (view.unusual, view.unusual_score) == (True, -8.5)
    repository.journal.append("accepted", component="words")
    (view,) = seen(repository).components
    assert (seen(repository).incidents, view.unusual, view.unusual_score) == ([], False, None)


def test_ages_and_the_last_attempt(repository):
    newest = taken(repository)
    (view,) = seen(repository).components
    assert (view.backup, view.age_seconds, view.stale, view.last_attempt) == (newest, 0, False, "success")
    repository.clock.move(3661)
    (view,) = seen(repository).components
    assert (view.age_seconds, view.stale) == (3661, True)


class TestBriefs:
    """Manifests are read once; what changed on the disk is read again."""

    def test_they_are_the_same_as_read_afresh(self, repository):
        for _ in range(3):
            taken(repository)
        briefs, whole = repository.manifests.briefs(), repository.catalog()
        assert [one.id for one in briefs.backups] == [one.id for one in whole.backups]
        assert [one.stored_bytes for one in briefs.backups] == [one.stored_bytes for one in whole.backups]
        assert [part.name for part in briefs.backups[0].parts] == [one.name for one in whole.backups[0].components]

    def test_only_what_changed_is_read_again(self, repository, monkeypatch):
        first, second = taken(repository), taken(repository)
        repository.manifests.briefs()
        read, plain = [], repository.manifests._parsed
        monkeypatch.setattr(repository.manifests, "_parsed", lambda path: read.append(path.stem) or plain(path))
        repository.manifests.briefs()
        assert read == []
        third = taken(repository)
        read.clear()
        path = repository.layout.manifest(first)
        text = path.read_text()
        path.chmod(0o600)
        path.write_text(text[:-10])
        repository.trash.put(repository.catalog().find(second))
        read.clear()
        briefs = repository.manifests.briefs()
        assert sorted(read) == sorted([first, third])
        assert ([one.id for one in briefs.backups], [one.id for one in briefs.unreadable]) == ([third], [first])
        path.write_text(text)
        assert [one.id for one in repository.manifests.briefs().backups] == [third, first]

    def test_a_manifest_with_the_same_size_and_time_is_another_by_its_inode(self, repository):
        newest = taken(repository)
        repository.manifests.briefs()
        path = repository.layout.manifest(newest)
        status, text = path.stat(), path.read_text()
        other = path.with_suffix(".new")
        other.write_text(text.replace(newest, newest[::-1]))
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.rename(path)
        assert repository.manifests.briefs().unreadable


def test_a_forecast_and_kinds(repository):
    taken(repository)
    found = seen(repository)
    assert found.retained == {"full": 1, "incremental": 0, "weekly": 0}
    assert found.disk_bytes >= found.free_bytes > 0
    assert found.created_at <= found.now - timedelta(seconds=60)


class TestWhatARunNeverCameTo:
    """A component that a bad run was to take, and never came to, has failed with it."""

    def attempt(self, repository, work):
        with contextlib.suppress(AquadError):
            run_job(
                repository,
                "full",
                work,
                clock=repository.clock,
                zone=UTC,
                limits=Limits(None, 60.0),
                wants=["words"],
            )
        (view,) = seen(repository).components
        return view.last_attempt

    def test_a_run_that_failed_before(self, repository):
        taken(repository)

        def full_disk(_run):
            raise RepositoryWriteFailed("write", "a.gz", OSError(errno.ENOSPC, "No space left on device"))

        assert self.attempt(repository, full_disk) == "failed"

    def test_a_run_that_failed_for_another_component(self, repository):
        assert (
            self.attempt(repository, lambda _: Work("failed", "x", {"components": {"words": "success"}})) == "success"
        )

    def test_a_run_that_was_killed(self, repository):
        taken(repository)
        repository.journal.append("run_started", run="dead", job="full", slot=None, wants=["words"])
        repository.recover()
        (view,) = seen(repository).components
        assert view.last_attempt == "failed"

    def test_one_that_was_good_or_not_meant_is_no_failure(self, repository):
        taken(repository)
        assert self.attempt(repository, lambda _: Work("success")) == "success"
        repository.journal.append(
            "run_ended", run="x", job="postgres", slot=None, outcome="failed", reason="", wants=["other"]
        )
        (view,) = seen(repository).components
        assert view.last_attempt == "success"
