"""What the model test does to system calls, and what it sees on the disk with no help from aquad."""

import errno
import gzip
import io
import json
import os
import random
import signal
import stat
import tarfile
import time
from contextlib import contextmanager
from typing import NamedTuple

from aquad.storage import files
from tests.faults.test_fork_sweep import CountingOs

GRANULARITY_SECONDS = 0.012
"""Two changes of a file that are further apart have different times."""
KILL = 0


class QuickOs(CountingOs):
    """Does not wait for the disk: that a run survives a power cut is not the question here. `half`: a write that ends half done."""

    def __init__(self, at_call=lambda _name, _number: None, *, half=lambda _number: False):
        super().__init__(at_call)
        self._half = half

    def fsync(self, fd):
        self.number += 1
        self.at_call("fsync", self.number)

    def write(self, fd, stored):
        self.number += 1
        if self._half(self.number):
            os.write(fd, bytes(stored[: len(stored) // 2]))
        self.at_call("write", self.number)
        return os.write(fd, stored)


class Fault(NamedTuple):
    """At a call as far into a job as `percent` says: an errno, or the end of the process. `torn`: in the next write's middle."""

    percent: int
    code: int
    lasting: bool
    torn: bool

    def double(self, calls):
        """Stands for `os` in a job of about so many calls."""
        at, struck = 1 + self.percent * calls // 100, False

        def strike(name, number):
            nonlocal struck
            first = not struck and number >= at and (name == "write" or not self.torn)
            if first or (struck and self.lasting):
                struck = True
                if self.code == KILL:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(self.code, os.strerror(self.code))

        return QuickOs(strike, half=lambda number: self.torn and not struck and number >= at)

    def __repr__(self):
        name = "SIGKILL" if self.code == KILL else errno.errorcode[self.code]
        return f"<{name} at {self.percent}%{' and on' * self.lasting}{' in the middle' * self.torn}>"


@contextmanager
def standing_for_os(double):
    former, files.os = files.os, double
    try:
        yield double
    finally:
        files.os = former


def everything(root):
    """Path and bytes of every file of a repository, but those of drafts/ and state/, which come and go."""
    found = {}
    for above, directories, names in os.walk(root):
        if above == str(root):
            directories[:] = set(directories) - {"drafts", "state"}
        for name in names:
            path = os.path.join(above, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def drafts(root):
    """Each draft that is there, and the names that its names.json promises."""
    found = {}
    for name in os.listdir(root / "drafts"):
        try:
            found[name] = json.loads((root / "drafts" / name / "names.json").read_bytes())["names"]
        except FileNotFoundError:
            found[name] = []
    return found


def is_below(path, names):
    return any(path == name or path.startswith(f"{name}/") for name in names)


def tree_on_disk(top):
    """Kind, mode and content of everything in a directory."""
    found = {}
    for above, directories, names in os.walk(top):
        for name in [".", *names, *directories]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[os.path.relpath(path, top)] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[os.path.relpath(path, top)] = ("dir", stat.S_IMODE(status.st_mode))
            else:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = ("file", stat.S_IMODE(status.st_mode), file.read())
    return found


def tree_in_tar(stored):
    """The same, of a .tar.gz, as Python reads it."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(stored))) as archive:
        for member in archive:
            path = os.path.normpath(member.name)
            if member.issym():
                found[path] = ("link", member.linkname)
            elif member.isdir():
                found[path] = ("dir", member.mode)
            else:
                found[path] = ("file", member.mode, archive.extractfile(member).read())
    return found


def change(top, what, name, size, seed):
    """One change of a live directory, as whoever owns it makes them."""
    path, other = top / name, top / f"{name}.other"
    content = random.Random(seed).randbytes(size) if seed % 2 else b"text\n" * (size // 5)
    there = os.path.lexists(path)
    match what:
        case "write":
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        case "set back" if there:
            before = path.stat()
            path.write_bytes(random.Random(seed).randbytes(before.st_size))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "append" if there:
            with path.open("ab") as file:
                file.write(content)
        case "remove" if there:
            path.unlink()
        case "rename" if there:
            path.rename(other)
        case "mode" if there:
            path.chmod(0o640 if seed % 2 else 0o600)
        case "link" if there and not os.path.lexists(other):
            os.link(path, other)
        case "symlink" if not os.path.lexists(other):
            path.parent.mkdir(exist_ok=True)
            other.symlink_to(f"nowhere{seed}")
    if (top / "d").is_dir() and not os.listdir(top / "d"):
        (top / "d").rmdir()


def wait_for_file_times():
    """Until whatever is changed from now on gets another time than what was changed before."""
    time.sleep(GRANULARITY_SECONDS)
