"""The server of a kept playground, in the foreground, until somebody ends it."""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING

from aquad.core.errors import ChildFailed, InvalidUse, Terminated
from aquad.demo import interruption
from aquad.demo.server import EmbeddedServer, is_playground
from aquad.demo.words import say, to_try

if TYPE_CHECKING:
    from pathlib import Path


def serve(top: Path) -> int:
    """Exit 0 when it was interrupted or terminated: that is how it ends."""
    settings = top / "settings.toml"
    port = _port_of(top, settings)
    try:
        with EmbeddedServer((top / "server").resolve(), port) as server:
            if server.port != port:
                _change_port(settings, server.port)
                say(f"Port {port} is taken: {settings} says {server.port} now.")
            say(f"PostgreSQL listens on 127.0.0.1:{server.port}, user postgres, password in {server.password_file}.")
            say(f"The settings are in {settings}. Try, in another terminal:\n{to_try(top)}\nCtrl-C ends the server.")
            with interruption.allowed():
                server.wait()
            raise ChildFailed(f"PostgreSQL ended by itself: {server.last_words()}")
    except (KeyboardInterrupt, Terminated):
        say("The server is stopped; the playground is kept.")
    return 0


def _port_of(top: Path, settings: Path) -> int:
    """Raises InvalidUse unless it is a playground that was kept, and ours."""
    if not is_playground(top):
        raise InvalidUse(f"serve {top}: it is no playground that was kept", "Make one: make demo KEEP=1")
    owner = top.stat().st_uid
    if os.geteuid() not in {0, owner}:
        raise InvalidUse(f"serve {top}: it belongs to the user {owner}", "Run this as that user.")
    try:
        port = tomllib.loads(settings.read_text())["postgres"]["port"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidUse(f"serve {top}: {settings}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InvalidUse(f"serve {top}: there is no postgres.port in {settings}") from error
    if not isinstance(port, int) or not 0 < port < 65536:
        raise InvalidUse(f"serve {top}: postgres.port in {settings} is {port!r}")
    return port


def _change_port(settings: Path, port: int) -> None:
    text, changes = re.subn(r"(?m)^(\s*\[postgres\][^\[]*?^\s*port\s*=\s*)\d+", rf"\g<1>{port}", settings.read_text())
    if changes != 1:
        raise InvalidUse(
            f"its port is taken, and {settings} is not as it was made", f"Set postgres.port to {port} there."
        )
    settings.write_text(text)
