"""What ends a synchronous call early: deadlines, tokens, closed streams, streams left. And that nothing leaks by it."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.method import Method, MethodKind

from helpers import STREAM_HEAD, Background, Usage, black_hole, count_sockets, echo_all, good_answer, settles
from integration_pb2 import ChatRequest, CountRequest, CountResponse, EchoRequest, NotesRequest, SumRequest
from integration_pb2_connect import ProbeServiceClient
from rawhttp import RawServer, chunked, envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rawhttp import Peer
    from servers import Server

pytestmark = pytest.mark.usefixtures("limit")

BIG = EchoRequest(data=bytes(16 * 1024 * 1024))
"""More than any buffers between client and server take."""

WOKEN = 0.1
"""How soon a call that is blocked must notice that it was ended, in seconds."""


# Servers.


def silent(peer: Peer) -> None:
    """Never answer."""
    peer.read()
    peer.wait_until_gone()


def head_drips(peer: Peer) -> None:
    peer.read()
    for byte in good_answer() * 100:
        peer.send(bytes([byte]))
        time.sleep(0.03)


def body_drips(peer: Peer) -> None:
    peer.read()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 5000\r\n\r\n")
    while True:
        peer.send(b"\0")
        time.sleep(0.03)


def chunks_drip(peer: Peer) -> None:
    peer.read()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        for byte in b"1\r\n\0\r\n":
            peer.send(bytes([byte]))
            time.sleep(0.01)


def takes_nothing(peer: Peer) -> None:
    peer.read_head()
    time.sleep(0.7)


def one_message(number: int) -> bytes:
    return envelope(CountResponse(number=number).SerializeToString())


def stream_stalls(peer: Peer) -> None:
    """Send a message, and never another one."""
    peer.read()
    peer.send(STREAM_HEAD + chunked(one_message(1), last=False))
    peer.wait_until_gone()


def stream_drips(peer: Peer) -> None:
    """A message after the other, for ever."""
    peer.read()
    peer.send(STREAM_HEAD)
    for number in itertools.count(1):
        peer.send(chunked(one_message(number), last=False))
        time.sleep(0.03)


def stream_drips_bytes(peer: Peer) -> None:
    """A message that never gets finished."""
    peer.read()
    peer.send(STREAM_HEAD + chunked(b"\0\0\0\xff\xff", last=False))
    while True:
        peer.send(chunked(b"\0", last=False))
        time.sleep(0.03)


def endless() -> Iterator[SumRequest]:
    while True:
        yield SumRequest(padding=bytes(100_000))


def unary(client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None) -> None:
    client.echo(EchoRequest(), timeout_seconds=timeout, cancel=cancel)


def upload(client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None) -> None:
    client.echo(BIG, timeout_seconds=timeout, cancel=cancel)


def upload_stream(
    client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None
) -> None:
    client.sum(endless(), timeout_seconds=timeout, cancel=cancel)


def server_stream(
    client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None
) -> None:
    for _ in client.count(CountRequest(), timeout_seconds=timeout, cancel=cancel):
        pass


def client_stream(
    client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None
) -> None:
    client.sum([SumRequest(number=1)] * 3, timeout_seconds=timeout, cancel=cancel)


def bidi_stream(client: ProbeServiceClient, *, timeout: float | None = None, cancel: CancelToken | None = None) -> None:
    for _ in client.chat(iter([ChatRequest()]), timeout_seconds=timeout, cancel=cancel):
        pass


STALLS = {
    "no answer": (silent, unary),
    "no answer to a server stream": (silent, server_stream),
    "no answer to a client stream": (silent, client_stream),
    "no answer to a bidirectional stream": (silent, bidi_stream),
    "head drips": (head_drips, unary),
    "head of a stream drips": (head_drips, server_stream),
    "body drips": (body_drips, unary),
    "body drips in chunks": (chunks_drip, unary),
    "upload is not taken": (takes_nothing, upload),
    "upload of a stream is not taken": (takes_nothing, upload_stream),
    "stream stalls": (stream_stalls, server_stream),
    "stream drips": (stream_drips, server_stream),
    "stream drips byte by byte": (stream_drips_bytes, server_stream),
    "bidirectional stream stalls": (stream_stalls, bidi_stream),
}
"""Every way to keep a call waiting: the server, and the call."""


@pytest.fixture(params=list(STALLS.values()), ids=list(STALLS))
def stall(request: pytest.FixtureRequest) -> Iterator[tuple[RawServer, Callable[..., None]]]:
    script, call = request.param
    first = threading.Event()

    def only_once(peer: Peer) -> None:
        # What comes afterwards is to find a server that works.
        if first.is_set():
            return echo_all(peer)
        first.set()
        script(peer)
        return None

    with RawServer(only_once) as server:
        yield server, call


# Deadlines.


@pytest.mark.alone
def test_deadline(stall: tuple[RawServer, Callable[..., None]]) -> None:
    server, call = stall
    with ProbeServiceClient(server.url) as client:
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            call(client, timeout=0.3)
        took = time.monotonic() - began
        assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
        assert 0.25 < took < 0.3 + WOKEN
        assert client.echo(EchoRequest(text="next")).request.text == "next"
    assert server.accepted == 2  # the connection that was given up has not been used again


@pytest.mark.alone
def test_deadline_while_connecting() -> None:
    with black_hole() as port, ProbeServiceClient(f"http://127.0.0.1:{port}") as client:
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=0.3)
        assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
        assert 0.25 < time.monotonic() - began < 0.3 + WOKEN


@pytest.mark.alone
def test_deadline_where_the_users_own_limit_for_connecting_is_shorter() -> None:
    manager = urllib3.PoolManager(timeout=urllib3.Timeout(connect=0.1))
    with black_hole() as port:
        client = ProbeServiceClient(f"http://127.0.0.1:{port}", manager)
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), timeout_seconds=5)
        assert raised.value.code is ConnectErrorCode.UNAVAILABLE
        assert time.monotonic() - began < 0.5


def test_the_users_own_limits_without_a_deadline() -> None:
    manager = urllib3.PoolManager(timeout=urllib3.Timeout(connect=0.1, read=0.2))
    with black_hole() as port, pytest.raises(ConnectError) as raised:
        ProbeServiceClient(f"http://127.0.0.1:{port}", manager).echo(EchoRequest())
    assert raised.value.code is ConnectErrorCode.UNAVAILABLE
    with RawServer(silent) as server, pytest.raises(ConnectError) as raised:
        ProbeServiceClient(server.url, manager).echo(EchoRequest())
    assert raised.value.code in (ConnectErrorCode.DEADLINE_EXCEEDED, ConnectErrorCode.UNAVAILABLE)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0, -1, -1e300, float("-inf")])
def test_a_timeout_that_is_over_sends_nothing(timeout: float) -> None:
    with RawServer(echo_all) as server, ProbeServiceClient(server.url) as client:
        for call in (unary, server_stream, client_stream, bidi_stream):
            with pytest.raises(ConnectError) as raised:
                call(client, timeout=timeout)
            assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
        error = client.call_echo(EchoRequest(), timeout_seconds=timeout).error()
        assert error is not None
        assert error.code is ConnectErrorCode.DEADLINE_EXCEEDED
        stream = client.call_count(CountRequest(), timeout_seconds=timeout)
        assert list(stream) == []
        error = stream.error()
        assert error is not None
        assert error.code is ConnectErrorCode.DEADLINE_EXCEEDED
        assert server.accepted == 0


def test_a_timeout_that_is_not_a_number() -> None:
    with RawServer(echo_all) as server, ProbeServiceClient(server.url) as client:
        for call in (unary, server_stream, client_stream, bidi_stream):
            with pytest.raises(ValueError, match="NaN"):
                call(client, timeout=float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            client.call_echo(EchoRequest(), timeout_seconds=float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            client.call_count(CountRequest(), timeout_seconds=float("nan"))
        assert server.accepted == 0


@pytest.mark.parametrize(
    ("timeout", "sent"),
    [
        (None, None),
        (5, "5000"),
        (0.5, "500"),
        (1.0001, "1001"),
        (9_999_999.999, "9999999999"),
        (10_000_000, None),  # eleven digits
        (1e300, None),
        (float("inf"), None),
    ],
)
def test_timeout_on_the_wire(timeout: float | None, sent: str | None) -> None:
    seen: list[str | None] = []

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            seen.append(request.headers.get("connect-timeout-ms"))
            peer.send(good_answer())

    with RawServer(script) as server, ProbeServiceClient(server.url) as client:
        client.echo(EchoRequest(), timeout_seconds=timeout)
        client.call_count(CountRequest(), timeout_seconds=timeout).close()
    assert seen == [sent, sent]


@pytest.mark.alone
def test_the_clients_own_timeout() -> None:
    with RawServer(silent) as server, ProbeServiceClient(server.url, timeout_seconds=0.2) as client:
        for timeout, expected in ((None, 0.2), (0.5, 0.5)):
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(), timeout_seconds=timeout)
            assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
            assert expected - 0.05 < time.monotonic() - began < expected + WOKEN


def test_deadline_that_the_server_says_first(gunicorn_gthread: Server) -> None:
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for call in (
            lambda: client.echo(EchoRequest(delay_ms=300), timeout_seconds=0.2),
            lambda: list(client.count(CountRequest(up_to=100, delay_ms=20), timeout_seconds=0.2)),
        ):
            with pytest.raises(ConnectError) as raised:
                call()
            assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED


def test_deadline_while_waiting_for_a_connection_of_a_full_pool() -> None:
    manager = urllib3.PoolManager(block=True, maxsize=1)
    with RawServer(stream_stalls) as server:
        client = ProbeServiceClient(server.url, manager)
        with client.call_count(CountRequest()):
            call = Background(lambda: client.echo(EchoRequest(), timeout_seconds=0.3))
            with pytest.raises(ConnectError) as raised:
                call.result(within=2)
            assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED


@pytest.mark.alone
def test_many_deadlines_at_once() -> None:
    with RawServer(silent) as server, ProbeServiceClient(server.url) as client:

        def call(timeout: float) -> float:
            began = time.monotonic()
            with pytest.raises(ConnectError) as raised:
                client.echo(EchoRequest(), timeout_seconds=timeout)
            assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
            return time.monotonic() - began - timeout

        # The shortest come last, so the watch has to change its mind each time.
        calls = [Background(functools.partial(call, timeout)) for timeout in (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)]
        for one in calls:
            assert -0.01 < one.result() < WOKEN


def test_deadlines_that_are_not_met_cost_nothing_later(gunicorn_gthread: Server) -> None:
    """Thousands of calls whose far deadlines are never reached leave nothing behind that would have to be kept."""
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for _ in range(1500):
            client.notes(NotesRequest(), timeout_seconds=1000)
    gc.collect()
    kept = sum(type(thing).__name__ == "Guard" for thing in gc.get_objects())
    assert kept <= 1200


# Tokens.


@pytest.mark.alone
def test_cancel(stall: tuple[RawServer, Callable[..., None]]) -> None:
    server, call = stall
    token = CancelToken()
    with ProbeServiceClient(server.url) as client:
        background = Background(lambda: call(client, cancel=token))
        time.sleep(0.25)
        assert background.running
        canceled_at = time.monotonic()
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(within=2)
        assert raised.value.code is ConnectErrorCode.CANCELED
        assert background.ended_at - canceled_at < WOKEN
        assert client.echo(EchoRequest(text="next")).request.text == "next"
    assert server.accepted == 2


@pytest.mark.alone
def test_cancel_while_connecting() -> None:
    token = CancelToken()
    with black_hole() as port, ProbeServiceClient(f"http://127.0.0.1:{port}") as client:
        background = Background(lambda: client.echo(EchoRequest(), cancel=token))
        time.sleep(0.2)
        canceled_at = time.monotonic()
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(within=2)
        assert raised.value.code is ConnectErrorCode.CANCELED
        assert background.ended_at - canceled_at < WOKEN


@pytest.mark.alone
def test_cancel_while_waiting_for_a_connection_of_a_full_pool() -> None:
    manager = urllib3.PoolManager(block=True, maxsize=1)
    token = CancelToken()
    with RawServer(stream_stalls) as server:
        client = ProbeServiceClient(server.url, manager)
        with client.call_count(CountRequest()):
            background = Background(lambda: client.echo(EchoRequest(), cancel=token))
            time.sleep(0.2)
            canceled_at = time.monotonic()
            token.cancel()
            with pytest.raises(ConnectError) as raised:
                background.result(within=2)
            assert raised.value.code is ConnectErrorCode.CANCELED
            assert background.ended_at - canceled_at < WOKEN


def test_a_token_that_was_cancelled_before_sends_nothing() -> None:
    token = CancelToken()
    token.cancel()
    token.cancel()
    assert token.canceled
    with RawServer(echo_all) as server, ProbeServiceClient(server.url) as client:
        for call in (unary, server_stream, client_stream, bidi_stream):
            with pytest.raises(ConnectError) as raised:
                call(client, cancel=token)
            assert raised.value.code is ConnectErrorCode.CANCELED
        error = client.call_echo(EchoRequest(), cancel=token).error()
        assert error is not None
        assert error.code is ConnectErrorCode.CANCELED
        stream = client.call_count(CountRequest(), cancel=token)
        assert list(stream) == []
        error = stream.error()
        assert error is not None
        assert error.code is ConnectErrorCode.CANCELED
        assert server.accepted == 0
        assert client.echo(EchoRequest(text="others")).request.text == "others"


@pytest.mark.alone
def test_one_token_for_many_calls() -> None:
    token = CancelToken()
    with RawServer(silent) as server, ProbeServiceClient(server.url) as client, RawServer(stream_stalls) as other:
        streams = ProbeServiceClient(other.url)
        calls = [Background(lambda: client.echo(EchoRequest(), cancel=token)) for _ in range(5)]
        more = [Background(lambda: list(streams.count(CountRequest(), cancel=token))) for _ in range(5)]
        assert settles(lambda: server.accepted == 5 and other.accepted == 5)
        time.sleep(0.1)
        canceled_at = time.monotonic()
        token.cancel()
        backgrounds: list[Background[Any]] = [*calls, *more]
        for background in backgrounds:
            with pytest.raises(ConnectError) as raised:
                background.result(within=2)
            assert raised.value.code is ConnectErrorCode.CANCELED
            assert background.ended_at - canceled_at < WOKEN
        streams.close()


def test_one_token_for_calls_one_after_another(gunicorn_gthread: Server) -> None:
    token = CancelToken()
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for number in range(20):
            assert client.echo(EchoRequest(number=number), cancel=token).request.number == number
        stream = client.call_count(CountRequest(up_to=2), cancel=token)
        assert [message.number for message in stream] == [1, 2]
        token.cancel()  # what is over stays as it was
        assert stream.error() is None
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(), cancel=token)
        assert raised.value.code is ConnectErrorCode.CANCELED


def test_cancel_between_the_messages_of_a_stream(gunicorn_gthread: Server) -> None:
    token = CancelToken()
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        stream = client.call_count(CountRequest(up_to=100, delay_ms=20), cancel=token)
        assert next(stream).number == 1
        token.cancel()
        assert len(list(stream)) <= 1
        error = stream.error()
        assert error is not None
        assert error.code is ConnectErrorCode.CANCELED
        assert stream.done()
        assert client.echo(EchoRequest(text="next")).request.text == "next"


def test_cancel_from_within_the_request_iterator(gunicorn_gthread: Server) -> None:
    token = CancelToken()

    def requests() -> Iterator[SumRequest]:
        yield SumRequest(number=1)
        token.cancel()
        yield SumRequest(number=2)

    with ProbeServiceClient(gunicorn_gthread.url) as client:
        with pytest.raises(ConnectError) as raised:
            client.sum(requests(), cancel=token)
        assert raised.value.code is ConnectErrorCode.CANCELED
        assert client.sum([SumRequest(number=3)]).sum == 3


def test_calls_that_are_cancelled_at_any_moment_never_hurt_others(gunicorn_gthread: Server) -> None:
    """Each answer belongs to its request, whatever happens to the calls before on the same connections."""
    rng = random.Random(1)
    with ProbeServiceClient(gunicorn_gthread.url) as client:

        def call(name: str) -> int:
            canceled = 0
            for number in range(150):
                token = CancelToken()
                timer = threading.Timer(rng.random() * 0.004, token.cancel)
                timer.start()
                text = f"{name} {number}"
                try:
                    assert client.echo(EchoRequest(text=text), cancel=token).request.text == text
                except ConnectError as error:
                    assert error.code is ConnectErrorCode.CANCELED  # noqa: PT017  it may or may not be raised
                    canceled += 1
                assert client.echo(EchoRequest(text="!" + text)).request.text == "!" + text
                timer.join()
            return canceled

        backgrounds = [Background(functools.partial(call, name)) for name in "abcd"]
        assert sum(background.result(within=25) for background in backgrounds) > 10


# Closing.


@pytest.mark.alone
@pytest.mark.parametrize("script", [stream_stalls, stream_drips_bytes])
def test_close_from_another_thread(script: Callable[[Peer], None]) -> None:
    with RawServer(script) as server, ProbeServiceClient(server.url) as client:
        stream = client.call_count(CountRequest())
        background = Background(lambda: list(stream))
        time.sleep(0.2)
        assert background.running
        closed_at = time.monotonic()
        stream.close()
        stream.close()
        assert time.monotonic() - closed_at < WOKEN
        assert len(background.result(within=2)) <= 1
        assert background.ended_at - closed_at < WOKEN
        assert stream.done()
        error = stream.error()
        assert error is not None
        assert error.code is ConnectErrorCode.CANCELED
        assert settles(lambda: server.open_connections == 0)


def test_close_of_a_stream_that_drips_messages() -> None:
    with RawServer(stream_drips) as server, ProbeServiceClient(server.url) as client:
        stream = client.call_count(CountRequest())
        background = Background(lambda: list(stream))
        time.sleep(0.2)
        stream.close()
        background.result(within=1)
        assert stream.done()
        assert settles(lambda: server.open_connections == 0)


def test_close_by_the_reader() -> None:
    with RawServer(stream_drips) as server, ProbeServiceClient(server.url) as client:
        stream = client.call_count(CountRequest())
        with pytest.raises(RuntimeError):
            stream.response_trailers()
        assert stream.response_headers()["content-type"] == "application/connect+proto"
        assert next(stream).number == 1
        stream.close()
        stream.close()
        assert stream.done()
        assert list(stream) == []
        assert stream.error() is None
        assert list(stream.response_trailers()) == []
        assert settles(lambda: server.open_connections == 0)


def test_close_inside_the_loop_and_by_with() -> None:
    with RawServer(stream_drips) as server, ProbeServiceClient(server.url) as client:
        stream = client.call_count(CountRequest())
        for message in stream:
            if message.number == 3:
                stream.close()
        assert stream.done()
        with client.call_count(CountRequest()) as stream:
            next(stream)
        assert stream.done()
        with pytest.raises(KeyError), client.call_count(CountRequest()) as stream:
            raise KeyError
        assert stream.done()
        generator = client.count(CountRequest())
        next(generator)
        generator.close()
        client.count(CountRequest()).close()  # it has not begun
        assert settles(lambda: server.open_connections == 0)


def test_a_stream_is_read_by_one_thread_at_a_time() -> None:
    with RawServer(stream_stalls) as server, ProbeServiceClient(server.url) as client:
        stream = client.call_count(CountRequest())
        background = Background(lambda: list(stream))
        time.sleep(0.2)
        with pytest.raises(RuntimeError):
            next(stream)
        stream.close()
        background.result(within=1)


def test_close_at_any_moment(gunicorn_gthread: Server) -> None:
    rng = random.Random(2)
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for number in range(150):
            stream = client.call_count(CountRequest(up_to=20))
            timer = threading.Timer(rng.random() * 0.003, stream.close)
            timer.start()
            found = [message.number for message in stream]
            assert found == list(range(1, len(found) + 1))
            error = stream.error()
            assert error is None or error.code is ConnectErrorCode.CANCELED
            if len(found) < 20:
                assert stream.done()
            text = f"after {number}"
            assert client.echo(EchoRequest(text=text)).request.text == text
            timer.join()


# Nothing leaks.


def test_streams_that_are_left(gunicorn_gthread: Server) -> None:
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        client.echo(EchoRequest())
        before = count_sockets()
        for number in range(300):
            stream = client.call_count(CountRequest(up_to=1000, padding=1000))
            next(stream)
            if number % 3 == 0:
                stream.close()
            elif number % 3 == 1:
                with stream:
                    next(stream)
            else:
                stream.close()
                stream.close()
        assert settles(lambda: count_sockets() <= before + 1)
        assert client.echo(EchoRequest(text="next")).request.text == "next"


def test_streams_that_are_forgotten(gunicorn_gthread: Server) -> None:
    """Not the way to do it, but nothing lasts that nobody can reach any more."""
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        client.echo(EchoRequest())
        before = count_sockets()
        for _ in range(50):
            next(client.call_count(CountRequest(up_to=1000, padding=1000)))
            next(client.count(CountRequest(up_to=1000, padding=1000)))
            next(client.count(CountRequest(up_to=1000, padding=1000), timeout_seconds=60))
        assert settles(lambda: count_sockets() <= before + 2)


def leave_in_a_cycle(client: ProbeServiceClient, form: str) -> None:
    """As in an exception's traceback or a closure: the garbage collector takes it apart, in an order of its own."""
    stream = getattr(client, form)(CountRequest(up_to=1000, padding=1000))
    next(stream)
    cycle = [stream]
    cycle.append(cycle)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the collector may come to the socket first
