"""The double of `os` in `aquad.storage.files`, and an audit hook for what sources change outside of the repository.

Both number the calls that change a disk, from 1 on; at one of them, or from it on, a fault strikes. Audit hooks stay for
good, so this belongs into a child process (`child.py`).
"""

import fcntl
import os
import signal
import struct
import sys
import threading

from aquad.storage import files

CHANGING = {"open", "write", "ftruncate", "copy_file_range", "fsync", "close", "rename", "mkdir", "unlink", "rmdir"}
AUDITED = {f"os.{name}" for name in ("rename", "mkdir", "remove", "rmdir", "link", "symlink", "truncate")} | {
    f"os.{name}" for name in ("chmod", "chown", "utime", "setxattr")
}
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Fault:
    """Nothing goes wrong, but is counted. `lasting`: at the call `at` and at all that follow."""

    def __init__(self, at=0, *, lasting=False):
        self.at, self.lasting = at, lasting

    def strikes(self, number):
        return number == self.at or (self.lasting and 0 < self.at < number)

    def shorten(self, name, arguments):
        """Return what becomes of the arguments of the call."""
        return arguments

    def strike(self, name):
        """Before the call, after `shorten`."""

    def end(self):
        """After the action has ended and was reported."""


class Kill(Fault):
    def strike(self, name):
        os.kill(os.getpid(), signal.SIGKILL)


class Tear(Kill):
    """Dies in the middle of a write."""

    def shorten(self, name, arguments):
        if name == "write":
            fd, content = arguments
            os.write(fd, content[: len(content) // 2])
        return arguments


class Fail(Fault):
    def __init__(self, at, code, *, lasting=False):
        super().__init__(at, lasting=lasting)
        self.code = code

    def strike(self, name):
        raise OSError(self.code, os.strerror(self.code))


class Shorten(Fault):
    """The disk takes half of what it is given, and says so."""

    def shorten(self, name, arguments):
        if name == "write":
            fd, content = arguments
            return fd, content[: max(1, len(content) // 2)]
        if name == "copy_file_range":
            source, fd, count, offset = arguments
            return source, fd, max(1, count // 2), offset
        return arguments


class Cut(Fault):
    """The power goes: what the disk has not got is lost.

    `neighbour`: somebody else had just brought a file of his own to the disk, and with it every change of a name until then,
    but not what is in the files.
    """

    def __init__(self, at, top, *, neighbour=False):
        super().__init__(at)
        self.top, self.neighbour = top, neighbour

    def strike(self, name):
        if self.neighbour:
            fd = os.open(self.top / "neighbour", os.O_CREAT | os.O_WRONLY, 0o600)
            os.write(fd, b"x")
            os.fsync(fd)
        fcntl.ioctl(os.open(self.top, os.O_RDONLY), FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.kill(os.getpid(), signal.SIGKILL)

    def end(self):
        self.strike("the end")


class Seam:
    """Stands for the module `os` in `aquad.storage.files`."""

    def __init__(self, fault):
        self.fault, self.calls, self.struck = fault, 0, set()
        self._lock, self._here = threading.Lock(), threading.local()

    def install(self, *, live):
        """`live`: also count what Python's audit events show, outside of the repository."""
        files.os = self
        if live:
            sys.addaudithook(self._audit)

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CHANGING:
            return function

        def counted(*arguments, **keywords):
            struck = self._count()
            self._here.inside = True
            try:
                if struck:
                    self.struck.add(name)
                    arguments = self.fault.shorten(name, arguments)
                    self._strike(name, function, arguments)
                return function(*arguments, **keywords)
            finally:
                self._here.inside = False

        return counted

    def _count(self):
        with self._lock:
            self.calls += 1
            return self.fault.strikes(self.calls)

    def _strike(self, name, function, arguments):
        try:
            self.fault.strike(name)
        except OSError:
            if name == "close":
                function(*arguments)  # Linux frees the descriptor whatever close() reports
            raise

    def _audit(self, event, arguments):
        if getattr(self._here, "inside", False):
            return
        makes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if (makes or event in AUDITED) and self._count():
            self._here.inside = True
            try:
                self.fault.strike(event)
            finally:
                self._here.inside = False
