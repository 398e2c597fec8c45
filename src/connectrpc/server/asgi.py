"""Services as ASGI applications (ASGI 3.0, HTTP specification 2.x), for any ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any

from connectrpc._aio import timeout
from connectrpc._core.call import StreamServerCall, messages_of
from connectrpc._core.chain import aclose_messages, as_async
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import may_stream, negotiate, plain_endpoints
from connectrpc._core.plain import PlainServerCall
from connectrpc.deadline import NO_DEADLINE
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import AsyncClientStream, ClientRequest
from connectrpc.server.asgi_guard import Guard, cancellations
from connectrpc.server.asgi_request import (
    LEFT,
    ClientGoneError,
    Head,
    RequestBody,
    body_of,
    can_send_trailers,
    path_of,
)
from connectrpc.server.endpoints import build_endpoints, check_services, find_handlers, merge_endpoints
from connectrpc.server.handlers import DRAIN_MAX_SECONDS, StrayError, coded, failed, last_part, logger, ordinary
from connectrpc.server.implementations import as_lifespan

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Coroutine,
        Generator,
        Iterable,
        Mapping,
    )

    from typing_extensions import Unpack

    from connectrpc._core.call import ServerCall
    from connectrpc._core.http import ResponseHead
    from connectrpc._core.negotiate import Endpoint, PlainEndpoint
    from connectrpc.method import Method, Service
    from connectrpc.server.asgi_request import Event, Receive, Scope, Send
    from connectrpc.server.options import ServiceOptions

__all__ = ["ASGIApplication", "asgi_app", "asgi_service"]

# How long a server may take the end of a call that it has cancelled. A server that stops waits for it.
_CANCELLED_MAX_SECONDS = 1.0


class ASGIApplication:
    """One or several services. Any number of tasks may call it."""

    def __init__(self, parts: Iterable[_Part]) -> None:
        self._parts = tuple(parts)
        self._living = False  # between the startup and the shutdown of the lifespan
        self._use(part.endpoints for part in self._parts)

    @property
    def methods(self) -> tuple[Method[Any, Any], ...]:
        """The RPCs that it serves."""
        return tuple(endpoint.method for endpoint in self._endpoints.values())

    def _use(self, parts: Iterable[Mapping[str, Endpoint]]) -> None:
        self._endpoints = merge_endpoints(parts)
        self._short_ways = {
            (path, content_type.encode("latin-1")): _ShortWay(plain)
            for (path, content_type), plain in plain_endpoints(self._endpoints, with_trailers=True).items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            short_way = self._find_short_way(scope)
            try:  # contextlib.suppress would be a sixth of what a plain call costs
                if short_way is None:
                    await self._serve(scope, body_of(scope, receive), send)
                else:
                    await self._serve_plain(short_way, scope, receive, send)
            except ClientGoneError:
                pass  # there is nobody to answer
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it was accepted: the server answers 403
        else:
            raise NotImplementedError(f"ASGI connections of type {scope['type']!r} are not served")

    def _find_short_way(self, scope: Scope) -> _ShortWay | None:
        """The short way of a call that may take it."""
        headers = scope["headers"]
        fields: dict[bytes, bytes] = dict(headers)
        found = self._short_ways.get((path_of(scope), fields.get(b"content-type", b"")))
        if (
            found is not None
            and scope["method"] == "POST"
            and len(fields) == len(headers)  # nothing was sent twice
            and found.refused.isdisjoint(fields)
            and found.required <= fields.items()
            and (found.trailers is None or can_send_trailers(scope))
        ):
            length = fields.get(b"content-length")
            # Where there is no body, some servers' receive() never returns.
            if length is None or (length.isdigit() and length.strip(b"0")):
                return found
        return None

    async def _serve_plain(self, short_way: _ShortWay, scope: Scope, receive: Receive, send: Send) -> None:
        """The short way of a call that asks for nothing special; it turns into the long one when something comes up."""
        try:
            event = await receive()
        except Exception:  # servers differ in how they say that a client has left
            event = LEFT
        body = event.get("body", b"")
        server = short_way.server
        if event["type"] != "http.request" or event.get("more_body", False) or not server.is_plain(body):
            await self._serve(scope, body_of(scope, receive, event), send)
            return
        call = PlainServerCall(server, Head, scope)
        answer: bytes | WholeResponse
        try:
            result = short_way.handler(ClientRequest(server.read_plain(body), call))
            if inspect.isawaitable(result):
                steps = result.__await__()
                try:
                    pending = next(steps)
                except StopIteration as done:
                    result = done.value
                except (Exception, KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # before anything has waited: nobody can have cancelled it
                    raise StrayError(error)  # noqa: B904  it has it as its cause
                else:
                    result = await _wait(steps, pending, receive)
            answer = server.write_plain(result, call)
        except ClientGoneError:
            await _forgo(send)
            return
        except Exception as error:
            answer = failed(call.long_way(), error)
        except asyncio.CancelledError:
            await _tell(_send(call.long_way().fail(_cancelled()), send))
            raise
        if isinstance(answer, WholeResponse):
            await _send(answer, send)
        elif short_way.trailers is None:
            await _send_answer(200, [*short_way.headers, _length(answer)], answer, send)
        else:
            await _send_answer(200, [*short_way.headers], answer, send, [*short_way.trailers])

    def _serve(self, scope: Scope, body: RequestBody | WholeResponse, send: Send) -> Coroutine[Any, Any, None]:
        """The long way, to be awaited: a coroutine of its own would cost each message of a stream a little."""
        if isinstance(body, WholeResponse):
            return _send(body, send)
        head = Head(scope)
        negotiated = negotiate(self._endpoints, head)
        if isinstance(negotiated, WholeResponse):
            body.open = may_stream(head)
            return _answer(negotiated, body, send)
        return _call(*negotiated, body, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan protocol. Most services need nothing of it, but servers ask."""
        await receive()
        step = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
                step = "shutdown"
        except Exception:
            logger.exception("the %s of a service failed", step)
            await send({"type": f"lifespan.{step}.failed", "message": f"the {step} of a service failed"})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """While it is entered, the implementations are there that are made in the lifespan.

        A server that runs the app by itself does this. A framework that mounts it does not, and enters this in a
        lifespan of its own: ``Starlette(lifespan=lambda _: app.lifespan(), ...)``.

        Raises:
            RuntimeError: implementations are made in it, and it is entered already. It may be once it is left.
        """
        if not any(part.made_in_lifespan for part in self._parts):
            yield
            return
        if self._living:
            raise RuntimeError("the lifespan of this app is entered already: by the server, or by another framework?")
        self._living = True
        try:
            async with contextlib.AsyncExitStack() as stack:
                self._use([await stack.enter_async_context(part.start()) for part in self._parts])
                try:
                    yield
                finally:
                    self._use(part.endpoints for part in self._parts)
        finally:
            self._living = False


