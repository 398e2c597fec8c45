"""urllib3 as a transport, its connections made of memory. Real servers are for the integration tests.

Where a call has to be woken, one end of a ``socket.socketpair()`` stands for the connection: nothing listens anywhere.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import errno
import functools
import gc
import heapq
import io
import os
import queue
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, SSLError
from urllib3.util.ssl_match_hostname import CertificateError
from urllib3.util.ssltransport import SSLTransport

from connectrpc._core.http import HTTPRequest
from connectrpc.cancel import CancelToken
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError
from connectrpc.transports.urllib3 import Urllib3Transport, _stopping
from harness import code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

HEADERS = [("content-type", "application/proto"), ("accept-encoding", "gzip"), ("user-agent", "test")]


class Socket:
    """A connection to a server that has its answers ready.

    Args:
        answers: one for each request; then the connection ends.
        failure: how it ends, if not quietly.
    """

    def __init__(self, *answers: bytes, failure: Exception | None = None) -> None:
        self.sent = bytearray()
        self.closed = False
        self._answers = list(answers)
        self._failure = failure

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def makefile(self, *args: object) -> io.BufferedReader:
        answer = self._answers.pop(0) if self._answers else b""
        return io.BufferedReader(Reader(answer, None if self._answers else self._failure), 16)

    def settimeout(self, timeout: float | None) -> None: ...
    def setsockopt(self, *args: object) -> None: ...
    def shutdown(self, how: int) -> None: ...
    def close(self) -> None:
        self.closed = True


class Reader(io.RawIOBase):
    def __init__(self, answer: bytes, failure: Exception | None) -> None:
        self._answer = io.BytesIO(answer)
        self._failure = failure

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._answer.read(len(buffer))
        if not chunk and self._failure is not None:
            raise self._failure
        buffer[: len(chunk)] = chunk
        return len(chunk)


def answer(body: bytes, head: str = "HTTP/1.1 200 OK", **headers: str) -> bytes:
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [head, *(f"{name}: {value}" for name, value in given.items() if value), "", ""]
    return "\r\n".join(lines).encode() + body


OK = answer(b"body", X_One="1")


class Network:
    """Makes the connections of a manager, each of what stands next in a list.

    Args:
        connections: an answer or a list of them, a socket, an exception that connecting raises, or what makes one of
            these of the connection.
    """

    def __init__(self, *connections: Any) -> None:
        self._connections = list(connections)
        self.made: list[Any] = []
        network = self

        class Connection(HTTPConnection):
            def _new_conn(self) -> Any:
                return network.connect(self)

            @property
            def is_connected(self) -> bool:
                return self.sock is not None

        class SecureConnection(HTTPSConnection):
            def _new_conn(self) -> Any:
                return network.connect(self)

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = SecureConnection

        self.pool_classes: dict[str, type] = {"http": Pool, "https": SecurePool}

    def connect(self, connection: HTTPConnection) -> Any:
        made = self._connections.pop(0)
        if callable(made):
            made = made(connection)
        if isinstance(made, Exception):
            raise made
        if isinstance(made, bytes):
            made = [made]
        if isinstance(made, list):
            made = Socket(*made)
        self.made.append(made)
        return made

    def manager(self, **options: Any) -> urllib3.PoolManager:
        manager = urllib3.PoolManager(**options)
        manager.pool_classes_by_scheme = self.pool_classes
        return manager

    def transport(self, **options: Any) -> Urllib3Transport:
        return Urllib3Transport(self.manager(**options), "http://host:81/base")


def send(
    transport: Urllib3Transport,
    body: bytes | Iterator[bytes] | None = b"request",
    *,
    method: str = "POST",
    stream: bool = False,
    deadline: Deadline = NO_DEADLINE,
    opening: Deadline | None = None,
    cancel: CancelToken | None = None,
    headers: list[tuple[str, str]] | None = None,
) -> Any:
    request = HTTPRequest(method, f"{transport._base_url}/path?x=%2F", HEADERS if headers is None else headers)
    return transport.send(request, body, stream=stream, deadline=deadline, opening=opening or deadline, cancel=cancel)


def test_what_is_sent() -> None:
    network = Network(OK)
    assert send(network.transport()).read(None) == b"body"
    head, _, body = bytes(network.made[0].sent).partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /base/path?x=%2f http/1.1"
    assert sorted(lines[1:]) == [
        "accept-encoding: gzip",
        "content-length: 7",
        "content-type: application/proto",
        "host: host:81",
        "user-agent: test",
    ]
    assert body == b"request"


def test_a_request_without_a_body() -> None:
    network = Network(OK)
    send(network.transport(), None, method="GET").read(None)
    sent = bytes(network.made[0].sent).lower()
    assert sent.startswith(b"get /base/path?x=%2f http/1.1")
    assert b"content-length" not in sent
    assert b"transfer-encoding" not in sent


def test_a_request_in_parts() -> None:
    network = Network(OK)
    send(network.transport(), iter([b"one", b"two"]), stream=True).read(None)
    sent = bytes(network.made[0].sent)
    assert b"transfer-encoding: chunked" in sent.lower()
    assert sent.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_repeated_headers() -> None:
    network = Network(OK)
    send(network.transport(), headers=[*HEADERS, ("x-many", "1"), ("x-many", "2")]).read(None)
    assert b"x-many: 1\r\n" in network.made[0].sent
    assert b"x-many: 2\r\n" in network.made[0].sent


def test_what_is_received() -> None:
    response = send(Network(OK).transport())
    assert response.status == 200
    assert response.headers.get("x-one") == "1"
    assert ("X-One", "1") in list(response.headers.items())
    assert response.read(None) == b"body"


def test_nothing_is_done_behind_the_calls_back() -> None:
    """No redirect is followed, no status raises, nothing is decompressed."""
    moved = answer(b"moved", "HTTP/1.1 302 Found", Location="http://host:81/elsewhere")
    compressed = answer(b"\x1f\x8bgarbage", Content_Encoding="gzip")
    failed = answer(b"", "HTTP/1.1 503 Service Unavailable", Retry_After="1")
    for given, status, body in ((moved, 302, b"moved"), (compressed, 200, b"\x1f\x8bgarbage"), (failed, 503, b"")):
        for method in ("GET", "POST"):
            network = Network(given)
            response = send(network.transport(), None if method == "GET" else b"request", method=method)
            assert (response.status, response.read(None)) == (status, body)
            assert len(network.made) == 1


CHUNKED = answer(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked")
UNTIL_CLOSED = answer(b"onetwo", Content_Length="", Connection="close")


@pytest.mark.parametrize("given", [answer(b"onetwo"), CHUNKED, UNTIL_CLOSED])
@pytest.mark.parametrize("stream", [False, True])
def test_bodies(given: bytes, stream: bool) -> None:
    for limit in (None, 6, 100):
        assert send(Network(given).transport(), stream=stream).read(limit) == b"onetwo"
    for limit in (0, 5):
        assert len(send(Network(given).transport(), stream=stream).read(limit)) > limit
    response = send(Network(given).transport(), stream=True)
    chunks = []
    while chunk := response.read_chunk():
        chunks.append(chunk)
    assert b"".join(chunks) == b"onetwo"
    response.close()
    response.close()


def test_what_has_come_of_a_chunk_is_given_at_once() -> None:
    """Its rest may come much later: what makes chunks of a stream need not know of messages."""
    with Pair() as pair:
        manager = Network(lambda connection: pair.near).manager(timeout=20)
        pair.far.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\none")
        response = send(Urllib3Transport(manager, "http://host:81/base"), stream=True)
        assert response.read_chunk() == b"one"
        pair.far.sendall(b"two\r\n3\r\n")
        assert response.read_chunk() == b"two"
        pair.far.sendall(b"six\r\n0\r\n\r\n")
        assert response.read_chunk() == b"six"
        assert response.read_chunk() == b""
        response.close()
        pair.far.sendall(OK)
        assert send(Urllib3Transport(manager, "http://host:81/base")).read(None) == b"body"


def test_a_large_body_is_cut_off_at_the_limit() -> None:
    whole = answer(b"x" * 1_000_000)
    network = Network(whole, OK)
    transport = network.transport()
    assert 1000 < len(send(transport).read(1000)) < 200_000
    assert network.made[0].closed, "there is more to come on this connection"
    assert send(transport).read(None) == b"body"


def test_connections_are_used_again() -> None:
    network = Network([OK] * 4)
    transport = network.transport()
    for stream in (False, True):
        for _ in range(2):
            assert send(transport, stream=stream).read(None) == b"body"
    assert len(network.made) == 1


def test_a_stream_that_is_left_drops_its_connection() -> None:
    network = Network(answer(b"x" * 100_000), OK)
    transport = network.transport(block=True, maxsize=1)
    response = send(transport, stream=True)
    assert response.read_chunk()
    response.close()
    assert network.made[0].closed
    assert send(transport).read(None) == b"body", "nobody waits for a connection that is gone"
    assert len(network.made) == 2


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (lambda connection: ConnectTimeoutError(connection, "x"), "unavailable", "too long"),
        (lambda connection: NewConnectionError(connection, "x"), "unavailable", "no connection"),
        (lambda connection: NameResolutionError("host", connection, socket.gaierror()), "unavailable", "name"),
        (lambda connection: OSError("x"), "unavailable", ""),
        (b"", "unavailable", "whether it saw the request"),
        (b"HTTP/1.1", "unavailable", ""),
        (b"not HTTP at all\r\n\r\n", "unavailable", "failed"),
        (lambda _: Socket(failure=TimeoutError("x")), "deadline_exceeded", "read timeout"),
        (lambda _: Socket(failure=ConnectionResetError("x")), "unavailable", ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_answer(failure: Any, code: str, text: str, stream: bool) -> None:
    network = Network(failure, AssertionError("it was tried again"))
    with pytest.raises(ConnectError) as caught:
        send(network.transport(), stream=stream)
    assert code_of(caught.value) == code
    assert text in caught.value.message
    assert caught.value.__cause__ is not None


ECHOED = b"POST http://proxy:82/path HTTP/1.1\r\n\r\n"
UNREACHABLE = os.strerror(errno.EHOSTUNREACH)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize(
    ("failure", "texts"),
    [
        (lambda connection: NewConnectionError(connection, "x"), ["no connection to the server can be made"]),
        (
            lambda connection: NameResolutionError("host", connection, socket.gaierror()),
            ["the server's name cannot be resolved"],
        ),
        (lambda connection: ConnectTimeoutError(connection, "x"), ["connecting to the server took too long"]),
        (lambda _: OSError(errno.EHOSTUNREACH, "host"), [f"failed: {UNREACHABLE}", f"can be made: {UNREACHABLE}"]),
        (lambda _: SSLError("Fingerprints did not match: host"), ["is not trusted: it has another fingerprint"]),
        (lambda _: SSLError(CertificateError("host")), ["is not trusted: it is for another host"]),
    ],
)
def test_what_is_told_of_connections_that_cannot_be_made(
    failure: Callable[[HTTPConnection], Exception], texts: list[str], proxied: bool, scheme: str
) -> None:
    """Neither whose they would be nor what of ours has failed: a service may pass on what a call of its own raised."""
    manager = urllib3.ProxyManager("http://proxy:82") if proxied else urllib3.PoolManager()
    manager.pool_classes_by_scheme = Network(failure).pool_classes
    with pytest.raises(ConnectError) as caught:
        send(Urllib3Transport(manager, f"{scheme}://host:81/base"))
    assert code_of(caught.value) == "unavailable"
    assert any(text in caught.value.message for text in texts)
    assert not re.search("host:|proxy|urllib3|Owned|Error", caught.value.message)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (ECHOED, "the connection to the server failed: its answer broke off, or is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX-O", "the connection to the server failed: its answer broke off, or is not HTTP"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "the connection to the server failed: 101, which nobody asked for",
        ),
        (
            answer(b"", X="http://host/" * 10_000),
            "the connection to the server failed: its answer broke off, or is not HTTP",
        ),
    ],
)
def test_what_is_told_of_answers_that_are_none(given: bytes, text: str) -> None:
    """What came may be what was sent, such as a GET request whose URL has the message."""
    with pytest.raises(ConnectError) as caught:
        send(Network(given).transport())
    assert caught.value.message == text


def test_a_proxy_that_refuses_its_tunnel() -> None:
    manager = urllib3.ProxyManager("http://proxy:82")
    network = Network(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    manager.pool_classes_by_scheme = network.pool_classes
    with pytest.raises(ConnectError) as caught:
        send(Urllib3Transport(manager, "https://host:81/base"))
    assert code_of(caught.value) == "unavailable"
    assert caught.value.message == "the proxy makes no connection: HTTP status 407"


@pytest.mark.parametrize(
    ("given", "failure", "code"),
    [
        (answer(b"cut off", Content_Length="100"), None, "unavailable"),
        (answer(b"3\r\non", Content_Length="", Transfer_Encoding="chunked"), None, "unavailable"),
        (answer(b"-5\r\nabc\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"), None, "unavailable"),
        (answer(b"x", Content_Length="100"), TimeoutError("x"), "deadline_exceeded"),
        (answer(b"x", Content_Length="100"), ConnectionResetError("x"), "unavailable"),
    ],
)
@pytest.mark.parametrize("chunks", [False, True])
def test_failures_in_the_answer(given: bytes, failure: Exception | None, code: str, chunks: bool) -> None:
    network = Network(Socket(given, failure=failure), OK)
    transport = network.transport()
    response = send(transport, stream=chunks)
    with pytest.raises(ConnectError) as caught:
        while (response.read_chunk() if chunks else response.read(None)) != b"":
            pass
    response.close()
    assert code_of(caught.value) == code
    assert caught.value.__cause__ is not None
    assert send(transport).read(None) == b"body"


def test_what_the_request_iterator_raises() -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        raise error

    cause = KeyError("a")
    for error in (ZeroDivisionError(), OSError("mine"), ConnectError.__new__(ConnectError)):
        error.__cause__ = cause
        network = Network(OK, OK)
        transport = network.transport()
        with pytest.raises(type(error)) as caught:
            send(transport, parts(), stream=True)
        assert caught.value is error
        assert (error.__cause__, error.__context__) == (cause, None), "just as it was raised"
        assert send(transport).read(None) == b"body"


def test_a_request_iterator_may_make_calls() -> None:
    network = Network(OK, answer(b"inner"))
    transport = network.transport()

    def parts() -> Iterator[bytes]:
        yield send(transport, cancel=CancelToken()).read(None)

    assert send(transport, parts(), stream=True, cancel=CancelToken()).read(None) == b"body"
    assert b"5\r\ninner\r\n" in network.made[0].sent


@pytest.mark.parametrize("end", ["failed", "canceled", "late", "answered early", "sent"])
def test_a_request_generator_ends_with_its_upload(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """At once, whoever holds it, in the thread and with the context variables that it was read with."""
    variable = contextvars.ContextVar("variable", default="")
    closed: list[int] = []

    def parts() -> Iterator[bytes]:
        before = variable.set("in the generator")
        try:
            while end != "sent":
                if end == "canceled":
                    token.cancel()
                elif end == "late":
                    while not deadline.expired():
                        time.sleep(0.01)
                else:
                    pair.hang_up()
                yield b"part"
        finally:
            variable.reset(before)
            closed.append(threading.get_ident())

    with Pair() as pair:
        if end in ("sent", "answered early"):
            pair.far.sendall(OK)
        token = CancelToken()
        deadline = Deadline(300) if end == "late" else NO_DEADLINE
        generator = parts()
        call = functools.partial(send, pair.transport(), generator, stream=True, deadline=deadline, cancel=token)
        codes = {"failed": "unavailable", "canceled": "canceled", "late": "deadline_exceeded"}
        if end in codes:
            with pytest.raises(ConnectError) as caught:
                call()
            assert closed == [threading.get_ident()]
            assert code_of(caught.value) == codes[end]
        else:
            response = call()
            assert closed == [threading.get_ident()]
            assert response.read(None) == b"body"
    assert "failed while it was closed" not in caplog.text


def test_a_request_generator_that_fails_when_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """That is logged; the call has its outcome."""

    def parts() -> Iterator[bytes]:
        try:
            while True:
                pair.hang_up()
                yield b"part"
        finally:
            raise ZeroDivisionError

    for answered in (True, False):
        caplog.clear()
        with Pair() as pair:
            if answered:
                pair.far.sendall(OK)
                assert send(pair.transport(), parts(), stream=True).read(None) == b"body"
            else:
                with pytest.raises(ConnectError) as caught:
                    send(pair.transport(), parts(), stream=True)
                assert code_of(caught.value) == "unavailable"
        (record,) = caplog.records
        assert record.name == "connectrpc.client"
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError


def test_what_is_handed_in_stays_open() -> None:
    network = Network(OK, OK)
    manager = network.manager()
    transport = Urllib3Transport(manager, "http://host:81/base")
    send(transport).read(None)
    transport.close()
    assert not network.made[0].closed
    assert len(manager.pools) == 1
    own = Urllib3Transport(None, "http://host:81/base")
    own._manager.pool_classes_by_scheme = network.pool_classes
    send(own).read(None)
    own.close()
    own.close()
    assert network.made[1].closed


def test_a_client_that_is_dropped_closes_its_connections() -> None:
    """At once, not when the garbage collector comes by: somebody may make a client for each call."""
    network = Network(OK)
    gc.disable()
    try:
        assert send(network.transport()).read(None) == b"body"
        assert network.made[0].closed
    finally:
        gc.enable()


def test_a_pool_that_somebody_has_closed() -> None:
    network = Network(OK, OK)
    manager = network.manager()
    transport = Urllib3Transport(manager, "http://host:81/base")
    send(transport).read(None)
    pool = manager.connection_from_url("http://host:81")
    manager.clear()
    pool.close()
    assert send(transport).read(None) == b"body"
    assert len(network.made) == 2


def test_a_closed_pool_that_the_manager_still_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``with manager.connection_from_url(...)``: an error, not trying for ever."""
    network = Network(OK, OK)
    manager = network.manager()
    transport = Urllib3Transport(manager, "http://host:81/base")
    send(transport).read(None)
    with manager.connection_from_url("http://host:81"):
        pass
    original, found = manager.connection_from_url, []

    def find(*args: Any) -> Any:
        found.append(args)
        assert len(found) < 100, "it tries for ever"
        return original(*args)

    monkeypatch.setattr(manager, "connection_from_url", find)
    for stream in (False, True):
        try:
            assert send(transport, stream=stream).read(None) == b"body"
        except ConnectError as error:
            assert code_of(error) == "unavailable"  # noqa: PT017  both are fine
            assert error.message == "the HTTP client's pool is closed"  # noqa: PT017


