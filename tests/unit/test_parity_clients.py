"""One table of calls, and one of answers, through both kinds of client over the HTTP libraries that they come with.

What goes out is the same byte for byte, and what the caller gets back is the same, whatever the server does. The
servers' half is in ``test_parity``.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.client_proto import ResponseHandler
from google.protobuf.duration_pb2 import Duration
from wires import Network, Reply, Sent

from connectrpc import compression
from connectrpc.client import AsyncClient, SyncClient
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks, Response
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    WEB,
    WEB_JSON,
    WEB_PROTO,
    ask,
    asked,
    frame,
    reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectrpc.interceptors import Request

GZIP = compression.named("gzip")
BIG = "x" * 3000
PATIENCE = 2.0


# Calls


def requests_for(method: Any, *names: str) -> Any:
    return [ask(name, 5) for name in names] if method.kind.client_streams else ask(names[-1], 5)


def told(error: BaseException | None) -> Any:
    """What a caller can tell of an error."""
    if not isinstance(error, ConnectError):
        return None if error is None else repr(error)
    # What a library says of a broken connection, and how much it knows of it, is its own.
    lost = error.code is ConnectErrorCode.UNAVAILABLE and error.__cause__ is not None
    message = "lost" if lost else error.message
    details = [(detail.type, detail.value, detail.debug) for detail in error.details]
    metadata = [pairs(error.response_headers()), pairs(error.response_trailers())]
    return error.code, message, details, metadata, error.__cause__ is not None


def pairs(headers: Any) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items()]


Outcome = dict[str, Any]


def of_output(output: Any, texts: list[str], error: Any) -> Outcome:
    return {
        "texts": texts,
        "error": told(error),
        "headers": pairs(output.response_headers()),
        "trailers": pairs(output.response_trailers()),
    }


def failed(error: BaseException, texts: list[str] | None = None) -> Outcome:
    return {"texts": texts or [], "raised": told(error)}


class Calls:
    """The same calls in both colours, in both forms: the one that tells, and the one that raises."""

    def __init__(self, network: Network, options: dict[str, Any], *, leave_after: int | None = None) -> None:
        self._network = network
        self._options = options
        self._leave_after = leave_after

    def blocking(self, method: Any, requests: Any, *args: Any, raising: bool = False) -> Outcome:
        with SyncClient("http://host:81/base", self._network.manager(), **self._options) as client:
            form = self._sync_raising if raising else self._sync
            try:
                return form(client._caller, method, requests, *args)
            except Exception as error:
                return failed(error)

    def _sync(self, caller: Any, method: Any, requests: Any, *args: Any) -> Outcome:
        if not method.kind.server_streams:
            one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
            output = one(method, requests, *args)
            message = output.message()
            return of_output(output, [] if message is None else [message.file_name], output.error())
        many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
        texts: list[str] = []
        with many(method, requests, *args) as stream:
            while len(texts) != self._leave_after and (message := next(stream, None)) is not None:
                texts.append(message.file_name)
        return of_output(stream, texts, stream.error())

    def _sync_raising(self, caller: Any, method: Any, requests: Any, *args: Any) -> Outcome:
        texts: list[str] = []
        try:
            if method.kind.server_streams:
                many = caller.bidi_stream if method.kind.client_streams else caller.server_stream
                for message in many(method, requests, *args):
                    texts.append(message.file_name)  # noqa: PERF401  what came before a failure counts
            else:
                one = caller.client_stream if method.kind.client_streams else caller.unary
                texts.append(one(method, requests, *args).file_name)
        except Exception as error:
            return failed(error, texts)
        return {"texts": texts}

    def awaited(self, method: Any, requests: Any, *args: Any, raising: bool = False) -> Outcome:
        async def main() -> Outcome:
            session = self._network.session()
            try:
                async with AsyncClient("http://host:81/base", session, **self._options) as client:
                    form = self._async_raising if raising else self._async
                    try:
                        return await asyncio.wait_for(form(client._caller, method, requests, *args), PATIENCE)
                    except Exception as error:
                        return failed(error)
            finally:
                await session.close()

        return asyncio.run(main())

    async def _async(self, caller: Any, method: Any, requests: Any, *args: Any) -> Outcome:
        if not method.kind.server_streams:
            one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
            output = await one(method, requests, *args)
            message = output.message()
            return of_output(output, [] if message is None else [message.file_name], output.error())
        many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
        texts: list[str] = []
        async with many(method, requests, *args) as stream:
            while len(texts) != self._leave_after:
                try:
                    texts.append((await stream.__anext__()).file_name)
                except StopAsyncIteration:
                    break
        return of_output(stream, texts, stream.error())

    async def _async_raising(self, caller: Any, method: Any, requests: Any, *args: Any) -> Outcome:
        texts: list[str] = []
        try:
            if method.kind.server_streams:
                many = caller.bidi_stream if method.kind.client_streams else caller.server_stream
                async for message in many(method, requests, *args):
                    texts.append(message.file_name)  # noqa: PERF401
            else:
                one = caller.client_stream if method.kind.client_streams else caller.unary
                texts.append((await one(method, requests, *args)).file_name)
        except Exception as error:
            return failed(error, texts)
        return {"texts": texts}


# What comes back


def http(
    body: bytes = b"",
    content_type: str | None = PROTO,
    status: str = "200 OK",
    headers: list[tuple[str, str]] | None = None,
    *,
    framing: str = "length",
    version: str = "1.1",
    trailers: bytes = b"",
) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/{version} {status}"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"{name}: {value}" for name, value in headers or ()]
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        halves = [body[: len(body) // 2], body[len(body) // 2 :]]
        body = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(half), half) for half in halves if half) + b"0\r\n"
        body += trailers + b"\r\n"
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


METADATA = [("X-One", "1"), ("X-Many", "2"), ("X-Many", "3"), ("Trailer-X-Last", "4"), ("Trailer-X-Last", "5")]
TEXT = reply("answer").SerializeToString()
BIG_TEXT = reply(BIG).SerializeToString()
DETAIL = base64.b64encode(Duration(seconds=5).SerializeToString()).decode().rstrip("=")
ERROR = json.dumps(
    {
        "code": "aborted",
        "message": "m\u00e4",
        "details": [{"type": "google.protobuf.Duration", "value": DETAIL, "debug": {"seconds": 5}}],
    }
).encode()
GZIPPED = ("Content-Encoding", "gzip")
# The code 10, the message "m", and the same detail, as a google.rpc.Status
WEB_DETAILS = "CAoSAW0aMgosdHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucHJvdG9idWYuRHVyYXRpb24SAggF"


def end(error: bytes | None = None, metadata: str | None = None) -> bytes:
    members = []
    if error is not None:
        members.append('"error":' + error.decode())
    if metadata is not None:
        members.append(f'"metadata":{metadata}')
    return frame(("{" + ",".join(members) + "}").encode(), 2)


def replies(*texts: str) -> bytes:
    return b"".join(frame(reply(text).SerializeToString()) for text in texts)


class Answers:
    """What servers say to unary calls, by name. ``good`` and the like are bodies of the kind of call at hand."""

    def __init__(self, content_type: str, good: bytes, stream_type: str | None = None) -> None:
        self.table: dict[str, Reply] = {}
        self._content_type = content_type
        self._good = good
        for framing in ("length", "chunked"):
            self.add(f"good, {framing}", http(good, content_type, framing=framing))
            self.add(f"metadata, {framing}", http(good, content_type, headers=METADATA, framing=framing))
        self.add("until the end", http(good, content_type, framing="end"), "end")
        self.add("HTTP/1.0", http(good, content_type, framing="end", version="1.0"), "end")
        self.add("connection: close", http(good, content_type, headers=[("Connection", "close")]), "end")
        self.add("trailers of HTTP", http(good, content_type, framing="chunked", trailers=b"X-T: 1\r\n"))
        self.add("repeated cookies", http(good, content_type, headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
        self.add("parameters", http(good, content_type.title() + " ; charset=x"))
        self.add("spaces", http(good, content_type, headers=[("X-Empty", ""), ("X-Spaced", "  a  b")]))
        self.add("early", http(good, content_type), early=True)
        self.add("100 Continue", b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n" + http(good, content_type))
        self._broken()
        self._statuses()
        self._media_types()

    def add(self, name: str, data: bytes, then: str = "keep", *, early: bool = False) -> None:
        self.table[name] = Reply(data, then, early=early)

    def _broken(self) -> None:
        good, content_type = self._good, self._content_type
        for then in ("end", "reset"):
            whole = http(good, content_type)
            self.add(f"{then} after the head", whole[: -len(good)], then)
            self.add(f"{then} in the body", whole[:-1], then)
            chunked = http(good, content_type, framing="chunked")
            self.add(f"{then} in a chunk", chunked[:-9], then)
            self.add(f"{then} before the last chunk", chunked[:-5], then)
        self.add("cut off, length unknown", http(good[:-1], content_type, framing="end"), "end")
        self.add("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n", "end")

    def _statuses(self) -> None:
        for status in (
            *("201 Created", "204 No Content", "206 Partial Content", "304 Not Modified", "400 Bad Request"),
            *("401 Unauthorized", "403 Forbidden", "404 Not Found", "405 Method Not Allowed", "408 Request Timeout"),
            *("409 Conflict", "411 Length Required", "413 Content Too Large", "415 Unsupported Media Type"),
            *("429 Too Many Requests", "431 Fields Too Large", "499 Client Closed Request", "500 Internal"),
            *("501 Not Implemented", "502 Bad Gateway", "503 Unavailable", "504 Gateway Timeout", "599 Whatever"),
        ):
            bodiless = status[:3] in ("204", "304")
            again = [("Retry-After", "0"), ("WWW-Authenticate", "Basic realm=x"), *METADATA]
            text = b"" if bodiless else b"some text"
            self.add(status, http(text, "text/plain", status, again, framing="" if bodiless else "length"))
            if not bodiless:
                self.add(f"{status}, without a media type", http(text, None, status))
        for status in ("301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"):
            elsewhere = [("Location", "http://host:81/elsewhere")]
            self.add(status, http(b"moved", "text/plain", status, elsewhere))

    def _media_types(self) -> None:
        for content_type in (PROTO, JSON, STREAM_PROTO, STREAM_JSON, "application/other", "text/html", "", None):
            if content_type != self._content_type:
                self.add(f"media type {content_type}", http(self._good, content_type, headers=METADATA))


def unary_answers() -> dict[str, Reply]:
    answers = Answers(PROTO, TEXT)
    compressed, broken = GZIP.compress(TEXT), GZIP.compress(BIG_TEXT)[:-9]

    def add(name: str, body: bytes, *headers: tuple[str, str], **changes: Any) -> None:
        answers.add(name, http(body, headers=[*headers, *METADATA], **changes))

    def add_error(name: str, body: bytes, *headers: tuple[str, str], content_type: str = JSON, **changes: Any) -> None:
        status = changes.pop("status", "409 Conflict")
        answers.add(name, http(body, content_type, status, [*headers, *METADATA], **changes))

    add("empty", b"")
    add("nonsense", b"\xff")
    add("of another type", ask("a", 5).SerializeToString())
    for framing in ("length", "chunked"):
        add(f"compressed, {framing}", compressed, GZIPPED, framing=framing)
        add(f"large, {framing}", BIG_TEXT, framing=framing)
        add(f"too large, {framing}", BIG_TEXT * 3, framing=framing)
        add(f"too large when it is decompressed, {framing}", GZIP.compress(BIG_TEXT * 3), GZIPPED, framing=framing)
        add_error(f"error, {framing}", ERROR, framing=framing)
        add_error(f"too large an error, {framing}", ERROR + b" " * 9000, framing=framing)
    answers.add("too large, until the end", http(BIG_TEXT * 3, framing="end"), "end")
    add("compressed in capitals", compressed, ("Content-Encoding", "GZIP"))
    add("identity", TEXT, ("Content-Encoding", "identity"))
    add("compressed nothing", b"", GZIPPED)
    add("not compressed", TEXT, GZIPPED)
    add("broken compression", broken, GZIPPED)
    add("two compressions", compressed, ("Content-Encoding", "gzip, br"))
    for encoding in ("compress", "x-none", "deflate", ""):
        add(f"compression {encoding!r}", TEXT, ("Content-Encoding", encoding))
    answers.add("two lengths", http(TEXT, framing="", headers=[("Content-Length", "1, 2")]), "end")
    add_error("compressed error", GZIP.compress(ERROR), GZIPPED)
    add_error("error in a broken compression", GZIP.compress(ERROR)[:-9], GZIPPED)
    add_error("error in an unknown compression", ERROR, ("Content-Encoding", "x-none"))
    add_error("error, with parameters", ERROR, content_type="Application/JSON; charset=utf-8")
    add_error("error that is no JSON", b"{")
    add_error("error that is no object", b"[]")
    add_error("error without a code", b'{"message":"m"}')
    add_error("error with an unknown code", b'{"code":"other","message":"m"}', status="503 Unavailable")
    add_error("error as text", ERROR, content_type="text/plain")
    add_error("error of another status", ERROR, status="200 OK")
    add_error("error with wrong details", b'{"code":"aborted","details":[5,{"type":"a"},{"type":"a","value":"!"}]}')
    return answers.table


def stream_answers(good: bytes) -> dict[str, Reply]:
    answers = Answers(STREAM_PROTO, good)
    declared = ("Connect-Content-Encoding", "gzip")

    def add(name: str, body: bytes, *headers: tuple[str, str], then: str = "keep", **changes: Any) -> None:
        for framing in ("length", "chunked"):
            data = http(body, STREAM_PROTO, headers=[*headers, *METADATA], framing=framing, **changes)
            answers.add(f"{name}, {framing}", data, then)

    packed = frame(GZIP.compress(TEXT), 1)
    add("nothing", b"")
    add("only an end", end())
    add("two messages", replies("a", "b") + end())
    add("many messages", replies(*map(str, range(300))) + end())
    add("no end", replies("a"))
    add("cut off", replies("a", "b")[:-1])
    add("cut off in the header", replies("a") + b"\0\0")
    add("end cut off", replies("a") + end()[:-1])
    add("a message after the end", replies("a") + end() + replies("b"))
    add("two ends", replies("a") + end() + end())
    add("half a message after the end", replies("a") + end() + b"\0")
    add("nonsense", replies("a") + frame(b"\xff") + end())
    add("unknown flags", replies("a") + frame(TEXT, 4) + end())
    add("trailers", replies("a") + end(None, '{"X-T":["1","2"],"x-u":["3"]}'))
    add("error", replies("a") + end(ERROR, '{"x-t":["1"]}'))
    add("error at once", end(ERROR, '{"x-t":["1"]}'))
    add("error with an unknown code", end(b'{"code":"other"}'))
    add("end that is no JSON", replies("a") + frame(b"{", 2))
    add("end that is no object", replies("a") + frame(b"[]", 2))
    add("end with wrong metadata", replies("a") + end(None, '{"x":"1"}'))
    add("end with a wrong error", replies("a") + end(b'"aborted"'))
    add("empty end", replies("a") + frame(b"", 2))
    add("compressed", packed + end(), declared)
    add("compressed in capitals", packed + end(), ("Connect-Content-Encoding", "GZIP"))
    add("compressed nothing", frame(b"", 1) + end(), declared)
    add("compressed end", packed + frame(GZIP.compress(b"{}"), 3), declared)
    add("declared, not compressed", replies("a") + end(), declared)
    add("not declared", packed + end())
    add("end not declared", replies("a") + frame(GZIP.compress(b"{}"), 3))
    add("broken compression", frame(GZIP.compress(TEXT)[:-9], 1) + end(), declared)
    add("unknown compression", replies("a") + end(), ("Connect-Content-Encoding", "x-none"))
    add("compressed as a body", GZIP.compress(replies("a") + end()), GZIPPED)
    add("large", frame(BIG_TEXT) + end())
    add("too large", replies("a") + frame(BIG_TEXT * 3) + end())
    add("too large when it is decompressed", frame(GZIP.compress(BIG_TEXT * 3), 1) + end(), declared)
    add("announces too much", replies("a") + b"\0\xff\xff\xff\xff")
    for then in ("end", "reset"):
        body = replies("a", "b") + end()
        answers.add(f"{then} between messages", http(body, STREAM_PROTO)[: -len(replies("b") + end())], then)
        answers.add(f"{then} before the end of the stream", http(body, STREAM_PROTO)[: -len(end())], then)
        answers.add(f"{then} in the end of the stream", http(body, STREAM_PROTO)[:-1], then)
    answers.add("error as of a unary call", http(ERROR, JSON, "409 Conflict", METADATA))
    answers.add("early error", http(end(ERROR), STREAM_PROTO, headers=METADATA, framing="chunked"), early=True)
    return answers.table


def web_end(*lines: str, flags: int = 0x80) -> bytes:
    return frame("".join(f"{line}\r\n" for line in lines).encode("latin-1"), flags)


WEB_ERROR = ("grpc-status: 10", "grpc-message: m%C3%A4", f"grpc-status-details-bin: {WEB_DETAILS}")


def web_answers(good: bytes) -> dict[str, Reply]:
    answers = Answers(WEB_PROTO, good)
    declared = ("Grpc-Encoding", "gzip")

    def add(name: str, body: bytes, *headers: tuple[str, str], **changes: Any) -> None:
        for framing in ("length", "chunked"):
            data = http(body, WEB_PROTO, headers=[*headers, *METADATA], framing=framing, **changes)
            answers.add(f"{name}, {framing}", data)

    packed = frame(GZIP.compress(TEXT), 1)
    well = web_end("grpc-status: 0")
    add("nothing", b"")
    add("only an end", well)
    add("two messages", replies("a", "b") + well)
    add("many messages", replies(*map(str, range(300))) + well)
    add("no end", replies("a"))
    add("cut off", replies("a", "b")[:-1])
    add("cut off in the header", replies("a") + b"\0\0")
    add("end cut off", replies("a") + well[:-1])
    add("a message after the end", replies("a") + well + replies("b"))
    add("two ends", replies("a") + well + well)
    add("half a message after the end", replies("a") + well + b"\0")
    add("nonsense", replies("a") + frame(b"\xff") + well)
    add("unknown flags", replies("a") + frame(TEXT, 4) + well)
    add("end of another protocol", replies("a") + end())
    add("trailers", replies("a") + web_end("grpc-status: 0", "x-t: 1", "X-T: 2", "x-u-bin: AAE"))
    add("error", replies("a") + web_end(*WEB_ERROR, "x-t: 1"))
    add("error at once", web_end(*WEB_ERROR, "x-t: 1"))
    for status in ("1", "16", "17", "", "x", "-1", "4294967296"):
        add(f"status {status!r}", replies("a") + web_end(f"grpc-status: {status}", "grpc-message: m"))
        headers = [("Grpc-Status", status), ("Grpc-Message", "m%20%C3%A4"), ("X-T", "1")]
        add(f"trailers only, status {status!r}", b"", *headers)
        add(f"status {status!r} in the headers, and messages", replies("a") + well, *headers)
        add(f"status {status!r} in the headers, and no end", replies("a"), *headers)
    add("trailers only, well", b"", ("grpc-status", "0"))
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in WEB_ERROR)]
    add("trailers only, details", b"", *headers)
    add("end without a status", replies("a") + web_end("x-t: 1"))
    add("empty end", replies("a") + frame(b"", 0x80))
    add("end that is no block of headers", replies("a") + frame(b"{}", 0x80))
    add("compressed", packed + well, declared)
    add("compressed nothing", frame(b"", 1) + well, declared)
    add("compressed end", packed + frame(GZIP.compress(b"grpc-status: 0\r\nx-t: 1\r\n"), 0x81), declared)
    add("declared, not compressed", replies("a") + well, declared)
    add("not declared", packed + well)
    add("end not declared", replies("a") + frame(GZIP.compress(b"grpc-status: 0\r\n"), 0x81))
    add("broken compression", frame(GZIP.compress(TEXT)[:-9], 1) + well, declared)
    add("unknown compression", replies("a") + well, ("Grpc-Encoding", "x-none"))
    add("compressed as a body", GZIP.compress(replies("a") + well), GZIPPED)
    add("large", frame(BIG_TEXT) + well)
    add("too large", replies("a") + frame(BIG_TEXT * 3) + well)
    add("too large when it is decompressed", frame(GZIP.compress(BIG_TEXT * 3), 1) + well, declared)
    add("announces too much", replies("a") + b"\0\xff\xff\xff\xff")
    add("announces too long an end", replies("a") + b"\x80\xff\xff\xff\xff")
    for content_type in (WEB, WEB_JSON, "application/grpc", "application/grpc-web-text"):
        answers.add(f"media type {content_type}", http(good, content_type, headers=METADATA))
    for then in ("end", "reset"):
        body = replies("a", "b") + well
        answers.add(f"{then} between messages", http(body, WEB_PROTO)[: -len(replies("b") + well)], then)
        answers.add(f"{then} before the trailers", http(body, WEB_PROTO)[: -len(well)], then)
        answers.add(f"{then} in the trailers", http(body, WEB_PROTO)[:-1], then)
    answers.add("early error", http(web_end(*WEB_ERROR), WEB_PROTO, headers=METADATA, framing="chunked"), early=True)
    return answers.table


STREAM_ONE = replies("answer") + end(None, '{"x-t":["1"]}')
WEB_ONE = replies("answer") + web_end("grpc-status: 0", "x-t: 1")
CONNECT: dict[str, Any] = {"use_get": True}
GRPC_WEB: dict[str, Any] = {"protocol": "grpc-web"}
TABLES: list[tuple[Any, dict[str, Reply], dict[str, Any]]] = [
    (UNARY, unary_answers(), CONNECT),
    (PURE, unary_answers(), CONNECT),
    (SERVER, stream_answers(STREAM_ONE), CONNECT),
    (CLIENT, stream_answers(STREAM_ONE), CONNECT),
    (BIDI, stream_answers(STREAM_ONE), CONNECT),
    *((method, web_answers(WEB_ONE), GRPC_WEB) for method in (UNARY, SERVER, CLIENT)),
]
ANSWERS = [
    pytest.param(method, given, protocol, id=f"{protocol.get('protocol', '')} {method.name.lower()}: {name}".strip())
    for method, table, protocol in TABLES
    for name, given in table.items()
]


@pytest.mark.parametrize("size", [0, 1], ids=["whole", "drip"])
@pytest.mark.parametrize(("method", "given", "protocol"), ANSWERS)
def test_the_same_answer(method: Any, given: Reply, protocol: dict[str, Any], size: int) -> None:
    options = {"read_max_bytes": 8000, **protocol}
    for raising in (False, True):
        networks = [Network([given], size) for _ in range(2)]
        expected = Calls(networks[0], options).blocking(method, requests_for(method, "a", "b"), raising=raising)
        found = Calls(networks[1], options).awaited(method, requests_for(method, "a", "b"), raising=raising)
        assert found == expected
        assert len(networks[0].raw) == len(networks[1].raw) == 1, "nothing is sent again, and no redirect is followed"
        if not raising:
            assert isinstance(expected.get("error"), tuple | None), "the form that tells does not raise"
        elif "raised" in expected:
            assert isinstance(expected["raised"], tuple), "only what calls fail with"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_messages_that_were_not_encoded(method: Any) -> None:
    """What a library makes of bytes above 127 in headers is its own, but the error gets through."""
    headers = [("grpc-status", "5"), ("grpc-message", "m\xe4"), ("x-h", "1")]
    for colour in ("blocking", "awaited"):
        network = Network([Reply(http(b"", WEB_PROTO, headers=headers))])
        outcome = getattr(Calls(network, GRPC_WEB), colour)(method, requests_for(method, "a"))
        code, message, *_ = outcome["error"]
        assert code is ConnectErrorCode.NOT_FOUND
        assert message.startswith("m")
        assert message.encode()


def hard_answers() -> Iterator[Any]:
    """What only one of the two HTTP libraries deals with by itself."""
    for method, good, content_type in (
        (UNARY, TEXT, PROTO),
        (PURE, TEXT, PROTO),
        (SERVER, STREAM_ONE, STREAM_PROTO),
        (BIDI, STREAM_ONE, STREAM_PROTO),
    ):
        name, whole = method.name.lower(), http(good, content_type)
        for then in ("end", "reset"):
            for where, stop in (("before the head", 0), ("in the status line", 10), ("in the head", 30)):
                yield pytest.param(method, Reply(whole[:stop], then), id=f"{name}: {then} {where}")
        hints = b"HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
        yield pytest.param(method, Reply(hints * 2 + whole), id=f"{name}: 103 Early Hints")
        for chunk in (b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n0\r\n\r\n"):
            broken = http(b"", content_type, framing="chunked")[:-5] + chunk
            yield pytest.param(method, Reply(broken, "end"), id=f"{name}: nonsense for a chunk, {chunk[:2].decode()}")
    encodings = [("Content-Encoding", "gzip  ")]
    yield pytest.param(UNARY, Reply(http(GZIP.compress(TEXT), headers=encodings)), id="unary: spaces behind a value")


@pytest.mark.parametrize("size", [0, 1], ids=["whole", "drip"])
@pytest.mark.parametrize(("method", "given"), list(hard_answers()))
def test_answers_that_are_hard(method: Any, given: Reply, size: int, request: pytest.FixtureRequest) -> None:
    if "nonsense" in request.node.name and not hasattr(ResponseHandler, "closed"):
        pytest.skip("this aiohttp tells nobody who reads that a broken chunk has ended the connection")
    networks = [Network([given], size), Network([given, given], size)]
    options = {"use_get": True}
    expected = Calls(networks[0], options).blocking(method, requests_for(method, "a"))
    found = Calls(networks[1], options).awaited(method, requests_for(method, "a"))
    assert len(networks[0].raw) == 1, "nothing is sent again"
    # A GET is, once, by aiohttp itself, which cannot be told not to; it is only used where that does no harm.
    assert len(networks[1].raw) == 1 or (method is PURE and len(networks[1].raw) == 2)
    for outcome in (expected, found):
        outcome.pop("headers", None)  # of an answer that never came
        if outcome.get("error") is not None:
            assert outcome["error"][0] is ConnectErrorCode.UNAVAILABLE
    assert found == expected


def test_the_answers_are_about_something() -> None:
    outcomes, codes = set(), set()
    for method, table, protocol in TABLES:
        for given in table.values():
            options = {"read_max_bytes": 8000, **protocol, "use_get": False}
            outcome = Calls(Network([given]), options).blocking(method, requests_for(method, "a"))
            outcomes.add((method, repr(outcome)))
            if outcome["error"] is not None:
                codes.add(outcome["error"][0].code_name)
    assert len(outcomes) > len(ANSWERS) / 4
    assert codes == {
        *("aborted", "internal", "permission_denied", "resource_exhausted", "unauthenticated", "unavailable"),
        *("unimplemented", "unknown", "canceled"),
    }


# What goes out


class Call:
    """A call: what is asked, and with which options."""

    def __init__(
        self, method: Any, names: tuple[str, ...] = ("a",), args: tuple[Any, ...] = (), **options: Any
    ) -> None:
        self.method = method
        self.names = names
        self.args = args
        self.options = options


def calls() -> Iterator[Any]:
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "json": {"codec": "json"},
        "compressing": {"send_compression": "gzip"},
        "compressing all": {"send_compression": "br", "compress_min_bytes": 0},
        "compressing with identity": {"send_compression": "identity"},
        "accepting one": {"accept_compression": ["gzip"]},
        "accepting none": {"accept_compression": []},
        "by get": {"use_get": True},
        "by get, json": {"use_get": True, "codec": "json"},
        "by get, compressing": {"use_get": True, "send_compression": "gzip", "compress_min_bytes": 0},
        "by get, json, compressing": {
            "use_get": True,
            "codec": "json",
            "send_compression": "gzip",
            "compress_min_bytes": 0,
        },
        "by get, short urls": {"use_get": True, "get_url_max_bytes": 20},
        "headers": {"extra_headers": {"x-a": "1", "X-Many": ["2", "3"]}},
        "user agent": {"extra_headers": {"User-Agent": "mine"}},
        "deadline": {"timeout_seconds": 50},
        "grpc-web": {"protocol": "grpc-web"},
        "grpc-web, json": {"protocol": "grpc-web", "codec": "json"},
        "grpc-web, compressing": {"protocol": "grpc-web", "send_compression": "gzip"},
        "grpc-web, accepting none": {"protocol": "grpc-web", "accept_compression": []},
        "grpc-web, headers": {"protocol": "grpc-web", "extra_headers": {"x-a": "1", "X-Many": ["2", "3"]}},
        "limits": {"send_max_bytes": 100_000, "read_max_bytes": None},
        "intercepted": {"interceptors": [Hooks()]},
    }
    arguments: dict[str, tuple[Any, ...]] = {
        "": (),
        "headers given": ({"X-Given": "g", "x-many": ["4", "5"], "x-bin": "AAE"},),
        "user agent given": ({"user-agent": "given"},),
        "timeout given": (None, 7.0004),
    }
    for method in METHODS:
        for title, given in options.items():
            for name, args in arguments.items():
                yield pytest.param(
                    Call(method, ("a", "b"), args, **given), id=f"{method.name.lower()}, {title}, {name}"
                )
        for title, names in {"none": (), "empty": ("",), "large": (BIG,), "many": tuple(map(str, range(200)))}.items():
            if names or method.kind.client_streams:
                for name in ("plain", "json", "compressing", "by get", "by get, json", "grpc-web", "grpc-web, json"):
                    made = Call(method, names, (), **options[name])
                    yield pytest.param(made, id=f"{method.name.lower()}, {name}, {title}")


def good_for(method: Any, options: dict[str, Any]) -> Reply:
    as_json = options.get("codec") == "json"
    if options.get("protocol") == "grpc-web":
        body = frame(b'{"fileName":"answer"}') if as_json else replies("answer")
        return Reply(http(body + web_end("grpc-status: 0"), WEB_JSON if as_json else WEB_PROTO, framing="chunked"))
    if method in (UNARY, PURE):
        return Reply(http(b'{"fileName":"answer"}', JSON) if as_json else http(TEXT))
    body = frame(b'{"fileName":"answer"}') if as_json else replies("answer")
    return Reply(http(body + end(), STREAM_JSON if as_json else STREAM_PROTO, framing="chunked"))


def told_timeout(sent: Sent) -> int:
    """Milliseconds, which are taken out of the headers; none are 0."""
    values = [sent.headers.popall(name, ["0"]) for name in ("connect-timeout-ms", "grpc-timeout")]
    return sum(int(value.removesuffix("m")) for (value,) in values)


@pytest.mark.parametrize("call", list(calls()))
def test_the_same_request(call: Call) -> None:
    sent = []
    for colour in ("blocking", "awaited"):
        network = Network([good_for(call.method, call.options)])
        requests = requests_for(call.method, *call.names)
        outcome = getattr(Calls(network, call.options), colour)(call.method, requests, *call.args)
        assert outcome["texts"] == ["answer"], outcome
        (found,) = network.sent()
        assert found.complete
        sent.append(found)
    one, other = sent
    if "interceptors" in call.options:
        # What the server is told is what they have left of the timeout.
        assert abs(told_timeout(one) - told_timeout(other)) <= 1000
    assert other.line == one.line
    # aiohttp's own, which says that anything will do, as no header does.
    assert other.headers.popall("accept", ["*/*"]) == ["*/*"]
    assert other.joined() == one.joined()
    assert other.body == one.body
    assert one.line.endswith(" HTTP/1.1")
    assert one.headers["host"] == "host:81"


def test_the_form_of_requests() -> None:
    """So that both being wrong in the same way does not pass for right."""
    network = Network([good_for(CLIENT, {})])
    assert Calls(network, {}).blocking(CLIENT, [ask("a"), ask("b")])["texts"] == ["answer"]
    (sent,) = network.sent()
    assert sent.line == f"POST /base{CLIENT.path} HTTP/1.1"
    assert sent.body == asked(ask("a"), ask("b"))
    assert sent.joined() == {
        "accept-encoding": "identity",
        "connect-accept-encoding": "zstd, br, gzip",
        "connect-protocol-version": "1",
        "content-type": STREAM_PROTO,
        "host": "host:81",
        "transfer-encoding": "chunked",
        "user-agent": sent.headers["user-agent"],
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_form_of_requests_of_grpc_web(method: Any) -> None:
    network = Network([good_for(method, GRPC_WEB)])
    names = ("a", "b") if method.kind.client_streams else ("a",)
    assert Calls(network, GRPC_WEB).blocking(method, requests_for(method, *names), None, 7.0004)["texts"] == ["answer"]
    (sent,) = network.sent()
    assert sent.line == f"POST /base{method.path} HTTP/1.1"
    assert sent.body == asked(*(ask(name, 5) for name in names))
    headers = sent.joined()
    assert headers.pop("transfer-encoding", None) == ("chunked" if method.kind.client_streams else None)
    headers.pop("content-length", None)
    assert headers == {
        "accept-encoding": "identity",
        "content-type": WEB_PROTO,
        "grpc-accept-encoding": "zstd,br,gzip",
        "grpc-timeout": "7001m",
        "host": "host:81",
        "user-agent": sent.headers["user-agent"],
        "x-grpc-web": "1",
    }


# Calls that never go out, or stop on their way


class Broken:
    """Requests of which the last cannot be had."""

    def __init__(self, error: Exception, *names: str) -> None:
        self._error = error
        self._names = names

    def __iter__(self) -> Iterator[Any]:
        yield from map(ask, self._names)
        raise self._error


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("names", [(), ("a", "b")])
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("mine"), ConnectError(ConnectErrorCode.DATA_LOSS, "m"), OSError("mine")]
)
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_requests_that_break_off(
    method: Any, error: Exception, names: tuple[str, ...], early: bool, protocol: str
) -> None:
    """The caller gets what its iterator raised, whatever the server has said by then."""
    body = (WEB_ONE, WEB_PROTO) if protocol == "grpc-web" else (STREAM_ONE, STREAM_PROTO)
    given = Reply(http(*body), early=early)
    outcomes = []
    for colour in ("blocking", "awaited"):
        for raising in (False, True):
            network = Network([given])
            call = getattr(Calls(network, {"protocol": protocol}), colour)
            outcomes.append(call(method, Broken(error, *names), raising=raising))
    if early:
        # The asynchronous client reads while it writes, so it may have had its answer by then.
        assert outcomes[2]["texts"] in ([], ["answer"])
        outcomes = outcomes[:2]
    told_, raised, *others = outcomes
    assert others in ([], [told_, raised])
    assert raised["raised"] == told(error)
    assert (told_.get("error") or told_.get("raised")) == told(error)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (({"connect-x": "1"},), {}),
        (({"x": "\n"},), {}),
        (({"x": 5},), {}),
        ((None, 0), {}),
        ((None, -1.0), {}),
        ((None, float("nan")), {}),
        ((), {"send_max_bytes": 1}),
        (({"grpc-timeout": "1S"},), {"protocol": "grpc-web"}),
        ((None, 0), {"protocol": "grpc-web"}),
        ((), {"protocol": "grpc-web", "send_max_bytes": 1}),
    ],
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_calls_that_do_not_go_out(method: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    for raising in (False, True):
        outcomes = []
        for colour in ("blocking", "awaited"):
            network = Network([good_for(method, options)])
            call = getattr(Calls(network, options), colour)
            outcomes.append(call(method, requests_for(method, "a"), *args, raising=raising))
            if not ("send_max_bytes" in options and method.kind.client_streams):
                assert network.raw == []
        assert outcomes[0] == outcomes[1]
        assert outcomes[0]["texts"] == []


@pytest.mark.parametrize("wrong", [reply("of an answer"), None, "text", 5])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_wrong_requests(method: Any, wrong: Any) -> None:
    kinds: list[dict[str, Any]] = [{}, {"use_get": True}, {"protocol": "grpc-web"}]
    for options in kinds:
        outcomes = []
        for colour in ("blocking", "awaited"):
            network = Network([good_for(method, options)])
            call = getattr(Calls(network, options), colour)
            outcomes.append(call(method, [wrong] if method.kind.client_streams else wrong))
        assert outcomes[0] == outcomes[1]
        assert outcomes[0]["raised"].startswith("TypeError(")


# Connections


@pytest.mark.parametrize("leave_after", [None, 0, 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_connections_are_kept_alike(method: Any, framing: str, leave_after: int | None) -> None:
    """After an answer that was read to its end the next call takes the same connection. What is left of one that was
    not may be thrown away or not, but never comes to the next."""
    body, content_type = (TEXT, PROTO) if method in (UNARY, PURE) else (replies("a", "b") + end(), STREAM_PROTO)
    if method is CLIENT:
        body = STREAM_ONE
    answers = [Reply(http(body, content_type, framing=framing)) for _ in range(3)]
    networks = [Network(answers), Network(answers)]

    with SyncClient("http://host:81", networks[0].manager()) as client:
        made = Calls(networks[0], {}, leave_after=leave_after)
        expected = [made._sync(client._caller, method, requests_for(method, "a")) for _ in answers]

    async def main() -> list[Outcome]:
        session = networks[1].session()
        made = Calls(networks[1], {}, leave_after=leave_after)
        caller = AsyncClient("http://host:81", session)._caller
        found = [await made._async(caller, method, requests_for(method, "a")) for _ in answers]
        await session.close()
        return found

    assert asyncio.run(main()) == expected
    if not method.kind.server_streams or leave_after is None:
        assert [network.connections for network in networks] == [1, 1]


# Interceptors and hooks


class Noting(Hooks):
    """Notes what it is told."""

    def __init__(self, log: list[Any], name: str) -> None:
        self._log = log
        self._name = name

    def on_start(self, context: Any) -> None:
        self._log.append((self._name, "start", context.method, context.peer.address, context.is_client))
        context.request_headers[f"x-from-{self._name}"] = "h"

    def on_request_message(self, context: Any, message: Any) -> None:
        self._log.append((self._name, ">", message.name))

    def on_response_headers(self, context: Any, headers: Any) -> None:
        self._log.append((self._name, "headers", pairs(headers)))

    def on_response_message(self, context: Any, message: Any) -> None:
        self._log.append((self._name, "<", message.file_name))

    def on_end(self, context: Any, error: BaseException | None, trailers: Any) -> None:
        self._log.append((self._name, "end", told(error), pairs(trailers)))


def passing(asynchronous: bool, log: list[Any]) -> Any:
    """An interceptor that only looks."""

    def sync(request: Request, proceed: Any) -> Response:
        log.append(("before",))
        try:
            response: Response = proceed(request)
        except BaseException as error:
            log.append(("failed", told(error)))
            raise
        log.append(("after", response.message is None))
        return response

    async def waiting(request: Request, proceed: Any) -> Response:
        log.append(("before",))
        await asyncio.sleep(0)
        try:
            response: Response = await proceed(request)
        except BaseException as error:
            log.append(("failed", told(error)))
            raise
        log.append(("after", response.message is None))
        return response

    return waiting if asynchronous else sync


SETS: dict[str, Callable[[bool, list[Any]], list[Any]]] = {
    "hooks": lambda asynchronous, log: [Noting(log, "a"), Noting(log, "b")],
    "interceptor": lambda asynchronous, log: [passing(asynchronous, log)],
    "mixed": lambda asynchronous, log: [Noting(log, "a"), passing(asynchronous, log), Noting(log, "b")],
}


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize(("method", "given", "protocol"), ANSWERS)
def test_interceptors_are_told_the_same(which: str, method: Any, given: Reply, protocol: dict[str, Any]) -> None:
    logs: list[list[Any]] = [[], []]
    networks = [Network([given]), Network([given])]
    outcomes = []
    for asynchronous, network, log in zip((False, True), networks, logs, strict=True):
        options = {"read_max_bytes": 8000, **protocol, "use_get": False, "interceptors": SETS[which](asynchronous, log)}
        calls = Calls(network, options)
        outcomes.append((calls.awaited if asynchronous else calls.blocking)(method, requests_for(method, "a", "b")))
    assert outcomes[0] == outcomes[1]
    for log in logs:
        for name in {entry[0] for entry in log if entry[0] in ("a", "b")}:
            marks = [entry[1] for entry in log if entry[0] == name]
            assert marks.count("end") == 1, "whatever happens"
            assert marks[-1] == "end"
    if given.early:
        # The asynchronous client may have its answer before it has sent the request.
        logs = [sorted(map(repr, log)) for log in logs] if len(logs[0]) == len(logs[1]) else [[], []]
    assert logs[0] == logs[1]
    one, other = (network.sent()[0] for network in networks)
    other.headers.popall("accept", None)
    assert other.joined() == one.joined()
