"""Both kinds of application, sent anything: they answer with what is documented, and nothing gets out of them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import random
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import cut, fuzz, noise, spoil, spoil_text

from connectrpc import compression
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ServerResponse, ServerStream, asgi_request, asgi_service, wsgi_service
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    WEB,
    WEB_JSON,
    WEB_PROTO,
    Answer,
    Connection,
    Starter,
    ask,
    check_length,
    environ,
    frame,
    frames,
    part,
    reply,
    scope,
    trailers_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUSES = {200, 400, 404, 405, 411, 415} | {code.http_status for code in ConnectErrorCode}
PATHS = [method.path for method in METHODS]
CODES = {code.code_name for code in ConnectErrorCode}
GZIP = compression.named("gzip")
MESSAGES = [ask(), ask("a", 5), ask("x" * 500), ask("fail"), ask("raise")]


class Service:
    """Does what the messages say, all of it well within what handlers may do."""

    def unary(self, request: Any) -> Any:
        return self._answer([request.msg.name])

    pure = unary

    def client(self, request: Any) -> Any:
        return self._answer([message.name for message in request])

    def server(self, request: Any) -> Any:
        return ServerStream(self._messages([request.msg.name, "b"]), {"x-h": "1"}, {"x-t": "2"})

    def bidi(self, request: Any) -> Any:
        return self._messages(message.name for message in request)

    def _answer(self, names: list[str]) -> Any:
        if "fail" in names:
            raise ConnectError(ConnectErrorCode.ABORTED, "m")
        if "raise" in names:
            raise RuntimeError("secret")
        return ServerResponse(reply(",".join(names)), {"x-h": "1"}, {"x-t": "2"})

    def _messages(self, names: Any) -> Iterator[Any]:
        for name in names:
            if name == "fail":
                yield ConnectError(ConnectErrorCode.ABORTED, "m")
            if name == "raise":
                raise RuntimeError("secret")
            yield reply(name)


class AsyncService(Service):
    async def client(self, request: Any) -> Any:
        return self._answer([message.name async for message in request])

    async def bidi(self, request: Any) -> Any:
        async for message in request:
            for answer in self._messages([message.name]):
                yield answer


OPTIONS: dict[str, Any] = {"read_max_bytes": 300}
WSGI = wsgi_service(SERVICE, Service(), **OPTIONS)
ASGI = asgi_service(SERVICE, AsyncService(), **OPTIONS)


class Request:
    """A request: sound, spoiled or nonsense."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        method = chance.choice(METHODS)
        web = chance.random() < 0.3
        self.streams = web or method.kind.client_streams or method.kind.server_streams
        self.encoding = "grpc-encoding" if web else "connect-content-encoding"
        self.path = method.path if chance.random() < 0.95 else spoil_text(chance, method.path, ["/", "Unary"])
        usual: tuple[str, ...] = (STREAM_PROTO, STREAM_JSON) if self.streams else (PROTO, JSON)
        if web:
            usual = (WEB_PROTO, WEB_JSON, WEB)
        content_type = (
            chance.choice(usual)
            if chance.random() < 0.95
            else chance.choice((PROTO, JSON, STREAM_PROTO, WEB_PROTO, WEB + "-text", "", "text/plain"))
        )
        self.content_type = (
            content_type if chance.random() < 0.9 else spoil_text(chance, content_type, [";", "charset=utf-8"])
        )
        self.http_method = "POST" if chance.random() < 0.9 else chance.choice(("GET", "HEAD", "PUT", ""))
        self.headers: dict[str, str] = {"connect-protocol-version": "1"} if chance.random() < 0.7 else {}
        self.query = ""
        if method is PURE and not web and chance.random() < 0.6:
            self._get()
        self._add_headers()
        self.body = self._make_body(content_type.endswith("json"))

    def _get(self) -> None:
        self.http_method = "GET"
        payload = base64.urlsafe_b64encode(self.chance.choice(MESSAGES).SerializeToString()).decode()
        query = f"connect=v1&base64=1&encoding=proto&message={payload}"
        self.query = spoil_text(self.chance, query, ["%ff", "&", "=", "compression=gzip&", "encoding=json&"])

    def _add_headers(self) -> None:
        chance = self.chance
        encodings = ["gzip", "br", "zstd", "identity", "GZIP", "", "x", "gzip, br", "*", "gzip;q=0"]
        for name, values in (
            ("content-encoding", encodings),
            ("accept-encoding", encodings),
            ("connect-content-encoding", encodings),
            ("connect-accept-encoding", encodings),
            ("grpc-encoding", encodings),
            ("grpc-accept-encoding", encodings),
            ("grpc-timeout", ["0n", "5S", "99999999H", "123456789n", "1", "-1S", "", "x"]),
            ("connect-timeout-ms", ["0", "1", "5000", "9999999999", "99999999999", "-1", "", "x"]),
            ("connect-protocol-version", ["2", ""]),
            ("x-data-bin", ["AAE", "AAE=, !", ""]),
        ):
            if chance.random() < 0.15:
                value = chance.choice(values)
                if chance.random() < 0.1:
                    value = spoil_text(chance, value, values)
                # what HTTP servers let through
                self.headers[name] = "".join(character for character in value if "\x1f" < character < "\u0100")

    def _make_body(self, is_json: bool) -> bytes:
        chance = self.chance

        def payload() -> bytes:
            message = chance.choice(MESSAGES)
            return (
                b'{"name":"%s","number":%d}' % (message.name.encode(), message.number)
                if is_json
                else message.SerializeToString()
            )

        if not self.streams:
            body = payload()
            if self.headers.get("content-encoding", "").lower() == "gzip" and chance.random() < 0.8:
                body = GZIP.compress(body)
        else:
            body = b""
            for _ in range(chance.choice((0, 1, 1, 1, 2, 5))):
                if self.headers.get(self.encoding, "").lower() == "gzip" and chance.random() < 0.8:
                    body += frame(GZIP.compress(payload()), 1)
                else:
                    body += frame(payload(), chance.choice((0, 0, 0, 0, 0, 0, 1, 2, 0x80, 255)))
        if chance.random() < 0.4:
            body = spoil(chance, body)
        return noise(chance) if chance.random() < 0.05 else body


