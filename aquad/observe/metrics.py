"""The metrics that Prometheus reads. Gauges come from the Overview, so that a restart changes nothing; ages are those of the scrape.

Names and labels: interface.md 3. No label is called job or instance: Prometheus has these itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from aquad.observe.overview import ComponentView, Overview
    from aquad.observe.state import State

OUTCOMES = ("success", "warning", "failed", "aborted", "interrupted", "skipped", "missed")
SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800)
SERVICES = ("postgres", "elasticsearch", "configs")
"""What the stack's own rules call a service; all volumes together are one more."""


class Counters:
    """What has happened since the daemon began: it is fed with the journal's lines, each once."""

    def __init__(self, registry: CollectorRegistry, jobs: Collection[str], channels: Collection[str]) -> None:
        self._line = 0
        self._runs = Counter(
            "aquad_runs", "Runs, and slots that were not run, by how they ended.", ["run", "outcome"], registry=registry
        )
        self._missed = Counter(
            "aquad_run_missed", "Slots of the schedule that were missed.", ["run"], registry=registry
        )
        self._seconds = Histogram(
            "aquad_run_duration_seconds", "How long runs took.", ["run"], buckets=SECONDS, registry=registry
        )
        self._messages = Counter(
            "aquad_notifications", "Messages, by what became of them.", ["channel", "outcome"], registry=registry
        )
        for job in jobs:
            self._missed.labels(job)
            self._seconds.labels(job)
            for outcome in OUTCOMES:
                self._runs.labels(job, outcome)
        for channel in channels:
            for outcome in ("delivered", "failed"):
                self._messages.labels(channel, outcome)
        self._jobs = frozenset(jobs)

    def add(self, entry: Mapping[str, Any], *, since: int) -> None:
        """A line of the journal, if it is a new one, and after that in which the daemon began."""
        line = entry["line"]
        if line <= max(self._line, since) or entry.get("job") not in self._jobs:
            return
        self._line = line
        job, outcome = str(entry["job"]), str(entry.get("outcome"))
        match entry["event"]:
            case "run_ended":
                self._runs.labels(job, outcome).inc()
                milliseconds = entry.get("milliseconds")
                if isinstance(milliseconds, int):
                    self._seconds.labels(job).observe(milliseconds / 1000)
            case "slot_ended" if outcome in {"missed", "skipped"}:
                count = entry.get("count", 1)
                self._runs.labels(job, outcome).inc(count)
                if outcome == "missed":
                    self._missed.labels(job).inc(count)

    def told(self, channel: str, outcome: str) -> None:
        self._messages.labels(channel, outcome).inc()


class Gauges(Collector):
    """`state` is asked at each scrape, and never does any work."""

    def __init__(self, state: Callable[[], State], now: Callable[[], datetime], version: str) -> None:
        self._state = state
        self._now = now
        self._version = version

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield from _of_daemon(state, self._version)
        if state.seen is not None:
            seen, now = state.seen.overview, self._now()
            yield from _of_components(seen.components, now)
            yield from _of_sizes(seen.components)
            yield from _as_the_stack_names_them(seen.components)
            yield from _of_verification(seen)
            yield from _of_repository(seen, now)

    def describe(self) -> list[Metric]:
        """Nothing is asked at registration: there may be no repository yet."""
        return []


