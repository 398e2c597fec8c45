"""The options of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectrpc.codec import Codec
    from connectrpc.compression import Compression
    from connectrpc.interceptors import AsyncInterceptor, Hooks, Interceptor

__all__ = ["ServiceOptions"]


class ServiceOptions(TypedDict, total=False):
    """The keyword arguments of ``wsgi_x_service`` and ``asgi_x_service``; all of them are optional."""

    prefix: str
    """A path in front of ``/package.Service/Method``, such as ``"/api"``. Not needed where a framework mounts the app:
    it tells the app what it was mounted at."""

    read_max_bytes: int | None
    """The largest request message, in bytes, both as it is sent and after it was decompressed. By default 4 MiB; None
    for no limit. A larger one is answered with ``resource_exhausted``."""

    send_max_bytes: int | None
    """The largest response message, in bytes before it is compressed. By default there is no limit. Instead of a larger
    one, ``resource_exhausted`` is sent."""

    compressions: Sequence[str | Compression] | None
    """The compressions that are understood and used: names or objects. By default all that are installed."""

    compress_min_bytes: int
    """The size in bytes from which on a message is compressed when the client accepts it. By default 1024."""

    codecs: Sequence[Codec] | None
    """The codecs in which the service is served. By default Protobuf's binary and JSON encodings."""

    interceptors: Sequence[Interceptor | AsyncInterceptor | Hooks] | None
    """What stands around every call, the first outermost; see ``connectrpc.interceptors``. By default nothing."""

    max_timeout_seconds: float | None
    """The longest that a call may take, whatever the client allows it, also when that is for ever. By default there is
    no such limit."""

    require_connect_protocol_header: bool
    """Refuse requests without ``Connect-Protocol-Version``: they come from no Connect client, such as a browser's form.
    By default they are served, so that ``curl`` needs no header for it."""
