"""What a service's handlers are given, and what they give back. Plain values: nothing here does I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from multidict import CIMultiDict

from connectrpc.errors import ConnectError
from connectrpc.headers import iter_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["AsyncClientStream", "ClientRequest", "ClientStream", "Peer", "ServerResponse", "ServerStream"]

T = TypeVar("T")


class Peer:
    """Who calls.

    Attributes:
        address: ``"host:port"`` of the caller as the HTTP server tells it; the host alone where there is no port to
            tell, and ``""`` where nothing is known, as on Unix sockets. Behind a proxy it is the proxy.
        protocol: the RPC protocol that the caller speaks, such as ``"connect"``.
    """

    __slots__ = ("address", "protocol")

    def __init__(self, address: str, protocol: str) -> None:
        self.address = address
        self.protocol = protocol

    def __repr__(self) -> str:
        return f"Peer(address={self.address!r}, protocol={self.protocol!r})"


class _CallInfo(Protocol):
    """What a handler may ask about its call. Headers and peer are only built when asked for."""

    @property
    def method(self) -> Method[Any, Any]: ...
    @property
    def deadline(self) -> Deadline: ...
    def request_headers(self) -> CIMultiDict[str]: ...
    def peer(self) -> Peer: ...


class _Call:
    """The part that requests and streams have in common."""

    __slots__ = ("_call", "_values")

    _call: _CallInfo
    _values: dict[object, Any] | None

    @property
    def headers(self) -> CIMultiDict[str]:
        """The request's headers. Under WSGI a header that was sent several times is one value, joined by commas."""
        return self._call.request_headers()

    @property
    def timeout(self) -> Deadline:
        """How long the call may take: the caller's deadline, or the server's own limit when that is shorter."""
        return self._call.deadline

    @property
    def method(self) -> Method[Any, Any]:
        """The RPC that is being called."""
        return self._call.method

    @property
    def peer(self) -> Peer:
        """Who calls."""
        return self._call.peer()

    @property
    def values(self) -> dict[object, Any]:
        """What interceptors have kept for the handler: ``CallContext.values``. Empty without any."""
        if self._values is None:
            self._values = {}
        return self._values


class ClientRequest(_Call, Generic[T]):
    """A request of exactly one message.

    Attributes:
        msg: the message.
    """

    __slots__ = ("_trailers", "msg")

    def __init__(self, msg: T, call: _CallInfo) -> None:
        self.msg = msg
        self._call = call
        self._values = None
        self._trailers: CIMultiDict[str] | None = None

    @property
    def trailers(self) -> CIMultiDict[str]:
        """The request's trailers. None of the protocols sends any, so it is empty; it stands beside ``headers``."""
        if self._trailers is None:
            self._trailers = CIMultiDict()
        return self._trailers

    def __repr__(self) -> str:
        return f"<ClientRequest {self.method.path}>"


class ClientStream(_Call, Generic[T]):
    """A request of any number of messages, each given as soon as it is there. Can be iterated once.

    Iterating raises ``ConnectError`` when the stream breaks off, holds what is no message, or outlasts the deadline;
    a handler that lets it pass answers with that error.
    """

    __slots__ = ("_messages",)

    def __init__(self, messages: Iterator[T], call: _CallInfo) -> None:
        self._messages = messages
        self._call = call
        self._values = None

    def __iter__(self) -> Iterator[T]:
        return self._messages

    def __repr__(self) -> str:
        return f"<ClientStream {self.method.path}>"


class AsyncClientStream(_Call, Generic[T]):
    """``ClientStream`` for async handlers: iterate it with ``async for``."""

    __slots__ = ("_messages",)

    def __init__(self, messages: AsyncIterator[T], call: _CallInfo) -> None:
        self._messages = messages
        self._call = call
        self._values = None

    def __aiter__(self) -> AsyncIterator[T]:
        return self._messages

    def __repr__(self) -> str:
        return f"<AsyncClientStream {self.method.path}>"


def _multidict(given: HeaderInput | None) -> CIMultiDict[str]:
    if isinstance(given, CIMultiDict):
        return cast("CIMultiDict[str]", given)
    return CIMultiDict(iter_headers(given or {}))


class _Metadata:
    """Headers and trailers of an answer. A multidict is only made of them when somebody looks."""

    __slots__ = ("_headers", "_trailers")

    _headers: HeaderInput | None
    _trailers: HeaderInput | None

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers to answer with. May be changed until the answer's first byte goes out."""
        headers = self._headers = _multidict(self._headers)
        return headers

    @property
    def trailers(self) -> CIMultiDict[str]:
        """The trailers to end with. May be changed until the end, by a stream's generator too."""
        trailers = self._trailers = _multidict(self._trailers)
        return trailers

    def metadata(self) -> tuple[HeaderInput | None, HeaderInput | None]:
        """Headers and trailers as they were given, for the runtime."""
        return self._headers, self._trailers


class ServerResponse(_Metadata, Generic[T]):
    """An answer of one message or an error, with headers and trailers.

    Args:
        payload: the message, or the error to answer with.
        headers: sent before it.
        trailers: sent after it.

    Attributes:
        msg: the message, or None when the answer is an error.
        error: the error, or None.
    """

    __slots__ = ("error", "msg")

    def __init__(
        self,
        payload: T | ConnectError,
        headers: HeaderInput | None = None,
        trailers: HeaderInput | None = None,
    ) -> None:
        self.msg: T | None
        self.error: ConnectError | None
        if isinstance(payload, ConnectError):
            self.msg, self.error = None, payload
        else:
            self.msg, self.error = payload, None
        self._headers = headers
        self._trailers = trailers


class ServerStream(_Metadata, Generic[T]):
    """An answer of any number of messages, with headers and trailers.

    Args:
        msgs: the messages; a generator, a list, in async handlers also an async iterable. It may give a
            ``ConnectError`` at any point, which ends the stream with that error. It is closed when the stream ends,
            also when the caller goes away.
        headers: sent at once, before the first message.
        trailers: sent at the end; the mapping may still be changed while the stream runs.

    Attributes:
        msgs: as given.
    """

    __slots__ = ("msgs",)

    def __init__(
        self,
        msgs: Iterable[T | ConnectError] | AsyncIterable[T | ConnectError],
        headers: HeaderInput | None = None,
        trailers: HeaderInput | None = None,
    ) -> None:
        self.msgs = msgs
        self._headers = headers
        self._trailers = trailers
