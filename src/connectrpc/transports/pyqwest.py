"""pyqwest as a transport: HTTP/1.1, 2 and 3, with trailers and full duplex.

What a call must not have done behind its back cannot be switched off call by call: it is settings of the user's
``HTTPTransport`` or ``SyncHTTPTransport``. Redirects are followed unless ``follow_redirects=False``, and answers come
inflated unless ``enable_gzip``, ``enable_brotli`` and ``enable_zstd`` are off. Nothing is sent again but what the
server has refused to begin.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import os
import queue
import re
import time
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pyqwest

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._background import finish, in_background
from connectrpc.transports._ending import Ending
from connectrpc.transports._failures import (
    client_timed_out,
    connected_too_late,
    connection_failed,
    no_connection,
    reraise,
    stream_reset,
    unresolved,
)
from connectrpc.transports._reading import AsyncChunkedResponse, ChunkedResponse
from connectrpc.transports._waiting import Helper, Waiting, Wakeup, end_parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from connectrpc._core.http import HeaderView, HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["AsyncPyqwestTransport", "PyqwestTransport"]


_forked = False
"""Whether this process was forked from one that had a pyqwest client."""


@functools.cache  # once for the process
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_note_fork)


def _note_fork() -> None:
    global _forked
    _forked = True


def _check_process() -> None:
    # The threads that do pyqwest's work begin with the first client and stay in the parent: every call would wait for
    # ever, also of a client that the child has made for itself.
    if _forked:
        raise RuntimeError(
            "this process was forked from one with a pyqwest client, and pyqwest does not work across fork(): make the "
            "first client after the fork"
        )


_sending: weakref.WeakSet[_Upload] = weakref.WeakSet()
"""The requests in parts of which pyqwest's threads may ask for more."""


@functools.cache  # once for the process
def _settle_at_exit() -> None:
    atexit.register(_settle)


def _settle() -> None:
    if _forked:
        return  # those threads are the parent's
    # A thread of pyqwest's that comes back into Python, for a part of a request or to drop what a call gave it, while
    # the interpreter is ending, aborts the process.
    for upload in list(_sending):
        upload.abandon()
    ends = time.monotonic() + _SETTLE_MAX_SECONDS
    while _sending and time.monotonic() < ends:
        time.sleep(0.001)
    time.sleep(_SETTLE_SECONDS)


_SETTLE_MAX_SECONDS = 0.5
_SETTLE_SECONDS = 0.01  # most of what aborted was over within one millisecond


class _Transport:
    """What both colours have in common."""

    has_trailers = True

    def __init__(self, client: object) -> None:
        _check_process()
        _watch_forks()
        _settle_at_exit()
        self._client = cast("Any", client)


class PyqwestTransport(_Transport):
    """Sends requests through a ``pyqwest.SyncClient``.

    A request in parts is read in a thread of its own, with the caller's context variables, while the answer may already
    be read. When the call is over it is asked for no more: a generator ends then, in that thread, and one that blocks
    as soon as it gives something.

    A call that is canceled ends at once, but pyqwest cannot be told to give up a request of which the server takes no
    more, nor one that is whole and has no answer yet: of such a call the server learns by the deadline alone.

    Args:
        client: the user's, with its transport, TLS, proxies and timeouts.
    """

    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,  # noqa: ARG002  any answer may be read in chunks
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> _Response:
        _check_process()
        upload = None if body is None or isinstance(body, bytes) else _Upload(body)
        call = _Call(deadline, opening, cancel, upload)
        content = body if upload is None else upload
        arguments = (request.method, request.url, request.headers, content, deadline.remaining())
        try:
            call.check()
            if cancel is None and opening is deadline:
                # pyqwest's own timeout is all that may have to end the wait for the head.
                response = self._stream(*arguments)
            else:
                response = _wait_for_head(call, lambda: self._stream(*arguments))
        except BaseException as error:
            call.finish()
            if isinstance(error, _FAILURES):
                call.fail(error, answered=False)
            raise
        call.opening = deadline
        return _Response(response, call)

    def _stream(self, method: str, url: str, headers: Any, content: Any, timeout: float | None) -> Any:
        # Zero is no timeout to pyqwest.
        timeout = None if timeout is None else max(timeout, 0.001)
        # Closing the response is all that the context manager would do in the end.
        return self._client.stream(method, url, headers, content, timeout=timeout).__enter__()

    def close(self) -> None:
        pass  # the user's client stays open


class AsyncPyqwestTransport(_Transport):
    """Sends requests through a ``pyqwest.Client``.

    Args:
        client: the user's, with its transport, TLS, proxies and timeouts.
    """

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _AsyncResponse:
        _check_process()
        upload = None if body is None or isinstance(body, bytes) else _AsyncUpload(body)
        content = body if upload is None else upload.parts()
        opened = self._client.stream(request.method, request.url, request.headers, content)
        try:
            response = await opened.__aenter__()
        except _FAILURES as error:
            if upload is not None and upload.failure is not None:
                reraise(upload.failure)
            raise _coded(error, answered=False) from error
        return _AsyncResponse(response, opened, upload)

    async def aclose(self) -> None:
        pass  # the user's client stays open


