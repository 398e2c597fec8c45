"""pyqwest as a transport, its own transports made of memory. Real servers are for the integration tests."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc._core.http import HTTPRequest
from connectrpc.cancel import CancelToken
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError
from connectrpc.transports import async_transport, sync_transport
from harness import code_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import pyqwest

    from connectrpc.transports.pyqwest import AsyncPyqwestTransport, PyqwestTransport
else:
    pyqwest = pytest.importorskip("pyqwest")

HEADERS = [("content-type", "application/proto"), ("x-many", "1"), ("x-many", "2"), ("user-agent", "test")]
URL = "http://h/p?x=%2F"


class Answer:
    """What a server gives: chunks, exceptions among them, and trailers."""

    def __init__(self, *chunks: Any, trailers: list[tuple[str, str]] | None = None) -> None:
        self.chunks = list(chunks)
        self.trailers = pyqwest.Headers(trailers or [])
        self.headers = pyqwest.Headers([("X-One", "1"), ("x-many", "1"), ("x-many", "2")])
        self.closed = threading.Event()


class Content:
    """The body of an answer. A function among its chunks is called for the chunk."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __iter__(self) -> Content:
        return self

    def __next__(self) -> bytes:
        if not self._answer.chunks or self._answer.closed.is_set():
            raise StopIteration
        chunk = self._answer.chunks.pop(0)
        if callable(chunk):
            chunk = chunk()
        if isinstance(chunk, BaseException):
            raise chunk
        return bytes(chunk)

    def close(self) -> None:
        self._answer.closed.set()

    def __aiter__(self) -> Content:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        try:
            return self.__next__()
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.close()


class Server:
    """Both kinds of transport. Takes whole requests, or leaves them alone, and gives the answers that it was given."""

    def __init__(self, *answers: Any, take: bool = True) -> None:
        self._answers = list(answers)
        self._take = take
        self.requests: list[Any] = []
        self.bodies: list[list[bytes]] = []
        self.closed = 0

    def execute_sync(self, request: pyqwest.SyncRequest) -> pyqwest.SyncResponse:
        self.requests.append(request)
        content = request.content
        if self._take:
            try:
                self.bodies.append([content] if isinstance(content, bytes) else list(content))
            except Exception as error:
                raise pyqwest.WriteError("the body failed") from error
        answer = self._answer()
        return pyqwest.SyncResponse(
            status=200, headers=answer.headers, content=Content(answer), trailers=answer.trailers
        )

    async def execute(self, request: pyqwest.Request) -> pyqwest.Response:
        self.requests.append(request)
        content = request.content
        if self._take:
            try:
                self.bodies.append([content] if isinstance(content, bytes) else [part async for part in content])
            except Exception as error:
                raise pyqwest.WriteError("the body failed") from error
        answer = self._answer()
        return pyqwest.Response(status=200, headers=answer.headers, content=Content(answer), trailers=answer.trailers)

    def _answer(self) -> Answer:
        answer = self._answers.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        self.closed += 1


def connect(server: Server) -> PyqwestTransport:
    transport: Any = sync_transport(pyqwest.SyncClient(server), "http://h")
    return transport  # type: ignore[no-any-return]


def aconnect(server: Server) -> AsyncPyqwestTransport:
    transport: Any = async_transport(pyqwest.Client(server))
    return transport  # type: ignore[no-any-return]


def send(
    transport: PyqwestTransport,
    body: bytes | Iterator[bytes] | None = b"request",
    *,
    deadline: Deadline = NO_DEADLINE,
    opening: Deadline | None = None,
    cancel: CancelToken | None = None,
) -> Any:
    request = HTTPRequest("POST", URL, HEADERS)
    return transport.send(request, body, stream=True, deadline=deadline, opening=opening or deadline, cancel=cancel)


async def asend(transport: AsyncPyqwestTransport, body: bytes | AsyncIterator[bytes] | None = b"request") -> Any:
    return await transport.send(HTTPRequest("POST", URL, HEADERS), body)


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


