"""grpcio, on the other side of our servers and our clients: its callers and servers in both colours.

Run as a program it is a grpcio server: ``grpcio_peer.py sync|aio [certificate with its key]``, which prints its port.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc  # type: ignore[import-untyped]
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]
from typing_extensions import Self

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import AsyncClientStream, ClientRequest, InThreads, ServerResponse, ServerStream, asgi_app

from helpers import settles
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
    SumRequest,
    SumResponse,
)
from integration_pb2_connect import asgi_probe_service
from rawhttp import HOST
from service import DELAY, MISDEED, NAME, SECRET, noted, probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
    from types import TracebackType

    from google.protobuf.message import Message

__all__ = [
    "BINARY",
    "CALLERS",
    "HEADERS",
    "ODD_TEXT",
    "SHAPES",
    "SMALL_BYTES",
    "TRAILERS",
    "AioCaller",
    "Caller",
    "Frame",
    "Outcome",
    "Peer",
    "Relay",
    "SyncCaller",
    "app",
    "as_text",
    "close_aio",
    "run_aio",
    "run_grpcio",
    "run_ours",
    "saw",
]

T = TypeVar("T")

HERE = Path(__file__).parent
START_SECONDS = 20.0
STOP_SECONDS = 10.0

ODD_TEXT = " 100 %: a\tb\r\nc \u00e4\u20ac\U0001f600 "
"""A message of an error with all that needs quoting."""

BINARY = bytes(range(256))
"""A value of binary metadata. Its length needs padding in base64."""

HEADERS: list[tuple[str, str | bytes]] = [
    ("x-head", "1"),
    ("x-head", "2, 3"),
    ("x-head-bin", BINARY),
    ("x-head-bin", b"\0"),
]
TRAILERS: list[tuple[str, str | bytes]] = [
    ("x-tail", "4"),
    ("x-tail", "5, 6"),
    ("x-tail-bin", BINARY),
    ("x-tail-bin", b"\xff\xfe"),
]
"""What servers answer with that are asked for metadata."""

_ENDLESS_SECONDS = 1e9
"""What is more than this is no deadline to grpcio, which says so in one of its colours only."""

SMALL_BYTES = 1000
"""The largest message that the services below ``/small`` take."""


# What the servers do. All three, ours and grpcio's two, do the same when they are told the same.


class Verdict(NamedTuple):
    """How a call is to end."""

    error: ConnectError | None = None
    headers: list[tuple[str, str | bytes]] = []  # noqa: RUF012  a tuple's default, which nobody changes
    trailers: list[tuple[str, str | bytes]] = []  # noqa: RUF012


def judge(misdeed: str, text: str = "") -> Verdict:
    """How a call is to end whose caller asks for this.

    Raises:
        ValueError: that was asked for.
    """
    kind, _, argument = misdeed.partition("=")
    details: list[Message] = [PingRequest(text="first"), EchoRequest(data=BINARY, number=2), PingRequest()]
    if kind == "raise":
        raise ValueError(SECRET)
    verdicts = {
        "": lambda: Verdict(),
        "big": lambda: Verdict(),  # its answer is
        "error": lambda: Verdict(ConnectError(ConnectErrorCode[argument], f"this is {argument}")),
        "say": lambda: Verdict(ConnectError(ConnectErrorCode.ABORTED, text)),
        "details": lambda: Verdict(ConnectError(ConnectErrorCode.FAILED_PRECONDITION, ODD_TEXT, details)),
        "metadata": lambda: Verdict(None, HEADERS, TRAILERS),
        "metadata and error": lambda: Verdict(
            ConnectError(ConnectErrorCode.DATA_LOSS, ODD_TEXT, details), HEADERS, TRAILERS
        ),
    }
    return verdicts[kind]()


def answer(request: EchoRequest, headers: Iterable[tuple[str, str]], left: float | None) -> EchoResponse:
    """What ``echo`` answers: the request, the headers that came with it, and how many seconds there are left."""
    if left is None or left > _ENDLESS_SECONDS:
        left = 0
    response = EchoResponse(request=request, timeout_ms=int(left * 1000))
    if request.misdeed == "big":
        response.request.data = bytes(request.number)
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    for name, values in found.items():
        response.headers.add(name=name, values=values)
    return response


def as_text(pairs: Iterable[tuple[str, str | bytes]]) -> dict[str, list[str]]:
    """Metadata as our services and clients give it: binary values as base64."""
    result: dict[str, list[str]] = {}
    for name, value in pairs:
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        result.setdefault(name, []).append(text)
    return result


class Ours:
    """The service, in our terms."""

    async def echo(self, req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse]:
        message = req.msg
        if message.delay_ms:
            async with noting(message.text):
                await asyncio.sleep(message.delay_ms / 1000)
        verdict = judge(message.misdeed, message.text)
        response = answer(message, req.headers.items(), req.timeout.remaining())
        return ServerResponse(verdict.error or response, as_text(verdict.headers), as_text(verdict.trailers))

    async def count(self, req: ClientRequest[CountRequest]) -> ServerStream[CountResponse]:
        verdict = judge(req.msg.misdeed, ODD_TEXT)
        return ServerStream(self._count(req.msg, verdict), as_text(verdict.headers), as_text(verdict.trailers))

    async def _count(self, message: CountRequest, verdict: Verdict) -> AsyncIterator[CountResponse | ConnectError]:
        async with noting(message.name):
            for number in range(1, message.up_to + 1):
                yield CountResponse(number=number, padding=bytes(message.padding))
                if message.delay_ms:
                    await asyncio.sleep(message.delay_ms / 1000)
        if verdict.error is not None:
            yield verdict.error

    async def sum(self, req: AsyncClientStream[SumRequest]) -> ServerResponse[SumResponse]:
        response = SumResponse()
        async with noting(req.headers.get(NAME, "")):
            async for message in req:
                response.sum += message.number
                response.messages += 1
                if message.misdeed == "enough":
                    break
            noted.add(f"{req.headers.get(NAME, '')}: whole")
        verdict = judge(req.headers.get(MISDEED, ""), ODD_TEXT)
        return ServerResponse(verdict.error or response, as_text(verdict.headers), as_text(verdict.trailers))

    async def chat(self, req: AsyncClientStream[ChatRequest]) -> ServerStream[ChatResponse]:
        verdict = judge(req.headers.get(MISDEED, ""), ODD_TEXT)
        return ServerStream(self._chat(req, verdict), as_text(verdict.headers), as_text(verdict.trailers))

    async def _chat(
        self, req: AsyncClientStream[ChatRequest], verdict: Verdict
    ) -> AsyncIterator[ChatResponse | ConnectError]:
        delay = int(req.headers.get(DELAY, "0")) / 1000
        async with noting(req.headers.get(NAME, "")):
            async for message in req:
                yield ChatResponse(text=message.text)
                if message.misdeed == "enough":
                    break
                if delay:
                    await asyncio.sleep(delay)
        if verdict.error is not None:
            yield verdict.error

    async def notes(self, req: ClientRequest[NotesRequest]) -> NotesResponse:
        return NotesResponse(notes=noted.take())


@contextlib.asynccontextmanager
async def noting(name: str) -> AsyncIterator[None]:
    """Notes when a handler begins and ends, and whether it was ended from outside."""
    noted.add(f"{name}: begin")
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        noted.add(f"{name}: cancelled")
        raise
    finally:
        noted.add(f"{name}: end")


def our_app() -> Any:
    """Our service in our app: async, below ``/threads`` synchronous, and below ``/small`` with a limit."""
    ours: Any = Ours()
    mounts = {
        "/threads": asgi_probe_service(InThreads(probe)),
        "/small": asgi_probe_service(ours, read_max_bytes=SMALL_BYTES),
    }
    plain = asgi_app(asgi_probe_service(ours))

    async def dispatch(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        for mount, service in mounts.items():
            if path.startswith(mount + "/"):
                await service({**scope, "root_path": scope.get("root_path", "") + mount}, receive, send)
                return
        await plain(scope, receive, send)

    return dispatch


app = our_app()


def grpc_status(error: ConnectError) -> Any:
    """An error as grpcio's servers give it."""
    details = [PackedAny(type_url=f"type.googleapis.com/{it.type}", value=it.value) for it in error.details]
    return rpc_status.to_status(Status(code=error.code.grpc_number, message=error.message, details=details))


