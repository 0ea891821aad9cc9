"""`aquad run`."""

from __future__ import annotations

import click

from aquad.cli import Invocation
from aquad.cli.output import Bars, duration, print_json, say
from aquad.core.clock import SystemClock
from aquad.observe.reports import human_bytes


@click.command()
@click.argument("job", type=click.Choice(["full"]))
@click.option(
    "--component", "components", multiple=True, metavar="NAME", help="Only this one (may be given several times)."
)
@click.option("--dry-run", is_flag=True, help="Say what would be taken; write nothing.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0),
    default=0,
    metavar="SECONDS",
    help="Wait so long for another run to end.",
)
@click.pass_obj
def run(invocation: Invocation, job: str, components: tuple[str, ...], dry_run: bool, wait_seconds: float) -> None:
    """Take a backup now.

    \b
    Examples:
      aquad run full
      aquad run full --component postgres --component configs
    """
    from aquad.jobs.full import accepted, take_full
    from aquad.jobs.run import run_job
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    repository = wiring.repository()
    sources = wiring.sources(components, accepted(repository))
    if dry_run:
        click.echo(f"would take {', '.join(source.component for source in sources)} into {repository.root}")
        return
    clock = SystemClock()
    started = clock.monotonic()
    with Bars(invocation) as bars:
        result = run_job(
            repository,
            job,
            lambda context: take_full(repository, sources, context, space=wiring.space()),
            clock=clock,
            zone=wiring.zone,
            limits=wiring.limits(job, wait_seconds),
            progress=bars,
        )
    seconds = clock.monotonic() - started
    backup_id = result.details.get("backup")
    if invocation.json:
        print_json(
            outcome=result.outcome,
            backup=backup_id,
            reason=result.reason,
            components=result.details["components"],
            seconds=round(seconds, 3),
        )
    elif backup_id:
        sealed = repository.catalog().find(backup_id)
        say(
            invocation,
            f"{result.outcome}: {backup_id}, {human_bytes(sealed.stored_bytes)} stored in {duration(seconds)}, read back and compared",
        )
    if result.reason and not invocation.json:
        click.echo(f"aquad: {result.outcome}: {result.reason}", err=True)
    raise SystemExit(result.exit_code)