# What pyqwest raises of its own. ConnectionError and TimeoutError are OSErrors; a RuntimeError is a transport that was
# closed, which is the user's to know as it is.
_FAILURES = (OSError, pyqwest.ReadError, pyqwest.WriteError, pyqwest.RemoteProtocolError, pyqwest.TooManyRedirects)


def _coded(error: Exception, *, answered: bool) -> ConnectError:
    """What a failure of pyqwest's is to the caller, before or after the head of the answer has come."""
    if isinstance(error, pyqwest.StreamError):
        return stream_reset(int(error.code))
    if isinstance(error, pyqwest.ConnectTimeout):
        return connected_too_late()
    if isinstance(error, TimeoutError):
        return client_timed_out()
    # What has happened is in pyqwest's text alone, and the URL as well.
    text = re.sub(r" for url \(.*?\)(?=:|$)", "", str(error))
    if isinstance(error, ConnectionError) and not answered:
        if "dns error" in text:
            return unresolved()
        found = re.search(r"\(os error (\d+)\)$", text)
        if found is not None:
            return no_connection(OSError(int(found[1]), ""))
        return ConnectError(ConnectErrorCode.UNAVAILABLE, f"no connection to the server can be made: {text}")
    return connection_failed(text)


class _AbandonedError(Exception):
    """Ends the upload of a call that is over: as a failure, lest the server take a part for the whole."""


_OVER: Any = object()
"""Instead of a part: there will be no more, since the iterator has failed or nobody wants any."""


_NOT_YET: Any = object()
"""Neither of the two ends of an upload."""

_AHEAD_BYTES = 64 * 1024
"""How far the caller's iterator may be ahead of what is sent."""


class _Upload:
    """A request body in parts, read by a thread of pyqwest's. Remembers what the caller's iterator raised.

    The caller's iterator runs in another thread: so one that blocks holds only that, and not pyqwest's, which has to
    tell the server at once when the call is over.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts: Iterator[bytes] | None = parts
        self._context = contextvars.copy_context()
        self._results: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._last: Any = _NOT_YET
        self._read_bytes = self._taken_bytes = 0  # each is counted by one thread
        self._taken = Wakeup()
        self._abandoned = False
        self.failure: BaseException | None = None

    def __iter__(self) -> _Upload:
        return self

    def __next__(self) -> bytes:
        try:
            return self._next()
        except BaseException:
            _sending.discard(self)
            raise

    def _next(self) -> bytes:
        parts, self._parts = self._parts, None
        if parts is not None:
            _sending.add(self)
            try:
                Helper.start_task(functools.partial(self._read, parts))
            except ConnectError as error:
                self.failure = error
                raise
            parts = None  # what is raised below keeps this frame for as long as pyqwest keeps it
        found: list[bytes] = []
        size = 0
        if self._last is _NOT_YET:
            # As many as there are: each step of pyqwest's costs more than many of ours.
            part: Any = _OVER if self._abandoned else self._results.get()
            while part is not None and part is not _OVER and not self._abandoned:
                found.append(part)
                size += len(part)
                if size >= _AHEAD_BYTES or self._results.empty():
                    break
                part = self._results.get()
            else:
                self._last = part
        if self._abandoned or (self._last is _OVER and not found):
            raise _AbandonedError from self.failure
        if not found:
            raise StopIteration
        self._taken_bytes += size
        self._taken.wake()
        return found[0] if len(found) == 1 else b"".join(found)

    def _read(self, parts: Iterator[bytes]) -> None:
        """Read parts, and a few ahead. A generator ends with it, in the same thread."""
        self._read_parts(parts)
        end_parts(self._context, parts)

    def _read_parts(self, parts: Iterator[bytes]) -> None:
        while not self._abandoned:
            try:
                part = self._context.run(next, parts, None)
            except BaseException as error:
                self.failure = error
                part = _OVER
            self._results.put(part)
            if part is None or part is _OVER:
                return
            self._read_bytes += len(part)
            while self._read_bytes - self._taken_bytes >= _AHEAD_BYTES and not self._abandoned:
                self._taken.wait()

    def abandon(self) -> None:
        """Read no more parts. From any thread; one that the iterator is just at is the last."""
        self._abandoned = True
        self._taken.wake()
        self._results.put(_OVER)

    def release(self) -> None:
        """``abandon``, in the caller's own thread: an iterator that was never begun may end there."""
        self.abandon()
        self._parts = None


