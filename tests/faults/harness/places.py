"""Where an action runs: each time on a fresh copy of a pristine directory."""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from aquad.core import filesystem
from tests.servers import debian

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT TESTED: loop devices and mounts need root; run the tests as root"
)
BUSY_SECONDS = 10
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SIZES = {"ext4": 48 << 20, "xfs": 96 << 20, "btrfs": 128 << 20}


class Directory:
    """`top` is what a fresh copy is called; beside the repository it may hold what that protects."""

    def __init__(self, pristine, top):
        self.pristine, self.top = pristine, top

    def fresh(self) -> Path:
        shutil.rmtree(self.top, ignore_errors=True)
        shutil.copytree(self.pristine, self.top, symlinks=True)
        return self.top

    def settle(self):
        """After the action: before anybody looks."""


class Disk(Directory):
    """A file system of its own in a file, on a loop device. Use it as a context manager: it needs root."""

    def __init__(self, kind, pristine, directory, size=None):
        super().__init__(pristine, directory / "mounted" / "work")
        self.kind = kind
        self.mountpoint = directory / "mounted"
        self._image = directory / "image"
        self._size = size or SIZES.get(kind)

    def __enter__(self):
        command, environment = maker(self.kind)
        self.mountpoint.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size)
        subprocess.run([*command, self._image], check=True, capture_output=True, env=environment)
        self._mount()
        self._guard = guard(self.mountpoint)
        return self

    def __exit__(self, *_):
        unmount(self.mountpoint)
        self._guard.communicate()
        self._image.unlink(missing_ok=True)
        self.mountpoint.rmdir()

    def fresh(self):
        top = super().fresh()
        self.sync()
        return top

    def settle(self):
        """Turn the power on again: what was only in memory is gone."""
        unmount(self.mountpoint)
        self._mount()

    def sync(self):
        fd = os.open(self.mountpoint, os.O_RDONLY)
        try:
            filesystem.sync(fd)
        finally:
            os.close(fd)

    def _mount(self):
        subprocess.run(["mount", "-o", "loop", self._image, self.mountpoint], check=True)

    def leave(self, free):
        """Fill the disk, but for so many bytes."""
        disk = os.statvfs(self.mountpoint)
        size = disk.f_bavail * disk.f_frsize - free
        with (self.mountpoint / "ballast").open("wb") as ballast:
            while size > 0:
                try:
                    os.posix_fallocate(ballast.fileno(), 0, size)
                except OSError as error:  # what it takes to note where the blocks are
                    if error.errno != errno.ENOSPC:
                        raise
                    size -= 4096
                else:
                    break

    def make_room(self):
        (self.mountpoint / "ballast").unlink()


class Memory(Disk):
    """A tmpfs of a few MiB."""

    def __init__(self, pristine, directory, options):
        super().__init__("tmpfs", pristine, directory)
        self._options = options

    def __enter__(self):
        self.mountpoint.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "none", self.mountpoint], check=True)
        self._guard = guard(self.mountpoint)
        return self

    def settle(self):
        """There is no power cut that it would survive."""


class Quota(Disk):
    """A subvolume of btrfs whose quota is used up, though the disk is not."""

    GROUP = "0/256"
    """That of the first subvolume."""

    def __init__(self, pristine, directory):
        super().__init__("btrfs", pristine, directory)
        self.top = self.mountpoint / "subvolume" / "work"

    def __enter__(self):
        super().__enter__()
        try:
            self._btrfs("subvolume", "create", self.top.parent)
            self._btrfs("quota", "enable", self.mountpoint)
        except BaseException:
            self.__exit__()
            raise
        return self

    def leave(self, free):
        self.sync()
        self._btrfs("quota", "rescan", "-w", self.mountpoint)
        used = self._btrfs("qgroup", "show", "--raw", self.mountpoint).split(self.GROUP)[1].split()[0]
        self._btrfs("qgroup", "limit", str(int(used) + free), self.GROUP, self.mountpoint)

    def make_room(self):
        self._btrfs("qgroup", "limit", "none", self.GROUP, self.mountpoint)

    def _btrfs(self, *arguments):
        installed = shutil.which("btrfs", path=SEARCH)
        tool = installed or debian.file("btrfs-progs", "btrfs")
        environment = None if installed else debian.environment("btrfs-progs")
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


def unmount(point):
    """Detaches the loop device too. Whoever died in there may take a moment to be gone.

    So may a container that is just being made: it begins with a copy of every mount there is, and as long as it has that,
    mounting the image again would bring back the very file system that was cut off.
    """
    give_up = time.monotonic() + BUSY_SECONDS
    backing = _backing_file(point)
    while (done := subprocess.run(["umount", point], capture_output=True, text=True)).returncode:
        if time.monotonic() > give_up:
            subprocess.run(["umount", "--lazy", point], check=True)
            raise RuntimeError(f"{point} had to be torn off: {done.stderr}")
        time.sleep(0.02)
    while backing is not None and backing.exists():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{point} is unmounted here, but {backing.parents[1].name} is still in use by somebody")
        time.sleep(0.01)


def _backing_file(point):
    """The file in /sys that is there as long as the mount's loop device is in use; None where it is on none."""
    sources = [
        line.split()[0]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[1] == str(point).replace(" ", "\\040")
    ]
    device = os.path.basename(sources[-1]) if sources else ""
    return Path("/sys/block", device, "loop", "backing_file") if device.startswith("loop") else None


def guard(point):
    """A process that unmounts when this one is gone, however it died: `finally` does not hear SIGKILL."""
    command = ["sh", "-c", 'cat > /dev/null; umount --lazy "$0" 2> /dev/null; exit 0', point]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def maker(kind):
    """The command that makes a file system, and its environment. Skips the test, loudly, where there is none."""
    options = {"ext4": ["-q", "-F", "-m", "0"], "xfs": ["-q", "-f", "--unsupported"], "btrfs": ["-q", "-f"]}[kind]
    package = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind]
    tool = f"mkfs.{kind}"
    if installed := shutil.which(tool, path=SEARCH):
        return [installed, *options], None
    try:
        return [debian.file(package, tool), *options], debian.environment(package)
    except debian.Unavailable as error:
        pytest.skip(f"NOT TESTED on {kind}: no {tool} here, and it cannot be downloaded: {error}")
