"""Configuration taken and brought back: through a repository on disk, over a checkout in every bad state."""

import ctypes
import os
import pickle
import platform
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import threading
from functools import partial

import pytest

from aquad.core.errors import AquadError, Damaged, RestoreFailed, SourceFailed
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import run_job
from aquad.sources.configs import environment
from aquad.sources.configs.source import Configs, ConfigsTarget
from aquad.stream.artifact import RunContext
from tests.small import LIMITS, FakeClock, back_up, make_repository
from tests.stream.test_tarball import fingerprint

ROOT = os.geteuid() == 0
NOBODY = 65534
FILES = {
    "infra/compose/docker-compose.yml": (0o644, b"services: {}\n"),
    "infra/compose/.env": (0o600, b"POSTGRES_PASSWORD=before\nPORT=1\n"),
    "infra/monitoring/prometheus/prometheus.yml": (0o640, b"scrape_configs: []\n"),
    "infra/monitoring/rules.yml": (0o644, b"groups: []\n"),
    "run.sh": (0o755, b"#!/bin/sh\n"),
}
PATHS = ["infra/compose/docker-compose.yml", "infra/compose/.env", "infra/monitoring", "run.sh"]
PLACES = {name: content for name, (_, content) in FILES.items()}


class Stack:
    """A checkout, a repository, and what is needed to take and bring back."""

    def __init__(self, top, paths=PATHS, optional=()):
        self.top, self.root, self.paths, self.optional = top, top / "checkout", list(paths), list(optional)
        self.clock = FakeClock()
        self.repository = make_repository(top / "backups", self.clock)

    @property
    def source(self):
        return Configs(root=self.root, paths=self.paths, optional_paths=self.optional)

    def fill(self):
        for name, (mode, content) in FILES.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content), path.chmod(mode)
        os.symlink("rules.yml", self.root / "infra/monitoring/current.yml")
        (self.root / "infra/monitoring/empty").mkdir(mode=0o750)
        return self

    def take(self, outcome="success"):
        work = back_up(self.repository, self.source, clock=self.clock)
        assert work.outcome == outcome, work
        return self

    @property
    def manifest(self):
        return self.repository.catalog().find("latest").components[0]

    @property
    def reader(self):
        return open_backup(self.repository, "configs", "latest", trusted=False)

    def plan(self, to=None, reader=None):
        return self.source.plan_restore(reader or self.reader, ConfigsTarget(to))

    def states(self):
        """Path below the root -> new, changed or same."""
        shown = [step.text.partition(": ") for step in self.plan() if ": " in step.text]
        return {path.partition(" (")[0].removeprefix(f"{self.root}/"): state for state, _, path in shown}

    def run(self, timestamp="20240803_020000", cancel=None):
        return RunContext(run_id="test", timestamp=timestamp, clock=self.clock, cancel=cancel or threading.Event())

    def restore(self, to=None, reader=None, **run):
        return self.source.restore(reader or self.reader, ConfigsTarget(to), self.run(**run))

    def contents(self):
        return {name: (self.root / name).read_bytes() for name in FILES if (self.root / name).is_file()}

    def kept(self):
        """What restores kept: path below the checkout -> content."""
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for directory in sorted(self.root.glob("aquad-before-*"))
            for path in directory.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


class Forged:
    """A reader whose facts or index somebody wrote who wants more than to be restored."""

    def __init__(self, reader, facts=None, lines=None):
        self.sealed, self.origin, self.artifacts, self.read = True, "forged", reader.artifacts, reader.read
        self.facts = {**reader.facts, **(facts or {})}
        self.lines = lines or list(reader.members(reader.artifacts[0].path))

    def members(self, path):
        return iter(self.lines)


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path).fill()


