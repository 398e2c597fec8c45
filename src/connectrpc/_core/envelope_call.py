"""Calls whose messages travel in envelopes: what is the same in all protocols that have them."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import (
    StreamClient,
    StreamClientCall,
    StreamServerCall,
    exactly_one,
    wrong_input,
    wrong_output,
)
from connectrpc._core.envelope import COMPRESSED, HEADER_SIZE, EnvelopeReader, envelope
from connectrpc._core.http import HTTPRequest, WholeResponse
from connectrpc._core.message import (
    IDENTITY,
    MessageReader,
    MessageWriter,
    UnencodableError,
    choose_compression,
    encoder_of,
)
from connectrpc._core.request_headers import RequestHeaders, media_type
from connectrpc._core.wire_error import error_from_http
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc._core.call import ClientSettings, ServerMethod
    from connectrpc._core.http import HeaderView, RequestHead
    from connectrpc.compression import Compression
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["EnvelopeClientCall", "EnvelopeServerCall", "EnvelopeStreamClient"]


class EnvelopeServerCall(StreamServerCall):
    """A call whose messages travel in envelopes. What a protocol adds is ``open``, ``start`` and ``finish``."""

    __slots__ = ("_compression", "_envelopes", "_reader", "_server", "_taken", "_writer")

    def __init__(self, server: ServerMethod, head: RequestHead) -> None:
        super().__init__(server.method, head)
        self._server = server
        self._compression: str | None = None
        self._writer = MessageWriter(server.encoder, None, 0, server.settings.send_max_bytes)
        self._envelopes = EnvelopeReader(server.settings.read_max_bytes)
        self._taken: list[Any] = []

    def _choose_compression(self, accepted: str | None, sent: str | None) -> None:
        """Compress the answer as the client likes it."""
        settings = self._server.settings
        self._compression = choose_compression(accepted, sent, settings.compressions)
        if self._compression is not None:
            self._writer = MessageWriter(
                self._server.encoder,
                settings.compressions[self._compression],
                settings.compress_min_bytes,
                settings.send_max_bytes,
            )

    def _open_request(self, encoding: str | None) -> None:
        """Read the request's messages with the compression that it declares.

        Raises:
            ConnectError: ``unimplemented``: there is no such compression.
        """
        settings = self._server.settings
        self._reader = MessageReader(
            self._server.codec,
            self.method.input,
            settings.find_compression(encoding),
            settings.read_max_bytes,
            ConnectErrorCode.INVALID_ARGUMENT,
        )

    def feed(self, chunk: bytes) -> Iterator[Any]:
        payload = self._envelopes.whole(chunk)
        if payload is None:
            return self._feed(chunk)
        try:
            return iter((self._reader.decode(payload),))
        except Exception as error:
            raise self._reader.malformed(error) from error

    def _feed(self, chunk: bytes) -> Iterator[Any]:
        reader = self._reader
        for flags, payload in self._envelopes.feed(chunk):
            if flags & ~COMPRESSED:
                raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, f"a message with the unknown flags {flags:#04x}")
            yield reader.read(payload, flags == COMPRESSED)

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

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.output):
            if isinstance(message, ConnectError):
                raise message
            raise wrong_output(self.method, message, "{} or a ConnectError")
        try:  # `encode` itself: this is on the way of each message of a stream
            payload = self._server.encoder(message)
        except Exception as error:
            raise UnencodableError from error
        if self._writer.plain:
            return envelope(0, payload)
        payload, compressed = self._writer.finish(payload)
        return envelope(COMPRESSED if compressed else 0, payload)

    def respond(self, message: Any, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        return self._whole(headers, self.send(message) + self.finish(None, trailers))

    def respond_with(self, payload: bytes, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        payload, compressed = self._writer.finish(payload)
        return self._whole(headers, envelope(COMPRESSED if compressed else 0, payload) + self.finish(None, trailers))

    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> WholeResponse:
        return self._whole(headers, self.finish(error, trailers))

    def _whole(self, headers: HeaderInput | None, body: bytes) -> WholeResponse:
        head = self.start(headers)
        head.headers.append(("content-length", str(len(body))))
        return WholeResponse(head.status, head.headers, body)


class EnvelopeStreamClient(StreamClient):
    """A method whose messages travel in envelopes, as one client calls it. What a protocol adds is ``call``, and names.

    Attributes:
        content_type: the media type of requests.
        media_types: those that an answer may have.
        plain_reader: makes messages of an answer that is not compressed.
    """

    __slots__ = ("_headers", "_url", "_writer", "content_type", "media_types", "method", "plain_reader", "settings")

    media_type: str
    """The media type without the name of a codec."""

    family: str
    """What the media types of the protocol, and of its variants, begin with."""

    protocol_header: tuple[str, str]

    encoding_header: str
    """The header for what messages are compressed with."""

    accept_header: tuple[str, str]
    """The header for what those of the answer may be compressed with, and what stands between its values."""

    last: int
    """The flag of the envelope that ends an answer; 0 where none does."""

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self.method = method
        self.settings = settings
        self.content_type = f"{self.media_type}+{settings.codec.name}"
        self.media_types = {self.content_type}
        self._url = settings.base_url + method.path
        self._writer = MessageWriter(
            encoder_of(settings.codec, method.input),
            settings.send_compression,
            settings.compress_min_bytes,
            settings.send_max_bytes,
        )
        # Accept-Encoding says that the body as a whole is not to be compressed, which is no part of the protocol.
        headers = [("content-type", self.content_type), self.protocol_header, ("accept-encoding", "identity")]
        if settings.send_compression is not None:
            headers.append((self.encoding_header, settings.send_compression.name))
        name, separator = self.accept_header
        # Without it the client is taken to accept what it sends.
        headers.append((name, separator.join(settings.accept_compressions) or IDENTITY))
        self._headers = RequestHeaders(settings, headers, self.timeout_header)
        self.plain_reader = self._reader(None)

    @staticmethod
    @abc.abstractmethod
    def timeout_header(milliseconds: int) -> tuple[str, str] | None:
        """The header that tells a server how long a call may take, or None when it cannot be said."""

    def request(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HTTPRequest:
        return HTTPRequest("POST", self._url, self._headers.build(extra_headers, timeout_ms))

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.input):
            raise wrong_input(self.method, message)
        payload, compressed = self._writer.write(message)
        return envelope(COMPRESSED if compressed else 0, payload)

    def open_answer(self, status: int, headers: HeaderView) -> MessageReader[Any]:
        """What makes messages of the answer with this head.

        Raises:
            ConnectError: the answer is none to a call of this method.
        """
        content_type = headers.get("content-type")
        if status != 200:
            raise self._refusal(status, media_type(content_type), headers)
        if content_type not in self.media_types:  # most servers spell it just as we do, and it needs no parsing
            received = media_type(content_type)
            if received not in self.media_types:
                code = ConnectErrorCode.INTERNAL if received.startswith(self.family) else ConnectErrorCode.UNKNOWN
                raise ConnectError(code, f"the answer's content-type is {received!r}, not {self.content_type!r}")
        encoding = headers.get(self.encoding_header)
        compression = None if encoding is None else self.settings.find_compression(encoding)
        return self.plain_reader if compression is None else self._reader(compression)

    def _refusal(self, status: int, received: str, headers: HeaderView) -> ConnectError:  # noqa: ARG002
        """What another HTTP status than 200 means."""
        return error_from_http(status)

    def _reader(self, compression: Compression | None) -> MessageReader[Any]:
        settings = self.settings
        return MessageReader(
            settings.codec, self.method.output, compression, settings.read_max_bytes, ConnectErrorCode.INTERNAL
        )


class EnvelopeClientCall(StreamClientCall):
    """The answer to a call whose messages travel in envelopes.

    What a protocol adds is ``feed_end``, ``metadata`` and, where an envelope ends its answers, ``_end``.
    """

    __slots__ = ("_begun", "_client", "_envelopes", "_headers", "_reader", "complete")

    def __init__(self, client: EnvelopeStreamClient) -> None:
        self._client = client
        self._envelopes = EnvelopeReader(client.settings.read_max_bytes, client.last)
        self._headers: HeaderView | None = None
        self._begun = False  # whether a message has come
        self.complete = False

    def head(self, status: int, headers: HeaderView) -> None:
        self._headers = headers
        try:
            self._reader = self._client.open_answer(status, headers)
        except ConnectError as error:
            raise self._told(error)  # noqa: B904  it is the same error

    def feed(self, chunk: bytes) -> Iterator[Any]:
        payload = None if self.complete else self._envelopes.whole(chunk)
        if payload is None:
            return self._feed(chunk)
        self._begun = True
        try:
            return iter((self._reader.read(payload, False),))
        except ConnectError as error:
            raise self._told(error)  # noqa: B904  it is the same error

    def _feed(self, chunk: bytes) -> Iterator[Any]:
        try:
            read = self._reader.read
            for flags, payload in self._envelopes.feed(chunk):
                if self.complete:
                    raise ConnectError(ConnectErrorCode.INTERNAL, "a message after the end of the answer")
                if flags <= COMPRESSED:
                    self._begun = True
                    yield read(payload, flags == COMPRESSED)
                elif flags & ~COMPRESSED == self._client.last:
                    self.complete = True
                    self._end(self._reader.decompress_last(payload) if flags & COMPRESSED else payload)
                else:
                    raise ConnectError(ConnectErrorCode.INTERNAL, f"a message with the unknown flags {flags:#04x}")
        except ConnectError as error:
            raise self._told(error)  # noqa: B904  it is the same error

    def _end(self, payload: bytes) -> None:
        """Take what the envelope that ends an answer holds. Not called where the client's ``last`` is 0.

        Raises:
            ConnectError: ``internal``: it is malformed.
        """
        raise NotImplementedError

    def _told(self, error: ConnectError) -> ConnectError:
        """``error``, which can tell the headers and trailers."""
        error._read_metadata = self.metadata
        return error
