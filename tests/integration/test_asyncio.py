"""The asynchronous client and what asyncio does with it: cancellation, timeouts, task groups, loops that end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from typing_extensions import Self

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks

from helpers import STREAM_HEAD, Usage, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, CountRequest, CountResponse, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient
from rawhttp import HOST, RawServer, chunked, end_of_stream, envelope, response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator

    from connectrpc.interceptors import Request, Response
    from connectrpc.streams import AsyncStreamOutput

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


@pytest.fixture(params=list(STALLS.values()), ids=list(STALLS))
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
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


async def nothing_left() -> None:
    """No task of a call outlives it."""
    for _ in range(50):
        if not others():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still there: {others()}")


async def connections_gone(server: RawServer) -> None:
    """Wait until the server sees none."""
    assert await asyncio.to_thread(settles, lambda: server.open_connections == 0)


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
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


async def look_by_get(client: AsyncProbeServiceClient) -> None:
    assert (await client.look(EchoRequest(text="x"))).request.text == "x"


async def fail(client: AsyncProbeServiceClient) -> None:
    error = (await client.call_echo(EchoRequest(misdeed="error=ABORTED"))).error()
    assert error is not None
    assert error.code is Code.ABORTED


async def in_time(client: AsyncProbeServiceClient) -> None:
    assert (await client.echo(EchoRequest(text="x"), timeout_seconds=20)).request.text == "x"
    assert [message.number async for message in client.count(CountRequest(up_to=3), timeout_seconds=20)] == [1, 2, 3]


async def send_much(client: AsyncProbeServiceClient) -> None:
    data = bytes(1_500_000)
    assert (await client.echo(EchoRequest(data=data))).request.data == data
    assert (await client.sum([SumRequest(number=1, padding=bytes(500_000))] * 4)).sum == 4


async def chat_and_leave(client: AsyncProbeServiceClient) -> None:
    async def requests() -> AsyncIterator[ChatRequest]:
        for text in itertools.repeat("x", 1000):
            yield ChatRequest(text=text)
            await asyncio.sleep(0)

    async with client.call_chat(requests()) as stream:
        assert (await anext(stream)).text == "x"


CALLS: dict[str, Call] = {
    "unary": echo_once,
    "GET": look_by_get,
    "error": fail,
    "with deadlines": in_time,
    "server stream": count_some,
    "server stream, entered": count_output,
    "server stream, awaited": count_awaited,
    "client stream": sum_some,
    "bidi stream": chat_some,
    "bidi stream, left": chat_and_leave,
    "large uploads": send_much,
}


async def wait_around(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    """An interceptor that waits before and after."""
    await asyncio.sleep(0)
    response = await proceed(request)
    await asyncio.sleep(0)
    return response


CLIENTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "our session": (True, {}),
    "the user's session": (False, {}),
    "interceptors": (True, {"interceptors": [wait_around, Hooks(), wait_around]}),
}
"""Whether a client's session is its own, and its options."""


@contextlib.asynccontextmanager
async def client_of(server: Server, kind: str) -> AsyncIterator[AsyncProbeServiceClient]:
    # By name, so that looking that up is among the waits.
    url = server.url.replace(HOST, "localhost")
    own, options = CLIENTS[kind]
    async with contextlib.AsyncExitStack() as stack:
        session = None if own else await stack.enter_async_context(aiohttp.ClientSession())
        yield await stack.enter_async_context(AsyncProbeServiceClient(url, session, use_get=True, **options))


class At:
    """A call that runs in the current task, where something is done at one of its waits.

    Args:
        call: the call.
        index: which wait, counted from 0.
        over: not as the wait begins, but when what is waited for has come, before the call learns of it.
    """

    def __init__(self, call: Coroutine[Any, Any, object], index: int, over: bool) -> None:
        self._call = call
        self._left = index
        self._over = over
        self.acted = False

    async def run(self, act: Callable[[], object]) -> None:
        self._act = act
        await self

    def _do(self, _: object = None) -> None:
        self.acted = True
        self._act()

    def __await__(self) -> Generator[Any, Any, None]:
        sent: Any = None
        failure: BaseException | None = None
        while True:
            try:
                waited_for = self._call.send(sent) if failure is None else self._call.throw(failure)
            except StopIteration:
                return
            if self._left == 0:
                if self._over and waited_for is not None:
                    waited_for.add_done_callback(self._do)
                else:
                    self._do()
            self._left -= 1
            sent = failure = None
            try:
                sent = yield waited_for
            except BaseException as error:
                failure = error