Samples = Iterable[tuple[tuple[str, ...], float | None]]


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    """Samples of None are left out: absent is not zero."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _of_daemon(state: State, version: str) -> Iterator[Metric]:
    yield _gauge("aquad_build_info", "Which aquad this is.", ("version",), [((version,), 1)])
    yield _gauge(
        "aquad_scheduler_heartbeat_timestamp_seconds",
        "When the loop that keeps the schedule last looked around.",
        (),
        [((), state.heartbeat_at.timestamp())],
    )
    yield _gauge(
        "aquad_settings_valid",
        "0: the settings on the disk are bad, and old ones are used.",
        (),
        [((), state.settings_valid)],
    )
    yield _gauge(
        "aquad_schedule_held",
        "1: no run of the schedule begins.",
        (),
        [((), bool(state.seen and state.seen.overview.held))],
    )
    yield _gauge("aquad_notifications_waiting", "Messages that no channel has taken yet.", (), [((), state.waiting)])
    yield _gauge(
        "aquad_run_active",
        "1: it runs now, as a child of the daemon.",
        ("run",),
        [((job,), job == state.running) for job in state.jobs],
    )
    yield _gauge(
        "aquad_run_progress_ratio",
        "How much of its present step is done; absent where that is not known.",
        ("run",),
        [((state.running,), state.done_ratio)] if state.running else [],
    )
    yield _gauge(
        "aquad_run_next_timestamp_seconds",
        "When it is due next; absent where it is switched off.",
        ("run",),
        [((job,), at.timestamp()) for job, at in dict(reversed(state.coming)).items()],
    )


def _of_components(views: Sequence[ComponentView], now: datetime) -> Iterator[Metric]:
    component = ("component",)

    def of(name: str, text: str, value: Callable[[ComponentView], float | None]) -> Metric:
        return _gauge(name, text, component, [((view.name,), value(view)) for view in views])

    def age(view: ComponentView) -> float | None:
        return None if view.recovery_point_at is None else (now - view.recovery_point_at).total_seconds()

    yield of(
        "aquad_backup_last_success_timestamp_seconds",
        "When the newest good backup was begun; absent until the first.",
        _taken,
    )
    yield of("aquad_backup_age_seconds", "How old the newest good backup is.", age)
    yield of("aquad_recovery_point_age_seconds", "What would be lost if it broke now.", age)
    yield of("aquad_backup_success", "Whether the last attempt was a success; a warning is one.", _succeeded)
    yield of(
        "aquad_backup_duration_seconds", "What the newest good backup took.", lambda view: _divided(view.milliseconds)
    )
    yield of(
        "aquad_size_anomaly",
        "1: size, duration or rows are unlike before, and nobody has accepted that.",
        lambda view: view.unusual,
    )
    yield of(
        "aquad_size_anomaly_score",
        "How far away its size is, in usual deviations; absent where it is as usual.",
        lambda view: view.unusual_score,
    )
    yield of(
        "aquad_restore_seconds",
        "What its last restore took; absent when it was never restored.",
        lambda view: _divided(view.restore_milliseconds),
    )


def _of_sizes(views: Sequence[ComponentView]) -> Iterator[Metric]:
    yield _gauge(
        "aquad_backup_size_bytes",
        "Size of the newest good backup: what it holds, and what it takes.",
        ("component", "form"),
        [
            ((view.name, form), size)
            for view in views
            if view.backup
            for form, size in (("plain", view.plain_bytes), ("stored", view.stored_bytes))
        ],
    )
    yield _gauge(
        "aquad_objective_seconds",
        "How old the newest good backup may be (rpo).",
        ("objective", "component"),
        [(("rpo", view.name), view.objective_seconds) for view in views],
    )


def _as_the_stack_names_them(views: Sequence[ComponentView]) -> Iterator[Metric]:
    """The names and the label that AquaStream's own rules read. All volumes are one service: as good as the worst of them."""
    services: dict[str, list[ComponentView]] = {}
    for view in views:
        services.setdefault(view.name if view.name in SERVICES else "volumes", []).append(view)
    yield _gauge(
        "backup_last_success_timestamp",
        "When the newest good backup of a service was begun.",
        ("service",),
        [((name,), _least(_taken(view) for view in of)) for name, of in services.items()],
    )
    yield _gauge(
        "backup_success",
        "Whether the last attempt at a service was a success.",
        ("service",),
        [((name,), _least(_succeeded(view) for view in of)) for name, of in services.items()],
    )


def _of_verification(seen: Overview) -> Iterator[Metric]:
    yield _gauge(
        "aquad_verify_last_success_timestamp_seconds",
        "When a verification of this level last found a backup good.",
        ("level",),
        [((one.level,), one.good_at.timestamp() if one.good_at else None) for one in seen.levels],
    )
    yield _gauge(
        "aquad_verify_success",
        "0: a backup that is there was found damaged by a verification of this level.",
        ("level",),
        [((one.level,), one.good) for one in seen.levels],
    )


def _of_repository(seen: Overview, now: datetime) -> Iterator[Metric]:
    full = seen.disk_full_at
    yield _gauge("aquad_repository_bytes", "What the backups take.", (), [((), seen.stored_bytes)])
    yield _gauge("aquad_repository_filesystem_size_bytes", "Size of their file system.", (), [((), seen.disk_bytes)])
    yield _gauge("aquad_repository_free_bytes", "What is free there.", (), [((), seen.free_bytes)])
    yield _gauge(
        "aquad_repository_full_forecast_seconds",
        "In how long it is full, at this pace; absent where that is not in sight.",
        (),
        [((), (full - now).total_seconds() if full else None)],
    )
    yield _gauge(
        "aquad_backups_retained",
        "Backups that are there.",
        ("kind",),
        [((kind,), count) for kind, count in seen.retained.items()],
    )


def _taken(view: ComponentView) -> float | None:
    return view.recovery_point_at.timestamp() if view.recovery_point_at else None


def _succeeded(view: ComponentView) -> float | None:
    return None if view.last_attempt == "never" else float(view.last_attempt in {"success", "warning"})


def _divided(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _least(values: Iterable[float | None]) -> float | None:
    """None when any is missing: what was never backed up has no time of its last success."""
    found = list(values)
    return None if None in found else min(value for value in found if value is not None)


def exposition(registry: CollectorRegistry) -> bytes:
    return generate_latest(registry)
