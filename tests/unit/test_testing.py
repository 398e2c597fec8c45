"""Clients of both colours against apps of both kinds, without a socket: every pair does what real servers do."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import queue
import threading
import time
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from google.protobuf.duration_pb2 import Duration

from connectrpc.cancel import CancelToken
from connectrpc.client import AsyncClient, SyncClient
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks
from connectrpc.request import ServerResponse, ServerStream
from connectrpc.server import InThreads, asgi_service, wsgi_service
from connectrpc.testing import ASGITransport, WSGITransport
from harness import BIDI, CLIENT, METHODS, PURE, SERVER, SERVICE, UNARY, ask, code_of, reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from connectrpc.client.aio import AsyncCaller
    from connectrpc.client.sync import SyncCaller
    from connectrpc.interceptors import Request, Response

PATIENCE = 20.0
"""How long anything may take before it counts as hanging, in seconds."""

BIG = "0123456789abcdef" * 8192  # several times what a transport holds


# The services


class Both:
    """What the services of both colours have in common.

    Attributes:
        seen: what handlers have noted.
        begun: set when a handler has begun.
        waiting: set when a handler waits for ``go``.
        ended: set when the ``finally`` of a handler has run.
        go: what some handlers wait for.
        given: how many messages a handler has given.
        taken: how many messages a handler has taken.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.begun = threading.Event()
        self.waiting = threading.Event()
        self.ended = threading.Event()
        self.go = threading.Event()
        self.given = 0
        self.taken = 0

    def note(self, request: Any) -> None:
        self.seen.update(headers=request.headers, timeout=request.timeout.timeout_ms, peer=request.peer)
        self.begun.set()

    def answered(self, texts: list[str]) -> Any:
        return ServerResponse(refusal(texts) or reply(" ".join(texts)), HEADERS, TRAILERS)


HEADERS: Any = {"X-One": "1", "x-many": ["2", "3"], "x-data-bin": "AAEC"}
TRAILERS: Any = {"X-Last": "4", "x-lasts": ["5", "6"], "x-last-bin": "AwQF"}


def refusal(texts: list[str]) -> ConnectError | None:
    if "fail" in texts:
        return ConnectError(ConnectErrorCode.ABORTED, "m\u00e4", [Duration(seconds=5)])
    return None


class Service(Both):
    """Answers what it is asked, and does what requests of certain names say."""

    def unary(self, request: Any) -> Any:
        self.note(request)
        try:
            if request.msg.name == "wait":
                self.waiting.set()
                self.go.wait(PATIENCE)
            return self.answered([request.msg.name])
        finally:
            self.ended.set()

    pure = unary

    def client(self, requests: Any) -> Any:
        self.note(requests)
        return self.answered([message.name for message in requests])

    def server(self, request: Any) -> Any:
        self.note(request)
        return ServerStream(self._messages(request), HEADERS, TRAILERS)

    def _messages(self, request: Any) -> Iterator[Any]:
        try:
            while request.msg.name == "endless":
                self.given += 1
                yield reply("x" * 1000)
            for index in range(request.msg.number):
                yield reply(f"{request.msg.name}{index}")
            if request.msg.name == "wait":
                self.waiting.set()
                self.go.wait(PATIENCE)
            failure = refusal([request.msg.name])
            if failure is not None:
                yield failure
        finally:
            self.ended.set()

    def bidi(self, requests: Any) -> Any:
        self.note(requests)
        return ServerStream(self._echoes(requests), HEADERS, TRAILERS)

    def _echoes(self, requests: Any) -> Iterator[Any]:
        try:
            for message in requests:
                self.taken += 1
                failure = refusal([message.name])
                if failure is not None:
                    raise failure
                if message.name == "wait":
                    self.waiting.set()
                    self.go.wait(PATIENCE)
                if message.name == "end":
                    return
                yield reply(message.name)
        finally:
            self.ended.set()


async def until(event: threading.Event) -> None:
    """Wait for what another thread, or nobody, may do."""
    limit = time.monotonic() + PATIENCE
    while not event.is_set() and time.monotonic() < limit:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


