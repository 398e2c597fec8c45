"""The health service in threads."""

from __future__ import annotations

import functools
import queue
import threading
from typing import TYPE_CHECKING, Any

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.health._messages import SERVICE, HealthCheckResponse, check, list_statuses, watched
from connectrpc.server.wsgi import wsgi_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc.health.status import Health, ServingStatus
    from connectrpc.request import ClientRequest
    from connectrpc.server.options import ServiceOptions
    from connectrpc.server.wsgi import WSGIApplication

__all__ = ["health_app"]


def health_app(
    health: Health, max_watchers: int, repeat_seconds: float | None, options: ServiceOptions
) -> WSGIApplication:
    """See ``connectrpc.health.wsgi_health``."""
    if max_watchers < 0:
        raise ValueError("max_watchers must not be negative")
    if repeat_seconds is not None and not 0 < repeat_seconds <= threading.TIMEOUT_MAX:
        raise ValueError("repeat_seconds must be a positive number of seconds, or None")
    return wsgi_service(SERVICE, _Service(health, max_watchers, repeat_seconds), **options)


class _Service:
    def __init__(self, health: Health, max_watchers: int, repeat_seconds: float | None) -> None:
        self._health = health
        self._max_watchers = max_watchers
        self._repeat_seconds = repeat_seconds
        self._free = threading.Semaphore(max_watchers)

    def check(self, req: ClientRequest[Any]) -> Any:
        return check(self._health, req.msg.service)

    def list(self, req: ClientRequest[Any]) -> Any:  # noqa: ARG002
        return list_statuses(self._health)

    def watch(self, req: ClientRequest[Any]) -> Iterator[Any]:
        # Taken here and not before the generator: one that never starts would never give it back.
        if not self._free.acquire(blocking=False):
            raise ConnectError(
                ConnectErrorCode.RESOURCE_EXHAUSTED,
                f"{self._max_watchers} callers watch already, and each takes a thread",
            )
        try:
            yield from self._watch(req)
        finally:
            self._free.release()

    def _watch(self, req: ClientRequest[Any]) -> Iterator[Any]:
        service = req.msg.service
        changes: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal's handler may put something in
        with self._health.watching(service, functools.partial(changes.put, None)):
            sent: ServingStatus | None = None
            while not req.timeout.expired():  # that it has, the app tells the caller
                status = watched(self._health, service)
                if status is not sent:
                    yield HealthCheckResponse(status=status)
                    sent = status
                patience = self._patience(req.timeout.remaining())
                try:
                    changes.get(timeout=patience)
                except queue.Empty:
                    if patience == self._repeat_seconds:
                        sent = None

    def _patience(self, remaining: float | None) -> float | None:
        """How many seconds to wait for a change."""
        if remaining is None:
            return self._repeat_seconds
        patience = threading.TIMEOUT_MAX if self._repeat_seconds is None else self._repeat_seconds
        return min(remaining, patience)
