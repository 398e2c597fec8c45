"""aiohttp as a transport, over a session made of memory. Real servers are for the integration tests."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from connectrpc._core.http import HTTPRequest
from connectrpc.errors import ConnectError
from connectrpc.transports.aiohttp import AiohttpTransport
from harness import code_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEADERS = [("content-type", "application/proto"), ("x-many", "1"), ("x-many", "2")]


class Content:
    def __init__(self, chunks: list[Any]) -> None:
        self._chunks = list(chunks)

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        chunk: Any = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, BaseException):
            raise chunk
        whole: bytes = chunk
        return whole


class Answer:
    """As ``aiohttp.ClientResponse``."""

    def __init__(self, *chunks: Any, length: int | None = None) -> None:
        self.status = 200
        self.headers: CIMultiDict[str] = CIMultiDict({"X-One": "1"})
        self.content_length = length
        self.content = Content(list(chunks))
        self.connection = None
        self.closed = 0

    async def read(self) -> bytes:
        whole = b""
        while chunk := await self.content.readany():
            whole += chunk
        return whole

    def close(self) -> None:
        self.closed += 1


class Writer:
    """As the writer that aiohttp hands a payload."""

    transport = None

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def write(self, part: bytes) -> None:
        self.parts.append(bytes(part))


class Session:
    """As ``aiohttp.ClientSession``."""

    def __init__(self, *answers: Any) -> None:
        self.timeout = aiohttp.ClientTimeout(total=300, connect=1, sock_connect=2, sock_read=3)
        self.connector: Any = None
        self._answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[list[bytes]] = []
        self.closed = 0

    async def request(self, method: str, url: URL, **options: Any) -> Any:
        self.requests.append({"method": method, "url": url, **options})
        data = options["data"]
        if data is not None and not isinstance(data, bytes):
            try:
                writer = Writer()
                await data.write(writer)
                self.bodies.append(writer.parts)
            except BaseException as error:  # in its own task, with aiohttp
                raise aiohttp.ClientConnectionError("it could not be sent") from error
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed += 1


async def send(transport: AiohttpTransport, body: bytes | AsyncIterator[bytes] | None = b"request") -> Any:
    return await transport.send(HTTPRequest("POST", "http://h/p?x=%2F", HEADERS), body)


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


def test_what_is_sent() -> None:
    session = Session(Answer(b"body"))

    async def main() -> None:
        response = await send(AiohttpTransport(session))
        assert response.status == 200
        assert response.headers.get("x-one") == "1"
        assert await response.read(None) == b"body"

    asyncio.run(main())
    (request,) = session.requests
    assert request.pop("headers").items() == CIMultiDict(HEADERS).items()
    timeout = request.pop("timeout")
    assert timeout == aiohttp.ClientTimeout(total=None, connect=1, sock_connect=2, sock_read=3), (
        "the user's, but no total"
    )
    assert request == {
        "method": "POST",
        "url": URL("http://h/p?x=%2F", encoded=True),
        "data": b"request",
        "allow_redirects": False,
        "raise_for_status": False,
        "auto_decompress": False,
    }


@pytest.mark.parametrize(
    ("limit", "limit_per_host", "connect"), [(0, 0, 5), (100, 0, 1), (0, 10, 1)], ids=["none", "in all", "per host"]
)
def test_a_connect_timeout(limit: int, limit_per_host: int, connect: int) -> None:
    """It is for all of connecting, where that is not also waiting for other calls to give their connections back."""
    session = Session(Answer())
    session.connector = SimpleNamespace(limit=limit, limit_per_host=limit_per_host)
    asyncio.run(send(AiohttpTransport(session, connect_timeout=5)))
    assert session.requests[0]["timeout"] == aiohttp.ClientTimeout(
        total=None, connect=connect, sock_connect=5, sock_read=3
    )


def test_a_name_that_takes_too_long_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def resolve(*args: object, **kwargs: object) -> list[Any]:
        answer.wait(5)
        return []

    async def main() -> None:
        transport = AiohttpTransport(None, connect_timeout=0.05)
        try:
            await asyncio.wait_for(send(transport), 3)
        finally:
            answer.set()
            await transport.aclose()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ConnectError, match="too long") as caught:
        asyncio.run(main())
    assert code_of(caught.value) == "unavailable"


def test_a_url_that_is_not_ascii() -> None:
    session = Session(Answer())
    request = HTTPRequest("POST", "http://b\u00fccher/\u00fc%2Fa/b.C/D", HEADERS)
    asyncio.run(AiohttpTransport(session).send(request, b""))
    assert str(session.requests[0]["url"]) == "http://xn--bcher-kva/%C3%BC%2Fa/b.C/D"


@pytest.mark.parametrize("host", ["a..test", "a" * 64 + ".test", "\u00fc" * 63 + ".test"])
def test_a_host_that_cannot_be_a_name(host: str) -> None:
    async def main() -> None:
        transport = AiohttpTransport(None)
        try:
            await transport.send(HTTPRequest("POST", f"http://{host}/p", HEADERS), b"")
        finally:
            await transport.aclose()

    with pytest.raises(ConnectError, match="the server's name cannot be resolved") as caught:
        asyncio.run(main())
    assert code_of(caught.value) == "unavailable"


def test_no_body() -> None:
    session = Session(Answer())
    asyncio.run(send(AiohttpTransport(session), None))
    assert session.requests[0]["data"] is None


def test_a_request_in_parts() -> None:
    """The first part is empty, or aiohttp would hold the head back until there is a message."""
    session = Session(Answer())

    async def main() -> None:
        response = await send(AiohttpTransport(session), parts(b"one", b"two"))
        assert response.uploaded

    asyncio.run(main())
    assert session.bodies == [[b"", b"one", b"two"]]


class Odd(BaseException):
    pass


RAISED = [
    ZeroDivisionError(),
    OSError(errno.EIO, "mine"),
    Odd(),
    pytest.param(
        asyncio.CancelledError(),
        marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not tell whether it was cancelled"),
    ),
]


@pytest.mark.parametrize("raised", RAISED, ids=repr)
def test_what_the_request_iterator_raises(raised: BaseException) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise raised

    with pytest.raises(type(raised)) as caught:
        asyncio.run(send(AiohttpTransport(Session()), broken()))
    assert caught.value is raised


class Unhurried(Session):
    """Does as aiohttp, and writes in a task of its own. The server takes two parts of the request, and no more."""

    writing: asyncio.Task[None]

    async def request(self, method: str, url: URL, **options: Any) -> Any:
        self.full = asyncio.Event()
        self.writing = asyncio.ensure_future(options["data"].write(self))
        answer = self._answers.pop(0)
        return await answer if asyncio.isfuture(answer) else answer

    transport = None

    async def write(self, part: bytes) -> None:
        self.bodies.append([part])
        if len(self.bodies) == 2:
            self.full.set()
            await asyncio.sleep(60)


def test_a_request_iterator_that_raises_as_the_answer_comes() -> None:
    """There is nobody yet whom it could wake."""
    answer = Answer(b"one")

    class Racing(Session):
        async def request(self, method: str, url: URL, **options: Any) -> Any:
            with pytest.raises(aiohttp.ClientConnectionError):
                await super().request(method, url, **options)
            return answer

    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(send(AiohttpTransport(Racing()), broken()))
    assert answer.closed


def test_a_request_iterator_that_aiohttp_cancels() -> None:
    """That is not the caller's failure, but why it was cancelled is."""
    waits = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        waits.set()
        await asyncio.sleep(60)
        yield b""

    async def main() -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        session = Unhurried(answer)
        sending = asyncio.ensure_future(send(AiohttpTransport(session), requests()))
        await asyncio.wait_for(waits.wait(), 5)
        session.writing.cancel()
        await asyncio.wait([session.writing])
        answer.set_exception(aiohttp.ServerDisconnectedError())
        await sending

    with pytest.raises(ConnectError, match="without an answer"):
        asyncio.run(main())


