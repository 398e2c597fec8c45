"""Both clients against answers of every kind, and what they themselves send.

Each test runs with the synchronous client on urllib3 and the asynchronous one on aiohttp, which must not differ.
"""

from __future__ import annotations

import base64
import errno
import gzip
import json
import socket
from typing import TYPE_CHECKING, Any

import brotli
import pytest
import urllib3
from multidict import CIMultiDict, MultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode

from colours import COLOURS, AsyncColour, Colour, Streamed, SyncColour
from helpers import PROTO, STREAM, STREAM_HEAD, answering, count_sockets, echo_all, good_answer, settles
from integration_pb2 import (
    ChatRequest,
    CountRequest,
    CountResponse,
    EchoRequest,
    EchoResponse,
    PingRequest,
    SumRequest,
    SumResponse,
)
from rawhttp import HOST, Malformed, RawServer, Request, chunked, end_of_stream, envelope, parse_answer, response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from google.protobuf.message import Message

    from connectrpc.headers import HeaderInput

    from rawhttp import Peer
    from servers import Server

    Make = Callable[..., Colour]

pytestmark = pytest.mark.usefixtures("limit")

Code = ConnectErrorCode
LIMIT = 4 * 1024 * 1024


@pytest.fixture(params=list(COLOURS.values()), ids=list(COLOURS))
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes clients, which are closed in the end."""
    made: list[Colour] = []

    def make(base_url: str, **options: Any) -> Colour:
        made.append(request.param(base_url, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


# Answers to unary calls.

GOOD = EchoResponse(request=EchoRequest(text="hi")).SerializeToString()
LONG = EchoResponse(request=EchoRequest(text="x" * 5_000_000)).SerializeToString()


def error_json(**wire: Any) -> bytes:
    return json.dumps(wire).encode()


def error_answer(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    return response(status, {"content-type": content_type, **headers}, body)


def whole(body: bytes, head: str = "content-type: application/proto\r\n") -> bytes:
    """An answer that ends with its connection."""
    return f"HTTP/1.1 200 OK\r\nconnection: close\r\n{head}\r\n".encode() + body


UNARY_FINE: dict[str, bytes] = {
    "plain": response(200, PROTO, GOOD),
    "a parameter": response(200, {"content-type": "application/proto; x=y"}, GOOD),
    "capitals": response(200, {"Content-Type": "Application/PROTO"}, GOOD),
    "identity": response(200, {**PROTO, "content-encoding": "identity"}, GOOD),
    "gzip": response(200, {**PROTO, "content-encoding": "gzip"}, gzip.compress(GOOD)),
    "GZIP": response(200, {**PROTO, "content-encoding": "GZIP"}, gzip.compress(GOOD)),
    "br": response(200, {**PROTO, "content-encoding": "br"}, brotli.compress(GOOD)),
    "chunked": b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunked(*(GOOD[at : at + 1] for at in range(len(GOOD)))),
    "chunked, trailers": b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunked(GOOD)[:-2]
    + b"x-trailer: y\r\n\r\n",
    "HTTP/1.0": response(200, PROTO, GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "ends with its connection": whole(GOOD),
    "100 before it": b"HTTP/1.1 100 Continue\r\n\r\n" + response(200, PROTO, GOOD),
    "many headers": response(200, {**PROTO, **{f"x-{number}": "y" for number in range(90)}}, GOOD),
    "unknown fields": response(200, PROTO, GOOD + b"\xf8\x07\x01"),
    "no reason": response(200, PROTO, GOOD).replace(b" Whatever", b" "),
}


@pytest.mark.parametrize("answer", UNARY_FINE.values(), ids=UNARY_FINE.keys())
def test_unary_answers_that_are_fine(make: Make, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.send(answer)

    with RawServer(script) as server:
        output = make(server.url).call_echo(EchoRequest())
        assert output.error() is None
        message = output.message()
        assert message is not None
        assert message.request.text == "hi"


BROKEN = (Code.UNAVAILABLE, Code.INTERNAL)
"""The connection, or the server, is to blame."""


def cuts_off(answer: bytes) -> bool:
    """Whether the connection ends with this answer. Only then: else the client may rely on it for its next call."""
    try:
        parsed = parse_answer(answer)
    except Malformed:
        return True
    return parsed is None or parsed.closes


UNARY_FAILURES: dict[str, tuple[bytes, Code | tuple[Code, ...]]] = {
    # Redirects are not followed: see below.
    **{f"status {status}": (response(status, {"content-type": "text/html"}, b"<html>"), code) for status, code in (
        (201, Code.UNKNOWN), (202, Code.UNKNOWN), (206, Code.UNKNOWN), (300, Code.UNKNOWN),
        (400, Code.INTERNAL), (401, Code.UNAUTHENTICATED), (402, Code.UNKNOWN), (403, Code.PERMISSION_DENIED),
        (404, Code.UNIMPLEMENTED), (405, Code.UNKNOWN), (408, Code.UNKNOWN), (409, Code.UNKNOWN), (410, Code.UNKNOWN),
        (412, Code.UNKNOWN), (413, Code.UNKNOWN), (415, Code.UNKNOWN), (418, Code.UNKNOWN), (429, Code.UNAVAILABLE),
        (431, Code.UNKNOWN), (451, Code.UNKNOWN), (499, Code.UNKNOWN), (500, Code.UNKNOWN), (501, Code.UNKNOWN),
        (502, Code.UNAVAILABLE), (503, Code.UNAVAILABLE), (504, Code.UNAVAILABLE), (505, Code.UNKNOWN), (599, Code.UNKNOWN),
    )},
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", Code.UNKNOWN),
    "status 304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", Code.UNKNOWN),
    "status 201 with a message": (response(201, PROTO, GOOD), Code.UNKNOWN),
    "status 404 without anything": (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Code.UNIMPLEMENTED),
    # 200 with what is no answer.
    "no content-type": (response(200, {}, GOOD), Code.UNKNOWN),
    "an empty content-type": (response(200, {"content-type": ""}, GOOD), Code.UNKNOWN),
    "HTML": (response(200, {"content-type": "text/html"}, b"<html>"), Code.UNKNOWN),
    "octets": (response(200, {"content-type": "application/octet-stream"}, GOOD), Code.UNKNOWN),
    "the other codec": (response(200, {"content-type": "application/json"}, b"{}"), Code.INTERNAL),
    "a codec nobody knows": (response(200, {"content-type": "application/xml"}, b"{}"), Code.UNKNOWN),
    "a stream": (response(200, STREAM, envelope(GOOD)), (Code.UNKNOWN, Code.INTERNAL)),
    "an encoding nobody knows": (response(200, {**PROTO, "content-encoding": "snappy"}, GOOD), Code.INTERNAL),
    "several encodings": (response(200, {**PROTO, "content-encoding": "gzip, br"}, GOOD), Code.INTERNAL),
    "gzip that is none": (response(200, {**PROTO, "content-encoding": "gzip"}, GOOD), Code.INTERNAL),
    "gzip cut off": (response(200, {**PROTO, "content-encoding": "gzip"}, gzip.compress(GOOD)[:-3]), Code.INTERNAL),
    "br that is none": (response(200, {**PROTO, "content-encoding": "br"}, b"\xff" * 50), Code.INTERNAL),
    "zstd that is none": (response(200, {**PROTO, "content-encoding": "zstd"}, GOOD), Code.INTERNAL),
    "proto that is none": (response(200, PROTO, b"\xff" * 20), Code.INTERNAL),
    "proto cut off": (response(200, PROTO, GOOD[:-1]), Code.INTERNAL),
    # Too large.
    "too large": (response(200, PROTO, LONG), Code.RESOURCE_EXHAUSTED),
    "too large, in chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked(*[LONG[at : at + 50_000] for at in range(0, len(LONG), 50_000)]),
        Code.RESOURCE_EXHAUSTED,
    ),
    "too large, ends with its connection": (whole(LONG), Code.RESOURCE_EXHAUSTED),
    "announced as 4 GiB": (response(200, {**PROTO, "connection": "close"}, LONG, length=2**32), Code.RESOURCE_EXHAUSTED),
    "a bomb of gzip": (response(200, {**PROTO, "content-encoding": "gzip"}, gzip.compress(LONG)), Code.RESOURCE_EXHAUSTED),
    "a bomb of br": (response(200, {**PROTO, "content-encoding": "br"}, brotli.compress(LONG)), Code.RESOURCE_EXHAUSTED),
    # Cut off, or no HTTP.
    "nothing": (b"", Code.UNAVAILABLE),
    "half a status line": (b"HTTP/1.", BROKEN),
    # http.client takes the end of the connection for that of the head.
    "half a header": (b"HTTP/1.1 200 OK\r\ncontent-ty", (*BROKEN, Code.UNKNOWN)),
    "a head without its end": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", (*BROKEN, Code.UNKNOWN)),
    "a body that is shorter than it was said to be": (response(200, PROTO, GOOD, length=100), BROKEN),
    "no body where one was announced": (response(200, PROTO, b"", length=100), BROKEN),
    "chunks cut off": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked(GOOD, last=False),
        BROKEN,
    ),
    "a chunk cut off": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n64\r\nabc",
        BROKEN,
    ),
    "a chunk's size that is none": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
        BROKEN,
    ),
    "a long body cut off": (response(200, PROTO, GOOD * 50_000, length=3_000_000), BROKEN),
    "an error's body cut off": (response(404, {"content-type": "application/json"}, b"{", length=100), (*BROKEN, Code.UNIMPLEMENTED)),
    "garbage": (bytes(range(128, 256)) * 10, BROKEN),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", BROKEN),
    "a status that is no number": (b"HTTP/1.1 abc OK\r\n\r\n", BROKEN),
    "a header of 100 kB": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", BROKEN),
    "thousands of headers": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", (*BROKEN, Code.UNKNOWN)),
    "a length that is none": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/proto\r\ncontent-length: abc\r\n\r\n" + b"\xff" * 9, BROKEN),
    "a negative length": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/proto\r\ncontent-length: -1\r\n\r\n" + b"\xff" * 9, BROKEN),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 5\r\ncontent-length: 9\r\n\r\n" + b"\xff" * 9,
        BROKEN,
    ),
    "a line that is no header": (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", (*BROKEN, Code.UNKNOWN)),
    # Errors.
    **{f"error {code.code_name}": (error_answer(code.http_status, error_json(code=code.code_name)), code) for code in Code},
    "an error's code counts, not its status": (error_answer(404, error_json(code="aborted")), Code.ABORTED),
    "an error with a parameter": (error_answer(500, error_json(code="aborted"), "application/json; charset=utf-8"), Code.ABORTED),
    "an error in gzip": (
        error_answer(409, gzip.compress(error_json(code="aborted")), **{"content-encoding": "gzip"}), Code.ABORTED,
    ),
    "an error in an encoding nobody knows": (
        error_answer(404, error_json(code="aborted"), **{"content-encoding": "snappy"}), Code.UNIMPLEMENTED,
    ),
    "an error in gzip that is none": (
        error_answer(404, error_json(code="aborted"), **{"content-encoding": "gzip"}), Code.UNIMPLEMENTED,
    ),
    "an error of a code nobody knows": (error_answer(403, error_json(code="oops", message="m")), Code.PERMISSION_DENIED),
    "an error of a code in capitals": (error_answer(403, error_json(code="ABORTED")), Code.PERMISSION_DENIED),
    "an error of a code that is a number": (error_answer(403, error_json(code=10)), Code.PERMISSION_DENIED),
    "an error without a code": (error_answer(503, error_json(message="m")), Code.UNAVAILABLE),
    "an error that is an array": (error_answer(503, b"[]"), Code.UNAVAILABLE),
    "an error that is null": (error_answer(503, b"null"), Code.UNAVAILABLE),
    "an error that is a text": (error_answer(503, b'"aborted"'), Code.UNAVAILABLE),
    "an error that is no JSON": (error_answer(503, b"{code:aborted}"), Code.UNAVAILABLE),
    "an error that is empty": (error_answer(503, b""), Code.UNAVAILABLE),
    "an error that is not UTF-8": (error_answer(503, b'{"code":"aborted\xff"}'), Code.UNAVAILABLE),
    "an error nested too deep": (error_answer(503, b"[" * 100_000), Code.UNAVAILABLE),
    "an error that is too large": (error_answer(503, error_json(code="aborted", message="x" * 5_000_000)),
                                   (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)),
    "an error as text": (error_answer(503, error_json(code="aborted"), "text/plain"), Code.UNAVAILABLE),
    "an error as problem+json": (error_answer(503, error_json(code="aborted"), "application/problem+json"), Code.UNAVAILABLE),
    "an error as proto": (error_answer(503, error_json(code="aborted"), "application/proto"), Code.UNAVAILABLE),
    "an error with a message that is none": (error_answer(409, error_json(code="aborted", message=5)), Code.ABORTED),
    "an error with details that are none": (error_answer(409, error_json(code="aborted", details="x")), Code.ABORTED),
    "an error with odd details": (
        error_answer(409, error_json(code="aborted", details=[None, 5, {}, {"type": "x"}, {"type": 5, "value": ""},
                                                              {"type": "x", "value": "!"}, {"type": "x", "value": "A"}])),
        Code.ABORTED,
    ),
    "an error with a lone surrogate": (error_answer(409, rb'{"code":"aborted","message":"\ud800"}'), Code.ABORTED),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "codes"), UNARY_FAILURES.values(), ids=UNARY_FAILURES.keys())
def test_unary_answers_that_fail(make: Make, answer: bytes, codes: Code | tuple[Code, ...]) -> None:
    hits = 0

    def script(peer: Peer) -> None:
        nonlocal hits
        hits += 1
        if hits > 1:
            return echo_all(peer)
        peer.read()
        peer.send(answer)
        if not cuts_off(answer):
            echo_all(peer)
        return None

    with RawServer(script) as server:
        client = make(server.url)
        output = client.call_echo(EchoRequest())
        assert output.message() is None
        error = output.error()
        assert error is not None
        assert error.code in (codes if isinstance(codes, tuple) else (codes,)), error
        assert str(error).startswith(error.code.code_name)
        assert client.text("next") == "next"  # whatever was left of that answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(make: Make, status: int) -> None:
    seen: list[Request] = []

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            seen.append(request)
            if request.path.endswith("elsewhere"):
                peer.send(good_answer())
            else:
                peer.send(response(status, {"location": "/elsewhere"}))

    with RawServer(script) as server:
        client = make(server.url)
        for error in (client.call_echo(EchoRequest()).error(), client.call_count(CountRequest()).error):
            assert error is not None
            assert error.code is Code.UNKNOWN
    assert len(seen) == 2


def test_what_an_error_tells(make: Make) -> None:
    detail = PingRequest(text="hello").SerializeToString()
    unpadded = base64.b64encode(detail).decode().rstrip("=")
    body = error_json(
        code="failed_precondition",
        message='not "now"\u00e4\n',
        details=[
            {"type": "integration.v1.PingRequest", "value": unpadded, "debug": {"text": "hello"}},
            {"type": "integration.v1.PingRequest", "value": base64.b64encode(detail).decode()},
            {"type": "no.Such", "value": "AAE", "more": 5},
            {"type": "integration.v1.PingRequest", "value": ""},
        ],
        more=[1],
    )
    answer = error_answer(400, body, **{"x-head": "a", "Trailer-X-Tail": "b", "trailer-data-bin": "AAE"})
    with answering(answer, answer) as server:
        client = make(server.url)
        output = client.call_echo(EchoRequest())
        error = output.error()
        assert error is not None
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest())
        for one in (error, raised.value):
            assert one.code is Code.FAILED_PRECONDITION
            assert one.message == 'not "now"\u00e4\n'
            assert one.response_headers()["X-HEAD"] == "a"
            assert one.response_trailers()["x-tail"] == "b"
            assert one.response_trailers()["data-bin"] == "AAE"
            assert "trailer-x-tail" not in one.response_headers()
            first, second, third, fourth = one.details
            assert first.message() == second.message() == PingRequest(text="hello")
            assert first.debug == {"text": "hello"}
            assert (third.type, third.value, third.message()) == ("no.Such", b"\0\1", None)
            assert fourth.message() == PingRequest()
        assert output.response_headers()["x-head"] == "a"
        assert output.response_trailers()["x-tail"] == "b"


# Answers to streams.


def stream(*parts: bytes, head: bytes = STREAM_HEAD) -> bytes:
    return head + chunked(*parts)


def number(value: int) -> bytes:
    return envelope(CountResponse(number=value).SerializeToString())


END = end_of_stream()
COMPRESSED_HEAD = STREAM_HEAD[:-2] + b"connect-content-encoding: gzip\r\n\r\n"


STREAMS_FINE: dict[str, tuple[bytes, list[int]]] = {
    "no message": (stream(END), []),
    "three": (stream(number(1), number(2), number(3), END), [1, 2, 3]),
    "all in one chunk": (stream(number(1) + number(2) + END), [1, 2]),
    "byte by byte": (stream(*(bytes([byte]) for byte in number(1) + number(2) + END)), [1, 2]),
    "with a length": (response(200, STREAM, number(1) + END), [1]),
    "ends with its connection": (whole(number(1) + END, "content-type: application/connect+proto\r\n"), [1]),
    "capitals": (
        stream(number(1), END, head=STREAM_HEAD.replace(b"application/connect+proto", b"Application/CONNECT+Proto; x=y")),
        [1],
    ),
    "an empty message": (stream(envelope(b""), END), [0]),
    "compressed": (stream(envelope(gzip.compress(b"\x08\x05"), 1), number(6), envelope(gzip.compress(b"{}"), 3),
                          head=COMPRESSED_HEAD), [5, 6]),
    "identity": (stream(number(1), END, head=STREAM_HEAD[:-2] + b"connect-content-encoding: identity\r\n\r\n"), [1]),
    "nulls in the end": (stream(number(1), end_of_stream({"error": None, "metadata": None, "more": 5})), [1]),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "numbers"), STREAMS_FINE.values(), ids=STREAMS_FINE.keys())
def test_streams_that_are_fine(make: Make, answer: bytes, numbers: list[int]) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.send(answer)

    with RawServer(script) as server:
        streamed = make(server.url).call_count(CountRequest())
        assert streamed.error is None
        assert [message.number for message in streamed.messages] == numbers


STREAM_FAILURES: dict[str, tuple[bytes, int, Code | tuple[Code, ...]]] = {
    **{f"status {status}": (response(status, {"content-type": "text/html"}, b"<html>"), 0, code) for status, code in (
        (201, Code.UNKNOWN), (400, Code.INTERNAL), (401, Code.UNAUTHENTICATED), (403, Code.PERMISSION_DENIED),
        (404, Code.UNIMPLEMENTED), (415, Code.UNKNOWN), (429, Code.UNAVAILABLE), (500, Code.UNKNOWN), (501, Code.UNKNOWN),
        (502, Code.UNAVAILABLE), (503, Code.UNAVAILABLE), (504, Code.UNAVAILABLE),
    )},
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", 0, Code.UNKNOWN),
    "status 500 with a stream": (response(500, STREAM, number(1) + END), 0, Code.UNKNOWN),
    "no content-type": (response(200, {}, END), 0, Code.UNKNOWN),
    "HTML": (response(200, {"content-type": "text/html"}, b"<html>"), 0, Code.UNKNOWN),
    "the other codec": (response(200, {"content-type": "application/connect+json"}, END), 0, Code.INTERNAL),
    "a unary answer": (response(200, PROTO, GOOD), 0, (Code.UNKNOWN, Code.INTERNAL)),
    "an encoding nobody knows": (
        stream(number(1), END, head=STREAM_HEAD[:-2] + b"connect-content-encoding: snappy\r\n\r\n"), 0, Code.INTERNAL),
    # Cut off.
    "no end": (stream(number(1)), 1, BROKEN),
    "nothing at all": (stream(), 0, BROKEN),
    "nothing at all, with a length": (response(200, STREAM), 0, BROKEN),
    "no end, with a length": (response(200, STREAM, number(1)), 1, BROKEN),
    "no end, and the connection ends": (whole(number(1), "content-type: application/connect+proto\r\n"), 1, BROKEN),
    "a header cut off": (stream(number(1), b"\0\0\0"), 1, BROKEN),
    "a payload cut off": (stream(number(1), number(2)[:-1]), 1, BROKEN),
    "chunks cut off after a message": (STREAM_HEAD + chunked(number(1), last=False), 1, BROKEN),
    "chunks cut off in a message": (STREAM_HEAD + chunked(number(1), number(2)[:4], last=False), 1, BROKEN),
    "chunks that are none": (STREAM_HEAD + b"xyz\r\n\r\n", 0, BROKEN),
    "shorter than its length": (response(200, STREAM, number(1), length=100), 1, BROKEN),
    "the end cut off": (stream(number(1), end_of_stream({"metadata": {}})[:-1]), 1, BROKEN),
    # Not what a stream is.
    "a message after the end": (stream(number(1), END, number(2)), 1, Code.INTERNAL),
    "a byte after the end": (stream(number(1), END, b"\0"), 1, Code.INTERNAL),
    "two ends": (stream(number(1), END, END), 1, Code.INTERNAL),
    "an error after the end": (stream(number(1), END, end_of_stream({"error": {"code": "aborted"}})), 1,
                               (Code.INTERNAL, Code.ABORTED)),
    **{f"flags {flags:#04x}": (stream(number(1), envelope(b"", flags), END), 1, Code.INTERNAL)
       for flags in (0x04, 0x08, 0x40, 0x80, 0x84, 0xF8)},
    "compressed, but nothing was declared": (stream(number(1), envelope(gzip.compress(b""), 1), END), 1, Code.INTERNAL),
    "compressed end, but nothing was declared": (stream(number(1), envelope(gzip.compress(b"{}"), 3)), 1, Code.INTERNAL),
    "gzip that is none": (stream(number(1), envelope(b"abc", 1), END, head=COMPRESSED_HEAD), 1, Code.INTERNAL),
    "proto that is none": (stream(number(1), envelope(b"\xff\xff"), END), 1, Code.INTERNAL),
    "text": (stream(b"<html><body>Hello</body></html>"), 0, (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)),
    # Too large.
    "announced as 4 GiB": (stream(number(1), b"\0\xff\xff\xff\xff", b"x" * 1000), 1, Code.RESOURCE_EXHAUSTED),
    "a byte too large": (stream(number(1), envelope(bytes(LIMIT + 1)), END), 1, Code.RESOURCE_EXHAUSTED),
    "a bomb": (stream(number(1), envelope(gzip.compress(bytes(LIMIT + 1)), 1), END, head=COMPRESSED_HEAD), 1,
               Code.RESOURCE_EXHAUSTED),
    "an end that is too large": (stream(number(1), b"\2\xff\xff\xff\xff", b"x" * 1000), 1, Code.RESOURCE_EXHAUSTED),
    "an end that is a bomb": (stream(number(1), envelope(gzip.compress(b" " * (LIMIT + 1)), 3), head=COMPRESSED_HEAD), 1,
                              Code.RESOURCE_EXHAUSTED),
    # Ends.
    **{f"error {code.code_name}": (stream(number(1), end_of_stream({"error": {"code": code.code_name}})), 1, code) for code in Code},
    "an error at once": (stream(end_of_stream({"error": {"code": "aborted"}})), 0, Code.ABORTED),
    "an error of a code nobody knows": (stream(end_of_stream({"error": {"code": "oops"}})), 0, (Code.UNKNOWN, Code.INTERNAL)),
    "an error without a code": (stream(end_of_stream({"error": {"message": "m"}})), 0, (Code.UNKNOWN, Code.INTERNAL)),
    "an error that is a text": (stream(end_of_stream({"error": "aborted"})), 0, (Code.UNKNOWN, Code.INTERNAL)),
    "an end that is no JSON": (stream(number(1), envelope(b"{", 2)), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "an end that is an array": (stream(number(1), envelope(b"[]", 2)), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "an end that is null": (stream(number(1), envelope(b"null", 2)), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "an end that is not UTF-8": (stream(number(1), envelope(b'{"\xff":1}', 2)), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "an end nested too deep": (stream(number(1), envelope(b"[" * 100_000, 2)), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "metadata that is an array": (stream(number(1), end_of_stream({"metadata": []})), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "metadata of numbers": (stream(number(1), end_of_stream({"metadata": {"x": [5]}})), 1, (Code.UNKNOWN, Code.INTERNAL)),
    "metadata without arrays": (stream(number(1), end_of_stream({"metadata": {"x": "y"}})), 1, (Code.UNKNOWN, Code.INTERNAL)),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "messages", "codes"), STREAM_FAILURES.values(), ids=STREAM_FAILURES.keys())
def test_streams_that_fail(make: Make, answer: bytes, messages: int, codes: Code | tuple[Code, ...]) -> None:
    hits = 0

    def script(peer: Peer) -> None:
        nonlocal hits
        hits += 1
        if hits > 1:
            return echo_all(peer)
        peer.read()
        peer.send(answer)
        if not cuts_off(answer):
            echo_all(peer)
        return None

    with RawServer(script) as server:
        client = make(server.url)
        streamed = client.call_count(CountRequest())
        assert streamed.error is not None
        assert streamed.error.code in (codes if isinstance(codes, tuple) else (codes,)), streamed.error
        assert [message.number for message in streamed.messages] == list(range(1, messages + 1))
        assert client.text("next") == "next"


def test_what_the_end_of_a_stream_tells(make: Make) -> None:
    end = end_of_stream(
        {
            "error": {
                "code": "data_loss",
                "message": "gone",
                "details": [{"type": "integration.v1.PingRequest", "value": "CgJoaQ"}],
            },
            "metadata": {"X-Tail": ["a", "b"], "data-bin": ["AAE"], "empty": []},
        }
    )
    head = STREAM_HEAD[:-2] + b"x-head: a\r\nX-Head: b\r\n\r\n"
    with answering(stream(number(1), end, head=head), stream(number(1), end, head=head)) as server:
        client = make(server.url)
        streamed = client.call_count(CountRequest())
        assert len(streamed.messages) == 1
        assert streamed.headers.getall("x-head") == ["a", "b"]
        assert streamed.trailers.getall("x-tail") == ["a", "b"]
        assert streamed.trailers["data-bin"] == "AAE"
        with pytest.raises(ConnectError) as raised:
            client.count(CountRequest())
        assert streamed.error is not None
        for error in (streamed.error, raised.value):
            assert (error.code, error.message) == (Code.DATA_LOSS, "gone")
            assert error.details[0].message() == PingRequest(text="hi")
            assert error.response_headers().getall("x-head") == ["a", "b"]
            assert error.response_trailers().getall("X-TAIL") == ["a", "b"]


CLIENT_STREAM_ANSWERS: dict[str, tuple[bytes, Code | tuple[Code, ...] | None]] = {
    "one": (stream(envelope(b"\x08\x05"), END), None),
    "none": (stream(END), Code.UNIMPLEMENTED),
    "two": (stream(envelope(b"\x08\x05"), envelope(b"\x08\x05"), END), Code.UNIMPLEMENTED),
    "two in one chunk": (stream(envelope(b"\x08\x05") * 2 + END), Code.UNIMPLEMENTED),
    "ten thousand": (stream(*[envelope(b"\x08\x05") * 100] * 100, END), Code.UNIMPLEMENTED),
    "one, then an error": (stream(envelope(b"\x08\x05"), end_of_stream({"error": {"code": "aborted"}})), Code.ABORTED),
    "an error": (stream(end_of_stream({"error": {"code": "aborted"}})), Code.ABORTED),
    "one, no end": (stream(envelope(b"\x08\x05")), BROKEN),
    "one, more after the end": (stream(envelope(b"\x08\x05"), END, b"x"), Code.INTERNAL),
    "HTML": (response(200, {"content-type": "text/html"}, b"<html>"), Code.UNKNOWN),
    "status 404": (response(404, {}, b""), Code.UNIMPLEMENTED),
}


@pytest.mark.parametrize(("answer", "codes"), CLIENT_STREAM_ANSWERS.values(), ids=CLIENT_STREAM_ANSWERS.keys())
def test_answers_to_client_streams(make: Make, answer: bytes, codes: Code | tuple[Code, ...] | None) -> None:
    with answering(answer) as server:
        client = make(server.url)
        output = client.call_sum([SumRequest(number=5)])
        if codes is None:
            assert output.error() is None
            assert output.message() == SumResponse(sum=5)
        else:
            assert output.message() is None
            error = output.error()
            assert error is not None
            assert error.code in (codes if isinstance(codes, tuple) else (codes,)), error
        assert client.text("next") == "next"


def test_limits(make: Make) -> None:
    answer = response(200, PROTO, EchoResponse(request=EchoRequest(text="x" * 100)).SerializeToString())
    long = response(200, PROTO, LONG)
    with answering(answer, answer, long, answer) as server:
        assert make(server.url, read_max_bytes=200).call_echo(EchoRequest()).error() is None
        error = make(server.url, read_max_bytes=50).call_echo(EchoRequest()).error()
        assert error is not None
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert make(server.url, read_max_bytes=None).call_echo(EchoRequest()).error() is None
        error = make(server.url, read_max_bytes=0).call_echo(EchoRequest()).error()
        assert error is not None
        assert error.code is Code.RESOURCE_EXHAUSTED


# Connections.


def test_connections_are_used_again(make: Make) -> None:
    """After whatever ended well, errors included."""

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if request.path.endswith("Count"):
                peer.send(stream(number(1), number(2), END))
            elif request.path.endswith("Sum"):
                peer.send(stream(envelope(b"\x08\x05"), END))
            elif request.path.endswith("Chat"):
                peer.send(stream(end_of_stream({"error": {"code": "aborted"}})))
            elif request.path.endswith("Look"):
                peer.send(error_answer(404, error_json(code="not_found")))
            else:
                peer.send(good_answer(request.body))

    with RawServer(script) as server:
        client = make(server.url)
        for _ in range(10):
            assert client.text("x") == "x"
            assert client.numbers(2) == [1, 2]
            assert client.sum([SumRequest()]).sum == 5
            assert client.call_chat([ChatRequest()]).error is not None
            assert client.call_look(EchoRequest()).error() is not None
            assert client.call_echo(EchoRequest(), timeout=5).error() is None
        assert server.accepted == 1


def test_connections_of_real_servers_are_used_again(make: Make, gunicorn_gthread: Server) -> None:
    client = make(gunicorn_gthread.url)
    before = count_sockets()
    for index in range(20):
        assert client.text() == "hi"
        assert client.numbers(3) == [1, 2, 3]
        assert client.sum([SumRequest(number=index)] * 2).sum == 2 * index
        assert [message.text for message in client.chat([ChatRequest(text="a"), ChatRequest(text="b")])] == ["a", "b"]
        assert client.call_echo(EchoRequest(misdeed="error=ABORTED")).error() is not None
    assert count_sockets() <= before + 1


def test_kept_connection_that_the_server_closes_upon_the_next_request(make: Make) -> None:
    closed = 0

    def script(peer: Peer) -> None:
        nonlocal closed
        request = peer.read()
        assert request is not None
        peer.send(good_answer(request.body))
        if closed < 3:
            if peer.read_head() is not None:
                closed += 1
            return
        echo_all(peer)

    with RawServer(script) as server:
        client = make(server.url)
        assert client.text() == "hi"
        calls: list[Callable[[], ConnectError | None]] = [
            lambda: client.call_echo(EchoRequest()).error(),
            lambda: client.call_count(CountRequest()).error,
            lambda: client.call_sum([SumRequest()]).error(),
        ]
        for call in calls:
            error = call()
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert "closed the connection" in error.message
            assert error.__cause__ is not None
            assert client.text("next") == "next"
        assert server.accepted == 4  # nothing was sent twice


def test_kept_connection_that_the_server_has_closed_meanwhile(make: Make) -> None:
    def script(peer: Peer) -> None:
        request = peer.read()
        if request is not None:
            peer.send(good_answer(request.body))

    with RawServer(script) as server:
        client = make(server.url)
        for index in range(5):
            output = client.call_echo(EchoRequest(number=index))
            error = output.error()
            # The news of it may come too late. Then it must be clear that the call can be made again.
            assert error is None or (error.code is Code.UNAVAILABLE and "closed the connection" in error.message)
            assert settles(lambda: server.open_connections == 0)


def test_nobody_listens(make: Make) -> None:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        client = make(f"http://{HOST}:{sock.getsockname()[1]}")
        for error in (
            client.call_echo(EchoRequest()).error(),
            client.call_echo(EchoRequest(), timeout=5).error(),
            client.call_count(CountRequest()).error,
            client.call_sum([SumRequest()]).error(),
            client.call_chat([ChatRequest()]).error,
        ):
            assert error is not None
            assert error.code is Code.UNAVAILABLE
            assert error.__cause__ is not None


def test_a_name_that_does_not_exist(make: Make) -> None:
    error = make("http://no-such-host.invalid").call_echo(EchoRequest()).error()
    assert error is not None
    assert error.code is Code.UNAVAILABLE


def test_server_that_resets(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with RawServer(script) as server:
        client = make(server.url)
        for error in (
            client.call_echo(EchoRequest(data=bytes(5_000_000))).error(),
            client.call_count(CountRequest()).error,
            client.call_sum([SumRequest(padding=bytes(1_000_000))] * 5).error(),
        ):
            assert error is not None
            assert error.code is Code.UNAVAILABLE


def test_an_answer_before_the_request_was_read(make: Make) -> None:
    """The server answers at once, and takes the rest of the request only then."""
    answer = error_answer(404, error_json(code="not_found"))

    def script(peer: Peer) -> None:
        while True:
            request = peer.read_head()
            if request is None:
                return
            peer.send(answer)
            peer.skip_body(request)

    with RawServer(script) as server:
        client = make(server.url)
        for _ in range(3):
            error = client.call_echo(EchoRequest(data=bytes(20_000_000))).error()
            assert error is not None
            assert error.code is Code.NOT_FOUND
            error = client.call_sum([SumRequest(padding=bytes(1_000_000))] * 20).error()
            assert error is not None
            assert error.code is Code.UNIMPLEMENTED  # a stream's 404


def test_many_cookies_and_none_comes_back(make: Make) -> None:
    """Calls do not depend on one another: no client of our own keeps cookies."""
    seen: list[str | None] = []

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            seen.append(request.headers.get("cookie"))
            peer.send(response(200, {**PROTO, "set-cookie": "a=b"}, GOOD))

    # aiohttp keeps no cookies of servers without a name.
    with RawServer(script) as server:
        client = make(server.url.replace(HOST, "localhost"))
        client.text()
        client.text()
    assert seen == [None, None]


# Requests.


class Recorder:
    """A server that keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.server = RawServer(self._script)

    def _script(self, peer: Peer) -> None:
        while (request := peer.read()) is not None:
            self.requests.append(request)
            if request.path.endswith("Count"):
                peer.send(stream(END))
            elif request.path.endswith("Sum"):
                peer.send(stream(envelope(b""), END))
            else:
                peer.send(good_answer())

    @property
    def last(self) -> Request:
        return self.requests[-1]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with recorder.server:
        yield recorder


