"""Services on real servers: what goes out when, what comes in when, early answers, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import aiohttp
import pytest
import urllib3

from connectrpc.errors import ConnectError, ConnectErrorCode

from helpers import settles
from integration_pb2 import (
    ChatRequest,
    ChatResponse,
    CountRequest,
    CountResponse,
    EchoRequest,
    NotesRequest,
    PingRequest,
    SumRequest,
    SumResponse,
)
from integration_pb2_connect import AsyncProbeServiceClient, OtherServiceClient, ProbeServiceClient
from rawhttp import Answer, Connection, chunked, envelope, envelopes
from servers import Server, run_server
from service import SECRET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("limit")

PREFIX = "/integration.v1.ProbeService"
STREAM = "application/connect+proto"

SERVING = [
    "gunicorn-sync",  # the only one that answers a single call at a time
    "gunicorn-gthread",
    "granian",
    "gunicorn-asgi",
    "granian-asgi",
    "hypercorn",
    "uvicorn-httptools",
]


@pytest.fixture(scope="module", params=SERVING)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param.replace("-", "_"))
    return found


@pytest.fixture(scope="module", params=SERVING[1:])
def threaded(request: pytest.FixtureRequest) -> Server:
    """A server that answers several calls at a time."""
    found: Server = request.getfixturevalue(request.param.replace("-", "_"))
    return found


@pytest.fixture
def prompt_head(server: Server) -> Server:
    """A server that sends the head of a stream when it is told to."""
    if server.kind == "gunicorn-asgi":
        pytest.skip("it keeps the head until there is something of the body, and nothing makes it send that")
    return server


def head(path: str, framing: str, *, type: str = STREAM, method: str = "POST", more: str = "") -> bytes:
    return (f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {type}\r\n{framing}\r\n{more}\r\n").encode()


def stream_request(path: str, *messages: bytes, more: str = "") -> bytes:
    body = b"".join(messages)
    return head(path, f"content-length: {len(body)}", more=more) + body


def notes(server: Server) -> list[str]:
    with ProbeServiceClient(server.url) as client:
        return list(client.notes(NotesRequest()).notes)


# What goes out when.


@pytest.mark.alone
def test_each_message_goes_out_at_once(server: Server) -> None:
    with Connection(server.port) as connection:
        request = CountRequest(up_to=5, delay_ms=100)
        connection.send(stream_request(f"{PREFIX}/Count", envelope(request.SerializeToString())))
        status, headers, _ = connection.head()
        assert status == 200
        assert headers["transfer-encoding"] == "chunked"
        arrivals = []
        for number in range(1, 6):
            ((flags, payload),) = envelopes(connection.chunk())
            assert flags == 0
            assert CountResponse.FromString(payload).number == number
            arrivals.append(time.monotonic())
        ((flags, payload),) = envelopes(connection.chunk())
        assert (flags, payload) == (2, b"{}")
        assert connection.chunk() == b""
    for before, after in itertools.pairwise(arrivals):
        assert 0.05 < after - before < 0.3


@pytest.mark.alone
def test_the_head_goes_out_before_the_first_message(prompt_head: Server) -> None:
    with Connection(prompt_head.port) as connection:
        request = CountRequest(up_to=1, first_delay_ms=500)
        connection.send(stream_request(f"{PREFIX}/Count", envelope(request.SerializeToString())))
        began = time.monotonic()
        connection.head()
        assert time.monotonic() - began < 0.3
        assert connection.chunk()
        assert time.monotonic() - began > 0.45


@pytest.mark.alone
def test_a_client_sees_the_head_before_the_first_message(prompt_head: Server) -> None:
    with ProbeServiceClient(prompt_head.url) as client:
        began = time.monotonic()
        with client.call_count(CountRequest(up_to=1, first_delay_ms=400, misdeed="metadata")) as stream:
            assert stream.response_headers().getall("x-head") == ["1", "2"]
            assert time.monotonic() - began < 0.3
            assert [message.number for message in stream] == [1]


# What comes in when.


SIZES = {
    "empty": [0, 0, 0, 0],
    "small": [1, 2, 3, 4],
    "as long as a line": [10, 13, 10, 10],  # their lengths are line breaks
    "around 1 KiB": [1017, 1018, 1019, 1024],
    "large": [5000, 70_000, 100_000, 1],
}


def test_each_message_of_a_request_comes_in_at_once(server: Server) -> None:
    """The handler has each message while the client is still sending the others."""
    if server.kind == "gunicorn-sync":
        for sizes in SIZES.values():
            send_one_by_one(server, [sizes])
    else:
        send_one_by_one(server, list(SIZES.values()))


def send_one_by_one(server: Server, calls: list[list[int]]) -> None:
    """Make calls side by side, whose messages have these sizes."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in calls]
        for connection in connections:
            connection.send(head(f"{PREFIX}/Sum", "transfer-encoding: chunked"))
        sent: list[list[float]] = [[] for _ in calls]
        for number in range(len(calls[0])):
            for connection, sizes, moments in zip(connections, calls, sent, strict=True):
                size = sizes[number]
                message = SumRequest(number=1, padding=b"\n" * (size - 5)) if size > 5 else SumRequest(number=size)
                moments.append(time.monotonic())
                connection.send(chunked(envelope(message.SerializeToString()), last=False))
            time.sleep(0.15)
        for connection, sizes, moments in zip(connections, calls, sent, strict=True):
            connection.send(chunked())
            answer = connection.answer()
            assert answer is not None
            (_, payload), _ = envelopes(answer.body)
            arrivals = SumResponse.FromString(payload).arrivals
            for sent_at, arrived_at in zip(moments, arrivals, strict=True):
                assert arrived_at - sent_at < 0.1, sizes


