"""Both callers over transports in memory: what callers get of every answer, in either colour.

Every test that takes ``caller`` runs twice: once on the synchronous caller, once on the asynchronous one.
"""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from connectrpc.client import AsyncClient, SyncClient
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks, Request, Response
from connectrpc.server import ClientRequest, ClientStream, ServerResponse, ServerStream, wsgi_service
from connectrpc.streams import AsyncStreamOutput, StreamOutput
from connectrpc.unary import UnaryOutput
from harness import (
    BIDI,
    CLIENT,
    JSON,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    WEB_PROTO,
    Answer,
    AsyncMemoryResponse,
    AsyncMemoryTransport,
    MemoryResponse,
    MemoryTransport,
    ask,
    asked,
    canned,
    code_of,
    frame,
    reply,
    through_wsgi,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from google.protobuf.source_context_pb2 import SourceContext
    from google.protobuf.type_pb2 import EnumValue
    from multidict import CIMultiDict

    from connectrpc._core.http import HTTPRequest

OK = frame(b"{}", 2)
TRAILERS = frame(b'{"metadata":{"X-T":["1","2"]}}', 2)
FAILED = frame(b'{"error":{"code":"aborted","message":"m"},"metadata":{"x-t":["1"]}}', 2)


def replies(*texts: str) -> bytes:
    return b"".join(frame(reply(text).SerializeToString()) for text in texts)


class Outcome:
    """What the ``call_`` form of a method told, all of it."""

    def __init__(
        self, texts: list[str], error: ConnectError | None, headers: CIMultiDict[str], trailers: CIMultiDict[str]
    ) -> None:
        self.texts = texts
        self.error = error
        self.headers = headers
        self.trailers = trailers

    @property
    def code(self) -> str:
        return code_of(self.error)


def note_unary(output: UnaryOutput[Any]) -> Outcome:
    assert isinstance(output, UnaryOutput)
    message, error = output.message(), output.error()
    assert (message is None) is (error is not None)
    texts = [] if message is None else [message.file_name]
    return Outcome(texts, error, output.response_headers(), output.response_trailers())


class Sync:
    """Calls as synchronous code does."""

    def __init__(self, serve: Callable[..., Answer], size: int = 0, **options: Any) -> None:
        self.transport = MemoryTransport(serve, size)
        self.client = SyncClient("http://h/base", self.transport, **options)
        self._caller = self.client._caller

    def plain(self, method: Any, reqs: Any, *args: Any, **kwargs: Any) -> list[str]:
        """The form that raises."""
        if method.kind.server_streams:
            call = self._caller.bidi_stream if method.kind.client_streams else self._caller.server_stream
            return [message.file_name for message in call(method, reqs, *args, **kwargs)]
        one = self._caller.client_stream if method.kind.client_streams else self._caller.unary
        return [one(method, reqs, *args, **kwargs).file_name]

    def output(self, method: Any, reqs: Any, *args: Any, **kwargs: Any) -> Outcome:
        """The form that tells."""
        if not method.kind.server_streams:
            one = self._caller.client_stream_output if method.kind.client_streams else self._caller.unary_output
            return note_unary(one(method, reqs, *args, **kwargs))
        call = self._caller.bidi_stream_output if method.kind.client_streams else self._caller.server_stream_output
        with call(method, reqs, *args, **kwargs) as stream:
            assert isinstance(stream, StreamOutput)
            texts = [message.file_name for message in stream]
            assert stream.done()
        return Outcome(texts, stream.error(), stream.response_headers(), stream.response_trailers())


class Async:
    """Calls as asynchronous code does; each in an event loop of its own."""

    def __init__(self, serve: Callable[..., Answer], size: int = 0, **options: Any) -> None:
        outer = AsyncMemoryTransport(serve, size)
        self.transport = outer.inner
        self.client = AsyncClient("http://h/base", outer, **options)
        self._caller = self.client._caller

    def plain(self, method: Any, reqs: Any, *args: Any, **kwargs: Any) -> list[str]:
        async def main() -> list[str]:
            if method.kind.server_streams:
                call = self._caller.bidi_stream if method.kind.client_streams else self._caller.server_stream
                return [message.file_name async for message in call(method, reqs, *args, **kwargs)]
            one: Any = self._caller.client_stream if method.kind.client_streams else self._caller.unary
            return [(await one(method, reqs, *args, **kwargs)).file_name]

        return asyncio.run(main())

    def output(self, method: Any, reqs: Any, *args: Any, **kwargs: Any) -> Outcome:
        async def main() -> Outcome:
            if not method.kind.server_streams:
                one: Any = (
                    self._caller.client_stream_output if method.kind.client_streams else self._caller.unary_output
                )
                return note_unary(await one(method, reqs, *args, **kwargs))
            call = self._caller.bidi_stream_output if method.kind.client_streams else self._caller.server_stream_output
            async with call(method, reqs, *args, **kwargs) as stream:
                assert isinstance(stream, AsyncStreamOutput)
                texts = [message.file_name async for message in stream]
                assert stream.done()
            return Outcome(texts, stream.error(), stream.response_headers(), stream.response_trailers())

        return asyncio.run(main())


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> type[Sync | Async]:
    kind: type[Sync | Async] = request.param
    return kind


class Service:
    """Answers with what it was asked."""

    def unary(self, request: ClientRequest[EnumValue]) -> ServerResponse[SourceContext]:
        if request.msg.name == "fail":
            error = ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
            return ServerResponse(error, {"x-h": "1"}, {"x-t": "2"})
        return ServerResponse(reply(request.msg.name), {"x-h": "1"}, {"x-t": "2"})

    pure = unary

    def client(self, request: ClientStream[EnumValue]) -> ServerResponse[SourceContext]:
        names = [message.name for message in request]
        if "fail" in names:
            return ServerResponse(
                ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)]), {"x-h": "1"}, {"x-t": "2"}
            )
        return ServerResponse(reply(",".join(names)), {"x-h": "1"}, {"x-t": "2"})

    def server(self, request: ClientRequest[EnumValue]) -> ServerStream[SourceContext]:
        return ServerStream(self._messages([request.msg.name]), {"x-h": "1"}, {"x-t": "2"})

    def bidi(self, request: ClientStream[EnumValue]) -> ServerStream[SourceContext]:
        return ServerStream(self._messages(message.name for message in request), {"x-h": "1"}, {"x-t": "2"})

    def _messages(self, names: Iterable[str]) -> Iterator[Any]:
        for name in names:
            if name == "fail":
                raise ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
            yield reply(name)
            yield reply(name + "!")


