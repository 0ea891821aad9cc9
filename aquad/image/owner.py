"""Whose the repository is in the image."""

from __future__ import annotations

import os
from pathlib import Path

BACKUP = 1034
"""User and group `backup` of the image, fixed: the host's directory outlives every image. Debian's own has 34."""


def give_back(repository: Path) -> None:
    """Give to `backup` what root owns in the repository; the owners of anything else, and what links lead to, stay."""
    for _, directories, files, directory in os.fwalk(repository):
        for name in [*directories, *files]:
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid == 0:
                os.chown(name, BACKUP, BACKUP, dir_fd=directory, follow_symlinks=False)
