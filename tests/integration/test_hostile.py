"""Malformed, hostile and borderline requests, said byte for byte to real servers, each with the answer it must get.

What an HTTP server answers by itself before the application is reached is not ours to judge: there it only has to
answer or close. In all cases it goes on serving afterwards, on the same connection too unless it has said otherwise,
and no answer tells anything about the inside.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
import re
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import brotli
import pytest
from backports import zstd
from google.protobuf import json_format

from integration_pb2 import CountRequest, EchoResponse, SumRequest, SumResponse
from rawhttp import PATIENCE, Answer, Connection, Malformed, chunked, decoded, envelope, envelopes
from service import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from servers import Server

    Expectation = Callable[[Answer | None], None]

KINDS = [
    "gunicorn-sync",
    "gunicorn-gthread",
    "granian",
    "wsgiref",
    "gunicorn-asgi",
    "granian-asgi",
    "uvicorn-httptools",
    "uvicorn-h11",
    "hypercorn",
]

PREFIX = "/integration.v1.ProbeService"
ECHO, LOOK, COUNT, SUM, CHAT, MISSING = (
    f"{PREFIX}/{name}" for name in ("Echo", "Look", "Count", "Sum", "Chat", "Missing")
)

JSON, PROTO = "application/json", "application/proto"
STREAM, STREAM_JSON = "application/connect+proto", "application/connect+json"

LIMIT = 4 * 1024 * 1024
"""The largest message that the service takes."""

HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}

LEAKS = re.compile(
    rb"Traceback|File \"|\w{3}\.py\b|site-packages|/usr/|/home/|\b[A-Z]\w*(Error|Exception|Warning)\b|"
    + SECRET.encode()
)
"""What no answer may hold."""


# Requests.


def request(
    path: str = ECHO,
    body: bytes = b'{"text":"hi"}',
    *,
    type: str | None = JSON,
    headers: Sequence[tuple[str, str] | bytes] = (),
    method: str = "POST",
    version: str = "HTTP/1.1",
    length: str | None = "",
) -> bytes:
    """A request. Without a ``length`` of its own it tells the right one; with None, none."""
    lines = [f"{method} {path} {version}".encode("latin-1"), b"Host: localhost"]
    if type is not None:
        lines.append(b"Content-Type: " + type.encode("latin-1"))
    if length is not None:
        lines.append(b"Content-Length: " + (length or str(len(body))).encode("latin-1"))
    lines.extend(
        header if isinstance(header, bytes) else f"{header[0]}: {header[1]}".encode("latin-1") for header in headers
    )
    return b"\r\n".join([*lines, b"", b""]) + body


def by_chunks(body: bytes, *, path: str = ECHO, type: str = JSON, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A request with the chunked transfer coding; ``body`` is as it goes over the wire."""
    return request(path, body, type=type, headers=[("Transfer-Encoding", "chunked"), *headers], length=None)


GOOD_TEXT = "still here"
GOOD = request(body=json.dumps({"text": GOOD_TEXT}).encode())


# Expectations.


def message_of(answer: Answer) -> EchoResponse:
    body = answer.plain_body()
    if answer.headers["content-type"] == PROTO:
        return EchoResponse.FromString(body)
    assert answer.headers["content-type"] == JSON
    return json_format.Parse(body.decode(), EchoResponse())


def echoed(text: str | None = "hi", *, encoding: str | None = None, **fields: object) -> Expectation:
    """The call went well and gave back what was sent."""

    def expectation(answer: Answer | None) -> None:
        assert answer is not None
        assert answer.status == 200, answer
        sent = message_of(answer).request
        if text is not None:
            assert sent.text == text
        for name, value in fields.items():
            assert getattr(sent, name) == value
        if encoding is not None:
            assert answer.headers.get("content-encoding", "identity") in encoding.split("|")

    return expectation


def failed(*codes: str, message: str = "", **headers: str) -> Expectation:
    """The call failed with one of these codes: Connect's error, and nothing else."""

    def expectation(answer: Answer | None) -> None:
        assert answer is not None
        assert answer.headers.get("content-type") == JSON, answer
        wire = json.loads(answer.plain_body())
        assert wire["code"] in codes, answer
        assert answer.status == HTTP_STATUS[wire["code"]]
        assert wire.keys() <= {"code", "message", "details"}
        assert message in wire.get("message", "")
        for name, value in headers.items():
            assert answer.headers[name.replace("_", "-")] == value

    return expectation


def plain(status: int, **headers: str) -> Expectation:
    """Not an RPC: an answer of HTTP's."""

    def expectation(answer: Answer | None) -> None:
        assert answer is not None
        assert answer.status == status, answer
        for name, value in headers.items():
            assert value in answer.headers.get(name.replace("_", "-"), ""), answer

    return expectation


def stream_of(answer: Answer | None) -> tuple[list[bytes], dict[str, object]]:
    """The messages of a stream that is one, and what its end says."""
    assert answer is not None
    assert answer.status == 200, answer
    assert answer.headers["content-type"] in (STREAM, STREAM_JSON), answer
    assert "content-encoding" not in answer.headers
    encoding = answer.headers.get("connect-content-encoding", "identity")
    found = [
        (flags & ~1, decoded(encoding, payload) if flags & 1 else payload) for flags, payload in envelopes(answer.body)
    ]
    assert [flags for flags, _ in found] == [0] * (len(found) - 1) + [2], found
    wire = json.loads(found[-1][1])
    assert wire.keys() <= {"error", "metadata"}
    return [payload for _, payload in found[:-1]], wire


def streamed(messages: int) -> Expectation:
    """The stream went well and had so many messages."""

    def expectation(answer: Answer | None) -> None:
        payloads, wire = stream_of(answer)
        assert "error" not in wire, wire
        assert len(payloads) == messages

    return expectation


def summed(total: int, messages: int) -> Expectation:
    def expectation(answer: Answer | None) -> None:
        payloads, wire = stream_of(answer)
        assert "error" not in wire, wire
        assert answer is not None
        (payload,) = payloads
        if answer.headers["content-type"] == STREAM:
            response = SumResponse.FromString(payload)
        else:
            response = json_format.Parse(payload.decode(), SumResponse())
        assert (response.sum, response.messages) == (total, messages)

    return expectation


def ended(*codes: str, messages: int = 0, message: str = "") -> Expectation:
    """The stream ended with one of these errors after so many messages."""

    def expectation(answer: Answer | None) -> None:
        payloads, wire = stream_of(answer)
        error = wire.get("error")
        assert isinstance(error, dict), wire
        assert error["code"] in codes, wire
        assert message in error.get("message", "")
        assert len(payloads) == messages

    return expectation


def refused() -> Expectation:
    """The server itself answers that this is no HTTP, or just closes. The call is never made."""

    def expectation(answer: Answer | None) -> None:
        assert answer is None or answer.status >= 400, answer

    return expectation


def anything() -> Expectation:
    """The server itself decides what this is; any whole answer, or none."""

    def expectation(answer: Answer | None) -> None:
        pass

    return expectation


def either(*expectations: Expectation) -> Expectation:
    def expectation(answer: Answer | None) -> None:
        complaints = []
        for one in expectations:
            try:
                return one(answer)
            except (AssertionError, KeyError, ValueError, Malformed, json_format.Error) as complaint:
                complaints.append(complaint)
        raise AssertionError(f"{answer}: {complaints}")

    return expectation


class Case(NamedTuple):
    """One request, or something like it, and what must become of it."""

    name: str
    sent: bytes
    expected: Expectation
    chunked: bool = False
    """Whether the body is in chunks: wsgiref does not decode those, so there it is a 411."""
    ours: bool = True
    """Whether the application is reached, so that the connection must be good for more."""
    finish: bool = False
    """The client says that it has nothing more to send."""
    dribble: bool = False
    """Byte by byte."""
    bodiless: bool = False
    """The answer is one to a HEAD."""
    logs: bool = False
    """The log has what the answer hides."""
    within: float = 5.0
    """How long the answer may take, in seconds."""
    lax: str = ""
    """The server that gets this wrong by itself, and tells the application nothing of it: there anything goes."""