SERVE = through_wsgi(wsgi_service(SERVICE, Service(), prefix="/base"))


def request_for(method: Any, name: str = "a") -> Any:
    return [ask("x"), ask(name)] if method.kind.client_streams else ask(name)


def expected_for(method: Any) -> list[str]:
    texts = ["x", "a"] if method.kind.client_streams else ["a"]
    return [text + mark for text in texts for mark in ("", "!")] if method.kind.server_streams else [",".join(texts)]


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_success(caller: Any, method: Any, size: int) -> None:
    made = caller(SERVE, size)
    assert made.plain(method, request_for(method)) == expected_for(method)
    outcome = made.output(method, request_for(method))
    assert (outcome.texts, outcome.error) == (expected_for(method), None)
    assert outcome.headers["X-H"] == "1"
    assert outcome.trailers["X-T"] == "2"
    assert "x-t" not in outcome.headers
    assert all(response.closed for response in made.transport.responses)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_failure(caller: Any, method: Any, size: int) -> None:
    made = caller(SERVE, size)
    with pytest.raises(ConnectError) as caught:
        made.plain(method, request_for(method, "fail"))
    outcome = made.output(method, request_for(method, "fail"))
    assert outcome.error is not None
    for error in (caught.value, outcome.error):
        assert (code_of(error), error.message) == ("aborted", "m")
        assert error.details[0].message() == Duration(seconds=5)
        assert error.response_headers()["x-h"] == "1"
        assert error.response_trailers()["x-t"] == "2"
    assert outcome.texts == (["x", "x!"] if method is BIDI else [])
    assert outcome.headers["x-h"] == "1"
    assert outcome.trailers["x-t"] == "2"
    assert all(response.closed for response in made.transport.responses)


def test_inputs_of_streams() -> None:
    """A list, a generator, any iterable; in async code an async one as well."""

    async def async_generator() -> AsyncIterator[EnumValue]:
        yield ask("x")
        await asyncio.sleep(0)
        yield ask("a")

    class AsyncIterable:
        def __aiter__(self) -> AsyncIterator[EnumValue]:
            return async_generator()

    makers: list[Callable[[], Any]] = [
        lambda: [ask("x"), ask("a")],
        lambda: (ask(name) for name in ("x", "a")),
        lambda: iter((ask("x"), ask("a"))),
        lambda: {1: ask("x"), 2: ask("a")}.values(),
    ]
    for method in (CLIENT, BIDI):
        for make in makers:
            assert Sync(SERVE).plain(method, make()) == expected_for(method)
        for make in (*makers, async_generator, AsyncIterable):
            assert Async(SERVE).plain(method, make()) == expected_for(method)
        with pytest.raises(TypeError):
            Sync(SERVE).plain(method, AsyncIterable())


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_generator_that_has_ended_is_not_sent_again(caller: Any, method: Any) -> None:
    """It would be a stream without messages, which the server could not tell from one that is meant to be."""

    async def async_generator() -> AsyncIterator[EnumValue]:
        yield ask("a")

    made = caller(SERVE)
    for messages in ((ask(name) for name in "a"), *(() if isinstance(made, Sync) else (async_generator(),))):
        made.plain(method, messages)
        for form in (made.plain, made.output):
            sent = len(made.transport.requests)
            with pytest.raises(ValueError, match="ended already"):
                form(method, messages)
            assert len(made.transport.requests) == sent


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_headers_and_deadlines_are_sent(caller: Any, method: Any) -> None:
    made = caller(SERVE, extra_headers={"x-client": "1"}, timeout_seconds=50)
    made.plain(method, request_for(method), {"x-call": "2"}, 5)
    made.output(method, request_for(method))
    (first, _), (second, _) = made.transport.requests
    assert dict(first.headers)["x-client"] == "1"
    assert dict(first.headers)["x-call"] == "2"
    assert dict(first.headers)["connect-timeout-ms"] == "5000"
    assert dict(second.headers)["connect-timeout-ms"] == "50000"
    assert "x-call" not in dict(second.headers)
    if isinstance(made, Sync):
        assert [deadline.timeout_ms for deadline in made.transport.deadlines] == [5000, 50_000]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
