"""Streamed answers that are iterated with ``async for``. The twin of ``sync_stream``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from connectrpc._aio import timeout
from connectrpc._core.chain import aclose_begun, aclose_messages, as_async
from connectrpc.client.interception import coded, passing, streamed_by
from connectrpc.client.outcome import InterceptedOutcome, StreamOutcome, kept
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from types import TracebackType

    from connectrpc._core.call import StreamClientCall
    from connectrpc.deadline import Deadline
    from connectrpc.interceptors import CallContext, Response
    from connectrpc.transports.base import AsyncResponse

__all__ = ["InterceptedStream", "Stream", "StreamCall", "Within", "messages_of"]

T = TypeVar("T")


_NONE = object()


class Within:
    """Ends what is awaited inside it at a deadline, with ``deadline_exceeded``."""

    __slots__ = ("_deadline", "_overrun", "_timeout")

    def __init__(self, deadline: Deadline, overrun: str = "the deadline has passed") -> None:
        self._deadline = deadline
        self._overrun = overrun
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
            raise ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, self._overrun) from None


class StreamCall(AsyncStreamCall[T]):
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


class Stream(StreamOutcome, AsyncStreamOutput[T]):
    """A streamed answer."""

    __slots__ = ("_deadline", "_messages", "_response", "closed")

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
        self._error = kept(error)
        self._done = response is None
        self.closed = False  # before its end
        self._messages: Iterator[Any] = iter(())  # of the chunk that was read last

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._done:
            raise StopAsyncIteration
        assert self._response is not None
        assert self._deadline is not None
        try:
            while True:
                message: Any = next(self._messages, _NONE)
                if message is not _NONE:
                    if self._deadline.expires_at is not None:
                        self._deadline.check()
                    return message  # type: ignore[no-any-return]
                if self._call.ends_early(self._response):
                    chunk = b""
                elif self._deadline.expires_at is None:  # as `Within` would, but for two coroutines a chunk
                    chunk = await self._response.read_chunk()
                else:
                    async with Within(self._deadline):
                        chunk = await self._response.read_chunk()
                if not chunk:
                    self._call.feed_end(self._response.trailers)
                    break
                self._messages = self._call.feed(chunk)
        except ConnectError as error:
            self._end(error)
        except BaseException as error:
            self._end(error)
            raise
        else:
            self._end(None)
        raise StopAsyncIteration

    def _end(self, error: BaseException | None) -> None:
        self._done = True
        if not self.closed:  # else it has not failed, whatever the library says of its connection
            self._error = kept(error)
        if self._response is not None:
            self._response.close()

    async def close(self) -> None:
        if not self._done:
            self.closed = True
            self._end(None)


async def messages_of(context: CallContext, stream: Stream[T], response: Response) -> AsyncIterator[T]:
    """A stream as interceptors see it: its error is raised, and the trailers are there when it has ended."""
    async with stream:
        try:
            async for message in stream:
                yield message
        except Exception as raised:
            raise passing(context, raised)  # noqa: B904  it is the same error
        if stream.closed:  # by another task
            raise ConnectError(ConnectErrorCode.CANCELED, "the stream was closed")
        response.trailers.extend(stream.response_trailers())
    stream.raise_error()


class InterceptedStream(InterceptedOutcome, AsyncStreamOutput[T]):
    """A streamed answer whose messages have come through interceptors.

    The streams that were begun for it, of which interceptors may have made several, do the work.
    """

    __slots__ = ("_begun", "_context", "_messages", "_reading")

    def __init__(
        self,
        context: CallContext,
        response: Response | None,
        begun: list[AsyncStreamOutput[Any]],
        error: ConnectError | None,
    ) -> None:
        messages: Any = () if response is None else streamed_by(response)
        self._context = context
        self._response = response
        self._begun = begun
        self._error = kept(error)
        self._done = response is None
        self._reading = False
        self._messages: AsyncIterator[T] = as_async(messages)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._done:
            raise StopAsyncIteration
        try:
            message = await self._next()
        except StopAsyncIteration:
            await self.close()
            raise
        except BaseException as error:
            closed = self._done
            await self.close()
            failure = coded(self._context, error)
            if not closed:  # by another task: it has not failed
                self._error = kept(failure or error)
            if failure is None:
                raise
            raise StopAsyncIteration from None
        if self._done:  # it was closed meanwhile
            await self.close()
            raise StopAsyncIteration
        return message

    async def _next(self) -> T:
        self._reading = True
        try:
            if self._context.timeout.expires_at is None:  # as in `Stream`, without two coroutines a message
                return await self._messages.__anext__()
            async with Within(self._context.timeout):
                return await self._messages.__anext__()
        finally:
            self._reading = False

    async def close(self) -> None:
        self._done = True
        for stream in self._begun:
            await stream.close()
        if self._reading:
            return  # the task that reads has just been woken, and will do the rest
        try:
            await aclose_messages(self._messages)
        finally:
            await aclose_begun(self._context)
