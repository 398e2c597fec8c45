"""Blocking calls: whoever waits for a call lets libcurl work on it meanwhile.

While it lasts, a call has a connection to itself, and with it all that drives this: so calls of different threads share
nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import pycurl
from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import LONGEST_WAIT, Ending
from connectrpc.transports._failures import connection_failed, no_connection, reraise
from connectrpc.transports._reading import ChunkedResponse
from connectrpc.transports._waiting import Helper, Wakeup, end_parts
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
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from connectrpc._core.http import HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["PycurlTransport"]


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
        self._process = os.getpid()

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
        if self._process != os.getpid():
            self._idle, self._process = {}, os.getpid()
        known = self._idle
        server = request.url[: request.url.find("/", len("https://"))]
        idle = known.get(server) or known.setdefault(server, _Idle(self._idle_max))
        if known is not self._idle:  # the transport was closed meanwhile
            idle.close()
        upload = None if body is None or isinstance(body, bytes) else _Upload(body)
        exchange = _Exchange(idle, upload, deadline, opening, cancel)
        try:
            exchange.check()
            session = idle.take() or self._new_session()
            exchange.open(session, request, body if isinstance(body, bytes) else b"")
        except BaseException:
            exchange.close()
            raise
        exchange.opening = deadline
        return exchange

    def _new_session(self) -> _Session:
        curl = self._handles.new()
        try:
            return _Session(curl)
        except OSError as error:
            raise no_connection(error) from error

    def close(self) -> None:
        """Close what the transport has opened. Connections of calls that are under way are closed when these are over.

        It may be used again.
        """
        idle, self._idle = self._idle, {}
        for sessions in list(idle.values()):
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

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        read, write = ([fd for fd, events in self._wanted.items() if events & kind] for kind in (_READ, _WRITE))
        readable, writable, failed = select.select(read, write, write, milliseconds / 1000)
        found = dict.fromkeys(readable, _READ)
        for fd in (*writable, *failed):
            found[fd] = found.get(fd, 0) | _WRITE
        return list(found.items())


class _Watch:
    """The sockets that libcurl waits for.

    Attributes:
        poll: for them.
    """

    __slots__ = ("poll",)

    def __init__(self) -> None:
        self.poll: Any = select.poll() if hasattr(select, "poll") else _Select()

    def socket(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """libcurl's ``SOCKETFUNCTION``."""
        if what != pycurl.POLL_REMOVE:
            self.poll.register(fd, _EVENTS.get(what, 0))
        else:
            with contextlib.suppress(KeyError):
                self.poll.unregister(fd)


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
        if len(self._sessions) >= self._most:
            session.close()
            return
        self._sessions.append(session)
        if not self._most:  # it was closed meanwhile
            self.close()

    def close(self) -> None:
        self._most = 0
        while (session := self.take()) is not None:
            session.close()


