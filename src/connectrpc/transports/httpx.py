"""httpx as a transport: HTTP/1.1, and HTTP/2 without trailers.

A request goes out whole before its answer is read. So a bidirectional stream is half duplex.

What httpx does not tell by itself comes from its ``trace`` extension: which connection a call is given. In HTTP/1.1
that connection is the call's own, and is shut down to wake a thread that is blocked on it. In HTTP/2 it is shared, and
a call that has to end leaves it alone: the thread that waits for it is another one, which is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import httpx

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._background import in_background
from connectrpc.transports._ending import Ending
from connectrpc.transports._failures import (
    causes,
    client_timed_out,
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    reraise,
    stream_reset,
    tls_failure,
)
from connectrpc.transports._reading import AsyncChunkedResponse, ChunkedResponse
from connectrpc.transports._waiting import Helper, Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator

    from connectrpc._core.http import HeaderView, HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["AsyncHttpxTransport", "HttpxTransport"]

T = TypeVar("T")

try:
    from h2.events import DataReceived, StreamReset
    from h2.exceptions import H2Error
except ImportError:  # httpx has HTTP/2 only where it is
    _H2_FAILURES: tuple[type[Exception], ...] = ()
else:
    _H2_FAILURES = (H2Error,)

_FAILURES: tuple[type[Exception], ...] = (httpx.TransportError, httpx.StreamClosed, OSError, *_H2_FAILURES)
"""What httpx raises of its own. A RuntimeError is a client that was closed, which is the user's to know as it is."""

_RESET_FAILURES: tuple[type[Exception], ...] = (AttributeError, *_H2_FAILURES)

_WRITE_BYTES = 64 * 1024  # a write is bounded by the deadline from part to part
_SHORTEST = 0.001  # zero would mean not to block at all
_OPENING_SECONDS = 5.0  # then a call goes on, come what may, lest a hook that makes calls should wait for itself
_CANCEL = 8  # the error code of RFC 9113 section 7


# What both colours have in common.


class _Home:
    """Where an httpx client is used: it is good for one process, and an asynchronous one for one event loop."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.opening = threading.RLock()  # a hook of the user's may itself make calls
        """Held while a call begins its stream of an HTTP/2 connection: httpcore would give two threads the same one."""


_homes: weakref.WeakKeyDictionary[Any, _Home] = weakref.WeakKeyDictionary()


class _Transport:
    def __init__(self, client: object, connect_timeout: float | None) -> None:
        self._client = cast("Any", client)
        self._connect_timeout = connect_timeout
        self._home = _homes.setdefault(client, _Home())
        self._check_process()

    def _check_process(self) -> None:
        # Parent and child would read each other's answers, and a lock of the pool may be held by a thread that the
        # child has not.
        if self._home.process != os.getpid():
            raise RuntimeError(
                "this process was forked from the one that used the httpx client, which does not work across fork(): "
                "make the client after the fork"
            )

    def _timeouts(self, left: float | None) -> dict[str, float | None]:
        """What the user has set for connecting and for the pool. How long the call itself may take is its deadline's
        to say."""
        own = self._client.timeout
        connect = own.connect if self._connect_timeout is None else self._connect_timeout
        return {"connect": _earlier(connect, left), "pool": _earlier(own.pool, left), "read": None, "write": None}

    def _request(
        self, request: HTTPRequest, content: Any, timeouts: dict[str, float | None], trace: Any
    ) -> httpx.Request:
        # Made by hand: build_request() would add the base URL, and what httpx sends with every request.
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
        names = {name.lower() for name, _ in headers}
        headers += [
            (name, value)
            for name, value in self._client.headers.raw
            if name.lower() not in names and not _is_of_httpx(name.lower(), value)
        ]
        extensions = {"timeout": timeouts, "trace": trace}
        cookies = self._client.cookies
        return httpx.Request(
            request.method, request.url, headers=headers, cookies=cookies, content=content, extensions=extensions
        )


def _earlier(limit: float | None, left: float | None) -> float | None:
    if left is None:
        return limit
    left = max(left, _SHORTEST)
    return left if limit is None else min(limit, left)


def _is_of_httpx(name: bytes, value: bytes) -> bool:
    """Whether a header of a client's is one that nobody has asked for. It may decode no answers behind our back."""
    return (
        name == b"accept-encoding"
        or (name == b"accept" and value == b"*/*")
        or (name == b"connection" and value == b"keep-alive")
        or (name == b"user-agent" and value.startswith(b"python-httpx/"))
    )


