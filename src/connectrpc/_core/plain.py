"""The short way of a unary call.

Most unary calls are *plain*: they bring no timeout and no compression, and what the handler gives is a message. For
these a ``PlainServerMethod`` is the whole protocol: neither a ``RequestHead`` nor a ``ServerCall`` is made. All others
take the long way, which can begin at any point of the short one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectrpc._core.call import ServerMethod
from connectrpc._core.message import MessageReader, encode
from connectrpc.deadline import NO_DEADLINE
from connectrpc.errors import ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidict import CIMultiDict

    from connectrpc._core.call import ServerCall, ServerSettings
    from connectrpc._core.http import RequestHead, WholeResponse
    from connectrpc.codec import Codec
    from connectrpc.method import Method
    from connectrpc.request import Peer

__all__ = ["PlainServerCall", "PlainServerMethod"]

_PLAIN_MAX_BYTES = 1024 * 1024
"""Larger messages gain nothing by the short way."""


class PlainServerMethod(ServerMethod):
    """A method that has a short way.

    Attributes:
        may_be_plain: whether calls of the method can be plain at all.
        plain_max_bytes: the longest message that goes the short way.
        plain_required: the headers that a plain call has, all but its Content-Type.
        plain_refused: the headers that it has not.
        plain_headers: those of its answer. Where there are no trailers, its length is to be added.
        plain_trailers: those of its answer, or None where the protocol has none.
        reader: makes messages of payloads that are not compressed, and not too long.
    """

    __slots__ = ("may_be_plain", "plain_headers", "plain_max_bytes", "plain_trailers", "reader")

    plain_required: tuple[tuple[str, str], ...]
    plain_refused: frozenset[str]
    plain_headers: tuple[tuple[str, str], ...]
    plain_trailers: tuple[tuple[str, str], ...] | None

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        super().__init__(method, codec, settings)
        self.may_be_plain = settings.max_timeout_ms is None  # with a limit of the service's, all have a deadline
        limit = settings.read_max_bytes
        self.plain_max_bytes = _PLAIN_MAX_BYTES if limit is None else min(limit, _PLAIN_MAX_BYTES)
        self.reader = MessageReader(codec, method.input, None, None, ConnectErrorCode.INVALID_ARGUMENT)

    def is_plain(self, body: bytes) -> bool:
        """Whether a whole body may go the short way."""
        return len(body) <= self.plain_max_bytes

    def read_plain(self, body: bytes) -> Any:
        """The message in a body that ``is_plain``.

        Raises:
            ConnectError: ``invalid_argument``.
        """
        return self.reader.read(body, False)

    def write_plain(self, result: object, call: PlainServerCall) -> bytes | WholeResponse:
        """The body of a 200 with ``plain_headers`` and ``plain_trailers``, or the answer of the long way.

        Raises:
            Exception: as ``ServerCall.answer``.
        """
        if not isinstance(result, self.method.output):
            return call.long_way().answer(result)
        payload = encode(self.encoder, result)
        settings = self.settings
        if len(payload) >= settings.compress_min_bytes or settings.send_max_bytes is not None:
            return call.long_way().respond_with(payload, None, None)
        return payload


class PlainServerCall:
    """What a handler may ask about a plain call. Asking is the beginning of the long way.

    Args:
        server: the method.
        head: what makes a ``RequestHead`` of the request.
        native: the request, in the server's own form.
    """

    __slots__ = ("_call", "_head", "_native", "_server")

    deadline = NO_DEADLINE
    keeps_failure = False  # as of a ``ServerCall``; only those of streams do

    def __init__(self, server: PlainServerMethod, head: Callable[[Any], RequestHead], native: Any) -> None:
        self._server = server
        self._head = head
        self._native = native
        self._call: ServerCall | None = None

    @property
    def method(self) -> Method[Any, Any]:
        return self._server.method

    def request_headers(self) -> CIMultiDict[str]:
        return self.long_way().request_headers()

    def peer(self) -> Peer:
        return self.long_way().peer()

    def long_way(self) -> ServerCall:
        if self._call is None:
            self._call = self._server.call(self._head(self._native))
            self._call.open()  # cannot fail: what could be refused is not there
        return self._call
