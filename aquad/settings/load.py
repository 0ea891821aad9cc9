"""Defaults, then the file, then the environment; every mistake is named at once, with its file, key, value and remedy."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from aquad.core.errors import SettingsInvalid
from aquad.core.escape import escaped
from aquad.settings.model import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

PREFIX = "AQUAD__"
MAXIMUM_BYTES = 1 << 20
PLACES = (Path("settings.toml"), Path("/etc/aquad/settings.toml"))
SECRET = re.compile(r"pass|secret|token|webhook|credential|api_?key", re.IGNORECASE)
VALUE_CHARACTERS = 80


class Loaded(NamedTuple):
    settings: Settings
    origins: Mapping[str, str]
    """Dotted key -> where its value came from; keys that are not in it have their default."""
    text: str
    """What stood in the file, for a child process that is to have the same settings whatever the file becomes."""


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Read the settings. `path` else $AQUAD_CONFIG else ./settings.toml else /etc/aquad/settings.toml else defaults alone.

    Raises SettingsInvalid (exit 2) with all mistakes at once; touches nothing.
    """
    named = path or (Path(environ["AQUAD_CONFIG"]) if environ.get("AQUAD_CONFIG") else None)
    found = named or next((place for place in PLACES if place.is_file()), None)
    content: Any
    content, text = _read(found) if found else ({}, "")
    origins = {key: f"{found}:{_line(text, key)}" for key in _keys(content)}
    mistakes: list[str] = []
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX):
            key = name[len(PREFIX) :].lower().split("__")
            dotted = ".".join(key)
            if _put(content, key, _typed(key, value)):
                origins = {known: text for known, text in origins.items() if not known.startswith(dotted + ".")}
                origins[dotted] = f"environment {escaped(name)}"
            else:
                mistakes.append(f"environment {escaped(name)}: {escaped(dotted)} is not in a table of settings")
    settings = None
    try:
        settings = Settings.model_validate(content)
        mistakes += _in_zone(settings, environ, str(found or "defaults"))
    except ValidationError as error:
        mistakes += [_mistake(one, origins, found) for one in error.errors(include_url=False)]
    if mistakes or settings is None:
        count = len(mistakes)
        raise SettingsInvalid(
            "\n".join([f"read settings: {count} mistake{'s' * (count != 1)}", *mistakes]),
            "Nothing was touched. `aquad config generate` prints every key with its meaning.",
        )
    return Loaded(settings, origins, text)


def _in_zone(settings: Settings, environ: Mapping[str, str], where: str) -> list[str]:
    try:
        zone = settings.zone(environ)
    except ValueError as error:
        return [f"environment TZ: {escaped(environ.get('TZ', ''))!r}; allowed is {error}"]
    try:
        settings.rules(zone)
    except ValueError as error:
        return [f"{where}: {error}"]
    return []


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise SettingsInvalid(f"read settings {path}: larger than 1 MiB", "That is not a settings file.")
        text = path.read_bytes().decode()
        return tomllib.loads(text), text
    except OSError as error:
        raise SettingsInvalid(
            f"read settings {path}: {os.strerror(error.errno or 0)}",
            "Name the file with -c FILE; `aquad config generate` makes one.",
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"read settings {path}: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"read settings {path}: not TOML: {escaped(str(error))}") from error
    except (RecursionError, ValueError) as error:
        raise SettingsInvalid(
            f"read settings {path}: not TOML that anybody would write: {escaped(str(error))[:200]}"
        ) from error


def _keys(content: Mapping[str, Any], above: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys += _keys(value, f"{above}{key}.") if isinstance(value, dict) and value else [above + key]
    return keys


def _line(text: str, key: str) -> int:
    """The line that sets a dotted key; 1 where it cannot be told (inline tables)."""
    *tables, last = key.split(".")
    table: list[str] = []
    best = 1
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[([^\[\]]+)\]", line)
        if header:
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
        elif re.match(rf"\s*[\"']?{re.escape(last)}[\"']?\s*=", line) and table == tables:
            return number
        elif tables and re.match(rf"\s*{re.escape(tables[-1])}\s*=", line) and table == tables[:-1]:
            best = number
    return best


def _typed(key: list[str], value: str) -> Any:
    """Text, or JSON where a table, a list, a number or a boolean is wanted."""
    wanted = _wanted(key)
    if wanted not in (int, bool) and get_origin(wanted) not in (list, dict) and not hasattr(wanted, "model_fields"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # harmless because validation refuses it, together with all other mistakes


def _wanted(key: list[str]) -> Any:
    """The type of what may stand under a key; None where nothing may."""
    wanted: Any = Settings
    for part in key:
        fields = getattr(wanted, "model_fields", None)
        if fields is not None:
            wanted = fields[part].annotation if part in fields else None
        else:
            wanted = get_args(wanted)[-1] if get_origin(wanted) is dict else None
    return wanted


def _put(content: dict[str, Any], key: list[str], value: Any) -> bool:
    table: Any = content
    for part in key[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return False
    table[key[-1]] = value
    return True


def _mistake(one: ErrorDetails, origins: Mapping[str, str], path: Path | None) -> str:
    location = [str(part) for part in one["loc"] if part != "[key]"]
    key = ".".join(location)
    origin = origins.get(key) or next(
        (text for name, text in origins.items() if key.startswith(name + ".") or name.startswith(key + ".")),
        str(path or "defaults"),
    )
    where = f"{origin}: {escaped(key)}" if key else origin
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known(location[:-1]), n=1)
        return f"{where}: there is no such key" + (
            f"; did you mean {near[0]}?" if near else f"; known are {', '.join(_known(location[:-1]))}"
        )
    if one["type"] == "missing":
        return f"{where}: must be set"
    allowed = one["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Input should ")
    if one["type"] in {"model_type", "dict_type"}:  # what stands there instead may hold anything
        return f"{where}: allowed is {allowed}"
    if any(SECRET.search(part) for part in location) and not location[-1].endswith("_file"):
        return f"{where}: allowed is {allowed}"
    shown = escaped(repr(one["input"]))
    return f"{where}: {shown[:VALUE_CHARACTERS]}{'...' * (len(shown) > VALUE_CHARACTERS)}; allowed is {allowed}"


def _known(tables: list[str]) -> list[str]:
    """The keys that a table may have."""
    return list(getattr(_wanted(tables), "model_fields", ()))
