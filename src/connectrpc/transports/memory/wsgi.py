"""A WSGI app (PEP 3333) as the other half of exchanges, each in a thread of its own."""

from __future__ import annotations

import functools
import io
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote_to_bytes

from connectrpc.transports.memory.exchange import CLIENT_ADDRESS, GRACE_SECONDS, Exchange
from connectrpc.transports.memory.sync import wait

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterable

    WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

__all__ = ["WSGIServer"]


class WSGIServer:
    """Answers exchanges with a WSGI app. Used by many threads at once.

    Args:
        app: the app.
        context: the context variables that it sees: each call has a copy.
    """

    def __init__(self, app: WSGIApp, context: contextvars.Context) -> None:
        self._app = app
        self._context = context
        self._lock = threading.Lock()
        self._calls: dict[threading.Thread, Exchange] = {}

    def serve(self, exchange: Exchange) -> None:
        """Have the app answer."""
        exchange.owner = self
        work = functools.partial(self._context.copy().run, self._serve, exchange)
        # A daemon, as nothing can end an app that does not return.
        thread = threading.Thread(target=work, name="connectrpc-memory-wsgi", daemon=True)
        with self._lock:
            self._calls[thread] = exchange
        thread.start()

    def _serve(self, exchange: Exchange) -> None:
        try:
            _Answer(exchange).run(self._app)
        except BaseException as error:
            exchange.fail(error)
        exchange.returned()
        with self._lock:
            self._calls.pop(threading.current_thread(), None)

    def begin_to_stop(self) -> None:
        """End the calls that are under way."""
        with self._lock:
            exchanges = list(self._calls.values())
        for exchange in exchanges:
            exchange.break_off()

    @property
    def running(self) -> list[threading.Thread]:
        """The threads in which calls are under way, but for the caller's own."""
        with self._lock:
            return [thread for thread in self._calls if thread is not threading.current_thread()]

    def stop(self) -> None:
        """End the calls that are under way, and wait for the app to return, for a while."""
        self.begin_to_stop()
        until = time.monotonic() + GRACE_SECONDS
        for thread in self.running:
            thread.join(max(0.0, until - time.monotonic()))


def _environ(exchange: Exchange) -> dict[str, Any]:
    host, port = exchange.server
    environ: dict[str, Any] = {
        "REQUEST_METHOD": exchange.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(exchange.raw_path).decode("latin-1"),
        "QUERY_STRING": exchange.query,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/2",
        "REMOTE_ADDR": CLIENT_ADDRESS[0],
        "REMOTE_PORT": str(CLIENT_ADDRESS[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": exchange.scheme,
        "wsgi.input": io.BufferedReader(_Input(exchange)),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    for name, value in exchange.headers:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


class _Input(io.RawIOBase):
    """The body of a request. Reading it waits for the client."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = wait(self._exchange, functools.partial(self._exchange.take_part, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


class _Answer:
    """What a WSGI app does about one request."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._head: tuple[int, list[tuple[str, str]]] | None = None
        self._trailers: list[tuple[str, str]] | None = None

    def run(self, app: WSGIApp) -> None:
        environ = _environ(self._exchange)
        environ["wsgi.ext.http.send_trailers"] = self._send_trailers
        parts: Any = app(environ, self._start_response)
        try:
            if isinstance(parts, str | bytes) or not hasattr(parts, "__iter__"):
                self._complain(f"the app has given {type(parts).__name__}, which is no iterable of bytes")
            for part in parts:
                self._write(part)
            if self._head is None:
                self._complain("the app has returned before it started an answer")
            self._send_head()
            self._exchange.finish(self._trailers or [])
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        if exc_info:
            try:
                if self._exchange.started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else the traceback would hold itself
        elif self._head is not None:
            self._complain("the app has started its answer twice")
        if type(status) is not str or not status[:3].isdigit() or status[3:4] not in ("", " "):
            self._complain(f"a status is like '200 OK', not {status!r}")
        if type(headers) is not list or not all(map(_is_header, headers)):
            self._complain(f"headers are a list of pairs of str, not {headers!r}")
        self._head = int(status[:3]), headers
        return self._write

    def _send_head(self) -> None:
        if not self._exchange.started:
            if self._head is None:
                self._complain("the app has sent a body before it has started its answer")
            self._exchange.start(*self._head)

    def _write(self, part: bytes) -> None:
        if type(part) is not bytes:
            self._complain(f"a part of a body is bytes, not {part!r}")
        # PEP 3333 would have it wait for a part that is not empty; no server does.
        self._send_head()
        if self._trailers is not None and part:
            self._complain("the app has sent a body after its trailers")
        wait(self._exchange, functools.partial(self._exchange.send, part))

    def _send_trailers(self, trailers: list[tuple[str, str]], /) -> None:
        if type(trailers) is not list or not all(map(_is_header, trailers)):
            self._complain(f"trailers are a list of pairs of str, not {trailers!r}")
        if self._trailers is not None:
            self._complain("the app has sent its trailers twice")
        self._send_head()
        self._trailers = trailers

    def _complain(self, complaint: str) -> NoReturn:
        raise self._exchange.violation(complaint)


def _is_header(pair: object) -> bool:
    return type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is str
