"""Reading a whole answer from its chunks, for responses of libraries that have no better way."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from connectrpc._core.pieces import keep

if TYPE_CHECKING:
    from connectrpc._core.pieces import Pieces

__all__ = ["AsyncChunkedResponse", "ChunkedResponse"]


class ChunkedResponse(abc.ABC):
    """A ``SyncResponse`` whose ``read`` is made of ``read_chunk``, and whose end waits for no request."""

    __slots__ = ()

    @property
    def uploaded(self) -> bool:
        return True

    @abc.abstractmethod
    def read_chunk(self) -> bytes: ...
    @abc.abstractmethod
    def close(self) -> None: ...

    def read(self, limit: int | None) -> bytes:
        """The whole body, or at least one byte more than ``limit``."""
        parts: Pieces = []
        received = 0
        try:
            while (limit is None or received <= limit) and (chunk := self.read_chunk()):
                keep(parts, chunk)
                received += len(chunk)
        finally:
            self.close()
        return b"".join(parts)


class AsyncChunkedResponse(abc.ABC):
    """An ``AsyncResponse`` whose ``read`` is made of ``read_chunk``."""

    __slots__ = ()

    @abc.abstractmethod
    async def read_chunk(self) -> bytes: ...
    @abc.abstractmethod
    def close(self) -> None: ...

    async def read(self, limit: int | None) -> bytes:
        """The whole body, or at least one byte more than ``limit``."""
        parts: Pieces = []
        received = 0
        try:
            while (limit is None or received <= limit) and (chunk := await self.read_chunk()):
                keep(parts, chunk)
                received += len(chunk)
        finally:
            self.close()
        return b"".join(parts)
