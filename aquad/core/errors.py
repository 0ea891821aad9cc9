"""Every error that aquad raises on purpose. Each answers: what was done, to what, what surprised, and what to do now.

AquadError                      exit 1
├── InvalidUse                  exit 2    the command was asked for something that makes no sense
│   └── ConfirmationNeeded                it would overwrite or delete, and nobody said yes
├── SettingsInvalid             exit 2    all bad settings at once
├── NoSuchBackup                exit 10   unknown id, ambiguous prefix
├── LockHeld                    exit 11   another run works on the repository
├── WrongKey                    exit 12   a passphrase or key that is missing, expired, or does not open it
├── Unreachable                 exit 13   a source or destination does not answer, or refuses the login
├── Damaged                     exit 14   stored bytes are not the bytes that were sealed
├── RepositoryRefused           exit 1    missing, foreign, newer, not mounted
├── RepositoryWriteFailed       exit 1    no space, read-only, I/O error, with the errno
├── SourceFailed                exit 1    what is to be protected could not be read whole
├── RestoreFailed               exit 1    the live data is as it was, or the message says what it is
└── ChildFailed                 exit 1    a child process ended badly, or stalled
"""

from __future__ import annotations

import errno
import os


class AquadError(Exception):
    """`message`: verb, object, the surprising value, lower case. `hint`: one sentence that says what to do."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class InvalidUse(AquadError):
    exit_code = 2


class ConfirmationNeeded(InvalidUse):
    pass


class SettingsInvalid(AquadError):
    exit_code = 2


class NoSuchBackup(AquadError):
    exit_code = 10


class LockHeld(AquadError):
    exit_code = 11
    retryable = True


class WrongKey(AquadError):
    exit_code = 12


class Unreachable(AquadError):
    exit_code = 13
    retryable = True


class Damaged(AquadError):
    exit_code = 14


class RepositoryRefused(AquadError):
    pass


class RepositoryWriteFailed(AquadError):
    """A write, fsync, rename or close in the repository failed. Nothing half-written is ever under a final name."""

    def __init__(self, verb: str, path: str, error: OSError) -> None:
        hints = {
            errno.ENOSPC: "The file system is full: free space or move the repository.",
            errno.EDQUOT: "The quota is used up: raise it or free space.",
            errno.EROFS: "The file system is mounted read-only: mount it writable.",
            errno.EIO: "The disk reports an I/O error: look into the kernel's log before trusting it again.",
            errno.EACCES: "Run aquad as the owner of the repository.",
            errno.EMFILE: "Raise the limit of open files (ulimit -n).",
        }
        super().__init__(f"{verb} {path}: {os.strerror(error.errno or 0)}", hints.get(error.errno or 0, ""))
        self.errno = error.errno


class SourceFailed(AquadError):
    retryable = True


class RestoreFailed(AquadError):
    pass


class ChildFailed(AquadError):
    retryable = True


class Terminated(BaseException):
    """SIGTERM arrived: unwound like KeyboardInterrupt, so that children end and the run is recorded as aborted."""


class DeadlinePassed(Terminated):
    """The run took longer than it may: unwound like Terminated, and recorded as failed."""
