"""What ASGI servers want of an application beside calls: its lifespan, and an end without noise."""

from __future__ import annotations

import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from connectrpc.errors import ConnectErrorCode

from integration_pb2 import ChatRequest, CountRequest, EchoRequest, SumRequest, SumResponse
from integration_pb2_connect import ProbeServiceClient
from rawhttp import Connection, envelope
from rawhttp2 import HTTP2_KINDS, H2Client, run_http2_server
from servers import run_server

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

pytestmark = pytest.mark.usefixtures("limit")

LIFESPANS = [
    ("uvicorn-httptools", ["--lifespan", "on"]),
    ("uvicorn-httptools", ["--lifespan", "auto"]),
    ("uvicorn-httptools", ["--lifespan", "off"]),
    ("uvicorn-h11", ["--lifespan", "on"]),
    ("gunicorn-asgi", ["--asgi-lifespan", "on"]),
    ("gunicorn-asgi", ["--asgi-lifespan", "auto"]),
    ("gunicorn-asgi", ["--asgi-lifespan", "off"]),
    ("granian-asgi", []),
    ("granian-asgi", ["--interface", "asginl"]),
    ("hypercorn", []),
]
"""Servers, and how they are told whether to use the lifespan protocol. Given twice, the later option counts."""

NOISE = ("Traceback", "ERROR", "rror:", "Exception", "unsupported", "never retrieved", "was never awaited", "destroyed")


