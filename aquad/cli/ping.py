"""`aquad ping`."""

from __future__ import annotations

import http.client
import json

import click

from aquad.cli import Invocation
from aquad.cli.output import say
from aquad.core.errors import AquadError, InvalidUse
from aquad.core.escape import escaped

ANSWER_SECONDS = 5.0


@click.command()
@click.pass_obj
def ping(invocation: Invocation) -> None:
    """Is the daemon alive? For a container's health check: exit 0 when it is, 1 when it is not, and says why.

    \b
    Example:
      aquad ping || echo dead
    """
    from aquad.wiring import Wiring

    listen = Wiring.load(invocation.config_path).settings.web.listen
    if listen == "off":
        raise InvalidUse("ping: web.listen is off", "Give the daemon an address in the settings.")
    host, _, port = listen.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - it is what is asked for
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise AquadError(f"ping {host}:{port}: {escaped(str(error))}", "Does the daemon run? `aquad serve`") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise AquadError(f"ping {host}:{port}: {'; '.join(_reasons(said)) or f'it answers {answer.status}'}")
    say(invocation, "alive")


def _reasons(said: bytes) -> list[str]:
    try:
        return [escaped(str(reason)) for reason in json.loads(said)["reasons"]]
    except (ValueError, KeyError, TypeError):
        return []
