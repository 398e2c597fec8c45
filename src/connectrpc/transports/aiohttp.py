"""aiohttp as a transport."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from connectrpc._core.http import HTTPRequest

__all__ = ["AiohttpTransport"]


_LARGE = 1024 * 1024


class AiohttpTransport:
    """Sends requests through an ``aiohttp.ClientSession``.

    Args:
        session: the user's, with its connector, TLS, proxies, cookies and limits; or None for one of our own.
    """

    def __init__(self, session: object | None) -> None:
        self._owns_session = session is None
        self._session = cast("aiohttp.ClientSession | None", session)
        self._keeper: AsyncGenerator[None, None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timeout: aiohttp.ClientTimeout | None = None

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _Response:
        session = self._find_session()
        upload = None if body is None or isinstance(body, bytes) else _Upload(body)
        try:
            response = await session.request(
                request.method,
                URL(request.url, encoded=True),
                data=_small(body) if upload is None else upload.parts(),
                headers=CIMultiDict(request.headers),
                # Whatever would be done behind the call's back is switched off.
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                timeout=self._timeout,
            )
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _coded(error, upload, answered=False) from error
        return _Response(response, upload)

    def _find_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._bind(loop)
        assert self._session is not None
        return self._session

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take up work in ``loop``: a session is good for one loop only."""
        if self._owns_session:
            # As few things of its own as can be: no cookies, and as many connections as there are calls.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
            self._keeper = _keep(self._session)
        elif self._loop is not None:
            raise RuntimeError(
                "this client's aiohttp.ClientSession belongs to an event loop that it was used in before: make a "
                "session and a client in each asyncio.run(), or leave http_client out"
            )
        assert self._session is not None
        self._loop = loop
        # A session's default ends any call after five minutes; how long a call may take is said by its deadline. The
        # limits for connecting and between reads are the user's.
        own = self._session.timeout
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=own.connect, sock_connect=own.sock_connect, sock_read=own.sock_read
        )

    async def aclose(self) -> None:
        if self._owns_session and self._session is not None:
            session, self._session = self._session, None
            if self._loop is asyncio.get_running_loop():
                await session.close()


def _keep(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Have the running loop close ``session`` at its end, if nobody has by then.

    A loop that ends closes the asynchronous generators that were begun in it, and this is one. Sockets that were left
    to a loop which is over could not be closed any more.
    """

    async def keeper() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await session.close()

    begun = keeper()
    with contextlib.suppress(StopIteration):
        begun.__anext__().send(None)
    return begun


def _small(body: Any) -> Any:
    # aiohttp warns of larger ones, since it would hand them to the socket whole.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE else body


def _coded(error: Exception, upload: _Upload | None, *, answered: bool) -> Exception:
    """What a failure of aiohttp's is to the caller, before or after the head of the answer has come."""
    if upload is not None and upload.failure is not None:
        return upload.failure
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "connecting to the server took too long")
    if isinstance(error, asyncio.TimeoutError):
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own read timeout has passed")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "no connection to the server can be made")
    if isinstance(error, aiohttp.ServerDisconnectedError) or (not answered and isinstance(error, OSError)):
        # Not sent again: the server may have closed an idle connection just as the request went out, and then it was
        # never processed, but nothing here can tell that from a server which died over it.
        return ConnectError(
            ConnectErrorCode.UNAVAILABLE,
            "the server closed the connection without an answer, most likely before it saw the request",
        )
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"the connection to the server failed: {error}")


class _Upload:
    """A request body in parts, which remembers what the caller's iterator raised."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.failure: Exception | None = None
        self.finished = False
        self.response: aiohttp.ClientResponse | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        # aiohttp sends the head with the first part. Without this the server would not see the call before the first
        # message, which may depend on the server's own.
        yield b""
        try:
            async for part in self._parts:
                yield part
            self.finished = True
        except Exception as error:
            self.failure = error
            if self.response is not None:
                self.response.close()  # aiohttp tells nobody: this wakes whoever reads the answer
            raise


class _Response:
    """An answer of aiohttp's."""

    __slots__ = ("_response", "_upload", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, upload: _Upload | None) -> None:
        self._response = response
        self._upload = upload
        if upload is not None:
            upload.response = response
        self.status = response.status
        self.headers = cast("Any", response.headers)

    @property
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    async def read(self, limit: int | None) -> bytes:
        response = self._response
        try:
            if limit is None or (response.content_length is not None and response.content_length <= limit):
                return await response.read()
            parts, received = [], 0
            while received <= limit and (chunk := await response.content.readany()):
                parts.append(chunk)
                received += len(chunk)
            return b"".join(parts)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _coded(error, self._upload, answered=True) from error
        finally:
            response.close()

    async def read_chunk(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _coded(error, self._upload, answered=True) from error
        if not chunk and self._upload is not None and self._upload.failure is not None:
            raise self._upload.failure
        return chunk

    def close(self) -> None:
        self._response.close()
