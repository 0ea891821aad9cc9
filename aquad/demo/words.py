"""What the demo says: acts, a table of what is equal, and commands that can be copied from the screen."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from aquad.core.escape import escaped
from aquad.demo import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

console = Console(width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """Print as it is: a path may hold brackets, and a broken line cannot be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def act(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def compared(before: Mapping[str, compare.Thing], after: Mapping[str, compare.Thing]) -> bool:
    """Print the table; tell whether everything is equal."""
    different = compare.differences(before, after)
    table = Table("what", "before", "after", "checksum", box=None, header_style="bold")
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        mark = "[red]DIFFERENT" if name in different else f"[green]equal[/] {one.digest[:12] if one else ''}"
        table.add_row(escaped(name), one.amount if one else "-", other.amount if other else "-", mark)
    console.print(table)
    console.print(f"[bold red]{len(different)} DIFFERENT" if different else f"[bold green]all {len(before)} equal")
    return not different


def to_serve(top: Path) -> str:
    return f"{_program(sys.executable)} -m aquad.demo --serve {_near(top)}"


def to_remove(top: Path) -> str:
    server = top / "server"
    beside = f" {_near(server.resolve())}" if server.is_symlink() else ""
    return f"rm -r {_near(top)}{beside}"


def to_try(top: Path) -> str:
    """Return some commands that need the server, one a line."""
    script = Path(sys.executable).with_name("aquad")
    aquad = _program(script) if script.exists() else f"{_program(sys.executable)} -m aquad"
    commands = ("status", "run full", "restore plan all latest")
    return "\n".join(f"    {aquad} -c {_near(top / 'settings.toml')} {command}" for command in commands)


def _near(path: str | Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    return shlex.quote(os.path.abspath(path) if relative.startswith("..") else relative)


def _program(path: str | Path) -> str:
    near = _near(path)
    return near if "/" in near else f"./{near}"
