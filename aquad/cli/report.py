"""`aquad report`."""

from __future__ import annotations

from dataclasses import asdict

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json


@click.command()
@click.option("--month", metavar="YYYY-MM", help="In the schedule's zone; else the month before this one.")
@click.pass_obj
def report(invocation: Invocation, month: str | None) -> None:
    """Change log and incident report of a month: runs, slots, verifications, restores, incidents, holds, changes.

    \b
    Examples:
      aquad report
      aquad report --month 2024-08
      aquad --json report --month 2024-08
    """
    from aquad.jobs.trail.monthly import facts, month_of, window
    from aquad.observe.monthly import monthly_report
    from aquad.storage import chain
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    now = wiring.clock.now()
    asked = window(month, now, wiring.zone)
    repository = wiring.repository()
    journal = repository.journal
    with journal.opened() as opened:
        removed = chain.head_of(opened.anchor, repository.layout.journal).lines
    known = facts(repository.catalog(), repository.trash.contents())
    told = month_of(
        journal.entries(), known, asked, stack=repository.marker.stack, zone=wiring.zone, now=now, removed=removed
    )
    if invocation.json:
        print_json(**asdict(told))
    else:
        click.echo(monthly_report(told, wiring.zone), nl=False)
