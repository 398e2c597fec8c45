"""Unary calls by GET."""

from __future__ import annotations

import asyncio
import base64
import types
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from google.protobuf.struct_pb2 import Struct
from multidict import CIMultiDict
from wires import Network

from connectrpc import compression
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc.cancel import CancelToken
from connectrpc.client import AsyncClient, SyncClient
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, Method, MethodKind
from connectrpc.server import ClientRequest, asgi_service, wsgi_service
from harness import (
    JSON,
    METHODS,
    MISSING,
    PROTO,
    PURE,
    SERVICE,
    UNARY,
    Answer,
    AsyncMemoryTransport,
    Head,
    MemoryTransport,
    ask,
    call_asgi,
    call_wsgi,
    code_of,
    endpoints_of,
    environ,
    reply,
    scope,
)

GZIP = compression.named("gzip")


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


PROTO_A = "connect=v1&base64=1&encoding=proto&message=" + encoded(ask("a", 5).SerializeToString())

# The client's side


def request(message: Any = None, method: Any = PURE, **options: Any) -> tuple[Any, bytes | None]:
    made = Procedures("http://h/base", {"use_get": True, **options}, asynchronous=False)  # type: ignore[typeddict-item]
    return made.unary(method).request(ask("a", 5) if message is None else message, None, 1500)


def test_the_form_of_a_request() -> None:
    sent, body = request()
    assert sent.method == "GET"
    assert sent.url == f"http://h/base{PURE.path}?{PROTO_A}"
    assert body is None
    headers = dict(sent.headers)
    assert headers.pop("user-agent").startswith("connect-python/")
    assert headers == {"accept-encoding": "zstd, br, gzip", "connect-timeout-ms": "1500"}


def test_json_is_readable() -> None:
    sent, _ = request(ask("\u00e4&=+ /?", 5), codec="json")
    text = quote('{"name":"\u00e4&=+ /?","number":5}', safe="")
    assert sent.url.endswith(f"?connect=v1&encoding=json&message={text}")


def test_compressed() -> None:
    for codec in ("json", "proto"):
        sent, _ = request(ask("x" * 2000), codec=codec, send_compression="gzip")
        names = [name for name, _ in parse_qsl(urlsplit(sent.url).query)]
        assert names == ["connect", "base64", "compression", "encoding", "message"]
        assert "&compression=gzip&" in sent.url
        assert "content-encoding" not in dict(sent.headers)


def test_no_message_is_an_empty_parameter() -> None:
    assert request(ask())[0].url.endswith("?connect=v1&base64=1&encoding=proto&message=")


@pytest.mark.parametrize(
    "method", [method for method in METHODS if method.kind is MethodKind.UNARY and method is not PURE]
)
def test_other_methods_are_posted(method: Method[Any, Any]) -> None:
    sent, body = request(method=method)
    assert sent.method == "POST"
    assert body == ask("a", 5).SerializeToString()


def test_a_url_that_would_be_too_long() -> None:
    length = len(request()[0].url)
    assert request(get_url_max_bytes=length)[0].method == "GET"
    sent, body = request(get_url_max_bytes=length - 1)
    assert sent.method == "POST"
    assert body == ask("a", 5).SerializeToString()
    assert dict(sent.headers)["content-type"] == PROTO
    assert dict(sent.headers)["connect-protocol-version"] == "1"
    assert request(ask("x" * 7000))[0].method == "POST", "there is a limit by default"


@pytest.mark.parametrize("codec", ["proto", "json"])
def test_equal_messages_have_equal_urls(codec: str) -> None:
    """Or caches would not know them."""
    method = Method(
        "a.B",
        "C",
        MethodKind.UNARY,
        Struct,
        Struct,
        python_name="c",
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
    )
    one, other = Struct(), Struct()
    for name in "abcdefgh":
        one[name] = name
    for name in "hgfedcba":
        other[name] = name
    assert request(one, method, codec=codec)[0].url == request(other, method, codec=codec)[0].url


def test_a_codec_that_cannot() -> None:
    class Plain:
        name = "plain"

        def encode(self, message: Any) -> bytes:
            return b""

        def decode(self, data: bytes, message_type: Any) -> Any:
            return message_type()

    with pytest.raises(ValueError, match="plain"):
        Procedures("http://h", {"use_get": True, "codec": Plain()}, asynchronous=False)


