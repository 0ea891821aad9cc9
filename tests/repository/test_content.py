"""Level content looks into what level bytes only compares: a backup whose own writer was wrong."""

from aquad.jobs.verify import verify
from aquad.repository import draft
from aquad.sources.volumes import Volume
from aquad.stream.artifact import Silent
from tests.small import Words, back_up, make_repository


def verdicts(repository):
    backups = repository.catalog().backups
    return [verify(repository, backups, level, Silent())[0].problems for level in ("bytes", "content")]


def test_a_member_whose_index_line_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "a").write_bytes(b"content")
    record = draft.RawArtifact.record

    def wrong(artifact, member):
        record(artifact, {**member, "sha256": "0" * 64} if member["type"] == "file" else member)

    monkeypatch.setattr(draft.RawArtifact, "record", wrong)
    repository = make_repository(tmp_path / "backups")
    back_up(repository, Volume(name="v", path=tmp_path / "volume", quiesce="none", may_shrink=False, accepted=False))
    bytes_, content = verdicts(repository)
    assert bytes_ == []
    assert "member ./a: SHA-256" in content[0]


def test_a_part_whose_place_is_wrong(tmp_path, monkeypatch):
    real = draft.PartRecord
    monkeypatch.setattr(
        draft,
        "PartRecord",
        lambda **fields: real(**{**fields, "plain_bytes": fields["plain_bytes"] + (fields["name"] == "first")}),
    )
    repository = make_repository(tmp_path / "backups")
    back_up(repository, Words(archive=False))
    bytes_, content = verdicts(repository)
    assert bytes_ == []
    assert "part first: plain bytes" in content[0]
