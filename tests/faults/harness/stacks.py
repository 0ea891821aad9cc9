"""Repositories and actions to sweep. An action is called with the root of a repository; what it protects lies beside it."""

import os
import shutil
import tarfile
import zlib
from datetime import UTC, datetime, timedelta

from aquad.jobs.discard import discard
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import Work, run_job
from aquad.jobs.verify import verify
from aquad.jobs.weekly import archive
from aquad.repository.layout import MARKER
from aquad.repository.repository import Repository
from aquad.sources.configs.source import Configs, ConfigsTarget
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.stream.artifact import Silent
from aquad.stream.gpg.gpg import Gpg
from tests.small import LIMITS, FakeClock, Words, back_up

WORDS = Words(archive=False)
LATER = datetime(2024, 8, 2, 3, 0, 0, tzinfo=UTC)


class Stack:
    """How a repository is opened, and what is taken. `keys`: of an encrypted one."""

    def __init__(self, *sources, keys=None, encryption="off"):
        self._sources, self._encryption = sources or (WORDS,), encryption
        self._keys = keys
        self._gpg = None

    def _opened(self):
        if self._keys is not None and self._gpg is None:
            self._gpg = Gpg(self._keys)
        return {"stack": "small", "clock": FakeClock(), "zone": UTC, "gpg": self._gpg}

    def create(self, root):
        return Repository.create(root, encryption=self._encryption, **self._opened())

    def open(self, root):
        return Repository.open(root, **self._opened())

    def end(self):
        if self._gpg is not None:
            self._gpg.end()
            self._gpg = None

    def make(self, top, runs=1):
        """A repository of `runs` backups below `top`."""
        top.mkdir(exist_ok=True)
        self.create(top / "backups")
        for _ in range(runs):
            assert self.back_up(top / "backups") == "success"
        self.end()
        return top

    def back_up(self, root):
        return back_up(self.open(root), *self._sources).outcome

    def archive(self, root):
        """A weekly archive of the newest backup."""
        repository = self.open(root)

        def job(run):
            archive(repository, repository.catalog().find("latest"), run)
            return Work("success")

        return run_job(repository, "weekly", job, clock=FakeClock(LATER), zone=UTC, limits=LIMITS).outcome

    def verify(self, root):
        repository = self.open(root)
        verdicts = verify(repository, repository.catalog().backups, "content", Silent())
        if any(verdict.problems for verdict in verdicts):
            return "failed"
        return "success" if all(verdict.recorded for verdict in verdicts) else "warning"

    def recover(self, root):
        with self.open(root).writing(run_id="recovers", command="recover"):
            return "success"

    def change_encryption(self, root):
        repository = self.open(root)
        with repository.writing(run_id="changes", command="init"):
            repository.change_encryption("passphrase")
            return repository.marker.encryption.mode.replace("passphrase", "success")

    def discard(self, root):
        repository = self.open(root)

        def job(run):
            return discard(repository, NoServer(), None, lambda _: None, run)

        return run_job(repository, "discard", job, clock=FakeClock(), zone=UTC, limits=LIMITS).outcome


class Founding(Stack):
    """A repository that is made when it is opened; going on after a death half-way."""

    def open(self, root):
        if not (root / MARKER).exists():
            self.create(root)
        return super().open(root)

    def found(self, root):
        return "success" if self.open(root) else "failed"


class NoServer:
    """Keeps nothing aside."""

    def kept_aside(self):
        return []


