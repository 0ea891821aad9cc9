"""What has to be true at the end of a soak, whatever happened in it."""

from collections import Counter
from datetime import timedelta

from aquad.jobs.verify import verify
from aquad.stream.artifact import Silent
from tests.soak.told import told_wrongly, untold
from tests.soak.world import uncovered

ACCIDENTS = {
    "kill a run": 30,
    "kill the daemon": 20,
    "stop the daemon": 15,
    "hold": 10,
    "by hand": 20,
    "rot": 6,
    "full disk": 12,
}
MEMORY_GROWTH = 12 << 20


def judged(world, begin):
    """Sentences on what is not as it should be; prints what was counted."""
    world.settle()
    _, catalog, history = world.check()
    entries = world.lines()
    problems = []
    wiring = world.wiring()
    end = world.clock.now()
    for job, rule in wiring.rules().items():
        wrong = uncovered(rule, job, entries, begin, end - timedelta(hours=1))
        problems += [f"{job} of {slot} has {count} endings" for slot, count in wrong.items()]
    slots = Counter((e["job"], e["outcome"]) for e in entries if e["event"] == "slot_ended")
    print(f"slots: {dict(slots)}")
    print(f"accidents: {dict(world.happened)}")
    rotten = {backup for backup, _ in world.rotten}
    found = {e["backup"] for e in entries if e["event"] == "verified" and e["outcome"] == "failed"}
    problems += [f"{backup} was found damaged, and nothing was done to it" for backup in found - rotten]
    alive = {backup.id for backup in catalog.backups}
    late = {b for b, at in world.rotten if b in alive and b not in history.damaged and end - at > timedelta(days=9)}
    problems += [f"{backup} rots for more than a week, and nobody has noticed" for backup in late]
    whole = [backup for backup in catalog.backups if backup.id not in rotten]
    bad = [one for one in verify(wiring.repository(), whole, "content", Silent()) if one.problems]
    problems += [f"{one.backup} is damaged: {one.problems[0]}" for one in bad]
    problems += [*told_wrongly(entries), *untold(wiring.repository(), world.told_at)]
    told = Counter((e["channel"], one["kind"]) for e in entries if e["event"] == "notified" for one in e["notices"])
    print(f"told: {dict(told)}")
    print(f"{len(whole)} backups verified to their content, {len(rotten)} were made to rot, {len(found)} found")
    settled = world.memory[len(world.memory) // 4 :]
    half = len(settled) // 2
    early, late_bytes = max(settled[:half]), max(settled[half:])
    print(f"memory of the daemon: {early >> 20} MiB, then {late_bytes >> 20} MiB")
    if late_bytes - early > MEMORY_GROWTH:
        problems.append(f"the daemon grew from {early} to {late_bytes} bytes")
    return problems
