"""Blocking calls: whoever waits for a call lets libcurl work on it meanwhile.

While it lasts, a call has a connection to itself, and with it all that drives this: so calls of different threads share
nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import logging
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import pycurl
from multidict import CIMultiDict

from connectrpc._core.chain import close_messages
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import Ending
from connectrpc.transports._failures import reraise
from connectrpc.transports._reading import ChunkedResponse
from connectrpc.transports._waiting import Helper
from connectrpc.transports.pycurl._libcurl import (
    AHEAD_BYTES,
    Attempts,
    Handles,
    Outgoing,
    broken,
    coded,
    fields,
    inherit,
    set_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from connectrpc._core.http import HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["PycurlTransport"]

_logger = logging.getLogger("connectrpc.client")

_forks = 0
"""How many forks lie between this process and the one that imported the module."""


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class PycurlTransport:
    """Sends requests through libcurl, for many threads at once.

    A client takes it as ``http_client``, and several may share it. Whoever made it closes it, by ``close`` or as a
    context manager.

    A call has a connection to itself while it lasts, over HTTP/2 as well; then the connection waits for the next one. A
    request in parts is read in a thread of its own, with the caller's context variables, and sent while the answer may
    already be read. When the call is over it is asked for no more: a generator ends then, in that thread, and one that
    blocks as soon as it gives something.

    Nothing is done behind a call's back: there are no redirects, no retries, no decoding, and neither cookies nor
    proxies unless ``configure`` asks for them.

    Args:
        http_version: None leaves it to TLS to choose between HTTP/2 and 1.1, and is HTTP/1.1 without TLS. "2" is HTTP/2
            by prior knowledge.
        configure: is given each ``pycurl.Curl`` before its first use, to set what is to hold for all calls: ``CAINFO``,
            ``SSLCERT`` and ``SSLKEY``, ``PROXY``, ``RESOLVE``, ``TCP_KEEPALIVE`` and so on. Without ``CAINFO`` the
            certificates count that Python trusts. What makes libcurl send a request twice does not work: redirects, and
            ways of authentication that begin with a refusal.
        connect_timeout: how long making a connection may take, in seconds, with TLS. None for libcurl's five minutes.
        idle_connections: how many connections to each server are kept for calls to come.

    Raises:
        ValueError: there is no such ``http_version``, or pycurl's libcurl was built without HTTP/2.
    """

    def __init__(
        self,
        *,
        http_version: Literal["1.1", "2"] | None = None,
        configure: Callable[[pycurl.Curl], object] | None = None,
        connect_timeout: float | None = None,
        idle_connections: int = 32,
    ) -> None:
        self._handles = Handles(http_version, configure, connect_timeout)
        self.has_trailers = self._handles.has_trailers
        self._idle_max = idle_connections
        self._idle: dict[str, _Idle] = {}  # by the server
        self._idle_forks = _forks

    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,  # noqa: ARG002  any answer may be read in chunks
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> _Exchange:
        if self._idle_forks != _forks:
            self._idle, self._idle_forks = {}, _forks
        server = request.url[: request.url.find("/", len("https://"))]
        idle = self._idle.get(server) or self._idle.setdefault(server, _Idle(self._idle_max))
        exchange = _Exchange(idle, body, deadline, opening, cancel)
        try:
            exchange.check()
            exchange.open(idle.take() or _Session(self._handles.new()), request)
        except BaseException:
            exchange.close()
            raise
        exchange.opening = deadline
        return exchange

    def close(self) -> None:
        """Close what the transport has opened. Connections of calls that are under way are closed when these are over.

        It may be used again.
        """
        idle, self._idle = self._idle, {}
        for sessions in idle.values():
            sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_READ, _WRITE = 1, 4  # of ``poll()``, for which Windows has no names
_EVENTS = {pycurl.POLL_IN: _READ, pycurl.POLL_OUT: _WRITE, pycurl.POLL_INOUT: _READ | _WRITE}


class _Select:
    """What of ``select.poll()`` is used, where there is none."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        self._wanted[fd] = events

    def unregister(self, fd: int) -> None:
        del self._wanted[fd]

    def poll(self, milliseconds: float | None) -> list[tuple[int, int]]:
        read, write = ([fd for fd, events in self._wanted.items() if events & kind] for kind in (_READ, _WRITE))
        readable, writable, failed = select.select(
            read, write, write, None if milliseconds is None else milliseconds / 1000
        )
        found = dict.fromkeys(readable, _READ)
        for fd in (*writable, *failed):
            found[fd] = found.get(fd, 0) | _WRITE
        return list(found.items())


