"""What the in-process transports tell an app, and what they make of apps that fail, or break their contract."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from connectrpc._core.http import HTTPRequest
from connectrpc.client import AsyncClient, SyncClient
from connectrpc.deadline import Deadline
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import asgi_service
from connectrpc.testing import ASGITransport, WSGITransport
from connectrpc.transports import AsyncTransport, SyncTransport, async_transport, sync_transport
from harness import SERVER, SERVICE, UNARY, asgi, ask, code_of, reply, wsgi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

PATIENCE = 20.0

URL = "http://Test:81/a%2Fb/%C3%A4?x=1&y=%20"
HEADERS = [("Content-Type", "text/plain"), ("X-Many", "1"), ("x-many", "2"), ("user-agent", "test")]

colours = pytest.mark.parametrize("colour", ["sync", "async"])


class Answer:
    """What a client gets."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status = response.status
        self.headers = list(response.headers.items())
        self.trailers = None if response.trailers is None else list(response.trailers.items())
        self.body = body


def call(
    transport: Any,
    colour: str = "sync",
    body: Any = b"request",
    *,
    method: str = "POST",
    url: str = URL,
    limit: int | None = None,
) -> Answer:
    """One request, answered to its end; bodies in parts are given as lists."""
    request = HTTPRequest(method, url, HEADERS)
    if colour == "async":
        return asyncio.run(asyncio.wait_for(acall(transport, request, body, limit), PATIENCE))
    deadline = Deadline(int(PATIENCE * 1000))
    parts = iter(body) if isinstance(body, list) else body
    try:
        response = transport.send(request, parts, stream=True, deadline=deadline, opening=deadline, cancel=None)
        return Answer(response, response.read(limit))
    finally:
        transport.close()


async def acall(transport: Any, request: HTTPRequest, body: Any, limit: int | None) -> Answer:
    async def parts() -> AsyncIterator[bytes]:
        for part in body:
            yield part

    try:
        response = await transport.send(request, parts() if isinstance(body, list) else body)
        return Answer(response, await response.read(limit))
    finally:
        await transport.aclose()


def test_transports_of_both_colours() -> None:
    """As type checkers see it, too."""
    for transport in (ASGITransport(asgi()), WSGITransport(wsgi())):
        blocking: SyncTransport = transport
        awaited: AsyncTransport = transport
        assert sync_transport(blocking, "http://test") is transport
        assert async_transport(awaited) is transport
        SyncClient("http://test", transport, protocol="grpc")
        AsyncClient("http://test", transport, protocol="grpc")
        with pytest.raises(ValueError, match="connect_timeout"):
            SyncClient("http://test", transport, connect_timeout_seconds=1)


# WSGI


Environ = dict[str, Any]


