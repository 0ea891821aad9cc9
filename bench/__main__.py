"""Runs the chosen pairs alternately and prints median, minimum and maximum of the per-round ratios; exit 1 past a limit.

Every A is the whole `aquad run full` as a process: start, locks, journal, fsync, reading back included.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.servers.postgres import Server

AQUAD = [sys.executable, "-m", "aquad"]


class Pair(NamedTuple):
    id: str
    title: str
    goal: float
    fail: float
    a: Callable[[], float]
    b: Callable[[], float]


class Arena:
    """The data, made once from a seed, and a fresh repository for each run of A."""

    def __init__(self, top: Path, scale: float, *, databases: bool) -> None:
        self.top, self.scale = top, scale
        self.volume = top / "volume"
        self.server = Server(16).start() if databases else None
        self.settings = top / "settings.toml"
        text = f'[repository]\npath = "{top}/backups"\nminimum_free = "1%"\n[encryption]\nmode = "off"\n[volumes.v]\npath = "{self.volume}"\n'
        if self.server:
            text += f'[postgres]\nhost = "127.0.0.1"\nport = {self.server.port}\npassword_file = "{self.server.password_file}"\nbin_dir = "{self.server.bin}"\n'
            self._fill_database()
        self.settings.write_text(text)
        self._fill_volume()
        self.stored = 0
        self.peak_bytes = 0

    def _fill_database(self) -> None:
        self.server.psql("CREATE DATABASE bench")
        rows = int(2_500_000 * self.scale)
        self.server.psql(
            f"CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS token, 'customer ' || i % 9973 AS customer, (i * 37 % 100000) / 100.0 AS amount,"
            f" timestamptz '2024-01-01' + i * interval '7 s' AS at, jsonb_build_object('n', i, 'state', CASE i % 3 WHEN 0 THEN 'open' ELSE 'closed' END) AS doc"
            f" FROM generate_series(1, {rows}) i",
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

    def aquad(self, component: str) -> float:
        shutil.rmtree(self.top / "backups", ignore_errors=True)
        subprocess.run([*AQUAD, "-c", self.settings, "init"], check=True, capture_output=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        seconds = timed([*AQUAD, "-c", self.settings, "run", "full", "--component", component])
        self.peak_bytes = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
        pattern = "postgres_backup*" if component == "postgres" else "volumes_*/*.tar.gz"
        self.stored = sum(path.stat().st_size for path in (self.top / "backups").glob(pattern))
        return seconds

    def shell(self, command: str) -> float:
        return timed(["bash", "-o", "pipefail", "-c", command])

    def tool(self, name: str, arguments: str) -> str:
        return f"PGPASSWORD=$(cat {self.server.password_file}) {self.server.bin}/{name} -h 127.0.0.1 -p {self.server.port} -U postgres {arguments}"

    def close(self) -> None:
        if self.server:
            self.server.close()


def timed(command: list) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def pairs(arena: Arena) -> list[Pair]:
    out = arena.top / "out"

    def size_of(command: str) -> Callable[[], float]:
        def measure() -> float:
            arena.shell(command)
            return out.stat().st_size

        return measure

    def stored(component: str) -> Callable[[], float]:
        def measure() -> float:
            arena.aquad(component)
            return arena.stored

        return measure

    def peak() -> float:
        script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        shutil.rmtree(arena.top / "backups", ignore_errors=True)
        subprocess.run([*AQUAD, "-c", arena.settings, "init"], check=True, capture_output=True)
        command = [
            sys.executable,
            "-c",
            script,
            *AQUAD,
            "-c",
            str(arena.settings),
            "run",
            "full",
            "--component",
            "v",
            *(["--component", "postgres"] if arena.server else []),
        ]
        return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1000

    tar = f"tar -czf {out} -C {arena.volume} ."
    cat = f"find {arena.volume} -type f -print0 | xargs -0 cat > /dev/null; cat {arena.top}/backups/volumes_*/v.tar.gz > {out}; sync {out}"
    all_pairs = [
        Pair("V1", "first volume backup / tar -czf", 0.08, 0.15, lambda: arena.aquad("v"), lambda: arena.shell(tar)),
        Pair(
            "V2",
            "first volume backup / (cat + write the output)",
            2.0,
            3.0,
            lambda: arena.aquad("v"),
            lambda: arena.shell(cat),
        ),
        Pair("V6", "size of the .tar.gz / tar -czf", 1.06, 1.10, stored("v"), size_of(tar)),
        Pair(
            "C1",
            "aquad --help / python -c pass",
            5,
            7,
            lambda: timed([*AQUAD, "--help"]),
            lambda: timed([sys.executable, "-c", "pass"]),
        ),
        Pair("C3", "peak memory of a run in MB / 1", 100, 150, peak, lambda: 1.0),
    ]
    if arena.server:
        dumpall, dump = arena.tool("pg_dumpall", ""), arena.tool("pg_dump", "-d bench")
        all_pairs += [
            Pair(
                "D1",
                "PostgreSQL dump / pg_dumpall | gzip",
                0.25,
                0.40,
                lambda: arena.aquad("postgres"),
                lambda: arena.shell(f"{dumpall} | gzip > {out}"),
            ),
            Pair(
                "D2",
                "PostgreSQL dump / pg_dump > /dev/null",
                1.15,
                1.40,
                lambda: arena.aquad("postgres"),
                lambda: arena.shell(f"{dump} > /dev/null"),
            ),
            Pair(
                "D3",
                "size of the .sql.gz / gzip -6",
                1.15,
                1.20,
                stored("postgres"),
                size_of(f"{dumpall} | gzip -6 > {out}"),
            ),
        ]
    return all_pairs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("ids", nargs="*", help="D1 D2 D3 V1 V2 V6 C1 C3; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="amount of data")
    arguments = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="aquad-bench-"))
    arena = Arena(
        top, arguments.scale, databases=not arguments.ids or any(one.startswith("D") for one in arguments.ids)
    )
    worst = 0
    try:
        print(
            "| id | A / B | median | min-max | goal | fail | A median | B median |\n|---|---|---|---|---|---|---|---|\n",
            end="",
        )
        for pair in pairs(arena):
            if arguments.ids and pair.id not in arguments.ids:
                continue
            rounds = [(pair.a(), pair.b()) for _ in range(arguments.rounds)]
            ratios = [a / b for a, b in rounds]
            median = statistics.median(ratios)
            mark = "" if median <= pair.goal else " (past the goal)" if median <= pair.fail else " **FAIL**"
            worst = max(worst, median > pair.fail)
            a, b = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(
                f"| {pair.id} | {pair.title} | {median:.3f}{mark} | {min(ratios):.3f}-{max(ratios):.3f} | {pair.goal} | {pair.fail} | {a:.2f} | {b:.2f} |",
                flush=True,
            )
    finally:
        arena.close()
        shutil.rmtree(top)
    return worst


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    sys.exit(main())
