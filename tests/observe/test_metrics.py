"""What stands in /metrics, by a State that is made here."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aquad.observe.metrics import Counters, Gauges
from aquad.observe.overview import ComponentView, LevelView, Overview
from aquad.observe.space import Level
from aquad.observe.state import Seen, State
from aquad.observe.web import dead, unready

NOW = datetime(2024, 8, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def view(name, hours, **more):
    known = {
        "name": name,
        "backup": None if hours is None else f"backup of {name}",
        "recovery_point_at": None if hours is None else NOW - hours * HOUR,
        "age_seconds": None,
        "objective_seconds": 6 * 3600,
        "stale": hours is None,
        "consistency": None,
        "stored_bytes": 10,
        "plain_bytes": 30,
        "milliseconds": 1500,
        "unusual": False,
        "unusual_score": None,
        "last_attempt": "never" if hours is None else "success",
        "verified_at": None,
        "verified_level": "",
        "restore_milliseconds": None,
    }
    return ComponentView(**{**known, **more})


def overview(*views, **more):
    known = {
        "stack": "s",
        "repository": "/r",
        "created_at": NOW - 100 * HOUR,
        "grace_seconds": 3600,
        "encryption": "off",
        "now": NOW,
        "components": views,
        "backups": 3,
        "retained": {"full": 2, "incremental": 1, "weekly": 0},
        "stored_bytes": 1000,
        "free_bytes": 500,
        "disk_bytes": 2000,
        "disk_level": Level.OK,
        "disk_full_at": None,
        "unreadable": (),
        "aside": (),
        "unfinished_restore": "",
        "drafts": (),
        "last_run": "never",
        "runs": (),
        "levels": (LevelView(level="bytes", good=None, good_at=None),),
        "daemon": "",
        "running": "",
        "held": "",
        "held_since": None,
        "coming": (),
        "incidents": (),
        "warnings": (),
    }
    return Overview(**{**known, **more})


def state(seen, **more):
    known = {"jobs": ("full", "verify"), "heartbeat_at": NOW, "beat_monotonic": 5.0, "coming": ()}
    shown = seen and Seen(overview=seen, listing=dict, backup=lambda _: {})
    return State(**{**known, "seen": shown, **more})


def samples(of, now=NOW):
    registry = CollectorRegistry()
    registry.register(Gauges(lambda: of, lambda: now, "1"))
    return _read(registry)


def _read(registry):
    """Values by name and by the values of labels, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_what_was_never_backed_up_is_absent_and_not_zero():
    found = samples(state(overview(view("postgres", None))))
    assert ("aquad_backup_last_success_timestamp_seconds", "postgres") not in found
    assert ("aquad_backup_age_seconds", "postgres") not in found
    assert ("aquad_backup_success", "postgres") not in found
    assert ("aquad_backup_size_bytes", "postgres", "plain") not in found
    assert found["aquad_objective_seconds", "postgres", "rpo"] == 21600


def test_M6_ages_are_those_of_the_scrape():
    seen = state(overview(view("postgres", 2)))
    assert samples(seen)["aquad_recovery_point_age_seconds", "postgres"] == 7200
    assert samples(seen, NOW + 3 * HOUR)["aquad_backup_age_seconds", "postgres"] == 18000
    assert unready(seen, NOW + 3 * HOUR) == []
    assert unready(seen, NOW + 6 * HOUR) == ["postgres: no good backup for 28800 s"]
    assert dead(seen, 100.0) == ""
    assert "196 s" in dead(seen, 201.0)


def test_the_names_of_the_stack_and_all_volumes_are_as_good_as_the_worst():
    good = [view("postgres", 1), view("configs", 2), view("kafka_data", 3), view("nginx_logs", 9)]
    found = samples(state(overview(*good)))
    assert found["backup_last_success_timestamp", "volumes"] == (NOW - 9 * HOUR).timestamp()
    assert [found["backup_success", one] for one in ("postgres", "configs", "volumes")] == [1, 1, 1]
    bad = samples(state(overview(*good, view("zookeeper_data", None), view("certs", 1, last_attempt="failed"))))
    assert ("backup_last_success_timestamp", "volumes") not in bad
    assert ("backup_success", "volumes") not in bad
    failed = samples(state(overview(*good, view("certs", 1, last_attempt="failed"))))
    assert failed["backup_success", "volumes"] == 0


