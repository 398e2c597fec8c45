"""The timeout headers."""

from __future__ import annotations

import math
import re

from connectrpc.errors import ConnectError, ConnectErrorCode

__all__ = [
    "check_seconds",
    "format_connect_timeout",
    "format_grpc_timeout",
    "parse_connect_timeout",
    "parse_grpc_timeout",
    "timeout_ms",
]

# Connect "Timeout-Milliseconds": positive integer as ASCII string of at most 10 digits.
_CONNECT_TIMEOUT = re.compile("[0-9]{1,10}", re.ASCII)
_CONNECT_MAX = 10**10 - 1

# gRPC "Timeout": a positive integer as ASCII string of at most 8 digits, and a unit.
_GRPC_TIMEOUT = re.compile("([0-9]{1,8})([HMSmun])", re.ASCII)
_GRPC_MAX = 10**8 - 1
_NANOSECONDS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}


def check_seconds(name: str, seconds: float) -> None:
    """Refuse what no option that is a number of seconds can be.

    Args:
        name: the option's.
        seconds: its value.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive, or NaN.
    """
    try:
        positive = seconds > 0
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}") from None
    if not positive:
        raise ValueError(f"{name} must be positive, not {seconds}")


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


def format_grpc_timeout(milliseconds: int) -> str:
    """The value of ``grpc-timeout``, in the finest unit that eight digits have room for, rounded up."""
    for unit, divisor in (("m", 1), ("S", 1000), ("M", 60_000), ("H", 3_600_000)):
        value = -(-milliseconds // divisor)
        if value <= _GRPC_MAX:
            return f"{value}{unit}"
    return f"{_GRPC_MAX}H"


def parse_grpc_timeout(value: str) -> int:
    """The milliseconds of ``grpc-timeout``, rounded up; zero is a deadline that has passed.

    Raises:
        ConnectError: ``invalid_argument``.
    """
    found = _GRPC_TIMEOUT.fullmatch(value)
    if found is None:
        raise ConnectError(
            ConnectErrorCode.INVALID_ARGUMENT, "grpc-timeout must be a whole number of at most 8 digits and a unit"
        )
    nanoseconds = int(found[1]) * _NANOSECONDS[found[2]]
    return min(-(-nanoseconds // 10**6), _CONNECT_MAX)