class _ShortWay:
    """What is known of plain calls of a method, in ASGI's own form."""

    __slots__ = ("handler", "headers", "refused", "required", "server", "trailers")

    def __init__(self, plain: PlainEndpoint) -> None:
        server, trailers = plain.server, plain.server.plain_trailers
        self.server = server
        self.handler = plain.handler
        self.required = frozenset(_native(server.plain_required))
        self.refused = frozenset(name.encode("latin-1") for name in server.plain_refused)
        self.headers = _native(server.plain_headers)
        self.trailers = None if trailers is None else _native(trailers)


class _Part:
    """One service of an app.

    Attributes:
        endpoints: those that are there without a lifespan.
        made_in_lifespan: whether its implementation is.
    """

    def __init__(self, service: Service, implementation: object, options: ServiceOptions) -> None:
        self._service = service
        self._options = options
        self._lifespan = as_lifespan(implementation)
        self.made_in_lifespan = self._lifespan is not None
        if self._lifespan is None:
            handlers = find_handlers(service, implementation, asynchronous=True)
        else:
            handlers = dict.fromkeys(service.methods, _not_started)
        self.endpoints = build_endpoints(handlers, options, asynchronous=True)

    @contextlib.asynccontextmanager
    async def start(self) -> AsyncIterator[Mapping[str, Endpoint]]:
        """The endpoints while the app lives."""
        if self._lifespan is None:
            yield self.endpoints
            return
        async with self._lifespan() as implementation:
            handlers = find_handlers(self._service, implementation, asynchronous=True)
            yield build_endpoints(handlers, self._options, asynchronous=True)


