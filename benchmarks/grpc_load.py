"""The load on gRPC servers: a client of grpcio's, which neither serialises nor parses.

Answers are counted, by messages and bytes, and the first of each kind is compared with what is expected. Run as a
worker (see `workers`): `grpc_load.py PORT`. Its tasks are named `unary-small`, `download-small` and so on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import bench_pb2
import grpc  # type: ignore[import-untyped]

import work
import workers
from shapes import GRPC_SHAPES, KINDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[], Awaitable[list[bytes]]]

__all__: list[str] = []

_IN_FLIGHT = 16
"""How many unary calls are made at a time. Streams are made one after the other."""

_CALLS_PER_CHANNEL = 4000
"""Some servers close a connection that has had 4096 calls, whatever is under way on it."""


class Load:
    """Calls of one kind.

    Args:
        address: of the server.
        kind: "unary" or one of `KINDS`.
        size: of the messages, a key of `GRPC_SHAPES`.
    """

    def __init__(self, address: str, kind: str, size: str) -> None:
        shape = GRPC_SHAPES[size]
        chunk = bench_pb2.Chunk(data=shape.data).SerializeToString()
        greeting = work.GREETINGS[size]
        self._address = address
        self._kind = kind
        self._method: Any = None
        self._units = 1 if kind == "unary" else shape.messages
        self._callers = _IN_FLIGHT if kind == "unary" else 1
        self._call: Call = getattr(self, f"_{kind}")
        if kind == "unary":
            self._request = greeting.SerializeToString()
            self._expected = [work.greet(greeting).SerializeToString()]
        elif kind == "download":
            self._request = work.download(shape).SerializeToString()
            self._expected = [chunk] * shape.messages
        elif kind == "upload":
            self._request = chunk
            self._expected = [work.uploaded(shape).SerializeToString()]
        else:
            self._request = chunk
            self._expected = [chunk] * shape.messages
        self._lengths = sum(map(len, self._expected))
        self._checked = False

    def _open(self, channel: Any) -> Any:
        if self._kind == "unary":
            return channel.unary_unary(work.GREET_PATH)
        if self._kind == "download":
            return channel.unary_stream(work.DOWNLOAD_PATH)
        if self._kind == "upload":
            return channel.stream_unary(work.UPLOAD_PATH)
        return channel.stream_stream(work.ECHO_PATH)

    async def _unary(self) -> list[bytes]:
        return [await self._method(self._request)]

    async def _download(self) -> list[bytes]:
        return await self._read(self._method(self._request))

    async def _upload(self) -> list[bytes]:
        call = self._method()
        await self._write(call)
        return [await call]

    async def _echo(self) -> list[bytes]:
        call = self._method()
        writing = asyncio.create_task(self._write(call))
        answer = await self._read(call)
        await writing
        return answer

    async def _write(self, call: Any) -> None:
        for _ in range(self._units):
            await call.write(self._request)
        await call.done_writing()

    async def _read(self, call: Any) -> list[bytes]:
        messages = []
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
        return messages

    async def _caller(self, end: float) -> int:
        calls = 0
        while not calls or (time.perf_counter() < end and calls * self._callers < _CALLS_PER_CHANNEL):
            answer = await self._call()
            if len(answer) != len(self._expected) or sum(map(len, answer)) != self._lengths:
                raise SystemExit("the server's answer is not the expected one")
            calls += 1
        return calls

    async def run(self, seconds: float) -> workers.Sample:
        """Counts messages, of the longer side; also those of the first call, which opens the connection."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            self._method = self._open(channel)
            answer = await self._call()
            if not self._checked and answer != self._expected:
                raise SystemExit("the server's answer is not the expected one")
            self._checked = True
            cpu, start = time.process_time(), time.perf_counter()
            counts = await asyncio.gather(*(self._caller(start + seconds) for _ in range(self._callers)))
            wall = time.perf_counter() - start
            return workers.Sample((sum(counts) + 1) * self._units, wall, time.process_time() - cpu)


def main() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    address = f"127.0.0.1:{sys.argv[1]}"
    loads = {f"{kind}-{size}": Load(address, kind, size) for kind in ("unary", *KINDS) for size in GRPC_SHAPES}
    workers.serve(
        {
            name: lambda seconds, load=load: loop.run_until_complete(load.run(seconds))  # type: ignore[misc]
            for name, load in loads.items()
        }
    )


if __name__ == "__main__":
    main()