def test_messages_in_chunks_of_any_size(server: Server) -> None:
    """Where chunks begin and end means nothing."""
    messages = [SumRequest(number=number, padding=b"\n" * (number * 100)) for number in range(20)]
    body = b"".join(envelope(message.SerializeToString()) for message in messages)
    for size in (1, 4, 5, 7, 1000, 1024, len(body)):
        if size == 1:
            body_here = b"".join(envelope(message.SerializeToString()) for message in messages[:3])
            expected = sum(range(3))
        else:
            body_here, expected = body, sum(range(20))
        with Connection(server.port) as connection:
            connection.send(head(f"{PREFIX}/Sum", "transfer-encoding: chunked"))
            parts = [body_here[at : at + size] for at in range(0, len(body_here), size)]
            connection.send(chunked(*parts))
            answer = connection.answer()
            assert answer is not None
            (_, payload), _ = envelopes(answer.body)
            assert SumResponse.FromString(payload).sum == expected


def test_a_message_that_comes_in_pieces(server: Server) -> None:
    body = envelope(SumRequest(number=7, padding=bytes(50)).SerializeToString())
    for framing in ("transfer-encoding: chunked", f"content-length: {len(body)}"):
        with Connection(server.port) as connection:
            connection.send(head(f"{PREFIX}/Sum", framing))
            for piece in (body[:3], body[3:5], body[5:20], body[20:]):
                connection.send(chunked(piece, last=False) if "chunked" in framing else piece)
                time.sleep(0.03)
            if "chunked" in framing:
                connection.send(chunked())
            answer = connection.answer()
            assert answer is not None
            (_, payload), _ = envelopes(answer.body)
            assert SumResponse.FromString(payload).sum == 7


def test_questions_and_answers_in_turn(prompt_head: Server) -> None:
    """Full duplex over HTTP/1.1: the answer to a message comes before the next one is sent."""
    with Connection(prompt_head.port) as connection:
        connection.send(head(f"{PREFIX}/Chat", "transfer-encoding: chunked"))
        status, _, _ = connection.head()
        assert status == 200
        for text in ("a", "b\n", "c" * 3000, ""):
            connection.send(chunked(envelope(ChatRequest(text=text).SerializeToString()), last=False))
            ((flags, payload),) = envelopes(connection.chunk())
            assert flags == 0
            assert ChatResponse.FromString(payload).text == text
        connection.send(chunked())
        assert envelopes(connection.chunk()) == [(2, b"{}")]
        assert connection.chunk() == b""


