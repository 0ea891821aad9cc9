"""What the model remembers of a repository: a dictionary of sealed backups, and every byte that has to be there."""

import gzip
import hashlib
import json
import os
from typing import NamedTuple

from aquad.jobs.overview import picture
from aquad.jobs.verify import verify
from aquad.repository.reader import BackupReader, Directory
from aquad.stream.artifact import Silent
from tests.faults.model_disk import drafts, everything, is_below, tree_in_tar

MARKER = "aquad-repository.json"


class Sealed(NamedTuple):
    """`files`: their bytes as they were sealed, the manifest among them. `own`: the paths of each good component."""

    id: str
    sequence: int
    files: dict
    own: dict
    fingerprint: dict
    encrypted: bool

    @property
    def manifest(self):
        return f"manifests/{self.id}.json"


UNFINISHED_MARKER = ".aquad-repository.json.new"
"""A change of the encryption that died leaves it; the next run removes it."""


class Memory:
    def __init__(self, root):
        self.root = root
        self.backups = {}
        self.disk = everything(root)
        """What is there, the damage that was done by hand included."""
        self.dead = {}
        """Drafts of runs that died, and what they promised."""
        self.journal = b""
        """As far as it was looked into."""

    def found(self):
        """What is on the disk, but for files under way that a draft's names.json names."""
        there = everything(self.root)
        promised = [
            name
            for draft, names in drafts(self.root).items()
            if f"manifests/{draft}.json" not in there
            for name in names
        ]
        return {path: stored for path, stored in there.items() if path in self.disk or not is_below(path, promised)}

    def listed(self):
        """Newest first."""
        whole = [b for b in self.backups.values() if self.disk.get(b.manifest) == b.files[b.manifest]]
        return sorted(whole, key=lambda backup: -backup.sequence)

    def unreadable(self):
        return {
            b.id for b in self.backups.values() if self.disk.get(b.manifest, b.files[b.manifest]) != b.files[b.manifest]
        }

    def damaged(self, backup, component=None):
        """Files of it that are not what was sealed."""
        paths = backup.files.keys() - {backup.manifest} if component is None else backup.own[component]
        return {path for path in paths if self.disk.get(path) != backup.files[path]}

    def broken(self):
        """Each backup and file of it that is not what was sealed, or gone."""
        return [(b.id, p) for b in self.backups.values() for p in b.files if self.disk.get(p) != b.files[p]]

    def owner(self, path):
        return next(backup for backup in self.backups.values() if path in backup.files)

    def latest(self, component, without=frozenset()):
        return next((one for one in self.listed() if component in one.own and one.id not in without), None)

    def learn(self, *, may_change=(), tidy=False):
        """Look at what a job did: explain every file that came, went or changed. Return what was sealed, as its manifest says."""
        found = self.found()
        for path in self.disk.keys() - found.keys() - {UNFINISHED_MARKER}:
            assert is_below(path, may_change) or self._is_in_trash(path, found), f"{path} is gone"
        for path in self.disk.keys() & found.keys():
            assert is_below(path, may_change) or found[path] == self.disk[path], f"{path} is another"
        new = found.keys() - self.disk.keys()
        manifests = {path: json.loads(found[path]) for path in new if os.path.dirname(path) == "manifests"}
        known = {file["path"] for content in manifests.values() for file in files_of(content)} | manifests.keys()
        for path in new - known:
            assert is_below(path, may_change) or is_below(path, [f"trash/{d}" for d in self.dead]), f"{path} is loose"
        left = drafts(self.root)
        for draft in self.dead.keys() - left.keys():
            sealed = f"manifests/{draft}.json" in self.disk
            assert sealed or (self.root / "trash" / draft / "draft").is_dir(), f"{draft} is gone"
        assert not tidy or left == {}
        assert len(manifests) <= 1
        self.disk, self.dead = found, left
        return next(iter(manifests.values()), None)

    def _is_in_trash(self, path, found):
        """Whether recovery moved it: what was left of a backup whose manifest was removed while its draft was there."""
        return any(
            is_below(path, names)
            and f"manifests/{draft}.json" not in self.disk
            and any(p.startswith(f"trash/{draft}/") and stored == self.disk[path] for p, stored in found.items())
            for draft, names in self.dead.items()
        )

    def remember(self, content, fingerprint):
        """A manifest that was not there before. Its id and its sequence are new."""
        assert content["id"] not in self.backups, "an id was used again"
        assert all(backup.sequence < content["sequence"] for backup in self.backups.values()), (
            "a sequence was used again"
        )
        good = [component for component in content["components"] if component["outcome"] != "failed"]
        paths = [f"manifests/{content['id']}.json", *(file["path"] for file in files_of(content))]
        for file in files_of(content):
            assert hashlib.sha256(self.disk[file["path"]]).hexdigest() == file["stored_sha256"]
        sealed = Sealed(
            content["id"],
            content["sequence"],
            {path: self.disk[path] for path in paths},
            {component["name"]: [file["path"] for file in artifacts_of(component)] for component in good},
            fingerprint,
            any(a["encryption"]["mode"] != "off" for component in good for a in component["artifacts"]),
        )
        self.backups[sealed.id] = sealed
        return sealed