class AsyncService(Both):
    """``Service``, awaited."""

    async def unary(self, request: Any) -> Any:
        self.note(request)
        try:
            if request.msg.name == "wait":
                self.waiting.set()
                await until(self.go)
            return self.answered([request.msg.name])
        finally:
            self.ended.set()

    pure = unary

    async def client(self, requests: Any) -> Any:
        self.note(requests)
        return self.answered([message.name async for message in requests])

    async def server(self, request: Any) -> Any:
        self.note(request)
        return ServerStream(self._messages(request), HEADERS, TRAILERS)

    async def _messages(self, request: Any) -> AsyncIterator[Any]:
        try:
            while request.msg.name == "endless":
                self.given += 1
                yield reply("x" * 1000)
            for index in range(request.msg.number):
                yield reply(f"{request.msg.name}{index}")
            if request.msg.name == "wait":
                self.waiting.set()
                await until(self.go)
            failure = refusal([request.msg.name])
            if failure is not None:
                yield failure
        finally:
            self.ended.set()

    async def bidi(self, requests: Any) -> Any:
        self.note(requests)
        return ServerStream(self._echoes(requests), HEADERS, TRAILERS)

    async def _echoes(self, requests: Any) -> AsyncIterator[Any]:
        try:
            async for message in requests:
                self.taken += 1
                failure = refusal([message.name])
                if failure is not None:
                    raise failure
                if message.name == "wait":
                    self.waiting.set()
                    await until(self.go)
                if message.name == "end":
                    return
                yield reply(message.name)
        finally:
            self.ended.set()


# The pairs


class Server:
    """A service, and transports to it.

    Args:
        kind: of its app.
        options: of the service.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind = kind
        self.service: Any = AsyncService() if kind == "asgi" else Service()
        self._app: Any
        if kind == "asgi":
            self._app = asgi_service(SERVICE, self.service, **options)
        elif kind == "asgi in threads":
            self._app = asgi_service(SERVICE, InThreads(self.service), **options)
        else:
            self._app = wsgi_service(SERVICE, self.service, **options)
            if kind == "validated wsgi":
                self._app = validator(self._app)

    def transport(self) -> Any:
        return ASGITransport(self._app) if "asgi" in self.kind else WSGITransport(self._app)

    def blocking(self, **options: Any) -> contextlib.AbstractContextManager[SyncCaller]:
        return _blocking(self.transport(), options)

    def awaited(self, **options: Any) -> contextlib.AbstractAsyncContextManager[AsyncCaller]:
        return _awaited(self.transport(), options)


@contextlib.contextmanager
def _blocking(transport: Any, options: Any) -> Iterator[SyncCaller]:
    with contextlib.closing(transport), SyncClient("http://test/", transport, **options) as client:
        yield client._caller


@contextlib.asynccontextmanager
async def _awaited(transport: Any, options: Any) -> AsyncIterator[AsyncCaller]:
    async with contextlib.aclosing(transport), AsyncClient("http://test/", transport, **options) as client:
        yield client._caller


KINDS = ["wsgi", "validated wsgi", "asgi", "asgi in threads"]

servers = pytest.mark.parametrize("server", [Server(kind) for kind in KINDS], ids=KINDS, indirect=True)
colours = pytest.mark.parametrize("colour", ["sync", "async"])
protocols = pytest.mark.parametrize("protocol", ["connect", "grpc", "grpc-web"])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    return Server(request.param.kind)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test leaves a thread behind, but for those of servers' own pools."""
    before = set(threading.enumerate())
    yield
    limit = time.monotonic() + PATIENCE
    while [thread for thread in threading.enumerate() if thread not in before and is_ours(thread)]:
        assert time.monotonic() < limit, threading.enumerate()
        time.sleep(0.002)


def is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("connectrpc-memory")


def run(main: Any) -> Any:
    """What a coroutine gives, which leaves no tasks behind."""

    async def whole() -> Any:
        result = await asyncio.wait_for(main, PATIENCE)
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(whole())


class Outcome:
    """What a call comes to, with its headers and trailers, each as pairs."""

    def __init__(self, output: Any, texts: list[str]) -> None:
        self.texts = texts
        self.error: ConnectError | None = output.error()
        self.headers = [(name.lower(), value) for name, value in output.response_headers().items()]
        self.trailers = [(name.lower(), value) for name, value in output.response_trailers().items()]


def outcome(server: Server, colour: str, method: Any, requests: Any, *args: Any, **options: Any) -> Outcome:
    """One call by a client of its own."""
    if not method.kind.client_streams:
        (requests,) = requests
    if colour == "async":
        return run(_awaited_outcome(server, method, requests, args, options))  # type: ignore[no-any-return]
    with server.blocking(**options) as caller:
        if not method.kind.server_streams:
            one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
            output = one(method, requests, *args)
            message = output.message()
            return Outcome(output, [] if message is None else [message.file_name])
        many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
        with many(method, requests, *args) as stream:
            return Outcome(stream, [message.file_name for message in stream])


