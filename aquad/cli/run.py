"""`aquad run`."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from aquad.cli import Invocation
from aquad.cli.output import Bars, print_json, say
from aquad.cli.reporting import Reporting
from aquad.core.clock import from_text
from aquad.core.errors import AquadError, InvalidUse, RepositoryRefused, RepositoryWriteFailed
from aquad.core.escape import escaped
from aquad.observe.reports import duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aquad.jobs.run import Turn, Work
    from aquad.repository.repository import Repository
    from aquad.wiring import Wiring

DAEMON = "daemon"
WARNINGS = 3


@click.command()
@click.argument("job", type=click.Choice(["full", "postgres", "weekly", "cleanup", "verify"]))
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME",
    help="Of full: only this one (may be given several times).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0),
    default=0,
    metavar="SECONDS",
    help="Wait so long for another run to end.",
)
@click.option("--slot", hidden=True, help="The slot of the schedule that this run is for; the daemon says so.")
@click.option("--attempt", hidden=True, type=click.IntRange(min=1), default=1)
@click.option("--report-fd", hidden=True, type=int, help="Where the daemon hears how far it is.")
@click.pass_obj
def run(
    invocation: Invocation,
    job: str,
    components: tuple[str, ...],
    dry_run: bool,
    wait_seconds: float,
    slot: str | None,
    attempt: int,
    report_fd: int | None,
) -> None:
    """Run a job of the schedule now: full, postgres (a dump of its own), weekly (with the archive), cleanup, verify.

    \b
    Examples:
      aquad run full
      aquad run full --component postgres --component configs
      aquad run cleanup --dry-run
    """
    from aquad.jobs.run import run_job
    from aquad.wiring import Wiring

    if components and job != "full":
        raise InvalidUse(f"run {job} --component: only a full backup can be one of some components")
    reporting = Reporting(report_fd) if report_fd is not None else None
    with _errors_heard(reporting):
        wiring = Wiring.load(invocation.config_path, DAEMON if slot else "")
        repository = wiring.repository()
        if dry_run:
            _say_what(invocation, wiring, repository, job, components)
            return
        if job == "cleanup":
            repository.spend_reserve()
        started = wiring.clock.monotonic()
        shown = nullcontext(reporting) if reporting else Bars(invocation)
        with _told_of_a_full_disk(wiring, repository, job, by_hand=slot is None), shown as progress:
            result = run_job(
                repository,
                job,
                wiring.jobs(repository).of(job, components),
                clock=wiring.clock,
                zone=wiring.zone,
                limits=wiring.limits(job, wait_seconds),
                progress=progress,
                turn=_turn(slot, attempt),
                wants=wiring.wants(job, components),
            )
    _show(invocation, repository, result, wiring.clock.monotonic() - started)
    verified = "backup" in result.details and result.outcome != "failed"
    written = slot is not None or _tell(wiring, repository, verified=verified)
    raise SystemExit(result.exit_code or (0 if written else WARNINGS))


@contextmanager
def _errors_heard(reporting: Reporting | None) -> Iterator[None]:
    try:
        yield
    except AquadError as error:
        if reporting:
            reporting.error(str(error))
        raise


@contextmanager
def _told_of_a_full_disk(wiring: Wiring, repository: Repository, job: str, *, by_hand: bool) -> Iterator[None]:
    """Or of one that is gone: the run could not even be written down."""
    try:
        yield
    except (RepositoryWriteFailed, RepositoryRefused) as error:
        if by_hand:
            _tell(wiring, repository, unrecorded=(job, str(error)))
        raise


def _tell(
    wiring: Wiring, repository: Repository, *, verified: bool = False, unrecorded: tuple[str, str] | None = None
) -> bool:
    """Without a daemon nobody else would. `unrecorded`: job and error of a run that could not even be written down. Returns
    whether what there was to tell is written down; what was backed up is no less good where nothing can be told.
    """
    try:
        return _told(wiring, repository, verified, unrecorded)
    except (AquadError, OSError) as error:
        click.echo(f"aquad: nobody was told: {escaped(str(error))}", err=True)
        return False


def _told(wiring: Wiring, repository: Repository, verified: bool, unrecorded: tuple[str, str] | None) -> bool:
    from aquad.jobs.by_hand import Teller

    seen = wiring.picture(repository, wiring.clock.now()).overview
    teller = Teller(repository, seen, wiring.channels(), wiring.secrets(), wiring.zone)
    if unrecorded:
        teller.failed(*unrecorded)
    for receipt in teller.tell(ping=verified):
        if receipt.error:
            click.echo(f"aquad: an alert was not delivered by {receipt.channel}: {receipt.error}", err=True)
    if teller.unwritten:
        click.echo(f"aquad: alerts are not written down: {teller.unwritten}", err=True)
    return not teller.unwritten


def _turn(slot: str | None, attempt: int) -> Turn | None:
    from aquad.jobs.run import Turn

    if slot is None:
        return None
    try:
        return Turn(from_text(slot), attempt)
    except ValueError as error:
        raise InvalidUse(f"run --slot {slot}: not a time such as 2024-08-02T02:00:00.000000Z") from error


def _say_what(
    invocation: Invocation, wiring: Wiring, repository: Repository, job: str, components: tuple[str, ...]
) -> None:
    from aquad.jobs import prune
    from aquad.jobs.work import FULLS

    if job == "cleanup":
        from aquad.cli.prune import show

        now = wiring.clock.now()
        show(invocation, prune.decide(repository, wiring.pruning(), kinds=FULLS, now=now, logs=True))
    elif job == "verify":
        from aquad.jobs.nightly import choose
        from aquad.repository.history import History

        chosen = choose(repository.catalog().backups, History.of(repository.journal.entries()), wiring.clock.now())
        click.echo(f"would look into {', '.join(one.id for one in chosen.content) or 'nothing'}")
        click.echo(f"would read {', '.join(one.id for one in chosen.bytes) or 'nothing else'}")
    else:
        names = [one.component for one in wiring.sources(wiring.wants(job, components))]
        click.echo(f"would take {', '.join(names)} into {repository.root}")


def _show(invocation: Invocation, repository: Repository, result: Work, seconds: float) -> None:
    details: dict[str, Any] = result.details
    backup_id = details.get("backup")
    if invocation.json:
        print_json(
            outcome=result.outcome,
            backup=backup_id,
            reason=result.reason,
            seconds=round(seconds, 3),
            **{"components": {}, **{key: value for key, value in details.items() if key != "backup"}},
        )
        return
    if backup_id:
        sealed = repository.catalog().find(details.get("archive", backup_id))
        size = human_bytes(sealed.stored_bytes)
        say(invocation, f"{result.outcome}: {sealed.id}, {size} stored in {duration(seconds)}, read back and compared")
    elif result.outcome != "failed":
        counts = [f"{key.replace('_', ' ')} {_count(value)}" for key, value in details.items() if key != "free_bytes"]
        say(invocation, f"{result.outcome}: {', '.join(counts) or 'nothing was to be done'}, in {duration(seconds)}")
    if result.reason:
        click.echo(f"aquad: {result.outcome}: {result.reason}", err=True)


def _count(value: Any) -> str:
    return (
        ", ".join(f"{number} ({level})" for level, number in value.items())
        if isinstance(value, dict)
        else str(len(value))
    )
