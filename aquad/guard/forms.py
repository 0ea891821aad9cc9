"""Which requests there are. Whatever fits no form exactly is refused; no I/O here.

Paths are matched as they were sent, before anything is decoded: a form has no percent sign in it, so that no encoding of a
slash or a dot can mean one thing here and another to the Engine.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATH = re.compile(
    rb"(?P<prefix>/v1\.[0-9]{1,2})?/(?:(?P<plain>_ping|version|containers/json)"
    rb"|containers/(?P<container>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})/(?P<verb>json|logs|pause|unpause|stop|start)"
    rb"|(?P<lease>aquad/lease))"
)
READING = frozenset({"_ping", "version", "containers/json", "json", "logs"})
LIST_FILTERS = frozenset({"label", "name", "id", "status"})


class Form(NamedTuple):
    """`verb`: _ping, version, containers/json, json, logs, pause, unpause, stop, start or lease."""

    verb: str
    prefix: str = ""
    container: str = ""
    query: Mapping[str, str] = {}


def form_of(method: str, raw_path: bytes, query: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Form | None:
    """None where it is refused."""
    found = PATH.fullmatch(raw_path)
    if found is None or any(_changes_the_protocol(name.lower(), value) for name, value in headers):
        return None
    words = {name: (text or b"").decode() for name, text in found.groupdict().items()}
    verb = words["plain"] or words["verb"] or "lease"
    allowed = {"GET", "HEAD"} if verb in READING else {"POST"}
    values = _query(verb, query)
    if method not in allowed or values is None:
        return None
    return Form(verb, words["prefix"], words["container"], values)


def _changes_the_protocol(name: bytes, value: bytes) -> bool:
    """Nothing that is allowed has a body, or becomes another protocol."""
    if name == b"content-length":
        return value.strip() != b"0"
    return name in {b"upgrade", b"transfer-encoding", b"expect"} or (
        name == b"connection" and b"upgrade" in value.lower()
    )


def _query(verb: str, query: bytes) -> dict[str, str] | None:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        return None
    values, fits = dict(pairs), _QUERIES.get(verb, {})
    if len(values) != len(pairs) or not all(name in fits and fits[name](text) for name, text in pairs):
        return None
    return values


def _number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) is not None


def _moment(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII) is not None


def _switch(text: str) -> bool:
    return text in {"0", "1", "true", "false", "True", "False"}


def _off(text: str) -> bool:
    return text in {"0", "false", "False"}


def _filters(text: str) -> bool:
    try:
        filters = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(filters, dict)
        and filters.keys() <= LIST_FILTERS
        and all(isinstance(v, list) and all(isinstance(word, str) for word in v) for v in filters.values())
    )


_QUERIES: Mapping[str, Mapping[str, Callable[[str], bool]]] = {
    "containers/json": {
        "all": _switch,
        "size": _off,
        "trunc_cmd": _switch,
        "limit": lambda text: text == "-1" or _number(text),
        "filters": _filters,
    },
    "logs": {
        "stdout": _switch,
        "stderr": _switch,
        "timestamps": _switch,
        "follow": _off,
        "since": _moment,
        "until": _moment,
        "tail": lambda text: text == "all" or _number(text),
    },
    "stop": {"t": _number},
    "lease": {"seconds": _number},
}
