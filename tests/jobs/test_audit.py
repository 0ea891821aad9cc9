"""Verification of the journal against edits and manifests; its filters; and which of its lines stand."""

import ast
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aquad
from aquad.core.clock import from_text, to_text
from aquad.jobs.discard import kept_databases
from aquad.jobs.full import accepted
from aquad.jobs.keys import is_confirmed
from aquad.jobs.notify import Notices
from aquad.jobs.restore import EVERYTHING, unfinished
from aquad.jobs.slots import Ledger, Slot
from aquad.jobs.trail.audit import PROBLEMS, show_audit, verify_audit
from aquad.jobs.trail.standing import DECIDED, standing
from aquad.repository.catalog import Unreadable
from aquad.repository.history import History
from aquad.repository.manifest import EncryptionRecord
from aquad.repository.recovery import interrupted
from aquad.storage.journal import Position
from tests.faults.harness.counts import ALL
from tests.small import FakeClock, back_up, make_repository, open_repository

NEVER = datetime(2100, 1, 1, tzinfo=UTC)
HUGE = 1 << 60
BEFORE = 3
"""Bytes of a line that are not looked at one by one."""


def lived(root):
    """A repository with four backups, and a journal of several files; its head is removed, in which the first anchor lies."""
    clock = FakeClock()
    repository = make_repository(root, clock)
    for _ in range(4):
        clock.move(86400)
        back_up(repository, clock=clock)
        repository.journal.append("accepted", component="words")
        repository.journal.rotate()
        if not (root / "state" / "audit.anchor").exists():
            remove_all(repository)
    return repository


def remove_all(repository):
    ids = [backup.id for backup in repository.catalog().backups]
    return repository.journal.remove_before(NEVER, HUGE, lambda entries: standing(entries, ids))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit") / "backups"
    lived(root)
    return root


@pytest.fixture
def repository(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "backups")
    return open_repository(tmp_path / "backups")


def audit(repository, *kept):
    return verify_audit(repository.journal, repository.catalog(), kept)


def journal_files(repository):
    return sorted((repository.root / "state").glob("audit*.jsonl"))


