"""How long a call may still take."""

from __future__ import annotations

import math
import time

from connectrpc.code import ConnectErrorCode
from connectrpc.errors import ConnectError

__all__ = ["NO_DEADLINE", "Deadline"]


class Deadline:
    """The moment by which a call has to be over, on the monotonic clock. Immutable.

    Attributes:
        timeout_ms: the time that the call was given, in milliseconds, or None when it may take for ever.
        expires_at: the moment itself, in the seconds of ``time.monotonic()``, or None.
    """

    __slots__ = ("expires_at", "timeout_ms")

    def __init__(self, timeout_ms: int | None) -> None:
        self.timeout_ms = timeout_ms
        self.expires_at = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000

    def remaining(self) -> float | None:
        """The seconds that are left, never below zero; None when there is no deadline."""
        if self.expires_at is None:
            return None
        return max(0.0, self.expires_at - time.monotonic())

    def remaining_ms(self) -> int | None:
        """The milliseconds that are left, as a request tells them: rounded up, and one at the least."""
        left = self.remaining()
        return None if left is None else max(1, math.ceil(left * 1000))

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.expires_at is not None and time.monotonic() >= self.expires_at

    def check(self) -> None:
        """Raise when the time is up.

        Raises:
            ConnectError: ``deadline_exceeded``.
        """
        if self.expired():
            raise ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")

    def __repr__(self) -> str:
        if self.expires_at is None:
            return "<Deadline: none>"
        return f"<Deadline: {self.remaining():.3f} s of {self.timeout_ms} ms left>"


NO_DEADLINE = Deadline(None)
"""Shared by all calls that have none."""
