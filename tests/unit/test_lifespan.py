"""Implementations that are made when an ASGI server starts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue

from connectrpc.method import Method, MethodKind, Service
from connectrpc.server import InThreads, asgi_app, asgi_service
from harness import (
    PROTO,
    SERVICE,
    STREAM_PROTO,
    UNARY,
    USUAL,
    Answer,
    Connection,
    ask,
    asked,
    call_asgi,
    part,
    reply,
    scope,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

    from connectrpc.server import ASGIApplication

OTHER = Service(
    "test.v1.Other", [Method("test.v1.Other", "Unary", MethodKind.UNARY, EnumValue, SourceContext, python_name="unary")]
)


@pytest.fixture(autouse=True, params=["bare", "plain"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with and without what makes a call take the short way."""
    if request.param == "plain":
        monkeypatch.setitem(USUAL, "connect-protocol-version", "1")
        monkeypatch.setitem(USUAL, "content-length", "1")


class Implementation:
    """Answers while it is open."""

    def __init__(self, log: list[str], name: str = "") -> None:
        self.log = log
        self.name = name
        self.open = False

    async def unary(self, request: Any) -> SourceContext:
        assert self.open
        return reply(self.name + request.msg.name)

    async def server(self, request: Any) -> AsyncIterator[SourceContext]:
        assert self.open
        yield reply(self.name + request.msg.name)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Implementation]:
        self.log.append(f"open {self.name}")
        self.open = True
        try:
            yield self
        finally:
            await asyncio.sleep(0)
            self.open = False
            self.log.append(f"closed {self.name}")


class Manager(contextlib.AbstractAsyncContextManager[Any]):
    """A context manager that is no generator."""

    def __init__(self, log: list[str]) -> None:
        self._implementation = Implementation(log)

    async def __aenter__(self) -> Any:
        self._context: Any = self._implementation.opened()
        return await self._context.__aenter__()

    async def __aexit__(self, *args: object) -> Any:
        return await self._context.__aexit__(*args)


def makers(log: list[str]) -> dict[str, tuple[Callable[[], Any], bool]]:
    """What can be given, and whether the app can be started again."""

    async def generator() -> AsyncIterator[Implementation]:
        async with Implementation(log).opened() as implementation:
            yield implementation

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[Implementation]:
        async with Implementation(log).opened() as implementation:
            yield implementation

    async def named(name: str) -> AsyncIterator[Implementation]:
        async with Implementation(log, name).opened() as implementation:
            yield implementation

    class Factory:
        def make(self) -> Any:
            return Implementation(log).opened()

    return {
        "a generator function": (lambda: generator, True),
        "a manager function": (lambda: manager, True),
        "a method": (lambda: Factory().make, True),
        "a partial": (lambda: functools.partial(named, ""), True),
        "a function that gives a manager": (lambda: lambda: Manager(log), True),
        "a generator": (generator, False),
        "a manager": (manager, False),
        "a manager of a class": (lambda: Manager(log), True),
    }


def one_call(app: ASGIApplication, path: str = UNARY.path) -> Any:
    """A call in the running loop."""

    async def call() -> Answer:
        connection = Connection([part(ask("a").SerializeToString())])
        await app(scope(path, PROTO), connection.receive, connection.send)
        return connection.answer()

    return call()


class Server:
    """Starts an app, and stops it."""

    def __init__(self, app: ASGIApplication) -> None:
        self._app = app
        self._events: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.sent: list[MutableMapping[str, Any]] = []
        self._changed = asyncio.Event()

    async def start(self) -> str:
        made = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self.task = asyncio.ensure_future(self._app(made, self._events.get, self._send))
        return await self._do("startup")

    async def stop(self) -> str:
        told = await self._do("shutdown")
        await asyncio.wait_for(self.task, 2)
        return told

    async def _do(self, step: str) -> str:
        self._changed.clear()
        self._events.put_nowait({"type": f"lifespan.{step}"})
        await asyncio.wait_for(self._changed.wait(), 2)
        kind: str = self.sent[-1]["type"]
        assert kind.startswith(f"lifespan.{step}.")
        return kind.rpartition(".")[2]

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        self.sent.append(event)
        self._changed.set()


