"""Calls of gRPC-Web, a side at a time. ``test_wiring`` has both together."""

from __future__ import annotations

import tracemalloc
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict

from connectrpc import compression
from connectrpc._core.grpc_status import status_of
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc.client.options import Procedures
from connectrpc.codec import ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import ServerResponse
from harness import (
    BIDI,
    CLIENT,
    METHODS,
    MISSING,
    PROTO,
    SERVER,
    STREAM_PROTO,
    UNARY,
    WEB,
    WEB_JSON,
    WEB_PROTO,
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
    trailers_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectrpc._core.call import StreamClient, StreamClientCall, UnaryClient
    from connectrpc._core.http import HTTPRequest

GZIP = compression.named("gzip")
BIG = "x" * 2000
ALL = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def end(*lines: str, flags: int = 0x80) -> bytes:
    """The envelope that ends an answer."""
    return frame("".join(f"{line}\r\n" for line in lines).encode("latin-1"), flags)


OK = end("grpc-status: 0")
ABORTED = end("grpc-status: 10", "grpc-message: m")

# The server's side


def open_call(
    method: Any = BIDI, headers: dict[str, str] | None = None, content_type: str = WEB_PROTO, **options: Any
) -> Any:
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), options)
    found = negotiate(endpoints, Head(method.path, {"content-type": content_type, **(headers or {})}.items()))
    assert not isinstance(found, WholeResponse)
    return found[1]


def whole(response: WholeResponse) -> Answer:
    assert response.trailers is None, "nothing is left to the trailers of HTTP"
    answer = Answer(response.status, response.headers, response.body)
    assert int(answer.headers["content-length"]) == len(answer.body)
    return answer


@pytest.mark.parametrize("size", [0, 1, 6])
@pytest.mark.parametrize(
    "content_type", [WEB_PROTO, WEB, "Application/gRPC-Web", "application/grpc-web; charset=utf-8"]
)
def test_requests(content_type: str, size: int) -> None:
    call = open_call(content_type=content_type)
    found = [message for piece in pieces(asked(ask("a"), ask(), ask("b", 5)), size) for message in call.feed(piece)]
    call.feed_end()
    assert found == [ask("a"), ask(), ask("b", 5)]


def test_json_requests() -> None:
    call = open_call(content_type=WEB_JSON)
    assert list(call.feed(frame(b'{"name":"a"}') + frame(b"{}"))) == [ask("a"), ask()]


def one(body: bytes, size: int, method: Any, **options: Any) -> Any:
    """Read a body that must hold one message."""
    call = open_call(method, **options)
    if not size:
        return call.receive(body)
    for piece in pieces(body, size):
        call.take(piece)
    return call.taken()


@pytest.mark.parametrize("size", [0, 1, 6])
@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_exactly_one_request(method: Any, size: int) -> None:
    assert one(asked(ask("a")), size, method) == ask("a")
    assert one(frame(b""), size, method) == ask()
    for body in (b"", asked(ask(), ask()), asked(*[ask()] * 5)):
        with pytest.raises(ConnectError) as caught:
            one(body, size, method)
        assert code_of(caught.value) == "unimplemented"
    for cut in range(1, len(asked(ask("a")))):
        with pytest.raises(ConnectError) as caught:
            one(asked(ask("a"))[:-cut], size, method)
        assert code_of(caught.value) == "invalid_argument"


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (frame(b"\xff"), {}, "invalid_argument"),
        (frame(b"", 2), {}, "invalid_argument"),
        (frame(b"", 0x80), {}, "invalid_argument"),  # trailers of requests are no part of the protocol
        (OK, {}, "invalid_argument"),
        (frame(b"", 0xFF), {}, "invalid_argument"),
        (frame(b"x", 1), {}, "internal"),
        (frame(b"x", 1), {"grpc-encoding": "identity"}, "internal"),
        (frame(b"x", 1), {"connect-content-encoding": "gzip"}, "internal"),
        (frame(b"x", 1), {"content-encoding": "gzip"}, "internal"),
        (frame(b"x", 1), {"grpc-encoding": "gzip"}, "invalid_argument"),
        (frame(b"x" * 1001), {}, "resource_exhausted"),
        (frame(GZIP.compress(b"\0" * 1001), 1), {"grpc-encoding": "gzip"}, "resource_exhausted"),
        (b"\0\xff\xff\xff\xff", {}, "resource_exhausted"),
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
    for size in (0, 1):
        with pytest.raises(ConnectError) as caught:
            one(body, size, UNARY, headers=headers, read_max_bytes=1000)
        assert code_of(caught.value) == code


