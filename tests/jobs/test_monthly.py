"""The report of a month: what it takes from the journal, incident by incident, and what it says to people."""

import json
import tracemalloc
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from aquad.core.clock import to_text
from aquad.core.errors import InvalidUse
from aquad.jobs.slots import ORDER
from aquad.jobs.trail.monthly import Fact, month_of, window
from aquad.observe.monthly import monthly_report
from aquad.storage.journal import Journal
from tests.small import FakeClock

WARSAW = ZoneInfo("Europe/Warsaw")
NOW = datetime(2024, 10, 10, tzinfo=UTC)
HOSTILE = "x\x1b[2J\n\u202ey"


def moment(text):
    """`08-03 02:00`, of 2024, UTC."""
    return datetime.strptime(f"2024-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


class Past:
    """A journal that is written line by line, each at its own moment."""

    def __init__(self, path, *, created="07-01 00:00"):
        self.clock = FakeClock()
        self.journal = Journal(path / "audit.jsonl", self.clock, "daemon")
        self.runs = 0
        if created:
            self.say(created, "repository_created", repository="r", encryption={"mode": "off", "key_ids": []})

    def say(self, at, event, **fields):
        self.clock.moment = moment(at) if isinstance(at, str) else at
        self.journal.append(event, **fields)

    def run(self, at, job="full", outcome="success", *, slot=True, seconds=60, attempt=1, meanwhile=(), **fields):
        """It begins at `at`; `meanwhile`: lines that it writes half-way."""
        self.runs += 1
        begin = moment(at) if isinstance(at, str) else at
        turn = (
            {"slot": to_text(begin), "attempt": attempt} if slot is True else {"slot": slot and to_text(moment(slot))}
        )
        if turn["slot"]:
            turn["attempt"] = attempt
        about = {"run": f"run{self.runs}", "job": job, **turn}
        self.say(begin, "run_started", **about)
        for event, more in meanwhile:
            self.say(begin + timedelta(seconds=seconds / 2), event, **more)
        end = {} if outcome == "interrupted" else {"milliseconds": seconds * 1000}
        self.say(begin + timedelta(seconds=seconds), "run_ended", **about, outcome=outcome, **end, **fields)
        return about["run"]

    def backup(self, at, name, components=("words",), **fields):
        return self.run(at, backup=name, components=dict.fromkeys(components, "success"), free_bytes=9, **fields)

    def slot(self, at, slot, outcome, job="full", **fields):
        self.say(at, "slot_ended", job=job, slot=to_text(moment(slot)), outcome=outcome, **{"reason": "", **fields})

    def alert(self, at, rule, text="because", component=None, level="warning"):
        self.say(at, "alert", rule=rule, level=level, component=component, text=text)

    def month(self, name="2024-08", *, known=None, zone=UTC, now=NOW, removed=0):
        return month_of(
            self.journal.entries(),
            known or {},
            window(name, now, zone),
            stack="small",
            zone=zone,
            now=now,
            removed=removed,
        )

    def text(self, name="2024-08", *, zone=UTC, **options):
        return monthly_report(self.month(name, zone=zone, **options), zone)


@pytest.fixture
def past(tmp_path):
    return Past(tmp_path)


def kinds(month):
    return [(one.rule, one.subject, one.state) for one in month.incidents]


def days(incident):
    end = incident.ended_at and f"{incident.ended_at:%m-%d %H:%M}"
    return f"{incident.started_at:%m-%d %H:%M}", end


class TestWindow:
    def test_of_a_zone(self):
        summer = window("2024-08", NOW, WARSAW)
        assert (summer.begin, summer.end) == (moment("07-31 22:00"), moment("08-31 22:00"))
        autumn = window("2024-10", NOW, WARSAW)
        assert (autumn.begin, autumn.end) == (moment("09-30 22:00"), moment("10-31 23:00"))
        assert window("2023-12", NOW, UTC).end == datetime(2024, 1, 1, tzinfo=UTC)

    def test_the_month_before_is_that_of_the_zone(self):
        assert window(None, moment("08-31 22:30"), WARSAW).name == "2024-08"
        assert window(None, moment("08-31 22:30"), UTC).name == "2024-07"
        assert window(None, moment("01-31 12:00"), UTC).name == "2023-12"

    def test_this_month_has_begun_the_next_has_not(self):
        assert window("2024-10", NOW, UTC).name == "2024-10"
        with pytest.raises(InvalidUse, match="not begun"):
            window("2024-11", NOW, UTC)
        assert window("2024-11", moment("10-31 23:30"), WARSAW).name == "2024-11"

    @pytest.mark.parametrize(
        "text", ["", "2024", "2024-13", "2024-00", "2024-8", "2024-08-01", "\uff12024-08", "0001-01", "2024-08\n"]
    )
    def test_no_month(self, text):
        with pytest.raises(InvalidUse, match="not a month"):
            window(text, NOW, UTC)


class TestRuns:
    def test_begin_and_end_of_the_month_in_a_zone(self, past):
        for at in ("07-31 21:59", "07-31 22:00", "08-31 21:59", "08-31 22:00"):
            past.run(at)
        assert [f"{run.started_at:%m-%d %H:%M}" for run in past.month(zone=WARSAW).runs] == [
            "07-31 22:00",
            "08-31 21:59",
        ]
        assert past.month(zone=WARSAW).run_counts == {"full": {"success": 2}}
        assert past.month(zone=UTC).run_counts == {"full": {"success": 2}}
        assert [len(past.month(name, zone=WARSAW).runs) for name in ("2024-07", "2024-09")] == [1, 1]

    def test_one_that_reaches_into_the_month_is_told_unless_it_was_a_success_and_counted_once(self, past):
        past.run("07-31 23:50", "weekly", "failed", seconds=1200, reason="broken")
        past.run("08-31 23:50", "weekly", "success", seconds=1200)
        assert [month.run_counts for month in (past.month("2024-07"), past.month(), past.month("2024-09"))] == [
            {"weekly": {"failed": 1}},
            {"weekly": {"success": 1}},
            {},
        ]
        assert [run.counted for run in past.month().runs] == [False, True]
        assert past.month("2024-09").runs == []
        assert "it began before this month" in past.text()

    def test_what_died_and_what_has_no_end(self, past):
        past.run("08-03 02:00", outcome="interrupted", seconds=7 * 3600, reason="the process died")
        past.say("08-04 02:00", "run_started", run="x", job="verify", slot=None)
        told, text = past.month(), past.text()
        assert [(run.outcome, run.seconds) for run in told.runs] == [("interrupted", None), (None, None)]
        assert told.run_counts == {"full": {"interrupted": 1}, "verify": {"no end yet": 1}}
        assert "INTERRUPTED\n    found dead 2024-08-03 09:00:00 UTC; slot" in text
        assert "verify: NO END YET" in text
        assert [run.run for run in past.month("2024-09").runs] == ["x"]  # nobody knows better

    def test_one_that_did_not_begin_has_only_an_end(self, past):
        past.say(
            "08-03 02:00",
            "run_ended",
            run="x",
            job="full",
            slot=to_text(moment("08-03 02:00")),
            attempt=2,
            outcome="failed",
            reason="it did not begin",
        )
        (run,) = past.month().runs
        assert (run.started_at, run.attempt, run.reason) == (moment("08-03 02:00"), 2, "it did not begin")

    def test_quiet_days_are_one_line_and_nothing_else_is_folded(self, past):
        for day in range(1, 32):
            for hour in (0, 6, 12, 18):
                past.run(f"08-{day:02} {hour:02}:00", "postgres")
            past.run(
                f"08-{day:02} 23:00",
                "full",
                "warning" if day == 7 else "failed" if day == 9 else "success",
                reason=f"why {day}" * (day in {7, 9}),
            )
        past.run("08-31 23:30", "full", slot=False)
        past.run("08-31 23:40", "full", attempt=2)
        lines = past.text().split("\nRuns:\n")[1].split("\nChanges:")[0].splitlines()
        assert (
            lines[0]
            == "  2024-08-01 Thu  postgres 00:00 (1m 0s), 06:00 (1m 0s), 12:00 (1m 0s), 18:00 (1m 0s); full 23:00 (1m 0s): success"
        )
        assert sum(": success" in line and line.startswith("  2024-08-") and ";" in line for line in lines) == 29
        assert sum("cause: why" in line for line in lines) == 2
        assert sum("full: FAILED" in line for line in lines) == 1
        assert sum("full: warning" in line for line in lines) == 1
        assert sum("postgres: success" in line for line in lines) == 8
        assert sum("by hand" in line or "attempt 2" in line for line in lines) == 2
        assert f"  {29 * 5} of 157 runs are folded" in "\n".join(lines)
        assert len(past.month().runs) == 157

    def test_days_are_those_of_the_zone(self, past):
        past.run("08-03 22:30")
        assert "2024-08-04 Sun  full 00:30" in past.text(zone=WARSAW)


class TestSlots:
    def test_counts_and_availability(self, past):
        past.slot("08-02 03:00", "08-02 02:00", "success")
        past.slot("08-03 03:00", "08-03 02:00", "warning")
        past.slot("08-04 03:00", "08-04 02:00", "failed")
        past.slot("08-05 03:00", "08-05 02:00", "skipped")
        past.slot("08-09 03:00", "08-08 02:00", "missed", first=to_text(moment("08-06 02:00")), count=3)
        past.slot("09-01 01:00", "08-31 02:00", "success", job="verify")
        past.slot("09-02 03:00", "09-02 02:00", "success")
        told = past.month()
        assert told.slot_counts == {
            "full": {"success": 1, "warning": 1, "failed": 1, "skipped": 1, "missed": 3},
            "verify": {"success": 1},
        }
        assert told.availability == 3 / 8
        assert "37.5 % of 8 slots" in past.text()

    def test_a_hundred_per_cent_is_said_of_nothing_less(self, past):
        past.slot("08-02 03:00", "08-02 02:00", "missed")
        past.slot(
            "08-31 00:00", "08-31 00:00", "success", job="postgres", first=to_text(moment("08-01 00:00")), count=9999
        )
        assert "99.9 % of" in past.text()

    @pytest.mark.parametrize(
        ("rule", "slot", "first", "count", "shares"),
        [
            ("0 2 * * *", "09-02 00:00", "07-29 00:00", 36, (3, 31, 2)),
            ("0 0 * * *", "08-31 22:00", "07-30 22:00", 33, (1, 31, 1)),
            ("0 3 1 * *", "09-01 01:00", "07-01 01:00", 3, (1, 1, 1)),
        ],
        ids=["daily", "at midnight", "monthly"],
    )
    def test_a_range_over_the_borders_is_shared_out_by_the_rule_of_then(self, past, rule, slot, first, count, shares):
        past.say("07-01 00:01", "settings", changed={}, values={"schedule.full": rule})
        past.slot("09-02 03:00", slot, "missed", first=to_text(moment(first)), count=count)
        past.say("09-03 00:01", "settings", changed={}, values={"schedule.full": "* * * * *"})
        found = [
            past.month(name, zone=WARSAW).slot_counts["full"]["missed"] for name in ("2024-07", "2024-08", "2024-09")
        ]
        assert tuple(found) == shares
        assert sum(found) == count


class TestIncidentsOfRuns:
    def test_a_failure_lasts_until_the_job_succeeds(self, past):
        past.run("08-10 02:00", outcome="failed", reason="no space")
        past.run("08-10 02:10", outcome="failed", slot="08-10 02:00", attempt=2, reason="no space")
        past.slot("08-10 02:12", "08-10 02:00", "failed", reason="no space")
        past.alert(
            "08-10 02:12", "run_failed", f"full of {to_text(moment('08-10 02:00'))} failed: no space", level="critical"
        )
        past.run("08-11 01:00", "verify")
        past.run("08-11 02:00", reason="")
        (one,) = past.month().incidents
        assert (one.rule, one.subject, one.level, one.times) == ("run_failed", "full", "critical", 2)
        assert days(one) == ("08-10 02:00", "08-11 02:01")
        assert (one.cause, one.last_cause, one.ended_by) == ("no space", "", "run run4 of full ended in success")

    def test_it_is_open_while_it_is_not_over_and_reaches_over_months(self, past):
        past.run("07-30 02:00", outcome="failed", reason="first")
        past.run("08-10 02:00", outcome="failed", reason="second")
        assert kinds(past.month()) == [("run_failed", "full", "open")]
        assert "STILL OPEN" in past.text()
        assert "(before this month)" in past.text()
        past.run("09-02 02:00", outcome="warning")
        (one,) = past.month().incidents
        assert (days(one), one.times, one.cause, one.last_cause) == (
            ("07-30 02:00", "09-02 02:01"),
            2,
            "first",
            "second",
        )
        assert kinds(past.month("2024-07")) == kinds(past.month("2024-09")) == [("run_failed", "full", "over")]
        assert past.month("2024-10").incidents == []
        assert past.month("2024-06").incidents == []

    def test_flapping_is_told_each_time(self, past):
        for day in range(1, 21):
            past.run(f"08-{day:02} 02:00", outcome="failed" if day % 2 else "success")
        assert [days(one)[0][:5] for one in past.month().incidents] == [f"08-{day:02}" for day in range(1, 20, 2)]

    def test_a_part_taken_by_hand_does_not_end_it(self, past):
        past.backup("08-01 02:00", "b1", ("words", "files"))
        past.run("08-02 02:00", outcome="failed", reason="words failed")
        past.backup("08-02 08:00", "b2", ("files",), slot=False)
        assert kinds(past.month()) == [("run_failed", "full", "open")]
        past.backup("08-02 09:00", "b3", ("words", "files"), slot=False)
        assert days(past.month().incidents[0])[1] == "08-02 09:01"

    def test_missed_slots_begin_when_they_were_due(self, past):
        past.slot(
            "08-09 03:00",
            "08-08 02:00",
            "missed",
            first=to_text(moment("08-06 02:00")),
            count=3,
            reason="no daemon was there to run it",
        )
        past.alert(
            "08-09 03:00",
            "run_missed",
            f"full of {to_text(moment('08-08 02:00'))} missed: no daemon was there to run it",
        )
        past.run("08-09 03:01")
        (one,) = past.month().incidents
        assert (one.rule, one.times, one.level) == ("run_missed", 3, "warning")
        assert days(one) == ("08-06 02:00", "08-09 03:02")

    def test_skipped_is_one_only_with_an_alert(self, past):
        past.slot("08-08 02:01", "08-08 02:00", "skipped", reason="the schedule is held")
        assert past.month().incidents == []
        past.slot("08-09 02:01", "08-09 02:00", "skipped", reason="its turn had not come")
        past.alert(
            "08-09 02:01", "run_skipped", f"full of {to_text(moment('08-09 02:00'))} skipped: its turn had not come"
        )
        assert [(one.rule, one.cause, one.times) for one in past.month().incidents] == [
            ("run_skipped", "its turn had not come", 1)
        ]

    def test_the_end_of_a_slot_that_comes_late_opens_nothing_again(self, past):
        past.run("08-10 02:00", outcome="failed", reason="no space")
        past.run("08-10 05:00", slot=False)
        past.slot("08-12 00:00", "08-10 02:00", "failed", reason="no space")
        past.alert(
            "08-12 00:00", "run_failed", f"full of {to_text(moment('08-10 02:00'))} failed: no space", level="critical"
        )
        assert kinds(past.month()) == [("run_failed", "full", "over")]

    def test_an_alert_without_its_slot_is_an_incident_too(self, past):
        past.alert(
            "08-12 00:00", "run_failed", f"full of {to_text(moment('08-10 02:00'))} failed: no space", level="critical"
        )
        assert kinds(past.month()) == [("run_failed", "full", "open")]

    @pytest.mark.parametrize("job", ["prune", "trash empty", "restore discard"])
    def test_by_hand_it_does_not_outlast_its_run(self, past, job):
        past.run("08-10 02:00", job, "failed", slot=False, reason="not confirmed")
        assert kinds(past.month()) == [("run_failed", job, "over")]

    def test_every_job_of_the_schedule_lasts(self, past):
        for job in ORDER:
            past.run("08-10 02:00", job, "aborted", reason="ended by a signal")
        assert {one[2] for one in kinds(past.month())} == {"open"}


class TestOtherIncidents:
    @pytest.mark.parametrize("measure", ["size", "duration", "rows"])
    def test_an_anomaly_lasts_until_a_backup_of_the_component_raises_none(self, past, measure):
        rule = f"{measure}_anomaly"
        alert = ("alert", {"rule": rule, "level": "warning", "component": "words", "text": "half of before"})
        past.backup("08-01 02:00", "b1", meanwhile=[alert])
        past.backup("08-02 02:00", "b2", meanwhile=[alert])
        past.backup("08-03 02:00", "b3", ("files",))
        past.run("08-04 02:00", outcome="failed", backup="b4", components={"words": "failed", "files": "success"})
        assert (rule, "words", "open") in kinds(past.month())
        past.backup("08-05 02:00", "b5")
        one = next(one for one in past.month().incidents if one.rule == rule)
        assert (days(one), one.times) == (("08-01 02:00", "08-05 02:01"), 2)
        assert one.ended_by == "backup b5 raised no such alert"

    def test_an_anomaly_is_over_when_it_is_accepted(self, past):
        for component in ("words", "files"):
            past.alert("08-01 02:00", "size_anomaly", component=component)
        past.say("08-02 09:00", "accepted", component="words")
        assert [(one.subject, one.ended_by) for one in past.month().incidents] == [
            ("files", ""),
            ("words", "accepted by daemon"),
        ]

    def test_damage_lasts_until_as_close_a_look_finds_it_good(self, past):
        def look(at, level, outcome, problems=()):
            past.say(at, "verified", backup="b1", level=level, outcome=outcome, problems=list(problems))

        look("08-01 04:30", "content", "failed", ["a byte is wrong"])
        past.alert("08-01 04:30", "damaged", "b1 is damaged: a byte is wrong", level="critical")
        past.run("08-01 04:31", "verify", "failed", damaged=["b1"], slot=False)
        look("08-02 04:30", "bytes", "success")
        past.run("08-02 04:31", "verify", damaged=[], slot=False)
        one = past.month().incidents[0]
        assert (one.rule, one.subject, one.state, one.times) == ("damaged", "b1", "open", 1)
        assert "STILL DAMAGED" in past.text()
        look("08-03 04:30", "content", "success")
        one = past.month().incidents[0]
        assert days(one) == ("08-01 04:30", "08-03 04:30")
        assert "a byte is wrong" in one.cause
        assert past.month().verifications.damaged == ["b1"]

    def test_damage_is_over_when_the_backup_goes_and_is_back_with_it(self, past):
        past.say("08-01 04:30", "verified", backup="b1", level="bytes", outcome="failed", problems=["p"])
        past.say("08-02 04:30", "pruned", backup="b1", kind="full", reason="old")
        past.say("08-03 04:30", "trash_restored", backup="b1")
        past.say("08-04 04:30", "pruned", backup="b1", kind="full", reason="old")
        past.say("08-05 04:30", "trash_emptied", backup="b1")
        assert [days(one) for one in past.month().incidents] == [
            ("08-01 04:30", "08-02 04:30"),
            ("08-03 04:30", "08-04 04:30"),
        ]

    def test_a_damaged_manifest_is_known_by_its_alert_alone(self, past):
        for day in ("01", "02"):
            past.run(
                f"08-{day} 04:30",
                "verify",
                "failed",
                damaged=["b1"],
                meanwhile=[
                    (
                        "alert",
                        {"rule": "damaged", "level": "critical", "component": None, "text": "b1 is damaged: its bytes"},
                    )
                ],
            )
        assert ("damaged", "b1", "open") in kinds(past.month())
        past.run("08-03 04:30", "verify", "failed", damaged=["b2"])
        one = next(one for one in past.month().incidents if one.rule == "damaged")
        assert (days(one), one.times) == (("08-01 04:30", "08-03 04:31"), 2)

    def test_the_disk_is_well_when_somebody_says_so(self, past):
        alert = ("alert", {"rule": "disk", "level": "warning", "component": None, "text": "81 % used"})
        worse = ("alert", {"rule": "disk", "level": "critical", "component": None, "text": "86 % used"})
        past.backup("08-01 02:00", "b1", meanwhile=[alert])
        past.backup("08-02 02:00", "b2", meanwhile=[worse])
        past.run("08-03 02:00", "verify")
        over = ("alert_over", {"rule": "disk", "component": None, "text": "40 % are free"})
        past.backup("08-04 02:00", "b3", meanwhile=[over])
        (one,) = past.month().incidents
        assert (one.rule, one.level, days(one)) == ("disk", "critical", ("08-01 02:00", "08-04 02:00"))
        assert one.ended_by == "40 % are free"
        assert (one.cause, one.last_cause) == ("81 % used", "86 % used")

    @pytest.mark.parametrize(
        ("event", "fields"),
        [("settings", {"changed": {"stack": ["a", "b"]}, "values": {}}), ("daemon_started", {"version": "1"})],
    )
    def test_settings_that_were_not_taken(self, past, event, fields):
        past.alert("08-01 02:00", "settings_invalid", "settings not taken")
        past.backup("08-01 03:00", "b1")
        assert kinds(past.month()) == [("settings_invalid", "", "open")]
        past.say("08-01 04:00", event, **fields)
        assert days(past.month().incidents[0]) == ("08-01 02:00", "08-01 04:00")

    def test_restarts_are_over_when_a_slot_succeeds(self, past):
        past.alert("08-01 02:00", "daemon_restarts")
        past.run("08-01 02:30", slot=False)
        assert kinds(past.month()) == [("daemon_restarts", "", "open")]
        past.run("08-01 03:00")
        assert kinds(past.month()) == [("daemon_restarts", "", "over")]

    def test_of_an_unknown_rule_nobody_knows_when_it_is_over(self, past):
        for at in ("07-31 12:00", "08-01 02:00", "08-01 12:00", "08-05 02:00", "09-01 12:00"):
            past.alert(at, "journal_lost")
        told = past.month().incidents
        assert [(one.state, one.times, one.ended_at) for one in told] == [("moment", 3, None), ("moment", 1, None)]
        assert "STILL OPEN" not in past.text()

    def test_of_lines_that_are_gone_nothing_is_concluded(self, past):
        """Carried: two failures long ago; what lay between them is not known."""
        past.run("07-03 02:00", outcome="failed", reason="long ago")
        past.run("08-20 02:00", outcome="failed", reason="the last")
        gone = sum(1 for _ in past.journal.entries())
        past.run("08-21 02:00")
        assert [days(one) for one in past.month(removed=gone).incidents] == [("08-20 02:00", "08-21 02:01")]


class TestRestoresAndHolds:
    def restore(self, past, at, outcome, done, *, hold=True, job="restore all"):
        held = (
            "held",
            {
                "until": None,
                "reason": "half",
                "cause": "restore",
                "run": f"run{past.runs + 1}",
                "components": ["words"],
            },
        )
        lines = [held] * hold + [
            ("restore_started", {"run": f"run{past.runs + 1}", "orders": [["words", "b1"], ["files", "b1"]]})
        ]
        lines += [
            (
                "restored",
                {"run": f"run{past.runs + 1}", "component": name, "origin": "b1", "milliseconds": 5000, "kept": []},
            )
            for name in done
        ]
        lines += [("released", {"cause": "restore"})] * (hold and outcome == "success")
        past.run(
            at,
            job,
            outcome,
            slot=False,
            seconds=600,
            meanwhile=lines,
            reason="" if outcome == "success" else "no route",
        )

    def test_restores_with_their_parts(self, past):
        self.restore(past, "08-05 10:00", "failed", ["words"])
        self.restore(past, "08-05 12:00", "success", ["words", "files"])
        past.run("08-06 10:00", "restore discard", slot=False, discarded=["shop_before"])
        told = past.month()
        assert [[(part.component, part.seconds) for part in one.components] for one in told.restores] == [
            [("words", 5.0), ("files", None)],
            [("words", 5.0), ("files", 5.0)],
        ]
        assert [(one.rule, one.subject, days(one)) for one in told.incidents] == [
            ("run_failed", "restore all", ("08-05 10:00", "08-05 12:05"))
        ]
        assert [(hold.cause, hold.ended_by) for hold in told.holds] == [("restore", "the restore came to its end")]
        assert "files from b1: NOT BROUGHT BACK" in past.text()
        assert [change.what for change in told.changes] == ["shop_before, kept aside by a restore, was discarded"]

    def test_one_that_overwrote_nothing_leaves_nothing_open(self, past):
        self.restore(past, "08-05 10:00", "failed", [], hold=False)
        past.run("08-06 10:00", "restore all", "failed", slot=False, reason="not confirmed")
        told = past.month()
        assert kinds(told) == [("run_failed", "restore all", "over")]
        assert len(told.restores) == 2
        assert "nothing was touched" in past.text()

    def test_half_a_restore_is_over_when_it_is_released(self, past):
        self.restore(past, "08-05 10:00", "failed", [])
        assert kinds(past.month()) == [("run_failed", "restore all", "open")]
        past.say("08-05 11:00", "released", cause="operator")
        assert past.month().incidents[0].ended_by == "released by daemon"

    def test_holds(self, past):
        def held(at, until, why):
            past.say(at, "held", until=until and to_text(moment(until)), reason=why, cause="operator")

        held("07-30 10:00", "07-30 12:00", "before")
        held("07-31 23:00", "08-01 01:00", "ran out")
        held("08-03 10:00", "08-03 18:00", "replaced")
        held("08-03 12:00", "08-03 20:00", "released")
        past.say("08-03 13:00", "released", cause="operator")
        held("08-31 10:00", "12-01 00:00", "standing")
        held_now = past.month().holds
        assert [(one.reason, one.ended_at, one.ended_by) for one in held_now] == [
            ("ran out", moment("08-01 01:00"), "it ran out"),
            ("replaced", moment("08-03 12:00"), "held anew by daemon"),
            ("released", moment("08-03 13:00"), "released by daemon"),
            ("standing", None, ""),
        ]
        assert "IT STILL HOLDS" in past.text()
        assert [one.reason for one in past.month("2024-09").holds] == ["standing"]


class TestBackups:
    def test_verifications_and_bytes(self, past):
        for at, backup, level, outcome in (
            ("07-31 04:00", "b0", "bytes", "success"),
            ("08-01 04:00", "b1", "bytes", "success"),
            ("08-02 04:00", "b1", "content", "success"),
            ("08-02 04:00", "b2", "quick", "success"),
            ("08-02 05:00", "gone", "bytes", "success"),
            ("08-03 04:00", "b3", "bytes", "failed"),
        ):
            past.say(at, "verified", backup=backup, level=level, outcome=outcome)
        told = past.month(
            known={f"b{n}": Fact(moment("07-01 00:00"), 10**n, frozenset()) for n in range(4)}
        ).verifications
        assert told.counts == {"bytes": {"success": 2, "failed": 1}, "content": {"success": 1}, "quick": {"success": 1}}
        assert (told.good, told.bytes, told.size_unknown, told.damaged) == (2, 10, 1, ["b3"])

    def test_what_was_good_and_is_damaged_is_not_good(self, past):
        past.say("08-01 04:00", "verified", backup="b1", level="bytes", outcome="success")
        past.say("08-02 04:00", "verified", backup="b1", level="content", outcome="failed")
        past.say("08-03 04:00", "verified", backup="b1", level="bytes", outcome="success")
        told = past.month(known={"b1": Fact(moment("07-01 00:00"), 10, frozenset())}).verifications
        assert (told.good, told.bytes, told.size_unknown, told.damaged) == (0, 0, 0, ["b1"])
        past.say("08-04 04:00", "verified", backup="b1", level="content", outcome="success")
        assert past.month().verifications.good == 1

    def test_the_newest_good_ones_at_the_end_of_the_month(self, past):
        past.backup("08-01 02:00", "b1", ("words", "files"))
        past.backup("08-02 02:00", "b2", ("words",))
        past.backup("08-03 02:00", "b3", ("words",))
        past.run("08-04 02:00", outcome="failed", backup="b4", components={"words": "failed", "mail": "failed"})
        past.backup("09-01 02:00", "b5", ("words", "files"))

        def newest():
            return {one.component: one.backup for one in past.month().newest}

        assert newest() == {"words": "b3", "files": "b1", "mail": None}
        past.say("08-05 04:00", "verified", backup="b3", level="bytes", outcome="failed")
        assert newest()["words"] == "b2"
        past.say("08-06 04:00", "pruned", backup="b2", kind="full", reason="old")
        assert newest()["words"] == "b1"
        past.say("08-07 04:00", "trash_restored", backup="b2")
        past.say("09-07 04:00", "pruned", backup="b2", kind="full", reason="old")
        assert newest()["words"] == "b2"
        assert past.month().removed == {"full": 1}

    def test_manifests_know_more_than_a_journal_that_was_lost(self, past):
        known = {
            "b1": Fact(moment("08-01 02:00"), 1, frozenset({"words"})),
            "b2": Fact(moment("09-01 02:00"), 1, frozenset({"words"})),
        }
        assert [(one.component, one.backup) for one in past.month(known=known).newest] == [("words", "b1")]


class TestChanges:
    def test_each_is_told(self, past):
        past.say("08-01 00:00", "daemon_started", version="1")
        past.say("08-01 00:01", "settings", changed={}, values={"a": 1, "b": 2})
        past.say(
            "08-01 00:02",
            "settings",
            changed={"schedule.full": ["0 2 * * *", "0 3 * * *"], "postgres.databases": [[], ["x"]]},
            values={},
        )
        past.say("08-01 00:03", "encryption_changed", encryption={"mode": "public-key", "key_ids": ["AB"]})
        past.say("08-01 00:04", "key_confirmed", encryption={"mode": "public-key", "key_ids": ["AB"]})
        past.say("08-01 00:05", "kept", backup="b1", until=to_text(moment("12-31 23:00")))
        past.say("08-01 00:06", "unkept", backup="b1")
        past.say(
            "08-01 00:07", "clock_went_back", seen=to_text(moment("08-01 00:09")), to=to_text(moment("08-01 00:07"))
        )
        past.say("08-01 00:08", "daemon_started", version="2")
        past.say("08-01 00:09", "daemon_stopped", reason="SIGTERM", run=None)
        past.say("08-01 00:10", "daemon_started", version="2")
        past.say("08-01 00:11", "journal_torn", dropped_bytes=17)
        past.say("09-01 00:00", "unkept", backup="b2")
        told = past.month(zone=WARSAW).changes
        assert [change.what for change in told] == [
            "the daemon started, version 1",
            "the settings were recorded for the first time, 2 of them",
            'schedule.full: "0 2 * * *" became "0 3 * * *"',
            'postgres.databases: [] became ["x"]',
            "encryption of new backups: public-key (AB)",
            "proved that the key is kept elsewhere too: public-key (AB)",
            "b1 is kept from retention until 2025-01-01 00:00:00 CET (23:00:00 UTC)",
            "b1 is left to retention again",
            "the clock went back from 2024-08-01 02:09:00 CEST (00:09:00 UTC) to 2024-08-01 02:07:00 CEST (00:07:00 UTC)",
            "the daemon started, version 2; the one before it died without a word",
            "the daemon stopped: SIGTERM",
            "the daemon started, version 2",
            "the journal had a torn end: 17 bytes of it were dropped",
        ]
        assert (told[2].key, told[2].before, told[2].after, told[2].by) == (
            "schedule.full",
            "0 2 * * *",
            "0 3 * * *",
            "daemon",
        )
        assert "2024-08-01 02:02:00 CEST (00:02:00 UTC)  daemon: schedule.full" in past.text(zone=WARSAW)

    def test_what_is_removed_by_hand_and_what_by_the_schedule(self, past):
        pruned = ("pruned", {"backup": "b1", "kind": "full", "reason": "old"})
        emptied = ("trash_emptied", {"backup": "b0"})
        past.run("08-01 03:00", "cleanup", meanwhile=[pruned, emptied])
        assert past.month().changes == []
        past.run("08-02 03:00", "full", slot=False, meanwhile=[pruned, emptied])
        assert past.month().changes == []
        past.run("08-03 03:00", "prune", slot=False, meanwhile=[pruned, emptied])
        past.run("08-04 03:00", "trash empty", slot=False, meanwhile=[emptied])
        assert [change.event for change in past.month().changes] == ["pruned", "trash_emptied", "trash_emptied"]
        assert (past.month().removed, past.month().deleted) == ({"full": 3}, 4)


class TestWhole:
    def test_a_repository_that_began_in_the_month(self, tmp_path):
        past = Past(tmp_path, created="08-10 00:00")
        assert past.month().missing == ""

    def test_a_journal_that_began_anew(self, tmp_path):
        past = Past(tmp_path, created=None)
        past.run("08-10 00:00")
        assert "begins anew at 2024-08-10 00:00:00 UTC" in past.month().missing
        assert "NOT WHOLE: " in past.text()
        assert past.month("2024-09").missing == ""

    def test_lines_that_were_removed(self, past):
        past.run("08-09 02:00")
        past.journal.rotate()
        past.run("08-10 02:00")
        removed = past.journal.remove_before(
            moment("12-31 00:00"), 1 << 60, lambda entries: [e for e in entries if e["event"] == "run_ended"]
        )
        gone = removed.lines
        assert gone == 3
        told = past.month(removed=gone)
        assert "lines of the journal from before 2024-08-09 02:01:00 UTC were removed" in told.missing
        assert len(told.runs) == 2
        assert past.month("2024-09", removed=gone).missing == ""
        assert past.month("2024-07", removed=gone).missing


class TestReport:
    def test_an_empty_month(self, past):
        told, text = past.month(), past.text()
        assert (told.availability, told.runs, told.incidents, told.changes) == (None, [], [], [])
        for section in ("Incidents", "Restores", "Runs", "Changes", "Holds of the schedule", "Verifications"):
            assert f"\n{section}:\n  none\n" in text
        assert "no slot of the schedule was due" in text

    def test_a_month_that_is_not_over(self, past):
        assert "NOT OVER" in past.text("2024-10")
        assert "NOT OVER" not in past.text("2024-09")

    def test_nothing_of_the_data_reaches_the_terminal_as_it_is(self, past):
        past.run("08-01 02:00", outcome="failed", reason=HOSTILE, backup=HOSTILE, components={HOSTILE: "failed"})
        past.alert("08-01 03:00", "size_anomaly", HOSTILE, component=HOSTILE)
        past.alert("08-01 03:00", HOSTILE, HOSTILE, level=HOSTILE)
        past.say("08-01 04:00", "held", until=None, reason=HOSTILE, cause=HOSTILE, by=HOSTILE)
        past.say("08-01 04:00", "settings", changed={HOSTILE: [HOSTILE, None]}, values={}, by=HOSTILE)
        past.say("08-01 05:00", "verified", backup=HOSTILE, level="bytes", outcome="failed", problems=[HOSTILE])
        past.say("08-01 06:00", "daemon_stopped", reason=HOSTILE)
        past.say("08-01 06:00", "kept", backup=HOSTILE, until=None)
        past.say("08-01 06:00", "pruned", backup="b", kind=HOSTILE, reason=HOSTILE)
        past.slot("08-01 07:00", "08-01 02:00", HOSTILE, job=HOSTILE, reason=HOSTILE)
        TestRestoresAndHolds().restore(past, "08-05 10:00", "failed", ["words"], job=f"restore {HOSTILE}")
        text = past.text()
        assert text.count(r"x\x1b[2J\n\u202ey") > 20
        assert all(line.isprintable() for line in text.splitlines())
        assert json.dumps(asdict(past.month()), default=str)

    def test_what_is_remembered_does_not_grow_with_other_months(self):
        """Years of nights read as a stream: what `month_of` holds stays that of a month."""

        def night(day, nights):
            at = datetime(2014, 4, 1, 2, tzinfo=UTC) - timedelta(days=nights - day)
            run = {"run": f"r{day}", "job": "full", "slot": to_text(at), "attempt": 1, "by": "daemon"}
            backup = f"b{day}"
            yield {"line": 5 * day + 1, "at": to_text(at), "event": "run_started", **run}
            yield {
                "line": 5 * day + 2,
                "at": to_text(at),
                "event": "run_ended",
                **run,
                "outcome": "failed" if day % 3 else "success",
                "milliseconds": 1,
                "backup": backup,
                "components": {"words": "success"},
            }
            yield {
                "line": 5 * day + 3,
                "at": to_text(at),
                "event": "slot_ended",
                "job": "full",
                "slot": run["slot"],
                "outcome": "success",
                "reason": "",
            }
            yield {
                "line": 5 * day + 4,
                "at": to_text(at),
                "event": "pruned",
                "backup": f"b{day - 30}",
                "kind": "full",
                "reason": "old",
            }
            yield {"line": 5 * day + 5, "at": to_text(at), "event": "trash_emptied", "backup": f"b{day - 37}"}

        def peak(nights):
            tracemalloc.start()
            try:
                entries = (entry for day in range(nights) for entry in night(day, nights))
                told = month_of(entries, {}, window("2014-03", NOW, UTC), stack="small", zone=UTC, now=NOW)
                assert told.run_counts["full"]["failed"] + told.run_counts["full"]["success"] == 31
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(100)
        assert peak(800) < peak(200) + 50_000
