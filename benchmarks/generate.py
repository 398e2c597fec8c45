"""Generates `gen/` from `bench.proto`, with protoc and the plugin of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["GEN", "HERE", "generate"]

HERE = Path(__file__).resolve().parent
GEN = HERE / "gen"


def _tool(name: str) -> str:
    """The program beside this interpreter (its virtual environment), or else on the path."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=search)
    if found is None:
        raise SystemExit(f"{name} is needed to generate the benchmarks' code, and is not installed")
    return found


def generate(*, with_plugin: bool = True) -> None:
    """Write the modules into `GEN`.

    Args:
        with_plugin: also what our own plugin makes; the floors alone do without.
    """
    shutil.rmtree(GEN, ignore_errors=True)
    GEN.mkdir()
    command = [_tool("protoc"), f"--proto_path={HERE}", f"--python_out={GEN}", f"--pyi_out={GEN}"]
    if with_plugin:
        name = "protoc-gen-connect_python"
        command += [f"--plugin={name}={_tool(name)}", f"--connect_python_out={GEN}"]
    subprocess.run([*command, "bench.proto"], check=True)


if __name__ == "__main__":
    generate()
