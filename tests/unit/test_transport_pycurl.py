"""libcurl as a transport, with handles that are none. Real ones, and sockets, are for the integration tests."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from curls import FAILURES, HEADERS, KIB, PAUSE, URL, VERSIONS, Curl, assert_options, assert_versions, pycurl

from connectrpc._core.http import HTTPRequest
from connectrpc.errors import ConnectError
from connectrpc.transports.pycurl import AsyncPycurlTransport
from connectrpc.transports.pycurl import _aio as module
from harness import code_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

REAL_CURL, REAL_MULTI = pycurl.Curl, pycurl.AsyncCurlMulti


class Multi:
    """An ``AsyncCurlMulti`` that drives nothing."""

    def __init__(self) -> None:
        self.closed = False
        self.added: list[Curl] = []
        self.futures: dict[Curl, asyncio.Future[Curl]] = {}

    def add_handle(self, curl: Curl) -> asyncio.Future[Curl]:
        assert curl not in self.futures
        self.added.append(curl)
        self.futures[curl] = asyncio.get_running_loop().create_future()
        return self.futures[curl]

    def remove_handle(self, curl: Curl) -> None:
        self.futures.pop(curl).cancel()

    def finish(self, curl: Curl, error: Exception | None = None) -> None:
        future = self.futures.pop(curl)
        if error is None:
            future.set_result(curl)
        else:
            future.set_exception(error)

    async def aclose(self) -> None:
        self.closed = True
        for curl in list(self.futures):
            self.remove_handle(curl)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Curl]:
    """The handles that have been made."""
    handles: list[Curl] = []

    def make() -> Curl:
        handles.append(Curl())
        return handles[-1]

    monkeypatch.setattr(pycurl, "Curl", make)
    monkeypatch.setattr(pycurl, "AsyncCurlMulti", Multi)
    return handles


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **options), 10))

    return run


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Call:
    """A request under way, and what libcurl has of it."""

    def __init__(self, transport: Any, body: Any = b"request", method: str = "POST") -> None:
        self.task = asyncio.ensure_future(transport.send(HTTPRequest(method, URL, HEADERS), body))
        self.transport = transport
        self.multi: Multi
        self.curl: Curl

    async def begun(self) -> Call:
        await turn()
        self.multi = self.transport._multi
        self.curl = self.multi.added[-1]
        return self

    async def answered(self, *headers: str) -> Any:
        await self.begun()
        self.curl.head("HTTP/1.1 200 OK", *headers)
        return await self.task

    def finish(self, error: Exception | None = None) -> None:
        self.multi.finish(self.curl, error)


def connect(**options: Any) -> AsyncPycurlTransport:
    return AsyncPycurlTransport(Multi(), **options)


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


# What libcurl is told.


@in_loop
async def test_a_handle() -> None:
    call = await Call(connect(connect_timeout=1.5)).begun()
    options = call.curl.options
    assert_options(options)
    call.task.cancel()


@pytest.mark.parametrize(
    ("body", "length"), [(b"request", 7), (b"", 0), (None, 0), (parts(b"request"), -1)], ids=["7", "0", "none", "-1"]
)
@in_loop
async def test_bodies_of_requests(body: Any, length: int) -> None:
    call = await Call(connect(), body).begun()
    assert call.curl.options[pycurl.POSTFIELDSIZE_LARGE] == length
    assert call.curl.read() == (b"request" if length else b"")
    assert call.curl.read() == b""
    call.task.cancel()


@in_loop
async def test_a_request_by_get() -> None:
    call = await Call(connect(), None, "GET").begun()
    assert call.curl.options[pycurl.HTTPGET] == 1
    assert pycurl.POST not in call.curl.options
    call.task.cancel()


@pytest.mark.parametrize(
    ("version", "number", "has_trailers"),
    VERSIONS,
)
@in_loop
async def test_versions(version: Any, number: int, has_trailers: bool) -> None:
    transport = connect(http_version=version)
    call = await Call(transport).begun()
    assert call.curl.options[pycurl.HTTP_VERSION] == number
    assert transport.has_trailers is has_trailers
    call.task.cancel()


def test_versions_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_versions(AsyncPycurlTransport, monkeypatch)


@in_loop
async def test_what_the_user_sets() -> None:
    """Once for each handle, and it stays, but for what the transport could not do without."""
    configured: list[Any] = []

    def configure(curl: Any) -> None:
        configured.append(curl)
        curl.setopt(pycurl.PROXY, "http://proxy")
        curl.setopt(pycurl.CAINFO, "theirs")
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.HTTP_VERSION, 0)

    transport = connect(configure=configure, http_version="1.1")
    for _ in range(2):
        call = Call(transport)
        response = await call.answered()
        call.finish()
        await response.read(None)
        await turn()
    options = call.curl.options
    assert configured == [call.curl]
    assert (options[pycurl.PROXY], options[pycurl.CAINFO], options[pycurl.TCP_KEEPALIVE]) == (
        "http://proxy",
        "theirs",
        1,
    )
    assert options[pycurl.HTTP_VERSION] == pycurl.CURL_HTTP_VERSION_1_1


@pytest.mark.parametrize("where", ["file", "beside", "nowhere"])
def test_the_certificates_that_python_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str) -> None:
    """Never as a folder: that would be trusted beside what a user names."""
    together = tmp_path / "ca-certificates.crt"
    if where == "beside":
        together.touch()
    paths = SimpleNamespace(cafile="file" if where == "file" else None, capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    expected = {"file": "file", "beside": str(together), "nowhere": None}[where]
    options = connect()._handles.new().options
    assert options.get(pycurl.CAINFO) == expected
    assert pycurl.CAPATH not in options


# Answers.


@in_loop
async def test_a_head_and_interim_ones() -> None:
    call = await Call(connect()).begun()
    call.curl.head("HTTP/1.1 103 Early Hints", "link: x")
    call.curl.head("HTTP/1.1 100 Continue")
    await turn()
    assert not call.task.done()
    call.curl.head("HTTP/1.1 404 ", "X-One:  1 ", "x-many: 1", "x-many: 2", "x-colon: a:b", "x-empty:", "x-odd: \xe9")
    response = await call.task
    assert response.status == 404
    assert list(response.headers.items()) == [
        ("X-One", "1"),
        ("x-many", "1"),
        ("x-many", "2"),
        ("x-colon", "a:b"),
        ("x-empty", ""),
        ("x-odd", "\xe9"),
    ]
    assert response.headers.get("x-one") == "1"
    response.close()


@in_loop
async def test_a_status_with_something_behind_it() -> None:
    call = await Call(connect()).begun()
    call.curl.head("HTTP/1.1 100Continue")
    call.curl.head("HTTP/1.1 404Not Found", "x-a: 1")
    response = await call.task
    assert (response.status, response.headers["x-a"]) == (404, "1")
    response.close()


@pytest.mark.parametrize(("version", "value"), [("HTTP/1.1", "x"), ("HTTP/2", " x ")])
@in_loop
async def test_white_space_around_values(version: str, value: str) -> None:
    """Over HTTP/2 it is grpcio's, in the messages of errors."""
    call = await Call(connect()).begun()
    call.curl.head(f"{version} 200 ", "x-head:  x ")
    response = await call.task
    call.curl.trailers("x-tail:  x ")
    call.finish()
    await response.read(None)
    assert list(response.headers.items()) == [("x-head", value)]
    assert list(response.trailers.items()) == [("x-tail", value)]


