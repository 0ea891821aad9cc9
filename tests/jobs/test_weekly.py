"""The weekly archive: made whole or not at all, opened by stock tar, and restored from where it lies, proved before the first byte."""

import contextlib
import gzip
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
import tarfile
import zlib
from datetime import UTC, datetime

import pytest

from aquad.core.clock import SystemClock
from aquad.core.errors import Damaged, InvalidUse, NoSuchBackup, RepositoryRefused, SourceFailed, WrongKey
from aquad.jobs import weekly
from aquad.jobs.restore import Order, open_backup, restore
from aquad.jobs.run import Work, run_job
from aquad.jobs.shelf import Shelf
from aquad.jobs.verify import verify
from aquad.repository import enclosed, manifest
from aquad.repository.enclosed import Enclosed
from aquad.repository.repository import Repository
from aquad.settings.model import Settings
from aquad.sources.configs.source import Configs, ConfigsTarget
from aquad.sources.postgres.restore import PostgresTarget
from aquad.sources.volumes import Volume, VolumeTarget
from aquad.stream import plaintar, stretches
from aquad.stream.artifact import Part, RunContext, Silent, Taken
from aquad.stream.gpg.gpg import Gpg
from aquad.stream.gpg.keys import Keys
from tests.faults.conftest import QUICK_S2K
from tests.keys import secret_file
from tests.small import LIMITS, FakeClock, Words, back_up, journal, make_repository, open_repository
from tests.sources.postgres.test_round_trip import source as postgres_source
from tests.stream.hostile.test_bombs import bounded
from tests.stream.test_tarball import awkward_tree, fingerprint

SUNDAY = datetime(2024, 8, 4, 1, 0, 0, tzinfo=UTC)
NAME = "weekly/weekly_backup_2024_week_31.tar.gz"
LONG = "n" * 150


class Sql:
    """A source of one plain file."""

    component = "sql"

    def take(self, sink, previous, run):
        sink.add(f"sql_{run.timestamp}.sql", iter([Part("all", iter([b"SELECT 1;\n" * 20_000]), dict)]), gzip=False)
        return Taken("snapshot", {})


def archive(repository, clock=None, **options):
    """A weekly archive of the newest backup, by a run."""

    def job(run):
        sealed = weekly.archive(repository, repository.catalog().find("latest"), run, **options)
        return Work("success", "", {"backup": sealed.id})

    clock = clock or FakeClock(SUNDAY)
    done = run_job(repository, "weekly", job, clock=clock, zone=UTC, limits=LIMITS)
    return repository.catalog().find(done.details["backup"])


def volume(path, name="data"):
    return Volume(name=name, path=path, quiesce="none", may_shrink=False, accepted=False)


def context(stamp="20300101_000000"):
    return RunContext(run_id="t", timestamp=stamp, clock=SystemClock())


def path_of(repository, backup):
    return repository.root / backup.components[0].artifacts[0].path


def cut_members(stored):
    """Where each gzip member begins, and the end."""
    offsets, position = [0], 0
    while position < len(stored):
        state = zlib.decompressobj(31)
        state.decompress(stored[position:])
        position = len(stored) - len(state.unused_data)
        offsets.append(position)
    return offsets


def contents_of(reader):
    """All stored bytes of a component."""
    return {a.path: b"".join(reader.read(a.path)) for a in reader.artifacts}


@pytest.fixture
def repository(tmp_path):
    """A full backup of words, of a file in clear, and of a volume of some size."""
    clock = FakeClock(SUNDAY)
    repository = make_repository(tmp_path / "backups", clock)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(3 << 20))
    for number in range(50):
        (tree / f"small {number}").write_bytes(b"content %d" % number)
    back_up(repository, Words(), Sql(), volume(tree), volume(tree, LONG), clock=clock)
    return repository


@pytest.fixture
def small(tmp_path):
    """A repository with one small full and its archive, and the archive's path."""
    repository = make_repository(tmp_path / "small", FakeClock(SUNDAY))
    back_up(repository, Words(text=b"some words\n" * 9), Sql(), clock=FakeClock(SUNDAY))
    return repository, path_of(repository, archive(repository))


