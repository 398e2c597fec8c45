"""From an implementation and its options to the endpoints of an app. The same for both kinds."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from connectrpc import compression
from connectrpc._core.call import DEFAULT_COMPRESS_MIN_BYTES, DEFAULT_READ_MAX_BYTES, ServerSettings, check_option_names
from connectrpc._core.chain import checked_interceptors
from connectrpc._core.negotiate import Endpoint
from connectrpc._core.timeout import check_seconds, timeout_ms
from connectrpc.codec import JsonCodec, ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server.handlers import logger
from connectrpc.server.interception import intercepted
from connectrpc.server.options import ServiceOptions
from connectrpc.server.threads import InThreads, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectrpc.method import Method, Service
    from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream

    Handlers = dict[Method[Any, Any], Callable[[Any], Any]]

__all__ = ["build_endpoints", "check_services", "find_handlers", "merge_endpoints"]


def find_handlers(service: Service, implementation: object, *, asynchronous: bool) -> Handlers:
    """What serves each method. What the implementation lacks is logged now, and answered with ``unimplemented``.

    Args:
        service: the service.
        implementation: what has a method for each of its RPCs, or ``InThreads`` of that.
        asynchronous: whether the app awaits its handlers.

    Raises:
        TypeError: the implementation is no instance, or is async where it cannot be.
    """
    threads = implementation if isinstance(implementation, InThreads) else None
    if threads is not None:
        implementation = threads.implementation
    if isinstance(implementation, type):
        raise TypeError(f"{implementation.__name__} is a class: give the service an instance of it")
    handlers: Handlers = {}
    for method in service.methods:
        handler = _find_handler(method, implementation)
        if handler is None:
            logger.warning(
                "%s has no %s(): %s is unimplemented",
                type(implementation).__name__,
                method.python_name,
                method.path,
            )
            handlers[method] = _unimplemented
            continue
        if inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
            if threads is not None:
                raise TypeError(f"{method.python_name}() is async: it runs in no thread")
            if not asynchronous:
                raise TypeError(f"{method.python_name}() is async: serve it with the asgi function")
        elif asynchronous and threads is None and _is_plain_method(handler):
            logger.warning(
                "%s.%s() is not async: while it runs nothing else does; InThreads is for such implementations",
                type(implementation).__name__,
                method.python_name,
            )
        handlers[method] = (
            handler if threads is None else in_thread(method, handler, threads, asynchronous=asynchronous)
        )
    return handlers


def _is_plain_method(handler: object) -> bool:
    if not inspect.ismethod(handler):
        return False
    function = inspect.unwrap(handler.__func__)
    return not inspect.iscoroutinefunction(function) and not inspect.isasyncgenfunction(function)


def build_endpoints(handlers: Handlers, options: ServiceOptions, *, asynchronous: bool) -> dict[str, Endpoint]:
    """The endpoints of a service by path.

    Args:
        handlers: what serves each of its methods.
        options: the service's options.
        asynchronous: whether the app awaits its handlers.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option has a value that makes no sense.
    """
    check_option_names(options, ServiceOptions)
    limit = options.get("max_timeout_seconds")
    settings = ServerSettings(
        compressions=compression.resolve(options.get("compressions")),
        compress_min_bytes=options.get("compress_min_bytes", DEFAULT_COMPRESS_MIN_BYTES),
        read_max_bytes=options.get("read_max_bytes", DEFAULT_READ_MAX_BYTES),
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
    return {
        prefix + method.path: Endpoint(
            method, intercepted(method, handler, interceptors, asynchronous=asynchronous), codecs, settings
        )
        for method, handler in handlers.items()
    }


def _max_timeout_ms(seconds: float) -> int:
    check_seconds("max_timeout_seconds", seconds)
    if math.isinf(seconds):
        raise ValueError("max_timeout_seconds must be finite, or None for no limit")
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


def check_services(services: Iterable[object], kind: type[object], colour: str) -> None:
    """Check what is to be served as one app.

    Raises:
        TypeError: one of the services is something else than a ``kind``, which ``colour`` names.
    """
    for service in services:
        if not isinstance(service, kind):
            raise TypeError(
                f"{colour}_app takes what {colour}_..._service functions give, not {type(service).__name__}"
            )


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
