"""aiohttp as a transport."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, cast

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from connectrpc._core.chain import aclose_messages
from connectrpc._core.pieces import keep
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._background import in_background
from connectrpc.transports._failures import (
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    not_proxied,
    other_fingerprint,
    package_of,
    reraise,
    tls_failure,
    unresolved,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.pieces import Pieces

__all__ = ["AiohttpTransport"]


_LARGE = 64 * 1024
"""From here on, part of a body may still be waiting to be sent when its call is over."""


class AiohttpTransport:
    """Sends requests through an ``aiohttp.ClientSession``.

    Args:
        session: the user's, with its connector, TLS, proxies, cookies and limits; or None for one of our own.
        connect_timeout: how long connecting may take, in seconds; None for the session's own limit. Where the session's
            connector has a limit for connections, this is for each address, and not for proxies and names.

    What aiohttp does behind a call's back is switched off, with one exception that cannot be: a GET whose connection
    is closed before the answer comes is sent once more.
    """

    def __init__(self, session: object | None, *, connect_timeout: float | None = None) -> None:
        self._connect_timeout = connect_timeout
        self._session = cast("aiohttp.ClientSession | None", session)
        self._bound: dict[asyncio.AbstractEventLoop, _Bound] = {}
        """What it has in each event loop. There may be one in every thread, as where frameworks run async code from
        threads of their own."""

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> _Response:
        bound = self._find()
        upload: _Upload | None = None
        large: _Body | None = None
        if body is not None and not isinstance(body, bytes):
            upload = _Upload(body)
            large = _StreamBody(upload)
        elif body is not None and len(body) > _LARGE:
            large = _BytesBody(io.BytesIO(body))
        if large is not None:
            bound.bodies.add(large)
        try:
            response = await bound.session.request(
                request.method,
                URL(request.url, encoded=request.url.isascii()),  # what is not, has to be encoded
                data=body if large is None else large,
                headers=CIMultiDict(request.headers),
                # Whatever would be done behind the call's back is switched off.
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                timeout=bound.timeout,
            )
        except BaseException as error:
            if large is not None:
                large.give_up()
            if isinstance(error, _FAILURES) or (isinstance(error, UnicodeError) and package_of(error) in _OF_NAMES):
                if self._session is None and self._bound.get(bound.loop) is not bound:
                    raise _closed() from error
                _fail(error, upload, answered=False)
            raise
        given = _Response(response, upload, large, bound.loop)
        if upload is not None and upload.failure is not None:  # meanwhile, when there was nobody to tell
            given.close()
            reraise(upload.failure)
        if response.connection is not None:  # its body is still to come
            bound.responses.add(given)
        return given

    def _find(self) -> _Bound:
        loop = asyncio.get_running_loop()
        return self._bound.get(loop) or self._bind(loop)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> _Bound:
        """Take up work in ``loop``: a session is good for one loop only."""
        session, keeper = self._session, None
        if session is None:
            for other in list(self._bound):
                if other.is_closed():
                    self._bound.pop(other, None)
            # As few things of its own as can be: no cookies, and as many connections as there are calls.
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
            keeper = _keep(session)
        elif self._bound or getattr(session, "_loop", loop) is not loop:
            raise RuntimeError(
                "this client's aiohttp.ClientSession belongs to another event loop: make a session and a client in "
                "each asyncio.run(), or leave http_client out"
            )
        # A session's default ends any call after five minutes; how long a call may take is said by its deadline. The
        # limits for connecting and between reads are the user's.
        own = session.timeout
        connect, sock_connect = own.connect, own.sock_connect
        if self._connect_timeout is not None:
            sock_connect = self._connect_timeout  # for each address
            connector = session.connector
            # The other counts all of it, a proxy and the resolution of names as well; but also waiting for the end of
            # other calls, where there is a limit for connections.
            if connector is not None and not connector.limit and not connector.limit_per_host:
                connect = self._connect_timeout
        timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=sock_connect, sock_read=own.sock_read)
        bound = self._bound[loop] = _Bound(loop, session, keeper, timeout)
        return bound

    async def aclose(self) -> None:
        if self._session is None:
            bounds, self._bound = self._bound, {}
            bound = bounds.pop(asyncio.get_running_loop(), None)
            for other in bounds.values():
                other.keeper = None  # which closes the session in its own loop, since nobody holds it
            if bound is not None:
                # Closing the session would wait until the server has taken the bodies, and wakes nobody who reads.
                for body in list(bound.bodies):
                    body.give_up()
                for response in list(bound.responses):
                    response.abandon()
                await bound.session.close()


class _Bound:
    """What a transport has in one event loop.

    Args:
        loop: the loop.
        session: what the calls go through.
        keeper: closes the session at the loop's end or when it is collected; None where it is not ours to close.
        timeout: the session's limits, as calls have them.

    Attributes:
        bodies: of requests that may be under way.
        responses: that may be under way.
    """

    __slots__ = ("bodies", "keeper", "loop", "responses", "session", "timeout")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session: aiohttp.ClientSession,
        keeper: AsyncGenerator[None, None] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self.loop = loop
        self.session = session
        self.keeper = keeper
        self.timeout = timeout
        self.bodies: weakref.WeakSet[_Body] = weakref.WeakSet()
        self.responses: weakref.WeakSet[_Response] = weakref.WeakSet()


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


class _Body(aiohttp.payload.Payload):
    """A body that knows which connection it goes to."""

    _transport: asyncio.Transport | None = None
    _written = False

    async def write(self, writer: Any) -> None:  # until aiohttp 3.11
        self._transport = writer.transport
        await super().write(writer)  # type: ignore[safe-super]  # a payload stands behind it
        self._written = True

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        self._transport = writer.transport
        await super().write_with_length(writer, content_length)
        self._written = True

    def give_up(self, response: aiohttp.ClientResponse | None = None) -> None:
        """Drop the connection if something waits to be sent: closing it would wait for the server to take that."""
        if self._written and response is not None and response.connection is None:
            return  # it may serve another call by now
        if self._transport is not None:
            with contextlib.suppress(AttributeError):  # Python 3.10's, of a TLS connection that is lost already
                if self._transport.get_write_buffer_size():
                    self._transport.abort()


class _StreamBody(_Body, aiohttp.payload.AsyncIterablePayload):
    """A body whose parts are taken one after the other."""

    def __init__(self, upload: _Upload) -> None:
        self._parts = upload.parts()
        super().__init__(self._parts)

    async def write(self, writer: Any) -> None:
        await self._closing_parts(super().write(writer))

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        await self._closing_parts(super().write_with_length(writer, content_length))

    async def _closing_parts(self, writing: Coroutine[Any, Any, None]) -> None:
        """Close the parts where aiohttp leaves off in the midst of them: the caller may hold what they were made from,
        or the call's outcome.

        In a task of its own, as aiohttp may cancel this one more than once. This one waits for it, so that an event
        loop which ends waits as well.
        """
        try:
            await writing
        except (Exception, asyncio.CancelledError):
            closing = in_background(self._parts.aclose())
            while not closing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([closing])
            raise


class _BytesBody(_Body, aiohttp.payload.BytesIOPayload):
    pass


_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


_OF_NAMES = ("asyncio", "encodings", "idna", "socket", "yarl")
"""The packages whose UnicodeError says that a host cannot be the name of one. A tracer of the session's may raise such
errors too."""


def _closed() -> ConnectError:
    """What it is to who calls that the client was closed by somebody else meanwhile."""
    return ConnectError(ConnectErrorCode.CANCELED, "the client was closed")


def _fail(error: Exception, upload: _Upload | None, *, answered: bool) -> NoReturn:
    """Raise what a failure of aiohttp's is to the caller, before or after the head of the answer has come."""
    if upload is not None and upload.failure is not None:
        reraise(upload.failure)  # just as it is: it has nothing to do with aiohttp
    raise _coded(error, answered=answered) from error


