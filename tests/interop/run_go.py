"""Calls our services with connect-go, grpcurl and ``buf curl``, and a service of connect-go's with our clients.

    python tests/interop/run_go.py [part ...]

The parts are those in PARTS; without any, all of them are run. Prints a line for each case, or for each set of cases,
and fails when one fails. Needs Go: what is made with it goes into `.tools`, with pinned versions.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
MODULE = HERE / "go"
INTEGRATION = HERE.parent / "integration"
BIN = HERE.parent.parent / ".tools" / "bin"

SEARCH = [HERE, INTEGRATION, INTEGRATION / "gen"]

sys.path[:0] = map(str, SEARCH)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLIENT = BIN / "interop-go-client"
SERVER = BIN / "interop-go-server"
GRPCURL = BIN / "grpcurl"
GRPCURL_MODULE = "github.com/fullstorydev/grpcurl"
GRPCURL_VERSION = "v1.9.4"
"""The other versions are in go.mod."""

BUILD_SECONDS = 600
LIMIT_SECONDS = 120
"""Far beyond what a server's cases take together."""
STOP_SECONDS = 5
PARALLEL = 2
"""How many parts run at once."""

NOT_FOR_EVERY_PYTHON = {"uvicorn-http2": "zttp", "pyvoy": "pyvoy", "pyvoy-asgi": "pyvoy"}
"""What servers need."""

GO_OPTIONS = ("module=interop", "Mintegration.proto=interop/gen;integrationv1")
"""Where protoc's plugins put the Go code of the integration tests' proto."""


def _client_on_gthread() -> bool:
    return _call_ours("gunicorn-gthread", "mirroring_app", "-protocols=connect,grpc-web")


def _client_on_uvicorn() -> bool:
    return _call_ours("uvicorn-http2", "mirroring_asgi_app", "-http2", "-async")


def _client_on_gunicorn_asgi() -> bool:
    return _call_ours("gunicorn-asgi-http2", "mirroring_asgi_app", "-http2", "-async")


def _client_on_pyvoy() -> bool:
    # pyvoy exhausts what a WSGI app gives, whether its client has left or not.
    return _call_ours("pyvoy", "mirroring_app", "-http2", "-unaware")


def _client_on_pyvoy_asgi() -> bool:
    return _call_ours("pyvoy-asgi", "mirroring_asgi_app", "-http2", "-async")


def _call_ours(kind: str, app: str, *arguments: str) -> bool:
    """Whether all cases of connect-go pass with this server of ours."""

    def call(url: str) -> bool:
        try:
            done = subprocess.run([CLIENT, f"-url={url}", *arguments], check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"FAIL  not over after {LIMIT_SECONDS} s")
            return False
        return done.returncode == 0

    return _with_server(kind, app, call)


def _with_server(kind: str, app: str, call: Callable[[str], bool]) -> bool:
    needed = NOT_FOR_EVERY_PYTHON.get(kind)
    if needed is not None and importlib.util.find_spec(needed) is None:
        print(f"left out: {needed} is not installed here, which is for Python 3.11 and later")
        return True
    from servers import run_server

    search = os.pathsep.join(map(str, [*SEARCH, HERE.parents[1] / "src"]))
    with (
        tempfile.TemporaryDirectory() as directory,
        run_server(kind, Path(directory), app=f"go_service:{app}", PYTHONPATH=search) as server,
    ):
        return call(server.url)


def _our_clients() -> bool:
    from go_clients import call_all

    with subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            return call_all(server.stdout.readline().strip())
        finally:
            server.stdin.close()  # which ends it
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def _tools_on_uvicorn() -> bool:
    return _with_server("uvicorn-http2", "reflecting_asgi_app", _call_with_tools)


def _tools_on_gunicorn_asgi() -> bool:
    return _with_server("gunicorn-asgi-http2", "reflecting_asgi_app", _call_with_tools)


def _tools_on_pyvoy() -> bool:
    return _with_server("pyvoy", "reflecting_app", _call_with_tools)


def _call_with_tools(url: str) -> bool:
    from go_tools import buf_curl, grpcurl

    return all([grpcurl(GRPCURL, url), buf_curl(url)])


