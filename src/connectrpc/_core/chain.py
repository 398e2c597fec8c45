"""How interceptors are put around calls. Nesting callables has no colour: one function builds every chain.

Only what iterates or awaits comes in two colours: the hooks' adapters, which stand here side by side.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

from multidict import CIMultiDict

from connectrpc._core.message import UnencodableError
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.interceptors import Hooks, Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence

    from connectrpc.interceptors import CallContext

    Step = Callable[[Request], Any]

__all__ = [
    "aclose_begun",
    "aclose_generator",
    "aclose_messages",
    "as_async",
    "build_chain",
    "checked_interceptors",
    "close_begun",
    "close_generator",
    "close_messages",
    "ended_wrongly",
    "interceptor_failure",
    "is_timeout",
    "tell_sent",
    "unused",
]

T = TypeVar("T")

_client_logger = logging.getLogger("connectrpc.client")
_server_logger = logging.getLogger("connectrpc.server")

# Timers of event loops may fire a few milliseconds early.
_EARLY_SECONDS = 0.005

# By their names: asyncio is not imported for the sake of code that blocks.
_CANCELLATION = ("asyncio.exceptions", "CancelledError")
_TIMEOUTS = (("asyncio.exceptions", "TimeoutError"), ("concurrent.futures._base", "TimeoutError"))


def checked_interceptors(interceptors: Iterable[Any] | None, *, asynchronous: bool) -> tuple[Any, ...]:
    """The interceptors that somebody configured.

    Raises:
        TypeError: it is no list of them, or something of it is none, or of the other colour.
    """
    try:
        checked = tuple(interceptors or ())
    except TypeError:
        raise TypeError(f"interceptors must be a sequence of them, not {interceptors!r}") from None
    for interceptor in checked:
        if isinstance(interceptor, Hooks):
            continue
        if not callable(interceptor) or isinstance(interceptor, type):
            raise TypeError(f"{interceptor!r} is neither an interceptor nor an instance of Hooks")
        if not asynchronous and (
            inspect.iscoroutinefunction(interceptor) or inspect.iscoroutinefunction(type(interceptor).__call__)
        ):
            raise TypeError(f"{interceptor!r} is async, and what it shall stand around is not")
    return checked


def build_chain(interceptors: Sequence[Any], innermost: Step, *, asynchronous: bool) -> Step:
    """``innermost`` with the interceptors around it, the first of them outermost.

    Args:
        interceptors: what ``checked_interceptors`` gave.
        innermost: makes the call: gives a ``Response``, or in async code what is awaited for one.
        asynchronous: whether it is async code.
    """
    around = _around_async if asynchronous else _around
    step = innermost
    for interceptor in reversed(interceptors):
        if isinstance(interceptor, Hooks):
            step = _with_hooks(_tell_async if asynchronous else _tell, interceptor, step)
        else:
            step = around(interceptor, step)
    return step


def _with_hooks(adapter: Any, hooks: Hooks, proceed: Step) -> Step:
    return lambda request: adapter(hooks, request, proceed)


def _own(request: Request) -> Request:
    """A request for one interceptor to assign to: who is further out may call again, with what it had."""
    return Request(request.context, request.message, request.messages)


def _not_a_response(interceptor: Any, given: object) -> TypeError:
    """What is raised where an interceptor has given something else than a ``Response``."""
    name = getattr(interceptor, "__qualname__", type(interceptor).__qualname__)
    expected = "a Response"
    if given is None:
        expected += " (is a return missing?)"
    elif isinstance(given, Response):
        expected = "an awaitable of it (is the interceptor not async?)"
    elif inspect.isawaitable(given):
        expected += " (is an await missing?)"
        if inspect.iscoroutine(given):
            given.close()  # else Python complains too, of one that nobody has awaited
    return TypeError(f"interceptor {name} gave {type(given).__name__}: expected {expected}")


def unused(messages: T) -> T:
    """The messages that a caller wants to send, which have not been sent before.

    Raises:
        ValueError: they are a generator that has ended, in a call that is made once more. It would be a stream without
            messages, and the server could not tell it from one that is meant to be.
    """
    if (isinstance(messages, GeneratorType) and messages.gi_frame is None) or (
        isinstance(messages, AsyncGeneratorType) and messages.ag_frame is None
    ):
        raise ValueError("the requests are a generator that has ended already: to call again, make another or a list")
    return messages


def interceptor_failure(error: Exception) -> ConnectError:
    """What a client's caller sees of an interceptor that failed with something else than a ``ConnectError``."""
    failure = ConnectError(ConnectErrorCode.INTERNAL, f"an interceptor failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _tell_request(hooks: Hooks, context: CallContext, message: Any) -> None:
    try:
        hooks.on_request_message(context, message)
    except Exception as error:
        # Inside a client's request iterator it would be taken for an exception of the caller's own.
        if context.is_client and not isinstance(error, ConnectError):
            raise interceptor_failure(error) from error
        raise


def _tell_end(hooks: Hooks, context: CallContext, error: BaseException | None, trailers: CIMultiDict[str]) -> None:
    """Tell hooks that a call is over. What they raise does not change how it ended: it is logged."""
    try:
        hooks.on_end(context, _ended_by(context, error), trailers)
    except Exception as failure:
        logger = _client_logger if context.is_client else _server_logger
        logger.error("%s: %s.on_end failed", context.method.path, type(hooks).__qualname__, exc_info=failure)


def _trailers_of(context: CallContext, error: BaseException) -> CIMultiDict[str]:
    """The trailers of an answer that is nothing but an error."""
    if context.is_client:
        return error.response_trailers() if isinstance(error, ConnectError) else CIMultiDict()
    given, metadata = context._error
    return metadata[1].copy() if error is given else CIMultiDict()


def _ended_by(context: CallContext, error: BaseException | None) -> BaseException | None:
    """What hooks are told of how a call ended.

    A deadline ends calls in many ways: a task is cancelled, messages are closed, a handler's own wait runs out, a
    result is not sent because it comes too late. To hooks it is ``deadline_exceeded``, as it is to the caller.

    Args:
        context: the call.
        error: what the chain sees; ``GeneratorExit`` where messages are closed before their end.
    """
    if isinstance(error, GeneratorExit) and context._failure is not None:
        error = context._failure
    if isinstance(error, UnencodableError):
        error = error.__cause__
    if _by_deadline(context, error):
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
    if isinstance(error, GeneratorExit):
        return ConnectError(ConnectErrorCode.CANCELED, "the stream was left before its end")
    return error


def _by_deadline(context: CallContext, error: BaseException | None) -> bool:
    left = context.timeout.remaining()
    if left is None or left > _EARLY_SECONDS:
        return False
    if isinstance(error, GeneratorExit) or (type(error).__module__, type(error).__name__) == _CANCELLATION:
        return True
    if left or context.is_client:  # a client's caller is given a late result, and a TimeoutError as what it is
        return False
    return error is None or is_timeout(error)


def is_timeout(error: BaseException) -> bool:
    """Whether it is a ``TimeoutError``, of which Python 3.10 has three."""
    return isinstance(error, TimeoutError) or (type(error).__module__, type(error).__name__) in _TIMEOUTS


class _Ending:
    """Tells hooks of the end of a call whose answer has begun, once."""

    __slots__ = ("_context", "_ended", "_hooks", "_trailers")

    def __init__(self, hooks: Hooks, context: CallContext, trailers: CIMultiDict[str]) -> None:
        self._hooks = hooks
        self._context = context
        self._trailers = trailers
        self._ended = False

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            _tell_end(self._hooks, self._context, error, self._trailers)

    def _leave(self) -> None:
        self._end(GeneratorExit())

    def _tell_message(self, message: Any) -> None:
        try:
            self._hooks.on_response_message(self._context, message)
        except (StopIteration, StopAsyncIteration) as error:
            # It would pass for the end of the messages (PEP 479).
            failure = RuntimeError(f"hooks raised {type(error).__name__}")
            self._end(failure)
            raise failure from error
        except BaseException as error:
            self._end(error)
            raise


class _Given(_Ending):
    """An answer of one message, which a service has given and not yet sent."""

    __slots__ = ()

    def sent(self) -> None:
        self._end(None)

    def close(self) -> None:
        self._leave()

    async def aclose(self) -> None:
        self._leave()


def _tell_given(hooks: Hooks, context: CallContext, response: Response) -> None:
    """Tell hooks that the end has come with the only message, or on a service remember to."""
    if context.is_client:
        _tell_end(hooks, context, None, response.trailers)
    else:
        context._begun.append(_Given(hooks, context, response.trailers))


def tell_sent(context: CallContext) -> None:
    """Tell the hooks of a service that its only message was encoded. They may still change the trailers."""
    for given in context._begun:
        given.sent()
    context._begun.clear()


# Blocking


def _around(interceptor: Any, proceed: Step) -> Step:
    def step(request: Request) -> Response:
        response = interceptor(_own(request), proceed)
        if not isinstance(response, Response):
            raise _not_a_response(interceptor, response)
        return response

    return step


def close_messages(messages: object) -> None:
    """Close a generator, or what else can be closed. None and other things stay as they are."""
    close = getattr(messages, "close", None)
    if close is not None:
        close()


def close_generator(messages: object) -> None:
    """Close a caller's generator, and not what else can be closed.

    It is not left to the collector: the caller may hold it, or what a call ends with, whose traceback does.
    """
    if isinstance(messages, GeneratorType):
        messages.close()


def close_begun(context: CallContext, failure: BaseException | None = None) -> None:
    """The call is over, by ``failure`` if there was one: close what interceptors may have left lying, the outermost
    first.
    """
    context._failure = failure
    try:
        with contextlib.ExitStack() as stack:
            for messages in context._begun:
                stack.callback(messages.close)
            context._begun.clear()
    finally:
        context._failure = None  # what it was raised through holds the context


def _tell(hooks: Hooks, request: Request, proceed: Step) -> Response:
    context = request.context
    try:
        hooks.on_start(context)
        if request.messages is None:
            hooks.on_request_message(context, request.message)
        else:
            request = Request(context, messages=_tell_each(hooks, context, request.messages))  # as `_own`
        response: Response = proceed(request)
        hooks.on_response_headers(context, response.headers)
        if response.messages is None:
            hooks.on_response_message(context, response.message)
        else:
            response.messages = _Told(hooks, context, response.trailers, response.messages)
    except BaseException as error:
        _tell_end(hooks, context, error, _trailers_of(context, error))
        raise
    if response.messages is None:
        _tell_given(hooks, context, response)
    else:
        context._begun.append(response.messages)
    return response


def _tell_each(hooks: Hooks, context: CallContext, messages: Any) -> Iterator[Any]:
    try:
        for message in unused(messages) if context.is_client else messages:
            _tell_request(hooks, context, message)
            yield message
    finally:
        close_generator(messages)


class _Told(_Ending):
    """The messages of an answer, of which hooks are told. No generator: closing one that was not begun runs nothing."""

    __slots__ = ("_messages",)

    def __init__(self, hooks: Hooks, context: CallContext, trailers: CIMultiDict[str], messages: Any) -> None:
        super().__init__(hooks, context, trailers)
        self._messages: Iterator[Any] = iter(messages)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            message = next(self._messages)
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._tell_message(message)
        return message

    def close(self) -> None:
        try:
            self._leave()
        finally:
            close_messages(self._messages)


# Awaited


def _around_async(interceptor: Any, proceed: Step) -> Step:
    async def step(request: Request) -> Response:
        given = interceptor(_own(request), proceed)
        if not inspect.isawaitable(given):
            raise _not_a_response(interceptor, given)
        response = await given
        if not isinstance(response, Response):
            raise _not_a_response(interceptor, response)
        return response

    return step


def as_async(messages: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    """Messages that can be awaited, of an asynchronous iterable or of a plain one."""
    if hasattr(messages, "__aiter__"):
        return messages.__aiter__()
    return _Plain(messages)


async def aclose_messages(messages: object) -> None:
    """``close_messages`` for async code, where either kind of generator is closed."""
    close = getattr(messages, "aclose", None)
    if close is not None:
        await close()
    else:
        close_messages(messages)


async def aclose_generator(messages: object) -> None:
    """``close_generator`` for async code, where either kind of generator is closed."""
    if isinstance(messages, AsyncGeneratorType):
        await messages.aclose()
    else:
        close_generator(messages)


class _Plain:
    """A plain iterable as an asynchronous iterator."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Iterable[Any]) -> None:
        self._messages = iter(messages)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._messages)
        except StopIteration:
            raise StopAsyncIteration from None
        except StopAsyncIteration as error:
            raise ended_wrongly() from error

    async def aclose(self) -> None:
        close_messages(self._messages)


def ended_wrongly() -> RuntimeError:
    """What it is that something other than an asynchronous iterator has raised ``StopAsyncIteration`` (PEP 479)."""
    return RuntimeError("a synchronous iterator raised StopAsyncIteration")


async def aclose_begun(context: CallContext, failure: BaseException | None = None) -> None:
    """``close_begun`` for async code."""
    context._failure = failure
    try:
        async with contextlib.AsyncExitStack() as stack:
            for messages in context._begun:
                stack.push_async_callback(messages.aclose)
            context._begun.clear()
    finally:
        context._failure = None  # as above


async def _tell_async(hooks: Hooks, request: Request, proceed: Step) -> Response:
    context = request.context
    try:
        hooks.on_start(context)
        if request.messages is None:
            hooks.on_request_message(context, request.message)
        else:
            request = Request(context, messages=_tell_each_async(hooks, context, request.messages))  # as `_own`
        response: Response = await proceed(request)
        hooks.on_response_headers(context, response.headers)
        if response.messages is None:
            hooks.on_response_message(context, response.message)
        else:
            response.messages = _ToldAsync(hooks, context, response.trailers, response.messages)
    except BaseException as error:
        _tell_end(hooks, context, error, _trailers_of(context, error))
        raise
    if response.messages is None:
        _tell_given(hooks, context, response)
    else:
        context._begun.append(response.messages)
    return response


async def _tell_each_async(hooks: Hooks, context: CallContext, messages: Any) -> AsyncIterator[Any]:
    try:
        async for message in as_async(unused(messages) if context.is_client else messages):
            _tell_request(hooks, context, message)
            yield message
    finally:
        await aclose_generator(messages)


class _ToldAsync(_Ending):
    """``_Told`` for async code."""

    __slots__ = ("_messages",)

    def __init__(self, hooks: Hooks, context: CallContext, trailers: CIMultiDict[str], messages: Any) -> None:
        super().__init__(hooks, context, trailers)
        self._messages = as_async(messages)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            message = await self._messages.__anext__()
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._tell_message(message)
        return message

    async def aclose(self) -> None:
        try:
            self._leave()
        finally:
            await aclose_messages(self._messages)