@pytest.mark.parametrize("name", ["gzip", "GZIP"])
def test_each_message_is_compressed_or_not(name: str) -> None:
    payload = ask(BIG).SerializeToString()
    body = frame(GZIP.compress(payload), 1) + frame(payload) + frame(b"", 1)
    assert list(open_call(headers={"grpc-encoding": name}).feed(body)) == [ask(BIG), ask(BIG), ask()]
    assert one(frame(GZIP.compress(payload), 1), 1, UNARY, headers={"grpc-encoding": name}) == ask(BIG)


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_streamed_answer(method: Any) -> None:
    call = open_call(method)
    head = call.start({"X-H": ["1", "2"], "x-h-bin": "AAE"})
    body = call.send(reply("a")) + call.send(reply("b")) + call.finish(None, {"X-T": ["3", "4"], "x-t-bin": "_-8"})
    assert call.has_trailers is False
    answer = Answer(head.status, head.headers, body)
    texts, trailers = answer.web()
    assert texts == ["a", "b"]
    assert list(trailers.items()) == [("grpc-status", "0"), ("x-t", "3"), ("x-t", "4"), ("x-t-bin", "_-8")]
    assert answer.headers.getall("x-h") == ["1", "2"]
    assert answer.headers["x-h-bin"] == "AAE"


@pytest.mark.parametrize("method", [UNARY, CLIENT], ids=lambda method: method.name)
def test_a_whole_answer(method: Any) -> None:
    texts, trailers = whole(open_call(method).answer(reply("a"))).web()
    assert (texts, dict(trailers)) == (["a"], {"grpc-status": "0"})
    answer = whole(open_call(method).answer(ServerResponse(reply("a"), {"x-h": "1"}, {"x-t": ["2", "3"]})))
    assert answer.headers["x-h"] == "1"
    assert answer.web()[1].getall("x-t") == ["2", "3"]
    assert "x-t" not in answer.headers


@pytest.mark.parametrize(
    ("asked_as", "answered_as"),
    [(WEB_PROTO, WEB_PROTO), (WEB, WEB_PROTO), (WEB_JSON, WEB_JSON), (WEB_JSON.upper(), WEB_JSON)],
)
@ALL
def test_media_type_of_answers(method: Any, asked_as: str, answered_as: str) -> None:
    call = open_call(method, content_type=asked_as)
    head = call.start(None)
    assert head.status == 200
    assert dict(head.headers)["content-type"] == answered_as
    assert whole(call.fail(ConnectError(ConnectErrorCode.ABORTED))).media_type == answered_as
    payload = b'{"fileName":"a"}' if answered_as == WEB_JSON else reply("a").SerializeToString()
    assert frames(call.send(reply("a"))) == [(0, payload)]


@ALL
@pytest.mark.parametrize("code", ConnectErrorCode)
def test_errors(code: ConnectErrorCode, method: Any) -> None:
    """The HTTP status is 200 whatever happens; browsers have no other way to the trailers."""
    error = ConnectError(code, "m\u00e4\r\n%", [Duration(seconds=5)])
    for answer in (
        whole(open_call(method).fail(error)),
        whole(open_call(method).fail(error, {"x-h": "1"}, {"x-t": "2"})),
    ):
        texts, trailers = answer.web()
        assert texts == []
        assert int(trailers["grpc-status"]) == code.grpc_number
        assert trailers["grpc-message"] == "m%C3%A4%0D%0A%25"
        assert trailers["grpc-status-details-bin"]
        assert ("x-h" in answer.headers) == ("x-t" in trailers)


def test_an_error_within_a_stream() -> None:
    call = open_call(SERVER)
    head = call.start(None)
    body = call.send(reply("a")) + call.finish(ConnectError(ConnectErrorCode.ABORTED, "m"), {"x-t": "1"})
    texts, trailers = Answer(head.status, head.headers, body).web()
    assert texts == ["a"]
    assert dict(trailers) == {"grpc-status": "10", "grpc-message": "m", "x-t": "1"}


@pytest.mark.parametrize(
    ("headers", "declared", "flag"),
    [
        ({"grpc-accept-encoding": "gzip"}, "gzip", 1),
        ({"grpc-accept-encoding": "identity,deflate,gzip"}, None, 0),
        ({"grpc-accept-encoding": "identity,deflate,gzip", "grpc-encoding": "gzip"}, "gzip", 1),
        ({"grpc-accept-encoding": "deflate,gzip,identity"}, "gzip", 1),
        ({"grpc-accept-encoding": "deflate"}, None, 0),
        ({"grpc-encoding": "gzip"}, "gzip", 1),
        ({"accept-encoding": "gzip"}, None, 0),
        ({"connect-accept-encoding": "gzip"}, None, 0),
        ({"grpc-accept-encoding": "identity"}, None, 0),
        ({"grpc-accept-encoding": ""}, None, 0),
        ({}, None, 0),
    ],
)
def test_compressed_answers(headers: dict[str, str], declared: str | None, flag: int) -> None:
    call = open_call(headers=headers)
    head = dict(call.start(None).headers)
    assert head.get("grpc-encoding") == declared
    assert "content-encoding" not in head
    ((flags, payload),) = frames(call.send(reply(BIG)))
    assert flags == flag
    assert (GZIP.decompress(payload, None) if flag else payload) == reply(BIG).SerializeToString()
    assert frames(call.send(reply("small")))[0][0] == 0
    ((flags, _),) = frames(call.finish(None, {"x-t": "x" * 5000}))
    assert flags == 0x80, "trailers are never compressed"


