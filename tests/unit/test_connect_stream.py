"""Streaming calls of the Connect protocol, a side at a time. ``test_wiring`` has both together."""

from __future__ import annotations

import json
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict

from connectrpc import compression
from connectrpc._core.call import messages_of
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ServerStream
from harness import (
    BIDI,
    CLIENT,
    MISSING,
    SERVER,
    STREAM_JSON,
    STREAM_PROTO,
    Answer,
    Head,
    ask,
    asked,
    code_of,
    endpoints_of,
    frame,
    frames,
    pieces,
    reply,
)

if TYPE_CHECKING:
    from connectrpc._core.call import StreamClient, StreamClientCall

GZIP = compression.named("gzip")
BIG = "x" * 2000
OK = frame(b"{}", 2)

# The server's side


def open_call(
    method: Any = BIDI, headers: dict[str, str] | None = None, content_type: str = STREAM_PROTO, **options: Any
) -> Any:
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), options)
    found = negotiate(endpoints, Head(method.path, {"content-type": content_type, **(headers or {})}.items()))
    assert not isinstance(found, WholeResponse)
    return found[1]


@pytest.mark.parametrize("size", [0, 1, 6])
def test_requests(size: int) -> None:
    call = open_call()
    found = [message for piece in pieces(asked(ask("a"), ask(), ask("b", 5)), size) for message in call.feed(piece)]
    call.feed_end()
    assert found == [ask("a"), ask(), ask("b", 5)]


def test_no_requests_at_all() -> None:
    open_call().feed_end()


def test_json_requests() -> None:
    call = open_call(content_type=STREAM_JSON)
    assert list(call.feed(frame(b'{"name":"a"}') + frame(b"{}"))) == [ask("a"), ask()]


@pytest.mark.parametrize("name", ["gzip", "GZIP"])
def test_each_message_is_compressed_or_not(name: str) -> None:
    call = open_call(headers={"connect-content-encoding": name})
    payload = ask(BIG).SerializeToString()
    assert list(call.feed(frame(GZIP.compress(payload), 1) + frame(payload) + frame(b"", 1))) == [
        ask(BIG),
        ask(BIG),
        ask(),
    ]


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (frame(b"\xff"), {}, "invalid_argument"),
        (frame(b"", 2), {}, "invalid_argument"),
        (frame(b"", 4), {}, "invalid_argument"),
        (frame(b"", 0x80), {}, "invalid_argument"),
        (frame(b"", 0xFF), {}, "invalid_argument"),
        (frame(b"x", 1), {}, "internal"),
        (frame(b"x", 1), {"connect-content-encoding": "identity"}, "internal"),
        (frame(b"x", 1), {"connect-content-encoding": "gzip"}, "invalid_argument"),
        (frame(b"x" * 1001), {}, "resource_exhausted"),
        (frame(GZIP.compress(b"\0" * 1001), 1), {"connect-content-encoding": "gzip"}, "resource_exhausted"),
    ],
)
def test_requests_that_are_none(body: bytes, headers: dict[str, str], code: str) -> None:
    call = open_call(headers=headers, read_max_bytes=1000)
    found = []
    with pytest.raises(ConnectError) as caught:
        for message in call.feed(asked(ask("before")) + body):
            found.append(message)  # noqa: PERF402  what came before the error counts
    assert found == [ask("before")]
    assert code_of(caught.value) == code


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_request_that_is_cut_off(cut: int) -> None:
    call = open_call()
    body = asked(ask("a"))
    assert list(call.feed(body[:-cut])) == []
    with pytest.raises(ConnectError) as caught:
        call.feed_end()
    assert code_of(caught.value) == "invalid_argument"


def test_wanted() -> None:
    call = open_call()
    assert call.wanted == 5
    list(call.feed(b"\0\0\0\x01\0"))
    assert call.wanted == 256


