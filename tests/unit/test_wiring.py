"""The client's core wired to the server's core, without a shell: what goes in at one end comes out at the other.

Every kind of call, in every codec and compression, its bytes whole and one at a time.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue
from multidict import CIMultiDict

from connectrpc._core.call import exactly_one, messages_of
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc._core.timeout import parse_grpc_timeout
from connectrpc.client.options import Procedures
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.method import Method
from connectrpc.request import ClientRequest, ClientStream, ServerResponse, ServerStream
from connectrpc.server import asgi_app, asgi_service, wsgi_app, wsgi_service
from connectrpc.server.handlers import coded, failed, last_part
from harness import BIDI, CLIENT, METHODS, PURE, SERVER, SERVICE, UNARY, ask, endpoints_of, head_of, pieces, reply

AnyMethod = Method[EnumValue, SourceContext]

PROTOCOLS = pytest.mark.parametrize("protocol", ["connect", "grpc-web"])

LONG = "the same over and over " * 200
HEADERS = {"X-One": "1", "x-many": ["2", "3"], "x-data-bin": "AAECAw"}
TRAILERS = {"X-Last": "4", "x-lasts": ["5", "6"], "x-last-bin": "_-8"}


class Outcome:
    """What a call comes to at the client's end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.error: ConnectError | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.trailers: CIMultiDict[str] = CIMultiDict()


class Service:
    """Answers with what it was asked, and keeps what it saw."""

    def __init__(self, error: ConnectError | None, headers: Any, trailers: Any) -> None:
        self._error = error
        self._metadata = (headers, trailers)
        self.seen: list[EnumValue] = []
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.timeout_ms: int | None = None

    def _note(self, request: ClientRequest[EnumValue] | ClientStream[EnumValue]) -> None:
        self.headers = request.headers
        self.timeout_ms = request.timeout.timeout_ms
        self.seen = [request.msg] if isinstance(request, ClientRequest) else list(request)

    def _texts(self) -> list[str]:
        return [f"{message.name}/{message.number}" for message in self.seen]

    def unary(self, request: ClientRequest[EnumValue]) -> ServerResponse[SourceContext]:
        self._note(request)
        payload = self._error or reply(" ".join(self._texts()))
        return ServerResponse(payload, *self._metadata)

    pure = unary

    def client(self, request: ClientStream[EnumValue]) -> ServerResponse[SourceContext]:
        self._note(request)
        payload = self._error or reply(" ".join(self._texts()))
        return ServerResponse(payload, *self._metadata)

    def server(self, request: ClientRequest[EnumValue] | ClientStream[EnumValue]) -> ServerStream[SourceContext]:
        self._note(request)
        messages: list[SourceContext | ConnectError] = [reply(text) for text in self._texts() for _ in range(2)]
        if self._error is not None:
            messages.append(self._error)
        return ServerStream(messages, *self._metadata)

    bidi = server