@pytest.mark.parametrize("failure", [None, ZeroDivisionError()], ids=repr)
def test_a_request_that_is_left_closes_its_iterator(failure: Exception | None) -> None:
    """Though the caller still holds it; however often aiohttp cancels, and without a word of what closing it raises."""
    told: list[Any] = []

    async def main() -> None:
        ended: list[str] = []
        closing, closed = asyncio.Event(), asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"one"
            finally:
                closing.set()
                await closed.wait()
                ended.append("end")
                if failure is not None:
                    raise failure

        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        session, given = Unhurried(Answer()), requests()
        await send(AiohttpTransport(session), given)
        await asyncio.wait_for(session.full.wait(), 5)
        session.writing.cancel()
        try:
            await asyncio.wait_for(closing.wait(), 5)
            session.writing.cancel()
            await asyncio.sleep(0)
        finally:
            closed.set()
        await asyncio.wait([session.writing])
        assert session.writing.cancelled()
        assert ended == ["end"]
        assert [part async for part in given] == []

    asyncio.run(main())
    gc.collect()
    assert told == []


def test_a_request_whose_tls_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10's knows no longer what it was writing to."""

    class Lost:
        def get_write_buffer_size(self) -> int:
            raise AttributeError("'NoneType' object has no attribute 'get_write_buffer_size'")

    monkeypatch.setattr(Writer, "transport", Lost())
    with pytest.raises(ConnectError, match="without an answer"):
        asyncio.run(send(AiohttpTransport(Session(aiohttp.ServerDisconnectedError())), parts(b"one")))