class TestMaking:
    def test_tar_opens_it_to_the_documented_names_byte_for_byte(self, repository, tmp_path):
        full = repository.catalog().find("latest")
        sealed = archive(repository)
        path = path_of(repository, sealed)
        assert path == repository.root / NAME
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        target = tmp_path / "by hand"
        target.mkdir()
        done = subprocess.run(["tar", "-xzf", path, "-C", target], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found = {str(p.relative_to(target)): p for p in target.rglob("*") if p.is_file()}
        assert found.keys() == {f"manifests/{full.id}.json", *(file.path for file in full.files())}
        for name, unpacked in found.items():
            assert unpacked.read_bytes() == (repository.root / name).read_bytes(), name
            assert unpacked.stat().st_mtime == SUNDAY.timestamp()
        assert manifest.parse(found[f"manifests/{full.id}.json"].read_bytes(), full.id) == full
        with tarfile.open(path) as tar:
            infos = tar.getmembers()
        assert infos[0].name == f"manifests/{full.id}.json"
        indexes = [file.path for c in full.components for a in c.artifacts if (file := a.index)]
        assert [info.name for info in infos[1 : 1 + len(indexes)]] == indexes
        assert {(i.mode, i.uid, i.gid, i.uname, i.gname) for i in infos} == {(0o600, 0, 0, "", "")}
        assert any(len(info.name) > 100 for info in infos)

    def test_nothing_is_compressed_twice_and_every_member_is_small(self, repository):
        full = repository.catalog().find("latest")
        path = path_of(repository, archive(repository))
        stored = path.read_bytes()
        inner = {file.path: file.stored_bytes for file in full.files()}
        sql = next(name for name in inner if name.endswith(".sql"))
        assert len(stored) <= 1.01 * (sum(inner.values()) - inner[sql]) + 20_000, "what is plain is deflated"
        offsets = cut_members(stored)
        members = [gzip.decompress(stored[a:b]) for a, b in itertools.pairwise(offsets)]
        assert max(map(len, members)) <= stretches.WRITTEN_BYTES
        assert len(members) > 6
        ways = ["stored" if stored[offset + 10] & 0b110 == 0 else "deflated" for offset in offsets[:-1]]  # BTYPE
        assert [way for way, _ in itertools.groupby(ways)] == ["deflated", "stored", "deflated", "stored", "deflated"]
        plain = b"".join(members)
        record = repository.catalog().find("latest").components[0].artifacts[0]
        assert (len(plain), hashlib.sha256(plain).hexdigest()) == (record.plain_bytes, record.plain_sha256)

    def test_its_manifest_and_its_verification(self, repository):
        full = repository.catalog().find("latest")
        sealed = archive(repository)
        (component,) = sealed.components
        assert (sealed.kind, sealed.id, sealed.sequence) == ("weekly", "20240804_010001_weekly", full.sequence + 1)
        assert (component.name, component.outcome, component.consistency) == ("archive", "success", "files")
        assert component.facts == {"backup": full.id, "components": {c.name: "success" for c in full.components}}
        for level in ("quick", "bytes", "content"):
            (verdict,) = verify(repository, [sealed], level, Silent())
            assert (verdict.problems, verdict.level) == ([], level)
        verified = [e for e in journal(repository.root) if e["event"] == "verified" and e["backup"] == sealed.id]
        assert (verified[0]["level"], verified[0]["outcome"]) == ("bytes", "success")
        catalog = repository.catalog()
        assert catalog.latest() == sealed
        assert {catalog.latest(name).kind for name in ("words", "sql", "data", LONG)} == {"full"}

    @pytest.mark.parametrize(
        ("day", "week"),
        [
            ("20201231", "2020_week_53"),
            ("20210103", "2020_week_53"),
            ("20210104", "2021_week_01"),
            ("20241229", "2024_week_52"),
            ("20241230", "2025_week_01"),
            ("20240804", "2024_week_31"),
        ],
    )
    def test_iso_weeks(self, tmp_path, day, week):
        assert weekly.free_path(tmp_path, f"{day}_235959_full") == f"weekly/weekly_backup_{week}.tar.gz"

    def test_a_taken_name_gets_a_number(self, repository):
        full = repository.catalog().find("latest")
        first, second, third = (archive(repository_with(repository, full)) for _ in range(3))
        names = [path_of(repository, one).name for one in (first, second, third)]
        assert names == [f"weekly_backup_2024_week_31{end}.tar.gz" for end in ("", "_2", "_3")]
        assert [v.problems for v in verify(repository, [first, second, third], "bytes", Silent())] == [[], [], []]

    def test_consistency_is_that_of_its_components_where_they_agree(self, tmp_path):
        repository = make_repository(tmp_path / "b", FakeClock(SUNDAY))
        back_up(repository, Sql(), clock=FakeClock(SUNDAY))
        assert archive(repository).components[0].consistency == "snapshot"

    def test_of_a_partial_backup_it_says_so(self, tmp_path):
        repository = make_repository(tmp_path / "b", FakeClock(SUNDAY))
        back_up(repository, Sql(), Words(fails=True), clock=FakeClock(SUNDAY))
        sealed = archive(repository)
        assert (sealed.outcome, sealed.components[0].outcome) == ("partial", "warning")
        assert "words as failed" in sealed.components[0].warnings[0]
        assert Shelf(repository, trusted=False).components(sealed.id) == ["sql"]

    @pytest.mark.parametrize("rot", ["flip", "cut", "grow", "gone", "manifest", "swapped"])
    def test_a_rotten_file_is_found_named_and_recorded_and_nothing_is_sealed(self, repository, rot):
        full = repository.catalog().find("latest")
        path = repository.root / full.components[2].artifacts[0].path
        if rot in {"manifest", "swapped"}:
            path = repository.layout.manifest(full.id)
        content = path.read_bytes()
        middle = len(content) // 2
        changed = {
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:-1],
            "grow": content + b"x",
            "swapped": manifest.render(full.model_copy(update={"host": "another"})),
            "manifest": content.replace(b'"host": "', b'"host": "x'),
        }
        if rot == "gone":
            path.unlink()
        else:
            path.write_bytes(changed[rot])
        with pytest.raises(Damaged, match=path.name.removesuffix(".json")):
            archive(repository_with(repository, full))
        failed = [e for e in journal(repository.root) if e["event"] == "verified" and e["outcome"] == "failed"]
        assert [(e["backup"], path.name.removesuffix(".json") in e["problems"][0]) for e in failed] == [(full.id, True)]
        assert os.listdir(repository.layout.drafts) == os.listdir(repository.root / "weekly") == []
        assert not list(repository.layout.manifests.glob("*_weekly.json"))

    def test_cancelled(self, repository):
        def cancelling(run):
            run.cancel.set()
            return weekly.archive(repository, repository.catalog().find("latest"), run)

        with pytest.raises(SourceFailed, match="cancelled"):
            run_job(repository, "weekly", cancelling, clock=FakeClock(SUNDAY), zone=UTC, limits=LIMITS)
        assert os.listdir(repository.layout.drafts) == os.listdir(repository.root / "weekly") == []

    def test_without_room_nothing_is_begun(self, repository):
        with pytest.raises(RepositoryRefused, match="bytes are free"):
            archive(repository, reserve_bytes=1 << 60)
        assert os.listdir(repository.layout.drafts) == []

    def test_progress_comes_to_its_end(self, repository):
        class Counting(Silent):
            total = done = 0

            def stage(self, name, total_bytes):
                self.total += total_bytes

            def advance(self, count):
                self.done += count

        progress = Counting()
        run = RunContext(run_id="t", timestamp="x", clock=FakeClock(SUNDAY), progress=progress)
        full = repository.catalog().find("latest")
        weekly.archive(repository, full, run)
        assert progress.done == progress.total == full.stored_bytes


