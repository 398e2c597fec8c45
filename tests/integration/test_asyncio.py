"""The asynchronous client and what asyncio does with it: cancellation, timeouts, task groups, loops that end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode

from helpers import STREAM_HEAD, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, CountRequest, CountResponse, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient
from rawhttp import RawServer, chunked, end_of_stream, envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from rawhttp import Peer
    from servers import Server

    Call = Callable[[AsyncProbeServiceClient], Coroutine[Any, Any, object]]

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode
SOON = 0.2
"""How soon a call must notice that it was ended, in seconds; what it takes is a millisecond or two."""


def number(value: int) -> bytes:
    return envelope(CountResponse(number=value).SerializeToString())


# Servers that keep calls waiting.


def silent(peer: Peer) -> None:
    peer.read()
    peer.wait_until_gone()


def head_drips(peer: Peer) -> None:
    peer.read()
    for byte in good_answer() * 100:
        peer.send(bytes([byte]))
        time.sleep(0.03)


def body_drips(peer: Peer) -> None:
    peer.read()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 5000\r\n\r\n")
    while True:
        peer.send(b"\0")
        time.sleep(0.03)


def takes_nothing(peer: Peer) -> None:
    peer.read_head()
    time.sleep(0.6)


def stream_stalls(peer: Peer) -> None:
    peer.read_head()
    peer.send(STREAM_HEAD + chunked(number(1), last=False))
    peer.wait_until_gone()


def stream_drips(peer: Peer) -> None:
    peer.read_head()
    peer.send(STREAM_HEAD)
    for value in itertools.count(1):
        peer.send(chunked(number(value), last=False))
        time.sleep(0.03)


async def endless() -> AsyncIterator[SumRequest]:
    while True:
        yield SumRequest(padding=bytes(100_000))


async def unary(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    await client.echo(EchoRequest(), timeout_seconds=timeout)


async def upload(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    await client.sum([SumRequest(padding=bytes(3_000_000))] * 20, timeout_seconds=timeout)


async def upload_stream(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    await client.sum(endless(), timeout_seconds=timeout)


async def server_stream(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    async for _ in client.count(CountRequest(), timeout_seconds=timeout):
        pass


async def server_stream_output(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    async with client.call_count(CountRequest(), timeout_seconds=timeout) as stream:
        async for _ in stream:
            pass
        error = stream.error()
        assert error is not None
        raise error


async def client_stream(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    await client.sum([SumRequest(number=1)] * 3, timeout_seconds=timeout)


async def bidi_stream(client: AsyncProbeServiceClient, timeout: float | None = None) -> None:
    async def requests() -> AsyncIterator[ChatRequest]:
        yield ChatRequest()
        await asyncio.sleep(30)

    async for _ in client.chat(requests(), timeout_seconds=timeout):
        pass


STALLS: dict[str, tuple[Callable[[Peer], None], Callable[..., Coroutine[Any, Any, None]]]] = {
    "no answer": (silent, unary),
    "no answer to a server stream": (silent, server_stream),
    "no answer to a client stream": (silent, client_stream),
    "no answer to a bidirectional stream": (silent, bidi_stream),
    "head drips": (head_drips, unary),
    "body drips": (body_drips, unary),
    "upload is not taken": (takes_nothing, upload),
    "upload of a stream is not taken": (takes_nothing, upload_stream),
    "stream stalls": (stream_stalls, server_stream),
    "stream stalls, its output": (stream_stalls, server_stream_output),
    "stream drips": (stream_drips, server_stream),
    "bidirectional stream stalls": (stream_stalls, bidi_stream),
}


@pytest.fixture(params=STALLS.values(), ids=STALLS.keys())
def stall(request: pytest.FixtureRequest) -> Iterator[tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]]:
    script, call = request.param
    calls = 0

    def only_once(peer: Peer) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            script(peer)
        else:
            echo_all(peer)

    with RawServer(only_once) as server:
        yield server, call


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def nothing_left() -> None:
    """No task of a call outlives it."""
    for _ in range(50):
        if not others():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still there: {others()}")


async def connections_gone(server: RawServer) -> None:
    """Wait until the server sees none. aiohttp does not drop what it has buffered for a server that takes nothing."""
    assert await asyncio.to_thread(settles, lambda: server.open_connections == 0)


def test_deadline(stall: tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    server, call = stall

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                await call(client, 0.3)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            assert 0.25 < time.monotonic() - began < 0.3 + SOON
            await nothing_left()
            assert (await client.echo(EchoRequest(text="next"))).request.text == "next"
        await connections_gone(server)

    asyncio.run(main())
    assert server.accepted == 2


def test_cancel(stall: tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    server, call = stall

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            task = asyncio.create_task(call(client))
            await asyncio.sleep(0.2)
            assert not task.done()
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < SOON
            await nothing_left()
            assert (await client.echo(EchoRequest(text="next"))).request.text == "next"
        await connections_gone(server)

    asyncio.run(main())
    assert server.accepted == 2


def test_cancel_with_a_deadline_of_its_own(stall: tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    """The cancellation is the caller's, whatever timers run beside it."""
    server, call = stall

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            task = asyncio.create_task(call(client, 5))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if sys.version_info >= (3, 11):
                assert task.cancelling() == 1
        await connections_gone(server)

    asyncio.run(main())


