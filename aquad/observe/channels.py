"""How a message reaches somebody: Slack, email, and by Apprise a telephone. Each says what went wrong, or that it was taken."""

from __future__ import annotations

import http.client
import smtplib
import ssl
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from aquad.core.errors import AquadError
from aquad.core.escape import escaped
from aquad.core.secret import first_line
from aquad.observe.messages import as_html, blocks, plain, short

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from aquad.observe.messages import Text

ANSWER_SECONDS = 10.0
ERROR_CHARACTERS = 200


class DeliveryFailed(AquadError):
    """`retry_after_seconds`: what the other side asked for; 0: nothing."""

    def __init__(self, message: str, hint: str = "", retry_after_seconds: int = 0) -> None:
        super().__init__(message, hint)
        self.retry_after_seconds = retry_after_seconds


class Channel(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> Collection[str]: ...

    def send(self, text: Text) -> str:
        """Return what has to be said of it all the same, or nothing. Raises DeliveryFailed."""

    def check(self) -> str:
        """Say what can be seen without sending anything. Raises DeliveryFailed."""


class Slack(NamedTuple):
    """An incoming webhook: docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""

    levels: Collection[str]
    url_file: Path
    name: str = "slack"

    def send(self, text: Text) -> str:
        from slack_sdk.webhook import WebhookClient

        url = self._url()
        fallback = text.title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        try:
            client = WebhookClient(
                url, timeout=int(ANSWER_SECONDS), ssl=ssl.create_default_context(), retry_handlers=[]
            )
            answer = client.send(text=fallback, blocks=blocks(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeliveryFailed(
                f"send to Slack: {_why(error)}", "Look at the network and webhook_url_file."
            ) from error
        if answer.status_code == 200 and answer.body.strip() == "ok":
            return ""
        said = escaped(answer.body.strip()[:ERROR_CHARACTERS])
        after = {key.lower(): value for key, value in answer.headers.items()}.get("retry-after", "")
        raise DeliveryFailed(
            f"send to Slack: it answers {answer.status_code}, {said!r}",
            "Slack's own answer is 200 and ok; no_service and invalid_token mean that the webhook is gone: make a new one.",
            int(after) if after.isdigit() else 0,
        )

    def check(self) -> str:
        self._url()
        return "its address is there; only `aquad alerts test slack` shows whether Slack takes it"

    def _url(self) -> str:
        return _web_address(first_line(self.url_file, "webhook", DeliveryFailed), "send to Slack")


class Email(NamedTuple):
    levels: Collection[str]
    host: str
    port: int
    tls: Literal["starttls", "tls", "off"]
    user: str
    password_file: Path | None
    sender: str
    recipients: Sequence[str]
    ca_file: Path | None
    name: str = "email"

    def send(self, text: Text) -> str:
        with self._answering(), self._connected() as server:
            self._log_in(server)
            refused = server.send_message(self._message(text))
        return f"mail was refused for {', '.join(map(escaped, refused))}" if refused else ""

    def _message(self, text: Text) -> EmailMessage:
        message = EmailMessage()
        message["Subject"], message["From"], message["To"] = text.title, self.sender, ", ".join(self.recipients)
        message["Date"], message["Message-ID"] = formatdate(localtime=True), make_msgid(domain="aquad.invalid")
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation replies
        message.set_content(plain(text))
        message.add_alternative(as_html(text), subtype="html")
        return message

    @contextmanager
    def _answering(self) -> Iterator[None]:
        where = f"send mail by {self.host}:{self.port}"
        try:
            yield
        except smtplib.SMTPResponseException as error:
            said = (
                error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
            )
            raise DeliveryFailed(f"{where}: it answers {error.smtp_code} {escaped(said[:ERROR_CHARACTERS])}") from error
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise DeliveryFailed(
                f"{where}: {_why(error)}", "Look at the network, port and tls of [alerts.email]."
            ) from error

    def check(self) -> str:
        with self._answering(), self._connected() as server:
            self._log_in(server)
        return f"{self.host}:{self.port} answers" + (
            f" and takes the login of {escaped(self.user)}" if self.user else ""
        )

    def _log_in(self, server: smtplib.SMTP) -> None:
        if self.user and self.password_file is not None:
            server.login(self.user, first_line(self.password_file, "password", DeliveryFailed).decode(errors="replace"))

    def _connected(self) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.tls == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=ANSWER_SECONDS, context=context)
        with ExitStack() as closing:
            server = smtplib.SMTP(self.host, self.port, timeout=ANSWER_SECONDS)
            closing.callback(server.close)
            if self.tls == "starttls":
                server.starttls(context=context)
            closing.pop_all()
        return server


class Apprise(NamedTuple):
    """SMS and a hundred others, by one URL: github.com/caronc/apprise"""

    levels: Collection[str]
    url_file: Path
    name: str = "sms"

    def send(self, text: Text) -> str:
        service = self._service()
        import apprise

        with apprise.LogCapture(level=30) as said:  # type: ignore[no-untyped-call] # - apprise has types, but not here
            if not service.notify(body=short(text)):
                lines = said.getvalue().strip().splitlines()
                raise DeliveryFailed(
                    f"send by Apprise: {escaped(lines[-1][:ERROR_CHARACTERS]) if lines else 'it failed'}"
                )
        return ""

    def check(self) -> str:
        self._service()
        return "its URL is one that Apprise knows; only `aquad alerts test sms` shows whether it is taken"

    def _service(self) -> Any:
        try:
            import apprise
        except ImportError as error:
            raise DeliveryFailed("send by Apprise: it is not installed", "pip install 'aquad[sms]'") from error
        service = apprise.Apprise()
        if not service.add(first_line(self.url_file, "Apprise URL", DeliveryFailed).decode(errors="replace")):
            raise DeliveryFailed("send by Apprise: url_file holds no URL that it knows")
        return service


class Ping(NamedTuple):
    """A dead man's switch: it hears that a backup was taken and verified, and calls a person when it has not heard it."""

    url_file: Path
    levels: Collection[str] = ()
    name: str = "ping"

    def send(self, _: Text) -> str:
        url = self._url()
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - _web_address
                answer.read(1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeliveryFailed(
                f"ping: {_why(error)}", "Look at the network and url_file of [alerts.ping]."
            ) from error
        return ""

    def check(self) -> str:
        self._url()
        return "its address is there"

    def _url(self) -> str:
        return _web_address(first_line(self.url_file, "URL", DeliveryFailed), "ping")


def _web_address(stored: bytes, what: str) -> str:
    url = stored.decode(errors="replace")
    if not url.startswith(("https://", "http://")):
        raise DeliveryFailed(f"{what}: its file holds no https:// or http:// address")
    return url


def _why(error: Exception) -> str:
    """Without the address: it is a secret."""
    reason = error
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"it answers {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        reason = error.reason
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {reason.verify_message}"
    if isinstance(reason, TimeoutError) or isinstance(reason.__context__, TimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return escaped(f"{type(reason).__name__}: {str(reason)[:ERROR_CHARACTERS]}")
