"""libcurl as a transport of blocking calls, with handles that are none. Real ones are for the integration tests.

What libcurl does with a call stands in a script, of which a step is run whenever libcurl is called. It asks for that as
libcurl does: by its timer, or by a socket.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import itertools
import os
import queue
import select
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from curls import FAILURES, HEADERS, KIB, PAUSE, URL, VERSIONS, Curl, assert_options, assert_versions, pycurl

from connectrpc._core.http import HTTPRequest
from connectrpc.cancel import CancelToken
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError
from connectrpc.transports._waiting import Helper
from connectrpc.transports.pycurl import PycurlTransport
from connectrpc.transports.pycurl import _sync as module
from harness import Forgotten, code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

PATIENCE = 5.0
OK = "HTTP/1.1 200 OK"


class Handle(Curl):
    """A handle that belongs to a ``Multi`` while it is in use."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.multi: Multi | None = None

    def pause(self, directions: int) -> None:
        assert self.multi is not None
        with self.multi.used():
            super().pause(directions)
            self.multi.ask_for(0)

    def close(self) -> None:
        assert self.multi is None, "libcurl may still be at it"
        super().close()

    @property
    def held_back(self) -> bool:
        return bool(self.paused and self.paused[-1] & pycurl.PAUSE_RECV)

    # For scripts.

    def connected(self) -> None:
        assert self.attempt() == pycurl.PREREQFUNC_OK

    def taken(self, size: int = 64 * KIB) -> Script[bytes]:
        """The next of the request, as soon as there is any."""
        while (part := self.read(size)) == PAUSE:
            yield None
        assert isinstance(part, bytes)
        return part

    def give(self, chunk: bytes) -> Script[None]:
        """More of the answer, unless nobody wants it."""
        while self.held_back:
            yield None
        assert self.write(chunk) is None


if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")
    Script = Generator[float | None, None, T]
    """Gives how many seconds libcurl wants to be called after; None where it waits for a socket, or to go on."""


class Multi:
    """A ``CurlMulti`` for one handle. It minds that it is used by one thread at a time."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.options: dict[int, Any] = {}
        self.curl: Handle | None = None
        self.removed_by: threading.Thread | None = None
        self.waits = threading.Event()
        self.closed = False
        self._script: Script[None] | None = None
        self._ended: list[tuple[list[Any], list[Any]]] = []
        self._due_at: float | None = None
        self._using = threading.Lock()
        self._near, self._far = socket.socketpair()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        fine = self._using.acquire(blocking=False)
        if not fine or self.closed:
            self.network.wrong.append("it is closed" if fine else "two use it at once, or a callback does")
        assert fine
        try:
            yield
        finally:
            self._using.release()

    def setopt(self, option: int, value: Any) -> None:
        self.options[option] = value

    def add_handle(self, curl: Handle) -> None:
        with self.used():
            assert self.curl is None
            assert curl.multi is None
            self.curl, curl.multi, curl.paused = curl, self, []
            scripts = self.network.scripts
            self._script = (scripts.pop(0) if len(scripts) > 1 else scripts[0])(curl)
            self.network.begun.append(self)
            self.options[pycurl.M_SOCKETFUNCTION](pycurl.POLL_IN, self._near.fileno(), self, None)
            self.ask_for(0)

    def socket_action(self, fd: int, events: int) -> tuple[int, int]:
        with self.used():
            if fd == pycurl.SOCKET_TIMEOUT:
                assert events == 0
                assert self._due_at is not None
                assert self._due_at < time.monotonic() + 0.001, "it is too early"
            else:
                assert (fd, events) == (self._near.fileno(), pycurl.CSELECT_IN)
                self._near.recv(KIB)
            self._step()
            return 0, int(self._script is not None)

    def _step(self) -> None:
        assert self._script is not None
        assert self.curl is not None
        try:
            seconds = next(self._script)
        except StopIteration:
            self._finish([self.curl], [])
        except pycurl.error as error:
            if len(error.args) != 2:  # it is pycurl's own
                raise
            self._finish([], [(self.curl, *error.args)])
        else:
            self.ask_for(seconds)

    def _finish(self, done: list[Any], failed: list[Any]) -> None:
        self._script = None
        self._ended.append((done, failed))
        self._leave()

    def _leave(self) -> None:
        self.options[pycurl.M_SOCKETFUNCTION](pycurl.POLL_REMOVE, self._near.fileno(), self, None)
        self.ask_for(None)

    def ask_for(self, seconds: float | None) -> None:
        """Ask to be called after so many seconds."""
        self._due_at = None if seconds is None else time.monotonic() + seconds
        self.options[pycurl.M_TIMERFUNCTION](-1 if seconds is None else round(seconds * 1000))
        if seconds is None:
            self.waits.set()

    def poke(self) -> None:
        """Have the script go on. From any thread."""
        self._far.send(b"x")

    def info_read(self) -> tuple[int, list[Any], list[Any]]:
        with self.used():
            return (0, *self._ended.pop(0))

    def remove_handle(self, curl: Handle) -> None:
        with self.used():
            assert self.curl is curl
            self.removed_by = threading.current_thread()
            self.network.on_remove(self)
            script, self._script = self._script, None
            self.curl = curl.multi = None
            self._ended.clear()
            if script is not None:
                with contextlib.suppress(ValueError):  # in the midst of a step, where an exception was to come out
                    script.close()
                self._leave()

    def close(self) -> None:
        self.network.on_close()
        if self.curl is not None:
            self.remove_handle(self.curl)
        with self.used():
            self.closed = True

    def let_go(self) -> None:
        self._near.close()
        self._far.close()


class Network:
    """What handles and servers there are.

    Attributes:
        scripts: one for each request; the last one is for all that follow.
        begun: where requests were begun, each time.
        wrong: what must never be done, and was.
        on_remove: what takes its time where a handle is removed.
        on_close: what takes its time where a connection is closed.
    """

    def __init__(self) -> None:
        self.scripts: list[Callable[[Handle], Script[None]]] = [answer()]
        self.curls: list[Handle] = []
        self.multis: list[Multi] = []
        self.begun: list[Multi] = []
        self.wrong: list[str] = []
        self.on_remove: Callable[[Multi], object] = lambda multi: None
        self.on_close: Callable[[], object] = lambda: None
        self.transports: list[PycurlTransport] = []

    def make_curl(self) -> Handle:
        curl = Handle(self)
        self.curls.append(curl)
        return curl

    def make_multi(self) -> Multi:
        multi = Multi(self)
        self.multis.append(multi)
        return multi

    def connect(self, *scripts: Callable[[Handle], Script[None]], **options: Any) -> PycurlTransport:
        if scripts:
            self.scripts = list(scripts)
        transport = PycurlTransport(**options)
        self.transports.append(transport)
        return transport


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    network = Network()
    monkeypatch.setattr(pycurl, "Curl", network.make_curl)
    monkeypatch.setattr(pycurl, "CurlMulti", network.make_multi)
    yield network
    try:
        for transport in network.transports:
            transport.close()
        wait_for(lambda: all(multi.closed for multi in network.multis))  # some in a thread of their own
    finally:
        for multi in network.multis:
            multi.let_go()
    assert network.wrong == []


def answer(*chunks: bytes, head: tuple[str, ...] = (OK,), trailers: tuple[str, ...] = ()) -> Any:
    """A script: a whole answer, each chunk in a step of its own."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(*head)
        for chunk in chunks:
            yield 0
            yield from curl.give(chunk)
        if trailers:
            curl.trailers(*trailers)

    return script


