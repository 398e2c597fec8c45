"""What ASGI gives of a request: its head, its body, and the news that the client has left."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from connectrpc._aio import timeout
from connectrpc._core.http import BODILESS, RequestHead, WholeResponse, address_of
from connectrpc._core.metadata import received
from connectrpc._core.negotiate import plain_response
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server.handlers import DRAIN_IDLE_SECONDS, DRAIN_MAX_BYTES, DRAIN_MAX_SECONDS, logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from multidict import CIMultiDict

    from connectrpc._core.call import StreamServerCall
    from connectrpc.server.asgi_guard import Guard

__all__ = [
    "LEFT",
    "ClientGoneError",
    "Event",
    "Head",
    "Receive",
    "RequestBody",
    "Scope",
    "Send",
    "body_of",
    "can_send_trailers",
    "path_of",
]

# As frameworks have them too, so that type checkers take an app for one of theirs.
Event = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_READ_AHEAD_MAX_BYTES = 64 * 1024
# Some servers read nothing of a whole HTTP/2 connection while one of its streams is not taken. A handler that has not
# begun to read may wait for a turn, for a thread's say, that only comes when other calls of the connection go on. So it
# has room for as much as a call of one message may hold while its handler waits.
_UNBEGUN_MAX_BYTES = 4 * 1024 * 1024

LEFT: Event = {"type": "http.disconnect"}
"""The news that the client has left."""

_NOTHING: Event = {"type": "http.request"}
_EVENT_BYTES = 256  # what an event takes beside its body

# Most of what is waited for takes a few milliseconds. A timer that is taken back costs a tenth of a task that is.
_WATCH_AFTER_SECONDS = 0.01

# On HTTP/2 an answer may overtake its request, whose rest not all servers then take: with its window shut it would stay
# in the client, which may count it against all calls of the connection. What is on its way is read. But a client with a
# stream of messages goes on until it has the answer, or waits for that.
_OPEN_DRAIN_MAX_SECONDS = 0.2
_OPEN_DRAIN_IDLE_SECONDS = 0.1


class ClientGoneError(ConnectError):
    """The client has closed the connection, or its part of it."""

    def __init__(self) -> None:
        super().__init__(ConnectErrorCode.CANCELED, "the client has left")


def path_of(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path: str = scope["path"]
    given = scope.get("root_path")
    if given:
        # Servers differ in whether `path` holds `root_path`, and some put them together as they are, slashes and all.
        for root in (given, given.rstrip("/")):
            if path.startswith(root) and path[len(root) : len(root) + 1] == "/":
                return path[len(root) :]
    return path


class Head(RequestHead):
    """The head of a request, from its scope."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.can_send_trailers = can_send_trailers(scope)
        self.http_method = scope["method"]
        self.path = path_of(scope)
        self.query = scope["query_string"].decode("latin-1")
        fields: dict[bytes, str | None] = dict.fromkeys(_FIELDS)
        for name, value in scope["headers"]:
            if name in fields:
                text, before = _text(value), fields[name]
                # RFC 9110 section 5.3: what is repeated is one list.
                fields[name] = text if before is None else f"{before}, {text}"
        self.content_type = fields[b"content-type"]
        self.content_encoding = fields[b"content-encoding"]
        self.accept_encoding = fields[b"accept-encoding"]
        self.connect_protocol_version = fields[b"connect-protocol-version"]
        self.connect_timeout_ms = fields[b"connect-timeout-ms"]
        self.connect_content_encoding = fields[b"connect-content-encoding"]
        self.connect_accept_encoding = fields[b"connect-accept-encoding"]
        self.grpc_timeout = fields[b"grpc-timeout"]
        self.grpc_encoding = fields[b"grpc-encoding"]
        self.grpc_accept_encoding = fields[b"grpc-accept-encoding"]

    def read_headers(self) -> CIMultiDict[str]:
        return received((name.decode("latin-1"), _text(value)) for name, value in self._scope["headers"])

    def peer_address(self) -> str:
        client = self._scope.get("client")
        return address_of(client[0], client[1]) if client else ""


def can_send_trailers(scope: Scope) -> bool:
    """Whether an answer can have trailers."""
    # Behind HTTP/1.1 they would come to nothing: no client of gRPC waits for them there, and proxies drop them.
    return "http.response.trailers" in (scope.get("extensions") or ()) and not _is_http_1(scope)


def _is_http_1(scope: Scope) -> bool:
    version: str = scope.get("http_version", "1.1")
    return version.startswith("1")


