"""The jobs of the schedule: which steps each consists of. Each backup is judged, retention follows it, and a report ends it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from aquad.core.errors import AquadError
from aquad.jobs import judge, prune
from aquad.jobs.full import take_full
from aquad.jobs.nightly import verify_some
from aquad.jobs.run import Work
from aquad.jobs.weekly import archive
from aquad.observe.reports import RunReport, Taken, backup_report
from aquad.repository.history import History
from aquad.repository.report import write_report
from aquad.repository.retention import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, tzinfo

    from aquad.jobs.full import Space
    from aquad.repository.catalog import Catalog
    from aquad.repository.manifest import FileRecord, Manifest
    from aquad.repository.repository import Repository
    from aquad.stream.artifact import RunContext, Source

INCREMENTALS: tuple[Kind, ...] = ("incremental",)
FULLS: tuple[Kind, ...] = ("full",)
WEEKLIES: tuple[Kind, ...] = ("weekly",)
STAYING_LINES = 10
"""A report names so many of the backups that stay; what goes is named whole."""


@dataclass
class Story:
    """What a run's report tells beyond its outcome."""

    job: str
    started_at: datetime
    backup: Manifest | None = None
    verified: str = ""
    strange: list[str] = field(default_factory=list)
    retention: list[str] = field(default_factory=list)


