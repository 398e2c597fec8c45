"""Interceptors around handlers. The result is a handler again, so no shell knows of them."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import messages_of
from connectrpc._core.chain import (
    aclose_begun,
    aclose_messages,
    as_async,
    build_chain,
    close_begun,
    close_messages,
    tell_sent,
)
from connectrpc._core.plain import PlainServerCall
from connectrpc.errors import ConnectError
from connectrpc.interceptors import CallContext, Request, Response
from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream, ServerResponse, ServerStream
from connectrpc.server.handlers import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from connectrpc._core.http import WholeResponse
    from connectrpc.method import Method

    Handler = Callable[[Any], Any]

__all__ = ["intercepted"]


def intercepted(
    method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any], *, asynchronous: bool
) -> Handler:
    """``handler`` with the interceptors around it; itself when there are none."""
    if not interceptors:
        return handler
    return (_intercepted_async if asynchronous else _intercepted)(method, handler, interceptors)


def _intercepted(method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any]) -> Handler:
    def innermost(request: Request) -> Response:
        response = _response(request, handler(_given(request, ClientStream)))
        if method.kind.server_streams:
            response.messages = _Raising(response.messages)
            request.context._begun.append(response.messages)
        return response

    chain = build_chain(interceptors, innermost, asynchronous=False)

    def call(given: Any) -> Any:
        # A server's thread goes from call to call: one must not see who has made the one before it. Tasks do so anyway.
        variables = contextvars.copy_context()
        return variables.run(call_in, variables, given)

    def call_in(variables: contextvars.Context, given: Any) -> Any:
        request = _request(given)
        try:
            response = chain(request)
            if method.kind.server_streams:
                return ServerStream(_Whole(request, response, variables), response.headers, response.trailers)
            return _whole(request, response)
        except BaseException as error:
            with _logged(method):
                close_begun(request.context, error)
            given_error = _given_error(request, error)
            if given_error is None:
                raise
            return given_error

    return call


def _intercepted_async(method: Method[Any, Any], handler: Handler, interceptors: Sequence[Any]) -> Handler:
    async def innermost(request: Request) -> Response:
        result = handler(_given(request, AsyncClientStream))
        if inspect.isawaitable(result):
            result = await result
        response = _response(request, result)
        if method.kind.server_streams:
            response.messages = _RaisingAsync(response.messages)
            request.context._begun.append(response.messages)
        return response

    chain = build_chain(interceptors, innermost, asynchronous=True)

    async def call(given: Any) -> Any:
        request = _request(given)
        try:
            response = await chain(request)
            if method.kind.server_streams:
                return ServerStream(_WholeAsync(request, response), response.headers, response.trailers)
            return _whole(request, response)
        except BaseException as error:
            with _logged(method):
                await aclose_begun(request.context, error)
            given_error = _given_error(request, error)
            if given_error is None:
                raise
            return given_error

    return call


@contextlib.contextmanager
def _logged(method: Method[Any, Any]) -> Iterator[None]:
    """While messages are closed: the failure of a ``finally`` does not change how its call has ended."""
    try:
        yield
    except Exception as error:
        logger.error("%s failed while it was closed", method.path, exc_info=error)


def _request(given: Any) -> Request:
    context = CallContext(
        method=given.method,
        peer=given.peer,
        timeout=given.timeout,
        request_headers=given.headers,
        is_client=False,
    )
    context._call = given._call
    if isinstance(given, ClientRequest):
        return Request(context, message=given.msg)
    return Request(context, messages=given)


def _given(request: Request, stream: Any) -> Any:
    call = request.context._call
    given: Any
    if request.messages is None:
        given = ClientRequest(request.message, call)
    elif isinstance(request.messages, stream):
        given = request.messages  # nobody has put others in its place
    else:
        messages: Any = request.messages
        given = stream(as_async(messages) if stream is AsyncClientStream else iter(messages), call)
    given._values = request.context.values
    return given


def _response(request: Request, result: Any) -> Response:
    """What a handler gave, as interceptors see it: an error is raised."""
    method = request.context.method
    if method.kind.server_streams:
        messages, _, stream = messages_of(method, result)
        if stream is None:
            return Response(messages=messages)
        return Response(messages=messages, headers=stream.headers, trailers=stream.trailers)
    request.context.timeout.check()  # it would not be sent any more
    if isinstance(result, ServerResponse):
        _raise_error(request, result)
        return Response(result.msg, headers=result.headers, trailers=result.trailers)
    if isinstance(result, ConnectError):
        raise result
    return Response(result)


def _raise_error(request: Request, result: ServerResponse[Any]) -> None:
    """An answer that is an error is raised, and its metadata kept beside it."""
    if result.error is not None:
        request.context._error = (result.error, (result.headers, result.trailers))
        raise result.error


def _given_error(request: Request, error: BaseException) -> ServerResponse[Any] | None:
    """The answer that ``error`` was, if ``_raise_error`` has raised it."""
    given, metadata = request.context._error
    return ServerResponse(given.with_traceback(None), *metadata) if error is given else None


def _whole(request: Request, response: Response) -> WholeResponse:
    """The answer that comes out of the interceptors. It is made here, as hooks are to hear whether it can be.

    Raises:
        Exception: it cannot be.
    """
    result = ServerResponse(response.message, response.headers, response.trailers)
    _raise_error(request, result)
    call = request.context._call
    if isinstance(call, PlainServerCall):
        call = call.long_way()
    trailers = response.trailers.copy()
    answer: WholeResponse = call.answer(result)
    tell_sent(request.context)
    if response.trailers != trailers:  # hooks may change them until the end
        answer = call.respond(response.message, *result.metadata())
    return answer


def _take_failure(context: CallContext) -> Exception | None:
    """What has ended a stream outside the interceptors."""
    call: Any = context._call
    failure: Exception | None = call.failure
    call.keeps_failure, call.failure = False, None
    return failure


class _Raising:
    """A handler's messages, as interceptors see them: an error among them is raised. Closed more than once, they close
    what the handler gave once: not all of it can stand that."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Any) -> None:
        self._messages = iter(messages)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = next(self._messages)
        if isinstance(message, ConnectError):
            raise message
        return message

    def close(self) -> None:
        messages, self._messages = self._messages, iter(())
        close_messages(messages)


