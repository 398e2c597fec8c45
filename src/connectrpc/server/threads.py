"""Synchronous handlers in threads of their own: under ASGI, where they would block everybody, and under WSGI, where an
answer goes out at the deadline only if somebody is there to send it.

A call has one thread from its beginning to its end, so what is local to a thread stays what it is, also in the
``finally`` of a generator. Thread and server take turns: the thread stops at each message that it wants or gives, and
whoever has the call deals with it in the server's own thread or task. So nothing is read or sent behind its back, and
a slow client slows the handler down.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from connectrpc._core.call import messages_of
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ClientStream, ServerStream
from connectrpc.server.handlers import coded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from connectrpc.method import Method

    Handler = Callable[[Any], Any]

__all__ = ["InThreads", "in_thread"]

ImplementationT = TypeVar("ImplementationT")

_DEFAULT_MAX_THREADS = 40


class InThreads(Generic[ImplementationT]):
    """A synchronous implementation whose handlers run in threads of their own, with the caller's context variables.

    Give it to ``asgi_x_service`` to serve a synchronous implementation there, or to ``wsgi_x_service`` to have answers
    go out at the deadline. A handler that is still running then cannot be stopped: it goes on in its thread, and what
    it gives is thrown away; the next message that it wants or gives ends it.

    Args:
        implementation: an instance with the methods of the service's synchronous protocol.
        max_threads: how many calls run at a time. Others wait for their turn, until their deadline. A stream has its
            thread as long as it lasts.

    Raises:
        ValueError: ``max_threads`` is less than one.
    """

    def __init__(self, implementation: ImplementationT, *, max_threads: int = _DEFAULT_MAX_THREADS) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads must be at least 1, not {max_threads}")
        self.implementation = implementation
        self._max_threads = max_threads
        self._pools: dict[int, concurrent.futures.ThreadPoolExecutor] = {}  # by process

    def submit(self, work: Callable[[], None]) -> concurrent.futures.Future[None]:
        """For the runtime: have ``work`` done in a thread, in a copy of the caller's context."""
        # Made as late as can be, and anew in a child process: threads do not come along.
        pool = self._pools.get(os.getpid())
        if pool is None:
            pool = concurrent.futures.ThreadPoolExecutor(self._max_threads, "connectrpc-handler")
            pool = self._pools.setdefault(os.getpid(), pool)
        return pool.submit(contextvars.copy_context().run, work)

    def __repr__(self) -> str:
        return f"<InThreads {self.implementation!r}>"


def in_thread(method: Method[Any, Any], handler: Handler, threads: InThreads[Any], *, asynchronous: bool) -> Handler:
    """``handler``, run in a thread; for an app that awaits its handlers, or for one that does not."""
    if asynchronous:
        return lambda given: _AwaitedWork(method, handler, given).run(threads)
    return lambda given: _BlockingWork(method, handler, given).run(threads)


class _Wanted:
    """The thread wants the next message of the request."""


class _Gave:
    """The handler has returned, or has given a message of the answer."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Ended:
    """The answer's messages are over."""


class _Raised:
    """The handler has failed."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


_WANTED, _ENDED = _Wanted(), _Ended()

_END = object()
"""Instead of a message: the request's are over."""


