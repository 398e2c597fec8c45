"""Code that runs around calls, such as authentication, retries, metrics. One model for both sides and both colours.

There are two levels. ``Hooks`` are told what happens; they do no I/O, and the same object works everywhere. An
interceptor stands around the call: it may wait, replace messages, call again, or refuse::

    def log(request, proceed):
        started = time.monotonic()
        try:
            return proceed(request)
        finally:
            print(request.context.method.path, time.monotonic() - started)

    async def authenticate(request, proceed):
        if not await is_known(request.context.request_headers.get("authorization")):
            raise ConnectError(ConnectErrorCode.UNAUTHENTICATED, "who are you?")
        return await proceed(request)

Where the answer is a stream, ``proceed`` returns before its messages are there. A handler runs, and fails, while
``response.messages`` is iterated; whoever has to stand around that replaces them by a generator::

    def log(request, proceed):
        response = proceed(request)
        if response.messages is not None:
            response.messages = logged(response.messages)
        return response

Give either to a client or a service with the option ``interceptors``. The first of the list is the outermost. What an
interceptor raises ends the call: a ``ConnectError`` as it is, anything else as a coded error with that as its cause.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

if TYPE_CHECKING:
    from connectrpc.deadline import Deadline
    from connectrpc.method import Method
    from connectrpc.request import Peer

__all__ = ["AsyncInterceptor", "CallContext", "Hooks", "Interceptor", "Request", "Response"]


class CallContext:
    """What is known of a call while it runs. The same object for all interceptors of the call.

    Attributes:
        method: the RPC.
        peer: on a server who calls; on a client the address is the base URL.
        timeout: what is left of the deadline.
        request_headers: on a client they may be changed until the request goes out.
        is_client: whether this is the client's side.
        values: for interceptors to keep things in, by keys of their own. A handler finds them in its request's
            ``values``.
    """

    __slots__ = (
        "_begun",
        "_call",
        "_error",
        "_failure",
        "is_client",
        "method",
        "peer",
        "request_headers",
        "timeout",
        "values",
    )

    def __init__(
        self,
        *,
        method: Method[Any, Any],
        peer: Peer,
        timeout: Deadline,
        request_headers: CIMultiDict[str],
        is_client: bool,
    ) -> None:
        self.method = method
        self.peer = peer
        self.timeout = timeout
        self.request_headers = request_headers
        self.is_client = is_client
        self.values: dict[object, Any] = {}
        self._begun: list[Any] = []
        """What is to be closed when the call is over, whatever interceptors made of it: streams of messages, and hooks
        that are still to be told of the end."""
        self._call: Any = None
        """What the handler may ask, on a service."""
        self._error: tuple[Any, tuple[CIMultiDict[str], ...]] = (None, ())
        """An error that a handler has given, and the headers and trailers that came with it. Not on the error itself:
        that may be used for other calls too."""
        self._failure: BaseException | None = None
        """What ended the call after it had left the interceptors, such as an answer that cannot be encoded."""

    def __repr__(self) -> str:
        return f"<CallContext {self.method.path}>"


class Request:
    """What goes in. Its messages may be replaced, by assigning to it. Each interceptor has one of its own: what it
    assigns is for those further in, and whoever stands around it can call again with what it had.

    Attributes:
        context: the call.
        message: the message, where the method takes one.
        messages: the messages, where it takes a stream; an iterable, in async code also an async iterable.
    """

    __slots__ = ("context", "message", "messages")

    def __init__(
        self,
        context: CallContext,
        message: Any = None,
        messages: Iterable[Any] | AsyncIterable[Any] | None = None,
    ) -> None:
        self.context = context
        self.message = message
        self.messages = messages


class Response:
    """What comes out. It may be changed, or replaced by another. An error is not a response: it is raised.

    Attributes:
        message: the message, where the method gives one.
        messages: the messages, where it gives a stream; an iterable, in async code also an async iterable. An error in
            the middle of it is raised by iterating.
        headers: sent, or received, before it.
        trailers: sent, or received, after it. Those of a stream are there when it has ended.
    """

    __slots__ = ("headers", "message", "messages", "trailers")

    def __init__(
        self,
        message: Any = None,
        messages: Iterable[Any] | AsyncIterable[Any] | None = None,
        headers: CIMultiDict[str] | None = None,
        trailers: CIMultiDict[str] | None = None,
    ) -> None:
        self.message = message
        self.messages = messages
        self.headers: CIMultiDict[str] = CIMultiDict() if headers is None else headers
        self.trailers: CIMultiDict[str] = CIMultiDict() if trailers is None else trailers


Interceptor = Callable[[Request, Callable[[Request], Response]], Response]
"""Stands around calls of synchronous clients and services."""

AsyncInterceptor = Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]
"""Stands around calls of asynchronous clients and services."""


class Hooks:
    """Is told what happens in calls. Override what you want to know; every method is called in the call's own thread or
    task (but see ``on_request_message``), must not block, and belongs to no call: keep what you need in
    ``context.values``.

    What a method raises ends the call, as if an interceptor had raised it. Only ``on_end`` comes too late for that.
    """

    def on_start(self, context: CallContext) -> None:
        """A call begins. On a client, the request's headers may still be changed."""

    def on_request_message(self, context: CallContext, message: Any) -> None:
        """A message of the request: sent by a client, received by a service.

        Those of a client's stream may be told in another thread or task, which sends them while the answer is read. It
        has the caller's context variables.
        """

    def on_response_headers(self, context: CallContext, headers: CIMultiDict[str]) -> None:
        """The headers of the answer. On a service, they may still be changed."""

    def on_response_message(self, context: CallContext, message: Any) -> None:
        """A message of the answer: received by a client, sent by a service."""

    def on_end(self, context: CallContext, error: BaseException | None, trailers: CIMultiDict[str]) -> None:
        """The call is over. What is raised here is logged, as an error of ``connectrpc.client`` or
        ``connectrpc.server``, and changes nothing: the call ends as it would have, and other hooks are told.

        Args:
            context: the call.
            error: what ended it early: a ``ConnectError``, a handler's own exception, a cancellation; or None. In
                whatever way a deadline ends a call, it is a ``ConnectError`` with ``deadline_exceeded``. On a service
                also why an answer could not be encoded, or was too large.
            trailers: of the answer. On a service that answers without an error, they may still be changed.
        """
