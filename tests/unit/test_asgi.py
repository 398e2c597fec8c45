"""ASGI applications, called as servers of every kind call them."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import sys
import time
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks
from connectrpc.method import Method, MethodKind, Service
from connectrpc.server import (
    AsyncClientStream,
    ClientRequest,
    InThreads,
    ServerResponse,
    ServerStream,
    asgi_app,
    asgi_request,
    asgi_service,
)
from harness import (
    BIDI,
    CLIENT,
    DISCONNECT,
    JSON,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    USUAL,
    Answer,
    Connection,
    accepted,
    asgi,
    ask,
    asked,
    body_events,
    call_asgi,
    exchange,
    frame,
    part,
    reply,
    scope,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from connectrpc.server import ASGIApplication
    from harness import Event


@pytest.fixture(autouse=True, params=[False, True], ids=["bare", "versioned"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with and without what clients always send."""
    if request.param:
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")


ABORTED = ConnectError(ConnectErrorCode.ABORTED, "m")
BODY = asked(ask("a"))
STREAMING = [SERVER, CLIENT, BIDI]
ALL = [UNARY, *STREAMING]


def request_of(method: Any, headers: Sequence[tuple[str, str]] = (), **changes: Any) -> dict[str, Any]:
    return scope(method.path, PROTO if method.kind is MethodKind.UNARY else STREAM_PROTO, headers, **changes)


def body_of(method: Any) -> bytes:
    return ask("a").SerializeToString() if method.kind is MethodKind.UNARY else BODY


def respond(
    app: ASGIApplication,
    method: Any = UNARY,
    body: bytes | None = None,
    size: int = 0,
    headers: Sequence[tuple[str, str]] = (),
    **changes: Any,
) -> Answer:
    return call_asgi(app, request_of(method, headers, **changes), body_of(method) if body is None else body, size)


def run(
    app: ASGIApplication,
    method: Any,
    events: Sequence[Event | float | BaseException],
    headers: Sequence[tuple[str, str]] = (),
    on_send: Callable[[Event], Awaitable[None]] | None = None,
) -> Connection:
    return exchange(app, request_of(method, headers), events, on_send)


def code_in(answer: Answer) -> str:
    return answer.failure() if answer.media_type == STREAM_PROTO else answer.code()


async def echo(request: ClientRequest[EnumValue]) -> SourceContext:
    return reply(request.msg.name)


async def join(request: AsyncClientStream[EnumValue]) -> SourceContext:
    return reply(",".join([message.name async for message in request]))


async def each(request: AsyncClientStream[EnumValue]) -> AsyncIterator[SourceContext]:
    async for message in request:
        yield reply(message.name)


async def twice(request: ClientRequest[EnumValue]) -> AsyncIterator[SourceContext]:
    yield reply(request.msg.name + "1")
    yield reply(request.msg.name + "2")


ECHO = asgi(unary=echo, pure=echo, client=join, server=twice, bidi=each)
EXPECTED = {UNARY: ["a"], SERVER: ["a1", "a2"], CLIENT: ["a"], BIDI: ["a"]}


def texts_of(method: Any, answer: Answer) -> list[str]:
    if method.kind is MethodKind.UNARY:
        return [answer.message().file_name]
    texts, end = answer.stream()
    assert "error" not in end, end
    return texts


def every(handler: Callable[[Any], Any]) -> ASGIApplication:
    return asgi(**{method.python_name: handler for method in METHODS})


def give(result: Any) -> Callable[[object], Any]:
    async def handler(request: object) -> Any:
        return result

    return handler


def fail(error: BaseException) -> Callable[[object], Any]:
    async def handler(request: object) -> Any:
        raise error

    return handler


# Requests


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("method", ALL)
def test_bodies_in_pieces(method: Any, size: int) -> None:
    assert texts_of(method, respond(ECHO, method, size=size)) == EXPECTED[method]


@pytest.mark.parametrize("method", ALL)
def test_events_as_servers_vary_them(method: Any) -> None:
    """All keys but the type have defaults; an event may carry nothing; the end may come by itself."""
    body = body_of(method)
    for events in (
        [{"type": "http.request", "body": body}],
        [part(b"", True), part(body[:3], True), part(b"", True), part(body[3:], True), part()],
        [part(body, True), {"type": "http.request"}],
    ):
        assert texts_of(method, run(ECHO, method, events).answer()) == EXPECTED[method]


def test_an_empty_body() -> None:
    for events in ([part()], [{"type": "http.request"}]):
        assert run(ECHO, UNARY, events).answer().message() == reply()
    # uvicorn over HTTP/2: the end came with the head, and receive() never returns
    assert run(ECHO, UNARY, [], [("content-length", "0")]).answer().message() == reply()


