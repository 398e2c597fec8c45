"""Zstandard (RFC 8878), with the standard library from Python 3.14 on and the extra ``zstd`` before it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from connectrpc.compression import TooLargeError

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

__all__ = ["ZstdCompression"]

_STEP = 128 * 1024
_SLICE = 64 * 1024
_MAX_FRAMES = 256  # each costs a new context; senders use one
# RFC 9659: a decoder of Content-Encoding zstd need not accept a window above 8 MiB, and an encoder must not use one.
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


class ZstdCompression:
    """Zstandard.

    Args:
        level: 1 (fast) to 19 (small); higher ones would need a window that receivers refuse.
    """

    name = "zstd"

    def __init__(self, level: int = 3) -> None:
        self._level = level

    def compress(self, data: bytes) -> bytes:
        return zstd.compress(data, level=self._level)

    def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
        parts = []
        left = max_bytes
        taken = 0
        pending = b""
        for _ in range(_MAX_FRAMES):  # RFC 8878 section 3 lets several frames follow one another
            frame = zstd.ZstdDecompressor(options=_OPTIONS)
            while not frame.eof:
                if frame.needs_input and not pending:
                    # In slices: what follows a frame is copied at its end.
                    pending = data[taken : taken + _SLICE]
                    taken += len(pending)
                    if not pending:
                        raise EOFError("the zstd data is incomplete")
                part = frame.decompress(pending, _STEP if left is None else min(_STEP, left + 1))
                pending = b""
                if left is not None:
                    left -= len(part)
                    if left < 0:
                        raise TooLargeError
                parts.append(part)
            pending = frame.unused_data
            if not pending and taken >= len(data):
                return b"".join(parts)
        raise ValueError(f"the zstd data has more than {_MAX_FRAMES} frames")
