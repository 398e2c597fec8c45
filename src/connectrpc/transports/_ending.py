"""What can end a call that blocks, whatever the HTTP library."""

from __future__ import annotations

import abc
import time
from typing import TYPE_CHECKING

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc.cancel import CancelToken
    from connectrpc.deadline import Deadline

__all__ = ["LONGEST_WAIT", "Ending"]

LONGEST_WAIT = 3600.0  # locks have a limit of their own, which is only weeks on some systems

_CANCELED = (ConnectErrorCode.CANCELED, "the call was canceled")
_CLOSED = (ConnectErrorCode.CANCELED, "the stream was closed")
_LATE = (ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
_NOT_OPENED = (ConnectErrorCode.DEADLINE_EXCEEDED, "the stream was not opened in time")


class Ending(abc.ABC):
    """What can end one call: its deadlines, its token, closing its stream.

    A transport adds how the thread that is blocked in the call is woken. Used by the thread whose call it is, but for
    ``cancel`` and ``interrupt``.

    Attributes:
        opening: the deadline of what is being done now: the call's own, once its answer has begun.
    """

    __slots__ = ("_deadline", "_reason", "_token", "opening")

    def __init__(self, deadline: Deadline, opening: Deadline, token: CancelToken | None) -> None:
        self._deadline = deadline
        self.opening = opening
        self._token = token
        self._reason: tuple[ConnectErrorCode, str] | None = None

    def heed_token(self) -> None:
        """Have the token end the call, at once when it was cancelled already."""
        if self._token is not None:
            self._token.on_cancel(self, self.cancel)

    def reason(self) -> ConnectError | None:
        """Why the call has to end, or None."""
        if self._reason is None:
            expires_at = self.opening.expires_at
            if expires_at is None or time.monotonic() < expires_at:
                return None
            self._reason = _LATE if self._deadline.expired() else _NOT_OPENED
        return ConnectError(*self._reason)

    def check(self) -> None:
        """Raise when the call has to end."""
        if self._reason is None and self.opening.expires_at is None:
            return
        reason = self.reason()
        if reason is not None:
            raise reason

    def late(self) -> ConnectError:
        """What it is to the caller that the time is up for what is being done now."""
        return ConnectError(*(_LATE if self.opening is self._deadline else _NOT_OPENED))

    def cancel(self) -> None:
        """End the call, as its token was cancelled. From any thread."""
        self._stop(_CANCELED)

    def interrupt(self) -> None:
        """End the call, as its stream was closed. From any thread."""
        self._stop(_CLOSED)

    @abc.abstractmethod
    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        """Note the reason, unless there is one, and wake the thread that is blocked in the call."""

    def finish(self) -> None:
        """The call is over: nothing can stop it any more."""
        if self._token is not None:
            self._token.forget(self)