class _Whole:
    """The messages that come out of the interceptors. Closing them closes everything that was begun for them.

    They are made, and closed, with the call's own context variables.
    """

    __slots__ = ("_messages", "_request", "_response", "_variables")

    def __init__(self, request: Request, response: Response, variables: contextvars.Context) -> None:
        self._request = request
        self._response = response
        self._variables = variables
        self._messages: Any = None
        request.context._call.keeps_failure = True

    def __iter__(self) -> Iterator[Any]:
        messages: Any = self._response.messages
        self._messages = self._variables.run(iter, messages)
        return self

    def __next__(self) -> Any:
        return self._variables.run(next, self._messages)

    def close(self) -> None:
        self._variables.run(self._close)

    def _close(self) -> None:
        context = self._request.context
        context._failure = failure = _take_failure(context)
        try:
            close_messages(self._messages)
        finally:
            close_begun(context, failure)


class _RaisingAsync:
    """``_Raising`` for async handlers, which may give plain iterables too."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Any) -> None:
        self._messages = as_async(messages)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._messages.__anext__()
        if isinstance(message, ConnectError):
            raise message
        return message

    async def aclose(self) -> None:
        messages, self._messages = self._messages, as_async(())
        await aclose_messages(messages)


class _WholeAsync:
    """``_Whole`` for async handlers."""

    __slots__ = ("_messages", "_request", "_response")

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response
        self._messages: Any = None
        request.context._call.keeps_failure = True

    def __aiter__(self) -> AsyncIterator[Any]:
        messages: Any = self._response.messages
        self._messages = as_async(messages)
        return self

    async def __anext__(self) -> Any:
        return await self._messages.__anext__()

    async def aclose(self) -> None:
        context = self._request.context
        context._failure = failure = _take_failure(context)
        try:
            await aclose_messages(self._messages)
        finally:
            await aclose_begun(context, failure)
