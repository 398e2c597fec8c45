"""pycurl over sockets: what libcurl does with connections, TLS and proxies, and how calls over it end.

Servers that misbehave over HTTP/2 frame by frame are in ``test_pyqwest``, and streams in both directions in
``test_full_duplex``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import socket
import ssl
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pycurl
import pytest
import uvloop

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import AsyncPycurlTransport

from helpers import STREAM_HEAD, Usage, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import CountRequest, CountResponse, EchoRequest
from integration_pb2_connect import AsyncProbeServiceClient
from rawhttp import HOST, RawServer, chunked, envelope, response
from rawhttp2 import run_http2_server
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


@contextlib.asynccontextmanager
async def connect(url: str, version: Any = "1.1", protocol: str = "connect", **options: Any) -> AsyncIterator[Any]:
    async with AsyncPycurlTransport(http_version=version, **options) as transport:
        yield AsyncProbeServiceClient(url, transport, protocol=protocol)  # type: ignore[arg-type]


def setting(*options: tuple[int, object]) -> Callable[[Any], None]:
    def configure(curl: Any) -> None:
        for option, value in options:
            curl.setopt(option, value)

    return configure


async def error_of(client: Any, call: str = "unary", **options: Any) -> ConnectError:
    """How a call fails, which it does soon."""
    began = time.monotonic()
    if call == "unary":
        error = (await client.call_echo(EchoRequest(text="x"), **options)).error()
    else:
        async with client.call_count(CountRequest(up_to=1), **options) as stream:
            async for _ in stream:
                pass
            error = stream.error()
    assert time.monotonic() - began < SLOW
    assert isinstance(error, ConnectError)
    assert HOST not in error.message
    assert "localhost" not in error.message
    return error


async def text(client: Any, given: str = "hi") -> str:
    return str((await client.echo(EchoRequest(text=given), timeout_seconds=SLOW)).request.text)


async def asettles(condition: Callable[[], bool]) -> bool:
    return await asyncio.to_thread(settles, condition)


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
def test_tls(tls: TLS, tls_server: Server, version: str | None) -> None:
    """Left to choose they take HTTP/2, or gRPC would not work."""

    async def main() -> None:
        options = {"configure": setting((pycurl.CAINFO, str(tls.authority)))}
        for protocol in ("connect", "grpc-web", *(["grpc"] if version != "1.1" else [])):
            async with connect(f"https://localhost:{tls_server.port}", version, protocol, **options) as client:
                assert await text(client) == "hi"
                assert [message.number async for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]

    asyncio.run(main())


def wants_certificate(tls: TLS) -> TLS:
    strict = copy.copy(tls)
    strict.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.server.load_cert_chain(tls.server_file)
    strict.server.load_verify_locations(tls.authority)
    strict.server.verify_mode = ssl.CERT_REQUIRED
    return strict


@pytest.mark.parametrize("certificate", ["none", "foreign", "right"])
def test_client_certificates(tls: TLS, certificate: str) -> None:
    file = {"none": None, "foreign": str(tls.foreign_file), "right": str(tls.client_file)}[certificate]
    options: list[tuple[int, object]] = [(pycurl.CAINFO, str(tls.authority))]
    if file is not None:
        options += [(pycurl.SSLCERT, file), (pycurl.SSLKEY, file)]

    async def main(url: str) -> None:
        async with connect(url, configure=setting(*options)) as client:
            if certificate == "right":
                assert await text(client) == "hi"
                return
            error = await error_of(client)
            assert error.code is Code.UNAVAILABLE
            # The server may have closed the connection before its alert was read.
            reasons = ("certificate required", "unknown ca", "closed the connection", "no connection")
            assert any(reason in error.message for reason in reasons), error

    with RawServer(wants_certificate(tls).wrap(echo_all)) as server:
        asyncio.run(main(https(server)))


@pytest.mark.parametrize("whose", ["nobody's", "foreign", "another host's"])
def test_certificates_that_are_not_trusted(tls: TLS, whose: str) -> None:
    async def main(server: RawServer) -> None:
        options: list[tuple[int, object]] = []
        url = https(server)
        if whose == "foreign":
            options = [(pycurl.CAINFO, str(tls.foreign_file.parent / "foreign authority.pem"))]
        elif whose == "another host's":
            url = f"https://other.test:{server.port}"
            resolved = [f"other.test:{server.port}:{HOST}"]
            options = [(pycurl.CAINFO, str(tls.authority)), (pycurl.RESOLVE, resolved)]
        async with connect(url, configure=setting(*options)) as client:
            error = await error_of(client)
            assert error.code is Code.UNAVAILABLE
            assert "certificate is not trusted" in error.message
            assert ("it is for another host" in error.message) == (whose == "another host's")
            assert "other.test" not in error.message

    with RawServer(tls.wrap(echo_all)) as server:
        asyncio.run(main(server))


# Proxies.


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    with proxy.server:
        yield proxy


def test_proxies(proxy: Proxy, tls: TLS, monkeypatch: pytest.MonkeyPatch) -> None:
    """None from the environment, and what the user says."""

    async def main(plain: RawServer, secure: RawServer) -> None:
        monkeypatch.setenv("http_proxy", proxy.server.url)
        monkeypatch.setenv("https_proxy", proxy.server.url)
        async with connect(plain.url) as client:
            assert await text(client) == "hi"
        assert proxy.seen == []
        configure = setting((pycurl.PROXY, proxy.server.url), (pycurl.CAINFO, str(tls.authority)))
        async with connect(plain.url, configure=configure) as client:
            assert await text(client) == "hi"
        assert proxy.seen == [f"POST {plain.url}/integration.v1.ProbeService/Echo"]
        async with connect(https(secure), configure=configure) as client:
            for given in "abc":
                assert await text(client, given) == given
        assert proxy.seen[1:] == [f"CONNECT {HOST}:{secure.port}"]

    with RawServer(echo_all) as plain, RawServer(tls.wrap(echo_all)) as secure:
        asyncio.run(main(plain, secure))


@pytest.mark.parametrize("how", ["refuses", "hangs up", "is silent", "is not there"])
def test_a_tunnel_that_cannot_be_made(how: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        if how == "refuses":
            peer.send(response(403))
        elif how == "is silent":
            peer.wait_until_gone()

    async def main(url: str) -> None:
        async with connect("https://localhost:1", configure=setting((pycurl.PROXY, url))) as client:
            error = await error_of(client, timeout_seconds=0.3 if how == "is silent" else None)
            if how == "is silent":
                assert error.code is Code.DEADLINE_EXCEEDED
            else:
                assert error.code is Code.UNAVAILABLE
                assert "no connection to the server can be made" in error.message

    with RawServer(script) as server:
        url = server.url
        if how != "is not there":
            asyncio.run(main(url))
    if how == "is not there":
        asyncio.run(main(url))


# Nobody there.


def test_an_answer_before_the_request_is_read() -> None:
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

    async def main(url: str) -> None:
        large = EchoRequest(data=bytes(30_000_000))
        async with connect(url) as client:
            error = (await client.call_echo(large, {"fail": "1"}, SLOW)).error()
            assert error.code is Code.UNAVAILABLE
            assert "429" in error.message
            error = (await client.call_echo(large, timeout_seconds=0.5)).error()
            assert error.code is Code.DEADLINE_EXCEEDED

    with RawServer(script) as server:
        asyncio.run(main(server.url))


def test_no_name() -> None:
    async def main() -> None:
        async with connect("http://no-such-host.invalid") as client:
            error = await error_of(client, timeout_seconds=3)
            assert error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)

    asyncio.run(main())


def test_others_wait_for_a_connection_that_is_given_up() -> None:
    """Over HTTP/2 calls wait for one connection. It is begun anew when the call that began it is cancelled."""

    async def main(port: int) -> None:
        async with connect(f"http://{HOST}:{port}", "2", "grpc", connect_timeout=0.5) as client:
            first = asyncio.create_task(client.echo(EchoRequest()))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(error_of(client))
            await asyncio.sleep(0.1)
            first.cancel()
            error = await second
            assert error.code is Code.UNAVAILABLE
            assert "took too long" in error.message

    with black_hole() as port:
        asyncio.run(main(port))


# Connections that are kept.


@pytest.mark.parametrize("body", [b"x", b""], ids=["body", "empty"])
def test_a_kept_connection_that_is_closed_as_the_next_call_goes_out(body: bytes) -> None:
    """libcurl would send it once more, though the server may have seen it."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            seen.append(request.body)
            if len(seen) == 2:
                return  # it was read, and nothing says so
            peer.send(good_answer(request.body))

    async def main(url: str) -> None:
        async with connect(url) as client:
            assert await text(client) == "hi"
            error = (await client.call_echo(EchoRequest(data=body))).error()
            assert error.code is Code.UNAVAILABLE
            assert "without an answer" in error.message
            assert await text(client) == "hi"

    with RawServer(script) as server:
        asyncio.run(main(server.url))
        assert len(seen) == 3


