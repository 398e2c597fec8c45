"""Calls through ``httpx.Client`` and ``httpx.AsyncClient``, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks

from colours import AsyncColour, Colour, SyncColour
from helpers import STREAM_HEAD, Background, answering, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, CountRequest, CountResponse, EchoRequest, NotesRequest, SumRequest, SumResponse
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from rawhttp import Peer, RawServer, chunked, envelope, response
from rawhttp2 import Frame, frame, h2_server, run_http2_server
from test_fork import Child
from test_http_clients import TLS, Proxy, https

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx

    from rawhttp2 import H2Peer
    from servers import Server
else:
    httpx = pytest.importorskip("httpx")

pytestmark = [
    pytest.mark.usefixtures("limit"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

Code = ConnectErrorCode

SOON = 2.0
"""How long what should happen at once may take on a machine that is busy."""


class Wire(NamedTuple):
    """A server, and how an httpx client gets there."""

    url: str
    version: str
    settings: dict[str, Any]

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(**{"trust_env": False, **self.settings, **more})

    def aclient(self, **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**{"trust_env": False, **self.settings, **more})


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def http1(uvicorn_h11: Server) -> Wire:
    return Wire(uvicorn_h11.url, "HTTP/1.1", {})


@pytest.fixture(scope="module")
def http2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with run_http2_server("uvicorn-http2", tmp_path_factory.mktemp("http2")) as server:
        yield Wire(server.url, "HTTP/2", {"http1": False, "http2": True})


@pytest.fixture(scope="module")
def http2_tls(tmp_path_factory: pytest.TempPathFactory, tls: TLS) -> Iterator[Wire]:
    with run_http2_server("uvicorn-http2", tmp_path_factory.mktemp("tls"), certificate=tls.server_file) as server:
        yield Wire(server.url.replace("http:", "https:"), "HTTP/2", {"http2": True, "verify": tls.context()})


@pytest.fixture(params=["http1", "http2", "http2_tls"])
def wire(request: pytest.FixtureRequest) -> Wire:
    found: Wire = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["http2", "http2_tls"])
def shared(request: pytest.FixtureRequest) -> Wire:
    """A wire whose connections serve many calls at a time."""
    found: Wire = request.getfixturevalue(request.param)
    return found


@contextlib.contextmanager
def colour(kind: type[Colour], wire: Wire, url: str | None = None, **options: Any) -> Iterator[Colour]:
    """A client of this colour with an httpx client, which is closed in the end."""
    if kind is SyncColour:
        with wire.client() as http_client, SyncColour(url or wire.url, http_client=http_client, **options) as sync:
            yield sync
        return
    ahttp_client = wire.aclient()
    with AsyncColour(url or wire.url, http_client=ahttp_client, **options) as found:
        try:
            yield found
        finally:
            found.run(ahttp_client.aclose())


both = pytest.mark.parametrize("kind", [SyncColour, AsyncColour], ids=["sync", "async"])


# Ordinary calls.


@both
@pytest.mark.parametrize(
    "options", [{}, {"codec": "json"}, {"protocol": "grpc-web"}, {"send_compression": "gzip"}], ids=str
)
def test_calls(wire: Wire, kind: type[Colour], options: dict[str, Any]) -> None:
    with colour(kind, wire, **options) as client:
        assert client.text("hello") == "hello"
        big = bytes(3_000_000)
        assert client.echo(EchoRequest(data=big), timeout=20).request.data == big
        assert client.numbers(5) == [1, 2, 3, 4, 5]
        assert client.sum([SumRequest(number=number) for number in range(5)]).sum == 10
        assert [message.text for message in client.chat([ChatRequest(text=text) for text in "abc"])] == ["a", "b", "c"]
        output = client.call_echo(EchoRequest(misdeed="error=ABORTED"))
        error = output.error()
        assert error is not None
        assert error.code is Code.ABORTED
        streamed = client.call_count(CountRequest(up_to=2, misdeed="error last"))
        assert [message.number for message in streamed.messages] == [1, 2]
        assert streamed.error is not None
        assert streamed.error.code is Code.NOT_FOUND
        assert len(streamed.error.details) == 1


@both
def test_the_http_version(wire: Wire, kind: type[Colour]) -> None:
    """What the tests of this file take for granted."""
    found: list[str] = []
    with colour(kind, wire) as client:
        transport: Any = client.client._caller._transport  # type: ignore[attr-defined]

        def note(response: httpx.Response) -> None:
            found.append(response.http_version)

        async def anote(response: httpx.Response) -> None:
            note(response)

        transport._client.event_hooks = {"response": [note if kind is SyncColour else anote]}
        client.text()
    assert found == [wire.version]


@both
def test_get(wire: Wire, kind: type[Colour]) -> None:
    with colour(kind, wire, use_get=True) as client:
        output = client.call_look(EchoRequest(text="ä/?&%2F", data=bytes(range(256))))
        assert output.error() is None
        message = output.message()
        assert message is not None
        assert message.request == EchoRequest(text="ä/?&%2F", data=bytes(range(256)))


@both
def test_grpc_is_refused(http2: Wire, kind: type[Colour]) -> None:
    with pytest.raises(ValueError, match="gRPC needs HTTP/2 and its trailers"), colour(kind, http2, protocol="grpc"):
        pass


@both
def test_what_is_sent(http1: Wire, kind: type[Colour]) -> None:
    """Our headers, the user's, and nothing of httpx's own."""
    with colour(kind, http1) as client:
        transport: Any = client.client._caller._transport  # type: ignore[attr-defined]
        transport._client.headers["x-team"] = "rpc"
        transport._client.headers["accept-encoding"] = "deflate"
        transport._client.cookies.set("session", "1")
        got = {header.name: list(header.values) for header in client.echo(EchoRequest()).headers}
    assert got["x-team"] == ["rpc"]
    assert got["cookie"] == ["session=1"]
    assert got["user-agent"][0].startswith("connect-python/")
    assert "deflate" not in got["accept-encoding"][0]
    assert got.keys() & {"accept", "connection"} == set()


@both
def test_bodies_are_not_inflated_by_httpx(http1: Wire, kind: type[Colour]) -> None:
    encodings: list[str | None] = []
    with colour(kind, http1, accept_compression=["gzip"]) as client:
        transport: Any = client.client._caller._transport  # type: ignore[attr-defined]

        def note(response: httpx.Response) -> None:
            encodings.append(response.headers.get("content-encoding"))

        async def anote(response: httpx.Response) -> None:
            note(response)

        transport._client.event_hooks = {"response": [note if kind is SyncColour else anote]}
        assert client.echo(EchoRequest(text="x" * 10_000)).request.text == "x" * 10_000
    assert encodings == ["gzip"]


@both
def test_a_redirect_is_not_followed(kind: type[Colour]) -> None:
    with answering(response(307, {"location": "/elsewhere"})) as server:
        with colour(kind, Wire(server.url, "HTTP/1.1", {"follow_redirects": True})) as client:
            error = client.call_echo(EchoRequest()).error()
            assert error is not None
            assert error.code is Code.UNKNOWN
            assert client.text("next") == "next"
        assert server.accepted == 1


@both
def test_the_users_iterator_fails(wire: Wire, kind: type[Colour]) -> None:
    """Its own exception comes out, and the server sees no end of the request, and no answer is waited for."""
    name = f"broken over {wire.url} {kind.__name__}"

    def broken() -> Iterator[SumRequest]:
        yield SumRequest(number=1)
        time.sleep(0.2)
        raise ZeroDivisionError

    with colour(kind, wire) as client:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                client.sum(broken(), {"x-name": name})
        assert client.text("next") == "next"


@both
def test_an_answer_that_overtakes_its_request(wire: Wire, kind: type[Colour]) -> None:
    with colour(kind, wire) as client:
        upload = (SumRequest(padding=bytes(50_000)) for _ in range(100))
        output = client.call_sum(upload, {"x-misdeed": "error at once"})
        error = output.error()
        assert error is not None
        assert error.code is Code.NOT_FOUND
        assert client.text("next") == "next"


# Being stopped, over HTTP/1.1.


def number(value: int) -> bytes:
    return envelope(CountResponse(number=value).SerializeToString())


def silent(peer: Peer) -> None:
    peer.read()
    reached.set()
    peer.wait_until_gone()


def head_drips(peer: Peer) -> None:
    peer.read()
    reached.set()
    for byte in b"HTTP/1.1 200 OK\r\nx-padding: " + b"x" * 500:
        peer.send(bytes([byte]))
        time.sleep(0.02)


def body_drips(peer: Peer) -> None:
    peer.read()
    reached.set()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 500\r\n\r\n")
    for _ in range(500):
        peer.send(b"x")
        time.sleep(0.02)


def says_continue(peer: Peer) -> None:
    """Without end, so that no read of the client's has to wait."""
    peer.read()
    reached.set()
    with contextlib.suppress(OSError):
        while not gone.is_set():
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def takes_nothing(peer: Peer) -> None:
    peer.read_head()
    reached.set()
    gone.wait(10)