@pytest.mark.parametrize(
    ("options", "accepted"), [({}, "zstd,br,gzip"), ({"compressions": ["gzip"]}, "gzip"), ({"compressions": []}, None)]
)
def test_answers_say_what_requests_may_be_compressed_with(options: dict[str, Any], accepted: str | None) -> None:
    call = open_call(**options)
    assert dict(call.start(None).headers).get("grpc-accept-encoding") == accepted


@pytest.mark.parametrize(("name", "value"), [("x", "\n"), ("x", "\u00e4"), ("grpc-status", "0"), ("a b", "1")])
def test_metadata_that_cannot_be_sent(name: str, value: str) -> None:
    for send in (open_call().start, lambda metadata: open_call().finish(None, metadata)):
        with pytest.raises(ValueError):
            send({name: value})


def test_limits_of_what_is_sent() -> None:
    call = open_call(send_max_bytes=100)
    with pytest.raises(ConnectError) as caught:
        call.send(reply(BIG))
    assert code_of(caught.value) == "resource_exhausted"
    assert call.finish(ConnectError(ConnectErrorCode.ABORTED, BIG), None), "errors are not messages"


@pytest.mark.parametrize("message", [None, "text", ask("of the request"), [reply()]])
def test_messages_that_are_none(message: object) -> None:
    with pytest.raises(TypeError, match=r"bidi\(\)"):
        open_call().send(message)


