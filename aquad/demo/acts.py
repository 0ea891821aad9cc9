"""The acts of the demo, in order. What it makes lies in one directory, and is removed unless it was asked to keep it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from aquad.core.errors import AquadError, ChildFailed, InvalidUse
from aquad.demo import compare, interruption, playground
from aquad.demo.alarm import Receiver, metrics
from aquad.demo.day import Sunday
from aquad.demo.server import EmbeddedServer, die_with_parent, free_port, is_playground, place
from aquad.demo.words import act, compared, console, say, to_remove, to_serve, to_try

GRACE_SECONDS = 20


def demo(keep: Path | None) -> int:
    with ExitStack() as removal:
        top = _made(keep)
        removal.callback(shutil.rmtree, top)
        directory = place(top)
        if directory != top / "server":
            removal.callback(shutil.rmtree, directory)
            (top / "server").symlink_to(directory)
        try:
            equal = _play(top, directory)
        except AquadError:
            if keep and (top / "settings.toml").exists() and not interruption.exit_code():
                removal.pop_all()
                say(f"The playground is kept as it is: look, and remove it with {to_remove(top)}")
            raise
        if keep:
            removal.pop_all()
            say(f"\nThe playground is kept, its server is stopped. Start it again:\n    {to_serve(top)}")
            say(f"and try, in another terminal:\n{to_try(top)}\nRemove it all with\n    {to_remove(top)}")
        else:
            say("Try next: `make demo KEEP=1`, which leaves all this to play with;")
            say("then README.md, 'Your own database in five minutes'.")
    return 0 if equal else 1


def _made(keep: Path | None) -> Path:
    if keep is None:
        top = Path(tempfile.mkdtemp(prefix="aquad-demo-"))
    else:
        top = keep
        try:
            top.mkdir()
        except FileExistsError:
            raise InvalidUse(*_in_the_way(keep)) from None
    if os.geteuid() == 0:
        top.chmod(0o711)  # the server runs as another user, who must pass
    return top.resolve()


def _in_the_way(keep: Path) -> tuple[str, str]:
    """Refuse: it may hold backups that somebody made since, which are not ours to delete, nor to mix with new ones."""
    if is_playground(keep):
        return f"{keep} is there already", f"Use it: {to_serve(keep)}; or remove it first: {to_remove(keep)}"
    return f"{keep} is there already, and is no playground", "Name another directory."


def _play(top: Path, directory: Path) -> bool:
    started = time.monotonic()
    try:
        with EmbeddedServer(directory) as server:
            equal = _acts(top, server)
    except psycopg.Error as error:
        raise ChildFailed(f"PostgreSQL: {str(error).strip().partition(chr(10))[0]}") from error
    say(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    return equal


def _acts(top: Path, server: EmbeddedServer) -> bool:
    settings = top / "settings.toml"
    act("1. A stack like AquaStream: PostgreSQL with 100,000 rows, a checkout, four volumes")
    with interruption.allowed():
        playground.fill_databases(server)
        playground.make_checkout(top / "checkout")
        playground.make_volumes(top / "volumes")
        settings.write_text(playground.settings_text(top, server))
        before = _seen(server, top)
    act("2. A full backup")
    for command in ("init", "run full", "list", "show latest", "verify latest --level content"):
        _aquad(top, command)
    act("3. The disaster: databases and roles dropped, checkout and volumes emptied")
    with interruption.allowed():
        playground.empty_databases(server)
        for directory in (top / "checkout", *(top / "volumes" / name for name in playground.VOLUMES)):
            playground.empty_directory(directory)
        lost = compare.differences(before, _seen(server, top, names=()))
    console.print(f"{len(lost)} of {len(before)} things are gone")
    act("4. Everything back")
    _aquad(top, "restore all latest --yes")
    act("5. The proof")
    with interruption.allowed():
        equal = compared(before, _seen(server, top)) and len(lost) >= len(before)
    act("6. A Sunday of the daemon, in seconds, with a repository of its own")
    reports = _sunday(top, playground.settings_text(top, server, "sunday"))
    act("7. What it reports of the full backup of that night")
    say(next(report for report in reports if "Job          full, for the slot" in report and "02:00:00" in report))
    act("8. A volume is lost: what somebody hears when the next backup fails, and what Prometheus sees")
    _alarm(top, playground.settings_text(top, server, "alarm"))
    return equal


def _sunday(top: Path, settings: str) -> list[str]:
    """A repository of its own, removed after that: the times in the other one stay true."""
    with ExitStack() as removal:
        sunday = Sunday(top / "sunday.toml")
        removal.callback(sunday.settings.unlink)
        sunday.settings.write_text(settings)
        removal.callback(shutil.rmtree, top / "sunday", ignore_errors=True)
        _run(top, "init", sunday.argv("init"))
        reports = sunday.live()
        for command in ("list", "status", "audit verify"):
            _run(top, command, sunday.argv(*command.split()))
    return reports


def _alarm(top: Path, text: str) -> None:
    """A repository of its own again, for its backup is not whole."""
    settings, secret, lost = top / "alarm.toml", top / "webhook", top / "volumes" / "nginx_logs"
    port = free_port()
    with ExitStack() as removal, Receiver() as receiver:
        removal.callback(shutil.rmtree, top / "alarm", ignore_errors=True)
        for path in (settings, secret):
            removal.callback(path.unlink)
        settings.write_text(text.replace(":9480", f":{port}") + receiver.settings(secret))
        argv = [sys.executable, "-m", "aquad", "-c", str(settings)]
        _run(top, "init", [*argv, "init"])
        lost.rename(lost.with_name("lost"))
        removal.callback(lost.with_name("lost").rename, lost)
        _run(top, "run full", [*argv, "run", "full"], expected=1)
        if not receiver.messages:
            raise ChildFailed("aquad run full: nobody was told that it failed")
        say("\n".join(f"    | {line}" for line in receiver.messages[0].splitlines()))
        console.print("[bold]$ aquad serve")
        daemon = subprocess.Popen(
            [*die_with_parent("TERM"), *argv, "serve"], stderr=subprocess.DEVNULL, process_group=0
        )
        try:
            say("\n".join(metrics(port)))
        finally:
            daemon.terminate()
            _wait_or_kill(daemon)


def _aquad(top: Path, command: str) -> None:
    _run(top, command, [sys.executable, "-m", "aquad", "-c", str(top / "settings.toml"), *command.split()])


def _run(top: Path, command: str, argv: list[str], expected: int = 0) -> None:
    """Run it to its end; end it in order, and wait for that, when the demo is interrupted."""
    console.print(f"[bold]$ aquad {command}")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(dir=top) as scratch:
        child = subprocess.Popen(
            [*die_with_parent("TERM"), *argv],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT if expected else None,  # that it fails is a part of the play
            env={**os.environ, "TMPDIR": scratch},
            process_group=0,  # Ctrl-C reaches the demo, which passes it on once
        )
        try:
            with interruption.allowed():
                child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                _wait_or_kill(child)
    if child.returncode != expected:
        raise ChildFailed(f"aquad {command} ended with exit code {child.returncode}")


def _wait_or_kill(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _seen(
    server: EmbeddedServer, top: Path, names: tuple[str, ...] = ("aquastream_db", "reporting")
) -> dict[str, compare.Thing]:
    seen = compare.databases(server, names) | compare.tree("checkout", top / "checkout", playground.CONFIG_PARENTS)
    for name in playground.VOLUMES:
        seen |= compare.tree(f"volume {name}", top / "volumes" / name)
    return seen
