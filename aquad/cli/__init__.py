"""The command line. Commands live in modules of this package and are loaded when they are asked for, so that
`aquad --help` costs little more than Python itself.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aquad import __version__
from aquad.core.errors import AquadError, DeadlinePassed, Terminated
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from types import FrameType

TIDY_SECONDS = 5.0
COMMANDS = {
    "init": ("repository:init", "Make the repository; say how much space the schedule will need."),
    "serve": ("serve:serve", "The daemon: keep the schedule."),
    "run": ("run:run", "Run a job of the schedule now: full, postgres, weekly, cleanup, verify."),
    "ping": ("ping:ping", "Is the daemon alive? For a container's health check."),
    "next": ("serve:coming", "Show the coming runs, in local time and UTC."),
    "list": ("listing:list_backups", "List backups, newest first."),
    "show": ("listing:show", "Show one backup: artifacts, sizes, digests, what was proved and when."),
    "verify": ("verify:verify", "Read stored bytes again and compare them with what was sealed."),
    "restore": ("restore:group", "Bring back one part, or everything."),
    "status": ("status:status", "What can I restore, to which moment, how long will it take."),
    "check": ("status:check", "Connect to every source and channel; say what would fail tonight."),
    "prune": ("prune:prune", "Remove what retention no longer asks for; every decision with its reason."),
    "trash": ("prune:trash", "What retention removed: list, restore, empty."),
    "keep": ("prune:keep", "Keep a backup from retention."),
    "unkeep": ("prune:unkeep", "Let retention decide about it again."),
    "hold": ("hold:hold", "Hold the schedule for a while."),
    "release": ("hold:release", "Let it go on."),
    "alerts": ("alerts:group", "Do alerts reach anybody? Sends a test message."),
    "report": ("report:report", "Change log and incident report of a month."),
    "audit": ("audit:group", "Who did what, when, and how it ended: show, verify."),
    "accept": ("accept:accept", "Take the present size of a component as the new normal."),
    "key": ("key:group", "Prove that the key is kept elsewhere too."),
    "export": ("export:group", "Write what Prometheus needs: scrape job and rules."),
    "docker-guard": ("docker_guard:docker_guard", "Stand between aquad and the Docker socket."),
    "config": ("config:group", "Show, check or generate the settings."),
    "completion": ("shell:completion", "Print the completion script of a shell."),
    "version": ("shell:version", "Print the version."),
}


@dataclass(frozen=True)
class Invocation:
    """What was said before the command's name."""

    config_path: Path | None
    json: bool
    progress: bool
    quiet: bool
    verbose: bool


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"aquad.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the list of commands without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings; else $AQUAD_CONFIG, ./settings.toml, /etc/aquad/settings.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when all is well, but what was asked for.")
@click.option("-v", "--verbose", is_flag=True, help="Say each step, with its time, on stderr.")
@click.option("--no-progress", is_flag=True, help="No progress bars.")
@click.version_option(__version__, message="aquad %(version)s")
@click.pass_context
def root(
    context: click.Context, config_path: Path | None, as_json: bool, quiet: bool, verbose: bool, no_progress: bool
) -> None:
    """Backup and recovery for a Docker Compose stack, with proof.

    \b
    Examples:
      aquad run full                      take a full backup now
      aquad status                        what can be restored, to which moment
      aquad restore plan all latest       what a restore would do
    """
    if quiet and verbose:
        raise click.UsageError("say -q or -v, not both")
    context.obj = Invocation(config_path, as_json, not no_progress and not quiet, quiet, verbose)


def main() -> None:
    """Run the command line; the exit codes are those of the README."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _Ending())
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # the settings say where the server is; libpq would listen to PGHOSTADDR and the like too
    code = _exit_code()
    if not _flushed():
        code = code or 1
    gc.freeze()  # what lives at the end of the process is not worth a collection
    sys.exit(code)


def _exit_code() -> int:  # noqa: PLR0911 - one for each way to end
    """Run the command; say what went wrong, and return the exit code that means it."""
    try:
        code = root.main(prog_name="aquad", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("interrupted: what was not sealed is no backup; the next run tidies up")
        return 130
    except DeadlinePassed:
        _say("error: not done at its deadline", "Raise limits.deadline, or look why it is slow.")
        return 1
    except Terminated:
        _say("terminated: what was not sealed is no backup; the next run tidies up")
        return 143
    except click.ClickException as error:
        error.show()
        return 2
    except AquadError as error:
        _say(f"error: {error.message}", error.hint)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except OSError as error:
        _say(f"error: {error}")
        return 1
    return code if isinstance(code, int) else 0


class _Ending:
    """Raises what a signal means. An impatient second one is not heard for a while, so that tidying up is not cut short.

    It is heard after that: the first may have been raised where Python drops exceptions (in a `__del__`).
    """

    heard_at = float("-inf")

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - _Ending.heard_at < TIDY_SECONDS:
            return
        _Ending.heard_at = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise DeadlinePassed if number == signal.SIGALRM else Terminated


def _flushed() -> bool:
    """Write what is left of the output; False when the other end has gone away or is full."""
    whole = True
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            whole = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python tries once more at its end
    return whole


def _say(message: str, hint: str = "") -> None:
    """Print an error on stderr, also when the terminal has gone away."""
    try:
        for line in message.split("\n"):
            print(f"aquad: {escaped(line)}", file=sys.stderr)  # noqa: T201 - this is the command line
        if hint:
            print(f"  {escaped(hint)}", file=sys.stderr)  # noqa: T201 - this is the command line
    except OSError:
        pass  # harmless because the exit code says it too, and nobody is there to read
