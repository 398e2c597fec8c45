"""From the head of a request to a call, or to an answer that is complete."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc._core.request_headers import media_type
from connectrpc.codec import ProtoCodec
from connectrpc.errors import ConnectErrorCode
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    MISSING,
    PROTO,
    PURE,
    SERVER,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    WEB,
    WEB_JSON,
    WEB_PROTO,
    Answer,
    Head,
    accepted,
    endpoints_of,
)

if TYPE_CHECKING:
    from connectrpc.method import Method


def ask_for(
    path: str, content_type: str | None = PROTO, headers: dict[str, str] | None = None, **options: Any
) -> tuple[Any, Any] | Answer:
    http_method = options.pop("http_method", "POST")
    query = options.pop("query", "")
    trailers = options.pop("trailers", False)
    given: Any = options
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), given)
    pairs = list((headers or {}).items())
    if content_type is not None:
        pairs.append(("content-type", content_type))
    head = Head(path, pairs, http_method=http_method, query=query)
    head.can_send_trailers = trailers
    found = negotiate(endpoints, head)
    if isinstance(found, WholeResponse):
        answer = Answer(found.status, found.headers, found.body)
        answer.trailers = dict(found.trailers or [])
        return answer
    return found


def answer_to(
    path: str, content_type: str | None = PROTO, headers: dict[str, str] | None = None, **options: Any
) -> Answer:
    found = ask_for(path, content_type, headers, **options)
    assert isinstance(found, Answer)
    return found


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        *((method, kind) for method in (UNARY, PURE) for kind in (PROTO, JSON)),
        *((method, kind) for method in (SERVER, CLIENT, BIDI) for kind in (STREAM_PROTO, STREAM_JSON)),
        *((method, kind) for method in METHODS for kind in (WEB_PROTO, WEB_JSON, WEB)),
    ],
)
@pytest.mark.parametrize("spelling", ["{}", "{}; charset=utf-8", "{} ;charset=utf-8", " {}"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_media_types(method: Method[Any, Any], content_type: str, spelling: str, case: Any) -> None:
    """RFC 9110 section 8.3.1: no regard to letter case; parameters that mean nothing to us are passed over."""
    found = ask_for(method.path, case(spelling.format(content_type)))
    assert not isinstance(found, Answer)
    endpoint, call = found
    assert endpoint.method is method
    assert call.method is method
    assert call.peer().protocol == ("grpc-web" if "grpc-web" in content_type else "connect")
    assert call.peer().address == "192.0.2.1:1234"


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        *(
            (UNARY, kind)
            for kind in (
                STREAM_PROTO,
                "application/grpc-web-text",
                "application/grpc-web-text+proto",
                "application/grpc-web+xml",
                "application/grpc-webx",
                "application/xml",
                "text/json",
                "",
                None,
                ";",
                "application/proto2",
                "application/jsonx",
            )
        ),
        *(
            (method, kind)
            for method in (SERVER, CLIENT, BIDI)
            for kind in (PROTO, JSON, "application/connect", "application/connect+xml", None)
        ),
    ],
)
def test_unsupported_media_types(method: Method[Any, Any], content_type: str | None) -> None:
    answer = answer_to(method.path, content_type)
    assert answer.status == 415
    assert answer.accept_post() == accepted(method)
    assert answer.body


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        UNARY.path + "/",
        "/" + UNARY.path,
        UNARY.path[1:],
        UNARY.path.lower(),
        "/prefix" + UNARY.path,
        UNARY.path + "x",
        "/test.v1.EchoService/unary",
        "/test.v1.EchoService",
    ],
)
def test_unknown_paths(path: str) -> None:
    answer = answer_to(path)
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body
    assert answer_to(path, WEB).status == 404


@pytest.mark.parametrize("trailers", [True, False])
@pytest.mark.parametrize("content_type", ["application/grpc", "Application/gRPC+proto", "application/grpc+x; a=b"])
def test_unknown_paths_of_grpc(content_type: str, trailers: bool) -> None:
    """In gRPC's own terms too. Not each of its clients makes ``unimplemented`` of each server's 404."""
    answer = answer_to("/unknown", content_type, trailers=trailers)
    assert answer.status == 404
    assert answer.trailers == ({"grpc-status": "12", "grpc-message": "there is no such method"} if trailers else {})


def test_head_is_answered_without_a_body() -> None:
    """RFC 9110 section 9.3.2. Some servers would send it."""
    for path in (UNARY.path, PURE.path, "/unknown"):
        answer = answer_to(path, http_method="HEAD")
        assert answer.status == (404 if path == "/unknown" else 405)
        assert answer.body == b""
        assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("http_method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", ""])
@pytest.mark.parametrize("method", METHODS)
def test_http_methods(method: Method[Any, Any], http_method: str) -> None:
    if method is PURE and http_method == "GET":
        return
    answer = answer_to(method.path, http_method=http_method)
    assert answer.status == 405
    assert bool(answer.body) == (http_method != "HEAD")
    assert answer.headers["allow"] == ("GET, POST" if method is PURE else "POST")


def test_codecs_of_ones_own() -> None:
    class Private(ProtoCodec):
        name = "x-private"

    options: dict[str, Any] = {"codecs": [Private()]}
    assert not isinstance(ask_for(UNARY.path, "application/x-private", **options), Answer)
    assert not isinstance(ask_for(BIDI.path, "application/connect+x-private", **options), Answer)
    assert not isinstance(ask_for(BIDI.path, "application/grpc-web+x-private", **options), Answer)
    assert answer_to(UNARY.path, PROTO, **options).accept_post() == accepted(UNARY, ["x-private"])
    assert answer_to(UNARY.path, WEB, **options).status == 415, "without a name it is Protobuf's binary encoding"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"connect-protocol-version": "2"}, "invalid_argument"),
        ({"connect-protocol-version": ""}, "invalid_argument"),
        ({"connect-timeout-ms": "-1"}, "invalid_argument"),
        ({"connect-timeout-ms": "soon"}, "invalid_argument"),
        ({"connect-timeout-ms": "12345678901"}, "invalid_argument"),
        ({"content-encoding": "compress"}, "unimplemented"),
    ],
)
def test_heads_that_cannot_be_served(headers: dict[str, str], code: str) -> None:
    answer = answer_to(UNARY.path, PROTO, headers)
    assert answer.code() == code
    if code == "unimplemented":
        assert "gzip" in answer.error()["message"], "it says what there is"
    # and the same said in a stream
    streamed = answer_to(
        SERVER.path,
        STREAM_PROTO,
        {name.replace("content-encoding", "connect-content-encoding"): value for name, value in headers.items()},
    )
    assert streamed.stream()[0] == []
    assert streamed.failure() == code


@pytest.mark.parametrize("method", [UNARY, SERVER])
def test_the_protocol_header_can_be_required(method: Method[Any, Any]) -> None:
    content_type = PROTO if method is UNARY else STREAM_PROTO
    assert not isinstance(ask_for(method.path, content_type), Answer)
    answer = answer_to(method.path, content_type, require_connect_protocol_header=True)
    assert (answer.code() if method is UNARY else answer.failure()) == "invalid_argument"
    given = {"connect-protocol-version": "1"}
    assert not isinstance(ask_for(method.path, content_type, given, require_connect_protocol_header=True), Answer)


@pytest.mark.parametrize(
    ("sent", "limit", "expected"),
    [
        (None, None, None),
        ("5000", None, 5000),
        (None, 2.5, 2500),
        ("5000", 2.5, 2500),
        ("1000", 2.5, 1000),
        ("0", 2.5, 0),
    ],
)
@pytest.mark.parametrize("method", [UNARY, BIDI])
def test_deadline(method: Method[Any, Any], sent: str | None, limit: float | None, expected: int | None) -> None:
    headers = {} if sent is None else {"connect-timeout-ms": sent}
    content_type = PROTO if method is UNARY else STREAM_PROTO
    found = ask_for(method.path, content_type, headers, max_timeout_seconds=limit)
    assert not isinstance(found, Answer)
    assert found[1].deadline.timeout_ms == expected
    headers = {} if sent is None else {"grpc-timeout": f"{sent}m"}
    found = ask_for(method.path, WEB_PROTO, headers, max_timeout_seconds=limit)
    assert not isinstance(found, Answer)
    assert found[1].deadline.timeout_ms == expected


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        *(
            ({"grpc-timeout": value}, ConnectErrorCode.INVALID_ARGUMENT)
            for value in ("", "5", "m", "-1m", "1.5S", "5 S", "5s", "123456789n", "1h")
        ),
        ({"grpc-encoding": "compress"}, ConnectErrorCode.UNIMPLEMENTED),
    ],
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_grpc_heads_that_cannot_be_served(
    method: Method[Any, Any], headers: dict[str, str], code: ConnectErrorCode
) -> None:
    texts, trailers = answer_to(method.path, WEB_PROTO, headers).web()
    assert texts == []
    assert int(trailers["grpc-status"]) == code.grpc_number
    if code is ConnectErrorCode.UNIMPLEMENTED:
        answer = answer_to(method.path, WEB_PROTO, headers, compressions=["gzip", "zstd"])
        assert answer.headers["grpc-accept-encoding"] == "gzip,zstd"
        assert "gzip, zstd" in answer.web()[1]["grpc-message"]


def test_headers_of_other_protocols_mean_nothing() -> None:
    others = {"grpc-timeout": "soon", "grpc-encoding": "compress", "connect-content-encoding": "compress"}
    assert not isinstance(ask_for(UNARY.path, PROTO, others), Answer)
    others = {"connect-timeout-ms": "soon", "connect-protocol-version": "2"}
    found = ask_for(UNARY.path, WEB_PROTO, others, require_connect_protocol_header=True)
    assert not isinstance(found, Answer)
    assert found[1].deadline.timeout_ms is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, ""), ("", ""), ("A/B", "a/b"), (" a/b ; c=d", "a/b"), ("a/b;", "a/b"), (";", "")],
)
def test_media_type(header: str | None, expected: str) -> None:
    assert media_type(header) == expected
