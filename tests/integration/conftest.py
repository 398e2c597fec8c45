"""Generates the stubs of ``integration.proto`` before the tests that import them, and runs the servers they share."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

HERE = Path(__file__).parent
GEN = HERE / "gen"


def generate() -> None:
    """Write the stubs into ``gen``, file by file in one step each: another run may be importing them."""
    tools = Path(sys.executable).parent
    GEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HERE, prefix="gen-") as directory:
        outputs = [f"--{output}_out={directory}" for output in ("python", "pyi", "connect_python")]
        plugin = f"--plugin={tools / 'protoc-gen-connect_python'}"
        command = [str(tools / "protoc"), plugin, f"--proto_path={HERE}", *outputs, "integration.proto"]
        subprocess.run(command, check=True, timeout=60)
        for made in Path(directory).iterdir():
            there = GEN / made.name
            if not there.exists() or there.read_bytes() != made.read_bytes():
                os.replace(made, there)


generate()
sys.path[:0] = [str(GEN), str(HERE)]


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's sight: else each of its runs goes through all tests."""
    gc.collect()
    gc.freeze()


def _server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from servers import run_server

    with run_server(kind, tmp_path_factory.mktemp(kind)) as server:
        yield server


@pytest.fixture(scope="session")
def gunicorn_sync(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("gunicorn-sync", tmp_path_factory)


@pytest.fixture(scope="session")
def gunicorn_gthread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("gunicorn-gthread", tmp_path_factory)


@pytest.fixture(scope="session")
def gunicorn_asgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("gunicorn-asgi", tmp_path_factory)


@pytest.fixture(scope="session")
def granian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("granian", tmp_path_factory)


@pytest.fixture(scope="session")
def granian_asgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("granian-asgi", tmp_path_factory)


@pytest.fixture(scope="session")
def hypercorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("hypercorn", tmp_path_factory)


@pytest.fixture(scope="session")
def uvicorn_h11(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("uvicorn-h11", tmp_path_factory)


@pytest.fixture(scope="session")
def uvicorn_httptools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("uvicorn-httptools", tmp_path_factory)


@pytest.fixture(scope="session")
def wsgiref(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("wsgiref", tmp_path_factory)


class TooLong(BaseException):
    """Not an ``Exception``: what is tested may take those for failures of the network."""


@pytest.fixture
def limit() -> Iterator[None]:
    """Ends a test that hangs, wherever in the main thread it does."""

    fired = False

    def too_long(signum: int, frame: object) -> None:
        nonlocal fired
        fired = True
        raise TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, 30, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not fired, "the test took too long"  # also where somebody has made another exception of it