@pytest.mark.parametrize("form", ["call_count", "count"])
def test_a_stream_that_is_forgotten_in_a_cycle(gunicorn_gthread: Server, form: str) -> None:
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for _ in range(3):
            leave_in_a_cycle(client, form)
            gc.collect()
            assert client.echo(EchoRequest(text="next")).request.text == "next"


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the collector may come to the socket first
@pytest.mark.parametrize("form", ["call_count", "count"])
@pytest.mark.parametrize("step", ["_get", "_put"])
@pytest.mark.parametrize("blocks", [False, True])
def test_a_stream_that_is_collected_while_its_thread_is_in_the_pools_queue(
    gunicorn_gthread: Server, monkeypatch: pytest.MonkeyPatch, form: str, step: str, blocks: bool
) -> None:
    """The queue's lock is held then, and not reentrant."""
    original = getattr(queue.LifoQueue, step)

    def collecting(*args: Any) -> Any:
        gc.collect()
        return original(*args)

    manager = urllib3.PoolManager(maxsize=2, block=blocks)
    with ProbeServiceClient(gunicorn_gthread.url, manager) as client:
        client.echo(EchoRequest())
        gc.disable()
        try:
            leave_in_a_cycle(client, form)
            with monkeypatch.context() as patched:
                patched.setattr(queue.LifoQueue, step, collecting)
                background = Background(lambda: client.echo(EchoRequest(text="next")).request.text)
                assert background.result(10) == "next"
        finally:
            gc.enable()
        if blocks:  # both places of the pool are there again
            streams = [client.call_count(CountRequest(up_to=1000, padding=1000)) for _ in range(2)]
            for stream in streams:
                assert next(stream).number == 1
                stream.close()
    manager.clear()


