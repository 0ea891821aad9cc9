"""What an alert says, and that nothing in it is markup, a secret, or endless (M4)."""

import html.parser
import json
from dataclasses import replace
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquad.observe.alerts import Message, Notice
from aquad.observe.messages import (
    LINE_CHARACTERS,
    Section,
    Text,
    a_test,
    as_html,
    blocks,
    cleaned,
    plain,
    short,
    written,
)
from aquad.observe.rules import RULES
from tests.observe.test_alerts import START, incident
from tests.observe.test_metrics import HOUR, overview, view

SEEN = overview(view("postgres", 3), view("configs", 30), view("kafka_data", None), now=START)


def seen():
    views = [replace(one, recovery_point_at=START - 3 * HOUR, age_seconds=10800) for one in SEEN.components[:2]]
    return replace(SEEN, components=[*views, SEEN.components[2]])


def said(notice, of=None, secrets=()):
    return plain(cleaned(written(Message("critical", [notice]), of or seen(), UTC), secrets))


def test_it_says_what_since_when_what_can_be_restored_and_what_to_do():
    text = said(Notice("fired", incident("stale", "postgres", "warning"), 1))
    assert text.startswith("s: WARNING no recent backup of postgres\n")
    assert "What happened\n  why\n" in text
    assert "When\n  since 2024-08-02 02:00:00 UTC" in text
    assert "What can be restored\n  postgres: 2024-08-01 23:00:00 UTC (3h 0m old), backup of postgres\n" in text
    assert "configs" not in text
    assert "`aquad run full`" in text
    assert "docs/runbook.md, stale" in text


def test_where_it_is_not_one_component_all_are_named():
    text = said(Notice("fired", incident(), 1))
    assert "CRITICAL run of full failed" in text
    assert "  kafka_data: NOTHING, there is no good backup of it\n" in text
    assert text.count(" old), ") == 2


def test_times_are_local_and_utc():
    text = plain(written(Message("critical", [Notice("fired", incident(), 1)]), seen(), ZoneInfo("Europe/Warsaw")))
    assert "since 2024-08-02 04:00:00 CEST (02:00:00 UTC)" in text


def test_how_it_goes_on_and_ends():
    again = said(Notice("again", replace(incident(times=9), last_cause="no route"), 8))
    assert "STILL CRITICAL run of full failed" in again
    assert "last: no route\n  found 8 times since the last message" in again
    assert "found 8 times\n" in said(Notice("fired", incident(times=8), 8)), "there was no message before the first"
    over = said(Notice("resolved", incident(ended=60), 0))
    assert "RESOLVED run of full failed" in over
    assert "over since 2024-08-02 03:00:00 UTC: it went well" in over
    assert "What to do" not in over
    assert "CRITICAL, over by now: run of full" in said(Notice("passed", incident(ended=1), 1))


def test_a_digest_names_the_first_twenty():
    notices = [Notice("fired", incident("size_anomaly", f"v{number}", "warning"), 1) for number in range(30)]
    text = plain(cleaned(written(Message("warning", notices), seen(), UTC), ()))
    assert text.startswith("s: WARNING 30 alerts in a digest\n")
    assert "WARNING size of v19 is unlike before: why" in text
    assert "v20" not in text
    assert "and 10 more: `aquad report`" in text


def test_without_a_repository():
    text = plain(written(Message("critical", [Notice("fired", incident("repository", ""), 1)]), None, UTC))
    assert text.startswith("CRITICAL the repository cannot be written or read\n")
    assert "not known: the repository cannot be read" in text


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_words(rule):
    text = said(Notice("fired", incident(rule, "THING"), 1))
    assert "{" not in text
    assert "What to do" in text


def test_a_rule_of_another_version_is_told_too():
    assert "CRITICAL moon fell THING" in said(Notice("fired", incident("moon_fell", "THING"), 1))


class TestM4:
    def test_secrets_go_before_anything_is_cut(self):
        secret = "s" * 50
        cause = "x" * (LINE_CHARACTERS - 20) + secret
        text = said(Notice("fired", replace(incident(), cause=cause, last_cause=f"at {secret}"), 1), secrets={secret})
        assert "sss" not in text
        assert "at ***" in text

    def test_the_login_of_any_address_goes(self):
        cause = "connect postgresql://postgres:geheim@db:5432/shop and https://u:p@x/"
        text = said(Notice("fired", replace(incident(), cause=cause), 1))
        assert "geheim" not in text
        assert "postgresql://***@db:5432/shop and https://***@x/" in text

    def test_a_longer_secret_goes_before_one_that_is_a_part_of_it(self):
        text = said(
            Notice("fired", replace(incident(), cause="passwordpassword1"), 1),
            secrets={"password", "passwordpassword1"},
        )
        assert "***1" not in text

    @pytest.mark.parametrize("evil", ["a\r\nBcc: x@y", "\x1b[31mred", "a\u2028b", "a\x00b"])
    def test_no_control_characters(self, evil):
        text = cleaned(written(Message("critical", [Notice("fired", incident("damaged", evil), 1)]), seen(), UTC), ())
        assert text.title.isprintable()
        assert all(line.isprintable() for section in text.sections for line in section.lines)

    @given(st.text(max_size=300), st.text(max_size=2000))
    def test_nothing_is_markup_and_everything_has_an_end(self, subject, cause):
        notice = Notice("fired", replace(incident("size_anomaly", subject), cause=cause), 1)
        text = cleaned(written(Message("warning", [notice]), seen(), UTC), ())
        found = blocks(text)
        assert {block["text"]["type"] for block in found} == {"plain_text"}
        assert len(found[0]["text"]["text"]) <= 150
        assert all(len(block["text"]["text"]) <= 3000 for block in found)
        json.dumps(found)
        parser = Tags()
        parser.feed(as_html(text))
        assert parser.tags == parser.of(
            as_html(Text(text.level, "t", [Section("h", ["l"] * len(s.lines)) for s in text.sections]))
        )
        assert len(short(text)) < 3000


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def of(self, text):
        other = Tags()
        other.feed(text)
        return other.tags


def test_a_test_says_that_it_is_one():
    text = a_test("shop", START, UTC)
    assert "TEST" in text.title
    assert "Nothing is wrong" in plain(text)


def test_slack_shows_the_level_as_a_colour():
    def mark(kind, level="critical"):
        notice = Notice(kind, incident(level=level, ended=1 if kind == "resolved" else None), 0)
        return blocks(written(Message(level, [notice]), seen(), UTC))[0]["text"]["text"][0]

    assert [mark("fired"), mark("fired", "warning"), mark("resolved")] == ["🔴", "🟡", "🟢"]