def stream_stalls(peer: Peer) -> None:
    peer.read()
    reached.set()
    peer.send(STREAM_HEAD + chunked(number(1), last=False))
    peer.wait_until_gone()


def stream_drips(peer: Peer) -> None:
    peer.read()
    reached.set()
    peer.send(STREAM_HEAD)
    for value in range(500):
        peer.send(chunked(number(value), last=False))
        time.sleep(0.02)


reached = threading.Event()
"""Set when a server stalls."""

gone = threading.Event()
"""Set when a client has given up."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    reached.clear()
    gone.clear()


def unary(client: Any, **options: Any) -> object:
    return client.echo(EchoRequest(), **options)


def upload(client: Any, **options: Any) -> object:
    return client.echo(EchoRequest(data=bytes(32_000_000)), **options)


def upload_stream(client: Any, **options: Any) -> object:
    return client.sum(itertools.repeat(SumRequest(padding=bytes(100_000))), **options)


def server_stream(client: Any, **options: Any) -> object:
    return list(client.count(CountRequest(), **options))


STALLS: dict[str, tuple[Callable[[Peer], None], Callable[..., object]]] = {
    "no answer": (silent, unary),
    "no answer to a stream": (silent, server_stream),
    "head drips": (head_drips, unary),
    "interim answers without end": (says_continue, unary),
    "body drips": (body_drips, unary),
    "upload is not taken": (takes_nothing, upload),
    "upload of a stream is not taken": (takes_nothing, upload_stream),
    "stream stalls": (stream_stalls, server_stream),
    "stream drips": (stream_drips, server_stream),
}

stalls = pytest.mark.parametrize(("script", "call"), STALLS.values(), ids=STALLS.keys())


def after_an_echo(script: Callable[[Peer], None]) -> Callable[[Peer], None]:
    """Serves one call in order, and then does what the script says on the same connection. Only once."""
    stalled = 0

    def scripted(peer: Peer) -> None:
        nonlocal stalled
        request = peer.read()
        if request is None:
            return
        peer.send(good_answer(request.body))
        stalled += 1
        (script if stalled == 1 else echo_all)(peer)

    return scripted


@contextlib.contextmanager
def stalling(script: Callable[[Peer], None], tls: TLS | None, **more: Any) -> Iterator[tuple[RawServer, Any]]:
    """A server whose first connection serves one call and stalls in the second, and a client that did the first."""
    scripted = after_an_echo(script)
    with RawServer(scripted if tls is None else tls.wrap(scripted)) as server:
        verify: Any = True if tls is None else tls.context()
        with httpx.Client(trust_env=False, verify=verify, **more) as http_client:
            client = ProbeServiceClient(server.url if tls is None else https(server), http_client)
            client.echo(EchoRequest())
            try:
                yield server, client
            finally:
                gone.set()


@stalls
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_deadline(tls: TLS, script: Callable[[Peer], None], call: Callable[..., object], encrypted: bool) -> None:
    with stalling(script, tls if encrypted else None) as (server, client):
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            call(client, timeout_seconds=0.5)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert 0.4 < time.monotonic() - began < 0.5 + SOON
        gone.set()
        if reached.is_set():  # else the machine was too busy to send anything
            assert settles(lambda: server.open_connections == 0), "its connection is given up"
            assert client.echo(EchoRequest(text="next")).request.text == "next"


@stalls
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_cancel_token(tls: TLS, script: Callable[[Peer], None], call: Callable[..., object], encrypted: bool) -> None:
    """Also of a call that is blocked on a connection which others have opened."""
    with stalling(script, tls if encrypted else None) as (server, client):
        token = CancelToken()
        background = Background(lambda: call(client, cancel=token))
        assert reached.wait(10)
        time.sleep(0.1)
        assert background.running
        canceled_at = time.monotonic()
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(5)
        assert raised.value.code is Code.CANCELED
        assert background.ended_at - canceled_at < SOON
        gone.set()
        assert settles(lambda: server.open_connections == 0), "its connection is given up"
        assert client.echo(EchoRequest(text="next")).request.text == "next"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_close_from_another_thread(tls: TLS, encrypted: bool) -> None:
    with stalling(stream_stalls, tls if encrypted else None) as (server, client):
        stream = client.call_count(CountRequest())
        assert next(stream).number == 1
        background = Background(lambda: list(stream))
        time.sleep(0.2)
        assert background.running
        stream.close()
        assert background.result(5) == []
        error = stream.error()
        assert error is not None
        assert error.code is Code.CANCELED
        assert settles(lambda: server.open_connections == 0)
        assert client.echo(EchoRequest(text="next")).request.text == "next"


def test_a_connection_that_the_user_has_opened() -> None:
    """Of such a connection nothing is known before the head. Deadlines hold, and a token wakes the caller."""
    token = CancelToken()
    wanted: list[tuple[dict[str, Any], ConnectErrorCode]] = [
        ({"timeout_seconds": 0.3}, Code.DEADLINE_EXCEEDED),
        ({"cancel": token}, Code.CANCELED),
    ]
    for options, code in wanted:
        with RawServer(after_an_echo(silent)) as server, httpx.Client(trust_env=False) as http_client:
            client = ProbeServiceClient(server.url, http_client)
            http_client.post(server.url + "/integration.v1.ProbeService/Echo", content=b"")
            background = Background(lambda: client.echo(EchoRequest(), **options))  # noqa: B023  it ends in here
            time.sleep(0.2)
            if "cancel" in options:
                token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(5)
            assert raised.value.code is code
            assert server.accepted == 1


def test_open_timeout() -> None:
    with stalling(silent, None) as (_, client), httpx.Client(trust_env=False) as http_client:
        impatient = ProbeServiceClient(client.base_url, http_client, open_timeout_seconds=0.3)
        assert impatient.echo(EchoRequest(text="not concerned")).request.text == "not concerned"
    with RawServer(silent) as server, httpx.Client(trust_env=False) as http_client:
        impatient = ProbeServiceClient(server.url, http_client, open_timeout_seconds=0.3)
        with pytest.raises(ConnectError, match="not opened in time") as raised:
            list(impatient.count(CountRequest()))
        assert raised.value.code is Code.DEADLINE_EXCEEDED


def test_open_timeout_is_over_with_the_head(http1: Wire) -> None:
    with http1.client() as http_client:
        client = ProbeServiceClient(http1.url, http_client, open_timeout_seconds=0.5)
        stream = client.count(CountRequest(up_to=4, delay_ms=300))
        assert [message.number for message in stream] == [1, 2, 3, 4]


# Connecting.


@both
def test_connecting_takes_too_long(kind: type[Colour]) -> None:
    with black_hole() as port:
        wire = Wire(f"http://127.0.0.1:{port}", "", {})
        with colour(kind, wire, connect_timeout_seconds=0.3) as client:
            began = time.monotonic()
            with pytest.raises(ConnectError, match="connecting to the server took too long") as raised:
                client.echo(EchoRequest())
            assert raised.value.code is Code.UNAVAILABLE
            assert raised.value.__cause__ is not None
            assert time.monotonic() - began < 0.3 + SOON
        with colour(kind, wire) as client:
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(), timeout=0.3)
            assert raised.value.code is Code.DEADLINE_EXCEEDED


def test_cancel_while_connecting() -> None:
    with black_hole() as port, httpx.Client(trust_env=False, timeout=3) as http_client:
        client = ProbeServiceClient(f"http://127.0.0.1:{port}", http_client)
        token = CancelToken()
        background = Background(lambda: client.echo(EchoRequest(), cancel=token))
        time.sleep(0.3)
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(2)
        assert raised.value.code is Code.CANCELED


@both
def test_nobody_listens(kind: type[Colour]) -> None:
    with RawServer(echo_all) as server:
        pass
    with colour(kind, Wire(server.url, "", {})) as client:
        with pytest.raises(ConnectError, match="no connection to the server can be made") as raised:
            client.echo(EchoRequest())
        assert raised.value.code is Code.UNAVAILABLE
        assert isinstance(raised.value.__cause__, httpx.ConnectError)


@both
def test_the_server_hangs_up(kind: type[Colour]) -> None:
    torn = b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 500\r\n\r\nxx"

    def hangs_up(peer: Peer) -> None:
        peer.read()
        peer.send(answers.pop(0))

    answers = [b"", torn, STREAM_HEAD + chunked(number(1), last=False)]
    with RawServer(hangs_up) as server, colour(kind, Wire(server.url, "", {})) as client:
        with pytest.raises(ConnectError, match="closed the connection without an answer") as raised:
            client.echo(EchoRequest())
        assert raised.value.code is Code.UNAVAILABLE
        with pytest.raises(ConnectError, match="the connection to the server failed") as raised:
            client.echo(EchoRequest())
        assert raised.value.code is Code.UNAVAILABLE
        streamed = client.call_count(CountRequest())
        assert [message.number for message in streamed.messages] == [1]
        assert streamed.error is not None
        assert streamed.error.code is Code.UNAVAILABLE


# What httpx keeps: its pool.


@both
def test_leaving_early(wire: Wire, kind: type[Colour]) -> None:
    """Streams that are left give back their place in the pool, at the server too, and leave nothing behind.

    More than a connection of HTTP/2 takes at a time, but not so many that the server calls it an attack.
    """
    small = wire._replace(settings={**wire.settings, "limits": httpx.Limits(max_connections=2)})
    with colour(kind, small) as client:
        client.text()
        sockets = count_sockets()
        for _ in range(180):
            assert len(client.count(CountRequest(up_to=1_000_000, delay_ms=5, padding=2_000), most=1)) == 1
        assert client.text("next") == "next"
        gc.collect()
        assert settles(lambda: count_sockets() <= sockets + 1)
        output = client.call_echo(EchoRequest(text="in time"), timeout=10)
        assert output.error() is None


@both
def test_the_server_sees_who_leaves(wire: Wire, kind: type[Colour]) -> None:
    name = f"left over {wire.version} by {kind.__name__} at {wire.url}"
    with colour(kind, wire) as client, wire.client() as http_client:
        notes: list[str] = []
        asking = ProbeServiceClient(wire.url, http_client)
        assert len(client.count(CountRequest(up_to=1_000_000, delay_ms=20, name=name), most=2)) == 2
        if isinstance(client, AsyncColour):
            client.run(asyncio.sleep(0.05))

        def ended() -> bool:
            notes.extend(asking.notes(NotesRequest()).notes)
            return f"{name}: end" in notes

        assert settles(ended, within=5)


def test_a_pool_that_is_full(http1: Wire) -> None:
    with http1.client(limits=httpx.Limits(max_connections=1), timeout=httpx.Timeout(5, pool=0.2)) as http_client:
        client = ProbeServiceClient(http1.url, http_client)
        with client.call_count(CountRequest(up_to=1000, delay_ms=10)) as stream:
            next(stream)
            with pytest.raises(ConnectError, match="all connections of the HTTP client's pool are in use") as raised:
                client.echo(EchoRequest())
            assert raised.value.code is Code.UNAVAILABLE
            token = CancelToken()
            background = Background(lambda: client.echo(EchoRequest(), cancel=token))
            token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(2)
            assert raised.value.code is Code.CANCELED
        assert client.echo(EchoRequest(text="next"), timeout_seconds=10).request.text == "next"


def test_deadlines_in_a_pool_that_is_full(http1: Wire) -> None:
    with http1.client(limits=httpx.Limits(max_connections=1), timeout=None) as http_client:
        client = ProbeServiceClient(http1.url, http_client)
        with client.call_count(CountRequest(up_to=1000, delay_ms=10)) as stream:
            next(stream)
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(), timeout_seconds=0.2)
            assert raised.value.code is Code.DEADLINE_EXCEEDED


def test_httpx_own_limits_do_not_end_a_call(http1: Wire) -> None:
    """Its default gives up after five seconds without a byte; how long a call may take is its deadline's to say."""
    with http1.client(timeout=0.2) as http_client:
        client = ProbeServiceClient(http1.url, http_client)
        assert client.echo(EchoRequest(text="late", delay_ms=600)).request.text == "late"
        stream = client.count(CountRequest(up_to=2, delay_ms=500, first_delay_ms=500))
        assert [message.number for message in stream] == [1, 2]


