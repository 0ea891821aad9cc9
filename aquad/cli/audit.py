"""`aquad audit show` and `verify`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json
from aquad.core.clock import from_text
from aquad.core.errors import Damaged, InvalidUse
from aquad.core.escape import escaped
from aquad.observe.reports import both_times

if TYPE_CHECKING:
    from datetime import datetime

KNOWN = {"line", "at", "event", "by", "previous"}


@click.group()
def group() -> None:
    """Who did what, when, and how it ended: the journal."""


@group.command()
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="From then on (schedule's zone).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Before that.")
@click.option("--event", help="Such as run_ended, restored, pruned, settings, alert.")
@click.option("--backup", metavar="ID", help="The beginning of an id is enough.")
@click.option("--job", help="Such as full, or restore all.")
@click.option("--outcome", help="Such as failed.")
@click.option("--by", help="How the name of who did it begins: daemon, root.")
@click.option("-n", "limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest so many.")
@click.pass_obj
def show(
    invocation: Invocation,
    since: datetime | None,
    until: datetime | None,
    event: str | None,
    backup: str | None,
    job: str | None,
    outcome: str | None,
    by: str | None,
    limit: int,
) -> None:
    """Show the newest lines that fit.

    \b
    Examples:
      aquad audit show --event run_ended --outcome failed
      aquad audit show --by root --since 2026-11-01
    """
    from aquad.jobs.trail.audit import show_audit
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    entries = show_audit(
        wiring.repository().journal.entries(),
        since=since.replace(tzinfo=wiring.zone) if since else None,
        until=until.replace(tzinfo=wiring.zone) if until else None,
        event=event,
        backup=backup,
        job=job,
        outcome=outcome,
        by=by,
        limit=limit,
    )
    if invocation.json:
        print_json(entries=entries)
        return
    for entry in entries:
        what = " ".join(f"{key}={_text(value)}" for key, value in entry.items() if key not in KNOWN)
        who = escaped(entry.get("by", "somebody"))
        click.echo(
            f"{entry['line']:>6}  {both_times(from_text(entry['at']), wiring.zone)}  {who}  {entry['event']}  {what}"
        )
    if not entries:
        click.echo("no line fits")


@group.command()
@click.option("--anchor", "anchors", multiple=True, metavar="LINES:HASH", help="One that was written down elsewhere.")
@click.pass_obj
def verify(invocation: Invocation, anchors: tuple[str, ...]) -> None:
    """Read every line, and find any that was changed, removed or reordered. Exit 14 when something was.

    \b
    Examples:
      aquad audit verify
      aquad audit verify --anchor 1234:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    from aquad.jobs.trail.audit import verify_audit
    from aquad.storage.chain import Position
    from aquad.wiring import Wiring

    kept = []
    for text in anchors:
        match = re.fullmatch(r"(\d{1,15})[: ]([0-9a-f]{64})", text)
        if match is None:
            raise InvalidUse(f"audit verify --anchor {text[:80]}: not LINES:HASH", "As an earlier `audit verify` said.")
        kept.append(Position(int(match[1]), match[2]))
    repository = Wiring.load(invocation.config_path).repository()
    audit = verify_audit(repository.journal, repository.catalog(), kept)
    if invocation.json:
        print_json(**{**audit._asdict(), "newest": audit.newest and audit.newest._asdict(), "end": audit.end._asdict()})
    else:
        for problem in audit.problems:
            click.echo(f"PROBLEM {problem}")
        if audit.more:
            click.echo(f"        and {audit.more} more")
        verdict = "NOT what was written" if audit.problems else "as it was written"
        click.echo(f"{audit.lines} lines in {audit.files} files: {verdict}; {audit.anchors} anchors of manifests fit")
        for note in audit.notes:
            click.echo(f"  note: {note}")
    if audit.problems:
        raise Damaged(
            f"audit verify: {len(audit.problems) + audit.more} problems in the journal",
            "Keep the files of state/ as they are; compare with a copy kept elsewhere.",
        )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escaped(text if len(text) <= 120 else f"{text[:117]}...")
