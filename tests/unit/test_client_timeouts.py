"""The options that bound the beginning of calls: connecting, and the opening of streams."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError

from connectrpc.client import AsyncClient, SyncClient
from connectrpc.errors import ConnectError
from harness import (
    BIDI,
    CLIENT,
    METHODS,
    SERVER,
    STREAM_PROTO,
    UNARY,
    Answer,
    AsyncMemoryResponse,
    MemoryResponse,
    MemoryTransport,
    ask,
    canned,
    code_of,
    frame,
    reply,
)

if TYPE_CHECKING:
    from connectrpc.deadline import Deadline

OK = frame(reply("a").SerializeToString()) + frame(b"{}", 2)


@pytest.mark.parametrize("seconds", [0, -1, -0.5, math.nan, -math.inf])
@pytest.mark.parametrize("name", ["connect_timeout_seconds", "open_timeout_seconds"])
def test_what_makes_no_sense(name: str, seconds: float) -> None:
    options: Any = {name: seconds}
    for make in (SyncClient, AsyncClient):
        with pytest.raises(ValueError, match=name):
            make("http://h", **options)


def test_transports_of_ones_own_know_how_they_connect() -> None:
    """What cannot be kept is not promised."""
    with pytest.raises(ValueError, match="connect_timeout_seconds"):
        SyncClient("http://h", Noting(), connect_timeout_seconds=1)
    with pytest.raises(ValueError, match="connect_timeout_seconds"):
        AsyncClient("http://h", Slow(0), connect_timeout_seconds=1)


def call(client: SyncClient, method: Any, timeout: float | None = None) -> Any:
    caller = client._caller
    requests: Any = [ask("a")] if method.kind.client_streams else ask("a")
    if not method.kind.server_streams:
        one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
        return one(method, requests, None, timeout)
    many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
    with many(method, requests, None, timeout) as stream:
        list(stream)
    return stream


class Noting(MemoryTransport):
    """Notes until when answers may begin."""

    def __init__(self) -> None:
        super().__init__(canned(200, STREAM_PROTO, OK))
        self.noted: list[tuple[Deadline, Deadline]] = []

    def send(self, *args: Any, **options: Any) -> MemoryResponse:
        self.noted.append((options["deadline"], options["opening"]))
        return super().send(*args, **options)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("timeout", [None, 5, 100])
@pytest.mark.parametrize("opening", [None, 20])
def test_what_a_transport_is_told(method: Any, timeout: float | None, opening: float | None) -> None:
    """The earlier of the two; and the deadline itself where there is nothing else, so that it is known for that."""
    transport = Noting()
    options: Any = {} if opening is None else {"open_timeout_seconds": opening}
    call(SyncClient("http://h", transport, **options), method, timeout)
    ((deadline, until),) = transport.noted
    assert deadline.timeout_ms == (None if timeout is None else timeout * 1000)
    if method is SERVER and opening is not None and timeout != 5:
        assert until.timeout_ms == opening * 1000
        assert until is not deadline
    else:
        assert until is deadline
    # The server is told of the call's deadline, and of nothing else.
    sent = dict(transport.requests[0][0].headers)
    assert sent.get("connect-timeout-ms") == (None if timeout is None else str(timeout * 1000))


class Slow:
    """An asynchronous transport that takes its time.

    Args:
        head: how long it takes for the head.
        body: how long for what follows.
    """

    def __init__(self, head: float, body: float = 0) -> None:
        self._head = head
        self._body = body
        self.cancelled = 0

    async def send(self, request: object, body: Any) -> Any:
        await self._wait(self._head)
        return SlowResponse(self)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def wait_for_body(self) -> None:
        await self._wait(self._body)

    async def aclose(self) -> None: ...


class SlowResponse(AsyncMemoryResponse):
    def __init__(self, transport: Slow) -> None:
        super().__init__(MemoryResponse(Answer(200, [("content-type", STREAM_PROTO)], OK), 0))
        self._transport = transport

    async def read_chunk(self) -> bytes:
        await self._transport.wait_for_body()
        return await super().read_chunk()

    async def read(self, limit: int | None) -> bytes:
        await self._transport.wait_for_body()
        return await super().read(limit)


async def call_async(transport: Slow, method: Any, timeout: float | None = None, **options: Any) -> Any:
    caller = AsyncClient("http://h", transport, **options)._caller
    requests: Any = [ask("a")] if method.kind.client_streams else ask("a")
    if not method.kind.server_streams:
        one: Any = caller.client_stream_output if method.kind.client_streams else caller.unary_output
        return await one(method, requests, None, timeout)
    many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
    async with many(method, requests, None, timeout) as stream:
        async for _ in stream:
            pass
    return stream


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_stream_that_does_not_open(timeout: float | None) -> None:
    transport = Slow(5)
    started = time.monotonic()
    stream = asyncio.run(call_async(transport, SERVER, timeout, open_timeout_seconds=0.1))
    assert time.monotonic() - started < 3
    assert code_of(stream.error()) == "deadline_exceeded"
    assert stream.done()
    assert transport.cancelled == 1


def test_a_stream_that_has_opened_may_last() -> None:
    stream = asyncio.run(call_async(Slow(0, 0.4), SERVER, open_timeout_seconds=0.15))
    assert stream.error() is None


def test_the_deadline_stands_beside_it() -> None:
    """Whichever comes first."""
    for timeout, opening in ((0.1, 60), (0.1, None)):
        options: Any = {} if opening is None else {"open_timeout_seconds": opening}
        for transport in (Slow(5), Slow(0, 5)):
            stream = asyncio.run(call_async(transport, SERVER, timeout, **options))
            assert code_of(stream.error()) == "deadline_exceeded"
            assert "the deadline" in stream.error().message


@pytest.mark.parametrize("method", [UNARY, CLIENT, BIDI], ids=lambda method: method.name)
def test_other_calls_are_not_concerned(method: Any) -> None:
    outcome = asyncio.run(call_async(Slow(0.3), method, open_timeout_seconds=0.05))
    error = outcome.error()
    assert error is None or code_of(error) != "deadline_exceeded"


def test_a_blocking_stream_that_does_not_open() -> None:
    """Over urllib3, whose reads have to be woken."""
    mine, theirs = socket.socketpair()
    client = SyncClient("http://host", manager_of(lambda connection: mine), open_timeout_seconds=0.15)
    started = time.monotonic()
    stream = client._caller.server_stream_output(SERVER, ask("a"))
    assert time.monotonic() - started < 3
    assert code_of(stream.error()) == "deadline_exceeded"
    theirs.close()


def test_a_blocking_stream_that_has_opened_may_last() -> None:
    mine, theirs = socket.socketpair()
    client = SyncClient("http://host", manager_of(lambda connection: mine), open_timeout_seconds=0.2)

    def answer() -> None:
        theirs.recv(65536)
        theirs.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+proto\r\nContent-Length: %d\r\n\r\n" % len(OK)
        )
        time.sleep(0.5)
        theirs.sendall(OK)

    thread = threading.Thread(target=answer)
    thread.start()
    with client._caller.server_stream_output(SERVER, ask("a")) as stream:
        assert [message.file_name for message in stream] == ["a"]
    assert stream.error() is None
    thread.join(5)
    theirs.close()


def manager_of(connect: Any, **options: Any) -> urllib3.PoolManager:
    """One whose connections are what ``connect`` gives for them."""

    class Connection(HTTPConnection):
        def _new_conn(self) -> Any:
            return connect(self)

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": Pool}
    return manager


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("own", [None, urllib3.Timeout(connect=50, read=70)])
def test_connecting_takes_as_long_as_it_may(own: Any, timeout: float | None, method: Any) -> None:
    """Whatever the call, the deadline and the pool's own limit."""
    seen: list[Any] = []

    def connect(connection: Any) -> Any:
        seen.append(connection.timeout)
        raise ConnectTimeoutError(connection, "too long")

    options: Any = {} if own is None else {"timeout": own}
    client = SyncClient("http://host", manager_of(connect, **options), connect_timeout_seconds=0.5)
    assert code_of(call(client, method, timeout).error()) == "unavailable"
    assert seen == [0.5]


