"""Envelopes and HTTP chunks by hand: what the load generators and responders are given ready-made."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["END", "LAST_CHUNK", "chunked", "dechunked", "envelope", "envelopes", "head_of", "unchunk"]

LAST_CHUNK = b"0\r\n\r\n"


def envelope(payload: bytes, flags: int = 0) -> bytes:
    """One message as streams of the Connect protocol frame it."""
    return struct.pack(">BI", flags, len(payload)) + payload


END = envelope(b"{}", 2)
"""The last envelope of an answer to a call that went well."""


def envelopes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The flags and payloads in a whole body."""
    position = 0
    while position < len(data):
        flags, size = struct.unpack_from(">BI", data, position)
        position += 5 + size
        if position > len(data):
            raise ValueError("the body ends inside an envelope")
        yield flags, data[position - size : position]


def chunked(parts: Iterable[bytes]) -> bytes:
    """A body in HTTP's chunked coding, a chunk for each part."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + LAST_CHUNK


def unchunk(data: bytes) -> tuple[bytes, int] | None:
    """What is in a chunked body that ``data`` begins with, and its length with the coding; None when it goes on."""
    parts: list[bytes] = []
    position = 0
    while True:
        stop = data.find(b"\r\n", position)
        if stop < 0:
            return None
        size = int(data[position:stop], 16)
        position = stop + 2 + size + 2
        if len(data) < position:
            return None
        if not size:
            return b"".join(parts), position
        parts.append(data[stop + 2 : position - 2])


def dechunked(data: bytes) -> bytes | None:
    """What is in a chunked body, or None when there is more to come."""
    found = unchunk(data)
    return None if found is None else found[0]


def head_of(data: bytes) -> tuple[bytes, bytes] | None:
    """The head, with the empty line, and what follows; None while it is not complete."""
    head, blank, rest = data.partition(b"\r\n\r\n")
    return (head + blank, rest) if blank else None
