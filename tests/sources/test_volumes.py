"""Volumes taken and brought back: what is refused, what is kept, what an archive and a volume of an enemy cannot do."""

import errno
import gzip
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
import threading
from functools import partial

import pytest

from aquad.core.errors import Damaged, InvalidUse, RepositoryWriteFailed, RestoreFailed, SourceFailed
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import run_job
from aquad.repository.reader import FileReader
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.storage import files
from aquad.stream.artifact import RunContext, Silent
from aquad.stream.tarball.tree import checked
from tests.keys import NO_KEYS
from tests.small import LIMITS, FakeClock, back_up, make_repository
from tests.sources.test_configs import NOBODY, ROOT, as_nobody, killed_at
from tests.stream.test_tarball import awkward_tree, fingerprint

ASIDE = "aside/20240803_020000/data.tar.gz"


class Stack:
    """One volume, a repository, and what is needed to take and bring back."""

    def __init__(self, top):
        self.top, self.path = top, top / "data"
        self.clock = FakeClock()
        self.repository = make_repository(top / "backups", self.clock)
        self.path.mkdir()

    def volume(self, *, quiesce="none", may_shrink=False, accepted=False, path=None):
        return Volume(name="data", path=path or self.path, quiesce=quiesce, may_shrink=may_shrink, accepted=accepted)

    def fill(self, count=10, directory="."):
        (self.path / directory).mkdir(exist_ok=True)
        for number in range(count):
            (self.path / directory / f"f{number:02}").write_bytes(b"content %d" % number)
        return self

    def empty(self):
        subprocess.run(["find", self.path, "-mindepth", "1", "-delete"], check=True)

    def back_up(self, **options):
        return back_up(self.repository, self.volume(**options), clock=self.clock)

    def take(self, **options):
        assert self.back_up(**options).outcome == "success"
        return self

    @property
    def manifest(self):
        return self.repository.catalog().find("latest").components[0]

    @property
    def archive(self):
        return self.repository.root / self.manifest.artifacts[0].path

    @property
    def reader(self):
        return open_backup(self.repository, "data", "latest", trusted=False)

    def target(self, to=None, only=None):
        return VolumeTarget(to, only, lambda timestamp: self.repository.aside(timestamp, "data"))

    def plan(self, to=None, only=None, reader=None):
        return self.volume().plan_restore(reader or self.reader, self.target(to, only))

    def restore(self, to=None, only=None, reader=None, progress=None, cancel=None, path=None):
        run = RunContext(
            run_id="test",
            timestamp="20240803_020000",
            clock=self.clock,
            progress=progress or Silent(),
            cancel=cancel or threading.Event(),
        )
        return self.volume(path=path).restore(reader or self.reader, self.target(to, only), run)

    def job(self, to=None, only=None, confirm=lambda _: None):
        """The whole job, with the plan and its check of free space."""
        order = Order("data", self.volume(), self.reader, self.target(to, only))
        return run_job(
            self.repository,
            "restore data",
            lambda run: restore(self.repository, [order], confirm, run),
            clock=self.clock,
            zone=self.clock.now().tzinfo,
            limits=LIMITS,
        )

    def kept(self):
        """Path -> content of the files in the archive that a restore set aside."""
        with tarfile.open(self.repository.root / ASIDE) as archive:
            return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}

    def contents(self, top=None):
        top = top or self.path
        return {str(p.relative_to(top)): p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


class Watched(Silent):
    """Calls `act` when the first bytes were moved."""

    def __init__(self, act):
        self.act, self.calls = act, 0

    def advance(self, count):
        self.calls += 1
        if self.calls == 1:
            self.act()


@pytest.fixture
def mounted():
    """Mounts that are gone after the test, whatever happens."""
    points = []

    def mount(point, *options):
        point.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *options, point], check=True)
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", point], check=True)


needs_root = pytest.mark.skipif(not ROOT, reason="mounting, and an ordinary user beside root, need root")