def received(context: Any) -> list[tuple[str, str]]:
    """The metadata that a grpcio server got, as our services would see it."""
    metadata = [(name, value) for name, value in context.invocation_metadata() or ()]
    return [(name, value) for name, values in as_text(metadata).items() for value in values]


def header(context: Any, name: str) -> str:
    return dict(received(context)).get(name, "")


class GrpcioSync:
    """The service, in the terms of grpcio's threads."""

    def echo(self, request: EchoRequest, context: Any) -> EchoResponse:
        if request.delay_ms:
            self._pause(context, request.text, request.delay_ms / 1000)
        self._begin(context, verdict := judge(request.misdeed, request.text))
        response = answer(request, received(context), context.time_remaining())
        self._end(context, verdict)
        return response

    def count(self, request: CountRequest, context: Any) -> Iterator[CountResponse]:
        self._begin(context, verdict := judge(request.misdeed, ODD_TEXT))
        noted.add(f"{request.name}: begin")
        gone = self._gone(context, request.name)
        try:
            for number in range(1, request.up_to + 1):
                yield CountResponse(number=number, padding=bytes(request.padding))
                if request.delay_ms and gone.wait(request.delay_ms / 1000):
                    return
        finally:
            noted.add(f"{request.name}: end")
        self._end(context, verdict)

    def sum(self, requests: Iterator[SumRequest], context: Any) -> SumResponse:
        response, name = SumResponse(), header(context, NAME)
        self._gone(context, name)
        noted.add(f"{name}: begin")
        try:
            for message in requests:
                response.sum += message.number
                response.messages += 1
                if message.misdeed == "enough":
                    break
        finally:
            noted.add(f"{name}: end")
        self._begin(context, verdict := judge(header(context, MISDEED), ODD_TEXT))
        self._end(context, verdict)
        return response

    def chat(self, requests: Iterator[ChatRequest], context: Any) -> Iterator[ChatResponse]:
        self._begin(context, verdict := judge(header(context, MISDEED), ODD_TEXT))
        name = header(context, NAME)
        noted.add(f"{name}: begin")
        self._gone(context, name)
        try:
            for message in requests:
                yield ChatResponse(text=message.text)
                if message.misdeed == "enough":
                    break
        finally:
            noted.add(f"{name}: end")
        self._end(context, verdict)

    def notes(self, request: NotesRequest, context: Any) -> NotesResponse:
        return NotesResponse(notes=noted.take())

    def _pause(self, context: Any, name: str, seconds: float) -> None:
        noted.add(f"{name}: begin")
        self._gone(context, name).wait(seconds)
        noted.add(f"{name}: end")

    @staticmethod
    def _gone(context: Any, name: str) -> threading.Event:
        """Is set when the call is over; that is noted, if its handler still runs."""
        gone = threading.Event()

        def over() -> None:
            gone.set()
            if context.code() is None:
                noted.add(f"{name}: cancelled")

        if not context.add_callback(over):
            over()
        return gone

    @staticmethod
    def _begin(context: Any, verdict: Verdict) -> None:
        if verdict.headers:
            context.send_initial_metadata(verdict.headers)

    @staticmethod
    def _end(context: Any, verdict: Verdict) -> None:
        context.set_trailing_metadata(verdict.trailers)
        if verdict.error is not None:
            status = grpc_status(verdict.error)
            if verdict.error.details:
                # It would set the trailing metadata anew.
                context.set_trailing_metadata([*verdict.trailers, *status.trailing_metadata])
            context.abort(status.code, status.details)
        context.set_code(grpc.StatusCode.OK)


