"""What the outside sees of the daemon: its State, made anew after each look, and the web server that shows it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, disable_created_metrics

from aquad import __version__
from aquad.core.errors import AquadError
from aquad.daemon.server import Server
from aquad.jobs.listing import listed, shown
from aquad.jobs.slots import ORDER
from aquad.observe.metrics import Counters, Gauges
from aquad.observe.state import Seen, State
from aquad.observe.web import Web

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from aquad.daemon.keeper import Keeper
    from aquad.jobs.overview import Picture
    from aquad.repository.repository import Repository
    from aquad.wiring import Wiring

NEXT = 20
REFRESH_SECONDS = 300.0
"""What no line of the journal tells: how full the disk is, and what somebody does to manifests."""


class Outside:
    """Raises AquadError when somebody else listens where it should."""

    def __init__(self, wiring: Wiring) -> None:
        self._clock = wiring.clock
        disable_created_metrics()  # type: ignore[no-untyped-call] # - prometheus_client has types, but not here
        registry = CollectorRegistry()
        self.counters = Counters(registry, ORDER, wiring.alert_levels())
        self.picture: Picture | None = None
        """None: there is no repository, or it cannot be read."""
        self._stamp: tuple[int, ...] = ()
        self._looked_at = -REFRESH_SECONDS
        self._coming: Sequence[tuple[str, datetime]] = ()
        self._wiring = wiring
        self._state = self._made(wiring, None, {})
        registry.register(Gauges(lambda: self._state, wiring.clock.now, __version__))
        listen = wiring.settings.web.listen
        self.server = None
        if listen != "off":
            self.server = Server(Web(lambda: self._state, registry, wiring.clock).app(), listen)
            self.server.start()

    def look(self, wiring: Wiring, keeper: Keeper | None, of_daemon: Mapping[str, Any]) -> None:
        """Look again, where there may be something new. `of_daemon`: fields of State that the daemon alone knows."""
        try:
            self._look(wiring, keeper)
        except (AquadError, OSError):  # harmless because the daemon's next tick meets it too, and says so
            self.picture, self._stamp = None, ()
        self._state = self._made(wiring, keeper, of_daemon)

    def _look(self, wiring: Wiring, keeper: Keeper | None) -> None:
        if keeper is None:
            self.picture = None
            return
        repository = keeper.repository
        stamp = repository.journal.stamp()
        news = not stamp or stamp != self._stamp
        if news:
            for entry in repository.journal.entries():
                self.counters.add(entry, since=keeper.began.lines)
        if news or self._clock.monotonic() - self._looked_at >= REFRESH_SECONDS:
            self.picture = wiring.picture(repository, self._clock.now())
            self._looked_at, self._stamp = self._clock.monotonic(), stamp

    def _made(self, wiring: Wiring, keeper: Keeper | None, of_daemon: Mapping[str, Any]) -> State:
        running = keeper.running if keeper else None
        total = running.reports.total_bytes if running else None
        now = self._clock.now()
        return State(
            jobs=ORDER,
            heartbeat_at=now,
            beat_monotonic=self._clock.monotonic(),
            coming=self._next(wiring, now),
            seen=_seen(keeper.repository, self.picture) if keeper and self.picture else None,
            running=running.turn.slot.job if running else "",
            done_ratio=min(1.0, running.reports.done_bytes / total) if running and total else None,
            **of_daemon,
        )

    def _next(self, wiring: Wiring, now: datetime) -> Sequence[tuple[str, datetime]]:
        if wiring is not self._wiring or not self._coming or self._coming[0][1] <= now:
            firsts = [(job, rule.after(now)) for job, rule in wiring.rules().items()]
            self._coming = sorted({*wiring.coming(now, NEXT), *firsts}, key=lambda run: run[1])
            self._wiring = wiring
        return self._coming


def _seen(repository: Repository, picture: Picture) -> Seen:
    catalog, verdicts = picture.catalog, picture.verdicts

    def backup(name: str) -> Mapping[str, Any]:
        found = catalog.find(name).id
        return shown(repository.manifests.one(found), verdicts.get(found))

    return Seen(
        overview=picture.overview, listing=partial(listed, catalog.backups, catalog.unreadable, verdicts), backup=backup
    )
