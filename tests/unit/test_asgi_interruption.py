"""What stops an ASGI call, wherever it comes: clients that leave, deadlines, servers; and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import time
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import CallContext, Hooks
from connectrpc.server import ServerStream, asgi_service
from connectrpc.server import asgi as asgi_module
from connectrpc.server import asgi_guard as guard_module
from harness import (
    BIDI,
    CLIENT,
    DISCONNECT,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    USUAL,
    Connection,
    ask,
    asked,
    body_events,
    exchange,
    part,
    reply,
    scope,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from harness import Event

ALL = [UNARY, SERVER, CLIENT, BIDI]
EVERY = pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
ABORTED = ConnectError(ConnectErrorCode.ABORTED, "m")


@pytest.fixture(autouse=True, params=["bare", "versioned", "plain"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unary calls take a shorter way when they bring just what most clients send: every test goes both."""
    if request.param != "bare":
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")
    if request.param == "plain":
        monkeypatch.setitem(USUAL, "content-length", "1")  # no more is looked at than that there is something


def body_of(method: Any) -> bytes:
    return ask("a").SerializeToString() if method in (UNARY, PURE) else asked(ask("a"))


def request_of(method: Any, timeout_ms: int | None = None, **changes: Any) -> dict[str, Any]:
    headers = [] if timeout_ms is None else [("connect-timeout-ms", str(timeout_ms))]
    return scope(method.path, PROTO if method in (UNARY, PURE) else STREAM_PROTO, headers, **changes)


def app_of(handler: Callable[[Any], Any], **options: Any) -> Any:
    given = dict.fromkeys(("unary", "pure", "server", "client", "bidi"), handler)
    return asgi_service(SERVICE, types.SimpleNamespace(**given), **options)


def run(
    handler: Callable[[Any], Any],
    method: Any,
    events: Sequence[Any] | None = None,
    timeout_ms: int | None = None,
    on_send: Callable[[Event], Awaitable[None]] | None = None,
) -> Connection:
    given = [part(body_of(method))] if events is None else events
    return exchange(app_of(handler), request_of(method, timeout_ms), given, on_send)