def check(request: Request, answer: Answer) -> None:
    """Hold an answer against the documentation of the protocol."""
    assert answer.status in STATUSES, answer
    assert b"secret" not in answer.body
    media_type = answer.headers["content-type"]
    check_length(answer, to_head=request.http_method == "HEAD")
    if media_type.startswith("text/plain"):
        assert answer.status in (400, 404, 405, 411, 415)
        assert answer.status != 405 or answer.headers["allow"]
        assert answer.status != 415 or answer.headers["accept-post"]
        return
    if media_type.startswith("application/connect+"):
        assert answer.status == 200
        name = answer.headers.get("connect-content-encoding")
        *messages, (flags, last) = frames(answer.body)
        for message_flags, payload in messages:
            assert message_flags in ((0, 1) if name else (0,))
            plain = compression.named(name or "").decompress(payload, None) if message_flags else payload
            assert decode(media_type, plain)
        assert flags == 2
        check_end(json.loads(last))
        return
    if media_type.startswith(WEB):
        assert answer.status == 200
        name = answer.headers.get("grpc-encoding")
        *messages, (flags, last) = frames(answer.body)
        for message_flags, payload in messages:
            assert message_flags in ((0, 1) if name else (0,))
            plain = compression.named(name or "").decompress(payload, None) if message_flags else payload
            assert decode(media_type, plain)
        assert flags == 0x80
        check_trailers(trailers_of(last))
        return
    body = answer.body
    if "content-encoding" in answer.headers:
        body = compression.named(answer.headers["content-encoding"]).decompress(body, None)
    if answer.status == 200:
        assert media_type in (PROTO, JSON)
        assert decode(media_type, body)
    else:
        assert media_type == JSON
        check_error(json.loads(body), answer.status)


def decode(media_type: str, body: bytes) -> bool:
    if media_type.endswith("json"):
        return set(json.loads(body)) <= {"fileName"}
    return UNARY.output.FromString(body) is not None


