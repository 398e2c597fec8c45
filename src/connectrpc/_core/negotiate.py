"""From the head of a request to the call that it begins, or to an answer that is already complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from connectrpc._core.connect_get import ConnectGetServerMethod, parse_query
from connectrpc._core.connect_stream import ConnectStreamServerMethod
from connectrpc._core.connect_unary import ConnectUnaryServerMethod
from connectrpc._core.grpc import GrpcServerMethod
from connectrpc._core.grpc_web import GrpcWebServerMethod
from connectrpc._core.http import Response
from connectrpc._core.plain import PlainServerMethod
from connectrpc._core.request_headers import media_type
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectrpc._core.call import ServerCall, ServerMethod, ServerSettings
    from connectrpc._core.http import HeaderList, RequestHead
    from connectrpc.codec import Codec
    from connectrpc.method import Method

__all__ = ["Endpoint", "PlainEndpoint", "negotiate", "plain_endpoints", "plain_response"]


class Endpoint:
    """A method of a service with the handler that serves it: everything that is known when the app is built.

    Args:
        method: the method.
        handler: what serves it: called with a request or a stream.
        codecs: the codecs in which it is served.
        settings: the service's.
    """

    __slots__ = ("_accept_post", "allow", "by_encoding", "by_media_type", "handler", "method")

    def __init__(
        self,
        method: Method[Any, Any],
        handler: Callable[[Any], Any],
        codecs: Iterable[Codec],
        settings: ServerSettings,
    ) -> None:
        self.method = method
        self.handler = handler
        self.by_media_type: dict[str, ServerMethod] = {}
        self.by_encoding: dict[str, ServerMethod] = {}
        """How the method is served by GET, by the name of the codec; empty when it is not."""
        for codec in codecs:
            server: ServerMethod
            for make in (GrpcServerMethod, GrpcWebServerMethod):
                server = make(method, codec, settings)
                self.by_media_type.update(dict.fromkeys(server.media_types, server))
            if method.kind is MethodKind.UNARY:
                server = ConnectUnaryServerMethod(method, codec, settings)
                if method.idempotency_level is IdempotencyLevel.NO_SIDE_EFFECTS:
                    self.by_encoding[codec.name] = ConnectGetServerMethod(method, codec, settings)
            else:
                server = ConnectStreamServerMethod(method, codec, settings)
            self.by_media_type.update(dict.fromkeys(server.media_types, server))
        self.allow = "GET, POST" if self.by_encoding else "POST"
        self._accept_post = ", ".join(self.by_media_type)

    def find(self, content_type: str | None) -> ServerMethod | None:
        """How the method is served in a media type; None when it is not."""
        # Most requests spell it just as we do, and need no parsing.
        found = self.by_media_type.get(content_type or "")
        return found if found is not None else self.by_media_type.get(media_type(content_type))

    def find_get(self, query: str) -> ServerMethod | None:
        """How the method is served by GET in the encoding that a query names; None when it is not."""
        encoding = parse_query(query).get("encoding")
        if encoding is None:
            # Any will do to say so in the terms of the protocol.
            return next(iter(self.by_encoding.values()))
        return self.by_encoding.get(encoding)

    def unsupported_media_type(self) -> Response:
        """RFC 9110 section 15.5.16."""
        return plain_response(415, "Unsupported Media Type", [("accept-post", self._accept_post)])


def negotiate(endpoints: Mapping[str, Endpoint], head: RequestHead) -> tuple[Endpoint, ServerCall] | Response:
    """The endpoint and the call that a request begins; or the answer, when it is no call or one that cannot go on."""
    endpoint = endpoints.get(head.path)
    if endpoint is None:
        return plain_response(404, "Not Found", [])
    if head.http_method == "POST":
        server = endpoint.find(head.content_type)
    elif head.http_method == "GET" and endpoint.by_encoding:
        server = endpoint.find_get(head.query)
    else:
        return plain_response(405, "Method Not Allowed", [("allow", endpoint.allow)])
    if server is None:
        return endpoint.unsupported_media_type()
    call = server.call(head)
    try:
        call.open()
    except ConnectError as error:
        return call.fail(error)
    return endpoint, call


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


def plain_response(status: int, reason: str, headers: HeaderList) -> Response:
    """An answer that is HTTP alone: what asked is not an RPC."""
    body = reason.encode()
    return Response(
        status,
        [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *headers],
        body,
    )
