"""B8, B9: 500 random changes over every kind of file of a backup, each found by `verify --level bytes`, and named."""

import os
import random
import shutil

from aquad.demo import playground
from aquad.jobs.verify import verify
from aquad.sources.configs.source import Configs
from aquad.sources.volumes import Volume
from aquad.stream.artifact import Silent
from tests.small import Words, back_up, make_repository

CHANGES = 500


def test_B8_B9_every_change_of_a_stored_byte_is_found(tmp_path):
    playground.make_checkout(tmp_path / "checkout")
    playground.make_volumes(tmp_path / "volumes")
    (tmp_path / "volumes" / "kafka_data" / "topic-0" / "00000000000000000000.log").write_bytes(os.urandom(50_000))
    sources = [
        Words(archive=False),
        Configs(
            root=tmp_path / "checkout",
            paths=["infra/docker/compose/.env", "infra/monitoring", "run.sh"],
            optional_paths=[],
        ),
        *(
            Volume(name=n, path=tmp_path / "volumes" / n, quiesce="none", may_shrink=False, accepted=False)
            for n in playground.VOLUMES
        ),
    ]
    repository = make_repository(tmp_path / "backups")
    back_up(repository, *sources)
    back_up(repository, *sources)
    catalog = repository.catalog()
    victim = catalog.backups[0]
    files = victim.files()
    assert {os.path.splitext(f.path)[1] for f in files} == {".gz"}
    rng = random.Random(8)
    missed = []
    for number in range(CHANGES):
        file = files[number % len(files)]
        path = repository.root / file.path
        good = path.read_bytes()
        what = rng.choice(["flip", "truncate", "append", "zero", "swap"])
        position = rng.randrange(len(good))
        match what:
            case "flip":
                path.write_bytes(
                    good[:position] + bytes([good[position] ^ 1 << rng.randrange(8)]) + good[position + 1 :]
                )
            case "truncate":
                path.write_bytes(good[:position])
            case "append":
                path.write_bytes(good + b"\0")
            case "zero":
                path.write_bytes(good[:position] + bytes(len(good) - position)) if good[position:].strip(
                    b"\0"
                ) else path.write_bytes(good + b"x")
            case "swap":
                other = next(f for f in files if f.path != file.path and f.stored_sha256 != file.stored_sha256)
                shutil.copy(repository.root / other.path, path)
        (verdict,) = verify(repository, [victim], "bytes", Silent())
        if not any(file.path in problem for problem in verdict.problems):
            missed.append((what, file.path))
        path.write_bytes(good)
    assert missed == []
    (good, other) = verify(repository, catalog.backups, "content", Silent())
    assert good.problems == other.problems == []


def test_content_is_verified_against_the_index(tmp_path):
    """An index that says something else than the archive is damage of the content, even where all digests are right."""
    from aquad.jobs import verify as module

    source = tmp_path / "volume"
    source.mkdir()
    (source / "a").write_bytes(b"x" * 1000)
    repository = make_repository(tmp_path / "backups")
    back_up(repository, Volume(name="v", path=source, quiesce="none", may_shrink=False, accepted=False))
    backup = repository.catalog().find("latest")
    from aquad.repository.reader import BackupReader, Directory

    reader = BackupReader(Directory(repository.root), backup, backup.components[0], repository.gpg)
    artifact = reader.artifacts[0]
    members = list(reader.members(artifact.path))
    for key, lie in (
        ("sha256", "0" * 64),
        ("stored_xxh3", "0" * 32),
        ("header_bytes", 511),
        ("length", 1),
        ("size", 999),
    ):
        lied = [m | {key: lie} if m["type"] == "file" else m for m in members]
        try:
            module._check_members(artifact, lied, reader, Silent())
        except module.Damaged:
            continue
        raise AssertionError(f"a wrong {key} was not noticed")
