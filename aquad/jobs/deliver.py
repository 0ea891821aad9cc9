"""Messages go out: each channel by itself, its own messages in order, and the rest of them later when one was refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from aquad.observe.channels import DeliveryFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aquad.observe.channels import Channel
    from aquad.observe.messages import Text


class Parcel(NamedTuple):
    """`number`: by which the sender knows it again."""

    number: int
    channel: str
    text: Text


class Receipt(NamedTuple):
    """`error`: why it was refused; empty when it was taken. `note`: what has to be said of it all the same."""

    number: int
    channel: str
    error: str
    note: str
    retry_after_seconds: int


def deliver(parcels: Sequence[Parcel], channels: Mapping[str, Channel], report: Callable[[Receipt], None]) -> None:
    """`report` is called in threads, once for each parcel that was tried."""
    of_channel: dict[str, list[Parcel]] = {}
    for parcel in parcels:
        of_channel.setdefault(parcel.channel, []).append(parcel)

    def send(name: str) -> None:
        for parcel in of_channel[name]:
            receipt = _sent(parcel, channels.get(name))
            report(receipt)
            if receipt.error:
                return

    with ThreadPoolExecutor(max(1, len(of_channel))) as threads:
        list(threads.map(send, of_channel))


def _sent(parcel: Parcel, channel: Channel | None) -> Receipt:
    if channel is None:
        return Receipt(parcel.number, parcel.channel, "it is switched off", "", 0)
    try:
        return Receipt(parcel.number, parcel.channel, "", channel.send(parcel.text), 0)
    except DeliveryFailed as error:
        return Receipt(parcel.number, parcel.channel, str(error), "", error.retry_after_seconds)
