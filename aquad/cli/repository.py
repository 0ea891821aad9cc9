"""`aquad init`."""

from __future__ import annotations

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, say
from aquad.core.errors import AquadError, InvalidUse
from aquad.observe.reports import human_bytes


@click.command()
@click.option(
    "--encryption",
    type=click.Choice(["off"]),
    help="Must be chosen, here or in the settings. (Encryption comes with the next version; today there is only off.)",
)
@click.pass_obj
def init(invocation: Invocation, encryption: str | None) -> None:
    """Make the repository; say how much space the schedule will need.

    \b
    Example:
      aquad init --encryption off
    """
    from aquad.jobs.forecast import forecast
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    mode = encryption or wiring.settings.encryption.mode
    if not mode:
        raise InvalidUse(
            "init: nobody chose whether backups are encrypted",
            "Say --encryption off, or set encryption.mode in the settings.",
        )
    sizes, unknown = {}, []
    for source in wiring.sources():
        try:
            sizes[source.component] = source.size_bytes()
        except AquadError as error:
            unknown.append(f"{source.component}: {error}")
    repository = wiring.create_repository(mode)
    need = forecast(sizes, wiring.kept_at_peak())
    if invocation.json:
        print_json(
            repository=str(repository.root),
            id=repository.marker.id,
            encryption=mode,
            forecast=need._asdict(),
            unknown=unknown,
        )
        return
    say(invocation, f"made repository {repository.root} ({repository.marker.id}), encryption {mode}")
    say(invocation, f"the schedule will need about {human_bytes(need.peak_bytes)} at its peak: {need.explanation}")
    for line in unknown:
        click.echo(f"  not counted: {line}", err=True)