class Behind:
    """What passes itself off as another object, as wrapt's proxies do."""

    def __init__(self, other: Any) -> None:
        object.__setattr__(self, "other", other)

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "other"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "other"), name, value)


def test_a_pool_behind_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair() as pair:
        manager = Network(lambda connection: pair.near).manager()
        pool = manager.connection_from_url("http://host:81/")
        monkeypatch.setattr(manager, "connection_from_url", lambda url: Behind(pool))
        check_ended(Urllib3Transport(manager, "http://host:81/base"), "cancel")


def test_connections_from_before_are_not_used() -> None:
    """They could not tell which call they serve, so nothing could stop that."""
    network = Network(OK, OK)
    manager = network.manager()
    assert manager.request("GET", "http://host:81/").data == b"body"
    assert send(Urllib3Transport(manager, "http://host:81/base")).read(None) == b"body"
    assert len(network.made) == 2
    assert network.made[0].closed


def test_proxies() -> None:
    network = Network(OK)
    manager = urllib3.ProxyManager("http://proxy:82", proxy_headers={"x-proxy": "1"})
    manager.pool_classes_by_scheme = network.pool_classes
    assert send(Urllib3Transport(manager, "http://host:81/base"), cancel=CancelToken()).read(None) == b"body"
    sent = bytes(network.made[0].sent)
    assert sent.startswith(b"POST http://host:81/base/path?x=%2F HTTP/1.1\r\n")
    assert b"x-proxy: 1" in sent


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_through_a_proxy_is_woken_on_whatever_pool(how: str) -> None:
    """The manager keeps a limited number of them, and may be cleared."""
    with Pair() as pair:
        network = Network(OK, lambda connection: pair.near)
        manager = urllib3.ProxyManager("http://proxy:82", timeout=20)
        manager.pool_classes_by_scheme = network.pool_classes
        transport = Urllib3Transport(manager, "http://host:81/base")
        assert send(transport, stream=True).read(None) == b"body"
        manager.clear()
        check_ended(transport, how)


