"""`aquad init`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import click

from aquad.cli import Invocation
from aquad.cli.output import confirmed, print_json, say
from aquad.core.errors import AquadError, InvalidUse, RepositoryRefused
from aquad.observe.reports import human_bytes
from aquad.repository import layout

if TYPE_CHECKING:
    from aquad.stream.gpg.gpg import Mode
    from aquad.wiring import Wiring


@click.command()
@click.option(
    "--encryption",
    type=click.Choice(["off", "passphrase", "public-key"]),
    help="Must be chosen, here or in the settings. Said again to a repository that is there, it changes what new backups get.",
)
@click.option("--yes", is_flag=True, help="Do not ask before encryption is switched off.")
@click.pass_obj
def init(invocation: Invocation, encryption: Mode | None, yes: bool) -> None:
    """Make the repository; say how much space the schedule will need.

    \b
    Examples:
      aquad init --encryption passphrase
      aquad init --encryption public-key
    """
    from aquad.jobs.forecast import forecast
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    mode = encryption or wiring.settings.encryption.mode
    if not mode:
        raise InvalidUse(
            "init: nobody chose whether backups are encrypted",
            "Say --encryption passphrase, public-key or off, or set encryption.mode in the settings.",
        )
    if encryption and layout.Layout(wiring.settings.repository.path).marker.exists():
        _change(invocation, wiring, encryption, yes=yes)
        return
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
    _remind(wiring, mode)


def _change(invocation: Invocation, wiring: Wiring, mode: Mode, *, yes: bool) -> None:
    """Another mode, or another key of the same mode, for new backups."""
    repository = wiring.repository()
    before = repository.marker.encryption
    if before.mode == mode and repository.encryption.is_current():
        raise RepositoryRefused(
            f"init {repository.root}: it is a repository already ({repository.marker.id}), and encrypts so",
            "`aquad status` shows what is in it.",
        )
    if mode == "off":
        confirmed(
            "Leave new backups unencrypted?", yes=yes, command="init", what="it would leave new backups unencrypted"
        )
    with repository.writing(run_id=secrets.token_hex(4), command="init"):
        repository.change_encryption(mode)
    if invocation.json:
        print_json(repository=str(repository.root), id=repository.marker.id, encryption=mode)
        return
    say(
        invocation,
        f"changed repository {repository.root}: new backups get encryption {mode}, those from before stay as they are",
    )
    _remind(wiring, mode)


def _remind(wiring: Wiring, mode: Mode) -> None:
    if mode != "off":
        click.echo(
            "Keep the key off this host too: without it no backup opens. Then prove it: aquad key confirm", err=True
        )
    for line in wiring.lost_with_the_host() if mode != "off" else []:
        click.echo(f"WARNING {line}", err=True)
