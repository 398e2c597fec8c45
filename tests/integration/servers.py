"""Real HTTP servers with ``service:app``, each in processes of its own, on ports that nobody can take from them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rawhttp import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["SERVERS", "Server", "run_server"]

HERE = Path(__file__).parent
START_SECONDS = 15.0
STOP_SECONDS = 5.0

THREADS = "8"


class Server(NamedTuple):
    """A server that accepts connections."""

    kind: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}"

    def log_size(self) -> int:
        """How many bytes it has printed by now."""
        return self.log.stat().st_size

    def logged(self, since: int = 0) -> str:
        """All that it has printed by now, after so many bytes."""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode("utf-8", "replace")


class Kind(NamedTuple):
    """How to run a server."""

    app: str
    """What it serves unless told otherwise."""
    command: Callable[[int], list[str]]
    """The command without the app, for a listening socket's descriptor or for a port."""
    takes_socket: bool = True
    """Whether it takes over a listening socket; else it gets a port, which it must share by SO_REUSEPORT."""
    only_http_2: bool = False
    """Whether it takes nothing else in plain text."""


def _gunicorn(worker: str, *options: str) -> Callable[[int], list[str]]:
    def command(fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--worker-class", worker),
            # A worker that does not get to run within the first is killed, which it logs as an error.
            *("--graceful-timeout", "4", "--timeout", "60", "--log-level", "warning", "--no-control-socket"),
            *options,
        ]

    return command


def _wsgiref(fd: int) -> list[str]:
    return [sys.executable, str(HERE / "wsgiref_server.py"), str(fd)]


def _granian(*options: str, http: str = "1") -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "granian", "--host", HOST, "--port", str(port), "--http", http),
            *("--workers-kill-timeout", "1", "--log-level", "warning", *options),
        ]

    return command


def _uvicorn(parser: str, *options: str) -> Callable[[int], list[str]]:
    def command(fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", "--fd", str(fd), "--http", parser, "--loop", "asyncio"),
            *("--timeout-graceful-shutdown", "1", "--timeout-keep-alive", "30", "--log-level", "warning"),
            *options,
        ]

    return command


def _hypercorn(fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", "hypercorn", "--bind", f"fd://{fd}"),
        *("--graceful-timeout", "1", "--keep-alive", "30", "--log-level", "warning"),
    ]


def _pyvoy(interface: str, *options: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        program = str(Path(sys.executable).parent / "pyvoy")
        return [
            program,
            "--address",
            HOST,
            "--port",
            str(port),
            "--interface",
            interface,
            "--log-level",
            "error",
            *options,
        ]

    return command


_H2 = ("--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge")

SERVERS: dict[str, Kind] = {
    "gunicorn-sync": Kind("service:app", _gunicorn("sync")),
    "gunicorn-gthread": Kind("service:app", _gunicorn("gthread", "--threads", THREADS, "--keep-alive", "30")),
    "gunicorn-preload": Kind("service:relay()", _gunicorn("sync", "--preload", "--workers", "3")),
    "gunicorn-asgi": Kind("service_asgi:app", _gunicorn("asgi")),
    "gunicorn-asgi-http2": Kind("service_asgi:app", _gunicorn("asgi", *_H2), only_http_2=True),
    "granian": Kind("service:app", _granian("--interface", "wsgi", "--blocking-threads", THREADS), takes_socket=False),
    "granian-http2": Kind(
        "service:app",
        _granian("--interface", "wsgi", "--blocking-threads", THREADS, http="auto"),
        takes_socket=False,
    ),
    "granian-asgi-http2": Kind("service_asgi:app", _granian("--interface", "asgi", http="auto"), takes_socket=False),
    "granian-asgi": Kind("service_asgi:app", _granian("--interface", "asgi"), takes_socket=False),
    "hypercorn": Kind("service_asgi:app", _hypercorn),
    "uvicorn-h11": Kind("service_asgi:app", _uvicorn("h11")),
    "uvicorn-httptools": Kind("service_asgi:app", _uvicorn("httptools")),
    "uvicorn-http2": Kind("service_asgi:app", _uvicorn("zttp", "--http2")),
    "pyvoy": Kind("service:app", _pyvoy("wsgi", "--worker-threads", THREADS), takes_socket=False),
    "pyvoy-asgi": Kind("service_asgi:app", _pyvoy("asgi"), takes_socket=False),
    "wsgiref": Kind("service:app", _wsgiref),
}


@contextlib.contextmanager
def run_server(
    kind: str,
    directory: Path,
    *,
    app: str | None = None,
    options: Sequence[str] = (),
    hello: str = "/hello",
    tls: bool = False,
    **variables: str,
) -> Iterator[Server]:
    """A server, until the block is left.

    Args:
        kind: which one.
        directory: where it runs, and where its log goes.
        app: what it serves, instead of the usual.
        options: more options of its command line.
        hello: what is there, with status 200, as soon as it serves.
        tls: whether these options make it serve nothing in plain text.
        **variables: more variables of its environment.
    """
    usual_app, command, takes_socket, only_http_2 = SERVERS[kind]
    log = directory / f"{kind}.log"
    search = [str(HERE / "gen"), str(HERE), str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    with socket.socket() as reservation, log.open("wb") as output:
        # A socket that is bound, but does not listen, keeps everybody away from its port who does not share it.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # What it accepts inherits this. uvicorn takes what it is given for a Unix socket, and would not set it.
        reservation.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reservation.bind((HOST, 0))
        port: int = reservation.getsockname()[1]
        if takes_socket:
            reservation.listen(128)
        # In a process group of its own, so that none of its workers can outlive us.
        process = subprocess.Popen(
            [*command(reservation.fileno() if takes_socket else port), *options, app or usual_app],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[reservation.fileno()] if takes_socket else [],
            start_new_session=True,
        )
        if takes_socket:
            reservation.close()
        server = Server(kind, port, log, process, "https" if tls else "http")
        try:
            asks = f"GET {hello} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            _wait_until_serving(server, _PREFACE if only_http_2 else asks)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


_PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""How HTTP/2 begins (RFC 9113 section 3.4), with no settings."""


def _wait_until_serving(server: Server, request: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection((HOST, server.port), timeout=START_SECONDS) as sock:
                if server.scheme == "https":
                    return
                sock.sendall(request.encode())
                answer = sock.recv(100)
                if b" 200 " in answer or answer[3:4] == b"\4":
                    return
        except OSError:
            pass
        if server.process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{server.kind} did not start:\n{server.logged()}")
        time.sleep(0.05)
