"""Durations `30d`, sizes `512MiB`, shares `10%`, names and cron rules, as they stand in settings."""

from __future__ import annotations

import re
from datetime import UTC, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer

from aquad.jobs.schedule import Rule

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _duration(value: object) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,5})([smhdw])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration such as 90s, 5m, 6h, 30d, 12w")
    return timedelta(seconds=int(match[1]) * SECONDS[match[2]])


def duration_text(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % SECONDS[unit] == 0)
    return f"{seconds // SECONDS[unit]}{unit}"


class Reserve(NamedTuple):
    """What must stay free: a share of the file system, or bytes."""

    percent: float
    size_bytes: int
    text: str


def _reserve(value: object) -> Reserve:
    if isinstance(value, Reserve):
        return value
    match = re.fullmatch(r"(\d{1,12})\s?(%|[kKMGT]i?B|B)", value) if isinstance(value, str) else None
    if match is None or (match[2] != "%" and match[2] not in SIZES) or (match[2] == "%" and int(match[1]) > 99):
        raise ValueError("a share such as 10%, or a size such as 20GB")
    text = f"{match[1]}{match[2]}"
    return Reserve(int(match[1]), 0, text) if match[2] == "%" else Reserve(0, int(match[1]) * SIZES[match[2]], text)


def _cron(value: object) -> str:
    if value == "off":
        return "off"
    fields = value.split() if isinstance(value, str) else []
    if len(fields) != 5 or not all(
        _cron_field(field, *limits) for field, limits in zip(fields, CRON_RANGES, strict=True)
    ):
        raise ValueError("five fields (minute hour day month weekday) in numbers, such as 0 2 * * *, or off")
    expression = " ".join(fields)
    # A check only, so any zone does; the daemon reads the rule in that of the schedule.
    Rule(expression, UTC)
    return expression


def _cron_field(field: str, low: int, high: int) -> bool:
    for piece in field.split(","):
        match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", piece, re.ASCII)
        if match is None or (match[3] and int(match[3]) == 0):
            return False
        bounds = [int(bound) for bound in match.group(1, 2) if bound]
        if any(not low <= bound <= high for bound in bounds) or bounds != sorted(bounds):
            return False
    return True


def _path(value: object) -> Path:
    if (
        not isinstance(value, (str, Path))
        or "\0" in str(value)
        or not Path(value).is_absolute()
        or ".." in Path(value).parts
    ):
        raise ValueError("an absolute path without '..'")
    if Path(value) == Path("/"):
        raise ValueError("a path below the root directory, not / itself")
    return Path(value)


def _optional_path(value: object) -> Path | None:
    return None if value is None or value == "" else _path(value)


def _relative(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value
        or "\0" in value
        or Path(value).is_absolute()
        or not Path(value).parts
        or {"..", "."} & set(Path(value).parts)
    ):
        raise ValueError("a path relative to configs.root, without '..'")
    return value.rstrip("/")


def _fingerprint(value: object) -> str:
    text = value.replace(" ", "").upper() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9A-F]{40}", text, re.ASCII):
        raise ValueError("a full fingerprint: 40 hexadecimal digits, as `gpg --show-keys` prints it")
    return text


def _address(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s@<>,;:\\\"]{1,64}@[^\s@<>,;:\\\"]{1,255}", value):
        raise ValueError("a mail address such as admin@company.com, without a name")
    return value


def _listen(value: object) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]*):(\d{1,5})", value) if isinstance(value, str) else None
    if value != "off" and (match is None or not int(match[2]) <= 65535):
        raise ValueError("an address and a port such as 0.0.0.0:9480 or [::]:9480, or off")
    return str(value)


def _size(value: object) -> int:
    if type(value) is int:
        return value
    match = re.fullmatch(r"(\d{1,12})\s?([kKMGT]i?B|B)", value) if isinstance(value, str) else None
    if match is None or match[2] not in SIZES:
        raise ValueError("a size such as 1GB or 512MiB")
    return int(match[1]) * SIZES[match[2]]


def _size_text(value: int) -> str:
    unit = next((unit for unit in ("TB", "GB", "MB") if value and value % SIZES[unit] == 0), "B")
    return f"{value // SIZES[unit]}{unit}"


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(duration_text)]
Share = Annotated[Reserve, BeforeValidator(_reserve), PlainSerializer(lambda reserve: reserve.text)]
Size = Annotated[int, BeforeValidator(_size), PlainSerializer(_size_text)]
Cron = Annotated[str, BeforeValidator(_cron)]
AbsolutePath = Annotated[Path, BeforeValidator(_path), PlainSerializer(str)]
OptionalPath = Annotated[Path | None, BeforeValidator(_optional_path), PlainSerializer(lambda path: str(path or ""))]
SecretFile = OptionalPath
Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]
Address = Annotated[str, BeforeValidator(_address)]
Listen = Annotated[str, BeforeValidator(_listen)]
RelativePath = Annotated[str, BeforeValidator(_relative)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
