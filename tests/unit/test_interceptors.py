"""Interceptors and hooks: one model on both sides and in both colours.

Every test that takes ``place`` runs four times: around a client's calls and around a service's handlers, synchronous
and asynchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict

from connectrpc._core.chain import build_chain
from connectrpc.client import AsyncClient, SyncClient
from connectrpc.codec import ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks, Request, Response
from connectrpc.server import InThreads, ServerResponse, ServerStream, asgi_service, wsgi_service
from connectrpc.testing import ASGITransport, WSGITransport
from harness import (
    BIDI,
    CLIENT,
    METHODS,
    PROTO,
    PURE,
    SERVER,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    Answer,
    AsyncMemoryResponse,
    AsyncMemoryTransport,
    Connection,
    MemoryTransport,
    Starter,
    ask,
    asked,
    body_events,
    call_asgi,
    call_wsgi,
    canned,
    code_of,
    environ,
    exchange,
    frame,
    part,
    reply,
    scope,
    serve,
    through_asgi,
    through_wsgi,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ABORTED = ConnectErrorCode.ABORTED


class Service:
    """Answers with what it was asked; its streams tell whether they were closed."""

    def __init__(self) -> None:
        self.calls = 0
        self.closed = 0

    def unary(self, request: Any) -> Any:
        self.calls += 1
        return self._answer([request.msg.name], request)

    pure = unary

    def client(self, request: Any) -> Any:
        self.calls += 1
        return self._answer([message.name for message in request], request)

    def server(self, request: Any) -> Any:
        self.calls += 1
        return self._stream([request.msg.name, "b"], request)

    def bidi(self, request: Any) -> Any:
        self.calls += 1
        return self._stream((message.name for message in request), request)

    def _answer(self, names: list[str], request: Any) -> Any:
        self._check(names)
        headers = {"x-h": "1", "x-seen": request.headers.get("x-added", "")}
        return ServerResponse(reply(",".join(names)), headers, {"x-t": "2"})

    def _stream(self, names: Any, request: Any) -> Any:
        headers = {"x-h": "1", "x-seen": request.headers.get("x-added", "")}
        return ServerStream(self._messages(names), headers, {"x-t": "2"})

    def _messages(self, names: Any) -> Iterator[Any]:
        try:
            for name in names:
                self._check([name])
                yield reply(name)
        finally:
            self.closed += 1

    def _check(self, names: list[str]) -> None:
        if "fail" in names:
            raise ConnectError(ABORTED, "m", [Duration(seconds=5)])
        if "raise" in names:
            raise RuntimeError("secret")


class AsyncService(Service):
    async def client(self, request: Any) -> Any:
        self.calls += 1
        return self._answer([message.name async for message in request], request)

    async def bidi(self, request: Any) -> Any:
        self.calls += 1
        return ServerStream(self._each(request), {"x-h": "1"}, {"x-t": "2"})

    async def _each(self, request: Any) -> AsyncIterator[Any]:
        try:
            async for message in request:
                self._check([message.name])
                yield reply(message.name)
        finally:
            self.closed += 1


class Outcome:
    def __init__(self, texts: list[str], error: ConnectError | None, headers: Any, trailers: Any) -> None:
        self.texts = texts
        self.error = error
        self.headers = headers
        self.trailers = trailers


def requests_of(method: Any, name: str) -> Any:
    return [ask("x"), ask(name)] if method.kind.client_streams else ask(name)


def call_sync(client: SyncClient, method: Any, name: str = "a", headers: Any = None) -> Outcome:
    caller, requests = client._caller, requests_of(method, name)
    if not method.kind.server_streams:
        one = caller.client_stream_output if method.kind.client_streams else caller.unary_output
        output = one(method, requests, headers)
        message = output.message()
        texts = [] if message is None else [message.file_name]
        return Outcome(texts, output.error(), output.response_headers(), output.response_trailers())
    many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
    with many(method, requests, headers) as stream:
        texts = [message.file_name for message in stream]
    return Outcome(texts, stream.error(), stream.response_headers(), stream.response_trailers())


async def call_async(client: AsyncClient, method: Any, name: str = "a", headers: Any = None) -> Outcome:
    caller, requests = client._caller, requests_of(method, name)
    if not method.kind.server_streams:
        one: Any = caller.client_stream_output if method.kind.client_streams else caller.unary_output
        output = await one(method, requests, headers)
        message = output.message()
        texts = [] if message is None else [message.file_name]
        return Outcome(texts, output.error(), output.response_headers(), output.response_trailers())
    many = caller.bidi_stream_output if method.kind.client_streams else caller.server_stream_output
    async with many(method, requests, headers) as stream:
        texts = [message.file_name async for message in stream]
    return Outcome(texts, stream.error(), stream.response_headers(), stream.response_trailers())


class Place:
    """Where interceptors can be: on one side, in one colour."""

    def __init__(self, side: str, asynchronous: bool) -> None:
        self.is_client = side == "client"
        self.asynchronous = asynchronous
        self.service = Service()

    def call(self, method: Any, interceptors: list[Any], name: str = "a", headers: Any = None) -> Outcome:
        """A call whose other side and colour have no interceptors."""
        if self.is_client:
            answer = through_wsgi(wsgi_service(SERVICE, self.service))
            if not self.asynchronous:
                return call_sync(
                    SyncClient("http://h", MemoryTransport(answer), interceptors=interceptors), method, name, headers
                )
            client = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=interceptors)
            return asyncio.run(call_async(client, method, name, headers))
        if self.asynchronous:
            self.service = AsyncService()
            answer = through_asgi(asgi_service(SERVICE, self.service, interceptors=interceptors))
        else:
            answer = through_wsgi(wsgi_service(SERVICE, self.service, interceptors=interceptors))
        return call_sync(SyncClient("http://h", MemoryTransport(answer)), method, name, headers)

    def interceptor(self, before: Any = None, after: Any = None) -> Any:
        """An interceptor of this colour that calls plain functions before and after."""
        if not self.asynchronous:

            def intercept(request: Request, proceed: Any) -> Response:
                if before is not None:
                    before(request)
                response: Response = proceed(request)
                return (after(response) if after is not None else None) or response

            return intercept

        async def intercept_async(request: Request, proceed: Any) -> Response:
            await asyncio.sleep(0)
            if before is not None:
                before(request)
            response: Response = await proceed(request)
            await asyncio.sleep(0)
            return (after(response) if after is not None else None) or response

        return intercept_async


@pytest.fixture(
    params=[(side, asynchronous) for side in ("client", "server") for asynchronous in (False, True)],
    ids=["client", "async-client", "server", "async-server"],
)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(*request.param)


def expected_of(method: Any) -> list[str]:
    if method is BIDI:
        return ["x", "a"]
    return ["a", "b"] if method is SERVER else ["x,a"] if method is CLIENT else ["a"]


EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@EVERY
def test_they_stand_around_the_call(place: Place, method: Any) -> None:
    log: list[str] = []

    def named(name: str) -> Any:
        return place.interceptor(
            lambda request: log.append(f"before {name}"), lambda response: log.append(f"after {name}")
        )

    outcome = place.call(method, [named("outer"), named("inner")])
    assert outcome.texts == expected_of(method)
    assert outcome.error is None
    assert log == ["before outer", "before inner", "after inner", "after outer"]
    assert (outcome.headers["x-h"], outcome.trailers["x-t"]) == ("1", "2")


@EVERY
def test_what_they_see(place: Place, method: Any) -> None:
    seen: list[Any] = []
    outcome = place.call(
        method,
        [place.interceptor(seen.append, seen.append), place.interceptor(seen.append, seen.append)],
        "a",
        {"X-Given": "g"},
    )
    assert outcome.error is None
    request, inner, _, response = seen
    assert isinstance(request, Request)
    assert isinstance(response, Response)
    context = request.context
    assert inner.context is context, "the same for all interceptors of the call"
    assert context.method is method
    assert context.is_client is place.is_client
    assert context.request_headers["x-given"] == "g"
    assert context.timeout.timeout_ms is None
    assert context.peer.address == ("http://h" if place.is_client else "192.0.2.1:1234")
    assert method.path in repr(context)
    assert (request.message is None) is method.kind.client_streams
    assert (request.messages is None) is not method.kind.client_streams
    assert (response.message is None) is method.kind.server_streams
    assert (response.messages is None) is not method.kind.server_streams
    assert response.headers["x-h"] == "1"


def test_messages_can_be_replaced(place: Place) -> None:
    def before(request: Request) -> None:
        request.message = ask(request.message.name + "!")

    def after(response: Response) -> None:
        response.message = reply(response.message.file_name + "?")

    assert place.call(UNARY, [place.interceptor(before, after)]).texts == ["a!?"]
    response = Response(reply("other"))
    assert place.call(UNARY, [place.interceptor(after=lambda _: response)]).texts == ["other"]


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_streams_of_requests_can_be_replaced(place: Place, method: Any) -> None:
    def before(request: Request) -> None:
        messages: Any = request.messages
        if place.asynchronous:
            request.messages = shout_async(messages)
        else:
            request.messages = (ask(message.name + "!") for message in messages)

    async def shout_async(messages: Any) -> AsyncIterator[Any]:
        if hasattr(messages, "__aiter__"):
            async for message in messages:
                yield ask(message.name + "!")
        else:
            for message in messages:
                yield ask(message.name + "!")

    texts = place.call(method, [place.interceptor(before)]).texts
    assert ",".join(texts) == "x!,a!"


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_streams_of_answers_can_be_replaced(place: Place, method: Any) -> None:
    def after(response: Response) -> None:
        messages: Any = response.messages
        if place.asynchronous:
            response.messages = shout_async(messages)
        else:
            response.messages = (reply(message.file_name + "?") for message in messages)

    async def shout_async(messages: Any) -> AsyncIterator[Any]:
        async for message in messages:
            yield reply(message.file_name + "?")

    outcome = place.call(method, [place.interceptor(after=after)])
    assert outcome.texts == [text + "?" for text in expected_of(method)]
    assert outcome.error is None
    assert outcome.trailers["x-t"] == "2"


@EVERY
def test_metadata_can_be_changed(place: Place, method: Any) -> None:
    def before(request: Request) -> None:
        request.context.request_headers["x-added"] = "added"

    def after(response: Response) -> None:
        response.headers["x-h"] = "changed"
        response.headers.add("x-new", "n")

    outcome = place.call(method, [place.interceptor(before, after)])
    assert outcome.error is None
    if not (place.asynchronous and method is BIDI and not place.is_client):
        assert outcome.headers["x-seen"] == "added"
    if not place.is_client or not method.kind.server_streams:
        assert (outcome.headers["x-h"], outcome.headers["x-new"]) == ("changed", "n")


@EVERY
def test_refusing(place: Place, method: Any) -> None:
    """Nobody behind it is called."""

    def before(request: Request) -> None:
        raise ConnectError(ConnectErrorCode.UNAUTHENTICATED, "who are you?")

    outcome = place.call(method, [place.interceptor(before), place.interceptor(lambda request: pytest.fail("called"))])
    assert (code_of(outcome.error), str(outcome.error)) == ("unauthenticated", "unauthenticated: who are you?")
    assert place.service.calls == 0


@EVERY
def test_what_else_they_raise(place: Place, method: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError("secret")

    def before(request: Request) -> None:
        raise error

    outcome = place.call(method, [place.interceptor(before)])
    if place.is_client:
        assert outcome.error is not None
        assert outcome.error.__cause__ is error
    else:
        assert code_of(outcome.error) == "unknown"
        assert "secret" not in str(outcome.error)
        assert "secret" in caplog.text
    assert place.service.calls == 0


@EVERY
def test_answering_without_the_call(place: Place, method: Any) -> None:
    """As a cache does."""

    def sync(request: Request, proceed: Any) -> Response:
        messages = [reply("cached"), reply("too")]
        if request.context.method.kind.server_streams:
            return Response(messages=stream(messages) if place.asynchronous else iter(messages))
        return Response(reply("cached"))

    async def stream(messages: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message

    async def asynchronous(request: Request, proceed: Any) -> Response:
        return sync(request, proceed)

    outcome = place.call(method, [asynchronous if place.asynchronous else sync])
    assert outcome.texts == (["cached", "too"] if method.kind.server_streams else ["cached"])
    assert outcome.error is None
    assert place.service.calls == 0


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_stream_may_be_a_list(place: Place, method: Any) -> None:
    """In async code too, on both sides."""
    noting = Noting()

    def around(request: Request, proceed: Any) -> Any:
        return Response(messages=[reply("listed"), reply("too")], trailers=CIMultiDict({"x-t": "3"}))

    async def around_async(request: Request, proceed: Any) -> Any:
        return around(request, proceed)

    for interceptors in ([noting], []):
        outcome = place.call(method, [*interceptors, around_async if place.asynchronous else around])
        assert outcome.texts == ["listed", "too"]
        assert outcome.error is None
        assert outcome.trailers["x-t"] == "3"
    assert [entry for entry in noting.log if entry[0] == "<"] == ["< listed", "< too"]


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_stream_of_requests_may_be_a_list(place: Place, method: Any) -> None:
    def before(request: Request) -> None:
        request.messages = [ask("l1"), ask("l2")]

    noting = Noting()
    assert ",".join(place.call(method, [place.interceptor(before), noting]).texts) == "l1,l2"
    assert [entry for entry in noting.log if entry[0] == ">"] == ["> l1", "> l2"]


def test_a_plain_generator_that_async_code_leaves_is_closed() -> None:
    closed: list[str] = []

    def plain(name: str) -> Iterator[Any]:
        try:
            yield reply("a")
            yield reply("b")
        finally:
            closed.append(name)

    async def around(request: Request, proceed: Any) -> Response:
        return Response(messages=plain(request.context.peer.protocol))

    async def main() -> None:
        several: list[list[Any]] = [[around], [Noting(), around]]
        for interceptors in several:
            transport = AsyncMemoryTransport(canned(200, STREAM_PROTO, b""))
            caller = AsyncClient("http://h", transport, interceptors=interceptors)._caller
            async with caller.server_stream_output(SERVER, ask()) as stream:
                await stream.__anext__()

    asyncio.run(main())
    assert closed == ["connect"] * 2


@pytest.mark.parametrize("what", ["return", "await", "Response", "another"])
@EVERY
def test_what_they_forget_is_named(place: Place, method: Any, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """And what was begun is ended: neither is a stream left lying, nor is it empty without an error."""

    def forgetful(request: Request, proceed: Any) -> Any:
        if what == "await":
            return waiting()
        response = proceed(request)
        return {"return": None, "Response": [response], "another": "text"}[what]

    async def forgetful_async(request: Request, proceed: Any) -> Any:
        if what == "await":
            return proceed(request)
        response = await proceed(request)
        return {"return": None, "Response": [response], "another": "text"}[what]

    async def waiting() -> None: ...

    told = {
        "return": "gave NoneType: expected a Response (is a return missing?)",
        "await": "gave coroutine: expected a Response (is an await missing?)",
        "Response": "gave list: expected a Response",
        "another": "gave str: expected a Response",
    }
    interceptor: Any = forgetful_async if place.asynchronous else forgetful
    outer = Noting()
    outcome = place.call(method, [outer, interceptor])
    text = f"interceptor {interceptor.__qualname__} {told[what]}"
    assert outcome.texts == []
    if place.is_client:
        assert code_of(outcome.error) == "internal"
        assert text in str(outcome.error)
        assert isinstance(outcome.error.__cause__ if outcome.error else None, TypeError)
    else:
        assert code_of(outcome.error) == "unknown"
        assert text in caplog.text
    ((error, _),) = outer.ends
    assert isinstance(error, TypeError)
    assert text in str(error)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_sync_interceptor_among_async_ones_is_named(side: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where it gives nothing that can be awaited. One that gives what ``proceed`` gave is as good as an async one."""

    class Cache:
        def __init__(self, given: Any) -> None:
            self._given = given

        def __call__(self, request: Request, proceed: Any) -> Any:
            return self._given

    def passing_on(request: Request, proceed: Any) -> Any:
        return proceed(request)

    for given, told in (
        (Response(reply("cached")), "Cache gave Response: expected an awaitable of it (is the interceptor not async?)"),
        (None, "Cache gave NoneType: expected a Response (is a return missing?)"),
    ):
        caplog.clear()
        place = Place(side, asynchronous=True)
        outcome = place.call(UNARY, [Cache(given)])
        assert code_of(outcome.error) == ("internal" if place.is_client else "unknown")
        assert told in (str(outcome.error) if place.is_client else caplog.text)
        assert place.call(UNARY, [passing_on]).texts == ["a"]


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_stream_without_messages_is_an_error(place: Place, method: Any) -> None:
    """As of a cache that gives one message for everything."""

    def after(response: Response) -> Response:
        return Response(reply("a"))

    outcome = place.call(method, [place.interceptor(after=after)])
    assert outcome.texts == []
    assert code_of(outcome.error) == ("internal" if place.is_client else "unknown")


