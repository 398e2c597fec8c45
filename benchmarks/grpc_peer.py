"""The service as grpcio serves it, for comparison: a server of grpcio's own.

Run as `grpc_peer.py aio|threads PORT`. Deserialisers and serialisers are those that grpcio's generated code gives it.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent import futures
from typing import TYPE_CHECKING, Any

import bench_pb2
import grpc  # type: ignore[import-untyped]

import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__: list[str] = []


class Bench:
    def greet(self, request: bench_pb2.GreetRequest, _context: Any) -> bench_pb2.GreetResponse:
        return work.greet(request)

    def download(self, request: bench_pb2.DownloadRequest, _context: Any) -> Iterator[bench_pb2.Chunk]:
        chunk, data = bench_pb2.Chunk, b"x" * request.chunk_bytes
        for _ in range(request.chunks):
            yield chunk(data=data)

    def upload(self, requests: Iterator[bench_pb2.Chunk], _context: Any) -> bench_pb2.UploadResponse:
        chunks = size = 0
        for chunk in requests:
            chunks += 1
            size += len(chunk.data)
        return bench_pb2.UploadResponse(chunks=chunks, bytes=size)

    def echo(self, requests: Iterator[bench_pb2.Chunk], _context: Any) -> Iterator[bench_pb2.Chunk]:
        yield from requests


class AsyncBench:
    async def greet(self, request: bench_pb2.GreetRequest, _context: Any) -> bench_pb2.GreetResponse:
        return work.greet(request)

    async def download(self, request: bench_pb2.DownloadRequest, _context: Any) -> AsyncIterator[bench_pb2.Chunk]:
        chunk, data = bench_pb2.Chunk, b"x" * request.chunk_bytes
        for _ in range(request.chunks):
            yield chunk(data=data)

    async def upload(self, requests: AsyncIterator[bench_pb2.Chunk], _context: Any) -> bench_pb2.UploadResponse:
        chunks = size = 0
        async for chunk in requests:
            chunks += 1
            size += len(chunk.data)
        return bench_pb2.UploadResponse(chunks=chunks, bytes=size)

    async def echo(self, requests: AsyncIterator[bench_pb2.Chunk], _context: Any) -> AsyncIterator[bench_pb2.Chunk]:
        async for chunk in requests:
            yield chunk


def handlers(service: Bench | AsyncBench) -> Any:
    """What grpcio's generated code would register."""
    methods = {
        "Greet": grpc.unary_unary_rpc_method_handler(
            service.greet, bench_pb2.GreetRequest.FromString, bench_pb2.GreetResponse.SerializeToString
        ),
        "Download": grpc.unary_stream_rpc_method_handler(
            service.download, bench_pb2.DownloadRequest.FromString, bench_pb2.Chunk.SerializeToString
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            service.upload, bench_pb2.Chunk.FromString, bench_pb2.UploadResponse.SerializeToString
        ),
        "Echo": grpc.stream_stream_rpc_method_handler(
            service.echo, bench_pb2.Chunk.FromString, bench_pb2.Chunk.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler("connectrpc.bench.v1.BenchService", methods)


async def serve_async(address: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(AsyncBench()),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def serve_in_threads(address: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=(handlers(Bench()),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def main() -> None:
    colour, address = sys.argv[1], f"127.0.0.1:{sys.argv[2]}"
    if colour == "threads":
        serve_in_threads(address)
        return
    try:
        import uvloop  # as uvicorn does, where it is installed
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    run(serve_async(address))


if __name__ == "__main__":
    main()