async def _awaited_outcome(server: Server, method: Any, requests: Any, args: Any, options: Any) -> Outcome:
    async with server.awaited(**options) as caller:
        if not method.kind.server_streams:
            one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
            output = await one(method, requests, *args)
            message = output.message()
            return Outcome(output, [] if message is None else [message.file_name])
        many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
        async with many(method, requests, *args) as stream:
            texts = [message.file_name async for message in stream]
        return Outcome(stream, texts)


def requests_for(method: Any, *names: str) -> list[Any]:
    """The requests of a call. Those who take one take the last."""
    given = [ask(name, 2) for name in names]
    return given if method.kind.client_streams else given[-1:]


def texts_for(method: Any, *names: str) -> list[str]:
    """What the service answers to them."""
    if method is BIDI:
        return list(names)
    if method is SERVER:
        return [names[-1] + "0", names[-1] + "1"]
    return [" ".join(names)] if method is CLIENT else [names[-1]]


every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


# Calls


@servers
@colours
@protocols
@every_method
def test_calls(server: Server, colour: str, protocol: str, method: Any) -> None:
    found = outcome(server, colour, method, requests_for(method, "a", "b"), {"X-Asked": "1"}, 60, protocol=protocol)
    assert found.error is None
    assert found.texts == texts_for(method, "a", "b")
    for name, value in [("x-one", "1"), ("x-many", "2"), ("x-many", "3"), ("x-data-bin", "AAEC")]:
        assert (name, value) in found.headers
    assert found.trailers == [("x-last", "4"), ("x-lasts", "5"), ("x-lasts", "6"), ("x-last-bin", "AwQF")]
    seen = server.service.seen
    assert seen["headers"]["x-asked"] == "1"
    assert seen["headers"]["host"] == "test"
    assert 50_000 < seen["timeout"] <= 60_000
    assert seen["peer"].address == "127.0.0.1:50000"


@servers
@colours
@protocols
@every_method
def test_errors(server: Server, colour: str, protocol: str, method: Any) -> None:
    found = outcome(server, colour, method, requests_for(method, "a", "fail"), protocol=protocol)
    assert found.texts == {BIDI: ["a"], SERVER: ["fail0", "fail1"]}.get(method, [])
    assert code_of(found.error) == "aborted"
    assert found.error is not None
    assert found.error.message == "m\u00e4"
    assert found.error.details[0].message() == Duration(seconds=5)


@servers
@colours
@protocols
@pytest.mark.parametrize(("codec", "compression"), [("proto", None), ("proto", "gzip"), ("json", None)])
@pytest.mark.parametrize("method", [UNARY, CLIENT, BIDI], ids=lambda method: method.name)
def test_large_messages(
    server: Server, colour: str, protocol: str, codec: str, compression: str | None, method: Any
) -> None:
    """They are larger than what the transport holds, in both directions."""
    options: Any = {"protocol": protocol, "codec": codec, "send_compression": compression}
    found = outcome(server, colour, method, requests_for(method, BIG, BIG), **options)
    assert found.error is None
    assert found.texts == texts_for(method, BIG, BIG)


@servers
@colours
@pytest.mark.parametrize("name", ["a", "a b/\u00e4?&%", BIG[:1000]], ids=["short", "quoted", "long"])
def test_get(server: Server, colour: str, name: str) -> None:
    found = outcome(server, colour, PURE, [ask(name)], use_get=True)
    assert found.texts == [name]
    assert "content-length" not in server.service.seen["headers"], "it was a GET"


@servers
@colours
def test_an_unknown_path(server: Server, colour: str) -> None:
    async def main() -> None:
        async with AsyncClient("http://test/elsewhere", server.transport()) as client:
            await client._caller.unary(UNARY, ask("a"))

    with pytest.raises(ConnectError) as caught:
        if colour == "async":
            run(main())
        else:
            with contextlib.closing(server.transport()) as transport:
                SyncClient("http://test/elsewhere", transport)._caller.unary(UNARY, ask("a"))
    assert code_of(caught.value) == "unimplemented"


@servers
@colours
def test_a_prefix_in_the_url(server: Server, colour: str) -> None:
    prefixed = Server(server.kind, prefix="/api/v1")

    async def main() -> str:
        async with AsyncClient("https://test:8443/api/v1", prefixed.transport()) as client:
            return (await client._caller.unary(UNARY, ask("a"))).file_name

    if colour == "async":
        assert run(main()) == "a"
    else:
        with SyncClient("https://test:8443/api/v1", prefixed.transport()) as client:
            assert client._caller.unary(UNARY, ask("a")).file_name == "a"
    assert prefixed.service.seen["headers"]["host"] == "test:8443"


