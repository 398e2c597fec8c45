"""Server reflection, ``grpc.reflection.v1`` and ``v1alpha``: tells tools such as grpcurl and buf what can be called.

One line mounts it beside the services that an app has, and lists them::

    app = with_reflection(asgi_app(asgi_greet_service(Greeter()), asgi_health(health)))

It needs nothing of grpcio, and does not disturb it in the same process. Whoever can call it can read every ``.proto``
that the process has loaded, unless ``pool`` says less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from connectrpc.reflection._messages import REFLECTION_SERVICE_PATH_PREFIX, REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool
    from typing_extensions import Unpack

    from connectrpc.server import ASGIApplication, ServiceOptions, WSGIApplication

    AppT = TypeVar("AppT", WSGIApplication, ASGIApplication)

__all__ = [
    "REFLECTION_SERVICE_PATH_PREFIX",
    "REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX",
    "asgi_reflection",
    "with_reflection",
    "wsgi_reflection",
]


def with_reflection(app: AppT, *, pool: DescriptorPool | None = None, **options: Unpack[ServiceOptions]) -> AppT:
    """One app that serves what ``app`` serves, and reflection that lists these services and itself.

    Args:
        app: what ``wsgi_app`` or ``asgi_app`` gives, or one service.
        pool: as for ``wsgi_reflection``.
        **options: of reflection, not of the services in ``app``; see ``ServiceOptions``.

    Raises:
        TypeError: ``app`` is of neither kind, or an option is unknown.
        ValueError: ``app`` has reflection already, or an option has a value that makes no sense.
    """
    from connectrpc.server import WSGIApplication

    if isinstance(app, WSGIApplication):
        from connectrpc.server import wsgi_app

        return wsgi_app(app, wsgi_reflection(app, pool=pool, **options))
    from connectrpc.server import ASGIApplication, asgi_app

    if isinstance(app, ASGIApplication):
        return asgi_app(app, asgi_reflection(app, pool=pool, **options))
    raise TypeError(f"{app!r} has no services: give what wsgi_app or asgi_app gives, before anything wraps it")


def wsgi_reflection(
    *services: WSGIApplication | ASGIApplication | ServiceDescriptor | str,
    pool: DescriptorPool | None = None,
    **options: Unpack[ServiceOptions],
) -> WSGIApplication:
    """Reflection as a WSGI app, to go into ``wsgi_app`` beside others.

    Args:
        *services: what is listed: all services of an app, or one by its full name or its descriptor. Reflection itself
            is always listed.
        pool: where services that are given by name are found, and everything that callers ask for; by default all
            generated code that the process has imported. Services of other pools are described out of these.
        **options: see ``ServiceOptions``.

    Raises:
        TypeError: one of ``services`` is none of these, or an option is unknown.
        ValueError: there is no service of that name, or an option has a value that makes no sense.
    """
    from connectrpc.reflection.wsgi import reflection_app

    return reflection_app(services, pool, options)


def asgi_reflection(
    *services: ASGIApplication | WSGIApplication | ServiceDescriptor | str,
    pool: DescriptorPool | None = None,
    **options: Unpack[ServiceOptions],
) -> ASGIApplication:
    """Reflection as an ASGI app, to go into ``asgi_app`` beside others.

    Arguments and errors are those of ``wsgi_reflection``.
    """
    from connectrpc.reflection.asgi import reflection_app

    return reflection_app(services, pool, options)
