"""Asynchronous calls: what keeps one that is cancelled from spoiling a connection that others share."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, cast

import httpx

from connectrpc._core.chain import aclose_messages
from connectrpc.transports._background import finish, in_background
from connectrpc.transports._failures import reraise
from connectrpc.transports._reading import AsyncChunkedResponse
from connectrpc.transports.httpx._http2 import Stream
from connectrpc.transports.httpx._httpx import (
    FAILURES,
    Headers,
    Transport,
    UploadFailedError,
    coded,
    is_failure,
    sent_twice,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from connectrpc._core.http import HeaderView, HTTPRequest

__all__ = ["AsyncHttpxTransport"]

_PREFACE = b"PRI * HTTP/2.0"


def _shield(stream: Any) -> None:
    """Have what is written to an HTTP/2 connection go out whole, also when the call that writes is cancelled.

    The connection is lost to all of its calls otherwise: to TLS a record is missing, or to the server a frame.
    """
    if stream is None or getattr(stream, "connectrpc_shielded", False):
        return
    itself = weakref.ref(stream)
    kind = type(stream)
    multiplexed: bool | None = None
    last: asyncio.Task[None] | None = None

    async def write_after(before: asyncio.Task[None] | None, buffer: bytes, timeout: float | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        await kind.write(itself(), buffer, timeout)

    async def write(buffer: bytes, timeout: float | None = None) -> None:
        nonlocal multiplexed, last
        if not buffer:
            return
        if multiplexed is None:  # the first that is written tells
            multiplexed = buffer.startswith(_PREFACE)
        if not multiplexed:
            await kind.write(itself(), buffer, timeout)
            return
        last = asyncio.get_running_loop().create_task(write_after(last, buffer, timeout))
        last.add_done_callback(_take_failure)
        await asyncio.shield(last)

    with contextlib.suppress(AttributeError):  # a stream of the user's own making
        stream.connectrpc_shielded = True
        stream.write = write


def _take_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # nobody may be left to see it; the next write fails as well


class AsyncHttpxTransport(Transport):
    """Sends requests through an ``httpx.AsyncClient``.

    Args:
        client: the user's, with its transports, TLS, proxies, cookies, hooks and authentication.
        connect_timeout: how long connecting may take, in seconds; None for the client's own limit.
    """

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _AsyncResponse:
        self._check_process()
        if self._home.loop is not None and self._home.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this client's httpx.AsyncClient has connections of an event loop that it was used in before: make an "
                "httpx.AsyncClient and a client in each asyncio.run(), or leave http_client out"
            )
        upload = None if body is None or isinstance(body, bytes) else _AsyncUpload(body)
        content = body if upload is None else upload.content
        stream: Stream | None = None
        stale = answered = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal answered, stale, stream
            if event.endswith("send_request_headers.started"):
                self._home.loop = asyncio.get_running_loop()
                if event.startswith("http2"):
                    stream = Stream.find(self._client, request.url, info)
                    if stream is not None:
                        _shield(stream.network)
                        stream.share()
                        if upload is not None:
                            upload.stream = stream
            elif event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
                _shield(info["return_value"])
            elif event.endswith("send_connection_init.failed"):
                # The call that was to begin the connection was cancelled, which has closed it, but httpcore goes on
                # with the next call that waits for it. Nothing of that was sent.
                stale = type(info["exception"]).__module__ == "h2.exceptions"
            elif event.endswith("receive_response_headers.complete"):
                answered = True

        async def begin() -> httpx.Response:
            native = self._request(request, content, self._timeouts(None), trace)
            return cast("httpx.Response", await self._client.send(native, stream=True, follow_redirects=False))

        try:
            try:
                response = await begin()
            except Exception:
                if not stale:
                    raise
                response = await begin()
        except BaseException as error:
            if upload is not None:
                in_background(upload.content.aclose())
            if stream is not None and stream.reset():
                in_background(stream.aflush())
            if isinstance(error, UploadFailedError):
                reraise(error.failure)
            if isinstance(error, httpx.StreamConsumed) and upload is not None:
                raise sent_twice(answered=answered) from error
            if is_failure(error):
                raise coded(error, answered=False) from error
            raise
        return _AsyncResponse(response, upload, stream)

    async def aclose(self) -> None:
        pass  # the user's client stays open


class _AsyncUpload:
    """A request body in parts."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.finished = False
        self.stream: Stream | None = None
        self.content: Any = self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts:
                yield part
                if self.stream is not None and self.stream.ended:
                    return
            self.finished = True
        except Exception as error:
            raise UploadFailedError(error) from error
        finally:
            await aclose_messages(self._parts)


class _AsyncResponse(AsyncChunkedResponse):
    """An answer of httpx's."""

    __slots__ = ("_chunks", "_closed", "_loop", "_reading", "_response", "_stream", "_upload", "headers", "status")

    trailers = None  # the library does not tell

    def __init__(self, response: httpx.Response, upload: _AsyncUpload | None, stream: Stream | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._response = response
        self._upload = upload
        self._stream = stream
        self._closed = False
        # A transport or a hook of the user's may have read it. httpx has decoded it then.
        read = response.is_stream_consumed
        self._chunks: AsyncIterator[bytes] = _whole(response.content) if read else response.aiter_raw()
        self.status = response.status_code
        self.headers: HeaderView = Headers(response.headers, decoded=read)

    @property
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    def __del__(self) -> None:
        # Of a stream that was left lying about: its connection would be lost to its pool.
        if not self._closed and not self._response.is_closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self.close)

    async def read_chunk(self) -> bytes:
        self._reading = True
        try:
            async for chunk in self._chunks:
                if chunk:  # a frame may be empty
                    return chunk
        except FAILURES as error:
            raise coded(error, answered=True) from error
        finally:
            self._reading = False
        return b""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._response.is_closed:
            return
        if self._stream is not None:
            in_background(self._end(self._stream, self._stream.reset(wake=self._reading)))
        elif "network_stream" in self._response.extensions and asyncio.current_task() is not None:
            finish(self._response.aclose())
        else:
            in_background(self._response.aclose())

    async def _end(self, stream: Stream, unsent: bool) -> None:
        try:
            if unsent:
                await stream.aflush()
        finally:
            if not self._reading:  # else who reads is woken by that, and closes
                await self._response.aclose()


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
