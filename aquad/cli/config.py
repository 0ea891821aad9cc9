"""`aquad config`."""

from __future__ import annotations

import os
from typing import Any

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, table


@click.group()
def group() -> None:
    """Show, check or generate the settings."""


@group.command()
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print every setting and where its value came from. Secrets are files: their paths are shown, never what is in them."""
    from aquad.settings import load

    loaded = load(invocation.config_path, os.environ)
    flat = _flat(loaded.settings.model_dump(mode="json"))
    rows = {
        key: {"value": value, "origin": loaded.origins.get(key, _above(loaded.origins, key))}
        for key, value in flat.items()
    }
    if invocation.json:
        print_json(settings=rows)
    else:
        table(["key", "value", "from"], [[key, str(row["value"]), str(row["origin"])] for key, row in rows.items()])


@group.command()
@click.pass_obj
def validate(invocation: Invocation) -> None:
    """Say whether the settings are good; exit 2 with every mistake if not."""
    from aquad.settings import load

    loaded = load(invocation.config_path, os.environ)
    click.echo(f"the settings are good: stack {loaded.settings.stack}, {len(loaded.origins)} keys set")


@group.command()
def generate() -> None:
    """Print a commented settings file with every key and its default.

    \b
    Example:
      aquad config generate > settings.toml
    """
    from aquad.settings import generate as text

    click.echo(text(), nl=False)


def _flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {above + key: value}
    return flat


def _above(origins: Any, key: str) -> str:
    """Where the table around a key came from, for values that were set as a whole table."""
    return next((origin for name, origin in origins.items() if key.startswith(name + ".")), "default")