class GrpcioAio:
    """The service, in the terms of grpcio's asyncio."""

    async def echo(self, request: EchoRequest, context: Any) -> EchoResponse:
        if request.delay_ms:
            async with noting(request.text):
                await asyncio.sleep(request.delay_ms / 1000)
        await self._begin(context, verdict := judge(request.misdeed, request.text))
        response = answer(request, received(context), context.time_remaining())
        await self._end(context, verdict)
        return response

    async def count(self, request: CountRequest, context: Any) -> AsyncIterator[CountResponse]:
        await self._begin(context, verdict := judge(request.misdeed, ODD_TEXT))
        async with noting(request.name):
            for number in range(1, request.up_to + 1):
                yield CountResponse(number=number, padding=bytes(request.padding))
                if request.delay_ms:
                    await asyncio.sleep(request.delay_ms / 1000)
        await self._end(context, verdict)

    async def sum(self, requests: AsyncIterator[SumRequest], context: Any) -> SumResponse:
        response = SumResponse()
        async with noting(header(context, NAME)):
            async for message in requests:
                response.sum += message.number
                response.messages += 1
                if message.misdeed == "enough":
                    break
        await self._begin(context, verdict := judge(header(context, MISDEED), ODD_TEXT))
        await self._end(context, verdict)
        return response

    async def chat(self, requests: AsyncIterator[ChatRequest], context: Any) -> AsyncIterator[ChatResponse]:
        await self._begin(context, verdict := judge(header(context, MISDEED), ODD_TEXT))
        async with noting(header(context, NAME)):
            async for message in requests:
                yield ChatResponse(text=message.text)
                if message.misdeed == "enough":
                    break
        await self._end(context, verdict)

    async def notes(self, request: NotesRequest, context: Any) -> NotesResponse:
        return NotesResponse(notes=noted.take())

    @staticmethod
    async def _begin(context: Any, verdict: Verdict) -> None:
        if verdict.headers:
            await context.send_initial_metadata(verdict.headers)

    @staticmethod
    async def _end(context: Any, verdict: Verdict) -> None:
        trailers = list(verdict.trailers)
        if verdict.error is None:
            context.set_trailing_metadata(trailers)
            return
        status = grpc_status(verdict.error)
        if verdict.error.details:
            trailers += status.trailing_metadata
        await context.abort(status.code, status.details, tuple(trailers))  # no list will do


