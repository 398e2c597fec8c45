"""What becomes of failures, whatever the HTTP library."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING, NoReturn

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["causes", "no_connection", "reraise", "tls_failure", "unresolved"]


def reraise(failure: BaseException) -> NoReturn:
    """Raise what the caller's own code has raised somewhere else, with its cause and context as they were."""
    context, suppressed = failure.__context__, failure.__suppress_context__
    try:
        raise failure
    finally:
        failure.__context__, failure.__suppress_context__ = context, suppressed
        del failure  # whose traceback has this frame


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """A failure and what it came from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unresolved() -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, "the server's name cannot be resolved")


def tls_failure(error: BaseException) -> ConnectError | None:
    """What it is to the caller that TLS failed; None when it was not TLS, or when the connection was merely closed."""
    for cause in causes(error):
        for found in (cause, *cause.args):
            if isinstance(found, ssl.SSLCertVerificationError):
                other = found.verify_code in _OTHER_HOST
                reason = "it is for another host" if other else found.verify_message
                message = f"the server's certificate is not trusted: {reason}"
                return ConnectError(ConnectErrorCode.UNAVAILABLE, message)
            if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                reason = getattr(found, "reason", None) or str(found)
                return ConnectError(ConnectErrorCode.UNAVAILABLE, f"TLS with the server failed: {reason}")
    return None


_OTHER_HOST = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def no_connection(error: BaseException) -> ConnectError:
    """What it is to the caller that a connection could not be made."""
    failure = tls_failure(error)
    if failure is not None:
        return failure
    number = None
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            return unresolved()
        if isinstance(cause, OSError) and cause.errno in errno.errorcode:
            number = cause.errno
    # Not the library's own text: it may name hosts, and a service that called another may pass the error on.
    reason = "" if number is None else f": {os.strerror(number)}"
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"no connection to the server can be made{reason}")
