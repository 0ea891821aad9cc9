"""Tools that a machine may lack, from Debian's own packages: mkfs.xfs, btrfs, libfuse3. Nothing is installed.

What is downloaded lies unpacked in `.cache/debian` of the checkout, one directory a package, with the libraries that it needs
and that are not installed.
"""

import fcntl
import os
import re
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "debian"


def unpacked(package) -> Path:
    """The directory that holds the files of a package; downloaded once. Raises Unavailable."""
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / package
    with (CACHE / f".{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                _download([package], work)
                if missing := _missing(package):
                    _download(missing, work)
                for archive in Path(work).glob("*.deb"):
                    _ran("dpkg-deb", "-x", archive, Path(work) / "x")
                os.rename(Path(work) / "x", target)
    return target


def environment(package) -> dict[str, str]:
    """For a tool of a package, whose libraries lie beside it."""
    libraries = {str(path.parent) for path in unpacked(package).rglob("*.so*")}
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": ":".join(sorted(libraries))}


def file(package, name) -> Path:
    """A tool or a library of a package by its last name."""
    places = {"bin", "sbin"} if ".so" not in name else {path.parent.name for path in unpacked(package).rglob("*.so*")}
    return next(path for path in unpacked(package).rglob(name) if path.is_file() and path.parent.name in places)


class Unavailable(Exception):
    """Neither here nor to be downloaded: no Debian, or no network."""


def _download(packages, work):
    try:
        _ran("apt-get", "download", *packages, cwd=work)
    except Unavailable:
        _ran("apt-get", "update")
        _ran("apt-get", "download", *packages, cwd=work)


def _missing(package) -> list[str]:
    """What a package needs itself, and is not installed."""
    needed = re.findall(
        r"^ *\|?Depends: ([^<\s]+)$", _ran("apt-cache", "depends", "--important", package), re.MULTILINE
    )
    return [name for name in needed if not _is_installed(name)]


def _is_installed(package) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return "installed" in subprocess.run(query, capture_output=True, text=True).stdout.split()


def _ran(*command, cwd=None) -> str:
    surroundings = {"cwd": cwd, "env": {**os.environ, "LC_ALL": "C.UTF-8"}}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **surroundings)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(map(str, command))}: {done.stderr.strip()[-300:]}")
    return done.stdout
