"""Apps of the same process as the other end of a transport, without a socket. For tests; see ``connectrpc.testing``."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from connectrpc._core.http import HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline
    from connectrpc.transports.base import AsyncResponse, SyncResponse
    from connectrpc.transports.memory.asgi import ASGIApp
    from connectrpc.transports.memory.exchange import Exchange
    from connectrpc.transports.memory.wsgi import WSGIApp

__all__ = ["ASGITransport", "WSGITransport"]


class _Transport:
    """A transport of both colours: whoever gives a deadline, if only the one that never comes, waits by blocking."""

    has_trailers = True

    @overload
    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> SyncResponse: ...

    @overload
    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> AsyncResponse: ...

    def send(
        self,
        request: HTTPRequest,
        body: Any,
        *,
        stream: bool = True,  # noqa: ARG002  any answer may be read in chunks
        deadline: Deadline | None = None,
        opening: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> SyncResponse | Coroutine[Any, Any, AsyncResponse]:
        """As ``SyncTransport.send``; without ``deadline``, as ``AsyncTransport.send``."""
        if deadline is None:
            from connectrpc.transports.memory import aio

            return aio.send(self._serve_here, request, body)
        from connectrpc.transports.memory import sync

        return sync.send(self._serve, request, body, deadline, opening or deadline, cancel)

    def _serve(self, exchange: Exchange) -> None:
        raise NotImplementedError

    def _serve_here(self, exchange: Exchange) -> None:
        raise NotImplementedError


class WSGITransport(_Transport):
    """Calls a WSGI app (PEP 3333) of this process, without a socket. For clients of both colours.

    Every call of the app has a thread of its own, with the context variables that there were when the transport was
    made. Requests and answers are streams in both directions, also at the same time, as over HTTP/2, with trailers;
    who sends faster than the other reads waits. A client that leaves early has the app's iterable closed at its next
    part. What the app raises, and what it does against the specification, is raised where the client waits.

    Several clients can use it, and none of them closes it. Leaving it by ``with`` or ``async with``, or ``close``, ends
    the calls that are still under way; the app is waited for, two seconds at most.

    Args:
        app: the app.
    """

    def __init__(self, app: WSGIApp) -> None:
        from connectrpc.transports.memory.wsgi import WSGIServer

        self._server = WSGIServer(app, contextvars.copy_context())
        self._entered = False

    def _serve(self, exchange: Exchange) -> None:
        self._server.serve(exchange)

    _serve_here = _serve

    def close(self) -> None:
        """End the calls that are under way, unless the transport was entered."""
        if not self._entered:
            self._server.stop()

    async def aclose(self) -> None:
        """As ``close``."""
        if not self._entered:
            await self._astop()

    async def _astop(self) -> None:
        from connectrpc.transports.memory import aio

        await aio.stop(self._server)

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError("this transport has been entered already")
        self._entered = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        self._server.stop()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        await self._astop()


class ASGITransport(_Transport):
    """Calls an ASGI app (ASGI 3.0) of this process, without a socket. For clients of both colours.

    Every call of the app has a task of its own, with the context variables that there were when the transport was
    made: in the event loop of a client that awaits, and for clients that block, in a loop in a thread that begins with
    the first of their calls. Requests and answers are streams in both directions, also at the same time, as over
    HTTP/2, with trailers; who sends faster than the other reads waits. A client that leaves early is told to the app as
    ``http.disconnect``. What the app raises, and what it does against the specification, is raised where the client
    waits.

    Entering it, by ``with`` or ``async with``, runs the app's lifespan: startup and shutdown, whose failures are raised
    as ``RuntimeError``. Until it is left all calls run in the loop of the lifespan. An app that knows of no lifespan
    does without.

    Several clients can use it, and none of them closes it. Leaving it, or ``close``, ends the calls that are still
    under way, the loop and its thread; the app is waited for and, after two seconds, cancelled. A transport that was
    neither entered nor closed ends with the last reference to it.

    Args:
        app: the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        from connectrpc.transports.memory.asgi import ASGIServer  # which loads asyncio

        self._server = ASGIServer(app, contextvars.copy_context())

    def _serve(self, exchange: Exchange) -> None:
        self._server.serve(exchange)

    def _serve_here(self, exchange: Exchange) -> None:
        self._server.serve_here(exchange)

    def close(self) -> None:
        """End the calls that are under way for clients that block, and their loop, unless the transport was entered."""
        if not self._server.entered:
            self._server.stop_thread()

    async def aclose(self) -> None:
        """End the calls that are under way in this event loop, unless the transport was entered."""
        if not self._server.entered:
            await self._server.stop_here()

    def __enter__(self) -> Self:
        self._server.enter_thread()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.leave_thread()

    async def __aenter__(self) -> Self:
        await self._server.enter()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._server.leave()