@pytest.mark.parametrize("trailers", [["Grpc-Status: 0", "x-two: 1", "x-two: 2"], []])
@in_loop
async def test_chunks_and_trailers(trailers: list[str]) -> None:
    call = Call(connect())
    response: Any = await call.answered()
    assert response.uploaded
    call.curl.write(b"one")
    call.curl.write(b"two")
    assert await response.read_chunk() == b"onetwo", "what there is"
    reading = asyncio.ensure_future(response.read_chunk())
    await turn()
    call.curl.write(b"six")
    assert await reading == b"six"
    if trailers:
        call.curl.trailers(*trailers)
    early = response.trailers
    assert early is None
    call.finish()
    assert await response.read_chunk() == b""
    if trailers:
        assert list(response.trailers.items()) == [("Grpc-Status", "0"), ("x-two", "1"), ("x-two", "2")]
    else:
        assert response.trailers is None
    response.close()
    response.close()


@pytest.mark.parametrize("limit", [None, 6, 7, 100])
@in_loop
async def test_a_whole_body(limit: int | None) -> None:
    call = Call(connect())
    response = await call.answered()
    call.curl.write(b"one")
    reading = asyncio.ensure_future(response.read(limit))
    await turn()
    call.curl.write(b"two")
    await turn()
    assert not reading.done(), "it may go on"
    call.finish()
    assert await reading == b"onetwo"