class Boom(Exception):  # noqa: N818
    pass


def broken_requests() -> Iterator[SumRequest]:
    yield SumRequest()
    raise Boom


_AS_CLIENT_STREAM = Method(
    "integration.v1.ProbeService",
    "Count",
    MethodKind.CLIENT_STREAM,
    CountRequest,
    CountResponse,
    python_name="count",
)
"""``Count`` as a method that is to be answered by one message, which it is not."""


ENDS: dict[str, Callable[[ProbeServiceClient], object]] = {
    "stream left": lambda client: next(client.call_count(CountRequest(up_to=1000, padding=10_000))),
    "stream closed": lambda client: client.call_count(CountRequest(up_to=1000, padding=10_000)).close(),
    "stream left by with": lambda client: client.call_count(CountRequest(up_to=1000)).__exit__(None, None, None),
    "generator left": lambda client: next(client.count(CountRequest(up_to=1000, padding=10_000))),
    "stream read": lambda client: list(client.count(CountRequest(up_to=10))),
    "stream that fails": lambda client: list(client.count(CountRequest(up_to=2, misdeed="error last"))),
    "stream that fails at once": lambda client: list(client.count(CountRequest(misdeed="error at once"))),
    "deadline": lambda client: client.echo(EchoRequest(delay_ms=20), timeout_seconds=0.005),
    "deadline of a stream": lambda client: list(
        client.count(CountRequest(up_to=10, delay_ms=10), timeout_seconds=0.005)
    ),
    "canceled": lambda client: canceled_soon(client),
    "request iterator fails": lambda client: client.sum(broken_requests()),
    "request iterator of a bidirectional stream fails": lambda client: list(client.chat(broken_requests())),  # type: ignore[arg-type]
    "error": lambda client: client.echo(EchoRequest(misdeed="error=NOT_FOUND")),
    "not implemented": lambda client: client.missing(EchoRequest()),
    "too large": lambda client: client.echo(EchoRequest(misdeed="big", number=5_000_000)),
    "too large a stream": lambda client: list(client.count(CountRequest(up_to=2, padding=5_000_000))),
    "two answers": lambda client: client._caller.client_stream(_AS_CLIENT_STREAM, [CountRequest(up_to=3)]),
    "wrong request": lambda client: client.echo(CountRequest(up_to=3)),  # type: ignore[arg-type]
    "wrong header": lambda client: client.echo(EchoRequest(), {"content-type": "x"}),
    "wrong timeout": lambda client: client.echo(EchoRequest(), timeout_seconds=float("nan")),
}


