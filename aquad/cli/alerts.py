"""`aquad alerts`."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json
from aquad.core.errors import InvalidUse

if TYPE_CHECKING:
    from aquad.jobs.deliver import Receipt


@click.group("alerts")
def group() -> None:
    """Do alerts reach anybody?"""


@group.command()
@click.argument("channel", required=False)
@click.pass_obj
def test(invocation: Invocation, channel: str | None) -> None:
    """Send a test message by each channel, or by one: slack, email, sms, ping. Exit 1 when one was refused.

    \b
    Examples:
      aquad alerts test
      aquad alerts test slack
    """
    from aquad.jobs.deliver import Parcel, deliver
    from aquad.observe.messages import a_test
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    channels = wiring.channels()
    if channel is not None and channel not in channels:
        there = ", ".join(channels)
        raise InvalidUse(
            f"alerts test {channel}: there is no such channel in the settings",
            f"There are {there}." if there else "Set [alerts.slack], [alerts.email], [alerts.sms] or [alerts.ping].",
        )
    if not channels:
        raise InvalidUse("alerts test: the settings have no channel", "Nobody would hear of a disaster: set [alerts].")
    text = a_test(wiring.settings.stack, wiring.clock.now(), wiring.zone)
    receipts: list[Receipt] = []
    deliver([Parcel(0, name, text) for name in ([channel] if channel else channels)], channels, receipts.append)
    if invocation.json:
        print_json(channels=[{"channel": one.channel, "error": one.error, "note": one.note} for one in receipts])
    else:
        for one in sorted(receipts, key=lambda one: one.channel):
            click.echo(f"{one.channel:8}{one.error or 'taken'}{f' ({one.note})' if one.note else ''}")
    if any(one.error for one in receipts):
        raise SystemExit(1)


@group.command(hidden=True)
@click.argument("batch", type=click.File("rb"))
@click.option("--report-fd", type=int, required=True)
@click.pass_obj
def send(invocation: Invocation, batch: IO[bytes], report_fd: int) -> None:
    """What the daemon has to say: it must not wait for a mail server itself."""
    from aquad.cli.reporting import Reporting
    from aquad.jobs.deliver import Parcel, deliver
    from aquad.observe.messages import Text, cleaned
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    secrets = wiring.secrets()
    parcels = [
        Parcel(number, channel, cleaned(Text.of(text), secrets)) for number, channel, text in json.loads(batch.read())
    ]
    reporting = Reporting(report_fd)
    deliver(parcels, wiring.channels(), lambda receipt: reporting.say(event="receipt", **receipt._asdict()))