@pytest.mark.parametrize("limit", [0, 1, 5])
@in_loop
async def test_a_body_is_cut_off_beyond_the_limit(limit: int) -> None:
    call = Call(connect())
    response = await call.answered()
    call.curl.write(b"one")
    call.curl.write(b"two")
    assert await response.read(limit) == b"onetwo"
    assert not call.multi.futures, "libcurl has been made to leave it"


@in_loop
async def test_a_large_body_is_read_without_a_pause() -> None:
    call = Call(connect())
    response = await call.answered()
    reading = asyncio.ensure_future(response.read(10_000_000))
    await turn()
    for _ in range(100):
        assert call.curl.write(bytes(16 * KIB)) is None
    call.finish()
    assert len(await reading) == 100 * 16 * KIB


@in_loop
async def test_nobody_reads() -> None:
    """64 KiB are taken, and the rest when they have been read."""
    call = Call(connect())
    response = await call.answered()
    for _ in range(4):
        assert call.curl.write(bytes(16 * KIB)) is None
    assert call.curl.write(b"x") == pycurl.WRITEFUNC_PAUSE
    assert call.curl.paused == []
    assert len(await response.read_chunk()) == 64 * KIB
    assert call.curl.paused == [0]
    assert call.curl.write(b"x") is None
    assert await response.read_chunk() == b"x"
    assert call.curl.paused == [0], "once"
    response.close()


@in_loop
async def test_an_answer_of_any_size_may_be_read_after_a_pause() -> None:
    call = Call(connect())
    response = await call.answered()
    call.curl.write(bytes(64 * KIB))
    assert call.curl.write(b"x") == pycurl.WRITEFUNC_PAUSE
    reading = asyncio.ensure_future(response.read(100 * KIB))
    await turn()
    assert call.curl.paused == [0]
    assert call.curl.write(b"x") is None
    call.finish()
    assert len(await reading) == 64 * KIB + 1


@in_loop
async def test_what_was_held_back_is_enough() -> None:
    """libcurl gives it while it is told to go on, and may have nothing more to give after it."""
    call = Call(connect())
    response = await call.answered()
    call.curl.write(bytes(64 * KIB))
    assert call.curl.write(bytes(16 * KIB)) == pycurl.WRITEFUNC_PAUSE

    def pause(directions: int) -> None:
        assert directions == 0
        call.curl.write(bytes(16 * KIB))

    call.curl.pause = pause  # type: ignore[method-assign]
    assert len(await response.read(70 * KIB)) == 80 * KIB


@in_loop
async def test_what_has_come_before_a_failure_is_read_first() -> None:
    call = Call(connect())
    response = await call.answered()
    call.curl.write(b"one")
    call.finish(pycurl.error(56, "Recv failure: Connection reset by peer"))
    await turn()
    assert await response.read_chunk() == b"one"
    for _ in range(2):
        with pytest.raises(ConnectError, match="in the middle of the answer"):
            await response.read_chunk()
    assert response.trailers is None


@in_loop
async def test_half_a_body_is_none() -> None:
    call = Call(connect())
    response = await call.answered()
    call.curl.write(b"one")
    call.finish(pycurl.error(18, "transfer closed with 6 bytes remaining to read"))
    with pytest.raises(ConnectError, match="in the middle of the answer"):
        await response.read(None)