def repository_with(repository, full):
    """As `repository`, with this backup as the newest."""

    class Wrapped(Repository):
        def catalog(self):
            found = super().catalog()
            return found._replace(backups=[full, *(b for b in found.backups if b.id != full.id)])

    repository.__class__ = Wrapped
    return repository


@pytest.mark.parametrize("keys", ["clear", "encrypted", "forwards"])
def test_a_whole_stack_comes_back_by_id_and_by_a_copy_on_a_new_host(tmp_path, shared_server, keys, monkeypatch):
    monkeypatch.setattr("aquad.stream.gpg.gpg.SYMMETRIC", QUICK_S2K)
    gpg = Gpg(Keys(passphrase_file=secret_file(tmp_path / "pw", "x"))) if keys != "clear" else None
    if keys == "forwards":
        monkeypatch.setattr("aquad.repository.plain.IN_MEMORY_BYTES", 0)
    mode = "off" if gpg is None else "passphrase"

    def new_repository(name):
        options = {"stack": "small", "clock": SystemClock(), "zone": UTC, "gpg": gpg}
        return Repository.create(tmp_path / name, encryption=mode, **options)

    repository = new_repository("backups")
    tree, checkout, database = awkward_tree(tmp_path / "tree"), tmp_path / "checkout", f"weekly_{keys}"
    (checkout / "infra").mkdir(parents=True)
    (checkout / "infra" / "x").write_text("x")
    for name in (database, f"{database}_other"):
        shared_server.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        shared_server.psql(f"CREATE DATABASE {name}")
        shared_server.psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 777) i", name)
    postgres = postgres_source(shared_server, databases=[database, f"{database}_other"])
    configs = Configs(root=checkout, paths=["infra"], optional_paths=[])
    before = fingerprint(tree)
    assert back_up(repository, configs, volume(tree), postgres, clock=SystemClock()).outcome in {"success", "warning"}
    sealed = archive(repository, SystemClock())
    copy = tmp_path / "anything.bin"
    shutil.copy(path_of(repository, sealed), copy)
    with tarfile.open(copy) as tar:
        assert all(name.endswith((".gpg", ".json")) == (gpg is not None) or ".json" in name for name in tar.getnames())
    for victim in repository.catalog().find(sealed.components[0].facts["backup"]).files():
        (repository.root / victim.path).unlink()  # the archive needs nothing beside it
    other = new_repository("new host")
    for where, what, trusted in (
        (repository, sealed.id, False),
        (repository, str(copy), False),
        (other, str(copy), True),
    ):
        target = tmp_path / f"target {trusted} {what == sealed.id}"
        target.mkdir()
        shutil.rmtree(checkout)
        shared_server.psql("TRUNCATE t", database)
        shared_server.psql("TRUNCATE t", f"{database}_other")
        shelf = Shelf(where, trusted=trusted)
        assert shelf.components(what) == ["configs", "data", "postgres"]
        orders = [
            Order("configs", configs, shelf.open("configs", what), ConfigsTarget()),
            Order("data", volume(target), shelf.open("data", what), VolumeTarget(target)),
            Order("postgres", postgres, shelf.open("postgres", what), PostgresTarget(database=database)),
        ]
        assert {order.reader.origin for order in orders} == {what if what == sealed.id else str(copy)}
        done = restore(where, orders, lambda _: None, context())
        assert done.outcome in {"success", "warning"}
        assert fingerprint(target) == before
        assert (checkout / "infra" / "x").read_text() == "x"
        with shared_server.connect(database) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (777,)
        with shared_server.connect(f"{database}_other") as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,), "one database of two"
        shared_server.psql(f"DROP DATABASE {next(n for n in kept(shared_server, database))}")
        shutil.rmtree(target)
    if gpg is not None:
        blind = Repository.create(tmp_path / "blind", stack="small", encryption="off", clock=SystemClock(), zone=UTC)
        with pytest.raises(WrongKey, match="anything"):
            open_backup(blind, "data", str(copy), trusted=True)
        gpg.end()


