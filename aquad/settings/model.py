"""What can be set. Every default fits AquaStream; every key's comment is its description here, and `generate` prints it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from aquad.jobs.schedule import Rule
from aquad.jobs.slots import ORDER
from aquad.settings.docker import Docker
from aquad.settings.units import (
    AbsolutePath,
    Address,
    Cron,
    Duration,
    Fingerprint,
    Listen,
    Name,
    OptionalPath,
    RelativePath,
    Reserve,
    SecretFile,
    Share,
    Size,
)

DAY = timedelta(days=1)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class Repository(Section):
    path: AbsolutePath = Field(
        Path("/backups/aquastream"), description="where the backups lie; a mount of its own is best"
    )
    minimum_free: Share = Field(
        Reserve(10, 0, "10%"),
        description="what must stay free there: a share or a size; a backup that would use it is refused",
    )


class Encryption(Section):
    mode: Literal["", "off", "passphrase", "public-key"] = Field(
        "",
        description="must be chosen, here or by `aquad init --encryption`: passphrase | public-key | off; off is said in every status",
    )
    passphrase_file: SecretFile = Field(
        Path("/run/secrets/backup_passphrase"),
        description="0600; its first line opens what mode passphrase encrypts, and unlocks private_keys_file",
    )
    old_passphrase_files: list[AbsolutePath] = Field([], description="open backups from before a rotation")
    recipients: list[Fingerprint] = Field([], description="mode public-key: full fingerprints of 40 digits")
    public_keys_file: OptionalPath = Field(
        Path("/run/secrets/backup_public_keys"), description="their public keys: gpg --export --armor"
    )
    private_keys_file: OptionalPath = Field(
        None,
        description="0600; gpg --export-secret-keys --armor; only where restores are made, never where backups are",
    )

    @model_validator(mode="after")
    def _has_keys(self) -> Encryption:
        if self.mode == "passphrase" and self.passphrase_file is None:
            raise ValueError("passphrase_file must be set when mode is passphrase")
        if self.mode == "public-key" and not (self.recipients and self.public_keys_file):
            raise ValueError("recipients and public_keys_file must be set when mode is public-key")
        return self


class Schedule(Section):
    full: Cron = Field("0 2 * * *", description='five fields, Sunday is 0 and 7; "off" switches a job off')
    postgres: Cron = Field("0 */6 * * *", description="a dump of its own between the full backups")
    weekly: Cron = Field("0 1 * * 0", description="the weekly archive")
    cleanup: Cron = Field("0 3 1 * *", description="retention")
    verify: Cron = Field("30 4 * * *", description="stored bytes are read again")
    catch_up: Duration = Field(DAY, description="a run missed while the daemon was down is made up once, if younger")


class Limits(Section):
    deadline: dict[str, Duration] = Field(
        {
            "full": timedelta(hours=4),
            "postgres": timedelta(hours=1),
            "weekly": timedelta(hours=8),
            "cleanup": timedelta(hours=1),
            "verify": timedelta(hours=12),
        },
        description="a run that takes longer is ended; also of restore and prune; who is not named keeps this default",
    )
    stall: Duration = Field(timedelta(seconds=60), description="no byte from a peer for so long: given up")
    retries: int = Field(2, ge=0, le=10, description="so often a failed run of the schedule is tried again")
    retry_delay: Duration = Field(timedelta(minutes=5), description="after so long")
    max_pause: Duration = Field(
        timedelta(seconds=10),
        description="no container stands still for longer; below Kafka's ZooKeeper session time-out of 18 s",
    )
    stop: Duration = Field(
        timedelta(seconds=8),
        description="SIGTERM ends the daemon within this time; less than Docker's patience of 10 s",
    )

    @field_validator("deadline")
    @classmethod
    def _others_keep_theirs(cls, value: dict[str, timedelta]) -> dict[str, timedelta]:
        unknown = value.keys() - {*ORDER, "restore", "prune"}
        if unknown:
            raise ValueError(f"{', '.join(ORDER)}, restore or prune, and not {min(unknown)}")
        return {**cls.model_fields["deadline"].default, **value}


class LogRetention(Section):
    age: Duration = 90 * DAY
    size: Size = 1_000_000_000


class Retention(Section):
    daily: Duration = Field(30 * DAY, description="full backups")
    weekly: Duration = Field(84 * DAY, description="weekly archives")
    incremental: Duration = Field(7 * DAY, description="dumps between the full backups")
    minimum_verified: int = Field(
        3, ge=1, le=1000, description="never fewer good backups than this, whatever their age"
    )
    trash: Duration = Field(7 * DAY, description="how long removed backups can still be had back")
    logs: LogRetention = Field(
        LogRetention(), description="reports and the journal's old files: until one of both is passed"
    )


class Postgres(Section):
    host: str = Field("postgres", min_length=1, max_length=255, description="name, address, or directory of the socket")
    port: int = Field(5432, ge=1, le=65535, description="TCP port, also part of the socket's name")
    user: str = Field("postgres", min_length=1, max_length=63, description="a role that may read everything")
    password_file: SecretFile = Field(Path("/run/secrets/postgres_password"), description="0600; empty: no password")
    databases: list[str] = Field([], description="empty: all, but those that a restore kept aside")
    bin_dir: str = Field(
        "",
        description='where pg_dump lies, e.g. "/usr/lib/postgresql/{major}/bin"; empty: the system\'s, then bundled ones',
    )

    data_path: OptionalPath = Field(
        Path("/source/postgres_data"),
        description="the server's data directory mounted here, read-only: shows how much space a restore has",
    )

    @field_validator("host", "user", "bin_dir")
    @classmethod
    def _no_control_characters(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("text without control characters")
        return value


class Configs(Section):
    root: AbsolutePath = Field(Path("/source/stack"), description="the checkout of the stack")
    paths: list[RelativePath] = Field(
        [
            "infra/docker/compose/docker-compose.yml",
            "infra/docker/compose/.env",
            "infra/monitoring",
            "infra/scripts",
            "run.sh",
        ],
        description="relative to root; a missing one is an error",
    )
    optional_paths: list[RelativePath] = Field(
        ["infra/docker/compose/docker-compose.override.yml", "infra/docker/compose/docker-compose.secrets.yml"],
        description="taken where they are there",
    )


class Volume(Section):
    path: AbsolutePath = Field(description="the volume's directory, mounted read-only")
    service: str = Field("", description="the Compose service that writes it")
    quiesce: Literal["none", "live"] = Field(
        "none", description="none: safe as plain files | live: read while it is written, and labelled so"
    )
    may_shrink: bool = Field(False, description="for logs: an empty volume is a warning, not an error")


class Web(Section):
    listen: Listen = Field(
        "0.0.0.0:9480",  # the port of a container's own network
        description='address and port of /metrics, /healthz, /readyz and /api/v1; "off": none. It is read-only, and without a login',
    )


Level = Literal["warning", "critical"]


class Slack(Section):
    webhook_url_file: SecretFile = Field(
        None, description="0600; holds an incoming webhook's URL, which stands for one Slack channel; empty: no Slack"
    )
    levels: list[Level] = Field(["warning", "critical"], description="warning, critical")


class Email(Section):
    host: str = Field("", max_length=255, description="the mail server; empty: no mail")
    port: int = Field(587, ge=1, le=65535, description="587 for starttls, 465 for tls")
    tls: Literal["starttls", "tls", "off"] = Field("starttls", description="starttls | tls | off")
    ca_file: OptionalPath = Field(None, description="who signed the server's certificate; empty: the system's list")
    user: str = Field("", description="empty: no login")
    password_file: SecretFile = Field(None, description="0600")
    sender: Address = Field("aquad@localhost.localdomain", description="From")
    to: list[Address] = Field(["admin@company.com"], min_length=1, description="who gets it")
    levels: list[Level] = Field(["warning", "critical"], description="warning, critical")

    @model_validator(mode="after")
    def _login_is_whole(self) -> Email:
        if self.user and self.password_file is None:
            raise ValueError("password_file must be set where user is")
        if self.user and self.tls == "off":
            raise ValueError("tls must be starttls or tls where there is a password")
        return self


class Sms(Section):
    url_file: SecretFile = Field(
        None,
        description="0600; holds an Apprise URL, such as twilio://...; needs pip install 'aquad[sms]'; empty: none",
    )
    levels: list[Level] = Field(["critical"], description="warning, critical")


class Ping(Section):
    url_file: SecretFile = Field(
        None, description="0600; holds a URL that is called after each verified success; who misses it calls a person"
    )


class Alerts(Section):
    slack: Slack = Slack()
    email: Email = Email()
    sms: Sms = Sms()
    ping: Ping = Ping()


class Objectives(Section):
    rto: dict[str, Duration] = Field(
        {
            "postgres": timedelta(minutes=15),
            "elasticsearch": timedelta(minutes=30),
            "configs": timedelta(minutes=5),
            "all": timedelta(hours=1),
        },
        description="how long a restore may take",
    )
    rpo: dict[str, Duration] = Field(
        {"postgres": timedelta(hours=6), "elasticsearch": DAY, "configs": DAY},
        description="how old the newest good backup may be",
    )
    grace: Duration = Field(timedelta(hours=1), description="for the run itself, before anything is called stale")

    @field_validator("rto", "rpo")
    @classmethod
    def _others_keep_theirs(cls, value: dict[str, timedelta], info: ValidationInfo) -> dict[str, timedelta]:
        return {**cls.model_fields[str(info.field_name)].default, **value}


def _stack_volumes() -> dict[str, Volume]:
    """The volumes of AquaStream whose files are safe to copy as they are, or are labelled live."""
    live = {"kafka_data": "kafka", "zookeeper_data": "zookeeper"}
    volumes = {
        name: Volume(path=Path("/source", name), service=service, quiesce="live") for name, service in live.items()
    }
    volumes["elasticsearch_certs"] = Volume(path=Path("/source/elasticsearch_certs"), service="elasticsearch")
    volumes["nginx_logs"] = Volume(path=Path("/source/nginx_logs"), service="nginx", may_shrink=True)
    return volumes


class Settings(Section):
    stack: Name = Field("aquastream", description="name of the stack; the repository remembers it")
    time_zone: str = Field("", description="zone of the schedule and of the names; empty: the container's TZ, else UTC")
    repository: Repository = Repository()
    encryption: Encryption = Encryption()
    schedule: Schedule = Schedule()
    limits: Limits = Limits()
    retention: Retention = Retention()
    postgres: Postgres = Postgres()
    configs: Configs = Configs()
    volumes: dict[Name, Volume] = Field(default_factory=_stack_volumes)
    objectives: Objectives = Objectives()
    docker: Docker = Docker()
    web: Web = Web()
    alerts: Alerts = Alerts()

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value:
            _zone(value)
        return value

    @model_validator(mode="after")
    def _names_are_free(self) -> Settings:
        taken = {"postgres", "configs", "all", "archive"} & set(self.volumes)
        if taken:
            raise ValueError(f"a volume cannot be named {min(taken)}: that is a component of its own")
        return self

    def guarded_services(self) -> frozenset[str]:
        """The services that the guard may show and move."""
        return frozenset(self.docker.also) | {one.service for one in self.volumes.values() if one.service}

    def rules(self, zone: tzinfo) -> dict[str, Rule]:
        """The jobs that are not switched off. Raises ValueError, and names the job, when a rule never fires in this zone."""
        rules = {}
        for job in ORDER:
            expression = getattr(self.schedule, job)
            if expression != "off":
                try:
                    rules[job] = Rule(expression, zone)
                except ValueError as error:
                    raise ValueError(f"schedule.{job}: {expression!r} in {zone}; allowed is {error}") from error
        return rules

    def zone(self, environ: Mapping[str, str] = os.environ) -> tzinfo:
        """time_zone, else TZ, else UTC. Raises ValueError when TZ names no zone."""
        return _zone(self.time_zone or environ.get("TZ", "").lstrip(":") or "UTC")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("the name of a time zone, such as Europe/Warsaw") from error