@colours
@pytest.mark.parametrize("checked", [False, True], ids=["bare", "validated"])
@pytest.mark.parametrize("body", [b"request", [b"re", b"", b"quest"], b"", None, []], ids=repr)
def test_what_a_wsgi_app_is_told(colour: str, checked: bool, body: Any) -> None:
    seen: Environ = {}

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 Fine", [("Content-Type", "text/plain"), ("X-Many", "1"), ("X-Many", "2")])
        return [environ["wsgi.input"].read(100), b"", b"!"]

    answer = call(WSGITransport(validator(app) if checked else app), colour, body, method="POST" if body else "GET")
    sent = b"".join(body) if isinstance(body, list) else body or b""
    assert (answer.status, answer.body, answer.trailers) == (200, sent + b"!", None)
    assert answer.headers == [("Content-Type", "text/plain"), ("X-Many", "1"), ("X-Many", "2")]
    assert seen["REQUEST_METHOD"] == ("POST" if body else "GET")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("", "/a/b/\xc3\xa4")
    assert seen["QUERY_STRING"] == "x=1&y=%20"
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen["wsgi.url_scheme"]) == ("test", "81", "http")
    assert seen["SERVER_PROTOCOL"] == "HTTP/2"
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("127.0.0.1", "50000")
    assert seen["CONTENT_TYPE"] == "text/plain"
    assert seen.get("CONTENT_LENGTH") == (str(len(body)) if isinstance(body, bytes) else None)
    assert seen["wsgi.input_terminated"] is True
    assert seen["HTTP_X_MANY"] == "1,2"
    assert seen["HTTP_HOST"] == "Test:81"
    assert seen["HTTP_USER_AGENT"] == "test"
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"} & seen.keys()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://test", ("test", "test", "80", "/", "")),
        ("https://test/", ("test", "test", "443", "/", "")),
        ("https://test:1/a?", ("test:1", "test", "1", "/a", "")),
        ("http://[::1]:5/a?b?c", ("[::1]:5", "::1", "5", "/a", "b?c")),
        ("http://user@test/\u00e4", ("test", "test", "80", "/\xc3\xa4", "")),
    ],
)
def test_urls(url: str, expected: Any) -> None:
    """Host header, host, port, path, and query."""
    found: list[Any] = []

    def wsgi_app(environ: Environ, start_response: Any) -> list[bytes]:
        names = ("HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "PATH_INFO", "QUERY_STRING")
        found.append(tuple(environ[name] for name in names))
        start_response("204 No Content", [])
        return []

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        host, port = scope["server"]
        path = scope["path"].encode().decode("latin-1")
        named = dict(scope["headers"])[b"host"].decode()
        found.append((named, host, str(port), path, scope["query_string"].decode()))
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    call(WSGITransport(wsgi_app), url=url)
    call(ASGITransport(asgi_app), url=url)
    assert found == [expected, expected]


@colours
def test_the_ways_of_reading_in_wsgi(colour: str) -> None:
    found: list[Any] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        found.extend((stream.read(3), stream.read(0), stream.readline(), stream.readline(2), stream.readlines(1)))
        found.extend((next(iter(stream)), stream.read(), stream.read(5), stream.readline(), list(stream)))
        start_response("200 OK", [])
        return []

    call(WSGITransport(app), colour, [b"one", b"\ntwo\nth", b"ree\nfour\n", b"five", b"\nsix"])
    assert found == [b"one", b"", b"\n", b"tw", [b"o\n"], b"three\n", b"four\nfive\nsix", b"", b"", []]


def test_reading_waits_for_no_more_than_it_was_asked_for() -> None:
    """A part of the request depends on what the app says of the one before."""
    answers: list[bytes] = []
    there = threading.Semaphore(0)

    def parts() -> Iterator[bytes]:
        yield b"12345"
        for _ in range(3):
            assert there.acquire(timeout=PATIENCE)
            yield answers[-1][:3] + b"++"

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        while part := environ["wsgi.input"].read(5):
            yield part

    transport = WSGITransport(app)
    deadline = Deadline(int(PATIENCE * 1000))
    request = HTTPRequest("POST", URL, HEADERS)
    response = transport.send(request, parts(), stream=True, deadline=deadline, opening=deadline, cancel=None)
    while chunk := response.read_chunk():
        answers.append(chunk)
        there.release()
    assert answers == [b"12345", b"123++", b"123++", b"123++"]
    response.close()
    transport.close()


def test_a_large_body_is_read_fast() -> None:
    """Also in small pieces: not copied anew for each."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        size = 0
        while part := environ["wsgi.input"].read(1000):
            size += len(part)
        start_response("200 OK", [])
        return [str(size).encode()]

    begin = time.monotonic()
    assert call(WSGITransport(app), body=bytes(20_000_000)).body == b"20000000"
    assert time.monotonic() - begin < 5


@colours
def test_the_older_ways_of_wsgi(colour: str) -> None:
    """The callable for writing, and starting anew after a failure."""

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-One", "1")])
        try:
            raise ValueError
        except ValueError as error:
            write = start_response("503 Busy", [("X-Two", "2")], (ValueError, error, error.__traceback__))
        write(b"one ")
        write(b"two ")
        return iter([b"three"])

    answer = call(WSGITransport(app), colour)
    assert (answer.status, answer.headers, answer.body) == (503, [("X-Two", "2")], b"one two three")


@colours
def test_a_failure_after_the_head_was_sent(colour: str) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"part"
        try:
            raise ValueError("mine")
        except ValueError as error:
            start_response("503 Busy", [], (ValueError, error, error.__traceback__))

    with pytest.raises(ValueError, match="mine"):
        call(WSGITransport(app), colour)


@colours
def test_trailers_of_wsgi(colour: str) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"part"
        environ["wsgi.ext.http.send_trailers"]([("X-One", "1"), ("X-One", "2")])

    answer = call(WSGITransport(app), colour)
    assert (answer.body, answer.trailers) == (b"part", [("X-One", "1"), ("X-One", "2")])


@colours
def test_a_body_beyond_the_limit(colour: str) -> None:
    closed = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(10_000)
        finally:
            closed.set()

    assert 100_000 < len(call(WSGITransport(app), colour, limit=100_000).body) < 200_000
    assert closed.is_set()


# ASGI


@colours
@pytest.mark.parametrize("body", [b"request", [b"re", b"", b"quest"], b"", None, []], ids=repr)
def test_what_an_asgi_app_is_told(colour: str, body: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        received = b""
        while True:
            event = await receive()
            assert event.keys() == {"type", "body", "more_body"}
            assert event["type"] == "http.request"
            received += event["body"]
            if not event["more_body"]:
                break
        headers = [(b"content-type", b"text/plain"), [b"x-many", b"1"], (b"x-many", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": received, "more_body": True})
        await send({"type": "http.response.body", "body": bytearray(b"!")})
        for _ in range(3):
            assert await receive() == {"type": "http.disconnect"}

    answer = call(ASGITransport(app), colour, body, method="POST" if body else "GET")
    sent = b"".join(body) if isinstance(body, list) else body or b""
    assert (answer.status, answer.body, answer.trailers) == (200, sent + b"!", None)
    assert answer.headers == [("content-type", "text/plain"), ("x-many", "1"), ("x-many", "2")]
    (scope,) = seen
    headers = scope.pop("headers")
    length = [(b"content-length", str(len(body)).encode())] if isinstance(body, bytes) else []
    named = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
    assert headers == [(b"host", b"Test:81"), *named, *length]
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "2",
        "method": "POST" if body else "GET",
        "scheme": "http",
        "path": "/a/b/\u00e4",
        "raw_path": b"/a%2Fb/%C3%A4",
        "query_string": b"x=1&y=%20",
        "root_path": "",
        "client": ("127.0.0.1", 50000),
        "server": ("test", 81),
        "state": {},
        "extensions": {"http.response.trailers": {}},
    }


@colours
def test_trailers_of_asgi(colour: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"part"})
        await send({"type": "http.response.trailers", "headers": [(b"x-one", b"1")], "more_trailers": True})
        await send({"type": "http.response.trailers", "headers": [(b"x-one", b"2")]})

    answer = call(ASGITransport(app), colour)
    assert (answer.body, answer.trailers) == (b"part", [("x-one", "1"), ("x-one", "2")])


def test_the_client_leaves_an_asgi_app() -> None:
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["more_body"]
        await send(START)
        await send(MORE)
        found.extend([await receive(), await receive()])
        try:
            await send(MORE)
        except OSError as error:
            found.append(str(error))
            raise

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(PATIENCE)

    async def main() -> None:
        transport = ASGITransport(app)
        response = await transport.send(HTTPRequest("POST", URL, HEADERS), parts())
        assert await response.read_chunk() == b"part"
        assert not response.uploaded
        response.close()
        response.close()
        await transport.aclose()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert found == [{"type": "http.disconnect"}, {"type": "http.disconnect"}, "the client has left"]


@colours
def test_an_app_that_goes_on_after_its_answer(colour: str) -> None:
    """As tasks in the background do. The client does not wait for it; closing does, for a while."""
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        await asyncio.sleep(0.1)
        log.append("done")

    async def main() -> None:
        transport = ASGITransport(app)
        response = await transport.send(HTTPRequest("POST", URL, HEADERS), b"")
        assert await response.read(None) == b"answer"
        assert log == []
        await transport.aclose()

    if colour == "async":
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    else:
        assert call(ASGITransport(app)).body == b"answer"
    assert log == ["done"]


def test_a_complete_answer_can_be_read_after_its_transport_was_closed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MORE)
        await send(MORE)
        await send(BODY)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answered.set()
        await asyncio.sleep(0.05)

    answered = threading.Event()
    transport = ASGITransport(app)
    deadline = Deadline(int(PATIENCE * 1000))
    request = HTTPRequest("POST", URL, HEADERS)
    response = transport.send(request, b"", stream=True, deadline=deadline, opening=deadline, cancel=None)
    assert response.read_chunk() == b"part"
    assert answered.wait(PATIENCE)
    transport.close()
    assert response.read(None) == b"partpart"


def test_a_loop_that_has_ended_is_not_kept() -> None:
    """Though its transport is, which has another for the calls to come."""
    loops: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await send(START)
        await send(BODY)

    transport = ASGITransport(app)
    for _ in range(3):
        assert call(transport).body == b"part"  # and closes it
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


@colours
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_request_that_fails_after_its_answer(kind: str, colour: str) -> None:
    """The answer is what the client gets, though it has not read it by then."""
    answered = threading.Event()
    apps: list[threading.Thread] = []
    uploads: list[Any] = []

    def wsgi_app(environ: Environ, start_response: Any) -> list[bytes]:
        apps.append(threading.current_thread())
        environ["wsgi.input"].read(1)
        answered.set()
        return part_of_wsgi(environ, start_response)

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(BODY)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answered.set()

    def wait_for_answer() -> None:
        assert answered.wait(PATIENCE)
        for thread in apps:
            thread.join(PATIENCE)

    def parts() -> Iterator[bytes]:
        uploads.append(threading.current_thread())
        yield b"part"
        wait_for_answer()
        raise MineError("mine")

    async def async_parts() -> AsyncIterator[bytes]:
        uploads.append(asyncio.current_task())
        yield b"part"
        await asyncio.to_thread(wait_for_answer)
        raise MineError("mine")

    transport: Any = ASGITransport(asgi_app) if kind == "asgi" else WSGITransport(wsgi_app)
    request = HTTPRequest("POST", URL, HEADERS)

    async def main() -> None:
        response = await transport.send(request, async_parts())
        await asyncio.wait(uploads)
        assert await response.read(None) == b"part"

    if colour == "async":
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        return
    deadline = Deadline(int(PATIENCE * 1000))
    response = transport.send(request, parts(), stream=True, deadline=deadline, opening=deadline, cancel=None)
    uploads[0].join(PATIENCE)
    assert response.read(None) == b"part"
    transport.close()


@colours
def test_an_app_that_does_not_end_is_cancelled(colour: str) -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        try:
            await asyncio.sleep(PATIENCE * 2)
        finally:
            log.append("cancelled")

    assert call(ASGITransport(app), colour).body == b"answer"
    assert log == ["cancelled"]


# Apps that fail


class MineError(Exception):
    """What an app raises."""


def wsgi_apps() -> dict[str, tuple[Any, Any, str]]:
    """Apps, and what the client is to get from them."""
    table: dict[str, tuple[Any, Any, str]] = {}

    def add(name: str, error: Any, match: str) -> Callable[[Any], Any]:
        def keep(app: Any) -> Any:
            table[name] = (app, error, match)
            return app

        return keep

    @add("raises", MineError, "mine")
    def _(environ: Environ, start: Any) -> Any:
        raise MineError("mine")

    @add("raises as it begins to iterate", MineError, "mine")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        raise MineError("mine")
        yield b""

    @add("raises in its body", MineError, "mine")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        yield b"part"
        raise MineError("mine")

    @add("raises in close()", MineError, "mine")
    def _(environ: Environ, start: Any) -> Any:
        class Body(list[bytes]):
            def close(self) -> None:
                raise MineError("mine")

        start("200 OK", [])
        return Body([b"part"])

    @add("raises a ConnectError", RuntimeError, "the app has raised ConnectError")
    def _(environ: Environ, start: Any) -> Any:
        raise ConnectError(ConnectErrorCode.ABORTED, "mine")

    @add("raises StopIteration", RuntimeError, "the app has raised StopIteration")
    def _(environ: Environ, start: Any) -> Any:
        raise StopIteration

    @add("exits", SystemExit, "3")
    def _(environ: Environ, start: Any) -> Any:
        raise SystemExit(3)

    @add("gives None", RuntimeError, "given NoneType")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])

    @add("gives a str", RuntimeError, "given str")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        return "text"

    @add("gives strs", RuntimeError, "is bytes, not 'text'")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        return ["text"]

    @add("never starts", RuntimeError, "before it started an answer")
    def _(environ: Environ, start: Any) -> Any:
        return []

    @add("sends a body before it starts", RuntimeError, "a body before it has started")
    def _(environ: Environ, start: Any) -> Any:
        yield b"part"
        start("200 OK", [])

    @add("starts twice", RuntimeError, "started its answer twice")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        start("200 OK", [])
        return []

    @add("has a wrong status", RuntimeError, "a status is like '200 OK', not 200")
    def _(environ: Environ, start: Any) -> Any:
        start(200, [])
        return []

    @add("has wrong headers", RuntimeError, "headers are a list of pairs of str")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [("X-One", 1)])
        return []

    @add("has headers in a dict", RuntimeError, "headers are a list of pairs of str")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", {"X-One": "1"})
        return []

    @add("sends more than its length", RuntimeError, "more than the Content-Length")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [("Content-Length", "3")])
        return [b"1234"]

    @add("sends less than its length", RuntimeError, "less than the Content-Length")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [("Content-Length", "5")])
        return [b"1234"]

    @add("sends trailers twice", RuntimeError, "trailers twice")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        environ["wsgi.ext.http.send_trailers"]([])
        environ["wsgi.ext.http.send_trailers"]([])
        return []

    @add("sends trailers before it starts", RuntimeError, "before it has started")
    def _(environ: Environ, start: Any) -> Any:
        environ["wsgi.ext.http.send_trailers"]([])
        return []

    @add("sends a body after its trailers", RuntimeError, "a body after its trailers")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        environ["wsgi.ext.http.send_trailers"]([])
        return [b"part"]

    @add("has wrong trailers", RuntimeError, "trailers are a list of pairs of str")
    def _(environ: Environ, start: Any) -> Any:
        start("200 OK", [])
        environ["wsgi.ext.http.send_trailers"]([(b"x-one", b"1")])
        return []

    @add("swallows what it is told", RuntimeError, "is bytes, not 'text'")
    def _(environ: Environ, start: Any) -> Any:
        write = start("200 OK", [])
        with contextlib.suppress(Exception):
            write("text")
        return [b"part"]

    return table


WSGI_APPS = wsgi_apps()


@colours
@pytest.mark.parametrize("name", WSGI_APPS)
def test_wsgi_apps_that_fail(name: str, colour: str) -> None:
    app, error, match = WSGI_APPS[name]
    with pytest.raises(error, match=match):
        call(WSGITransport(app), colour)


START: Any = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Any = {"type": "http.response.body", "body": b"part"}
MORE: Any = {**BODY, "more_body": True}
TRAILERS: Any = {"type": "http.response.trailers", "headers": []}

ASGI_APPS: dict[str, tuple[list[Any], Any, str]] = {
    "raises": ([MineError("mine")], MineError, "mine"),
    "raises after its head": ([START, MineError("mine")], MineError, "mine"),
    "raises in its body": ([START, MORE, MineError("mine")], MineError, "mine"),
    "raises after its answer": ([START, BODY, MineError("mine")], MineError, "mine"),
    "raises a ConnectError": (
        [ConnectError(ConnectErrorCode.ABORTED, "mine")],
        RuntimeError,
        "has raised ConnectError",
    ),
    "raises StopAsyncIteration": ([StopAsyncIteration()], RuntimeError, "StopAsyncIteration"),
    "cancels itself": ([asyncio.CancelledError()], RuntimeError, "the app has raised CancelledError"),
    "never starts": ([], RuntimeError, "before it started an answer"),
    "has no body": ([START], RuntimeError, "before its answer was complete"),
    "has half a body": ([START, MORE], RuntimeError, "before its answer was complete"),
    "has no trailers": ([{**START, "trailers": True}, BODY], RuntimeError, "before its answer was complete"),
    "starts twice": ([START, START, BODY], RuntimeError, "started its answer twice"),
    "sends a body before it starts": ([BODY], RuntimeError, "a body before it has started"),
    "sends a body after the end": ([START, BODY, BODY], RuntimeError, "a body after the end"),
    "sends a body after the end, and trailers": (
        [{**START, "trailers": True}, BODY, BODY],
        RuntimeError,
        "a body after the end",
    ),
    "sends trailers that were not announced": ([START, MORE, TRAILERS], RuntimeError, "does not expect"),
    "sends trailers too soon": (
        [{**START, "trailers": True}, MORE, TRAILERS],
        RuntimeError,
        "after the end of the body",
    ),
    "sends trailers twice": (
        [{**START, "trailers": True}, BODY, TRAILERS, TRAILERS],
        RuntimeError,
        "after the end of the body",
    ),
    "sends something else": ([{"type": "websocket.accept"}], RuntimeError, "does not expect"),
    "sends what has no type": ([{}], RuntimeError, "does not expect"),
    "sends no event": ([None], RuntimeError, "does not expect"),
    "has no status": ([{"type": "http.response.start"}], RuntimeError, "a number, not None"),
    "has a wrong status": ([{**START, "status": "200"}], RuntimeError, "a number, not '200'"),
    "has headers of text": ([{**START, "headers": [("x-one", "1")]}], RuntimeError, "pairs of bytes"),
    "has headers that are no pairs": ([{**START, "headers": [b"x-one"]}], RuntimeError, "pairs of bytes"),
    "has a body of text": ([START, {**BODY, "body": "text"}], RuntimeError, "bytes, not 'text'"),
    "sends more than its length": (
        [{**START, "headers": [(b"content-length", b"3")]}, BODY],
        RuntimeError,
        "more than the Content-Length",
    ),
    "sends less than its length": (
        [{**START, "headers": [(b"content-length", b"5")]}, BODY],
        RuntimeError,
        "less than the Content-Length",
    ),
}


@colours
@pytest.mark.parametrize("swallows", [False, True], ids=["", "swallowed"])
@pytest.mark.parametrize("name", ASGI_APPS)
def test_asgi_apps_that_fail(name: str, swallows: bool, colour: str) -> None:
    """What the server tells them about it reaches the client even if they swallow it."""
    script, error, match = ASGI_APPS[name]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in script:
            if isinstance(event, BaseException):
                raise event
            try:
                await send(event)
            except RuntimeError:
                if not swallows:
                    raise

    with pytest.raises(error, match=match):
        call(ASGITransport(app), colour)


@colours
def test_failures_reach_the_callers_of_clients(colour: str) -> None:
    """Whatever the form of the call, and though the head of the answer was well."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == SERVER.path:
            headers = [(b"content-type", b"application/connect+proto")]
            await send({**START, "headers": headers})
            await send({**BODY, "body": b"\0\0\0\0\0", "more_body": True})
        raise MineError("mine")

    async def main() -> None:
        async with AsyncClient("http://test", ASGITransport(app)) as client:
            for one in (client._caller.unary, client._caller.unary_output):
                with pytest.raises(MineError):
                    await one(UNARY, ask())
            stream = await client._caller.server_stream_output(SERVER, ask())
            assert await stream.__anext__() == reply()
            with pytest.raises(MineError):
                await stream.__anext__()

    if colour == "async":
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        return
    transport = ASGITransport(app)
    with SyncClient("http://test", transport) as client:
        for one in (client._caller.unary, client._caller.unary_output):
            with pytest.raises(MineError):
                one(UNARY, ask())
        stream = client._caller.server_stream_output(SERVER, ask())
        assert next(stream) == reply()
        with pytest.raises(MineError):
            next(stream)
    transport.close()


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_failure_that_nobody_waits_for_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    left = threading.Event()

    def wsgi_app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"part"
            left.wait(PATIENCE)
            yield b"part"
        finally:
            raise MineError("mine")

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MORE)
        while (await receive())["type"] != "http.disconnect":
            pass
        raise MineError("mine")

    transport: Any = ASGITransport(asgi_app) if kind == "asgi" else WSGITransport(wsgi_app)
    deadline = Deadline(int(PATIENCE * 1000))
    request = HTTPRequest("POST", URL, HEADERS)
    with caplog.at_level(logging.ERROR, "connectrpc.testing"):
        response = transport.send(request, b"", stream=True, deadline=deadline, opening=deadline, cancel=None)
        assert response.read_chunk() == b"part"
        response.close()
        left.set()
        transport.close()
    (record,) = caplog.records
    assert record.name == "connectrpc.testing"
    assert record.exc_info is not None
    assert record.exc_info[0] is MineError


