"""Calls our services with connect-es, the official client for TypeScript, in Node.

    python tests/interop/run.py [server ...]

The servers are those in KINDS; without any, all of them are called. Prints a line for each case, and fails when one
fails. What Node needs is installed beside this file at the first run.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
GEN = HERE / "gen"
MODULES = HERE / "node_modules"
INTEGRATION = HERE.parent / "integration"

sys.path.insert(0, str(INTEGRATION))

if TYPE_CHECKING:
    from collections.abc import Sequence

NODE_VERSION = 20

KINDS = ["gunicorn-gthread", "uvicorn-httptools"]
"""Names of SERVERS in tests/integration/servers.py."""

INSTALL_SECONDS = 300
LIMIT_SECONDS = 120
"""Far beyond what a server's cases take together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", metavar="server", help=f"any of {', '.join(KINDS)}; default: all")
    kinds: list[str] = parser.parse_args().servers or KINDS
    unknown = set(kinds) - set(KINDS)
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    node = _node()
    _install()
    _generate()
    failed = [kind for kind in kinds if not _call(node, kind)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


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
    """Whether all cases pass with this server."""
    from servers import run_server

    print(f"== {kind}", flush=True)
    with tempfile.TemporaryDirectory() as directory, run_server(kind, Path(directory)) as server:
        try:
            done = subprocess.run([node, str(HERE / "client.mjs"), server.url], check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"FAIL  not over after {LIMIT_SECONDS} s")
            return False
        return done.returncode == 0


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
