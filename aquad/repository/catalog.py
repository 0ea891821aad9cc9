"""Which backups there are. No I/O: it is handed the manifests, and what could not be read of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from aquad.core.errors import NoSuchBackup
from aquad.core.escape import escaped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


class Listed(Protocol):
    """A manifest, or what is remembered of one."""

    @property
    def id(self) -> str: ...

    @property
    def sequence(self) -> int: ...

    def component(self, name: str) -> object:
        """The good component of that name, or None."""


B = TypeVar("B", bound=Listed)


class Unreadable(NamedTuple):
    """A manifest that is damaged: its backup cannot be listed, and its files are never taken for rubbish."""

    id: str
    reason: str


class Catalog(NamedTuple, Generic[B]):
    backups: Sequence[B]
    """Newest first, by sequence."""
    unreadable: Sequence[Unreadable]

    @classmethod
    def of(cls, backups: Iterable[B], unreadable: Iterable[Unreadable]) -> Catalog[B]:
        return cls(sorted(backups, key=lambda m: m.sequence, reverse=True), tuple(unreadable))

    def without(self, ids: Collection[str]) -> Catalog[B]:
        return self._replace(backups=[backup for backup in self.backups if backup.id not in ids])

    def latest(self, component: str | None = None) -> B | None:
        """The newest backup, or the newest in which `component` is good."""
        return next((m for m in self.backups if component is None or m.component(component)), None)

    def find(self, text: str, component: str | None = None) -> B:
        """The backup of an id, a unique prefix of one, or `latest`. Raises NoSuchBackup and says what there is."""
        if text == "latest":
            newest = self.latest(component)
            if newest is None:
                what = f"backup with a good {component}" if component else "backup"
                raise NoSuchBackup(
                    f"find latest: there is no {what}", "`aquad list` shows what there is; `aquad run full` makes one."
                )
            return newest
        matches = [m for m in self.backups if m.id == text] or [
            m for m in self.backups if text and m.id.startswith(text)
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise NoSuchBackup(
                f"find {escaped(text)}: it fits {len(matches)} backups: {', '.join(m.id for m in matches[:5])}",
                "Give more of the id.",
            )
        damaged = [u.id for u in self.unreadable if u.id.startswith(text)]
        if damaged:
            raise NoSuchBackup(
                f"find {escaped(text)}: the manifest of {damaged[0]} is damaged", "`aquad verify all` says how."
            )
        raise NoSuchBackup(f"find {escaped(text)}: no backup has that id", "`aquad list` shows what there is.")
