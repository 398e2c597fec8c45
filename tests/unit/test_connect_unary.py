"""Unary calls of the Connect protocol, a side at a time. ``test_wiring`` has both together."""

from __future__ import annotations

import base64
import json
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict

from connectrpc import compression
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc.client.options import Procedures
from connectrpc.codec import ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ServerResponse
from harness import JSON, MISSING, PROTO, PURE, UNARY, Answer, Head, ask, code_of, endpoints_of, pieces, reply

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from connectrpc._core.call import UnaryClient

GZIP = compression.named("gzip")
BIG = "x" * 2000

# The server's side


def open_call(headers: dict[str, str] | None = None, content_type: str = PROTO, **options: Any) -> Any:
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), options)
    found = negotiate(endpoints, Head(UNARY.path, {"content-type": content_type, **(headers or {})}.items()))
    assert not isinstance(found, WholeResponse)
    return found[1]


def answered(response: WholeResponse) -> Answer:
    return Answer(response.status, response.headers, response.body)


def test_a_request() -> None:
    assert open_call().receive(ask("a", 5).SerializeToString()) == ask("a", 5)
    assert open_call(content_type=JSON).receive(b'{"name":"a","number":5}') == ask("a", 5)
    assert open_call().receive(b"") == ask()


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_request_in_pieces(size: int) -> None:
    call = open_call({"content-encoding": "gzip"})
    for piece in pieces(GZIP.compress(ask(BIG).SerializeToString()), size):
        call.take(piece)
    assert call.taken() == ask(BIG)


@pytest.mark.parametrize(
    ("headers", "content_type", "body", "code"),
    [
        ({}, PROTO, b"\xff", "invalid_argument"),
        ({}, JSON, b"\xff", "invalid_argument"),
        ({}, JSON, b"", "invalid_argument"),
        ({}, JSON, b'{"number":"secret"}', "invalid_argument"),
        ({"content-encoding": "gzip"}, PROTO, b"plain", "invalid_argument"),
        ({"content-encoding": "gzip"}, PROTO, GZIP.compress(b"\xff"), "invalid_argument"),
        ({}, PROTO, b"\x0a\x80\x08" + b"x" * 1024, "resource_exhausted"),
        ({"content-encoding": "gzip"}, PROTO, GZIP.compress(b"\0" * 1025), "resource_exhausted"),
    ],
)
def test_requests_that_are_none(headers: dict[str, str], content_type: str, body: bytes, code: str) -> None:
    for size in (0, 100):
        call = open_call(headers, content_type, read_max_bytes=1024)
        with pytest.raises(ConnectError) as caught:
            if size:
                for piece in pieces(body, size):
                    call.take(piece)
                call.taken()
            else:
                call.receive(body)
        assert code_of(caught.value) == code
        assert "secret" not in caught.value.message


def test_too_much_is_refused_before_its_end() -> None:
    call = open_call(read_max_bytes=10)
    call.take(b"x" * 10)
    with pytest.raises(ConnectError) as caught:
        call.take(b"x")
    assert code_of(caught.value) == "resource_exhausted"


@pytest.mark.parametrize("name", ["gzip", "GZIP", "Gzip", "identity", "IDENTITY"])
def test_names_of_compressions_have_no_case(name: str) -> None:
    body = ask("a").SerializeToString()
    sent = body if name.lower() == "identity" else GZIP.compress(body)
    assert open_call({"content-encoding": name}).receive(sent) == ask("a")


def test_an_empty_name_is_no_compression() -> None:
    """Some write an empty header instead of none."""
    assert open_call({"content-encoding": ""}).receive(ask("a").SerializeToString()) == ask("a")
    assert read(200, PROTO, reply("a").SerializeToString(), {"content-encoding": ""}) == reply("a")


def test_an_empty_body_is_not_decompressed() -> None:
    assert open_call({"content-encoding": "gzip"}).receive(b"") == ask()


def test_an_answer() -> None:
    answer = answered(open_call().answer(reply("a")))
    assert answer.message() == reply("a")
    assert answer.headers["content-length"] == "3"
    assert "content-encoding" not in answer.headers
    answer = answered(open_call(content_type=JSON).answer(reply("a")))
    assert (answer.media_type, answer.body) == (JSON, b'{"fileName":"a"}')


