"""Services as ASGI applications (ASGI 3.0, HTTP specification 2.x), for any ASGI server.

A call runs in the server's own task. What ends it early, its deadline or a client that went away, comes as a
cancellation of that task, told from anybody else's by ``_Guard``; it begins to watch when the handler first waits, so
that a handler which never does pays nothing for it.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._aio import timeout
from connectrpc._core.call import messages_of
from connectrpc._core.http import RequestHead, Response
from connectrpc._core.negotiate import negotiate, plain_response
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import AsyncClientStream, ClientRequest
from connectrpc.server.handlers import (
    DRAIN_IDLE_SECONDS,
    DRAIN_MAX_BYTES,
    DRAIN_MAX_SECONDS,
    build_endpoints,
    coded,
    failed,
    last_part,
    logger,
    merge_endpoints,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping

    from typing_extensions import Unpack

    from connectrpc._core.call import ServerCall
    from connectrpc._core.http import HeaderList
    from connectrpc._core.negotiate import Endpoint
    from connectrpc.method import Service
    from connectrpc.server.options import ServiceOptions

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

__all__ = ["ASGIApplication", "asgi_app", "asgi_service"]

_READ_AHEAD_MAX_BYTES = 64 * 1024


class ASGIApplication:
    """One or several services. Any number of tasks may call it."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = dict(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it was accepted: the server answers 403
        else:
            raise NotImplementedError(f"ASGI connections of type {scope['type']!r} are not served")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        negotiated = negotiate(self._endpoints, _Head(scope))
        body = _RequestBody(scope, receive)
        try:
            if body.refusal is not None:
                await _send(body.refusal, send)
            elif isinstance(negotiated, Response):
                await body.drain()
                await _send(negotiated, send)
            else:
                await _call(*negotiated, body, send)
        except _ClientGoneError:
            pass  # there is nobody to answer


def asgi_service(service: Service, implementation: object, **options: Unpack[ServiceOptions]) -> ASGIApplication:
    """The app that serves ``service`` with ``implementation``, whose methods are looked up now.

    Raises:
        TypeError: an option is unknown, or the implementation is no instance.
        ValueError: an option has a value that makes no sense.
    """
    return ASGIApplication(build_endpoints(service, implementation, options, asynchronous=True))


def asgi_app(*services: ASGIApplication) -> ASGIApplication:
    """One app that serves several services.

    Raises:
        ValueError: two of them serve the same path.
    """
    return ASGIApplication(merge_endpoints(service._endpoints for service in services))


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan protocol. There is nothing to set up, but servers ask."""
    while True:
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def _call(endpoint: Endpoint, call: ServerCall, body: _RequestBody, send: Send) -> None:
    guard = _Guard(call, body)
    try:
        if endpoint.method.kind.server_streams:
            await _stream(endpoint, call, body, send, guard)
            return
        try:
            call.deadline.check()
            result = endpoint.handler(await guard.run(_request(call, body)))
            if inspect.isawaitable(result):
                result = await guard.run(result)
            response = call.answer(result)
        except _ClientGoneError:
            raise
        except Exception as error:
            response = failed(call, error)
        guard.stop()
        await body.drain()
        await _send(response, send)
    finally:
        guard.stop()


async def _stream(endpoint: Endpoint, call: ServerCall, body: _RequestBody, send: Send, guard: _Guard) -> None:
    given: Any = None
    try:
        call.deadline.check()
        result = endpoint.handler(await guard.run(_request(call, body)))
        if inspect.isawaitable(result):
            result = await guard.run(result)
        given, headers, stream = messages_of(call.method, result)
        head = call.start(headers)
        messages = given.__aiter__() if hasattr(given, "__aiter__") else _Plain(given)
    except _ClientGoneError:
        raise
    except Exception as error:
        await _close(given, call)
        response = failed(call, error)
        guard.stop()
        await body.drain()
        await _send(response, send)
        return
    failure: ConnectError | None = None
    try:
        await guard.run(_send_head(head.status, head.headers, send))
        while True:
            try:
                message = await guard.run(messages.__anext__())
            except StopAsyncIteration:
                call.deadline.check()
                break
            call.deadline.check()
            if isinstance(message, ConnectError):
                failure = message
                break
            await guard.run(_send_part(call.send(message), send, more=True))
    except _ClientGoneError:
        raise
    except Exception as error:
        failure = coded(call, error)
    finally:
        guard.stop()  # what cleans up is not to be disturbed
        await _close(messages, call)
    last = last_part(call, failure, stream)
    if not body.ended:
        await _send_part(last, send, more=True)
        await body.drain()
        last = b""
    await _send_part(last, send, more=False)


async def _close(messages: Any, call: ServerCall) -> None:
    """Let a handler's generator run its ``finally``, whose failure is nobody's but its own."""
    try:
        if hasattr(messages, "aclose"):
            await messages.aclose()
        elif hasattr(messages, "close"):
            messages.close()
    except Exception as error:
        coded(call, error)


class _Plain:
    """A plain iterable as an asynchronous iterator."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Iterable[Any]) -> None:
        self._messages = iter(messages)

    async def __anext__(self) -> Any:
        try:
            return next(self._messages)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        close = getattr(self._messages, "close", None)
        if close is not None:
            close()


