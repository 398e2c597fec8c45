"""The server under test: starts one HTTP server with the conformance service, as the runner asks on stdin.

The runner closes stdin as soon as it has written its one request, so the end of stdin means nothing here: a
server runs until SIGTERM. `run.py` starts this program; by hand it needs the generated stubs on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from connectrpc.conformance.v1.config_pb2 import HTTP_VERSION_2
from connectrpc.conformance.v1.server_compat_pb2 import ServerCompatRequest, ServerCompatResponse

import messages
from service_answers import READ_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
APP = "service_async:app"
"""What ASGI servers serve."""

# Handlers sleep when they are told to, so there are more threads than calls at a time.
THREADS = "32"
START_SECONDS = 9.0
# The runner kills a program that is still there five seconds after SIGTERM, and cannot reach what it started.
STOP_SECONDS = 3.0


class Certificates(NamedTuple):
    """PEM files. `client_ca` is there when clients have to show a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path | None


class Address(NamedTuple):
    """Where a server is to listen, and how.

    Attributes:
        port: the port.
        fd: the descriptor of a socket that is bound to it, but does not listen yet.
        http2: whether clients will come with HTTP/2, where the server has a choice.
    """

    port: int
    fd: int
    http2: bool


def gunicorn(address: Address, certificates: Certificates | None, *worker: str) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{address.fd}", *worker]
    command += ["--graceful-timeout", "1", "--log-level", "error", "--no-control-socket"]
    if certificates is not None:
        command += ["--certfile", str(certificates.cert), "--keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ca-certs", str(certificates.client_ca), "--cert-reqs", str(ssl.CERT_REQUIRED.value)]
    return command


def gunicorn_gthread(address: Address, certificates: Certificates | None) -> list[str]:
    command = gunicorn(address, certificates, "--worker-class", "gthread", "--threads", THREADS)
    return [*command, "service_sync:app"]


def gunicorn_asgi(address: Address, certificates: Certificates | None) -> list[str]:
    command = gunicorn(address, certificates, "--worker-class", "asgi")
    return [*command, APP]


def granian(address: Address, certificates: Certificates | None, *interface: str) -> list[str]:
    # It cannot take a socket over, but shares its port: it sets SO_REUSEPORT by itself.
    command = [sys.executable, "-m", "granian", "--host", HOST, "--port", str(address.port), *interface]
    command += ["--http", "1", "--workers-kill-timeout", "1", "--log-level", "error"]
    if certificates is not None:
        command += ["--ssl-certificate", str(certificates.cert), "--ssl-keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ssl-ca", str(certificates.client_ca), "--ssl-client-verify"]
    return command


def granian_wsgi(address: Address, certificates: Certificates | None) -> list[str]:
    command = granian(address, certificates, "--interface", "wsgi", "--blocking-threads", THREADS)
    return [*command, "service_sync:app"]


def granian_asgi(address: Address, certificates: Certificates | None) -> list[str]:
    command = granian(address, certificates, "--interface", "asgi")
    return [*command, APP]


def uvicorn(address: Address, certificates: Certificates | None, parser: str) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "--fd", str(address.fd), "--http", parser]
    command += ["--timeout-graceful-shutdown", "1", "--log-level", "error"]
    if certificates is not None:
        command += ["--ssl-certfile", str(certificates.cert), "--ssl-keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ssl-ca-certs", str(certificates.client_ca)]
            command += ["--ssl-cert-reqs", str(ssl.CERT_REQUIRED.value)]
    return [*command, APP]


def uvicorn_httptools(address: Address, certificates: Certificates | None) -> list[str]:
    return uvicorn(address, certificates, "httptools")


def uvicorn_h11(address: Address, certificates: Certificates | None) -> list[str]:
    return uvicorn(address, certificates, "h11")


def uvicorn_http2(address: Address, certificates: Certificates | None) -> list[str]:
    return [*uvicorn(address, certificates, "zttp"), "--http2"]


def gunicorn_asgi_http2(address: Address, certificates: Certificates | None) -> list[str]:
    command = gunicorn(address, certificates, "--worker-class", "asgi")
    if address.http2:  # then it takes nothing else in plain text
        command += ["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"]
    return [*command, APP]


