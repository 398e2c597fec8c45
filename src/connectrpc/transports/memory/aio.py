"""The client's half of an exchange, for calls that are awaited. The twin of ``sync``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from connectrpc._core.chain import aclose_messages
from connectrpc.transports._background import kept
from connectrpc.transports._reading import AsyncChunkedResponse
from connectrpc.transports.memory.exchange import GRACE_SECONDS, Exchange, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from multidict import CIMultiDict

    from connectrpc._core.http import HTTPRequest
    from connectrpc.transports.memory.wsgi import WSGIServer

__all__ = ["Response", "send", "stop", "wait"]

T = TypeVar("T")


async def wait(exchange: Exchange, poll: Callable[[], T | Wait]) -> T:
    """What ``poll`` gives, once it gives something. It is called after each change of the exchange."""
    while True:
        with exchange.changed:
            result = poll()
            if not isinstance(result, Wait):
                return result
            waiter = _Waiter()
            exchange.wake(waiter.wake)
        try:
            await waiter.future
        finally:
            exchange.forget(waiter.wake)


class _Waiter:
    """A task that waits, to be woken from any thread."""

    __slots__ = ("_loop", "_thread", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            if threading.get_ident() == self._thread:
                self._end()
            else:
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def send(
    serve: Callable[[Exchange], None], request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None
) -> Response:
    """As ``AsyncTransport.send``.

    Args:
        serve: has the app answer the request.
    """
    exchange = Exchange(request, body)
    upload: asyncio.Task[None] | None = None
    try:
        serve(exchange)
        if body is not None and not isinstance(body, bytes):
            upload = kept(asyncio.ensure_future(_upload(body, exchange)))
        status, headers = await wait(exchange, exchange.take_head)
    except BaseException:
        _finish(exchange, upload)
        raise
    return Response(exchange, upload, status, headers)


async def _upload(parts: AsyncIterator[bytes], exchange: Exchange) -> None:
    try:
        async for part in parts:
            if not await wait(exchange, functools.partial(exchange.send_part, part)):
                return
        exchange.end_request()
    except BaseException as error:
        # That may be a cancellation of something which the iterator has awaited. One of this task comes when the
        # exchange was left, which changes nothing any more.
        exchange.fail_request(error)
    finally:
        await aclose_messages(parts)


def _finish(exchange: Exchange, upload: asyncio.Task[None] | None) -> None:
    exchange.leave()
    if upload is not None and not upload.done():
        with contextlib.suppress(RuntimeError):  # its loop is closed
            upload.cancel()


class Response(AsyncChunkedResponse):
    """An answer whose head is there; see ``AsyncResponse``."""

    __slots__ = ("_ended", "_exchange", "_upload", "headers", "status")

    def __init__(
        self, exchange: Exchange, upload: asyncio.Task[None] | None, status: int, headers: CIMultiDict[str]
    ) -> None:
        self._exchange = exchange
        self._upload = upload
        self._ended = False
        self.status = status
        self.headers = headers

    def __del__(self) -> None:
        # Nobody will read on: an app in a thread would wait for ever, and so may the caller's iterator.
        self._exchange.leave()
        if self._upload is not None and not self._upload.done():
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._upload.get_loop().call_soon_threadsafe(self._upload.cancel)

    @property
    def trailers(self) -> CIMultiDict[str] | None:
        """Those of HTTP itself; None before the end of the body, and when there were none."""
        return self._exchange.trailers or None if self._ended else None

    @property
    def uploaded(self) -> bool:
        """Whether all of the request has been sent."""
        return self._exchange.uploaded

    async def read_chunk(self) -> bytes:
        """The next bytes as soon as there are any; none at the end."""
        chunk = await wait(self._exchange, self._exchange.take_chunk)
        self._ended = not chunk
        return chunk

    def close(self) -> None:
        """Leave the app, if its answer was not read to its end. Safe to call again."""
        _finish(self._exchange, self._upload)


async def stop(server: WSGIServer) -> None:
    """``server.stop()``, without blocking the event loop."""
    server.begin_to_stop()
    until = time.monotonic() + GRACE_SECONDS
    while server.running and time.monotonic() < until:  # noqa: ASYNC110  threads tell no event loop of their end
        await asyncio.sleep(0.005)