def edits(lines, number):
    """Name, and the lines with line `number` changed."""
    before, line, after = lines[:number], lines[number], lines[number + 1 :]
    for position in range(0, len(line), BEFORE):
        changed = line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]
        yield f"byte {position} altered", [*before, changed, *after]
    yield "newline altered", [*before, line[:-1] + b" ", *after]
    yield "deleted", [*before, *after]
    yield "doubled", [*before, line, line, *after]
    yield "invented", [*before, line.replace(b'"line"', b'"other"'), line, *after]
    if after:
        yield "swapped with the next", [*before, after[0], line, *after[1:]]
    yield "truncated before", before
    yield "truncated within", [*before, line[: len(line) // 2]]


def test_N5_every_edit_of_every_line_up_to_the_newest_anchor_is_found(repository):
    whole = audit(repository)
    assert (whole.problems, whole.more, whole.newest.lines < whole.end.lines) == ([], 0, True)
    assert whole.files == 4
    tried, missed = 0, []
    catalog = repository.catalog()
    for path in journal_files(repository):
        stored = path.read_bytes()
        lines = stored.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if int(line.split(b":")[1].split(b",")[0]) > whole.newest.lines:
                break
            for what, edited in edits(lines, number):
                path.write_bytes(b"".join(edited))
                tried += 1
                if not verify_audit(repository.journal, catalog).problems:
                    missed.append((path.name, number, what))
        path.write_bytes(stored)
    assert missed == []
    assert tried > 1000
    assert audit(repository).problems == []


def test_N5_missing_swapped_and_foreign_files_are_found(repository):
    state = repository.root / "state"
    for path in [*journal_files(repository), state / "audit.anchor"]:
        path.rename(state / "hidden")
        assert audit(repository).problems or path.name == "audit.jsonl", path
        (state / "hidden").rename(path)
    first, second, *_ = journal_files(repository)
    one, two = first.read_bytes(), second.read_bytes()
    for a, b in ((two, one), (one, one), (two, two), (one + two, b""), (b"", one + two)):
        first.write_bytes(a)
        second.write_bytes(b)
        assert audit(repository).problems
    first.write_bytes(one)
    second.write_bytes(two)
    (state / "audit-000000003.jsonl").write_bytes(b"junk\n")
    assert audit(repository).problems == [], "that lies in the removed head"
    (state / "audit-000999999.jsonl").write_bytes(b"junk\n")
    assert audit(repository).problems


def test_N5_an_anchor_file_that_was_altered_is_found(repository):
    path = repository.root / "state" / "audit.anchor"
    stored = path.read_bytes()
    missed = []
    for position in range(len(stored) - 1):
        path.write_bytes(stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :])
        if path.read_bytes().split() != stored.split() and not audit(repository).problems:
            missed.append(stored[:position])
    assert missed == []


def test_N5_a_head_that_somebody_else_cut_off_is_found(repository):
    """And an audit.anchor written by hand."""
    first, *_ = journal_files(repository)
    last = first.read_bytes().splitlines()[-1]
    first.unlink()
    assert any("missing" in problem for problem in audit(repository).problems)
    import hashlib
    import json

    number = json.loads(last)["line"]
    forged = {"lines": number, "hash": hashlib.sha256(last).hexdigest(), "carried_from": number + 1, "carried_lines": 0}
    (repository.root / "state" / "audit.anchor").write_text(json.dumps(forged))
    (problem,) = audit(repository).problems
    assert "tells of just that" in problem


def test_what_lies_after_the_newest_anchor_needs_one_kept_elsewhere(repository):
    kept = audit(repository).end
    assert audit(repository, kept).problems == []
    assert any(f"{kept.lines} {kept.hash}" in note for note in audit(repository).notes)
    path = repository.layout.journal
    path.write_bytes(b"")
    assert audit(repository).problems == []
    (problem,) = audit(repository, kept).problems
    assert "kept elsewhere" in problem


def test_A8_a_journal_that_is_gone_is_said_loudly_and_the_next_begins_anew(repository):
    backups = len(repository.catalog().backups)
    for path in (repository.root / "state").glob("audit*"):
        path.unlink()
    assert len(audit(repository).problems) == backups
    assert list(repository.journal.entries()) == []
    assert repository.next_sequence() == backups + 1
    assert back_up(repository, clock=repository.clock).outcome == "success"
    after = audit(repository)
    assert len(after.problems) == backups
    assert after.anchors == 1
    assert next(repository.journal.entries())["line"] == 1


def test_all_problems_are_told_and_more_are_counted(repository):
    for path in journal_files(repository):
        path.write_bytes(b"".join(b"\xff" + line for line in path.read_bytes().splitlines(keepends=True)))
    found = audit(repository)
    assert len(found.problems) == PROBLEMS
    assert found.more > 0


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=300), at=st.integers(0, 10**6), which=st.integers(0, 10))
def test_no_junk_makes_it_fail(pristine, tmp_path_factory, junk, at, which):
    root = tmp_path_factory.mktemp("junk") / "backups"
    shutil.copytree(pristine / "state", root / "state")
    repository = open_repository(pristine)
    journal = type(repository.journal)(root / "state" / "audit.jsonl", FakeClock())
    paths = sorted(root.glob("state/audit*"))
    path = paths[which % len(paths)]
    stored = path.read_bytes()
    at %= len(stored) + 1
    path.write_bytes(stored[:at] + junk + stored[at:])
    verify_audit(journal, repository.catalog())


def test_notes_tell_of_a_torn_end_a_damaged_manifest_and_what_could_not_be_compared(repository):
    with repository.layout.journal.open("ab") as stream:
        stream.write(b"torn")
    catalog = repository.catalog()._replace(unreadable=[Unreadable("x", "why")])
    found = verify_audit(repository.journal, catalog)
    text = "\n".join(found.notes)
    assert found.problems == []
    assert "torn line" in text
    assert "the manifest of x is damaged" in text
    assert "1 anchors name lines of the removed head" in text
    assert found.anchors == 3
    assert "no manifest" in "\n".join(verify_audit(repository.journal, catalog._replace(backups=[])).notes)


def test_filters():
    start = datetime(2024, 8, 1, tzinfo=UTC)

    def line(number, event, **fields):
        return {"line": number, "at": to_text(start + timedelta(days=number)), "event": event, **fields}

    entries = [
        line(1, "run_started", run="a", job="full"),
        line(2, "verified", run="a", backup="20240801_020000_full", outcome="success", by="daemon"),
        line(3, "run_ended", run="a", job="full", outcome="success", by="daemon"),
        line(4, "run_started", run="b", job="restore all", by="root (0)"),
        line(5, "restored", run="b", by="root (0)"),
        line(6, "held", by="root (0)"),
    ]

    def shown(**filters):
        return [entry["line"] for entry in show_audit(iter(entries), **filters)]

    assert shown() == [1, 2, 3, 4, 5, 6]
    assert shown(limit=2) == [5, 6]
    assert shown(since=start + timedelta(days=2), until=start + timedelta(days=4)) == [2, 3]
    assert shown(event="run_started") == [1, 4]
    assert shown(backup="20240801") == [2]
    assert shown(job="full") == [1, 2, 3]
    assert shown(job="restore all") == [4, 5]
    assert shown(outcome="success") == [2, 3]
    assert shown(by="root") == [4, 5, 6]
    assert shown(job="full", outcome="success", limit=1) == [3]
    restored = {"line": 1, "at": entries[0]["at"], "event": "restored", "run": "x"}
    ended = {**restored, "line": 2, "event": "run_ended", "job": "restore postgres"}
    found = show_audit([restored, ended], job="restore postgres")
    assert [entry["line"] for entry in found] == [2], "its start went with a head of the journal"


