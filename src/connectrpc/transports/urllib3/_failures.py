"""What failures are to the caller."""

from __future__ import annotations

import os
import re
import ssl
from typing import TYPE_CHECKING

from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    PoolError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.ssl_match_hostname import CertificateError

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._failures import (
    causes,
    client_timed_out,
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    not_proxied,
    other_fingerprint,
    tls_failure,
    unresolved,
    untrusted,
)
from connectrpc.transports.urllib3._http import NoAnswerError

if TYPE_CHECKING:
    from connectrpc.transports.urllib3._stopping import Guard

__all__ = ["coded"]


def coded(error: Exception, guard: Guard | None, *, answered: bool) -> ConnectError:
    """What a failure of urllib3's is to the caller, before or after the head of the answer has come."""
    if guard is not None:
        reason = guard.reason()
        if reason is not None:
            return reason
    if isinstance(error, ProxyError):
        if not isinstance(error.original_error, HTTPError):
            return _not_proxied(error.original_error)
        error = error.original_error
    if isinstance(error, EmptyPoolError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "all connections of the HTTP client's pool are in use")
    if isinstance(error, ReadTimeoutError):
        return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own read timeout has passed")
    if isinstance(error, NameResolutionError | LocationParseError):
        return unresolved()
    if isinstance(error, NewConnectionError):
        return no_connection(error)
    if isinstance(error, ConnectTimeoutError):
        return connected_too_late()
    failure = tls_failure(error)
    if failure is not None:
        return failure
    if (
        not answered
        and isinstance(error, ProtocolError | SSLError)
        and any(isinstance(arg, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError) for arg in error.args)
    ):
        return closed_unanswered()
    if isinstance(error, PoolError):
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "the HTTP client's pool is closed")
    if any(isinstance(arg, TimeoutError) and arg.errno is None for arg in error.args):
        return client_timed_out()  # the user's, for sending
    if isinstance(error, SSLError):
        if any(isinstance(arg, CertificateError) for arg in error.args):
            return untrusted("it is for another host")
        if any(isinstance(arg, str) for arg in error.args):  # urllib3 has compared it itself
            return other_fingerprint()
    return connection_failed(_reason(error))


def _not_proxied(error: Exception) -> ConnectError:
    """What it is to the caller that a proxy has not done what it was asked for."""
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))
    if refused is None:
        return no_connection(error)
    return not_proxied(refused[1])


def _reason(error: Exception) -> str:
    """What can be told of a connection that failed.

    Never in the libraries' own words: they name hosts and proxies, and quote what came, which may be what was sent. A
    service that called another may pass the error on.
    """
    for cause in causes(error):
        for found in (*cause.args, cause):
            if isinstance(found, NoAnswerError):
                return str(found)
            if isinstance(found, OSError) and not isinstance(found, ssl.SSLError) and found.errno:
                return os.strerror(found.errno)
    return "its answer broke off, or is not HTTP"
