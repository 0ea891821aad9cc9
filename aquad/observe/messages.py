"""What an alert says: what happened, since when, what it means for recovery, what to do. Plain text, Slack blocks, HTML.

Words of others (names, errors) are shown as they are and never as markup: control characters are escaped, Slack gets plain
text objects, HTML is escaped, secrets that aquad knows are taken out, and everything has a length.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.escape import escaped
from aquad.observe.reports import both_times, duration
from aquad.observe.rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, tzinfo

    from aquad.observe.alerts import Message, Notice
    from aquad.observe.overview import Overview

TITLE_CHARACTERS = 150
"""What Slack allows in a header."""
LINE_CHARACTERS = 600
DIGEST_LINES = 20
LOGIN = re.compile(r"(\w+://)[^\s/@]*:[^\s/@]*@")


class Section(NamedTuple):
    heading: str
    lines: Sequence[str]


class Text(NamedTuple):
    level: str
    title: str
    sections: Sequence[Section]

    @classmethod
    def of(cls, content: Any) -> Text:
        """Of what JSON makes of it."""
        level, title, sections = content
        return cls(level, title, [Section(heading, lines) for heading, lines in sections])


def written(message: Message, seen: Overview | None, zone: tzinfo) -> Text:
    """`seen`: None where the repository cannot be read. It still has to be `cleaned`."""
    text = _alone(message.notices[0], seen, zone) if len(message.notices) == 1 else _digest(message, seen, zone)
    return text._replace(title=f"{seen.stack}: {text.title}") if seen else text


def cleaned(text: Text, secrets: Collection[str]) -> Text:
    """Without these words, whatever brought them in; without control characters; and no longer than anybody reads."""
    return Text(
        text.level,
        _clean(text.title, TITLE_CHARACTERS, secrets),
        [
            Section(section.heading, [_clean(line, LINE_CHARACTERS, secrets) for line in section.lines])
            for section in text.sections
        ],
    )


def a_test(stack: str, now: datetime, zone: tzinfo) -> Text:
    lines = ["Nothing is wrong. Somebody wants to see whether alerts arrive.", f"sent at {both_times(now, zone)}"]
    return Text("warning", f"{stack}: TEST of aquad's alerts", [Section("What happened", lines)])


def _alone(notice: Notice, seen: Overview | None, zone: tzinfo) -> Text:
    incident = notice.incident
    rule = rule_of(incident.rule)
    what = [incident.cause]
    if incident.last_cause:
        what.append(f"last: {incident.last_cause}")
    if notice.repeats > 1 or (notice.repeats and notice.kind == "again"):
        since_when = "" if notice.kind == "fired" else " since the last message"
        what.append(f"found {notice.repeats} times{since_when}")
    since = [f"since {both_times(incident.started_at, zone)}"]
    if incident.ended_at is not None:
        since.append(f"over since {both_times(incident.ended_at, zone)}: {incident.ended_by}")
    sections = [
        Section("What happened", what),
        Section("When", since),
        Section("What can be restored", _recovery(notice, seen, zone)),
    ]
    if notice.kind != "resolved":
        sections.append(Section("What to do", [rule.to_do, f"docs/runbook.md, {incident.rule}"]))
    return Text(incident.level, f"{_word(notice)}{rule.title(incident.subject)}", sections)


def _digest(message: Message, seen: Overview | None, zone: tzinfo) -> Text:
    lines = [
        f"{_word(notice)}{rule_of(notice.incident.rule).title(notice.incident.subject)}: {notice.incident.cause}"
        for notice in message.notices[:DIGEST_LINES]
    ]
    more = len(message.notices) - len(lines)
    lines += [f"and {more} more: `aquad report`, `aquad audit show --event alert`"] if more else []
    sections = [Section("What happened", lines), Section("What can be restored", _recovery(None, seen, zone))]
    return Text(message.level, f"{message.level.upper()} {len(message.notices)} alerts in a digest", sections)


def _word(notice: Notice) -> str:
    level = notice.incident.level.upper()
    return {
        "fired": f"{level} ",
        "again": f"STILL {level} ",
        "resolved": "RESOLVED ",
        "passed": f"{level}, over by now: ",
    }[notice.kind]


def _recovery(notice: Notice | None, seen: Overview | None, zone: tzinfo) -> list[str]:
    """The newest good backup, and its age, of what is concerned; of everything where that is not said."""
    if seen is None:
        return ["not known: the repository cannot be read"]
    views = [view for view in seen.components if notice and view.name == notice.incident.subject] or seen.components
    return [
        f"{view.name}: {both_times(view.recovery_point_at, zone)} ({duration(view.age_seconds)} old), {view.backup}"
        if view.backup
        else f"{view.name}: NOTHING, there is no good backup of it"
        for view in views
    ]


def _clean(text: str, characters: int, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if secret else text
    text = escaped(LOGIN.sub(r"\1***@", text))
    return text if len(text) <= characters else text[: characters - 1] + "…"


def plain(text: Text) -> str:
    parts = [text.title]
    for section in text.sections:
        parts += ["", section.heading, *(f"  {line}" for line in section.lines)]
    return "\n".join(parts) + "\n"


def short(text: Text) -> str:
    """For a telephone: the title, and what can be restored."""
    return "\n".join(
        [text.title, *(line for s in text.sections if s.heading == "What can be restored" for line in s.lines)]
    )


def blocks(text: Text) -> list[dict[str, Any]]:
    """Slack's Block Kit, of plain text objects alone: in these nothing is markup. docs.slack.dev/reference/block-kit"""
    mark = {"critical": "\N{LARGE RED CIRCLE}", "warning": "\N{LARGE YELLOW CIRCLE}"}.get(text.level, "")
    if text.title.partition(": ")[2].startswith("RESOLVED"):
        mark = "\N{LARGE GREEN CIRCLE}"
    found = [{"type": "header", "text": _plain_text(f"{mark} {text.title}"[:TITLE_CHARACTERS])}]
    for section in text.sections:
        body = "\n".join([section.heading, *section.lines])
        found.append({"type": "section", "text": _plain_text(body[:3000])})
    return found


def _plain_text(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def as_html(text: Text) -> str:
    colour = {"critical": "#b00020", "warning": "#8a5a00"}.get(text.level, "#1b5e20")
    parts = [f'<h2 style="color:{colour}">{html.escape(text.title)}</h2>']
    for section in text.sections:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
        parts.append(f"<h3>{html.escape(section.heading)}</h3><ul>{lines}</ul>")
    return '<!doctype html><html><body style="font-family:sans-serif">' + "".join(parts) + "</body></html>"
