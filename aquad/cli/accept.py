"""`aquad accept`."""

from __future__ import annotations

import click

from aquad.cli import Invocation
from aquad.cli.output import say


@click.command()
@click.argument("component")
@click.pass_obj
def accept(invocation: Invocation, component: str) -> None:
    """Take the present size of a component as the new normal: its next backup is not refused for having shrunk.

    \b
    Example:
      aquad accept kafka_data
    """
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    wiring.sources([component])
    wiring.repository().journal.append("accepted", component=component)
    say(invocation, f"accepted: the next backup of {component} may be of any size")
