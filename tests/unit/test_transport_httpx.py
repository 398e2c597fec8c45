"""httpx as a transport, its own transports made of memory. Real servers are for the integration tests."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import queue
import socket
import ssl
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc._core.http import HTTPRequest
from connectrpc.cancel import CancelToken
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError
from connectrpc.transports import async_transport, sync_transport
from connectrpc.transports._waiting import Waiting
from harness import Forgotten, code_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import h2.exceptions
    import httpcore
    import httpx

    from connectrpc.transports.httpx import AsyncHttpxTransport, HttpxTransport
    from connectrpc.transports.httpx._http2 import Stream
else:
    httpx = pytest.importorskip("httpx")
    h2 = pytest.importorskip("h2")
    httpcore = pytest.importorskip("httpcore")
    from connectrpc.transports.httpx._http2 import Stream

HEADERS = [("content-type", "application/proto"), ("x-many", "1"), ("x-many", "2"), ("user-agent", "test")]
URL = "http://h/p?x=%2F&y=a%20b"


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer: chunks, with exceptions to raise and functions to call among them."""

    def __init__(self, *chunks: Any) -> None:
        self._chunks = chunks
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk() if callable(chunk) else chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            await asyncio.sleep(0)
            yield chunk

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


class Server(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Both kinds of transport. Takes requests whole, and gives the answers that it was given."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        stream: Any = request.stream
        self.bodies.append(b"".join(stream))
        return self._answer()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        stream: Any = request.stream
        self.bodies.append(b"".join([part async for part in stream]))
        return self._answer()

    def _answer(self) -> httpx.Response:
        answer = self._answers.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Body):
            headers = [("X-One", "1"), ("x-many", "1"), ("x-many", "2")]
            return httpx.Response(200, headers=headers, stream=answer)
        assert isinstance(answer, httpx.Response)
        return answer


def connect(server: Any, **options: Any) -> HttpxTransport:
    transport: Any = sync_transport(httpx.Client(transport=server, **options), "http://h")
    return transport  # type: ignore[no-any-return]


def aconnect(server: Any, **options: Any) -> AsyncHttpxTransport:
    transport: Any = async_transport(httpx.AsyncClient(transport=server, **options))
    return transport  # type: ignore[no-any-return]


def send(
    transport: HttpxTransport,
    body: bytes | Iterator[bytes] | None = b"request",
    *,
    deadline: Deadline = NO_DEADLINE,
    opening: Deadline | None = None,
    cancel: CancelToken | None = None,
    method: str = "POST",
) -> Any:
    request = HTTPRequest(method, URL, HEADERS)
    return transport.send(request, body, stream=True, deadline=deadline, opening=opening or deadline, cancel=cancel)


async def asend(
    transport: AsyncHttpxTransport, body: bytes | AsyncIterator[bytes] | None = b"request", *, method: str = "POST"
) -> Any:
    return await transport.send(HTTPRequest(method, URL, HEADERS), body)


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


def call(
    server: Any, body: bytes | None = b"request", limit: int | None = None, *, asynchronous: bool, **options: Any
) -> tuple[Any, bytes]:
    """An answer and all of its body, in either colour."""

    async def main() -> tuple[Any, bytes]:
        response = await asend(aconnect(server, **options), body)
        return response, await response.read(limit)

    if asynchronous:
        return asyncio.run(main())
    response = send(connect(server, **options), body)
    return response, response.read(limit)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


# Requests.


@both
@pytest.mark.parametrize("body", [b"request", b"", None])
def test_what_is_sent(body: bytes | None, asynchronous: bool) -> None:
    """Our headers, what HTTP needs, and nothing of httpx's own."""
    server = Server(Body(b"body"))
    response, received = call(server, body, asynchronous=asynchronous, base_url="http://elsewhere/base")
    assert (response.status, received) == (200, b"body")
    (request,) = server.requests
    assert request.method == "POST"
    assert str(request.url) == URL, "nothing is encoded anew, and nothing comes before it"
    needed = [("host", "h"), ("content-length", str(len(body or b"")))]
    assert sorted(request.headers.multi_items()) == sorted([*HEADERS, *needed])
    assert server.bodies == [body or b""]