def canceled_soon(client: ProbeServiceClient) -> None:
    token = CancelToken()
    timer = threading.Timer(0.005, token.cancel)
    timer.start()
    try:
        client.echo(EchoRequest(delay_ms=20), cancel=token)
    finally:
        timer.join()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_pools_that_block_do_not_run_dry(gunicorn_gthread: Server, end: Callable[[ProbeServiceClient], object]) -> None:
    with urllib3.PoolManager(block=True, maxsize=2) as manager:
        client = ProbeServiceClient(gunicorn_gthread.url, manager)
        for _ in range(3):
            with contextlib.suppress(ConnectError, Boom, TypeError, ValueError):
                end(client)
            gc.collect()
        calls = [Background(lambda: client.echo(EchoRequest(text="next"))) for _ in range(2)]
        for call in calls:
            assert call.result(within=3).request.text == "next"


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_no_sockets_leak(gunicorn_gthread: Server, end: Callable[[ProbeServiceClient], object]) -> None:
    before = count_sockets()
    with ProbeServiceClient(gunicorn_gthread.url) as client:
        for _ in range(5):
            with contextlib.suppress(ConnectError, Boom, TypeError, ValueError):
                end(client)
        assert settles(lambda: count_sockets() <= before + 1)
    assert settles(lambda: count_sockets() <= before)


