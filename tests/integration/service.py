"""What the real servers serve, ``service:app``: handlers that do as each request tells them, well or badly."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ClientRequest, ClientStream, ServerResponse, ServerStream, wsgi_app

from integration_pb2 import (
    ChatRequest,
    ChatResponse,
    CountRequest,
    CountResponse,
    EchoRequest,
    EchoResponse,
    NotesRequest,
    NotesResponse,
    PingRequest,
    PingResponse,
    SumRequest,
    SumResponse,
)
from integration_pb2_connect import ProbeServiceClient, wsgi_other_service, wsgi_probe_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from multidict import CIMultiDict

__all__ = ["SECRET", "app", "probe", "relay"]

SECRET = "secret-7f3a"
"""What handlers say in exceptions that are nobody's business but the log's."""

MISDEED = "x-misdeed"
"""The header by which a stream's handler is told to misbehave before it reads a message."""

NAME = "x-name"
"""The header that tells such a handler what its notes begin with."""

DELAY = "x-delay-ms"
"""The header that tells it how long to take for each message."""

_ARRIVALS = 10_000
"""How many messages have their arrival told: not all of a flood."""


class Notes:
    """What handlers note, so that tests can ask what became of them. A server has one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: list[str] = []
        self.reached: dict[str, int] = {}
        """How many messages a handler has got or given, by its name."""

    def add(self, note: str) -> None:
        with self._lock:
            self._notes.append(note)

    def take(self) -> list[str]:
        with self._lock:
            notes, self._notes = self._notes, []
        return notes


noted = Notes()


class Probe:
    """The implementation. It has no ``missing``."""

    def echo(self, req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
        if req.msg.delay_ms:
            time.sleep(req.msg.delay_ms / 1000)
        return echo(req)

    look = echo

    def count(self, req: ClientRequest[CountRequest]) -> Any:
        return answer_count(req.msg, _count)

    def sum(self, req: ClientStream[SumRequest]) -> SumResponse:
        response = begin_sum(req.headers)
        name, delay = name_and_delay(req.headers)
        noted.add(f"{name}: begin")
        try:
            if not response.sum:
                for msg in req:
                    if not add(response, msg, name):
                        break
                    if delay:
                        time.sleep(delay)
        finally:
            noted.add(f"{name}: end")
        return response

    def chat(self, req: ClientStream[ChatRequest]) -> Iterator[ChatResponse | ConnectError]:
        misdeed = req.headers.get(MISDEED)
        name, delay = name_and_delay(req.headers)
        if misdeed == "error at once":
            raise ConnectError(ConnectErrorCode.NOT_FOUND, "at once")
        noted.add(f"{name}: begin")
        try:
            if misdeed == "greet":
                yield ChatResponse(text="hello")
            for msg in req:
                if msg.misdeed == "raise":
                    raise ValueError(SECRET)
                if msg.misdeed == "error":
                    yield ConnectError(ConnectErrorCode.NOT_FOUND, "enough")
                if msg.misdeed == "enough":
                    return
                yield ChatResponse(text=msg.text)
                if delay:
                    time.sleep(delay)
        finally:
            noted.add(f"{name}: end")

    def notes(self, req: ClientRequest[NotesRequest]) -> NotesResponse:
        return NotesResponse(notes=noted.take())


def echo(req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
    """What ``echo`` answers, but for the time that it takes."""
    response = EchoResponse(request=req.msg, pid=os.getpid(), timeout_ms=req.timeout.timeout_ms or 0)
    for name in dict.fromkeys(name.lower() for name in req.headers):
        response.headers.add(name=name, values=req.headers.getall(name))
    if req.msg.misdeed:
        return _misbehave(req.msg, response)
    return response


def answer_count(msg: CountRequest, make: Callable[[CountRequest], Any]) -> Any:
    """What ``count`` gives; ``make`` makes its messages."""
    if msg.misdeed == "raise at once":
        raise ValueError(SECRET)
    if msg.misdeed == "error at once":
        raise ConnectError(ConnectErrorCode.NOT_FOUND, "at once")
    if msg.misdeed == "none":
        return None
    if msg.misdeed == "list":
        return [CountResponse(number=1), CountResponse(number=2)]
    if msg.misdeed == "bad headers":
        return ServerStream(make(msg), headers={"content-length": "1"})
    if msg.misdeed == "bad trailers":
        return ServerStream(make(msg), trailers={"x-bad": "a\r\nset-cookie: b"})
    if msg.misdeed == "metadata":
        return ServerStream(make(msg), headers={"x-head": ["1", "2"]}, trailers={"x-tail": ["3", "4"]})
    return make(msg)


def begin_sum(headers: CIMultiDict[str]) -> SumResponse:
    """The empty sum; one that is not 0 is not to be added to."""
    misdeed = headers.get(MISDEED)
    if misdeed == "raise at once":
        raise ValueError(SECRET)
    if misdeed == "error at once":
        raise ConnectError(ConnectErrorCode.NOT_FOUND, "at once")
    return SumResponse(sum=-1 if misdeed == "ignore" else 0)


def name_and_delay(headers: CIMultiDict[str]) -> tuple[str, float]:
    """What a stream's handler notes itself as, and how long it takes for each message, in seconds."""
    return headers.get(NAME, "nobody"), int(headers.get(DELAY, "0")) / 1000


