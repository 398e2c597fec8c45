"""The gRPC server under the clients: one of grpcio's, which neither parses nor serialises.

Run as `grpc_responder.py PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import bench_pb2
import grpc  # type: ignore[import-untyped]

import work
from shapes import GRPC_SHAPES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__: list[str] = []

_GREETINGS = {
    request.SerializeToString(): work.greet(request).SerializeToString() for request in work.GREETINGS.values()
}
_DOWNLOADS = {
    work.download(shape).SerializeToString(): [bench_pb2.Chunk(data=shape.data).SerializeToString()] * shape.messages
    for shape in GRPC_SHAPES.values()
}
_OVERHEADS = {
    len(messages[0]): shape.size for messages, shape in zip(_DOWNLOADS.values(), GRPC_SHAPES.values(), strict=True)
}


async def greet(request: bytes, _context: Any) -> bytes:
    return _GREETINGS[request]


async def download(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for message in _DOWNLOADS[request]:
        yield message


async def upload(requests: AsyncIterator[bytes], _context: Any) -> bytes:
    chunks = size = 0
    async for chunk in requests:
        chunks += 1
        size += _OVERHEADS[len(chunk)]
    return bench_pb2.UploadResponse(chunks=chunks, bytes=size).SerializeToString()


async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for chunk in requests:
        yield chunk


async def serve(port: str) -> None:
    methods = {
        "Greet": grpc.unary_unary_rpc_method_handler(greet),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("connectrpc.bench.v1.BenchService", methods),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