class _Work:
    """A handler's work in a thread. What happens there is told by ``_tell``, and waits for its turn."""

    __slots__ = ("_event", "_given", "_handler", "_left", "_method", "_reply", "_task", "_turn")

    def __init__(self, method: Method[Any, Any], handler: Handler, given: Any) -> None:
        self._method = method
        self._handler = handler
        self._given = given
        self._turn = threading.Semaphore(0)
        self._event: _Wanted | _Gave | _Ended | _Raised = _WANTED
        self._reply: tuple[Any, BaseException | None] = (None, None)
        self._left = False
        self._task: concurrent.futures.Future[None] | None = None

    # In the thread.

    def _work(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            if not self._left:
                self._tell(_Raised(error))
            elif isinstance(error, Exception):
                coded(self._given._call, error)  # for the log: there is nobody to answer any more

    def _serve(self) -> None:
        given = self._given
        if self._method.kind.client_streams:
            given = ClientStream(self._requested(), given._call)
        result = self._handler(given)
        if not self._method.kind.server_streams:
            self._tell(_Gave(result))
            return
        messages = iter(messages_of(self._method, result)[0])
        try:
            goes_on = self._ask(_Gave(result))
            while goes_on:
                try:
                    message = next(messages)
                except StopIteration:
                    break
                goes_on = self._ask(_Gave(message))
        finally:
            close = getattr(messages, "close", None)
            if close is not None:
                close()
        self._tell(_ENDED)

    def _requested(self) -> Iterator[Any]:
        while self._ask(_WANTED):
            message, error = self._reply
            if error is not None:
                raise error
            if message is _END:
                return
            yield message
        raise ConnectError(ConnectErrorCode.CANCELED, "the call is over")

    def _ask(self, event: _Wanted | _Gave) -> bool:
        """Tell something and wait until it was dealt with; whether the call still goes on."""
        if not self._left:
            self._tell(event)
            self._turn.acquire()
        return not self._left

    def _tell(self, event: _Wanted | _Gave | _Ended | _Raised) -> None:
        self._event = event
        if not self._left:
            self._notify()

    def _notify(self) -> None:
        raise NotImplementedError

    # Where the call is.

    def _begin(self, threads: InThreads[Any]) -> None:
        self._task = threads.submit(self._work)

    def _go_on(self) -> None:
        self._turn.release()

    def _leave(self) -> None:
        """The call is over, whatever the thread is doing."""
        self._left = True
        if self._task is not None:
            self._task.cancel()  # it may still wait for a thread
        self._turn.release()

    def _result(self, result: Any, messages: Any) -> Any:
        """What the handler gave, with other messages in the place of its own."""
        if isinstance(result, ServerStream):
            return ServerStream(messages, result.headers, result.trailers)
        return messages


class _BlockingWork(_Work):
    """For an app that does not await its handlers."""

    __slots__ = ("_there",)

    def run(self, threads: InThreads[Any]) -> Any:
        """What the handler gives."""
        self._there = threading.Semaphore(0)
        source = iter(self._given) if self._method.kind.client_streams else None
        self._begin(threads)
        try:
            event = self._next(source)
            assert isinstance(event, _Gave)
        except BaseException:
            self._leave()
            raise
        if not self._method.kind.server_streams:
            return event.value
        return self._result(event.value, _Messages(self, source))

    def _notify(self) -> None:
        self._there.release()

    def _next(self, source: Iterator[Any] | None) -> _Gave | _Ended:
        deadline = self._given.timeout
        while True:
            if not self._there.acquire(timeout=deadline.remaining()):
                deadline.check()
                continue
            event = self._event
            if isinstance(event, _Raised):
                raise event.error
            if not isinstance(event, _Wanted):
                return event
            assert source is not None
            try:
                self._reply = next(source, _END), None
            except Exception as error:
                self._reply = None, error
            self._go_on()


class _Messages:
    """The messages of an answer. No generator: closing one that was not begun runs nothing."""

    __slots__ = ("_source", "_work")

    def __init__(self, work: _BlockingWork, source: Iterator[Any] | None) -> None:
        self._work = work
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._work._go_on()
        event = self._work._next(self._source)
        if isinstance(event, _Ended):
            raise StopIteration
        return event.value

    def close(self) -> None:
        self._work._leave()


class _AwaitedWork(_Work):
    """For an app that awaits its handlers."""

    __slots__ = ("_loop", "_there")

    async def run(self, threads: InThreads[Any]) -> Any:
        """What the handler gives."""
        import asyncio  # is there already; WSGI services do without

        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        source = self._given.__aiter__() if self._method.kind.client_streams else None
        self._begin(threads)
        try:
            event = await self._next(source)
            assert isinstance(event, _Gave)
        except BaseException:
            self._leave()
            raise
        if not self._method.kind.server_streams:
            return event.value
        return self._result(event.value, _AwaitedMessages(self, source))

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the call is over
            self._loop.call_soon_threadsafe(self._there.set)

    async def _next(self, source: AsyncIterator[Any] | None) -> _Gave | _Ended:
        while True:
            await self._there.wait()
            self._there.clear()
            event = self._event
            if isinstance(event, _Raised):
                raise event.error
            if not isinstance(event, _Wanted):
                return event
            assert source is not None
            try:
                self._reply = await source.__anext__(), None
            except StopAsyncIteration:
                self._reply = _END, None
            except Exception as error:
                self._reply = None, error
            self._go_on()


class _AwaitedMessages:
    """``_Messages`` for an app that awaits."""

    __slots__ = ("_source", "_work")

    def __init__(self, work: _AwaitedWork, source: AsyncIterator[Any] | None) -> None:
        self._work = work
        self._source = source

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._work._go_on()
        event = await self._work._next(self._source)
        if isinstance(event, _Ended):
            raise StopAsyncIteration
        return event.value

    async def aclose(self) -> None:
        self._work._leave()
