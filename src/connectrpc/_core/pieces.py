"""What is collected until it is whole, such as a message that comes in many pieces."""

from __future__ import annotations

__all__ = ["Pieces", "keep"]

Pieces = list[bytes | bytearray]
"""To be joined when the last one is there. Add to it with ``keep``."""

_FEW = 32
_SMALL = 1024


def keep(pieces: Pieces, piece: bytes) -> None:
    """Add ``piece``, in memory of about its own size.

    A few pieces, and large ones, are not copied before all are joined. But an object for each byte would take thirty
    times as much as the byte: so small ones, when there are many, are copied into a buffer that grows.
    """
    if len(piece) >= _SMALL or len(pieces) < _FEW:
        pieces.append(piece)
    elif type(pieces[-1]) is bytearray:
        pieces[-1] += piece
    else:
        pieces.append(bytearray(piece))
