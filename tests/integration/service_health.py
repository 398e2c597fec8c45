"""The services with health and reflection beside them: ``asgi`` and ``wsgi``. What a test wants of the health service's
other side, it says in a GET: ``/set?service=a.B&status=2``, ``/shutdown``, ``/resume``, ``/watchers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from connectrpc.health import Health, ServingStatus, asgi_health, wsgi_health
from connectrpc.reflection import with_reflection
from connectrpc.server import asgi_app, wsgi_app

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
    from collections.abc import Iterable

__all__ = ["asgi", "wsgi"]

NAME = "integration.v1.ProbeService"

health = Health({NAME: ServingStatus.SERVING})

_asgi = with_reflection(asgi_app(asgi_probe_service(asgi_probe), asgi_other_service(AsyncOther()), asgi_health(health)))
_wsgi = with_reflection(
    wsgi_app(
        wsgi_probe_service(wsgi_probe),
        wsgi_other_service(Other()),
        wsgi_health(health, max_watchers=3, repeat_seconds=0.2),
    )
)


def _control(path: str, query: str) -> bytes | None:
    """The answer to a GET; None when it is none of these."""
    if path == "/hello":
        return b"hello"
    if path == "/set":
        fields = parse_qs(query, keep_blank_values=True)
        health.set(fields["service"][0], ServingStatus(int(fields["status"][0])))
        return b"set"
    if path == "/shutdown":
        health.shutdown()
        return b"shut down"
    if path == "/resume":
        health.resume()
        return b"resumed"
    if path == "/watchers":
        return str(len(health._watchers)).encode()
    return None


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """For ASGI servers."""
    answer = _control(scope.get("path", ""), scope.get("query_string", b"").decode())
    if answer is None:
        await _asgi(scope, receive, send)
        return
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """For WSGI servers."""
    answer = _control(environ["PATH_INFO"], environ["QUERY_STRING"])
    if answer is None:
        return _wsgi(environ, start_response)
    start_response("200 OK", [("content-length", str(len(answer)))])
    return [answer]
