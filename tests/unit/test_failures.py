"""What becomes of failures, whatever the HTTP library."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import ssl

import pytest

from connectrpc.errors import ConnectErrorCode
from connectrpc.transports._failures import no_connection, reraise, tls_failure


def chained(*errors: BaseException) -> BaseException:
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def untrusted(code: int, text: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {text} (_ssl.c:1)")
    error.verify_code, error.verify_message = code, text
    return error


REFUSED = os.strerror(errno.ECONNREFUSED)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("x"), "no connection to the server can be made"),
        (OSError("several: host-a, host-b"), "no connection to the server can be made"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "host-a"), f"no connection to the server can be made: {REFUSED}"),
        (
            chained(ValueError("x"), OSError("y"), OSError(errno.ECONNREFUSED, "host-a")),
            f"no connection to the server can be made: {REFUSED}",
        ),
        (chained(OSError("x"), socket.gaierror(-2, "host-a")), "the server's name cannot be resolved"),
        (chained(OSError("x"), untrusted(19, "self-signed")), "the server's certificate is not trusted: self-signed"),
        (
            chained(OSError("x"), untrusted(62, "not valid for 'host-a'")),
            "the server's certificate is not trusted: it is for another host",
        ),
        (ValueError(untrusted(18, "self-signed")), "the server's certificate is not trusted: self-signed"),
        (ssl.SSLError(1, "alert"), "TLS with the server failed: alert"),
    ],
    ids=str,
)
def test_no_connection(error: BaseException, message: str) -> None:
    """The reason is told, and no name of a host: a service may pass on what a call of its own raised."""
    found = no_connection(error)
    assert found.code is ConnectErrorCode.UNAVAILABLE
    assert found.message == message
    assert "host-a" not in found.message


@pytest.mark.parametrize("error", [OSError("x"), ssl.SSLEOFError(8, "x"), ssl.SSLZeroReturnError(6, "x")])
def test_a_connection_that_was_closed_is_no_failure_of_tls(error: OSError) -> None:
    assert tls_failure(error) is None


def test_an_exception_raised_again_is_as_it_was() -> None:
    cause, context = KeyError("cause"), KeyError("context")
    failure = ValueError("mine")
    failure.__cause__, failure.__context__ = cause, context
    with pytest.raises(ValueError, match="mine") as caught:
        try:
            raise OSError("the library's")
        except OSError:
            reraise(failure)
    assert caught.value is failure
    assert (failure.__cause__, failure.__context__, failure.__suppress_context__) == (cause, context, True)
