"""pyqwest and pycurl over sockets: HTTP/1.1 and HTTP/2, plain and behind TLS, and servers that misbehave frame by frame.

Whatever a server does, the call ends, with a code; and the client goes on.
"""

# ruff: noqa: E501  tables read best with a row a line
from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import h2.errors
import h2.exceptions
import pycurl
import pyqwest
import pytest
from typing_extensions import Self

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports.pycurl import AsyncPycurlTransport, PycurlTransport

from colours import COLOURS, AsyncColour, Colour, SyncColour
from helpers import Background, Usage, black_hole, settles
from integration_pb2 import CountRequest, CountResponse, EchoRequest, EchoResponse, PingRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient
from rawhttp import HOST, RawServer, envelope
from rawhttp2 import Frame, H2Peer, H2Stream, frame, h2_server, header_block, run_http2_server
from test_http_clients import TLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

    Script = Callable[[H2Peer, H2Stream], object]

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode

VERSIONS = {"HTTP/1.1": pyqwest.HTTPVersion.HTTP1, "HTTP/2": pyqwest.HTTPVersion.HTTP2}

SLOW = 5.0
"""What ought to be there at once may take so many seconds on a busy machine."""


PYCURL = ("sync-pycurl", "async-pycurl")


@pytest.fixture(params=[*COLOURS, *PYCURL])
def colour(request: pytest.FixtureRequest) -> str:
    """Both clients on pyqwest, and both on pycurl."""
    return str(request.param)


@contextlib.contextmanager
def connect(
    colour: str, url: str, protocol: str = "grpc", *, version: str = "HTTP/2", options: Any = None, **settings: Any
) -> Iterator[Colour]:
    """A client upon either library, with nothing done behind its back."""
    if colour in PYCURL:
        with connect_pycurl(colour, url, protocol, version=version, options=options, **settings) as curl_client:
            yield curl_client
        return
    plain = {"follow_redirects": False, "enable_gzip": False, "enable_brotli": False, "enable_zstd": False}
    settings = {"http_version": VERSIONS[version], **plain, **settings}
    more = {"protocol": protocol, **(options or {})}
    if colour == "sync":
        with (
            pyqwest.SyncHTTPTransport(**settings) as transport,
            COLOURS[colour](url, http_client=pyqwest.SyncClient(transport), **more) as client,
        ):
            yield client
        return
    atransport = pyqwest.HTTPTransport(**settings)
    client = COLOURS[colour](url, http_client=pyqwest.Client(atransport), **more)
    assert isinstance(client, AsyncColour)
    try:
        yield client
    finally:
        client.run(_close(atransport))
        client.close()


@contextlib.contextmanager
def connect_pycurl(
    colour: str,
    url: str,
    protocol: str,
    *,
    version: str,
    options: Any,
    tls_ca_cert: bytes | None = None,
    **settings: Any,
) -> Iterator[Colour]:
    def configure(curl: pycurl.Curl) -> None:
        if tls_ca_cert is not None:
            curl.setopt(pycurl.CAINFO_BLOB, tls_ca_cert)

    settings = {"http_version": "2" if version == "HTTP/2" else "1.1", "configure": configure, **settings}
    more = {"protocol": protocol, **(options or {})}
    if colour == "sync-pycurl":
        with PycurlTransport(**settings) as transport, SyncColour(url, http_client=transport, **more) as sync_client:
            yield sync_client
        return
    atransport = AsyncPycurlTransport(**settings)
    client = AsyncColour(url, http_client=atransport, **more)
    try:
        yield client
    finally:
        client.run(_close(atransport))
        client.close()


async def _close(transport: pyqwest.HTTPTransport | AsyncPycurlTransport) -> None:
    await transport.aclose()


def error_of(client: Colour, call: str, **options: Any) -> ConnectError | None:
    """How a call ends, which it does soon."""
    began = time.monotonic()
    error: ConnectError | None
    if call == "unary":
        error = client.call_echo(EchoRequest(text="x"), **options).error()
    else:
        error = client.call_count(CountRequest(up_to=1), **options).error
    assert time.monotonic() - began < SLOW
    return error


def let_libcurl_look() -> None:
    """It looks whether the connections that it keeps are still there once a second, and no more often."""
    time.sleep(1.05)


