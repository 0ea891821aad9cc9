"""The acts of the demo, in order; exit 0 only if everything is equal at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aquad.core.escape import escaped
from aquad.demo import compare, playground
from aquad.demo.server import EmbeddedServer

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m aquad.demo", description=__doc__)
    arguments.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the playground there, with a ready settings.toml"
    )
    keep: Path | None = arguments.parse_args().keep
    if keep is not None and keep.exists():
        console.print(f"demo: {keep} is there already; remove it first")
        return 2
    top = (keep or Path(tempfile.mkdtemp(prefix="aquad-demo-"))).resolve()
    top.mkdir(parents=True, exist_ok=True)
    top.chmod(0o755)
    try:
        equal = _play(top)
        if keep:
            console.print(f"\nThe playground is {top}; its server is stopped. Look: aquad -c {top}/settings.toml list")
        console.print("What to try next: README.md, 'Your own database in five minutes'.")
    finally:
        if not keep:
            shutil.rmtree(top)
    return 0 if equal else 1


def _play(top: Path) -> bool:
    started = time.monotonic()
    with EmbeddedServer(top / "server") as server:
        _act("1. A stack like AquaStream: PostgreSQL with 100,000 rows, a checkout, four volumes")
        playground.fill_databases(server)
        playground.make_checkout(top / "checkout")
        playground.make_volumes(top / "volumes")
        settings = top / "settings.toml"
        settings.write_text(playground.settings_text(top, server))
        before = _seen(server, top)
        _act("2. A full backup")
        for command in ("init", "run full", "list", "show latest", "verify latest --level content"):
            _aquad(settings, command)
        _act("3. The disaster: databases and roles dropped, checkout and volumes emptied")
        playground.empty_databases(server)
        for directory in (top / "checkout", *(top / "volumes" / name for name in playground.VOLUMES)):
            playground.empty_directory(directory)
        lost = compare.differences(before, _seen(server, top, names=()))
        console.print(f"{len(lost)} of {len(before)} things are gone")
        _act("4. Everything back")
        _aquad(settings, "restore all latest --yes")
        _act("5. The proof")
        equal = _compared(before, _seen(server, top)) and len(lost) >= len(before)
    console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    return equal


def _act(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def _aquad(settings: Path, command: str) -> None:
    console.print(f"[bold]$ aquad {command}")
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, "-m", "aquad", "-c", str(settings), *command.split()], check=False, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"demo: aquad {command} ended with exit code {done.returncode}")


def _seen(
    server: EmbeddedServer, top: Path, names: tuple[str, ...] = ("aquastream_db", "reporting")
) -> dict[str, compare.Thing]:
    seen = compare.databases(server, names) | compare.tree("checkout", top / "checkout", playground.CONFIG_PARENTS)
    for name in playground.VOLUMES:
        seen |= compare.tree(f"volume {name}", top / "volumes" / name)
    return seen


def _compared(before: dict[str, compare.Thing], after: dict[str, compare.Thing]) -> bool:
    different = compare.differences(before, after)
    table = Table("what", "before", "after", "checksum", box=None, header_style="bold")
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        mark = "[red]DIFFERENT" if name in different else f"[green]equal[/] {one.digest[:12] if one else ''}"
        table.add_row(escaped(name), one.amount if one else "-", other.amount if other else "-", mark)
    console.print(table)
    console.print(f"[bold red]{len(different)} DIFFERENT" if different else f"[bold green]all {len(before)} equal")
    return not different


if __name__ == "__main__":
    sys.exit(main())