def test_what_a_unary_call_sends(make: Make, recorder: Recorder) -> None:
    make(recorder.server.url).text("hi")
    request = recorder.last
    assert (request.method, request.path) == ("POST", "/integration.v1.ProbeService/Echo")
    assert request.body == EchoRequest(text="hi").SerializeToString()
    headers = request.headers
    assert headers["content-type"] == "application/proto"
    assert headers["connect-protocol-version"] == "1"
    assert headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in headers
    assert "content-encoding" not in headers
    assert "connect-timeout-ms" not in headers
    assert set(headers["accept-encoding"].split(", ")) == {"gzip", "br", "zstd"}
    assert headers["user-agent"].startswith("connect-python/")
    for name in headers:
        assert len(headers.getall(name)) == 1, name
    assert {name.lower() for name in headers} <= {
        *("host", "user-agent", "content-type", "content-length", "accept", "accept-encoding"),
        "connect-protocol-version",
    }


def test_what_a_stream_sends(make: Make, recorder: Recorder) -> None:
    client = make(recorder.server.url)
    client.count(CountRequest(up_to=3))
    assert recorder.last.body == envelope(b"\x08\x03")
    client.sum([SumRequest(number=1), SumRequest(), SumRequest(number=2)])
    request = recorder.last
    assert (request.method, request.path) == ("POST", "/integration.v1.ProbeService/Sum")
    assert request.body == envelope(b"\x08\x01") + envelope(b"") + envelope(b"\x08\x02")
    headers = request.headers
    assert headers["content-type"] == "application/connect+proto"
    assert headers["connect-protocol-version"] == "1"
    assert headers["transfer-encoding"] == "chunked"
    assert "content-length" not in headers
    assert "connect-content-encoding" not in headers
    assert set(headers["connect-accept-encoding"].split(", ")) == {"gzip", "br", "zstd"}
    assert headers.get("accept-encoding", "identity") == "identity"
    client.sum([])
    assert recorder.last.body == b""


