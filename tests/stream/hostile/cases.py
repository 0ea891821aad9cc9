"""The crafted archives. Each says what must become of it: an error of that class, or these paths and nothing else.

A case's bytes may need to know where the sentinels are: then it is a function of that directory's absolute path.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from aquad.core.errors import Damaged, RestoreFailed
from tests.stream.hostile.forge import (
    BLOCK,
    CHAR,
    DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARD,
    SYMLINK,
    block,
    gnu_long,
    gz,
    member,
    pax,
    tar,
)

ROOT = os.geteuid() == 0


class Case(NamedTuple):
    """`expected`: an error's class, or the paths that are there afterwards, or a choice of these.

    `before`: what is done to the target first.
    """

    name: str
    stored: bytes | Callable[[bytes], bytes]
    expected: type | set | tuple
    before: Callable | None = None


LEADING_OUT = {
    "parent": b"../outside/new",
    "sentinel": b"../outside/sentinel",
    "twice": b"../../outside",
    "bare": b"..",
    "slash": b"../",
    "middle": b"a/../../outside/new",
    "dot": b"./../outside/new",
    "inner": b"a/b/../../../outside/new",
    "last": b"a/..",
    "within": b"a/../b",
    "empty parts": b"a//..//..//outside/new",
    "far": b"../" * 40 + b"outside/new",
    "long": b"x" * 120 + b"/../../outside/new",
}
KINDS = {"file": FILE, "directory": DIRECTORY, "symlink": SYMLINK, "fifo": FIFO, "hard link": HARD, "device": CHAR}


def paths():
    for what, path in LEADING_OUT.items():
        for name, kind in KINDS.items():
            yield Case(f"path {what}, {name}", tar(member(b"f"), member(path, kind, link=b"f")), Damaged)
        yield Case(f"path {what}, in an extended header", tar(pax({b"path": path}), block(b"f")), Damaged)
        yield Case(f"path {what}, in a long name", tar(gnu_long(path), block(b"f")), Damaged)
        yield Case(f"path {what}, of a sparse file", tar(pax({b"GNU.sparse.name": path}), block(b"f")), Damaged)
        yield Case(f"path {what}, in a global header", tar(pax({b"path": path}, b"g"), block(b"f")), Damaged)
    for name, kind in KINDS.items():
        yield Case(f"absolute, {name}", lambda out, kind=kind: tar(member(out + b"/new", kind, link=b"f")), Damaged)
    yield Case("absolute, over a sentinel", lambda out: tar(member(out + b"/sentinel", data=b"x")), Damaged)
    yield Case("absolute, two slashes", lambda out: tar(member(b"/" + out + b"/new")), Damaged)
    yield Case("absolute, and parent", lambda out: tar(member(out + b"/../outside/new")), Damaged)
    yield Case("prefix of the header leads out", tar(block(b"new", prefix=b"../outside")), Damaged)
    yield Case("prefix of the header is absolute", lambda out: tar(block(b"new", prefix=out[:155])), Damaged)
    yield Case("link in a long name leads out", tar(gnu_long(b"../outside/sentinel", b"K"), block(b"h", HARD)), Damaged)
    for name, path in (("empty", b""), ("dot", b"."), ("dots", b"././."), ("root", b"/"), ("zero byte", b"a\0b")):
        yield Case(f"name {name}, file", tar(pax({b"path": path}), block(b"f")), Damaged)
    yield Case("the directory itself", tar(member(b".", DIRECTORY, mode=0o755), member(b"f")), {b"f"})
    yield Case("no name at all", tar(block(b"")), Damaged)
    harmless = [
        b"...",
        b".. ",
        b"..\\..\\outside",
        b"C:\\new",
        b"~",
        b"-rf",
        b"$(touch new)",
        b"%2e%2e",
        b"\xc0\xae\xc0\xae",
    ]
    for path in (*harmless, "\u2025".encode(), "\uff0e\uff0e".encode(), b"*", b"CON", b".git", b"'\"`"):
        yield Case(f"name {path!a} is only a name", tar(member(path)), {path})
    yield Case("component of 256 bytes", tar(member(b"n" * 256)), RestoreFailed)
    yield Case(
        "path of 400 components",
        tar(member(b"d/" * 400 + b"f")),
        {b"d/" * n + b"d" for n in range(400)} | {b"d/" * 400 + b"f"},
    )


def through(first, *rest):
    """A symlink, and what is written through it."""
    return tar(member(b"link", SYMLINK, link=first), *rest)


WRITES = {
    "file": member(b"link/new", data=b"x"),
    "sentinel": member(b"link/sentinel", data=b"x"),
    "directory": member(b"link/new", DIRECTORY),
    "deeper": member(b"link/deep/new"),
    "symlink": member(b"link/new", SYMLINK, link=b"sentinel"),
    "fifo": member(b"link/new", FIFO),
    "mode": member(b"link", DIRECTORY, mode=0o777),
    "mode of a dot": member(b"link/.", DIRECTORY, mode=0o777),
    "hard link into": member(b"f") + member(b"link/new", HARD, link=b"f"),
    "hard link out of": member(b"h", HARD, link=b"link/sentinel"),
    "hard link to it": member(b"h", HARD, link=b"link"),
}


def links():
    for name, rest in WRITES.items():
        found = {"hard link to it": Damaged}.get(name, RestoreFailed)
        yield Case(f"through a symlink, {name}", through(b"../outside", rest), found)
        yield Case(f"through an absolute symlink, {name}", lambda out, rest=rest: through(out, rest), found)
        yield Case(
            f"before its symlink, {name}", tar(rest, member(b"link", SYMLINK, link=b"../outside")), RestoreFailed
        )
        yield Case(
            f"through a symlink that is there, {name}", tar(rest), found, lambda t: os.symlink("../outside", t / "link")
        )
    yield Case(
        "chain of symlinks",
        through(b"second", member(b"second", SYMLINK, link=b"../outside"), WRITES["file"]),
        RestoreFailed,
    )
    yield Case("symlink below a symlink", through(b"../outside", member(b"link/x", SYMLINK, link=b"y")), RestoreFailed)
    yield Case(
        "over a symlink that is there",
        tar(member(b"link", data=b"x")),
        {b"link"},
        lambda t: os.symlink("../outside/sentinel", t / "link"),
    )
    yield Case(
        "over a hard link that is there",
        lambda out: tar(member(b"hard", data=b"x")),
        {b"hard"},
        lambda t: (t / "hard").write_bytes(b"y"),
    )
    for name, link in (("parent", b"../outside"), ("itself", b"link"), ("odd", b"\x1b[31m\n\xff"), ("spaces", b" ")):
        yield Case(f"symlink alone, {name}", through(link), {b"link"})
    yield Case("symlink alone, absolute", through, {b"link"})
    yield Case("symlink to nothing", through(b""), RestoreFailed)
    yield Case("symlink longer than a path", through(b"x/" * 2100), RestoreFailed)
    yield Case("symlink with a zero byte", through(b"a\0b"), Damaged)
    for what, path in LEADING_OUT.items():
        yield Case(
            f"hard link {what}", tar(member(b"a", DIRECTORY), member(b"b"), member(b"h", HARD, link=path)), Damaged
        )
    yield Case("hard link absolute", lambda out: tar(member(b"h", HARD, link=out + b"/sentinel")), Damaged)
    for name, members in {
        "a directory": [member(b"d", DIRECTORY), member(b"h", HARD, link=b"d")],
        "a fifo": [member(b"p", FIFO), member(b"h", HARD, link=b"p")],
        "a symlink": [member(b"l", SYMLINK, link=b"../outside/sentinel"), member(b"h", HARD, link=b"l")],
        "the root": [member(b"h", HARD, link=b".")],
        "no name": [member(b"h", HARD)],
        "a zero byte": [member(b"h", HARD, link=b"a\0b")],
    }.items():
        yield Case(f"hard link to {name}", tar(*members), Damaged)
    for name, link in (("itself", b"h"), ("what is missing", b"d/missing"), ("below a file", b"f/x")):
        yield Case(f"hard link to {name}", tar(member(b"f"), member(b"h", HARD, link=link)), RestoreFailed)
    yield Case("hard link to what follows", tar(member(b"h", HARD, link=b"f"), member(b"f")), {b"h", b"f"})
    yield Case("hard link with data", tar(member(b"f"), member(b"h", HARD, link=b"f", data=b"x" * 600)), Damaged)
    yield Case(
        "file over a hard link", tar(member(b"f"), member(b"h", HARD, link=b"f"), member(b"h", data=b"x")), {b"f", b"h"}
    )
    yield Case("CVE-2025-4517, longer than a path", long_symlinks(), RestoreFailed)
    yield Case(
        "CVE-2025-4330, link to a link",
        tar(member(b"a", SYMLINK, link=b".."), member(b"a/b", SYMLINK, link=b"outside"), member(b"a/b/new")),
        RestoreFailed,
    )
    yield Case(
        "CVE-2025-4138, link that leads back",
        tar(member(b"d", DIRECTORY), member(b"l", SYMLINK, link=b"d/../../outside"), member(b"l/new")),
        RestoreFailed,
    )
    yield Case(
        "CVE-2024-12718, metadata of the parent",
        tar(member(b"l", SYMLINK, link=b".."), member(b"l/outside", DIRECTORY, mode=0o777)),
        RestoreFailed,
    )


def long_symlinks():
    """Directories whose expanded names are longer than realpath looks at, and a way out behind them."""
    members, path = [], b""
    for letter in b"abcdefghijklmnop":
        directory = b"d" * 247
        members += [member(path + directory, DIRECTORY), member(path + bytes([letter]), SYMLINK, link=directory)]
        path += directory + b"/"
    short = b"/".join(bytes([letter]) for letter in b"abcdefghijklmnop")
    members += [
        member(short + b"/" + b"l" * 254, SYMLINK, link=b"../" * 16),
        member(b"escape", SYMLINK, link=short + b"/" + b"l" * 254 + b"/../outside"),
        member(b"escape/new", data=b"x"),
    ]
    return tar(*members)


ODD = {
    "escape": b"\x1b[31mred\x1b]0;title\x07",
    "newline": b"a\naquad: all is well",
    "return": b"a\rb",
    "bidi": "a\u202etxt.exe".encode(),
    "isolate": "a\u2066b\u2069".encode(),
    "not UTF-8": b"\xff\xfe\x80",
    "C1": "\x9b31m".encode(),
    "line separator": "a\u2028b\u2029c".encode(),
    "half a surrogate": b"\xed\xa0\x80",
    "tag": "\U000e0041".encode(),
    "zero width": "a\u200b\ufeffb".encode(),
    "private": "\ue000\U0010ffff".encode(),
    "backslash": rb"\n\x1b",
    "delete": b"a\x7f\x08",
}


def odd_names():
    for name, odd in ODD.items():
        yield Case(f"odd name {name}", tar(member(odd)), {odd})
        yield Case(f"odd name {name} leads out", tar(member(b"../" + odd)), Damaged)
        yield Case(f"odd name {name} in the way", tar(member(odd), member(odd + b"/x")), RestoreFailed)
        yield Case(f"odd name {name} of an unknown type", tar(member(odd, b"Z")), Damaged)
        yield Case(f"odd name {name} of an attribute", tar(pax({b"SCHILY.xattr." + odd: b"x"}), block(b"f")), {b"f"})
        yield Case(f"odd name {name} without its data", gz(member(odd, size=600)), Damaged)
        yield Case(
            f"odd name {name} of a lying map",
            tar(pax({b"GNU.sparse.map": b"0,5", b"GNU.sparse.size": b"1"}), member(odd, data=b"xxxxx")),
            Damaged,
        )


def kinds():
    made = {b"n"} if ROOT else set()
    yield Case("char device", tar(member(b"n", CHAR)), made)
    yield Case("block device", tar(member(b"n", DEVICE, device=(8, 0))), made)
    yield Case("device of impossible numbers", tar(member(b"n", CHAR, device=(2**40, 1))), Damaged)
    yield Case("file over a device", tar(member(b"n", CHAR), member(b"n", data=b"x")), {b"n"})
    yield Case("below a device", tar(member(b"n", FIFO), member(b"n/x")), RestoreFailed)
    yield Case("fifo", tar(member(b"n", FIFO)), {b"n"})
    yield Case("file over a fifo", tar(member(b"n", FIFO), member(b"n", data=b"x")), {b"n"})
    yield Case("fifo over a file", tar(member(b"n", data=b"x"), member(b"n", FIFO)), {b"n"})
    yield Case("file over a directory", tar(member(b"n", DIRECTORY), member(b"n")), RestoreFailed)
    yield Case("directory over a file", tar(member(b"n"), member(b"n", DIRECTORY)), RestoreFailed)
    yield Case("directory twice", tar(member(b"n", DIRECTORY), member(b"n", DIRECTORY, mode=0)), {b"n"})
    for kind in b"789ABDMNVZ\x01\xff":
        yield Case(f"type {bytes([kind])!a}", tar(block(b"f", bytes([kind]))), Damaged)
    for kind in b"xgLKX":
        yield Case(
            f"type {bytes([kind])!a} before the end",
            tar(block(b"f", bytes([kind]), size=3) + b"a=b".ljust(BLOCK, b"\0")),
            Damaged,
        )
    yield Case("setuid and setgid", tar(member(b"f", mode=0o6755)), {b"f"})
    yield Case("more mode than there is", tar(member(b"f", mode=0o177777)), {b"f"})
    for key, value in (("uid", 2**40), ("uid", -1), ("gid", 2**32 - 1), ("mtime", 2**80), ("mtime", -(2**70))):
        yield Case(f"{key} {value}", tar(member(b"f", **{key: value})), Damaged)
    yield Case("before 1970", tar(member(b"f", mtime=-(10**9))), {b"f"})
    for name, value in {
        "security.capability": b"\x01\0\0\x02\0\x20\0\0" + bytes(12),
        "trusted.overlay.opaque": b"y",
        "system.posix_acl_access": b"junk",
        "user.large": b"x" * 100_000,
        "nonsense": b"x",
        "": b"x",
        "user." + "n" * 300: b"x",
    }.items():
        yield Case(f"attribute {name[:30]}", tar(pax({b"SCHILY.xattr." + name.encode(): value}), block(b"f")), {b"f"})


CASES = [*paths(), *links(), *odd_names(), *kinds()]