# The methods.


class Shape(NamedTuple):
    """A method, as grpcio's stubs and servers want it."""

    name: str
    request: type[Any]
    response: type[Any]
    streams: bool
    """Whether it takes a stream."""
    answers: bool
    """Whether it gives a stream."""

    @property
    def kind(self) -> str:
        return f"{'stream' if self.streams else 'unary'}_{'stream' if self.answers else 'unary'}"

    def path(self, prefix: str = "") -> str:
        return f"{prefix}/integration.v1.ProbeService/{self.name}"

    def stub(self, channel: Any, prefix: str = "") -> Any:
        """grpcio's callable, of the channel's colour."""
        make = getattr(channel, self.kind)
        return make(
            self.path(prefix),
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("Echo", EchoRequest, EchoResponse, False, False),
        Shape("Count", CountRequest, CountResponse, False, True),
        Shape("Sum", SumRequest, SumResponse, True, False),
        Shape("Chat", ChatRequest, ChatResponse, True, True),
        Shape("Notes", NotesRequest, NotesResponse, False, False),
        Shape("Missing", EchoRequest, EchoResponse, False, False),
    )
}


# grpcio's callers.


class Outcome(NamedTuple):
    """A call of grpcio's that is over."""

    messages: list[Any]
    code: str
    text: str
    details: list[Message]
    headers: list[tuple[str, str | bytes]]
    trailers: list[tuple[str, str | bytes]]

    @property
    def message(self) -> Any:
        """The only message of a call that went well."""
        assert self.code == "OK", self
        (message,) = self.messages
        return message


class Caller(abc.ABC):
    """A channel of grpcio's. ``call`` waits for the end of the call that it makes.

    Args:
        server: whom to call.
        **options: of the channel, with two underscores for each dot.
    """

    @abc.abstractmethod
    def __init__(self, server: Peer, **options: Any) -> None: ...

    @abc.abstractmethod
    def call(self, name: str, *requests: Any, prefix: str = "", **options: Any) -> Outcome:
        """Call a method.

        Args:
            name: which one.
            *requests: the messages.
            prefix: stands in front of its path.
            **options: grpcio's own: ``metadata``, ``timeout``, ``compression`` and so on.
        """

    @abc.abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SyncCaller(Caller):
    def __init__(self, server: Peer, **options: Any) -> None:
        self.channel = server.channel(**options)

    def call(self, name: str, *requests: Any, prefix: str = "", **options: Any) -> Outcome:
        shape = SHAPES[name]
        stub = shape.stub(self.channel, prefix)
        argument = iter(requests) if shape.streams else requests[0]
        options = {"timeout": 20, **options}
        call = stub(argument, **options) if shape.answers else stub.future(argument, **options)
        messages: list[Any] = []
        with contextlib.suppress(grpc.RpcError):
            if shape.answers:
                messages.extend(call)
            else:
                messages.append(call.result())
        status = rpc_status.from_call(call)
        return Outcome(
            messages,
            call.code().name,
            call.details(),
            _unpack(status),
            list(map(tuple, call.initial_metadata())),
            _own(call.trailing_metadata()),
        )

    def close(self) -> None:
        self.channel.close()


