"""A gRPC client, of ours, of grpcio's or by hand: one in a process.

All of them serialise the same requests and parse the same answers. The floors are pyqwest and pycurl in their plainest
form, on which ours stand. Run as a worker (see `workers`): `grpc_clients.py SIDE PORT`. Its tasks are named
`unary-small`, `download-small` and so on.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import bench_pb2

import work
import workers
from shapes import GRPC_SHAPES, KINDS, Shape
from stream_clients import Cutter, enveloped, requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator

    # What a call gives: of a unary one the answer, of a stream how many messages, and how many bytes in them.
    Found = bench_pb2.GreetResponse | tuple[int, int]
    SyncCall = Callable[[str], Found]
    AsyncCall = Callable[[str], Awaitable[Found]]

__all__: list[str] = []

_IN_FLIGHT = 16
"""How many unary calls an async client makes at a time. All other calls are made one after the other."""


def count(messages: Iterable[bench_pb2.Chunk]) -> tuple[int, int]:
    chunks = size = 0
    for message in messages:
        chunks += 1
        size += len(message.data)
    return chunks, size


async def count_async(messages: AsyncIterable[bench_pb2.Chunk]) -> tuple[int, int]:
    chunks = size = 0
    async for message in messages:
        chunks += 1
        size += len(message.data)
    return chunks, size


def _transport(kind: Any) -> Any:
    import pyqwest

    return kind(
        http_version=pyqwest.HTTPVersion.HTTP2,
        follow_redirects=False,
        enable_gzip=False,
        enable_brotli=False,
        enable_zstd=False,
        enable_otel=False,
    )


# ---- ours


def ours_sync(port: int) -> dict[str, SyncCall]:
    import pyqwest

    return _ours_sync(port, pyqwest.SyncClient(_transport(pyqwest.SyncHTTPTransport)))


def ours_sync_pycurl(port: int) -> dict[str, SyncCall]:
    from connectrpc.transports.pycurl import PycurlTransport

    return _ours_sync(port, PycurlTransport(http_version="2"))


def _ours_sync(port: int, http_client: Any) -> dict[str, SyncCall]:
    import bench_pb2_connect

    client = bench_pb2_connect.BenchServiceClient(f"http://127.0.0.1:{port}", http_client, protocol="grpc")

    def upload(size: str) -> tuple[int, int]:
        answer = client.upload(requests(GRPC_SHAPES[size]))
        return answer.chunks, answer.bytes

    return {
        "unary": lambda size: client.greet(work.GREETINGS[size]),
        "download": lambda size: count(client.download(work.download(GRPC_SHAPES[size]))),
        "upload": upload,
        "echo": lambda size: count(client.echo(requests(GRPC_SHAPES[size]))),
    }


async def ours_async(port: int) -> dict[str, AsyncCall]:
    import pyqwest

    return _ours_async(port, pyqwest.Client(_transport(pyqwest.HTTPTransport)))


def _ours_async(port: int, http_client: Any) -> dict[str, AsyncCall]:
    import bench_pb2_connect

    client = bench_pb2_connect.AsyncBenchServiceClient(f"http://127.0.0.1:{port}", http_client, protocol="grpc")

    async def upload(size: str) -> tuple[int, int]:
        answer = await client.upload(requests(GRPC_SHAPES[size]))
        return answer.chunks, answer.bytes

    return {
        "unary": lambda size: client.greet(work.GREETINGS[size]),
        "download": lambda size: count_async(client.download(work.download(GRPC_SHAPES[size]))),
        "upload": upload,
        "echo": lambda size: count_async(client.echo(requests(GRPC_SHAPES[size]))),
    }


async def ours_async_pycurl(port: int) -> dict[str, AsyncCall]:
    from connectrpc.transports.pycurl import AsyncPycurlTransport

    return _ours_async(port, AsyncPycurlTransport(http_version="2"))


# ---- grpcio's


def _stubs(channel: Any) -> tuple[Any, Any, Any, Any]:
    """What grpcio's generated code would make."""
    chunk = bench_pb2.Chunk
    return (
        channel.unary_unary(
            work.GREET_PATH, bench_pb2.GreetRequest.SerializeToString, bench_pb2.GreetResponse.FromString
        ),
        channel.unary_stream(work.DOWNLOAD_PATH, bench_pb2.DownloadRequest.SerializeToString, chunk.FromString),
        channel.stream_unary(work.UPLOAD_PATH, chunk.SerializeToString, bench_pb2.UploadResponse.FromString),
        channel.stream_stream(work.ECHO_PATH, chunk.SerializeToString, chunk.FromString),
    )


