"""Makes ``harness`` importable for the tests of this folder, and generates the code that some of them use."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

BIN = Path(sys.executable).parent
"""Where the environment that runs the tests has its programs; it need not be on the PATH."""

SURFACE = """
syntax = "proto3";

package unit.surface.v1;

// Answers what it is asked.
service SurfaceService {
  // Say answers.
  rpc Say(SayRequest) returns (SayResponse) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Introduce(SayRequest) returns (stream SayResponse);
  rpc Pontificate(stream SayRequest) returns (SayResponse);
  rpc Converse(stream SayRequest) returns (stream SayResponse);
  rpc Greet(SayRequest) returns (SayResponse) { option deprecated = true; }
}

message SayRequest { string text = 1; }
message SayResponse { string text = 1; }
"""


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's sight: else each of its runs goes through all tests."""
    gc.collect()
    gc.freeze()


def generate(folder: Path, name: str, source: str) -> None:
    """Write what protoc and our plugin make of ``source`` into ``folder``."""
    (folder / name).write_text(source)
    environ = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}
    command = [str(BIN / "protoc"), "-I.", "--python_out=.", "--connect_python_out=.", name]
    subprocess.run(command, cwd=folder, env=environ, check=True, timeout=60)


@pytest.fixture(scope="session")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``surface_pb2.py`` and ``surface_pb2_connect.py``."""
    folder = tmp_path_factory.mktemp("surface")
    generate(folder, "surface.proto", SURFACE)
    return folder