def test_no_time_left_sends_nothing(caller: Any, method: Any, seconds: float) -> None:
    made = caller(SERVE)
    with pytest.raises(ConnectError) as caught:
        made.plain(method, request_for(method), None, seconds)
    assert code_of(caught.value) == "deadline_exceeded"
    outcome = made.output(method, request_for(method), None, seconds)
    assert (outcome.code, outcome.texts, len(outcome.headers), len(outcome.trailers)) == ("deadline_exceeded", [], 0, 0)
    assert made.transport.requests == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_misuse_is_raised_by_both_forms(caller: Any, method: Any) -> None:
    """It is no failed call: nothing was sent."""
    made = caller(SERVE)
    for form in (made.plain, made.output):
        with pytest.raises(ValueError, match="connect-x"):
            form(method, request_for(method), {"connect-x": "1"})
        with pytest.raises(ValueError, match="NaN"):
            form(method, request_for(method), None, math.nan)
        with pytest.raises(TypeError):
            form(method, [reply("of the answer")] if method.kind.client_streams else reply("of the answer"))
    assert made.transport.requests == []


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_what_a_request_iterator_raises_comes_out_as_it_is(caller: Any, method: Any) -> None:
    def broken() -> Iterator[EnumValue]:
        yield ask("a")
        raise ZeroDivisionError

    made = caller(SERVE)
    for form in (made.plain, made.output):
        with pytest.raises(ZeroDivisionError):
            form(method, broken())


@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI], ids=lambda method: method.name)
def test_what_a_transport_raises(caller: Any, method: Any) -> None:
    cause = OSError("refused")

    def refuse(*args: object) -> Answer:
        raise ConnectError(ConnectErrorCode.UNAVAILABLE, "down") from cause

    made = caller(refuse)
    with pytest.raises(ConnectError) as caught:
        made.plain(method, request_for(method))
    assert code_of(caught.value) == "unavailable"
    assert caught.value.__cause__ is cause
    outcome = made.output(method, request_for(method))
    assert outcome.code == "unavailable"
    assert outcome.error is not None
    assert outcome.error.__cause__ is cause
    assert len(outcome.headers) == len(outcome.trailers) == 0


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (OK, "unimplemented"),
        (replies("a", "b") + OK, "unimplemented"),
        (replies("a"), "internal"),
        (replies("a")[:-1], "internal"),
        (replies("a") + OK + replies("b"), "internal"),
        (b"", "internal"),
        (replies("a") + FAILED, "aborted"),
        (FAILED, "aborted"),
    ],
)
def test_exactly_one_response(caller: Any, body: bytes, code: str, size: int) -> None:
    made = caller(canned(200, STREAM_PROTO, body, x_h="1"), size)
    with pytest.raises(ConnectError) as caught:
        made.plain(CLIENT, [ask()])
    assert code_of(caught.value) == code
    outcome = made.output(CLIENT, [ask()])
    assert (outcome.code, outcome.texts) == (code, [])
    assert outcome.headers["x-h"] == "1", "an answer came, and these are its headers"
    assert all(response.closed for response in made.transport.responses)


def test_an_endless_answer_is_not_read_for_ever(caller: Any) -> None:
    made = caller(canned(200, STREAM_PROTO, replies("a") * 100_000), 1000)
    assert made.output(CLIENT, [ask()]).code == "unimplemented"
    assert made.transport.responses[0].read_chunk(), "it was left where the second message was"