@pytest.mark.parametrize(
    ("header", "milliseconds"),
    [
        *(("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5), ("6000000n", 6), ("1n", 1)),
        *(("99999999H", 9_999_999_999), ("0m", 0), ("0n", 0)),
    ],
)
@ALL
def test_timeouts(method: Any, header: str, milliseconds: int) -> None:
    assert open_call(method, {"grpc-timeout": header}).deadline.timeout_ms == milliseconds
    if not milliseconds:
        answer = whole(open_call(UNARY, {"grpc-timeout": header}).fail(ConnectError(ConnectErrorCode.ABORTED)))
        assert answer.web()[1]["grpc-status"] == "10"
        with pytest.raises(ConnectError) as caught:
            open_call(UNARY, {"grpc-timeout": header}).answer(reply("late"))
        assert code_of(caught.value) == "deadline_exceeded"


# The client's side


def procedures(options: dict[str, Any]) -> Procedures:
    given: Any = {"protocol": "grpc-web", **options}
    return Procedures("http://h/base/", given, asynchronous=False)


def client(**options: Any) -> StreamClient:
    return procedures(options).stream(BIDI)


def unary_client(**options: Any) -> UnaryClient:
    return procedures(options).unary(UNARY)


def requests(headers: Any = None, timeout_ms: int | None = None, **options: Any) -> Iterable[HTTPRequest]:
    """A request of a stream, and one of a unary call, which are of one form."""
    return (
        client(**options).request(headers, timeout_ms),
        unary_client(**options).request(ask(), headers, timeout_ms)[0],
    )


def test_the_form_of_a_request() -> None:
    for request, method in zip(requests({"x-a": "1"}, 2500), (BIDI, UNARY), strict=True):
        assert (request.method, request.url) == ("POST", "http://h/base" + method.path)
        headers = dict(request.headers)
        assert len(headers) == len(request.headers)
        assert headers.pop("user-agent").startswith("connect-python/")
        assert headers == {
            "content-type": WEB_PROTO,
            "x-grpc-web": "1",
            "accept-encoding": "identity",  # the body as a whole is not to be compressed
            "grpc-accept-encoding": "zstd,br,gzip",
            "grpc-timeout": "2500m",
            "x-a": "1",
        }
    for request in requests(codec="json", send_compression="gzip", accept_compression=()):
        headers = dict(request.headers)
        assert headers["content-type"] == WEB_JSON
        assert headers["grpc-encoding"] == "gzip"
        # Without it the server might answer with what the request is compressed with.
        assert headers["grpc-accept-encoding"] == "identity"
        assert "grpc-timeout" not in headers


@pytest.mark.parametrize(
    ("timeout_ms", "header"),
    [(1, "1m"), (99_999_999, "99999999m"), (100_000_001, "100001S"), (10_000_000_000, "10000000S")],
)
def test_the_timeout_of_a_request(timeout_ms: int, header: str) -> None:
    for request in requests(None, timeout_ms):
        assert [value for name, value in request.headers if name == "grpc-timeout"] == [header]


def test_metadata_of_a_request() -> None:
    given = {"X-Many": ["1", "2"], "x-data-bin": "AAE", "User-Agent": "mine"}
    for request in requests(given, extra_headers={"x-many": "shared", "x-shared": "s"}):
        headers = CIMultiDict(request.headers)
        assert headers.getall("x-many") == ["1", "2"]
        assert (headers["x-shared"], headers["x-data-bin"]) == ("s", "AAE")
        assert headers.getall("user-agent") == ["mine"]
    for name in ("grpc-timeout", "GRPC-Encoding", "content-type", "te"):
        for make in (client().request, lambda headers, timeout: unary_client().request(ask(), headers, timeout)):
            with pytest.raises(ValueError, match="protocol"):
                make({name: "1"}, None)


def test_messages_of_a_request() -> None:
    def both(message: Any, **options: Any) -> bytes:
        sent, (_, body) = client(**options).send(message), unary_client(**options).request(message, None, None)
        assert sent == body
        return sent

    assert both(ask("a")) == asked(ask("a"))
    assert both(ask()) == frame(b"")
    assert both(ask("a"), send_compression="gzip") == asked(ask("a")), "too small"
    assert both(ask("a"), codec="json") == frame(b'{"name":"a"}')
    ((flags, payload),) = frames(both(ask(BIG), send_compression="gzip"))
    assert flags == 1
    assert GZIP.decompress(payload, None) == ask(BIG).SerializeToString()
    for wrong in (None, reply("of the answer"), "text"):
        for send in (client().send, lambda message: unary_client().request(message, None, None)):
            with pytest.raises(TypeError):
                send(wrong)
    with pytest.raises(ConnectError) as caught:
        both(ask(BIG), send_max_bytes=100)
    assert code_of(caught.value) == "resource_exhausted"


def begin(
    status: int = 200, content_type: str | None = WEB_PROTO, headers: Any = None, **options: Any
) -> StreamClientCall:
    pairs: CIMultiDict[str] = CIMultiDict(headers or {})
    if content_type is not None:
        pairs["Content-Type"] = content_type
    call = client(**options).call()
    call.head(status, pairs)
    return call


class Read:
    """What a stream and a unary call make of one answer."""

    def __init__(self, body: bytes, size: int = 0, headers: Any = None, **options: Any) -> None:
        self.texts: list[str] = []
        self.error: ConnectError | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.trailers: CIMultiDict[str] = CIMultiDict()
        content_type = options.pop("content_type", WEB_PROTO)
        try:
            call = begin(200, content_type, headers, **options)
            for piece in pieces(body, size):
                for message in call.feed(piece):
                    self.texts.append(message.file_name)
            call.feed_end(None)
            self.headers, self.trailers = call.metadata()
        except ConnectError as error:
            self.error = error
            self.headers, self.trailers = error.response_headers(), error.response_trailers()
        self._compare(body, {**(headers or {}), "content-type": content_type}, options)

    def _compare(self, body: bytes, headers: dict[str, str], options: dict[str, Any]) -> None:
        """A unary call ends as a stream does, but wants one message."""
        one = unary_client(**options)
        if self.error is None and len(self.texts) == 1:
            message, metadata = one.response(200, CIMultiDict(headers), body, None)
            assert [message.file_name] == self.texts
            assert metadata() == (self.headers, self.trailers)
            return
        with pytest.raises(ConnectError) as caught:
            one.response(200, CIMultiDict(headers), body, None)
        if len(self.texts) > 10:  # where one is wanted, so many are not read to their end
            assert code_of(caught.value) == "unimplemented"
            return
        assert caught.value.response_trailers() == self.trailers
        if self.error is None:
            assert code_of(caught.value) == "unimplemented"
        else:
            assert str(caught.value) == str(self.error)
            assert caught.value.details == self.error.details

    @property
    def code(self) -> str:
        return code_of(self.error)


def replies(*texts: str) -> bytes:
    return b"".join(frame(reply(text).SerializeToString()) for text in texts)


SIZES = pytest.mark.parametrize("size", [0, 1, 6])


@SIZES
@pytest.mark.parametrize("texts", [(), ("a",), ("",), ("a", "", "b"), tuple(map(str, range(100)))], ids=len)
def test_an_answer_is_read(texts: tuple[str, ...], size: int) -> None:
    body = replies(*texts) + end("grpc-status: 0", "x-t: 1", "X-T:2", "x-t-bin: AAE, AAI")
    found = Read(body, size, {"X-H": "1"})
    assert (found.texts, found.error) == (list(texts), None)
    assert found.headers["x-h"] == "1"
    assert found.trailers.getall("x-t") == ["1", "2"]
    assert found.trailers.getall("x-t-bin") == ["AAE", "AAI"]
    assert "grpc-status" not in found.trailers, "what the protocol needs for itself is no metadata"


def test_complete_is_the_end_of_the_answer_not_of_the_body() -> None:
    call = begin()
    for piece in pieces(replies("a") + OK, 1):
        assert not call.complete
        list(call.feed(piece))
    assert call.complete


@pytest.mark.parametrize(
    ("block", "trailers"),
    [
        (b"grpc-status: 0\r\n", []),
        (b"grpc-status:0\r\n", []),
        (b"Grpc-Status: 0\r\n", []),  # some servers keep the case
        (b"GRPC-STATUS:   0  \r\n", []),
        (b"grpc-status: 0", []),
        (b"grpc-status: 0\n", []),
        (b"grpc-status: 0\r\n\r\n", []),
        (b"x-a: 1\r\ngrpc-status: 0\r\nx-a:2\r\n", [("x-a", "1"), ("x-a", "2")]),
        (b"grpc-status: 0\r\ngrpc-message: \r\nx-a:\r\n", [("x-a", "")]),
        (b"grpc-status: 0\r\nx-a: b: c\r\n", [("x-a", "b: c")]),
        (b"grpc-status: 0\r\nx-a: \xe4\r\n", [("x-a", "\xe4")]),
        (b"grpc-status: 0\r\ngrpc-message: OK\r\ngrpc-status-details-bin: CAA\r\n", []),
        (b"grpc-status: 0\r\ngrpc-status: 0\r\n", []),
    ],
)
@SIZES
def test_trailers_in_any_form(block: bytes, trailers: list[tuple[str, str]], size: int) -> None:
    found = Read(replies("a") + frame(block, 0x80), size)
    assert (found.texts, found.error) == (["a"], None)
    assert list(found.trailers.items()) == trailers


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\r\n",
        b"x-a: 1\r\n",
        b"grpc-message: m\r\n",
        b"grpc-status\r\n",
        b"grpc-status: \r\n",
        b"grpc-status: x\r\n",
        b"grpc-status: -1\r\n",
        b"grpc-status: 0, 0\r\n",
        b"grpc-status: 0\r\nnonsense\r\n",
        b"grpc-status: 0\r\n folded\r\n",
        b"grpc-status: 0\r\n: nameless\r\n",
        b"grpc-status: 0\r\n : nameless\r\n",
        b"\xff\xfe\r\n",
        b"<html>",
        b"\0" * 20,
        replies("a"),
        b'{"error":{"code":"aborted"}}',
    ],
)
@SIZES
def test_trailers_that_are_none(block: bytes, size: int) -> None:
    for flags, payload in ((0x80, block), (0x81, GZIP.compress(block))):
        found = Read(replies("a") + frame(payload, flags), size, {"grpc-encoding": "gzip", "x-h": "1"})
        assert (found.texts, found.code) == (["a"], "internal")
        assert found.headers["x-h"] == "1"