class TestStanding:
    def test_of_every_event_that_is_written_somebody_has_decided(self):
        written = {}
        for path in Path(aquad.__file__).parent.rglob("*.py"):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                if not (isinstance(call.func, ast.Attribute) and call.func.attr == "append" and call.args):
                    continue
                if "journal" in ast.unparse(call.func.value) and isinstance(call.args[0], ast.Constant):
                    written[call.args[0].value] = path.name
        assert {event: path for event, path in written.items() if event not in DECIDED} == {}, (
            "say in aquad/jobs/trail/standing.py what stands of it"
        )
        assert len(written) > 10

    def test_a_line_stands_alone_and_in_its_order(self):
        entries = [{"line": n, "event": "settings", "changed": ["a"], "at": ""} for n in range(1, 6)]
        assert [e["line"] for e in standing(entries, [])] == [1, 5]

    def test_what_of_a_backup_that_is_gone_stands_no_more(self):
        entries = [
            {"line": 1, "event": "verified", "backup": "b", "level": "bytes", "outcome": "success"},
            {"line": 2, "event": "kept", "backup": "b"},
            {"line": 3, "event": "report_written", "backup": "b", "path": "r"},
            {"line": 4, "event": "backup_sealed", "backup": "b", "sequence": 9},
            {"line": 5, "event": "test"},
        ]
        assert [e["line"] for e in standing(entries, ["b"])] == [1, 2, 3, 4]
        assert [e["line"] for e in standing(entries, [])] == [3, 4], "the report, and the highest sequence"
        entries.append({"line": 6, "event": "reports_removed", "paths": ["r"]})
        assert [e["line"] for e in standing(entries, [])] == [4]


RECORDS = [EncryptionRecord(mode="passphrase", key_ids=[key]) for key in "xy"]
JOBS = ["full", "postgres", EVERYTHING, "discard"]
COMPONENTS = ["words", "postgres"]
BACKUPS = ["b1", "b2", "b3"]
START = datetime(2024, 1, 1, tzinfo=UTC)
SLOTS = [to_text(START + timedelta(hours=hour)) for hour in range(4)]
runs = st.sampled_from([f"r{number}" for number in range(6)])
outcomes = st.sampled_from(["success", "warning", "failed", "interrupted"])
endings = st.sampled_from(["success", "failed", "missed", "skipped"])
components = st.sampled_from(COMPONENTS)
backups = st.sampled_from(BACKUPS)
names = st.lists(st.sampled_from(["d1", "d2", "d3"]), max_size=2, unique=True)
slots = st.sampled_from([None, *SLOTS])


def event(name, **fields):
    return st.fixed_dictionaries({"event": st.just(name), **fields})