def test_noticing_that_the_client_has_left_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    left = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"part"
        left.wait(PATIENCE)
        yield b"part"

    transport = WSGITransport(app)
    deadline = Deadline(int(PATIENCE * 1000))
    request = HTTPRequest("POST", URL, HEADERS)
    response = transport.send(request, b"", stream=True, deadline=deadline, opening=deadline, cancel=None)
    response.close()
    left.set()
    transport.close()
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_an_app_that_does_not_begin_in_time(kind: str) -> None:
    left = threading.Event()

    def wsgi_app(environ: Environ, start_response: Any) -> list[bytes]:
        with contextlib.suppress(OSError):
            environ["wsgi.input"].read()
        left.set()
        return part_of_wsgi(environ, start_response)

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    def parts() -> Iterator[bytes]:
        yield b"part"
        assert left.wait(PATIENCE)

    transport: Any = ASGITransport(asgi_app) if kind == "asgi" else WSGITransport(wsgi_app)
    request = HTTPRequest("POST", URL, HEADERS)
    deadline, opening = Deadline(int(PATIENCE * 1000)), Deadline(50)
    with pytest.raises(ConnectError, match="not opened in time") as caught:
        transport.send(request, parts(), stream=True, deadline=deadline, opening=opening, cancel=None)
    assert code_of(caught.value) == "deadline_exceeded"
    assert left.wait(PATIENCE), "the app is told"
    transport.close()


