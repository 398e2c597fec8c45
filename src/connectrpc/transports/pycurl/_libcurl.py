"""What is the same for blocking and for asynchronous calls: handles, requests, heads of answers, failures."""

from __future__ import annotations

import ctypes
import os
import re
import ssl
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import pycurl
from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._failures import (
    client_timed_out,
    closed_unanswered,
    connected_too_late,
    connection_failed,
    no_connection,
    stream_reset,
    tls_failed,
    unresolved,
    untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.http import HTTPRequest

__all__ = ["AHEAD_BYTES", "Attempts", "Handles", "Outgoing", "failure", "fields", "head_of", "inherit", "set_request"]

AHEAD_BYTES = 64 * 1024
"""How far the caller's iterator may be ahead of what is sent, and an answer ahead of who reads it."""

_SUPPRESS_CONNECT_HEADERS = 265  # pycurl has no name for it
_NOT_SENT = ["Accept:", "Expect:"]  # what libcurl would add of its own

# No HTTP/3: libcurl's gives up all calls of a connection when one of them ends in the middle of its request.
_VERSIONS = {
    None: pycurl.CURL_HTTP_VERSION_2TLS,
    "1.1": pycurl.CURL_HTTP_VERSION_1_1,
    "2": pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE,
}


class Handles:
    """Makes the handles of a transport, which has the arguments from its user.

    Attributes:
        has_trailers: whether calls may go over HTTP/2.

    Raises:
        ValueError: there is no such ``http_version``, or pycurl's libcurl was built without HTTP/2.
    """

    def __init__(
        self,
        http_version: Literal["1.1", "2"] | None,
        configure: Callable[[pycurl.Curl], object] | None,
        connect_timeout: float | None,
    ) -> None:
        if http_version not in _VERSIONS:
            raise ValueError(f"http_version {http_version!r} is neither '1.1' nor '2'")
        if http_version != "1.1" and not pycurl.version_info()[4] & pycurl.VERSION_HTTP2:
            raise ValueError(f"this libcurl was built without HTTP/2: {pycurl.version}")
        self.has_trailers = http_version != "1.1"
        self._version = _VERSIONS[http_version]
        self._trusted = _trusted_file()
        self._configure = configure
        self._connect_timeout_ms = 0 if connect_timeout is None else max(1, round(connect_timeout * 1000))

    def new(self) -> Any:
        curl: Any = pycurl.Curl()
        curl.setopt(pycurl.PROXY, "")
        if self._trusted is not None:  # pycurl's own is where one distribution of Linux has it
            curl.setopt(pycurl.CAINFO, self._trusted)
        if self._configure is not None:
            self._configure(curl)
        curl.setopt(pycurl.HTTP_VERSION, self._version)
        curl.setopt(pycurl.PIPEWAIT, 1)  # for a connection that is being made and may have room for more calls
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, self._connect_timeout_ms)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.PATH_AS_IS, 1)
        curl.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # what a proxy says is not the answer
        return curl


def _trusted_file() -> str | None:
    """The file with the certificates that Python trusts."""
    trusted = ssl.get_default_verify_paths()
    if trusted.cafile is None and trusted.capath is not None:
        # Some distributions have all of them in one file beside the others. As ``CAPATH`` they would be trusted beside
        # what a user names as ``CAINFO``.
        together = os.path.join(trusted.capath, "ca-certificates.crt")
        return together if os.path.exists(together) else None
    return trusted.cafile


_multis: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of this process, and of the one that it was forked from."""


def inherit(multi: Any) -> None:
    """See to it that a ``CurlMulti`` is safe in child processes, which must not use it."""
    _multis.add(multi)


def _keep_inherited() -> None:
    """Keep for good, in a child process, what it has inherited.

    The connections are the parent's as well. Whenever libcurl closes one it says so to the server, also at the end of
    the process, when everything that Python itself refers to is collected.
    """
    for multi in _multis:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(multi))
    _multis.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


def set_request(curl: Any, request: HTTPRequest, length: int) -> None:
    """Have a handle send a request, with a body of so many bytes; -1 where that is not known."""
    curl.setopt(pycurl.URL, request.url.encode())
    # By a semicolon in place of the colon libcurl knows a header that is to be sent without a value.
    headers = [f"{name}: {value}" if value else f"{name};" for name, value in request.headers]
    curl.setopt(pycurl.HTTPHEADER, headers + _NOT_SENT)
    if request.method == "GET":
        curl.setopt(pycurl.HTTPGET, 1)
    else:
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDSIZE_LARGE, length)


class Attempts:
    """Sees to it that a request is sent once.

    libcurl sends it once more when a connection that it had kept turns out to be closed, and cannot know whether the
    server has seen it.

    Attributes:
        begun: whether there is a connection on which it is sent.
    """

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False

    def allow(self, *_addresses: object) -> int:
        """libcurl's ``PREREQFUNCTION``."""
        again, self.begun = self.begun, True
        return int(pycurl.PREREQFUNC_ABORT if again else pycurl.PREREQFUNC_OK)


