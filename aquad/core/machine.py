"""How aquad speaks to machines: JSON that says which version of its shape it is."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aquad.core.clock import to_text

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 1


def text(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """Times become RFC 3339 in UTC."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=indent, default=_plain)


def _plain(value: object) -> str:
    return to_text(value) if isinstance(value, datetime) else str(value)