def silent(curl: Handle) -> Script[None]:
    """A script: there is never an answer."""
    curl.connected()
    while True:
        yield None


def endless(curl: Handle) -> Script[None]:
    """A script: a head, and a chunk whenever it is poked."""
    curl.connected()
    curl.head(OK)
    while True:
        yield None
        yield from curl.give(b"one")


def silent_until(condition: Callable[[], Any]) -> Any:
    """A script: an empty answer, in its time."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        while not condition():
            yield 0.001
        curl.head(OK)

    return script


def echo(curl: Handle) -> Script[None]:
    """A script: what comes goes back."""
    curl.connected()
    curl.head(OK)
    while part := (yield from curl.taken()):
        yield from curl.give(part)
        yield 0


def send(
    transport: PycurlTransport,
    body: Any = b"request",
    method: str = "POST",
    *,
    url: str = URL,
    deadline: Deadline | None = None,
    opening: Deadline | None = None,
    cancel: CancelToken | None = None,
) -> Any:
    """Begin a call. Without a deadline it has one that shows where nobody wakes it."""
    deadline = Deadline(int(PATIENCE * 1000)) if deadline is None else deadline
    request = HTTPRequest(method, url, HEADERS)
    return transport.send(
        request, body, stream=True, deadline=deadline, opening=deadline if opening is None else opening, cancel=cancel
    )


def beside(function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
    """Run a function in another thread."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def at_once(function: Callable[[], object]) -> None:
    """Run a function in another thread, and wait for it."""
    beside(function).result(PATIENCE)


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """For tests in which a thread that nobody wakes would wait for ever."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        beside(test, *args, **options).result(2 * PATIENCE)

    return run


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def parts(*given: bytes) -> Iterator[bytes]:
    yield from given


def queued(more: queue.Queue[bytes | None]) -> Iterator[bytes]:
    """Parts that the test puts there, until None."""
    while (part := more.get(timeout=PATIENCE)) is not None:
        yield part


# What libcurl is told.


def test_a_handle(network: Network) -> None:
    send(network.connect(connect_timeout=1.5)).close()
    options = network.curls[0].options
    assert_options(options)


@pytest.mark.parametrize(
    ("body", "length"), [(b"request", 7), (b"", 0), (None, 0), ((b"request",), -1)], ids=["7", "0", "none", "-1"]
)
def test_bodies_of_requests(network: Network, body: Any, length: int) -> None:
    seen: list[Any] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        seen.append(curl.options[pycurl.POSTFIELDSIZE_LARGE])
        while part := (yield from curl.taken()):
            seen.append(part)
        curl.head(OK)

    send(network.connect(script), parts(*body) if isinstance(body, tuple) else body).close()
    assert seen == [length, b"request"] if length else [0]


def test_a_request_by_get(network: Network) -> None:
    send(network.connect(), None, "GET").close()
    assert network.curls[0].options[pycurl.HTTPGET] == 1
    assert pycurl.POST not in network.curls[0].options


@pytest.mark.parametrize(
    ("version", "number", "has_trailers"),
    VERSIONS,
)
def test_versions(network: Network, version: Any, number: int, has_trailers: bool) -> None:
    transport = network.connect(http_version=version)
    send(transport).close()
    assert network.curls[0].options[pycurl.HTTP_VERSION] == number
    assert transport.has_trailers is has_trailers


def test_versions_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_versions(PycurlTransport, monkeypatch)


def test_what_the_user_sets(network: Network) -> None:
    """Once for each handle, and it stays, but for what the transport could not do without."""
    configured: list[Any] = []

    def configure(curl: Any) -> None:
        configured.append(curl)
        curl.setopt(pycurl.PROXY, "http://proxy")
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.HTTP_VERSION, 0)

    transport = network.connect(configure=configure, http_version="1.1")
    for _ in range(2):
        send(transport).read(None)
    assert configured == network.curls
    options = network.curls[0].options
    assert (options[pycurl.PROXY], options[pycurl.TCP_KEEPALIVE]) == ("http://proxy", 1)
    assert options[pycurl.HTTP_VERSION] == pycurl.CURL_HTTP_VERSION_1_1


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_what_the_users_function_raises(network: Network, failure: type[BaseException]) -> None:
    failing = [failure]

    def configure(curl: Any) -> None:
        if failing:
            raise failing.pop()

    transport = network.connect(configure=configure)
    with pytest.raises(failure):
        send(transport)
    assert send(transport).read(None) == b""


def test_headers_that_libcurl_does_not_take(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, and the connection is there for the next call."""

    def refuse(curl: Any, option: int, value: Any) -> None:
        if option == pycurl.HTTPHEADER:
            raise UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal not in range(128)")

    transport = network.connect()
    send(transport).read(None)
    with monkeypatch.context() as patch, pytest.raises(UnicodeEncodeError):
        patch.setattr(Curl, "setopt", refuse)
        send(transport)
    assert len(network.begun) == 1
    send(transport).read(None)
    assert network.begun == network.multis * 2


# Answers.


def test_a_head_and_interim_ones(network: Network) -> None:
    """However it comes in."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head("HTTP/1.1 103 Early Hints", "link: x")
        curl.head("HTTP/1.1 100 Continue")
        yield 0
        lines = [
            b"HTTP/1.1 404 ",
            b"X-One:  1 ",
            b"x-many: 1",
            b"x-many: 2",
            b"x-colon: a:b",
            b"x-empty:",
            b"x-odd: \xc3\xa9",
            b"",
        ]
        for line in lines:
            yield 0
            curl.options[pycurl.HEADERFUNCTION](line + b"\r\n")

    response = send(network.connect(script))
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
    assert response.read(None) == b""


def test_a_status_with_something_behind_it(network: Network) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        yield 0
        curl.head("HTTP/1.1 100Continue")
        curl.head("HTTP/1.1 404Not Found", "x-a: 1")

    response = send(network.connect(script))
    assert (response.status, response.headers["x-a"]) == (404, "1")
    assert response.read(None) == b""


def test_interim_heads_that_come_with_the_last_one(network: Network) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head("HTTP/1.1 103 Early Hints", "x-early: 1")
        curl.head("HTTP/1.1 200 OK", "x-late: 1")
        curl.write(b"one")
        curl.trailers("x-tail: 1")
        return
        yield

    response = send(network.connect(script))
    assert response.read_chunk() == b"one"
    assert response.read_chunk() == b""
    assert (dict(response.headers), dict(response.trailers)) == ({"x-late": "1"}, {"x-tail": "1"})
    response.close()


@pytest.mark.parametrize(("version", "value"), [("HTTP/1.1", "x"), ("HTTP/2", " x ")])
def test_white_space_around_values(network: Network, version: str, value: str) -> None:
    """Over HTTP/2 it is grpcio's, in the messages of errors."""
    response = send(network.connect(answer(head=(f"{version} 200 ", "x-head:  x "), trailers=("x-tail:  x ",))))
    assert response.read(None) == b""
    assert list(response.headers.items()) == [("x-head", value)]
    assert list(response.trailers.items()) == [("x-tail", value)]


