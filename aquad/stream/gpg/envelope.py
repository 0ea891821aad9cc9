"""Who can open an encrypted file, read from its first packets (RFC 4880, 4.2, 5.1, 5.3 and 5.13)."""

from __future__ import annotations

from typing import NamedTuple

HEAD_BYTES = 8 << 10
"""The packets that name the keys stand in so many first bytes: a key takes some 530, of 4096 bits."""
PUBLIC_KEY_SESSION, SYMMETRIC_SESSION, PROTECTED = 1, 3, 18
AES256 = 9


class Envelope(NamedTuple):
    """`key_ids`: 16 hexadecimal digits of each key that opens the file. `passphrases`: how many do, `ciphers` with which."""

    key_ids: list[str]
    passphrases: int
    ciphers: list[int]
    protected: bool
    """Whether what follows is encrypted data with a modification detection code."""


def envelope(head: bytes) -> Envelope:
    """Read the packets up to the encrypted one. Raises ValueError when this is no encrypted OpenPGP file."""
    key_ids: list[str] = []
    ciphers: list[int] = []
    position = 0
    while True:
        tag, start, length = _packet(head, position)
        body = head[start : start + length]
        if tag == PUBLIC_KEY_SESSION and len(body) > 9 and body[0] == 3:
            key_ids.append(body[1:9].hex().upper())
        elif tag == SYMMETRIC_SESSION and len(body) > 2 and body[0] == 4:
            ciphers.append(body[1])
        elif tag == PROTECTED:
            return Envelope(key_ids, len(ciphers), ciphers, protected=True)
        else:
            raise ValueError(f"packet of tag {tag}")
        position = start + length


def is_encrypted(head: bytes) -> bool:
    try:
        return envelope(head).protected
    except ValueError:
        return False


def _packet(head: bytes, position: int) -> tuple[int, int, int]:
    """Tag, offset and length of the body. Of data in pieces of its own lengths, that of the first piece."""
    if len(head) < position + 6 or not head[position] & 0x80:
        raise ValueError("no packet")
    first = head[position]
    if first & 0x40:
        tag, one = first & 0x3F, head[position + 1]
        if one < 192:
            return tag, position + 2, one
        if one < 224:
            return tag, position + 3, ((one - 192) << 8) + head[position + 2] + 192
        if one == 255:
            return tag, position + 6, int.from_bytes(head[position + 2 : position + 6])
        return tag, position + 2, 1 << (one & 0x1F)
    tag, size = (first & 0x3C) >> 2, 1 << (first & 3)
    if size == 8:
        return tag, position + 1, len(head)
    return tag, position + 1 + size, int.from_bytes(head[position + 1 : position + 1 + size])
