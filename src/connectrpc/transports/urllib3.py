"""urllib3 as a transport.

The one module that touches the sockets of a pool's connections: it shuts them down, from whatever thread, to wake a
call that is blocked on one. That is how calls are cancelled, how a deadline bounds what urllib3's own timeouts do not
(a head or a body that drips, an upload that is not taken), and how a stream is closed while it is being read.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import heapq
import http.client
import os
import re
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    PoolError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.ssl_match_hostname import CertificateError

from connectrpc._core.pieces import keep
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import LONGEST_WAIT, Ending
from connectrpc.transports._failures import (
    causes,
    client_timed_out,
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    not_proxied,
    other_fingerprint,
    reraise,
    tls_failure,
    unresolved,
    untrusted,
)
from connectrpc.transports._waiting import Helper, close_parts, start_thread

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable, Iterator, Mapping

    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.util.ssltransport import SSLTransport

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.pieces import Pieces
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["Urllib3Transport"]

# Whatever would be done behind the call's back is switched off. Made once: urllib3 would make it for each call.
_NO_RETRIES = urllib3.Retry(False, redirect=False)

_CHUNK = 64 * 1024
_QUEUE_SECONDS = 0.1  # no thread is in a pool's queue for so long, unless it is the one that asks
_POOL_STEP = 0.05  # how often a call that waits for a connection looks whether it was stopped


class Urllib3Transport:
    """Sends requests to one origin through a ``urllib3.PoolManager``.

    Args:
        manager: the user's, with its pools, proxies, TLS and timeouts; or None for one of our own.
        base_url: where the requests will go.
        connect_timeout: how long connecting may take, in seconds; None for the manager's own limit.
    """

    def __init__(self, manager: object | None, base_url: str, *, connect_timeout: float | None = None) -> None:
        self._connect_timeout = connect_timeout
        self._owns_manager = manager is None
        # Threads beyond a pool's size would open a connection for each call, so our own has room for more.
        self._manager = urllib3.PoolManager(maxsize=32) if manager is None else cast("urllib3.PoolManager", manager)
        self._base_url = base_url
        scheme, _, rest = base_url.partition("://")
        self._origin_length = len(scheme) + 3 + len(rest.partition("/")[0])
        self._lock = threading.Lock()
        self._generation = _generation
        self._pool: HTTPConnectionPool | None = None

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
        guard = None
        if stream or cancel is not None or deadline.expires_at is not None or self._connect_timeout is not None:
            guard = _Guard(deadline, opening, cancel)
        upload = None if body is None or isinstance(body, bytes) else _Upload(body, guard)
        outer: _Guard | None = getattr(_calls, "guard", None)
        _calls.guard = guard
        response = None
        try:
            try:
                response = self._urlopen(request, body if upload is None else upload, guard)
            finally:
                _calls.guard = outer  # this may be a call of another one's request iterator
                if upload is not None:
                    # No more of it will be read, even if the server has answered early. This is the thread that has
                    # read it, and has its context variables.
                    close_parts(upload.parts)
        except BaseException as error:
            if response is not None:  # closing the iterator was interrupted
                _Response(response, guard).close()
            if guard is not None:
                guard.finish()
            if isinstance(error, _UploadFailedError):
                reraise(error.failure)
            if isinstance(error, HTTPError | OSError):
                raise _coded(error, guard, answered=False) from error
            raise
        if guard is not None:
            guard.opening = deadline
        return _Response(response, guard)

    def _urlopen(
        self, request: HTTPRequest, body: bytes | Iterator[bytes] | None, guard: _Guard | None
    ) -> urllib3.BaseHTTPResponse:
        pool = self._find_pool()
        headers = _native(request.headers)
        if guard is not None or pool.proxy is not None:
            return self._urlopen_with_care(pool, request, headers, body, guard)
        try:
            # By their names, as for all that wrap this method, to trace calls or to count them.
            return pool.urlopen(
                request.method,
                request.url[self._origin_length :],
                body=body,
                headers=headers,
                retries=_NO_RETRIES,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        except ClosedPoolError:
            return self._urlopen_with_care(self._find_pool(closed=pool), request, headers, body, None)

    def _urlopen_with_care(
        self,
        pool: HTTPConnectionPool,
        request: HTTPRequest,
        headers: Mapping[str, str],
        body: bytes | Iterator[bytes] | None,
        guard: _Guard | None,
    ) -> urllib3.BaseHTTPResponse:
        """What ``_urlopen`` does, where there is a deadline, a proxy, or something else to look after."""
        options: dict[str, Any] = {
            "body": body,
            "headers": headers,
            "retries": _NO_RETRIES,
            "redirect": False,
            "decode_content": False,
            "preload_content": False,
        }
        if guard is not None and (guard.opening.expires_at is not None or self._connect_timeout is not None):
            options["timeout"] = guard.timeouts = _Timeouts(pool.timeout, self._connect_timeout, guard.opening)
        if guard is not None and pool.block:
            options["pool_timeout"] = _POOL_STEP
        path = request.url[self._origin_length :]
        while True:
            try:
                if pool.proxy is not None:
                    # It looks for the pool itself, and has to make one where it has let go of the pool that is known.
                    pool = self._find_pool(closed=pool)
                    return self._manager.urlopen(request.method, request.url, **options)
                return pool.urlopen(request.method, path, assert_same_host=False, **options)
            except ClosedPoolError:
                # The manager keeps a limited number of pools and has closed this one for others. Nothing was sent.
                fresh = self._find_pool(closed=pool)
                if fresh is pool:
                    raise
                pool = fresh
            except EmptyPoolError:
                # Every connection of a pool that blocks is in use. No guard can wake a thread that waits for one.
                reason = None if guard is None else guard.reason()
                if reason is not None:
                    raise reason from None
                if guard is None:
                    raise

    def _find_pool(self, closed: HTTPConnectionPool | None = None) -> HTTPConnectionPool:
        if self._generation != _generation:
            with _changes:
                if self._generation != _generation:
                    self._start_over_after_fork()
        pool = self._pool
        if pool is None or pool is closed:
            with self._lock:
                pool = self._manager.connection_from_url(self._base_url)
                with _changes:
                    _adopt(pool)
                self._pool = pool
        return pool

    def _start_over_after_fork(self) -> None:
        """Leave the parent its connections: sharing them, parent and child would read each other's answers."""
        # Kept for good: pools take their locks when they are collected, and a thread that is not here may hold one.
        _inherited.append((self._manager, self._pool))
        if self._pool is not None and self._pool.pool is not None:
            _renew_lock(self._pool.pool)  # for the same reason: urllib3 closes pools when the process exits
        self._lock = threading.Lock()
        manager = copy.copy(self._manager)
        manager.pools = type(manager.pools)(manager.pools._maxsize)
        self._manager = manager
        self._owns_manager = True
        self._pool = None
        self._generation = _generation  # last, as who finds it in order goes on without the lock

    def close(self) -> None:
        if self._owns_manager and self._generation == _generation:
            with self._lock:
                pool, self._pool = self._pool, None
            self._manager.clear()
            if pool is not None:
                pool.close()


