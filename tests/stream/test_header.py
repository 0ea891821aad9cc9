"""Headers that a stranger's tar has to understand."""

import os
import subprocess

import pytest

from aquad.stream.tarball.header import BLOCK, header


@pytest.mark.parametrize("mtime_ns", [-1_500_000_000, -1, 0, 1, 1_722_556_800_123_456_789])
@pytest.mark.parametrize("name", [b"short", b"long" * 50, "żółw".encode(), b"not utf-8 \xff"])
def test_gnu_tar_reads_times_and_names(tmp_path, mtime_ns, name):
    source = tmp_path / "source"
    source.touch()
    os.utime(source, ns=(0, mtime_ns))
    archive = header(name, source.stat()) + bytes(2 * BLOCK)
    target = tmp_path / "target"
    target.mkdir()
    done = subprocess.run(["tar", "-xf", "-", "-C", target], input=archive, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    restored = os.fsencode(target) + b"/" + name
    assert os.stat(restored).st_mtime_ns == mtime_ns
