"""Retention carried out, taken back, and emptied: the actions to sweep, and what must be true after any fault in them."""

import hashlib
import shutil
from copy import copy
from datetime import UTC, timedelta

from aquad.core.errors import AquadError, NoSuchBackup
from aquad.jobs import prune
from aquad.jobs.run import Work, run_job
from aquad.jobs.verify import verify
from aquad.jobs.weekly import archive
from aquad.repository import layout
from aquad.repository.report import write_report
from aquad.repository.retention import Decision, Policy
from aquad.repository.trash import EMPTYING, MANIFEST
from aquad.stream.artifact import Silent
from tests.faults.harness.stacks import WORDS, Stack, fill, volume
from tests.small import LIMITS, FakeClock, journal

DAY = timedelta(days=1)
RULES = prune.Rules(
    Policy({"full": 30 * DAY, "incremental": 7 * DAY, "weekly": 84 * DAY}, 3, DAY), (), 7 * DAY, 90 * DAY, 10**9
)
LISTED, IN_TRASH, GONE = "listed", "in the trash", "gone"


class Removing(Stack):
    """Two fulls with a volume, a weekly archive, a report; and one more full that is in the trash already.

    `old`: the first full and the archive. `trashed`: the other.
    """

    def __init__(self, memory):
        fill(memory / "live", b"of a volume")
        super().__init__(WORDS, volume(memory / "live"))

    def make(self, top, runs=3):
        super().make(top, runs)
        root = top / "backups"
        repository = self.open(root)
        newest, self.trashed, oldest = [backup.id for backup in repository.catalog().backups]
        self._job(root, lambda repository, run: archive(repository, repository.catalog().find(oldest), run))
        self.old = [oldest, repository.catalog().latest().id]
        self.report = "backup_report_20240802_020000.txt"
        write_report(repository.layout, "20240802_020000", "a report", lambda _: None)
        repository.journal.append("report_written", run="a run", backup=oldest, path=self.report)
        self._job(root, lambda repository, _: repository.trash.put(repository.catalog().find(self.trashed)))
        assert [backup.id for backup in repository.catalog().backups] == [self.old[1], newest, oldest]
        return top

    def _job(self, root, work):
        repository = self.open(root)

        def job(run):
            work(repository, run)
            return Work("success")

        repository.spend_reserve()
        return run_job(repository, "prune", job, clock=FakeClock(), zone=UTC, limits=LIMITS).outcome

    def prune(self, root):
        """The old ones go to the trash, the other out of it, and the report goes."""

        def work(repository, _):
            decisions = [
                Decision(one.id, one.kind, one.id not in self.old, "on purpose") for one in repository.catalog().backups
            ]
            empty = [one.id for one in repository.trash.contents() if one.id == self.trashed]
            reports = [self.report] if (root / self.report).exists() else []
            pruning = prune.Pruning(decisions, empty, reports)
            prune.carry_out(repository, pruning, RULES, ("full", "weekly"))

        return self._job(root, work)

    def take_back(self, root):
        def work(repository, _):
            try:
                repository.trash.take_back(self.trashed)
            except NoSuchBackup:
                assert self.trashed in {one.id for one in repository.catalog().backups}
            repository.journal.append("trash_restored", backup=self.trashed)

        return self._job(root, work)

    def empty(self, root):
        def work(repository, _):
            with repository.removing(0):
                for one in repository.trash.contents():
                    repository.journal.append("trash_emptied", backup=one.id)
                    repository.trash.empty(one.id)

        return self._job(root, work)