class _Call(Ending):
    """What can end one call, by whatever wakes the thread that waits in it just now."""

    __slots__ = ("_wake", "upload")

    def __init__(
        self, deadline: Deadline, opening: Deadline, cancel: CancelToken | None, upload: _Upload | None
    ) -> None:
        super().__init__(deadline, opening, cancel)
        self.upload = upload
        self._wake: Callable[[], object] | None = None
        self.heed_token()

    def fail(self, error: Exception, *, answered: bool) -> NoReturn:
        """Raise what a failure of pyqwest's is to the caller."""
        if self._reason is None and self.upload is not None and self.upload.failure is not None:
            reraise(self.upload.failure)
        raise self.reason() or _coded(error, answered=answered) from error

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        if self._reason is None:
            self._reason = reason
        if self.upload is not None:
            self.upload.abandon()
        wake = self._wake
        if wake is not None:
            wake()

    def wake_by(self, wake: Callable[[], object] | None) -> None:
        """What wakes the thread that waits in the call from now on."""
        self._wake = wake
        if wake is not None and self._reason is not None:
            wake()  # it was stopped before there was anything to wake

    def finish(self) -> None:
        self._wake = None
        if self.upload is not None:
            self.upload.release()
        super().finish()


def _wait_for_head(call: _Call, begin: Callable[[], Any]) -> Any:
    """The wait for an answer's head in a thread of its own, which can be left. pyqwest's own wait cannot.

    The thread that is left behind drops the answer when it comes, if the call's timeout does not come first.
    """
    waiting = Waiting(begin, lambda response: response.close())
    call.wake_by(waiting.wake)
    try:
        while not waiting.wait(call.opening.remaining()):
            call.check()
        call.check()
    except BaseException:
        waiting.leave()
        raise
    finally:
        call.wake_by(None)
    return waiting.result()


class _Response(ChunkedResponse):
    """An answer of pyqwest's."""

    __slots__ = ("_call", "_chunks", "_closed", "_ended", "_response", "headers", "status")

    def __init__(self, response: Any, call: _Call) -> None:
        self._call = call
        self._response = response
        self._chunks: Iterator[Any] = response.content
        self._closed = False
        self._ended = False
        self.status: int = response.status
        self.headers: HeaderView = response.headers
        call.wake_by(response.close)

    @property
    def trailers(self) -> HeaderView | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        trailers = self._response.trailers if self._ended else None
        return trailers or None

    def read_chunk(self) -> bytes:
        try:
            for chunk in self._chunks:
                if chunk:  # a frame may be empty
                    return bytes(chunk)  # the messages in it are checked one by one
        except _FAILURES as error:
            self._call.fail(error, answered=True)
        self._call.check()  # a body that was closed looks complete
        # Nothing tells whether an answer that looks complete came before the request failed, or has ended because of
        # that, as one of a WSGI app does over pyqwest.testing.
        if self._call.upload is not None and self._call.upload.failure is not None:
            raise self._call.upload.failure
        self._ended = not self._closed
        return b""

    def check(self) -> None:
        self._call.check()

    def interrupt(self) -> None:
        self._call.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._call.finish()
        self._response.close()


class _AsyncUpload:
    """A request body in parts, which remembers what the caller's iterator raised."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.failure: BaseException | None = None
        self.finished = False

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts:
                yield part
            self.finished = True
        except GeneratorExit:  # nobody wants any more
            raise
        except BaseException as error:
            # When the call is over pyqwest cancels the task that reads this. Any other cancellation is of something
            # that the iterator has awaited.
            task: Any = asyncio.current_task()
            if not task.cancelling():
                self.failure = error
            raise


class _AsyncResponse(AsyncChunkedResponse):
    """An answer of pyqwest's."""

    __slots__ = ("_chunks", "_closed", "_ended", "_opened", "_response", "_upload", "headers", "status")

    def __init__(self, response: Any, opened: Any, upload: _AsyncUpload | None) -> None:
        self._response = response
        self._opened = opened
        self._upload = upload
        self._chunks: AsyncIterator[Any] = response.content
        self._closed = False
        self._ended = False
        self.status: int = response.status
        self.headers: HeaderView = response.headers

    @property
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    @property
    def trailers(self) -> HeaderView | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        trailers = self._response.trailers if self._ended else None
        return trailers or None

    async def read_chunk(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:  # a frame may be empty
                    return bytes(chunk)
        except _FAILURES as error:
            if self._upload is not None and self._upload.failure is not None:
                reraise(self._upload.failure)
            raise _coded(error, answered=True) from error
        # As in blocking calls, nothing tells whether the answer came before that or has ended because of it.
        if self._upload is not None and self._upload.failure is not None:
            raise self._upload.failure
        self._ended = not self._closed
        return b""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._ended:
            # It is closed by this, and nobody need wait: a task that did would be in the way when the loop ends.
            closing = self._response.__aexit__(None, None, None)
            if isinstance(closing, Coroutine):  # unless its content is an iterator of Python's, as an app in memory has
                closing.close()
                in_background(self._opened.__aexit__(None, None, None))
                return
        finish(self._opened.__aexit__(None, None, None))