def test_what_only_the_daemon_knows():
    coming = [("full", NOW + HOUR), ("verify", NOW + 2 * HOUR), ("full", NOW + 25 * HOUR)]
    of = state(
        overview(held="by hand"), coming=coming, running="full", done_ratio=0.25, settings_valid=False, waiting=3
    )
    found = samples(of)
    assert found["aquad_run_next_timestamp_seconds", "full"] == (NOW + HOUR).timestamp()
    assert found["aquad_run_next_timestamp_seconds", "verify"] == (NOW + 2 * HOUR).timestamp()
    assert (found["aquad_run_active", "full"], found["aquad_run_active", "verify"]) == (1, 0)
    assert found["aquad_run_progress_ratio", "full"] == 0.25
    assert (found[("aquad_settings_valid",)], found[("aquad_schedule_held",)]) == (0, 1)
    assert found[("aquad_notifications_waiting",)] == 3
    assert found[("aquad_scheduler_heartbeat_timestamp_seconds",)] == NOW.timestamp()


def test_the_repository_and_its_verifications():
    levels = (
        LevelView(level="bytes", good=False, good_at=NOW - HOUR),
        LevelView(level="content", good=None, good_at=None),
    )
    found = samples(state(overview(levels=levels, disk_full_at=NOW + 5 * HOUR)))
    assert found["aquad_verify_success", "bytes"] == 0
    assert found["aquad_verify_last_success_timestamp_seconds", "bytes"] == (NOW - HOUR).timestamp()
    assert ("aquad_verify_success", "content") not in found
    assert found[("aquad_repository_full_forecast_seconds",)] == 18000
    assert found["aquad_backups_retained", "full"] == 2
    assert ("aquad_repository_full_forecast_seconds",) not in samples(state(overview()))


def test_without_a_repository_the_daemon_still_speaks_for_itself():
    none = state(None, trouble="it is not mounted")
    assert {name for name, *_ in samples(none)} >= {"aquad_build_info", "aquad_run_active"}
    assert unready(none, NOW) == ["it is not mounted"]


def test_no_label_is_one_of_prometheus_own():
    seen = overview(view("postgres", 1, unusual=True, unusual_score=7.5, restore_milliseconds=10))
    registry = CollectorRegistry()
    Counters(registry, ["full"], ["slack"])
    registry.register(Gauges(lambda: state(seen, running="full"), lambda: NOW, "1"))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels == {
        "component",
        "run",
        "outcome",
        "channel",
        "form",
        "objective",
        "kind",
        "service",
        "level",
        "version",
        "le",
    } - {"level"}
    assert all(family.documentation for family in families)


class TestCounters:
    def counted(self, *entries, since=0):
        registry = CollectorRegistry()
        counters = Counters(registry, ["full"], ["slack"])
        for line, entry in enumerate(entries, 1):
            counters.add({"line": line, "job": "full", **entry}, since=since)
        return counters, registry

    def test_they_begin_at_zero(self):
        found = _read(self.counted()[1])
        assert found["aquad_runs_total", "missed", "full"] == found["aquad_run_missed_total", "full"] == 0
        assert found["aquad_notifications_total", "slack", "failed"] == 0
        assert found["aquad_run_duration_seconds_count", "full"] == 0

    def test_runs_slots_and_messages(self):
        ended = {"event": "run_ended", "outcome": "success", "milliseconds": 90_000}
        missed = {"event": "slot_ended", "outcome": "missed", "count": 4}
        also_ended = {"event": "slot_ended", "outcome": "success"}
        counters, registry = self.counted(ended, missed, also_ended, ended)
        counters.told("slack", "delivered")
        found = _read(registry)
        assert found["aquad_runs_total", "success", "full"] == 2
        assert found["aquad_runs_total", "missed", "full"] == found["aquad_run_missed_total", "full"] == 4
        assert found["aquad_run_duration_seconds_sum", "full"] == 180
        assert found["aquad_notifications_total", "slack", "delivered"] == 1

    def test_each_line_counts_once_and_the_past_does_not(self):
        ended = {"event": "run_ended", "outcome": "failed"}
        counters, registry = self.counted(ended, ended, ended, since=1)
        for line in (1, 2, 3):
            counters.add({"line": line, "job": "full", **ended}, since=1)
        assert _read(registry)["aquad_runs_total", "failed", "full"] == 2


def test_a_view_is_as_old_as_it_is_looked_at():
    seen = overview(view("postgres", 2), view("configs", None))
    assert not seen.at(NOW).components[0].stale
    late = seen.at(NOW + 6 * HOUR)
    assert (late.components[0].age_seconds, late.components[0].stale) == (28800, True)
    assert late.components[1].stale
    assert replace(late, now=NOW).stale
