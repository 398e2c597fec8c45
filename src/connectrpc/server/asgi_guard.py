"""What ends an ASGI call early: its deadline, or a client that went away.

A call runs in the server's own task. Either reason comes as a cancellation of that task, told from anybody else's by
``Guard``. It begins to watch when the handler first waits, so a handler that never does pays nothing for it.

What a handler raises as ``CancelledError`` though nobody has cancelled the task, such as that of another task it waits
for, is a failure of the handler. It would have servers end the call in ways of their own, or not at all.
"""

from __future__ import annotations

import asyncio
import sys
import time
import types
from typing import TYPE_CHECKING, Any

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server.asgi_request import ClientGoneError
from connectrpc.server.handlers import StrayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from connectrpc.deadline import Deadline
    from connectrpc.server.asgi_request import RequestBody

__all__ = ["Guard", "cancellations"]

# A caller's own clock ends the call at the deadline too, and servers write the head and the body of an answer one after
# the other. Of one that sets out at that very moment, the caller may take the head and not wait for the body.
_EXPIRE_AFTER_SECONDS = 0.005

# How long after the deadline a part of a stream may take that is being sent then. A client that does not take it has
# left, or need not be told of the deadline; and the handler is held up as long.
_SENDING_MAX_SECONDS = 2.0

# How long a handler may take to clean up that has read that its client has left.
_LEAVING_MAX_SECONDS = 2.0

# A stream whose messages are always there, and are always taken, would keep the loop to itself. Another call needs
# several turns of the loop, each of which may cost as much.
_TURN_SECONDS = 0.001

_NOT_BEGUN = object()
"""Not None: that is what bare yields give, such as those of ``asyncio.sleep(0)``."""


def cancellations() -> int:
    """How often the current task has been cancelled; 0 on Python 3.10, whose tasks do not count."""
    if sys.version_info >= (3, 11):
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()
    return 0


class Guard:
    """Cancels the server's task when the call's deadline passes or its client leaves.

    Args:
        deadline: the call's.
        body: the body of its request, which tells that the client leaves.

    Attributes:
        reason: what has ended the call, or None.
        sending: whether the task is giving a part of a stream to the server. The deadline does not cancel it there:
            half of the part may have gone out, and the client would take the end of the stream for the other half.
        waits: how often the task has waited.
    """

    __slots__ = (
        "_body",
        "_cancelled",
        "_cancelling",
        "_deadline",
        "_stopped",
        "_task",
        "_timer",
        "_turn",
        "_turn_ends",
        "reason",
        "sending",
        "waits",
    )

    def __init__(self, deadline: Deadline, body: RequestBody) -> None:
        self._deadline = deadline
        self._body = body
        self._stopped = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False  # whether we have cancelled the task
        self._cancelling = 0  # how often others have cancelled the task before, without taking it back
        self._timer: asyncio.TimerHandle | None = None
        self.reason: ConnectError | None = None
        self.sending = False
        self.waits = 0
        self._turn = -1  # what `waits` was when it began
        self._turn_ends = 0.0

    def run(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        """What ``awaitable`` gives. Everything is awaited in here, until ``stop``; then ``check``.

        Raises:
            ConnectError: ``deadline_exceeded``: the deadline has passed meanwhile.
            ClientGoneError: the client has left meanwhile.
            StrayError: what has been raised is no ``Exception``. A ``CancelledError`` that is nobody's is known for one
                from Python 3.11 on; before, only where nothing has waited.
        """
        return self.go_on(awaitable.__await__(), _NOT_BEGUN)

    @types.coroutine
    def go_on(self, steps: Generator[Any, Any, Any], pending: Any) -> Generator[Any, Any, Any]:
        """``run``, for something that has been begun.

        Args:
            steps: what its ``__await__`` gave.
            pending: what that waits for.
        """
        closing = False
        try:
            try:
                if pending is _NOT_BEGUN:
                    pending = next(steps)
                self._watch()
                while True:
                    try:
                        sent = yield pending
                    except BaseException as error:
                        closing = isinstance(error, GeneratorExit)
                        pending = steps.throw(error)
                    else:
                        self.waits += 1
                        pending = steps.send(sent)
            except StopIteration as done:
                result = done.value
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if closing and isinstance(error, GeneratorExit):
                raise
            if self.reason is None:
                cancelled = isinstance(error, asyncio.CancelledError) and self._cancelled_by_others()
                if isinstance(error, Exception) or cancelled:
                    raise
                raise StrayError(error)  # noqa: B904  it has it as its cause
            if self._take_back() and isinstance(error, asyncio.CancelledError):
                raise
        else:
            if self.reason is not None:
                self._take_back()
            return result
        # Not from in there: what was raised would be its context, and keep the call's frames.
        raise self.reason

    def check(self) -> None:
        """Raise if the call is over: a handler must not go on, whatever it caught.

        Raises:
            ConnectError: as ``run``.
            ClientGoneError: as ``run``.
        """
        if self.reason is not None:
            raise self.reason
        if self._body.gone:
            raise ClientGoneError

    def turn_is_over(self) -> bool:
        """Whether the task has gone on for so long without waiting that others should.

        It is a look at the clock: no need to ask where it has waited since the last message.
        """
        now = time.monotonic()
        begins = self._turn != self.waits
        if not begins and now <= self._turn_ends:
            return False
        self._turn = self.waits
        self._turn_ends = now + _TURN_SECONDS  # also where a task of the handler's own is to wait
        return not begins

    def _watch(self) -> None:
        """Begin to watch: something is being waited for."""
        if self._task is None:
            self._task = asyncio.current_task()
            self._cancelling = cancellations()
            left = self._deadline.remaining()
            if left is not None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(left + _EXPIRE_AFTER_SECONDS, self._expire)
            self._body.watch(self._leave)

    def stop(self) -> None:
        """Watch no longer: what is still to be done is done in any case."""
        self._stopped = True
        self.reason = self._task = None  # which have, or may end with, what has frames that have this
        if self._timer is not None:
            self._timer.cancel()
        self._body.stop_watching()

    def _expire(self) -> None:
        reason = ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
        if not self.sending:
            self._fire(reason)
        elif not self._cancelled and not self._stopped:
            self.reason = reason
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_SENDING_MAX_SECONDS, self._fire, ClientGoneError())

    def _leave(self) -> None:
        reason = ClientGoneError()
        if asyncio.current_task() is not self._task:
            self._fire(reason)
        elif self.reason is None and not self._stopped:
            # It learns of that where it reads, cleans up, and ends. If not, its next message ends it, or this.
            self.reason = reason
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(_LEAVING_MAX_SECONDS, self._fire, reason)

    def _fire(self, reason: ConnectError) -> None:
        if self._task is not None and not self._cancelled and not self._stopped:
            self.reason = reason
            self._cancelled = True
            self._task.cancel()

    def _take_back(self) -> bool:
        """Take our cancellation of the task back; whether somebody else has cancelled it too."""
        if sys.version_info >= (3, 11) and self._cancelled:
            assert self._task is not None
            self._task.uncancel()
        return self._cancelled_by_others()

    def _cancelled_by_others(self) -> bool:
        if self._task is None:  # nothing has waited, and so nothing could be cancelled
            return False
        return cancellations() > self._cancelling if sys.version_info >= (3, 11) else self.reason is None
