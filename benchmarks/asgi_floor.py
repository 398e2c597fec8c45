"""The floors under our ASGI app: the same parsing, the same work, the same serialising, and nothing else."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import bench_pb2

import work
from wire import END

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

__all__ = ["app", "streams", "waiting"]


async def app(_scope: Scope, receive: Receive, send: Send) -> None:
    await answer(work.greet(bench_pb2.GreetRequest.FromString(await read_all(receive))), send)


async def waiting(_scope: Scope, receive: Receive, send: Send) -> None:
    """The same with a handler that waits once."""
    request = bench_pb2.GreetRequest.FromString(await read_all(receive))
    await asyncio.sleep(0)
    await answer(work.greet(request), send)


async def read_all(receive: Receive) -> bytes:
    event = await receive()
    body: bytes = event["body"]
    while event["more_body"]:
        event = await receive()
        body += event["body"]
    return body


async def answer(response: bench_pb2.GreetResponse, send: Send) -> None:
    body = response.SerializeToString()
    headers = [(b"content-type", b"application/proto"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    if path == work.DOWNLOAD_PATH:
        await download(receive, send)
    elif path == work.UPLOAD_PATH:
        await upload(receive, send)
    else:
        await echo(receive, send)


HEADERS = (b"content-type", b"application/connect+proto")


async def download(receive: Receive, send: Send) -> None:
    request = bench_pb2.DownloadRequest.FromString((await read_all(receive))[5:])
    await send({"type": "http.response.start", "status": 200, "headers": [HEADERS]})
    pack, chunk, data = struct.pack, bench_pb2.Chunk, b"x" * request.chunk_bytes
    for _ in range(request.chunks):
        payload = chunk(data=data).SerializeToString()
        part = pack(">BI", 0, len(payload)) + payload
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": END})


async def upload(receive: Receive, send: Send) -> None:
    chunks = size = 0
    async for chunk in messages(receive):
        chunks += 1
        size += len(chunk.data)
    payload = bench_pb2.UploadResponse(chunks=chunks, bytes=size).SerializeToString()
    body = struct.pack(">BI", 0, len(payload)) + payload + END
    headers = [HEADERS, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [HEADERS]})
    pack = struct.pack
    async for chunk in messages(receive):
        payload = chunk.SerializeToString()
        part = pack(">BI", 0, len(payload)) + payload
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": END})


async def messages(receive: Receive) -> AsyncIterator[bench_pb2.Chunk]:
    """Each message as soon as it is there."""
    unpack, parse = struct.unpack_from, bench_pb2.Chunk.FromString
    kept: list[bytes] = []
    length, wanted = 0, 5  # bytes that are kept, and how many there must be before the next look at them
    more = True
    while more:
        event = await receive()
        more = event["more_body"]
        kept.append(event["body"])
        length += len(event["body"])
        if length < wanted:
            continue
        data = b"".join(kept)
        position, wanted = 0, 5
        while length - position >= 5:
            _, size = unpack(">BI", data, position)
            if length - position < 5 + size:
                wanted = 5 + size
                break
            yield parse(data[position + 5 : position + 5 + size])
            position += 5 + size
        kept = [data[position:]]
        length -= position