async def _send(response: Response, send: Send) -> None:
    await _send_head(response.status, response.headers, send)
    await _send_part(response.body, send, more=False)


async def _send_head(status: int, headers: HeaderList, send: Send) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await _send_event({"type": "http.response.start", "status": status, "headers": pairs}, send)


async def _send_part(part: bytes, send: Send, *, more: bool) -> None:
    await _send_event({"type": "http.response.body", "body": part, "more_body": more}, send)


async def _send_event(event: dict[str, Any], send: Send) -> None:
    try:
        await send(event)
    except Exception as error:  # ASGI 2.4: an OSError after the client has left; servers differ
        raise _ClientGoneError from error


async def _request(call: ServerCall, body: _RequestBody) -> ClientRequest[Any] | AsyncClientStream[Any]:
    """What the handler is called with.

    Raises:
        ConnectError: a request of one message is none.
    """
    if call.method.kind.client_streams:
        return AsyncClientStream(_messages(call, body), call)
    chunk = await body.read()
    if body.ended:
        return ClientRequest(call.receive(chunk), call)
    while chunk:
        call.take(chunk)
        chunk = await body.read()
    return ClientRequest(call.taken(), call)


async def _messages(call: ServerCall, body: _RequestBody) -> AsyncIterator[Any]:
    while chunk := await body.read():
        for message in call.feed(chunk):
            call.deadline.check()
            yield message
    call.feed_end()


class _ClientGoneError(ConnectError):
    """The client has closed the connection, or its part of it."""

    def __init__(self) -> None:
        super().__init__(ConnectErrorCode.CANCELED, "the client has left")


