"""How clients are made: their options, base URLs and HTTP clients."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import urllib3

from connectrpc.client import AsyncClient, ClientOptions, SyncClient
from connectrpc.client.options import Procedures
from connectrpc.codec import JsonCodec, ProtoCodec
from connectrpc.errors import ConnectError
from connectrpc.transports import AsyncTransport, SyncTransport, async_transport, sync_transport
from harness import PURE, SERVER, UNARY, AsyncMemoryTransport, MemoryTransport, ask, canned, reply

if TYPE_CHECKING:
    from collections.abc import Callable


def nothing(*args: object) -> Any:
    raise AssertionError("something was sent")


def make_sync(base_url: str = "http://h", **options: Any) -> SyncClient:
    return SyncClient(base_url, MemoryTransport(nothing), **options)


def make_async(base_url: str = "http://h", **options: Any) -> AsyncClient:
    return AsyncClient(base_url, AsyncMemoryTransport(nothing), **options)


BOTH = pytest.mark.parametrize("make", [make_sync, make_async])


@BOTH
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("https://h:8443/api/", "https://h:8443/api"),
        ("https://h:8443/api///", "https://h:8443/api"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("HTTP://h", "HTTP://h"),
    ],
)
def test_base_urls(make: Callable[..., Any], given: str, kept: str) -> None:
    assert make(given).base_url == kept


@BOTH
@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "h",
        "h:80",
        "localhost:8000",
        "//h",
        "ftp://h",
        "http://",
        "http:///x",
        "http://:80",
        "http://h?x=1",
        "http://h/#x",
        "http://h?",
        "http://h/p#",
        "http://h:abc",
        "http://h:99999",
        "http://h h",
        "http://h/a b",
        "http://user:pass@h",  # which not all HTTP clients send
        "http://user@h",
        "http://h\n",
        "http://[::1",
        " http://h",
    ],
)
def test_base_urls_that_are_none(make: Callable[..., Any], base_url: str) -> None:
    with pytest.raises(ValueError):
        make(base_url)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "grpc"},  # of a transport without trailers
        {"protocol": "grpc-web-text"},
        {"protocol": "GRPC-Web"},
        {"protocol": None},
        {"protocol": "grpc-web", "use_get": True},
        {"codec": "xml"},
        {"send_compression": "compress"},
        {"accept_compression": ["gzip", "compress"]},
        {"read_max_bytes": -1},
        {"read_max_bytes": "1"},
        {"compress_min_bytes": -1},
        {"compress_min_bytes": None},
        {"get_url_max_bytes": -1},
        {"timeout_seconds": math.nan},
        {"timeout_seconds": 0},
        {"timeout_seconds": -1},
        {"extra_headers": {"content-type": "x"}},
        {"extra_headers": {"Connect-Timeout-Ms": "1"}},
        {"extra_headers": {"x y": "1"}},
        {"extra_headers": {"x": "\n"}},
    ],
)
def test_options_that_make_no_sense(make: Callable[..., Any], options: dict[str, Any]) -> None:
    """They are refused when the client is made, not at the first call that some request makes in the night."""
    with pytest.raises(ValueError):
        make(**options)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"codec": None},
        {"codec": 5},
        {"accept_compression": "gzip"},
        {"extra_headers": {"x": 1}},
        {"unknown": 1},
        {"timeout": 5},
    ],
)
def test_options_of_the_wrong_type(make: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        make(**options)


@BOTH
@pytest.mark.parametrize("name", ["timeout_seconds", "connect_timeout_seconds", "open_timeout_seconds"])
@pytest.mark.parametrize("value", ["3", timedelta(seconds=3)])
def test_timeouts_that_are_no_numbers(make: Callable[..., Any], name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number of seconds"):
        make(**{name: value})


def test_unknown_options_are_named() -> None:
    with pytest.raises(TypeError, match="retries, timeout"):
        make_sync(timeout=5, retries=3)


def test_options_are_those_of_the_type() -> None:
    """What a type checker lets pass is known, and the other way round."""
    accepted: dict[str, Any] = {
        "protocol": "connect",
        "codec": "json",
        "send_compression": "gzip",
        "accept_compression": ["gzip"],
        "compress_min_bytes": 0,
        "read_max_bytes": None,
        "send_max_bytes": None,
        "use_get": True,
        "get_url_max_bytes": 100,
        "timeout_seconds": 5,
        "open_timeout_seconds": 1,
        "extra_headers": {"x": "1"},
        "interceptors": (),
    }
    # A transport of one's own knows itself how long it may take to connect.
    assert accepted.keys() | {"connect_timeout_seconds"} == ClientOptions.__annotations__.keys()
    make_sync(**accepted)
    make_async(**accepted)


@BOTH
def test_options_may_be_none_where_none_means_something(make: Callable[..., Any]) -> None:
    make(send_compression=None, accept_compression=None, read_max_bytes=None, timeout_seconds=None, extra_headers=None)


@pytest.mark.parametrize("codec", ["json", JsonCodec()])
def test_codec(codec: Any) -> None:
    request, body = (
        Procedures("http://h", {"codec": codec}, asynchronous=False).unary(UNARY).request(ask("a"), None, None)
    )
    assert dict(request.headers)["content-type"] == "application/json"
    assert body == b'{"name":"a"}'


@pytest.mark.parametrize("codec", ["json", JsonCodec()])
def test_codec_of_grpc_web(codec: Any) -> None:
    options: Any = {"codec": codec, "protocol": "grpc-web"}
    request, body = Procedures("http://h", options, asynchronous=False).unary(UNARY).request(ask("a"), None, None)
    assert dict(request.headers)["content-type"] == "application/grpc-web+json"
    assert body == b"\0\0\0\0\x0c" + b'{"name":"a"}'


@pytest.mark.parametrize("method", [UNARY, PURE], ids=lambda method: method.name)
def test_grpc_web_sends_by_post_alone(method: Any) -> None:
    options: Any = {"protocol": "grpc-web", "use_get": False}
    request, body = Procedures("http://h", options, asynchronous=False).unary(method).request(ask(), None, None)
    assert (request.method, request.url) == ("POST", f"http://h{method.path}")
    assert body == b"\0\0\0\0\0"


def test_which_protocols_there_are() -> None:
    for protocol in ("connect", "grpc-web"):
        make_sync(protocol=protocol)
        make_async(protocol=protocol)
    with pytest.raises(ValueError, match=r"'quic'.*connect.*grpc-web"):
        make_sync(protocol="quic")
    with pytest.raises(ValueError, match="POST"):
        make_async(protocol="grpc-web", use_get=True)


def test_default_codec() -> None:
    _, body = (
        Procedures("http://h", {"codec": ProtoCodec()}, asynchronous=False).unary(UNARY).request(ask("a"), None, None)
    )
    _, same = Procedures("http://h", {}, asynchronous=False).unary(UNARY).request(ask("a"), None, None)
    assert body == same == ask("a").SerializeToString()


@pytest.mark.parametrize("name", ["identity", None])
def test_no_compression(name: str | None) -> None:
    procedures = Procedures("http://h", {"send_compression": name, "compress_min_bytes": 0}, asynchronous=False)
    request, _ = procedures.unary(UNARY).request(ask("a"), None, None)
    assert "content-encoding" not in dict(request.headers)
    assert "connect-content-encoding" not in dict(procedures.stream(SERVER).request(None, None).headers)
    options: Any = {"send_compression": name, "compress_min_bytes": 0, "protocol": "grpc-web"}
    request, body = Procedures("http://h", options, asynchronous=False).unary(UNARY).request(ask("a"), None, None)
    assert "grpc-encoding" not in dict(request.headers)
    assert body
    assert body[0] == 0


@pytest.mark.parametrize(("size", "compressed"), [(1023, False), (1024, True)])
def test_what_is_small_is_not_compressed_by_default(size: int, compressed: bool) -> None:
    message = ask("x" * (size - 3))
    assert len(message.SerializeToString()) == size
    procedures = Procedures("http://h", {"send_compression": "gzip"}, asynchronous=False)
    request, _ = procedures.unary(UNARY).request(message, None, None)
    assert ("content-encoding" in dict(request.headers)) is compressed
    assert (procedures.stream(SERVER).send(message)[0] == 1) is compressed


def test_compressions_of_ones_own() -> None:
    class Reverse:
        name = "x-reverse"

        def compress(self, data: bytes) -> bytes:
            return data[::-1]

        def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
            return data[::-1]

    procedures = Procedures(
        "http://h",
        {"send_compression": Reverse(), "accept_compression": ["gzip", Reverse()], "compress_min_bytes": 0},
        asynchronous=False,
    )
    request, body = procedures.unary(UNARY).request(ask("a"), None, None)
    assert body == ask("a").SerializeToString()[::-1]
    assert dict(request.headers)["content-encoding"] == "x-reverse"
    assert dict(request.headers)["accept-encoding"] == "gzip, x-reverse"


def test_what_is_known_is_worked_out_once() -> None:
    procedures = Procedures("http://h", {}, asynchronous=False)
    assert procedures.unary(UNARY) is procedures.unary(UNARY)
    assert procedures.stream(SERVER) is procedures.stream(SERVER)
    assert procedures.unary(UNARY) is not procedures.unary(PURE)


@pytest.mark.parametrize(
    ("default", "given", "expected"),
    [(None, None, None), (5, None, 5000), (5, 0.5, 500), (None, 0.0001, 1), (5, 1e300, 10**10)],
)
def test_deadlines(default: float | None, given: float | None, expected: int | None) -> None:
    assert (
        Procedures("http://h", {"timeout_seconds": default}, asynchronous=False).deadline(given).timeout_ms == expected
    )


def test_deadlines_that_have_passed() -> None:
    procedures = Procedures("http://h", {"timeout_seconds": 5}, asynchronous=False)
    for seconds in (0, -1):
        with pytest.raises(ConnectError):
            procedures.deadline(seconds)
    with pytest.raises(ValueError):
        procedures.deadline(math.nan)


# HTTP clients


def test_transports_of_ones_own() -> None:
    transport, other = MemoryTransport(canned(200, None, b"")), AsyncMemoryTransport(canned(200, None, b""))
    assert isinstance(transport, SyncTransport)
    assert isinstance(other, AsyncTransport)
    assert sync_transport(transport, "http://h") is transport
    assert async_transport(other) is other


def test_urllib3() -> None:
    with urllib3.PoolManager() as manager:
        assert isinstance(sync_transport(manager, "http://h"), SyncTransport)
    with urllib3.ProxyManager("http://proxy:1") as manager:
        assert isinstance(sync_transport(manager, "http://h"), SyncTransport)
    assert isinstance(sync_transport(None, "http://h"), SyncTransport)
    assert isinstance(async_transport(None), AsyncTransport)


class LikeHttpx:
    """``httpx.Client`` and ``requests.Session`` have a method ``send`` too, but not this one."""

    def send(self, request: object, *, stream: bool = False, auth: object = None) -> object: ...
    def close(self) -> None: ...


class LikeAsyncHttpx:
    async def send(self, request: object, *, stream: bool = False, auth: object = None) -> object: ...
    async def aclose(self) -> None: ...


@pytest.mark.parametrize(
    "http_client",
    [
        object(),
        "http://proxy",
        urllib3.PoolManager,
        AsyncMemoryTransport(nothing),
        aiohttp,
        LikeAsyncHttpx(),
        LikeHttpx(),
    ],
)
def test_what_is_no_http_client(http_client: Any) -> None:
    with pytest.raises(TypeError, match="http_client"):
        SyncClient("http://h", http_client)


@pytest.mark.parametrize(
    "http_client",
    [object(), urllib3.PoolManager(), aiohttp.ClientSession, MemoryTransport(nothing), LikeHttpx(), LikeAsyncHttpx()],
)
def test_what_is_no_async_http_client(http_client: Any) -> None:
    with pytest.raises(TypeError, match="http_client"):
        AsyncClient("http://h", http_client)


def test_a_message_reaches_the_url_below_the_base() -> None:
    transport = MemoryTransport(canned(200, "application/proto", reply("a").SerializeToString()))
    client = SyncClient("http://h:81/api/", transport)
    assert client._caller.unary(UNARY, ask()) == reply("a")
    ((request, _),) = transport.requests
    assert request.url == "http://h:81/api" + UNARY.path