@pytest.mark.parametrize("trailers", [["Grpc-Status: 0", "x-two: 1", "x-two: 2"], []])
def test_chunks_and_trailers(network: Network, trailers: list[str]) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        curl.write(b"one")
        curl.write(b"two")
        yield 0
        curl.write(b"six")
        if trailers:
            curl.trailers(*trailers)
        yield 0

    response = send(network.connect(script))
    assert response.read_chunk() == b"onetwo", "what there is"
    assert response.read_chunk() == b"six"
    early: Any = response.trailers
    assert early is None
    for _ in range(2):
        assert response.read_chunk() == b""
    if trailers:
        assert list(response.trailers.items()) == [("Grpc-Status", "0"), ("x-two", "1"), ("x-two", "2")]
    else:
        assert response.trailers is None
    response.check()
    response.close()
    response.close()


@pytest.mark.parametrize("limit", [None, 6, 7, 100])
def test_a_whole_body(network: Network, limit: int | None) -> None:
    response = send(network.connect(answer(b"one", b"two", trailers=("x-tail: 1",))))
    assert response.read(limit) == b"onetwo"
    assert response.trailers["x-tail"] == "1"


@pytest.mark.parametrize("limit", [0, 2, 5])
def test_a_body_is_cut_off_beyond_the_limit(network: Network, limit: int) -> None:
    response = send(network.connect(answer(*[b"one"] * 100)))
    assert limit < len(response.read(limit)) <= limit + 3
    assert network.multis[0].removed_by is not None
    assert network.multis[0].curl is None, "libcurl has been made to leave it"


def test_a_call_without_a_deadline(network: Network) -> None:
    response = send(network.connect(endless), deadline=NO_DEADLINE)
    reading = beside(response.read_chunk)
    network.multis[0].poke()
    assert reading.result(PATIENCE) == b"one"
    response.close()


def test_libcurl_is_called_when_it_wants_to_be(network: Network) -> None:
    """Neither earlier nor, for want of anything else that happens, never."""
    called: list[float] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        for _ in range(3):
            called.append(time.monotonic())
            yield 0.02
        called.append(time.monotonic())
        curl.head(OK)

    assert send(network.connect(script), deadline=NO_DEADLINE).read(None) == b""
    assert all(later - earlier >= 0.019 for earlier, later in itertools.pairwise(called))
    assert called[-1] - called[0] < PATIENCE / 2


def test_a_deadline_before_libcurl_wants_to_be_called(network: Network) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        yield 60

    begun = time.monotonic()
    with pytest.raises(ConnectError, match="deadline has passed"):
        send(network.connect(script), deadline=Deadline(20))
    assert time.monotonic() - begun < PATIENCE / 2


def test_waiting_costs_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after somebody was woken."""
    polls: list[float] = []

    class Poll(module._Select):
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            polls.append(milliseconds)
            return super().poll(milliseconds)

    monkeypatch.setattr(select, "poll", Poll, raising=False)
    more: queue.Queue[bytes | None] = queue.Queue()
    response = send(network.connect(echo), queued(more))
    reading = beside(response.read, None)
    for _ in range(3):
        more.put(b"one")
    time.sleep(0.05)
    more.put(None)
    assert reading.result(PATIENCE) == b"one" * 3
    assert len(polls) < 50


@pytest.mark.parametrize("chunks", [False, True])
def test_what_has_come_before_a_failure(network: Network, chunks: bool) -> None:
    """It is read first, but half a body is none."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        curl.write(b"one")
        yield 0
        curl.write(b"two")
        raise pycurl.error(18, "transfer closed with 6 bytes remaining to read")

    response = send(network.connect(script))
    if chunks:
        assert response.read_chunk() == b"one"
        assert response.read_chunk() == b"two"
    for _ in range(2 if chunks else 1):
        with pytest.raises(ConnectError, match="in the middle of the answer") as caught:
            response.read_chunk() if chunks else response.read(None)
        assert code_of(caught.value) == "unavailable"
    assert response.trailers is None
    response.close()


@pytest.mark.parametrize("lines", [[], [b"HTTP/1.1 200 OK\r\n"], [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]])
def test_an_answer_that_ends_in_its_head(network: Network, lines: list[bytes]) -> None:
    """libcurl takes it for a whole one."""

    def script(curl: Handle) -> Script[None]:
        for line in lines:
            curl.options[pycurl.HEADERFUNCTION](line)
        return
        yield

    with pytest.raises(ConnectError, match="in the head of the answer") as caught:
        send(network.connect(script))
    assert code_of(caught.value) == "unavailable"


# Requests in parts.


def test_parts_are_sliced_and_joined(network: Network) -> None:
    taken: list[Any] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        while not ended.is_set():
            yield 0.001
        taken.extend([curl.read(2), curl.read(5), curl.read(), curl.read(), curl.read()])
        curl.head(OK)

    def request() -> Iterator[bytes]:
        yield from (b"one", b"", b"two", b"three")
        ended.set()

    ended = threading.Event()
    # The last of it, and that it was the last, may not be there at the same time.
    assert send(network.connect(script), request()).read(None) == b""
    assert b"".join(part for part in taken if part != PAUSE) == b"onetwothree"
    assert taken[:3] == [b"on", b"etwot", b"hree"]


@pytest.mark.parametrize("given", [iter([b"one", b"two"]), parts(b"one", b"two")], ids=["iterator", "generator"])
def test_an_upload_without_an_answer_yet(network: Network, given: Iterator[bytes]) -> None:
    taken: list[bytes] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        while part := (yield from curl.taken()):
            taken.append(part)
        curl.head(OK)

    assert send(network.connect(script), given).read(None) == b""
    assert b"".join(taken) == b"onetwo"


def test_an_upload_waits_for_its_iterator(network: Network) -> None:
    """Nor does an empty part end it, which is what no bytes mean to libcurl."""
    more: queue.Queue[bytes | None] = queue.Queue()
    taken: list[Any] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        while (part := curl.read()) != b"":
            taken.append(part)
            yield None

    response = send(network.connect(script), queued(more))
    curl, multi = network.curls[0], network.multis[0]
    reading = beside(response.read_chunk)
    wait_for(multi.waits.is_set)
    more.put(b"")
    time.sleep(0.01)
    assert (curl.paused, taken) == ([], [PAUSE])
    more.put(b"one")
    wait_for(lambda: taken == [PAUSE, b"one"])
    assert curl.paused == [0]
    multi.poke()
    wait_for(lambda: taken == [PAUSE, b"one", PAUSE])
    more.put(None)
    assert reading.result(PATIENCE) == b""
    assert curl.paused == [0, 0]
    response.close()


@bounded
def test_an_upload_goes_on_while_nobody_reads(network: Network) -> None:
    """Its own thread has libcurl send it."""
    taken: list[bytes] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield 0.001
        while part := (yield from curl.taken(16 * KIB)):
            taken.append(part)
            yield 0.001

    response = send(network.connect(script), parts(*[bytes(16 * KIB)] * 20))
    wait_for(lambda: len(taken) >= 16)
    assert response.read(None) == b""
    assert len(b"".join(taken)) == 20 * 16 * KIB