_inherited: list[object] = []
"""What a child process must never touch nor collect."""


def _renew_lock(queue: queue.Queue[Any]) -> None:
    queue.mutex = threading.Lock()
    queue.not_empty = threading.Condition(queue.mutex)
    queue.not_full = threading.Condition(queue.mutex)
    queue.all_tasks_done = threading.Condition(queue.mutex)


def _native(headers: list[tuple[str, str]]) -> Mapping[str, str]:
    plain = dict(headers)
    return plain if len(plain) == len(headers) else HTTPHeaderDict(headers)


class _Timeouts(urllib3.Timeout):
    """The user's own timeouts, with connecting bounded by a limit of the client's and by the deadline."""

    def __init__(self, own: Any, connect: float | None, deadline: Deadline) -> None:
        if not isinstance(own, urllib3.Timeout):
            own = urllib3.Timeout(own)
        super().__init__(connect=own._connect if connect is None else connect, read=own._read, total=own.total)
        self._own = own
        self._connect_limit = connect
        self._deadline = deadline

    @property
    def sending(self) -> float | None:
        """How long sending may take, for which urllib3 knows no other limit than that for connecting: the user's."""
        return urllib3.Timeout.resolve_default_timeout(self._own.connect_timeout)

    def clone(self) -> _Timeouts:
        return _Timeouts(self._own, self._connect_limit, self._deadline)

    @property
    def connect_timeout(self) -> Any:
        connect = super().connect_timeout
        left = self._deadline.remaining()
        if left is None:
            return connect
        left = max(left, 0.001)  # zero would mean not to block at all
        return min(left, connect) if isinstance(connect, int | float) else left


