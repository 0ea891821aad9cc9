"""The rules of Prometheus, by its own promtool; and docs/runbook.md, which has to know each of them."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aquad.cli import root
from aquad.jobs.slots import ORDER
from aquad.observe.metrics import Counters, Gauges
from aquad.observe.overview import LevelView
from aquad.observe.rules import RULES
from tests.observe.test_metrics import HOUR, NOW, overview, state, view
from tests.servers.prometheus import promtool

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXPORTS = ROOT / "aquad" / "exports"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
FROM_PROMETHEUS = {"job", "instance"}


def groups(path):
    return yaml.safe_load(path.read_text())["groups"]


def alerts(name):
    return [rule for group in groups(EXPORTS / f"aquad-{name}.yml") for rule in group["rules"]]


OUTSIDE, ALL = alerts("outside"), alerts("all")


def cases(name):
    return yaml.safe_load((HERE / f"{name}.test.yml").read_text())["tests"]


def chapters():
    """Text by anchor, as GitHub makes anchors of headings."""
    parts = re.split(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")): text
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def exposed():
    """Labels of all samples that aquad can show, by name."""
    levels = (LevelView(level="bytes", good=True, good_at=NOW),)
    views = [view("postgres", 1, unusual_score=2.0, restore_milliseconds=10)]
    seen = overview(*views, levels=levels, disk_full_at=NOW + HOUR)
    registry = CollectorRegistry()
    Counters(registry, ORDER, ["slack"])
    of = state(seen, coming=[("full", NOW)], running="full", done_ratio=0.5)
    registry.register(Gauges(lambda: of, lambda: NOW, "1"))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


EXPOSED = exposed()


class TestPromtool:
    @pytest.mark.parametrize("name", ["outside", "all"])
    def test_takes_them(self, name):
        done = promtool("check", "rules", EXPORTS / f"aquad-{name}.yml")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"SUCCESS: {len(alerts(name))} rules found" in done.stdout

    @pytest.mark.parametrize("name", ["outside", "all", "stack"])
    def test_they_fire_and_do_not_fire(self, name):
        done = promtool("test", "rules", HERE / f"{name}.test.yml")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_what_is_outside_fires_in_all_too(self, tmp_path):
        text = (HERE / "outside.test.yml").read_text()
        path = tmp_path / "outside.test.yml"
        path.write_text(text.replace("../../aquad/exports/aquad-outside.yml", str(EXPORTS / "aquad-all.yml")))
        assert str(EXPORTS) in path.read_text()
        done = promtool("test", "rules", path)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_each_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(self):
        looks = [look for name in ("outside", "all") for case in cases(name) for look in case["alert_rule_test"]]
        names = {rule["alert"] for rule in ALL}
        assert {look["alertname"] for look in looks if look["exp_alerts"]} == names
        assert {look["alertname"] for look in looks if not look["exp_alerts"]} == names


class TestRules:
    def test_all_has_what_is_outside_word_for_word_and_no_name_twice(self):
        assert ALL[: len(OUTSIDE)] == OUTSIDE
        names = [rule["alert"] for rule in ALL]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"Aquad([A-Z][a-z]+)+", name) for name in names)

    @pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule["alert"])
    def test_each_says_how_bad_it_is_and_what_to_do(self, rule):
        assert rule["labels"].keys() == {"severity", "category"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["labels"]["category"] == "backup"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert re.search(r"restored|lost|[Bb]ackups", rule["annotations"]["summary"])
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "docs/runbook.md"
        assert rule["alert"] in chapters()[anchor]

    @pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule["alert"])
    def test_each_reads_what_aquad_shows(self, rule):
        names = set(re.findall(r"\b(?:aquad|backup)_\w+", rule["expr"]))
        assert names or "up{" in rule["expr"]
        assert names <= EXPOSED.keys()
        for name, matchers in re.findall(r"(\w+)\{(.*?)\}", rule["expr"]):
            for label, relation, value in re.findall(r"(\w+)(=~|!=|=)\"(.*?)\"", matchers):
                if name != "up" and relation != "!=":
                    values = {sample[label] for sample in EXPOSED[name]}
                    assert set(value.split("|")) <= values, (name, label)
        shown = {label for name in names for sample in EXPOSED[name] for label in sample}
        said = re.findall(r"(?:by|on|ignoring) \((.*?)\)", rule["expr"])
        assert {label for one in said for label in one.split(", ")} <= shown | FROM_PROMETHEUS
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= shown | FROM_PROMETHEUS

    @pytest.mark.parametrize("name", ["outside", "all", "stack"])
    def test_the_cases_are_made_of_what_aquad_shows(self, name):
        for case in cases(name):
            for one in case["input_series"]:
                metric, _, labels = one["series"].partition("{")
                given = set(re.findall(r"(\w+)=\"", labels))
                assert given >= FROM_PROMETHEUS, one
                shown = EXPOSED[metric] if metric != "up" else [{}]
                assert given - FROM_PROMETHEUS == shown[0].keys(), one


class TestRunbook:
    def test_it_has_a_chapter_for_each_rule_of_aquad(self):
        assert chapters().keys() >= RULES.keys()

    def test_each_chapter_says_what_can_be_restored_what_to_do_and_when_it_is_over(self):
        first, *others = chapters().values()
        assert "aquad restore plan all latest" in first
        for text in others:
            said = [text.find(f"**{word}") for word in ("Means", "For recovery", "Look", "Do", "Over")]
            assert -1 not in said, text
            assert said == sorted(said), text

    def test_its_links_lead_somewhere(self):
        assert set(re.findall(r"\]\(#(.+?)\)", RUNBOOK)) <= chapters().keys()

    def test_every_command_that_is_named_exists(self):
        texts = [RUNBOOK, *(text for rule in ALL for text in rule["annotations"].values())]
        texts += [rule.to_do for rule in RULES.values()]
        named = {
            re.sub(r"\{\{.*?\}\}", "full", line.partition("  #")[0])
            for text in texts
            for line in [
                *re.findall(r"`aquad (.+?)`", text.replace("\n", " ")),
                *re.findall(r"^    aquad (.+)$", text, re.MULTILINE),
            ]
        }
        assert len(named) > 40
        for line in sorted(named):
            understood(line)


def understood(line):
    """Raises UsageError where click does not know it. Arguments may be left out: `aquad accept` is named for short."""
    words = [word for word in shlex.split(line) if word != "-v"]
    command = root
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, line
        command, words = found, words[1:]
    if not isinstance(command, click.Group):
        try:
            command.make_context(command.name, words)
        except click.MissingParameter:
            pass
