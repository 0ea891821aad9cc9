"""`aquad serve` and `aquad next`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, table
from aquad.core.clock import to_text

if TYPE_CHECKING:
    from aquad.core.process import Supervised
    from aquad.jobs.slots import Turn
    from aquad.wiring import Wiring


@click.command()
@click.pass_obj
def serve(invocation: Invocation) -> None:
    """Keep the schedule, until a signal ends it. Every run is a process of its own.

    SIGTERM: no new run, the one under way ends within limits.stop. SIGHUP: the settings are read again; until then, and
    where they are bad, every run has those that were read before.

    \b
    Example:
      aquad -c /etc/aquad/settings.toml serve
    """
    from aquad.daemon.loop import Daemon
    from aquad.observe.logs import make_log
    from aquad.wiring import Wiring

    def load() -> Wiring:
        return Wiring.load(invocation.config_path, "daemon")

    wiring = load()
    log = make_log(wiring.clock, wiring.zone, sys.stderr, as_json=invocation.json)
    raise SystemExit(Daemon(wiring, load, _start, _send, log).run())


def _start(wiring: Wiring, turn: Turn) -> Supervised:
    """The same command that an operator would give, but with the settings that the daemon has, whatever has become of the
    file. It waits for its turn as long as a run may be late.
    """
    from aquad.core.process import Supervised

    argv = _aquad(wiring)
    argv += ["run", turn.slot.job, "--slot", to_text(turn.slot.at), "--attempt", str(turn.attempt)]
    argv += ["--wait", str(int(wiring.slot_policy().catch_up.total_seconds()))]
    return Supervised(argv)


def _send(wiring: Wiring, batch: bytes) -> Supervised:
    from aquad.core.process import Supervised

    return Supervised([*_aquad(wiring), "alerts", "send", batch])


def _aquad(wiring: Wiring) -> list[str | bytes]:
    return [sys.executable, "-m", "aquad", "-c", wiring.settings_text.encode(), "-q"]


@click.command("next")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N")
@click.pass_obj
def coming(invocation: Invocation, count: int) -> None:
    """Show the coming runs, in local time and UTC.

    \b
    Example:
      aquad next -n 20
    """
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    runs = wiring.coming(wiring.clock.now(), count)
    if invocation.json:
        print_json(runs=[{"job": job, "at": at} for job, at in runs])
    elif not runs:
        click.echo("none: every job of the schedule is switched off")
    else:
        rows = [
            [job, f"{at.astimezone(wiring.zone):%a %Y-%m-%d %H:%M %Z}", f"{at:%Y-%m-%d %H:%M} UTC"] for job, at in runs
        ]
        table(["job", "local time", "UTC"], rows)