class _Headers:
    """The headers of an answer of httpx's, which joins those of the same name."""

    __slots__ = ("_decoded", "_headers")

    def __init__(self, headers: httpx.Headers, *, decoded: bool) -> None:
        self._headers = headers
        self._decoded = decoded

    def get(self, name: str, /) -> str | None:
        if self._decoded and name.lower() == "content-encoding":
            return None
        return cast("str | None", self._headers.get(name))

    def items(self) -> Iterable[tuple[str, str]]:
        pairs = self._headers.multi_items()
        return [pair for pair in pairs if pair[0] != "content-encoding"] if self._decoded else pairs


class _UploadFailedError(Exception):
    """What the caller's request iterator raised, in a form that nobody takes for a failure of httpx's."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__(failure)
        self.failure = failure


class _AbandonedError(Exception):
    """Ends the upload of a call that is over: as a failure, lest the server take a part for the whole."""


def _is_failure(error: BaseException) -> bool:
    """Whether something that was raised is a failure of httpx's own, and not of the user's code that it calls."""
    if isinstance(error, _FAILURES):
        return True
    # The status of an answer over HTTP/2 that is no number.
    return isinstance(error, ValueError) and _origin(error).partition(".")[0] == "httpcore"


def _origin(error: BaseException) -> str:
    """The module that raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))