class Noise:
    """What asyncio and the interpreter complain of to nobody."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self._before = sys.unraisablehook

    def __enter__(self) -> Self:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.heard.append(context))
        sys.unraisablehook = lambda unraisable: self.heard.append(repr(unraisable))
        return self

    def __exit__(self, *exc_info: object) -> None:
        gc.collect()
        sys.unraisablehook = self._before


async def at_every_wait(server: Server, kind: str, call: Call, end: Callable[[At], Awaitable[None]]) -> None:
    """Call again and again, and each time do something at the next of its waits, until there are no more.

    Args:
        server: whom to call.
        kind: which of ``CLIENTS`` calls.
        call: the call.
        end: runs it, and looks at how it ends.
    """
    before = count_sockets()
    waits = 0
    with Noise() as noise:
        async with client_of(server, kind) as client:
            for over, connected in itertools.product((False, True), repeat=2):
                for index in itertools.count():
                    if connected:
                        await echo_once(client)
                    at = At(call(client), index, over)
                    await end(at)
                    await nothing_left()
                    if not at.acted:
                        break
                    waits += 1
            await call(client)
            assert waits > 4
        for _ in range(100):
            if count_sockets() <= before:
                break
            await asyncio.sleep(0.01)
        assert count_sockets() <= before
    assert noise.heard == []


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_cancel_at_every_wait(gunicorn_gthread: Server, call: Call, kind: str) -> None:
    """CancelledError comes out, whatever the call was waiting for, and nothing is left of it."""

    async def end(at: At) -> None:
        async def run() -> None:
            await at.run(asyncio.current_task().cancel)  # type: ignore[union-attr]

        task = asyncio.create_task(run())
        await asyncio.wait([task])
        assert task.cancelled() == at.acted
        if not at.acted:
            await task

    asyncio.run(at_every_wait(gunicorn_gthread, kind, call, end))


if sys.version_info >= (3, 11):

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_timeout_at_every_wait(gunicorn_gthread: Server, call: Call) -> None:
        """``asyncio.timeout()`` knows its own cancellation again, whatever the call's own timers do."""

        async def end(at: At) -> None:
            loop = asyncio.get_running_loop()
            task = asyncio.current_task()
            assert task is not None
            timed_out = False
            try:
                async with asyncio.timeout(None) as timeout:
                    await at.run(lambda: timeout.reschedule(loop.time()))
            except TimeoutError:
                timed_out = True
            # The timer may come too late for a call that does not wait again.
            assert timed_out <= at.acted
            assert timed_out == timeout.expired()
            assert task.cancelling() == 0

        asyncio.run(at_every_wait(gunicorn_gthread, "interceptors", call, end))


