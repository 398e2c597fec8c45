"""HTTP by hand: a client that says whatever it is told to, a server that answers likewise, and Connect's framing.

Written apart from the runtime, and sharing nothing with it, because this is what it is measured against.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from multidict import CIMultiDict
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Any

__all__ = [
    "HOST",
    "PATIENCE",
    "Answer",
    "Connection",
    "Malformed",
    "Peer",
    "RawServer",
    "Request",
    "chunked",
    "end_of_stream",
    "envelope",
    "envelopes",
    "parse_answer",
    "response",
]

HOST = "127.0.0.1"

PATIENCE = 10.0
"""How long anything may take before a test gives up, in seconds."""


class Malformed(Exception):  # noqa: N818  it says what the other side's bytes are
    """What came is not HTTP, or broke off."""


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    closes: bool
    """Whether the server has said that it will close the connection."""

    def plain_body(self) -> bytes:
        """The body without its content coding."""
        encoding = self.headers.get("content-encoding", "identity")
        return decoded(encoding, self.body)


def decoded(encoding: str, body: bytes) -> bytes:
    """``body`` without its content coding."""
    if encoding == "identity":
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "br":
        import brotli

        plain: bytes = brotli.decompress(body)
        return plain
    if encoding == "zstd":
        from backports import zstd

        return zstd.decompress(body)
    raise Malformed(f"unknown content-encoding {encoding!r}")


class _Source(Protocol):
    def recv(self, size: int, /) -> bytes: ...


class _Canned:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def parse_answer(data: bytes) -> Answer | None:
    """The answer that a server's bytes are; None for none.

    Raises:
        Malformed: they are no answer, or break off.
    """
    try:
        return Reader(_Canned(data)).answer(bodiless=False)
    except ValueError as error:
        raise Malformed(str(error)) from None


class Reader:
    """Reads HTTP from a socket."""

    def __init__(self, sock: _Source) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def some(self) -> bytes:
        """The next bytes as soon as there are any; none at the end."""
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            return data
        return self._sock.recv(65536)

    def _fill(self) -> bool:
        data = self._sock.recv(65536)
        self._buffer += data
        return bool(data)

    def at_end(self) -> bool:
        """Whether the other side has closed, with nothing left to read. Waits for either."""
        if self._buffer:
            return False
        try:
            return not self._fill()
        except ConnectionResetError:
            return True

    @property
    def buffered(self) -> bool:
        return bool(self._buffer)

    def interim(self) -> int | None:
        while b"\r\n\r\n" not in self._buffer and self._fill():
            pass
        if not self._buffer.startswith(b"HTTP/1.1 1"):
            return None
        status = int(self.line().split(b" ")[1])
        self.headers()
        return status

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if not self._fill():
                raise Malformed(f"broke off in a line: {bytes(self._buffer)!r}")
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._fill():
                raise Malformed(f"broke off {size - len(self._buffer)} bytes early")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def to_end(self) -> bytes:
        while self._fill():
            pass
        data, self._buffer = bytes(self._buffer), bytearray()
        return data

    def headers(self) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        while line := self.line():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or name != name.strip():
                raise Malformed(f"not a header: {line!r}")
            headers.add(name, value.strip())
        return headers

    def chunk(self) -> bytes:
        """The next chunk; none after the last."""
        size = int(self.line().partition(b";")[0], 16)
        if not size:
            self.headers()  # the trailer section
            return b""
        data = self.exactly(size)
        if self.exactly(2) != b"\r\n":
            raise Malformed("no end of line after a chunk")
        return data

    def answer_head(self) -> tuple[int, CIMultiDict[str], bool]:
        """The status and headers of the next answer, and whether it ends with the connection."""
        while True:
            line = self.line().decode("latin-1")
            version, _, rest = line.partition(" ")
            status, _, _reason = rest.partition(" ")
            if version not in ("HTTP/1.0", "HTTP/1.1") or len(status) != 3 or not status.isdigit():
                raise Malformed(f"not a status line: {line!r}")
            headers = self.headers()
            if int(status) >= 200:
                break
        persistent = version == "HTTP/1.1"
        connection = headers.get("connection", "").lower()
        return int(status), headers, connection == "close" or (not persistent and connection != "keep-alive")

    def answer(self, bodiless: bool) -> Answer | None:
        try:
            if self.at_end():
                return None
            status, headers, closes = self.answer_head()
            body = b"" if bodiless else b"".join(self._body(status, headers))
        except ConnectionResetError:
            raise Malformed("reset in the middle of an answer") from None
        return Answer(status, headers, body, closes)

    def _body(self, status: int, headers: Mapping[str, str]) -> Iterator[bytes]:
        if status in (204, 304):
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            if "content-length" in headers:
                raise Malformed("both a length and a transfer coding")
            while chunk := self.chunk():
                yield chunk
        elif "content-length" in headers:
            yield self.exactly(int(headers["content-length"]))
        else:
            yield self.to_end()


class Connection:
    """A client's connection to a server on this host."""

    def __init__(self, port: int, *, timeout: float = PATIENCE) -> None:
        self.sock = socket.create_connection((HOST, port), timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = Reader(self.sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self) -> None:
        """Say that no more will be sent; answers may still come."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with a reset instead of a goodbye."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def head(self) -> tuple[int, CIMultiDict[str], bool]:
        """The status and headers of the next answer, and whether it ends with the connection."""
        return self._reader.answer_head()

    def answer(self, *, bodiless: bool = False) -> Answer | None:
        """The next answer; None when the server closes without one.

        Args:
            bodiless: it is to a HEAD, so it has no body whatever its headers say.

        Raises:
            Malformed: the answer is none, or breaks off.
        """
        return self._reader.answer(bodiless)

    def has_bytes(self, within: float) -> bool:
        """Whether there is something to read ``within`` seconds."""
        return self._reader.buffered or bool(select.select([self.sock], [], [], within)[0])

    def interim(self) -> int | None:
        """The status of the interim answer that has come; None when what has come is the answer itself."""
        return self._reader.interim()

    def chunk(self) -> bytes:
        """The next chunk of a chunked answer whose head was read; none after the last."""
        return self._reader.chunk()

    def some(self) -> bytes:
        """The next bytes, whatever they mean, as soon as there are any; none at the end."""
        return self._reader.some()

    def is_closed(self, within: float) -> bool:
        """Whether the server closes the connection, with nothing more to say, ``within`` seconds."""
        self.sock.settimeout(within)
        try:
            return self._reader.at_end()
        except TimeoutError:
            return False
        finally:
            self.sock.settimeout(PATIENCE)


class Request(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes


class Peer:
    """A server's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = Reader(sock)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_head(self) -> Request | None:
        """The next request without its body; None when the client has gone."""
        if self._reader.at_end():
            return None
        method, path, _version = self._reader.line().decode("latin-1").split(" ")
        return Request(method, path, self._reader.headers(), b"")

    def read_chunk(self) -> bytes:
        """The next chunk of a chunked request; none after the last."""
        return self._reader.chunk()

    def skip_body(self, request: Request) -> None:
        """Read the body of a request whose head was read, and throw it away."""
        if request.headers.get("transfer-encoding") == "chunked":
            while self.read_chunk():
                pass
            return
        left = int(request.headers.get("content-length", "0"))
        while left > 0:
            left -= len(self._reader.exactly(min(left, 65536)))

    def read(self) -> Request | None:
        """The next request with all of its body; None when the client has gone."""
        request = self.read_head()
        return None if request is None else request._replace(body=self.read_body(request))

    def read_body(self, request: Request) -> bytes:
        """The body of a request whose head was read."""
        if request.headers.get("transfer-encoding") == "chunked":
            return b"".join(iter(self.read_chunk, b""))
        return self._reader.exactly(int(request.headers.get("content-length", "0")))

    def wait_until_gone(self, seconds: float = PATIENCE) -> bool:
        """Whether the client closes its side ``within`` the time; whatever it sends until then is thrown away."""
        self.sock.settimeout(seconds)
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                if not self._reader.some():
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False


class RawServer:
    """A server in threads of this process that does with each connection what ``script`` says.

    A connection is closed when its script returns. What a script raises is kept and raised by ``close``, except for
    what comes of a client that went away.
    """

    def __init__(self, script: Callable[[Peer], object]) -> None:
        self._script = script
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        self.accepted = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._script(Peer(sock))
        except (OSError, Malformed):
            pass
        except BaseException as failure:
            self._failures.append(failure)
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            still_open = list(self._open)
        for sock in still_open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
        if self._failures:
            raise self._failures[0]


def response(
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    length: int | None = None,
) -> bytes:
    """A response with a length: that of its body unless another is told."""
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, last: bool = True) -> bytes:
    """A body in the chunked transfer coding."""
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join(parts) + (b"0\r\n\r\n" if last else b"")


def envelope(payload: bytes, flags: int = 0) -> bytes:
    """A message of a stream."""
    return struct.pack(">BI", flags, len(payload)) + payload


def end_of_stream(wire: Mapping[str, Any] | None = None) -> bytes:
    """The message that ends a stream."""
    return envelope(json.dumps(wire or {}).encode(), 2)


def envelopes(body: bytes) -> list[tuple[int, bytes]]:
    """Flags and payloads of a whole stream.

    Raises:
        Malformed: it breaks off.
    """
    found, position = [], 0
    while position < len(body):
        if position + 5 > len(body):
            raise Malformed("an envelope breaks off")
        flags, length = struct.unpack_from(">BI", body, position)
        position += 5 + length
        if position > len(body):
            raise Malformed("an envelope breaks off")
        found.append((flags, body[position - length : position]))
    return found
