"""What importing costs, and what must never happen by it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import connectrpc

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(connectrpc.__file__).parent

HEAVY = [
    "asyncio",
    "google.protobuf.json_format",
    "typing_extensions",
    "urllib3",
    "aiohttp",
    "logging",
    "http.client",
    "ssl",
    "socket",
]


OPTIONAL = ["httpx", "pycurl", "pyqwest"]
"""Libraries without which the transport of the same name cannot be imported. Not every Python has them."""


def modules() -> list[str]:
    """The dotted names of all modules of the runtime that can be imported here."""
    absent = [name for name in OPTIONAL if find_spec(name) is None]
    files = (path for path in sorted(ROOT.rglob("*.py")) if path.stem not in absent or path.parent.name != "transports")
    paths = (path.relative_to(ROOT.parent).with_suffix("") for path in files)
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def run(script: str, *paths: Path, **environ: str) -> str:
    """What a fresh interpreter prints."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT.parent))), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def loaded_by(statement: str, *paths: Path) -> list[str]:
    """Which of the heavy modules ``statement`` loads, beyond what messages and multidict (in old releases) load."""
    # site may have loaded some for a .pth file, as editable installs have; they are not what is looked for
    script = f"""
import sys
import multidict, google.protobuf.descriptor_pb2, google.protobuf.internal.builder, google.protobuf.runtime_version
before = set(sys.modules)
{statement}
print([name for name in {HEAVY} if name in sys.modules and name not in before])
print([name for name in {HEAVY} if name in before])
"""
    after, before = map(ast.literal_eval, run(script, *paths).splitlines())
    assert not {"asyncio", "urllib3", "aiohttp", "google.protobuf.json_format"} & set(before), "nothing would be seen"
    names: list[str] = after
    return names


def test_generated_code(surface: Path) -> None:
    assert loaded_by("import surface_pb2_connect", surface) == []


@pytest.mark.parametrize(
    "module",
    [
        "connectrpc",
        "connectrpc.errors",
        "connectrpc.client",
        "connectrpc.server",
        "connectrpc.codec",
        "connectrpc.health",
        "connectrpc.reflection",
        "connectrpc.streams",
        "connectrpc.interceptors",
        "connectrpc.testing",
    ],
)
def test_modules_that_generated_code_and_users_import(module: str) -> None:
    assert loaded_by(f"import {module}") == []


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        # A client of one colour does not pay for the other's library.
        (
            "from connectrpc.client import SyncClient; SyncClient('http://h')",
            {"urllib3", "logging", "http.client", "ssl", "socket"},
        ),
        (
            "from connectrpc.client import AsyncClient; AsyncClient('http://h')",
            {"aiohttp", "asyncio", "logging", "http.client", "ssl", "socket"},
        ),
    ],
)
def test_clients_load_their_own_library_only(statement: str, allowed: set[str]) -> None:
    assert set(loaded_by(statement)) & {"urllib3", "aiohttp"} <= allowed


def test_what_loads_lazily_is_listed_before() -> None:
    """Shells complete names by ``dir()``."""
    script = "import connectrpc.server as server; print(set(server.__all__) <= set(dir(server)))"
    assert run(script) == "True"


def test_a_wsgi_service_needs_no_http_library() -> None:
    statement = "from connectrpc.server import wsgi_service"
    assert not {"urllib3", "aiohttp", "asyncio"} & set(loaded_by(statement))


