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
    from collections.abc import Callable, Iterator

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

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def logged(self) -> str:
        """All that it has printed by now."""
        return self.log.read_text("utf-8", "replace")


def _gunicorn(worker: str, *options: str, app: str = "service:app") -> Callable[[int], list[str]]:
    def command(fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--worker-class", worker),
            *("--graceful-timeout", "1", "--timeout", "60", "--log-level", "warning", "--no-control-socket"),
            *options,
            app,
        ]

    return command


def _wsgiref(fd: int) -> list[str]:
    return [sys.executable, str(HERE / "wsgiref_server.py"), str(fd)]


def _granian(*options: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "granian", "--host", HOST, "--port", str(port), "--http", "1"),
            *("--workers-kill-timeout", "1", "--log-level", "warning", *options),
        ]

    return command


SERVERS: dict[str, tuple[bool, Callable[[int], list[str]]]] = {
    "gunicorn-sync": (True, _gunicorn("sync")),
    "gunicorn-gthread": (True, _gunicorn("gthread", "--threads", THREADS, "--keep-alive", "30")),
    "gunicorn-preload": (True, _gunicorn("sync", "--preload", "--workers", "3", app="service:relay()")),
    "gunicorn-asgi": (True, _gunicorn("asgi", app="service_asgi:app")),
    "granian": (False, _granian("--interface", "wsgi", "--blocking-threads", THREADS, "service:app")),
    "granian-asgi": (False, _granian("--interface", "asgi", "service_asgi:app")),
    "wsgiref": (True, _wsgiref),
}
"""How to run each server: whether it takes over a listening socket (else a port, which it must share by SO_REUSEPORT),
and the command."""


@contextlib.contextmanager
def run_server(kind: str, directory: Path, **variables: str) -> Iterator[Server]:
    """A server of that kind, with these variables in its environment, until the block is left."""
    takes_socket, command = SERVERS[kind]
    log = directory / f"{kind}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE / "gen"), str(HERE), str(HERE.parents[1] / "src")]),
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    with socket.socket() as reservation, log.open("wb") as output:
        # A socket that is bound, but does not listen, keeps everybody away from its port who does not share it.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind((HOST, 0))
        port: int = reservation.getsockname()[1]
        if takes_socket:
            reservation.listen(128)
        # In a process group of its own, so that none of its workers can outlive us.
        process = subprocess.Popen(
            command(reservation.fileno() if takes_socket else port),
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
        server = Server(kind, port, log)
        try:
            _wait_until_serving(server, process)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_serving(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection((HOST, server.port), timeout=START_SECONDS) as sock:
                sock.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
                if b"200 OK" in sock.recv(100):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{server.kind} did not start:\n{server.logged()}")
        time.sleep(0.05)
