"""Dropping what restores kept aside, once nobody needs the way back any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aquad.core.errors import NoSuchBackup
from aquad.core.escape import escaped
from aquad.jobs.run import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aquad.repository.repository import Repository
    from aquad.stream.artifact import RunContext


class KeepsAside(Protocol):
    """A source that keeps replaced data on its own server."""

    def kept_aside(self) -> list[str]: ...

    def discard(self, name: str) -> None: ...


class Aside(NamedTuple):
    """What is kept: databases on the server, directories in the repository. `gone`: databases that somebody else dropped."""

    databases: Sequence[str]
    directories: Sequence[str]
    gone: Sequence[str]


def kept_aside(repository: Repository, source: KeepsAside, wanted: str | None) -> Aside:
    """Everything, or what carries the name or timestamp `wanted`. Raises NoSuchBackup when there is nothing of it."""
    there = source.kept_aside()
    databases = [name for name in there if wanted is None or wanted in {name, name[-15:]}]
    directories = [path.name for path in sorted(repository.layout.aside.iterdir()) if wanted in {None, path.name}]
    known = kept_databases(repository.journal.entries())
    gone = [name for name in known if name not in there and (wanted is None or wanted in {name, name[-15:]})]
    if not databases and not directories and not gone:
        raise NoSuchBackup(
            f"discard {escaped(wanted or 'everything')}: no restore kept anything of that name aside",
            "`aquad status` lists what can be discarded.",
        )
    return Aside(databases, directories, gone)


def kept_databases(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the journal says that restores kept on the server and nobody discarded: known without asking the server."""
    kept: dict[str, None] = {}
    for entry in entries:
        if entry["event"] == "restored" and entry["component"] == "postgres":
            kept |= dict.fromkeys(entry.get("kept", []))
        elif entry["event"] == "run_ended":
            for name in entry.get("discarded", []):
                kept.pop(name, None)
    return list(kept)


def discard(
    repository: Repository, source: KeepsAside, wanted: str | None, confirm: Callable[[Aside], None], _run: RunContext
) -> Work:
    aside = kept_aside(repository, source, wanted)
    confirm(aside)
    for database in aside.databases:
        source.discard(database)
    for directory in aside.directories:
        repository.discard_aside(directory)
    return Work("success", "", {"discarded": [*aside.databases, *aside.directories, *aside.gone]})
