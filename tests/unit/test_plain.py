"""The short ways of unary gRPC calls, in ASGI and in clients: what comes of them is what comes of the long ways."""

from __future__ import annotations

import asyncio
import logging
import types
from typing import TYPE_CHECKING, Any

import pytest
from multidict import CIMultiDict

from connectrpc._core.grpc import GrpcUnaryClient
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ServerResponse
from connectrpc.server import asgi_request, asgi_service
from harness import DISCONNECT, SERVICE, UNARY, Connection, asgi, ask, asked, frame, part, reply, scope, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.source_context_pb2 import SourceContext

    from connectrpc.client import ClientOptions
    from connectrpc.request import ClientRequest
    from harness import Event

GRPC = "application/grpc+proto"
LONG = ("grpc-encoding", "identity")
"""A header that says nothing, but with which no call goes the short way."""

TRAILERS: dict[str, Any] = {"http.response.trailers": {}}


def run(
    app: Any, events: Sequence[Event | float | BaseException], headers: Sequence[tuple[str, str]], **changes: Any
) -> list[Event]:
    """What a server is told to send."""
    made = scope(UNARY.path, changes.pop("content_type", GRPC), headers, http_version="2", extensions=TRAILERS)
    connection = Connection(events)
    asyncio.run(serve(app, {**made, **changes}, connection))
    return connection.sent