@both
def test_a_get_has_no_body(asynchronous: bool) -> None:
    server = Server(Body())
    if asynchronous:
        asyncio.run(asend(aconnect(server), None, method="GET"))
    else:
        send(connect(server), None, method="GET")
    (request,) = server.requests
    assert request.method == "GET"
    assert sorted(request.headers.multi_items()) == sorted([*HEADERS, ("host", "h")])


@both
def test_what_the_user_has_set(asynchronous: bool) -> None:
    """Headers, cookies, authentication and hooks stay; a header of the call's own goes before the client's."""
    seen: list[str] = []

    def hook(request: httpx.Request) -> None:
        seen.append(request.headers["authorization"])

    async def ahook(request: httpx.Request) -> None:
        hook(request)

    server = Server(Body())
    call(
        server,
        asynchronous=asynchronous,
        headers={"x-team": "rpc", "Content-Type": "text/plain", "accept-encoding": "deflate", "accept": "text/plain"},
        cookies={"session": "1"},
        auth=("user", "secret"),
        event_hooks={"request": [ahook if asynchronous else hook]},
    )
    headers = server.requests[0].headers
    assert headers["x-team"] == "rpc"
    assert headers.get_list("content-type") == ["application/proto"]
    assert "accept-encoding" not in headers, "httpx would be given what it then does not decode"
    assert headers["accept"] == "text/plain"
    assert headers["cookie"] == "session=1"
    assert len(seen) == 1
    assert headers["authorization"] == seen[0]


def test_a_request_in_parts() -> None:
    server = Server(Body(), Body())
    send(connect(server), iter([b"one", b"", b"two"]))
    response = asyncio.run(asend(aconnect(server), parts(b"one", b"", b"two")))
    assert response.uploaded
    assert server.bodies == [b"onetwo", b"onetwo"]
    assert [request.headers.get("transfer-encoding") for request in server.requests] == ["chunked", "chunked"]


def test_a_request_that_is_read_behind_the_head_of_its_answer() -> None:
    """As Starlette's test client does. It is not to take what it gets then, which is nothing, for the whole request."""

    class Late(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            stream: Any = request.stream

            def read() -> bytes:
                try:
                    return b"".join(stream)
                except Exception:
                    return b"failed"

            return httpx.Response(200, stream=Body(read))

    assert send(connect(Late()), iter([b"a", b"b"])).read(None) == b"failed"


def test_what_is_not_uploaded() -> None:
    """A server may answer before it has the whole request."""

    class Hasty(Server):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return self._answer()

    async def main() -> None:
        response = await asend(aconnect(Hasty(Body(b"x"))), parts(b"one"))
        assert not response.uploaded
        response.close()

    asyncio.run(main())


@pytest.mark.parametrize("raised", [ZeroDivisionError(), httpx.ConnectError("another client's"), OSError()], ids=repr)
def test_what_the_request_iterator_raises(raised: Exception) -> None:
    """As it is, whatever it may look like."""

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise raised

    async def abroken() -> AsyncIterator[bytes]:
        yield b"one"
        raise raised

    for cancel in (None, CancelToken()):
        with pytest.raises(type(raised)) as caught:
            send(connect(Server()), broken(), cancel=cancel)
        assert caught.value is raised
    with pytest.raises(type(raised)) as caught:
        asyncio.run(asend(aconnect(Server()), abroken()))
    assert caught.value is raised


def test_a_request_iterator_that_makes_calls() -> None:
    server = Server(Body(b"inner"), Body(b"outer"))
    transport = connect(server)

    def request() -> Iterator[bytes]:
        yield send(transport, b"").read(None)

    assert send(transport, request(), deadline=Deadline(10_000)).read(None) == b"outer"
    assert server.bodies == [b"", b"inner"]


@both
def test_timeouts(asynchronous: bool) -> None:
    """Those for connecting and for the pool are the user's; those between bytes are none of httpx's business."""
    server = Server(Body(), Body())
    timeout = httpx.Timeout(1, connect=2, pool=3)
    call(server, asynchronous=asynchronous, timeout=timeout)
    assert server.requests[0].extensions["timeout"] == {"connect": 2, "pool": 3, "read": None, "write": None}
    make: Any = async_transport if asynchronous else sync_transport
    client: Any = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=server, timeout=timeout)
    transport = make(client, connect_timeout=0.5) if asynchronous else make(client, "http://h", connect_timeout=0.5)
    if asynchronous:
        asyncio.run(asend(transport))
    else:
        send(transport)
    assert server.requests[1].extensions["timeout"]["connect"] == 0.5


