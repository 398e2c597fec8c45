"""What Connect's unary and streaming calls have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc._core.metadata import checked
from connectrpc._core.timeout import format_connect_timeout, parse_connect_timeout
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ClientSettings, ServerSettings
    from connectrpc._core.http import HeaderList, RequestHead
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput

__all__ = ["RequestHeaders", "check_version", "media_type", "open_deadline"]


def media_type(content_type: str | None) -> str:
    """The media type of a Content-Type header: without parameters, in lower case."""
    return (content_type or "").partition(";")[0].strip().lower()


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


class RequestHeaders:
    """The headers of a client's requests for one method.

    Args:
        settings: the client's.
        protocol_headers: those that every request carries.
    """

    __slots__ = ("_own", "_protocol", "_shared")

    def __init__(self, settings: ClientSettings, protocol_headers: HeaderList) -> None:
        own = checked(settings.extra_headers) if settings.extra_headers else []
        if not any(name == "user-agent" for name, _ in own):
            own.append(("user-agent", settings.user_agent))
        self._protocol = protocol_headers
        self._own = own
        self._shared = self._protocol + own

    def build(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HeaderList:
        """The headers of one request. What is given for one call stands instead of the client's of the same name.

        Raises:
            ValueError: ``extra_headers`` holds what cannot be sent.
        """
        if extra_headers:
            given = checked(extra_headers)
            names = {name for name, _ in given}
            headers = [*self._protocol, *(pair for pair in self._own if pair[0] not in names), *given]
        else:
            headers = self._shared.copy()
        if timeout_ms is not None:
            value = format_connect_timeout(timeout_ms)
            if value is not None:
                headers.append(("connect-timeout-ms", value))
        return headers