@pytest.mark.parametrize("name", makers([]))
def test_what_can_be_given(name: str) -> None:
    log: list[str] = []
    make, again = makers(log)[name]
    app = asgi_service(SERVICE, make())
    assert log == [], "nothing is made before the server starts"

    async def main() -> None:
        for _ in range(1 + again):
            assert (await one_call(app)).code() == "unavailable"
            server = Server(app)
            assert await server.start() == "complete"
            assert log == ["open "]
            assert (await one_call(app)).message() == reply("a")
            assert (await one_call(app)).message() == reply("a")
            assert await server.stop() == "complete"
            assert log == ["open ", "closed "]
            assert (await one_call(app)).code() == "unavailable"
            log.clear()

    asyncio.run(main())


def test_an_app_that_nobody_has_started(caplog: pytest.LogCaptureFixture) -> None:
    """As where a framework mounts it, and does not pass its lifespan on."""
    app = asgi_service(SERVICE, Implementation([]).opened)
    for method in SERVICE.methods:
        if method.kind is MethodKind.UNARY:
            assert call_asgi(app, scope(method.path), ask("a").SerializeToString()).code() == "unavailable"
        else:
            found = call_asgi(app, scope(method.path, STREAM_PROTO), asked(ask("a")))
            assert found.failure() == "unavailable"
    assert "lifespan" in caplog.text
    assert not [record for record in caplog.records if record.exc_info], "it is no failure with a traceback"


def test_a_framework_enters_it() -> None:
    log: list[str] = []
    app = asgi_service(SERVICE, Implementation(log).opened)

    async def main() -> None:
        async with app.lifespan():
            assert (await one_call(app)).message() == reply("a")
        assert (await one_call(app)).code() == "unavailable"
        with pytest.raises(ZeroDivisionError):
            async with app.lifespan():
                raise ZeroDivisionError
        assert log == ["open ", "closed "] * 2

    asyncio.run(main())


def test_entered_twice(caplog: pytest.LogCaptureFixture) -> None:
    """As where the server runs it and a framework too. Nothing is made a second time, and the first goes on."""
    log: list[str] = []
    app = asgi_service(SERVICE, Implementation(log).opened)

    async def main() -> None:
        async with app.lifespan():
            with pytest.raises(RuntimeError, match="entered already"):
                async with app.lifespan():
                    pass
            assert await Server(app).start() == "failed"
            assert (await one_call(app)).message() == reply("a")
        assert log == ["open ", "closed "]
        assert await Server(app).start() == "complete"

    asyncio.run(main())
    assert "entered already" in caplog.text


def test_entered_twice_for_nothing() -> None:
    """Where nothing is made in it, it may be."""
    implementation = Implementation([])
    implementation.open = True
    app = asgi_service(SERVICE, implementation)

    async def main() -> None:
        async with app.lifespan():
            async with app.lifespan():
                pass
            assert (await one_call(app)).message() == reply("a")

    asyncio.run(main())


def test_several_services() -> None:
    """They are closed in the opposite order; those that need no lifespan are there all the time."""
    log: list[str] = []
    plain = Implementation(log, "plain ")
    plain.open = True
    app = asgi_app(
        asgi_service(SERVICE, Implementation(log, "one ").opened),
        asgi_service(SERVICE, Implementation(log, "other ").opened, prefix="/v2"),
        asgi_service(OTHER, plain),
    )

    async def main() -> None:
        other = "/test.v1.Other/Unary"
        assert (await one_call(app, other)).message() == reply("plain a")
        server = Server(app)
        assert await server.start() == "complete"
        assert (await one_call(app)).message() == reply("one a")
        assert (await one_call(app, "/v2" + UNARY.path)).message() == reply("other a")
        assert (await one_call(app, other)).message() == reply("plain a")
        assert await server.stop() == "complete"
        assert (await one_call(app)).code() == "unavailable"
        assert (await one_call(app, other)).message() == reply("plain a")
        assert log == ["open one ", "open other ", "closed other ", "closed one "]

    asyncio.run(main())