@pytest.mark.parametrize("compression", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("codec", ["proto", "json"])
def test_options_with_a_real_server(make: Make, gunicorn_gthread: Server, compression: str, codec: str) -> None:
    client = make(
        gunicorn_gthread.url,
        codec=codec,
        send_compression=compression,
        accept_compression=[compression],
        compress_min_bytes=100,
    )
    text = "long enough " * 500
    output = client.call_echo(EchoRequest(text=text))
    message = output.message()
    assert message is not None
    assert message.request.text == text
    assert output.response_headers()["content-encoding"] == compression
    sent = {header.name.lower(): header.values[0] for header in message.headers}
    assert sent["content-encoding"] == sent["accept-encoding"] == compression
    assert sent["content-type"] == f"application/{codec}"
    streamed = client.call_count(CountRequest(up_to=5, padding=1000))
    assert streamed.error is None
    assert [message.number for message in streamed.messages] == [1, 2, 3, 4, 5]
    assert streamed.headers["connect-content-encoding"] == compression
    assert client.sum([SumRequest(number=2, padding=bytes(1000))] * 3).sum == 6
    assert [message.text for message in client.chat([ChatRequest(text=text)] * 3)] == [text] * 3


def test_get(make: Make, gunicorn_gthread: Server, recorder: Recorder) -> None:
    for options in ({"codec": "json"}, {}, {"send_compression": "gzip", "compress_min_bytes": 1}):
        client = make(gunicorn_gthread.url, use_get=True, **options)
        message = client.call_look(EchoRequest(text="\u00e4 +/?&%", number=-1)).message()
        assert message is not None
        assert message.request == EchoRequest(text="\u00e4 +/?&%", number=-1)
        make(recorder.server.url, use_get=True, **options).call_look(EchoRequest(text="x"))
        assert recorder.last.method == "GET"
        assert recorder.last.path.startswith("/integration.v1.ProbeService/Look?")
        assert not recorder.last.body
        assert "content-type" not in recorder.last.headers
        assert client.text() == "hi"  # not marked, so it is a POST


NO_VALUES: dict[str, list[str]] = {"x-some": []}

HEADERS: dict[str, tuple[HeaderInput, list[str]]] = {
    "a dict": ({"X-Some": "a"}, ["a"]),
    "a dict of lists": ({"x-some": ["a", "b"]}, ["a", "b"]),
    "a MultiDict": (MultiDict([("x-some", "a"), ("x-some", "b")]), ["a", "b"]),
    "a CIMultiDict": (CIMultiDict([("X-Some", "a"), ("x-some", "b")]), ["a", "b"]),
    "an HTTPHeaderDict": (urllib3.HTTPHeaderDict([("x-some", "a"), ("x-some", "b")]), ["a", "b"]),
    "an empty value": ({"x-some": ""}, [""]),
    "odd characters": (
        {"x-some": "a\tb !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"},
        ["a\tb !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"],
    ),
    "no values": (NO_VALUES, []),
}


@pytest.mark.parametrize(("given", "sent"), HEADERS.values(), ids=HEADERS.keys())
def test_extra_headers(make: Make, recorder: Recorder, given: HeaderInput, sent: list[str]) -> None:
    for client, headers in (
        (make(recorder.server.url), given),
        (make(recorder.server.url, extra_headers=given), None),
        (make(recorder.server.url, extra_headers={"x-some": "overridden"}), given if sent else NO_VALUES),
    ):
        for call in (
            lambda: client.echo(EchoRequest(), headers),  # noqa: B023
            lambda: client.count(CountRequest(), headers),  # noqa: B023
            lambda: client.sum([SumRequest()], headers),  # noqa: B023
        ):
            call()
            found = recorder.last.headers.getall("x-some", [])
            if sent:
                assert ", ".join(found) == ", ".join(sent)
            else:
                assert found in ([], ["overridden"])


def test_extra_headers_of_a_call_stand_above_those_of_the_client(make: Make, recorder: Recorder) -> None:
    client = make(recorder.server.url, extra_headers={"x-a": ["1", "2"], "x-b": "3", "User-Agent": "mine/1"})
    client.echo(EchoRequest())
    assert recorder.last.headers["user-agent"] == "mine/1"
    client.echo(EchoRequest(), {"X-A": "4"})
    headers = recorder.last.headers
    assert (headers.getall("x-a"), headers["x-b"], headers["user-agent"]) == (["4"], "3", "mine/1")
    client.echo(EchoRequest(), {"USER-AGENT": "yours/2"})
    assert recorder.last.headers.getall("user-agent") == ["yours/2"]
    make(recorder.server.url).echo(EchoRequest(), {"user-agent": "theirs/3"})
    assert recorder.last.headers.getall("user-agent") == ["theirs/3"]


RESERVED = [
    *("content-type", "Content-Length", "content-encoding", "accept-encoding", "transfer-encoding", "connection", "te"),
    *("keep-alive", "upgrade", "trailer", "proxy-connection", "connect-timeout-ms", "Connect-Protocol-Version"),
    *(
        "connect-content-encoding",
        "connect-accept-encoding",
        "connect-whatever",
        "grpc-timeout",
        "GRPC-Status",
        "trailer-x",
    ),
]


@pytest.mark.parametrize("name", RESERVED)
def test_headers_of_the_protocol_cannot_be_set(make: Make, recorder: Recorder, name: str) -> None:
    client = make(recorder.server.url)
    with pytest.raises(ValueError, match="(?i)" + name):
        client.echo(EchoRequest(), {name: "x"})
    with pytest.raises(ValueError, match="(?i)" + name):
        client.call_echo(EchoRequest(), {name: "x"})
    with pytest.raises(ValueError, match="(?i)" + name):
        client.call_count(CountRequest(), MultiDict({name: "x"}))
    with pytest.raises(ValueError, match="(?i)" + name):
        client.sum([SumRequest()], {name: ["x"]})
    with pytest.raises(ValueError, match="(?i)" + name):
        make(recorder.server.url, extra_headers={name: "x"})
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"x-a": "a\r\nx-b: c"}, ValueError),
        ({"x-a": "a\nb"}, ValueError),
        ({"x-a": "a\0"}, ValueError),
        ({"x-a": "\u00e4"}, ValueError),
        ({"x-a": "\u20ac"}, ValueError),
        ({"x-a": ["fine", "\x7f"]}, ValueError),
        ({"x a": "b"}, ValueError),
        ({"x-a\r\nx-b": "c"}, ValueError),
        ({"x:a": "b"}, ValueError),
        ({"": "b"}, ValueError),
        ({"\u00e4": "b"}, ValueError),
        ({"x-a": 5}, TypeError),
        ({"x-a": b"b"}, TypeError),
        ({"x-a": None}, TypeError),
        ({"x-a": [b"b"]}, TypeError),
        ({5: "b"}, TypeError),
        ({b"x-a": "b"}, TypeError),
    ],
)
def test_headers_that_cannot_be_sent(make: Make, recorder: Recorder, headers: Any, error: type[Exception]) -> None:
    client = make(recorder.server.url)
    with pytest.raises(error):
        client.echo(EchoRequest(), headers)
    with pytest.raises(error):
        client.call_count(CountRequest(), headers)
    with pytest.raises(error):
        make(recorder.server.url, extra_headers=headers)
    assert recorder.requests == []


