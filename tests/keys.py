"""Real OpenPGP keys for the tests: good, protected, expired, revoked, and one that cannot encrypt."""

import os
import subprocess
import tempfile
from pathlib import Path

from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys


def secret_file(path, content):
    path.write_text(content)
    path.chmod(0o600)
    return path


class KeyRing:
    """Attributes name fingerprints; `public` is the file of all public keys."""

    PASSPHRASE = "of the key itself"

    def __init__(self, directory):
        self._directory = directory
        self._home = tempfile.mkdtemp(prefix="aqkeys-")
        self.alice, self.bob, self.carol = (self._make(name) for name in ("alice", "bob", "carol"))
        self.protected = self._make("protected", passphrase=self.PASSPHRASE)
        self.signing = self._make("signing", usage="sign")
        self.revoked = self._make("revoked")
        self.expired = self._make("expired", expires="seconds=1", when="20200101T000000")
        revocation = Path(self._home, "openpgp-revocs.d", f"{self.revoked}.rev").read_text().replace(":-----", "-----")
        self._gpg("--import", given=revocation.encode())
        self.public = directory / "public.asc"
        self.public.write_bytes(self._gpg("--armor", "--export"))

    def private_of(self, fingerprint):
        path = self._directory / f"{fingerprint}.asc"
        phrase = self.PASSPHRASE if fingerprint == self.protected else ""
        path.write_bytes(
            self._gpg(
                "--pinentry-mode=loopback", f"--passphrase={phrase}", "--armor", "--export-secret-keys", fingerprint
            )
        )
        path.chmod(0o600)
        return path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["gpgconf", "--homedir", self._home, "--kill", "all"], check=True)
        subprocess.run(["rm", "-rf", self._home], check=True)

    def _make(self, name, *, passphrase="", usage="default", expires="never", when=None):
        faked = [f"--faked-system-time={when}!"] if when else []
        algorithm = "ed25519" if usage == "sign" else "future-default"
        self._gpg(
            *faked,
            "--pinentry-mode=loopback",
            f"--passphrase={passphrase}",
            "--quick-gen-key",
            f"{name}@aquad.test",
            algorithm,
            usage,
            expires,
        )
        listing = self._gpg("--with-colons", "--list-keys", f"{name}@aquad.test").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))

    def _gpg(self, *arguments, given=b""):
        return subprocess.run(
            ["gpg", "--batch", "--quiet", "--no-tty", *arguments],
            input=given,
            env={**os.environ, "GNUPGHOME": self._home},
            capture_output=True,
            check=True,
        ).stdout


NO_KEYS = Gpg(Keys())