@pytest.mark.parametrize("path", [UNARY.path, PURE.path, "/unknown"])
@pytest.mark.parametrize("http_method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_what_has_no_body_is_not_received(path: str, http_method: str) -> None:
    """On uvicorn over HTTP/2 ``receive`` never returns then."""
    connection = exchange(ECHO, scope(path, None, method=http_method, query_string=b"encoding=proto&message="), [])
    expected = 404 if path == "/unknown" else 200 if (path, http_method) == (PURE.path, "GET") else 405
    assert connection.answer().status == expected
    assert connection.receives == 0


@pytest.mark.parametrize("http_method", ["GET", "OPTIONS", "DELETE"])
def test_a_body_of_what_has_none_by_rights_is_read(http_method: str) -> None:
    """A client that is still sending may lose an answer that comes before its end."""
    given = scope(UNARY.path, PROTO, [("Transfer-Encoding", "chunked")], method=http_method)
    connection = exchange(ECHO, given, [part(b"one", True), part(b"two", False)])
    assert connection.answer().status == 405
    assert connection.receives == 2


@pytest.mark.parametrize("length", ["-1", "+5", "abc", "5, 5", "", "1_0"])
def test_lengths_that_are_none(length: str) -> None:
    assert respond(ECHO, headers=[("content-length", length)]).status == 400


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("method", ALL)
def test_too_large(method: Any, size: int) -> None:
    app = asgi_service(
        SERVICE, types.SimpleNamespace(unary=echo, client=join, server=twice, bidi=each), read_max_bytes=2
    )
    connection = run(app, method, body_events(body_of(method) * 100, size))
    assert code_in(connection.answer()) == "resource_exhausted"
    assert connection.left == 0, "clients lose an answer that overtakes their request"


@pytest.mark.parametrize("path", ["/unknown", UNARY.path])
def test_what_nobody_asked_for_is_read_to_its_end(path: str) -> None:
    connection = exchange(ECHO, scope(path, "text/plain"), body_events(b"x" * 1000, 100))
    assert connection.answer().status in (404, 415)
    assert connection.left == 0


def test_reading_on_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_request, "DRAIN_MAX_BYTES", 2000)
    connection = exchange(ECHO, scope("/unknown"), body_events(b"x" * 100_000, 1000))
    assert connection.answer().status == 404
    assert connection.left > 90


def test_reading_on_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends nothing more may be waiting for the answer."""
    monkeypatch.setattr(asgi_request, "DRAIN_IDLE_SECONDS", 0.02)
    for path in ("/unknown", UNARY.path):
        connection = exchange(ECHO, scope(path, "text/plain"), [part(b"x", True), 0.5, part(b"x")])
        assert connection.answer().status in (404, 415)


def test_a_client_that_waits_for_its_answer_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_request, "DRAIN_IDLE_SECONDS", 0.02)
    connection = run(every(fail(ABORTED)), BIDI, [part(BODY, True), 0.5, part(BODY)])
    assert connection.answer().failure() == "aborted"


@pytest.mark.parametrize("how", ["end", "error", "ConnectError"])
def test_an_early_end_drains(how: str) -> None:
    async def handler(request: object) -> AsyncIterator[Any]:
        yield reply("a")
        if how == "error":
            raise ABORTED
        if how == "ConnectError":
            yield ABORTED

    connection = run(every(handler), BIDI, body_events(BODY * 100, 50))
    answer = connection.answer()
    assert answer.stream()[0] == ["a"]
    assert connection.left == 0


def test_over_http_2_a_client_that_goes_on_does_not_hold_its_answer_back() -> None:
    """Nor does it spend the caller's deadline, which has the answer to wait for."""
    drip: list[Any] = [item for _ in range(500) for item in (0.01, part(BODY, True))]
    for handler in (fail(ABORTED), give(reply("a"))):
        start = time.monotonic()
        connection = exchange(every(handler), {**request_of(CLIENT), "http_version": "2"}, [*drip, part()])
        assert connection.complete
        assert time.monotonic() - start < 2


def test_over_http_2_what_is_on_its_way_is_read_and_nobody_waits_for_more() -> None:
    """An upload that nobody takes would stay in its client; one that goes on later belongs to a call that is over."""
    for path, method, app in (("/unknown", UNARY, ECHO), (BIDI.path, BIDI, every(fail(ABORTED)))):
        rest = body_events(BODY * 100, 50)[:-1]
        made = {**request_of(method), "path": path, "http_version": "2"}
        connection = exchange(app, made, [*rest, 1.0, part(BODY)])
        answer = connection.answer()
        assert answer.status == 404 if path == "/unknown" else answer.failure() == "aborted"
        assert connection.left == 1
        assert "connection" not in answer.headers  # which HTTP/2 knows not


def test_messages_are_given_as_they_come() -> None:
    """A message is answered before the next one is there."""
    log: list[str] = []

    async def note(event: Event) -> None:
        if event.get("body"):
            log.append("sent")

    class Noting(Connection):
        async def receive(self) -> Event:
            log.append("received")
            return await super().receive()

    connection = Noting(body_events(asked(ask("1")) + asked(ask("2")), len(asked(ask("1")))), note)
    asyncio.run(serve(ECHO, request_of(BIDI), connection))
    assert connection.answer().stream()[0] == ["1", "2"]
    assert log.index("sent") < [index for index, entry in enumerate(log) if entry == "received"][-1] + 1
    assert log.count("sent") == 3


# Paths


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("", UNARY.path, 200),
        ("/api", UNARY.path, 200),
        ("/api", "/api" + UNARY.path, 200),
        ("/api/", "/api" + UNARY.path, 200),
        ("/a/b", "/a/b" + UNARY.path, 200),
        ("/api", "/apix" + UNARY.path, 404),
        ("/api", "/api/api" + UNARY.path, 404),
        ("/test", UNARY.path, 200),  # not at the boundary of a segment
        ("/test.v1.EchoService", UNARY.path, 404),
        ("/", UNARY.path, 200),
        ("/api", "/v2" + UNARY.path, 404),
    ],
)
def test_root_path(root_path: str, path: str, status: int) -> None:
    """Servers and frameworks differ in whether ``path`` holds it."""
    assert call_asgi(ECHO, scope(path, root_path=root_path)).status == status


def test_no_root_path() -> None:
    made = scope()
    del made["root_path"]
    assert call_asgi(ECHO, made).status == 200


def test_prefix() -> None:
    app = asgi_service(SERVICE, types.SimpleNamespace(unary=echo), prefix="/v1/")
    assert call_asgi(app, scope("/v1" + UNARY.path)).status == 200
    assert call_asgi(app, scope("/api/v1" + UNARY.path, root_path="/api")).status == 200
    assert call_asgi(app, scope(UNARY.path)).status == 404