def _coded(error: BaseException, *, answered: bool) -> ConnectError:
    """What a failure of httpx's is to the caller, before or after the head of the answer has come."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.PoolTimeout):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "all connections of the HTTP client's pool are in use")
    if isinstance(error, httpx.ConnectTimeout):
        return connected_too_late()
    if isinstance(error, httpx.TimeoutException):
        return client_timed_out()
    if isinstance(error, httpx.ConnectError):
        return no_connection(error)
    if isinstance(error, httpx.RemoteProtocolError):
        for cause in causes(error):
            event: Any = cause.args[0] if cause.args else None
            if hasattr(event, "error_code") and hasattr(event, "stream_id"):
                return stream_reset(int(event.error_code or 0))
    failure = tls_failure(error)
    if failure is not None:
        return failure
    if not answered and (
        isinstance(error, httpx.NetworkError)
        or (isinstance(error, httpx.RemoteProtocolError) and str(error).startswith("Server disconnected"))
    ):
        return closed_unanswered()
    return connection_failed(text)


def _pool(client: Any, url: str) -> Any:
    """The pool of connections that httpx takes for a URL.

    Raises:
        AttributeError: it has none, or not where it is looked for.
    """
    return client._transport_for_url(httpx.URL(url))._pool


class _Locked:
    """What h2 knows of a connection, for one thread after another."""

    def __init__(self, state: Any) -> None:
        self.__dict__.update(_state=state, _lock=threading.RLock())

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._state, name)
        if not callable(value):
            return value

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._state, name, value)


class _Stream:
    """One call's stream of an HTTP/2 connection.

    httpcore tells nobody of a call that ends early: the server goes on, what it sends uses up the connection's window,
    and a connection with a hundred such streams takes no more. It has no public way to end one, so this reaches for
    its connection, and does without where that is not to be found.
    """

    def __init__(self, connection: Any, request: Any, number: int) -> None:
        self._connection = connection
        self._request = request
        self._number = number
        self._over = False

    @property
    def network(self) -> Any:
        """The connection as httpcore reads and writes it."""
        return getattr(self._connection, "_network_stream", None)

    @classmethod
    def find(cls, client: Any, url: str, info: dict[str, Any]) -> _Stream | None:
        """The stream of a request that is just being sent, from what the trace extension tells."""
        request = info["request"]
        try:
            for queued in list(_pool(client, url)._requests):
                if queued.request is request:
                    connection = queued.connection
                    while not hasattr(connection, "_h2_state"):
                        connection = connection._connection
                    return cls(connection, request, info["stream_id"])
        except AttributeError:
            pass
        return None

    def share(self) -> None:
        """Let threads use the connection at the same time, which httpcore alone does not: what two of them send, and
        the books that are kept of it, get mixed up."""
        if not isinstance(self._connection._h2_state, _Locked):
            self._connection._h2_state = _Locked(self._connection._h2_state)

    def reset(self, *, wake: bool = False) -> bool:
        """Have the stream end. Whether there is anything to send to the server.

        Args:
            wake: have a thread that reads the connection for this stream find that out.
        """
        if self._over:
            return False
        self._over = True
        try:
            h2 = self._connection._h2_state
            events = self._connection._events.get(self._number, [])
            for event in list(events):
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    h2.acknowledge_received_data(event.flow_controlled_length, self._number)
            h2.reset_stream(self._number, _CANCEL)
            if wake:
                end = StreamReset.__new__(StreamReset)
                end.stream_id, end.error_code, end.remote_reset = self._number, _CANCEL, False
                events.append(end)
                h2.ping(b"\0" * 8)  # its answer is what the thread reads
        except _RESET_FAILURES:
            return False  # it had ended
        return True

    def cancel(self) -> None:
        """End the stream of a call that a thread may be blocked in."""
        if self.reset(wake=True):
            self._flush()

    def end(self) -> None:
        """End the stream of a call that nobody waits for."""
        if self.reset():
            self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(Exception):
            self._connection._write_outgoing_data(self._request)

    async def aflush(self) -> None:
        await self._connection._write_outgoing_data(self._request)


# Synchronous calls.


_serving = threading.local()
"""The call that the thread is sending or reading."""

_owners = threading.RLock()
"""Held while a connection changes its owner, and while it is shut down. So a call never hits a connection that has gone
on to another. Reentrant: the garbage collector may close a stream while the same thread holds it."""


def _renew_lock() -> None:
    global _owners
    _owners = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # whoever held it has stayed in the parent


@contextlib.contextmanager
def _serving_for(call: _Call | None) -> Iterator[None]:
    """While the thread sends or reads for a call."""
    outer = getattr(_serving, "call", None)
    _serving.call = call
    try:
        yield
    finally:
        _serving.call = outer


def _close(response: httpx.Response) -> None:
    """Close what nobody wants any more; that its connection is lost as well is of no interest."""
    with contextlib.suppress(Exception):
        response.close()


class _StaleError(Exception):
    """The connection was stopped just after it had served another call. Nothing was sent."""


class _Line:
    """A connection of httpcore's, and the call that it serves."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.owner: _Call | None = None
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        if isinstance(self.socket, socket.socket):
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would drop the TLS state under the other thread's hands.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


def _tap(stream: Any) -> _Line | None:
    """Have a connection tell which call it serves, and keep to that call's deadline.

    Done to the object, since httpcore has no place for it: what it lets a caller see of a connection before the head of
    the answer is there is this object, and only when it is made.
    """
    known: _Line | None = getattr(stream, "connectrpc_line", None)
    if known is not None:
        return known
    line = _Line(stream.get_extra_info("socket"))
    itself = weakref.ref(stream)
    kind = type(stream)

    def write(buffer: bytes, timeout: float | None = None) -> None:
        call: _Call | None = getattr(_serving, "call", None)
        if call is None or call.shared:
            line.owner = None
            kind.write(itself(), buffer, timeout)
            return
        call.take(line)
        for start in range(0, len(buffer), _WRITE_BYTES):
            kind.write(itself(), buffer[start : start + _WRITE_BYTES], call.left())

    def read(max_bytes: int, timeout: float | None = None) -> bytes:
        call: _Call | None = getattr(_serving, "call", None)
        if call is not None and not call.shared:
            call.check()  # a server that says something without end, such as 100, lets no read wait
            timeout = call.left()
        return cast("bytes", kind.read(itself(), max_bytes, timeout))

    try:
        stream.connectrpc_line = line
        stream.write = write
        stream.read = read
    except AttributeError:
        return None  # a stream of the user's own making
    return line


