"""The server under the clients' streams: it gives ready-made answers when a request has come in whole.

One thread, raw sockets, one request at a time. A client's first upload is read with care and compared with what is
expected; of those after it, which are as long, the bytes are counted. Paths begin with the name of a shape: `/small`.
Run as `stream_responder.py PORT`.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import sys

import load_streams
import work
from shapes import SHAPES
from wire import chunked, head_of, unchunk

__all__ = ["answer_head"]

_BUFFER_BYTES = 1024 * 1024
_SILENCE_SECONDS = 20


def answer_head() -> bytes:
    """The head of an answer, with the headers that servers usually send."""
    return (
        b"HTTP/1.1 200 OK\r\n"
        b"server: benchmark\r\n"
        b"content-type: application/connect+proto\r\n"
        b"transfer-encoding: chunked\r\n"
        b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        b"\r\n"
    )


class Responder:
    """What is known of the requests that clients make."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], bytes] = {}
        self._known: dict[bytes, tuple[int, bytes]] = {}
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def serve_one(self, sock: socket.socket) -> bool:
        """Answer one request; False when the connection has ended instead."""
        data = sock.recv(65536)
        while data and (split := head_of(data)) is None:
            more = sock.recv(65536)
            if not more:
                return False
            data += more
        if not data:
            return False
        assert split is not None
        head, rest = split
        known = self._known.get(head)
        if known is None:
            known = self._known[head] = self._read_closely(sock, head, rest)
        else:
            missing = known[0] - len(rest)
            while missing > 0:
                size = sock.recv_into(self._buffer, min(missing, _BUFFER_BYTES), socket.MSG_WAITALL)
                if not size:
                    return False
                missing -= size
            if missing < 0:
                raise SystemExit(f"a request is longer than those before it: {head!r}")
        sock.sendall(known[1])
        return True

    def _read_closely(self, sock: socket.socket, head: bytes, body: bytes) -> tuple[int, bytes]:
        """How long the body of such a request is, and the answer to it."""
        target = head.split(b" ", 2)[1].decode()
        _, name, path = re.split("/(small|large)", target, maxsplit=1)
        kind = {work.DOWNLOAD_PATH: "download", work.UPLOAD_PATH: "upload", work.ECHO_PATH: "echo"}[path]
        shape = SHAPES[name]
        wanted = load_streams.request(kind, shape).partition(b"\r\n\r\n")[2]
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        while len(body) < int(length[1]) if length else not body.endswith(b"0\r\n\r\n"):
            data = sock.recv(_BUFFER_BYTES)
            if not data:
                raise SystemExit(f"a request broke off: {head!r}")
            body += data
        found, right = (body, wanted) if length else (unchunk(body), unchunk(wanted))
        if length is None and isinstance(found, tuple) and isinstance(right, tuple):
            found, right = found[0], right[0]
        if found != right:
            raise SystemExit(f"a request is not the expected one: {head!r}")
        if (kind, name) not in self._answers:
            # Each message is a chunk, as all servers make it.
            self._answers[kind, name] = answer_head() + chunked(load_streams.expected(kind, shape))
        return len(body), self._answers[kind, name]


def serve(port: int) -> None:
    """Answer for ever."""
    responder = Responder()
    listener = socket.create_server(("127.0.0.1", port))
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    sockets: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _SILENCE_SECONDS, 0))
                sockets[sock.fileno()] = sock
                poll.register(sock, select.POLLIN)
                continue
            sock = sockets[number]
            try:
                goes_on = responder.serve_one(sock)
            except OSError:
                goes_on = False
            if not goes_on:
                poll.unregister(number)
                del sockets[number]
                sock.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
