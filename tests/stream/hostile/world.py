"""What stands around the place that is restored to, and whether anything of it was touched."""

import os
import stat
import threading

from aquad.core.errors import AquadError
from aquad.stream.tarball.unpack import extract


def make_outside(top):
    """What an attacker would like to reach: `../outside` of the target."""
    outside = top / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "sentinel").write_bytes(b"whole"), (outside / "sentinel").chmod(0o640)
    (outside / "deep/program").write_bytes(b"#!/bin/sh\n"), (outside / "deep/program").chmod(0o4755)
    os.symlink("sentinel", outside / "link")
    os.mkfifo(outside / "fifo")
    (outside / "deep").chmod(0o711)
    for path in (outside / "sentinel", outside / "deep/program", outside / "deep", outside):
        os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    return outside


def seen(top, but=()):
    """Everything below, without what `but` names: content and all metadata, with inode, number of links, and ctime."""
    found = {}
    for above, directories, files in os.walk(os.fsencode(top)):
        directories[:] = [name for name in directories if os.fsdecode(os.path.join(above, name)) not in map(str, but)]
        for name in [b".", *directories, *files]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            fields = ("mode", "uid", "gid", "nlink", "ino", "size", "mtime_ns", "ctime_ns", "rdev")
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found[os.path.relpath(path, os.fsencode(top))] = (
                [getattr(status, f"st_{field}") for field in fields],
                content,
                xattrs,
            )
    return found


def names(top):
    """What is below, as paths, and how much of the disk it takes."""
    paths, blocks = set(), 0
    for above, directories, files in os.walk(os.fsencode(top)):
        for name in [*directories, *files]:
            path = os.path.join(above, name)
            paths.add(os.path.relpath(path, os.fsencode(top)))
            blocks += os.lstat(path).st_blocks
    return paths, blocks * 512


def attempt(act):
    """What `act` returned, and the typed error it ended in. Any other error is a defect and comes through."""
    try:
        return act(), None
    except AquadError as error:
        return None, error


def extracted(reader, target, **options):
    return extract(
        reader, reader.artifacts[0].path, target, advance=lambda _: None, cancel=threading.Event(), **options
    )


def assert_printable(error, facts):
    texts = [error.message, error.hint] if error else facts.skipped
    for text in texts:
        assert text.isprintable(), text
        assert len(text) < 10_000