class HttpxTransport(_Transport):
    """Sends requests through an ``httpx.Client``.

    Args:
        client: the user's, with its transports, TLS, proxies, cookies, hooks and authentication.
        connect_timeout: how long connecting may take, in seconds; None for the client's own limit.
    """

    def __init__(self, client: object, *, connect_timeout: float | None = None) -> None:
        super().__init__(client, connect_timeout)
        self._shares_connections: bool | None = None  # known since the first answer at the latest

    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> _Response:
        self._check_process()
        upload = None if body is None or isinstance(body, bytes) else _Upload(body)
        call = _Call(self._client, request.url, deadline, opening, cancel, upload)
        content = body if upload is None else upload
        try:
            call.check()
            if self._shares_connections is None and not _offers_http2(self._client, request.url):
                self._shares_connections = False
            # A deadline alone needs no other thread where a connection belongs to the call.
            if cancel is not None or (opening.expires_at is not None and self._shares_connections is not False):
                response = call.wait_for(lambda: self._open(request, content, call), _close)
            else:
                response = self._open(request, content, call)
        except BaseException as error:
            if upload is not None:
                upload.abandon()
            if call.stream is not None and not call.left_behind:
                call.stream.end()
            call.finish()
            if isinstance(error, _UploadFailedError):
                reraise(error.failure)
            if isinstance(error, _AbandonedError) or _is_failure(error):
                call.fail(error, answered=False)
            raise
        self._shares_connections = response.extensions.get("http_version") == b"HTTP/2"
        call.answered(response)
        return _Response(response, call, may_be_left=stream or cancel is not None or deadline.expires_at is not None)

    def _open(self, request: HTTPRequest, content: Any, call: _Call) -> httpx.Response:
        with _serving_for(call), self._opening(call):
            while True:
                call.timeouts = self._timeouts(call.opening.remaining())
                native = self._request(request, content, call.timeouts, call.trace)
                try:
                    return cast("httpx.Response", self._client.send(native, stream=True, follow_redirects=False))
                except _StaleError:
                    continue

    @contextlib.contextmanager
    def _opening(self, call: _Call) -> Iterator[None]:
        """Nobody else begins a stream of the same connection until this call has."""
        if self._shares_connections is False or not self._home.opening.acquire(timeout=_OPENING_SECONDS):
            yield
            return
        release = contextlib.ExitStack()
        release.callback(self._home.opening.release)
        call.begun = release.close
        try:
            yield
        finally:
            release.close()

    def close(self) -> None:
        pass  # the user's client stays open


def _nothing() -> None:
    pass


def _offers_http2(client: Any, url: str) -> bool:
    try:
        return bool(_pool(client, url)._http2)
    except AttributeError:
        return False


