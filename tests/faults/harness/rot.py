"""A directory seen through a bad disk (FUSE, read-only): flipped bits, sectors that cannot be read.

`python -m tests.faults.harness.rot DIRECTORY MOUNTPOINT ORDERS` serves it. ORDERS is a JSON file, read at each opening of a
file: {"path", "kind": "flip" or "eio", "offset"}, or {}.
"""

import ctypes.util
import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.harness.places import guard, unmount
from tests.servers import debian

STARTS_SECONDS = 20
SECTOR = 4096


class BadDisk:
    """What a test says to it."""

    def __init__(self, mountpoint, orders):
        self.root, self._orders = mountpoint, orders

    def flip(self, path, offset):
        self._order(path, "flip", offset)

    def cannot_read(self, path, offset):
        self._order(path, "eio", offset)

    def mend(self):
        self._write({})

    def _order(self, path, kind, offset):
        self._write({"path": f"/{path}", "kind": kind, "offset": offset})

    def _write(self, orders):
        new = self._orders.with_suffix(".new")
        new.write_text(json.dumps(orders))
        new.rename(self._orders)


@contextmanager
def bad_disk(directory, beside):
    """`directory` through a bad disk, which is mounted in `beside`. Skips the test, loudly, where that is not possible."""
    if importlib.util.find_spec("mfusepy") is None:
        pytest.skip("NOT TESTED: a bad disk is made with mfusepy, which is not installed")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("NOT TESTED: there is no FUSE in this kernel, or it is not ours to use")
    mountpoint, orders = beside / "bad disk", beside / "orders.json"
    mountpoint.mkdir()
    disk = BadDisk(mountpoint, orders)
    disk.mend()
    command = [sys.executable, "-m", __name__, directory, mountpoint, orders]
    surroundings = {"env": {**os.environ, **_library()}, "cwd": Path(__file__).parents[3]}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **surroundings)
    watching = guard(mountpoint)
    try:
        give_up = time.monotonic() + STARTS_SECONDS
        while not os.path.ismount(mountpoint):
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < give_up, "the bad disk was not mounted"
            time.sleep(0.02)
        yield disk
    finally:
        if os.path.ismount(mountpoint):
            unmount(mountpoint)
        watching.communicate()
        server.terminate()
        server.wait(STARTS_SECONDS)
        server.stderr.close()


def _library():
    """Where libfuse is, when it is not installed."""
    if ctypes.util.find_library("fuse3") or ctypes.util.find_library("fuse"):
        return {}
    try:
        return {"FUSE_LIBRARY_PATH": str(debian.file("libfuse3-3", "libfuse3.so.3"))}
    except debian.Unavailable as error:
        pytest.skip(f"NOT TESTED: no libfuse here, and it cannot be downloaded: {error}")


def flipped(content, at):
    """Another bit at each place; as it is when the place lies outside."""
    if not 0 <= at < len(content):
        return content
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def serve(directory, mountpoint, orders):  # noqa: C901 - a file system has many calls
    import mfusepy

    class Rotten(mfusepy.Operations):
        use_ns = True

        def getattr(self, path, fh=None):
            try:
                status = os.lstat(directory + path)
            except OSError as error:
                raise mfusepy.FuseOSError(error.errno) from error
            wanted = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
            return {key: getattr(status, key) for key in wanted}

        def readdir(self, path, fh):
            return [".", "..", *os.listdir(directory + path)]

        def open(self, path, flags):
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise mfusepy.FuseOSError(errno.EROFS)
            return os.open(directory + path, os.O_RDONLY)

        def read(self, path, size, offset, fh):
            said = json.loads(Path(orders).read_text())
            content = os.pread(fh, size, offset)
            if said.get("path") != path:
                return content
            if said["kind"] == "flip":
                return flipped(content, said["offset"] - offset)
            if offset // SECTOR <= said["offset"] // SECTOR <= (offset + size - 1) // SECTOR:
                raise mfusepy.FuseOSError(errno.EIO)
            return content

        def release(self, path, fh):
            os.close(fh)
            return 0

    mfusepy.FUSE(Rotten(), mountpoint, foreground=True, nothreads=True, direct_io=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