def grpcio_sync(port: int) -> dict[str, SyncCall]:
    import grpc  # type: ignore[import-untyped]

    greet, download, upload, echo = _stubs(grpc.insecure_channel(f"127.0.0.1:{port}"))

    def counted(size: str) -> tuple[int, int]:
        answer = upload(requests(GRPC_SHAPES[size]))
        return answer.chunks, answer.bytes

    return {
        "unary": lambda size: greet(work.GREETINGS[size]),
        "download": lambda size: count(download(work.download(GRPC_SHAPES[size]))),
        "upload": counted,
        "echo": lambda size: count(echo(requests(GRPC_SHAPES[size]))),
    }


async def grpcio_async(port: int) -> dict[str, AsyncCall]:
    import grpc

    greet, download, upload, echo = _stubs(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))

    async def unary(size: str) -> bench_pb2.GreetResponse:
        answer: bench_pb2.GreetResponse = await greet(work.GREETINGS[size])
        return answer

    async def counted(size: str) -> tuple[int, int]:
        answer = await upload(requests(GRPC_SHAPES[size]))
        return answer.chunks, answer.bytes

    return {
        "unary": unary,
        "download": lambda size: count_async(download(work.download(GRPC_SHAPES[size]))),
        "upload": counted,
        "echo": lambda size: count_async(echo(requests(GRPC_SHAPES[size]))),
    }


# ---- by hand


HEADERS = [("content-type", "application/grpc+proto"), ("te", "trailers")]
PATHS = {"download": work.DOWNLOAD_PATH, "upload": work.UPLOAD_PATH, "echo": work.ECHO_PATH}


def _message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


def _check(status: int, trailers: Any) -> None:
    if status != 200 or trailers.get("grpc-status") != "0":
        raise RuntimeError(f"the call failed: HTTP {status}, {trailers}")


def _begun(kind: str, shape: Shape) -> bytes | Iterator[bytes]:
    if kind == "download":
        return _message(work.download(shape).SerializeToString())
    return map(enveloped, requests(shape))


def _answered(body: bytes) -> tuple[int, int]:
    answer = bench_pb2.UploadResponse.FromString(body[5:])
    return answer.chunks, answer.bytes


def _counted(cut: Iterable[tuple[int, bytes]]) -> tuple[int, int]:
    parse = bench_pb2.Chunk.FromString
    chunks = size = 0
    for _, payload in cut:
        chunks += 1
        size += len(parse(payload).data)
    return chunks, size


def floor_sync(port: int) -> dict[str, SyncCall]:
    import pyqwest

    client = pyqwest.SyncClient(_transport(pyqwest.SyncHTTPTransport))
    base = f"http://127.0.0.1:{port}"

    def unary(size: str) -> bench_pb2.GreetResponse:
        answer = client.post(base + work.GREET_PATH, HEADERS, _message(work.GREETINGS[size].SerializeToString()))
        _check(answer.status, answer.trailers)
        return bench_pb2.GreetResponse.FromString(answer.content[5:])

    def upload(size: str) -> tuple[int, int]:
        answer = client.post(base + PATHS["upload"], HEADERS, _begun("upload", GRPC_SHAPES[size]))
        _check(answer.status, answer.trailers)
        return _answered(answer.content)

    def receive(kind: str) -> SyncCall:
        def call(size: str) -> tuple[int, int]:
            with client.stream("POST", base + PATHS[kind], HEADERS, _begun(kind, GRPC_SHAPES[size])) as response:
                cut = Cutter().cut
                found = _counted(pair for data in response.content for pair in cut(bytes(data)))
                _check(response.status, response.trailers)
                return found

        return call

    return {"unary": unary, "download": receive("download"), "upload": upload, "echo": receive("echo")}


