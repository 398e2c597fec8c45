"""Calls that block."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from connectrpc._core.call import exactly_one
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError
from connectrpc.streams import StreamOutput
from connectrpc.transports import sync_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from multidict import CIMultiDict

    from connectrpc._core.call import StreamClientCall
    from connectrpc.cancel import CancelToken
    from connectrpc.client import ClientOptions
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method
    from connectrpc.transports.base import SyncResponse

    Metadata = tuple[CIMultiDict[str], CIMultiDict[str]]

__all__ = ["SyncCaller"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)
T = TypeVar("T")


class SyncCaller:
    """Calls methods on one server. Used by many threads at once; see ``connectrpc.client.SyncClient``."""

    def __init__(self, base_url: str, http_client: object | None, options: ClientOptions) -> None:
        self._procedures = Procedures(base_url, options)
        self._transport = sync_transport(http_client, self._procedures.base_url)

    @property
    def base_url(self) -> str:
        return self._procedures.base_url

    def close(self) -> None:
        self._transport.close()

    def unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> ResT:
        """One message for one message."""
        message, _ = self._unary(method, req, extra_headers, timeout_seconds, cancel)
        return message

    def unary_output(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> UnaryOutput[ResT]:
        """``unary``, with everything that the answer brought."""
        return _outcome(lambda: self._unary(method, req, extra_headers, timeout_seconds, cancel))

    def _unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        procedure = self._procedures.unary(method)
        deadline = self._procedures.deadline(timeout_seconds)
        request, body = procedure.request(req, extra_headers, deadline.timeout_ms)
        response = self._transport.send(request, body, stream=False, deadline=deadline, cancel=cancel)
        received = response.read(procedure.body_limit)
        message = procedure.response(response.status, response.headers, received)
        return message, functools.partial(procedure.metadata, response.headers)

    def client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> ResT:
        """One message for a stream."""
        message, _ = self._client_stream(method, reqs, extra_headers, timeout_seconds, cancel)
        return message

    def client_stream_output(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> UnaryOutput[ResT]:
        """``client_stream``, with everything that the answer brought."""
        return _outcome(lambda: self._client_stream(method, reqs, extra_headers, timeout_seconds, cancel))

    def _client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        call = self._procedures.stream(method).call()
        response = self._send(method, reqs, extra_headers, timeout_seconds, cancel)
        messages: list[ResT] = []
        try:
            call.head(response.status, response.headers)
            for message in _receive(call, response):
                messages.append(message)
                if len(messages) > 1:
                    break
        finally:
            response.close()
        return exactly_one(messages, "response"), call.metadata

    def server_stream(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Generator[ResT, None, None]:
        """A stream for one message. The call begins with the first step of the generator."""
        return _raising(lambda: self.server_stream_output(method, req, extra_headers, timeout_seconds, cancel))

    def server_stream_output(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> StreamOutput[ResT]:
        """``server_stream``, begun at once, with everything that the answer brings."""
        return self._stream(method, (req,), extra_headers, timeout_seconds, cancel)

    def bidi_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Generator[ResT, None, None]:
        """A stream for a stream. The call begins with the first step of the generator."""
        return _raising(lambda: self.bidi_stream_output(method, reqs, extra_headers, timeout_seconds, cancel))

    def bidi_stream_output(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> StreamOutput[ResT]:
        """``bidi_stream``, begun at once, with everything that the answer brings."""
        return self._stream(method, reqs, extra_headers, timeout_seconds, cancel)

    def _stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> StreamOutput[ResT]:
        call = self._procedures.stream(method).call()
        try:
            response = self._send(method, reqs, extra_headers, timeout_seconds, cancel)
        except ConnectError as error:
            return _Stream(call, None, error)
        try:
            call.head(response.status, response.headers)
        except ConnectError as error:
            response.close()
            return _Stream(call, None, error)
        return _Stream(call, response, None)

    def _send(
        self,
        method: Method[Any, Any],
        reqs: Iterable[Any],
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> SyncResponse:
        procedure = self._procedures.stream(method)
        deadline = self._procedures.deadline(timeout_seconds)
        request = procedure.request(extra_headers, deadline.timeout_ms)
        body: bytes | Iterator[bytes]
        if method.kind.client_streams:
            body = map(procedure.send, reqs)
        else:
            (req,) = reqs
            body = procedure.send(req)
        return self._transport.send(request, body, stream=True, deadline=deadline, cancel=cancel)


def _outcome(call: Callable[[], tuple[T, Callable[[], Metadata]]]) -> UnaryOutput[T]:
    try:
        message, read_metadata = call()
    except ConnectError as error:
        return UnaryOutput(None, error, error._read_metadata)
    return UnaryOutput(message, None, read_metadata)


def _receive(call: StreamClientCall, response: SyncResponse) -> Iterator[Any]:
    while chunk := response.read_chunk():
        for message in call.feed(chunk):
            response.check()
            yield message
    call.feed_end()


def _raising(begin: Callable[[], StreamOutput[T]]) -> Generator[T, None, None]:
    with begin() as stream:
        yield from stream
    error = stream.error()
    if error is not None:
        raise error


class _Stream(StreamOutput[T]):
    """A streamed answer.

    One thread reads, any thread may close. What closing has to do falls to the reader when it is just reading: it is
    woken for it.
    """

    __slots__ = ("_call", "_closed", "_done", "_error", "_lock", "_messages", "_reading", "_response")

    def __init__(self, call: StreamClientCall, response: SyncResponse | None, error: ConnectError | None) -> None:
        self._call = call
        self._response = response
        self._error = error
        self._lock = threading.Lock()
        self._done = response is None
        self._closed = False
        self._reading = False
        self._messages = iter(()) if response is None else _receive(call, response)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            if self._done:
                raise StopIteration
            if self._reading:
                raise RuntimeError("another thread is reading this stream")
            self._reading = True
        try:
            message: T = next(self._messages)
        except StopIteration:
            self._end(None)
            raise
        except ConnectError as error:
            self._end(error)
            raise StopIteration from None
        except BaseException:
            self._end(None)
            raise
        with self._lock:
            self._reading = False
            closed = self._closed
        if closed:
            self._end(None)
        return message

    def _end(self, error: ConnectError | None) -> None:
        assert self._response is not None
        with self._lock:
            self._reading = False
            self._done = True
        self._error = error
        self._response.close()

    def close(self) -> None:
        with self._lock:
            if self._done:
                return
            self._closed = True
            reading = self._reading
        assert self._response is not None
        if reading:
            self._response.interrupt()
        else:
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
