"""The trash: what goes there, comes back, or is deleted, whatever happens meanwhile, and whatever else lies there."""

import errno
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from aquad.core.errors import AquadError, NoSuchBackup, RepositoryRefused
from aquad.jobs.verify import verify
from aquad.repository.trash import EMPTYING, MANIFEST
from aquad.stream.artifact import Silent
from tests.faults.harness import cases
from tests.faults.harness.child import run_struck
from tests.faults.harness.counts import Counts
from tests.faults.harness.places import Directory, Disk, Memory, needs_root
from tests.faults.harness.seam import Fail, Fault, Kill
from tests.faults.harness.sweep import chosen, sweep
from tests.small import back_up, make_repository, open_repository

MEMORY = Path("/dev/shm")
EACH = [cases.pruning, cases.taking_back, cases.emptying]
A_BACKUP, ANOTHER = "20240802_020000_full", "20240802_020001_full"
FILES = {"words_20240802_020000.txt.gz", "volumes_20240802_020000", "20240802_020000_full.index"}


@pytest.fixture
def quick(tmp_path):
    with tempfile.TemporaryDirectory(prefix="aquad-trash-", dir=MEMORY if MEMORY.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture
def repository(quick):
    """Two fulls, each of a dump, and an archive with its index."""
    repository = make_repository(quick / "backups")
    back_up(repository), back_up(repository)
    return repository


@pytest.fixture
def sentinel(quick):
    """A directory outside: never followed into, never changed."""
    outside = quick / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("manifest.json", "words.tar.gz", "deep/words_20240802_020000.txt.gz"):
        (outside / name).write_bytes(b"precious")
    before = snapshot(outside)
    yield outside
    assert snapshot(outside) == before


def snapshot(top):
    """Everything below, byte for byte."""
    found = {}
    for path in sorted(top.rglob("*")):
        kind = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
        found[str(path.relative_to(top))] = kind
    return found


def without_state(root):
    return {path: what for path, what in snapshot(root).items() if not path.startswith("state/")}


def put(repository, id_=A_BACKUP):
    repository.trash.put(repository.catalog().find(id_))


def listed(repository):
    return [backup.id for backup in open_repository(repository.root).catalog().backups]


def recover(repository):
    with repository.writing(run_id="recovers", command="recover"):
        pass


def problems(repository):
    verdicts = verify(repository, repository.catalog().backups, "bytes", Silent())
    return [problem for verdict in verdicts for problem in verdict.problems]


class TestEveryCall:
    """K6, A7: see `RemovalLaws` for what must be true after each."""

    @pytest.mark.parametrize("case", EACH)
    def test_K6_sigkill(self, case, quick):
        case = case(quick, quick)
        ended = sweep(case.action, Directory(case.pristine, quick / "work"), case.laws, Counts("K6"), Kill, step=1)
        assert len(ended) > 30
        assert all(one.killed for one in ended)

    @pytest.mark.parametrize("lasting", [False, True], ids=["once", "from_here_on"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
    @pytest.mark.parametrize("case", EACH)
    def test_K6_B2_errors(self, case, code, lasting, quick):
        case = case(quick, quick)
        fail = partial(Fail, code=code, lasting=lasting)
        sweep(case.action, Directory(case.pristine, quick / "work"), case.laws, Counts("K6"), fail, limit=6)

    def test_A7_sigkill_during_the_recovery_from_a_sigkill(self, quick):
        (quick / "counted").mkdir()
        whole = cases.pruning(quick / "counted", quick)
        calls = run_struck(whole.action, whole.pristine / "backups", Fault()).calls
        most = 0
        for at in chosen(calls, limit=7):
            directory = quick / f"killed at {at}"
            directory.mkdir()
            case = cases.recovering_from_pruning(directory, at)
            place = Directory(case.pristine, quick / "work")
            ended = sweep(case.action, place, case.laws, Counts("A7"), Kill, limit=6)
            most = max(most, len(ended))
        assert most > 5, "recovery never had anything to do"


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_B2_with_no_byte_free_the_trash_can_be_emptied(kind, quick):
    """Or nobody gets the repository going again with aquad alone."""
    case = cases.emptying(quick, quick)
    place = Memory(case.pristine, quick, "size=2m") if kind == "tmpfs" else Disk(kind, case.pristine, quick, 16 << 20)
    with place as disk:
        top = disk.fresh()
        disk.leave(0)
        ended = run_struck(case.action, top / "backups", Fault())
        assert ended.outcome == "success", ended.error
        assert os.listdir(top / "backups" / "trash") == []


class TestPut:
    def test_a_backup_leaves_the_root_and_lies_whole_in_the_trash(self, repository):
        stored = (repository.root / "words_20240802_020000.txt.gz").read_bytes()
        put(repository)
        assert listed(repository) == [ANOTHER]
        assert {path.name for path in (repository.layout.trash / A_BACKUP).iterdir()} == {*FILES, MANIFEST}
        assert (repository.layout.trash / A_BACKUP / "words_20240802_020000.txt.gz").read_bytes() == stored
        assert not [name for name in os.listdir(repository.root) if "20240802_020000" in name and "report" not in name]
        assert not problems(repository)

    def test_it_is_in_the_contents(self, repository):
        put(repository)
        (removed,) = repository.trash.contents()
        assert removed.id == removed.backup.id == A_BACKUP

    def test_P4_what_somebody_removed_by_hand_does_not_stop_it(self, repository):
        shutil.rmtree(repository.root / "volumes_20240802_020000")
        put(repository)
        assert listed(repository) == [ANOTHER]
        recover(repository)
        repository.trash.empty(A_BACKUP)
        assert os.listdir(repository.layout.trash) == []

    def test_P4_what_somebody_renamed_by_hand_stays_under_its_new_name(self, repository):
        os.rename(repository.root / "volumes_20240802_020000", repository.root / "volumes_old")
        put(repository)
        repository.trash.empty(A_BACKUP)
        assert (repository.root / "volumes_old" / "words.tar.gz").is_file()

    def test_a_name_that_a_living_backup_owns_is_never_moved(self, repository):
        """Somebody copied the manifest back: then the backup lives."""
        put(repository)
        bin_ = repository.layout.trash / A_BACKUP
        for name in FILES:
            target = repository.layout.manifests if name.endswith(".index") else repository.root
            os.rename(bin_ / name, target / name)
        shutil.copy(bin_ / MANIFEST, repository.layout.manifest(A_BACKUP))
        before = without_state(repository.root)
        recover(repository)
        assert without_state(repository.root) == before
        assert not problems(repository)

    def test_P4_data_that_somebody_copied_out_of_the_trash_does_not_stop_recovery(self, repository):
        """`cp -a trash/ID/* .` is what one does who does not know `trash restore`."""
        put(repository)
        bin_ = repository.layout.trash / A_BACKUP
        shutil.copytree(bin_ / "volumes_20240802_020000", repository.root / "volumes_20240802_020000")
        (repository.root / "words_20240802_020000.txt.gz").write_bytes(b"another")
        recover(repository)
        assert back_up(repository).outcome == "success"
        assert (repository.root / "volumes_20240802_020000" / "words.tar.gz").is_file(), "nobody of us put it there"
        assert (repository.root / "words_20240802_020000.txt.gz").read_bytes() == b"another"
        assert (bin_ / "words_20240802_020000.txt.gz").read_bytes() != b"another"

    def test_K8_a_foreign_file_in_its_trash_is_not_replaced(self, repository):
        bin_ = repository.layout.trash / A_BACKUP
        bin_.mkdir()
        (bin_ / "words_20240802_020000.txt.gz").write_bytes(b"foreign")
        put(repository)
        recover(repository)
        assert (bin_ / "words_20240802_020000.txt.gz").read_bytes() == b"foreign"

    def test_K8_a_symlink_in_the_trash_is_not_followed(self, repository, sentinel):
        os.symlink(sentinel, repository.layout.trash / A_BACKUP)
        with pytest.raises(AquadError):
            put(repository)
        assert A_BACKUP in listed(repository)
        recover(repository)
        assert not problems(repository)


class TestTakeBack:
    def test_it_is_a_backup_again_byte_for_byte(self, repository):
        before = without_state(repository.root)
        put(repository)
        assert repository.trash.take_back(A_BACKUP).id == A_BACKUP
        assert without_state(repository.root) == before
        assert A_BACKUP in listed(repository)
        assert not problems(repository)

    def test_twice_is_refused_and_changes_nothing(self, repository):
        put(repository)
        repository.trash.take_back(A_BACKUP)
        before = without_state(repository.root)
        with pytest.raises(NoSuchBackup) as refused:
            repository.trash.take_back(A_BACKUP)
        assert refused.value.exit_code == 10
        assert without_state(repository.root) == before

    @pytest.mark.parametrize(
        "id_",
        ["20240101_020000_full", "", ".", "..", "nonsense", "x" * 300, "a\0b"],
        ids=lambda text: text[:9] or "empty",
    )
    def test_an_unknown_id(self, id_, repository):
        put(repository)
        before = without_state(repository.root)
        with pytest.raises(NoSuchBackup, match="take back"):
            repository.trash.take_back(id_)
        assert without_state(repository.root) == before

    @pytest.mark.parametrize("form", ["{id}/", "../trash/{id}", "{trash}/{id}", "./{id}"])
    def test_a_path_is_no_id(self, form, repository):
        """As completion in a shell writes it. Either it is taken back, or nothing is changed."""
        before_all = without_state(repository.root)
        put(repository)
        before = without_state(repository.root)
        try:
            repository.trash.take_back(form.format(id=A_BACKUP, trash=repository.layout.trash))
        except NoSuchBackup:
            assert without_state(repository.root) == before
        else:
            assert without_state(repository.root) == before_all

    @pytest.mark.parametrize("taken", ["words_20240802_020000.txt.gz", "volumes_20240802_020000"])
    @pytest.mark.parametrize("kind", ["file", "directory", "dangling"])
    def test_a_name_that_is_taken(self, taken, kind, repository):
        put(repository)
        match kind:
            case "file":
                (repository.root / taken).write_bytes(b"foreign")
            case "directory":
                (repository.root / taken).mkdir()
            case "dangling":
                os.symlink("/nowhere", repository.root / taken)
        before = without_state(repository.root)
        with pytest.raises(RepositoryRefused, match="exists in the repository"):
            repository.trash.take_back(A_BACKUP)
        assert without_state(repository.root) == before

    def test_a_manifest_that_is_taken(self, repository):
        put(repository)
        repository.layout.manifest(A_BACKUP).write_bytes(b"foreign")
        before = without_state(repository.root)
        with pytest.raises(RepositoryRefused):
            repository.trash.take_back(A_BACKUP)
        assert without_state(repository.root) == before

    def test_a_broken_link_in_the_trash_does_not_replace_what_is_in_the_root(self, repository):
        put(repository)
        bin_ = repository.layout.trash / A_BACKUP
        (bin_ / "words_20240802_020000.txt.gz").unlink()
        os.symlink("/nowhere", bin_ / "words_20240802_020000.txt.gz")
        (repository.root / "words_20240802_020000.txt.gz").write_bytes(b"foreign")
        with pytest.raises(RepositoryRefused):
            repository.trash.take_back(A_BACKUP)
        assert (repository.root / "words_20240802_020000.txt.gz").read_bytes() == b"foreign"

    def test_P4_half_a_backup_does_not_pass_for_one(self, repository):
        """Somebody removed a file from the trash: no manifest without its data."""
        put(repository)
        (repository.layout.trash / A_BACKUP / "words_20240802_020000.txt.gz").unlink()
        before = without_state(repository.root)
        with pytest.raises(AquadError):
            repository.trash.take_back(A_BACKUP)
        assert without_state(repository.root) == before

    def test_a_manifest_of_another_backup_is_not_taken_back(self, repository):
        put(repository)
        os.rename(repository.layout.trash / A_BACKUP, repository.layout.trash / "20240101_020000_full")
        before = without_state(repository.root)
        with pytest.raises(NoSuchBackup):
            repository.trash.take_back("20240101_020000_full")
        assert without_state(repository.root) == before
        recover(repository)
        assert open_repository(repository.root).catalog().unreadable == ()

    def test_a_damaged_manifest_is_not_taken_back_nor_emptied(self, repository):
        put(repository)
        path = repository.layout.trash / A_BACKUP / MANIFEST
        path.write_bytes(path.read_bytes().replace(b"success", b"warning"))
        before = without_state(repository.root)
        with pytest.raises(NoSuchBackup):
            repository.trash.take_back(A_BACKUP)
        repository.trash.empty(A_BACKUP)
        recover(repository)
        assert without_state(repository.root) == before


class TestEmpty:
    def test_all_of_it_is_gone(self, repository):
        put(repository)
        repository.trash.empty(A_BACKUP)
        assert os.listdir(repository.layout.trash) == []
        assert not problems(repository)

    def test_what_has_begun_to_go_does_not_come_back_and_goes_the_next_time(self, repository):
        put(repository)
        bin_ = repository.layout.trash / A_BACKUP
        os.rename(bin_ / MANIFEST, bin_ / EMPTYING)
        with pytest.raises(NoSuchBackup):
            repository.trash.take_back(A_BACKUP)
        recover(repository)
        repository.trash.empty(A_BACKUP)
        assert os.listdir(repository.layout.trash) == []

    def test_twice(self, repository):
        put(repository)
        repository.trash.empty(A_BACKUP)
        repository.trash.empty(A_BACKUP)
        assert listed(repository) == [ANOTHER]

    def test_P4_with_files_removed_and_renamed_by_hand(self, repository):
        put(repository)
        bin_ = repository.layout.trash / A_BACKUP
        shutil.rmtree(bin_ / "20240802_020000_full.index")
        os.rename(bin_ / "words_20240802_020000.txt.gz", bin_ / "mine")
        repository.trash.empty(A_BACKUP)
        assert snapshot(bin_).keys() == {"mine"}


class TestForeign:
    """K8: what nobody of us put there is neither deleted nor followed."""

    def foreign(self, repository, *places):
        for place in places:
            path = repository.root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"foreign " + place.encode())
        return places

    def check(self, repository, places):
        """Wherever it went with the directory that it lay in."""
        found = {path.read_bytes() for path in repository.root.rglob("*") if path.is_file()}
        lost = [place for place in places if b"foreign " + place.encode() not in found]
        assert not lost

    def test_K8_files_everywhere(self, repository, sentinel):
        places = self.foreign(
            repository,
            "mine.txt",
            "words_20240802_020000.txt.gz.copy",
            "volumes_20240802_020000/mine.txt",
            "volumes_20240802_020000/deep/mine.txt",
            "volumes_20240101_000000/mine.txt",
            "manifests/20240802_020000_full.index/mine.txt",
            "weekly/mine.tar.gz",
            "trash/mine.txt",
            "trash/20240802_020000_full/mine.txt",
            "backup_report_x.txt",
        )
        for where in ("", "volumes_20240802_020000", "trash", "trash/20240802_020000_full", "weekly"):
            os.symlink(sentinel, repository.root / where / "link")
            os.symlink(sentinel / "manifest.json", repository.root / where / "file link")
        put(repository)
        recover(repository)
        self.check(repository, places)
        repository.trash.take_back(A_BACKUP)
        self.check(repository, places)
        put(repository)
        repository.trash.empty(A_BACKUP)
        recover(repository)
        self.check(repository, places)
        assert not problems(repository)
        links = [path for path in repository.root.rglob("*link") if path.is_symlink()]
        assert len(links) == 10

    def test_K8_a_directory_in_the_trash(self, repository):
        places = self.foreign(
            repository,
            "trash/my own/draft of a novel/chapter 1",
            "trash/my own/drafts.txt",
            "trash/my own/deep/er/file",
            "trash/20240101_000000_full/draft",
        )
        (repository.layout.trash / "my own" / "empty").mkdir()
        before = without_state(repository.root)
        for one in repository.trash.contents():
            repository.trash.empty(one.id)
        self.check(repository, places)
        recover(repository)
        assert without_state(repository.root) == before

    def test_K8_a_volume_that_is_a_link_now_is_not_followed(self, repository, sentinel):
        """Somebody moved the directory to another disk, and left a link."""
        shutil.rmtree(repository.root / "volumes_20240802_020000")
        os.symlink(sentinel, repository.root / "volumes_20240802_020000")
        put(repository)
        recover(repository)
        repository.trash.empty(A_BACKUP)
        assert (sentinel / "words.tar.gz").exists()

    def test_K8_a_directory_under_the_name_of_a_file(self, repository):
        put(repository)
        path = repository.layout.trash / A_BACKUP / "words_20240802_020000.txt.gz"
        path.unlink()
        places = self.foreign(repository, f"trash/{A_BACKUP}/words_20240802_020000.txt.gz/mine")
        repository.trash.empty(A_BACKUP)
        self.check(repository, places)

    def test_K8_in_what_a_dead_run_left(self, repository, quick, sentinel):
        """Killed after its renames, before its manifest; then somebody puts something of his own among it."""
        whole = snapshot(repository.root)

        def action(root):
            return back_up(open_repository(root)).outcome

        place = Directory(repository.root, quick / "killed")
        calls = run_struck(action, place.fresh(), Fault()).calls
        for at in range(calls, 20, -2):
            top = place.fresh()
            run_struck(action, top, Kill(at))
            killed = open_repository(top)
            if (top / "volumes_20240802_020002").exists() and len(listed(killed)) == 2:
                break
        else:
            pytest.fail("no kill left anything")
        assert len(snapshot(top)) > len(whole)
        places = self.foreign(killed, "volumes_20240802_020002/mine")
        os.symlink(sentinel, top / "volumes_20240802_020002" / "link")
        recover(killed)
        (left,) = killed.trash.contents()
        assert left.backup is None
        places += self.foreign(killed, f"trash/{left.id}/mine")
        killed.trash.empty(left.id)
        self.check(killed, places)
        there = {path.name for path in killed.layout.trash.rglob("*") if path.is_symlink() or path.is_file()}
        assert there == {"mine", "link"}, "what the dead run left is gone, and nothing else"
