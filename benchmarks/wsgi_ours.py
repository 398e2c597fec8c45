"""Our WSGI app, as the documentation tells users to build one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench_pb2
import bench_pb2_connect

import work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc.server import ClientRequest, ClientStream

__all__ = ["app", "streams"]


class Bench:
    def greet(self, req: ClientRequest[bench_pb2.GreetRequest], /) -> bench_pb2.GreetResponse:
        return work.greet(req.msg)

    def download(self, req: ClientRequest[bench_pb2.DownloadRequest], /) -> Iterator[bench_pb2.Chunk]:
        chunk, data = bench_pb2.Chunk, b"x" * req.msg.chunk_bytes
        for _ in range(req.msg.chunks):
            yield chunk(data=data)

    def upload(self, req: ClientStream[bench_pb2.Chunk], /) -> bench_pb2.UploadResponse:
        chunks = size = 0
        for chunk in req:
            chunks += 1
            size += len(chunk.data)
        return bench_pb2.UploadResponse(chunks=chunks, bytes=size)

    def echo(self, req: ClientStream[bench_pb2.Chunk], /) -> Iterator[bench_pb2.Chunk]:
        yield from req


app = streams = bench_pb2_connect.wsgi_bench_service(Bench())
