"""G1, G3, G6: lines of an index that lie. All are checked before the first byte is written; content is compared after."""

import base64
import hashlib
import json
import subprocess
import sys

import pytest

from aquad.core.errors import Damaged, RestoreFailed
from aquad.jobs import verify
from aquad.repository.reader import _index_lines
from aquad.stream.artifact import Silent, StoredArtifact
from aquad.stream.tarball.tree import checked
from aquad.stream.tarball.unpack import list_members
from tests.fuzz.targets import gzipped, packed
from tests.stream.files import IndexedReader
from tests.stream.hostile.cases import KINDS, LEADING_OUT, ODD
from tests.stream.hostile.world import assert_printable, attempt, extracted, make_outside, names, seen

TYPES = {
    "file": "file",
    "directory": "dir",
    "symlink": "symlink",
    "fifo": "fifo",
    "hard link": "hardlink",
    "device": "char",
}


def encoded(text):
    return base64.b64encode(text).decode()


def paths():
    for what, path in LEADING_OUT.items():
        for name in KINDS:
            yield f"path {what}, {name}", {"path": path.decode(), "type": TYPES[name], "link": "file"}
        yield f"path {what}, in base64 behind a good one", {"path": "good", "path_base64": encoded(path)}
        yield f"link {what}", {"type": "hardlink", "link": path.decode()}
        yield (
            f"link {what}, in base64 behind a good one",
            {"type": "hardlink", "link": "file", "link_base64": encoded(path)},
        )
    for name, path in (
        ("absolute", "/tmp/new"),
        ("zero byte", "a\0b"),
        ("nothing", ""),
        ("dots", "././"),
        ("surrogate", "\udc80"),
    ):
        yield f"path {name}", {"path": path}
        yield f"link {name}", {"type": "hardlink", "link": path}
    for name, odd in ODD.items():
        yield f"odd name {name} leads out", {"path_base64": encoded(b"../" + odd)}
        yield f"odd name {name} of a bad number", {"path_base64": encoded(odd), "mode": -1}
    yield "symlink with a zero byte", {"type": "symlink", "link": "a\0b"}


def values():
    for key in ("path", "type", "mode", "uid", "gid", "mtime_ns", "size"):
        for name, value in (("null", None), ("list", [1]), ("object", {}), ("fraction", 1.5), ("text", "x\x1b[31m")):
            if (key, name) != ("path", "text"):
                yield f"{key} is {name}", {key: value}
    for key in ("mode", "uid", "gid", "size"):
        yield f"{key} is negative", {key: -1}
        yield f"{key} is 2^70", {key: 2**70}
    for key in ("segments", "chunks"):
        for name, value in (
            ("null", None),
            ("a number", 7),
            ("text", "xy"),
            ("numbers", [1, 2]),
            ("of one number", [[1]]),
            ("of text", [["a", "b", "c"]]),
            ("of fractions", [[0.5, 1.5, 1]]),
            ("of objects", [{"a": 1}]),
            ("negative", [[-1, 5, 5]]),
            ("of negative length", [[0, -5, 5]]),
            ("of 2^63", [[2**63, 5, 5]]),
            ("of infinity", [[float("inf"), 5, 5]]),
        ):
            yield (
                f"{key} is {name}",
                {
                    key: [one[:2] for one in value]
                    if key == "segments" and name.startswith(("neg", "of ")) and isinstance(value[0], list)
                    else value
                },
            )
    yield "header_bytes is text", {"header_bytes": "x"}
    for name, value in (
        ("a number", 7),
        ("a list", ["user.x"]),
        ("of numbers", {"user.x": 7}),
        ("of zero bytes", {"user.\0": ""}),
    ):
        yield f"xattrs is {name}", {"xattrs": value}
    for name, value in (("text", "x"), ("one", [1]), ("three", [1, 2, 3]), ("negative", [-1, 0]), ("2^40", [2**40, 0])):
        yield f"device is {name}", {"type": "char", "device": value}


LINES = dict([*paths(), *values()])

LIES = {
    "chunks beyond the archive": {"chunks": [[1 << 40, 100, 100]]},
    "chunks of the largest number": {"chunks": [[2**63 - 1, 2**63 - 1, 5]]},
    "chunks in the middle of gzip": {"chunks": [[3, 100, 100]]},
    "chunks of another member": {"chunks": [[0, 60, 512]]},
    "no chunks": {"chunks": []},
    "chunks of nothing": {"chunks": [[0, 0, 0]]},
    "header_bytes negative": {"header_bytes": -5},
    "header_bytes 0": {"header_bytes": 0},
    "header_bytes 2^70": {"header_bytes": 2**70},
    "size too small": {"size": 5},
    "size too large": {"size": 601},
    "size of 4 TiB": {"size": 1 << 42},
    "size larger than all there is, with its digest": {
        "size": 2000,
        "sha256": hashlib.sha256(b"x" * 600 + bytes(424)).hexdigest(),
    },
    "segments beyond its size": {"segments": [[600, 600]]},
    "segments out of order": {"segments": [[300, 300], [0, 300]], "sha256": "0" * 64},
    "segments longer than its data": {"segments": [[0, 600], [0, 600]]},
    "segments of nothing": {"segments": []},
    "sha256 of another": {"sha256": "0" * 64},
    "sha256 is null": {"sha256": None},
    "sha256 is an escape": {"sha256": "\x1b[31m"},
}


