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
    from types import FrameType

__all__ = [
    "causes",
    "client_timed_out",
    "closed_unanswered",
    "connected_too_late",
    "connection_failed",
    "no_connection",
    "not_proxied",
    "other_fingerprint",
    "package_of",
    "reraise",
    "stream_reset",
    "tls_failed",
    "tls_failure",
    "unresolved",
    "untrusted",
]


def reraise(failure: BaseException) -> NoReturn:
    """Raise what the caller's own code has raised somewhere else, with its cause and context as they were."""
    context, suppressed = failure.__context__, failure.__suppress_context__
    try:
        raise failure
    finally:
        failure.__context__, failure.__suppress_context__ = context, suppressed
        del failure  # whose traceback has this frame


def causes(error: BaseException) -> Iterator[BaseException]:
    """A failure and what it came from, the outermost first.

    Not what somebody further out was handling when the call was made, who may be the caller: Python makes that the
    context of all that is raised meanwhile. It was caught in a frame that is still running, around the one which has
    caught the failure.

    And each of them once, for they may come of each other: httpcore raises what a connection has failed with again, at
    the next attempt to use that, and then it has a context which it is the cause of.
    """
    caught = error.__traceback__
    frame = None if caught is None else caught.tb_frame.f_back
    around: set[FrameType] = set()
    while frame is not None:
        around.add(frame)
        frame = frame.f_back
    found: BaseException | None = error
    told: set[int] = set()
    while (
        found is not None
        and id(found) not in told
        and (found.__traceback__ is None or found.__traceback__.tb_frame not in around)
    ):
        told.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def package_of(error: BaseException) -> str:
    """The package whose code has raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def unresolved() -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, "the server's name cannot be resolved")


def untrusted(reason: str) -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"the server's certificate is not trusted: {reason}")


def other_fingerprint() -> ConnectError:
    """What it is to the caller that the server's certificate is not the one that the user has named."""
    return untrusted("it has another fingerprint")


def not_proxied(status: object) -> ConnectError:
    """What it is to the caller that a proxy has refused to connect with this HTTP status."""
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"the proxy makes no connection: HTTP status {status}")


def tls_failed(reason: str) -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"TLS with the server failed: {reason}")


def tls_failure(error: BaseException) -> ConnectError | None:
    """What it is to the caller that TLS failed; None when it was not TLS, or when the connection was merely closed."""
    for cause in causes(error):
        # Their arguments first: aiohttp's are errors of ssl by their type, without what these tell, and name the host.
        for found in (*cause.args, cause):
            if isinstance(found, ssl.SSLCertVerificationError) and hasattr(found, "verify_code"):
                other = found.verify_code in _OTHER_HOST
                reason = "it is for another host" if other else found.verify_message
                return untrusted(reason)
            if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                named = getattr(found, "reason", None)  # in capitals, such as TLSV13_ALERT_CERTIFICATE_REQUIRED
                reason = named.replace("_", " ").lower() if named else str(found)
                return tls_failed(reason)
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
        if isinstance(cause, ssl.SSLError):  # whose number is OpenSSL's
            return tls_failed("the connection was closed")
        if isinstance(cause, OSError) and cause.errno in errno.errorcode:
            number = cause.errno
    # Not the library's own text: it may name hosts, and a service that called another may pass the error on.
    reason = "" if number is None else f": {os.strerror(number)}"
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"no connection to the server can be made{reason}")


def connected_too_late() -> ConnectError:
    return ConnectError(ConnectErrorCode.UNAVAILABLE, "connecting to the server took too long")


def client_timed_out() -> ConnectError:
    """What it is to the caller that a timeout has passed which is not the call's, but the user's HTTP client's."""
    return ConnectError(ConnectErrorCode.DEADLINE_EXCEEDED, "the HTTP client's own timeout has passed")


def connection_failed(reason: object = "") -> ConnectError:
    """What it is to the caller that a connection which was there has failed."""
    told = f": {reason}" if reason else ""
    return ConnectError(ConnectErrorCode.UNAVAILABLE, f"the connection to the server failed{told}")


_STREAM_ERRORS = {
    0: ("NO_ERROR", ConnectErrorCode.INTERNAL),
    1: ("PROTOCOL_ERROR", ConnectErrorCode.INTERNAL),
    2: ("INTERNAL_ERROR", ConnectErrorCode.INTERNAL),
    3: ("FLOW_CONTROL_ERROR", ConnectErrorCode.INTERNAL),
    4: ("SETTINGS_TIMEOUT", ConnectErrorCode.INTERNAL),
    5: ("STREAM_CLOSED", ConnectErrorCode.UNAVAILABLE),
    6: ("FRAME_SIZE_ERROR", ConnectErrorCode.INTERNAL),
    7: ("REFUSED_STREAM", ConnectErrorCode.UNAVAILABLE),
    8: ("CANCEL", ConnectErrorCode.CANCELED),
    9: ("COMPRESSION_ERROR", ConnectErrorCode.INTERNAL),
    10: ("CONNECT_ERROR", ConnectErrorCode.INTERNAL),
    11: ("ENHANCE_YOUR_CALM", ConnectErrorCode.RESOURCE_EXHAUSTED),
    12: ("INADEQUATE_SECURITY", ConnectErrorCode.PERMISSION_DENIED),
    13: ("HTTP_1_1_REQUIRED", ConnectErrorCode.UNAVAILABLE),
}
"""The error codes of RFC 9113 section 7, and what gRPC over HTTP2, "Errors", makes of them. Where that names none, the
connection has failed."""


def stream_reset(number: int) -> ConnectError:
    """What it is to the caller that the server ended a stream of HTTP/2 with an error code."""
    name, code = _STREAM_ERRORS.get(number, (f"HTTP/2 error {number}", ConnectErrorCode.UNAVAILABLE))
    return ConnectError(code, f"the server ended the stream with {name}")


def closed_unanswered() -> ConnectError:
    """What it is to the caller that the connection was closed before the head of the answer.

    Such a call is not sent again: the server may have closed an idle connection just as the request went out, and then
    it was never processed, but nothing can tell that from a server which died over it, or had no more time for it.
    """
    return ConnectError(
        ConnectErrorCode.UNAVAILABLE,
        "the server closed the connection without an answer; whether it saw the request is not known",
    )