def test_calling_again(place: Place) -> None:
    """As a retry does."""
    attempts = itertools.count(1)

    def sync(request: Request, proceed: Any) -> Response:
        for _ in range(2):
            try:
                next(attempts)
                proceed(request)
            except ConnectError:
                request.message = ask("fine")
        response: Response = proceed(request)
        return response

    async def asynchronous(request: Request, proceed: Any) -> Response:
        for _ in range(2):
            try:
                next(attempts)
                await proceed(request)
            except ConnectError:
                request.message = ask("fine")
        response: Response = await proceed(request)
        return response

    outcome = place.call(UNARY, [asynchronous if place.asynchronous else sync], "fail")
    assert outcome.texts == ["fine"]
    assert next(attempts) == 3
    assert place.service.calls == 3


@pytest.mark.parametrize("method", [UNARY, CLIENT], ids=lambda method: method.name)
@pytest.mark.parametrize("hooked", [True, False])
def test_calling_again_around_what_replaces_messages(place: Place, method: Any, hooked: bool) -> None:
    """Each time it is made of what the caller has given, and nothing of it is lost."""

    def other(message: Any) -> Any:
        return ask(message.name + "!")

    def replace(request: Request) -> None:
        if request.messages is None:
            request.message = other(request.message)
        elif place.asynchronous:
            request.messages = changed_async(request.messages)
        else:
            messages: Any = request.messages
            request.messages = map(other, messages)

    async def changed_async(messages: Any) -> AsyncIterator[Any]:
        if hasattr(messages, "__aiter__"):
            async for message in messages:
                yield other(message)
        else:
            for message in messages:
                yield other(message)

    def sync(request: Request, proceed: Any) -> Response:
        if place.is_client:
            proceed(request)
        response: Response = proceed(request)
        return response

    async def asynchronous(request: Request, proceed: Any) -> Response:
        if place.is_client:
            await proceed(request)
        response: Response = await proceed(request)
        return response

    inner = [Hooks()] if hooked else [place.interceptor(before=replace)]
    outcome = place.call(method, [asynchronous if place.asynchronous else sync, *inner])
    mark = "" if hooked else "!"
    assert outcome.texts == [f"x{mark},a{mark}" if method is CLIENT else f"a{mark}"]


