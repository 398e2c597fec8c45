"""Calls that are awaited."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from connectrpc._core.chain import aclose_begun, aclose_generator, build_chain, unused
from connectrpc.client.aio_stream import InterceptedStream, Stream, StreamCall, Within, messages_of
from connectrpc.client.interception import coded, given_by, given_to, new_request, passing
from connectrpc.client.options import Procedures
from connectrpc.client.outcome import kept
from connectrpc.errors import ConnectError
from connectrpc.interceptors import Request, Response
from connectrpc.transports import async_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from connectrpc._core.call import StreamClient
    from connectrpc.client import ClientOptions
    from connectrpc.client.interception import Received
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method
    from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput

__all__ = ["AsyncCaller"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)
T = TypeVar("T")


class AsyncCaller:
    """Calls methods on one server, for asynchronous code; see ``connectrpc.client.AsyncClient``."""

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
        message, _ = await self._call(method, req, extra_headers, timeout_seconds)
        return message

    async def unary_output(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> UnaryOutput[ResT]:
        """``unary``, with everything that the answer brought."""
        return await _outcome(self._call(method, req, extra_headers, timeout_seconds))

    async def client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> ResT:
        """One message for a stream."""
        message, _ = await self._call(method, reqs, extra_headers, timeout_seconds)
        return message

    async def client_stream_output(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
    ) -> UnaryOutput[ResT]:
        """``client_stream``, with everything that the answer brought."""
        return await _outcome(self._call(method, reqs, extra_headers, timeout_seconds))

    async def _call(
        self,
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
    ) -> Received[ResT]:
        """A call that is answered by one message. What is given is a message, or an iterable of them."""
        send: Callable[..., Awaitable[Received[ResT]]] = (
            self._send_client_stream if method.kind.client_streams else self._send_unary
        )
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return await send(method, given, extra_headers, deadline)
        request = new_request(method, given, self._procedures, deadline, extra_headers)
        context = request.context

        async def innermost(request: Request) -> Response:
            try:
                message, read_metadata = await send(method, given_to(request), context.request_headers, deadline)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            return Response(message, None, *read_metadata())

        try:
            async with Within(deadline):
                response = await build_chain(self._procedures.interceptors, innermost, asynchronous=True)(request)
            return given_by(response)
        except Exception as error:
            raise coded(context, error) or error  # noqa: B904  it is the same error, or has it as its cause

    async def _send_unary(
        self, method: Method[ReqT, ResT], req: ReqT, extra_headers: HeaderInput | None, deadline: Deadline
    ) -> Received[ResT]:
        procedure = self._procedures.unary(method)
        request, body = procedure.request(req, extra_headers, self._procedures.timeout_ms(deadline))
        async with Within(deadline):
            response = await self._transport.send(request, body)
            received = await response.read(procedure.body_limit)
        return procedure.response(response.status, response.headers, received, response.trailers)

    async def _send_client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: AsyncIterable[ReqT] | Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
    ) -> Received[ResT]:
        procedure = self._procedures.stream(method)
        call = procedure.call()
        request = procedure.request(extra_headers, self._procedures.timeout_ms(deadline))
        messages: list[ResT] = []
        async with Within(deadline):
            response = await self._transport.send(request, _parts(procedure, unused(reqs)))
            try:
                call.head(response.status, response.headers)
                while len(messages) < 2 and not call.ends_early(response) and (chunk := await response.read_chunk()):
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
        return StreamCall(lambda: self._stream(method, req, extra_headers, timeout_seconds))

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
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
    ) -> AsyncStreamOutput[ResT]:
        try:
            deadline = self._procedures.deadline(timeout_seconds)
        except ConnectError as error:
            return Stream(self._procedures.stream(method).call(), None, None, error)
        if not self._procedures.interceptors:
            return await self._begin_stream(method, given, extra_headers, deadline)
        request = new_request(method, given, self._procedures, deadline, extra_headers)
        context = request.context
        begun: list[AsyncStreamOutput[Any]] = []

        async def innermost(request: Request) -> Response:
            try:
                stream = await self._begin_stream(method, given_to(request), context.request_headers, deadline)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            begun.append(stream)
            stream.raise_error()
            response = Response(headers=stream.response_headers())
            response.messages = messages_of(context, stream, response)
            return response

        try:
            async with Within(deadline):
                response = await build_chain(self._procedures.interceptors, innermost, asynchronous=True)(request)
            return InterceptedStream(context, response, begun, None)
        except BaseException as error:
            for stream in begun:
                await stream.close()
            await aclose_begun(context)
            failure = coded(context, error)
            if failure is None:
                raise
            return InterceptedStream(context, None, begun, failure)

    async def _begin_stream(
        self,
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        deadline: Deadline,
    ) -> Stream[ResT]:
        procedure = self._procedures.stream(method)
        call = procedure.call()
        try:
            request = procedure.request(extra_headers, self._procedures.timeout_ms(deadline))
            body = _parts(procedure, unused(given)) if method.kind.client_streams else procedure.send(given)
            opening = self._procedures.opening(method, deadline)
            late = "the deadline has passed" if opening is deadline else "the stream was not opened in time"
            async with Within(opening, late):
                response = await self._transport.send(request, body)
        except ConnectError as error:
            return Stream(call, None, None, error)
        try:
            call.head(response.status, response.headers)
        except BaseException as error:  # whatever it is: the connection may be one of few
            response.close()
            if not isinstance(error, ConnectError):
                raise
            return Stream(call, None, None, error)
        return Stream(call, response, deadline, None)


async def _parts(procedure: StreamClient, reqs: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[bytes]:
    send = procedure.send
    try:
        if isinstance(reqs, AsyncIterable):
            async for req in reqs:
                yield send(req)
        else:
            for req in reqs:
                yield send(req)
    finally:
        await aclose_generator(reqs)


async def _outcome(call: Awaitable[Received[T]]) -> UnaryOutput[T]:
    try:
        message, read_metadata = await call
    except ConnectError as error:
        return UnaryOutput(None, kept(error), error._read_metadata)
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