def _coded(error: Exception, *, answered: bool) -> ConnectError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return connected_too_late()
    if isinstance(error, asyncio.TimeoutError):
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own read timeout has passed")
    if isinstance(error, aiohttp.ClientConnectorDNSError | UnicodeError):  # the other, for what cannot be a name at all
        return unresolved()
    if isinstance(error, aiohttp.ClientConnectorError):
        return no_connection(error)
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return other_fingerprint()
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return not_proxied(error.status)
    failure = tls_failure(error)
    if failure is not None:
        return failure
    if isinstance(error, aiohttp.ServerDisconnectedError) or (not answered and isinstance(error, OSError)):
        return closed_unanswered()
    return connection_failed(_reason(error))


def _reason(error: Exception) -> object:
    """What aiohttp tells of a connection that failed, unless it may name hosts, URLs, proxies and their passwords."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return error
    if isinstance(error, aiohttp.ClientResponseError):  # no HTTP: after the colon there is what came
        return error.message.partition(":")[0]
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno is not None else ""


class _UploadFailedError(Exception):
    """What aiohttp sees of an exception of the caller's iterator, which it would take for one of its own."""


class _Upload:
    """A request body in parts, which remembers what the caller's iterator raised."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.failure: BaseException | None = None
        self.finished = False
        self.response: aiohttp.ClientResponse | None = None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        # aiohttp sends the head with the first part. Without this the server would not see the call before the first
        # message, which may depend on the server's own.
        yield b""
        try:
            while True:
                try:
                    part = await self._parts.__anext__()
                except StopAsyncIteration:
                    break
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt | SystemExit) or _is_given_up(error):
                        raise
                    self.failure = error
                    if self.response is not None:
                        self.response.close()  # aiohttp tells nobody: this wakes whoever reads the answer
                    raise _UploadFailedError from error
                yield part
            self.finished = True
        finally:
            await aclose_messages(self._parts)


def _is_given_up(error: BaseException) -> bool:
    """Whether an iterator of the caller's has raised ``error`` because aiohttp cancels this task: the call is over."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0  # Python 3.10 does not tell who cancels


