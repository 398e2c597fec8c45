"""Brotli (RFC 7932), with the extra ``br``."""

from __future__ import annotations

from brotli import Decompressor, compress

from connectrpc.compression import TooLargeError

__all__ = ["BrotliCompression"]

# Other packages bring older ones, which inflate whatever they are given without a bound.
if not hasattr(Decompressor, "can_accept_more_data"):
    raise ImportError("brotli 1.2 or later is needed")

_STEP = 64 * 1024


class BrotliCompression:
    """Brotli.

    Args:
        quality: 0 (fast) to 11 (small, and far too slow for answers that are made on the spot).
    """

    name = "br"

    def __init__(self, quality: int = 4) -> None:
        self._quality = quality

    def compress(self, data: bytes) -> bytes:
        compressed: bytes = compress(data, quality=self._quality)
        return compressed

    def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
        decompressor = Decompressor()
        parts = []
        left = max_bytes
        while not decompressor.is_finished():
            # The limit is soft by a block of the library's own buffer: memory stays bounded all the same.
            part = decompressor.process(data, output_buffer_limit=_STEP if left is None else min(_STEP, left + 1))
            data = b""
            if left is not None:
                left -= len(part)
                if left < 0:
                    raise TooLargeError
            parts.append(part)
            if not part and decompressor.can_accept_more_data() and not decompressor.is_finished():
                raise EOFError("the brotli data is incomplete")
        return b"".join(parts)