class _Upload:
    """A request body in parts."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._abandoned = False

    def __iter__(self) -> _Upload:
        return self

    def __next__(self) -> bytes:
        if self._abandoned:
            raise _AbandonedError
        try:
            with _serving_for(None):  # it may itself make calls
                part = next(self._parts, None)
        except BaseException as error:
            raise _UploadFailedError(error) from error
        if self._abandoned:
            raise _AbandonedError
        if part is None:
            raise StopIteration
        return part

    def abandon(self) -> None:
        """Read no more parts. From any thread; one that is waited for is the last."""
        self._abandoned = True


class _Call(Ending):
    """What can end one call, by shutting its connection down or by leaving the thread that waits."""

    __slots__ = (
        "__weakref__",
        "_client",
        "_finished",
        "_line",
        "_upload",
        "_url",
        "_wake",
        "begun",
        "left_behind",
        "shared",
        "stream",
        "timeouts",
    )

    def __init__(
        self,
        client: Any,
        url: str,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
        upload: _Upload | None,
    ) -> None:
        super().__init__(deadline, opening, cancel)
        self._client = client
        self._url = url
        self._upload = upload
        self._wake: Callable[[], object] | None = None
        self._finished = False
        self._line: _Line | None = None
        self.begun: Callable[[], object] = _nothing
        """What is to be done as soon as it has a connection of its own, or a stream."""
        self.left_behind = False
        """Whether a thread that nobody waits for may still be at work for it."""
        self.shared = False
        """Whether its connection serves other calls as well."""
        self.stream: _Stream | None = None
        self.timeouts: dict[str, float | None] = {}
        self.heed_token()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpcore tells about the request, in the thread that sends it."""
        layer, _, step = event.partition(".")
        if layer == "http2":
            self.shared = True
            if step in ("send_request_headers.complete", "send_request_headers.failed"):
                self.begun()
        elif layer == "http11" and "request" in info and info["request"].method != b"CONNECT":
            self.begun()
        if step == "send_request_headers.started":
            self.check()
            if self.shared:
                self.stream = _Stream.find(self._client, self._url, info)
                if self.stream is not None:
                    self.stream.share()
                self.check()  # it may have been stopped just before there was a stream to end
            else:
                # For a connection that was opened by others than us.
                self.timeouts["read"] = self.timeouts["write"] = self.left()
        elif step in ("connect_tcp.started", "connect_unix_socket.started"):
            self.check()
            info["timeout"] = _earlier(info.get("timeout"), self.opening.remaining())
        elif step == "start_tls.started":
            info["timeout"] = _earlier(info.get("timeout"), self.opening.remaining())
        elif step in ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete"):
            _tap(info["return_value"])

    def take(self, line: _Line) -> None:
        """Have a connection to oneself, unless one was stopped."""
        with _owners:
            if line.stopped and line.owner is not self:
                raise _StaleError
            line.owner = self
            self._line = line
        self.check()

    def answered(self, response: httpx.Response) -> None:
        """The head of the answer is there."""
        self.opening = self._deadline
        network = response.extensions.get("network_stream")
        if network is not None and not self.shared and self._line is None:
            line = _tap(network)
            if line is not None:
                with _owners:
                    line.owner = self
                    self._line = line
        if self._reason is not None:
            self._give_up()

    def left(self) -> float | None:
        return _earlier(None, self.opening.remaining())

    def fail(self, error: BaseException, *, answered: bool) -> NoReturn:
        """Raise what a failure of httpx's is to the caller."""
        left = self.opening.remaining()
        if left is not None and left < 0.01 and isinstance(error, httpx.TimeoutException):
            raise self.late() from error
        raise self.reason() or _coded(error, answered=answered) from error

    def wait_for(self, begin: Callable[[], T], drop: Callable[[T], object]) -> T:
        """Do something that blocks in another thread, and leave it when the call has to end."""
        waiting = Waiting(begin, drop)
        self._wake = waiting.wake
        try:
            while self._reason is None and not waiting.wait(self.opening.remaining()):
                self.check()
            self.check()
        except BaseException:
            self.left_behind = True
            self._give_up()
            waiting.leave()
            raise
        finally:
            self._wake = None
        return waiting.result()

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        with _owners:
            if self._finished or self._reason is not None:
                return
            self._reason = reason
        self._give_up()
        wake = self._wake
        if wake is not None:
            wake()

    def _give_up(self) -> None:
        """Wake the thread that is blocked on the call's connection, which nobody will use again."""
        if self._upload is not None:
            self._upload.abandon()
        with _owners:
            if not self._finished and self._line is not None and self._line.owner is self:
                self._line.stop()
        if self.stream is not None:
            with contextlib.suppress(ConnectError):  # without a thread the server is not told
                Helper.start_task(self.stream.cancel)  # it may have to wait until it can write

    def finish(self) -> None:
        with _owners:
            self._finished = True
            if self._line is not None and self._line.owner is self and not self._line.stopped:
                self._line.owner = None
        super().finish()