def test_an_answer_is_read() -> None:
    made = Procedures("http://h", {"use_get": True}, asynchronous=False).unary(PURE)
    message, _ = made.response(200, CIMultiDict({"content-type": PROTO}), reply("a").SerializeToString(), None)
    assert message == reply("a")
    with pytest.raises(ConnectError) as caught:
        made.response(404, CIMultiDict({"content-type": JSON}), b'{"code":"not_found"}', None)
    assert code_of(caught.value) == "not_found"


# The server's side


def get(query: str, headers: dict[str, str] | None = None, path: str = PURE.path, **options: Any) -> Any:
    """The message that was received, or the answer that it gets."""
    endpoints = endpoints_of(types.SimpleNamespace(**MISSING), options)
    found = negotiate(endpoints, Head(path, (headers or {}).items(), http_method="GET", query=query))
    if isinstance(found, WholeResponse):
        return Answer(found.status, found.headers, found.body)
    return found[1].receive(b"")


MESSAGE = ask("a", 5).SerializeToString()
TEXT = b'{"name":"a","number":5}'
PADDED = base64.urlsafe_b64encode(MESSAGE).decode()


@pytest.mark.parametrize(
    "query",
    [
        PROTO_A,
        f"message={encoded(MESSAGE)}&encoding=proto&base64=1&connect=v1",
        f"message={encoded(MESSAGE)}&encoding=proto&base64=1",
        f"{PROTO_A}&unknown=1&other",
        f"base64=1&encoding=proto&message={PADDED}",
        f"base64=1&encoding=proto&message={quote(PADDED)}",
        f"encoding=proto&message={quote(MESSAGE)}",
        f"compression=identity&{PROTO_A}",
        f"compression=&{PROTO_A}",
        f"connect=v1&encoding=json&message={quote(TEXT)}",
        f"connect=v1&encoding=json&base64=1&message={encoded(TEXT)}",
        f"connect=v1&encoding=proto&base64=1&compression=gzip&message={encoded(GZIP.compress(MESSAGE))}",
        f"connect=v1&encoding=json&base64=1&compression=gzip&message={encoded(GZIP.compress(TEXT))}",
    ],
)
def test_requests(query: str) -> None:
    assert get(query) == ask("a", 5)


def test_binary_is_not_mangled() -> None:
    """Bytes above 127, and plus signs, which mean spaces in a query."""
    message = ask("\u00e4\u20ac+ +")
    assert get(f"encoding=proto&message={quote(message.SerializeToString(), safe='')}") == message
    text = '{"name":"\u00e4\u20ac+ +"}'
    assert get(f"encoding=json&message={quote(text, safe='')}") == message


@pytest.mark.parametrize("query", ["encoding=proto&message=", "base64=1&encoding=proto&message="])
def test_an_empty_message(query: str) -> None:
    assert get(query) == ask()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "invalid_argument"),
        ("connect=v1", "invalid_argument"),
        ("connect=v1&encoding=proto", "invalid_argument"),
        ("connect=v1&message=", "invalid_argument"),
        (PROTO_A.replace("v1", "v2"), "invalid_argument"),
        (PROTO_A.replace("v1", ""), "invalid_argument"),
        (PROTO_A + "&compression=compress", "unimplemented"),
    ],
)
def test_refused(query: str, code: str) -> None:
    assert get(query).code() == code


@pytest.mark.parametrize(
    "query",
    [
        "base64=1&encoding=proto&message=A",
        "base64=1&encoding=proto&message=!!!!",
        "base64=1&encoding=proto&message=%ff",
        "base64=1&encoding=json&message={}",
        "encoding=proto&message=%ff",
        "encoding=json&message=%ff",
        "encoding=json&message={",
        "base64=1&encoding=proto&compression=gzip&message=AAAA",
    ],
)
def test_messages_that_are_none(query: str) -> None:
    with pytest.raises(ConnectError) as caught:
        get(query)
    assert code_of(caught.value) == "invalid_argument"


def test_the_limit() -> None:
    big = ask("x" * 500).SerializeToString()
    query = f"base64=1&encoding=proto&message={encoded(big)}"
    assert get(query, read_max_bytes=len(big)) == ask("x" * 500)
    for sent in (query, f"base64=1&encoding=proto&compression=gzip&message={encoded(GZIP.compress(big))}"):
        with pytest.raises(ConnectError) as caught:
            get(sent, read_max_bytes=len(big) - 1)
        assert code_of(caught.value) == "resource_exhausted"


def test_unknown_encoding() -> None:
    answer = get("connect=v1&encoding=xml&message=")
    assert answer.status == 415
    assert JSON in answer.headers["accept-post"]


