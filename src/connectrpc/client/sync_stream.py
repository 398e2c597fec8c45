"""Streamed answers that are iterated. The twin of ``aio_stream``."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from connectrpc._core.chain import close_begun, close_messages
from connectrpc.client.interception import coded, passing, streamed_by
from connectrpc.client.outcome import InterceptedOutcome, StreamOutcome, kept
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.streams import StreamOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc._core.call import StreamClientCall
    from connectrpc.interceptors import CallContext, Response
    from connectrpc.transports.base import SyncResponse

__all__ = ["InterceptedStream", "Stream", "messages_of", "receive"]

T = TypeVar("T")


def receive(call: StreamClientCall, response: SyncResponse) -> Iterator[Any]:
    """The messages of an answer whose head was taken.

    Raises:
        ConnectError: what the server ended it with, or why it broke off.
    """
    while not call.ends_early(response) and (chunk := response.read_chunk()):
        for message in call.feed(chunk):
            response.check()
            yield message
    call.feed_end(response.trailers)


_NONE = object()


class _AlreadyReadingError(Exception):
    pass


class Stream(StreamOutcome, StreamOutput[T]):
    """A streamed answer.

    One thread reads, any thread may close. What closing has to do falls to the reader when it is just reading: it is
    woken for it.
    """

    __slots__ = ("_lock", "_messages", "_reading", "_response", "closed")

    def __init__(self, call: StreamClientCall, response: SyncResponse | None, error: ConnectError | None) -> None:
        self._call = call
        self._response = response
        self._error = kept(error)
        self._lock = threading.RLock()  # a signal handler may close the stream in the midst of this
        self._done = response is None
        self.closed = False  # before its end
        self._reading = False
        self._messages: Iterator[Any] = iter(())  # of the chunk that was read last

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            while not self._done:
                message: Any = next(self._messages, _NONE)
                if message is not _NONE:
                    assert self._response is not None
                    self._response.check()
                    return message  # type: ignore[no-any-return]
                chunk = self._read()
                if chunk is None:
                    break
                if chunk:
                    self._messages = self._call.feed(chunk)
                else:
                    assert self._response is not None
                    self._call.feed_end(self._response.trailers)
                    self._end(None)
        except ConnectError as error:
            self._end(error)
        except _AlreadyReadingError:
            raise RuntimeError("another thread is reading this stream") from None
        except BaseException as error:
            self._end(error)
            raise
        raise StopIteration

    def _read(self) -> bytes | None:
        """The next chunk, or None when the stream was closed meanwhile."""
        assert self._response is not None
        with self._lock:
            if self._reading:
                raise _AlreadyReadingError
            if self._done or self.closed:
                return None
            self._reading = True
        try:
            chunk = b"" if self._call.ends_early(self._response) else self._response.read_chunk()
        finally:
            self._reading = False
        if self.closed:  # looked at after that was set, as who closes does it the other way round
            self._end(None)
            return None
        return chunk

    def __del__(self) -> None:
        # Whoever breaks out of a loop and forgets the stream gets its connection back all the same.
        if not getattr(self, "_done", True):
            self.close()

    def _end(self, error: BaseException | None) -> None:
        assert self._response is not None
        with self._lock:
            if self._done:
                return
            self._error = kept(error)
            self._done = True
        self._response.close()

    def close(self) -> None:
        with self._lock:
            if self._done:
                return
            self.closed = True
            reading = self._reading
        assert self._response is not None
        if reading:
            self._response.interrupt()
        else:
            self._end(None)


def messages_of(context: CallContext, stream: Stream[T], response: Response) -> Iterator[T]:
    """A stream as interceptors see it: its error is raised, and the trailers are there when it has ended."""
    with stream:
        try:
            yield from stream
        except Exception as raised:
            raise passing(context, raised)  # noqa: B904  it is the same error
        if stream.closed and stream.error() is None:  # by another thread
            raise ConnectError(ConnectErrorCode.CANCELED, "the stream was closed")
        response.trailers.extend(stream.response_trailers())
    stream.raise_error()


class InterceptedStream(InterceptedOutcome, StreamOutput[T]):
    """A streamed answer whose messages have come through interceptors.

    The streams that were begun for it, of which interceptors may have made several, do the work.
    """

    __slots__ = ("_begun", "_context", "_messages")

    def __init__(
        self,
        context: CallContext,
        response: Response | None,
        begun: list[StreamOutput[Any]],
        error: ConnectError | None,
    ) -> None:
        messages: Any = () if response is None else streamed_by(response)
        self._context = context
        self._response = response
        self._begun = begun
        self._error = kept(error)
        self._done = response is None
        self._messages: Iterator[T] = iter(messages)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        try:
            message = next(self._messages)
        except StopIteration:
            self.close()
            raise
        except BaseException as error:
            self.close()
            failure = coded(self._context, error)
            self._error = kept(failure or error)
            if failure is None:
                raise
            raise StopIteration from None
        if self._done:  # another thread has closed it meanwhile, but could not close the generators that were running
            self._close_messages()
            raise StopIteration
        return message

    def close(self) -> None:
        for stream in self._begun:
            stream.close()
        if not self._done:
            self._done = True
            self._close_messages()

    def _close_messages(self) -> None:
        # Another thread may be in one of their generators: it has just been woken, and will do the rest.
        try:
            with contextlib.suppress(ValueError):
                close_messages(self._messages)
        finally:
            with contextlib.suppress(ValueError):
                close_begun(self._context)
