"""What Connect's unary and streaming calls have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc._core.timeout import format_connect_timeout, parse_connect_timeout
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ServerSettings
    from connectrpc._core.http import RequestHead
    from connectrpc.deadline import Deadline

__all__ = ["check_version", "connect_timeout", "open_deadline"]


def check_version(head: RequestHead, settings: ServerSettings) -> None:
    """Connect "Protocol-Version".

    Raises:
        ConnectError: ``invalid_argument``: the version is not one that we speak, or is missing where it is required.
    """
    version = head.connect_protocol_version
    if version is None:
        if settings.require_connect_protocol_header:
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the header connect-protocol-version is required")
    elif version != "1":
        raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "connect-protocol-version must be 1")


def open_deadline(head: RequestHead, settings: ServerSettings) -> Deadline:
    """The deadline of a call.

    Raises:
        ConnectError: ``invalid_argument``: the timeout cannot be read.
    """
    value = head.connect_timeout_ms
    return settings.deadline(None if value is None else parse_connect_timeout(value))


def connect_timeout(milliseconds: int) -> tuple[str, str] | None:
    """The header that tells a server how long a call may take."""
    value = format_connect_timeout(milliseconds)
    return None if value is None else ("connect-timeout-ms", value)