def test_the_version_can_be_required() -> None:
    query = PROTO_A.replace("connect=v1&", "")
    assert get(query) == ask("a", 5)
    assert get(query, require_connect_protocol_header=True).code() == "invalid_argument"
    assert get(PROTO_A, require_connect_protocol_header=True) == ask("a", 5)


def test_timeouts_stay_headers() -> None:
    assert get(PROTO_A, {"connect-timeout-ms": "x"}).code() == "invalid_argument"
    assert get(PROTO_A + "&connect-timeout-ms=x", {"connect-timeout-ms": "1000"}) == ask("a", 5)


class Implementation:
    def pure(self, request: ClientRequest[Any]) -> Any:
        assert request.method is PURE
        if request.msg.name == "fail":
            raise ZeroDivisionError("secret")
        return reply(request.msg.name * 2000)


def both(query: str, headers: dict[str, str]) -> list[Answer]:
    """The answers of both kinds of application."""
    made = environ(PURE.path, b"", "", headers, REQUEST_METHOD="GET", QUERY_STRING=query, CONTENT_LENGTH=None)
    other = scope(PURE.path, None, headers.items(), method="GET", query_string=query.encode())
    return [
        call_wsgi(wsgi_service(SERVICE, Implementation()), made),
        call_asgi(asgi_service(SERVICE, Implementation()), other),
    ]


def test_applications() -> None:
    for answer in both(PROTO_A, {}):
        assert answer.message() == reply("a" * 2000)
        # RFC 9110 section 12.5.5: the same URL can have another answer, and caches have to know it
        assert answer.headers["vary"].lower() == "accept-encoding"
    for answer in both(PROTO_A, {"accept-encoding": "gzip"}):
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"].lower() == "accept-encoding"
        assert GZIP.decompress(answer.body, None) == reply("a" * 2000).SerializeToString()


def test_errors_of_applications() -> None:
    for answer in both("encoding=proto&message=" + quote(ask("fail").SerializeToString()), {}):
        assert answer.code() == "unknown"
        assert b"secret" not in answer.body


def test_a_method_with_side_effects_is_not_got() -> None:
    answer = get(PROTO_A, path=UNARY.path)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


# What caches see


def test_the_order_of_parameters() -> None:
    """As the protocol recommends it, so that caches know the URLs of all clients; and nothing that is not needed."""
    for codec in ("proto", "json"):
        for compressing in ({}, {"send_compression": "gzip", "compress_min_bytes": 0}):
            for message in (ask(), ask("a", 5), ask("x" * 100)):
                sent, _ = request(message, codec=codec, **compressing)
                names = [name for name, _ in parse_qsl(urlsplit(sent.url).query, keep_blank_values=True)]
                expected = ["connect", "base64", "compression", "encoding", "message"]
                if not compressing:
                    expected.remove("compression")
                if codec == "json" and not compressing:
                    expected.remove("base64")
                assert names == expected


def many(names: str) -> Struct:
    made = Struct()
    for name in names:
        made[name] = name
    return made


MAPS = Method(
    "a.B", "C", MethodKind.UNARY, Struct, Struct, python_name="c", idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS
)


@pytest.mark.parametrize("compressing", [None, "gzip", "br", "zstd"])
@pytest.mark.parametrize("codec", ["proto", "json"])
def test_equal_messages_have_equal_urls_compressed_too(codec: str, compressing: str | None) -> None:
    options = {"codec": codec, "send_compression": compressing, "compress_min_bytes": 0}
    urls = {request(many(names), MAPS, **options)[0].url for names in ("abcdefgh", "hgfedcba", "badcfehg") * 3}
    assert len(urls) == 1


def test_the_url_says_nothing_of_the_call() -> None:
    """Neither deadlines nor headers, by which a cache would tell equal questions apart."""
    made = Procedures("http://h", {"use_get": True}, asynchronous=False).unary(PURE)
    urls = {made.request(ask("a"), headers, ms)[0].url for headers in (None, {"x-a": "1"}) for ms in (None, 5, 6000)}
    assert len(urls) == 1


@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("name", ["", "a", "\u00e4\u20ac", "x" * 50, "/?#[]@!$&'()*+,;=%"])
def test_the_limit_is_that_of_the_whole_url(name: str, codec: str) -> None:
    sent, _ = request(ask(name, 5), codec=codec)
    assert sent.url.isascii()
    length = len(sent.url)
    for limit, http_method in ((length + 1, "GET"), (length, "GET"), (length - 1, "POST"), (0, "POST")):
        assert request(ask(name, 5), codec=codec, get_url_max_bytes=limit)[0].method == http_method


