"""Asynchronous calls: the event loop watches libcurl's sockets, and libcurl works where the loop calls it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pycurl
from multidict import CIMultiDict

from connectrpc._core.chain import aclose_messages
from connectrpc._core.pieces import keep
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._failures import reraise
from connectrpc.transports.pycurl._libcurl import (
    AHEAD_BYTES,
    Attempts,
    Handles,
    Outgoing,
    failure,
    fields,
    head_of,
    inherit,
    set_request,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType

    from typing_extensions import Self

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.pieces import Pieces

__all__ = ["AsyncPycurlTransport"]

_SPARE_HANDLES = 64
"""How many handles are kept for calls to come: making one costs half as much as a call."""


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
        self._handles = Handles(http_version, configure, connect_timeout)
        self.has_trailers = self._handles.has_trailers
        self._owns_multi = multi is None
        self._multi: Any = multi
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._spare: list[Any] = []
        if multi is not None:
            inherit(multi)

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _Response:
        multi = self._find_multi()
        exchange = _Exchange(multi, self._spare.pop() if self._spare else self._handles.new(), self._spare, body)
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
        inherit(self._multi)
        self._loop = loop

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
        self._paused = 0
        self._bare = False  # whether no white space has been put around values
        self._lines: list[bytes] = []  # of the head that is coming, and then of the trailers
        self._received: Pieces = []
        self._received_bytes = 0
        self._wanted: float = 1  # how many bytes are worth a wake-up
        self._most: float = AHEAD_BYTES  # how many may be here before more of them have to wait
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.status: int | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.done = False
        self.upload = _Upload(body, self)

    def begin(self, request: HTTPRequest) -> None:
        curl = self._curl
        set_request(curl, request, self.upload.length)
        curl.setopt(pycurl.PREREQFUNCTION, Attempts().allow)
        curl.setopt(pycurl.READFUNCTION, self.upload.read)
        curl.setopt(pycurl.HEADERFUNCTION, self._head)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)
        self._ended = self._multi.add_handle(curl)
        self._ended.add_done_callback(self._end)
        self.upload.begin()

    # What libcurl calls. It must not be called from there, but by ``pause``.

    def _head(self, line: bytes) -> None:
        if self.status is not None or line.strip():
            self._lines.append(line)
            return
        lines, self._lines = self._lines, []
        head = head_of(lines)
        if head is not None:
            self.status, self._bare, self.headers = head
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
            else:
                self._error = failure(error, curl, answered=self.status is not None)
                self.done = self._error is None
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
        return (fields(self._lines, bare=self._bare) or None) if self.done else None

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
        while self._received_bytes < least and not self.done and self._error is None:
            self._wanted, self._most = least, most
            if self._paused:
                self._go_on(pycurl.PAUSE_RECV)  # which may give what was held back at once
                if self._received_bytes >= least:
                    break
            await self._wait()
        if self._error is not None and (least > 1 or not self._received):
            self._raise()
        received = b"".join(self._received)
        self._received.clear()
        self._received_bytes = 0
        if self._paused:
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


class _Upload(Outgoing):
    """A request's body.

    One in parts is read by a task of its own, with the caller's context variables. A generator ends with that task.

    Attributes:
        length: how many bytes it has; -1 where that is not known.
        finished: whether the caller's iterator has come to its end.
    """

    __slots__ = ("_exchange", "_parts", "_room", "_task", "length")

    def __init__(self, body: bytes | AsyncIterator[bytes] | None, exchange: _Exchange) -> None:
        super().__init__()
        self._exchange = exchange
        self._parts: AsyncIterator[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        if body is None or isinstance(body, bytes):
            self.finished = True
            self.length = 0
            if body:
                self.length = len(body)
                self.put(body)
        else:
            self.length = -1
            self._parts = body

    def begin(self) -> None:
        if self._parts is not None:
            self._task = self._exchange.loop.create_task(self._fill(self._parts))

    def stop(self) -> None:
        self.clear()
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
                    self.put(part)
                    self._exchange.go_on_sending()
                    if self.full:
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
        taken = self.take(size)
        if taken is None:
            return self._exchange.pause_sending()
        if self._room is not None and not self.full and not self._room.done():
            self._room.set_result(None)
        return taken


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

    def read_chunk(self) -> Coroutine[Any, Any, bytes]:
        return self._exchange.read(1, AHEAD_BYTES)

    def close(self) -> None:
        self._exchange.close()
