"""gzip (RFC 1952), with the standard library."""

from __future__ import annotations

import zlib

from connectrpc.compression import TooLargeError

__all__ = ["GzipCompression"]

_GZIP = 16 + zlib.MAX_WBITS
_STEP = 64 * 1024
_SLICE = 8 * 1024


class GzipCompression:
    """gzip.

    Args:
        level: 1 (fast) to 9 (small).
    """

    name = "gzip"

    def __init__(self, level: int = 6) -> None:
        self._level = level

    def compress(self, data: bytes) -> bytes:
        # Not gzip.compress: it writes the time into its header, so equal answers would differ.
        compressor = zlib.compressobj(self._level, zlib.DEFLATED, _GZIP)
        return compressor.compress(data) + compressor.flush()

    def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
        parts: list[bytes] = []
        left = max_bytes
        member = zlib.decompressobj(_GZIP)
        taken = 0
        pending = b""
        while True:
            if not pending:
                # In small slices: what follows a member is copied at its end.
                pending = data[taken : taken + _SLICE]
                taken += len(pending)
            if member.eof:  # RFC 1952 section 2.2 lets several members follow one another
                if not pending:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
                member = zlib.decompressobj(_GZIP)
            exhausted = not pending
            part = member.decompress(pending, _STEP if left is None else min(_STEP, left + 1))
            if exhausted and not part and not member.eof:
                raise EOFError("the gzip data is incomplete")
            if part:
                if left is not None:
                    left -= len(part)
                    if left < 0:
                        raise TooLargeError
                parts.append(part)
            pending = member.unused_data if member.eof else member.unconsumed_tail
