"""The guard's answers: ASGI, one class. docs.docker.com/reference/api/engine/version/v1.41"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from aquad.core.errors import Unreachable
from aquad.guard.forms import Form, form_of
from aquad.guard.holds import Refused
from aquad.guard.ledger import Entry
from aquad.guard.shown import COMPOSE, inspected, listed, service_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import Receive, Scope, Send

    from aquad.guard.engine import Answer, Engine
    from aquad.guard.holds import Holds
    from aquad.observe.logs import Log

LEASE_HEADER = b"x-aquad-lease"


class _Known(NamedTuple):
    """A container that is ours to move: by its full id, whatever it was asked by."""

    id: str
    service: str
    found: dict[str, Any]


class Guard:
    def __init__(self, engine: Engine, holds: Holds, log: Log, *, project: str, services: Collection[str]) -> None:
        self._engine, self._holds, self._log = engine, holds, log
        self._project, self._services = project, frozenset(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        form = form_of(scope["method"], scope["raw_path"], scope["query_string"], scope["headers"])
        if form is not None and form.verb == "lease":
            await self._lease(float(form.query.get("seconds", "0")), receive, send)
            return
        lease = next((value.decode("latin-1") for name, value in scope["headers"] if name == LEASE_HEADER), "")
        response = await run_in_threadpool(self._answer, form, lease) if form else self._refusal(scope)
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response:
        self._log.warning("refused", method=scope["method"], path=scope["raw_path"].decode("latin-1")[:200])
        return _said(403, "aquad docker-guard: this request is not allowed")

    def _answer(self, form: Form, lease: str) -> Response:
        try:
            return self._of_the_engine(form) if form.verb in {"_ping", "version"} else self._of_containers(form, lease)
        except Refused as error:
            return _said(409, str(error))
        except Unreachable as error:
            self._log.error("no answer", error=str(error))
            return _said(502, str(error))
        except OSError as error:
            self._log.error("ledger not written: nothing was held", error=str(error))
            return _said(500, f"the ledger cannot be written, so nothing was held: {error}")

    def _of_the_engine(self, form: Form) -> Response:
        return _passed_on(self._engine.ask("GET", f"{form.prefix}/{form.verb}"))

    def _of_containers(self, form: Form, lease: str) -> Response:
        if form.verb == "containers/json":
            return self._listed(form)
        known = self._known(form)
        return self._of_one(form, known, lease) if isinstance(known, _Known) else known

    def _listed(self, form: Form) -> Response:
        answer = self._engine.containers(self._project, form.prefix, form.query)
        return (
            JSONResponse(listed(answer.json(), self._project, self._services)) if answer.is_good else _passed_on(answer)
        )

    def _of_one(self, form: Form, known: _Known, lease: str) -> Response:
        match form.verb:
            case "json":
                return JSONResponse(inspected(known.found))
            case "logs":
                return StreamingResponse(self._engine.pieces(f"{form.prefix}/containers/{known.id}/logs", form.query))
            case ("pause" | "stop") as verb if lease or verb == "pause":
                entry = Entry(known.id, known.service, verb, "", lease)
                return _passed_on(self._holds.hold(entry, form.query))
            case "unpause" | "start" as verb:
                return _passed_on(self._holds.release(verb, known.id))
            case _:  # a stop that nothing hangs on: of a restore, which starts it again itself
                return _passed_on(self._engine.ask("POST", f"/containers/{known.id}/stop", form.query, seconds=300.0))

    def _known(self, form: Form) -> _Known | Response:
        found = self._engine.inspect(form.container, form.prefix)
        if found is None:
            return _said(404, f"No such container: {form.container}")
        labels = found["Config"].get("Labels")
        service = service_of(labels, self._project)
        if service not in self._services or labels.get(f"{COMPOSE}oneoff") == "True":
            self._log.warning("refused", verb=form.verb, container=form.container)
            return _said(403, f"aquad docker-guard: {form.container} is no container that the settings name")
        return _Known(found["Id"], str(service), found)

    async def _lease(self, seconds: float, receive: Receive, send: Send) -> None:
        """One line, and then nothing until the lease is over."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        lease = self._holds.lease(seconds, lambda: _set(loop, over))
        try:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
            )
            line = json.dumps({"lease": lease.id, "seconds": lease.seconds}).encode() + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
            waiting = {asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(over.wait())}
            _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in pending:
                one.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._holds.end(lease)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _set(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    loop.call_soon_threadsafe(over.set)


def _said(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def _passed_on(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type=answer.content_type or None)
