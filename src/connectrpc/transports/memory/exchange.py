"""One request and its answer, handed over between a client and an app of the same process.

Each side is a thread or a task of its own. Nothing in here waits: what is not possible yet gives ``WAIT``, and every
change wakes who waits. How to wait is known by ``sync`` and ``aio``.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from connectrpc._core.http import HeaderList, HTTPRequest

__all__ = ["CLIENT_ADDRESS", "GRACE_SECONDS", "WAIT", "ClientLeftError", "Exchange", "Wait"]

CLIENT_ADDRESS = ("127.0.0.1", 50000)
"""What an app is told of where its client is."""

GRACE_SECONDS = 2.0
"""How long closing waits for apps that are slow to notice that their client has left."""

_BUFFER_BYTES = 16 * 1024
"""From here on who sends waits for who reads, in both directions."""

_BODILESS = (204, 304)

_AS_THEY_ARE = "%/:?#[]@!$&'()*+,;="
"""Characters that mean something in URLs. Others that have no place in one are percent-encoded."""


class ClientLeftError(OSError):
    """What an app gets that reads or sends after its client has left."""

    def __init__(self) -> None:
        super().__init__("the client has left")


class Wait:
    """The type of ``WAIT``."""


WAIT: Final = Wait()
"""Instead of a result: it is not there yet."""


class Exchange:
    """One request and its answer. May be used by any thread; what gives ``WAIT`` is called with ``changed`` held.

    Args:
        request: the head of the request.
        body: all of its body, or None when there is none; anything else comes in parts, by ``send_part``.

    Attributes:
        changed: notified at each change.
        left: whether the client takes no more.
        method: the HTTP method of the request.
        scheme: ``"http"`` or ``"https"``.
        server: the host and port that are called.
        raw_path: the path as it stands in the URL, percent-encoded.
        query: what stands behind the question mark.
        headers: those of the request, with what an HTTP library adds to them. Names are in lower case.
        trailers: those of the answer.
        owner: kept for as long as the exchange is, which needs it.
    """

    def __init__(self, request: HTTPRequest, body: object) -> None:
        url = urlsplit(request.url)
        self.method = request.method
        self.scheme = url.scheme
        self.server = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        self.raw_path = quote(url.path or "/", _AS_THEY_ARE)
        self.query = quote(url.query, _AS_THEY_ARE)
        self.headers = [(name.lower(), value) for name, value in request.headers]
        names = {name for name, _ in self.headers}
        if "host" not in names:
            self.headers.insert(0, ("host", url.netloc.rpartition("@")[2]))
        whole = b"" if body is None else body if isinstance(body, bytes) else None
        if isinstance(body, bytes) and "content-length" not in names:
            self.headers.append(("content-length", str(len(body))))
        self.owner: object = None

        # Reentrant, as the garbage collector may close the client's half while the same thread holds it.
        self.changed = threading.Condition(threading.RLock())
        self._wakers: list[Callable[[], None]] = []
        self.left = False
        self._request: collections.deque[bytes | memoryview] = collections.deque([whole] if whole else [])
        self._request_bytes = len(whole or b"")
        self._request_complete = whole is not None
        self._upload_failure: BaseException | None = None

        self.trailers: CIMultiDict[str] = CIMultiDict()
        self._head: tuple[int, CIMultiDict[str]] | None = None
        self._answer: collections.deque[bytes] = collections.deque()
        self._answer_bytes = 0
        self._answer_left: int | None = None  # of a declared length
        self._answer_complete = False
        self._over = False
        self._failure: BaseException | None = None

    def wake(self, waker: Callable[[], None]) -> None:
        """Call ``waker`` once, at the next change, in the thread that makes it."""
        with self.changed:
            self._wakers.append(waker)

    def forget(self, waker: Callable[[], None]) -> None:
        """Do not call ``waker`` any more."""
        with self.changed:
            if waker in self._wakers:
                self._wakers.remove(waker)

    def notify(self) -> None:
        """Wake everybody who waits."""
        with self.changed:
            self.changed.notify_all()
            wakers, self._wakers = self._wakers, []
            for waker in wakers:
                waker()

    # For the client.

    def send_part(self, part: bytes) -> bool | Wait:
        """Send a part of the request. False when nobody will take it: the call is over."""
        if self.left or self._over or self._failure is not None:
            return False
        if self._request_bytes >= _BUFFER_BYTES:
            return WAIT
        if part:
            self._request.append(part)
            self._request_bytes += len(part)
            self.notify()
        return True

    def end_request(self) -> None:
        """All of the request has been sent."""
        with self.changed:
            self._request_complete = True
            self.notify()

    @property
    def uploaded(self) -> bool:
        """Whether all of the request has been sent."""
        return self._request_complete

    def fail_request(self, error: BaseException) -> None:
        """The request breaks off, which ends the call, unless its answer is complete. ``error`` is for the client."""
        with self.changed:
            if not self.left and not self._over:
                self._upload_failure = error
                self.leave()

    def take_head(self) -> tuple[int, CIMultiDict[str]] | Wait:
        """The status and the headers of the answer.

        Raises:
            BaseException: what the request broke off with, or what the app has failed with.
        """
        if self._upload_failure is not None:
            raise self._upload_failure
        if self._head is not None:
            return self._head
        self._check()
        return WAIT

    def take_chunk(self) -> bytes | Wait:
        """The next bytes of the answer; none at the end.

        Raises:
            BaseException: as ``take_head``.
        """
        if self._upload_failure is not None:
            raise self._upload_failure
        if self._answer:
            chunk = self._answer.popleft()
            self._answer_bytes -= len(chunk)
            self.notify()
            return chunk
        self._check()
        return b"" if self._over else WAIT

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.left:
            raise ConnectError(ConnectErrorCode.CANCELED, "the call was closed")

    def leave(self) -> None:
        """Take no more of the answer, and send no more of the request. Safe to call again, from any thread."""
        with self.changed:
            if not self.left:
                self.left = True
                self._request.clear()
                self._answer.clear()
                self.notify()

    def break_off(self) -> None:
        """Have both sides give up: the transport is closed. An answer that is complete can still be read."""
        with self.changed:
            if not self._over:
                if self._failure is None:
                    self._failure = ConnectError(ConnectErrorCode.UNAVAILABLE, "the transport was closed")
                self.leave()

    # For the app.

    @property
    def gone(self) -> bool:
        """Whether there is no client any more, as it has left or has its answer."""
        return self.left or self._answer_complete

    @property
    def request_over(self) -> bool:
        """Whether all of the request was taken."""
        return self._request_complete and not self._request

    def take_part(self, size: int | None = None) -> bytes | Wait:
        """The next bytes of the request, ``size`` of them at most; none at the end.

        Raises:
            ClientLeftError: there is no more to come.
        """
        if self.left:
            raise ClientLeftError
        if not self._request:
            return b"" if self._request_complete else WAIT
        part = self._request.popleft()
        if size is not None and len(part) > size:
            self._request.appendleft(memoryview(part)[size:])
            part = part[:size]
        self._request_bytes -= len(part)
        self.notify()
        return bytes(part)

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head of the answer.

        Raises:
            RuntimeError: it was sent already.
        """
        with self.changed:
            if self._head is not None:
                raise self.violation("the app has started its answer twice")
            self._head = status, CIMultiDict(headers)
            declared = self._head[1].get("content-length", "")
            if declared.isascii() and declared.isdigit() and status not in _BODILESS:
                self._answer_left = int(declared)
            self.notify()

    @property
    def started(self) -> bool:
        """Whether the head of the answer was sent."""
        return self._head is not None

    def send(self, part: bytes) -> bool | Wait:
        """Send a part of the answer's body. True when that is done.

        Raises:
            RuntimeError: there is nothing that it could be a part of.
            ClientLeftError: nobody will take it.
        """
        if self._head is None:
            raise self.violation("the app has sent a body before it has started its answer")
        if self._answer_complete:
            raise self.violation("the app has sent a body after the end of its answer")
        if self.left:
            raise ClientLeftError
        if self._answer_bytes >= _BUFFER_BYTES:
            return WAIT
        if self._answer_left is not None:
            self._answer_left -= len(part)
            if self._answer_left < 0:
                raise self.violation("the app has sent more than the Content-Length of its answer")
        if part:
            self._answer.append(part)
            self._answer_bytes += len(part)
            self.notify()
        return True

    def finish(self, trailers: HeaderList) -> None:
        """The answer has been sent, all of it. The client does not learn of it before ``release``.

        Raises:
            RuntimeError: a part of it is missing.
        """
        with self.changed:
            if self._answer_left and not self.left:
                raise self.violation("the app has sent less than the Content-Length of its answer")
            self.trailers.extend(trailers)
            self._answer_complete = True
            self.notify()

    def release(self) -> None:
        """Let the client see the end of its answer."""
        with self.changed:
            self._over = True
            self.notify()

    def fail(self, error: BaseException) -> None:
        """The app has raised something. When it is too late to tell the client, it is logged."""
        with self.changed:
            if isinstance(error, ClientLeftError) and self.left:
                return
            if self.left or self._over:
                import logging  # most processes never need it

                message = "the app has failed after its client had its answer, or had left"
                logging.getLogger("connectrpc.testing").error(message, exc_info=error)
            elif self._failure is None:  # else it is what has caused this one
                self._failure = _presentable(error)
                self.notify()

    def returned(self) -> None:
        """The app will do no more."""
        with self.changed:
            if not self._answer_complete and not self.left:
                complaint = "its answer was complete" if self.started else "it started an answer"
                self.violation(f"the app has returned before {complaint}")
            self.release()

    def violation(self, complaint: str) -> RuntimeError:
        """The app has broken its contract with the server: have the client fail. The error is for the app."""
        with self.changed:
            if self._failure is None:
                self._failure = RuntimeError(complaint)
                self.notify()
        return RuntimeError(complaint)


def _presentable(error: BaseException) -> BaseException:
    """An exception that can be raised at the client without being taken for something else there."""
    if isinstance(error, ConnectError | StopIteration | StopAsyncIteration) or (
        not isinstance(error, Exception | KeyboardInterrupt | SystemExit)
    ):
        failure = RuntimeError(f"the app has raised {error!r}")
        failure.__cause__ = error
        return failure
    return error
