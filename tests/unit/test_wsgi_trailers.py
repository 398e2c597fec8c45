"""gRPC under WSGI, on servers that can send trailers after the body of an answer."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.source_context_pb2 import SourceContext

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ServerResponse, ServerStream
from harness import (
    BIDI,
    CLIENT,
    METHODS,
    SERVER,
    UNARY,
    Starter,
    ask,
    asked,
    call_wsgi,
    environ,
    frame,
    frames,
    reply,
    wsgi,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc.server import WSGIApplication

GRPC = "application/grpc+proto"
SEND_TRAILERS = "wsgi.ext.http.send_trailers"


class Call:
    """A call as a server with trailers makes it.

    Attributes:
        events: what the app did, in order: "head", parts of the body, trailers.
        input: what is left of the request.
    """

    def __init__(self, app: WSGIApplication, method: Any, body: bytes, **changes: Any) -> None:
        self.events: list[Any] = []
        start = Starter()
        made = environ(method.path, body, GRPC, **{"SERVER_PROTOCOL": "HTTP/2", "CONTENT_LENGTH": None, **changes})
        made[SEND_TRAILERS] = self.events.append
        self.input = made["wsgi.input"]
        parts = app(made, start)
        self.status, self.headers = start.status, dict(start.headers)
        for part in parts:
            assert isinstance(part, bytes)
            self.events.append(part)

    @property
    def messages(self) -> list[str]:
        body = b"".join(event for event in self.events if isinstance(event, bytes))
        found = frames(body)
        assert all(flags == 0 for flags, _ in found)
        return [SourceContext.FromString(payload).file_name for _, payload in found]

    @property
    def trailers(self) -> dict[str, str]:
        assert isinstance(self.events[-1], list)  # nothing comes behind them
        assert sum(isinstance(event, list) for event in self.events) == 1
        return dict(self.events[-1])


def answer_all() -> WSGIApplication:
    def stream(req: Any) -> Iterator[SourceContext]:
        for message in [req.msg] if hasattr(req, "msg") else req:
            yield reply(message.name)

    return wsgi(
        unary=lambda req: reply(req.msg.name),
        server=stream,
        client=lambda req: reply(" ".join(message.name for message in req)),
        bidi=stream,
    )


@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.python_name)
def test_the_result_is_in_the_trailers(method: Any) -> None:
    call = Call(answer_all(), method, asked(ask("a")))
    assert call.status == "200 OK"
    assert call.headers["content-type"] == GRPC
    assert call.messages == ["a"]
    assert call.trailers == {"grpc-status": "0"}
    assert "grpc-status" not in call.headers


@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.python_name)
def test_an_error_is_in_the_trailers(method: Any) -> None:
    def fail(req: Any) -> Any:
        raise ConnectError(ConnectErrorCode.NOT_FOUND, "no such thing")

    call = Call(wsgi(**{method.python_name: fail}), method, asked(ask("a")))
    assert call.status == "200 OK"
    assert call.messages == []
    assert call.trailers == {"grpc-status": "5", "grpc-message": "no such thing"}


def test_headers_and_trailers_of_the_handler() -> None:
    def stream(req: Any) -> Any:
        return ServerStream([reply("a"), reply("b")], {"x-head": "1"}, {"x-trailer": "2"})

    app = wsgi(unary=lambda req: ServerResponse(reply("a"), {"x-head": "1"}, {"x-trailer": "2"}), server=stream)
    for method in (UNARY, SERVER):
        call = Call(app, method, asked(ask()))
        assert call.headers["x-head"] == "1"
        assert call.trailers == {"grpc-status": "0", "x-trailer": "2"}


@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.python_name)
def test_what_is_left_of_a_request_that_was_refused(method: Any) -> None:
    """A message that is on its way is taken to its end: a client that is stopped in it may miss the answer. A client
    with a stream of them may go on until it has the answer."""
    size = 5 * 1024 * 1024
    call = Call(answer_all(), method, b"\0" + size.to_bytes(4, "big") + bytes(size))
    assert call.trailers["grpc-status"] == "8"
    assert bool(call.input.read()) == method.kind.client_streams


@pytest.mark.parametrize(
    ("path", "content_type", "left"),
    [
        (UNARY.path, "text/plain", False),
        (SERVER.path, "application/proto", False),
        ("/unknown", "application/json", False),
        ("/unknown", GRPC, True),
        ("/unknown", "application/connect+proto", True),
        (BIDI.path, "application/connect+other", True),
    ],
)
def test_what_is_left_of_a_request_that_is_none(path: str, content_type: str, left: bool) -> None:
    """Over HTTP/2 too: a client that is stopped in its request may miss the answer. But a stream may be waiting for
    it, and its client goes by it at once."""
    stream = io.BytesIO(bytes(300_000))
    made = environ(path, b"", content_type, SERVER_PROTOCOL="HTTP/2", CONTENT_LENGTH=None, wsgi_input=stream)
    made[SEND_TRAILERS] = lambda trailers: None
    answer = call_wsgi(wsgi(), made)
    assert answer.status == (404 if path == "/unknown" else 415)
    assert bool(stream.read()) == left


def test_trailers_come_when_the_last_part_has_been_taken() -> None:
    """Servers end the answer with them, and lose what comes behind."""
    call = Call(answer_all(), UNARY, asked(ask("a")))
    assert [type(event) for event in call.events] == [bytes, list]


def test_a_stream_that_fails_late(caplog: pytest.LogCaptureFixture) -> None:
    def stream(req: Any) -> Iterator[SourceContext]:
        yield reply("a")
        raise ValueError("secret")

    with caplog.at_level(logging.CRITICAL, "connectrpc.server"):
        call = Call(wsgi(server=stream), SERVER, asked(ask()))
    assert call.messages == ["a"]
    assert call.trailers["grpc-status"] == "2"
    assert "secret" not in str(call.events)


def test_a_body_without_a_length_is_read_to_its_end() -> None:
    """Such servers' streams end by themselves, whatever the environ says of their length."""
    assert Call(answer_all(), CLIENT, asked(ask("a"), ask("b"))).messages == ["a b"]
    assert Call(answer_all(), CLIENT, b"").messages == [""]


def test_an_answer_does_not_wait_for_the_rest_of_a_stream_of_http_2() -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(5 if size is None or size < 0 else size)
            assert data, "the app waits for what the client need not send"
            return data

    def first(req: Any) -> Iterator[SourceContext]:
        yield reply(next(iter(req)).name)

    call = Call(wsgi(bidi=first), BIDI, b"", wsgi_input=Endless(asked(ask("a"), ask("b"))))
    assert call.messages == ["a"]
    assert call.trailers == {"grpc-status": "0"}


def test_without_trailers_grpc_is_refused() -> None:
    cases: list[dict[str, Any]] = [{}, {SEND_TRAILERS: lambda trailers: None, "SERVER_PROTOCOL": "HTTP/1.1"}]
    for changes in cases:
        for method in METHODS:
            answer = call_wsgi(wsgi(), environ(method.path, frame(b""), GRPC, **changes))
            assert answer.headers["grpc-status"] == "12"
            assert "trailers" in answer.headers["grpc-message"]
            assert answer.body == b""
