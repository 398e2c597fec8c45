"""gzip (RFC 1952), with the standard library."""

from __future__ import annotations

import zlib

from connectrpc.compression import TooLargeError

__all__ = ["GzipCompression"]

_GZIP = 16 + zlib.MAX_WBITS
_STEP = 64 * 1024


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
        parts = []
        left = None if max_bytes is None else max_bytes
        while True:  # a member each: RFC 1952 section 2.2 lets several follow one another
            member = zlib.decompressobj(_GZIP)
            pending = data
            while not member.eof:
                step = _STEP if left is None else min(_STEP, left + 1)
                part = member.decompress(pending, step)
                if not part and not member.eof:
                    raise EOFError("the gzip data is incomplete")
                if left is not None:
                    left -= len(part)
                    if left < 0:
                        raise TooLargeError
                parts.append(part)
                pending = member.unconsumed_tail
            data = member.unused_data
            if not data:
                return b"".join(parts) if len(parts) != 1 else parts[0]
