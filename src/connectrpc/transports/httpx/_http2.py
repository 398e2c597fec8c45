"""The streams of HTTP/2 connections, which calls share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import weakref
from typing import TYPE_CHECKING, Any

import httpx

from connectrpc.transports._waiting import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["H2_FAILURES", "Stream", "pool_of"]

try:
    from h2.events import DataReceived, StreamEnded, StreamReset
    from h2.exceptions import H2Error
except ImportError:  # httpx has HTTP/2 only where it is
    H2_FAILURES: tuple[type[Exception], ...] = ()
else:
    H2_FAILURES = (H2Error,)

_RESET_FAILURES: tuple[type[Exception], ...] = (AttributeError, *H2_FAILURES)

_CANCEL = 8  # the error code of RFC 9113 section 7

_SOME_BYTES = 16 * 1024
"""How much may seem to be sent at a time on a stream that the server has ended. It comes to nothing."""


def pool_of(client: Any, url: str) -> Any:
    """The pool of connections that httpx takes for a URL.

    Raises:
        AttributeError: it has none, or not where it is looked for.
    """
    return client._transport_for_url(httpx.URL(url))._pool


class _Shared:
    """What h2 knows of a connection, for one thread after another, or one task.

    Streams that the server has ended take the rest of their requests and drop it. Else httpcore would fail there, or
    wait for a window that never opens, and in either case never come to the answer that it has already.
    """

    def __init__(self, state: Any, events: dict[int, list[Any]]) -> None:
        self.__dict__.update(_state=state, _events=events, _lock=threading.RLock())

    def has_room(self, number: int) -> bool:
        """Whether something can be sent on a stream, or whoever tries to will find out that it is over."""
        try:
            return self._room(number) > 0
        except H2_FAILURES:
            return True

    def _room(self, number: int) -> int:
        with self._lock:
            return _SOME_BYTES if _ended(self._events, number) else int(self._state.local_flow_control_window(number))

    def send_some(self, number: int, data: bytes) -> int:
        """Send as much as there is room for; how much that is."""
        with self._lock:
            size: int = min(self._room(number), self._state.max_outbound_frame_size, len(data))
            if size > 0 and not _ended(self._events, number):
                self._state.send_data(number, data[:size])
            return max(size, 0)

    def end_stream(self, number: int) -> None:
        with self._lock:
            if not _ended(self._events, number):
                self._state.end_stream(number)
                return
            with contextlib.suppress(*H2_FAILURES):  # the server has reset it
                self._state.reset_stream(number, _CANCEL)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._state, name)
        if not callable(value):
            return value

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._state, name, value)


class _Turns:
    """Whose turn it is to read a connection: one reads for all who wait for something of it. From any thread.

    httpcore has each of them wait for a lock first and then for the network, though what it waits for may have been
    read by then. Its call goes on when something comes for others, and never where nothing does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: dict[Callable[[], object], Callable[[], object]] = {}

    def take(self, wake: Callable[[], object], is_there: Callable[[], object]) -> bool:
        """Take the turn; whether it was free. Else the caller is woken when it is, or when ``is_there``."""
        with self._lock:
            if self._taken:
                self._waiting[wake] = is_there
                return False
            self._waiting.pop(wake, None)
            self._taken = True
            return True

    def tell(self) -> None:
        """Wake those who have what they wait for, after a read."""
        with self._lock:
            self._tell()

    def leave(self, wake: Callable[[], object], *, taken: bool) -> None:
        """Wait no more, and give the turn on if it was ``taken``, or was to be."""
        with self._lock:
            self._waiting.pop(wake, None)
            if taken:
                self._taken = False
            self._tell()
            if not self._taken and self._waiting:
                next(iter(self._waiting))()

    def _tell(self) -> None:
        for wake in [wake for wake, is_there in self._waiting.items() if is_there()]:
            del self._waiting[wake]
            wake()


