"""The floor under our WSGI app: the same parsing, the same work, the same serialising, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench_pb2

from work import greet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["app"]


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    answer = greet(bench_pb2.GreetRequest.FromString(body)).SerializeToString()
    start_response("200 OK", [("Content-Type", "application/proto"), ("Content-Length", str(len(answer)))])
    return [answer]
