"""What a client needs of an HTTP library. Implement these two to bring one that is not known here.

A transport raises ``ConnectError`` for its own failures, with the library's exception as the cause: ``unavailable``
when the request could not be sent or answered, ``deadline_exceeded`` and ``canceled`` for what they say. What the
caller's own request iterator raises passes through untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from connectrpc._core.http import HeaderView, HTTPRequest
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["AsyncHTTPClient", "AsyncResponse", "AsyncTransport", "SyncHTTPClient", "SyncResponse", "SyncTransport"]


class SyncHTTPClient(Protocol):
    """The shape of ``httpx.Client`` and ``pyqwest.SyncClient``, for type checkers that need not find either library."""

    def stream(self, method: str, url: str, /) -> AbstractContextManager[Any]: ...


class AsyncHTTPClient(Protocol):
    """The shape of ``httpx.AsyncClient`` and ``pyqwest.Client``, likewise."""

    def stream(self, method: str, url: str, /) -> AbstractAsyncContextManager[Any]: ...


class SyncResponse(Protocol):
    """An answer whose head is there. Belongs to one thread at a time, but for ``interrupt``.

    Attributes:
        status: the HTTP status.
        headers: the headers, by names in any letter case.
    """

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> HeaderView: ...
    @property
    def trailers(self) -> HeaderView | None:
        """The trailers of HTTP itself, once the body has ended; None where there are none, or the library cannot tell.
        A transport that can has the attribute ``has_trailers``, which is true."""
        ...

    @property
    def uploaded(self) -> bool:
        """Whether all of the request has been sent, if the end of the answer waits for that; else true."""
        ...

    def read(self, limit: int | None) -> bytes:
        """The whole body, and its connection back to where it came from. Beyond ``limit`` bytes at least one more is
        given, and the connection is dropped."""
        ...

    def read_chunk(self) -> bytes:
        """The next bytes as soon as there are any; none at the end."""
        ...

    def check(self) -> None:
        """Raise when the deadline has passed or the call was cancelled since the last read."""
        ...

    def interrupt(self) -> None:
        """Wake a thread that is reading, which fails with ``canceled``. May be called from any thread."""
        ...

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end. Safe to call again.

        Never called while another thread reads. But the garbage collector may call it for a stream that was left lying
        about, in whatever thread and in the midst of anything: it must not wait for a lock that this thread may hold.
        """
        ...


@runtime_checkable
class SyncTransport(Protocol):
    """Sends requests. Used by many threads at once."""

    def send(
        self,
        request: HTTPRequest,
        body: bytes | Iterator[bytes] | None,
        *,
        stream: bool,
        deadline: Deadline,
        opening: Deadline,
        cancel: CancelToken | None,
    ) -> SyncResponse:
        """Send a request and wait for the head of its answer.

        Args:
            request: the head.
            body: all of it, or its parts as they become ready, or None when there is none. Redirects are not followed,
                nothing is retried, and no content coding is added or taken off.
            stream: whether the answer will be read in chunks.
            deadline: ends the call in whatever state, reading included.
            opening: ends it when the head of its answer is not there by then. Never later than ``deadline``; the same
                object where there is no limit of its own.
            cancel: likewise, when somebody cancels it.
        """
        ...

    def close(self) -> None:
        """Close what the transport itself has opened. What it was handed stays open."""
        ...


class AsyncResponse(Protocol):
    """An answer whose head is there. Belongs to one task at a time.

    Attributes:
        status: the HTTP status.
        headers: the headers, by names in any letter case.
    """

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> HeaderView: ...
    @property
    def trailers(self) -> HeaderView | None:
        """The trailers of HTTP itself, once the body has ended; None where there are none, or the library cannot tell.
        A transport that can has the attribute ``has_trailers``, which is true."""
        ...

    @property
    def uploaded(self) -> bool:
        """Whether all of the request has been sent."""
        ...

    def read(self, limit: int | None) -> Coroutine[Any, Any, bytes]:
        """The whole body, and its connection back to where it came from. Beyond ``limit`` bytes at least one more is
        given, and the connection is dropped."""
        ...

    def read_chunk(self) -> Coroutine[Any, Any, bytes]:
        """The next bytes as soon as there are any; none at the end."""
        ...

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end. Safe to call again."""
        ...


@runtime_checkable
class AsyncTransport(Protocol):
    """Sends requests, for the tasks of one event loop at a time.

    Cancelling a task that waits in any of these gives its connection up and raises ``asyncio.CancelledError``.
    Deadlines come as such cancellations.
    """

    def send(
        self, request: HTTPRequest, body: bytes | AsyncIterator[bytes] | None
    ) -> Coroutine[Any, Any, AsyncResponse]:
        """Send a request and wait for the head of its answer.

        Args:
            request: the head.
            body: all of it, or its parts as they become ready, while the answer may already be read, or None when there
                is none. Redirects are not followed, nothing is retried, and no content coding is added or taken off.
        """
        ...

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close what the transport itself has opened. What it was handed stays open."""
        ...
