"""Unchanged files are copied from the previous archive; whatever could have changed is read again."""

import gzip
import mmap
import os
import shutil
import subprocess
import sys
import tarfile
import time

import pytest

from aquad.core import filesystem
from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys
from aquad.stream.tarball import reuse
from tests.keys import secret_file
from tests.small import journal, mounted, needs_root
from tests.sources.test_volumes import Stack
from tests.stream.test_tarball import awkward_tree, fingerprint

TWICE = reuse.MARGIN_NS / 10**9 + 0.1
"""Seconds after which what was written is old enough."""


class Unchanging(Stack):
    """A volume of many kinds of members, old enough to be copied."""

    def fill_awkward(self):
        awkward_tree(self.path / "awkward")
        (self.path / "big").write_bytes(os.urandom(3 << 20) + b"text " * (1 << 20))
        (self.path / "small").mkdir()
        for number in range(200):
            (self.path / "small" / f"{number:03}").write_bytes(os.urandom(100 + 700 * number))
        os.link(self.path / "big", self.path / "second name")
        time.sleep(TWICE)
        return self

    def reused(self, outcome="success"):
        """Take once more: paths that were read afresh. What is stored is what is on the disk, and verifies."""
        began = time.time_ns()
        assert self.back_up().outcome == outcome
        backup = self.repository.catalog().find("latest")
        (verdict,) = verify(self.repository, [backup], "content", Silent())
        assert verdict.problems == []
        fresh = sorted(line["path"] for line in self.lines() if line["synced_at_ns"] >= began)
        assert self.manifest.facts["members"] - self.manifest.facts["reused"] == len(fresh)
        target = self.top / "look"
        shutil.rmtree(target, ignore_errors=True)
        self.restore(target)
        assert fingerprint(target) == fingerprint(self.path)
        return fresh

    def lines(self):
        return list(self.reader.members(self.reader.artifacts[0].path))