class Canceller:
    """Cancels tokens in a thread of its own, soon after it is given them."""

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[CancelToken | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def soon(self) -> CancelToken:
        token = CancelToken()
        self._tokens.put(token)
        return token

    def _run(self) -> None:
        while (token := self._tokens.get()) is not None:
            time.sleep(0.0005)
            token.cancel()

    def close(self) -> None:
        self._tokens.put(None)
        self._thread.join()


EARLY_EXITS: dict[str, Callable[[ProbeServiceClient, Canceller], object]] = {
    "stream closed": lambda client, canceller: closed_after_one(client),
    "stream forgotten": lambda client, canceller: next(client.call_count(CountRequest(up_to=20))),
    "stream never read": lambda client, canceller: client.call_count(CountRequest(up_to=20)),
    "stream never read, closed": lambda client, canceller: client.call_count(CountRequest(up_to=20)).close(),
    "generator left": lambda client, canceller: next(client.count(CountRequest(up_to=20))),
    "generator never begun": lambda client, canceller: client.count(CountRequest(up_to=20)),
    "canceled": lambda client, canceller: client.echo(EchoRequest(delay_ms=3), cancel=canceller.soon()),
    "stream canceled": lambda client, canceller: list(
        client.count(CountRequest(up_to=10, delay_ms=1), cancel=canceller.soon())
    ),
    "deadline": lambda client, canceller: client.echo(EchoRequest(delay_ms=3), timeout_seconds=0.001),
    "deadline of a stream": lambda client, canceller: list(
        client.count(CountRequest(up_to=10, delay_ms=1), timeout_seconds=0.001)
    ),
    "error": lambda client, canceller: client.echo(EchoRequest(misdeed="error=NOT_FOUND")),
    "error of a stream": lambda client, canceller: list(client.count(CountRequest(misdeed="error at once"))),
    "request iterator fails": lambda client, canceller: client.sum(broken_requests()),
}
"""Ways to end a call before its time that cost the server little."""


def closed_after_one(client: ProbeServiceClient) -> None:
    with client.call_count(CountRequest(up_to=20)) as stream:
        next(stream)


@pytest.mark.alone
def test_ten_thousand_early_exits(gunicorn_gthread: Server) -> None:
    """Sockets, objects and memory are the same after ten thousand as after one thousand."""
    canceller = Canceller()
    with ProbeServiceClient(gunicorn_gthread.url) as client:

        def leave(times: int) -> bool:
            exits = itertools.cycle(EARLY_EXITS.values())
            for end in itertools.islice(exits, times):
                with contextlib.suppress(ConnectError, Boom):
                    end(client, canceller)
            return True

        def leave_in_threads(times: int) -> Usage:
            backgrounds = [Background(functools.partial(leave, times // 4)) for _ in range(4)]
            assert all(background.result(28) for background in backgrounds)
            backgrounds.clear()
            assert settles(lambda: count_sockets() <= before.sockets + 4)
            return Usage.now()

        before = Usage.now()
        some = leave_in_threads(1000)
        many = leave_in_threads(10_000)
        assert many.objects < some.objects + 1000
        assert many.kilobytes < some.kilobytes + 4000
        assert client.echo(EchoRequest(text="next")).request.text == "next"
    canceller.close()
    assert settles(lambda: count_sockets() <= before.sockets)
