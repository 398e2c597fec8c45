"""Calls that are awaited."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from connectrpc._core.chain import aclose_begun, build_chain
from connectrpc.client.aio_stream import InterceptedStream, Stream, StreamCall, Within, messages_of
from connectrpc.client.interception import coded, new_context, passing
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError
from connectrpc.interceptors import Request, Response
from connectrpc.transports import async_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from multidict import CIMultiDict

    from connectrpc._core.call import StreamClient
    from connectrpc.client import ClientOptions
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method
    from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput

    Metadata = tuple[CIMultiDict[str], CIMultiDict[str]]

__all__ = ["AsyncCaller"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)
T = TypeVar("T")


class AsyncCaller:
    """Calls methods on one server, for the tasks of one event loop; see ``connectrpc.client.AsyncClient``."""

    def __init__(self, base_url: str, http_client: object | None, options: ClientOptions) -> None:
        self._procedures = Procedures(base_url, options, asynchronous=True)
        self._transport = async_transport(http_client, connect_timeout=self._procedures.connect_timeout)
        self._procedures.check_transport(self._transport)
        self._owned = self._transport is not http_client

    @property
    def base_url(self) -> str:
        return self._procedures.base_url

    async def aclose(self) -> None:
        if self._owned:
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
        context = new_context(method, self._procedures, deadline, extra_headers)
        return await self._intercepted(
            Request(context, message=req),
            lambda request: self._send_unary(method, request.message, context.request_headers, deadline),
        )

    async def _send_unary(
        self, method: Method[ReqT, ResT], req: ReqT, extra_headers: HeaderInput | None, deadline: Deadline
    ) -> tuple[ResT, Callable[[], Metadata]]:
        procedure = self._procedures.unary(method)
        request, body = procedure.request(req, extra_headers, self._procedures.timeout_ms(deadline))
        async with Within(deadline):
            response = await self._transport.send(request, body)
            received = await response.read(procedure.body_limit)
        return procedure.response(response.status, response.headers, received, response.trailers)

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
            async with Within(context.timeout):
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
        context = new_context(method, self._procedures, deadline, extra_headers)

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
        request = procedure.request(extra_headers, self._procedures.timeout_ms(deadline))
        messages: list[ResT] = []
        async with Within(deadline):
            response = await self._transport.send(request, _parts(procedure, reqs))
            try:
                call.head(response.status, response.headers)
                while len(messages) < 2 and (chunk := await response.read_chunk()):
                    messages.extend(itertools.islice(call.feed(chunk), 2))
                if len(messages) < 2:
                    call.feed_end(response.trailers)
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
        return StreamCall(lambda: self._stream(method, (req,), extra_headers, timeout_seconds))

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
        return StreamCall(lambda: self._stream(method, reqs, extra_headers, timeout_seconds))

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
            return Stream(self._procedures.stream(method).call(), None, None, error)
        if not self._procedures.interceptors:
            return await self._begin_stream(method, reqs, extra_headers, deadline)
        context = new_context(method, self._procedures, deadline, extra_headers)
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
            response.messages = messages_of(stream, response)
            return response

        try:
            async with Within(deadline):
                response = await build_chain(self._procedures.interceptors, innermost, asynchronous=True)(request)
            return InterceptedStream(context, response, begun, None)
        except BaseException as error:
            for stream in begun:
                await stream.close()
            await aclose_begun(context)
            failure = coded(context, error) if isinstance(error, Exception) else error
            if not isinstance(failure, ConnectError):
                raise failure  # noqa: B904  it is the same error
            return InterceptedStream(context, None, begun, failure)

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
            request = procedure.request(extra_headers, self._procedures.timeout_ms(deadline))
            body = _parts(procedure, reqs) if method.kind.client_streams else procedure.send(_only(reqs))
            opening = self._procedures.opening(method, deadline)
            late = "the deadline has passed" if opening is deadline else "the stream was not opened in time"
            async with Within(opening, late):
                response = await self._transport.send(request, body)
        except ConnectError as error:
            return Stream(call, None, None, error)
        try:
            call.head(response.status, response.headers)
        except ConnectError as error:
            response.close()
            return Stream(call, None, None, error)
        return Stream(call, response, deadline, None)


def _only(reqs: AsyncIterable[T] | Iterable[T]) -> T:
    """The request of a call that takes one message."""
    assert isinstance(reqs, tuple)
    message: T = reqs[0]
    return message


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
        try:
            raise error
        finally:
            del call, error, stream  # whose traceback has this frame
