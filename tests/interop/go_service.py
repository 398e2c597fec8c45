"""What connect-go, grpcurl and buf call: the integration tests' service, with what these need beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectrpc.health import Health, ServingStatus, asgi_health, wsgi_health
from connectrpc.interceptors import CallContext, Hooks
from connectrpc.reflection import with_reflection
from connectrpc.server import ClientRequest, asgi_app, wsgi_app

import service
import service_asgi
from integration_pb2_connect import (
    asgi_other_service,
    asgi_probe_service,
    wsgi_other_service,
    wsgi_probe_service,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multidict import CIMultiDict

    from integration_pb2 import PingRequest, PingResponse

__all__ = ["mirroring_app", "mirroring_asgi_app", "reflecting_app", "reflecting_asgi_app"]

PROBE = "integration.v1.ProbeService"
OTHER = "integration.v1.OtherService"

MOUNT = "/mirror"
NAME = "x-mirror-bin"


class Mirror(Hooks):
    """Sends one of a request's headers back, as a header and as a trailer."""

    def on_response_headers(self, context: CallContext, headers: CIMultiDict[str]) -> None:
        self._add(context, headers)

    def on_end(self, context: CallContext, error: BaseException | None, trailers: CIMultiDict[str]) -> None:
        self._add(context, trailers)

    @staticmethod
    def _add(context: CallContext, metadata: CIMultiDict[str]) -> None:
        for value in context.request_headers.getall(NAME, ()):
            metadata.add(NAME, value)


_wsgi_mirror = wsgi_probe_service(service.probe, prefix=MOUNT, interceptors=[Mirror()])
_asgi_mirror = asgi_probe_service(service_asgi.probe, prefix=MOUNT, interceptors=[Mirror()])


def mirroring_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """For WSGI servers: the usual service, and once more below ``MOUNT``, where it mirrors."""
    inside = environ.get("PATH_INFO", "").startswith(MOUNT + "/")
    return (_wsgi_mirror if inside else service.app)(environ, start_response)


async def mirroring_asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same for ASGI servers."""
    inside = scope.get("path", "").startswith(MOUNT + "/")
    await (_asgi_mirror if inside else service_asgi.app)(scope, receive, send)


class Switch(service.Other):
    """Sets its service's health to what it is asked for."""

    def ping(self, req: ClientRequest[PingRequest]) -> PingResponse:
        _switch(req)
        return super().ping(req)


class AsyncSwitch(service_asgi.AsyncOther):
    """``Switch``, async."""

    async def ping(self, req: ClientRequest[PingRequest]) -> PingResponse:
        _switch(req)
        return await super().ping(req)


def _switch(req: ClientRequest[PingRequest]) -> None:
    if req.msg.text in ServingStatus.__members__:
        health.set(OTHER, ServingStatus[req.msg.text])


health = Health({PROBE: ServingStatus.SERVING, OTHER: ServingStatus.NOT_SERVING})
_wsgi_reflecting = with_reflection(
    wsgi_app(
        wsgi_probe_service(service.probe, interceptors=[Mirror()]),
        wsgi_other_service(Switch()),
        wsgi_health(health),
    )
)
_asgi_reflecting = with_reflection(
    asgi_app(
        asgi_probe_service(service_asgi.probe, interceptors=[Mirror()]),
        asgi_other_service(AsyncSwitch()),
        asgi_health(health),
    )
)


def reflecting_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """For WSGI servers: both services, and health and reflection beside them."""
    hello = environ.get("PATH_INFO") == "/hello"
    return (service.app if hello else _wsgi_reflecting)(environ, start_response)


async def reflecting_asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same for ASGI servers."""
    hello = scope.get("path") == "/hello"
    await (service_asgi.app if hello else _asgi_reflecting)(scope, receive, send)
