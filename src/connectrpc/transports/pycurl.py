"""libcurl as an asynchronous transport, by pycurl: HTTP/1.1 and 2, with trailers and full duplex.

The event loop watches libcurl's sockets, and libcurl works where the loop calls it. So a call changes no threads, and a
cancellation takes effect at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import ssl
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pycurl
from multidict import CIMultiDict

from connectrpc._core.chain import aclose_messages
from connectrpc._core.pieces import keep
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._failures import (
    closed_unanswered,
    no_connection,
    reraise,
    stream_reset,
    tls_failed,
    unresolved,
    untrusted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from typing_extensions import Self

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.pieces import Pieces

__all__ = ["AsyncPycurlTransport"]

_AHEAD_BYTES = 64 * 1024
"""How far the caller's iterator may be ahead of what is sent, and an answer ahead of who reads it."""

_SPARE_HANDLES = 64
"""How many handles are kept for calls to come: making one costs half as much as a call."""

_SUPPRESS_CONNECT_HEADERS = 265  # pycurl has no name for it
_NOT_SENT = ["Accept:", "Expect:"]  # what libcurl would add of its own

# No HTTP/3: libcurl's gives up all calls of a connection when one of them ends in the middle of its request.
_VERSIONS = {
    None: pycurl.CURL_HTTP_VERSION_2TLS,
    "1.1": pycurl.CURL_HTTP_VERSION_1_1,
    "2": pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE,
}


class AsyncPycurlTransport:
    """Sends requests through libcurl, for the tasks of one event loop at a time.

    A client takes it as ``http_client``, and several may share it. Whoever made it closes it, by ``aclose`` or as an
    asynchronous context manager.

    Nothing is done behind a call's back: there are no redirects, no retries, no decoding, and neither cookies nor
    proxies unless ``configure`` asks for them.

    Args:
        multi: the user's ``AsyncCurlMulti``, with its limits of connections and streams, for the one event loop that it
            belongs to. None makes one for each ``asyncio.run()``, and for each process after a ``fork()``.
        http_version: None leaves it to TLS to choose between HTTP/2 and 1.1, and is HTTP/1.1 without TLS. "2" is HTTP/2
            by prior knowledge.
        configure: is given each ``pycurl.Curl`` before its first use, to set what is to hold for all calls: ``CAINFO``,
            ``SSLCERT`` and ``SSLKEY``, ``PROXY``, ``RESOLVE``, ``TCP_KEEPALIVE`` and so on. Without ``CAINFO`` the
            certificates count that Python trusts. What makes libcurl send a request twice does not work: redirects, and
            ways of authentication that begin with a refusal.
        connect_timeout: how long making a connection may take, in seconds, with TLS. None for libcurl's five minutes.

    Raises:
        ValueError: there is no such ``http_version``, or pycurl's libcurl was built without HTTP/2.
    """

    def __init__(
        self,
        multi: pycurl.AsyncCurlMulti | None = None,
        *,
        http_version: Literal["1.1", "2"] | None = None,
        configure: Callable[[pycurl.Curl], object] | None = None,
        connect_timeout: float | None = None,
    ) -> None:
        if http_version not in _VERSIONS:
            raise ValueError(f"http_version {http_version!r} is neither '1.1' nor '2'")
        if http_version != "1.1" and not pycurl.version_info()[4] & pycurl.VERSION_HTTP2:
            raise ValueError(f"this libcurl was built without HTTP/2: {pycurl.version}")
        self.has_trailers = http_version != "1.1"
        self._version = _VERSIONS[http_version]
        self._trusted = _trusted_file()
        self._configure = configure
        self._connect_timeout_ms = 0 if connect_timeout is None else max(1, round(connect_timeout * 1000))
        self._owns_multi = multi is None
        self._multi: Any = multi
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._spare: list[Any] = []
        if multi is not None:
            _multis.add(multi)

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _Response:
        multi = self._find_multi()
        exchange = _Exchange(multi, self._spare.pop() if self._spare else self._new_handle(), self._spare, body)
        try:
            exchange.begin(request)
            await exchange.wait_for_head()
        except BaseException:
            exchange.close()
            raise
        return _Response(exchange)

    def _find_multi(self) -> Any:
        if self._owns_multi:
            loop = asyncio.get_running_loop()
            if self._loop is not loop or self._process != os.getpid() or self._multi is None:
                self._bind(loop)
        return self._multi

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take up work in ``loop``, with connections of its own."""
        if self._process != os.getpid():
            self._process = os.getpid()
        elif self._multi is not None and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this AsyncPycurlTransport belongs to another event loop: make one for each")
        self._multi = pycurl.AsyncCurlMulti()
        _multis.add(self._multi)
        self._loop = loop

    def _new_handle(self) -> Any:
        curl: Any = pycurl.Curl()
        curl.setopt(pycurl.PROXY, "")
        if self._trusted is not None:  # pycurl's own is where one distribution of Linux has it
            curl.setopt(pycurl.CAINFO, self._trusted)
        if self._configure is not None:
            self._configure(curl)
        curl.setopt(pycurl.HTTP_VERSION, self._version)
        curl.setopt(pycurl.PIPEWAIT, 1)  # for a connection that is being made and may have room for more calls
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, self._connect_timeout_ms)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.PATH_AS_IS, 1)
        curl.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # what a proxy says is not the answer
        return curl

    async def aclose(self) -> None:
        """Close what the transport has made. Calls that are under way end as ``canceled``."""
        if self._owns_multi and self._multi is not None and self._loop is not None:
            if self._loop is asyncio.get_running_loop():
                multi, self._multi = self._multi, None
                await multi.aclose()
            elif self._loop.is_closed():
                self._multi = None
        self._spare.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _trusted_file() -> str | None:
    """The file with the certificates that Python trusts."""
    trusted = ssl.get_default_verify_paths()
    if trusted.cafile is None and trusted.capath is not None:
        # Some distributions have all of them in one file beside the others. As ``CAPATH`` they would be trusted beside
        # what a user names as ``CAINFO``.
        together = os.path.join(trusted.capath, "ca-certificates.crt")
        return together if os.path.exists(together) else None
    return trusted.cafile


_multis: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of this process, and of the one that it was forked from."""


