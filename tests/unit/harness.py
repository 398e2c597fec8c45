"""What the runtime's tests share: a service, heads and environs made by hand, and transports that never leave memory.

The messages are of Protobuf's own, so that nothing has to be generated: a request is an ``EnumValue`` (a string and a
number), a response a ``SourceContext`` (a string). They differ so that one taken for the other does not go unseen.
"""

from __future__ import annotations

import asyncio
import io
import json
import types
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue
from multidict import CIMultiDict

from connectrpc._core.http import RequestHead
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.method import IdempotencyLevel, Method, MethodKind, Service
from connectrpc.server import asgi_service, wsgi_service
from connectrpc.server.endpoints import build_endpoints, find_handlers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from connectrpc._core.http import HTTPRequest
    from connectrpc._core.negotiate import Endpoint
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline
    from connectrpc.server import ASGIApplication, WSGIApplication

NAME = "test.v1.EchoService"

UNARY = Method(NAME, "Unary", MethodKind.UNARY, EnumValue, SourceContext, python_name="unary")
PURE = Method(
    NAME,
    "Pure",
    MethodKind.UNARY,
    EnumValue,
    SourceContext,
    python_name="pure",
    idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
)
SERVER = Method(NAME, "Server", MethodKind.SERVER_STREAM, EnumValue, SourceContext, python_name="server")
CLIENT = Method(NAME, "Client", MethodKind.CLIENT_STREAM, EnumValue, SourceContext, python_name="client")
BIDI = Method(NAME, "Bidi", MethodKind.BIDI_STREAM, EnumValue, SourceContext, python_name="bidi")
METHODS = (UNARY, PURE, SERVER, CLIENT, BIDI)
STREAMS = (SERVER, CLIENT, BIDI)
SERVICE = Service(NAME, METHODS)

PROTO = "application/proto"
JSON = "application/json"
STREAM_PROTO = "application/connect+proto"
STREAM_JSON = "application/connect+json"
WEB_PROTO = "application/grpc-web+proto"
WEB_JSON = "application/grpc-web+json"
WEB = "application/grpc-web"


def accepted(method: Method[Any, Any], codecs: Iterable[str] = ("proto", "json")) -> set[str]:
    """The media types of the requests that a server takes for a method, in all protocols."""
    connect = "application/" if method.kind is MethodKind.UNARY else "application/connect+"
    prefixes = (connect, "application/grpc+", "application/grpc-web+")
    bare = {"application/grpc", "application/grpc-web"} if "proto" in codecs else set()
    return bare | {prefix + codec for prefix in prefixes for codec in codecs}


def ask(name: str = "", number: int = 0) -> EnumValue:
    """A request."""
    return EnumValue(name=name, number=number)


def reply(text: str = "") -> SourceContext:
    """A response."""
    return SourceContext(file_name=text)


def frame(payload: bytes, flags: int = 0) -> bytes:
    """An envelope, made by other means than those under test."""
    return bytes([flags]) + len(payload).to_bytes(4, "big") + payload


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """The flags and payloads of a body that must consist of whole envelopes."""
    found, position = [], 0
    while position < len(body):
        length = int.from_bytes(body[position + 1 : position + 5], "big")
        payload = body[position + 5 : position + 5 + length]
        assert len(payload) == length, "an envelope is cut off"
        found.append((body[position], payload))
        position += 5 + length
    return found


def trailers_of(block: bytes) -> CIMultiDict[str]:
    """The trailers in the last envelope of gRPC-Web: lines as HTTP/1.1 has them, with names in lower case."""
    assert not block or block.endswith(b"\r\n")
    trailers: CIMultiDict[str] = CIMultiDict()
    for line in block.decode("ascii").split("\r\n")[:-1]:
        name, separator, value = line.partition(": ")
        assert separator
        assert name
        assert name == name.lower()
        assert value.isprintable()
        trailers.add(name, value)
    return trailers


