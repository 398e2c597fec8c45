"""Our ASGI app, as the documentation tells users to build one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import bench_pb2
import bench_pb2_connect

import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from connectrpc.server import AsyncClientStream, ClientRequest

__all__ = ["app", "empty_list", "grpc", "slow", "streams", "waiting"]


class Bench:
    async def greet(self, req: ClientRequest[bench_pb2.GreetRequest], /) -> bench_pb2.GreetResponse:
        return work.greet(req.msg)

    async def download(self, req: ClientRequest[bench_pb2.DownloadRequest], /) -> AsyncIterator[bench_pb2.Chunk]:
        chunk, data = bench_pb2.Chunk, b"x" * req.msg.chunk_bytes
        for _ in range(req.msg.chunks):
            yield chunk(data=data)

    async def upload(self, req: AsyncClientStream[bench_pb2.Chunk], /) -> bench_pb2.UploadResponse:
        chunks = size = 0
        async for chunk in req:
            chunks += 1
            size += len(chunk.data)
        return bench_pb2.UploadResponse(chunks=chunks, bytes=size)

    async def echo(self, req: AsyncClientStream[bench_pb2.Chunk], /) -> AsyncIterator[bench_pb2.Chunk]:
        async for chunk in req:
            yield chunk


class Waiting(Bench):
    async def greet(self, req: ClientRequest[bench_pb2.GreetRequest], /) -> bench_pb2.GreetResponse:
        await asyncio.sleep(0)
        return work.greet(req.msg)


class Slow(Bench):
    async def upload(self, req: AsyncClientStream[bench_pb2.Chunk], /) -> bench_pb2.UploadResponse:
        async for _ in req:
            await asyncio.sleep(0.05)
        return bench_pb2.UploadResponse()


app = streams = bench_pb2_connect.asgi_bench_service(Bench())
waiting = bench_pb2_connect.asgi_bench_service(Waiting())
empty_list = bench_pb2_connect.asgi_bench_service(Bench(), interceptors=[])
# grpcio's servers compress nothing unless they are told to.
grpc = bench_pb2_connect.asgi_bench_service(Bench(), compressions=[])
slow = bench_pb2_connect.asgi_bench_service(Slow())
