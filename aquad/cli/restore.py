"""`aquad restore`: each part, the whole, the plan, and what a restore kept aside."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aquad.cli import Invocation
from aquad.cli.output import Bars, confirmed, print_json, say
from aquad.core.errors import InvalidUse, NoSuchBackup
from aquad.core.escape import escaped
from aquad.observe.reports import duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aquad.jobs.discard import Aside
    from aquad.jobs.restore import Order, Plan
    from aquad.jobs.run import Work
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import RunContext
    from aquad.wiring import Wiring


class _Session:
    """What one restore command needs: its wiring, its repository, and what was said about asking."""

    def __init__(self, invocation: Invocation, *, plan_only: bool, yes: bool, trusted: bool) -> None:
        from aquad.jobs.shelf import Shelf
        from aquad.wiring import Wiring

        self.invocation = invocation
        self.wiring: Wiring = Wiring.load(invocation.config_path)
        self.repository: Repository = self.wiring.repository()
        self.plan_only = plan_only
        self.yes = yes
        self._shelf = Shelf(self.repository, trusted=trusted)

    def holds(self, what: str) -> list[str]:
        """The components of an ID, or of an archive."""
        with Bars(self.invocation) as bars:
            bars.stage("comparing", None)
            return self._shelf.components(what, bars.advance)

    def order(self, component: str, what: str, target: Callable[[Wiring], object]) -> Order:
        from aquad.jobs.restore import Order

        with Bars(self.invocation) as bars:
            bars.stage(f"comparing {component}", None)
            reader = self._shelf.open(component, what, bars.advance)
        return Order(component, self.wiring.source(component), reader, target(self.wiring))

    def carry_out(self, orders: Sequence[Order], name: str) -> None:
        from aquad.jobs.restore import plan, restore

        if self.plan_only:
            self._show(plan(self.repository, orders))
            return
        started = self.wiring.clock.monotonic()
        work = self.run(name, lambda context: restore(self.repository, orders, self._confirm, context))
        seconds = self.wiring.clock.monotonic() - started
        if self.invocation.json:
            print_json(
                outcome=work.outcome,
                restored=work.details["restored"],
                facts=work.details["facts"],
                seconds=round(seconds, 3),
            )
        else:
            say(
                self.invocation,
                f"restored {', '.join(work.details['restored'])} in {duration(seconds)}, compared with what was sealed",
            )
            for component, facts in work.details["facts"].items():
                for kept in filter(None, (facts.get("kept"), facts.get("aside"))):
                    where = kept if isinstance(kept, str) else ", ".join(kept)
                    say(self.invocation, f"{component}: what was replaced is kept in {escaped(where)}")
        if work.reason and not self.invocation.json:
            click.echo(f"aquad: warning: {work.reason}", err=True)
        if work.exit_code:
            raise SystemExit(work.exit_code)

    def run(self, name: str, work: Callable[[RunContext], Work]) -> Work:
        from aquad.jobs.run import run_job

        with Bars(self.invocation) as bars:
            return run_job(
                self.repository,
                f"restore {name}",
                work,
                clock=self.wiring.clock,
                zone=self.wiring.zone,
                limits=self.wiring.limits("restore"),
                progress=bars,
            )

    def _confirm(self, plans: Sequence[Plan]) -> None:
        if not self.invocation.json:
            self._show(plans)
        if any(plan.overwrites for plan in plans):
            confirmed("Overwrite what is named above?", yes=self.yes)

    def _show(self, plans: Sequence[Plan]) -> None:
        if self.invocation.json:
            print_json(plan=[{**p._asdict(), "steps": [s._asdict() for s in p.steps]} for p in plans])
            return
        for plan in plans:
            took = (
                "never restored before"
                if plan.last_milliseconds is None
                else f"took {duration(plan.last_milliseconds / 1000)} last time"
            )
            click.echo(f"{plan.component} from {escaped(plan.origin)} ({took}):")
            for number, step in enumerate(plan.steps, start=1):
                size = f" ({human_bytes(step.needs_bytes)} of free space)" if step.needs_bytes else ""
                click.echo(f"  {number}. {escaped(step.text)}{size}")
                if step.overwrites:
                    click.echo(f"     OVERWRITES {escaped(step.overwrites)}")
                if step.warning:
                    click.echo(f"     WARNING {escaped(step.warning)}")


def _asking(command: Any) -> Any:
    """The options that every restore has."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Print the plan; do nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--trusted", is_flag=True, help="I vouch for a FILE that no manifest names."),
    ):
        command = option(command)
    return command


