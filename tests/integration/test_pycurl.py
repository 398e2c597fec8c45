"""pycurl over sockets: what libcurl does with connections, TLS and proxies, and how calls over it end.

Servers that misbehave over HTTP/2 frame by frame are in ``test_pyqwest``, and streams in both directions in
``test_full_duplex``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import queue
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pycurl
import pytest
import uvloop

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import AsyncPycurlTransport, PycurlTransport

from colours import AsyncColour, Colour, SyncColour
from helpers import STREAM_HEAD, Background, Usage, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, ChatResponse, CountRequest, CountResponse, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from rawhttp import HOST, RawServer, chunked, envelope, response
from rawhttp2 import h2_server, run_http2_server
from test_http_clients import TLS, Proxy, https
from test_pyqwest import STALLS, Misbehaving, behave, close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rawhttp import Peer
    from rawhttp2 import H2Peer, H2Stream
    from servers import Server

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode

SLOW = 5.0
"""What ought to be there at once may take so many seconds on a busy machine."""

VERSIONS = ["1.1", "2"]


@contextlib.contextmanager
def connect(colour: str, url: str, version: Any = "1.1", protocol: str = "connect", **options: Any) -> Iterator[Colour]:
    client: Colour
    if colour == "sync":
        with PycurlTransport(http_version=version, **options) as transport:
            client = SyncColour(url, http_client=transport, protocol=protocol)
            with client:
                yield client
        return
    atransport = AsyncPycurlTransport(http_version=version, **options)
    client = AsyncColour(url, http_client=atransport, protocol=protocol)
    try:
        yield client
    finally:
        client.run(atransport.aclose())
        client.close()


@contextlib.contextmanager
def bconnect(url: str, version: Any = "1.1", protocol: str = "connect", **options: Any) -> Iterator[ProbeServiceClient]:
    """A blocking client, for what only that can do."""
    with PycurlTransport(http_version=version, **options) as transport:
        yield ProbeServiceClient(url, transport, protocol=protocol)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def aconnect(url: str, version: Any = "1.1", protocol: str = "connect", **options: Any) -> AsyncIterator[Any]:
    """An asynchronous client, for what only that can do."""
    async with AsyncPycurlTransport(http_version=version, **options) as transport:
        yield AsyncProbeServiceClient(url, transport, protocol=protocol)  # type: ignore[arg-type]


def setting(*options: tuple[int, object]) -> Callable[[Any], None]:
    def configure(curl: Any) -> None:
        for option, value in options:
            curl.setopt(option, value)

    return configure


def judged(error: ConnectError | None, began: float) -> ConnectError:
    """The error that a call has ended with, which it did soon."""
    assert time.monotonic() - began < SLOW
    assert isinstance(error, ConnectError)
    assert HOST not in error.message
    assert "localhost" not in error.message
    return error


def error_of(client: Colour, call: str = "unary", **options: Any) -> ConnectError:
    """How a call fails, which it does soon."""
    began = time.monotonic()
    if call == "unary":
        return judged(client.call_echo(EchoRequest(text="x"), **options).error(), began)
    return judged(client.call_count(CountRequest(up_to=1), **options).error, began)


async def aerror_of(client: Any, **options: Any) -> ConnectError:
    """The same of a stream of an asynchronous client."""
    began = time.monotonic()
    async with client.call_count(CountRequest(up_to=1), **options) as stream:
        async for _ in stream:
            pass
        return judged(stream.error(), began)


def text(client: Colour, given: str = "hi") -> str:
    return client.echo(EchoRequest(text=given), timeout=SLOW).request.text


async def atext(client: Any, given: str = "hi") -> str:
    return str((await client.echo(EchoRequest(text=given), timeout_seconds=SLOW)).request.text)


async def asettles(condition: Callable[[], bool]) -> bool:
    return await asyncio.to_thread(settles, condition)


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_http2_server("uvicorn-http2", tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def tls_server(tls: TLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_http2_server("uvicorn-http2", tmp_path_factory.mktemp("tls"), certificate=tls.server_file) as server:
        yield server


# TLS.


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_tls(colour: str, tls: TLS, tls_server: Server, version: str | None) -> None:
    """Left to choose they take HTTP/2, or gRPC would not work."""
    options = {"configure": setting((pycurl.CAINFO, str(tls.authority)))}
    for protocol in ("connect", "grpc-web", *(["grpc"] if version != "1.1" else [])):
        with connect(colour, f"https://localhost:{tls_server.port}", version, protocol, **options) as client:
            assert text(client) == "hi"
            assert client.numbers(3) == [1, 2, 3]


def wants_certificate(tls: TLS) -> TLS:
    strict = copy.copy(tls)
    strict.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.server.load_cert_chain(tls.server_file)
    strict.server.load_verify_locations(tls.authority)
    strict.server.verify_mode = ssl.CERT_REQUIRED
    return strict


@pytest.mark.parametrize("certificate", ["none", "foreign", "right"])
def test_client_certificates(colour: str, tls: TLS, certificate: str) -> None:
    file = {"none": None, "foreign": str(tls.foreign_file), "right": str(tls.client_file)}[certificate]
    options: list[tuple[int, object]] = [(pycurl.CAINFO, str(tls.authority))]
    if file is not None:
        options += [(pycurl.SSLCERT, file), (pycurl.SSLKEY, file)]
    with (
        RawServer(wants_certificate(tls).wrap(echo_all)) as server,
        connect(colour, https(server), configure=setting(*options)) as client,
    ):
        if certificate == "right":
            assert text(client) == "hi"
            return
        error = error_of(client)
        assert error.code is Code.UNAVAILABLE
        # The server may have closed the connection before its alert was read.
        reasons = ("certificate required", "unknown ca", "closed the connection", "no connection")
        assert any(reason in error.message for reason in reasons), error


@pytest.mark.parametrize("whose", ["nobody's", "foreign", "another host's"])
def test_certificates_that_are_not_trusted(colour: str, tls: TLS, whose: str) -> None:
    with RawServer(tls.wrap(echo_all)) as server:
        options: list[tuple[int, object]] = []
        url = https(server)
        if whose == "foreign":
            options = [(pycurl.CAINFO, str(tls.foreign_file.parent / "foreign authority.pem"))]
        elif whose == "another host's":
            url = f"https://other.test:{server.port}"
            resolved = [f"other.test:{server.port}:{HOST}"]
            options = [(pycurl.CAINFO, str(tls.authority)), (pycurl.RESOLVE, resolved)]
        with connect(colour, url, configure=setting(*options)) as client:
            error = error_of(client)
            assert error.code is Code.UNAVAILABLE
            assert "certificate is not trusted" in error.message
            assert ("it is for another host" in error.message) == (whose == "another host's")
            assert "other.test" not in error.message


# Proxies.


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    with proxy.server:
        yield proxy


def test_proxies(colour: str, proxy: Proxy, tls: TLS, monkeypatch: pytest.MonkeyPatch) -> None:
    """None from the environment, and what the user says."""
    with RawServer(echo_all) as plain, RawServer(tls.wrap(echo_all)) as secure:
        monkeypatch.setenv("http_proxy", proxy.server.url)
        monkeypatch.setenv("https_proxy", proxy.server.url)
        with connect(colour, plain.url) as client:
            assert text(client) == "hi"
        assert proxy.seen == []
        configure = setting((pycurl.PROXY, proxy.server.url), (pycurl.CAINFO, str(tls.authority)))
        with connect(colour, plain.url, configure=configure) as client:
            assert text(client) == "hi"
        assert proxy.seen == [f"POST {plain.url}/integration.v1.ProbeService/Echo"]
        with connect(colour, https(secure), configure=configure) as client:
            for given in "abc":
                assert text(client, given) == given
        assert proxy.seen[1:] == [f"CONNECT {HOST}:{secure.port}"]


@pytest.mark.parametrize("how", ["refuses", "hangs up", "is silent", "is not there"])
def test_a_tunnel_that_cannot_be_made(colour: str, how: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        if how == "refuses":
            peer.send(response(403))
        elif how == "is silent":
            peer.wait_until_gone()

    def main(url: str) -> None:
        with connect(colour, "https://localhost:1", configure=setting((pycurl.PROXY, url))) as client:
            error = error_of(client, timeout=0.3 if how == "is silent" else None)
            if how == "is silent":
                assert error.code is Code.DEADLINE_EXCEEDED
            else:
                assert error.code is Code.UNAVAILABLE
                assert "no connection to the server can be made" in error.message

    with RawServer(script) as server:
        url = server.url
        if how != "is not there":
            main(url)
    if how == "is not there":
        main(url)


# Nobody there.


def test_an_answer_before_the_request_is_read(colour: str) -> None:
    """An error makes libcurl leave off sending. But it waits for the end of its request where all seems well."""

    def script(peer: Peer) -> None:
        request = peer.read_head()
        assert request is not None
        if "fail" in request.headers:
            peer.send(response(429, {"content-type": "text/plain"}))
        else:
            peer.send(good_answer())
        peer.sock.settimeout(SLOW)
        time.sleep(1)

    with RawServer(script) as server:
        large = EchoRequest(data=bytes(30_000_000))
        with connect(colour, server.url) as client:
            error = client.call_echo(large, {"fail": "1"}, SLOW).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "429" in error.message
            error = client.call_echo(large, timeout=0.5).error()
            assert error is not None
            assert error.code is Code.DEADLINE_EXCEEDED


def test_no_name(colour: str) -> None:
    with connect(colour, "http://no-such-host.invalid") as client:
        error = error_of(client, timeout=3)
        assert error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def test_others_wait_for_a_connection_that_is_given_up() -> None:
    """Over HTTP/2 calls wait for one connection. It is begun anew when the call that began it is cancelled."""

    async def main(port: int) -> None:
        async with aconnect(f"http://{HOST}:{port}", "2", "grpc", connect_timeout=0.5) as client:
            first = asyncio.create_task(client.echo(EchoRequest()))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(aerror_of(client))
            await asyncio.sleep(0.1)
            first.cancel()
            error = await second
            assert error.code is Code.UNAVAILABLE
            assert "took too long" in error.message

    with black_hole() as port:
        asyncio.run(main(port))


# Connections that are kept.


@pytest.mark.parametrize("body", [b"x", b""], ids=["body", "empty"])
def test_a_kept_connection_that_is_closed_as_the_next_call_goes_out(colour: str, body: bytes) -> None:
    """libcurl would send it once more, though the server may have seen it."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            seen.append(request.body)
            if len(seen) == 2:
                return  # it was read, and nothing says so
            peer.send(good_answer(request.body))

    with RawServer(script) as server:
        with connect(colour, server.url) as client:
            assert text(client) == "hi"
            error = client.call_echo(EchoRequest(data=body)).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "without an answer" in error.message
            assert text(client) == "hi"
        assert len(seen) == 3