def _end_with_connection(response: aiohttp.ClientResponse) -> Callable[[], None]:
    """Have the answer's body fail when its connection is lost: not every end of one reaches who reads the body (a chunk
    that is broken, after which the server hangs up, does not). The function that is given takes that back."""
    connection, content = response.connection, response.content
    closed = getattr(connection.protocol, "closed", None) if connection is not None else None
    if closed is None:
        return _nothing

    def fail(_: asyncio.Future[None]) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("it ended in the middle of the answer"))

    # Once per connection, which serves many calls: an exception of the future that nobody takes would be logged.
    closed.remove_done_callback(_take)
    closed.add_done_callback(_take)
    closed.add_done_callback(fail)
    return lambda: closed.remove_done_callback(fail)


def _take(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()


def _nothing() -> None:
    pass


class _Response:
    """An answer of aiohttp's."""

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_large",
        "_loop",
        "_response",
        "_unwatch",
        "_upload",
        "headers",
        "status",
    )

    trailers = None  # the library does not tell

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        upload: _Upload | None,
        large: _Body | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._abandoned = False
        self._large = large
        self._loop = loop
        self._response = response
        self._upload = upload
        if upload is not None:
            upload.response = response
        self.status = response.status
        self.headers = cast("Any", response.headers)
        self._unwatch = _end_with_connection(response)

    def __del__(self) -> None:
        # Of a stream that was left lying about. aiohttp does not notice, as its connection refers to its answer.
        if self._response.connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self.close)

    @property
    def uploaded(self) -> bool:
        return self._upload is None or self._upload.finished

    async def read(self, limit: int | None) -> bytes:
        response = self._response
        try:
            if limit is None or (response.content_length is not None and response.content_length <= limit):
                return await response.read()
            parts: Pieces = []
            received = 0
            while received <= limit and (chunk := await response.content.readany()):
                keep(parts, chunk)
                received += len(chunk)
            return b"".join(parts)
        except _FAILURES as error:
            self._fail(error)
        finally:
            self.close()

    async def read_chunk(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except _FAILURES as error:
            self._fail(error)
        if not chunk and self._upload is not None and self._upload.failure is not None:
            reraise(self._upload.failure)
        return chunk

    def _fail(self, error: Exception) -> NoReturn:
        if self._abandoned:
            raise _closed() from error
        _fail(error, self._upload, answered=True)

    def abandon(self) -> None:
        """Fail in the task that reads, if any: the client is closed."""
        self._abandoned = True
        self._response.close()

    def close(self) -> None:
        if self._large is not None:
            self._large.give_up(self._response)
        self._unwatch()
        self._response.close()
