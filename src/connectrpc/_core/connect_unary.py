"""Unary calls of the Connect protocol: the message is the body.

https://connectrpc.com/docs/protocol "Unary-Request", "Unary-Response".
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import ServerCall, UnaryClient, wrong_input
from connectrpc._core.connect import check_version, connect_timeout, open_deadline
from connectrpc._core.envelope import LAST_MAX_BYTES
from connectrpc._core.http import HTTPRequest, WholeResponse
from connectrpc._core.message import (
    MessageReader,
    MessageWriter,
    choose_compression,
    compress,
    decompress,
    encode,
    encoder_of,
    limited,
    too_large,
)
from connectrpc._core.metadata import TRAILER_PREFIX, checked, split_trailers
from connectrpc._core.pieces import keep
from connectrpc._core.plain import PlainServerMethod
from connectrpc._core.request_headers import RequestHeaders, media_type
from connectrpc._core.wire_error import error_from_http, error_from_json, error_to_json
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.call import ClientSettings, ServerSettings
    from connectrpc._core.http import HeaderList, HeaderView, RequestHead
    from connectrpc._core.metadata import Metadata
    from connectrpc._core.pieces import Pieces
    from connectrpc.codec import Codec
    from connectrpc.compression import Compression
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = [
    "ConnectUnaryClient",
    "ConnectUnaryServerCall",
    "ConnectUnaryServerMethod",
    "accept_encoding",
]


class ConnectUnaryServerMethod(PlainServerMethod):
    """A unary method in one codec."""

    __slots__ = ("media_type", "media_types")

    plain_required = (("connect-protocol-version", "1"),)
    plain_refused = frozenset({"connect-timeout-ms", "content-encoding"})

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        self.media_type = f"application/{codec.name}"
        self.media_types = (self.media_type,)
        self.plain_headers = (("content-type", self.media_type),)
        self.plain_trailers = None

    def call(self, head: RequestHead) -> ConnectUnaryServerCall:
        return ConnectUnaryServerCall(self, head)


class ConnectUnaryServerCall(ServerCall):
    """A unary call."""

    __slots__ = ("_parts", "_received", "_request_compression", "_response_compression", "_server")

    protocol = "connect"

    def __init__(self, server: ConnectUnaryServerMethod, head: RequestHead) -> None:
        super().__init__(server.method, head)
        self._server = server
        self._request_compression: Compression | None = None
        self._response_compression: str | None = None
        self._parts: Pieces | None = None
        self._received = 0

    def open(self) -> None:
        head, settings = self.head, self._server.settings
        self._negotiate_response_compression(head.content_encoding)
        if head.connect_protocol_version != "1":
            check_version(head, settings)
        self.deadline = open_deadline(head, settings)
        if head.content_encoding is not None:
            self._request_compression = settings.find_compression(head.content_encoding)

    def _negotiate_response_compression(self, sent: str | None) -> None:
        if self.head.accept_encoding is not None or sent is not None:
            self._response_compression = choose_compression(
                self.head.accept_encoding, sent, self._server.settings.compressions
            )

    def receive(self, body: bytes) -> Any:
        settings = self._server.settings
        if settings.read_max_bytes is not None and len(body) > settings.read_max_bytes:
            raise too_large(settings.read_max_bytes)
        if self._request_compression is not None:
            body = decompress(
                self._request_compression, body, settings.read_max_bytes, ConnectErrorCode.INVALID_ARGUMENT
            )
        return self._server.reader.read(body, False)

    def take(self, chunk: bytes) -> None:
        if self._parts is None:
            self._parts = []
        self._received += len(chunk)
        limit = self._server.settings.read_max_bytes
        if limit is not None and self._received > limit:
            self._parts.clear()
            raise too_large(limit)
        keep(self._parts, chunk)

    def taken(self) -> Any:
        body, self._parts = b"".join(self._parts or ()), None  # not there twice while the message is made of it
        return self.receive(body)

    def whole_body_limit(self) -> int | None:
        return self._server.settings.read_max_bytes

    def respond(self, message: Any, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        return self.respond_with(encode(self._server.encoder, message), headers, trailers)

    def respond_with(self, body: bytes, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        body = limited(body, self._server.settings.send_max_bytes)
        pairs = self._answer_headers(self._server.media_type)
        if self._response_compression is not None:
            settings = self._server.settings
            compression = settings.compressions[self._response_compression]
            body, compressed = compress(compression, body, settings.compress_min_bytes)
            if compressed:
                pairs.append(("content-encoding", compression.name))
        return _whole(200, pairs, body, headers, trailers)

    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> WholeResponse:
        # Never compressed: one thing less that can go wrong where something has.
        pairs = self._answer_headers("application/json")
        return _whole(error.code.http_status, pairs, error_to_json(error), headers, trailers)

    def _answer_headers(self, content_type: str) -> HeaderList:
        return [("content-type", content_type)]


def accept_encoding(settings: ClientSettings) -> tuple[str, str]:
    """The header of a request. Always sent: without it, HTTP libraries and proxies would accept what we do not know."""
    return "accept-encoding", ", ".join(settings.accept_compressions) or "identity"


def _whole(
    status: int, pairs: HeaderList, body: bytes, headers: HeaderInput | None, trailers: HeaderInput | None
) -> WholeResponse:
    pairs.append(("content-length", str(len(body))))
    if headers:
        pairs.extend(checked(headers))
    if trailers:
        pairs.extend((TRAILER_PREFIX + name, value) for name, value in checked(trailers))
    return WholeResponse(status, pairs, body)


class ConnectUnaryClient(UnaryClient):
    """A unary method as one client calls it."""

    __slots__ = ("_headers", "_media_type", "_method", "_reader", "_settings", "_url", "_writer", "body_limit")

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self._method = method
        self._settings = settings
        self._url = settings.base_url + method.path
        self._media_type = f"application/{settings.codec.name}"
        self._writer = MessageWriter(
            encoder_of(settings.codec, method.input),
            settings.send_compression,
            settings.compress_min_bytes,
            settings.send_max_bytes,
        )
        self._reader = MessageReader(settings.codec, method.output, None, None, ConnectErrorCode.INTERNAL)
        self._headers = RequestHeaders(
            settings,
            [
                ("content-type", self._media_type),
                ("connect-protocol-version", "1"),
                accept_encoding(settings),
            ],
            connect_timeout,
        )
        # That of an error, as for the end of a stream. A message has its own.
        self.body_limit = None if settings.read_max_bytes is None else max(settings.read_max_bytes, LAST_MAX_BYTES)

    def request(
        self, message: Any, extra_headers: HeaderInput | None, timeout_ms: int | None
    ) -> tuple[HTTPRequest, bytes | None]:
        if not isinstance(message, self._method.input):
            raise wrong_input(self._method, message)
        headers = self._headers.build(extra_headers, timeout_ms)
        body, compressed = self._writer.write(message)
        if compressed:
            assert self._settings.send_compression is not None
            headers.append(("content-encoding", self._settings.send_compression.name))
        return HTTPRequest("POST", self._url, headers), body

    def response(
        self,
        status: int,
        headers: HeaderView,
        body: bytes,
        trailers: HeaderView | None = None,  # noqa: ARG002  they are headers here
    ) -> tuple[Any, Callable[[], Metadata]]:
        metadata = functools.partial(_metadata, headers)
        try:
            return self._message(status, headers, body), metadata
        except ConnectError as error:
            error._read_metadata = metadata
            raise

    def _message(self, status: int, headers: HeaderView, body: bytes) -> Any:
        content_type = headers.get("content-type")
        if status != 200:
            raise self._error(status, media_type(content_type), headers, body)
        if content_type != self._media_type:
            self._check_media_type(media_type(content_type))
        return self._reader.read(self._decompress(headers, body, self._settings.read_max_bytes), False)

    def _check_media_type(self, received: str) -> None:
        if received == self._media_type:
            return
        # Connect's other codecs mean a server that answers another question than ours; all else is no Connect at all.
        code = (
            ConnectErrorCode.INTERNAL
            if received in ("application/proto", "application/json")
            else ConnectErrorCode.UNKNOWN
        )
        raise ConnectError(code, f"the answer's content-type is {received!r}, not {self._media_type!r}")

    def _decompress(self, headers: HeaderView, body: bytes, limit: int | None) -> bytes:
        if limit is not None and len(body) > limit:
            raise too_large(limit)
        encoding = headers.get("content-encoding")
        if encoding is not None:
            compression = self._settings.find_compression(encoding)
            if compression is not None:
                return decompress(compression, body, limit, ConnectErrorCode.INTERNAL)
        return body

    def _error(self, status: int, received: str, headers: HeaderView, body: bytes) -> ConnectError:
        inferred = error_from_http(status)
        if received == "application/json":
            try:
                return error_from_json(self._decompress(headers, body, self.body_limit), inferred.code) or inferred
            except ConnectError:
                pass  # what cannot be read says less than the status
        return inferred


def _metadata(headers: HeaderView) -> Metadata:
    return split_trailers(headers.items())
