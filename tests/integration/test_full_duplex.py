"""Both sides of a stream at once, over HTTP/2, in both colours: who waits for whom, and what ends the other side.

The clients run on pyqwest and on pycurl. A synchronous client's request iterator is read in a thread of its own while
the caller reads the answers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pyqwest
import pytest

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import AsyncPycurlTransport, PycurlTransport

from helpers import Background, Usage, settles
from integration_pb2 import ChatRequest, ChatResponse, CountRequest, EchoRequest, NotesRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from rawhttp2 import run_http2_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from servers import Server

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode

PROTOCOLS = ["connect", "grpc"]
"""To what is tested here gRPC-Web is as Connect: its end comes in the body."""

PLAIN: dict[str, Any] = {
    "follow_redirects": False,
    "enable_gzip": False,
    "enable_brotli": False,
    "enable_zstd": False,
    "http_version": pyqwest.HTTPVersion.HTTP2,
}

SLOW = 5.0
"""What ought to be there at once may take so many seconds on a busy machine."""

_names = itertools.count()


@pytest.fixture(params=["uvicorn-http2", "gunicorn-asgi-http2"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_http2_server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def name() -> str:
    """What the handlers of a test note themselves as."""
    return f"duplex {next(_names)}"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["pyqwest", "pycurl"])
def library(request: pytest.FixtureRequest) -> str:
    """On what a client runs."""
    return str(request.param)


@contextlib.contextmanager
def connect(library: str, server: Server, protocol: str = "grpc") -> Iterator[ProbeServiceClient]:
    options: Any = {"protocol": protocol}
    if library == "pycurl":
        with PycurlTransport(http_version="2") as pycurl_transport:
            yield ProbeServiceClient(server.url, pycurl_transport, **options)
    else:
        with pyqwest.SyncHTTPTransport(**PLAIN) as transport:
            yield ProbeServiceClient(server.url, pyqwest.SyncClient(transport), **options)


@contextlib.asynccontextmanager
async def aconnect(library: str, server: Server, protocol: str = "grpc") -> AsyncIterator[AsyncProbeServiceClient]:
    options: Any = {"protocol": protocol}
    if library == "pycurl":
        async with AsyncPycurlTransport(http_version="2") as pycurl_transport:
            yield AsyncProbeServiceClient(server.url, pycurl_transport, **options)
    else:
        async with pyqwest.HTTPTransport(**PLAIN) as transport:
            yield AsyncProbeServiceClient(server.url, pyqwest.Client(transport), **options)


def noted(server: Server, *expected: str, within: float = 10) -> bool:
    """Whether handlers have noted all this by then, asked on a connection of its own."""
    found: list[str] = []
    with connect("pyqwest", server, "connect") as client:

        def all_there() -> bool:
            found.extend(client.notes(NotesRequest()).notes)
            return all(note in found for note in expected)

        return settles(all_there, within)


async def anoted(server: Server, *expected: str) -> bool:
    return await asyncio.to_thread(noted, server, *expected)


async def asettles(condition: Callable[[], bool], within: float = SLOW) -> bool:
    until = time.monotonic() + within
    while not condition():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


class Requests:
    """A request iterator that gives what it is told to, blocks when it is told nothing, and knows whether it ended.

    Attributes:
        taken: how many messages somebody has asked for.
        ended: set when the generator's ``finally`` has run.
    """

    def __init__(self, *texts: str) -> None:
        self._given: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.taken = 0
        self.ended = threading.Event()
        for text in texts:
            self.say(text)

    def say(self, text: str, misdeed: str = "") -> None:
        self._given.put(ChatRequest(text=text, misdeed=misdeed))

    def end(self) -> None:
        """The iterator is at its end."""
        self._given.put(None)

    def fail(self, error: Exception) -> None:
        """The iterator raises."""
        self._given.put(error)

    def over(self) -> bool:
        """Whether the generator has ended, or was never begun: a call may be over before anybody asks."""
        return not self.taken or self.ended.is_set()

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                self.taken += 1
                item = self._given.get()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.ended.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while True:
                self.taken += 1
                while self._given.empty():  # noqa: ASYNC110  threads give, too
                    await asyncio.sleep(0.005)
                item = self._given.get()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.ended.set()


class Async:
    """The asynchronous side alone: what has both would be taken for either."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._requests.__aiter__()


