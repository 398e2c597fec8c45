"""Awkward but legal protos, through the whole tool chain: generated, imported, type-checked, served and called.

Everything runs in processes of its own. The modules that they import are the corpus's, and its names (some without a
package) are nothing that the test process wants in its descriptor pool.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from connectrpc.method import Method, Service
    from connectrpc.server import WSGIApplication

HERE = Path(__file__).parent
PROTOS = HERE / "protos"
SOURCE = HERE.parents[1] / "src"
BIN = Path(sys.executable).parent

FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
FILES_WITH_SERVICES = [file for file in FILES if "\nservice " in (PROTOS / file).read_text("utf-8")]

NOT_TYPED = {"corpus.keyword_messages_pb2_connect"}
"""Where protoc's stub is a syntax error."""

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run(command: Sequence[str | Path], *, cwd: Path, **environment: str) -> str:
    """Run a command to its end, which is a good one and comes soon. Gives what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command[0]} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(code: str, *, path: Path, options: Sequence[str] = ()) -> str:
    """Run a program that can import what is generated in ``path``."""
    return run([sys.executable, *options, "-c", textwrap.dedent(code)], cwd=path, PYTHONPATH=f"{path}:{SOURCE}")


def module_of(file: str) -> str:
    """The generated module of a ``.proto`` file."""
    return file.removesuffix(".proto").replace("-", "_").replace("/", ".") + "_pb2_connect"


def path_of(module: str) -> str:
    return module.replace(".", "/") + ".py"


@pytest.fixture(scope="module")
def by_protoc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that protoc generates."""
    out = tmp_path_factory.mktemp("protoc")
    outputs = [f"--{plugin}_out={out}" for plugin in ("python", "pyi", "connect_python")]
    run([BIN / "protoc", "-I.", *outputs, *FILES], cwd=PROTOS)
    return out


