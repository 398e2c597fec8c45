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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from connectrpc.conformance.v1.server_compat_pb2 import ServerCompatRequest, ServerCompatResponse

import messages
from service import READ_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
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


def gunicorn(port: int, certificates: Certificates | None) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "--bind", f"{HOST}:{port}", "--reuse-port"]
    command += ["--worker-class", "gthread", "--threads", THREADS]
    command += ["--graceful-timeout", "1", "--log-level", "error", "--no-control-socket"]
    if certificates is not None:
        command += ["--certfile", str(certificates.cert), "--keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ca-certs", str(certificates.client_ca), "--cert-reqs", "2"]  # ssl.CERT_REQUIRED
    return [*command, "service:wsgi_app()"]


def granian(port: int, certificates: Certificates | None) -> list[str]:
    # granian sets SO_REUSEPORT by itself.
    command = [sys.executable, "-m", "granian", "--host", HOST, "--port", str(port), "--interface", "wsgi"]
    command += ["--http", "1", "--blocking-threads", THREADS]
    command += ["--workers-kill-timeout", "1", "--log-level", "error", "--factory"]
    if certificates is not None:
        command += ["--ssl-certificate", str(certificates.cert), "--ssl-keyfile", str(certificates.key)]
        if certificates.client_ca is not None:
            command += ["--ssl-ca", str(certificates.client_ca), "--ssl-client-verify"]
    return [*command, "service:wsgi_app"]


SERVERS: dict[str, Callable[[int, Certificates | None], list[str]]] = {
    "gunicorn": gunicorn,
    "granian": granian,
}
"""The command that serves the conformance service on a port, by the server's name."""


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that stays ours: a socket that is bound, but does not listen, keeps everybody away from it.

    Only servers that set SO_REUSEPORT can share it.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind((HOST, 0))
        yield reservation.getsockname()[1]


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
def running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, so that none of its workers can outlive us."""
    # Our stdout is for the runner alone.
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
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
    with tempfile.TemporaryDirectory() as directory, reserved_port() as port:
        certificates = write_certificates(request, Path(directory))
        command = SERVERS[arguments.server](port, certificates)
        with running(command, environment(request)) as process:
            wait_until_accepting(port, process)
            response = ServerCompatResponse(host=HOST, port=port, pem_cert=request.server_creds.cert)
            messages.write(sys.stdout.buffer, response)
            process.wait()
    raise SystemExit("the server ended by itself")


if __name__ == "__main__":
    main()
