"""How the new files of a repository are encrypted, and the proof before each run that they can be opened again."""

from __future__ import annotations

import base64
import secrets
from functools import partial
from typing import TYPE_CHECKING

from aquad.core.errors import RepositoryRefused, WrongKey
from aquad.repository import layout
from aquad.repository.manifest import EncryptionRecord

if TYPE_CHECKING:
    from aquad.repository.hashed import Cipher
    from aquad.repository.marker import Marker
    from aquad.stream.gpg.gpg import Gpg, Mode


class Encryption:
    """`wanted`: what the settings ask for; empty when they leave it to the marker."""

    def __init__(self, record: EncryptionRecord, probe: str, gpg: Gpg, wanted: str) -> None:
        self.record = record
        self._wanted = wanted
        self._probe = probe
        self._gpg = gpg

    @classmethod
    def of(cls, marker: Marker, gpg: Gpg, wanted: str) -> Encryption:
        return cls(marker.encryption, marker.probe, gpg, wanted)

    @property
    def cipher(self) -> Cipher | None:
        return None if self.record.mode == "off" else partial(self._gpg.encrypting, self.record.mode)

    def name(self, path: str) -> str:
        return path if self.record.mode == "off" else layout.encrypted(path)

    def prove(self) -> None:
        """Encrypt a probe, open it where the key is here, and see that the key is that of the repository.

        Raises RepositoryRefused when the settings ask for something else than `aquad init` recorded; WrongKey: missing,
        expired, revoked, or another than was recorded.
        """
        if self._wanted not in {"", self.record.mode}:
            raise RepositoryRefused(
                f"encrypt: the settings say encryption.mode = {self._wanted!r}, the repository was made with {self.record.mode!r}",
                f"Correct the settings, or run `aquad init --encryption {self._wanted}` once, which changes it for new backups.",
            )
        if self.record.mode == "off":
            return
        self._gpg.canary(self.record.mode)
        if self.record.mode == "passphrase" and not self.is_current():
            raise WrongKey(
                "encrypt: the passphrase of the settings is not the one that this repository was made with",
                "Correct encryption.passphrase_file. After a change on purpose: put the old one into old_passphrase_files,"
                " and run `aquad init --encryption passphrase` once.",
            )
        if self.record.mode == "public-key" and not self.is_current():
            raise WrongKey(
                f"encrypt: the recipients of the settings are not those of this repository ({', '.join(self.record.key_ids)})",
                "Correct encryption.recipients, or run `aquad init --encryption public-key` once.",
            )

    def is_current(self) -> bool:
        """Whether the keys of the settings are those that were recorded."""
        match self.record.mode:
            case "passphrase":
                return self._gpg.opens_with_passphrase(base64.b64decode(self._probe)) == self.record.key_ids[0].encode()
            case "public-key":
                return sorted(r.fingerprint for r in self._gpg.recipients()) == sorted(self.record.key_ids)
        return True


def choose(mode: Mode, gpg: Gpg) -> tuple[EncryptionRecord, str]:
    """What the marker records of a choice, after a probe. Raises WrongKey."""
    if mode == "off":
        return EncryptionRecord(), ""
    gpg.canary(mode)
    if mode == "public-key":
        return EncryptionRecord(mode=mode, key_ids=sorted(r.fingerprint for r in gpg.recipients())), ""
    key_id = secrets.token_hex(8)
    return EncryptionRecord(mode=mode, key_ids=[key_id]), base64.b64encode(gpg.sealed(mode, key_id.encode())).decode()
