"""Services as WSGI applications (PEP 3333), for any WSGI server."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import StreamServerCall, messages_of
from connectrpc._core.chain import close_messages
from connectrpc._core.http import BODILESS, RequestHead, WholeResponse, address_of
from connectrpc._core.metadata import received
from connectrpc._core.negotiate import may_stream, negotiate, plain_endpoints, plain_response
from connectrpc._core.pieces import keep
from connectrpc._core.plain import PlainServerCall
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ClientRequest, ClientStream
from connectrpc.server.endpoints import build_endpoints, check_services, find_handlers, merge_endpoints
from connectrpc.server.handlers import DRAIN_MAX_BYTES, DRAIN_MAX_SECONDS, coded, failed, last_part, logger, ordinary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Protocol

    from multidict import CIMultiDict
    from typing_extensions import Unpack

    from connectrpc._core.call import ServerCall
    from connectrpc._core.http import HeaderList
    from connectrpc._core.negotiate import Endpoint, PlainEndpoint
    from connectrpc._core.pieces import Pieces
    from connectrpc.method import Method, Service
    from connectrpc.request import ServerStream
    from connectrpc.server.options import ServiceOptions

    class StartResponse(Protocol):
        def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> object: ...

    class Input(Protocol):
        def read(self, size: int = -1, /) -> bytes: ...
        def readline(self, size: int = -1, /) -> bytes: ...


__all__ = ["WSGIApplication", "wsgi_app", "wsgi_service"]

_STATUS = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_STATUS[499] = "499 Client Closed Request"

# No PEP has this yet: a callable for the environ of servers that can send trailers. It is called with the list of them
# when the last part of the body has been taken, and ends the answer. Behind HTTP/1.1 they would come to nothing.
_SEND_TRAILERS = "wsgi.ext.http.send_trailers"

_CHUNK = 64 * 1024
_LARGE_CHUNK = 1024 * 1024  # gunicorn copies what it has read ahead at each read, however little that takes of it
_LENGTH_MAX_DIGITS = 19  # 2**63 has as many, and Python is slow and then refuses to convert very long ones


class WSGIApplication:
    """One or several services. Any number of threads may call it, also after a fork."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = dict(endpoints)
        self._plain = plain_endpoints(self._endpoints)

    @property
    def methods(self) -> tuple[Method[Any, Any], ...]:
        """The RPCs that it serves."""
        return tuple(endpoint.method for endpoint in self._endpoints.values())

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        get = environ.get
        plain = self._plain.get((get("PATH_INFO", ""), get("CONTENT_TYPE", "")))
        if (
            plain is not None
            and environ["REQUEST_METHOD"] == "POST"
            and get("HTTP_CONNECT_PROTOCOL_VERSION") == "1"
            and get("HTTP_CONNECT_TIMEOUT_MS") is None
            and get("HTTP_CONTENT_ENCODING") is None
            and get("HTTP_TRANSFER_ENCODING") is None
        ):
            size = _length(get("CONTENT_LENGTH"))
            if size is not None and size <= plain.server.plain_max_bytes:
                return _call_plain(plain, size, environ, start_response)
        return self._call(environ, start_response)

    def _call(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        head = _Head(environ)
        negotiated = negotiate(self._endpoints, head)
        body = _RequestBody(environ)
        if body.refusal is not None:
            return _send(body.refusal, environ, start_response)
        if isinstance(negotiated, WholeResponse):
            body.open = may_stream(head)
            body.drain()
            return _send(negotiated, environ, start_response)
        endpoint, call = negotiated
        body.open = endpoint.method.kind.client_streams
        if endpoint.method.kind.server_streams:
            assert isinstance(call, StreamServerCall)
            return _stream(endpoint, call, body, environ, start_response)
        try:
            call.deadline.check()
            response = call.answer(endpoint.handler(_request(call, body)))
        except BaseException as error:
            response = failed(call, ordinary(error))
        body.drain()
        return _send(response, environ, start_response)


def wsgi_service(service: Service, implementation: object, **options: Unpack[ServiceOptions]) -> WSGIApplication:
    """The app that serves ``service`` with ``implementation``, whose methods are looked up now.

    Handlers run in the server's own threads, which nothing can interrupt: the deadline is looked at before the handler
    begins, at each message, and when it returns. ``InThreads`` of an implementation has answers go out on time.

    Raises:
        TypeError: an option is unknown, or the implementation is no instance or is async.
        ValueError: an option has a value that makes no sense.
    """
    handlers = find_handlers(service, implementation, asynchronous=False)
    return WSGIApplication(build_endpoints(handlers, options, asynchronous=False))


def wsgi_app(*services: WSGIApplication) -> WSGIApplication:
    """One app that serves several services.

    Raises:
        TypeError: one of them is something else.
        ValueError: two of them serve the same path.
    """
    check_services(services, WSGIApplication, "wsgi")
    return WSGIApplication(merge_endpoints(service._endpoints for service in services))


def _send(response: WholeResponse, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response(_STATUS[response.status], response.headers)
    if response.trailers is not None:
        return _with_trailers(response.body, environ[_SEND_TRAILERS], response.trailers)
    return [response.body]  # a list: servers have a short way for it


def _with_trailers(body: bytes, send_trailers: Callable[[HeaderList], object], trailers: HeaderList) -> Iterator[bytes]:
    yield body
    send_trailers(trailers)


def _call_plain(
    plain: PlainEndpoint, size: int, environ: dict[str, Any], start_response: StartResponse
) -> Iterable[bytes]:
    """The short way of a call that asks for nothing special; it turns into the long one where something comes up."""
    server = plain.server
    call = PlainServerCall(server, _Head, environ)
    answer: bytes | WholeResponse
    try:
        request = server.read_plain(_read_exactly(environ["wsgi.input"], size))
        answer = server.write_plain(plain.handler(ClientRequest(request, call)), call)
    except BaseException as error:
        answer = failed(call.long_way(), ordinary(error))
    if isinstance(answer, WholeResponse):
        return _send(answer, environ, start_response)
    start_response("200 OK", [*server.plain_headers, ("content-length", str(len(answer)))])
    return [answer]


def _request(call: ServerCall, body: _RequestBody) -> ClientRequest[Any] | ClientStream[Any]:
    """What the handler is called with.

    Raises:
        ConnectError: a request of one message is none.
    """
    if call.method.kind.client_streams:
        assert isinstance(call, StreamServerCall)
        return ClientStream(_messages(call, body), call)
    limit = call.whole_body_limit()
    if body.length is not None and (limit is None or body.length <= limit):
        return ClientRequest(call.receive(body.read_all()), call)
    while chunk := body.read(_CHUNK):
        call.take(chunk)
    return ClientRequest(call.taken(), call)


def _messages(call: StreamServerCall, body: _RequestBody) -> Iterator[Any]:
    # Some servers' read(n) waits for all of n bytes. Asking for no more than a message needs gives each one as soon as
    # it is there; a small body of known length has most likely come whole.
    whole = body.length is not None and body.length <= _CHUNK
    timed = call.deadline.expires_at is not None
    while chunk := body.read(_CHUNK) if whole else body.read_soon(min(call.wanted, _LARGE_CHUNK)):
        for message in call.feed(chunk):
            if timed:
                call.deadline.check()
            yield message
    call.feed_end()


def _stream(
    endpoint: Endpoint,
    call: StreamServerCall,
    body: _RequestBody,
    environ: Mapping[str, Any],
    start_response: StartResponse,
) -> Iterable[bytes]:
    """A streamed answer."""
    given: Any = None
    try:
        call.deadline.check()
        given, headers, stream = messages_of(call.method, endpoint.handler(_request(call, body)))
        head = call.start(headers)
        messages = iter(given)
    except BaseException as error:
        response = failed(call, ordinary(error))
        _close(given, call)
        body.drain()
        return _send(response, environ, start_response)
    # Not when the first part is asked for: some servers want it called before the app has returned.
    start_response(_STATUS[head.status], head.headers)
    return _StreamedBody(call, messages, stream, body, environ.get(_SEND_TRAILERS))


class _StreamedBody:
    """The body of a streamed answer. The server closes it when it is done, or when the client has left."""

    __slots__ = ("_body", "_call", "_closed", "_messages", "_send_trailers", "_stream")

    def __init__(
        self,
        call: StreamServerCall,
        messages: Iterator[Any],
        stream: ServerStream[Any] | None,
        body: _RequestBody,
        send_trailers: Callable[[HeaderList], object] | None,
    ) -> None:
        self._call = call
        self._messages = messages
        self._stream = stream
        self._body = body
        self._send_trailers = send_trailers
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        call = self._call
        timed = call.deadline.expires_at is not None
        failure: ConnectError | None = None
        try:
            yield b""  # sends the head: the client may be waiting for it while the handler waits for something else
            for message in self._messages:
                if timed:
                    call.deadline.check()
                part = call.send(message)
                del message  # else large ones would be there twice, and the heap would grow and shrink with each
                yield part
            call.deadline.check()
        except BaseException as error:
            failure = coded(call, ordinary(error))
        finally:
            self.close()
        yield last_part(call, failure, self._stream)
        self._body.drain()
        if call.has_trailers and self._send_trailers is not None:
            self._send_trailers(call.trailers)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            _close(self._messages, self._call)


def _close(messages: object, call: ServerCall) -> None:
    """Let a handler's generator run its ``finally``, whose failure is nobody's but its own."""
    try:
        close_messages(messages)
    except BaseException as error:
        coded(call, ordinary(error))


class _Head(RequestHead):
    __slots__ = ("_environ",)

    def __init__(self, environ: dict[str, Any]) -> None:
        get = environ.get
        self._environ = environ
        self.can_send_trailers = _SEND_TRAILERS in environ and not _is_http_1(environ)
        self.http_method = environ["REQUEST_METHOD"]
        self.path = get("PATH_INFO", "")
        self.query = get("QUERY_STRING", "")
        self.content_type = get("CONTENT_TYPE")
        self.content_encoding = get("HTTP_CONTENT_ENCODING")
        self.accept_encoding = get("HTTP_ACCEPT_ENCODING")
        self.connect_protocol_version = get("HTTP_CONNECT_PROTOCOL_VERSION")
        self.connect_timeout_ms = get("HTTP_CONNECT_TIMEOUT_MS")
        self.connect_content_encoding = get("HTTP_CONNECT_CONTENT_ENCODING")
        self.connect_accept_encoding = get("HTTP_CONNECT_ACCEPT_ENCODING")
        self.grpc_timeout = get("HTTP_GRPC_TIMEOUT")
        self.grpc_encoding = get("HTTP_GRPC_ENCODING")
        self.grpc_accept_encoding = get("HTTP_GRPC_ACCEPT_ENCODING")

    def read_headers(self) -> CIMultiDict[str]:
        return received(
            (key.removeprefix("HTTP_").replace("_", "-").lower(), value)
            for key, value in self._environ.items()
            if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
        )

    def peer_address(self) -> str:
        get = self._environ.get
        return address_of(get("REMOTE_ADDR", ""), get("REMOTE_PORT"))


class _RequestBody:
    """The body of a request: what PEP 3333 leaves open, said once.

    Attributes:
        length: how many bytes it has; None when only its end will tell.
        open: whether the client may wait for an answer before it ends this.
        refusal: the answer to a request whose body cannot be read at all, or None.
    """

    __slots__ = ("_http_1", "_input", "_left", "_soon", "length", "open", "refusal")

    def __init__(self, environ: dict[str, Any]) -> None:
        self._input: Input = environ["wsgi.input"]
        self._soon = _prompt(self._input)
        self._http_1 = _is_http_1(environ)
        self.open = True
        self.refusal: WholeResponse | None = None
        self.length: int | None
        declared = environ.get("CONTENT_LENGTH")
        if environ.get("HTTP_TRANSFER_ENCODING"):
            # RFC 9112 section 6.3: it stands above a length. Only some servers decode it.
            self.length = None
            if not environ.get("wsgi.input_terminated"):
                self.refusal = plain_response(environ["REQUEST_METHOD"], 411, "Length Required")
        elif declared:
            self.length = _length(declared)
            if self.length is None:
                self.refusal = plain_response(environ["REQUEST_METHOD"], 400, "Bad Request")
        elif environ["REQUEST_METHOD"] in BODILESS:
            self.length = 0
        else:
            # HTTP/2 has framing of its own, and so have servers that can send trailers: a body ends where it ends.
            terminated = environ.get("wsgi.input_terminated") or not self._http_1 or _SEND_TRAILERS in environ
            self.length = None if terminated else 0
        self._left = self.length

    def read_soon(self, size: int) -> bytes:
        """Up to ``size`` bytes, without waiting for more than these; none at the end.

        Raises:
            ConnectError: as ``read``.
        """
        return self._read(self._soon, size)

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end.

        Raises:
            ConnectError: ``invalid_argument``: the body broke off, or its transfer coding is broken.
        """
        return self._read(self._input.read, size)

    def _read(self, read: Callable[[int], bytes], size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
            if not size:
                return b""
        try:
            chunk = read(size)
        except Exception as error:  # each server has its own
            self._left = 0
            raise _unreadable() from error
        if self._left is None:
            if not chunk:
                self._left = 0
            return chunk
        self._left -= len(chunk)
        if not chunk:  # a short read is not the end yet: only nothing is
            self._left = 0
            raise _too_short()
        return chunk

    def read_all(self) -> bytes:
        """The whole body, whose length is known.

        Raises:
            ConnectError: as ``read``.
        """
        assert self._left is not None
        size, self._left = self._left, 0
        return _read_exactly(self._input, size)

    def drain(self) -> None:
        """Read what is left, within bounds, and throw it away.

        Where the next request comes behind this one, it has to be. On HTTP/2 a stream of messages just ends; but a
        whole message is on its way, and a client that is stopped in it may miss the answer.
        """
        if self._left == 0 or (self.open and not self._http_1):
            return
        drained, until = 0, time.monotonic() + DRAIN_MAX_SECONDS
        try:
            while chunk := self.read(_CHUNK):
                drained += len(chunk)
                if drained > DRAIN_MAX_BYTES or time.monotonic() > until:
                    logger.info("gave up reading a request that had its answer already")
                    return
        except ConnectError:
            return  # the client has gone; there is nobody to tell


def _is_http_1(environ: Mapping[str, Any]) -> bool:
    return str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).startswith("HTTP/1")


def _prompt(stream: Input) -> Callable[[int], bytes]:
    """What reads without waiting for more than it is asked for."""
    if type(stream).__module__ != "gunicorn.http.body":
        return stream.read
    # gunicorn's read() waits for a kilobyte, or for the end, whatever it is asked for; what that reads from does not.
    # Nor does its readline(), which stops at each line feed, and so is slow.
    reader: Any = getattr(stream, "reader", None)
    return getattr(reader, "read", stream.readline)


def _length(declared: str | None) -> int | None:
    """The value of a Content-Length, or None when there is none, or no sensible one."""
    digits = (declared or "").strip(" \t")
    if digits and len(digits) < _LENGTH_MAX_DIGITS and digits.isascii() and digits.isdigit():
        return int(digits)
    return None


def _read_exactly(stream: Input, size: int) -> bytes:
    """``size`` bytes: a short read is not the end, only nothing is.

    Raises:
        ConnectError: ``invalid_argument``: there are not as many.
    """
    if not size:
        return b""
    try:
        whole = stream.read(size)
        if len(whole) == size:
            return whole
        parts: Pieces = [whole]
        left = size - len(whole)
        while left and (chunk := stream.read(left)):
            keep(parts, chunk)
            left -= len(chunk)
    except Exception as error:  # each server has its own
        raise _unreadable() from error
    if left:
        raise _too_short()
    return b"".join(parts)


def _unreadable() -> ConnectError:
    return ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the request's body cannot be read")


def _too_short() -> ConnectError:
    return ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the request's body is shorter than its length")