@click.group()
def group() -> None:
    """Bring back one part, or everything. ID may be a unique prefix, or latest; FILE is an artifact or a weekly archive.

    \b
    Examples:
      aquad restore plan all latest
      aquad restore postgres latest --database orders --to-name orders_yesterday
      aquad restore volume kafka_data 20240802_020000 --to /tmp/look
    """


@click.group()
def plan() -> None:
    """Print the steps, sizes, and what would be overwritten; do nothing."""


def _session(dry_run: bool, yes: bool, trusted: bool) -> _Session:
    context = click.get_current_context()
    planning = context.parent is not None and context.parent.info_name == "plan"
    return _Session(context.obj, plan_only=dry_run or planning, yes=yes, trusted=trusted)


@click.command()
@click.argument("what", metavar="ID|FILE")
@click.option("--database", metavar="NAME", help="Only this database.")
@click.option("--to-name", metavar="NAME", help="Under this name, beside the original.")
@click.option("--schema-only", is_flag=True, help="No rows.")
@click.option("--to", "url", metavar="URL", help="Another server: postgresql://user@host:port (no password in it).")
@click.option("--password-file", type=click.Path(path_type=Path), help="Password for --to.")
@click.option("--in-place", is_flag=True, help="Drop the live database first: where there is no space for two.")
@click.option(
    "--with-globals", is_flag=True, help="Also alter roles that exist (resets their passwords to those of the backup)."
)
@_asking
def postgres(
    what: str,
    database: str | None,
    to_name: str | None,
    schema_only: bool,
    url: str | None,
    password_file: Path | None,
    in_place: bool,
    with_globals: bool,
    dry_run: bool,
    yes: bool,
    trusted: bool,
) -> None:
    """Restore PostgreSQL beside the live data, compare, and swap."""
    if to_name and not database:
        raise InvalidUse("restore postgres --to-name: it needs --database", "A whole cluster keeps its names.")

    def target(_: Wiring) -> object:
        from aquad.sources.postgres.restore import PostgresTarget
        from aquad.sources.postgres.server import login_of_url

        return PostgresTarget(
            login=login_of_url(url, password_file) if url else None,
            database=database,
            to_name=to_name,
            schema_only=schema_only,
            in_place=in_place,
            with_globals=with_globals,
        )

    session = _session(dry_run, yes, trusted)
    session.carry_out([session.order("postgres", what, target)], "postgres")


@click.command()
@click.argument("what", metavar="ID|FILE")
@click.option(
    "--to", type=click.Path(path_type=Path), metavar="DIR", help="Into this directory instead of their places."
)
@_asking
def configs(what: str, to: Path | None, dry_run: bool, yes: bool, trusted: bool) -> None:
    """Restore the configuration; what it replaces is kept beside."""
    session = _session(dry_run, yes, trusted)
    session.carry_out([session.order("configs", what, lambda _: _configs_target(to))], "configs")


@click.command()
@click.argument("name")
@click.argument("what", metavar="ID|FILE")
@click.option(
    "--to", type=click.Path(path_type=Path), metavar="DIR", help="Into this empty directory instead of the volume."
)
@click.option("--only", metavar="PATTERN", help="Only paths that fit, such as 'topics/*'.")
@_asking
def volume(name: str, what: str, to: Path | None, only: str | None, dry_run: bool, yes: bool, trusted: bool) -> None:
    """Restore one volume; its old content is taken aside into the repository first."""
    session = _session(dry_run, yes, trusted)
    session.wiring.volume(name)
    order = session.order(name, what, lambda _: _volume_target(session, name, to, only))
    session.carry_out([order], name)