@bounded
def test_an_upload_goes_on_that_was_busy_when_it_was_looked_at(network: Network) -> None:
    """The iterator's own thread is at it, just as somebody looks whether anybody waits for the answer."""
    sent = threading.Event()
    taken: list[bytes] = []

    def request() -> Iterator[bytes]:
        sent.wait(PATIENCE)
        for _ in range(4):
            yield bytes(64 * KIB)

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        assert curl.read() == PAUSE
        yield None
        time.sleep(0.05)
        while part := (yield from curl.taken(16 * KIB)):
            taken.append(part)
            yield 0.001

    response = send(network.connect(script), request())
    sent.set()
    try:
        wait_for(lambda: len(taken) >= 12)
    finally:
        response.close()


@bounded
def test_an_answer_waits_for_its_reader_while_an_upload_goes_on(network: Network) -> None:
    """64 KiB are taken, and the rest when they have been read."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        for _ in range(10):
            yield from curl.give(bytes(16 * KIB))
            yield 0
        while True:  # nor does it take the request
            yield None

    transport = network.connect(script)
    for _ in range(2):  # the second time it does not stay as it was left
        response = send(transport, parts(*[bytes(16 * KIB)] * 100))
        wait_for(lambda: network.curls[0].held_back)
        if not network.begun[1:]:
            response.close()
            wait_for(lambda: transport._idle["http://h"]._sessions)
    time.sleep(0.01)
    received = len(response.read_chunk())
    assert 64 * KIB <= received <= 80 * KIB
    assert 0 in network.curls[0].paused
    while received < 160 * KIB:
        received += len(response.read_chunk())
    assert received == 160 * KIB
    response.close()


@bounded
def test_both_directions_pause_apart(network: Network) -> None:
    """The request waits for its iterator, and goes on waiting when somebody reads."""
    more: queue.Queue[bytes | None] = queue.Queue()
    taken: list[Any] = []

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield None
        for _ in range(4):
            curl.write(bytes(16 * KIB))
        yield None
        while not taken or taken[-1] != b"":
            taken.append(curl.read(16 * KIB))
            while taken[-1] not in (PAUSE, b""):
                taken.append(curl.read(16 * KIB))
            if taken[-1] == PAUSE:
                yield None

    response = send(network.connect(script), queued(more))
    curl, multi = network.curls[0], network.multis[0]
    more.put(bytes(64 * KIB))  # as much as fits: its thread goes on with the call
    wait_for(response._turn.locked)
    multi.poke()
    wait_for(lambda: taken[-1:] == [PAUSE])
    more.put(b"one")
    wait_for(lambda: taken[-2:] == [b"one", PAUSE])
    assert curl.paused == [pycurl.PAUSE_RECV] * 2
    assert len(response.read_chunk()) == 64 * KIB
    assert curl.paused[2:] == [pycurl.PAUSE_SEND]
    more.put(None)
    assert response.read_chunk() == b""
    response.close()


def test_an_iterator_is_not_far_ahead(network: Network) -> None:
    given = 0

    def request() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield bytes(16 * KIB)

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        while True:
            yield None
            assert curl.read(16 * KIB) == bytes(16 * KIB)

    response = send(network.connect(script), request())
    wait_for(lambda: given == 4)
    time.sleep(0.02)
    assert given == 4
    # One is taken whoever has the turn: the thread that reads the iterator, or the one that reads the answer.
    network.multis[0].poke()
    wait_for(lambda: given == 5)
    reading = beside(response.read_chunk)
    network.multis[0].poke()
    wait_for(lambda: given == 6)
    time.sleep(0.02)
    assert given == 6
    response.interrupt()
    with pytest.raises(ConnectError):
        reading.result(PATIENCE)
    response.close()


def test_an_iterator_goes_on_as_soon_as_there_is_room(network: Network) -> None:
    """It is told so: it does not only look now and then."""
    response = send(network.connect(echo), parts(*[bytes(64 * KIB)] * 20))
    assert len(response.read(None)) == 20 * 64 * KIB


def test_an_iterator_that_waits_for_room_ends_with_its_call(network: Network) -> None:
    sent, full, ended = threading.Event(), threading.Event(), threading.Event()

    def request() -> Iterator[bytes]:
        try:
            yield bytes(KIB)
            sent.wait(PATIENCE)
            wait_for(response._turn.locked)  # by who reads
            full.set()
            while True:
                yield bytes(64 * KIB)
        finally:
            ended.set()

    response = send(network.connect(endless), request())
    sent.set()
    reading = beside(response.read_chunk)
    assert full.wait(PATIENCE)
    time.sleep(0.01)
    response.interrupt()
    with pytest.raises(ConnectError, match="was closed"):
        reading.result(PATIENCE)
    assert ended.wait(PATIENCE)
    response.close()


@pytest.mark.parametrize(
    "failure", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit, StopAsyncIteration]
)
@pytest.mark.parametrize("answered", [False, True])
def test_what_the_iterator_raises(network: Network, failure: type[BaseException], answered: bool) -> None:
    """As it is."""
    going_on = threading.Event()
    cause = KeyError("a")
    error = failure()
    error.__cause__ = cause

    def broken() -> Iterator[bytes]:
        yield b"one"
        going_on.wait(PATIENCE)
        raise error

    if answered:
        response = send(network.connect(endless), broken())
        waiting = beside(response.read_chunk)
    else:
        waiting = beside(send, network.connect(silent), broken())
        wait_for(lambda: network.begun)
    going_on.set()
    with pytest.raises(failure) as caught:
        waiting.result(PATIENCE)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, None), "just as it was raised"
    if answered:
        response.close()
    wait_for(lambda: network.multis[0].curl is None)


def test_what_the_iterator_raises_while_nobody_reads(network: Network) -> None:
    """The server learns of it at once, and who reads then."""

    def broken() -> Iterator[bytes]:
        yield b"one"
        wait_for(answered.is_set)
        raise ZeroDivisionError

    answered = threading.Event()
    response = send(network.connect(endless), broken())
    answered.set()
    wait_for(lambda: network.multis[0].curl is None)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            response.read_chunk()
    response.close()


@pytest.mark.parametrize("how", ["waits", "full", "not begun", "done"])
def test_the_end_of_a_call_ends_its_iterator(network: Network, how: str) -> None:
    """In its own thread, wherever it is; one that blocks, as soon as it gives something."""
    threads: dict[str, threading.Thread] = {}
    going_on = threading.Event()

    def request() -> Iterator[bytes]:
        threads["begun"] = threading.current_thread()
        try:
            if how == "not begun":
                going_on.wait(PATIENCE)
            while True:
                yield bytes(16 * KIB)
                if how in ("waits", "done"):
                    threads["waits"] = threading.current_thread()
                    going_on.wait(PATIENCE)
        finally:
            threads["ended"] = threading.current_thread()

    def script(curl: Handle) -> Script[None]:
        yield from endless(curl) if how != "done" else silent_until(lambda: "waits" in threads)(curl)

    response = send(network.connect(script), request())
    wait_for(lambda: ("waits" if how in ("waits", "done") else "begun") in threads)
    if how == "done":
        assert response.read(None) == b""
    else:
        response.close()
        wait_for(lambda: network.multis[0].curl is None)
    assert how == "full" or "ended" not in threads
    going_on.set()
    wait_for(lambda: "ended" in threads)
    assert threads["begun"] is threads["ended"] is not threading.current_thread()


def test_an_iterator_that_fails_while_it_is_closed(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    """The call is over, and has its outcome."""

    begun = threading.Event()

    def request() -> Iterator[bytes]:
        begun.set()
        try:
            while True:
                yield bytes(64 * KIB)
        finally:
            raise ZeroDivisionError

    response = send(network.connect(endless), request())
    assert begun.wait(PATIENCE)
    response.close()
    wait_for(lambda: "a request iterator failed while it was closed" in caplog.text)


def test_an_answer_that_is_there_before_the_request(network: Network) -> None:
    more: queue.Queue[bytes | None] = queue.Queue()
    response = send(network.connect(answer(b"one")), queued(more))
    assert response.read(None) == b"one"
    more.put(b"late")


def test_context_variables_reach_the_iterator(network: Network) -> None:
    """Wherever in it they are looked at."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    found: list[str] = []

    def request() -> Iterator[bytes]:
        found.append(variable.get())
        variable.set("changed")
        try:
            while True:
                yield bytes(64 * KIB)
        finally:
            found.append(variable.get())

    response = send(network.connect(endless), request())
    wait_for(lambda: found)
    response.close()
    wait_for(lambda: len(found) == 2)
    assert found == ["set", "changed"]
    assert variable.get() == "set"