@pytest.mark.parametrize("message", [EchoRequest(text="x"), EchoRequest()], ids=["body", "empty"])
def test_a_kept_connection_that_is_closed_over_http2(colour: str, message: EchoRequest) -> None:
    requests = 0

    def script(peer: H2Peer, stream: H2Stream) -> object:
        nonlocal requests
        requests += 1
        if requests == 2:
            return close(peer, stream)
        behave(peer, stream)
        return None

    with Misbehaving(script) as server:
        with connect(colour, server.url, "2", "grpc") as client:
            assert text(client) == "hi"
            error = client.call_echo(message).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
        assert requests == 2


def test_a_kept_connection_that_was_closed_a_while_ago(colour: str) -> None:
    """libcurl looks once a second, and no more often, whether the connections that it keeps are still there."""
    connections = 0

    def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        with_reset = connections == 2
        request = peer.read()
        if request is not None:
            peer.send(good_answer(request.body))
        if with_reset:
            time.sleep(0.05)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with RawServer(script) as server, connect(colour, server.url) as client:
        for _ in range(2):
            assert text(client) == "hi"
            time.sleep(1.2)
        assert text(client) == "hi"


def test_a_server_that_says_that_it_closes(colour: str) -> None:
    def script(peer: Peer) -> None:
        request = peer.read()
        assert request is not None
        peer.send(good_answer(request.body).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))

    with RawServer(script) as server:
        with connect(colour, server.url) as client:
            for _ in range(5):
                assert text(client) == "hi"
        assert server.accepted == 5


