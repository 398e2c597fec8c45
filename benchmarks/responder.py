"""A server as fast as Python allows, for measuring clients: it reads no message and always gives the same answer.

One thread, raw sockets. A request is complete when its Content-Length says so; that number is looked up by the bytes of
the head, which are the same for each call. Run as `responder.py PORT`.
"""

from __future__ import annotations

import re
import select
import socket
import sys

import work

__all__ = ["serve"]


def _answer(body: bytes) -> bytes:
    """An answer with the headers that servers usually send."""
    head = (
        "HTTP/1.1 200 OK\r\n"
        "server: benchmark\r\n"
        "content-type: application/proto\r\n"
        f"content-length: {len(body)}\r\n"
        "date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        "\r\n"
    )
    return head.encode("ascii") + body


def _request_bytes(head: bytes) -> int:
    """How long the request with this head (and the empty line behind it) is."""
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if length is None:
        raise SystemExit(f"a request without a length: {head!r}")
    return len(head) + 4 + int(length[1])


def serve(port: int, answer: bytes) -> None:
    """Answer for ever."""
    listener = socket.create_server(("127.0.0.1", port))
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    sockets: dict[int, socket.socket] = {}
    begun: dict[int, bytes] = {}
    lengths: dict[bytes, int] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[sock.fileno()] = sock
                begun[sock.fileno()] = b""
                poll.register(sock, select.POLLIN)
                continue
            sock = sockets[number]
            data = sock.recv(65536)
            if not data:
                poll.unregister(number)
                del sockets[number], begun[number]
                sock.close()
                continue
            data = begun[number] + data
            head, blank, _ = data.partition(b"\r\n\r\n")
            if blank:
                length = lengths.get(head)
                if length is None:
                    length = lengths[head] = _request_bytes(head)
                if len(data) == length:
                    begun[number] = b""
                    sock.send(answer)
                    continue
                if len(data) > length:
                    raise SystemExit(f"a request is longer than it says: {data!r}")
            begun[number] = data


if __name__ == "__main__":
    serve(int(sys.argv[1]), _answer(work.RESPONSE.SerializeToString()))