@both
def test_a_client_that_was_closed(http1: Wire, kind: type[Colour]) -> None:
    with colour(kind, http1) as client:
        client.text()
        transport: Any = client.client._caller._transport  # type: ignore[attr-defined]
        if isinstance(client, AsyncColour):
            client.run(transport._client.aclose())
        else:
            transport._client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.text()


def test_the_users_client_stays_open(http1: Wire) -> None:
    with http1.client() as http_client:
        with ProbeServiceClient(http1.url, http_client) as client:
            client.echo(EchoRequest())
        assert not http_client.is_closed


def test_threads(wire: Wire) -> None:
    """Many at a time, also over one connection of HTTP/2, which httpcore alone gets mixed up."""
    with wire.client() as http_client:
        client = ProbeServiceClient(wire.url, http_client)
        failures: list[BaseException] = []

        def work(thread: int) -> None:
            try:
                for index in range(40):
                    text = f"{thread} {index} " + "x" * (index * 50)
                    assert client.echo(EchoRequest(text=text)).request.text == text
                    if index % 10 == 0:
                        stream = client.count(CountRequest(up_to=20), timeout_seconds=20)
                        assert [message.number for message in stream] == list(range(1, 21))
            except BaseException as failure:
                failures.append(failure)

        before = sys.getswitchinterval()
        sys.setswitchinterval(0.0001)
        try:
            threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(25)
        finally:
            sys.setswitchinterval(before)
        assert failures == []