@pytest.mark.parametrize("stream", [False, True])
def test_what_wraps_the_pools_adds_headers(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """As OpenTelemetry's instrumentation of urllib3 does."""
    urlopen = urllib3.HTTPConnectionPool.urlopen

    def traced(pool: Any, *args: Any, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "traceparent": "00-1-1-01"}
        return urlopen(pool, *args, **options)

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", traced)
    network = Network(OK)
    assert send(network.transport(), stream=stream).read(None) == b"body"
    assert b"traceparent: 00-1-1-01\r\n" in network.made[0].sent


@pytest.mark.parametrize(
    "timeout", [None, 5, urllib3.Timeout(connect=3, read=4), urllib3.Timeout(total=10), urllib3.Timeout(connect=0.001)]
)
def test_the_users_timeouts_are_kept(timeout: Any) -> None:
    seen: list[Any] = []

    def note(connection: HTTPConnection) -> bytes:
        seen.append(connection.timeout)
        return OK

    options = {} if timeout is None else {"timeout": timeout}
    for deadline in (NO_DEADLINE, Deadline(2000)):
        send(Network(note).transport(**options), deadline=deadline).read(None)
    own = urllib3.Timeout.from_float(timeout) if isinstance(timeout, int) else timeout
    without = None if own is None else own.connect_timeout
    assert seen[0] == without
    bounded = seen[1]
    assert isinstance(bounded, float)
    assert bounded <= min(2.0, without if isinstance(without, int | float) else 2.0)


# Threads that come at the same time


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What calls give that begin together, each in a thread of its own."""
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        begin.wait(5)
        return call()

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(10) for future in [pool.submit(run, call) for call in calls]]


class Meeting:
    """Where two threads would meet if nothing kept them apart."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def wait(self) -> bool:
        """Wait a moment for the other. Whether it came, and was here first."""
        try:
            return self._barrier.wait(0.2) == 1
        except threading.BrokenBarrierError:
            return False


class GreenQueue:
    """As gevent's, which it patches Python's with: there is no more to it."""

    def __init__(self, maxsize: int) -> None:
        self._queue: queue.LifoQueue[Any] = queue.LifoQueue(maxsize)
        self.get, self.put, self.qsize = self._queue.get, self._queue.put, self._queue.qsize


def test_a_process_that_gevent_has_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "QueueCls", GreenQueue)
    network = Network([OK] * 2, OK)
    transport = network.transport()
    for stream in (False, True):
        assert send(transport, stream=stream).read(None) == b"body"
    monkeypatch.setattr(_stopping, "generation", _stopping.generation + 1)  # a process that was forked from it
    assert send(transport).read(None) == b"body"