class TestShrinking:
    """F14: more often a missing mount than a tidy service."""

    @pytest.mark.parametrize(
        ("before", "after", "outcome"),
        [(10, 0, "failed"), (10, 1, "failed"), (10, 2, "success"), (100, 11, "success"), (1, 1, "success")],
    )
    def test_F14_a_volume_that_lost_nine_tenths_of_its_files_is_refused(self, stack, before, after, outcome):
        stack.fill(before).take()
        stack.empty()
        work = stack.fill(after).back_up()
        assert work.outcome == outcome
        if outcome == "failed":
            assert f"{after} files, {before} last time" in work.reason
            assert "aquad accept data" in work.reason
            assert str(stack.path) in work.reason
            assert len(stack.repository.catalog().backups) == 1
            assert stack.repository.layout.drafts.exists()
            assert os.listdir(stack.repository.layout.drafts) == []

    def test_F14_directories_without_files_are_empty_too(self, stack):
        stack.fill().take()
        stack.empty()
        (stack.path / "topic").mkdir(), os.symlink("x", stack.path / "link"), os.mkfifo(stack.path / "fifo")
        assert stack.back_up().outcome == "failed"

    def test_a_log_volume_may_shrink_with_a_warning(self, stack):
        stack.fill().take()
        stack.empty()
        work = stack.back_up(may_shrink=True)
        assert (work.outcome, work.reason) == ("warning", "data: 0 files, 10 last time")
        assert stack.contents(stack.path) == {}
        assert stack.back_up(may_shrink=True).reason == "data: it is empty"

    def test_what_somebody_accepted_is_the_new_normal(self, stack):
        stack.fill().take()
        stack.empty()
        assert stack.back_up(accepted=True).outcome == "success"
        assert stack.back_up().outcome == "success", "it was empty last time as well"
        assert stack.fill(3).back_up().outcome == "success"
        stack.empty()
        assert "0 files, 3 last time" in stack.back_up().reason

    def test_the_first_backup_of_an_empty_volume_is_refused_until_accepted(self, stack):
        assert "it is empty" in stack.back_up().reason
        assert stack.repository.catalog().backups == []
        assert stack.back_up(accepted=True).outcome == "success"

    def test_a_volume_that_is_not_there(self, stack):
        stack.path.rmdir()
        assert f"{stack.path} is not there" in stack.back_up().reason
        stack.path.touch()
        assert f"{stack.path} is not there" in stack.back_up(accepted=True, may_shrink=True).reason
        assert stack.volume().check()[0].level == "error"
        with pytest.raises(SourceFailed, match="no such directory"):
            stack.volume().size_bytes()


class TestTaking:
    def test_F15_a_live_volume_is_labelled_and_warned_of(self, stack):
        work = stack.fill().back_up(quiesce="live")
        assert work.outcome == "warning"
        assert "no consistent backup of its service" in work.reason
        assert (stack.manifest.consistency, stack.manifest.outcome) == ("live", "warning")
        assert stack.volume(quiesce="live").check()[0].level == "warning"
        stack.take()
        assert stack.manifest.consistency == "files"

    def test_F12_sockets_are_noted_and_fifos_recorded_without_opening(self, stack):
        stack.fill(1)
        os.mkfifo(stack.path / "fifo")
        signal.alarm(20)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(stack.path / "sock"))
                stack.take()
        finally:
            signal.alarm(0)
        assert stack.manifest.notes == ["./sock: a socket"]
        (stack.path / "fifo").unlink()
        stack.restore()
        assert stat.S_ISFIFO((stack.path / "fifo").stat().st_mode)
        assert not (stack.path / "sock").exists()

    def test_owners_are_numbers_only(self, stack):
        stack.fill(2).take()
        with tarfile.open(stack.archive) as archive:
            assert {(m.uname, m.gname) for m in archive} == {("", "")}

    def test_what_changed_while_it_was_read_is_a_warning_that_names_it(self, stack):
        (stack.path / "big").write_bytes(os.urandom(9 << 20))

        def change():
            with (stack.path / "big").open("r+b") as file:
                file.truncate(1 << 20)

        run = RunContext(run_id="t", timestamp="x", clock=stack.clock, progress=Watched(change))
        draft = stack.repository.begin("full")
        taken = stack.volume().take(draft.sink("data"), None, run)
        draft.close()
        assert taken.warnings == ["1 files changed while they were read: ./big: shrunk"]

    def test_the_volume_may_be_a_symlink_to_where_it_is(self, stack):
        stack.fill()
        real = stack.top / "real"
        stack.path.rename(real)
        os.symlink("real", stack.path)
        before = fingerprint(real)
        stack.take()
        (real / "f00").unlink(), (real / "since").touch()
        stack.restore()
        assert stack.path.is_symlink()
        assert {path: seen[:7] for path, seen in fingerprint(real).items()} == {p: s[:7] for p, s in before.items()}

    def test_size_counts_a_file_of_two_names_once(self, stack):
        (stack.path / "one").write_bytes(os.urandom(1 << 20))
        once = stack.volume().size_bytes()
        os.link(stack.path / "one", stack.path / "other")
        assert stack.volume().size_bytes() == once >= 1 << 20