def read(answer: Answer, limit: int | None = None, *, asynchronous: bool) -> bytes:
    """The whole body, in either colour."""

    async def main() -> bytes:
        body: bytes = await (await asend(aconnect(Server(answer)))).read(limit)
        await asyncio.sleep(0)
        return body

    if asynchronous:
        return asyncio.run(main())
    body: bytes = send(connect(Server(answer))).read(limit)
    return body


def after(event: threading.Event, action: Callable[[], None]) -> None:
    """Do something in another thread when something else has happened."""

    def run() -> None:
        assert event.wait(10)
        action()

    threading.Thread(target=run).start()


def eventually(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize("body", [b"request", None])
def test_what_is_sent(body: bytes | None, asynchronous: bool) -> None:
    server = Server(Answer(b"body"))
    response = asyncio.run(asend(aconnect(server), body)) if asynchronous else send(connect(server), body)
    assert response.status == 200
    assert response.headers.get("X-one") == "1"
    assert list(response.headers.items()) == [("x-one", "1"), ("x-many", "1"), ("x-many", "2")]
    (request,) = server.requests
    assert request.method == "POST"
    assert request.url == URL
    assert list(request.headers.items()) == HEADERS, "ours, and no others"
    assert b"".join(server.bodies[0]) == (body or b"")


def test_a_request_in_parts() -> None:
    server = Server(Answer(), Answer())
    send(connect(server), iter([b"one", b"two"]))
    response = asyncio.run(asend(aconnect(server), parts(b"one", b"two")))
    assert response.uploaded
    assert [b"".join(body) for body in server.bodies] == [b"onetwo", b"onetwo"]


def test_context_variables_reach_the_request_iterator() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    found: list[str] = []

    def request() -> Iterator[bytes]:
        found.append(variable.get())
        yield b"one"

    class Elsewhere(Server):
        def execute_sync(self, request: Any) -> Any:
            thread = threading.Thread(target=lambda: list(request.content))
            thread.start()
            thread.join()
            return super().execute_sync(request)

    send(connect(Elsewhere(Answer())), request())
    assert found == ["set"]


def broken() -> Iterator[bytes]:
    yield b"one"
    raise ZeroDivisionError


async def abroken() -> AsyncIterator[bytes]:
    yield b"one"
    raise ZeroDivisionError


def test_what_the_request_iterator_raises() -> None:
    """As it is, whether or not the answer has begun by then."""
    with pytest.raises(ZeroDivisionError):
        send(connect(Server()), broken())
    with pytest.raises(ZeroDivisionError):
        send(connect(Server()), broken(), cancel=CancelToken())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asend(aconnect(Server()), abroken()))

    def fail() -> Exception:
        with pytest.raises(Exception):  # noqa: B017  it is ours to hide
            list(server.requests[0].content)
        return pyqwest.ReadError("the stream was reset")

    server = Server(Answer(b"x", fail), take=False)
    response = send(connect(server), broken())
    assert response.read_chunk() == b"x"
    with pytest.raises(ZeroDivisionError):
        response.read_chunk()

    async def main() -> None:
        server = Server(Answer(b"x", pyqwest.ReadError("the stream was reset")), take=False)
        response = await asend(aconnect(server), abroken())
        with pytest.raises(ZeroDivisionError):
            async for _ in server.requests[0].content:
                pass
        assert await response.read_chunk() == b"x"
        assert not response.uploaded
        with pytest.raises(ZeroDivisionError):
            await response.read_chunk()

    asyncio.run(main())


@both
def test_a_request_that_fails_is_not_hidden_by_the_answer(asynchronous: bool) -> None:
    """Which an app may have ended because of that, so that it looks complete."""

    def fail() -> bytes:
        with pytest.raises(Exception):  # noqa: B017  it is ours to hide
            list(server.requests[0].content)
        return b"failed"

    async def main() -> None:
        response = await asend(aconnect(server), abroken())
        with pytest.raises(ZeroDivisionError):
            async for _ in server.requests[0].content:
                pass
        with pytest.raises(ZeroDivisionError):
            await response.read(None)

    server = Server(Answer(b"failed" if asynchronous else fail), take=False)
    if asynchronous:
        asyncio.run(main())
        return
    with pytest.raises(ZeroDivisionError):
        send(connect(server), broken()).read(None)


