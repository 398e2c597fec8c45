"""Envelopes: the five-byte framing of streams. What the flags mean is for the protocols to say.

Layout (Connect "Streaming RPCs", gRPC "Length-Prefixed-Message"): one byte of flags, four bytes of length, most
significant first, then that many bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMPRESSED", "HEADER_SIZE", "EnvelopeReader", "envelope"]

HEADER_SIZE = 5
COMPRESSED = 0x01
"""The one flag that all protocols share."""

_MAX_LENGTH = 0xFFFFFFFF


def envelope(flags: int, payload: bytes) -> bytes:
    """``payload`` in its envelope."""
    if len(payload) > _MAX_LENGTH:
        raise ConnectError(ConnectErrorCode.RESOURCE_EXHAUSTED, "the message is too long for its envelope: 4 GiB")
    return b"%c%b%b" % (flags, len(payload).to_bytes(4, "big"), payload)


class EnvelopeReader:
    """Takes a stream apart, whatever pieces it comes in. A payload is copied once.

    Args:
        max_bytes: the longest payload to accept, or None. One that announces more fails before any of it is kept.
    """

    __slots__ = ("_buffered", "_flags", "_length", "_max_bytes", "_parts")

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._flags = 0
        self._length: int | None = None  # of the payload; None while its header is not complete
        self._parts: list[bytes] = []  # of the header or payload that is not complete
        self._buffered = 0  # bytes in the parts

    @property
    def missing(self) -> int:
        """How many bytes complete the next header or payload: reading just as many never waits for a later one."""
        return (HEADER_SIZE if self._length is None else self._length) - self._buffered

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here: no envelope has been begun."""
        return self._length is None and not self._buffered

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The flags and payload of every envelope that ``data`` completes.

        Exhaust the iterator before feeding again.

        Raises:
            ConnectError: ``resource_exhausted``, after the envelopes before the one that is too long.
        """
        position = 0
        while True:
            if self._length is None:
                header, position = self._take(data, position, HEADER_SIZE)
                if header is None:
                    return
                self._flags = header[0]
                self._length = int.from_bytes(header[1:], "big")
                if self._max_bytes is not None and self._length > self._max_bytes:
                    raise ConnectError(
                        ConnectErrorCode.RESOURCE_EXHAUSTED,
                        f"a message of {self._length} bytes is larger than the limit of {self._max_bytes}",
                    )
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
                self._parts.append(data[position:])
                self._buffered += len(data) - position
            return None, len(data)
        piece = data[position:stop]
        if self._parts:
            self._parts.append(piece)
            piece = b"".join(self._parts)
            self._parts.clear()
            self._buffered = 0
        return piece, stop
