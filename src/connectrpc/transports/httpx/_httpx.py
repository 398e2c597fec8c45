"""What is the same for blocking and for asynchronous calls: where a client is good, requests, headers, failures."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

import httpx

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._failures import (
    causes,
    client_timed_out,
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    package_of,
    stream_reset,
    tls_failure,
)
from connectrpc.transports.httpx._http2 import H2_FAILURES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from connectrpc._core.http import HTTPRequest

__all__ = ["FAILURES", "Headers", "Transport", "UploadFailedError", "coded", "earlier", "is_failure", "sent_twice"]

FAILURES: tuple[type[Exception], ...] = (httpx.TransportError, httpx.StreamClosed, OSError, *H2_FAILURES)
"""What httpx raises of its own. A RuntimeError is a client that was closed, which is the user's to know as it is."""

_SHORTEST = 0.001  # zero would mean not to block at all


class _Home:
    """Where an httpx client is used: it is good for one process, and an asynchronous one for one event loop."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.opening = threading.RLock()  # a hook of the user's may itself make calls
        """Held while a call begins its stream of an HTTP/2 connection: httpcore would give two threads the same one."""


_homes: weakref.WeakKeyDictionary[Any, _Home] = weakref.WeakKeyDictionary()


class Transport:
    """What the transports of both colours have in common."""

    def __init__(self, client: object, *, connect_timeout: float | None = None) -> None:
        self._client = cast("Any", client)
        self._connect_timeout = connect_timeout
        self._home = _homes.setdefault(client, _Home())
        self._check_process()

    def _check_process(self) -> None:
        # Parent and child would read each other's answers, and a lock of the pool may be held by a thread that the
        # child has not.
        if self._home.process != os.getpid():
            raise RuntimeError(
                "this process was forked from the one that used the httpx client, which does not work across fork(): "
                "make the client after the fork"
            )

    def _timeouts(self, left: float | None) -> dict[str, float | None]:
        """What the user has set for connecting and for the pool. How long the call itself may take is its deadline's
        to say."""
        own = self._client.timeout
        connect = own.connect if self._connect_timeout is None else self._connect_timeout
        return {"connect": earlier(connect, left), "pool": earlier(own.pool, left), "read": None, "write": None}

    def _request(
        self, request: HTTPRequest, content: Any, timeouts: dict[str, float | None], trace: Any
    ) -> httpx.Request:
        # Made by hand: build_request() would add the base URL, and what httpx sends with every request.
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
        names = {name.lower() for name, _ in headers}
        headers += [
            (name, value)
            for name, value in self._client.headers.raw
            if name.lower() not in names and not _is_of_httpx(name.lower(), value)
        ]
        extensions = {"timeout": timeouts, "trace": trace}
        cookies = self._client.cookies
        return httpx.Request(
            request.method, request.url, headers=headers, cookies=cookies, content=content, extensions=extensions
        )


def earlier(limit: float | None, left: float | None) -> float | None:
    """The shorter of two times in seconds, as httpx takes them; None is no limit."""
    if left is None:
        return limit
    left = max(left, _SHORTEST)
    return left if limit is None else min(limit, left)


def _is_of_httpx(name: bytes, value: bytes) -> bool:
    """Whether a header of a client's is one that nobody has asked for. It may decode no answers behind our back."""
    return (
        name == b"accept-encoding"
        or (name == b"accept" and value == b"*/*")
        or (name == b"connection" and value == b"keep-alive")
        or (name == b"user-agent" and value.startswith(b"python-httpx/"))
    )


class Headers:
    """The headers of an answer of httpx's, which joins those of the same name."""

    __slots__ = ("_decoded", "_headers")

    def __init__(self, headers: httpx.Headers, *, decoded: bool) -> None:
        self._headers = headers
        self._decoded = decoded

    def get(self, name: str, /) -> str | None:
        if self._decoded and name.lower() == "content-encoding":
            return None
        return cast("str | None", self._headers.get(name))

    def items(self) -> Iterable[tuple[str, str]]:
        pairs = self._headers.multi_items()
        return [pair for pair in pairs if pair[0] != "content-encoding"] if self._decoded else pairs


class UploadFailedError(Exception):
    """What the caller's request iterator raised, in a form that nobody takes for a failure of httpx's."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__(failure)
        self.failure = failure


def is_failure(error: BaseException) -> bool:
    """Whether something that was raised is a failure of httpx's own, and not of the user's code that it calls."""
    if isinstance(error, FAILURES):
        return True
    # The status of an answer over HTTP/2 that is no number.
    return isinstance(error, ValueError) and package_of(error) == "httpcore"


def sent_twice(*, answered: bool) -> ConnectError:
    """What it is to the caller that a request in parts would have to be sent a second time.

    Args:
        answered: whether the server has answered it, or has refused to begin with it.
    """
    if answered:
        return ConnectError(
            ConnectErrorCode.UNAUTHENTICATED,
            "the HTTP client's authentication sends a request twice, and one of several messages can be sent only once",
        )
    return ConnectError(ConnectErrorCode.UNAVAILABLE, "the server is going away and has not taken the request")


def coded(error: BaseException, *, answered: bool) -> ConnectError:
    """What a failure of httpx's is to the caller, before or after the head of the answer has come."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.PoolTimeout):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "all connections of the HTTP client's pool are in use")
    if isinstance(error, httpx.ConnectTimeout):
        return connected_too_late()
    if isinstance(error, httpx.TimeoutException):
        return client_timed_out()
    if isinstance(error, httpx.ConnectError):
        return no_connection(error)
    if isinstance(error, httpx.RemoteProtocolError):
        for cause in causes(error):
            event: Any = cause.args[0] if cause.args else None
            if hasattr(event, "error_code") and hasattr(event, "stream_id"):
                return stream_reset(int(event.error_code or 0))
            if hasattr(event, "error_code") and hasattr(event, "last_stream_id"):
                return connection_failed("the server is going away")
    failure = tls_failure(error)
    if failure is not None:
        return failure
    if not answered and (
        isinstance(error, httpx.NetworkError)
        or (isinstance(error, httpx.RemoteProtocolError) and str(error).startswith("Server disconnected"))
    ):
        return closed_unanswered()
    return connection_failed(text)
