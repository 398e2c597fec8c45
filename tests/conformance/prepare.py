"""Makes ready what the repository does not hold: the conformance runner, and stubs of its service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["GEN", "RUNNER", "prepare"]

MODULE = "connectrpc.com/conformance"
VERSION = "v1.0.6"

HERE = Path(__file__).resolve().parent
BIN = HERE.parent.parent / ".tools" / "bin"

RUNNER = BIN / "connectconformance"
"""The judge."""

GEN = HERE / "gen"
"""The stubs of service and messages. Their package, `connectrpc.conformance.v1`, is part of our own: it is
found there when this folder is on sys.path before `connectrpc` is imported."""


def prepare() -> None:
    """Install the runner if it is missing, and generate the stubs anew.

    Raises:
        SystemExit: something that this needs is missing, or failed. It says what.
    """
    go = shutil.which("go")
    if go is None:
        raise SystemExit("conformance: Go is needed to build the conformance runner; install it (https://go.dev/dl)")
    if not _is_installed():
        print(f"installing {MODULE} {VERSION}", flush=True)
        _run(
            [go, "install", f"{MODULE}/cmd/connectconformance@{VERSION}"],
            env={**os.environ, "GOBIN": str(BIN)},
        )
    module = json.loads(_run([go, "mod", "download", "-json", f"{MODULE}@{VERSION}"]))
    _generate(Path(module["Dir"]) / "proto")


def _is_installed() -> bool:
    return RUNNER.exists() and _run([str(RUNNER), "--version"]).split()[-1] == VERSION


def _generate(protos: Path) -> None:
    # What stands beside our Python belongs to the environment that these programs run in.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    protoc, plugin = (shutil.which(tool, path=path) for tool in ("protoc", "protoc-gen-connect_python"))
    if protoc is None or plugin is None:
        raise SystemExit("conformance: protoc or our plugin is missing; install the project with its dev dependencies")
    # Put in place when they are complete: another run may be using those that are there.
    with tempfile.TemporaryDirectory(dir=BIN.parent) as directory:
        fresh = Path(directory) / "gen"
        fresh.mkdir()
        command = [protoc, f"--proto_path={protos}", f"--plugin={plugin}"]
        command += [f"--{output}_out={fresh}" for output in ("python", "pyi", "connect_python")]
        _run([*command, *(str(file) for file in sorted(protos.rglob("*.proto")))])
        shutil.rmtree(GEN, ignore_errors=True)
        fresh.rename(GEN)


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    """What the command prints. Its complaints are shown as they come."""
    # Away from the repository, where nothing can be taken for a Go module.
    process = subprocess.run(command, env=env, cwd="/", stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"conformance: failed: {' '.join(command)}\n{process.stdout}")
    return process.stdout


if __name__ == "__main__":
    prepare()
