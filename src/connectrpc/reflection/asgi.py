"""Reflection in event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectrpc.reflection._messages import VERSIONS
from connectrpc.reflection.catalogue import Catalogue, Conversation
from connectrpc.server.asgi import asgi_app, asgi_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from google.protobuf.descriptor_pool import DescriptorPool

    from connectrpc.request import AsyncClientStream
    from connectrpc.server.asgi import ASGIApplication
    from connectrpc.server.options import ServiceOptions

__all__ = ["reflection_app"]


def reflection_app(services: Iterable[object], pool: DescriptorPool | None, options: ServiceOptions) -> ASGIApplication:
    """See ``connectrpc.reflection.asgi_reflection``."""
    catalogue = Catalogue(services, pool)
    return asgi_app(
        *(asgi_service(version.service, _Service(catalogue, version.response), **options) for version in VERSIONS)
    )


class _Service:
    def __init__(self, catalogue: Catalogue, response: Any) -> None:
        self._catalogue = catalogue
        self._response = response

    async def server_reflection_info(self, req: AsyncClientStream[Any]) -> AsyncIterator[Any]:
        conversation = Conversation(self._catalogue)
        async for msg in req:
            yield self._response(**conversation.answer(msg))
