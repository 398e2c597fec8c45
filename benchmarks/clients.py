"""The clients, ours and the bare ones, in one process.

Both sides serialise the same request, speak to the same server and parse the same response. The floors use their
library in its plainest form, with the two headers that a Connect call cannot do without.

Run as a worker (see `workers`): `clients.py COLOUR PORT CONCURRENCY SIDE...`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import bench_pb2

import work
import workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    SyncCall = Callable[[bench_pb2.GreetRequest], bench_pb2.GreetResponse]
    AsyncCall = Callable[[bench_pb2.GreetRequest], Awaitable[bench_pb2.GreetResponse]]

__all__: list[str] = []

HEADERS = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}


def sync_ours(port: int) -> SyncCall:
    import bench_pb2_connect

    return bench_pb2_connect.BenchServiceClient(f"http://127.0.0.1:{port}").greet


def sync_empty_list(port: int) -> SyncCall:
    import bench_pb2_connect

    return bench_pb2_connect.BenchServiceClient(f"http://127.0.0.1:{port}", interceptors=[]).greet


def sync_floor(port: int) -> SyncCall:
    import urllib3

    urlopen = urllib3.HTTPConnectionPool("127.0.0.1", port).urlopen

    def call(request: bench_pb2.GreetRequest) -> bench_pb2.GreetResponse:
        response = urlopen("POST", work.GREET_PATH, body=request.SerializeToString(), headers=HEADERS)
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}")
        return bench_pb2.GreetResponse.FromString(response.data)

    return call


async def async_ours(port: int) -> AsyncCall:
    import bench_pb2_connect

    return bench_pb2_connect.AsyncBenchServiceClient(f"http://127.0.0.1:{port}").greet


async def async_empty_list(port: int) -> AsyncCall:
    import bench_pb2_connect

    return bench_pb2_connect.AsyncBenchServiceClient(f"http://127.0.0.1:{port}", interceptors=[]).greet


async def async_floor(port: int) -> AsyncCall:
    import aiohttp

    post = aiohttp.ClientSession().post
    url = f"http://127.0.0.1:{port}{work.GREET_PATH}"

    async def call(request: bench_pb2.GreetRequest) -> bench_pb2.GreetResponse:
        async with post(url, data=request.SerializeToString(), headers=HEADERS) as response:
            body = await response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}")
        return bench_pb2.GreetResponse.FromString(body)

    return call


SYNC = {"ours": sync_ours, "floor": sync_floor, "empty-list": sync_empty_list}
ASYNC = {"ours": async_ours, "floor": async_floor, "empty-list": async_empty_list}


def sync_task(call: SyncCall) -> Callable[[float], workers.Sample]:
    def run(seconds: float) -> workers.Sample:
        clock = time.perf_counter
        request = work.REQUEST
        calls = 0
        cpu = time.process_time()
        start = now = clock()
        end = start + seconds
        while now < end:
            call(request)
            calls += 1
            now = clock()
        return workers.Sample(calls, now - start, time.process_time() - cpu)

    if call(work.REQUEST) != work.RESPONSE:
        raise SystemExit("the response is not the expected one")
    return run


def async_task(loop: asyncio.AbstractEventLoop, call: AsyncCall, concurrency: int) -> Callable[[float], workers.Sample]:
    async def caller(end: float) -> int:
        clock = time.perf_counter
        request = work.REQUEST
        calls = 0
        while clock() < end:
            await call(request)
            calls += 1
        return calls

    async def callers(seconds: float) -> workers.Sample:
        cpu = time.process_time()
        start = time.perf_counter()
        counts = await asyncio.gather(*(caller(start + seconds) for _ in range(concurrency)))
        return workers.Sample(sum(counts), time.perf_counter() - start, time.process_time() - cpu)

    async def check() -> None:
        if await call(work.REQUEST) != work.RESPONSE:
            raise SystemExit("the response is not the expected one")

    loop.run_until_complete(check())
    return lambda seconds: loop.run_until_complete(callers(seconds))


def main() -> None:
    colour, port, concurrency, sides = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    tasks: dict[str, Callable[[float], workers.Sample]] = {}
    if colour == "sync":
        for index, side in enumerate(sides):
            tasks[str(index)] = sync_task(SYNC[side](port))
    else:
        loop = asyncio.new_event_loop()
        for index, side in enumerate(sides):
            call = loop.run_until_complete(ASYNC[side](port))
            tasks[str(index)] = async_task(loop, call, concurrency)
    workers.serve(tasks)


if __name__ == "__main__":
    main()