def _not_started(request: ClientRequest[Any] | AsyncClientStream[Any]) -> Any:
    logger.error("%s is made in the lifespan, which nobody has started", request.method.path)
    raise ConnectError(ConnectErrorCode.UNAVAILABLE, "the service has not been started")


def asgi_service(service: Service, implementation: object, **options: Unpack[ServiceOptions]) -> ASGIApplication:
    """The app that serves ``service``.

    Args:
        service: the service.
        implementation: what has a coroutine function or an async generator function for each of its RPCs; or
            ``InThreads`` of a synchronous one; or what gives either in the app's lifespan, see ``ASGIImplementation``.
            Its methods are looked up when the app is made, or when it starts.
        options: see ``ServiceOptions``.

    Raises:
        TypeError: an option is unknown, or the implementation is no instance.
        ValueError: an option has a value that makes no sense.
    """
    return ASGIApplication([_Part(service, implementation, options)])


def asgi_app(*services: ASGIApplication) -> ASGIApplication:
    """One app that serves several services.

    Raises:
        TypeError: one of them is something else.
        ValueError: two of them serve the same path.
    """
    check_services(services, ASGIApplication, "asgi")
    return ASGIApplication(part for service in services for part in service._parts)


async def _wait(steps: Generator[Any, Any, Any], pending: Any, receive: Receive) -> Any:
    """What a plain call's handler gives that has begun to wait, and so has to be watched."""
    guard = Guard(NO_DEADLINE, RequestBody(receive, ended=True))
    try:
        result = await guard.go_on(steps, pending)
        guard.check()
        return result
    finally:
        guard.stop()


def _call(endpoint: Endpoint, call: ServerCall, body: RequestBody, send: Send) -> Coroutine[Any, Any, None]:
    """What serves a call, to be awaited."""
    guard = Guard(call.deadline, body)
    kind = endpoint.method.kind
    requests = None
    body.open = kind.client_streams
    if body.open:
        assert isinstance(call, StreamServerCall)
        body.may_wait(endpoint.read_max_bytes)
        requests = body.messages(call, guard)
    if kind.server_streams:
        assert isinstance(call, StreamServerCall)
        return _stream(endpoint, call, body, requests, send, guard)
    return _single(endpoint, call, body, requests, send, guard)


async def _single(
    endpoint: Endpoint,
    call: ServerCall,
    body: RequestBody,
    requests: AsyncGenerator[Any, None] | None,
    send: Send,
    guard: Guard,
) -> None:
    try:
        try:
            call.deadline.check()
            request = await guard.run(_request(call, body, requests))
            guard.check()
            result = endpoint.handler(request)
            if inspect.isawaitable(result):
                result = await guard.run(result)
                guard.check()
            response = call.answer(result)
        except ClientGoneError:
            guard.stop()
            await _forgo(send)
            return
        except Exception as error:
            response = failed(call, error)
        except asyncio.CancelledError:
            guard.stop()
            await _tell(_answer_early(call.fail(_cancelled()), body, send))
            raise
        guard.stop()
        await _taken(call, _answer(response, body, send))
    finally:
        await _leave(body, requests, guard)


