"""What README and docs show is true: the first service works as it stands there, and all snippets have good types."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from connectrpc.client import ClientOptions
from connectrpc.server import ServiceOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    "PYTHONPATH": str(ROOT / "src"),
    "MYPYPATH": str(ROOT / "src"),
}

OTHER_RPCS = """
  rpc Watch(WatchRequest) returns (stream WatchResponse);
  rpc Upload(stream UploadRequest) returns (UploadResponse);
  rpc Chat(stream ChatRequest) returns (stream ChatResponse);
}

message WatchRequest {}
message WatchResponse { string name = 1; }
message UploadRequest { bytes data = 1; }
message UploadResponse { int64 size = 1; }
message ChatRequest { string text = 1; }
message ChatResponse { string text = 1; }
"""
"""What the README's service has from its chapter on clients on. It begins within the service."""

TAKEN_FOR_GRANTED = """
from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import aiohttp
import pyqwest
import urllib3
from greet_pb2 import *
from greet_pb2_connect import *
from starlette.middleware.cors import CORSMiddleware

from connectrpc import cors
from connectrpc.health import *
from connectrpc.reflection import *
from connectrpc.server import *

app: Any
Base: Any
Eliza: Any
flask_app: Any
ssl_context: ssl.SSLContext
wsgi_eliza_service: Any

def token() -> str: return ""
def count(path: str, outcome: str) -> None: ...
def arrivals() -> Iterator[str]: return iter(())
async def async_arrivals() -> AsyncIterator[str]: yield ""
async def connect_to_database() -> contextlib.AbstractAsyncContextManager[str]: return contextlib.nullcontext("")
"""
"""What stands before a snippet, so that it is a module. What it says itself comes later and holds."""


def fenced(language: str, text: str) -> list[str]:
    """The snippets in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SNIPPETS = [
    *fenced("python", README.partition("\n## Clients\n")[2]),
    *(snippet for page in PAGES[1:] for snippet in fenced("python", page.read_text("utf-8"))),
]
"""Those that use the README's service. The first service itself is tried as a whole."""


def named(name: str, language: str) -> str:
    """The file of a name that the README shows."""
    return fenced(language, README.partition(f"\n`{name}`:\n")[2])[0]


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command to its good end; gives what it printed."""
    environment = {**ENVIRONMENT, "BUF_CACHE_DIR": str(folder / "cache-of-buf")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command[0]} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def strictly_typed(folder: Path, files: Sequence[str]) -> None:
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-pycurl,werkzeug.*]\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", f"--cache-dir={folder / 'cache'}", "--follow-imports=silent", *files]
    run(command, folder)


def test_the_first_service(tmp_path: Path) -> None:
    (tmp_path / "proto").mkdir()
    for name, language in [
        ("proto/greet.proto", "proto"),
        ("buf.gen.yaml", "yaml"),
        ("server.py", "python"),
        ("client.py", "python"),
    ]:
        (tmp_path / name).write_text(named(name, language))
    run([BIN / "buf", "generate"], tmp_path)
    strictly_typed(tmp_path, ["server.py", "client.py", "greet_pb2_connect.py"])

    generated = (tmp_path / "greet_pb2_connect.py").read_text()
    (by_protoc,) = re.findall(r"^`(protoc .*?)`", README, re.MULTILINE)
    run(by_protoc.split(), tmp_path)
    assert (tmp_path / "greet_pb2_connect.py").read_text() == generated

    (serve, curl) = next(text for text in fenced("sh", README) if text.startswith("gunicorn")).splitlines()
    # The socket listens before the server is there: a client that comes too early waits.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = subprocess.Popen(
            [sys.executable, "-m", *serve.split(), "--log-level=warning", f"--bind=fd://{listener.fileno()}"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            pass_fds=[listener.fileno()],
        )
        try:
            header, body, path = re.findall(r"-H '(.*?)' -d '(.*?)' http://127\.0\.0\.1:8000(/.*)", curl)[0]
            request = urllib.request.Request(base_url + path, body.encode(), dict([header.split(": ")]))
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.read() == b'{"greeting":"Hello, Ada!"}'
            client = (tmp_path / "client.py").read_text().replace("http://127.0.0.1:8000", base_url)
            assert run([sys.executable, "-W", "error", "-c", client], tmp_path) == "Hello, Ada!\n"
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_snippets_have_good_types(tmp_path: Path) -> None:
    proto = named("proto/greet.proto", "proto")
    (tmp_path / "greet.proto").write_text(proto.replace("\n}\n", OTHER_RPCS, 1))
    outputs = [f"--{plugin}_out=." for plugin in ("python", "pyi", "connect_python")]
    run([BIN / "protoc", "-I.", *outputs, "greet.proto"], tmp_path)
    files: list[str] = []
    for snippet in SNIPPETS:
        lines = TAKEN_FOR_GRANTED
        for name in ("Greeter", "AsyncGreeter"):
            if f"class {name}:" not in snippet:
                lines += f"class {name}(Base): ...  # type: ignore[misc]\n"
        # What wants a coroutine around it is at the end of its snippet.
        plain, *waiting = re.split(r"^(?=async with )", snippet, maxsplit=1, flags=re.MULTILINE)
        lines += plain
        for statement in waiting:
            lines += "async def main() -> None:\n" + textwrap.indent(statement, "    ")
        files.append(f"snippet_{len(files)}.py")
        (tmp_path / files[-1]).write_text(lines)
    assert len(files) > 10
    strictly_typed(tmp_path, files)


@pytest.mark.parametrize(
    ("chapter", "options"), [("Client options", ClientOptions), ("Service options", ServiceOptions)]
)
def test_all_options_are_listed(chapter: str, options: type) -> None:
    rows = README.partition(f"\n### {chapter}\n")[2].partition("\n#")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)) == sorted(options.__annotations__)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} has a link to {link}"