def test_calls_without_a_socket_need_no_http_library() -> None:
    """Nor an event loop, when neither the client nor the app has one."""
    statement = """
from connectrpc.client import SyncClient
from connectrpc.server import wsgi_app
from connectrpc.testing import WSGITransport
with SyncClient("http://test", WSGITransport(wsgi_app())) as client: pass
import sys
assert "connectrpc.transports.memory.wsgi" in sys.modules
"""
    assert not {"urllib3", "aiohttp", "asyncio", "http.client", "ssl", "socket"} & set(loaded_by(statement))


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, and whether that happens at run time."""

    def visit(node: ast.AST, runtime: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for statement in node.body:
                yield from visit(statement, False)
            for statement in node.orelse:
                yield from visit(statement, runtime)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, runtime
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", runtime
        for child in ast.iter_child_nodes(node):
            yield from visit(child, runtime)

    yield from visit(ast.parse(path.read_text("utf-8")), True)


IO = {
    "asyncio",
    "socket",
    "ssl",
    "http",
    "threading",
    "selectors",
    "subprocess",
    "concurrent",
    "aiohttp",
    "urllib3",
    "time",
}
"""What the core has no business with: it does no I/O, starts nothing, and does not look at the clock."""


@pytest.mark.parametrize("path", sorted((ROOT / "_core").glob("*.py")), ids=lambda path: path.name)
def test_the_core_knows_no_library(path: Path) -> None:
    """Standard library, protobuf, multidict, and our own lower modules; not even for types an HTTP library."""
    for name, _ in imports_of(path):
        top = name.partition(".")[0]
        assert top not in IO, name
        if top == "connectrpc":
            second = name.split(".")[1]
            assert second not in ("client", "server", "transports", "_aio"), name
        else:
            assert top in sys.stdlib_module_names or name.startswith(("google.protobuf", "multidict")), name


# What is above may know what is below. In a row nobody knows the other.
LAYERS = [
    {"health", "reflection"},
    {"client", "server", "testing"},
    {"transports"},
    {"_core"},
    {"request", "unary", "streams", "interceptors"},
    {
        "codec",
        "compression",
        "deadline",
        "headers",
        "errors",
        "method",
        "cancel",
        "gencode",
        "code",
        "_aio",
        "_descriptors",
        "cors",
    },
]


@pytest.mark.parametrize("name", modules())
def test_imports_run_downward(name: str) -> None:
    parts = name.split(".")
    if len(parts) == 1:
        return
    own = next(index for index, layer in enumerate(LAYERS) if parts[1] in layer)
    path = ROOT.joinpath(*parts[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for imported, runtime in imports_of(file):
        if not imported.startswith("connectrpc.") or not runtime:
            continue
        second = imported.split(".")[1]
        if second in ("__version__", parts[1]):
            continue
        other = next(index for index, layer in enumerate(LAYERS) if second in layer)
        assert other > own or (other == own == len(LAYERS) - 1), f"{name} imports {imported}"


def test_every_module_is_importable_by_itself() -> None:
    """In a fresh interpreter: no cycle hides behind the order in which others import."""
    script = "\n".join(
        f"""
for name in [name for name in sys.modules if name.split(".")[0] == "connectrpc"]:
    del sys.modules[name]
import {module}"""
        for module in modules()
    )
    run("import sys\n" + script)


def test_no_descriptor_of_ours_enters_the_default_pool() -> None:
    """A process may have loaded googleapis or grpcio's packages: a symbol defined twice is a crash on import."""
    script = f"""
from google.protobuf import descriptor_pool
added = []
pool = type(descriptor_pool.Default())
for name in ("Add", "AddSerializedFile", "_AddFileDescriptor"):
    original = getattr(pool, name)
    def wrapper(self, file, original=original):
        added.append((self, file if isinstance(file, bytes) else getattr(file, "name", "").encode()))
        return original(self, file)
    setattr(pool, name, wrapper)
import importlib
for module in {modules()}:
    importlib.import_module(module)
from connectrpc.codec import JsonCodec
JsonCodec()
import google.protobuf.duration_pb2
default = [file for owner, file in added if owner is descriptor_pool.Default()]
assert any(b"duration.proto" in file for file in default), "nothing would be seen"
print([file for file in default if b"google/protobuf/" not in file])
"""
    # only this implementation lets itself be watched
    assert run(script, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python") == "[]"


def test_generated_code_of_another_folder_is_found(tmp_path: Path) -> None:
    """Packages such as ``connectrpc.eliza.v1`` generate code below our own package's name."""
    for number, name in enumerate(("one", "other")):
        folder = tmp_path / name / "connectrpc" / f"eliza{number}" / "v1"
        folder.mkdir(parents=True)
        (folder / "eliza_pb2.py").write_text(f"NUMBER = {number}")
    script = """
import connectrpc.client, connectrpc.eliza0.v1.eliza_pb2, connectrpc.eliza1.v1.eliza_pb2
print(connectrpc.eliza0.v1.eliza_pb2.NUMBER, connectrpc.eliza1.v1.eliza_pb2.NUMBER, connectrpc.__version__)
"""
    assert run(script, tmp_path / "one", tmp_path / "other") == f"0 1 {connectrpc.__version__}"


def test_generated_code_of_another_folder_hides_nothing_of_ours(tmp_path: Path) -> None:
    (tmp_path / "connectrpc" / "client").mkdir(parents=True)
    (tmp_path / "connectrpc" / "errors.py").write_text("raise RuntimeError")
    script = "import connectrpc; connectrpc.__path__.reverse(); print(connectrpc.__path__.__len__())"
    assert int(run(script, tmp_path)) >= 2
    assert (
        run("from connectrpc.client import SyncClient; print(SyncClient.__module__)", tmp_path) == "connectrpc.client"
    )


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert version("connect-python") == connectrpc.__version__


def test_types_are_announced() -> None:
    assert (ROOT / "py.typed").exists()
    assert (ROOT.parent / "protoc_gen_connect_python" / "py.typed").exists()


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['pycurl'] = None; import connectrpc.transports.pycurl"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'connect-python[pycurl]'" in done.stderr.splitlines()[-1]