@in_loop
async def test_an_answer_that_ends_in_its_head() -> None:
    """libcurl takes it for a whole one."""
    call = await Call(connect()).begun()
    call.curl.options[pycurl.HEADERFUNCTION](b"HTTP/1.1 200 OK\r\n")
    call.finish()
    with pytest.raises(ConnectError, match="in the head of the answer") as caught:
        await call.task
    assert code_of(caught.value) == "unavailable"


# Requests in parts.


@in_loop
async def test_parts_are_sliced_and_joined() -> None:
    call = await Call(connect(), parts(b"one", b"", b"two", b"three")).begun()
    assert call.curl.read(2) == b"on"
    assert call.curl.read(5) == b"etwot"
    assert call.curl.read() == b"hree"
    assert call.curl.read() == b""
    call.curl.head("HTTP/1.1 200 OK")
    response = await call.task
    assert response.uploaded
    response.close()


@in_loop
async def test_an_upload_waits_for_its_iterator() -> None:
    """Nor does an empty part end it, which is what no bytes mean to libcurl."""
    more: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def queued() -> AsyncIterator[bytes]:
        while (part := await more.get()) is not None:
            yield part

    call = await Call(connect(), queued()).begun()
    assert call.curl.read() == PAUSE
    more.put_nowait(b"")
    await turn()
    assert call.curl.paused == []
    more.put_nowait(b"one")
    await turn()
    assert call.curl.paused == [0]
    assert call.curl.read() == b"one"
    assert call.curl.read() == PAUSE
    call.curl.head("HTTP/1.1 200 OK")
    response = await call.task
    assert not response.uploaded
    more.put_nowait(None)
    await turn()
    assert call.curl.paused == [0, 0]
    assert call.curl.read() == b""
    assert response.uploaded
    response.close()


@in_loop
async def test_both_directions_pause_apart() -> None:
    more: asyncio.Queue[bytes] = asyncio.Queue()

    async def queued() -> AsyncIterator[bytes]:
        while True:
            yield await more.get()

    call = Call(connect(), queued())
    response = await call.answered()
    assert call.curl.read() == PAUSE
    call.curl.write(bytes(64 * KIB))
    assert call.curl.write(b"x") == pycurl.WRITEFUNC_PAUSE
    more.put_nowait(b"one")
    await turn()
    await response.read_chunk()
    assert call.curl.paused == [pycurl.PAUSE_RECV, 0]
    response.close()


@in_loop
async def test_an_iterator_is_not_far_ahead() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(16 * KIB)

    call = await Call(connect(), endless()).begun()
    assert taken == 4
    assert call.curl.read(16 * KIB) == bytes(16 * KIB)
    await turn()
    assert taken == 5
    call.task.cancel()
    await turn()


@pytest.mark.parametrize("failure", [ZeroDivisionError, asyncio.CancelledError])
@pytest.mark.parametrize("answered", [False, True])
@in_loop
async def test_what_the_iterator_raises(failure: type[BaseException], answered: bool) -> None:
    """As it is. A cancellation too: it may have awaited what somebody else has cancelled."""
    going_on = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        await going_on.wait()
        raise failure

    call = Call(connect(), broken())
    waiting = asyncio.ensure_future((await call.answered()).read_chunk()) if answered else (await call.begun()).task
    await turn()
    going_on.set()
    with pytest.raises(failure):
        await waiting
    assert not call.multi.futures


@in_loop
async def test_the_end_of_a_call_ends_its_iterator() -> None:
    """Wherever it waits, and also one that does not heed being cancelled."""
    ended: list[str] = []

    async def waiting() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.sleep(60)
        finally:
            ended.append("waiting")

    async def full() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(64 * KIB)
        finally:
            ended.append("full")

    async def stubborn() -> AsyncIterator[bytes]:
        try:
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    yield b"two"
        finally:
            ended.append("stubborn")

    transport = connect()
    for body in (waiting(), full(), stubborn()):
        call = Call(transport, body)
        response = await call.answered()
        response.close()
        assert not call.multi.futures
        await turn()
    assert ended == ["waiting", "full", "stubborn"]


