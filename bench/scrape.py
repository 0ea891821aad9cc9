"""What a scrape costs with thousands of backups.

python -m bench.scrape [--backups 5000]     exit 1 past the limit of 100 ms (median)
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aquad.core.clock import to_text
from aquad.settings import load
from aquad.wiring import Wiring
from bench.idle import PORT, measured, repository

LIMIT_MS, ROUNDS = 100, 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__)
    parser.add_argument("--backups", type=int, default=5000)
    count = parser.parse_args().backups
    with tempfile.TemporaryDirectory(prefix="aquad-bench-") as directory:
        settings = repository(Path(directory))
        found = Wiring(load(settings, {}), "bench").repository()
        template = json.loads(next(found.layout.manifests.glob("*.json")).read_text())
        for number in range(count - len(list(found.layout.manifests.glob("*.json")))):
            taken = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=number)
            copy = {**template, "id": f"{taken:%Y%m%d_%H%M%S}_full", "sequence": number + 1}
            copy |= {"started_at": to_text(taken), "finished_at": to_text(taken + timedelta(minutes=1))}
            found.layout.manifest(copy["id"]).write_text(json.dumps(copy))
        daemon = subprocess.Popen([sys.executable, "-m", "aquad", "-c", settings, "serve"], stderr=subprocess.DEVNULL)
        try:
            while "aquad_backups_retained" not in scraped()[1]:
                time.sleep(0.5)
            seconds = []
            for _ in range(ROUNDS):
                seconds.append(scraped()[0])
                time.sleep(0.2)
            memory = measured(daemon.pid)["VmRSS"] / 1000
        finally:
            daemon.terminate()
            daemon.wait()
    milliseconds = [1000 * one for one in sorted(seconds)]
    print(
        f"{count} backups: a scrape takes {statistics.median(milliseconds):.1f} ms (median; {milliseconds[0]:.1f} to "
        f"{milliseconds[-1]:.1f}; limit {LIMIT_MS}), memory {memory:.0f} MB"
    )
    return int(statistics.median(milliseconds) > LIMIT_MS)


def scraped() -> tuple[float, str]:
    """Seconds, and what it said; nothing while there is nobody."""
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except OSError:
        text = ""
    return time.monotonic() - begun, text


if __name__ == "__main__":
    sys.exit(main())
