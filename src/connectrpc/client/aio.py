"""Calls that are awaited."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from multidict import CIMultiDict

from connectrpc._aio import timeout
from connectrpc._core.chain import build_chain
from connectrpc.client.interception import coded, new_context, passing
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Request, Response
from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput
from connectrpc.transports import async_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable
    from types import TracebackType

    from connectrpc._core.call import StreamClient, StreamClientCall
    from connectrpc.client import ClientOptions
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.interceptors import CallContext
    from connectrpc.method import Method
    from connectrpc.transports.base import AsyncResponse

    Metadata = tuple[CIMultiDict[str], CIMultiDict[str]]

__all__ = ["AsyncCaller"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)
T = TypeVar("T")


class AsyncCaller:
    """Calls methods on one server, for the tasks of one event loop; see ``connectrpc.client.AsyncClient``."""

    def __init__(self, base_url: str, http_client: object | None, options: ClientOptions) -> None:
        self._procedures = Procedures(base_url, options)
        self._transport = async_transport(http_client)

    @property
    def base_url(self) -> str:
        return self._procedures.base_url

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> ResT:
        """One message for one message."""
        message, _ = await self._unary(method, req, extra_headers, timeout_seconds)
        return message

    async def unary_output(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> UnaryOutput[ResT]:
        """``unary``, with everything that the answer brought."""
        return await _outcome(self._unary(method, req, extra_headers, timeout_seconds))

    async def _unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return await self._send_unary(method, req, extra_headers, deadline)
        context = new_context(method, self.base_url, deadline, extra_headers)
        return await self._intercepted(
            Request(context, message=req),
            lambda request: self._send_unary(method, request.message, context.request_headers, deadline),
        )

    async def _send_unary(
        self, method: Method[ReqT, ResT], req: ReqT, extra_headers: HeaderInput | None, deadline: Deadline
    ) -> tuple[ResT, Callable[[], Metadata]]:
        procedure = self._procedures.unary(method)
        request, body = procedure.request(req, extra_headers, deadline.timeout_ms)
        async with _Within(deadline):
            response = await self._transport.send(request, body)
            received = await response.read(procedure.body_limit)
        message = procedure.response(response.status, response.headers, received)
        return message, functools.partial(procedure.metadata, response.headers)

    async def _intercepted(
        self, request: Request, send: Callable[[Request], Awaitable[tuple[Any, Callable[[], Metadata]]]]
    ) -> tuple[Any, Callable[[], Metadata]]:
        """A call that is answered by one message, inside the client's interceptors."""
        context = request.context

        async def innermost(request: Request) -> Response:
            try:
                message, read_metadata = await send(request)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            return Response(message, None, *read_metadata())

        try:
            async with _Within(context.timeout):
                response = await build_chain(self._procedures.interceptors, innermost, asynchronous=True)(request)
        except Exception as error:
            raise coded(context, error)  # noqa: B904  it is the same error, or has it as its cause
        return response.message, lambda: (response.headers, response.trailers)

    async def client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> ResT:
        """One message for a stream."""
        message, _ = await self._client_stream(method, reqs, extra_headers, timeout_seconds)
        return message

    async def client_stream_output(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> UnaryOutput[ResT]:
        """``client_stream``, with everything that the answer brought."""
        return await _outcome(self._client_stream(method, reqs, extra_headers, timeout_seconds))

    async def _client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return await self._send_client_stream(method, reqs, extra_headers, deadline)
        context = new_context(method, self.base_url, deadline, extra_headers)

        def send(request: Request) -> Awaitable[tuple[ResT, Callable[[], Metadata]]]:
            messages: Any = request.messages
            return self._send_client_stream(method, messages, context.request_headers, deadline)

        return await self._intercepted(Request(context, messages=reqs), send)

    async def _send_client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        procedure = self._procedures.stream(method)
        call = procedure.call()
        request = procedure.request(extra_headers, deadline.timeout_ms)
        messages: list[ResT] = []
        async with _Within(deadline):
            response = await self._transport.send(request, _parts(procedure, reqs))
            try:
                call.head(response.status, response.headers)
                while len(messages) < 2 and (chunk := await response.read_chunk()):
                    messages.extend(call.feed(chunk))
                if len(messages) < 2:
                    call.feed_end()
            finally:
                response.close()
        return call.only(messages), call.metadata

    def server_stream(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[ResT, None]:
        """A stream for one message. The call begins with the first step of the generator."""
        return _raising(self.server_stream_output(method, req, extra_headers, timeout_seconds))

    def server_stream_output(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncStreamCall[ResT]:
        """``server_stream``, with everything that the answer brings."""
        return _StreamCall(lambda: self._stream(method, (req,), extra_headers, timeout_seconds))

    def bidi_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[ResT, None]:
        """A stream for a stream. The call begins with the first step of the generator."""
        return _raising(self.bidi_stream_output(method, reqs, extra_headers, timeout_seconds))

    def bidi_stream_output(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncStreamCall[ResT]:
        """``bidi_stream``, with everything that the answer brings."""
        return _StreamCall(lambda: self._stream(method, reqs, extra_headers, timeout_seconds))

    async def _stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
    ) -> AsyncStreamOutput[ResT]:
        try:
            deadline = self._procedures.deadline(timeout_seconds)
        except ConnectError as error:
            return _Stream(self._procedures.stream(method).call(), None, None, error)
        if not self._procedures.interceptors:
            return await self._begin_stream(method, reqs, extra_headers, deadline)
        context = new_context(method, self.base_url, deadline, extra_headers)
        request = Request(context, messages=reqs) if method.kind.client_streams else Request(context, _only(reqs))
        begun: list[AsyncStreamOutput[Any]] = []

        async def innermost(request: Request) -> Response:
            messages: Any = (request.message,) if request.messages is None else request.messages
            try:
                stream = await self._begin_stream(method, messages, context.request_headers, deadline)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            begun.append(stream)
            failure = stream.error()
            if failure is not None:
                raise failure
            response = Response(headers=stream.response_headers())
            response.messages = _messages_of(stream, response)
            return response

        try:
            async with _Within(deadline):
                response = await build_chain(self._procedures.interceptors, innermost, asynchronous=True)(request)
        except BaseException as error:
            for stream in begun:
                await stream.close()
            failure = coded(context, error) if isinstance(error, Exception) else error
            if not isinstance(failure, ConnectError):
                raise failure  # noqa: B904  it is the same error
            return _InterceptedStream(context, None, begun, failure)
        return _InterceptedStream(context, response, begun, None)

    async def _begin_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
    ) -> AsyncStreamOutput[ResT]:
        procedure = self._procedures.stream(method)
        call = procedure.call()
        try:
            request = procedure.request(extra_headers, deadline.timeout_ms)
            body = _parts(procedure, reqs) if method.kind.client_streams else procedure.send(_only(reqs))
            async with _Within(deadline):
                response = await self._transport.send(request, body)
        except ConnectError as error:
            return _Stream(call, None, None, error)
        try:
            call.head(response.status, response.headers)
        except ConnectError as error:
            response.close()
            return _Stream(call, None, None, error)
        return _Stream(call, response, deadline, None)


def _only(reqs: AsyncIterable[T] | Iterable[T]) -> T:
    """The request of a call that takes one message."""
    assert isinstance(reqs, tuple)
    message: T = reqs[0]
    return message


class _Within:
    """Ends what is awaited inside it at a deadline, with ``deadline_exceeded``."""

    __slots__ = ("_deadline", "_timeout")

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._timeout: Any = None

    async def __aenter__(self) -> None:
        if self._deadline.expires_at is not None:
            self._deadline.check()
            self._timeout = timeout(self._deadline.remaining())
            await self._timeout.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timeout is None:
            return
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except asyncio.TimeoutError:
            raise ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed") from None


async def _parts(procedure: StreamClient, reqs: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[bytes]:
    if isinstance(reqs, AsyncIterable):
        async for req in reqs:
            yield procedure.send(req)
    else:
        for req in reqs:
            yield procedure.send(req)


async def _outcome(call: Awaitable[tuple[T, Callable[[], Metadata]]]) -> UnaryOutput[T]:
    try:
        message, read_metadata = await call
    except ConnectError as error:
        return UnaryOutput(None, error, error._read_metadata)
    return UnaryOutput(message, None, read_metadata)


async def _raising(call: AsyncStreamCall[T]) -> AsyncGenerator[T, None]:
    async with call as stream:
        async for message in stream:
            yield message
    error = stream.error()
    if error is not None:
        raise error


class _StreamCall(AsyncStreamCall[T]):
    """A streaming call that has not been started."""

    __slots__ = ("_begin", "_stream")

    def __init__(self, begin: Callable[[], Awaitable[AsyncStreamOutput[T]]]) -> None:
        self._begin: Callable[[], Awaitable[AsyncStreamOutput[T]]] | None = begin
        self._stream: AsyncStreamOutput[T] | None = None

    def __await__(self) -> Generator[Any, None, AsyncStreamOutput[T]]:
        begin, self._begin = self._begin, None
        if begin is None:
            raise RuntimeError("this call has been started already")
        return begin().__await__()

    async def __aenter__(self) -> AsyncStreamOutput[T]:
        self._stream = await self
        return self._stream

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.close()


class _Stream(AsyncStreamOutput[T]):
    """A streamed answer."""

    __slots__ = ("_call", "_deadline", "_done", "_error", "_messages", "_response")

    def __init__(
        self,
        call: StreamClientCall,
        response: AsyncResponse | None,
        deadline: Deadline | None,
        error: ConnectError | None,
    ) -> None:
        self._call = call
        self._response = response
        self._deadline = deadline
        self._error = error
        self._done = response is None
        self._messages: Any = iter(())  # of the chunk that was read last

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._done:
            raise StopAsyncIteration
        assert self._response is not None
        assert self._deadline is not None
        try:
            while True:
                for message in self._messages:
                    self._deadline.check()
                    found: T = message
                    return found
                if self._call.complete and not self._response.uploaded:
                    # The server may be waiting for the end of a request that nobody reads any more.
                    chunk = b""
                else:
                    async with _Within(self._deadline):
                        chunk = await self._response.read_chunk()
                if not chunk:
                    self._call.feed_end()
                    break
                self._messages = self._call.feed(chunk)
        except ConnectError as error:
            self._end(error)
        except BaseException:
            self._end(None)
            raise
        else:
            self._end(None)
        raise StopAsyncIteration

    def _end(self, error: ConnectError | None) -> None:
        self._done = True
        self._error = error
        if self._response is not None:
            self._response.close()

    async def close(self) -> None:
        if not self._done:
            self._end(None)

    def done(self) -> bool:
        return self._done

    def error(self) -> ConnectError | None:
        return self._error

    def response_headers(self) -> CIMultiDict[str]:
        return self._call.metadata()[0]

    def response_trailers(self) -> CIMultiDict[str]:
        if not self._done:
            raise RuntimeError("the trailers come last, and the stream is not over yet")
        return self._call.metadata()[1]


async def _messages_of(stream: AsyncStreamOutput[T], response: Response) -> AsyncIterator[T]:
    """A stream as interceptors see it: its error is raised, and the trailers are there when it has ended."""
    async with stream:
        async for message in stream:
            yield message
        response.trailers.extend(stream.response_trailers())
    error = stream.error()
    if error is not None:
        raise error


class _InterceptedStream(AsyncStreamOutput[T]):
    """A streamed answer whose messages have come through interceptors.

    The streams that were begun for it, of which interceptors may have made several, do the work.
    """

    __slots__ = ("_begun", "_context", "_done", "_error", "_messages", "_response")

    def __init__(
        self,
        context: CallContext,
        response: Response | None,
        begun: list[AsyncStreamOutput[Any]],
        error: ConnectError | None,
    ) -> None:
        messages: Any = None if response is None else response.messages
        self._context = context
        self._response = response
        self._begun = begun
        self._error = error
        self._done = response is None
        self._messages: Any = None if messages is None else messages.__aiter__()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._done:
            raise StopAsyncIteration
        try:
            async with _Within(self._context.timeout):
                message: T = await self._messages.__anext__()
        except StopAsyncIteration:
            self._done = True
            raise
        except Exception as error:
            await self.close()
            failure = coded(self._context, error)
            if not isinstance(failure, ConnectError):
                raise
            self._error = failure
            raise StopAsyncIteration from None
        except BaseException:
            await self.close()
            raise
        return message

    async def close(self) -> None:
        self._done = True
        for stream in self._begun:
            await stream.close()
        if hasattr(self._messages, "aclose"):
            await self._messages.aclose()

    def done(self) -> bool:
        return self._done

    def error(self) -> ConnectError | None:
        return self._error

    def response_headers(self) -> CIMultiDict[str]:
        if self._response is not None:
            return self._response.headers
        return CIMultiDict() if self._error is None else self._error.response_headers()

    def response_trailers(self) -> CIMultiDict[str]:
        if not self._done:
            raise RuntimeError("the trailers come last, and the stream is not over yet")
        if self._response is not None:
            return self._response.trailers
        return CIMultiDict() if self._error is None else self._error.response_trailers()