def test_clients_that_share_a_pool_and_begin_at_once() -> None:
    network = Network(OK, OK)
    meeting, changed = Meeting(), threading.Event()

    base: Any = network.pool_classes["http"]

    class Pool(base):  # type: ignore[misc]
        kind = base.ConnectionCls

        @property
        def ConnectionCls(self) -> Any:  # noqa: N802
            found = self.kind
            if meeting.wait():
                changed.wait(5)
            return found

        @ConnectionCls.setter
        def ConnectionCls(self, kind: Any) -> None:  # noqa: N802
            self.kind = kind
            changed.set()

    network.pool_classes["http"] = Pool
    manager = network.manager()
    transports = [Urllib3Transport(manager, "http://host:81/base") for _ in range(2)]
    calls = [functools.partial(send, transport) for transport in transports]
    assert [response.read(None) for response in at_once(*calls)] == [b"body", b"body"]  # type: ignore[attr-defined]


def test_threads_of_a_forked_process_that_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport starts over once, and both use the same pool from then on."""
    network = Network([OK] * 2, [OK] * 3, [OK] * 3)
    meeting, copies = Meeting(), []

    class Manager(urllib3.PoolManager):
        def __copy__(self) -> Manager:
            meeting.wait()
            copies.append(self)
            copied = Manager()
            copied.pool_classes_by_scheme = network.pool_classes
            return copied

    manager = Manager()
    manager.pool_classes_by_scheme = network.pool_classes
    transport = Urllib3Transport(manager, "http://host:81/base")
    assert send(transport).read(None) == b"body"
    monkeypatch.setattr(_stopping, "generation", _stopping.generation + 1)
    at_once(lambda: send(transport).read(None), lambda: send(transport).read(None))
    assert copies == [manager]


# What is stopped


class Pair:
    """A connection whose other end is in the hands of the test."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.settimeout(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self.near.fileno() >= 0:
            os.close(self.near.detach())  # http.client of Python 3.10 leaves a file of it open where a tunnel fails
        self.far.close()

    def hang_up(self) -> None:
        """Take what has come, without which this would be a reset, and close the other end."""
        if self.far.fileno() >= 0:
            self.far.recv(65536)
            self.far.close()

    def transport(self) -> Urllib3Transport:
        return Network(lambda connection: self.near).transport()