def test_no_trailers_behind_http_1() -> None:
    """They would come to nothing there, whatever the server says it can do."""
    app = asgi(unary=lambda request: reply("a"))
    start, *_ = run(app, [part(asked(ask("a")))], [], http_version="1.1")
    assert (b"grpc-status", b"12") in start["headers"]
    assert "trailers" not in start


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The heads that were made: the short way makes none."""
    made: list[Any] = []

    class Head(asgi_request.Head):
        __slots__ = ()

        def __init__(self, scope: Any) -> None:
            made.append(scope)
            super().__init__(scope)

    monkeypatch.setattr("connectrpc.server.asgi.Head", Head)
    return made


async def answers(request: ClientRequest[Any]) -> SourceContext:
    return reply(request.msg.name)


async def waits(request: ClientRequest[Any]) -> SourceContext:
    await asyncio.sleep(0)
    return reply(request.msg.name)


def does_not_wait(request: ClientRequest[Any]) -> SourceContext:
    return reply(request.msg.name)


async def reads_headers(request: ClientRequest[Any]) -> SourceContext:
    return reply(f"{request.headers['x-a']} {request.peer} {request.method.name} {request.timeout.timeout_ms}")


async def gives_metadata(request: ClientRequest[Any]) -> ServerResponse[SourceContext]:
    return ServerResponse(reply(request.msg.name), headers={"x-h": "1"}, trailers={"x-t": "2"})


async def gives_an_error(request: ClientRequest[Any]) -> ConnectError:
    return ConnectError(ConnectErrorCode.ABORTED, "m")


async def raises(request: ClientRequest[Any]) -> SourceContext:
    error = ConnectError(ConnectErrorCode.NOT_FOUND, "no ä")
    error.add_detail(ask("detail"))
    raise error


async def fails(request: ClientRequest[Any]) -> SourceContext:
    raise ZeroDivisionError


async def gives_something_else(request: ClientRequest[Any]) -> str:
    return str(request.msg.name)


async def gives_much(request: ClientRequest[Any]) -> SourceContext:
    return reply("x" * 5000)


HANDLERS = (
    answers,
    waits,
    does_not_wait,
    reads_headers,
    gives_metadata,
    gives_an_error,
    raises,
    fails,
    gives_something_else,
    gives_much,
)


def without_encoding(event: Event) -> Event:
    return {**event, "headers": [pair for pair in event.get("headers", ()) if pair[0] != b"grpc-encoding"]}


@pytest.mark.parametrize("accepted", [None, "identity, deflate, gzip", "gzip", "identity"])
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_both_ways_answer_alike(
    handler: Callable[[Any], Any], accepted: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    headers = [("te", "trailers"), ("x-a", "1"), *([] if accepted is None else [("grpc-accept-encoding", accepted)])]
    events = [part(asked(ask("a")))]
    with caplog.at_level(logging.CRITICAL):
        short = run(asgi(unary=handler), events, headers)
        long = run(asgi(unary=handler), events, [*headers, LONG])
    assert [event["type"] for event in short] == [
        "http.response.start",
        "http.response.body",
        "http.response.trailers",
    ]
    # The short way need not name a compression that it does not use.
    assert [without_encoding(event) for event in short] == [without_encoding(event) for event in long]
    compressed = short[1]["body"][:1] == b"\1"
    assert compressed == (handler is gives_much and accepted == "gzip")
    assert not compressed or (b"grpc-encoding", b"gzip") in short[0]["headers"]


def test_a_plain_call_makes_no_head(heads: list[Any]) -> None:
    sent = run(asgi(unary=answers), [part(asked(ask("a")))], [("te", "trailers")])
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == frame(reply("a").SerializeToString())
    assert sent[2]["headers"] == [(b"grpc-status", b"0")]
    assert heads == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", b"12"),
        (b"\0", b"3"),
        (b"\0\0\0\0", b"3"),
        (frame(b"\xff"), b"3"),
        (frame(b"", 1), b"13"),
        (frame(b"\n\1a", 1), b"13"),
        (frame(b"\n\1a", 2), b"3"),
        (frame(b"\n\1a")[:-1], b"3"),
        (asked(ask("a"), ask("b")), b"12"),
        (asked(ask("a")) + b"\0", b"3"),
        (frame(b"\n\1a"), b"0"),
        (frame(b""), b"0"),
        (frame(ask("a" * 5_000_000).SerializeToString()), b"8"),
    ],
    ids=lambda value: None if len(value) > 20 else repr(value),
)
def test_what_is_no_plain_message_is_judged_alike(body: bytes, status: bytes) -> None:
    for headers in ([], [LONG]):
        sent = run(asgi(unary=answers), [part(body)], headers)
        assert dict(sent[-1]["headers"])[b"grpc-status"] == status


@pytest.mark.parametrize(
    "headers",
    [
        [("grpc-timeout", "1H")],
        [LONG],
        [("te", "trailers"), ("te", "trailers")],
    ],
    ids=["timeout", "compression", "repeated"],
)
def test_other_calls_go_the_long_way(headers: list[tuple[str, str]], heads: list[Any]) -> None:
    sent = run(asgi(unary=answers), [part(asked(ask("a")))], headers)
    assert sent[1]["body"] == frame(reply("a").SerializeToString())
    assert len(heads) == 1


def test_a_body_in_parts_goes_the_long_way(heads: list[Any]) -> None:
    body = asked(ask("a"))
    for events in ([part(body, True), part()], [part(body[:3], True), part(body[3:])]):
        sent = run(asgi(unary=answers), events, [])
        assert sent[1]["body"] == frame(reply("a").SerializeToString())
    assert len(heads) == 2


def test_with_a_limit_of_the_service_no_call_is_plain(heads: list[Any]) -> None:
    async def timeout_of(request: ClientRequest[Any]) -> SourceContext:
        return reply(str(request.timeout.timeout_ms))

    app = asgi_service(SERVICE, types.SimpleNamespace(unary=timeout_of), max_timeout_seconds=7)
    sent = run(app, [part(asked(ask("a")))], [])
    assert sent[1]["body"] == frame(reply("7000").SerializeToString())
    assert len(heads) == 1


def test_a_server_without_trailers_is_told_of_in_both_ways() -> None:
    for headers in ([], [LONG]):
        sent = run(asgi(unary=answers), [part(asked(ask("a")))], headers, extensions={})
        assert dict(sent[0]["headers"])[b"grpc-status"] == b"12"
        assert sent[-1]["type"] == "http.response.body"


def test_a_client_that_leaves_a_waiting_handler_cancels_it() -> None:
    cancelled = []

    async def forever(request: ClientRequest[Any]) -> SourceContext:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.msg.name)
            raise
        raise AssertionError

    sent = run(asgi(unary=forever), [part(asked(ask("a"))), 0.05, DISCONNECT], [])
    assert sent == [{"type": "http.response.start", "status": 499, "headers": []}], "what middlewares want"
    assert cancelled == ["a"]


def test_events_are_not_shared_by_calls() -> None:
    """Middleware may add to what is sent."""
    app = asgi(unary=answers)
    for _ in range(2):
        start, _, trailers = run(app, [part(asked(ask("a")))], [])
        assert [name for name, _ in start["headers"]].count(b"x-added") == 0
        assert trailers["headers"] == [(b"grpc-status", b"0")]
        start["headers"].append((b"x-added", b"1"))
        trailers["headers"].append((b"x-added", b"1"))


def test_an_answer_as_json_goes_the_short_way(heads: list[Any]) -> None:
    sent = run(asgi(unary=answers), [part(frame(b'{"name": "a"}'))], [], content_type="application/grpc+json")
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/grpc+json"
    assert b'"a"' in sent[1]["body"]
    assert heads == []


# Clients

ONE = frame(reply("a").SerializeToString())
WELL = (("grpc-status", "0"),)
TYPE = ("content-type", GRPC)

ANSWERS = [
    (200, (TYPE,), ONE, WELL),
    (200, (TYPE, ("x-h", "1")), ONE, (*WELL, ("x-t", "2"), ("x-t", "3"))),
    (200, (("content-type", "application/grpc"),), ONE, WELL),
    (200, (("content-type", "application/grpc; a=b"),), ONE, WELL),
    (200, (("content-type", "application/grpc+json"),), ONE, WELL),
    (200, (("content-type", "text/html"),), ONE, WELL),
    (200, (), ONE, WELL),
    (204, (TYPE,), ONE, WELL),
    (503, (TYPE,), ONE, WELL),
    (200, (TYPE, ("grpc-encoding", "gzip")), ONE, WELL),
    (200, (TYPE, ("grpc-encoding", "unknown")), ONE, WELL),
    (200, (TYPE,), ONE, None),
    (200, (TYPE,), ONE, ()),
    (200, (TYPE,), ONE, (("x-t", "1"),)),
    (200, (TYPE,), ONE, (("grpc-status", " 0 "),)),
    (200, (TYPE,), ONE, (("grpc-status", "5"), ("grpc-message", "m"))),
    (200, (TYPE,), ONE, (("grpc-status", "x"),)),
    (200, (TYPE, *WELL), b"", None),
    (200, (TYPE, ("grpc-status", "5")), b"", ()),
    (200, (TYPE, ("grpc-status", "5")), b"", (("x-t", "1"),)),
    (200, (TYPE,), b"", WELL),
    (200, (TYPE,), b"\0", WELL),
    (200, (TYPE,), ONE[:-1], WELL),
    (200, (TYPE,), ONE + b"\0", WELL),
    (200, (TYPE,), ONE + ONE, WELL),
    (200, (TYPE,), frame(b""), WELL),
    (200, (TYPE,), frame(b"\xff"), WELL),
    (200, (TYPE,), frame(b"", 1), WELL),
    (200, (TYPE,), frame(b"", 0x80), WELL),
    (200, (TYPE,), frame(reply("a" * 200).SerializeToString()), WELL),
]


@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize(("status", "headers", "body", "trailers"), ANSWERS)
def test_clients_make_the_same_of_an_answer_in_both_ways(
    status: int, headers: Any, body: bytes, trailers: Any, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome() -> tuple[Any, ...]:
        procedure = client(codec)
        given = None if trailers is None else CIMultiDict(trailers)
        try:
            message, metadata = procedure.response(status, CIMultiDict(headers), body, given)
        except ConnectError as error:
            return error.code, error.message, error.response_headers(), error.response_trailers()
        return message, *metadata()

    short = outcome()
    monkeypatch.setattr(GrpcUnaryClient, "_plain_message", lambda *_: None)
    assert short == outcome()


def client(codec: Any) -> Any:
    options: ClientOptions = {"protocol": "grpc", "codec": codec, "read_max_bytes": 100}
    return Procedures("http://test", options, asynchronous=False).unary(UNARY)


def test_a_plain_answer_is_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: object) -> None:
        raise AssertionError("the long way was taken")

    monkeypatch.setattr("connectrpc._core.grpc.GrpcStreamClient.call", call)
    message, metadata = client("proto").response(200, CIMultiDict([TYPE]), ONE, CIMultiDict([*WELL, ("x-t", "1")]))
    assert message == reply("a")
    assert metadata() == (CIMultiDict([TYPE]), CIMultiDict({"x-t": "1"}))