@pytest.mark.parametrize("method", [SERVER, CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("status", "content_type", "code"),
    [
        (404, "text/plain", "unimplemented"),
        (503, None, "unavailable"),
        (200, "text/html", "unknown"),
        (200, PROTO, "unknown"),
    ],
)
def test_answers_that_are_no_stream(caller: Any, method: Any, status: int, content_type: str | None, code: str) -> None:
    made = caller(canned(status, content_type, b"<html>", x_h="1"))
    with pytest.raises(ConnectError) as caught:
        made.plain(method, request_for(method))
    assert code_of(caught.value) == code
    outcome = made.output(method, request_for(method))
    assert (outcome.code, outcome.texts) == (code, [])
    assert outcome.headers["x-h"] == "1"
    assert all(response.closed for response in made.transport.responses)


def test_limits(caller: Any) -> None:
    big = reply("x" * 2000)
    made = caller(canned(200, PROTO, big.SerializeToString()), read_max_bytes=1000)
    assert made.output(UNARY, ask()).code == "resource_exhausted"
    for method in (SERVER, CLIENT, BIDI):
        made = caller(canned(200, STREAM_PROTO, frame(big.SerializeToString()) + OK), 100, read_max_bytes=1000)
        assert made.output(method, request_for(method)).code == "resource_exhausted"
    for spaces, code in ((2000, "aborted"), (70_000, "unknown")):  # an error has a limit of its own
        made = caller(canned(500, JSON, b'{"code":"aborted"}' + b" " * spaces), read_max_bytes=1000)
        assert made.output(UNARY, ask()).code == code
    made = caller(canned(200, PROTO, reply("x" * 5_000_000).SerializeToString()))
    assert made.output(UNARY, ask()).code == "resource_exhausted", "there is a limit by default"
    made = caller(canned(200, PROTO, reply("x" * 5_000_000).SerializeToString()), read_max_bytes=None)
    assert len(made.plain(UNARY, ask())[0]) == 5_000_000


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_limits_for_sending(caller: Any, method: Any) -> None:
    """What is too large is not sent; what was sent before it was."""
    big = ask("x" * 2000)
    request = [ask("x"), big] if method.kind.client_streams else big
    for options in ({}, {"use_get": True}, {"send_compression": "gzip"}):
        made = caller(SERVE, send_max_bytes=1000, **options)
        with pytest.raises(ConnectError) as caught:
            made.plain(method, request)
        assert code_of(caught.value) == "resource_exhausted"
        assert made.output(method, request).code == "resource_exhausted"
        assert made.transport.requests == []
        assert made.plain(method, request_for(method)) == expected_for(method)


def test_get(caller: Any) -> None:
    made = caller(SERVE, use_get=True)
    assert made.plain(PURE, ask("a")) == ["a"]
    ((request, body),) = made.transport.requests
    assert request.method == "GET"
    assert body == b""
    assert made.transport.bodiless, "not even a content-length of zero"
    made.plain(UNARY, ask("a"))
    assert not made.transport.bodiless


def test_json(caller: Any) -> None:
    made = caller(SERVE, codec="json")
    for method in METHODS:
        assert made.plain(method, request_for(method)) == expected_for(method)


# Streams while they run


def test_a_stream_tells_as_it_goes() -> None:
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + TRAILERS, x_h="1"))
    stream = made._caller.server_stream_output(SERVER, ask())
    assert len(made.transport.requests) == 1, "it has begun"
    assert stream.response_headers()["x-h"] == "1"
    assert iter(stream) is stream
    assert next(stream).file_name == "a"
    assert (stream.done(), stream.error()) == (False, None)
    with pytest.raises(RuntimeError, match="trailers"):
        stream.response_trailers()
    assert [message.file_name for message in stream] == ["b"]
    assert (stream.done(), stream.error()) == (True, None)
    assert stream.response_trailers().getall("x-t") == ["1", "2"]
    assert list(stream) == []
    stream.close()
    stream.close()
    assert stream.response_trailers().getall("x-t") == ["1", "2"]


def test_an_async_stream_tells_as_it_goes() -> None:
    made = Async(canned(200, STREAM_PROTO, replies("a", "b") + TRAILERS, x_h="1"))

    async def main() -> None:
        call = made._caller.server_stream_output(SERVER, ask())
        assert made.transport.requests == [], "it has not begun"
        stream = await call
        assert stream.response_headers()["x-h"] == "1"
        assert aiter_of(stream) is stream
        assert (await stream.__anext__()).file_name == "a"
        assert (stream.done(), stream.error()) == (False, None)
        with pytest.raises(RuntimeError, match="trailers"):
            stream.response_trailers()
        assert [message.file_name async for message in stream] == ["b"]
        assert (stream.done(), stream.error()) == (True, None)
        assert stream.response_trailers().getall("x-t") == ["1", "2"]
        assert [message async for message in stream] == []
        await stream.close()
        await stream.close()

    asyncio.run(main())


def aiter_of(stream: Any) -> Any:
    return stream.__aiter__()


