"""The data, and what one round measures.

Every A is the whole `aquad run full` as a process: start, locks, journal, fsync, reading back included.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.servers import debian
from tests.servers.postgres import Server

AQUAD = [sys.executable, "-m", "aquad"]
MEASURE = """
import resource, subprocess, sys, time
started = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Seconds, and the peak memory in KiB of the largest process of the run."""


class Restic(NamedTuple):
    """restic, which always encrypts, with a repository and a cache of its own."""

    command: str
    environment: dict[str, str]

    @classmethod
    def at(cls, repository: Path, passphrase: Path) -> "Restic | None":
        """The installed one, else Debian's; None where neither is."""
        try:
            command = shutil.which("restic") or str(debian.file("restic", "restic"))
        except debian.Unavailable:
            return None
        own = {
            "RESTIC_REPOSITORY": repository,
            "RESTIC_PASSWORD_FILE": passphrase,
            "RESTIC_CACHE_DIR": f"{repository}.cache",
        }
        return cls(command, {**os.environ, **{name: str(value) for name, value in own.items()}})

    def run(self, *arguments: str | Path) -> float:
        """Seconds that it takes."""
        started = time.monotonic()
        subprocess.run([self.command, *arguments], env=self.environment, check=True, capture_output=True)
        return time.monotonic() - started