async def floor_async(port: int) -> dict[str, AsyncCall]:
    import pyqwest

    client = pyqwest.Client(_transport(pyqwest.HTTPTransport))
    base = f"http://127.0.0.1:{port}"

    async def parts(kind: str, shape: Shape) -> AsyncIterator[bytes]:
        for part in _begun(kind, shape):
            assert isinstance(part, bytes)
            yield part

    async def unary(size: str) -> bench_pb2.GreetResponse:
        answer = await client.post(base + work.GREET_PATH, HEADERS, _message(work.GREETINGS[size].SerializeToString()))
        _check(answer.status, answer.trailers)
        return bench_pb2.GreetResponse.FromString(answer.content[5:])

    async def upload(size: str) -> tuple[int, int]:
        answer = await client.post(base + PATHS["upload"], HEADERS, parts("upload", GRPC_SHAPES[size]))
        _check(answer.status, answer.trailers)
        return _answered(answer.content)

    def receive(kind: str) -> AsyncCall:
        async def call(size: str) -> tuple[int, int]:
            shape = GRPC_SHAPES[size]
            body: Any = parts(kind, shape) if kind == "echo" else _begun(kind, shape)
            async with client.stream("POST", base + PATHS[kind], HEADERS, body) as response:
                cut = Cutter().cut
                chunks = length = 0
                async for data in response.content:
                    more, longer = _counted(cut(bytes(data)))
                    chunks += more
                    length += longer
                _check(response.status, response.trailers)
                return chunks, length

        return call

    return {"unary": unary, "download": receive("download"), "upload": upload, "echo": receive("echo")}


def _curl(port: int, path: str) -> Any:
    """A handle for calls of one method."""
    import pycurl

    curl: Any = pycurl.Curl()
    curl.setopt(pycurl.URL, f"http://127.0.0.1:{port}{path}")
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE)
    curl.setopt(pycurl.PIPEWAIT, 1)
    curl.setopt(pycurl.HTTPHEADER, [*(f"{name}: {value}" for name, value in HEADERS), "expect:"])
    curl.setopt(pycurl.POST, 1)
    return curl


def _curl_call(curl: Any, body: bytes | Iterator[bytes], write: Callable[[bytes], object]) -> Callable[[], None]:
    """Set the next call of a handle up. What is returned checks it afterwards."""
    import pycurl

    if isinstance(body, bytes):
        curl.setopt(pycurl.POSTFIELDS, body)
    else:
        curl.setopt(pycurl.POSTFIELDSIZE_LARGE, -1)
        curl.setopt(pycurl.READFUNCTION, Reader(body).read)
    lines: list[bytes] = []
    curl.setopt(pycurl.HEADERFUNCTION, lines.append)
    curl.setopt(pycurl.WRITEFUNCTION, write)

    def check() -> None:
        _check(curl.getinfo(pycurl.RESPONSE_CODE), {"grpc-status": "0"} if b"grpc-status: 0\r\n" in lines else {})

    return check


class Counter:
    """Counts the messages of an answer as it comes."""

    def __init__(self) -> None:
        self._cut = Cutter().cut
        self.found = (0, 0)

    def write(self, data: bytes) -> None:
        chunks, size = _counted(self._cut(data))
        self.found = (self.found[0] + chunks, self.found[1] + size)


def floor_sync_pycurl(port: int) -> dict[str, SyncCall]:
    curls = {path: _curl(port, path) for path in (work.GREET_PATH, *PATHS.values())}

    def perform(path: str, body: bytes | Iterator[bytes], write: Callable[[bytes], object]) -> None:
        check = _curl_call(curls[path], body, write)
        curls[path].perform()
        check()

    def unary(size: str) -> bench_pb2.GreetResponse:
        parts: list[bytes] = []
        perform(work.GREET_PATH, _message(work.GREETINGS[size].SerializeToString()), parts.append)
        return bench_pb2.GreetResponse.FromString(b"".join(parts)[5:])

    def upload(size: str) -> tuple[int, int]:
        parts: list[bytes] = []
        perform(PATHS["upload"], _begun("upload", GRPC_SHAPES[size]), parts.append)
        return _answered(b"".join(parts))

    def receive(kind: str) -> SyncCall:
        def call(size: str) -> tuple[int, int]:
            counter = Counter()
            perform(PATHS[kind], _begun(kind, GRPC_SHAPES[size]), counter.write)
            return counter.found

        return call

    return {"unary": unary, "download": receive("download"), "upload": upload, "echo": receive("echo")}