def _keep_inherited() -> None:
    """Keep for good, in a child process, what it has inherited.

    The connections are the parent's as well. Whenever libcurl closes one it says so to the server, also at the end of
    the process, when everything that Python itself refers to is collected.
    """
    for multi in _multis:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(multi))
    _multis.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)

_CALLBACKS = (pycurl.PREREQFUNCTION, pycurl.READFUNCTION, pycurl.HEADERFUNCTION, pycurl.WRITEFUNCTION)


def _no_callback(*_: object) -> None:
    pass


class _Exchange:
    """A request and its answer.

    Args:
        multi: what drives it.
        curl: its handle.
        spare: where the handle goes afterwards.
        body: the request's.

    Attributes:
        status: the HTTP status, once the head of the answer is there.
        headers: those of the head.
        done: whether all of the answer has come.
        upload: the request's body.
    """

    __slots__ = (
        "_attempted",
        "_bare",
        "_curl",
        "_ended",
        "_error",
        "_lines",
        "_most",
        "_multi",
        "_paused",
        "_process",
        "_received",
        "_received_bytes",
        "_spare",
        "_waiter",
        "_wanted",
        "done",
        "headers",
        "loop",
        "status",
        "upload",
    )

    def __init__(self, multi: Any, curl: Any, spare: list[Any], body: bytes | AsyncIterator[bytes] | None) -> None:
        self.loop = asyncio.get_running_loop()
        self._multi = multi
        self._curl = curl
        self._spare = spare
        self._ended: asyncio.Future[Any] | None = None
        self._process = os.getpid()
        self._attempted = False
        self._paused = 0
        self._bare = False  # whether no white space has been put around values
        self._lines: list[bytes] = []  # of the head that is coming, and then of the trailers
        self._received: Pieces = []
        self._received_bytes = 0
        self._wanted: float = 1  # how many bytes are worth a wake-up
        self._most: float = _AHEAD_BYTES  # how many may be here before more of them have to wait
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.status: int | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.done = False
        self.upload = _Upload(body, self)

    def begin(self, request: HTTPRequest) -> None:
        curl = self._curl
        curl.setopt(pycurl.URL, request.url.encode())
        # By a semicolon in place of the colon libcurl knows a header that is to be sent without a value.
        headers = [f"{name}: {value}" if value else f"{name};" for name, value in request.headers]
        curl.setopt(pycurl.HTTPHEADER, headers + _NOT_SENT)
        if request.method == "GET":
            curl.setopt(pycurl.HTTPGET, 1)
        else:
            curl.setopt(pycurl.POST, 1)
            curl.setopt(pycurl.POSTFIELDSIZE_LARGE, self.upload.length)
        curl.setopt(pycurl.PREREQFUNCTION, self._attempt)
        curl.setopt(pycurl.READFUNCTION, self.upload.read)
        curl.setopt(pycurl.HEADERFUNCTION, self._head)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)
        self._ended = self._multi.add_handle(curl)
        self._ended.add_done_callback(self._end)
        self.upload.begin()

    # What libcurl calls. It must not be called from there, but by ``pause``.

    def _attempt(self, *_addresses: object) -> int:
        # libcurl sends a request once more when a connection that it had kept turns out to be closed, and cannot know
        # whether the server has seen it.
        again, self._attempted = self._attempted, True
        return int(pycurl.PREREQFUNC_ABORT if again else pycurl.PREREQFUNC_OK)

    def _head(self, line: bytes) -> None:
        if self.status is not None or line.strip():
            self._lines.append(line)
            return
        lines, self._lines = self._lines, []
        status = int(lines[0].split(None, 2)[1])
        if status >= 200:  # others are interim
            self.status = status
            self._bare = lines[0].startswith(b"HTTP/2")
            self.headers = _fields(lines[1:], bare=self._bare)
            # A little later: most of what there is comes with the head, and can be read in the same go.
            self.loop.call_soon(self._wake)

    def _write(self, chunk: bytes) -> int | None:
        if self._received_bytes >= self._most:
            self._paused |= pycurl.PAUSE_RECV
            return int(pycurl.WRITEFUNC_PAUSE)
        keep(self._received, chunk)
        self._received_bytes += len(chunk)
        if self._received_bytes >= self._wanted:
            self._wake()
        return None

    def pause_sending(self) -> int:
        """What libcurl is told where there is nothing to send yet."""
        self._paused |= pycurl.PAUSE_SEND
        return int(pycurl.READFUNC_PAUSE)

    # What everybody else calls.

    def go_on_sending(self) -> None:
        self._go_on(pycurl.PAUSE_SEND)

    def _go_on(self, direction: int) -> None:
        if self._paused & direction and self._under_way:
            self._paused &= ~direction
            with contextlib.suppress(pycurl.error):  # libcurl is done with it, and ``_end`` will be told in a moment
                self._curl.pause(self._paused)

    @property
    def _under_way(self) -> bool:
        """Whether libcurl is at it, in this process and in a loop that is still there."""
        return (
            self._ended is not None
            and not self._ended.done()
            and not self._multi.closed  # as the collector does with one that was forgotten
            and not self.loop.is_closed()
            and self._process == os.getpid()
        )

    def _end(self, ended: asyncio.Future[Any]) -> None:
        """libcurl has done with it, or ``fail`` has taken it away, or somebody has closed the ``CurlMulti``."""
        curl, self._curl = self._curl, None
        error = None if ended.cancelled() else ended.exception()
        if not self.is_over:
            if ended.cancelled():
                self._error = ConnectError(ConnectErrorCode.CANCELED, "the client was closed")
            elif error is not None:
                self._error = _coded(error, curl, answered=self.status is not None)
                self._error.__cause__ = error
            elif self.status is None:  # libcurl sees nothing wrong in that
                self._error = _broken("it ended in the head of the answer")
            else:
                self.done = True
            self.upload.stop()
            self._wake()
        # Not before: until now the CurlMulti may take it for the one that it had.
        if len(self._spare) < _SPARE_HANDLES:
            for option in _CALLBACKS:  # which keep what they belong to
                curl.setopt(option, _no_callback)
            self._spare.append(curl)
        else:
            curl.close()

    def fail(self, error: BaseException) -> None:
        """End the exchange, and have whoever waits in it raise ``error``. Over HTTP/2 its stream is reset."""
        if not self.is_over:
            self._error = error
            self.upload.stop()
            if self._under_way:
                self._multi.remove_handle(self._curl)
            self._wake()

    def close(self) -> None:
        """Give the exchange up, if it is not over, and what has come of it."""
        if not self.is_over:
            self.fail(ConnectError(ConnectErrorCode.CANCELED, "the call was closed"))
        self._received.clear()

    @property
    def is_over(self) -> bool:
        return self.done or self._error is not None

    def trailers(self) -> CIMultiDict[str] | None:
        """Those of HTTP itself; None before the end, and where there were none."""
        return (_fields(self._lines, bare=self._bare) or None) if self.done else None

    async def wait_for_head(self) -> None:
        while self.status is None:
            if self.is_over:
                self._raise()
            await self._wait()

    async def read(self, least: float, most: float) -> bytes:
        """What has come: at least ``least`` bytes and not much more than ``most``, or what there is until the end.

        Raises:
            BaseException: what the exchange has failed with, when all that came before has been taken.
        """
        while self._received_bytes < least and not self.is_over:
            self._wanted, self._most = least, most
            self._go_on(pycurl.PAUSE_RECV)
            await self._wait()
        if self._error is not None and (least > 1 or not self._received):
            self._raise()
        received = b"".join(self._received)
        self._received.clear()
        self._received_bytes = 0
        self._go_on(pycurl.PAUSE_RECV)
        return received

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _raise(self) -> NoReturn:
        assert self._error is not None
        reraise(self._error)


