"""What both kinds of application do around handlers: find them, make errors of what they raise."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from connectrpc import compression
from connectrpc._core.call import ServerSettings
from connectrpc._core.chain import checked_interceptors
from connectrpc._core.negotiate import Endpoint
from connectrpc._core.timeout import timeout_ms
from connectrpc.codec import JsonCodec, ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server.interception import intercepted
from connectrpc.server.options import ServiceOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectrpc._core.call import ServerCall
    from connectrpc._core.http import Response
    from connectrpc.method import Method, Service
    from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream, ServerStream

__all__ = [
    "DRAIN_IDLE_SECONDS",
    "DRAIN_MAX_BYTES",
    "DRAIN_MAX_SECONDS",
    "build_endpoints",
    "coded",
    "failed",
    "last_part",
    "logger",
    "merge_endpoints",
]

logger = logging.getLogger("connectrpc.server")

_DEFAULT_READ_MAX_BYTES = 4 * 1024 * 1024
_DEFAULT_COMPRESS_MIN_BYTES = 1024

# What is still read of a request that has its answer already. Clients lose an answer that overtakes their request, so
# it is read to its end; but not without end.
DRAIN_MAX_BYTES = 64 * 1024 * 1024
DRAIN_MAX_SECONDS = 10.0
DRAIN_IDLE_SECONDS = 1.0  # a client that sends nothing more may be waiting for the answer


def build_endpoints(
    service: Service, implementation: object, options: ServiceOptions, *, asynchronous: bool
) -> dict[str, Endpoint]:
    """The endpoints of a service by path.

    Args:
        service: the service.
        implementation: what has a method for each of its RPCs.
        options: the service's options.
        asynchronous: whether its handlers are awaited.

    Raises:
        TypeError: an option is unknown, or the implementation is no instance.
        ValueError: an option has a value that makes no sense.
    """
    if isinstance(implementation, type):
        raise TypeError(f"{implementation.__name__} is a class: give the service an instance of it")
    unknown = options.keys() - ServiceOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    limit = options.get("max_timeout_seconds")
    settings = ServerSettings(
        compressions=compression.resolve(options.get("compressions")),
        compress_min_bytes=options.get("compress_min_bytes", _DEFAULT_COMPRESS_MIN_BYTES),
        read_max_bytes=options.get("read_max_bytes", _DEFAULT_READ_MAX_BYTES),
        send_max_bytes=options.get("send_max_bytes"),
        max_timeout_ms=None if limit is None else _max_timeout_ms(limit),
        require_connect_protocol_header=options.get("require_connect_protocol_header", False),
    )
    codecs = options.get("codecs")
    if codecs is None:
        codecs = (ProtoCodec(), JsonCodec())
    prefix = options.get("prefix", "").rstrip("/")
    if prefix and not prefix.startswith("/"):
        raise ValueError(f"prefix {prefix!r} must start with a slash")
    interceptors = checked_interceptors(options.get("interceptors"), asynchronous=asynchronous)
    endpoints = {}
    for method in service.methods:
        handler = _find_handler(method, implementation)
        if handler is None:
            logger.warning(
                "%s has no %s(): %s is unimplemented",
                type(implementation).__name__,
                method.python_name,
                method.path,
            )
            handler = _unimplemented
        handler = intercepted(method, handler, interceptors, asynchronous=asynchronous)
        endpoints[prefix + method.path] = Endpoint(method, handler, codecs, settings)
    return endpoints


def _max_timeout_ms(seconds: float) -> int:
    if not seconds > 0 or math.isinf(seconds):
        raise ValueError("max_timeout_seconds must be a positive number of seconds")
    return timeout_ms(seconds)


def _find_handler(method: Method[Any, Any], implementation: object) -> Callable[[Any], Any] | None:
    handler: Callable[[Any], Any] | None = getattr(implementation, method.python_name, None)
    if not callable(handler):
        return None
    if method.python_name in getattr(implementation, "__dict__", ()):
        return handler
    # A class that derives from the generated protocol inherits its empty methods, which serve nothing.
    for base in type(implementation).__mro__:
        if method.python_name in base.__dict__:
            return None if getattr(base, "_is_protocol", False) else handler
    return handler


def merge_endpoints(parts: Iterable[Mapping[str, Endpoint]]) -> dict[str, Endpoint]:
    """The endpoints of several services.

    Raises:
        ValueError: two of them have a path in common.
    """
    merged: dict[str, Endpoint] = {}
    for part in parts:
        for path, endpoint in part.items():
            if path in merged:
                raise ValueError(f"{path} is served twice")
            merged[path] = endpoint
    return merged


def _unimplemented(request: ClientRequest[Any] | ClientStream[Any] | AsyncClientStream[Any]) -> Any:
    raise ConnectError(ConnectErrorCode.UNIMPLEMENTED, f"{request.method.path} is not implemented")


def coded(call: ServerCall, error: Exception) -> ConnectError:
    """The error that the client is sent for what a handler, or our work for it, raised.

    Only a ``ConnectError`` says to the client what it says. Everything else is logged, with its traceback, and told
    without its text, which may hold anything.
    """
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, TimeoutError) and call.deadline.expired():
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
    logger.error("%s failed", call.method.path, exc_info=error)
    return ConnectError(ConnectErrorCode.UNKNOWN, "the service failed")


def failed(call: ServerCall, error: Exception) -> Response:
    """The whole answer that tells the client of what was raised before anything was sent."""
    try:
        return call.fail(coded(call, error))
    except Exception as further:  # an error that cannot be sent
        return call.fail(coded(call, further))


def last_part(call: ServerCall, failure: ConnectError | None, stream: ServerStream[Any] | None) -> bytes:
    """The last part of a streamed answer, with the trailers that the handler has set by now."""
    try:
        return call.finish(failure, None if stream is None else stream.metadata()[1])
    except Exception as error:  # the trailers cannot be sent
        return call.finish(coded(call, error), None)