def asked(*messages: EnumValue) -> bytes:
    """The body of a streaming request in Protobuf's binary encoding."""
    return b"".join(frame(message.SerializeToString()) for message in messages)


def pieces(data: bytes, size: int) -> list[bytes]:
    """``data`` in parts of ``size`` bytes; 0 is all of it in one part."""
    if not size or not data:
        return [data]
    return [data[start : start + size] for start in range(0, len(data), size)]


class Answer:
    """An HTTP answer, whatever brought it."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers: CIMultiDict[str] = CIMultiDict(headers)
        self.body = body
        self.trailers: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Answer {self.status} {dict(self.headers)} {self.body!r}>"

    @property
    def media_type(self) -> str:
        return self.headers["content-type"]

    def accept_post(self) -> set[str]:
        """The media types that an answer says requests may have."""
        listed = self.headers["accept-post"].split(", ")
        assert len(set(listed)) == len(listed), self
        return set(listed)

    def message(self) -> SourceContext:
        """The message of a successful unary answer."""
        assert (self.status, self.media_type) == (200, PROTO), self
        return SourceContext.FromString(self.body)

    def error(self) -> dict[str, Any]:
        """The error of a failed unary answer."""
        assert self.status != 200, self
        assert self.media_type == JSON, self
        found: dict[str, Any] = json.loads(self.body)
        return found

    def code(self) -> str:
        code: str = self.error()["code"]
        return code

    def stream(self) -> tuple[list[str], dict[str, Any]]:
        """The texts of a streamed answer, and what its last envelope says."""
        assert (self.status, self.media_type) == (200, STREAM_PROTO), self
        *messages, (flags, last) = frames(self.body)
        assert all(flags == 0 for flags, _ in messages), self
        assert flags == 2, self
        end: dict[str, Any] = json.loads(last)
        return [SourceContext.FromString(payload).file_name for _, payload in messages], end

    def failure(self) -> str:
        """The code that a streamed answer ends with."""
        code: str = self.stream()[1]["error"]["code"]
        return code

    def web(self) -> tuple[list[str], CIMultiDict[str]]:
        """The texts of an answer of gRPC-Web, and its trailers."""
        assert (self.status, self.media_type) == (200, WEB_PROTO), self
        *messages, (flags, last) = frames(self.body)
        assert all(flags == 0 for flags, _ in messages), self
        assert flags == 0x80, self
        return [SourceContext.FromString(payload).file_name for _, payload in messages], trailers_of(last)


class Head(RequestHead):
    """The head of a request, straight from what a client's core wants to send."""

    __slots__ = ("_headers",)

    def __init__(
        self,
        path: str,
        headers: Iterable[tuple[str, str]],
        *,
        http_method: str = "POST",
        query: str = "",
        can_send_trailers: bool = False,
    ) -> None:
        self._headers: CIMultiDict[str] = CIMultiDict(headers)
        get = self._headers.get
        self.http_method = http_method
        self.path = path
        self.query = query
        self.content_type = get("content-type")
        self.content_encoding = get("content-encoding")
        self.accept_encoding = get("accept-encoding")
        self.connect_protocol_version = get("connect-protocol-version")
        self.connect_timeout_ms = get("connect-timeout-ms")
        self.connect_content_encoding = get("connect-content-encoding")
        self.connect_accept_encoding = get("connect-accept-encoding")
        self.grpc_timeout = get("grpc-timeout")
        self.grpc_encoding = get("grpc-encoding")
        self.grpc_accept_encoding = get("grpc-accept-encoding")
        self.can_send_trailers = can_send_trailers

    def read_headers(self) -> CIMultiDict[str]:
        return self._headers

    def peer_address(self) -> str:
        return "192.0.2.1:1234"


def head_of(request: HTTPRequest) -> Head:
    """What a server sees of ``request``."""
    url = urlsplit(request.url)
    return Head(url.path, request.headers, http_method=request.method, query=url.query)


USUAL: dict[str, str] = {}
"""Headers that every request carries which does not say otherwise. Tests of applications run with and without
``connect-protocol-version``, which clients always send: services may take a shorter way then."""