@servers
@colours
def test_larger_than_allowed(server: Server, colour: str) -> None:
    for method in METHODS:
        found = outcome(Server(server.kind), colour, method, requests_for(method, BIG), read_max_bytes=1000)
        assert code_of(found.error) == "resource_exhausted"
        refusing = Server(server.kind, read_max_bytes=1000)
        found = outcome(refusing, colour, method, requests_for(method, BIG))
        assert code_of(found.error) == "resource_exhausted"


# Streams in both directions at once


@servers
@protocols
def test_full_duplex(server: Server, protocol: str) -> None:
    """Each request depends on the answer to the one before."""
    answers: queue.Queue[str] = queue.Queue()

    def requests() -> Iterator[Any]:
        yield ask("0")
        for _ in range(5):
            yield ask(answers.get(timeout=PATIENCE) + "+")

    with server.blocking(protocol=protocol) as caller:
        texts = []
        for message in caller.bidi_stream(BIDI, requests()):
            texts.append(message.file_name)
            answers.put(message.file_name)
    assert texts == ["0" + "+" * count for count in range(6)]


@servers
@protocols
def test_full_duplex_awaited(server: Server, protocol: str) -> None:
    async def main() -> None:
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def requests() -> AsyncIterator[Any]:
            yield ask("0")
            for _ in range(5):
                yield ask(await answers.get() + "+")

        async with server.awaited(protocol=protocol) as caller:
            texts = []
            async for message in caller.bidi_stream(BIDI, requests()):
                texts.append(message.file_name)
                answers.put_nowait(message.file_name)
        assert texts == ["0" + "+" * count for count in range(6)]

    run(main())


@servers
def test_the_head_comes_before_the_first_message(server: Server) -> None:
    with server.blocking() as caller, caller.server_stream_output(SERVER, ask("wait", 0)) as stream:
        assert stream.response_headers()["x-one"] == "1"
        assert not server.service.ended.is_set()
        server.service.go.set()
        assert list(stream) == []


@servers
def test_an_answer_that_ends_before_its_request(server: Server) -> None:
    """As with other transports, nothing waits for the rest of the request."""
    released = threading.Event()

    def requests() -> Iterator[Any]:
        yield ask("a")
        yield ask("end")
        assert released.wait(PATIENCE)

    with server.blocking() as caller:
        with caller.bidi_stream_output(BIDI, requests()) as stream:
            assert [message.file_name for message in stream] == ["a"]
            assert stream.error() is None
        released.set()


@servers
def test_an_answer_that_ends_before_its_request_awaited(server: Server) -> None:
    closed: list[bool] = []

    async def requests() -> AsyncIterator[Any]:
        try:
            yield ask("a")
            yield ask("end")
            await asyncio.sleep(PATIENCE * 2)
        finally:
            closed.append(True)

    async def main() -> None:
        async with server.awaited() as caller:
            assert [message.file_name async for message in caller.bidi_stream(BIDI, requests())] == ["a"]

    run(main())
    assert closed == [True]


@servers
@colours
def test_a_request_generator_ends_with_its_call(server: Server, colour: str) -> None:
    """Also one that somebody holds, as who keeps an error with its traceback does."""
    ended = threading.Event()

    def requests() -> Iterator[Any]:
        try:
            while True:
                yield ask("end")
        finally:
            ended.set()

    async def async_requests() -> AsyncIterator[Any]:
        try:
            while True:
                yield ask("end")
                await asyncio.sleep(0)
        finally:
            ended.set()

    held: Any = requests() if colour == "sync" else async_requests()
    outcome(server, colour, BIDI, held)
    assert ended.wait(PATIENCE)
    assert next(held, None) is None if colour == "sync" else held.ag_frame is None