@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
@pytest.mark.parametrize("hooked", [True, False])
def test_calling_again_with_what_is_used_up(method: Any, hooked: bool) -> None:
    """It would be another stream, without messages, that the server takes for what is meant."""
    service = Service()
    answer = through_wsgi(wsgi_service(SERVICE, service))

    def sync(request: Request, proceed: Any) -> Any:
        drained(proceed(request))
        return proceed(request)

    async def asynchronous(request: Request, proceed: Any) -> Any:
        response = await proceed(request)
        async for _ in response.messages or no_messages():
            pass
        return await proceed(request)

    def drained(response: Response) -> None:
        list(response.messages or ())  # type: ignore[arg-type]

    async def no_messages() -> AsyncIterator[Any]:
        return
        yield

    def given() -> Iterator[Any]:
        yield ask("a")

    async def given_async() -> AsyncIterator[Any]:
        yield ask("a")

    hooks = [Hooks()] if hooked else []
    client = SyncClient("http://h", MemoryTransport(answer), interceptors=[sync, *hooks])
    one = client._caller.client_stream if method is CLIENT else client._caller.bidi_stream_output
    with pytest.raises(ValueError, match="ended already"):
        list(one(method, given()))

    async def call(messages: Any) -> None:
        client = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=[asynchronous, *hooks])
        one: Any = client._caller.client_stream if method is CLIENT else client._caller.bidi_stream_output
        await one(method, messages)

    for messages in (given(), given_async()):
        with pytest.raises(ValueError, match="ended already"):
            asyncio.run(call(messages))
    assert service.calls == 3


@EVERY
def test_failures_pass_through(place: Place, method: Any) -> None:
    """They see an error that is raised, and the caller sees all of it."""
    seen: list[BaseException] = []

    def sync(request: Request, proceed: Any) -> Response:
        try:
            response: Response = proceed(request)
        except BaseException as error:
            seen.append(error)
            raise
        return response

    async def asynchronous(request: Request, proceed: Any) -> Response:
        try:
            response: Response = await proceed(request)
        except BaseException as error:
            seen.append(error)
            raise
        return response

    outcome = place.call(method, [asynchronous if place.asynchronous else sync], "fail")
    assert outcome.error is not None
    assert (code_of(outcome.error), outcome.error.message) == ("aborted", "m")
    assert outcome.error.details[0].message() == Duration(seconds=5)
    if not method.kind.server_streams:
        assert [code_of(error) for error in seen] == ["aborted"]
    else:
        assert seen == [], "it is raised by iterating"
        assert outcome.texts == (["x"] if method is BIDI else [])
        assert outcome.trailers["x-t"] == "2"


class Noting(Hooks):
    """Hooks that note everything."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.ends: list[tuple[BaseException | None, Any]] = []
        self.contexts: list[Any] = []

    def on_start(self, context: Any) -> None:
        self.contexts.append(context)
        context.values[self] = self
        context.request_headers["x-added"] = "added"
        self.log.append("start")

    def on_request_message(self, context: Any, message: Any) -> None:
        assert context.values[self] is self
        self.log.append(f"> {message.name}")

    def on_response_headers(self, context: Any, headers: Any) -> None:
        self.log.append(f"headers {headers.get('x-h')}")
        headers["x-hooked"] = "h"

    def on_response_message(self, context: Any, message: Any) -> None:
        self.log.append(f"< {message.file_name}")

    def on_end(self, context: Any, error: BaseException | None, trailers: Any) -> None:
        self.ends.append((error, dict(trailers)))
        self.log.append("end")
        trailers["x-late"] = "l"


@pytest.mark.parametrize("replace", [False, True], ids=["as it is", "replaced"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["server", "async-server"])
@EVERY
def test_what_interceptors_keep_is_there_for_the_handler(method: Any, asynchronous: bool, replace: bool) -> None:
    seen: list[Any] = []

    def one(request: Any) -> Any:
        seen.append(request.values)
        return reply("a")

    def many(request: Any) -> Any:
        seen.append(request.values)
        return [reply("a")]

    def keep(request: Request) -> None:
        request.context.values["user"] = "ada"
        if replace and request.messages is not None:
            request.messages = []

    implementation = SimpleNamespace(unary=one, pure=one, client=one, server=many, bidi=many)
    interceptors = [Place("server", asynchronous).interceptor(keep)]
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, implementation, interceptors=interceptors))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, implementation, interceptors=interceptors))
    assert call_sync(SyncClient("http://h", MemoryTransport(answer)), method).texts == ["a"]
    assert seen == [{"user": "ada"}]


@EVERY
def test_hooks(place: Place, method: Any) -> None:
    noting = Noting()
    outcome = place.call(method, [noting])
    assert outcome.error is None
    assert outcome.texts == expected_of(method)
    requests = ["> x", "> a"] if method.kind.client_streams else ["> a"]
    answers = [f"< {text}" for text in expected_of(method)]
    assert noting.log[0] == "start"
    assert noting.log[-1] == "end"
    assert [entry for entry in noting.log if entry.startswith(">")] == requests
    assert [entry for entry in noting.log if entry.startswith("<")] == answers
    assert [entry for entry in noting.log if entry.startswith("headers")] == ["headers 1"]
    ((error, trailers),) = noting.ends
    assert error is None
    assert trailers["x-t"] == "2"
    if not place.is_client:
        assert (outcome.headers["x-hooked"], outcome.trailers["x-late"]) == ("h", "l")


@EVERY
def test_hooks_are_told_the_trailers_of_an_error(place: Place, method: Any) -> None:
    def fail(self: Any, names: Any, request: Any) -> Any:
        return ServerResponse(ConnectError(ABORTED, "m"), {"x-h": "1"}, {"x-t": "2"})

    noting = Noting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_answer", fail)
        patch.setattr(Service, "_messages", lambda self, names: iter([ConnectError(ABORTED, "m")]))
        patch.setattr(AsyncService, "_each", lambda self, request: iter([ConnectError(ABORTED, "m")]))
        outcome = place.call(method, [noting])
    assert (code_of(outcome.error), outcome.trailers["x-t"]) == ("aborted", "2")
    ((error, trailers),) = noting.ends
    assert code_of(error) == "aborted"
    assert trailers["x-t"] == "2"


@pytest.mark.parametrize("name", ["fail", "raise"])
@EVERY
def test_hooks_are_told_of_failures(place: Place, method: Any, name: str) -> None:
    noting = Noting()
    outcome = place.call(method, [noting], name)
    assert outcome.error is not None
    ((error, _),) = noting.ends
    if name == "fail":
        assert code_of(error) == "aborted"
        assert code_of(outcome.error) == "aborted"
    elif place.is_client:
        assert code_of(error) == "unknown"
    else:
        assert isinstance(error, RuntimeError), "the handler's own"
        assert code_of(outcome.error) == "unknown"
    assert noting.log[-1] == "end"


class Failing(Hooks):
    def __init__(self, where: str, error: BaseException | None = None) -> None:
        self._error = error or ZeroDivisionError("secret")
        for name in ("on_start", "on_request_message", "on_response_headers", "on_response_message", "on_end"):
            setattr(self, name, self._fail if name == where else lambda *args: None)

    def _fail(self, *args: object) -> None:
        raise self._error


@pytest.mark.parametrize("where", ["on_start", "on_request_message", "on_response_headers", "on_response_message"])
@EVERY
def test_hooks_that_fail(place: Place, method: Any, where: str) -> None:
    """The call fails in an orderly way, and hooks further out are told how it ended."""
    noting = Noting()
    outcome = place.call(method, [noting, Failing(where)])
    assert outcome.error is not None
    assert code_of(outcome.error) in ("internal", "unknown")
    assert place.is_client or "secret" not in str(outcome.error)
    assert len(noting.ends) == 1
    assert noting.ends[0][0] is not None


@pytest.mark.parametrize("failure", [ZeroDivisionError("secret"), ConnectError(ConnectErrorCode.DATA_LOSS, "secret")])
@pytest.mark.parametrize("name", ["a", "fail", "raise"])
@EVERY
def test_hooks_that_fail_at_the_end(
    place: Place, method: Any, name: str, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It changes nothing of how the call ends, nor of what others are told of it. It is logged, with a traceback."""

    def seen(hooks: list[Any]) -> Any:
        outcome = place.call(method, hooks, name)
        noted = [(hook.log, [(repr(error), trailers) for error, trailers in hook.ends]) for hook in hooks[::2]]
        return outcome.texts, repr(outcome.error), dict(outcome.headers), dict(outcome.trailers), noted

    expected = seen([Noting(), Hooks(), Noting()])
    caplog.clear()
    assert seen([Noting(), Failing("on_end", failure), Noting()]) == expected
    assert (expected[1] == "None") is (name == "a")
    logger = "connectrpc.client" if place.is_client else "connectrpc.server"
    (record,) = (record for record in caplog.records if "on_end" in record.getMessage())
    assert (record.name, record.levelname) == (logger, "ERROR")
    assert record.getMessage() == f"{method.path}: Failing.on_end failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is failure
    assert record.exc_info[2] is not None


