"""How a request is sent through a manager, and its answer read."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import ClosedPoolError, EmptyPoolError, HTTPError

from connectrpc._core.pieces import keep
from connectrpc.transports._failures import reraise
from connectrpc.transports._waiting import close_parts
from connectrpc.transports.urllib3 import _stopping
from connectrpc.transports.urllib3._failures import coded
from connectrpc.transports.urllib3._pool import Timeouts, adopt
from connectrpc.transports.urllib3._stopping import Guard, calls

if TYPE_CHECKING:
    import queue
    from collections.abc import Iterator, Mapping

    from urllib3.connectionpool import HTTPConnectionPool

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.pieces import Pieces
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["Urllib3Transport"]

# Whatever would be done behind the call's back is switched off. Made once: urllib3 would make it for each call.
_NO_RETRIES = urllib3.Retry(False, redirect=False)

_CHUNK = 64 * 1024
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
        self._generation = _stopping.generation
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
            guard = Guard(deadline, opening, cancel)
        upload = None if body is None or isinstance(body, bytes) else _Upload(body, guard)
        outer: Guard | None = getattr(calls, "guard", None)
        calls.guard = guard
        response = None
        try:
            try:
                response = self._urlopen(request, body if upload is None else upload, guard)
            finally:
                calls.guard = outer  # this may be a call of another one's request iterator
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
                raise coded(error, guard, answered=False) from error
            raise
        if guard is not None:
            guard.opening = deadline
        return _Response(response, guard)

    def _urlopen(
        self, request: HTTPRequest, body: bytes | Iterator[bytes] | None, guard: Guard | None
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
        guard: Guard | None,
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
            options["timeout"] = guard.timeouts = Timeouts(pool.timeout, self._connect_timeout, guard.opening)
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
        if self._generation != _stopping.generation:
            with _stopping.changes:
                if self._generation != _stopping.generation:
                    self._start_over_after_fork()
        pool = self._pool
        if pool is None or pool is closed:
            with self._lock:
                pool = self._manager.connection_from_url(self._base_url)
                with _stopping.changes:
                    adopt(pool)
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
        self._generation = _stopping.generation  # last, as who finds it in order goes on without the lock

    def close(self) -> None:
        if self._owns_manager and self._generation == _stopping.generation:
            with self._lock:
                pool, self._pool = self._pool, None
            self._manager.clear()
            if pool is not None:
                pool.close()


_inherited: list[object] = []
"""What a child process must never touch nor collect."""


def _renew_lock(queue: queue.Queue[Any]) -> None:
    if not hasattr(queue, "mutex"):
        return  # as in processes that gevent has patched
    queue.mutex = threading.Lock()
    queue.not_empty = threading.Condition(queue.mutex)
    queue.not_full = threading.Condition(queue.mutex)
    queue.all_tasks_done = threading.Condition(queue.mutex)


def _native(headers: list[tuple[str, str]]) -> Mapping[str, str]:
    plain = dict(headers)
    return plain if len(plain) == len(headers) else HTTPHeaderDict(headers)


_FAILURES = (HTTPError, OSError, ValueError)
"""What reading an answer raises of urllib3's own, or of the file behind it."""


class _UploadFailedError(Exception):
    """What the caller's request iterator raised, in a form that urllib3 does not take for a failure of its own."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(failure)
        self.failure = failure


class _Upload:
    """A request body in parts, of the call that ``guard`` can end."""

    def __init__(self, parts: Iterator[bytes], guard: Guard | None) -> None:
        self.parts = parts
        self._guard = guard

    def __iter__(self) -> _Upload:
        return self

    def __next__(self) -> bytes:
        calls.guard = None  # the caller's code may send something of its own, through the same pool
        try:
            return next(self.parts)
        except StopIteration:
            raise
        except Exception as error:
            raise _UploadFailedError(error) from error
        finally:
            calls.guard = self._guard


class _Response:
    """An answer of urllib3's."""

    __slots__ = ("_chunks", "_guard", "_response", "headers", "status")

    trailers = None  # the library does not tell
    uploaded = True

    def __init__(self, response: Any, guard: Guard | None) -> None:
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
                raise coded(error, self._guard, answered=True) from error
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
            raise coded(error, self._guard, answered=True) from error

    def _begin_chunks(self) -> Iterator[bytes]:
        response = self._response
        # The answers of those that record answers for tests, such as vcrpy, have no such attribute, and no chunks.
        if getattr(response, "chunked", False) and response.supports_chunked_reads():
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