class _Session:
    """A handle of libcurl's and its connection, for one call after another.

    One thread at a time uses it, but for ``wake``. What a signal handler raises in a function that libcurl calls leaves
    by ``step``, as pycurl passes it on, but for timers, whose function therefore is none of Python's own.

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
        "_expires_at",
        "_multi",
        "_poll",
        "_process",
        "_timers",
        "_waker",
        "_waker_fd",
        "_waking",
        "attempts",
        "curl",
        "paused",
        "running",
    )

    def __init__(self, curl: Any) -> None:
        self.curl = curl
        self._process = os.getpid()
        self.paused = 0
        self.running = False
        self._attached = False
        self._busy = False
        self.attempts = Attempts()
        curl.setopt(pycurl.PREREQFUNCTION, self.attempts.allow)
        watch = _Watch()
        self._timers: list[int] = []  # milliseconds from now on, of which the last counts; -1 for none
        self._expires_at: float | None = None
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
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._timers.append)

    @property
    def inherited(self) -> bool:
        return self._process != os.getpid()

    def begin(self) -> None:
        """Have libcurl take up the request."""
        self._busy = True
        self.attempts.begun = False
        self.paused = 0
        self._multi.add_handle(self.curl)
        self.running = self._attached = True
        self._busy = False
        _in_use.add(self)

    def step(self, timeout: float | None) -> None:
        """Have libcurl do what there is to do, or wait for that, until ``wake`` or for so many seconds."""
        self._busy = True
        if self._timers:
            milliseconds = self._timers[-1]
            self._timers.clear()
            self._expires_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000
        if self._expires_at is not None:
            left = self._expires_at - time.monotonic()
            if left <= 0:
                self._expires_at = None
                self.running = self._act(pycurl.SOCKET_TIMEOUT, 0)[1] > 0
                self._busy = False
                return
            timeout = left if timeout is None else min(left, timeout)
        timeout = LONGEST_WAIT if timeout is None else min(timeout, LONGEST_WAIT)
        for fd, events in self._poll(timeout * 1000):
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
            self._pause(self.paused & ~direction)

    def hold_back(self) -> None:
        """Have libcurl receive no more for now."""
        if not self.paused & pycurl.PAUSE_RECV:
            self._pause(self.paused | pycurl.PAUSE_RECV)

    def _pause(self, directions: int) -> None:
        self._busy = True
        self.paused = directions
        self.curl.pause(directions)
        self._busy = False

    def outcome(self) -> pycurl.error | None:
        """How the request ended, when libcurl is done with it."""
        _, _, failed = self._multi.info_read()
        self._end()
        return pycurl.error(*failed[0][1:]) if failed else None

    def _end(self) -> None:
        if self._attached:
            busy, self._busy = self._busy, True
            self.running = self._attached = False
            with contextlib.suppress(pycurl.error):
                self._multi.remove_handle(self.curl)
                self._busy = busy

    def leave(self) -> None:
        """Have the server told, if it knows of the request, that the call is over.

        Over HTTP/2 its stream is reset, else its connection is closed.
        """
        if self.attempts.begun:
            self._end()

    def hand_back(self, idle: _Idle) -> None:
        """The call is over. Another may use the session from now on."""
        _in_use.discard(self)
        if self._attached and not self.attempts.begun:
            # libcurl may be looking up the server's name, and would wait for that.
            with contextlib.suppress(ConnectError):
                Helper.start_task(self.close)
                return
        self._end()
        if self._busy:  # it was left in the middle of something
            self.close()
            return
        self.curl.setopt(pycurl.READFUNCTION, _nothing)  # which keeps the request
        idle.put(self)

    def close(self) -> None:
        if not self.inherited:
            self._end()
            self._multi.close()
            self.curl.close()
        self._waker.close()
        self._waking.close()


_in_use: set[_Session] = set()
"""Kept here, lest the garbage collector take a session apart together with the stream that will give it back."""


def _nothing(_: int) -> bytes:
    return b""


_AWAY_SECONDS = 0.01
"""How long nobody has waited for an answer when another thread stands in for whoever does."""


class _Exchange(Ending, ChunkedResponse):
    """A request and its answer.

    Whoever has the turn may let libcurl work: the thread that waits for the answer or, where there is none for a while
    and the request has to go on, one that stands in for it. What others want done, they ask for; whoever has the turn
    does it, or they do it themselves where nobody has.
    """

    __slots__ = (
        "_asked",
        "_away",
        "_bare",
        "_claimed",
        "_closed",
        "_done",
        "_error",
        "_idle",
        "_lines",
        "_received",
        "_session",
        "_stands_in",
        "_trailers",
        "_turn",
        "_upload",
        "_watched",
        "headers",
        "status",
    )

    def __init__(
        self,
        idle: _Idle,
        upload: _Upload | None,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> None:
        super().__init__(deadline, opening, cancel)
        self._idle = idle
        self._upload = upload
        self._turn = threading.Lock()
        self._away = Wakeup()
        self._watched = False  # whether the one who stands in waits for that
        self._stands_in = False
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

    def open(self, session: _Session, request: HTTPRequest, body: bytes) -> None:
        """Send the request, and wait for the head of the answer.

        Args:
            session: what it has to itself from now on.
            request: the request.
            body: its body, where that is not in parts.
        """
        curl, upload = session.curl, self._upload
        try:
            with self._turn:
                self._session = session
                self.check()
                set_request(curl, request, len(body) if upload is None else -1)
                read = io.BytesIO(body).read if upload is None else functools.partial(upload.read, session)
                curl.setopt(pycurl.READFUNCTION, read)
                curl.setopt(pycurl.HEADERFUNCTION, self._lines.append)
                curl.setopt(pycurl.WRITEFUNCTION, self._received.append)
                session.begin()
                if upload is not None:
                    upload.begin(self)
                while not self.status:
                    self._advance(session)
        except pycurl.error as error:
            raise _failed(error) from error
        finally:
            self._left()

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
            self._step(session, self.opening.remaining())

    def _step(self, session: _Session, timeout: float | None) -> None:
        try:
            session.step(timeout)
        except pycurl.error as error:
            self._error = _failed(error)
        else:
            self._note(session)

    def _note(self, session: _Session) -> None:
        """See what libcurl has done."""
        if not self.status and self._lines:
            self._find_head()
        if session.running or self.is_over:
            return
        self._error = failure(session.outcome(), session.curl, answered=self.status > 0)
        if self._error is None:
            self._done = True
            self._trailers = fields(self._lines, bare=self._bare)
        self._end_upload()

    def _end_upload(self) -> None:
        if self._upload is not None:
            self._upload.stop()
            self._away.wake()

    def _find_head(self) -> None:
        lines = self._lines
        while not self.status:
            for end, line in enumerate(lines):  # noqa: B007
                if line in _BLANK:
                    break
            else:
                return
            head = head_of(lines[:end])
            if head is not None:
                self.status, self._bare, self.headers = head
            del lines[: end + 1]

    def _attend(self) -> None:
        """Do what others have asked for."""
        self._asked = False
        session = self._session
        if session is None or session.inherited:
            return
        if self.is_over:
            self._end_upload()
            if not self._closed:
                session.leave()
            else:
                self._received.clear()
                self._session = self._error = None
                session.hand_back(self._idle)
        else:
            self._go_on(session, pycurl.PAUSE_SEND)
            self._step(session, 0)

    def _go_on(self, session: _Session, direction: int) -> None:
        try:
            session.go_on(direction)
        except pycurl.error as error:
            self._error = _failed(error)

    def _stand_in(self) -> None:
        """Let libcurl work whenever nobody has waited for the answer for a while, until the call is over."""
        try:
            while not self.is_over:
                time.sleep(_AWAY_SECONDS)
                if self._turn.acquire(blocking=False):
                    try:
                        self._work()
                    finally:
                        self._turn.release()
                        self._given()
                    continue
                self._watched = True
                if self._turn.locked() and not self.is_over:  # else nobody might wake it
                    self._away.wait()
        except BaseException as error:
            self.fail(_failed(error) if isinstance(error, pycurl.error) else error)

    def _work(self) -> None:
        session = self._session
        while session is not None and not self.is_over and not self._claimed:
            if self._asked:
                self._attend()
                continue
            if sum(map(len, self._received)) >= AHEAD_BYTES:
                session.hold_back()
            self._step(session, self.opening.remaining())
            if self.reason() is not None:  # of the deadline the server is told, too
                self._asked = True

    def _left(self) -> None:
        """Who waited for the answer has given the turn, and the request may have to go on without."""
        self._claimed = False
        self._given()
        if self._upload is not None and not self._stands_in and not self.is_over:
            self._stands_in = True
            with contextlib.suppress(ConnectError):  # it can do without
                Helper.start_task(self._stand_in)

    def _given(self) -> None:
        self._tell_stand_in()
        if self._asked:
            self._settle()

    # What is for everybody.

    @property
    def is_over(self) -> bool:
        return self._done or self._closed or self._error is not None or self._reason is not None

    def ask(self) -> None:
        """Have it seen to that the call is over, or that the request goes on."""
        self._asked = True
        self._settle()
        if self._asked:
            session = self._session
            if session is not None:
                session.wake()

    def ask_to_send(self) -> None:
        """Have it seen to that the request goes on."""
        if not self._asked:  # else whoever has asked sees to it, and many parts cost one change of threads
            self.ask()

    def _settle(self) -> None:
        while self._asked and self._turn.acquire(blocking=False):
            try:
                self._attend()
            finally:
                self._turn.release()
            self._tell_stand_in()

    def _tell_stand_in(self) -> None:
        """The turn has just been given."""
        if self._watched:
            self._watched = False
            self._away.wake()

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
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    @property
    def trailers(self) -> CIMultiDict[str] | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        return self._trailers or None

    def read_chunk(self) -> bytes:
        session, received = self._session, self._received
        if session is None:
            raise self.reason() or ConnectError(ConnectErrorCode.CANCELED, "the call was closed")
        if session.inherited:  # the turn may be one's that is not here
            raise ConnectError(ConnectErrorCode.UNAVAILABLE, "the call is of the process that this one was forked from")
        self._claimed = True
        if self._turn.locked():
            session.wake()
        try:
            with self._turn:
                self._claimed = False
                while True:
                    if received:
                        chunk = received[0] if len(received) == 1 else b"".join(received)
                        received.clear()
                        if self._upload is not None and not self.is_over:
                            self._go_on(session, pycurl.PAUSE_RECV)
                        if chunk:
                            return chunk
                    if self._done:
                        return b""
                    self._advance(session)
        finally:
            self._left()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.finish()
            self.ask()


def _failed(error: pycurl.error) -> ConnectError:
    """What it is to the caller that pycurl has failed, and no request."""
    failure = connection_failed("libcurl failed")
    failure.__cause__ = error
    return failure


_BLANK = (b"\r\n", b"\n")


class _Upload(Outgoing):
    """A request body in parts, read in a thread of its own. A generator ends with it, in the same thread."""

    __slots__ = ("_context", "_parts", "_room")

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__()
        self._parts: Iterator[bytes] | None = parts
        self._context = contextvars.copy_context()
        self._room = Wakeup()

    def begin(self, exchange: _Exchange) -> None:
        """Begin to read.

        Raises:
            ConnectError: ``resource_exhausted``: there is no thread for it.
        """
        parts, self._parts = self._parts, None
        assert parts is not None
        Helper.start_task(functools.partial(self._fill, exchange, parts))

    def _fill(self, exchange: _Exchange, parts: Iterator[bytes]) -> None:
        try:
            while not exchange.is_over:
                part = self._context.run(next, parts, None)
                if part is None:
                    self.finished = True
                    exchange.ask_to_send()
                    break
                if part:  # else it would be the end to libcurl
                    self.put(part)
                    exchange.ask_to_send()
                    while self.full and not exchange.is_over:
                        self._room.wait()
        except BaseException as error:
            exchange.fail(error)
        end_parts(self._context, parts)

    def read(self, session: _Session, size: int) -> bytes | int:
        """What libcurl is to send next, at most ``size`` bytes."""
        taken = self.take(size)
        if taken is None:
            session.paused |= pycurl.PAUSE_SEND
            return int(pycurl.READFUNC_PAUSE)
        if not self.full:
            self._room.wake()
        return taken

    def stop(self) -> None:
        """The call is over: read no more."""
        self._parts = None
        self.clear()
        self._room.wake()