def soon(action: Callable[[], None], seconds: float = 0.02) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def check_ended(transport: Urllib3Transport, how: str) -> None:
    """A call that would wait for long is ended at once, by a token or at its deadline."""
    start = time.monotonic()
    token = CancelToken() if how == "cancel" else None
    timer = None if token is None else soon(token.cancel)
    with pytest.raises(ConnectError) as caught:
        send(transport, deadline=Deadline(20) if how == "deadline" else NO_DEADLINE, cancel=token)
    assert caught.value.message == ("the call was canceled" if how == "cancel" else "the deadline has passed")
    assert time.monotonic() - start < 10
    if timer is not None:
        timer.join()


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
OPEN_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 2", HALF, OPEN_END])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize("stream", [False, True])
def test_whatever_waits_is_woken(head: bytes, how: str, stream: bool) -> None:
    with Pair() as pair:
        pair.far.sendall(head)
        token = CancelToken() if how == "cancel" else None
        timer = soon(token.cancel) if token is not None else None
        deadline = Deadline(20) if how == "deadline" else NO_DEADLINE
        start = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            response = send(pair.transport(), stream=stream, deadline=deadline, cancel=token)
            if stream:
                while response.read_chunk():
                    pass
            else:
                response.read(None)
        assert code_of(caught.value) == ("canceled" if how == "cancel" else "deadline_exceeded")
        assert time.monotonic() - start < 10
        if timer is not None:
            timer.join()