@pytest.mark.parametrize(("length", "limit"), [(None, None), (6, None), (None, 6), (6, 6), (None, 100)])
def test_bodies(length: int | None, limit: int | None) -> None:
    answer = Answer(b"one", b"two", length=length)

    async def main() -> None:
        assert await (await send(AiohttpTransport(Session(answer)))).read(limit) == b"onetwo"

    asyncio.run(main())
    assert answer.closed


@pytest.mark.parametrize("length", [None, 9])
def test_a_body_is_cut_off_beyond_the_limit(length: int | None) -> None:
    answer = Answer(b"one", b"two", b"six", length=length)

    async def main() -> None:
        assert await (await send(AiohttpTransport(Session(answer)))).read(4) == b"onetwo"

    asyncio.run(main())
    assert answer.closed


def test_chunks() -> None:
    answer = Answer(b"one", b"two")

    async def main() -> None:
        response = await send(AiohttpTransport(Session(answer)))
        assert [await response.read_chunk() for _ in range(3)] == [b"one", b"two", b""]
        assert not answer.closed
        response.close()
        assert answer.closed

    asyncio.run(main())


FAILURES: list[tuple[Exception, str, str]] = [
    (aiohttp.ServerDisconnectedError(), "unavailable", "whether it saw the request"),
    (aiohttp.ConnectionTimeoutError(), "unavailable", "too long"),
    (aiohttp.SocketTimeoutError(), "deadline_exceeded", "read timeout"),
    (aiohttp.ClientConnectorError(None, OSError(1, "x")), "unavailable", "no connection"),  # type: ignore[arg-type]
    (aiohttp.ClientConnectorError(None, OSError(111, "x")), "unavailable", "no connection"),  # type: ignore[arg-type]
    (aiohttp.ClientConnectorDNSError(None, OSError(1, "x")), "unavailable", "cannot be resolved"),  # type: ignore[arg-type]
    (aiohttp.ClientPayloadError("x"), "unavailable", "failed"),
    (ConnectionResetError("x"), "unavailable", ""),
]


@pytest.mark.parametrize(("failure", "code", "text"), FAILURES, ids=lambda value: type(value).__name__)
def test_failures(failure: Exception, code: str, text: str) -> None:
    async def begin() -> None:
        await send(AiohttpTransport(Session(failure)))

    async def read() -> None:
        await (await send(AiohttpTransport(Session(Answer(b"x", failure))))).read(None)

    async def read_bounded() -> None:
        await (await send(AiohttpTransport(Session(Answer(b"x", failure))))).read(100)

    async def read_chunks() -> None:
        response = await send(AiohttpTransport(Session(Answer(b"x", failure))))
        assert await response.read_chunk() == b"x"
        await response.read_chunk()

    for attempt in (begin, read, read_bounded, read_chunks):
        with pytest.raises(ConnectError) as caught:
            asyncio.run(attempt())
        assert code_of(caught.value) == code
        assert caught.value.message
        assert text in caught.value.message or attempt is not begin
        assert caught.value.__cause__ is failure


SECRET = URL("http://user:secret@host-a:3128/p?message=secret")
WITHIN = aiohttp.RequestInfo(SECRET, "GET", CIMultiDictProxy(CIMultiDict()), SECRET)

TELLING: list[tuple[Exception, str]] = [
    (
        aiohttp.ClientHttpProxyError(WITHIN, (), status=407, message="secret"),
        "the proxy makes no connection: HTTP status 407",
    ),
    (
        aiohttp.ServerFingerprintMismatch(b"expected", b"secret", "host-a", 443),
        "the server's certificate is not trusted: it has another fingerprint",
    ),
    (
        aiohttp.ClientResponseError(WITHIN, (), status=400, message="Bad status line:\n\n  b'secret'\n    ^"),
        "the connection to the server failed: Bad status line",
    ),
    (
        aiohttp.ClientConnectionError(f"Failed to send bytes into the underlying connection {SECRET}"),
        "the connection to the server failed",
    ),
    (aiohttp.InvalidURL(SECRET), "the connection to the server failed"),
]


