"""The timeout headers."""

from __future__ import annotations

import math
import re

from connectrpc.errors import ConnectError, ConnectErrorCode

__all__ = ["format_connect_timeout", "parse_connect_timeout", "timeout_ms"]

# Connect "Timeout-Milliseconds": positive integer as ASCII string of at most 10 digits.
_CONNECT_TIMEOUT = re.compile("[0-9]{1,10}", re.ASCII)
_CONNECT_MAX = 10**10 - 1


def timeout_ms(seconds: float) -> int:
    """A timeout as callers give it, in whole milliseconds: rounded up, so that it never comes out as none at all.

    Raises:
        ValueError: it is not a number.
        ConnectError: ``deadline_exceeded``: it is zero or less, so the time is up before anything is sent.
    """
    if math.isnan(seconds):
        raise ValueError("a timeout must be a number of seconds, not NaN")
    if seconds <= 0:
        raise ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the timeout was over before the call began")
    # Beyond what the header can say, a deadline is months away: no clock or lock has to deal with more.
    return math.ceil(min(seconds * 1000, _CONNECT_MAX + 1))


def format_connect_timeout(milliseconds: int) -> str | None:
    """The value of ``Connect-Timeout-Ms``; None when it cannot be said in ten digits, which is more than 115 days."""
    return str(milliseconds) if milliseconds <= _CONNECT_MAX else None


def parse_connect_timeout(value: str) -> int:
    """The milliseconds of ``Connect-Timeout-Ms``.

    Raises:
        ConnectError: ``invalid_argument``.
    """
    if _CONNECT_TIMEOUT.fullmatch(value) is None:
        raise ConnectError(
            ConnectErrorCode.INVALID_ARGUMENT,
            "connect-timeout-ms must be a whole number of at most 10 digits",
        )
    return int(value)
