import os
import shutil
import tempfile
from pathlib import Path

import pytest

from aquad.stream.gpg import gpg, home
from aquad.stream.tarball import reuse
from tests.faults.harness.counts import Counts

MEMORY = Path("/dev/shm")
NEEDED_BYTES = 512 << 20
QUICK_S2K = ("--symmetric", "--s2k-mode=3", "--s2k-digest-algo=SHA512", "--s2k-count=65536")
"""A guess costs next to nothing: there are hundreds of encryptions in a sweep."""


@pytest.fixture
def counts(request):
    """Of one test; a sweep fails at its end when a law was broken."""
    counts = Counts(request.node.nodeid.rpartition("/")[2])
    yield counts
    counts.write()


@pytest.fixture
def quick(tmp_path):
    """A directory in memory, where there is enough: thousands of repositories are made and dropped."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > NEEDED_BYTES
    with tempfile.TemporaryDirectory(prefix="aquad-faults-", dir=MEMORY if roomy else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture
def make_case(tmp_path, quick, monkeypatch):
    """Makes one of `cases`."""
    monkeypatch.setattr(gpg, "SYMMETRIC", QUICK_S2K)
    monkeypatch.setattr(home, "PLACES", (str(quick),))  # what was killed leaves its keys in there
    monkeypatch.setattr(reuse, "MARGIN_NS", 10**7)
    return lambda case: case(quick, tmp_path)
