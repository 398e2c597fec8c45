"""Cancelling a synchronous call from another thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CancelToken"]


class CancelToken:
    """Give it to calls as ``cancel=``; ``cancel()``, from any thread, ends them at once with ``canceled``.

    One token may be given to any number of calls, one after another or at the same time. Calls that begin after it
    was cancelled fail before they send anything.
    """

    __slots__ = ("_callbacks", "_canceled", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection may come back while it is held
        self._canceled = False
        self._callbacks: dict[object, Callable[[], None]] = {}

    @property
    def canceled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._canceled

    def cancel(self) -> None:
        """Cancel every call that has the token. Safe to call again, and from any thread."""
        with self._lock:
            self._canceled = True
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    def on_cancel(self, key: object, callback: Callable[[], None]) -> None:
        """For transports: have ``callback`` called, in the thread that cancels; at once when that has happened.

        Args:
            key: what ``forget`` will name it by; anything hashable.
            callback: must not block or raise.
        """
        with self._lock:
            if not self._canceled:
                self._callbacks[key] = callback
                return
        callback()

    def forget(self, key: object) -> None:
        """For transports: take a callback back. It may still be running in another thread."""
        with self._lock:
            self._callbacks.pop(key, None)
