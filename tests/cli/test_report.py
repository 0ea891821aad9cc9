"""`aquad report` as a process, on a small repository with real backups that lived in August 2024."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from tests.small import FakeClock, Words, back_up, make_repository

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
RUN = {
    "run": str,
    "job": str,
    "slot": (MOMENT, None),
    "attempt": (int, None),
    "by": str,
    "started_at": MOMENT,
    "ended_at": (MOMENT, None),
    "seconds": (float, None),
    "outcome": (str, None),
    "reason": str,
    "backup": (str, None),
    "counted": bool,
}
SCHEMA = {
    "schema_version": int,
    "month": r"\d{4}-\d\d",
    "stack": str,
    "zone": str,
    "begin": MOMENT,
    "end": MOMENT,
    "made_at": MOMENT,
    "missing": str,
    "run_counts": {...: {...: int}},
    "slot_counts": {...: {...: int}},
    "availability": (float, None),
    "verifications": {
        "counts": {...: {...: int}},
        "good": int,
        "bytes": int,
        "size_unknown": int,
        "damaged": [str],
    },
    "removed": {...: int},
    "deleted": int,
    "newest": [{"component": str, "backup": (str, None), "taken_at": (MOMENT, None)}],
    "runs": [RUN],
    "restores": [{"run": RUN, "components": [{"component": str, "origin": str, "seconds": (float, None)}]}],
    "incidents": [
        {
            "rule": str,
            "subject": str,
            "level": str,
            "state": "open|over|moment",
            "started_at": MOMENT,
            "last_at": MOMENT,
            "ended_at": (MOMENT, None),
            "ended_by": str,
            "times": int,
            "cause": str,
            "last_cause": str,
        }
    ],
    "holds": [
        {
            "cause": str,
            "by": str,
            "reason": str,
            "since": MOMENT,
            "until": (MOMENT, None),
            "ended_at": (MOMENT, None),
            "ended_by": str,
        }
    ],
    "changes": [
        {"at": MOMENT, "by": str, "event": str, "what": str, "key": (str, None), "before": object, "after": object}
    ],
}


def fits(value, shape):
    """Exactly the keys of `shape`, and what it says of each value."""
    match shape:
        case tuple():
            return any(value is None if one is None else fits(value, one) for one in shape)
        case str():
            return isinstance(value, str) and re.fullmatch(shape, value) is not None
        case list():
            return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
        case dict() if ... in shape:
            return isinstance(value, dict) and all(fits(one, shape[...]) for one in value.values())
        case dict():
            return (
                isinstance(value, dict)
                and value.keys() == shape.keys()
                and all(fits(value[k], shape[k]) for k in shape)
            )
    return isinstance(value, shape)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Two backups in August, of which one was damaged later; a failure, a hold, a restore, a change; and one in September."""
    top = tmp_path_factory.mktemp("report")
    clock = FakeClock(datetime(2024, 8, 1, 22, 30, tzinfo=UTC))
    repository = make_repository(top / "backups", clock)
    first = back_up(repository, clock=clock).details["backup"]
    clock.move(86400)
    assert back_up(repository, Words(fails=True), clock=clock).outcome == "failed"
    clock.move(3600)
    back_up(repository, clock=clock)
    for file in repository.catalog().find(first).files()[:1]:
        os.truncate(repository.root / file.path, 3)
    verify(repository, repository.catalog().backups, "bytes", Silent())
    about = {"run": "0badcafe", "job": "restore words", "slot": None}
    repository.journal.append("run_started", **about)
    repository.journal.append("restore_started", run="0badcafe", orders=[["words", first]])
    repository.journal.append("restored", run="0badcafe", component="words", origin=first, milliseconds=1500, kept=[])
    repository.journal.append("run_ended", **about, outcome="success", reason="", milliseconds=2000)
    repository.journal.append("held", until=None, reason="a \x1b[31mred\x1b[0m migration", cause="operator")
    repository.journal.append("released", cause="operator")
    changed = {"schedule.full": ["0 2 * * *", "0 3 * * *"], "postgres.databases": [[], ["shop"]]}
    repository.journal.append("settings", changed=changed, values={})
    slot = "2024-08-02T00:00:00.000000Z"
    repository.journal.append("slot_ended", job="full", slot=slot, outcome="missed", reason="nobody was there")
    clock.move(40 * 86400)
    back_up(repository, clock=clock)
    (top / "settings.toml").write_text(
        f'stack = "small"\ntime_zone = "Europe/Warsaw"\n[repository]\npath = "{top / "backups"}"\n[encryption]\nmode = "off"\n'
    )
    return top