def test_a_deadline_bounds_connecting_and_the_pool() -> None:
    server = Server(Body(), Body())
    transport = connect(server)
    send(transport, deadline=Deadline(1000))
    send(transport, deadline=Deadline(60_000), opening=Deadline(1000))
    for request in server.requests:
        timeout = request.extensions["timeout"]
        assert 0 < timeout["connect"] <= 1
        assert 0 < timeout["pool"] <= 1


# Answers.


@both
@pytest.mark.parametrize("limit", [None, 6, 100])
def test_bodies(limit: int | None, asynchronous: bool) -> None:
    body = Body(b"one", b"", b"two")
    assert call(Server(body), limit=limit, asynchronous=asynchronous)[1] == b"onetwo"
    assert body.closed


@both
def test_a_body_is_cut_off_beyond_the_limit(asynchronous: bool) -> None:
    body = Body(b"one", b"two", b"six")
    assert call(Server(body), limit=4, asynchronous=asynchronous)[1] == b"onetwo"
    if not asynchronous:
        assert body.closed == 1


@both
def test_headers(asynchronous: bool) -> None:
    response, _ = call(Server(Body()), asynchronous=asynchronous)
    assert response.headers.get("X-ONE") == "1"
    assert response.headers.get("absent") is None
    assert list(response.headers.items()) == [("x-one", "1"), ("x-many", "1"), ("x-many", "2")]
    assert response.trailers is None


@both
@pytest.mark.parametrize("status", [200, 204, 301, 307, 404, 500])
def test_any_status_is_an_answer(status: int, asynchronous: bool) -> None:
    """Redirects too, whatever the client was told of them."""
    server = Server(httpx.Response(status, headers={"location": "http://h/elsewhere"}, stream=Body(b"x")))
    response, body = call(server, asynchronous=asynchronous, follow_redirects=True)
    assert (response.status, body) == (status, b"x")
    assert len(server.requests) == 1


@both
def test_an_encoded_body_is_left_alone(asynchronous: bool) -> None:
    encoded = gzip.compress(b"body")
    answer = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(encoded))
    response, body = call(Server(answer), asynchronous=asynchronous)
    assert response.headers.get("content-encoding") == "gzip"
    assert body == encoded


@both
def test_a_body_that_was_read_already(asynchronous: bool) -> None:
    """By a hook, or by a transport that has all of it. httpx has decoded it then, so it is not encoded any more."""

    def hook(response: httpx.Response) -> None:
        response.read()

    async def ahook(response: httpx.Response) -> None:
        await response.aread()

    headers = {"content-encoding": "gzip", "x-one": "1"}
    answer = httpx.Response(200, headers=headers, stream=Body(gzip.compress(b"body")))
    hooks = {"response": [ahook if asynchronous else hook]}
    response, body = call(Server(answer), asynchronous=asynchronous, event_hooks=hooks)
    assert body == b"body"
    assert response.headers.get("Content-Encoding") is None
    assert list(response.headers.items()) == [("x-one", "1")]
    mock = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=gzip.compress(b"body")))
    response, body = call(mock, asynchronous=asynchronous)
    assert body == b"body"
    assert next(iter(response.headers.items())) == ("x-one", "1")