def test_a_client_that_would_block_its_own_app() -> None:
    async def main() -> None:
        async with ASGITransport(asgi()) as transport:
            with pytest.raises(RuntimeError, match="would block the event loop"):
                SyncClient("http://test", transport)._caller.unary(UNARY, ask())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


# Lifespan


class Living:
    """An app with a lifespan.

    Args:
        script: what it sends in its lifespan, and raises; a number stands for receiving.
    """

    def __init__(self, *script: Any) -> None:
        self._script = script
        self.log: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert scope.keys() == {"type", "asgi", "state"}
            scope["state"]["made"] = self.log
            for step in self._script:
                if step == "receive":
                    self.log.append((await receive())["type"])
                elif isinstance(step, BaseException):
                    raise step
                else:
                    await send(step)
            self.log.append("returned")
            return
        assert scope["type"] == "http"
        self.log.append(("http", scope["state"].get("made") is self.log, asyncio.get_running_loop()))
        scope["state"]["more"] = True
        await send(START)
        await send(BODY)


def event(name: str, **more: Any) -> Any:
    return {"type": f"lifespan.{name}", **more}


WELL = ("receive", event("startup.complete"), "receive", event("shutdown.complete"))


def live(app: Any, colour: str, *clients: str) -> None:
    """Enter a transport in one colour, and call the app in others."""
    transport = ASGITransport(app)
    deadline = Deadline(int(PATIENCE * 1000))

    def blocking() -> None:
        request = HTTPRequest("POST", URL, HEADERS)
        response = transport.send(request, b"", stream=False, deadline=deadline, opening=deadline, cancel=None)
        assert response.read(None) == b"part"

    async def awaited() -> None:
        response = await transport.send(HTTPRequest("POST", URL, HEADERS), b"")
        assert await response.read(None) == b"part"

    async def main() -> None:
        async with transport as entered:
            assert entered is transport
            for client in clients:
                await (awaited() if client == "async" else asyncio.to_thread(blocking))

    if colour == "async":
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        return
    with transport as entered:
        assert entered is transport
        for client in clients:
            if client == "async":
                asyncio.run(asyncio.wait_for(awaited(), PATIENCE))
            else:
                blocking()


