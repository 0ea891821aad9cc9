"""The guarded Docker socket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from aquad.settings.units import AbsolutePath


def _off_or_unix(text: str) -> str:
    if text != "off" and not text.startswith("unix:///"):
        raise ValueError('"off", or unix:// and the absolute path of the guard\'s socket')
    return text


class Docker(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)

    host: Annotated[str, AfterValidator(_off_or_unix)] = Field(
        "off", description='the guard\'s socket, "unix:///run/guard/docker.sock"; "off": nothing is paused or stopped'
    )
    engine: AbsolutePath = Field(
        Path("/var/run/docker.sock"), description="the Engine's own socket; only the guard uses it"
    )
    project: str = Field("", description="the Compose project; empty: as stack")
    state: AbsolutePath = Field(
        Path("/var/lib/aquad-guard"), description="where the guard remembers what it has to let go on"
    )
    also: list[str] = Field([], description="services that it may show and move besides those of the volumes")
