"""Metrics, health and JSON over HTTP, on one port, read-only. It reads the daemon's last State, and never does any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aquad.core import machine
from aquad.core.errors import AquadError, NoSuchBackup
from aquad.observe.overview import status_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from aquad.core.clock import Clock
    from aquad.observe.state import Seen, State

SILENT_SECONDS = 120.0
"""The daemon's loop looks around every 30 s; after three minutes it is ended by its watchdog."""


class Json(JSONResponse):
    """As the command line prints it."""

    def render(self, content: Mapping[str, Any]) -> bytes:
        return machine.text(content).encode()


def dead(state: State, monotonic: float) -> str:
    """Why the daemon is not alive; empty when it is."""
    silent = monotonic - state.beat_monotonic
    return f"the daemon's loop has not looked around for {silent:.0f} s" if silent > SILENT_SECONDS else ""


def unready(state: State, now: datetime) -> list[str]:
    """Why nobody should rely on it: dead or alive, there is no repository, or something in it is too old."""
    reasons = [state.trouble] if state.trouble else []
    if state.seen is None:
        return reasons or ["the repository has not been looked at yet"]
    return reasons + [
        f"{view.name}: no good backup for {view.age_seconds} s" if view.backup else f"{view.name}: no good backup"
        for view in state.seen.overview.at(now).components
        if view.stale
    ]


class Web:
    """`state` is asked in the server's thread."""

    def __init__(self, state: Callable[[], State], registry: CollectorRegistry, clock: Clock) -> None:
        self._state = state
        self._registry = registry
        self._clock = clock

    def app(self) -> Starlette:
        paths = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._ready,
            "/api/v1/status": self._status,
            "/api/v1/backups": self._backups,
            "/api/v1/backups/{id}": self._backup,
            "/api/v1/runs": self._runs,
            "/api/v1/next": self._next,
        }
        return Starlette(routes=[Route(path, answer) for path, answer in paths.items()])

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _health(self, _: Request) -> Response:
        reason = dead(self._state(), self._clock.monotonic())
        return Json({"alive": not reason, "reasons": [reason] if reason else []}, 503 if reason else 200)

    async def _ready(self, _: Request) -> Response:
        state = self._state()
        reasons = [*filter(None, [dead(state, self._clock.monotonic())]), *unready(state, self._clock.now())]
        return Json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def _status(self, _: Request) -> Response:
        return self._seen(lambda seen: status_json(seen.overview.at(self._clock.now())))

    async def _backups(self, _: Request) -> Response:
        return self._seen(lambda seen: seen.listing())

    async def _backup(self, request: Request) -> Response:
        return self._seen(lambda seen: seen.backup(request.path_params["id"]))

    async def _runs(self, _: Request) -> Response:
        return self._seen(lambda seen: {"runs": status_json(seen.overview)["runs"]})

    async def _next(self, _: Request) -> Response:
        return Json({"runs": [{"job": job, "at": at} for job, at in self._state().coming]})

    def _seen(self, answer: Callable[[Seen], Mapping[str, Any]]) -> Response:
        state = self._state()
        if state.seen is None:
            return Json({"error": state.trouble or "there is no repository"}, 503)
        try:
            return Json(answer(state.seen))
        except NoSuchBackup as error:
            return Json({"error": error.message}, 404)
        except AquadError as error:
            return Json({"error": error.message}, 500)