def test_full_duplex_with_our_client(server: Server) -> None:
    async def main() -> None:
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def requests() -> AsyncIterator[ChatRequest]:
            text = "x"
            while len(text) < 6:
                yield ChatRequest(text=text)
                text = await answers.get() + "x"

        async with AsyncProbeServiceClient(server.url) as client:
            found = []
            async for message in client.chat(requests(), timeout_seconds=10):
                found.append(message.text)
                answers.put_nowait(message.text)
            assert found == ["x", "xx", "xxx", "xxxx", "xxxxx"]

    asyncio.run(main())


def test_the_server_speaks_first(server: Server) -> None:
    with Connection(server.port) as connection:
        connection.send(head(f"{PREFIX}/Chat", "transfer-encoding: chunked", more="x-misdeed: greet\r\n"))
        connection.head()
        ((_, payload),) = envelopes(connection.chunk())
        assert ChatResponse.FromString(payload).text == "hello"
        connection.send(chunked())
        assert envelopes(connection.chunk()) == [(2, b"{}")]


# Answers that come early.

MEGABYTE = bytes(1024 * 1024)

UPLOAD = 24
"""How many of them a client sends whose answer comes early: more than all that lies between it and the server holds."""

EARLY: dict[str, tuple[str, str, bytes, str, Callable[[int, bytes], bool]]] = {
    "unknown path": ("/nowhere", "application/proto", b"", "", lambda status, body: status == 404),
    "unknown media type": (f"{PREFIX}/Echo", "text/plain", b"", "", lambda status, body: status == 415),
    "too large a message": (f"{PREFIX}/Echo", "application/proto", b"", "", lambda status, body: status == 429),
    "refused by its headers": (
        *(f"{PREFIX}/Echo", "application/proto", b"", "connect-timeout-ms: x\r\n"),
        lambda status, body: status == 400 and json.loads(body)["code"] == "invalid_argument",
    ),
    "too large a message of a stream": (
        *(f"{PREFIX}/Sum", STREAM, b"\0\x03\x20\0\0", ""),
        lambda status, body: status == 200 and b"resource_exhausted" in body,
    ),
    "too large a message for a method of one": (
        *(f"{PREFIX}/Count", STREAM, b"\0\x03\x20\0\0", ""),
        lambda status, body: status == 200 and b"resource_exhausted" in body,
    ),
    "handler fails before it reads": (
        *(f"{PREFIX}/Sum", STREAM, b"", "x-misdeed: raise at once\r\n"),
        lambda status, body: status == 200 and b"unknown" in body and SECRET.encode() not in body,
    ),
    "handler reads nothing": (
        *(f"{PREFIX}/Sum", STREAM, b"", "x-misdeed: ignore\r\n"),
        lambda status, body: status == 200 and len(envelopes(body)) == 2,
    ),
    "handler of a stream fails before it reads": (
        *(f"{PREFIX}/Chat", STREAM, b"", "x-misdeed: error at once\r\n"),
        lambda status, body: status == 200 and b"not_found" in body,
    ),
}


@pytest.fixture(params=EARLY.values(), ids=list(EARLY))
def early(request: pytest.FixtureRequest) -> tuple[str, str, bytes, str, Callable[[int, bytes], bool]]:
    found: tuple[str, str, bytes, str, Callable[[int, bytes], bool]] = request.param
    return found


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_early_answers_arrive_whole_with_a_client_like_gos(
    server: Server, early: tuple[str, str, bytes, str, Callable[[int, bytes], bool]], framing: str
) -> None:
    """It reads while it sends, takes an answer as soon as there is one, and a failure to send for one of the call."""
    path, media_type, start, more, expected = early
    parts = [start, *[MEGABYTE] * UPLOAD]
    with Connection(server.port) as connection:
        failures: list[OSError] = []

        def send() -> None:
            try:
                for part in parts:
                    if part:
                        connection.send(chunked(part, last=False) if framing == "chunks" else part)
                if framing == "chunks":
                    connection.send(chunked())
            except OSError as failure:
                failures.append(failure)

        length = f"content-length: {sum(map(len, parts))}"
        connection.send(
            head(path, "transfer-encoding: chunked" if framing == "chunks" else length, type=media_type, more=more)
        )
        sender = threading.Thread(target=send)
        sender.start()
        answer = connection.answer()
        sender.join(10)
        assert answer is not None
        assert expected(answer.status, answer.body), answer
        assert failures == []
        if not answer.closes:
            connection.send(head("/nowhere", "content-length: 0"))
            again = connection.answer()
            assert again is not None
            assert again.status == 404