def add(response: SumResponse, msg: SumRequest, name: str) -> bool:
    """Add a message to the sum; whether there shall be more."""
    response.sum += msg.number
    response.messages += 1
    if response.messages <= _ARRIVALS:
        response.arrivals.append(time.monotonic())
    noted.reached[name] = response.messages
    if msg.misdeed == "raise":
        raise ValueError(SECRET)
    if msg.misdeed == "error":
        raise ConnectError(ConnectErrorCode.NOT_FOUND, "enough")
    return msg.misdeed != "enough"


def _misbehave(msg: EchoRequest, response: EchoResponse) -> ServerResponse[EchoResponse] | EchoResponse:
    misdeed, _, argument = msg.misdeed.partition("=")
    misdeeds: dict[str, Callable[[], Any]] = {
        "big": lambda: EchoResponse(request=EchoRequest(text="x" * msg.number)),
        "metadata": lambda: ServerResponse(response, headers={"x-head": ["1", "2"]}, trailers={"x-tail": ["3", "4"]}),
        "error": lambda: ConnectError(ConnectErrorCode[argument], f"this is {argument}"),
        "error with metadata": lambda: ServerResponse(
            ConnectError(ConnectErrorCode.ABORTED, "no", [PingRequest(text="detail")]),
            headers={"x-head": "1"},
            trailers={"x-tail": "2"},
        ),
        "big error": lambda: ConnectError(ConnectErrorCode.ABORTED, "x" * 5000),
        "odd error": lambda: ConnectError(ConnectErrorCode.ABORTED, 'a\r\nb\0c\ud800"d\u2028'),
        "none": lambda: None,
        "wrong": lambda: PingResponse(),
        "string": lambda: SECRET,
        "bad headers": lambda: ServerResponse(response, headers={argument: SECRET}),
        "bad value": lambda: ServerResponse(response, headers={"x-bad": "a\r\nset-cookie: b"}),
        "bad trailers": lambda: ServerResponse(response, trailers={"x-bad": "\u00e4\r\n\r\n<html>"}),
        "not text": lambda: ServerResponse(response, headers={"x-bad": 5}),  # type: ignore[dict-item]
        "bad error": lambda: ServerResponse(ConnectError(ConnectErrorCode.ABORTED), headers={"x-bad": "\n"}),
        "reached": lambda: EchoResponse(request=EchoRequest(number=noted.reached.get(argument, 0))),
    }
    raised: dict[str, BaseException] = {
        "ValueError": ValueError(SECRET),
        "TimeoutError": TimeoutError(SECRET),
        "OSError": OSError(5, SECRET, f"/srv/{SECRET}.py"),
        "BrokenPipeError": BrokenPipeError(32, SECRET),
        "RecursionError": RecursionError(SECRET),
        "MemoryError": MemoryError(SECRET),
        "StopIteration": StopIteration(SECRET),
        "AssertionError": AssertionError(SECRET),
        "UnicodeError": UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        "ExceptionGroup-like": Exception(SECRET, ValueError(SECRET)),
    }
    if misdeed == "raise":
        raise raised[argument]
    return misdeeds[misdeed]()  # type: ignore[no-any-return]


