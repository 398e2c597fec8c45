"""Health checking under both kinds of application: what callers are told, and what watchers cost."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc.health import HEALTH_SERVICE_PATH_PREFIX, Health, ServingStatus, asgi_health, wsgi_health
from connectrpc.health._messages import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from connectrpc.server import asgi_app, wsgi_app
from harness import (
    DISCONNECT,
    JSON,
    PROTO,
    STREAM_PROTO,
    UNARY,
    Answer,
    Connection,
    Starter,
    asgi,
    call_asgi,
    call_wsgi,
    environ,
    frame,
    frames,
    part,
    reply,
    scope,
    serve,
    wsgi,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from harness import Event

SERVING, NOT_SERVING = ServingStatus.SERVING, ServingStatus.NOT_SERVING
UNKNOWN, SERVICE_UNKNOWN = ServingStatus.UNKNOWN, ServingStatus.SERVICE_UNKNOWN

NAME = "greet.v1.GreetService"
CHECK, LIST, WATCH = (f"{HEALTH_SERVICE_PATH_PREFIX}/{name}" for name in ("Check", "List", "Watch"))
BOTH = pytest.mark.parametrize("kind", ["wsgi", "asgi"])
PATIENCE = 10.0


def question(service: str) -> bytes:
    body: bytes = HealthCheckRequest(service=service).SerializeToString()
    return body


def call(kind: str, health: Health, path: str, body: bytes, content_type: str = PROTO) -> Answer:
    """An answer of an app that has another service too."""
    if kind == "wsgi":
        app = wsgi_app(wsgi(unary=lambda _: reply()), wsgi_health(health))
        return call_wsgi(app, environ(path, body, content_type))
    return call_asgi(asgi_app(asgi(unary=lambda _: reply()), asgi_health(health)), scope(path, content_type), body)


def checked(kind: str, health: Health, service: str) -> ServingStatus | str:
    """The status that ``Check`` tells, or the code that it fails with."""
    answer = call(kind, health, CHECK, question(service))
    if answer.status != 200:
        return answer.code()
    return ServingStatus(HealthCheckResponse.FromString(answer.body).status)


def listed(kind: str, health: Health) -> dict[str, ServingStatus]:
    answer = call(kind, health, LIST, HealthListRequest().SerializeToString())
    statuses = HealthListResponse.FromString(answer.body).statuses
    return {service: ServingStatus(response.status) for service, response in statuses.items()}


def statuses_in(body: bytes) -> list[ServingStatus]:
    """The statuses in a streamed answer, without its end."""
    messages = [payload for flags, payload in frames(body) if not flags]
    return [ServingStatus(HealthCheckResponse.FromString(payload).status) for payload in messages]


# Check and List


@BOTH
def test_check(kind: str) -> None:
    health = Health()
    assert checked(kind, health, "") is SERVING
    assert checked(kind, health, NAME) == "not_found"
    for status in (NOT_SERVING, UNKNOWN, SERVING):
        health.set(NAME, status)
        assert checked(kind, health, NAME) is status
    assert checked(kind, health, "") is SERVING
    health.set("", NOT_SERVING)
    assert (checked(kind, health, ""), checked(kind, health, NAME)) == (NOT_SERVING, SERVING)
    health.remove(NAME)
    health.remove("never.heard.Of")
    assert checked(kind, health, NAME) == "not_found"


@BOTH
def test_an_unknown_service_is_named(kind: str) -> None:
    assert NAME in call(kind, Health(), CHECK, question(NAME)).error()["message"]


@BOTH
def test_curl(kind: str) -> None:
    assert call(kind, Health(), CHECK, b"{}", JSON).body == b'{"status":"SERVING"}'
    assert call(kind, Health(), LIST, b"{}", JSON).body == b'{"statuses":{"":{"status":"SERVING"}}}'


@BOTH
def test_it_stands_beside_other_services(kind: str) -> None:
    assert call(kind, Health(), UNARY.path, b"").message() == reply()


@BOTH
def test_names_that_are_too_long_to_repeat(kind: str) -> None:
    answer = call(kind, Health(), CHECK, b'{"service":"' + b"x" * 1_000_000 + b'"}', JSON)
    assert answer.code() == "not_found"
    assert len(answer.body) < 300


@BOTH
def test_list(kind: str) -> None:
    health = Health({NAME: NOT_SERVING, "other.Service": SERVING})
    assert listed(kind, health) == {"": SERVING, NAME: NOT_SERVING, "other.Service": SERVING}


@BOTH
def test_shutting_down(kind: str) -> None:
    health = Health({NAME: UNKNOWN})
    health.shutdown()
    assert checked(kind, health, "") is checked(kind, health, NAME) is NOT_SERVING
    assert checked(kind, health, "other.Service") == "not_found"
    health.set("other.Service", SERVING)
    assert listed(kind, health) == {"": NOT_SERVING, NAME: NOT_SERVING, "other.Service": NOT_SERVING}
    health.resume()
    assert listed(kind, health) == {"": SERVING, NAME: UNKNOWN, "other.Service": SERVING}


def test_what_can_be_set() -> None:
    assert Health({"": NOT_SERVING}).get() is NOT_SERVING
    health = Health()
    numbers: Any = 2  # as grpcio has it
    health.set(NAME, numbers)
    assert health.get(NAME) is NOT_SERVING
    for refused, said in ((SERVICE_UNKNOWN, "remove"), (7, "7")):
        with pytest.raises(ValueError, match=said):
            health.set(NAME, refused)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            Health({NAME: refused})  # type: ignore[dict-item]
    assert health.get(NAME) is NOT_SERVING


def test_statuses_are_a_copy() -> None:
    health = Health()
    health.statuses()[NAME] = SERVING
    assert health.get(NAME) is None


@pytest.mark.parametrize("bounds", [{"max_watchers": -1}, {"repeat_seconds": 0}, {"repeat_seconds": float("nan")}])
def test_bounds_that_make_no_sense(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bounds))):
        wsgi_health(Health(), **bounds)


@BOTH
def test_options(kind: str) -> None:
    make: Any = wsgi_health if kind == "wsgi" else asgi_health
    assert {method.path for method in make(Health(), read_max_bytes=10).methods} == {CHECK, LIST, WATCH}
    with pytest.raises(TypeError, match="prefixx"):
        make(Health(), prefixx="/api")


# Watch, in threads


class Watcher:
    """A ``Watch`` call to a WSGI app, read as a server would, but only when asked to."""

    def __init__(self, app: Any, service: str = NAME, **headers: str) -> None:
        made = environ(WATCH, frame(question(service)), STREAM_PROTO, headers)
        self.body = app(made, Starter())
        self._parts: Iterator[bytes] = filter(None, self.body)

    def status(self) -> ServingStatus:
        """The next status. Waits until there is one."""
        (status,) = statuses_in(next(self._parts))
        return status

    def rest(self) -> bytes:
        """All that comes until the call is over."""
        return b"".join(self._parts)

    def close(self) -> None:
        """What a server does when the client has left."""
        self.body.close()


def test_watching_in_a_thread() -> None:
    health = Health()
    watcher = Watcher(wsgi_health(health, repeat_seconds=None))
    assert watcher.status() is SERVICE_UNKNOWN
    health.set(NAME, SERVING)
    assert watcher.status() is SERVING
    health.set(NAME, SERVING)
    health.set("", NOT_SERVING)
    health.set("other.Service", NOT_SERVING)
    health.shutdown()
    assert watcher.status() is NOT_SERVING, "what was no change is not sent"
    health.set(NAME, UNKNOWN)
    health.resume()
    assert watcher.status() is UNKNOWN
    health.remove(NAME)
    assert watcher.status() is SERVICE_UNKNOWN
    watcher.close()
    assert not health._watchers


def test_a_change_wakes_a_thread_that_waits() -> None:
    health = Health()
    watcher = Watcher(wsgi_health(health, repeat_seconds=None), "")
    assert watcher.status() is SERVING
    found: list[ServingStatus] = []
    thread = threading.Thread(target=lambda: found.append(watcher.status()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert not found
    health.set("", NOT_SERVING)
    thread.join(PATIENCE)
    assert found == [NOT_SERVING]
    watcher.close()


def test_only_changes_are_sent() -> None:
    health = Health()
    app = wsgi_health(health, repeat_seconds=None)
    watcher = Watcher(app, "", **{"connect-timeout-ms": "500"})
    assert watcher.status() is SERVING
    for _ in range(3):
        health.set("", SERVING)
        health.set(NAME, NOT_SERVING)
    body = watcher.rest()
    assert not statuses_in(body)
    assert b"deadline_exceeded" in body


def test_a_slow_watcher_is_told_the_latest() -> None:
    health = Health()
    watcher = Watcher(wsgi_health(health, repeat_seconds=None), "")
    assert watcher.status() is SERVING
    for status in (NOT_SERVING, SERVING, NOT_SERVING, UNKNOWN):
        health.set("", status)
    assert watcher.status() is UNKNOWN
    watcher.close()


def test_an_unchanged_status_is_repeated() -> None:
    """So that a server finds out that the client has left."""
    watcher = Watcher(wsgi_health(Health(), repeat_seconds=0.01), "")
    assert [watcher.status() for _ in range(3)] == [SERVING] * 3
    watcher.close()


@pytest.mark.parametrize("repeat", [None, 30.0])
def test_a_watch_in_a_thread_ends_at_its_deadline(repeat: float | None) -> None:
    health = Health()
    watcher = Watcher(wsgi_health(health, repeat_seconds=repeat), "", **{"connect-timeout-ms": "200"})
    started = time.monotonic()
    body = watcher.rest()
    assert 0.15 < time.monotonic() - started < PATIENCE
    assert statuses_in(body) == [SERVING]
    assert b"deadline_exceeded" in body
    assert not health._watchers


def test_a_deadline_in_a_distant_future() -> None:
    health = Health()
    app = wsgi_health(health, repeat_seconds=None)
    watcher = Watcher(app, "", **{"connect-timeout-ms": "9999999999"})
    assert watcher.status() is SERVING
    health.set("", NOT_SERVING)
    assert watcher.status() is NOT_SERVING
    watcher.close()


def test_a_limit_of_the_service_ends_a_watch() -> None:
    assert b"deadline_exceeded" in Watcher(wsgi_health(Health(), max_timeout_seconds=0.05), "").rest()


def test_watchers_in_threads_are_few() -> None:
    app = wsgi_health(Health(), max_watchers=2)
    first, second = Watcher(app, ""), Watcher(app, "")
    assert first.status() is second.status() is SERVING
    refusal = Watcher(app, "").rest()
    assert not statuses_in(refusal)
    assert b"resource_exhausted" in refusal
    assert call_wsgi(app, environ(CHECK, question(""))).status == 200
    first.close()
    third = Watcher(app, "")
    assert third.status() is SERVING
    second.close()
    third.close()


def test_who_leaves_before_the_first_status_takes_no_place() -> None:
    health = Health()
    app = wsgi_health(health, max_watchers=1)
    for _ in range(3):
        Watcher(app, "").close()
    watcher = Watcher(app, "")
    assert watcher.status() is SERVING
    watcher.close()
    assert not health._watchers


# Watch, in event loops


class AsyncWatcher:
    """A ``Watch`` call to an ASGI app, by a client that leaves when it is told to."""

    def __init__(self, app: Any, service: str = NAME, **headers: str) -> None:
        self._statuses: asyncio.Queue[ServingStatus] = asyncio.Queue()
        self._leaves = asyncio.Event()
        self._asked = False
        made = scope(WATCH, STREAM_PROTO, headers.items())
        self._question = part(frame(question(service)))
        self.connection = Connection([], self._take)
        self.task = asyncio.ensure_future(app(made, self._receive, self.connection.send))

    async def _receive(self) -> Event:
        if not self._asked:
            self._asked = True
            return self._question
        await self._leaves.wait()
        return DISCONNECT

    async def _take(self, event: Event) -> None:
        for status in statuses_in(event.get("body", b"")):
            self._statuses.put_nowait(status)

    async def status(self) -> ServingStatus:
        """The next status."""
        return await asyncio.wait_for(self._statuses.get(), PATIENCE)

    async def leave(self) -> None:
        """Leave, and wait until the app is done."""
        self._leaves.set()
        await asyncio.wait_for(self.task, PATIENCE)
        assert self._statuses.empty()


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_watching_in_a_loop() -> None:
    async def main() -> None:
        health = Health()
        watcher = AsyncWatcher(asgi_health(health))
        assert await watcher.status() is SERVICE_UNKNOWN
        health.set(NAME, SERVING)
        assert await watcher.status() is SERVING
        health.set(NAME, SERVING)
        await asyncio.sleep(0.05)  # it has its turn, and does not take it
        health.set("", NOT_SERVING)
        health.set("other.Service", NOT_SERVING)
        in_thread(health.shutdown)
        assert await watcher.status() is NOT_SERVING, "what was no change is not sent"
        in_thread(lambda: health.set(NAME, UNKNOWN))
        in_thread(health.resume)
        assert await watcher.status() is UNKNOWN
        in_thread(lambda: health.remove(NAME))
        assert await watcher.status() is SERVICE_UNKNOWN
        await watcher.leave()
        assert not health._watchers

    asyncio.run(main())


def test_what_changes_while_a_status_is_sent_is_not_lost() -> None:
    async def main() -> None:
        health = Health()
        sent: list[ServingStatus] = []

        async def on_send(event: Event) -> None:
            for status in statuses_in(event.get("body", b"") if event.get("more_body") else b""):
                sent.append(status)
                if status is SERVING:
                    health.set("", UNKNOWN)
                    await asyncio.sleep(0.01)
                    in_thread(lambda: health.set("", NOT_SERVING))
                    await asyncio.sleep(0.01)

        connection = Connection([part(frame(question("")))], on_send)
        made = scope(WATCH, STREAM_PROTO, [("connect-timeout-ms", "500")])
        await serve(asgi_health(health), made, connection, PATIENCE)
        assert sent == [SERVING, NOT_SERVING], "the latest is"

    asyncio.run(main())


def test_a_watch_in_a_loop_ends_at_its_deadline() -> None:
    async def main() -> None:
        health = Health()
        connection = Connection([part(frame(question("")))])
        made = scope(WATCH, STREAM_PROTO, [("connect-timeout-ms", "200")])
        await serve(asgi_health(health), made, connection, PATIENCE)
        answer = connection.answer()
        assert statuses_in(answer.body) == [SERVING]
        assert b"deadline_exceeded" in answer.body
        assert not health._watchers

    asyncio.run(main())


def test_a_thousand_watchers_take_no_threads() -> None:
    async def main() -> None:
        health = Health()
        app = asgi_health(health)
        threads = set(threading.enumerate())
        watchers = [AsyncWatcher(app, NAME if number % 2 else "") for number in range(1000)]
        first = [await watcher.status() for watcher in watchers]
        assert first == [SERVING, SERVICE_UNKNOWN] * 500
        assert set(threading.enumerate()) <= threads
        in_thread(lambda: health.set(NAME, NOT_SERVING))
        assert {await watcher.status() for watcher in watchers[1::2]} == {NOT_SERVING}
        health.shutdown()
        assert {await watcher.status() for watcher in watchers[::2]} == {NOT_SERVING}
        for watcher in watchers:
            await watcher.leave()
        assert not health._watchers

    asyncio.run(main())


def test_each_watcher_is_woken_in_its_own_loop() -> None:
    health = Health()
    app = asgi_health(health)
    begun = threading.Barrier(3, timeout=PATIENCE)
    found: list[tuple[ServingStatus, ServingStatus]] = []

    async def main() -> None:
        watcher = AsyncWatcher(app, "")
        first = await watcher.status()
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        found.append((first, await watcher.status()))
        await watcher.leave()

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.wait()
    time.sleep(0.2)  # until both loops sleep, from which only they themselves can be woken
    changed_at = time.monotonic()
    health.set("", NOT_SERVING)
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [(SERVING, NOT_SERVING)] * 2
    assert time.monotonic() - changed_at < PATIENCE / 2, "something else has woken them"


def test_a_loop_that_was_closed_under_its_watchers() -> None:
    """As a server does that is in a hurry. Whoever sets a status has nothing to do with it."""
    from connectrpc.health.asgi import _Service

    class Request:
        msg = HealthCheckRequest()

    health = Health()
    request: Any = Request()
    loop = asyncio.new_event_loop()
    watching: AsyncIterator[Any] = _Service(health).watch(request)
    assert loop.run_until_complete(watching.__anext__()).status == SERVING
    loop.close()
    health.set("", NOT_SERVING)
    assert health.get() is NOT_SERVING


def test_both_kinds_share_one_health() -> None:
    async def main() -> None:
        health = Health()
        waiting = Watcher(wsgi_health(health, repeat_seconds=None), "")
        watcher = AsyncWatcher(asgi_health(health), "")
        assert (waiting.status(), await watcher.status()) == (SERVING, SERVING)
        health.set("", NOT_SERVING)
        assert (waiting.status(), await watcher.status()) == (NOT_SERVING, NOT_SERVING)
        waiting.close()
        await watcher.leave()

    asyncio.run(main())


def test_statuses_set_in_many_threads_at_once() -> None:
    """Nothing is lost, nothing breaks, and a watcher ends with the last status."""
    health = Health()
    app = wsgi_health(health, max_watchers=100, repeat_seconds=None)

    def work(number: int) -> None:
        for _ in range(200):
            health.set(f"service{number}", SERVING)
            Watcher(app, f"service{number}").close()
            with health.watching("", lambda: None):
                health.statuses()
        health.set(f"service{number}", NOT_SERVING)

    watcher = Watcher(app, "service0")
    assert watcher.status() is SERVICE_UNKNOWN
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert watcher.status() is NOT_SERVING
    watcher.close()
    assert health.statuses() == {"": SERVING, **{f"service{number}": NOT_SERVING for number in range(4)}}
    assert not health._watchers


# Descriptors


def test_the_proto_is_that_of_grpcio() -> None:
    health_pb2: Any = pytest.importorskip(
        "grpc_health.v1.health_pb2", reason="only there on the Python that development runs on"
    )
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    theirs, ours = FileDescriptorProto(), FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(theirs)
    HealthCheckRequest.DESCRIPTOR.file.CopyToProto(ours)
    theirs.ClearField("options")  # what other languages' code generators want to know
    theirs.name = "grpc/health/v1/health.proto"
    assert ours == theirs
