"""The gRPC-Web protocol: gRPC with its trailers in the body, so that any HTTP can carry it.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. Base64 bodies (``application/grpc-web-text``) are not
served.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.call import ServerMethod, StreamClient, StreamClientCall, UnaryClient
from connectrpc._core.envelope import COMPRESSED, HEADER_SIZE, EnvelopeReader, envelope
from connectrpc._core.envelope_call import EnvelopeServerCall
from connectrpc._core.grpc_status import DETAILS, MESSAGE, STATUS, error_from_status, status_of
from connectrpc._core.http import HTTPRequest, ResponseHead
from connectrpc._core.message import MessageReader, MessageWriter
from connectrpc._core.metadata import checked
from connectrpc._core.request_headers import RequestHeaders, media_type
from connectrpc._core.timeout import format_grpc_timeout, parse_grpc_timeout
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectrpc._core.call import ClientSettings, Metadata, ServerSettings
    from connectrpc._core.http import HeaderView, RequestHead
    from connectrpc.codec import Codec
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["GrpcWebServerMethod", "GrpcWebStreamClient", "GrpcWebUnaryClient"]

TRAILERS = 0x80
"""The flag of the envelope that ends an answer. Its payload is a block of headers, as HTTP/1.1 has them."""

_MEDIA_TYPE = "application/grpc-web"
_GRPC_PREFIX = "application/grpc"

_TRAILERS_MAX_BYTES = 64 * 1024
"""What a client reads of trailers beside the one message that it may."""


class GrpcWebServerMethod(ServerMethod):
    """A method of any kind in one codec."""

    __slots__ = ("media_types",)

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        named = f"{_MEDIA_TYPE}+{codec.name}"
        # Without a name, it is Protobuf's binary encoding.
        self.media_types = (named, _MEDIA_TYPE) if codec.name == "proto" else (named,)

    def call(self, head: RequestHead) -> GrpcWebServerCall:
        return GrpcWebServerCall(self, head)


class GrpcWebServerCall(EnvelopeServerCall):
    """A call of any kind."""

    __slots__ = ()

    protocol = "grpc-web"

    def open(self) -> None:
        head, settings = self.head, self._server.settings
        self._choose_compression(head.grpc_accept_encoding, head.grpc_encoding)
        timeout = head.grpc_timeout
        self.deadline = settings.deadline(None if timeout is None else parse_grpc_timeout(timeout))
        self._open_request(head.grpc_encoding)

    def start(self, headers: HeaderInput | None) -> ResponseHead:
        pairs = [("content-type", self._server.media_types[0])]
        if self._compression is not None:
            pairs.append(("grpc-encoding", self._compression))
        if self._server.settings.compressions:
            pairs.append(("grpc-accept-encoding", ",".join(self._server.settings.compressions)))
        if headers:
            pairs.extend(checked(headers))
        return ResponseHead(200, pairs)  # whatever becomes of the call: its last envelope tells

    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        # Never compressed: one thing less that can go wrong where something has.
        pairs = [*status_of(error), *(checked(trailers) if trailers else ())]
        return envelope(TRAILERS, "".join(f"{name}: {value}\r\n" for name, value in pairs).encode("latin-1"))


class _Requests:
    """What requests have in common."""

    __slots__ = ("_headers", "_url", "_writer", "media_type", "method", "settings")

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self.method = method
        self.settings = settings
        self.media_type = f"{_MEDIA_TYPE}+{settings.codec.name}"
        self._url = settings.base_url + method.path
        self._writer = MessageWriter(
            settings.codec, settings.send_compression, settings.compress_min_bytes, settings.send_max_bytes
        )
        # Accept-Encoding says that the body as a whole is not to be compressed, which is no part of the protocol.
        headers = [("content-type", self.media_type), ("x-grpc-web", "1"), ("accept-encoding", "identity")]
        if settings.send_compression is not None:
            headers.append(("grpc-encoding", settings.send_compression.name))
        if settings.accept_compressions:
            headers.append(("grpc-accept-encoding", ",".join(settings.accept_compressions)))
        self._headers = RequestHeaders(settings, headers, _timeout)

    def request(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HTTPRequest:
        return HTTPRequest("POST", self._url, self._headers.build(extra_headers, timeout_ms))

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.input):
            raise TypeError(
                f"{self.method.path} takes a {self.method.input.DESCRIPTOR.full_name}, not a {type(message).__name__}"
            )
        payload, compressed = self._writer.write(message)
        return envelope(COMPRESSED if compressed else 0, payload)


def _timeout(milliseconds: int) -> tuple[str, str]:
    return "grpc-timeout", format_grpc_timeout(milliseconds)


class GrpcWebUnaryClient(UnaryClient):
    """A method that takes and gives one message, as one client calls it. On the wire it is a stream like any other."""

    __slots__ = ("_requests", "body_limit")

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self._requests = _Requests(method, settings)
        limit = settings.read_max_bytes
        self.body_limit = None if limit is None else limit + _TRAILERS_MAX_BYTES + 2 * HEADER_SIZE

    def request(
        self, message: Any, extra_headers: HeaderInput | None, timeout_ms: int | None
    ) -> tuple[HTTPRequest, bytes | None]:
        return self._requests.request(extra_headers, timeout_ms), self._requests.send(message)

    def response(self, status: int, headers: HeaderView, body: bytes) -> tuple[Any, Callable[[], Metadata]]:
        call = GrpcWebClientCall(self._requests)
        call.head(status, headers)
        messages = list(call.feed(body))
        call.feed_end()
        return call.only(messages), call.metadata


class GrpcWebStreamClient(StreamClient):
    """A method with a stream on either side, as one client calls it."""

    __slots__ = ("_requests",)

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self._requests = _Requests(method, settings)

    def call(self) -> GrpcWebClientCall:
        return GrpcWebClientCall(self._requests)

    def request(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HTTPRequest:
        return self._requests.request(extra_headers, timeout_ms)

    def send(self, message: Any) -> bytes:
        return self._requests.send(message)


class GrpcWebClientCall(StreamClientCall):
    """The answer to a call of any kind."""

    __slots__ = ("_envelopes", "_headers", "_messages", "_reader", "_requests", "_trailers")

    def __init__(self, requests: _Requests) -> None:
        self._requests = requests
        self._envelopes = EnvelopeReader(requests.settings.read_max_bytes)
        self._headers: HeaderView | None = None
        self._messages = 0
        self._trailers: CIMultiDict[str] | None = None

    def head(self, status: int, headers: HeaderView) -> None:
        self._headers = headers
        settings = self._requests.settings
        if status != 200:
            raise self._told(ConnectError(ConnectErrorCode.from_http_status(status), f"HTTP status {status}"))
        received, expected = media_type(headers.get("content-type")), self._requests.media_type
        if received != expected and not (received == _MEDIA_TYPE and settings.codec.name == "proto"):
            code = ConnectErrorCode.INTERNAL if received.startswith(_GRPC_PREFIX) else ConnectErrorCode.UNKNOWN
            raise self._told(ConnectError(code, f"the answer's content-type is {received!r}, not {expected!r}"))
        encoding = (headers.get("grpc-encoding") or "identity").strip().lower()
        compression = settings.accept_compressions.get(encoding)
        if compression is None and encoding != "identity":
            raise self._told(
                ConnectError(ConnectErrorCode.INTERNAL, f"the answer's compression {encoding!r} is not one we accept")
            )
        self._reader = MessageReader(
            settings.codec,
            self._requests.method.output,
            compression,
            settings.read_max_bytes,
            ConnectErrorCode.INTERNAL,
        )

    def feed(self, chunk: bytes) -> Iterator[Any]:
        try:
            read = self._reader.read
            for flags, payload in self._envelopes.feed(chunk):
                if self._trailers is not None:
                    raise ConnectError(ConnectErrorCode.INTERNAL, "a message after the end of the answer")
                if not flags & ~COMPRESSED:
                    self._messages += 1
                    yield read(payload, bool(flags))
                elif flags & ~COMPRESSED == TRAILERS:
                    self._trailers = _trailers(self._reader.decompress(payload) if flags & COMPRESSED else payload)
                else:
                    raise ConnectError(ConnectErrorCode.INTERNAL, f"a message with the unknown flags {flags:#04x}")
        except ConnectError as error:
            raise self._told(error)  # noqa: B904  it is the same error

    @property
    def complete(self) -> bool:
        return self._trailers is not None

    def feed_end(self) -> None:
        if not self._envelopes.at_boundary:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the answer broke off in the middle of a message"))
        trailers: Any = self._trailers
        if trailers is None and not self._messages:
            trailers = self._headers  # "Trailers-Only": they count where nothing else came
        status = None if trailers is None else trailers.get(STATUS)
        if status is None:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the answer ended without saying how it went"))
        try:
            error = error_from_status(status.strip(), trailers.get(MESSAGE) or "", trailers.get(DETAILS) or "")
        except ConnectError as malformed:
            error = malformed
        if error is not None:
            raise self._told(error)

    def metadata(self) -> Metadata:
        headers = CIMultiDict(() if self._headers is None else self._headers.items())
        if self._trailers is None:
            return (headers, CIMultiDict()) if STATUS not in headers else (CIMultiDict(), _own(headers.items()))
        return headers, _own(self._trailers.items())

    def _told(self, error: ConnectError) -> ConnectError:
        """``error``, which can tell the headers and trailers."""
        error._read_metadata = functools.partial(GrpcWebClientCall.metadata, self)
        return error


def _own(pairs: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The trailers of the application: those that the protocol does not need for itself."""
    return CIMultiDict((name, value) for name, value in pairs if name.lower() not in (STATUS, MESSAGE, DETAILS))


def _trailers(block: bytes) -> CIMultiDict[str]:
    """The trailers in the payload of the last envelope.

    Raises:
        ConnectError: ``internal``: it is no block of headers.
    """
    trailers: CIMultiDict[str] = CIMultiDict()
    for line in block.decode("latin-1").split("\n"):
        name, colon, value = line.strip("\r").partition(":")
        if colon and name:
            trailers.add(name.strip(), value.strip())
        elif name:
            raise ConnectError(ConnectErrorCode.INTERNAL, "the trailers of the answer are malformed")
    return trailers
