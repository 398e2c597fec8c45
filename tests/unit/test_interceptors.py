"""Interceptors and hooks on both sides, in both colours, for every kind of RPC."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc.client.aio import AsyncCaller
from connectrpc.client.sync import SyncCaller
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import CallContext, Hooks, Request, Response
from connectrpc.server import ServerResponse, ServerStream, asgi_service, wsgi_service
from harness import (
    BIDI,
    CLIENT,
    MISSING,
    SERVER,
    SERVICE,
    UNARY,
    AsyncMemoryTransport,
    MemoryTransport,
    ask,
    reply,
    through_asgi,
    through_wsgi,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from google.protobuf.source_context_pb2 import SourceContext
    from multidict import CIMultiDict

KINDS = {"unary": UNARY, "server": SERVER, "client": CLIENT, "bidi": BIDI}


class Echo:
    """Answers with the names that it was asked, and with headers and trailers."""

    def unary(self, req: Any) -> Any:
        if req.msg.name == "fail":
            return ServerResponse(ConnectError(ConnectErrorCode.ABORTED, "no"), {"x-h": "1"}, {"x-t": "2"})
        if req.msg.name == "boom":
            raise ValueError("a secret")
        return ServerResponse(reply(req.msg.name), {"x-h": "1"}, {"x-t": "2"})

    def server(self, req: Any) -> Any:
        def each() -> Iterator[Any]:
            yield from (reply(letter) for letter in req.msg.name)
            if req.msg.number:
                yield ConnectError(ConnectErrorCode.ABORTED, "no")

        return ServerStream(each(), {"x-h": "1"}, {"x-t": "2"})

    def client(self, req: Any) -> Any:
        return ServerResponse(reply("".join(msg.name for msg in req)), {"x-h": "1"}, {"x-t": "2"})

    def bidi(self, req: Any) -> Any:
        return ServerStream((reply(msg.name) for msg in req), {"x-h": "1"}, {"x-t": "2"})


class AsyncEcho:
    """The same, awaited."""

    async def unary(self, req: Any) -> Any:
        await asyncio.sleep(0)
        return Echo().unary(req)

    async def server(self, req: Any) -> Any:
        async def each() -> AsyncIterator[Any]:
            for letter in req.msg.name:
                await asyncio.sleep(0)
                yield reply(letter)
            if req.msg.number:
                yield ConnectError(ConnectErrorCode.ABORTED, "no")

        return ServerStream(each(), {"x-h": "1"}, {"x-t": "2"})

    async def client(self, req: Any) -> Any:
        return ServerResponse(reply("".join([msg.name async for msg in req])), {"x-h": "1"}, {"x-t": "2"})

    async def bidi(self, req: Any) -> Any:
        return ServerStream((reply(msg.name) async for msg in req), {"x-h": "1"}, {"x-t": "2"})


class Log(Hooks):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_start(self, context: CallContext) -> None:
        self.lines.append(f"start {context.method.name}")

    def on_request_message(self, context: CallContext, message: Any) -> None:
        self.lines.append(f"request {message.name}")

    def on_response_headers(self, context: CallContext, headers: CIMultiDict[str]) -> None:
        self.lines.append(f"headers {headers.get('x-h')}")

    def on_response_message(self, context: CallContext, message: Any) -> None:
        self.lines.append(f"response {message.file_name}")

    def on_end(self, context: CallContext, error: BaseException | None, trailers: CIMultiDict[str]) -> None:
        code = error.code.code_name if isinstance(error, ConnectError) else type(error).__name__
        self.lines.append(f"end {code} {trailers.get('x-t')}")


class Wired:
    """A client wired to a service, both with interceptors, in one colour."""

    def __init__(self, colour: str, client: list[Any], server: list[Any]) -> None:
        self.colour = colour
        echo = types.SimpleNamespace(**MISSING)
        if colour == "sync":
            app = wsgi_service(SERVICE, _Over(Echo(), echo), interceptors=server)
            self._transport: Any = MemoryTransport(through_wsgi(app))
            self._caller: Any = SyncCaller("http://test", self._transport, {"interceptors": client})
        else:
            asgi = asgi_service(SERVICE, _Over(AsyncEcho(), echo), interceptors=server)
            answer = through_asgi(asgi)
            self._transport = AsyncMemoryTransport(lambda *given: _in_thread(answer, *given))
            self._caller = AsyncCaller("http://test", self._transport, {"interceptors": client})

    def call(self, kind: str, *names: str, number: int = 0, **options: Any) -> tuple[list[str], Any]:
        """The texts of the answer, and the output."""
        method = KINDS[kind]
        given: Any = [ask(name) for name in names] if method.kind.client_streams else ask(names[0], number)
        verb = (
            f"{ {'unary': 'unary', 'server': 'server_stream', 'client': 'client_stream', 'bidi': 'bidi_stream'}[kind] }"
        )
        make = getattr(self._caller, f"{verb}_output")
        if self.colour == "sync":
            output = make(method, given, **options)
            if method.kind.server_streams:
                return [message.file_name for message in output], output
        else:

            async def run() -> tuple[list[str], Any]:
                output = await make(method, given, **options)
                if not method.kind.server_streams:
                    return [], output
                return [message.file_name async for message in output], output

            texts, output = asyncio.run(run())
            if method.kind.server_streams:
                return texts, output
        message: SourceContext | None = output.message()
        return ([] if message is None else [message.file_name]), output


class _Over:
    def __init__(self, first: object, second: object) -> None:
        self._both = (first, second)

    def __getattr__(self, name: str) -> Any:
        for one in self._both:
            if hasattr(one, name):
                return getattr(one, name)
        raise AttributeError(name)


def _in_thread(function: Any, *given: Any) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *given).result()


colours = pytest.mark.parametrize("colour", ["sync", "async"])
kinds = pytest.mark.parametrize("kind", list(KINDS))


def around(colour: str, before: Any = None, after: Any = None) -> Any:
    """An interceptor of either colour that does the same."""

    def sync(request: Request, proceed: Any) -> Response:
        if before is not None:
            before(request)
        response: Response = proceed(request)
        if after is not None:
            after(response)
        return response

    async def aio(request: Request, proceed: Any) -> Response:
        if before is not None:
            before(request)
        await asyncio.sleep(0)
        response: Response = await proceed(request)
        if after is not None:
            after(response)
        return response

    return sync if colour == "sync" else aio


@colours
@kinds
def test_hooks_are_told_the_same_on_both_sides(colour: str, kind: str) -> None:
    client, server = Log(), Log()
    names = ("a", "b") if KINDS[kind].kind.client_streams else ("ab",)
    texts, output = Wired(colour, [client], [server]).call(kind, *names)
    assert output.error() is None
    assert "".join(texts) == "ab"
    expected = {
        f"start {KINDS[kind].name}",
        *(f"request {name}" for name in names),
        "headers 1",
        *(f"response {text}" for text in texts),
        "end NoneType 2",
    }
    for log in (client, server):
        assert set(log.lines) == expected
        assert len(log.lines) == len(expected)
        assert log.lines[0].startswith("start")
        assert log.lines[-1] == "end NoneType 2"


@colours
def test_hooks_are_told_of_errors(colour: str) -> None:
    client, server = Log(), Log()
    wired = Wired(colour, [client], [server])
    _, output = wired.call("unary", "fail")
    assert output.error().code is ConnectErrorCode.ABORTED
    assert output.response_headers()["x-h"] == "1"
    assert output.response_trailers()["x-t"] == "2"
    assert client.lines[-1].startswith("end aborted")
    assert server.lines[-1].startswith("end aborted")
    _, output = wired.call("unary", "boom")
    assert output.error().code is ConnectErrorCode.UNKNOWN
    assert "secret" not in str(output.error())
    assert server.lines[-1].startswith("end ValueError")
    texts, output = wired.call("server", "ab", number=1)
    assert texts == ["a", "b"]
    assert output.error().code is ConnectErrorCode.ABORTED
    assert output.response_trailers()["x-t"] == "2"
    assert client.lines[-1].startswith("end aborted")
    assert server.lines[-1].startswith("end aborted")


@colours
@kinds
def test_the_first_is_the_outermost(colour: str, kind: str) -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        return around(colour, lambda _: order.append(f"+{name}"), lambda _: order.append(f"-{name}"))

    Wired(colour, [named("c1"), named("c2")], [named("s1"), named("s2")]).call(kind, "a")
    assert [mark for mark in order if mark.startswith("+")] == ["+c1", "+c2", "+s1", "+s2"]
    assert order.index("-c2") < order.index("-c1")
    assert order.index("-s2") < order.index("-s1")


@colours
@kinds
def test_messages_and_metadata_can_be_replaced(colour: str, kind: str) -> None:
    def asking(request: Request) -> None:
        request.context.request_headers["x-asked"] = "yes"
        if request.messages is None:
            request.message = ask("changed")
        elif colour == "sync":
            request.messages = [ask("changed")]
        else:
            request.messages = _async_list([ask("changed")])

    def answering(response: Response) -> None:
        response.headers["x-answered"] = "yes"
        response.trailers["x-ended"] = "yes"

    seen: list[str | None] = []
    wired = Wired(
        colour,
        [around(colour, asking)],
        [around(colour, lambda request: seen.append(request.context.request_headers.get("x-asked")), answering)],
    )
    texts, output = wired.call(kind, "original")
    assert "".join(texts) == "changed"
    assert seen == ["yes"]
    assert output.response_headers()["x-answered"] == "yes"
    assert output.response_trailers()["x-ended"] == "yes"


async def _async_list(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@colours
@kinds
@pytest.mark.parametrize("side", ["client", "server"])
def test_an_interceptor_can_refuse(colour: str, kind: str, side: str) -> None:
    def refuse(request: Request) -> None:
        raise ConnectError(ConnectErrorCode.UNAUTHENTICATED, "who are you?")

    interceptors = [around(colour, refuse)]
    texts, output = Wired(
        colour, interceptors if side == "client" else [], interceptors if side == "server" else []
    ).call(kind, "a")
    assert texts == []
    assert output.error().code is ConnectErrorCode.UNAUTHENTICATED
    assert output.error().message == "who are you?"


@colours
@kinds
@pytest.mark.parametrize("side", ["client", "server"])
def test_what_an_interceptor_raises_is_coded(colour: str, kind: str, side: str) -> None:
    def stumble(request: Request) -> None:
        raise KeyError("a secret")

    interceptors = [around(colour, stumble)]
    _, output = Wired(colour, interceptors if side == "client" else [], interceptors if side == "server" else []).call(
        kind, "a"
    )
    if side == "client":
        assert output.error().code is ConnectErrorCode.INTERNAL
        assert isinstance(output.error().__cause__, KeyError)
    else:
        assert output.error().code is ConnectErrorCode.UNKNOWN
        assert "secret" not in str(output.error())


@colours
def test_a_client_can_try_again(colour: str) -> None:
    attempts: list[int] = []

    def flaky(request: Request) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectError(ConnectErrorCode.UNAVAILABLE, "not yet")

    def retry(request: Request, proceed: Any) -> Response:
        while True:
            try:
                response: Response = proceed(request)
                return response
            except ConnectError as error:
                if error.code is not ConnectErrorCode.UNAVAILABLE:
                    raise

    async def retry_async(request: Request, proceed: Any) -> Response:
        while True:
            try:
                response: Response = await proceed(request)
                return response
            except ConnectError as error:
                if error.code is not ConnectErrorCode.UNAVAILABLE:
                    raise

    wired = Wired(colour, [retry if colour == "sync" else retry_async], [around(colour, flaky)])
    for kind in ("unary", "client"):
        attempts.clear()
        texts, output = wired.call(kind, "a")
        assert output.error() is None
        assert texts == ["a"]
        assert len(attempts) == 3


@colours
def test_the_callers_own_mistakes_stay_as_they_are(colour: str) -> None:
    wired = Wired(colour, [around(colour)], [])
    for kind in KINDS:
        with pytest.raises(ValueError, match="content-type"):
            wired.call(kind, "a", extra_headers={"content-type": "mine"})


@colours
def test_the_context_tells_of_the_call(colour: str) -> None:
    seen: list[CallContext] = []

    def look(request: Request) -> None:
        seen.append(request.context)

    Wired(colour, [around(colour, look)], [around(colour, look)]).call("unary", "a", timeout_seconds=60)
    client, server = seen
    assert client.is_client
    assert not server.is_client
    assert client.peer.address == "http://test"
    for context in seen:
        assert context.method is UNARY
        assert 50 < (context.timeout.remaining() or 0) <= 60


def test_a_list_with_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="neither an interceptor nor Hooks"):
        wsgi_service(SERVICE, types.SimpleNamespace(**MISSING), interceptors=[3])  # type: ignore[list-item]
