import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from aquad.core.errors import Damaged, LockHeld, NoSuchBackup, RepositoryRefused, RepositoryWriteFailed
from aquad.jobs.verify import verify
from aquad.repository import manifest
from aquad.repository.hashed import SYNC_BYTES, HashedFile
from aquad.repository.plain import file_chunks
from aquad.storage import files
from aquad.stream.artifact import Silent
from tests.small import FakeClock, Words, back_up, journal, make_repository, open_repository, outcomes


class LyingDisk:
    """Stands for `os` in the seam: of what begins with `start`, the disk keeps another last byte than it was given."""

    def __init__(self, start):
        self._start = start

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, fd, stored):
        if bytes(stored[: len(self._start)]) == self._start:
            stored = bytes(stored[:-1]) + bytes([stored[-1] ^ 1])
        return os.write(fd, stored)


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "backups")


class TestSealing:
    def test_a_backup_lies_under_the_documented_names_with_mode_0600(self, repository):
        back_up(repository)
        found = sorted(str(p.relative_to(repository.root)) for p in repository.root.rglob("*") if p.is_file())
        assert found == [
            "aquad-repository.json",
            "manifests/20240802_020000_full.index/words.jsonl.gz",
            "manifests/20240802_020000_full.json",
            "state/audit.jsonl",
            "state/lock",
            "state/reserve",
            "volumes_20240802_020000/words.tar.gz",
            "words_20240802_020000.txt.gz",
        ]
        modes = {stat.S_IMODE(p.stat().st_mode) for p in repository.root.rglob("*") if p.is_file()}
        assert modes == {0o600}
        assert {stat.S_IMODE(p.stat().st_mode) for p in repository.root.rglob("*") if p.is_dir()} == {0o700}

    def test_parts_open_one_by_one_and_together_with_stock_gzip(self, repository):
        source = Words()
        back_up(repository, source)
        backup = repository.catalog().find("latest")
        artifact = backup.components[0].artifacts[0]
        stored = (repository.root / artifact.path).read_bytes()
        whole = source.text + source.text[:7] + b"end"
        assert gzip.decompress(stored) == whole
        assert [gzip.decompress(stored[p.offset : p.offset + p.length]) for p in artifact.parts] == [whole[:-3], b"end"]
        assert artifact.plain_sha256 == hashlib.sha256(whole).hexdigest()
        assert artifact.stored_sha256 == hashlib.sha256(stored).hexdigest()
        assert artifact.parts[0].facts == {"rows": 2}

    def test_the_digest_of_a_manifest_is_what_docs_say_it_is(self, repository):
        back_up(repository)
        content = json.loads(repository.layout.manifest("20240802_020000_full").read_bytes())
        digest = content.pop("manifest_sha256")
        compact = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert hashlib.sha256(compact).hexdigest() == digest

    def test_two_backups_in_one_second_take_the_next_free_second(self, repository):
        back_up(repository)
        back_up(repository)
        assert [m.id for m in repository.catalog().backups] == ["20240802_020001_full", "20240802_020000_full"]
        assert [m.sequence for m in repository.catalog().backups] == [2, 1]

    def test_order_is_by_sequence_when_the_clock_went_back(self, repository):
        back_up(repository)
        past = FakeClock()
        past.move(-86400)
        repository = open_repository(repository.root, past)
        back_up(repository, clock=past)
        assert repository.catalog().find("latest").id == "20240801_020000_full"

    def test_a_failed_component_makes_a_partial_backup_and_a_failed_run(self, repository):
        result = back_up(repository, Words("good"), Words("bad", fails=True))
        backup = repository.catalog().find("latest")
        assert (result.outcome, backup.outcome) == ("failed", "partial")
        assert [c.good for c in backup.components] == [True, False]
        assert not list(repository.root.rglob("bad*"))
        assert "on purpose" in backup.components[1].reason
        assert repository.catalog().find("latest", "good").id == backup.id
        with pytest.raises(NoSuchBackup):
            repository.catalog().find("latest", "bad")

    def test_with_no_good_component_nothing_is_sealed(self, repository):
        result = back_up(repository, Words(fails=True))
        assert result.outcome == "failed"
        assert repository.catalog().backups == []
        assert os.listdir(repository.layout.drafts) == []
        assert outcomes(repository.root) == ["failed"]

    def test_an_unexpected_error_is_recorded_and_raised(self, repository):
        class Broken(Words):
            def take(self, sink, previous, run):
                raise ZeroDivisionError("a bug")

        with pytest.raises(ZeroDivisionError):
            back_up(repository, Broken())
        assert outcomes(repository.root) == ["failed"]
        assert "ZeroDivisionError" in journal(repository.root)[-1]["reason"]

    def test_B6_a_disk_that_keeps_other_bytes_than_it_was_given_is_found_before_anything_is_sealed(
        self, repository, monkeypatch
    ):
        monkeypatch.setattr(files, "os", LyingDisk(b"\x1f\x8b"))
        result = back_up(repository)
        assert result.outcome == "failed"
        assert "the disk holds other bytes than were written" in result.reason
        assert repository.catalog().backups == []
        assert os.listdir(repository.layout.drafts) == []

    def test_B6_a_manifest_that_the_disk_did_not_keep_is_no_backup(self, repository, monkeypatch):
        monkeypatch.setattr(files, "os", LyingDisk(b'{\n "components"'))
        with pytest.raises(Damaged, match=r"manifest\.json: the disk holds other bytes"):
            back_up(repository)
        assert repository.catalog().backups == []

    def test_a_source_that_writes_nothing_is_no_success(self, repository):
        class Silent_(Words):
            def take(self, sink, previous, run):
                from aquad.stream.artifact import Taken

                return Taken("files", {})

        assert back_up(repository, Silent_()).outcome == "failed"

    def test_a_source_cannot_leave_its_draft(self, repository):
        class Escaping(Words):
            def take(self, sink, previous, run):
                sink.add("../../escaped", iter([]), gzip=False)

        assert back_up(repository, Escaping()).outcome == "failed"
        assert not list(repository.root.parent.rglob("escaped"))


