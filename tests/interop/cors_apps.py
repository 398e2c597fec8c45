"""What servers serve to the browser: the integration tests' service with CORS around it, as users would set it up.

``cors_apps:wsgi_app`` has a middleware of its own, since WSGI has no usual one; ``cors_apps:asgi_app`` has Starlette's.
The variable ``ORIGIN`` of the environment is the one origin that is let in.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from starlette.middleware.cors import CORSMiddleware

from connectrpc import cors
from connectrpc.server import ClientRequest, ServerResponse

import service
import service_asgi
from integration_pb2 import EchoRequest, EchoResponse
from integration_pb2_connect import asgi_probe_service, wsgi_probe_service
from service import echo, noted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["asgi_app", "wsgi_app"]

ORIGIN = os.environ["ORIGIN"]

ALLOW_HEADERS = [*cors.ALLOW_HEADERS, "X-Text", "X-Data-Bin"]
EXPOSE_HEADERS = [*cors.EXPOSE_HEADERS, "X-Head", "Trailer-X-Tail"]
MAX_AGE_SECONDS = 600

PROBE = "/integration.v1.ProbeService/"
CLOSED = "/closed/"
"""What is below this path has no CORS."""


class Probe(service.Probe):
    """``service.Probe``, but that an answer to ``look`` may be kept for a minute."""

    def look(self, req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
        return _look(req)


class AsyncProbe(service_asgi.AsyncProbe):
    """``service_asgi.AsyncProbe``, likewise."""

    async def look(self, req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
        return _look(req)


def _look(req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
    answer = echo(req)
    if isinstance(answer, EchoResponse) and req.msg.text.startswith("for a minute"):
        return ServerResponse(answer, headers={"cache-control": "max-age=60"})
    return answer


class WSGICors:
    """CORS for one origin around a WSGI application."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._headers = [
            ("Access-Control-Allow-Origin", ORIGIN),
            ("Access-Control-Expose-Headers", ", ".join(EXPOSE_HEADERS)),
            ("Vary", "Origin"),
        ]
        self._preflight_headers = [
            *self._headers,
            ("Access-Control-Allow-Methods", ", ".join(cors.ALLOW_METHODS)),
            ("Access-Control-Allow-Headers", ", ".join(ALLOW_HEADERS)),
            ("Access-Control-Max-Age", str(MAX_AGE_SECONDS)),
        ]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_ORIGIN") != ORIGIN:
            return self._app(environ, start_response)
        if environ["REQUEST_METHOD"] == "OPTIONS":
            start_response("204 No Content", self._preflight_headers)
            return []

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, *self._headers], *error)

        return self._app(environ, start)


_wsgi_probe: Any = Probe()  # it lacks a method, as implementations may
_wsgi_service = wsgi_probe_service(_wsgi_probe)


def _wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    is_probe = environ["PATH_INFO"].startswith(PROBE)
    return (_wsgi_service if is_probe else service.app)(environ, start_response)


_wsgi_cors = WSGICors(_wsgi)


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Notes each request."""
    path = environ["PATH_INFO"]
    noted.add(f"{environ['REQUEST_METHOD']} {path} {environ['SERVER_PROTOCOL']}")
    return (_wsgi if path.startswith(CLOSED) else _wsgi_cors)(environ, start_response)


_asgi_probe: Any = AsyncProbe()
_asgi_service = asgi_probe_service(_asgi_probe)


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    is_probe = scope.get("path", "").startswith(PROBE)
    await (_asgi_service if is_probe else service_asgi.app)(scope, receive, send)


_asgi_cors = CORSMiddleware(
    _asgi,
    allow_origins=[ORIGIN],
    allow_methods=cors.ALLOW_METHODS,
    allow_headers=ALLOW_HEADERS,
    expose_headers=EXPOSE_HEADERS,
    max_age=MAX_AGE_SECONDS,
)


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Notes each request and its connection."""
    if scope["type"] == "http":
        noted.add(f"{scope['method']} {scope['path']} HTTP/{scope['http_version']}")
        noted.add(f"connection from port {scope['client'][1]}")
    await (_asgi if scope.get("path", "").startswith(CLOSED) else _asgi_cors)(scope, receive, send)