def header_cases() -> Iterator[Case]:
    # Connect-Timeout-Ms: a positive integer of at most 10 digits; 0 has passed; anything else is invalid_argument.
    for value in ("", "abc", "-1", "+1", "1.5", "1e3", "0x10", "1 0", "1,0", "12345678901", "99999999999999999999",
                  "00000000001", "1_0", "1ms", "inf", "NaN", "\u0661".encode().decode("latin-1"), "\xb2",
                  "\uff11\uff12".encode().decode("latin-1"), "5000, 5000", "5000;x", "9" * 4000, "--1", "\x0b1"):  # fmt: skip
        expected = failed("invalid_argument", message="connect-timeout-ms")
        if any(not " " <= char <= "~" for char in value):
            expected = either(expected, refused())
        control = value == "\x0b1"
        yield Case(
            f"timeout {value[:24]!r}",
            request(headers=[("Connect-Timeout-Ms", value)]),
            expected,
            ours=not control,
            lax="wsgiref" if control else "",
        )
    for value in ("30000", "9999999999", "0000030000", " 30000", "30000\t"):
        yield Case(f"timeout {value!r}", request(headers=[("Connect-Timeout-Ms", value)]), echoed())
    for value in ("0", "00", "0000000000"):
        yield Case(f"timeout {value!r}", request(headers=[("Connect-Timeout-Ms", value)]), failed("deadline_exceeded"))
    yield Case(
        "timeout 1 and a slow handler",
        request(body=b'{"delayMs": 50}', headers=[("Connect-Timeout-Ms", "1")]),
        failed("deadline_exceeded"),
    )
    yield Case(
        "timeout doubled",
        request(headers=[("Connect-Timeout-Ms", "30000"), ("Connect-Timeout-Ms", "30000")]),
        either(failed("invalid_argument"), echoed(), refused()),
    )
    yield Case(
        "timeout doubled, different",
        request(headers=[("Connect-Timeout-Ms", "30000"), ("connect-timeout-ms", "0")]),
        either(failed("invalid_argument"), refused()),
    )
    yield Case("timeout in odd case", request(headers=[("cOnNeCt-TiMeOuT-mS", "abc")]), failed("invalid_argument"))
    for value in ("abc", "", "12345678901"):
        yield Case(
            f"timeout {value!r} of a stream",
            request(COUNT, envelope(b"{}"), type=STREAM_JSON, headers=[("Connect-Timeout-Ms", value)]),
            ended("invalid_argument"),
        )
    yield Case(
        "timeout 0 of a stream",
        request(COUNT, envelope(b"{}"), type=STREAM_JSON, headers=[("Connect-Timeout-Ms", "0")]),
        ended("deadline_exceeded"),
    )
    yield Case(
        "timeout in a stream",
        request(
            COUNT,
            envelope(b'{"upTo": 1000, "delayMs": 50}'),
            type=STREAM_JSON,
            headers=[("Connect-Timeout-Ms", "20")],
        ),
        ended("deadline_exceeded", messages=1),
    )

    # Connect-Protocol-Version: not required; any other value than 1 is invalid_argument.
    for value in ("2", "0", "", "1.0", "01", "one", "1, 1", "1;", "1" * 5000, "\xb9"):
        expected = failed("invalid_argument", message="connect-protocol-version")
        if value == "\xb9":
            expected = either(expected, refused())
        yield Case(f"version {value[:24]!r}", request(headers=[("Connect-Protocol-Version", value)]), expected)
        if value in ("2", ""):
            yield Case(
                f"version {value!r} of a stream",
                request(SUM, envelope(b"{}"), type=STREAM_JSON, headers=[("Connect-Protocol-Version", value)]),
                ended("invalid_argument"),
            )
    for value in ("1", " 1", "1 ", "\t1"):
        yield Case(f"version {value!r}", request(headers=[("Connect-Protocol-Version", value)]), echoed())
    yield Case(
        "version doubled",
        request(headers=[("Connect-Protocol-Version", "1"), ("Connect-Protocol-Version", "1")]),
        either(failed("invalid_argument"), echoed(), refused()),
    )
    yield Case(
        "version doubled, different",
        request(headers=[("Connect-Protocol-Version", "2"), ("Connect-Protocol-Version", "2")]),
        either(failed("invalid_argument"), refused()),
    )
    yield Case("version in odd case", request(headers=[("CONNECT-protocol-VERSION", "2")]), failed("invalid_argument"))
    yield Case("version required, missing", request("/strict" + ECHO), failed("invalid_argument"))
    yield Case(
        "version required, there",
        request("/strict" + ECHO, headers=[("Connect-Protocol-Version", "1")]),
        echoed(),
    )
    yield Case(
        "version required, missing in a stream",
        request("/strict" + SUM, envelope(b"{}"), type=STREAM_JSON),
        ended("invalid_argument"),
    )

    # Content-Type: the media type in any case, its parameters ignored; one that is not known is 415 with Accept-Post.
    for value in (JSON, "APPLICATION/JSON", "Application/Json", "application/json; charset=utf-8",
                  "application/json;charset=utf-8", "application/json ; a=b;c=d", 'application/json; x="a;b\\"c"',
                  "application/json;", "application/json;;;", "application/json; charset=latin-1", " application/json ",
                  "application/json; " + "x" * 4000):  # fmt: skip
        yield Case(f"content-type {value[:40]!r}", request(type=value), echoed())
    for value in (PROTO, "application/PROTO", "application/proto;v=1"):
        yield Case(f"content-type {value!r}", request(type=value, body=b"\n\2hi"), echoed())
    for value in ("", "text/plain", "application/x-protobuf", "application/protobuf", "application/", "application",
                  "proto", "json", "/", ";", "; application/json", "application/jsonx", "application/json/proto",
                  "application/json, application/json", "application/proto,application/json", "application json",
                  STREAM, STREAM_JSON, "application/connect+", "application/connect+json; charset=utf-8",
                  "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "*/*", "application/*",
                  "application/grpc-web-text", "application/grpc-web-text+proto", "\xe4/\xf6", "x" * 5000):  # fmt: skip
        expected = plain(415, accept_post=JSON)
        if "\xe4" in value:
            expected = either(expected, refused())
        yield Case(f"content-type {value[:40]!r}", request(type=value), expected)
    yield Case("content-type missing", request(type=None), plain(415, accept_post=PROTO))
    yield Case(
        "content-type doubled",
        request(headers=[("Content-Type", PROTO)]),
        either(plain(415, accept_post=JSON), failed("invalid_argument"), echoed(), refused()),
    )
    for value in (JSON, PROTO, "", "text/plain", "application/connect", "application/connect+xml", "application/grpc-web-text"):  # fmt: skip
        for path in (COUNT, SUM, CHAT):
            yield Case(
                f"content-type {value!r} of {path.rpartition('/')[2]}",
                request(path, envelope(b"{}"), type=value),
                plain(415, accept_post=STREAM),
            )
    yield Case("content-type missing of a stream", request(SUM, type=None), plain(415, accept_post=STREAM_JSON))
    for value in ("Application/Connect+JSON", "application/connect+json; charset=utf-8"):
        yield Case(f"content-type {value!r} of a stream", request(SUM, envelope(b"{}"), type=value), summed(0, 1))
    yield Case("codec proto, body JSON", request(type=PROTO), failed("invalid_argument"))
    yield Case("codec JSON, body proto", request(body=b"\n\2hi"), failed("invalid_argument"))
    yield Case(
        "codec of a stream proto, body JSON", request(SUM, envelope(b"{}"), type=STREAM), ended("invalid_argument")
    )
    yield Case(
        "codec of a stream JSON, body proto",
        request(SUM, envelope(b"\n\2hi"), type=STREAM_JSON),
        ended("invalid_argument"),
    )

    # What other software sends along means nothing.
    for known in (("Accept", "text/html"), ("Origin", "https://elsewhere.example"), ("Cookie", "a=b; c"), ("Range", "bytes=0-1"),
                 ("If-None-Match", "*"), ("TE", "trailers, deflate;q=0.5"), ("Connection", "connect-timeout-ms"),
                 ("X-Forwarded-Prefix", "/api"), ("X-HTTP-Method-Override", "DELETE"), ("Trailer", "x-checksum"),
                 ("Authorization", "Basic !!!"), ("X-Script-Name", "/api"), ("Accept-Charset", "utf-7"),
                 ("Grpc-Timeout", "0n"), ("Grpc-Encoding", "snappy"), ("Trailer-X", "y"), ("Max-Forwards", "0")):  # fmt: skip
        yield Case(f"header {known[0]}", request(headers=[known]), echoed())

    # Names may come in any number and shape.
    yield Case("many headers", request(headers=[(f"x-{number}", "y") for number in range(90)]), echoed())
    yield Case("too many headers", request(headers=[(f"x-{n}", "y") for n in range(3000)]), anything(), ours=False)
    yield Case("a header of 100 kB", request(headers=[("x-long", "y" * 100_000)]), anything(), ours=False)
    yield Case("a header that is not ASCII", request(headers=[("x-odd", "\xe4\xff\x80")]), either(echoed(), refused()))
    yield Case("a name with an underscore", request(headers=[("connect_timeout_ms", "x")]),
               either(echoed(), failed("invalid_argument"), refused()))  # fmt: skip
    for value in ("", "!!!", "AAA", "AAAA,,BBBB", ",", "=" * 100, "AA==, AA==", "\xff"):
        expected = either(echoed(), refused()) if value == "\xff" else echoed()
        yield Case(f"a binary header {value[:12]!r}", request(headers=[("x-data-bin", value)]), expected)
    for value in ("", "x" * 3000, "a\tb"):
        yield Case(f"user-agent {value[:10]!r}", request(headers=[("User-Agent", value)]), echoed())
    for line in (b"x-nul: a\0b", b"x-cr: a\rb", b"x space: y", b": no name", b"no colon", b"x-folded: a\r\n b",
                 b" starts-with: space", b"x\xff: y", b"x(y): z", b"x-lf: a\nx-smuggled: b"):  # fmt: skip
        yield Case(f"header line {line!r}", request(headers=[line]), anything(), ours=False)


def compression_cases() -> Iterator[Case]:
    hi = b'{"text":"hi"}'
    packed = {"gzip": gzip.compress(hi), "br": brotli.compress(hi), "zstd": zstd.compress(hi)}
    for name, body in packed.items():
        for value in (name, name.upper(), name.title(), f" {name} "):
            yield Case(
                f"content-encoding {value!r}", request(body=body, headers=[("Content-Encoding", value)]), echoed()
            )
            yield Case(
                f"connect-content-encoding {value!r}",
                request(SUM, envelope(packed_number(name), 1), type=STREAM_JSON,
                        headers=[("Connect-Content-Encoding", value)]),
                summed(5, 1),
            )  # fmt: skip
        yield Case(
            f"content-encoding {name}, body empty",
            request(body=b"", type=PROTO, headers=[("Content-Encoding", name)]),
            echoed(""),
        )
        yield Case(f"content-encoding {name}, body plain", request(headers=[("Content-Encoding", name)]),
                   failed("invalid_argument"))  # fmt: skip
        for other in packed.keys() - {name}:
            yield Case(
                f"content-encoding {name}, body {other}",
                request(body=packed[other], headers=[("Content-Encoding", name)]),
                failed("invalid_argument"),
            )
        yield Case(
            f"content-encoding {name} twice",
            request(body=compress(name, body), headers=[("Content-Encoding", name)]),
            failed("invalid_argument"),
        )
        yield Case(
            f"connect-content-encoding {name} of a unary call is nothing to it",
            request(headers=[("Connect-Content-Encoding", name)]),
            echoed(),
        )
        yield Case(
            f"{name}, a message that is not marked",
            request(SUM, envelope(b'{"number":5}') + envelope(packed_number(name), 1), type=STREAM_JSON,
                    headers=[("Connect-Content-Encoding", name)]),
            summed(10, 2),
        )  # fmt: skip
        yield Case(
            f"{name}, an empty message that is marked",
            request(SUM, envelope(b"", 1), type=STREAM, headers=[("Connect-Content-Encoding", name)]),
            summed(0, 1),
        )
        yield Case(
            f"{name}, a plain message that is marked",
            request(SUM, envelope(b'{"number":5}', 1), type=STREAM_JSON, headers=[("Connect-Content-Encoding", name)]),
            ended("invalid_argument"),
        )
    for value in ("identity", "IDENTITY"):
        yield Case(f"content-encoding {value!r}", request(headers=[("Content-Encoding", value)]), echoed())
        yield Case(
            f"connect-content-encoding {value!r}",
            request(SUM, envelope(b"{}"), type=STREAM_JSON, headers=[("Connect-Content-Encoding", value)]),
            summed(0, 1),
        )
    for value in (
        "snappy",
        "gzip, br",
        "gzip,identity",
        "identity, gzip",
        "gzip;q=1",
        "*",
        "g zip",
        "\x7f",
        "x" * 3000,
    ):
        # An unknown encoding is unimplemented, and the message lists what there is.
        expected = failed("unimplemented", message="gzip")
        stream_expected = ended("unimplemented", message="gzip")
        if value == "\x7f":
            expected, stream_expected = either(expected, refused()), either(stream_expected, refused())
        yield Case(f"content-encoding {value[:20]!r}", request(headers=[("Content-Encoding", value)]), expected)
        yield Case(
            f"connect-content-encoding {value[:20]!r}",
            request(SUM, envelope(b"{}"), type=STREAM_JSON, headers=[("Connect-Content-Encoding", value)]),
            stream_expected,
        )
    for value in ("", "x-gzip"):
        yield Case(
            f"content-encoding {value!r}",
            request(headers=[("Content-Encoding", value)]),
            either(echoed(), failed("unimplemented", "invalid_argument")),
        )
    yield Case(
        "content-encoding doubled",
        request(headers=[("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")], body=packed["gzip"]),
        either(echoed(), failed("unimplemented"), refused()),
    )
    yield Case(
        "content-encoding of a whole stream",
        request(SUM, gzip.compress(envelope(b"{}")), type=STREAM_JSON, headers=[("Content-Encoding", "gzip")]),
        ended("unimplemented", "invalid_argument", "resource_exhausted", "internal"),
    )

    # Accept-Encoding: by q, then in the list's order; 0 excludes; identity is always acceptable last.
    big = json.dumps({"text": "y" * 2000}).encode()
    for accepted, encoding in (
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip, br", "gzip"),
        ("br,gzip", "br"),
        ("gzip;q=0.5, br;q=0.8", "br"),
        ("gzip; q=0.5 ,\tbr ; q = 0.8", "gzip|br"),
        ("gzip;Q=0.5,br;Q=0.8", "br"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0, br", "br"),
        ("gzip;q=0.000,zstd;q=0.001", "zstd"),
        ("gzip;q=0,br;q=0,zstd;q=0,identity;q=0", "identity"),
        ("*;q=0", "identity"),
        ("identity;q=0", "identity"),
        ("identity;q=0, gzip", "gzip"),
        ("identity", "identity"),
        ("*", "identity|gzip|br|zstd"),
        ("br;q=0, *", "identity|gzip|zstd"),
        ("deflate", "identity"),
        ("deflate, gzip", "gzip"),
        ("snappy;q=1, gzip;q=0.1", "gzip"),
        (",,,", "identity"),
        (";q=1", "identity"),
        ("gzip;q=abc", "identity|gzip"),
        ("gzip;q=nan", "identity|gzip"),
        ("gzip;q=inf", "identity|gzip"),
        ("gzip;q=-1", "identity|gzip"),
        ("gzip;q=1e999", "identity|gzip"),
        ("gzip;q=", "identity|gzip"),
        ("gzip;q", "identity|gzip"),
        ("gzip;level=9", "identity|gzip"),
        ("gzip;q=1;q=0", "identity|gzip"),
        ("gz ip", "identity"),
        ("!!garbage??==;;;,,q=1;*", "identity"),
        ("gzip," * 1000, "gzip"),
        (",".join(f"x{number}" for number in range(1000)), "identity"),
    ):
        headers = [] if accepted is None else [("Accept-Encoding", accepted)]
        title = "nothing" if accepted is None else repr(accepted[:40])
        yield Case(
            f"accept-encoding {title}", request(body=big, headers=headers), echoed("y" * 2000, encoding=encoding)
        )
        if accepted is not None:
            yield Case(
                f"connect-accept-encoding {title}",
                request(COUNT, envelope(b'{"upTo": 2, "padding": 3000}'), type=STREAM_JSON,
                        headers=[("Connect-Accept-Encoding", accepted)]),
                either(*(streamed_in(one, 2) for one in encoding.split("|"))),
            )  # fmt: skip
    yield Case(
        "accept-encoding doubled",
        request(body=big, headers=[("Accept-Encoding", "snappy"), ("accept-encoding", "gzip")]),
        echoed("y" * 2000, encoding="gzip"),
    )
    yield Case(
        "connect-accept-encoding doubled",
        request(COUNT, envelope(b'{"upTo": 2, "padding": 3000}'), type=STREAM_JSON,
                headers=[("Connect-Accept-Encoding", "snappy"), ("Connect-Accept-Encoding", "gzip")]),
        streamed_in("gzip", 2),
    )  # fmt: skip
    yield Case(
        "content-encoding gzip, JSON, body empty",
        request(body=b"", headers=[("Content-Encoding", "gzip")]),
        failed("invalid_argument"),
    )
    for name, body in packed.items():
        yield Case(
            f"content-encoding {name}, in chunks",
            by_chunks(chunked(body[:7], body[7:]), headers=[("Content-Encoding", name)]),
            echoed(),
            chunked=True,
        )
    yield Case(
        "accept-encoding omitted: what was sent is accepted",
        request(body=gzip.compress(big), headers=[("Content-Encoding", "gzip")]),
        echoed("y" * 2000, encoding="gzip"),
    )
    yield Case(
        "accept-encoding of an error",
        request(body=b'{"misdeed": "big error"}', headers=[("Accept-Encoding", "gzip")]),
        failed("aborted"),  # compressed or not
    )
    yield Case("an error without", request(body=b'{"misdeed": "big error"}'), failed("aborted"))

    # Damaged.
    text = b'{"text":"' + os.urandom(500).hex().encode() + b'"}'
    for name in ("gzip", "br", "zstd"):
        whole = compress(name, text)
        for title, body in (
            ("its first byte", whole[:1]),
            ("half of it", whole[: len(whole) // 2]),
            ("all but the last byte", whole[:-1]),
            ("garbage", b"\x55" * 100),
            ("garbage after its start", whole[:20] + bytes(100)),
        ):
            yield Case(
                f"{name}: {title}",
                request(body=body, headers=[("Content-Encoding", name)]),
                failed("invalid_argument"),
            )
            yield Case(
                f"{name}: {title} in a stream",
                request(SUM, envelope(body, 1), type=STREAM_JSON, headers=[("Connect-Content-Encoding", name)]),
                ended("invalid_argument"),
            )
        yield Case(
            f"{name}: garbage after its end",
            request(body=whole + b"garbage", headers=[("Content-Encoding", name)]),
            failed("invalid_argument"),
        )
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0x55
        yield Case(
            f"{name}: a byte changed",
            request(body=bytes(flipped), headers=[("Content-Encoding", name)]),
            # Only gzip always has a checksum: what else comes out may even be JSON.
            failed("invalid_argument") if name == "gzip" else either(failed("invalid_argument"), echoed(None)),
        )
        for size, expected in (
            (LIMIT, echoed(None)),
            (LIMIT + 1, failed("resource_exhausted")),
            (10_000_000, failed("resource_exhausted")),
        ):
            yield Case(
                f"{name}: {size} bytes of zeros",
                request(type=PROTO, body=compress(name, exact_message(size)), headers=[("Content-Encoding", name)]),
                expected,
            )
        yield Case(
            f"{name}: a bomb in a stream",
            request(SUM, envelope(compress(name, bytes(10_000_000)), 1), type=STREAM,
                    headers=[("Connect-Content-Encoding", name)]),
            ended("resource_exhausted"),
        )  # fmt: skip
        yield Case(
            f"{name}: a bomb after a good message",
            request(CHAT, envelope(b"") + envelope(compress(name, bytes(10_000_000)), 1), type=STREAM,
                    headers=[("Connect-Content-Encoding", name)]),
            ended("resource_exhausted", messages=1),
        )  # fmt: skip
        yield Case(
            f"{name}: a bomb for a method of one message",
            request(COUNT, envelope(compress(name, bytes(10_000_000)), 1), type=STREAM,
                    headers=[("Connect-Content-Encoding", name)]),
            ended("resource_exhausted"),
        )  # fmt: skip
    wrong_sum = bytearray(packed["gzip"])
    wrong_sum[-6] ^= 1
    yield Case(
        "gzip: a wrong checksum",
        request(body=bytes(wrong_sum), headers=[("Content-Encoding", "gzip")]),
        failed("invalid_argument"),
    )
    wrong_size = bytearray(packed["gzip"])
    wrong_size[-1] ^= 1
    yield Case(
        "gzip: a wrong size",
        request(body=bytes(wrong_size), headers=[("Content-Encoding", "gzip")]),
        failed("invalid_argument"),
    )
    yield Case(
        "gzip: deflate instead",
        request(body=zlib.compress(hi), headers=[("Content-Encoding", "gzip")]),
        failed("invalid_argument"),
    )
    for name, parts in (
        ("gzip", [gzip.compress(b'{"text"'), gzip.compress(b""), gzip.compress(b':"hi"}')]),
        ("zstd", [zstd.compress(b'{"text"'), zstd.compress(b""), zstd.compress(b':"hi"}')]),
    ):
        yield Case(
            f"{name}: several parts", request(body=b"".join(parts), headers=[("Content-Encoding", name)]), echoed()
        )
        # The smallest part there is, as often as the limit lets through.
        many = compress(name, b"") * ((LIMIT - 10) // len(compress(name, b"")))
        yield Case(
            f"{name}: hundreds of thousands of empty parts",
            request(type=PROTO, body=many, headers=[("Content-Encoding", name)]),
            either(echoed(""), failed("invalid_argument", "resource_exhausted")),
            within=5.0,
        )
        small = b"".join(compress(name, hi) for _ in range(2))
        yield Case(
            f"{name}: two parts that make no message together",
            request(body=small, headers=[("Content-Encoding", name)]),
            failed("invalid_argument"),
        )
        half = compress(name, exact_message(3_000_000))
        yield Case(
            f"{name}: two parts that are too much together",
            request(type=PROTO, body=half * 2, headers=[("Content-Encoding", name)]),
            failed("resource_exhausted"),
        )
    yield Case(
        "zstd: a frame that can be skipped",
        request(body=struct.pack("<II", 0x184D2A50, 4) + b"skip" + packed["zstd"], headers=[("Content-Encoding", "zstd")]),
        either(echoed(), failed("invalid_argument")),
    )  # fmt: skip
    huge_window = zstd.compress(hi, options={zstd.CompressionParameter.window_log: 27})
    yield Case(
        "zstd: a window of 128 MiB",
        # No content size, no single segment: the window byte says 2^27.
        request(body=b"\x28\xb5\x2f\xfd\x00" + bytes([17 << 3]) + b"\x01\x00\x00", type=PROTO,
                headers=[("Content-Encoding", "zstd")]),
        failed("invalid_argument", "resource_exhausted"),
    )  # fmt: skip
    yield Case(
        "zstd: a level with a large window, little in it",
        request(body=huge_window, headers=[("Content-Encoding", "zstd")]),
        either(echoed(), failed("invalid_argument")),
    )
    yield Case(
        "zstd: announces 2^40 bytes",
        request(body=b"\x28\xb5\x2f\xfd\xc0\x48" + (2**40).to_bytes(8, "little") + b"\x01\x00\x00",
                headers=[("Content-Encoding", "zstd")]),
        failed("invalid_argument", "resource_exhausted"),
    )  # fmt: skip
    yield Case(
        "zstd: wants a dictionary",
        request(body=b"\x28\xb5\x2f\xfd\x21\x05\x0d" + b"\x69\x00\x00" + hi, headers=[("Content-Encoding", "zstd")]),
        failed("invalid_argument"),
    )


def packed_number(name: str) -> bytes:
    return compress(name, b'{"number":5}')


def compress(name: str, data: bytes) -> bytes:
    if name == "gzip":
        return gzip.compress(data, mtime=0)
    if name == "br":
        packed: bytes = brotli.compress(data, quality=5)
        return packed
    return zstd.compress(data)


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def exact_message(size: int) -> bytes:
    """An EchoRequest of exactly ``size`` bytes, all but a few of them zeros."""
    length = size - 1 - len(varint(size))
    message = b"\x12" + varint(length) + bytes(length)
    assert len(message) == size
    return message


def streamed_in(encoding: str, messages: int) -> Expectation:
    def expectation(answer: Answer | None) -> None:
        payloads, wire = stream_of(answer)
        assert answer is not None
        assert "error" not in wire
        assert len(payloads) == messages
        assert answer.headers.get("connect-content-encoding", "identity") == encoding

    return expectation


def body_cases() -> Iterator[Case]:
    # Protobuf's binary encoding.
    deep = b""
    for _ in range(60):
        deep = b"\x32" + varint(len(deep)) + deep
    deeper = b""
    for _ in range(5000):
        deeper = b"\x32" + varint(len(deeper)) + deeper
    for title, body, expected in (
        ("empty", b"", echoed("")),
        ("unknown fields", b"\xf8\x07\x01\n\x02hi\xfa\x07\x03abc", echoed()),
        ("an unknown group", b"\n\x02hi\xfb\x07\x08\x01\xfc\x07", echoed()),
        ("a field of another wire type", b"\x08\x05\x12\x00", echoed("")),
        ("nested", deep, echoed("")),
        ("nested too deep", deeper, failed("invalid_argument")),
        ("an enum that is not known", b"\x28\x63", echoed("", mood=99)),
        ("a field twice: the last counts", b"\n\x02ho\n\x02hi", echoed()),
        ("garbage", bytes(range(256)), failed("invalid_argument")),
        ("all ones", b"\xff" * 1000, failed("invalid_argument")),
        ("zeros", bytes(1000), failed("invalid_argument")),
        ("a tag cut off", b"\n\x02hi\xf8", failed("invalid_argument")),
        ("a length cut off", b"\n", failed("invalid_argument")),
        ("a text cut off", b"\n\x10hi", failed("invalid_argument")),
        ("a length beyond all bounds", b"\n\xff\xff\xff\xff\x0f", failed("invalid_argument")),
        ("a length of 2^63", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", failed("invalid_argument")),
        ("a varint of 11 bytes", b"\x18" + b"\xff" * 10 + b"\x01", failed("invalid_argument")),
        ("field number 0", b"\x02\x02hi", failed("invalid_argument")),
        ("the end of a group that was not begun", b"\x0c", failed("invalid_argument")),
        ("a group without its end", b"\xfb\x07\x08\x01", failed("invalid_argument")),
        ("a wire type that does not exist", b"\x0f", failed("invalid_argument")),
        ("text that is not UTF-8", b"\n\x02\xff\xfe", failed("invalid_argument")),
        ("a surrogate in UTF-8", b"\n\x03\xed\xa0\x80", failed("invalid_argument")),
        ("an overlong NUL", b"\n\x02\xc0\x80", failed("invalid_argument")),
        ("a NUL", b"\n\x01\0", echoed("\0")),
        ("half a million empty fields", b"\n\0" * 500_000, echoed("")),
        ("a limit to the byte", exact_message(LIMIT), echoed(None)),
        ("a byte beyond the limit", exact_message(LIMIT + 1), failed("resource_exhausted")),
        ("8 MiB", bytes(8 * 1024 * 1024), failed("resource_exhausted")),
    ):
        yield Case(f"proto: {title}", request(type=PROTO, body=body), expected)

    # JSON. What is lenient here is protobuf's own parser.
    lenient = either(failed("invalid_argument"), echoed(None))
    for title, text, expected in (
        ("an empty object", "{}", echoed("")),
        ("spaces", '  \t\r\n{ "text" : "hi" }\n\n', echoed()),
        ("unknown fields are ignored", '{"text":"hi","nope":{"a":[1,{"b":null}]}}', echoed()),
        ("names as the proto has them", '{"text":"hi","delay_ms":0}', echoed()),
        ("null is nothing", '{"text":"hi","number":null,"child":null}', echoed()),
        ("an integer as text", '{"text":"hi","number":"-9223372036854775808"}', echoed(number=-(2**63))),
        ("an integer with a fraction of 0", '{"text":"hi","number":5.0}', echoed(number=5)),
        ("an integer with an exponent", '{"text":"hi","number":1e3}', echoed(number=1000)),
        ("not a number, as text", '{"text":"hi","ratio":"NaN"}', echoed()),
        ("infinity, as text", '{"text":"hi","ratio":"-Infinity"}', echoed(ratio=float("-inf"))),
        ("an enum by name", '{"text":"hi","mood":"MOOD_GOOD"}', echoed(mood=1)),
        ("an enum by number", '{"text":"hi","mood":7}', echoed(mood=7)),
        ("bytes", '{"text":"hi","data":"AAEC"}', echoed(data=b"\0\1\2")),
        ("bytes, safe for URLs, without padding", '{"text":"hi","data":"-_8"}', echoed(data=b"\xfb\xff")),
        ("escapes", r'{"text":"\u0068\u0069\ud83d\ude00\/\n"}', echoed("hi\U0001f600/\n")),
        ("a NUL, escaped", r'{"text":"\u0000"}', echoed("\0")),
        ("an Any", '{"text":"hi","any":{"@type":"type.googleapis.com/integration.v1.PingRequest","text":"x"}}', echoed()),
        ("a Struct", '{"text":"hi","struct":{"a":[1,"b",null,{"c":true}]}}', echoed()),
        ("a time", '{"text":"hi","when":"2024-02-29T23:59:59.999999999Z"}', echoed()),
        ("empty", "", failed("invalid_argument")),
        ("only spaces", "   ", failed("invalid_argument")),
        ("null", "null", either(failed("invalid_argument"), echoed(""))),
        ("an array", "[]", failed("invalid_argument")),
        ("an array of a message", '[{"text":"hi"}]', failed("invalid_argument")),
        ("a number", "5", failed("invalid_argument")),
        ("a text", '"hi"', failed("invalid_argument")),
        ("true", "true", failed("invalid_argument")),
        ("cut off", '{"text":"hi"', failed("invalid_argument")),
        ("cut off in a text", '{"text":"h', failed("invalid_argument")),
        ("more after it", '{"text":"hi"} x', failed("invalid_argument")),
        ("two of them", '{"text":"hi"}{"text":"hi"}', failed("invalid_argument")),
        ("a comma too many", '{"text":"hi",}', failed("invalid_argument")),
        ("single quotes", "{'text':'hi'}", failed("invalid_argument")),
        ("no quotes", "{text:1}", failed("invalid_argument")),
        ("a comment", '{"text":"hi"/* */}', failed("invalid_argument")),
        ("a line break in a text", '{"text":"a\nb"}', failed("invalid_argument")),
        ("an escape that does not exist", r'{"text":"\x41"}', failed("invalid_argument")),
        ("the same field twice", '{"text":"hi","text":"ho"}', failed("invalid_argument")),
        ("the same field under both names", '{"delayMs":0,"delay_ms":0}', lenient),
        ("a number for a text", '{"text":5}', failed("invalid_argument")),
        ("a text for a message", '{"child":"x"}', lenient),
        ("an array for a message", '{"child":[]}', lenient),
        ("an array for a text", '{"text":["hi"]}', failed("invalid_argument")),
        ("a fraction for an integer", '{"number":1.5}', failed("invalid_argument")),
        ("an integer that is too large", '{"number":9223372036854775808}', failed("invalid_argument")),
        ("an integer of 400 digits", '{"number":' + "9" * 400 + "}", failed("invalid_argument")),
        ("an integer of 10,000 digits", '{"number":' + "9" * 10_000 + "}", failed("invalid_argument")),
        ("a million digits of an unknown field", '{"nope":' + "9" * 1_000_000 + "}",
         either(echoed(""), failed("invalid_argument"))),
        ("an exponent beyond all bounds", '{"number":1e999999999}', failed("invalid_argument")),
        ("a number beyond all bounds", '{"ratio":1e999}', failed("invalid_argument")),
        ("NaN", '{"ratio":NaN}', failed("invalid_argument")),
        ("Infinity", '{"ratio":Infinity}', failed("invalid_argument")),
        ("-Infinity for an integer", '{"number":-Infinity}', failed("invalid_argument")),
        ("a leading zero", '{"number":01}', failed("invalid_argument")),
        ("a plus", '{"number":+1}', failed("invalid_argument")),
        ("hexadecimal", '{"number":0x10}', failed("invalid_argument")),
        ("an integer as text that is none", '{"number":"abc"}', failed("invalid_argument")),
        ("an integer as text with spaces", '{"number":" 5"}', failed("invalid_argument")),
        ("an integer as text with an underscore", '{"number":"1_0"}', lenient),
        ("an integer in other digits", '{"number":"\u0661"}', either(failed("invalid_argument"), echoed(""))),
        ("a lone surrogate", r'{"text":"\ud800"}', failed("invalid_argument")),
        ("a lone low surrogate", r'{"text":"a\udc00b"}', failed("invalid_argument")),
        ("surrogates in the wrong order", r'{"text":"\udc00\ud800"}', failed("invalid_argument")),
        ("a lone surrogate in a key of a map", r'{"counts":{"\ud800":1}}', failed("invalid_argument")),
        ("a lone surrogate in a name", r'{"\ud800":1,"text":"hi"}', either(echoed(), failed("invalid_argument"))),
        ("a lone surrogate in a Struct", r'{"struct":{"a":"\ud800"}}', failed("invalid_argument")),
        ("a key of a map twice", '{"counts":{"a":1,"a":2}}', failed("invalid_argument")),
        ("null in a map", '{"counts":{"a":null}}', failed("invalid_argument")),
        ("an enum that is not known", '{"text":"hi","mood":"MOOD_BAD"}', either(echoed(), failed("invalid_argument"))),
        ("an enum that is an object", '{"mood":{}}', failed("invalid_argument")),
        ("bytes that are no base64", '{"data":"!!!"}', either(failed("invalid_argument"), echoed(""))),
        ("bytes that are not ASCII", '{"data":"\u00e4\u00f6"}', lenient),
        ("bytes of one character", '{"data":"A"}', failed("invalid_argument")),
        ("an Any of nothing known", '{"any":{"@type":"type.googleapis.com/no.Such"}}', failed("invalid_argument")),
        ("an Any without a type", '{"any":{"text":"x"}}', failed("invalid_argument")),
        ("an Any of a type that is no text", '{"any":{"@type":5}}', failed("invalid_argument")),
        ("a time that is none", '{"when":"yesterday"}', failed("invalid_argument")),
        ("a time that does not exist", '{"when":"2023-02-29T00:00:00Z"}', failed("invalid_argument")),
        ("a time before all time", '{"when":"0000-01-01T00:00:00Z"}', failed("invalid_argument")),
        ("a time that is a number", '{"when":5}', failed("invalid_argument")),
        ("a duration that is none", '{"duration":"1h"}', failed("invalid_argument")),
        ("a duration beyond all bounds", '{"duration":"1e99s"}', failed("invalid_argument")),
        ("a duration of 400 digits", '{"duration":"' + "9" * 400 + 's"}', failed("invalid_argument")),
        ("a duration that is an array", '{"duration":[]}', failed("invalid_argument")),
    ):  # fmt: skip
        yield Case(f"JSON: {title}", request(body=text.encode()), expected)
    for title, body, expected in (
        ("a byte order mark", b'\xef\xbb\xbf{"text":"hi"}', either(echoed(), failed("invalid_argument"))),
        ("UTF-16", '{"text":"hi"}'.encode("utf-16"), failed("invalid_argument")),
        ("UTF-32", '{"text":"hi"}'.encode("utf-32-le"), failed("invalid_argument")),
        ("not UTF-8", b'{"text":"\xff"}', failed("invalid_argument")),
        ("latin-1", '{"text":"\u00e4"}'.encode("latin-1"), failed("invalid_argument")),
        ("an overlong encoding", b'{"text":"\xc0\xaf"}', failed("invalid_argument")),
        ("a surrogate in UTF-8", b'{"text":"\xed\xa0\x80"}', failed("invalid_argument")),
        ("a NUL", b'{"text":"hi\0"}', failed("invalid_argument")),
        ("NULs", bytes(100), failed("invalid_argument")),
        ("arrays nested 100,000 deep", b"[" * 100_000, failed("invalid_argument")),
        ("arrays nested 100,000 deep in an unknown field", b'{"nope":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
         failed("invalid_argument")),
        ("objects nested 100,000 deep", b'{"child":' * 100_000 + b"{}" + b"}" * 100_000, failed("invalid_argument")),
        ("messages nested 90 deep", b'{"child":' * 90 + b"{}" + b"}" * 90, either(echoed(""), failed("invalid_argument"))),
        ("messages nested 200 deep", b'{"child":' * 200 + b"{}" + b"}" * 200, failed("invalid_argument")),
        ("a Struct nested 5,000 deep", b'{"struct":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, failed("invalid_argument")),
        ("an Any nested 5,000 deep",
         b'{"any":' + b'{"@type":"type.googleapis.com/google.protobuf.Any","value":' * 5000 + b"{}" + b"}" * 5001,
         failed("invalid_argument")),
        ("4 MiB of opening brackets", b"[" * LIMIT, failed("invalid_argument")),
        ("4 MiB of backslashes", b'{"text":"' + b"\\" * (LIMIT - 11) + b'"}', either(echoed(None), failed("invalid_argument"))),
        ("a byte beyond the limit", b'{"text":"' + b"x" * (LIMIT - 10) + b'"}', failed("resource_exhausted")),
    ):  # fmt: skip
        yield Case(f"JSON: {title}", request(body=body), expected)


def envelope_cases() -> Iterator[Case]:
    five = SumRequest(number=5).SerializeToString()
    three = CountRequest(up_to=3).SerializeToString()
    good = envelope(five)

    def sums(title: str, body: bytes, expected: Expectation) -> Iterator[Case]:
        yield Case(f"sum: {title}", request(SUM, body, type=STREAM), expected)
        yield Case(f"sum, in chunks: {title}", by_chunks(chunked(body) if body else chunked(), path=SUM, type=STREAM),
                   expected, chunked=True)  # fmt: skip

    yield from sums("no message", b"", summed(0, 0))
    yield from sums("one message", good, summed(5, 1))
    yield from sums("an empty message", envelope(b""), summed(0, 1))
    yield from sums("three messages", good * 3, summed(15, 3))
    yield from sums("ten thousand empty messages", envelope(b"") * 10_000, summed(0, 10_000))
    yield from sums("a header cut off", good + b"\0\0\0", ended("invalid_argument"))
    yield from sums("a header of one byte", b"\0", ended("invalid_argument"))
    yield from sums("nothing but a header", good + b"\0\0\0\0\5", ended("invalid_argument"))
    yield from sums("a payload cut off", (good * 2)[:-1], ended("invalid_argument"))
    yield from sums("a length beyond the limit", b"\0" + struct.pack(">I", LIMIT + 1), ended("resource_exhausted"))
    yield from sums("a length of 4 GiB", b"\0\xff\xff\xff\xff" + five, ended("resource_exhausted"))
    yield from sums("a length of 2 GiB", b"\0\x80\0\0\0" + five, ended("resource_exhausted"))
    yield from sums("a length that would be negative", b"\0\xff\xff\xff\xfe", ended("resource_exhausted"))
    yield from sums(
        "flags of a compressed end", envelope(gzip.compress(b"{}"), 3), ended("invalid_argument", "internal")
    )
    yield from sums("the end of a stream after nothing", envelope(b"", 2), ended("invalid_argument", "internal"))
    yield from sums("4 GiB after a good message", good + b"\0\xff\xff\xff\xff", ended("resource_exhausted"))
    yield from sums("a message beyond the limit, all of it", envelope(bytes(LIMIT + 1)), ended("resource_exhausted"))
    yield from sums("20 MiB", envelope(bytes(20 * 1024 * 1024)), ended("resource_exhausted"))
    yield from sums("garbage", envelope(b"\xff" * 20), ended("invalid_argument"))
    yield from sums("garbage after a good message", good + envelope(b"\xff" * 20), ended("invalid_argument"))
    yield from sums(
        "text instead of envelopes", b"POST / HTTP/1.1\r\n\r\n", ended("resource_exhausted", "invalid_argument")
    )
    yield from sums("zeros", bytes(1000), summed(0, 200))
    for flags in (0x04, 0x08, 0x10, 0x40, 0x80, 0xFE, 0xFC):
        yield from sums(f"unknown flags {flags:#04x}", envelope(five, flags), ended("invalid_argument", "internal"))
    yield from sums("a client that ends the stream", good + envelope(b"{}", 2), ended("invalid_argument", "internal"))
    yield from sums("all flags", envelope(five, 0xFF), ended("invalid_argument", "internal"))
    yield from sums("compressed, but nothing was declared", envelope(gzip.compress(five), 1), ended("internal"))
    yield from sums("empty and compressed, but nothing was declared", envelope(b"", 1),
                    either(ended("internal"), summed(0, 1)))  # fmt: skip
    yield Case(
        "sum: compressed, but identity was declared",
        request(SUM, envelope(five, 1), type=STREAM, headers=[("Connect-Content-Encoding", "identity")]),
        ended("internal"),
    )

    def counts(title: str, body: bytes, expected: Expectation) -> Iterator[Case]:
        yield Case(f"count: {title}", request(COUNT, body, type=STREAM), expected)
        yield Case(f"count, in chunks: {title}", by_chunks(chunked(body) if body else chunked(), path=COUNT, type=STREAM),
                   expected, chunked=True)  # fmt: skip

    # Exactly one request message: none and two are unimplemented.
    yield from counts("one message", envelope(three), streamed(3))
    yield from counts("an empty message", envelope(b""), streamed(0))
    yield from counts("no message", b"", ended("unimplemented"))
    yield from counts("two messages", envelope(three) * 2, ended("unimplemented"))
    yield from counts("a hundred thousand messages", envelope(b"") * 100_000, ended("unimplemented"))
    yield from counts("a bare message", three, ended("invalid_argument", "resource_exhausted"))
    yield from counts("one and a half", envelope(three) + b"\0\0", ended("invalid_argument", "unimplemented"))
    yield from counts("half a message", envelope(three)[:-1], ended("invalid_argument"))
    yield from counts("a header cut off", b"\0\0\0\0", ended("invalid_argument"))
    yield from counts("a length of 4 GiB", b"\0\xff\xff\xff\xff", ended("resource_exhausted"))
    yield from counts("beyond the limit", envelope(bytes(LIMIT + 1)), ended("resource_exhausted"))
    yield from counts("garbage", envelope(b"\xff" * 20), ended("invalid_argument"))
    yield from counts("garbage after a message", envelope(three) + envelope(b"\xff"),
                      ended("invalid_argument", "unimplemented"))  # fmt: skip
    yield from counts("ends the stream", envelope(three) + envelope(b"", 2),
                      ended("invalid_argument", "internal", "unimplemented"))  # fmt: skip
    yield from counts("compressed, but nothing was declared", envelope(gzip.compress(three), 1), ended("internal"))

    chat = envelope(b"\n\2hi")
    for title, body, expected in (
        ("no message", b"", streamed(0)),
        ("a message", chat, streamed(1)),
        ("garbage after two messages", chat * 2 + envelope(b"\xff" * 9), ended("invalid_argument", messages=2)),
        ("4 GiB after a message", chat + b"\0\xff\xff\xff\xff", ended("resource_exhausted", messages=1)),
        ("a payload cut off after a message", (chat * 2)[:-1], ended("invalid_argument", messages=1)),
        ("unknown flags after a message", chat + envelope(b"", 0x40),
         ended("invalid_argument", "internal", messages=1)),
        ("text that is not UTF-8", envelope(b"\n\2\xff\xff"), ended("invalid_argument")),
    ):  # fmt: skip
        yield Case(f"chat: {title}", request(CHAT, body, type=STREAM), expected)
    for title, body, expected in (
        ("a message", envelope(b'{"text":"hi"}'), streamed(1)),
        ("an empty payload", envelope(b""), ended("invalid_argument")),
        ("nested too deep", envelope(b"[" * 100_000), ended("invalid_argument")),
        ("a lone surrogate", envelope(rb'{"text":"\ud800"}'), ended("invalid_argument")),
        ("cut off after a message", envelope(b'{"text":"hi"}') + envelope(b'{"text'), ended("invalid_argument", messages=1)),
    ):  # fmt: skip
        yield Case(f"chat in JSON: {title}", request(CHAT, body, type=STREAM_JSON), expected)
    yield Case("small limit, a message at it", request("/small" + SUM, envelope(b"\x12\xe5\x07" + bytes(997)), type=STREAM),
               summed(0, 1))  # fmt: skip
    yield Case("small limit, a message beyond it", request("/small" + SUM, envelope(bytes(1001)), type=STREAM),
               ended("resource_exhausted"))  # fmt: skip
    yield Case("small limit, many messages", request("/small" + SUM, envelope(b"\x12\xe5\x07" + bytes(997)) * 100, type=STREAM),
               summed(0, 100))  # fmt: skip


def framing_cases() -> Iterator[Case]:
    hi = b'{"text":"hi"}'
    # A body that is shorter than it was said to be is never taken for a whole one.
    short = either(failed("invalid_argument"), refused())
    yield Case("length too long", request(type=PROTO, body=b"\n\2hi", length="5"), short, finish=True, ours=False)
    yield Case(
        "length too long by far", request(type=PROTO, body=b"\n\2hi", length="1000"), short, finish=True, ours=False
    )
    yield Case(
        "length too long, empty body", request(type=PROTO, body=b"", length="10"), short, finish=True, ours=False
    )
    yield Case(
        "length too long of a stream",
        request(SUM, type=STREAM, body=envelope(b"\x08\5"), length="100"),
        either(ended("invalid_argument"), refused()),
        finish=True,
        ours=False,
    )
    yield Case(
        "length too long of a method of one message",
        request(COUNT, type=STREAM, body=envelope(b"\x08\5"), length="100"),
        either(ended("invalid_argument"), refused()),
        finish=True,
        ours=False,
    )
    huge = either(failed("invalid_argument", "resource_exhausted"), refused())
    yield Case("length of 5 GiB", request(length="5368709120"), huge, finish=True, ours=False)
    yield Case("length of 20 digits", request(length="9" * 20), huge, finish=True, ours=False)
    yield Case("length of 5,000 digits", request(length="9" * 5000), huge, finish=True, ours=False)
    for value in (
        "-1",
        "+13",
        "abc",
        "13abc",
        "1_3",
        "0x0d",
        "13.0",
        "1e1",
        "13, 13",
        "13, 14",
        "\xb2",
        ",",
        "13;",
        " ",
    ):
        yield Case(f"length {value!r}", request(length=value), either(refused(), echoed()), ours=False, finish=True)
    yield Case("length 013", request(length="013"), either(echoed(), refused()), ours=False)
    yield Case("length doubled", request(headers=[("Content-Length", "13")]), either(echoed(), refused()), ours=False)
    yield Case("lengths that differ", request(headers=[("Content-Length", "5")]), refused(), ours=False,
               lax="wsgiref")  # fmt: skip
    yield Case("length in odd case", request(length=None, headers=[("cONTENT-lENGTH", "13")]), echoed())
    yield Case("no length, no body", request(type=PROTO, body=b"", length=None), echoed(""))
    yield Case("no length, no body, JSON", request(body=b"", length=None), failed("invalid_argument"))
    yield Case("no length, no body, a stream", request(SUM, b"", type=STREAM, length=None), summed(0, 0))
    yield Case("length 0", request(type=PROTO, body=b""), echoed(""))

    def chunks(title: str, body: bytes, expected: Expectation, *, ours: bool = True, finish: bool = False) -> Case:
        return Case(f"chunks: {title}", by_chunks(body), expected, chunked=True, ours=ours, finish=finish)

    yield chunks("one", chunked(hi), echoed())
    yield chunks("of a byte each", chunked(*(hi[at : at + 1] for at in range(len(hi)))), echoed())
    yield Case(
        "chunks: 10,000 of a byte each",
        by_chunks(chunked(*[bytes([byte]) for byte in exact_message(10_000)]), type=PROTO),
        echoed(""),
        chunked=True,
    )
    yield chunks("hexadecimal in capitals", b"D\r\n" + hi + b"\r\n0\r\n\r\n", echoed())
    yield chunks("leading zeros", b"0000d\r\n" + hi + b"\r\n000\r\n\r\n", echoed())
    yield chunks("an extension", b'd;a=b;c="d"\r\n' + hi + b"\r\n0;last\r\n\r\n", echoed())
    yield chunks("trailers", b"d\r\n" + hi + b"\r\n0\r\nx-trailer: y\r\n\r\n", echoed())
    yield chunks("none", chunked(), failed("invalid_argument"))
    broken = either(failed("invalid_argument"), refused())
    for title, body in (
        ("a size that is none", b"zz\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("an empty size", b"\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a negative size", b"-d\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size with a plus", b"+d\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size with a prefix", b"0xd\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size with an underscore", b"0_d\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size that is too small", b"5\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size beyond all bounds", b"f" * 17 + b"\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size of 10,000 digits", b"f" * 10_000 + b"\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("a size that is too large", b"ff\r\n" + hi + b"\r\n0\r\n\r\n"),
        ("cut off in a size", b"d"),
        ("cut off in a chunk", b"d\r\n" + hi[:-3]),
        ("cut off after a chunk", b"d\r\n" + hi + b"\r\n"),
        ("an end without its end", b"d\r\n" + hi + b"\r\n0\r\n"),
        ("no line break after a chunk", b"d\r\n" + hi + b"0\r\n\r\n"),
        ("garbage after a good chunk", b"d\r\n" + hi + b"\r\nzz\r\n\r\n"),
        ("a trailer that is none", b"d\r\n" + hi + b"\r\n0\r\nno colon\r\n\r\n"),
        ("not in chunks at all", hi),
        ("bare line feeds", b"d\n" + hi + b"\n0\n\n"),
    ):
        # Some servers take what is broken after all of the message has come for good.
        whole = title in ("bare line feeds", "a trailer that is none", "an end without its end", "a size that is too small",
                          "a size with a plus", "a size with a prefix", "a size with an underscore")  # fmt: skip
        yield chunks(title, body, either(broken, echoed()) if whole else broken, ours=False, finish=True)._replace(
            lax="granian"
        )
    yield Case(
        "chunks of a stream, cut off between messages",
        by_chunks(chunked(envelope(b"\x08\5"), last=False), path=SUM, type=STREAM),
        either(ended("invalid_argument"), refused()),
        chunked=True,
        ours=False,
        finish=True,
        lax="granian",
    )
    yield Case(
        "chunks of a method of one message, cut off after it",
        by_chunks(chunked(envelope(b"\x08\5"), last=False), path=COUNT, type=STREAM),
        either(ended("invalid_argument"), refused()),
        chunked=True,
        ours=False,
        finish=True,
        lax="granian",
    )
    yield Case(
        "chunks, too much",
        by_chunks(chunked(*[bytes(100_000)] * 50), type=PROTO),
        failed("resource_exhausted"),
        chunked=True,
    )
    for value in (
        "gzip",
        "identity",
        "chunked, chunked",
        "gzip, chunked",
        "xchunked",
        "chunked;q=1",
        "",
        "CHUNKED",
        "\x0bchunked",
    ):
        yield Case(
            f"transfer-encoding {value!r}",
            request(body=chunked(hi), length=None, headers=[("Transfer-Encoding", value)]),
            anything(),
            ours=False,
            finish=True,
        )
    yield Case(
        "a length and chunks",
        request(body=chunked(hi), length="13", headers=[("Transfer-Encoding", "chunked")]),
        either(refused(), echoed()),
        chunked=True,
        ours=False,
    )
    yield Case(
        "a length of 0 and chunks",
        request(body=chunked(hi), length="0", headers=[("Transfer-Encoding", "chunked")]),
        either(refused(), echoed()),
        chunked=True,
        ours=False,
    )

    # Versions and lines.
    yield Case("HTTP/1.0", request(version="HTTP/1.0"), echoed())
    yield Case("HTTP/1.0 that stays", request(version="HTTP/1.0", headers=[("Connection", "keep-alive")]), echoed())
    yield Case("HTTP/1.0, a stream", request(COUNT, envelope(b"\x08\3"), type=STREAM, version="HTTP/1.0"), streamed(3))
    yield Case("HTTP/1.0 without a length", request(type=PROTO, body=b"", version="HTTP/1.0", length=None), echoed(""))
    yield Case(
        "HTTP/1.0 in chunks",
        request(body=chunked(hi), version="HTTP/1.0", length=None, headers=[("Transfer-Encoding", "chunked")]),
        anything(),
        ours=False,
    )
    for version in (
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/0.9",
        "HTTP/9.9",
        "http/1.1",
        "HTTP/1",
        "HTTP/1.1.1",
        "HTTX/1.1",
        "",
        "\xff",
    ):
        yield Case(f"version of HTTP {version!r}", request(version=version), anything(), ours=False, finish=True)
    yield Case("no host", b"POST " + ECHO.encode() + b" HTTP/1.1\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n",
               either(echoed(""), refused()), ours=False)  # fmt: skip
    for title, sent in (
        ("nothing", b""),
        ("line breaks", b"\r\n" * 20),
        ("a NUL", b"\0"),
        ("NULs", bytes(10_000)),
        ("garbage", bytes(range(256)) * 40),
        ("a TLS hello", bytes.fromhex("16030100c8010000c40303") + bytes(200)),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        ("half a request line", b"POST /integr"),
        ("half a header", request()[:60]),
        ("no end of the headers", request(body=b"", length="0")[:-2]),
        ("a request line of 100 kB", b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"),
        ("an endless header", b"POST / HTTP/1.1\r\nx: " + b"y" * 300_000),
        ("a response", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("JSON", b'{"text":"hi"}\n'),
    ):
        # hypercorn waits for the rest of nothing, as long as it keeps connections.
        lax = "hypercorn" if title == "nothing" else ""
        yield Case(f"not HTTP: {title}", sent, anything(), ours=False, finish=True, lax=lax)

    # Methods.
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        yield Case(f"method {method}", request(method=method), plain(405, allow="POST"), bodiless=method == "HEAD")
        yield Case(
            f"method {method} without a body",
            request(method=method, body=b"", length=None, type=None),
            plain(405, allow="POST"),
            bodiless=method == "HEAD",
        )
        yield Case(
            f"method {method} of a stream",
            request(CHAT, method=method, body=b"", length=None, type=None),
            plain(405, allow="POST"),
            bodiless=method == "HEAD",
        )
        yield Case(
            f"method {method} to nowhere",
            request("/nowhere", method=method, body=b"", length=None),
            plain(404),
            bodiless=method == "HEAD",
        )
    for method in ("TRACE", "PROPFIND", "FOO", "post", "Post", "POSTX", "CONNECT", "P\xd6ST", "", "x" * 5000):
        yield Case(
            f"method {method[:20]!r}",
            request(method=method, body=b"", length=None),
            either(plain(405), plain(404), echoed(""), failed("invalid_argument"), refused()),
            ours=False,
        )
    yield Case("method GET with the query of a call", request(ECHO + "?connect=v1&encoding=json&message=%7B%7D", method="GET",
               body=b"", length=None, type=None), plain(405, allow="POST"))  # fmt: skip

    # What else HTTP has.
    yield Case("expects to be asked to go on", request(headers=[("Expect", "100-continue")]), echoed())
    # Some servers take a client that has no more to say for one that has left.
    yield Case("has no more to say", request(), either(echoed(), refused()), ours=False, finish=True)
    yield Case("has no more to say, and a slow handler", request(body=b'{"text":"hi","delayMs":50}'),
               either(echoed(), refused()), ours=False, finish=True)  # fmt: skip
    yield Case(
        "has no more to say, and a stream",
        request(COUNT, envelope(b'{"upTo":3,"delayMs":5}'), type=STREAM_JSON),
        anything(),
        ours=False,
        finish=True,
    )
    yield Case("preflight of CORS", request(method="OPTIONS", body=b"", length=None, headers=[("Origin", "https://a.example"),
               ("Access-Control-Request-Method", "POST")]), plain(405, allow="POST"))  # fmt: skip
    yield Case(
        "OPTIONS for the whole server", request("*", method="OPTIONS", body=b"", length=None), anything(), ours=False
    )
    yield Case(
        "expects something else", request(headers=[("Expect", "a miracle")]), either(echoed(), plain(417)), ours=False
    )
    yield Case("closes", request(headers=[("Connection", "close")]), echoed())
    yield Case("wants HTTP/2", request(headers=[("Connection", "upgrade, http2-settings"), ("Upgrade", "h2c"),
               ("HTTP2-Settings", "AAMAAABkAAQAAP__")]), either(echoed(), refused()), ours=False)  # fmt: skip
    yield Case("wants a websocket", request(method="GET", body=b"", length=None, headers=[("Connection", "upgrade"),
               ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")]),
               either(plain(405), refused()), ours=False)  # fmt: skip
    yield Case("byte by byte", request(), echoed(), dribble=True)
    yield Case("byte by byte, a stream", request(CHAT, envelope(b"\n\2hi") * 3, type=STREAM), streamed(3), dribble=True)
    yield Case("byte by byte, in chunks", by_chunks(chunked(hi[:5], hi[5:])), echoed(), dribble=True, chunked=True)
    yield Case("byte by byte, wrong", request(type="text/plain"), plain(415), dribble=True)


def path_cases() -> Iterator[Case]:
    for path in (
        ECHO + "/",
        ECHO + "//",
        "/" + ECHO,
        "//" + ECHO,
        f"{PREFIX}//Echo",
        f"{PREFIX}/Echo/Echo",
        ECHO.lower(),
        ECHO.upper(),
        f"{PREFIX}/echo",
        f"{PREFIX}/",
        PREFIX,
        f"{PREFIX}/Nothing",
        f"{PREFIX}/Echo2",
        f"{PREFIX}/Ech",
        f"{PREFIX}.Echo",
        "/integration.v1/ProbeService/Echo",
        "/integration.v1.Nothing/Echo",
        "/prefix" + ECHO,
        "/mountedx" + ECHO,
        "/mounted/mounted" + ECHO,
        "/mounted/" + ECHO,
        "/prefixed/prefixed" + ECHO,
        "/",
        "/index.html",
        "/integration.v1.ProbeService/_caller",
        "/integration.v1.ProbeService/__init__",
        ECHO + "%00",
        ECHO + "%20",
        ECHO + "%0d%0aset-cookie:%20x",
        ECHO + "%",
        ECHO + "%zz",
        ECHO + ";x=y",
        "/%69ntegration%2ev1.ProbeService/Echo/",
        f"{PREFIX}/%c4%80",
        f"{PREFIX}/%ff%fe",
        f"{PREFIX}/%F0%9F%98%80",
        f"{ECHO}%ff",
        f"{ECHO}%3Fconnect=v1",
        f"{ECHO}%23",
        f"{PREFIX}%00/Echo",
        "/%2e%2e/%2e%2e/etc/passwd",
        f"/%2e%2e/x{ECHO}",
        "/mounted%2f" + ECHO,
        "/deep" + ECHO,
        "/deep/er/er" + ECHO,
        "/strict/small" + ECHO,
        f"{PREFIX}/Ech%c3%b6",
        "/" + "x" * 3000,
        "/" + "../" * 100 + "etc/passwd",
    ):
        lax = "wsgiref" if path.startswith("//") else ""  # it takes several slashes for one
        yield Case(f"path {path[:60]}", request(path), either(plain(404), plain(400)), lax=lax)
    for path in (
        f"/x/..{ECHO}",
        f"/.{ECHO}",
        f"{PREFIX}/./Echo",
        f"{PREFIX}/x/../Echo",
        f"{PREFIX}%2FEcho",
        "%2F" + ECHO[1:],
        f"{PREFIX}/%45cho",
        f"http://localhost{ECHO}",
        f"http://elsewhere.example{ECHO}",
        f"https://user:password@localhost{ECHO}",
        f"{ECHO}#fragment",
        f"{PREFIX}\\Echo",
    ):
        yield Case(f"path {path[:60]}", request(path), either(echoed(), plain(404), refused()), ours=False)
    for path in ("", "*", ECHO[1:], f"{PREFIX}/Ech\xf6", f"{PREFIX}/\xff\xfe", f"{PREFIX}/Ec ho", f"{PREFIX}/Ec\tho", "http://",
                 "http://[::1", "//", "?", "#", "http:///x", "/" + "x" * 20_000, f"{PREFIX}/Echo\0"):  # fmt: skip
        yield Case(f"path {path[:60]!r}", request(path), either(plain(404), refused()), ours=False)
    for query in ("?", "?x=y", "?connect=v1&message=AAAA", "?" + "x" * 3000, "?/../..", "?%00", "?%zz&&==", "??"):
        yield Case(f"query {query[:20]}", request(ECHO + query), echoed())
    yield Case("mounted", request("/mounted" + ECHO), echoed())
    yield Case("mounted deeper", request("/deep/er" + ECHO), echoed())
    yield Case("prefixed", request("/prefixed" + ECHO), echoed())
    yield Case("the second service", request("/integration.v1.OtherService/Ping"), plain(200))
    yield Case("beside the service", request("/hello", method="GET", body=b"", length=None), plain(200))
    yield Case("not implemented", request(MISSING), failed("unimplemented"))
    yield Case("nowhere, with 1 MB", request("/nowhere", bytes(1_000_000)), plain(404))
    yield Case(
        "nowhere, in chunks", by_chunks(chunked(*[bytes(10_000)] * 30), path="/nowhere"), plain(404), chunked=True
    )
    yield Case("415 with 1 MB", request(body=bytes(1_000_000), type="text/plain"), plain(415))
    yield Case("405 with 1 MB", request(body=bytes(1_000_000), method="PUT"), plain(405))


def get_cases() -> Iterator[Case]:
    def get(title: str, query: str, expected: Expectation, *, path: str = LOOK, **headers: str) -> Case:
        lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return Case(
            f"GET {title}",
            request(f"{path}?{query}", b"", method="GET", type=None, length=None, headers=lines),
            expected,
        )

    hi = "%7B%22text%22%3A%22hi%22%7D"
    packed = {
        name: base64.urlsafe_b64encode(compress(name, b'{"text":"hi"}')).decode() for name in ("gzip", "br", "zstd")
    }
    for title, query in (
        ("JSON", f"connect=v1&encoding=json&message={hi}"),
        ("without a version", f"encoding=json&message={hi}"),
        ("in another order", f"message={hi}&encoding=json&connect=v1"),
        ("with what is not known", f"x=y&connect=v1&z&encoding=json&=&message={hi}&&message2=x"),
        ("in bare characters", 'encoding=json&message={"text":"hi"}'.replace('"', "%22")),
        ("in base64", "base64=1&connect=v1&encoding=json&message=eyJ0ZXh0IjoiaGkifQ"),
        ("in padded base64", "base64=1&connect=v1&encoding=json&message=eyJ0ZXh0IjoiaGkifQ=="),
        ("in base64 with its padding escaped", "base64=1&connect=v1&encoding=json&message=eyJ0ZXh0IjoiaGkifQ%3D%3D"),
        ("proto", "base64=1&connect=v1&encoding=proto&message=CgJoaQ"),
        ("identity", f"compression=identity&encoding=json&message={hi}"),
        ("no compression", f"compression=&encoding=json&message={hi}"),
        *((name, f"base64=1&compression={name}&encoding=json&message={body}") for name, body in packed.items()),
    ):
        yield get(title, query, echoed())
    yield get("an empty message", "connect=v1&encoding=proto&message=", echoed(""))
    yield get("an empty message in base64", "base64=1&connect=v1&encoding=proto&message=", echoed(""))
    yield get("an empty message, compressed", "base64=1&compression=gzip&encoding=proto&message=", echoed(""))
    yield get("a plus is a space", "encoding=json&message=%7B%22text%22:%22a+b%22%7D", echoed("a b"))
    yield get("a percent sign", "encoding=json&message=%7B%22text%22:%22%2525%22%7D", echoed("%25"))
    yield get("UTF-8", "encoding=json&message=%7B%22text%22:%22%C3%A4%22%7D", echoed("\u00e4"))
    big = "encoding=json&message=%7B%22text%22:%22" + "y" * 3000 + "%22%7D"
    yield get("compressed back", big, echoed("y" * 3000, encoding="gzip"), accept_encoding="gzip")
    yield get("a header of POST's is nothing to it", f"encoding=json&message={hi}", echoed(), content_encoding="snappy",
              connect_content_encoding="snappy", content_type="text/plain")  # fmt: skip
    for title, query in (
        ("nothing", ""),
        ("no message", "connect=v1&encoding=json"),
        ("no encoding", f"connect=v1&message={hi}"),
        ("another version", f"connect=v2&encoding=json&message={hi}"),
        ("no version", f"connect=&encoding=json&message={hi}"),
        ("version 1 without its v", f"connect=1&encoding=json&message={hi}"),
        ("JSON that is none", "encoding=json&message=%7B"),
        ("not UTF-8", "encoding=json&message=%7B%22text%22:%22%ff%22%7D"),
        ("proto that is none", "base64=1&encoding=proto&message=__________8"),
        ("base64 that is none", "base64=1&encoding=json&message=%7B%22%7D"),
        ("base64 of one character", "base64=1&encoding=proto&message=C"),
        ("base64 that is not ASCII", "base64=1&encoding=proto&message=%C3%A4%C3%A4"),
        ("base64 with spaces in it", "base64=1&encoding=proto&message=Cg+Jo%20aQ"),
        ("base64 with more after its padding", "base64=1&encoding=proto&message=Cg%3D%3DCg"),
        ("compressed and damaged", f"base64=1&compression=gzip&encoding=json&message={packed['gzip'][:-8]}"),
        ("compressed with another", f"base64=1&compression=br&encoding=json&message={packed['gzip']}"),
    ):
        yield get(title, query, failed("invalid_argument"))
    yield get("standard base64", "base64=1&encoding=json&message=eyJ0ZXh0IjoiPz8%2FPj4%2BIn0=",
              either(echoed("???>>>"), failed("invalid_argument")))  # fmt: skip
    for title, query in (
        ("version", f"connect=v1&connect=v1&encoding=json&message={hi}"),
        ("version, different,", f"connect=v1&connect=v2&encoding=json&message={hi}"),
        ("message", f"encoding=json&message={hi}&message={hi}"),
        ("base64", "base64=1&base64=1&encoding=json&message=eyJ0ZXh0IjoiaGkifQ"),
        ("compression", f"compression=&compression=identity&encoding=json&message={hi}"),
    ):
        yield get(f"{title} twice", query, either(echoed(), failed("invalid_argument")))
    for value in ("", "true", "2", "01", "1%00", "yes"):
        yield get(f"base64={value}", f"base64={value}&encoding=json&message={hi}",
                  either(echoed(), failed("invalid_argument")))  # fmt: skip
    for value in ("JSON", "json%20", "%6ason", "json%00", "%ff", "connect%2Bjson"):
        yield get(f"encoding={value}", f"encoding={value}&message={hi}",
                  either(echoed(), plain(415), failed("invalid_argument")))  # fmt: skip
    yield get("names in another case", f"Connect=v1&Encoding=json&Message={hi}", failed("invalid_argument"))
    yield get("names that are escaped", f"%65ncoding=json&%6dessage={hi}", echoed())
    yield get("semicolons", f"encoding=json;message={hi}", either(plain(415), failed("invalid_argument")))
    yield get("a stream's envelope", "base64=1&encoding=json&message=AAAAAAJ7fQ", failed("invalid_argument"))
    yield get("half an escape", "encoding=json&message=%7B%22text%22:%22a%2%22%7D", echoed("a%2"))
    yield get("a question mark", "encoding=json&message=%7B%22text%22:%22a?b%22%7D", echoed("a?b"))
    yield get("a slash", "encoding=json&message=%7B%22text%22:%22/../%22%7D", echoed("/../"))
    yield get("a line break", "encoding=json&message=%7B%0d%0a%22text%22:%22hi%22%7D%0a", echoed())
    yield get("a condition", f"encoding=json&message={hi}", echoed(), if_none_match="*")
    yield get("a URL of 60 kB", f"encoding=json&message={hi}&x=" + "y" * 60_000, anything())._replace(ours=False)
    yield get("base64=0", f"base64=0&encoding=json&message={hi}", either(echoed(), failed("invalid_argument")))
    yield get("the same twice", f"encoding=json&encoding=proto&message={hi}&message=x",
              either(echoed(), failed("invalid_argument")))  # fmt: skip
    yield get(
        "an encoding that is not known", f"encoding=xml&message={hi}", either(plain(415), failed("invalid_argument"))
    )
    yield get("no encoding's name", f"encoding=&message={hi}", either(plain(415), failed("invalid_argument")))
    yield get("a compression that is not known", f"compression=snappy&encoding=json&message={hi}",
              failed("unimplemented", message="gzip"))  # fmt: skip
    for name in ("gzip", "br", "zstd"):
        bomb = base64.urlsafe_b64encode(compress(name, bytes(1_000_000))).decode().rstrip("=")
        yield get(f"a bomb of {name}", f"base64=1&compression={name}&encoding=proto&message={bomb}",
                  failed("resource_exhausted"), path="/small" + LOOK)  # fmt: skip
    yield get("beyond a small limit", big, failed("resource_exhausted"), path="/small" + LOOK)
    yield get(
        "a timeout that has passed", f"encoding=json&message={hi}", failed("deadline_exceeded"), connect_timeout_ms="0"
    )
    yield get(
        "a timeout that is none", f"encoding=json&message={hi}", failed("invalid_argument"), connect_timeout_ms="x"
    )
    yield get(
        "where the version is required", f"connect=v1&encoding=json&message={hi}", echoed(), path="/strict" + LOOK
    )
    yield get("where the version is required, missing", f"encoding=json&message={hi}", failed("invalid_argument"),
              path="/strict" + LOOK)  # fmt: skip
    yield get("many parameters", "x=y&" * 900 + f"encoding=json&message={hi}", echoed())
    yield get("a handler that fails", "encoding=json&message=%7B%22misdeed%22:%22raise%3DValueError%22%7D",
              failed("unknown"))._replace(logs=True)  # fmt: skip
    yield get("a method with side effects", f"encoding=json&message={hi}", plain(405, allow="POST"), path=ECHO)
    yield get("a stream", f"encoding=json&message={hi}", plain(405, allow="POST"), path=COUNT)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        yield Case(f"{method} where GET is served", request(LOOK, method=method), plain(405, allow="GET"))
    yield Case("HEAD where GET is served", request(f"{LOOK}?encoding=json&message={hi}", b"", method="HEAD", type=None,
               length=None), either(plain(200), plain(405)), bodiless=True)  # fmt: skip
    yield Case("POST where GET is served", request(LOOK), echoed())
    yield Case("POST with a query of GET's", request(f"{LOOK}?encoding=proto&message=%ff"), echoed())
    yield Case("GET with a body", request(f"{LOOK}?encoding=json&message={hi}", bytes(1000), method="GET"), echoed())


def handler_cases() -> Iterator[Case]:
    def echo(misdeed: str, expected: Expectation, *, logs: bool = False) -> Case:
        return Case(
            f"echo: {misdeed}",
            request(body=json.dumps({"misdeed": misdeed, "number": "5"}).encode()),
            expected,
            logs=logs,
        )

    unknown = failed("unknown")
    for code in HTTP_STATUS:
        yield echo(f"error={code.upper()}", failed(code, message=f"this is {code.upper()}"))
    for name in ("ValueError", "TimeoutError", "OSError", "BrokenPipeError", "RecursionError", "MemoryError", "StopIteration",
                 "AssertionError", "UnicodeError", "ExceptionGroup-like"):  # fmt: skip
        yield echo(f"raise={name}", unknown, logs=True)
    yield echo("none", unknown)
    yield echo("wrong", unknown)
    yield echo("string", unknown)
    for name in ("content-type", "content-length", "Content-Length", "transfer-encoding", "connection", "connect-timeout-ms",
                 "grpc-status", "trailer-x", "content-encoding", "x y", "", "x:y", "x\r\ny", "\u00e4"):  # fmt: skip
        yield echo(f"bad headers={name}", unknown)
    yield echo("bad value", unknown)
    yield echo("bad trailers", unknown)
    yield echo("not text", unknown)
    yield echo("bad error", failed("unknown", "aborted"))
    yield echo("odd error", failed("aborted"))
    yield echo("big error", failed("aborted"))
    yield echo("metadata", metadata_expected)
    yield echo("error with metadata", error_with_metadata)

    def count(misdeed: str, expected: Expectation, *, logs: bool = False) -> Case:
        body = envelope(json.dumps({"misdeed": misdeed, "upTo": 3}).encode())
        return Case(f"count: {misdeed}", request(COUNT, body, type=STREAM_JSON), expected, logs=logs)

    yield count("raise at once", ended("unknown"), logs=True)
    yield count("error at once", ended("not_found"))
    yield count("none", ended("unknown"))
    yield count("list", streamed(2))
    yield count("bad headers", ended("unknown"))
    yield count("bad trailers", ended("unknown", messages=3))
    yield count("metadata", stream_metadata)
    yield count("raise first", ended("unknown"), logs=True)
    yield count("raise last", ended("unknown", messages=3), logs=True)
    yield count("error last", ended("not_found", messages=3))
    yield count("wrong type", ended("unknown", messages=3))
    yield count("stop iteration", ended("unknown", messages=3), logs=True)
    yield count("raise finally", either(streamed(3), ended("unknown", messages=3)), logs=True)

    def others(path: str, misdeed: str, body: bytes, expected: Expectation, *, logs: bool = False) -> Case:
        title = f"{path.rpartition('/')[2].lower()}: {misdeed}"
        headers = [("x-misdeed", misdeed)]
        return Case(title, request(path, body, type=STREAM_JSON, headers=headers), expected, logs=logs)

    several = envelope(b"{}") * 3
    yield others(SUM, "raise at once", several, ended("unknown"), logs=True)
    yield others(SUM, "error at once", several, ended("not_found"))
    yield others(SUM, "error at once", b"\0\0", ended("not_found"))
    yield others(SUM, "ignore", several, summed(-1, 0))
    yield others(SUM, "ignore", envelope(bytes(9_000_000)), summed(-1, 0))
    yield others(SUM, "raise", envelope(b'{"misdeed":"raise"}') * 2, ended("unknown"), logs=True)
    yield others(SUM, "enough", envelope(b'{"number":5, "misdeed":"enough"}') + several, summed(5, 1))
    yield others(
        SUM, "enough, then garbage", envelope(b'{"number":5, "misdeed":"enough"}') + b"\xff" * 100, summed(5, 1)
    )
    yield others(CHAT, "error at once", several, ended("not_found"))
    yield others(
        CHAT, "raise", envelope(b"{}") + envelope(b'{"misdeed":"raise"}'), ended("unknown", messages=1), logs=True
    )
    yield others(
        CHAT, "error", envelope(b"{}") + envelope(b'{"misdeed":"error"}') + several, ended("not_found", messages=1)
    )
    yield others(CHAT, "enough", envelope(b"{}") + envelope(b'{"misdeed":"enough"}') + several, streamed(1))

    yield Case("a cap on the time", request("/hasty" + ECHO, b'{"delayMs":300}'), failed("deadline_exceeded"))
    yield Case(
        "a cap on the time, more was asked for",
        request("/hasty" + ECHO, b'{"delayMs":300}', headers=[("Connect-Timeout-Ms", "9999999999")]),
        failed("deadline_exceeded"),
    )
    yield Case("a cap on the time, in time", request("/hasty" + ECHO), echoed())
    yield Case(
        "a small limit", request("/small" + ECHO, b'{"text":"' + b"x" * 1000 + b'"}'), failed("resource_exhausted")
    )


def metadata_expected(answer: Answer | None) -> None:
    echoed("")(answer)
    assert answer is not None
    assert ",".join(answer.headers.getall("x-head")).replace(" ", "") == "1,2"
    assert ",".join(answer.headers.getall("trailer-x-tail")).replace(" ", "") == "3,4"


def error_with_metadata(answer: Answer | None) -> None:
    failed("aborted", message="no", x_head="1", trailer_x_tail="2")(answer)
    assert answer is not None
    (detail,) = json.loads(answer.body)["details"]
    assert detail == {"type": "integration.v1.PingRequest", "value": "CgZkZXRhaWw"}


def stream_metadata(answer: Answer | None) -> None:
    payloads, wire = stream_of(answer)
    assert len(payloads) == 3
    assert answer is not None
    assert ",".join(answer.headers.getall("x-head")).replace(" ", "") == "1,2"
    assert wire == {"metadata": {"x-tail": ["3", "4"]}}


CASES = [
    *header_cases(),
    *compression_cases(),
    *body_cases(),
    *envelope_cases(),
    *framing_cases(),
    *path_cases(),
    *get_cases(),
    *handler_cases(),
]


SHORT_WAY = [
    case._replace(
        sent=case.sent.replace(b"\r\nHost:", b"\r\nConnect-Protocol-Version: 1\r\nHost:", 1),
    )
    for case in CASES
    if case.sent.startswith(b"POST " + ECHO.encode() + b" ") and b"rotocol-" not in case.sent
]
"""The unary cases once more as Connect's clients send them. Only those calls may go a shorter way, to the same end."""

QUICK = ["gunicorn-gthread", "granian", "granian-asgi", "uvicorn-httptools"]


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param.replace("-", "_"))
    return found


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> list[Server]:
    """All of them at once: a test for each server and each case would spend its time on being a test."""
    return [request.getfixturevalue(kind.replace("-", "_")) for kind in KINDS]


def each(servers: list[Server], judge: Callable[[Server], None]) -> None:
    """Judge every server, and say which ones failed, and how."""
    failures: list[tuple[str, Exception]] = []
    for server in servers:
        try:
            judge(server)
        except Exception as failure:
            failures.append((server.kind, failure))
    if failures:
        raise AssertionError("\n".join(f"{kind}: {failure!r}" for kind, failure in failures)) from failures[0][1]


def serves(connection: Connection, *, may_be_closed: bool = False) -> bool:
    """Whether a good call on this connection is answered well; False when it was closed and that is allowed."""
    try:
        connection.send(GOOD)
        answer = connection.answer()
    except (ConnectionError, Malformed):
        if not may_be_closed:
            raise
        return False
    if answer is None and may_be_closed:
        return False
    echoed(GOOD_TEXT)(answer)
    return True


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answer(servers: list[Server], case: Case) -> None:
    each(servers, lambda server: check(server, case))


@pytest.mark.parametrize("case", SHORT_WAY, ids=[case.name for case in SHORT_WAY])
def test_answer_by_the_short_way(servers: list[Server], case: Case) -> None:
    each([server for server in servers if server.kind in QUICK], lambda server: check(server, case))


def check(server: Server, case: Case) -> None:
    """Send the case, judge what becomes of it, and see that the connection and the server go on."""
    logged = server.log_size()
    expected, ours = case.expected, case.ours
    patience = PATIENCE
    if case.lax == server.kind:
        expected, patience = anything(), 1.0
    if case.chunked and server.kind == "wsgiref":
        # Refused without reading the body, so a client that is still sending it may miss the answer.
        expected, ours = either(plain(411), refused()), False
    with Connection(server.port, timeout=patience) as connection:
        began = time.monotonic()
        try:
            if case.dribble:
                for at in range(len(case.sent)):
                    connection.send(case.sent[at : at + 1])
                    time.sleep(0.0002)
            else:
                connection.send(case.sent)
            if case.finish:
                connection.finish()
        except OSError:
            # Closed before it had heard us out; fair only from a server that was not offered HTTP.
            assert not ours
        answer: Answer | None
        try:
            answer = connection.answer(bodiless=case.bodiless)
        except (Malformed, OSError):
            assert not ours, "no whole answer"
            answer = None
        took = time.monotonic() - began

        expected(answer)
        if answer is not None:
            for name, value in answer.headers.items():
                assert not LEAKS.search(f"{name}: {value}".encode()), answer
            assert not LEAKS.search(answer.body), answer
        assert took < case.within, f"took {took:.1f} s"
        goes_on = ours and answer is not None and not answer.closes
        if goes_on:
            assert serves(connection)
    if not goes_on:
        with Connection(server.port) as another:
            assert serves(another)
    fresh = server.logged(logged)
    if case.logs:
        assert "Traceback" in fresh
        assert SECRET in fresh
    elif ours and not case.name.startswith(("echo: ", "count: ")):
        assert "Traceback" not in fresh


PIPELINED = [
    case
    for case in CASES
    if case.ours
    and not (case.finish or case.dribble or case.bodiless or case.logs)
    and len(case.sent) < 10_000
    and case.name.startswith(
        ("path", "content-type", "method", "version", "JSON: a", "sum", "count", "GET", "chunks", "gzip")
    )
][::3]


@pytest.mark.parametrize("case", PIPELINED, ids=[case.name for case in PIPELINED])
def test_pipelined(servers: list[Server], case: Case) -> None:
    """What comes right after a request that fails is answered too, unless the server says that it closes."""
    each(servers, lambda server: check_pipelined(server, case))


def check_pipelined(server: Server, case: Case) -> None:
    expected = anything() if (case.chunked and server.kind == "wsgiref") or case.lax == server.kind else case.expected
    with Connection(server.port) as connection:
        connection.send(case.sent + GOOD)
        answer = connection.answer()
        expected(answer)
        if answer is not None and not answer.closes:
            echoed(GOOD_TEXT)(connection.answer())


MANY: list[tuple[bytes, Expectation]] = [
    (GOOD, echoed(GOOD_TEXT)),
    (request(COUNT, envelope(b"\x08\3"), type=STREAM), streamed(3)),
    (request("/nowhere", b"x" * 100), plain(404)),
    (request(SUM, envelope(b"\x08\5") * 2, type=STREAM), summed(10, 2)),
    (request(body=b"{"), failed("invalid_argument")),
    (request(CHAT, envelope(b"\n\2hi") * 4, type=STREAM), streamed(4)),
    (
        request(f"{LOOK}?encoding=json&message=%7B%22text%22:%22hi%22%7D", b"", method="GET", type=None, length=None),
        echoed(),
    ),
    (request(type="text/plain"), plain(415)),
    (request(body=b'{"text":"hi","delayMs":5}'), echoed()),
    (request(SUM, b"\0\xff\xff\xff\xff", type=STREAM), ended("resource_exhausted")),
    (by_chunks(chunked(b'{"text"', b':"hi"}')), echoed()),
    (request(headers=[("Connect-Timeout-Ms", "0")]), failed("deadline_exceeded")),
]


def test_many_requests_at_once_on_one_connection(server: Server) -> None:
    """Each has its answer, in their order, whatever became of those before it."""
    many = [(sent, expected) for sent, expected in MANY * 5 if server.kind != "wsgiref" or b"chunked" not in sent]
    with Connection(server.port) as connection:
        connection.send(b"".join(sent for sent, _ in many))
        for number, (_, expected) in enumerate(many):
            answer = connection.answer()
            expected(answer)
            if answer is not None and answer.closes:
                assert server.kind in ("gunicorn-sync", "wsgiref") or number > 10
                break


@pytest.mark.parametrize(
    ("path", "body", "type", "expected"),
    [
        (ECHO, b'{"text":"hi"}', JSON, echoed()),
        (SUM, envelope(b"\x08\5"), STREAM, summed(5, 1)),
        (COUNT, envelope(b"\x08\3"), STREAM, streamed(3)),
        (CHAT, envelope(b"\n\2hi"), STREAM, streamed(1)),
        ("/nowhere", b"x" * 100, JSON, plain(404)),
        (ECHO, b"x" * 100, "text/plain", plain(415)),
        (ECHO, b"x" * (LIMIT + 1), PROTO, failed("resource_exhausted")),
    ],
    ids=["unary", "client stream", "server stream", "bidi stream", "nowhere", "unknown media type", "too large"],
)
def test_a_client_that_asks_before_it_sends(
    server: Server, path: str, body: bytes, type: str, expected: Expectation
) -> None:
    """It sends its body when it is told to go on, or has not been told for a while, unless it has an answer by then."""
    head = request(path, type=type, headers=[("Expect", "100-continue")], length=str(len(body)), body=b"")
    with Connection(server.port) as connection:
        connection.send(head)
        if connection.has_bytes(within=0.3 if server.kind == "wsgiref" else 1.0):
            interim = connection.interim()
            if interim is None and path != CHAT:  # the answer is there already, and the body is not wanted
                expected(connection.answer())
                return
            # The head of a bidi stream does not wait for the first message.
            assert interim == 100 or path == CHAT
        connection.send(body)
        answer = connection.answer()
        expected(answer)
        if answer is not None and not answer.closes:
            assert serves(connection)


@pytest.mark.parametrize("goodbye", ["close", "reset"])
def test_clients_that_leave(server: Server, goodbye: str) -> None:
    """In the middle of the head, of the body, of a message; before the answer, and in the middle of that."""
    slow = b'{"text":"hi","delayMs":30}'
    requests = [
        request(body=slow),
        by_chunks(chunked(slow)),
        request(CHAT, envelope(b"\n\2hi") * 3, type=STREAM),
        by_chunks(chunked(envelope(b"\n\2hi"), envelope(b"\n\2hi")), path=CHAT, type=STREAM),
        request(COUNT, envelope(CountRequest(up_to=20, delay_ms=5, padding=50_000).SerializeToString()), type=STREAM),
        request(SUM, envelope(bytes(1000)) * 100, type=STREAM),
        request("/nowhere", bytes(500_000)),
        request(type=PROTO, body=bytes(5_000_000)),
    ]
    for sent in requests:
        for cut in (1, 20, sent.index(b"\r\n\r\n") + 4, len(sent) * 3 // 4, len(sent) - 1, len(sent)):
            connection = Connection(server.port)
            try:
                connection.send(sent[:cut])
                if cut == len(sent):
                    time.sleep(0.01)
            except ConnectionError:
                assert server.kind == "wsgiref"
            if goodbye == "close":
                connection.sock.close()
            else:
                connection.reset()
        with Connection(server.port) as another:
            assert serves(another)


@functools.cache
def bomb(name: str) -> bytes:
    return compress(name, bytes(300_000_000))


def test_bombs_cost_no_memory(server: Server) -> None:
    """A worker that is sent what would expand to 300 MB does not even begin to."""
    bombs = [
        request(type=PROTO, body=bomb(name), headers=[("Content-Encoding", name)]) for name in ("br", "zstd", "gzip")
    ]
    bombs.append(request(SUM, envelope(bomb("br"), 1), type=STREAM, headers=[("Connect-Content-Encoding", "br")]))
    bombs.append(request(SUM, b"\0\xff\xff\xff\xff", type=STREAM))
    with Connection(server.port) as connection:
        connection.send(GOOD)
        answer = connection.answer()
        assert answer is not None
        pid = message_of(answer).pid
    before = resident(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is forgotten
    for sent in bombs:
        with Connection(server.port) as connection:
            connection.send(sent)
            either(failed("resource_exhausted"), ended("resource_exhausted"))(connection.answer())
    assert resident(pid, "VmHWM") - before < 40_000


def resident(pid: int, field: str = "VmRSS") -> int:
    """The memory of a process, in kB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
