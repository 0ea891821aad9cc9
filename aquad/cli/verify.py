"""`aquad verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aquad.cli import Invocation
from aquad.cli.output import Bars, print_json
from aquad.core.errors import Damaged, InvalidUse, NoSuchBackup

WARNINGS = 3

if TYPE_CHECKING:
    from aquad.jobs.verify import Level
    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import Manifest


@click.command()
@click.argument("what", metavar="ID|latest|all|FILE")
@click.option(
    "--level",
    type=click.Choice(["quick", "bytes", "content"]),
    default="bytes",
    show_default=True,
    help="quick: sizes; bytes: every digest; content: also inflated.",
)
@click.pass_obj
def verify(invocation: Invocation, what: str, level: Level) -> None:
    """Read stored bytes again and compare them with what was sealed. Goes on after a bad one, and names each.

    \b
    Examples:
      aquad verify all
      aquad verify latest --level content
    """
    from aquad.jobs.verify import unreadable
    from aquad.jobs.verify import verify as verify_backups
    from aquad.wiring import Wiring

    repository = Wiring.load(invocation.config_path).repository()
    catalog = repository.catalog()
    chosen = list(catalog.backups) if what == "all" else [_chosen(catalog, repository.root, what)]
    if not chosen and not catalog.unreadable:
        raise NoSuchBackup("verify all: there is no backup", "`aquad run full` makes the first.")
    with Bars(invocation) as bars:
        verdicts = verify_backups(repository, chosen, level, bars)
    if what == "all":
        verdicts += unreadable(catalog, level)
    bad = [verdict for verdict in verdicts if verdict.problems]
    if invocation.json:
        print_json(
            level=level,
            verified=[verdict._asdict() for verdict in verdicts],
            damaged=[verdict.backup for verdict in bad],
        )
    else:
        for verdict in verdicts:
            click.echo(f"{verdict.backup}: {'DAMAGED' if verdict.problems else 'good'} ({verdict.level})")
            for problem in verdict.problems:
                click.echo(f"  {problem}")
            for line in verdict.unchecked:
                click.echo(f"  not looked into: {line}")
        if any(not verdict.recorded for verdict in verdicts if verdict not in bad):
            click.echo("(not recorded in the journal, which cannot be written here)", err=True)
    if bad:
        raise Damaged(
            f"verify {what}: {len(bad)} of {len(verdicts)} backups are damaged",
            "The others are good; take a new full backup now.",
        )
    if any(verdict.unchecked for verdict in verdicts):
        raise SystemExit(WARNINGS)


def _chosen(catalog: Catalog[Manifest], root: Path, what: str) -> Manifest:
    path = Path(what)
    if "/" not in what and not path.is_file():
        return catalog.find(what)
    name = path.resolve()
    for backup in catalog.backups:
        if any(name == (root / file.path).resolve() for file in backup.files()):
            return backup
    raise InvalidUse(f"verify {what}: no manifest names that file", "Its bytes can be compared with nothing.")