def test_wait_for(stall: tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    server, call = stall

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call(client, 5), 0.1)
            assert (await client.echo(EchoRequest(text="next"))).request.text == "next"
        await connections_gone(server)

    asyncio.run(main())


if sys.version_info >= (3, 11):

    def test_timeout() -> None:
        async def main() -> None:
            with RawServer(silent) as server:
                async with AsyncProbeServiceClient(server.url) as client:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await client.echo(EchoRequest())
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await client.echo(EchoRequest(), timeout_seconds=5)
                    with pytest.raises(ConnectError) as raised:
                        async with asyncio.timeout(5):
                            await client.echo(EchoRequest(), timeout_seconds=0.1)
                    assert raised.value.code is Code.DEADLINE_EXCEEDED
                    task = asyncio.current_task()
                    assert task is not None
                    assert task.cancelling() == 0
            with RawServer(stream_drips) as server:
                async with AsyncProbeServiceClient(server.url) as client:
                    found = 0
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.2):
                            async for _ in client.count(CountRequest()):
                                found += 1
                    assert found > 1
                    await asyncio.sleep(0)
                    assert await asyncio.to_thread(settles, lambda: server.open_connections == 0)

        asyncio.run(main())

    def test_task_group(gunicorn_gthread: Server) -> None:
        async def main() -> None:
            async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(client.echo(EchoRequest(number=index))) for index in range(30)]
                assert [task.result().request.number for task in tasks] == list(range(30))
                ends: list[str] = []

                async def slow() -> None:
                    try:
                        await client.echo(EchoRequest(delay_ms=2000))
                    except asyncio.CancelledError:
                        ends.append("canceled")
                        raise

                async def slow_stream() -> None:
                    try:
                        async for _ in client.count(CountRequest(up_to=1000, delay_ms=10)):
                            pass
                    except asyncio.CancelledError:
                        ends.append("canceled")
                        raise

                began = time.monotonic()
                with pytest.raises(ExceptionGroup) as raised:  # noqa: F821  there is one where there are task groups
                    async with asyncio.TaskGroup() as group:
                        group.create_task(slow())
                        group.create_task(slow_stream())
                        await asyncio.sleep(0.1)
                        group.create_task(client.echo(EchoRequest(misdeed="error=ABORTED")))
                (error,) = raised.value.exceptions
                assert isinstance(error, ConnectError)
                assert error.code is Code.ABORTED
                assert ends == ["canceled", "canceled"]
                assert time.monotonic() - began < 1
                assert (await client.echo(EchoRequest(text="next"))).request.text == "next"

        asyncio.run(main())