def test_metadata_of_an_answer() -> None:
    result = ServerResponse(reply("a"), {"X-H": ["1", "2"]}, {"X-T": ["3", "4"]})
    answer = answered(open_call().answer(result))
    assert answer.headers.getall("x-h") == ["1", "2"]
    assert answer.headers.getall("trailer-x-t") == ["3", "4"]


@pytest.mark.parametrize(
    ("headers", "minimum", "compressed"),
    [
        ({"accept-encoding": "gzip"}, 1024, True),
        ({"accept-encoding": "gzip"}, 5000, False),
        ({"accept-encoding": "identity"}, 0, False),
        ({"accept-encoding": "gzip;q=0"}, 0, False),
        ({}, 0, False),
        ({"content-encoding": "gzip"}, 0, True),
    ],
)
def test_compressed_answers(headers: dict[str, str], minimum: int, compressed: bool) -> None:
    answer = answered(open_call(headers, compress_min_bytes=minimum).answer(reply(BIG)))
    assert answer.headers.get("content-encoding") == ("gzip" if compressed else None)
    body = GZIP.decompress(answer.body, None) if compressed else answer.body
    assert body == reply(BIG).SerializeToString()
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.parametrize("code", ConnectErrorCode)
@pytest.mark.parametrize("content_type", [PROTO, JSON])
def test_errors(code: ConnectErrorCode, content_type: str) -> None:
    error = ConnectError(code, "m", [Duration(seconds=5)])
    results: list[Any] = [error, ServerResponse(error)]
    for result in results:
        answer = answered(open_call(content_type=content_type).answer(result))
        assert answer.status == code.http_status
        assert answer.error() == {
            "code": code.code_name,
            "message": "m",
            "details": [{"type": "google.protobuf.Duration", "value": "CAU"}],
        }


def test_metadata_of_an_error() -> None:
    result: Any = ServerResponse(ConnectError(ConnectErrorCode.ABORTED, "m"), {"x-h": "1"}, {"x-t": "2"})
    answer = answered(open_call().answer(result))
    assert answer.code() == "aborted"
    assert answer.headers["x-h"] == "1"
    assert answer.headers["trailer-x-t"] == "2"


@pytest.mark.parametrize(
    "result", [None, "text", b"bytes", 5, ask("of the request"), [reply()], iter([reply()]), ServerResponse("x"), UNARY]
)
def test_results_that_are_none(result: object) -> None:
    with pytest.raises(TypeError, match=r"unary\(\)"):
        open_call().answer(result)


def test_a_late_result_is_not_sent() -> None:
    with pytest.raises(ConnectError) as caught:
        open_call({"connect-timeout-ms": "0"}).answer(reply("a"))
    assert code_of(caught.value) == "deadline_exceeded"


# The client's side


def client(method: Any = UNARY, base_url: str = "http://h/base/", **options: Any) -> UnaryClient:
    return Procedures(base_url, options, asynchronous=False).unary(method)  # type: ignore[arg-type]


