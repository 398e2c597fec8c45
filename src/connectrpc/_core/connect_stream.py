"""Streaming calls of the Connect protocol: envelopes, the last of which says how it went.

https://connectrpc.com/docs/protocol "Streaming-Request", "Streaming-Response".
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.call import ServerCall, ServerMethod, StreamClient, StreamClientCall, exactly_one
from connectrpc._core.connect import RequestHeaders, check_version, media_type, open_deadline
from connectrpc._core.envelope import COMPRESSED, HEADER_SIZE, EnvelopeReader, envelope
from connectrpc._core.http import HTTPRequest, Response, ResponseHead
from connectrpc._core.message import MessageReader, MessageWriter, choose_compression
from connectrpc._core.metadata import checked
from connectrpc._core.wire_error import end_stream_from_json, end_stream_to_json
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc._core.call import ClientSettings, ServerSettings
    from connectrpc._core.http import HeaderView, RequestHead
    from connectrpc.codec import Codec
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["ConnectStreamClient", "ConnectStreamServerMethod"]

END_STREAM = 0x02
"""The flag of the envelope that ends an answer."""

_MEDIA_TYPE_PREFIX = "application/connect+"


class ConnectStreamServerMethod(ServerMethod):
    """A streaming method in one codec."""

    __slots__ = ("media_type", "media_types")

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        self.media_type = _MEDIA_TYPE_PREFIX + codec.name
        self.media_types = (self.media_type,)

    def call(self, head: RequestHead) -> ConnectStreamServerCall:
        return ConnectStreamServerCall(self, head)


class ConnectStreamServerCall(ServerCall):
    """A call with a stream on either side."""

    __slots__ = ("_compression", "_envelopes", "_reader", "_server", "_taken", "_writer")

    protocol = "connect"

    def __init__(self, server: ConnectStreamServerMethod, head: RequestHead) -> None:
        super().__init__(server.method, head)
        self._server = server
        self._compression: str | None = None
        self._writer = MessageWriter(server.codec, None, 0, server.settings.send_max_bytes)
        self._envelopes = EnvelopeReader(server.settings.read_max_bytes)
        self._taken: list[Any] = []

    def open(self) -> None:
        head, settings, codec = self.head, self._server.settings, self._server.codec
        self._compression = choose_compression(
            head.connect_accept_encoding, head.connect_content_encoding, settings.compressions
        )
        if self._compression is not None:
            self._writer = MessageWriter(
                codec,
                settings.compressions[self._compression],
                settings.compress_min_bytes,
                settings.send_max_bytes,
            )
        check_version(head, settings)
        self.deadline = open_deadline(head, settings)
        self._reader = MessageReader(
            codec,
            self.method.input,
            settings.find_compression(head.connect_content_encoding),
            settings.read_max_bytes,
            ConnectErrorCode.INVALID_ARGUMENT,
        )

    def feed(self, chunk: bytes) -> Iterator[Any]:
        return itertools.starmap(self._message, self._envelopes.feed(chunk))

    def _message(self, flags: int, payload: bytes) -> Any:
        if flags & ~COMPRESSED:
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, f"a message with the unknown flags {flags:#04x}")
        return self._reader.read(payload, bool(flags))

    def feed_end(self) -> None:
        if not self._envelopes.at_boundary:
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the request ended in the middle of a message")

    @property
    def wanted(self) -> int:
        return self._envelopes.missing

    def receive(self, body: bytes) -> Any:
        self.take(body)
        return self.taken()

    def take(self, chunk: bytes) -> None:
        for message in self.feed(chunk):
            self._taken.append(message)
            if len(self._taken) > 1:
                break
        if len(self._taken) > 1:
            exactly_one(self._taken, "request")

    def taken(self) -> Any:
        self.feed_end()
        return exactly_one(self._taken, "request")

    def whole_body_limit(self) -> int | None:
        limit = self._server.settings.read_max_bytes
        return None if limit is None else limit + HEADER_SIZE

    def respond(self, message: Any, headers: HeaderInput | None, trailers: HeaderInput | None) -> Response:
        return self._whole(headers, self.send(message) + self.finish(None, trailers))

    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> Response:
        return self._whole(headers, self.finish(error, trailers))

    def _whole(self, headers: HeaderInput | None, body: bytes) -> Response:
        head = self.start(headers)
        head.headers.append(("content-length", str(len(body))))
        return Response(head.status, head.headers, body)

    def start(self, headers: HeaderInput | None) -> ResponseHead:
        pairs = [("content-type", self._server.media_type)]
        if self._compression is not None:
            pairs.append(("connect-content-encoding", self._compression))
        if headers:
            pairs.extend(checked(headers))
        return ResponseHead(200, pairs)  # whatever becomes of the stream: its last envelope tells

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.output):
            raise TypeError(
                f"{self.method.python_name}() gave {type(message).__name__}: expected "
                f"{self.method.output.DESCRIPTOR.full_name} or a ConnectError"
            )
        payload, compressed = self._writer.write(message)
        return envelope(COMPRESSED if compressed else 0, payload)

    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        # Never compressed: one thing less that can go wrong where something has.
        return envelope(END_STREAM, end_stream_to_json(error, checked(trailers) if trailers else []))


class ConnectStreamClient(StreamClient):
    """A streaming method as one client calls it."""

    __slots__ = ("_headers", "_url", "_writer", "media_type", "method", "settings")

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self.method = method
        self.settings = settings
        self.media_type = _MEDIA_TYPE_PREFIX + settings.codec.name
        self._url = settings.base_url + method.path
        self._writer = MessageWriter(
            settings.codec, settings.send_compression, settings.compress_min_bytes, settings.send_max_bytes
        )
        # Accept-Encoding says that the body as a whole is not to be compressed, which is no part of the protocol.
        headers = [
            ("content-type", self.media_type),
            ("connect-protocol-version", "1"),
            ("accept-encoding", "identity"),
        ]
        if settings.send_compression is not None:
            headers.append(("connect-content-encoding", settings.send_compression.name))
        if settings.accept_compressions:
            headers.append(("connect-accept-encoding", ", ".join(settings.accept_compressions)))
        self._headers = RequestHeaders(settings, headers)

    def call(self) -> ConnectStreamClientCall:
        return ConnectStreamClientCall(self)

    def request(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HTTPRequest:
        return HTTPRequest("POST", self._url, self._headers.build(extra_headers, timeout_ms))

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.input):
            raise TypeError(
                f"{self.method.path} takes {self.method.input.DESCRIPTOR.full_name}, not {type(message).__name__}"
            )
        payload, compressed = self._writer.write(message)
        return envelope(COMPRESSED if compressed else 0, payload)


class ConnectStreamClientCall(StreamClientCall):
    """The answer to a streaming call."""

    __slots__ = ("_client", "_ended", "_envelopes", "_error", "_headers", "_reader", "_trailers")

    def __init__(self, client: ConnectStreamClient) -> None:
        self._client = client
        self._envelopes = EnvelopeReader(client.settings.read_max_bytes)
        self._headers: HeaderView | None = None
        self._ended = False
        self._error: ConnectError | None = None
        self._trailers: CIMultiDict[str] = CIMultiDict()

    def head(self, status: int, headers: HeaderView) -> None:
        self._headers = headers
        settings = self._client.settings
        if status != 200:
            raise self._told(ConnectError(ConnectErrorCode.from_http_status(status), f"HTTP status {status}"))
        received = media_type(headers.get("content-type"))
        if received != self._client.media_type:
            code = ConnectErrorCode.INTERNAL if received.startswith(_MEDIA_TYPE_PREFIX) else ConnectErrorCode.UNKNOWN
            raise self._told(
                ConnectError(code, f"the answer's content-type is {received!r}, not {self._client.media_type!r}")
            )
        encoding = (headers.get("connect-content-encoding") or "identity").strip().lower()
        compression = settings.accept_compressions.get(encoding)
        if compression is None and encoding != "identity":
            raise self._told(
                ConnectError(ConnectErrorCode.INTERNAL, f"the answer's compression {encoding!r} is not one we accept")
            )
        self._reader = MessageReader(
            settings.codec,
            self._client.method.output,
            compression,
            settings.read_max_bytes,
            ConnectErrorCode.INTERNAL,
        )

    def feed(self, chunk: bytes) -> Iterator[Any]:
        try:
            read = self._reader.read
            for flags, payload in self._envelopes.feed(chunk):
                if self._ended:
                    raise ConnectError(ConnectErrorCode.INTERNAL, "a message after the end of the stream")
                if not flags & ~COMPRESSED:
                    yield read(payload, bool(flags))
                elif flags & ~COMPRESSED == END_STREAM:
                    self._end(self._reader.decompress(payload) if flags & COMPRESSED else payload)
                else:
                    raise ConnectError(ConnectErrorCode.INTERNAL, f"a message with the unknown flags {flags:#04x}")
        except ConnectError as error:
            raise self._told(error)  # noqa: B904  it is the same error

    @property
    def complete(self) -> bool:
        return self._ended

    def _end(self, payload: bytes) -> None:
        self._ended = True
        self._error, self._trailers = end_stream_from_json(payload)

    def feed_end(self) -> None:
        if not self._envelopes.at_boundary:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the stream broke off in the middle of a message"))
        if not self._ended:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the stream broke off without saying how it went"))
        if self._error is not None:
            raise self._told(self._error)

    def metadata(self) -> tuple[CIMultiDict[str], CIMultiDict[str]]:
        return CIMultiDict(() if self._headers is None else self._headers.items()), self._trailers

    def _told(self, error: ConnectError) -> ConnectError:
        """``error``, which can tell the headers and trailers."""
        error._read_metadata = functools.partial(ConnectStreamClientCall.metadata, self)
        return error