def test_closing() -> None:
    body = Body(b"one", b"two")
    response = send(connect(Server(body)))
    assert response.read_chunk() == b"one"
    response.close()
    response.close()
    assert body.closed == 1

    async def main() -> None:
        body = Body(b"one", b"two")
        response = await asend(aconnect(Server(body)))
        assert await response.read_chunk() == b"one"
        response.close()
        response.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert body.closed == 1

    asyncio.run(main())


def test_apps_in_memory() -> None:
    """httpx's transports for apps, of both kinds."""

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("content-type", environ["CONTENT_TYPE"])])
        return [environ["wsgi.input"].read(), b"!"]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/proto")]})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})

    response, body = call(httpx.WSGITransport(wsgi), asynchronous=False)
    assert (response.headers.get("content-type"), body) == ("application/proto", b"request!")
    transport = aconnect(httpx.ASGITransport(asgi))
    for _ in range(2):  # there are no connections that would belong to an event loop

        async def main() -> bytes:
            received: bytes = await (await asend(transport)).read(None)
            return received

        assert asyncio.run(main()) == b"request!"


def test_an_app_in_memory_runs_in_the_callers_thread() -> None:
    """It may have its database connection there."""
    threads: list[threading.Thread] = []

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        threads.append(threading.current_thread())
        start_response("200 OK", [])
        return [b""]

    send(connect(httpx.WSGITransport(wsgi)), deadline=Deadline(10_000)).read(None)
    assert threads == [threading.current_thread()]


# Failures.


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FAILURES: list[tuple[Exception, str, str]] = [
    (httpx.ConnectError("refused"), "unavailable", "no connection to the server can be made"),
    (chained(httpx.ConnectError("?"), socket.gaierror()), "unavailable", "name cannot be resolved"),
    (
        chained(httpx.ReadError("?"), ssl.SSLError(1, "[SSL: X] no client certificate")),
        "unavailable",
        "TLS with the server",
    ),
    (httpx.ConnectTimeout("late"), "unavailable", "connecting to the server took too long"),
    (httpx.PoolTimeout("late"), "unavailable", "all connections of the HTTP client's pool are in use"),
    (httpx.ReadTimeout("late"), "deadline_exceeded", "the HTTP client's own timeout"),
    (httpx.ReadError("reset"), "unavailable", "whether it saw the request is not known"),
    (httpx.WriteError("pipe"), "unavailable", "whether it saw the request is not known"),
    (
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        "unavailable",
        "whether it saw the request is not known",
    ),
    (httpx.RemoteProtocolError("illegal status line"), "unavailable", "failed: illegal status line"),
    (httpx.ProxyError("407"), "unavailable", "failed: 407"),
    (OSError("other"), "unavailable", "failed: other"),
]


@both
@pytest.mark.parametrize(("raised", "code", "message"), FAILURES, ids=[repr(row[0]) for row in FAILURES])
def test_failures_before_the_head(raised: Exception, code: str, message: str, asynchronous: bool) -> None:
    with pytest.raises(ConnectError, match=message) as caught:
        call(Server(raised), asynchronous=asynchronous)
    assert code_of(caught.value) == code
    assert caught.value.__cause__ is raised


@both
def test_failures_in_the_body(asynchronous: bool) -> None:
    raised = httpx.RemoteProtocolError("peer closed connection")
    body = Body(b"one", raised)
    with pytest.raises(ConnectError, match="the connection to the server failed: peer closed") as caught:
        call(Server(body), asynchronous=asynchronous)
    assert code_of(caught.value) == "unavailable"
    assert caught.value.__cause__ is raised
    assert body.closed


@both
def test_what_a_hook_raises_is_the_users(asynchronous: bool) -> None:
    def hook(response: httpx.Response) -> None:
        response.raise_for_status()

    async def ahook(response: httpx.Response) -> None:
        hook(response)

    body = Body(b"x")
    with pytest.raises(httpx.HTTPStatusError):
        call(
            Server(httpx.Response(500, stream=body)),
            asynchronous=asynchronous,
            event_hooks={"response": [ahook if asynchronous else hook]},
        )
    assert body.closed


