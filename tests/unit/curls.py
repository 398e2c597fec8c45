"""What the tests of libcurl as a transport share: handles that are none, and how libcurl fails."""

# ruff: noqa: E501  tables read best with a row a line
from __future__ import annotations

from typing import Any

import pytest

pycurl: Any = pytest.importorskip("pycurl")

URL = "http://h/p?x=%2F"
HEADERS = [("content-type", "application/proto"), ("x-many", "1"), ("x-many", "2"), ("x-empty", "")]
KIB = 1024
PAUSE: int = pycurl.READFUNC_PAUSE


class Curl:
    """A handle, whose callbacks the test calls as libcurl would."""

    def __init__(self) -> None:
        self.options: dict[int, Any] = {}
        self.paused: list[int] = []
        self.pause_fails = False
        self.errno = 0
        self.closed = False

    def setopt(self, option: int, value: Any) -> None:
        self.options[option] = value

    def pause(self, directions: int) -> None:
        if self.pause_fails:
            raise pycurl.error(43, "pause/unpause failed")
        self.paused.append(directions)

    def getinfo(self, option: int) -> int:
        assert option == pycurl.OS_ERRNO
        return self.errno

    def close(self) -> None:
        self.closed = True

    def attempt(self) -> int:
        result: int = self.options[pycurl.PREREQFUNCTION]("127.0.0.1", "127.0.0.1", 80, 50000)
        return result

    def head(self, *lines: str) -> None:
        for line in (*lines, ""):
            assert self.options[pycurl.HEADERFUNCTION](f"{line}\r\n".encode()) is None

    def trailers(self, *lines: str) -> None:
        self.head(*lines)

    def write(self, chunk: bytes) -> int | None:
        result: int | None = self.options[pycurl.WRITEFUNCTION](chunk)
        return result

    def read(self, size: int = 64 * KIB) -> bytes | int:
        result: bytes | int = self.options[pycurl.READFUNCTION](size)
        return result


def assert_options(options: dict[int, Any]) -> None:
    """What a handle is told for a POST of seven bytes, by a transport with a connect timeout of 1.5 seconds."""
    assert options[pycurl.URL] == URL.encode()
    assert options[pycurl.HTTPHEADER] == [
        "content-type: application/proto",
        "x-many: 1",
        "x-many: 2",
        "x-empty;",
        "Accept:",
        "Expect:",
    ]
    assert options[pycurl.POST] == 1
    assert options[pycurl.POSTFIELDSIZE_LARGE] == 7
    assert options[pycurl.PROXY] == "", "none from the environment"
    assert options[pycurl.CONNECTTIMEOUT_MS] == 1500
    assert options[pycurl.NOSIGNAL] == options[pycurl.PATH_AS_IS] == options[265] == 1
    assert not options.keys() & {pycurl.FOLLOWLOCATION, pycurl.COOKIEFILE, pycurl.ACCEPT_ENCODING, pycurl.TIMEOUT_MS}


VERSIONS = [
    (None, pycurl.CURL_HTTP_VERSION_2TLS, True),
    ("1.1", pycurl.CURL_HTTP_VERSION_1_1, False),
    ("2", pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE, True),
]
"""Versions of HTTP, libcurl's numbers for them, and whether they may have trailers."""


