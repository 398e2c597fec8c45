"""HTTP as small plain records, which shells fill from and turn into what their libraries use."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multidict import CIMultiDict

__all__ = [
    "BODILESS",
    "HTTPRequest",
    "HeaderList",
    "HeaderView",
    "RequestHead",
    "ResponseHead",
    "WholeResponse",
    "address_of",
]

HeaderList = list[tuple[str, str]]
"""Names and values in the order in which they are sent."""

BODILESS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "TRACE"))
"""The HTTP methods whose requests have no body, unless they say its length or how it is coded: to wait for one may be
for ever, as on some servers with HTTP/2, where its end comes with the head."""


class RequestHead(abc.ABC):
    """The head of a request that came in: what the protocols look at, and a lazy view of everything else.

    Shells fill the slots from their native form. A header that was not sent is None.
    """

    __slots__ = (
        "accept_encoding",
        "can_send_trailers",
        "connect_accept_encoding",
        "connect_content_encoding",
        "connect_protocol_version",
        "connect_timeout_ms",
        "content_encoding",
        "content_type",
        "grpc_accept_encoding",
        "grpc_encoding",
        "grpc_timeout",
        "http_method",
        "path",
        "query",
    )

    can_send_trailers: bool
    """Whether the server's HTTP stack can send trailers after the body of an answer."""
    http_method: str
    path: str
    query: str
    content_type: str | None
    content_encoding: str | None
    accept_encoding: str | None
    connect_protocol_version: str | None
    connect_timeout_ms: str | None
    connect_content_encoding: str | None
    connect_accept_encoding: str | None
    grpc_timeout: str | None
    grpc_encoding: str | None
    grpc_accept_encoding: str | None

    @abc.abstractmethod
    def read_headers(self) -> CIMultiDict[str]:
        """All headers, as a handler sees them."""

    @abc.abstractmethod
    def peer_address(self) -> str:
        """``"host:port"`` of the caller, the host alone, or an empty string: what is known of it."""


def address_of(host: str, port: object) -> str:
    """What ``RequestHead.peer_address`` gives of what a server tells, which is 0 or nothing where there is no port."""
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{port}" if host and port and port != "0" else host


class ResponseHead:
    """The head of an answer that goes out before its body is complete."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: HeaderList) -> None:
        self.status = status
        self.headers = headers


class WholeResponse:
    """A whole answer. ``trailers`` is None for an answer that has none, not even an empty block of them."""

    __slots__ = ("body", "headers", "status", "trailers")

    def __init__(self, status: int, headers: HeaderList, body: bytes, trailers: HeaderList | None = None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.trailers = trailers


class HTTPRequest:
    """The head of a request that goes out. A length or a transfer coding is the HTTP library's to add."""

    __slots__ = ("headers", "method", "url")

    def __init__(self, method: str, url: str, headers: HeaderList) -> None:
        self.method = method
        self.url = url
        self.headers = headers


class HeaderView(Protocol):
    """The headers of an answer that came in, in the HTTP library's own mapping."""

    def get(self, name: str, /) -> str | None:
        """The value of a header in any letter case, or None."""
        ...

    def items(self) -> Iterable[tuple[str, str]]:
        """Names and values; a repeated name is repeated."""
        ...
