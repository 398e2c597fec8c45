"""The client's half of an exchange, for calls that block. The twin of ``aio``."""

from __future__ import annotations

import contextvars
import functools
import threading
from typing import TYPE_CHECKING, TypeVar

from connectrpc.transports._ending import LONGEST_WAIT, Ending
from connectrpc.transports._reading import ChunkedResponse
from connectrpc.transports._waiting import end_parts
from connectrpc.transports.memory.exchange import Exchange, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from multidict import CIMultiDict

    from connectrpc._core.http import HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline
    from connectrpc.errors import ConnectErrorCode

__all__ = ["Response", "send", "wait"]

T = TypeVar("T")


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
            exchange.changed.wait(None if left is None else min(left, LONGEST_WAIT))


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
            upload = functools.partial(_upload, contextvars.copy_context(), body, exchange)
            # A daemon: nothing can wake the caller's iterator.
            threading.Thread(target=upload, name="connectrpc-memory-upload", daemon=True).start()
        status, headers = call.wait(exchange.take_head)
    except BaseException:
        call.finish()
        raise
    call.opening = deadline
    return Response(call, status, headers)


def _upload(context: contextvars.Context, parts: Iterator[bytes], exchange: Exchange) -> None:
    context.run(_send_parts, parts, exchange)
    end_parts(context, parts)


def _send_parts(parts: Iterator[bytes], exchange: Exchange) -> None:
    try:
        for part in parts:
            if not wait(exchange, functools.partial(exchange.send_part, part)):
                return
    except BaseException as error:
        exchange.fail_request(error)
    else:
        exchange.end_request()


class _Call(Ending):
    """What can end one call, by leaving its exchange."""

    __slots__ = ("exchange",)

    def __init__(self, exchange: Exchange, deadline: Deadline, opening: Deadline, cancel: CancelToken | None) -> None:
        super().__init__(deadline, opening, cancel)
        self.exchange = exchange
        self.heed_token()

    def wait(self, poll: Callable[[], T | Wait]) -> T:
        """What ``poll`` gives, unless the call ends before."""

        def checked() -> T | Wait:
            self.check()
            return poll()

        return wait(self.exchange, checked, self.opening.remaining)

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        with self.exchange.changed:
            if self._reason is None:
                self._reason = reason
            self.exchange.leave()

    def finish(self) -> None:
        self.exchange.leave()
        super().finish()


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
        self._call.interrupt()

    def close(self) -> None:
        """Leave the app, if its answer was not read to its end. Safe to call again."""
        self._call.finish()