def spoiling(asynchronous: bool, wrong: Any) -> Any:
    """An interceptor that puts ``wrong`` in the place of the last message."""

    def spoil(request: Any, proceed: Any) -> Any:
        return spoiled(proceed(request))

    async def spoil_async(request: Any, proceed: Any) -> Any:
        return spoiled(await proceed(request))

    def spoiled(response: Any) -> Any:
        if response.messages is None:
            response.message = wrong
        else:
            response.messages = last_async(response.messages) if asynchronous else last(response.messages)
        return response

    def last(messages: Any) -> Iterator[Any]:
        yield next(messages)
        yield wrong

    async def last_async(messages: Any) -> AsyncIterator[Any]:
        yield await messages.__anext__()
        yield wrong

    return spoil_async if asynchronous else spoil


class Picky(ProtoCodec):
    """Has no bytes for some messages."""

    def encode(self, message: Any) -> bytes:
        if getattr(message, "file_name", "") == "unwritable":
            raise ZeroDivisionError("secret")
        return super().encode(message)


@pytest.mark.parametrize(
    ("wrong", "told", "answered"),
    [
        (ask("a"), TypeError, "unknown"),
        (None, TypeError, "unknown"),
        (reply("x" * 200), ConnectError, "resource_exhausted"),
        (reply("unwritable"), ZeroDivisionError, "internal"),
        (ConnectError(ABORTED, "m"), ConnectError, "aborted"),
    ],
    ids=["other", "none", "large", "unwritable", "error"],
)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["server", "async-server"])
@EVERY
def test_hooks_are_told_of_answers_that_cannot_be_sent(
    method: Any, asynchronous: bool, wrong: Any, told: type[Exception], answered: str
) -> None:
    noting = Noting()
    hooks = [spoiling(asynchronous, wrong), noting]
    options: Any = {"interceptors": hooks, "send_max_bytes": 100, "codecs": [Picky()]}
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, AsyncService(), **options))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, Service(), **options))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    assert code_of(outcome.error) == answered
    ((error, _),) = noting.ends
    assert type(error) is told
    if told is ConnectError:
        assert code_of(error) == answered
    assert noting.log[-1] == "end"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["server", "async-server"])
@EVERY
def test_hooks_are_told_of_headers_that_cannot_be_sent(method: Any, asynchronous: bool) -> None:
    class Spoiling(Hooks):
        def on_response_headers(self, context: Any, headers: Any) -> None:
            headers["x-h"] = "two\nlines"

    noting = Noting()
    interceptors = [noting, Spoiling()]
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, AsyncService(), interceptors=interceptors))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, Service(), interceptors=interceptors))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    assert code_of(outcome.error) == "unknown"
    ((error, _),) = noting.ends
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration()], ids=repr)
@EVERY
def test_hooks_do_not_end_a_stream_by_the_way(place: Place, method: Any, error: Exception) -> None:
    """Such as a ``next`` of theirs that finds nothing, which passes for the end of what is iterated (PEP 479)."""
    noting = Noting()
    outcome = place.call(method, [noting, Failing("on_response_message", error)])
    assert code_of(outcome.error) in ("unknown", "internal")
    ((told, _),) = noting.ends
    assert told is not None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["server", "async-server"])
@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_a_failing_clean_up_does_not_change_how_a_call_ends(
    method: Any, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Untidy(AsyncService if asynchronous else Service):  # type: ignore[misc]
        def _messages(self, names: Any) -> Iterator[Any]:
            try:
                yield reply("a")
            finally:
                raise ZeroDivisionError("in finally")

        async def _each(self, request: Any) -> AsyncIterator[Any]:
            try:
                yield reply("a")
            finally:
                raise ZeroDivisionError("in finally")

    def deny(request: Any, proceed: Any) -> Any:
        next(proceed(request).messages)
        raise ConnectError(ConnectErrorCode.PERMISSION_DENIED, "no")

    async def deny_async(request: Any, proceed: Any) -> Any:
        await (await proceed(request)).messages.__anext__()
        raise ConnectError(ConnectErrorCode.PERMISSION_DENIED, "no")

    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, Untidy(), interceptors=[deny_async]))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, Untidy(), interceptors=[deny]))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    assert code_of(outcome.error) == "permission_denied"
    assert "in finally" in caplog.text


def test_hooks_that_fail_when_a_stream_is_left(caplog: pytest.LogCaptureFixture) -> None:
    answer = canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) * 3 + frame(b"{}", 2))
    noting = Noting()
    hooks = [noting, Failing("on_end")]
    with SyncClient("http://h", MemoryTransport(answer), interceptors=hooks)._caller.server_stream_output(
        SERVER, ask()
    ) as stream:
        next(stream)
    assert [code_of(error) for error, _ in noting.ends] == ["canceled"]
    assert "Failing.on_end failed" in caplog.text

    async def main() -> None:
        caller = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=hooks)._caller
        async with caller.server_stream_output(SERVER, ask()) as stream:
            await stream.__anext__()

    caplog.clear()
    asyncio.run(main())
    assert [code_of(error) for error, _ in noting.ends] == ["canceled", "canceled"]
    assert "Failing.on_end failed" in caplog.text