def artifacts_of(component):
    return [file for artifact in component["artifacts"] for file in (artifact, artifact["index"]) if file]


def files_of(content):
    return [file for component in content["components"] for file in artifacts_of(component)]


def check_content(repository, sealed, tree, words):
    """What was just sealed is the live data, byte for byte, read by Python's own gzip and tarfile."""
    backup = repository.catalog().find(sealed.id)
    for component in backup.components:
        if not component.good:
            continue
        reader = BackupReader(Directory(repository.root), backup, component, repository.gpg)
        stored = b"".join(reader.read(reader.artifacts[0].path))
        if component.name == "data":
            assert tree_in_tar(stored) == tree, "what was sealed is not what was there"
        else:
            assert gzip.decompress(stored) == words + words[:7] + b"end"
    (verdict,) = verify(repository, [backup], "content", Silent())
    assert verdict[1:] == ("content", [], [], True)


def check_catalog(repository, memory):
    """The disk holds what the model says, and the catalog lists it."""
    found = memory.found()
    assert found.keys() == memory.disk.keys()
    assert found == memory.disk
    catalog = repository.catalog()
    assert [(b.id, b.sequence) for b in catalog.backups] == [(b.id, b.sequence) for b in memory.listed()]
    assert {u.id for u in catalog.unreadable} == memory.unreadable()
    for component in ("words", "data"):
        newest = catalog.latest(component)
        assert (newest and newest.id) == getattr(memory.latest(component), "id", None)


def check_verdicts(repository, memory, level):
    """Every file that was damaged is named, and no other."""
    for verdict in verify(repository, repository.catalog().backups, level, Silent()):
        damaged = memory.damaged(memory.backups[verdict.backup])
        if level == "quick":
            damaged = {
                p for p in damaged if len(memory.disk.get(p, b"")) != len(memory.backups[verdict.backup].files[p])
            }
        assert len(verdict.problems) == len(damaged)
        assert all(any(path in problem for problem in verdict.problems) for path in damaged)
        assert verdict.level == level


def check_journal(repository, memory, *, ended):
    """Its chain is whole, no run has two outcomes, and no line says good of what is damaged, or the reverse."""
    written = repository.layout.journal.read_bytes()
    if written == memory.journal:
        return
    assert written.startswith(memory.journal.rpartition(b"\n")[0]), "a line of the journal was changed"
    entries, known = list(repository.journal.entries()), memory.journal.count(b"\n")
    memory.journal = written
    started = [entry["run"] for entry in entries if entry["event"] == "run_started"]
    outcomes = [entry["run"] for entry in entries if entry["event"] == "run_ended"]
    assert len(set(outcomes)) == len(outcomes), "a run with two outcomes"
    assert set(outcomes) <= set(started)
    assert not ended or set(outcomes) == set(started), "a run without an outcome"
    for entry in entries[known:]:
        if entry["event"] == "verified" and entry["level"] != "quick":
            assert (entry["outcome"] == "failed") == bool(memory.damaged(memory.backups[entry["backup"]])), entry
    last = {entry["backup"]: entry["outcome"] for entry in entries if entry["event"] == "verified"}
    now = repository.clock.now()
    seen = picture(repository, ["words", "data"], objectives={}, grace_seconds=0, now=now).overview
    for view in seen.components:
        if last.get(view.backup) == "failed":
            assert view.verified_level == "DAMAGED", f"{view.backup} passes for verified"
