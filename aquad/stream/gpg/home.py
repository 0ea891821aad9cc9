"""A GNUPGHOME of our own: private, on a short path, and gone afterwards with the agent that may live in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aquad.core.errors import ChildFailed
from aquad.core.process import Child, run

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "aquad-gpg-"
PLACES = "/run/aquad", "/dev/shm"  # noqa: S108 - a name is made with mkdtemp
"""Memory, where there is one to write to: a secret key never comes to a disk. A socket's path may have 107 bytes (unix(7))."""
STATUS_BYTES = 64 << 10
JUST_MADE_SECONDS = 60
"""A home that is not locked yet may be one whose lock comes at the next instruction."""
OPTIONS = (
    "--batch",
    "--no-tty",
    "--no-options",
    "--quiet",
    "--no-random-seed-file",
    "--no-permission-warning",
    "--disable-dirmngr",
    "--no-auto-key-locate",
    "--no-symkey-cache",
    "--pinentry-mode=loopback",
    "--trust-model=always",  # the settings name full fingerprints: they are the trust
    "--with-colons",
    "--fixed-list-mode",
)


class Home:
    """Use it as a context manager. What runs that were killed left is removed when the next one is made."""

    def __init__(self) -> None:
        above = next((place for place in PLACES if os.access(place, os.W_OK | os.X_OK)), tempfile.gettempdir())
        _sweep(Path(above))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
        self._held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the agent and remove everything. May be called twice."""
        if self._held < 0:
            return
        if (self.path / "S.gpg-agent").exists():
            with contextlib.suppress(ChildFailed):  # harmless because an agent ends when its home is gone
                run(["gpgconf", "--homedir", str(self.path), "--kill", "all"], environment={})
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)
        self._held = -1

    def start(self, arguments: Sequence[str], *, passphrase: bytes | None = None) -> Call:
        """Start gpg with our options. Belongs to the main thread. Raises ChildFailed when there is no gpg."""
        return Call(self.path, arguments, passphrase)


class Call:
    """One running gpg, and what it says on its status descriptor (doc/DETAILS of GnuPG)."""

    def __init__(self, home: Path, arguments: Sequence[str], passphrase: bytes | None) -> None:
        # Files in memory, not pipes: nobody has to read one side while gpg waits on the other.
        self._status = os.memfd_create("status", os.MFD_CLOEXEC)
        secret = os.memfd_create("passphrase", os.MFD_CLOEXEC)
        try:
            os.write(secret, passphrase or b"")
            os.lseek(secret, 0, os.SEEK_SET)
            fds = [self._status] if passphrase is None else [self._status, secret]
            given = [] if passphrase is None else [f"--passphrase-fd={secret}"]
            self.child = Child(
                ["gpg", *OPTIONS, f"--status-fd={self._status}", *given, *arguments],
                environment={"GNUPGHOME": str(home)},
                keep_fds=fds,
                stdin=True,
            )
        except ChildFailed:
            os.close(self._status)
            raise
        finally:
            os.close(secret)

    def status(self) -> list[str]:
        """The last status lines, without their mark, once it has ended."""
        size = os.fstat(self._status).st_size
        text = os.pread(self._status, STATUS_BYTES, max(0, size - STATUS_BYTES)).decode("utf-8", "replace")
        return [line.removeprefix("[GNUPG:] ") for line in text.splitlines() if line.startswith("[GNUPG:] ")]

    def said(self, *keywords: str) -> bool:
        return any(line.split(" ")[0] in keywords for line in self.status())

    def end(self) -> None:
        """End the child if it still runs. May be called twice."""
        self.child.end()
        if self._status >= 0:
            os.close(self._status)
            self._status = -1


def _sweep(above: Path) -> None:
    """Remove homes whose process died: nobody holds their lock any more. An agent ends when its home is gone."""
    for left in above.glob(f"{PREFIX}*"):
        try:
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # harmless because it is somebody else's, or gone meanwhile
            continue
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > JUST_MADE_SECONDS:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # harmless because it is in use
            pass
        finally:
            os.close(fd)


def version() -> str:
    """First line of `gpg --version`. Raises ChildFailed when there is none."""
    return run(["gpg", "--version"], environment={}).decode("utf-8", "replace").splitlines()[0]
