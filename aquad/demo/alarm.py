"""What somebody hears when a backup fails, and what Prometheus sees: a receiver that stands for Slack, and a real daemon."""

from __future__ import annotations

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from aquad.core.errors import ChildFailed
from aquad.demo import interruption

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = ("aquad_backup_success", "aquad_backup_age_seconds", "aquad_backup_size_bytes", "aquad_repository_bytes")
PATIENCE_SECONDS = 20.0


class Receiver:
    """Takes messages on loopback as Slack's webhooks do, and keeps their words."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                messages.append("\n".join(block["text"]["text"] for block in content["blocks"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def settings(self, secret: Path) -> str:
        secret.touch(0o600)
        secret.write_text(self.url)
        return f"[alerts.slack]\nwebhook_url_file = {json.dumps(str(secret))}\n"


def metrics(port: int) -> list[str]:
    """What the daemon there says of its backups. Raises ChildFailed when it does not."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        lines = [line for line in _scraped(port).splitlines() if line.startswith(SHOWN)]
        if lines:
            return lines
        with interruption.allowed():
            time.sleep(0.1)
    raise ChildFailed(f"look at http://127.0.0.1:{port}/metrics: it says nothing of backups")


def _scraped(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except OSError:
        return ""  # harmless because the daemon may just be beginning, and is asked again
    finally:
        connection.close()