def kept(server, database):
    with server.connect() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{database}_before%"])
        return [name for (name,) in rows]


def test_no_volume_may_be_named_like_it():
    with pytest.raises(ValueError, match="cannot be named archive"):
        Settings(volumes={"archive": {"path": "/x"}})


class TestReading:
    def test_any_stretch_of_any_file(self, repository):
        full = repository.catalog().find("latest")
        opened = Enclosed.open(path_of(repository, archive(repository)))
        for file in full.files():
            content = (repository.root / file.path).read_bytes()
            stored = opened.file(file.path)
            assert b"".join(stored.chunks()) == content
            for offset in {0, 1, len(content) // 2, len(content) - 1, len(content)}:
                for length in {0, 1, 5, len(content) - offset}:
                    if offset + length <= len(content):
                        assert b"".join(stored.chunks(offset, length)) == content[offset : offset + length]
                assert b"".join(stored.chunks(offset)) == content[offset:]
            for offset, length in ((-1, 1), (0, len(content) + 1), (len(content), 1)):
                with pytest.raises(Damaged, match=file.path):
                    b"".join(stored.chunks(offset, length))

    def test_only_what_is_needed_is_inflated(self, repository, monkeypatch):
        opened = Enclosed.open(path_of(repository, archive(repository)))
        read = []

        def counting(path, offset=0, length=None):
            read.append(length)
            return file_chunks(path, offset, length)

        from aquad.repository.plain import file_chunks

        monkeypatch.setattr(enclosed, "file_chunks", counting)
        large = next(f.path for f in opened.backup.files() if f.stored_bytes > 3 << 20)
        for place in range(2 << 20, (2 << 20) + 2000, 10):
            assert len(b"".join(opened.file(large).chunks(place, 10))) == 10
        assert len(read) <= 2
        assert sum(read) < 6 << 20

    def test_one_pass_serves_every_component(self, repository, monkeypatch):
        sealed = archive(repository)
        passes = []
        real = Enclosed.open
        monkeypatch.setattr(Enclosed, "open", lambda path, advance: passes.append(path) or real(path, advance))
        shelf = Shelf(repository, trusted=False)
        for name in shelf.components(sealed.id):
            shelf.open(name, sealed.id)
        shelf.open("data", str(repository.root / NAME))
        assert passes == [repository.root / NAME]
        again = Shelf(repository, trusted=False)
        for what in (sealed.id, str(repository.root / NAME)):
            again.open("data", again.open("data", what).origin)  # as `restore resume` does

    def test_what_is_not_in_it(self, repository):
        sealed = archive(repository)
        with pytest.raises(NoSuchBackup, match=rf"nothing of {sealed.id}, an archive of \w+_full: .* words, sql"):
            open_backup(repository, "nothing", sealed.id, trusted=False)

    def test_a_lone_artifact_is_no_archive(self, repository):
        full = repository.catalog().find("latest")
        with pytest.raises(InvalidUse, match="no weekly archive"):
            Shelf(repository, trusted=True).components(str(repository.root / full.components[2].artifacts[0].path))

    def test_a_foreign_one_needs_somebody_who_vouches(self, small, tmp_path, monkeypatch):
        repository, path = small
        other = make_repository(tmp_path / "other")
        with monkeypatch.context() as patched:
            patched.setattr(Enclosed, "open", None)  # that no archive of ours is so long, its size says
            with pytest.raises(InvalidUse, match="--trusted"):
                open_backup(other, "words", str(path), trusted=False)
        before = contents_of(open_backup(repository, "words", str(path), trusted=False))
        assert contents_of(open_backup(other, "words", str(path), trusted=True)) == before

    def test_a_copy_of_ours_with_another_byte_is_not_ours(self, small, tmp_path):
        repository, path = small
        stored = bytearray(path.read_bytes())
        stored[4] ^= 1  # the time in the first gzip header, which nothing inside vouches for
        copy = tmp_path / "copy.tar.gz"
        copy.write_bytes(stored)
        with pytest.raises(InvalidUse, match="--trusted"):
            open_backup(repository, "words", str(copy), trusted=False)
        open_backup(repository, "words", str(copy), trusted=True)
        path.write_bytes(stored)
        for what in (str(path), repository.catalog().find("latest").id):
            with pytest.raises(Damaged, match=rf"{NAME}: SHA-256"):
                open_backup(repository, "words", what, trusted=True)


class TestDamage:
    def test_any_flipped_byte_is_found_before_anything_is_handed_out_or_changes_nothing(self, small, tmp_path):
        repository, path = small
        stored, other = path.read_bytes(), make_repository(tmp_path / "other")
        step = max(1, len(stored) // 400)
        names = ("words", "sql")
        good = [contents_of(open_backup(other, name, str(path), trusted=True)) for name in names]
        copy, found = tmp_path / path.name, 0
        for position in range(0, len(stored), step):
            copy.write_bytes(stored[:position] + bytes([stored[position] ^ 1 << position % 8]) + stored[position + 1 :])
            try:
                shelf = Shelf(other, trusted=True)
                readers = [shelf.open(name, str(copy)) for name in names]
            except Damaged as error:
                assert str(copy) in str(error)
                found += 1
            else:  # of a gzip header, time and system mean nothing
                assert [contents_of(reader) for reader in readers] == good, position
            path.write_bytes(copy.read_bytes())
            with pytest.raises(Damaged):
                open_backup(repository, "words", str(path), trusted=False)
            path.write_bytes(stored)
        assert found > 0.9 * len(range(0, len(stored), step))

    def test_cut_off_at_every_member_and_in_every_one(self, repository, tmp_path):
        stored = path_of(repository, archive(repository)).read_bytes()
        copy = tmp_path / "weekly_backup_2024_week_31.tar.gz"
        other = make_repository(tmp_path / "other")
        offsets = cut_members(stored)
        for end in [*offsets[:-1], *(offset + 12 for offset in offsets[:-1]), *(offset - 3 for offset in offsets[1:])]:
            copy.write_bytes(stored[:end])
            with pytest.raises(Damaged, match="weekly_backup"):
                open_backup(other, "words", str(copy), trusted=True)

    @pytest.mark.parametrize(
        "tail", [b"\0", b"x", bytes(512), gzip.compress(b"x"), gzip.compress(b"x" * 512)], ids=range(5)
    )
    def test_something_behind_its_end(self, small, tmp_path, tail):
        _, path = small
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes() + tail)
        with pytest.raises(Damaged, match="weekly_backup"):
            open_backup(make_repository(tmp_path / "other"), "words", str(copy), trusted=True)

    def test_rot_between_the_pass_and_the_restore(self, small):
        repository, path = small
        reader = open_backup(repository, "sql", str(path), trusted=False)
        stored = bytearray(path.read_bytes())
        offsets = cut_members(stored)
        stored[offsets[-2] - 30] ^= 1
        path.write_bytes(stored)
        with pytest.raises(Damaged, match="inflate"):
            contents_of(reader)


class TestHostile:
    @pytest.fixture
    def made(self, small, tmp_path):
        """Make an archive of `entries` (bytes of a tar), beginning with the good manifest unless told otherwise."""
        _, path = small
        with tarfile.open(path) as tar:
            files = [(info.name, tar.extractfile(info).read()) for info in tar]

        def make(*more, begins=None, skip=(), end=plaintar.END):
            kept_ = [plain_file(name, content) for name, content in files if name not in skip]
            plain = (b"".join(kept_) if begins is None else begins) + b"".join(more) + end
            out = tmp_path / path.name
            out.write_bytes(b"".join(gzip.compress(plain[i : i + 1000]) for i in range(0, len(plain), 1000)))
            return str(out)

        make.files = files
        return make

    @pytest.fixture
    def refuses(self, tmp_path):
        other = make_repository(tmp_path / "other")

        def check(path, match):
            code, said = bounded(lambda: open_backup(other, "words", path, trusted=True).origin)
            assert code == "Damaged", said
            assert match in said
            assert path in said

        return check

    def test_the_forge_makes_good_ones_too(self, made, tmp_path):
        other = make_repository(tmp_path / "other")
        plain = contents_of(open_backup(other, "words", made(), trusted=True))
        assert contents_of(open_backup(other, "words", made(end=bytes(10_240)), trusted=True)) == plain
        foreign = made(plain_file("foreign", b"x" * 5000), plain_file("manifests/20240101_000000_full.json", b"{}"))
        assert contents_of(open_backup(other, "words", foreign, trusted=True)) == plain

    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            (lambda: plain_file("../x", b"x"), "leaves the directory"),
            (lambda: plain_file("/etc/x", b"x"), "leaves the directory"),
            (lambda: plain_file("a/../../x", b"x"), "leaves the directory"),
            (lambda: other_type("x", tarfile.SYMTYPE, "/etc/passwd"), "only files"),
            (lambda: other_type("x", tarfile.LNKTYPE, "y"), "only files"),
            (lambda: other_type("x", tarfile.DIRTYPE), "only files"),
            (lambda: other_type("x", tarfile.FIFOTYPE), "only files"),
            (lambda: other_type("x", tarfile.CHRTYPE), "only files"),
            (lambda: other_type("x", tarfile.GNUTYPE_SPARSE), "only files"),
            (lambda: other_type("x", tarfile.GNUTYPE_LONGNAME), "only files"),
            (lambda: other_type("x", tarfile.XGLTYPE), "only files"),
            (lambda: pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + plain_file("x", b"x"), "sparse"),
            (lambda: pax({"size": "-5"}) + plain_file("x", b"x"), "a size of"),
            (lambda: pax({"size": "1e9"}) + plain_file("x", b"x"), "a size of"),
            (lambda: pax({"size": "9" * 200}) + plain_file("x", b"x"), "a size of"),
            (lambda: pax({"size": str(10**17)}) + plain_file("x", b"x"), "no manifest names it"),
            (lambda: pax({"path": "../../x"}) + plain_file("x", b"x"), "leaves the directory"),
            (lambda: pax({"a": "b"}) + pax({"a": "b"}) + plain_file("x", b"x"), "only files"),
            (lambda: pax({"comment": "x" * 70_000}) + plain_file("x", b"x"), "a header of"),
            (lambda: raw_pax(b"9999 a=b\n") + plain_file("x", b"x"), "no record at 0"),
            (lambda: raw_pax(b"4 a=b\n") + plain_file("x", b"x"), "no record at"),
            (lambda: raw_pax(b"0 a=b\n") + plain_file("x", b"x"), "no record at 0"),
            (lambda: raw_pax(b"\xff" * 300) + plain_file("x", b"x"), "no record at 0"),
            (lambda: raw_pax(b"8 a=\xff\xfe\xfd\n") + plain_file("x", b"x"), "PAX header"),
            (lambda: pax({"a": "b"}), "a header at"),
            (lambda: b"x" * 512, "a header at"),
            (lambda: bytes(512) + plain_file("x", b"x"), "something follows its end"),
        ],
    )
    def test_tricks_of_tar(self, made, refuses, entry, said):
        refuses(made(entry()), said)

    def test_what_is_there_twice(self, made, refuses):
        for number in (0, 1, -1):
            refuses(made(plain_file(*made.files[number])), "it is there twice")

    def test_what_is_missing_or_another(self, made, refuses):
        for name, content in made.files[1:]:
            refuses(made(skip={name}), f"{name}: it is not in it")
            refuses(made(plain_file(name, content[:-1] + b"?"), skip={name}), f"{name}: SHA-256")
            refuses(made(plain_file(name, content[:-1]), skip={name}), f"{name}: {len(content) - 1} bytes")

    def test_manifests_that_are_none(self, made, refuses):
        name, content = made.files[0]
        refuses(made(begins=b"", end=b""), "it ends in the middle")
        refuses(made(begins=b""), "it is empty")
        refuses(made(begins=plain_file("x", content)), "not with a manifest")
        refuses(made(begins=plain_file("manifests/20240101_000000_full.json", content)), "it is that of")
        refuses(made(begins=plain_file(name, content[:-1])), "its bytes are not what was sealed")
        refuses(made(begins=plain_file(name, content + b"\n")), "its bytes are not what was sealed")
        refuses(made(begins=header_only(name, 1 << 40)), "bytes are too many")

    def test_a_manifest_that_names_a_file_twice(self, made, refuses):
        name, content = made.files[0]
        backup = manifest.parse(content, name)
        component = backup.components[0]
        for path in (component.artifacts[1].path, name):
            twin = component.artifacts[0].model_copy(update={"path": path})
            forged = component.model_copy(update={"artifacts": [*component.artifacts, twin]})
            text = manifest.render(backup.model_copy(update={"components": [forged]}))
            refuses(made(begins=plain_file(name, text)), "names it twice")

    def test_bombs(self, made, refuses, small, tmp_path):
        _, path = small
        out = tmp_path / path.name
        mib = 1 << 20
        whole = made()
        begin = b"".join(plain_file(*file) for file in made.files)
        out.write_bytes(gzip.compress(begin + header_only("x", 60 * mib) + bytes(8 * mib)))
        refuses(str(out), "one of its gzip members holds more than")
        zeros = gzip.compress(bytes(2 * mib))
        out.write_bytes(gzip.compress(begin + header_only("x", 60 * mib)) + zeros * 100)
        refuses(str(out), "something follows its end")
        out.write_bytes(gzip.compress(begin + header_only("x", 1 << 40)) + zeros * 100)
        refuses(str(out), "no manifest names it")
        many = b"".join(plain_file(f"f{number}", b"") for number in range(2000))
        out.write_bytes(gzip.compress(begin) + gzip.compress(many) * 200)
        refuses(str(out), "no manifest names it")
        out.write_bytes(gzip.compress(b"")[:] * 200_000 + b"")
        refuses(str(out), "it ends in the middle")
        assert whole == str(out)

    def test_a_million_empty_members_are_no_burden(self, small, tmp_path):
        _, path = small
        stored = path.read_bytes()
        offset = cut_members(stored)[1]
        out = tmp_path / path.name
        out.write_bytes(stored[:offset] + gzip.compress(b"") * 1_000_000 + stored[offset:])
        other = make_repository(tmp_path / "other")
        code, said = bounded(lambda: len(contents_of(open_backup(other, "words", str(out), trusted=True))))
        assert (code, said) == ("", 2)
        assert len(Enclosed.open(out)._stretches._plain) < 10


