"""`aquad export`: files for other programs, which come with aquad as they are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from aquad.cli import Invocation
from aquad.cli.output import print_json, say
from aquad.core.errors import InvalidUse

RULES = ("aquad-outside.yml", "aquad-all.yml")
SCRAPE = ("aquad-scrape.yml",)
MODE = 0o644
"""Prometheus reads them as another user; there is no secret in them."""

AFTER_RULES = """\
next:
  1. name ONE of them in prometheus.yml: aquad-outside.yml when aquad alerts by its own channels, else aquad-all.yml
         rule_files: [alert-rules.yml, aquad-outside.yml]
  2. promtool check config prometheus.yml; then have Prometheus read it:
         docker compose kill -s HUP prometheus
     or, where it runs with --web.enable-lifecycle: curl -X POST http://localhost:9090/-/reload
  3. route the label category="backup" in Alertmanager, if nothing does yet; docs/runbook.md says what to do about each"""

AFTER_PROMETHEUS = """\
next:
  1. put these two lines into prometheus.yml, beside these files and those of `aquad export rules`:
         scrape_config_files: [aquad-scrape.yml]
         rule_files: [alert-rules.yml, aquad-outside.yml]
     before Prometheus 2.43: what is in aquad-scrape.yml under scrape_configs
  2. have the service `aquad` join Prometheus' network: monitoring-network in AquaStream
  3. in alert-rules.yml: time() - backup_last_success_timestamp > 90000, for 86400 pages on nights when all is well
  4. promtool check config prometheus.yml; then have Prometheus read it:
         docker compose kill -s HUP prometheus
     or, where it runs with --web.enable-lifecycle: curl -X POST http://localhost:9090/-/reload"""

directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
force = click.option("--force", is_flag=True, help="Overwrite files that somebody has changed.")


@click.group()
def group() -> None:
    """Write what Prometheus needs. DIR is made if it is not there."""


@group.command()
@directory
@force
@click.pass_obj
def rules(invocation: Invocation, directory: Path, force: bool) -> None:
    """Alerting rules: aquad-outside.yml, what aquad cannot say itself; aquad-all.yml, everything, where aquad has no channel.

    \b
    Example:
      aquad export rules infra/monitoring/prometheus
    """
    _export(invocation, directory, RULES, AFTER_RULES, force=force)


@group.command()
@directory
@force
@click.pass_obj
def prometheus(invocation: Invocation, directory: Path, force: bool) -> None:
    """The scrape job, and what to add to prometheus.yml.

    \b
    Example:
      aquad export prometheus infra/monitoring/prometheus
    """
    _export(invocation, directory, SCRAPE, AFTER_PROMETHEUS, force=force)


def _export(invocation: Invocation, directory: Path, names: tuple[str, ...], after: str, *, force: bool) -> None:
    """All of them, or none when one would be overwritten."""
    ours = {directory / name: (files("aquad.exports") / name).read_bytes() for name in names}
    theirs = {path: path.read_bytes() if path.exists() else None for path in ours}
    changed = [path for path, content in theirs.items() if content not in {None, ours[path]}]
    if changed and not force:
        raise InvalidUse(
            f"export {', '.join(map(str, changed))}: somebody has changed what is there",
            "Look at the difference; --force overwrites it.",
        )
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in ours.items():
        if theirs[path] != content:
            path.write_bytes(content)
            path.chmod(MODE)
    if invocation.json:
        print_json(files=[{"path": path, "written": theirs[path] != content} for path, content in ours.items()])
        return
    for path, content in ours.items():
        say(invocation, f"{'as it was' if theirs[path] == content else 'written'}  {path}")
    say(invocation, after)