def end(server: Server) -> int:
    """Ask the server to end, and wait for it; its exit status."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(8)


def quiet(server: Server) -> None:
    """The log tells of no trouble."""
    logged = server.logged()
    for noise in NOISE:
        assert noise not in logged, logged


@pytest.mark.parametrize(
    ("kind", "options"), LIFESPANS, ids=[f"{kind} {' '.join(options)}" for kind, options in LIFESPANS]
)
def test_lifespan(kind: str, options: list[str], tmp_path: Path) -> None:
    """The app starts and stops with the server, and serves whether it was asked to start or not."""
    with run_server(kind, tmp_path, options=["--log-level", "debug", *options]) as server:
        with ProbeServiceClient(server.url) as client:
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
            assert len(list(client.count(CountRequest(up_to=3)))) == 3
        status = end(server)
        assert status in (0, -signal.SIGTERM), server.logged()
        quiet(server)
        if kind.startswith("uvicorn"):
            complete = "off" not in options
            assert ("Application startup complete" in server.logged()) == complete
            assert ("Application shutdown complete" in server.logged()) == complete


@pytest.mark.parametrize("kind", ["gunicorn-asgi", "granian-asgi", "hypercorn", "uvicorn-httptools"])
def test_an_implementation_that_is_made_when_the_server_starts(kind: str, tmp_path: Path) -> None:
    with run_server(kind, tmp_path, app="service_mounted:lived") as server:
        with ProbeServiceClient(server.url) as client:
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
            assert len(list(client.count(CountRequest(up_to=3)))) == 3
        logged = server.logged()
        assert "the implementation is made" in logged
        assert "the implementation is taken down" not in logged
        end(server)
        assert server.logged().count("the implementation is made") == 1
        assert server.logged().count("the implementation is taken down") == 1
        quiet(server)


def test_an_implementation_that_nobody_has_made(tmp_path: Path) -> None:
    options = ["--lifespan", "off"]
    with (
        run_server("uvicorn-httptools", tmp_path, app="service_mounted:lived", options=options) as server,
        ProbeServiceClient(server.url) as client,
    ):
        error = client.call_echo(EchoRequest()).error()
        assert error is not None
        assert error.code is ConnectErrorCode.UNAVAILABLE
        assert "lifespan" in server.logged()


def test_an_implementation_that_cannot_be_made(tmp_path: Path) -> None:
    """The server does not start, and its log tells why."""
    with (
        pytest.raises(RuntimeError, match="it cannot be made"),
        run_server("uvicorn-httptools", tmp_path, app="service_mounted:lived", LIFESPAN="fails"),
    ):
        pass


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["gunicorn-asgi", "granian-asgi", "hypercorn", "uvicorn-httptools"])
def test_handlers_in_threads_hold_nobody_up(kind: str, tmp_path: Path) -> None:
    """Synchronous handlers that block, beside each other, on a server that has one thread of its own."""
    with (
        run_server(kind, tmp_path, app="service_mounted:threaded") as server,
        ProbeServiceClient(server.url) as client,
        ThreadPoolExecutor(6) as executor,
    ):
        began = time.monotonic()
        calls = [executor.submit(client.echo, EchoRequest(number=number, delay_ms=500)) for number in range(6)]
        for _ in range(5):
            asked = time.monotonic()
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
            assert time.monotonic() - asked < 0.3
        assert [call.result().request.number for call in calls] == list(range(6))
        assert time.monotonic() - began < 2
        assert [message.number for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]
        assert client.sum([SumRequest(number=2)] * 3).sum == 6
        end(server)
        quiet(server)


@pytest.mark.parametrize(
    ("kind", "app"),
    [("gunicorn-gthread", "wsgi_threaded"), ("granian", "wsgi_threaded"), ("uvicorn-httptools", "threaded")],
)
def test_handlers_in_threads_are_answered_for_at_their_deadline(kind: str, app: str, tmp_path: Path) -> None:
    """Though they block, and go on. The client here does not mind the deadline."""
    with run_server(kind, tmp_path, app=f"service_mounted:{app}") as server, Connection(server.port) as connection:
        body = b'{"delayMs": 3000}'
        lines = [
            "POST /integration.v1.ProbeService/Echo HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connect-timeout-ms: 300",
        ]
        began = time.monotonic()
        connection.send("\r\n".join([*lines, "", ""]).encode() + body)
        answer = connection.answer()
        assert 0.25 < time.monotonic() - began < 1.5
        assert answer is not None
        assert answer.status == 504
        assert b"deadline_exceeded" in answer.body
        with ProbeServiceClient(server.url) as client:
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
        quiet(server)


@pytest.mark.parametrize("kind", HTTP2_KINDS)
def test_a_stream_that_waits_for_a_thread_holds_up_nobody_on_its_connection(kind: str, tmp_path: Path) -> None:
    """Some servers read nothing of a connection while one of its streams is not taken: who has the thread waits too."""

    def head(method: str) -> list[tuple[str, str]]:
        path = f"/integration.v1.ProbeService/{method}"
        pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
        return [*pseudo, ("content-type", "application/grpc"), ("te", "trailers")]

    question = envelope(ChatRequest(text="hi").SerializeToString())
    upload = envelope(SumRequest(number=1, padding=bytes(10_000)).SerializeToString()) * 100
    with (
        run_http2_server(kind, tmp_path, app="service_mounted:one_thread") as server,
        H2Client(server.port) as client,
    ):
        chat = client.open(head("Chat"))
        client.data(chat, question)
        assert client.wait(lambda: len(chat.messages()) == 1)
        waiting = client.open(head("Sum"))
        sent = client.data(waiting, upload, within=1)
        client.data(chat, question, end=True)
        assert client.wait(lambda: chat.over)
        assert len(chat.messages()) == 2
        assert chat.trailer("grpc-status") == "0"
        client.data(waiting, upload[sent:], end=True)
        assert client.wait(lambda: waiting.over)
        ((_, payload),) = waiting.messages()
        assert SumResponse.FromString(payload).messages == 100


@pytest.mark.parametrize("kind", ["gunicorn-asgi", "granian-asgi", "hypercorn", "uvicorn-httptools"])
def test_a_server_that_ends_lets_calls_finish(kind: str, tmp_path: Path) -> None:
    """Within the time that the server gives them, which here is a second."""
    with run_server(kind, tmp_path) as server:
        answers: list[str] = []

        def call() -> None:
            with ProbeServiceClient(server.url) as client:
                answers.append(client.echo(EchoRequest(text="hi", delay_ms=500)).request.text)

        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(0.25)  # there is no telling when the call has begun
        end(server)
        caller.join(10)
        assert answers == ["hi"], server.logged()
        quiet(server)


_WAITS = pytest.mark.skipif(sys.version_info >= (3, 12), reason="hypercorn waits there until every call is over")


@pytest.mark.parametrize(
    "kind", ["gunicorn-asgi", "granian-asgi", pytest.param("hypercorn", marks=_WAITS), "uvicorn-httptools"]
)
def test_what_a_server_that_ends_cuts_short_is_unavailable(kind: str, tmp_path: Path) -> None:
    """To its client, which may go to another server."""
    with (
        run_server(kind, tmp_path) as server,
        ProbeServiceClient(server.url, timeout_seconds=30) as client,
        ThreadPoolExecutor(2) as executor,
    ):
        stream = client.call_count(CountRequest(up_to=2, delay_ms=20_000))  # its answer has begun
        streamed = executor.submit(list, stream)
        single = executor.submit(client.call_echo, EchoRequest(delay_ms=20_000))
        time.sleep(0.5)  # there is no telling when the call has begun
        end(server)
        streamed.result()
        for error in (single.result().error(), stream.error()):
            assert error is not None
            assert error.code is ConnectErrorCode.UNAVAILABLE, server.logged()


@pytest.mark.parametrize("kind", ["gunicorn-asgi", pytest.param("hypercorn", marks=_WAITS), "uvicorn-httptools"])
def test_a_server_that_ends_ends_long_streams(kind: str, tmp_path: Path) -> None:
    """A stream without end does not keep a server alive."""
    with run_server(kind, tmp_path) as server:
        began = threading.Event()

        def call() -> None:
            with (
                ProbeServiceClient(server.url) as client,
                client.call_count(CountRequest(up_to=10_000, delay_ms=20)) as stream,
            ):
                for _ in stream:
                    began.set()

        caller = threading.Thread(target=call)
        caller.start()
        assert began.wait(5)
        asked = time.monotonic()
        end(server)
        assert time.monotonic() - asked < 6
        caller.join(10)
        assert not caller.is_alive()


def test_a_websocket_is_refused(uvicorn_httptools: Server, hypercorn: Server, granian_asgi: Server) -> None:
    """With a plain answer, and no noise in the log."""
    for server in (uvicorn_httptools, hypercorn, granian_asgi):
        logged = server.log_size()
        with Connection(server.port) as connection:
            lines = [
                "GET /integration.v1.ProbeService/Echo HTTP/1.1",
                "host: localhost",
                "connection: upgrade",
                "upgrade: websocket",
                "sec-websocket-version: 13",
                "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
            ]
            connection.send("\r\n".join([*lines, "", ""]).encode())
            answer = connection.answer()
        assert answer is not None
        assert answer.status in (403, 405), answer
        assert "Traceback" not in server.logged(logged)