@pytest.mark.parametrize("taken", [0, 1])
def test_leaving_a_stream_early(taken: int) -> None:
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + TRAILERS))
    with made._caller.server_stream_output(SERVER, ask()) as stream:
        for _ in range(taken):
            next(stream)
        assert not made.transport.responses[0].closed
    assert made.transport.responses[0].closed
    assert (stream.done(), stream.error()) == (True, None)
    assert list(stream) == []
    assert len(stream.response_trailers()) == 0

    other = Async(canned(200, STREAM_PROTO, replies("a", "b") + TRAILERS))

    async def main() -> None:
        async with other._caller.server_stream_output(SERVER, ask()) as stream:
            for _ in range(taken):
                await stream.__anext__()
            assert not other.transport.responses[0].closed
        assert other.transport.responses[0].closed
        assert (stream.done(), stream.error()) == (True, None)
        assert [message async for message in stream] == []
        assert len(stream.response_trailers()) == 0

    asyncio.run(main())


def test_leaving_a_generator_early() -> None:
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + FAILED))
    messages = made._caller.server_stream(SERVER, ask())
    assert made.transport.requests == [], "a generator begins with its first step"
    assert next(messages).file_name == "a"
    messages.close()
    assert made.transport.responses[0].closed

    other = Async(canned(200, STREAM_PROTO, replies("a", "b") + FAILED))

    async def main() -> None:
        messages = other._caller.server_stream(SERVER, ask())
        assert other.transport.requests == []
        assert (await messages.__anext__()).file_name == "a"
        await messages.aclose()
        assert other.transport.responses[0].closed

    asyncio.run(main())


def test_the_caller_s_own_exception_closes_a_stream() -> None:
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + OK))
    with pytest.raises(ZeroDivisionError), made._caller.server_stream_output(SERVER, ask()) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert made.transport.responses[0].closed


class Rereading:
    """A response whose every read calls back."""

    def __init__(self, response: MemoryResponse, on_read: Callable[[], None]) -> None:
        self._response = response
        self._on_read = on_read
        self.status, self.headers, self.trailers = response.status, response.headers, response.trailers
        self.interrupt, self.check = response.interrupt, response.check
        self.close, self.read = response.close, response.read
        self.uploaded = response.uploaded

    def read_chunk(self) -> bytes:
        self._on_read()
        return self._response.read_chunk()


def test_closing_while_another_thread_reads() -> None:
    """The reader is woken, and cleans up; closing does not wait for it."""
    transport = MemoryTransport(canned(200, STREAM_PROTO, replies("a", "b") + OK), 10)
    send = transport.send
    transport.send = lambda *args, **kwargs: Rereading(send(*args, **kwargs), lambda: stream.close())  # type: ignore[method-assign,assignment]
    stream = SyncClient("http://h", transport)._caller.server_stream_output(SERVER, ask())
    found = list(stream)
    assert transport.responses[0].interrupted
    assert transport.responses[0].closed
    assert len(found) < 2
    assert stream.done()


def test_a_call_that_was_stopped_gives_nothing_more() -> None:
    """Not even what has come already, in one piece with what was given."""
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + OK))
    stream = made._caller.server_stream_output(SERVER, ask())
    assert next(stream).file_name == "a"
    made.transport.responses[0].interrupt()
    assert list(stream) == []
    assert code_of(stream.error()) == "canceled"


def test_two_threads_cannot_read_one_stream() -> None:
    seen: list[str] = []

    def read_too() -> None:
        try:
            next(stream)
        except RuntimeError as error:
            seen.append(str(error))

    transport = MemoryTransport(canned(200, STREAM_PROTO, replies("a") + OK))
    send = transport.send
    transport.send = lambda *args, **kwargs: Rereading(send(*args, **kwargs), read_too)  # type: ignore[method-assign,assignment]
    stream = SyncClient("http://h", transport)._caller.server_stream_output(SERVER, ask())
    assert [message.file_name for message in stream] == ["a"]
    assert "another thread" in seen[0]


@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=len)
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError()])
def test_what_breaks_a_read_closes_the_stream(failure: BaseException, hooks: list[Any]) -> None:
    def on_read() -> None:
        raise failure

    transport = MemoryTransport(canned(200, STREAM_PROTO, replies("a") + OK))
    send = transport.send
    transport.send = lambda *args, **kwargs: Rereading(send(*args, **kwargs), on_read)  # type: ignore[method-assign,assignment]
    stream = SyncClient("http://h", transport, interceptors=hooks)._caller.server_stream_output(SERVER, ask())
    with pytest.raises(type(failure)):
        next(stream)
    assert stream.done()
    assert transport.responses[0].closed
    assert list(stream) == []
    assert code_of(stream.error()) == "canceled", "it has not ended well"


