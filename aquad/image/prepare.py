"""Run once before the daemon, as root: owners and modes of two directories of the host that nobody else could set.

    /opt/aquad/bin/python -m aquad.image.prepare BACKUPS [SNAPSHOTS USER]

BACKUPS, where the backups lie, becomes 0700 of `backup`; only when it is empty, or a repository already: a wrong path in the
settings takes nothing from anybody. SNAPSHOTS, which Elasticsearch writes and aquad reads, becomes USER's, of group `backup`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aquad.core.errors import AquadError, InvalidUse, RepositoryRefused
from aquad.image.owner import BACKUP, give_back

MARKER = "aquad-repository.json"
OF_THE_FILE_SYSTEM = {"lost+found"}


def prepare_backups(path: Path) -> None:
    """Raises RepositoryRefused where others have files."""
    found = sorted(set(os.listdir(path)) - OF_THE_FILE_SYSTEM)
    if found and MARKER not in found:
        raise RepositoryRefused(
            f"prepare {path}: it holds {found[0]!r}, and no {MARKER}",
            "Give aquad an empty directory of its own: set AQUAD_BACKUPS to it.",
        )
    if found:
        give_back(path)
    _own(path, BACKUP, 0o700)


def prepare_snapshots(path: Path, user: int) -> None:
    """What either of both makes there belongs to the group, so that aquad can tidy up."""
    _own(path, user, 0o2770)


def _own(path: Path, user: int, mode: int) -> None:
    os.chown(path, user, BACKUP, follow_symlinks=False)
    path.chmod(mode)  # after chown, which clears the group's bit


def main(words: list[str]) -> None:
    match words:
        case [backups]:
            prepare_backups(Path(backups))
        case [backups, snapshots, user] if user.isdecimal():
            prepare_backups(Path(backups))
            prepare_snapshots(Path(snapshots), int(user))
        case _:
            raise InvalidUse(f"prepare: {words} is not BACKUPS [SNAPSHOTS USER]", "USER is a number.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AquadError as error:
        sys.exit(f"aquad: error: {error}")
    except OSError as error:
        sys.exit(f"aquad: error: prepare {error.filename}: {error.strerror}. It needs CHOWN, FOWNER and DAC_OVERRIDE.")