def as_nobody(top, function):
    """What `function` returns, or the error it raises, in a child that is an ordinary user; `top` is made reachable."""
    for directory in (top, *top.parents[:-2]):
        directory.chmod(0o755)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", top / "backups"], check=True)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([]), os.setresgid(NOBODY, NOBODY, NOBODY), os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                answer = function()
            except (AquadError, OSError) as error:
                answer = type(error)(*error.args), getattr(error, "hint", "")
            os.write(theirs, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert told, "the child died"
    return pickle.loads(told)


CHANGING = {
    "open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime",
    "os.truncate", "ctypes.dlsym",
}  # fmt: skip


def killed_at(act, number):
    """Run `act` in a child that is killed at the given call that changes a disk; True when it got so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            if event in CHANGING and not (event == "open" and not arguments[2] & os.O_CREAT):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 70
        try:
            sys.addaudithook(count)
            act()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class TestTaking:
    def test_the_archive_is_flat_and_keeps_mode_owner_and_time(self, stack):
        env = stack.root / "infra/compose/.env"
        os.utime(env, ns=(1, 1_600_000_000_123_456_789))
        if ROOT:
            os.chown(env, 70, 1001)
        stack.take()
        with tarfile.open(stack.repository.root / stack.manifest.artifacts[0].path) as archive:
            members = {member.name: member for member in archive}
        tops = {name.partition("/")[0] for name in members}
        assert tops == {"docker-compose.yml", ".env", "monitoring", "run.sh"}
        assert "monitoring/prometheus/prometheus.yml" in members
        assert (members[".env"].mode, members["run.sh"].mode) == (0o600, 0o755)
        assert members[".env"].pax_headers["mtime"] == "1600000000.123456789"
        assert (members[".env"].uid, members[".env"].gid) == ((70, 1001) if ROOT else (os.getuid(), os.getgid()))
        assert members[".env"].uname == members[".env"].gname == ""

    def test_two_paths_with_the_same_last_name_are_refused_by_both_names(self, stack):
        (stack.root / "infra/scripts").mkdir()
        (stack.root / "infra/scripts/run.sh").touch()
        stack.paths.append("infra/scripts/run.sh")
        with pytest.raises(SourceFailed, match=r"run.sh and infra/scripts/run.sh would both be run.sh"):
            stack.source.take(None, None, stack.run())
        assert stack.source.check()[0].level == "error"

    @pytest.mark.parametrize("gone", ["run.sh", "infra/monitoring", "run.sh/below a file"])
    def test_a_missing_path_is_an_error_that_names_it_unless_it_is_optional(self, stack, gone):
        stack.paths = [path for path in stack.paths if path != gone]
        stack.optional = [gone, "docker-compose.override.yml"]
        if gone in PATHS:
            os.rename(stack.root / gone, stack.root / "elsewhere")
        stack.take()
        assert set(stack.manifest.notes) == {
            f"{gone} is not there (optional)",
            "docker-compose.override.yml is not there (optional)",
        }
        stack.paths, stack.optional = [*stack.paths, gone], []
        with pytest.raises(SourceFailed, match=f"{gone} is not there"):
            stack.source.take(None, None, stack.run())
        (finding,) = stack.source.check()
        assert (finding.level, gone in finding.text) == ("error", True)

    def test_a_listed_symlink_without_what_it_leads_to_is_a_warning(self, stack):
        """The link is all that the archive has: at the restore it would be too late to find that out."""
        (stack.root / "real").mkdir()
        (stack.root / "real" / "dashboard.json").touch()
        os.symlink("real", stack.root / "dashboards"), os.symlink("nowhere", stack.root / "dangling")
        stack.paths += ["dashboards", "dangling"]
        assert [f.text for f in stack.source.check() if f.level == "warning"] == stack.source._bare_links(
            {name: name for name in ("dashboards", "dangling")}
        )
        stack.take("warning")
        assert stack.manifest.warnings == [
            "dashboards is a symlink to real, which is not in the backup",
            "dangling is a symlink to nowhere, which is not in the backup",
        ]
        stack.paths = [*PATHS, "dashboards", "real"]
        stack.take()
        os.unlink(stack.root / "dashboards")
        stack.restore()
        assert os.readlink(stack.root / "dashboards") == "real"

    def test_a_path_through_a_symlinked_directory_is_taken_and_brought_back_where_it_was(self, stack):
        os.symlink("infra/monitoring", stack.root / "watch")
        stack.paths = ["watch/rules.yml"]
        stack.take()
        (stack.root / "infra/monitoring/rules.yml").unlink()
        assert stack.states() == {"infra/monitoring/rules.yml": "new"}
        stack.restore()
        assert (stack.root / "infra/monitoring/rules.yml").read_bytes() == b"groups: []\n"
        assert (stack.root / "watch").is_symlink()

    def test_all_of_the_checkout_and_sockets_are_refused(self, stack):
        stack.paths = ["."]
        with pytest.raises(SourceFailed, match="all of the checkout"):
            stack.source.take(None, None, stack.run())
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(stack.root / "sock"))
            stack.paths = ["sock"]
            with pytest.raises(SourceFailed, match="'sock' is a socket"):
                stack.source.take(None, None, stack.run())

    def test_what_a_killed_restore_left_is_never_backed_up(self, stack):
        (stack.root / ".aquad-restore-20240101_000000").mkdir()
        (stack.root / ".aquad-restore-20240101_000000" / "run.sh").touch()
        stack.take()
        names = {m["path"].partition("/")[0] for m in stack.reader.members(stack.manifest.artifacts[0].path)}
        assert names == {"docker-compose.yml", ".env", "monitoring", "run.sh"}

    @pytest.mark.skipif(not ROOT, reason="needs an ordinary user beside root")
    def test_F10_the_check_names_what_an_ordinary_user_cannot_read(self, stack):
        assert [finding.level for finding in stack.source.check()] == ["ok"]
        (finding,) = as_nobody(stack.top, stack.source.check)
        assert finding.level == "error"
        assert "/.env cannot be read" in finding.text

    def test_size_is_that_of_files_without_following_links(self, stack):
        os.symlink("/", stack.root / "infra/monitoring/everything")
        assert 0 < stack.source.size_bytes() < 100_000


class TestPlanning:
    def test_new_changed_and_same_with_the_difference(self, stack):
        stack.take()
        (stack.root / "run.sh").unlink()
        (stack.root / "infra/compose/.env").chmod(0o644)
        (stack.root / "infra/monitoring/rules.yml").write_bytes(b"other")
        os.unlink(stack.root / "infra/monitoring/current.yml")
        os.symlink("elsewhere", stack.root / "infra/monitoring/current.yml")
        (stack.root / "infra/monitoring/empty").rmdir()
        (stack.root / "infra/monitoring/prometheus").chmod(0o777)
        texts = [step.text.replace(f"{stack.root}/", "") for step in stack.plan()]
        assert sorted(texts) == [
            "changed: infra/compose/.env (mode 644 becomes 600)",
            "changed: infra/monitoring/current.yml (target)",
            "changed: infra/monitoring/prometheus (mode 777 becomes 755)",
            "changed: infra/monitoring/rules.yml (content)",
            "keep what is replaced in aquad-before-<time>",
            "new: infra/monitoring/empty",
            "new: run.sh",
            "same: infra/compose/docker-compose.yml",
            "same: infra/monitoring/prometheus/prometheus.yml",
        ]
        overwritten = [step.overwrites for step in stack.plan() if step.overwrites]
        assert len(overwritten) == 4
        facts = stack.restore()
        assert (facts["new"], facts["changed"], facts["same"]) == (2, 4, 2)

    @pytest.mark.skipif(not ROOT, reason="changing owners needs root")
    def test_an_owner_alone_is_a_change_for_root(self, stack):
        stack.take()
        os.chown(stack.root / "run.sh", 1234, 0)
        assert any(step.text.endswith("run.sh (owner 1234:0 becomes 0:0)") for step in stack.plan())
        stack.restore()
        assert (stack.root / "run.sh").stat().st_uid == 0

    def test_a_plan_touches_nothing(self, stack):
        stack.take()
        (stack.root / "run.sh").write_bytes(b"other"), (stack.root / "infra/compose/.env").unlink()
        before = fingerprint(stack.root)
        stack.plan()
        assert fingerprint(stack.root) == before
        shutil.rmtree(stack.root)
        assert set(stack.states().values()) == {"new"}
        assert not stack.root.exists()

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_a_read_only_checkout_can_be_looked_at_and_the_plan_says_that_it_is(self, stack):
        stack.take()
        subprocess.run(["mount", "--bind", stack.root, stack.root], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", stack.root], check=True)
            assert set(stack.states().values()) == {"same"}
            assert not any(step.warning for step in stack.plan())
            assert stack.restore()["same"] == 6
            subprocess.run(["mount", "-o", "remount,rw,bind", stack.root], check=True)
            (stack.root / "run.sh").write_bytes(b"other")
            subprocess.run(["mount", "-o", "remount,ro,bind", stack.root], check=True)
            assert "read-only" in stack.plan()[-1].warning
            with pytest.raises(RestoreFailed, match="Read-only file system"):
                stack.restore()
        finally:
            subprocess.run(["umount", stack.root], check=True)
        assert (stack.root / "run.sh").read_bytes() == b"other"

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_a_mount_below_the_checkout_is_refused_before_anything_is_moved(self, stack):
        """Renames stop at it: half of the files would be new."""
        stack.take()
        (stack.root / "run.sh").write_bytes(b"other")
        subprocess.run(["mount", "-t", "tmpfs", "none", stack.root / "infra/monitoring"], check=True)
        try:
            for act in (stack.plan, stack.restore):
                with pytest.raises(RestoreFailed, match="another file system is mounted there"):
                    act()
        finally:
            subprocess.run(["umount", stack.root / "infra/monitoring"], check=True)
        assert (stack.root / "run.sh").read_bytes() == b"other"

    def test_a_sparse_file_is_compared_with_its_holes(self, stack):
        path = stack.root / "run.sh"
        with path.open("wb") as file:
            file.truncate(1 << 20), file.seek(500_000), file.write(b"island"), file.truncate(1 << 20)
        stack.take()
        assert stack.states()["run.sh"] == "same"
        path.write_bytes(path.read_bytes())
        assert stack.states()["run.sh"] == "same", "the same bytes without holes"
        with path.open("r+b") as file:
            file.seek(100), file.write(b"!")
        assert stack.states()["run.sh"] == "changed"

    @pytest.mark.parametrize("changed", [False, True], ids=["both new", "one is the same"])
    def test_hard_links_come_back_each_in_its_place(self, stack, changed):
        os.link(stack.root / "run.sh", stack.root / "infra/monitoring/linked.sh")
        stack.take()
        (stack.root / "infra/monitoring/linked.sh").unlink()
        if not changed:
            (stack.root / "run.sh").unlink()
        stack.restore()
        one, other = (stack.root / "run.sh"), (stack.root / "infra/monitoring/linked.sh")
        assert one.read_bytes() == other.read_bytes() == b"#!/bin/sh\n"
        assert set(stack.states().values()) == {"same"}

    @pytest.mark.parametrize("kind", ["file", "full", "unreadable"])
    def test_a_target_that_is_no_empty_directory_is_refused(self, stack, kind):
        stack.take()
        to = stack.top / "look"
        if kind == "file":
            to.touch()
        elif kind == "full":
            to.mkdir(), (to / "x").touch()
        else:
            os.symlink("nowhere", to)
        with pytest.raises(RestoreFailed, match=r"Nothing was changed|something in it"):
            stack.plan(to)
        if kind != "full":
            with pytest.raises(RestoreFailed, match="look"):
                stack.restore(to)

    @pytest.mark.skipif(not ROOT, reason="mounting needs root")
    def test_O3_a_checkout_without_space_for_the_new_files_is_refused_first(self, stack):
        (stack.root / "infra/monitoring/large").write_bytes(os.urandom(300_000))
        stack.take()
        reader = stack.reader
        small = stack.top / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", small], check=True)
        try:
            source = Configs(root=small / "checkout", paths=PATHS, optional_paths=[])
            order = Order("configs", source, reader, ConfigsTarget())
            with pytest.raises(RestoreFailed, match="bytes are needed"):
                run_job(
                    stack.repository,
                    "restore configs",
                    lambda run: restore(stack.repository, [order], lambda _: None, run),
                    clock=stack.clock,
                    zone=stack.clock.now().tzinfo,
                    limits=LIMITS,
                )
            assert list(small.iterdir()) == []
        finally:
            subprocess.run(["umount", small], check=True)

    def test_a_file_of_no_manifest_is_not_put_in_place(self, stack):
        stack.take()
        archive = stack.repository.root / stack.manifest.artifacts[0].path
        copy = shutil.copy(archive, stack.top / "copy.tar.gz")
        reader = open_backup(stack.repository, "configs", str(copy), trusted=True)
        with pytest.raises(RestoreFailed, match="--to DIR"):
            stack.plan(reader=reader)
        stack.restore(stack.top / "look", reader=reader)
        assert (stack.top / "look/.env").read_bytes() == FILES["infra/compose/.env"][1]


class TestSecrets:
    @pytest.mark.parametrize(
        ("old", "new", "changed", "gone"),
        [
            (b"A=1\nB=2\n", b"A=1\nB=3\n", "B", ""),
            (b"A=1", b"A=1\n", "", ""),
            (b"export A=1\n", b"A=1\n", "", ""),
            (b"export\tA=1\n", b"export   A=2\n", "A", ""),
            (b"A='x'\n", b'A="x"\n', "", ""),
            (b"A='$x'\n", b'A="$x"\n', "A", ""),
            (b"A=x # note\n", b"A=x # other\n", "", ""),
            (b"A=x#1\n", b"A=x#2\n", "A", ""),
            (b"A='x' # note\n", b"A='x'\n", "", ""),
            (b"A=1\r\nB=2\r\n", b"A=1\nB=2\n", "", ""),
            (b"# A=1\nB=1\n", b"# A=2\nB=1\n", "", ""),
            (b"A=1\nA=2\n", b"A=2\n", "", ""),
            (b"A=\xff\n", b"A=\xfe\n", "A", ""),
            (b"\xef\xbb\xbfA=1\n", b"A=2\n", "A", ""),
            (b"A = 1\n", b"A=1\n", "", ""),
            (b"A=\n", b"A=1\n", "A", ""),
            (b"A=1\nNEW=2\n", b"A=1\n", "", "NEW"),
            (b"A=1\n", b"A=1\nOLD=2\n", "", ""),
            (b'KEY="-----BEGIN\nc2VjcmV0==\n-----END"\n', b'KEY="-----BEGIN\nb3RoZXI==\n-----END"\n', "KEY", ""),
            (b'KEY="a\\\nB=1"\n', b'KEY="a\\\nB=2"\n', "KEY", ""),
            (b'KEY="a\\"\nB=1"\n', b'KEY="a\\"\nB=2"\n', "KEY", ""),
            ("A=pass\u2028word=1\n".encode(), "A=pass\u2028word=2\n".encode(), "A", ""),
            ("A=pass\x85word=1\n".encode("latin-1"), "A=pass\x0cword=2\n".encode("latin-1"), "A", ""),
        ],
    )
    def test_keys_whose_values_would_change_are_named(self, stack, old, new, changed, gone):
        env = stack.root / "infra/compose/.env"
        env.write_bytes(new)
        stack.take()
        env.write_bytes(old)
        (step,) = [
            step for step in stack.plan() if step.text.startswith(("changed: ", "same: ")) and "/.env" in step.text
        ]
        expected = []
        if changed:
            expected.append(f"values of {changed} would change; they may have been rotated since the backup")
        if gone:
            expected.append(f"{gone} would be gone")
        assert step.warning == "; ".join(expected)

    @pytest.mark.parametrize(
        "text",
        [
            b"A=1\nhunter2\n",
            b"KEY=-----BEGIN\nc2VjcmV0==\nabc\n",
            b'A="open\nsecret=1\n',
            b"A='x'y\n",
            b"=x\n",
            b"\0\n",
        ],
    )
    def test_what_is_no_environment_file_names_nothing(self, text):
        """A line that is not KEY=VALUE may be a piece of a secret: then no line of it is a key that can be shown."""
        said = environment.warning(text, b"A=1\n")
        assert said == environment.UNKNOWN
        assert not any(word in said for word in ("hunter2", "c2Vj", "secret=", "abc"))

    def test_a_hostile_environment_file_is_read_in_linear_time(self):
        signal.alarm(5)
        try:
            for text in (
                b"A=" + b" " * 900_000 + b"x",
                b'A="' + b"\\" * 900_001,
                b" " * 900_000 + b"!",
                b"#" * 900_000,
            ):
                environment.assignments(text)
        finally:
            signal.alarm(0)
        assert environment.assignments(b"A=" + bytes(environment.MAXIMUM_BYTES)) is None

    @pytest.mark.parametrize("kind", ["fifo", "directory", "symlink"])
    def test_what_stands_where_the_environment_file_was_is_not_opened(self, stack, kind):
        stack.take()
        env = stack.root / "infra/compose/.env"
        env.unlink()
        {"fifo": os.mkfifo, "directory": os.mkdir, "symlink": lambda path: os.symlink("/dev/zero", path)}[kind](env)
        signal.alarm(10)
        try:
            (step,) = [step for step in stack.plan() if "/.env" in step.text]
        finally:
            signal.alarm(0)
        assert step.text.startswith("changed: ")
        stack.restore()
        assert env.read_bytes() == FILES["infra/compose/.env"][1]

    def test_other_environment_files_count_and_other_files_do_not(self, stack):
        (stack.root / "infra/monitoring/.env.grafana").write_bytes(b"ADMIN=before\n")
        (stack.root / "infra/monitoring/rules.yml").write_bytes(b"A=before\n")
        stack.take()
        (stack.root / "infra/monitoring/.env.grafana").write_bytes(b"ADMIN=after\n")
        (stack.root / "infra/monitoring/rules.yml").write_bytes(b"A=after\n")
        warnings = [step.warning for step in stack.plan() if step.warning]
        assert warnings == ["values of ADMIN would change; they may have been rotated since the backup"]


class TestRestoring:
    def lose(self, stack):
        """Every kind of loss at once; what is there is at least told apart from what was."""
        (stack.root / "infra/compose/.env").write_bytes(b"POSTGRES_PASSWORD=after\n")
        (stack.root / "infra/monitoring/rules.yml").unlink()
        (stack.root / "infra/monitoring/rules.yml").mkdir()
        (stack.root / "infra/monitoring/rules.yml/inner").write_bytes(b"inner")
        shutil.rmtree(stack.root / "infra/monitoring/prometheus")
        (stack.root / "infra/monitoring/prometheus").write_bytes(b"a file now")
        (stack.root / "run.sh").unlink()

    LOST = {
        "infra/compose/.env": b"POSTGRES_PASSWORD=after\n",
        "infra/monitoring/rules.yml/inner": b"inner",
        "infra/monitoring/prometheus": b"a file now",
    }

    def test_all_comes_back_and_what_was_there_is_kept(self, stack):
        stack.take()
        before = fingerprint(stack.root / "infra"), fingerprint(stack.root)[b"run.sh"]
        self.lose(stack)
        facts = stack.restore()
        (kept,) = stack.root.glob("aquad-before-*")
        assert facts["kept"] == str(kept)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        assert stack.kept() == self.LOST
        shutil.rmtree(kept)
        after = fingerprint(stack.root / "infra"), fingerprint(stack.root)[b"run.sh"]
        # The directories above the listed paths are in no backup; inodes are others, so their first names are compared.
        skip = {b".", b"compose"}
        assert {k: v for k, v in after[0].items() if k not in skip} == {
            k: v for k, v in before[0].items() if k not in skip
        }
        assert after[1] == before[1]
        assert not list(stack.root.glob(".aquad-restore-*"))

    def test_a_second_restore_finds_everything_the_same_and_writes_nothing(self, stack):
        stack.take()
        self.lose(stack)
        stack.restore()
        assert set(stack.states().values()) == {"same"}
        assert len(stack.plan()) == len(FILES) + 1
        times = {path: path.lstat().st_ctime_ns for path in stack.root.rglob("*")}
        facts = stack.restore(timestamp="20240804_020000")
        assert facts == {"new": 0, "changed": 0, "same": 6, "kept": "", "skipped": []}
        assert {path: path.lstat().st_ctime_ns for path in stack.root.rglob("*")} == times

    def test_restores_within_a_second_keep_each_what_they_replaced(self, stack):
        stack.take()
        for text in (b"first", b"second"):
            (stack.root / "run.sh").write_bytes(text)
            stack.restore()
        kept = sorted(stack.root.glob("aquad-before-*"))
        assert [(path / "run.sh").read_bytes() for path in kept] == [b"first", b"second"]

    def test_into_an_empty_directory(self, stack):
        stack.take()
        facts = stack.restore(stack.top / "a" / "look")
        look = stack.top / "a" / "look"
        assert facts["files"] == len(FILES)
        assert {path.name for path in look.iterdir()} == {"docker-compose.yml", ".env", "monitoring", "run.sh"}
        assert (look / ".env").stat().st_mode == (stack.root / "infra/compose/.env").stat().st_mode
        assert stat.S_IMODE(look.stat().st_mode) == 0o700

    @pytest.mark.skipif(not ROOT, reason="changing owners needs root")
    def test_directories_that_are_in_no_backup_are_made_like_those_above_them(self, stack):
        stack.take()
        shutil.rmtree(stack.root / "infra")
        os.chown(stack.root, 1000, 1001), stack.root.chmod(0o750)
        stack.restore()
        for name in ("infra", "infra/compose"):
            status = (stack.root / name).stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o750)
        assert stat.S_IMODE((stack.root / "infra/monitoring").stat().st_mode) == 0o755

    def test_a_listed_path_below_another_is_restored_once(self, stack):
        stack.paths = ["infra/monitoring", "infra/monitoring/rules.yml"]
        stack.take()
        (stack.root / "infra/monitoring/rules.yml").write_bytes(b"old")
        stack.restore()
        assert stack.kept() == {"infra/monitoring/rules.yml": b"old"}
        assert (stack.root / "infra/monitoring/rules.yml").read_bytes() == b"groups: []\n"

    def test_cancelled_it_says_where_the_old_is(self, stack):
        stack.take()
        self.lose(stack)

        class OnceSomethingWasReplaced(threading.Event):
            def is_set(self):
                return bool(stack.kept())

        with pytest.raises(RestoreFailed, match="cancelled") as raised:
            stack.restore(cancel=OnceSomethingWasReplaced())
        (kept,) = stack.root.glob("aquad-before-*")
        assert f"What was replaced so far is in {kept}" in raised.value.hint
        assert stack.kept()
        assert not list(stack.root.glob(".aquad-restore-*"))
        stack.restore(timestamp="20240804_020000")
        assert stack.contents() == PLACES
        assert stack.kept() == self.LOST

    def test_cancelled_while_unpacking_nothing_was_replaced(self, stack):
        stack.take()
        self.lose(stack)
        before = fingerprint(stack.root)
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(RestoreFailed, match="cancelled"):
            stack.restore(cancel=cancel)
        assert {k: v for k, v in fingerprint(stack.root).items() if k != b"."} == {
            k: v for k, v in before.items() if k != b"."
        }


class TestKilled:
    """O2: the process dies at each call that changes the checkout."""

    def test_O2_killed_anywhere_each_place_has_the_old_or_the_new_file(self, stack):
        stack.take()
        TestRestoring().lose(stack)
        pristine = stack.top / "pristine"
        stack.root.rename(pristine)
        number, states = 0, set()
        while True:
            number += 1
            shutil.rmtree(stack.root, ignore_errors=True)
            shutil.copytree(pristine, stack.root, symlinks=True)
            reader = stack.reader
            if not killed_at(partial(stack.restore, reader=reader), number):
                break
            present = stack.contents()
            assert present["infra/compose/.env"] in {PLACES["infra/compose/.env"], b"POSTGRES_PASSWORD=after\n"}
            assert (stack.root / "infra/monitoring/rules.yml").exists()
            assert (stack.root / "infra/monitoring/prometheus").exists()
            assert all(
                present[name] == content for name, content in PLACES.items() if name in present and ".env" not in name
            )
            everything = stack.kept() | {
                name: (stack.root / name).read_bytes()
                for name, old in TestRestoring.LOST.items()
                if (stack.root / name).is_file() and (stack.root / name).read_bytes() == old
            }
            missing = {name: old for name, old in TestRestoring.LOST.items() if everything.get(name) != old}
            assert missing == {}, "what was there is nowhere any more"
            states.add(len(stack.kept()))
            if number % 3:
                continue
            leftovers = list(stack.root.glob(".aquad-restore-*"))
            said = [step.warning for step in stack.plan() if step.text.startswith("remove ")]
            assert len(said) == len(leftovers)
            if leftovers and list(stack.root.glob("aquad-before-*")):
                assert "left by a restore that was killed: what it replaced is in aquad-before-2024" in said[0]
            stack.restore(timestamp="20240804_020000")
            assert stack.contents() == PLACES
            assert not list(stack.root.glob(".aquad-restore-*"))
        assert number > 30
        assert {0, 3} <= states
        assert set(stack.states().values()) == {"same"}

    def test_a_file_system_that_cannot_exchange_names(self, stack):
        """NFS and others: then the old one goes first, and is kept all the same."""
        stack.take()
        TestRestoring().lose(stack)
        reader = stack.reader
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _refuse_renameat2()
                stack.restore(reader=reader)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert stack.contents() == PLACES
        assert stack.kept() == TestRestoring.LOST

    def test_leavings_are_removed_but_never_followed(self, stack):
        stack.take()
        outside = stack.top / "outside"
        outside.mkdir()
        (outside / "sentinel").write_bytes(b"whole")
        os.symlink(outside, stack.root / ".aquad-restore-20240101_000000")
        left = stack.root / ".aquad-restore-20240102_000000"
        left.mkdir()
        os.symlink(outside, left / "monitoring")
        (step,) = [step for step in stack.plan() if step.text.startswith("remove ")]
        assert step.text == f"remove {left}"
        assert step.warning == "left by a restore that was killed: it had replaced nothing"
        stack.restore()
        assert not left.exists()
        assert (outside / "sentinel").read_bytes() == b"whole"


def _refuse_renameat2():
    """A seccomp filter (seccomp(2)) for this process: renameat2 fails with EINVAL, as where a file system lacks it."""
    number = {"x86_64": 316, "aarch64": 276}[platform.machine()]
    code = b"".join(
        struct.pack("<HBBI", *line)
        for line in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 22), (0x06, 0, 0, 0x7FFF0000))
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0


class TestHostile:
    """G1: nothing outside of the root is written, whatever is in the checkout, the manifest or the index."""

    @pytest.fixture
    def outside(self, stack):
        outside = stack.top / "outside"
        (outside / "monitoring").mkdir(parents=True)
        (outside / "monitoring" / "rules.yml").write_bytes(b"sentinel")
        yield outside
        found = {str(p.relative_to(outside)): p.read_bytes() for p in outside.rglob("*") if p.is_file()}
        assert found == {"monitoring/rules.yml": b"sentinel"}
        assert sorted(p.name for p in outside.rglob("*")) == ["monitoring", "rules.yml"]

    @pytest.mark.parametrize("target", ["{outside}", "../outside", "/proc/self/cwd", "loop", "../gone"])
    def test_a_directory_above_that_became_a_symlink_out_of_the_root_is_refused(self, stack, outside, target):
        stack.take()
        shutil.rmtree(stack.root / "infra")
        os.symlink(target.format(outside=outside), stack.root / "infra")
        if target == "loop":
            os.symlink("infra", stack.root / "loop")
        (stack.root / "run.sh").write_bytes(b"old")
        for act in (stack.plan, stack.restore):
            with pytest.raises(RestoreFailed, match="is in the way"):
                act()
        assert (stack.root / "run.sh").read_bytes() == b"old"

    def test_a_file_where_a_directory_above_was_is_refused(self, stack, outside):
        stack.take()
        shutil.rmtree(stack.root / "infra")
        (stack.root / "infra").write_bytes(b"a file")
        with pytest.raises(RestoreFailed, match="infra is in the way"):
            stack.plan()

    @pytest.mark.parametrize("name", ["monitoring", "monitoring/prometheus"])
    def test_a_restored_directory_that_became_a_symlink_is_replaced_and_kept(self, stack, outside, name):
        stack.take()
        shutil.rmtree(stack.root / "infra" / name)
        os.symlink(outside / "monitoring", stack.root / "infra" / name)
        assert stack.states()[f"infra/{name}"] == "changed"
        assert stack.states()[f"infra/{name}/{'rules.yml' if name == 'monitoring' else 'prometheus.yml'}"] == "new"
        stack.restore()
        assert stack.contents() == PLACES
        (kept,) = stack.root.glob("aquad-before-*")
        assert os.readlink(kept / "infra" / name) == str(outside / "monitoring")

    def test_a_file_that_became_a_symlink_is_replaced_not_written_through(self, stack, outside):
        stack.take()
        (stack.root / "infra/monitoring/rules.yml").unlink()
        os.symlink(outside / "monitoring/rules.yml", stack.root / "infra/monitoring/rules.yml")
        stack.restore()
        assert stack.contents() == PLACES

    def test_symlinks_laid_where_the_restore_will_keep_and_unpack(self, stack, outside):
        stack.take()
        (stack.root / "run.sh").write_bytes(b"old")
        os.symlink(outside, stack.root / "aquad-before-20240803_020000")
        stack.restore()
        assert (stack.root / "aquad-before-20240803_020000.2/run.sh").read_bytes() == b"old"
        (stack.root / "run.sh").write_bytes(b"old")
        os.symlink(outside, stack.root / ".aquad-restore-20240804_020000")
        with pytest.raises(RestoreFailed, match="File exists"):
            stack.restore(timestamp="20240804_020000")
        assert (stack.root / "run.sh").read_bytes() == b"old"

    @pytest.mark.parametrize("place", ["../outside/monitoring", "{outside}/new", "infra/../../outside/x", ""])
    def test_a_manifest_whose_places_lead_out(self, stack, outside, place):
        stack.take()
        shutil.rmtree(stack.root / "infra/monitoring")
        forged = Forged(
            stack.reader, facts={"paths": {**stack.reader.facts["paths"], "monitoring": place.format(outside=outside)}}
        )
        for act in (stack.plan, stack.restore):
            with pytest.raises((Damaged, RestoreFailed)):
                act(reader=forged)

    @pytest.mark.parametrize(
        "line",
        [
            {"path": "../outside/x"},
            {"path": "unlisted"},
            {"path": "."},
            {"path": "monitoring/x", "type": "hardlink", "link": "../outside/monitoring/rules.yml"},
            {"path": "monitoring/x", "type": "hardlink", "link": "monitoring/gone"},
            {"path": "monitoring/x", "mode": -1},
            {"path": "monitoring/x", "uid": 2**40},
            {"path": "monitoring/x", "mtime_ns": 10**40},
            {"path": "monitoring/x", "segments": "all"},
            {"path": "monitoring/x", "xattrs": {"user.\0": ""}},
            {"path": "monitoring/x", "xattrs": {"user.\ud800": ""}},
        ],
    )
    def test_an_index_that_lies_is_refused_before_anything_is_touched(self, stack, outside, line):
        stack.take()
        TestRestoring().lose(stack)
        before = fingerprint(stack.root)
        lines = list(stack.reader.members(stack.reader.artifacts[0].path))
        forged = Forged(stack.reader, lines=[*lines, {**next(m for m in lines if m["type"] == "file"), **line}])
        for act in (stack.plan, stack.restore):
            with pytest.raises(Damaged):
                act(reader=forged)
        assert fingerprint(stack.root) == before


@pytest.mark.skipif(not ROOT, reason="needs an ordinary user beside root")
class TestOrdinaryUser:
    @pytest.fixture
    def stack(self, tmp_path):
        """What root backed up of several users, in a checkout that an ordinary user has now."""
        stack = Stack(tmp_path).fill()
        os.chown(stack.root / "run.sh", 1234, 1234), (stack.root / "run.sh").chmod(0o4755)
        (stack.root / "infra/monitoring/prometheus").chmod(0o555)
        stack.take()
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", stack.root], check=True)
        (stack.root / "run.sh").chmod(0o755)
        return stack

    def test_a_restore_says_once_that_owners_are_lost_and_does_not_fail(self, stack):
        TestRestoring().lose(stack)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", stack.root], check=True)

        def act():
            return stack.plan(), stack.restore(), stack.plan()

        plan, facts, again = as_nobody(stack.top, act)
        told = [step for step in plan if "owner" in step.text or "owner" in step.warning]
        assert [step.text for step in told] == ["leave owners as they are, and do not compare them"]
        assert "only root may restore that" in told[0].warning
        assert facts["skipped"] == [f"owners: only root may restore them, all of it belongs to user {NOBODY} now"]
        assert stack.contents() == PLACES
        assert stack.kept() == TestRestoring.LOST
        assert {step.text.partition(": ")[0] for step in again if ": " in step.text} == {"same"}
        assert (stack.root / "infra/monitoring/prometheus").stat().st_mode == stat.S_IFDIR | 0o555
        assert (stack.root / "run.sh").stat().st_uid == NOBODY

    def test_setuid_does_not_come_back_for_another_owner(self, stack):
        (stack.root / "run.sh").unlink()
        as_nobody(stack.top, stack.restore)
        assert stat.S_IMODE((stack.root / "run.sh").stat().st_mode) == 0o755
        shutil.rmtree(stack.root)
        stack.root.mkdir()
        stack.restore()
        assert stat.S_IMODE((stack.root / "run.sh").stat().st_mode) == 0o4755
        assert (stack.root / "run.sh").stat().st_uid == 1234

    def test_an_owner_alone_is_no_change(self, stack):
        os.chown(stack.root / "infra/monitoring/rules.yml", 4321, 4321)
        (stack.root / "infra/monitoring/rules.yml").chmod(0o644)
        steps = as_nobody(stack.top, stack.plan)
        assert {step.text.partition(": ")[0] for step in steps if ": " in step.text} == {"same"}
        assert "only root may restore that" in steps[-1].warning

    def test_a_file_that_may_not_be_read_is_replaced_and_kept(self, stack):
        env = stack.root / "infra/compose/.env"
        env.write_bytes(b"POSTGRES_PASSWORD=private\nPORT=12\n")
        env.chmod(0o600), os.chown(env, 0, 0)
        plan = as_nobody(stack.top, stack.plan)
        (step,) = [step for step in plan if "/.env" in step.text]
        assert step.text.startswith("changed: ")
        as_nobody(stack.top, stack.restore)
        assert env.read_bytes() == PLACES["infra/compose/.env"]
        assert stack.kept()["infra/compose/.env"] == b"POSTGRES_PASSWORD=private\nPORT=12\n"

    def test_a_checkout_of_somebody_else(self, stack):
        (stack.root / "run.sh").unlink()
        os.chown(stack.root, 0, 0)
        plan = as_nobody(stack.top, stack.plan)
        assert any("that is not possible" in step.warning for step in plan)
        error, _ = as_nobody(stack.top, stack.restore)
        assert isinstance(error, RestoreFailed)
        assert "Permission denied" in str(error)

    def test_a_directory_in_which_it_may_not_write_leaves_each_file_whole(self, stack):
        TestRestoring().lose(stack)
        os.chown(stack.root / "infra/monitoring", 0, 0)
        error, hint = as_nobody(stack.top, stack.restore)
        assert "Permission denied" in str(error)
        assert "What was replaced so far is in" in hint
        assert stack.kept()["infra/compose/.env"] == b"POSTGRES_PASSWORD=after\n"
        assert not list(stack.root.glob(".aquad-restore-*"))
        as_root = stack.restore(timestamp="20240804_020000")
        assert as_root["changed"] > 0
        assert stack.contents() == PLACES

    def test_into_a_directory(self, stack):
        to = stack.top / "mine"
        to.mkdir()
        os.chown(to, NOBODY, NOBODY)
        plan, facts = as_nobody(stack.top, lambda: (stack.plan(to), stack.restore(to)))
        assert "only root may restore that" in plan[0].warning
        assert facts["files"] == len(FILES)
        assert facts["skipped"] == [f"owners: only root may restore them, all of it belongs to user {NOBODY} now"]
        assert (to / ".env").read_bytes() == PLACES["infra/compose/.env"]
