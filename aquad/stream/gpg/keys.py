"""The keys that the settings name: what can be encrypted to, and what can be opened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from aquad.core import secret
from aquad.core.errors import ChildFailed, WrongKey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aquad.stream.gpg.home import Home

UNUSABLE = {"e": "it has expired", "r": "it was revoked", "d": "it is disabled", "i": "it is not valid"}
"""Field 2 of gpg's key listing (doc/DETAILS of GnuPG)."""


class Keys(NamedTuple):
    """Files of secrets, and the full fingerprints of who is encrypted to."""

    passphrase_file: Path | None = None
    old_passphrase_files: Sequence[Path] = ()
    recipients: Sequence[str] = ()
    public_keys_file: Path | None = None
    private_keys_file: Path | None = None


class Recipient(NamedTuple):
    """`key_ids`: of its subkeys for encryption. `expires_at`: seconds since 1970, None when never."""

    fingerprint: str
    key_ids: Sequence[str]
    expires_at: int | None


def passphrase(path: Path) -> bytes:
    """The first line. Raises WrongKey when it is missing, unreadable, empty, or open to others."""
    return secret.first_line(path, "passphrase", WrongKey)


def bring_in(home: Home, path: Path, what: Literal["public keys", "private keys"]) -> None:
    """Import the keys of a file. Raises WrongKey when there are none in it."""
    call = home.start(["--import"])
    try:
        call.child.feed([secret.read(path, what, WrongKey, secret=what == "private keys")])
    except ChildFailed as error:
        raise WrongKey(
            f"read {what} {path}: {error.message}", "Export them with gpg --export(-secret-keys) --armor."
        ) from error
    finally:
        call.end()


def recipients(home: Home, wanted: Sequence[str], path: Path) -> list[Recipient]:
    """Look up each fingerprint among the imported keys. Raises WrongKey: missing, expired, revoked, cannot encrypt."""
    known = _listed(home, "--list-keys")
    return [_usable(fingerprint, known.get(fingerprint), path) for fingerprint in wanted]


def secret_key_ids(home: Home) -> set[str]:
    """Ids of the subkeys for encryption whose secret part is here."""
    return {
        record[4]
        for records in _listed(home, "--list-secret-keys").values()
        for record in records
        if record[0] in {"sec", "ssb"} and record[14] != "#"
    }


def date_of(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _usable(fingerprint: str, records: list[list[str]] | None, path: Path) -> Recipient:
    where = f"encrypt to {fingerprint}"
    if records is None:
        raise WrongKey(
            f"{where}: {path} holds no key of that fingerprint", "Compare it with `gpg --show-keys` of the file."
        )
    primary = records[0]
    if primary[1] in UNUSABLE:
        when = f" on {date_of(int(primary[6]))}" if primary[1] == "e" and primary[6] else ""
        raise WrongKey(f"{where}: {UNUSABLE[primary[1]]}{when}", "Put a key that is valid into encryption.recipients.")
    able = [r for r in records if "e" in r[11] and r[1] not in UNUSABLE]
    if not able:
        raise WrongKey(
            f"{where}: none of its subkeys can encrypt now",
            "They have expired or are made for signing: extend or add one.",
        )
    ends = [int(r[6]) for r in (primary, *able) if r[6]]
    return Recipient(fingerprint, [r[4] for r in able], min(ends) if ends else None)


def _listed(home: Home, what: str) -> dict[str, list[list[str]]]:
    """Records of each key and its subkeys, by the fingerprint of the primary key."""
    call = home.start([what])
    try:
        text = call.child.feed([]).decode("utf-8", "replace")
    finally:
        call.end()
    keys: dict[str, list[list[str]]] = {}
    current: list[list[str]] = []
    for line in text.splitlines():
        record = line.split(":") + [""] * 20
        if record[0] in {"pub", "sec"}:
            current = [record]
        elif record[0] in {"sub", "ssb"}:
            current.append(record)
        elif record[0] == "fpr" and len(current) == 1 and record[9] not in keys:
            keys[record[9]] = current
    return keys
