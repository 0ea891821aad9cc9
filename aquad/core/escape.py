"""Names come from the data, and data is hostile: what is printed or logged goes through here first."""

from __future__ import annotations


def escaped(name: str | bytes) -> str:
    r"""Return `name` on one line, without control characters, direction marks or undecodable bytes.

    Printable text stays as it is, in any script; a backslash is doubled; the rest becomes \n, \x1b, \xff, \u202e.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\\":
        return r"\\"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that was not UTF-8, kept by surrogateescape
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
