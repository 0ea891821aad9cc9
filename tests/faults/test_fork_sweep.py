"""H1, H3: the process dies, or a call fails, at every single call that changes the repository.

`aquad.storage.files.os` is replaced by a double that counts calls. After each fault: what is listed verifies, what was
sealed before is untouched, and the next run works.
"""

import errno
import hashlib
import os
import shutil
import signal

import pytest

from aquad.core.errors import AquadError
from aquad.jobs.verify import verify
from aquad.storage import files
from aquad.stream.artifact import Silent
from tests.small import back_up, make_repository, open_repository, outcomes

CHANGING = {"open", "write", "ftruncate", "fsync", "close", "rename", "mkdir", "unlink", "rmdir"}


class CountingOs:
    """Stands for the module `os` in aquad.storage.files; `at_call(name, number)` is asked before each changing call."""

    def __init__(self, at_call):
        self.at_call = at_call
        self.number = 0

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CHANGING:
            return function

        def counted(*arguments, **keywords):
            self.number += 1
            try:
                self.at_call(name, self.number)
            except OSError:
                if name == "close":
                    function(*arguments, **keywords)  # Linux frees the descriptor whatever close() reports
                raise
            return function(*arguments, **keywords)

        return counted


@pytest.fixture
def pristine(tmp_path):
    """A repository with one sealed backup, copied afresh for each fault."""
    repository = make_repository(tmp_path / "pristine")
    back_up(repository)
    return tmp_path / "pristine"


def fresh_copy(pristine):
    work = pristine.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    return work


def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file() and "state" not in p.relative_to(root).parts
    }


def check_laws(root, sealed_before):
    """Laws 1 and 2, and: the next run works."""
    repository = open_repository(root)
    after = digests(root)
    assert {path: after.get(path) for path in sealed_before} == sealed_before, "something sealed was touched"
    catalog = repository.catalog()
    assert catalog.unreadable == ()
    for verdict in verify(repository, catalog.backups, "bytes", Silent()):
        assert not verdict.problems
    listed = len(catalog.backups)
    assert back_up(repository).outcome == "success"
    catalog = repository.catalog()
    assert len(catalog.backups) == listed + 1
    assert os.listdir(repository.layout.drafts) == []
    named = {f.path for b in catalog.backups for f in b.files()} | {f"manifests/{b.id}.json" for b in catalog.backups}
    loose = {p for p in digests(root) if p.partition("/")[0] not in {"trash", "aquad-repository.json"}} - named
    assert loose == set(), "a file that nothing names"
    started = sum(1 for e in repository.journal.entries() if e["event"] == "run_started")
    assert len(outcomes(root)) == started, "a run without an outcome"
    return listed


def killed_at(root, number):
    """Run a full backup in a child that is killed at the given call; True when it got so far."""

    def die(_name, call):
        if call == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        status = 70
        try:
            files.os = CountingOs(die)
            back_up(open_repository(root))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_A1_sigkill_at_every_call_of_a_full_run(pristine):
    sealed = digests(pristine)
    number, listed = 0, []
    while True:
        number += 1
        root = fresh_copy(pristine)
        if not killed_at(root, number):
            break
        listed.append(check_laws(root, sealed))
    assert number > 50
    assert set(listed) == {1, 2}, "the sweep must see both sides of the commit point"
    assert listed == sorted(listed), "there is one commit point"


def test_A7_sigkill_at_every_call_of_the_recovery(pristine):
    """A run killed after it had renamed its files; then its recovery is killed at each call, and again at each third."""
    sealed = digests(pristine)
    root = fresh_copy(pristine)
    first = 1
    while killed_at(root, first) and not any("020001" in name for name in os.listdir(root)):
        root = fresh_copy(pristine)
        first += 1
    half_done = pristine.parent / "half_done"
    shutil.copytree(root, half_done)
    number = 0
    while True:
        number += 1
        root = fresh_copy(half_done)
        if not killed_at(root, number):
            break
        if number % 3 == 0:
            killed_at(root, number // 3)
        check_laws(root, sealed)
    assert number > 50


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from_here_on"])
def test_B1_B6_every_call_of_a_full_run_fails(pristine, code, lasting):
    sealed = digests(pristine)
    number, failed = 0, 0
    while True:
        number += 1
        root = fresh_copy(pristine)
        double = CountingOs(lambda _name, call, n=number: _fail(code) if call == n or (lasting and call > n) else None)
        files.os = double
        try:
            outcome = back_up(open_repository(root)).outcome
        except AquadError as error:
            assert os.strerror(code) in str(error)
            outcome = "raised"
        finally:
            files.os = os
        if double.number < number:
            assert outcome == "success"
            break
        failed += outcome != "success"
        check_laws(root, sealed)
    assert failed > 50


def _fail(code):
    raise OSError(code, os.strerror(code))
