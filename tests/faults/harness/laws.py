"""What must be true of a repository whatever happened to it."""

import hashlib
import os
from collections import Counter

from aquad.core.errors import AquadError
from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from tests.small import journal

LOOSE = {"trash", "aside", "state", "aquad-repository.json"}
"""What no manifest names. The last is what a change of encryption leaves that was killed; the next one removes it."""


class Laws:
    """Of one action on the repository below `pristine`, as it was before any fault.

    `adds`: how many backups it makes when it says that it succeeded. `changes_marker`: it may put another marker in place.
    `also(top, ended, breaks)`: laws of what lies beside the repository.
    """

    def __init__(self, stack, pristine, *, adds=0, changes_marker=False, also=None):
        self._stack, self._adds, self._also = stack, adds, also
        self._sealed, self._listed = {}, 0
        root = pristine / "backups"
        if root.exists():
            repository = stack.open(root)
            self._sealed = digests(root, sealed(repository))
            self._listed = len(repository.catalog().backups)
        if changes_marker:
            del self._sealed["aquad-repository.json"]

    def check(self, top, ended, counts, where):
        """Count what is broken; `where` says after which fault."""

        def breaks(kind, what):
            counts.breaks(kind, f"{where}: {what}")

        try:
            self._check(top, ended, breaks)
        except (AquadError, OSError) as error:
            breaks("stuck", f"{type(error).__name__}: {error}")

    def _check(self, top, ended, breaks):
        root = top / "backups"
        repository = self._stack.open(root)
        self._nothing_sealed_is_touched(root, breaks)
        listed = self._listing(repository, breaks)
        if not self._listed <= listed <= self._listed + self._adds:
            breaks("losses" if listed < self._listed else "lies", f"{listed} backups are listed")
        if ended.outcome in {"success", "warning"} and listed != self._listed + self._adds:
            breaks("lies", f"it said {ended.outcome}, and {listed} backups are listed")
        if self._also is not None:
            self._also(top, ended, breaks)
        outcome = self._stack.back_up(root)
        if outcome not in {"success", "warning"}:
            breaks("stuck", f"the next run: {outcome}")
        if self._listing(repository, breaks) != listed + 1:
            breaks("lies", "the next run is not listed")
        self._nothing_sealed_is_touched(root, breaks)
        self._nothing_is_left(repository, breaks)
        self._stack.end()

    def _nothing_sealed_is_touched(self, root, breaks):
        found = digests(root, self._sealed)
        for path in self._sealed:
            if found.get(path) != self._sealed[path]:
                breaks("losses", f"{path} was sealed, and is {'changed' if found.get(path) else 'gone'}")

    def _nothing_is_left(self, repository, breaks):
        """Nothing that nobody names, and no run without exactly one outcome."""
        root = repository.root
        if os.listdir(root / "drafts"):
            breaks("stuck", "a draft was left")
        reports = {entry["path"] for entry in repository.journal.entries() if entry["event"] == "report_written"}
        for path in sorted(files_below(root) - sealed(repository) - reports):
            if path.partition("/")[0] not in LOOSE:
                breaks("stuck", f"nothing names {path}")
        events = Counter((entry["event"], entry.get("run")) for entry in journal(root))
        for (event, run), number in events.items():
            if event == "run_started" and (number, events["run_ended", run]) != (1, 1):
                breaks("lies", f"run {run} has {events['run_ended', run]} outcomes")

    def _listing(self, repository, breaks):
        """Verify whatever is listed, by its content."""
        catalog = repository.catalog()
        for bad in catalog.unreadable:
            breaks("losses", f"the manifest of {bad.id}: {bad.reason}")
        for verdict in verify(repository, catalog.backups, "content", Silent()):
            for problem in [*verdict.problems, *verdict.unchecked]:
                breaks("lies", f"{verdict.backup} is listed: {problem}")
        return len(catalog.backups)


def sealed(repository):
    """Every path that must never change: what manifests name, they themselves, the marker, and the trash."""
    backups = repository.catalog().backups
    named = {file.path for backup in backups for file in backup.files()}
    trash = {path for path in files_below(repository.root) if path.startswith("trash/")}
    return named | trash | {f"manifests/{backup.id}.json" for backup in backups} | {"aquad-repository.json"}


def files_below(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def digests(root, paths):
    there = (path for path in paths if (root / path).is_file())
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in there}
