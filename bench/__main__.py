"""Runs the chosen pairs alternately and prints median, minimum and maximum of the per-round ratios; exit 1 past a limit."""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.arena import Arena
from bench.pairs import PAIRS, Pair
from tests.faults.harness.places import Disk

VOLUME = {"aquad volume", "aquad volume size", "aquad peak", "aquad second", "aquad verify"}
"""What needs a round with the volume."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("ids", nargs="*", help=" ".join(pair.id for pair in PAIRS) + "; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="amount of data")
    parser.add_argument(
        "--on", metavar="KIND", help="a new file system of this kind (xfs, btrfs, ext4) in a file; root"
    )
    arguments = parser.parse_args()
    chosen = [pair for pair in PAIRS if not arguments.ids or pair.id in arguments.ids]
    with tempfile.TemporaryDirectory(prefix="aquad-bench-") as directory, contextlib.ExitStack() as disks:
        top = Path(directory)
        if arguments.on:
            top = disks.enter_context(Disk(arguments.on, None, top, size=60 << 30)).mountpoint
            device = subprocess.run(["findmnt", "-no", "SOURCE", top], check=True, capture_output=True, text=True)
            # or the image would be in the page cache, and nothing in it ever cold
            subprocess.run(["losetup", "--direct-io=on", device.stdout.strip()], check=True)
        rounds = measured_rounds(top, chosen, arguments)
    return report(chosen, rounds)


def measured_rounds(top: Path, chosen: list[Pair], arguments: argparse.Namespace) -> list[dict[str, float]]:
    wanted = {name for pair in chosen for name in (pair.a, pair.b)}
    databases, large = any("postgres" in name for name in wanted), any("large" in name for name in wanted)
    volume = bool(wanted & VOLUME)
    arena = Arena(top, arguments.scale, databases=databases, large=large)
    rounds: list[dict[str, float]] = []
    try:
        for _ in range(arguments.rounds):
            measured = arena.command_round()
            for needed, measure in (
                (volume, arena.volume_round),
                (large, arena.large_round),
                (databases, arena.postgres_round),
            ):
                if needed:
                    new = measure()
                    measured |= {**new, "aquad peak": max(new["aquad peak"], measured.get("aquad peak", 0))}
            rounds.append(measured)
    finally:
        arena.close()
    return rounds


def report(chosen: list[Pair], rounds: list[dict[str, float]]) -> int:
    """Print the table; return 1 when a median is past its limit."""
    print("| id | A / B | median | min-max | goal | fail | A median | B median |\n|---|---|---|---|---|---|---|---|")
    worst = 0
    for pair in chosen:
        if lacking := [name for name in (pair.a, pair.b) if name not in rounds[0]]:
            print(f"| {pair.id} | {pair.title} | not measured: {lacking[0].split()[0]} is not here |")
            continue
        ratios = [measured[pair.a] / measured[pair.b] for measured in rounds]
        median = statistics.median(ratios)
        mark = "" if median <= pair.goal else " (past the goal)" if median <= pair.fail else " **FAIL**"
        worst = max(worst, int(median > pair.fail))
        a, b = (statistics.median(measured[name] for measured in rounds) for name in (pair.a, pair.b))
        print(
            f"| {pair.id} | {pair.title} | {median:.3f}{mark} | {min(ratios):.3f}-{max(ratios):.3f} | {pair.goal} | {pair.fail} | {a:.2f} | {b:.2f} |"
        )
    return worst


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    sys.exit(main())
