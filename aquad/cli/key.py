"""`aquad key`."""

from __future__ import annotations

import base64
import textwrap

import click

from aquad.cli import Invocation
from aquad.cli.output import say


@click.group()
def group() -> None:
    """The key that opens the backups."""


@group.command()
@click.pass_obj
def confirm(invocation: Invocation) -> None:
    """Prove that the key is also kept elsewhere: open a message there, and type here what it says.

    \b
    Example:
      aquad key confirm        # shows a message; on another machine:  gpg --decrypt
    """
    from aquad.jobs.keys import challenge
    from aquad.jobs.keys import confirm as confirm_key
    from aquad.wiring import Wiring

    repository = Wiring.load(invocation.config_path).repository()
    asked = challenge(repository)
    click.echo("On another machine, with the key that is kept there, run `gpg --decrypt` and paste this:\n")
    click.echo(armored(asked.message))
    answer = click.prompt("What does it say", err=True)
    confirm_key(repository, asked, answer)
    say(invocation, "confirmed: the key of this repository is kept elsewhere too")


def armored(message: bytes) -> str:
    """ASCII armor (RFC 4880, 6.2), without the optional checksum."""
    body = "\n".join(textwrap.wrap(base64.b64encode(message).decode(), 64))
    return f"-----BEGIN PGP MESSAGE-----\n\n{body}\n-----END PGP MESSAGE-----\n"
