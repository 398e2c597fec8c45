"""The floors under our ASGI app where it speaks gRPC: the same work, with framing and trailers by hand."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import bench_pb2

import work
from asgi_floor import messages, read_all

if TYPE_CHECKING:
    from asgi_floor import Receive, Scope, Send

__all__ = ["app"]

HEADERS = [(b"content-type", b"application/grpc+proto")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS, "trailers": True}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}
TRAILERS = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    if path == work.GREET_PATH:
        request = bench_pb2.GreetRequest.FromString((await read_all(receive))[5:])
        await answer(work.greet(request).SerializeToString(), send)
    elif path == work.DOWNLOAD_PATH:
        await download(receive, send)
    elif path == work.UPLOAD_PATH:
        await upload(receive, send)
    else:
        await echo(receive, send)


async def answer(payload: bytes, send: Send) -> None:
    part = struct.pack(">BI", 0, len(payload)) + payload
    await send(START)
    await send({"type": "http.response.body", "body": part, "more_body": False})
    await send(TRAILERS)


async def download(receive: Receive, send: Send) -> None:
    request = bench_pb2.DownloadRequest.FromString((await read_all(receive))[5:])
    await send(START)
    pack, chunk, data = struct.pack, bench_pb2.Chunk, b"x" * request.chunk_bytes
    for _ in range(request.chunks):
        payload = chunk(data=data).SerializeToString()
        part = pack(">BI", 0, len(payload)) + payload
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send(LAST)
    await send(TRAILERS)


async def upload(receive: Receive, send: Send) -> None:
    chunks = size = 0
    async for chunk in messages(receive):
        chunks += 1
        size += len(chunk.data)
    await answer(bench_pb2.UploadResponse(chunks=chunks, bytes=size).SerializeToString(), send)


async def echo(receive: Receive, send: Send) -> None:
    await send(START)
    pack = struct.pack
    async for chunk in messages(receive):
        payload = chunk.SerializeToString()
        part = pack(">BI", 0, len(payload)) + payload
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send(LAST)
    await send(TRAILERS)
