"""The abstract streams: what the runtime's own and a user's doubles have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from multidict import CIMultiDict

from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput, StreamOutput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from connectrpc.errors import ConnectError


class _Told:
    def done(self) -> bool:
        return True

    def error(self) -> ConnectError | None:
        return None

    def response_headers(self) -> CIMultiDict[str]:
        return CIMultiDict()

    def response_trailers(self) -> CIMultiDict[str]:
        return CIMultiDict()


class Output(_Told, StreamOutput[int]):
    closed = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        raise StopIteration

    def close(self) -> None:
        self.closed += 1


class AsyncOutput(_Told, AsyncStreamOutput[int]):
    closed = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration

    async def close(self) -> None:
        self.closed += 1


def test_leaving_closes() -> None:
    output = Output()
    with pytest.raises(ZeroDivisionError), output as entered:
        assert entered is output
        assert output.closed == 0
        raise ZeroDivisionError
    assert output.closed == 1


def test_leaving_closes_async() -> None:
    async def main() -> None:
        output = AsyncOutput()
        with pytest.raises(ZeroDivisionError):
            async with output as entered:
                assert entered is output
                assert output.closed == 0
                raise ZeroDivisionError
        assert output.closed == 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", [StreamOutput, AsyncStreamOutput, AsyncStreamCall])
def test_they_are_abstract(kind: type[object]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        kind()