class _Response(ChunkedResponse):
    """An answer of httpx's."""

    __slots__ = ("_call", "_chunks", "_closed", "_response", "_waits", "headers", "status")

    trailers = None  # the library does not tell

    def __init__(self, response: httpx.Response, call: _Call, *, may_be_left: bool) -> None:
        self._call = call
        self._response = response
        # A transport or a hook of the user's may have read it. httpx has decoded it then.
        read = response.is_stream_consumed
        self._chunks: Iterator[bytes] = iter([response.content]) if read else response.iter_raw()
        self._waits = may_be_left and call.shared
        self._closed = False
        self.status = response.status_code
        self.headers: HeaderView = _Headers(response.headers, decoded=read)

    def read_chunk(self) -> bytes:
        try:
            chunk = self._wait() if self._waits else self._next()
        except _FAILURES as error:
            self._call.fail(error, answered=True)
        self._call.check()  # a body that ends with its connection looks complete when that was shut down
        return chunk

    def _next(self) -> bytes:
        with _serving_for(self._call):
            for chunk in self._chunks:
                if chunk:  # a frame may be empty
                    return chunk
        return b""

    def _wait(self) -> bytes:
        # A thread that is left behind is in the generator still, so it is the one to close the response.
        return self._call.wait_for(self._next_or_close, lambda _: _close(self._response))

    def _next_or_close(self) -> bytes:
        try:
            return self._next()
        except BaseException:
            _close(self._response)
            raise

    def check(self) -> None:
        self._call.check()

    def interrupt(self) -> None:
        self._call.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._call.finish()
        if self._call.left_behind:
            return
        if getattr(_serving, "call", None) is None:
            self._end()
        else:
            # The garbage collector closes it while the thread is in the middle of another call, which may hold locks of
            # httpcore's that closing needs.
            with contextlib.suppress(ConnectError):  # without a thread it is lost to its pool
                Helper.start_task(self._end)

    def _end(self) -> None:
        if self._call.stream is not None and not self._response.is_closed:
            self._call.stream.end()
        _close(self._response)


# Asynchronous calls.


_PREFACE = b"PRI * HTTP/2.0"


