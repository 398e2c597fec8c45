"""Calls a server of connect-go's with our clients: both colours, every HTTP client, every protocol that it can."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import queue
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode

from colours import COLOURS, AsyncColour, Colour, SyncColour
from integration_pb2 import (
    MOOD_GOOD,
    ChatRequest,
    CountRequest,
    EchoRequest,
    EchoResponse,
    NotesRequest,
    PingRequest,
    SumRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["call_all"]

CASE_SECONDS = 30
FRAMES = 3
"""Of a failure's traceback."""
ROUNDS = 10
PADDING = 2000
"""Enough for the compression of messages to begin."""
DUPLEX_ROUNDS = 20
MANY = 200

Code = ConnectErrorCode


class Way(NamedTuple):
    """How the server is called."""

    colour: str
    library: str
    http2: bool
    protocol: str
    codec: str = "proto"
    url: str = ""

    def __str__(self) -> str:
        return f"{self.colour} {self.library}, HTTP/{'2' if self.http2 else '1.1'}, {self.protocol} {self.codec}"

    def client(self, *, path: str = "", **options: Any) -> Colour:
        """A client, with its own HTTP client."""
        return COLOURS[self.colour](
            self.url + path,
            http_client=self._http_client(),
            **{"protocol": self.protocol, "codec": self.codec, **options},
        )

    def _http_client(self) -> Any:
        if self.library != "pyqwest":
            return None  # our clients' own
        import pyqwest

        version = pyqwest.HTTPVersion.HTTP2 if self.http2 else pyqwest.HTTPVersion.HTTP1
        plain: Any = {"follow_redirects": False, "enable_gzip": False, "enable_brotli": False, "enable_zstd": False}
        if self.colour == "sync":
            return pyqwest.SyncClient(pyqwest.SyncHTTPTransport(http_version=version, **plain))
        return pyqwest.Client(pyqwest.HTTPTransport(http_version=version, **plain))


def ways(url: str) -> list[Way]:
    """All of them. Without pyqwest, which is not for every Python, fewer."""
    found = [
        Way(colour, library, False, protocol, codec, url)
        for colour, library in (("sync", "urllib3"), ("async", "aiohttp"))
        for protocol in ("connect", "grpc-web")
        for codec in ("proto", "json")
    ]
    try:
        import pyqwest  # noqa: F401
    except ImportError:
        print("pyqwest is not installed here, which is for Python 3.11 and later: no HTTP/2, and no gRPC")
        return found
    for colour in ("sync", "async"):
        found.append(Way(colour, "pyqwest", False, "connect", "proto", url))
        for protocol in ("connect", "grpc", "grpc-web"):
            found += [Way(colour, "pyqwest", True, protocol, codec, url) for codec in ("proto", "json")]
    return found


class Case(NamedTuple):
    name: str
    run: Callable[[Way], None]
    suits: Callable[[Way], bool]


CASES: list[Case] = []


def case(
    name: str, suits: Callable[[Way], bool] = lambda way: True
) -> Callable[[Callable[[Way], None]], Callable[[Way], None]]:
    """Makes a function a case, for the ways that it suits."""

    def add(run: Callable[[Way], None]) -> Callable[[Way], None]:
        CASES.append(Case(name, run, suits))
        return run

    return add


def in_proto(way: Way) -> bool:
    """For what is the same in both codecs."""
    return way.codec == "proto"


def in_connect(way: Way) -> bool:
    return way.protocol == "connect"


def over_http2(way: Way) -> bool:
    return way.http2


def full_duplex(way: Way) -> bool:
    return way.http2 and way.codec == "proto"


class TooLong(BaseException):
    """Not an ``Exception``: what is called may take those for failures of the network."""