class MineError(BaseException):
    """What an iterator raises that is no ``Exception``."""


class ReadElsewhere(Server):
    """Reads requests in tasks of their own, as pyqwest does, which tells nothing of what these raise."""

    def __init__(self, *answers: Any, cancel: bool = False) -> None:
        super().__init__(*answers)
        self._cancel = cancel

    async def execute(self, request: Any) -> pyqwest.Response:
        async def take() -> None:
            async for _ in request.content:
                begun.set()

        begun = asyncio.Event()
        reading = asyncio.ensure_future(take())
        await begun.wait()
        if self._cancel:
            reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled() or reading.exception()
        raise pyqwest.WriteError("stream error sent by user")


@pytest.mark.parametrize("failure", [MineError("mine"), asyncio.CancelledError("mine")], ids=repr)
def test_what_the_request_iterator_raises_that_is_no_exception(failure: BaseException) -> None:
    """Such as that something which it has awaited was cancelled."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise failure

    async def main() -> None:
        with pytest.raises(type(failure), match="mine"):
            await asend(aconnect(ReadElsewhere()), broken())

    asyncio.run(main())


def test_an_upload_that_is_given_up_has_not_failed() -> None:
    """What the call has failed with is something else."""

    async def waiting() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await asend(aconnect(ReadElsewhere(cancel=True)), waiting())
        assert code_of(caught.value) == "unavailable"

    asyncio.run(main())


def test_leaving_early_ends_the_upload() -> None:
    """As a failure: the server must not take the part that it has for the whole."""
    server = Server(Answer(b"x", b"y"), take=False)
    finished: list[bool] = []

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            finished.append(True)

    response = send(connect(server), endless())
    upload = iter(server.requests[0].content)
    assert next(upload).startswith(b"part")
    assert response.read_chunk() == b"x"
    response.close()
    with pytest.raises(Exception) as caught:
        next(upload)
    assert not isinstance(caught.value, StopIteration)
    del caught
    eventually(lambda: finished)  # in the thread that it runs in


def test_leaving_early_ends_a_generator_that_somebody_holds(caplog: pytest.LogCaptureFixture) -> None:
    """As whoever keeps what a call has raised does."""
    server = Server(Answer(b"x", b"y"), take=False)
    going_on = threading.Event()

    def parts() -> Iterator[bytes]:
        try:
            yield b"part"
            going_on.wait(5)
            yield b"too late"
        finally:
            raise ZeroDivisionError("in the end")

    held: Any = parts()
    response = send(connect(server), held)
    assert next(iter(server.requests[0].content)) == b"part"
    response.close()
    going_on.set()
    eventually(lambda: held.gi_frame is None)
    eventually(lambda: "ZeroDivisionError: in the end" in caplog.text)


@both
@pytest.mark.parametrize("limit", [None, 6, 100])
def test_bodies(limit: int | None, asynchronous: bool) -> None:
    answer = Answer(b"one", b"", b"two")
    assert read(answer, limit, asynchronous=asynchronous) == b"onetwo"
    assert answer.closed.is_set()


@both
def test_a_body_is_cut_off_beyond_the_limit(asynchronous: bool) -> None:
    answer = Answer(b"one", b"two", b"six")
    assert read(answer, 4, asynchronous=asynchronous) == b"onetwo"
    assert answer.closed.is_set()


@both
@pytest.mark.parametrize("trailers", [[("grpc-status", "0"), ("X-Two", "1"), ("x-two", "2")], []])
def test_chunks_and_trailers(trailers: list[tuple[str, str]], asynchronous: bool) -> None:
    """An empty chunk is not the end, and there are no trailers before that."""
    answer = Answer(b"one", b"", b"two", trailers=trailers)

    def check(response: Any) -> None:
        if trailers:
            assert [(name.lower(), value) for name, value in trailers] == list(response.trailers.items())
            assert response.trailers.get("Grpc-Status") == "0"
        else:
            assert response.trailers is None

    async def main() -> None:
        transport = aconnect(Server(answer))
        response = await asend(transport)
        chunks = []
        while chunk := await response.read_chunk():
            chunks.append(chunk)
            assert response.trailers is None
        assert chunks == [b"one", b"two"]
        check(response)
        response.close()
        response.close()
        check(response)
        assert transport.has_trailers

    if asynchronous:
        asyncio.run(main())
        return
    transport = connect(Server(answer))
    response = send(transport)
    chunks = []
    while chunk := response.read_chunk():
        chunks.append(chunk)
        assert response.trailers is None
    assert chunks == [b"one", b"two"]
    check(response)
    assert not answer.closed.is_set()
    response.close()
    response.close()
    assert answer.closed.is_set()
    check(response)
    assert transport.has_trailers


CODES = {
    "NO_ERROR": "internal",
    "PROTOCOL_ERROR": "internal",
    "INTERNAL_ERROR": "internal",
    "FLOW_CONTROL_ERROR": "internal",
    "SETTINGS_TIMEOUT": "internal",
    "FRAME_SIZE_ERROR": "internal",
    "COMPRESSION_ERROR": "internal",
    "CONNECT_ERROR": "internal",
    "REFUSED_STREAM": "unavailable",
    "CANCEL": "canceled",
    "ENHANCE_YOUR_CALM": "resource_exhausted",
    "INADEQUATE_SECURITY": "permission_denied",
    "STREAM_CLOSED": "unavailable",
    "HTTP_1_1_REQUIRED": "unavailable",
}

FAILURES: list[tuple[Exception, str, str]] = [
    (pyqwest.ConnectTimeout("x"), "unavailable", "too long"),
    (ConnectionError("x"), "unavailable", "no connection"),
    (
        ConnectionError("error for url (http://h/a): tcp: x (os error 111)"),
        "unavailable",
        "can be made: Connection refused",
    ),
    (
        ConnectionError("error for url (http://h/a): client error: dns error: x"),
        "unavailable",
        "name cannot be resolved",
    ),
    (
        ConnectionError("error for url (https://h/a(b)): invalid peer certificate"),
        "unavailable",
        "made: error: invalid",
    ),
    (TimeoutError("x"), "deadline_exceeded", "timeout"),
    (pyqwest.ReadError("x"), "unavailable", "failed"),
    (pyqwest.WriteError("x"), "unavailable", "failed"),
    (pyqwest.RemoteProtocolError("x"), "unavailable", "failed"),
    (pyqwest.TooManyRedirects("x"), "unavailable", "failed"),
    *((pyqwest.StreamError("x", pyqwest.StreamErrorCode[name]), code, name) for name, code in CODES.items()),
]


@both
@pytest.mark.parametrize(("failure", "code", "text"), FAILURES, ids=lambda value: str(value)[:20])
def test_failures(failure: Exception, code: str, text: str, asynchronous: bool) -> None:
    async def begin() -> None:
        await asend(aconnect(Server(failure)))

    async def receive() -> None:
        response = await asend(aconnect(Server(Answer(b"x", failure))))
        assert await response.read_chunk() == b"x"
        await response.read_chunk()

    def sync_begin() -> None:
        send(connect(Server(failure)))

    def sync_wait() -> None:
        send(connect(Server(failure)), cancel=CancelToken())

    def sync_receive() -> None:
        response = send(connect(Server(Answer(b"x", failure))))
        assert response.read_chunk() == b"x"
        response.read_chunk()

    attempts: list[tuple[Callable[[], object], bool]] = [(sync_begin, True), (sync_wait, True), (sync_receive, False)]
    if asynchronous:
        attempts = [(lambda: asyncio.run(begin()), True), (lambda: asyncio.run(receive()), False)]
    for attempt, before_the_head in attempts:
        with pytest.raises(ConnectError) as caught:
            attempt()
        assert code_of(caught.value) == code
        assert caught.value.message
        assert text in caught.value.message or not before_the_head
        assert caught.value.__cause__ is failure


def test_every_stream_error_has_a_code() -> None:
    assert CODES.keys() == pyqwest.StreamErrorCode.__members__.keys()


def test_a_deadline_is_pyqwests_timeout() -> None:
    """So the whole call is bounded by it: pyqwest keeps it until the end of the body."""
    from pyqwest._pyqwest import get_sync_timeout

    left: list[Any] = []

    def note() -> Answer:
        left.append(get_sync_timeout())
        return Answer()

    send(connect(Server(note)), deadline=Deadline(20_000))
    send(connect(Server(note)))
    assert 15 < left[0].total_seconds() <= 20
    assert left[1] is None


def test_a_failure_after_the_deadline_is_the_deadline() -> None:
    def late() -> Exception:
        while not deadline.expired():
            time.sleep(0.01)
        return TimeoutError("x")

    deadline = Deadline(300)
    with pytest.raises(ConnectError) as caught:
        send(connect(Server(late)), deadline=deadline)
    assert code_of(caught.value) == "deadline_exceeded"
    assert "the deadline has passed" in caught.value.message
    deadline = Deadline(300)
    response = send(connect(Server(Answer(b"x", late))), deadline=deadline)
    assert response.read_chunk() == b"x"
    with pytest.raises(ConnectError, match="the deadline has passed"):
        response.read_chunk()
    with pytest.raises(ConnectError, match="the deadline has passed"):
        response.check()


def test_nothing_is_sent_after_the_deadline() -> None:
    server = Server(Answer())
    deadline = Deadline(1)
    time.sleep(0.01)
    with pytest.raises(ConnectError, match="deadline"):
        send(connect(server), deadline=deadline)
    assert not server.requests


class Held:
    """An answer that comes when it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.release = threading.Event()
        self.answer = Answer(b"late")

    def __call__(self) -> Answer:
        self.asked.set()
        assert self.release.wait(10)
        return self.answer