def _coded(error: Exception, guard: _Guard | None, *, answered: bool) -> ConnectError:
    """What a failure of urllib3's is to the caller, before or after the head of the answer has come."""
    if guard is not None:
        reason = guard.reason()
        if reason is not None:
            return reason
    if isinstance(error, ProxyError):
        if not isinstance(error.original_error, HTTPError):
            return _not_proxied(error.original_error)
        error = error.original_error
    if isinstance(error, EmptyPoolError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "all connections of the HTTP client's pool are in use")
    if isinstance(error, ReadTimeoutError):
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own read timeout has passed")
    if isinstance(error, NameResolutionError | LocationParseError):
        return unresolved()
    if isinstance(error, NewConnectionError):
        return no_connection(error)
    if isinstance(error, ConnectTimeoutError):
        return connected_too_late()
    failure = tls_failure(error)
    if failure is not None:
        return failure
    if (
        not answered
        and isinstance(error, ProtocolError | SSLError)
        and any(isinstance(arg, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError) for arg in error.args)
    ):
        return closed_unanswered()
    if isinstance(error, PoolError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "the HTTP client's pool is closed")
    if any(isinstance(arg, TimeoutError) and arg.errno is None for arg in error.args):
        return client_timed_out()  # the user's, for sending
    if isinstance(error, SSLError):
        if any(isinstance(arg, CertificateError) for arg in error.args):
            return untrusted("it is for another host")
        if any(isinstance(arg, str) for arg in error.args):  # urllib3 has compared it itself
            return other_fingerprint()
    return connection_failed(_reason(error))


def _not_proxied(error: Exception) -> ConnectError:
    """What it is to the caller that a proxy has not done what it was asked for."""
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))
    if refused is None:
        return no_connection(error)
    return not_proxied(refused[1])


def _reason(error: Exception) -> str:
    """What can be told of a connection that failed.

    Never in the libraries' own words: they name hosts and proxies, and quote what came, which may be what was sent. A
    service that called another may pass the error on.
    """
    for cause in causes(error):
        for found in (*cause.args, cause):
            if isinstance(found, _NoAnswerError):
                return str(found)
            if isinstance(found, OSError) and not isinstance(found, ssl.SSLError) and found.errno:
                return os.strerror(found.errno)
    return "its answer broke off, or is not HTTP"


_FAILURES = (HTTPError, OSError, ValueError)
"""What reading an answer raises of urllib3's own, or of the file behind it."""


