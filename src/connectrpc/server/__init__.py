"""The server side: what handlers take and give, and the applications that serve them.

Everything loads when it is first used, so that importing generated code costs no more than it has to: a client of a
service imports its server's half too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from connectrpc.request import (
        AsyncClientStream,
        ClientRequest,
        ClientStream,
        Peer,
        ServerResponse,
        ServerStream,
    )
    from connectrpc.server.asgi import ASGIApplication, asgi_app, asgi_service
    from connectrpc.server.implementations import ASGIImplementation, WSGIImplementation
    from connectrpc.server.options import ServiceOptions
    from connectrpc.server.threads import InThreads
    from connectrpc.server.wsgi import WSGIApplication, wsgi_app, wsgi_service

__all__ = [
    "ASGIApplication",
    "ASGIImplementation",
    "AsyncClientStream",
    "ClientRequest",
    "ClientStream",
    "InThreads",
    "Peer",
    "ServerResponse",
    "ServerStream",
    "ServiceOptions",
    "WSGIApplication",
    "WSGIImplementation",
    "asgi_app",
    "asgi_service",
    "wsgi_app",
    "wsgi_service",
]

_HOMES = {
    "ASGIApplication": "connectrpc.server.asgi",
    "ASGIImplementation": "connectrpc.server.implementations",
    "AsyncClientStream": "connectrpc.request",
    "ClientRequest": "connectrpc.request",
    "ClientStream": "connectrpc.request",
    "InThreads": "connectrpc.server.threads",
    "Peer": "connectrpc.request",
    "ServerResponse": "connectrpc.request",
    "ServerStream": "connectrpc.request",
    "ServiceOptions": "connectrpc.server.options",
    "WSGIApplication": "connectrpc.server.wsgi",
    "WSGIImplementation": "connectrpc.server.implementations",
    "asgi_app": "connectrpc.server.asgi",
    "asgi_service": "connectrpc.server.asgi",
    "wsgi_app": "connectrpc.server.wsgi",
    "wsgi_service": "connectrpc.server.wsgi",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
