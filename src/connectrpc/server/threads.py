"""Synchronous handlers in threads of their own: under ASGI, where they would block everybody, and under WSGI, where an
answer goes out at the deadline only if somebody is there to send it.

A call has one thread from its beginning to its end, so what is local to a thread stays what it is, also in the
``finally`` of a generator. Thread and server take turns: the thread stops at each message that it wants or gives, and
whoever has the call deals with it in the server's own thread or task. So nothing is read or sent behind its back, and
a slow client slows the handler down.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import contextvars
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from connectrpc._core.call import messages_of
from connectrpc._core.chain import close_messages, ended_wrongly
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ClientStream, ServerStream
from connectrpc.server.handlers import StrayError, coded

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
    it gives is thrown away; the next message that it wants or gives ends it. So the interpreter waits at its exit for
    handlers that run, but for none whose call nobody goes on with.

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
        self._pools: dict[int, _Pool] = {}  # by process

    def submit(self, work: _Work) -> None:
        """For the runtime: have ``work`` done in a thread, in a copy of the caller's context."""
        # Made as late as can be, and anew in a child process: threads do not come along.
        pool = self._pools.get(os.getpid())
        if pool is None:
            pool = self._pools.setdefault(os.getpid(), _Pool(self._max_threads))
            weakref.finalize(self, pool.end).atexit = False  # that is for _end_all
        pool.submit(work)

    def __repr__(self) -> str:
        return f"<InThreads {self.implementation!r}>"


def in_thread(method: Method[Any, Any], handler: Handler, threads: InThreads[Any], *, asynchronous: bool) -> Handler:
    """``handler``, run in a thread; for an app that awaits its handlers, or for one that does not."""
    if asynchronous:
        return lambda given: _AwaitedWork(method, handler, given).run(threads)
    return lambda given: _BlockingWork(method, handler, given).run(threads)


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _end_all() -> None:
    """At the interpreter's exit: nobody goes on with a call any more, but handlers that run are waited for."""
    pools = [pool for pool in _pools if pool.process == os.getpid()]
    for pool in pools:
        pool.leave()
    for pool in pools:
        pool.join()


class _Pool:
    """Threads that handlers run in, at most so many.

    No executor's: the interpreter waits for those before it runs anything of ours, and one that waits for its turn in
    a call that was left lying about would never get to know. These are daemons, and are ended by ``_end_all``, when
    all other threads that may go on with a call are gone.
    """

    def __init__(self, max_threads: int) -> None:
        self.process = os.getpid()
        self._max_threads = max_threads
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        # In the order of their turns. Whether work is begun or given up is up to who takes it out of here, which is one
        # step: none of Python's code runs in it.
        self._waiting: collections.OrderedDict[_Work, contextvars.Context] = collections.OrderedDict()
        self._free = 0  # threads that wait to be woken, less those that are about to be
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether there is more to do
        self._under_way: set[_Work] = set()
        self._left = False
        _pools.add(self)
        # Moved to the end, which runs first: before what was registered by then, and may be what handlers use.
        atexit.unregister(_end_all)
        atexit.register(_end_all)

    def submit(self, work: _Work) -> None:
        """Have it done as soon as a thread is free.

        Raises:
            RuntimeError: there is no thread, and none can be started.
        """
        with self._lock:
            if self._left:
                raise RuntimeError("the interpreter is about to exit")
            work._pool = self
            self._waiting[work] = contextvars.copy_context()
            self._under_way.add(work)
            if self._free > 0:
                self._free -= 1
                self._wake.put(True)
                return
            try:
                self._add_thread()
            except RuntimeError:
                self.give_up(work)
                raise

    def give_up(self, work: _Work) -> bool:
        """Forget it, unless it was begun; whether it was not. May be called by the garbage collector."""
        # Which is why it takes no lock: whoever that interrupts may hold it.
        if self._waiting.pop(work, None) is None:
            return False
        self._under_way.discard(work)
        return True

    def _add_thread(self) -> None:
        if len(self._threads) == self._max_threads:
            return  # the next that is free will do it
        name = f"connectrpc-handler_{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # as above
        self._threads.append(thread)

    def _run(self) -> None:
        while True:
            item = self._next()
            if item is None:
                if self._wake.get():
                    continue
                self._wake.put(False)  # for the next thread
                return
            work, context = item
            # It tells what it raises. What is left is what a log's handler does, which is not to cost us the thread.
            with contextlib.suppress(Exception):
                context.run(work.do)
            self._under_way.discard(work)
            del item, context, work  # not to be kept until there is something else to do

    def _next(self) -> tuple[_Work, contextvars.Context] | None:
        """The work whose turn it is; None if none waits, and then the thread is free."""
        with self._lock:
            try:
                return self._waiting.popitem(last=False)
            except KeyError:
                self._free += 1
                return None

    def end(self) -> None:
        """End the threads when all is done that is to be done. May be called by the garbage collector."""
        self._wake.put(False)

    def leave(self) -> None:
        """Nobody goes on with any call."""
        with self._lock:
            self._left = True
        for work in list(self._under_way):
            work.leave()
        self.end()

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join()


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
    """The handler has failed, or what it asked for."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error: Exception | None = error

    def take(self) -> Exception:
        """The failure, which is there once: it has the frames that have this, and would wait for the garbage collector.

        Those have what the call has, large messages too.
        """
        error, self._error = self._error, None
        assert error is not None
        return error


_WANTED, _ENDED = _Wanted(), _Ended()

_END = object()
"""Instead of a message: the request's are over."""