def test_early_answers_arrive_whole_with_urllib3(
    server: Server, early: tuple[str, str, bytes, str, Callable[[int, bytes], bool]]
) -> None:
    path, media_type, start, more, expected = early
    headers = {"content-type": media_type}
    if more:
        name, _, value = more.strip().partition(": ")
        headers[name] = value
    with urllib3.PoolManager() as manager:
        for body in (start + MEGABYTE * UPLOAD, iter([start or b"x", *[MEGABYTE] * UPLOAD])):
            answer = manager.request("POST", server.url + path, body=body, headers=headers, retries=False)
            if body is start or (not isinstance(body, bytes) and not start):
                assert answer.status  # another body than the one that is expected
            else:
                assert expected(answer.status, answer.data), (answer.status, answer.data)


def test_early_answers_arrive_whole_with_aiohttp(
    server: Server, early: tuple[str, str, bytes, str, Callable[[int, bytes], bool]]
) -> None:
    path, media_type, start, more, expected = early
    headers = {"content-type": media_type}
    if more:
        name, _, value = more.strip().partition(": ")
        headers[name] = value

    async def body() -> AsyncIterator[bytes]:
        if start:
            yield start
        for _ in range(UPLOAD):
            yield MEGABYTE

    async def main() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.url + path, data=body(), headers=headers) as answer,
        ):
            assert expected(answer.status, await answer.read()), answer

    asyncio.run(main())


def test_early_answers_with_our_clients(server: Server) -> None:
    request = EchoRequest(data=MEGABYTE * UPLOAD)
    with ProbeServiceClient(server.url) as client:
        for _ in range(2):
            error = client.call_echo(request).error()
            assert error is not None
            assert error.code is ConnectErrorCode.RESOURCE_EXHAUSTED
            error = client.call_sum(
                (SumRequest(padding=MEGABYTE) for _ in range(UPLOAD)), {"x-misdeed": "raise at once"}
            ).error()
            assert error is not None
            assert error.code is ConnectErrorCode.UNKNOWN

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            error = (await client.call_echo(request)).error()
            assert error is not None
            assert error.code is ConnectErrorCode.RESOURCE_EXHAUSTED
            error = (
                await client.call_sum(
                    (SumRequest(padding=MEGABYTE) for _ in range(UPLOAD)), {"x-misdeed": "raise at once"}
                )
            ).error()
            assert error is not None
            assert error.code is ConnectErrorCode.UNKNOWN

    asyncio.run(main())


def test_what_is_not_read_is_bounded(server: Server) -> None:
    """Somebody who sends without end does not keep a worker for ever."""
    with Connection(server.port) as connection:
        connection.send(head("/nowhere", "transfer-encoding: chunked"))
        began = time.monotonic()
        try:
            while time.monotonic() - began < 15:
                connection.send(chunked(MEGABYTE, last=False))
        except OSError:
            pass
        assert time.monotonic() - began < 12
    assert notes(server) is not None


# Clients that leave.


def leave_by_closing(connection: Connection) -> None:
    connection.sock.close()


