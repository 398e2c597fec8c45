"""The client's half of an exchange, for calls that block. The twin of ``aio``."""

from __future__ import annotations

import contextvars
import functools
import threading
from typing import TYPE_CHECKING, TypeVar

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._reading import ChunkedResponse
from connectrpc.transports.memory.exchange import Exchange, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from multidict import CIMultiDict

    from connectrpc._core.http import HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["Response", "send", "wait"]

T = TypeVar("T")

_LONGEST_WAIT = 3600.0  # locks have a limit of their own, which is only weeks on some systems


def wait(exchange: Exchange, poll: Callable[[], T | Wait], remaining: Callable[[], float | None] | None = None) -> T:
    """What ``poll`` gives, once it gives something.

    Args:
        exchange: whose changes are waited for.
        poll: is called after each of them, and when the time is up. It ends the wait then by raising something.
        remaining: gives the seconds that are left.
    """
    with exchange.changed:
        while True:
            result = poll()
            if not isinstance(result, Wait):
                return result
            left = None if remaining is None else remaining()
            exchange.changed.wait(None if left is None else min(left, _LONGEST_WAIT))


def send(
    serve: Callable[[Exchange], None],
    request: HTTPRequest,
    body: bytes | Iterator[bytes] | None,
    deadline: Deadline,
    opening: Deadline,
    cancel: CancelToken | None,
) -> Response:
    """As ``SyncTransport.send``.

    Args:
        serve: has the app answer the request.
    """
    exchange = Exchange(request, body)
    call = _Call(exchange, deadline, opening, cancel)
    try:
        call.check()
        serve(exchange)
        if body is not None and not isinstance(body, bytes):
            upload = functools.partial(contextvars.copy_context().run, _upload, body, exchange)
            # A daemon: nothing can wake the caller's iterator.
            threading.Thread(target=upload, name="connectrpc-memory-upload", daemon=True).start()
        status, headers = call.wait(exchange.take_head)
    except BaseException:
        call.finish()
        raise
    call.opening = deadline
    return Response(call, status, headers)


def _upload(parts: Iterator[bytes], exchange: Exchange) -> None:
    try:
        for part in parts:
            if not wait(exchange, functools.partial(exchange.send_part, part)):
                return
    except BaseException as error:
        exchange.fail_request(error)
    else:
        exchange.end_request()


class _Call:
    """What can end one call: its deadlines, its token, closing its stream."""

    __slots__ = ("_cancel", "_deadline", "_reason", "exchange", "opening")

    def __init__(self, exchange: Exchange, deadline: Deadline, opening: Deadline, cancel: CancelToken | None) -> None:
        self.exchange = exchange
        self._deadline = deadline
        self.opening = opening
        """The deadline of what is being done now: the call's own, once its answer has begun."""
        self._cancel = cancel
        self._reason: tuple[ConnectErrorCode, str] | None = None
        if cancel is not None:
            cancel.on_cancel(self, functools.partial(self.stop, "the call was canceled"))

    def check(self) -> None:
        if self._reason is None:
            if self._deadline.expired():
                self._reason = (ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
            elif self.opening.expired():
                self._reason = (ConnectErrorCode.DEADLINE_EXCEEDED, "the stream was not opened in time")
        if self._reason is not None:
            raise ConnectError(*self._reason)

    def wait(self, poll: Callable[[], T | Wait]) -> T:
        """What ``poll`` gives, unless the call ends before."""

        def checked() -> T | Wait:
            self.check()
            return poll()

        return wait(self.exchange, checked, self.opening.remaining)

    def stop(self, message: str) -> None:
        """End the call, from any thread."""
        with self.exchange.changed:
            if self._reason is None:
                self._reason = (ConnectErrorCode.CANCELED, message)
            self.exchange.leave()

    def finish(self) -> None:
        """The call is over: nothing can stop it any more."""
        self.exchange.leave()
        if self._cancel is not None:
            self._cancel.forget(self)


class Response(ChunkedResponse):
    """An answer whose head is there; see ``SyncResponse``."""

    __slots__ = ("_call", "_ended", "headers", "status")

    def __init__(self, call: _Call, status: int, headers: CIMultiDict[str]) -> None:
        self._call = call
        self._ended = False
        self.status = status
        self.headers = headers

    @property
    def trailers(self) -> CIMultiDict[str] | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        return self._call.exchange.trailers or None if self._ended else None

    def read_chunk(self) -> bytes:
        """The next bytes as soon as there are any; none at the end."""
        chunk = self._call.wait(self._call.exchange.take_chunk)
        self._ended = not chunk
        return chunk

    def check(self) -> None:
        """Raise when the deadline has passed or the call was cancelled."""
        self._call.check()

    def interrupt(self) -> None:
        """Wake a thread that is reading. May be called from any thread."""
        self._call.stop("the stream was closed")

    def close(self) -> None:
        """Leave the app, if its answer was not read to its end. Safe to call again."""
        self._call.finish()
