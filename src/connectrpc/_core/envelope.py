"""Envelopes: the five-byte framing of streams. What the flags mean is for the protocols to say.

Layout (Connect "Streaming RPCs", gRPC "Length-Prefixed-Message"): one byte of flags, four bytes of length, most
significant first, then that many bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from connectrpc._core.pieces import keep
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from connectrpc._core.pieces import Pieces

__all__ = ["COMPRESSED", "HEADER_SIZE", "LAST_MAX_BYTES", "EnvelopeReader", "envelope"]

HEADER_SIZE = 5
COMPRESSED = 0x01
"""The one flag that all protocols share."""

LAST_MAX_BYTES = 64 * 1024
"""How long the envelope that ends an answer may be, however short messages have to be."""

_HEADER = struct.Struct(">BI")
_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from
_MAX_LENGTH = 0xFFFFFFFF


def envelope(flags: int, payload: bytes) -> bytes:
    """``payload`` in its envelope."""
    if len(payload) > _MAX_LENGTH:
        raise ConnectError(ConnectErrorCode.RESOURCE_EXHAUSTED, "the message is too long for its envelope: 4 GiB")
    return _pack_header(flags, len(payload)) + payload


class EnvelopeReader:
    """Takes a stream apart, whatever pieces it comes in. A payload is copied once, and twice if the pieces are tiny.

    Args:
        max_bytes: the longest payload to accept, or None. One that announces more fails before any of it is kept.
        last: the flag of an envelope that is no message, and to which ``LAST_MAX_BYTES`` applies if that is more.
    """

    __slots__ = ("_buffered", "_flags", "_last", "_length", "_max_bytes", "_parts")

    def __init__(self, max_bytes: int | None, last: int = 0) -> None:
        self._max_bytes = max_bytes
        self._last = last
        self._flags = 0
        self._length: int | None = None  # of the payload; None while its header is not complete
        self._parts: Pieces = []  # of the header or payload that is not complete
        self._buffered = 0  # bytes in the parts

    @property
    def missing(self) -> int:
        """How many bytes complete the next header or payload: reading just as many never waits for a later one."""
        return (HEADER_SIZE if self._length is None else self._length) - self._buffered

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here: no envelope has been begun."""
        return self._length is None and not self._buffered

    def whole(self, data: bytes) -> bytes | None:
        """The payload, where ``data`` is nothing but one envelope without flags, as servers send most messages.

        Else None, and ``data`` is to be fed. Which would give the same, by a longer way.
        """
        size = len(data) - HEADER_SIZE
        if size >= 0 and self._length is None and not self._buffered:
            flags, length = _unpack_header(data)
            if length == size and not flags and (self._max_bytes is None or length <= self._max_bytes):
                return data[HEADER_SIZE:]
        return None

    def feed(self, data: bytes) -> Iterable[tuple[int, bytes]]:
        """The flags and payload of every envelope that ``data`` completes.

        Exhaust what is given before feeding again.

        Raises:
            ConnectError: ``resource_exhausted``, after the envelopes before the one that is too long.
        """
        size = len(data)
        missing = self.missing
        # No generator for the pieces of a reader that asks for what is missing.
        if size > missing:
            return self._feed(data)
        if size < missing:
            keep(self._parts, data)
            self._buffered += size
            return ()
        whole = self._join(data) if self._parts else data
        if self._length is None:
            self._begin(*_HEADER.unpack(whole))
            if self._length:
                return ()
            whole = b""
        self._length = None
        return ((self._flags, whole),)

    def _begin(self, flags: int, length: int) -> None:
        limit = self._max_bytes
        if limit is not None and length > limit and not (flags & self._last and length <= LAST_MAX_BYTES):
            raise ConnectError(
                ConnectErrorCode.RESOURCE_EXHAUSTED,
                f"a message of {length} bytes is larger than the limit of {limit}",
            )
        self._flags, self._length = flags, length

    def _feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        position, size, limit = 0, len(data), self._max_bytes
        while True:
            if self._length is None and not self._buffered:
                # What most of a busy stream is: envelopes that are there as a whole.
                while (start := position + HEADER_SIZE) <= size:
                    flags, length = _unpack_header(data, position)
                    stop = start + length
                    if stop > size or (limit is not None and length > limit):
                        break
                    position = stop
                    yield flags, data[start:stop]
                if position == size:
                    return
            if self._length is None:
                header, position = self._take(data, position, HEADER_SIZE)
                if header is None:
                    return
                self._begin(*_HEADER.unpack(header))
            assert self._length is not None
            payload, position = self._take(data, position, self._length)
            if payload is None:
                return
            self._length = None
            yield self._flags, payload

    def _take(self, data: bytes, position: int, size: int) -> tuple[bytes | None, int]:
        """The next ``size`` bytes and where they end; None when ``data`` does not complete them, which is kept."""
        stop = position + size - self._buffered
        if stop > len(data):
            if position < len(data):
                keep(self._parts, data[position:])
                self._buffered += len(data) - position
            return None, len(data)
        piece = data[position:stop]
        return (self._join(piece) if self._parts else piece), stop

    def _join(self, last: bytes) -> bytes:
        """The header or payload that ``last`` completes."""
        self._parts.append(last)
        whole = b"".join(self._parts)
        self._parts.clear()
        self._buffered = 0
        return whole
