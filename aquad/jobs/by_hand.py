"""A run that somebody starts by hand where no daemon is: it tells itself what there is to tell, before it ends."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from aquad.core.clock import to_text
from aquad.core.errors import LockHeld, RepositoryWriteFailed
from aquad.jobs.deliver import Parcel, deliver
from aquad.jobs.notify import Outbox
from aquad.observe.messages import Text, cleaned, written
from aquad.repository import lock

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import tzinfo

    from aquad.jobs.deliver import Receipt
    from aquad.observe.channels import Channel
    from aquad.observe.overview import Overview
    from aquad.repository.repository import Repository

PING = "ping"


class Teller:
    def __init__(
        self,
        repository: Repository,
        seen: Overview,
        channels: Mapping[str, Channel],
        secrets: Collection[str],
        zone: tzinfo,
    ) -> None:
        self._repository, self._seen, self._zone = repository, seen, zone
        self._channels, self._secrets = channels, secrets
        self._outbox = Outbox()

    @property
    def unwritten(self) -> str:
        """Why alerts do not stand in the journal; empty when they do."""
        return self._outbox.error

    def failed(self, job: str, why: str) -> None:
        """A run of which not even that could be written down."""
        self._outbox.alert(self._repository, self._seen.now, "run_failed", "critical", why, job=job)

    def tell(self, *, ping: bool) -> list[Receipt]:
        """`ping`: a backup was taken and verified."""
        layout, now = self._repository.layout, self._seen.now
        if lock.holder(layout.daemon_lock):
            return []
        holder = {"command": "alerts of a run by hand", "pid": str(os.getpid()), "since": to_text(now)}
        with ExitStack() as holding:
            try:
                holding.enter_context(lock.exclusive(layout.notify_lock, holder=holder))
            except LockHeld:  # another run tells the same right now
                return []
            except RepositoryWriteFailed:  # harmless because nobody else can lock it either, and it must be told
                pass
            return self._tell(ping=ping)

    def _tell(self, *, ping: bool) -> list[Receipt]:
        self._outbox.note_conditions(self._repository, self._seen)
        receipts = self._send(self._channels)
        failing = {one.channel: one.error for one in receipts if one.error}
        for channel, why in failing.items():
            self._outbox.alert(self._repository, self._seen.now, "channel_fails", "warning", why, component=channel)
        if failing:
            receipts += self._send({name: one for name, one in self._channels.items() if name not in failing})
        if ping and PING in self._channels and not self._seen.stale:
            deliver([Parcel(0, PING, Text("", "", []))], self._channels, receipts.append)
        return receipts

    def _send(self, channels: Mapping[str, Channel]) -> list[Receipt]:
        now = self._seen.now
        notices = self._outbox.notices(self._repository, now)
        outgoing = notices.plan({name: channel.levels for name, channel in channels.items()}, now).outgoing
        parcels = [
            Parcel(number, one.channel, cleaned(written(one.message, self._seen, self._zone), self._secrets))
            for number, one in enumerate(outgoing)
        ]
        receipts: list[Receipt] = []
        deliver(parcels, channels, receipts.append)
        for receipt in receipts:
            if not receipt.error:
                self._outbox.note_told(self._repository, now, outgoing[receipt.number])
                if notices.is_open("channel_fails", receipt.channel):
                    self._outbox.over(
                        self._repository, now, "channel_fails", "a message was taken", component=receipt.channel
                    )
        return receipts