# Servers that misbehave over HTTP/1.1.

BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"garbage\r\n\r\n",
    "a status that is none": b"HTTP/1.1 abc\r\n\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 x\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncont",
    "half a status line": b"HTTP/1.1 20",
    "half a body": response(200, {"content-type": "application/proto"}, b"ab", length=9),
    "a chunk that is none": STREAM_HEAD + b"xyz\r\n",
    "half a chunk": STREAM_HEAD + b"5\r\nab",
    "a header of 400 kB": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000 + b"\r\n\r\n",
    "endless interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 \r\n\r\n",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nabc\r\ncontent-length: 0\r\n\r\n",
    "a header with a nought": b"HTTP/1.1 200 OK\r\na: b\0c\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("call", ["unary", "stream"])
@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_broken_answers(colour: str, answer: bytes, call: str, capfd: pytest.CaptureFixture[str]) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.send(answer)

    with RawServer(script) as server, connect(colour, server.url) as client:
        error = error_of(client, call, timeout=2)
        assert error.code is not Code.CANCELED
    assert capfd.readouterr().err == "", "pycurl prints what callbacks raise"


# How calls end.


def stalls_http1(kind: str) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if b"go on" in request.body:
                peer.send(good_answer(request.body))
                continue
            if kind == "after the head":
                peer.send(STREAM_HEAD)
            elif kind == "after a message":
                message = envelope(CountResponse(number=1).SerializeToString())
                peer.send(STREAM_HEAD + chunked(message, last=False))
            assert peer.wait_until_gone()
            return

    return script


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
@pytest.mark.parametrize("kind", ["silent", "after the head", "after a message"])
def test_ending_in_every_state(kind: str, how: str) -> None:
    """Over HTTP/1.1 the server sees the connection closed at once; the next call goes well."""

    async def main(server: RawServer) -> None:
        async with aconnect(server.url) as client:
            if how == "deadline":
                error = await aerror_of(client, timeout_seconds=0.2)
                assert error.code is Code.DEADLINE_EXCEEDED
            else:
                task = asyncio.create_task(aerror_of(client))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asettles(lambda: server.open_connections == 0)
            assert await atext(client, "go on") == "go on"

    with RawServer(stalls_http1(kind)) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("kind", STALLS)
