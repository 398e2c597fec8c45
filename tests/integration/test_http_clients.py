"""The HTTP clients that users bring: TLS, proxies, pools that are small, shared, cleared or closed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
import urllib3

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode

from certificates import Authority
from helpers import STREAM_HEAD, Background, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, CountRequest, CountResponse, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from rawhttp import HOST, Malformed, Peer, RawServer, chunked, envelope
from servers import SERVERS
from test_fork import Child, work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from servers import Server

pytestmark = [
    pytest.mark.usefixtures("limit"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

Code = ConnectErrorCode


# TLS.


class TLS:
    """Certificates for this host, and what both sides make of them."""

    def __init__(self, directory: Path) -> None:
        signs = Authority(directory, "authority")
        self.authority = signs.file
        self.server_file = signs.issue("server")
        self.client_file = signs.issue("client")
        self.foreign_file = Authority(directory, "foreign authority").issue("foreign client")
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.server_file)
        self.client = self.context()

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """A client's, which trusts the server and shows this certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def wrap(self, script: Callable[[Peer], object]) -> Callable[[Peer], None]:
        """The script, behind TLS."""

        def wrapped(peer: Peer) -> None:
            try:
                with self.server.wrap_socket(peer.sock.dup(), server_side=True) as sock:
                    script(Peer(sock))
            except ssl.SSLError as error:
                raise Malformed(str(error)) from None

        return wrapped

    def manager(self, **options: Any) -> urllib3.PoolManager:
        return urllib3.PoolManager(**{"ssl_context": self.client, **options})


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(tmp_path_factory.mktemp("tls"))


def https(server: RawServer) -> str:
    return server.url.replace("http:", "https:")


def number(value: int) -> bytes:
    return envelope(CountResponse(number=value).SerializeToString())


def silent(peer: Peer) -> None:
    peer.read()
    peer.wait_until_gone()


def stream_stalls(peer: Peer) -> None:
    peer.read()
    peer.send(STREAM_HEAD + chunked(number(1), last=False))
    peer.wait_until_gone()


def takes_nothing(peer: Peer) -> None:
    peer.read_head()
    time.sleep(0.7)


TLS_STALLS: dict[str, tuple[Callable[[Peer], None], Callable[..., object]]] = {
    "no answer": (silent, lambda client, **options: client.echo(EchoRequest(), **options)),
    "stream stalls": (stream_stalls, lambda client, **options: list(client.count(CountRequest(), **options))),
    "upload is not taken": (
        takes_nothing,
        lambda client, **options: client.echo(EchoRequest(data=bytes(16_000_000)), **options),
    ),
}


@pytest.mark.alone
@pytest.mark.parametrize(("script", "call"), TLS_STALLS.values(), ids=TLS_STALLS.keys())
def test_tls(tls: TLS, script: Callable[[Peer], None], call: Callable[..., object]) -> None:
    """Deadlines and tokens hold behind TLS as well, and leave nothing broken behind."""
    connections = 0

    def first_two(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        return script(peer) if connections < 3 else echo_all(peer)

    with RawServer(tls.wrap(first_two)) as server, tls.manager() as manager:
        client = ProbeServiceClient(https(server), manager)
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            call(client, timeout_seconds=0.3)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 0.6
        token = CancelToken()
        background = Background(lambda: call(client, cancel=token))
        time.sleep(0.3)
        canceled_at = time.monotonic()
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(2)
        assert raised.value.code is Code.CANCELED
        assert background.ended_at - canceled_at < 0.1
        for text in "ab":
            assert client.echo(EchoRequest(text=text)).request.text == text
        assert connections == 3


async def read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


ASYNC_TLS_STALLS: dict[str, tuple[Callable[[Peer], None], Callable[..., Coroutine[Any, Any, object]]]] = {
    "no answer": (silent, lambda client, **options: client.echo(EchoRequest(), **options)),
    "stream stalls": (stream_stalls, lambda client, **options: read(client.count(CountRequest(), **options))),
    "upload is not taken": (
        takes_nothing,
        lambda client, **options: client.echo(EchoRequest(data=bytes(16_000_000)), **options),
    ),
}


@pytest.mark.alone
@pytest.mark.parametrize(("script", "call"), ASYNC_TLS_STALLS.values(), ids=ASYNC_TLS_STALLS.keys())
def test_tls_with_the_asynchronous_client(
    tls: TLS, script: Callable[[Peer], None], call: Callable[..., Coroutine[Any, Any, object]]
) -> None:
    connections = 0

    def first_two(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        return script(peer) if connections < 3 else echo_all(peer)

    async def main(url: str) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls.client)) as session:
            client = AsyncProbeServiceClient(url, session)
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                await call(client, timeout_seconds=0.3)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            assert time.monotonic() - began < 0.6
            task = asyncio.create_task(call(client))
            await asyncio.sleep(0.3)
            canceled_at = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - canceled_at < 0.2
            for text in "ab":
                assert (await client.echo(EchoRequest(text=text))).request.text == text
            assert connections == 3
        # Even a TLS connection that was dropped says goodbye.
        assert await asyncio.to_thread(settles, lambda: server.open_connections == 0)

    with RawServer(tls.wrap(first_two)) as server:
        asyncio.run(main(https(server)))


