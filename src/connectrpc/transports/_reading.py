"""Reading a whole answer from its chunks, for responses of libraries that have no better way."""

from __future__ import annotations

import abc

__all__ = ["AsyncChunkedResponse", "ChunkedResponse"]


class ChunkedResponse(abc.ABC):
    """A ``SyncResponse`` whose ``read`` is made of ``read_chunk``."""

    __slots__ = ()

    @abc.abstractmethod
    def read_chunk(self) -> bytes: ...
    @abc.abstractmethod
    def close(self) -> None: ...

    def read(self, limit: int | None) -> bytes:
        """The whole body, or at least one byte more than ``limit``."""
        parts, received = [], 0
        try:
            while (limit is None or received <= limit) and (chunk := self.read_chunk()):
                parts.append(chunk)
                received += len(chunk)
        finally:
            self.close()
        return parts[0] if len(parts) == 1 else b"".join(parts)


class AsyncChunkedResponse(abc.ABC):
    """An ``AsyncResponse`` whose ``read`` is made of ``read_chunk``."""

    __slots__ = ()

    @abc.abstractmethod
    async def read_chunk(self) -> bytes: ...
    @abc.abstractmethod
    def close(self) -> None: ...

    async def read(self, limit: int | None) -> bytes:
        """The whole body, or at least one byte more than ``limit``."""
        parts, received = [], 0
        try:
            while (limit is None or received <= limit) and (chunk := await self.read_chunk()):
                parts.append(chunk)
                received += len(chunk)
        finally:
            self.close()
        return parts[0] if len(parts) == 1 else b"".join(parts)
