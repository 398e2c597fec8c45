"""grpcio against our servers, and our clients against grpcio's: both colours on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import pycurl
import pytest

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import AsyncPycurlTransport, PycurlTransport

from certificates import Authority
from colours import AsyncColour, Colour, SyncColour
from grpcio_peer import (
    BINARY,
    CALLERS,
    HEADERS,
    ODD_TEXT,
    SHAPES,
    SMALL_BYTES,
    TRAILERS,
    Caller,
    Peer,
    Relay,
    SyncCaller,
    as_text,
    close_aio,
    run_aio,
    run_grpcio,
    run_ours,
    saw,
)
from helpers import Background, settles
from integration_pb2 import (
    ChatRequest,
    ChatResponse,
    CountRequest,
    CountResponse,
    EchoRequest,
    PingRequest,
    SumRequest,
    SumResponse,
)
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from service import MISDEED, NAME, SECRET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pyqwest = pytest.importorskip("pyqwest", reason="pyqwest and zttp are for Python 3.11 and later")

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode

MIB = 1 << 20
LONG_MS = 60_000
"""How long a handler waits that is to be ended before."""

DATA, RESET, PING, GOAWAY = 0, 3, 6, 7
"""Kinds of frames, RFC 9113 section 6."""

ACK = END_STREAM = 1


class TLS:
    """A certificate with its key, and who has signed it."""

    def __init__(self, directory: Path) -> None:
        signs = Authority(directory, "authority")
        self.authority = signs.file
        self.server_file = signs.issue("server")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    """The only event loop of this module's."""
    yield
    close_aio()


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn", "pyvoy"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Our app on a real server."""
    with run_ours(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def wsgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """``service:app`` on a WSGI server with HTTP/2 and trailers."""
    with run_ours("pyvoy-wsgi", tmp_path_factory.mktemp("wsgi")) as server:
        yield server


@pytest.fixture(scope="module", params=["sync", "aio"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A server of grpcio's."""
    with run_grpcio(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


# grpcio calls us.


@pytest.fixture(params=list(CALLERS))
def caller(request: pytest.FixtureRequest, ours: Peer) -> Iterator[Caller]:
    with CALLERS[request.param](ours) as caller:
        yield caller


@pytest.fixture
def sync_caller(ours: Peer) -> Iterator[SyncCaller]:
    with SyncCaller(ours) as caller:
        yield caller


def test_every_kind(caller: Caller) -> None:
    for prefix, many in (("", 1000), ("/threads", 100)):
        assert caller.call("Echo", EchoRequest(text="x"), prefix=prefix).message.request == EchoRequest(text="x")
        counted = caller.call("Count", CountRequest(up_to=many), prefix=prefix)
        assert counted.code == "OK"
        assert [message.number for message in counted.messages] == list(range(1, many + 1))
        total = caller.call("Sum", *(SumRequest(number=number) for number in range(many)), prefix=prefix).message
        assert (total.sum, total.messages) == (many * (many - 1) // 2, many)
        texts = [str(number) for number in range(many)]
        chatted = caller.call("Chat", *(ChatRequest(text=text) for text in texts), prefix=prefix)
        assert chatted.code == "OK"
        assert [message.text for message in chatted.messages] == texts


def test_empty_streams(caller: Caller) -> None:
    for prefix in ("", "/threads"):
        assert caller.call("Sum", prefix=prefix).message == SumResponse()
        for outcome in (caller.call("Chat", prefix=prefix), caller.call("Count", CountRequest(), prefix=prefix)):
            assert (outcome.code, outcome.messages) == ("OK", [])


def test_messages_of_three_mebibytes(caller: Caller) -> None:
    data = os.urandom(3 * MIB)
    assert caller.call("Echo", EchoRequest(data=data)).message.request.data == data
    counted = caller.call("Count", CountRequest(up_to=3, padding=3 * MIB))
    assert counted.messages == [CountResponse(number=number, padding=bytes(3 * MIB)) for number in (1, 2, 3)]
    assert caller.call("Sum", *[SumRequest(number=1, padding=data)] * 3).message.messages == 3
    text = "x" * 3 * MIB
    assert caller.call("Chat", *[ChatRequest(text=text)] * 2).messages == [ChatResponse(text=text)] * 2


def test_metadata(caller: Caller) -> None:
    """Both ways, with repeated names and any bytes, for each kind of RPC, and with an error."""
    sent = [*HEADERS, ("x-empty", ""), ("x-empty-bin", b""), ("x-large", "x" * 6000)]
    echoed = caller.call("Echo", EchoRequest(), metadata=sent).message
    seen = {header.name: list(header.values) for header in echoed.headers}
    for name, values in as_text(sent).items():
        assert [value.rstrip("=") for value in seen[name]] == values
    for misdeed, code in (("metadata", "OK"), ("metadata and error", "DATA_LOSS")):
        told = [(MISDEED, misdeed)]
        outcomes = [
            caller.call("Echo", EchoRequest(misdeed=misdeed)),
            caller.call("Count", CountRequest(up_to=2, misdeed=misdeed)),
            caller.call("Sum", SumRequest(), metadata=told),
            caller.call("Chat", ChatRequest(), metadata=told),
        ]
        # Of streamed answers without a message grpcio's asyncio loses the headers now and then, its own servers' too.
        if isinstance(caller, SyncCaller):
            outcomes.append(caller.call("Count", CountRequest(misdeed=misdeed)))
            outcomes.append(caller.call("Chat", metadata=told))
        for outcome in outcomes:
            assert outcome.code == code
            assert [pair for pair in outcome.headers if pair[0].startswith("x-")] == HEADERS
            assert outcome.trailers == TRAILERS


def test_every_code(caller: Caller) -> None:
    for code in Code:
        outcome = caller.call("Echo", EchoRequest(misdeed=f"error={code.name}"))
        assert (outcome.code, outcome.text) == (code.name.replace("CANCELED", "CANCELLED"), f"this is {code.name}")


TEXTS = ["", " ", "\n", "%", "%41", "%zz", "100 % \u00e4\u20ac\U0001f600\r\n\t\x7f", "x" * 4000]
"""What errors say."""

DETAILS = [PingRequest(text="first"), EchoRequest(data=BINARY, number=2), PingRequest()]


def test_rich_errors(caller: Caller) -> None:
    """``grpc_status`` also compares the code and the message with those outside."""
    told = [(MISDEED, "details")]
    for outcome, messages in (
        (caller.call("Echo", EchoRequest(misdeed="details")), 0),
        (caller.call("Count", CountRequest(up_to=2, misdeed="details")), 2),
        (caller.call("Sum", SumRequest(), metadata=told), 0),
        (caller.call("Chat", ChatRequest(), metadata=told), 1),
    ):
        assert (outcome.code, outcome.text, len(outcome.messages)) == ("FAILED_PRECONDITION", ODD_TEXT, messages)
        assert outcome.details == DETAILS


def test_the_text_of_an_error(caller: Caller) -> None:
    for text in [*TEXTS, "a\0b"]:
        outcome = caller.call("Echo", EchoRequest(misdeed="say", text=text))
        assert (outcome.code, outcome.text) == ("ABORTED", text)


def test_what_a_handler_raises_is_told_nobody(caller: Caller) -> None:
    told = [(MISDEED, "raise")]
    for outcome in (
        caller.call("Echo", EchoRequest(misdeed="raise")),
        caller.call("Count", CountRequest(misdeed="raise")),
        caller.call("Sum", SumRequest(), metadata=told),
        caller.call("Chat", ChatRequest(), metadata=told),
        caller.call("Echo", EchoRequest(misdeed="raise=ValueError"), prefix="/threads"),
        caller.call("Count", CountRequest(up_to=2, misdeed="raise last"), prefix="/threads"),
        caller.call("Chat", ChatRequest(misdeed="raise"), prefix="/threads"),
    ):
        assert outcome.code == "UNKNOWN"
        assert SECRET not in repr(outcome)


def test_what_is_not_there(caller: Caller) -> None:
    for outcome in (
        caller.call("Missing", EchoRequest()),
        caller.call("Missing", EchoRequest(data=bytes(3 * MIB))),
        caller.call("Echo", EchoRequest(data=bytes(3 * MIB)), prefix="/nowhere"),
        caller.call("Chat", *[ChatRequest(text="x" * 1000)] * 100, prefix="/nowhere"),
    ):
        assert outcome.code == "UNIMPLEMENTED"
        assert not outcome.messages
    assert caller.call("Echo", EchoRequest(text="x")).message.request.text == "x"


def test_messages_that_are_too_large(caller: Caller, ours: Peer) -> None:
    large = bytes(SMALL_BYTES)
    for outcome in (
        caller.call("Echo", EchoRequest(data=large), prefix="/small"),
        caller.call("Echo", EchoRequest(data=bytes(3 * MIB)), prefix="/small"),
        caller.call("Sum", SumRequest(number=1), SumRequest(padding=large), prefix="/small"),
        caller.call("Chat", ChatRequest(text="x" * SMALL_BYTES), prefix="/small"),
        # Little on the way, much when it has arrived.
        caller.call("Echo", EchoRequest(data=bytes(MIB)), prefix="/small", compression=grpc.Compression.Gzip),
        caller.call("Echo", EchoRequest(data=bytes(5 * MIB)), prefix=""),
    ):
        assert outcome.code == "RESOURCE_EXHAUSTED", outcome
        assert "limit" in outcome.text
    assert caller.call("Echo", EchoRequest(text="x"), prefix="/small").message.request.text == "x"
    # grpcio's asyncio takes an answer that comes while it sends for an internal error, also from its own servers.
    with SyncCaller(ours) as sync_caller:
        outcome = sync_caller.call("Sum", *[SumRequest(padding=bytes(MIB))] * 20, prefix="/small")
        assert outcome.code == "RESOURCE_EXHAUSTED"
    # An answer that is too large for grpcio.
    assert caller.call("Echo", EchoRequest(misdeed="big", number=5 * MIB)).code == "RESOURCE_EXHAUSTED"
    assert caller.call("Echo", EchoRequest(text="x")).message.request.text == "x"


def test_deadlines_reach_the_handler(caller: Caller) -> None:
    assert caller.call("Echo", EchoRequest(), timeout=None).message.timeout_ms == 0
    for seconds in (5, 100_000, 10_000_000):
        left = caller.call("Echo", EchoRequest(), timeout=seconds).message.timeout_ms
        assert seconds * 500 < left < seconds * 1010  # it rounds up


def test_deadlines_end_the_handler(caller: Caller) -> None:
    assert caller.call("Echo", EchoRequest()).code == "OK"  # it is connected
    for outcome in (
        caller.call("Echo", EchoRequest(text="unary", delay_ms=LONG_MS), timeout=0.5),
        caller.call("Count", CountRequest(name="server", up_to=9, delay_ms=LONG_MS), timeout=0.5),
    ):
        assert outcome.code == "DEADLINE_EXCEEDED"
    saw(caller, "unary: cancelled", "unary: end", "server: cancelled", "server: end")


def test_a_stream_of_requests_that_outlasts_its_deadline(sync_caller: SyncCaller) -> None:
    for name, message in (("Sum", SumRequest()), ("Chat", ChatRequest())):
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(message)
        stub = SHAPES[name].stub(sync_caller.channel)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            answer = stub(iter(requests.get, None), timeout=0.3, metadata=[(NAME, name)])
            list(answer)
        requests.put(None)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - started < 10
        saw(sync_caller, f"{name}: begin", f"{name}: end")


def test_many_deadlines(ours: Peer) -> None:
    """Whoever's clock is first, it is a deadline that has passed."""

    async def main() -> None:
        async with ours.aio_channel() as channel:
            echo, count = SHAPES["Echo"].stub(channel), SHAPES["Count"].stub(channel)
            calls = [echo(EchoRequest(delay_ms=LONG_MS), timeout=0.02 + number / 1000) for number in range(50)]
            calls += [
                count(CountRequest(up_to=9999, delay_ms=10), timeout=0.02 + number / 1000) for number in range(50)
            ]
            codes = await asyncio.gather(*(call.code() for call in calls))
            assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}

    run_aio(main())


# Cancellation by grpcio's caller.


def test_cancel_with_threads(sync_caller: SyncCaller) -> None:
    unary = SHAPES["Echo"].stub(sync_caller.channel).future(EchoRequest(text="unary", delay_ms=LONG_MS))
    saw(sync_caller, "unary: begin")
    unary.cancel()
    saw(sync_caller, "unary: cancelled", "unary: end")
    assert unary.code() is grpc.StatusCode.CANCELLED

    stream = SHAPES["Count"].stub(sync_caller.channel)(CountRequest(up_to=9, name="server", delay_ms=LONG_MS))
    assert next(stream).number == 1
    stream.cancel()
    saw(sync_caller, "server: cancelled", "server: end")
    with pytest.raises(grpc.RpcError):
        next(stream)

    for name, first in (("Sum", SumRequest()), ("Chat", ChatRequest())):
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(first)
        stub = SHAPES[name].stub(sync_caller.channel)
        call = (stub if name == "Chat" else stub.future)(iter(requests.get, None), metadata=[(NAME, name)])
        saw(sync_caller, f"{name}: begin")
        call.cancel()
        requests.put(None)
        # It does not take for the whole what has come.
        assert f"{name}: whole" not in saw(sync_caller, f"{name}: end")


@pytest.mark.parametrize("prefix", ["", "/threads"])
def test_cancel_an_endless_stream(sync_caller: SyncCaller, prefix: str) -> None:
    request = CountRequest(up_to=1_000_000_000, padding=10_000, name="endless")
    stream = SHAPES["Count"].stub(sync_caller.channel, prefix)(request)
    assert [next(stream).number for _ in range(50)] == list(range(1, 51))
    stream.cancel()
    saw(sync_caller, "endless: end")


def test_cancel_with_asyncio(ours: Peer, sync_caller: SyncCaller) -> None:
    async def never() -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield

    async def main(mark: str) -> None:
        async with ours.aio_channel() as channel:
            tasks = []
            for name, argument, metadata in (
                ("Echo", EchoRequest(text=f"unary{mark}", delay_ms=LONG_MS), None),
                ("Count", CountRequest(up_to=9, delay_ms=LONG_MS, name=f"server{mark}"), None),
                ("Sum", never(), [(NAME, f"client{mark}")]),
                ("Chat", never(), [(NAME, f"both{mark}")]),
            ):
                call = SHAPES[name].stub(channel)(argument, metadata=metadata)

                async def finish(call: Any = call, answers: bool = SHAPES[name].answers) -> None:
                    if answers:
                        async for _ in call:
                            pass
                    else:
                        await call

                tasks.append(asyncio.create_task(finish()))
            names = [f"{name}{mark}" for name in ("unary", "server", "client", "both")]
            await asyncio.to_thread(saw, sync_caller, *(f"{name}: begin" for name in names))
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 4
            await asyncio.to_thread(saw, sync_caller, *(f"{name}: end" for name in names))

    try:
        run_aio(main(""))
    except AssertionError:
        # gunicorn does not tell each app of each reset: a bare app that waits for nothing else misses one in a hundred.
        if ours.kind != "gunicorn":
            raise
        run_aio(main(" again"))


def test_a_channel_that_is_closed_ends_its_calls(ours: Peer, sync_caller: SyncCaller) -> None:
    with SyncCaller(ours) as other:
        unary = SHAPES["Echo"].stub(other.channel).future(EchoRequest(text="left", delay_ms=LONG_MS))
        saw(sync_caller, "left: begin")
    saw(sync_caller, "left: cancelled", "left: end")
    assert unary.code() is grpc.StatusCode.CANCELLED


# Full duplex.


@pytest.mark.parametrize("prefix", ["", "/threads"])
def test_ping_pong_with_threads(sync_caller: SyncCaller, prefix: str) -> None:
    """Each side waits for the other one's message."""
    requests: queue.SimpleQueue[ChatRequest | None] = queue.SimpleQueue()
    call = SHAPES["Chat"].stub(sync_caller.channel, prefix)(iter(requests.get, None), timeout=20)
    for number in range(200):
        requests.put(ChatRequest(text=str(number)))
        assert next(call).text == str(number)
    requests.put(None)
    with pytest.raises(StopIteration):
        next(call)
    assert call.code() is grpc.StatusCode.OK


def test_ping_pong_with_asyncio(ours: Peer) -> None:
    async def main() -> None:
        async with ours.aio_channel() as channel:
            call = SHAPES["Chat"].stub(channel)(timeout=20)
            for number in range(200):
                await call.write(ChatRequest(text=str(number)))
                assert (await call.read()).text == str(number)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    run_aio(main())


def test_the_server_ends_a_stream_while_its_client_would_write_on(ours: Peer) -> None:
    async def main() -> None:
        async with ours.aio_channel() as channel:
            for metadata, code in (([], "OK"), ([(MISDEED, "details")], "FAILED_PRECONDITION")):
                call = SHAPES["Chat"].stub(channel)(timeout=20, metadata=metadata)
                await call.write(ChatRequest(text="x", misdeed="enough"))
                assert (await call.read()).text == "x"
                with contextlib.suppress(grpc.RpcError):
                    assert await call.read() is grpc.aio.EOF
                assert (await call.code()).name == code
            total = SHAPES["Sum"].stub(channel)(timeout=20)
            await total.write(SumRequest(number=3, misdeed="enough"))
            assert (await total).sum == 3

    run_aio(main())


# Compression.


@pytest.mark.parametrize("colour", list(CALLERS))
def test_gzip(ours: Peer, colour: str) -> None:
    """Both ways. The relay sees how much is really sent."""
    with Relay(ours) as relay, CALLERS[colour](relay.peer, compression=grpc.Compression.Gzip) as caller:
        zeros = bytes(MIB)
        echoed = caller.call("Echo", EchoRequest(data=zeros)).message
        assert echoed.request.data == zeros
        assert [list(header.values) for header in echoed.headers if header.name == "grpc-encoding"] == [["gzip"]]
        assert caller.call("Sum", *[SumRequest(number=1, padding=zeros)] * 3).message.sum == 3
        text = "x" * MIB
        assert caller.call("Chat", *[ChatRequest(text=text)] * 3).messages == [ChatResponse(text=text)] * 3
        counted = caller.call("Count", CountRequest(up_to=3, padding=MIB))
        assert [len(message.padding) for message in counted.messages] == [MIB] * 3
        assert 0 < relay.size(by_client=True) < MIB // 4
        assert 0 < relay.size(by_client=False) < MIB // 4


def test_deflate_is_refused_with_a_list_of_what_is_not(ours: Peer) -> None:
    with SyncCaller(ours, compression=grpc.Compression.Deflate) as caller:
        for outcome in (
            caller.call("Echo", EchoRequest(data=bytes(MIB))),
            caller.call("Count", CountRequest(name="x" * 1000)),
            caller.call("Sum", *[SumRequest(padding=bytes(MIB))] * 3),
            caller.call("Chat", *[ChatRequest(text="x" * MIB)] * 3),
        ):
            assert outcome.code == "UNIMPLEMENTED"
            assert "gzip" in outcome.text
            assert not outcome.messages


def test_an_answer_is_not_compressed_for_who_does_not_want_it(ours: Peer) -> None:
    only_identity = {"grpc__compression_enabled_algorithms_bitset": 1}
    with Relay(ours) as relay, SyncCaller(relay.peer, **only_identity) as caller:
        counted = caller.call("Count", CountRequest(up_to=1, padding=MIB))
        assert [len(message.padding) for message in counted.messages] == [MIB]
        assert relay.size(by_client=False) > MIB


# Many at once.


def test_thousands_of_calls_at_once(ours: Peer) -> None:
    async def main() -> None:
        async with ours.aio_channel() as channel:
            stub = SHAPES["Echo"].stub(channel)

            async def call(number: int) -> None:
                request = EchoRequest(data=bytes(number % 20 * 40), number=number, delay_ms=number % 7)
                response = await stub(request, timeout=60, metadata=[("x-number", str(number))])
                assert response.request == request
                assert ["x-number", [str(number)]] in [
                    [header.name, list(header.values)] for header in response.headers
                ]

            await asyncio.gather(*map(call, range(2000)))

    run_aio(main())
    with SyncCaller(ours) as caller:
        assert caller.call("Echo", EchoRequest(text="x")).message.request.text == "x"
        saw(caller)


def test_hundreds_of_streams_at_once(ours: Peer) -> None:
    async def main() -> None:
        async with ours.aio_channel() as channel:
            stub = SHAPES["Chat"].stub(channel)

            async def call(number: int) -> None:
                stream = stub(timeout=60)
                for turn in range(5):
                    text = f"{number} {turn}"
                    await stream.write(ChatRequest(text=text))
                    assert (await stream.read()).text == text
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
                assert await stream.code() is grpc.StatusCode.OK

            await asyncio.gather(*map(call, range(300)))

    run_aio(main())
    with SyncCaller(ours) as caller:
        notes = saw(caller)
        assert notes.count(": begin") == notes.count(": end") == 300


def test_hundreds_of_threads_on_one_channel(ours: Peer) -> None:
    with SyncCaller(ours) as caller, ThreadPoolExecutor(50) as pool:

        def call(number: int) -> bool:
            prefix = "/threads" if number % 2 else ""
            answer = caller.call("Echo", EchoRequest(number=number), prefix=prefix).message
            return bool(answer.request.number == number)

        assert all(pool.map(call, range(500)))


def test_hundreds_of_cancelled_calls(ours: Peer) -> None:
    async def main() -> None:
        async with ours.aio_channel() as channel:
            echo, chat = SHAPES["Echo"].stub(channel), SHAPES["Chat"].stub(channel)
            # gunicorn takes more than 200 in ten seconds for an attack, and closes the connection.
            for wave in range(4):
                calls = [echo(EchoRequest(text="many", delay_ms=LONG_MS)) for _ in range(25)]
                calls += [chat() for _ in range(15)]
                await asyncio.sleep(0.02 * wave)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*(call.code() for call in calls))
            assert (await echo(EchoRequest(text="after"), timeout=20)).request.text == "after"

    run_aio(main())
    with SyncCaller(ours) as caller:
        notes: list[str] = []

        def over() -> bool:
            notes.extend(saw(caller))
            return all(notes.count(f"{name}: begin") == notes.count(f"{name}: end") for name in ("many", ""))

        assert settles(over, 10), notes


# Connections.


def test_pings_keep_an_idle_call_alive(ours: Peer) -> None:
    options: dict[str, Any] = {
        "grpc__keepalive_time_ms": 200,
        "grpc__keepalive_timeout_ms": 5000,
        "grpc__keepalive_permit_without_calls": 1,
        "grpc__http2__max_pings_without_data": 0,
    }
    with Relay(ours) as relay, SyncCaller(relay.peer, **options) as caller:
        outcome = caller.call("Echo", EchoRequest(text="idle", delay_ms=2000))
        assert outcome.message.request.text == "idle"
        asked = [frame.payload for frame in relay.sent(by_client=True, kind=PING) if not frame.flags & ACK]
        answered = [frame.payload for frame in relay.sent(by_client=False, kind=PING) if frame.flags & ACK]
        assert asked
        assert answered == asked[: len(answered)]
        assert len(answered) >= len(asked) - 1
        assert not relay.sent(by_client=False, kind=GOAWAY)


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])  # pyvoy ends them
def test_a_server_that_stops_lets_its_calls_end(kind: str, tmp_path: Path) -> None:
    with run_ours(kind, tmp_path) as server, Relay(server) as relay, SyncCaller(relay.peer) as caller:
        unary = SHAPES["Echo"].stub(caller.channel).future(EchoRequest(text="last", delay_ms=1500), timeout=20)
        stream = SHAPES["Count"].stub(caller.channel)(CountRequest(up_to=15, delay_ms=100, name="stream"), timeout=20)
        assert next(stream).number == 1
        saw(caller, "last: begin")
        server.process.send_signal(signal.SIGTERM)
        assert unary.result(20).request.text == "last"
        assert [message.number for message in stream] == list(range(2, 16))
        assert stream.code() is grpc.StatusCode.OK
        server.process.wait(15)
        assert relay.sent(by_client=False, kind=GOAWAY)
        assert caller.call("Echo", EchoRequest(), timeout=2).code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert "Traceback" not in server.logged()


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn", "pyvoy"])
def test_over_tls(kind: str, tls: TLS, tmp_path: Path) -> None:
    with run_ours(kind, tmp_path, tls.server_file, tls.authority) as server:
        for colour in CALLERS.values():
            with colour(server) as caller:
                data = os.urandom(MIB)
                assert caller.call("Echo", EchoRequest(data=data)).message.request.data == data
                assert len(caller.call("Count", CountRequest(up_to=100)).messages) == 100
                assert caller.call("Sum", *[SumRequest(number=1)] * 100).message.sum == 100
                assert len(caller.call("Chat", *[ChatRequest(text="x")] * 100).messages) == 100
                failed = caller.call("Echo", EchoRequest(misdeed="details"))
                assert (failed.code, failed.details) == ("FAILED_PRECONDITION", DETAILS)
                assert caller.call("Echo", EchoRequest(delay_ms=LONG_MS), timeout=0.3).code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("colour", list(CALLERS))
def test_wsgi(colour: str, wsgi: Peer) -> None:
    """A synchronous service on a WSGI server with trailers."""
    with CALLERS[colour](wsgi) as caller:
        data = os.urandom(3 * MIB)
        assert caller.call("Echo", EchoRequest(data=data)).message.request.data == data
        counted = caller.call("Count", CountRequest(up_to=1000))
        assert [message.number for message in counted.messages] == list(range(1, 1001))
        assert caller.call("Sum", *[SumRequest(number=2, padding=data)] * 3).message.sum == 6
        chatted = caller.call("Chat", *(ChatRequest(text=str(number)) for number in range(1000)))
        assert [message.text for message in chatted.messages] == [str(number) for number in range(1000)]
        assert caller.call("Sum").message == SumResponse()
        assert caller.call("Chat").messages == caller.call("Count", CountRequest()).messages == []
        for code in Code:
            outcome = caller.call("Echo", EchoRequest(misdeed=f"error={code.name}"))
            assert (outcome.code, outcome.text) == (code.name.replace("CANCELED", "CANCELLED"), f"this is {code.name}")
        ended = caller.call("Count", CountRequest(up_to=3, misdeed="error last"))
        assert (ended.code, len(ended.messages), ended.details) == ("NOT_FOUND", 3, [PingRequest(text="detail")])
        for outcome in (
            caller.call("Echo", EchoRequest(misdeed="metadata")),
            caller.call("Count", CountRequest(up_to=1, misdeed="metadata")),
        ):
            assert outcome.code == "OK"
            assert [value for name, value in outcome.headers if name == "x-head"] == ["1", "2"]
            assert outcome.trailers == [("x-tail", "3"), ("x-tail", "4")]
        raised = caller.call("Echo", EchoRequest(misdeed="raise=ValueError"))
        assert raised.code == "UNKNOWN"
        assert SECRET not in repr(raised)
        assert caller.call("Missing", EchoRequest()).code == "UNIMPLEMENTED"
        assert caller.call("Echo", EchoRequest(data=data), prefix="/nowhere").code == "UNIMPLEMENTED"
        assert caller.call("Echo", EchoRequest(data=data), prefix="/small").code == "RESOURCE_EXHAUSTED"
        assert 2500 < caller.call("Echo", EchoRequest(), timeout=5).message.timeout_ms < 5050
        late = caller.call("Echo", EchoRequest(delay_ms=600), timeout=0.3)
        assert late.code == "DEADLINE_EXCEEDED"
        assert caller.call("Echo", EchoRequest(text="x")).message.request.text == "x"


def test_ping_pong_with_wsgi(wsgi: Peer) -> None:
    requests: queue.SimpleQueue[ChatRequest | None] = queue.SimpleQueue()
    with SyncCaller(wsgi) as caller:
        call = SHAPES["Chat"].stub(caller.channel)(iter(requests.get, None), timeout=20)
        for number in range(100):
            requests.put(ChatRequest(text=str(number)))
            assert next(call).text == str(number)
        requests.put(None)
        assert list(call) == []
        assert call.code() is grpc.StatusCode.OK


def test_hundreds_of_calls_at_once_with_wsgi(wsgi: Peer) -> None:
    async def main() -> None:
        async with wsgi.aio_channel() as channel:
            stub = SHAPES["Echo"].stub(channel)

            async def call(number: int) -> None:
                assert (await stub(EchoRequest(number=number), timeout=60)).request.number == number

            await asyncio.gather(*map(call, range(500)))

    run_aio(main())


def test_the_log_is_clean(ours: Peer, sync_caller: SyncCaller) -> None:
    """After all of the above. The only tracebacks of ours in it are those of what handlers were told to raise."""
    sync_caller.call("Echo", EchoRequest(misdeed="raise"))

    def tracebacks() -> list[str]:
        return [part for part in ours.logged().split("Traceback ") if "/connectrpc/" in part]

    assert settles(lambda: bool(tracebacks()), 10)
    assert [part for part in tracebacks() if SECRET not in part] == []
    assert "was never" not in ours.logged()


# We call grpcio.


def http_client(kind: Any, **settings: Any) -> Any:
    """What speaks HTTP/2 for a client of ours; ``kind`` is one of ``HTTP_CLIENTS``."""
    if kind in (PycurlTransport, AsyncPycurlTransport):
        authority = settings.get("tls_ca_cert")
        options: dict[str, Any] = (
            {"configure": lambda curl: curl.setopt(pycurl.CAINFO_BLOB, authority)} if authority else {}
        )
        return kind(http_version="2", **options)
    transport = pyqwest.SyncHTTPTransport if kind is pyqwest.SyncClient else pyqwest.HTTPTransport
    plain = {"follow_redirects": False, "enable_gzip": False, "enable_brotli": False, "enable_zstd": False}
    return kind(transport(http_version=pyqwest.HTTPVersion.HTTP2, **plain, **settings))


@contextlib.contextmanager
def sync_client(kind: Any, server: Peer) -> Iterator[ProbeServiceClient]:
    library = http_client(kind)
    with library if kind is PycurlTransport else contextlib.nullcontext():
        yield ProbeServiceClient(server.url, library, protocol="grpc")


def async_client(server: Peer, **options: Any) -> AsyncProbeServiceClient:
    return AsyncProbeServiceClient(server.url, http_client(pyqwest.Client), protocol="grpc", **options)


class SyncPycurlColour(SyncColour):
    """A synchronous client on pycurl."""

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._transport = options["http_client"]

    def close(self) -> None:
        super().close()
        self._transport.close()


class AsyncPycurlColour(AsyncColour):
    """An asynchronous client on pycurl."""

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._transport = options["http_client"]

    def close(self) -> None:
        self.run(self._transport.aclose())
        super().close()


HTTP_CLIENTS: dict[type[Colour], Any] = {
    SyncColour: pyqwest.SyncClient,
    AsyncColour: pyqwest.Client,
    SyncPycurlColour: PycurlTransport,
    AsyncPycurlColour: AsyncPycurlTransport,
}


def of_colour(colour: type[Colour], server: Peer, settings: dict[str, Any] | None = None, **options: Any) -> Colour:
    client = http_client(HTTP_CLIENTS[colour], **(settings or {}))
    return colour(server.url, http_client=client, protocol="grpc", **options)


@pytest.fixture(params=list(HTTP_CLIENTS), ids=["sync", "async", "sync-pycurl", "async-pycurl"])
def colour(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[pyqwest.SyncClient, PycurlTransport], ids=["pyqwest", "pycurl"])
def blocking(request: pytest.FixtureRequest) -> Any:
    """On what a synchronous client runs."""
    return request.param


@pytest.fixture
def client(colour: type[Colour], theirs: Peer) -> Iterator[Colour]:
    with of_colour(colour, theirs) as client:
        yield client


@pytest.fixture
def their_caller(theirs: Peer) -> Iterator[SyncCaller]:
    """To ask for notes."""
    with SyncCaller(theirs) as caller:
        yield caller


def test_our_client_every_kind(client: Colour) -> None:
    assert client.text("x") == "x"
    assert client.numbers(1000) == list(range(1, 1001))
    total = client.sum(SumRequest(number=number) for number in range(1000))
    assert (total.sum, total.messages) == (499_500, 1000)
    texts = [str(number) for number in range(1000)]
    assert [message.text for message in client.chat([ChatRequest(text=text) for text in texts])] == texts


def test_our_client_empty_streams(client: Colour) -> None:
    assert client.sum([]) == SumResponse()
    assert client.chat([]) == []
    assert client.numbers(0) == []
    for stream in (client.call_chat([]), client.call_count(CountRequest())):
        assert (stream.messages, stream.error) == ([], None)


def test_our_client_messages_of_three_mebibytes(client: Colour) -> None:
    data = os.urandom(3 * MIB)
    assert client.echo(EchoRequest(data=data)).request.data == data
    counted = client.count(CountRequest(up_to=3, padding=3 * MIB))
    assert counted == [CountResponse(number=number, padding=bytes(3 * MIB)) for number in (1, 2, 3)]
    assert client.sum([SumRequest(number=1, padding=data)] * 3).messages == 3
    assert client.chat([ChatRequest(text="x" * 3 * MIB)] * 2) == [ChatResponse(text="x" * 3 * MIB)] * 2


def ours_of(metadata: Any, prefix: str) -> dict[str, list[str]]:
    """The metadata that servers were asked for."""
    return {name: metadata.getall(name) for name in dict.fromkeys(metadata) if name.startswith(prefix)}


def test_our_client_metadata(client: Colour) -> None:
    sent = {**as_text(HEADERS), "x-empty": [""], "x-padded-bin": ["AA=="], "x-large": ["x" * 6000]}
    echoed = {header.name: list(header.values) for header in client.echo(EchoRequest(), sent).headers}
    assert {name: values for name, values in echoed.items() if name in sent} == {**sent, "x-padded-bin": ["AA"]}
    for misdeed, error in (("metadata", None), ("metadata and error", Code.DATA_LOSS)):
        told = {MISDEED: misdeed}
        for output in (
            client.call_echo(EchoRequest(misdeed=misdeed)),
            client.call_sum([SumRequest()], told),
        ):
            failure = output.error()
            assert (failure and failure.code) == error
            assert ours_of(output.response_headers(), "x-head") == as_text(HEADERS)
            assert ours_of(output.response_trailers(), "x-tail") == as_text(TRAILERS)
            assert [name for name in output.response_trailers() if not name.startswith("x-tail")] == []
        for stream, messages in (
            (client.call_count(CountRequest(up_to=2, misdeed=misdeed)), 2),
            (client.call_count(CountRequest(misdeed=misdeed)), 0),
            (client.call_chat([ChatRequest()], told), 1),
            (client.call_chat([], told), 0),
        ):
            assert (stream.error and stream.error.code) == error
            assert len(stream.messages) == messages
            assert ours_of(stream.headers, "x-head") == as_text(HEADERS)
            assert ours_of(stream.trailers, "x-tail") == as_text(TRAILERS)
            assert [name for name in stream.trailers if not name.startswith("x-tail")] == []


def test_our_client_every_code(client: Colour) -> None:
    for code in Code:
        with pytest.raises(ConnectError) as caught:
            client.echo(EchoRequest(misdeed=f"error={code.name}"))
        assert (caught.value.code, caught.value.message) == (code, f"this is {code.name}")


def test_our_client_trailers_alone(client: Colour) -> None:
    """grpcio answers so when a call fails at once. What is no trailer of the handler's is not among them."""
    for error in (
        client.call_echo(EchoRequest(misdeed="error=ABORTED")).error(),
        client.call_count(CountRequest(misdeed="error=ABORTED")).error,
        client.call_look(EchoRequest()).error(),
    ):
        assert error is not None
        assert error.response_trailers() == {}


def test_our_client_rich_errors(client: Colour) -> None:
    told = {MISDEED: "details"}
    errors = [
        client.call_echo(EchoRequest(misdeed="details")).error(),
        client.call_sum([SumRequest()], told).error(),
        client.call_count(CountRequest(up_to=2, misdeed="details")).error,
        client.call_count(CountRequest(misdeed="details")).error,
        client.call_chat([ChatRequest()], told).error,
    ]
    for error in errors:
        assert error is not None
        assert (error.code, error.message) == (Code.FAILED_PRECONDITION, ODD_TEXT)
        assert [detail.message() for detail in error.details] == DETAILS
    with pytest.raises(ConnectError) as caught:
        client.echo(EchoRequest(misdeed="details"))
    assert [detail.message() for detail in caught.value.details] == DETAILS


def test_our_client_the_text_of_an_error(client: Colour) -> None:
    for text in TEXTS:
        error = client.call_echo(EchoRequest(misdeed="say", text=text)).error()
        assert error is not None
        assert (error.code, error.message) == (Code.ABORTED, text)


def test_our_client_what_is_not_there(client: Colour) -> None:
    """Answers of trailers alone."""
    for request in (EchoRequest(), EchoRequest(data=bytes(3 * MIB))):
        error = client.call_look(request).error()
        assert error is not None
        assert error.code is Code.UNIMPLEMENTED
        assert "Method not found" in error.message
    assert client.text("x") == "x"


def test_our_client_when_a_handler_raises(client: Colour) -> None:
    told = {MISDEED: "raise"}
    for error in (
        client.call_echo(EchoRequest(misdeed="raise")).error(),
        client.call_sum([SumRequest()], told).error(),
        client.call_count(CountRequest(misdeed="raise")).error,
        client.call_chat([ChatRequest()], told).error,
    ):
        assert error is not None
        assert error.code is Code.UNKNOWN


def test_our_client_messages_that_are_too_large(client: Colour) -> None:
    for error in (
        client.call_echo(EchoRequest(data=bytes(5 * MIB))).error(),
        client.call_sum([SumRequest(), SumRequest(padding=bytes(5 * MIB))]).error(),
        client.call_chat([ChatRequest(text="x" * 5 * MIB)]).error,
        # Answers.
        client.call_echo(EchoRequest(misdeed="big", number=5 * MIB)).error(),
        client.call_count(CountRequest(up_to=2, padding=5 * MIB)).error,
    ):
        assert error is not None
        assert error.code is Code.RESOURCE_EXHAUSTED, error
    assert client.text("x") == "x"


def test_our_client_deadlines(client: Colour, their_caller: SyncCaller) -> None:
    assert client.echo(EchoRequest()).timeout_ms == 0
    for seconds in (5, 100_000, 10_000_000):
        assert seconds * 500 < client.echo(EchoRequest(), timeout=seconds).timeout_ms <= seconds * 1000
    started = time.monotonic()
    error = client.call_echo(EchoRequest(text="unary", delay_ms=LONG_MS), timeout=0.5).error()
    stream = client.call_count(CountRequest(name="server", up_to=9, delay_ms=LONG_MS), timeout=0.5)
    assert [failure and failure.code for failure in (error, stream.error)] == [Code.DEADLINE_EXCEEDED] * 2
    assert 1 <= time.monotonic() - started < 15
    saw(their_caller, "unary: cancelled", "unary: end", "server: cancelled", "server: end")


def test_our_client_many_deadlines(theirs: Peer) -> None:
    async def main() -> None:
        async with async_client(theirs) as client:

            async def echo(number: int) -> ConnectError | None:
                call = client.call_echo(EchoRequest(delay_ms=LONG_MS), timeout_seconds=0.02 + number / 1000)
                return (await call).error()

            async def count(number: int) -> ConnectError | None:
                request = CountRequest(up_to=9999, delay_ms=10)
                async with client.call_count(request, timeout_seconds=0.02 + number / 1000) as stream:
                    async for _ in stream:
                        pass
                    return stream.error()

            errors = await asyncio.gather(*map(echo, range(50)), *map(count, range(50)))
            assert {error and error.code for error in errors} == {Code.DEADLINE_EXCEEDED}

    run_aio(main())


# What ends our calls early.


def test_an_upload_fails(theirs: Peer, colour: type[Colour]) -> None:
    """What the requests' iterator raises is the caller's; the server does not take a part for the whole."""

    def requests() -> Iterator[SumRequest]:
        yield SumRequest(number=1)
        raise ZeroDivisionError

    with Relay(theirs) as relay, of_colour(colour, relay.peer) as client:
        with pytest.raises(ZeroDivisionError):
            client.sum(requests())
        if isinstance(client, AsyncPycurlColour):  # it gives up while it still connects
            client.run(asyncio.sleep(0.05))
            assert not relay.sent(by_client=True, kind=DATA)
        else:
            # Synchronous, pycurl may still be connecting as well.
            early = isinstance(client, SyncPycurlColour) and not relay.sent(by_client=True, kind=DATA)
            assert early or settles(lambda: bool(relay.sent(by_client=True, kind=RESET)), 10)
        assert not [frame for frame in relay.sent(by_client=True, kind=DATA) if frame.flags & END_STREAM]
        assert client.text("x") == "x"


def test_leaving_a_stream(client: Colour, their_caller: SyncCaller) -> None:
    stream = client.call_count(CountRequest(name="one", up_to=9, delay_ms=LONG_MS), most=1)
    assert [message.number for message in stream.messages] == [1]
    saw(their_caller, "one: cancelled", "one: end")
    flood = client.count(CountRequest(name="flood", up_to=1_000_000_000, padding=10_000), most=50)
    assert [message.number for message in flood] == list(range(1, 51))
    saw(their_caller, "flood: end")
    assert client.text("x") == "x"


def never(first: Any, leave: threading.Event) -> Iterator[Any]:
    """One message, and no end before ``leave`` is set."""
    yield first
    leave.wait(20)


@pytest.mark.parametrize("kind", ["unary", "server", "client", "both"])
def test_a_token_cancels(theirs: Peer, their_caller: SyncCaller, blocking: Any, kind: str) -> None:
    token, leave, metadata = CancelToken(), threading.Event(), {NAME: kind}
    # Before an answer has begun pyqwest cannot be told, and so the server is not.
    told = kind == "server" or blocking is PycurlTransport
    unary_ms = LONG_MS if told else 1000
    with sync_client(blocking, theirs) as client:
        calls: dict[str, Callable[[], Any]] = {
            "unary": lambda: client.echo(EchoRequest(text=kind, delay_ms=unary_ms), cancel=token),
            "server": lambda: list(client.count(CountRequest(name=kind, up_to=9, delay_ms=LONG_MS), cancel=token)),
            "client": lambda: client.sum(never(SumRequest(), leave), metadata, cancel=token),
            "both": lambda: list(client.chat(never(ChatRequest(), leave), metadata, cancel=token)),
        }
        call = Background(calls[kind])
        try:
            saw(their_caller, f"{kind}: begin")
            token.cancel()
            with pytest.raises(ConnectError) as caught:
                call.result()
            assert caught.value.code is Code.CANCELED
            if told:
                saw(their_caller, *(["server: cancelled"] if kind == "server" else []), f"{kind}: end")
        finally:
            leave.set()
        if not told:
            saw(their_caller, f"{kind}: end")
        assert client.echo(EchoRequest(text="x")).request.text == "x"


def test_a_task_is_cancelled(theirs: Peer, their_caller: SyncCaller) -> None:
    async def never(first: Any) -> AsyncIterator[Any]:
        yield first
        await asyncio.sleep(60)

    async def read(stream: AsyncIterator[Any]) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        async with async_client(theirs) as client:
            calls = (
                client.echo(EchoRequest(text="unary", delay_ms=LONG_MS)),
                read(client.count(CountRequest(name="server", up_to=9, delay_ms=LONG_MS))),
                client.sum(never(SumRequest()), {NAME: "client"}),
                read(client.chat(never(ChatRequest()), {NAME: "both"})),
            )
            names = ("unary", "server", "client", "both")
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.to_thread(saw, their_caller, *(f"{name}: begin" for name in names))
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 4
            await asyncio.to_thread(saw, their_caller, *(f"{name}: end" for name in names))
            assert (await client.echo(EchoRequest(text="x"))).request.text == "x"

    run_aio(main())


# Full duplex.


def test_our_client_ping_pong_with_threads(theirs: Peer, blocking: Any) -> None:
    requests: queue.SimpleQueue[ChatRequest | None] = queue.SimpleQueue()
    with sync_client(blocking, theirs) as client:
        answers = client.chat(iter(requests.get, None), timeout_seconds=20)
        for number in range(200):
            requests.put(ChatRequest(text=str(number)))
            assert next(answers).text == str(number)
        requests.put(None)
        assert list(answers) == []
        # grpcio's server begins its answer with its first message, so the first request must be there.
        requests.put(ChatRequest(text="0"))
        with client.call_chat(iter(requests.get, None), timeout_seconds=20) as stream:
            for number in range(200):
                assert next(stream).text == str(number)
                requests.put(ChatRequest(text=str(number + 1)))
            assert next(stream).text == "200"
            requests.put(None)
            assert list(stream) == []
            assert stream.error() is None


def test_our_client_ping_pong_with_asyncio(theirs: Peer) -> None:
    async def main() -> None:
        requests: asyncio.Queue[ChatRequest | None] = asyncio.Queue()

        async def messages() -> AsyncIterator[ChatRequest]:
            while (message := await requests.get()) is not None:
                yield message

        async with async_client(theirs) as client:
            answers = client.chat(messages(), timeout_seconds=20)
            for number in range(200):
                await requests.put(ChatRequest(text=str(number)))
                assert (await anext(answers)).text == str(number)
            await requests.put(None)
            assert [message async for message in answers] == []
            await requests.put(ChatRequest(text="0"))
            async with client.call_chat(messages(), timeout_seconds=20) as stream:
                for number in range(200):
                    assert (await anext(stream)).text == str(number)
                    await requests.put(ChatRequest(text=str(number + 1)))
                assert (await anext(stream)).text == "200"
                await requests.put(None)
                assert [message async for message in stream] == []
                assert stream.error() is None

    run_aio(main())


def test_our_client_is_answered_while_it_would_send_on(client: Colour) -> None:
    for misdeed, code in (("", None), ("details", Code.FAILED_PRECONDITION)):
        told = {MISDEED: misdeed}

        def endless(first: Any, rest: Any) -> Iterator[Any]:
            yield first
            for _ in range(100_000):
                yield rest

        stream = client.call_chat(endless(ChatRequest(text="x", misdeed="enough"), ChatRequest()), told)
        assert [message.text for message in stream.messages] == ["x"]
        assert (stream.error and stream.error.code) == code
        output = client.call_sum(endless(SumRequest(number=3, misdeed="enough"), SumRequest()), told)
        failure, message = output.error(), output.message()
        assert (failure and failure.code) == code
        assert (message.sum if message else None) == (None if code else 3)
    assert client.text("x") == "x"


# Compression.


def test_our_client_gzip(theirs: Peer, colour: type[Colour]) -> None:
    """Both ways. The relay sees how much is really sent."""
    zeros = bytes(MIB)
    with Relay(theirs) as relay, of_colour(colour, relay.peer, send_compression="gzip") as client:
        output = client.call_echo(EchoRequest(data=zeros))
        message = output.message()
        assert message is not None
        assert message.request.data == zeros
        assert output.response_headers()["grpc-encoding"] == "gzip"
        assert client.sum([SumRequest(number=1, padding=zeros)] * 3).sum == 3
        stream = client.call_count(CountRequest(up_to=3, padding=MIB))
        assert [len(message.padding) for message in stream.messages] == [MIB] * 3
        assert stream.headers["grpc-encoding"] == "gzip"
        assert 0 < relay.size(by_client=True) < MIB // 4
        assert 0 < relay.size(by_client=False) < MIB // 4


def test_our_client_compresses_with_what_grpcio_has_not(client: Colour, colour: type[Colour], theirs: Peer) -> None:
    with of_colour(colour, theirs, send_compression="zstd") as other:
        error = other.call_echo(EchoRequest(data=bytes(MIB))).error()
    assert error is not None
    assert error.code in (Code.UNIMPLEMENTED, Code.INTERNAL)  # one of its colours each
    assert client.text("x") == "x"


# Many at once.


def test_our_client_hundreds_of_calls_at_once(theirs: Peer) -> None:
    async def main() -> None:
        async with async_client(theirs) as client:

            async def call(number: int) -> None:
                request = EchoRequest(number=number, data=bytes(number % 20 * 40))
                response = await client.echo(request, {"x-number": str(number)}, timeout_seconds=60)
                assert response.request == request

            async def chat(number: int) -> None:
                requests: asyncio.Queue[int] = asyncio.Queue()

                async def messages() -> AsyncIterator[ChatRequest]:
                    for _ in range(5):
                        yield ChatRequest(text=f"{number} {await requests.get()}")

                answers = client.chat(messages(), timeout_seconds=60)
                for turn in range(5):
                    await requests.put(turn)
                    assert (await anext(answers)).text == f"{number} {turn}"
                assert [message async for message in answers] == []

            await asyncio.gather(*map(call, range(1000)))
            await asyncio.gather(*map(chat, range(50)))  # each keeps one of the server's threads

    run_aio(main())


def test_our_client_in_many_threads(theirs: Peer, blocking: Any) -> None:
    with sync_client(blocking, theirs) as client, ThreadPoolExecutor(30) as pool:

        def call(number: int) -> bool:
            chatted = client.chat([ChatRequest(text=str(number))] * 3)
            return (
                client.echo(EchoRequest(number=number)).request.number == number
                and client.sum([SumRequest(number=number)] * 2).sum == number * 2
                and [message.text for message in chatted] == [str(number)] * 3
            )

        assert all(pool.map(call, range(150)))


# Connections.


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_server_of_grpcio_stops(kind: str, tmp_path: Path) -> None:
    """It lets the calls end that it has; then there is no server."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(run_grpcio(kind, tmp_path))
        caller = stack.enter_context(SyncCaller(server))
        clients = [stack.enter_context(of_colour(colour, server)) for colour in HTTP_CLIENTS]
        texts = ["last of all", "last but one", "last but two", "last but three"]
        calls = [
            Background(functools.partial(client.echo, EchoRequest(text=text, delay_ms=1000)))
            for client, text in zip(clients, texts, strict=True)
        ]
        saw(caller, *(f"{text}: begin" for text in texts))
        server.process.send_signal(signal.SIGTERM)
        assert [call.result(20).request.text for call in calls] == texts
        server.process.wait(15)
        for client in clients:
            error = client.call_echo(EchoRequest(), timeout=5).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_our_client_over_tls(kind: str, tls: TLS, tmp_path: Path) -> None:
    settings = {"tls_ca_cert": tls.authority.read_bytes()}
    with run_grpcio(kind, tmp_path, tls.server_file, tls.authority) as server:
        for colour in HTTP_CLIENTS:
            with of_colour(colour, server, settings) as client:
                data = os.urandom(MIB)
                assert client.echo(EchoRequest(data=data)).request.data == data
                assert client.numbers(100) == list(range(1, 101))
                assert client.sum([SumRequest(number=1)] * 100).sum == 100
                assert len(client.chat([ChatRequest()] * 100)) == 100
                error = client.call_echo(EchoRequest(misdeed="details")).error()
                assert error is not None
                assert [detail.message() for detail in error.details] == DETAILS
