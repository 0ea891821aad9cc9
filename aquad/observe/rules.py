"""Every rule that can raise an alert: what it is called, and what to do about it. docs/runbook.md has a chapter for each."""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    name: str
    """{} is the subject."""
    to_do: str

    def title(self, subject: str) -> str:
        return self.name.format(subject).strip()


RULES = {
    "run_failed": Rule("run of {} failed", "Read the cause; mend it; `aquad run` does not wait for the next slot."),
    "run_aborted": Rule("run of {} was ended", "Somebody, or its deadline, ended it; the daemon tries again."),
    "run_interrupted": Rule(
        "run of {} died", "Look for the kernel's OOM killer and the container's restarts; the daemon tries again."
    ),
    "run_missed": Rule(
        "run of {} was missed",
        "The daemon was down, or busy, when it was due. See that it runs; `aquad run` makes it up.",
    ),
    "run_skipped": Rule(
        "run of {} was skipped", "Earlier runs took too long, or the schedule was held: `aquad status`."
    ),
    "stale": Rule(
        "no recent backup of {}",
        "`aquad status` says what was tried last; `aquad check` what would fail now; then `aquad run full`.",
    ),
    "damaged": Rule(
        "backup {} is damaged",
        "It is not used any more. Look at the disk (dmesg, smartctl); `aquad verify all`; take a new one: `aquad run full`.",
    ),
    "size_anomaly": Rule(
        "size of {} is unlike before", "See what changed in it. If that is as it should be: `aquad accept`."
    ),
    "duration_anomaly": Rule(
        "duration of {} is unlike before",
        "Look at the load of disk and server. If that is as it should be: `aquad accept`.",
    ),
    "rows_anomaly": Rule(
        "rows of {} are unlike before",
        "Were rows deleted? Keep an older backup: `aquad keep ID`. If it is right: `aquad accept`.",
    ),
    "disk": Rule(
        "the disk of the backups fills up",
        "Make it larger, or keep less: `aquad prune --dry-run`, `aquad trash empty`, retention in the settings.",
    ),
    "settings_invalid": Rule(
        "the settings are invalid", "The daemon goes on with the old ones. `aquad config validate` names each mistake."
    ),
    "daemon_restarts": Rule("the daemon is restarted again and again", "`docker logs` of aquad says why it ends."),
    "journal_lost": Rule(
        "the journal is gone",
        "Who removed state/audit.jsonl? Backups are listed as before; `aquad verify all` proves them anew.",
    ),
    "schedule_held": Rule(
        "the schedule is held", "No backup is taken. `aquad status` says by whom and why; `aquad release` ends it."
    ),
    "channel_fails": Rule(
        "alerts cannot be delivered by {}",
        "`aquad alerts test` shows the error; see the address, the secret and the network.",
    ),
    "repository": Rule(
        "the repository cannot be written or read",
        "Look at the disk: is it mounted, full, read-only? `aquad status` says what it finds.",
    ),
}


def rule_of(name: str) -> Rule:
    """One that an older or newer aquad wrote has its name for a title."""
    return RULES.get(name) or Rule(name.replace("_", " ") + " {}", "`aquad status` and `aquad audit show` tell more.")