@pytest.mark.parametrize("size", [0, 1])
def test_compressed_trailers(size: int) -> None:
    block = b"grpc-status: 10\r\ngrpc-message: m\r\nx-t: 1\r\n"
    found = Read(replies("a") + frame(GZIP.compress(block), 0x81), size, {"grpc-encoding": "gzip"})
    assert (found.texts, found.code) == (["a"], "aborted")
    assert dict(found.trailers) == {"x-t": "1"}


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("number", range(18))
def test_every_status(number: int, size: int) -> None:
    codes = [None, *ConnectErrorCode]
    code = codes[number] if number < len(codes) else ConnectErrorCode.UNKNOWN
    message = "" if number % 2 else "m %25 %C3%A4"
    lines = [f"grpc-status: {number}", "x-t: 1", *([f"grpc-message: {message}"] if message else [])]
    for texts in ((), ("a",), ("a", "b")):
        found = Read(replies(*texts) + end(*lines), size)
        assert found.texts == list(texts)
        assert (None if found.error is None else found.error.code) is code
        if found.error is not None:
            assert found.error.message == ("m % \u00e4" if message else "")
        assert dict(found.trailers) == {"x-t": "1"}
    # and in an answer that is trailers only
    found = Read(b"", size, {"grpc-status": str(number), "grpc-message": message, "x-t": "1"})
    assert found.texts == []
    assert (None if found.error is None else found.error.code) is code
    assert found.trailers["x-t"] == "1"