class Restoring(Stack):
    """Brings one component back in place. `LIVE`: the directory beside the repository that it belongs to."""

    LIVE, COMPONENT = "", ""

    def live(self, top):
        return top / self.LIVE

    def source(self, root):
        raise NotImplementedError

    def target(self, repository):
        raise NotImplementedError

    def make(self, top, runs=1):
        """Of the old content a backup, and then other content that nobody backed up."""
        fill(self.live(top), b"sealed")
        self._sources = (self.source(top / "backups"),)
        super().make(top, runs)
        self._sources = (WORDS,)
        fill(self.live(top), b"of today")
        (self.live(top) / "only today").write_bytes(b"x")
        self.todays_content = contents(self.live(top))
        return top

    def restore(self, root, moment=None):
        clock = FakeClock(moment or LATER)
        repository = self.open(root)
        reader = open_backup(repository, self.COMPONENT, "latest", trusted=False)
        order = Order(self.COMPONENT, self.source(root), reader, self.target(repository))

        def job(run):
            return restore(repository, [order], lambda _: None, run)

        return run_job(repository, "restore", job, clock=clock, zone=UTC, limits=LIMITS).outcome

    def law(self, top, ended, breaks):
        """O2: what is replaced is in place or kept, all of it; and restoring again ends well."""
        live = contents(self.live(top))
        if ended.outcome == "success" and not self.is_restored(live):
            breaks("lies", "it said success, and the content is another")
        self.kept_law(top, live, breaks)
        outcome = self.restore(top / "backups", LATER + timedelta(minutes=5))
        live = contents(self.live(top))
        if outcome != "success" or not self.is_restored(live):
            breaks("stuck", f"restoring again: {outcome}, {sorted(live)}")
        self.kept_law(top, live, breaks)


class RestoringVolume(Restoring):
    LIVE = COMPONENT = "data"

    def source(self, root):
        return volume(self.live(root.parent))

    def target(self, repository):
        return VolumeTarget(aside=lambda stamp: repository.aside(stamp, self.COMPONENT))

    def is_restored(self, live):
        return live == written(b"sealed")

    def kept_law(self, top, live, breaks):
        kept = [archived(path) for path in sorted(top.glob("backups/aside/*/*.tar.gz"))]
        if None in kept:
            breaks("lies", "an archive in aside/ has its final name, and is not whole")
        if live != self.todays_content and self.todays_content not in kept:
            breaks("losses", f"what was replaced is nowhere; in place are {sorted(live)}")


class RestoringElsewhere(RestoringVolume):
    """The volume is on another disk than the repository: what is done there is not undone with what is done here."""

    def __init__(self, directory):
        super().__init__()
        self._live, self._todays = directory / "live", directory / "todays"

    def live(self, top):
        return self._live

    def make(self, top, runs=1):
        super().make(top, runs)
        shutil.copytree(self._live, self._todays, symlinks=True)
        return top

    def restore_afresh(self, root):
        shutil.rmtree(self._live)
        shutil.copytree(self._todays, self._live, symlinks=True)
        return self.restore(root)


class RestoringConfigs(Restoring):
    LIVE, COMPONENT = "checkout", "configs"

    def source(self, root):
        paths = ["large", "small", "directory"]
        return Configs(root=self.live(root.parent), paths=paths, optional_paths=[])

    def target(self, repository):
        return ConfigsTarget()

    def is_restored(self, live):
        return written(b"sealed").items() <= live.items()

    def kept_law(self, top, live, breaks):
        kept = {}
        for directory in sorted(self.live(top).glob("aquad-before-*")):
            for path, content in contents(directory).items():
                kept.setdefault(path, content)
        for path, content in self.todays_content.items():
            if content not in (live.get(path), kept.get(path)):
                breaks("losses", f"{path} of today is nowhere")


def volume(path):
    return Volume(name="data", path=path, quiesce="none", may_shrink=False, accepted=False)


def written(word):
    """What `fill` writes: path -> content of files, target of symlinks."""
    small = {f"directory/{number:02}": word * number for number in range(1, 6)}
    return {"large": word * 20_000, "small": word, "directory/link": "../small", **small}


def fill(top, word):
    (top / "directory").mkdir(parents=True, exist_ok=True)
    for path, content in written(word).items():
        if isinstance(content, bytes):
            (top / path).write_bytes(content)
        elif not (top / path).is_symlink():
            os.symlink(content, top / path)


def contents(top):
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(top))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(top))] = path.read_bytes()
    return found


def archived(path):
    """As `contents`; None when the archive is not whole."""
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.issym():
                    found[member.name.removeprefix("./")] = member.linkname
                elif member.isfile():
                    found[member.name.removeprefix("./")] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return None
    return found