@both
def test_a_client_that_was_closed(asynchronous: bool) -> None:
    if asynchronous:

        async def main() -> None:
            client = httpx.AsyncClient(transport=Server())
            await client.aclose()
            transport: Any = async_transport(client)
            with pytest.raises(RuntimeError, match="closed"):
                await asend(transport)

        asyncio.run(main())
    else:
        client = httpx.Client(transport=Server())
        client.close()
        closed: Any = sync_transport(client, "http://h")
        with pytest.raises(RuntimeError, match="closed"):
            send(closed)


def test_the_users_client_stays_open() -> None:
    client = httpx.Client(transport=Server())
    sync_transport(client, "http://h").close()
    assert not client.is_closed
    aclient = httpx.AsyncClient(transport=Server())
    asyncio.run(async_transport(aclient).aclose())
    assert not aclient.is_closed


# Being stopped.


def eventually(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def after(event: threading.Event, action: Callable[[], None]) -> None:
    """Do something in another thread when something else has happened."""

    def run() -> None:
        assert event.wait(10)
        action()

    threading.Thread(target=run).start()


def test_a_call_that_is_over_before_it_begins() -> None:
    server = Server()
    token = CancelToken()
    token.cancel()
    with pytest.raises(ConnectError) as caught:
        send(connect(server), cancel=token)
    assert code_of(caught.value) == "canceled"
    late = Deadline(1)
    time.sleep(0.01)
    with pytest.raises(ConnectError) as caught:
        send(connect(server), deadline=late)
    assert code_of(caught.value) == "deadline_exceeded"
    assert server.requests == []


@pytest.mark.parametrize("how", ["deadline", "opening", "token"])
def test_the_wait_for_the_head_can_be_left(how: str) -> None:
    """Also where nothing is known of what it waits for. The answer is closed when it comes after all."""
    release = threading.Event()
    body = Body(b"late")
    token = CancelToken()

    def slow() -> Body:
        entered.set()
        assert release.wait(10)
        return body

    entered = threading.Event()
    options: dict[str, Any] = {"cancel": token}
    if how == "deadline":
        options["deadline"] = Deadline(300)
    elif how == "opening":
        options["opening"] = Deadline(300)
    else:
        after(entered, token.cancel)
    began = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        send(connect(Server(slow)), **options)
    assert code_of(caught.value) == ("canceled" if how == "token" else "deadline_exceeded")
    assert time.monotonic() - began < 5
    assert not body.closed
    release.set()
    eventually(lambda: body.closed)


def test_the_upload_of_a_call_that_was_left_ends() -> None:
    token = CancelToken()
    begun, go_on = threading.Event(), threading.Event()
    given: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in range(1000):
            given.append(number)
            yield b"part"
            begun.set()
            assert go_on.wait(10)

    server = Server(Body())
    after(begun, token.cancel)
    with pytest.raises(ConnectError) as caught:
        send(connect(server), endless(), cancel=token)
    assert code_of(caught.value) == "canceled"
    go_on.set()
    time.sleep(0.05)
    assert len(given) <= 2
    assert server.bodies == [], "what was sent does not pass for the whole"


def test_a_stop_between_chunks() -> None:
    token = CancelToken()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cancel": token}, "canceled"),
        ({"deadline": Deadline(300)}, "deadline_exceeded"),
    ]
    for options, code in cases:
        body = Body(b"one", b"two")
        response = send(connect(Server(body)), **options)
        assert response.read_chunk() == b"one"
        if "cancel" in options:
            token.cancel()
        else:
            time.sleep(0.35)
        with pytest.raises(ConnectError) as caught:
            response.check()
        assert code_of(caught.value) == code
        with pytest.raises(ConnectError) as caught:
            response.read_chunk()
        assert code_of(caught.value) == code
        response.close()
        assert body.closed == 1
    response = send(connect(Server(Body(b"one"))))
    response.interrupt()
    with pytest.raises(ConnectError, match="the stream was closed") as caught:
        response.read_chunk()
    assert code_of(caught.value) == "canceled"
    response.close()