class TestRestoring:
    def test_everything_comes_back_and_the_old_is_kept(self, stack):
        stack.path.rmdir()
        awkward_tree(stack.path)
        stack.path.chmod(0o751)
        if ROOT:
            os.chown(stack.path, 70, 1001)
        before, inode = fingerprint(stack.path), stack.path.stat().st_ino
        stack.take()
        stack.empty()
        stack.path.chmod(0o700)
        (stack.path / "written since").write_bytes(b"keep me")
        (stack.path / "dir").mkdir(), (stack.path / "dir/deep").write_bytes(b"me too")
        facts = stack.restore()
        assert fingerprint(stack.path) == before
        assert stack.path.stat().st_ino == inode, "it may be a mount point"
        assert facts["aside"] == ASIDE
        assert stack.kept() == {"written since": b"keep me", "dir/deep": b"me too"}

    def test_F13_paths_beyond_4096_bytes_are_replaced_like_all_else(self, stack):
        fd = os.open(stack.path, os.O_RDONLY)
        for _ in range(18):
            os.mkdir("d" * 250, dir_fd=fd)
            fd, above = os.open("d" * 250, os.O_RDONLY, dir_fd=fd), fd
            os.close(above)
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        try:
            stack.take()
            assert sum("longer than GNU tar can restore" in note for note in stack.manifest.notes) == 3
            os.unlink("leaf", dir_fd=fd)
            os.mkdir("since", dir_fd=fd)
            stack.restore()
            with pytest.raises(FileNotFoundError):
                os.stat("since", dir_fd=fd)
            found = subprocess.run(["find", ".", "-name", "leaf"], cwd=stack.path, capture_output=True).stdout
            assert found.count(b"d" * 250) == 18
        finally:
            os.close(fd)
            subprocess.run(["rm", "-rf", stack.path], check=True)

    def test_the_old_content_can_be_restored_from_aside(self, stack):
        stack.fill().take()
        stack.empty()
        awkward = stack.path / "awkward"
        awkward_tree(awkward)
        before = fingerprint(awkward)
        stack.restore()
        reader = open_backup(stack.repository, "data", str(stack.repository.root / ASIDE), trusted=True)
        stack.restore(stack.top / "old", reader=reader)
        assert fingerprint(stack.top / "old" / "awkward") == before

    def test_a_restore_into_an_empty_volume_keeps_nothing(self, stack):
        stack.fill().take()
        stack.empty()
        assert [step.overwrites for step in stack.plan()] == [""]
        assert stack.restore()["aside"] == ""
        assert len(stack.contents()) == 10
        assert os.listdir(stack.repository.layout.aside) == []

    def test_a_lost_directory_is_made_and_the_plan_asks_for_the_mount(self, stack):
        stack.path.chmod(0o711)
        stack.fill().take()
        shutil.rmtree(stack.path)
        assert "is not there, and will be made: is the volume mounted?" in stack.plan()[0].warning
        stack.restore()
        assert len(stack.contents()) == 10
        assert stat.S_IMODE(stack.path.stat().st_mode) == 0o711

    def test_a_plan_touches_nothing_and_says_what_would_be_lost(self, stack):
        stack.fill().take()
        (stack.path / "f00").unlink(), (stack.path / "since").touch()
        stack.plan()  # it makes the readers' lock
        before = fingerprint(stack.top)
        steps = stack.plan()
        assert fingerprint(stack.top) == before
        assert [step.overwrites for step in steps] == ["", f"volume data at {stack.path}", ""]
        assert "aside/" in steps[0].text
        assert steps[-1].warning == "stop the service that writes it first"

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_a_failing_aside_leaves_the_volume_as_it_was(self, stack, code):
        stack.fill().take()
        (stack.path / "since").write_bytes(b"x")
        before = fingerprint(stack.path)
        reader = stack.reader

        class FullDisk:
            def __getattr__(self, name):
                def fail(*_arguments, **_keywords):
                    raise OSError(code, os.strerror(code))

                return fail if name == "write" else getattr(os, name)

        files.os = FullDisk()
        try:
            with pytest.raises(RepositoryWriteFailed, match=os.strerror(code)) as raised:
                stack.restore(reader=reader)
        finally:
            files.os = os
        assert f"Nothing in {stack.path} was changed." in raised.value.hint
        assert fingerprint(stack.path) == before

    def test_no_place_to_keep_the_old_is_an_error_before_anything_is_touched(self, stack):
        stack.fill().take()
        before = fingerprint(stack.path)
        run = RunContext(run_id="t", timestamp="x", clock=stack.clock)
        with pytest.raises(RestoreFailed, match="nowhere to keep"):
            stack.volume().restore(stack.reader, VolumeTarget(), run)
        assert fingerprint(stack.path) == before

    def test_a_service_that_still_writes_is_noticed_before_the_volume_is_emptied(self, stack):
        """What it writes after the archive was made would be in no place at all."""
        (stack.path / "big").write_bytes(os.urandom(9 << 20))
        stack.take()

        def write():
            with (stack.path / "big").open("ab") as file:
                file.write(b"one more transaction")

        with pytest.raises(RestoreFailed, match="changed while they were set aside") as raised:
            stack.restore(progress=Watched(write))
        assert "Stop the service that writes it." in raised.value.hint
        assert (stack.path / "big").read_bytes().endswith(b"one more transaction")

    def test_cancelled_it_says_where_the_old_is(self, stack):
        (stack.path / "big").write_bytes(os.urandom(20 << 20))
        stack.take()
        stack.empty()
        (stack.path / "since").write_bytes(b"keep me")

        class OnceEmptied(threading.Event):
            def is_set(self):
                return not (stack.path / "since").exists()

        with pytest.raises(RestoreFailed, match="cancelled") as raised:
            stack.restore(cancel=OnceEmptied())
        assert f"{stack.path} is incomplete now. What it replaced is in {ASIDE} of the repository." in str(raised.value)
        assert stack.kept() == {"since": b"keep me"}

    def test_cancelled_while_it_is_set_aside_nothing_was_changed(self, stack):
        stack.fill().take()
        before = fingerprint(stack.path)
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(SourceFailed, match="cancelled") as raised:
            stack.restore(cancel=cancel)
        assert f"Nothing in {stack.path} was changed." in raised.value.hint
        assert fingerprint(stack.path) == before

    def test_O2_killed_anywhere_the_old_is_in_the_volume_or_set_aside(self, stack):
        stack.fill(3, "new").take()
        reader, number, aside = stack.reader, 0, 0
        old = {f"old/{name}": name.encode() for name in ("a", "b", "c")}
        while True:
            number += 1
            stack.empty()
            shutil.rmtree(stack.repository.layout.aside)
            stack.repository.layout.aside.mkdir(mode=0o700)
            (stack.path / "old").mkdir()
            for name, content in old.items():
                (stack.path / name).write_bytes(content)
            if not killed_at(partial(stack.restore, reader=reader), number):
                break
            if old.items() <= stack.contents().items():
                continue
            aside += 1
            assert stack.kept() == old
        assert number > aside > 10
        assert set(stack.contents()) == {"new/f00", "new/f01", "new/f02"}

    def test_a_large_file_under_way_does_not_outlive_the_cancellation(self, stack):
        (stack.path / "big").write_bytes(os.urandom(40 << 20))
        stack.take()
        cancel = threading.Event()
        watched = Watched(cancel.set)
        with pytest.raises(RestoreFailed, match="cancelled"):
            stack.restore(stack.top / "look", progress=watched, cancel=cancel)
        assert watched.calls < 10

    def test_ctrl_c_ends_the_files_under_way(self, stack):
        (stack.path / "a").write_bytes(os.urandom(40 << 20)), (stack.path / "b").touch()
        stack.take()
        watched = Watched(lambda: None)

        class CtrlC(threading.Event):
            def is_set(self):
                if threading.current_thread() is threading.main_thread() and watched.calls:
                    raise KeyboardInterrupt
                return False

        class Waiting(Silent):
            """The second file is only asked for when the first is under way."""

            def advance(self, count):
                watched.advance(count)
                under_way.set()

        under_way = threading.Event()
        reader = stack.reader
        lines = list(reader.members(reader.artifacts[0].path))

        class Slow:
            sealed, origin, facts, artifacts, read = True, "slow", {}, reader.artifacts, staticmethod(reader.read)
            forwards_only = staticmethod(reader.forwards_only)
            asked = 0

            def members(self, path):
                self.asked += 1
                for line in lines:
                    if self.asked > 1 and line["path"] == "./b":
                        under_way.wait(10)
                    yield line

        with pytest.raises(KeyboardInterrupt):
            stack.restore(stack.top / "look", reader=Slow(), progress=Waiting(), cancel=CtrlC())
        assert 0 < watched.calls < 100, "all of it was unpacked (160 pieces)"

    def test_fewer_files_than_were_sealed_is_an_error(self, stack):
        stack.fill().take()
        os.link(stack.path / "f00", stack.path / "linked")
        stack.take()
        reader = stack.reader

        class Shorter:
            sealed, origin, artifacts, read = True, "x", reader.artifacts, staticmethod(reader.read)
            facts, forwards_only = reader.facts, staticmethod(reader.forwards_only)

            def members(self, path):
                return (line for line in reader.members(path) if line["path"] != "./f05")

        with pytest.raises(RestoreFailed, match="11 members and 9 files were written, sealed were 12 and 10"):
            stack.restore(stack.top / "look", reader=Shorter())

    @needs_root
    def test_O3_freed_space_counts_and_a_disk_that_is_too_small_is_refused_first(self, stack, mounted):
        mounted(stack.path, "-t", "tmpfs", "-o", "size=3m", "none")
        (stack.path / "log").write_bytes(os.urandom(2 << 20))
        stack.take()
        (stack.path / "log").write_bytes(os.urandom(2 << 20))
        stack.job()
        assert (stack.path / "log").stat().st_size == 2 << 20
        (stack.path / "log").write_bytes(b"short")
        with (stack.path / ".filled by others").open("wb") as other:
            other.write(bytes(2500 << 10))
        steps = stack.plan()
        assert steps[-1].needs_bytes == 0, "what is emptied is freed"
        small = stack.top / "small"
        mounted(small, "-t", "tmpfs", "-o", "size=1m", "none")
        for to, only in ((small / "x", None), (small / "x", "log")):
            with pytest.raises(RestoreFailed, match="bytes are needed"):
                stack.job(to, only)
        assert list(small.iterdir()) == []

    @needs_root
    def test_O3_a_volume_that_cannot_hold_it_even_when_emptied(self, stack, mounted):
        (stack.path / "log").write_bytes(os.urandom(2 << 20))
        stack.take()
        mounted(stack.path, "-t", "tmpfs", "-o", "size=1m", "none")
        (stack.path / "old").write_bytes(b"old")
        with pytest.raises(RestoreFailed, match="Nothing was changed"):
            stack.job()
        assert stack.contents() == {"old": b"old"}

    @needs_root
    def test_a_volume_that_is_mounted_read_only_is_said_before_it_is_archived(self, stack, mounted):
        stack.fill().take()
        mounted(stack.path, "--bind", stack.path)
        subprocess.run(["mount", "-o", "remount,ro,bind", stack.path], check=True)
        assert "cannot be written: is it mounted read-only?" in stack.plan()[-1].warning
        with pytest.raises(RestoreFailed, match="Nothing was changed"):
            stack.restore()
        assert os.listdir(stack.repository.layout.aside) == []