def _fields(lines: list[bytes], *, bare: bool) -> CIMultiDict[str]:
    """The headers or trailers in lines of HTTP/1, which libcurl gives for all versions.

    Args:
        lines: what libcurl gives.
        bare: whether they have come over HTTP/2, where white space around a value is part of it, but for a space that
            libcurl puts behind the colon.
    """
    fields: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if colon:
            fields.add(name, value[1:].rstrip("\r\n") if bare else value.strip())
    return fields


class _Upload:
    """A request's body.

    One in parts is read by a task of its own, with the caller's context variables. A generator ends with that task.

    Attributes:
        length: how many bytes it has; -1 where that is not known.
        finished: whether the caller's iterator has come to its end.
    """

    __slots__ = ("_exchange", "_offset", "_parts", "_ready", "_ready_bytes", "_room", "_task", "finished", "length")

    def __init__(self, body: bytes | AsyncIterator[bytes] | None, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._ready: deque[bytes] = deque()
        self._ready_bytes = 0
        self._offset = 0  # how much of the first piece has been taken
        self._parts: AsyncIterator[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        if body is None or isinstance(body, bytes):
            self.finished = True
            self.length = 0
            if body:
                self.length = self._ready_bytes = len(body)
                self._ready.append(body)
        else:
            self.finished = False
            self.length = -1
            self._parts = body

    def begin(self) -> None:
        if self._parts is not None:
            self._task = self._exchange.loop.create_task(self._fill(self._parts))

    def stop(self) -> None:
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()

    async def _fill(self, parts: AsyncIterator[bytes]) -> None:
        try:
            try:
                async for part in parts:
                    if self._exchange.is_over:  # and the iterator has not heeded that
                        break
                    if not part:  # which would be the end to libcurl
                        continue
                    self._ready.append(part)
                    self._ready_bytes += len(part)
                    self._exchange.go_on_sending()
                    if self._ready_bytes >= _AHEAD_BYTES:
                        self._room = self._exchange.loop.create_future()
                        await self._room
            finally:
                await aclose_messages(parts)
        except BaseException as error:
            # After ``stop`` it changes nothing any more. But the iterator may have awaited what others have cancelled.
            self._exchange.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.finished = True
            self._exchange.go_on_sending()

    def read(self, size: int) -> bytes | int:
        """What libcurl is to send next, at most ``size`` bytes."""
        ready = self._ready
        if not ready:
            return b"" if self.finished else self._exchange.pause_sending()
        pieces: list[bytes] = []
        left = size
        while ready and left:
            piece = ready[0]
            end = self._offset + left
            taken = piece[self._offset : end]
            if end >= len(piece):
                ready.popleft()
                self._offset = 0
            else:
                self._offset = end
            pieces.append(taken)
            left -= len(taken)
        self._ready_bytes -= size - left
        if self._room is not None and self._ready_bytes < _AHEAD_BYTES and not self._room.done():
            self._room.set_result(None)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Response:
    """An answer of libcurl's."""

    __slots__ = ("_exchange", "headers", "status")

    def __init__(self, exchange: _Exchange) -> None:
        assert exchange.status is not None
        self._exchange = exchange
        self.status = exchange.status
        self.headers: Any = exchange.headers

    def __del__(self) -> None:
        # Of a stream that was left lying about. Whatever libcurl is at just now, it must not be called from here.
        exchange = self._exchange
        if not exchange.is_over and not exchange.loop.is_closed():
            exchange.loop.call_soon_threadsafe(exchange.close)

    @property
    def uploaded(self) -> bool:
        return self._exchange.upload.finished

    @property
    def trailers(self) -> CIMultiDict[str] | None:
        return self._exchange.trailers()

    async def read(self, limit: int | None) -> bytes:
        least = float("inf") if limit is None else limit + 1
        try:
            return await self._exchange.read(least, least)
        finally:
            self.close()

    async def read_chunk(self) -> bytes:
        return await self._exchange.read(1, _AHEAD_BYTES)

    def close(self) -> None:
        self._exchange.close()


# libcurl's numbers, as far as they say more than that a connection failed. pycurl has not names for all of them.
_UNRESOLVED = (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY)
_NOT_CONNECTED = (pycurl.E_COULDNT_CONNECT, pycurl.E_SSL_CONNECT_ERROR, 97)  # the last is a proxy's
_NOT_HTTP = (pycurl.E_UNSUPPORTED_PROTOCOL, 8)
_UNANSWERED = (
    pycurl.E_GOT_NOTHING,
    pycurl.E_SEND_ERROR,
    pycurl.E_RECV_ERROR,
    # What comes of not sending it again.
    pycurl.E_SEND_FAIL_REWIND,
    pycurl.E_ABORTED_BY_CALLBACK,
)
_HTTP2_STREAM = 92

_REASONS = {
    pycurl.E_HTTP2: "it does not keep to HTTP/2",
    pycurl.E_PARTIAL_FILE: "it ended in the middle of the answer",
    pycurl.E_SEND_ERROR: "it takes no more of the request",
    pycurl.E_RECV_ERROR: "it ended in the middle of the answer",
    _HTTP2_STREAM: "it does not keep to HTTP/2",
}


def _coded(error: BaseException, curl: Any, *, answered: bool) -> ConnectError:
    """What a failure of libcurl's is to the caller, before or after the head of the answer has come.

    libcurl's texts are looked at where nothing else tells, but not passed on: they name hosts.
    """
    number, text = error.args if len(error.args) == 2 else (None, "")  # else it is pycurl's own
    if number == pycurl.E_PEER_FAILED_VERIFICATION:
        if "subject name" in text:
            return untrusted("it is for another host")
        problem = re.search(r"SSL certificate (?:problem|OpenSSL verify result): (.+?)(?: \(\d+\))?$", text)
        return untrusted(problem[1] if problem else "it cannot be verified")
    alert = re.search(r"SSL routines::([^,]+)", text)
    if alert is not None and "unexpected eof" not in alert[1]:
        return tls_failed(alert[1])
    if number in _UNRESOLVED:
        return unresolved()
    if number in _NOT_CONNECTED:
        return no_connection(OSError(curl.getinfo(pycurl.OS_ERRNO), ""))
    if number == pycurl.E_OPERATION_TIMEDOUT:
        if text.startswith("Operation"):
            return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own timeout has passed")
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "connecting to the server took too long")
    reset = re.search(r"\(err(?:or)? (\w+)", text)  # in hexadecimal or, in older versions, in decimal
    if number == _HTTP2_STREAM and reset is not None:
        return stream_reset(int(reset[1], 0))
    if number == _HTTP2_STREAM and "closed cleanly, but" in text:
        return stream_reset(0)
    if text.startswith(("CONNECT tunnel failed", "Proxy CONNECT aborted")):
        return no_connection(error)
    if number in _NOT_HTTP:
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "what the server answers is not HTTP")
    if number in _UNANSWERED and not answered:
        return closed_unanswered()
    return _broken(_REASONS.get(number, "libcurl failed" if number is None else f"libcurl's error {number}"))


def _broken(reason: str) -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"the connection to the server failed: {reason}")
