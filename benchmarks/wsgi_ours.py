"""Our WSGI app, as the documentation tells users to build one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench_pb2_connect

from work import greet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import bench_pb2

    from connectrpc.server import ClientRequest, ClientStream

__all__ = ["app"]


class Bench:
    def greet(self, req: ClientRequest[bench_pb2.GreetRequest], /) -> bench_pb2.GreetResponse:
        return greet(req.msg)

    def download(self, req: ClientRequest[bench_pb2.DownloadRequest], /) -> Iterator[bench_pb2.Chunk]:
        raise NotImplementedError

    def upload(self, req: ClientStream[bench_pb2.Chunk], /) -> bench_pb2.UploadResponse:
        raise NotImplementedError

    def echo(self, req: ClientStream[bench_pb2.Chunk], /) -> Iterator[bench_pb2.Chunk]:
        raise NotImplementedError


app = bench_pb2_connect.wsgi_bench_service(Bench())