def test_tls_both_sides_of_a_fork(tls: TLS) -> None:
    def call(name: str, calls: int) -> bool:
        for index in range(calls):
            text = f"{name} {index}"
            assert client.echo(EchoRequest(text=text)).request.text == text
        return True

    with RawServer(tls.wrap(echo_all)) as server, tls.manager() as manager:
        client = ProbeServiceClient(https(server), manager)
        call("before", 3)
        child = Child(lambda: call("child", 100))
        call("parent", 100)
        child.join()
        call("after", 3)
        assert server.accepted == 2


@pytest.mark.alone
def test_a_handshake_that_never_ends(tls: TLS) -> None:
    def script(peer: Peer) -> None:
        peer.wait_until_gone(5)

    with RawServer(script) as server, tls.manager() as manager:
        client = ProbeServiceClient(https(server), manager)
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=0.3)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 0.5


def test_a_certificate_that_is_not_trusted(tls: TLS) -> None:
    async def main(url: str) -> None:
        async with AsyncProbeServiceClient(url) as client:
            error = (await client.call_echo(EchoRequest())).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "certificate" in str(error.__cause__).lower()

    with RawServer(tls.wrap(echo_all)) as server:
        with ProbeServiceClient(https(server)) as client:
            error = client.call_echo(EchoRequest()).error()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "certificate" in str(error.__cause__).lower()
        asyncio.run(main(https(server)))


def test_tls_with_aiohttp(tls: TLS) -> None:
    async def main(url: str) -> None:
        connector = aiohttp.TCPConnector(ssl=tls.client)
        async with aiohttp.ClientSession(connector=connector) as session:
            client = AsyncProbeServiceClient(url, session)
            for _ in range(3):
                assert (await client.echo(EchoRequest(text="x"))).request.text == "x"
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # aiohttp's own way to wait for the end of TLS

    with RawServer(tls.wrap(echo_all)) as server:
        asyncio.run(main(https(server)))
        assert server.accepted == 1


class Strict(NamedTuple):
    """A server that wants a client's certificate."""

    url: str
    reasons: tuple[str, ...]
    """What a client that has none, or a wrong one, may be told."""


STRICT: dict[str, tuple[str, tuple[str, ...]]] = {
    "gunicorn-gthread": ("--", ("certificate required", "unknown ca")),
    # It hangs up without a word.
    "uvicorn-httptools": ("--ssl-", ("closed the connection",)),
}
"""How the names of their options for TLS begin, and what they say."""


