"""How commands speak: tables and progress bars for people, JSON with a `schema_version` for machines."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import click

from aquad.core import machine
from aquad.core.errors import ConfirmationNeeded
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from rich.progress import Progress, TaskID

    from aquad.cli import Invocation


def say(invocation: Invocation, text: str) -> None:
    """Print a line that nobody asked for: that all went well."""
    if not invocation.quiet:
        click.echo(text)


def print_json(**content: Any) -> None:
    click.echo(machine.text(content))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; every cell is escaped, for names come from the data."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in {"size", "age", "stored"} else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escaped(cell)) for cell in row))
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(grid)


def confirmed(question: str, *, yes: bool, command: str = "restore", what: str = "it overwrites live data") -> None:
    """Ask before destruction. Raises ConfirmationNeeded when nobody agrees, or nobody is there to be asked."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfirmationNeeded(
            f"{command}: {what} and there is no terminal to ask",
            "Look at the plan (--dry-run) and say --yes." if command == "restore" else "Say --yes.",
        )
    if not click.confirm(question, default=False):
        raise ConfirmationNeeded(f"{command}: not confirmed, nothing was changed")


class Bars:
    """Progress on stderr: bars in a terminal, JSON Lines with --json, a line a step with -v, nothing otherwise."""

    def __init__(self, invocation: Invocation) -> None:
        wanted, as_json = invocation.progress, invocation.json
        self._json = as_json and wanted
        self._verbose = invocation.verbose and not as_json
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._done = self._said = 0
        if wanted and not as_json and not self._verbose and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeElapsedColumn(),
            )
            self._bars = RichProgress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def stage(self, name: str, total_bytes: int | None) -> None:
        self._stage, self._done, self._said = name, 0, 0
        if self._bars:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(escaped(name), total=total_bytes)
        if self._verbose:
            print(f"{datetime.now().astimezone():%H:%M:%S} {escaped(name)}", file=sys.stderr, flush=True)  # noqa: T201 - this is the command line
        if self._json:
            self._line(event="stage", stage=name, total_bytes=total_bytes)

    def advance(self, count: int) -> None:
        if self._bars and self._task is not None:
            self._bars.advance(self._task, count)
        self._done += count
        if self._json and self._done - self._said >= 64 << 20:
            self._said = self._done
            self._line(event="progress", stage=self._stage, bytes=self._done)

    def _line(self, **content: Any) -> None:
        print(machine.text(content, indent=None), file=sys.stderr, flush=True)  # noqa: T201 - this is the command line