@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
def test_what_is_no_failure_of_hooks_passes(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Such as what ends a process. Other hooks are told all the same."""
    place, noting = Place("client", False), Noting()
    with pytest.raises(KeyboardInterrupt):
        place.call(method, [noting, Failing("on_end", KeyboardInterrupt())])
    assert [type(error) for error, _ in noting.ends] == [KeyboardInterrupt]
    assert not caplog.records


@pytest.mark.parametrize("wrong", [5, reply("a")])
def test_hooks_are_told_when_an_interceptor_gives_no_messages(place: Place, wrong: object) -> None:
    def spoil(request: Any, proceed: Any) -> Any:
        response = proceed(request)
        response.messages = wrong
        return response

    async def spoil_async(request: Any, proceed: Any) -> Any:
        response = await proceed(request)
        response.messages = wrong
        return response

    noting = Noting()
    with contextlib.suppress(TypeError):  # a client's caller gets it as it is
        assert place.call(SERVER, [noting, spoil_async if place.asynchronous else spoil]).error is not None
    ((error, _),) = noting.ends
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("method", [UNARY, CLIENT], ids=lambda method: method.name)
def test_an_interceptor_that_gives_no_message(place: Place, method: Any) -> None:
    """It is a failure, and no answer that is None."""
    outcome = place.call(method, [place.interceptor(after=lambda response: Response(headers=response.headers))])
    assert outcome.texts == []
    assert code_of(outcome.error) == ("internal" if place.is_client else "unknown")


@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_an_interceptor_that_gives_no_messages(place: Place, method: Any) -> None:
    """On a client, which has nothing else to tell it by, the error says so."""
    outcome = place.call(method, [place.interceptor(after=lambda response: Response(headers=response.headers))])
    assert outcome.texts == []
    if place.is_client:
        assert "a Response without messages has come out of the interceptors" in str(outcome.error)
    else:
        assert code_of(outcome.error) == "unknown"


# Streams that are left


@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=len)
@pytest.mark.parametrize("method", [CLIENT, BIDI], ids=lambda method: method.name)
def test_a_generator_of_requests_that_the_caller_keeps(method: Any, hooks: list[Any]) -> None:
    """It ends with the call."""
    ended: list[str] = []

    def requests() -> Any:
        try:
            while True:
                yield ask("a")
        finally:
            ended.append("blocking")

    async def requests_async() -> Any:
        try:
            while True:
                yield ask("a")
        finally:
            ended.append("async")

    class Broken(MemoryTransport):
        def send(self, request: Any, body: Any, *, stream: Any, deadline: Any, opening: Any, cancel: Any) -> Any:
            next(body)
            body.close()
            raise ConnectError(ConnectErrorCode.UNAVAILABLE, "m")

    class AsyncBroken(AsyncMemoryTransport):
        async def send(self, request: Any, body: Any) -> Any:
            await body.__anext__()
            await body.aclose()
            raise ConnectError(ConnectErrorCode.UNAVAILABLE, "m")

    answer = canned(200, STREAM_PROTO, b"")
    given = requests()
    caller = SyncClient("http://h", Broken(answer), interceptors=hooks)._caller
    with pytest.raises(ConnectError):
        caller.client_stream(CLIENT, given) if method is CLIENT else list(caller.bidi_stream(BIDI, given))
    assert ended == ["blocking"]

    async def main() -> None:
        for kept in (requests(), requests_async()):
            client = AsyncClient("http://h", AsyncBroken(answer), interceptors=hooks)._caller
            with pytest.raises(ConnectError):
                if method is CLIENT:
                    await client.client_stream(CLIENT, kept)
                else:
                    [message async for message in client.bidi_stream(BIDI, kept)]

    asyncio.run(main())
    assert ended == ["blocking", "blocking", "async"]


def test_hooks_are_told_when_another_task_closes_a_stream() -> None:
    closed = asyncio.Event()

    class Response(AsyncMemoryResponse):
        async def read_chunk(self) -> bytes:
            chunk = await super().read_chunk()
            if not chunk:
                await asyncio.wait_for(closed.wait(), 5)
            return chunk

        def close(self) -> None:
            super().close()
            closed.set()

    class Transport(AsyncMemoryTransport):
        async def send(self, request: Any, body: Any) -> Any:
            response = await super().send(request, body)
            response.__class__ = Response
            return response

    noting = Noting()

    async def main() -> None:
        answer = canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()))
        caller = AsyncClient("http://h", Transport(answer), interceptors=[noting])._caller
        stream = await caller.server_stream_output(SERVER, ask())
        await stream.__anext__()
        reading = asyncio.ensure_future(_all(stream))
        await asyncio.sleep(0.01)
        await stream.close()
        assert await reading == []
        assert (stream.done(), stream.error()) == (True, None)

    asyncio.run(main())
    assert [code_of(error) for error, _ in noting.ends] == ["canceled"]


def test_hooks_are_told_when_an_interceptor_fails_as_its_stream_is_left() -> None:
    answer = canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) * 3 + frame(b"{}", 2))
    noting = Noting()

    def untidy(request: Request, proceed: Any) -> Response:
        response: Response = proceed(request)
        response.messages = failing(response.messages)
        return response

    def failing(messages: Any) -> Iterator[Any]:
        try:
            yield from (message for message in messages)  # as loops do, it leaves the messages open
        finally:
            raise ZeroDivisionError

    stream = SyncClient(
        "http://h", MemoryTransport(answer), interceptors=[untidy, noting]
    )._caller.server_stream_output(SERVER, ask())
    next(stream)
    with pytest.raises(ZeroDivisionError):
        stream.close()
    assert [code_of(error) for error, _ in noting.ends] == ["canceled"]

    async def untidy_async(request: Request, proceed: Any) -> Response:
        response: Response = await proceed(request)
        response.messages = failing_async(response.messages)
        return response

    async def failing_async(messages: Any) -> AsyncIterator[Any]:
        try:
            async for message in messages:
                yield message
        finally:
            raise ZeroDivisionError

    async def main() -> None:
        client = AsyncClient("http://h", AsyncMemoryTransport(answer), interceptors=[untidy_async, noting])
        stream = await client._caller.server_stream_output(SERVER, ask())
        await stream.__anext__()
        with pytest.raises(ZeroDivisionError):
            await stream.close()

    asyncio.run(main())
    assert [code_of(error) for error, _ in noting.ends] == ["canceled"] * 2


@pytest.mark.parametrize("gives", [True, False])
def test_interceptors_are_told_when_another_thread_closes_a_stream(gives: bool) -> None:
    """Whatever they are just doing; and not that it has ended well."""
    ended: list[str] = []

    def watched(messages: Any) -> Iterator[Any]:
        try:
            for message in messages:
                closing = threading.Thread(target=stream.close)
                closing.start()
                closing.join()
                if gives:
                    yield message
            ended.append("well")
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    def watch(request: Request, proceed: Any) -> Response:
        response: Response = proceed(request)
        response.messages = watched(response.messages)
        return response

    noting = Noting()
    transport = MemoryTransport(canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) * 3 + frame(b"{}", 2)))
    caller = SyncClient("http://h", transport, interceptors=[noting, watch])._caller
    stream = caller.server_stream_output(SERVER, ask())
    assert list(stream) == []
    assert stream.done()
    assert transport.responses[0].closed
    assert ended == ["GeneratorExit" if gives else "ConnectError"]
    assert [code_of(error) for error, _ in noting.ends] == ["canceled"]


async def _all(stream: Any) -> list[Any]:
    return [message async for message in stream]


@pytest.mark.parametrize("taken", [0, 1])
def test_hooks_are_told_when_a_client_leaves_a_stream(taken: int) -> None:
    answer = canned(200, STREAM_PROTO, frame(reply("a").SerializeToString()) * 3 + frame(b"{}", 2))
    noting = Noting()
    transport = MemoryTransport(answer)
    with SyncClient("http://h", transport, interceptors=[noting])._caller.server_stream_output(SERVER, ask()) as stream:
        for _ in range(taken):
            next(stream)
    assert len(noting.ends) == 1
    assert noting.ends[0][0] is not None
    assert transport.responses[0].closed
    assert stream.done()

    noting, other = Noting(), AsyncMemoryTransport(answer)

    async def main() -> None:
        caller = AsyncClient("http://h", other, interceptors=[noting])._caller
        async with caller.server_stream_output(SERVER, ask()) as stream:
            for _ in range(taken):
                await stream.__anext__()
        assert stream.done()

    asyncio.run(main())
    assert len(noting.ends) == 1
    assert noting.ends[0][0] is not None
    assert other.inner.responses[0].closed


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_hooks_are_told_when_a_server_closes_a_stream(taken: int) -> None:
    """As it does when the client has gone."""
    noting, service = Noting(), Service()
    app = wsgi_service(SERVICE, service, interceptors=[noting])
    parts: Any = app(environ(SERVER.path, asked(ask("a")), STREAM_PROTO), Starter())
    for _ in itertools.islice(parts, taken):
        pass
    parts.close()
    assert len(noting.ends) == 1
    assert noting.ends[0][0] is not None
    assert service.closed == (taken > 1)


def test_hooks_are_told_when_an_async_call_is_ended() -> None:
    """By the client, or by a deadline, which is also an ``await`` in an interceptor."""

    class Waiting(AsyncService):
        async def unary(self, request: Any) -> Any:
            await asyncio.sleep(5)

        async def server(self, request: Any) -> Any:
            yield reply("a")
            await asyncio.sleep(5)

    for method, content_type in ((UNARY, "application/proto"), (SERVER, STREAM_PROTO)):
        for events, headers in (([0.02, {"type": "http.disconnect"}], []), ([], [("connect-timeout-ms", "200")])):
            noting = Noting()
            body = asked(ask("a")) if method is SERVER else b""
            given: list[Any] = [part(body), *events]
            connection = Connection(given)
            app = asgi_service(SERVICE, Waiting(), interceptors=[noting])
            asyncio.run(serve(app, scope(method.path, content_type, headers), connection))
            ((error, _),) = noting.ends
            if headers:
                assert code_of(error) == "deadline_exceeded"
            else:
                assert isinstance(error, asyncio.CancelledError) or code_of(error) == "canceled"


# Deadlines


def let_pass(request: Any) -> None:
    """The time is up."""
    request.timeout.expires_at = time.monotonic() - 1


class LateService(Service):
    """Its deadline passes while it works."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error

    def _answer(self, names: list[str], request: Any) -> Any:
        let_pass(request)
        if self._error is not None:
            raise self._error
        return super()._answer(names, request)

    def _stream(self, names: Any, request: Any) -> Any:
        return self._late_messages(names, request)

    def _late_messages(self, names: Any, request: Any) -> Iterator[Any]:
        for name in names:
            yield reply(name)
            let_pass(request)
            if self._error is not None:
                raise self._error


class AsyncLateService(LateService):
    """The same where it is awaited."""

    def __init__(self, error: Exception | None = None, *, waits: bool = False) -> None:
        super().__init__(error)
        self._waits = waits

    async def unary(self, request: Any) -> Any:
        return await self._late([request.msg.name], request)

    async def client(self, request: Any) -> Any:
        return await self._late([message.name async for message in request], request)

    async def _late(self, names: list[str], request: Any) -> Any:
        if self._waits:
            await asyncio.sleep(60)
        return self._answer(names, request)

    async def server(self, request: Any) -> Any:
        async for message in self._late_async_messages(request):
            yield message

    async def bidi(self, request: Any) -> Any:
        async for _ in request:
            async for message in self._late_async_messages(request):
                yield message

    async def _late_async_messages(self, request: Any) -> AsyncIterator[Any]:
        yield reply("a")
        if self._waits:
            await asyncio.sleep(60)
        let_pass(request)
        if self._error is not None:
            raise self._error
        yield reply("b")


LATE = {
    "wsgi": lambda options: through_wsgi(wsgi_service(SERVICE, LateService(), **options)),
    "wsgi-threads": lambda options: through_wsgi(wsgi_service(SERVICE, InThreads(LateService()), **options)),
    "wsgi-timeout": lambda options: through_wsgi(wsgi_service(SERVICE, LateService(TimeoutError()), **options)),
    "asgi": lambda options: through_asgi(asgi_service(SERVICE, AsyncLateService(), **options)),
    "asgi-waits": lambda options: through_asgi(
        asgi_service(SERVICE, AsyncLateService(waits=True), **{**options, "max_timeout_seconds": 0.3})
    ),
    "asgi-threads": lambda options: through_asgi(asgi_service(SERVICE, InThreads(LateService()), **options)),
    "asgi-timeout": lambda options: through_asgi(
        asgi_service(SERVICE, AsyncLateService(asyncio.TimeoutError()), **options)
    ),
}


@pytest.mark.parametrize("how", LATE)
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI], ids=lambda method: method.name)
def test_hooks_of_a_service_are_told_of_its_deadline(method: Any, how: str) -> None:
    """As its client is, whatever it is that ends the handler: metrics would count a success, or a client that left."""
    noting = Noting()
    answer = LATE[how]({"interceptors": [noting], "max_timeout_seconds": 60})
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    assert code_of(outcome.error) == "deadline_exceeded"
    ((error, _),) = noting.ends
    assert code_of(error) == "deadline_exceeded"
    assert noting.log[-1] == "end"


