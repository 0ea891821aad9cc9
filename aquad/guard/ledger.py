"""What was paused or stopped and has to go on again, on the disk before it is done: it outlives the guard and the machine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Entry(NamedTuple):
    """`started_at`: the container's own, so that one which was started anew is not touched."""

    container: str
    service: str
    verb: Literal["pause", "stop"]
    started_at: str
    lease: str


class Ledger:
    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory, self._path = directory, directory / "held.json"

    def read(self) -> tuple[list[Entry], str]:
        """The entries; and what was wrong with the file, which is put out of the way then."""
        try:
            return [Entry(**line) for line in json.loads(self._path.read_bytes())], ""
        except FileNotFoundError:
            return [], ""
        except (ValueError, TypeError) as error:
            spoilt = self._path.with_suffix(".spoilt")
            os.replace(self._path, spoilt)
            return [], f"{self._path} cannot be read ({error}): it is {spoilt} now"

    def write(self, entries: Iterable[Entry]) -> None:
        """On the disk when this returns. Raises OSError."""
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps([entry._asdict() for entry in entries]).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self._path)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