def test_details_of_an_error() -> None:
    error = ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5), ask("a", 5)])
    lines = [f"{name}: {value}" for name, value in status_of(error)]
    for found in (Read(end(*lines)), Read(b"", headers=dict(status_of(error)))):
        assert found.error is not None
        assert [detail.message() for detail in found.error.details] == [Duration(seconds=5), ask("a", 5)]
        assert "grpc-status-details-bin" not in found.trailers
    found = Read(end("grpc-status: 10", "grpc-message: m", "grpc-status-details-bin: !"))
    assert found.error is not None
    assert (found.code, found.error.message, found.error.details) == ("aborted", "m", [])


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
        (OK + frame(b""), {}, "internal"),
        (OK + OK, {}, "internal"),
        (OK + ABORTED, {}, "internal"),
        (OK + b"\0", {}, "internal"),
        (ABORTED + replies("late"), {}, "internal"),
        (frame(b"", 2), {}, "internal"),
        (frame(b"", 4) + OK, {}, "internal"),
        (frame(b"", 0x40) + OK, {}, "internal"),
        (frame(b"grpc-status: 0\r\n", 0x82), {}, "internal"),
        (frame(b"grpc-status: 0\r\n", 0xFF), {}, "internal"),
        (frame(b"\xff") + OK, {}, "internal"),
        (frame(b"x", 1) + OK, {}, "internal"),
        (frame(b"grpc-status: 0\r\n", 0x81), {}, "internal"),
        (frame(b"x", 1), {"grpc-encoding": "gzip"}, "internal"),
        (frame(b"x", 0x81), {"grpc-encoding": "gzip"}, "internal"),
        (frame(b"x", 0x81), {"grpc-encoding": "identity"}, "internal"),
        (frame(b"x", 1), {"content-encoding": "gzip"}, "internal"),
        (frame(b"x" * 1001), {}, "resource_exhausted"),
        (frame(GZIP.compress(b"\0" * 1001), 1), {"grpc-encoding": "gzip"}, "resource_exhausted"),
        (b"\0\xff\xff\xff\xff", {}, "resource_exhausted"),
        (b"\x80\xff\xff\xff\xff", {}, "resource_exhausted"),
        (frame(GZIP.compress(b"\r\n" * 10**6), 0x81), {"grpc-encoding": "gzip"}, "resource_exhausted"),
        # A status in the headers counts only where nothing else came.
        (replies("b"), {"grpc-status": "0"}, "internal"),
        (frame(b"", 0x80), {"grpc-status": "0"}, "internal"),
        (end("x-t: 1"), {"grpc-status": "0"}, "internal"),
    ],
)
def test_answers_that_are_none(body: bytes, headers: dict[str, str], code: str, size: int) -> None:
    for before in ((), ("a",)):
        if not before and not body and "grpc-status" in headers:
            continue
        found = Read(replies(*before) + body, size, {**headers, "x-h": "1"}, read_max_bytes=1000)
        assert found.texts[: len(before)] == list(before), "what came before counts"
        assert found.code == code
        assert found.headers.get("x-h") == "1" or "grpc-status" in headers


# Answers without a body: "Trailers-Only"


@pytest.mark.parametrize(
    ("status", "code"),
    [("5", "not_found"), (" 5 ", "not_found"), ("17", "unknown"), ("x", "internal"), ("", "internal")],
)
def test_trailers_only(status: str, code: str) -> None:
    headers = {"grpc-status": status, "Grpc-Message": "m%20m", "X-T": "1", "x-t-bin": "AAE, AAI"}
    found = Read(b"", headers={**headers, "Grpc-Retry-Pushback-Ms": "100", "Date": "today"})
    assert found.code == code
    assert (found.trailers["x-t"], found.trailers.getall("x-t-bin")) == ("1", ["AAE", "AAI"])
    assert found.trailers["grpc-retry-pushback-ms"] == "100", "it is the application's"
    assert len(found.trailers) == 4
    assert found.headers["date"] == "today"
    if code != "internal":
        assert found.error is not None
        assert found.error.message == "m m"


def test_trailers_only_and_well() -> None:
    """A stream may end before its first message; a unary call may not."""
    found = Read(b"", headers={"grpc-status": "0", "x-t": "1"})
    assert (found.texts, found.error) == ([], None)
    assert found.trailers["x-t"] == "1"


def test_trailers_count_more_than_headers() -> None:
    found = Read(replies("a") + ABORTED, headers={"grpc-status": "0", "x-h": "1"})
    assert found.code == "aborted"
    assert found.headers["x-h"] == "1"
    found = Read(replies("a") + OK, headers={"grpc-status": "5", "x-h": "1"})
    assert (found.texts, found.error) == (["a"], None)
    assert found.headers["x-h"] == "1"


# Heads


@pytest.mark.parametrize(
    "content_type",
    [WEB_PROTO, WEB, "Application/gRPC-Web+Proto", "application/grpc-web;charset=utf-8", f" {WEB} ; a=b"],
)
def test_media_type_of_an_answer(content_type: str) -> None:
    assert Read(replies("a") + OK, content_type=content_type).texts == ["a"]