class TestFiles:
    """One file of a draft: whatever its size, all of it is read back; what failed stays failed."""

    @pytest.mark.parametrize("size", [0, 1, SYNC_BYTES - 1, SYNC_BYTES, SYNC_BYTES + 1, 2 * SYNC_BYTES + 12345])
    def test_all_of_it_is_read_back_whatever_its_size(self, tmp_path, size, monkeypatch):
        forgotten, read = [], []

        def chunks(path, offset, length):
            assert (offset, length) in forgotten, "what memory still holds proves nothing"
            read.append((offset, length))
            return file_chunks(path, offset, length)

        monkeypatch.setattr("aquad.repository.hashed.forget", lambda _path, *stretch: forgotten.append(stretch))
        monkeypatch.setattr("aquad.repository.hashed.file_chunks", chunks)
        file = HashedFile(tmp_path, "x")
        content = os.urandom(1 << 16) * (size // (1 << 16) + 1)
        for start in range(0, size, 300_000):
            file.write(content[start : min(start + 300_000, size)])
        record = file.seal()
        assert record.stored_bytes == size == sum(length for _, length in read)
        assert record.stored_sha256 == hashlib.sha256(content[:size]).hexdigest()
        assert [offset % 4096 for offset, _ in read] == [0] * len(read), "a page across two stretches stays in memory"

    def test_B6_a_write_that_failed_is_not_sealed_even_if_nobody_listened(self, tmp_path, monkeypatch):
        class Failing:
            def __getattr__(self, name):
                return getattr(os, name)

            def fsync(self, fd):
                monkeypatch.setattr(files, "os", os)
                raise OSError(errno.EIO, "on purpose")

        file = HashedFile(tmp_path, "x")
        monkeypatch.setattr(files, "os", Failing())
        for _ in range(100):
            with contextlib.suppress(RepositoryWriteFailed):
                file.write(bytes(1 << 20))
        with pytest.raises(RepositoryWriteFailed, match="fsync"):
            file.seal()
        file.abandon()

    def test_what_a_restore_of_the_same_second_kept_is_never_replaced(self, repository):
        first = repository.aside("20240802_020000", "v")
        first.write(b"first")
        first.finish(plain_bytes=5, facts={})
        with pytest.raises(RepositoryRefused, match="of this very second"):
            repository.aside("20240802_020000", "v")
        assert (repository.layout.aside / "20240802_020000" / "v.tar.gz").read_bytes() == b"first"


class TestOpening:
    def test_B11_a_directory_without_the_marker_is_refused(self, tmp_path):
        (tmp_path / "empty").mkdir(mode=0o700)
        with pytest.raises(RepositoryRefused, match="mounted"):
            open_repository(tmp_path / "empty")
        with pytest.raises(RepositoryRefused, match="no such directory"):
            open_repository(tmp_path / "missing")

    def test_another_stack_is_refused(self, repository):
        marker = json.loads(repository.layout.marker.read_text())
        repository.layout.marker.write_text(json.dumps(marker | {"stack": "other"}))
        with pytest.raises(RepositoryRefused, match="'other'"):
            open_repository(repository.root)

    def test_P1_a_newer_format_is_refused(self, repository):
        marker = json.loads(repository.layout.marker.read_text())
        repository.layout.marker.write_text(json.dumps(marker | {"format": 2}))
        with pytest.raises(RepositoryRefused, match="newer aquad"):
            open_repository(repository.root)

    @pytest.mark.parametrize("junk", [b"", b"{}", b"[1]", b"null", b'{"format": 1, "id": 7}', b"\xff", b"[" * 5000])
    def test_a_damaged_marker_is_refused(self, repository, junk):
        repository.layout.marker.write_bytes(junk)
        with pytest.raises(RepositoryRefused):
            open_repository(repository.root)

    def test_B14_a_repository_open_to_others_is_refused(self, repository):
        repository.root.chmod(0o750)
        with pytest.raises(RepositoryRefused, match="chmod 700"):
            open_repository(repository.root)

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
    def test_B16_drafts_on_another_file_system_are_refused(self, repository):
        subprocess.run(["mount", "-t", "tmpfs", "none", repository.layout.drafts], check=True)
        try:
            with pytest.raises(RepositoryRefused, match="drafts/"):
                open_repository(repository.root)
        finally:
            subprocess.run(["umount", repository.layout.drafts], check=True)

    def test_init_does_not_touch_a_directory_with_something_in_it(self, tmp_path):
        (tmp_path / "photo.jpg").write_bytes(b"x")
        with pytest.raises(RepositoryRefused, match=r"photo\.jpg"):
            make_repository(tmp_path)
        assert os.listdir(tmp_path) == ["photo.jpg"]

    def test_init_twice_is_refused(self, repository):
        with pytest.raises(RepositoryRefused, match="already"):
            make_repository(repository.root)


class TestLock:
    def test_I1_a_second_run_is_refused_and_told_who_holds_it(self, repository):
        with (
            repository.writing(run_id="abc", command="full"),
            pytest.raises(LockHeld, match=r"full \(run abc, process \d+\)"),
        ):
            back_up(repository)
        assert outcomes(repository.root) == []
        assert back_up(repository).outcome == "success"

    def test_I3_a_killed_holder_leaves_no_lock(self, repository):
        script = (
            "import sys, time\nfrom tests.small import open_repository\nfrom pathlib import Path\n"
            "with open_repository(Path(sys.argv[1])).writing(run_id='dead', command='full'):\n  print('held', flush=True)\n  time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script, str(repository.root)], stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"held\n"
            with pytest.raises(LockHeld, match="dead"):
                back_up(repository)
            child.kill()
        assert back_up(repository).outcome == "success"


class TestFinding:
    def test_by_prefix_latest_and_never_ambiguously(self, repository):
        back_up(repository)
        back_up(repository)
        catalog = repository.catalog()
        assert catalog.find("20240802_020001").id == "20240802_020001_full"
        with pytest.raises(NoSuchBackup, match="fits 2 backups"):
            catalog.find("2024")
        with pytest.raises(NoSuchBackup, match="no backup has that id"):
            catalog.find("1999")
        with pytest.raises(NoSuchBackup):
            catalog.find("")


class TestDamage:
    def test_B10_every_flipped_byte_of_a_manifest_is_found(self, repository):
        back_up(repository)
        path = repository.layout.manifest("20240802_020000_full")
        good = path.read_bytes()
        harmless = []
        for position in range(len(good)):
            flipped = bytearray(good)
            flipped[position] ^= 1 << (position % 8)
            try:
                manifest.parse(bytes(flipped), "x")
                harmless.append(position)
            except (Damaged, RepositoryRefused):
                pass
        assert harmless == []
        assert manifest.parse(good, "x").id == "20240802_020000_full"

    @pytest.mark.parametrize(
        "junk", [b"", b"{", b"[]", b"null", b"NaN", b'{"a":1,"a":2}', b"[" * 100000, b'{"format": 1e999}', b"\xff\xfe"]
    )
    def test_G6_junk_is_damaged_not_a_crash(self, junk):
        with pytest.raises((Damaged, RepositoryRefused)):
            manifest.parse(junk, "x")

    def test_B9_two_swapped_manifests_are_found(self, repository):
        back_up(repository)
        back_up(repository)
        first, second = (repository.layout.manifest(f"20240802_02000{n}_full") for n in (0, 1))
        third = first.with_name("swap")
        first.rename(third), second.rename(first), third.rename(second)
        catalog = repository.catalog()
        assert (len(catalog.backups), len(catalog.unreadable)) == (0, 2)

    def test_verify_goes_on_after_the_first_bad_one_and_names_each(self, repository):
        for _ in range(100):
            back_up(repository)
        bad = {f"20240802_02{n // 60:02}{n % 60:02}_full" for n in (3, 50, 99)}
        for name in bad:
            path = next(repository.root.glob(f"words_{name[:15]}*"))
            stored = bytearray(path.read_bytes())
            stored[len(stored) // 2] ^= 1
            path.write_bytes(stored)
        verdicts = verify(repository, repository.catalog().backups, "bytes", Silent())
        assert {v.backup for v in verdicts if v.problems} == bad
        assert len(verdicts) == 100

    def test_a_foreign_manifest_is_not_ours(self, repository, tmp_path):
        other = make_repository(tmp_path / "other")
        back_up(other)
        shutil.copy(other.layout.manifest("20240802_020000_full"), repository.layout.manifests)
        catalog = repository.catalog()
        assert (len(catalog.backups), len(catalog.unreadable)) == (0, 1)

    @pytest.mark.parametrize("path", ["/etc/passwd", "../x", "volumes/../../x", "volumes//x", "./x", "", "x\0y"])
    def test_a_manifest_that_names_a_file_outside_the_repository_is_damaged(self, repository, path):
        back_up(repository)
        where = repository.layout.manifest("20240802_020000_full")
        content = json.loads(where.read_bytes())
        content["components"][0]["artifacts"][0]["path"] = path
        rest = {key: value for key, value in content.items() if key != "manifest_sha256"}
        compact = json.dumps(rest, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        content["manifest_sha256"] = hashlib.sha256(compact.encode()).hexdigest()
        where.write_bytes(json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n")
        (unreadable,) = repository.catalog().unreadable
        assert "path" in unreadable.reason


class TestRecovery:
    def dead_run(self, repository):
        """A run that died after it had renamed one of its files."""
        repository.journal.append("run_started", run="dead", job="full", slot=None)
        draft = repository.begin("full")
        draft.write_file(f"words_{draft.timestamp}.txt.gz", b"torn")
        draft.write_file(
            "names.json",
            json.dumps({"names": [f"words_{draft.timestamp}.txt.gz", f"other_{draft.timestamp}.gz"]}).encode(),
        )
        (draft.path / f"words_{draft.timestamp}.txt.gz").rename(repository.root / f"words_{draft.timestamp}.txt.gz")
        draft.close()
        return draft

    def test_A1_what_a_dead_run_left_goes_to_the_trash_and_is_recorded(self, repository):
        back_up(repository)
        before = {p: p.read_bytes() for p in repository.root.rglob("*_020000*") if p.is_file()}
        stray = repository.root / "words_by_hand.txt.gz"
        stray.write_bytes(b"not ours")
        draft = self.dead_run(repository)
        back_up(repository)
        trash = repository.layout.trash / draft.id
        assert (trash / f"words_{draft.timestamp}.txt.gz").read_bytes() == b"torn"
        assert (trash / "draft" / "names.json").exists()
        assert outcomes(repository.root) == ["success", "interrupted", "success"]
        assert {p: p.read_bytes() for p in before} == before
        assert stray.read_bytes() == b"not ours"

    def test_A5_a_draft_whose_run_lives_is_left_alone(self, repository):
        draft = repository.begin("full")
        repository.recover()
        assert draft.path.exists()
        draft.close()
        repository.recover()
        assert not draft.path.exists()

    def test_a_sealed_file_is_never_moved_whatever_names_json_says(self, repository):
        back_up(repository)
        draft = self.dead_run(repository)
        (draft.path / "names.json").write_text(
            json.dumps({"names": ["words_20240802_020000.txt.gz", "../../etc/passwd"]})
        )
        repository.recover()
        assert (repository.root / "words_20240802_020000.txt.gz").exists()
        assert all(not v.problems for v in verify(repository, repository.catalog().backups, "bytes", Silent()))

    def test_what_a_change_of_the_marker_left_when_it_died_is_removed(self, repository):
        left = repository.root / ".aquad-repository.json.new"
        left.write_bytes(b"{")
        back_up(repository)
        assert not left.exists()


class TestJournal:
    def test_B3_a_journal_that_cannot_be_read_is_named(self, repository, monkeypatch):
        def refused(*_arguments, **_options):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr("pathlib.Path.open", refused)
        with pytest.raises(RepositoryRefused, match=r"audit\.jsonl: Too many open files"):
            list(repository.journal.entries())

    def test_a_torn_last_line_is_dropped_and_noted(self, repository):
        path = repository.layout.journal
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"line": 2, "ev')
        assert len(list(repository.journal.entries())) == 1
        repository.journal.append("test")
        assert [e["event"] for e in repository.journal.entries()] == ["repository_created", "journal_torn", "test"]

    def test_N5_every_edit_breaks_the_chain(self, repository):
        back_up(repository)
        path = repository.layout.journal
        lines = path.read_bytes().splitlines(keepends=True)
        for number in range(len(lines) - 1):
            for edited in (
                lines[:number] + lines[number + 1 :],
                [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]],
                [*lines[:number], lines[number].replace(b'"at":"2024', b'"at":"2025'), *lines[number + 1 :]],
            ):
                path.write_bytes(b"".join(edited))
                with pytest.raises(Damaged):
                    list(repository.journal.entries())
        path.write_bytes(b"".join(lines))
        assert len(list(repository.journal.entries())) == len(lines)
