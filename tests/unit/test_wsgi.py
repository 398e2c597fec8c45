"""WSGI applications, called as servers of every kind call them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import io
import itertools
import json
import logging
import time
import types
import typing
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue

from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from connectrpc.method import Method, MethodKind, Service
from connectrpc.server import (
    ClientRequest,
    ClientStream,
    ServerResponse,
    ServerStream,
    handlers,
    wsgi_app,
    wsgi_service,
)
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    MISSING,
    NAME,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    USUAL,
    Answer,
    Starter,
    accepted,
    ask,
    asked,
    call_wsgi,
    environ,
    frame,
    frames,
    pieces,
    reply,
    wsgi,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectrpc.server import WSGIApplication


@pytest.fixture(autouse=True, params=[False, True], ids=["bare", "versioned"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with and without what clients always send."""
    if request.param:
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")


ABORTED = ConnectError(ConnectErrorCode.ABORTED, "m")
BODY = asked(ask("a"))


def respond(
    app: WSGIApplication, body: bytes = b"", method: Any = UNARY, content_type: str = PROTO, **changes: Any
) -> Answer:
    if method.kind.client_streams or method.kind.server_streams:
        content_type = STREAM_PROTO if content_type == PROTO else content_type
    return call_wsgi(app, environ(method.path, body, content_type, **changes))


def echo(request: ClientRequest[EnumValue]) -> SourceContext:
    return reply(request.msg.name)


def join(request: ClientStream[EnumValue]) -> SourceContext:
    return reply(",".join(message.name for message in request))


def each(request: ClientStream[EnumValue]) -> Iterator[SourceContext]:
    for message in request:
        yield reply(message.name)


def twice(request: ClientRequest[EnumValue]) -> Iterator[SourceContext]:
    yield reply(request.msg.name + "1")
    yield reply(request.msg.name + "2")


ECHO = wsgi(unary=echo, pure=echo, client=join, server=twice, bidi=each)

CALLS = [
    (UNARY, ask("a").SerializeToString()),
    (SERVER, BODY),
    (CLIENT, BODY),
    (BIDI, BODY),
]


def texts_of(method: Any, answer: Answer) -> list[str]:
    if method.kind is MethodKind.UNARY:
        return [answer.message().file_name]
    texts, end = answer.stream()
    assert "error" not in end, end
    return texts


def code_in(answer: Answer) -> str:
    return answer.failure() if answer.media_type == STREAM_PROTO else answer.code()


EXPECTED = {UNARY: ["a"], SERVER: ["a1", "a2"], CLIENT: ["a"], BIDI: ["a"]}


# Bodies


class Input:
    """``wsgi.input`` as various servers have it.

    Args:
        body: what came over the wire.
        size: the most that one read gives; 0 gives all that was asked for, as gunicorn does.
        failure: what the server raises behind the end of the body.
    """

    def __init__(self, body: bytes, size: int = 0, failure: BaseException | None = None) -> None:
        self._stream = io.BytesIO(body)
        self._size = size
        self._failure = failure
        self.asked: list[int] = []

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "read() without a bound hangs on wsgiref"
        self.asked.append(size)
        chunk = self._stream.read(min(size, self._size) if self._size else size)
        if not chunk and size and self._failure is not None:
            raise self._failure
        return chunk

    @property
    def rest(self) -> bytes:
        return self._stream.read()


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize(("method", "body"), CALLS)
def test_reads_however_the_server_does(method: Any, body: bytes, size: int) -> None:
    assert texts_of(method, respond(ECHO, body, method, wsgi_input=Input(body, size))) == EXPECTED[method]


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize(("method", "body"), CALLS)
def test_chunked(method: Any, body: bytes, size: int) -> None:
    """As gunicorn, granian: they decode the transfer coding and say so."""
    for coding in ("chunked", None):
        changes: dict[str, Any] = {
            "CONTENT_LENGTH": None,
            "HTTP_TRANSFER_ENCODING": coding,
            "wsgi_input_terminated": True,
        }
        answer = respond(ECHO, body, method, wsgi_input=Input(body, size), **changes)
        assert texts_of(method, answer) == EXPECTED[method]


@pytest.mark.parametrize("length", ["", None])
@pytest.mark.parametrize(("method", "body"), CALLS)
def test_over_http_2_a_body_needs_no_length(method: Any, body: bytes, length: str | None) -> None:
    """hypercorn's WSGI says nothing more of it, nor do adapters that serve WSGI on an ASGI server."""
    answer = respond(ECHO, body, method, CONTENT_LENGTH=length, SERVER_PROTOCOL="HTTP/2")
    assert texts_of(method, answer) == EXPECTED[method]


