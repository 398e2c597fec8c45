"""How interceptors are put around calls. Nesting callables has no colour: one function builds every chain.

Only what iterates or awaits comes in two colours: the hooks' adapters, which stand here side by side.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Step = Callable[[Request], Any]

__all__ = ["build_chain"]


def build_chain(interceptors: Sequence[Any], innermost: Step, *, asynchronous: bool) -> Step:
    """``innermost`` with the interceptors around it, the first of them outermost.

    Args:
        interceptors: callables of ``(request, proceed)``, and ``Hooks``.
        innermost: makes the call: gives a ``Response``, or in async code what is awaited for one.
        asynchronous: whether it is async code.

    Raises:
        TypeError: something of the list is neither.
    """
    step = innermost
    for interceptor in reversed(interceptors):
        if isinstance(interceptor, Hooks):
            adapter = _tell_async if asynchronous else _tell
            step = _around(_with_hooks(adapter, interceptor), step)
        elif callable(interceptor):
            step = _around(interceptor, step)
        else:
            raise TypeError(f"{interceptor!r} is neither an interceptor nor Hooks")
    return step


def _around(interceptor: Any, proceed: Step) -> Step:
    return lambda request: interceptor(request, proceed)


def _with_hooks(adapter: Any, hooks: Hooks) -> Any:
    return lambda request, proceed: adapter(hooks, request, proceed)


def _left() -> ConnectError:
    return ConnectError(ConnectErrorCode.CANCELED, "the stream was left before its end")


def _tell(hooks: Hooks, request: Request, proceed: Step) -> Response:
    context = request.context
    try:
        hooks.on_start(context)
        if request.messages is None:
            hooks.on_request_message(context, request.message)
        else:
            request.messages = _tell_each(hooks.on_request_message, context, request.messages)
        response: Response = proceed(request)
        hooks.on_response_headers(context, response.headers)
        if response.messages is None:
            hooks.on_response_message(context, response.message)
    except BaseException as error:
        hooks.on_end(context, error, CIMultiDict())
        raise
    if response.messages is None:
        hooks.on_end(context, None, response.trailers)
    else:
        response.messages = _tell_stream(hooks, context, response.messages, response.trailers)
    return response


def _tell_each(tell: Any, context: Any, messages: Any) -> Iterator[Any]:
    for message in messages:
        tell(context, message)
        yield message


def _tell_stream(hooks: Hooks, context: Any, messages: Any, trailers: Any) -> Iterator[Any]:
    try:
        for message in messages:
            hooks.on_response_message(context, message)
            yield message
    except GeneratorExit:
        hooks.on_end(context, _left(), trailers)
        raise
    except BaseException as error:
        hooks.on_end(context, error, trailers)
        raise
    else:
        hooks.on_end(context, None, trailers)
    finally:
        close = getattr(messages, "close", None)
        if close is not None:
            close()


async def _tell_async(hooks: Hooks, request: Request, proceed: Step) -> Response:
    context = request.context
    try:
        hooks.on_start(context)
        if request.messages is None:
            hooks.on_request_message(context, request.message)
        else:
            request.messages = _tell_each_async(hooks.on_request_message, context, request.messages)
        response: Response = await proceed(request)
        hooks.on_response_headers(context, response.headers)
        if response.messages is None:
            hooks.on_response_message(context, response.message)
    except BaseException as error:
        hooks.on_end(context, error, CIMultiDict())
        raise
    if response.messages is None:
        hooks.on_end(context, None, response.trailers)
    else:
        response.messages = _tell_stream_async(hooks, context, response.messages, response.trailers)
    return response


async def _tell_each_async(tell: Any, context: Any, messages: Any) -> AsyncIterator[Any]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            tell(context, message)
            yield message
    else:
        for message in messages:
            tell(context, message)
            yield message


async def _tell_stream_async(hooks: Hooks, context: Any, messages: Any, trailers: Any) -> AsyncIterator[Any]:
    try:
        async for message in messages:
            hooks.on_response_message(context, message)
            yield message
    except GeneratorExit:
        hooks.on_end(context, _left(), trailers)
        raise
    except BaseException as error:
        hooks.on_end(context, error, trailers)
        raise
    else:
        hooks.on_end(context, None, trailers)
    finally:
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()
