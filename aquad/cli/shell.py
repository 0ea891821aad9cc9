"""`completion` and `version`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from aquad import __version__
from aquad.cli import root
from aquad.cli.output import print_json

if TYPE_CHECKING:
    from aquad.cli import Invocation


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      aquad completion bash > /etc/bash_completion.d/aquad
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(root, {}, "aquad", "_AQUAD_COMPLETE").source())


@click.command()
@click.pass_obj
def version(invocation: Invocation) -> None:
    """Print the version."""
    if invocation.json:
        print_json(version=__version__, python=platform.python_version())
    else:
        click.echo(f"aquad {__version__} (Python {platform.python_version()})")