def header_only(name, size):
    return plaintar.header(name, size, 0)


def plain_file(name, content):
    return header_only(name, len(content)) + content + plaintar.padding(len(content))


def other_type(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.USTAR_FORMAT)


def raw_pax(raw):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(raw)
    return info.tobuf(tarfile.USTAR_FORMAT) + raw + plaintar.padding(len(raw))


def pax(records):
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        lines += str(length).encode() + rest
    return raw_pax(lines)


def test_memory_is_bounded(tmp_path):
    """Made and restored: 300 MB, and no more than 64 MB of memory."""
    clock = FakeClock(SUNDAY)
    repository = make_repository(tmp_path / "backups", clock)
    tree = tmp_path / "tree"
    tree.mkdir()
    block = os.urandom(1 << 20)
    with open(tree / "large", "wb") as out:
        out.writelines(number.to_bytes(8, "big") + block[8:] for number in range(300))
    back_up(repository, volume(tree), clock=clock)
    (target := tmp_path / "target").mkdir()
    sizes = []
    for act in ("make", "restore"):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            answer = "died"
            with contextlib.suppress(BaseException):
                before = peak_bytes(reset=True)
                if act == "make":
                    archive(open_repository(repository.root, clock))
                else:
                    where = open_repository(repository.root, clock)
                    reader = open_backup(where, "data", where.catalog().find("latest").id, trusted=False)
                    volume(target).restore(reader, VolumeTarget(target), context())
                answer = str(peak_bytes() - before)
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with open(read, "rb") as pipe:
            sizes.append(int(pipe.read()))
    assert (target / "large").stat().st_size == 300 << 20
    assert max(sizes) < 64 << 20, sizes


def peak_bytes(*, reset=False):
    """The most memory since the last reset (proc(5): VmHWM, clear_refs)."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