SLOT_EVENTS = [
    event("run_started", run=runs, job=st.sampled_from(JOBS), slot=slots, attempt=st.integers(1, 3)),
    event("end"),
    event("end", components=st.dictionaries(components, outcomes), outcome=outcomes),
    event("end", wants=st.lists(components, max_size=2, unique=True), outcome=outcomes),
    event("daemon_stopped", run=runs),
    event("slot_ended", job=st.sampled_from(JOBS), slot=st.sampled_from(SLOTS), outcome=endings),
    event("leap", hours=st.integers(1, 4)),
    event("clock_went_back", hours=st.integers(1, 4)),
    event("end_of_slot"),
    event("settings", changed=st.lists(st.sampled_from(["schedule.full", "time_zone", "x"]), max_size=2)),
    event("accepted", component=components),
]
RESTORE_EVENTS = [
    event("run_started", run=runs, job=st.sampled_from([EVERYTHING, "discard"]), slot=st.none()),
    event("restore_started", run=runs, orders=st.just([[name, "b1"] for name in COMPONENTS])),
    event("restored", run=runs, component=st.just("words"), kept=st.just([]), milliseconds=st.integers(0, 9)),
    event("restored", run=runs, component=st.just("postgres"), kept=names, milliseconds=st.integers(0, 9)),
    event("end"),
    event("end", discarded=names),
]
BACKUP_EVENTS = [
    event("verified", backup=backups, level=st.sampled_from(["quick", "bytes", "content"]), outcome=outcomes),
    event("kept", backup=backups, until=st.none()),
    event("unkept", backup=backups),
    event("pruned", backup=backups),
    event("trash_restored", backup=backups),
    event("draft_to_trash", draft=backups),
    event("backup_taken", backup=backups, sequence=st.integers(1, 99)),
    event("report_written", path=st.sampled_from(["p1", "p2"])),
    event("reports_removed", paths=st.lists(st.sampled_from(["p1", "p2"]), max_size=2)),
]
OTHER_EVENTS = [
    event("held", until=st.none(), reason=st.just("why"), cause=st.sampled_from(["operator", "restore"])),
    event("released", cause=st.sampled_from(["operator", "restore"])),
    event("key_confirmed", encryption=st.sampled_from([record.model_dump() for record in RECORDS])),
    event("cleaned", ages=st.dictionaries(st.sampled_from(["full", "weekly"]), st.integers(1, 99))),
    event("unknown"),
]
alert_rules = st.sampled_from(["stale", "disk", "channel_fails"])
alert_components = st.sampled_from([None, "words"])
notices = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["fired", "again", "resolved", "passed"]),
        "rule": alert_rules,
        "subject": st.sampled_from(["", "words"]),
        "level": st.just("warning"),
        "started_at": st.just(to_text(START)),
        "times": st.integers(1, 9),
    }
)
ALERT_EVENTS = [
    event("alert", rule=alert_rules, level=st.just("warning"), component=alert_components, text=st.just("bad")),
    event("alert_over", rule=alert_rules, component=alert_components, text=st.just("good")),
    event(
        "notified",
        channel=st.sampled_from(["slack", "email"]),
        level=st.just("warning"),
        notices=st.lists(notices, min_size=1, max_size=2),
    ),
]
KINDS = {
    "slots": SLOT_EVENTS,
    "restores": RESTORE_EVENTS,
    "backups": BACKUP_EVENTS,
    "others": OTHER_EVENTS,
    "alerts": ALERT_EVENTS,
}
KINDS["all"] = [one for kind in KINDS.values() for one in kind]


def timed(drawn):
    """With times: a minute from line to line, and the clock leaps."""
    clock = FakeClock(START)
    for one in drawn:
        clock.move(60)
        if one["event"] == "leap":
            clock.move(one["hours"] * 3600)
        elif one["event"] == "clock_went_back":
            clock.move(-3600 * one["hours"])
            yield {**one, "at": to_text(clock.now()), "to": to_text(clock.now())}
        else:
            yield {**one, "at": to_text(clock.now())}


def locked(drawn):
    """A restore of everything begins when the one before has ended: they hold the lock."""
    for one in drawn:
        if one.get("job") == EVERYTHING and one["event"] == "run_started":
            yield {"event": "end", "job": EVERYTHING}
        yield one


def history(drawn):
    """Lines as aquad writes them: runs have their own ids, end once and then say no more; a slot ends after its run, and is
    not run again then; sequences grow.
    """
    entries, started, ids = [], {}, {}
    for number, one in enumerate(timed(locked(drawn)), start=1):
        if one["event"] == "run_started":
            one["slot"] = one["slot"] and (one["slot"] if may_be_run(entries, one) else None)
            ids[one["run"]] = one["run"] = f"{one['run']}.{number}"
            started[one["run"]] = one
        elif one["event"] == "end":
            those = [run for run, first in started.items() if first["job"] == one.get("job", first["job"])]
            if not those:
                continue
            first = started.pop(those[-1])
            one = {"outcome": "success", **first, **one, "event": "run_ended"}
        elif one["event"] in {"end_of_slot", "slot_ended"}:
            one = end_of_slot(entries, started.values(), one)
            if one is None:
                continue
        elif "run" in one:
            one["run"] = ids.get(one["run"], one["run"])
            if one["event"] != "daemon_stopped" and one["run"] not in started:
                continue
        if "sequence" in one:
            one["sequence"] = number
        entries.append({"line": len(entries) + 1, **one})
    return entries


def end_of_slot(entries, started, one):
    """That of the last run, or any but of a run that is under way; None where there is no such."""
    if one["event"] == "slot_ended":
        return None if (one["job"], one["slot"]) in {(first["job"], first["slot"]) for first in started} else one
    ended = [e for e in entries if e["event"] == "run_ended" and e.get("slot")][-1:]
    told = {key: ended[0][key] for key in ("job", "slot")} if ended else {}
    return {"event": "slot_ended", "at": one["at"], **told, "outcome": "success"} if ended else None