class Arena:
    """The data, made once from a seed, and a fresh repository for each run of A."""

    def __init__(self, top: Path, scale: float, *, databases: bool, large: bool) -> None:
        self.top, self.scale = top, scale
        self.volume, self.large = top / "volume", top / "large" if large else None
        self.server = Server(16).start() if databases else None
        self.settings = top / "settings.toml"
        self.passphrase = top / "passphrase"
        self.passphrase.write_text("bench")
        self.passphrase.chmod(0o600)
        text = f'[repository]\npath = "{top}/backups"\nminimum_free = "1%"\n[encryption]\npassphrase_file = "{self.passphrase}"\n[volumes.v]\npath = "{self.volume}"\n'
        if self.large:
            text += f'[volumes.large]\npath = "{self.large}"\n'
        if self.server:
            text += f'[postgres]\nhost = "127.0.0.1"\nport = {self.server.port}\npassword_file = "{self.server.password_file}"\nbin_dir = "{self.server.bin}"\n'
            self._fill_database()
        self.settings.write_text(text)
        self._fill_volume()
        if self.large:
            for number in range(8):  # no window of any deflate reaches from one to the next
                shutil.copytree(self.volume, self.large / str(number))
        self.restic = Restic.at(top / "restic", self.passphrase)
        if self.restic:
            self.restic.run("init")
            self.restic.run("backup", self.volume)
            if self.large:
                self.restic.run("backup", self.large)

    def _fill_database(self) -> None:
        """Narrow rows, whose conversion to text is most of the server's work, and documents, where it is the bytes."""
        self.server.psql("CREATE DATABASE bench")
        rows, documents = int(8_000_000 * self.scale), int(400_000 * self.scale)
        self.server.psql(
            f"CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS token, 'customer ' || i % 9973 AS customer, (i * 37 % 100000) / 100.0 AS amount,"
            f" timestamptz '2024-01-01' + i * interval '7 s' AS at, jsonb_build_object('n', i, 'state', CASE i % 3 WHEN 0 THEN 'open' ELSE 'closed' END) AS doc"
            f" FROM generate_series(1, {rows}) i;"
            "CREATE TABLE words AS SELECT i, left(md5(i::text), 3 + i % 7) AS word FROM generate_series(0, 4999) i; CREATE INDEX ON words (i);"
            "CREATE TABLE events AS SELECT i AS id, 'crew ' || i % 977 AS crew,"
            " (SELECT string_agg(word, ' ' ORDER BY hashint4(w.i + n.i)) FROM words w WHERE w.i BETWEEN n.i * 37 % 4600 AND n.i * 37 % 4600 + 300) AS report"
            f" FROM generate_series(1, {documents}) n(i)",
            "bench",
        )

    def _fill_volume(self) -> None:
        """Half text like logs, a quarter incompressible, a quarter of small files."""
        rng = random.Random(1)
        self.volume.mkdir()
        words = [rng.randbytes(4).hex() for _ in range(5000)]
        for number in range(int(12 * self.scale)):
            with (self.volume / f"log{number}").open("w") as file:
                for _ in range(220_000):
                    file.write(f"2024-08-02T02:00:{rng.randrange(60):02} {' '.join(rng.choices(words, k=12))}\n")
        for number in range(int(5 * self.scale)):
            (self.volume / f"blob{number}").write_bytes(rng.randbytes(32 << 20))
        (self.volume / "small").mkdir()
        for number in range(int(8000 * self.scale)):
            (self.volume / "small" / f"{number:06}").write_text(
                " ".join(rng.choices(words, k=rng.randrange(100, 3000)))
            )

    def init(self, encryption: str = "off") -> None:
        shutil.rmtree(self.top / "backups", ignore_errors=True)
        command = [*AQUAD, "-c", self.settings, "init", "--encryption", encryption]
        subprocess.run(command, check=True, capture_output=True)

    def aquad(self, component: str, pattern: str, encryption: str = "off") -> tuple[float, int, float]:
        """Take a first backup; return seconds, stored bytes, peak memory in MB."""
        self.init(encryption)
        seconds, peak = self.measured("run", "full", "--component", component)
        stored = sum(path.stat().st_size for path in (self.top / "backups").glob(pattern))
        return seconds, stored, peak

    def measured(self, *arguments: str) -> tuple[float, float]:
        """Seconds, and peak memory in MB, of a command that finds nothing in the page cache."""
        self._cold()
        command = [sys.executable, "-c", MEASURE, *AQUAD, "-c", self.settings, *arguments]
        seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return float(seconds), int(peak) / 1000

    def shell(self, command: str) -> float:
        self._cold()
        return timed(["bash", "-o", "pipefail", "-c", command])

    def tool(self, name: str, arguments: str = "") -> str:
        return f"PGPASSWORD=$(cat {self.server.password_file}) {self.server.bin}/{name} -h 127.0.0.1 -p {self.server.port} -U postgres {arguments}"

    def _cold(self) -> None:
        """Take the volume out of the page cache: a nightly backup does not find it there."""
        os.sync()
        tops = [self.volume, self.top / "backups", self.top / "restic", *([self.large] if self.large else [])]
        for path in (path for top in tops for path in top.rglob("*")):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def volume_round(self) -> dict[str, float]:
        out = self.top / "out"
        seconds, stored, peak = self.aquad("v", "volumes_*/v.tar.gz")
        verified, _ = self.measured("verify", "latest", "--level", "content")
        gunzip = self.shell(
            f"sha256sum {self.top}/backups/volumes_*/v.tar.gz && gunzip -t {self.top}/backups/volumes_*/v.tar.gz"
        )
        self._change(self.volume)
        second, _ = self.measured("run", "full", "--component", "v")
        restic = {}
        if self.restic:
            self._cold()
            restic["restic second"] = self.restic.run("backup", self.volume)
        archive = max(self.top.glob("backups/volumes_*/v.tar.gz"))
        copied = self.shell(
            f"cp --reflink=auto {archive} {out}; sync {out}; dd if={out} iflag=nocache count=0 status=none; cat {out} > /dev/null"
        )
        out.unlink()
        tar = self.shell(f"tar -czf {out} -C {self.volume} .")
        return {
            "aquad volume": seconds,
            "aquad volume size": stored,
            "aquad volume peak": peak,
            "aquad verify": verified,
            "gunzip": gunzip,
            "aquad second": second,
            "aquad peak": peak,
            "one": 1.0,
            "cp": copied,
            "tar": tar,
            "tar size": out.stat().st_size,
            **restic,
        }

    def _change(self, volume: Path) -> None:
        """Two per cent: small files, and as many bytes in one piece."""
        small = sorted((volume / "small").iterdir())
        for path in small[::50]:
            path.write_bytes(os.urandom(path.stat().st_size))
        (volume / "changed").write_bytes(os.urandom(sum(path.stat().st_size for path in small) // 10))

    def large_round(self) -> dict[str, float]:
        out = self.top / "out"
        seconds, _, peak = self.aquad("large", "volumes_*/large.tar.gz")
        cat = self.shell(
            f"find {self.large} -type f -print0 | xargs -0 cat > /dev/null; cat {self.top}/backups/volumes_*/large.tar.gz > {out}; sync {out}"
        )
        measured = {"aquad large": seconds, "aquad large peak": peak, "aquad peak": peak, "one": 1.0, "cat large": cat}
        for part in self.large.iterdir():
            self._change(part)
        measured["aquad large second"], _ = self.measured("run", "full", "--component", "large")
        if self.restic:
            self._cold()
            measured["restic large second"] = self.restic.run("backup", self.large)
        return measured

    def postgres_round(self) -> dict[str, float]:
        out = self.top / "out"
        seconds, stored, peak = self.aquad("postgres", "postgres_backup*")
        encrypted, _, _ = self.aquad("postgres", "postgres_backup*", "passphrase")
        dumpall = self.shell(f"{self.tool('pg_dumpall')} | gzip -6 > {out}")
        return {
            "aquad postgres": seconds,
            "aquad postgres size": stored,
            "aquad postgres encrypted": encrypted,
            "aquad peak": peak,
            "one": 1.0,
            "pg_dumpall": dumpall,
            "pg_dumpall size": out.stat().st_size,
            "pg_dump": self.shell(f"{self.tool('pg_dump', '-d bench')} > /dev/null"),
        }

    def command_round(self) -> dict[str, float]:
        return {"aquad --help": timed([*AQUAD, "--help"]), "python": timed([sys.executable, "-c", "pass"])}

    def close(self) -> None:
        if self.server:
            self.server.close()


def timed(command: list) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started
