"""Reports for people, `backup_report_<timestamp>.txt` in the repository. The journal says which are ours."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from aquad.repository import layout
from aquad.repository.manifest import FileRecord
from aquad.repository.trash import drop
from aquad.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable

    from aquad.repository.layout import Layout


def write_report(where: Layout, stamp: str, text: str, record: Callable[[FileRecord], None]) -> None:
    """Put a report in place whole, under a name that is free. `record` is told its name and digest before it has that name:
    what the journal does not name is not ours, and would never be removed. Raises RepositoryWriteFailed.
    """
    path, number = where.root / layout.report_path(stamp), 2
    while os.path.lexists(path):
        path, number = where.root / layout.report_path(f"{stamp}_{number}"), number + 1
    stored, temporary = text.encode(), where.unfinished_report
    drop(temporary)  # left by a run that died here
    fd = files.create(temporary)
    try:
        files.write(fd, stored, temporary)
        files.sync(fd, temporary)
    finally:
        files.close(fd, temporary)
    record(FileRecord(path=path.name, stored_bytes=len(stored), stored_sha256=hashlib.sha256(stored).hexdigest()))
    files.rename(temporary, path)
    files.sync_directory(where.root)
