"""One table of requests through both kinds of application: the bytes that go over the wire are the same.

Nothing of a protocol is in a shell, so nothing of it can differ; twins drift quietly. The clients' half is in
``test_parity_clients``.
"""

from __future__ import annotations

import asyncio
import base64
import io
import types
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict

import connectrpc.deadline
import connectrpc.server.asgi
from connectrpc import compression
from connectrpc.codec import JsonCodec
from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from connectrpc.interceptors import Hooks, Response
from connectrpc.server import InThreads, ServerResponse, ServerStream, asgi_app, asgi_service, wsgi_app, wsgi_service
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    USUAL,
    WEB,
    WEB_JSON,
    WEB_PROTO,
    Answer,
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
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from connectrpc.interceptors import Request


@pytest.fixture(autouse=True, params=[False, True], ids=["bare", "versioned"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with and without what clients always send."""
    if request.param:
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")


class Clock:
    """The clock of deadlines: nobody has to wait for one to pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(connectrpc.deadline, "time", made)
    monkeypatch.setattr(connectrpc.server.asgi, "time", made)
    return made


GZIP = compression.named("gzip")
A = ask("a", 5).SerializeToString()
BIG = ask("x" * 3000).SerializeToString()
GET = "connect=v1&encoding=proto&base64=1&message=" + base64.urlsafe_b64encode(A).decode()


def metadata() -> tuple[Any, Any]:
    return {"x-one": "1", "x-many": ["2", "3"]}, {"x-last": "4", "x-lasts": ["5", "6"]}


def an_error(*details: Any) -> ConnectError:
    return ConnectError(ConnectErrorCode.NOT_FOUND, "m\u00e4", [Duration(seconds=5), *details])


def act(names: list[str], clock: Clock) -> Any:
    """What a handler does whatever it is to give; None when that is nothing."""
    if "late" in names:
        clock.now += 60
    if "raise" in names:
        raise RuntimeError("secret")
    if "time out" in names:
        raise TimeoutError("secret")
    if "late and time out" in names:
        clock.now += 60
        raise TimeoutError("secret")
    if "fail" in names:
        raise an_error()
    if "surrogate detail" in names:
        raise ConnectError(ConnectErrorCode.ABORTED, "m", [ConnectErrorDetail("\ud800", b"x")])
    if "surrogate" in names:
        raise ConnectError(ConnectErrorCode.INTERNAL, "\ud800")
    if "debug" in names:
        error = an_error(ConnectErrorDetail("no.json", b"\xff", object()))
        error.add_detail(Duration(seconds=7), include_debug=True)
        raise error
    if "give error" in names:
        return an_error()
    return None


def answer(names: list[str], clock: Clock) -> Any:
    """What a handler gives that answers by one message."""
    given = act(names, clock)
    if given is not None:
        return given
    if "error" in names:
        return ServerResponse(ConnectError(ConnectErrorCode.ABORTED, "m"), *metadata())
    if "metadata" in names:
        return ServerResponse(reply("a"), *metadata())
    if "bad metadata" in names:
        return ServerResponse(reply("a"), {"content-type": "x"})
    if "bad trailers" in names:
        return ServerResponse(reply("a"), None, {"x": "\n"})
    if "error with bad metadata" in names:
        return ServerResponse(an_error(), {"connect-x": "1"})
    if "none" in names:
        return None
    if "wrong" in names:
        return ask("wrong")
    if "wrong in a response" in names:
        wrong: Any = ask("wrong")
        return ServerResponse(wrong, *metadata())
    if "stream" in names:
        return [reply("a")]
    if "big" in names:
        return reply("x" * 3000)
    return reply(",".join(names))


def stream(names: list[str], clock: Clock) -> Any:
    """What a handler gives that answers by a stream."""

    def messages() -> Iterator[Any]:
        for name in names:
            if name == "raise in the stream":
                raise RuntimeError("secret")
            if name == "fail in the stream":
                raise an_error()
            if name == "error":
                yield ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
            elif name == "wrong":
                yield ask("wrong")
            elif name == "nothing":
                yield None
            elif name == "big":
                yield reply("x" * 3000)
            elif name == "late in the stream":
                clock.now += 60
                yield reply("late")
            else:
                yield reply(name)
            if name == "late trailers":
                given.trailers.add("x-late", "late")
            if name == "late bad trailers":
                given.trailers.add("x", "\n")
            if name == "late trailers and error":
                given.trailers.add("x-late", "late")
                raise an_error()
        if "late at the end" in names:
            clock.now += 60

    error = act(names, clock)
    if error is not None:
        return error
    if "none" in names:
        return None
    if "unary" in names:
        return ServerResponse(reply("a"))
    if "bad headers" in names:
        return ServerStream(messages(), {"connect-x": "1"})
    if "bad trailers" in names:
        return ServerStream(messages(), None, {"x": "\n"})
    if "list" in names:
        return list(messages())
    if "list with metadata" in names:
        return ServerStream(list(messages()), *metadata())
    if any(name in names for name in ("metadata", "late trailers", "late bad trailers", "late trailers and error")):
        given = ServerStream(messages(), *metadata())
        return given
    return messages()


class Sync:
    """Handlers that behave as the names in their requests say."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def unary(self, request: Any) -> Any:
        return answer([request.msg.name], self.clock)

    pure = unary

    def client(self, request: Any) -> Any:
        return answer([message.name for message in request], self.clock)

    def server(self, request: Any) -> Any:
        return stream([request.msg.name, "b"], self.clock)

    def bidi(self, request: Any) -> Any:
        return stream([message.name for message in request], self.clock)


class Async(Sync):
    """The same for asynchronous streams of requests; the rest may be plain functions and iterables."""

    async def client(self, request: Any) -> Any:
        return answer([message.name async for message in request], self.clock)

    async def bidi(self, request: Any) -> Any:
        return stream([message.name async for message in request], self.clock)


class Waiting(Async):
    """The same again, by handlers that wait before whatever they do, so that they are watched."""

    async def unary(self, request: Any) -> Any:
        await asyncio.sleep(0)
        return super().unary(request)

    pure = unary

    async def client(self, request: Any) -> Any:
        await asyncio.sleep(0)
        return await super().client(request)

    async def server(self, request: Any) -> Any:
        await asyncio.sleep(0)
        return self._waiting(super().server(request))

    async def bidi(self, request: Any) -> Any:
        await asyncio.sleep(0)
        return self._waiting(await super().bidi(request))

    def _waiting(self, given: Any) -> Any:
        if isinstance(given, ServerStream):
            given.msgs = self._each(given.msgs)
            return given
        return self._each(given) if hasattr(given, "__iter__") else given

    async def _each(self, messages: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        for message in messages:
            await asyncio.sleep(0)
            yield message
            await asyncio.sleep(0)


def case(name: str, path: str, content_type: str, body: bytes = b"", /, **changes: Any) -> Any:
    return pytest.param(path, content_type, body, changes, id=name)


def names(*given: str) -> bytes:
    return asked(*map(ask, given))


COMPRESSED = {"content-encoding": "gzip"}
STREAM_COMPRESSED = {"connect-content-encoding": "gzip"}
ACCEPTING = {"accept-encoding": "gzip"}
STREAM_ACCEPTING = {"connect-accept-encoding": "gzip"}
TIMEOUT = {"connect-timeout-ms": "5000"}


def got(message: bytes | str, **parameters: str) -> dict[str, Any]:
    """What a GET differs in."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return {"http_method": "GET", "query": f"{query}&message={quote(message, safe='')}"}


def got_base64(message: bytes, **parameters: str) -> dict[str, Any]:
    return got(base64.urlsafe_b64encode(message).rstrip(b"="), **{"base64": "1", "encoding": "proto", **parameters})


ANY = ("raise", "fail", "give error", "surrogate", "surrogate detail", "debug", "time out", "none")
"""What a handler of every kind may do."""

ONE = (
    *ANY,
    *("error", "metadata", "bad metadata", "bad trailers", "error with bad metadata", "wrong", "wrong in a response"),
    *("stream", "big"),
)
"""What a handler that answers by one message may do."""

MANY = (
    *ANY,
    *("error", "metadata", "bad headers", "bad trailers", "list", "list with metadata", "wrong", "nothing", "unary"),
    *("raise in the stream", "fail in the stream", "late trailers", "late bad trailers", "late trailers and error"),
)
"""What a handler that answers by a stream may do."""

LATE = ("late", "late and time out")
STREAM_LATE = (*LATE, "late in the stream", "late at the end")

BOTH_WAYS = {"content-encoding": "gzip", "accept-encoding": "gzip"}
STREAM_BOTH_WAYS = {"connect-content-encoding": "gzip", "connect-accept-encoding": "gzip"}

UNARY_CASES = [
    case("plain", UNARY.path, PROTO, A),
    case("json", UNARY.path, JSON, b'{"name":"\xc3\xa4"}'),
    case("json with parameters", UNARY.path, "Application/JSON; charset=utf-8", b"{}"),
    case("nothing", UNARY.path, PROTO),
    case("no json", UNARY.path, JSON),
    case("json of something else", UNARY.path, JSON, b"[]"),
    case("json that is no UTF-8", UNARY.path, JSON, b'{"name":"\xff"}'),
    case("json with an unknown field", UNARY.path, JSON, b'{"name":"a","unknown":1}'),
    case("nonsense", UNARY.path, PROTO, b"\xff"),
    case("big", UNARY.path, PROTO, BIG),
    case("big and compressed", UNARY.path, PROTO, BIG, headers=ACCEPTING),
    case("small, and compression accepted", UNARY.path, PROTO, A, headers=ACCEPTING),
    case("everything compressed", UNARY.path, PROTO, A, headers=ACCEPTING, options={"compress_min_bytes": 0}),
    case("nothing compressed", UNARY.path, PROTO, b"", headers=ACCEPTING, options={"compress_min_bytes": 0}),
    case("no compression", UNARY.path, PROTO, BIG, headers=ACCEPTING, options={"compressions": []}),
    case("refused compression", UNARY.path, PROTO, BIG, headers={"accept-encoding": "gzip;q=0, identity"}),
    case("best compression", UNARY.path, PROTO, BIG, headers={"accept-encoding": "gzip;q=0.5, x-none, BR"}),
    case("any compression", UNARY.path, PROTO, BIG, headers={"accept-encoding": "zstd;q=0, *"}),
    case("compressed", UNARY.path, PROTO, GZIP.compress(BIG), headers=COMPRESSED),
    case("compressed both ways", UNARY.path, PROTO, GZIP.compress(BIG), headers=BOTH_WAYS),
    case("compressed in capitals", UNARY.path, PROTO, GZIP.compress(BIG), headers={"content-encoding": "GZIP"}),
    case("compressed with identity", UNARY.path, PROTO, A, headers={"content-encoding": "identity"}),
    case("compressed nothing", UNARY.path, PROTO, b"", headers=COMPRESSED),
    case("compressed nothing, json", UNARY.path, JSON, b"", headers=COMPRESSED),
    case("compressed nothing, brotli", UNARY.path, PROTO, b"", headers={"content-encoding": "br"}),
    case("compressed nothing, unknown", UNARY.path, PROTO, b"", headers={"content-encoding": "compress"}),
    case("not compressed", UNARY.path, PROTO, A, headers=COMPRESSED),
    case("compressed and cut off", UNARY.path, PROTO, GZIP.compress(BIG)[:-1], headers=COMPRESSED),
    case("compressed bomb", UNARY.path, PROTO, GZIP.compress(b"\0" * 10_000), headers=COMPRESSED),
    case("unknown compression", UNARY.path, PROTO, A, headers={"content-encoding": "compress"}),
    case("compression switched off", UNARY.path, PROTO, A, headers=COMPRESSED, options={"compressions": []}),
    case("empty compression", UNARY.path, PROTO, A, headers={"content-encoding": ""}),
    case("largest", UNARY.path, PROTO, BIG, options={"read_max_bytes": len(BIG)}),
    case("larger", UNARY.path, PROTO, BIG, options={"read_max_bytes": len(BIG) - 1}),
    case("no limit", UNARY.path, PROTO, A * 2000, options={"read_max_bytes": None}),
    case("too large", UNARY.path, PROTO, A * 2000),
    case("too large, and compressed", UNARY.path, PROTO, b"x" * 9000, headers=COMPRESSED),
    case("too large to send", UNARY.path, PROTO, BIG, options={"send_max_bytes": 3000}),
    case("error too large to send", UNARY.path, PROTO, ask("fail").SerializeToString(), options={"send_max_bytes": 1}),
    case("empty timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": ""}),
    case("timeout", UNARY.path, PROTO, A, headers=TIMEOUT),
    case("longest timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "9999999999"}),
    case("too long a timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "10000000000"}),
    case("bad timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "x"}),
    case("negative timeout", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "-1"}),
    case("no time", UNARY.path, PROTO, A, headers={"connect-timeout-ms": "0"}),
    case("no time, and nonsense", UNARY.path, PROTO, b"\xff", headers={"connect-timeout-ms": "0"}),
    case("two timeouts", UNARY.path, PROTO, A, headers=[*TIMEOUT.items(), *TIMEOUT.items()]),
    case("bad version", UNARY.path, PROTO, A, headers={"connect-protocol-version": "2"}),
    case("empty version", UNARY.path, PROTO, A, headers={"connect-protocol-version": ""}),
    case("two versions", UNARY.path, PROTO, A, headers=[("connect-protocol-version", "1")] * 2),
    case("required version", UNARY.path, PROTO, A, options={"require_connect_protocol_header": True}),
    case("bad version, accepting", UNARY.path, PROTO, A, headers={"connect-protocol-version": "2", **ACCEPTING}),
    *(case(name, UNARY.path, PROTO, ask(name).SerializeToString()) for name in ONE),
    *(
        case(f"{name}, accepting", UNARY.path, PROTO, ask(name).SerializeToString(), headers=ACCEPTING)
        for name in ("fail", "raise", "error", "metadata", "big")
    ),
    *(case(f"{name}, timeout", UNARY.path, PROTO, ask(name).SerializeToString(), headers=TIMEOUT) for name in ONE),
    *(case(f"{name}", UNARY.path, PROTO, ask(name).SerializeToString(), headers=TIMEOUT) for name in LATE),
    case(
        "late for the service", UNARY.path, PROTO, ask("late").SerializeToString(), options={"max_timeout_seconds": 9}
    ),
]

HTTP_CASES = [
    case("unknown path", "/unknown", PROTO, A),
    case("no path", "", PROTO, A),
    case("unknown method", UNARY.path + "x", PROTO, A),
    case("a slash more", UNARY.path + "/", PROTO, A),
    case("a slash more in front", "/" + UNARY.path, PROTO, A),
    case("another case", UNARY.path.upper(), PROTO, A),
    case("a query with a post", UNARY.path, PROTO, A, query="encoding=json&message=x"),
    case("unknown media type", UNARY.path, "text/plain", A),
    case("no media type", UNARY.path, "", A),
    case("half a media type", UNARY.path, "application/", A),
    case("media type of streams", UNARY.path, STREAM_PROTO, A),
    case("unary media type", SERVER.path, PROTO, A),
    case("codec that is not served", UNARY.path, PROTO, A, options={"codecs": [JsonCodec()]}),
    case("codec that is served", UNARY.path, JSON, b"{}", options={"codecs": [JsonCodec()]}),
    *(
        case(f"{http_method} {path}", path, PROTO, A, http_method=http_method)
        for http_method in ("PUT", "HEAD", "OPTIONS", "DELETE", "post", "CONNECT")
        for path in (UNARY.path, PURE.path, SERVER.path, "/unknown")
    ),
    *(
        case(f"length {length!r}, {path}", path, content_type, A, length=length, http_method=http_method)
        for length in ("x", "-1", "+1", "1_0", "1, 1")
        for path, content_type, http_method in (
            (UNARY.path, PROTO, "POST"),
            (UNARY.path, "text/plain", "POST"),
            (UNARY.path, PROTO, "PUT"),
            (PURE.path, "", "GET"),
            (BIDI.path, STREAM_PROTO, "POST"),
            ("/unknown", PROTO, "POST"),
        )
    ),
    case("prefix", "/v1" + UNARY.path, PROTO, A, options={"prefix": "/v1"}),
    case("prefix with a slash", "/v1" + UNARY.path, PROTO, A, options={"prefix": "/v1/"}),
    case("without the prefix", UNARY.path, PROTO, A, options={"prefix": "/v1"}),
    case("the prefix alone", "/v1", PROTO, A, options={"prefix": "/v1"}),
    case("mounted", UNARY.path, PROTO, A, mount="/api"),
    case("mounted deep", SERVER.path, STREAM_PROTO, names("a"), mount="/a/b"),
    case("mounted, unknown path", "/unknown", PROTO, A, mount="/api"),
    case("mounted with a prefix", "/v1" + UNARY.path, PROTO, A, mount="/api", options={"prefix": "/v1"}),
    case("mounted without its prefix", UNARY.path, PROTO, A, mount="/api", options={"prefix": "/v1"}),
]

GET_CASES = [
    case("get", UNARY.path, "", http_method="GET", query=GET),
    case("get a stream", SERVER.path, "", http_method="GET", query=GET),
    case("get pure", PURE.path, "", http_method="GET", query=GET),
    case("get with a media type", PURE.path, "text/plain", http_method="GET", query=GET),
    case("get with a body", PURE.path, PROTO, BIG, http_method="GET", query=GET),
    case("post pure", PURE.path, PROTO, A),
    case("post pure, big", PURE.path, PROTO, BIG, headers=ACCEPTING),
    case("get pure, compressed", PURE.path, "", http_method="GET", query=GET, headers={"accept-encoding": "br"}),
    case("get big", PURE.path, "", **got_base64(BIG)),
    case("get big, compressed", PURE.path, "", **got_base64(BIG), headers=ACCEPTING),
    case("get compressed", PURE.path, "", **got_base64(GZIP.compress(BIG), compression="gzip")),
    case("get compressed nothing", PURE.path, "", **got_base64(b"", compression="gzip")),
    case("get not compressed", PURE.path, "", **got_base64(A, compression="gzip")),
    case("get compressed bomb", PURE.path, "", **got_base64(GZIP.compress(b"\0" * 10_000), compression="gzip")),
    case("get unknown compression", PURE.path, "", **got_base64(A, compression="compress")),
    case("get too large", PURE.path, "", **got_base64(b"x" * 9000)),
    case("get too large to send", PURE.path, "", **got_base64(BIG), options={"send_max_bytes": 3000}),
    case("get json", PURE.path, "", **got('{"name":"\u00e4 +&"}', encoding="json")),
    case("get nothing", PURE.path, "", http_method="GET"),
    case("get an empty message", PURE.path, "", **got("", encoding="proto")),
    case("get a version", PURE.path, "", **got_base64(A, connect="v1")),
    case("get a bad version", PURE.path, "", **got_base64(A, connect="v2")),
    case("get a required version", PURE.path, "", **got_base64(A), options={"require_connect_protocol_header": True}),
    case("get unknown encoding", PURE.path, "", http_method="GET", query="encoding=x&message="),
    case("get no encoding", PURE.path, "", http_method="GET", query="message="),
    case("get no message", PURE.path, "", http_method="GET", query="encoding=proto"),
    case("get two messages", PURE.path, "", http_method="GET", query=GET + "&message=x"),
    case("get nonsense", PURE.path, "", http_method="GET", query="encoding=proto&message=%ff"),
    case("get no base64", PURE.path, "", http_method="GET", query="encoding=proto&base64=1&message=%21"),
    case("get non-ascii", PURE.path, "", http_method="GET", query="encoding=json&message={%22name%22:%22\xe4%22}"),
    case("get no time", PURE.path, "", **got_base64(A), headers={"connect-timeout-ms": "0"}),
    case("get bad timeout", PURE.path, "", **got_base64(A), headers={"connect-timeout-ms": "x"}),
    case("get without compressions", PURE.path, "", **got_base64(BIG), headers=ACCEPTING, options={"compressions": []}),
    *(case(f"get, {name}", PURE.path, "", **got_base64(ask(name).SerializeToString())) for name in ONE),
    *(
        case(f"get, {name}", PURE.path, "", **got_base64(ask(name).SerializeToString()), headers=TIMEOUT)
        for name in LATE
    ),
]


def stream_cases(method: Any) -> list[Any]:
    """What all methods with a stream on some side have in common."""
    name, path = method.name.lower(), method.path
    many = method.kind.client_streams
    compressed = frame(GZIP.compress(BIG), 1)

    def stream_case(title: str, body: bytes = b"", content_type: str = STREAM_PROTO, **changes: Any) -> Any:
        return case(f"{name}, {title}", path, content_type, body, **changes)

    def around(body: bytes) -> bytes:
        """Among others, where there may be others."""
        return names("a") + body + names("b") if many else body

    behaviours = MANY if method.kind.server_streams else ONE
    late = STREAM_LATE if method.kind.server_streams else LATE
    return [
        stream_case("one", names("a")),
        stream_case("two", names("a", "b")),
        stream_case("none"),
        stream_case("empty messages", names("", "") if many else names("")),
        stream_case("json", frame(b'{"name":"a"}'), STREAM_JSON),
        stream_case("bad json", frame(b"[]"), STREAM_JSON),
        stream_case("json with parameters", frame(b"{}"), "application/connect+json; charset=utf-8"),
        stream_case("cut off", around(names("a"))[:-1]),
        stream_case("cut off in the header", names("a") + b"\0\0"),
        stream_case("nonsense", around(frame(b"\xff"))),
        stream_case("end", around(frame(b"", 2))),
        stream_case("end at the end", names("a") + frame(b"{}", 2)),
        stream_case("unknown flags", around(frame(A, 4))),
        stream_case("too large", around(frame(b"x" * 9000))),
        stream_case("announces too much", names("a") + b"\0\xff\xff\xff\xff" if many else b"\0\xff\xff\xff\xff"),
        stream_case("largest", around(frame(BIG)), options={"read_max_bytes": len(BIG)}),
        stream_case("larger", around(frame(BIG)), options={"read_max_bytes": len(BIG) - 1}),
        stream_case("no limit", around(frame(b"\x10\x05" * 5000)), options={"read_max_bytes": None}),
        stream_case("compressed", around(compressed), headers=STREAM_COMPRESSED),
        stream_case("compressed both ways", around(compressed), headers=STREAM_BOTH_WAYS),
        stream_case("compressed nothing", around(frame(b"", 1)), headers=STREAM_COMPRESSED),
        stream_case("declared, not compressed", around(frame(BIG)), headers=STREAM_COMPRESSED),
        stream_case("not declared", around(compressed)),
        stream_case("declared as a body's", around(compressed), headers=COMPRESSED),
        stream_case("broken compression", around(frame(b"x", 1)), headers=STREAM_COMPRESSED),
        stream_case("bomb", around(frame(GZIP.compress(b"\0" * 10_000), 1)), headers=STREAM_COMPRESSED),
        stream_case("unknown compression", names("a"), headers={"connect-content-encoding": "x"}),
        stream_case("accepting", around(names("big")), headers=STREAM_ACCEPTING),
        stream_case("accepting a body's", names("big"), headers=ACCEPTING),
        stream_case("all compressed", names("a"), headers=STREAM_ACCEPTING, options={"compress_min_bytes": 0}),
        stream_case("no compressions", names("big"), headers=STREAM_ACCEPTING, options={"compressions": []}),
        stream_case("too large to send", around(names("big")), options={"send_max_bytes": 100}),
        stream_case("unary media type", names("a"), PROTO),
        stream_case("bad version", names("a"), headers={"connect-protocol-version": "2"}),
        stream_case("required version", names("a"), options={"require_connect_protocol_header": True}),
        stream_case("timeout", names("a"), headers=TIMEOUT),
        stream_case("bad timeout", names("a"), headers={"connect-timeout-ms": "1.5"}),
        stream_case("no time", names("a"), headers={"connect-timeout-ms": "0"}),
        *(stream_case(behaviour, around(names(behaviour))) for behaviour in behaviours),
        *(
            stream_case(f"{behaviour}, accepting", around(names(behaviour)), headers=STREAM_ACCEPTING)
            for behaviour in ("fail", "metadata", "error")
        ),
        *(stream_case(behaviour, around(names(behaviour)), headers=TIMEOUT) for behaviour in late),
        stream_case("late for the service", names("late"), options={"max_timeout_seconds": 9}),
    ]


def web_cases(method: Any) -> list[Any]:
    """gRPC-Web, in which all kinds of methods look alike."""
    name, path = method.name.lower(), method.path
    many = method.kind.client_streams
    compressed = frame(GZIP.compress(BIG), 1)
    declared, accepting = {"grpc-encoding": "gzip"}, {"grpc-accept-encoding": "gzip"}

    def web_case(title: str, body: bytes = b"", content_type: str = WEB_PROTO, **changes: Any) -> Any:
        return case(f"web {name}, {title}", path, content_type, body, **changes)

    def around(body: bytes) -> bytes:
        return names("a") + body + names("b") if many else body

    behaviours = MANY if method.kind.server_streams else ONE
    late = STREAM_LATE if method.kind.server_streams else LATE
    return [
        web_case("one", names("a")),
        web_case("two", names("a", "b")),
        web_case("none"),
        web_case("empty messages", names("", "") if many else names("")),
        web_case("json", frame(b'{"name":"a"}'), WEB_JSON),
        web_case("bad json", frame(b"[]"), WEB_JSON),
        web_case("no codec named", names("a"), WEB),
        web_case("parameters", names("a"), "Application/gRPC-Web+Proto; charset=utf-8"),
        web_case("text", base64.b64encode(names("a")), "application/grpc-web-text"),
        web_case("unknown codec", names("a"), "application/grpc-web+xml"),
        web_case("codec that is not served", names("a"), options={"codecs": [JsonCodec()]}),
        web_case("no codec named, not served", names("a"), WEB, options={"codecs": [JsonCodec()]}),
        *(web_case(http_method, names("a"), http_method=http_method) for http_method in ("GET", "PUT", "OPTIONS")),
        web_case("cut off", around(names("a"))[:-1]),
        web_case("cut off in the header", names("a") + b"\0\0"),
        web_case("nonsense", around(frame(b"\xff"))),
        web_case("trailers", names("a") + frame(b"grpc-status: 0\r\n", 0x80)),
        web_case("end of another protocol", names("a") + frame(b"{}", 2)),
        web_case("too large", around(frame(b"x" * 9000))),
        web_case("announces too much", b"\0\xff\xff\xff\xff"),
        web_case("largest", around(frame(BIG)), options={"read_max_bytes": len(BIG)}),
        web_case("larger", around(frame(BIG)), options={"read_max_bytes": len(BIG) - 1}),
        web_case("compressed", around(compressed), headers=declared),
        web_case("compressed both ways", around(compressed), headers={**declared, **accepting}),
        web_case("compressed nothing", around(frame(b"", 1)), headers=declared),
        web_case("declared, not compressed", around(frame(BIG)), headers=declared),
        web_case("not declared", around(compressed)),
        web_case("declared as a stream's", around(compressed), headers=STREAM_COMPRESSED),
        web_case("broken compression", around(frame(b"x", 1)), headers=declared),
        web_case("bomb", around(frame(GZIP.compress(b"\0" * 10_000), 1)), headers=declared),
        web_case("unknown compression", names("a"), headers={"grpc-encoding": "x"}),
        web_case("accepting", around(names("big")), headers=accepting),
        web_case("accepting a body's", names("big"), headers=ACCEPTING),
        web_case("accepting in several headers", names("big"), headers=[*accepting.items(), *accepting.items()]),
        web_case("all compressed", names("a"), headers=accepting, options={"compress_min_bytes": 0}),
        web_case("no compressions", names("big"), headers=accepting, options={"compressions": []}),
        web_case("too large to send", around(names("big")), options={"send_max_bytes": 100}),
        web_case("required version", names("a"), options={"require_connect_protocol_header": True}),
        web_case("mounted", names("a"), mount="/api"),
        *(
            web_case(f"timeout {timeout!r}", names("a"), headers={"grpc-timeout": timeout})
            for timeout in ("5S", "5000m", "99999999H", "0n", "1.5S", "-1S", "", "123456789n", "5s")
        ),
        *(web_case(behaviour, around(names(behaviour))) for behaviour in behaviours),
        *(
            web_case(f"{behaviour}, accepting", around(names(behaviour)), headers=accepting)
            for behaviour in ("fail", "metadata", "error")
        ),
        *(web_case(behaviour, around(names(behaviour)), headers={"grpc-timeout": "5S"}) for behaviour in late),
        web_case("late for the service", names("late"), options={"max_timeout_seconds": 9}),
    ]


CASES = [
    *UNARY_CASES,
    *HTTP_CASES,
    *GET_CASES,
    *stream_cases(SERVER),
    *stream_cases(CLIENT),
    *stream_cases(BIDI),
    *(parameters for method in METHODS for parameters in web_cases(method)),
]


class Dripping(io.BytesIO):
    """``wsgi.input`` that gives a byte at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1, size or 0))


def pairs_of(headers: Mapping[str, str] | list[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(headers) if isinstance(headers, list) else list(headers.items())


def joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    """Headers as WSGI servers join them."""
    every: CIMultiDict[str] = CIMultiDict(headers)
    return {name: ",".join(every.getall(name)) for name in every}


Ask = tuple[str, str, bytes, "Mapping[str, Any]"]


def through_wsgi(app: Any, asked_: Ask, *, drip: bool = False) -> Answer:
    path, content_type, body, changes = asked_
    made = environ(
        path,
        body,
        content_type,
        joined(pairs_of(changes.get("headers", {}))),
        REQUEST_METHOD=changes.get("http_method", "POST"),
        QUERY_STRING=changes.get("query", ""),
        SCRIPT_NAME=changes.get("mount", ""),
    )
    made["CONTENT_LENGTH"] = changes.get("length", made["CONTENT_LENGTH"])
    if drip:
        made["wsgi.input"] = Dripping(body)
    return call_wsgi(app, made)


def through_asgi(app: Any, asked_: Ask, *, drip: bool = False) -> Answer:
    path, content_type, body, changes = asked_
    length, mount = changes.get("length"), changes.get("mount", "")
    made = scope(
        mount + path,
        content_type,
        [*pairs_of(changes.get("headers", {})), *([] if length is None else [("content-length", length)])],
        method=changes.get("http_method", "POST"),
        query_string=changes.get("query", "").encode("latin-1"),
        root_path=mount,
    )
    return call_asgi(app, made, body, int(drip))


def options_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {"read_max_bytes": 8000, **changes.get("options", {})}


def all_of(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """What goes over the wire, headers in their order."""
    return answer.status, list(answer.headers.items()), answer.body


def noted(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What was logged since this was last asked for, but for what making an app of these services says."""
    records = [(record.name, record.levelno, record.getMessage(), failure_in(record)) for record in caplog.records]
    caplog.clear()
    return [record for record in records if "is not async" not in record[2]]


def failure_in(record: Any) -> str:
    return "" if not record.exc_info else repr(record.exc_info[1])


@pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])
@pytest.mark.parametrize(("path", "content_type", "body", "changes"), CASES)
def test_the_same_bytes(
    path: str,
    content_type: str,
    body: bytes,
    changes: Mapping[str, Any],
    drip: bool,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    asked_, options = (path, content_type, body, changes), options_of(changes)
    expected = through_wsgi(wsgi_service(SERVICE, Sync(clock), **options), asked_, drip=drip)
    logged = noted(caplog)
    assert b"secret" not in expected.body
    for implementation in (Async(clock), Waiting(clock)):
        found = through_asgi(asgi_service(SERVICE, implementation, **options), asked_, drip=drip)
        assert all_of(found) == all_of(expected)
        assert noted(caplog) == logged


def test_the_table_is_about_something(clock: Clock) -> None:
    """The cases differ in what they bring about, as far as their names do."""
    answers = set()
    for parameters in CASES:
        path, content_type, body, changes = parameters.values
        asked_: Any = (path, content_type, body, changes)
        found = through_wsgi(wsgi_service(SERVICE, Sync(clock), **options_of(changes)), asked_)
        answers.add((path, found.status, found.headers.get("content-type"), found.body))
    assert len(answers) > len(CASES) / 4
    statuses = {status for _, status, _, _ in answers}
    assert statuses >= {200, 400, 404, 405, 415, 429, 500, 501, 504}
    texts = b"\n".join(body for *_, body in answers)
    for number in (0, 2, 3, 4, 5, 8, 10, 12, 13):
        assert b"grpc-status: %d\r\n" % number in texts
    for code in (
        *("unknown", "invalid_argument", "deadline_exceeded", "not_found", "resource_exhausted", "unimplemented"),
        *("internal", "aborted"),
    ):
        assert code.encode() in texts, code


# What handlers see


SEEN = [
    ("X-A", "1"),
    ("x-b-bin", "AAE"),
    ("x-b-bin", "AAI"),
    ("x-c-bin", "AAM, AAQ"),
    ("x-latin", "\xe4"),
    ("x-empty", ""),
]


def seen_of(request: Any) -> dict[str, Any]:
    headers = sorted((name.lower(), value) for name, value in request.headers.items())
    return {
        "headers": [pair for pair in headers if pair[0] != "content-length"],
        "looked up": request.headers.get("X-a"),
        "timeout": request.timeout.timeout_ms,
        "expires": request.timeout.expires_at,
        "peer": (request.peer.address, request.peer.protocol),
        "method": request.method,
        "trailers": list(request.trailers.items()) if hasattr(request, "trailers") else None,
        "message": getattr(request, "msg", None),
        "text": repr(request).replace("Async", ""),
    }


@pytest.mark.parametrize("options", [{}, {"max_timeout_seconds": 3}, {"max_timeout_seconds": 20}])
@pytest.mark.parametrize("timeout", [[], [("connect-timeout-ms", "5000")]], ids=["for ever", "timeout"])
@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
@pytest.mark.parametrize("method", [UNARY, PURE, SERVER, CLIENT, BIDI], ids=lambda method: method.name)
def test_handlers_see_the_same(method: Any, protocol: str, timeout: list[tuple[str, str]], options: Any) -> None:
    seen: list[Any] = []

    def note(request: Any) -> Any:
        seen.append(seen_of(request))
        return ConnectError(ConnectErrorCode.ABORTED)

    implementation = types.SimpleNamespace(**{method.python_name: note})
    content_type, body = (STREAM_PROTO, names("a")) if method in (SERVER, CLIENT, BIDI) else (PROTO, A)
    if protocol == "grpc-web":
        content_type, body = WEB_PROTO, names("a")
        timeout = [("grpc-timeout", "5S")] if timeout else []
    headers = [*SEEN, *timeout]
    made = environ(method.path, body, content_type, joined(headers))
    made["HTTP_X_LATIN"] = "\xe4"
    call_wsgi(wsgi_service(SERVICE, implementation, **options), made)
    pairs = [(name, value) for name, value in headers if name != "x-latin"]
    scoped = scope(method.path, content_type, pairs)
    scoped["headers"].append((b"x-latin", b"\xe4"))  # HTTP's bytes, which neither side may take for UTF-8
    call_asgi(asgi_service(SERVICE, implementation, **options), scoped, body)
    one, other = seen
    assert one == other
    assert one["looked up"] == "1"
    assert one["peer"][1] == protocol
    limits = [5000] if timeout else []
    limits += [seconds * 1000 for seconds in options.values()]
    assert one["timeout"] == min(limits, default=None)
    assert [value for name, value in one["headers"] if name.endswith("-bin")] == ["AAE", "AAI", "AAM", "AAQ"]


def test_several_services(clock: Clock) -> None:
    kinds: list[Any] = [(wsgi_app, wsgi_service, Sync), (asgi_app, asgi_service, Async)]
    apps = [
        make_app(make(SERVICE, implementation(clock)), make(SERVICE, implementation(clock), prefix="/v2"))
        for make_app, make, implementation in kinds
    ]
    for path, status in ((UNARY.path, 200), ("/v2" + UNARY.path, 200), ("/v3" + UNARY.path, 404)):
        asked_: Ask = (path, PROTO, A, {})
        one, other = through_wsgi(apps[0], asked_), through_asgi(apps[1], asked_)
        assert all_of(one) == all_of(other)
        assert one.status == status


@pytest.mark.parametrize("method", [UNARY, PURE, SERVER, CLIENT, BIDI], ids=lambda method: method.name)
def test_methods_that_are_missing(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    unary = method in (UNARY, PURE)
    asked_: Ask = (method.path, PROTO if unary else STREAM_PROTO, A if unary else names("a"), {})
    one = through_wsgi(wsgi_service(SERVICE, object()), asked_)
    logged = noted(caplog)
    other = through_asgi(asgi_service(SERVICE, object()), asked_)
    assert all_of(one) == all_of(other)
    assert b"unimplemented" in one.body
    assert logged == noted(caplog)
    assert len(logged) == 5


# Interceptors and hooks


class Noting(Hooks):
    """Notes what it is told, and changes what may be changed."""

    def __init__(self, log: list[Any], name: str) -> None:
        self._log = log
        self._name = name

    def on_start(self, context: Any) -> None:
        self._log.append((self._name, "start", context.method, context.timeout.timeout_ms, context.is_client))
        context.values["order"] = [*context.values.get("order", ()), self._name]

    def on_request_message(self, context: Any, message: Any) -> None:
        self._log.append((self._name, ">", message.name, context.values["order"]))

    def on_response_headers(self, context: Any, headers: Any) -> None:
        self._log.append((self._name, "headers", sorted(headers.items())))
        headers.add(f"x-from-{self._name}", "h")

    def on_response_message(self, context: Any, message: Any) -> None:
        self._log.append((self._name, "<", getattr(message, "file_name", repr(message))))

    def on_end(self, context: Any, error: BaseException | None, trailers: Any) -> None:
        self._log.append((self._name, "end", repr(error), sorted(trailers.items())))
        trailers.add(f"x-from-{self._name}", "t")


class Failing(Hooks):
    """Fails where it is told to."""

    def __init__(self, where: str, error: Exception) -> None:
        def fail(*args: object) -> None:
            raise error

        setattr(self, where, fail)


def passing(asynchronous: bool, log: list[Any]) -> Any:
    """An interceptor that only looks."""

    def sync(request: Request, proceed: Any) -> Response:
        log.append(("before", request.message is None))
        try:
            response: Response = proceed(request)
        except BaseException as error:
            log.append(("failed", repr(error)))
            raise
        log.append(("after", response.message is None))
        return response

    async def waiting(request: Request, proceed: Any) -> Response:
        await asyncio.sleep(0)
        log.append(("before", request.message is None))
        try:
            response: Response = await proceed(request)
        except BaseException as error:
            log.append(("failed", repr(error)))
            raise
        await asyncio.sleep(0)
        log.append(("after", response.message is None))
        return response

    return waiting if asynchronous else sync


def coloured(asynchronous: bool, before: Callable[[Request], Response | None]) -> Any:
    """An interceptor that may answer by itself, or raise."""

    def sync(request: Request, proceed: Any) -> Any:
        response = before(request)
        return proceed(request) if response is None else response

    async def waiting(request: Request, proceed: Any) -> Any:
        await asyncio.sleep(0)
        response = before(request)
        return await proceed(request) if response is None else response

    return waiting if asynchronous else sync


def refuse(request: Request) -> None:
    raise ConnectError(ConnectErrorCode.UNAUTHENTICATED, "who are you?", [Duration(seconds=1)])


def break_down(request: Request) -> None:
    raise ZeroDivisionError("secret")


def answer_wrongly(request: Request) -> Response:
    return Response(ask("wrong"))


def answer_nothing(request: Request) -> Response:
    return Response()


SETS: dict[str, Callable[[bool, list[Any]], list[Any]]] = {
    "one": lambda asynchronous, log: [Noting(log, "a")],
    "two": lambda asynchronous, log: [Noting(log, "a"), Noting(log, "b")],
    "mixed": lambda asynchronous, log: [Noting(log, "a"), passing(asynchronous, log), Noting(log, "b")],
    "interceptor": lambda asynchronous, log: [passing(asynchronous, log)],
    "refusing": lambda asynchronous, log: [Noting(log, "a"), coloured(asynchronous, refuse), Noting(log, "b")],
    "breaking": lambda asynchronous, log: [Noting(log, "a"), coloured(asynchronous, break_down)],
    "wrong": lambda asynchronous, log: [Noting(log, "a"), coloured(asynchronous, answer_wrongly)],
    "nothing": lambda asynchronous, log: [Noting(log, "a"), coloured(asynchronous, answer_nothing)],
    **{
        f"failing {where}": lambda asynchronous, log, where=where: [  # type: ignore[misc]
            Noting(log, "a"),
            Failing(where, ZeroDivisionError("secret")),
            Noting(log, "b"),
        ]
        for where in ("on_start", "on_request_message", "on_response_headers", "on_response_message", "on_end")
    },
    **{
        f"refusing {where}": lambda asynchronous, log, where=where: [  # type: ignore[misc]
            Noting(log, "a"),
            Failing(where, ConnectError(ConnectErrorCode.DATA_LOSS, "m")),
        ]
        for where in ("on_start", "on_request_message", "on_response_headers", "on_response_message", "on_end")
    },
}
"""Interceptors of both colours that do the same."""

HOOKED = [
    *(("a", method) for method in (UNARY, PURE, SERVER, CLIENT, BIDI)),
    *((name, method) for name in ONE for method in (UNARY, CLIENT)),
    *((name, method) for name in MANY for method in (SERVER, BIDI)),
]


class Lazy(Sync):
    """Answers each message as it comes."""

    def bidi(self, request: Any) -> Any:
        return (reply(message.name) for message in request)


class LazyAsync(Async):
    async def bidi(self, request: Any) -> Any:
        async for message in request:
            yield reply(message.name)


HOOKED_BY = [
    pytest.param(which, name, method, id=f"{which}: {method.name.lower()}, {name}")
    for which in SETS
    for name, method in HOOKED
    if which == "mixed" or name in ("a", "fail", "error", "metadata", "fail in the stream")
]
"""All behaviours within what notes most, the main ones within the rest."""


@pytest.mark.parametrize(("which", "behaviour", "method"), HOOKED_BY)
def test_interceptors_are_told_the_same(
    which: str, behaviour: str, method: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The same order, the same errors, and what they make of it is the same on the wire."""
    if method in (UNARY, PURE):
        content_type, body = PROTO, ask(behaviour).SerializeToString()
    else:
        content_type = STREAM_PROTO
        body = names("x", behaviour) if method.kind.client_streams else names(behaviour)
    asked_: Ask = (method.path, content_type, body, {"headers": TIMEOUT})
    logs: list[list[Any]] = []

    def options(asynchronous: bool) -> Any:
        logs.append([])
        return {"interceptors": SETS[which](asynchronous, logs[-1])}

    expected = through_wsgi(wsgi_service(SERVICE, Sync(clock), **options(False)), asked_)
    logged = noted(caplog)
    assert b"secret" not in expected.body
    for implementation in (Async(clock), Waiting(clock)):
        found = through_asgi(asgi_service(SERVICE, implementation, **options(True)), asked_)
        assert all_of(found) == all_of(expected)
        assert noted(caplog) == logged
    assert logs[1] == logs[0]
    assert logs[2] == logs[0]
    told = [entry[1] for entry in logs[0] if entry[0] == "a"]
    if which != "interceptor":
        assert told.count("end") == 1, "whatever happens"
        assert told[-1] == "end"


@pytest.mark.parametrize("which", ["mixed", "refusing", "refusing on_response_headers", "refusing on_end"])
@pytest.mark.parametrize(
    ("behaviour", "method"), HOOKED, ids=[f"{method.name.lower()}, {name}" for name, method in HOOKED]
)
def test_interceptors_are_told_the_same_in_grpc_web(which: str, behaviour: str, method: Any, clock: Clock) -> None:
    body = names("x", behaviour) if method.kind.client_streams else names(behaviour)
    asked_: Ask = (method.path, WEB_PROTO, body, {"headers": {"grpc-timeout": "5S"}})
    logs: list[list[Any]] = [[], [], []]
    expected = through_wsgi(wsgi_service(SERVICE, Sync(clock), interceptors=SETS[which](False, logs[0])), asked_)
    assert (expected.status, expected.media_type) == (200, WEB_PROTO)
    for implementation, log in ((Async(clock), logs[1]), (Waiting(clock), logs[2])):
        app = asgi_service(SERVICE, implementation, interceptors=SETS[which](True, log))
        assert all_of(through_asgi(app, asked_)) == all_of(expected)
        assert log == logs[0]
    assert [entry[1] for entry in logs[0] if entry[0] == "a"].count("end") == 1
    # The protocol makes no difference to them.
    connect: Ask = (method.path, STREAM_PROTO, body, {"headers": TIMEOUT})
    if method in (UNARY, PURE):
        connect = (method.path, PROTO, ask(behaviour).SerializeToString(), {"headers": TIMEOUT})
    log = []
    through_wsgi(wsgi_service(SERVICE, Sync(clock), interceptors=SETS[which](False, log)), connect)
    assert log == logs[0]


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("drip", [False, True])
def test_messages_that_are_told_as_they_come(drip: bool, cut: int, clock: Clock) -> None:
    body = names("x", "y", "z")
    asked_: Ask = (BIDI.path, STREAM_PROTO, body[: len(body) - cut], {})
    logs: list[list[Any]] = [[], []]
    one = through_wsgi(wsgi_service(SERVICE, Lazy(clock), interceptors=[Noting(logs[0], "a")]), asked_, drip=drip)
    other = through_asgi(
        asgi_service(SERVICE, LazyAsync(clock), interceptors=[Noting(logs[1], "a")]), asked_, drip=drip
    )
    assert all_of(one) == all_of(other)
    assert logs[0] == logs[1]
    told = [entry[1:3] for entry in logs[0] if entry[1] in "<>"]
    assert told == [(mark, name) for name in ("xy" if cut else "xyz") for mark in "><"]
    assert ("invalid_argument" in one.stream()[1].get("error", {}).get("code", "")) is bool(cut)


# Sync handlers in threads


@pytest.mark.parametrize(("path", "content_type", "body", "changes"), CASES)
def test_the_same_bytes_from_threads(
    path: str,
    content_type: str,
    body: bytes,
    changes: Mapping[str, Any],
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    """A synchronous implementation in threads answers as it does in the server's own."""
    asked_, options = (path, content_type, body, changes), options_of(changes)
    expected = through_wsgi(wsgi_service(SERVICE, Sync(clock), **options), asked_)
    logged = noted(caplog)
    for found in (
        through_wsgi(wsgi_service(SERVICE, InThreads(Sync(clock)), **options), asked_),
        through_asgi(asgi_service(SERVICE, InThreads(Sync(clock)), **options), asked_),
    ):
        late = any(said in expected.body for said in (b"deadline_exceeded", b"grpc-status: 4\r\n"))
        if "content-length" not in expected.headers and late:
            # It is seen while the thread is waited for, before the answer has begun: then its length is known.
            found.headers.pop("content-length", None)
        assert all_of(found) == all_of(expected)
    assert noted(caplog) == logged * 2


@pytest.mark.parametrize(
    ("behaviour", "method"), HOOKED, ids=[f"{method.name.lower()}, {name}" for name, method in HOOKED]
)
def test_interceptors_are_told_the_same_around_threads(
    behaviour: str, method: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    if method in (UNARY, PURE):
        content_type, body = PROTO, ask(behaviour).SerializeToString()
    else:
        content_type = STREAM_PROTO
        body = names("x", behaviour) if method.kind.client_streams else names(behaviour)
    asked_: Ask = (method.path, content_type, body, {})
    logs: list[list[Any]] = [[], [], []]
    answers = [
        through_wsgi(wsgi_service(SERVICE, Sync(clock), interceptors=SETS["mixed"](False, logs[0])), asked_),
        through_wsgi(wsgi_service(SERVICE, InThreads(Sync(clock)), interceptors=SETS["mixed"](False, logs[1])), asked_),
        through_asgi(asgi_service(SERVICE, InThreads(Sync(clock)), interceptors=SETS["mixed"](True, logs[2])), asked_),
    ]
    assert all_of(answers[0]) == all_of(answers[1]) == all_of(answers[2])
    assert logs[0] == logs[1]
    assert logs[0] == logs[2]