def test_the_pools_own_limit_stands() -> None:
    seen: list[Any] = []

    def connect(connection: Any) -> Any:
        seen.append(connection.timeout)
        raise ConnectTimeoutError(connection, "too long")

    client = SyncClient("http://host", manager_of(connect, timeout=urllib3.Timeout(connect=7)))
    assert code_of(call(client, UNARY).error()) == "unavailable"
    assert seen == [7]


FOR_EVER = pytest.mark.parametrize("seconds", [math.inf, 1e300])
"""Timeouts that sockets and event loops do not take as they are."""


@FOR_EVER
def test_connecting_may_take_for_ever(seconds: float) -> None:
    """As calls may: what no clock can say is months."""
    seen: list[Any] = []

    def connect(connection: Any) -> Any:
        seen.append(connection.timeout)
        with socket.socket() as unconnected:
            unconnected.settimeout(connection.timeout)
        raise ConnectTimeoutError(connection, "too long")

    client = SyncClient(
        "http://host", manager_of(connect), connect_timeout_seconds=seconds, open_timeout_seconds=seconds
    )
    for timeout in (None, seconds):
        for method in (UNARY, SERVER):
            assert code_of(call(client, method, timeout).error()) == "unavailable"
    assert len(seen) == 4
    assert min(seen) > 1_000_000


@FOR_EVER
def test_connecting_may_take_for_ever_in_async_code(seconds: float) -> None:
    options: Any = {f"{name}_seconds": seconds for name in ("timeout", "connect_timeout", "open_timeout")}

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            server.close()
            async with AsyncClient(url, **options) as client:
                with pytest.raises(ConnectError) as caught:
                    await client._caller.unary(UNARY, ask("a"))
            assert code_of(caught.value) == "unavailable"

    asyncio.run(main())


class Connecting(aiohttp.BaseConnector):
    """Never gets a connection."""

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        await asyncio.wait_for(asyncio.sleep(5), timeout.sock_connect)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.name)
def test_connecting_in_async_code(method: Any, timeout: float | None) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(
            connector=Connecting(), timeout=aiohttp.ClientTimeout(sock_connect=50, sock_read=70)
        ) as session:
            caller = AsyncClient("http://host", session, connect_timeout_seconds=0.15)._caller
            requests: Any = [ask("a")] if method.kind.client_streams else ask("a")
            started = time.monotonic()
            with pytest.raises(ConnectError) as caught:
                if method.kind.server_streams:
                    many = caller.bidi_stream if method.kind.client_streams else caller.server_stream
                    async for _ in many(method, requests, None, timeout):
                        pass
                else:
                    one: Any = caller.client_stream if method.kind.client_streams else caller.unary
                    await one(method, requests, None, timeout)
            assert time.monotonic() - started < 3
            assert code_of(caught.value) == "unavailable"

    asyncio.run(main())
