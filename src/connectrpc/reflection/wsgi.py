"""Reflection in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectrpc.reflection._messages import VERSIONS
from connectrpc.reflection.catalogue import Catalogue, Conversation
from connectrpc.server.wsgi import wsgi_app, wsgi_service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.descriptor_pool import DescriptorPool

    from connectrpc.request import ClientStream
    from connectrpc.server.options import ServiceOptions
    from connectrpc.server.wsgi import WSGIApplication

__all__ = ["reflection_app"]


def reflection_app(services: Iterable[object], pool: DescriptorPool | None, options: ServiceOptions) -> WSGIApplication:
    """See ``connectrpc.reflection.wsgi_reflection``."""
    catalogue = Catalogue(services, pool)
    return wsgi_app(
        *(wsgi_service(version.service, _Service(catalogue, version.response), **options) for version in VERSIONS)
    )


class _Service:
    def __init__(self, catalogue: Catalogue, response: Any) -> None:
        self._catalogue = catalogue
        self._response = response

    def server_reflection_info(self, req: ClientStream[Any]) -> Iterator[Any]:
        conversation = Conversation(self._catalogue)
        for msg in req:
            yield self._response(**conversation.answer(msg))