def _text(value: bytes) -> str:
    # RFC 9110 section 5.5: white space around it is no part of a value. Not all servers take it away.
    return value.strip(b" \t").decode("latin-1")


_FIELDS = (
    b"content-type",
    b"content-encoding",
    b"accept-encoding",
    b"connect-protocol-version",
    b"connect-timeout-ms",
    b"connect-content-encoding",
    b"connect-accept-encoding",
    b"grpc-timeout",
    b"grpc-encoding",
    b"grpc-accept-encoding",
)


def body_of(scope: Scope, receive: Receive, received: Event | None = None) -> RequestBody | WholeResponse:
    """The body of a request, or the answer to one whose body cannot be read.

    Args:
        scope: the request's.
        receive: gives its events.
        received: an event that was received already.
    """
    length, bodiless = None, scope["method"] in BODILESS
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value.strip(b" \t")
            if not length.isdigit():
                return plain_response(scope["method"], 400, "Bad Request")
        elif name == b"transfer-encoding":  # RFC 9112 section 6.3: there is a body, whatever the method
            bodiless = False
    # Some servers' receive() never returns when the end came with the head.
    ended = bodiless if length is None else not length.strip(b"0")
    return RequestBody(receive, ended=ended, http_1=_is_http_1(scope), received=received)


def _size(event: Event) -> int:
    return _EVENT_BYTES + len(event.get("body", b""))


