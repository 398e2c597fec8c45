"""One table of requests through both kinds of application: the bytes that go over the wire are the same.

Nothing of a protocol is in a shell, so nothing of it can differ; twins drift quietly.
"""

from __future__ import annotations

import base64
import io
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from connectrpc import compression
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ServerResponse, ServerStream, asgi_service, wsgi_service
from harness import (
    BIDI,
    CLIENT,
    JSON,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    USUAL,
    ask,
    asked,
    call_asgi,
    call_wsgi,
    environ,
    frame,
    reply,
    scope,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@pytest.fixture(autouse=True, params=[False, True], ids=["bare", "versioned"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with and without what clients always send."""
    if request.param:
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")


GZIP = compression.named("gzip")
A = ask("a", 5).SerializeToString()
BIG = ask("x" * 3000).SerializeToString()
GET = "connect=v1&encoding=proto&base64=1&message=" + base64.urlsafe_b64encode(A).decode()


def metadata() -> tuple[Any, Any]:
    return {"x-one": "1", "x-many": ["2", "3"]}, {"x-last": "4", "x-lasts": ["5", "6"]}


def answer(names: list[str]) -> Any:
    if "raise" in names:
        raise RuntimeError("secret")
    if "fail" in names:
        raise ConnectError(ConnectErrorCode.NOT_FOUND, "m\u00e4", [Duration(seconds=5)])
    if "error" in names:
        return ServerResponse(ConnectError(ConnectErrorCode.ABORTED, "m"), *metadata())
    if "metadata" in names:
        return ServerResponse(reply("a"), *metadata())
    if "bad metadata" in names:
        return ServerResponse(reply("a"), {"content-type": "x"})
    if "none" in names:
        return None
    return reply(",".join(names))


def stream(names: list[str]) -> Any:
    def messages() -> Iterator[Any]:
        for name in names:
            if name == "raise in the stream":
                raise RuntimeError("secret")
            if name == "error":
                yield ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
            elif name == "wrong":
                yield ask("wrong")
            else:
                yield reply(name)

    if "raise" in names:
        raise RuntimeError("secret")
    if "fail" in names:
        return ConnectError(ConnectErrorCode.NOT_FOUND, "m")
    if "none" in names:
        return None
    if "metadata" in names:
        return ServerStream(messages(), *metadata())
    if "bad trailers" in names:
        return ServerStream(messages(), None, {"x": "\n"})
    return messages()


class Sync:
    def unary(self, request: Any) -> Any:
        return answer([request.msg.name])

    pure = unary

    def client(self, request: Any) -> Any:
        return answer([message.name for message in request])

    def server(self, request: Any) -> Any:
        return stream([request.msg.name, "b"])

    def bidi(self, request: Any) -> Any:
        return stream([message.name for message in request])


class Async(Sync):
    async def client(self, request: Any) -> Any:
        return answer([message.name async for message in request])

    async def bidi(self, request: Any) -> Any:
        return stream([message.name async for message in request])


def case(name: str, path: str, content_type: str, body: bytes = b"", /, **changes: Any) -> Any:
    return pytest.param(path, content_type, body, changes, id=name)


def names(*given: str) -> bytes:
    return asked(*map(ask, given))


COMPRESSED = {"content-encoding": "gzip"}
STREAM_COMPRESSED = {"connect-content-encoding": "gzip"}

CASES = [
    case("plain", UNARY.path, PROTO, A),
    case("json", UNARY.path, JSON, b'{"name":"\xc3\xa4"}'),
    case("json with parameters", UNARY.path, "Application/JSON; charset=utf-8", b"{}"),
    case("nothing", UNARY.path, PROTO),
    case("no json", UNARY.path, JSON),
    case("nonsense", UNARY.path, PROTO, b"\xff"),
    case("big", UNARY.path, PROTO, BIG),
    case("big and compressed", UNARY.path, PROTO, BIG, headers={"accept-encoding": "gzip"}),
    case("compressed", UNARY.path, PROTO, GZIP.compress(BIG), headers=COMPRESSED),
    case("compressed nothing", UNARY.path, PROTO, b"", headers=COMPRESSED),
    case("compressed nothing, brotli", UNARY.path, PROTO, b"", headers={"content-encoding": "br"}),
    case("not compressed", UNARY.path, PROTO, A, headers=COMPRESSED),
    case("compressed bomb", UNARY.path, PROTO, GZIP.compress(b"\0" * 10_000), headers=COMPRESSED),
    case("unknown compression", UNARY.path, PROTO, A, headers={"content-encoding": "compress"}),
    case("empty compression", UNARY.path, PROTO, A, headers={"content-encoding": ""}),
    case("empty timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": ""}),
    case("too large", UNARY.path, PROTO, A * 2000),
    case("bad timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "x"}),
    case("no time", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "0"}),
    case("bad version", UNARY.path, PROTO, A, headers={"connect-protocol-version": "2"}),
    *(
        case(name, UNARY.path, PROTO, ask(name).SerializeToString())
        for name in ("raise", "fail", "error", "metadata", "bad metadata", "none")
    ),
    case("unknown path", "/unknown", PROTO, A),
    case("unknown method", UNARY.path + "x", PROTO, A),
    case("unknown media type", UNARY.path, "text/plain", A),
    case("no media type", UNARY.path, "", A),
    case("media type of streams", UNARY.path, STREAM_PROTO, A),
    case("put", UNARY.path, PROTO, A, http_method="PUT"),
    case("get", UNARY.path, "", http_method="GET", query=GET),
    case("get pure", PURE.path, "", http_method="GET", query=GET),
    case("get pure, compressed", PURE.path, "", http_method="GET", query=GET, headers={"accept-encoding": "br"}),
    case("get nothing", PURE.path, "", http_method="GET"),
    case("get unknown encoding", PURE.path, "", http_method="GET", query="encoding=x&message="),
    case("get nonsense", PURE.path, "", http_method="GET", query="encoding=proto&message=%ff"),
    case("get non-ascii", PURE.path, "", http_method="GET", query="encoding=json&message={%22name%22:%22\xe4%22}"),
    case("server", SERVER.path, STREAM_PROTO, names("a")),
    case("server, json", SERVER.path, STREAM_JSON, frame(b'{"name":"a"}')),
    case("server, two", SERVER.path, STREAM_PROTO, names("a", "b")),
    case("server, none", SERVER.path, STREAM_PROTO),
    case("server, cut off", SERVER.path, STREAM_PROTO, names("a")[:-1]),
    case("server, end", SERVER.path, STREAM_PROTO, frame(b"", 2)),
    case("server, too large", SERVER.path, STREAM_PROTO, frame(b"x" * 9000)),
    case("server, announces too much", SERVER.path, STREAM_PROTO, b"\0\xff\xff\xff\xff"),
    case("server, compressed", SERVER.path, STREAM_PROTO, frame(GZIP.compress(BIG), 1), headers=STREAM_COMPRESSED),
    case("server, not declared", SERVER.path, STREAM_PROTO, frame(GZIP.compress(BIG), 1)),
    case("server, unknown compression", SERVER.path, STREAM_PROTO, b"", headers={"connect-content-encoding": "x"}),
    case("server, unary media type", SERVER.path, PROTO, names("a")),
    case("server, no time", SERVER.path, STREAM_PROTO, names("a"), headers={"connect-timeout-ms": "0"}),
    *(
        case(f"server, {name}", SERVER.path, STREAM_PROTO, names(name))
        for name in ("raise", "fail", "error", "metadata", "bad trailers", "none", "wrong", "raise in the stream")
    ),
    case("client", CLIENT.path, STREAM_PROTO, names("a", "b")),
    case("client, none", CLIENT.path, STREAM_PROTO),
    case("client, cut off", CLIENT.path, STREAM_PROTO, names("a", "b")[:-1]),
    case("client, nonsense", CLIENT.path, STREAM_PROTO, names("a") + frame(b"\xff")),
    *(
        case(f"client, {name}", CLIENT.path, STREAM_PROTO, names("a", name))
        for name in ("raise", "fail", "error", "metadata", "none")
    ),
    case("bidi", BIDI.path, STREAM_PROTO, names("a", "b", "c")),
    case("bidi, none", BIDI.path, STREAM_PROTO),
    case("bidi, cut off", BIDI.path, STREAM_PROTO, names("a", "b")[:-1]),
    *(
        case(f"bidi, {name}", BIDI.path, STREAM_PROTO, names("a", name, "b"))
        for name in ("raise", "fail", "error", "metadata", "wrong", "raise in the stream")
    ),
]


class Dripping(io.BytesIO):
    """``wsgi.input`` that gives a byte at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1, size or 0))


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize(("path", "content_type", "body", "changes"), CASES)
def test_the_same_bytes(
    path: str, content_type: str, body: bytes, changes: Mapping[str, Any], drip: bool, caplog: pytest.LogCaptureFixture
) -> None:
    headers = changes.get("headers", {})
    http_method, query = changes.get("http_method", "POST"), changes.get("query", "")
    options: dict[str, Any] = {"read_max_bytes": 8000}
    made = environ(path, body, content_type, headers, REQUEST_METHOD=http_method, QUERY_STRING=query)
    if drip:
        made["wsgi.input"] = Dripping(body)
    one = call_wsgi(wsgi_service(SERVICE, Sync(), **options), made)
    logged = [record.getMessage() for record in caplog.records]
    caplog.clear()
    made = scope(path, content_type, headers.items(), method=http_method, query_string=query.encode("latin-1"))
    other = call_asgi(asgi_service(SERVICE, Async(), **options), made, body, int(drip))
    assert one.status == other.status
    assert sorted(one.headers.items()) == sorted(other.headers.items())
    assert one.body == other.body
    assert logged == [record.getMessage() for record in caplog.records]
    assert b"secret" not in one.body


def test_the_table_is_about_something() -> None:
    """The cases differ in what they bring about, as far as their names do."""
    answers = set()
    for parameters in CASES:
        path, content_type, body, changes = parameters.values
        headers = changes.get("headers", {})
        made = environ(
            path,
            body,
            content_type,
            headers,
            REQUEST_METHOD=changes.get("http_method", "POST"),
            QUERY_STRING=changes.get("query", ""),
        )
        found = call_wsgi(wsgi_service(SERVICE, Sync(), read_max_bytes=8000), made)
        answers.add((found.status, found.body))
    assert len(answers) > len(CASES) / 2
    assert {status for status, _ in answers} >= {200, 400, 404, 405, 409, 415, 429, 500, 501, 504}


def test_handlers_see_the_same() -> None:
    seen: list[Any] = []

    def note(request: Any) -> Any:
        seen.append(request)
        return reply()

    implementation = types.SimpleNamespace(unary=note)
    headers = {"X-A": "1", "x-b-bin": "AAE", "connect-timeout-ms": "5000", "content-length": str(len(A))}
    call_wsgi(
        wsgi_service(SERVICE, implementation),
        environ(UNARY.path, A, PROTO, {name: value for name, value in headers.items() if name != "content-length"}),
    )
    call_asgi(asgi_service(SERVICE, implementation), scope(UNARY.path, PROTO, headers.items()), A)
    one, other = seen
    assert one.msg == other.msg
    assert sorted((name.lower(), value) for name, value in one.headers.items()) == sorted(other.headers.items())
    assert one.timeout.timeout_ms == other.timeout.timeout_ms
    assert one.peer.address == other.peer.address
    assert one.method is other.method
