"""`aquad export`: what comes with aquad is written as it is, and nothing that somebody has changed is overwritten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aquad
from tests.servers.prometheus import promtool

EXPORTS = Path(aquad.__file__).parent / "exports"
NAMES = {"rules": {"aquad-outside.yml", "aquad-all.yml"}, "prometheus": {"aquad-scrape.yml"}}


def export(*arguments, before=()):
    command = [sys.executable, "-m", "aquad", *before, "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.umask(0o077))


@pytest.mark.parametrize("what", NAMES)
def test_every_byte_is_written_and_prometheus_may_read_it(what, tmp_path):
    target = tmp_path / "made" / "for it"
    done = export(what, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in target.iterdir()} == NAMES[what]
    for path in target.iterdir():
        assert path.read_bytes() == (EXPORTS / path.name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        assert f"written  {path}" in done.stdout
    for said in ("rule_files: [alert-rules.yml, aquad-outside.yml]", "kill -s HUP prometheus", "/-/reload"):
        assert said in done.stdout
    assert ("monitoring-network" in done.stdout) == (what == "prometheus")


def test_what_somebody_changed_stays_unless_forced(tmp_path):
    export("rules", tmp_path)
    theirs = tmp_path / "aquad-outside.yml"
    theirs.write_text("groups: []\n")
    (tmp_path / "aquad-all.yml").unlink()
    done = export("rules", tmp_path)
    assert done.returncode == 2
    assert str(theirs) in done.stderr
    assert "--force" in done.stderr
    assert theirs.read_text() == "groups: []\n"
    assert not (tmp_path / "aquad-all.yml").exists()
    assert export("rules", "--force", tmp_path).returncode == 0
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {(EXPORTS / n).read_bytes() for n in NAMES["rules"]}


def test_again_it_changes_nothing_and_says_so(tmp_path):
    export("prometheus", tmp_path)
    path = tmp_path / "aquad-scrape.yml"
    before = path.stat().st_mtime_ns
    assert f"as it was  {path}" in export("prometheus", tmp_path).stdout
    assert path.stat().st_mtime_ns == before
    said = json.loads(export("prometheus", tmp_path, before=["--json"]).stdout)
    assert said == {"schema_version": 1, "files": [{"path": str(path), "written": False}]}
    assert export("prometheus", tmp_path, before=["-q"]).stdout == ""


def test_a_file_where_the_directory_should_be_is_an_error_of_use(tmp_path):
    (tmp_path / "file").write_text("")
    done = export("rules", tmp_path / "file")
    assert done.returncode == 2
    assert "is a file" in done.stderr


def test_prometheus_takes_the_scrape_job_and_the_rules(tmp_path):
    export("prometheus", tmp_path)
    export("rules", tmp_path)
    config = tmp_path / "prometheus.yml"
    own = "global: {scrape_interval: 15s}\nrule_files: [aquad-outside.yml]\n"
    config.write_text(own + (tmp_path / "aquad-scrape.yml").read_text())
    done = promtool("check", "config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout
    assert "9 rules found" in done.stdout