def test_deadline_while_connecting() -> None:
    async def main(port: int) -> None:
        async with AsyncProbeServiceClient(f"http://127.0.0.1:{port}") as client:
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                await client.echo(EchoRequest(), timeout_seconds=0.3)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            assert 0.25 < time.monotonic() - began < 0.3 + SOON

    with black_hole() as port:
        asyncio.run(main(port))


def test_cancel_while_connecting() -> None:
    async def main(port: int) -> None:
        async with AsyncProbeServiceClient(f"http://127.0.0.1:{port}") as client:
            task = asyncio.create_task(client.echo(EchoRequest()))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < SOON
            await nothing_left()

    with black_hole() as port:
        asyncio.run(main(port))


@pytest.mark.parametrize("timeout", [0, -1, float("-inf")])
def test_a_timeout_that_is_over_sends_nothing(timeout: float) -> None:
    async def main() -> None:
        with RawServer(echo_all) as server:
            async with AsyncProbeServiceClient(server.url) as client:
                for call in (unary, server_stream, client_stream, bidi_stream, server_stream_output):
                    with pytest.raises(ConnectError) as raised:
                        await call(client, timeout)
                    assert raised.value.code is Code.DEADLINE_EXCEEDED
                error = (await client.call_echo(EchoRequest(), timeout_seconds=timeout)).error()
                assert error is not None
                assert error.code is Code.DEADLINE_EXCEEDED
                with pytest.raises(ValueError, match="NaN"):
                    await client.echo(EchoRequest(), timeout_seconds=float("nan"))
                with pytest.raises(ValueError, match="NaN"):
                    await client.call_count(CountRequest(), timeout_seconds=float("nan"))
            assert server.accepted == 0

    asyncio.run(main())


async def echo_once(client: AsyncProbeServiceClient) -> None:
    assert (await client.echo(EchoRequest(text="x"))).request.text == "x"


async def count_some(client: AsyncProbeServiceClient) -> None:
    assert [message.number async for message in client.count(CountRequest(up_to=5))] == [1, 2, 3, 4, 5]


async def count_output(client: AsyncProbeServiceClient) -> None:
    async with client.call_count(CountRequest(up_to=5)) as stream:
        assert [message.number async for message in stream] == [1, 2, 3, 4, 5]


async def count_awaited(client: AsyncProbeServiceClient) -> None:
    stream = await client.call_count(CountRequest(up_to=5))
    try:
        assert [message.number async for message in stream] == [1, 2, 3, 4, 5]
    finally:
        await stream.close()


async def sum_some(client: AsyncProbeServiceClient) -> None:
    async def requests() -> AsyncIterator[SumRequest]:
        for value in range(4):
            await asyncio.sleep(0)
            yield SumRequest(number=value)

    assert (await client.sum(requests())).sum == 6


async def chat_some(client: AsyncProbeServiceClient) -> None:
    async def requests() -> AsyncIterator[ChatRequest]:
        for text in "abc":
            await asyncio.sleep(0)
            yield ChatRequest(text=text)

    assert [message.text async for message in client.chat(requests())] == ["a", "b", "c"]


@pytest.mark.parametrize("call", [echo_once, count_some, count_output, count_awaited, sum_some, chat_some])
def test_cancel_at_every_step(gunicorn_gthread: Server, call: Call) -> None:
    """After any number of turns of the loop: CancelledError comes out, and the next call works."""

    async def main() -> None:
        before = count_sockets()
        canceled = 0
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
            for steps in itertools.chain(range(40), range(40, 200, 10)):
                task = asyncio.create_task(call(client))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if steps >= 40:
                    await asyncio.sleep((steps - 40) / 40_000)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    canceled += 1
                else:
                    await task
                await echo_once(client)
            await nothing_left()
            assert count_sockets() <= before + 2
        assert canceled > 2

    asyncio.run(main())


