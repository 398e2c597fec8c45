"""Streams through the clients, ours and the bare ones, in one process.

Both sides serialise the same messages, speak to the same server and parse the same answers. The floors use their
library in its plainest form and frame messages by hand.

Run as a worker (see `workers`): `stream_clients.py COLOUR PORT SIDE...`. Its tasks are named `download-small-0` and so
on, with the place of the side in that list.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from typing import TYPE_CHECKING

import bench_pb2

import work
import workers
from shapes import KINDS, SHAPES, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import urllib3

    Task = Callable[[float], workers.Sample]
    SyncCall = Callable[[], tuple[int, int]]
    AsyncCall = Callable[[], Awaitable[tuple[int, int]]]

__all__: list[str] = []

HEADERS = {
    "Content-Type": "application/connect+proto",
    "Connect-Protocol-Version": "1",
    "Accept-Encoding": "identity",
}
PATHS = {"download": work.DOWNLOAD_PATH, "upload": work.UPLOAD_PATH, "echo": work.ECHO_PATH}


# A call gives how many messages it has sent or got, and how many bytes were in them.


def sync_ours(port: int, kind: str, name: str) -> SyncCall:
    import bench_pb2_connect

    client = bench_pb2_connect.BenchServiceClient(f"http://127.0.0.1:{port}/{name}")
    shape = SHAPES[name]

    def count(messages: Iterator[bench_pb2.Chunk]) -> tuple[int, int]:
        chunks = size = 0
        for message in messages:
            chunks += 1
            size += len(message.data)
        return chunks, size

    def download() -> tuple[int, int]:
        return count(client.download(work.download(shape)))

    def upload() -> tuple[int, int]:
        response = client.upload(requests(shape))
        return response.chunks, response.bytes

    def echo() -> tuple[int, int]:
        return count(client.echo(requests(shape)))

    return {"download": download, "upload": upload, "echo": echo}[kind]


def sync_floor(port: int, kind: str, name: str) -> SyncCall:
    import urllib3

    urlopen = urllib3.HTTPConnectionPool("127.0.0.1", port).urlopen
    shape, path = SHAPES[name], f"/{name}{PATHS[kind]}"

    def begin(body: bytes | Iterator[bytes]) -> urllib3.BaseHTTPResponse:
        response = urlopen("POST", path, body=body, headers=HEADERS, preload_content=False)
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}")
        return response

    def upload() -> tuple[int, int]:
        response = begin(map(enveloped, requests(shape)))
        found = answered(response.data)
        response.release_conn()
        return found

    def receive() -> tuple[int, int]:
        response = begin(one(shape) if kind == "download" else map(enveloped, requests(shape)))
        cut, parse = Cutter().cut, bench_pb2.Chunk.FromString
        chunks = size = 0
        for data in response.stream(65536):
            for flags, payload in cut(data):
                if flags:
                    check_end(flags, payload)
                    continue
                chunks += 1
                size += len(parse(payload).data)
        response.release_conn()
        return chunks, size

    return upload if kind == "upload" else receive


def async_ours(port: int, kind: str, name: str) -> AsyncCall:
    import bench_pb2_connect

    client = bench_pb2_connect.AsyncBenchServiceClient(f"http://127.0.0.1:{port}/{name}")
    shape = SHAPES[name]

    async def count(messages: AsyncIterator[bench_pb2.Chunk]) -> tuple[int, int]:
        chunks = size = 0
        async for message in messages:
            chunks += 1
            size += len(message.data)
        return chunks, size

    async def download() -> tuple[int, int]:
        return await count(client.download(work.download(shape)))

    async def upload() -> tuple[int, int]:
        response = await client.upload(requests(shape))
        return response.chunks, response.bytes

    async def echo() -> tuple[int, int]:
        return await count(client.echo(requests(shape)))

    return {"download": download, "upload": upload, "echo": echo}[kind]


async def async_floor(port: int, kind: str, name: str) -> AsyncCall:
    import aiohttp

    post = aiohttp.ClientSession().post
    shape, url = SHAPES[name], f"http://127.0.0.1:{port}/{name}{PATHS[kind]}"

    async def parts() -> AsyncIterator[bytes]:
        for message in requests(shape):
            yield enveloped(message)

    async def upload() -> tuple[int, int]:
        async with post(url, data=parts(), headers=HEADERS) as response:
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}")
            return answered(await response.read())

    async def receive() -> tuple[int, int]:
        async with post(url, data=one(shape) if kind == "download" else parts(), headers=HEADERS) as response:
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}")
            cut, parse = Cutter().cut, bench_pb2.Chunk.FromString
            chunks = size = 0
            async for data in response.content.iter_any():
                for flags, payload in cut(data):
                    if flags:
                        check_end(flags, payload)
                        continue
                    chunks += 1
                    size += len(parse(payload).data)
            return chunks, size

    return upload if kind == "upload" else receive


def answered(body: bytes) -> tuple[int, int]:
    """What the one message in an answer says."""
    (_, payload), (flags, end) = Cutter().cut(body)
    check_end(flags, end)
    response = bench_pb2.UploadResponse.FromString(payload)
    return response.chunks, response.bytes


def requests(shape: Shape) -> Iterator[bench_pb2.Chunk]:
    chunk, data = bench_pb2.Chunk, shape.data
    for _ in range(shape.messages):
        yield chunk(data=data)


def enveloped(message: bench_pb2.Chunk) -> bytes:
    payload = message.SerializeToString()
    return struct.pack(">BI", 0, len(payload)) + payload


def one(shape: Shape) -> bytes:
    payload = work.download(shape).SerializeToString()
    return struct.pack(">BI", 0, len(payload)) + payload


class Cutter:
    """Cuts a stream into the envelopes that each chunk completes, in the plainest way that copies nothing twice."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._length = 0
        self._wanted = 5  # how many bytes there must be before the next look at them

    def cut(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if self._kept or len(data) < self._wanted:
            self._kept.append(data)
            self._length += len(data)
            if self._length < self._wanted:
                return
            data = b"".join(self._kept)
        unpack, position, length, wanted = struct.unpack_from, 0, len(data), 5
        while length - position >= 5:
            flags, size = unpack(">BI", data, position)
            if length - position < 5 + size:
                wanted = 5 + size
                break
            yield flags, data[position + 5 : position + 5 + size]
            position += 5 + size
        self._kept = [data[position:]] if position < length else []
        self._length = length - position
        self._wanted = wanted


def check_end(flags: int, payload: bytes) -> None:
    if flags != 2 or payload != b"{}":
        raise RuntimeError("the stream ended badly")


def right(found: tuple[int, int], name: str) -> None:
    shape = SHAPES[name]
    if found != (shape.messages, shape.messages * shape.size):
        raise SystemExit(f"the stream is not the expected one: {found}")


def sync_task(call: SyncCall, name: str) -> Task:
    def run(seconds: float) -> workers.Sample:
        clock = time.perf_counter
        calls = 0
        cpu = time.process_time()
        start = now = clock()
        end = start + seconds
        while now < end:
            right(call(), name)
            calls += 1
            now = clock()
        return workers.Sample(calls * SHAPES[name].messages, now - start, time.process_time() - cpu)

    return run


def async_task(loop: asyncio.AbstractEventLoop, call: AsyncCall, name: str) -> Task:
    async def calls(seconds: float) -> workers.Sample:
        clock = time.perf_counter
        made = 0
        cpu = time.process_time()
        start = now = clock()
        end = start + seconds
        while now < end:
            right(await call(), name)
            made += 1
            now = clock()
        return workers.Sample(made * SHAPES[name].messages, now - start, time.process_time() - cpu)

    return lambda seconds: loop.run_until_complete(calls(seconds))


def main() -> None:
    colour, port, sides = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    loop = asyncio.new_event_loop()

    async def opened(side: str, kind: str, name: str) -> AsyncCall:
        return async_ours(port, kind, name) if side == "ours" else await async_floor(port, kind, name)

    tasks: dict[str, Task] = {}
    for index, side in enumerate(sides):
        for kind in KINDS:
            for name in SHAPES:
                if colour == "sync":
                    call = sync_ours(port, kind, name) if side == "ours" else sync_floor(port, kind, name)
                    tasks[f"{kind}-{name}-{index}"] = sync_task(call, name)
                else:
                    begun = loop.run_until_complete(opened(side, kind, name))
                    tasks[f"{kind}-{name}-{index}"] = async_task(loop, begun, name)
    workers.serve(tasks)


if __name__ == "__main__":
    main()
