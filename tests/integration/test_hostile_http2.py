"""Malformed, hostile and borderline requests over HTTP/2, frame by frame, each with the answer it must get.

What a server answers by itself, before the application is reached, is not ours to judge: there it only has to answer,
reset the stream or close the connection. In all cases it goes on serving afterwards, on the same connection too unless
that was broken on purpose, and no answer tells anything about the inside.
"""

# ruff: noqa: E501  tables read best with a row a line
from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import re
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import brotli
import pytest
from backports import zstd

from helpers import settles
from integration_pb2 import (
    ChatRequest,
    CountRequest,
    CountResponse,
    EchoRequest,
    EchoResponse,
    NotesRequest,
    NotesResponse,
    SumRequest,
    SumResponse,
)
from rawhttp import Malformed, decoded, envelope
from rawhttp2 import HTTP2_KINDS, Frame, H2Client, H2Stream, frame, header_block, run_http2_server
from service import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from servers import Server

    Expectation = Callable[[H2Stream], None]

pytestmark = pytest.mark.usefixtures("limit")

PREFIX = "/integration.v1.ProbeService"
ECHO, LOOK, COUNT, SUM, CHAT, MISSING = (
    f"{PREFIX}/{name}" for name in ("Echo", "Look", "Count", "Sum", "Chat", "Missing")
)

GRPC = "application/grpc"
LIMIT = 4 * 1024 * 1024
"""The largest message that the service takes."""

NUMBERS = {
    2: "unknown",
    3: "invalid_argument",
    4: "deadline_exceeded",
    5: "not_found",
    8: "resource_exhausted",
    10: "aborted",
    12: "unimplemented",
    13: "internal",
    15: "data_loss",
}
"""The codes that come up."""

LEAKS = re.compile(
    r"Traceback|File \"|\w{3}\.py\b|site-packages|/usr/|/home/|\b[A-Z]\w*(Error|Exception|Warning)\b|" + SECRET
)
"""What no answer may hold."""


