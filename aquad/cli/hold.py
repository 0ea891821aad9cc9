"""`aquad hold` and `release`."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from aquad.cli import Invocation
from aquad.cli.output import say
from aquad.core.clock import to_text
from aquad.core.errors import InvalidUse
from aquad.observe.reports import both_times

SECONDS = {"m": 60, "h": 3600, "d": 86400}


@click.command()
@click.option("--for", "span", required=True, metavar="DURATION", help="Such as 90m, 4h, 2d.")
@click.argument("reason")
@click.pass_obj
def hold(invocation: Invocation, span: str, reason: str) -> None:
    """Hold the schedule: what is due meanwhile is recorded as skipped, and nobody is warned. Runs by hand go on.

    \b
    Example:
      aquad hold --for 4h "migration of the orders database"
    """
    from aquad.wiring import Wiring

    match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", span)
    if match is None:
        raise InvalidUse(f"hold --for {span}: not a duration", "Say 90m, 4h or 2d.")
    wiring = Wiring.load(invocation.config_path)
    until = wiring.clock.now() + timedelta(seconds=int(match[1]) * SECONDS[match[2]])
    wiring.repository().journal.append("held", until=to_text(until), reason=reason, cause="operator")
    say(invocation, f"held until {both_times(until, wiring.zone)}; `aquad release` ends it before that")


@click.command()
@click.pass_obj
def release(invocation: Invocation) -> None:
    """Let the schedule go on.

    \b
    Example:
      aquad release
    """
    from aquad.repository.history import History
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    repository = wiring.repository()
    if History.of(repository.journal.entries()).holding(wiring.clock.now()) is None:
        raise InvalidUse("release: the schedule is not held", "`aquad next` shows what comes.")
    repository.journal.append("released", cause="operator")
    say(invocation, "released: the schedule goes on with the next slot")
