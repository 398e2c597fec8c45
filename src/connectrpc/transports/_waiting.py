"""Waiting for something that blocks, so that the wait can be left."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from connectrpc._core.chain import close_messages
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import LONGEST_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Helper", "Waiting", "Wakeup", "close_parts", "end_parts", "start_thread"]

T = TypeVar("T")
ThreadT = TypeVar("ThreadT", bound=threading.Thread)

_logger = logging.getLogger("connectrpc.client")

_IDLE_SECONDS = 30.0


def start_thread(thread: ThreadT) -> ThreadT:
    """Start a thread that a call needs.

    Raises:
        ConnectError: ``resource_exhausted``: the system has none to give, or the interpreter is ending.
    """
    try:
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is ending")  # start() would wait for the thread for ever
        thread.start()
    except RuntimeError as error:
        raise ConnectError(ConnectErrorCode.RESOURCE_EXHAUSTED, "no thread can be started for the call") from error
    return thread


class Wakeup:
    """Lets a thread wait until another wakes it.

    ``wake`` may come in the midst of ``wait`` in the same thread: by a signal handler, or by the garbage collector that
    closes a forgotten stream. A ``threading.Event`` would wait for itself there.
    """

    __slots__ = ("_asleep",)

    def __init__(self) -> None:
        self._asleep = threading.Lock()  # held but from a wake-up to the end of the wait that it is for
        self._asleep.acquire()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until ``wake`` is called, or was since the last wait, or so many seconds have passed, or an hour."""
        self._asleep.acquire(timeout=LONGEST_WAIT if timeout is None else max(0.0, min(timeout, LONGEST_WAIT)))

    def wake(self) -> None:
        """End the wait, or else the next one. From any thread."""
        if self._asleep.locked():
            with contextlib.suppress(RuntimeError):  # another thread has just done it
                self._asleep.release()


class Helper(threading.Thread):
    """A thread that does one thing after another, and ends when nobody has had any for it for a while."""

    _idle: ClassVar[list[Helper]] = []

    def __init__(self) -> None:
        # A daemon: the process may end while it waits.
        super().__init__(name="connectrpc-waiting", daemon=True)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    @classmethod
    def start_task(cls, task: Callable[[], None]) -> None:
        """Run ``task``, which does not raise, in whichever thread is free. From any thread.

        Raises:
            ConnectError: ``resource_exhausted``: there is none, and none can be started.
        """
        try:
            helper = cls._idle.pop()
        except IndexError:
            helper = start_thread(cls())
        helper._tasks.put(task)

    def run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                try:
                    self._idle.remove(self)
                except ValueError:
                    continue  # it has just been taken
                return
            task()
            del task
            self._idle.append(self)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Helper._idle.clear)  # they have stayed in the parent


def end_parts(context: contextvars.Context, parts: Iterator[bytes]) -> None:
    """End a generator that was read in another thread, in that thread, with the caller's context variables."""
    try:
        context.run(close_parts, parts)
    except BaseException:  # there is nobody whom it could reach
        _logger.exception("a request iterator failed while it was closed")


def close_parts(parts: Iterator[bytes]) -> None:
    """End a generator where it was read. What it raises is logged, as the call has its outcome.

    It may also be running, in another call that was given it too.

    Raises:
        BaseException: it is no failure of the generator's, such as KeyboardInterrupt.
    """
    try:
        close_messages(parts)
    except Exception:
        _logger.exception("a request iterator failed while it was closed")


class Waiting(Generic[T]):
    """Something that blocks, done in another thread, with the context variables of the one that waits for it.

    Args:
        begin: what blocks.
        drop: what becomes of its result when nobody waits for it any more. It is called in whichever thread is last,
            and must not raise.
    """

    def __init__(self, begin: Callable[[], T], drop: Callable[[T], object]) -> None:
        self._begin = begin
        self._drop = drop
        self._lock = threading.Lock()
        self._woken = Wakeup()
        self._done = False
        self._left = False
        self._result: T | None = None
        self._error: BaseException | None = None
        Helper.start_task(functools.partial(contextvars.copy_context().run, self._run))

    def _run(self) -> None:
        try:
            self._result = self._begin()
        except BaseException as error:
            self._error = error
        with self._lock:
            self._done = True
            left = self._left
        if left:
            self._drop_result()
        self._woken.wake()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done, or ``wake`` is called, or so many seconds have passed; whether it is done."""
        if not self._done:
            self._woken.wait(timeout)
        return self._done

    def wake(self) -> None:
        """End the wait. From any thread."""
        self._woken.wake()

    def leave(self) -> None:
        """Nobody wants the result any more."""
        with self._lock:
            self._left = True
            done = self._done
        if done:
            self._drop_result()

    def result(self) -> T:
        """What it gave, or what it raised, when it is done."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _drop_result(self) -> None:
        if self._error is None:
            self._drop(self._result)  # type: ignore[arg-type]
