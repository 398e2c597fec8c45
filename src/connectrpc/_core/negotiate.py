"""From the head of a request to the call that it begins, or to an answer that is already complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from connectrpc._core.connect_get import ConnectGetServerCall, parse_query
from connectrpc._core.connect_stream import ConnectStreamServerMethod
from connectrpc._core.connect_unary import ConnectUnaryServerMethod
from connectrpc._core.grpc import GrpcServerMethod, unserved_status
from connectrpc._core.grpc_web import GrpcWebServerMethod
from connectrpc._core.http import WholeResponse
from connectrpc._core.plain import PlainServerMethod
from connectrpc._core.request_headers import media_type
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectrpc._core.call import ServerCall, ServerMethod, ServerSettings
    from connectrpc._core.http import RequestHead
    from connectrpc.codec import Codec
    from connectrpc.method import Method

__all__ = ["Endpoint", "PlainEndpoint", "may_stream", "negotiate", "plain_endpoints", "plain_response"]


class Endpoint:
    """A method of a service with the handler that serves it: everything that is known when the app is built.

    Args:
        method: the method.
        handler: what serves it: called with a request or a stream.
        codecs: the codecs in which it is served.
        settings: the service's.
    """

    __slots__ = ("_accept_post", "allow", "by_encoding", "by_media_type", "handler", "method", "read_max_bytes")

    def __init__(
        self,
        method: Method[Any, Any],
        handler: Callable[[Any], Any],
        codecs: Iterable[Codec],
        settings: ServerSettings,
    ) -> None:
        self.method = method
        self.handler = handler
        self.read_max_bytes = settings.read_max_bytes
        self.by_media_type: dict[str, ServerMethod] = {}
        self.by_encoding: dict[str, ConnectUnaryServerMethod] = {}
        """How the method is served by GET, by the name of the codec; empty when it is not."""
        for codec in codecs:
            server: ServerMethod
            for make in (GrpcServerMethod, GrpcWebServerMethod):
                server = make(method, codec, settings)
                self.by_media_type.update(dict.fromkeys(server.media_types, server))
            if method.kind is MethodKind.UNARY:
                server = unary = ConnectUnaryServerMethod(method, codec, settings)
                if method.idempotency_level is IdempotencyLevel.NO_SIDE_EFFECTS:
                    self.by_encoding[codec.name] = unary
            else:
                server = ConnectStreamServerMethod(method, codec, settings)
            self.by_media_type.update(dict.fromkeys(server.media_types, server))
        self.allow = "GET, POST" if self.by_encoding else "POST"
        self._accept_post = ", ".join(self.by_media_type)

    def call(self, head: RequestHead) -> ServerCall | None:
        """The call that a POST begins; None when the method is not served in its media type."""
        # Most requests spell it just as we do, and need no parsing.
        server = self.by_media_type.get(head.content_type or "")
        if server is None:
            server = self.by_media_type.get(media_type(head.content_type))
        return None if server is None else server.call(head)

    def call_get(self, head: RequestHead) -> ServerCall | None:
        """The call that a GET begins; None when the method is not served in the encoding that the query names."""
        query = parse_query(head.query)
        encoding = query.get("encoding")
        # Where none is named, any will do to say so in the terms of the protocol.
        server = next(iter(self.by_encoding.values())) if encoding is None else self.by_encoding.get(encoding)
        return None if server is None else ConnectGetServerCall(server, head, query)

    def unsupported_media_type(self) -> WholeResponse:
        """RFC 9110 section 15.5.16."""
        return plain_response("POST", 415, "Unsupported Media Type", ("accept-post", self._accept_post))


def negotiate(endpoints: Mapping[str, Endpoint], head: RequestHead) -> tuple[Endpoint, ServerCall] | WholeResponse:
    """The endpoint and the call that a request begins; or the answer, when it is no call or one that cannot go on."""
    endpoint = endpoints.get(head.path)
    if endpoint is None:
        response = plain_response(head.http_method, 404, "Not Found")
        if head.http_method == "POST":
            response.trailers = unserved_status(head)
        return response
    if head.http_method == "POST":
        call = endpoint.call(head)
    elif head.http_method == "GET" and endpoint.by_encoding:
        call = endpoint.call_get(head)
    else:
        return plain_response(head.http_method, 405, "Method Not Allowed", ("allow", endpoint.allow))
    if call is None:
        return endpoint.unsupported_media_type()
    try:
        call.open()
    except ConnectError as error:
        return call.fail(error)
    return endpoint, call


def may_stream(head: RequestHead) -> bool:
    """Whether a request may be a stream of messages, whose client waits for answers before it has ended."""
    return media_type(head.content_type).startswith(("application/connect+", "application/grpc"))


class PlainEndpoint(NamedTuple):
    """A handler that can be called the short way: see ``PlainServerMethod``."""

    server: PlainServerMethod
    handler: Callable[[Any], Any]


def plain_endpoints(
    endpoints: Mapping[str, Endpoint], *, with_trailers: bool = False
) -> dict[tuple[str, str], PlainEndpoint]:
    """The endpoints with a short way, by path and Content-Type as most clients spell it.

    It may be taken by a POST that has the headers ``server.plain_required``, each of them once, and none of
    ``server.plain_refused``, and whose whole body is there and ``server.is_plain``.

    Args:
        endpoints: all of them, by path.
        with_trailers: also those that answer with trailers.
    """
    return {
        (path, name): PlainEndpoint(server, endpoint.handler)
        for path, endpoint in endpoints.items()
        for name, server in endpoint.by_media_type.items()
        if isinstance(server, PlainServerMethod)
        and server.may_be_plain
        and (with_trailers or server.plain_trailers is None)
    }


def plain_response(http_method: str, status: int, reason: str, *headers: tuple[str, str]) -> WholeResponse:
    """An answer that is HTTP alone: what asked is not an RPC."""
    body = reason.encode()
    described = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
    # RFC 9110 section 9.3.2: the length of what another method would bring. Not every server takes the body off.
    return WholeResponse(status, [*described, *headers], b"" if http_method == "HEAD" else body)
