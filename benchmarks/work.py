"""The work that both sides of a row do: the messages, and what a handler makes of one."""

from __future__ import annotations

import bench_pb2

__all__ = ["GREET_PATH", "REQUEST", "RESPONSE", "greet"]

GREET_PATH = "/connectrpc.bench.v1.BenchService/Greet"

REQUEST = bench_pb2.GreetRequest(name="Ada Lovelace", visits=1843, score=0.75, loud=True, tags=["poet", "analyst"])


def greet(request: bench_pb2.GreetRequest) -> bench_pb2.GreetResponse:
    """Answer one message with another."""
    return bench_pb2.GreetResponse(
        greeting=f"Hello, {request.name}!",
        visits=request.visits + 1,
        score=request.score,
        loud=request.loud,
        tags=request.tags,
    )


RESPONSE = greet(REQUEST)
