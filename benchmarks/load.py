"""A load generator for HTTP/1.1 servers: one thread, raw sockets, the request's bytes made once.

It keeps one request in flight on each of a few connections and only counts the bytes of the answers, which makes it
several times as fast as the servers it drives. The first answer is read in full and compared with what is expected;
after that an answer is good when it starts with a 200 and is exactly as long.

Run as a worker (see `workers`): `load.py PORT CONNECTIONS`.
"""

from __future__ import annotations

import select
import socket
import sys
import time

import work
import workers

__all__ = ["Load", "post"]


def post(path: str, body: bytes) -> bytes:
    """The bytes of a request, with the headers that Connect clients send."""
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "User-Agent: benchmark\r\n"
        "Accept-Encoding: gzip\r\n"
        "Connect-Protocol-Version: 1\r\n"
        "Content-Type: application/proto\r\n"
        f"Content-Length: {len(body)}\r\n"
        "\r\n"
    )
    return head.encode("ascii") + body


class Load:
    """A load on one server.

    Args:
        port: of the server, on the loopback interface.
        connections: how many requests are in flight.
        request: the bytes of one request.
        expected: the body of its answer.
    """

    def __init__(self, port: int, connections: int, request: bytes, expected: bytes) -> None:
        self._request = request
        self._sockets = {}
        self._poll = select.poll()
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._answer_bytes = self._try(sock, expected)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)

    def _try(self, sock: socket.socket, expected: bytes) -> int:
        """Make one call and look at it closely; returns the length of its answer."""
        sock.sendall(self._request)
        answer = b""
        while not (b"\r\n\r\n" in answer and len(answer) >= answer.index(b"\r\n\r\n") + 4 + len(expected)):
            data = sock.recv(65536)
            if not data:
                break
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or body != expected:
            raise SystemExit(f"the server's answer is not the expected one: {answer!r}")
        if f"content-length: {len(expected)}".encode() not in head.lower().split(b"\r\n"):
            raise SystemExit(f"the server's answer has no length: {answer!r}")
        return len(answer)

    def run(self, seconds: float) -> workers.Sample:
        request, answer_bytes, sockets, poll = self._request, self._answer_bytes, self._sockets, self._poll.poll
        clock = time.perf_counter
        missing = dict.fromkeys(sockets, answer_bytes)
        calls = 0
        cpu = time.process_time()
        start = clock()
        end = start + seconds
        for sock in sockets.values():
            sock.send(request)
        while missing:
            events = poll(10_000)
            if not events:
                raise SystemExit("the server has not answered for ten seconds")
            sending = clock() < end
            for number, _ in events:
                sock = sockets[number]
                data = sock.recv(65536)
                left = missing[number]
                if left == answer_bytes and not data.startswith(b"HTTP/1.1 200 "):
                    raise SystemExit(f"the server's answer changed: {data!r}")
                left -= len(data)
                if left == 0:
                    calls += 1
                    if sending:
                        missing[number] = answer_bytes
                        sock.send(request)
                    else:
                        del missing[number]
                elif left < 0 or not data:
                    raise SystemExit(f"the server's answer changed: {data!r}")
                else:
                    missing[number] = left
        return workers.Sample(calls, clock() - start, time.process_time() - cpu)


if __name__ == "__main__":
    load = Load(
        port=int(sys.argv[1]),
        connections=int(sys.argv[2]),
        request=post(work.GREET_PATH, work.REQUEST.SerializeToString()),
        expected=work.RESPONSE.SerializeToString(),
    )
    workers.serve({"load": load.run})
