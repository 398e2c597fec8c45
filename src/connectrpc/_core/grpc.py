"""The gRPC protocol over HTTP/2, from which gRPC-Web differs in little.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. How a call ended is said in HTTP trailers.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.call import UnaryClient
from connectrpc._core.envelope import HEADER_SIZE, LAST_MAX_BYTES, envelope
from connectrpc._core.envelope_call import EnvelopeClientCall, EnvelopeServerCall, EnvelopeStreamClient
from connectrpc._core.grpc_status import DETAILS, MESSAGE, STATUS, error_from_status, status_of
from connectrpc._core.http import ResponseHead, WholeResponse
from connectrpc._core.metadata import checked, received, split_trailers_only
from connectrpc._core.plain import PlainServerMethod
from connectrpc._core.request_headers import media_type
from connectrpc._core.timeout import format_grpc_timeout, parse_grpc_timeout
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.method import MethodKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.call import ClientSettings, ServerSettings
    from connectrpc._core.http import HeaderList, HeaderView, HTTPRequest, RequestHead
    from connectrpc._core.metadata import Metadata
    from connectrpc._core.plain import PlainServerCall
    from connectrpc.codec import Codec
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = [
    "GrpcClientCall",
    "GrpcServerCall",
    "GrpcServerMethod",
    "GrpcStreamClient",
    "GrpcUnaryClient",
    "unserved_status",
]


class GrpcServerMethod(PlainServerMethod):
    """A method of any kind in one codec."""

    __slots__ = ("media_types",)

    media_type = "application/grpc"

    plain_required = ()
    plain_refused = frozenset({"grpc-timeout", "grpc-encoding"})

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        named = f"{self.media_type}+{codec.name}"
        # Without a name, it is Protobuf's binary encoding.
        self.media_types = (named, self.media_type) if codec.name == "proto" else (named,)
        self.may_be_plain = self.may_be_plain and method.kind is MethodKind.UNARY
        self.plain_headers = tuple(self.headers(None))
        self.plain_trailers = tuple(status_of(None))

    def call(self, head: RequestHead) -> GrpcServerCall:
        return GrpcServerCall(self, head)

    def is_plain(self, body: bytes) -> bool:
        size = len(body) - HEADER_SIZE
        return body[:1] == b"\0" and int.from_bytes(body[1:HEADER_SIZE], "big") == size <= self.plain_max_bytes

    def read_plain(self, body: bytes) -> Any:
        return super().read_plain(body[HEADER_SIZE:])

    def write_plain(self, result: object, call: PlainServerCall) -> bytes | WholeResponse:
        answer = super().write_plain(result, call)
        return envelope(0, answer) if isinstance(answer, bytes) else answer

    def headers(self, compression: str | None) -> HeaderList:
        """The headers of an answer whose messages are compressed like this."""
        pairs = [("content-type", self.media_types[0])]
        if compression is not None:
            pairs.append(("grpc-encoding", compression))
        if self.settings.compressions:
            pairs.append(("grpc-accept-encoding", ",".join(self.settings.compressions)))
        return pairs


class GrpcServerCall(EnvelopeServerCall):
    """A call of any kind."""

    __slots__ = ()

    _server: GrpcServerMethod

    protocol = "grpc"
    has_trailers = True

    def open(self) -> None:
        head, settings = self.head, self._server.settings
        if self.has_trailers and not head.can_send_trailers:
            raise ConnectError(
                ConnectErrorCode.UNIMPLEMENTED,
                "gRPC needs HTTP/2 and a server that sends trailers: this connection is for gRPC-Web and Connect",
            )
        self._choose_compression(head.grpc_accept_encoding, head.grpc_encoding)
        timeout = head.grpc_timeout
        self.deadline = settings.deadline(None if timeout is None else parse_grpc_timeout(timeout))
        self._open_request(head.grpc_encoding)

    def start(self, headers: HeaderInput | None) -> ResponseHead:
        pairs = self._server.headers(self._compression)
        if headers:
            pairs.extend(checked(headers))
        return ResponseHead(200, pairs)  # whatever becomes of the call: its trailers tell

    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        self.trailers = self._status(error, trailers)
        return b""

    def _status(self, error: ConnectError | None, trailers: HeaderInput | None) -> HeaderList:
        return [*status_of(error), *(checked(trailers) if trailers else ())]

    def _whole(self, headers: HeaderInput | None, body: bytes) -> WholeResponse:
        head = self.start(headers)
        return WholeResponse(head.status, head.headers, body, self.trailers)

    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> WholeResponse:
        if self.head.can_send_trailers:
            return super().fail(error, headers, trailers)
        # "Trailers-Only", as nearly as can be. Elsewhere it is not used: servers end it with an empty part of a body,
        # and some clients do not take it for what it is then.
        head = self.start(headers)
        return WholeResponse(head.status, [*head.headers, *self._status(error, trailers)], b"")


def unserved_status(head: RequestHead) -> HeaderList | None:
    """The trailers of the answer to a gRPC call of a method that is not served here; None where there can be none.

    HTTP's own status should do. But some servers end its body with an empty frame, of which Go's client makes
    ``internal``.
    """
    name, _, _ = media_type(head.content_type).partition("+")
    if name != GrpcServerMethod.media_type or not head.can_send_trailers:
        return None
    return status_of(ConnectError(ConnectErrorCode.UNIMPLEMENTED, "there is no such method"))


class GrpcStreamClient(EnvelopeStreamClient):
    """A method of any kind as one client calls it."""

    __slots__ = ()

    media_type = GrpcServerMethod.media_type
    family = GrpcServerMethod.media_type
    protocol_header = ("te", "trailers")
    encoding_header = "grpc-encoding"
    accept_header = ("grpc-accept-encoding", ",")
    last = 0

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        super().__init__(method, settings)
        if settings.codec.name == "proto":
            self.media_types.add(self.media_type)

    @staticmethod
    def timeout_header(milliseconds: int) -> tuple[str, str]:
        return "grpc-timeout", format_grpc_timeout(milliseconds)

    def call(self) -> GrpcClientCall:
        return GrpcClientCall(self)

    def _refusal(self, status: int, received: str, headers: HeaderView) -> ConnectError:
        # doc/http-grpc-status-mapping.md: the status of HTTP counts where there is none of gRPC.
        said = received.startswith(self.media_type) and headers.get(STATUS) is not None
        return (_error_in(headers) if said else None) or super()._refusal(status, received, headers)


class GrpcUnaryClient(UnaryClient):
    """A method that takes and gives one message, as one client calls it. On the wire it is a stream like any other."""

    __slots__ = ("_media_types", "_plain_reader", "_stream", "body_limit")

    stream = GrpcStreamClient

    def __init__(self, method: Method[Any, Any], settings: ClientSettings) -> None:
        self._stream = stream = self.stream(method, settings)
        limit = settings.read_max_bytes
        self.body_limit = None if limit is None else limit + max(limit, LAST_MAX_BYTES) + 2 * HEADER_SIZE
        self._media_types = stream.media_types
        self._plain_reader = stream.plain_reader

    def request(
        self, message: Any, extra_headers: HeaderInput | None, timeout_ms: int | None
    ) -> tuple[HTTPRequest, bytes | None]:
        return self._stream.request(extra_headers, timeout_ms), self._stream.send(message)

    def response(
        self, status: int, headers: HeaderView, body: bytes, trailers: HeaderView | None = None
    ) -> tuple[Any, Callable[[], Metadata]]:
        if trailers is not None:
            message = self._plain_message(status, headers, body, trailers)
            if message is not None:
                return message, functools.partial(_metadata, headers, trailers)
        call = self._stream.call()
        call.head(status, headers)
        messages = list(itertools.islice(call.feed(body), _MANY))
        if len(messages) < _MANY:
            call.feed_end(trailers)
        return call.only(messages), call.metadata

    def _plain_message(self, status: int, headers: HeaderView, body: bytes, trailers: HeaderView) -> Any:
        """The message of what nearly all answers are: one message, not compressed, and the status 0.

        None for all others, and for what is wrong in any way: that is for ``GrpcClientCall`` to say.
        """
        if (
            status == 200
            and trailers.get(STATUS) == "0"
            and headers.get("content-type") in self._media_types
            and headers.get("grpc-encoding") is None
            and body[:1] == b"\0"
            and int.from_bytes(body[1:HEADER_SIZE], "big") == len(body) - HEADER_SIZE
        ):
            try:
                return self._plain_reader.read(body[HEADER_SIZE:], False)
            except ConnectError:
                pass
        return None


_MANY = 16
"""So many messages where there should be one are not read to their end, which may say what went wrong."""


class GrpcClientCall(EnvelopeClientCall):
    """The answer to a call of any kind."""

    __slots__ = ("_trailers",)

    def __init__(self, client: GrpcStreamClient) -> None:
        super().__init__(client)
        self._trailers: HeaderView | None = None

    def feed_end(self, trailers: HeaderView | None = None) -> None:
        if self._trailers is None and trailers is not None and any(True for _ in trailers.items()):
            self._trailers = trailers
        whole = self._envelopes.at_boundary
        said: Any = self._trailers
        if said is None and not self._begun and whole:
            said = self._headers  # "Trailers-Only": they count where nothing else came
        told = said is not None and said.get(STATUS) is not None
        error = _error_in(said) if told else None
        if error is None and not whole:  # what a server says of a call that went wrong is more than this
            error = ConnectError(ConnectErrorCode.INTERNAL, "the answer broke off in the middle of a message")
        elif error is None and not told:
            error = ConnectError(ConnectErrorCode.INTERNAL, "the answer ended without saying how it went")
        if error is not None:
            try:
                raise self._told(error)
            finally:
                del error  # whose traceback has this frame

    def metadata(self) -> Metadata:
        if self._headers is not None and self._trailers is not None:
            return _metadata(self._headers, self._trailers)
        if self._headers is None:
            return CIMultiDict(), CIMultiDict()
        if self._headers.get(STATUS) is not None and not self._begun:
            return split_trailers_only(self._headers.items())
        return received(self._headers.items()), CIMultiDict()


def _error_in(said: HeaderView) -> ConnectError | None:
    """The error in trailers that have a status; None when the call went well."""
    try:
        return error_from_status((said.get(STATUS) or "").strip(), said.get(MESSAGE) or "", said.get(DETAILS) or "")
    except ConnectError as malformed:
        return malformed


def _metadata(headers: HeaderView, trailers: HeaderView) -> Metadata:
    # Of the trailers the protocol needs some for itself.
    own = (pair for pair in trailers.items() if pair[0].lower() not in (STATUS, MESSAGE, DETAILS))
    return received(headers.items()), received(own)