def one(body: bytes, size: int) -> Any:
    """Read a body that must hold one message."""
    call = open_call(SERVER)
    if not size:
        return call.receive(body)
    for piece in pieces(body, size):
        call.take(piece)
    return call.taken()


@pytest.mark.parametrize("size", [0, 1, 6])
def test_exactly_one_request(size: int) -> None:
    assert one(asked(ask("a")), size) == ask("a")
    for body in (b"", asked(ask(), ask()), asked(*[ask()] * 5)):
        with pytest.raises(ConnectError) as caught:
            one(body, size)
        assert code_of(caught.value) == "unimplemented"
    with pytest.raises(ConnectError) as caught:
        one(asked(ask("a"))[:-1], size)
    assert code_of(caught.value) == "invalid_argument"


def whole(response: WholeResponse) -> Answer:
    return Answer(response.status, response.headers, response.body)


def test_an_answer() -> None:
    call = open_call()
    head = call.start({"X-H": ["1", "2"]})
    body = call.send(reply("a")) + call.send(reply("b")) + call.finish(None, {"X-T": "3"})
    answer = Answer(head.status, head.headers, body)
    assert answer.stream() == (["a", "b"], {"metadata": {"x-t": ["3"]}})
    assert answer.headers.getall("x-h") == ["1", "2"]


def test_a_whole_answer() -> None:
    answer = whole(open_call(CLIENT).answer(reply("a")))
    assert answer.stream() == (["a"], {})
    assert int(answer.headers["content-length"]) == len(answer.body)


def test_an_answer_in_json() -> None:
    call = open_call(content_type=STREAM_JSON)
    assert ("content-type", STREAM_JSON) in call.start(None).headers
    assert frames(call.send(reply("a"))) == [(0, b'{"fileName":"a"}')]


@pytest.mark.parametrize("code", ConnectErrorCode)
def test_errors(code: ConnectErrorCode) -> None:
    answer = whole(open_call().fail(ConnectError(code, "m", [Duration(seconds=5)])))
    assert answer.stream() == (
        [],
        {
            "error": {
                "code": code.code_name,
                "message": "m",
                "details": [{"type": "google.protobuf.Duration", "value": "CAU"}],
            }
        },
    )


@pytest.mark.parametrize(
    ("headers", "declared", "flag"),
    [
        ({"connect-accept-encoding": "gzip"}, "gzip", 1),
        ({"connect-accept-encoding": "br;q=0, gzip"}, "gzip", 1),
        ({"connect-content-encoding": "gzip"}, "gzip", 1),
        ({"accept-encoding": "gzip"}, None, 0),
        ({"connect-accept-encoding": "identity"}, None, 0),
        ({}, None, 0),
    ],
)
def test_compressed_answers(headers: dict[str, str], declared: str | None, flag: int) -> None:
    call = open_call(headers=headers)
    assert dict(call.start(None).headers).get("connect-content-encoding") == declared
    ((flags, payload),) = frames(call.send(reply(BIG)))
    assert flags == flag
    assert (GZIP.decompress(payload, None) if flag else payload) == reply(BIG).SerializeToString()
    assert frames(call.send(reply("small")))[0][0] == 0


@pytest.mark.parametrize("message", [None, "text", ask("of the request"), [reply()], UnicodeError()])
def test_messages_that_are_none(message: object) -> None:
    with pytest.raises(TypeError, match=r"bidi\(\)"):
        open_call().send(message)


def test_what_streaming_handlers_give() -> None:
    messages = [reply()]
    stream = ServerStream(messages, {"a": "1"})
    assert messages_of(SERVER, stream) == (messages, {"a": "1"}, stream)
    assert messages_of(SERVER, messages) == (messages, None, None)
    error = ConnectError(ConnectErrorCode.ABORTED)
    with pytest.raises(ConnectError) as caught:
        messages_of(SERVER, error)
    assert caught.value is error
    for wrong in (None, 5, reply(), object()):
        with pytest.raises(TypeError, match=r"server\(\)"):
            messages_of(SERVER, wrong)


