"""How much space the schedule will need. An estimate before the first backup; it says what it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPRESSED = 0.4
"""Share of the plain size that is left of typical databases and volumes after gzip; measured values replace it after a run."""


class Kept(NamedTuple):
    """How many backups of each kind there are at the peak, just before the monthly cleanup."""

    daily: int
    incremental: int
    weekly: int
    trash: int


class Forecast(NamedTuple):
    peak_bytes: int
    explanation: str


def forecast(plain_bytes: Mapping[str, int], kept: Kept) -> Forecast:
    """`plain_bytes`: what each component holds today."""
    full = int(sum(plain_bytes.values()) * COMPRESSED)
    dump = int(plain_bytes.get("postgres", 0) * COMPRESSED)
    peak = full * (kept.daily + kept.weekly + kept.trash) + dump * kept.incremental
    return Forecast(
        peak,
        f"{kept.daily} dailies, {kept.weekly} weeklies, {kept.trash} in the trash, {kept.incremental} dumps of PostgreSQL, "
        f"today's data at {COMPRESSED:.0%} of its size",
    )