def test_a_body_that_drips_is_bounded_by_the_deadline() -> None:
    """Each read succeeds in time; urllib3's own timeouts would let it go on for ever."""
    with Pair() as pair:
        pair.far.sendall(HALF)
        over = threading.Event()

        def drip() -> None:
            while not over.wait(0.005):
                try:
                    pair.far.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(ConnectError) as caught:
                send(pair.transport(), deadline=Deadline(40)).read(None)
            assert code_of(caught.value) == "deadline_exceeded"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize("drips", [False, True])
def test_a_handshake_is_woken(how: str, drips: bool) -> None:
    """Even where each of its reads succeeds in time."""
    with Pair() as pair:
        open_before = len(os.listdir("/dev/fd"))
        over = threading.Event()

        def drip() -> None:
            pair.far.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xf0")  # the beginning of a long ServerHello
            with contextlib.suppress(OSError):
                while not over.wait(0.005):
                    pair.far.sendall(b"x")

        def connected(connection: HTTPConnection) -> socket.socket:
            if token is not None:
                timers.append(soon(token.cancel))
            return pair.near

        timers: list[threading.Timer] = []
        token = CancelToken() if how == "cancel" else None
        network = Network(connected)
        manager = network.manager(timeout=20)
        transport = Urllib3Transport(manager, "https://host:81/base")
        thread = threading.Thread(target=drip)
        if drips:
            thread.start()
        start = time.monotonic()
        try:
            with pytest.raises(ConnectError) as caught:
                send(transport, deadline=Deadline(40) if how == "deadline" else NO_DEADLINE, cancel=token)
        finally:
            took = time.monotonic() - start
            over.set()
            for running in (*timers, *([thread] if drips else [])):
                running.join()
        assert caught.value.message == ("the call was canceled" if how == "cancel" else "the deadline has passed")
        assert took < 10
        assert len(os.listdir("/dev/fd")) < open_before, "the connection is closed, and nothing else was left"


class InTLS(SSLTransport):
    """What urllib3 makes for TLS in the TLS of a proxy, but for that."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.sendall = sock.sendall  # type: ignore[assignment, method-assign]
        self.makefile = sock.makefile  # type: ignore[assignment]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_in_tls_in_tls_is_woken(how: str) -> None:
    with Pair() as pair:
        check_ended(Network(lambda connection: InTLS(pair.near)).transport(timeout=20), how)


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_for_connecting_that_passes_in_a_handshake_or_a_tunnel(proxied: bool, stream: bool) -> None:
    with Pair() as pair:

        def connected(connection: HTTPConnection) -> socket.socket:
            pair.near.settimeout(connection.timeout)
            return pair.near

        network = Network(connected)
        manager = urllib3.ProxyManager("http://proxy:82") if proxied else urllib3.PoolManager()
        manager.pool_classes_by_scheme = network.pool_classes
        transport = Urllib3Transport(manager, "https://host:81/base", connect_timeout=0.02)
        with pytest.raises(ConnectError) as caught:
            send(transport, stream=stream)
        assert code_of(caught.value) == "unavailable"
        assert caught.value.message == "connecting to the server took too long"


@pytest.mark.parametrize("timeout", [0, 2000], ids=["no deadline", "deadline"])
@pytest.mark.parametrize("kind", ["message", "stream"])
def test_a_limit_for_connecting_does_not_bound_the_upload(kind: str, timeout: int) -> None:
    """Neither on a connection that was made for the call nor on one that is used again."""
    chosen: list[float | None] = []

    class Noting(Socket):
        def __init__(self) -> None:
            super().__init__(OK, OK)
            self.timeout: float | None = None

        def settimeout(self, timeout: float | None) -> None:
            self.timeout = timeout

        def sendall(self, data: bytes) -> None:
            chosen.append(self.timeout)
            super().sendall(data)

    def connected(connection: HTTPConnection) -> Noting:
        made = Noting()
        made.settimeout(connection.timeout)
        bounds.append(connection.timeout)
        return made

    for own in (None, 7.0):
        bounds: list[float | None] = []
        manager = Network(connected).manager(timeout=urllib3.Timeout(connect=own))
        transport = Urllib3Transport(manager, "http://host:81/base", connect_timeout=0.5)
        for _ in range(2):
            deadline = Deadline(timeout) if timeout else NO_DEADLINE
            body = b"x" if kind == "message" else iter([b"one", b"two"])
            assert send(transport, body, stream=kind == "stream", deadline=deadline).read(None) == b"body"
        assert bounds == [0.5]
        assert set(chosen) == {own}
        chosen.clear()


def test_an_upload_that_takes_longer_than_the_users_own_limit() -> None:
    with Pair() as pair:
        transport = Network(lambda connection: pair.near).transport(timeout=urllib3.Timeout(connect=0.02))
        pair.near.settimeout(0.02)
        with pytest.raises(ConnectError) as caught:
            send(transport, b"x" * 50_000_000)
        assert code_of(caught.value) == "deadline_exceeded"
        assert caught.value.message == "the HTTP client's own timeout has passed"


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
@pytest.mark.parametrize("stream", [False, True])
def test_names_that_cannot_be(host: str, stream: bool) -> None:
    """Some are refused before anybody is asked for them."""
    with pytest.raises(ConnectError) as caught:
        send(Urllib3Transport(None, f"http://{host}"), stream=stream)
    assert code_of(caught.value) == "unavailable"
    assert caught.value.message == "the server's name cannot be resolved"


class Recorded(io.BytesIO):
    """An answer that was recorded for a test, as vcrpy makes them."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}
    version_string = "HTTP/1.1"
    length_remaining = 4

    def release_conn(self) -> None: ...