def test_fork(http1: Wire) -> None:
    """A child may not use its parent's connections, and is told so."""

    def in_child() -> bool:
        with pytest.raises(RuntimeError, match="after the fork"):
            client.echo(EchoRequest())
        with pytest.raises(RuntimeError, match="after the fork"):
            ProbeServiceClient(http1.url, http_client)
        with http1.client() as fresh:
            return ProbeServiceClient(http1.url, fresh).echo(EchoRequest(text="child")).request.text == "child"

    with http1.client() as http_client:
        client = ProbeServiceClient(http1.url, http_client)
        client.echo(EchoRequest())
        Child(in_child).join()
        assert client.echo(EchoRequest(text="parent")).request.text == "parent"


# Proxies.


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    with proxy.server:
        yield proxy


@both
def test_proxy(proxy: Proxy, http1: Wire, kind: type[Colour]) -> None:
    with colour(kind, http1._replace(settings={"proxy": proxy.server.url})) as client:
        assert client.text("hello") == "hello"
        assert client.numbers(3) == [1, 2, 3]
    assert proxy.seen
    assert all(line.startswith(f"POST {http1.url}/integration.v1.ProbeService/") for line in proxy.seen)


@both
def test_proxy_with_tunnel(proxy: Proxy, http2_tls: Wire, kind: type[Colour]) -> None:
    """To HTTP/2, where streams are left as they are without a proxy."""
    with colour(kind, http2_tls._replace(settings={**http2_tls.settings, "proxy": proxy.server.url})) as client:
        for _ in range(150):  # more than a connection takes at a time
            assert len(client.count(CountRequest(up_to=1_000_000, delay_ms=20), most=1)) == 1
        assert client.text("next") == "next"
    assert len(proxy.seen) == 1
    assert proxy.seen[0].startswith("CONNECT ")


