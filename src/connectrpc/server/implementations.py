"""What can be served, and implementations that are made when an ASGI server starts and taken down when it stops."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, Union

from connectrpc.server.threads import InThreads

__all__ = ["ASGIImplementation", "WSGIImplementation", "as_lifespan"]

AsyncT = TypeVar("AsyncT")
SyncT = TypeVar("SyncT")

# Not with `|`: type checkers do not see that this makes an alias of what begins with a type variable.

WSGIImplementation = Union[SyncT, InThreads[SyncT]]  # noqa: UP007
"""What ``wsgi_x_service`` serves: a synchronous implementation, whose handlers run in the server's own threads, or
``InThreads`` of one."""

_Served = Union[AsyncT, InThreads[SyncT]]  # noqa: UP007
_Lifespan = Union[  # noqa: UP007
    AbstractAsyncContextManager[_Served[AsyncT, SyncT]], AsyncIterator[_Served[AsyncT, SyncT]]
]

ASGIImplementation = Union[  # noqa: UP007
    _Served[AsyncT, SyncT], _Lifespan[AsyncT, SyncT], Callable[[], _Lifespan[AsyncT, SyncT]]
]
"""What ``asgi_x_service`` serves: an asynchronous implementation, or ``InThreads`` of a synchronous one; or what gives
either while the app lives: an async context manager, an async generator that yields it once, or a function that gives
one of these, so that the app can be started again."""

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def as_lifespan(implementation: Any) -> Callable[[], AbstractAsyncContextManager[Any]] | None:
    """What makes the context in which the implementation is there; None when it is one itself."""
    if isinstance(implementation, type):
        return None
    if isinstance(implementation, _FUNCTIONS):
        return lambda: _context(implementation())
    if _gives_one(implementation):
        return lambda: _context(implementation)
    return None


def _gives_one(value: Any) -> bool:
    return inspect.isasyncgen(value) or isinstance(value, AbstractAsyncContextManager)


def _context(given: Any) -> AbstractAsyncContextManager[Any]:
    if not _gives_one(given):
        raise TypeError(f"{given!r} is neither an async context manager nor an async generator")
    if inspect.isasyncgen(given):
        return contextlib.asynccontextmanager(lambda: given)()
    context: AbstractAsyncContextManager[Any] = given
    return context
