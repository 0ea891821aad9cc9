"""Encrypting and opening streams. Nothing is believed before gpg's exit status and its status lines are good."""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from aquad.core.errors import ChildFailed, Damaged, WrongKey
from aquad.stream.gpg import keys as keyring
from aquad.stream.gpg.envelope import AES256, HEAD_BYTES, Envelope, envelope
from aquad.stream.gpg.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from aquad.stream.gpg.home import Call
    from aquad.stream.gpg.keys import Keys, Recipient

Mode = Literal["off", "passphrase", "public-key"]
SYMMETRIC = (
    "--symmetric",
    "--s2k-mode=3",
    "--s2k-digest-algo=SHA512",
    "--s2k-count=65011712",  # the most there is: a guess costs 0.1 s
)
PROBE_BYTES = 32


class Gpg:
    """What one process encrypts and opens with. Made lazily; `end` removes the keys that were brought in."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._home: Home | None = None
        self._recipients: list[Recipient] | None = None
        self._passphrases = [path for path in (keys.passphrase_file, *keys.old_passphrase_files) if path is not None]

    def end(self) -> None:
        if self._home is not None:
            self._home.end()
            self._home = None

    def recipients(self) -> Sequence[Recipient]:
        """Raises WrongKey when one of them cannot be encrypted to."""
        if self._recipients is None:
            path = self._keys.public_keys_file
            if path is None or not self._keys.recipients:
                raise WrongKey(
                    "encrypt to public keys: the settings name none",
                    "Set encryption.recipients (fingerprints of 40 digits) and encryption.public_keys_file.",
                )
            home = self._opened()
            keyring.bring_in(home, path, "public keys")
            self._recipients = keyring.recipients(home, self._keys.recipients, path)
        return self._recipients

    def encrypting(self, mode: Mode, take: Callable[[bytes], None]) -> Encrypting:
        """Start one stream; what it becomes goes to `take`, in a thread of its own. Belongs to the main thread."""
        home = self._opened()
        if mode == "passphrase":
            call = home.start(
                ["--no-autostart", "--compress-algo=none", "--cipher-algo=AES256", *SYMMETRIC],
                passphrase=self._passphrase(),
            )
            return Encrypting(call, take, [])
        recipients = self.recipients()
        to = [f"--recipient={recipient.fingerprint}" for recipient in recipients]
        call = home.start(["--no-autostart", "--compress-algo=none", "--cipher-algo=AES256", "--encrypt", *to])
        return Encrypting(call, take, [recipient.key_ids for recipient in recipients])

    def decrypted(self, stored: Callable[[], Iterator[bytes]], name: str) -> Iterator[bytes]:
        """Yield the stream inside an encrypted file. What came is worthless until the iterator has ended by itself.

        `stored` is called again for each passphrase that is tried. Raises WrongKey, and Damaged where the key fits and the
        bytes do not.
        """
        found = _envelope(b"".join(_head(stored())), name)
        for key in self._candidates(found):
            try:
                yield from self._attempt(stored(), key, name)
            except _NotThisOne:
                continue
            return
        raise WrongKey(
            f"open {name}: it needs {_needed(found)}, and no key or passphrase of the settings opens it",
            "Set encryption.passphrase_file, old_passphrase_files or private_keys_file to what it was encrypted with.",
        )

    def opens(self, head: bytes, name: str) -> bool:
        """Whether a key for it is here, by its first bytes; a passphrase is only tried when it is opened."""
        found = _envelope(head, name)
        return bool((found.passphrases and self._passphrases) or self._has_private_key(found))

    def opens_with_passphrase(self, stored: bytes) -> bytes | None:
        """What the present passphrase makes of a few encrypted bytes; None when it does not open them."""
        try:
            return b"".join(self._attempt(iter([stored]), self._keys.passphrase_file, "a probe"))
        except (_NotThisOne, Damaged):
            return None

    def sealed(self, mode: Mode, plain: bytes) -> bytes:
        """Encrypt a few bytes."""
        out = bytearray()
        encrypting = self.encrypting(mode, out.extend)
        try:
            encrypting.write(plain)
            encrypting.finish()
        finally:
            encrypting.end()
        return bytes(out)

    def canary(self, mode: Mode) -> None:
        """Encrypt a probe, and open it again where the key is here. Raises WrongKey."""
        probe = secrets.token_bytes(PROBE_BYTES)
        sealed = self.sealed(mode, probe)
        if self.opens(sealed, "a probe") and b"".join(self.decrypted(lambda: iter([sealed]), "a probe")) != probe:
            raise WrongKey("encrypt a probe: it opens to something else", "This gpg cannot be trusted.")

    def _candidates(self, found: Envelope) -> list[Path | None]:
        """What is worth trying: None is the private key, with its own passphrase."""
        candidates: list[Path | None] = list(self._passphrases) if found.passphrases else []
        if self._has_private_key(found):
            candidates.insert(0, None)
        return candidates

    def _has_private_key(self, found: Envelope) -> bool:
        path = self._keys.private_keys_file
        if path is None or not found.key_ids:
            return False
        home = self._opened()
        here = keyring.secret_key_ids(home)
        if not here:
            keyring.bring_in(home, path, "private keys")
            here = keyring.secret_key_ids(home)
        return bool(here & set(found.key_ids))

    def _attempt(self, stored: Iterator[bytes], path: Path | None, name: str) -> Iterator[bytes]:
        secret = keyring.passphrase(path) if path is not None else self._unlocking()
        call = self._opened().start(["--decrypt"], passphrase=secret)
        try:
            yield from call.child.through(stored)
            if not call.said("DECRYPTION_OKAY") or call.said("DECRYPTION_FAILED", "BADMDC"):
                raise Damaged(f"open {name}: gpg does not say that all of it is authentic", "Use another backup.")
        except ChildFailed as error:
            if any("BAD_PASSPHRASE" in line for line in call.status()) or not call.said("DECRYPTION_INFO"):
                raise _NotThisOne from error  # it never came to a session key
            raise Damaged(f"open {name}: {error.message}", "Use another backup, or a copy kept elsewhere.") from error
        finally:
            call.end()

    def _opened(self) -> Home:
        if self._home is None:
            self._home = Home()
        return self._home

    def _passphrase(self) -> bytes:
        if self._keys.passphrase_file is None:
            raise WrongKey("encrypt with a passphrase: the settings name none", "Set encryption.passphrase_file.")
        return keyring.passphrase(self._keys.passphrase_file)

    def _unlocking(self) -> bytes:
        """The passphrase of the private key; one that has none needs no file of it."""
        path = self._keys.passphrase_file
        return keyring.passphrase(path) if path is not None and path.exists() else b""


class Encrypting:
    """One gpg at work: fed here, drained by a thread of its own, so that neither waits for the other."""

    def __init__(self, call: Call, take: Callable[[bytes], None], wanted: Sequence[Sequence[str]]) -> None:
        self._call = call
        self._stdin = call.child.take_stdin()
        self._take = take
        self._wanted = wanted
        self._head = b""
        self._thread = ThreadPoolExecutor(1, "encrypt")
        self._drained = self._thread.submit(self._drain)

    def write(self, plain: bytes) -> None:
        """Raises what `take` raised, or ChildFailed when gpg is gone."""
        rest = memoryview(plain)
        try:
            while rest:
                rest = rest[self._stdin.write(rest) :]
        except BrokenPipeError:
            self._drained.result()
            raise ChildFailed("run gpg: it reads no more") from None

    def finish(self) -> None:
        """End the stream; believe it only when gpg says so, and when exactly the right keys open what it wrote."""
        self._stdin.close()
        self._drained.result()
        if not self._call.said("END_ENCRYPTION"):
            raise ChildFailed("run gpg: it does not say that it came to its end")
        found = _envelope(self._head, "what gpg wrote")
        good = (
            len(found.key_ids) == len(self._wanted)
            and all(any(key_id in found.key_ids for key_id in key_ids) for key_ids in self._wanted)
            and found.passphrases == (0 if self._wanted else 1)
            and set(found.ciphers) <= {AES256}
        )
        if not good:
            raise WrongKey(
                f"encrypt: {_needed(found)} opens what gpg wrote, which is not what was asked for",
                "Look at this machine's gpg.",
            )

    def stop(self) -> None:
        """Have whoever writes, or waits for it, fail now."""
        self._call.child.end()

    def end(self) -> None:
        """End it, whatever its state. Nobody may be writing any more. May be called twice."""
        self.stop()
        self._thread.shutdown()
        self._call.end()
        with contextlib.suppress(BrokenPipeError):  # harmless because it was ended
            self._stdin.close()

    def _drain(self) -> None:
        whole = False
        try:
            for chunk in self._call.child.chunks():
                if len(self._head) < HEAD_BYTES:
                    self._head += chunk[: HEAD_BYTES - len(self._head)]
                self._take(chunk)
            whole = True
        finally:
            if not whole:
                self._call.child.end()  # or whoever writes would wait for it for ever


class _NotThisOne(Exception):
    """A passphrase or key that does not open it."""


def _head(chunks: Iterable[bytes]) -> Iterator[bytes]:
    left = HEAD_BYTES
    for chunk in chunks:
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


def _envelope(head: bytes, name: str) -> Envelope:
    try:
        return envelope(head)
    except ValueError as error:
        raise Damaged(
            f"open {name}: it does not begin as an encrypted file does ({error})", "Is it encrypted at all?"
        ) from error


def _needed(found: Envelope) -> str:
    ways = [*(f"the key {key_id}" for key_id in found.key_ids), *(["a passphrase"] if found.passphrases else [])]
    return " or ".join(ways) or "nothing"