async def _leave(body: RequestBody, requests: AsyncGenerator[Any, None] | None, guard: Guard) -> None:
    guard.stop()
    if requests is not None:
        # Left to itself it would have the event loop make a task to close it.
        with contextlib.suppress(RuntimeError):  # a task of the handler's is still at it
            await requests.aclose()
    body.close()


async def _stream(
    endpoint: Endpoint,
    call: StreamServerCall,
    body: RequestBody,
    requests: AsyncGenerator[Any, None] | None,
    send: Send,
    guard: Guard,
) -> None:
    try:
        given: Any = None
        try:
            call.deadline.check()
            request = await guard.run(_request(call, body, requests))
            guard.check()
            result = endpoint.handler(request)
            if inspect.isawaitable(result):
                result = await guard.run(result)
            given, headers, stream = messages_of(call.method, result)
            guard.check()
            head = call.start(headers)
            messages = as_async(given)
        except ClientGoneError:
            guard.stop()  # what cleans up is not to be disturbed
            await _close(given, call)
            await _forgo(send)
            return
        except Exception as error:
            guard.stop()  # as above
            response = failed(call, error)
            await _close(given, call)
            await _taken(call, _answer(response, body, send))
            return
        except asyncio.CancelledError:
            guard.stop()
            await _tell(_answer_early(call.fail(_cancelled()), body, send))
            raise
        failure: ConnectError | None = None
        try:
            await guard.run(_send_messages(call, head, messages, send, guard))
            guard.check()
        except ClientGoneError:
            raise
        except Exception as error:
            failure = coded(call, error)
        except asyncio.CancelledError:
            guard.stop()
            if not guard.sending:  # as with a deadline
                await _tell(_send_end(call, last_part(call, _cancelled(), stream), send))
            raise
        finally:
            guard.stop()  # as above
            await _close(messages, call)
        await _taken(call, _end_stream(call, last_part(call, failure, stream), body, send))
    finally:
        await _leave(body, requests, guard)


async def _end_stream(call: StreamServerCall, last: bytes, body: RequestBody, send: Send) -> None:
    if not body.ended:
        await _send_part(last, send, more=True)
        await body.drain()
        last = b""
    await _send_end(call, last, send)


async def _send_end(call: StreamServerCall, last: bytes, send: Send) -> None:
    await _send_part(last, send, more=False)
    if call.has_trailers:
        await _send_event(_trailers(_native(call.trailers)), send)


async def _send_messages(call: StreamServerCall, head: ResponseHead, messages: Any, send: Send, guard: Guard) -> None:
    """Send the head and the messages of a streamed answer.

    Raises:
        ConnectError: an error stands among them, or the deadline has passed.
        ClientGoneError: the client has left.
    """
    guard.sending = True
    await _send_event(_start(head.status, _native(head.headers), trailers=call.has_trailers), send)
    await _send_part(b"", send, more=True)  # some servers keep the head until there is a part
    expires_at = call.deadline.expires_at
    waits = guard.waits
    while guard.reason is None:
        guard.sending = False
        try:  # not `async for`: an iterator need not be iterable
            message = await messages.__anext__()
        except StopAsyncIteration:
            break
        if guard.reason is not None:
            break
        if expires_at is not None and time.monotonic() >= expires_at:
            break
        part = call.send(message)
        del message  # else large ones would be there twice, and the heap would grow and shrink with each
        guard.sending = True
        try:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:  # as below
            raise ClientGoneError from error
        if guard.waits != waits:
            waits = guard.waits
        elif guard.turn_is_over():
            await asyncio.sleep(0)
    if guard.reason is not None:
        raise guard.reason
    call.deadline.check()


