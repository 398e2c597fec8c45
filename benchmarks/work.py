"""The work that both sides of a row do: the messages, and what a handler makes of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench_pb2

if TYPE_CHECKING:
    from shapes import Shape

__all__ = [
    "DOWNLOAD_PATH",
    "ECHO_PATH",
    "GREETINGS",
    "GREET_PATH",
    "REQUEST",
    "RESPONSE",
    "UPLOAD_PATH",
    "download",
    "greet",
    "uploaded",
]

GREET_PATH = "/connectrpc.bench.v1.BenchService/Greet"
DOWNLOAD_PATH = "/connectrpc.bench.v1.BenchService/Download"
UPLOAD_PATH = "/connectrpc.bench.v1.BenchService/Upload"
ECHO_PATH = "/connectrpc.bench.v1.BenchService/Echo"

REQUEST = bench_pb2.GreetRequest(name="Ada Lovelace", visits=1843, score=0.75, loud=True, tags=["poet", "analyst"])


def greet(request: bench_pb2.GreetRequest) -> bench_pb2.GreetResponse:
    """Answer one message with another."""
    return bench_pb2.GreetResponse(
        greeting=f"Hello, {request.name}!",
        visits=request.visits + 1,
        score=request.score,
        loud=request.loud,
        tags=request.tags,
    )


RESPONSE = greet(REQUEST)

GREETINGS = {"small": REQUEST, "medium": bench_pb2.GreetRequest(name="x" * 65536)}
"""The requests of unary gRPC calls, by their size."""


def download(shape: Shape) -> bench_pb2.DownloadRequest:
    """The request for a stream of this shape."""
    return bench_pb2.DownloadRequest(chunks=shape.messages, chunk_bytes=shape.size)


def uploaded(shape: Shape) -> bench_pb2.UploadResponse:
    """The answer to a stream of this shape."""
    return bench_pb2.UploadResponse(chunks=shape.messages, bytes=shape.messages * shape.size)