def test_a_request_iterator_may_make_calls(network: Network) -> None:
    transport = network.connect(echo, answer(b"inner"))

    def request() -> Iterator[bytes]:
        yield send(transport).read(None)

    assert send(transport, request()).read(None) == b"inner"


class Nobody(list[Helper]):
    """No thread is free, though that of a call which is over may come back just now."""

    def pop(self, *_: Any) -> Helper:
        raise IndexError


def test_without_a_thread(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    transport = network.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Helper, "_idle", Nobody())
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConnectError, match="no thread can be started") as caught:
            send(transport, parts(b"one"))
    assert code_of(caught.value) == "resource_exhausted"
    wait_for(lambda: network.multis[0].curl is None)
    assert send(transport, parts(b"one")).read(None) == b""


# Failures.


@pytest.mark.parametrize(
    ("number", "text", "code", "told"), FAILURES, ids=[f"{row[0]}-{row[1][:30]}" for row in FAILURES]
)
def test_failures(network: Network, number: int, text: str, code: str, told: str) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.errno = 111 if number == 7 and "tunnel" not in text else 0
        yield 0
        raise pycurl.error(number, text)

    transport = network.connect(script, answer())
    with pytest.raises(ConnectError) as caught:
        send(transport)
    assert code_of(caught.value) == code
    assert told in caught.value.message
    assert "secret" not in caught.value.message
    assert isinstance(caught.value.__cause__, pycurl.error)
    send(transport).read(None)
    assert network.begun == network.multis * 2


@pytest.mark.parametrize("number", [55, 56])
def test_a_connection_fails_after_the_head(network: Network, number: int) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield 0
        raise pycurl.error(number, "Connection reset by peer")

    response = send(network.connect(script))
    with pytest.raises(ConnectError) as caught:
        response.read_chunk()
    assert code_of(caught.value) == "unavailable"
    assert "without an answer" not in caught.value.message
    response.close()


@pytest.mark.parametrize("by", ["caller", "upload"])
def test_a_failure_of_pycurl_itself(network: Network, by: str) -> None:
    """It has no number. Nothing is known of the connection then."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        if by == "upload":
            curl.head(OK)
            yield None
        raise pycurl.error("cannot invoke socket_action()")

    transport = network.connect(script, answer())
    body = parts(*[bytes(64 * KIB)] * 2) if by == "upload" else b""
    with pytest.raises(ConnectError, match="libcurl failed") as caught:
        response = send(transport, body)
        wait_for(response._turn.locked)
        network.multis[0].poke()
        wait_for(lambda: not response._turn.locked())
        response.read(None)
    assert code_of(caught.value) == "unavailable"
    wait_for(lambda: network.multis[0].closed)
    assert send(transport).read(None) == b""


# The end.


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_call_that_is_over_before_it_begins(network: Network, in_parts: bool) -> None:
    """Nothing is sent, and the iterator is not asked for anything."""
    token = CancelToken()
    token.cancel()
    transport = network.connect()
    asked: list[bool] = []

    def request() -> Iterator[bytes]:
        asked.append(True)
        yield b"one"

    endings: list[tuple[str, dict[str, Any]]] = [
        ("the deadline has passed", {"deadline": Deadline(0)}),
        ("the stream was not opened in time", {"opening": Deadline(0)}),
        ("the call was canceled", {"cancel": token}),
    ]
    for message, options in endings:
        with pytest.raises(ConnectError, match=message):
            send(transport, request() if in_parts else b"request", **options)
    assert not network.begun
    assert not asked


@pytest.mark.parametrize("how", ["deadline", "opening", "token", "token beforehand"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_call_ends_while_it_waits_for_the_head(network: Network, how: str, in_parts: bool) -> None:
    token = CancelToken()

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        if how == "token beforehand":
            at_once(token.cancel)  # while libcurl is at work
        while True:
            yield None

    transport = network.connect(script, answer())
    options: dict[str, Any] = {"deadline": NO_DEADLINE, "cancel": token}
    if how in ("deadline", "opening"):
        options[how] = Deadline(300)
    begun = time.monotonic()
    waiting = beside(send, transport, parts(b"one") if in_parts else b"request", **options)
    wait_for(lambda: network.begun and network.multis[0].waits.is_set())
    if how == "token":
        token.cancel()
    message = {"deadline": "deadline has passed", "opening": "not opened in time"}.get(how, "was canceled")
    with pytest.raises(ConnectError, match=message) as caught:
        waiting.result(PATIENCE)
    assert code_of(caught.value) == ("deadline_exceeded" if how in ("deadline", "opening") else "canceled")
    assert time.monotonic() - begun < PATIENCE / 2
    wait_for(lambda: network.multis[0].curl is None)
    assert send(transport).read(None) == b""
    assert not token._callbacks, "it is forgotten with the call"


@pytest.mark.parametrize("how", ["deadline", "token", "interrupt"])
@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("upload", ["whole", "waits", "full"])
@bounded
def test_a_call_ends_in_the_answer(network: Network, how: str, reading: bool, upload: str) -> None:
    """Whoever has the turn then. What has come is read first."""
    token = CancelToken()
    more: queue.Queue[bytes | None] = queue.Queue()
    if upload == "full":
        for _ in range(3):
            more.put(bytes(64 * KIB))
    deadline = Deadline(300) if how == "deadline" else NO_DEADLINE
    response = send(
        network.connect(endless), b"" if upload == "whole" else queued(more), deadline=deadline, cancel=token
    )
    multi = network.multis[0]
    wait_for(multi.waits.is_set)
    if upload == "full":
        wait_for(response._turn.locked)
    chunk = beside(response.read_chunk) if reading else None
    if reading:
        wait_for(response._turn.locked)
        time.sleep(0.002)
    if how == "deadline":
        wait_for(deadline.expired)
    else:
        at_once(token.cancel if how == "token" else response.interrupt)
    message = {"deadline": "deadline has passed", "token": "was canceled", "interrupt": "was closed"}[how]
    for _ in range(2):
        with pytest.raises(ConnectError, match=message):
            response.read_chunk() if chunk is None else chunk.result(PATIENCE)
        with pytest.raises(ConnectError, match=message):
            response.check()
    if how != "deadline":
        wait_for(lambda: multi.curl is None)  # though nobody has closed it yet
    more.put(None)
    response.close()
    wait_for(lambda: multi.curl is None)


def test_what_has_come_before_the_end_is_read_first(network: Network) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        curl.write(b"one")
        while True:
            yield None

    token = CancelToken()
    response = send(network.connect(script), cancel=token)
    token.cancel()
    assert response.read_chunk() == b"one"
    with pytest.raises(ConnectError, match="the call was canceled"):
        response.read_chunk()
    response.close()


@bounded
def test_what_was_held_back_before_the_end_is_read_first(network: Network) -> None:
    """And libcurl, which has left the call, is not made to go on with it."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        while True:
            yield from curl.give(bytes(16 * KIB))
            yield 0

    token = CancelToken()
    response = send(network.connect(script), parts(*[bytes(64 * KIB)] * 3), cancel=token)
    curl = network.curls[0]
    wait_for(lambda: curl.held_back)
    token.cancel()
    wait_for(lambda: network.multis[0].curl is None)
    assert len(response.read_chunk()) >= 64 * KIB
    with pytest.raises(ConnectError, match="the call was canceled"):
        response.read_chunk()
    response.close()