@pytest.mark.parametrize("method", [UNARY, SERVER], ids=lambda method: method.name)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["wsgi", "asgi"])
def test_hooks_are_told_of_a_deadline_that_passes_while_a_thread_works(method: Any, asynchronous: bool) -> None:
    over = threading.Event()

    class Blocked(Service):
        def unary(self, request: Any) -> Any:
            over.wait(60)

        def server(self, request: Any) -> Any:
            yield reply("a")
            over.wait(60)

    noting = Noting()
    options: Any = {"interceptors": [noting], "max_timeout_seconds": 0.5}
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, InThreads(Blocked()), **options))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, InThreads(Blocked()), **options))
    try:
        outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    finally:
        over.set()
    assert code_of(outcome.error) == "deadline_exceeded"
    ((error, _),) = noting.ends
    assert code_of(error) == "deadline_exceeded"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("interceptors", [False, True], ids=["bare", "hooks"])
@pytest.mark.parametrize("method", [UNARY, CLIENT, SERVER, BIDI], ids=lambda method: method.name)
def test_an_error_that_comes_late_is_told_as_it_is(method: Any, interceptors: bool, asynchronous: bool) -> None:
    """To hooks and to the client alike, and to the client the same whether there are hooks or not."""
    noting = Noting()
    options: Any = {"interceptors": [noting] if interceptors else [], "max_timeout_seconds": 60}
    late = ConnectError(ABORTED, "m")
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, AsyncLateService(late), **options))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, LateService(late), **options))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), method)
    assert code_of(outcome.error) == "aborted"
    assert [error for error, _ in noting.ends] == [late] * interceptors


@pytest.mark.parametrize("asynchronous", [False, True], ids=["wsgi", "asgi"])
def test_interceptors_see_that_a_result_comes_too_late(asynchronous: bool) -> None:
    seen = Noting()

    def sync(request: Request, proceed: Any) -> Response:
        with pytest.raises(ConnectError) as caught:
            proceed(request)
        raise caught.value

    async def awaiting(request: Request, proceed: Any) -> Response:
        with pytest.raises(ConnectError) as caught:
            await proceed(request)
        raise caught.value

    how, around = ("asgi", awaiting) if asynchronous else ("wsgi", sync)
    answer = LATE[how]({"interceptors": [seen, around], "max_timeout_seconds": 60})
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), UNARY)
    assert code_of(outcome.error) == "deadline_exceeded"
    assert "< a" not in seen.log


@pytest.mark.parametrize("asynchronous", [False, True], ids=["wsgi", "asgi"])
def test_hooks_are_told_of_a_deadline_that_an_interceptor_misses(asynchronous: bool) -> None:
    """The handler was in time, but its result is not sent."""
    place, noting = Place("server", asynchronous), Noting()
    late: list[Any] = []
    slow = place.interceptor(late.append, lambda response: let_pass(late[0].context))
    options: Any = {"interceptors": [noting, slow], "max_timeout_seconds": 60}
    if asynchronous:
        answer = through_asgi(asgi_service(SERVICE, AsyncService(), **options))
    else:
        answer = through_wsgi(wsgi_service(SERVICE, Service(), **options))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), UNARY)
    assert code_of(outcome.error) == "deadline_exceeded"
    ((error, _),) = noting.ends
    assert code_of(error) == "deadline_exceeded"


class Hanging(AsyncMemoryTransport):
    """Its answers never come, or, where they are read one by one, never end."""

    def __init__(self, first: bytes = b"") -> None:
        super().__init__(canned(200, STREAM_PROTO, first), size=len(first))
        self._first = first

    async def send(self, request: Any, body: Any) -> Any:
        response: Any = await super().send(request, body)
        if not self._first:
            await asyncio.sleep(60)
        read = response.read_chunk

        async def read_chunk() -> bytes:
            chunk: bytes = await read()
            return chunk or await asyncio.sleep(60, b"")

        return SimpleNamespace(
            status=response.status,
            headers=response.headers,
            trailers=None,
            uploaded=True,
            read_chunk=read_chunk,
            close=response.close,
        )


