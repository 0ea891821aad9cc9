"""`aquad docker-guard`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from aquad.cli import Invocation
from aquad.core.errors import InvalidUse


@click.command("docker-guard")
@click.option("--group", "gid", type=click.IntRange(min=0), help="Id of the group that may ask; else its own.")
@click.pass_obj
def docker_guard(invocation: Invocation, gid: int | None) -> None:
    """Stand between aquad and the Docker socket: only the containers that the settings name are shown, paused, stopped.

    Whatever it paused or stopped for a backup goes on when that backup ends, however it ends.

    \b
    Example:
      aquad -c /etc/aquad/settings.toml docker-guard --group 1034
    """
    from aquad.guard.serve import serve
    from aquad.observe.logs import make_log
    from aquad.wiring import Wiring

    wiring = Wiring.load(invocation.config_path)
    section = wiring.settings.docker
    if section.host == "off":
        raise InvalidUse("start the guard: docker.host is off", "Set it to unix:// and the path of the guard's socket.")
    serve(
        path=Path(section.host.removeprefix("unix://")),
        engine_path=section.engine,
        state=section.state,
        project=section.project or wiring.settings.stack,
        services=wiring.settings.guarded_services(),
        max_pause_seconds=wiring.settings.limits.max_pause.total_seconds(),
        gid=os.getgid() if gid is None else gid,
        log=make_log(wiring.clock, wiring.zone, sys.stderr, as_json=invocation.json),
    )