def may_be_run(entries, one):
    ledger, slot = Ledger.of(entries), Slot(one["job"], from_text(one["slot"]))
    newest = ledger.newest_ended(slot.job, from_text(one["at"]))
    return ledger.is_open(slot) and (slot in ledger.attempts or newest is None or slot.at > newest)


def learned(entries):
    """What every reader of the journal makes of it."""
    known = History.of(entries)
    ledger = Ledger.of(entries)
    newest = {job: ledger.newest_ended(job, NEVER) for job in JOBS}
    later = [Slot(job, from_text(at)) for job in JOBS for at in SLOTS if not newest[job] or from_text(at) > newest[job]]
    present = set(BACKUPS[:2])
    ended = [e for e in entries if e["event"] == "run_ended"]
    read = Notices(START)
    for entry in [e for e in entries if e["event"] in {"alert", "alert_over", "notified"}]:
        read.add(entry)
    return {
        "accepted": accepted(SimpleNamespace(journal=SimpleNamespace(entries=lambda: entries))),
        "kept databases": kept_databases(entries),
        "unfinished": unfinished(entries),
        "interrupted": interrupted(entries),
        "confirmed": [is_confirmed(entries, record) for record in RECORDS],
        "sequence": max([0, *(e["sequence"] for e in entries if "sequence" in e)]),
        "last run": ended[-1:],
        "former runs": [e["run"] for e in ended if e["outcome"] not in {"success", "warning"}][-50:],
        "attempts": {name: o for e in ended for name, o in e.get("components", {}).items()},
        "restored": {e["component"]: e["milliseconds"] for e in entries if e["event"] == "restored"},
        "verdicts": {b: v for b, v in known.verdicts.items() if b in present},
        "states": {b: known.state(b) for b in present},
        "kept": {b: until for b, until in known.kept.items() if b in present},
        "accepted at": known.accepted_at,
        "holds": known.holds,
        "cleaned": known.cleaned,
        "removed at": {b: at for b, at in known.removed_at.items() if b in present},
        "reports": known.reports,
        "content at": {b: at for b, at in known.content_at.items() if b in present},
        "settings": [e for e in entries if e["event"] == "settings"][-1:],
        "since": (ledger.since, ledger.begun_at),
        "running": ledger.running,
        "wrong": set(read.levels()),
        "told": {
            channel: {key: known.is_open for key, known in told.known.items()} for channel, told in read._told.items()
        },
        "newest ended": newest,
        "may be run": [slot for slot in later if ledger.is_open(slot)],
        "open": {slot: ledger.attempts[slot] for job in JOBS for slot in ledger.unfinished(job)},
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20_000 if ALL else 500, deadline=None)
@given(data=st.data())
def test_who_reads_what_stands_and_the_rest_learns_the_same_as_from_the_whole_journal(kind, data):
    entries = history(data.draw(st.lists(st.one_of(KINDS[kind]), max_size=25)))
    cuts = data.draw(st.tuples(st.integers(0, len(entries)), st.integers(0, len(entries))))
    thinned, written = [], 0
    for cut in sorted(cuts):
        thinned += entries[written : max(written, cut)]
        written = max(written, cut)
        now = [*thinned, *entries[written:]]
        stands = standing(now, BACKUPS[:2])
        thinned = [e for e in stands if e["line"] <= cut]
        assert learned([*thinned, *entries[written:]]) == learned(entries)


def test_what_stands_does_not_grow_with_the_journal():
    def lines():
        number = 0
        for run in range(30_000):
            slot = to_text(START + timedelta(hours=run))
            for name in ("run_started", "run_ended", "slot_ended"):
                number += 1
                ended = {"outcome": "success", "components": {"words": "success"}}
                of_run = {"run": str(run), "job": "full", "slot": slot}
                yield {"line": number, "at": slot, "event": name, **of_run, **ended}

    assert [e["line"] for e in standing(lines(), [])] == [89_999, 90_000]


def test_removal_keeps_what_the_repository_knows(repository):
    backup = repository.catalog().backups[0].id
    repository.journal.append("kept", backup=backup, until=None)
    repository.journal.rotate()
    ids = [b.id for b in repository.catalog().backups]
    before = History.of(repository.journal.entries()), repository.next_sequence()
    removed = remove_all(repository)
    assert removed.carried > 4
    assert (History.of(repository.journal.entries()), repository.next_sequence()) == before
    assert audit(repository).problems == []
    assert {e["backup"] for e in repository.journal.entries() if e["event"] == "verified"} == set(ids)
    assert Position(*audit(repository).end) == audit(repository).end
