"""A small stack for tests of the core: a repository in a directory, and sources that hold a few bytes."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aquad.core.errors import SourceFailed
from aquad.jobs.full import Space, take_full
from aquad.jobs.run import Limits, run_job
from aquad.repository.repository import Repository
from aquad.stream.artifact import Part, Taken
from aquad.stream.gzip import Deflate

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root: run the tests as root")
LIMITS = Limits(deadline_seconds=None, stall_seconds=60)


class FakeClock:
    """Stands still until it is told to move."""

    def __init__(self, now=datetime(2024, 8, 2, 2, 0, 0, tzinfo=UTC)):
        self.moment = now
        self.seconds = 0.0

    def now(self):
        return self.moment

    def monotonic(self):
        return self.seconds

    def move(self, seconds):
        self.moment += timedelta(seconds=seconds)
        self.seconds += seconds


class Words:
    """A source of one dump-like artifact of two parts, and one archive-like artifact with an index."""

    def __init__(self, component="words", text=b"the quick brown fox\n" * 50, *, fails=False, archive=True):
        self.component = component
        self.text = text
        self.fails = fails
        self.archive = archive

    def size_bytes(self):
        return len(self.text)

    def check(self):
        return []

    def take(self, sink, previous, run):
        def parts():
            yield Part("first", iter([self.text, b"", self.text[:7]]), lambda: {"rows": 2})
            if self.fails:
                raise SourceFailed(f"read {self.component}: on purpose")
            yield Part("second", iter([b"end"]), dict)

        sink.add(f"{self.component}_{run.timestamp}.txt.gz", parts(), gzip=True)
        if not self.archive:
            return Taken("files", {})
        raw = sink.raw(f"volumes_{run.timestamp}/{self.component}.tar.gz", indexed=True)
        deflate = Deflate()
        stored = deflate.compress(self.text) + deflate.flush()
        raw.write(stored)
        raw.record({"path": "./x", "offset": 0, "length": len(stored)})
        raw.finish(plain_bytes=len(self.text), facts={"files": 1})
        return Taken("files", {"length": len(self.text)})


def make_repository(root: Path, clock=None) -> Repository:
    return Repository.create(root, stack="small", encryption="off", clock=clock or FakeClock(), zone=UTC)


def open_repository(root: Path, clock=None) -> Repository:
    return Repository.open(root, stack="small", clock=clock or FakeClock(), zone=UTC)


def back_up(repository: Repository, *sources, clock=None):
    return run_job(
        repository,
        "full",
        lambda context: take_full(repository, sources or [Words()], context, space=Space()),
        clock=clock or FakeClock(),
        zone=UTC,
        limits=LIMITS,
    )


def journal(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "state" / "audit.jsonl").read_text().splitlines()]


def outcomes(root: Path) -> list[str]:
    return [entry["outcome"] for entry in journal(root) if entry["event"] == "run_ended"]


@contextmanager
def mounted(where: Path, kind: str, options: str) -> Iterator[Path]:
    """A file system of its own in a new directory; needs root."""
    where.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