def _shield(stream: Any) -> None:
    """Have what is written to an HTTP/2 connection go out whole, also when the call that writes is cancelled.

    The connection is lost to all of its calls otherwise: to TLS a record is missing, or to the server a frame.
    """
    if stream is None or getattr(stream, "connectrpc_shielded", False):
        return
    itself = weakref.ref(stream)
    kind = type(stream)
    multiplexed: bool | None = None
    last: asyncio.Task[None] | None = None

    async def write_after(before: asyncio.Task[None] | None, buffer: bytes, timeout: float | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        await kind.write(itself(), buffer, timeout)

    async def write(buffer: bytes, timeout: float | None = None) -> None:
        nonlocal multiplexed, last
        if not buffer:
            return
        if multiplexed is None:  # the first that is written tells
            multiplexed = buffer.startswith(_PREFACE)
        if not multiplexed:
            await kind.write(itself(), buffer, timeout)
            return
        last = asyncio.get_running_loop().create_task(write_after(last, buffer, timeout))
        last.add_done_callback(_take_failure)
        await asyncio.shield(last)

    with contextlib.suppress(AttributeError):  # a stream of the user's own making
        stream.connectrpc_shielded = True
        stream.write = write


def _take_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # nobody may be left to see it; the next write fails as well


class AsyncHttpxTransport(_Transport):
    """Sends requests through an ``httpx.AsyncClient``.

    Args:
        client: the user's, with its transports, TLS, proxies, cookies, hooks and authentication.
        connect_timeout: how long connecting may take, in seconds; None for the client's own limit.
    """

    def __init__(self, client: object, *, connect_timeout: float | None = None) -> None:
        super().__init__(client, connect_timeout)

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _AsyncResponse:
        self._check_process()
        if self._home.loop is not None and self._home.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this client's httpx.AsyncClient has connections of an event loop that it was used in before: make an "
                "httpx.AsyncClient and a client in each asyncio.run(), or leave http_client out"
            )
        upload = None if body is None or isinstance(body, bytes) else _AsyncUpload(body)
        content = body if upload is None else upload.content
        stream: _Stream | None = None
        stale = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal stale, stream
            if event.endswith("send_request_headers.started"):
                self._home.loop = asyncio.get_running_loop()
                if event.startswith("http2"):
                    stream = _Stream.find(self._client, request.url, info)
                    if stream is not None:
                        _shield(stream.network)
            elif event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
                _shield(info["return_value"])
            elif event.endswith("send_connection_init.failed"):
                # The call that was to begin the connection was cancelled, which has closed it, but httpcore goes on
                # with the next call that waits for it. Nothing of that was sent.
                stale = type(info["exception"]).__module__ == "h2.exceptions"

        async def begin() -> httpx.Response:
            native = self._request(request, content, self._timeouts(None), trace)
            return cast("httpx.Response", await self._client.send(native, stream=True, follow_redirects=False))

        try:
            try:
                response = await begin()
            except Exception:
                if not stale:
                    raise
                response = await begin()
        except BaseException as error:
            if upload is not None:
                in_background(upload.content.aclose())
            if stream is not None and stream.reset():
                in_background(stream.aflush())
            if isinstance(error, _UploadFailedError):
                reraise(error.failure)
            if _is_failure(error):
                raise _coded(error, answered=False) from error
            raise
        return _AsyncResponse(response, upload, stream)

    async def aclose(self) -> None:
        pass  # the user's client stays open


class _AsyncUpload:
    """A request body in parts."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.finished = False
        self.content: Any = self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts:
                yield part
            self.finished = True
        except Exception as error:
            raise _UploadFailedError(error) from error
        finally:
            if hasattr(self._parts, "aclose"):
                await self._parts.aclose()


def _finish(work: Coroutine[Any, Any, Any]) -> None:
    """Do at once what only gives way to other tasks, and leave the rest of it to a task of its own.

    A task that is made while the event loop shuts down may never run.
    """
    try:
        while (waits_for := work.send(None)) is None:
            pass
    except StopIteration:
        return
    except Exception:
        return  # the connection is lost in any case
    in_background(_rest(work, waits_for))


@types.coroutine
def _rest(work: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    try:
        while True:
            try:
                given = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(given)
    except StopIteration:
        return


class _AsyncResponse(AsyncChunkedResponse):
    """An answer of httpx's."""

    __slots__ = ("_chunks", "_closed", "_response", "_stream", "_upload", "headers", "status")

    trailers = None  # the library does not tell

    def __init__(self, response: httpx.Response, upload: _AsyncUpload | None, stream: _Stream | None) -> None:
        self._response = response
        self._upload = upload
        self._stream = stream
        self._closed = False
        # A transport or a hook of the user's may have read it. httpx has decoded it then.
        read = response.is_stream_consumed
        self._chunks: AsyncIterator[bytes] = _whole(response.content) if read else response.aiter_raw()
        self.status = response.status_code
        self.headers: HeaderView = _Headers(response.headers, decoded=read)

    @property
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    async def read_chunk(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:  # a frame may be empty
                    return chunk
        except _FAILURES as error:
            raise _coded(error, answered=True) from error
        return b""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._response.is_closed:
            return
        if self._stream is not None:
            in_background(self._end(self._stream, self._stream.reset()))
        elif "network_stream" in self._response.extensions and asyncio.current_task() is not None:
            _finish(self._response.aclose())
        else:
            in_background(self._response.aclose())

    async def _end(self, stream: _Stream, unsent: bool) -> None:
        try:
            if unsent:
                await stream.aflush()
        finally:
            await self._response.aclose()


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