class Jobs(NamedTuple):
    """`sources`: all, or those of these names. `coming`: the next runs after a moment."""

    repository: Repository
    sources: Callable[[Sequence[str]], Sequence[Source[Any]]]
    space: Space
    rules: prune.Rules
    coming: Callable[[datetime], Sequence[tuple[str, datetime]]]
    zone: tzinfo
    by: str

    def of(self, job: str, components: Sequence[str] = ()) -> Callable[[RunContext], Work]:
        """`components`: only these, in a full backup."""
        if job == "verify":
            return lambda run: verify_some(self.repository, run)
        steps: dict[str, Callable[[RunContext, Story], Work]] = {
            "full": lambda run, story: self._full(run, story, components),
            "postgres": self._postgres,
            "weekly": self._weekly,
            "cleanup": self._cleanup,
        }
        return lambda run: self._reported(run, Story(job, run.clock.now()), steps[job])

    def _full(self, run: RunContext, story: Story, components: Sequence[str]) -> Work:
        taken = take_full(self.repository, self.sources(components), run, space=self.space)
        return self._after(taken, run, story, INCREMENTALS)

    def _postgres(self, run: RunContext, story: Story) -> Work:
        taken = take_full(self.repository, self.sources(["postgres"]), run, space=self.space, kind="incremental")
        return self._after(taken, run, story, ())

    def _weekly(self, run: RunContext, story: Story) -> Work:
        """An old archive goes when the new one is sealed and verified."""
        taken = self._after(
            take_full(self.repository, self.sources(()), run, space=self.space), run, story, INCREMENTALS
        )
        if taken.outcome == "failed" or story.backup is None:
            return taken._replace(reason=f"no archive is made of a backup that is not whole: {taken.reason}")
        try:
            sealed = archive(self.repository, story.backup, run, reserve_bytes=self.space.reserve(self.repository.root))
        except AquadError as error:  # the full backup is sealed and good, and is not forgotten
            return taken._replace(
                outcome="failed", reason=f"archive: {error}", failure_code=error.exit_code, retryable=error.retryable
            )
        story.verified += f"; so was {sealed.id}, the archive {sealed.components[0].artifacts[0].path}"
        done = taken._replace(details={**taken.details, "archive": sealed.id})
        return self._retention(done, run, story, WEEKLIES)

    def _cleanup(self, run: RunContext, story: Story) -> Work:
        pruning = prune.decide(self.repository, self.rules, kinds=FULLS, now=run.clock.now(), logs=True)
        story.retention += prune.sentences(pruning, FULLS, STAYING_LINES)
        prune.carry_out(self.repository, pruning, self.rules, FULLS)
        if pruning.clock_ahead:
            why = "no good backup is young, as after a jump of the clock: nothing was deleted for good"
            return _warned(Work("success", "", prune.details(pruning)), why)
        prune.trim_journal(self.repository, self.rules, run.clock.now())
        return Work("success", "", prune.details(pruning))

    def _after(self, taken: Work, run: RunContext, story: Story, kinds: Collection[Kind]) -> Work:
        """What follows a sealed backup: it is judged, and retention of these kinds where it was a success."""
        if "backup" in taken.details:
            catalog, history = self._known()
            story.backup = catalog.find(taken.details["backup"])
            story.verified = "every stored byte was read back from the disk, and is what was written"
            story.strange = judge.judge(self.repository, catalog, history, story.backup)
        if taken.outcome == "failed" or not kinds:
            return taken
        return self._retention(taken, run, story, kinds)

    def _retention(self, work: Work, run: RunContext, story: Story, kinds: Collection[Kind]) -> Work:
        """A backup is no less good when nothing may be removed after it: that is a warning."""
        try:
            pruning = prune.decide(self.repository, self.rules, kinds=kinds, now=run.clock.now(), logs=False)
            story.retention += prune.sentences(pruning, kinds, STAYING_LINES)
            prune.carry_out(self.repository, pruning, self.rules, kinds)
        except AquadError as error:
            return _warned(work, f"retention: {error}")
        found = prune.details(pruning)
        lists = {key: [*work.details.get(key, []), *names] for key, names in found.items()}
        return work._replace(details={**work.details, **lists})

    def _reported(self, run: RunContext, story: Story, steps: Callable[[RunContext, Story], Work]) -> Work:
        try:
            work = steps(run, story)
        except AquadError as error:
            self._report(run, story, Work("failed", str(error)))
            raise
        return self._report(run, story, work)

    def _report(self, run: RunContext, story: Story, work: Work) -> Work:
        """Write it; that it cannot be written must not make a good backup a bad one, nor hide why a bad one is bad."""
        now = run.clock.now()
        try:
            disk = judge.disk(self.repository, judge.free_space(self.repository.journal.entries()), now)
            work = work._replace(details={**work.details, "free_bytes": disk.free_bytes})
            self._write_report(run, story, work, disk)
        except AquadError as error:
            return _warned(work, f"report: {error}")
        return work

    def _write_report(self, run: RunContext, story: Story, work: Work, disk: judge.Disk) -> None:
        now = run.clock.now()
        stamp = story.backup.id[:15] if story.backup else run.timestamp
        report = RunReport(
            job=story.job,
            run=run.run_id,
            by=self.by,
            slot=run.slot,
            started_at=story.started_at,
            finished_at=now,
            zone=self.zone,
            outcome=work.outcome,
            reason=work.reason,
            backup=story.backup.model_dump(mode="json") if story.backup else None,
            taken=self._taken(story.backup) if story.backup else [],
            verified=story.verified,
            strange=story.strange,
            retention=story.retention,
            disk=str(disk),
            coming=self.coming(now),
        )
        about = {"run": run.run_id, "backup": story.backup.id if story.backup else None}

        def record(file: FileRecord) -> None:
            self.repository.journal.append("report_written", **about, **file.model_dump())

        write_report(self.repository.layout, stamp, backup_report(report), record)

    def _taken(self, backup: Manifest) -> list[Taken]:
        catalog = self.repository.catalog()
        taken = []
        for component in backup.components:
            before = judge.former(catalog, backup, component.name)
            taken.append(
                Taken(
                    name=component.name,
                    outcome=component.outcome,
                    consistency=component.consistency,
                    stored_bytes=component.stored_bytes,
                    plain_bytes=component.plain_bytes,
                    seconds=component.milliseconds / 1000,
                    rows=judge.rows(component),
                    former_bytes=before.stored_bytes if before else None,
                    former_rows=before.rows if before else None,
                )
            )
        return taken

    def _known(self) -> tuple[Catalog[Manifest], History]:
        return self.repository.catalog(), History.of(self.repository.journal.entries())


def _warned(work: Work, text: str) -> Work:
    if work.outcome == "failed":
        return work._replace(reason=f"{work.reason}; {text}")
    return work._replace(outcome="warning", reason="; ".join(filter(None, (work.reason, text))))
