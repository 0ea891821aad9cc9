"""What is wrong by what is seen, and the lines that say so."""

from datetime import timedelta

import pytest

from aquad.jobs.conditions import changes, conditions
from aquad.observe.space import Level
from tests.observe.test_metrics import HOUR, NOW, overview, view

DAY = 24 * 3600


def found(seen):
    return [(one.rule, one.subject, one.level) for one in conditions(seen)]


@pytest.mark.parametrize(
    ("objective", "hours", "level"),
    [
        (DAY, 24, None),
        (DAY, 25, None),
        (DAY, 25.1, "warning"),
        (DAY, 48, "warning"),
        (DAY, 48.1, "critical"),
        (6 * 3600, 7, None),
        (6 * 3600, 7.1, "warning"),
        (6 * 3600, 12.1, "critical"),
        (None, 999, None),
    ],
)
def test_a_component_without_a_recent_backup(objective, hours, level):
    """25 h warning, beyond twice the objective critical."""
    seen = overview(view("configs", hours, objective_seconds=objective))
    assert found(seen) == ([("stale", "configs", level)] if level else [])


def test_what_was_never_backed_up_is_as_old_as_the_repository():
    never = view("postgres", None)
    assert found(overview(never, created_at=NOW - HOUR)) == []
    assert found(overview(never, created_at=NOW - 8 * HOUR)) == [("stale", "postgres", "warning")]
    seen = overview(never, created_at=NOW - 13 * HOUR)
    assert found(seen) == [("stale", "postgres", "critical")]
    assert conditions(seen)[0].text == "postgres: there is no good backup of it; allowed are 6h 0m"


def test_the_disk():
    assert found(overview(disk_level=Level.OK)) == []
    assert found(overview(disk_level=Level.WARNING)) == [("disk", "", "warning")]
    assert found(overview(disk_level=Level.CRITICAL)) == [("disk", "", "critical")]
    (one,) = conditions(overview(disk_level=Level.WARNING, disk_full_at=NOW))
    assert one.text == "the disk of /r: 500 B of 2.0 KiB are free; at this pace it is full on 2024-08-02"


def test_a_schedule_that_is_held_for_more_than_a_day():
    assert found(overview(held="x", held_since=NOW - timedelta(days=1))) == []
    assert found(overview(held="x", held_since=NOW - timedelta(days=1, seconds=1))) == [
        ("schedule_held", "", "warning")
    ]


class TestLines:
    def lines(self, seen, known):
        return [
            (event, one["rule"], one["component"], one.get("level"))
            for event, one in changes(conditions(seen), known, seen)
        ]

    def test_each_begins_once_and_ends_once(self):
        bad = overview(view("postgres", 8), disk_level=Level.WARNING)
        assert self.lines(bad, {}) == [("alert", "stale", "postgres", "warning"), ("alert", "disk", None, "warning")]
        known = {("stale", "postgres"): "warning", ("disk", ""): "warning"}
        assert self.lines(bad, known) == []
        good = overview(view("postgres", 1))
        assert self.lines(good, known) == [
            ("alert_over", "stale", "postgres", None),
            ("alert_over", "disk", None, None),
        ]
        assert self.lines(good, {}) == []

    def test_it_becomes_worse_and_never_better_before_it_is_over(self):
        known = {("stale", "postgres"): "warning"}
        assert self.lines(overview(view("postgres", 13)), known) == [("alert", "stale", "postgres", "critical")]
        assert self.lines(overview(view("postgres", 8)), {("stale", "postgres"): "critical"}) == []

    def test_what_others_raise_is_left_to_them(self):
        assert self.lines(overview(), {("run_failed", "full"): "critical", ("damaged", "b"): "critical"}) == []

    def test_what_the_settings_do_not_name_any_more_is_over(self):
        ((event, fields),) = changes([], {("stale", "gone"): "warning"}, overview())
        assert (event, fields["text"]) == ("alert_over", "nobody wants backups of it any more")

    def test_they_say_what_mended_it(self):
        seen = overview(view("postgres", 1))
        texts = [fields["text"] for _, fields in changes([], {("stale", "postgres"): "x", ("disk", ""): "x"}, seen)]
        assert texts == ["backup of postgres is good", "500 B of 2.0 KiB are free"]
