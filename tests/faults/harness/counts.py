"""How many faults there were, and how many of them broke a law: one JSON line a test in the file AQUAD_FAULTS_COUNTS.

`python -m tests.faults.harness.counts FILE` prints them as a table, and fails when they are fewer than is promised.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

ALL = os.environ.get("AQUAD_FAULTS") == "all"
"""Every point of every sweep; a sample of them otherwise."""
PROMISED = {"kills": 1_000, "power cuts": 1_000, "I/O errors": 2_000, "corruptions": 10_000}
BROKEN = ("lies", "losses", "stuck")
"""Something passed for what it is not; something sealed or replaced is gone; what came after does not work."""


class Counts:
    def __init__(self, test):
        self.test = test
        self.faults, self.broken = Counter(), Counter()
        self.said = []

    def fault(self, kind, number=1):
        self.faults[kind] += number

    def breaks(self, kind, what):
        """A law was broken; the sweep goes on."""
        assert kind in BROKEN
        self.broken[kind] += 1
        self.said.append(f"{kind}: {what}")

    def check(self):
        if self.said:
            raise AssertionError("\n".join([f"{len(self.said)} broken laws:", *self.said[:10]]))

    def write(self):
        path = os.environ.get("AQUAD_FAULTS_COUNTS")
        if path:
            line = {"test": self.test, **self.faults, **{kind: self.broken[kind] for kind in BROKEN}}
            with Path(path).open("a") as out:
                out.write(json.dumps(line) + "\n")


def table(lines):
    """The table as text, and whether everything that was promised is in it."""
    entries = [json.loads(line) for line in lines]
    kinds = [*dict.fromkeys(key for entry in entries for key in entry if key not in {"test", *BROKEN}), *BROKEN]
    totals = Counter()
    for entry in entries:
        totals.update({kind: entry.get(kind, 0) for kind in kinds})
    wide = max([len(entry["test"]) for entry in entries], default=0)
    rows = [["", *kinds], *([e["test"], *(e.get(kind) or "" for kind in kinds)] for e in entries)]
    rows.append(["total", *(totals[kind] for kind in kinds)])
    text = "\n".join(
        f"{row[0]:{wide}}" + "".join(f"  {cell!s:>{len(kind)}}" for cell, kind in zip(row[1:], kinds, strict=True))
        for row in rows
    )
    enough = all(totals[kind] >= number for kind, number in PROMISED.items())
    return text, enough and not any(totals[kind] for kind in BROKEN)


if __name__ == "__main__":
    text, good = table(Path(sys.argv[1]).read_text().splitlines())
    print(text)
    print("promised:", ", ".join(f"{number} {kind}" for kind, number in PROMISED.items()), "and nothing broken")
    sys.exit(not good)