class TestNothingOutside:
    @pytest.fixture
    def outside(self, stack):
        outside = stack.top / "outside"
        outside.mkdir()
        (outside / "sentinel").write_bytes(b"whole")
        before = fingerprint(outside)
        yield outside
        assert fingerprint(outside) == before

    def test_nothing_is_followed_when_the_volume_is_emptied(self, stack, outside):
        stack.fill(3).take()
        stack.empty()
        os.symlink(outside, stack.path / "directory"), os.symlink(outside / "sentinel", stack.path / "file")
        (stack.path / "deep").mkdir(), os.symlink(outside, stack.path / "deep" / "link")
        stack.restore()
        assert {path.name for path in stack.path.iterdir()} == {"f00", "f01", "f02"}
        assert stack.kept() == {}

    @needs_root
    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    def test_what_is_mounted_below_is_not_emptied(self, stack, outside, mounted, kind):
        """The archive of the old content does not have it: emptying it would lose it."""
        stack.fill().take()
        point = stack.path / "with space"
        mounted(point, *(("-t", "tmpfs", "none") if kind == "tmpfs" else ("--bind", outside)))
        (point / "precious").write_bytes(b"x") if kind == "tmpfs" else None
        before = fingerprint(stack.path)
        for act in (stack.plan, stack.restore):
            with pytest.raises(RestoreFailed, match="with space is a mount below"):
                act()
        assert fingerprint(stack.path) == before
        stack.plan(only="f00"), stack.restore(only="f00")
        assert fingerprint(stack.path).keys() == before.keys()

    @pytest.mark.parametrize("only", ["topic", "topic/f00", "topic/*", "*"])
    def test_only_does_not_write_through_a_symlink(self, stack, outside, only):
        stack.fill(2, "topic").take()
        shutil.rmtree(stack.path / "topic")
        os.symlink(outside, stack.path / "topic")
        for act in (stack.plan, stack.restore):
            with pytest.raises(RestoreFailed, match="Nothing was changed"):
                act(only=only)
        assert os.readlink(stack.path / "topic") == str(outside)

    @pytest.mark.parametrize(
        "line",
        [
            {"path": "../outside/x"},
            {"path": "/etc/aquad-was-here"},
            {"path": "."},
            {"path": "a\0b"},
            {"path": "\ud800"},
            {"type": "socket"},
            {"type": "hardlink", "link": "../outside/sentinel"},
            {"type": "hardlink", "link": "."},
            {"mode": -1},
            {"mode": 0o100644},
            {"mode": "644"},
            {"uid": -1},
            {"gid": 2**32 - 1},
            {"size": 2**63},
            {"size": -1},
            {"mtime_ns": 2**63 * 10**9},
            {"mtime_ns": 1.5},
            {"device": [2**40, 0]},
            {"device": 7},
            {"segments": 7},
            {"segments": [[1]]},
            {"segments": [[-1, 5]]},
            {"chunks": [[0, 1]]},
            {"header_bytes": "x"},
            {"xattrs": {"user.\0x": ""}},
            {"xattrs": {"user.\ud800": ""}},
            {"xattrs": {"user.x": 7}},
            {"xattrs": 7},
        ],
    )
    def test_G1_G3_a_line_that_no_backup_has_is_refused_before_the_volume_is_touched(self, stack, outside, line):
        stack.fill(1).take()
        before = fingerprint(stack.path)
        reader = stack.reader
        good = list(reader.members(reader.artifacts[0].path))
        assert all(checked(one) for one in good)

        class Forged:
            sealed, origin, facts, artifacts, read = True, "x", {}, reader.artifacts, staticmethod(reader.read)

            def members(self, path):
                return iter([*good, {**good[-1], "path": "./x", **line}])

        for act in (lambda: stack.plan(reader=Forged()), lambda: stack.restore(stack.top / "look", reader=Forged())):
            with pytest.raises(Damaged):
                act()
        assert fingerprint(stack.path) == before
        assert not os.path.exists("/etc/aquad-was-here")
        assert not os.path.exists(stack.top / "look" / "f00"), "lines are checked before the first byte is written"

    @pytest.mark.parametrize(
        "headers",
        [
            {"mtime": "yesterday"},
            {"mtime": "nan"},
            {"mtime": "1e400"},
            {"uid": "99999999999999999999"},
            {"SCHILY.acl.access": "nonsense"},
            {"SCHILY.acl.access": "user::rwx,other:x:y"},
            {"SCHILY.acl.access": "user:99999999999:rwx"},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
            {"SCHILY.xattr.user.\x01\x00": "x"},
        ],
    )
    def test_G3_a_foreign_archive_with_nonsense_in_its_headers_is_damaged_not_a_crash(self, stack, headers):
        info = tarfile.TarInfo("file")
        info.size, info.pax_headers = 512, headers
        with tarfile.open(stack.top / "evil.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(b"x" * 512))
        try:
            stack.restore(stack.top / "look", reader=FileReader(stack.top / "evil.tar.gz", NO_KEYS))
        except (Damaged, RestoreFailed):
            return
        assert (stack.top / "look" / "file").stat().st_size == 512

    def test_G3_headers_without_end_are_damage(self, stack):
        header = tarfile.TarInfo("x").create_pax_global_header({"comment": "x"})
        (stack.top / "evil.tar.gz").write_bytes(gzip.compress(header * 20_000))
        with pytest.raises(Damaged):
            stack.restore(stack.top / "look", reader=FileReader(stack.top / "evil.tar.gz", NO_KEYS))

    def test_times_before_1970_come_back_from_a_file_too(self, stack):
        stack.fill(1)
        os.utime(stack.path / "f00", ns=(-1_500_000_001, -1_500_000_001))
        stack.take()
        for to, reader in ((stack.top / "a", stack.reader), (stack.top / "b", FileReader(stack.archive, NO_KEYS))):
            stack.restore(to, reader=reader)
            assert (to / "f00").stat().st_mtime_ns == -1_500_000_001


class TestOnly:
    @pytest.fixture
    def stack(self, tmp_path):
        stack = Stack(tmp_path)
        stack.fill(3, "topic-0"), stack.fill(3, "topic-1")
        (stack.path / "[odd]").write_bytes(b"odd")
        os.link(stack.path / "topic-0/f00", stack.path / "topic-1/linked")
        os.link(stack.path / "topic-0/f00", stack.path / "topic-1/linked again")
        (stack.path / "topic-0").chmod(0o2770)
        return stack.take()

    @pytest.mark.parametrize(
        ("pattern", "count"),
        [
            ("topic-0", 3),
            ("topic-0/", 3),
            ("./topic-0", 3),
            ("/topic-0", 3),
            ("topic-?", 8),
            ("topic-*/f0[12]", 4),
            ("[odd]", 1),
            ("*", 9),
        ],
    )
    def test_patterns_are_as_in_a_shell_and_bring_what_is_below(self, stack, pattern, count):
        stack.restore(stack.top / "look", pattern)
        assert len(stack.contents(stack.top / "look")) == count

    @pytest.mark.parametrize("pattern", ["", "/", "./"])
    def test_an_empty_pattern_is_refused(self, stack, pattern):
        """`--only "$FORGOTTEN"` must not overwrite a live volume without keeping what was there."""
        for act in (stack.plan, stack.restore):
            with pytest.raises(InvalidUse, match="the pattern is empty"):
                act(only=pattern)

    @pytest.mark.parametrize("pattern", ["nothing", "topic", "../data/topic-0", "."])
    def test_a_pattern_that_nothing_fits_is_refused(self, stack, pattern):
        for act in (stack.plan, stack.restore):
            with pytest.raises(RestoreFailed, match="no path fits"):
                act(only=pattern)

    @pytest.mark.parametrize("indexed", [True, False], ids=["index", "stream"])
    def test_a_hard_link_is_restored_without_the_name_that_has_its_bytes(self, stack, indexed):
        reader = stack.reader if indexed else FileReader(stack.archive, NO_KEYS)
        look = stack.top / "look"
        stack.restore(look, "topic-1/linked*", reader=reader)
        assert stack.contents(look) == {"topic-1/linked": b"content 0", "topic-1/linked again": b"content 0"}
        assert (look / "topic-1/linked").stat().st_ino == (look / "topic-1/linked again").stat().st_ino

    @pytest.mark.parametrize("indexed", [True, False], ids=["index", "stream"])
    def test_on_a_live_volume_what_is_replaced_is_kept_and_the_rest_left_alone(self, stack, indexed):
        reader = stack.reader if indexed else FileReader(stack.archive, NO_KEYS)
        for name in ("topic-0/f00", "topic-0/f01", "topic-1/f01"):
            (stack.path / name).unlink()
            (stack.path / name).write_bytes(b"newer")
        (stack.path / "topic-0/f02").unlink()
        (stack.path / "topic-0/since").write_bytes(b"stays")
        (stack.path / "topic-0").chmod(0o700)
        steps = stack.plan(only="topic-0/f*", reader=reader)
        assert steps[0].text.startswith(f"archive 2 files of {stack.path}")
        assert steps[-1].overwrites == f"files that fit topic-0/f* in {stack.path}"
        facts = stack.restore(only="topic-0/f*", reader=reader)
        assert facts["aside"] == ASIDE
        assert stack.kept() == {"topic-0/f00": b"newer", "topic-0/f01": b"newer"}
        now = stack.contents()
        assert [now[f"topic-0/f{n:02}"] for n in range(3)] == [b"content 0", b"content 1", b"content 2"]
        assert (now["topic-0/since"], now["topic-1/f01"]) == (b"stays", b"newer")
        assert stat.S_IMODE((stack.path / "topic-0").stat().st_mode) == 0o700, (
            "directories that are there are left alone"
        )

    def test_on_a_live_volume_a_link_does_not_change_the_file_of_the_other_name(self, stack):
        with (stack.path / "topic-0/f00").open("wb") as file:
            file.write(b"newer")
        stack.restore(only="topic-1/linked")
        now = stack.contents()
        assert (now["topic-1/linked"], now["topic-0/f00"], now["topic-1/linked again"]) == (
            b"content 0",
            b"newer",
            b"newer",
        )
        assert stack.kept() == {"topic-1/linked": b"newer"}

    def test_directories_above_that_are_missing_are_made_as_they_were(self, stack):
        stack.empty()
        stack.restore(only="topic-0/f01")
        assert stack.contents() == {"topic-0/f01": b"content 1"}
        assert stat.S_IMODE((stack.path / "topic-0").stat().st_mode) == 0o2770
        shutil.rmtree(stack.path)
        stack.restore(only="topic-1/linked", path=stack.path)
        assert stat.S_IMODE(stack.path.stat().st_mode) == 0o755
        assert stack.contents() == {"topic-1/linked": b"content 0"}

    def test_a_directory_where_a_file_belongs_is_refused_untouched(self, stack):
        (stack.path / "topic-0/f01").unlink()
        (stack.path / "topic-0/f01").mkdir()
        (stack.path / "topic-0/f01/inner").write_bytes(b"x")
        for act in (stack.plan, stack.restore):
            with pytest.raises(RestoreFailed, match="Is a directory"):
                act(only="topic-0/*")
        assert (stack.path / "topic-0/f01/inner").read_bytes() == b"x"
        assert os.listdir(stack.repository.layout.aside) == []

    def test_a_directory_with_something_in_it_is_refused_also_with_a_pattern(self, stack):
        look = stack.top / "look"
        look.mkdir()
        (look / "[odd]").write_bytes(b"mine")
        with pytest.raises(RestoreFailed, match="there is something in it"):
            stack.plan(look, "[[]odd]")
        (look / "[odd]").unlink(), look.rmdir(), look.touch()
        with pytest.raises(RestoreFailed, match="Not a directory"):
            stack.plan(look, "[[]odd]")


@needs_root
class TestOrdinaryUser:
    @pytest.fixture
    def stack(self, tmp_path):
        """A volume of several users and every kind of thing, that root backed up, and another user has now."""
        stack = Stack(tmp_path)
        stack.path.rmdir()
        awkward_tree(stack.path)
        (stack.path / "read only").mkdir()
        (stack.path / "read only/file").write_bytes(b"x")
        (stack.path / "read only").chmod(0o555)
        stack.take()
        stack.empty()
        os.chown(stack.path, NOBODY, NOBODY)
        return stack

    def test_all_comes_back_but_owners_and_devices_and_that_is_said(self, stack):
        plan, facts = as_nobody(stack.top, lambda: (stack.plan(), stack.restore()))
        assert "only root may restore that" in plan[-1].warning
        assert facts["skipped"] == [
            f"owners: only root may restore them, all of it belongs to user {NOBODY} now",
            "device: a device: only root may make it",
        ]
        status = (stack.path / "setuid").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o751, NOBODY)
        assert stat.S_IMODE((stack.path / "read only").stat().st_mode) == 0o555
        assert (stack.path / "read only/file").read_bytes() == b"x"
        assert "system.posix_acl_access" in os.listxattr(stack.path / "deep/er/file")
        assert os.getxattr(stack.path / "text", "user.note") == b"\x00\xff binary"

    def test_in_a_directory_of_somebody_else_its_mode_stays_and_that_is_said(self, stack):
        os.chown(stack.path, 0, 0), stack.path.chmod(0o777)
        facts = as_nobody(stack.top, stack.restore)
        assert ": its mode and times: it was there before, and belongs to another user" in facts["skipped"]
        assert (stack.path / "text").stat().st_size == 5000
        assert stat.S_IMODE(stack.path.stat().st_mode) == 0o777

    def test_a_volume_of_somebody_else_is_left_as_it_is(self, stack):
        os.chown(stack.path, 0, 0)
        (stack.path / "since").touch()
        before = fingerprint(stack.path)
        error, hint = as_nobody(stack.top, stack.restore)
        assert isinstance(error, RestoreFailed)
        assert "cannot be written" in str(error)
        stack.path.chmod(0o777), (stack.path / "since").chmod(0o600)
        error, hint = as_nobody(stack.top, stack.restore)
        assert "Permission denied" in str(error)
        assert "was changed" in hint
        assert fingerprint(stack.path).keys() == before.keys()