@colours
@pytest.mark.parametrize("clients", [(), ("sync",), ("async",), ("sync", "async", "sync", "async")], ids=len)
def test_a_lifespan(colour: str, clients: tuple[str, ...]) -> None:
    app = Living(*WELL)
    for _ in range(2):
        app.log.clear()
        live(app, colour, *clients)
        begin, *calls, end, returned = app.log
        assert (begin, end, returned) == ("lifespan.startup", "lifespan.shutdown", "returned")
        assert len(calls) == len(clients)
        assert all(made for _, made, _ in calls), "requests see the state of the lifespan"
        assert len({loop for _, _, loop in calls}) <= 1, "and are served in its loop"


@colours
@pytest.mark.parametrize(
    "script",
    [
        [MineError("what is a lifespan?")],
        [],
        ["receive"],
        ["receive", event("startup.complete")],
        ["receive", event("startup.complete"), "receive"],
    ],
)
def test_apps_that_know_little_of_lifespans(colour: str, script: Any) -> None:
    app = Living(*script)
    live(app, colour, "sync", "async")
    assert len([entry for entry in app.log if entry[0] == "http"]) == 2


FAILED = "the startup of the app has failed: "
STOPPED = "the shutdown of the app has failed: "


@colours
@pytest.mark.parametrize(
    ("script", "message", "caused"),
    [
        (["receive", event("startup.failed", message="no database")], FAILED + "no database", False),
        (["receive", event("startup.failed", message="no"), MineError("mine")], FAILED + "no", True),
        (["receive", event("startup.failed"), MineError("mine")], FAILED + r"MineError\('mine'\)", True),
        (["receive", MineError("mine")], FAILED + r"MineError\('mine'\)", True),
        (["receive", event("shutdown.complete")], FAILED + "RuntimeError.*does not expect", True),
        (
            ["receive", event("startup.complete"), "receive", event("shutdown.failed", message="m")],
            STOPPED + "m",
            False,
        ),
        (["receive", event("startup.complete"), "receive", MineError("mine")], STOPPED + r"MineError\('mine'\)", True),
        ([*WELL, MineError("mine")], STOPPED + r"MineError\('mine'\)", True),
    ],
)
def test_lifespans_that_fail(colour: str, script: Any, message: str, caused: bool) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        live(Living(*script), colour)
    assert (caught.value.__cause__ is not None) == caused
    assert not [thread for thread in threading.enumerate() if thread.name == "connectrpc-memory-asgi"]


