"""Who is told of alerts, and what must not be told to anybody."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from aquad.observe.channels import Apprise, Channel, Email, Ping, Slack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aquad.settings import Settings
    from aquad.settings.model import Alerts

SECRET_CHARACTERS = 4
"""A shorter one is a part of too many words."""


def channels(alerts: Alerts) -> Iterator[Channel]:
    slack, email, sms, ping = alerts.slack, alerts.email, alerts.sms, alerts.ping
    if slack.webhook_url_file is not None:
        yield Slack(slack.levels, slack.webhook_url_file)
    if email.host:
        yield Email(
            levels=email.levels,
            host=email.host,
            port=email.port,
            tls=email.tls,
            user=email.user,
            password_file=email.password_file,
            sender=email.sender,
            recipients=email.to,
            ca_file=email.ca_file,
        )
    if sms.url_file is not None:
        yield Apprise(sms.levels, sms.url_file)
    if ping.url_file is not None:
        yield Ping(ping.url_file)


def secrets(settings: Settings) -> set[str]:
    """What stands in the first lines of the files that the settings name and that can be read."""
    alerts = settings.alerts
    files = [
        settings.encryption.passphrase_file,
        *settings.encryption.old_passphrase_files,
        settings.postgres.password_file,
        alerts.slack.webhook_url_file,
        alerts.email.password_file,
        alerts.sms.url_file,
        alerts.ping.url_file,
    ]
    words = set()
    for path in filter(None, files):
        with suppress(OSError):  # harmless because what cannot be read cannot have come into a message
            words.add(path.read_bytes().split(b"\n", 1)[0].decode(errors="replace").strip())
    return {word for word in words if len(word) >= SECRET_CHARACTERS}
