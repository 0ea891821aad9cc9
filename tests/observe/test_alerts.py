"""Who is told what, and when: by examples, and by histories against the promises."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquad.observe.alerts import CHANNEL_FAILS, HELD, REPEATED, Told, due
from aquad.observe.month import Incident

START = datetime(2024, 8, 2, 2, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
BOTH = ("warning", "critical")


def incident(
    rule="run_failed", subject="full", level="critical", *, state="open", at=0, last=None, ended=None, times=1
):
    """`at`, `last`, `ended`: minutes after the start."""
    return Incident(
        rule=rule,
        subject=subject,
        level=level,
        state=state if ended is None else "over",
        started_at=START + at * MINUTE,
        last_at=START + (at if last is None else last) * MINUTE,
        ended_at=None if ended is None else START + ended * MINUTE,
        ended_by="" if ended is None else "it went well",
        times=times,
        cause="why",
        last_cause="",
    )


class Channel:
    """Tells all that is due, and remembers it as the journal does."""

    def __init__(self, name="slack", levels=BOTH):
        self.name, self.levels, self.told, self.sent = name, levels, Told(), []

    def look(self, incidents, minutes, muted=False):
        now = START + minutes * MINUTE
        found = due(self.name, self.levels, incidents, self.told, now=now, muted=muted)
        for message in found.messages:
            self.told.add(now, message.level, message.told())
            self.sent.append((minutes, message))
        self.look_at = found.look_at and (found.look_at - START) / MINUTE
        return [
            (message.level, [(n.kind, n.incident.rule, n.repeats) for n in message.notices])
            for message in found.messages
        ]


@pytest.fixture
def channel():
    return Channel()


def test_one_alert_one_resolution(channel):
    failed = incident()
    assert channel.look([failed], 0) == [("critical", [("fired", "run_failed", 1)])]
    assert channel.look([failed], 1) == []
    over = incident(ended=10)
    assert channel.look([over], 11) == []
    assert channel.look_at == 25
    assert channel.look([over], 25) == [("critical", [("resolved", "run_failed", 0)])]
    assert channel.look([over], 26) == []
    assert channel.look_at is None


def test_what_comes_back_at_once_was_not_over(channel):
    channel.look([incident()], 0)
    assert channel.look([incident(ended=10), incident(at=12)], 13) == []
    assert channel.look([incident(ended=10), incident(at=12, ended=14)], 26) == []
    assert channel.look([incident(ended=10), incident(at=12, ended=14)], 29) == [
        ("critical", [("resolved", "run_failed", 1)])
    ]


def test_a_thousand_failures_are_one_alert_and_reminders_that_count(channel):
    for number in range(1000):
        channel.look([incident(last=number, times=number + 1)], number)
    kinds = [(minutes, message.notices[0].kind, message.notices[0].repeats) for minutes, message in channel.sent]
    assert kinds == [
        (0, "fired", 1),
        (240, "again", 240),
        (480, "again", 240),
        (720, "again", 240),
        (960, "again", 240),
    ]


def test_one_that_only_goes_on_is_a_reminder_a_day(channel):
    channel.look([incident()], 0)
    assert channel.look([incident()], 24 * 60 - 1) == []
    assert channel.look_at == 24 * 60
    assert channel.look([incident()], 24 * 60) == [("critical", [("again", "run_failed", 0)])]


def test_a_thousand_warnings_are_five_messages_in_an_hour_and_none_is_lost(channel):
    warnings = [incident("size_anomaly", f"v{number}", "warning", at=number / 100) for number in range(1000)]
    for minutes in range(11):
        channel.look([one for one in warnings if one.started_at <= START + minutes * MINUTE], minutes)
    assert len(channel.sent) == 5
    assert channel.look_at == 60
    channel.look(warnings, 60)
    assert len(channel.sent) == 6
    told = Counter(notice.incident.subject for _, message in channel.sent for notice in message.notices)
    assert set(told.values()) == {1}
    assert len(told) == 1000


def test_critical_ones_never_wait_for_warnings(channel):
    warnings = [incident("size_anomaly", f"v{number}", "warning") for number in range(9)]
    channel.look(warnings, 0)
    assert channel.look([*warnings, incident(at=1)], 1) == [("critical", [("fired", "run_failed", 1)])]


def test_a_warning_that_becomes_critical_is_told_again(channel):
    channel.look([incident("stale", "postgres", "warning")], 0)
    assert channel.look([incident("stale", "postgres", "critical", times=2)], 1) == [
        ("critical", [("fired", "stale", 0)])
    ]


def test_a_channel_hears_of_its_levels_only_and_of_the_end_of_what_it_heard():
    sms = Channel("sms", ("critical",))
    assert sms.look([incident("stale", "postgres", "warning")], 0) == []
    sms.look([incident("stale", "postgres", "critical")], 1)
    assert sms.look([incident("stale", "postgres", "critical", ended=2)], 20) == [
        ("critical", [("resolved", "stale", 0)])
    ]


def test_what_was_over_before_it_could_be_told_is_told_once(channel):
    assert channel.look([incident(ended=5)], 30) == [("critical", [("passed", "run_failed", 1)])]
    assert channel.look([incident(ended=5)], 31) == []
    assert channel.look([incident(subject="weekly", ended=5)], 24 * 60 + 6) == []


def test_a_moment_is_told_and_its_repeats_are_counted(channel):
    def moment(last, times):
        return [incident("journal_lost", "", state="moment", last=last, times=times)]

    assert channel.look(moment(0, 1), 0) == [("critical", [("passed", "journal_lost", 1)])]
    assert channel.look(moment(30, 4), 30) == []
    assert channel.look_at == 240
    assert channel.look(moment(30, 4), 240) == [("critical", [("passed", "journal_lost", 3)])]
    assert channel.look(moment(30, 4), 500) == []


def test_a_slot_that_is_found_missed_long_after_is_told(channel):
    channel.look([incident("run_missed", "full", "warning", ended=5)], 20)
    late = incident("run_missed", "full", "warning", at=6, last=600, ended=601)
    assert channel.look([incident("run_missed", "full", "warning", ended=5), late], 602) == [
        ("warning", [("passed", "run_missed", 1)])
    ]


def test_a_hold_mutes_warnings_but_itself(channel):
    warnings = [incident("stale", "postgres", "warning"), incident(HELD, "", "warning")]
    assert channel.look([*warnings, incident()], 0, muted=True) == [
        ("critical", [("fired", "run_failed", 1)]),
        ("warning", [("fired", HELD, 1)]),
    ]
    assert channel.look(warnings, 1) == [("warning", [("fired", "stale", 1)])]


def test_a_channel_is_not_told_that_it_fails():
    failing = [incident(CHANNEL_FAILS, "slack", "warning")]
    assert Channel("slack").look(failing, 0) == []
    assert Channel("email").look(failing, 0) == [("warning", [("fired", CHANNEL_FAILS, 1)])]


steps = st.lists(
    st.tuples(
        st.integers(1, 400), st.sampled_from("abc"), st.sampled_from(["begin", "repeat", "end", "worse", "look"])
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_histories(history):
    """However incidents come and go: none is told twice, each is told, and nobody is called more than was promised."""
    channel, minutes, open_, over = Channel(), 0, {}, []
    for minutes_more, subject, what in history:
        until = minutes + minutes_more
        while minutes < until:
            channel.look([*over, *open_.values()], minutes)
            minutes = min(until, channel.look_at) if channel.look_at else until
        case = open_.get(subject)
        match what:
            case "begin" if case is None:
                open_[subject] = incident(
                    subject=subject, level="warning" if subject == "a" else "critical", at=minutes
                )
            case "repeat" | "worse" if case is not None:
                level = "critical" if what == "worse" else case.level
                open_[subject] = incident(
                    subject=subject,
                    level=level,
                    at=(case.started_at - START) / MINUTE,
                    last=minutes,
                    times=case.times + 1,
                )
            case "end" if case is not None:
                over.append(
                    incident(
                        subject=subject,
                        level=case.level,
                        at=(case.started_at - START) / MINUTE,
                        last=(case.last_at - START) / MINUTE,
                        ended=minutes,
                        times=case.times,
                    )
                )
                del open_[subject]
    for later in range(minutes, minutes + 300, 5):
        channel.look([*over, *open_.values()], later)
    by_subject = {
        subject: [
            (at, notice.kind, notice.incident)
            for at, message in channel.sent
            for notice in message.notices
            if notice.incident.subject == subject
        ]
        for subject in "abc"
    }
    for subject, told in by_subject.items():
        _alternates(told)
        assert (told[-1][1] in {"fired", "again"} if told else False) == (subject in open_)
        criticals = [at for at, kind, one in told if one.level == "critical" and kind in {"again", "passed"}]
        assert all(later - former >= REPEATED / MINUTE for former, later in pairwise(criticals))
    warnings = [at for at, message in channel.sent if message.level == "warning"]
    assert all(later - former >= 60 for former, later in zip(warnings, warnings[5:], strict=False))


def _alternates(told):
    """fired, again..., resolved; passed only where nothing is open."""
    is_open, level = False, ""
    for _, kind, one in told:
        if kind == "fired":
            assert not is_open or (level, one.level) == ("warning", "critical")
            is_open = True
        elif kind in {"again", "resolved"}:
            assert is_open
            is_open = kind == "again"
        else:
            assert not is_open
        level = one.level
