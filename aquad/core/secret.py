"""Secrets lie in files that only their owner and its group may read; whoever needs one reads it then, and keeps it no longer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from aquad.core.errors import AquadError

MAXIMUM_BYTES = 16 << 20


def read(path: Path, what: str, refused: type[AquadError], *, secret: bool = True) -> bytes:
    """`secret`: it must not be open to others. Raises `refused` when it is, or cannot be read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if secret and mode & 0o007:
                raise refused(f"read {what} {path}: its mode is {mode:04o}, open to others", f"Run: chmod 600 {path}")
            return file.read(MAXIMUM_BYTES)
    except OSError as error:
        raise refused(
            f"read {what} {path}: {os.strerror(error.errno or 0)}", "Is it mounted, and may aquad read it?"
        ) from error


def first_line(path: Path, what: str, refused: type[AquadError]) -> bytes:
    """Raises `refused`, also when it is empty."""
    line = read(path, what, refused).split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise refused(f"read {what} {path}: it is empty", f"Its first line is the {what}.")
    return line