_loops: list[asyncio.AbstractEventLoop] = []


def run_aio(call: Coroutine[Any, Any, T]) -> T:
    """What ``call`` gives, in the only event loop that grpcio gets to see: it does not go well with several."""
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0].run_until_complete(call)


def close_aio() -> None:
    """Close the event loop of ``run_aio``."""
    while _loops:
        loop = _loops.pop()
        loop.run_until_complete(asyncio.sleep(0.1))  # what grpcio still has to tell it
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class AioCaller(Caller):
    def __init__(self, server: Peer, **options: Any) -> None:
        async def make() -> Any:
            return server.aio_channel(**options)

        self.channel = run_aio(make())

    def call(self, name: str, *requests: Any, prefix: str = "", **options: Any) -> Outcome:
        return run_aio(self._call(name, *requests, prefix=prefix, **options))

    async def _call(self, name: str, *requests: Any, prefix: str = "", **options: Any) -> Outcome:
        shape = SHAPES[name]
        argument = iter(requests) if shape.streams else requests[0]
        call = shape.stub(self.channel, prefix)(argument, **{"timeout": 20, **options})
        messages: list[Any] = []
        with contextlib.suppress(grpc.RpcError):
            if shape.answers:
                async for message in call:
                    messages.append(message)  # noqa: PERF401  those before a failure are to be kept
            else:
                messages.append(await call)
        code, text, trailers = await call.code(), await call.details(), await call.trailing_metadata()
        return Outcome(
            messages,
            code.name,
            text,
            _unpack(await rpc_status.aio.from_call(call)),
            list(map(tuple, await call.initial_metadata())),
            _own(trailers),
        )

    def close(self) -> None:
        run_aio(self.channel.close())


CALLERS: dict[str, type[Caller]] = {"sync": SyncCaller, "aio": AioCaller}


def _unpack(status: Any) -> list[Message]:
    """The details, as messages."""
    known = {kind.DESCRIPTOR.full_name: kind for kind in (PingRequest, EchoRequest)}
    details: list[Message] = []
    for packed in () if status is None else status.details:
        message: Message = known[packed.TypeName()]()
        assert packed.Unpack(message)
        details.append(message)
    return details


def _own(trailers: Iterable[tuple[str, str | bytes]] | None) -> list[tuple[str, str | bytes]]:
    return [(name, value) for name, value in trailers or () if name != "grpc-status-details-bin"]


# Servers in processes of their own.


class Peer(NamedTuple):
    """A server that accepts connections.

    Attributes:
        kind: which one.
        port: its port.
        log: where it writes.
        process: its first process.
        authority: the certificate to trust, if it speaks TLS.
    """

    kind: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    authority: Path | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.authority is None else 'https'}://{HOST}:{self.port}"

    def logged(self) -> str:
        """All that it has printed by now."""
        return self.log.read_text(errors="replace")

    def channel(self, **options: Any) -> Any:
        """grpcio's channel to it."""
        return self._channel(grpc, options)

    def aio_channel(self, **options: Any) -> Any:
        """grpcio's channel to it, for the running event loop."""
        return self._channel(grpc.aio, options)

    def _channel(self, colour: Any, options: dict[str, Any]) -> Any:
        compression = options.pop("compression", None)
        # Else channels share connections.
        settings = [
            ("grpc.use_local_subchannel_pool", 1),
            *((name.replace("__", "."), options[name]) for name in options),
        ]
        target = f"{HOST}:{self.port}"
        if self.authority is None:
            return colour.insecure_channel(target, options=settings, compression=compression)
        credentials = grpc.ssl_channel_credentials(self.authority.read_bytes())
        return colour.secure_channel(target, credentials, options=settings, compression=compression)


def _uvicorn(listener: socket.socket, certificate: Path | None) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno()), "--http", "zttp", "--http2"]
    command += ["--loop", "asyncio", "--timeout-graceful-shutdown", "8", "--log-level", "warning"]
    if certificate is not None:
        command += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(certificate)]
    return [*command, "grpcio_peer:app"]