@click.command("all")
@click.argument("what", metavar="ID|FILE")
@_asking
def everything(what: str, dry_run: bool, yes: bool, trusted: bool) -> None:
    """Restore everything a backup or a weekly archive holds: configuration, volumes, databases, in this order.

    With `latest`, each component comes from the newest backup in which it is good.
    """
    session = _session(dry_run, yes, trusted)
    wiring = session.wiring
    catalog = session.repository.catalog()
    held = [n for n in wiring.components() if catalog.latest(n)] if what == "latest" else session.holds(what)
    names = [name for name in wiring.components() if name in held]
    orders = [session.order(name, what, partial(_default_target, session, name)) for name in names]
    if not orders:
        if what == "latest":
            catalog.find(what)
        raise InvalidUse(f"restore all {what}: it holds nothing that the settings name")
    session.carry_out(orders, "all")


@click.command()
@click.argument("run_id", metavar="RUN", required=False)
@_asking
def resume(run_id: str | None, dry_run: bool, yes: bool, trusted: bool) -> None:
    """Go on with a restore of everything that failed or was ended: what is left, from the same backups.

    RUN is the run's id as `status` shows it; without it the newest one.
    """
    from aquad.jobs.restore import unfinished

    session = _session(dry_run, yes, trusted)
    found = unfinished(session.repository.journal.entries())
    if found is None or run_id not in {None, found.run}:
        raise NoSuchBackup(
            f"resume {escaped(run_id or 'restore')}: no restore of everything is unfinished under that name",
            "`aquad status` shows one; `aquad restore all` begins anew.",
        )
    orders = [session.order(name, origin, partial(_default_target, session, name)) for name, origin in found.left]
    session.carry_out(orders, "all")


@click.command()
@click.argument("what", metavar="ID", required=False)
@_asking
def discard(what: str | None, dry_run: bool, yes: bool, trusted: bool) -> None:
    """Drop what a restore kept aside: all of it, or one ID as `status` shows it."""
    from aquad.jobs.discard import discard as discard_aside
    from aquad.jobs.discard import kept_aside

    session = _session(dry_run, yes, trusted)
    source = session.wiring.postgres()

    def confirm(aside: Aside) -> None:
        _name(aside, "drop")
        confirmed("Drop this for good?", yes=yes)

    if dry_run:
        _name(kept_aside(session.repository, source, what), "would drop")
        return
    work = session.run("discard", lambda context: discard_aside(session.repository, source, what, confirm, context))
    say(session.invocation, f"discarded {', '.join(escaped(name) for name in work.details['discarded'])}")


def _name(aside: Aside, verb: str) -> None:
    for name in (*aside.databases, *aside.directories):
        click.echo(f"{verb} {escaped(name)}")
    for name in aside.gone:
        click.echo(f"forget {escaped(name)}: it is gone from the server")


def _default_target(session: _Session, name: str, _: Wiring) -> object:
    if name == "configs":
        return _configs_target(None)
    if name == "postgres":
        from aquad.sources.postgres.restore import PostgresTarget

        return PostgresTarget()
    return _volume_target(session, name, None, None)


def _configs_target(to: Path | None) -> object:
    from aquad.sources.configs.source import ConfigsTarget

    return ConfigsTarget(to=to)


def _volume_target(session: _Session, name: str, to: Path | None, only: str | None) -> object:
    from aquad.sources.volumes import VolumeTarget

    aside = None if to is not None else lambda timestamp: session.repository.aside(timestamp, name)
    return VolumeTarget(to=to, only=only, aside=aside)


for _command in (postgres, configs, volume, everything):
    group.add_command(_command)
    plan.add_command(_command)
group.add_command(plan)
group.add_command(resume)
group.add_command(discard)