def test_proxy_deadlines_and_tokens(proxy: Proxy, tls: TLS) -> None:
    for encrypted in (False, True):
        with (
            RawServer(tls.wrap(silent) if encrypted else silent) as server,
            httpx.Client(trust_env=False, proxy=proxy.server.url, verify=tls.context()) as http_client,
        ):
            client = ProbeServiceClient(https(server) if encrypted else server.url, http_client)
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(), timeout_seconds=0.5)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            token = CancelToken()
            reached.clear()
            background = Background(lambda: client.echo(EchoRequest(), cancel=token))  # noqa: B023  it ends in here
            assert reached.wait(10)
            token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(SOON)
            assert raised.value.code is Code.CANCELED


# HTTP/2, where calls share a connection.


def test_calls_that_end_early_leave_the_others_alone(shared: Wire) -> None:
    with shared.client() as http_client:
        client = ProbeServiceClient(shared.url, http_client)
        client.echo(EchoRequest())
        name = f"others over {shared.url}"
        long = Background(lambda: [message.number for message in client.count(CountRequest(up_to=80, delay_ms=20))])
        threads = threading.active_count()
        for _ in range(3):
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(delay_ms=5000, text=name), timeout_seconds=0.1)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
            token = CancelToken()
            waiting = Background(lambda: client.echo(EchoRequest(delay_ms=5000, text=name), cancel=token))  # noqa: B023
            time.sleep(0.1)
            token.cancel()
            with pytest.raises(ConnectError) as raised:
                waiting.result(SOON)
            assert raised.value.code is Code.CANCELED
            stream = client.call_count(CountRequest(up_to=2, first_delay_ms=1, delay_ms=5000))
            next(stream)
            reading = Background(lambda: list(stream))  # noqa: B023
            time.sleep(0.1)
            stream.close()
            assert reading.result(SOON) == []
        assert settles(lambda: threading.active_count() <= threads + 3), "no thread waits on for what nobody wants"
        assert long.result(20) == list(range(1, 81))
        notes = client.notes(NotesRequest()).notes
        assert list(notes).count(f"{name}: cancelled") == 6, "the server was told of each"


IDLE = CountRequest(up_to=2, delay_ms=60_000)
"""For a stream of which nothing comes for long."""


def test_calls_beside_streams_of_which_nothing_comes(shared: Wire) -> None:
    with shared.client() as http_client:
        client = ProbeServiceClient(shared.url, http_client)
        streams = [client.call_count(IDLE) for _ in range(3)]
        for stream in streams:
            next(stream)
        reading = [Background(lambda stream=stream: list(stream)) for stream in streams]  # type: ignore[misc]
        for index in range(30):
            echo = client.echo(EchoRequest(text=str(index), data=bytes(10_000)), timeout_seconds=10)
            assert echo.request.text == str(index)
        for stream in streams:
            stream.close()
        assert [background.result() for background in reading] == [[]] * 3


def test_async_calls_beside_streams_of_which_nothing_comes(shared: Wire) -> None:
    async def main() -> None:
        async with shared.aclient() as http_client:
            client = AsyncProbeServiceClient(shared.url, http_client)

            async def read() -> None:
                async for _ in client.count(IDLE):
                    begun.release()

            begun = asyncio.Semaphore(0)
            reading = [asyncio.create_task(read()) for _ in range(3)]
            for _ in reading:
                await begun.acquire()
            for index in range(30):
                echo = await client.echo(EchoRequest(text=str(index), data=bytes(10_000)), timeout_seconds=10)
                assert echo.request.text == str(index)
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)

    asyncio.run(main())


def test_async_calls_that_are_cancelled_leave_the_others_alone(shared: Wire) -> None:
    async def main() -> None:
        async with shared.aclient() as http_client:
            client = AsyncProbeServiceClient(shared.url, http_client)
            await client.echo(EchoRequest())

            async def count() -> list[int]:
                stream = client.count(CountRequest(up_to=60, delay_ms=10, padding=20_000))
                return [message.number async for message in stream]

            async def many(index: int) -> None:
                with contextlib.suppress(ConnectError):
                    for _ in range(100):
                        await client.echo(EchoRequest(data=bytes(index * 500)))

            long = [asyncio.create_task(count()) for _ in range(5)]
            for round_ in range(5):
                tasks = [asyncio.create_task(many(index)) for index in range(20)]
                for index, task in enumerate(tasks):
                    await asyncio.sleep(0.001 * ((index + round_) % 4))
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert all(task.cancelled() for task in tasks)
            for found in await asyncio.wait_for(asyncio.gather(*long), 20):
                assert found == list(range(1, 61))
            assert (await client.echo(EchoRequest(text="next"))).request.text == "next"

    asyncio.run(main())


