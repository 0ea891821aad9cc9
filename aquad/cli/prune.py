"""`aquad prune`, `trash`, `keep`, `unkeep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aquad.cli import Invocation
from aquad.cli.output import confirmed, print_json, say, table
from aquad.core.clock import to_text
from aquad.core.errors import InvalidUse, NoSuchBackup, RepositoryRefused
from aquad.observe.reports import both_times

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aquad.jobs.prune import Pruning
    from aquad.jobs.run import Work
    from aquad.repository.repository import Repository
    from aquad.repository.trash import Removed
    from aquad.stream.artifact import RunContext
    from aquad.wiring import Wiring


@click.command()
@click.option("--dry-run", is_flag=True, help="Print every decision with its reason; remove nothing.")
@click.option("--all", "everything", is_flag=True, help="Without the cap on what goes in one run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune(invocation: Invocation, dry_run: bool, everything: bool, yes: bool) -> None:
    """Remove what retention no longer asks for: into the trash, from where it can be had back for a week.

    \b
    Examples:
      aquad prune --dry-run
      aquad prune --all
    """
    from aquad.jobs import prune as pruning
    from aquad.jobs.run import Work

    wiring, repository = _opened(invocation)
    rules, kinds = wiring.pruning(), tuple(wiring.pruning().policy.age)

    def decided() -> Pruning:
        now = wiring.clock.now()
        return pruning.decide(repository, rules, kinds=kinds, now=now, everything=everything, logs=True)

    plan = decided()
    if dry_run or not invocation.json:
        show(invocation, plan)
    if dry_run:
        return
    if plan.remove or plan.deleted:  # asked before it has the lock: a forgotten question must not hold anybody up
        what = f"it removes {len(plan.remove)} backups, and deletes for good {len(plan.empty)} and {len(plan.reports)} reports"
        confirmed("Remove what is named above?", yes=yes, command="prune", what=what)

    def work(_run: RunContext) -> Work:
        now = decided()
        if not {*now.remove, *now.deleted} <= {*plan.remove, *plan.deleted}:
            raise RepositoryRefused("prune: more would go now than was named", "Something has changed: run it again.")
        pruning.carry_out(repository, now, rules, kinds)
        return Work("success", "", pruning.details(now))

    repository.spend_reserve()
    result = _run(wiring, repository, "prune", work)
    if invocation.json:
        print_json(outcome=result.outcome, **{"removed": [], "emptied": [], **result.details})
    else:
        say(invocation, f"{len(result.details.get('removed', []))} backups went to the trash: `aquad trash list`")


def show(invocation: Invocation, plan: Pruning) -> None:
    """Every decision with its reason."""
    if invocation.json:
        print_json(decisions=[d._asdict() for d in plan.decisions], emptied=plan.empty, reports=plan.reports)
        return
    rows = [["stays" if one.keep else "GOES", one.id, one.kind, one.reason] for one in plan.decisions]
    rows += [["DELETED", name, "trash", "it was in the trash for long enough"] for name in plan.empty]
    rows += [["DELETED", path, "report", "it is old, or there are too many"] for path in plan.reports]
    if rows:
        table(["decision", "backup", "kind", "reason"], rows)
    else:
        click.echo("there is nothing to decide about")


@click.command()
@click.argument("backup_id", metavar="ID")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Until the beginning of this day (schedule's zone); else for ever.",
)
@click.pass_obj
def keep(invocation: Invocation, backup_id: str, until: datetime | None) -> None:
    """Keep a backup from retention.

    \b
    Example:
      aquad keep 20240802_020000_full --until 2025-01-01
    """
    wiring, repository = _opened(invocation)
    backup = repository.catalog().find(backup_id)
    moment = until.replace(tzinfo=wiring.zone) if until else None
    if moment is not None and moment <= wiring.clock.now():
        raise InvalidUse(f"keep --until {moment:%Y-%m-%d}: that is over", "Name a day that is to come.")
    repository.journal.append("kept", backup=backup.id, until=to_text(moment) if moment else None)
    say(invocation, f"kept: {backup.id} stays {f'until {both_times(moment, wiring.zone)}' if moment else 'for ever'}")


@click.command()
@click.argument("backup_id", metavar="ID")
@click.pass_obj
def unkeep(invocation: Invocation, backup_id: str) -> None:
    """Let retention decide about a backup again.

    \b
    Example:
      aquad unkeep 20240802_020000_full
    """
    from aquad.repository.history import History

    _, repository = _opened(invocation)
    backup = repository.catalog().find(backup_id)
    if backup.id not in History.of(repository.journal.entries()).kept:
        raise NoSuchBackup(f"unkeep {backup.id}: nobody keeps it", "`aquad prune --dry-run` says why it stays.")
    repository.journal.append("unkept", backup=backup.id)
    say(invocation, f"no longer kept: retention decides about {backup.id}")


@click.group()
def trash() -> None:
    """What retention removed, and what dead runs left."""


@trash.command("list")
@click.pass_obj
def list_trash(invocation: Invocation) -> None:
    """List what is in the trash, and since when.

    \b
    Example:
      aquad trash list
    """
    from aquad.jobs.prune import removed_at
    from aquad.repository.history import History

    wiring, repository = _opened(invocation)
    history = History.of(repository.journal.entries())
    found = [(one, removed_at(one, history)) for one in repository.trash.contents()]
    if invocation.json:
        rows: list[dict[str, Any]] = [
            {"id": one.id, "removed_at": at, "kind": one.backup.kind if one.backup else None} for one, at in found
        ]
        print_json(trash=rows)
    elif not found:
        click.echo("the trash is empty")
    else:
        stay = wiring.pruning().trash
        table(
            ["id", "what", "removed", "deleted by the first full backup after"],
            [
                [
                    one.id,
                    _what(one),
                    both_times(at, wiring.zone),
                    both_times(at + stay, wiring.zone),
                ]
                for one, at in found
            ],
        )


def _what(removed: Removed) -> str:
    if removed.backup is not None:
        return removed.backup.kind
    return "left by a dead run, or being deleted" if removed.deletable else "its manifest is damaged: it stays"


@trash.command("restore")
@click.argument("backup_id", metavar="ID")
@click.pass_obj
def take_back(invocation: Invocation, backup_id: str) -> None:
    """Make a removed backup one again. Retention would remove it once more: `aquad keep` it.

    \b
    Example:
      aquad trash restore 20240802_020000_full
    """
    from aquad.jobs.run import Work

    wiring, repository = _opened(invocation)

    def work(_run: RunContext) -> Work:
        backup = repository.trash.take_back(backup_id)
        repository.journal.append("trash_restored", backup=backup.id)
        return Work("success", "", {"backup": backup.id})

    taken = _run(wiring, repository, "trash restore", work).details["backup"]
    say(invocation, f"{taken} is a backup again; keep it from retention with: aquad keep {taken}")


@trash.command("empty")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def empty(invocation: Invocation, yes: bool) -> None:
    """Delete for good all that is in the trash.

    \b
    Example:
      aquad trash empty
    """
    from aquad.jobs.prune import READERS_SECONDS
    from aquad.jobs.run import Work

    wiring, repository = _opened(invocation)

    names = [one.id for one in repository.trash.contents() if one.deletable]
    if names:
        what = f"it deletes {len(names)} for good"
        confirmed(f"Delete {', '.join(names)} for good?", yes=yes, command="trash empty", what=what)

    def work(_run: RunContext) -> Work:
        there = [one.id for one in repository.trash.contents() if one.id in names]
        with repository.removing(READERS_SECONDS):
            for name in there:
                repository.journal.append("trash_emptied", backup=name)
                repository.trash.empty(name)
        return Work("success", "", {"emptied": there})

    repository.spend_reserve()
    result = _run(wiring, repository, "trash empty", work)
    say(invocation, f"deleted {len(result.details['emptied'])}")


def _opened(invocation: Invocation) -> tuple[Wiring, Repository]:
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    return wiring, wiring.repository()


def _run(wiring: Wiring, repository: Repository, job: str, work: Callable[[RunContext], Work]) -> Work:
    from aquad.jobs.run import run_job

    return run_job(repository, job, work, clock=wiring.clock, zone=wiring.zone, limits=wiring.limits(job))
