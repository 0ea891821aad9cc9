"""Reading encrypted files: small ones from memory, large ones forwards, and never a byte before gpg vouched for all."""

import os
import random
from datetime import UTC

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import Damaged
from aquad.jobs.verify import verify
from aquad.repository import plain
from aquad.repository.repository import Repository
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.stream.artifact import RunContext, Silent
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys
from tests.keys import secret_file
from tests.small import back_up
from tests.sources.postgres.test_round_trip import back_up as back_up_postgres
from tests.sources.postgres.test_round_trip import bring_back, source
from tests.stream.test_tarball import awkward_tree, fingerprint


@pytest.fixture
def gpg(tmp_path):
    """Counts how often a file is decrypted."""

    class Counting(Gpg):
        decryptions = 0

        def decrypted(self, stored, name):
            self.decryptions += 1
            return super().decrypted(stored, name)

    gpg = Counting(Keys(passphrase_file=secret_file(tmp_path / "pw", "x")))
    yield gpg
    gpg.end()


@pytest.fixture
def repository(tmp_path, gpg):
    return Repository.create(
        tmp_path / "backups", stack="test", encryption="passphrase", clock=SystemClock(), zone=UTC, gpg=gpg
    )


@pytest.fixture(params=["memory", "forwards"])
def forwards(request, monkeypatch):
    if request.param == "forwards":
        monkeypatch.setattr(plain, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(plain, "KEPT_BYTES", 3000)
    return request.param == "forwards"


CONTENT = os.urandom(300_000)


@pytest.fixture
def encrypted(tmp_path, gpg):
    (tmp_path / "x.gpg").write_bytes(gpg.sealed("passphrase", CONTENT))
    return tmp_path / "x.gpg"


def test_any_stretch_in_any_order(encrypted, gpg, forwards):
    parts = [(0, 100), (100, 2000), (2100, 200_000), (202_100, 2900), (205_000, 95_000)]
    file = plain.EncryptedFile(plain.OnDisk(encrypted), gpg, parts)
    rng = random.Random(1)
    for offset, length in [*parts, *((rng.randrange(299_000), rng.randrange(1000)) for _ in range(10)), (0, None)]:
        end = None if length is None else offset + length
        assert b"".join(file.read(offset, length)) == CONTENT[offset:end], (offset, length)
    assert file.forwards_only == forwards
    with pytest.raises(Damaged, match="1 bytes are missing"):
        b"".join(file.read(10, 299_991))


def test_small_parts_are_kept_as_they_pass(encrypted, gpg, monkeypatch):
    monkeypatch.setattr(plain, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(plain, "KEPT_BYTES", 3000)
    file = plain.EncryptedFile(plain.OnDisk(encrypted), gpg, [(0, 100), (100, 2000), (2100, 200_000), (202_100, 2900)])
    assert b"".join(file.read(2100, 200_000)) == CONTENT[2100:202_100]
    assert b"".join(file.read(100, 2000)) == CONTENT[100:2100]
    assert b"".join(file.read(202_100, 2900)) == CONTENT[202_100:205_000]
    assert b"".join(file.read(0, 100)) == CONTENT[:100]
    assert gpg.decryptions == 2, "once to be sure, once for its readers"


def test_a_clear_file_that_ends_too_early(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    file = plain.ClearFile(plain.OnDisk(tmp_path / "x"))
    assert b"".join(file.read(10, 299_990)) == CONTENT[10:]
    with pytest.raises(Damaged, match="1 bytes are missing"):
        b"".join(file.read(10, 299_991))
    with pytest.raises(Damaged, match="No such file"):
        b"".join(plain.ClearFile(plain.OnDisk(tmp_path / "y")).read())


def test_nothing_is_handed_out_of_a_file_that_gpg_does_not_vouch_for(encrypted, gpg, forwards):
    stored = bytearray(encrypted.read_bytes())
    stored[-10] ^= 1
    encrypted.write_bytes(stored)
    came = []
    with pytest.raises(Damaged):
        came.extend(plain.EncryptedFile(plain.OnDisk(encrypted), gpg).read(0, 100))
    assert came == []


def test_two_readers_at_once_are_refused(encrypted, gpg, monkeypatch):
    monkeypatch.setattr(plain, "IN_MEMORY_BYTES", 0)
    file = plain.EncryptedFile(plain.OnDisk(encrypted), gpg)
    first = file.read(0, 300_000)
    next(first)
    assert b"".join(file.read(5, 10)) == CONTENT[5:15]
    with pytest.raises(Damaged, match="two readers"):
        list(first)


def test_a_volume(tmp_path, repository, forwards, gpg):
    tree = awkward_tree(tmp_path / "source")
    (tree / "large").write_bytes(os.urandom(5 << 20))
    volume = Volume(name="v", path=tree, quiesce="none", may_shrink=False, accepted=False)
    assert back_up(repository, volume, clock=SystemClock()).outcome in {"success", "warning"}
    before = fingerprint(tree)
    (verdict,) = verify(repository, repository.catalog().backups, "content", Silent())
    assert (verdict.problems, verdict.unchecked, verdict.level) == ([], [], "content")
    from aquad.jobs.restore import open_backup

    (tmp_path / "target").mkdir()
    restored = Volume(name="v", path=tmp_path / "target", quiesce="none", may_shrink=False, accepted=False)
    gpg.decryptions = 0
    reader = open_backup(repository, "v", "latest", trusted=False)
    target = VolumeTarget(None, None, lambda stamp: repository.aside(stamp, "v"))
    run = RunContext(run_id="t", timestamp="20300101_000000", clock=SystemClock())
    restored.restore(reader, target, run)
    assert fingerprint(tmp_path / "target") == before
    assert gpg.decryptions <= (6 if forwards else 2)


def test_databases(repository, new_server, forwards, gpg):
    server = new_server()
    for number in range(4):
        server.psql(f"CREATE DATABASE d{number}")
        server.psql(
            f"CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, {1000 + number}) i", f"d{number}"
        )
    postgres = source(server)
    assert back_up_postgres(repository, postgres).outcome == "success"
    for number in range(4):
        server.psql("TRUNCATE t", f"d{number}")
    gpg.decryptions = 0
    bring_back(repository, postgres)
    for number in range(4):
        with server.connect(f"d{number}") as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1000 + number,)
    assert gpg.decryptions <= (4 if forwards else 2), "each database began at the beginning of the dump"