def test_what_fits_when_it_is_compressed_is_compressed() -> None:
    message = ask("x" * 9000)
    assert request(message)[0].method == "POST"
    assert request(message, send_compression="gzip")[0].method == "GET"


def test_the_fall_back_is_a_post_like_all_others() -> None:
    options: dict[str, Any] = {"send_compression": "gzip", "get_url_max_bytes": 10}
    sent, body = request(ask("x" * 2000), **options)
    expected, same = request(ask("x" * 2000), use_get=False, **options)
    assert (sent.method, sent.url, sent.headers, body) == (expected.method, expected.url, expected.headers, same)
    assert dict(sent.headers)["content-encoding"] == "gzip"
    assert dict(sent.headers)["connect-timeout-ms"] == "1500"


@pytest.mark.parametrize("compressing", [None, "gzip", "br", "zstd"])
@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("message", [ask(), ask("a", 5), ask("\u00e4\u20ac+ +%&=#"), ask("x" * 2500, -1)])
def test_what_is_asked_is_what_is_understood(message: Any, codec: str, compressing: str | None) -> None:
    sent, _ = request(message, codec=codec, send_compression=compressing, compress_min_bytes=0)
    assert sent.method == "GET"
    assert get(urlsplit(sent.url).query) == message


ACCEPTS = [{}, {"accept-encoding": "gzip"}, {"accept-encoding": "br;q=0.5, zstd"}, {"accept-encoding": "identity"}]


@pytest.mark.parametrize("headers", ACCEPTS)
@pytest.mark.parametrize("name", ["a", "fail"])
def test_the_same_question_has_the_same_answer(name: str, headers: dict[str, str]) -> None:
    """Byte for byte, headers included, so that an ETag made of it holds."""
    query = "connect=v1&base64=1&encoding=proto&message=" + encoded(ask(name).SerializeToString())
    answers = [
        (answer.status, sorted(answer.headers.items()), answer.body)
        for _ in range(3)
        for answer in both(query, headers)
    ]
    assert answers == answers[:1] * 6


def applications(**options: Any) -> list[Any]:
    """Both kinds, as functions of an HTTP method, a query and a body."""
    wsgi, asgi = wsgi_service(SERVICE, Implementation(), **options), asgi_service(SERVICE, Implementation(), **options)

    def through_wsgi(http_method: str, query: str, body: bytes) -> Answer:
        return call_wsgi(wsgi, environ(PURE.path, body, PROTO, {}, REQUEST_METHOD=http_method, QUERY_STRING=query))

    def through_asgi(http_method: str, query: str, body: bytes) -> Answer:
        return call_asgi(asgi, scope(PURE.path, PROTO, method=http_method, query_string=query.encode()), body)

    return [through_wsgi, through_asgi]


def test_where_answers_vary() -> None:
    """Where they may be compressed, errors included, and only there."""
    fail = "encoding=proto&message=" + quote(ask("fail").SerializeToString())
    for call in applications():
        for query in (PROTO_A, fail, "", "encoding=proto&compression=x&message="):
            assert call("GET", query, b"").headers.getall("vary") == ["accept-encoding"]
        assert "vary" not in call("POST", "", MESSAGE).headers
    for call in applications(compressions=[]):
        for query in (PROTO_A, fail, ""):
            assert "vary" not in call("GET", query, b"").headers


@pytest.mark.parametrize("timeout", ["0", "x", "-1", "", "99999999999"])
def test_deadlines_of_gets(timeout: str) -> None:
    for answer in both(PROTO_A, {"connect-timeout-ms": timeout}):
        assert answer.code() == ("deadline_exceeded" if timeout == "0" else "invalid_argument")


def test_a_get_that_is_cancelled_or_late_is_not_sent() -> None:
    def refuse(request: object, body: object) -> Answer:
        raise AssertionError("it was sent")

    token = CancelToken()
    token.cancel()
    client = SyncClient("http://h", Network([]).manager(), use_get=True)
    output = client._caller.unary_output(PURE, ask("a"), None, None, token)
    assert code_of(output.error()) == "canceled"
    for seconds in (0, -1):
        for colour in (
            SyncClient("http://h", MemoryTransport(refuse), use_get=True)._caller.unary_output,
            awaited(AsyncClient("http://h", AsyncMemoryTransport(refuse), use_get=True)._caller.unary_output),
        ):
            assert code_of(colour(PURE, ask("a"), None, seconds).error()) == "deadline_exceeded"


def awaited(function: Any) -> Any:
    async def call(*args: Any) -> Any:
        return await function(*args)

    return lambda *args: asyncio.run(call(*args))