def test_many_calls_of_which_some_are_cancelled(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:

            async def one(index: int) -> None:
                assert (await client.echo(EchoRequest(number=index))).request.number == index
                assert [message.number async for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]

            tasks = [asyncio.create_task(one(index)) for index in range(200)]
            for index, task in enumerate(tasks):
                if index % 3 == 0:
                    await asyncio.sleep(0.001)
                    task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            await echo_once(client)
            await nothing_left()

    asyncio.run(main())


def test_an_upload_that_is_cancelled_closes_the_callers_generator() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def requests() -> AsyncIterator[SumRequest]:
            try:
                yield SumRequest()
                await asyncio.sleep(30)
            finally:
                ended.append("end")

        with RawServer(silent) as server:
            async with AsyncProbeServiceClient(server.url) as client:
                task = asyncio.create_task(client.sum(requests()))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                for _ in range(50):
                    await asyncio.sleep(0.01)
                assert ended == ["end"]

    asyncio.run(main())


def test_streams_that_are_left(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
            await echo_once(client)
            before = count_sockets()
            for index in range(300):
                request = CountRequest(up_to=1000, padding=1000)
                if index % 3 == 0:
                    async with client.call_count(request) as stream:
                        await anext(stream)
                elif index % 3 == 1:
                    stream = await client.call_count(request)
                    await anext(stream)
                    await stream.close()
                    await stream.close()
                    assert stream.done()
                    assert [message async for message in stream] == []
                else:
                    generator = client.count(request)
                    await anext(generator)
                    await generator.aclose()
            await asyncio.sleep(0.1)
            assert count_sockets() <= before + 1
            await echo_once(client)
            await nothing_left()

    asyncio.run(main())


def test_generators_that_are_left_to_the_collector(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
            await echo_once(client)
            before = count_sockets()
            for _ in range(50):
                async for message in client.count(CountRequest(up_to=1000, padding=1000)):
                    assert message.number == 1
                    break
            for _ in range(20):
                gc.collect()
                await asyncio.sleep(0.01)
            assert count_sockets() <= before + 1
            await nothing_left()

    asyncio.run(main())


def test_a_stream_can_be_awaited_and_entered(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
            call = client.call_count(CountRequest(up_to=2, misdeed="metadata"))
            async with call as stream:
                assert not stream.done()
                assert stream.response_headers().getall("x-head") == ["1", "2"]
                with pytest.raises(RuntimeError):
                    stream.response_trailers()
                assert [message.number async for message in stream] == [1, 2]
                assert stream.done()
                assert stream.error() is None
                assert stream.response_trailers().getall("x-tail") == ["3", "4"]
            with pytest.raises(RuntimeError):
                await call
            with pytest.raises(RuntimeError):
                async with call:
                    pass
            stream = await client.call_count(CountRequest(up_to=2, misdeed="error last"))
            assert [message.number async for message in stream] == [1, 2]
            error = stream.error()
            assert error is not None
            assert error.code is Code.NOT_FOUND
            client.call_count(CountRequest())  # never begun: no call, no warning
            client.count(CountRequest())
            with pytest.raises(KeyError):
                async with client.call_count(CountRequest(up_to=1000, delay_ms=10)) as stream:
                    raise KeyError
            assert stream.done()

    asyncio.run(main())


def test_full_duplex() -> None:
    """Over HTTP/1.1: the server answers each message before the next one is made of it."""

    def script(peer: Peer) -> None:
        while peer.read_head() is not None:
            peer.send(STREAM_HEAD)
            while message := peer.read_chunk():
                peer.send(chunked(message, last=False))
            peer.send(chunked(end_of_stream()))

    async def main() -> None:
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def requests() -> AsyncIterator[ChatRequest]:
            text = "x"
            while len(text) < 6:
                yield ChatRequest(text=text)
                text = await answers.get() + "x"

        async with AsyncProbeServiceClient(server.url) as client:
            found = []
            async with client.call_chat(requests()) as stream:
                async for message in stream:
                    found.append(message.text)
                    answers.put_nowait(message.text)
            assert stream.error() is None
            assert found == ["x", "xx", "xxx", "xxxx", "xxxxx"]
            found = [message.text async for message in client.chat([ChatRequest(text="y")] * 3)]
            assert found == ["y", "y", "y"]

    with RawServer(script) as server:
        asyncio.run(main())


def test_the_head_comes_before_the_first_request_message() -> None:
    """The server greets first, and the client's first message depends on it."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(STREAM_HEAD + chunked(envelope(b"\n\5hello"), last=False))
        assert b"hello" in peer.read_chunk()
        while peer.read_chunk():
            pass
        peer.send(chunked(end_of_stream()))

    async def main() -> None:
        greeted: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def requests() -> AsyncIterator[ChatRequest]:
            yield ChatRequest(text=await greeted)

        async with AsyncProbeServiceClient(server.url) as client, client.call_chat(requests(), None, 5) as stream:
            async for message in stream:
                greeted.set_result(message.text)
            assert stream.error() is None

    with RawServer(script) as server:
        asyncio.run(main())


def test_a_stream_that_ends_before_its_requests_do() -> None:
    def script(peer: Peer) -> None:
        while (request := peer.read_head()) is not None:
            if request.path.endswith("Echo"):
                peer.send(good_answer())
                continue
            peer.read_chunk()
            peer.send(STREAM_HEAD + chunked(end_of_stream({"error": {"code": "aborted"}})))
            peer.skip_body(request)

    async def main() -> None:
        async def requests() -> AsyncIterator[ChatRequest]:
            yield ChatRequest()
            await asyncio.sleep(30)

        async with AsyncProbeServiceClient(server.url) as client:
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                async for _ in client.chat(requests()):
                    pass
            assert raised.value.code is Code.ABORTED
            assert time.monotonic() - began < 1
            await nothing_left()
            await client.echo(EchoRequest())

    with RawServer(script) as server:
        asyncio.run(main())


def test_more_streams_at_once_than_a_pool_has() -> None:
    """Our own session has room for whatever is asked of it, as our own pool of urllib3 has."""

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(120):
                    stream = await stack.enter_async_context(client.call_count(CountRequest(), timeout_seconds=10))
                    assert stream.error() is None
                    assert (await anext(stream)).number == 1
            assert server.accepted == 120

    with RawServer(stream_stalls) as server:
        asyncio.run(main())


# Loops and sessions.


def test_one_client_in_two_loops(gunicorn_gthread: Server) -> None:
    client = AsyncProbeServiceClient(gunicorn_gthread.url)
    for _ in range(3):
        asyncio.run(echo_once(client))
        asyncio.run(count_some(client))
    asyncio.run(client.aclose())


def test_one_client_in_two_loops_leaves_nothing_open(gunicorn_gthread: Server) -> None:
    before = count_sockets()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = AsyncProbeServiceClient(gunicorn_gthread.url)
        asyncio.run(echo_once(client))
        asyncio.run(echo_once(client))
        asyncio.run(client.aclose())
        del client
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert count_sockets() <= before


def test_the_users_session_in_two_loops(gunicorn_gthread: Server) -> None:
    made: list[AsyncProbeServiceClient] = []

    async def first() -> None:
        session = aiohttp.ClientSession()
        made.append(AsyncProbeServiceClient(gunicorn_gthread.url, session))
        await echo_once(made[0])
        await session.close()

    asyncio.run(first())

    async def second() -> None:
        for call in (echo_once, count_some, sum_some, chat_some):
            with pytest.raises(RuntimeError, match=r"loop|session"):
                await call(made[0])
        with pytest.raises(RuntimeError, match=r"loop|session"):
            async with made[0].call_count(CountRequest()):
                pass

    asyncio.run(second())


def test_the_users_session_of_another_loop(gunicorn_gthread: Server) -> None:
    """The client is new, its session is not."""
    sessions: list[aiohttp.ClientSession] = []

    async def first() -> None:
        sessions.append(aiohttp.ClientSession())
        await echo_once(AsyncProbeServiceClient(gunicorn_gthread.url, sessions[0]))
        await sessions[0].close()
        sessions[0] = aiohttp.ClientSession()

    asyncio.run(first())

    async def second() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(echo_once(AsyncProbeServiceClient(gunicorn_gthread.url, sessions[0])), 5)
        await sessions[0].connector.close()  # type: ignore[union-attr]
        sessions[0].detach()

    asyncio.run(second())


def test_the_users_session_stays_the_users(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        timeout = aiohttp.ClientTimeout(total=0.3)
        async with aiohttp.ClientSession(
            timeout=timeout, raise_for_status=True, headers={"x-session": "mine"}, cookies={"a": "b"}
        ) as session:
            async with AsyncProbeServiceClient(gunicorn_gthread.url, session) as client:
                response = await client.echo(EchoRequest())
                seen = {header.name.lower(): header.values[0] for header in response.headers}
                assert seen["x-session"] == "mine"
                assert seen["cookie"] == "a=b"
                # A call may take as long as it does: only its own deadline ends it.
                await client.echo(EchoRequest(delay_ms=500))
                error = (await client.call_echo(EchoRequest(misdeed="error=NOT_FOUND"))).error()
                assert error is not None
                assert error.code is Code.NOT_FOUND
            assert not session.closed
            await client.echo(EchoRequest())  # what is closed was not the session
        with pytest.raises((RuntimeError, ConnectError)):
            await client.echo(EchoRequest())

    asyncio.run(main())


def test_the_users_limits(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        with RawServer(silent) as server:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=0.2)) as session:
                with pytest.raises(ConnectError) as raised:
                    await AsyncProbeServiceClient(server.url, session).echo(EchoRequest())
                assert raised.value.code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)
        with black_hole() as port:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=0.2)) as session:
                with pytest.raises(ConnectError) as raised:
                    await AsyncProbeServiceClient(f"http://127.0.0.1:{port}", session).echo(EchoRequest())
                assert raised.value.code is Code.UNAVAILABLE
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            client = AsyncProbeServiceClient(gunicorn_gthread.url, session)
            async with client.call_count(CountRequest(up_to=100, delay_ms=20)) as stream:
                await anext(stream)
                with pytest.raises(ConnectError) as raised:
                    await client.echo(EchoRequest(), timeout_seconds=0.2)
                assert raised.value.code is Code.DEADLINE_EXCEEDED
            for _ in range(5):  # one connection is enough for calls that are over
                await echo_once(client)
                await count_some(client)
                with contextlib.suppress(ConnectError):
                    await client.echo(EchoRequest(misdeed="error=ABORTED"))

    asyncio.run(main())


def test_a_client_that_was_closed(gunicorn_gthread: Server) -> None:
    async def main() -> None:
        before = count_sockets()
        client = AsyncProbeServiceClient(gunicorn_gthread.url)
        await echo_once(client)
        await client.aclose()
        await client.aclose()
        await asyncio.sleep(0.05)
        assert count_sockets() <= before

    asyncio.run(main())


def test_no_warnings_in_debug_mode(gunicorn_gthread: Server) -> None:
    """asyncio's debug mode tells of what was never awaited, never closed, or called in the wrong thread."""

    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:
            for call in (echo_once, count_some, count_output, count_awaited, sum_some, chat_some):
                await call(client)
            task: asyncio.Task[Any]
            awaitable: Awaitable[Any]
            for awaitable in (client.echo(EchoRequest(delay_ms=100)), client.sum(endless())):
                task = asyncio.ensure_future(awaitable)  # type: ignore[assignment]
                await asyncio.sleep(0.03)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with client.call_count(CountRequest(up_to=1000, padding=1000)) as stream:
                await anext(stream)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main(), debug=True)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