def test_the_first_reason_stays(network: Network) -> None:
    token = CancelToken()
    response = send(network.connect(endless), cancel=token)
    token.cancel()
    response.interrupt()
    with pytest.raises(ConnectError, match="the call was canceled"):
        response.read_chunk()
    response.close()


def test_the_limit_for_the_head_ends_with_it(network: Network) -> None:
    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield 0.05
        curl.write(b"one")

    opening = Deadline(300)
    response = send(network.connect(script), deadline=NO_DEADLINE, opening=opening)
    wait_for(opening.expired)
    assert response.read(None) == b"one"


@pytest.mark.parametrize("days", [30, 40_000])
def test_a_deadline_that_no_poll_can_keep(network: Network, days: int) -> None:
    """Their limit is 24 days."""
    response = send(network.connect(endless), deadline=Deadline(days * 86_400_000))
    reading = beside(response.read_chunk)
    wait_for(network.multis[0].waits.is_set)
    network.multis[0].poke()
    assert reading.result(PATIENCE) == b"one"
    response.close()


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_token_is_cancelled_while_the_request_is_made_ready(
    network: Network, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    """At whatever moment."""
    transport = network.connect()
    send(transport).read(None)
    steps = 0
    while True:
        token, steps, left = CancelToken(), steps + 1, [steps]

        def note(curl: Curl, option: int, value: Any, token: CancelToken = token, left: list[int] = left) -> None:
            curl.options[option] = value
            if not left[0]:
                at_once(token.cancel)
            left[0] -= 1

        with monkeypatch.context() as patch:
            patch.setattr(Curl, "setopt", note)
            begun = len(network.begun)
            if left[0] > 20:
                break
            try:
                response = send(transport, parts(b"one") if in_parts else b"request", cancel=token)
            except ConnectError as error:
                assert error.message == "the call was canceled"  # noqa: PT017
                assert token.canceled
            else:
                assert not token.canceled
                response.close()
    assert len(network.begun) == begun
    assert send(transport).read(None) == b""


def test_a_call_that_is_over_is_not_stopped_any_more(network: Network) -> None:
    token = CancelToken()
    transport = network.connect(answer(b"one"))
    response = send(transport, cancel=token)
    assert response.read(None) == b"one"
    assert not token._callbacks
    token.cancel()
    response.interrupt()
    assert send(transport).read(None) == b"one"
    assert network.begun == network.multis * 2


def test_the_end_comes_before_anybody_learns_of_it(network: Network) -> None:
    """A token that is cancelled after the last step changes nothing."""
    token = CancelToken()
    response = send(network.connect(answer(trailers=("x-tail: 1",))), cancel=token)
    assert response.read_chunk() == b""
    token.cancel()
    assert response.trailers["x-tail"] == "1"
    response.close()


@pytest.mark.parametrize("state", ["begun", "half", "whole", "failed", "interrupted"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_closing(network: Network, state: str, in_parts: bool) -> None:
    """In any state, and again. The next call finds everything in order."""

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield 0
        curl.write(b"one")
        yield 0
        if state == "failed":
            raise pycurl.error(56, "Connection reset by peer")

    transport = network.connect(script, answer(b"two"))
    response = send(transport, parts(b"one") if in_parts else b"request")
    if state != "begun":
        assert response.read_chunk() == b"one"
    if state == "whole":
        assert response.read_chunk() == b""
    elif state == "failed":
        with pytest.raises(ConnectError):
            response.read_chunk()
    elif state == "interrupted":
        response.interrupt()
    for _ in range(2):
        response.close()
        wait_for(lambda: network.multis[0].curl is None)
    wait_for(lambda: transport._idle["http://h"]._sessions)
    assert send(transport).read(None) == b"two"
    assert network.begun == network.multis * 2


def test_closing_while_the_thread_of_the_upload_has_the_turn(network: Network) -> None:
    """It is woken, and does what is to be done."""
    transport = network.connect(endless, answer())
    response = send(transport, parts(*[bytes(64 * KIB)] * 3))
    wait_for(response._turn.locked)
    response.close()
    multi = network.multis[0]
    wait_for(lambda: multi.curl is None)
    assert multi.removed_by is not threading.current_thread()
    wait_for(lambda: transport._idle["http://h"]._sessions)
    assert send(transport).read(None) == b""
    assert network.begun == [multi, multi]


@pytest.mark.parametrize("by", ["caller", "upload"])
def test_a_stream_that_is_collected_inside_a_callback(network: Network, by: str) -> None:
    """Of another call, or in the thread of its own upload: libcurl must not be called from there."""

    def collecting(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        yield None
        gc.collect()
        while True:
            yield None

    def other(curl: Handle) -> Script[None]:
        curl.connected()
        gc.collect()
        curl.head(OK)
        return
        yield

    transport = network.connect(collecting, other)
    gc.disable()  # until it is to run
    try:
        response = send(transport, parts(*[bytes(64 * KIB)] * 3))
        multi = network.multis[0]
        wait_for(response._turn.locked)
        Forgotten(response)
        del response
        if by == "upload":
            multi.poke()
        else:
            assert send(transport).read(None) == b""
    finally:
        gc.enable()
    wait_for(lambda: multi.curl is None)


# Sessions.


def test_nothing_is_sent_twice(network: Network) -> None:
    def again(curl: Handle) -> Script[None]:
        curl.connected()
        yield 0
        assert curl.attempt() == pycurl.PREREQFUNC_ABORT
        raise pycurl.error(42, "operation aborted by pre-request callback")

    transport = network.connect(again, answer(b"one"))
    with pytest.raises(ConnectError, match="closed the connection without an answer"):
        send(transport)
    assert send(transport).read(None) == b"one", "the next call is another"
    assert network.begun == network.multis * 2


def test_a_connection_for_each_call_at_a_time(network: Network) -> None:
    transport = network.connect(endless, endless, answer())
    first, second = send(transport), send(transport)
    assert network.begun == network.multis
    assert len(network.multis) == 2
    second.close()
    first.close()
    for _ in range(3):
        send(transport).read(None)
    assert network.begun[2:] == [network.multis[0]] * 3, "the one that was used last"


def test_connections_are_to_one_server(network: Network) -> None:
    transport = network.connect()
    urls = ["http://h/p", "http://h/p/q?x=/", "http://h:81/p", "https://h/p", "http://i/p", "https://h/q"]
    for url in urls:
        send(transport, url=url).read(None)
    first, *others = network.multis
    assert len(others) == 3
    assert network.begun == [first, first, *others, others[1]]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_idle_connections_are_bounded(network: Network, most: int) -> None:
    transport = network.connect(endless, idle_connections=most)
    responses = [send(transport) for _ in range(5)]
    for response in responses:
        response.close()
    assert [multi.closed for multi in network.multis] == [False] * most + [True] * (5 - most)
    assert [curl.closed for curl in network.curls] == [multi.closed for multi in network.multis]
    transport.close()
    assert all(multi.closed for multi in network.multis)


def test_closing_the_transport(network: Network) -> None:
    """Calls that are under way go on, and their connections end with them. It may be used again."""
    with network.connect(endless, endless, answer(b"three")) as transport:
        response = send(transport)
        send(transport).close()
    first, second = network.multis
    assert second.closed
    assert not first.closed
    reading = beside(response.read_chunk)
    first.poke()
    assert reading.result(PATIENCE) == b"one"
    response.close()
    assert first.closed
    for _ in range(2):
        assert send(transport).read(None) == b"three"
    assert network.begun[2] is network.begun[3]
    transport.close()
    transport.close()
    assert all(multi.closed for multi in network.multis)
    assert all(curl.closed for curl in network.curls)


def test_closing_the_transport_while_a_call_to_a_new_server_begins(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is one of those that are under way or one of those to come, its connection does not stay."""
    closing: list[Future[Any]] = []
    half_closed, begun = threading.Event(), threading.Event()

    class Idle(module._Idle):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            closing.append(beside(transport.close))
            assert half_closed.wait(PATIENCE)

    def half_way() -> None:
        half_closed.set()
        assert begun.wait(PATIENCE)

    def script(curl: Handle) -> Script[None]:
        begun.set()
        yield from answer(b"one")(curl)

    transport = network.connect(script)
    for server in ("http://a/p", "http://b/p"):
        send(transport, url=server).read(None)
    begun.clear()
    network.on_close = half_way
    with monkeypatch.context() as patch:
        patch.setattr(module, "_Idle", Idle)
        assert send(transport, url="http://c/p").read(None) == b"one"
    closing[0].result(PATIENCE)
    transport.close()
    assert all(multi.closed for multi in network.multis)


def test_closing_the_transport_while_a_call_ends(network: Network) -> None:
    """Just as its connection is put with those that wait."""

    class Slow(list[Any]):
        def append(self, session: Any) -> None:
            at_once(transport.close)
            super().append(session)

    transport = network.connect(endless)
    response = send(transport)
    transport._idle["http://h"]._sessions = Slow()
    response.close()
    assert network.multis[0].closed


class Stop(BaseException):
    """What a signal makes of a call."""


@pytest.mark.parametrize("where", ["poll", "step", "before", "begin", "end"])
@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_that_was_left_in_the_middle_of_something(
    network: Network, monkeypatch: pytest.MonkeyPatch, where: str, answered: bool
) -> None:
    """As by a signal. It is not used again: libcurl does nothing more there, or is still at the request."""
    stopping = threading.Event()

    def stop(*_: Any) -> None:
        if stopping.is_set():
            stopping.clear()
            raise Stop

    class Poll(module._Select):
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            if where == "poll":
                stop()
            return super().poll(milliseconds)

    class Stopped(Multi):
        def add_handle(self, curl: Handle) -> None:
            if where == "before":  # pycurl tells of an exception in a callback as it likes
                stop()
            super().add_handle(curl)
            if where == "begin":
                stop()

        def socket_action(self, fd: int, events: int) -> tuple[int, int]:
            if where == "step":
                stop()
            return super().socket_action(fd, events)

        def remove_handle(self, curl: Handle) -> None:
            super().remove_handle(curl)
            if where == "end":
                stop()

    def make() -> Multi:
        network.multis.append(Stopped(network))
        return network.multis[-1]

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        if answered:
            curl.head(OK)
        yield 0.02
        yield 0

    monkeypatch.setattr(select, "poll", Poll, raising=False)
    monkeypatch.setattr(pycurl, "CurlMulti", make)
    transport = network.connect(*([] if where == "before" else [script]), answer())
    if not answered or where in ("before", "begin"):
        stopping.set()
        with pytest.raises(Stop):
            send(transport)
    else:
        response = send(transport)
        stopping.set()
        with pytest.raises(Stop):
            response.read(None)
    assert not stopping.is_set()
    for _ in range(2):
        assert send(transport).read(None) == b""
    first, *others = network.multis
    if others:
        wait_for(lambda: first.closed)
        assert network.begun[-2:] == others * 2
    else:
        assert where == "end", "libcurl has left the call there"


@pytest.mark.parametrize("how", ["deadline", "token"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_call_is_given_up_before_there_is_a_connection(network: Network, how: str, in_parts: bool) -> None:
    """libcurl may be looking up the server's name: only another thread waits for that."""
    looked_up = threading.Event()
    network.on_remove = lambda multi: multi is not network.multis[0] or looked_up.wait(PATIENCE)

    def script(curl: Handle) -> Script[None]:
        while True:
            yield None

    token = CancelToken()
    iterating, ended = threading.Event(), threading.Event()

    def request() -> Iterator[bytes]:
        iterating.set()
        try:
            while True:
                yield bytes(64 * KIB)
        finally:
            ended.set()

    transport = network.connect(script, answer())
    waiting = beside(
        send,
        transport,
        request() if in_parts else b"request",
        deadline=Deadline(300) if how == "deadline" else NO_DEADLINE,
        cancel=token,
    )
    wait_for(lambda: network.begun and network.multis[0].waits.is_set())
    assert not in_parts or iterating.wait(PATIENCE)
    begun = time.monotonic()
    if how == "token":
        token.cancel()
    with pytest.raises(ConnectError, match="deadline has passed" if how == "deadline" else "was canceled"):
        waiting.result(PATIENCE)
    if in_parts:
        assert ended.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert send(transport).read(None) == b""
    assert not network.multis[0].closed
    looked_up.set()
    wait_for(lambda: network.multis[0].closed)
    assert network.curls[0].closed
    assert network.begun == network.multis, "it is not used again"


def test_giving_a_call_up_without_a_thread(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it takes as long as it takes."""

    def script(curl: Handle) -> Script[None]:
        while True:
            yield None

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    transport = network.connect(script, answer())
    with monkeypatch.context() as patch:
        patch.setattr(Helper, "_idle", Nobody())
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConnectError, match="deadline has passed"):
            send(transport, deadline=Deadline(10))
    assert network.multis[0].removed_by is threading.current_thread()
    assert send(transport).read(None) == b""


@pytest.mark.parametrize("end", ["whole", "closed", "failed"])
def test_a_spare_connection_keeps_nothing_of_its_call(network: Network, end: str) -> None:
    class Parts:
        def __iter__(self) -> Parts:
            return self

        def __next__(self) -> bytes:
            return b"one"

    def script(curl: Handle) -> Script[None]:
        curl.connected()
        curl.head(OK)
        if end == "closed":
            while True:
                yield None
        if end == "failed":
            raise pycurl.error(56, "Connection reset by peer")

    transport = network.connect(script)
    body = Parts()
    kept = weakref.ref(body)
    response = send(transport, body)
    del body
    if end == "closed":
        response.close()
    else:
        with contextlib.suppress(ConnectError):
            response.read(None)
    wait_for(lambda: transport._idle["http://h"]._sessions)
    del response

    def forgotten() -> bool:
        gc.collect()
        return kept() is None

    wait_for(forgotten)
    whole = send(transport, b"request")
    whole.close()
    assert network.curls[0].read() == b""


# Processes.


def test_a_forked_process(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves alone what is its parent's, and has connections of its own."""
    transport = network.connect(endless, endless, answer(b"child"))
    response = send(transport)
    send(transport).close()
    idle = transport._idle["http://h"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ConnectError, match="the process that this one was forked from") as caught:
            response.read_chunk()
        assert code_of(caught.value) == "unavailable"
        response.interrupt()
        response.close()
        for _ in range(2):
            assert send(transport).read(None) == b"child"
        transport.close()
        parents, own = network.multis[:2], network.multis[2:]
        assert [multi.closed for multi in parents] == [False, False]
        assert parents[0].curl is not None
        assert [multi.closed for multi in own] == [True]
        session = response._session
        assert session is not None
    # The parent has had none of it.
    session.hand_back(idle)
    idle.close()
    assert all(multi.closed for multi in network.multis)


def test_a_forked_process_closes_what_it_has_not_used(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = network.connect()
    send(transport).read(None)
    (session,) = transport._idle["http://h"]._sessions
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        transport.close()
        assert not network.multis[0].closed
        assert not network.curls[0].closed
    session.close()


# Waiting for sockets.


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield near, far


def test_the_stand_in_for_poll(pair: tuple[socket.socket, socket.socket]) -> None:
    """For systems that have only ``select``."""
    near, far = pair
    poll = module._Select()
    poll.register(near.fileno(), module._READ)
    assert poll.poll(0) == []
    begun = time.monotonic()
    assert poll.poll(20) == []
    assert 0.015 < time.monotonic() - begun < PATIENCE / 2
    far.send(b"x")
    assert poll.poll(PATIENCE * 1000) == [(near.fileno(), module._READ)]
    poll.register(near.fileno(), module._READ | module._WRITE)
    assert poll.poll(PATIENCE * 1000) == [(near.fileno(), module._READ | module._WRITE)]
    near.recv(1)
    assert poll.poll(PATIENCE * 1000) == [(near.fileno(), module._WRITE)]
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(64 * KIB))
    assert poll.poll(0) == []
    poll.register(far.fileno(), module._READ)
    assert poll.poll(PATIENCE * 1000) == [(far.fileno(), module._READ)]
    poll.unregister(far.fileno())
    assert poll.poll(0) == []
    with pytest.raises(KeyError):
        poll.unregister(far.fileno())


def test_what_has_ended_can_be_read(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    poll = module._Select()
    poll.register(near.fileno(), module._READ)
    far.close()
    assert poll.poll(PATIENCE * 1000) == [(near.fileno(), module._READ)]


@pytest.mark.parametrize("poll", [True, False])
@pytest.mark.skipif(not hasattr(select, "poll"), reason="there is no other")
def test_calls_without_poll(network: Network, monkeypatch: pytest.MonkeyPatch, poll: bool) -> None:
    if not poll:
        monkeypatch.delattr(select, "poll")
    transport = network.connect(echo)
    assert send(transport, parts(b"one", b"two")).read(None) == b"onetwo"
    more: queue.Queue[bytes | None] = queue.Queue()
    response = send(transport, queued(more))
    for _ in range(3):
        more.put(b"one")
        assert response.read_chunk() == b"one"
    more.put(None)
    assert response.read(None) == b""
    response = send(transport, queued(more), deadline=Deadline(300))
    with pytest.raises(ConnectError, match="deadline has passed"):
        response.read(None)
    more.put(None)


def test_what_libcurl_waits_for(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each event is what libcurl takes it for; one that is no more waited for, and one that never was, are none."""
    near, far = pair
    watch = module._Watch()
    for what, events in ((pycurl.POLL_OUT, 4), (pycurl.POLL_IN, 0), (pycurl.POLL_INOUT, 4), (pycurl.POLL_REMOVE, 0)):
        watch.socket(what, near.fileno(), None, None)
        assert sum(found for _, found in watch.poll.poll(0)) == events
    watch.socket(pycurl.POLL_REMOVE, near.fileno(), None, None)
    watch.socket(pycurl.POLL_REMOVE, far.fileno(), None, None)


# Threads that meet at bad moments.


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
@bounded
def test_no_wake_up_is_lost(network: Network) -> None:
    """Each part is given when the one before has come back. Where one was forgotten, the deadline would pass."""
    more: queue.Queue[bytes | None] = queue.Queue()
    response = send(network.connect(echo), queued(more))
    for number in range(300):
        more.put(b"%d" % number)
        assert response.read_chunk() == b"%d" % number
    more.put(None)
    assert response.read_chunk() == b""
    response.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("size", [KIB, 40 * KIB, 100 * KIB])
@bounded
def test_no_byte_is_lost(network: Network, size: int) -> None:
    """With a reader that now and then does something else, so that the thread of the upload takes over."""
    count = 200 if size == KIB else 60

    def request() -> Iterator[bytes]:
        for number in range(count):
            yield bytes([number]) * size

    response = send(network.connect(echo), request())
    received = []
    while chunk := response.read_chunk():
        received.append(chunk)
        if len(received) % 8 == 0:
            time.sleep(0.001)
    assert b"".join(received) == b"".join(bytes([number]) * size for number in range(count))
    response.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("how", ["close", "interrupt", "token", "finish"])
@bounded
def test_calls_that_end_at_any_moment(network: Network, how: str) -> None:
    """Nothing is left to libcurl, and every iterator ends."""
    transport = network.connect(echo)
    begun: list[int] = []
    ended: list[int] = []

    def request(number: int) -> Iterator[bytes]:
        begun.append(number)
        try:
            for _ in range(number % 7) if how == "finish" else itertools.repeat(None):
                yield bytes(30 * KIB if number % 2 else 10)
        finally:
            ended.append(number)

    for number in range(40):
        token = CancelToken()
        response = send(transport, request(number), cancel=token)
        for _ in range(number % 3):
            response.read_chunk()
        if how in ("interrupt", "token"):
            ending = beside(response.interrupt if how == "interrupt" else token.cancel)
            with pytest.raises(ConnectError):
                while response.read_chunk():
                    pass
            ending.result(PATIENCE)
        elif how == "finish":
            while response.read_chunk():
                pass
        response.close()
    wait_for(lambda: sorted(ended) == begun)
    wait_for(lambda: all(multi.curl is None for multi in network.multis))


@pytest.mark.usefixtures("hasty")
def test_many_threads_share_a_transport(network: Network) -> None:
    transport = network.connect(echo, idle_connections=2)

    def call(number: int) -> None:
        for _ in range(20):
            body = b"%d" % number
            assert send(transport, parts(body)).read(None) == body

    for each in [beside(call, number) for number in range(4)]:
        each.result(PATIENCE)
    wait_for(lambda: sum(not multi.closed for multi in network.multis) <= 4)
