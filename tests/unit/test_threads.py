"""Synchronous implementations in threads, under both kinds of application."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks
from connectrpc.server import (
    AsyncClientStream,
    ClientRequest,
    ClientStream,
    InThreads,
    ServerStream,
    asgi_service,
    wsgi_service,
)
from harness import (
    BIDI,
    CLIENT,
    DISCONNECT,
    PROTO,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    Answer,
    Connection,
    Starter,
    ask,
    asked,
    call_asgi,
    call_wsgi,
    environ,
    exchange,
    part,
    reply,
    scope,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from connectrpc.interceptors import Request, Response
    from harness import Event

ALL = [UNARY, SERVER, CLIENT, BIDI]
EVERY = pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
BOTH = pytest.mark.parametrize("kind", ["wsgi", "asgi"])
PATIENCE = 5.0
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
KEPT: contextvars.ContextVar[Any] = contextvars.ContextVar("kept")


def body_of(method: Any, *names: str) -> bytes:
    given = [ask(name) for name in names or ("a",)]
    return given[0].SerializeToString() if method is UNARY else asked(*given)


def type_of(method: Any) -> str:
    return PROTO if method is UNARY else STREAM_PROTO


def in_threads(handler: Callable[[Any], Any], **options: Any) -> InThreads[Any]:
    given = types.SimpleNamespace(unary=handler, pure=handler, server=handler, client=handler, bidi=handler)
    return InThreads(given, **options)


def answer_of(
    kind: str, threads: InThreads[Any], method: Any, body: bytes | None = None, timeout_ms: int | None = None
) -> Answer:
    headers = {} if timeout_ms is None else {"connect-timeout-ms": str(timeout_ms)}
    body = body_of(method) if body is None else body
    if kind == "wsgi":
        return call_wsgi(wsgi_service(SERVICE, threads), environ(method.path, body, type_of(method), headers))
    return call_asgi(asgi_service(SERVICE, threads), scope(method.path, type_of(method), headers.items()), body)


def code_in(answer: Answer) -> str:
    return answer.failure() if answer.media_type == STREAM_PROTO else answer.code()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def work(request: Any) -> Iterator[str]:
    """The names in a request, as they come."""
    if hasattr(request, "msg"):
        yield request.msg.name
    else:
        for message in request:
            yield message.name


@BOTH
@EVERY
def test_a_call_has_one_thread(method: Any, kind: str) -> None:
    """From its beginning to the ``finally`` of its generator, and it is not the server's."""
    local = threading.local()
    seen: list[Any] = []

    def handler(request: Any) -> Any:
        return stream(request) if method.kind.server_streams else answer(request)

    def answer(request: Any) -> Any:
        local.mine = "mine"
        seen.append(threading.current_thread())
        names = list(work(request))
        assert local.mine == "mine"
        return reply(",".join(names))

    def stream(request: Any) -> Any:
        local.mine = "mine"
        seen.append(threading.current_thread())
        try:
            for name in work(request):
                assert local.mine == "mine"
                yield reply(name)
        finally:
            assert local.mine == "mine"
            seen.append(threading.current_thread())

    names = ("a", "b") if method.kind.client_streams else ("a",)
    found = answer_of(kind, in_threads(handler), method, body_of(method, *names))
    if method is UNARY:
        assert found.message() == reply("a")
    else:
        assert found.stream() == (list(names) if method.kind.server_streams else [",".join(names)], {})
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()
    assert seen[0].name.startswith("connectrpc-handler")


@BOTH
@EVERY
def test_context_variables_come_along(method: Any, kind: str) -> None:
    def handler(request: Any) -> Any:
        if not method.kind.server_streams:
            return reply(VARIABLE.get())
        return (reply(VARIABLE.get()) for _ in range(1))

    def outside() -> Answer:
        VARIABLE.set("outside")
        return answer_of(kind, in_threads(handler), method)

    found = contextvars.copy_context().run(outside)
    assert [found.message().file_name] if method is UNARY else found.stream()[0] == ["outside"]