@pytest.mark.parametrize(
    ("method", "begun"),
    [(UNARY, False), *itertools.product((CLIENT, SERVER, BIDI), (False, True))],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("how", ["deadline", "canceled"])
def test_hooks_of_an_async_client_are_told_what_ended_the_call(method: Any, begun: bool, how: str) -> None:
    """Its deadline, or its caller; before the head came, or after a message."""

    async def main() -> None:
        transport = Hanging(frame(reply("a").SerializeToString()) if begun else b"")
        seconds = 0.2 if how == "deadline" else None
        client = AsyncClient("http://h", transport, interceptors=[noting], timeout_seconds=seconds)
        task = asyncio.create_task(call_async(client, method))
        if how == "deadline":
            assert code_of((await task).error) == "deadline_exceeded"
            return
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    noting = Noting()
    asyncio.run(main())
    ((error, _),) = noting.ends
    if how == "deadline":
        assert code_of(error) == "deadline_exceeded"
    else:
        assert isinstance(error, asyncio.CancelledError)


def test_hooks_are_told_of_a_deadline_that_passes_between_two_messages() -> None:
    messages = frame(reply("a").SerializeToString()) * 2
    noting = Noting()

    async def main() -> None:
        transport = AsyncMemoryTransport(canned(200, STREAM_PROTO, messages))
        caller = AsyncClient("http://h", transport, interceptors=[noting], timeout_seconds=60)._caller
        async with caller.server_stream_output(SERVER, ask()) as stream:
            assert (await stream.__anext__()).file_name == "a"
            noting.contexts[0].timeout.expires_at = time.monotonic() - 1
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()
            assert code_of(stream.error()) == "deadline_exceeded"

    asyncio.run(main())
    ((error, _),) = noting.ends
    assert code_of(error) == "deadline_exceeded"


STREAM = frame(reply("a").SerializeToString()) + frame(b'{"metadata":{"x-t":["1"]}}', 2)


def test_an_intercepted_stream_tells_as_it_goes() -> None:
    transport = MemoryTransport(canned(200, STREAM_PROTO, STREAM, x_h="1"))
    stream = SyncClient("http://h", transport, interceptors=[Hooks()])._caller.server_stream_output(SERVER, ask())
    assert stream.response_headers()["x-h"] == "1"
    assert (next(stream).file_name, stream.done(), stream.error()) == ("a", False, None)
    with pytest.raises(RuntimeError, match="trailers"):
        stream.response_trailers()
    for _ in range(2):
        assert next(stream, None) is None
        assert (stream.done(), stream.error()) == (True, None)
    assert stream.response_trailers()["x-t"] == "1"
    stream.close()
    stream.close()

    other = AsyncMemoryTransport(canned(200, STREAM_PROTO, STREAM, x_h="1"))

    async def main() -> None:
        caller = AsyncClient("http://h", other, interceptors=[Hooks()])._caller
        stream = await caller.server_stream_output(SERVER, ask())
        assert stream.response_headers()["x-h"] == "1"
        assert ((await stream.__anext__()).file_name, stream.done(), stream.error()) == ("a", False, None)
        with pytest.raises(RuntimeError, match="trailers"):
            stream.response_trailers()
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()
            assert (stream.done(), stream.error()) == (True, None)
        assert stream.response_trailers()["x-t"] == "1"
        await stream.close()
        await stream.close()

    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True])
def test_a_stream_that_an_interceptor_gives_up_is_closed(again: bool) -> None:
    """Because it fails after the call has begun, or because it calls again and gives another."""

    def sync(request: Request, proceed: Any) -> Response:
        proceed(request)
        if not again:
            raise ConnectError(ABORTED, "m")
        response: Response = proceed(request)
        return response

    async def asynchronous(request: Request, proceed: Any) -> Response:
        await proceed(request)
        if not again:
            raise ConnectError(ABORTED, "m")
        response: Response = await proceed(request)
        return response

    transport = MemoryTransport(canned(200, STREAM_PROTO, STREAM))
    outcome = call_sync(SyncClient("http://h", transport, interceptors=[sync]), SERVER)
    other = AsyncMemoryTransport(canned(200, STREAM_PROTO, STREAM))
    async_outcome = asyncio.run(call_async(AsyncClient("http://h", other, interceptors=[asynchronous]), SERVER))
    for found, responses in ((outcome, transport.responses), (async_outcome, other.inner.responses)):
        assert len(responses) == 1 + again
        assert all(response.closed for response in responses)
        assert found.texts == (["a"] if again else [])
        if not again:
            assert code_of(found.error) == "aborted"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_server_is_told_what_is_left_of_the_deadline(method: Any) -> None:
    """It would go on for a caller who has left, and pass a false deadline on."""

    def sync(request: Request, proceed: Any) -> Response:
        time.sleep(0.2)
        return proceed(request)  # type: ignore[no-any-return]

    async def asynchronous(request: Request, proceed: Any) -> Response:
        await asyncio.sleep(0.2)
        return await proceed(request)  # type: ignore[no-any-return]

    streams = method not in (UNARY, PURE)
    answer = canned(200, *((STREAM_PROTO, STREAM) if streams else (PROTO, reply("a").SerializeToString())))
    transport, other = MemoryTransport(answer), AsyncMemoryTransport(answer)
    call_sync(SyncClient("http://h", transport, interceptors=[sync], timeout_seconds=20), method)
    asyncio.run(call_async(AsyncClient("http://h", other, interceptors=[asynchronous], timeout_seconds=20), method))
    for requests in (transport.requests, other.inner.requests):
        ((request, _),) = requests
        told = {name.lower(): value for name, value in request.headers}
        assert 10_000 < int(told["connect-timeout-ms"]) <= 19_800


def test_an_interceptor_waits_within_the_deadline() -> None:
    async def slow(request: Request, proceed: Any) -> Response:
        await asyncio.sleep(5)
        raise AssertionError

    for method in (UNARY, SERVER):
        noting = Noting()
        other = AsyncMemoryTransport(canned(200, STREAM_PROTO, STREAM))
        client = AsyncClient("http://h", other, interceptors=[noting, slow], timeout_seconds=0.2)
        outcome = asyncio.run(call_async(client, method))
        assert code_of(outcome.error) == "deadline_exceeded"
        ((error, _),) = noting.ends
        assert code_of(error) == "deadline_exceeded"


