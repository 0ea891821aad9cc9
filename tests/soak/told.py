"""Alerts of the soak: a post office that takes most messages, and what has to be true of all that was told."""

import json
from datetime import timedelta

from aquad.core.clock import from_text
from aquad.jobs.notify import Outbox

CHANNELS = {"slack": ("warning", "critical"), "email": ("critical",)}
SETTINGS = """
[alerts.slack]
webhook_url_file = "/nowhere"
[alerts.email]
host = "127.0.0.1"
levels = ["critical"]
"""


class Post:
    """Sends a batch at once; now and then a channel refuses."""

    pid = pidfd = report_fd = 0

    def __init__(self, dice):
        self.refuses = 0.1
        self._dice = dice
        self._said = b""

    def send(self, _wiring, batch):
        parcels = json.loads(batch)
        refusing = {channel for channel in CHANNELS if self._dice.random() < self.refuses}
        refused = set()
        for number, channel, _ in parcels:
            if channel not in refused:  # as a sender does: the rest of a channel waits
                error = "it answers 500" if channel in refusing else ""
                receipt = {"number": number, "channel": channel, "error": error, "note": "", "retry_after_seconds": 0}
                self._said += json.dumps(receipt).encode() + b"\n"
                refused |= refusing & {channel}
        return self

    def poll(self):
        return 0

    def reports(self):
        said, self._said = self._said, b""
        return said

    def close(self):
        pass


def told_wrongly(lines):
    """Told twice, told of an end without a beginning, or too often in an hour; `lines` of the journal, from the first on."""
    problems, known, warnings = [], {}, {}
    for line in lines:
        if line["event"] != "notified":
            continue
        channel, at = line["channel"], from_text(line["at"])
        if line["level"] == "warning":
            recent = [one for one in warnings.get(channel, []) if at - one < timedelta(hours=1)]
            warnings[channel] = [*recent, at]
            problems += [f"{channel} got six warnings in the hour before {at}"] if len(recent) >= 5 else []
        for notice in line["notices"]:
            key = channel, notice["rule"], notice["subject"]
            before, kind = known.get(key), notice["kind"]
            worse = before == "warning" and notice["level"] == "critical"
            if (kind == "fired" and before and not worse) or (kind in {"again", "resolved"} and not before):
                problems.append(f"{kind} was told of {key} at {at}, after {before}")
            known[key] = notice["level"] if kind in {"fired", "again"} else None
    return problems


def untold(repository, now):
    """What is due, and somebody has not heard of it; right after all was told to channels that refuse nothing."""
    plan = Outbox().notices(repository, now).plan(CHANNELS, now)
    return [f"{one.channel} has not heard of {one.message.notices[0].incident}" for one in plan.outgoing]
