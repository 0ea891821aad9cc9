"""What is shown of a container: what aquad needs. Environments, commands and health checks hold passwords, and are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

COMPOSE = "com.docker.compose."
LISTED = ("Id", "Names", "Image", "ImageID", "Created", "State", "Status", "Mounts")
INSPECTED = ("Id", "Name", "Created", "Image", "RestartCount", "Mounts")
STATE = ("Status", "Running", "Paused", "Restarting", "OOMKilled", "Dead", "ExitCode", "StartedAt", "FinishedAt")
CONFIG = ("Image", "Tty", "StopSignal", "StopTimeout")


def service_of(labels: Mapping[str, str] | None, project: str) -> str | None:
    """The Compose service, where it is of this project."""
    if not labels or labels.get(f"{COMPOSE}project") != project:
        return None
    return labels.get(f"{COMPOSE}service")


def listed(containers: list[dict[str, Any]], project: str, services: Collection[str]) -> list[dict[str, Any]]:
    return [
        {**_only(one, LISTED), "Labels": _labels(one.get("Labels"))}
        for one in containers
        if service_of(one.get("Labels"), project) in services
    ]


def inspected(found: Mapping[str, Any]) -> dict[str, Any]:
    config, host = found["Config"], found.get("HostConfig", {})
    return {
        **_only(found, INSPECTED),
        "State": {**_only(found["State"], STATE), **_health(found["State"])},
        "Config": {**_only(config, CONFIG), "Labels": _labels(config.get("Labels"))},
        "HostConfig": _only(host, ("RestartPolicy",)),
    }


def _health(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without what its command printed."""
    health = state.get("Health")
    return {"Health": _only(health, ("Status", "FailingStreak"))} if health else {}


def _labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {name: text for name, text in (labels or {}).items() if name.startswith(COMPOSE)}


def _only(found: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: found[key] for key in keys if key in found}