HEADS: list[tuple[int, str | None, dict[str, str], str]] = [
    *(
        (status, content_type, {}, code)
        for status, code in (
            *((400, "internal"), (401, "unauthenticated"), (403, "permission_denied"), (404, "unimplemented")),
            *((429, "unavailable"), (502, "unavailable"), (503, "unavailable"), (504, "unavailable")),
            *((500, "unknown"), (418, "unknown"), (204, "unknown"), (301, "unknown"), (415, "unknown")),
        )
        for content_type in (WEB_PROTO, "text/html", None)
    ),
    (200, WEB_JSON, {}, "internal"),
    (200, "application/grpc-web+xml", {}, "internal"),
    (200, "application/grpc-web-text", {}, "internal"),
    (200, "application/grpc", {}, "internal"),
    (200, "application/grpc+proto", {}, "internal"),
    (200, STREAM_PROTO, {}, "unknown"),
    (200, PROTO, {}, "unknown"),
    (200, "text/html", {}, "unknown"),
    (200, "", {}, "unknown"),
    (200, None, {}, "unknown"),
    (200, WEB_PROTO, {"grpc-encoding": "compress"}, "internal"),
    (200, WEB_PROTO, {"grpc-encoding": "gzip,br"}, "internal"),
]


@pytest.mark.parametrize(("status", "content_type", "headers", "code"), HEADS)
def test_heads_that_are_no_answer(status: int, content_type: str | None, headers: dict[str, str], code: str) -> None:
    given = {**headers, "x-h": "1", "x-many": "2"}
    with pytest.raises(ConnectError) as caught:
        begin(status, content_type, given)
    assert code_of(caught.value) == code
    assert caught.value.response_headers()["x-h"] == "1"
    pairs = CIMultiDict(given)
    if content_type is not None:
        pairs["content-type"] = content_type
    with pytest.raises(ConnectError) as of_unary:
        unary_client().response(status, pairs, replies("a") + OK, None)
    assert str(of_unary.value) == str(caught.value)
    assert of_unary.value.response_headers()["x-h"] == "1"


@pytest.mark.parametrize(
    ("status", "content_type", "told", "code"),
    [
        (404, WEB_PROTO, "5", "not_found"),
        (503, WEB, "5", "not_found"),
        (503, WEB_PROTO, "0", "unavailable"),
        (503, WEB_PROTO, "x", "internal"),
        (503, "text/html", "5", "unavailable"),
    ],
)
def test_a_status_of_grpc_counts_more_than_that_of_http(status: int, content_type: str, told: str, code: str) -> None:
    """doc/http-grpc-status-mapping.md: in an answer that is gRPC's."""
    with pytest.raises(ConnectError) as caught:
        begin(status, content_type, {"grpc-status": told, "grpc-message": "m", "x-t": "1"})
    assert code_of(caught.value) == code
    assert caught.value.response_trailers() == {"x-t": "1"}


@pytest.mark.parametrize("content_type", [WEB, WEB_PROTO])
def test_an_answer_in_another_codec(content_type: str) -> None:
    with pytest.raises(ConnectError) as caught:
        begin(content_type=content_type, codec="json")
    assert code_of(caught.value) == "internal"


def test_codecs_of_ones_own() -> None:
    class Private(ProtoCodec):
        name = "x-private"

    named = "application/grpc-web+x-private"
    for request in requests(codec=Private()):
        assert dict(request.headers)["content-type"] == named
    assert Read(replies("a") + OK, content_type=named, codec=Private()).texts == ["a"]
    assert Read(replies("a") + OK, content_type=WEB, codec=Private()).code == "internal"
    call = open_call(content_type=named, codecs=[Private()])
    assert list(call.feed(asked(ask("a")))) == [ask("a")]
    assert dict(call.start(None).headers)["content-type"] == named


def test_compressed_messages_are_read() -> None:
    body = frame(GZIP.compress(reply(BIG).SerializeToString()), 1) + replies("a") + frame(b"", 1) + OK
    for name in ("gzip", "GZIP", " gzip "):
        found = Read(body, headers={"grpc-encoding": name})
        assert (found.texts, found.error) == ([BIG, "a", ""], None)


def test_a_compression_that_was_not_offered() -> None:
    with pytest.raises(ConnectError) as caught:
        begin(headers={"grpc-encoding": "br"}, accept_compression=["gzip"])
    assert code_of(caught.value) == "internal"


# Exactly one answer