@pytest.fixture(scope="module")
def by_buf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that buf generates. It runs the plugin once for each folder, and by its other name."""
    out = tmp_path_factory.mktemp("buf")
    template = {
        "version": "v2",
        "plugins": [
            {"protoc_builtin": "python", "out": str(out)},
            {"protoc_builtin": "pyi", "out": str(out)},
            {"local": "protoc-gen-connect-python", "out": str(out)},
        ],
    }
    cache = str(tmp_path_factory.mktemp("cache"))
    run([BIN / "buf", "generate", ".", "--template", json.dumps(template)], cwd=PROTOS, BUF_CACHE_DIR=cache)
    return out


# --- generating


def generated_files(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text("utf-8") for path in out.rglob("*_connect.py")}


def test_protoc_and_buf_generate_the_same(by_protoc: Path, by_buf: Path) -> None:
    assert generated_files(by_protoc) == generated_files(by_buf)


def test_files_with_services_get_a_module_beside_their_messages(by_protoc: Path) -> None:
    expected = {path_of(module_of(file)) for file in FILES_WITH_SERVICES}
    assert generated_files(by_protoc).keys() == expected
    assert all((by_protoc / path.replace("_pb2_connect.py", "_pb2.py")).is_file() for path in expected)


def test_relative_imports_work_within_a_package(tmp_path: Path) -> None:
    # Messages that import messages would not: protoc's own imports are absolute, whatever package they are put into.
    package = tmp_path / "package" / "gen"
    files = ["corpus/kinds/v1/kinds.proto", "corpus/import/class/other.proto", "no_package.proto", "1st.proto"]
    outputs = [f"--python_out={package}", f"--connect_python_out={package}", "--connect_python_opt=imports=relative"]
    package.mkdir(parents=True)
    run([BIN / "protoc", "-I.", *outputs, *files], cwd=PROTOS)
    run_python(
        """
        import importlib, sys
        from package.gen import no_package_pb2_connect
        from package.gen.corpus.kinds.v1 import kinds_pb2_connect
        importlib.import_module("package.gen.1st_pb2_connect")
        assert "no_package_pb2" not in sys.modules and "corpus" not in sys.modules
        """,
        path=tmp_path,
    )


# --- importing


@pytest.mark.parametrize("file", FILES_WITH_SERVICES)
def test_importing_loads_no_more_than_it_needs(file: str, by_protoc: Path) -> None:
    unwanted = ["asyncio", "google.protobuf.json_format", "aiohttp", "urllib3", "httpx", "http.client", "ssl"]
    if sys.version_info >= (3, 11):  # below, multidict itself loads it
        unwanted.append("typing_extensions")
    run_python(
        f"""
        import sys
        before = set(sys.modules)  # what `site` loads, by .pth files, is not ours
        import importlib
        importlib.import_module({module_of(file)!r})
        loaded = set(sys.modules) - before
        assert "connectrpc.method" in loaded
        assert loaded.isdisjoint({unwanted}), loaded.intersection({unwanted})
        """,
        path=by_protoc,
    )


def test_deprecated_methods_and_clients_warn(by_protoc: Path) -> None:
    run_python(
        """
        import warnings
        import pytest
        from corpus.deprecated_pb2 import Message
        from corpus.deprecated_pb2_connect import (
            AsyncPartlyDeprecatedClient, AsyncWhollyDeprecatedClient, AsyncPartlyDeprecatedProtocol,
            PartlyDeprecatedClient, PartlyDeprecatedProtocol, WhollyDeprecatedClient,
        )
        from corpus.deprecated_file_pb2_connect import FileDeprecatedClient

        warnings.simplefilter("error")
        for client in PartlyDeprecatedClient, AsyncPartlyDeprecatedClient:
            for name in "old", "old_out", "old_in", "old_both":
                for method in getattr(client, name), getattr(client, f"call_{name}"):
                    assert method.__deprecated__ == (
                        "corpus.deprecated.PartlyDeprecated.%s is deprecated" % name.title().replace("_", "")
                    )
                    assert not hasattr(getattr(PartlyDeprecatedProtocol, name), "__deprecated__")
                    assert not hasattr(getattr(AsyncPartlyDeprecatedProtocol, name), "__deprecated__")
            assert not hasattr(client.current, "__deprecated__")

        with PartlyDeprecatedClient("http://127.0.0.1:1") as client:
            with pytest.warns(DeprecationWarning, match="PartlyDeprecated.Old is deprecated") as caught:
                client.call_old(Message(), timeout_seconds=0)
            assert caught[0].filename == "<string>"
        for client in WhollyDeprecatedClient, AsyncWhollyDeprecatedClient, FileDeprecatedClient:
            with pytest.warns(DeprecationWarning, match="Deprecated is deprecated"):
                client("http://127.0.0.1:1")
        """,
        path=by_protoc,
    )


# --- type-checking


@pytest.fixture(scope="module")
def checked(by_protoc: Path) -> list[str]:
    """What is type-checked: the generated modules, and what a user would write."""
    (by_protoc / "usage.py").write_bytes((PROTOS / "usage.py").read_bytes())
    modules = (module_of(file) for file in FILES_WITH_SERVICES)
    return ["usage.py", *(path_of(module) for module in modules if module not in NOT_TYPED)]


def test_mypy_strict(by_protoc: Path, checked: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={tmp_path}", "--no-error-summary"),
            *("--strict", "--enable-error-code=deprecated", "--python-version=3.10"),
            *("--namespace-packages", "--explicit-package-bases", *checked),
        ],
        cwd=by_protoc,
        env=ENVIRONMENT | {"MYPYPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # protoc's own stubs do not pass; mypy reads them all the same.
    errors = [line for line in done.stdout.splitlines() if not re.match(r"[^:]*_pb2\.pyi:\d+: (error|note): ", line)]
    assert done.returncode in (0, 1), done.stderr
    assert errors == []


def test_pyright_strict(by_protoc: Path, checked: list[str]) -> None:
    settings = {
        "include": checked,
        "extraPaths": [str(SOURCE)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.10",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (by_protoc / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=by_protoc,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert [(found["file"], found["range"], found["message"]) for found in report["generalDiagnostics"]] == []
    assert report["summary"]["filesAnalyzed"] == len(checked)


# --- serving and calling


def test_every_rpc_can_be_called(by_protoc: Path) -> None:
    # The socket listens before the server is there: a client that comes too early waits.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = [sys.executable, "-m", "gunicorn", f"{Path(__file__).stem}:serve_everything()"]
        settings = ["--worker-class=gthread", "--threads=4", "--workers=1", "--log-level=warning"]
        server = subprocess.Popen(
            [*program, *settings, f"--bind=fd://{listener.fileno()}"],
            cwd=HERE,
            env=ENVIRONMENT | {"PYTHONPATH": f"{HERE}:{by_protoc}:{SOURCE}"},
            pass_fds=[listener.fileno()],
        )
        try:
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            program = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", __file__]
            called = run([*program, base_url], cwd=HERE, PYTHONPATH=f"{by_protoc}:{SOURCE}")
        finally:
            server.terminate()
            server.wait(timeout=30)
    declared = sum((PROTOS / file).read_text("utf-8").count("\n  rpc ") for file in FILES)
    assert called.splitlines() == [f"{declared} methods by the synchronous clients", f"{declared} by the others"]


# The rest runs in those other processes.

RPC_HEADER = "x-rpc"
TIMEOUT_SECONDS = 20.0


class Generated:
    """What a module has for one of its services, told from the order in ``__all__``."""

    def __init__(self, module: ModuleType, names: Sequence[str]) -> None:
        path_prefix, client, async_client, protocol, wsgi, async_protocol, asgi = (getattr(module, n) for n in names)
        self.service: Service = next(
            value
            for value in vars(module).values()
            if type(value).__name__ == "Service" and path_prefix == f"/{value.name}"
        )
        self.client: Any = client
        self.async_client: Any = async_client
        self.protocol: Any = protocol
        self.async_protocol: Any = async_protocol
        self.wsgi: Any = wsgi
        self.asgi: Any = asgi


def everything() -> Iterator[Generated]:
    for file in FILES_WITH_SERVICES:
        module = importlib.import_module(module_of(file))
        names = iter(module.__all__)
        while seven := list(itertools.islice(names, 7)):
            yield Generated(module, seven)


def implementation_of(service: Service, *, asynchronous: bool) -> object:
    """Answers with empty messages, two for a stream, and says which RPC it was."""
    from connectrpc.server import ServerResponse, ServerStream

    def handler(method: Method[Any, Any]) -> object:
        def handle(_self: object, req: Any) -> object:
            if method.kind.client_streams:
                assert [type(message) for message in req] == [method.input, method.input]
            else:
                assert type(req.msg) is method.input
            headers = {RPC_HEADER: method.path}
            if method.kind.server_streams:
                return ServerStream([method.output(), method.output()], headers)
            return ServerResponse(method.output(), headers)

        async def handle_async(_self: object, req: Any) -> object:
            return handle(_self, req)

        return handle_async if asynchronous else handle

    return type("Implementation", (), {method.python_name: handler(method) for method in service.methods})()


def serve_everything() -> WSGIApplication:
    from connectrpc.server import asgi_app, wsgi_app

    services = list(everything())
    asgi_app(*(found.asgi(implementation_of(found.service, asynchronous=True)) for found in services))
    return wsgi_app(*(found.wsgi(implementation_of(found.service, asynchronous=False)) for found in services))


def arguments(method: Method[Any, Any]) -> tuple[Any, None, float]:
    request = [method.input(), method.input()] if method.kind.client_streams else method.input()
    return request, None, TIMEOUT_SECONDS


def check(method: Method[Any, Any], messages: Sequence[object], output: Any = None) -> None:
    assert [type(message) for message in messages] == [method.output] * (2 if method.kind.server_streams else 1)
    if output is not None:
        assert output.error() is None
        assert output.response_headers()[RPC_HEADER] == method.path


def call(client: Any, method: Method[Any, Any]) -> None:
    result = getattr(client, method.python_name)(*arguments(method), cancel=None)
    check(method, list(result) if method.kind.server_streams else [result])
    output = getattr(client, f"call_{method.python_name}")(*arguments(method), cancel=None)
    if method.kind.server_streams:
        with output:
            check(method, list(output), output)
    else:
        check(method, [output.message()], output)


async def call_async(client: Any, method: Method[Any, Any]) -> None:
    if method.kind.server_streams:
        stream = getattr(client, method.python_name)(*arguments(method))
        check(method, [message async for message in stream])
        async with getattr(client, f"call_{method.python_name}")(*arguments(method)) as output:
            check(method, [message async for message in output], output)
    else:
        check(method, [await getattr(client, method.python_name)(*arguments(method))])
        output = await getattr(client, f"call_{method.python_name}")(*arguments(method))
        check(method, [output.message()], output)


async def call_everything_async(services: Sequence[Generated], base_url: str) -> int:
    called = 0
    for found in services:
        async with found.async_client(base_url) as client:
            for method in found.service.methods:
                await call_async(client, method)
                called += 1
    return called


def call_everything(services: Sequence[Generated], base_url: str) -> int:
    called = 0
    for found in services:
        with found.client(base_url) as client:
            for method in found.service.methods:
                call(client, method)
                called += 1
    return called


def main(base_url: str) -> None:
    services = list(everything())
    for found in services:
        implementation = implementation_of(found.service, asynchronous=False)
        assert isinstance(implementation, found.protocol)
        assert isinstance(implementation, found.async_protocol)
    print(call_everything(services, base_url), "methods by the synchronous clients")
    print(asyncio.run(call_everything_async(services, base_url)), "by the others")


if __name__ == "__main__":
    main(*sys.argv[1:])
