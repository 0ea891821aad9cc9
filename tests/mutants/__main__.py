"""Puts each defect into a copy of the tree and runs the tests that have to fail. Exit 1 when one of them does not.

python -m tests.mutants [ID ...]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.defects import DEFECTS

ROOT = Path(__file__).parents[2]


def survives(defect, work):
    """Whether the tests are green with the defect; None when they could not be run."""
    top = work / defect.id
    shutil.copytree(ROOT, top, ignore=shutil.ignore_patterns(".venv", ".cache", ".git", "__pycache__", "playground"))
    (top / ".cache").symlink_to(ROOT / ".cache")
    path = top / defect.path
    text = path.read_text()
    if text.count(defect.old) != 1:
        print(f"{defect.id}: {defect.path} holds {text.count(defect.old)} times what is to be replaced")
        return None
    path.write_text(text.replace(defect.old, defect.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *defect.tests.split()]
    env = {**os.environ, "AQUAD_FAULTS": "all" if defect.every_point else ""}
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=3600, check=False, env=env)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    shutil.rmtree(top)
    if done.returncode == 1 and failed:
        print(f"{defect.id}: caught by {failed[0].removeprefix('FAILED ').split(' - ')[0]}")
        return False
    if done.returncode == 0:
        print(f"{defect.id}: NOT CAUGHT: {defect.title}")
        return True
    print(f"{defect.id}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-500:]}")
    return None


def main(wanted):
    chosen = [defect for defect in DEFECTS if not wanted or defect.id in wanted]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aquad-mutants-") as work:
        verdicts = [survives(defect, Path(work)) for defect in chosen]
    caught = verdicts.count(False)
    print(f"{caught} of {len(chosen)} defects were caught, in {time.monotonic() - started:.0f} s")
    return int(caught != len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
