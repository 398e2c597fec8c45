"""Calls that block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from connectrpc._core.chain import build_chain, close_begun, close_generator, unused
from connectrpc.client.interception import coded, given_by, given_to, new_request, passing
from connectrpc.client.options import Procedures
from connectrpc.client.outcome import kept
from connectrpc.client.sync_stream import InterceptedStream, Stream, messages_of, receive
from connectrpc.errors import ConnectError
from connectrpc.interceptors import Request, Response
from connectrpc.transports import sync_transport
from connectrpc.unary import UnaryOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from connectrpc._core.call import StreamClient
    from connectrpc.cancel import CancelToken
    from connectrpc.client import ClientOptions
    from connectrpc.client.interception import Received
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method
    from connectrpc.streams import StreamOutput
    from connectrpc.transports.base import SyncResponse

__all__ = ["SyncCaller"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)
T = TypeVar("T")


class SyncCaller:
    """Calls methods on one server. Used by many threads at once; see ``connectrpc.client.SyncClient``."""

    def __init__(self, base_url: str, http_client: object | None, options: ClientOptions) -> None:
        self._procedures = Procedures(base_url, options, asynchronous=False)
        self._transport = sync_transport(
            http_client, self._procedures.base_url, connect_timeout=self._procedures.connect_timeout
        )
        self._procedures.check_transport(self._transport)
        self._owned = self._transport is not http_client

    @property
    def base_url(self) -> str:
        return self._procedures.base_url

    def close(self) -> None:
        if self._owned:
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
        message, _ = self._call(method, req, extra_headers, timeout_seconds, cancel)
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
        return _outcome(lambda: self._call(method, req, extra_headers, timeout_seconds, cancel))

    def client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> ResT:
        """One message for a stream."""
        message, _ = self._call(method, reqs, extra_headers, timeout_seconds, cancel)
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
        return _outcome(lambda: self._call(method, reqs, extra_headers, timeout_seconds, cancel))

    def _call(
        self,
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> Received[ResT]:
        """A call that is answered by one message. What is given is a message, or an iterable of them."""
        send: Callable[..., Received[ResT]] = (
            self._send_client_stream if method.kind.client_streams else self._send_unary
        )
        deadline = self._procedures.deadline(timeout_seconds)
        if not self._procedures.interceptors:
            return send(method, given, extra_headers, deadline, cancel)
        request = new_request(method, given, self._procedures, deadline, extra_headers)
        context = request.context

        def innermost(request: Request) -> Response:
            try:
                message, read_metadata = send(method, given_to(request), context.request_headers, deadline, cancel)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            return Response(message, None, *read_metadata())

        try:
            return given_by(build_chain(self._procedures.interceptors, innermost, asynchronous=False)(request))
        except Exception as error:
            raise coded(context, error) or error  # noqa: B904  it is the same error, or has it as its cause

    def _send_unary(
        self,
        method: Method[ReqT, ResT],
        req: ReqT,
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> Received[ResT]:
        procedure = self._procedures.unary(method)
        request, body = procedure.request(req, extra_headers, self._procedures.timeout_ms(deadline))
        response = self._transport.send(request, body, stream=False, deadline=deadline, opening=deadline, cancel=cancel)
        received = response.read(procedure.body_limit)
        return procedure.response(response.status, response.headers, received, response.trailers)

    def _send_client_stream(
        self,
        method: Method[ReqT, ResT],
        reqs: Iterable[ReqT],
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> Received[ResT]:
        call = self._procedures.stream(method).call()
        response = self._send(method, reqs, extra_headers, deadline, cancel)
        messages: list[ResT] = []
        try:
            call.head(response.status, response.headers)
            for message in receive(call, response):
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
        return self._stream(method, req, extra_headers, timeout_seconds, cancel)

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
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        timeout_seconds: float | None,
        cancel: CancelToken | None,
    ) -> StreamOutput[ResT]:
        try:
            deadline = self._procedures.deadline(timeout_seconds)
        except ConnectError as error:
            return Stream(self._procedures.stream(method).call(), None, error)
        if not self._procedures.interceptors:
            return self._begin_stream(method, given, extra_headers, deadline, cancel)
        request = new_request(method, given, self._procedures, deadline, extra_headers)
        context = request.context
        begun: list[StreamOutput[Any]] = []

        def innermost(request: Request) -> Response:
            try:
                stream = self._begin_stream(method, given_to(request), context.request_headers, deadline, cancel)
            except Exception as error:
                raise passing(context, error)  # noqa: B904  it is the same error
            begun.append(stream)
            stream.raise_error()
            response = Response(headers=stream.response_headers())
            response.messages = messages_of(context, stream, response)
            return response

        try:
            response = build_chain(self._procedures.interceptors, innermost, asynchronous=False)(request)
            return InterceptedStream(context, response, begun, None)
        except Exception as error:
            for stream in begun:
                stream.close()
            close_begun(context)
            failure = coded(context, error)
            if failure is None:
                raise
            return InterceptedStream(context, None, begun, failure)

    def _begin_stream(
        self,
        method: Method[Any, ResT],
        given: Any,
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> Stream[ResT]:
        call = self._procedures.stream(method).call()
        try:
            response = self._send(method, given, extra_headers, deadline, cancel)
        except ConnectError as error:
            return Stream(call, None, error)
        try:
            call.head(response.status, response.headers)
        except BaseException as error:  # whatever it is: the connection may be one of few
            response.close()
            if not isinstance(error, ConnectError):
                raise
            return Stream(call, None, error)
        return Stream(call, response, None)

    def _send(
        self,
        method: Method[Any, Any],
        given: Any,
        extra_headers: HeaderInput | None,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> SyncResponse:
        procedure = self._procedures.stream(method)
        request = procedure.request(extra_headers, self._procedures.timeout_ms(deadline))
        body = _parts(procedure, unused(given)) if method.kind.client_streams else procedure.send(given)
        opening = self._procedures.opening(method, deadline)
        return self._transport.send(request, body, stream=True, deadline=deadline, opening=opening, cancel=cancel)


def _parts(procedure: StreamClient, reqs: Iterable[Any]) -> Iterator[bytes]:
    send = procedure.send
    try:
        for req in reqs:
            yield send(req)
    finally:
        close_generator(reqs)


def _outcome(call: Callable[[], Received[T]]) -> UnaryOutput[T]:
    try:
        message, read_metadata = call()
    except ConnectError as error:
        return UnaryOutput(None, kept(error), error._read_metadata)
    return UnaryOutput(message, None, read_metadata)


def _raising(begin: Callable[[], StreamOutput[T]]) -> Generator[T, None, None]:
    with begin() as stream:
        yield from stream
    error = stream.error()
    if error is not None:
        try:
            raise error
        finally:
            del begin, error, stream  # whose traceback has this frame