def test_other_calls_on_the_connection_go_on(kind: str) -> None:
    """Over HTTP/2 a stream is reset when its call is given up, and the connection stays."""
    seen: list[H2Stream] = []

    def script(peer: H2Peer, stream: H2Stream) -> None:
        seen.append(stream)
        (STALLS[kind] if len(seen) == 1 else behave)(peer, stream)

    async def main(server: Misbehaving) -> None:
        async with aconnect(server.url, "2", "grpc") as client:
            task = asyncio.create_task(aerror_of(client))
            assert await asettles(lambda: len(seen) == 1)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asettles(lambda: seen[0].reset is not None)
            assert await atext(client) == "hi"
            assert server._server.accepted == 1

    with Misbehaving(script) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("version", VERSIONS)
def test_streams_that_are_forgotten(server: Server, version: str) -> None:
    async def main() -> None:
        async with aconnect(server.url, version) as client:
            before = count_sockets()
            for _ in range(20):
                stream = await client.call_count(CountRequest(up_to=1000, delay_ms=1000))
                await anext(stream)
            del stream
            gc.collect()
            await asyncio.sleep(0.1)
            assert count_sockets() <= before + 2
            assert await atext(client) == "hi"

    asyncio.run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_thousand_streams_left_early(colour: str, server: Server, version: str) -> None:
    def leave(times: int) -> None:
        # Several connections: uvicorn takes hundreds of resets of one for an attack.
        for _ in range(times):
            with connect(colour, server.url, version) as client:
                for _ in range(50):
                    assert len(client.call_count(CountRequest(up_to=1000, delay_ms=1000), most=1).messages) == 1
                assert text(client) == "hi"

    leave(2)
    gc.collect()
    before = Usage.now()
    leave(20)
    gc.collect()
    now = Usage.now()
    assert now.sockets <= before.sockets + 2
    assert now.objects < before.objects + 1000
    assert now.kilobytes < before.kilobytes + 30_000


def test_a_stream_that_is_left_behind_tls(colour: str, tls: TLS) -> None:
    """The server learns of it, though a TLS connection is not just closed. And nothing stays open here."""

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if b"go on" in request.body:
                peer.send(good_answer(request.body))
                continue
            peer.send(STREAM_HEAD + chunked(envelope(CountResponse(number=1).SerializeToString()), last=False))
            assert peer.wait_until_gone()
            return

    trusting = setting((pycurl.CAINFO, str(tls.authority)))
    with RawServer(tls.wrap(script)) as server, connect(colour, https(server), configure=trusting) as client:
        assert text(client, "go on") == "go on"
        before = count_sockets()
        for _ in range(5):
            assert client.count(CountRequest(up_to=9), most=1) == [CountResponse(number=1)]
            assert settles(lambda: server.open_connections == 0)
        assert text(client, "go on") == "go on"
        assert settles(lambda: count_sockets() <= before)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_calls_at_once(server: Server, version: str, loop: str) -> None:
    async def main() -> None:
        async with aconnect(server.url, version) as client:
            given = [str(number) for number in range(300)]
            assert await asyncio.gather(*(atext(client, each) for each in given)) == given
            assert len(asyncio.all_tasks()) == 1

    if loop == "uvloop":
        uvloop.run(main())
    else:
        asyncio.run(main())


def test_a_stream_that_nobody_reads_does_not_hold_others_up(server: Server) -> None:
    async def main() -> None:
        async with (
            aconnect(server.url, "2", "grpc") as client,
            client.call_count(CountRequest(up_to=1000, padding=100_000)) as stream,
        ):
            await anext(stream)
            await asyncio.sleep(0.3)
            for _ in range(20):
                assert await atext(client, "y" * 100_000) == "y" * 100_000
            assert (await anext(stream)).number == 2

    asyncio.run(main())


# Blocking calls.


@pytest.mark.parametrize("how", ["deadline", "token", "close"])
@pytest.mark.parametrize("kind", ["silent", "after the head", "after a message"])
def test_ending_a_blocking_call_in_every_state(kind: str, how: str) -> None:
    if (kind, how) == ("silent", "close"):
        pytest.skip("there is no stream yet that could be closed")
    request = CountRequest(up_to=1)
    with RawServer(stalls_http1(kind)) as server, bconnect(server.url) as client:
        if how == "close":
            stream = client.call_count(request)
            background = Background(lambda: len(list(stream)))
            time.sleep(0.1)
            stream.close()
            assert background.result(SLOW) == (1 if kind == "after a message" else 0)
        else:
            token = CancelToken()
            timeout = 0.2 if how == "deadline" else None
            background = Background(lambda: len(list(client.count(request, None, timeout, cancel=token))))
            if how == "token":
                time.sleep(0.1)
                token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(SLOW)
            assert raised.value.code is (Code.DEADLINE_EXCEEDED if how == "deadline" else Code.CANCELED)
        assert settles(lambda: server.open_connections == 0)
        assert client.echo(EchoRequest(text="go on")).request.text == "go on"