def test_a_start_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What had been opened is closed, the server is told without the text, and the log has it."""
    log: list[str] = []

    async def failing() -> AsyncIterator[Any]:
        raise RuntimeError("secret")
        yield

    app = asgi_app(
        asgi_service(SERVICE, Implementation(log).opened),
        asgi_service(SERVICE, failing, prefix="/v2"),
    )

    async def main() -> None:
        server = Server(app)
        assert await server.start() == "failed"
        await asyncio.wait_for(server.task, 2)
        assert "secret" not in server.sent[-1].get("message", "")
        assert len(server.sent) == 1
        assert (await one_call(app)).code() == "unavailable"

    asyncio.run(main())
    assert log == ["open ", "closed "]
    assert "secret" in caplog.text


def test_a_stop_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncIterator[Any]:
        implementation = Implementation([])
        implementation.open = True
        yield implementation
        raise RuntimeError("secret")

    app = asgi_service(SERVICE, failing)

    async def main() -> None:
        server = Server(app)
        assert await server.start() == "complete"
        assert await server.stop() == "failed"
        assert "secret" not in server.sent[-1].get("message", "")
        assert (await one_call(app)).code() == "unavailable"

    asyncio.run(main())
    assert "secret" in caplog.text


@pytest.mark.parametrize("given", [lambda: 5, lambda: Implementation([]), lambda: None])
def test_functions_that_give_something_else(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        server = Server(asgi_service(SERVICE, given))
        assert await server.start() == "failed"

    asyncio.run(main())
    assert "neither an async context manager" in caplog.text


def test_a_generator_that_gives_no_instance(caplog: pytest.LogCaptureFixture) -> None:
    async def generator() -> AsyncIterator[Any]:
        yield Implementation

    async def main() -> None:
        assert await Server(asgi_service(SERVICE, generator)).start() == "failed"

    asyncio.run(main())
    assert "is a class" in caplog.text


def test_a_server_that_cancels_its_lifespan() -> None:
    """Some do at the end. What was opened is closed all the same."""
    log: list[str] = []
    app = asgi_service(SERVICE, Implementation(log).opened)

    async def main() -> None:
        server = Server(app)
        assert await server.start() == "complete"
        server.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server.task
        assert (await one_call(app)).code() == "unavailable"

    asyncio.run(main())
    assert log == ["open ", "closed "]


def test_calls_that_are_under_way_go_on() -> None:
    """A call that has begun keeps its handler, also when the app stops meanwhile: servers wait for it first."""
    begun = asyncio.Event

    async def main() -> None:
        entered, free = begun(), begun()

        class Slow:
            async def unary(self, request: Any) -> SourceContext:
                entered.set()
                await free.wait()
                return reply("done")

        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[Any]:
            yield Slow()

        app = asgi_service(SERVICE, opened)
        server = Server(app)
        await server.start()
        call = asyncio.ensure_future(one_call(app))
        await asyncio.wait_for(entered.wait(), 2)
        await server.stop()
        free.set()
        assert (await asyncio.wait_for(call, 2)).message() == reply("done")

    asyncio.run(main())


def test_threads_in_a_lifespan() -> None:
    async def generator() -> AsyncIterator[Any]:
        yield InThreads(types.SimpleNamespace(unary=lambda request: reply("from a thread")))

    app = asgi_service(SERVICE, generator)

    async def main() -> None:
        async with app.lifespan():
            assert (await one_call(app)).message() == reply("from a thread")

    asyncio.run(main())


def test_an_implementation_without_a_lifespan() -> None:
    """Servers ask all the same."""
    implementation = Implementation([])
    implementation.open = True
    app = asgi_service(SERVICE, implementation)

    async def main() -> None:
        server = Server(app)
        assert await server.start() == "complete"
        assert (await one_call(app)).message() == reply("a")
        assert await server.stop() == "complete"
        assert (await one_call(app)).message() == reply("a")

    asyncio.run(main())