class _Watch:
    """What libcurl waits for.

    Attributes:
        poll: for its sockets.
        expires_at: when it wants to be called though nothing has happened, on the monotonic clock, or None.
    """

    __slots__ = ("expires_at", "poll")

    def __init__(self) -> None:
        self.poll: Any = select.poll() if hasattr(select, "poll") else _Select()
        self.expires_at: float | None = None

    def socket(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """libcurl's ``SOCKETFUNCTION``."""
        if what != pycurl.POLL_REMOVE:
            self.poll.register(fd, _EVENTS[what])
        else:
            with contextlib.suppress(KeyError):
                self.poll.unregister(fd)

    def timer(self, milliseconds: int) -> None:
        """libcurl's ``TIMERFUNCTION``."""
        self.expires_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


class _Idle:
    """The sessions with one server that wait for calls to come. From any thread."""

    __slots__ = ("_most", "_sessions")

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: list[_Session] = []

    def take(self) -> _Session | None:
        """The one that has waited for the shortest time, or None."""
        try:
            return self._sessions.pop()
        except IndexError:
            return None

    def put(self, session: _Session) -> None:
        if len(self._sessions) < self._most:
            self._sessions.append(session)
        else:
            session.close()

    def close(self) -> None:
        self._most = 0
        while (session := self.take()) is not None:
            session.close()


class _Session:
    """A handle of libcurl's and its connection, for one call after another.

    One thread at a time uses it, but for ``wake``.

    Args:
        curl: the handle.

    Attributes:
        attempts: how often the request was sent.
        paused: the directions in which libcurl does nothing, as its ``PAUSE_`` numbers.
        running: whether libcurl is at the request.
        inherited: whether it belongs to the process that this one was forked from.
    """

    __slots__ = (
        "_act",
        "_attached",
        "_busy",
        "_forks",
        "_multi",
        "_poll",
        "_waker",
        "_waker_fd",
        "_waking",
        "_watch",
        "attempts",
        "curl",
        "paused",
        "running",
    )

    def __init__(self, curl: Any) -> None:
        self.curl = curl
        self._forks = _forks
        self.paused = 0
        self.running = False
        self._attached = False
        self._busy = False
        self.attempts = Attempts()
        curl.setopt(pycurl.PREREQFUNCTION, self.attempts.allow)
        self._watch = watch = _Watch()
        self._waker, self._waking = socket.socketpair()
        self._waker.setblocking(False)
        self._waking.setblocking(False)
        self._waker_fd = self._waker.fileno()
        watch.poll.register(self._waker_fd, _READ)
        self._poll = watch.poll.poll
        self._multi: Any = pycurl.CurlMulti()
        self._act = self._multi.socket_action
        inherit(self._multi)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, watch.socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, watch.timer)

    @property
    def inherited(self) -> bool:
        return self._forks != _forks

    def begin(self) -> None:
        """Have libcurl take up the request."""
        self.attempts.begun = False
        self.paused = 0
        self.running = self._attached = True
        self._multi.add_handle(self.curl)

    def step(self, timeout: float | None) -> None:
        """Have libcurl do what there is to do, or wait for that, until ``wake`` or for so many seconds."""
        watch = self._watch
        expires_at = watch.expires_at
        self._busy = True
        if expires_at is not None:
            left = expires_at - time.monotonic()
            if left <= 0:
                watch.expires_at = None
                self.running = self._act(pycurl.SOCKET_TIMEOUT, 0)[1] > 0
                self._busy = False
                return
            timeout = left if timeout is None else min(left, timeout)
        for fd, events in self._poll(None if timeout is None else timeout * 1000):
            if fd == self._waker_fd:
                with contextlib.suppress(BlockingIOError):
                    self._waker.recv(4096)
                continue
            ready = 0
            if events & ~_WRITE:  # and what is wrong with it shows when it is read
                ready = pycurl.CSELECT_IN
            if events & _WRITE:
                ready |= pycurl.CSELECT_OUT
            self.running = self._act(fd, ready)[1] > 0
        self._busy = False

    def wake(self) -> None:
        """End a ``step`` that waits, or else the next one. From any thread."""
        # When there is no room, it will be woken anyway. Or it has just been closed.
        with contextlib.suppress(OSError):
            self._waking.send(b"\0")

    def go_on(self, direction: int) -> None:
        """Have libcurl take up what was paused."""
        if self.paused & direction:
            self.paused &= ~direction
            self.curl.pause(self.paused)

    def hold_back(self) -> None:
        """Have libcurl receive no more for now."""
        if not self.paused & pycurl.PAUSE_RECV:
            self.paused |= pycurl.PAUSE_RECV
            self.curl.pause(self.paused)

    def outcome(self) -> pycurl.error | None:
        """How the request ended, when libcurl is done with it."""
        _, _, failed = self._multi.info_read()
        self.end()
        return pycurl.error(*failed[0][1:]) if failed else None

    def end(self) -> None:
        """Have libcurl leave the request. Over HTTP/2 its stream is reset, else its connection is closed."""
        if self._attached:
            self.running = self._attached = False
            self._multi.remove_handle(self.curl)

    def hand_back(self, idle: _Idle) -> None:
        """The call is over. Another may use the session from now on."""
        if self.inherited:
            return
        if self._attached and not self.attempts.begun:
            # libcurl may be looking up the server's name, and would wait for that.
            with contextlib.suppress(ConnectError):
                Helper.start_task(self._abort)
                return
        self.end()
        if self._busy:  # it was left in the middle of something
            self.close()
            return
        self.curl.setopt(pycurl.READFUNCTION, _nothing)  # which keeps the request
        idle.put(self)

    def _abort(self) -> None:
        self.end()
        self.close()

    def close(self) -> None:
        if not self.inherited:
            self._multi.close()
            self.curl.close()
        self._waker.close()
        self._waking.close()


