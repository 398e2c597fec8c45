"""Shows that a closed body is not our doing: what `run.py` lets pass, with a bare socket in place of our client.

    PYTHONPATH=tests/conformance/gen python tests/conformance/closed_body.py

The runner's gRPC server is called over gRPC-Web and HTTP/1.1: calls of two messages, sent one after the other. About
one call in a hundred is lost, and very few lose their second message.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from connectrpc.conformance.v1.config_pb2 import HTTP_VERSION_1, PROTOCOL_GRPC_WEB
from connectrpc.conformance.v1.server_compat_pb2 import ServerCompatRequest, ServerCompatResponse
from connectrpc.conformance.v1.service_pb2 import BidiStreamRequest, StreamResponseDefinition

import messages
import prepare

SECONDS = 60
THREADS = 4
PAUSES = (0, 0.00005, 0.0001, 0.0003, 0.0005)
"""Between the parts of a request, in seconds."""

SERVER = f"{prepare.MODULE}/cmd/grpcserver@{prepare.VERSION}"
HEAD = (
    b"POST /connectrpc.conformance.v1.ConformanceService/BidiStream HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    b"content-type: application/grpc-web+proto\r\ntransfer-encoding: chunked\r\n\r\n"
)
FIRST = BidiStreamRequest(response_definition=StreamResponseDefinition(response_data=[b"response"]))
SECOND = BidiStreamRequest(request_data=b"request")


def chunk(request: BidiStreamRequest) -> bytes:
    payload = request.SerializeToString()
    return b"%x\r\n\0%b%b\r\n" % (len(payload) + 5, len(payload).to_bytes(4, "big"), payload)


def call(port: int) -> str:
    """What became of one call."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (HEAD + chunk(FIRST), chunk(SECOND), b"0\r\n\r\n"):
            connection.sendall(part)
            until = time.perf_counter() + random.choice(PAUSES)
            while time.perf_counter() < until:  # sleeping takes longer than it should
                pass
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += connection.recv(65536)
    if b"invalid Read on closed Body" in answer:
        return "lost"
    # It tells which messages the service was given.
    return "whole" if answer.count(b"v1.BidiStreamRequest") == 2 else "without the second message"


def calls(port: int) -> Counter[str]:
    until = time.monotonic() + SECONDS
    return Counter(call(port) for _ in iter(lambda: time.monotonic() < until, False))


def main() -> None:
    prepare.prepare()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["go", "install", SERVER], env={**os.environ, "GOBIN": folder}, check=True)
        process = subprocess.Popen([f"{folder}/grpcserver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            limit = 200 * 1024
            request = ServerCompatRequest(
                protocol=PROTOCOL_GRPC_WEB, http_version=HTTP_VERSION_1, message_receive_limit=limit
            )
            messages.write(process.stdin, request)
            server = messages.read(process.stdout, ServerCompatResponse)
            assert server is not None
            with ThreadPoolExecutor(THREADS) as pool:
                found = sum(pool.map(calls, [server.port] * THREADS), Counter())
            print(*(f"{number} calls {what}" for what, number in found.items()), sep=", ")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