@servers
def test_a_request_generator_of_a_failed_call_ends_where_it_ran(server: Server) -> None:
    """Also while somebody keeps the error: not wherever that is collected, with whatever context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("of the call")
    ran: list[Any] = []
    failed, ended = threading.Event(), threading.Event()

    def requests() -> Iterator[Any]:
        try:
            ran.append((threading.current_thread(), variable.get()))
            yield ask("a")
            failed.wait(PATIENCE)
            yield ask("b")
        finally:
            ran.append((threading.current_thread(), variable.get()))
            ended.set()

    with server.blocking() as caller, pytest.raises(ConnectError) as caught:
        caller.client_stream(CLIENT, requests(), None, 0.1)
    failed.set()
    assert ended.wait(PATIENCE)
    assert code_of(caught.value) == "deadline_exceeded"
    begin, end = ran
    assert begin == end
    assert end[1] == "of the call"


# Backpressure


@servers
def test_a_slow_reader_holds_the_app_back(server: Server) -> None:
    with server.blocking() as caller:
        with caller.server_stream_output(SERVER, ask("endless")) as stream:
            for _ in range(3):
                next(stream)
            time.sleep(0.1)
            assert server.service.given < 100
            for _ in range(200):
                next(stream)
            time.sleep(0.1)
            assert 200 < server.service.given < 300
        assert server.service.ended.wait(PATIENCE)


@servers
def test_a_slow_reader_holds_the_app_back_awaited(server: Server) -> None:
    async def main() -> None:
        async with server.awaited() as caller:
            async with caller.server_stream_output(SERVER, ask("endless")) as stream:
                for _ in range(3):
                    await stream.__anext__()
                await asyncio.sleep(0.1)
                assert server.service.given < 100
                for _ in range(200):
                    await stream.__anext__()
                await asyncio.sleep(0.1)
                assert 200 < server.service.given < 300
            await until(server.service.ended)
            assert server.service.ended.is_set()

    run(main())


@servers
def test_a_slow_app_holds_the_client_back(server: Server) -> None:
    sent = 0

    def requests() -> Iterator[Any]:
        nonlocal sent
        yield ask("wait")
        server.service.waiting.wait(PATIENCE)  # before it reads, an app takes more
        for _ in range(300):
            sent += 1
            yield ask("x" * 1000)

    with server.blocking() as caller, caller.bidi_stream_output(BIDI, requests()) as stream:
        assert server.service.begun.wait(PATIENCE)
        assert server.service.waiting.wait(PATIENCE)
        time.sleep(0.1)
        assert sent < 100
        server.service.go.set()
        assert len(list(stream)) == 301
        assert stream.error() is None


@servers
def test_a_slow_app_holds_the_client_back_awaited(server: Server) -> None:
    sent = 0

    async def requests() -> AsyncIterator[Any]:
        nonlocal sent
        yield ask("wait")
        await until(server.service.waiting)  # before it reads, an app takes more
        for _ in range(300):
            sent += 1
            yield ask("x" * 1000)

    async def main() -> None:
        async with server.awaited() as caller, caller.bidi_stream_output(BIDI, requests()) as stream:
            await until(server.service.begun)
            await until(server.service.waiting)
            await asyncio.sleep(0.1)
            assert sent < 100
            server.service.go.set()
            assert len([message async for message in stream]) == 301

    run(main())


# What ends a call early


@servers
@colours
@protocols
@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_deadlines(server: Server, colour: str, protocol: str, method: Any) -> None:
    async def main() -> ConnectError | None:
        async with server.awaited(protocol=protocol) as caller:
            if method is UNARY:
                error = (await caller.unary_output(UNARY, ask("wait"), None, 0.1)).error()
            else:
                async with caller.server_stream_output(SERVER, ask("wait"), None, 0.1) as stream:
                    assert [message async for message in stream] == []
                error = stream.error()
            server.service.go.set()
            return error

    if colour == "async":
        error = run(main())
    else:
        with server.blocking(protocol=protocol) as caller:
            begin = time.monotonic()
            if method is UNARY:
                error = caller.unary_output(UNARY, ask("wait"), None, 0.1).error()
            else:
                with caller.server_stream_output(SERVER, ask("wait"), None, 0.1) as stream:
                    assert list(stream) == []
                error = stream.error()
            assert 0.08 < time.monotonic() - begin < PATIENCE / 2
            server.service.go.set()
    assert code_of(error) == "deadline_exceeded"
    if server.service.waiting.is_set():  # a generator that was not begun has no ``finally`` to run
        assert server.service.ended.wait(PATIENCE)


@servers
def test_a_deadline_that_passes_before_the_request_is_complete(server: Server) -> None:
    released = threading.Event()

    def requests() -> Iterator[Any]:
        yield ask("a")
        assert released.wait(PATIENCE)

    found = outcome(server, "sync", CLIENT, requests(), None, 0.2)
    assert code_of(found.error) == "deadline_exceeded"
    released.set()


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_limit_for_opening(kind: str) -> None:
    """The head comes at once, so only the messages are late."""
    server = Server(kind)
    with server.blocking(open_timeout_seconds=1) as caller:
        stream = caller.server_stream_output(SERVER, ask("wait", 1))
        threading.Timer(1.1, server.service.go.set).start()
        assert [message.file_name for message in stream] == ["wait0"]
        assert stream.error() is None


@servers
@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_cancel_tokens(server: Server, method: Any) -> None:
    token = CancelToken()

    def cancel() -> None:
        server.service.waiting.wait(PATIENCE)
        token.cancel()
        server.service.go.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with server.blocking() as caller:
        if method is UNARY:
            error = caller.unary_output(UNARY, ask("wait"), None, None, token).error()
        else:
            with caller.server_stream_output(SERVER, ask("wait"), None, None, token) as stream:
                assert list(stream) == []
            error = stream.error()
        assert code_of(error) == "canceled"
    canceller.join()
    assert server.service.ended.wait(PATIENCE)


@servers
def test_a_token_that_was_cancelled_before(server: Server) -> None:
    token = CancelToken()
    token.cancel()
    with server.blocking() as caller:
        assert code_of(caller.unary_output(UNARY, ask("a"), None, None, token).error()) == "canceled"
        assert code_of(caller.client_stream_output(CLIENT, [ask("a")], None, None, token).error()) == "canceled"
        assert code_of(caller.server_stream_output(SERVER, ask("a"), None, None, token).error()) == "canceled"
    assert not server.service.begun.is_set(), "the app never saw it"


@servers
@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_cancelled_tasks(server: Server, method: Any) -> None:
    async def call(caller: AsyncCaller) -> None:
        if method is UNARY:
            await caller.unary(UNARY, ask("wait"))
        else:
            async for _ in caller.server_stream(SERVER, ask("wait")):
                pass

    async def main() -> None:
        async with server.awaited() as caller:
            task = asyncio.ensure_future(call(caller))
            await until(server.service.waiting)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if server.kind == "asgi":
                await until(server.service.ended)  # the handler is told at once: nobody lets it go on
                assert not server.service.go.is_set()
            server.service.go.set()
        assert server.service.ended.wait(PATIENCE)

    run(main())


@servers
@protocols
def test_leaving_early(server: Server, protocol: str) -> None:
    with server.blocking(protocol=protocol) as caller:
        for message in caller.server_stream(SERVER, ask("endless")):
            assert message.file_name
            break
        assert server.service.ended.wait(PATIENCE)
        assert caller.unary(UNARY, ask("a")).file_name == "a", "the client is as good as before"


@servers
@protocols
def test_leaving_early_awaited(server: Server, protocol: str) -> None:
    async def main() -> None:
        async with server.awaited(protocol=protocol) as caller:
            async with caller.server_stream_output(SERVER, ask("endless")) as stream:
                await stream.__anext__()
            await until(server.service.ended)
            assert server.service.ended.is_set()
            assert (await caller.unary(UNARY, ask("a"))).file_name == "a"

    run(main())


@servers
@colours
def test_leaving_while_the_app_reads(server: Server, colour: str) -> None:
    """It is told that nothing more will come."""
    released = threading.Event()

    def requests() -> Iterator[Any]:
        yield ask("a")
        released.wait(PATIENCE)

    async def async_requests() -> AsyncIterator[Any]:
        yield ask("a")
        await asyncio.sleep(PATIENCE * 2)

    async def main() -> None:
        async with server.awaited() as caller:
            async with caller.bidi_stream_output(BIDI, async_requests()) as stream:
                assert (await stream.__anext__()).file_name == "a"
                assert not server.service.ended.is_set()
            await until(server.service.ended)
            assert server.service.ended.is_set()

    if colour == "async":
        run(main())
        return
    with server.blocking() as caller:
        with caller.bidi_stream_output(BIDI, requests()) as stream:
            assert next(stream).file_name == "a"
            assert not server.service.ended.is_set()
        assert server.service.ended.wait(PATIENCE)
    released.set()


def pass_on(request: Request, proceed: Callable[[Request], Response]) -> Response:
    return proceed(request)


async def apass_on(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    return await proceed(request)


class Silent(Hooks):
    pass


@servers
@pytest.mark.parametrize("interceptors", [[], [pass_on], [Silent(), pass_on]], ids=len)
def test_closing_a_stream_from_another_thread(server: Server, interceptors: list[Any]) -> None:
    with server.blocking(interceptors=interceptors) as caller:
        stream = caller.server_stream_output(SERVER, ask("wait", 0))

        def close() -> None:
            server.service.waiting.wait(PATIENCE)
            stream.close()

        threading.Thread(target=close).start()
        assert list(stream) == []
        assert stream.done()
        server.service.go.set()
    assert server.service.ended.wait(PATIENCE)


@servers
@pytest.mark.parametrize("interceptors", [[], [apass_on], [Silent(), apass_on]], ids=len)
def test_closing_a_stream_in_another_task(server: Server, interceptors: list[Any]) -> None:
    async def main() -> None:
        async with server.awaited(interceptors=interceptors) as caller:
            stream = await caller.server_stream_output(SERVER, ask("wait", 0))

            async def close() -> None:
                await until(server.service.waiting)
                await stream.close()
                server.service.go.set()

            closing = asyncio.ensure_future(close())
            assert [message async for message in stream] == []
            assert stream.done()
            await closing

    run(main())
    assert server.service.ended.wait(PATIENCE)


@servers
def test_a_stream_that_is_forgotten(server: Server) -> None:
    with server.blocking() as caller:
        stream = caller.server_stream_output(SERVER, ask("endless"))
        next(stream)
        del stream
        gc.collect()
        assert server.service.ended.wait(PATIENCE)


@servers
def test_a_stream_that_is_forgotten_awaited(server: Server) -> None:
    async def main() -> None:
        async with server.awaited() as caller:
            stream = await caller.server_stream_output(SERVER, ask("endless"))
            await stream.__anext__()
            del stream
            gc.collect()
            await until(server.service.ended)
            assert server.service.ended.is_set()

    run(main())


@servers
def test_the_request_of_a_stream_that_is_forgotten(server: Server) -> None:
    """Its generator ends, though it waits for something else."""
    ended = threading.Event()

    async def requests() -> AsyncIterator[Any]:
        try:
            yield ask("a")
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async def main() -> None:
        async with server.awaited() as caller:
            stream = await caller.bidi_stream_output(BIDI, requests())
            assert (await stream.__anext__()).file_name == "a"
            gc.collect()
            assert not ended.is_set(), "the stream is still there"
            del stream
            gc.collect()
            await until(ended)
            assert ended.is_set()

    run(main())
    assert server.service.ended.wait(PATIENCE)


def has_ended(server: Server) -> bool:
    """Whether a handler has ended by now. Threads of an app's own may take a moment longer than the app."""
    ended: threading.Event = server.service.ended
    return ended.wait(PATIENCE if server.kind == "asgi in threads" else 0)