def check_error(error: Any, status: int | None) -> None:
    assert set(error) <= {"code", "message", "details"}
    assert error["code"] in CODES
    assert error.get("message"), "it says what is wrong"
    code = ConnectErrorCode.from_name(error["code"])
    assert code is not None
    assert status is None or code.http_status == status
    assert code not in (ConnectErrorCode.CANCELED, ConnectErrorCode.DATA_LOSS)


def check_trailers(trailers: Any) -> None:
    number = int(trailers["grpc-status"])
    assert len(trailers.getall("grpc-status")) == 1
    if number:
        code = ConnectErrorCode.from_grpc_number(number)
        assert code not in (None, ConnectErrorCode.CANCELED, ConnectErrorCode.DATA_LOSS)
        assert trailers["grpc-message"], "it says what is wrong"


def check_end(end: Any) -> None:
    assert set(end) <= {"error", "metadata"}
    if "error" in end:
        check_error(end["error"], None)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What handlers raise is logged, which is slow and is not the question here."""
    monkeypatch.setattr(asgi_request, "DRAIN_IDLE_SECONDS", 0.01)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Input(io.BytesIO):
    """``wsgi.input`` that reads short, and may fail."""

    def __init__(self, body: bytes, chance: random.Random) -> None:
        super().__init__(body)
        self._chance = chance
        self._short = chance.random() < 0.5
        self._fails = chance.random() < 0.05

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        if self._fails and self._chance.random() < 0.3:
            raise OSError("secret")
        return super().read(self._chance.randrange(1, size + 1) if self._short and size else size)


def respond_wsgi(request: Request) -> Answer | None:
    chance = request.chance
    length = (
        str(len(request.body)) if chance.random() < 0.9 else chance.choice(("", "0", "5", "-1", "x", "9" * 30, None))
    )
    changes: dict[str, Any] = {"CONTENT_LENGTH": length, "wsgi_input": Input(request.body, chance)}
    if chance.random() < 0.2:
        changes.update(HTTP_TRANSFER_ENCODING="chunked", wsgi_input_terminated=chance.choice((True, True, None)))
    made = environ(
        request.path,
        b"",
        request.content_type,
        request.headers,
        REQUEST_METHOD=request.http_method,
        QUERY_STRING=request.query.encode("latin-1", "replace").decode("latin-1"),
        **changes,
    )
    start = Starter()
    result: Any = WSGI(made, start)
    stop = chance.randrange(5) if chance.random() < 0.1 else None
    parts: list[bytes] = []
    for part_ in result:
        if stop == len(parts):
            break
        parts.append(part_)
    if hasattr(result, "close"):
        result.close()
    assert start.calls == 1
    number = int(start.status[:3])
    assert start.status[4:] == (HTTPStatus(number).phrase if number != 499 else start.status[4:])
    return None if stop is not None else Answer(number, start.headers, b"".join(parts))


def test_wsgi() -> None:
    def case(chance: random.Random) -> None:
        request = Request(chance)
        answer = respond_wsgi(request)
        if answer is not None:
            check(request, answer)

    fuzz(case, 300)


async def respond_asgi(request: Request) -> Answer | None:
    chance = request.chance
    pieces = cut(chance, request.body) or [b""]
    events: list[Any] = [part(piece, True) for piece in pieces]
    events[-1]["more_body"] = False
    if chance.random() < 0.1:
        events.insert(
            chance.randrange(len(events) + 1), chance.choice(({"type": "http.disconnect"}, OSError("secret")))
        )
    if chance.random() < 0.1:
        events.insert(chance.randrange(len(events) + 1), 0.001)
    fails_after = chance.randrange(4) if chance.random() < 0.1 else None
    gone = any(
        not isinstance(event, float) and (isinstance(event, OSError) or event["type"] == "http.disconnect")
        for event in events
    )

    async def on_send(event: Any) -> None:
        if fails_after is not None and len(connection.sent) >= fails_after:
            raise OSError("secret")

    headers = [(name, value) for name, value in request.headers.items()]
    made = scope(
        request.path, None, [], method=request.http_method, query_string=request.query.encode("latin-1", "replace")
    )
    made["headers"] = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    content_type = request.content_type.encode("latin-1", "replace")
    made["headers"].append((b"content-type", content_type))
    if chance.random() < 0.7:
        made["headers"].append((b"content-length", str(len(request.body)).encode()))
    connection = Connection(events, on_send)
    await asyncio.wait_for(ASGI(made, connection.receive, connection.send), 5)
    assert len(asyncio.all_tasks()) <= 2, "it leaves tasks behind"
    if not connection.complete:
        assert gone or fails_after is not None, "it gave no answer"
        return None
    return connection.answer()


def test_asgi() -> None:
    loop = asyncio.new_event_loop()

    def case(chance: random.Random) -> None:
        request = Request(chance)
        answer = loop.run_until_complete(respond_asgi(request))
        if answer is not None:
            check(request, answer)

    try:
        fuzz(case, 300)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def test_both_answer_the_same() -> None:
    """The same request, sound in the ways of its transport, through both."""
    loop = asyncio.new_event_loop()

    def case(chance: random.Random) -> None:
        request = Request(chance)
        # A time that passes while one of them works would make a difference that is none.
        if request.headers.get("connect-timeout-ms") == "1":
            del request.headers["connect-timeout-ms"]
        content_type = request.content_type.encode("latin-1", "replace").decode("latin-1")
        query = request.query.encode("latin-1", "replace")
        made = environ(
            request.path,
            request.body,
            content_type,
            request.headers,
            REQUEST_METHOD=request.http_method,
            QUERY_STRING=query.decode("latin-1"),
        )
        start = Starter()
        result: Any = WSGI(made, start)
        one = Answer(int(start.status[:3]), start.headers, b"".join(result))
        other_made = scope(request.path, None, [], method=request.http_method, query_string=query)
        other_made["headers"] = [(b"content-type", content_type.encode("latin-1"))]
        other_made["headers"] += [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
        other_made["headers"].append((b"content-length", str(len(request.body)).encode()))
        connection = Connection([*(part(piece, True) for piece in cut(chance, request.body)), part()])
        loop.run_until_complete(asyncio.wait_for(ASGI(other_made, connection.receive, connection.send), 5))
        other = connection.answer()
        assert (one.status, sorted(one.headers.items()), one.body) == (
            other.status,
            sorted(other.headers.items()),
            other.body,
        )

    try:
        fuzz(case, 300)
    finally:
        loop.close()


def test_the_fuzzer_finds_its_way() -> None:
    """A fuzzer whose requests all fail at the door tests nothing."""
    outcomes: dict[str, int] = {}
    for seed in range(2500):
        request = Request(random.Random(seed))
        answer = respond_wsgi(request)
        if answer is None:
            continue
        if answer.media_type.startswith("application/connect+"):
            end = json.loads(frames(answer.body)[-1][1])
            outcome = f"stream {end.get('error', {}).get('code', 'ok')}"
        elif answer.media_type.startswith(WEB):
            outcome = f"web {trailers_of(frames(answer.body)[-1][1])['grpc-status']}"
        elif answer.media_type == JSON and answer.status != 200:
            outcome = json.loads(answer.body)["code"]
        else:
            outcome = str(answer.status)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    wanted = {
        "200",
        "404",
        "405",
        "415",
        "invalid_argument",
        "unimplemented",
        "resource_exhausted",
        "aborted",
        "unknown",
    }
    wanted |= {
        f"stream {code}" for code in ("ok", "invalid_argument", "internal", "unimplemented", "aborted", "unknown")
    }
    wanted |= {f"web {number}" for number in (0, 2, 3, 10, 12, 13)}
    assert wanted <= set(outcomes), sorted(wanted - set(outcomes))
    assert outcomes["200"] > 50
    assert outcomes["stream ok"] > 50
    assert outcomes["web 0"] > 25
    assert {UNARY.path, SERVER.path, CLIENT.path, BIDI.path} <= set(PATHS)