@pytest.mark.alone
def test_aclose_while_a_call_is_under_way(stall: tuple[RawServer, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    """Both end at once, and the call with an error of its own."""
    server, call = stall

    async def main() -> None:
        client = AsyncProbeServiceClient(server.url)
        task = asyncio.create_task(call(client))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await asyncio.wait_for(client.aclose(), 2)
        with pytest.raises(ConnectError) as raised:
            await asyncio.wait_for(task, 2)
        assert (raised.value.code, raised.value.message) == (Code.CANCELED, "the client was closed")
        assert time.monotonic() - began < SOON + 0.2
        await nothing_left()
        await connections_gone(server)

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


@pytest.mark.parametrize("how", ["too late", "answered", "hung up"])
def test_an_upload_that_the_server_does_not_take_closes_the_callers_generator(how: str) -> None:
    """Although the caller holds it, and what became of the call."""
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        if how == "answered":
            peer.send(response(404, {"content-type": "application/json"}, b'{"code":"not_found"}'))
        if how != "hung up":
            over.wait(10)

    async def main() -> None:
        ended = asyncio.Event()

        async def requests() -> AsyncIterator[SumRequest]:
            try:
                async for request in endless():
                    yield request
            finally:
                await asyncio.sleep(0.01)  # may wait
                ended.set()

        with RawServer(script) as server:
            async with AsyncProbeServiceClient(server.url) as client:
                given = requests()
                outcome = await client.call_sum(given, timeout_seconds=0.3 if how == "too late" else None)
                assert outcome.error() is not None
                await asyncio.wait_for(ended.wait(), 5)
                assert [request async for request in given] == []
            over.set()

    asyncio.run(main())


async def upload_in_time(client: AsyncProbeServiceClient) -> None:
    error = (await client.call_echo(EchoRequest(data=bytes(20_000_000)), timeout_seconds=0.8)).error()
    assert error is not None
    assert error.code in (Code.NOT_FOUND, Code.DEADLINE_EXCEEDED)


async def stream_in_time(client: AsyncProbeServiceClient) -> None:
    error = (await client.call_sum(endless(), timeout_seconds=0.8)).error()
    assert error is not None
    assert error.code in (Code.UNIMPLEMENTED, Code.DEADLINE_EXCEEDED)


async def upload_canceled(client: AsyncProbeServiceClient) -> None:
    task = asyncio.create_task(client.sum(endless()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ConnectError)):
        await task


async def duplex_left(client: AsyncProbeServiceClient) -> None:
    async def requests() -> AsyncIterator[ChatRequest]:
        while True:
            yield ChatRequest(text="x" * 100_000)

    with contextlib.suppress(asyncio.TimeoutError):
        async with client.call_chat(requests(), timeout_seconds=0.8):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("answers", [True, False], ids=["early answer", "no answer"])
@pytest.mark.parametrize("call", [upload_in_time, stream_in_time, upload_canceled, duplex_left])
def test_what_is_left_of_an_upload_is_dropped(call: Call, answers: bool) -> None:
    """A call that is over keeps no socket to wait for a server that takes nothing more."""
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        if answers:
            peer.send(response(404, {"content-type": "application/json"}, b'{"code":"not_found"}'))
        over.wait(10)

    async def main() -> None:
        before = count_sockets()
        with RawServer(script) as server:
            async with AsyncProbeServiceClient(server.url) as client:
                await call(client)
                # What belongs to the server: its listener, and its end of each connection.
                for _ in range(100):
                    if count_sockets() == before + 1 + server.open_connections:
                        break
                    await asyncio.sleep(0.01)
                assert server.open_connections == 1
                assert count_sockets() == before + 2
            over.set()

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


@pytest.mark.parametrize("call", ["server", "bidi"])
def test_streams_that_are_forgotten(call: str) -> None:
    """They free their connections, and close what they send, though nobody has said that they are over."""
    closed: list[str] = []

    async def requests() -> AsyncIterator[ChatRequest]:
        try:
            yield ChatRequest()
            await asyncio.Event().wait()
        finally:
            closed.append(call)

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(STREAM_HEAD + chunked(envelope(b""), last=False))
        peer.wait_until_gone()

    async def main() -> None:
        with RawServer(script) as server:
            async with AsyncProbeServiceClient(server.url) as client:

                async def forget() -> None:
                    stream: AsyncStreamOutput[Any]
                    if call == "server":
                        stream = await client.call_count(CountRequest())
                    else:
                        stream = await client.call_chat(requests())
                    await anext(stream)

                for _ in range(3):
                    await forget()
                await nothing_left()
                await connections_gone(server)
                assert closed == ([call] * 3 if call == "bidi" else [])

    asyncio.run(main())


class Boom(Exception):  # noqa: N818
    pass


async def broken_requests() -> AsyncIterator[SumRequest]:
    yield SumRequest()
    raise Boom


async def left(client: AsyncProbeServiceClient) -> None:
    async with client.call_count(CountRequest(up_to=20)) as stream:
        await anext(stream)


async def closed_unread(client: AsyncProbeServiceClient) -> None:
    stream = await client.call_count(CountRequest(up_to=20))
    await stream.close()


async def generator_left(client: AsyncProbeServiceClient) -> None:
    generator = client.count(CountRequest(up_to=20))
    await anext(generator)
    await generator.aclose()


async def never_begun(client: AsyncProbeServiceClient) -> None:
    client.count(CountRequest(up_to=20))
    client.call_count(CountRequest(up_to=20))


async def canceled(call: Coroutine[Any, Any, object]) -> None:
    task = asyncio.create_task(call)
    await asyncio.sleep(0.001)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


EARLY_EXITS: dict[str, Call] = {
    "stream left": left,
    "stream closed unread": closed_unread,
    "generator left": generator_left,
    "never begun": never_begun,
    "canceled": lambda client: canceled(client.echo(EchoRequest(delay_ms=3))),
    "stream canceled": lambda client: canceled(read(client.count(CountRequest(up_to=10, delay_ms=1)))),
    "upload canceled": lambda client: canceled(client.sum(endless())),
    "deadline": lambda client: client.echo(EchoRequest(delay_ms=3), timeout_seconds=0.001),
    "deadline of a stream": lambda client: read(
        client.count(CountRequest(up_to=10, delay_ms=1), timeout_seconds=0.001)
    ),
    "error": lambda client: client.echo(EchoRequest(misdeed="error=NOT_FOUND")),
    "error of a stream": lambda client: read(client.count(CountRequest(misdeed="error at once"))),
    "request iterator fails": lambda client: client.sum(broken_requests()),
}
"""Ways to end a call before its time that cost the server little."""


@pytest.mark.alone
def test_ten_thousand_early_exits(gunicorn_gthread: Server) -> None:
    """Sockets, objects and memory are the same after ten thousand as after one thousand."""

    async def main() -> None:
        async with AsyncProbeServiceClient(gunicorn_gthread.url) as client:

            async def leave(times: int) -> None:
                exits = itertools.cycle(EARLY_EXITS.values())
                for end in itertools.islice(exits, times):
                    with contextlib.suppress(ConnectError, Boom):
                        await end(client)

            async def leave_in_tasks(times: int) -> Usage:
                await asyncio.gather(*(leave(times // 8) for _ in range(8)))
                await nothing_left()
                for _ in range(100):
                    if count_sockets() <= before.sockets + 8:
                        break
                    await asyncio.sleep(0.02)
                usage = Usage.now()
                assert usage.sockets <= before.sockets + 8
                return usage

            before = Usage.now()
            some = await leave_in_tasks(1000)
            many = await leave_in_tasks(10_000)
            assert many.objects < some.objects + 1000
            assert many.kilobytes < some.kilobytes + 4000
            await echo_once(client)

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


def test_one_client_in_loops_of_several_threads(gunicorn_gthread: Server) -> None:
    """As of a module whose async functions a framework runs from its threads, each in a loop of its own."""
    client = AsyncProbeServiceClient(gunicorn_gthread.url, timeout_seconds=30)
    before = count_sockets()

    async def some() -> None:
        for _ in range(10):
            await echo_once(client)
            await count_some(client)

    def work() -> None:
        for _ in range(3):
            asyncio.run(some())

    with ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(work) for _ in range(4)]:
            done.result()
    asyncio.run(client.aclose())
    assert count_sockets() <= before


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


@pytest.mark.parametrize("kind", ["unary", "upload", "stream", "stream, left open", "generator"])
def test_a_loop_that_ends_in_the_middle_of_a_call(gunicorn_gthread: Server, kind: str) -> None:
    """What was under way ends with the loop, and the client goes on in the next one."""
    client = AsyncProbeServiceClient(gunicorn_gthread.url)
    before = count_sockets()
    kept: list[object] = []

    async def left_open() -> None:
        stream = await client.call_count(CountRequest(up_to=1000, delay_ms=10))
        assert (await anext(stream)).number == 1
        kept.append(stream)
        await asyncio.sleep(10)

    async def generator() -> None:
        messages = client.count(CountRequest(up_to=1000, delay_ms=10))
        assert (await anext(messages)).number == 1
        kept.append(messages)
        await asyncio.sleep(10)

    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "unary": lambda: client.echo(EchoRequest(delay_ms=3000)),
        "upload": lambda: client.sum(endless()),
        "stream": lambda: read(client.count(CountRequest(up_to=1000, delay_ms=10))),
        "stream, left open": left_open,
        "generator": generator,
    }

    async def main() -> None:
        with Noise() as noise:
            task = asyncio.create_task(calls[kind]())
            await asyncio.sleep(0.1)
            assert not task.done()
        assert noise.heard == []
        kept.append(task)

    for _ in range(2):
        began = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - began < 2.5
        kept.clear()
        gc.collect()
        assert count_sockets() <= before
        asyncio.run(echo_once(client))
        asyncio.run(count_some(client))
    asyncio.run(client.aclose())


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
                task = asyncio.ensure_future(awaitable)
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