class _Work:
    """A handler's work in a thread. What happens there is told by ``_tell``, and waits for its turn."""

    __slots__ = ("_event", "_given", "_handler", "_left", "_method", "_pool", "_reply", "_turn")

    def __init__(self, method: Method[Any, Any], handler: Handler, given: Any) -> None:
        self._method = method
        self._handler = handler
        self._given = given
        self._pool: _Pool  # told by it
        # As a semaphore, but one that the garbage collector may release wherever it finds a thread.
        self._turn: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._event: _Wanted | _Gave | _Ended | _Raised = _WANTED
        self._reply: tuple[Any, _Raised | None] = (None, None)
        self._left = False

    # In the thread.

    def do(self) -> None:
        """All of it, unless the call was over before a thread was free."""
        if self._left:
            return
        try:
            self._serve()
        except BaseException as error:
            # SystemExit ends a thread, and not the event loop, or the server's thread, that waits for this.
            self._fail(error if isinstance(error, Exception) else StrayError(error))

    def _serve(self) -> None:
        given = self._given
        if self._method.kind.client_streams:
            given = ClientStream(self._requested(), given._call)
            given._values = self._given._values
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
            close_messages(messages)
        self._tell(_ENDED)

    def _fail(self, failure: Exception) -> None:
        if not self._left:
            self._tell(_Raised(failure))
        else:
            coded(self._given._call, failure)  # for the log: there is nobody to answer any more

    def _requested(self) -> Iterator[Any]:
        while self._ask(_WANTED):
            message, failed = self._reply
            if failed is not None:
                raise failed.take()
            if message is _END:
                return
            yield message
        raise ConnectError(ConnectErrorCode.CANCELED, "the call is over")

    def _ask(self, event: _Wanted | _Gave) -> bool:
        """Tell something and wait until it was dealt with; whether the call still goes on."""
        if not self._left:
            self._tell(event)
            self._turn.get()
        return not self._left

    def _tell(self, event: _Wanted | _Gave | _Ended | _Raised) -> None:
        self._event = event
        if not self._left:
            self._notify()

    def _notify(self) -> None:
        raise NotImplementedError

    # Where the call is.

    def go_on(self) -> None:
        """What was told has been dealt with: it is the thread's turn."""
        self._turn.put(None)

    def leave(self) -> None:
        """The call is over, whatever the thread is doing. May be called by anybody, the garbage collector too."""
        self._left = True
        if self._pool.give_up(self):
            # What has ended the call has this among its frames, and may have to wait for the garbage collector. A large
            # message is not to.
            self._given = None
        self._turn.put(None)

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
        self._there: queue.SimpleQueue[None] = queue.SimpleQueue()
        source = iter(self._given) if self._method.kind.client_streams else None
        threads.submit(self)
        try:
            event = self._next(source)
            assert isinstance(event, _Gave)
        except BaseException:
            self.leave()
            raise
        if not self._method.kind.server_streams:
            return event.value
        return self._result(event.value, _Messages(self, source))

    def _notify(self) -> None:
        self._there.put(None)

    def _next(self, source: Iterator[Any] | None) -> _Gave | _Ended:
        deadline = self._given.timeout
        while True:
            try:
                self._there.get(timeout=deadline.remaining())
            except queue.Empty:
                deadline.check()
                continue
            event = self._event
            if isinstance(event, _Raised):
                raise event.take()
            if not isinstance(event, _Wanted):
                return event
            assert source is not None
            try:
                self._reply = next(source, _END), None
            except Exception as error:
                self._reply = None, _Raised(error)
            self.go_on()