NOT_VERIFIED = {
    "path",
    "path_base64",
    "link",
    "link_base64",
    "type",
    "device",
    "xattrs",
    "mode",
    "uid",
    "gid",
    "mtime_ns",
    "segments",
}
"""What verification has no use for: a restore checks these before it writes."""


class Forger:
    def __init__(self, top):
        self.top = top
        make_outside(top)
        self.path, self.lines, self.facts = packed(top)
        self.file = next(line for line in self.lines if line["size"] == 600)
        self.before = seen(top)

    def reader(self, *lines):
        return IndexedReader(self.path, lines)

    def restore(self, *lines):
        """The error it ended in, and the paths that are there."""
        target = self.top / "target"
        target.mkdir()
        facts, error = attempt(lambda: extracted(self.reader(*lines), target))
        there, disk_bytes = names(target)
        assert disk_bytes < 1 << 20
        subprocess.run(["rm", "-rf", target], check=True)
        after = seen(self.top)
        assert {path: what for path, what in after.items() if path != b"."} == {
            path: what for path, what in self.before.items() if path != b"."
        }
        assert_printable(error, facts)
        return error, there

    def verify(self, lines):
        artifact = StoredArtifact(self.path.name, True, self.path.stat().st_size, self.facts.tar_bytes, [], {})
        return attempt(lambda: verify._check_members(artifact, iter(lines), self.reader(), Silent()))[1]


@pytest.fixture(scope="module")
def forger(tmp_path_factory):
    return Forger(tmp_path_factory.mktemp("forged"))


def test_as_it_is_it_comes_back(forger):
    error, there = forger.restore(*forger.lines)
    assert error is None
    assert len(there) == len(forger.lines) - 1
    assert forger.verify(forger.lines) is None


@pytest.mark.parametrize("change", LINES.values(), ids=LINES)
def test_G1_a_line_that_no_backup_has_is_refused_before_anything_is_written(forger, change):
    line = {**{key: value for key, value in forger.file.items() if not key.startswith("path_")}, "path": "./new"}
    error, there = forger.restore(*forger.lines, line | change)
    assert isinstance(error, Damaged)
    assert there == set()
    error = attempt(lambda: list(list_members(forger.reader(line | change), "x")))[1]
    assert isinstance(error, Damaged)


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_G6_a_line_that_lies_about_its_bytes_is_damage(forger, change):
    error, there = forger.restore({**forger.file, "path": "./file", **change})
    assert isinstance(error, Damaged | RestoreFailed)
    assert there <= {b"file"}


@pytest.mark.parametrize("change", [*LINES.values(), *LIES.values()], ids=[*LINES, *LIES])
def test_G6_verification_names_what_is_wrong_in_a_printable_way(forger, change):
    lines = [line if line is not forger.file else {**line, **change} for line in forger.lines]
    error = forger.verify(lines)
    assert error is None or isinstance(error, Damaged)
    assert error is None or str(error).isprintable()
    assert isinstance(error, Damaged) or change.keys() <= NOT_VERIFIED


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_G6_objects_as_deep_as_the_stack_are_damage(opening):
    """Deeper than what Python can read; and as deep as it can read, but hardly print in an error."""
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    limit = sys.getrecursionlimit()
    for depth in [*range(1, 20), *range(limit - 150, limit + 20), 100_000]:
        line = b'{"path":"x","type":"file","xattrs":' + opening * depth + b"0" + closing * depth + b"}\n"
        error = attempt(lambda line=line: [checked(one) for one in _index_lines(iter([gzipped(line)]), "x")])[1]
        assert isinstance(error, Damaged)
        assert str(error).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        b"\n",
        b"{}",
        b"null\n",
        b"[]\n",
        b"1\n",
        b'"x"\n',
        b"{\n",
        b"{}\n{}",
        b"\xff\n",
        b"NaN\n",
        b"9" * 5000 + b"\n",
        b"{}\0\n",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_G6_what_is_no_line_is_damage(text):
    for stored in (gzipped(text), text, gzipped(text)[:-3], gzipped(text) + b"x"):
        error = attempt(lambda stored=stored: [checked(one) for one in _index_lines(iter([stored]), "x")])[1]
        assert isinstance(error, Damaged)


def test_G6_a_line_is_read_whole_however_it_is_cut():
    line = json.dumps({"path": "x" * 1000}).encode() + b"\n"
    stored = gzipped(line * 3)
    for size in (1, 7, 500):
        pieces = [stored[at : at + size] for at in range(0, len(stored), size)]
        assert [one["path"] for one in _index_lines(iter(pieces), "x")] == ["x" * 1000] * 3
