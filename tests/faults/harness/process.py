"""aquad as a real process with its real children under strace: what it does to a repository, and a fault at any of it.

What bypasses the seam (`seam.py`) shows here: strace sees every system call of every thread and child.

How a chosen call is hit. strace counts `when=K` for each tracee, which is a thread, and for each system call, and aquad
writes and fsyncs each file in a thread of its own: `fsync:when=4` alone would hit the fourth one of every thread, wherever
that is. But it counts only what `-P PATH` lets through, and that is one exact path, no directory with what is below. So a
call is known by its name, its path, and its number among those of its thread on that path, and only that path is let
through. A path that bears the time of its run is not known before the run: every second of the next few is let through.

SIGKILL strikes before the call is made, and takes all threads. An error takes the place of the call; a lasting one also that
of every later call of that name on that path.

`python -m tests.faults.harness.process NOTES ...` runs `aquad ...`, and writes down what the seam saw.
"""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from aquad.cli import main
from tests.faults.harness.child import HANGS_SECONDS, Ended
from tests.faults.harness.seam import Fault, Seam
from tests.faults.harness.sweep import chosen, judge
from tests.servers import debian

CHECKOUT = Path(__file__).parents[3]
STARTS_SECONDS = 15
"""So long after it was started, at most, a run takes its name from the clock."""
EXITS = {0: "success", 3: "warning"}
TRACED = (
    "/^(open|openat2?|creat|write|writev|pwrite.*|sendfile.*|splice|copy_file_range|f?truncate.*|fallocate|ioctl"
    "|fsync|fdatasync|sync_file_range2?|rename.*|link|linkat|symlink.*|unlink.*|mkdir.*|mknod.*|rmdir"
    "|f?chmod.*|[fl]?chown.*|utime.*|futimesat|.*setxattr|.*removexattr)$"
)
INJECTED = "(INJECTED)"
QUICKLY = ["--seccomp-bpf"]
"""Stop the program only at these calls. Not to inject a signal: the kernel drops most that are sent at such a stop."""
CALL = re.compile(r"^(?P<tracee>\d+) +(?P<name>\w+)\((?P<arguments>.*?)(?: <unfinished \.\.\.>|\) += .*)?$")
PATH = re.compile(r'<(?P<descriptor>/[^>]*)>|"(?P<name>[^"]*)"')
ONLY_READS = {
    "open": re.compile(r"^(?!.*O_(CREAT|WRONLY|RDWR|TRUNC))"),
    "ioctl": re.compile(r"^(?!.*(FICLONE|FIDEDUPE|_SET))"),
}
CHANGES_THE_LAST = {"copy_file_range", "splice", "link", "symlink"}
"""Of the paths that they are given."""
STAMP = re.compile(r"\d{8}_\d{6}")


class Call(NamedTuple):
    """A system call that changes something below the repository. `kind`: as Python's `os` calls it.

    `number`: among those of its name, of its thread, and on its path.
    """

    name: str
    kind: str
    path: str
    number: int

    def __str__(self):
        return f"{self.name} {self.number} of {self.path}"


class Injection(NamedTuple):
    """`what` in the words of strace. `kinds`: of the calls that it may strike, or any."""

    what: str
    counted: str
    kinds: frozenset[str] = frozenset()
    code: int = 0
    lasting: bool = False

    def strikes(self, call):
        return not self.kinds or call.kind in self.kinds


KILL = Injection("signal=SIGKILL", "kills")
FAILS = Injection("error=EIO", "I/O errors", frozenset({"write", "copy_file_range", "fsync", "rename"}), errno.EIO)
NO_SPACE = Injection(
    "error=ENOSPC",
    "I/O errors",
    frozenset({"open", "write", "copy_file_range", "mkdir", "rename"}),
    errno.ENOSPC,
    lasting=True,
)


class Program:
    """`aquad` with arguments, which changes the repository at `root`. Skips the test, loudly, where nothing can be traced."""

    def __init__(self, root, scratch, *arguments):
        self._root, self._log, self._notes = Path(root).resolve(), scratch / "strace.log", scratch / "notes.json"
        self._arguments = [str(argument) for argument in arguments]
        self._strace, self._environment = tracer()

    def record(self):
        """The changes of a run without a fault, in their order, as calls to strike.

        The seam watches the same run. Raises AssertionError when strace sees anything of the repository that the seam does
        not, or the reverse: by call and path, each as often.
        """
        self._run([*QUICKLY, "-e", f"trace={TRACED}"], "tests.faults.harness.process", self._notes, expected=EXITS)
        calls = self._calls()
        assert calls, "strace saw nothing"
        traced = Counter((call.kind, call.path) for call in calls)
        noted = Counter((kind, path) for kind, path in json.loads(self._notes.read_text()) if self._is_below(path))
        assert not traced - noted, f"bypasses the seam: {traced - noted}"
        assert not noted - traced, f"never reaches the kernel: {noted - traced}"
        return calls

    def strike(self, call, injection) -> Ended:
        """Run with a fault at a call. `calls` is the number of calls that met it."""
        only = [word for path in _candidates(call.path) for word in ("-P", path)]
        when = f"when={call.number}{'+' if injection.lasting else ''}"
        options = [f"trace={call.name}", "-e", f"inject={call.name}:{injection.what}:{when}"]
        done = self._run([*(QUICKLY if injection.code else []), "-e", *options, *only], "aquad")
        assert "Traceback" not in done.stderr, done.stderr
        killed = done.returncode == -signal.SIGKILL
        struck = [call.kind for line in self._lines() if INJECTED in line]
        outcome = "" if killed else EXITS.get(done.returncode, "raised")
        return Ended(killed, len(struck) + killed, sorted({*struck}), outcome, done.stderr)

    def _run(self, options, module, *more, expected=None):
        """Nothing is left behind: strace ends when the last process has that it follows."""
        tracing = [*self._strace, "-f", "-y", "-s", "0", "-o", self._log, *options, "--"]
        command = [sys.executable, "-m", module, *more, *self._arguments]
        surroundings = {"cwd": CHECKOUT, "env": self._environment, "stdin": subprocess.DEVNULL}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}
        with subprocess.Popen([*tracing, *command], **pipes, **surroundings) as process:
            try:
                out, error = process.communicate(timeout=HANGS_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"{' '.join(self._arguments)} hangs, or left a process behind") from None
        done = subprocess.CompletedProcess(command, process.returncode, out, error)
        assert expected is None or done.returncode in expected, done
        return done

    def _is_below(self, path):
        return Path(path).is_relative_to(self._root)

    def _lines(self):
        return self._log.read_text(errors="surrogateescape").splitlines()

    def _calls(self):
        calls, numbers = [], Counter()
        for line in self._lines():
            match = CALL.match(line)
            if not match:
                continue
            tracee, name, arguments = match["tracee"], match["name"], match["arguments"]
            paths, kind = _paths(arguments), _kind(name, arguments)
            numbers.update((tracee, name, path) for path in {*paths})
            path = _changed(kind, paths, arguments)
            if path is not None and self._is_below(path):
                calls.append(Call(name, kind, path, numbers[tracee, name, path]))
        return calls