@pytest.mark.parametrize("method", [CLIENT, SERVER, BIDI], ids=lambda method: method.name)
def test_what_breaks_the_taking_of_a_head_closes_the_answer(caller: Any, method: Any) -> None:
    """Its connection may be one of few."""

    class Interrupted(BaseException):
        pass

    class Headers(dict[str, str]):
        def get(self, *args: Any) -> Any:
            raise Interrupted

    def serve(request: HTTPRequest, body: bytes) -> Answer:
        answer = Answer(200, [], b"")
        answer.headers = Headers()  # type: ignore[assignment]
        return answer

    made = caller(serve)
    with pytest.raises(Interrupted):
        made.output(method, request_for(method))
    assert made.transport.responses[0].closed


def test_a_stream_that_is_forgotten() -> None:
    """Whoever breaks out of a loop gets its connection back all the same."""
    made = Sync(canned(200, STREAM_PROTO, replies("a", "b") + OK))
    for message in made._caller.server_stream_output(SERVER, ask()):
        assert message.file_name == "a"
        break
    gc.collect()
    assert made.transport.responses[0].closed


def test_a_blocking_answer_that_is_complete_before_the_request_is() -> None:
    """As for asynchronous clients, below."""

    class Unfinished(MemoryResponse):
        uploaded = False

        def read_chunk(self) -> bytes:
            chunk = super().read_chunk()
            assert chunk, "it would wait"
            return chunk

    transport = MemoryTransport(canned(200, STREAM_PROTO, b""))
    answer = Answer(200, [("content-type", STREAM_PROTO)], replies("a") + OK)
    transport.send = lambda *args, **kwargs: Unfinished(answer, 10)  # type: ignore[method-assign]
    caller = SyncClient("http://h", transport)._caller
    assert [message.file_name for message in caller.bidi_stream(BIDI, [ask()])] == ["a"]
    assert caller.client_stream(CLIENT, [ask()]).file_name == "a"


# Async alone


def test_an_answer_that_is_complete_before_the_request_is() -> None:
    """The server may be waiting for the end of a request that nobody reads any more, so nobody waits for the server."""

    class Unfinished(StuckResponse):
        uploaded = False

    class Transport(Stuck):
        async def send(self, request: object, body: Any) -> Any:
            assert self._answer is not None
            self.responses.append(Unfinished(MemoryResponse(self._answer, 0), self))
            return self.responses[0]

    transport = Transport(Answer(200, [("content-type", STREAM_PROTO)], replies("a") + OK))

    async def main() -> list[str]:
        stream = AsyncClient("http://h", transport)._caller.bidi_stream(BIDI, [ask()])
        return [message.file_name async for message in stream]

    assert asyncio.run(asyncio.wait_for(main(), 2)) == ["a"]
    assert transport.responses[0].closed


def test_a_call_is_started_once() -> None:
    made = Async(canned(200, STREAM_PROTO, replies("a") + OK))

    async def main() -> None:
        call = made._caller.server_stream_output(SERVER, ask())
        async with call as stream:
            assert [message.file_name async for message in stream] == ["a"]
        with pytest.raises(RuntimeError, match="already"):
            await call
        awaited = made._caller.server_stream_output(SERVER, ask())
        await (await awaited).close()
        with pytest.raises(RuntimeError, match="already"):
            async with awaited:
                pass
        assert len(made.transport.requests) == 2

    asyncio.run(main())


def test_a_call_that_is_never_started() -> None:
    made = Async(canned(200, STREAM_PROTO, OK))

    async def main() -> None:
        made._caller.server_stream_output(SERVER, ask())
        made._caller.bidi_stream_output(BIDI, [ask()])

    asyncio.run(main())
    gc.collect()
    assert made.transport.requests == []


class Stuck:
    """A transport whose answers never come, or never go on."""

    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer
        self.cancelled = 0
        self.responses: list[Any] = []

    async def send(self, request: object, body: Any) -> Any:
        if self._answer is None:
            await self.wait()
        assert self._answer is not None
        response = StuckResponse(MemoryResponse(self._answer, 0), self)
        self.responses.append(response)
        return response

    async def wait(self) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def aclose(self) -> None: ...


class StuckResponse(AsyncMemoryResponse):
    def __init__(self, response: MemoryResponse, transport: Stuck) -> None:
        super().__init__(response)
        self._transport = transport

    async def read(self, limit: int | None) -> bytes:
        await self._transport.wait()
        raise AssertionError

    async def read_chunk(self) -> bytes:
        chunk = self._response.read_chunk()
        if not chunk:
            await self._transport.wait()
        return chunk

    @property
    def closed(self) -> bool:
        return self._response.closed


def stuck_answer(method: Any, head: bool) -> Answer | None:
    if not head:
        return None
    if method is UNARY:
        return Answer(200, [("content-type", PROTO)], b"")
    return Answer(200, [("content-type", STREAM_PROTO)], replies("a") if method.kind.server_streams else b"")


