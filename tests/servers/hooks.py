"""An HTTP server that answers as Slack documents for incoming webhooks, and in all the ways in which it may not.

docs.slack.dev/messaging/sending-messages-using-incoming-webhooks, docs.slack.dev/apis/web-api/rate-limits
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/services/T0/B0/verysecretwebhook"
MODES = {
    "ok": (200, "text/html", "ok"),
    "gone": (404, "text/html", "no_service"),
    "blocks": (400, "text/html", "invalid_blocks"),
    "busy": (429, "application/json", '{"ok":false,"error":"rate_limited"}'),
    "broken": (500, "text/html", "<!DOCTYPE html><html>something is wrong</html>"),
    "portal": (200, "text/html", "<html>log in to the wifi</html>"),
}


class Hooks:
    """`mode`: one of MODES, or hang. Takes pings (GET) too."""

    def __init__(self, context=None):
        self.mode, self.retry_after = "ok", "30"
        self.taken, self.refused, self.pings = [], 0, 0
        hooks = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                hooks._answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self):
                hooks._answer(self, None)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}{PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request, content):
        if self.mode == "hang":
            time.sleep(30)
            return
        status, kind, body = MODES[self.mode]
        if self.mode == "ok" and content is None:
            self.pings += 1
        elif self.mode == "ok":
            self.taken.append(content)
        else:
            self.refused += 1
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if self.mode == "busy":
            request.send_header("Retry-After", self.retry_after)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body.encode())

    def titles(self):
        return [one["blocks"][0]["text"]["text"] for one in self.taken]

    def text(self, number=-1):
        return "\n".join(block["text"]["text"] for block in self.taken[number]["blocks"])