@colours
def test_an_implementation_that_is_made_in_the_lifespan(colour: str) -> None:
    log: list[str] = []

    class Implementation:
        async def unary(self, request: Any) -> Any:
            return reply(request.msg.name)

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[Any]:
        log.append("begun")
        yield Implementation()
        log.append("ended")

    transport = ASGITransport(asgi_service(SERVICE, made))

    async def main() -> None:
        client = AsyncClient("http://test", transport)
        async with transport:
            assert (await client._caller.unary(UNARY, ask("a"))).file_name == "a"
        assert code_of((await client._caller.unary_output(UNARY, ask("a"))).error()) == "unavailable"

    if colour == "async":
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    else:
        client = SyncClient("http://test", transport)
        with transport:
            assert client._caller.unary(UNARY, ask("a")).file_name == "a"
        assert code_of(client._caller.unary_output(UNARY, ask("a")).error()) == "unavailable"
        transport.close()
    assert log == ["begun", "ended"]


@colours
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_entering_twice(kind: str, colour: str) -> None:
    transport: Any = ASGITransport(Living(*WELL)) if kind == "asgi" else WSGITransport(part_of_wsgi)

    async def main() -> None:
        async with transport:
            with pytest.raises(RuntimeError, match="entered already"):
                await transport.__aenter__()

    for _ in range(2):
        if colour == "async":
            asyncio.run(asyncio.wait_for(main(), PATIENCE))
        else:
            with transport:
                with pytest.raises(RuntimeError, match="entered already"):
                    transport.__enter__()
                assert call_in(transport) == b"part", "it goes on"


