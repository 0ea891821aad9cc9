"""`aquad list` and `aquad show`."""

from __future__ import annotations

from typing import Any

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, table
from aquad.core.clock import from_text
from aquad.observe.reports import both_times, encryption_text, human_bytes


@click.command("list")
@click.option("--component", metavar="NAME", help="Only backups in which this component is good.")
@click.option("--kind", type=click.Choice(["full", "incremental", "weekly"]))
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Only those started since then (schedule's zone).",
)
@click.pass_obj
def list_backups(invocation: Invocation, component: str | None, kind: str | None, since: Any) -> None:
    """List backups, newest first.

    \b
    Examples:
      aquad list
      aquad list --component postgres --since 2026-11-01
    """
    from aquad.jobs.listing import listed, said
    from aquad.repository.history import History
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    repository = wiring.repository()
    catalog = repository.manifests.briefs()
    verdicts = History.of(repository.journal.entries()).verdicts
    chosen = [
        backup
        for backup in catalog.backups
        if (component is None or backup.component(component))
        and (kind is None or backup.kind == kind)
        and (since is None or from_text(backup.started_at) >= since.replace(tzinfo=wiring.zone))
    ]
    if invocation.json:
        print_json(**listed(chosen, catalog.unreadable, verdicts))
        return
    if not chosen:
        click.echo("no backups" + (" that fit" if catalog.backups else ": `aquad run full` makes the first"))
    else:
        table(
            ["id", "started", "kind", "outcome", "size", "components", "verified"],
            [
                [
                    backup.id,
                    both_times(from_text(backup.started_at), wiring.zone),
                    backup.kind,
                    backup.outcome,
                    human_bytes(backup.stored_bytes),
                    ", ".join(part.name + (" (FAILED)" * (part.outcome == "failed")) for part in backup.parts),
                    said(verdicts.get(backup.id)),
                ]
                for backup in chosen
            ],
        )
    for one in catalog.unreadable:
        click.echo(f"UNREADABLE {one.id}: {one.reason}", err=True)


@click.command()
@click.argument("backup_id", metavar="ID")
@click.pass_obj
def show(invocation: Invocation, backup_id: str) -> None:
    """Show one backup: artifacts, sizes, digests, facts, what was proved and when. ID may be a unique prefix, or latest.

    \b
    Example:
      aquad show latest
    """
    from aquad.jobs.listing import said, shown
    from aquad.repository.history import History
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    repository = wiring.repository()
    backup = repository.catalog().find(backup_id)
    verdict = History.of(repository.journal.entries()).verdicts.get(backup.id)
    if invocation.json:
        print_json(**shown(backup, verdict))
        return
    click.echo(f"{backup.id}   {backup.kind}, number {backup.sequence}, {backup.outcome}")
    click.echo(f"started    {both_times(from_text(backup.started_at), wiring.zone)}")
    click.echo(f"finished   {both_times(from_text(backup.finished_at), wiring.zone)}")
    click.echo(f"size       {human_bytes(backup.stored_bytes)} stored, {human_bytes(backup.plain_bytes)} unpacked")
    click.echo(f"encryption {encryption_text(backup.model_dump(mode='json'))}")
    click.echo(f"verified   {said(verdict)}\n")
    rows = []
    for component in backup.components:
        state = component.outcome + (f" ({component.consistency})" if component.consistency else "")
        rows += [
            [component.name, state, a.path, human_bytes(a.stored_bytes), a.stored_sha256[:16]]
            for a in component.artifacts
        ]
        if not component.artifacts:
            rows.append([component.name, state, component.reason, "", ""])
    table(["component", "state", "artifact", "size", "sha256"], rows)
    for component in backup.components:
        for line in (*component.warnings, *component.notes):
            click.echo(f"{component.name}: {line}")
        databases = component.facts.get("databases", [])
        for database in databases:
            counted = [rows for rows in database.get("rows", {}).values() if rows is not None]
            click.echo(
                f"{component.name}: database {database['name']}: {len(database.get('rows', {}))} tables, {sum(counted)} rows"
            )
