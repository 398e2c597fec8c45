"""The services of ``service`` and ``service_asgi`` in other applications than these.

Mounted at many places: ``wsgi``, ``asgi`` and, where Starlette is installed, ``starlette_app``. Made when the server
starts: ``lived``. Synchronous, in threads: ``threaded`` and ``wsgi_threaded``, and in a single one: ``one_thread``.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from connectrpc.server import InThreads, asgi_app, wsgi_app

from integration_pb2_connect import (
    asgi_other_service,
    asgi_probe_service,
    wsgi_other_service,
    wsgi_probe_service,
)
from service import Other
from service import probe as wsgi_probe
from service_asgi import AsyncOther
from service_asgi import probe as asgi_probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

__all__ = ["asgi", "lived", "one_thread", "starlette_app", "threaded", "wsgi", "wsgi_threaded"]

_asgi_both = asgi_app(asgi_probe_service(asgi_probe), asgi_other_service(AsyncOther()))
_wsgi_both = wsgi_app(wsgi_probe_service(wsgi_probe), wsgi_other_service(Other()))


def _with_hello(app: Any) -> Any:
    """The app, and whatever ends in ``/hello``."""

    async def with_hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope.get("path", "").endswith("/hello"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"hello"})
        else:
            await app(scope, receive, send)

    return with_hello


async def _made() -> AsyncIterator[Any]:
    print("the implementation is made", flush=True)
    if os.environ.get("LIFESPAN") == "fails":
        raise ValueError("it cannot be made")
    yield asgi_probe
    print("the implementation is taken down", flush=True)


asgi = _with_hello(_asgi_both)
lived = _with_hello(asgi_probe_service(_made))
threaded = _with_hello(asgi_probe_service(InThreads(wsgi_probe)))
one_thread = _with_hello(asgi_probe_service(InThreads(wsgi_probe, max_threads=1)))


_wsgi_threads = wsgi_probe_service(InThreads(wsgi_probe))


def wsgi_threaded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The service in threads, and ``/hello``."""
    if environ.get("PATH_INFO") == "/hello":
        start_response("200 OK", [("content-length", "5")])
        return [b"hello"]
    return _wsgi_threads(environ, start_response)


_MOUNTS = {
    "/api": _wsgi_both,
    "/api/v2": wsgi_probe_service(wsgi_probe),
    "/one/two/three": wsgi_other_service(Other()),
    "/below": wsgi_probe_service(wsgi_probe, prefix="/v1"),
}


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A dispatcher as frameworks have it: the mount with the most segments that the path begins with."""
    path = environ.get("PATH_INFO", "")
    if path.endswith("/hello"):
        start_response("200 OK", [("content-length", "5")])
        return [b"hello"]
    mount, rest = path, ""
    while mount not in _MOUNTS and "/" in mount:
        mount, _, last = mount.rpartition("/")
        rest = f"/{last}{rest}"
    service = _MOUNTS.get(mount, _wsgi_both)
    if mount in _MOUNTS:
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + mount
        environ["PATH_INFO"] = rest
    return service(environ, start_response)


def _starlette() -> Any:
    try:
        applications, base, middleware, responses, routing = (
            importlib.import_module(f"starlette.{name}")
            for name in ("applications", "middleware.base", "middleware", "responses", "routing")
        )
    except ImportError:
        return None  # and nobody asks for it

    async def hello(request: Any) -> Any:
        return responses.PlainTextResponse("hello")

    async def wrap(request: Any, call_next: Any) -> Any:
        """Does nothing much, but stands between the server and us with a ``receive`` and a ``send`` of its own."""
        response = await call_next(request)
        response.headers["x-wrapped"] = "1"
        return response

    wrapper = middleware.Middleware(base.BaseHTTPMiddleware, dispatch=wrap)
    mount = routing.Mount
    return applications.Starlette(
        routes=[
            routing.Route("/hello", hello),
            mount("/api", _asgi_both),
            mount("/one", routes=[mount("/two", routes=[mount("/three", _asgi_both)])]),
            mount("/tenants/{tenant}", _asgi_both),
            mount("/below", asgi_probe_service(asgi_probe, prefix="/v1")),
            mount("/wrapped", _asgi_both, middleware=[wrapper]),
            mount("/", asgi_other_service(AsyncOther())),
        ]
    )


starlette_app = _starlette()
