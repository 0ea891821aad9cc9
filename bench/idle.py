"""C2: what the daemon costs while it has nothing to do but to be scraped: memory, processor time and wake-ups.

python -m bench.idle [--minutes 10]     exit 1 past the limit

Its journal holds three months of lines, as much as it ever does, and its repository the backups of one month.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from aquad.demo import playground
from aquad.settings import load
from aquad.wiring import Wiring

GOAL_MB, LIMIT_MB = 64, 80
BACKUPS, LINES = 60, 6000
PORT, SCRAPE_SECONDS = 9481, 15
SETTINGS = """
stack = "idle"
[repository]
path = "{top}/backups"
minimum_free = "1%"
[encryption]
mode = "off"
[schedule]
full = "{minute} {hour} * * *"
postgres = "off"
weekly = "off"
verify = "off"
[configs]
root = "{top}/checkout"
[web]
listen = "127.0.0.1:{port}"
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="aquad-bench-") as directory:
        settings = repository(Path(directory))
        daemon = subprocess.Popen([sys.executable, "-m", "aquad", "-c", settings, "serve"], stderr=subprocess.DEVNULL)
        try:
            time.sleep(5)
            before = measured(daemon.pid)
            scraped(minutes * 60)
            after = measured(daemon.pid)
        finally:
            daemon.terminate()
            daemon.wait()
    megabytes = after["VmRSS"] / 1000
    print(
        f"resident memory  {megabytes:.1f} MB (goal {GOAL_MB}, limit {LIMIT_MB}), peak {after['VmHWM'] / 1000:.1f} MB"
    )
    for what, unit in (("processor", "s"), ("wakeups", "times")):
        print(f"{what:16} {after[what] - before[what]:.2f} {unit} in {minutes:g} minutes")
    return int(megabytes > LIMIT_MB)


def scraped(seconds: float) -> None:
    """As Prometheus does in the stack."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
            answer.read()
        time.sleep(SCRAPE_SECONDS)


def repository(top: Path) -> Path:
    """Backups by hand, and a long journal; returns the settings. The next slot is half a day away."""
    playground.make_checkout(top / "checkout")
    path = top / "settings.toml"
    later = time.gmtime(time.time() + 43200)
    path.write_text(SETTINGS.format(top=top, port=PORT, minute=later.tm_min, hour=later.tm_hour))
    aquad = [sys.executable, "-m", "aquad", "-q", "-c", str(path)]
    subprocess.run([*aquad, "init"], check=True, stderr=subprocess.DEVNULL)
    for _ in range(BACKUPS):
        subprocess.run([*aquad, "run", "full", "--component", "configs"], check=True)
    journal = Wiring(load(path, {}), "bench").repository().journal
    for number in range(LINES):
        journal.append("verified", backup=f"{number}", level="bytes", outcome="success", problems=[])
    return path


def measured(pid: int) -> dict[str, float]:
    """Memory in kB, processor time in seconds, and how often any of its threads was woken."""
    found = {"wakeups": 0.0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in {"VmRSS", "VmHWM"}:
            found[key] = int(value.split()[0])
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        words = status.read_text().split("voluntary_ctxt_switches:")
        found["wakeups"] += int(words[1].split()[0])
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    found["processor"] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return found


if __name__ == "__main__":
    sys.exit(main())