def test_a_token_is_forgotten_with_its_call() -> None:
    token = CancelToken()
    response = send(connect(Server(Body(b"one"))), cancel=token)
    assert response.read(None) == b"one"
    token.cancel()
    response.check()


def test_cancelling_a_task() -> None:
    """asyncio's own exception, and nothing left behind."""

    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            stream: Any = request.stream
            async for _ in stream:
                pass
            await asyncio.sleep(60)
            raise AssertionError

    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part"
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    async def main() -> None:
        for body in (b"request", endless()):
            task = asyncio.create_task(asend(aconnect(Silent()), body))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            for _ in range(10):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert closed == [True]

    asyncio.run(main())


def test_a_stream_that_is_collected_in_the_middle_of_another_call() -> None:
    """That call may hold locks which closing needs."""
    lock = threading.Lock()

    class Locked(Body):
        def close(self) -> None:
            with lock:
                super().close()

    body = Locked(b"one", b"two")
    left = send(connect(Server(body)))

    def collect() -> Body:
        with lock:
            left.close()
        return Body(b"answer")

    assert send(connect(Server(collect))).read(None) == b"answer"
    eventually(lambda: body.closed)


def test_a_stream_that_is_collected_while_another_is_closed() -> None:
    """Closing that one may hold them as well."""
    lock = threading.Lock()

    class Locked(Body):
        def close(self) -> None:
            if lock.acquire(timeout=5):
                super().close()
                lock.release()

    class Collecting(Body):
        def close(self) -> None:
            with lock:
                left.close()
            super().close()

    body, other = Locked(b"one", b"two"), Collecting(b"one", b"two")
    left = send(connect(Server(body)))
    send(connect(Server(other))).close()
    assert other.closed
    eventually(lambda: body.closed)


def test_a_stream_that_is_collected_in_a_cycle() -> None:
    """What reads the body is not collected with it: generators of httpcore's close it then, with the same locks."""
    held = threading.Event()
    closed_inside: list[bool] = []

    class Careful(Body):
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from super().__iter__()
            except GeneratorExit:
                closed_inside.append(held.is_set())
                raise

    body = Careful(b"one", b"two")
    left = Forgotten(send(connect(Server(body))))
    assert left.response.read_chunk() == b"one"

    def collect() -> Body:
        held.set()
        gc.collect()
        held.clear()
        return Body(b"answer")

    del left
    assert send(connect(Server(collect))).read(None) == b"answer"
    eventually(lambda: body.closed)
    gc.collect()
    assert True not in closed_inside


# Connections of HTTP/2, which calls share.


class Books:
    """What h2 knows of a connection whose streams share their room. There is none beyond 9."""

    max_outbound_frame_size = 4

    def __init__(self) -> None:
        self.room = 0
        self.sent: list[bytes] = []

    def local_flow_control_window(self, number: int) -> int:
        if number > 9:
            raise h2.exceptions.StreamClosedError(number)
        return self.room

    def send_data(self, _: int, data: bytes) -> None:
        assert len(data) <= self.room, "h2 would refuse it"
        self.room -= len(data)
        self.sent.append(data)


class Connection:
    """A connection of httpcore's, as far as it is reached into. What comes is what tests put there."""

    def __init__(self) -> None:
        self.books = Books()
        self._h2_state: Any = self.books
        self._events: dict[int, list[Any]] = {number: [] for number in range(1, 10)}
        self._read_exception: Exception | None = None
        self._connection_error = False
        self._network: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.reading: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """Whose turn it is to read, or None where that is for room."""

    def _receive_events(self, _: object, number: int | None = None) -> None:
        if self._read_exception is not None:
            raise self._read_exception
        self.reading.put(number)
        self._network.get(timeout=10)()

    def _write_outgoing_data(self, _: object) -> None:
        pass

    def comes(self, number: int) -> None:
        """Something comes on a stream."""
        self._network.put(lambda: self._events[number].append("event"))

    def grow(self, room: int) -> None:
        """Let there be room for so many bytes."""
        self._network.put(lambda: setattr(self.books, "room", room))

    def fail(self, error: Exception) -> None:
        def failure() -> None:
            raise error

        self._network.put(failure)