async def _taken(call: ServerCall, sending: Coroutine[Any, Any, None]) -> None:
    """Send the end of an answer. A client that still does not take it some time after the deadline is left."""
    left = call.deadline.remaining()
    if left is None:
        await sending
        return
    try:
        async with timeout(left + DRAIN_MAX_SECONDS):
            await sending
    except asyncio.TimeoutError:
        raise ClientGoneError from None


async def _tell(sending: Coroutine[Any, Any, None]) -> None:
    """Send what ends a call that the server has cancelled, if it takes that. The cancellation goes on afterwards.

    Servers that stop cancel calls which are not over in time. Left to themselves some answer them with HTTP status 500,
    or have HTTP/2 say that they were cancelled, for which no client tries another server.
    """
    with contextlib.suppress(ClientGoneError, asyncio.TimeoutError):
        async with timeout(_CANCELLED_MAX_SECONDS):
            await sending


def _cancelled() -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, "the server has cancelled the call")


async def _close(messages: Any, call: ServerCall) -> None:
    """Let a handler's generator run its ``finally``, whose failure is nobody's but its own."""
    before = cancellations()
    try:
        await aclose_messages(messages)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and (sys.version_info < (3, 11) or cancellations() > before):
            raise
        coded(call, ordinary(error))


def _native(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)


def _start(status: int, headers: list[tuple[bytes, bytes]], *, trailers: bool = False) -> Event:
    event: Event = {"type": "http.response.start", "status": status, "headers": headers}
    if trailers:
        event["trailers"] = True
    return event


def _trailers(trailers: list[tuple[bytes, bytes]]) -> Event:
    return {"type": "http.response.trailers", "headers": trailers, "more_trailers": False}


async def _answer(response: WholeResponse, body: RequestBody, send: Send) -> None:
    try:
        if not await body.drain():
            response.headers.append(("connection", "close"))  # some servers would read on for ever
    except ClientGoneError:
        await _forgo(send)
        return
    await _send(response, send)


async def _answer_early(response: WholeResponse, body: RequestBody, send: Send) -> None:
    """Answer without reading on: there is no time for it."""
    if body.http_1 and not body.ended:
        response.headers.append(("connection", "close"))
    await _send(response, send)


async def _send(response: WholeResponse, send: Send) -> None:
    trailers = None if response.trailers is None else _native(response.trailers)
    await _send_answer(response.status, _native(response.headers), response.body, send, trailers)


async def _send_answer(
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    send: Send,
    trailers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    try:
        await send(_start(status, headers, trailers=trailers is not None))
        await send({"type": "http.response.body", "body": body, "more_body": False})
        if trailers is not None:
            await send(_trailers(trailers))
    except Exception as error:  # ASGI 2.4: an OSError after the client has left; servers differ
        raise ClientGoneError from error


async def _forgo(send: Send) -> None:
    """Begin the answer that a client has not waited for.

    What stands around the app may take one that sends nothing for broken, as Starlette's ``BaseHTTPMiddleware`` does.
    There it ends: over HTTP/2 one server waits for the client to take a body.
    """
    with contextlib.suppress(Exception):  # as above
        await send(_start(499, []))


async def _send_part(part: bytes, send: Send, *, more: bool) -> None:
    await _send_event({"type": "http.response.body", "body": part, "more_body": more}, send)


async def _send_event(event: Event, send: Send) -> None:
    try:
        await send(event)
    except Exception as error:  # as above
        raise ClientGoneError from error


async def _request(
    call: ServerCall, body: RequestBody, requests: AsyncGenerator[Any, None] | None
) -> ClientRequest[Any] | AsyncClientStream[Any]:
    """What the handler is called with: a stream of ``requests``, or the only one.

    Raises:
        ConnectError: a request of one message is none.
    """
    if requests is not None:
        return AsyncClientStream(requests, call)
    chunk = await body.read()
    if body.ended:
        return ClientRequest(call.receive(chunk), call)
    while chunk:
        call.take(chunk)
        chunk = await body.read()
    return ClientRequest(call.taken(), call)