class _Messages:
    """The messages of an answer. No generator: closing one that was not begun runs nothing."""

    __slots__ = ("_over", "_source", "_work")

    def __init__(self, work: _BlockingWork, source: Iterator[Any] | None) -> None:
        self._work = work
        self._source = source
        self._over = False  # there is no thread any more that would answer

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        self._over = True
        self._work.go_on()
        event = self._work._next(self._source)
        if isinstance(event, _Ended):
            raise StopIteration
        self._over = False
        return event.value

    def close(self) -> None:
        self._work.leave()

    def __del__(self) -> None:
        self.close()  # forgotten: without it the thread would wait for its turn for ever


class _AwaitedWork(_Work):
    """For an app that awaits its handlers."""

    __slots__ = ("_loop", "_there")

    async def run(self, threads: InThreads[Any]) -> Any:
        """What the handler gives."""
        import asyncio  # is there already; WSGI services do without

        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        source = self._given.__aiter__() if self._method.kind.client_streams else None
        threads.submit(self)
        try:
            event = await self._next(source)
            assert isinstance(event, _Gave)
        except BaseException:
            self.leave()
            raise
        if not self._method.kind.server_streams:
            return event.value
        return self._result(event.value, _AwaitedMessages(self, source))

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._there.set)
        except RuntimeError:  # the loop is closed, and with it the call is over
            self.leave()

    async def _next(self, source: AsyncIterator[Any] | None) -> _Gave | _Ended:
        while True:
            await self._there.wait()
            self._there.clear()
            event = self._event
            if isinstance(event, _Raised):
                raise event.take()
            if not isinstance(event, _Wanted):
                return event
            assert source is not None
            try:
                self._reply = await source.__anext__(), None
            except StopAsyncIteration:
                self._reply = _END, None
            except Exception as error:
                self._reply = None, _Raised(error)
            self.go_on()


class _AwaitedMessages:
    """``_Messages`` for an app that awaits."""

    __slots__ = ("_over", "_source", "_work")

    def __init__(self, work: _AwaitedWork, source: AsyncIterator[Any] | None) -> None:
        self._work = work
        self._source = source
        self._over = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        self._work.go_on()
        try:
            event = await self._work._next(self._source)
        except StopAsyncIteration as error:
            raise ended_wrongly() from error
        if isinstance(event, _Ended):
            raise StopAsyncIteration
        self._over = False
        return event.value

    async def aclose(self) -> None:
        self._work.leave()

    def __del__(self) -> None:
        self._work.leave()
