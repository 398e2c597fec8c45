"""What both kinds of application do around a call: how long they read on, and what becomes of what handlers raise."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from connectrpc._core.chain import is_timeout
from connectrpc._core.message import UnencodableError
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import ServerCall, StreamServerCall
    from connectrpc._core.http import WholeResponse
    from connectrpc.request import ServerStream

__all__ = [
    "DRAIN_IDLE_SECONDS",
    "DRAIN_MAX_BYTES",
    "DRAIN_MAX_SECONDS",
    "StrayError",
    "coded",
    "failed",
    "last_part",
    "logger",
    "ordinary",
]

logger = logging.getLogger("connectrpc.server")

# What is still read of a request that has its answer already. Clients lose an answer that overtakes their request, so
# it is read to its end; but not without end.
DRAIN_MAX_BYTES = 64 * 1024 * 1024
DRAIN_MAX_SECONDS = 10.0
DRAIN_IDLE_SECONDS = 1.0  # a client that sends nothing more may be waiting for the answer


class StrayError(Exception):
    """A handler was left by what is no ``Exception``: by ``CancelledError``, say, though nobody had cancelled it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"a handler was left by {type(error).__name__}")
        self.__cause__ = error


def ordinary(error: BaseException) -> Exception:
    """What was raised, as a failure of the handler's.

    Raises:
        BaseException: it is meant for the process, or ends a generator.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    return StrayError(error)


def coded(call: ServerCall, error: Exception) -> ConnectError:
    """The error that the client is sent for what a handler, or our work for it, raised.

    Only a ``ConnectError`` says to the client what it says. Everything else is logged, with its traceback, and told
    without its text, which may hold anything.
    """
    if call.keeps_failure:
        call.failure = error
    if isinstance(error, ConnectError):
        error.__traceback__ = None  # one error may be given for many calls, and would keep what all of them had
        return error
    if is_timeout(error) and call.deadline.expired():
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the deadline has passed")
    if isinstance(error, UnencodableError):
        logger.error("%s gave a message that cannot be encoded", call.method.path, exc_info=error.__cause__)
        return ConnectError(ConnectErrorCode.INTERNAL, "the service gave a message that cannot be encoded")
    logger.error("%s failed", call.method.path, exc_info=error)
    return ConnectError(ConnectErrorCode.UNKNOWN, "the service failed")


def failed(call: ServerCall, error: Exception) -> WholeResponse:
    """The whole answer that tells the client of what was raised before anything was sent."""
    try:
        return call.fail(coded(call, error))
    except Exception as further:  # an error that cannot be sent
        return call.fail(coded(call, further))


def last_part(call: StreamServerCall, failure: ConnectError | None, stream: ServerStream[Any] | None) -> bytes:
    """The last part of a streamed answer, with the trailers that the handler has set by now."""
    try:
        return call.finish(failure, None if stream is None else stream.metadata()[1])
    except Exception as error:  # the trailers cannot be sent
        return call.finish(coded(call, error), None)
