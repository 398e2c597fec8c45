"""From the head of a request to the call that it begins, or to an answer that is already complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectrpc._core.connect import media_type
from connectrpc._core.connect_stream import ConnectStreamServerMethod
from connectrpc._core.connect_unary import ConnectUnaryServerMethod
from connectrpc._core.http import Response
from connectrpc.errors import ConnectError
from connectrpc.method import MethodKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectrpc._core.call import ServerCall, ServerMethod, ServerSettings
    from connectrpc._core.http import HeaderList, RequestHead
    from connectrpc.codec import Codec
    from connectrpc.method import Method

__all__ = ["Endpoint", "negotiate", "plain_response"]


class Endpoint:
    """A method of a service with the handler that serves it: everything that is known when the app is built.

    Args:
        method: the method.
        handler: what serves it: called with a request or a stream.
        codecs: the codecs in which it is served.
        settings: the service's.
    """

    __slots__ = ("_accept_post", "by_media_type", "handler", "method")

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
        for codec in codecs:
            server: ServerMethod
            if method.kind is MethodKind.UNARY:
                server = ConnectUnaryServerMethod(method, codec, settings)
            else:
                server = ConnectStreamServerMethod(method, codec, settings)
            for name in server.media_types:
                self.by_media_type[name] = server
        self._accept_post = ", ".join(self.by_media_type)

    def find(self, content_type: str | None) -> ServerMethod | None:
        """How the method is served in a media type; None when it is not."""
        # Most requests spell it just as we do, and need no parsing.
        found = self.by_media_type.get(content_type or "")
        return found if found is not None else self.by_media_type.get(media_type(content_type))

    def unsupported_media_type(self) -> Response:
        """RFC 9110 section 15.5.16."""
        return plain_response(415, "Unsupported Media Type", [("accept-post", self._accept_post)])


def negotiate(endpoints: Mapping[str, Endpoint], head: RequestHead) -> tuple[Endpoint, ServerCall] | Response:
    """The endpoint and the call that a request begins; or the answer, when it is no call or one that cannot go on."""
    endpoint = endpoints.get(head.path)
    if endpoint is None:
        return plain_response(404, "Not Found", [])
    if head.http_method != "POST":
        return plain_response(405, "Method Not Allowed", [("allow", "POST")])
    server = endpoint.find(head.content_type)
    if server is None:
        return endpoint.unsupported_media_type()
    call = server.call(head)
    try:
        call.open()
    except ConnectError as error:
        return call.fail(error)
    return endpoint, call


def plain_response(status: int, reason: str, headers: HeaderList) -> Response:
    """An answer that is HTTP alone: what asked is not an RPC."""
    body = reason.encode()
    return Response(
        status,
        [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *headers],
        body,
    )