class Outgoing:
    """Parts of a request that wait for libcurl to take them. One thread or task puts them there, another takes them.

    Attributes:
        finished: whether there will be no more.
    """

    __slots__ = ("_offset", "_put_bytes", "_ready", "_taken_bytes", "finished")

    def __init__(self) -> None:
        self._ready: deque[bytes] = deque()
        self._put_bytes = self._taken_bytes = 0  # each is counted by one thread
        self._offset = 0  # how much of the first part has been taken
        self.finished = False

    @property
    def full(self) -> bool:
        """Whether it is far enough ahead of what is sent."""
        return self._put_bytes - self._taken_bytes >= AHEAD_BYTES

    def put(self, part: bytes) -> None:
        self._put_bytes += len(part)
        self._ready.append(part)

    def take(self, size: int) -> bytes | None:
        """The next of it, at most ``size`` bytes; nothing at the end, and None when there is nothing yet."""
        ready, finished = self._ready, self.finished  # in this order it is finished before the last part is looked for
        if not ready:
            return b"" if finished else None
        pieces: list[bytes] = []
        left = size
        while ready and left:
            piece = ready[0]
            end = self._offset + left
            taken = piece[self._offset : end]
            if end >= len(piece):
                ready.popleft()
                self._offset = 0
            else:
                self._offset = end
            pieces.append(taken)
            left -= len(taken)
        self._taken_bytes += size - left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def clear(self) -> None:
        self._ready.clear()


def head_of(lines: list[bytes]) -> tuple[int, bool, CIMultiDict[str]] | None:
    """The status of an answer, whether its fields are ``bare``, and its headers; None of an interim one.

    Args:
        lines: a head, without the empty line behind it.
    """
    version, status, *_ = lines[0].split(None, 2)
    number = int(status[:3])  # which are digits, or libcurl does not take it; it takes anything behind them
    if number < 200:
        return None
    bare = version.startswith(b"HTTP/2")
    return number, bare, fields(lines[1:], bare=bare)


def fields(lines: list[bytes], *, bare: bool) -> CIMultiDict[str]:
    """The headers or trailers in lines of HTTP/1, which libcurl gives for all versions.

    Args:
        lines: what libcurl gives.
        bare: whether they have come over HTTP/2, where white space around a value is part of it, but for a space that
            libcurl puts behind the colon.
    """
    found = []
    for line in lines:
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if colon:
            found.append((name, value[1:].rstrip("\r\n") if bare else value.strip()))
    return CIMultiDict(found)


# libcurl's numbers, as far as they say more than that a connection failed. pycurl has not names for all of them.
_UNRESOLVED = (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY)
_NOT_CONNECTED = (pycurl.E_COULDNT_CONNECT, pycurl.E_SSL_CONNECT_ERROR, 97)  # the last is a proxy's
_NOT_HTTP = (pycurl.E_UNSUPPORTED_PROTOCOL, 8)
_UNANSWERED = (
    pycurl.E_GOT_NOTHING,
    pycurl.E_SEND_ERROR,
    pycurl.E_RECV_ERROR,
    # What comes of not sending it again.
    pycurl.E_SEND_FAIL_REWIND,
    pycurl.E_ABORTED_BY_CALLBACK,
)
_HTTP2_STREAM = 92

_REASONS = {
    pycurl.E_HTTP2: "it does not keep to HTTP/2",
    pycurl.E_PARTIAL_FILE: "it ended in the middle of the answer",
    pycurl.E_SEND_ERROR: "it takes no more of the request",
    pycurl.E_RECV_ERROR: "it ended in the middle of the answer",
    _HTTP2_STREAM: "it does not keep to HTTP/2",
}


def failure(error: BaseException | None, curl: Any, *, answered: bool) -> ConnectError | None:
    """What has gone wrong with a request that libcurl is done with, or None.

    Args:
        error: what libcurl says of it, or None.
        curl: its handle.
        answered: whether the head of the answer has come.
    """
    if error is not None:
        failed = _coded(error, curl, answered=answered)
        failed.__cause__ = error
        return failed
    # libcurl sees nothing wrong in that.
    return None if answered else connection_failed("it ended in the head of the answer")


def _coded(error: BaseException, curl: Any, *, answered: bool) -> ConnectError:
    """What a failure of libcurl's is to the caller, before or after the head of the answer has come.

    libcurl's texts are looked at where nothing else tells, but not passed on: they name hosts.
    """
    number, text = error.args if len(error.args) == 2 else (None, "")  # else it is pycurl's own
    if number == pycurl.E_PEER_FAILED_VERIFICATION:
        if "subject name" in text:
            return untrusted("it is for another host")
        problem = re.search(r"SSL certificate (?:problem|OpenSSL verify result): (.+?)(?: \(\d+\))?$", text)
        return untrusted(problem[1] if problem else "it cannot be verified")
    alert = re.search(r"SSL routines::([^,]+)", text)
    if alert is not None and "unexpected eof" not in alert[1]:
        return tls_failed(alert[1])
    if number in _UNRESOLVED:
        return unresolved()
    if number in _NOT_CONNECTED:
        return no_connection(OSError(curl.getinfo(pycurl.OS_ERRNO), ""))
    if number == pycurl.E_OPERATION_TIMEDOUT:
        if text.startswith("Operation"):
            return client_timed_out()
        return connected_too_late()
    reset = re.search(r"\(err(?:or)? (\w+)", text)  # in hexadecimal or, in older versions, in decimal
    if number == _HTTP2_STREAM and reset is not None:
        return stream_reset(int(reset[1], 0))
    if number == _HTTP2_STREAM and "closed cleanly, but" in text:
        return stream_reset(0)
    if text.startswith(("CONNECT tunnel failed", "Proxy CONNECT aborted")):
        return no_connection(error)
    if number in _NOT_HTTP:
        return ConnectError(ConnectErrorCode.UNAVAILABLE, "what the server answers is not HTTP")
    if number == pycurl.E_HTTP2 and not text:  # as of all the streams of a connection that ends, but one
        number = pycurl.E_RECV_ERROR
    if number in _UNANSWERED and not answered:
        return closed_unanswered()
    return connection_failed(_REASONS.get(number, "libcurl failed" if number is None else f"libcurl's error {number}"))