# The client's side


def client(**options: Any) -> StreamClient:
    return Procedures("http://h/base/", options, asynchronous=False).stream(BIDI)  # type: ignore[arg-type]


def test_the_form_of_a_request() -> None:
    request = client().request({"x-a": "1"}, 2500)
    assert (request.method, request.url) == ("POST", "http://h/base" + BIDI.path)
    headers = dict(request.headers)
    assert len(headers) == len(request.headers)
    assert headers.pop("user-agent").startswith("connect-python/")
    assert headers == {
        "content-type": STREAM_PROTO,
        "connect-protocol-version": "1",
        "accept-encoding": "identity",  # the body as a whole is not to be compressed
        "connect-accept-encoding": "zstd, br, gzip",
        "connect-timeout-ms": "2500",
        "x-a": "1",
    }
    made = client(codec="json", send_compression="gzip", accept_compression=())
    headers = dict(made.request(None, None).headers)
    assert headers["content-type"] == STREAM_JSON
    assert headers["connect-content-encoding"] == "gzip"
    assert headers["connect-accept-encoding"] == "identity"
    assert "connect-timeout-ms" not in headers


def test_messages_of_a_request() -> None:
    assert client().send(ask("a")) == asked(ask("a"))
    made = client(send_compression="gzip")
    assert made.send(ask("a")) == asked(ask("a")), "too small"
    ((flags, payload),) = frames(made.send(ask(BIG)))
    assert flags == 1
    assert GZIP.decompress(payload, None) == ask(BIG).SerializeToString()
    for wrong in (None, reply("of the answer"), "text"):
        with pytest.raises(TypeError):
            made.send(wrong)


def begin(
    status: int = 200, content_type: str | None = STREAM_PROTO, headers: dict[str, str] | None = None, **options: Any
) -> StreamClientCall:
    pairs: CIMultiDict[str] = CIMultiDict(headers or {})
    if content_type is not None:
        pairs["Content-Type"] = content_type
    call = client(**options).call()
    call.head(status, pairs)
    return call


def read(
    body: bytes, size: int = 0, headers: dict[str, str] | None = None, **options: Any
) -> tuple[list[str], ConnectError | None, StreamClientCall]:
    """The texts of an answer, its error, and the call."""
    call, found = begin(headers=headers, **options), []
    try:
        for piece in pieces(body, size):
            for message in call.feed(piece):
                found.append(message.file_name)  # noqa: PERF401  what came before the error counts
        call.feed_end(None)
    except ConnectError as error:
        return found, error, call
    return found, None, call


def replies(*texts: str) -> bytes:
    return b"".join(frame(reply(text).SerializeToString()) for text in texts)


@pytest.mark.parametrize("size", [0, 1, 6])
def test_an_answer_is_read(size: int) -> None:
    end = frame(b'{"metadata":{"X-T":["1","2"]}}', 2)
    texts, error, call = read(replies("a", "", "b") + end, size, {"X-H": "1"})
    assert (texts, error) == (["a", "", "b"], None)
    headers, trailers = call.metadata()
    assert headers["x-h"] == "1"
    assert trailers.getall("x-t") == ["1", "2"]
    assert call.complete


def test_complete_is_the_end_of_the_stream_not_of_the_body() -> None:
    call = begin()
    assert not call.complete
    list(call.feed(replies("a")))
    assert not call.complete
    list(call.feed(OK))
    assert call.complete


@pytest.mark.parametrize("content_type", ["Application/Connect+Proto", "application/connect+proto; charset=utf-8"])
def test_media_type_of_an_answer(content_type: str) -> None:
    begin(content_type=content_type)


