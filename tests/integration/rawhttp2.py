"""HTTP/2 by hand, upon ``h2``: a client and a server that say what they are told to, also what they must not.

``h2`` keeps the books, of windows and of header compression. What it would not send, ``raw`` and ``frame`` do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import hpack
from hpack import NeverIndexedHeaderTuple
from typing_extensions import Self

from rawhttp import HOST, PATIENCE, Malformed, RawServer, envelopes
from servers import START_SECONDS, STOP_SECONDS, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from rawhttp import Peer

    Headers = Sequence[tuple[str, str]]

__all__ = [
    "HTTP2_KINDS",
    "Frame",
    "H2Client",
    "H2Peer",
    "H2Stream",
    "frame",
    "h2_server",
    "header_block",
    "run_http2_server",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

ErrorCode = h2.errors.ErrorCodes


class Frame:
    """The types and flags of frames (RFC 9113 section 6)."""

    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
    END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame, whatever it says. Its length is that of its payload unless another is told."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(headers: Headers) -> bytes:
    """Compressed headers that leave the other side's table as it is, so that they fit in anywhere."""
    pairs = [NeverIndexedHeaderTuple(name, value) for name, value in headers]
    encoded: bytes = hpack.Encoder().encode(pairs, huffman=False)
    return encoded


class H2Stream:
    """One stream of a connection, as far as the other side has told of it.

    Attributes:
        id: its number.
        headers: those that began it; empty before they have come.
        body: what has come of it.
        trailers: those that ended it, or None.
        ended: whether the other side has said that it is the end.
        reset: the code by which the other side has reset it, or None.
    """

    def __init__(self, number: int) -> None:
        self.id = number
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()
        self.trailers: list[tuple[str, str]] | None = None
        self.ended = False
        self.reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def get(self, name: str) -> str | None:
        """The first header of this name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def status(self) -> int:
        return int(self.get(":status") or 0)

    def trailer(self, name: str) -> str | None:
        """The first trailer of this name; the headers are the trailers where an answer has nothing else."""
        pairs = self.headers if self.trailers is None and not self.body else self.trailers or []
        return next((value for key, value in pairs if key == name), None)

    def messages(self) -> list[tuple[int, bytes]]:
        """Flags and payloads of the messages that have come."""
        return envelopes(bytes(self.body))

    def __repr__(self) -> str:
        return (
            f"H2Stream({self.id}, {self.headers}, {bytes(self.body[:200])!r} of {len(self.body)}, "
            f"trailers={self.trailers}, ended={self.ended}, reset={self.reset})"
        )


class _Side:
    """One side of a connection.

    Args:
        sock: the connection.
        client: which side.
        reading: whether what is read is acknowledged, so that the other side may send more.
        window: how much of a stream the other side may send without that.
    """

    def __init__(self, sock: socket.socket, *, client: bool, reading: bool = True, window: int = 1 << 24) -> None:
        self.sock = sock
        self.reading = reading
        self.streams: dict[int, H2Stream] = {}
        self.goaway: int | None = None
        """The code with which the other side has said good-bye."""
        self.gone = False
        self._client = client
        self._fresh: list[H2Stream] = []
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=client,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 10_000,
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 20,
            },
        )
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def raw(self, data: bytes) -> None:
        """Send bytes, whatever they mean."""
        self.flush()
        self.sock.sendall(data)

    def pump(self, timeout: float = PATIENCE) -> bool:
        """Take in what has come, or will within the time; whether there was something.

        Raises:
            Malformed: it breaks HTTP/2.
        """
        if self.gone:
            return False
        pending = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
        if not pending and not select.select([self.sock], [], [], max(timeout, 0))[0]:
            return False
        try:
            data = self.sock.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.gone = True
            return False
        try:
            for event in self.h2.receive_data(data):
                self._take(event)
        except h2.exceptions.ProtocolError as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None
        with contextlib.suppress(OSError):
            self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
            return
        number = getattr(event, "stream_id", None)
        if not number:
            return
        if isinstance(event, h2.events.RequestReceived):
            self._fresh.append(self.streams.setdefault(number, H2Stream(number)))
        stream = self.streams.get(number)
        if stream is None:
            return
        if isinstance(event, (h2.events.RequestReceived, h2.events.ResponseReceived)):
            stream.headers = [(str(name), str(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data or b""
            if self.reading and event.flow_controlled_length:
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = [(str(name), str(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset) and event.remote_reset:
            stream.reset = int(event.error_code or 0)

    def wait(self, condition: Callable[[], object], within: float = PATIENCE) -> bool:
        """Whether something becomes true of what comes ``within`` seconds, before the other side leaves."""
        until = time.monotonic() + within
        while not condition():
            left = until - time.monotonic()
            if left <= 0 or self.gone:
                return False
            self.pump(left)
        return True

    def data(self, stream: H2Stream, body: bytes, *, end: bool = False, within: float = PATIENCE) -> int:
        """Send a body as the other side's window lets it; how much it took before the stream was over or time was."""
        sent, until = 0, time.monotonic() + within
        view = memoryview(body)
        while True:
            while self.pump(0):  # what the other side says meanwhile comes first
                pass
            try:
                room = min(self.h2.local_flow_control_window(stream.id), self.h2.max_outbound_frame_size)
                part = bytes(view[sent : sent + max(room, 0)])
                last = sent + len(part) == len(body)
                if part or (last and end):
                    self.h2.send_data(stream.id, part, end_stream=end and last)
                    self.flush()
                    sent += len(part)
            except (h2.exceptions.ProtocolError, OSError):
                return sent  # the stream is closed
            if sent == len(body) or self.gone or stream.over or time.monotonic() > until:
                return sent
            if room <= 0:
                self.pump(min(0.5, max(until - time.monotonic(), 0)))

    def reset(self, stream: H2Stream, code: int = ErrorCode.CANCEL) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.h2.reset_stream(stream.id, ErrorCode(code))
        self.flush()