def code_of(error: ConnectError | None) -> Code | None:
    """The code of an error, which then forgets where it came from: frames that hold the request iterator."""
    if error is None:
        return None
    error.__traceback__ = None
    return error.code


def end_of(background: Background[Any]) -> Code | None:
    """The code of the error that a call in the background ends with."""
    with pytest.raises(ConnectError) as raised:
        background.result(SLOW)
    return code_of(raised.value)


def headers(name: str, **more: str) -> dict[str, str]:
    return {"x-name": name, **{key.replace("_", "-"): value for key, value in more.items()}}


# Ping and pong.


def test_each_side_waits_for_the_other(library: str, server: Server, protocol: str) -> None:
    requests = Requests("0")
    received = []
    with connect(library, server, protocol) as client:
        for message in client.chat(requests):
            received.append(message.text)
            assert requests.taken <= len(received) + 1, "nobody asks for what is not there"
            if len(received) < 50:
                requests.say(str(len(received)))
            else:
                requests.end()
    assert received == [str(number) for number in range(50)]
    assert settles(requests.over, SLOW)


def test_each_side_waits_for_the_other_async(library: str, server: Server, protocol: str) -> None:
    async def main() -> None:
        requests = Requests("0")
        received = []
        async with aconnect(library, server, protocol) as client:
            async for message in client.chat(Async(requests)):
                received.append(message.text)
                if len(received) < 50:
                    requests.say(str(len(received)))
                else:
                    requests.end()
        assert received == [str(number) for number in range(50)]
        assert requests.ended.is_set()

    asyncio.run(main())


def test_the_server_speaks_first(library: str, server: Server, protocol: str) -> None:
    """The head of the answer comes before there is any request."""
    requests = Requests()
    with connect(library, server, protocol) as client, client.call_chat(requests, {"x-misdeed": "greet"}) as stream:
        assert next(stream).text == "hello"
        requests.say("hi")
        assert next(stream).text == "hi"
        requests.end()
        assert list(stream) == []
        assert stream.error() is None


# The request iterator fails.


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_iterator_raises(library: str, server: Server, protocol: str, name: str, after: int) -> None:
    """The caller gets what it raised, the server's handler ends, and the client goes on."""
    requests = Requests(*["x"] * after)
    with connect(library, server, protocol) as client:
        stream = client.chat(requests, headers(name))
        received = 0
        if after:
            for _ in range(after):
                assert next(stream).text == "x"
                received += 1
            assert noted(server, f"{name}: begin")
        threading.Timer(0.1, lambda: requests.fail(ZeroDivisionError("mine"))).start()
        with pytest.raises(ZeroDivisionError, match="mine"):
            next(stream)
        assert settles(requests.over, SLOW)
        if after:
            assert noted(server, f"{name}: end")
        assert client.echo(EchoRequest(text="on")).request.text == "on"
        with pytest.raises(ZeroDivisionError):
            client.sum(fail_at_once())
        assert client.echo(EchoRequest(text="on")).request.text == "on"