@pytest.mark.parametrize("how", ["raises", "hook", "gives another"])
@pytest.mark.parametrize("method", [SERVER, BIDI], ids=lambda method: method.name)
def test_hooks_inside_an_interceptor_that_fails_are_told_of_the_end(place: Place, method: Any, how: str) -> None:
    """Its stream was begun, and nobody will ever iterate it: a gauge of running calls must not drift."""
    noting = Noting()

    def after(response: Response) -> Response | None:
        if how == "raises":
            raise ConnectError(ABORTED, "m")
        return Response(messages=nothing() if place.asynchronous else iter(()))

    async def nothing(*messages: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message

    outer = Failing("on_response_headers") if how == "hook" else place.interceptor(after=after)
    outcome = place.call(method, [outer, noting])
    assert (outcome.error is None) is (how == "gives another")
    assert outcome.texts == []
    assert noting.log[-1] == "end"
    assert len(noting.ends) == 1
    assert noting.ends[0][0] is not None


@pytest.mark.parametrize("how", ["raises", "hook", "gives another"])
def test_a_stream_inside_an_interceptor_that_fails_is_closed(how: str) -> None:
    """What a handler gave is closed, whatever becomes of it."""

    class Messages:
        closed = 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return reply("a")

        def close(self) -> None:
            self.closed += 1

    class Giving(Service):
        def server(self, request: Any) -> Any:
            return ServerStream(messages)

    def sync(request: Request, proceed: Any) -> Response:
        proceed(request)
        if how == "raises":
            raise ConnectError(ABORTED, "m")
        return Response(messages=iter(()))

    async def asynchronous(request: Request, proceed: Any) -> Response:
        await proceed(request)
        if how == "raises":
            raise ConnectError(ABORTED, "m")

        async def nothing(*messages: Any) -> AsyncIterator[Any]:
            for message in messages:
                yield message

        return Response(messages=nothing())

    body = asked(ask("a"))
    for awaits in (False, True):
        messages = Messages()
        outer: Any = Failing("on_response_headers") if how == "hook" else asynchronous if awaits else sync
        if awaits:
            call_asgi(asgi_service(SERVICE, Giving(), interceptors=[outer]), scope(SERVER.path, STREAM_PROTO), body)
        else:
            made = environ(SERVER.path, body, STREAM_PROTO)
            call_wsgi(wsgi_service(SERVICE, Giving(), interceptors=[outer]), made)
        assert messages.closed == 1


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("hooks", [0, 2])
def test_what_a_handler_gave_is_closed_once(leaves: bool, hooks: int) -> None:
    """However many stand around it: closing may give back something that can be given back once."""

    class Messages:
        def __init__(self) -> None:
            self._messages = iter([reply("a"), reply("b")])
            self.closed = 0

        def __iter__(self) -> Messages:
            return self

        def __next__(self) -> Any:
            return next(self._messages)

        def close(self) -> None:
            self.closed += 1

    async def on_send(event: Any) -> None:
        if leaves and event.get("body"):
            raise OSError("the client has left")

    body = asked(ask("a"))
    for interceptor in (a_sync_interceptor, an_async_interceptor):
        messages = Messages()
        service = SimpleNamespace(server=lambda _: ServerStream(messages))  # noqa: B023  called before it is another
        options: Any = {"interceptors": [interceptor, *(Hooks() for _ in range(hooks))]}
        if interceptor is a_sync_interceptor:
            parts: Any = wsgi_service(SERVICE, service, **options)(environ(SERVER.path, body, STREAM_PROTO), Starter())
            sent = iter(parts)
            assert next(sent) == b"", "the head"
            assert next(sent)
            assert leaves or list(sent)
            parts.close()
        else:
            exchange(asgi_service(SERVICE, service, **options), scope(SERVER.path, STREAM_PROTO), [part(body)], on_send)
        assert messages.closed == 1


# What is refused


async def an_async_interceptor(request: Request, proceed: Any) -> Response:
    response: Response = await proceed(request)
    return response


def a_sync_interceptor(request: Request, proceed: Any) -> Response:
    response: Response = proceed(request)
    return response


@pytest.mark.parametrize("interceptor", [5, "name", None, Hooks])
def test_what_is_none(place: Place, interceptor: Any) -> None:
    with pytest.raises(TypeError):
        place.call(UNARY, [interceptor])
    assert place.service.calls == 0


def test_what_is_none_is_refused_when_a_client_or_app_is_made() -> None:
    transport, other = MemoryTransport(canned(200, None, b"")), AsyncMemoryTransport(canned(200, None, b""))
    for wrong in ([5], [Hooks], a_sync_interceptor, Hooks()):
        for make in (
            lambda wrong=wrong: SyncClient("http://h", transport, interceptors=wrong),
            lambda wrong=wrong: AsyncClient("http://h", other, interceptors=wrong),
            lambda wrong=wrong: wsgi_service(SERVICE, Service(), interceptors=wrong),
            lambda wrong=wrong: asgi_service(SERVICE, AsyncService(), interceptors=wrong),
        ):
            with pytest.raises(TypeError, match="interceptor"):
                make()


def test_the_other_colour_is_refused() -> None:
    """At the first call it could only fail in some obscure way."""
    with pytest.raises(TypeError, match="async"):
        SyncClient("http://h", MemoryTransport(canned(200, None, b"")), interceptors=[an_async_interceptor])
    with pytest.raises(TypeError, match="async"):
        wsgi_service(SERVICE, Service(), interceptors=[an_async_interceptor])


def test_async_handlers_are_still_refused_under_wsgi() -> None:
    class Coroutine:
        async def unary(self, request: Any) -> Any: ...

    with pytest.raises(TypeError, match="async"):
        wsgi_service(SERVICE, Coroutine(), interceptors=[a_sync_interceptor])


def test_an_error_that_is_used_again_brings_nothing_along() -> None:
    """Errors may be constants of a module: what one caller was sent with it is not for another."""
    error = ConnectError(ABORTED, "m")
    results: list[Any] = []

    class Constant(Service):
        def unary(self, request: Any) -> Any:
            return results.pop(0)

    service = Constant()
    for kind, around in ((wsgi_service, a_sync_interceptor), (asgi_service, an_async_interceptor)):
        results[:] = [ServerResponse(error, {"x-mine": "secret"}, {"x-mine-too": "secret"}), error]
        through: Any = through_wsgi if kind is wsgi_service else through_asgi
        options: Any = {"interceptors": [around]}
        client = SyncClient("http://h", MemoryTransport(through(kind(SERVICE, service, **options))))
        first, second = call_sync(client, UNARY), call_sync(client, UNARY)
        assert (first.headers["x-mine"], first.trailers["x-mine-too"]) == ("secret", "secret")
        assert code_of(second.error) == "aborted"
        assert "x-mine" not in second.headers
        assert "x-mine-too" not in second.trailers


def test_chain() -> None:
    def innermost(request: Any) -> Any:
        return Response(f"<{request.message}>")

    def wrap(mark: str) -> Any:
        def around(request: Any, proceed: Any) -> Response:
            request.message += mark
            return Response(mark + proceed(request).message + mark)

        return around

    assert build_chain([], innermost, asynchronous=False) is innermost
    chain: Any = build_chain([wrap("1"), wrap("2")], innermost, asynchronous=False)
    context: Any = None
    assert chain(Request(context, "x")).message == "12<x12>21"


def test_an_unimplemented_method_passes_interceptors() -> None:
    """Metrics count it too."""
    noting = Noting()
    answer = through_wsgi(wsgi_service(SERVICE, object(), interceptors=[noting]))
    outcome = call_sync(SyncClient("http://h", MemoryTransport(answer)), UNARY)
    assert code_of(outcome.error) == "unimplemented"
    assert code_of(noting.ends[0][0]) == "unimplemented"


def test_a_call_that_never_was_is_not_told() -> None:
    """A wrong argument is the caller's mistake, and comes to it as it is, through interceptors too."""
    for interceptors in ([], [Hooks()], [a_sync_interceptor]):
        client = SyncClient("http://h", MemoryTransport(canned(200, None, b"")), interceptors=interceptors)
        with pytest.raises(ValueError, match="connect-x"):
            client._caller.unary(UNARY, ask(), {"connect-x": "1"})
        with pytest.raises(TypeError):
            wrong: Any = reply()
            client._caller.unary(UNARY, wrong)

    def broken() -> Iterator[Any]:
        yield ask()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client._caller.client_stream(CLIENT, broken())


def test_messages_that_hooks_are_told_of_while_the_answer_is_read() -> None:
    """In another thread, as documented, but in the context of the caller."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    told: list[tuple[str, bool]] = []

    class Telling(Hooks):
        def on_request_message(self, context: Any, message: Any) -> None:
            told.append((variable.get("missing"), threading.current_thread() is caller))

    caller = threading.current_thread()
    variable.set("set")
    with WSGITransport(wsgi_service(SERVICE, Service())) as transport:
        client = SyncClient("http://h", transport, interceptors=[Telling()])
        assert len(list(client._caller.bidi_stream(BIDI, [ask("a"), ask("b")]))) == 2
    assert told == [("set", False)] * 2


@EVERY
@pytest.mark.parametrize("threads", [True, False])
def test_context_variables_end_with_the_call(method: Any, threads: bool) -> None:
    """Though a server's thread goes on to another's call: that is not to be taken for one of who was here before."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    class Noting(Service):
        def _answer(self, names: list[str], request: Any) -> Any:
            seen.append(variable.get())
            return super()._answer(names, request)

        def _messages(self, names: Any) -> Iterator[Any]:
            try:
                seen.append(variable.get())
                yield from super()._messages(names)
            finally:
                seen.append(variable.get())

    def identify(request: Request, proceed: Any) -> Response:
        seen.append(variable.get())
        variable.set(variable.get() + ", then ada")
        response: Response = proceed(request)
        return response

    service = Noting()
    answer = through_wsgi(
        wsgi_service(SERVICE, InThreads(service) if threads else service, interceptors=[identify, Hooks()])
    )
    client = SyncClient("http://h", MemoryTransport(answer))
    variable.set("the server's")
    for _ in range(2):
        assert call_sync(client, method).error is None
        assert seen == ["the server's", *["the server's, then ada"] * (2 if method.kind.server_streams else 1)]
        seen.clear()
    assert variable.get() == "the server's"


@pytest.mark.parametrize("interceptors", [[], [Hooks()]], ids=len)
def test_what_a_request_iterator_raises_in_the_midst_of_a_stream(interceptors: list[Any]) -> None:
    """It comes to the caller as it is too."""
    answered = threading.Event()

    def requests() -> Iterator[Any]:
        yield ask("a")
        answered.wait(5)
        raise ZeroDivisionError

    with WSGITransport(wsgi_service(SERVICE, Service())) as transport:
        stream = SyncClient("http://h", transport, interceptors=interceptors)._caller.bidi_stream(BIDI, requests())
        assert next(stream).file_name == "a"
        answered.set()
        with pytest.raises(ZeroDivisionError):
            next(stream)

    async def main() -> None:
        answered = asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            yield ask("a")
            await answered.wait()
            raise ZeroDivisionError

        async with ASGITransport(asgi_service(SERVICE, AsyncService())) as transport:
            client = AsyncClient("http://h", transport, interceptors=interceptors)
            stream = client._caller.bidi_stream(BIDI, requests())
            assert (await stream.__anext__()).file_name == "a"
            answered.set()
            with pytest.raises(ZeroDivisionError):
                await stream.__anext__()

    asyncio.run(main())


def test_events_of_a_body_in_pieces() -> None:
    noting = Noting()
    app = asgi_service(SERVICE, AsyncService(), interceptors=[noting])
    connection = Connection(body_events(asked(ask("x"), ask("a")), 3))
    asyncio.run(serve(app, scope(BIDI.path, STREAM_PROTO), connection))
    answer: Answer = connection.answer()
    assert answer.stream()[0] == ["x", "a"]
    assert [entry for entry in noting.log if entry[0] in "<>"] in (
        ["> x", "< x", "> a", "< a"],
        ["> x", "> a", "< x", "< a"],
    )
