"""Child processes: argument lists, both ends of every pipe, and an exit status that is always looked at.

The owner of subprocess. Children get their own process group, die with the thread that started them (PDEATHSIG, so
start them from the main thread only), and inherit the lock descriptors of the run, so that a child that outlives its
parent keeps the repository locked. Nothing here knows what the children do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from typing import IO, TYPE_CHECKING, Self

from aquad.core.errors import ChildFailed
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

PIPE_BYTES = 1 << 20
PIPE_FILLS_SECONDS = 0.001
"""Wait so long after a small read: few big reads cost far less than many small ones, and the pipe holds 1 MiB."""
STDERR_KEPT_BYTES = 8 << 10
TERMINATION_GRACE_SECONDS = 5.0


class Child:
    """A running child. Use it as a context manager: leaving the block ends it, whatever happened.

    `stall_seconds`: no byte on stdout for so long ends it. `deadline`: a value of time.monotonic().
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        keep_fds: Iterable[int] = (),
        stdin: bool = False,
        stall_seconds: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.name = os.path.basename(argv[0])
        self.argv = list(argv)
        self._stall_seconds = stall_seconds
        self._deadline = deadline
        self._stderr = bytearray()
        guard = shutil.which("setpriv")
        prefix = [guard, "--pdeathsig", "KILL", "--"] if guard else []
        try:
            self._process = subprocess.Popen(
                [*prefix, *argv],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **environment},
                pass_fds=tuple(keep_fds),
                process_group=0,
                bufsize=0,
            )
        except OSError as error:
            raise ChildFailed(f"start {self.name}: {error.strerror}", "Is it installed and executable?") from error
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # harmless because a smaller pipe is only slower
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def chunks(self) -> Iterator[bytes]:
        """Yield stdout to its end, then check the exit status. Raises ChildFailed: what came before is worthless then."""
        yield from self._exchange(None)
        self.check()

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Write `chunks` to stdin and yield stdout, then check the exit status. Raises ChildFailed, as `chunks` does."""
        yield from self._exchange(iter(chunks))
        self.check()

    def feed(self, chunks: Iterable[bytes]) -> bytes:
        """`through` for small outputs."""
        return b"".join(self.through(chunks))

    def take_stdin(self) -> IO[bytes]:
        """Hand over stdin to be written, and closed, by another thread than the one that reads `chunks`."""
        stdin, self._process.stdin = self._process.stdin, None
        assert stdin is not None  # noqa: S101 - asked for when it was started
        return stdin

    def check(self) -> None:
        """Wait for the end and raise ChildFailed unless the exit status is 0."""
        status = self._wait()
        if status:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            raise ChildFailed(f"run {self.name}: {how}: {self.stderr or 'it said nothing'}")

    @property
    def stderr(self) -> str:
        """The last 8 KiB of stderr, escaped, lines joined by ' | '."""
        lines = bytes(self._stderr).decode("utf-8", "replace").strip().splitlines()
        return " | ".join(escaped(line) for line in lines)

    def last_words(self) -> str:
        """What a child that has ended by itself left on stderr, without waiting; escaped."""
        if self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)
            self._stderr += self._process.stderr.read(STDERR_KEPT_BYTES) or b""
        return self.stderr

    def end(self, grace_seconds: float = TERMINATION_GRACE_SECONDS) -> None:
        """TERM the process group, KILL it after a grace period, reap it. May be called twice."""
        process = self._process
        if process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # harmless because the child is gone
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # harmless because it just ended
            os.killpg(self._process.pid, number)

    def _wait(self) -> int:
        while True:
            try:
                return self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._watch(time.monotonic(), stall=False)

    def _watch(self, last_byte_at: float, *, stall: bool = True) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            self.end()
            raise ChildFailed(
                f"run {self.name}: not done at the run's deadline", "Raise limits.deadline or look why it is slow."
            )
        if stall and self._stall_seconds is not None and now - last_byte_at > self._stall_seconds:
            self.end(grace_seconds=0)  # it would wait for whom it waited for
            raise ChildFailed(
                f"run {self.name}: no byte for {self._stall_seconds:g} s", "Is the server or the network stuck?"
            )

    def _exchange(self, source: Iterator[bytes] | None) -> Iterator[bytes]:
        """Move bytes both ways until stdout and stderr have ended."""
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdout is not None and stderr is not None  # noqa: S101, PT018 - both are pipes, made above
        pending: memoryview | None = memoryview(b"")
        if stdin is not None:
            os.set_blocking(stdin.fileno(), False)
        reading = {stdout.fileno(), stderr.fileno()}
        last_byte_at = time.monotonic()
        while reading:
            ready, writable, _ = select.select(list(reading), [stdin] if stdin else [], [], 0.5)
            if stdin is not None and writable:
                pending = pending or memoryview(next(source, b"") if source else b"")
                pending = _written(stdin.fileno(), pending) if pending else None
                if pending is None:  # all is written, or the child reads no more: its exit status tells
                    stdin.close()
                    stdin, pending = None, memoryview(b"")
            for fd in ready:
                block = os.read(fd, PIPE_BYTES)
                if not block:
                    reading.discard(fd)
                elif fd == stderr.fileno():
                    self._stderr = (self._stderr + block)[-STDERR_KEPT_BYTES:]
                else:
                    yield block
                    last_byte_at = time.monotonic()  # only now: whoever takes the bytes may be slow
                    if stdin is None and len(block) < PIPE_BYTES // 8:
                        time.sleep(PIPE_FILLS_SECONDS)
            self._watch(last_byte_at)


def _written(fd: int, pending: memoryview) -> memoryview | None:
    """Write what the pipe takes and return the rest; None when the other end is closed."""
    try:
        return pending[os.write(fd, pending) :]
    except BlockingIOError:
        return pending
    except BrokenPipeError:
        return None


def run(
    argv: Sequence[str], *, environment: Mapping[str, str], keep_fds: Iterable[int] = (), deadline: float | None = None
) -> bytes:
    """Run a short child to its end and return its stdout. Raises ChildFailed."""
    with Child(argv, environment=environment, keep_fds=keep_fds, deadline=deadline) as child:
        return b"".join(child.chunks())


class Supervised:
    """A child that an event loop looks after: in its own process group, with our stdout and stderr, and a pipe for its reports.

    The option `--report-fd N` is appended to `argv`. Bytes in `argv` reach the child as the path of a file in memory, which
    holds them. `pidfd` becomes readable when it has ended, `report_fd` when it says something. Start it from the main thread:
    it is killed when that ends.
    """

    def __init__(self, argv: Sequence[str | bytes]) -> None:
        self.report_fd, report_to = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        guard = shutil.which("setpriv")
        prefix = [guard, "--pdeathsig", "KILL", "--"] if guard else []
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, report_to)
            passed, words = [report_to], []
            for word in argv:
                if isinstance(word, bytes):
                    passed.append(os.memfd_create("given"))
                    ours.callback(os.close, passed[-1])
                    _pwrite(passed[-1], word)
                    words.append(f"/dev/fd/{passed[-1]}")
                else:
                    words.append(word)
            try:
                self._process = subprocess.Popen(
                    [*prefix, *words, "--report-fd", str(report_to)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=passed,
                    process_group=0,
                )
            except OSError as error:
                os.close(self.report_fd)
                raise ChildFailed(
                    f"start {words[0]}: {error.strerror}", "Look at the limits of processes and memory."
                ) from error
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit status; negative for a signal; None while it runs."""
        return self._process.poll()

    def reports(self) -> bytes:
        """What it has said since."""
        said = b""
        with contextlib.suppress(BlockingIOError):  # harmless because that is all for now
            while block := os.read(self.report_fd, PIPE_BYTES):
                said += block
        return said

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # harmless because it just ended
                os.killpg(self.pid, number)

    def close(self) -> None:
        os.close(self.report_fd)
        os.close(self.pidfd)


def _pwrite(fd: int, content: bytes) -> None:
    """Write all of it, and stay at its beginning."""
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done:], done)


def reap(known: Collection[int]) -> None:
    """As process 1 of a container: wait for orphans that became ours. Children that are `known` are left to whoever looks after
    them.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, 0)