@pytest.mark.parametrize("message", [EchoRequest(text="x"), EchoRequest()], ids=["body", "empty"])
def test_a_kept_connection_that_is_closed_over_http2(message: EchoRequest) -> None:
    requests = 0

    def script(peer: H2Peer, stream: H2Stream) -> object:
        nonlocal requests
        requests += 1
        if requests == 2:
            return close(peer, stream)
        behave(peer, stream)
        return None

    async def main(url: str) -> None:
        async with connect(url, "2", "grpc") as client:
            assert await text(client) == "hi"
            error = (await client.call_echo(message)).error()
            assert error.code is Code.UNAVAILABLE

    with Misbehaving(script) as server:
        asyncio.run(main(server.url))
        assert requests == 2


@pytest.mark.parametrize("with_reset", [False, True])
def test_a_kept_connection_that_was_closed_a_while_ago(with_reset: bool) -> None:
    """libcurl looks once a second, and no more often, whether the connections that it keeps are still there."""

    def script(peer: Peer) -> None:
        request = peer.read()
        if request is not None:
            peer.send(good_answer(request.body))
        if with_reset:
            time.sleep(0.05)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main(url: str) -> None:
        async with connect(url) as client:
            for _ in range(2):
                assert await text(client) == "hi"
                await asyncio.sleep(1.2)

    with RawServer(script) as server:
        asyncio.run(main(server.url))