# WSGI


def environ(
    path: str = UNARY.path,
    body: bytes = b"",
    content_type: str = PROTO,
    headers: Mapping[str, str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An environ as PEP 3333 describes it. A change to None removes a key."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "1234",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
    }
    usual = {name: value for name, value in USUAL.items() if name not in map(str.lower, headers or ())}
    for name, value in {**usual, **(headers or {})}.items():
        made["HTTP_" + name.upper().replace("-", "_")] = value
    for key, value in changes.items():
        made[key.replace("wsgi_", "wsgi.") if key.startswith("wsgi_") else key] = value
    return {key: value for key, value in made.items() if value is not None}


class Starter:
    """A server's ``start_response``, as strict as the specification lets it be."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.calls = 0

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> object:
        assert type(status) is str
        assert type(headers) is list
        assert all(type(name) is str and type(value) is str for name, value in headers)
        for _, value in headers:
            assert value.isascii()
            assert value.isprintable()
        self.status, self.headers = status, headers
        self.calls += 1
        return lambda data: None


def call_wsgi(app: WSGIApplication, made: dict[str, Any]) -> Answer:
    """Do what a WSGI server does."""
    start = Starter()
    result = app(made, start)
    try:
        parts = list(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    assert start.calls == 1
    assert all(type(part) is bytes for part in parts)
    answer = Answer(int(start.status[:3]), start.headers, b"".join(parts))
    check_length(answer, to_head=made["REQUEST_METHOD"] == "HEAD")
    return answer


def check_length(answer: Answer, *, to_head: bool) -> None:
    assert len(answer.headers.getall("content-length", [])) <= 1
    if to_head:  # RFC 9110 section 9.3.2: the length is that of what another method would bring
        assert int(answer.headers["content-length"]) > len(answer.body) == 0
    else:
        assert int(answer.headers.get("content-length", len(answer.body))) == len(answer.body)


def wsgi(**handlers: Any) -> WSGIApplication:
    """A service with these handlers."""
    return wsgi_service(SERVICE, types.SimpleNamespace(**{**MISSING, **handlers}))


def asgi(**handlers: Any) -> ASGIApplication:
    """A service with these handlers."""
    return asgi_service(SERVICE, types.SimpleNamespace(**{**MISSING, **handlers}))


def _missing(request: object) -> Any:
    raise AssertionError("a handler was called that the test did not mean to call")


MISSING = {method.python_name: _missing for method in METHODS}


# ASGI

Event = MutableMapping[str, Any]


def scope(
    path: str = UNARY.path,
    content_type: str | None = PROTO,
    headers: Iterable[tuple[str, str]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """A scope as the ASGI specification describes it."""
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    pairs += [pair for name, value in USUAL.items() if (pair := (name.encode(), value.encode()))[0] not in dict(pairs)]
    if content_type is not None:
        pairs.insert(0, (b"content-type", content_type.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": pairs,
        "client": ("192.0.2.1", 1234),
        "server": ("localhost", 80),
        **changes,
    }


def part(body: bytes = b"", more: bool = False) -> Event:
    return {"type": "http.request", "body": body, "more_body": more}


DISCONNECT: Event = {"type": "http.disconnect"}


class Connection:
    """A server's ``receive`` and ``send`` for one request.

    Args:
        events: what ``receive`` gives, one after the other, and then waits for ever. A number waits so many seconds, an
            exception is raised.
        on_send: called with each event that is sent, before it is taken.
    """

    def __init__(
        self,
        events: Sequence[Event | float | BaseException] = (),
        on_send: Callable[[Event], Awaitable[None]] | None = None,
    ) -> None:
        self._events: list[Event | float | BaseException] = list(events)
        self._on_send = on_send
        self._waiting: asyncio.Future[None] | None = None
        self.sent: list[Event] = []
        self.receives = 0
        self.overlapping = False
        """Whether two have received at the same time, of whom only one would have got an event."""

    @property
    def left(self) -> int:
        """How many events were not received."""
        return len(self._events)

    async def receive(self) -> Event:
        self.receives += 1
        # Whoever was cancelled does not wait any more, though it may not have heard of it yet.
        self.overlapping = self.overlapping or (self._waiting is not None and not self._waiting.done())
        while self._events:
            event = self._events.pop(0)
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, MutableMapping):
                return event
            await self._wait(event)
        await self._wait(None)
        raise AssertionError

    async def _wait(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, waiting.set_result, None)
        try:
            await waiting
        finally:
            if timer is not None:
                timer.cancel()

    async def send(self, event: Event) -> None:
        if self._on_send is not None:
            await self._on_send(event)
        self.sent.append(event)

    @property
    def complete(self) -> bool:
        """Whether an answer was sent to its end."""
        return bool(self.sent) and self.sent[-1].get("more_body") is False

    def answer(self) -> Answer:
        start, *parts = self.sent
        assert start["type"] == "http.response.start"
        assert all(event["type"] == "http.response.body" for event in parts)
        assert [event["more_body"] for event in parts] == [True] * (len(parts) - 1) + [False]
        for name, value in start["headers"]:
            assert type(name) is bytes
            assert name == name.lower()
            assert type(value) is bytes
        pairs = [(name.decode(), value.decode()) for name, value in start["headers"]]
        answer = Answer(start["status"], pairs, b"".join(event["body"] for event in parts))
        # What was asked is not known here. Nothing but HEAD is refused without a word.
        check_length(answer, to_head=answer.status in (400, 404, 405) and not answer.body)
        return answer


def endpoints_of(implementation: object, options: Any) -> dict[str, Endpoint]:
    """The endpoints of ``SERVICE`` for an app that does not await."""
    return build_endpoints(find_handlers(SERVICE, implementation, asynchronous=False), options, asynchronous=False)


async def serve(app: ASGIApplication, made: dict[str, Any], connection: Connection, patience: float = 2.0) -> None:
    """Do what an ASGI server does; an app that is not done after ``patience`` seconds hangs.

    Raises:
        BaseException: what left the app.
    """
    task = asyncio.ensure_future(app(made, connection.receive, connection.send))
    done, _ = await asyncio.wait([task], timeout=patience)
    if not done:
        task.cancel()
        await asyncio.wait([task])
        raise AssertionError(f"the app hangs; it has sent {connection.sent}")
    task.result()
    # What the app leaves behind would disturb the server's next request on the connection.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "the app leaves tasks behind"
    assert not connection.overlapping, "two have received at the same time"


def call_asgi(app: ASGIApplication, made: dict[str, Any], body: bytes = b"", size: int = 0) -> Answer:
    """A request whose body comes in parts of ``size`` bytes."""
    return exchange(app, made, body_events(body, size)).answer()


def body_events(body: bytes, size: int = 0) -> list[Event]:
    *first, last = pieces(body, size)
    return [*(part(piece, True) for piece in first), part(last)]


def exchange(
    app: ASGIApplication,
    made: dict[str, Any],
    events: Sequence[Event | float | BaseException],
    on_send: Callable[[Event], Awaitable[None]] | None = None,
) -> Connection:
    """A request with these events, to its end."""
    connection = Connection(events, on_send)
    asyncio.run(serve(app, made, connection))
    return connection


# Transports


class MemoryResponse:
    """An answer that is already here, given in parts of ``size`` bytes."""

    uploaded = True

    def __init__(self, answer: Answer, size: int) -> None:
        self.status = answer.status
        self.headers: Any = answer.headers
        self.trailers: Any = None
        self._body = answer.body
        self._parts = iter(pieces(answer.body, size))
        self.closed = False
        self.interrupted = False

    def read(self, limit: int | None) -> bytes:
        self.closed = True
        return self._body if limit is None else self._body[: limit + 1]

    def read_chunk(self) -> bytes:
        return next(self._parts, b"")

    def interrupt(self) -> None:
        self.interrupted = True

    def check(self) -> None:
        if self.interrupted:
            raise ConnectError(ConnectErrorCode.CANCELED, "the stream was closed")

    def close(self) -> None:
        self.closed = True


class MemoryTransport:
    """Gives each request to a function that answers it.

    Args:
        serve: takes the request and its whole body.
        size: in parts of how many bytes answers are read.
    """

    def __init__(self, serve: Callable[[HTTPRequest, bytes], Answer], size: int = 0) -> None:
        self._serve = serve
        self._size = size
        self.requests: list[tuple[HTTPRequest, bytes]] = []
        self.responses: list[MemoryResponse] = []
        self.deadlines: list[Deadline] = []
        self.bodiless = False
        self.closed = 0

    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> MemoryResponse:
        self.deadlines.append(deadline)
        self.bodiless = body is None
        return self._answer(request, body if isinstance(body, bytes) else b"".join(body or ()))

    def _answer(self, request: HTTPRequest, body: bytes) -> MemoryResponse:
        self.requests.append((request, body))
        response = MemoryResponse(self._serve(request, body), self._size)
        self.responses.append(response)
        return response

    def close(self) -> None:
        self.closed += 1


class AsyncMemoryResponse:
    """``MemoryResponse`` to be awaited."""

    trailers = None
    uploaded = True

    def __init__(self, response: MemoryResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self.trailers = response.trailers

    async def read(self, limit: int | None) -> bytes:
        await asyncio.sleep(0)
        return self._response.read(limit)

    async def read_chunk(self) -> bytes:
        await asyncio.sleep(0)
        return self._response.read_chunk()

    def close(self) -> None:
        self._response.close()


class AsyncMemoryTransport:
    """``MemoryTransport`` to be awaited."""

    def __init__(self, serve: Callable[[HTTPRequest, bytes], Answer], size: int = 0) -> None:
        self.inner = MemoryTransport(serve, size)

    async def send(self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None) -> AsyncMemoryResponse:
        await asyncio.sleep(0)
        self.inner.bodiless = body is None
        whole = body or b"" if isinstance(body, bytes | None) else b"".join([piece async for piece in body])
        return AsyncMemoryResponse(self.inner._answer(request, whole))

    async def aclose(self) -> None:
        self.inner.close()


def through_wsgi(app: WSGIApplication) -> Callable[[HTTPRequest, bytes], Answer]:
    """What a memory transport needs to reach a WSGI app."""

    def serve_(request: HTTPRequest, body: bytes) -> Answer:
        url = urlsplit(request.url)
        headers: CIMultiDict[str] = CIMultiDict(request.headers)
        content_type = headers.pop("content-type", "")
        joined = {name: ",".join(headers.getall(name)) for name in headers}
        made = environ(url.path, body, content_type, joined, REQUEST_METHOD=request.method, QUERY_STRING=url.query)
        return call_wsgi(app, made)

    return serve_


def through_asgi(app: ASGIApplication) -> Callable[[HTTPRequest, bytes], Answer]:
    """What a memory transport needs to reach an ASGI app from a thread without an event loop."""

    def serve_(request: HTTPRequest, body: bytes) -> Answer:
        url = urlsplit(request.url)
        made = scope(url.path, None, request.headers, method=request.method, query_string=url.query.encode())
        return call_asgi(app, made, body)

    return serve_


def canned(status: int, content_type: str | None, body: bytes, **headers: str) -> Callable[..., Answer]:
    """What a memory transport needs to give the same answer to everything."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if content_type is not None:
        pairs.insert(0, ("content-type", content_type))
    return lambda request, body_: Answer(status, pairs, body)


class Forgotten:
    """Whoever has left an answer in a reference cycle: the garbage collector closes it, wherever it happens to run."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.itself = self

    def __del__(self) -> None:
        self.response.close()


def code_of(error: BaseException | None) -> str:
    """The name of an error's code."""
    assert isinstance(error, ConnectError), repr(error)
    return error.code.code_name
