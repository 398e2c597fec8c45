"""What comes in pieces takes about as much memory as it is long, however small they are."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
import types
from typing import TYPE_CHECKING, Any

import pytest

from connectrpc._core.envelope import EnvelopeReader
from connectrpc._core.http import WholeResponse
from connectrpc._core.negotiate import negotiate
from connectrpc._core.pieces import keep
from connectrpc.transports._reading import AsyncChunkedResponse, ChunkedResponse
from harness import MISSING, PROTO, UNARY, Head, ask, endpoints_of, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectrpc._core.pieces import Pieces

NAME = "x" * 128 * 1024
WHOLE = ask(NAME).SerializeToString()


class Chunks(ChunkedResponse):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read_chunk(self) -> bytes:
        return next(self._chunks, b"")

    def close(self) -> None:
        pass


class AsyncChunks(AsyncChunkedResponse):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    async def read_chunk(self) -> bytes:
        return next(self._chunks, b"")

    def close(self) -> None:
        pass


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """Parts of ``data``, none of which is there before it is asked for."""
    return (data[start : start + size] for start in range(0, len(data), size))


def enveloped(size: int) -> object:
    reader = EnvelopeReader(None)
    ((_, payload),) = (found for chunk in cut(frame(WHOLE), size) for found in reader.feed(chunk))
    return payload


def enveloped_after_another(size: int) -> object:
    """Whose parts do not begin where it does."""
    reader = EnvelopeReader(None)
    stream = cut(frame(b"another") + frame(WHOLE), size)
    _, (_, payload) = (found for chunk in stream for found in reader.feed(chunk))
    return payload


def request(size: int) -> object:
    found = negotiate(endpoints_of(types.SimpleNamespace(**MISSING), {}), Head(UNARY.path, [("content-type", PROTO)]))
    assert not isinstance(found, WholeResponse)
    call: Any = found[1]
    for chunk in cut(WHOLE, size):
        call.take(chunk)
    message = call.taken()
    return message.SerializeToString()


def answer(size: int) -> object:
    return Chunks(cut(WHOLE, size)).read(len(WHOLE))


def awaited_answer(size: int) -> object:
    return asyncio.run(AsyncChunks(cut(WHOLE, size)).read(len(WHOLE)))


COLLECTED = pytest.mark.parametrize(
    "collect", [enveloped, enveloped_after_another, request, answer, awaited_answer], ids=lambda way: way.__name__
)


@COLLECTED
@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 5000, 1 << 20])
def test_they_become_the_whole(collect: Callable[[int], object], size: int) -> None:
    assert collect(size) == WHOLE


@COLLECTED
def test_tiny_pieces_take_no_more_memory_than_large_ones(collect: Callable[[int], object]) -> None:
    collect(5000)
    tracemalloc.start()
    try:
        collect(2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(WHOLE), "the whole, what it was made of, and what is made of it"


def test_pieces_of_any_sizes_stay_in_order() -> None:
    chance = random.Random(7)
    for _ in range(20):
        given = [chance.randbytes(chance.choice((0, 1, 5, 1023, 1024, 3000))) for _ in range(200)]
        kept: Pieces = []
        for piece in given:
            keep(kept, piece)
        assert b"".join(kept) == b"".join(given)


def test_large_pieces_are_not_copied() -> None:
    given = [bytes(2000) for _ in range(200)]
    kept: Pieces = []
    for piece in given:
        keep(kept, piece)
    assert all(one is other for one, other in zip(kept, given, strict=True))
