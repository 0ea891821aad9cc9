"""python -m tests.soak [--days 365] [--seed 1]: prints what happened, and exits 1 when something is not as it should be."""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.servers.postgres import Server
from tests.soak.judge import ACCIDENTS, judged
from tests.soak.world import World


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    server = Server(16).start()
    top = Path(tempfile.mkdtemp(prefix="aquad-soak-"))
    top.chmod(0o711)
    begin = datetime(2025, 1, 3, 12, tzinfo=UTC)
    world = World(top, server, begin, arguments.seed, ACCIDENTS)
    try:
        for day in range(arguments.days):
            world.live_until(begin + timedelta(days=day + 1))
            if day % 30 == 29:
                world.check()
                print(f"day {day + 1}: {dict(world.happened)}, {time.monotonic() - started:.0f} s", flush=True)
        problems = judged(world, begin)
    finally:
        world.end()
        server.close()
    print("\n".join(problems) or f"all is as it should be, in {time.monotonic() - started:.0f} s")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
