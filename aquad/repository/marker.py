"""The marker: which repository this is, of which stack, and how its new files are encrypted."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aquad.core.errors import RepositoryRefused
from aquad.repository import layout
from aquad.repository.manifest import EncryptionRecord
from aquad.storage import files

if TYPE_CHECKING:
    from pathlib import Path


class Marker(BaseModel):
    """`probe`: the id of the passphrase, encrypted with it (base64): what opens it is the passphrase of this repository."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    format: int
    stack: str
    created_at: str
    encryption: EncryptionRecord
    probe: str = ""


def read(path: Path) -> Marker:
    """Raises FileNotFoundError, PermissionError; RepositoryRefused when it is damaged, or a newer aquad's."""
    try:
        content: Any = json.loads(path.read_bytes())
        found = content["format"]
        if found != layout.FORMAT:
            raise RepositoryRefused(
                f"open repository {path.parent}: format {found!r}, this aquad knows {layout.FORMAT}",
                "Use a newer aquad.",
            )
        marker = Marker.model_validate(content)
        uuid.UUID(marker.id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise RepositoryRefused(
            f"open repository {path.parent}: {path.name} is damaged",
            "Restore it from another copy; each manifest holds repository_id.",
        ) from error
    return marker


def write(path: Path, marker: Marker) -> None:
    files.replace(path, json.dumps(marker.model_dump(), indent=1, sort_keys=True).encode() + b"\n")