async def floor_async_pycurl(port: int) -> dict[str, AsyncCall]:
    import pycurl

    multi = pycurl.AsyncCurlMulti()
    spare: dict[str, list[Any]] = {path: [] for path in (work.GREET_PATH, *PATHS.values())}

    async def perform(path: str, body: bytes | Iterator[bytes], write: Callable[[bytes], object]) -> None:
        curl = spare[path].pop() if spare[path] else _curl(port, path)
        check = _curl_call(curl, body, write)
        await multi.perform(curl)
        check()
        spare[path].append(curl)

    async def unary(size: str) -> bench_pb2.GreetResponse:
        parts: list[bytes] = []
        await perform(work.GREET_PATH, _message(work.GREETINGS[size].SerializeToString()), parts.append)
        return bench_pb2.GreetResponse.FromString(b"".join(parts)[5:])

    async def upload(size: str) -> tuple[int, int]:
        parts: list[bytes] = []
        await perform(PATHS["upload"], _begun("upload", GRPC_SHAPES[size]), parts.append)
        return _answered(b"".join(parts))

    def receive(kind: str) -> AsyncCall:
        async def call(size: str) -> tuple[int, int]:
            counter = Counter()
            await perform(PATHS[kind], _begun(kind, GRPC_SHAPES[size]), counter.write)
            return counter.found

        return call

    return {"unary": unary, "download": receive("download"), "upload": upload, "echo": receive("echo")}


class Reader:
    """Parts of a request as pieces of at most as many bytes as somebody asks for."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def read(self, size: int) -> bytes:
        part = self._rest or next(self._parts, b"")
        self._rest = part[size:]
        return part[:size]


# ---- the worker


def right(found: Found, kind: str, size: str) -> None:
    shape = GRPC_SHAPES[size]
    wanted = work.greet(work.GREETINGS[size]) if kind == "unary" else (shape.messages, shape.messages * shape.size)
    if found != wanted:
        raise SystemExit("the answer is not the expected one")


def units(kind: str, size: str) -> int:
    return 1 if kind == "unary" else GRPC_SHAPES[size].messages


def sync_task(call: SyncCall, kind: str, size: str) -> Callable[[float], workers.Sample]:
    def run(seconds: float) -> workers.Sample:
        right(call(size), kind, size)
        calls, cpu, start = 0, time.process_time(), time.perf_counter()
        while not calls or time.perf_counter() < start + seconds:
            call(size)
            calls += 1
        return workers.Sample(calls * units(kind, size), time.perf_counter() - start, time.process_time() - cpu)

    return run


def async_task(
    loop: asyncio.AbstractEventLoop, call: AsyncCall, kind: str, size: str
) -> Callable[[float], workers.Sample]:
    async def caller(end: float) -> int:
        calls = 0
        while not calls or time.perf_counter() < end:
            await call(size)
            calls += 1
        return calls

    async def run(seconds: float) -> workers.Sample:
        right(await call(size), kind, size)
        callers = _IN_FLIGHT if kind == "unary" else 1
        cpu, start = time.process_time(), time.perf_counter()
        made = sum(await asyncio.gather(*(caller(start + seconds) for _ in range(callers))))
        return workers.Sample(made * units(kind, size), time.perf_counter() - start, time.process_time() - cpu)

    return lambda seconds: loop.run_until_complete(run(seconds))


SYNC = {
    "ours-sync": ours_sync,
    "ours-sync-pycurl": ours_sync_pycurl,
    "floor-sync": floor_sync,
    "floor-sync-pycurl": floor_sync_pycurl,
    "grpcio-sync": grpcio_sync,
}
ASYNC = {
    "ours-async": ours_async,
    "ours-async-pycurl": ours_async_pycurl,
    "floor-async": floor_async,
    "floor-async-pycurl": floor_async_pycurl,
    "grpcio-async": grpcio_async,
}


def main() -> None:
    side, port = sys.argv[1], int(sys.argv[2])
    wanted = [(kind, size) for kind in ("unary", *KINDS) for size in GRPC_SHAPES]
    if side in SYNC:
        calls = SYNC[side](port)
        workers.serve({f"{kind}-{size}": sync_task(calls[kind], kind, size) for kind, size in wanted})
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    begun = loop.run_until_complete(ASYNC[side](port))
    workers.serve({f"{kind}-{size}": async_task(loop, begun[kind], kind, size) for kind, size in wanted})


if __name__ == "__main__":
    main()