@pytest.mark.parametrize("length", ["", None])
@pytest.mark.parametrize("http_method", ["GET", "HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", [PURE.path, UNARY.path, "/favicon.ico"])
def test_over_http_2_what_has_no_body_is_not_read(path: str, http_method: str, length: str | None) -> None:
    """Behind an adapter that serves WSGI on an ASGI server, reading would be for ever."""
    stream = Input(b"")
    query = "connect=v1&encoding=json&message=%7B%22name%22:%22a%22%7D"
    made = environ(path, content_type="", CONTENT_LENGTH=length, SERVER_PROTOCOL="HTTP/2", wsgi_input=stream)
    answer = call_wsgi(ECHO, {**made, "REQUEST_METHOD": http_method, "QUERY_STRING": query})
    served = path == PURE.path and http_method == "GET"
    assert answer.status == (200 if served else 404 if path == "/favicon.ico" else 405)
    assert stream.asked == []


@pytest.mark.parametrize("length", ["0", "", None, "3", str(len(BODY))])
def test_a_transfer_coding_that_nobody_decodes(length: str | None) -> None:
    """As wsgiref: what the stream holds is no body, and may have no end."""
    stream = Input(b"3\r\nabc\r\n0\r\n\r\n")
    answer = respond(ECHO, b"", UNARY, wsgi_input=stream, CONTENT_LENGTH=length, HTTP_TRANSFER_ENCODING="chunked")
    assert answer.status == 411
    assert stream.asked == []


def test_a_transfer_coding_stands_above_a_length() -> None:
    """RFC 9112 section 6.3."""
    answer = respond(
        ECHO, BODY, CLIENT, CONTENT_LENGTH="3", HTTP_TRANSFER_ENCODING="chunked", wsgi_input_terminated=True
    )
    assert texts_of(CLIENT, answer) == ["a"]


@pytest.mark.parametrize(("method", "body"), CALLS)
def test_longer_than_its_length(method: Any, body: bytes) -> None:
    """What follows belongs to the next request."""
    stream = Input(body + b"GET / HTTP/1.1")
    assert texts_of(method, respond(ECHO, body, method, wsgi_input=stream)) == EXPECTED[method]
    assert stream.rest == b"GET / HTTP/1.1"


@pytest.mark.parametrize("failure", [None, RuntimeError("secret"), OSError("secret"), ValueError("secret")])
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(("method", "body"), CALLS)
def test_shorter_than_its_length(method: Any, body: bytes, size: int, failure: Exception | None) -> None:
    """A client that broke off has sent no request, even if what came of it looks like one."""
    answer = respond(ECHO, body, method, wsgi_input=Input(body, size, failure), CONTENT_LENGTH=str(len(body) + 1))
    assert code_in(answer) == "invalid_argument"
    assert b"secret" not in answer.body


@pytest.mark.parametrize(("method", "body"), CALLS)
def test_a_chunked_body_that_breaks_off(method: Any, body: bytes) -> None:
    changes: dict[str, Any] = {
        "CONTENT_LENGTH": None,
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi_input_terminated": True,
    }
    answer = respond(ECHO, body, method, wsgi_input=Input(body, 0, OSError("secret")), **changes)
    assert code_in(answer) == "invalid_argument"
    assert b"secret" not in answer.body


@pytest.mark.parametrize("length", ["", None])
def test_no_length_is_no_body(length: str | None) -> None:
    stream = Input(b"\xff" * 100)
    assert respond(ECHO, b"", UNARY, wsgi_input=stream, CONTENT_LENGTH=length).message() == reply()
    assert stream.asked == [], "a read might wait for ever"


@pytest.mark.parametrize(
    "length",
    ["-1", "+5", "1.0", "abc", "5, 5", "0x10", "1_0", "\u0665", "\u00b2", "9" * 5000, "1" * 100_000],
)
@pytest.mark.parametrize("path", [UNARY.path, SERVER.path, "/unknown"])
def test_lengths_that_are_none(path: str, length: str) -> None:
    stream = Input(b"abc")
    answer = call_wsgi(
        ECHO,
        environ(path, b"", STREAM_PROTO if path == SERVER.path else PROTO, wsgi_input=stream, CONTENT_LENGTH=length),
    )
    assert answer.status == 400
    assert stream.asked == []


def test_an_absurd_length_asks_for_no_memory() -> None:
    stream = Input(b"abc")
    answer = respond(ECHO, b"", UNARY, wsgi_input=stream, CONTENT_LENGTH=str(10**17))
    assert answer.code() in ("resource_exhausted", "invalid_argument")
    assert max(stream.asked) <= 5_000_000


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(("method", "body"), CALLS)
def test_too_large(method: Any, body: bytes, length: bool) -> None:
    app = wsgi_service(SERVICE, types.SimpleNamespace(**{**MISSING, "client": join, "bidi": each}), read_max_bytes=2)
    changes: dict[str, Any] = {} if length else {"CONTENT_LENGTH": None, "wsgi_input_terminated": True}
    stream = Input(body * 3000)
    answer = respond(app, body * 3000, method, wsgi_input=stream, **changes)
    assert code_in(answer) == "resource_exhausted"
    assert stream.rest == b"", "clients lose an answer that overtakes their request"


@pytest.mark.parametrize("path", ["/unknown", UNARY.path])
def test_what_nobody_asked_for_is_read_to_its_end(path: str) -> None:
    stream = Input(b"x" * 300_000, 70_000)
    answer = call_wsgi(ECHO, environ(path, b"", "text/plain", wsgi_input=stream, CONTENT_LENGTH="300000"))
    assert answer.status in (404, 415)
    assert stream.rest == b""


def test_reading_on_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handlers, __import__("connectrpc.server.wsgi").server.wsgi):
        monkeypatch.setattr(module, "DRAIN_MAX_BYTES", 200_000, raising=False)
    stream = Input(b"x" * 3_000_000)
    answer = call_wsgi(ECHO, environ("/unknown", b"", wsgi_input=stream, CONTENT_LENGTH="3000000"))
    assert answer.status == 404
    assert len(stream.rest) > 2_500_000


def test_reading_on_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stream = Input(b"x" * 3_000_000, 10)
    answer = call_wsgi(ECHO, environ("/unknown", b"", wsgi_input=stream, CONTENT_LENGTH="3000000"))
    assert answer.status == 404
    assert len(stream.rest) > 2_500_000