async def consume(client: AsyncClient, method: Any, timeout: float | None) -> None:
    caller = client._caller
    if method is UNARY:
        await caller.unary(UNARY, ask(), None, timeout)
    elif method is CLIENT:
        await caller.client_stream(CLIENT, [ask()], None, timeout)
    else:
        async for _ in caller.server_stream(SERVER, ask(), None, timeout):
            pass


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER], ids=lambda method: method.name)
def test_the_deadline_ends_whatever_waits(method: Any, head: bool) -> None:
    transport = Stuck(stuck_answer(method, head))
    client = AsyncClient("http://h", transport)
    with pytest.raises(ConnectError) as caught:
        asyncio.run(consume(client, method, 0.02))
    assert code_of(caught.value) == "deadline_exceeded"
    assert transport.cancelled == 1
    assert all(response.closed for response in transport.responses) or method is UNARY


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER], ids=lambda method: method.name)
def test_cancellation_passes_through_untouched(method: Any, head: bool, timeout: float | None) -> None:
    transport = Stuck(stuck_answer(method, head))
    client = AsyncClient("http://h", transport)

    async def main() -> None:
        task = asyncio.ensure_future(consume(client, method, timeout))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert transport.cancelled == 1
    assert all(response.closed for response in transport.responses) or method is UNARY


@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=len)
def test_a_stream_whose_reading_was_cancelled_has_not_ended_well(hooks: list[Any]) -> None:
    """Whoever waits a while for each message, and goes on, learns that there will be no more."""
    transport = Stuck(stuck_answer(SERVER, True))

    async def main() -> None:
        caller = AsyncClient("http://h", transport, interceptors=hooks)._caller
        stream = await caller.server_stream_output(SERVER, ask())
        await stream.__anext__()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.01)
        assert [message async for message in stream] == []
        assert stream.done()
        assert code_of(stream.error()) == "canceled"

    asyncio.run(main())
    assert all(response.closed for response in transport.responses)


@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER], ids=lambda method: method.name)
def test_the_caller_s_own_timeout_is_its_own(method: Any) -> None:
    """``asyncio.wait_for`` and ``asyncio.timeout`` see their own timeout, not an error of the call's."""
    client = AsyncClient("http://h", Stuck(None))

    async def main() -> None:
        await asyncio.wait_for(consume(client, method, 60), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())


def test_clients_are_context_managers() -> None:
    made = Sync(SERVE)
    with made.client as client:
        assert client is made.client
    assert made.transport.closed == 0, "it is the caller's"
    other = Async(SERVE)

    async def main() -> None:
        async with other.client as client:
            assert client is other.client

    asyncio.run(main())


def test_requests_are_sent_as_they_are() -> None:
    made = Sync(SERVE)
    made.plain(BIDI, [ask("x"), ask("a")])
    ((request, body),) = made.transport.requests
    assert body == asked(ask("x"), ask("a"))
    assert request.url == "http://h/base" + BIDI.path


class Gate:
    """A lock that does something when it has been given back for the first time."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._then: Callable[[], object] | None = then

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *args: object) -> None:
        self._lock.release()
        then, self._then = self._then, None
        if then is not None:
            then()


def test_a_stream_that_is_just_being_closed_is_not_read() -> None:
    """Its response may be closed at any moment, and must not be while somebody reads it."""
    transport = MemoryTransport(canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) + frame(b"{}", 2)))
    stream: Any = SyncClient("http://h", transport)._caller.server_stream_output(SERVER, ask("a"))
    found: list[Any] = []
    stream._lock = Gate(lambda: found.append(next(stream, None)))
    stream.close()
    assert found == [None]
    assert (stream.done(), stream.error()) == (True, None)
    assert transport.responses[0].closed


class Requests(list[Any]):
    """A request, of which one can tell when it is gone."""


class Headers(dict[str, str]):
    """The same for its headers."""


@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=len)
@pytest.mark.parametrize("answered", ["connect", "grpc-web", "refused"])
@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_has_failed_keeps_nothing_when_its_error_is_gone(
    method: Any, answered: str, asynchronous: bool, hooks: list[Any]
) -> None:
    """Without the garbage collector: a request's generator may hold a file, or a lock."""
    protocol: Any = "grpc-web" if answered == "grpc-web" else "connect"
    if answered == "refused":
        answer = canned(503, "text/plain", b"")
    elif answered == "connect":
        answer = canned(200, STREAM_PROTO, frame(b'{"error":{"code":"aborted"}}', 2))
    else:
        answer = canned(200, WEB_PROTO, frame(b"grpc-status: 10\r\n", 128))
    requests: Any = Requests([ask("a")])
    headers: Any = Headers({"x-h": "1"})
    gone = weakref.ref(requests), weakref.ref(headers)
    given = requests if method.kind.client_streams else ask("a")

    def blocking(given: Any, headers: Any) -> None:
        transport = MemoryTransport(answer)
        caller = SyncClient("http://h", transport, protocol=protocol, interceptors=hooks)._caller
        with pytest.raises(ConnectError):
            if method is UNARY:
                caller.unary(method, given, headers)
            elif method is CLIENT:
                caller.client_stream(method, given, headers)
            else:
                list((caller.bidi_stream if method is BIDI else caller.server_stream)(method, given, headers))

    async def awaited(given: Any, headers: Any) -> None:
        transport = AsyncMemoryTransport(answer)
        caller = AsyncClient("http://h", transport, protocol=protocol, interceptors=hooks)._caller
        with pytest.raises(ConnectError):
            if method is UNARY:
                await caller.unary(method, given, headers)
            elif method is CLIENT:
                await caller.client_stream(method, given, headers)
            else:
                async for _ in (caller.bidi_stream if method is BIDI else caller.server_stream)(method, given, headers):
                    pass

    gc.collect()
    gc.disable()
    try:
        if asynchronous:
            asyncio.run(awaited(given, headers))
        else:
            blocking(given, headers)
        del requests, given, headers
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("method", [UNARY, SERVER, CLIENT, BIDI], ids=lambda method: method.name)
def test_an_outcome_that_is_kept_keeps_nothing_of_its_request(caller: Any, method: Any) -> None:
    """Whoever collects the outcomes of many calls has the errors, and not what all of them were about."""
    headers = Headers({"x-h": "1"})
    gone = weakref.ref(headers)
    made = caller(canned(503, "text/plain", b""))
    outcome = made.output(method, request_for(method), headers)
    del headers
    assert code_of(outcome.error) == "unavailable"
    assert gone() is None