@pytest.mark.parametrize(("failure", "message"), TELLING, ids=lambda value: type(value).__name__)
def test_what_failures_do_not_tell(failure: Exception, message: str) -> None:
    """No host, URL or password: a service may pass on what a call of its own raised."""
    with pytest.raises(ConnectError) as caught:
        asyncio.run(send(AiohttpTransport(Session(failure))))
    assert code_of(caught.value) == "unavailable"
    assert caught.value.message == message
    assert caught.value.__cause__ is failure


def test_what_failures_in_the_midst_of_an_answer_do_not_tell() -> None:
    failure = aiohttp.ClientOSError(errno.ECONNRESET, f"Can not write request body for {SECRET}")

    async def main() -> None:
        await (await send(AiohttpTransport(Session(Answer(b"x", failure))))).read(None)

    with pytest.raises(ConnectError) as caught:
        asyncio.run(main())
    assert caught.value.message == f"the connection to the server failed: {os.strerror(errno.ECONNRESET)}"


def test_an_answer_that_is_forgotten() -> None:
    """It is closed in its event loop, whichever thread collects it, if that loop is not over."""
    answer, other = Answer(b"body"), Answer(b"body")
    for given in (answer, other):
        given.connection = SimpleNamespace(protocol=None)  # type: ignore[assignment]
    held: list[Any] = []

    async def main() -> None:
        transport = AiohttpTransport(Session(answer, other))
        held.append(await send(transport))
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert not answer.closed
        await asyncio.sleep(0)
        assert answer.closed
        held.append(await send(transport))

    asyncio.run(main())
    held.clear()
    assert not other.closed


def test_cancellation_is_no_failure() -> None:
    async def main() -> None:
        await send(AiohttpTransport(Session(asyncio.CancelledError())))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_what_is_handed_in_stays_open() -> None:
    session = Session(Answer())

    async def main() -> None:
        transport = AiohttpTransport(session)
        await send(transport)
        await transport.aclose()

    asyncio.run(main())
    assert session.closed == 0


def test_a_session_of_another_event_loop() -> None:
    """aiohttp's is dead for good then: the error says so, and says what to do."""
    transport = AiohttpTransport(Session(Answer(), Answer()))
    asyncio.run(send(transport))
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(send(transport))


def test_a_session_that_was_made_in_another_event_loop() -> None:
    """That one may still be running, in another thread. Loops of uvloop's end the process where it is closed."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(session: aiohttp.ClientSession) -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await send(AiohttpTransport(session))

    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(make())
    asyncio.run(use(session))
    loop.run_until_complete(session.close())
    loop.close()


@pytest.mark.parametrize("closed", [True, False])
def test_sessions_of_loops_that_run_at_the_same_time(closed: bool) -> None:
    """As where a framework runs async code from its threads. One does not close another's, but for the whole client."""
    transport = AiohttpTransport(None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def find() -> aiohttp.ClientSession:
        return transport._find().session

    async def other() -> aiohttp.ClientSession:
        session = await find()
        if closed:
            await transport.aclose()
            assert session.closed
        return session

    async def settle() -> None:
        await asyncio.sleep(0)  # what was asked of the loop before this is under way
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    try:
        session = asyncio.run_coroutine_threadsafe(find(), loop).result(10)
        assert asyncio.run(other()) is not session
        asyncio.run_coroutine_threadsafe(settle(), loop).result(10)
        assert session.closed is closed
        again = asyncio.run_coroutine_threadsafe(find(), loop).result(10)
        assert (again is session) is not closed
        asyncio.run_coroutine_threadsafe(transport.aclose(), loop).result(10)
        assert again.closed
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_sessions_of_its_own() -> None:
    """One for each event loop, and none is left to complain when it is collected."""
    transport = AiohttpTransport(None)

    async def main() -> aiohttp.ClientSession:
        session = transport._find().session
        assert transport._find().session is session
        return session

    one = asyncio.run(main())
    other = asyncio.run(main())
    assert one is not other
    assert one.closed

    async def close() -> None:
        session = transport._find().session
        await transport.aclose()
        await transport.aclose()
        assert session.closed

    asyncio.run(close())
    asyncio.run(main())
    assert len(transport._bound) == 1, "those of loops that are over are forgotten"
    asyncio.run(transport.aclose())