def test_async_calls_go_on_where_the_one_that_connects_is_cancelled(
    http2: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait until it has made their connection ready, which ends with it."""

    async def main() -> None:
        connecting = asyncio.Event()

        async def hold(kind: Any, request: httpx.Request, **options: Any) -> httpx.Response:
            told = request.extensions["trace"]

            async def trace(event: str, info: dict[str, Any]) -> None:
                await told(event, info)
                if event.endswith("send_connection_init.started") and not connecting.is_set():
                    connecting.set()
                    await asyncio.sleep(60)

            request.extensions["trace"] = trace
            return await send(kind, request, **options)

        send = httpx.AsyncClient.send
        monkeypatch.setattr(httpx.AsyncClient, "send", hold)
        async with http2.aclient() as http_client:
            client = AsyncProbeServiceClient(http2.url, http_client)
            first = asyncio.create_task(client.echo(EchoRequest(text="first")))
            others = [asyncio.create_task(client.echo(EchoRequest(text=name))) for name in ("a", "b", "c")]
            await asyncio.wait_for(connecting.wait(), 5)
            await asyncio.sleep(0.1)  # the others have come as far
            first.cancel()
            answers = await asyncio.wait_for(asyncio.gather(*others), 5)
            assert [answer.request.text for answer in answers] == ["a", "b", "c"]
            assert first.cancelled()

    asyncio.run(main())


@both
@pytest.mark.parametrize(
    ("number", "code"), [(7, Code.UNAVAILABLE), (8, Code.CANCELED), (11, Code.RESOURCE_EXHAUSTED), (2, Code.INTERNAL)]
)
def test_the_server_resets_a_stream(kind: type[Colour], number: int, code: ConnectErrorCode) -> None:
    def resets(peer: H2Peer) -> None:
        while (stream := peer.request()) is not None:
            peer.reset(stream, number)

    with h2_server(resets) as server:
        with colour(kind, Wire(server.url, "HTTP/2", {"http1": False, "http2": True})) as client:
            for _ in range(2):
                with pytest.raises(ConnectError, match="the server ended the stream") as raised:
                    client.echo(EchoRequest())
                assert raised.value.code is code
        assert server.accepted == 1, "the connection is as good as before"


HTTP2 = {"http1": False, "http2": True}

STREAM = [(":status", "200"), ("content-type", "application/connect+proto")]

LONG = [SumRequest(number=1, padding=bytes(20_000))] * 50
"""More than one window takes."""


@both
@pytest.mark.parametrize("requests", [LONG[:1], LONG], ids=["sent", "being sent"])
def test_requests_in_parts_are_not_sent_again(kind: type[Colour], requests: list[SumRequest]) -> None:
    """A server that goes away has not taken the call. httpx would begin another with the parts that are left."""
    went = False
    answered: list[str | None] = []

    def goes(peer: H2Peer) -> None:
        nonlocal went
        while (stream := peer.request(whole=False)) is not None:
            if went or stream.id == 1:
                peer.wait(lambda stream=stream: stream.over)  # type: ignore[misc]
                if stream.ended:
                    answered.append(stream.get(":path"))
                    peer.head(stream, [(":status", "200"), ("content-type", "application/proto")], end=True)
                continue
            went = True
            peer.reading = False
            peer.wait(lambda stream=stream: stream.over or len(stream.body) > 50_000)  # type: ignore[misc]
            last_stream, no_error = 1, 0
            peer.raw(frame(Frame.GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + no_error.to_bytes(4, "big")))
            peer.finish()
            return

    with h2_server(goes, window=65_535) as server, colour(kind, Wire(server.url, "HTTP/2", HTTP2)) as client:
        client.text()
        error = client.call_sum(iter(requests)).error()
        assert error is not None
        assert error.code is Code.UNAVAILABLE
        assert "going away" in error.message
        assert client.call_echo(EchoRequest(), timeout=10).error() is None
    assert [str(path).rpartition("/")[2] for path in answered] == ["Echo", "Echo"]


@both
def test_authentication_that_sends_requests_twice(kind: type[Colour]) -> None:
    """It may, where a request is in one piece. Of one in parts nothing is left."""

    def wants_a_digest(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if "authorization" in request.headers:
                peer.send(good_answer(request.body))
            else:
                challenge = b'www-authenticate: Digest realm="r", qop="auth", nonce="n", opaque="o"\r\n'
                peer.send(b"HTTP/1.1 401 Unauthorized\r\n" + challenge + b"content-length: 0\r\n\r\n")

    def wire() -> Wire:
        return Wire(server.url, "", {"auth": httpx.DigestAuth("u", "p")})

    with RawServer(wants_a_digest) as server:
        with colour(kind, wire()) as client:
            assert client.text("whole") == "whole"
        with colour(kind, wire()) as client:
            error = client.call_sum(iter(LONG[:3])).error()
        assert error is not None
        assert error.code is Code.UNAUTHENTICATED
        assert "sent only once" in error.message


def overtaking(peer: H2Peer, answer: bytes, code: int) -> None:
    """Stops taking a request in the midst of it, and says why."""
    while (stream := peer.request(whole=False)) is not None:
        peer.reading = False
        peer.wait(lambda stream=stream: len(stream.body) > 60_000)  # type: ignore[misc]
        if answer:
            peer.head(stream, STREAM)
            peer.data(stream, answer, end=True)
        if code >= 0:
            peer.reset(stream, code)
        if not peer.wait(lambda stream=stream: stream.over or code >= 0):  # type: ignore[misc]
            return
        peer.reading = True
        peer.h2.increment_flow_control_window(len(stream.body))
        peer.flush()


@both
@pytest.mark.parametrize("code", [0, -1], ids=["reset", "no reset"])
def test_an_answer_that_overtakes_an_upload_over_http2(kind: type[Colour], code: int) -> None:
    """Nobody takes the rest of the request, and it is not waited for. The answer is there (RFC 9113 section 8.1)."""
    refusal = b'{"error":{"code":"not_found","message":"no such thing"}}'
    answers = [envelope(refusal, 2), envelope(SumRequest(number=7).SerializeToString()) + envelope(b"{}", 2)]

    for answer in answers:
        with (
            h2_server(lambda peer, answer=answer: overtaking(peer, answer, code), window=65_535) as server,  # type: ignore[misc]
            colour(kind, Wire(server.url, "HTTP/2", HTTP2)) as client,
        ):
            for _ in range(3):
                error = client.call_sum(iter(LONG)).error()
                assert (None if error is None else error.message) == ("no such thing" if answer is answers[0] else None)
            assert server.accepted == 1


def add_up(peer: H2Peer) -> None:
    """Answers each upload with how long it was."""
    while (stream := peer.request()) is not None:
        answer = envelope(SumResponse(messages=len(stream.messages())).SerializeToString())
        peer.head(stream, STREAM)
        peer.data(stream, answer + envelope(b"{}", 2), end=True)


UPLOADS = 8


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_uploads_at_the_same_time_over_a_connection_with_little_room(asynchronous: bool) -> None:
    """None waits for room of which the server has told already, as another call was just reading."""
    requests = [SumRequest(number=1, padding=bytes(10_000)) for _ in range(4)]

    def upload(client: ProbeServiceClient) -> int:
        return client.sum(requests, timeout_seconds=20).messages

    async def aupload(url: str) -> list[int]:
        async with Wire(url, "HTTP/2", HTTP2).aclient() as http_client:
            client = AsyncProbeServiceClient(url, http_client)
            await client.sum([SumRequest()])  # so that the settings are known
            found = await asyncio.gather(*(client.sum(requests, timeout_seconds=20) for _ in range(UPLOADS)))
            return [response.messages for response in found]

    with h2_server(add_up, window=1024) as server:
        if asynchronous:
            found = asyncio.run(aupload(server.url))
        else:
            with Wire(server.url, "HTTP/2", HTTP2).client() as http_client:
                client = ProbeServiceClient(server.url, http_client)
                client.sum([SumRequest()])  # so that the settings are known
                uploads = [Background(lambda: upload(client)) for _ in range(UPLOADS)]
                found = [background.result(30) for background in uploads]
        assert found == [4] * UPLOADS
        assert server.accepted == 1


@both
@pytest.mark.parametrize(("number", "code"), [(8, Code.CANCELED), (11, Code.RESOURCE_EXHAUSTED)])
def test_the_server_resets_an_upload(kind: type[Colour], number: int, code: ConnectErrorCode) -> None:
    with (
        h2_server(lambda peer: overtaking(peer, b"", number), window=65_535) as server,
        colour(kind, Wire(server.url, "HTTP/2", HTTP2)) as client,
    ):
        for _ in range(2):
            error = client.call_sum(iter(LONG)).error()
            assert error is not None
            assert "the server ended the stream" in error.message
            assert error.code is code
        assert server.accepted == 1


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_the_callers_generator_ends_with_the_call(version: str) -> None:
    """Where it was read, and not when the collector comes upon it."""
    ended: list[str] = []
    variable = contextvars.ContextVar("variable", default="unset")

    def endless() -> Iterator[SumRequest]:
        token = variable.set("inner")
        try:
            yield from itertools.repeat(SumRequest(padding=bytes(20_000)))
        finally:
            variable.reset(token)
            ended.append(variable.get())

    def takes_nothing(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        gone.wait(10)

    gone = threading.Event()
    variable.set("the caller's")
    server = h2_server(lambda peer: peer.finish(), window=65_535) if version == "HTTP/2" else RawServer(takes_nothing)
    with server, Wire(server.url, version, HTTP2 if version == "HTTP/2" else {}).client() as http_client:
        output = ProbeServiceClient(server.url, http_client).call_sum(endless(), timeout_seconds=0.5)
        gone.set()
        error = output.error()
        assert error is not None
        assert error.code is Code.DEADLINE_EXCEEDED
        assert settles(lambda: ended == ["the caller's"]), ended


# asyncio.


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
def test_async_streams_that_are_forgotten(wire: Wire, begun: bool) -> None:
    """They give back their place in the pool, and their stream of a connection, whoever collects them."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=1)
        async with wire.aclient(limits=limits, timeout=httpx.Timeout(5)) as http_client:
            client = AsyncProbeServiceClient(wire.url, http_client)
            for _ in range(120 if wire.version == "HTTP/2" else 3):
                stream = await client.call_count(CountRequest(up_to=1_000_000, delay_ms=50))
                assert stream.error() is None
                if begun:
                    await stream.__anext__()
                del stream
                gc.collect(0)
                await asyncio.sleep(0)
            echo = await client.echo(EchoRequest(text="next"), timeout_seconds=10)
            assert echo.request.text == "next"

    asyncio.run(main())


@pytest.mark.parametrize("interceptors", [[], [Hooks()]], ids=["plain", "hooks"])
def test_a_task_that_reads_is_woken_when_another_closes(shared: Wire, interceptors: list[Any]) -> None:
    async def main() -> None:
        async with shared.aclient() as http_client:
            client = AsyncProbeServiceClient(shared.url, http_client, interceptors=interceptors)
            stream = await client.call_count(CountRequest(up_to=2, delay_ms=60_000))

            async def read() -> list[int]:
                return [message.number async for message in stream]

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.2)
            assert not reading.done()
            await stream.close()
            await asyncio.wait_for(reading, 5)
            echo = await client.echo(EchoRequest(text="next"), timeout_seconds=5)
            assert echo.request.text == "next"

    asyncio.run(main())


