"""The commented settings file: every key, its default, its unit and meaning."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from aquad.settings.model import Settings

HEADER = """\
# aquad settings. Every key has the default that stands here; remove what you do not change.
# Each can be set in the environment: AQUAD__SECTION__KEY (lists and tables as JSON). Secrets are files, never values.
# Durations are "30d", "6h", "90s"; sizes "1GB", "512MiB".

"""


def generate() -> str:
    """Return settings.toml with all defaults; loading it gives the defaults."""
    defaults = Settings()
    lines = [_line(defaults, name) for name in ("stack", "time_zone")]
    for name in Settings.model_fields:
        section = getattr(defaults, name)
        if name == "alerts":
            lines += [
                line
                for channel in type(section).model_fields
                for line in _table(f"alerts.{channel}", getattr(section, channel))
            ]
        elif isinstance(section, BaseModel):
            lines += _table(name, section)
    for name, volume in defaults.volumes.items():
        lines += _table(f"volumes.{name}", volume)
    return HEADER + "\n".join(lines) + "\n"


def _table(name: str, section: BaseModel) -> list[str]:
    return ["", f"[{name}]", *(_line(section, key) for key in type(section).model_fields)]


def _line(section: BaseModel, key: str) -> str:
    value = section.model_dump(mode="json", include={key})[key]
    meaning = type(section).model_fields[key].description
    return f"{key} = {_toml(value)}" + (f"  # {meaning}" if meaning else "")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)