class Wire:
    """Carries calls from one core to the other.

    Args:
        service: what handles them.
        size: in parts of how many bytes both bodies travel.
        client: the client's options.
        server: the server's options.
    """

    def __init__(self, service: object, size: int = 0, client: Any = None, server: Any = None) -> None:
        self._procedures = Procedures("http://h", {} if client is None else client, asynchronous=False)
        self._endpoints = endpoints_of(service, {} if server is None else server)
        self._size = size
        self.status = 0
        self.request_headers: CIMultiDict[str] = CIMultiDict()
        self.response_headers: CIMultiDict[str] = CIMultiDict()
        self.request_body = b""
        self.response_body = b""

    def call(
        self, method: AnyMethod, messages: list[EnumValue], headers: Any = None, timeout_ms: int | None = None
    ) -> Outcome:
        outcome = Outcome()
        try:
            if method.kind.client_streams or method.kind.server_streams:
                self._stream(method, messages, headers, timeout_ms, outcome)
            else:
                self._unary(method, messages[0], headers, timeout_ms, outcome)
        except ConnectError as error:
            outcome.error = error
            outcome.headers, outcome.trailers = error.response_headers(), error.response_trailers()
        return outcome

    def _unary(
        self, method: AnyMethod, message: EnumValue, headers: Any, timeout_ms: int | None, outcome: Outcome
    ) -> None:
        request, body = self._procedures.unary(method).request(message, headers, timeout_ms)
        self._serve(request, body or b"")
        self.read(method, outcome)

    def _stream(
        self, method: AnyMethod, messages: list[EnumValue], headers: Any, timeout_ms: int | None, outcome: Outcome
    ) -> None:
        client = self._procedures.stream(method)
        self._serve(client.request(headers, timeout_ms), b"".join(map(client.send, messages)))
        self.read(method, outcome)

    def read(self, method: AnyMethod, outcome: Outcome) -> None:
        """What the client makes of the answer that is there."""
        if not (method.kind.client_streams or method.kind.server_streams):
            client = self._procedures.unary(method)
            found, metadata = client.response(self.status, self.response_headers, self.response_body, None)
            outcome.texts.append(found.file_name)
            outcome.headers, outcome.trailers = metadata()
            return
        call = self._procedures.stream(method).call()
        call.head(self.status, self.response_headers)
        for piece in pieces(self.response_body, self._size):
            outcome.texts += [message.file_name for message in call.feed(piece)]
        call.feed_end(None)
        outcome.headers, outcome.trailers = call.metadata()
        if not method.kind.server_streams:
            exactly_one(outcome.texts, "response")

    def _serve(self, request: Any, body: bytes) -> None:
        self.request_headers, self.request_body = CIMultiDict(request.headers), body
        found = negotiate(self._endpoints, head_of(request))
        if isinstance(found, WholeResponse):
            self._answered(found)
            return
        endpoint, call = found
        try:
            if endpoint.method.kind.server_streams:
                self._serve_stream(endpoint.handler, call, body)
            else:
                self._answered(call.answer(endpoint.handler(self._request(call, body))))
        except Exception as error:
            self._answered(failed(call, error))

    def _serve_stream(self, handler: Any, call: Any, body: bytes) -> None:
        messages, headers, stream = messages_of(call.method, handler(self._request(call, body)))
        head = call.start(headers)
        sent, failure = [], None
        try:
            for message in messages:
                if isinstance(message, ConnectError):
                    failure = message
                    break
                sent.append(call.send(message))
        except Exception as error:
            failure = coded(call, error)
        sent.append(last_part(call, failure, stream))
        self._answered(WholeResponse(head.status, head.headers, b"".join(sent)))

    def _request(self, call: Any, body: bytes) -> ClientRequest[Any] | ClientStream[Any]:
        if call.method.kind.client_streams:
            return ClientStream(self._messages(call, body), call)
        if not self._size:
            return ClientRequest(call.receive(body), call)
        for piece in pieces(body, self._size):
            call.take(piece)
        return ClientRequest(call.taken(), call)

    def _messages(self, call: Any, body: bytes) -> Any:
        for piece in pieces(body, self._size):
            yield from call.feed(piece)
        call.feed_end()

    def _answered(self, response: WholeResponse) -> None:
        self.status, self.response_body = response.status, response.body
        self.response_headers = CIMultiDict(response.headers)


def asked_of(method: AnyMethod) -> list[EnumValue]:
    return [ask(LONG, -1), ask(), ask("\u00e4\u20ac", 2**31 - 1)] if method.kind.client_streams else [ask(LONG, 7)]


def expected_of(method: AnyMethod, messages: list[EnumValue]) -> list[str]:
    texts = [f"{message.name}/{message.number}" for message in messages]
    if method.kind.server_streams:
        return [text for text in texts for _ in range(2)]
    return [" ".join(texts)]


def has(found: CIMultiDict[str], given: dict[str, Any]) -> bool:
    return all(
        found.getall(name.title(), []) == ([value] if isinstance(value, str) else value)
        for name, value in given.items()
    )


@PROTOCOLS
@pytest.mark.parametrize("size", [0, 1, 100])
@pytest.mark.parametrize("compression", [None, "gzip", "br", "zstd"])
@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_calls(method: AnyMethod, codec: str, compression: str | None, size: int, protocol: str) -> None:
    service = Service(None, HEADERS, TRAILERS)
    options = {
        "protocol": protocol,
        "codec": codec,
        "send_compression": compression,
        "accept_compression": [compression] if compression else (),
    }
    wire = Wire(service, size, options)
    messages = asked_of(method)
    outcome = wire.call(method, messages, HEADERS, 60_000)
    assert outcome.error is None
    assert service.seen == messages
    assert service.timeout_ms == 60_000
    assert has(service.headers, HEADERS)
    assert outcome.texts == expected_of(method, messages)
    assert has(outcome.headers, HEADERS)
    assert has(outcome.trailers, TRAILERS)
    for body in (wire.request_body, wire.response_body):
        assert (len(body) < 2000) is (compression is not None), "it was compressed if that was asked for"


