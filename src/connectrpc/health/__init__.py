"""Health checking, ``grpc.health.v1``: tells load balancers and orchestrators whether services want to be called.

An app holds one ``Health``, says there how its services are, and mounts it beside them::

    health = Health({"greet.v1.GreetService": ServingStatus.SERVING})
    app = asgi_app(asgi_greet_service(Greeter()), asgi_health(health))
    ...
    health.set("greet.v1.GreetService", ServingStatus.NOT_SERVING)

It needs nothing of grpcio, and does not disturb it in the same process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc.health._messages import HEALTH_SERVICE_PATH_PREFIX
from connectrpc.health.status import Health, ServingStatus

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from connectrpc.server import ASGIApplication, ServiceOptions, WSGIApplication

__all__ = ["HEALTH_SERVICE_PATH_PREFIX", "Health", "ServingStatus", "asgi_health", "wsgi_health"]


def wsgi_health(
    health: Health,
    *,
    max_watchers: int = 2,
    repeat_seconds: float | None = 30.0,
    **options: Unpack[ServiceOptions],
) -> WSGIApplication:
    """The health service as a WSGI app, to go into ``wsgi_app`` beside others.

    Each process of a server has statuses of its own.

    Args:
        health: the statuses.
        max_watchers: how many ``Watch`` calls may run at once. Each keeps one of the server's threads, so there have
            to be fewer of them than threads. One more is answered with ``resource_exhausted``.
        repeat_seconds: after how many seconds without a change a watcher is sent the same status again, since only
            by sending does a WSGI server find out that a client has left; None for never.
        **options: see ``ServiceOptions``. ``max_timeout_seconds`` also bounds how long one ``Watch`` lasts.

    Raises:
        ValueError: a bound or an option has a value that makes no sense.
        TypeError: an option is unknown.
    """
    from connectrpc.health.wsgi import health_app

    return health_app(health, max_watchers, repeat_seconds, options)


def asgi_health(health: Health, **options: Unpack[ServiceOptions]) -> ASGIApplication:
    """The health service as an ASGI app, to go into ``asgi_app`` beside others.

    Each process of a server has statuses of its own. A watcher costs no thread; statuses may be set in any.

    Args:
        health: the statuses.
        **options: see ``ServiceOptions``. ``max_timeout_seconds`` also bounds how long one ``Watch`` lasts.

    Raises:
        ValueError: an option has a value that makes no sense.
        TypeError: an option is unknown.
    """
    from connectrpc.health.asgi import health_app

    return health_app(health, options)