class H2Client(_Side):
    """A client's connection to a server on this host, in plain text unless it is given a context."""

    def __init__(
        self, port: int, *, context: ssl.SSLContext | None = None, reading: bool = True, window: int = 1 << 24
    ) -> None:
        sock = socket.create_connection((HOST, port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=HOST)
        super().__init__(sock, client=True, reading=reading, window=window)
        if reading:
            self.h2.increment_flow_control_window(1 << 28)
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def open(self, headers: Headers, *, end: bool = False) -> H2Stream:
        """Begin a request."""
        number = self.h2.get_next_available_stream_id()
        stream = self.streams[number] = H2Stream(number)
        self.h2.send_headers(number, list(headers), end_stream=end)
        self.flush()
        return stream

    def trailers(self, stream: H2Stream, trailers: Headers) -> None:
        """End a request with trailers."""
        self.h2.send_headers(stream.id, list(trailers), end_stream=True)
        self.flush()

    def call(self, headers: Headers, body: bytes = b"", *, within: float = PATIENCE) -> H2Stream:
        """A request and what becomes of it ``within`` seconds. Of a body, no more is sent than has no answer yet."""
        stream = self.open(headers, end=not body)
        if body and self.data(stream, body, end=True, within=within) < len(body) and stream.reset is None:
            self.reset(stream, ErrorCode.CANCEL)
        self.wait(lambda: stream.over, within)
        return stream


class H2Peer(_Side):
    """A server's side of one connection."""

    def __init__(self, peer: Peer, *, window: int = 1 << 24) -> None:
        super().__init__(peer.sock, client=False, window=window)

    def request(self, *, whole: bool = True) -> H2Stream | None:
        """The next request, with all of its body unless only its head is wanted; None when the client has gone."""
        if not self.wait(lambda: self._fresh):
            return None
        stream = self._fresh.pop(0)
        if whole and not self.wait(lambda: stream.over):
            return None
        return stream

    def head(self, stream: H2Stream, headers: Headers, *, end: bool = False) -> None:
        self.h2.send_headers(stream.id, list(headers), end_stream=end)
        self.flush()

    def trailers(self, stream: H2Stream, trailers: Headers) -> None:
        self.h2.send_headers(stream.id, list(trailers), end_stream=True)
        self.flush()

    def finish(self, seconds: float = PATIENCE) -> None:
        """Take in what the client still says until it leaves."""
        self.wait(lambda: False, seconds)


def h2_server(script: Callable[[H2Peer], object], *, window: int = 1 << 24) -> RawServer:
    """A server in threads of this process that does with each connection of HTTP/2 what ``script`` says."""
    return RawServer(lambda peer: script(H2Peer(peer, window=window)))


# Real servers with HTTP/2.


def _uvicorn(fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", "--fd", str(fd), "--http", "zttp", "--http2", "--loop", "asyncio"),
        *("--timeout-graceful-shutdown", "1", "--timeout-keep-alive", "60", "--log-level", "warning"),
    ]


def _gunicorn(fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--worker-class", "asgi"),
        *("--graceful-timeout", "4", "--timeout", "60", "--log-level", "warning", "--no-control-socket"),
        *("--http-protocols", "h2,h1", "--keep-alive", "60"),
    ]


def _hypercorn(fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", "hypercorn", "--bind", f"fd://{fd}"),
        *("--graceful-timeout", "1", "--keep-alive", "60", "--log-level", "warning"),
    ]


class _Kind(NamedTuple):
    command: Callable[[int], list[str]]
    plain: tuple[str, ...] = ()
    """What it needs to be told to take HTTP/2 in plain text; it takes nothing else then."""
    certificate: tuple[str, str] = ("--certfile", "--keyfile")


HTTP2_KINDS: dict[str, _Kind] = {
    "uvicorn-http2": _Kind(_uvicorn, certificate=("--ssl-certfile", "--ssl-keyfile")),
    "gunicorn-asgi-http2": _Kind(_gunicorn, ("--http2-cleartext", "prior-knowledge")),
    "hypercorn-http2": _Kind(_hypercorn),
}

_HERE = Path(__file__).parent


@contextlib.contextmanager
def run_http2_server(
    kind: str, directory: Path, *, app: str = "service_asgi:app", certificate: Path | None = None
) -> Iterator[Server]:
    """A server that speaks HTTP/2, until the block is left.

    Args:
        kind: which one.
        directory: where it runs, and where its log goes.
        app: what it serves.
        certificate: a file with its certificate and key, for TLS. Without it HTTP/2 comes in plain text.
    """
    known = HTTP2_KINDS[kind]
    search = [str(_HERE / "gen"), str(_HERE), str(_HERE.parents[1] / "src"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUNBUFFERED": "1"}
    log = directory / f"{kind}.log"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        # What it accepts inherits this. uvicorn takes what it is given for a Unix socket, and would not set it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((HOST, 0))
        listener.listen(1024)
        port: int = listener.getsockname()[1]
        options = known.plain
        if certificate is not None:
            options = (known.certificate[0], str(certificate), known.certificate[1], str(certificate))
        # In a process group of its own, so that none of its workers can outlive us.
        process = subprocess.Popen(
            [*known.command(listener.fileno()), *options, app],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        listener.close()
        server = Server(kind, port, log, process)
        try:
            _wait_until_serving(server, tls=certificate is not None)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_serving(server: Server, *, tls: bool) -> None:
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    authority = f"{HOST}:{server.port}"
    headers = [(":method", "GET"), (":scheme", "https" if tls else "http"), (":authority", authority)]
    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError, Malformed), H2Client(server.port, context=context) as client:
            if client.call([*headers, (":path", "/hello")], within=START_SECONDS).status == 200:
                return
        if server.process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{server.kind} did not start:\n{server.logged()}")
        time.sleep(0.05)