async def acall(client: AsyncProbeServiceClient, call: Callable[..., object], timeout: float | None = None) -> None:
    """The asynchronous twin of one of the calls above."""
    if call is unary:
        await client.echo(EchoRequest(), timeout_seconds=timeout)
    elif call is upload:
        await client.echo(EchoRequest(data=bytes(32_000_000)), timeout_seconds=timeout)
    elif call is upload_stream:
        endless = itertools.repeat(SumRequest(padding=bytes(100_000)))
        await client.sum(endless, timeout_seconds=timeout)
    else:
        async for _ in client.count(CountRequest(), timeout_seconds=timeout):
            pass


@contextlib.asynccontextmanager
async def astalling(
    script: Callable[[Peer], None], tls: TLS | None
) -> AsyncIterator[tuple[RawServer, AsyncProbeServiceClient]]:
    scripted = after_an_echo(script)
    with RawServer(scripted if tls is None else tls.wrap(scripted)) as server:
        verify: Any = True if tls is None else tls.context()
        async with httpx.AsyncClient(trust_env=False, verify=verify) as http_client:
            client = AsyncProbeServiceClient(server.url if tls is None else https(server), http_client)
            await client.echo(EchoRequest())
            try:
                yield server, client
            finally:
                gone.set()


@stalls
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_async_stops(
    tls: TLS, script: Callable[[Peer], None], call: Callable[..., object], encrypted: bool, how: str
) -> None:
    async def main() -> None:
        async with astalling(script, tls if encrypted else None) as (server, client):
            if how == "deadline":
                with pytest.raises(ConnectError) as raised:
                    await acall(client, call, 0.5)
                assert raised.value.code is Code.DEADLINE_EXCEEDED
            else:
                task = asyncio.create_task(acall(client, call))
                assert await asyncio.to_thread(reached.wait, 10)
                await asyncio.sleep(0.1)
                assert not task.done()
                began = time.monotonic()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.monotonic() - began < SOON
            gone.set()
            if reached.is_set():  # else the machine was too busy to send anything
                assert await asyncio.to_thread(settles, lambda: server.open_connections == 0), "given up"
                assert (await client.echo(EchoRequest(text="next"))).request.text == "next"
            for _ in range(100):
                if asyncio.all_tasks() == {asyncio.current_task()}:
                    break
                await asyncio.sleep(0.01)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "no task outlives its call"

    asyncio.run(main())


