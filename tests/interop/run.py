"""Calls our services with connect-es, the official client for TypeScript: in Node, and in Chromium as connect-web.

    python tests/interop/run.py [part ...]

The parts are those in NODE, each a server that is called from Node, and "browser"; without any, all of them run. Prints
a line for each case, and fails when one fails. What Node needs is installed beside this file at the first run. Where no
Chromium is found the part "browser" says so and is left out, but where CI is set it fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
GEN = HERE / "gen"
MODULES = HERE / "node_modules"
INTEGRATION = HERE.parent / "integration"

sys.path.insert(0, str(INTEGRATION))

NODE_VERSION = 20

NODE = {
    "uvicorn-http2": [
        *("connect/1.1/proto", "grpc-web/1.1/json"),
        *("connect/2/proto", "connect/2/json", "grpc-web/2/proto", "grpc/2/proto", "grpc/2/json"),
    ],
    "gunicorn-asgi-http2": ["connect/2/proto", "grpc-web/2/json", "grpc/2/proto"],
    "gunicorn-gthread": ["connect/1.1/proto", "connect/1.1/json", "grpc-web/1.1/proto"],
    "uvicorn-httptools": ["connect/1.1/proto", "connect/1.1/json", "grpc-web/1.1/json"],
    "granian-asgi-http2": ["refused/2/proto"],
    "pyvoy": ["grpc/2/proto/threads"],
}
"""The servers, of tests/integration/servers.py, that are called from Node, and by which protocols, versions of HTTP and
codecs, in the words of client.mjs. Those that take long first."""

BROWSER = "browser"
PARTS = [*NODE, BROWSER]

PARALLEL = 2
"""How many parts run at once."""

INSTALL_SECONDS = 300
LIMIT_SECONDS = 300
"""Far beyond what a server's cases take together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts: list[str] = arguments.parts or PARTS
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    node = _node()
    if arguments.alone:
        sys.exit(sum(not (_call_from_browser() if part == BROWSER else _call(node, part)) for part in parts))
    _install()
    _generate()
    # They wait much: for deadlines, and for servers to start.
    with ThreadPoolExecutor(PARALLEL) as threads:
        failed = [part for part, passed in zip(parts, threads.map(_run_alone, parts), strict=True) if not passed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run_alone(part: str) -> bool:
    """Whether all cases of the part pass, in a process of its own. Prints what that has printed."""
    began = time.monotonic()
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", part]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"== {part}\n{done.stdout}{time.monotonic() - began:.1f} s", flush=True)
    return done.returncode == 0


def _node() -> str:
    """Where Node is.

    Raises:
        SystemExit: there is none, or too old a one.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing = "node" if node is None else "npm"
        sys.exit(
            f"tests/interop needs Node.js {NODE_VERSION} or later with npm, and there is no `{missing}` on the PATH"
        )
    version = _run([node, "--version"], 10).strip()
    found = re.match(r"v(\d+)\.", version)
    if found is None or int(found[1]) < NODE_VERSION:
        sys.exit(f"tests/interop needs Node.js {NODE_VERSION} or later, and `node` is {version}")
    return node


def _install() -> None:
    """Have npm install what package.json asks for, unless that was done."""
    wanted = hashlib.sha256((HERE / "package.json").read_bytes()).hexdigest()
    stamp = MODULES / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        _run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"], INSTALL_SECONDS)
        stamp.write_text(wanted)


def _generate() -> None:
    """Write the JavaScript and the Python of the integration tests' proto."""
    GEN.mkdir(exist_ok=True)
    protoc = Path(sys.executable).parent / "protoc"
    plugin = MODULES / ".bin" / "protoc-gen-es"
    options = [f"--plugin=protoc-gen-es={plugin}", f"--es_out={GEN}", "--es_opt=target=js"]
    _run([str(protoc), f"--proto_path={INTEGRATION}", *options, "integration.proto"], 60)
    from conftest import generate

    generate()


def _call(node: str, kind: str) -> bool:
    """Whether all cases in Node pass with this server."""
    from servers import run_server

    with tempfile.TemporaryDirectory() as directory, run_server(kind, Path(directory)) as server:
        try:
            command = [node, str(HERE / "client.mjs"), server.url, *NODE[kind]]
            done = subprocess.run(command, check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"FAIL  not over after {LIMIT_SECONDS} s")
            return False
        return done.returncode == 0


def _call_from_browser() -> bool:
    """Whether all cases in a browser pass, or none is needed."""
    from browser import call_from_browser, find_browser

    browser = find_browser()
    if browser is None:
        print("no Chromium on the PATH: connect-web is not tested in a browser", flush=True)
        return not os.environ.get("CI")
    bundle = GEN / "browser.js"
    options = ["--bundle", "--format=iife", "--log-level=warning", f"--outfile={bundle}"]
    _run([str(MODULES / ".bin" / "esbuild"), str(HERE / "browser.mjs"), *options], 60)
    return call_from_browser(browser, bundle)


def _run(command: Sequence[str], seconds: float) -> str:
    """What a command prints.

    Raises:
        SystemExit: it fails.
    """
    try:
        done = subprocess.run(command, cwd=HERE, check=False, timeout=seconds, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        sys.exit(f"`{' '.join(command)}` takes more than {seconds:.0f} s")
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` has failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


if __name__ == "__main__":
    main()
