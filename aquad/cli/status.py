"""`aquad status` and `aquad check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, table
from aquad.core.errors import AquadError
from aquad.core.escape import escaped
from aquad.observe.overview import status_json
from aquad.observe.reports import both_times, duration, human_bytes
from aquad.observe.rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

    from aquad.observe.overview import Overview
    from aquad.stream.artifact import Finding
    from aquad.wiring import Wiring

STALE = 15


@click.command()
@click.option("--check", "judge", is_flag=True, help="Exit 15 when a component is older than its objective allows.")
@click.pass_obj
def status(invocation: Invocation, judge: bool) -> None:
    """What can I restore, to which moment, how long will it take.

    \b
    Examples:
      aquad status
      aquad status --check && echo fresh
    """
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    seen = wiring.picture(wiring.repository(), wiring.clock.now()).overview
    if invocation.json:
        print_json(**status_json(seen))
    else:
        _print(seen, wiring.zone)
    if judge and seen.stale:
        raise SystemExit(STALE)


def _print(seen: Overview, zone: tzinfo) -> None:
    click.echo(
        f"{seen.stack}: {seen.backups} backups, {human_bytes(seen.stored_bytes)} in {seen.repository}, {human_bytes(seen.free_bytes)} free"
    )
    click.echo(f"last run: {seen.last_run}" + (f"; at work now: {seen.running}" if seen.running else ""))
    if seen.daemon:
        click.echo("next:     " + ", ".join(f"{job} {both_times(at, zone)}" for job, at in seen.coming[:3]))
    else:
        click.echo("NO DAEMON keeps the schedule: `aquad serve`")
    if seen.held:
        click.echo(f"HELD: {escaped(seen.held)}; `aquad release` ends it")
    click.echo()
    table(
        [
            "component",
            "can be restored to",
            "age",
            "from",
            "consistency",
            "stored",
            "last attempt",
            "verified",
            "restore takes",
        ],
        [
            [
                view.name,
                both_times(view.recovery_point_at, zone),
                duration(view.age_seconds) + (" STALE" if view.stale else ""),
                view.backup or "-",
                view.consistency or "-",
                human_bytes(view.stored_bytes),
                view.last_attempt,
                f"{view.verified_level} {both_times(view.verified_at, zone)}".strip(),
                duration(view.restore_milliseconds / 1000) + " (last time)"
                if view.restore_milliseconds is not None
                else "never restored",
            ]
            for view in seen.components
        ],
    )
    _print_what_is_wrong(seen, zone)


def _print_what_is_wrong(seen: Overview, zone: tzinfo) -> None:
    for one in seen.incidents:
        since = f"since {both_times(one.started_at, zone)}" + (f", {one.times} times" if one.times > 1 else "")
        title = rule_of(one.rule).title(one.subject)
        click.echo(escaped(f"{one.level.upper()} {title}, {since}: {one.last_cause or one.cause}"))
    for line in seen.warnings:
        click.echo(f"WARNING {line}")
    for name in seen.aside:
        click.echo(f"kept aside by a restore: {name} (`aquad restore discard {name}` drops it)")
    if seen.unfinished_restore:
        click.echo(f"UNFINISHED restore: {seen.unfinished_restore} (`aquad restore resume` goes on)")
    for name in seen.drafts:
        click.echo(f"unfinished: {name} (a run is working on it, or died; the next run tidies up)")


@click.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Connect to every source and every channel; say what would fail tonight. Exit 1 on an error, 3 on a warning.

    \b
    Example:
      aquad check
    """
    from aquad.jobs.keys import check_keys
    from aquad.stream.artifact import Finding
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    findings: list[Finding] = []
    try:
        repository = wiring.repository()
        findings.append(Finding("ok", "repository", f"{repository.root} is repository {repository.marker.id}"))
        findings += [Finding("error", "repository", f"{u.id}: {u.reason}") for u in repository.catalog().unreadable]
        findings += check_keys(repository, wiring.lost_with_the_host())
    except AquadError as error:
        findings.append(Finding("error", "repository", error.message, error.hint))
    for source in wiring.sources():
        try:
            findings += source.check()
        except AquadError as error:
            findings.append(Finding("error", source.component, error.message, error.hint))
    findings += _channels(wiring)
    if invocation.json:
        print_json(findings=[finding._asdict() for finding in findings])
    else:
        for finding in findings:
            _print_finding(finding)
    levels = {finding.level for finding in findings}
    raise SystemExit(1 if "error" in levels else 3 if "warning" in levels else 0)


def _channels(wiring: Wiring) -> Iterator[Finding]:
    from aquad.stream.artifact import Finding

    channels = wiring.channels()
    if not channels:
        yield Finding("warning", "alerts", "there is no channel: nobody would hear of a disaster", "Set [alerts].")
    for name, channel in channels.items():
        try:
            yield Finding("ok", name, channel.check())
        except AquadError as error:
            yield Finding("error", name, error.message, error.hint)


def _print_finding(finding: Finding) -> None:
    click.echo(f"{finding.level.upper():8}{finding.subject}: {finding.text}")
    if finding.hint:
        click.echo(f"        {finding.hint}")
