"""What both colours do around a client's interceptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from connectrpc._core.chain import interceptor_failure
from connectrpc.errors import ConnectError
from connectrpc.headers import iter_headers
from connectrpc.interceptors import CallContext
from connectrpc.request import Peer

if TYPE_CHECKING:
    from connectrpc.client.options import Procedures
    from connectrpc.deadline import Deadline
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = ["coded", "new_context", "passing"]

_OWN = object()
"""The key under which a context keeps an exception that is none of the interceptors'."""


def new_context(
    method: Method[Any, Any], procedures: Procedures, deadline: Deadline, extra_headers: HeaderInput | None
) -> CallContext:
    """The context of a call that begins."""
    return CallContext(
        method=method,
        peer=Peer(procedures.base_url, procedures.protocol),
        timeout=deadline,
        request_headers=CIMultiDict(iter_headers(extra_headers or {})),
        is_client=True,
    )


def passing(context: CallContext, error: Exception) -> Exception:
    """Note that ``error`` comes from the call itself: the caller's own iterator, or a wrong argument."""
    context.values[_OWN] = error
    return error


def coded(context: CallContext, error: Exception) -> Exception:
    """What the caller sees of an exception that left the interceptors."""
    if isinstance(error, ConnectError) or context.values.get(_OWN) is error:
        return error
    return interceptor_failure(error)