def aquad(top, *arguments):
    command = [sys.executable, "-m", "aquad", "-c", str(top / "settings.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def test_for_people(top):
    done = aquad(top, "report", "--month", "2024-08")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "aquad monthly report: small, August 2024\n" in text
    assert "From      2024-08-01 00:00:00 CEST (22:00:00 UTC)" in text
    assert "full: 1 failed, 2 success" in text
    assert "0.0 % of 1 slots" in text
    assert "Damaged       1 backups were found damaged" in text
    assert re.search(
        r"CRITICAL run_failed of full\n    since 2024-08-03 00:30:00 CEST .*\n    until .* after 1h 0m", text
    )
    assert re.search(r"DAMAGED \S+_full, found 2024-08-03 01:30:00 CEST .*, STILL DAMAGED", text)
    assert "words from 20240801_223000_full: took 1.5s" in text
    assert r"why: a \x1b[31mred\x1b[0m migration" in text
    assert 'schedule.full: "0 2 * * *" became "0 3 * * *"' in text
    assert "words: 20240802_233000_full" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_for_machines(top):
    told = json.loads(aquad(top, "--json", "report", "--month", "2024-08").stdout)
    assert fits(told, SCHEMA)
    assert (told["schema_version"], told["month"], told["zone"]) == (1, "2024-08", "Europe/Warsaw")
    assert (told["begin"], told["end"]) == ("2024-07-31T22:00:00.000000Z", "2024-08-31T22:00:00.000000Z")
    assert [run["outcome"] for run in told["runs"]] == ["success", "failed", "success", "success"]
    assert {one["rule"] for one in told["incidents"]} == {"run_failed", "run_missed", "damaged"}
    assert told["verifications"]["bytes"] > 0
    assert told["missing"] == ""
    assert [(one["key"], one["before"], one["after"]) for one in told["changes"] if one["key"]] == [
        ("schedule.full", "0 2 * * *", "0 3 * * *"),
        ("postgres.databases", [], ["shop"]),
    ]


def test_the_schema_is_strict(top):
    told = json.loads(aquad(top, "--json", "report", "--month", "2024-08").stdout)
    assert not fits({**told, "more": 1}, SCHEMA)
    assert not fits({**told, "begin": "2024"}, SCHEMA)
    assert not fits({**told, "runs": [{**told["runs"][0], "seconds": "1"}]}, SCHEMA)


def test_a_month_of_nothing_and_the_default(top):
    empty = aquad(top, "report", "--month", "2023-02")
    assert (empty.returncode, "Runs:\n  none" in empty.stdout) == (0, True)
    told = json.loads(aquad(top, "--json", "report").stdout)
    assert told["end"] <= told["made_at"]
    assert fits(told, SCHEMA)
    assert (datetime.fromisoformat(told["made_at"]) - datetime.fromisoformat(told["end"])).days < 32


@pytest.mark.parametrize("month", ["9999-01", "2024-13", "august", "", "2024-08-01", "0000-01", "9999-12"])
def test_what_is_no_month_or_has_not_begun(top, month):
    done = aquad(top, "report", "--month", month)
    assert done.returncode == 2
    assert done.stderr.startswith("aquad: error: report --month")
    assert done.stdout == ""


def test_nothing_is_written(top):
    before = (top / "backups" / "state" / "audit.jsonl").read_bytes()
    aquad(top, "report", "--month", "2024-08")
    assert (top / "backups" / "state" / "audit.jsonl").read_bytes() == before
