"""Unary calls of the Connect protocol by GET: the message is in the URL, so that HTTP caches can answer.

https://connectrpc.com/docs/protocol "Unary-Get-Request". Only for methods without side effects.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from connectrpc._core.call import wrong_input
from connectrpc._core.connect import connect_timeout, open_deadline
from connectrpc._core.connect_unary import ConnectUnaryClient, ConnectUnaryServerCall, accept_encoding
from connectrpc._core.http import HTTPRequest
from connectrpc._core.message import MessageWriter
from connectrpc._core.request_headers import RequestHeaders
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ClientSettings
    from connectrpc._core.connect_unary import ConnectUnaryServerMethod
    from connectrpc._core.http import HeaderList, RequestHead
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["ConnectGetClient", "ConnectGetServerCall", "parse_query"]


def parse_query(query: str) -> dict[str, str]:
    """The parameters of a query, the first of each name. A character stands for a byte."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, encoding="latin-1"):
        parameters.setdefault(name, value)
    return parameters


class ConnectGetServerCall(ConnectUnaryServerCall):
    """A unary call whose message is in the URL. What body there may be is passed over."""

    __slots__ = ("_query",)

    def __init__(self, server: ConnectUnaryServerMethod, head: RequestHead, query: dict[str, str]) -> None:
        super().__init__(server, head)
        self._query = query

    def open(self) -> None:
        settings, query = self._server.settings, self._query
        self._negotiate_response_compression(query.get("compression"))
        version = query.get("connect")
        if version is None:
            if settings.require_connect_protocol_header:
                raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the parameter connect=v1 is required")
        elif version != "v1":
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the parameter connect must be v1")
        for name in ("encoding", "message"):
            if name not in query:
                raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, f"the parameter {name} is missing")
        self.deadline = open_deadline(self.head, settings)
        self._request_compression = settings.find_compression(query.get("compression"))

    def receive(self, body: bytes) -> Any:  # noqa: ARG002
        message = self._query["message"].encode("latin-1")
        if self._query.get("base64") == "1":
            try:
                # Padding is optional.
                message = base64.b64decode(message + b"=" * (-len(message) % 4), altchars=b"-_", validate=True)
            except ValueError as error:
                raise ConnectError(
                    ConnectErrorCode.INVALID_ARGUMENT, "the parameter message is not URL-safe base64"
                ) from error
        return super().receive(message)

    def take(self, chunk: bytes) -> None:
        pass

    def _answer_headers(self, content_type: str) -> HeaderList:
        headers = super()._answer_headers(content_type)
        if self._server.settings.compressions:
            headers.append(("vary", "accept-encoding"))  # RFC 9110 section 12.5.5: for caches
        return headers


class ConnectGetClient(ConnectUnaryClient):
    """A unary method without side effects as one client calls it: by GET, unless the URL would be too long.

    Args:
        method: the method.
        settings: the client's, with a codec that has ``encode_deterministic``.
    """

    __slots__ = ("_get_headers", "_get_prefix", "_get_writer")

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        super().__init__(method, settings)
        self._get_prefix = f"{settings.base_url}{method.path}?connect=v1"
        self._get_headers = RequestHeaders(settings, [accept_encoding(settings)], connect_timeout)
        codec: Any = settings.codec
        self._get_writer = MessageWriter(
            codec.encode_deterministic,
            settings.send_compression,
            settings.compress_min_bytes,
            settings.send_max_bytes,
        )

    def request(
        self, message: Any, extra_headers: HeaderInput | None, timeout_ms: int | None
    ) -> tuple[HTTPRequest, bytes | None]:
        if not isinstance(message, self._method.input):
            raise wrong_input(self._method, message)
        url = self._url_of(message)
        if len(url) > self._settings.get_url_max_bytes:
            return super().request(message, extra_headers, timeout_ms)
        return HTTPRequest("GET", url, self._get_headers.build(extra_headers, timeout_ms)), None

    def _url_of(self, message: Any) -> str:
        """Equal messages have equal URLs: the encoding is deterministic, and the parameters stand in the order that the
        protocol recommends, so that caches know them from other clients too."""
        codec = self._settings.codec
        payload, compressed = self._get_writer.write(message)
        url = self._get_prefix
        if compressed or codec.name != "json":
            url += "&base64=1"
            text = base64.urlsafe_b64encode(payload).decode().rstrip("=")
        else:
            text = quote(payload, safe="")
        if compressed:
            assert self._settings.send_compression is not None
            url += f"&compression={self._settings.send_compression.name}"
        return f"{url}&encoding={codec.name}&message={text}"