@pytest.mark.parametrize("leave", [leave_by_closing, Connection.reset], ids=["close", "reset"])
@pytest.mark.parametrize("padding", [0, 1_000_000], ids=["small messages", "a reader that is slow"])
def test_the_handlers_generator_is_closed_when_its_client_leaves(
    server: Server, leave: Callable[[Connection], None], padding: int
) -> None:
    notes(server)
    with Connection(server.port) as connection:
        request = CountRequest(up_to=500, delay_ms=20, padding=padding, name="left")
        connection.send(stream_request(f"{PREFIX}/Count", envelope(request.SerializeToString())))
        connection.head()
        assert connection.chunk()
        if padding:
            time.sleep(0.5)  # until whatever is between us is full
        leave(connection)
    found: list[str] = []

    def ended() -> bool:
        found.extend(notes(server))
        return "left: end" in found

    assert settles(ended, within=5)
    assert found.count("left: begin") == found.count("left: end") == 1


def test_our_clients_leave(server: Server) -> None:
    notes(server)
    with ProbeServiceClient(server.url) as client:
        with client.call_count(CountRequest(up_to=500, delay_ms=20, name="sync")) as stream:
            next(stream)
        with pytest.raises(ConnectError):
            list(client.count(CountRequest(up_to=500, delay_ms=20, name="deadline"), timeout_seconds=0.1))

    async def main() -> None:
        async with AsyncProbeServiceClient(server.url) as client:
            async for _ in client.count(CountRequest(up_to=500, delay_ms=20, name="async")):
                break

    asyncio.run(main())
    found: list[str] = []

    def ended() -> bool:
        found.extend(notes(server))
        return {"sync: end", "deadline: end", "async: end"} <= set(found)

    assert settles(ended, within=5), found


@pytest.mark.parametrize("leave", [leave_by_closing, Connection.reset], ids=["close", "reset"])
def test_a_client_leaves_in_the_middle_of_its_request(server: Server, leave: Callable[[Connection], None]) -> None:
    """The handler that waits for the next message hears of it."""
    notes(server)
    with Connection(server.port) as connection:
        connection.send(head(f"{PREFIX}/Chat", "transfer-encoding: chunked", more="x-name: left\r\n"))
        connection.send(chunked(envelope(b"\n\2hi"), last=False))
        connection.head()
        assert connection.chunk()
        leave(connection)
    found: list[str] = []

    def ended() -> bool:
        found.extend(notes(server))
        return "left: end" in found

    assert settles(ended, within=5)


def test_every_generator_runs_to_its_end(server: Server) -> None:
    notes(server)
    with ProbeServiceClient(server.url) as client:
        for misdeed in ("", "raise first", "raise last", "error last", "wrong type", "raise finally", "metadata"):
            list(client.call_count(CountRequest(up_to=3, misdeed=misdeed, name="x")))
    found = notes(server)
    assert found.count("x: begin") == found.count("x: end") == 7
    assert "x: went on after its error" not in found


# Deadlines.


def test_deadlines_of_handlers(server: Server) -> None:
    """What a handler is told, and what becomes of one that takes too long. The client here does not mind."""
    with Connection(server.port) as connection:
        connection.send(
            head(f"{PREFIX}/Echo", "content-length: 17", type="application/json", more="connect-timeout-ms: 5000\r\n")
            + b'{"text": "quick"}'
        )
        answer = connection.answer()
        assert answer is not None
        assert json.loads(answer.body)["timeoutMs"] == "5000"
    with Connection(server.port) as connection:
        connection.send(
            head(f"{PREFIX}/Echo", "content-length: 16", type="application/json", more="connect-timeout-ms: 100\r\n")
            + b'{"delayMs": 200}'
        )
        answer = connection.answer()
        assert answer is not None
        assert answer.status == 504
        assert json.loads(answer.body)["code"] == "deadline_exceeded"
    notes(server)
    with Connection(server.port) as connection:
        request = CountRequest(up_to=500, delay_ms=20, name="late")
        connection.send(
            stream_request(f"{PREFIX}/Count", envelope(request.SerializeToString()), more="connect-timeout-ms: 150\r\n")
        )
        answer = connection.answer()
        assert answer is not None
        found = envelopes(answer.body)
        assert 3 < len(found) < 12
        assert json.loads(found[-1][1])["error"]["code"] == "deadline_exceeded"
    assert "late: end" in notes(server)
    with Connection(server.port) as connection:
        connection.send(head(f"{PREFIX}/Sum", "transfer-encoding: chunked", more="connect-timeout-ms: 150\r\n"))
        answered: list[Answer | None] = []
        reader = threading.Thread(target=lambda: answered.append(connection.answer()))
        reader.start()
        for _ in range(8):
            connection.send(chunked(envelope(b"\x08\x01"), last=False))
            time.sleep(0.04)
        connection.send(chunked())
        reader.join(5)
        (answer,) = answered
        assert answer is not None
        assert b"deadline_exceeded" in answer.body