@pytest.fixture(params=HTTP2_KINDS, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_http2_server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


# Requests.


def head(
    path: str = ECHO,
    *more: tuple[str, str],
    type: str | None = GRPC,
    te: str | None = "trailers",
    method: str = "POST",
) -> list[tuple[str, str]]:
    """The headers of a request."""
    headers = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
    if type is not None:
        headers.append(("content-type", type))
    if te is not None:
        headers.append(("te", te))
    return [*headers, *more]


HI = envelope(b"\n\2hi")


def echo(**fields: object) -> bytes:
    return envelope(EchoRequest(**fields).SerializeToString())  # type: ignore[arg-type]


def good(client: H2Client, text: str = "still here") -> None:
    """An ordinary call goes well."""
    stream = client.call(head(), echo(text=text))
    assert stream.status == 200, stream
    assert stream.trailer("grpc-status") == "0", stream
    ((flags, payload),) = stream.messages()
    assert flags == 0
    assert EchoResponse.FromString(payload).request.text == text


def notes(server: Server) -> list[str]:
    """What handlers have noted since this was last asked."""
    with H2Client(server.port) as client:
        stream = client.call(head(f"{PREFIX}/Notes"), envelope(NotesRequest().SerializeToString()))
        ((_, payload),) = stream.messages()
    return list(NotesResponse.FromString(payload).notes)


def noted(server: Server, *expected: str, within: float = 10) -> bool:
    """Whether handlers have noted all this by then."""
    found: list[str] = []

    def all_there() -> bool:
        found.extend(notes(server))
        return all(note in found for note in expected)

    return settles(all_there, within)


# Expectations.


def ok(messages: int = 1) -> Expectation:
    """The call went well and gave so many messages."""

    def expectation(stream: H2Stream) -> None:
        assert stream.status == 200, stream
        assert stream.trailer("grpc-status") == "0", stream
        assert len(stream.messages()) == messages
        assert stream.ended
        assert (stream.get("content-type") or "").startswith(GRPC)

    return expectation


def failed(*codes: str, messages: int = 0, message: str = "") -> Expectation:
    """The call failed with one of these codes, said in trailers, after so many messages."""

    def expectation(stream: H2Stream) -> None:
        assert stream.status == 200, stream
        assert (stream.get("content-type") or "").startswith(GRPC), stream
        assert NUMBERS.get(int(stream.trailer("grpc-status") or 0)) in codes, stream
        text = stream.trailer("grpc-message") or ""
        assert all(" " <= char <= "~" for char in text)
        assert message in unquote(text)
        assert len(stream.messages()) == messages
        assert stream.ended

    return expectation


def plain(status: int, told: str | None = None, **headers: str) -> Expectation:
    """Not an RPC: an answer of HTTP's. It may be told in gRPC's terms besides."""

    def expectation(stream: H2Stream) -> None:
        assert stream.status == status, stream
        assert stream.ended
        assert stream.trailer("grpc-status") == told
        for name, value in headers.items():
            assert value in (stream.get(name.replace("_", "-")) or ""), stream

    return expectation


nowhere = plain(404, "12")


def refused(stream: H2Stream) -> None:
    """The server itself answers that this is no HTTP/2, or just resets. The call is never made."""
    assert stream.status >= 400 or not stream.headers, stream
    assert not stream.messages() or stream.status >= 400


def anything(stream: H2Stream) -> None:
    """The server itself decides what this is."""


def either(*expectations: Expectation) -> Expectation:
    def expectation(stream: H2Stream) -> None:
        complaints = []
        for one in expectations:
            try:
                return one(stream)
            except (AssertionError, ValueError, Malformed) as complaint:
                complaints.append(complaint)
        raise AssertionError(complaints)

    return expectation


class Case(NamedTuple):
    """One request, or something like it, and what must become of it."""

    name: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    expected: Expectation
    end: bool = True
    """Whether the request ends. If not, the answer must come all the same."""
    ours: bool = True
    """Whether the application is reached, so that the connection must be good for more."""
    logs: bool = False
    """The log has what the answer hides."""
    within: float = 10.0
    """How long the answer may take, in seconds."""
    lax: tuple[str, ...] = ()
    """The servers that get this wrong by themselves: there anything goes, but for leaks."""

    def __repr__(self) -> str:  # pytest shows it, and a body may be long
        return f"<{self.name}>"


UVICORN, GUNICORN, HYPERCORN = HTTP2_KINDS


# hypercorn looks up the stream of each DATA frame without asking whether it is still there: where an answer has overtaken
# its request, the rest of that request ends the whole connection, by a KeyError. Which comes first is a matter of luck.
EARLY = (HYPERCORN,)

# uvicorn and hypercorn send no trailers to who has not said that he takes them, which gRPC's clients have to: without
# `te` the stream ends with the body, though the app has sent them.
NO_TE = (UVICORN, HYPERCORN)


def header_cases() -> Iterator[Case]:
    yield Case("as it should be", head(), HI, ok())
    yield Case("no te", head(te=None), HI, ok(), lax=NO_TE)
    yield Case("te twice", head(ECHO, ("te", "trailers")), HI, either(ok(), refused), ours=False)
    yield Case("te of something else", head(te="gzip"), HI, either(ok(), refused), ours=False, lax=NO_TE)
    yield Case("te empty", head(te=""), HI, either(ok(), refused), ours=False, lax=NO_TE)

    # Content-Type: what is not served is HTTP's 415.
    for value in (GRPC, f"{GRPC}+proto", f"{GRPC}; charset=utf-8", f"{GRPC}+proto;v=1", "Application/GRPC",
                  f"{GRPC}+PROTO", f"{GRPC};", f"{GRPC} ; {'x' * 2000}"):  # fmt: skip
        yield Case(f"content-type {value[:40]!r}", head(type=value), HI, ok())
    yield Case("content-type JSON", head(type=f"{GRPC}+json"), envelope(b'{"text":"hi"}'), ok())
    for value in ("application/grpcx", f"{GRPC}+", f"{GRPC}+thrift", f"{GRPC}/proto", "application/grp", "grpc",
                  "application/grpc-web-text", "application/grpc-web-text+proto", "text/plain", "", "/", ";",
                  f"{GRPC},{GRPC}", "x" * 5000):  # fmt: skip
        yield Case(f"content-type {value[:40]!r}", head(type=value), HI, plain(415, accept_post=GRPC))
    yield Case("no content-type", head(type=None), HI, plain(415, accept_post=GRPC))
    yield Case("content-type twice", head(ECHO, ("content-type", GRPC)), HI, either(ok(), plain(415), refused))
    yield Case("content-type of Connect's stream", head(CHAT, type="application/connect+proto"), HI, connect_stream)
    yield Case("content-type of gRPC-Web", head(type="application/grpc-web"), HI, grpc_web)

    # grpc-timeout: at most eight digits and a unit.
    for value in ("", "abc", "1", "S", "1s", "-1S", "+1S", "123456789S", "1.5S", "1 S", "1S1S", "1Z", "1SS", "0x1S",
                  "1e1S", "\xb2S", "1_0S", "S1", "1S, 1S", ",", "9" * 3000 + "S", "1\tS", "NaNS"):  # fmt: skip
        expected = failed("invalid_argument", message="grpc-timeout")
        odd = any(not " " <= char <= "~" for char in value)
        if odd:
            expected = either(expected, refused)
        yield Case(f"timeout {value[:24]!r}", head(ECHO, ("grpc-timeout", value)), HI, expected, ours=not odd)
        if value in ("abc", ""):
            for path in (COUNT, SUM, CHAT):
                yield Case(f"timeout {value!r} of {path[-5:]}", head(path, ("grpc-timeout", value)), envelope(b""),
                           failed("invalid_argument"))  # fmt: skip
    for value in ("99999999H", "1H", "30S", "30000m", "30000000u", "99999999n", "00000030S"):
        yield Case(f"timeout {value!r}", head(ECHO, ("grpc-timeout", value)), HI,
                   either(ok(), failed("deadline_exceeded")) if value.endswith("n") else ok())  # fmt: skip
    for value in ("0S", "0n", "00000000H"):
        for path in (ECHO, COUNT, SUM, CHAT):
            yield Case(f"timeout {value!r} of {path[-5:]}", head(path, ("grpc-timeout", value)), envelope(b""),
                       failed("deadline_exceeded"))  # fmt: skip
    yield Case(
        "timeout twice", head(ECHO, ("grpc-timeout", "1S"), ("grpc-timeout", "1H")), HI, failed("invalid_argument")
    )
    slow = echo(delay_ms=60_000)
    yield Case("timeout and a slow handler", head(ECHO, ("grpc-timeout", "50m")), slow, failed("deadline_exceeded"))
    yield Case(
        "timeout and a request that does not come",
        head(ECHO, ("grpc-timeout", "50m")),
        b"",
        failed("deadline_exceeded"),
        end=False,
    )
    yield Case("timeout and a message that does not come", head(SUM, ("grpc-timeout", "50m")), envelope(b"\x08\1"),
               failed("deadline_exceeded"), end=False)  # fmt: skip
    stalls = envelope(CountRequest(up_to=2, delay_ms=60_000).SerializeToString())
    # On a busy machine it may have passed before there is a message.
    late = either(failed("deadline_exceeded", messages=1), failed("deadline_exceeded"))
    yield Case("timeout in a stream", head(COUNT, ("grpc-timeout", "100m")), stalls, late)

    # Metadata.
    yield Case("metadata that is no base64", head(ECHO, ("x-bin", "!!!")), HI, ok())
    yield Case(
        "metadata of every printable character", head(ECHO, ("x-all", "".join(map(chr, range(33, 127))))), HI, ok()
    )
    yield Case("metadata in bytes", head(ECHO, ("x-odd", "\xe4\xff")), HI, either(ok(), refused), ours=False)
    yield Case("metadata with a line break", head(ECHO, ("x-odd", "a\r\nb: c")), HI, either(ok(), refused), ours=False)
    yield Case("metadata with a NUL", head(ECHO, ("x-odd", "a\0b")), HI, either(ok(), refused), ours=False)
    yield Case("a status in the request", head(ECHO, ("grpc-status", "13"), ("grpc-message", "x")), HI, ok())
    yield Case("a thousand headers", head(ECHO, *[(f"x-{number}", "y") for number in range(1000)]), HI,
               either(ok(), refused), ours=False)  # fmt: skip
    yield Case("a header of 7 kB", head(ECHO, ("x-long", "y" * 7000)), HI, ok())
    yield Case("a name in capitals", head(ECHO, ("X-Upper", "y")), HI, either(ok(), refused), ours=False)
    yield Case("connection", head(ECHO, ("connection", "keep-alive")), HI, either(ok(), refused), ours=False)
    yield Case("transfer-encoding", head(ECHO, ("transfer-encoding", "chunked")), HI, either(ok(), refused), ours=False)
    yield Case("an unknown pseudo-header", [(":nothing", "x"), *head()], HI, either(ok(), refused), ours=False)
    yield Case("a pseudo-header that comes late", [*head(), (":path", ECHO)], HI, either(ok(), refused), ours=False)
    for missing in (":method", ":scheme", ":path"):
        yield Case(f"no {missing}", [pair for pair in head() if pair[0] != missing], HI,
                   either(ok(), nowhere, plain(404), plain(405), refused), ours=False)  # fmt: skip
    yield Case(
        "no authority", [pair for pair in head() if pair[0] != ":authority"], HI, either(ok(), refused), ours=False
    )
    yield Case(
        "expects to be asked to go on", head(ECHO, ("expect", "100-continue")), HI, either(ok(), refused), ours=False
    )


def connect_stream(stream: H2Stream) -> None:
    assert stream.status == 200
    assert [flags for flags, _ in stream.messages()] == [0, 2]
    assert stream.trailers is None


def grpc_web(stream: H2Stream) -> None:
    assert stream.status == 200
    (_, first), (flags, last) = stream.messages()
    assert EchoResponse.FromString(first).request.text == "hi"
    assert flags == 0x80
    assert b"grpc-status: 0" in last
    assert stream.trailers is None


def path_cases() -> Iterator[Case]:
    for path in (f"{PREFIX}/Nothing", "/", PREFIX, ECHO + "/", "/" + ECHO, ECHO.lower(), "/integration.v1.Nothing/Echo",
                 ECHO + "%00", ECHO + "%20", f"{PREFIX}/%c4%80", f"{PREFIX}/%ff%fe", "/" + "x" * 3000, f"{ECHO}%0d%0ax: y",
                 "/..%2f..%2fetc/passwd", "//"):  # fmt: skip
        yield Case(f"path {path[:40]!r}", head(path), HI, nowhere)
    # uvicorn makes a task fall over for a path that is not ASCII: see `path.decode("ascii")` in its `handle_request`.
    for path in ("", "*", "x", "http://localhost" + ECHO, f"{PREFIX}/Ech\xf6", f"{PREFIX}/Ec ho", "?", "#"):
        yield Case(f"path {path[:40]!r}", head(path), HI, either(ok(), nowhere, refused), ours=False)
    yield Case("a query", head(ECHO + "?x=y&connect=v1"), HI, ok())
    yield Case("a mount", head("/mounted" + ECHO), HI, ok())
    yield Case("a prefix", head("/prefixed" + ECHO), HI, ok())
    yield Case("not implemented", head(MISSING), HI, failed("unimplemented"))
    yield Case("nowhere, with 1 MB", head("/nowhere"), bytes(1_000_000), nowhere)
    yield Case("nowhere, and no end", head("/nowhere"), bytes(1000), nowhere, end=False)
    yield Case("415, and no end", head(type="text/plain"), bytes(1000), plain(415), end=False)
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
        yield Case(f"{method} with gRPC's media type", head(method=method), b"", plain(405, allow="POST"))
        yield Case(f"{method} with a message", head(method=method), HI, plain(405, allow="POST"))
    yield Case("GET of what may be got, with gRPC's media type", head(LOOK, method="GET"), b"", anything)
    for method in ("TRACE", "FOO", "post", "", "P\xd6ST", "x" * 2000):
        yield Case(f"method {method[:20]!r}", head(method=method), HI, either(plain(405), ok(), refused), ours=False)
    yield Case(
        "CONNECT",
        [(":method", "CONNECT"), (":authority", "localhost")],
        HI,
        either(plain(405), plain(404), refused),
        ours=False,
    )


@functools.cache
def bomb(encoding: str) -> bytes:
    """A message of 100 MB, compressed."""
    size = 100_000_000
    if encoding == "zstd":
        return bytes(zstd.compress(bytes(size)))
    if encoding == "br":
        return bytes(brotli.compress(bytes(size), quality=1))
    return gzip.compress(bytes(size), 1)


def compress(encoding: str, data: bytes) -> bytes:
    made = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstd.compress}[encoding](data)
    return bytes(made)