def test_an_upload_ends_with_its_call() -> None:
    """The caller's generator is closed, and soon."""
    ended: list[bool] = []

    async def endless() -> AsyncIterator[SumRequest]:
        try:
            while True:
                yield SumRequest(padding=bytes(100_000))
        finally:
            ended.append(True)

    async def main() -> None:
        async with astalling(takes_nothing, None) as (_, client):
            with pytest.raises(ConnectError):
                await client.sum(endless(), timeout_seconds=0.3)
            for _ in range(200):
                if ended:
                    break
                await asyncio.sleep(0.01)
            assert ended

    asyncio.run(main())


def test_leaving_as_the_loop_ends(wire: Wire) -> None:
    """Streams that nobody closes are closed with the loop, and their sockets with them."""

    async def leave(*, forget: bool) -> None:
        http_client = wire.aclient()
        client = AsyncProbeServiceClient(wire.url, http_client)
        generator = client.count(CountRequest(up_to=1_000_000, delay_ms=1))
        async for _ in generator:
            break
        if forget:
            kept.append(generator)
        else:
            await generator.aclose()
        await http_client.aclose()

    kept: list[Any] = []
    asyncio.run(leave(forget=False))
    asyncio.run(leave(forget=True))
    kept.clear()
    gc.collect()


def test_two_event_loops(wire: Wire) -> None:
    """An AsyncClient with connections of a loop that is over is refused, instead of hanging or breaking."""
    http_client = wire.aclient()
    client = AsyncProbeServiceClient(wire.url, http_client)

    async def first() -> None:
        assert (await client.echo(EchoRequest(text="first"))).request.text == "first"
        await http_client._transport.aclose()  # what it has in the pool goes with the loop; the client stays open

    async def second(client: AsyncProbeServiceClient) -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await client.echo(EchoRequest())

    asyncio.run(first())
    asyncio.run(second(client))
    asyncio.run(second(AsyncProbeServiceClient(wire.url, http_client)))


def test_many_tasks(wire: Wire) -> None:
    async def main() -> None:
        async with wire.aclient() as http_client:
            client = AsyncProbeServiceClient(wire.url, http_client)

            async def one(index: int) -> None:
                text = f"{index} " + "x" * (index * 20)
                assert (await client.echo(EchoRequest(text=text), timeout_seconds=20)).request.text == text

            await asyncio.gather(*(one(index) for index in range(150)))

    asyncio.run(main())


@both
@pytest.mark.parametrize("status", ["abc", "", "200 OK"])
def test_a_status_over_http2_that_is_no_number(kind: type[Colour], status: str) -> None:
    """The call fails, and the next one on the connection does not."""
    answers = iter([status, "200"])

    def answer(peer: H2Peer) -> None:
        while (stream := peer.request()) is not None:
            peer.head(stream, [(":status", next(answers)), ("content-type", "application/proto")], end=True)

    with (
        h2_server(answer) as server,
        colour(kind, Wire(server.url, "HTTP/2", {"http1": False, "http2": True})) as client,
    ):
        with pytest.raises(ConnectError, match="the connection to the server failed") as raised:
            client.echo(EchoRequest())
        assert raised.value.code is Code.UNAVAILABLE
        assert isinstance(raised.value.__cause__, ValueError)
        assert not client.echo(EchoRequest()).HasField("request"), "an answer without a body"