def shared(connection: Connection) -> Any:
    Stream(connection, None, 1).share()
    return connection


class Running(threading.Thread):
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        super().__init__(daemon=True)
        self._function, self._arguments = function, arguments
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function(*self._arguments)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        """What it raises, soon."""
        self.join(10)
        assert not self.is_alive()
        return self.error


def test_what_is_read_by_another_call() -> None:
    """Nobody waits longer for it, whoever reads on."""
    connection = shared(Connection())
    first = Running(connection._receive_events, None, 1)
    assert connection.reading.get(timeout=10) == 1
    second, third = Running(connection._receive_events, None, 2), Running(connection._receive_events, None, 3)
    for call, number in ((third, 3), (second, 2)):
        connection.comes(number)
        assert call.end() is None
        assert first.is_alive()
        assert connection.reading.get(timeout=10) == 1
    connection.comes(1)
    assert first.end() is None


@pytest.mark.parametrize("fails", [False, True])
def test_who_reads_next(fails: bool) -> None:
    connection = shared(Connection())
    first = Running(connection._receive_events, None, 1)
    assert connection.reading.get(timeout=10) == 1
    second = Running(connection._receive_events, None, 2)
    if fails:
        connection.fail(ConnectionResetError())
    else:
        connection.comes(1)
    assert isinstance(first.end(), ConnectionResetError if fails else type(None))
    assert connection.reading.get(timeout=10) == 2
    connection.comes(2)
    assert second.end() is None


def test_room_that_is_read_of_by_another_call() -> None:
    connection = shared(Connection())
    first = Running(connection._receive_events, None, 1)
    assert connection.reading.get(timeout=10) == 1
    second = Running(connection._send_stream_data, None, 2, b"0123456789")
    for _ in range(2):
        connection.grow(-3)  # as after a change of the settings
        assert connection.reading.get(timeout=10) == 1
        connection.grow(5)
        assert connection.reading.get(timeout=10) == 1
        eventually(lambda: connection.books.room == 0)
    assert second.end() is None
    assert connection.books.sent == [b"0123", b"4", b"5678", b"9"]
    connection.comes(1)
    assert first.end() is None


def test_sending_on_a_stream_that_is_over() -> None:
    """It is of no matter to whoever reads."""
    connection = shared(Connection())
    first = Running(connection._receive_events, None, 1)
    assert connection.reading.get(timeout=10) == 1
    assert isinstance(Running(connection._send_stream_data, None, 11, b"data").end(), h2.exceptions.StreamClosedError)
    assert connection._h2_state.has_room(11)
    connection.comes(1)
    assert first.end() is None


def test_a_server_that_breaks_http2() -> None:
    """All calls of the connection fail with it, and it takes no more."""
    connection = shared(Connection())
    first = Running(connection._receive_events, None, 1)
    assert connection.reading.get(timeout=10) == 1
    others = [
        Running(connection._receive_events, None, 2),
        Running(connection._receive_events, None, 3),
        Running(connection._send_stream_data, None, 4, b"data"),
    ]
    connection.fail(h2.exceptions.DenialOfServiceError("a header block that is too large"))
    assert isinstance(first.end(), h2.exceptions.DenialOfServiceError)
    for other in others:
        assert isinstance(other.end(), httpcore.RemoteProtocolError)
    assert connection._connection_error


