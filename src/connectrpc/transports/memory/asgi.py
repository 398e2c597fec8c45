"""An ASGI app (ASGI 3.0) as the other half of exchanges, each in a task of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from connectrpc.transports.memory.aio import wait
from connectrpc.transports.memory.exchange import CLIENT_ADDRESS, GRACE_SECONDS, WAIT, ClientLeftError, Exchange, Wait

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Iterable

    Event = dict[str, Any]
    ASGIApp = Callable[
        [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
    ]

__all__ = ["ASGIServer"]

_ASGI = {"version": "3.0", "spec_version": "2.4"}


class ASGIServer:
    """Answers exchanges with an ASGI app: in the caller's event loop, in one in a thread of its own, or, while the
    app's lifespan lasts, in the loop where that began.

    Args:
        app: the app.
        context: the context variables that it sees: each call has a copy.
    """

    def __init__(self, app: ASGIApp, context: contextvars.Context) -> None:
        self._app = app
        self._context = context
        # Reentrant, as the garbage collector may close this transport while the same thread holds it.
        self._lock = threading.RLock()
        self._queued: dict[Exchange, asyncio.AbstractEventLoop] = {}  # which their loop has yet to begin with
        self._calls: dict[asyncio.Task[None], Exchange] = {}
        self._thread: _LoopThread | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._lifespan: _Lifespan | None = None

    def serve(self, exchange: Exchange) -> None:
        """Have the app answer, for a client that blocks.

        Raises:
            RuntimeError: it would block the loop in which the app has to run.
        """
        with self._lock:
            loop = self._home or self._own_loop()
            if asyncio._get_running_loop() is loop:
                raise RuntimeError(
                    "a synchronous client would block the event loop that its app runs in: use an asynchronous one, or "
                    "call it in another thread, as by asyncio.to_thread()"
                )
            self._queue(loop, exchange)

    def serve_here(self, exchange: Exchange) -> None:
        """Have the app answer, for a client that awaits."""
        here = asyncio.get_running_loop()
        with self._lock:
            loop = self._home or here
            if loop is not here:
                self._queue(loop, exchange)
                return
        exchange.owner = self
        self._start(loop, exchange)

    def _queue(self, loop: asyncio.AbstractEventLoop, exchange: Exchange) -> None:
        """Have another thread's loop begin with it. With the lock held, so that whoever ends that loop knows of it."""
        exchange.owner = self
        self._queued[exchange] = loop
        try:
            loop.call_soon_threadsafe(self._start_queued, exchange)
        except RuntimeError:  # it is closed
            del self._queued[exchange]
            raise

    def _start_queued(self, exchange: Exchange) -> None:
        loop = self._queued.pop(exchange, None)
        if loop is not None:  # else it was broken off meanwhile
            self._start(loop, exchange)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None or not self._thread.alive:  # it is dead in a child process
                self._thread = _LoopThread(self._context, self)
            return self._thread.loop

    def _start(self, loop: asyncio.AbstractEventLoop, exchange: Exchange) -> None:
        state = {} if self._lifespan is None else self._lifespan.state
        # Not by create_task(context=...), which only newer Pythons have.
        task = self._context.copy().run(loop.create_task, _serve(self._app, exchange, state.copy()))
        self._calls[task] = exchange
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step, as by the end of its loop, has told the client of nothing.
        self._calls.pop(task).break_off()

    def _break_off_queued(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the calls that a loop has yet to begin with."""
        for exchange, where in self._queued.copy().items():
            if where is loop and self._queued.pop(exchange, None) is not None:
                exchange.break_off()

    def _break_off(
        self, loop: asyncio.AbstractEventLoop, spared: asyncio.Task[Any] | None = None
    ) -> set[asyncio.Task[None]]:
        """End the calls in a loop, also those that it has yet to begin with. Gives the tasks of the others.

        Args:
            loop: whose calls.
            spared: a task whose call may go on.
        """
        self._break_off_queued(loop)
        calls = set()
        for task, exchange in self._calls.copy().items():
            if task.get_loop() is loop and task is not spared:
                exchange.break_off()
                calls.add(task)
        return calls

    async def enter(self) -> None:
        """Begin the app's lifespan here. Until ``leave`` the app runs in this loop.

        Raises:
            RuntimeError: its startup failed.
        """
        if self._home is not None:
            raise RuntimeError("this transport has been entered already")
        self._home = here = asyncio.get_running_loop()
        lifespan = _Lifespan(self._app, self._context)
        try:
            await lifespan.start()
        except BaseException:
            self._forsake(here)
            raise
        self._lifespan = lifespan

    async def leave(self) -> None:
        """End the calls that are under way here, and the app's lifespan.

        Raises:
            RuntimeError: its shutdown failed.
        """
        lifespan = self._lifespan
        try:
            await self.stop_here()
            if lifespan is not None:
                await lifespan.stop()
        except BaseException:  # the task that leaves may be cancelled
            if lifespan is not None:
                await lifespan.cancel()
            raise
        finally:
            self._forsake(asyncio.get_running_loop())

    def _forsake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the app in this loop no more, which may be about to end. A call that is under way ends with it."""
        with self._lock:
            self._home = self._lifespan = None
        self._break_off_queued(loop)

    def enter_thread(self) -> None:
        """``enter``, in a loop in a thread of its own."""
        if self._home is not None:
            raise RuntimeError("this transport has been entered already")
        try:
            with self._lock:  # as for a call
                entering = asyncio.run_coroutine_threadsafe(self.enter(), self._own_loop())
            entering.result()
        except BaseException:
            self.stop_thread()
            raise

    def leave_thread(self) -> None:
        """``leave``, when it was ``enter_thread``."""
        try:
            asyncio.run_coroutine_threadsafe(self.leave(), self._own_loop()).result()
        finally:
            self.stop_thread()

    @property
    def entered(self) -> bool:
        """Whether the app's lifespan lasts."""
        return self._home is not None

    async def stop_here(self) -> None:
        """End the calls that are under way in this loop, and wait until the app has returned from them."""
        # An app may close its own transport.
        calls = self._break_off(asyncio.get_running_loop(), asyncio.current_task())
        if not calls:
            return
        try:
            await asyncio.wait(calls, timeout=GRACE_SECONDS)
        finally:
            running = {task for task in calls if not task.done()}
            for task in running:
                task.cancel()
        if running:
            await asyncio.wait(running, timeout=GRACE_SECONDS)

    def stop_thread(self) -> None:
        """End the loop of its own, if there is one, and the calls in it."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None or not thread.alive or thread.current:
            return  # a loop that would have to end itself does so with the last reference
        stopping = asyncio.run_coroutine_threadsafe(self.stop_here(), thread.loop)
        concurrent.futures.wait([stopping], 3 * GRACE_SECONDS)  # an app may block the loop
        thread.end()
        thread.join()
        self._break_off(thread.loop)  # what an app that blocks it has kept it from ending


class _LoopThread:
    """An event loop in a thread.

    Args:
        context: the context variables that it has.
        user: with whose last reference it ends.

    Attributes:
        loop: the event loop.
        end: begins to end it, with what is still in it. From any thread, and again.
    """

    def __init__(self, context: contextvars.Context, user: object) -> None:
        self._ready = threading.Event()
        self._over: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop
        work = functools.partial(context.copy().run, asyncio.run, self._main())
        # A daemon, as the process must end although nobody has closed the transport.
        self._thread = threading.Thread(target=work, name="connectrpc-memory-asgi", daemon=True)
        self._thread.start()
        self._ready.wait()
        self.end = weakref.finalize(user, self._end)  # kept by nothing once it was called

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._ready.set()
        await self._over.wait()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def current(self) -> bool:
        return self._thread is threading.current_thread()

    def _end(self) -> None:
        assert self._over is not None
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self._over.set)

    def join(self) -> None:
        """Wait for the end, unless something blocks it for long: it is a daemon."""
        self._thread.join(5 * GRACE_SECONDS)


async def _serve(app: ASGIApp, exchange: Exchange, state: dict[str, Any]) -> None:
    answer = _Answer(exchange)
    try:
        await app(_scope(exchange, state), answer.receive, answer.send)
    except asyncio.CancelledError as error:
        if not exchange.left:
            exchange.fail(error)
        raise
    except BaseException as error:
        exchange.fail(error)
    finally:
        exchange.returned()


def _scope(exchange: Exchange, state: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": _ASGI.copy(),
        "http_version": "2",
        "method": exchange.method,
        "scheme": exchange.scheme,
        "path": unquote(exchange.raw_path),
        "raw_path": exchange.raw_path.encode("ascii"),
        "query_string": exchange.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in exchange.headers],
        "client": CLIENT_ADDRESS,
        "server": exchange.server,
        "state": state,
        "extensions": {"http.response.trailers": {}},
    }


class _Answer:
    """What an ASGI app does about one request."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._request_taken = False
        self._body_complete = False
        self._trailers: list[tuple[str, str]] | None = None

    async def receive(self) -> Event:
        """The app's ``receive``."""
        return await wait(self._exchange, self._next_event)

    def _next_event(self) -> Event | Wait:
        if self._exchange.gone:
            return {"type": "http.disconnect"}
        part = WAIT if self._request_taken else self._exchange.take_part()
        if isinstance(part, Wait):
            return WAIT
        self._request_taken = self._exchange.request_over
        return {"type": "http.request", "body": part, "more_body": not self._request_taken}

    async def send(self, event: Event) -> None:
        """The app's ``send``."""
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "http.response.start":
            self._send_start(event)
        elif kind == "http.response.body":
            await self._send_body(event)
        elif kind == "http.response.trailers" and self._trailers is not None:
            self._send_trailers(event, self._trailers)
        else:
            self._complain(f"the app has sent something that the server does not expect: {event!r}")

    def _send_start(self, event: Event) -> None:
        status = event.get("status")
        if type(status) is not int or not 100 <= status <= 999:
            self._complain(f"the status of an answer is a number, not {status!r}")
        self._exchange.start(status, self._decoded(event.get("headers", ())))
        self._trailers = [] if event.get("trailers", False) else None

    async def _send_body(self, event: Event) -> None:
        part = event.get("body", b"")
        if not isinstance(part, bytes | bytearray | memoryview):
            self._complain(f"the body of an answer is bytes, not {part!r}")
        if self._body_complete:
            self._complain("the app has sent a body after the end of its answer")
        await wait(self._exchange, functools.partial(self._exchange.send, bytes(part)))
        if not event.get("more_body", False):
            self._body_complete = True
            if self._trailers is None:
                self._finish([])

    def _send_trailers(self, event: Event, trailers: list[tuple[str, str]]) -> None:
        if self._exchange.left:
            raise ClientLeftError
        if not self._body_complete or self._exchange.gone:
            self._complain("trailers come once, after the end of the body")
        trailers.extend(self._decoded(event.get("headers", ())))
        if not event.get("more_trailers", False):
            self._finish(trailers)

    def _finish(self, trailers: list[tuple[str, str]]) -> None:
        self._exchange.finish(trailers)
        # The client learns of the end when the app has returned, or waits for something else. So a test can rely on
        # what an app does right after it has answered.
        asyncio.get_running_loop().call_soon(self._exchange.release)

    def _decoded(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
        try:
            return [(str(name, "latin-1"), str(value, "latin-1")) for name, value in headers]
        except (TypeError, ValueError):
            self._complain(f"headers are pairs of bytes, not {headers!r}")

    def _complain(self, complaint: str) -> NoReturn:
        raise self._exchange.violation(complaint)


class _Lifespan:
    """The lifespan of an app, which need not know what that is.

    Attributes:
        state: what the app keeps in it, for its requests.
    """

    def __init__(self, app: ASGIApp, context: contextvars.Context) -> None:
        self._app = app
        self._context = context
        self._asked = 0
        self._shutdown = asyncio.Event()
        self._told: asyncio.Future[Event] | None = None
        self._task: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = self._context.copy().run(loop.create_task, self._run())
        try:
            event = await self._answer()
        except BaseException:
            await self.cancel()
            raise
        if event is None:
            error = self._error()
            if error is not None and self._asked:
                raise RuntimeError(f"the startup of the app has failed: {error!r}") from error
            self._task = None  # the specification: an app that fails at a lifespan's scope does without one
        elif event["type"] == "lifespan.startup.failed":
            await self._end("startup", event)

    async def stop(self) -> None:
        if self._task is None:
            return
        self._shutdown.set()
        event = await self._answer()
        await self._end("shutdown", event or {})

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": _ASGI.copy(), "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Event:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self._shutdown.wait()
        if self._asked > 2:
            await asyncio.get_running_loop().create_future()  # there is no more to come
        return {"type": "lifespan.shutdown"}

    async def _send(self, event: Event) -> None:
        step = "shutdown" if self._shutdown.is_set() else "startup"
        if event.get("type") not in (f"lifespan.{step}.complete", f"lifespan.{step}.failed"):
            raise RuntimeError(f"the app has sent something that its {step} does not expect: {event!r}")
        if self._told is not None and not self._told.done():
            self._told.set_result(event)

    async def _answer(self) -> Event | None:
        """The next event that the app sends; None when it ends without one."""
        assert self._task is not None
        self._told = asyncio.get_running_loop().create_future()
        either: list[asyncio.Future[Any]] = [self._told, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._told.result() if self._told.done() else None

    async def _end(self, step: str, event: Event) -> None:
        """Wait until the app returns, and raise if it says, or shows by then, that it has failed."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=GRACE_SECONDS)
        error = self._error()
        await self.cancel()
        if event.get("type") == f"lifespan.{step}.failed":
            message = event.get("message") or repr(error)
            raise RuntimeError(f"the {step} of the app has failed: {message}") from error
        if error is not None:
            raise RuntimeError(f"the {step} of the app has failed: {error!r}") from error

    def _error(self) -> BaseException | None:
        assert self._task is not None
        return self._task.exception() if self._task.done() and not self._task.cancelled() else None

    async def cancel(self) -> None:
        """End it without telling the app of a shutdown, if it has not ended."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=GRACE_SECONDS)