@pytest.fixture
def stack(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    assert filesystem.kind(fd) in reuse.KNOWN, "put the tests' temporary directory on ext4, XFS or btrfs"
    os.close(fd)
    return Unchanging(tmp_path)


class TestWhatIsCopied:
    def test_all_that_is_unchanged_but_the_other_names_of_a_file(self, stack):
        stack.fill_awkward().take()
        first = stack.lines()
        assert "reused" in stack.manifest.facts
        assert stack.manifest.facts["reused"] == 0
        linked = sorted(line["path"] for line in first if line["type"] == "hardlink")
        assert stack.reused() == linked
        moving = {"offset", "chunks", "pad", "length", "synced_at_ns", "dev"}
        assert [{k: v for k, v in line.items() if k not in moving} for line in stack.lines()] == [
            {k: v for k, v in line.items() if k not in moving} for line in first
        ]
        assert stack.reused() == linked, "what was copied is copied again"

    def test_stock_tools_open_an_archive_of_copies(self, stack):
        stack.fill_awkward().take()
        stack.take()
        assert stack.manifest.facts["reused"] > 200
        subprocess.run(["gzip", "-t", stack.archive], check=True)
        subprocess.run(["tar", "--compare", "-zf", stack.archive, "-C", stack.path], check=True)
        with tarfile.open(stack.archive) as archive:
            assert len(archive.getmembers()) == stack.manifest.facts["members"]

    def test_what_changed_in_any_way_is_read_again(self, stack):
        stack.fill_awkward().take()
        small = stack.path / "small"
        (small / "000").write_bytes(b"another")
        (small / "001").unlink()
        os.rename(small / "002", small / "002b")
        (small / "003").chmod(0o640)
        os.setxattr(small / "004", "user.note", b"x")
        os.utime(small / "005", ns=(0, 0))
        (small / "new").write_bytes(b"new")
        os.link(small / "006", small / "006b")
        (small / "007").unlink()
        os.symlink("elsewhere", small / "007")
        changed = stack.reused()
        assert {f"./small/{name}" for name in ("000", "002b", "003", "004", "005", "new", "006", "006b", "007")} <= set(
            changed
        )
        assert "./small" in changed
        assert "./small/008" not in changed
        assert "./big" not in changed

    def test_a_backup_in_between_that_failed_changes_nothing(self, stack):
        stack.fill_awkward().take()
        moved = stack.path.with_name("elsewhere")
        stack.path.rename(moved)
        assert stack.back_up().outcome == "failed"
        moved.rename(stack.path)
        assert stack.reused()[0] != "./big"


class TestWhatLooksUnchanged:
    def test_time_stamps_set_back(self, stack):
        stack.fill_awkward().take()
        victim = stack.path / "small" / "050"
        before = victim.stat()
        victim.write_bytes(os.urandom(before.st_size))
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "./small/050" in stack.reused()

    def test_an_inode_used_again(self, stack):
        stack.fill_awkward().take()
        victim = stack.path / "small" / "050"
        before = victim.stat()
        for _ in range(50):  # until the file system gives out the same number again
            victim.unlink()
            victim.write_bytes(os.urandom(before.st_size))
            os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
            if victim.stat().st_ino == before.st_ino:
                break
        assert "./small/050" in stack.reused()

    def test_a_file_younger_than_the_margin_is_read_again(self, stack):
        stack.fill().take()
        assert "./f00" in stack.reused()
        time.sleep(TWICE)
        assert "./f00" in stack.reused(), "it was too young when it was read last"
        assert "./f00" not in stack.reused()

    def test_a_writer_through_a_mapping(self, stack):
        """Stores into a page that is dirty already move no time: only because pages are clean when they are read are they seen."""
        stack.fill()
        path = stack.path / "mapped"
        path.write_bytes(bytes(1 << 20))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5000:5005] = b"first"
            time.sleep(TWICE)
            stack.take()
            mapped[5000:5006] = b"second"
            assert "./mapped" in stack.reused()
            time.sleep(TWICE)
            stack.take()
            assert "./mapped" not in stack.reused()
            mapped[9000:9005] = b"third"
            assert "./mapped" in stack.reused()

    def test_a_store_during_a_slow_sync(self, stack, monkeypatch):
        """The page is dirty again when it is read: its time is younger than the beginning of the sync, so it is not copied."""
        stack.fill()
        path = stack.path / "mapped"
        path.write_bytes(bytes(1 << 20))
        time.sleep(TWICE)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            sync = filesystem.sync

            def slow(fd):
                sync(fd)
                mapped[5000:5005] = b"while"
                time.sleep(TWICE)

            monkeypatch.setattr(filesystem, "sync", slow)
            stack.take()
            mapped[5000:5005] = b"after"  # moves no time: the page is dirty
            monkeypatch.setattr(filesystem, "sync", sync)
            assert "./mapped" in stack.reused()

    @needs_root
    def test_nothing_on_a_file_system_whose_times_prove_nothing(self, tmp_path):
        with mounted(tmp_path / "memory", "tmpfs", "size=64m"):
            (tmp_path / "memory" / "x").mkdir()
            stack = Unchanging(tmp_path / "memory" / "x")
            stack.fill()
            time.sleep(TWICE)
            stack.take()
            stack.take()
            assert stack.manifest.facts["reused"] == 0

    def test_nothing_when_the_sync_fails(self, stack, monkeypatch):
        def failing(fd):
            raise OSError(5, "on purpose")

        stack.fill_awkward()
        monkeypatch.setattr(filesystem, "sync", failing)
        stack.take()
        stack.take()
        assert stack.manifest.facts["reused"] == 0