def _take_turns(connection: Any, shared: _Shared) -> None:
    """Have the calls of a connection read it for each other. Nor may two of them send what there is room for once."""
    itself, kind, turns = weakref.ref(connection), type(connection), _Turns()
    events = connection._events

    def wait_for(request: Any, number: int | None, is_there: Callable[[], object]) -> None:
        woken = Wakeup()
        taken = False
        try:
            while not (taken := turns.take(woken.wake, is_there)) and not is_there():
                woken.wait()
            while taken and not is_there():
                kind._receive_events(itself(), request, number)
                turns.tell()
        except H2_FAILURES as error:
            _lose(itself(), error)
            raise
        finally:
            turns.leave(woken.wake, taken=taken)

    def receive(request: Any, number: int) -> None:
        wait_for(request, number, functools.partial(events.get, number))

    def send(request: Any, number: int, data: bytes) -> None:
        while data:
            size = shared.send_some(number, data)
            if size:
                data = data[size:]
                kind._write_outgoing_data(itself(), request)
            else:
                wait_for(request, None, functools.partial(shared.has_room, number))

    async def await_for(request: Any, number: int | None, is_there: Callable[[], object]) -> None:
        woken = asyncio.Event()
        taken = False
        try:
            while not (taken := turns.take(woken.set, is_there)) and not is_there():
                await woken.wait()
                woken.clear()
            while taken and not is_there():
                await kind._receive_events(itself(), request, number)
                turns.tell()
        except H2_FAILURES as error:
            _lose(itself(), error)
            raise
        finally:
            turns.leave(woken.set, taken=taken)

    async def areceive(request: Any, number: int) -> None:
        await await_for(request, number, functools.partial(events.get, number))

    async def asend(request: Any, number: int, data: bytes) -> None:
        while data:
            size = shared.send_some(number, data)
            if size:
                data = data[size:]
                await kind._write_outgoing_data(itself(), request)
            else:
                await await_for(request, None, functools.partial(shared.has_room, number))

    asynchronous = inspect.iscoroutinefunction(kind._receive_events)
    connection._receive_events = areceive if asynchronous else receive
    connection._send_stream_data = asend if asynchronous else send


def _lose(connection: Any, error: Exception) -> None:
    """Have all calls of a connection fail when the server has broken HTTP/2.

    httpcore tells none of it but the call that has read, unlike where reading itself has failed.
    """
    import httpcore  # which httpx, too, imports when it has to

    connection._connection_error = True
    connection._read_exception = httpcore.RemoteProtocolError(str(error))


def _ended(events: dict[int, list[Any]], number: int) -> bool:
    """Whether the server has ended a stream: nothing comes after that."""
    of_stream = events.get(number, ())
    return len(of_stream) > 0 and isinstance(of_stream[-1], StreamEnded | StreamReset)


class Stream:
    """One call's stream of an HTTP/2 connection.

    httpcore tells nobody of a call that ends early: the server goes on, what it sends uses up the connection's window,
    and a connection with a hundred such streams takes no more. It has no public way to end one, so this reaches for
    its connection, and does without where that is not to be found.
    """

    def __init__(self, connection: Any, request: Any, number: int) -> None:
        self._connection = connection
        self._request = request
        self._number = number
        self._over = False

    @property
    def network(self) -> Any:
        """The connection as httpcore reads and writes it."""
        return getattr(self._connection, "_network_stream", None)

    @classmethod
    def find(cls, client: Any, url: str, info: dict[str, Any]) -> Stream | None:
        """The stream of a request that is just being sent, from what the trace extension tells."""
        request = info["request"]
        try:
            for queued in list(pool_of(client, url)._requests):
                if queued.request is request:
                    connection = queued.connection
                    while not hasattr(connection, "_h2_state"):
                        connection = connection._connection
                    return cls(connection, request, info["stream_id"])
        except AttributeError:
            pass
        return None

    def share(self) -> None:
        """Let threads use the connection at the same time, which httpcore alone does not: what two of them send, and
        the books that are kept of it, get mixed up. Also mind what the server has ended."""
        with contextlib.suppress(AttributeError):
            if not isinstance(self._connection._h2_state, _Shared):
                shared = _Shared(self._connection._h2_state, self._connection._events)
                _take_turns(self._connection, shared)
                self._connection._h2_state = shared

    @property
    def ended(self) -> bool:
        """Whether the server has ended it, as far as somebody has read that. It takes no more of the request."""
        return _ended(getattr(self._connection, "_events", {}), self._number)

    def reset(self, *, wake: bool = False) -> bool:
        """Have the stream end. Whether there is anything to send to the server.

        Args:
            wake: have a thread or task that reads the connection for this stream find that out.
        """
        if self._over:
            return False
        self._over = True
        try:
            h2 = self._connection._h2_state
            events = self._connection._events.get(self._number, [])
            for event in list(events):
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    h2.acknowledge_received_data(event.flow_controlled_length, self._number)
            h2.reset_stream(self._number, _CANCEL)
            if wake:
                end = StreamReset.__new__(StreamReset)
                end.stream_id, end.error_code, end.remote_reset = self._number, _CANCEL, False
                events.append(end)
                h2.ping(b"\0" * 8)  # its answer is what the thread reads
        except _RESET_FAILURES:
            return False  # it had ended
        return True

    def cancel(self) -> None:
        """End the stream of a call that a thread may be blocked in."""
        if self.reset(wake=True):
            self._flush()

    def end(self) -> None:
        """End the stream of a call that nobody waits for."""
        if self.reset():
            self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(Exception):
            self._connection._write_outgoing_data(self._request)

    async def aflush(self) -> None:
        await self._connection._write_outgoing_data(self._request)
