"""The real Engine, asked over its unix socket. Docker Engine API, v1.41."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from aquad.core.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ANSWER_SECONDS = 30.0
STOP_SECONDS = 300.0
"""A container may take its time to stop, and the Engine answers when it has."""
PIECE_BYTES = 65536


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes

    @property
    def is_good(self) -> bool:
        return self.status < 400

    def json(self) -> Any:
        return json.loads(self.body)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("docker", timeout=seconds)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(
        self, method: str, path: str, query: Mapping[str, str] | None = None, *, seconds: float = ANSWER_SECONDS
    ) -> Answer:
        """Raises Unreachable when there is no answer: what became of the question is not known then."""
        with self._asked(method, path, query or {}, seconds) as answer:
            try:
                return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(method, path, error) from error

    def pieces(self, path: str, query: Mapping[str, str]) -> Iterator[bytes]:
        """Yield an answer of any length. Raises Unreachable."""
        with self._asked("GET", path, query, ANSWER_SECONDS) as answer:
            while True:
                try:
                    piece = answer.read1(PIECE_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise self._unreachable("GET", path, error) from error
                if not piece:
                    return
                yield piece

    def containers(self, project: str, prefix: str = "", query: Mapping[str, str] | None = None) -> Answer:
        """Those of a Compose project; `query` may narrow it further."""
        wanted = dict(query or {"all": "1"})
        filters = json.loads(wanted.get("filters") or "{}")
        filters["label"] = [*filters.get("label", ()), f"com.docker.compose.project={project}"]
        return self.ask("GET", f"{prefix}/containers/json", wanted | {"filters": json.dumps(filters)})

    def inspect(self, container: str, prefix: str = "") -> dict[str, Any] | None:
        """None where there is no such container. Raises Unreachable."""
        answer = self.ask("GET", f"{prefix}/containers/{container}/json")
        if answer.status == 404:
            return None
        if not answer.is_good:
            raise Unreachable(f"inspect container {container}: the Engine answers {answer.status}")
        found: dict[str, Any] = answer.json()
        return found

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, query: Mapping[str, str], seconds: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self._path, seconds)
        try:
            try:
                connection.request(method, f"{path}?{urlencode(query)}" if query else path)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(method, path, error) from error
            yield answer
        finally:
            connection.close()

    def _unreachable(self, method: str, path: str, error: Exception) -> Unreachable:
        return Unreachable(
            f"ask the Docker Engine at {self._path}: {method} {path}: {error or type(error).__name__}",
            "Does it run, and is its socket mounted into the guard?",
        )
