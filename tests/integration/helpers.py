"""What several of the test modules need: servers that misbehave in known ways, waiting, and counting sockets."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from typing_extensions import Self

from integration_pb2 import EchoRequest, EchoResponse
from rawhttp import HOST, RawServer, response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rawhttp import Peer

__all__ = [
    "PROTO",
    "STREAM",
    "STREAM_HEAD",
    "Background",
    "Usage",
    "answering",
    "black_hole",
    "count_sockets",
    "echo_all",
    "good_answer",
    "settles",
]

PROTO = {"content-type": "application/proto"}
STREAM = {"content-type": "application/connect+proto"}

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\ntransfer-encoding: chunked\r\n\r\n"
"""How a streamed answer begins."""

T = TypeVar("T")


def good_answer(body: bytes = b"") -> bytes:
    """The answer to ``echo`` with this request's bytes."""
    return response(200, PROTO, EchoResponse(request=EchoRequest.FromString(body)).SerializeToString())


def echo_all(peer: Peer) -> None:
    """Answer ``echo`` after ``echo`` on one connection."""
    while (request := peer.read()) is not None:
        peer.send(good_answer(request.body))


def answering(*answers: bytes) -> RawServer:
    """A server that gives its first requests these answers, whatever they are, and from then on echoes."""
    left = list(answers)
    lock = threading.Lock()

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            with lock:
                answer = left.pop(0) if left else None
            peer.send(good_answer(request.body) if answer is None else answer)

    return RawServer(script)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port where connecting neither succeeds nor fails: whoever listens there has no room for more."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        while True:
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((HOST, port))
            if not select.select([], [sock], [], 0.1)[1]:
                yield port
                return


class Background(Generic[T]):
    """A call in another thread.

    Args:
        call: what to do there.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: T | None = None
        self._error: BaseException | None = None
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        self.ended_at = time.monotonic()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, within: float = 10.0) -> T:
        """What the call gives, or raises, ``within`` seconds."""
        self._thread.join(within)
        if self._thread.is_alive():
            frame = sys._current_frames().get(self._thread.ident or 0)
            raise AssertionError(f"still running after {within} s:\n{''.join(traceback.format_stack(frame))}")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def settles(condition: Callable[[], bool], within: float = 3.0) -> bool:
    """Whether something becomes true ``within`` seconds."""
    until = time.monotonic() + within
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def count_sockets() -> int:
    """The sockets that this process has open."""
    gc.collect()
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing itself
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return found


class Usage(NamedTuple):
    """What this process holds."""

    sockets: int
    objects: int
    kilobytes: int

    @classmethod
    def now(cls) -> Self:
        sockets = count_sockets()
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return cls(sockets, len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE") // 1024)