class RemovalLaws:
    """`after`: of each backup that the action is for, where it is when it succeeded. Before that it may also be where it was.

    After recovery no backup is anything but whole: listed, with its data, or in the trash, with its data, or gone for good.
    """

    def __init__(self, stack, pristine, action, after):
        self.stack, self._action, self._after, self._done_at_its_end = stack, action, after, True
        repository = stack.open(pristine / "backups")
        living = {backup.id: backup for backup in repository.catalog().backups}
        trashed = {one.id: one.backup for one in repository.trash.contents()}
        self._before = dict.fromkeys(living, LISTED) | dict.fromkeys(trashed, IN_TRASH)
        self._backups = living | trashed
        self._digests = {
            id_: {file.path: file.stored_sha256 for file in backup.files()} for id_, backup in self._backups.items()
        }

    def of_recovery(self):
        """What recovers after the action was killed may find it done or not."""
        laws = copy(self)
        laws._done_at_its_end = False
        return laws

    def check(self, top, ended, counts, where):
        def breaks(kind, what):
            counts.breaks(kind, f"{where}: {what}")

        try:
            self._check(top, ended, breaks)
        except (AquadError, OSError) as error:
            breaks("stuck", f"{type(error).__name__}: {error}")

    def _check(self, top, ended, breaks):
        root = top / "backups"
        if self.stack.recover(root) != "success":
            breaks("stuck", "it does not recover")
        self._where_all_are(root, self._done_at_its_end and ended.outcome == "success", breaks)
        self._journal_knows(root, breaks)
        self._everything_comes_back(top, breaks)
        if self._action(root) != "success":
            breaks("stuck", "the action does not end well when it is done again")
        self._where_all_are(root, True, breaks)
        if self.stack.back_up(root) not in {"success", "warning"}:
            breaks("stuck", "the next backup")

    def _where_all_are(self, root, done, breaks):
        for id_, before in self._before.items():
            after = self._after.get(id_, before)
            allowed = {after} if done else {before, after}
            found = self._place(root, id_)
            if found not in allowed:
                breaks("losses", f"{id_} is {found}, not {' or '.join(sorted(allowed))}")
        repository = self.stack.open(root)
        catalog = repository.catalog()
        for bad in catalog.unreadable:
            breaks("losses", f"the manifest of {bad.id}: {bad.reason}")
        self._verify(repository, breaks)

    def _place(self, root, id_):
        """Whole: every file of it in one place, with its sealed bytes."""
        where, bin_ = layout.Layout(root), root / "trash" / id_
        in_root = {path: _digest(root / path) for path in self._digests[id_]}
        in_trash = {path: _digest(bin_ / _moved(path)) for path in self._digests[id_]}
        whole, none = self._digests[id_], dict.fromkeys(self._digests[id_])
        manifests = where.manifest(id_).exists(), (bin_ / MANIFEST).exists(), (bin_ / EMPTYING).exists()
        if (
            manifests == (True, False, False)
            and in_root == whole
            and in_trash == none
            and not (bin_.exists() and any(bin_.iterdir()))
        ):
            return LISTED
        if manifests == (False, True, False) and in_root == none and in_trash == whole:
            return IN_TRASH
        if manifests[:2] == (False, False) and in_root == none and (manifests[2] or in_trash == none):
            return GONE
        right = [sum(found[path] == whole[path] for path in whole) for found in (in_root, in_trash)]
        return f"half here and half there: manifests {manifests}, and of {len(whole)} files {right}"

    def _journal_knows(self, root, breaks):
        """Nothing goes before the journal says so."""
        told = {(entry["event"], entry.get("backup")) for entry in journal(root)}
        for id_, before in self._before.items():
            place = self._place(root, id_)
            event = {(LISTED, IN_TRASH): "pruned", (IN_TRASH, GONE): "trash_emptied"}.get((before, place))
            if event and (event, id_) not in told:
                breaks("lies", f"{id_} went without a line {event}")

    def _everything_comes_back(self, top, breaks):
        """All that is whole in the trash can be had back, and is what was sealed."""
        other = top.with_name("taken back")
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(top, other, symlinks=True)
        repository = self.stack.open(other / "backups")
        with repository.writing(run_id="takes back", command="trash restore"):
            for one in repository.trash.contents():
                try:
                    repository.trash.take_back(one.id)
                except NoSuchBackup:
                    if one.backup is not None:
                        breaks("losses", f"{one.id} is in the trash, and does not come back")
        self._verify(repository, breaks)
        shutil.rmtree(other)

    def _verify(self, repository, breaks):
        for verdict in verify(repository, repository.catalog().backups, "content", Silent()):
            for problem in verdict.problems:
                breaks("lies", f"{verdict.backup} is listed: {problem}")


def _moved(path):
    """Where a file of a backup lies in its directory in the trash."""
    top = layout.top(path)
    return top.rpartition("/")[2] + path.removeprefix(top)


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
