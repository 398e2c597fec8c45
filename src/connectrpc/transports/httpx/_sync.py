"""Blocking calls: what wakes the thread that waits, and which call a connection serves."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import httpx

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import Ending
from connectrpc.transports._failures import reraise
from connectrpc.transports._reading import ChunkedResponse
from connectrpc.transports._waiting import Helper, Waiting, close_parts
from connectrpc.transports.httpx._http2 import Stream, pool_of
from connectrpc.transports.httpx._httpx import (
    FAILURES,
    Headers,
    Transport,
    UploadFailedError,
    coded,
    earlier,
    is_failure,
    sent_twice,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectrpc._core.http import HeaderView, HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["HttpxTransport"]

T = TypeVar("T")

_WRITE_BYTES = 64 * 1024  # a write is bounded by the deadline from part to part
_OPENING_SECONDS = 5.0  # then a call goes on, come what may, lest a hook that makes calls should wait for itself

_serving = threading.local()
"""The call that the thread is sending, reading or ending."""

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
    """While the thread does something for a call. It may hold locks of httpcore's."""
    outer = getattr(_serving, "call", None)
    _serving.call = call
    try:
        yield
    finally:
        _serving.call = outer


def _close(response: httpx.Response, call: _Call) -> None:
    """Close what nobody wants any more; that its connection is lost as well is of no interest."""
    with contextlib.suppress(Exception), _serving_for(call):
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


class HttpxTransport(Transport):
    """Sends requests through an ``httpx.Client``.

    Args:
        client: the user's, with its transports, TLS, proxies, cookies, hooks and authentication.
        connect_timeout: how long connecting may take, in seconds; None for the client's own limit.
    """

    def __init__(self, client: object, *, connect_timeout: float | None = None) -> None:
        super().__init__(client, connect_timeout=connect_timeout)
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
                response = call.wait_for(
                    lambda: self._open(request, content, call), lambda response: _close(response, call)
                )
            else:
                response = self._open(request, content, call)
        except BaseException as error:
            if upload is not None:
                upload.abandon()
            if not call.left_behind:
                call.end_stream()
            call.finish()
            if isinstance(error, UploadFailedError):
                reraise(error.failure)
            if isinstance(error, _SentTwiceError):
                raise sent_twice(answered=call.was_answered) from error
            if isinstance(error, _AbandonedError) or is_failure(error):
                call.fail(error, answered=False)
            raise
        self._shares_connections = response.extensions.get("http_version") == b"HTTP/2"
        call.answered(response)
        return _Response(response, call, may_be_left=stream or cancel is not None or deadline.expires_at is not None)

    def _open(self, request: HTTPRequest, content: Any, call: _Call) -> httpx.Response:
        response = None
        try:
            response = self._send(request, content, call)
        finally:
            if isinstance(content, _Upload):
                try:
                    content.end()  # sent whole, or as far as it will be
                except BaseException:
                    if response is not None:
                        _close(response, call)
                    raise
        return response

    def _send(self, request: HTTPRequest, content: Any, call: _Call) -> httpx.Response:
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
        return bool(pool_of(client, url)._http2)
    except AttributeError:
        return False


class _AbandonedError(Exception):
    """Ends the upload of a call that is over: as a failure, lest the server take a part for the whole."""


class _SentTwiceError(Exception):
    """A request is to be sent again whose parts are gone. httpx would send the rest of them, which may be nothing."""


class _Upload:
    """A request body in parts."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._begun = False
        self._abandoned = False
        self.stream: Stream | None = None

    def __iter__(self) -> _Upload:
        if self._begun:
            raise _SentTwiceError
        return self

    def __next__(self) -> bytes:
        self._begun = True
        if self._abandoned:
            raise _AbandonedError
        if self.stream is not None and self.stream.ended:
            raise StopIteration
        try:
            with _serving_for(None):  # it may itself make calls
                part = next(self._parts, None)
        except BaseException as error:
            raise UploadFailedError(error) from error
        if self._abandoned:
            raise _AbandonedError
        if part is None:
            raise StopIteration
        return part

    def abandon(self) -> None:
        """Read no more parts. From any thread; one that is waited for is the last."""
        self._abandoned = True

    def end(self) -> None:
        """No more parts will be read. In the thread that has read them."""
        self._abandoned = True  # whoever reads on all the same is not to take their end for that of the request
        with _serving_for(None):
            close_parts(self._parts)


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
        "was_answered",
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
        self.stream: Stream | None = None
        self.timeouts: dict[str, float | None] = {}
        self.was_answered = False
        """Whether the head of an answer has come, which need not be the last one."""
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
                self.stream = Stream.find(self._client, self._url, info)
                if self.stream is not None:
                    self.stream.share()
                    if self._upload is not None:
                        self._upload.stream = self.stream
                self.check()  # it may have been stopped just before there was a stream to end
            else:
                # For a connection that was opened by others than us.
                self.timeouts["read"] = self.timeouts["write"] = self.left()
        elif step in ("connect_tcp.started", "connect_unix_socket.started"):
            self.check()
            info["timeout"] = earlier(info.get("timeout"), self.opening.remaining())
        elif step == "start_tls.started":
            info["timeout"] = earlier(info.get("timeout"), self.opening.remaining())
        elif step == "receive_response_headers.complete":
            self.was_answered = True
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
        return earlier(None, self.opening.remaining())

    def fail(self, error: BaseException, *, answered: bool) -> NoReturn:
        """Raise what a failure of httpx's is to the caller."""
        left = self.opening.remaining()
        if left is not None and left < 0.01 and isinstance(error, httpx.TimeoutException):
            raise self.late() from error
        raise self.reason() or coded(error, answered=answered) from error

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
                Helper.start_task(self._cancel_stream)  # it may have to wait until it can write

    def _cancel_stream(self) -> None:
        if self.stream is not None:
            with _serving_for(self):
                self.stream.cancel()

    def end_stream(self) -> None:
        """Have the server told, over HTTP/2, that nobody waits for the answer any more."""
        if self.stream is not None:
            with _serving_for(self):
                self.stream.end()

    def finish(self) -> None:
        with _owners:
            self._finished = True
            if self._line is not None and self._line.owner is self and not self._line.stopped:
                self._line.owner = None
        super().finish()


_unread: set[Iterator[bytes]] = set()
"""The bodies of answers, until these are closed. Kept here, lest the garbage collector itself close one together with
the stream that will: httpcore's generators take a lock of its pool then, which the same thread may hold."""


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
        self.headers: HeaderView = Headers(response.headers, decoded=read)
        _unread.add(self._chunks)

    def read_chunk(self) -> bytes:
        try:
            chunk = self._wait() if self._waits else self._next()
        except FAILURES as error:
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
        return self._call.wait_for(self._next_or_close, lambda _: _close(self._response, self._call))

    def _next_or_close(self) -> bytes:
        try:
            return self._next()
        except BaseException:
            _close(self._response, self._call)
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
            _unread.discard(self._chunks)
            return
        if getattr(_serving, "call", None) is None:
            self._end()
        else:
            # The garbage collector closes it while the thread is in the middle of another call, which may hold locks of
            # httpcore's that closing needs.
            with contextlib.suppress(ConnectError):  # without a thread it is lost to its pool
                Helper.start_task(self._end)

    def _end(self) -> None:
        if not self._response.is_closed:
            self._call.end_stream()
        _close(self._response, self._call)
        _unread.discard(self._chunks)