class _UploadFailedError(Exception):
    """What the caller's request iterator raised, in a form that urllib3 does not take for a failure of its own."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(failure)
        self.failure = failure


class _Upload:
    """A request body in parts, of the call that ``guard`` can end."""

    def __init__(self, parts: Iterator[bytes], guard: _Guard | None) -> None:
        self.parts = parts
        self._guard = guard

    def __iter__(self) -> _Upload:
        return self

    def __next__(self) -> bytes:
        _calls.guard = None  # the caller's code may send something of its own, through the same pool
        try:
            return next(self.parts)
        except StopIteration:
            raise
        except Exception as error:
            raise _UploadFailedError(error) from error
        finally:
            _calls.guard = self._guard


class _Response:
    """An answer of urllib3's."""

    __slots__ = ("_chunks", "_guard", "_response", "headers", "status")

    trailers = None  # the library does not tell
    uploaded = True

    def __init__(self, response: Any, guard: _Guard | None) -> None:
        self._response = response
        self._chunks: Iterator[bytes] | None = None
        self._guard = guard
        self.status = response.status
        self.headers = response.headers

    def read(self, limit: int | None) -> bytes:
        response = self._response
        try:
            length = response.length_remaining
            if limit is None or (length is not None and length <= limit):
                whole = self._guarded(response.read())  # its connection goes back to the pool by itself
                if self._guard is not None:
                    self._guard.finish()
                return whole
            parts: Pieces = []
            received = 0
            while received <= limit and (chunk := self._guarded(response.read1(_CHUNK))):
                keep(parts, chunk)
                received += len(chunk)
        except BaseException as error:
            self.close()
            if isinstance(error, _FAILURES):
                raise _coded(error, self._guard, answered=True) from error
            raise
        self.close()
        return b"".join(parts)

    def read_chunk(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = self._begin_chunks()
            chunk = next(self._chunks, b"")
            if not chunk:  # the messages of others are checked one by one
                self.check()
            return chunk
        except _FAILURES as error:
            raise _coded(error, self._guard, answered=True) from error

    def _begin_chunks(self) -> Iterator[bytes]:
        response = self._response
        if response.chunked and response.supports_chunked_reads():
            return _read_chunks(response)
        return iter(functools.partial(response.read1, _CHUNK), b"")

    def _guarded(self, chunk: bytes) -> bytes:
        # A body that ends with its connection looks complete when a guard has shut that down.
        self.check()
        return chunk

    def check(self) -> None:
        if self._guard is not None:
            self._guard.check()

    def interrupt(self) -> None:
        if self._guard is not None:
            self._guard.interrupt()

    def close(self) -> None:
        response = self._response
        if self._guard is not None and not sys.is_finalizing():  # threads that are no more may hold locks for good
            self._guard.finish()
        with contextlib.suppress(OSError, HTTPError):
            if not response.closed:
                response.close()
            elif response.connection is not None:
                response.connection.close()  # the garbage collector has closed parts of it, in an order of its own
        response.release_conn()  # else a pool that blocks would wait for it for ever


def _read_chunks(response: Any) -> Iterator[bytes]:
    """``response.read_chunked()`` that does not wait for the rest of a chunk, and costs much less than ``read1()``."""
    with response._error_catcher():
        read = response._fp.read1
        while chunk := read(_CHUNK):
            yield chunk


_generation = 0
"""How many forks lie between this process and the one that imported the module."""

_calls = threading.local()
"""The guard of the call that the thread is sending."""

_owners = threading.RLock()
"""Held while a connection changes its owner, and while a guard shuts a socket down. So a guard never hits a connection
that has gone on to another call. Reentrant, as all locks of ours are: the garbage collector may close a stream that was
left lying about while the same thread holds one."""


_changes = threading.RLock()
"""Held while a pool, which several transports may have, is adopted, and while a transport starts over after a fork."""


def _adopt(pool: HTTPConnectionPool) -> None:
    """Have the pool's connections tell which call they serve, and take them back whenever they are given back."""
    if isinstance(pool, _OwnedPool):
        return
    pool.ConnectionCls = type("Owned" + pool.ConnectionCls.__name__, (_Owned, pool.ConnectionCls), {})
    # Functions in the pool itself would refer to it, and its connections would not be closed as soon as it is dropped.
    pool.__class__ = type("Owned" + type(pool).__name__, (_OwnedPool, type(pool)), {})


class _OwnedPool:
    """Gives connections that know whom they serve, and takes them back in the midst of anything. Mixed into the pool's
    own class."""

    pool: queue.LifoQueue[Any] | None

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if isinstance(connection, _Owned):
            if connection.owner is not None:
                connection.take_over()
            return connection
        connection.close()  # it is from before, and cannot tell
        return cast("HTTPConnectionPool", self)._new_conn()

    def _put_conn(self, conn: Any) -> None:
        queue = self.pool
        if queue is None or not queue.mutex.locked() or _is_let_go(queue.mutex):
            super()._put_conn(conn)  # type: ignore[misc]
            return
        # This very thread is in the queue: the garbage collector has closed a stream that was left lying about, or a
        # generator of urllib3's that reads one.
        try:
            Helper.start_task(functools.partial(_put_back, super()._put_conn, conn))  # type: ignore[misc]
        except ConnectError:  # there is no thread, so the pool has room for one connection less from now on
            if conn is not None:
                conn.close()


def _is_let_go(lock: threading.Lock) -> bool:
    """Whether a lock that is held for moments only is held by another thread, which has let go of it by now."""
    if not lock.acquire(timeout=_QUEUE_SECONDS):
        return False
    lock.release()
    return True


def _put_back(put_connection: Callable[[Any], None], connection: Any) -> None:
    with contextlib.suppress(HTTPError):  # the pool was closed meanwhile, or is full
        put_connection(connection)


class _Lines:
    """The lines of a head, the last of which is remembered."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self._file.readline(limit)
        return self.last

    def close(self) -> None:
        self._file.close()


class _NoAnswerError(http.client.BadStatusLine):
    """What came instead of an answer, in our own words."""


class _HTTPResponse(http.client.HTTPResponse):
    """What ``http.client`` leaves undone: interim answers other than 100, which would pass for the answer and leave
    that to the connection's next call; heads that break off, which would pass for whole ones; and chunks whose size is
    below zero, which would have none."""

    def begin(self) -> None:
        if self.headers is not None:
            return
        file = self.fp
        lines: Any = _Lines(file)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = file
        if lines.last not in _BLANK:
            raise http.client.IncompleteRead(lines.last)

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 < status < 200:  # 100 is passed over by begin()
                return version, status, reason
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise _NoAnswerError("101, which nobody asked for")
            for _ in range(_INTERIM_MAX_LINES):
                if self.fp.readline(_LINE_MAX_BYTES) in (*_BLANK, b""):
                    break
            else:
                raise _NoAnswerError("an interim answer without end")

    def _read_next_chunk_size(self) -> int:
        # All of it, and no call of what it stands for: each message of a stream comes by here.
        assert self.fp is not None
        line = self.fp.readline(_LINE_MAX_BYTES + 1)
        size = int(line.partition(b";")[0], 16)
        if size < 0 or len(line) > _LINE_MAX_BYTES:
            raise ValueError  # as where it is no number
        return size


_BLANK = (b"\r\n", b"\n")
_INTERIM_MAX_LINES = 100
_LINE_MAX_BYTES = 65536


class _Owned:
    """A connection that knows the guard of the call it serves, if that has one. Mixed into the pool's own class."""

    owner: _Guard | None = None
    response_class = _HTTPResponse
    _same: socket.socket | None = None
    """While there are handshakes: TLS takes the socket itself away from whoever holds it, and this stops both."""

    def connect(self) -> None:
        connection = cast("Any", self)
        try:
            super().connect()  # type: ignore[misc]
        except TimeoutError as error:  # in a TLS handshake, or by a proxy: urllib3 would take it for one of reading
            raise ConnectTimeoutError(connection, "the connection was not ready in time") from error
        except UnicodeError as error:  # no name that there can be
            raise NameResolutionError(connection.host, connection, cast("Any", error)) from error
        finally:
            self._let_go()
        self._serve(connection.sock)
        if self.owner is not None and self.owner.timeouts is not None:
            connection.sock.settimeout(self.owner.timeouts.sending)

    def request(self, *args: Any, **kwargs: Any) -> None:
        connection = cast("Any", self)
        self._serve(connection.sock)
        if self.owner is not None and self.owner.timeouts is not None and connection.sock is not None:
            connection.timeout = self.owner.timeouts.sending  # not that for connecting, which is done
        super().request(*args, **kwargs)  # type: ignore[misc]

    def take_over(self) -> None:
        """Take the connection from the guard of the call before, which cannot stop anything on it from now on.

        Before anything else: where that call was stopped when it had just been answered, the connection has to be made
        anew, and only the pool can see to its tunnel through a proxy.
        """
        connection = cast("Any", self)
        with _owners:
            before, self.owner = self.owner, None
        if before is not None and before.stopped is not None and before.stopped is connection.sock:
            connection.close()

    def _serve(self, sock: socket.socket | SSLTransport | None) -> None:
        """Tell the guard of the call, if it has one, which socket it is to stop.

        Raises:
            ConnectError: the call was stopped already.
        """
        guard: _Guard | None = getattr(_calls, "guard", None)
        if guard is None:
            return
        with _owners:
            self.owner = guard
            guard.connection = self
            # Kept apart: with `Connection: close` the connection lets go of it before the body is read.
            guard.socket = sock
        guard.check()

    def _new_conn(self) -> socket.socket:
        inherited = super()._new_conn  # type: ignore[misc]
        guarded = getattr(_calls, "guard", None) is not None
        if guarded and inherited.__func__ is HTTPConnection._new_conn:
            sock = self._connect_guarded(cast("HTTPConnection", self))
        else:
            sock = inherited()  # such as a proxy's: the connect timeout bounds it
        if guarded and isinstance(self, HTTPSConnection):
            try:
                self._same = sock.dup()
                self._serve(self._same)
            except BaseException:
                sock.close()
                raise
        return sock

    def _let_go(self) -> None:
        same, self._same = self._same, None
        if same is not None:
            with _owners:  # a guard may be about to shut it down, and what would have its number next is another's
                same.close()

    def _connect_guarded(self, connection: HTTPConnection) -> socket.socket:
        """What urllib3 does to connect, but that a guard knows the socket before it waits for it."""
        host = connection._dns_host.strip("[]")  # with the dot at its end, by which a name is looked up as it stands
        try:
            # None of IPv6 where the system has none, or the user wants none.
            family = urllib3.util.connection.allowed_gai_family()
            addresses = socket.getaddrinfo(host, connection.port, family, socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        failure: Exception = OSError("the name has no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                if connection.timeout is None or isinstance(connection.timeout, int | float):
                    sock.settimeout(connection.timeout)
                if connection.source_address:
                    sock.bind(connection.source_address)
                self._serve(sock)
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(connection, f"connecting to {connection.host} timed out") from failure
        raise NewConnectionError(connection, f"no connection: {failure}") from failure


class _Guard(Ending):
    """What can end one call, by shutting its socket down."""

    __slots__ = ("_finished", "_generation", "connection", "socket", "stopped", "timeouts")

    def __init__(self, deadline: Deadline, opening: Deadline, cancel: CancelToken | None) -> None:
        super().__init__(deadline, opening, cancel)
        self._finished = False
        self._generation = _generation
        self.connection: _Owned | None = None
        self.socket: socket.socket | SSLTransport | None = None
        self.stopped: socket.socket | SSLTransport | None = None
        self.timeouts: _Timeouts | None = None
        try:
            self.heed_token()
            self.check()
            if deadline.expires_at is not None:
                _watchdog.watch(self, deadline.expires_at)
            if opening.expires_at is not None and opening is not deadline:
                _watchdog.watch(self, opening.expires_at)
        except ConnectError:
            self.finish()
            raise

    @property
    def finished(self) -> bool:
        return self._finished

    def expire(self) -> None:
        """Stop the call if its time is up. By the watchdog."""
        with _owners:
            if self._reason is None and not self._finished and self.reason() is not None:
                self._shut_down()

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        with _owners:
            if self._reason is None and not self._finished:
                self._reason = reason
                self._shut_down()

    def _shut_down(self) -> None:
        """Wake the thread that is blocked in the call, if it is."""
        # In a child process the socket is the parent's: shutting it down here would end the call there.
        if self.socket is None or self.connection is None or self._generation != _generation:
            return
        if self.connection.owner is self:
            self.stopped = self.socket
            # What stands for one of Python's has that: urllib3's own for TLS in a proxy's TLS, and for pyOpenSSL.
            sock: Any = getattr(self.socket, "socket", self.socket)
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would drop the TLS state under the other thread's hands.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def finish(self) -> None:
        with _owners:
            self._finished = True
            self.socket = self.connection = None
        super().finish()
        if self._deadline.expires_at is not None:
            _watchdog.forget()


_BEARABLE = 1000  # so many guards that are over may stay in the watchdog's heap, or as many as there are others


class _Watchdog:
    """One thread for the deadlines of all calls, started with the first of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, _Guard]] = []
        self._serial = 0
        self._over = 0
        self._bearable = _BEARABLE
        self._thread: threading.Thread | None = None

    def watch(self, guard: _Guard, expires_at: float) -> None:
        with self._changed:
            self._serial += 1
            heapq.heappush(self._heap, (expires_at, self._serial, guard))
            if self._thread is None:
                self._thread = start_thread(
                    threading.Thread(target=self._run, name="connectrpc-deadlines", daemon=True)
                )
            elif self._heap[0][2] is guard:
                self._changed.notify()

    def forget(self) -> None:
        """Some guard is finished. Entries leave the heap when they are due, or when most of it is such.

        They are taken out by the watchdog's thread alone, and never here: the garbage collector may come by here while
        this very thread is at work on the heap.
        """
        self._over += 1
        if self._over > self._bearable:
            with self._changed:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._over > self._bearable:
                    self._heap = [entry for entry in self._heap if not entry[2].finished]
                    heapq.heapify(self._heap)
                    self._over, self._bearable = 0, max(_BEARABLE, len(self._heap))
                while self._heap and self._heap[0][2].finished:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._changed.wait()
                    continue
                left = self._heap[0][0] - time.monotonic()
                if left > 0:
                    self._changed.wait(min(left, LONGEST_WAIT))
                    continue
                guard = heapq.heappop(self._heap)[2]
            guard.expire()


_watchdog = _Watchdog()


def _start_over_after_fork() -> None:
    # The child has neither the watchdog's thread nor those that may have held the locks.
    global _changes, _generation, _owners, _watchdog
    _generation += 1
    _changes = threading.RLock()
    _owners = threading.RLock()
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_after_fork)