def _nothing(_: int) -> bytes:
    return b""


_ROOM_SECONDS = 0.01


class _Exchange(Ending, ChunkedResponse):
    """A request and its answer.

    Whoever has the turn may let libcurl work: the thread that waits for the answer or, while there is none and the
    request has to go on, the one that reads the request's parts. What others want done, they ask for; whoever has the
    turn does it, or they do it themselves where nobody has.
    """

    __slots__ = (
        "_asked",
        "_bare",
        "_claimed",
        "_closed",
        "_done",
        "_error",
        "_idle",
        "_lines",
        "_received",
        "_session",
        "_trailers",
        "_turn",
        "_upload",
        "_whole",
        "headers",
        "status",
    )

    def __init__(
        self,
        idle: _Idle,
        body: bytes | Iterator[bytes] | None,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> None:
        super().__init__(deadline, opening, cancel)
        self._idle = idle
        self._whole = body if isinstance(body, bytes) else b""
        self._upload = None if body is None or isinstance(body, bytes) else _Upload(body, self)
        self._turn = threading.Lock()
        self._asked = False
        self._claimed = False
        self._closed = False
        self._done = False
        self._error: BaseException | None = None
        self._session: _Session | None = None
        self._bare = False  # whether no white space has been put around values
        self._lines: list[bytes] = []  # of the head that is coming, and then of the trailers
        self._received: list[bytes] = []
        self._trailers: CIMultiDict[str] | None = None
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.heed_token()

    def open(self, session: _Session, request: HTTPRequest) -> None:
        """Send the request, and wait for the head of the answer."""
        self._session = session
        curl, upload = session.curl, self._upload
        set_request(curl, request, len(self._whole) if upload is None else -1)
        # But for that of a request in parts libcurl calls no function of Python's own for these: one in which an
        # exception is raised for a signal would end the call, and nobody would learn of the signal.
        curl.setopt(pycurl.READFUNCTION, io.BytesIO(self._whole).read if upload is None else upload.read)
        curl.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        curl.setopt(pycurl.WRITEFUNCTION, self._received.append)
        self._take_turn()
        try:
            session.begin()
            if upload is not None:
                upload.begin()
            while not self.status:
                self._advance(session)
        finally:
            self._give_turn()

    # What is for whoever has the turn.

    def _advance(self, session: _Session) -> None:
        """Let libcurl do its next step.

        Raises:
            BaseException: the call has to end, or has failed.
        """
        self.check()
        if self._error is not None:
            reraise(self._error)
        if self._asked:
            self._attend()
        else:
            session.step(self.opening.remaining())
            self._note(session)

    def _note(self, session: _Session) -> None:
        """See what libcurl has done."""
        if not self.status and self._lines:
            self._find_head()
        if session.running or self.is_over:
            return
        failure = session.outcome()
        if failure is not None:
            self._error = coded(failure, session.curl, answered=self.status > 0)
            self._error.__cause__ = failure
        elif not self.status:  # libcurl sees nothing wrong in that
            self._error = broken("it ended in the head of the answer")
        else:
            self._done = True
            self._trailers = fields(self._lines, bare=self._bare)
        if self._upload is not None:
            self._upload.stop()

    def _find_head(self) -> None:
        lines = self._lines
        while not self.status:
            for end, line in enumerate(lines):  # noqa: B007
                if line in _BLANK:
                    break
            else:
                return
            version, status, *_ = lines[0].split(None, 2)
            if int(status) >= 200:  # others are interim
                self.status = int(status)
                self._bare = version.startswith(b"HTTP/2")
                self.headers = fields(lines[1:end], bare=self._bare)
            del lines[: end + 1]

    def _attend(self) -> None:
        """Do what others have asked for."""
        self._asked = False
        session = self._session
        if session is None or session.inherited:
            return
        if self.is_over:
            session.end()
            if self._upload is not None:
                self._upload.stop()
            if self._closed:
                self._session = None
                session.hand_back(self._idle)
        else:
            session.go_on(pycurl.PAUSE_SEND)
            session.step(0)
            self._note(session)

    def make_room(self, upload: _Upload) -> None:
        """Wait until libcurl has taken enough of the request, or the call is over."""
        while upload.full and not self.is_over:
            session = self._session
            if self._claimed or session is None or not self._turn.acquire(blocking=False):
                upload.wait_for_room(_ROOM_SECONDS)
                continue
            try:
                while upload.full and not self.is_over and not self._claimed:
                    if self._asked:
                        self._attend()
                        continue
                    if sum(map(len, self._received)) >= AHEAD_BYTES:
                        session.hold_back()
                    session.step(None)
                    self._note(session)
            finally:
                self._give_turn()

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            self._claimed = True
            session = self._session
            if session is not None:
                session.wake()
            self._turn.acquire()
            self._claimed = False

    def _give_turn(self) -> None:
        self._turn.release()
        if self._asked:
            self._settle()

    # What is for everybody.

    @property
    def is_over(self) -> bool:
        return self._done or self._closed or self._error is not None or self._reason is not None

    def ask(self) -> None:
        """Have it seen to that the call is over, or that the request goes on."""
        if self._asked:
            return  # whoever has asked sees to it
        self._asked = True
        self._settle()
        if self._asked:
            session = self._session
            if session is not None:
                session.wake()

    def _settle(self) -> None:
        while self._asked and self._turn.acquire(blocking=False):
            try:
                self._attend()
            finally:
                self._turn.release()

    def fail(self, error: BaseException) -> None:
        """End the call, and have whoever waits in it raise ``error``."""
        if not self.is_over:
            self._error = error
            self.ask()

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        if self._reason is None:
            self._reason = reason
        self.ask()

    # The answer.

    @property
    def trailers(self) -> CIMultiDict[str] | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        return self._trailers or None

    def read_chunk(self) -> bytes:
        session, received = self._session, self._received
        assert session is not None
        if session.inherited:  # the turn may be one's that is not here
            raise ConnectError(ConnectErrorCode.UNAVAILABLE, "the call is of the process that this one was forked from")
        self._take_turn()
        try:
            while True:
                if received:
                    chunk = received[0] if len(received) == 1 else b"".join(received)
                    received.clear()
                    if self._upload is not None and not self.is_over:
                        session.go_on(pycurl.PAUSE_RECV)
                    if chunk:
                        return chunk
                if self._done:
                    return b""
                self._advance(session)
        finally:
            self._give_turn()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._received.clear()
            self.finish()
            self.ask()


_BLANK = (b"\r\n", b"\n")


class _Upload(Outgoing):
    """A request body in parts, read in a thread of its own. A generator ends with it, in the same thread."""

    __slots__ = ("_context", "_exchange", "_parts", "_room")

    def __init__(self, parts: Iterator[bytes], exchange: _Exchange) -> None:
        super().__init__()
        self._parts: Iterator[bytes] | None = parts
        self._exchange = exchange
        self._context = contextvars.copy_context()
        self._room = threading.Event()

    def begin(self) -> None:
        """Begin to read.

        Raises:
            ConnectError: ``resource_exhausted``: there is no thread for it.
        """
        parts, self._parts = self._parts, None
        assert parts is not None
        Helper.start_task(functools.partial(self._fill, parts))

    def _fill(self, parts: Iterator[bytes]) -> None:
        exchange = self._exchange
        try:
            while not exchange.is_over:
                part = self._context.run(next, parts, None)
                if part is None:
                    self.finished = True
                    exchange.ask()
                    break
                if part:  # else it would be the end to libcurl
                    self.put(part)
                    exchange.ask()
                    if self.full:
                        exchange.make_room(self)
        except BaseException as error:
            exchange.fail(error)
        try:
            close_messages(parts)
        except Exception:  # the call is over, and has its outcome
            _logger.exception("a request iterator failed while it was closed")

    def read(self, size: int) -> bytes | int:
        """What libcurl is to send next, at most ``size`` bytes."""
        taken = self.take(size)
        if taken is None:
            session = self._exchange._session
            assert session is not None
            session.paused |= pycurl.PAUSE_SEND
            return int(pycurl.READFUNC_PAUSE)
        if not self.full:
            self._room.set()
        return taken

    def wait_for_room(self, seconds: float) -> None:
        self._room.wait(seconds)
        self._room.clear()

    def stop(self) -> None:
        """The call is over: read no more."""
        self._parts = None
        self.clear()
        self._room.set()
