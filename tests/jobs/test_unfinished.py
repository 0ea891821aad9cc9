"""What the journal says of restores that failed, and of databases that were kept: pure, from its lines."""

from aquad.jobs.discard import kept_databases
from aquad.jobs.restore import Unfinished, unfinished

ORDERS = [["configs", "b1"], ["kafka", "b2"], ["postgres", "b2"]]


def started(run, job="restore all", orders=ORDERS):
    return [
        {"event": "run_started", "run": run, "job": job},
        {"event": "restore_started", "run": run, "at": "now", "orders": orders},
    ]


def restored(run, component, kept=()):
    return {"event": "restored", "run": run, "component": component, "kept": list(kept)}


def test_what_was_restored_is_not_left():
    assert unfinished([*started("a"), restored("a", "configs")]) == Unfinished(
        "a", "now", ["configs"], [("kafka", "b2"), ("postgres", "b2")]
    )


def test_nothing_is_left_of_a_whole_one_nor_before_the_first():
    assert unfinished([]) is None
    assert unfinished([*started("a"), *(restored("a", name) for name, _ in ORDERS)]) is None


def test_only_the_newest_counts():
    assert unfinished([*started("a"), *started("b", orders=ORDERS[:1]), restored("b", "configs")]) is None


def test_a_restore_of_one_part_meanwhile_changes_nothing():
    entries = [*started("a"), *started("b", job="restore postgres", orders=ORDERS[2:]), restored("b", "postgres")]
    found = unfinished(entries)
    assert found is not None
    assert [component for component, _ in found.left] == ["configs", "kafka", "postgres"]


def test_kept_databases_are_those_that_nobody_discarded():
    entries = [
        restored("a", "postgres", ["x_before_1", "y_before_1"]),
        restored("b", "configs", ["no database"]),
        {"event": "run_ended", "run": "c", "discarded": ["x_before_1", "20240802_020000"]},
        restored("d", "postgres", ["x_before_2"]),
    ]
    assert kept_databases(entries) == ["y_before_1", "x_before_2"]