@pytest.fixture(scope="module", params=list(STRICT))
def strict(request: pytest.FixtureRequest, tls: TLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    kind = SERVERS[request.param]
    dashes, reasons = STRICT[request.param]
    files = {"certfile": tls.server_file, "ca-certs": tls.authority, "cert-reqs": "2"}
    options = [f"{dashes}{name}={value}" for name, value in files.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    log = tmp_path_factory.mktemp("strict") / "log"
    with socket.create_server((HOST, 0)) as listener, log.open("wb") as output:
        port: int = listener.getsockname()[1]
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn sets it only where it makes the socket
        process = subprocess.Popen(
            [*kind.command(listener.fileno()), *options, kind.app],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        url = f"https://{HOST}:{port}"

        def serves() -> bool:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                return manager.request("GET", url + "/hello").status == 200
            return False

        with urllib3.PoolManager(ssl_context=tls.context(tls.client_file), retries=False, timeout=5) as manager:
            assert settles(serves, 15), log.read_text()
        yield Strict(url, reasons)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Traceback" not in log.read_text()


def test_client_certificates(tls: TLS, strict: Strict) -> None:
    with tls.manager(ssl_context=tls.context(tls.client_file)) as manager:
        assert work(ProbeServiceClient(strict.url, manager), "x", 20)
    # The other way to say the same, as the README has it.
    with urllib3.PoolManager(ca_certs=str(tls.authority), cert_file=str(tls.client_file), maxsize=20) as manager:
        assert work(ProbeServiceClient(strict.url, manager), "x", 2)

    async def main() -> None:
        connector = aiohttp.TCPConnector(ssl=tls.context(tls.client_file))
        async with aiohttp.ClientSession(connector=connector) as session:
            client = AsyncProbeServiceClient(strict.url, session)
            for _ in range(20):
                assert (await client.echo(EchoRequest(text="x"))).request.text == "x"
                assert [message.number async for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]
                assert (await client.sum([SumRequest(number=2)] * 3)).sum == 6
                assert [message.text async for message in client.chat([ChatRequest(text="y")])] == ["y"]

    asyncio.run(main())


@pytest.mark.parametrize("certificate", ["none", "foreign"])
def test_a_client_certificate_is_missing_or_not_trusted(tls: TLS, strict: Strict, certificate: str) -> None:
    """The server says so in TLS, which the client learns when it has sent its request already: TLS 1.3."""
    context = tls.context(tls.foreign_file if certificate == "foreign" else None)

    def judge(error: ConnectError | None) -> None:
        assert error is not None
        assert error.code is Code.UNAVAILABLE
        assert error.__cause__ is not None
        assert any(reason in str(error).lower() for reason in strict.reasons)

    with tls.manager(ssl_context=context) as manager:
        client = ProbeServiceClient(strict.url, manager)
        for _ in range(3):
            judge(client.call_echo(EchoRequest()).error())
            judge(client.call_sum([SumRequest()] * 3).error())
            with client.call_count(CountRequest()) as stream:
                list(stream)
                judge(stream.error())

    async def main() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            client = AsyncProbeServiceClient(strict.url, session)
            for _ in range(3):
                judge((await client.call_echo(EchoRequest())).error())
                judge((await client.call_sum([SumRequest()] * 3)).error())
                async with client.call_count(CountRequest()) as stream:
                    assert [message async for message in stream] == []
                    judge(stream.error())

    asyncio.run(main())


# Proxies.


FRAMING = {"content-length", "transfer-encoding", "connection"}


class Proxy:
    """An HTTP proxy: takes absolute URLs and tunnels."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.server = RawServer(self._script)

    def _script(self, peer: Peer) -> None:
        while (request := peer.read_head()) is not None:
            self.seen.append(f"{request.method} {request.path}")
            if request.method == "CONNECT":
                host, _, port = request.path.partition(":")
                with socket.create_connection((host, int(port))) as upstream:
                    peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
                    self._pump(peer.sock, upstream)
                return
            _, _, rest = request.path.partition("://")
            authority, _, path = rest.partition("/")
            host, _, port = authority.partition(":")
            body = peer.read_body(request)
            headers = [(name, value) for name, value in request.headers.items() if name.lower() not in FRAMING]
            lines = [f"{request.method} /{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
            lines += [f"content-length: {len(body)}", "connection: close", "", ""]
            with socket.create_connection((host, int(port))) as upstream:
                upstream.sendall("\r\n".join(lines).encode() + body)
                self._pump(peer.sock, upstream)
            return

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        """Carry bytes both ways until either side ends."""

        def carry(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
            for sock in (source, target):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=carry, args=(one, other))
        thread.start()
        carry(other, one)
        thread.join()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    with proxy.server:
        yield proxy


def test_proxy(proxy: Proxy, gunicorn_gthread: Server) -> None:
    with urllib3.ProxyManager(proxy.server.url, proxy_headers={"x-proxy": "y"}) as manager:
        client = ProbeServiceClient(gunicorn_gthread.url, manager)
        work(client, "x", 5)
        assert proxy.seen
        assert all(line.startswith(f"POST {gunicorn_gthread.url}/integration.v1.ProbeService/") for line in proxy.seen)
        below = ProbeServiceClient(gunicorn_gthread.url + "/mounted", manager)
        assert below.echo(EchoRequest(text="x")).request.text == "x"
        assert proxy.seen[-1] == f"POST {gunicorn_gthread.url}/mounted/integration.v1.ProbeService/Echo"


def test_proxy_and_fork(proxy: Proxy, gunicorn_gthread: Server) -> None:
    with urllib3.ProxyManager(proxy.server.url) as manager:
        client = ProbeServiceClient(gunicorn_gthread.url, manager)
        work(client, "before", 2)
        before = len(proxy.seen)
        child = Child(lambda: work(client, "child", 20))
        work(client, "parent", 20)
        child.join()
        assert len(proxy.seen) >= before + 50


@pytest.mark.alone
def test_proxy_deadlines_and_tokens(proxy: Proxy) -> None:
    with RawServer(silent) as server, urllib3.ProxyManager(proxy.server.url) as manager:
        client = ProbeServiceClient(server.url, manager)
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=0.3)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 0.6
        token = CancelToken()
        background = Background(lambda: client.echo(EchoRequest(), cancel=token))
        time.sleep(0.2)
        canceled_at = time.monotonic()
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(2)
        assert raised.value.code is Code.CANCELED
        assert background.ended_at - canceled_at < 0.1


def test_proxy_with_tunnel(proxy: Proxy, tls: TLS) -> None:
    with (
        RawServer(tls.wrap(echo_all)) as server,
        urllib3.ProxyManager(proxy.server.url, ssl_context=tls.client) as manager,
    ):
        client = ProbeServiceClient(https(server), manager)
        for text in "abc":
            assert client.echo(EchoRequest(text=text)).request.text == text
        assert proxy.seen == [f"CONNECT {HOST}:{server.port}"]
        child = Child(lambda: client.echo(EchoRequest(text="x")).request.text == "x")
        assert client.echo(EchoRequest(text="y")).request.text == "y"
        child.join()
    with RawServer(tls.wrap(silent)) as server:
        client = ProbeServiceClient(https(server), urllib3.ProxyManager(proxy.server.url, ssl_context=tls.client))
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=0.3)
        assert raised.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.alone
def test_a_tunnel_that_the_proxy_refuses_or_never_answers(tls: TLS) -> None:
    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    with RawServer(refuse) as server:
        client = ProbeServiceClient("https://localhost:1", urllib3.ProxyManager(server.url, ssl_context=tls.client))
        error = client.call_echo(EchoRequest()).error()
        assert error is not None
        assert error.code is Code.UNAVAILABLE
    with RawServer(lambda peer: peer.wait_until_gone()) as server:
        client = ProbeServiceClient("https://localhost:1", urllib3.ProxyManager(server.url, ssl_context=tls.client))
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=0.3)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 0.5


def test_proxy_of_aiohttp(proxy: Proxy, gunicorn_gthread: Server) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(proxy=proxy.server.url) as session:
            client = AsyncProbeServiceClient(gunicorn_gthread.url, session)
            assert (await client.echo(EchoRequest(text="x"))).request.text == "x"
            assert [message.number async for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]

    asyncio.run(main())
    assert len(proxy.seen) == 2


# Pools.


def test_two_servers_and_room_for_one_pool() -> None:
    with RawServer(echo_all) as one, RawServer(echo_all) as other, urllib3.PoolManager(num_pools=1) as manager:
        clients = [ProbeServiceClient(one.url, manager), ProbeServiceClient(other.url, manager)]
        for index in range(40):
            text = str(index)
            assert clients[index % 2].echo(EchoRequest(text=text)).request.text == text

        def call(client: ProbeServiceClient, name: str) -> bool:
            for index in range(100):
                text = f"{name} {index}"
                assert client.echo(EchoRequest(text=text), timeout_seconds=10).request.text == text
                manager.connection_from_url(one.url if index % 2 else other.url)
            return True

        backgrounds = [Background(functools.partial(call, clients[ord(name) % 2], name)) for name in "abcd"]
        assert all(background.result() for background in backgrounds)


def test_a_stream_outlives_its_pools_eviction(gunicorn_gthread: Server) -> None:
    with RawServer(echo_all) as other, urllib3.PoolManager(num_pools=1) as manager:
        client = ProbeServiceClient(gunicorn_gthread.url, manager)
        with client.call_count(CountRequest(up_to=10, delay_ms=10)) as stream:
            assert next(stream).number == 1
            ProbeServiceClient(other.url, manager).echo(EchoRequest())
            manager.clear()
            gc.collect()
            assert [message.number for message in stream] == list(range(2, 11))
            assert stream.error() is None
        assert client.echo(EchoRequest(text="x")).request.text == "x"


def test_a_manager_that_is_cleared_between_calls(gunicorn_gthread: Server) -> None:
    manager = urllib3.PoolManager()
    client = ProbeServiceClient(gunicorn_gthread.url, manager)
    for index in range(10):
        assert client.echo(EchoRequest(number=index)).request.number == index
        manager.clear()
    manager.connection_from_url(gunicorn_gthread.url).close()
    assert client.echo(EchoRequest(text="x")).request.text == "x"


def test_a_manager_that_others_use_too(gunicorn_gthread: Server) -> None:
    """Before, between and during our calls, on the very same pool."""
    with urllib3.PoolManager(maxsize=4) as manager:

        def others() -> bool:
            for _ in range(50):
                answer = manager.request("GET", gunicorn_gthread.url + "/hello")
                assert answer.data == b"hello"
            return True

        others()
        held = manager.request("GET", gunicorn_gthread.url + "/hello", preload_content=False)
        client = ProbeServiceClient(gunicorn_gthread.url, manager)
        client.echo(EchoRequest())
        held.drain_conn()
        held.release_conn()
        # A connection that went out before we knew the pool, and came back since, is no exception.
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(delay_ms=1000), timeout_seconds=0.1)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 1
        background = Background(others)
        work(client, "x", 30)
        assert background.result()


def test_several_clients_share_a_pool(gunicorn_gthread: Server) -> None:
    with urllib3.PoolManager(maxsize=1, block=True) as manager:
        clients = [ProbeServiceClient(gunicorn_gthread.url + path, manager) for path in ("", "/mounted", "/deep/er")]

        def call(client: ProbeServiceClient) -> bool:
            return work(client, client.base_url, 30)

        backgrounds = [Background(functools.partial(call, client)) for client in clients]
        assert all(background.result(20) for background in backgrounds)
        clients[0].close()  # which is not to close the users' manager
        assert clients[1].echo(EchoRequest(text="x")).request.text == "x"


def test_headers_of_the_manager(gunicorn_gthread: Server) -> None:
    with urllib3.PoolManager(
        headers={"x-team": "ours", "accept-encoding": "deflate", "user-agent": "theirs"}
    ) as manager:
        response = ProbeServiceClient(gunicorn_gthread.url, manager).echo(EchoRequest())
        seen = {header.name.lower(): list(header.values) for header in response.headers}
        # urllib3 takes a call's own headers instead of its own, not beside them.
        assert seen["accept-encoding"] != ["deflate"]
        assert seen["user-agent"][0].startswith("connect-python/")


def test_a_client_that_was_closed(gunicorn_gthread: Server) -> None:
    before = count_sockets()
    client = ProbeServiceClient(gunicorn_gthread.url)
    client.close()
    client.echo(EchoRequest())
    assert count_sockets() == before + 1
    client.close()
    client.close()
    assert count_sockets() == before


def test_a_signal_that_raises_in_the_middle_of_a_call() -> None:
    """Ctrl-C: it comes out as it is, and nobody reads the answer that is still under way."""

    class Interrupt(BaseException):
        pass

    def interrupt(signum: int, frame: object) -> None:
        raise Interrupt

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if EchoRequest.FromString(request.body).text == "slow":
                time.sleep(0.3)
            peer.send(good_answer(request.body))

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with RawServer(script) as server, urllib3.PoolManager(block=True, maxsize=1) as manager:
            client = ProbeServiceClient(server.url, manager)
            for timeout in (None, 10):
                client.echo(EchoRequest(text="x"))
                threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
                with pytest.raises(Interrupt):
                    client.echo(EchoRequest(text="slow"), timeout_seconds=timeout)
                background = Background(lambda: client.echo(EchoRequest(text="y")))
                assert background.result(2).request.text == "y"
    finally:
        signal.signal(signal.SIGUSR1, before)
