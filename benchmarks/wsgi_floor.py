"""The floors under our WSGI app: the same parsing, the same work, the same serialising, and nothing else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import bench_pb2

import work
from wire import END

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    StartResponse = Callable[[str, list[tuple[str, str]]], object]

__all__ = ["app", "streams"]


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    answer = work.greet(bench_pb2.GreetRequest.FromString(body)).SerializeToString()
    start_response("200 OK", [("Content-Type", "application/proto"), ("Content-Length", str(len(answer)))])
    return [answer]


def streams(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path, stream = environ["PATH_INFO"], environ["wsgi.input"]
    headers = [("Content-Type", "application/connect+proto")]
    if path == work.DOWNLOAD_PATH:
        body = stream.read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", headers)
        return download(bench_pb2.DownloadRequest.FromString(body[5:]))
    if path == work.ECHO_PATH:
        start_response("200 OK", headers)
        return echo(stream)
    answer = upload(stream)
    start_response("200 OK", [*headers, ("Content-Length", str(len(answer)))])
    return [answer]


def download(request: bench_pb2.DownloadRequest) -> Iterator[bytes]:
    pack, chunk, data = struct.pack, bench_pb2.Chunk, b"x" * request.chunk_bytes
    for _ in range(request.chunks):
        payload = chunk(data=data).SerializeToString()
        yield pack(">BI", 0, len(payload)) + payload
    yield END


def upload(stream: Any) -> bytes:
    chunks = size = 0
    for chunk in messages(stream):
        chunks += 1
        size += len(chunk.data)
    payload = bench_pb2.UploadResponse(chunks=chunks, bytes=size).SerializeToString()
    return struct.pack(">BI", 0, len(payload)) + payload + END


def echo(stream: Any) -> Iterator[bytes]:
    pack = struct.pack
    for chunk in messages(stream):
        payload = chunk.SerializeToString()
        yield pack(">BI", 0, len(payload)) + payload
    yield END


def messages(stream: Any) -> Iterator[bench_pb2.Chunk]:
    """Each message as soon as it is there."""
    # Below a kilobyte gunicorn's read() waits for more than it is asked for; what it reads from does not.
    read, unpack, parse = stream.reader.read, struct.unpack, bench_pb2.Chunk.FromString
    while header := read(5):
        _, size = unpack(">BI", header)
        yield parse(read(size))