def _gunicorn(listener: socket.socket, certificate: Path | None) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--worker-class", "asgi"]
    command += ["--graceful-timeout", "8", "--timeout", "60", "--log-level", "warning", "--no-control-socket"]
    command += ["--http-protocols", "h2,h1"]
    if certificate is None:
        command += ["--http2-cleartext", "prior-knowledge"]
    else:
        command += ["--certfile", str(certificate), "--keyfile", str(certificate)]
    return [*command, "grpcio_peer:app"]


def _pyvoy(interface: str, served: str) -> Callable[[socket.socket, Path | None], list[str]]:
    def command(listener: socket.socket, certificate: Path | None) -> list[str]:
        command = [str(Path(sys.executable).parent / "pyvoy"), "--address", HOST]
        command += ["--port", str(listener.getsockname()[1]), "--interface", interface, "--log-level", "error"]
        if certificate is not None:
            command += ["--tls-cert", str(certificate), "--tls-key", str(certificate)]
        return [*command, served]

    return command


class _Kind(NamedTuple):
    """How to run one of our apps."""

    command: Callable[[socket.socket, Path | None], list[str]]
    """For a socket that is bound, and the server's certificate."""
    takes_socket: bool = True
    """Whether it takes over a listening socket; else it shares the port by SO_REUSEPORT."""


OURS: Mapping[str, _Kind] = {
    "uvicorn": _Kind(_uvicorn),
    "gunicorn": _Kind(_gunicorn),
    "pyvoy": _Kind(_pyvoy("asgi", "grpcio_peer:app"), takes_socket=False),
    "pyvoy-wsgi": _Kind(_pyvoy("wsgi", "service:app"), takes_socket=False),
}


@contextlib.contextmanager
def run_ours(
    kind: str, directory: Path, certificate: Path | None = None, authority: Path | None = None
) -> Iterator[Peer]:
    """Our app on a server with HTTP/2, until the block is left.

    Args:
        kind: one of ``OURS``.
        directory: where its log goes.
        certificate: its own with the key, if it is to speak TLS.
        authority: who has signed that.
    """
    make, takes_socket = OURS[kind]
    with socket.socket() as listener:
        # A socket that is bound, but does not listen, keeps everybody away from its port who does not share it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # What it accepts inherits this. uvicorn takes what it is given for a Unix socket, and would not set it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        fds = []
        if takes_socket:
            listener.listen(128)
            fds.append(listener.fileno())
        process, log = _start(make(listener, certificate), directory / f"{kind}.log", fds)
        with _stopping(process):
            if takes_socket:
                listener.close()
            yield _ready(Peer(kind, port, log, process, authority))


@contextlib.contextmanager
def run_grpcio(
    colour: str, directory: Path, certificate: Path | None = None, authority: Path | None = None
) -> Iterator[Peer]:
    """grpcio's server, until the block is left.

    Args:
        colour: ``sync`` or ``aio``.
        directory: where its log goes.
        certificate: its own with the key, if it is to speak TLS.
        authority: who has signed that.
    """
    command = [sys.executable, str(HERE / "grpcio_peer.py"), colour]
    if certificate is not None:
        command.append(str(certificate))
    process, log = _start(command, directory / f"grpcio-{colour}.log", [])
    with _stopping(process):
        assert settles(lambda: "port " in log.read_text() or process.poll() is not None, START_SECONDS)
        found = re.search(r"port (\d+)\n", log.read_text())
        assert found is not None, log.read_text()
        yield _ready(Peer(f"grpcio-{colour}", int(found[1]), log, process, authority))


def _start(command: list[str], log: Path, fds: list[int]) -> tuple[subprocess.Popen[bytes], Path]:
    search = [str(HERE / "gen"), str(HERE), str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        # In a process group of its own, so that none of its workers can outlive us.
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=fds,
            start_new_session=True,
        )
    return process, log


@contextlib.contextmanager
def _stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(server: Peer) -> Peer:
    """The server, as soon as it serves."""
    with SyncCaller(server) as caller:
        try:
            grpc.channel_ready_future(caller.channel).result(START_SECONDS)
            assert caller.call("Echo", EchoRequest(text="hello")).message.request.text == "hello"
        except (grpc.FutureTimeoutError, AssertionError) as error:
            raise RuntimeError(f"{server.kind} did not start:\n{server.logged()}") from error
    return server