OTHER = Service(
    "test.v1.Other", [Method("test.v1.Other", "Unary", MethodKind.UNARY, EnumValue, SourceContext, python_name="unary")]
)


def test_several_services() -> None:
    app = asgi_app(
        asgi_service(SERVICE, types.SimpleNamespace(unary=give(reply("one")))),
        asgi_service(OTHER, types.SimpleNamespace(unary=give(reply("other"))), prefix="/p"),
    )
    assert call_asgi(app, scope(UNARY.path)).message() == reply("one")
    assert call_asgi(app, scope("/p/test.v1.Other/Unary")).message() == reply("other")
    assert call_asgi(app, scope("/test.v1.Other/Unary")).status == 404
    with pytest.raises(ValueError, match="served twice"):
        asgi_app(app, asgi_service(SERVICE, types.SimpleNamespace()))


@pytest.mark.parametrize("http_method", ["GET", "PUT", "OPTIONS"])
def test_not_posted(http_method: str) -> None:
    answer = respond(ECHO, method=UNARY) if http_method == "" else call_asgi(ECHO, scope(method=http_method))
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


def test_media_types() -> None:
    assert call_asgi(ECHO, scope(UNARY.path, "text/plain")).accept_post() == accepted(UNARY)
    assert call_asgi(ECHO, scope(UNARY.path, None)).status == 415
    answer = call_asgi(ECHO, scope(UNARY.path, "Application/JSON; charset=utf-8"), b'{"name":"a"}')
    assert (answer.status, answer.media_type, answer.body) == (200, JSON, b'{"fileName":"a"}')


def test_repeated_list_headers() -> None:
    """RFC 9110 section 5.3: several lines are one list."""
    app = asgi_service(SERVICE, types.SimpleNamespace(unary=echo), compress_min_bytes=0)
    for headers in (
        [("accept-encoding", "gzip"), ("accept-encoding", "x-none")],
        [("accept-encoding", "x-none"), ("accept-encoding", "gzip")],
    ):
        assert respond(app, headers=headers).headers.get("content-encoding") == "gzip"


# Handlers


@pytest.mark.parametrize("method", ALL)
def test_what_a_handler_sees(method: Any) -> None:
    seen: list[Any] = []

    async def handler(request: Any) -> Any:
        seen.append(request)
        return ABORTED

    headers = [("x-plain", "a,b"), ("x-plain", "c"), ("x-data-bin", "AAE"), ("connect-timeout-ms", "60000")]
    respond(every(handler), method, headers=headers)
    (request,) = seen
    assert request.method is method
    assert request.headers.getall("X-Plain") == ["a,b", "c"]
    assert request.headers["x-data-bin"] == "AAE"
    assert request.timeout.timeout_ms == 60_000
    assert (request.peer.address, request.peer.protocol) == ("192.0.2.1:1234", "connect")
    if not method.kind.client_streams:
        assert request.msg == ask("a")


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        (("::1", 80), "[::1]:80"),
        (["192.0.2.9", 80], "192.0.2.9:80"),
        ((), ""),
        (("", "0"), ""),  # granian on a Unix socket
        (("192.0.2.9", 0), "192.0.2.9"),  # uvicorn, of what a proxy tells
        (("::1", 0), "[::1]"),
    ],
)
def test_addresses_of_peers(client: Any, address: str) -> None:
    app = every(lambda request: reply(request.peer.address))
    assert respond(app, client=client).message().file_name == address
    made = scope()
    del made["client"]
    assert call_asgi(app, made).message().file_name == ""


def test_what_unary_handlers_give() -> None:
    for handler in (give(reply("a")), lambda request: reply("a"), give(ServerResponse(reply("a")))):
        assert respond(every(handler)).message() == reply("a")
    answer = respond(every(give(ServerResponse(reply("a"), {"x-h": "1"}, {"x-t": "2"}))))
    assert (answer.headers["x-h"], answer.headers["trailer-x-t"]) == ("1", "2")
    for handler in (give(ABORTED), give(ServerResponse(ABORTED)), fail(ABORTED)):
        assert respond(every(handler)).error() == {"code": "aborted", "message": "m"}


