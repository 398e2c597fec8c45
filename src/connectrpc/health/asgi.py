"""The health service in event loops. A watcher belongs to the loop that it was begun in; there may be several."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from connectrpc.health._messages import SERVICE, HealthCheckResponse, check, list_statuses, watched
from connectrpc.server.asgi import asgi_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from connectrpc.health.status import Health, ServingStatus
    from connectrpc.request import ClientRequest
    from connectrpc.server.asgi import ASGIApplication
    from connectrpc.server.options import ServiceOptions

__all__ = ["health_app"]


def health_app(health: Health, options: ServiceOptions) -> ASGIApplication:
    """See ``connectrpc.health.asgi_health``."""
    return asgi_service(SERVICE, _Service(health), **options)


class _Service:
    def __init__(self, health: Health) -> None:
        self._health = health

    async def check(self, req: ClientRequest[Any]) -> Any:
        return check(self._health, req.msg.service)

    async def list(self, req: ClientRequest[Any]) -> Any:  # noqa: ARG002
        return list_statuses(self._health)

    async def watch(self, req: ClientRequest[Any]) -> AsyncIterator[Any]:
        service = req.msg.service
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and has left its watchers behind
                loop.call_soon_threadsafe(changed.set)

        with self._health.watching(service, wake):
            sent: ServingStatus | None = None
            while True:
                changed.clear()  # before looking, so that no change is lost
                status = watched(self._health, service)
                if status is not sent:
                    yield HealthCheckResponse(status=status)
                    sent = status
                await changed.wait()