@PROTOCOLS
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_errors(method: AnyMethod, codec: str, compression: str | None, size: int, protocol: str) -> None:
    details = [Duration(seconds=5), ask("detail", 6), reply("x" * 3000)]
    error = ConnectError(ConnectErrorCode.FAILED_PRECONDITION, "why \u00e4\u20ac\U0001f600 \"'\\ \n", details)
    options = {"protocol": protocol, "codec": codec, "send_compression": compression}
    wire = Wire(Service(error, HEADERS, TRAILERS), size, options)
    messages = asked_of(method)
    outcome = wire.call(method, messages)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == (error.code, error.message)
    assert [detail.message() for detail in outcome.error.details] == details
    assert outcome.texts == (expected_of(method, messages) if method.kind.server_streams else [])
    assert has(outcome.headers, HEADERS)
    assert has(outcome.trailers, TRAILERS)


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("code", ConnectErrorCode)
def test_codes(method: AnyMethod, code: ConnectErrorCode, protocol: str) -> None:
    outcome = Wire(Service(ConnectError(code), None, None), 0, {"protocol": protocol}).call(method, [ask()])
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == (code, "")


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_a_handler_raises(method: AnyMethod, protocol: str) -> None:
    def raising(error: Exception) -> Any:
        def handler(request: object) -> Any:
            raise error

        return types.SimpleNamespace(**{method.python_name: handler for method in METHODS})

    error = ConnectError(ConnectErrorCode.NOT_FOUND, "told", [ask("detail")])
    outcome = Wire(raising(error), 0, {"protocol": protocol}).call(method, [ask()])
    assert outcome.error is not None
    assert (str(outcome.error), outcome.error.details) == ("not_found: told", error.details)
    outcome = Wire(raising(RuntimeError("secret")), 0, {"protocol": protocol}).call(method, [ask()])
    assert outcome.error is not None
    assert outcome.error.code is ConnectErrorCode.UNKNOWN
    assert "secret" not in str(outcome.error)


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_that_the_server_lacks(method: AnyMethod, protocol: str) -> None:
    outcome = Wire(types.SimpleNamespace(), 0, {"protocol": protocol}).call(method, [ask()])
    assert outcome.error is not None
    assert outcome.error.code is ConnectErrorCode.UNIMPLEMENTED


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_server_that_cannot_decompress(method: AnyMethod, protocol: str) -> None:
    """The client learns what the server has."""
    options = {"protocol": protocol, "send_compression": "br"}
    wire = Wire(Service(None, None, None), 0, options, {"compressions": ["gzip", "zstd"]})
    outcome = wire.call(method, [ask(LONG)])
    assert outcome.error is not None
    assert outcome.error.code is ConnectErrorCode.UNIMPLEMENTED
    assert "gzip, zstd" in outcome.error.message
    if protocol == "grpc-web":
        assert outcome.headers["grpc-accept-encoding"] == "gzip,zstd"


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_client_that_compresses_and_cannot_decompress(method: AnyMethod, protocol: str) -> None:
    options = {"protocol": protocol, "send_compression": "gzip", "accept_compression": []}
    outcome = Wire(Service(None, None, None), 0, options).call(method, [ask(LONG)])
    assert (outcome.error, set(outcome.texts)) == (None, {f"{LONG}/0"})


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("codec", ["proto", "json"])
def test_limits_of_the_server(method: AnyMethod, codec: str, protocol: str) -> None:
    for compression in (None, "gzip"):
        options = {"protocol": protocol, "codec": codec, "send_compression": compression}
        wire = Wire(Service(None, None, None), 1, options, {"read_max_bytes": 1000})
        outcome = wire.call(method, [ask(LONG)])
        assert outcome.error is not None
        assert outcome.error.code is ConnectErrorCode.RESOURCE_EXHAUSTED


