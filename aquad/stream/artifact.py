"""The words that sources and the repository share: parts, sinks, readers, targets, steps, findings, the context of a run.

A source never sees the repository, and the repository never sees a source; jobs introduce them through these protocols.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from aquad.core.clock import Clock

Target = TypeVar("Target", contravariant=True)  # noqa: PLC0105 - the house's word; a restore's options, one class a kind

Facts = dict[str, Any]
"""What was learnt while a thing was taken; JSON values only, integers rather than floats."""


class Part(NamedTuple):
    """One stretch of an artifact. `facts` is called once, after the last chunk."""

    name: str
    chunks: Iterator[bytes]
    facts: Callable[[], Facts]


class RawFile(Protocol):
    """A file of the draft that its writer compresses itself (tar). Bytes are hashed as they are written."""

    def write(self, stored: bytes) -> None: ...

    def tell(self) -> int:
        """Bytes so far, as they were written."""
        ...

    @property
    def is_clear(self) -> bool:
        """Whether it is stored as it is written; only then can anything be copied from one to the next."""
        ...

    @property
    def shares_blocks(self) -> bool:
        """Whether its file system can share blocks between files (XFS, btrfs)."""
        ...

    def copy_from(self, fd: int, offset: int, length: int, stored: bytes | None, xxh3: str) -> None:
        """Append a stretch of another file; sharing its blocks where they lie alike.

        `stored`: those bytes; None when they are too many for memory, and then have this digest. Raises Damaged, later.
        """
        ...

    def record(self, member: Mapping[str, Any]) -> None:
        """Append one line to the artifact's member index (JSON values; keys as docs/format.md says)."""
        ...

    def finish(self, *, plain_bytes: int, facts: Facts) -> None:
        """Close the artifact. An artifact that was not finished is not sealed."""
        ...

    def abandon(self) -> None:
        """Close it unfinished; nothing of it will be used. May be called after a failed `finish`."""
        ...


class Sink(Protocol):
    """Where a source puts its artifacts: the local draft of one component."""

    def add(self, path: str, parts: Iterable[Part], *, gzip: bool) -> None:
        """Write one artifact of one gzip member a part (or plain bytes); offsets and lengths are recorded.

        `parts` and their chunks are consumed in the calling thread. Raises RepositoryWriteFailed, and whatever they raise.
        """
        ...

    def raw(self, path: str, *, indexed: bool = False) -> RawFile: ...


class StoredPart(NamedTuple):
    """Where a part lies in its artifact: stored offset and length, plain length, facts."""

    name: str
    offset: int
    length: int
    plain_bytes: int
    facts: Facts


class StoredArtifact(NamedTuple):
    path: str
    gzip: bool
    stored_bytes: int
    plain_bytes: int
    parts: Sequence[StoredPart]
    facts: Facts


class Reader(Protocol):
    """One component of one sealed backup, or a file given by path. Its bytes were verified before it was handed out."""

    @property
    def origin(self) -> str:
        """For messages: the backup's id, or the file's path."""
        ...

    @property
    def facts(self) -> Facts:
        """The component's facts; empty for a file of no manifest."""
        ...

    @property
    def artifacts(self) -> Sequence[StoredArtifact]: ...

    @property
    def sealed(self) -> bool:
        """False for a FILE of no manifest: foreign, only used because the operator vouched for it."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield stored bytes. May be called from several threads. Raises Damaged on a short file."""
        ...

    def descriptor(self, path: str) -> int | None:
        """An open file, which the caller closes, to copy stored bytes from; None when it is encrypted. Raises Damaged."""
        ...

    def forwards_only(self, path: str) -> bool:
        """Whether reading an earlier stretch means to begin again (a large encrypted file), for one thread at a time."""
        ...

    def members(self, path: str) -> Iterator[Mapping[str, Any]] | None:
        """The member index of a tar artifact, or None where there is none."""
        ...


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str
    hint: str = ""


class Step(NamedTuple):
    """One line of a restore plan. `overwrites` names what is replaced; `needs_bytes` is free space that must be there first."""

    text: str
    overwrites: str = ""
    needs_bytes: int = 0
    on_path: str = ""
    """The directory whose file system has to have `needs_bytes`; empty where the server knows."""
    warning: str = ""


class Progress(Protocol):
    def stage(self, name: str, total_bytes: int | None) -> None:
        """`total_bytes`: about how much there is to do; None when nobody knows."""
        ...

    def advance(self, count: int) -> None:
        """May be called from any thread."""
        ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total_bytes: int | None) -> None: ...

    def advance(self, count: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run hands to whoever works for it."""

    run_id: str
    timestamp: str
    """The `20240802_020000` that the artifacts of this backup carry in their names (of a restore: of its start)."""
    clock: Clock
    slot: datetime | None = None
    """For which moment of the schedule it is; None by hand."""
    deadline: float | None = None
    """A value of clock.monotonic()."""
    stall_seconds: float = 60.0
    progress: Progress = field(default_factory=Silent)
    cancel: threading.Event = field(default_factory=threading.Event)
    former_runs: tuple[str, ...] = ()
    """Ids of earlier runs that did not end well: what they left on a server may be ended."""
    keep_fds: tuple[int, ...] = ()
    """Lock descriptors that every child inherits: the repository stays locked while a child of a dead run still writes."""


class Taken(NamedTuple):
    """What a source says of what it took. `warnings` end the run with exit 3; `notes` are only reported."""

    consistency: Literal["snapshot", "paused", "stopped", "live", "files"]
    facts: Facts
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    damage: Sequence[str] = ()
    """What was found to be rotten in the previous backup."""


class Source(Protocol[Target]):
    """One kind of data: takes it, and brings it back."""

    component: str

    def check(self) -> list[Finding]: ...

    def size_bytes(self) -> int:
        """What there is to take today, for the forecast of `init`."""
        ...

    def take(self, sink: Sink, previous: Reader | None, run: RunContext) -> Taken:
        """Raises SourceFailed, Unreachable or ChildFailed: then nothing of this component is sealed."""
        ...

    def plan_restore(self, reader: Reader, target: Target) -> list[Step]:
        """Look, and touch nothing. Raises where the restore would be refused."""
        ...

    def restore(self, reader: Reader, target: Target, run: RunContext) -> Facts:
        """Raises RestoreFailed; the facts say what was compared."""
        ...


class Quiescer(Protocol):
    """Holds a group of services still while it is read (pause or stop)."""

    def freeze(self, group: str) -> AbstractContextManager[Facts]: ...