def test_messages_are_read_as_they_are_needed() -> None:
    """Some servers' ``read(n)`` waits for all of n bytes; the client may wait for an answer to its first message."""
    body = asked(ask("first"), ask("second"))
    first = len(asked(ask("first")))
    stream, start = Input(body), Starter()
    made = environ(BIDI.path, b"", STREAM_PROTO, wsgi_input=stream, CONTENT_LENGTH=None, wsgi_input_terminated=True)
    parts = iter(ECHO(made, start))
    answers = [found for found in (next(parts), next(parts)) if found]
    assert sum(stream.asked) == first
    assert answers == [frame(reply("first").SerializeToString())]
    assert b"".join(parts).startswith(frame(reply("second").SerializeToString()))


def test_a_request_with_a_body_too_large_for_one_read() -> None:
    body = b"".join(frame(ask(f"{number:0500}").SerializeToString()) for number in range(500))
    texts = respond(ECHO, body, BIDI, wsgi_input=Input(body)).stream()[0]
    assert texts == [f"{number:0500}" for number in range(500)]


# Handlers


def give(result: Any) -> Callable[[object], Any]:
    return lambda request: result


def fail(error: BaseException) -> Callable[[object], Any]:
    def handler(request: object) -> Any:
        raise error

    return handler


def every(handler: Callable[[Any], Any]) -> WSGIApplication:
    return wsgi(**{method.python_name: handler for method in METHODS})


def test_what_unary_handlers_give() -> None:
    assert respond(every(give(reply("a")))).message() == reply("a")
    answer = respond(every(give(ServerResponse(reply("a"), {"x-h": "1"}, {"x-t": "2"}))))
    assert answer.message() == reply("a")
    assert (answer.headers["x-h"], answer.headers["trailer-x-t"]) == ("1", "2")
    assert respond(every(give(ABORTED))).code() == "aborted"
    assert respond(every(give(ServerResponse(ABORTED)))).code() == "aborted"
    assert respond(every(fail(ABORTED))).error() == {"code": "aborted", "message": "m"}


@pytest.mark.parametrize("method", [SERVER, BIDI])
def test_what_streaming_handlers_give(method: Any) -> None:
    messages = [reply("a"), reply("b")]
    result: Any
    for result in (messages, tuple(messages), iter(messages), ServerStream(messages), ServerStream(iter(messages))):
        assert respond(every(give(result)), BODY, method).stream() == (["a", "b"], {})
    answer = respond(every(give(ServerStream(messages, {"x-h": "1"}, {"x-t": "2"}))), BODY, method)
    assert answer.headers["x-h"] == "1"
    assert answer.stream() == (["a", "b"], {"metadata": {"x-t": ["2"]}})
    for handler in (fail(ABORTED), give(ABORTED), give([ABORTED]), give(ServerStream([ABORTED, reply("never")]))):
        assert respond(every(handler), BODY, method).stream() == ([], {"error": {"code": "aborted", "message": "m"}})
    for result in ([reply("a"), ABORTED, reply("never")], ServerStream(iter([reply("a"), ABORTED, reply("never")]))):
        assert respond(every(give(result)), BODY, method).stream() == (
            ["a"],
            {"error": {"code": "aborted", "message": "m"}},
        )


def test_an_error_keeps_the_metadata_of_its_stream() -> None:
    answer = respond(every(give(ServerStream([reply("a"), ABORTED], {"x-h": "1"}, {"x-t": "2"}))), BODY, SERVER)
    assert answer.headers["x-h"] == "1"
    assert answer.stream()[1] == {"error": {"code": "aborted", "message": "m"}, "metadata": {"x-t": ["2"]}}


def test_an_error_in_the_middle() -> None:
    def handler(request: object) -> Iterator[SourceContext]:
        yield reply("a")
        raise ABORTED

    assert respond(every(handler), BODY, SERVER).stream() == (["a"], {"error": {"code": "aborted", "message": "m"}})


def test_trailers_may_be_set_while_the_stream_runs() -> None:
    def handler(request: object) -> ServerStream[SourceContext]:
        given = {"x-early": "1"}

        def messages() -> Iterator[SourceContext]:
            yield reply("a")
            stream.trailers["x-late"] = "2"
            yield reply("b")
            stream.trailers.add("x-late", "3")

        stream = ServerStream(messages(), None, given)
        return stream

    texts, end = respond(every(handler), BODY, SERVER).stream()
    assert texts == ["a", "b"]
    assert end == {"metadata": {"x-early": ["1"], "x-late": ["2", "3"]}}


@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI])
def test_what_a_handler_sees(method: Any) -> None:
    seen: list[Any] = []

    def handler(request: Any) -> Any:
        seen.append(request)
        return ABORTED

    headers = {"X-Plain": "a,b", "X-Data-Bin": "AAE, AgM=", "Connect-Timeout-Ms": "60000"}
    respond(every(handler), b"" if method is UNARY else BODY, method, headers=headers)
    (request,) = seen
    assert request.method is method
    assert request.headers["x-plain"] == "a,b"
    assert request.headers.getall("X-DATA-BIN") == ["AAE", "AgM="]
    assert request.headers["content-type"] == (PROTO if method is UNARY else STREAM_PROTO)
    assert request.headers["content-length"] == ("0" if method is UNARY else str(len(BODY)))
    assert request.headers is request.headers
    assert request.timeout.timeout_ms == 60_000
    assert (request.peer.address, request.peer.protocol) == ("192.0.2.1:1234", "connect")
    if not method.kind.client_streams:
        assert request.msg == (ask() if method is UNARY else ask("a"))
        assert dict(request.trailers) == {}


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({"REMOTE_ADDR": "::1"}, "[::1]:1234"),
        ({"REMOTE_PORT": None}, "192.0.2.1"),
        ({"REMOTE_ADDR": None}, ""),
        ({"REMOTE_ADDR": ""}, ""),
        ({"REMOTE_ADDR": "", "REMOTE_PORT": None}, ""),
        ({"REMOTE_PORT": 80}, "192.0.2.1:80"),
        ({"REMOTE_PORT": "0"}, "192.0.2.1"),
    ],
)
def test_addresses_of_peers(changes: dict[str, Any], address: str) -> None:
    app = every(lambda request: reply(request.peer.address))
    assert respond(app, **changes).message().file_name == address


