"""What both colours do around a client's interceptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from multidict import CIMultiDict

from connectrpc._core.chain import interceptor_failure
from connectrpc.errors import ConnectError
from connectrpc.headers import iter_headers
from connectrpc.interceptors import CallContext, Request
from connectrpc.request import Peer

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.metadata import Metadata
    from connectrpc.client.options import Procedures
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.interceptors import Response
    from connectrpc.method import Method

    Received = tuple[T, Callable[[], Metadata]]
    """The message of an answer, and what reads its headers and trailers."""

__all__ = ["coded", "given_by", "given_to", "new_request", "passing", "streamed_by"]

_OWN = object()
"""The key under which a context keeps an exception that is none of the interceptors'."""


def new_request(
    method: Method[Any, Any],
    given: Any,
    procedures: Procedures,
    deadline: Deadline,
    extra_headers: HeaderInput | None,
) -> Request:
    """The request of a call that begins: of ``given``, which is a message, or for a stream an iterable of them."""
    context = CallContext(
        method=method,
        peer=Peer(procedures.base_url, procedures.protocol),
        timeout=deadline,
        request_headers=CIMultiDict(iter_headers(extra_headers or {})),
        is_client=True,
    )
    return Request(context, messages=given) if method.kind.client_streams else Request(context, given)


def given_to(request: Request) -> Any:
    """What interceptors have let through: the message, or the iterable."""
    return request.message if request.messages is None else request.messages


def given_by(response: Response) -> Received[Any]:
    """What has come out of the interceptors of a call that is answered by one message.

    Raises:
        TypeError: it is no message.
    """
    if response.message is None:
        raise TypeError("a Response without a message has come out of the interceptors")
    return response.message, lambda: (response.headers, response.trailers)


def streamed_by(response: Response) -> Any:
    """``given_by`` of a call that is answered by a stream: its messages."""
    if response.messages is None:
        raise TypeError("a Response without messages has come out of the interceptors")
    return response.messages


def passing(context: CallContext, error: Exception) -> Exception:
    """Note that ``error`` comes from the call itself: the caller's own iterator, or a wrong argument."""
    if not isinstance(error, ConnectError):  # one of these needs no note, by which it would hold itself and its call
        context.values[_OWN] = error
    return error


def coded(context: CallContext, error: BaseException) -> ConnectError | None:
    """What the caller is told of an exception that left the interceptors; None if it is raised as it is."""
    if isinstance(error, ConnectError):
        return error
    own = context.values.pop(_OWN, None)  # taken away: through its traceback it holds the context
    if own is error or not isinstance(error, Exception):
        return None
    return interceptor_failure(error)