def saw(caller: Caller, *wanted: str, within: float = 10.0) -> list[str]:
    """What the handlers have noted since they were last asked, once all of ``wanted`` is among it.

    Raises:
        AssertionError: it was not, ``within`` seconds.
    """
    notes: list[str] = []
    until = time.monotonic() + within
    while True:
        notes += caller.call("Notes", NotesRequest()).message.notes
        if set(wanted) <= set(notes):
            return notes
        assert time.monotonic() < until, f"{wanted} are not all in {notes}"
        time.sleep(0.02)


# Between a client and a server.


class Frame(NamedTuple):
    """A frame of HTTP/2, as it went by. RFC 9113 section 4.1."""

    by_client: bool
    kind: int
    flags: int
    stream: int
    size: int
    payload: bytes
    """As much as there is at once of what is short."""


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Relay:
    """Carries connections to a server without TLS, and looks at them. A context manager."""

    def __init__(self, server: Peer) -> None:
        self._server = server
        self.frames: list[Frame] = []
        self._listener = socket.create_server((HOST, 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.peer = server._replace(port=self._listener.getsockname()[1])
        """The server, by way of here."""

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[:1]:
            thread.join(10)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def sent(self, *, by_client: bool, kind: int | None = None) -> list[Frame]:
        """The frames of one side, or those of one kind."""
        return [frame for frame in self.frames if frame.by_client is by_client and (kind is None or frame.kind == kind)]

    def size(self, *, by_client: bool) -> int:
        """How many bytes of messages one side has sent."""
        return sum(frame.size for frame in self.sent(by_client=by_client, kind=0))

    def _run(self, call: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=call, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection((HOST, self._server.port))
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                continue
            self._sockets.append(far)
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._run(self._carry, near, far, True)
            self._run(self._carry, far, near, False)

    def _carry(self, source: socket.socket, target: socket.socket, by_client: bool) -> None:
        reader = _Frames(self.frames, by_client)
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                reader.feed(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class _Frames:
    """Finds frames in what one side sends."""

    def __init__(self, found: list[Frame], by_client: bool) -> None:
        self._found = found
        self._by_client = by_client
        self._buffer = b""
        self._skip = len(_PREFACE) if by_client else 0

    def feed(self, data: bytes) -> None:
        while data:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
            needed = 9 - len(self._buffer)
            if not data:
                return
            self._buffer += data[:needed]
            data = data[needed:]
            if len(self._buffer) == 9:
                head, self._buffer = self._buffer, b""
                size = self._skip = int.from_bytes(head[:3], "big")
                stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                payload = data[: min(size, 64)]
                self._found.append(Frame(self._by_client, head[3], head[4], stream, size, payload))


# The program.


def _handlers(service: GrpcioSync | GrpcioAio) -> Any:
    handlers = {}
    for shape in SHAPES.values():
        method = getattr(service, shape.name.lower(), None)
        if method is not None:
            make = getattr(grpc, f"{shape.kind}_rpc_method_handler")
            handlers[shape.name] = make(method, shape.request.FromString, shape.response.SerializeToString)
    return grpc.method_handlers_generic_handler("integration.v1.ProbeService", handlers)


def _listen(server: Any, certificate: str | None) -> None:
    server.add_generic_rpc_handlers((_handlers(GrpcioAio() if isinstance(server, grpc.aio.Server) else GrpcioSync()),))
    if certificate is None:
        port = server.add_insecure_port(f"{HOST}:0")
    else:
        both = Path(certificate).read_bytes()
        port = server.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials([(both, both)]))
    print("port", port)


def _serve_sync(certificate: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(64), compression=grpc.Compression.Gzip)
    _listen(server, certificate)
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(1):
        pass
    server.stop(8).wait()


async def _serve_aio(certificate: str | None) -> None:
    server = grpc.aio.server(compression=grpc.Compression.Gzip)
    _listen(server, certificate)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(8)


if __name__ == "__main__":
    with_certificate = sys.argv[2] if len(sys.argv) > 2 else None
    if sys.argv[1] == "aio":
        asyncio.run(_serve_aio(with_certificate))
    else:
        _serve_sync(with_certificate)
