"""The daemon's log: one line an event, for people, or as JSON for machines. The owner of structlog.

A log line is for whoever watches; what has to be known later stands in the journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TextIO

import structlog

from aquad.core.clock import to_text
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from datetime import tzinfo

    from aquad.core.clock import Clock


class Log(Protocol):
    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...

    def error(self, event: str, **fields: Any) -> Any: ...


def make_log(clock: Clock, zone: tzinfo, stream: TextIO, *, as_json: bool) -> Log:
    """Times are UTC; for people the local time of the schedule's zone stands beside it, where that is another."""

    def stamp(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        now = clock.now()
        fields["at"] = to_text(now)
        local = now.astimezone(zone)
        if not as_json and local.utcoffset():
            fields["local"] = local.strftime("%Y-%m-%d %H:%M:%S %Z")
        return fields

    render = structlog.processors.JSONRenderer() if as_json else _for_people
    log: Log = structlog.wrap_logger(
        structlog.WriteLogger(stream), processors=[structlog.processors.add_log_level, stamp, render]
    )
    return log


def _for_people(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> str:
    at, local, level = fields.pop("at"), fields.pop("local", ""), fields.pop("level")
    event = fields.pop("event")
    rest = " ".join(f"{key}={escaped(str(value))!r}" for key, value in fields.items())
    return f"{at}{f' ({local})' if local else ''} {level:7} {escaped(event)}{' ' if rest else ''}{rest}"