def test_a_server_that_says_that_it_closes() -> None:
    async def main(url: str) -> None:
        async with connect(url) as client:
            for _ in range(5):
                assert await text(client) == "hi"

    def script(peer: Peer) -> None:
        request = peer.read()
        assert request is not None
        peer.send(good_answer(request.body).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))

    with RawServer(script) as server:
        asyncio.run(main(server.url))
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
def test_broken_answers(answer: bytes, call: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def main(url: str) -> None:
        async with connect(url) as client:
            error = await error_of(client, call, timeout_seconds=2)
            assert error.code is not Code.CANCELED

    def script(peer: Peer) -> None:
        peer.read()
        peer.send(answer)

    with RawServer(script) as server:
        asyncio.run(main(server.url))
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
        async with connect(server.url) as client:
            if how == "deadline":
                error = await error_of(client, "stream", timeout_seconds=0.2)
                assert error.code is Code.DEADLINE_EXCEEDED
            else:
                task = asyncio.create_task(error_of(client, "stream"))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asettles(lambda: server.open_connections == 0)
            assert await text(client, "go on") == "go on"

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
        async with connect(server.url, "2", "grpc") as client:
            task = asyncio.create_task(error_of(client, "stream"))
            assert await asettles(lambda: len(seen) == 1)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asettles(lambda: seen[0].reset is not None)
            assert await text(client) == "hi"
            assert server._server.accepted == 1

    with Misbehaving(script) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("version", VERSIONS)
def test_streams_that_are_forgotten(server: Server, version: str) -> None:
    async def main() -> None:
        async with connect(server.url, version) as client:
            before = count_sockets()
            for _ in range(20):
                stream = await client.call_count(CountRequest(up_to=1000, delay_ms=1000))
                await anext(stream)
            del stream
            gc.collect()
            await asyncio.sleep(0.1)
            assert count_sockets() <= before + 2
            assert await text(client) == "hi"

    asyncio.run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_thousand_streams_left_early(server: Server, version: str) -> None:
    async def leave(times: int) -> None:
        # Several connections: uvicorn takes hundreds of resets of one for an attack.
        for _ in range(times):
            async with connect(server.url, version) as client:
                for _ in range(50):
                    async with client.call_count(CountRequest(up_to=1000, delay_ms=1000)) as stream:
                        await anext(stream)
                assert await text(client) == "hi"

    asyncio.run(leave(2))
    gc.collect()
    before = Usage.now()
    asyncio.run(leave(20))
    gc.collect()
    now = Usage.now()
    assert now.sockets <= before.sockets + 2
    assert now.objects < before.objects + 1000
    assert now.kilobytes < before.kilobytes + 30_000


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_calls_at_once(server: Server, version: str, loop: str) -> None:
    async def main() -> None:
        async with connect(server.url, version) as client:
            given = [str(number) for number in range(300)]
            assert await asyncio.gather(*(text(client, each) for each in given)) == given
            assert len(asyncio.all_tasks()) == 1

    if loop == "uvloop":
        uvloop.run(main())
    else:
        asyncio.run(main())


def test_a_stream_that_nobody_reads_does_not_hold_others_up(server: Server) -> None:
    async def main() -> None:
        async with (
            connect(server.url, "2", "grpc") as client,
            client.call_count(CountRequest(up_to=1000, padding=100_000)) as stream,
        ):
            await anext(stream)
            await asyncio.sleep(0.3)
            for _ in range(20):
                assert await text(client, "y" * 100_000) == "y" * 100_000
            assert (await anext(stream)).number == 2

    asyncio.run(main())


# Loops and processes.


def test_one_transport_in_several_runs(server: Server) -> None:
    """Also where a loop ends in the middle of calls. Nothing stays open."""
    before = count_sockets()
    transport = AsyncPycurlTransport(http_version="2")
    client = AsyncProbeServiceClient(server.url, transport, protocol="grpc")
    left: list[object] = []

    async def main() -> None:
        assert await text(client) == "hi"
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