@pytest.mark.parametrize("stream", [False, True])
def test_recorded_answers(stream: bool) -> None:
    network = Network(OK)
    base: Any = network.pool_classes["http"]

    class Connection(base.ConnectionCls):  # type: ignore[misc]
        def getresponse(self) -> Any:
            return Recorded(b"body")

    base.ConnectionCls = Connection
    response = send(network.transport(), stream=stream)
    assert (response.read_chunk() if stream else response.read(None)) == b"body"
    response.close()


@pytest.mark.parametrize("has_ipv6", [False, True])
def test_a_name_is_looked_up_as_urllib3_does(monkeypatch: pytest.MonkeyPatch, has_ipv6: bool) -> None:
    """Whether or not there is a guard: with its dot at the end, and for the kinds of address that are wanted."""
    asked: list[tuple[object, ...]] = []

    def resolve(host: str, port: int, family: int = 0, type: int = 0) -> list[Any]:
        asked.append((host, port, family, type))
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("urllib3.util.connection.HAS_IPV6", has_ipv6)
    for stream in (False, True):
        with pytest.raises(ConnectError):
            send(Urllib3Transport(None, "http://name.test.:81"), stream=stream)
    family = socket.AF_UNSPEC if has_ipv6 else socket.AF_INET
    assert asked == [("name.test.", 81, family, socket.SOCK_STREAM)] * 2


def test_an_upload_that_nobody_takes_is_woken() -> None:
    with Pair() as pair:
        token = CancelToken()
        timer = soon(token.cancel)
        with pytest.raises(ConnectError) as caught:
            send(pair.transport(), b"x" * 50_000_000, cancel=token)
        assert code_of(caught.value) == "canceled"
        timer.join()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_is_woken_whose_request_iterator_has_used_the_same_pool(how: str) -> None:
    with Pair() as pair:
        manager = Network(lambda connection: pair.near, OK).manager(timeout=20)

        def parts() -> Iterator[bytes]:
            yield manager.request("GET", "http://host:81/elsewhere").data
            if token is not None:
                timers.append(soon(token.cancel))

        token = CancelToken() if how == "cancel" else None
        timers: list[threading.Timer] = []
        start = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            send(
                Urllib3Transport(manager, "http://host:81/base"),
                parts(),
                stream=True,
                deadline=Deadline(300) if how == "deadline" else NO_DEADLINE,
                cancel=token,
            )
        assert caught.value.message == ("the call was canceled" if how == "cancel" else "the deadline has passed")
        assert time.monotonic() - start < 10
        assert b"4\r\nbody\r\n0\r\n\r\n" in pair.far.recv(65536)
        for timer in timers:
            timer.join()


def test_closing_a_stream_wakes_its_reader() -> None:
    with Pair() as pair:
        pair.far.sendall(HALF)
        response = send(pair.transport(), stream=True)
        assert response.read_chunk() == b"half"
        timer = soon(response.interrupt)
        with pytest.raises(ConnectError) as caught:
            response.read_chunk()
        assert code_of(caught.value) == "canceled"
        timer.join()
        response.close()


def test_a_token_that_was_cancelled_sends_nothing() -> None:
    token = CancelToken()
    token.cancel()
    network = Network(AssertionError("it connected"))
    with pytest.raises(ConnectError) as caught:
        send(network.transport(), cancel=token)
    assert code_of(caught.value) == "canceled"