def _tools_on_gthread() -> bool:
    from go_tools import buf_curl_http1

    return _with_server("gunicorn-gthread", "mirroring_app", buf_curl_http1)


PARTS: Mapping[str, Callable[[], bool]] = {
    "client-gunicorn-asgi-http2": _client_on_gunicorn_asgi,
    "server": _our_clients,
    "client-gunicorn-gthread": _client_on_gthread,
    "client-uvicorn-http2": _client_on_uvicorn,
    "client-pyvoy": _client_on_pyvoy,
    "client-pyvoy-asgi": _client_on_pyvoy_asgi,
    "tools-uvicorn-http2": _tools_on_uvicorn,
    "tools-gunicorn-asgi-http2": _tools_on_gunicorn_asgi,
    "tools-pyvoy": _tools_on_pyvoy,
    "tools-gunicorn-gthread": _tools_on_gthread,
}
"""Those that take long first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts: list[str] = arguments.parts or list(PARTS)
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if arguments.alone:
        sys.exit(sum(not PARTS[part]() for part in parts))
    _prepare()
    # They wait much: for deadlines, and for servers to start.
    with ThreadPoolExecutor(PARALLEL) as threads:
        failed = [part for part, passed in zip(parts, threads.map(_run_alone, parts), strict=True) if not passed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run_alone(part: str) -> bool:
    """Whether all cases of the part pass, in a process of its own. Prints what that has printed."""
    began = time.monotonic()
    command = [sys.executable, "-W", "error", str(Path(__file__).resolve()), "--alone", part]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"== {part}\n{done.stdout}{time.monotonic() - began:.1f} s", flush=True)
    return done.returncode == 0


def _prepare() -> None:
    """Build what is needed, as far as it is not there yet.

    Raises:
        SystemExit: something that this needs is missing, or failed. It says what.
    """
    go = shutil.which("go")
    if go is None:
        sys.exit("tests/interop/run_go.py needs Go, and there is no `go` on the PATH; install it (https://go.dev/dl)")
    BIN.mkdir(parents=True, exist_ok=True)
    if not _has_grpcurl(go):
        print(f"installing {GRPCURL_MODULE} {GRPCURL_VERSION}", flush=True)
        _run([go, "install", f"{GRPCURL_MODULE}/cmd/grpcurl@{GRPCURL_VERSION}"], Path("/"), GOBIN=str(BIN))
    _run([go, "build", "-o", f"{BIN}{os.sep}", "tool"], MODULE)
    _generate()
    for program, package in ((CLIENT, "./client"), (SERVER, "./server")):
        _run([go, "build", "-o", str(program), package], MODULE)


def _has_grpcurl(go: str) -> bool:
    # What it says of itself depends on how it was built.
    if not GRPCURL.exists():
        return False
    told = _run([go, "version", "-m", str(GRPCURL)], Path("/")).split()
    return GRPCURL_MODULE in told and told[told.index(GRPCURL_MODULE) + 1] == GRPCURL_VERSION


def _generate() -> None:
    """Write the Go and the Python of the integration tests' proto."""
    from conftest import generate

    generate()
    protoc = shutil.which("protoc", path=str(Path(sys.executable).parent))
    if protoc is None:
        sys.exit("tests/interop/run_go.py needs protoc beside Python; install the project with its dev dependencies")
    command = [protoc, f"--proto_path={INTEGRATION}"]
    for name in ("go", "connect-go"):
        command += [f"--plugin={BIN / f'protoc-gen-{name}'}", f"--{name}_out={MODULE}"]
        command += [f"--{name}_opt={option}" for option in GO_OPTIONS]
    _run([*command, "integration.proto"], MODULE)


def _run(command: list[str], directory: Path, **variables: str) -> str:
    """What a command prints.

    Raises:
        SystemExit: it fails.
    """
    environment = {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, timeout=BUILD_SECONDS, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"`{' '.join(command)}` takes more than {BUILD_SECONDS} s")
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` has failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


if __name__ == "__main__":
    main()