def sent(headers: list[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names)
    return dict(headers)


def test_the_form_of_a_request() -> None:
    request, body = client().request(ask("a"), None, None)
    assert (request.method, request.url) == ("POST", "http://h/base" + UNARY.path)
    headers = sent(request.headers)
    assert headers.pop("user-agent").startswith("connect-python/")
    assert headers == {
        "content-type": PROTO,
        "connect-protocol-version": "1",
        "accept-encoding": "zstd, br, gzip",
    }
    assert body == ask("a").SerializeToString()


def test_the_options_of_a_request() -> None:
    made = client(codec="json", accept_compression=["gzip"], send_compression="gzip", compress_min_bytes=10)
    request, body = made.request(ask(BIG), {"X-A": "1"}, 2500)
    headers = sent(request.headers)
    assert headers["content-type"] == JSON
    assert headers["accept-encoding"] == "gzip"
    assert headers["content-encoding"] == "gzip"
    assert headers["connect-timeout-ms"] == "2500"
    assert headers["x-a"] == "1"
    assert body is not None
    assert json.loads(GZIP.decompress(body, None)) == {"name": BIG}
    request, body = made.request(ask(), None, None)
    assert "content-encoding" not in sent(request.headers), "too small"
    assert body == b"{}"


def test_nothing_is_accepted() -> None:
    request, _ = client(accept_compression=()).request(ask(), None, None)
    assert sent(request.headers)["accept-encoding"] == "identity", "or a proxy may think that anything is"


def test_no_timeout_longer_than_ten_digits() -> None:
    request, _ = client().request(ask(), None, 10_000_000_000)
    assert "connect-timeout-ms" not in sent(request.headers)


def test_headers_of_a_call_replace_those_of_the_client() -> None:
    made = client(extra_headers={"X-A": ["1", "2"], "x-b": "3", "User-Agent": "mine"})
    request, _ = made.request(ask(), {"x-A": "9"}, None)
    headers = sent(request.headers)
    assert (headers["x-a"], headers["x-b"], headers["user-agent"]) == ("9", "3", "mine")
    request, _ = made.request(ask(), None, None)
    assert [value for name, value in request.headers if name == "x-a"] == ["1", "2"]
    request, _ = made.request(ask(), {"user-agent": "other"}, None)
    assert [value for name, value in request.headers if name == "user-agent"] == ["other"]


@pytest.mark.parametrize("name", ["content-type", "Connect-Timeout-Ms", "accept-encoding", "grpc-x", "x y"])
def test_headers_that_are_not_the_callers(name: str) -> None:
    with pytest.raises(ValueError):
        client().request(ask(), {name: "x"}, None)


@pytest.mark.parametrize("message", [None, {}, b"", "text", reply("of the answer"), Duration()])
def test_what_is_no_request(message: Any) -> None:
    with pytest.raises(TypeError):
        client().request(message, None, None)


def read(
    status: int, content_type: str | None, body: bytes, headers: dict[str, str] | None = None, **options: Any
) -> Any:
    pairs: CIMultiDict[str] = CIMultiDict(headers or {})
    if content_type is not None:
        pairs["Content-Type"] = content_type
    return client(**options).response(status, pairs, body, None)[0]


@pytest.mark.parametrize("content_type", [PROTO, "Application/Proto", "application/proto; charset=utf-8"])
def test_an_answer_is_read(content_type: str) -> None:
    assert read(200, content_type, reply("a").SerializeToString()) == reply("a")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP"])
def test_a_compressed_answer_is_read(encoding: str) -> None:
    body = GZIP.compress(reply("a").SerializeToString())
    assert read(200, PROTO, body, {"content-encoding": encoding}) == reply("a")


def test_an_empty_answer_is_not_decompressed() -> None:
    assert read(200, PROTO, b"", {"content-encoding": "gzip"}) == reply()


@pytest.mark.parametrize(
    ("content_type", "body", "headers", "options", "code"),
    [
        (JSON, b"{}", {}, {}, "internal"),
        (PROTO, b"", {}, {"codec": "json"}, "internal"),
        ("text/html", b"", {}, {}, "unknown"),
        ("application/connect+proto", b"", {}, {}, "unknown"),
        (None, b"", {}, {}, "unknown"),
        (PROTO, b"\xff", {}, {}, "internal"),
        (JSON, b"<html>", {}, {"codec": "json"}, "internal"),
        (PROTO, b"x", {"content-encoding": "compress"}, {}, "internal"),
        (PROTO, b"x", {"content-encoding": "br"}, {"accept_compression": ["gzip"]}, "internal"),
        (PROTO, b"x", {"content-encoding": "gzip"}, {}, "internal"),
        (PROTO, b"x" * 11, {}, {"read_max_bytes": 10}, "resource_exhausted"),
        (PROTO, GZIP.compress(b"\0" * 50), {"content-encoding": "gzip"}, {"read_max_bytes": 40}, "resource_exhausted"),
    ],
)
def test_answers_that_are_none(
    content_type: str | None, body: bytes, headers: dict[str, str], options: dict[str, Any], code: str
) -> None:
    with pytest.raises(ConnectError) as caught:
        read(200, content_type, body, headers, **options)
    assert code_of(caught.value) == code


NOT_THERE = "HTTP status 404: nothing is served at this path (is the base URL right?)"


@pytest.mark.parametrize(
    ("status", "content_type", "body", "code", "message"),
    [
        (404, JSON, b'{"code":"not_found","message":"m"}', "not_found", "m"),
        (404, "Application/JSON;charset=utf-8", b'{"code":"not_found","message":"m"}', "not_found", "m"),
        (500, JSON, b'{"code":"not_found"}', "not_found", ""),
        (404, "text/plain", b'{"code":"not_found","message":"m"}', "unimplemented", NOT_THERE),
        (404, None, b"", "unimplemented", NOT_THERE),
        (404, JSON, b'{"detail":"Not Found"}', "unimplemented", NOT_THERE),  # as FastAPI says it
        (503, JSON, b"{}", "unavailable", "HTTP status 503"),
        (503, JSON, b"", "unavailable", "HTTP status 503"),
        (503, JSON, b"<html>", "unavailable", "HTTP status 503"),
        (503, JSON, b'{"code":"nonsense","message":"m"}', "unavailable", "m"),
        (401, JSON, b'{"message":"m"}', "unauthenticated", "m"),
        (301, "text/html", b"", "unknown", "HTTP status 301: redirects are not followed"),
        (204, PROTO, b"", "unknown", "HTTP status 204"),
        (500, PROTO, b"", "unknown", "HTTP status 500"),
    ],
)
def test_errors_are_read(status: int, content_type: str | None, body: bytes, code: str, message: str) -> None:
    with pytest.raises(ConnectError) as caught:
        read(status, content_type, body)
    assert (code_of(caught.value), caught.value.message) == (code, message)


def test_limits_are_for_messages_not_for_errors() -> None:
    body = json.dumps({"code": "not_found", "message": "m" * 2000}).encode()
    for headers, sent in (({}, body), ({"content-encoding": "gzip"}, GZIP.compress(body))):
        for limit in (0, 1, 1000):
            with pytest.raises(ConnectError) as caught:
                read(404, JSON, sent, headers, read_max_bytes=limit)
            assert (code_of(caught.value), caught.value.message) == ("not_found", "m" * 2000)


def test_an_error_is_read_whatever_the_codec() -> None:
    value = base64.b64encode(b"\x08\x05").decode()
    body = json.dumps({"code": "aborted", "details": [{"type": "google.protobuf.Duration", "value": value}]}).encode()
    with pytest.raises(ConnectError) as caught:
        read(409, JSON, GZIP.compress(body), {"content-encoding": "gzip", "X-H": "1", "Trailer-X-T": "2"})
    error = caught.value
    assert code_of(error) == "aborted"
    assert error.details[0].message() == Duration(seconds=5)
    assert error.response_headers()["x-h"] == "1"
    assert error.response_trailers()["x-t"] == "2"
    assert "trailer-x-t" not in error.response_headers()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"broken", {"content-encoding": "gzip"}),
        (b"unknown", {"content-encoding": "compress"}),
        (b'{"code":"aborted"}' + b" " * 64 * 1024, {}),
        (GZIP.compress(b'{"code":"aborted"}' + b" " * 64 * 1024), {"content-encoding": "gzip"}),
    ],
)
def test_an_error_that_cannot_be_read_says_less_than_the_status(body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(ConnectError) as caught:
        read(403, JSON, body, headers, read_max_bytes=1000)
    assert code_of(caught.value) == "permission_denied"


def test_metadata_of_an_answer_is_read() -> None:
    pairs = CIMultiDict([("Content-Type", PROTO), ("X-H", "1"), ("Trailer-X-T", "2"), ("trailer-x-t", "3")])
    _, metadata = client().response(200, pairs, b"", None)
    headers, trailers = metadata()
    assert headers["x-h"] == "1"
    assert trailers.getall("X-T") == ["2", "3"]


def test_a_codec_of_ones_own() -> None:
    class Private(ProtoCodec):
        name = "x-private"

        def encode(self, message: Message) -> bytes:
            return message.SerializeToString()[::-1]

        def decode(self, data: bytes, message_type: type[Any]) -> Any:
            return message_type.FromString(data[::-1])

    request, body = client(codec=Private()).request(ask("a"), None, None)
    assert sent(request.headers)["content-type"] == "application/x-private"
    assert body == ask("a").SerializeToString()[::-1]
    assert read(200, "application/x-private", reply("a").SerializeToString()[::-1], codec=Private()) == reply("a")


def test_pure_methods_are_posted_unless_asked_otherwise() -> None:
    request, body = client(PURE).request(ask("a"), None, None)
    assert request.method == "POST"
    assert body == ask("a").SerializeToString()