@in_loop
async def test_an_answer_that_is_there_before_the_request() -> None:
    ended: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    call = Call(connect(), endless())
    response = await call.answered()
    call.finish()
    assert await response.read(None) == b""
    assert not response.uploaded
    await turn()
    assert ended == [True]


@in_loop
async def test_context_variables_reach_the_iterator() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    found: list[str] = []

    async def request() -> AsyncIterator[bytes]:
        found.append(variable.get())
        yield b"one"

    call = await Call(connect(), request()).begun()
    assert found == ["set"]
    call.task.cancel()


@in_loop
async def test_going_on_in_the_very_moment_of_the_end() -> None:
    """libcurl is done with it, though nobody has been told yet: then it cannot go on, and need not."""
    going_on = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        await going_on.wait()
        yield b"one"

    call = Call(connect(), late())
    response = await call.answered()
    assert call.curl.read() == PAUSE
    call.curl.pause_fails = True
    going_on.set()
    await turn()
    call.curl.write(b"answer")
    call.finish()
    assert await response.read(None) == b"answer"


# Handles.


@in_loop
async def test_nothing_is_sent_twice() -> None:
    call = await Call(connect()).begun()
    assert call.curl.attempt() == pycurl.PREREQFUNC_OK
    assert call.curl.attempt() == pycurl.PREREQFUNC_ABORT
    call.finish(pycurl.error(42, "operation aborted by pre-request callback"))
    with pytest.raises(ConnectError, match="closed the connection without an answer"):
        await call.task
    again = await Call(call.transport).begun()
    assert again.curl is call.curl
    assert again.curl.attempt() == pycurl.PREREQFUNC_OK, "the next call is another"
    again.task.cancel()


@in_loop
async def test_handles_are_used_again_when_the_multi_has_let_go_of_them(made: list[Curl]) -> None:
    transport = connect()
    response = await Call(transport).answered()
    response.close()
    assert not transport._spare, "not in the same step"
    await turn()
    assert transport._spare == made
    call = await Call(transport).begun()
    assert [call.curl] == made
    call.task.cancel()


@in_loop
async def test_why_handles_wait() -> None:
    """An ``AsyncCurlMulti`` takes a handle that is added again at once for the one that it has removed."""
    curl = REAL_CURL()
    curl.setopt(pycurl.URL, "http://127.0.0.1:1/")
    async with REAL_MULTI() as multi:
        multi.add_handle(curl)
        multi.remove_handle(curl)
        again = multi.add_handle(curl)
        assert multi.futures() == (again,)
        await turn()
        assert multi.futures() == (), "where this fails, handles need not wait any more"
        assert not again.done()


@in_loop
async def test_a_spare_handle_keeps_nothing_of_its_call() -> None:
    call = Call(connect())
    response = await call.answered()
    response.close()
    await turn()
    for option in (pycurl.PREREQFUNCTION, pycurl.READFUNCTION, pycurl.HEADERFUNCTION, pycurl.WRITEFUNCTION):
        assert call.curl.options[option] is module._no_callback


@in_loop
async def test_spare_handles_are_bounded(made: list[Curl]) -> None:
    transport = connect()
    calls = [Call(transport) for _ in range(100)]
    await turn()
    for call in calls:
        call.task.cancel()
    await turn()
    assert len(made) == 100
    assert sum(curl.closed for curl in made) == 36
    await transport.aclose()
    assert not transport._spare


# Failures.


@pytest.mark.parametrize(
    ("number", "text", "code", "told"), FAILURES, ids=[f"{row[0]}-{row[1][:30]}" for row in FAILURES]
)
@in_loop
async def test_failures(number: int, text: str, code: str, told: str) -> None:
    call = await Call(connect()).begun()
    call.curl.errno = 111 if number == 7 and "tunnel" not in text else 0
    call.finish(pycurl.error(number, text))
    with pytest.raises(ConnectError) as caught:
        await call.task
    assert code_of(caught.value) == code
    assert told in caught.value.message
    assert "secret" not in caught.value.message
    assert isinstance(caught.value.__cause__, pycurl.error)