class TestDamage:
    def test_a_large_member_that_reads_differently_the_second_time_is_not_sealed(self, stack, monkeypatch):
        """It is hashed before anything is written, and read again as it is copied."""
        stack.fill()
        (stack.path / "large").write_bytes(os.urandom(reuse.IN_MEMORY_BYTES + 1))
        time.sleep(TWICE)
        stack.take()
        read = reuse.Former.read

        def then_rotten(former, line):
            sound = read(former, line)
            if line["path"] == "./large":
                with stack.archive.open("r+b") as stored:
                    stored.seek(line["offset"] + 2_000_000)
                    stored.write(b"rot")
            return sound

        monkeypatch.setattr(reuse.Former, "read", then_rotten)
        assert stack.back_up().outcome == "failed"
        assert "other bytes than a moment ago" in journal(stack.repository.root)[-1]["reason"]

    @pytest.mark.parametrize("which", ["./small/050", "./big", "./small"])
    def test_B8_a_rotten_byte_is_found_and_never_copied(self, stack, which):
        stack.fill_awkward().take()
        line = next(line for line in stack.lines() if line["path"] == which)
        damaged, archive = stack.repository.catalog().find("latest").id, stack.archive
        with archive.open("r+b") as stored:
            at = line["offset"] + line["length"] // 2
            stored.seek(at)
            byte = stored.read(1)[0]
            stored.seek(at)
            stored.write(bytes([byte ^ 1]))
        assert which in stack.reused("warning")
        entry = next(e for e in journal(stack.repository.root) if e["event"] == "verified" and e["outcome"] == "failed")
        assert entry["backup"] == damaged
        assert which in entry["problems"][0]
        assert f"backup {damaged} is damaged" in stack.manifest.warnings[0]

    def test_a_rotten_index_says_nothing_about_what_to_copy(self, stack):
        stack.fill_awkward().take()
        damaged = stack.repository.catalog().find("latest").id
        index = stack.repository.root / stack.manifest.artifacts[0].index.path
        lines = gzip.decompress(index.read_bytes()).replace(b'"size"', b'"sise"', 1)
        index.write_bytes(gzip.compress(lines))
        assert stack.back_up().outcome == "warning"
        assert stack.manifest.facts["reused"] == 0
        assert any(
            e["event"] == "verified" and e["backup"] == damaged and e["outcome"] == "failed"
            for e in journal(stack.repository.root)
        )

    def test_an_archive_that_is_gone(self, stack):
        stack.fill_awkward().take()
        stack.archive.unlink()
        assert stack.back_up().outcome == "warning"
        assert stack.manifest.facts["reused"] == 0

    def test_a_backup_that_retention_removed(self, stack):
        stack.fill_awkward().take()
        backup = stack.repository.catalog().find("latest")
        stack.repository.layout.manifest(backup.id).unlink()
        stack.archive_directory = stack.repository.root / backup.components[0].artifacts[0].path
        stack.archive_directory.unlink()
        stack.take()
        assert stack.manifest.facts["reused"] == 0


def test_with_encryption_nothing_is_copied(stack, tmp_path):
    stack.fill_awkward().take()
    gpg = Gpg(Keys(passphrase_file=secret_file(tmp_path / "pw", "x")))
    stack.repository.gpg = gpg
    try:
        stack.repository.change_encryption("passphrase")
        stack.take()
        assert stack.manifest.facts["reused"] == 0
        stack.take()
        assert stack.manifest.facts["reused"] == 0
        assert all("synced_at_ns" not in line for line in stack.lines())
    finally:
        gpg.end()


@pytest.mark.parametrize("length", [26, 27, 100, 4095, 4096, 4121])
def test_padding_is_an_empty_gzip_member_of_any_length(length):
    assert len(reuse.padding(length)) == length
    assert gzip.decompress(reuse.padding(length)) == b""
    for position in range(0, 9000, 7):
        for congruent in (0, 1, 4095, 12345):
            pad = reuse.padding_to(position, congruent)
            assert (position + pad - congruent) % 4096 == 0
            assert pad == 0 or pad >= 26


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    for directory in range(20):
        (tmp_path / "volume" / f"{directory}").mkdir(parents=True)
        for number in range(1000):
            (tmp_path / "volume" / f"{directory}" / f"{number}").write_bytes(b"tiny %d\n" % number)
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'[repository]\npath = "{tmp_path}/backups"\nminimum_free = "1%"\n[encryption]\nmode = "off"\n'
        f'[volumes.v]\npath = "{tmp_path}/volume"\n'
    )
    aquad = [sys.executable, "-m", "aquad", "-q", "-c", settings]
    subprocess.run([*aquad, "init"], check=True, capture_output=True)
    time.sleep(TWICE)
    for _ in ("first", "second"):
        script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        command = [sys.executable, "-c", script, *aquad, "run", "full", "--component", "v"]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert peak < 90_000, f"{peak} KiB"