async def stream_of(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        await asyncio.sleep(0)
        yield message


@pytest.mark.parametrize("method", [SERVER, BIDI])
def test_what_streaming_handlers_give(method: Any) -> None:
    """An async generator, or ``ServerStream`` or an iterable of either colour, with or without awaiting."""

    class Iterable:
        def __aiter__(self) -> AsyncIterator[Any]:
            return stream_of(reply("a"), reply("b"))

    messages = [reply("a"), reply("b")]
    made: list[Callable[[], Any]] = [
        lambda: stream_of(*messages),
        lambda: messages,
        lambda: iter(messages),
        Iterable,
        lambda: ServerStream(stream_of(*messages)),
        lambda: ServerStream(messages),
        lambda: ServerStream(Iterable()),
    ]
    for make in made:
        handlers: list[Any] = [lambda request, make=make: make(), lambda request, make=make: give(make())(request)]
        for handler in handlers:
            assert respond(every(handler), method).stream() == (["a", "b"], {})
    texts, end = respond(every(lambda request: stream_of(reply("a"), ABORTED, reply("never"))), method).stream()
    assert (texts, end) == (["a"], {"error": {"code": "aborted", "message": "m"}})
    for handler in [fail(ABORTED), give(ABORTED), lambda request: stream_of(ABORTED)]:
        assert respond(every(handler), method).stream() == ([], {"error": {"code": "aborted", "message": "m"}})


def test_metadata_of_streams() -> None:
    async def handler(request: object) -> ServerStream[SourceContext]:
        async def messages() -> AsyncIterator[SourceContext]:
            yield reply("a")
            stream.trailers["x-late"] = "2"

        stream = ServerStream(messages(), {"x-h": "1"}, {"x-early": "1"})
        return stream

    answer = respond(every(handler), SERVER)
    assert answer.headers["x-h"] == "1"
    assert answer.stream() == (["a"], {"metadata": {"x-early": ["1"], "x-late": ["2"]}})


WRONG = [None, "text", b"bytes", 5, ask("a request"), object(), SourceContext]


@pytest.mark.parametrize("result", WRONG)
@pytest.mark.parametrize("method", ALL)
def test_wrong_results(method: Any, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert code_in(respond(every(give(result)), method)) == "unknown"
    assert method.path in caplog.text


@pytest.mark.parametrize("message", WRONG)
def test_wrong_messages_of_streams(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts, end = respond(every(lambda request: stream_of(reply("a"), message, reply("never"))), SERVER).stream()
    assert texts == ["a"]
    assert end["error"]["code"] == "unknown"
    assert "server() gave" in caplog.text


SECRETS: list[Exception] = [
    RuntimeError("secret"),
    StopIteration("secret"),
    StopAsyncIteration("secret"),
    TimeoutError("secret"),
    asyncio.TimeoutError("secret"),
    OSError("secret"),
]


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("error", SECRETS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ALL)
def test_exceptions_are_not_told(method: Any, error: Exception, wait: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> Any:
        if wait:
            await asyncio.sleep(0)
        raise error

    answer = respond(every(handler), method)
    assert code_in(answer) == "unknown"
    assert b"secret" not in answer.body
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("connectrpc.server", logging.ERROR)
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("wait", [False, True])
def test_exceptions_in_a_stream_are_not_told(wait: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> AsyncIterator[SourceContext]:
        yield reply("a")
        if wait:
            await asyncio.sleep(0)
        raise RuntimeError("secret")

    answer = respond(every(handler), SERVER)
    assert answer.stream()[0] == ["a"]
    assert answer.failure() == "unknown"
    assert b"secret" not in answer.body
    assert len(caplog.records) == 1


def test_errors_of_the_service_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for method in ALL:
        respond(every(fail(ABORTED)), method)
    respond(ECHO, UNARY, b"\xff")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("where", ["headers", "trailers"])
def test_metadata_that_cannot_be_sent(method: Any, where: str, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: object) -> Any:
        if method.kind.server_streams:
            return ServerStream([reply("a")], **{where: {"x": "secret\n"}})
        return ServerResponse(reply("a"), **{where: {"x": "secret\n"}})

    answer = respond(every(handler), method)
    assert code_in(answer) == "unknown"
    assert b"secret" not in answer.body
    assert method.path in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_is_no_failure_gets_out(error: BaseException) -> None:
    """Not through ``asyncio.run``, which would be stopped by it: a server's loop sees the same."""
    for method in ALL:
        connection = Connection(body_events(body_of(method)))
        coroutine: Any = every(fail(error))(request_of(method), connection.receive, connection.send)
        with pytest.raises(type(error)):
            coroutine.send(None)


class StrangeError(BaseException):
    pass


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("error", [StrangeError("secret"), GeneratorExit("secret")], ids=repr)
@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_what_is_no_exception_is_a_failure_all_the_same(
    method: Any, error: BaseException, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Some servers end the connection for it, with all of its calls."""

    async def handler(request: Any) -> Any:
        if waits:
            await asyncio.sleep(0)
        raise error

    async def stream(request: Any) -> Any:
        yield reply("a")
        if waits:
            await asyncio.sleep(0)
        raise error

    streams = method.kind.server_streams and not isinstance(error, GeneratorExit)
    for given in [handler, stream] if streams else [handler]:
        caplog.clear()
        answer = respond(every(given), method)
        assert code_in(answer) == "unknown"
        assert b"secret" not in answer.body
        assert f"{method.path} failed" in caplog.text
        assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_clean_up_that_raises_what_is_no_exception(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The stream has its end all the same."""

    async def handler(request: Any) -> Any:
        try:
            yield reply("a")
            yield ABORTED
        finally:
            raise StrangeError("secret")

    answer = respond(every(handler), method)
    assert code_in(answer) in ("aborted", "unknown")
    assert b"secret" not in answer.body
    assert "StrangeError" in caplog.text


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_a_call_that_is_closed_while_it_cleans_up(method: Any) -> None:
    """As when the loop ends: a coroutine has to let that happen."""

    async def slow(request: Any) -> Any:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
        return reply("a")

    async def stream(request: Any) -> Any:
        yield await slow(request)

    @types.coroutine
    def close_while_it_cleans_up(coroutine: Any) -> Any:
        pending = coroutine.send(None)
        while True:
            try:
                yield pending
            except asyncio.CancelledError as error:  # it is the deadline's
                coroutine.throw(error)
                break
            pending = coroutine.send(None)
        coroutine.close()

    async def main() -> None:
        connection = Connection([part(body_of(method))])
        handler = stream if method.kind.server_streams else slow
        made = request_of(method, [("connect-timeout-ms", "50")])
        await close_while_it_cleans_up(every(handler)(made, connection.receive, connection.send))
        assert not connection.complete

    asyncio.run(main())


# Waiting


def test_a_handler_that_never_waits_starts_nothing() -> None:
    """No task, no timer, and not one ``receive`` more than the request needs: that is what watching costs."""
    tasks: list[int] = []

    async def handler(request: Any) -> Any:
        tasks.append(len(asyncio.all_tasks()))
        return ABORTED if request.method.kind.server_streams else reply()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers: list[object] = []
        call_later = loop.call_later
        loop.call_later = lambda *args, **kwargs: timers.append(args) or call_later(*args, **kwargs)  # type: ignore[method-assign,func-returns-value]
        for method in (UNARY, SERVER):
            connection = Connection([part(body_of(method)), DISCONNECT])
            await every(handler)(
                request_of(method, [("connect-timeout-ms", "60000")]), connection.receive, connection.send
            )
            assert connection.complete
            assert connection.receives == 1
        assert tasks == [1, 1]
        assert timers == []

    asyncio.run(main())


class Waiting:
    """A handler that waits, and notes how that ends.

    Args:
        method: what it handles: it gives what such a method gives.
        first: what it does before.
    """

    def __init__(self, method: Any, first: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self._method = method
        self._first = first
        self.log: list[str] = []

    def __call__(self, request: Any) -> Any:
        return self._stream(request) if self._method.kind.server_streams else self._answer(request)

    async def _wait(self, request: Any) -> None:
        if self._first is not None:
            await self._first(request)
        try:
            self.log.append("waits")
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            self.log.append("finally")

    async def _answer(self, request: Any) -> Any:
        await self._wait(request)
        return reply("too late")

    async def _stream(self, request: Any) -> AsyncIterator[Any]:
        yield reply("first")
        await self._wait(request)
        yield reply("too late")


ENDED = ["waits", "cancelled", "finally"]


@pytest.mark.parametrize("method", ALL)
def test_client_gone_cancels(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting(method)
    connection = run(every(waiting), method, [part(body_of(method)), 0.01, DISCONNECT])
    assert waiting.log == ENDED
    assert not connection.complete, "there is nobody to answer"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def read_all(request: AsyncClientStream[EnumValue]) -> None:
    async for _ in request:
        pass


async def read_one(request: AsyncClientStream[EnumValue]) -> None:
    async for _ in request:
        return


@pytest.mark.parametrize("method", [CLIENT, BIDI])
@pytest.mark.parametrize("first", [None, read_one, read_all])
@pytest.mark.parametrize("ended", [False, True])
def test_client_gone_cancels_whatever_was_read(method: Any, first: Any, ended: bool) -> None:
    """Whether the request had ended or not, and whether the handler has looked at it or not."""
    waiting = Waiting(method, first)
    run(every(waiting), method, [0.005, part(BODY, True), 0.005, part(BODY, not ended), 0.01, DISCONNECT])
    if first is read_all and not ended:
        assert waiting.log == [], "it was cancelled while it read"
    else:
        assert waiting.log == ENDED


@pytest.mark.parametrize("method", [CLIENT, BIDI])
def test_reading_goes_on_while_somebody_watches(method: Any) -> None:
    """What came while the handler waited for something else is not lost."""

    async def handler_join(request: AsyncClientStream[EnumValue]) -> SourceContext:
        await asyncio.sleep(0.02)
        names = []
        async for message in request:
            names.append(message.name)
            await asyncio.sleep(0.005)
        return reply(",".join(names))

    async def handler_each(request: AsyncClientStream[EnumValue]) -> AsyncIterator[SourceContext]:
        await asyncio.sleep(0.02)
        async for message in request:
            await asyncio.sleep(0.005)
            yield reply(message.name)

    events: list[Any] = [part(asked(ask(str(number))), True) for number in range(5)]
    app = asgi(client=handler_join, bidi=handler_each)
    for pause in (0, 0.005):
        spaced = [item for event in events for item in (pause, event)]
        texts = run(app, method, [*spaced, part()]).answer().stream()[0]
        assert ",".join(texts) == "0,1,2,3,4"


def test_what_comes_is_not_hoarded() -> None:
    """A handler that waits holds back a client that uploads: memory is bounded."""
    received = []

    async def handler(request: object) -> SourceContext:
        await asyncio.sleep(0.03)
        received.append(connection.receives)
        return reply()

    connection = Connection([part(b"x" * 50_000, True)] * 1000 + [part()])
    asyncio.run(serve(every(handler), request_of(CLIENT), connection))
    assert received[0] * 50_000 < 1_000_000
    assert connection.left == 0


@pytest.mark.parametrize("method", [CLIENT, BIDI])
def test_client_gone_while_the_handler_reads(method: Any) -> None:
    seen: list[BaseException] = []

    async def handler_client(request: AsyncClientStream[EnumValue]) -> SourceContext:
        try:
            return await join(request)
        except BaseException as error:
            seen.append(error)
            raise

    async def handler_bidi(request: AsyncClientStream[EnumValue]) -> AsyncIterator[SourceContext]:
        try:
            async for message in request:
                yield reply(message.name)
        except BaseException as error:
            seen.append(error)
            raise

    connection = run(asgi(client=handler_client, bidi=handler_bidi), method, [part(BODY, True), 0.01, DISCONNECT])
    assert not connection.complete
    (error,) = seen
    assert isinstance(error, asyncio.CancelledError) or (
        isinstance(error, ConnectError) and error.code is ConnectErrorCode.CANCELED
    )


@pytest.mark.parametrize("method", ALL)
def test_client_gone_before_the_request_was_there(method: Any) -> None:
    for events in ([DISCONNECT], [part(body_of(method)[:2], True), DISCONNECT]):
        connection = run(asgi(client=join, bidi=each), method, events)
        assert not connection.complete


def test_client_gone_before_anything_was_read_of_what_nobody_asked_for() -> None:
    for path in ("/unknown", UNARY.path):
        exchange(ECHO, scope(path, "text/plain"), [part(b"x", True), DISCONNECT])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("limit", [True, False])
def test_deadline_cancels(method: Any, limit: bool) -> None:
    waiting = Waiting(method)
    options: dict[str, Any] = {"max_timeout_seconds": 0.03} if limit else {}
    app = asgi_service(SERVICE, types.SimpleNamespace(**{method.python_name: waiting}), **options)
    start = time.monotonic()
    answer = respond(app, method, headers=() if limit else [("connect-timeout-ms", "30")])
    assert time.monotonic() - start < 1
    assert waiting.log == ENDED
    assert code_in(answer) == "deadline_exceeded"
    if method.kind.server_streams:
        assert answer.stream()[0] == ["first"]


def test_reading_on_is_bounded_in_time_when_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_request, "DRAIN_MAX_SECONDS", 0.02)
    drip: list[Any] = [item for _ in range(1000) for item in (0.002, part(b"x", True))]
    connection = exchange(ECHO, scope("/unknown"), [*drip, part()])
    assert connection.answer().status == 404
    assert connection.left > 900


@pytest.mark.parametrize("method", ALL)
def test_deadline_while_the_request_comes(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_request, "DRAIN_IDLE_SECONDS", 0.02)
    connection = run(
        asgi(client=join, bidi=each), method, [part(body_of(method)[:2], True), 0.5], [("connect-timeout-ms", "20")]
    )
    assert code_in(connection.answer()) == "deadline_exceeded"


def test_a_deadline_that_has_passed_calls_nobody() -> None:
    for method in ALL:
        assert code_in(respond(asgi(), method, headers=[("connect-timeout-ms", "0")])) == "deadline_exceeded"


@pytest.mark.parametrize("method", ALL)
def test_a_handler_that_blocks_is_late_too(method: Any) -> None:
    def late(request: object) -> Any:
        time.sleep(0.03)
        return [reply("late")] if method.kind.server_streams else reply("late")

    answer = respond(every(late), method, headers=[("connect-timeout-ms", "20")])
    assert code_in(answer) == "deadline_exceeded"
    assert b"late" not in answer.body


def test_a_timeout_of_the_handlers_own_is_a_failure_like_others(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> Any:
        await asyncio.wait_for(asyncio.sleep(5), 0.01)

    assert respond(every(handler), headers=[("connect-timeout-ms", "60000")]).code() == "unknown"
    assert len(caplog.records) == 1


def test_timeouts_within_the_deadline_do_not_confuse_it() -> None:
    async def handler(request: object) -> Any:
        try:
            await asyncio.wait_for(asyncio.sleep(5), 0.01)
        except asyncio.TimeoutError:
            await asyncio.wait_for(asyncio.sleep(5), 4)

    assert respond(every(handler), headers=[("connect-timeout-ms", "40")]).code() == "deadline_exceeded"


@pytest.mark.parametrize("kind", [TimeoutError, asyncio.TimeoutError])  # one class from Python 3.11 on
def test_a_timeout_after_the_deadline_is_the_deadline(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> Any:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise kind("secret") from None

    assert respond(every(handler), headers=[("connect-timeout-ms", "20")]).code() == "deadline_exceeded"
    assert not caplog.records


class Cleaning:
    """Streams that end at once, but whose clean-up takes a while."""

    def __init__(self, *messages: Any) -> None:
        self._messages = messages
        self.cleaned = False

    async def __call__(self, request: object) -> AsyncIterator[Any]:
        try:
            await asyncio.sleep(0.001)
            for message in self._messages:
                yield message
        finally:
            await asyncio.sleep(0.4)
            self.cleaned = True


def test_deadline_during_cleanup() -> None:
    cleaning = Cleaning(reply("a"), ABORTED)
    answer = respond(every(cleaning), SERVER, headers=[("connect-timeout-ms", "250")])
    assert answer.stream()[0] == ["a"]
    assert answer.failure() in ("aborted", "deadline_exceeded")
    assert cleaning.cleaned


def test_client_gone_during_cleanup() -> None:
    cleaning = Cleaning(reply("a"), ABORTED)
    run(every(cleaning), SERVER, [part(BODY), 0.02, DISCONNECT])
    assert cleaning.cleaned


@pytest.mark.parametrize("reason", ["deadline", "client"])
def test_a_swallowed_cancellation_still_ends_the_call(reason: str) -> None:
    """``except BaseException`` is a common mistake; it must not send into the void for ever."""
    steps: list[bool] = []

    async def handler(request: object) -> AsyncIterator[SourceContext]:
        while len(steps) < 100:
            steps.append(True)
            try:
                await asyncio.sleep(0.01)
            except BaseException:
                pass
            yield reply("a")

    events: list[Any] = [part(BODY), *([0.02, DISCONNECT] if reason == "client" else [])]
    connection = run(every(handler), SERVER, events, [("connect-timeout-ms", "20")] if reason == "deadline" else [])
    assert len(steps) < 10
    if reason == "deadline":
        assert connection.answer().failure() == "deadline_exceeded"


def test_a_handler_that_answers_its_cancellation() -> None:
    async def handler(request: object) -> SourceContext:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            pass
        return reply("late")

    assert respond(every(handler), headers=[("connect-timeout-ms", "20")]).code() == "deadline_exceeded"


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("deadline", [True, False])
def test_somebody_elses_cancellation_passes_through(method: Any, deadline: bool) -> None:
    """A server that shuts down cancels its tasks, and expects them to end so."""
    waiting = Waiting(method)

    async def main() -> None:
        connection = Connection([part(body_of(method))])
        made = request_of(method, [("connect-timeout-ms", "60000")] if deadline else [])
        task = asyncio.ensure_future(every(waiting)(made, connection.receive, connection.send))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert waiting.log == ENDED


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks count their cancellations from 3.11 on")
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("reason", ["deadline", "client"])
def test_the_servers_task_is_left_as_it_was(method: Any, reason: str) -> None:
    """A cancellation that is not taken back breaks ``asyncio.timeout`` and task groups around the app."""
    left: list[int] = []

    async def main() -> None:
        events: list[Any] = [part(body_of(method)), *([0.01, DISCONNECT] if reason == "client" else [])]
        connection = Connection(events)
        made = request_of(method, [("connect-timeout-ms", "20")] if reason == "deadline" else [])
        await every(Waiting(method))(made, connection.receive, connection.send)
        task: Any = asyncio.current_task()
        left.append(task.cancelling())

    asyncio.run(main())
    assert left == [0]


def test_context_is_the_servers() -> None:
    """Handlers run in the server's own task: what middleware has set is seen, and what they set as well."""
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def handler(request: object) -> SourceContext:
        found = variable.get()
        await asyncio.sleep(0)
        variable.set("by the handler")
        return reply(found)

    async def main() -> None:
        variable.set("by the middleware")
        connection = Connection([part()])
        await every(handler)(request_of(UNARY), connection.receive, connection.send)
        assert connection.answer().message().file_name == "by the middleware"
        assert variable.get() == "by the handler"

    asyncio.run(main())


# Servers that fail


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", ALL)
def test_send_that_raises(method: Any, number: int, wait: bool, caplog: pytest.LogCaptureFixture) -> None:
    """ASGI 2.4: an OSError when the client has gone. It is no failure of the handler's, and nobody's to answer."""
    cleaned: list[bool] = []
    counter = itertools.count()

    async def on_send(event: Event) -> None:
        if next(counter) >= number:
            raise OSError("gone")

    async def streaming(request: object) -> AsyncIterator[SourceContext]:
        try:
            for text in "abc":
                if wait:
                    await asyncio.sleep(0)
                yield reply(text)
        finally:
            cleaned.append(True)

    async def answering(request: object) -> SourceContext:
        if wait:
            await asyncio.sleep(0)
        return reply()

    run(
        asgi(unary=answering, client=answering, server=streaming, bidi=streaming),
        method,
        [part(body_of(method))],
        on_send=on_send,
    )
    if method.kind.server_streams and number > 1:  # after the head and an empty part, which sends it on its way
        assert cleaned == [True]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("path", ["/unknown", *(method.path for method in ALL)])
def test_receive_that_raises(path: str) -> None:
    content_type = PROTO if path == UNARY.path else STREAM_PROTO
    exchange(ECHO, scope(path, content_type), [RuntimeError("x")] * 3)
    exchange(ECHO, scope(path, content_type), [part(b"\0", True), *[OSError("x")] * 3])


def test_send_that_waits_is_ended_by_the_deadline() -> None:
    """A client that reads slowly holds the handler back, but not beyond the deadline. It is told when it reads on."""
    made = itertools.count()

    async def handler(request: object) -> AsyncIterator[SourceContext]:
        for number in made:
            yield reply(str(number))

    slow = [0]

    async def on_send(event: Event) -> None:
        if event.get("more_body"):
            slow[0] += 1
            if slow[0] == 3:
                await asyncio.sleep(0.5)
                slow.append(next(made))

    connection = run(every(handler), SERVER, [part(BODY)], [("connect-timeout-ms", "30")], on_send)
    assert connection.answer().failure() == "deadline_exceeded"
    assert slow[1] <= 4


def test_events_without_end_after_the_body() -> None:
    """As pyvoy: a watcher that does not pause would take the loop for itself."""

    class Endless(Connection):
        async def receive(self) -> Event:
            self.receives += 1
            return part(BODY) if self.receives == 1 else part()

    async def handler(request: object) -> SourceContext:
        await asyncio.sleep(0.05)
        return reply("a")

    connection = Endless()
    asyncio.run(serve(asgi(unary=handler), request_of(UNARY, [("connect-protocol-version", "1")]), connection))
    assert connection.receives < 10


# Generators


class Messages:
    """An async iterator that wants to be closed."""

    def __init__(self, *messages: Any, on_close: Exception | None = None) -> None:
        self._messages = iter(messages)
        self._on_close = on_close
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        for message in self._messages:
            if isinstance(message, Exception) and not isinstance(message, ConnectError):
                raise message
            return message
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1
        await asyncio.sleep(0)
        if self._on_close is not None:
            raise self._on_close


@pytest.mark.parametrize(
    "messages", [(), (reply("a"),), (reply("a"), ABORTED), (reply("a"), RuntimeError("x")), ("no message",)]
)
def test_a_stream_is_closed(messages: tuple[Any, ...]) -> None:
    iterator = Messages(*messages)
    assert respond(every(give(ServerStream(iterator))), SERVER).status == 200
    assert iterator.closed == 1


def test_a_stream_that_cannot_begin_is_closed() -> None:
    iterator = Messages(reply("a"))
    assert respond(every(give(ServerStream(iterator, {"connect-x": "1"}))), SERVER).failure() == "unknown"
    assert iterator.closed == 1


def test_a_plain_iterator_is_closed() -> None:
    class Plain:
        closed = 0

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            return reply("a")

        def close(self) -> None:
            self.closed += 1

    async def gone(event: Event) -> None:
        raise OSError("gone")

    for plain, headers, on_send in ((Plain(), None, gone), (Plain(), {"connect-x": "1"}, None)):
        run(every(give(ServerStream(plain, headers))), SERVER, [part(BODY)], on_send=on_send)
        assert plain.closed == 1


def test_closing_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    iterator = Messages(reply("a"), on_close=RuntimeError("secret"))
    answer = respond(every(give(ServerStream(iterator))), SERVER)
    assert answer.stream() == (["a"], {})
    assert "secret" in caplog.text


def test_a_generator_that_yields_while_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: object) -> AsyncIterator[Any]:
        try:
            yield ABORTED
        finally:
            yield reply("never")

    assert respond(every(handler), SERVER).failure() == "aborted"
    assert "ignored GeneratorExit" in caplog.text


def test_a_generator_of_the_request_is_closed() -> None:
    """A handler that stops reading leaves nothing behind for the garbage collector to warn of."""

    async def handler(request: AsyncClientStream[EnumValue]) -> SourceContext:
        async for message in request:
            return reply(message.name)
        return reply()

    assert respond(every(handler), CLIENT, BODY * 3, 5).stream()[0] == ["a"]
    gc.collect()


# Other connections


def test_lifespan() -> None:
    connection = Connection([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    asyncio.run(serve(ECHO, {"type": "lifespan", "asgi": {"version": "3.0"}}, connection))
    assert connection.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


def test_websockets_are_refused() -> None:
    connection = Connection([{"type": "websocket.connect"}])
    asyncio.run(serve(ECHO, {"type": "websocket", "path": UNARY.path, "headers": []}, connection))
    assert [event["type"] for event in connection.sent] == ["websocket.close"]


def test_connections_that_nobody_knows() -> None:
    """The specification wants an exception, so that a server can tell."""
    with pytest.raises(NotImplementedError, match="quic"):
        asyncio.run(serve(ECHO, {"type": "quic"}, Connection()))


def test_empty_methods_of_the_protocol_serve_nothing() -> None:
    import typing

    class EchoServiceProtocol(typing.Protocol):
        async def unary(self, request: Any, /) -> Any: ...
        def server(self, request: Any, /) -> Any: ...

    class Inheriting(EchoServiceProtocol):
        async def unary(self, request: Any, /) -> Any:
            return reply("mine")

    app = asgi_service(SERVICE, Inheriting())  # type: ignore[abstract]
    assert respond(app).message() == reply("mine")
    assert respond(app, SERVER).failure() == "unimplemented"
    assert respond(app, CLIENT).failure() == "unimplemented"


@pytest.mark.parametrize("options", [{"prefix": "api"}, {"max_timeout_seconds": 0}, {"read_max_bytes": -1}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        asgi_service(SERVICE, types.SimpleNamespace(), **options)
    with pytest.raises(TypeError, match="is a class"):
        asgi_service(SERVICE, types.SimpleNamespace)
    with pytest.raises(TypeError, match="unknown"):
        asgi_service(SERVICE, types.SimpleNamespace(), unknown=1)  # type: ignore[call-arg]


def test_concurrent_calls_do_not_mix() -> None:
    async def handler(request: ClientRequest[EnumValue]) -> SourceContext:
        await asyncio.sleep(0.001 * (request.msg.number % 5))
        return reply(request.msg.name)

    app = every(handler)

    async def one(number: int) -> None:
        connection = Connection([part(ask(str(number), number).SerializeToString())])
        await app(request_of(UNARY, [("connect-timeout-ms", "5000")]), connection.receive, connection.send)
        assert connection.answer().message().file_name == str(number)

    async def main() -> None:
        await asyncio.gather(*map(one, range(100)))

    asyncio.run(main())


def test_frames_may_share_an_event() -> None:
    body = b"".join(frame(ask(str(number)).SerializeToString()) for number in range(1000))
    assert respond(ECHO, BIDI, body).stream()[0] == [str(number) for number in range(1000)]


@pytest.mark.parametrize("interceptors", [[], [Hooks()]], ids=len)
@pytest.mark.parametrize("as_what", ["returned", "raised", "in a ServerResponse", "in a stream"])
def test_an_error_that_is_given_for_many_calls_keeps_none_of_them(as_what: str, interceptors: list[Any]) -> None:
    """Each time an exception is raised it gathers frames, with all that they hold."""
    error = ConnectError(ConnectErrorCode.PERMISSION_DENIED, "no")
    kept: list[Any] = []

    class Big(list[int]):
        pass

    async def handler(request: Any) -> Any:
        ballast = Big()
        kept.append(weakref.ref(ballast))
        if as_what == "raised":
            raise error
        return ServerResponse(error) if as_what == "in a ServerResponse" else error

    async def stream(request: Any) -> AsyncIterator[Any]:
        ballast = Big()
        kept.append(weakref.ref(ballast))
        yield error

    method = SERVER if as_what == "in a stream" else UNARY
    one = stream if as_what == "in a stream" else handler
    implementation = types.SimpleNamespace(**{each.python_name: one for each in METHODS})
    app = asgi_service(SERVICE, implementation, interceptors=interceptors)
    for _ in range(20):
        assert code_in(respond(app, method)) == "permission_denied"
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 1
    assert len(traceback.extract_tb(error.__traceback__)) < 10


def test_methods_that_are_not_async_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    class Blocking:
        def unary(self, request: Any) -> Any:
            return reply("a")

        async def client(self, request: Any) -> Any:
            return reply("a")

        async def server(self, request: Any) -> AsyncIterator[Any]:
            yield reply("a")

        @functools.wraps(client)
        def pure(self, request: Any) -> Any:
            return self.client(request)

        async def bidi(self, request: Any) -> AsyncIterator[Any]:
            yield reply("a")

    asgi_service(SERVICE, Blocking())
    (record,) = caplog.records
    assert "Blocking.unary() is not async" in record.getMessage()
    caplog.clear()
    asgi_service(
        SERVICE,
        InThreads(
            types.SimpleNamespace(**{name: Blocking().unary for name in ("unary", "pure", "client", "server", "bidi")})
        ),
    )
    assert not caplog.records