@pytest.mark.parametrize("by", ["token", "deadline"])
def test_ending_a_blocking_call_at_any_moment(server: Server, by: str) -> None:
    """It goes well, or fails as it was told to."""
    wanted = Code.CANCELED if by == "token" else Code.DEADLINE_EXCEEDED
    codes: set[Code] = set()
    tokens: queue.SimpleQueue[tuple[CancelToken, float] | None] = queue.SimpleQueue()

    def cancel() -> None:
        while (order := tokens.get()) is not None:
            token, at = order
            while time.perf_counter() < at:
                pass
            token.cancel()

    def call(number: int, seconds: float) -> None:
        token = CancelToken()
        if by == "token":
            tokens.put((token, time.perf_counter() + seconds))
        timeout = SLOW if by == "token" else seconds
        if number % 3:
            messages = (SumRequest(number=1) for _ in range(3))
            assert client.sum(messages, timeout_seconds=timeout, cancel=token).sum == 3
        else:
            assert len(list(client.count(CountRequest(up_to=20), None, timeout, cancel=token))) == 20

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        canceller = Background(cancel)
        with bconnect(server.url, "2") as client:
            for number in range(600):
                try:
                    call(number, 0.002 * number / 600)
                except ConnectError as error:
                    codes.add(error.code)
            assert codes == {wanted}
            assert client.echo(EchoRequest(text="on")).request.text == "on"
    finally:
        sys.setswitchinterval(interval)
        tokens.put(None)
    canceller.result(SLOW)


def test_a_blocking_stream_is_read_in_another_thread(server: Server) -> None:
    def numbers(stream: Iterator[CountResponse]) -> list[int]:
        return [message.number for message in stream]

    for version in VERSIONS:
        with bconnect(server.url, version) as client:
            streams = [client.call_count(CountRequest(up_to=20, delay_ms=5)) for _ in range(3)]
            assert [next(stream).number for stream in streams] == [1, 1, 1]
            rests = [Background(functools.partial(numbers, stream)) for stream in streams]
            for rest in rests:
                assert rest.result(SLOW) == list(range(2, 21))


@pytest.mark.parametrize("version", VERSIONS)
def test_blocking_streams_that_are_forgotten(server: Server, version: str) -> None:
    with bconnect(server.url, version) as client:
        assert client.echo(EchoRequest(text="x")).request.text == "x"
        before = count_sockets()
        for number in range(20):
            stream = client.call_count(CountRequest(up_to=1000, delay_ms=1000))
            assert next(stream).number == 1
            if number % 2:  # the collector finds it, with all that belongs to it
                ring: list[object] = [stream]
                ring.append(ring)
                del ring, stream
                gc.collect()
        # A connection, and two sockets by which a thread that waits is woken.
        assert settles(lambda: count_sockets() <= before + 3)
        assert client.echo(EchoRequest(text="x")).request.text == "x"


def test_a_blocking_stream_is_forgotten_while_its_requests_are_sent() -> None:
    """Its requests end with it, and the server learns of it."""
    seen: list[H2Stream] = []
    ended = threading.Event()

    def serve(peer: H2Peer) -> None:
        while (stream := peer.request(whole=False)) is not None:
            seen.append(stream)
            peer.head(stream, STREAMED)
            peer.data(stream, GREETING)
            peer.wait(lambda: stream.over)

    def requests() -> Iterator[ChatRequest]:
        try:
            while True:
                yield ChatRequest(text="x" * 50_000)
        finally:
            ended.set()

    threads = threading.active_count()
    with h2_server(serve, window=65_535) as server, bconnect(server.url, "2") as client:
        for number in range(5):
            ended.clear()
            stream = client.call_chat(requests())
            assert next(stream).text == "hello"
            time.sleep(0.05)
            del stream
            gc.collect()
            assert ended.wait(SLOW)
            assert settles(lambda: seen[number].reset is not None)  # noqa: B023
        assert threading.active_count() < threads + 4


def test_many_blocking_calls_at_once(server: Server) -> None:
    def work(number: int) -> bool:
        for turn in range(5):
            given = f"{number} {turn}"
            assert client.echo(EchoRequest(text=given)).request.text == given
            assert len(list(client.count(CountRequest(up_to=10)))) == 10
            assert client.sum([SumRequest(number=number)] * 3).sum == 3 * number
        return True

    for version in VERSIONS:
        with bconnect(server.url, version) as client, ThreadPoolExecutor(40) as pool:
            assert all(pool.map(work, range(40)))