WRONG = [None, "text", b"bytes", 5, ask("a request"), object(), SourceContext]


@pytest.mark.parametrize("result", [*WRONG, [reply()], ServerStream([reply()]), ServerResponse(None)])
@pytest.mark.parametrize("method", [UNARY, CLIENT])
def test_wrong_results(method: Any, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    answer = respond(every(give(result)), b"" if method is UNARY else BODY, method)
    assert code_in(answer) == "unknown"
    assert method.path in caplog.text
    assert f"{method.python_name}() gave {type(result).__name__}" in caplog.text or isinstance(result, ServerResponse)
    assert "SourceContext" in caplog.text, "it says what is expected"


@pytest.mark.parametrize("result", [*WRONG, ServerResponse(reply()), ServerStream(None)])  # type: ignore[arg-type]
@pytest.mark.parametrize("method", [SERVER, BIDI])
def test_wrong_results_of_streams(method: Any, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert respond(every(give(result)), BODY, method).failure() == "unknown"
    assert method.path in caplog.text


@pytest.mark.parametrize("message", WRONG)
def test_wrong_messages_of_streams(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts, end = respond(every(give([reply("a"), message, reply("never")])), BODY, SERVER).stream()
    assert texts == ["a"]
    assert end["error"]["code"] == "unknown"
    assert "server() gave" in caplog.text


# What must not be told, and what must not get out

SECRETS: list[Exception] = [
    RuntimeError("secret"),
    KeyError("secret"),
    StopIteration("secret"),
    RecursionError("secret"),
    TimeoutError("secret"),
    OSError("secret"),
    UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret"),
    type("SecretError", (Exception,), {"__str__": lambda self: 1 / 0})(),  # it cannot even be written down
]


@pytest.mark.parametrize("error", SECRETS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI])
def test_exceptions_are_not_told(method: Any, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    answer = respond(every(fail(error)), b"" if method is UNARY else BODY, method)
    assert code_in(answer) == "unknown"
    assert b"secret" not in answer.body
    assert b"secret" not in str(answer.headers).encode()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("connectrpc.server", logging.ERROR)
    assert method.path in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.exc_info[2] is not None, "with its traceback"


@pytest.mark.parametrize("method", [SERVER, BIDI])
def test_exceptions_in_a_stream_are_not_told(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: object) -> Iterator[SourceContext]:
        yield reply("a")
        raise RuntimeError("secret")

    answer = respond(every(handler), BODY, method)
    assert answer.stream()[0] == ["a"]
    assert answer.failure() == "unknown"
    assert b"secret" not in answer.body
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("method", [UNARY, SERVER])
def test_errors_of_the_service_are_not_logged(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are answers like others; a caller could fill the log with them."""
    respond(every(fail(ABORTED)), b"" if method is UNARY else BODY, method)
    respond(ECHO, b"\xff", UNARY)
    respond(ECHO, b"\xff", SERVER)
    respond(ECHO, b"", UNARY, "text/plain")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


BROKEN: list[Callable[[], Exception]] = [
    lambda: ConnectError("not_found", "m"),  # type: ignore[arg-type]
    lambda: ConnectError(ConnectErrorCode.ABORTED, 5),  # type: ignore[arg-type]
    lambda: ConnectError(ConnectErrorCode.ABORTED, "m", [ConnectErrorDetail("a.B", b"", object())]),
    lambda: ConnectError(ConnectErrorCode.ABORTED, "m", [ConnectErrorDetail("a.B", b"", float("nan"))]),
    lambda: ConnectError(ConnectErrorCode.ABORTED, "m", [ConnectErrorDetail("a.B", "text")]),  # type: ignore[arg-type]
    lambda: ConnectError(ConnectErrorCode.ABORTED, "m", ["text"]),  # type: ignore[list-item]
    lambda: ConnectError(ConnectErrorCode.ABORTED, "\ud800"),
]


def spoiled() -> ConnectError:
    error = ConnectError(ConnectErrorCode.ABORTED, "m")
    error.code = error.message = error.details = None  # type: ignore[assignment]
    return error


@pytest.mark.parametrize("make", [*BROKEN, spoiled])
@pytest.mark.parametrize("method", [UNARY, SERVER])
def test_errors_that_cannot_be_sent(method: Any, make: Callable[[], Exception]) -> None:
    """Whatever a handler makes of an error, the caller gets one that it can read."""

    def handler(request: object) -> Any:
        raise make()

    answer = respond(every(handler), b"" if method is UNARY else BODY, method)
    assert code_in(answer) in ("unknown", "aborted")
    json.loads(answer.body if method is UNARY else frames(answer.body)[-1][1], parse_constant=pytest.fail)


@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI])
@pytest.mark.parametrize(
    "metadata", [{"content-type": "x"}, {"x y": "x"}, {"x": "secret\r\nx: y"}, {"x": 5}, {"connect-x": "1"}, 5]
)
@pytest.mark.parametrize("where", ["headers", "trailers"])
def test_metadata_that_cannot_be_sent(method: Any, where: str, metadata: Any, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: object) -> Any:
        if method.kind.server_streams:
            return ServerStream([reply("a")], **{where: metadata})
        return ServerResponse(reply("a"), **{where: metadata})

    answer = respond(every(handler), b"" if method is UNARY else BODY, method)
    assert code_in(answer) == "unknown"
    assert b"secret" not in answer.body
    assert method.path in caplog.text


def test_a_compression_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        name = "broken"

        def compress(self, data: bytes) -> bytes:
            raise RuntimeError("secret")

        def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
            raise RuntimeError("secret")

    for method, handler in ((UNARY, echo), (SERVER, twice)):
        implementation = types.SimpleNamespace(**{**MISSING, method.python_name: handler})
        app = wsgi_service(SERVICE, implementation, compressions=[Broken()], compress_min_bytes=0)
        body = b"" if method is UNARY else BODY
        answer = respond(app, body, method, headers={"Accept-Encoding": "broken", "Connect-Accept-Encoding": "broken"})
        assert code_in(answer) == "unknown"
        assert b"secret" not in answer.body
        assert "secret" in caplog.text
        caplog.clear()
        sent = {"Content-Encoding": "broken", "Connect-Content-Encoding": "broken"}
        answer = respond(app, b"x" if method is UNARY else frame(b"x", 1), method, headers=sent)
        assert code_in(answer) == "invalid_argument"
        assert b"secret" not in answer.body


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
@pytest.mark.parametrize("method", [UNARY, SERVER])
def test_what_is_no_failure_gets_out(method: Any, error: BaseException) -> None:
    with pytest.raises(type(error)):
        respond(every(fail(error)), b"" if method is UNARY else BODY, method)


def test_what_is_no_failure_gets_out_of_a_stream_after_the_clean_up() -> None:
    cleaned = []

    def handler(request: object) -> Iterator[SourceContext]:
        try:
            yield reply("a")
            raise KeyboardInterrupt
        finally:
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        respond(every(handler), BODY, SERVER)
    assert cleaned == [True]


class StrangeError(BaseException):
    pass


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StrangeError("secret")], ids=repr)
@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI])
def test_what_is_no_exception_is_a_failure_all_the_same(
    method: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """As of an event loop of the handler's own. Some servers end the process for it."""
    body = b"" if method is UNARY else BODY
    answer = respond(every(fail(error)), body, method)
    assert code_in(answer) == "unknown"
    assert b"secret" not in answer.body
    assert f"{method.path} failed" in caplog.text
    assert type(error).__name__ in caplog.text
    if method.kind.server_streams:

        def handler(request: object) -> Iterator[SourceContext]:
            yield reply("a")
            raise error

        assert code_in(respond(every(handler), body, method)) == "unknown"


# Streams that end early


class Messages:
    """An iterator that wants to be closed."""

    def __init__(self, *messages: Any, on_close: Exception | None = None) -> None:
        self._messages = iter(messages)
        self._on_close = on_close
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = next(self._messages)
        if isinstance(message, Exception) and not isinstance(message, ConnectError):
            raise message
        return message

    def close(self) -> None:
        self.closed += 1
        if self._on_close is not None:
            raise self._on_close


@pytest.mark.parametrize("taken", range(4))
def test_the_server_closes_a_stream(taken: int) -> None:
    """As it does when the client has gone, at any point and before the first."""
    cleaned: list[str] = []

    def messages() -> Iterator[SourceContext]:
        try:
            for number in itertools.count():
                yield reply(str(number))
        finally:
            cleaned.append("generator")

    iterator = Messages(*[reply(str(number)) for number in range(9)])
    for result in (messages(), ServerStream(messages()), ServerStream(iterator)):
        parts: Any = every(give(result))(environ(SERVER.path, BODY, STREAM_PROTO), Starter())
        started = 0
        for part in itertools.islice(parts, taken):
            started += bool(part)
        parts.close()
        parts.close()
        del parts, result
    assert iterator.closed == 1
    gc.collect()
    assert cleaned == ["generator"] * 2 if started else cleaned in ([], ["generator"] * 2)


@pytest.mark.parametrize("last", [ABORTED, RuntimeError("secret"), "no message"])
def test_a_stream_that_fails_is_closed(last: object) -> None:
    messages = Messages(reply("a"), last, reply("never"))
    answer = respond(every(give(ServerStream(messages))), BODY, SERVER)
    assert answer.stream()[0] == ["a"]
    assert messages.closed == 1


def test_a_stream_that_cannot_begin_is_closed() -> None:
    messages = Messages(reply("a"))
    answer = respond(every(give(ServerStream(messages, {"connect-x": "1"}))), BODY, SERVER)
    assert answer.failure() == "unknown"
    assert messages.closed == 1


def test_closing_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Everything has been said by then; the log is all that is left."""
    messages = Messages(reply("a"), on_close=RuntimeError("secret"))
    answer = respond(every(give(ServerStream(messages))), BODY, SERVER)
    assert answer.stream() == (["a"], {})
    assert b"secret" not in answer.body
    assert "secret" in caplog.text
    caplog.clear()
    parts: Any = every(give(ServerStream(Messages(reply("a"), on_close=RuntimeError("secret")))))(
        environ(SERVER.path, BODY, STREAM_PROTO), Starter()
    )
    next(iter(parts))
    parts.close()
    assert "secret" in caplog.text


def test_a_generator_that_yields_while_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: object) -> Iterator[SourceContext | ConnectError]:
        try:
            yield ABORTED
        finally:
            yield reply("never")

    assert respond(every(handler), BODY, SERVER).failure() == "aborted"
    assert "ignored GeneratorExit" in caplog.text


def test_what_was_not_read_is_read_at_the_end() -> None:
    stream = Input(BODY * 1000, 1000)
    answer = respond(every(give([reply("a")])), BODY * 1000, BIDI, wsgi_input=stream)
    assert answer.stream() == (["a"], {})
    assert stream.rest == b""


def test_the_head_goes_out_before_the_first_message() -> None:
    """The client may be waiting for it; and some servers want to be told before the app has returned."""
    started = []

    def handler(request: object) -> Iterator[SourceContext]:
        started.append(True)
        yield reply("a")

    start = Starter()
    parts = iter(every(handler)(environ(SERVER.path, BODY, STREAM_PROTO), start))
    assert start.status == "200 OK"
    assert next(parts) == b""
    assert not started
    assert next(parts)


def test_messages_go_out_one_by_one() -> None:
    made: list[int] = []

    def handler(request: object) -> Iterator[SourceContext]:
        for number in range(3):
            made.append(number)
            yield reply(str(number))

    parts = every(handler)(environ(SERVER.path, BODY, STREAM_PROTO), Starter())
    counts = [len(made) for part in parts if part]
    assert counts == [1, 2, 3, 3]


# Requests that break off in a handler's hands


def test_a_handler_sees_why_its_stream_broke_off() -> None:
    seen: list[ConnectError] = []

    def handler(request: ClientStream[EnumValue]) -> SourceContext:
        try:
            for _ in request:
                pass
        except ConnectError as error:
            seen.append(error)
            raise
        return reply()

    answer = respond(every(handler), BODY + b"\0\0", CLIENT)
    assert answer.failure() == "invalid_argument"
    assert [error.code for error in seen] == [ConnectErrorCode.INVALID_ARGUMENT]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "unimplemented"),
        (BODY * 2, "unimplemented"),
        (BODY[:-1], "invalid_argument"),
        (b"\0", "invalid_argument"),
        (frame(b"", 2), "invalid_argument"),
    ],
)
def test_not_exactly_one_request(body: bytes, code: str) -> None:
    for stream in (Input(body), Input(body, 1)):
        assert respond(ECHO, body, SERVER, wsgi_input=stream).failure() == code


# Deadlines


def test_a_deadline_that_has_passed_calls_nobody() -> None:
    for method, body in CALLS:
        answer = respond(wsgi(), body, method, headers={"Connect-Timeout-Ms": "0"})
        assert code_in(answer) == "deadline_exceeded"
        if method is UNARY:
            assert answer.status == 504


@pytest.mark.parametrize("limit", [True, False])
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI])
def test_a_late_result_is_not_sent(method: Any, limit: bool) -> None:
    def handler(request: Any) -> Any:
        time.sleep(0.03)
        assert request.timeout.expired()
        return [reply("late")] if method.kind.server_streams else reply("late")

    handlers_ = {**MISSING, method.python_name: handler}
    options: dict[str, Any] = {"max_timeout_seconds": 0.02} if limit else {}
    headers = {} if limit else {"Connect-Timeout-Ms": "20"}
    app = wsgi_service(SERVICE, types.SimpleNamespace(**handlers_), **options)
    answer = respond(app, b"" if method is UNARY else BODY, method, headers=headers)
    assert code_in(answer) == "deadline_exceeded"
    assert b"late" not in answer.body


def test_a_deadline_ends_a_stream() -> None:
    cleaned = []

    def handler(request: object) -> Iterator[SourceContext]:
        try:
            yield reply("in time")
            time.sleep(0.03)
            yield reply("late")
            yield reply("never")
        finally:
            cleaned.append(True)

    answer = respond(every(handler), BODY, SERVER, headers={"Connect-Timeout-Ms": "20"})
    texts, end = answer.stream()
    assert texts == ["in time"]
    assert end["error"]["code"] == "deadline_exceeded"
    assert cleaned == [True]


def test_a_deadline_ends_a_request_that_drips() -> None:
    class Slow(Input):
        def read(self, size: int = -1) -> bytes:
            time.sleep(0.02)
            return super().read(size)

    seen = []

    def handler(request: ClientStream[EnumValue]) -> SourceContext:
        for message in request:
            seen.append(message)  # noqa: PERF402
        return reply()

    body = BODY * 100
    answer = respond(
        every(handler), body, CLIENT, wsgi_input=Slow(body, len(BODY)), headers={"Connect-Timeout-Ms": "200"}
    )
    assert answer.failure() == "deadline_exceeded"
    assert 0 < len(seen) < 50


@pytest.mark.parametrize(
    "kind",
    # Three classes on Python 3.10, one from 3.11 on.
    [TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError, type("MineError", (TimeoutError,), {})],
)
def test_a_timeout_after_the_deadline_is_the_deadline(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: object) -> Any:
        time.sleep(0.03)
        raise kind("secret")

    assert respond(every(handler), headers={"Connect-Timeout-Ms": "20"}).code() == "deadline_exceeded"
    assert not caplog.records


@pytest.mark.parametrize(("sent", "given"), [("60000", 60_000), ("9999999999", 100_000), (None, 100_000)])
def test_the_server_caps_deadlines(sent: str | None, given: int) -> None:
    app = wsgi_service(
        SERVICE,
        types.SimpleNamespace(unary=lambda request: reply(str(request.timeout.timeout_ms))),
        max_timeout_seconds=100,
    )
    headers = {} if sent is None else {"Connect-Timeout-Ms": sent}
    assert respond(app, headers=headers).message().file_name == str(given)


# Applications


def test_status_lines() -> None:
    """``http.HTTPStatus`` has no 499."""
    for code in ConnectErrorCode:
        start = Starter()
        list(every(fail(ConnectError(code)))(environ(), start))
        number, _, phrase = start.status.partition(" ")
        assert int(number) == code.http_status
        assert phrase
        assert phrase.isascii()


@pytest.mark.parametrize("http_method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_not_posted(http_method: str) -> None:
    answer = respond(ECHO, REQUEST_METHOD=http_method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


def test_plain_answers() -> None:
    assert respond(ECHO, content_type="text/plain").status == 415
    assert respond(ECHO, content_type="text/plain").accept_post() == accepted(UNARY)
    assert call_wsgi(ECHO, environ("/unknown")).status == 404
    assert call_wsgi(ECHO, environ(PATH_INFO=None)).status == 404
    assert respond(ECHO, CONTENT_TYPE=None).status == 415


def test_curl() -> None:
    """No header but the media type, which curl is told by hand."""
    answer = respond(ECHO, b'{"name": "a"}', UNARY, "Application/JSON; charset=UTF-8")
    assert (answer.status, answer.media_type, answer.body) == (200, JSON, b'{"fileName":"a"}')


@pytest.mark.parametrize(
    ("prefix", "path", "status"),
    [
        ("", UNARY.path, 200),
        ("/", UNARY.path, 200),
        ("/api", "/api" + UNARY.path, 200),
        ("/api/", "/api" + UNARY.path, 200),
        ("/a/b", "/a/b" + UNARY.path, 200),
        ("/api", UNARY.path, 404),
        ("/api", "/API" + UNARY.path, 404),
        ("/api", "/api/v2" + UNARY.path, 404),
    ],
)
def test_prefix(prefix: str, path: str, status: int) -> None:
    app = wsgi_service(SERVICE, types.SimpleNamespace(unary=echo), prefix=prefix)
    assert call_wsgi(app, environ(path)).status == status


def test_mounted() -> None:
    """A framework has taken off what it has mounted the app at."""
    assert respond(ECHO, SCRIPT_NAME="/api").status == 200


OTHER = Service(
    "test.v1.Other", [Method("test.v1.Other", "Unary", MethodKind.UNARY, EnumValue, SourceContext, python_name="unary")]
)


def test_several_services() -> None:
    app = wsgi_app(
        wsgi_service(SERVICE, types.SimpleNamespace(unary=give(reply("one")))),
        wsgi_service(OTHER, types.SimpleNamespace(unary=give(reply("other"))), prefix="/p"),
    )
    assert call_wsgi(app, environ(UNARY.path)).message() == reply("one")
    assert call_wsgi(app, environ("/p/test.v1.Other/Unary")).message() == reply("other")
    assert call_wsgi(app, environ("/test.v1.Other/Unary")).status == 404
    assert call_wsgi(wsgi_app(app), environ(UNARY.path)).message() == reply("one")
    assert call_wsgi(wsgi_app(), environ(UNARY.path)).status == 404


def test_services_that_clash() -> None:
    with pytest.raises(ValueError, match="EchoService/Unary"):
        wsgi_app(ECHO, wsgi_service(SERVICE, types.SimpleNamespace()))
    apart = wsgi_service(SERVICE, types.SimpleNamespace(unary=give(reply("v2"))), prefix="/v2")
    assert call_wsgi(wsgi_app(ECHO, apart), environ("/v2" + UNARY.path)).message() == reply("v2")


# Implementations


@typing.runtime_checkable
class EchoServiceProtocol(typing.Protocol):
    """As it is generated."""

    def unary(self, request: ClientRequest[EnumValue], /) -> SourceContext: ...
    def server(self, request: ClientRequest[EnumValue], /) -> Iterator[SourceContext]: ...


@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI])
def test_methods_that_are_lacking(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Partial:
        client = "not a method"

    app = wsgi_service(SERVICE, Partial())
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(METHODS)
    assert {record.name for record in caplog.records} == {"connectrpc.server"}
    assert f"Partial has no {method.python_name}()" in caplog.text
    caplog.clear()
    answer = respond(app, b"" if method is UNARY else BODY, method)
    assert code_in(answer) == "unimplemented"
    if method is UNARY:
        assert answer.status == 501
        assert method.path in answer.error()["message"]
    assert not caplog.records, "it was logged once"


def test_empty_methods_of_the_protocol_serve_nothing() -> None:
    class Inheriting(EchoServiceProtocol):
        def unary(self, request: ClientRequest[EnumValue], /) -> SourceContext:
            return reply("mine")

    app = wsgi_service(SERVICE, Inheriting())  # type: ignore[abstract]
    assert respond(app).message() == reply("mine")
    assert respond(app, BODY, SERVER).failure() == "unimplemented"


def test_methods_set_on_the_instance() -> None:
    class Inheriting(EchoServiceProtocol):
        def __init__(self) -> None:
            self.unary = echo  # type: ignore[method-assign]

    implementation: Any = Inheriting()  # type: ignore[abstract]
    assert respond(wsgi_service(SERVICE, implementation), ask("a").SerializeToString()).message() == reply("a")


def test_implementations_of_all_kinds() -> None:
    class Base:
        def unary(self, request: object) -> SourceContext:
            return reply("base")

    class Derived(Base):
        pass

    class Static:
        unary = staticmethod(give(reply("static")))

    class Delegating:
        def __getattr__(self, name: str) -> Any:
            if name == "unary":
                return give(reply("delegated"))
            raise AttributeError(name)

    module = types.ModuleType("implementation")
    module.unary = give(reply("module"))  # type: ignore[attr-defined]
    for implementation, text in (
        (Derived(), "base"),
        (Static(), "static"),
        (Delegating(), "delegated"),
        (module, "module"),
    ):
        assert respond(wsgi_service(SERVICE, implementation)).message().file_name == text


def test_a_class_is_no_implementation() -> None:
    class Mine:
        def unary(self, request: object) -> SourceContext:
            return reply()

    with pytest.raises(TypeError, match="Mine is a class"):
        wsgi_service(SERVICE, Mine)


def test_async_handlers_are_refused() -> None:
    class Coroutine:
        async def unary(self, request: object) -> SourceContext:
            return reply()

    class Generator:
        async def server(self, request: object) -> Any:
            yield reply()

    for implementation in (Coroutine(), Generator()):
        with pytest.raises(TypeError, match="async"):
            wsgi_service(SERVICE, implementation)


def test_an_async_result_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Where it could not be seen when the app was built."""

    async def messages() -> Any:
        yield reply()

    assert respond(every(lambda request: messages()), BODY, SERVER).failure() == "unknown"
    assert "connectrpc.server" in {record.name for record in caplog.records}


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "api"},
        {"max_timeout_seconds": 0},
        {"max_timeout_seconds": -1},
        {"max_timeout_seconds": float("nan")},
        {"max_timeout_seconds": float("inf")},
        {"compressions": ["compress"]},
        {"read_max_bytes": -1},
        {"read_max_bytes": 1.5},
        {"compress_min_bytes": -1},
        {"compress_min_bytes": "x"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        wsgi_service(SERVICE, types.SimpleNamespace(), **options)


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="prefixx"):
        wsgi_service(SERVICE, types.SimpleNamespace(), prefixx="/x")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        wsgi_service(SERVICE, types.SimpleNamespace(), compressions="gzip")
    with pytest.raises(TypeError, match="max_timeout_seconds"):
        wsgi_service(SERVICE, types.SimpleNamespace(), max_timeout_seconds="3")  # type: ignore[arg-type]


def test_options() -> None:
    big = ask("x" * 2000).SerializeToString()
    plain = types.SimpleNamespace(unary=echo)
    assert respond(wsgi_service(SERVICE, plain, read_max_bytes=len(big)), big).message().file_name == "x" * 2000
    assert respond(wsgi_service(SERVICE, plain, read_max_bytes=len(big) - 1), big).code() == "resource_exhausted"
    assert respond(wsgi_service(SERVICE, plain, read_max_bytes=None), big).message().file_name == "x" * 2000
    accepting = {"Accept-Encoding": "br, gzip"}
    given: list[Any] = [{}, {"compressions": ["gzip"]}, {"compressions": ()}, {"compress_min_bytes": 5000}]
    answers = [
        respond(wsgi_service(SERVICE, plain, **options), big, headers=accepting).headers.get("content-encoding")
        for options in given
    ]
    assert answers == ["br", "gzip", None, None]


@pytest.mark.parametrize(("size", "compressed"), [(1023, False), (1024, True)])
def test_what_is_small_is_not_compressed_by_default(size: int, compressed: bool) -> None:
    message = reply("x" * (size - 3))
    assert len(message.SerializeToString()) == size
    app = every(give(message))
    answer = respond(app, headers={"Accept-Encoding": "gzip"})
    assert ("content-encoding" in answer.headers) is compressed
    answer = respond(every(give([message])), BODY, SERVER, headers={"Connect-Accept-Encoding": "gzip"})
    assert (frames(answer.body)[0][0] == 1) is compressed


@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI])
def test_limit_for_sending(method: Any) -> None:
    messages = [reply("a"), reply("x" * 2000), reply("never")]
    result: Any = messages if method.kind.server_streams else messages[1]
    implementation = types.SimpleNamespace(**{method.python_name: give(result)})
    for headers in ({}, {"Accept-Encoding": "gzip", "Connect-Accept-Encoding": "gzip"}):
        app = wsgi_service(SERVICE, implementation, send_max_bytes=1000)
        answer = respond(app, b"" if method is UNARY else BODY, method, headers=headers)
        assert code_in(answer) == "resource_exhausted"
        if method.kind.server_streams:
            assert answer.stream()[0] == ["a"]


def test_the_default_limit() -> None:
    """4 MiB: enough for most, and not enough to exhaust a server."""
    big = ask("x" * 4_300_000).SerializeToString()
    assert respond(ECHO, big).code() == "resource_exhausted"
    assert respond(ECHO, b"".join(pieces(big, 0))[: 4 * 1024 * 1024 + 1]).code() == "resource_exhausted"
    fits = ask("x" * (4 * 1024 * 1024 - 5)).SerializeToString()
    assert len(fits) == 4 * 1024 * 1024
    assert respond(ECHO, fits).status == 200


def test_the_name_of_the_service() -> None:
    assert UNARY.path == f"/{NAME}/Unary"
