"""A real mail server (aiosmtpd) with STARTTLS or TLS and a login, that can also be told to misbehave."""

import asyncio
import email
import email.policy
import ssl
import threading

import trustme
from aiosmtpd.smtp import SMTP, AuthResult

from tests.servers.ports import free_port


class Certificates:
    """An authority of our own, and what it signed."""

    def __init__(self, directory):
        self.authority = trustme.CA()
        self.file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.file))

    def context(self, *names, **more):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names, **more).configure_cert(context)
        return context


class Mail:
    """`answer`: "" takes every message; a reply such as "451 later"; "hang" never answers to the end of a message.

    `tls`: starttls, tls, off. `login`: (user, password), or None where none is asked for.
    """

    def __init__(self, context=None, tls="starttls", login=("aquad", "mail secret")):
        self.answer = ""
        self.port = free_port()
        self.messages = []
        self._tls, self._login, self._context = tls, login, context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        over = self._context if self._tls == "tls" else None
        made = self._loop.create_server(self._session, "127.0.0.1", self.port, ssl=over)
        self._server = asyncio.run_coroutine_threadsafe(made, self._loop).result(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._closed(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _closed(self):
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _session(self):
        options = {"loop": self._loop, "hostname": "mail.test", "timeout": 30}
        if self._login:
            options |= {"authenticator": self._authenticate, "auth_required": True}
            options |= {"auth_require_tls": self._tls == "starttls"}
        if self._tls == "starttls":
            options |= {"tls_context": self._context, "require_starttls": True}
        return SMTP(self, **options)

    def _authenticate(self, _server, _session, _envelope, _mechanism, data):
        good = (data.login.decode(), data.password.decode()) == self._login
        return AuthResult(success=good, handled=False)

    async def handle_DATA(self, _server, _session, envelope):
        if self.answer == "hang":
            await asyncio.sleep(3600)
        if self.answer:
            return self.answer
        self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 taken"

    def texts(self):
        """Subject and plain text of each message."""
        return [(str(one["Subject"]), one.get_body(("plain",)).get_content()) for one in self.messages]
