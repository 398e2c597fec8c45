"""The headers of requests, in all protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc._core.metadata import checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.call import ClientSettings
    from connectrpc._core.http import HeaderList
    from connectrpc.headers import HeaderInput

__all__ = ["RequestHeaders", "media_type"]


def media_type(content_type: str | None) -> str:
    """The media type of a Content-Type header: without parameters, in lower case."""
    return (content_type or "").partition(";")[0].strip().lower()


class RequestHeaders:
    """The headers of a client's requests for one method.

    Args:
        settings: the client's.
        protocol_headers: those that every request carries.
        timeout: the header for a timeout in milliseconds, or None when it cannot be said.
    """

    __slots__ = ("_own", "_protocol", "_shared", "_timeout")

    def __init__(
        self, settings: ClientSettings, protocol_headers: HeaderList, timeout: Callable[[int], tuple[str, str] | None]
    ) -> None:
        self._timeout = timeout
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
            header = self._timeout(timeout_ms)
            if header is not None:
                headers.append(header)
        return headers