class _Guard:
    """Cancels the server's task when the call's deadline passes or its client leaves."""

    __slots__ = ("_body", "_call", "_reason", "_stopped", "_task", "_timer")

    def __init__(self, call: ServerCall, body: _RequestBody) -> None:
        self._call = call
        self._body = body
        self._stopped = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason: ConnectError | None = None

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """What ``awaitable`` gives. Everything is awaited in here, until ``stop``.

        Raises:
            ConnectError: ``deadline_exceeded``: the deadline has passed meanwhile.
            _ClientGoneError: the client has left meanwhile.
        """
        try:
            result = await _Watched(awaitable, self)
        except (Exception, asyncio.CancelledError) as error:
            reason = self._reason
            if reason is None or (self._take_back() and isinstance(error, asyncio.CancelledError)):
                raise
            raise reason from None
        if self._reason is not None:  # a handler must not go on, whatever it caught
            self._take_back()
            raise self._reason
        if self._body.gone:
            raise _ClientGoneError
        return result

    def watch(self) -> None:
        """Begin to watch: something is being waited for."""
        if self._task is None:
            self._task = asyncio.current_task()
            left = self._call.deadline.remaining()
            if left is not None:
                self._timer = asyncio.get_running_loop().call_later(left, self._expire)
        self._body.read_ahead(self._leave)

    def stop(self) -> None:
        """Watch no longer: what is still to be done is done in any case."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._body.stop_reading_ahead()

    def _expire(self) -> None:
        self._fire(ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed"))

    def _leave(self) -> None:
        self._fire(_ClientGoneError())

    def _fire(self, reason: ConnectError) -> None:
        if self._reason is None and self._task is not None and not self._stopped:
            self._reason = reason
            self._task.cancel()

    def _take_back(self) -> bool:
        """Take our cancellation of the task back; whether somebody else has cancelled it too."""
        if sys.version_info >= (3, 11):
            assert self._task is not None
            return self._task.uncancel() > 0
        return False


class _Watched:
    """Awaits something, and has the guard watch only if that has to wait."""

    __slots__ = ("_awaitable", "_guard")

    def __init__(self, awaitable: Awaitable[Any], guard: _Guard) -> None:
        self._awaitable = awaitable
        self._guard = guard

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._awaitable.__await__()
        try:
            pending = next(steps)
            while True:
                self._guard.watch()
                try:
                    sent = yield pending
                except BaseException as error:
                    pending = steps.throw(error)
                else:
                    pending = steps.send(sent)
        except StopIteration as done:
            return done.value


class _Head(RequestHead):
    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.http_method = scope["method"]
        path, root = scope["path"], scope.get("root_path", "").rstrip("/")
        # Servers differ in whether `path` holds `root_path`.
        if root and path.startswith(root) and path[len(root) : len(root) + 1] == "/":
            path = path[len(root) :]
        self.path = path
        self.query = scope["query_string"].decode("latin-1")
        fields: dict[bytes, str | None] = dict.fromkeys(_FIELDS)
        for name, value in scope["headers"]:
            if name in fields:
                text, before = value.decode("latin-1"), fields[name]
                # RFC 9110 section 5.3: what is repeated is one list.
                fields[name] = text if before is None else f"{before}, {text}"
        self.content_type = fields[b"content-type"]
        self.content_encoding = fields[b"content-encoding"]
        self.accept_encoding = fields[b"accept-encoding"]
        self.connect_protocol_version = fields[b"connect-protocol-version"]
        self.connect_timeout_ms = fields[b"connect-timeout-ms"]
        self.connect_content_encoding = fields[b"connect-content-encoding"]
        self.connect_accept_encoding = fields[b"connect-accept-encoding"]

    def read_headers(self) -> CIMultiDict[str]:
        return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._scope["headers"])

    def peer_address(self) -> str:
        client = self._scope.get("client")
        if not client:
            return ""
        host, port = client[0], client[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_FIELDS = (
    b"content-type",
    b"content-encoding",
    b"accept-encoding",
    b"connect-protocol-version",
    b"connect-timeout-ms",
    b"connect-content-encoding",
    b"connect-accept-encoding",
)


class _RequestBody:
    """The body of a request, and the news that the client has left.

    While something else is waited for, a task reads ahead, within bounds: that is how ASGI tells that a client leaves.

    Attributes:
        ended: whether all of it has been given out.
        gone: whether the client has left.
        refusal: the answer to a request whose body cannot be read at all, or None.
    """

    __slots__ = ("_ahead", "_ahead_bytes", "_changed", "_reader", "_receive", "_receiving", "ended", "gone", "refusal")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._receiving = False
        self._reader: asyncio.Task[None] | None = None
        self._changed: asyncio.Event | None = None
        self._ahead: collections.deque[dict[str, Any]] | None = None
        self._ahead_bytes = 0
        self.gone = False
        self.refusal: Response | None = None
        length = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
                if not value.isdigit():
                    self.refusal = plain_response(400, "Bad Request", [])
        # Some servers' receive() never returns when the end came with the head.
        self.ended = scope["method"] in ("GET", "HEAD") if length is None else not length.strip(b"0")

    async def read(self) -> bytes:
        """The next bytes as soon as there are any; none at the end.

        Raises:
            _ClientGoneError: the client left before the end.
        """
        while not self.ended:
            event = await self._next()
            if self.gone:
                raise _ClientGoneError
            self.ended = not event.get("more_body", False)
            chunk: bytes = event.get("body", b"")
            if chunk:
                return chunk
        return b""

    async def _next(self) -> dict[str, Any]:
        while not self._ahead and self._reader is not None and not self.gone:
            await self._change()
        if not self._ahead:
            self._receiving = True
            try:
                return {} if self.gone else await self._event()
            finally:
                self._receiving = False
        event = self._ahead.popleft()
        self._ahead_bytes -= len(event.get("body", b""))
        if self._changed is not None:
            self._changed.set()
        return event

    async def _event(self) -> dict[str, Any]:
        try:
            event = await self._receive()
        except Exception:  # servers differ in how they say that a client has left
            self.gone = True
            return {}
        if event["type"] == "http.disconnect":
            self.gone = True
        return event

    async def _change(self) -> None:
        assert self._changed is not None
        self._changed.clear()
        await self._changed.wait()

    def read_ahead(self, on_leave: Callable[[], None]) -> None:
        """Have a task receive events, unless somebody is doing so, and call ``on_leave`` when the client has left."""
        if self._reader is None and not self._receiving and not self.gone:
            self._ahead = self._ahead or collections.deque()
            self._changed = asyncio.Event()
            self._reader = asyncio.ensure_future(self._read_ahead(self._ahead, self._changed, on_leave))

    def stop_reading_ahead(self) -> None:
        """End what ``read_ahead`` began. What it has read is still given out."""
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read_ahead(
        self, ahead: collections.deque[dict[str, Any]], changed: asyncio.Event, on_leave: Callable[[], None]
    ) -> None:
        complete = self.ended
        while True:
            event = await self._event()
            if self.gone:
                changed.set()
                on_leave()
                return
            if complete:
                # A server that gives empty events for ever, without waiting, must not take the loop for itself.
                await asyncio.sleep(0.05)
                continue
            complete = not event.get("more_body", False)
            ahead.append(event)
            self._ahead_bytes += len(event.get("body", b""))
            changed.set()
            while self._ahead_bytes > _READ_AHEAD_MAX_BYTES:
                await self._change()

    async def drain(self) -> None:
        """Read what is left, within bounds, and throw it away."""
        if self.ended:
            return
        drained, until = 0, time.monotonic() + DRAIN_MAX_SECONDS
        try:
            while drained <= DRAIN_MAX_BYTES and time.monotonic() < until:
                async with timeout(DRAIN_IDLE_SECONDS):
                    chunk = await self.read()
                if not chunk:
                    return
                drained += len(chunk)
        except asyncio.TimeoutError:
            pass
        logger.info("gave up reading a request that had its answer already")