class RequestBody:
    """The body of a request, and the news that the client has left.

    While something else is waited for, a task reads ahead, within bounds: that is how ASGI tells that a client leaves.
    It ends as soon as somebody waits for what it reads: who then goes on receiving without it is spared a task's turn.

    Args:
        receive: gives the request's events.
        ended: whether there is none.
        http_1: whether the connection serves one request after the other.
        received: an event that was received already.

    Attributes:
        ended: whether all of it has been given out.
        gone: whether the client has left.
        http_1: as given.
        open: whether the client may wait for an answer before it ends this; assumed until the method is known.
    """

    __slots__ = (
        "_ahead",
        "_ahead_bytes",
        "_ahead_max_bytes",
        "_changed",
        "_on_leave",
        "_reader",
        "_receive",
        "_receiving",
        "_timer",
        "_wanted",
        "ended",
        "gone",
        "http_1",
        "open",
    )

    def __init__(self, receive: Receive, *, ended: bool, http_1: bool = True, received: Event | None = None) -> None:
        self._receive = receive
        self._receiving = False
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wanted = False  # somebody waits for what the task reads
        self._changed: asyncio.Event | None = None
        self._ahead: collections.deque[Event] | None = None
        self._ahead_bytes = 0
        self._ahead_max_bytes = _READ_AHEAD_MAX_BYTES
        self._on_leave: Callable[[], None] | None = None
        self.gone = False
        self.ended = ended
        self.http_1 = http_1
        self.open = True
        if received is not None:
            if received["type"] == "http.disconnect":
                self._leave()
            self._ahead = collections.deque([received])
            self._ahead_bytes = _size(received)

    def may_wait(self, read_max_bytes: int | None) -> None:
        """Have more room until somebody begins to read, which may take its time.

        Args:
            read_max_bytes: the largest message that is taken, or None.
        """
        if not self.http_1:
            max_bytes = _UNBEGUN_MAX_BYTES if read_max_bytes is None else min(read_max_bytes, _UNBEGUN_MAX_BYTES)
            self._ahead_max_bytes = max(max_bytes, _READ_AHEAD_MAX_BYTES)

    async def read(self) -> bytes:
        """The next bytes as soon as there are any; none at the end.

        Raises:
            ClientGoneError: the client left before the end.
        """
        self._ahead_max_bytes = _READ_AHEAD_MAX_BYTES
        while not self.ended:
            event = await self._next()
            if self.gone:
                raise ClientGoneError
            self.ended = not event.get("more_body", False)
            chunk: bytes = event.get("body", b"")
            if chunk:
                return chunk
        return b""

    async def messages(self, call: StreamServerCall, guard: Guard) -> AsyncGenerator[Any, None]:
        """The messages of a stream, in place of ``read``.

        Raises:
            ConnectError: the deadline has passed, or what the client has sent is no message.
            ClientGoneError: the client left before the end.
        """
        self._ahead_max_bytes = _READ_AHEAD_MAX_BYTES
        timed = call.deadline.expires_at is not None
        waits = guard.waits
        while not self.ended:
            # As in `read`, which would cost each message more than all that this does: so would any other coroutine.
            if self._ahead or self._reader is not None or self.gone:
                event = await self._next()
            else:
                self._receiving = True
                try:
                    event = await self._receive()
                except Exception:
                    event = LEFT
                finally:
                    self._receiving = False
                    if self._timer is None:
                        self._watch_soon()
                if event["type"] == "http.disconnect":
                    self._leave()
            if self.gone:
                raise ClientGoneError
            self.ended = not event.get("more_body", False)
            chunk: bytes = event.get("body", b"")
            if not chunk:
                continue
            for message in call.feed(chunk):
                if guard.waits != waits:
                    waits = guard.waits
                elif guard.turn_is_over():
                    await asyncio.sleep(0)
                if timed:
                    call.deadline.check()
                yield message
        call.feed_end()

    async def _next(self) -> Event:
        while not self._ahead and self._reader is not None and not self.gone:
            self._wanted = True
            try:
                await self._change()
            finally:
                self._wanted = False
        if not self._ahead:
            self._receiving = True
            try:
                return LEFT if self.gone else await self._event()
            finally:
                self._receiving = False
                self._watch_soon()
        event = self._ahead.popleft()
        self._ahead_bytes -= _size(event)
        if self._changed is not None:
            self._changed.set()
        return event

    async def _event(self, *, complete: bool = False) -> Event:
        try:
            event = await self._receive()
        except Exception as error:  # servers differ in how they say that a client has left
            # But behind the end of a request one server gives empty events, of which Starlette's BaseHTTPMiddleware
            # complains to what it stands around. The news can still come.
            event = LEFT if not complete or isinstance(error, OSError) else _NOTHING
        if event["type"] == "http.disconnect":
            self._leave()
        return event

    def _leave(self) -> None:
        """Take note that the client has left."""
        self.gone = True
        if self._on_leave is not None:
            self._on_leave()

    async def _change(self) -> None:
        assert self._changed is not None
        self._changed.clear()
        await self._changed.wait()

    def watch(self, on_leave: Callable[[], None]) -> None:
        """Have ``on_leave`` called when the client leaves, or has left. While nobody else receives events, a task soon
        does."""
        self._on_leave = on_leave
        if self.gone:
            on_leave()
        else:
            self._watch_soon()

    def _watch_soon(self) -> None:
        if self._timer is None and self._on_leave is not None:
            self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, self._watch)

    def _watch(self) -> None:
        self._timer = None
        if self._reader is None and not self._receiving and not self.gone:
            self._ahead = self._ahead or collections.deque()
            self._changed = asyncio.Event()
            self._reader = asyncio.ensure_future(self._read_ahead(self._ahead, self._changed))

    def stop_watching(self) -> None:
        """Call ``on_leave`` no more. What was read ahead is still given out."""
        self._on_leave = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ended:
            self.close()

    def close(self) -> None:
        """Receive no more."""
        # Not while there is something to come: some servers lose an event when who waits for it is cancelled.
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read_ahead(self, ahead: collections.deque[Event], changed: asyncio.Event) -> None:
        complete = self.ended
        while True:
            event = await self._event(complete=complete)
            if self.gone:
                changed.set()
                return
            if not complete:
                complete = not event.get("more_body", False)
                ahead.append(event)
                self._ahead_bytes += _size(event)
                changed.set()
                if self._wanted and not complete:
                    self._reader = None
                    self._watch_soon()
                    return
                while self._ahead_bytes > self._ahead_max_bytes:
                    await self._change()
            if complete:
                # All that can come is that the client leaves. Most calls are over before, and one server logs an error
                # for who stops waiting; another gives empty events for ever, which must not take the loop for itself.
                await asyncio.sleep(0.05)

    async def drain(self) -> bool:
        """Read what is left, within bounds, and throw it away. Whether the connection can be used further."""
        if self.ended:
            return True
        drained, longest, idle = 0, DRAIN_MAX_SECONDS, DRAIN_IDLE_SECONDS
        if self.open and not self.http_1:
            longest, idle = _OPEN_DRAIN_MAX_SECONDS, _OPEN_DRAIN_IDLE_SECONDS
        until = time.monotonic() + longest
        try:
            while drained <= DRAIN_MAX_BYTES and time.monotonic() < until:
                async with timeout(idle):
                    chunk = await self.read()
                if not chunk:
                    return True
                drained += len(chunk)
        except asyncio.TimeoutError:
            pass
        if self.http_1:  # where the next request comes behind this one
            logger.info("gave up reading a request that had its answer already")
            return False
        return True