@servers
@colours
def test_closing_ends_what_is_under_way(server: Server, colour: str) -> None:
    async def main() -> None:
        transport = server.transport()
        caller = AsyncClient("http://test", transport)._caller
        stream = await caller.server_stream_output(SERVER, ask("endless"))
        await stream.__anext__()
        await transport.aclose()
        async for _ in stream:
            pass
        assert code_of(stream.error()) == "unavailable"

    if colour == "async":
        run(main())
    else:
        transport = server.transport()
        caller = SyncClient("http://test", transport)._caller
        stream = caller.server_stream_output(SERVER, ask("endless"))
        next(stream)
        transport.close()
        assert list(stream) == []
        assert code_of(stream.error()) == "unavailable"
    assert has_ended(server), "closing waits for the app"


# The caller's own iterator


@servers
@colours
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_what_the_request_iterator_raises(server: Server, colour: str, method: Any) -> None:
    """It comes out as it is, and the app is told that the client has left."""

    def requests() -> Iterator[Any]:
        yield ask("a")
        raise ZeroDivisionError("mine")

    async def async_requests() -> AsyncIterator[Any]:
        yield ask("a")
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        outcome(server, colour, method, requests() if colour == "sync" else async_requests())


@servers
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_request_iterator_awaits_what_was_cancelled(server: Server, method: Any) -> None:
    """That is an exception of its own, and no end that the call has come to."""

    async def requests() -> AsyncIterator[Any]:
        yield ask("a")
        awaited = asyncio.get_running_loop().create_future()
        awaited.cancel("mine")
        await awaited

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError, match="mine"):
            await _awaited_outcome(server, method, requests(), (), {})

    run(main())


