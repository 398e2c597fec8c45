"""How services are, and who wants to be told when that changes."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Health", "ServingStatus"]


class ServingStatus(enum.IntEnum):
    """How a service is; the numbers are those of ``grpc.health.v1.HealthCheckResponse.ServingStatus``."""

    UNKNOWN = 0
    """Nobody can tell."""

    SERVING = 1
    """It may be called."""

    NOT_SERVING = 2
    """It wants not to be called."""

    SERVICE_UNKNOWN = 3
    """What watchers are sent of a service that has no status. It cannot be set."""


class Health:
    """The statuses of services by their full names. The one named ``""`` is the server's as a whole.

    Any thread and any task may use it, and so may a signal's handler: it takes no locks, and nothing in it waits.

    Args:
        statuses: the first statuses. Unless it says otherwise, the server as a whole is ``SERVING``.

    Raises:
        ValueError: as ``set``.
    """

    # Each step below is one operation on a dictionary, which no other thread can come into.

    def __init__(self, statuses: Mapping[str, ServingStatus] | None = None) -> None:
        self._statuses = {"": ServingStatus.SERVING}
        for service, status in (statuses or {}).items():
            self._statuses[service] = _settable(status)
        self._shut_down = False
        self._watchers: dict[object, tuple[str, Callable[[], object]]] = {}

    def set(self, service: str, status: ServingStatus) -> None:
        """Set the status of a service and wake who watches it. After ``shutdown`` it takes effect with ``resume``.

        Args:
            service: its full name, such as ``"greet.v1.GreetService"``, or ``""``.
            status: the status.

        Raises:
            ValueError: ``SERVICE_UNKNOWN``, or no status at all.
        """
        self._statuses[service] = _settable(status)
        self._wake(service)

    def remove(self, service: str) -> None:
        """Forget a service, if it is known: it is answered as one that nobody has heard of."""
        self._statuses.pop(service, None)
        self._wake(service)

    def get(self, service: str = "") -> ServingStatus | None:
        """The status that callers are told; None for a service that has none."""
        status = self._statuses.get(service)
        return ServingStatus.NOT_SERVING if self._shut_down and status is not None else status

    def statuses(self) -> dict[str, ServingStatus]:
        """The statuses of all services that callers are told; a copy."""
        statuses = self._statuses.copy()
        return dict.fromkeys(statuses, ServingStatus.NOT_SERVING) if self._shut_down else statuses

    def shutdown(self) -> None:
        """From now on all services are ``NOT_SERVING``, whatever is set: callers shall go elsewhere.

        Call it some time before the server stops, so that callers have the time to. Watchers go on watching.
        """
        self._shut_down = True
        self._wake()

    def resume(self) -> None:
        """Undo ``shutdown``: the services have the statuses again that were set for them, before it or since."""
        self._shut_down = False
        self._wake()

    @contextlib.contextmanager
    def watching(self, service: str, wake: Callable[[], object]) -> Iterator[None]:
        """While it is entered, ``wake`` is called after every change to a service, and perhaps without one.

        Args:
            service: its full name; it need not be known yet.
            wake: called in the thread that changes the status. It must neither wait nor raise.
        """
        watcher = object()
        self._watchers[watcher] = service, wake
        try:
            yield
        finally:
            del self._watchers[watcher]

    def _wake(self, changed: str | None = None) -> None:
        for service, wake in self._watchers.copy().values():
            if changed is None or service == changed:
                wake()


def _settable(status: int) -> ServingStatus:
    status = ServingStatus(status)
    if status is ServingStatus.SERVICE_UNKNOWN:
        raise ValueError("SERVICE_UNKNOWN cannot be set: remove the service")
    return status