def test_metadata_with_a_real_server(make: Make, gunicorn_gthread: Server) -> None:
    client = make(gunicorn_gthread.url)
    output = client.call_echo(EchoRequest(misdeed="metadata"), {"x-data-bin": ["AAE", "Ag"], "x-text": ["b"]})
    message = output.message()
    assert message is not None
    seen = {header.name: list(header.values) for header in message.headers}
    assert seen["x-data-bin"] == ["AAE", "Ag"]
    assert seen["x-text"] == ["b"]
    assert ", ".join(output.response_headers().getall("x-head")).replace(",", ", ").split() == ["1,", "2"] or (
        output.response_headers().getall("x-head") == ["1", "2"]
    )
    assert output.response_trailers().getall("x-tail") == ["3", "4"]
    streamed = client.call_count(CountRequest(up_to=1, misdeed="metadata"))
    assert streamed.headers.getall("x-head") == ["1", "2"]
    assert streamed.trailers.getall("x-tail") == ["3", "4"]
    error = client.call_echo(EchoRequest(misdeed="error with metadata")).error()
    assert error is not None
    assert error.response_headers()["x-head"] == "1"
    assert error.response_trailers()["x-tail"] == "2"
    assert error.details[0].message() == PingRequest(text="detail")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", ""),
        ("/", ""),
        ("///", ""),
        ("/api", "/api"),
        ("/api/", "/api"),
        ("/api/v1//", "/api/v1"),
        ("/a%20b/%C3%A4/", "/a%20b/%C3%A4"),
        ("/a+b;c=d,e", "/a+b;c=d,e"),
    ],
)
def test_base_url_with_a_path(make: Make, recorder: Recorder, path: str, sent: str) -> None:
    client = make(recorder.server.url + path)
    assert client.base_url == recorder.server.url + sent
    client.text()
    assert recorder.last.path == f"{sent}/integration.v1.ProbeService/Echo"
    client.count(CountRequest())
    assert recorder.last.path == f"{sent}/integration.v1.ProbeService/Count"