@pytest.mark.parametrize("number", [55, 56])
@in_loop
async def test_a_connection_fails_after_the_head(number: int) -> None:
    call = Call(connect())
    response = await call.answered()
    call.finish(pycurl.error(number, "Connection reset by peer"))
    with pytest.raises(ConnectError) as caught:
        await response.read_chunk()
    assert code_of(caught.value) == "unavailable"
    assert "without an answer" not in caught.value.message


@in_loop
async def test_a_failure_of_pycurl_itself() -> None:
    """It ends all calls, and has no number."""
    call = await Call(connect()).begun()
    call.finish(pycurl.error("cannot invoke socket_action()"))
    with pytest.raises(ConnectError, match="libcurl failed") as caught:
        await call.task
    assert code_of(caught.value) == "unavailable"


# The end.


@in_loop
async def test_cancelling_takes_the_call_away() -> None:
    call = await Call(connect()).begun()
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    assert not call.multi.futures

    reading_call = Call(call.transport)
    response = await reading_call.answered()
    reading = asyncio.ensure_future(response.read(None))
    await turn()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not call.multi.futures, "nobody could read it any more"


@in_loop
async def test_closing_a_response_wakes_who_reads_it() -> None:
    call = Call(connect())
    response = await call.answered()
    reading = asyncio.ensure_future(response.read_chunk())
    await turn()
    response.close()
    with pytest.raises(ConnectError, match="the call was closed"):
        await reading


@in_loop
async def test_closing_with_calls_under_way() -> None:
    async with AsyncPycurlTransport() as transport:
        waiting = await Call(transport).begun()
        call = Call(transport)
        response = await call.answered()
        multi: Any = transport._multi
    for coroutine in (waiting.task, response.read_chunk()):
        with pytest.raises(ConnectError, match="the client was closed") as caught:
            await coroutine
        assert code_of(caught.value) == "canceled"
    await transport.aclose()
    assert multi.closed


@in_loop
async def test_a_multi_that_was_handed_in_stays_open() -> None:
    transport = connect()
    call = Call(transport)
    response = await call.answered()
    await transport.aclose()
    assert not call.multi.closed
    call.curl.write(b"on")
    assert await response.read_chunk() == b"on"
    response.close()


@in_loop
async def test_a_response_that_is_forgotten() -> None:
    """It may be collected while libcurl is at something: the call is taken away later."""
    call = Call(connect())
    response = await call.answered()
    del response, call.task
    gc.collect()
    assert call.multi.futures
    await turn()
    assert not call.multi.futures


def test_what_is_forgotten_with_its_loop() -> None:
    """Nothing is left to take it away from."""
    loop = asyncio.new_event_loop()
    transport = AsyncPycurlTransport()

    async def begin() -> tuple[Any, Any]:
        return await Call(transport).answered(), await Call(transport).begun()

    response, call = loop.run_until_complete(begin())
    loop.close()
    response.close()
    assert len(call.multi.futures) == 2
    call.task._log_destroy_pending = False


@in_loop
async def test_what_is_forgotten_with_its_multi() -> None:
    """The collector may have closed that first."""
    call = Call(connect())
    response = await call.answered()
    call.multi.closed = True
    response.close()
    assert call.multi.futures


def test_event_loops() -> None:
    """One at a time. The next one begins with connections of its own."""
    transport = AsyncPycurlTransport()
    multis: list[Any] = []

    async def main() -> None:
        call = Call(transport)
        (await call.answered()).close()
        multis.append(call.multi)
        await turn()

    asyncio.run(main())
    asyncio.run(main())
    assert multis[0] is not multis[1]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(transport.send(HTTPRequest("POST", URL, HEADERS), b""))
    asyncio.run(transport.aclose())
    assert transport._multi is multis[2], "it is not for this loop to close"
    loop.run_until_complete(transport.aclose())
    assert multis[2].closed
    loop.close()
    asyncio.run(main())
    asyncio.run(transport.aclose())
    assert transport._multi is None, "whose loop is closed"