@functools.cache
def tracer():
    """The beginning of a command line, and its environment."""
    tool, environment = [shutil.which("strace")], {**os.environ}
    try:
        if tool == [None]:
            tool = [debian.file("strace", "strace"), "-E", "LD_LIBRARY_PATH"]  # which is not for what it traces
            environment |= debian.environment("strace")
    except debian.Unavailable as error:
        pytest.skip(f"NOT TESTED: no strace here, and it cannot be downloaded: {error}")
    tried = subprocess.run(
        [*tool, "-f", "-o", os.devnull, "true"], capture_output=True, text=True, env=environment, check=False
    )
    if tried.returncode:
        pytest.skip(f"NOT TESTED: strace cannot trace here: {tried.stderr.strip()}")
    return tool, environment


def sweep_program(program, place, laws, counts, limits):
    """Each injection of `limits` at every call that it is for; without AQUAD_FAULTS=all at so many of them as stand there.

    Returns how each ended.
    """
    place.fresh()
    calls = program.record()
    ended = []
    for injection, limit in limits.items():
        meant = [call for call in calls if injection.strikes(call)]
        for at in chosen(len(meant), limit=limit):
            call, top = meant[at - 1], place.fresh()
            one = program.strike(call, injection)
            ended.append(one)
            if one.calls:
                counts.fault(injection.counted)
            where = f"{injection.what} at {call}"
            if injection.code:
                judge(one, injection, counts, where)
            laws.check(top, one, counts, where)
    counts.check()
    return ended


def _kind(name, arguments):
    """`openat2` is an `open`, `renameat2` a `rename`."""
    if "AT_REMOVEDIR" in arguments:
        return "rmdir"
    return "open" if name == "creat" else re.sub(r"at2?$", "", name)


def _paths(arguments):
    """All that are named; what is relative to a descriptor after that descriptor's own, as `-P` lets both through."""
    paths, above = [], CHECKOUT
    for match in PATH.finditer(arguments.replace(f"AT_FDCWD<{CHECKOUT}>", "")):
        if match["descriptor"]:
            above = match["descriptor"].removesuffix(" (deleted)")
            paths.append(above)
        elif match["name"]:
            paths.append(os.path.join(above, match["name"]))
    return paths


def _changed(kind, paths, arguments):
    """The path that a call changes, if it does."""
    if not paths or (kind in ONLY_READS and ONLY_READS[kind].match(arguments)):
        return None
    return paths[-1] if kind in CHANGES_THE_LAST else paths[0]


def _candidates(path):
    """What it may be called when a run begins within the next seconds; the settings say UTC."""
    now = datetime.now(UTC)
    stamps = [f"{now + timedelta(seconds=number):%Y%m%d_%H%M%S}" for number in range(STARTS_SECONDS)]
    return {path, *(STAMP.sub(stamp, path) for stamp in stamps)}


class Noting(Fault):
    """Nothing goes wrong, but what changes something is written down."""

    def __init__(self):
        super().__init__(1, lasting=True)
        self.noted = []

    def shorten(self, name, arguments):
        match name, arguments:
            case "close", _:
                pass
            case "open", (path, flags, *_):
                if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                    self.noted.append((name, str(path)))
            case "copy_file_range", (_, fd, *_):
                self.noted.append((name, os.readlink(f"/proc/self/fd/{fd}")))
            case _, (int(fd), *_):
                self.noted.append((name, os.readlink(f"/proc/self/fd/{fd}")))
            case _, (path, *_):
                self.noted.append((name, str(path)))
        return arguments


def _note(path, arguments):
    noting = Noting()
    Seam(noting).install(live=False)
    sys.argv = ["aquad", *arguments]
    try:
        main()
    finally:
        Path(path).write_text(json.dumps(noting.noted))


if __name__ == "__main__":
    _note(sys.argv[1], sys.argv[2:])