def part_of_wsgi(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"part"]


def call_in(transport: Any) -> bytes:
    deadline = Deadline(int(PATIENCE * 1000))
    request = HTTPRequest("POST", URL, HEADERS)
    response = transport.send(request, b"", stream=False, deadline=deadline, opening=deadline, cancel=None)
    body: bytes = response.read(None)
    return body


@pytest.mark.parametrize("left", [True, False], ids=["left", "not left"])
def test_a_call_that_its_loop_ends_before_it_begins(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails, whether or not the transport is left before the loop ends."""
    queued = threading.Event()
    found: list[ConnectError] = []
    transport = ASGITransport(Living(MineError("what is a lifespan?")))

    def blocking() -> None:
        with pytest.raises(ConnectError) as caught:
            call_in(transport)
        found.append(caught.value)

    thread = threading.Thread(target=blocking)

    async def main() -> None:
        await transport.__aenter__()
        loop = asyncio.get_running_loop()
        schedule = loop.call_soon_threadsafe

        def noting(*args: Any, **options: Any) -> Any:
            handle = schedule(*args, **options)
            queued.set()
            return handle

        monkeypatch.setattr(loop, "call_soon_threadsafe", noting)
        thread.start()
        assert queued.wait(PATIENCE), "the loop is busy until it ends"
        if left:
            await transport.__aexit__(None, None, None)

    asyncio.run(main())
    thread.join(PATIENCE * 2)
    (error,) = found
    assert (code_of(error), error.message) == ("unavailable", "the transport was closed")


def test_leaving_that_is_cancelled() -> None:
    """Nothing goes on then, and the transport can be used again."""
    log: list[str] = []

    async def main() -> None:
        begun, leaving = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                if scope["type"] == "lifespan":
                    await receive()
                    await send(event("startup.complete"))
                    await receive()
                    return
                begun.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                leaving.set()
                await asyncio.sleep(PATIENCE * 2)
            finally:
                log.append(scope["type"])

        transport = ASGITransport(app)
        call: Any = None

        async def use() -> None:
            nonlocal call
            async with transport:
                call = asyncio.ensure_future(transport.send(HTTPRequest("POST", URL, HEADERS), b""))
                await begun.wait()

        task = asyncio.ensure_future(use())
        await leaving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectError, match="the transport was closed"):
            await call
        assert sorted(log) == ["http", "lifespan"]
        async with transport:
            log.clear()
        assert log == ["lifespan"]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_app_that_leaves_its_own_transport() -> None:
    """It still answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await transport.__aexit__(None, None, None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    transport = ASGITransport(app)

    async def main() -> bytes:
        await transport.__aenter__()
        response = await transport.send(HTTPRequest("POST", URL, HEADERS), b"")
        return await response.read(None)

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == b"answer"