def test_a_call_that_is_over_is_not_stopped_any_more() -> None:
    """Its connection may serve another by then."""
    with Pair() as pair:
        pair.far.sendall(OK)
        transport, token = pair.transport(), CancelToken()
        assert send(transport, cancel=token).read(None) == b"body"
        token.cancel()
        pair.far.sendall(OK)
        assert send(transport, stream=True).read(None) == b"body"


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_that_is_stopped_as_its_connection_goes_to_the_next(when: str) -> None:
    """That has the connection intact, or a new one, whose proxy is asked for a tunnel again."""
    with Pair() as one, Pair() as other:
        pairs = [one, other]

        def connected(connection: HTTPConnection) -> socket.socket:
            pairs[0].far.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            return pairs.pop(0).near

        def parts() -> Iterator[bytes]:
            for pair in (one, other):
                if pair not in pairs and pair.near.fileno() >= 0:
                    pair.far.sendall(OK)
            yield b"part"

        network = Network(connected, connected)
        secure: Any = network.pool_classes["https"]
        actions: list[Callable[[], None]] = []

        class Tunnel(secure.ConnectionCls):  # type: ignore[misc]
            """Without TLS in it."""

            connect = HTTPConnection.connect

        class Pool(secure):  # type: ignore[misc]
            ConnectionCls = Tunnel

            def _get_conn(self, timeout: float | None = None) -> Any:
                connection = super()._get_conn(timeout)
                while when == "before" and actions:
                    actions.pop()()
                return connection

        manager = urllib3.ProxyManager("http://proxy:82", timeout=20)
        manager.pool_classes_by_scheme = {**network.pool_classes, "https": Pool}
        transport = Urllib3Transport(manager, "https://host:81/base")
        first = send(transport, parts(), stream=True)
        assert first.read_chunk() == b"body"
        assert first.read_chunk() == b"", "its connection is back in the pool"
        actions.append(first.interrupt)
        pool: Any = manager.connection_from_url("https://host:81")
        get_connection = pool._get_conn

        def get_then_stop(timeout: float | None = None) -> Any:
            connection = get_connection(timeout)
            while actions:
                actions.pop()()
            return connection

        pool._get_conn = get_then_stop
        assert send(transport, parts(), stream=True).read(None) == b"body"
        first.close()
        assert one.far.recv(12) == b"CONNECT host"
        assert pairs or other.far.recv(12) == b"CONNECT host"


def test_a_deadline_bounds_waiting_for_a_connection() -> None:
    network = Network(answer(b"x" * 100_000))
    transport = network.transport(block=True, maxsize=1)
    response = send(transport, stream=True)
    start = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        send(transport, deadline=Deadline(20))
    assert code_of(caught.value) == "deadline_exceeded"
    assert time.monotonic() - start < 10
    response.close()


def test_check() -> None:
    token = CancelToken()
    with Pair() as pair:
        pair.far.sendall(OK)
        response = send(pair.transport(), cancel=token, stream=True)
        response.check()
        token.cancel()
        with pytest.raises(ConnectError) as caught:
            response.check()
        assert code_of(caught.value) == "canceled"
        response.close()


def test_a_deadline_that_no_thread_can_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call says so, and the next one has its deadline kept."""
    monkeypatch.setattr(_stopping, "watchdog", _stopping._Watchdog())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    token = CancelToken()
    with Pair() as pair:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ConnectError) as caught:
                send(pair.transport(), deadline=Deadline(5000), cancel=token)
        assert code_of(caught.value) == "resource_exhausted"
        token.cancel()  # the call is over: there is nothing to stop
        pair.far.sendall(HALF)
        response = send(pair.transport(), stream=True, deadline=Deadline(300))
        assert response.read_chunk() == b"half"
        with pytest.raises(ConnectError) as caught:
            response.read_chunk()
        assert code_of(caught.value) == "deadline_exceeded"
        response.close()


def test_many_deadlines_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over leaves the watchdog's heap long before it is due."""
    cleared = threading.Event()
    heapify = heapq.heapify

    def clear(heap: list[Any]) -> None:
        heapify(heap)
        cleared.set()

    monkeypatch.setattr(heapq, "heapify", clear)
    monkeypatch.setattr(_stopping, "watchdog", _stopping._Watchdog())
    network = Network([OK] * 1500)
    transport = network.transport()
    for _ in range(1500):
        send(transport, deadline=Deadline(3_600_000)).read(None)
    assert cleared.wait(5)
    assert len(_stopping.watchdog._heap) < 1000


def test_guards_that_the_collector_finishes_while_the_watchdog_is_at_its_heap() -> None:
    watchdog = _stopping._Watchdog()

    class Guard:
        """One that is over, as the collector closes streams while it is looked at."""

        @property
        def finished(self) -> bool:
            for _ in range(5000):
                watchdog.forget()
            return True

        def expire(self) -> None: ...

    class Live(Guard):
        finished = False

        def __init__(self) -> None:
            self.expired = threading.Event()

        def expire(self) -> None:
            self.expired.set()

    live: Any = Live()
    over: Any = Guard()
    now = time.monotonic()
    with watchdog._changed:  # it sees both of them at once
        watchdog.watch(live, now + 0.1)
        watchdog.watch(over, now)
    assert live.expired.wait(5)