def test_base_url_with_a_name(make: Make, recorder: Recorder) -> None:
    url = recorder.server.url.replace(HOST, "LocalHost").replace("http", "HTTP")
    client = make(url)
    client.text()
    assert recorder.last.headers["host"].lower() == f"localhost:{recorder.server.port}"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:80", "//localhost", "ftp://localhost", "http://", "http:///x", "http://h?x=y", "http://h#x", "h"],
)
def test_base_urls_that_are_none(make: Make, url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        make(url)


def test_mounted_below_a_path(make: Make, gunicorn_gthread: Server) -> None:
    for path in ("/mounted", "/deep/er/", "/prefixed"):
        client = make(gunicorn_gthread.url + path)
        assert client.text() == "hi"
        assert client.numbers(2) == [1, 2]


# Misuse.


@pytest.mark.parametrize("wrong", [CountRequest(up_to=1), None, "text", b"bytes", {}, EchoRequest])
def test_requests_of_the_wrong_type(make: Make, recorder: Recorder, wrong: Any) -> None:
    client = make(recorder.server.url)
    with pytest.raises(TypeError):
        client.echo(wrong)
    with pytest.raises(TypeError):
        client.call_echo(wrong)
    assert recorder.requests == []
    if not isinstance(wrong, CountRequest):
        with pytest.raises(TypeError):
            client.call_count(wrong)
        with pytest.raises(TypeError):
            client.count(wrong)
    with pytest.raises(TypeError):
        client.sum([SumRequest(), wrong])
    with pytest.raises(TypeError):
        client.call_chat([wrong])
    assert client.text("x") == ""


@pytest.mark.parametrize("wrong", [5, None])
def test_streams_that_cannot_be_iterated(make: Make, recorder: Recorder, wrong: Any) -> None:
    client = make(recorder.server.url)
    with pytest.raises(TypeError):
        client.sum(wrong)
    with pytest.raises(TypeError):
        client.call_chat(wrong)
    assert client.text("x") == ""


def test_options_that_make_no_sense(make: Make) -> None:
    for options, error in (
        ({"no_such": 1}, TypeError),
        ({"http_client": object()}, TypeError),
        ({"codec": "xml"}, ValueError),
        ({"send_compression": "snappy"}, ValueError),
        ({"accept_compression": ["snappy"]}, ValueError),
        ({"protocol": "soap"}, ValueError),
    ):
        with pytest.raises(error):
            make("http://localhost", **options)


# What the caller's own iterators raise.


class Boom(Exception):  # noqa: N818
    pass


RAISED: dict[str, BaseException] = {
    "an exception": Boom("mine"),
    "ValueError": ValueError("mine"),
    "TimeoutError": TimeoutError("mine"),
    "OSError": OSError(errno.EIO, "mine"),
    "BrokenPipeError": BrokenPipeError(errno.EPIPE, "mine"),
    "ConnectionResetError": ConnectionResetError(errno.ECONNRESET, "mine"),
    "ConnectionError": ConnectionError("mine"),
    "EPROTOTYPE": OSError(errno.EPROTOTYPE, "mine"),
    "ConnectError": ConnectError(Code.ABORTED, "mine"),
    "KeyError": KeyError("mine"),
    "a library's": urllib3.exceptions.HTTPError("mine"),
}


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("raised", RAISED.values(), ids=RAISED.keys())
@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
def test_iterators_that_raise(make: Make, raised: BaseException, after: int, kind: str) -> None:
    ended: list[bool] = []

    def script(peer: Peer) -> None:
        while (request := peer.read_head()) is not None:
            if request.path.endswith("Echo"):
                peer.send(good_answer())
                continue
            while peer.read_chunk():
                pass
            ended.append(True)
            peer.send(stream(envelope(b""), END))

    def requests(message_type: type[Message]) -> Iterator[Message]:
        for _ in range(after):
            yield message_type()
        raise raised

    async def async_requests(message_type: type[Message]) -> AsyncIterator[Message]:
        for request in requests(message_type):
            yield request

    with RawServer(script) as server:
        client = make(server.url)
        if kind == "async iterator" and isinstance(client, SyncColour):
            pytest.skip("for async clients only")
        make_requests: Callable[[type[Message]], Any] = requests if kind == "iterator" else async_requests
        calls: list[tuple[Callable[[Any], Any], type[Message]]] = [
            *((call, SumRequest) for call in (client.sum, client.call_sum)),
            *((call, ChatRequest) for call in (client.chat, client.call_chat)),
        ]
        for call, message_type in calls:
            caught: BaseException | None = None
            try:
                outcome = call(make_requests(message_type))
            except type(raised) as error:
                caught = error
            else:
                # An RPC's own error may also be told as the outcome.
                assert isinstance(raised, ConnectError)
                caught = outcome.error if isinstance(outcome, Streamed) else outcome.error()
            assert caught is raised
        assert client.call_echo(EchoRequest()).error() is None
        assert ended == []  # no server took what came for all there was
        assert settles(lambda: server.open_connections <= 1)


def test_iterators_that_raise_while_the_answer_is_read(make: Make) -> None:
    """Full duplex: the answer runs already when the request fails."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(STREAM_HEAD + chunked(number(1), last=False))
        peer.wait_until_gone()

    boom = Boom("mine")

    def requests() -> Iterator[ChatRequest]:
        yield ChatRequest()
        raise boom

    async def async_requests() -> AsyncIterator[ChatRequest]:
        import asyncio

        yield ChatRequest()
        await asyncio.sleep(0.2)
        raise boom

    with RawServer(script) as server:
        client = make(server.url)
        with pytest.raises(Boom) as raised:
            client.call_chat(async_requests() if isinstance(client, AsyncColour) else requests())
        assert raised.value is boom
        assert settles(lambda: server.open_connections == 0)


def test_calls_from_within_a_request_iterator(make: Make, gunicorn_gthread: Server) -> None:
    with SyncColour(gunicorn_gthread.url) as inner:

        def requests() -> Iterator[SumRequest]:
            for index in (1, 2, 3):
                assert inner.text(str(index)) == str(index)
                assert inner.numbers(2) == [1, 2]
                assert inner.sum([SumRequest(number=index)]).sum == index
                yield SumRequest(number=index)

        client = make(gunicorn_gthread.url)
        if isinstance(client, SyncColour):
            inner = client
        assert client.sum(requests()).sum == 6