def test_blocking_calls_share_connections() -> None:
    """One after the other they need one, and no more than there are at the same time."""
    most = 0

    def script(peer: Peer) -> None:
        nonlocal most
        while (request := peer.read()) is not None:
            most = max(most, server.open_connections)
            if request.path.endswith("Count"):
                peer.send(STREAM_HEAD + chunked(envelope(b"{}", 2)))
            else:
                peer.send(good_answer(request.body))

    def work(name: str) -> bool:
        for number in range(20):
            assert client.echo(EchoRequest(text=f"{name} {number}")).request.text == f"{name} {number}"
            assert list(client.count(CountRequest())) == []
        return True

    with RawServer(script) as server, bconnect(server.url) as client:
        assert work("alone")
        assert server.accepted == 1
        backgrounds = [Background(functools.partial(work, name)) for name in "abcde"]
        assert all(background.result() for background in backgrounds)
        assert server.accepted <= 5


def test_blocking_connections_that_are_kept() -> None:
    """As many as was said. ``close`` closes them, and the transport may be used again."""
    gate = threading.Barrier(6)

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if not gate.broken:
                gate.wait(SLOW)
            peer.send(good_answer(request.body))

    before = count_sockets()
    with RawServer(script) as server:
        transport = PycurlTransport(http_version="1.1", idle_connections=2)
        client = ProbeServiceClient(server.url, transport)
        backgrounds = [Background(lambda: client.echo(EchoRequest())) for _ in range(6)]
        for background in backgrounds:
            background.result(SLOW)
        assert server.accepted == 6
        assert settles(lambda: server.open_connections == 2)
        gate.abort()
        transport.close()
        assert settles(lambda: server.open_connections == 0)
        assert client.echo(EchoRequest(text="again")).request.text == "again"
        transport.close()
        assert settles(lambda: server.open_connections == 0)
        with PycurlTransport(http_version="1.1", idle_connections=0) as other:
            for _ in range(3):
                assert ProbeServiceClient(server.url, other).echo(EchoRequest(text="x")).request.text == "x"
                assert settles(lambda: server.open_connections == 0)
    assert settles(lambda: count_sockets() <= before)


def test_a_blocking_transport_is_closed_during_calls(server: Server) -> None:
    """They go on. Their connections are closed when they are over."""
    before = count_sockets()
    with bconnect(server.url) as client:
        stream = client.call_count(CountRequest(up_to=3, delay_ms=50))
        assert next(stream).number == 1
    assert [message.number for message in stream] == [2, 3]
    assert stream.error() is None
    assert settles(lambda: count_sockets() <= before)


STREAMED = [(":status", "200"), ("content-type", "application/connect+proto")]
GREETING = envelope(ChatResponse(text="hello").SerializeToString())

OFFERS: dict[str, tuple[int, int, float]] = {
    "slowly": (10, 40_000, 0.03),
    "plentifully": (100, 50_000, 0),
    "in large parts": (2, 1_000_000, 0.1),
}
"""How a request iterator gives: how many messages of how many bytes, and how long it takes for each."""


