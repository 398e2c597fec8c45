"""The gRPC-Web protocol: gRPC with its trailers in the body, so that any HTTP can carry it.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. Base64 bodies (``application/grpc-web-text``) are not
served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.envelope import envelope
from connectrpc._core.envelope_call import EnvelopeServerCall
from connectrpc._core.grpc import (
    GrpcClientCall,
    GrpcServerCall,
    GrpcServerMethod,
    GrpcStreamClient,
    GrpcUnaryClient,
)
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ServerSettings
    from connectrpc._core.http import RequestHead
    from connectrpc.codec import Codec
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["GrpcWebServerMethod", "GrpcWebStreamClient", "GrpcWebUnaryClient"]

TRAILERS = 0x80
"""The flag of the envelope that ends an answer. Its payload is a block of headers, as HTTP/1.1 has them."""


class GrpcWebServerMethod(GrpcServerMethod):
    """A method of any kind in one codec."""

    __slots__ = ()

    media_type = "application/grpc-web"

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        self.may_be_plain = False

    def call(self, head: RequestHead) -> GrpcWebServerCall:
        return GrpcWebServerCall(self, head)


class GrpcWebServerCall(GrpcServerCall):
    """A call of any kind."""

    __slots__ = ()

    protocol = "grpc-web"
    has_trailers = False

    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        # Never compressed: one thing less that can go wrong where something has.
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._status(error, trailers))
        return envelope(TRAILERS, lines.encode("latin-1"))

    # An answer is one body, as in other protocols than gRPC itself.
    _whole = EnvelopeServerCall._whole
    fail = EnvelopeServerCall.fail


class GrpcWebStreamClient(GrpcStreamClient):
    """A method of any kind as one client calls it."""

    __slots__ = ()

    media_type = GrpcWebServerMethod.media_type
    protocol_header = ("x-grpc-web", "1")
    last = TRAILERS

    def call(self) -> GrpcWebClientCall:
        return GrpcWebClientCall(self)


class GrpcWebUnaryClient(GrpcUnaryClient):
    """A method that takes and gives one message, as one client calls it."""

    __slots__ = ()

    stream = GrpcWebStreamClient


class GrpcWebClientCall(GrpcClientCall):
    """The answer to a call of any kind."""

    __slots__ = ()

    def _end(self, payload: bytes) -> None:
        self._trailers = _trailers(payload)


def _trailers(block: bytes) -> CIMultiDict[str]:
    """The trailers in the payload of the last envelope.

    Raises:
        ConnectError: ``internal``: it is no block of headers.
    """
    trailers: CIMultiDict[str] = CIMultiDict()
    for line in block.decode("latin-1").split("\n"):
        name, colon, value = line.strip("\r").partition(":")
        name = name.strip()
        if colon and name:
            trailers.add(name, value.strip())
        elif colon or name:
            raise ConnectError(ConnectErrorCode.INTERNAL, "the trailers of the answer are malformed")
    return trailers