def compression_cases() -> Iterator[Case]:
    def sent(encoding: str | None, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return head(ECHO, *([] if encoding is None else [("grpc-encoding", encoding)]), *more)

    plain_hi = b"\n\2hi"
    for encoding in ("gzip", "br", "zstd"):
        packed = compress(encoding, plain_hi)
        yield Case(encoding, sent(encoding), envelope(packed, 1), ok())
        yield Case(f"{encoding}, but not this message", sent(encoding), HI, ok())
        yield Case(
            f"{encoding}, an empty message", sent(encoding), envelope(b"", 1), either(ok(), failed("invalid_argument"))
        )
        yield Case(f"{encoding}, cut off", sent(encoding), envelope(packed[:-3], 1), failed("invalid_argument"))
        yield Case(f"{encoding}, garbage", sent(encoding), envelope(b"\xff" * 50, 1), failed("invalid_argument"))
        yield Case(f"{encoding}, garbage behind it", sent(encoding), envelope(packed + b"\xff" * 50, 1),
                   either(failed("invalid_argument"), ok()))  # fmt: skip
        yield Case(f"{encoding}, a bomb", sent(encoding), envelope(bomb(encoding), 1), failed("resource_exhausted"))
        yield Case(f"{encoding}, a bomb in a stream", head(SUM, ("grpc-encoding", encoding)),
                   envelope(b"\x08\1") + envelope(bomb(encoding), 1), failed("resource_exhausted"))  # fmt: skip
        yield Case(
            f"{encoding} back",
            sent(None, ("grpc-accept-encoding", encoding)),
            echo(text="y" * 3000),
            compressed(encoding),
        )
    yield Case("GZIP", sent("GZIP"), envelope(compress("gzip", plain_hi), 1), either(ok(), failed("unimplemented")))
    for encoding in ("snappy", "deflate", "gzip, gzip", "gzip,br", "*", "x" * 3000, "gzip;q=1"):
        yield Case(f"unknown encoding {encoding[:20]!r}", sent(encoding), HI, failed("unimplemented"))
        if encoding == "snappy":
            for path in (COUNT, SUM, CHAT):
                yield Case(f"unknown encoding of {path[-5:]}", head(path, ("grpc-encoding", encoding)), envelope(b""),
                           failed("unimplemented"))  # fmt: skip
    yield Case("an empty encoding", sent(""), HI, either(ok(), failed("unimplemented")))
    for declared in ("identity", None):
        yield Case(
            f"compressed, but {declared} was declared",
            sent(declared),
            envelope(gzip.compress(plain_hi), 1),
            failed("internal"),
        )
        yield Case(f"compressed in a stream, but {declared} was declared", head(CHAT), envelope(plain_hi) + envelope(b"", 1),
                   failed("internal", messages=1))  # fmt: skip
    for value in ("", ",", "snappy", "snappy,gzip", "gzip;q=0", "*", "x" * 5000, ", ,gzip,,"):
        yield Case(f"accepts {value[:20]!r}", sent(None, ("grpc-accept-encoding", value)), echo(text="y" * 3000), ok())


def compressed(encoding: str) -> Expectation:
    def expectation(stream: H2Stream) -> None:
        ok()(stream)
        assert stream.get("grpc-encoding") == encoding
        ((flags, payload),) = stream.messages()
        assert flags == 1
        assert EchoResponse.FromString(decoded(encoding, payload)).request.text == "y" * 3000

    return expectation


def message_cases() -> Iterator[Case]:
    for name, path in (("unary", ECHO), ("server stream", COUNT)):
        for title, body, expected in (
            ("no message", b"", failed("unimplemented", "invalid_argument")),
            ("two messages", envelope(b"") * 2, failed("unimplemented")),
            ("a thousand messages", envelope(b"") * 1000, failed("unimplemented")),
            ("half a header behind it", envelope(b"") + b"\0\0\0", failed("invalid_argument", "unimplemented")),
            (
                "half a message behind it",
                envelope(b"") + envelope(b"xyz")[:-1],
                failed("invalid_argument", "unimplemented"),
            ),
            (
                "garbage behind it",
                envelope(b"") + b"\xff" * 7,
                failed("invalid_argument", "unimplemented", "resource_exhausted"),
            ),
        ):
            yield Case(f"{name}: {title}", head(path), body, expected)
    for name, path in (("unary", ECHO), ("server stream", COUNT), ("client stream", SUM), ("bidi stream", CHAT)):
        for title, body, expected in (
            ("a header cut off", b"\0\0\0\0", failed("invalid_argument")),
            ("one byte", b"\0", failed("invalid_argument")),
            ("a payload cut off", envelope(b"\x08\5")[:-1], failed("invalid_argument")),
            ("no payload", b"\0\0\0\0\2", failed("invalid_argument")),
            ("a length of 4 GiB", b"\0\xff\xff\xff\xff", failed("resource_exhausted")),
            ("a length of 2 GiB", b"\0\x80\0\0\0", failed("resource_exhausted")),
            ("beyond the limit", envelope(bytes(LIMIT + 1)), failed("resource_exhausted")),
            ("no Protobuf", envelope(b"\xff" * 20), failed("invalid_argument")),
            ("a bare message", b"\n\2hi", failed("invalid_argument", "resource_exhausted")),
            ("HTML", b"<html><body>x</body></html>", failed("invalid_argument", "resource_exhausted")),
        ):
            yield Case(f"{name}: {title}", head(path), body, expected)
        # Who announces too much need not send it to learn that.
        yield Case(f"{name}: a length of 4 GiB, and no end", head(path), b"\0\xff\xff\xff\xff",
                   failed("resource_exhausted"), end=False)  # fmt: skip
        for flags in (2, 3, 4, 0x40, 0x80, 0x81, 0xFF):
            yield Case(
                f"{name}: flags {flags:#x}", head(path), envelope(b"", flags), failed("invalid_argument", "internal")
            )
    yield Case(
        "unary: the limit is for its own mount",
        head("/small" + ECHO),
        echo(data=bytes(2000)),
        failed("resource_exhausted"),
    )
    yield Case("JSON that is none", head(type=f"{GRPC}+json"), envelope(b"{"), failed("invalid_argument"))
    yield Case("JSON nested deep", head(type=f"{GRPC}+json"), envelope(b"[" * 100_000), failed("invalid_argument"))
    yield Case("client stream: none", head(SUM), b"", ok())
    yield Case("bidi stream: none", head(CHAT), b"", ok(0))
    yield Case("bidi stream: cut off after two", head(CHAT), HI * 2 + HI[:-1], failed("invalid_argument", messages=2))
    yield Case(
        "bidi stream: garbage after two",
        head(CHAT),
        HI * 2 + envelope(b"\xff" * 9),
        failed("invalid_argument", messages=2),
    )
    yield Case("client stream: 10,000", head(SUM), envelope(b"\x08\1") * 10_000, ok())
    yield Case("unary: 4 MB", head(), echo(data=bytes(4_000_000)), ok())
    for length, expected in (("9", ok()), ("0", anything), ("8", anything), ("10", anything), ("99999999999999999999", anything),
                             ("abc", either(plain(400), refused)), ("-1", either(plain(400), refused)),
                             ("", either(plain(400), refused))):  # fmt: skip
        # RFC 9113 section 8.1.1 has a length that is wrong be an error of the stream.
        yield Case(f"content-length {length!r}", head(ECHO, ("content-length", length)), HI, expected, ours=length == "9",
                   within=3)  # fmt: skip


def handler_cases() -> Iterator[Case]:
    for misdeed, expected, logs in (
        ("raise=ValueError", failed("unknown"), True),
        ("raise=StopIteration", failed("unknown"), True),
        ("raise=RecursionError", failed("unknown"), True),
        ("none", failed("unknown", "internal"), True),
        ("wrong", failed("unknown", "internal"), True),
        ("string", failed("unknown", "internal"), True),
        ("bad headers=connection", failed("unknown", "internal"), True),
        ("bad value", failed("unknown", "internal"), True),
        ("bad trailers", failed("unknown", "internal"), True),
        ("bad error", failed("aborted", "unknown", "internal"), True),
        ("big error", failed("aborted", message="x" * 5000), False),
        ("odd error", failed("aborted", message='a\r\nb\0c?"d\u2028'), False),
        ("error=DATA_LOSS", failed("data_loss", message="this is DATA_LOSS"), False),
        ("error with metadata", details, False),
        ("metadata", metadata, False),
    ):
        yield Case(f"handler: {misdeed}", head(), echo(misdeed=misdeed), expected, logs=logs)
    for misdeed, expected, logs in (
        ("raise at once", failed("unknown"), True),
        ("error at once", failed("not_found"), False),
        ("raise first", failed("unknown"), True),
        ("raise last", failed("unknown", messages=2), True),
        ("error last", failed("not_found", messages=2, message="enough"), False),
        ("wrong type", failed("unknown", "internal", messages=2), True),
        ("bad headers", failed("unknown", "internal"), True),
        ("bad trailers", failed("unknown", "internal", messages=2), True),
        ("raise finally", failed("unknown", messages=2), True),
    ):
        request = CountRequest(up_to=2, misdeed=misdeed)
        yield Case(f"stream: {misdeed}", head(COUNT), envelope(request.SerializeToString()), expected, logs=logs)
    for misdeed, expected, logs in (
        ("raise", failed("unknown"), True),
        ("error", failed("not_found"), False),
        ("enough", ok(), False),
    ):
        body = envelope(SumRequest(misdeed=misdeed).SerializeToString())
        yield Case(f"upload: {misdeed}", head(SUM), body, expected, logs=logs)
        yield Case(f"upload: {misdeed}, and no end", head(SUM), body, expected, end=False, logs=logs)
        yield Case(
            f"upload: {misdeed}, and 3 MB more", head(SUM), body + envelope(bytes(1000)) * 3000, expected, logs=logs
        )
        if misdeed != "enough":
            body = HI + envelope(ChatRequest(misdeed=misdeed).SerializeToString())
            expected = failed("unknown" if logs else "not_found", messages=1)
            yield Case(f"chat: {misdeed}, and no end", head(CHAT), body, expected, end=False, logs=logs)
    yield Case(
        "chat: ended at once, and no end",
        head(CHAT, ("x-misdeed", "error at once")),
        b"",
        failed("not_found"),
        end=False,
    )


def details(stream: H2Stream) -> None:
    failed("aborted", message="no")(stream)
    assert stream.get("x-head") == "1"
    assert stream.trailer("x-tail") == "2"
    encoded = stream.trailer("grpc-status-details-bin") or ""
    status = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    assert b"type.googleapis.com/integration.v1.PingRequest" in status
    assert b"detail" in status


def metadata(stream: H2Stream) -> None:
    ok()(stream)
    assert [value for name, value in stream.headers if name == "x-head"] in (["1", "2"], ["1, 2"])
    assert [value for name, value in stream.trailers or [] if name == "x-tail"] in (["3", "4"], ["3, 4"])


CASES = [
    case for cases in (header_cases, path_cases, compression_cases, message_cases, handler_cases) for case in cases()
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_requests(server: Server, case: Case) -> None:
    if server.kind == HYPERCORN and CASES.index(case) % 3:
        pytest.skip("the application is the same on all servers: of this one a third will do")
    logged = server.log_size()
    with H2Client(server.port) as client:
        stream = client.open(case.headers)
        early = False
        try:
            client.data(stream, case.body, end=case.end)
            client.wait(lambda: stream.over, case.within)
        except (OSError, Malformed):
            early = server.kind in EARLY
            if case.ours and not early:
                raise
        early = early or (client.gone and server.kind in EARLY)
        said = f"{stream.headers}{stream.trailers}{bytes(stream.body)!r}"
        assert not LEAKS.search(said), said
        if server.kind not in case.lax and not early:
            if case.ours:
                assert not client.gone
                assert stream.over, f"no answer: {stream}"
            case.expected(stream)
        if case.ours and server.kind not in EARLY:
            good(client)
    if not case.ours or server.kind in EARLY:
        with H2Client(server.port) as client:
            good(client)
    logged_text = server.logged(logged)
    if case.ours and not (server.kind in EARLY and "client_connected_cb" in logged_text):
        assert ("Traceback" in logged_text) == case.logs


# What no single request can do.


def test_a_good_call_after_each_on_one_connection(server: Server) -> None:
    """All that reaches the application, one after the other, leaves the connection as it was."""
    if server.kind in EARLY:
        pytest.skip("hypercorn closes the connection when an answer has overtaken its request")
    with H2Client(server.port) as client:
        for case in CASES:
            if not case.ours or "bomb" in case.name or len(case.body) > 100_000:
                continue
            stream = client.open(case.headers)
            client.data(stream, case.body, end=case.end)
            assert client.wait(lambda: stream.over), case.name  # noqa: B023
            if not case.end:
                client.reset(stream)
        good(client)


def test_all_at_once(server: Server) -> None:
    """The same, all on their way together: none gets the answer of another."""
    if server.kind in EARLY:
        pytest.skip("hypercorn closes the connection when an answer has overtaken its request")
    chosen = [
        case for case in CASES if case.ours and server.kind not in case.lax and case.end and len(case.body) < 10_000
    ]
    for start in range(0, len(chosen), 80):
        with H2Client(server.port) as client:
            streams = [(case, client.open(case.headers)) for case in chosen[start : start + 80]]
            for case, stream in streams:
                client.data(stream, case.body, end=True)
            for case, stream in streams:
                assert client.wait(lambda: stream.over), case.name  # noqa: B023
                case.expected(stream)
            good(client)


@pytest.mark.parametrize("path", [ECHO, SUM, CHAT, COUNT])
def test_a_reset_in_an_upload(server: Server, path: str) -> None:
    """The handler that reads it ends, and the connection goes on."""
    name = f"reset {path}"
    logged = server.log_size()
    notes(server)
    with H2Client(server.port) as client:
        for _ in range(20):
            stream = client.open(head(path, ("x-name", name)))
            client.data(stream, envelope(b"") + envelope(bytes(1000))[:500])
            client.reset(stream)
        good(client)
        if path in (SUM, CHAT):
            stream = client.open(head(path, ("x-name", f"{name} once more")))
            client.data(stream, envelope(b""))
            assert noted(server, f"{name} once more: begin")
            client.reset(stream)
            assert noted(server, f"{name} once more: end")
        good(client)
    assert "Traceback" not in server.logged(logged)


def test_a_reset_of_a_call_that_waits(server: Server) -> None:
    """Its handler is cancelled; that of another call on the same connection is not."""
    notes(server)
    with H2Client(server.port) as client:
        kept = client.open(head())
        client.data(kept, echo(text="kept", delay_ms=1000), end=True)
        stream = client.open(head())
        client.data(stream, echo(text="left", delay_ms=60_000), end=True)
        stalled = client.open(head(COUNT))
        client.data(
            stalled, envelope(CountRequest(up_to=2, delay_ms=60_000, name="stalled").SerializeToString()), end=True
        )
        assert client.wait(lambda: stalled.body)
        client.reset(stream)
        client.reset(stalled)
        assert noted(server, "left: cancelled", "stalled: end")
        assert client.wait(lambda: kept.over)
        ok()(kept)
        good(client)


@pytest.mark.parametrize("waits", ["for a request", "by itself"])
def test_a_client_that_leaves(server: Server, waits: str) -> None:
    """All handlers of its connection end."""
    if server.kind == GUNICORN and waits == "for a request":
        # `read_body_chunk` of its streams, when it is woken, does not look whether the client is still there. An app
        # that does nothing but loop over `receive()` gets `http.disconnect` after the seconds of `--timeout`.
        pytest.skip("gunicorn does not tell while it waits for more of a request")
    notes(server)
    names = [f"leaves {waits} {number}" for number in range(50)]
    with H2Client(server.port) as client:
        for name in names:
            begin(client, name, upload=waits == "for a request")
        assert noted(server, *[f"{name}: begin" for name in names])
    assert noted(server, *[f"{name}: end" for name in names])


def begin(client: H2Client, name: str, *, upload: bool) -> H2Stream:
    """A call whose handler waits: for the client, or by itself, in which case there is nothing more to upload."""
    if upload:
        stream = client.open(head(CHAT, ("x-name", name)))
        client.data(stream, HI)
    else:
        stream = client.open(head(COUNT))
        request = CountRequest(up_to=2, delay_ms=60_000, name=name)
        client.data(stream, envelope(request.SerializeToString()), end=True)
    return stream


def test_rapid_resets(server: Server) -> None:
    """Thousands of requests, each reset as soon as it is made: the server closes the connection, or stands it."""
    process = Memory(server)
    notes(server)
    for _ in range(3):
        with contextlib.suppress(OSError, Malformed), H2Client(server.port) as client:
            block = header_block(head(CHAT))
            for first in range(0, 2000, 100):
                numbers = range(2 * first + 1, 2 * (first + 100) + 1, 2)
                client.raw(
                    b"".join(
                        frame(Frame.HEADERS, Frame.END_HEADERS, number, block)
                        + frame(Frame.RST_STREAM, 0, number, struct.pack(">I", 8))
                        for number in numbers
                    )
                )
                with contextlib.suppress(Malformed):
                    client.pump(0)
        with H2Client(server.port) as client:
            good(client)
    begun = [note for note in notes(server) if note.endswith(": begin")]
    assert settles(lambda: not any(note.endswith("begin") for note in notes(server)), 10)
    assert len(begun) <= 6000
    assert process.growth() < 100_000_000


class Memory:
    """What the server's processes hold."""

    def __init__(self, server: Server) -> None:
        self._group = server.process.pid
        self._before = self._measure()

    def growth(self) -> int:
        """By how much it has grown, in bytes."""
        return self._measure() - self._before

    def _measure(self) -> int:
        total = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._group:  # of the process group
                    total += int(fields[21]) * 4096
        return total


def test_windows_that_never_open(server: Server) -> None:
    """Answers for which their clients leave no room wait, and go with their clients; nobody else waits."""
    notes(server)
    names = [f"stalled {number}" for number in range(60)]
    with H2Client(server.port, reading=False, window=0) as client:
        for name in names:
            request = CountRequest(up_to=20, padding=10_000, delay_ms=50, name=name)
            client.data(client.open(head(COUNT)), envelope(request.SerializeToString()), end=True)
        assert noted(server, *[f"{name}: begin" for name in names])
        with H2Client(server.port) as other:
            good(other)
            stream = other.call(head(COUNT), envelope(CountRequest(up_to=5).SerializeToString()))
            ok(5)(stream)
    assert noted(server, *[f"{name}: end" for name in names])
    with H2Client(server.port) as client:
        good(client)


def test_a_window_that_opens_late(server: Server) -> None:
    """Nothing is lost of an answer that had to wait for room."""
    with H2Client(server.port, window=0) as client:
        stream = client.open(head(COUNT))
        client.data(stream, envelope(CountRequest(up_to=50, padding=1000).SerializeToString()), end=True)
        assert client.wait(lambda: stream.headers)
        time.sleep(0.1)
        assert not stream.body
        for _ in range(500):
            if stream.over:
                break
            client.h2.increment_flow_control_window(200, stream.id)
            client.flush()
            client.pump(0.02)
        assert client.wait(lambda: stream.over)
        ok(50)(stream)
        assert [CountResponse.FromString(payload).number for _, payload in stream.messages()] == list(range(1, 51))


def test_many_streams_at_once(server: Server) -> None:
    """As many as the server allows, all of them calls that wait for one another's end."""
    with H2Client(server.port) as client:
        client.pump(1)
        count = min(client.h2.remote_settings.max_concurrent_streams or 100, 100)
        streams = [client.open(head(CHAT)) for _ in range(count)]
        for turn in range(3):
            for stream in streams:
                client.data(stream, HI)
            for stream in streams:
                assert client.wait(lambda: len(stream.body) >= len(HI) * (turn + 1))  # noqa: B023
        for stream in streams:
            client.data(stream, b"", end=True)
        for stream in streams:
            assert client.wait(lambda: stream.over)  # noqa: B023
            ok(3)(stream)


def test_messages_in_pieces(server: Server) -> None:
    """A frame for each byte, empty frames between them, and padding."""
    with H2Client(server.port) as client:
        stream = client.open(head(SUM))
        for byte in envelope(SumRequest(number=7).SerializeToString()) * 3:
            client.h2.send_data(stream.id, b"")
            client.h2.send_data(stream.id, bytes([byte]), pad_length=5)
        client.h2.end_stream(stream.id)
        client.flush()
        assert client.wait(lambda: stream.over)
        ok()(stream)
        ((_, payload),) = stream.messages()
        assert SumResponse.FromString(payload).sum == 21
        good(client)


def test_trailers_of_a_request(server: Server) -> None:
    """They end it, and are nobody's business."""
    with H2Client(server.port) as client:
        stream = client.open(head(SUM))
        client.data(stream, envelope(b"\x08\1") * 2)
        client.trailers(stream, [("x-checksum", "abc"), ("grpc-status", "13")])
        assert client.wait(lambda: stream.over, 5)
        ok()(stream)
        good(client)


END = Frame.END_STREAM | Frame.END_HEADERS
BLOCK = header_block(head())


def long_header(size: int) -> bytes:
    """A request with a header of that size, in as many frames as it needs."""
    block = header_block(head(ECHO, ("x-long", "y" * size)))
    parts = [block[start : start + 16384] for start in range(0, len(block), 16384)]
    first = frame(Frame.HEADERS, Frame.END_STREAM, 9, parts[0])
    middle = [frame(Frame.CONTINUATION, 0, 9, part) for part in parts[1:-1]]
    return b"".join([first, *middle, frame(Frame.CONTINUATION, Frame.END_HEADERS, 9, parts[-1])])


BROKEN: dict[str, bytes] = {
    "DATA of no stream": frame(Frame.DATA, 0, 0, b"x"),
    "DATA of a stream that is not there": frame(Frame.DATA, 0, 99, b"x"),
    "DATA beyond the window": b"".join(frame(Frame.DATA, 0, 1, bytes(16384)) for _ in range(20)),
    "DATA whose padding is longer than it": frame(Frame.DATA, Frame.PADDED, 1, b"\xffx"),
    "a frame that is too large": frame(Frame.DATA, 0, 1, bytes(16385)),
    "a frame of 16 MB that never comes": frame(Frame.DATA, 0, 1, b"", length=0xFFFFFF),
    "HEADERS of no stream": frame(Frame.HEADERS, END, 0, BLOCK),
    "HEADERS of an even stream": frame(Frame.HEADERS, END, 2, BLOCK),
    "HEADERS of an earlier stream": frame(Frame.HEADERS, END, 9, BLOCK) + frame(Frame.HEADERS, END, 7, BLOCK),
    "HEADERS twice": frame(Frame.HEADERS, Frame.END_HEADERS, 9, BLOCK) * 2,
    "headers that cannot be decompressed": frame(Frame.HEADERS, END, 9, b"\xff\xff\xff\xff\xff\xff"),
    "headers without any": frame(Frame.HEADERS, END, 9),
    "headers that refer to nothing": frame(Frame.HEADERS, END, 9, b"\xfe"),
    "CONTINUATION of nothing": frame(Frame.CONTINUATION, Frame.END_HEADERS, 9, BLOCK),
    "something else between HEADERS and CONTINUATION": frame(Frame.HEADERS, 0, 9, BLOCK)
    + frame(Frame.PING, 0, 0, bytes(8)),
    "a header of 60 kB": long_header(60_000),
    "a header of 1 MB": long_header(1_000_000),
    "a header of 20 MB": long_header(20_000_000),
    "a flood of CONTINUATION": frame(Frame.HEADERS, 0, 9, BLOCK)
    + frame(Frame.CONTINUATION, 0, 9, header_block([("x", "y" * 1000)])) * 2000,
    "a flood of empty CONTINUATION": frame(Frame.HEADERS, 0, 9, BLOCK) + frame(Frame.CONTINUATION, 0, 9) * 20_000,
    "SETTINGS cut off": frame(Frame.SETTINGS, 0, 0, bytes(5)),
    "SETTINGS of a stream": frame(Frame.SETTINGS, 0, 1, b""),
    "SETTINGS with too large a window": frame(Frame.SETTINGS, 0, 0, struct.pack(">HI", 4, 0xFFFFFFFF)),
    "SETTINGS with too small a frame": frame(Frame.SETTINGS, 0, 0, struct.pack(">HI", 5, 1)),
    "a flood of SETTINGS": frame(Frame.SETTINGS, 0, 0) * 5000,
    "WINDOW_UPDATE of nothing": frame(Frame.WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE beyond all bounds": frame(Frame.WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2,
    "PING cut off": frame(Frame.PING, 0, 0, bytes(7)),
    "a flood of PING": frame(Frame.PING, 0, 0, bytes(8)) * 5000,
    "a flood of empty DATA": frame(Frame.DATA, 0, 1) * 5000,
    "RST_STREAM of no stream": frame(Frame.RST_STREAM, 0, 0, bytes(4)),
    "RST_STREAM of a stream to come": frame(Frame.RST_STREAM, 0, 99, bytes(4)),
    "PUSH_PROMISE": frame(Frame.PUSH_PROMISE, Frame.END_HEADERS, 1, struct.pack(">I", 2) + BLOCK),
    "a stream that depends on itself": frame(Frame.PRIORITY, 0, 9, struct.pack(">IB", 9, 1)),
    "an unknown frame": frame(0xBE, 0xFF, 1, b"x" * 100),
    "GOAWAY": frame(Frame.GOAWAY, 0, 0, bytes(8)),
    "HTTP/1": b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
    "garbage": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
def test_broken_frames(server: Server, sent: bytes) -> None:
    """The server makes of it what it will, the handler that was at work ends, and the next client notices nothing."""
    name = f"broken {hash(sent)}"
    notes(server)
    with H2Client(server.port) as client:
        stream = begin(client, name, upload=server.kind != GUNICORN)  # see `test_a_client_that_leaves`
        assert client.wait(lambda: stream.body)
        with contextlib.suppress(OSError, Malformed):
            client.raw(sent)
            client.wait(lambda: client.gone or client.goaway is not None, 0.3)
    with H2Client(server.port) as client:
        good(client)
    assert noted(server, f"{name}: begin", f"{name}: end")