def _count(msg: CountRequest) -> Iterator[CountResponse | ConnectError]:
    name = msg.name or "count"
    noted.add(f"{name}: begin")
    try:
        if msg.misdeed == "raise first":
            raise ValueError(SECRET)
        if msg.first_delay_ms:
            time.sleep(msg.first_delay_ms / 1000)
        for number in range(1, msg.up_to + 1):
            noted.reached[name] = number
            yield CountResponse(number=number, padding=bytes(msg.padding))
            if msg.delay_ms:
                time.sleep(msg.delay_ms / 1000)
        if msg.misdeed == "raise last":
            raise ValueError(SECRET)
        if msg.misdeed == "error last":
            yield ConnectError(ConnectErrorCode.NOT_FOUND, "enough", [PingRequest(text="detail")])
            noted.add(f"{name}: went on after its error")
        if msg.misdeed == "wrong type":
            yield PingResponse()  # type: ignore[misc]
        if msg.misdeed == "stop iteration":
            raise RuntimeError(SECRET) from StopIteration(SECRET)
    finally:
        noted.add(f"{name}: end")
        if msg.misdeed == "raise finally":
            raise ValueError(SECRET)


class Other:
    """The second service."""

    def ping(self, req: ClientRequest[PingRequest]) -> PingResponse:
        return PingResponse(text=req.msg.text)


probe: Any = Probe()
"""Of no type: it lacks a method, as implementations may."""

_plain = wsgi_app(wsgi_probe_service(probe), wsgi_other_service(Other()))
_mounts = {
    # Mounted as frameworks do it: they move the prefix from PATH_INFO to SCRIPT_NAME.
    "/mounted": wsgi_probe_service(probe),
    "/deep/er": _plain,
    "/strict": wsgi_probe_service(probe, require_connect_protocol_header=True),
    "/hasty": wsgi_probe_service(probe, max_timeout_seconds=0.2),
    "/small": wsgi_probe_service(probe, read_max_bytes=1000),
}
_prefixed = wsgi_probe_service(probe, prefix="/prefixed/")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A framework's dispatcher in small."""
    path = environ.get("PATH_INFO", "")
    for mount, service in _mounts.items():
        if path.startswith(mount + "/"):
            environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + mount
            environ["PATH_INFO"] = path[len(mount) :]
            return service(environ, start_response)
    if path.startswith("/prefixed/"):
        return _prefixed(environ, start_response)
    if path == "/hello":
        start_response("200 OK", [("content-type", "text/plain"), ("content-length", "5")])
        return [b"hello"]
    return _plain(environ, start_response)


class Relay:
    """Asks another server, with a client that was made, and used, before the server forked its workers."""

    def __init__(self, upstream: str) -> None:
        self._client = ProbeServiceClient(upstream)
        self._client.echo(EchoRequest(text="before the fork"))

    def ping(self, req: ClientRequest[PingRequest]) -> PingResponse:
        answer = self._client.echo(EchoRequest(text=req.msg.text))
        return PingResponse(text=f"{os.getpid()} {answer.request.text}")


def relay() -> Any:
    """The app of ``Relay``; the environment tells its upstream."""
    service = wsgi_other_service(Relay(os.environ["UPSTREAM"]))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            start_response("200 OK", [("content-length", "0")])
            return [b""]
        return service(environ, start_response)

    return app