# Applications.


def test_mounted_by_a_dispatcher(server: Server) -> None:
    for mount in ("/mounted", "/deep/er", "/prefixed"):
        with ProbeServiceClient(server.url + mount) as client:
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
            assert [message.number for message in client.count(CountRequest(up_to=2))] == [1, 2]
            assert client.sum([SumRequest(number=1)] * 3).sum == 3
    with ProbeServiceClient(server.url + "/elsewhere") as client, pytest.raises(ConnectError) as raised:
        client.echo(EchoRequest())
    assert raised.value.code is ConnectErrorCode.UNIMPLEMENTED


def test_two_services_in_one_application(server: Server) -> None:
    for path in ("", "/deep/er"):
        with ProbeServiceClient(server.url + path) as probe, OtherServiceClient(server.url + path) as other:
            assert probe.echo(EchoRequest(text="hi")).request.text == "hi"
            assert other.ping(PingRequest(text="ho")).text == "ho"
    with OtherServiceClient(server.url + "/mounted") as other, pytest.raises(ConnectError) as raised:
        other.ping(PingRequest())
    assert raised.value.code is ConnectErrorCode.UNIMPLEMENTED


def test_calls_run_side_by_side(threaded: Server) -> None:
    with ProbeServiceClient(threaded.url) as client, ThreadPoolExecutor(6) as executor:
        client.echo(EchoRequest())
        began = time.monotonic()
        calls = [executor.submit(client.echo, EchoRequest(number=number, delay_ms=300)) for number in range(6)]
        assert [call.result().request.number for call in calls] == list(range(6))
        assert time.monotonic() - began < 1


def test_many_calls_from_many_threads(threaded: Server) -> None:
    with ProbeServiceClient(threaded.url) as client, ThreadPoolExecutor(8) as executor:

        def work(name: int) -> int:
            for number in range(40):
                text = f"{name} {number}"
                assert client.echo(EchoRequest(text=text)).request.text == text
                assert [message.number for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]
                assert client.sum([SumRequest(number=name)] * 3).sum == name * 3
            return name

        assert sorted(executor.map(work, range(8))) == list(range(8))


def test_the_log_tells_what_the_client_is_not_told(server: Server) -> None:
    before = server.log_size()
    with ProbeServiceClient(server.url) as client:
        error = client.call_echo(EchoRequest(misdeed="raise=ValueError")).error()
    assert error is not None
    assert error.code is ConnectErrorCode.UNKNOWN
    assert SECRET not in str(error)
    assert settles(lambda: SECRET in server.logged(before))
    fresh = server.logged(before)
    assert f"{PREFIX}/Echo failed" in fresh
    assert fresh.count("Traceback") == 1


@pytest.fixture
def preloaded(granian: Server, tmp_path: Path) -> Iterator[Server]:
    with run_server("gunicorn-preload", tmp_path, UPSTREAM=granian.url) as server:
        yield server


def test_workers_that_were_forked_with_a_client(preloaded: Server) -> None:
    """A service that calls another one, in an application that was loaded before the workers were forked."""
    with ThreadPoolExecutor(8) as executor:

        def ping(number: int) -> str:
            # A connection each, so that the workers share them.
            with OtherServiceClient(preloaded.url) as client:
                pid, _, text = client.ping(PingRequest(text=str(number)), timeout_seconds=10).text.partition(" ")
            assert text == str(number)
            return pid

        pids = set(executor.map(ping, range(300)))
    assert len(pids) > 1