@pytest.mark.parametrize("answers", [0, 3_000_000], ids=["little to read", "much to read"])
@pytest.mark.parametrize(("count", "size", "seconds"), OFFERS.values(), ids=OFFERS.keys())
def test_requests_go_out_while_nobody_reads(count: int, size: int, seconds: float, answers: int) -> None:
    """All that the server takes, though its windows are small. Later all of the answers are there."""
    arrived = threading.Event()
    leave = threading.Event()

    def serve(peer: H2Peer) -> None:
        stream = peer.request(whole=False)
        assert stream is not None
        peer.head(stream, STREAMED)
        peer.data(stream, GREETING)
        left = b"".join(envelope(ChatResponse(text="y" * 1000).SerializeToString()) for _ in range(answers // 1000))
        sent = peer.data(stream, left, within=0.3)  # the client takes no more than it has room for
        if peer.wait(lambda: len(stream.body) >= count * size, SLOW):
            arrived.set()
        peer.data(stream, left[sent:] + envelope(b"{}", 2), end=True)
        peer.finish()

    def requests() -> Iterator[ChatRequest]:
        for _ in range(count):
            time.sleep(seconds)
            yield ChatRequest(text="x" * size)
        leave.wait(SLOW)

    with h2_server(serve, window=65_535) as server, bconnect(server.url, "2") as client:
        stream = client.call_chat(requests(), timeout_seconds=2 * SLOW)
        assert next(stream).text == "hello"
        if not answers:  # when libcurl is to receive no more, it does not see how much it may send
            assert arrived.wait(SLOW)
        leave.set()
        assert len(list(stream)) == answers // 1000
        assert stream.error() is None


INTERRUPTED = """
import faulthandler, itertools, os, random, signal, sys, threading, time
from connectrpc.transports.pycurl import PycurlTransport
from integration_pb2 import ChatRequest, CountRequest, EchoRequest, SumRequest
from integration_pb2_connect import ProbeServiceClient

faulthandler.dump_traceback_later(25, exit=True)  # where it hangs
url, silent, version = sys.argv[1:]
transport = PycurlTransport(http_version=version)
client = ProbeServiceClient(url, transport, protocol="connect")
nowhere = ProbeServiceClient(silent, PycurlTransport(http_version=version), protocol="connect")


def slowly():
    for number in itertools.count():
        yield SumRequest(number=number)
        time.sleep(0.001)


def plentifully():
    while True:
        yield SumRequest(padding=bytes(1000))


def one_after_the_other():
    while True:
        client.echo(EchoRequest(text="x"))


calls = {
    "head": lambda: client.echo(EchoRequest(delay_ms=60_000)),
    "message": lambda: list(client.count(CountRequest(up_to=2, delay_ms=60_000))),
    "many messages": lambda: list(client.count(CountRequest(up_to=1_000_000_000))),
    "upload": lambda: nowhere.echo(EchoRequest(data=bytes(30_000_000))),
    "upload that is taken": lambda: client.sum(plentifully()),
    "slow upload": lambda: client.sum(slowly()),
    "upload that is not taken": lambda: nowhere.sum(plentifully()),
}
several = [("any moment", one_after_the_other)] * 50
for kind, call in [*calls.items(), *several]:
    seconds = random.uniform(0.01, 0.03) if kind == "any moment" else 0.1
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    try:
        timer.start()  # which may last until the signal on a busy machine
        call()
    except KeyboardInterrupt:
        pass
    else:
        print(kind, "has ended")
    if time.monotonic() - began > 3:
        print(kind, "took", time.monotonic() - began)
    timer.join()
    if client.echo(EchoRequest(text="x"), timeout_seconds=5).request.text != "x":
        print("after", kind)
"""


def test_interrupts(server: Server) -> None:
    """Ctrl-C ends a call at once, whatever it waits for, and the client goes on."""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    with socket.create_server((HOST, 0)) as silent:
        silent_url = f"http://{HOST}:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", INTERRUPTED, server.url, silent_url, "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=28, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


EXITS = """
import itertools, sys, time
from connectrpc.transports.pycurl import PycurlTransport
from integration_pb2 import ChatRequest
from integration_pb2_connect import ProbeServiceClient

url, how = sys.argv[1:]
client = ProbeServiceClient(url, PycurlTransport(http_version="2"), protocol="grpc")


def requests():
    for number in itertools.count():
        yield ChatRequest(text=str(number))
        if how == "slow":
            time.sleep(0.001)


answers = client.chat(requests())
next(answers)
print("over", flush=True)
"""


@pytest.mark.parametrize("how", ["slow", "fast"])
def test_a_program_may_end_at_any_time(server: Server, how: str) -> None:
    """Also in the middle of a stream whose requests are read in another thread."""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", EXITS, server.url, how]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=25, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


# Loops and processes.


def test_one_transport_in_several_runs(server: Server) -> None:
    """Also where a loop ends in the middle of calls. Nothing stays open."""
    before = count_sockets()
    transport = AsyncPycurlTransport(http_version="2")
    client = AsyncProbeServiceClient(server.url, transport, protocol="grpc")
    left: list[object] = []

    async def main() -> None:
        assert await atext(client) == "hi"
        left.append(asyncio.create_task(client.echo(EchoRequest(delay_ms=60_000))))
        stream = client.count(CountRequest(up_to=1000, delay_ms=1000))
        await anext(stream)
        left.append(stream)
        await asyncio.sleep(0.05)

    for _ in range(3):
        asyncio.run(main())
    asyncio.run(transport.aclose())
    left.clear()
    gc.collect()
    assert settles(lambda: count_sockets() <= before)


FORKS = """
import asyncio, gc, os, sys
import pycurl
from connectrpc.transports.pycurl import AsyncPycurlTransport
from integration_pb2 import CountRequest, EchoRequest
from integration_pb2_connect import AsyncProbeServiceClient

url, authority, version, how = sys.argv[1:]
configure = lambda curl: curl.setopt(pycurl.CAINFO, authority)
transport = AsyncPycurlTransport(http_version=version, configure=configure)
client = AsyncProbeServiceClient(url, transport, protocol="connect")


async def text(delay_ms=0):
    return (await client.echo(EchoRequest(text="x", delay_ms=delay_ms), timeout_seconds=10)).request.text


async def begin():
    global stream, pending
    assert await text() == "x"
    stream = client.count(CountRequest(up_to=3, delay_ms=100))
    await anext(stream)
    pending = asyncio.ensure_future(text(300))
    await asyncio.sleep(0.05)


async def end():
    assert [message.number async for message in stream] == [2, 3]
    assert await pending == "x"
    assert await text() == "x"
    await transport.aclose()


loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
child = os.fork()
if not child:
    if how == "works":
        assert asyncio.run(text()) == "x"
    elif how == "collects":
        transport = client = stream = pending = loop = None
        gc.collect()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
loop.run_until_complete(end())
"""


@pytest.mark.parametrize("how", ["works", "collects", "exits"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", ["plain", "tls"])
def test_fork(request: pytest.FixtureRequest, tls: TLS, where: str, version: str, how: str) -> None:
    """The child works with connections of its own, and leaves its parent's alone."""
    if where == "plain":
        url = request.getfixturevalue("server").url
    else:
        url = f"https://localhost:{request.getfixturevalue('tls_server').port}"
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, url, str(tls.authority), version, how]
    subprocess.run(command, env=environment, check=True, timeout=25)


BLOCKING_FORKS = """
import gc, os, sys, threading, time
import pycurl
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import PycurlTransport
from integration_pb2 import CountRequest, EchoRequest
from integration_pb2_connect import ProbeServiceClient

url, authority, version, how = sys.argv[1:]
configure = lambda curl: curl.setopt(pycurl.CAINFO, authority)
transport = PycurlTransport(http_version=version, configure=configure)
client = ProbeServiceClient(url, transport, protocol="connect")


def text(delay_ms=0):
    return client.echo(EchoRequest(text="x", delay_ms=delay_ms), timeout_seconds=10).request.text


# One connection waits, one has a stream, and one a call in another thread.
assert text() == "x"
stream = client.call_count(CountRequest(up_to=3, delay_ms=100))
assert next(stream).number == 1
assert text() == "x"
found = []
thread = threading.Thread(target=lambda: found.append(text(300)))
thread.start()
assert text() == "x"
child = os.fork()
if not child:
    if how == "works":
        assert text() == "x"
        assert len(list(client.count(CountRequest(up_to=3)))) == 3
        assert list(stream) == []
        assert stream.error().code is ConnectErrorCode.UNAVAILABLE
        assert text() == "x"
        grandchild = os.fork()
        if grandchild:
            assert os.waitpid(grandchild, 0)[1] == 0
        assert text() == "x"
        transport.close()
    elif how == "collects":
        transport = client = stream = None
        gc.collect()
    elif how == "closes":
        stream.close()
        transport.close()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert [message.number for message in stream] == [2, 3]
assert stream.error() is None
thread.join()
assert found == ["x"]
assert text() == "x"
transport.close()
"""


@pytest.mark.parametrize("how", ["works", "collects", "closes", "exits"])
@pytest.mark.parametrize(("where", "version"), [("plain", "1.1"), ("tls", "2")])
def test_fork_and_blocking_calls(request: pytest.FixtureRequest, tls: TLS, where: str, version: str, how: str) -> None:
    if where == "plain":
        url = request.getfixturevalue("server").url
    else:
        url = f"https://localhost:{request.getfixturevalue('tls_server').port}"
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    arguments = [BLOCKING_FORKS, url, str(tls.authority), version, how]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stderr) == (0, "")


DEBUG = """
import asyncio, gc, sys
from connectrpc.transports.pycurl import AsyncPycurlTransport
from integration_pb2 import ChatRequest, CountRequest, EchoRequest
from integration_pb2_connect import AsyncProbeServiceClient


async def main(url, version):
    async with AsyncPycurlTransport(http_version=version) as transport:
        client = AsyncProbeServiceClient(url, transport, protocol="connect")
        for _ in range(3):
            await client.echo(EchoRequest(text="x"))
            async with client.call_count(CountRequest(up_to=1000, delay_ms=100)) as stream:
                await anext(stream)
            assert len([m async for m in client.count(CountRequest(up_to=3))]) == 3
            stream = await client.call_count(CountRequest(up_to=1000, delay_ms=100))
            await anext(stream)
            del stream
            task = asyncio.create_task(client.echo(EchoRequest(delay_ms=10_000)))
            await asyncio.sleep(0.05)
            task.cancel()
            if version == "2":
                assert len([m async for m in client.chat([ChatRequest(text="x")] * 3)]) == 3
        gc.collect()
        await asyncio.sleep(0.05)


for version in ("1.1", "2"):
    asyncio.run(main(sys.argv[1], version))
gc.collect()
"""


def test_debug_mode_has_nothing_to_say(server: Server) -> None:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", DEBUG, server.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=25, check=False)
    slow = [line for line in done.stderr.splitlines() if "took" not in line]  # what a busy machine may make slow
    assert (done.returncode, slow) == (0, [])