def test_cancelling_before_the_head() -> None:
    """The call ends at once; the answer is dropped when it comes."""
    held = Held()
    token = CancelToken()
    after(held.asked, token.cancel)
    with pytest.raises(ConnectError) as caught:
        send(connect(Server(held)), cancel=token)
    assert code_of(caught.value) == "canceled"
    assert not held.answer.closed.is_set()
    held.release.set()
    assert held.answer.closed.wait(10)


def test_cancelling_before_the_head_ends_the_upload() -> None:
    held = Held()
    token = CancelToken()
    server = Server(held, take=False)
    after(held.asked, token.cancel)
    with pytest.raises(ConnectError):
        send(connect(server), iter([b"one"]), cancel=token)
    with pytest.raises(Exception) as caught:
        next(iter(server.requests[0].content))
    assert not isinstance(caught.value, StopIteration)
    held.release.set()


def test_a_limit_for_the_head_alone() -> None:
    held = Held()
    with pytest.raises(ConnectError) as caught:
        send(connect(Server(held)), deadline=Deadline(20_000), opening=Deadline(50))
    assert code_of(caught.value) == "deadline_exceeded"
    assert "not opened in time" in caught.value.message
    held.release.set()
    assert held.answer.closed.wait(10)

    opening = Deadline(300)
    response = send(connect(Server(Answer(b"x", b"y"))), opening=opening)
    while not opening.expired():
        time.sleep(0.01)
    assert response.read(None) == b"xy", "it is over when the head is there"