def call_all(url: str) -> bool:
    """Call the server in every way, and print a line for each way and for each case that fails; whether none did."""

    def too_long(signum: int, frame: object) -> None:
        raise TooLong(f"not over after {CASE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    total = failed = 0
    try:
        for way in ways(url):
            began = time.monotonic()
            cases = [each for each in CASES if each.suits(way)]
            bad = 0
            for each in cases:
                signal.alarm(CASE_SECONDS)
                try:
                    each.run(way)
                except (Exception, TooLong):
                    bad += 1
                    print(f"FAIL  {way}: {each.name}: {traceback.format_exc(limit=-FRAMES)}")
                finally:
                    signal.alarm(0)
            took = (time.monotonic() - began) * 1000
            print(f"{'FAIL' if bad else 'ok':4}  {way}: {len(cases)} cases, {bad} failed ({took:.0f} ms)", flush=True)
            total += len(cases)
            failed += bad
    finally:
        signal.signal(signal.SIGALRM, before)
    print(f"{total} cases, {failed} failed")
    return total > 0 and failed == 0


def error_of(call: Callable[[], object], code: ConnectErrorCode) -> ConnectError:
    """The error that the call has to fail with."""
    try:
        answer = call()
    except ConnectError as error:
        found = error
    else:
        raise AssertionError(f"no error, but {answer!r}")
    assert found.code is code, f"{code} was expected, not {found!r}"
    return found


def seen(response: EchoResponse, name: str) -> str:
    """A header that the server has seen; values of one name with commas between."""
    return ",".join(value for header in response.headers if header.name == name for value in header.values)


def values(metadata: Any, name: str) -> str:
    """Values that have come. They may be joined on the way, with or without a space."""
    return ",".join(metadata.getall(name, ())).replace(", ", ",")


def wait_for_notes(client: Colour, suffix: str, wanted: int) -> None:
    """Wait until the server's handlers have noted this often what ends so."""
    notes: list[str] = []
    until = time.monotonic() + 5
    while sum(note.endswith(suffix) for note in notes) < wanted:
        assert time.monotonic() < until, f"{notes} lack {wanted} of {suffix!r}"
        notes += take_notes(client)
        time.sleep(0.01)


def take_notes(client: Colour) -> list[str]:
    if isinstance(client, SyncColour):
        return list(client.client.notes(NotesRequest()).notes)
    assert isinstance(client, AsyncColour)
    return list(client.run(client.client.notes(NotesRequest())).notes)


def all_kinds(client: Colour, *, chats: bool) -> None:
    """A call of each kind, each answer looked at. Over HTTP/1.1 connect-go has no streams in both ways."""
    text = "long enough to be compressed " * 100
    assert client.text(text) == text
    counted = client.count(CountRequest(up_to=5, padding=PADDING))
    assert [message.number for message in counted] == [1, 2, 3, 4, 5]
    summed = client.sum([SumRequest(number=number, padding=bytes(PADDING)) for number in (1, 2, 3, 4)])
    assert (summed.sum, summed.messages) == (10, 4)
    if chats:
        answers = client.chat([ChatRequest(text=each) for each in ("a", text, "")])
        assert [answer.text for answer in answers] == ["a", text, ""]


@case("values of every type")
def values_of_every_type(way: Way) -> None:
    request = EchoRequest(
        text="\u00e4\U0001f600\0",
        data=bytes((0, 255, 128)),
        number=-(2**63),
        ratio=-1e-300,
        mood=MOOD_GOOD,
        child=EchoRequest(child=EchoRequest(text="deep")),
        counts={"a": 1, "": -5},
    )
    request.any.Pack(PingRequest(text="hello"))
    request.when.GetCurrentTime()
    request.duration.FromNanoseconds(-3_000_000_005)
    request.struct.update({"a": None, "b": [1, "x", True], "c": {"d": {}}})
    with way.client() as client:
        response = client.echo(request)
    assert response.request == request
    content_type = {"connect": "application/", "grpc": "application/grpc+", "grpc-web": "application/grpc-web+"}
    assert seen(response, "content-type") == content_type[way.protocol] + way.codec


@case("all kinds, one connection")
def one_connection(way: Way) -> None:
    peers = set()
    with way.client() as client:
        for _ in range(ROUNDS):
            all_kinds(client, chats=way.http2)
            error_of(lambda: client.echo(EchoRequest(misdeed="error=ABORTED")), Code.ABORTED)
            peers.add(seen(client.echo(EchoRequest()), ":peer"))
    # Over HTTP/1.1 pyqwest puts a connection back in its own time, maybe after the next call has begun.
    assert len(peers) == 1 or (way.library == "pyqwest" and not way.http2)


@case("a stream in both ways over HTTP/1.1 is refused", lambda way: not way.http2 and in_proto(way))
def no_chat(way: Way) -> None:
    with way.client() as client:
        error = error_of(lambda: client.chat([ChatRequest(text="a")]), Code.UNKNOWN)
        assert "505" in error.message, error
        assert client.call_chat([ChatRequest(text="a")]).messages == []
        all_kinds(client, chats=False)


@case("gzip")
def gzip(way: Way) -> None:
    with way.client(send_compression="gzip", accept_compression=["gzip"]) as client:
        all_kinds(client, chats=way.http2)
        name = "content-encoding" if way.protocol == "connect" else "grpc-encoding"
        output = client.call_echo(EchoRequest(text="x" * 5000))
        response = output.message()
        assert response is not None
        assert response.request.text == "x" * 5000
        assert seen(response, name) == "gzip"
        assert seen(response, name.replace("content", "accept").replace("grpc-", "grpc-accept-")) == "gzip"
    with way.client(send_compression="br") as client:
        error = error_of(lambda: client.text("x" * 5000), Code.UNIMPLEMENTED)
        assert "gzip" in error.message
        if way.protocol == "connect":  # gRPC names the encoding ahead, whether a message is compressed or not
            assert client.text("short") == "short"


@case("GET", in_connect)
def by_get(way: Way) -> None:
    with way.client(use_get=True, get_url_max_bytes=2000) as client:
        for text, method in (("\u00e4 +/?&%=#", "GET"), ("x" * 3000, "POST")):
            response = client.call_look(EchoRequest(text=text, data=b"\xfb\xff")).message()
            assert response is not None
            assert (response.request.text, response.request.data) == (text, b"\xfb\xff")
            assert seen(response, ":method") == method
        output = client.call_look(EchoRequest(misdeed="metadata"))
        assert values(output.response_trailers(), "x-tail") == "3,4"
        refused = client.call_look(EchoRequest(misdeed="error=ABORTED")).error()
        assert refused is not None
        assert refused.code is Code.ABORTED


@case("errors of every code")
def errors_of_every_code(way: Way) -> None:
    with way.client() as client:
        for code in Code:
            request = EchoRequest(misdeed=f"error={code.name}")
            error = error_of(functools.partial(client.echo, request), code)
            assert error.message == f"this is {code.name}"
        error = error_of(lambda: client.echo(EchoRequest(misdeed="odd error")), Code.ABORTED)
        assert error.message == 'a\r\n\u00e4%"\u2028\U0001f600'


@case("an error with details, headers and trailers")
def rich_error(way: Way) -> None:
    with way.client() as client:
        error = error_of(lambda: client.echo(EchoRequest(misdeed="error with metadata")), Code.ABORTED)
    assert error.message == "no"
    assert [detail.message() for detail in error.details] == [PingRequest(text="detail")]
    # connect-go does not tell the two apart: where an error's metadata goes is the protocol's affair.
    metadata = error.response_headers()
    metadata.extend(error.response_trailers())
    assert values(metadata, "x-head") == "1,2"
    assert values(metadata, "x-tail") == "3,4"


@case("errors of streams")
def errors_of_streams(way: Way) -> None:
    with way.client() as client:
        streamed = client.call_count(CountRequest(up_to=3, misdeed="error last"))
        assert [message.number for message in streamed.messages] == [1, 2, 3]
        assert streamed.error is not None
        assert (streamed.error.code, streamed.error.message) == (Code.NOT_FOUND, "enough")
        assert [detail.message() for detail in streamed.error.details] == [PingRequest(text="detail")]
        streamed = client.call_count(CountRequest(misdeed="error at once"))
        assert streamed.messages == []
        assert streamed.error is not None
        assert streamed.error.code is Code.NOT_FOUND
        wrong = [SumRequest(number=1), SumRequest(misdeed="error"), SumRequest(number=2)]
        error_of(lambda: client.sum(wrong), Code.NOT_FOUND)
        if way.http2:
            streamed = client.call_chat([ChatRequest(text="a"), ChatRequest(misdeed="error"), ChatRequest(text="b")])
            assert [message.text for message in streamed.messages] == ["a"]
            assert streamed.error is not None
            assert streamed.error.code is Code.NOT_FOUND
        all_kinds(client, chats=way.http2)


@case("headers and trailers")
def headers_and_trailers(way: Way) -> None:
    binary = base64.b64encode(bytes((0, 1, 254, 255))).decode().rstrip("=")
    headers = {"x-text": ["a, b", "c"], "x-mirror-bin": [binary]}
    with way.client() as client:
        output = client.call_echo(EchoRequest(misdeed="metadata"), headers)
        response = output.message()
        assert response is not None
        assert seen(response, "x-text").replace(", ", ",") == "a,b,c"
        assert seen(response, "x-mirror-bin") == binary
        answers: list[tuple[Any, Any]] = [(output.response_headers(), output.response_trailers())]
        streamed = client.call_count(CountRequest(up_to=1, misdeed="metadata"), headers)
        assert len(streamed.messages) == 1
        answers.append((streamed.headers, streamed.trailers))
        misdeed = {"x-misdeed": ["metadata"]}
        summed = client.call_sum([SumRequest(number=1)], {**headers, **misdeed})
        answers.append((summed.response_headers(), summed.response_trailers()))
        if way.http2:
            streamed = client.call_chat([ChatRequest(text="a")], {**headers, **misdeed})
            assert len(streamed.messages) == 1
            answers.append((streamed.headers, streamed.trailers))
    for answer_headers, trailers in answers:
        assert values(answer_headers, "x-head") == "1,2"
        assert values(trailers, "x-tail") == "3,4"
        assert values(answer_headers, "x-mirror-bin") == binary
        assert values(trailers, "x-mirror-bin") == binary


@case("deadlines", in_proto)
def deadlines(way: Way) -> None:
    name = f"late {way}"
    with way.client() as client:
        take_notes(client)
        assert client.echo(EchoRequest()).timeout_ms == 0
        assert 1000 < client.echo(EchoRequest(), timeout=10).timeout_ms <= 10_000
        late = EchoRequest(text=name, delay_ms=3000)
        began = time.monotonic()
        error_of(lambda: client.echo(late, timeout=0.2), Code.DEADLINE_EXCEEDED)
        assert time.monotonic() - began < 2
        wait_for_notes(client, f"{name}: cancelled", 1)
        streamed = client.call_count(CountRequest(up_to=1000, delay_ms=20, name=name), timeout=0.3)
        assert streamed.error is not None
        assert streamed.error.code is Code.DEADLINE_EXCEEDED
        assert len(streamed.messages) < 20
        wait_for_notes(client, f"{name}: end", 1)
        all_kinds(client, chats=way.http2)


@case("left in the middle, and the next call", in_proto)
def left_in_the_middle(way: Way) -> None:
    name = f"left {way}"
    with way.client() as client:
        take_notes(client)
        peer = seen(client.echo(EchoRequest()), ":peer")
        for _ in range(3):
            request = CountRequest(up_to=1000, delay_ms=10, name=name)
            assert [message.number for message in client.call_count(request, most=3).messages] == [1, 2, 3]
            assert [message.number for message in client.count(request, most=2)] == [1, 2]
            all_kinds(client, chats=way.http2)
        wait_for_notes(client, f"{name}: end", 6)
        if way.http2:
            assert seen(client.echo(EchoRequest()), ":peer") == peer


@case("cancelled, and the next call", in_proto)
def cancelled(way: Way) -> None:
    name = f"cancelled {way}"
    late = EchoRequest(text=name, delay_ms=5000)
    slow = CountRequest(up_to=2, delay_ms=5000, name=name)
    with way.client() as client:
        take_notes(client)
        peer = seen(client.echo(EchoRequest()), ":peer")
        began = time.monotonic()
        if isinstance(client, SyncColour):
            cancel_by_token(client, late, slow)
        else:
            assert isinstance(client, AsyncColour)
            client.run(cancel_tasks(client, late, slow))
        assert time.monotonic() - began < 4
        # A request whose answer has not begun cannot be taken back from pyqwest's synchronous client.
        wait_for_notes(client, f"{name}: cancelled", 1 if (way.colour, way.library) == ("sync", "pyqwest") else 2)
        all_kinds(client, chats=way.http2)
        if way.http2:
            assert seen(client.echo(EchoRequest()), ":peer") == peer


def cancel_by_token(client: SyncColour, late: EchoRequest, slow: CountRequest) -> None:
    for call in (
        lambda token: client.client.echo(late, cancel=token),
        lambda token: list(client.client.count(slow, cancel=token)),
    ):
        token = CancelToken()
        timer = threading.Timer(0.1, token.cancel)
        timer.start()
        error_of(functools.partial(call, token), Code.CANCELED)
        timer.join()


async def cancel_tasks(client: AsyncColour, late: EchoRequest, slow: CountRequest) -> None:
    async def count() -> None:
        async for _ in client.client.count(slow):
            pass

    for call in (client.client.echo(late), count()):
        task: asyncio.Task[object] = asyncio.ensure_future(call)
        await asyncio.sleep(0.1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            raise AssertionError(f"not cancelled: {await task!r}")


@case("full duplex", full_duplex)
def each_waits_for_the_other(way: Way) -> None:
    expected = [str(number) for number in range(DUPLEX_ROUNDS)]
    with way.client() as client:
        client.text()
        if isinstance(client, SyncColour):
            with ThreadPoolExecutor(10) as threads:
                for texts in threads.map(lambda _: converse(client), range(10)):
                    assert texts == expected
            ended_by_the_server(client)
        else:
            assert isinstance(client, AsyncColour)
            for texts in client.run(converse_at_once(client, 50)):
                assert texts == expected
            client.run(ended_by_the_server_async(client))
        all_kinds(client, chats=True)


def converse(client: SyncColour) -> list[str]:
    """Send each message when the one before has been answered."""
    answered: queue.Queue[None] = queue.Queue()

    def requests() -> Iterator[ChatRequest]:
        for number in range(DUPLEX_ROUNDS):
            yield ChatRequest(text=str(number))
            answered.get(timeout=10)

    texts = []
    for answer in client.client.chat(requests()):
        texts.append(answer.text)
        answered.put(None)
    return texts


def ended_by_the_server(client: SyncColour) -> None:
    """The server speaks first, and ends the stream while there is more to come."""
    over = threading.Event()

    def requests() -> Iterator[ChatRequest]:
        yield ChatRequest(text="a")
        yield ChatRequest(misdeed="enough")
        over.wait(10)

    with client.client.call_chat(requests(), {"x-misdeed": "greet"}) as stream:
        assert [answer.text for answer in stream] == ["hello", "a"]
        assert stream.error() is None
        assert not over.is_set()
    over.set()


async def converse_at_once(client: AsyncColour, times: int) -> list[list[str]]:
    async def one() -> list[str]:
        answered: asyncio.Queue[None] = asyncio.Queue()

        async def requests() -> AsyncIterator[ChatRequest]:
            for number in range(DUPLEX_ROUNDS):
                yield ChatRequest(text=str(number))
                await answered.get()

        texts = []
        async for answer in client.client.chat(requests()):
            texts.append(answer.text)
            answered.put_nowait(None)
        return texts

    return await asyncio.gather(*(one() for _ in range(times)))


async def ended_by_the_server_async(client: AsyncColour) -> None:
    over = asyncio.Event()

    async def requests() -> AsyncIterator[ChatRequest]:
        yield ChatRequest(text="a")
        yield ChatRequest(misdeed="enough")
        await over.wait()

    async with client.client.call_chat(requests(), {"x-misdeed": "greet"}) as stream:
        assert [answer.text async for answer in stream] == ["hello", "a"]
        assert stream.error() is None
        assert not over.is_set()
    over.set()


@case("full duplex, much in both ways", full_duplex)
def much_in_both_ways(way: Way) -> None:
    texts = [chr(ord("a") + number % 26) * (1 << 16) for number in range(50)]
    with way.client() as client:
        answers = client.chat(ChatRequest(text=text) for text in texts)
        assert [answer.text for answer in answers] == texts


@case("answers that overtake their requests", in_proto)
def early_answers(way: Way) -> None:
    more = [SumRequest(number=1, padding=bytes(1 << 16))] * 50
    with way.client() as client:
        for _ in range(3):
            summed = client.sum([SumRequest(number=1), SumRequest(number=2, misdeed="enough"), *more])
            assert (summed.sum, summed.messages) == (3, 2)
            refused = [SumRequest(number=1), SumRequest(misdeed="error"), *more]
            error = error_of(functools.partial(client.sum, refused), Code.NOT_FOUND)
            assert error.message == "enough"
        all_kinds(client, chats=way.http2)


@case("large and too large", in_proto)
def large(way: Way) -> None:
    data = bytes(range(256)) * 4096
    with way.client() as client:
        assert client.echo(EchoRequest(data=data)).request.data == data
        assert (
            sum(len(message.padding) for message in client.count(CountRequest(up_to=10, padding=1 << 20))) == 10 << 20
        )
        assert client.sum([SumRequest(number=1, padding=data)] * 10).sum == 10
    with way.client(read_max_bytes=1000, accept_compression=[]) as client:
        error_of(lambda: client.echo(EchoRequest(misdeed="big", number=2000)), Code.RESOURCE_EXHAUSTED)
        error_of(lambda: client.count(CountRequest(up_to=3, padding=2000)), Code.RESOURCE_EXHAUSTED)
        all_small = client.echo(EchoRequest(text="small"))
        assert all_small.request.text == "small"


@case("empty")
def empty(way: Way) -> None:
    with way.client() as client:
        assert client.sum([]).messages == 0
        assert client.count(CountRequest()) == []
        assert client.echo(EchoRequest()).request == EchoRequest()
        if way.http2:
            assert client.chat([]) == []


@case("what is not there")
def not_there(way: Way) -> None:
    with way.client() as client:
        if isinstance(client, SyncColour):
            blocking = client.client
            error_of(lambda: blocking.missing(EchoRequest()), Code.UNIMPLEMENTED)
        else:
            assert isinstance(client, AsyncColour)
            colour = client
            error_of(lambda: colour.run(colour.client.missing(EchoRequest())), Code.UNIMPLEMENTED)
        assert client.text() == "hi"
    with way.client(path="/elsewhere") as client:
        error_of(lambda: client.echo(EchoRequest()), Code.UNIMPLEMENTED)
        error_of(lambda: client.count(CountRequest()), Code.UNIMPLEMENTED)
        error_of(lambda: client.sum([SumRequest(), SumRequest()]), Code.UNIMPLEMENTED)


@case(f"{MANY} at once", in_proto)
def many_at_once(way: Way) -> None:
    requests = [EchoRequest(number=number, delay_ms=50) for number in range(MANY)]
    with way.client() as client:
        if isinstance(client, SyncColour):
            with ThreadPoolExecutor(MANY) as threads:
                answers = list(threads.map(client.client.echo, requests))
        else:
            assert isinstance(client, AsyncColour)
            answers = client.run(echo_at_once(client, requests))
    assert [answer.request.number for answer in answers] == list(range(MANY))


async def echo_at_once(client: AsyncColour, requests: list[EchoRequest]) -> list[EchoResponse]:
    return await asyncio.gather(*map(client.client.echo, requests))
