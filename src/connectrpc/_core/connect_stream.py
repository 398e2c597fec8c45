"""Streaming calls of the Connect protocol: envelopes, the last of which says how it went.

https://connectrpc.com/docs/protocol "Streaming-Request", "Streaming-Response".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.call import ServerMethod
from connectrpc._core.connect import check_version, connect_timeout, open_deadline
from connectrpc._core.envelope import envelope
from connectrpc._core.envelope_call import EnvelopeClientCall, EnvelopeServerCall, EnvelopeStreamClient
from connectrpc._core.http import ResponseHead
from connectrpc._core.metadata import checked, received
from connectrpc._core.wire_error import end_stream_from_json, end_stream_to_json
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ServerSettings
    from connectrpc._core.http import HeaderView, RequestHead
    from connectrpc._core.metadata import Metadata
    from connectrpc.codec import Codec
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["ConnectStreamClient", "ConnectStreamServerMethod"]

END_STREAM = 0x02
"""The flag of the envelope that ends an answer."""

_MEDIA_TYPE = "application/connect"


class ConnectStreamServerMethod(ServerMethod):
    """A streaming method in one codec."""

    __slots__ = ("media_types",)

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        self.media_types = (f"{_MEDIA_TYPE}+{codec.name}",)

    def call(self, head: RequestHead) -> ConnectStreamServerCall:
        return ConnectStreamServerCall(self, head)


class ConnectStreamServerCall(EnvelopeServerCall):
    """A call with a stream on either side."""

    __slots__ = ()

    protocol = "connect"

    def open(self) -> None:
        head, settings = self.head, self._server.settings
        self._choose_compression(head.connect_accept_encoding, head.connect_content_encoding)
        check_version(head, settings)
        self.deadline = open_deadline(head, settings)
        self._open_request(head.connect_content_encoding)

    def start(self, headers: HeaderInput | None) -> ResponseHead:
        pairs = [("content-type", self._server.media_types[0])]
        if self._compression is not None:
            pairs.append(("connect-content-encoding", self._compression))
        if headers:
            pairs.extend(checked(headers))
        return ResponseHead(200, pairs)  # whatever becomes of the stream: its last envelope tells

    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        # Never compressed: one thing less that can go wrong where something has.
        return envelope(END_STREAM, end_stream_to_json(error, checked(trailers) if trailers else []))


class ConnectStreamClient(EnvelopeStreamClient):
    """A streaming method as one client calls it."""

    __slots__ = ()

    media_type = _MEDIA_TYPE
    family = f"{_MEDIA_TYPE}+"
    protocol_header = ("connect-protocol-version", "1")
    encoding_header = "connect-content-encoding"
    accept_header = ("connect-accept-encoding", ", ")
    last = END_STREAM
    timeout_header = staticmethod(connect_timeout)

    def call(self) -> ConnectStreamClientCall:
        return ConnectStreamClientCall(self)


class ConnectStreamClientCall(EnvelopeClientCall):
    """The answer to a streaming call."""

    __slots__ = ("_error", "_trailers")

    def __init__(self, client: ConnectStreamClient) -> None:
        super().__init__(client)
        self._error: ConnectError | None = None
        self._trailers: CIMultiDict[str] = CIMultiDict()

    def _end(self, payload: bytes) -> None:
        self._error, self._trailers = end_stream_from_json(payload)

    def feed_end(self, trailers: HeaderView | None = None) -> None:  # noqa: ARG002  the last message has them
        if not self._envelopes.at_boundary:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the stream broke off in the middle of a message"))
        if not self.complete:
            raise self._told(ConnectError(ConnectErrorCode.INTERNAL, "the stream broke off without saying how it went"))
        error, self._error = self._error, None
        if error is not None:
            try:
                raise self._told(error)
            finally:
                del error  # whose traceback has this frame

    def metadata(self) -> Metadata:
        return received(() if self._headers is None else self._headers.items()), self._trailers
