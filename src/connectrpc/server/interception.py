"""Interceptors around handlers. The result is a handler again, so no shell knows of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import messages_of
from connectrpc._core.chain import build_chain
from connectrpc.errors import ConnectError
from connectrpc.interceptors import CallContext, Request, Response
from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream, ServerResponse, ServerStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from connectrpc.method import Method

    Handler = Callable[[Any], Any]

__all__ = ["intercepted"]

_CALL = object()
"""The key under which a context keeps the call, for the handler."""


def intercepted(
    method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any], *, asynchronous: bool
) -> Handler:
    """``handler`` with the interceptors around it; itself when there are none."""
    if not interceptors:
        return handler
    return (_intercepted_async if asynchronous else _intercepted)(method, handler, interceptors)


def _intercepted(method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any]) -> Handler:
    def innermost(request: Request) -> Response:
        response = _response(method, handler(_given(request, ClientStream)))
        if method.kind.server_streams:
            response.messages = _raising(response.messages)
        return response

    chain = build_chain(interceptors, innermost, asynchronous=False)

    def call(given: Any) -> Any:
        try:
            return _result(method, chain(_request(given)))
        except ConnectError as error:
            return _error_result(method, error)

    return call


def _intercepted_async(method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any]) -> Handler:
    async def innermost(request: Request) -> Response:
        result = handler(_given(request, AsyncClientStream))
        if inspect.isawaitable(result):
            result = await result
        response = _response(method, result)
        if method.kind.server_streams:
            response.messages = _raising_async(response.messages)
        return response

    chain = build_chain(interceptors, innermost, asynchronous=True)

    async def call(given: Any) -> Any:
        try:
            return _result(method, await chain(_request(given)))
        except ConnectError as error:
            return _error_result(method, error)

    return call


def _request(given: Any) -> Request:
    context = CallContext(
        method=given.method,
        peer=given.peer,
        timeout=given.timeout,
        request_headers=given.headers,
        is_client=False,
    )
    context.values[_CALL] = given._call
    if isinstance(given, ClientRequest):
        return Request(context, message=given.msg)
    return Request(context, messages=given)


def _given(request: Request, stream: Any) -> Any:
    call = request.context.values[_CALL]
    if request.messages is None:
        return ClientRequest(request.message, call)
    if isinstance(request.messages, stream):
        return request.messages  # nobody has put others in its place
    messages: Any = request.messages
    return stream(messages.__aiter__() if stream is AsyncClientStream else iter(messages), call)


def _response(method: Method[Any, Any], result: Any) -> Response:
    """What a handler gave, as interceptors see it: an error is raised."""
    if method.kind.server_streams:
        messages, _, stream = messages_of(method, result)
        if stream is None:
            return Response(messages=messages)
        return Response(messages=messages, headers=stream.headers, trailers=stream.trailers)
    if isinstance(result, ServerResponse):
        if result.error is None:
            return Response(result.msg, headers=result.headers, trailers=result.trailers)
        result.error._answer_metadata = result.metadata()
        raise result.error
    if isinstance(result, ConnectError):
        raise result
    return Response(result)


def _result(method: Method[Any, Any], response: Response) -> Any:
    if method.kind.server_streams:
        messages: Any = response.messages
        return ServerStream(messages, response.headers, response.trailers)
    return ServerResponse(response.message, response.headers, response.trailers)


def _error_result(method: Method[Any, Any], error: ConnectError) -> Any:
    if method.kind.server_streams:
        return error
    return ServerResponse(error, *error._answer_metadata)


def _raising(messages: Any) -> Iterator[Any]:
    try:
        for message in messages:
            if isinstance(message, ConnectError):
                raise message
            yield message
    finally:
        close = getattr(messages, "close", None)
        if close is not None:
            close()


async def _raising_async(messages: Any) -> AsyncIterator[Any]:
    try:
        if hasattr(messages, "__aiter__"):
            async for message in messages:
                if isinstance(message, ConnectError):
                    raise message
                yield message
        else:
            for message in messages:
                if isinstance(message, ConnectError):
                    raise message
                yield message
    finally:
        if hasattr(messages, "aclose"):
            await messages.aclose()
        elif hasattr(messages, "close"):
            messages.close()