@pytest.mark.parametrize("count", [0, 2, 5])
def test_not_exactly_one_message(count: int) -> None:
    body = replies(*["a"] * count) + end("grpc-status: 0", "x-t: 1")
    headers = CIMultiDict({"content-type": WEB_PROTO, "x-h": "1"})
    with pytest.raises(ConnectError) as caught:
        unary_client().response(200, headers, body, None)
    assert code_of(caught.value) == "unimplemented"
    assert caught.value.response_headers()["x-h"] == "1"
    assert caught.value.response_trailers()["x-t"] == "1"
    call = begin()
    messages = list(call.feed(body))
    call.feed_end(None)
    with pytest.raises(ConnectError) as caught:
        call.only(messages)
    assert code_of(caught.value) == "unimplemented"


def test_an_error_counts_more_than_messages() -> None:
    for count in (0, 1, 2):
        found = Read(replies(*["a"] * count) + ABORTED)
        assert found.code == "aborted"


@pytest.mark.parametrize(
    ("trailers", "headers", "code"),
    [
        ({"grpc-status": "4"}, {}, "deadline_exceeded"),
        ({"grpc-status": "0"}, {}, "internal"),
        ({}, {}, "internal"),
        (None, {"grpc-status": "4"}, "internal"),
    ],
)
def test_an_answer_that_breaks_off(trailers: dict[str, str] | None, headers: dict[str, str], code: str) -> None:
    """gRPC itself, whose trailers come all the same: what they say went wrong is more than that a part is missing."""
    call = begin(content_type="application/grpc+proto", headers=headers, protocol="grpc")
    assert [message.file_name for message in call.feed(replies("a")[:-1])] == []
    with pytest.raises(ConnectError) as caught:
        call.feed_end(None if trailers is None else CIMultiDict(trailers))
    assert code_of(caught.value) == code


# Limits


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("limit", [0, 1, 10, 15])
def test_limits_are_for_messages_not_for_trailers(limit: int, size: int) -> None:
    body = frame(b"") + end("grpc-status: 10", "grpc-message: " + "m" * 2000, "x-t: 1")
    found = Read(body, size, read_max_bytes=limit)
    assert (found.texts, found.code) == ([""], "aborted")
    packed = frame(GZIP.compress(b"grpc-status: 10\r\nx-t: " + b"1" * 2000), 0x81)
    assert Read(frame(b"") + packed, size, {"grpc-encoding": "gzip"}, read_max_bytes=limit).code == "aborted"


def test_the_longest_body_worth_reading() -> None:
    """A message at the limit and its trailers fit; a longer body fails, wherever it is cut off."""
    assert unary_client(read_max_bytes=None).body_limit is None
    headers = CIMultiDict({"content-type": WEB_PROTO})
    for max_bytes, trailers_bytes in ((1000, 60_000), (200_000, 190_000)):
        answer = reply("x" * (max_bytes - 10))
        answer.file_name += "x" * (max_bytes - answer.ByteSize())
        limited = unary_client(read_max_bytes=max_bytes)
        limit = limited.body_limit
        assert limit is not None
        body = frame(answer.SerializeToString()) + end("grpc-status: 0", "x-t: " + "x" * trailers_bytes)
        assert len(frames(body)[0][1]) == max_bytes
        assert len(body) <= limit
        assert limited.response(200, headers, body, None)[0] == answer
    assert limit is not None
    for long in (frame(b"x" * 10**6) + OK, replies(*["a"] * 10**5) + OK, end("grpc-status: 0", "x: " + "x" * 10**6)):
        with pytest.raises(ConnectError):
            limited.response(200, headers, long[: limit + 1], None)


def test_trailers_as_the_harness_reads_them() -> None:
    """What tests of servers hold answers against is as strict as the protocol."""
    assert dict(trailers_of(b"grpc-status: 0\r\nx-t: \r\n")) == {"grpc-status": "0", "x-t": ""}
    for wrong in (b"Grpc-Status: 0\r\n", b"grpc-status: 0", b"grpc-status:0\r\n", b": 0\r\n"):
        with pytest.raises(AssertionError):
            trailers_of(wrong)


def test_many_messages_where_one_is_wanted_are_not_all_decoded() -> None:
    """An empty one takes five bytes in an answer, and a hundred times that in memory."""
    body = frame(b"") * 500_000 + OK
    tracemalloc.start()
    try:
        with pytest.raises(ConnectError, match="more than one"):
            unary_client().response(200, CIMultiDict({"content-type": WEB_PROTO}), body, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("size", [3, 30_000])
def test_what_is_quoted_of_a_compression_is_short(size: int) -> None:
    """It goes into a trailer, whose length is limited."""
    headers = {"content-type": WEB_PROTO, "grpc-encoding": "\u00e4" * size}
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), {})
    found = negotiate(endpoints, Head(UNARY.path, headers.items()))
    assert isinstance(found, WholeResponse)
    assert b"unknown compression" in found.body
    assert len(found.body) < 600