@servers
@colours
def test_context_variables(server: Server, colour: str) -> None:
    """The request iterator has the caller's. An app has those with which its transport was made: nothing of a call
    reaches it in ways that no network has."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    found: list[str] = []

    def requests() -> Iterator[Any]:
        found.append(variable.get())
        yield ask("a")

    note = server.service.note

    def noting(request: Any) -> None:
        found.append(variable.get())
        variable.set("of the app")
        note(request)

    server.service.note = noting
    variable.set("of the transport")
    transport = server.transport()
    variable.set("of the call")

    async def main() -> None:
        async with AsyncClient("http://test", transport) as client:
            await client._caller.client_stream(CLIENT, requests())
            await client._caller.client_stream(CLIENT, requests())

    if colour == "async":
        run(main())
    else:
        with SyncClient("http://test", transport) as client:
            client._caller.client_stream(CLIENT, requests())
            client._caller.client_stream(CLIENT, requests())
    assert sorted(found) == ["of the call"] * 2 + ["of the transport"] * 2
    assert variable.get() == "of the call"


# Many at once


@servers
def test_threads_share_a_client(server: Server) -> None:
    wrong: list[Any] = []

    def work(caller: SyncCaller, name: str) -> None:
        for _ in range(5):
            if caller.unary(UNARY, ask(name)).file_name != name:
                wrong.append(name)
            texts = [message.file_name for message in caller.bidi_stream(BIDI, [ask(name), ask("x")])]
            if texts != [name, "x"]:
                wrong.append(texts)

    with server.blocking() as caller:
        threads = [threading.Thread(target=work, args=(caller, str(number))) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert wrong == []


@servers
def test_tasks_share_a_client(server: Server) -> None:
    async def main() -> None:
        async with server.awaited() as caller:

            async def work(name: str) -> None:
                assert (await caller.unary(UNARY, ask(name))).file_name == name
                texts = [message.file_name async for message in caller.bidi_stream(BIDI, [ask(name), ask("x")])]
                assert texts == [name, "x"]

            await asyncio.gather(*(work(str(number)) for number in range(25)))
            if server.kind.startswith("asgi"):
                assert not any(map(is_ours, threading.enumerate())), "it takes no threads"

    run(main())


@servers
def test_one_event_loop_after_the_other(server: Server) -> None:
    transport = server.transport()

    async def main() -> str:
        client = AsyncClient("http://test", transport)
        return (await client._caller.unary(UNARY, ask("a"))).file_name

    assert [run(main()) for _ in range(3)] == ["a"] * 3


@servers
def test_both_colours_share_a_transport(server: Server) -> None:
    transport = server.transport()

    async def main() -> None:
        awaited = AsyncClient("http://test", transport)._caller
        assert (await awaited.unary(UNARY, ask("a"))).file_name == "a"
        blocking = SyncClient("http://test", transport)._caller
        assert (await asyncio.to_thread(blocking.unary, UNARY, ask("b"))).file_name == "b"
        assert blocking.unary(UNARY, ask("c")).file_name == "c", "it blocks this loop, and not that of the app"

    run(main())
    transport.close()


@servers
def test_a_transport_goes_on_after_it_was_closed(server: Server) -> None:
    transport = server.transport()
    for _ in range(2):
        with SyncClient("http://test", transport) as client:
            assert client._caller.unary(UNARY, ask("a")).file_name == "a"
        transport.close()
        transport.close()


@servers
def test_an_entered_transport_outlives_its_clients(server: Server) -> None:
    with server.transport() as transport:
        with SyncClient("http://test", transport) as first:
            stream = first._caller.server_stream_output(SERVER, ask("endless"))
            next(stream)
        transport.close()
        assert next(stream).file_name
        with SyncClient("http://test", transport) as second:
            assert second._caller.unary(UNARY, ask("a")).file_name == "a"
    assert has_ended(server)
    assert list(stream) == []
    assert code_of(stream.error()) == "unavailable"


@servers
def test_an_entered_transport_outlives_its_clients_awaited(server: Server) -> None:
    async def main() -> None:
        async with server.transport() as transport:
            async with AsyncClient("http://test", transport) as first:
                stream = await first._caller.server_stream_output(SERVER, ask("endless"))
                await stream.__anext__()
            await transport.aclose()
            assert (await stream.__anext__()).file_name
            async with AsyncClient("http://test", transport) as second:
                assert (await second._caller.unary(UNARY, ask("a"))).file_name == "a"
        assert has_ended(server)
        async for _ in stream:
            pass
        assert code_of(stream.error()) == "unavailable"

    run(main())


def test_a_transport_that_nobody_closes_ends_with_its_last_user() -> None:
    server = Server("asgi")
    stream = SyncClient("http://test", server.transport())._caller.server_stream_output(SERVER, ask("a", 3))
    gc.collect()
    assert len(list(stream)) == 3, "a stream is a user too"
    del stream
    gc.collect()
    # the fixture sees that no thread is left


def test_hooks_have_run_when_a_call_returns() -> None:
    """What an app does right after it has answered is done by the time that the client sees the end."""
    after: list[str] = []

    def answering(kind: str) -> Callable[..., Any]:
        inner = Server(kind)._app

        def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
            yield from inner(environ, start_response)
            after.append(kind)

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await inner(scope, receive, send)
            after.append(kind)

        return asgi if kind == "asgi" else wsgi

    for transport in (ASGITransport(answering("asgi")), WSGITransport(answering("wsgi"))):
        with SyncClient("http://test", transport) as client:
            for _ in range(20):
                after.clear()
                client._caller.unary(UNARY, ask("a"))
                assert len(after) == 1
