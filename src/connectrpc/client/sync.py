"""Calls that block."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from multidict import CIMultiDict

from connectrpc._core.chain import build_chain
from connectrpc.client.interception import coded, new_context, passing
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError
from connectrpc.interceptors import Request, Response
from connectrpc.streams import StreamOutput
from connectrpc.transports import sync_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from connectrpc._core.call import StreamClientCall
    from connectrpc.cancel import CancelToken
    from connectrpc.client import ClientOptions
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.interceptors import CallContext
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
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return self._send_unary(method, req, extra_headers, deadline, cancel)
        context = new_context(method, self.base_url, deadline, extra_headers)
        return self._intercepted(
            Request(context, message=req),
            lambda request: self._send_unary(method, request.message, context.request_headers, deadline, cancel),
        )

    def _send_unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        procedure = self._procedures.unary(method)
        request, body = procedure.request(req, extra_headers, deadline.timeout_ms)
        response = self._transport.send(request, body, stream=False, deadline=deadline, cancel=cancel)
        received = response.read(procedure.body_limit)
        message = procedure.response(response.status, response.headers, received)
        return message, functools.partial(procedure.metadata, response.headers)

    def _intercepted(
        self, request: Request, send: Callable[[Request], tuple[Any, Callable[[], Metadata]]]
    ) -> tuple[Any, Callable[[], Metadata]]:
        """A call that is answered by one message, inside the client's interceptors."""
        context = request.context

        def innermost(request: Request) -> Response:
            try:
                message, read_metadata = send(request)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            return Response(message, None, *read_metadata())

        try:
            response = build_chain(self._procedures.interceptors, innermost, asynchronous=False)(request)
        except Exception as error:
            raise coded(context, error)  # noqa: B904  it is the same error, or has it as its cause
        return response.message, lambda: (response.headers, response.trailers)

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
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return self._send_client_stream(method, reqs, extra_headers, deadline, cancel)
        context = new_context(method, self.base_url, deadline, extra_headers)

        def send(request: Request) -> tuple[ResT, Callable[[], Metadata]]:
            messages: Any = request.messages
            return self._send_client_stream(method, messages, context.request_headers, deadline, cancel)

        return self._intercepted(Request(context, messages=reqs), send)

    def _send_client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> tuple[ResT, Callable[[], Metadata]]:
        call = self._procedures.stream(method).call()
        response = self._send(method, reqs, extra_headers, deadline, cancel)
        messages: list[ResT] = []
        try:
            call.head(response.status, response.headers)
            for message in _receive(call, response):
                messages.append(message)
                if len(messages) > 1:
                    break
        finally:
            response.close()
        return call.only(messages), call.metadata

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
        try:
            deadline = self._procedures.deadline(timeout_seconds)
        except ConnectError as error:
            return _Stream(self._procedures.stream(method).call(), None, error)
        if not self._procedures.interceptors:
            return self._begin_stream(method, reqs, extra_headers, deadline, cancel)
        context = new_context(method, self.base_url, deadline, extra_headers)
        request = Request(context, messages=reqs) if method.kind.client_streams else Request(context, next(iter(reqs)))
        begun: list[StreamOutput[Any]] = []

        def innermost(request: Request) -> Response:
            messages: Any = (request.message,) if request.messages is None else request.messages
            try:
                stream = self._begin_stream(method, messages, context.request_headers, deadline, cancel)
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
            response = build_chain(self._procedures.interceptors, innermost, asynchronous=False)(request)
        except Exception as error:
            for stream in begun:
                stream.close()
            failure = coded(context, error)
            if not isinstance(failure, ConnectError):
                raise failure  # noqa: B904  it is the same error
            return _InterceptedStream(context, None, begun, failure)
        return _InterceptedStream(context, response, begun, None)

    def _begin_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> StreamOutput[ResT]:
        call = self._procedures.stream(method).call()
        try:
            response = self._send(method, reqs, extra_headers, deadline, cancel)
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
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> SyncResponse:
        procedure = self._procedures.stream(method)
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

    def __del__(self) -> None:
        # Whoever breaks out of a loop and forgets the stream gets its connection back all the same.
        if not getattr(self, "_done", True):
            self.close()

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


def _messages_of(stream: StreamOutput[T], response: Response) -> Iterator[T]:
    """A stream as interceptors see it: its error is raised, and the trailers are there when it has ended."""
    with stream:
        yield from stream
        response.trailers.extend(stream.response_trailers())
    error = stream.error()
    if error is not None:
        raise error


class _InterceptedStream(StreamOutput[T]):
    """A streamed answer whose messages have come through interceptors.

    The streams that were begun for it, of which interceptors may have made several, do the work.
    """

    __slots__ = ("_begun", "_context", "_done", "_error", "_messages", "_response")

    def __init__(
        self,
        context: CallContext,
        response: Response | None,
        begun: list[StreamOutput[Any]],
        error: ConnectError | None,
    ) -> None:
        messages: Any = () if response is None else response.messages
        self._context = context
        self._response = response
        self._begun = begun
        self._error = error
        self._done = response is None
        self._messages: Iterator[T] = iter(messages)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        try:
            return next(self._messages)
        except StopIteration:
            self._done = True
            raise
        except Exception as error:
            self._done = True
            failure = coded(self._context, error)
            if not isinstance(failure, ConnectError):
                raise
            self._error = failure
            raise StopIteration from None

    def close(self) -> None:
        for stream in self._begun:
            stream.close()
        if not self._done:
            self._done = True
            try:
                self._messages.close()  # type: ignore[attr-defined]
            except (AttributeError, ValueError):
                pass  # no generator; or another thread is in it, and has just been woken

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
