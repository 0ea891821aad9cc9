"""The manifest: what a backup consists of. A backup exists if and only if its manifest is sealed.

Its bytes are exactly `json.dumps(..., indent=1, sort_keys=True)` and a newline, so that any changed byte shows: either the
text is no longer in that form, or `manifest_sha256` no longer fits. `manifest_sha256` is the digest of the same object
without that key in compact form (`jq -cjS 'del(.manifest_sha256)' FILE | sha256sum`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from aquad.core.errors import Damaged, RepositoryRefused
from aquad.core.escape import escaped
from aquad.repository.layout import FORMAT

MAXIMUM_BYTES = 256 << 20
"""More is not a manifest: it is read into memory whole."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _inside(path: str) -> str:
    if not path or "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("it leaves the repository")
    return path


Inside = Annotated[str, AfterValidator(_inside)]
"""A path below the repository."""


class FileRecord(_Record):
    path: Inside
    stored_bytes: int
    stored_sha256: str


class PartRecord(_Record):
    name: str
    offset: int
    length: int
    plain_bytes: int
    facts: dict[str, Any]


class EncryptionRecord(_Record):
    mode: Literal["off", "passphrase", "public-key"] = "off"
    key_ids: list[str] = []


class ArtifactRecord(FileRecord):
    object: Inside | None = None
    """Where the bytes lie when that is not `path`."""
    index: FileRecord | None = None
    plain_bytes: int
    plain_sha256: str | None
    compression: Literal["gzip", "none"]
    encryption: EncryptionRecord = EncryptionRecord()
    facts: dict[str, Any]
    parts: list[PartRecord]


class ComponentRecord(_Record):
    name: str
    outcome: Literal["success", "warning", "failed"]
    reason: str
    consistency: Literal["snapshot", "paused", "stopped", "live", "files"] | None
    facts: dict[str, Any]
    warnings: list[str]
    notes: list[str]
    milliseconds: int
    """What it took to take it."""
    artifacts: list[ArtifactRecord]

    @property
    def stored_bytes(self) -> int:
        return sum(artifact.stored_bytes for artifact in self.artifacts)

    @property
    def plain_bytes(self) -> int:
        return sum(artifact.plain_bytes for artifact in self.artifacts)

    @property
    def good(self) -> bool:
        return self.outcome != "failed"


class JournalAnchor(_Record):
    lines: int
    hash: str


class Manifest(_Record):
    format: int
    id: str
    sequence: int
    kind: Literal["full", "incremental", "weekly"]
    repository_id: str
    stack: str
    host: str
    started_at: str
    finished_at: str
    slot: str | None
    outcome: Literal["success", "warning", "partial"]
    needs: list[str]
    components: list[ComponentRecord]
    software: dict[str, str]
    journal: JournalAnchor
    manifest_sha256: str = ""

    @property
    def stored_bytes(self) -> int:
        return sum(file.stored_bytes for file in self.files())

    @property
    def plain_bytes(self) -> int:
        return sum(component.plain_bytes for component in self.components)

    def files(self) -> list[FileRecord]:
        """Every file this backup consists of, but the manifest itself."""
        artifacts = [artifact for component in self.components for artifact in component.artifacts]
        return [*artifacts, *(a.index for a in artifacts if a.index is not None)]

    def component(self, name: str) -> ComponentRecord | None:
        """The good component of that name."""
        return next((c for c in self.components if c.name == name and c.good), None)


def render(manifest: Manifest) -> bytes:
    """Return the bytes to be sealed; whatever digest the argument holds is computed afresh."""
    content = manifest.model_dump(mode="json")
    content["manifest_sha256"] = _digest(content)
    return _text(content)


def parse(stored: bytes, name: str) -> Manifest:
    """Return the manifest in these bytes. Raises Damaged; RepositoryRefused when a newer aquad wrote it."""
    damaged = Damaged(
        f"read manifest {name}: its bytes are not what was sealed",
        "Restore the file from another copy of the repository.",
    )
    try:
        content = json.loads(stored, parse_constant=_refuse)
        if (
            not isinstance(content, dict)
            or _text(content) != stored
            or content.get("manifest_sha256") != _digest(content)
        ):
            raise damaged
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if content.get("format") != FORMAT:
        raise RepositoryRefused(
            f"read manifest {name}: format {content.get('format')!r}, this aquad knows {FORMAT}", "Use a newer aquad."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise Damaged(
            f"read manifest {name}: {escaped(where)}: {escaped(first['msg'])}",
            "No aquad wrote it: restore the file from another copy of the repository.",
        ) from error


def _digest(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(
        json.dumps(rest, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