class AsyncConnection(Connection):
    """The same for tasks."""

    def __init__(self) -> None:
        super().__init__()
        self._anetwork: asyncio.Queue[Callable[[], object]] = asyncio.Queue()
        self._network: Any = types.SimpleNamespace(put=self._anetwork.put_nowait)

    async def _receive_events(self, _: object, number: int | None = None) -> None:  # type: ignore[override]
        self.reading.put(number)
        happen = await self._anetwork.get()
        happen()

    async def _write_outgoing_data(self, _: object) -> None:  # type: ignore[override]
        pass


def test_reading_for_each_other_in_tasks() -> None:
    async def main() -> None:
        connection = shared(AsyncConnection())
        first = asyncio.create_task(connection._receive_events(None, 1))
        await asyncio.sleep(0)
        second = asyncio.create_task(connection._receive_events(None, 2))
        third = asyncio.create_task(connection._send_stream_data(None, 3, b"0123456789"))
        await asyncio.sleep(0)
        connection.comes(2)
        await asyncio.wait_for(second, 10)
        connection.grow(10)
        await asyncio.wait_for(third, 10)
        assert connection.books.sent == [b"0123", b"4567", b"89"]
        assert not first.done()
        connection.comes(1)
        await asyncio.wait_for(first, 10)

    asyncio.run(main())


@pytest.mark.parametrize("when", ["reading", "waiting", "next"])
def test_a_task_that_is_cancelled_gives_its_turn_on(when: str) -> None:
    async def main() -> None:
        connection = shared(AsyncConnection())
        first, second, third = (asyncio.create_task(connection._receive_events(None, number)) for number in (1, 2, 3))
        await asyncio.sleep(0)
        cancelled = first if when == "reading" else second
        if when == "next":
            # The turn is given to it just when it has been cancelled.
            connection._network.put(cancelled.cancel)
            connection.comes(1)
        else:
            cancelled.cancel()
        await asyncio.wait([cancelled], timeout=10)
        assert cancelled.cancelled()
        for task, number in ((third, 3), (second, 2), (first, 1)):
            if task is not cancelled and not (when == "next" and task is first):
                connection.comes(number)
            if task is not cancelled:
                await asyncio.wait_for(task, 10)

    asyncio.run(main())


# Waiting.


def test_waiting() -> None:
    dropped: list[str] = []
    waiting = Waiting(lambda: "done", dropped.append)
    while not waiting.wait(10):
        pass
    assert waiting.result() == "done"
    waiting.leave()
    assert dropped == ["done"]

    def fail() -> str:
        raise ZeroDivisionError

    failing = Waiting(fail, dropped.append)
    assert failing.wait(10)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    failing.leave()
    release = threading.Event()

    def late() -> str:
        assert release.wait(10)
        return "late"

    left = Waiting(late, dropped.append)
    assert not left.wait(0.01)
    threading.Timer(0.05, left.wake).start()
    assert not left.wait(10)
    left.leave()
    release.set()
    eventually(lambda: dropped == ["done", "late"])


# Where clients may be used.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fork() -> None:
    client = httpx.Client(transport=Server(Body()))
    made: Any = sync_transport(client, "http://h")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        said = []
        for attempt in (lambda: send(made), lambda: sync_transport(client, "http://h")):
            try:
                attempt()
            except RuntimeError as error:
                said.append(str(error))
        os.write(write, "\n".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    assert len(lines) == 2
    assert all("make the client after the fork" in line for line in lines)
    assert send(made).status == 200


def test_what_is_taken() -> None:
    with pytest.raises(TypeError, match=r"httpx\.Client"):
        sync_transport(httpx.AsyncClient(), "http://h")
    with pytest.raises(TypeError, match=r"httpx\.AsyncClient"):
        async_transport(httpx.Client())
    with pytest.raises(TypeError, match=r"httpx\.Client"):
        sync_transport(httpx, "http://h")


def test_nothing_of_it_is_loaded_for_others() -> None:
    import subprocess

    program = (
        "import sys, connectrpc.transports as t; t.sync_transport(None, 'http://h'); assert 'httpx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
