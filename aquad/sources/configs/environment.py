"""Environment files (`.env` of Compose): which values a restore would change, named by their keys and never shown."""

from __future__ import annotations

import re

MAXIMUM_BYTES = 1 << 20
ASSIGNMENT = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<key>[a-z_][a-z0-9_.-]*)[ \t]*=[ \t]*
        (?:(?P<quoted>"(?:[^"\\]|\\.)*"|'[^']*')[ \t]*(?:\#[^\n]*)?|(?!["'])(?P<bare>[^\n]*?))\r?(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE | re.ASCII,
)
NO_ASSIGNMENT = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)")
UNKNOWN = "its values cannot be compared: look at it yourself, some may have been rotated since the backup"


def is_environment(name: str) -> bool:
    return name == ".env" or name.startswith(".env.")


def warning(old: bytes, new: bytes) -> str:
    """The keys whose values would change from `old` to `new`, and those that would be gone; nothing when there are none."""
    before, after = assignments(old), assignments(new)
    if before is None or after is None:
        return UNKNOWN
    changed = sorted(key for key in after if key in before and before[key] != after[key])
    gone = sorted(before.keys() - after.keys())
    said = []
    if changed:
        said.append(f"values of {', '.join(changed)} would change; they may have been rotated since the backup")
    if gone:
        said.append(f"{', '.join(gone)} would be gone")
    return "; ".join(said)


def assignments(content: bytes) -> dict[str, str] | None:
    """Key -> value, the last one of a key. Values in quotes may span lines, as in Compose.

    None when any of it is something else: then nothing tells a key from a piece of a secret.
    """
    if len(content) > MAXIMUM_BYTES:
        return None
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = NO_ASSIGNMENT.match(text, position)
        if match is None:
            match = ASSIGNMENT.match(text, position)
            if match is None:
                return None
            found[match["key"]] = _value(match["quoted"], match["bare"] or "")
        position = match.end()
    return found


def _value(quoted: str | None, bare: str) -> str:
    """Without quotes where they change nothing; without the comment behind it."""
    if quoted is None:
        return re.split(r"(?:^|[ \t])#", bare, maxsplit=1)[0].strip()
    return quoted if re.search(r"[\\$]", quoted) else quoted[1:-1]
