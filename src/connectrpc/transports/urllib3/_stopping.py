"""What ends calls: guards, which shut their sockets down, and the watchdog, which keeps their deadlines.

The variables of the module that a fork makes anew are only to be had from the module, and not to be imported.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from connectrpc.errors import ConnectError
from connectrpc.transports._ending import LONGEST_WAIT, Ending
from connectrpc.transports._waiting import start_thread

if TYPE_CHECKING:
    from urllib3.util.ssltransport import SSLTransport

    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline
    from connectrpc.errors import ConnectErrorCode
    from connectrpc.transports.urllib3._pool import Owned, Timeouts

__all__ = ["Guard", "calls", "changes", "generation", "owners"]

generation = 0
"""How many forks lie between this process and the one that imported the module."""

calls = threading.local()
"""The guard of the call that the thread is sending."""

owners = threading.RLock()
"""Held while a connection changes its owner, and while a guard shuts a socket down. So a guard never hits a connection
that has gone on to another call. Reentrant, as all locks of ours are: the garbage collector may close a stream that was
left lying about while the same thread holds one."""


changes = threading.RLock()
"""Held while a pool, which several transports may have, is adopted, and while a transport starts over after a fork."""


class Guard(Ending):
    """What can end one call, by shutting its socket down."""

    __slots__ = ("_finished", "_generation", "connection", "socket", "stopped", "timeouts")

    def __init__(self, deadline: Deadline, opening: Deadline, cancel: CancelToken | None) -> None:
        super().__init__(deadline, opening, cancel)
        self._finished = False
        self._generation = generation
        self.connection: Owned | None = None
        self.socket: socket.socket | SSLTransport | None = None
        self.stopped: socket.socket | SSLTransport | None = None
        self.timeouts: Timeouts | None = None
        try:
            self.heed_token()
            self.check()
            if deadline.expires_at is not None:
                watchdog.watch(self, deadline.expires_at)
            if opening.expires_at is not None and opening is not deadline:
                watchdog.watch(self, opening.expires_at)
        except ConnectError:
            self.finish()
            raise

    @property
    def finished(self) -> bool:
        return self._finished

    def expire(self) -> None:
        """Stop the call if its time is up. By the watchdog."""
        with owners:
            if self._reason is None and not self._finished and self.reason() is not None:
                self._shut_down()

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        with owners:
            if self._reason is None and not self._finished:
                self._reason = reason
                self._shut_down()

    def _shut_down(self) -> None:
        """Wake the thread that is blocked in the call, if it is."""
        # In a child process the socket is the parent's: shutting it down here would end the call there.
        if self.socket is None or self.connection is None or self._generation != generation:
            return
        if self.connection.owner is self:
            self.stopped = self.socket
            # What stands for one of Python's has that: urllib3's own for TLS in a proxy's TLS, and for pyOpenSSL.
            sock: Any = getattr(self.socket, "socket", self.socket)
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would drop the TLS state under the other thread's hands.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def finish(self) -> None:
        with owners:
            self._finished = True
            self.socket = self.connection = None
        super().finish()
        if self._deadline.expires_at is not None:
            watchdog.forget()


_BEARABLE = 1000  # so many guards that are over may stay in the watchdog's heap, or as many as there are others


class _Watchdog:
    """One thread for the deadlines of all calls, started with the first of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, Guard]] = []
        self._serial = 0
        self._over = 0
        self._bearable = _BEARABLE
        self._thread: threading.Thread | None = None

    def watch(self, guard: Guard, expires_at: float) -> None:
        with self._changed:
            self._serial += 1
            heapq.heappush(self._heap, (expires_at, self._serial, guard))
            if self._thread is None:
                self._thread = start_thread(
                    threading.Thread(target=self._run, name="connectrpc-deadlines", daemon=True)
                )
            elif self._heap[0][2] is guard:
                self._changed.notify()

    def forget(self) -> None:
        """Some guard is finished. Entries leave the heap when they are due, or when most of it is such.

        They are taken out by the watchdog's thread alone, and never here: the garbage collector may come by here while
        this very thread is at work on the heap.
        """
        self._over += 1
        if self._over > self._bearable:
            with self._changed:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._over > self._bearable:
                    self._heap = [entry for entry in self._heap if not entry[2].finished]
                    heapq.heapify(self._heap)
                    self._over, self._bearable = 0, max(_BEARABLE, len(self._heap))
                while self._heap and self._heap[0][2].finished:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._changed.wait()
                    continue
                left = self._heap[0][0] - time.monotonic()
                if left > 0:
                    self._changed.wait(min(left, LONGEST_WAIT))
                    continue
                guard = heapq.heappop(self._heap)[2]
            guard.expire()


watchdog = _Watchdog()


def _start_over_after_fork() -> None:
    # The child has neither the watchdog's thread nor those that may have held the locks.
    global changes, generation, owners, watchdog
    generation += 1
    changes = threading.RLock()
    owners = threading.RLock()
    watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_after_fork)