def test_a_token_that_was_cancelled_before() -> None:
    token = CancelToken()
    token.cancel()
    server = Server(Answer())
    with pytest.raises(ConnectError) as caught:
        send(connect(server), cancel=token)
    assert code_of(caught.value) == "canceled"
    assert not server.requests


@pytest.mark.parametrize("how", ["token", "interrupt"])
def test_waking_a_reader(how: str) -> None:
    """Closing the response is what wakes it; the end that it then sees is none."""
    token = CancelToken()
    reading = threading.Event()
    answer = Answer()

    def block() -> bytes:
        reading.set()
        assert answer.closed.wait(10)
        raise StopIteration

    answer.chunks = [b"x", block]
    response = send(connect(Server(answer)), cancel=token)
    assert response.read_chunk() == b"x"
    stop = token.cancel if how == "token" else response.interrupt
    after(reading, stop)
    with pytest.raises(ConnectError) as caught:
        response.read_chunk()
    assert code_of(caught.value) == "canceled"
    assert response.trailers is None
    with pytest.raises(ConnectError):
        response.check()
    response.close()


def test_a_token_outlives_its_calls() -> None:
    token = CancelToken()
    answer = Answer(b"x")
    assert send(connect(Server(answer)), cancel=token).read(None) == b"x"
    assert not token._callbacks
    token.cancel()