def hypercorn(address: Address, certificates: Certificates | None) -> list[str]:
    command = [sys.executable, "-m", "hypercorn", "--bind", f"fd://{address.fd}"]
    command += ["--graceful-timeout", "1", "--log-level", "error"]
    if certificates is not None:
        command += ["--certfile", str(certificates.cert), "--keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ca-certs", str(certificates.client_ca), "--verify-mode", ssl.CERT_REQUIRED.name]
    return [*command, APP]


def pyvoy(address: Address, certificates: Certificates | None, interface: str) -> list[str]:
    # It cannot take a socket over, but shares its port: it sets SO_REUSEPORT by itself.
    command = ["pyvoy", "--address", HOST, "--port", str(address.port), "--log-level", "error"]
    command += ["--interface", interface]
    if certificates is not None:
        command += ["--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--tls-ca-cert", str(certificates.client_ca)]
    return command


def pyvoy_wsgi(address: Address, certificates: Certificates | None) -> list[str]:
    return [*pyvoy(address, certificates, "wsgi"), "--worker-threads", THREADS, "service_sync:app"]


def pyvoy_asgi(address: Address, certificates: Certificates | None) -> list[str]:
    return [*pyvoy(address, certificates, "asgi"), APP]


SERVERS: dict[str, Callable[[Address, Certificates | None], list[str]]] = {
    "gunicorn": gunicorn_gthread,
    "granian": granian_wsgi,
    "uvicorn-httptools": uvicorn_httptools,
    "uvicorn-h11": uvicorn_h11,
    "uvicorn-http2": uvicorn_http2,
    "granian-asgi": granian_asgi,
    "hypercorn": hypercorn,
    "gunicorn-asgi": gunicorn_asgi,
    "gunicorn-asgi-http2": gunicorn_asgi_http2,
    "pyvoy": pyvoy_wsgi,
    "pyvoy-asgi": pyvoy_asgi,
}
"""The command that serves the conformance service at an address, by the server's name."""


@contextlib.contextmanager
def reserved_address(*, http2: bool) -> Iterator[Address]:
    """A free port that stays ours: a socket that is bound, but does not listen, keeps everybody away from it."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # What it accepts inherits this. uvicorn takes what it is given for a Unix socket, and would not set it.
        reservation.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reservation.bind((HOST, 0))
        yield Address(reservation.getsockname()[1], reservation.fileno(), http2)


def write_certificates(request: ServerCompatRequest, directory: Path) -> Certificates | None:
    if not request.use_tls:
        return None
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(request.server_creds.cert)
    key.write_bytes(request.server_creds.key)
    if not request.client_tls_cert:
        return Certificates(cert, key, None)
    client_ca = directory / "client-ca.pem"
    client_ca.write_bytes(request.client_tls_cert)
    return Certificates(cert, key, client_ca)


def environment(request: ServerCompatRequest) -> dict[str, str]:
    here = str(Path(__file__).parent)
    result = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if request.message_receive_limit:
        result[READ_MAX_BYTES] = str(request.message_receive_limit)
    return result


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str], fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that inherits `fd`, in a process group of its own, so that none of its workers can outlive us."""
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # our stdout is for the runner alone
        pass_fds=[fd],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_accepting(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit("the server did not start") from None
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS, required=True)
    arguments = parser.parse_args()

    # As an exception, so that the server is stopped and the files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    request = messages.read(sys.stdin.buffer, ServerCompatRequest)
    if request is None:
        raise SystemExit("no request on stdin")
    http2 = request.http_version == HTTP_VERSION_2
    with tempfile.TemporaryDirectory() as directory, reserved_address(http2=http2) as address:
        certificates = write_certificates(request, Path(directory))
        command = SERVERS[arguments.server](address, certificates)
        with running(command, environment(request), address.fd) as process:
            wait_until_accepting(address.port, process)
            response = ServerCompatResponse(host=HOST, port=address.port, pem_cert=request.server_creds.cert)
            messages.write(sys.stdout.buffer, response)
            process.wait()
    raise SystemExit("the server ended by itself")


if __name__ == "__main__":
    main()