@pytest.mark.parametrize("size", [0, 1])
def test_an_error_at_the_end(size: int) -> None:
    end = {
        "error": {"code": "aborted", "message": "m", "details": [{"type": "google.protobuf.Duration", "value": "CAU"}]},
        "metadata": {"x-t": ["1"]},
    }
    texts, error, _ = read(replies("a") + frame(json.dumps(end).encode(), 2), size, {"X-H": "1"})
    assert texts == ["a"]
    assert error is not None
    assert (code_of(error), error.message) == ("aborted", "m")
    assert error.details[0].message() == Duration(seconds=5)
    assert error.response_headers()["x-h"] == "1"
    assert error.response_trailers()["x-t"] == "1"


def test_compressed_messages_are_read() -> None:
    body = frame(GZIP.compress(reply(BIG).SerializeToString()), 1) + replies("a") + frame(b"", 1)
    body += frame(GZIP.compress(b'{"metadata":{"a":["1"]}}'), 3)
    texts, error, call = read(body, headers={"connect-content-encoding": "GZIP"})
    assert (texts, error) == ([BIG, "a", ""], None)
    assert call.metadata()[1]["a"] == "1"


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"", {}, "internal"),  # it does not say how it went
        (replies("b"), {}, "internal"),
        (b"\0\0", {}, "internal"),
        (replies("b")[:-1], {}, "internal"),
        (OK[:-1], {}, "internal"),
        (OK + replies("late"), {}, "internal"),
        (OK + OK, {}, "internal"),
        (OK + b"\0", {}, "internal"),
        (frame(b"", 4), {}, "internal"),
        (frame(b"", 0x80) + OK, {}, "internal"),
        (frame(b"\xff"), {}, "internal"),
        (frame(b"", 2), {}, "internal"),
        (frame(b"null", 2), {}, "internal"),
        (frame(b"x", 1), {}, "internal"),
        (frame(b"x", 3), {}, "internal"),
        (frame(b"x", 1), {"connect-content-encoding": "gzip"}, "internal"),
        (frame(b"x", 3), {"connect-content-encoding": "gzip"}, "internal"),
        (frame(b"x", 1), {"connect-content-encoding": "identity"}, "internal"),
        (frame(b"x" * 1001), {}, "resource_exhausted"),
        (frame(GZIP.compress(b"\0" * 1001), 1), {"connect-content-encoding": "gzip"}, "resource_exhausted"),
        (
            frame(GZIP.compress(b"{" + b" " * 100_000 + b"}"), 3),
            {"connect-content-encoding": "gzip"},
            "resource_exhausted",
        ),
    ],
)
def test_answers_that_are_none(body: bytes, headers: dict[str, str], code: str, size: int) -> None:
    texts, error, _ = read(replies("a") + body, size, {**headers, "x-h": "1"}, read_max_bytes=1000)
    assert texts[0] == "a", "what came before counts"
    assert error is not None
    assert code_of(error) == code
    assert error.response_headers()["x-h"] == "1"


@pytest.mark.parametrize(
    ("status", "content_type", "headers", "code"),
    [
        (404, STREAM_PROTO, {}, "unimplemented"),
        (503, "text/html", {}, "unavailable"),
        (401, None, {}, "unauthenticated"),
        (500, "application/json", {}, "unknown"),
        (200, STREAM_JSON, {}, "internal"),
        (200, "application/proto", {}, "unknown"),
        (200, "text/html", {}, "unknown"),
        (200, None, {}, "unknown"),
        (200, STREAM_PROTO, {"connect-content-encoding": "compress"}, "internal"),
    ],
)
def test_heads_that_are_no_stream(status: int, content_type: str | None, headers: dict[str, str], code: str) -> None:
    with pytest.raises(ConnectError) as caught:
        begin(status, content_type, {**headers, "x-h": "1"})
    assert code_of(caught.value) == code
    assert caught.value.response_headers()["x-h"] == "1"


def test_a_compression_that_was_not_offered() -> None:
    with pytest.raises(ConnectError) as caught:
        begin(headers={"connect-content-encoding": "br"}, accept_compression=["gzip"])
    assert code_of(caught.value) == "internal"
