"""The key kept elsewhere: who loses the host must not lose with it what opens the backups."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from aquad.core.errors import AquadError, WrongKey
from aquad.stream.artifact import Finding
from aquad.stream.gpg.keys import date_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from aquad.repository.manifest import EncryptionRecord
    from aquad.repository.repository import Repository

EXPIRY_WARNING_SECONDS = 30 * 86400
GROUPS = 4
"""Of four hexadecimal digits: typed in a minute, guessed never."""


class Challenge(NamedTuple):
    words: str
    message: bytes
    """`words`, encrypted as backups are."""


def challenge(repository: Repository) -> Challenge:
    """Raises WrongKey when the repository is not encrypted, or its keys are not good."""
    record = repository.encryption.record
    if record.mode == "off":
        raise WrongKey("confirm the key: this repository is not encrypted", "Choose with `aquad init --encryption`.")
    repository.encryption.prove()
    words = "-".join(secrets.token_hex(2) for _ in range(GROUPS))
    return Challenge(words, repository.gpg.sealed(record.mode, words.encode() + b"\n"))


def confirm(repository: Repository, asked: Challenge, answer: str) -> None:
    """Record that somebody opened the challenge. Raises WrongKey when the answer is another."""
    if not secrets.compare_digest(answer.strip().lower().encode(), asked.words.encode()):
        raise WrongKey(
            "confirm the key: that is not what the message says",
            "Decrypt it on another machine, with the key that is kept there. Nothing was recorded.",
        )
    repository.journal.append("key_confirmed", encryption=repository.encryption.record.model_dump())


def is_confirmed(entries: Iterable[Mapping[str, Any]], record: EncryptionRecord) -> bool:
    """Whether somebody has proved that the present key is kept elsewhere."""
    return any(e["event"] == "key_confirmed" and e["encryption"] == record.model_dump() for e in entries)


def lost_with_the_host(secret_files: Iterable[Path], backed_up: Iterable[Path]) -> list[str]:
    """A warning for each secret that lies below what it protects the backups of."""
    tops = [path.resolve() for path in backed_up]
    return [
        f"{secret} lies in {top}, which is backed up itself: whoever loses this host loses the backups and their key at once"
        for secret in secret_files
        for top in tops
        if secret.resolve().is_relative_to(top)
    ]


def check_keys(repository: Repository, warnings: Iterable[str]) -> list[Finding]:
    """What would fail, or is weak, about encryption tonight."""
    record = repository.encryption.record
    if record.mode == "off":
        return [Finding("warning", "encryption", "off: whoever reads the repository reads the data")]
    try:
        repository.encryption.prove()
    except AquadError as error:
        return [Finding("error", "encryption", error.message, error.hint)]
    found = [Finding("ok", "encryption", f"{record.mode}, {', '.join(record.key_ids)}: a probe was encrypted")]
    soon = repository.clock.now().timestamp() + EXPIRY_WARNING_SECONDS
    found += [
        Finding(
            "warning",
            "encryption",
            f"the key {recipient.fingerprint} expires on {date_of(recipient.expires_at)}",
            "Extend it, and put the new export into public_keys_file.",
        )
        for recipient in (repository.gpg.recipients() if record.mode == "public-key" else [])
        if recipient.expires_at is not None and recipient.expires_at < soon
    ]
    if not is_confirmed(repository.journal.entries(), record):
        found.append(
            Finding(
                "warning",
                "encryption",
                "nobody has proved that the key is kept elsewhere too",
                "Run: aquad key confirm",
            )
        )
    return [*found, *(Finding("warning", "encryption", line, "Keep a copy of it elsewhere.") for line in warnings)]