@pytest.mark.parametrize("kind_of_error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["at once", "later"])
@BOTH
@EVERY
def test_what_ends_a_thread_ends_no_server(
    method: Any, kind: str, where: str, kind_of_error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A program's ``sys.exit`` in a thread ends only that, anywhere else."""

    def handler(request: Any) -> Any:
        if where == "later" and method.kind.server_streams:
            return stream()
        raise kind_of_error

    def stream() -> Any:
        yield reply("a")
        raise kind_of_error

    assert code_in(answer_of(kind, in_threads(handler), method)) == "unknown"
    assert kind_of_error.__name__ in caplog.text


@BOTH
@EVERY
def test_the_thread_is_given_what_interceptors_keep(method: Any, kind: str) -> None:
    seen: list[Any] = []

    class Keeping(Hooks):
        def on_start(self, context: Any) -> None:
            context.values["user"] = "ada"

    def handler(request: Any) -> Any:
        seen.append(request.values)
        return [] if method.kind.server_streams else reply("a")

    threads, interceptors = in_threads(handler), [Keeping()]
    if kind == "wsgi":
        app = wsgi_service(SERVICE, threads, interceptors=interceptors)
        call_wsgi(app, environ(method.path, body_of(method), type_of(method)))
    else:
        asgi = asgi_service(SERVICE, threads, interceptors=interceptors)
        call_asgi(asgi, scope(method.path, type_of(method)), body_of(method))
    assert seen == [{"user": "ada"}]


@BOTH
@EVERY
def test_the_answer_goes_out_at_the_deadline(method: Any, kind: str) -> None:
    """Whatever the thread is doing; what it gives later goes nowhere."""
    free, ended = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        return stream() if method.kind.server_streams else answer()

    def answer() -> Any:
        free.wait(PATIENCE)
        ended.set()
        return reply("late")

    def stream() -> Any:
        try:
            yield reply("first")
            free.wait(PATIENCE)
            yield reply("late")
            yield reply("never")
        finally:
            ended.set()

    started = time.monotonic()
    try:
        found = answer_of(kind, in_threads(handler), method, timeout_ms=600)
        assert time.monotonic() - started < PATIENCE - 1
        assert code_in(found) == "deadline_exceeded"
        assert b"late" not in found.body
        if method.kind.server_streams:
            assert found.stream()[0] == ["first"]
    finally:
        free.set()
    assert ended.wait(PATIENCE), "the generator is cleaned up all the same"


@BOTH
def test_calls_wait_for_their_turn(kind: str) -> None:
    """Until their deadline, and then their handlers are not called any more."""
    free, begun = threading.Event(), threading.Event()
    called: list[str] = []

    def handler(request: Any) -> Any:
        called.append(request.msg.name)
        begun.set()
        free.wait(PATIENCE)
        return reply(request.msg.name)

    threads = in_threads(handler, max_threads=1)
    answers: list[Answer] = []
    first = threading.Thread(target=lambda: answers.append(answer_of(kind, threads, UNARY, body_of(UNARY, "first"))))
    first.start()
    try:
        assert begun.wait(PATIENCE)
        second = answer_of(kind, threads, UNARY, body_of(UNARY, "second"), timeout_ms=150)
        assert second.code() == "deadline_exceeded"
    finally:
        free.set()
        first.join(PATIENCE)
    assert answers[0].message() == reply("first")
    assert answer_of(kind, threads, UNARY, body_of(UNARY, "third")).message() == reply("third")
    assert called == ["first", "third"]


@BOTH
@EVERY
def test_calls_that_are_over_before_their_turn_keep_nothing(method: Any, kind: str) -> None:
    """Handlers that hang, and callers that try again and again, must not fill the memory."""
    free, begun = threading.Event(), threading.Event()

    class Value:
        pass

    def handler(request: Any) -> Any:
        begun.set()
        free.wait(PATIENCE)
        return [reply("a")] if method.kind.server_streams else reply("a")

    def late() -> weakref.ref[Value]:
        value = Value()
        KEPT.set(value)
        assert code_in(answer_of(kind, threads, method, timeout_ms=30)) == "deadline_exceeded"
        return weakref.ref(value)

    def given() -> int:
        gc.collect()
        return sum(isinstance(found, (ClientRequest, ClientStream, AsyncClientStream)) for found in gc.get_objects())

    threads = in_threads(handler, max_threads=1)
    before = given()  # of the tests before, say
    try:
        assert code_in(answer_of(kind, threads, method, timeout_ms=300)) == "deadline_exceeded"
        assert begun.wait(PATIENCE)
        values = [contextvars.copy_context().run(late) for _ in range(3)]
        assert given() - before <= 2, "more than those of the call that has the thread"
        assert [value() for value in values] == [None] * 3
        assert not threads._pools[os.getpid()]._waiting
    finally:
        free.set()


@BOTH
def test_a_message_does_not_wait_for_the_garbage_collector(kind: str) -> None:
    """It may be large, while that goes by how many objects there are."""
    free, begun = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        begun.set()
        free.wait(PATIENCE)
        return reply("a")

    def requests() -> list[str]:
        found = [found.msg.name for found in gc.get_objects() if isinstance(found, ClientRequest)]
        return [name for name in found if name.startswith("large")]

    threads = in_threads(handler, max_threads=1)
    gc.disable()
    try:
        found = answer_of(kind, threads, UNARY, body_of(UNARY, "large"), timeout_ms=100)
        assert found.code() == "deadline_exceeded"
        assert begun.wait(PATIENCE)
        for _ in range(3):
            found = answer_of(kind, threads, UNARY, body_of(UNARY, "large, late"), timeout_ms=30)
            assert found.code() == "deadline_exceeded"
        assert requests() == ["large"]
    finally:
        gc.enable()
        free.set()


@BOTH
@pytest.mark.parametrize(
    ("fails", "method"),
    [*(("handler", method) for method in ALL), ("request", CLIENT), ("request", BIDI)],
    ids=str,
)
def test_a_failure_does_not_wait_for_the_garbage_collector(
    fails: str, method: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was raised has the handler's frames, and so all that they have."""

    class Value:
        pass

    kept: list[weakref.ref[Value]] = []

    def handler(request: Any) -> Any:
        value = Value()
        kept.append(weakref.ref(value))
        if fails == "handler":
            raise ValueError("m")
        with contextlib.suppress(ConnectError):
            list(work(request))
        return [reply("a")] if method.kind.server_streams else reply("a")

    caplog.set_level(logging.CRITICAL, "connectrpc.server")  # a record would have it
    threads = in_threads(handler)
    gc.disable()
    try:
        answer = answer_of(kind, threads, method, None if fails == "handler" else body_of(method) + b"\1")
        assert fails == "request" or code_in(answer) == "unknown"
        (value,) = kept
        wait_for(lambda: value() is None)  # the thread has still to leave the call
    finally:
        gc.enable()


def test_turns_come_in_order() -> None:
    """Past the calls that are over by then."""
    free = threading.Event()
    called: list[str] = []

    def handler(request: Any) -> Any:
        called.append(request.msg.name)
        free.wait(PATIENCE)
        return reply(request.msg.name)

    app = asgi_service(SERVICE, in_threads(handler, max_threads=1))

    async def call(name: str, timeout_ms: int) -> int:
        connection = Connection([part(body_of(UNARY, name))])
        headers = [("connect-timeout-ms", str(timeout_ms))]
        await app(scope(UNARY.path, PROTO, headers), connection.receive, connection.send)
        return connection.answer().status

    async def main() -> list[int]:
        tasks = []
        for name in "abcdefg":
            tasks.append(asyncio.ensure_future(call(name, 50 if name in "bcf" else 20_000)))
            await asyncio.sleep(0)
        while sum(task.done() for task in tasks) < 3:  # noqa: ASYNC110  until their deadline
            await asyncio.sleep(0.01)
        free.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    assert asyncio.run(main()) == [504 if name in "bcf" else 200 for name in "abcdefg"]
    assert called == list("adeg")


@BOTH
def test_threads_are_not_lost(kind: str) -> None:
    """Whenever calls end: while they wait for their turn, as it comes, and after it."""

    def handler(request: Any) -> Any:
        time.sleep(0.001)
        return reply(request.msg.name)

    threads = in_threads(handler, max_threads=3)
    codes: set[str] = set()
    wrong: list[Any] = []

    def caller(number: int) -> None:
        for count in range(40):
            name = f"{number}.{count}"
            found = answer_of(kind, threads, UNARY, body_of(UNARY, name), timeout_ms=20_000 if count % 2 else 3)
            if found.status != 200:
                codes.add(found.code())
            elif found.message() != reply(name):
                wrong.append(found)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    assert wrong == []
    assert codes <= {"deadline_exceeded"}
    pool = threads._pools[os.getpid()]
    wait_for(lambda: pool._free == len(pool._threads))
    assert len(pool._threads) <= 3
    assert not pool._waiting
    assert not pool._under_way


@BOTH
def test_a_thread_that_cannot_be_started(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails, and nothing is left of it."""
    threads = in_threads(lambda request: reply(request.msg.name))
    with monkeypatch.context() as patched:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", start)
        assert answer_of(kind, threads, UNARY).code() == "unknown"
    pool = threads._pools[os.getpid()]
    assert not pool._waiting
    assert not pool._under_way
    assert answer_of(kind, threads, UNARY).message() == reply("a")


@BOTH
def test_a_stream_that_ends_gives_its_thread_back(kind: str) -> None:
    """However it ends."""

    def handler(request: Any) -> Any:
        def messages() -> Any:
            yield reply("a")
            if request.msg.name == "raise":
                raise RuntimeError("secret")
            if request.msg.name == "error":
                yield ConnectError(ConnectErrorCode.ABORTED)
            yield reply("b")

        if request.msg.name == "fail":
            raise ConnectError(ConnectErrorCode.ABORTED)
        if request.msg.name == "bad headers":
            return ServerStream(messages(), {"connect-x": "1"})
        return messages()

    threads = in_threads(handler, max_threads=1)
    for name in ("fail", "error", "raise", "bad headers", "none") * 2:
        found = answer_of(kind, threads, SERVER, body_of(SERVER, name), timeout_ms=20_000)
        assert ("error" in found.stream()[1]) is (name != "none")


def endless(ended: list[threading.Thread]) -> InThreads[Any]:
    """One thread for a stream without an end; ``ended`` is told in which thread its ``finally`` runs."""

    def handler(request: Any) -> Any:
        try:
            while True:
                yield reply("a")
        finally:
            ended.append(threading.current_thread())

    return in_threads(handler, max_threads=1)


def begun(threads: InThreads[Any], reads: int) -> tuple[Any, Any]:
    """The body of a streamed answer, and its iterator, of which so many parts were read."""
    parts: Any = wsgi_service(SERVICE, threads)(environ(SERVER.path, body_of(SERVER), STREAM_PROTO), Starter())
    messages = iter(parts)
    for _ in range(reads):
        next(messages)
    return parts, messages


def check_that_it_is_over(threads: InThreads[Any], ended: list[threading.Thread], reads: int) -> None:
    if reads > 1:
        wait_for(lambda: ended)
        assert ended[0] is not threading.current_thread()
    # The only thread is free again.
    quick = in_threads(lambda request: [reply("x")])
    quick._pools = threads._pools
    assert answer_of("wsgi", quick, SERVER, timeout_ms=5000).stream()[0] == ["x"]


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_wsgi_server_that_closes_early(reads: int) -> None:
    """As it does when the client has left: the generator's ``finally`` runs, in its thread."""
    ended: list[threading.Thread] = []
    threads = endless(ended)
    parts, _ = begun(threads, reads)
    parts.close()
    check_that_it_is_over(threads, ended, reads)


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_a_wsgi_answer_that_nobody_closes(reads: int) -> None:
    """A test's, say, that reads no further than it needs. Its generator's ``finally`` runs once it is collected."""
    ended: list[threading.Thread] = []
    threads = endless(ended)

    def leave_one_lying_about() -> None:
        circle: list[Any] = [*begun(threads, reads)]
        circle.append(circle)

    leave_one_lying_about()
    gc.collect()
    check_that_it_is_over(threads, ended, reads)


@pytest.mark.parametrize("fails", [False, True])
@BOTH
def test_messages_that_are_asked_for_after_their_end(kind: str, fails: bool) -> None:
    """As iterators have it, there are none then. There is no thread any more that would say so."""

    def handler(request: Any) -> Any:
        yield reply("a")
        if fails:
            raise ConnectError(ConnectErrorCode.ABORTED, "m")

    def again(messages: Any) -> Iterator[Any]:
        with contextlib.suppress(ConnectError):
            yield from messages
        assert next(messages, None) is None
        yield reply("over")

    def intercept(request: Request, proceed: Callable[[Request], Response]) -> Response:
        response = proceed(request)
        response.messages = again(response.messages)
        return response

    async def again_async(messages: Any) -> AsyncIterator[Any]:
        with contextlib.suppress(ConnectError):
            async for message in messages:
                yield message
        with pytest.raises(StopAsyncIteration):
            await messages.__anext__()
        yield reply("over")

    async def intercept_async(request: Request, proceed: Any) -> Response:
        response: Response = await proceed(request)
        response.messages = again_async(response.messages)
        return response

    threads = in_threads(handler)
    if kind == "wsgi":
        app = wsgi_service(SERVICE, threads, interceptors=[intercept])
        answer = call_wsgi(app, environ(SERVER.path, body_of(SERVER), STREAM_PROTO))
    else:
        asgi = asgi_service(SERVICE, threads, interceptors=[intercept_async])
        answer = call_asgi(asgi, scope(SERVER.path, STREAM_PROTO), body_of(SERVER))
    assert answer.stream() == (["a", "over"], {})


def test_a_blocking_generator_that_raises_what_ends_an_asynchronous_one() -> None:
    """It is a failure, and not the end of the stream."""

    def handler(request: Any) -> Any:
        yield reply("a")
        raise StopAsyncIteration

    given = types.SimpleNamespace(unary=handler, pure=handler, server=handler, client=handler, bidi=handler)
    for implementation in (in_threads(handler), given):
        answer = call_asgi(asgi_service(SERVICE, implementation), scope(SERVER.path, STREAM_PROTO), body_of(SERVER))
        assert answer.stream()[0] == ["a"]
        assert answer.failure() == "unknown"


@BOTH
def test_messages_that_an_interceptor_throws_away(kind: str) -> None:
    """They cannot be seen by whoever serves the call, so nobody closes them."""
    ended = threading.Event()

    def handler(request: Any) -> Any:
        try:
            yield reply("a")
            yield reply("b")
        finally:
            ended.set()

    def intercept(request: Request, proceed: Callable[[Request], Response]) -> Response:
        response = proceed(request)
        messages: Any = response.messages
        response.messages = [next(iter(messages))]
        return response

    async def intercept_async(request: Request, proceed: Any) -> Response:
        response: Response = await proceed(request)
        given: Any = response.messages
        first = await given.__aiter__().__anext__()

        async def messages() -> Any:
            yield first

        response.messages = messages()
        return response

    threads = in_threads(handler, max_threads=1)
    if kind == "wsgi":
        app = wsgi_service(SERVICE, threads, interceptors=[intercept])
        answer = call_wsgi(app, environ(SERVER.path, body_of(SERVER), STREAM_PROTO))
    else:
        asgi = asgi_service(SERVICE, threads, interceptors=[intercept_async])
        answer = call_asgi(asgi, scope(SERVER.path, STREAM_PROTO), body_of(SERVER))
    assert answer.stream() == (["a"], {})
    del answer
    gc.collect()
    assert ended.wait(PATIENCE)


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_an_asgi_client_that_leaves(method: Any) -> None:
    """A thread cannot be stopped, but its next message ends it."""
    ended, free = threading.Event(), threading.Event()
    given: list[int] = []

    def handler(request: Any) -> Any:
        try:
            for number in range(1000):
                given.append(number)
                yield reply(str(number))
                if number == 1:
                    free.wait(PATIENCE)
        finally:
            ended.set()

    app = asgi_service(SERVICE, in_threads(handler))
    made = scope(method.path, STREAM_PROTO)
    connection = exchange(app, made, [part(body_of(method)), 0.1, DISCONNECT])
    assert not connection.complete
    assert not ended.is_set()
    free.set()
    assert ended.wait(PATIENCE)
    assert len(given) <= 3


@pytest.mark.parametrize("kind_of_error", [ValueError, SystemExit])
def test_what_fails_after_its_client_has_left_is_logged(
    kind_of_error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    free = threading.Event()

    def handler(request: Any) -> Any:
        free.wait(PATIENCE)
        raise kind_of_error("too late")

    headers = [("connect-protocol-version", "1"), ("content-length", "3")]
    made = scope(UNARY.path, PROTO, headers)
    connection = exchange(asgi_service(SERVICE, in_threads(handler)), made, [part(body_of(UNARY)), 0.1, DISCONNECT])
    assert not connection.complete
    free.set()
    wait_for(lambda: "too late" in caplog.text)


def test_a_slow_client_holds_the_thread_back() -> None:
    """It makes the next message when the one before has been taken."""
    made: list[int] = []

    def handler(request: Any) -> Any:
        for number in range(5):
            made.append(number)
            yield reply(str(number))

    async def main() -> None:
        free, stuck = asyncio.Event(), asyncio.Event()

        async def on_send(event: Event) -> None:
            if event.get("more_body") and len(made) == 2:
                stuck.set()
                await free.wait()

        connection = Connection([part(body_of(SERVER))], on_send)
        app = asgi_service(SERVICE, in_threads(handler))
        task = asyncio.ensure_future(app(scope(SERVER.path, STREAM_PROTO), connection.receive, connection.send))
        await asyncio.wait_for(stuck.wait(), PATIENCE)
        await asyncio.sleep(0.1)
        assert made == [0, 1]
        free.set()
        await asyncio.wait_for(task, PATIENCE)
        assert connection.answer().stream()[0] == list("01234")

    asyncio.run(main())


def test_the_loop_is_free_while_a_handler_blocks() -> None:
    """That is what threads are for."""
    free = threading.Event()

    def handler(request: Any) -> Any:
        assert free.wait(PATIENCE), "nobody else ran"
        return reply("done")

    async def main() -> None:
        connection = Connection([part()])
        app = asgi_service(SERVICE, in_threads(handler))
        task = asyncio.ensure_future(app(scope(UNARY.path), connection.receive, connection.send))
        await asyncio.sleep(0.02)
        free.set()
        await asyncio.wait_for(task, PATIENCE)
        assert connection.answer().message() == reply("done")

    asyncio.run(main())


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_messages_come_as_they_are_wanted(method: Any) -> None:
    """A handler that reads slowly reads no further ahead than any other."""
    names: list[str] = []

    def handler(request: Any) -> Any:
        for message in request:
            names.append(message.name)
            if len(names) == 2:
                break
        return [reply(",".join(names))] if method.kind.server_streams else reply(",".join(names))

    message = asked(ask("a"))
    connection = exchange(
        asgi_service(SERVICE, in_threads(handler)),
        scope(method.path, STREAM_PROTO),
        [part(message, True), 0.05, part(message, True), 0.05, part(b"\xff" * 20)],
    )
    assert connection.answer().stream() == (["a,a"], {})


@BOTH
@EVERY
def test_what_is_raised_late_is_logged(method: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """There is nobody to tell any more but the operator."""
    free = threading.Event()

    def handler(request: Any) -> Any:
        free.wait(PATIENCE)
        raise RuntimeError("too late")

    try:
        found = answer_of(kind, in_threads(handler), method, timeout_ms=100)
        assert code_in(found) == "deadline_exceeded"
    finally:
        free.set()
    wait_for(lambda: "too late" in caplog.text)


@BOTH
def test_many_calls_at_a_time(kind: str) -> None:
    """Every caller gets its own answer."""

    def handler(request: Any) -> Any:
        for name in work(request):
            yield reply(name)

    threads = in_threads(handler, max_threads=4)
    wrong: list[Any] = []

    def caller(number: int) -> None:
        for count in range(10):
            names = [f"{number}.{count}.{index}" for index in range(3)]
            found = answer_of(kind, threads, BIDI, body_of(BIDI, *names)).stream()
            if found != (names, {}):
                wrong.append(found)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    assert wrong == []


def test_threads_go_with_their_service() -> None:
    """They are as many as calls ran at a time, no more than that many, and end when nobody can need them."""

    def handlers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("connectrpc-handler")]

    gc.collect()
    wait_for(lambda: not handlers())
    meet = threading.Barrier(3)

    def handler(request: Any) -> Any:
        if request.msg.name == "meet":
            meet.wait(PATIENCE)
        return reply(request.msg.name)

    threads = in_threads(handler, max_threads=30)
    for _ in range(30):
        assert answer_of("wsgi", threads, UNARY).message() == reply("a")
    assert len(handlers()) < 30  # most find one that is free again
    del threads
    gc.collect()
    wait_for(lambda: not handlers())

    threads = in_threads(handler, max_threads=3)
    answers: list[Answer] = []

    def call(threads: InThreads[Any]) -> None:
        answers.append(answer_of("wsgi", threads, UNARY, body_of(UNARY, "meet")))

    callers = [threading.Thread(target=call, args=(threads,)) for _ in range(9)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert [answer.message() for answer in answers] == [reply("meet")] * 9
    assert len(handlers()) == 3
    del threads, callers, caller
    gc.collect()
    wait_for(lambda: not handlers())


EXITS = {
    "an answer that is still referenced": """
        parts = iter(wsgi_service(SERVICE, threads)(made, Starter()))
        say(str(len([next(parts), next(parts)])))
        """,
    "a loop that is closed under the answer": """
        loop, connection = begin()
        loop.close()
        say("2")
        """,
    "a loop that is closed under the handler": """
        loop, connection = begin(busy=True)
        loop.close()
        free.set()
        assert ended.wait(5)
        say("2")
        """,
    "a loop that is stopped and not closed": """
        loop, connection = begin()
        say("2")
        """,
    "a loop that is stopped, and the handler goes on": """
        loop, connection = begin(busy=True)
        free.set()
        say("2")
        """,
    "a handler that runs past its deadline": """
        made["HTTP_CONNECT_TIMEOUT_MS"] = "100"
        parts = iter(wsgi_service(SERVICE, slow)(made, Starter()))
        assert b"deadline_exceeded" in b"".join(parts)
        say("2")
        """,
}
EXIT = """
    import asyncio, atexit, logging, os, sys, threading, time, types
    from connectrpc.server import InThreads, asgi_service, wsgi_service
    from harness import SERVER, SERVICE, STREAM_PROTO, Connection, Starter, ask, asked, environ, part, reply, scope

    logging.disable()


    def say(text):
        os.write(1, text.encode() + b"\\n")  # whole lines, from any thread


    atexit.register(say, "over")
    sys.unraisablehook = lambda given: None  # a loop that is closed under its tasks says much
    waits = False
    free, begun, ended = threading.Event(), threading.Event(), threading.Event()
    made = environ(SERVER.path, asked(ask("a")), STREAM_PROTO)


    def server(request):
        try:
            while True:
                yield reply("a")
                if waits:
                    begun.set()
                    free.wait(5)
        finally:
            ended.set()
            say("ended")


    def server_slow(request):
        yield reply("a")
        time.sleep(0.5)
        say("ended")


    def begin(busy=False):
        global waits
        waits = busy
        loop = asyncio.new_event_loop()

        async def on_send(event):
            if len(connection.sent) > 2 and not busy:
                begun.set()
                await asyncio.Event().wait()

        connection = Connection([part(asked(ask("a")))], on_send)
        app = asgi_service(SERVICE, threads)
        connection.task = loop.create_task(app(scope(SERVER.path, STREAM_PROTO), connection.receive, connection.send))

        async def until_begun():
            while not begun.is_set():
                await asyncio.sleep(0.01)

        loop.run_until_complete(asyncio.wait_for(until_begun(), 5))
        return loop, connection


    threads = InThreads(types.SimpleNamespace(server=server))
    slow = InThreads(types.SimpleNamespace(server=server_slow))
    """


@pytest.mark.parametrize("name", EXITS)
def test_a_process_that_ends(name: str) -> None:
    """It ends, whoever was left waiting, and not before handlers have cleaned up."""
    script = textwrap.dedent(EXIT) + textwrap.dedent(EXITS[name])
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    process = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    assert (process.returncode, process.stderr) == (0, "")
    *before, last = process.stdout.split()
    assert (sorted(before), last) == (["2", "ended"], "over")


def test_what_makes_no_sense() -> None:
    class Asynchronous:
        async def unary(self, request: Any) -> Any: ...

    for number in (0, -1):
        with pytest.raises(ValueError, match="max_threads"):
            InThreads(object(), max_threads=number)
    for make in (wsgi_service, asgi_service):
        with pytest.raises(TypeError, match="async"):
            make(SERVICE, InThreads(Asynchronous()))
        with pytest.raises(TypeError, match="is a class"):
            make(SERVICE, InThreads(Asynchronous))
    assert "Asynchronous" in repr(InThreads(Asynchronous()))


@BOTH
def test_methods_that_are_missing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert code_in(answer_of(kind, InThreads(object()), UNARY)) == "unimplemented"
    assert "object has no unary()" in caplog.text
