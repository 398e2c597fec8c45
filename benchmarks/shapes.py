"""What is in the streams. Apart from `work` because it needs no generated code."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GRPC_SHAPES", "KINDS", "LONG", "SHAPES", "SHORT", "Shape"]


class Shape(NamedTuple):
    """How many messages one stream has, and how long the bytes in each are."""

    messages: int
    size: int

    @property
    def data(self) -> bytes:
        """The bytes in a message."""
        return b"x" * self.size


# A call takes some ten milliseconds.
SHAPES = {"small": Shape(1000, 32), "large": Shape(16, 1024 * 1024)}

GRPC_SHAPES = {"small": SHAPES["small"], "medium": Shape(64, 64 * 1024)}
"""The shapes of gRPC streams, which are compared with grpcio."""

KINDS = ("download", "upload", "echo")
"""The kinds of streams: of answers, of requests, of both."""

LONG = Shape(1024, 1024 * 1024)
"""What `memory` has go through; after a stream that is too short to matter."""
SHORT = Shape(100, 32)
