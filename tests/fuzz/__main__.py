"""`python -m tests.fuzz all --runs 1000000`: feed junk to what reads hostile bytes; a table of counts, exit 1 on a crash.

Needs atheris (requirements/faults.txt). The corpus stays in .cache/fuzz/TARGET/corpus, so that the next run goes on
from there; what made a crash is .cache/fuzz/TARGET/crash-*.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "fuzz"
NAMES = ("manifest", "index", "headers", "settings", "envelope")


class Result(NamedTuple):
    target: str
    executions: int
    seconds: float
    crash: str


def fuzz(name, runs, seconds):
    directory = CACHE / name
    (directory / "corpus").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "work", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.worker",
        name,
        directory,
        f"-runs={runs}",
        f"-max_total_time={seconds}",
    ]
    started = time.monotonic()
    with (directory / "log").open("wb") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False).returncode
    text = (directory / "log").read_text(errors="replace")
    counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text)
    written = re.findall(r"Test unit written to (\S+)", text)
    crash = "" if code == 0 and counts else (written or [f"exit {code}, see {directory}/log"])[-1]
    return Result(name, int(counts[-1]) if counts else 0, time.monotonic() - started, crash)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of each target")
    parser.add_argument("--seconds", type=int, default=0, help="stop each target after so long; 0: never")
    options = parser.parse_args()
    print(f"{'target':10} {'executions':>10} {'seconds':>8} {'per second':>10}  crash", flush=True)
    crashed = False
    for name in NAMES if options.target == "all" else (options.target,):
        one = fuzz(name, options.runs, options.seconds)
        rate = one.executions / one.seconds
        print(f"{name:10} {one.executions:10} {one.seconds:8.0f} {rate:10.0f}  {one.crash or 'none'}", flush=True)
        crashed = crashed or bool(one.crash)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