def fail_at_once() -> Iterator[SumRequest]:
    yield SumRequest(number=1)
    raise ZeroDivisionError


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_iterator_raises_async(library: str, server: Server, protocol: str, name: str, after: int) -> None:
    async def main() -> None:
        requests = Requests(*["x"] * after)
        async with aconnect(library, server, protocol) as client:
            stream = client.chat(Async(requests), headers(name))
            for _ in range(after):
                assert (await anext(stream)).text == "x"
            if after:
                assert await anoted(server, f"{name}: begin")
            asyncio.get_running_loop().call_later(0.1, lambda: requests.fail(ZeroDivisionError("mine")))
            with pytest.raises(ZeroDivisionError, match="mine"):
                await anext(stream)
            assert requests.ended.is_set()
            if after:
                assert await anoted(server, f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"
            with pytest.raises(ZeroDivisionError):
                await client.sum(fail_at_once())
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"

    asyncio.run(main())


# The server ends while the iterator blocks.


def sees_no_end(library: str, server: Server, protocol: str) -> bool:
    """Whether a client does not learn that the server has ended a stream whose requests have not ended: libcurl sees
    trailers when the stream is reset after them, as all these servers do but uvicorn. The other protocols need none."""
    return library == "pycurl" and protocol == "grpc" and server.kind == "uvicorn-http2"


@pytest.mark.parametrize("misdeed", ["error", "raise", "enough", "error at once"])
def test_the_server_ends_first(library: str, server: Server, protocol: str, name: str, misdeed: str) -> None:
    """The call ends at once. The iterator's thread ends as soon as the iterator lets it."""
    requests = Requests()
    extra = headers(name, x_misdeed=misdeed) if misdeed == "error at once" else headers(name)
    if misdeed != "error at once":
        requests.say("x")
        requests.say("y", misdeed)
    late = sees_no_end(library, server, protocol)
    with connect(library, server, protocol) as client:
        began = time.monotonic()
        with client.call_chat(requests, extra, 1 if late else None) as stream:
            assert [message.text for message in stream] == (["x"] if misdeed != "error at once" else [])
            error = stream.error()
        assert time.monotonic() - began < SLOW
        if late:
            assert error is not None
            assert error.code is Code.DEADLINE_EXCEEDED
        elif misdeed == "enough":
            assert error is None
        else:
            assert error is not None
            assert error.code is (Code.UNKNOWN if misdeed == "raise" else Code.NOT_FOUND)
        if misdeed != "error at once":
            assert noted(server, f"{name}: begin", f"{name}: end")
            assert not requests.ended.is_set(), "it blocks, and nobody can help that"
        requests.say("too late")
        assert settles(requests.over, SLOW)
        assert client.echo(EchoRequest(text="on")).request.text == "on"


@pytest.mark.parametrize("misdeed", ["error", "raise", "enough", "error at once"])
def test_the_server_ends_first_async(library: str, server: Server, protocol: str, name: str, misdeed: str) -> None:
    """The iterator is ended with the call, wherever it waits."""

    async def main() -> None:
        requests = Requests()
        extra = headers(name, x_misdeed=misdeed) if misdeed == "error at once" else headers(name)
        if misdeed != "error at once":
            requests.say("x")
            requests.say("y", misdeed)
        late = sees_no_end(library, server, protocol)
        async with aconnect(library, server, protocol) as client:
            async with client.call_chat(Async(requests), extra, 1 if late else None) as stream:
                received = [message.text async for message in stream]
                error = stream.error()
            assert received == (["x"] if misdeed != "error at once" else [])
            if late:
                assert error is not None
                assert error.code is Code.DEADLINE_EXCEEDED
            elif misdeed == "enough":
                assert error is None
            else:
                assert error is not None
                assert error.code is (Code.UNKNOWN if misdeed == "raise" else Code.NOT_FOUND)
            if misdeed != "error at once":
                assert await asettles(requests.over)
                assert await anoted(server, f"{name}: begin", f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_client_stream_that_is_answered_early(library: str, server: Server, protocol: str, name: str) -> None:
    """An upload that never ends does not hold up the answer to it."""
    requests = Requests()
    messages: Iterator[Any] = itertools.chain([SumRequest(number=3, misdeed="error")], iter(requests))
    late = sees_no_end(library, server, protocol)
    with connect(library, server, protocol) as client:
        with pytest.raises(ConnectError) as raised:
            client.sum(messages, headers(name), 1 if late else None)
        assert raised.value.code is (Code.DEADLINE_EXCEEDED if late else Code.NOT_FOUND)
        requests.end()
        assert noted(server, f"{name}: end")
        assert client.echo(EchoRequest(text="on")).request.text == "on"


def test_a_client_stream_that_is_answered_early_async(library: str, server: Server, protocol: str, name: str) -> None:
    async def main() -> None:
        requests = Requests()

        async def messages() -> AsyncIterator[Any]:
            yield SumRequest(number=3, misdeed="error")
            async for message in Async(requests):
                yield message

        late = sees_no_end(library, server, protocol)
        async with aconnect(library, server, protocol) as client:
            with pytest.raises(ConnectError) as raised:
                await client.sum(messages(), headers(name), 1 if late else None)
            assert raised.value.code is (Code.DEADLINE_EXCEEDED if late else Code.NOT_FOUND)
            assert await asettles(requests.over)
            assert await anoted(server, f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"

    asyncio.run(main())


# The caller leaves.


@pytest.mark.parametrize("way", ["with", "close", "break", "generator", "forget"])
def test_leaving_early(library: str, server: Server, protocol: str, name: str, way: str) -> None:
    requests = Requests("x")
    with connect(library, server, protocol) as client:
        if way == "with":
            with client.call_chat(requests, headers(name)) as stream:
                assert next(stream).text == "x"
        elif way == "close":
            stream = client.call_chat(requests, headers(name))
            assert next(stream).text == "x"
            stream.close()
            stream.close()
            assert list(stream) == []
        elif way == "break":
            for message in client.chat(requests, headers(name)):
                assert message.text == "x"
                break
        elif way == "generator":
            generator = client.chat(requests, headers(name))
            assert next(generator).text == "x"
            generator.close()
        else:
            stream = client.call_chat(requests, headers(name))
            assert next(stream).text == "x"
            del stream
            gc.collect()
        assert noted(server, f"{name}: begin", f"{name}: end")
        requests.say("too late")
        assert settles(requests.over, SLOW)
        assert client.echo(EchoRequest(text="on")).request.text == "on"


@pytest.mark.parametrize("way", ["with", "close", "break", "generator"])
def test_leaving_early_async(library: str, server: Server, protocol: str, name: str, way: str) -> None:
    async def main() -> None:
        requests = Requests("x")
        async with aconnect(library, server, protocol) as client:
            if way == "with":
                async with client.call_chat(Async(requests), headers(name)) as stream:
                    assert (await anext(stream)).text == "x"
            elif way == "close":
                stream = await client.call_chat(Async(requests), headers(name))
                assert (await anext(stream)).text == "x"
                await stream.close()
                await stream.close()
                assert [message async for message in stream] == []
            elif way == "break":
                async for message in client.chat(Async(requests), headers(name)):
                    assert message.text == "x"
                    break
                gc.collect()
            else:
                generator = client.chat(Async(requests), headers(name))
                assert (await anext(generator)).text == "x"
                await generator.aclose()
            assert await asettles(requests.over)
            assert await anoted(server, f"{name}: begin", f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"
            assert await asettles(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())


def test_a_generator_that_does_not_block_ends_with_the_call(library: str, server: Server) -> None:
    """By the time that the stream is closed, at the latest a moment after."""
    ended = threading.Event()

    def endless() -> Iterator[ChatRequest]:
        try:
            while True:
                yield ChatRequest(text="x" * 1000)
        finally:
            ended.set()

    with connect(library, server) as client:
        with client.call_chat(endless()) as stream:
            for _ in range(100):
                assert next(stream).text == "x" * 1000
        assert ended.wait(SLOW)


# Deadlines and cancellation.


def state(kind: str) -> tuple[Requests, dict[str, str]]:
    """A call that gets stuck in some state, and the headers that make it so."""
    if kind == "waiting for a message":
        return Requests("x"), {}
    if kind == "while the handler is busy":
        return Requests("x"), {"x-delay-ms": "60000"}
    assert kind == "before anything"
    return Requests(), {}


STATES = ["before anything", "waiting for a message", "while the handler is busy"]


@pytest.mark.parametrize(
    ("library", "protocol"), [("pyqwest", "connect"), ("pyqwest", "grpc"), ("pycurl", "grpc")], indirect=True
)
@pytest.mark.parametrize("kind", STATES)
def test_a_deadline(library: str, server: Server, protocol: str, name: str, kind: str) -> None:
    requests, extra = state(kind)
    with connect(library, server, protocol) as client:
        began = time.monotonic()
        with client.call_chat(requests, {**headers(name), **extra}, timeout_seconds=0.7) as stream:
            assert [message.text for message in stream] in ([], ["x"])
            assert code_of(stream.error()) is Code.DEADLINE_EXCEEDED
        assert 0.6 < time.monotonic() - began < SLOW
        if kind != "before anything":
            assert noted(server, f"{name}: begin", f"{name}: end")
        requests.say("too late")
        assert settles(requests.over, SLOW)
        assert client.echo(EchoRequest(text="on")).request.text == "on"


@pytest.mark.parametrize("kind", STATES)
def test_a_deadline_async(library: str, server: Server, protocol: str, name: str, kind: str) -> None:
    async def main() -> None:
        requests, extra = state(kind)
        async with aconnect(library, server, protocol) as client:
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                async for _ in client.chat(Async(requests), {**headers(name), **extra}, timeout_seconds=0.7):
                    pass
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            assert 0.6 < time.monotonic() - began < SLOW
            if kind != "before anything":
                assert await anoted(server, f"{name}: begin", f"{name}: end")
            assert await asettles(requests.over)
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"
            assert await asettles(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())


@pytest.mark.parametrize("kind", STATES)
def test_a_token(library: str, server: Server, protocol: str, name: str, kind: str) -> None:
    """Canceled from another thread, in every state that a call can be in."""
    requests, extra = state(kind)
    token = CancelToken()
    with connect(library, server, protocol) as client:
        background = Background(lambda: list(client.chat(requests, {**headers(name), **extra}, cancel=token)))
        if kind == "before anything":
            time.sleep(0.1)
        else:
            assert noted(server, f"{name}: begin")
        token.cancel()
        assert end_of(background) is Code.CANCELED
        requests.say("too late")
        assert settles(requests.over, SLOW)
        if kind != "before anything":
            assert noted(server, f"{name}: end")
        assert client.echo(EchoRequest(text="on")).request.text == "on"
        with pytest.raises(ConnectError) as raised:
            list(client.chat(Requests("x"), cancel=token))
        assert raised.value.code is Code.CANCELED


def test_a_token_before_the_answer_begins(library: str, server: Server, protocol: str, name: str) -> None:
    """A client stream has no head before its end. The server learns of it at once, though the iterator blocks."""
    requests = Requests()
    token = CancelToken()
    messages: Iterator[Any] = itertools.chain([SumRequest(number=3)], iter(requests))
    with connect(library, server, protocol) as client:
        background = Background(lambda: client.sum(messages, headers(name), cancel=token))
        assert noted(server, f"{name}: begin")
        token.cancel()
        assert end_of(background) is Code.CANCELED
        assert noted(server, f"{name}: end")
        assert not requests.ended.is_set()
        requests.say("too late")
        assert client.echo(EchoRequest(text="on")).request.text == "on"


def flood(size: int = 100_000) -> Iterator[Any]:
    while True:
        yield SumRequest(number=1, padding=bytes(size))


@pytest.mark.parametrize(
    ("library", "by"), [("pyqwest", "deadline"), ("pyqwest", "token"), ("pycurl", "token")], indirect=["library"]
)
def test_while_sending(library: str, server: Server, name: str, by: str) -> None:
    """A server that takes no more of an upload does not hold its caller."""
    extra = headers(name, x_delay_ms="60000")
    token = CancelToken()
    with connect(library, server) as client:
        # Before the answer begins pyqwest does not reset a stream for a token: the server ends it by its own clock.
        background = Background(lambda: client.sum(flood(), extra, cancel=token, timeout_seconds=2))
        assert noted(server, f"{name}: begin")
        if by == "token":
            time.sleep(0.2)
            token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(SLOW)
        assert raised.value.code is (Code.CANCELED if by == "token" else Code.DEADLINE_EXCEEDED)
        assert noted(server, f"{name}: end")
        assert client.echo(EchoRequest(text="on"), timeout_seconds=SLOW).request.text == "on"


def test_while_sending_async(library: str, server: Server, name: str) -> None:
    async def main() -> None:
        async with aconnect(library, server) as client:
            # Without a deadline a busy handler would not be told: an app reads 64 KiB ahead of it, and no further.
            task = asyncio.create_task(client.sum(flood(), headers(name, x_delay_ms="60000"), timeout_seconds=3))
            assert await anoted(server, f"{name}: begin")
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await anoted(server, f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"), timeout_seconds=SLOW)).request.text == "on"

    asyncio.run(main())


@pytest.mark.parametrize("kind", STATES)
def test_the_task_is_canceled(library: str, server: Server, protocol: str, name: str, kind: str) -> None:
    async def main() -> None:
        requests, extra = state(kind)
        async with aconnect(library, server, protocol) as client:

            async def call() -> None:
                async for _ in client.chat(Async(requests), {**headers(name), **extra}):
                    pass

            task = asyncio.create_task(call())
            if kind == "before anything":
                await asyncio.sleep(0.1)
            else:
                assert await anoted(server, f"{name}: begin")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asettles(requests.over)
            if kind != "before anything":
                assert await anoted(server, f"{name}: end")
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"
            assert await asettles(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002, 0.005])
def test_the_task_is_canceled_at_any_moment(library: str, server: Server, delay: float) -> None:
    async def main() -> None:
        async with aconnect(library, server) as client:

            async def call() -> list[ChatResponse]:
                return [message async for message in client.chat([ChatRequest(text="x")] * 50)]

            for number in range(30):
                task = asyncio.create_task(call())
                await asyncio.sleep(delay * (1 + number / 30))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert len(await task) == 50
            assert len(await call()) == 50
            assert await asettles(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())


def test_close_from_another_thread(library: str, server: Server, protocol: str, name: str) -> None:
    """It wakes who reads, whose iteration just ends."""
    requests = Requests("x")
    with connect(library, server, protocol) as client:
        stream = client.call_chat(requests, headers(name))
        background = Background(lambda: [message.text for message in stream])
        assert noted(server, f"{name}: begin")
        time.sleep(0.1)
        stream.close()
        assert background.result(SLOW) == ["x"]
        assert stream.done()
        assert noted(server, f"{name}: end")
        requests.end()
        assert settles(requests.over, SLOW)


# Many, and much.


def test_many_streams(library: str, server: Server) -> None:
    """Two hundred threads, each with a stream of its own in both directions, on one client."""

    def talk(number: int) -> list[str]:
        requests = Requests("0")
        received = []
        for message in client.chat(requests):
            received.append(message.text)
            if len(received) < 5:
                requests.say(f"{number}.{len(received)}")
            else:
                requests.end()
        return received

    with connect(library, server) as client, concurrent.futures.ThreadPoolExecutor(200) as pool:
        for number, received in enumerate(pool.map(talk, range(200))):
            assert received == ["0", *[f"{number}.{turn}" for turn in range(1, 5)]]


def test_many_streams_async(library: str, server: Server) -> None:
    async def main() -> None:
        async def talk(client: AsyncProbeServiceClient, number: int) -> None:
            turn: asyncio.Queue[str | None] = asyncio.Queue()

            async def requests() -> AsyncIterator[ChatRequest]:
                while (text := await turn.get()) is not None:
                    yield ChatRequest(text=text)

            turn.put_nowait(f"{number}.0")
            received = 0
            async for message in client.chat(requests()):
                assert message.text == f"{number}.{received}"
                received += 1
                turn.put_nowait(f"{number}.{received}" if received < 5 else None)
            assert received == 5

        async with aconnect(library, server) as client:
            await asyncio.gather(*[talk(client, number) for number in range(200)])
            assert await asettles(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())


MEGABYTE = 1_000_000


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_hundred_megabytes_each_way(library: str, server: Server, colour: str) -> None:
    """What has been sent and read is not kept."""
    upload = (SumRequest(number=1, padding=bytes(MEGABYTE)) for _ in range(100))
    download = CountRequest(up_to=100, padding=MEGABYTE)
    before = Usage.now()
    peak = before.kilobytes

    def note() -> None:
        nonlocal peak
        peak = max(peak, Usage.now().kilobytes)

    if colour == "sync":
        with connect(library, server) as client:
            assert client.sum(upload).sum == 100
            note()
            for number, message in enumerate(client.count(download), 1):
                assert message.number == number
                if number % 25 == 0:
                    note()
    else:

        async def main() -> None:
            async with aconnect(library, server) as client:
                assert (await client.sum(upload)).sum == 100
                note()
                number = 0
                async for message in client.count(download):
                    number += 1
                    assert message.number == number
                    if number % 25 == 0:
                        note()

        asyncio.run(main())
    assert peak - before.kilobytes < 50_000


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_slow_server_is_waited_for(library: str, server: Server, name: str, colour: str) -> None:
    """The request iterator is asked for no more than the buffers between both sides hold."""
    taken = 0

    def counted() -> Iterator[Any]:
        nonlocal taken
        for message in flood():
            taken += 1
            yield message

    extra = headers(name, x_delay_ms="60000")
    if colour == "sync":
        with connect(library, server) as client, pytest.raises(ConnectError) as raised:
            client.sum(counted(), extra, timeout_seconds=1.5)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
    else:

        async def main() -> None:
            async with aconnect(library, server) as client:
                with pytest.raises(ConnectError) as raised:
                    await client.sum(counted(), extra, timeout_seconds=1.5)
                assert raised.value.code is Code.DEADLINE_EXCEEDED

        asyncio.run(main())
    assert 1 <= taken < 200, "20 MB are more than all windows together"
    assert noted(server, f"{name}: begin", f"{name}: end")


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_slow_caller_keeps_little(library: str, server: Server, colour: str) -> None:
    """What a caller does not read stays with the server, or on the way."""
    request = CountRequest(up_to=300, padding=MEGABYTE)
    before = Usage.now().kilobytes
    if colour == "sync":
        with connect(library, server) as client, client.call_count(request) as stream:
            assert next(stream).number == 1
            time.sleep(0.7)
            assert Usage.now().kilobytes - before < 50_000
            assert [next(stream).number for _ in range(5)] == [2, 3, 4, 5, 6]
    else:

        async def main() -> None:
            async with aconnect(library, server) as client, client.call_count(request) as stream:
                assert (await anext(stream)).number == 1
                await asyncio.sleep(0.7)
                assert Usage.now().kilobytes - before < 50_000
                assert [(await anext(stream)).number for _ in range(5)] == [2, 3, 4, 5, 6]

        asyncio.run(main())


def threads() -> int:
    """Of all kinds, also those that are not Python's."""
    return len(os.listdir("/proc/self/task"))


def test_threads_do_not_pile_up(library: str, server: Server) -> None:
    """A hundred streams that are left early, and one after the other."""
    token = CancelToken()
    before = threads()
    with connect(library, server) as client:
        for number in range(100):
            requests = Requests("x")
            with client.call_chat(requests, cancel=token if number % 2 else None) as stream:
                assert next(stream).text == "x"
            requests.end()
            assert settles(requests.over, SLOW)
        assert threads() < before + 20
        assert client.echo(EchoRequest(text="on")).request.text == "on"
