"""What the daemon knows of itself and of the repository at one moment. The web server reads it, and nothing else of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from aquad.observe.overview import Overview


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is in the repository. Both calls are for the web server's thread: all that they read stays as it is."""

    overview: Overview
    listing: Callable[[], Mapping[str, Any]]
    """As `list --json`."""
    backup: Callable[[str], Mapping[str, Any]]
    """As `show --json`. Raises AquadError."""


@dataclass(frozen=True, kw_only=True)
class State:
    jobs: Sequence[str]
    """Those of the schedule, switched off or not."""
    heartbeat_at: datetime
    """When the loop last looked around; below, by the monotonic clock, which no time server sets."""
    beat_monotonic: float
    coming: Sequence[tuple[str, datetime]]
    """The next runs; of each job that is switched on at least one."""
    seen: Seen | None = None
    """None: there is no repository."""
    trouble: str = ""
    """Why the schedule cannot be kept right now."""
    settings_valid: bool = True
    running: str = ""
    """The job that runs as our child."""
    done_ratio: float | None = None
    waiting: int = 0
    """Messages that no channel has taken yet."""
