"""Settings become objects. Rooms are imported where they are built, so that a command loads only what it uses."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aquad.core.clock import SystemClock
from aquad.core.errors import InvalidUse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, tzinfo
    from pathlib import Path

    from aquad.core.clock import Clock
    from aquad.jobs.forecast import Kept
    from aquad.jobs.full import Space
    from aquad.jobs.overview import Picture
    from aquad.jobs.prune import Rules as Pruning
    from aquad.jobs.run import Limits
    from aquad.jobs.schedule import Rule
    from aquad.jobs.slots import Policy
    from aquad.jobs.work import Jobs
    from aquad.observe.channels import Channel
    from aquad.repository.repository import Repository
    from aquad.repository.retention import Kind
    from aquad.settings import Loaded, Settings
    from aquad.sources.configs.source import Configs
    from aquad.sources.postgres.dump import Postgres
    from aquad.sources.postgres.server import Login
    from aquad.sources.volumes import Volume
    from aquad.stream.artifact import Source
    from aquad.stream.gpg.gpg import Gpg, Mode


class Wiring:
    """The objects that the settings of one invocation describe."""

    def __init__(self, loaded: Loaded, by: str) -> None:
        self.settings: Settings = loaded.settings
        self.settings_text = loaded.text
        self.by = by
        """Who does it: stands in every line of the journal."""
        self.zone: tzinfo = self.settings.zone(os.environ)
        self.clock: Clock = SystemClock()
        self._gpg: Gpg | None = None

    @classmethod
    def load(cls, path: Path | None, by: str = "") -> Wiring:
        from aquad.settings import load

        return cls(load(path, os.environ), by or who(os.environ))

    def gpg(self) -> Gpg:
        """One for the whole invocation; its keys are gone when the process ends."""
        from aquad.stream.gpg.gpg import Gpg
        from aquad.stream.gpg.keys import Keys

        if self._gpg is None:
            section = self.settings.encryption
            self._gpg = Gpg(
                Keys(
                    section.passphrase_file,
                    section.old_passphrase_files,
                    section.recipients,
                    section.public_keys_file,
                    section.private_keys_file,
                )
            )
            atexit.register(self._gpg.end)
        return self._gpg

    def repository(self) -> Repository:
        from aquad.repository.repository import Repository

        return Repository.open(
            self.settings.repository.path,
            stack=self.settings.stack,
            clock=self.clock,
            zone=self.zone,
            gpg=self.gpg(),
            wanted_encryption=self.settings.encryption.mode,
            by=self.by,
        )

    def create_repository(self, encryption: Mode) -> Repository:
        from aquad.repository.repository import Repository

        return Repository.create(
            self.settings.repository.path,
            stack=self.settings.stack,
            encryption=encryption,
            clock=self.clock,
            zone=self.zone,
            gpg=self.gpg(),
            by=self.by,
        )

    def lost_with_the_host(self) -> list[str]:
        """Warnings about keys that lie in what is backed up."""
        from aquad.jobs.keys import lost_with_the_host

        section, configs = self.settings.encryption, self.settings.configs
        secret_files = [section.passphrase_file, *section.old_passphrase_files, section.private_keys_file]
        tops = [configs.root / path for path in (*configs.paths, *configs.optional_paths)]
        return lost_with_the_host(
            [path for path in secret_files if path is not None and path.exists()],
            [*tops, *(volume.path for volume in self.settings.volumes.values())],
        )

    def sources(self, chosen: Iterable[str] = (), accepted: Collection[str] = ()) -> Sequence[Source[Any]]:
        """Every source that the settings name, or the chosen ones, in the order in which they are restored.

        `accepted`: components whose last size somebody took as the new normal.
        """
        names = self.components()
        wanted = list(chosen) or names
        for name in wanted:
            if name not in names:
                raise InvalidUse(
                    f"choose component {name!r}: there is none of that name", f"There are {', '.join(names)}."
                )
        return [self.source(name, accepted) for name in names if name in wanted]

    def components(self) -> list[str]:
        return ["configs", *self.settings.volumes, "postgres"]

    def wants(self, job: str, chosen: Sequence[str] = ()) -> list[str]:
        """The components that a run of this job is to back up."""
        if job == "postgres":
            return ["postgres"]
        return (list(chosen) or self.components()) if job in {"full", "weekly"} else []

    def source(self, name: str, accepted: Collection[str] = ()) -> Source[Any]:
        if name == "configs":
            return self.configs()
        return self.postgres() if name == "postgres" else self.volume(name, accepted)

    def configs(self) -> Configs:
        from aquad.sources.configs.source import Configs

        section = self.settings.configs
        return Configs(root=section.root, paths=section.paths, optional_paths=section.optional_paths)

    def volume(self, name: str, accepted: Collection[str] = ()) -> Volume:
        from aquad.sources.volumes import Volume

        section = self.settings.volumes.get(name)
        if section is None:
            raise InvalidUse(
                f"choose volume {name!r}: the settings have none of that name",
                f"There are {', '.join(self.settings.volumes)}.",
            )
        return Volume(
            name=name,
            path=section.path,
            quiesce=section.quiesce,
            may_shrink=section.may_shrink,
            accepted=name in accepted,
            service=section.service,
        )

    def login(self) -> Login:
        from aquad.sources.postgres.server import Login

        section = self.settings.postgres
        return Login(section.host, section.port, section.user, section.password_file)

    def postgres(self) -> Postgres:
        from aquad.sources.postgres.dump import Postgres

        section = self.settings.postgres
        return Postgres(
            login=self.login(),
            databases=list(section.databases),
            bin_dir=section.bin_dir,
            data_path=section.data_path,
        )

    def rules(self) -> Mapping[str, Rule]:
        """The jobs that are not switched off."""
        return self.settings.rules(self.zone)

    def coming(self, now: datetime, count: int = 8) -> list[tuple[str, datetime]]:
        """The next runs of the schedule, the soonest first."""
        runs = []
        for job, rule in self.rules().items():
            moment = now
            for _ in range(count):
                moment = rule.after(moment)
                runs.append((job, moment))
        return sorted(runs, key=lambda run: run[1])[:count]

    def jobs(self, repository: Repository) -> Jobs:
        from aquad.jobs.full import accepted
        from aquad.jobs.work import Jobs

        return Jobs(
            repository=repository,
            sources=lambda names: self.sources(names, accepted(repository)),
            space=self.space(),
            rules=self.pruning(),
            coming=self.coming,
            zone=self.zone,
            by=self.by,
        )

    def picture(self, repository: Repository, now: datetime) -> Picture:
        """What the outside sees, with the next ten runs."""
        from aquad.jobs.overview import picture

        return picture(
            repository,
            self.components(),
            objectives=self.objectives(),
            grace_seconds=int(self.settings.objectives.grace.total_seconds()),
            now=now,
            coming=self.coming(now, 10),
        )

    def pruning(self) -> Pruning:
        from aquad.jobs.prune import Rules
        from aquad.repository.retention import Policy

        retention = self.settings.retention
        ages: dict[Kind, timedelta] = {
            "full": retention.daily,
            "incremental": retention.incremental,
            "weekly": retention.weekly,
        }
        return Rules(
            policy=Policy(ages, retention.minimum_verified, self._period()),
            required=self.components(),
            trash=retention.trash,
            log_age=retention.logs.age,
            log_bytes=retention.logs.size,
        )

    def _period(self) -> timedelta:
        """Between two full backups, at the most: a day where they are taken by hand. A weekly archive begins with one too."""
        rule = self.rules().get("full") or self.rules().get("weekly")
        if rule is None:
            return timedelta(days=1)
        slots = [self.clock.now()]
        for _ in range(8):
            slots.append(rule.after(slots[-1]))
        return max(later - earlier for earlier, later in pairwise(slots[1:]))

    def slot_policy(self) -> Policy:
        from aquad.jobs.slots import Policy

        limits = self.settings.limits
        return Policy(self.settings.schedule.catch_up, limits.retries, limits.retry_delay)

    def alert_levels(self) -> dict[str, Sequence[str]]:
        """Those that are switched on, with the levels that each is for; cheap, as the daemon needs it."""
        alerts = self.settings.alerts
        switches: dict[str, tuple[object, Sequence[str]]] = {
            "slack": (alerts.slack.webhook_url_file, alerts.slack.levels),
            "email": (alerts.email.host, alerts.email.levels),
            "sms": (alerts.sms.url_file, alerts.sms.levels),
            "ping": (alerts.ping.url_file, ()),
        }
        return {name: levels for name, (is_on, levels) in switches.items() if is_on}

    def channels(self) -> dict[str, Channel]:
        """Those that are switched on; their secrets are read when something is sent."""
        from aquad.wiring.alerts import channels

        return {channel.name: channel for channel in channels(self.settings.alerts)}

    def secrets(self) -> set[str]:
        """Words that no message may hold."""
        from aquad.wiring.alerts import secrets

        return secrets(self.settings)

    def stop_seconds(self) -> float:
        return self.settings.limits.stop.total_seconds()

    def settings_values(self) -> Mapping[str, Any]:
        """Every setting by its dotted key, as the journal keeps them. Secrets are files, and none of them."""
        return dict(_flat(self.settings.model_dump(mode="json")))

    def limits(self, job: str, wait_seconds: float = 0.0) -> Limits:
        from aquad.jobs.run import Limits

        limits = self.settings.limits
        deadline = limits.deadline.get(job)
        return Limits(
            None if deadline is None else deadline.total_seconds(), limits.stall.total_seconds(), wait_seconds
        )

    def space(self) -> Space:
        from aquad.jobs.full import Space

        free = self.settings.repository.minimum_free
        live = {name: volume.path for name, volume in self.settings.volumes.items()}
        if self.settings.postgres.data_path is not None:
            live["postgres"] = self.settings.postgres.data_path
        return Space(minimum_free_percent=free.percent, minimum_free_bytes=free.size_bytes, live=live)

    def objectives(self) -> Mapping[str, int]:
        """Seconds that the newest good backup of a component may be old; volumes are as old as a full backup may be."""
        rpo = {name: int(age.total_seconds()) for name, age in self.settings.objectives.rpo.items()}
        day = rpo.get("configs", 86400)
        return {name: rpo.get(name, day) for name in self.components()}

    def kept_at_peak(self) -> Kept:
        """How many backups of each kind lie there just before the monthly cleanup: up to 31 days more than retention asks."""
        from aquad.jobs.forecast import Kept

        retention = self.settings.retention
        days = {name: getattr(retention, name).days for name in ("daily", "weekly", "incremental", "trash")}
        return Kept(
            daily=days["daily"] + 31,
            incremental=4 * days["incremental"],
            weekly=days["weekly"] // 7,
            trash=days["trash"],
        )


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def who(environ: Mapping[str, str]) -> str:
    """The person at the command line, as far as the system knows: name, uid, host, and from where."""
    import pwd
    import socket

    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "nobody of that number"
    peer = environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return f"{name} ({uid}) on {socket.gethostname()}" + (f" from {peer}" if peer else "")