class Handler:
    """Does something between a beginning and an end, and notes what becomes of it.

    Args:
        method: it gives what such a method gives.
        middle: what it does.
        cleanup: what it does in the end, whatever has happened.
    """

    def __init__(
        self,
        method: Any,
        middle: Callable[[Any], Awaitable[None]],
        cleanup: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._method = method
        self._middle = middle
        self._cleanup = cleanup
        self.log: list[str] = []

    def __call__(self, request: Any) -> Any:
        return self._stream(request) if self._method.kind.server_streams else self._answer(request)

    async def _work(self, request: Any) -> None:
        try:
            self.log.append("begun")
            await self._middle(request)
            self.log.append("done")
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            if self._cleanup is not None:
                await self._cleanup()
            self.log.append("cleaned up")

    async def _answer(self, request: Any) -> Any:
        await self._work(request)
        return reply("done")

    async def _stream(self, request: Any) -> AsyncIterator[Any]:
        yield reply("first")
        await self._work(request)
        yield reply("done")


CANCELLED = ["begun", "CancelledError", "cleaned up"]


def code_in(connection: Connection) -> str:
    answer = connection.answer()
    return answer.failure() if answer.media_type == STREAM_PROTO else answer.code()


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def long(request: object = None) -> None:
    await asyncio.sleep(5)


async def short() -> None:
    await asyncio.sleep(0.05)


# Clients that leave


@EVERY
@pytest.mark.parametrize("fails", [False, True])
def test_what_stands_around_the_app_is_given_an_answer(method: Any, fails: bool) -> None:
    """Nobody will read it. But a framework's middleware complains of an app that has given none."""

    async def on_send(event: Event) -> None:
        if fails:
            raise OSError("the client has left")

    too_large = body_events(b"\0\xff\0\0\0" + b"x" * 5_000_000, 65_536)
    for events in (
        [DISCONNECT],
        [OSError("the client has left")],
        [part(body_of(method)[:2], True), DISCONNECT],
        [part(body_of(method)), 0.02, DISCONNECT],
        [*too_large[:-1], DISCONNECT],  # where what is refused is read on
    ):
        sent: list[Event] = []

        async def handler(request: Any) -> Any:
            if method.kind.client_streams:
                async for _ in request:
                    pass
            await long()

        async def note(event: Event) -> None:
            sent.append(event)  # noqa: B023  used up before the next one
            await on_send(event)

        run(handler, method, events, on_send=note)
        assert sent == [{"type": "http.response.start", "status": 499, "headers": []}]


@EVERY
def test_before_the_body(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    called: list[object] = []

    async def read(request: Any) -> None:
        async for _ in request:
            raise AssertionError

    def note(request: object) -> Any:
        called.append(request)
        return Handler(method, read)(request)

    for events in ([DISCONNECT], [0.02, DISCONNECT], [RuntimeError("gone")], [part(b"", True), DISCONNECT]):
        connection = run(note, method, events)
        assert not connection.complete
        assert connection.left == 0
    assert bool(called) is method.kind.client_streams, "who takes one message is not called without it"
    assert quiet(caplog)


@EVERY
def test_in_the_middle_of_the_body(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def read(request: Any) -> None:
        async for _ in request:
            pass

    handler = Handler(method, read)
    events = [*(part(body_of(method)[index : index + 1], True) for index in range(2)), 0.02, DISCONNECT]
    assert not run(handler, method, events).complete
    assert handler.log in ([], ["begun", "CancelledError", "cleaned up"], ["begun", "ClientGoneError", "cleaned up"])
    assert bool(handler.log) is method.kind.client_streams
    assert quiet(caplog)


@EVERY
def test_while_the_handler_waits(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler(method, long, short)
    connection = run(handler, method, [part(body_of(method)), 0.05, DISCONNECT])
    assert handler.log == CANCELLED
    assert not connection.complete
    assert quiet(caplog)


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_while_something_is_sent(method: Any, number: int, caplog: pytest.LogCaptureFixture) -> None:
    """The head, or a message: a client that reads slowly, and then no more."""
    cleaned: list[bool] = []
    sent: list[Event] = []

    async def handler(request: object) -> AsyncIterator[Any]:
        try:
            while True:
                yield reply("a")
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def on_send(event: Event) -> None:
        if event.get("body") != b"":  # an empty part may go out with the head
            sent.append(event)
        if len(sent) > number:
            await long()

    connection = run(handler, method, [part(body_of(method)), 0.05, DISCONNECT], on_send=on_send)
    assert len(sent) == number + 1
    assert not connection.complete
    # A generator that has not begun has nothing to clean up.
    assert cleaned == [True] * (number > 0)
    assert quiet(caplog)


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize("client", ["takes it", "leaves", "takes nothing"])
def test_a_deadline_while_a_message_is_sent(method: Any, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits for its client may have sent half of a message. The end of the stream does not come behind
    that, but behind the whole message, or not at all."""
    monkeypatch.setattr(guard_module, "_SENDING_MAX_SECONDS", 60 if client == "leaves" else 0.3)
    taken: list[bytes] = []
    cleaned: list[bool] = []

    async def handler(request: object) -> AsyncIterator[Any]:
        try:
            while True:
                yield reply("a")
        finally:
            cleaned.append(True)

    async def on_send(event: Event) -> None:
        if event.get("body"):
            if not taken:
                await asyncio.sleep(0.15 if client == "takes it" else 60)
            taken.append(event["body"])

    events: list[Any] = [part(body_of(method))]
    if client == "leaves":
        events += [0.2, DISCONNECT]
    connection = run(handler, method, events, 50, on_send)
    assert cleaned == [True]
    if client == "takes it":
        assert len(taken) == 2
        assert code_in(connection) == "deadline_exceeded"
    else:
        assert taken == []
        assert not connection.complete


@pytest.mark.parametrize("ends", ["client", "deadline", "server"])
@EVERY
def test_what_was_cut_short_waits_for_no_garbage_collector(method: Any, ends: str) -> None:
    """Its message may be large, and calls that end so many."""

    class Large:
        pass

    kept: list[weakref.ref[Large]] = []
    holding = asyncio.Event()

    async def hold(request: object) -> None:
        large = Large()
        kept.append(weakref.ref(large))
        holding.set()
        await long()

    async def cancel() -> None:
        connection = Connection(events)
        app = app_of(Handler(method, hold))
        task = asyncio.ensure_future(app(request_of(method), connection.receive, connection.send))
        await asyncio.wait_for(holding.wait(), 2)
        task.cancel()
        await asyncio.wait([task])

    gc.disable()
    try:
        events: list[Any] = [part(body_of(method))]
        if ends == "server":
            asyncio.run(cancel())
        else:
            if ends == "client":
                events += [0.05, DISCONNECT]
            run(Handler(method, hold), method, events, None if ends == "client" else 50)
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("again", ["client", "deadline"])
@EVERY
def test_a_reason_more_during_cleanup(method: Any, again: str) -> None:
    """What cleans up is not cancelled again: not by the client when it was the deadline, nor the other way round."""
    handler = Handler(method, long, lambda: asyncio.sleep(0.6))
    leaves, timeout_ms = (0.4, 100) if again == "client" else (0.05, 400)
    connection = run(handler, method, [part(body_of(method)), leaves, DISCONNECT], timeout_ms)
    assert handler.log == CANCELLED
    if again == "deadline":
        assert not connection.complete


@pytest.mark.parametrize("ended", [False, True])
def test_while_a_task_of_the_handlers_reads(ended: bool) -> None:
    """As full duplex is done: one task reads, and the handler does something else. It learns of it too."""
    handler_log: list[str] = []

    async def handler(request: Any) -> AsyncIterator[Any]:
        async def read() -> None:
            async for message in request:
                handler_log.append(message.name)  # noqa: PERF401  one by one, as they come

        reader = asyncio.ensure_future(read())
        try:
            yield reply("first")
            await long()
        except asyncio.CancelledError:
            handler_log.append("cancelled")
            raise
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    message = asked(ask("a"))
    events = [part(message, True), 0.05, part(message, not ended), 0.1, DISCONNECT]
    assert not run(handler, BIDI, events).complete
    assert handler_log == ["a", "a", "cancelled"]


@pytest.mark.parametrize("leaves", [0.0, 0.002, 0.05])
def test_a_task_of_the_handlers_learns_of_it(leaves: float) -> None:
    """The handler is told too, also when nobody watches yet as the client leaves."""

    async def wait(request: Any) -> None:
        async def read() -> None:
            with contextlib.suppress(ConnectError):
                async for _ in request:
                    pass

        reader = asyncio.ensure_future(read())
        try:
            await long()
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    handler = Handler(CLIENT, wait)
    assert not run(handler, CLIENT, [leaves, DISCONNECT]).complete
    assert handler.log == CANCELLED


@pytest.mark.parametrize("leaves", [0.0, 0.002, 0.05])
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_handler_that_goes_on_all_the_same(method: Any, leaves: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has time to clean up."""
    monkeypatch.setattr(guard_module, "_LEAVING_MAX_SECONDS", 0.05)

    async def wait(request: Any) -> None:
        with contextlib.suppress(ConnectError):
            async for _ in request:
                pass
        await long()

    handler = Handler(method, wait, short)
    assert not run(handler, method, [leaves, DISCONNECT]).complete
    assert handler.log == CANCELLED


@pytest.mark.parametrize("leaves", [0.0, 0.002, 0.05])
def test_a_handler_that_answers_all_the_same(leaves: float) -> None:
    """It is ended at its next message: servers take what they are given, and throw it away."""
    log: list[str] = []

    async def answer(request: Any) -> AsyncIterator[Any]:
        try:
            async for _ in request:
                pass
        except ConnectError:
            log.append("told")
        try:
            for number in range(1000):
                yield reply(str(number))
        finally:
            log.append(str(number))

    assert not run(answer, BIDI, [leaves, DISCONNECT]).complete
    assert log == ["told", "0"]


class Told(Hooks):
    def __init__(self) -> None:
        self.errors: list[Any] = []

    def on_end(self, context: CallContext, error: BaseException | None, trailers: Any) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("reason", ["client", "deadline"])
@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_messages_that_are_given_all_the_same_are_closed(method: Any, reason: str) -> None:
    """And hooks are told of the end, however late the handler has given them."""
    log: list[str] = []

    class Messages:
        def __aiter__(self) -> Messages:
            return self

        async def __anext__(self) -> Any:
            log.append("asked for")
            raise StopAsyncIteration

        async def aclose(self) -> None:
            await asyncio.sleep(0)
            log.append("closed")

    async def handler(request: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await long()
        return ServerStream(Messages())

    timeout_ms, leaves = (30, ()) if reason == "deadline" else (None, (0.03, DISCONNECT))
    events = [part(body_of(method)), *leaves]
    connection = run(handler, method, events, timeout_ms)
    assert log == ["closed"]
    assert connection.complete == (reason == "deadline")

    told = Told()
    exchange(app_of(handler, interceptors=[told]), request_of(method, timeout_ms), events)
    code = ConnectErrorCode.DEADLINE_EXCEEDED if reason == "deadline" else ConnectErrorCode.CANCELED
    assert [error.code for error in told.errors] == [code]
    assert set(log) == {"closed"}


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_deadline_while_what_cannot_be_sent_is_cleaned_up(method: Any) -> None:
    log: list[str] = []

    class Slow:
        def __aiter__(self) -> Slow:
            return self

        async def __anext__(self) -> Any:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            log.append("cleaned up")

    async def handler(request: Any) -> Any:
        await asyncio.sleep(0)
        return ServerStream(Slow(), {"content-type": "x"})

    connection = run(handler, method, timeout_ms=50)
    assert code_in(connection) == "unknown"
    assert log == ["cleaned up"]


@pytest.mark.parametrize("messages", [1, 8])
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_who_learns_of_it_where_it_reads_is_not_cancelled_besides(method: Any, messages: int) -> None:
    """What cleans up would be disturbed."""

    async def read(request: Any) -> None:
        async for _ in request:
            pass

    handler = Handler(method, read, short)
    # Every few milliseconds a message: a timer runs when the client leaves.
    events = [event for _ in range(messages) for event in (part(asked(ask("a")), True), 0.004)]
    assert not run(handler, method, [*events, DISCONNECT]).complete
    assert handler.log == ["begun", "ClientGoneError", "cleaned up"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks count their cancellations from 3.11 on")
@pytest.mark.parametrize("reason", ["client", "deadline"])
@EVERY
def test_a_swallowed_cancellation_is_taken_back(method: Any, reason: str) -> None:
    """Or ``asyncio.timeout`` and task groups around the app would break."""

    async def swallow(request: object) -> None:
        try:
            await long()
        except asyncio.CancelledError:
            pass

    handler = Handler(method, swallow)
    left: list[int] = []

    async def main() -> None:
        leaving: list[Any] = [0.05, DISCONNECT] if reason == "client" else []
        connection = Connection([part(body_of(method)), *leaving])
        made = request_of(method, 50 if reason == "deadline" else None)
        await app_of(handler)(made, connection.receive, connection.send)
        task: Any = asyncio.current_task()
        left.append(task.cancelling())
        if reason == "deadline":
            assert code_in(connection) == "deadline_exceeded"
        else:
            assert not connection.complete

    asyncio.run(main())
    assert left == [0]
    assert handler.log == ["begun", "done", "cleaned up"]


@EVERY
def test_a_failure_after_the_client_has_left(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that answers its cancellation by another exception: nobody is there to be told."""

    async def fail(request: object) -> None:
        try:
            await long()
        except asyncio.CancelledError:
            raise RuntimeError("secret") from None

    handler = Handler(method, fail)
    assert not run(handler, method, [part(body_of(method)), 0.05, DISCONNECT]).complete
    assert handler.log == ["begun", "RuntimeError", "cleaned up"]


# Answers that are under way


@EVERY
def test_what_is_still_to_be_read_does_not_change_an_answer(method: Any) -> None:
    """The deadline passes while a request is read to its end that has its answer already."""

    async def fail(request: object) -> Any:
        await asyncio.sleep(0.03)
        raise ABORTED

    async def fail_in_the_stream(request: object) -> AsyncIterator[Any]:
        yield reply("first")
        await asyncio.sleep(0.03)
        raise ABORTED

    if not method.kind.client_streams:
        return
    events = [part(body_of(method), True), 0.4, part(body_of(method))]
    handler = fail_in_the_stream if method is BIDI else fail
    connection = run(handler, method, events, 200)
    assert code_in(connection) == "aborted"
    assert connection.left == 0


@pytest.mark.parametrize("outcome", ["message", "error"])
@EVERY
def test_an_answer_that_is_being_sent_is_sent(method: Any, outcome: str) -> None:
    """The deadline passes while the server takes its time with what is ready: half an answer would be worse."""

    async def handler(request: object) -> Any:
        await asyncio.sleep(0.02)
        if outcome == "error":
            raise ABORTED
        return [] if method.kind.server_streams else reply("done")

    async def on_send(event: Event) -> None:
        if event.get("more_body") is False or (event["type"] == "http.response.start" and not streams):
            await asyncio.sleep(0.25)

    streams = method.kind.server_streams
    answer = run(handler, method, None, 150, on_send).answer()
    if outcome == "error":
        assert (answer.failure() if answer.media_type == STREAM_PROTO else answer.code()) == "aborted"
    elif method is UNARY:
        assert answer.message() == reply("done")
    else:
        assert answer.stream() == ([] if streams else ["done"], {})


# Others that cancel


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks count their cancellations from 3.11 on")
@EVERY
def test_somebody_elses_cancellation_at_the_same_time(method: Any) -> None:
    """A server that shuts down just as the client leaves: its own cancellation is not swallowed with ours."""
    handler = Handler(method, long, lambda: asyncio.sleep(0))

    class Both(Connection):
        task: asyncio.Future[Any]

        async def receive(self) -> Event:
            event = await super().receive()
            if event is DISCONNECT:
                asyncio.get_running_loop().call_soon(self.task.cancel)
            return event

    async def main() -> None:
        connection = Both([part(body_of(method)), 0.05, DISCONNECT])
        connection.task = asyncio.ensure_future(
            app_of(handler)(request_of(method), connection.receive, connection.send)
        )
        done, _ = await asyncio.wait([connection.task], timeout=2)
        assert done
        assert connection.task.cancelled()

    asyncio.run(main())
    assert handler.log == CANCELLED


@EVERY
def test_a_cancellation_that_was_caught_before_the_call(method: Any) -> None:
    """By a server or a middleware which did not take it back: the deadline is told from it all the same."""
    connection = Connection([part(body_of(method))])

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        await app_of(Handler(method, long))(request_of(method, 50), connection.receive, connection.send)

    asyncio.run(main())
    assert code_in(connection) == "deadline_exceeded"


@EVERY
def test_a_client_that_takes_nothing_holds_no_call_after_its_deadline(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi_module, "DRAIN_MAX_SECONDS", 0.1)
    monkeypatch.setattr(guard_module, "_SENDING_MAX_SECONDS", 0.1)

    class Stuck(Connection):
        async def send(self, event: Event) -> None:
            if event["type"] != "http.response.start":
                await asyncio.sleep(60)

    connection = Stuck([part(body_of(method))])

    async def main() -> None:
        call = app_of(Handler(method, lambda request: short()))(
            request_of(method, 50), connection.receive, connection.send
        )
        await asyncio.wait_for(call, 10)

    asyncio.run(main())
    assert not connection.complete


@EVERY
@pytest.mark.parametrize("body", ["whole", "begun"])
def test_a_server_that_cancels_its_calls(method: Any, body: str, caplog: pytest.LogCaptureFixture) -> None:
    """As one that stops does with those that are not over in time: another can be asked instead. The server's own
    answer, if it gives one, is HTTP status 500, for which no client tries again."""

    async def read(request: Any) -> None:
        if method.kind.client_streams:
            async for _ in request:
                waiting.set()
        waiting.set()
        await long()

    waiting = asyncio.Event()
    handler = Handler(method, read)
    connection = Connection([part(body_of(method), body == "begun" and method.kind.client_streams)])

    async def main() -> None:
        task = asyncio.ensure_future(app_of(handler)(request_of(method), connection.receive, connection.send))
        await asyncio.wait_for(waiting.wait(), 2)
        task.cancel("the server stops")
        done, _ = await asyncio.wait([task], timeout=2)
        assert done, "it hangs"
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert code_in(connection) == "unavailable"
    assert handler.log == CANCELLED
    assert quiet(caplog)


@EVERY
def test_a_server_that_cancels_a_call_before_it_has_the_request(method: Any) -> None:
    receiving = asyncio.Event()

    class Slow(Connection):
        async def receive(self) -> Event:
            if not self.left:
                receiving.set()
            return await super().receive()

    connection = Slow([part(body_of(method)[:1], True)])

    async def main() -> None:
        handler = Handler(method, lambda request: request.__aiter__().__anext__())
        task = asyncio.ensure_future(app_of(handler)(request_of(method), connection.receive, connection.send))
        await asyncio.wait_for(receiving.wait(), 2)
        task.cancel()
        await asyncio.wait([task], timeout=2)
        assert task.cancelled()

    asyncio.run(main())
    assert code_in(connection) == "unavailable"
    if not method.kind.server_streams:
        assert (b"connection", b"close") in connection.sent[0]["headers"], "the next request would come behind this one"


@EVERY
@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_does_not_take_the_end_of_a_call_that_it_cancels(
    method: Any, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not held up; if it cancels once more, not at all."""
    monkeypatch.setattr(asgi_module, "_CANCELLED_MAX_SECONDS", 60 if again else 0.05)
    waiting, ending = asyncio.Event(), asyncio.Event()

    async def hold(request: object) -> None:
        waiting.set()
        await long()

    async def on_send(event: Event) -> None:
        if waiting.is_set():
            ending.set()
            await asyncio.sleep(60)

    connection = Connection([part(body_of(method))], on_send)

    async def main() -> None:
        app = app_of(Handler(method, hold))
        task = asyncio.ensure_future(app(request_of(method), connection.receive, connection.send))
        await asyncio.wait_for(waiting.wait(), 2)
        task.cancel()
        await asyncio.wait_for(ending.wait(), 2)
        if again:
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done, "it hangs"
        assert task.cancelled()

    asyncio.run(main())
    assert not connection.complete


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_server_that_cancels_a_call_while_it_takes_a_message(method: Any) -> None:
    """Half of it may have gone out: the end of the stream would be taken for the rest."""
    sending = asyncio.Event()

    async def on_send(event: Event) -> None:
        if event.get("body"):
            assert not sending.is_set()
            sending.set()
            await asyncio.sleep(60)

    connection = Connection([part(body_of(method))], on_send)

    async def main() -> None:
        app = app_of(Handler(method, long))
        task = asyncio.ensure_future(app(request_of(method), connection.receive, connection.send))
        await asyncio.wait_for(sending.wait(), 2)
        task.cancel()
        await asyncio.wait([task], timeout=2)
        assert task.cancelled()

    asyncio.run(main())
    assert not connection.complete


@EVERY
def test_a_server_that_cancels_during_cleanup(method: Any) -> None:
    """After the deadline: what it cancels ends, whatever Python."""
    cleaning = asyncio.Event()
    handler = Handler(method, long, lambda: wait_in_cleanup())

    async def wait_in_cleanup() -> None:
        cleaning.set()
        await long()

    async def main() -> None:
        connection = Connection([part(body_of(method))])
        task = asyncio.ensure_future(app_of(handler)(request_of(method, 50), connection.receive, connection.send))
        await asyncio.wait_for(cleaning.wait(), 2)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=2)
        assert done, "it hangs"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("waits", [True, False])
@EVERY
def test_a_cancellation_that_is_not_the_calls(
    method: Any, waits: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of another task that a handler waits for: it is a failure like any other."""
    # On a busy machine a stream would let other calls have their turn before, which is to wait.
    monkeypatch.setattr("connectrpc.server.asgi_guard._TURN_SECONDS", 60)

    async def fail(request: object) -> None:
        if waits:
            await asyncio.sleep(0)
        raise asyncio.CancelledError("whose?")

    connection = Connection([part(body_of(method))])

    async def main() -> None:
        await app_of(Handler(method, fail))(request_of(method, 60_000), connection.receive, connection.send)

    if waits and sys.version_info < (3, 11):  # which cannot tell
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        assert code_in(connection) == "unavailable"
        return
    with caplog.at_level(logging.CRITICAL, "connectrpc.server"):
        asyncio.run(main())
    assert code_in(connection) == "unknown"
    assert "whose?" not in str(connection.sent)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks count their cancellations from 3.11 on")
@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_cancellation_that_is_not_the_calls_during_cleanup(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> AsyncIterator[Any]:
        try:
            yield ABORTED
        finally:
            raise asyncio.CancelledError

    with caplog.at_level(logging.CRITICAL, "connectrpc.server"):
        connection = run(handler, method)
    assert code_in(connection) == "aborted"


@EVERY
def test_a_handler_that_has_its_call_cancelled(method: Any) -> None:
    """Whoever cancels the task itself, its cancellation passes through as it does in any other app."""

    async def cancel(request: object) -> None:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    connection = Connection([part(body_of(method))])

    async def main() -> None:
        await app_of(Handler(method, cancel))(request_of(method, 60_000), connection.receive, connection.send)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert code_in(connection) == "unavailable"


@EVERY
def test_timeouts_around_the_app(method: Any) -> None:
    """Middleware may bound calls in its own way; the handler is cleaned up, and the timeout is the middleware's."""
    handler = Handler(method, long, lambda: asyncio.sleep(0))
    connection = Connection([part(body_of(method))])

    async def main() -> None:
        call = app_of(handler)(request_of(method, 60_000), connection.receive, connection.send)
        await asyncio.wait_for(call, 0.1)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())
    assert handler.log == CANCELLED


# What waiting costs


@EVERY
def test_many_waits_are_watched_once(method: Any) -> None:
    """One task and at most a few timers, however often the handler waits."""
    tasks: set[Any] = set()
    timers: list[Any] = []

    async def wait_often(request: object) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
            tasks.update(asyncio.all_tasks())
        await asyncio.sleep(0.03)
        for _ in range(100):
            await asyncio.sleep(0)
            tasks.update(asyncio.all_tasks())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_later: Any = loop.call_later

        def counting(delay: float, *args: Any, **kwargs: Any) -> Any:
            timers.append(args)
            return call_later(delay, *args, **kwargs)

        connection = Connection([part(body_of(method))])
        loop.call_later = counting  # type: ignore[method-assign,assignment]
        await app_of(Handler(method, wait_often))(request_of(method, 60_000), connection.receive, connection.send)
        assert connection.complete
        tasks.discard(asyncio.current_task())

    asyncio.run(main())
    assert len(tasks) <= 1
    # One for the deadline, the handler's own; those that begin to watch are made when there is nothing to watch yet.
    assert len(timers) <= 6


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("apart", [False, True], ids=["in the call's task", "in a task of its own"])
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_others_have_their_turn(method: Any, apart: bool, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose messages are always there lets others go on in between. One that waits for each does that anyway,
    and takes no more turns of the loop than it has to."""

    async def read(request: Any) -> None:
        async for _ in request:
            pass

    async def answer(request: Any) -> Any:
        await (asyncio.create_task(read(request)) if apart else read(request))
        return reply("a")

    async def stream(request: Any) -> AsyncIterator[Any]:
        if apart:
            await asyncio.create_task(read(request))
        else:
            async for _ in request:
                yield reply("a")

    def turns(seconds: float) -> int:
        monkeypatch.setattr("connectrpc.server.asgi_guard._TURN_SECONDS", seconds)
        left = 50

        async def receive() -> Event:
            nonlocal left
            if waits:
                await asyncio.sleep(0)
            left -= 1
            return {"type": "http.request", "body": asked(ask("a")), "more_body": left > 0}

        async def send(event: Event) -> None:
            pass

        async def main() -> int:
            turns = 0
            loop = asyncio.get_running_loop()

            def turn() -> None:
                nonlocal turns
                turns += 1
                loop.call_soon(turn)

            loop.call_soon(turn)
            handler = stream if method is BIDI else answer
            await app_of(handler)(request_of(method), receive, send)
            return turns

        return asyncio.run(main())

    hurried, patient = turns(-1), turns(60)
    if waits and not apart:  # whether a task of the handler's own has waited is not known
        assert hurried == patient
    elif not waits:
        assert hurried >= 15
        assert patient <= 10


def test_a_request_that_has_ended_ends_with_one_event() -> None:
    """What says how a stream went goes out with the end of the body: an event more is a packet more."""

    async def handler(request: object) -> AsyncIterator[Any]:
        yield reply("a")

    *_, message, last = run(handler, SERVER).sent
    assert (bool(message["body"]), message["more_body"]) == (True, True)
    assert (bool(last["body"]), last["more_body"]) == (True, False)


# Flow control


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_slow_client_holds_the_generator_back(method: Any, wait: bool) -> None:
    """It makes the next message when the one before has been taken."""
    made: list[int] = []
    free = asyncio.Event()
    stuck = asyncio.Event()

    async def handler(request: object) -> AsyncIterator[Any]:
        for number in range(5):
            if wait:
                await asyncio.sleep(0)
            made.append(number)
            yield reply(str(number))

    async def on_send(event: Event) -> None:
        if event.get("more_body") and len(made) == 2:
            stuck.set()
            await free.wait()

    async def main() -> None:
        connection = Connection([part(body_of(method))], on_send)
        task = asyncio.ensure_future(serve_in(connection))
        await asyncio.wait_for(stuck.wait(), 2)
        await asyncio.sleep(0.05)
        assert made == [0, 1]
        free.set()
        await asyncio.wait_for(task, 2)
        assert connection.answer().stream()[0] == list("01234")

    async def serve_in(connection: Connection) -> None:
        await app_of(handler)(request_of(method), connection.receive, connection.send)

    asyncio.run(main())


CHUNK = asked(ask("x" * 1000))
AHEAD = 64 * 1024
MEBIBYTE = 1024 * 1024
EVENT = 256  # what an event counts beside its body


def until(condition: Callable[[], bool], patience: float = 2.0) -> Awaitable[None]:
    async def wait() -> None:
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, "it never came to that"
            await asyncio.sleep(0.005)

    return wait()


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_how_much_is_read_ahead(method: Any) -> None:
    """64 KiB while the handler waits for something else, and more only as it takes them."""
    taken: list[int] = []
    names: list[str] = []
    size = len(CHUNK) + EVENT

    async def look(request: Any) -> None:
        # What one event brings is there as a whole: the bound holds before the next is asked for.
        await until(lambda: connection.receives * size > AHEAD)
        await asyncio.sleep(0.1)
        taken.append(connection.receives)
        async for message in request:
            names.append(message.name[:1])
            if len(names) % 50 == 0:
                await asyncio.sleep(0.03)  # time enough to read ahead again

    events = [*(part(CHUNK, True) for _ in range(300)), part()]
    connection = Connection(events)
    asyncio.run(serve(app_of(Handler(method, look)), request_of(method), connection, patience=10))
    assert connection.answer().stream()[1] == {}
    assert AHEAD < taken[0] * size <= AHEAD + size
    assert len(names) == 300
    assert connection.left == 0


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("read_max_bytes", "bound"),
    [(None, 4 * MEBIBYTE), (100 * MEBIBYTE, 4 * MEBIBYTE), (MEBIBYTE, MEBIBYTE), (1000, AHEAD)],
)
def test_how_much_is_read_ahead_over_http_2(method: Any, read_max_bytes: int | None, bound: int) -> None:
    """As much as one message may have before the handler begins to read: it may wait for others of the connection."""
    taken: list[int] = []
    chunk = asked(*[ask("x" * 100)] * 600)
    size = len(chunk) + EVENT

    async def look(request: Any) -> None:
        await until(lambda: connection.receives * size > bound)
        await asyncio.sleep(0.05)
        taken.append(connection.receives)
        messages = request.__aiter__()
        for _ in range(2000):
            await messages.__anext__()
        await asyncio.sleep(0.05)
        taken.append(connection.receives)
        async for _ in messages:
            pass

    connection = Connection([*(part(chunk, True) for _ in range(90)), part()])
    app = app_of(Handler(method, look), read_max_bytes=read_max_bytes)
    asyncio.run(serve(app, request_of(method, http_version="2"), connection, patience=10))
    assert connection.answer().stream()[1] == {}
    assert bound < taken[0] * size <= bound + size
    # From then on it is a slow reader like any other.
    given = -(-2000 // 600) * size
    assert taken[1] * size <= max(taken[0] * size, given + AHEAD + size)
    assert connection.left == 0


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_events_with_nothing_in_them_are_not_piled_up(method: Any) -> None:
    """On HTTP/2 an empty frame costs its sender nine bytes, and flow control does not hold it."""
    taken: list[int] = []

    async def look(request: Any) -> None:
        await asyncio.sleep(0.1)
        taken.append(connection.receives)
        async for _ in request:
            pass

    connection = Connection([*(part(b"", True) for _ in range(5000)), part(CHUNK)])
    asyncio.run(serve(app_of(Handler(method, look)), request_of(method), connection, patience=10))
    assert connection.answer().stream()[1] == {}
    assert taken[0] <= AHEAD // EVENT + 1


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_leaving_is_seen_behind_what_was_read_ahead(method: Any) -> None:
    """As far as there is room: nobody reads without bounds only to see a client leave."""
    handler = Handler(method, long)
    run(handler, method, [*(part(CHUNK, True) for _ in range(20)), 0.05, DISCONNECT])
    assert handler.log == CANCELLED


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("pause", "arrivals"),
    [
        pytest.param(0.0, ["a", "b", 0.08, "c", 0.03, "last"], id="it-reads-by-itself"),
        pytest.param(0.04, ["a", "b", 0.08, "c", 0.03, "last"], id="in-turns"),
        pytest.param(0.0, [0.08, "last"], id="it-waits-for-who-reads-ahead"),
    ],
)
def test_leaving_is_seen_between_messages(method: Any, pause: float, arrivals: list[str | float]) -> None:
    """However reading and other waiting have taken turns before."""
    names: list[str] = []
    expected = [arrival for arrival in arrivals if isinstance(arrival, str)]

    async def read_then_wait(request: Any) -> None:
        await asyncio.sleep(0.04)  # by now somebody else reads
        async for message in request:
            names.append(message.name)
            await asyncio.sleep(pause)
            if message.name == "last":
                await long()

    handler = Handler(method, read_then_wait)
    events = [part(asked(ask(arrival)), True) if isinstance(arrival, str) else arrival for arrival in arrivals]
    connection = run(handler, method, [*events, 0.08, DISCONNECT])
    assert names == expected
    assert handler.log == CANCELLED
    assert not connection.overlapping


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_deadline_while_nothing_more_is_read(method: Any) -> None:
    """The reader that is held back does not hold the call back."""
    handler = Handler(method, long)
    events = [*(part(CHUNK, True) for _ in range(300)), part()]
    assert code_in(run(handler, method, events, 150)) == "deadline_exceeded"
    assert handler.log == CANCELLED


# Requests as servers vary them


def test_receive_is_not_called_where_there_is_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """On uvicorn over HTTP/2 it never returns then, also when the handler waits."""
    monkeypatch.delitem(USUAL, "content-length", raising=False)

    async def wait(request: Any) -> Any:
        await asyncio.sleep(0.05)
        return reply(request.msg.name)

    made = scope(PURE.path, None, method="GET", query_string=b"encoding=json&message={}")
    connection = exchange(app_of(wait), made, [])
    assert connection.answer().status == 200
    connection = exchange(app_of(wait), scope(UNARY.path, PROTO, [("content-length", "0")]), [])
    assert connection.answer().message() == reply()


@EVERY
def test_events_without_end_after_the_body(method: Any) -> None:
    """As pyvoy: a watcher that does not pause would take the loop for itself."""

    class Endless(Connection):
        async def receive(self) -> Event:
            self.receives += 1
            return part(body_of(method)) if self.receives == 1 else part()

    async def wait(request: object) -> None:
        await asyncio.sleep(0.15)

    connection = Endless()
    asyncio.run(serve(app_of(Handler(method, wait)), request_of(method), connection))
    assert connection.complete
    assert connection.receives < 10


@EVERY
@pytest.mark.parametrize("left", [DISCONNECT, OSError("the client has left")], ids=["event", "error"])
def test_complaints_behind_the_end_of_a_request(method: Any, left: Any) -> None:
    """Starlette's BaseHTTPMiddleware makes them of pyvoy's empty events. They do not say that the client has left."""
    complaint = RuntimeError("Unexpected message received: http.request")
    events: list[Any] = [part(body_of(method)), complaint, complaint]
    waiting = asyncio.Event()

    class Complaining(Connection):
        async def receive(self) -> Event:
            if self.left == 1:
                waiting.set()
            return await super().receive()

    async def handler(request: Any) -> Any:
        await asyncio.wait_for(waiting.wait(), 2)
        return [reply("done")] if method.kind.server_streams else reply("done")

    connection = Complaining([*events, 5.0])
    asyncio.run(serve(app_of(handler), request_of(method), connection))
    assert connection.complete
    assert b"done" in b"".join(event.get("body", b"") for event in connection.sent)

    held = Handler(method, long)
    assert not run(held, method, [*events, left]).complete
    assert held.log == CANCELLED


@pytest.mark.parametrize("root_path", [None, "", "/", "/api", "/api/"])
@EVERY
def test_scopes_with_the_least_that_may_be_there(method: Any, root_path: str | None) -> None:
    seen: list[Any] = []

    async def note(request: Any) -> Any:
        seen.append((request.peer.address, sorted(request.headers)))
        return [reply("a")] if method.kind.server_streams else reply("a")

    made = request_of(method)
    for key in ("client", "server", "scheme", "raw_path", "root_path"):
        del made[key]
    if root_path is not None:
        made["root_path"] = root_path
    made["asgi"] = {"version": "3.0"}
    connection = exchange(app_of(note), made, [part(body_of(method))])
    assert connection.answer().status == 200
    assert seen[0][0] == ""


@EVERY
def test_scopes_with_more_than_anybody_needs(method: Any) -> None:
    seen: list[Any] = []

    async def note(request: Any) -> Any:
        await asyncio.sleep(0)
        seen.append(request.headers)
        return [reply("a")] if method.kind.server_streams else reply("a")

    made = request_of(
        method,
        client=["192.0.2.7", 1],
        state={"x": 1},
        extensions={"http.response.trailers": {}, "http.response.push": {}, "tls": {}},
        path_params={},
        app=object(),
    )
    made["headers"] = tuple((name, value) for name, value in (*made["headers"], (b"X-Upper", b"1"), (b"x-upper", b"2")))
    connection = exchange(app_of(note), made, [part(body_of(method))])
    assert connection.answer().status == 200
    assert seen[0].getall("x-upper") == ["1", "2"]
    made["headers"] = [list(pair) for pair in made["headers"]]
    assert exchange(app_of(note), made, [part(body_of(method))]).answer().status == 200


@EVERY
def test_send_that_fails(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """ASGI 2.4: an OSError when the client has gone, at whatever event, also when it has waited before."""
    for number in range(3):
        handler = Handler(method, lambda request: asyncio.sleep(0.02), lambda: asyncio.sleep(0.01))
        sent: list[Event] = []

        async def on_send(event: Event, sent: list[Event] = sent, number: int = number) -> None:
            sent.append(event)
            await asyncio.sleep(0)
            if len(sent) > number:
                raise ConnectionResetError("gone")

        connection = run(handler, method, on_send=on_send)
        assert len(connection.sent) <= number
        assert len(sent) <= number + 1, "nothing more is sent to nobody"
        assert handler.log in ([], ["begun", "done", "cleaned up"], ["begun", "GeneratorExit", "cleaned up"])
    assert quiet(caplog)


def test_giving_up_on_a_request_is_noted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from connectrpc.server import asgi_request

    monkeypatch.setattr(asgi_request, "DRAIN_MAX_BYTES", 2000)
    with caplog.at_level(logging.INFO, "connectrpc.server"):
        connection = exchange(app_of(lambda request: reply()), scope("/unknown"), body_events(b"x" * 100_000, 1000))
    assert connection.answer().status == 404
    assert connection.answer().headers["connection"] == "close", "or the server would read on"
    assert "gave up" in caplog.text


def test_an_iterable_whose_iterator_is_only_that() -> None:
    """``async for`` asks an iterator for no more than its messages."""

    class Only:
        def __init__(self) -> None:
            self._left = 2

        async def __anext__(self) -> Any:
            if not self._left:
                raise StopAsyncIteration
            self._left -= 1
            return reply(str(self._left))

    class Iterable:
        def __aiter__(self) -> Any:
            return Only()

    async def plain(request: object) -> Any:
        return Iterable()

    async def stream(request: object) -> Any:
        return ServerStream(Iterable())

    for handler in (plain, stream):
        assert run(handler, SERVER).answer().stream() == (["1", "0"], {})