@PROTOCOLS
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("codec", ["proto", "json"])
def test_limits_of_the_client(method: AnyMethod, codec: str, protocol: str) -> None:
    for compression in ((), ("gzip",)):
        options = {"protocol": protocol, "codec": codec, "accept_compression": compression, "read_max_bytes": 1000}
        wire = Wire(Service(None, None, None), 0, options)
        outcome = wire.call(method, [ask(LONG)])
        assert outcome.error is not None
        assert outcome.error.code is ConnectErrorCode.RESOURCE_EXHAUSTED


@PROTOCOLS
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_streams_of_nothing(method: AnyMethod, protocol: str) -> None:
    service = Service(None, None, None)
    outcome = Wire(service, 0, {"protocol": protocol}).call(method, [])
    assert outcome.error is None
    assert service.seen == []
    assert outcome.texts == expected_of(method, [])


def test_get() -> None:
    service = Service(None, HEADERS, TRAILERS)
    for codec in ("proto", "json"):
        for compression in (None, "gzip"):
            options = {"use_get": True, "codec": codec, "send_compression": compression, "compress_min_bytes": 0}
            wire = Wire(service, 0, options)
            outcome = wire.call(PURE, [ask("\u00e4 +/?&=", 5)], HEADERS, 60_000)
            assert outcome.error is None
            assert wire.request_body == b""
            assert outcome.texts == ["\u00e4 +/?&=/5"]
            assert has(service.headers, HEADERS)
            assert has(outcome.headers, HEADERS)
            assert has(outcome.trailers, TRAILERS)
            assert service.timeout_ms == 60_000


@PROTOCOLS
@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_a_server_that_speaks_another_codec(method: AnyMethod, protocol: str) -> None:
    from connectrpc.codec import ProtoCodec

    options = {"protocol": protocol, "codec": "json"}
    outcome = Wire(Service(None, None, None), 0, options, {"codecs": [ProtoCodec()]}).call(method, [ask()])
    assert outcome.error is not None
    assert outcome.error.code is ConnectErrorCode.UNKNOWN
    assert "415" in outcome.error.message


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_both_require_the_version(method: AnyMethod) -> None:
    wire = Wire(Service(None, None, None), 0, {"use_get": True}, {"require_connect_protocol_header": True})
    assert wire.call(method, [ask()]).error is None


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_grpc_web_needs_no_version(method: AnyMethod) -> None:
    options = {"protocol": "grpc-web"}
    wire = Wire(Service(None, None, None), 0, options, {"require_connect_protocol_header": True})
    assert wire.call(method, [ask()]).error is None


@pytest.mark.parametrize("timeout_ms", [1, 60_000, 99_999_999, 123_456_789, 9_000_000_001])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_timeouts_of_grpc(method: AnyMethod, timeout_ms: int) -> None:
    """The server gives the call no less time than the client does."""
    wire = Wire(Service(None, None, None), 0, {"protocol": "grpc-web"})
    wire.call(method, [ask()], None, timeout_ms)
    found = parse_grpc_timeout(wire.request_headers["grpc-timeout"])
    assert 0 <= found - timeout_ms < 1000


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_answers_without_their_end(method: AnyMethod) -> None:
    """However much of an answer is lost, what is left is no success."""
    wire = Wire(Service(None, HEADERS, TRAILERS), 0, {"protocol": "grpc-web"})
    assert wire.call(method, [ask("a", 1)]).error is None
    whole = wire.response_body
    for length in range(len(whole)):
        wire.response_body = whole[:length]
        with pytest.raises(ConnectError) as caught:
            wire.read(method, Outcome())
        assert caught.value.code is ConnectErrorCode.INTERNAL
        assert has(caught.value.response_headers(), HEADERS)


@pytest.mark.parametrize("wrong", [None, [], object(), "app"])
def test_one_app_of_what_is_none(wrong: Any) -> None:
    with pytest.raises(TypeError, match="wsgi_app takes"):
        wsgi_app(wrong)
    with pytest.raises(TypeError, match="asgi_app takes"):
        asgi_app(wrong)


def test_one_app_of_the_other_kind() -> None:
    with pytest.raises(TypeError, match="not ASGIApplication"):
        wsgi_app(asgi_service(SERVICE, object()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not WSGIApplication"):
        asgi_app(wsgi_service(SERVICE, object()))  # type: ignore[arg-type]
