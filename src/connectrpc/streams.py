"""Streams as callers see them: what they give as a request, and what they get as an answer."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from types import TracebackType

    from multidict import CIMultiDict
    from typing_extensions import Self

    from connectrpc.errors import ConnectError

__all__ = ["AsyncStreamCall", "AsyncStreamInput", "AsyncStreamOutput", "StreamInput", "StreamOutput"]

T = TypeVar("T")

StreamInput = Iterable[T]
"""The messages of a request: a list, a generator, anything that can be iterated."""

AsyncStreamInput = AsyncIterable[T] | Iterable[T]
"""The messages of a request in async code: an async iterable, or a plain one that does not block."""


class _Outcome(abc.ABC):
    """What either colour of a streamed answer can tell about itself."""

    __slots__ = ()

    @abc.abstractmethod
    def done(self) -> bool:
        """Whether the stream is over: ended by the server, failed, or closed."""

    @abc.abstractmethod
    def error(self) -> ConnectError | None:
        """Why the stream failed; None while it runs, when it ended well and when it was closed.

        What breaks off the wait for a message, such as a cancellation, is raised there, and is ``canceled`` here. So is
        ``close()`` where another thread is waiting for a message.
        """

    @abc.abstractmethod
    def response_headers(self) -> CIMultiDict[str]:
        """The answer's headers; empty when no answer came."""

    @abc.abstractmethod
    def response_trailers(self) -> CIMultiDict[str]:
        """The answer's trailers; empty when none came.

        Raises:
            RuntimeError: the stream is not over yet: trailers come last.
        """


class StreamOutput(_Outcome, Generic[T]):
    """A streamed answer. Iterate it, inside a ``with`` statement when you may leave early.

    Iterating ends quietly when the RPC fails: ``error()`` tells. One thread iterates; ``close()`` may be called
    from any thread.
    """

    __slots__ = ()

    @abc.abstractmethod
    def __iter__(self) -> Iterator[T]: ...

    @abc.abstractmethod
    def __next__(self) -> T: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Give up what is left of the stream and free its connection. Safe to call again, and from any thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStreamOutput(_Outcome, Generic[T]):
    """A streamed answer in async code. Iterate it, inside ``async with`` when you may leave early.

    Iterating ends quietly when the RPC fails: ``error()`` tells. It belongs to one task at a time.
    """

    __slots__ = ()

    @abc.abstractmethod
    def __aiter__(self) -> AsyncIterator[T]: ...

    @abc.abstractmethod
    async def __anext__(self) -> T: ...

    @abc.abstractmethod
    async def close(self) -> None:
        """Give up what is left of the stream and free its connection. Safe to call again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStreamCall(abc.ABC, Generic[T]):
    """A streaming call that has not been started. Either of these starts it; it can be started once::

    async with client.call_introduce(req) as stream: ...
    stream = await client.call_introduce(req)
    """

    __slots__ = ()

    @abc.abstractmethod
    def __await__(self) -> Generator[object, None, AsyncStreamOutput[T]]: ...

    @abc.abstractmethod
    async def __aenter__(self) -> AsyncStreamOutput[T]: ...

    @abc.abstractmethod
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
