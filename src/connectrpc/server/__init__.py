"""The server side: what handlers take and give, and the applications that serve them.

The applications load when they are first used, so that code which only calls services does not pay for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream, Peer, ServerResponse, ServerStream

if TYPE_CHECKING:
    from connectrpc.server.asgi import ASGIApplication, asgi_app, asgi_service
    from connectrpc.server.options import ServiceOptions
    from connectrpc.server.wsgi import WSGIApplication, wsgi_app, wsgi_service

__all__ = [
    "ASGIApplication",
    "AsyncClientStream",
    "ClientRequest",
    "ClientStream",
    "Peer",
    "ServerResponse",
    "ServerStream",
    "ServiceOptions",
    "WSGIApplication",
    "asgi_app",
    "asgi_service",
    "wsgi_app",
    "wsgi_service",
]

_LAZY = {
    "ASGIApplication": "asgi",
    "ServiceOptions": "options",
    "WSGIApplication": "wsgi",
    "asgi_app": "asgi",
    "asgi_service": "asgi",
    "wsgi_app": "wsgi",
    "wsgi_service": "wsgi",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
