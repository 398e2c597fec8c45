"""What becomes of failures, whatever the HTTP library."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from connectrpc.errors import ConnectErrorCode
from connectrpc.transports._failures import causes, no_connection, reraise, stream_reset, tls_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc.errors import ConnectError


def chained(*errors: BaseException) -> BaseException:
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def untrusted(code: int, text: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {text} (_ssl.c:1)")
    error.verify_code, error.verify_message = code, text
    return error


class OfAnotherLibrary(ssl.SSLCertVerificationError):
    """As aiohttp's errors: one of ssl's by its type alone, with that among its arguments."""

    def __init__(self, host: str, error: Exception) -> None:
        self.args = (host, error)


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
        (
            OfAnotherLibrary("host-a", untrusted(19, "self-signed")),
            "the server's certificate is not trusted: self-signed",
        ),
        (OfAnotherLibrary("host-a", ssl.SSLError(1, "alert")), "TLS with the server failed: alert"),
        (
            chained(OSError("x"), ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF at host-a")),
            "TLS with the server failed: the connection was closed",
        ),
    ],
    ids=str,
)
def test_no_connection(error: BaseException, message: str) -> None:
    """The reason is told, and no name of a host: a service may pass on what a call of its own raised."""
    found = no_connection(error)
    assert found.code is ConnectErrorCode.UNAVAILABLE
    assert found.message == message
    assert "host-a" not in found.message


def test_causes_that_come_of_each_other() -> None:
    """Each is told once, however they are chained."""
    lasting = OSError("of the connection")
    failure = chained(ValueError("of the call"), lasting)
    lasting.__context__ = failure
    assert list(itertools.islice(causes(failure), 5)) == [failure, lasting]


def fail(failure: Exception, first: Exception | None = None) -> None:
    """As an HTTP library, which may raise a failure while it handles another."""
    if first is None:
        raise failure
    try:
        raise first
    except Exception:
        raise failure  # noqa: B904  it is the context that matters


def connect(failure: Exception, first: Exception | None = None) -> ConnectError:
    """As a transport."""
    try:
        fail(failure, first)
    except Exception as error:
        return no_connection(error)
    raise AssertionError


@contextlib.contextmanager
def again(failure: Exception) -> Iterator[list[ConnectError]]:
    """Makes a call when another has failed."""
    found: list[ConnectError] = []
    try:
        yield found
    except OSError:
        found.append(connect(failure))


def test_what_a_library_was_handling() -> None:
    found = connect(OSError("x"), OSError(errno.ECONNREFUSED, "host-a"))
    assert found.message == f"no connection to the server can be made: {REFUSED}"


@pytest.mark.parametrize("other", [socket.gaierror(-2, "host-a"), ssl.SSLError(1, "alert")], ids=repr)
def test_what_the_caller_was_handling_is_not_why_it_failed(other: OSError) -> None:
    """A call is made when another has failed: for a fallback, or to report it."""
    refused = f"no connection to the server can be made: {REFUSED}"
    try:
        raise other
    except OSError:
        assert connect(OSError(errno.ECONNREFUSED, "host-b")).message == refused
        assert connect(OSError("x"), OSError(errno.ECONNREFUSED, "host-b")).message == refused
    with again(OSError(errno.ECONNREFUSED, "host-b")) as found:
        raise other
    assert found[0].message == refused


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


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (0, "INTERNAL", "NO_ERROR"),
        (7, "UNAVAILABLE", "REFUSED_STREAM"),
        (8, "CANCELED", "CANCEL"),
        (11, "RESOURCE_EXHAUSTED", "ENHANCE_YOUR_CALM"),
        (12, "PERMISSION_DENIED", "INADEQUATE_SECURITY"),
        (13, "UNAVAILABLE", "HTTP_1_1_REQUIRED"),
        (99, "UNAVAILABLE", "HTTP/2 error 99"),
    ],
)
def test_a_stream_that_was_reset(number: int, code: str, name: str) -> None:
    found = stream_reset(number)
    assert found.code is ConnectErrorCode[code]
    assert found.message == f"the server ended the stream with {name}"