def assert_versions(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which versions a transport refuses."""
    with pytest.raises(ValueError, match=r"http_version '3' is neither '1\.1' nor '2'"):
        transport(http_version="3")
    found = list(pycurl.version_info())
    found[4] &= ~pycurl.VERSION_HTTP2
    monkeypatch.setattr(pycurl, "version_info", lambda: tuple(found))
    for version in (None, "2"):
        with pytest.raises(ValueError, match="built without HTTP/2"):
            transport(http_version=version)
    assert not transport(http_version="1.1").has_trailers


RESET = "HTTP/2 stream {} was not closed cleanly: {} (err {})"
NEW_RESET = "HTTP/2 stream {} reset by server (error 0x{:x} {})"
CODES = {
    "NO_ERROR": (0, "internal"),
    "PROTOCOL_ERROR": (1, "internal"),
    "INTERNAL_ERROR": (2, "internal"),
    "STREAM_CLOSED": (5, "unavailable"),
    "REFUSED_STREAM": (7, "unavailable"),
    "CANCEL": (8, "canceled"),
    "ENHANCE_YOUR_CALM": (11, "resource_exhausted"),
    "INADEQUATE_SECURITY": (12, "permission_denied"),
    "HTTP_1_1_REQUIRED": (13, "unavailable"),
}

UNANSWERED = "closed the connection without an answer"
OPENSSL = "OpenSSL SSL_read: OpenSSL/3.6.5: error:{}, errno 0"

FAILURES: list[tuple[int, str, str, str]] = [
    (1, "Received HTTP/0.9 when not allowed", "unavailable", "is not HTTP"),
    (8, "Invalid status line", "unavailable", "is not HTTP"),
    (5, "Could not resolve proxy: secret.test", "unavailable", "name cannot be resolved"),
    (6, "Could not resolve host: secret.test", "unavailable", "name cannot be resolved"),
    (7, "Failed to connect to secret.test:1 after 0 ms: Could not connect to server", "unavailable", "made: Connection refused"),
    (97, "Can not complete SOCKS5 connection to secret.test", "unavailable", "no connection to the server"),
    (7, "CONNECT tunnel failed, response 403", "unavailable", "no connection to the server"),
    (56, "CONNECT tunnel failed, response 403", "unavailable", "no connection to the server can be made"),
    (56, "Proxy CONNECT aborted", "unavailable", "no connection to the server can be made"),
    (16, "", "unavailable", UNANSWERED),
    (16, "nghttp2 shuts down connection with error 1: PROTOCOL_ERROR", "unavailable", "HTTP/2"),
    (18, "transfer closed with 6 bytes remaining to read", "unavailable", "in the middle of the answer"),
    (28, "Connection timed out after 300 milliseconds", "unavailable", "took too long"),
    (28, "Failed to connect to secret.test:1 after 300 ms: Timeout was reached", "unavailable", "took too long"),
    (28, "Operation timed out after 200 milliseconds with 0 bytes received", "deadline_exceeded", "own timeout"),
    (35, "TLS connect error: error:0A00010B:SSL routines::wrong version number", "unavailable", "failed: wrong version number"),
    (35, "TLS connect error: error:0A000126:SSL routines::unexpected eof while reading", "unavailable", "no connection to the server"),
    (42, "operation aborted by pre-request callback", "unavailable", UNANSWERED),
    (52, "Empty reply from server", "unavailable", UNANSWERED),
    (55, "Send failure: Broken pipe", "unavailable", UNANSWERED),
    (56, "Recv failure: Connection reset by peer", "unavailable", UNANSWERED),
    (56, OPENSSL.format("0A00045C:SSL routines::tlsv13 alert certificate required"), "unavailable", "tlsv13 alert certificate required"),
    (56, OPENSSL.format("0A000126:SSL routines::unexpected eof while reading"), "unavailable", UNANSWERED),
    (60, "SSL certificate problem: self-signed certificate", "unavailable", "not trusted: self-signed certificate"),
    (60, "SSL certificate OpenSSL verify result: unable to get local issuer certificate (20)", "unavailable", "not trusted: unable to get local issuer certificate"),
    (60, "SSL: no alternative certificate subject name matches target hostname 'secret.test'", "unavailable", "it is for another host"),
    (60, "", "unavailable", "it cannot be verified"),
    (65, "necessary data rewind was not possible", "unavailable", UNANSWERED),
    (77, "error setting certificate verify locations: CAfile: secret.test", "unavailable", "libcurl's error 77"),
    (92, "HTTP/2 stream 1 was closed cleanly, but before getting all response header fields, treated as error", "internal", "NO_ERROR"),
    (92, "[HTTP2] [1] received invalid frame", "unavailable", "HTTP/2"),
    (92, RESET.format(1, "Unknown error code", 99), "unavailable", "HTTP/2 error 99"),
    *((92, RESET.format(1, name, number), code, name) for name, (number, code) in CODES.items()),
    *((92, NEW_RESET.format(95, number, name), code, name) for name, (number, code) in CODES.items()),
]  # fmt: skip
