"""A load generator for streams: one connection, raw sockets, the request's bytes made once.

It writes and reads at the same time, lets the kernel collect an answer instead of waking up for each of its chunks, and
only counts its bytes. The first answer of each kind is read with care and compared with what is expected; after that an
answer is good when it starts with a 200 and is exactly as long.

Run as a worker (see `workers`): `load_streams.py PORT`. Its tasks are named `download-small` and so on.
"""

from __future__ import annotations

import functools
import select
import socket
import struct
import sys
import time

import work
import workers
from shapes import KINDS, SHAPES, Shape
from wire import END, LAST_CHUNK, chunked, dechunked, envelope, head_of

__all__ = ["StreamLoad", "expected", "request"]

_BUFFER_BYTES = 1024 * 1024
_SILENCE_SECONDS = 20


def request(kind: str, shape: Shape) -> bytes:
    """The bytes of a whole request, with the headers that Connect clients send."""
    path = {"download": work.DOWNLOAD_PATH, "upload": work.UPLOAD_PATH, "echo": work.ECHO_PATH}[kind]
    if kind == "download":
        body = envelope(work.download(shape).SerializeToString())
        framing = f"Content-Length: {len(body)}"
    else:
        body = chunked([envelope(_chunk(shape))] * shape.messages)
        framing = "Transfer-Encoding: chunked"
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "User-Agent: benchmark\r\n"
        "Accept-Encoding: identity\r\n"
        "Connect-Protocol-Version: 1\r\n"
        "Content-Type: application/connect+proto\r\n"
        f"{framing}\r\n"
        "\r\n"
    )
    return head.encode("ascii") + body


def expected(kind: str, shape: Shape) -> list[bytes]:
    """The parts of a right answer's body."""
    if kind == "upload":
        return [envelope(work.uploaded(shape).SerializeToString()), END]
    return [envelope(_chunk(shape))] * shape.messages + [END]


def _chunk(shape: Shape) -> bytes:
    import bench_pb2

    return bench_pb2.Chunk(data=shape.data).SerializeToString()


class StreamLoad:
    """Calls of one kind, one after the other, on one connection.

    Args:
        port: of the server, on the loopback interface.
        kind: of the stream, one of `KINDS`.
        shape: what is in it.
    """

    def __init__(self, port: int, kind: str, shape: Shape) -> None:
        self._port = port
        self._kind = kind
        self._shape = shape
        self._request = memoryview(request(kind, shape))
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._sock: socket.socket | None = None
        self._answer_bytes = 0

    def _open(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=_SILENCE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
        # Blocking, with a limit that the kernel keeps: Python's own timeouts would wake up for every chunk.
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _SILENCE_SECONDS, 0))
        self._answer_bytes = self._try(sock)
        return sock

    def _try(self, sock: socket.socket) -> int:
        """Make one call and look at it closely; returns the length of its answer."""
        answer = bytearray()
        unsent = self._request
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        wanted = b"".join(expected(self._kind, self._shape))
        while True:
            ready = poll.poll(_SILENCE_SECONDS * 1000)
            if not ready:
                raise SystemExit(f"the server is silent in {self._kind}")
            if ready[0][1] & select.POLLOUT:
                unsent = unsent[sock.send(unsent, socket.MSG_DONTWAIT) :]
                if not unsent:
                    poll.modify(sock, select.POLLIN)
            if ready[0][1] & ~select.POLLOUT:
                data = sock.recv(_BUFFER_BYTES)
                answer += data
                if self._complete(bytes(answer), wanted):
                    return len(answer)
                if not data:
                    raise SystemExit(f"the server's answer is not the expected one: {bytes(answer[:2000])!r}")

    def _complete(self, answer: bytes, wanted: bytes) -> bool:
        split = head_of(answer)
        if split is None:
            return False
        head, rest = split
        if b"\r\ntransfer-encoding: chunked\r\n" in head.lower():
            if not answer.endswith(LAST_CHUNK):
                return False
            body = dechunked(rest)
        else:
            body = rest if len(rest) >= len(wanted) else None
        if body is None:
            return False
        if not head.startswith(b"HTTP/1.1 200 ") or body != wanted:
            raise SystemExit(f"the server's answer is not the expected one: {answer[:2000]!r}")
        return True

    def _call(self, sock: socket.socket) -> None:
        unsent, missing, buffer = self._request, self._answer_bytes, self._buffer
        unsent = unsent[sock.send(unsent, socket.MSG_DONTWAIT) :]
        first = True
        while unsent:
            ready = self._poll(sock)
            if ready & select.POLLOUT:
                unsent = unsent[sock.send(unsent, socket.MSG_DONTWAIT) :]
            if ready & ~select.POLLOUT:
                missing -= self._take(sock.recv_into(buffer, min(missing, _BUFFER_BYTES)), first=first)
                first = False
        while missing:
            size = sock.recv_into(buffer, min(missing, _BUFFER_BYTES), socket.MSG_WAITALL)
            missing -= self._take(size, first=first)
            first = False

    def _poll(self, sock: socket.socket) -> int:
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        ready = poll.poll(_SILENCE_SECONDS * 1000)
        if not ready:
            raise SystemExit(f"the server is silent in {self._kind}")
        return ready[0][1]

    def _take(self, size: int, *, first: bool) -> int:
        if not size or (first and bytes(self._buffer[:13]) != b"HTTP/1.1 200 "):
            raise SystemExit(f"the server's answer changed: {bytes(self._buffer[:size])!r}")
        return size

    def run(self, seconds: float) -> workers.Sample:
        """Counts messages, of the longer side."""
        if self._sock is None:
            self._sock = self._open()
        sock, clock = self._sock, time.perf_counter
        calls = 0
        cpu = time.process_time()
        start = now = clock()
        end = start + seconds
        while now < end:
            self._call(sock)
            calls += 1
            now = clock()
        return workers.Sample(calls * self._shape.messages, now - start, time.process_time() - cpu)


def main() -> None:
    port = int(sys.argv[1])

    @functools.cache
    def load(kind: str, name: str) -> StreamLoad:
        return StreamLoad(port, kind, SHAPES[name])

    workers.serve(
        {
            f"{kind}-{name}": lambda seconds, kind=kind, name=name: load(kind, name).run(seconds)  # type: ignore[misc]
            for kind in KINDS
            for name in SHAPES
        }
    )


if __name__ == "__main__":
    main()