def test_threads_are_used_again() -> None:
    most = max(2, len(helpers()))  # those of other tests wait for more to do
    for _ in range(20):
        send(connect(Server(Answer())), cancel=CancelToken()).close()
        eventually(lambda: len(helpers()) <= most)
    assert len(helpers()) <= most


def helpers() -> list[threading.Thread]:
    from connectrpc.transports._waiting import Helper

    return [thread for thread in threading.enumerate() if isinstance(thread, Helper)]


def test_cancellation_is_no_failure() -> None:
    async def main() -> None:
        await asend(aconnect(Server(asyncio.CancelledError())))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_an_answer_that_is_left_is_closed() -> None:
    answer = Answer(b"x", b"y")

    async def main() -> None:
        response = await asend(aconnect(Server(answer)))
        assert await response.read_chunk() == b"x"
        response.close()
        response.close()
        await asyncio.sleep(0.01)
        assert answer.closed.is_set()

    asyncio.run(main())


def test_what_is_handed_in_stays_open() -> None:
    server = Server(Answer(), Answer())
    transport = connect(server)
    send(transport).close()
    transport.close()

    async def main() -> None:
        transport = aconnect(server)
        (await asend(transport)).close()
        await transport.aclose()

    asyncio.run(main())
    assert server.closed == 0


def test_under_several_event_loops() -> None:
    transport = aconnect(Server(Answer(b"one"), Answer(b"two")))

    async def main() -> bytes:
        body: bytes = await (await asend(transport)).read(None)
        return body

    assert [asyncio.run(main()), asyncio.run(main())] == [b"one", b"two"]


def test_who_takes_what() -> None:
    with pytest.raises(TypeError, match=r"pyqwest\.SyncClient"):
        sync_transport(pyqwest.Client(Server()), "http://h")
    with pytest.raises(TypeError, match=r"pyqwest\.Client"):
        async_transport(pyqwest.SyncClient(Server()))
    with pytest.raises(ValueError, match="connect_timeout"):
        sync_transport(pyqwest.SyncClient(Server()), "http://h", connect_timeout=1)
    with pytest.raises(ValueError, match="connect_timeout"):
        async_transport(pyqwest.Client(Server()), connect_timeout=1)


def test_pyqwest_is_never_imported_unasked() -> None:
    script = "import sys; from connectrpc.transports import *; sync_transport(None, 'http://h'); async_transport(None)"
    subprocess.run([sys.executable, "-c", f"{script}; assert 'pyqwest' not in sys.modules"], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("made", ["before", "after"])
def test_a_child_process_is_refused(made: str) -> None:
    """Otherwise it would hang for ever, also with a client of its own, where pyqwest was used before the fork."""
    script = f"""
import asyncio, os, pyqwest
from connectrpc.client import AsyncClient, SyncClient
from connectrpc._core.http import HTTPRequest
from connectrpc.deadline import NO_DEADLINE
from connectrpc.transports import async_transport, sync_transport
def make():
    return sync_transport(pyqwest.SyncClient(), "http://127.0.0.1:1"), async_transport(pyqwest.Client())
transports = make()
if os.fork() == 0:
    request = HTTPRequest("POST", "http://127.0.0.1:1/", [])
    options = dict(stream=False, deadline=NO_DEADLINE, opening=NO_DEADLINE, cancel=None)
    for call in (
        lambda: (transports if {made == "before"} else make())[0].send(request, b"", **options),
        lambda: asyncio.run((transports if {made == "before"} else make())[1].send(request, b"")),
    ):
        try:
            call()
        except RuntimeError as error:
            assert "after the fork" in str(error), error
        else:
            os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", script], check=True, timeout=60)