@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=len)
@pytest.mark.parametrize("method", [UNARY, CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_its_caller_has_failed_keeps_nothing_when_the_error_is_gone(
    method: Any, asynchronous: bool, hooks: list[Any]
) -> None:
    """What is no ``ConnectError`` is noted on its way through interceptors, and is not to stay there."""
    answer = canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) + OK)
    given: Any = ["no message"] if method.kind.client_streams else "no message"
    headers: Any = Headers({"x-h": "1"})
    gone = weakref.ref(headers)

    def blocking(headers: Any) -> None:
        caller = SyncClient("http://h", MemoryTransport(answer), interceptors=hooks)._caller
        with pytest.raises(TypeError):
            if method is BIDI:
                list(caller.bidi_stream(method, given, headers))
            else:
                (caller.client_stream if method is CLIENT else caller.unary)(method, given, headers)

    async def awaited(headers: Any) -> None:
        caller = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=hooks)._caller
        with pytest.raises(TypeError):
            if method is BIDI:
                async for _ in caller.bidi_stream(method, given, headers):
                    pass
            else:
                await (caller.client_stream if method is CLIENT else caller.unary)(method, given, headers)

    gc.collect()
    gc.disable()
    try:
        if asynchronous:
            asyncio.run(awaited(headers))
        else:
            blocking(headers)
        del headers
        assert gone() is None
    finally:
        gc.enable()


async def _swallowed(messages: Any) -> AsyncIterator[Any]:
    try:
        async for message in messages:
            yield message
    except ConnectError:
        return


def _swallowed_blocking(messages: Any) -> Iterator[Any]:
    try:
        yield from messages
    except ConnectError:
        return


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_that_an_interceptor_goes_on_without_keeps_nothing(asynchronous: bool, opened: bool) -> None:
    """As those do that try again."""
    answer = canned(200, STREAM_PROTO, FAILED) if opened else canned(503, "text/plain", b"")
    kept: list[weakref.ref[Any]] = []

    def note(request: Request) -> None:
        value = Headers()
        request.context.values["value"] = value
        kept.append(weakref.ref(value))

    def forgive(request: Request, proceed: Any) -> Response:
        note(request)
        try:
            response: Response = proceed(request)
        except ConnectError:
            return Response(messages=())
        response.messages = _swallowed_blocking(response.messages)
        return response

    async def forgive_async(request: Request, proceed: Any) -> Response:
        note(request)
        try:
            response: Response = await proceed(request)
        except ConnectError:
            return Response(messages=())
        response.messages = _swallowed(response.messages)
        return response

    def blocking() -> None:
        caller = SyncClient("http://h", MemoryTransport(answer), interceptors=[forgive])._caller
        assert list(caller.server_stream(SERVER, ask("a"))) == []

    async def awaited() -> None:
        caller = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=[forgive_async])._caller
        assert [message async for message in caller.server_stream(SERVER, ask("a"))] == []

    gc.collect()
    gc.disable()
    try:
        if asynchronous:
            asyncio.run(awaited())
        else:
            blocking()
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()
