"""A client of ours that carries one short stream and, when it is told to, one long one (see `memory`).

Run as `memory_client.py COLOUR KIND PORT PACE`. It says "warm" after the first stream and "done" after the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING

import bench_pb2
import bench_pb2_connect

import work
from connectrpc.errors import ConnectError
from shapes import LONG, SHORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapes import Shape

__all__: list[str] = []

SLOW_STEP = 0.05


def requests(shape: Shape) -> Iterator[bench_pb2.Chunk]:
    data = shape.data
    for _ in range(shape.messages):
        yield bench_pb2.Chunk(data=data)


def sync(client: bench_pb2_connect.BenchServiceClient, kind: str, shape: Shape, pause: float) -> None:
    if kind == "upload":
        client.upload(requests(shape))
    else:
        for _ in client.download(work.download(shape)):
            if pause:
                time.sleep(pause)


async def aio(client: bench_pb2_connect.AsyncBenchServiceClient, kind: str, shape: Shape, pause: float) -> None:
    if kind == "upload":
        await client.upload(requests(shape))
    else:
        async for _ in client.download(work.download(shape)):
            if pause:
                await asyncio.sleep(pause)


def main() -> None:
    colour, kind, url = sys.argv[1], sys.argv[2], f"http://127.0.0.1:{sys.argv[3]}"
    pause = SLOW_STEP if sys.argv[4] == "slow" else 0.0
    with contextlib.suppress(ConnectError):  # the other side hangs up when it has seen enough
        if colour == "sync":
            with bench_pb2_connect.BenchServiceClient(url) as client:
                sync(client, kind, SHORT, 0)
                print("warm", flush=True)
                sys.stdin.readline()
                sync(client, kind, LONG, pause)
        else:
            asyncio.run(both(url, kind, pause))
    print("done", flush=True)


async def both(url: str, kind: str, pause: float) -> None:
    async with bench_pb2_connect.AsyncBenchServiceClient(url) as client:
        await aio(client, kind, SHORT, 0)
        print("warm", flush=True)
        sys.stdin.readline()  # nothing else is to go on meanwhile
        await aio(client, kind, LONG, pause)


if __name__ == "__main__":
    main()