# Real servers.


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_http2_server("uvicorn-http2", tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def tls_server(tls: TLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("behind-tls")
    with run_http2_server("uvicorn-http2", directory, certificate=tls.server_file) as server:
        yield server


@pytest.fixture(params=["plain", "TLS"])
def where(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The URL of a server, and what a transport needs to be told of it."""
    server: Server
    if request.param == "plain":
        server = request.getfixturevalue("plain_server")
        return f"http://{HOST}:{server.port}", {}
    server = request.getfixturevalue("tls_server")
    authority: TLS = request.getfixturevalue("tls")
    return f"https://localhost:{server.port}", {"tls_ca_cert": authority.authority.read_bytes()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", ["connect", "grpc-web", "grpc"])
def test_calls_of_all_kinds(colour: str, where: tuple[str, dict[str, Any]], version: str, protocol: str) -> None:
    url, settings = where
    if colour in PYCURL and (protocol, version) == ("grpc", "HTTP/1.1"):
        with pytest.raises(ValueError, match="trailers"), connect(colour, url, protocol, version=version, **settings):
            pass
        return
    with connect(colour, url, protocol, version=version, **settings) as client:
        if protocol == "grpc" and version == "HTTP/1.1":
            error = error_of(client, "unary")
            assert error is not None
            assert error.code is Code.UNIMPLEMENTED
            assert "trailers" in error.message
            return
        assert client.text("hi") == "hi"
        assert client.numbers(20) == list(range(1, 21))
        assert client.sum([SumRequest(number=number) for number in range(5)]).sum == 10
        assert client.sum([]).sum == 0

        output = client.call_echo(EchoRequest(misdeed="metadata"), {"x-sent": ["1", "2"], "x-sent-bin": ["AAA"]})
        assert output.response_headers().getall("x-head") in (["1", "2"], ["1, 2"])
        assert output.response_trailers().getall("x-tail") in (["3", "4"], ["3, 4"])
        message = output.message()
        assert message is not None
        sent = {header.name: list(header.values) for header in message.headers}
        assert sent["x-sent"] in (["1", "2"], ["1, 2"])

        error = client.call_echo(EchoRequest(misdeed="error with metadata")).error()
        assert error is not None
        assert (error.code, error.message) == (Code.ABORTED, "no")
        assert [detail.message() for detail in error.details] == [PingRequest(text="detail")]
        assert error.response_headers()["x-head"] == "1"
        assert error.response_trailers()["x-tail"] == "2"

        streamed = client.call_count(CountRequest(up_to=2, misdeed="error last"))
        assert len(streamed.messages) == 2
        assert streamed.error is not None
        assert streamed.error.code is Code.NOT_FOUND
        assert [detail.message() for detail in streamed.error.details] == [PingRequest(text="detail")]
        streamed = client.call_count(CountRequest(up_to=2, misdeed="metadata"))
        assert streamed.headers.getall("x-head") in (["1", "2"], ["1, 2"])
        assert streamed.trailers.getall("x-tail") in (["3", "4"], ["3, 4"])

        big = EchoRequest(text="y" * 3_000_000)
        assert client.echo(big).request == big
        error = client.call_echo(EchoRequest(misdeed="odd error")).error()
        assert error is not None
        assert error.message == 'a\r\nb\0c?"d\u2028'


@pytest.mark.parametrize("version", VERSIONS)
def test_compression(colour: str, plain_server: Server, version: str) -> None:
    for protocol, send in itertools.product(["connect", "grpc-web", "grpc"], ["gzip", "br", "zstd"]):
        if protocol == "grpc" and version == "HTTP/1.1":
            continue
        options = {"send_compression": send, "accept_compression": [send]}
        with connect(colour, plain_server.url, protocol, version=version, options=options) as client:
            assert client.text("y" * 5000) == "y" * 5000


@pytest.mark.parametrize("protocol", ["connect", "grpc"])
def test_deadlines_of_a_slow_server(colour: str, plain_server: Server, protocol: str) -> None:
    with connect(colour, plain_server.url, protocol) as client:
        error = client.call_echo(EchoRequest(delay_ms=60_000), timeout=0.3).error()
        assert error is not None
        assert error.code is Code.DEADLINE_EXCEEDED
        streamed = client.call_count(CountRequest(up_to=2, delay_ms=60_000), timeout=0.3)
        assert len(streamed.messages) == 1
        assert streamed.error is not None
        assert streamed.error.code is Code.DEADLINE_EXCEEDED
        assert client.text() == "hi"


def test_one_client_in_two_runs(plain_server: Server) -> None:
    """What pyqwest does has its own threads: it does not matter which event loop waits for it."""
    from integration_pb2_connect import AsyncProbeServiceClient

    transport = pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2)
    client = AsyncProbeServiceClient(plain_server.url, pyqwest.Client(transport), protocol="grpc")

    async def main(text: str) -> str:
        stream = client.count(CountRequest(up_to=100))
        assert (await anext(stream)).number == 1  # and left there
        await stream.aclose()
        return (await client.echo(EchoRequest(text=text))).request.text

    for text in ("first", "second", "third"):
        assert asyncio.run(main(text)) == text
    asyncio.run(_close(transport))


FORKS = """
import os, sys, pyqwest
from connectrpc.client import CancelToken
from integration_pb2 import EchoRequest
from integration_pb2_connect import ProbeServiceClient

url = sys.argv[1]
client = ProbeServiceClient(url, pyqwest.SyncClient(), protocol="connect")
assert client.echo(EchoRequest(text="parent")).request.text == "parent"
child = os.fork()
if not child:
    complaints = []
    for make in (lambda: client, lambda: ProbeServiceClient(url, pyqwest.SyncClient())):
        try:
            make().echo(EchoRequest(), cancel=CancelToken())
        except RuntimeError as error:
            complaints.append(str(error))
    os._exit(0 if len(complaints) == 2 and all("after the fork" in text for text in complaints) else 1)
assert os.waitpid(child, 0)[1] == 0
assert client.echo(EchoRequest(text="still")).request.text == "still"
"""


def test_fork(plain_server: Server) -> None:
    """The child is told at once that it cannot go on; the parent can."""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, plain_server.url]
    subprocess.run(command, env=environment, check=True, timeout=25)


EXITS = """
import asyncio, itertools, sys, time
import pyqwest
from integration_pb2 import ChatRequest, EchoRequest
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient

url, how = sys.argv[1:]
settings = {"http_version": pyqwest.HTTPVersion.HTTP2, "follow_redirects": False}


def requests():
    for number in itertools.count():
        yield ChatRequest(text=str(number))
        time.sleep(0.001)


async def call():
    http_client = pyqwest.Client(pyqwest.HTTPTransport(**settings))
    async with AsyncProbeServiceClient(url, http_client, protocol="grpc") as client:
        assert (await client.echo(EchoRequest(text="hi"))).request.text == "hi"


if how == "awaited":
    asyncio.run(call())
else:
    http_client = pyqwest.SyncClient(pyqwest.SyncHTTPTransport(**settings))
    client = ProbeServiceClient(url, http_client, protocol="grpc")
    answers = client.chat(requests())
    next(answers)
    if how == "left":
        answers.close()
print("over", flush=True)
"""


@pytest.mark.parametrize("how", ["open", "left", "awaited"])
def test_a_program_may_end_at_any_time(plain_server: Server, how: str) -> None:
    """pyqwest's threads abort a process that ends while they come back into Python."""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", EXITS, plain_server.url, how]
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=25, check=False)
        assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


def test_an_event_loop_may_end_while_streams_are_read(plain_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is complained of when it has cancelled their tasks."""

    async def main() -> None:
        async with AsyncProbeServiceClient(plain_server.url, http_client) as client:

            async def read() -> None:
                async for _ in client.count(CountRequest(up_to=2, delay_ms=60_000)):
                    begun.release()

            begun = asyncio.Semaphore(0)
            tasks = [asyncio.create_task(read()) for _ in range(20)]
            for _ in tasks:
                await begun.acquire()

    http_client = pyqwest.Client(pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2))
    for _ in range(10):
        asyncio.run(main())
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_leaving_early_again_and_again(colour: str, plain_server: Server, version: str) -> None:
    """Streams that nobody reads to the end, a thousand over HTTP/2, leave nothing behind."""
    # Both sides' HTTP/2 takes a thousand resets of one connection, or hundreds a second, for an attack: uvicorn's
    # closes it then with ENHANCE_YOUR_CALM. Hence several connections.
    request = CountRequest(up_to=1000, delay_ms=1000)

    def leave(times: int) -> None:
        with connect(colour, plain_server.url, "connect", version=version) as client:
            for _ in range(times):
                assert len(client.count(request, most=1)) == 1
                client.call_count(request, most=1)
            assert client.text() == "hi"

    leave(25)
    gc.collect()
    before = Usage.now()
    for _ in range(5):
        leave(100 if version == "HTTP/2" else 30)
    gc.collect()

    def at_rest() -> bool:
        now = Usage.now()
        return now.sockets <= before.sockets + 5 and now.objects < before.objects + 1000

    assert settles(at_rest, 10), (before, Usage.now())
    assert Usage.now().kilobytes < before.kilobytes + 30_000


# Nobody there.


def test_nobody_listens(colour: str) -> None:
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        for version, call in itertools.product(VERSIONS, ["unary", "stream"]):
            url = f"http://{HOST}:{reserved.getsockname()[1]}"
            with connect(colour, url, "connect", version=version) as client:
                error = error_of(client, call)
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "Connection refused" in error.message
            assert isinstance(error.__cause__, pycurl.error if colour in PYCURL else ConnectionError)


def test_connecting_takes_too_long(colour: str) -> None:
    with black_hole() as port, connect(colour, f"http://{HOST}:{port}", connect_timeout=0.3) as client:
        error = error_of(client, "unary")
        assert error is not None
        assert error.code is Code.UNAVAILABLE
        error = error_of(client, "unary", timeout=0.1)
        assert error is not None
        assert error.code is Code.DEADLINE_EXCEEDED


def test_no_name() -> None:
    with connect("sync", "http://no-such-host.invalid") as client:
        error = client.call_echo(EchoRequest(), timeout=3).error()
    assert error is not None
    assert error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def test_a_certificate_of_nobody(colour: str, tls_server: Server, tls: TLS) -> None:
    foreign = tls.foreign_file.parent / "foreign authority.pem"
    url = f"https://localhost:{tls_server.port}"
    with connect(colour, url, tls_ca_cert=foreign.read_bytes()) as client:
        error = error_of(client, "unary")
    assert error is not None
    assert error.code is Code.UNAVAILABLE


# Servers that misbehave.

HEAD = [(":status", "200"), ("content-type", "application/grpc+proto")]
DONE = [("grpc-status", "0")]


def good_message(stream: H2Stream) -> bytes:
    """The answer of a server that behaves: an echo, or the number 1."""
    ((_, payload),) = stream.messages()
    if (stream.get(":path") or "").endswith("Echo"):
        return envelope(EchoResponse(request=EchoRequest.FromString(payload)).SerializeToString())
    return envelope(CountResponse(number=1).SerializeToString())


def behave(peer: H2Peer, stream: H2Stream) -> None:
    peer.head(stream, HEAD)
    peer.data(stream, good_message(stream))
    peer.trailers(stream, DONE)


class Misbehaving:
    """A server that does what a script says with every request, until it is told to behave."""

    def __init__(self, script: Script) -> None:
        self.behaves = threading.Event()
        self.requests = 0
        self.resets: list[H2Stream] = []
        self._script = script
        self._server: RawServer = h2_server(self._serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return self._server.url

    def _serve(self, peer: H2Peer) -> None:
        while (stream := peer.request()) is not None:
            self.requests += 1
            if self.behaves.is_set():
                behave(peer, stream)
                continue
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has reset the stream meanwhile
                if self._script(peer, stream) is CLOSE:
                    return


CLOSE = object()


def answer(
    *messages: bytes,
    head: list[tuple[str, str]] | None = None,
    trailers: list[tuple[str, str]] | None = None,
    good: bool = False,
    then: Script | None = None,
) -> Script:
    """An answer: its head, some bytes of body, perhaps a good message, trailers if there are any, else no end."""

    def script(peer: H2Peer, stream: H2Stream) -> object:
        peer.head(stream, HEAD if head is None else head)
        for message in messages:
            peer.data(stream, message)
        if good:
            peer.data(stream, good_message(stream))
        if trailers is not None:
            peer.trailers(stream, trailers)
        return then(peer, stream) if then is not None else None

    return script


def trailers_only(*pairs: tuple[str, str], status: str = "200", type: str = "application/grpc+proto") -> Script:
    def script(peer: H2Peer, stream: H2Stream) -> None:
        peer.head(stream, [(":status", status), ("content-type", type), *pairs], end=True)

    return script


def end(peer: H2Peer, stream: H2Stream) -> None:
    """The body ends without trailers."""
    peer.data(stream, b"", end=True)


def close(peer: H2Peer, stream: H2Stream) -> object:
    return CLOSE


def reset(code: int) -> Script:
    return lambda peer, stream: peer.reset(stream, code)


def raw(data: Callable[[H2Stream], bytes]) -> Script:
    return lambda peer, stream: peer.raw(data(stream))


def goaway(last: int, code: int) -> Script:
    def script(peer: H2Peer, stream: H2Stream) -> object:
        peer.raw(frame(Frame.GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big")))
        return CLOSE

    return script


def raw_trailers(block: bytes) -> Script:
    return raw(lambda stream: frame(Frame.HEADERS, Frame.END_HEADERS | Frame.END_STREAM, stream.id, block))


MISBEHAVIOUR: dict[str, tuple[Script, set[Code]]] = {
    "trailers alone": (trailers_only(("grpc-status", "5"), ("grpc-message", "n%c3%b6")), {Code.NOT_FOUND}),
    "trailers alone, all well, no message": (trailers_only(*DONE), {Code.UNIMPLEMENTED, Code.INTERNAL}),
    "no status, no body": (trailers_only(), {Code.INTERNAL}),
    "no status": (answer(good=True, then=end), {Code.INTERNAL}),
    "trailers without a status": (answer(good=True, trailers=[("x-other", "1")]), {Code.INTERNAL}),
    "a status that is no number": (answer(good=True, trailers=[("grpc-status", "abc")]), {Code.INTERNAL}),
    "an empty status": (answer(good=True, trailers=[("grpc-status", "")]), {Code.INTERNAL}),
    "a negative status": (answer(good=True, trailers=[("grpc-status", "-1")]), {Code.INTERNAL}),
    "a status that is not known": (answer(good=True, trailers=[("grpc-status", "99")]), {Code.UNKNOWN}),
    "a status of 5,000 digits": (answer(good=True, trailers=[("grpc-status", "9" * 5000)]), {Code.UNKNOWN, Code.INTERNAL}),
    "details that are none": (
        answer(good=True, trailers=[("grpc-status", "5"), ("grpc-status-details-bin", "!!!")]),
        {Code.NOT_FOUND},
    ),
    "details that are garbage": (
        answer(good=True, trailers=[("grpc-status", "5"), ("grpc-status-details-bin", "////")]),
        {Code.NOT_FOUND},
    ),
    "a message that is not percent-encoded": (
        answer(trailers=[("grpc-status", "5"), ("grpc-message", "%zz%f")]),
        {Code.NOT_FOUND},
    ),
    "trailers that are no UTF-8": (answer(trailers=[("grpc-status", "5"), ("grpc-message", "\xff\xfe")]), set(Code)),
    "trailers that cannot be decompressed": (answer(then=raw_trailers(b"\xff\xff\xff\xff\xff\xff")), set(Code)),
    "a status in the head and none behind the body": (
        answer(head=[*HEAD, ("grpc-status", "0")], good=True, then=end),
        {Code.INTERNAL},
    ),
    "a media type of another kind": (trailers_only(*DONE, type="text/html"), {Code.UNKNOWN}),
    "a media type of another codec": (trailers_only(*DONE, type="application/grpc+json"), {Code.INTERNAL}),
    "no media type": (answer(head=[(":status", "200")], good=True, trailers=DONE), {Code.UNKNOWN}),
    "HTTP 400": (trailers_only(status="400"), {Code.INTERNAL}),
    "HTTP 401": (trailers_only(status="401"), {Code.UNAUTHENTICATED}),
    "HTTP 403": (trailers_only(status="403"), {Code.PERMISSION_DENIED}),
    "HTTP 404": (trailers_only(status="404", type="text/html"), {Code.UNIMPLEMENTED}),
    "HTTP 429": (trailers_only(status="429"), {Code.UNAVAILABLE}),
    "HTTP 500": (trailers_only(status="500"), {Code.UNKNOWN}),
    "HTTP 503": (trailers_only(status="503"), {Code.UNAVAILABLE}),
    "HTTP 302": (
        answer(head=[(":status", "302"), ("location", "/elsewhere")], then=end),
        {Code.UNKNOWN},
    ),
    "HTTP 999": (trailers_only(status="999"), set(Code)),
    "a status line that is none": (answer(head=[(":status", "x")]), set(Code)),
    "an encoding that is not known": (answer(head=[*HEAD, ("grpc-encoding", "snappy")], good=True, trailers=DONE), {Code.INTERNAL}),
    "compressed, but nothing was declared": (answer(envelope(b"x", 1), trailers=DONE), {Code.INTERNAL}),
    "compressed garbage": (answer(envelope(b"x" * 20, 1), head=[*HEAD, ("grpc-encoding", "gzip")], trailers=DONE), set(Code)),
    "garbage": (answer(envelope(b"\xff" * 20), trailers=DONE), set(Code)),
    "unknown flags": (answer(envelope(b"", 0x40), trailers=DONE), {Code.INTERNAL}),
    "a message cut off": (answer(b"\0\0\0\0\x09abc", trailers=DONE), {Code.INTERNAL}),
    "a length of 4 GiB": (answer(b"\0\xff\xff\xff\xff", trailers=DONE), {Code.RESOURCE_EXHAUSTED}),
    "closed before the answer": (close, {Code.UNAVAILABLE}),
    "closed after the head": (answer(then=close), {Code.UNAVAILABLE}),
    "closed after a message": (answer(good=True, then=close), {Code.UNAVAILABLE}),
    "closed in a message": (answer(b"\0\0\0\0\x09abc", then=close), {Code.UNAVAILABLE}),
    "GOAWAY before the answer": (goaway(0, 0), {Code.UNAVAILABLE}),
    "GOAWAY, an error": (goaway(0, 2), {Code.UNAVAILABLE, Code.INTERNAL}),
    "GOAWAY after the head": (answer(then=goaway(1, 0)), {Code.UNAVAILABLE}),
    "GOAWAY after the head, calm": (answer(then=goaway(0, 11)), {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED}),
    "bytes that are no frames": (raw(lambda stream: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2), set(Code)),
    "DATA before the head": (raw(lambda stream: frame(Frame.DATA, 0, stream.id, b"x")), set(Code)),
    "DATA of no stream": (raw(lambda stream: frame(Frame.DATA, 0, 0, b"x")), set(Code)),
    "a head that cannot be decompressed": (raw(lambda stream: frame(Frame.HEADERS, 4, stream.id, b"\xff" * 9)), set(Code)),
    "a head without a status": (raw(lambda stream: frame(Frame.HEADERS, 5, stream.id, header_block([("x", "y")]))), set(Code)),
    "a frame that is too large": (answer(then=raw(lambda stream: frame(Frame.DATA, 0, stream.id, bytes(20_000)))), set(Code)),
    "PUSH_PROMISE": (raw(lambda stream: frame(Frame.PUSH_PROMISE, 4, stream.id, b"\0\0\0\2" + header_block(HEAD))), set(Code)),
}  # fmt: skip


@pytest.mark.parametrize("call", ["unary", "stream"])
@pytest.mark.parametrize(("script", "codes"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
def test_misbehaviour(colour: str, script: Script, codes: set[Code], call: str) -> None:
    """It is an error, with a code, at once; and the next call goes well."""
    options: dict[str, Any] = {}
    if colour in PYCURL and codes == set(Code):
        # libcurl may see that a server breaks HTTP/2 only when that says more.
        options["timeout"] = 0.5
    with Misbehaving(script) as server, connect(colour, server.url) as client:
        if call == "stream" and codes == {Code.UNIMPLEMENTED, Code.INTERNAL}:
            assert error_of(client, call) is None, "a stream may have no messages"
        else:
            error = error_of(client, call, **options)
            assert error is not None
            assert error.code in codes, error
        server.behaves.set()
        error = error_of(client, call, **options)
        if error is not None and colour in PYCURL:
            let_libcurl_look()
            error = error_of(client, call)
        assert error is None


RESETS = {
    "NO_ERROR": Code.INTERNAL,
    "PROTOCOL_ERROR": Code.INTERNAL,
    "INTERNAL_ERROR": Code.INTERNAL,
    "FLOW_CONTROL_ERROR": Code.INTERNAL,
    "SETTINGS_TIMEOUT": Code.INTERNAL,
    "STREAM_CLOSED": Code.UNAVAILABLE,
    "FRAME_SIZE_ERROR": Code.INTERNAL,
    "REFUSED_STREAM": Code.UNAVAILABLE,
    "CANCEL": Code.CANCELED,
    "COMPRESSION_ERROR": Code.INTERNAL,
    "CONNECT_ERROR": Code.INTERNAL,
    "ENHANCE_YOUR_CALM": Code.RESOURCE_EXHAUSTED,
    "INADEQUATE_SECURITY": Code.PERMISSION_DENIED,
    "HTTP_1_1_REQUIRED": Code.UNAVAILABLE,
}


@pytest.mark.parametrize("name", RESETS)
def test_resets(colour: str, name: str) -> None:
    """RST_STREAM before the head, after it and after a message: gRPC's table, for all kinds of calls."""
    code = int(h2.errors.ErrorCodes[name])
    for script in (reset(code), answer(then=reset(code)), answer(good=True, then=reset(code))):
        for protocol in ("grpc", "grpc-web", "connect"):
            with Misbehaving(script) as server, connect(colour, server.url, protocol) as client:
                for call in ("unary", "stream"):
                    error = error_of(client, call)
                    assert error is not None
                    if protocol == "grpc":  # the head that the others get is one of gRPC
                        assert error.code is RESETS[name], (error, call)


def test_what_was_refused_is_sent_again(colour: str) -> None:
    """Only that: the server has said that it has not begun it. Over pycurl not even that."""
    with Misbehaving(lambda peer, stream: refuse_once(peer, stream)) as server:
        refused: set[int] = set()

        def refuse_once(peer: H2Peer, stream: H2Stream) -> None:
            if not refused:
                refused.add(stream.id)
                peer.reset(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                behave(peer, stream)

        with connect(colour, server.url) as client:
            if colour in PYCURL:
                error = error_of(client, "unary")
                assert error is not None
                assert error.code is Code.UNAVAILABLE
            assert client.text("once more") == "once more"
        assert server.requests == 2
    with Misbehaving(close) as server, connect(colour, server.url) as client:
        assert error_of(client, "unary") is not None
        assert server.requests == 1


def silent(peer: H2Peer, stream: H2Stream) -> None:
    """It never answers."""


def drip(peer: H2Peer, stream: H2Stream) -> None:
    """A byte of a message every now and then."""
    peer.head(stream, HEAD)
    for byte in envelope(bytes(200)):
        peer.data(stream, bytes([byte]))
        if peer.wait(lambda: stream.reset is not None, 0.05):
            return


STALLS: dict[str, Script] = {
    "silent": silent,
    "silent after the head": answer(),
    "silent in a message": answer(b"\0\0\0\0\x09abc"),
    "silent after a message": answer(good=True),
    "dripping": drip,
}


@pytest.mark.parametrize("call", ["unary", "stream"])
@pytest.mark.parametrize("script", STALLS.values(), ids=STALLS.keys())
def test_deadlines(colour: str, script: Script, call: str) -> None:
    """A deadline holds in every state; the server is told that nobody waits any more."""
    seen: list[H2Stream] = []

    def noting(peer: H2Peer, stream: H2Stream) -> None:
        seen.append(stream)
        script(peer, stream)

    with Misbehaving(noting) as server, connect(colour, server.url) as client:
        began = time.monotonic()
        error = error_of(client, call, timeout=0.3)
        assert error is not None
        assert error.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began >= 0.25
        assert settles(lambda: seen[0].reset is not None)
        server.behaves.set()
        assert error_of(client, call) is None


@pytest.mark.parametrize("library", ["pyqwest", "pycurl"])
@pytest.mark.parametrize("script", STALLS.values(), ids=STALLS.keys())
def test_tokens(script: Script, library: str) -> None:
    """A token ends a synchronous call in every state. Over pycurl the server is told at once."""
    seen: list[H2Stream] = []

    def noting(peer: H2Peer, stream: H2Stream) -> None:
        seen.append(stream)
        script(peer, stream)

    colour = "sync" if library == "pyqwest" else "sync-pycurl"
    with Misbehaving(noting) as server, connect(colour, server.url) as either:
        assert isinstance(either, SyncColour)
        client = either.client
        calls: list[Callable[[CancelToken], object]] = [
            lambda token: client.echo(EchoRequest(), cancel=token),
            lambda token: list(client.count(CountRequest(), cancel=token)),
        ]
        for number, call in enumerate(calls, 1):
            token = CancelToken()
            background = Background(lambda: call(token))  # noqa: B023
            assert settles(lambda: server.requests == number)  # noqa: B023
            time.sleep(0.1)
            token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(SLOW)
            assert raised.value.code is Code.CANCELED
            if library == "pycurl":
                assert settles(lambda: seen[-1].reset is not None)
        server.behaves.set()
        assert client.echo(EchoRequest(text="on")).request.text == "on"


@pytest.mark.parametrize("script", STALLS.values(), ids=STALLS.keys())
def test_cancelled_tasks(script: Script) -> None:
    """A task ends in every state, and the server is told."""
    from integration_pb2_connect import AsyncProbeServiceClient

    seen: list[H2Stream] = []

    def noting(peer: H2Peer, stream: H2Stream) -> None:
        seen.append(stream)
        script(peer, stream)

    async def main(server: Misbehaving) -> None:
        async with pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2) as transport:
            client = AsyncProbeServiceClient(server.url, pyqwest.Client(transport), protocol="grpc")

            async def stream() -> None:
                async for _ in client.count(CountRequest()):
                    pass

            for number, make in enumerate((lambda: client.echo(EchoRequest()), stream), 1):
                task = asyncio.ensure_future(make())
                assert await asyncio.to_thread(settles, lambda: len(seen) == number)  # noqa: B023
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(settles, lambda: seen[-1].reset is not None)
            server.behaves.set()
            assert (await client.echo(EchoRequest(text="on"))).request.text == "on"

    with Misbehaving(noting) as server:
        asyncio.run(main(server))


def test_frames_after_the_end(colour: str) -> None:
    """What comes after the end of an answer belongs to nobody. The call went well, or failed with a code."""
    late = (
        lambda stream: frame(Frame.DATA, 0, stream.id, b"late"),
        lambda stream: frame(Frame.HEADERS, 5, stream.id, header_block([("grpc-status", "13")])),
        lambda stream: frame(Frame.RST_STREAM, 0, stream.id, bytes([0, 0, 0, 2])),
        lambda stream: frame(Frame.WINDOW_UPDATE, 0, stream.id, bytes([0, 0, 0, 2])),
    )
    for make in late:
        with (
            Misbehaving(answer(good=True, trailers=DONE, then=raw(make))) as server,
            connect(colour, server.url) as client,
        ):
            for call in ("unary", "stream"):
                error = error_of(client, call)
                assert error is None or isinstance(error.code, Code)
            server.behaves.set()
            assert error_of(client, "unary") is None


def test_an_informational_answer(colour: str) -> None:
    """Any number of them may come before the real one."""

    def script(peer: H2Peer, stream: H2Stream) -> None:
        for _ in range(3):
            peer.head(stream, [(":status", "103"), ("link", "</a>")])
        behave(peer, stream)

    with Misbehaving(script) as server, connect(colour, server.url) as client:
        assert client.text() == "hi"


def test_a_server_that_dies_takes_all_its_calls_along(colour: str) -> None:
    """Each ends with a code, and the next call makes a new connection."""
    answered = threading.Event()

    def script(peer: H2Peer, stream: H2Stream) -> object:
        peer.head(stream, HEAD)
        peer.data(stream, good_message(stream))
        answered.wait(SLOW)
        return CLOSE

    with Misbehaving(script) as server, connect(colour, server.url) as client:
        threading.Timer(0.3, answered.set).start()
        streamed = client.call_count(CountRequest(up_to=1))
        assert [message.number for message in streamed.messages] == [1]
        assert streamed.error is not None
        assert streamed.error.code is Code.UNAVAILABLE
        if colour in PYCURL:
            let_libcurl_look()
        server.behaves.set()
        assert client.text() == "hi"
