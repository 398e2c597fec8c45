"""The program: what it answers, what it announces, and how it fails."""

from __future__ import annotations

import ast
import io
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import Edition

import connectrpc
from connectrpc import gencode
from protoc_gen_connect_python import main as program
from protoc_gen_connect_python import names, render

if TYPE_CHECKING:
    from tests.unit.plugin.conftest import Compile, Generate

PLUGIN = Path(sys.executable).parent / "protoc-gen-connect_python"

SOURCE = """
syntax = "proto3";
package a.v1;
message M {}
service Greeter { rpc Greet(M) returns (stream M); }
"""


def respond(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    return program.respond(request.SerializeToString())


def test_the_templates_are_for_this_runtime() -> None:
    assert render.GENCODE_VERSION == gencode.GENCODE_VERSION


def test_an_answer(compile_protos: Compile) -> None:
    response = respond(compile_protos({"a/v1/greeter.proto": SOURCE}))
    assert not response.HasField("error")
    assert [file.name for file in response.file] == ["a/v1/greeter_pb2_connect.py"]
    assert response.file[0].content.endswith("options)\n")


@pytest.mark.parametrize("parameter", ["", "sides=nobody"])
def test_what_it_announces(parameter: str) -> None:
    response = respond(CodeGeneratorRequest(parameter=parameter))
    assert response.supported_features == (
        CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL | CodeGeneratorResponse.FEATURE_SUPPORTS_EDITIONS
    )
    assert (response.minimum_edition, response.maximum_edition) == (Edition.EDITION_PROTO2, Edition.EDITION_2024)


def test_the_same_request_gives_the_same_answer(compile_protos: Compile) -> None:
    request = compile_protos({"a/v1/greeter.proto": SOURCE}).SerializeToString()
    assert program.respond(request) == program.respond(request)


# --- names in what is generated


AWKWARD = [
    *("Say", "SAY", "import", "close", "call_say", "Float", "Typing", "GreeterPb2", "HeaderInput", "Deprecated"),
    *("_Say", "say_", "Gencode", "Server", "UnaryOutput", "unary_output", "Unpack", "GetHTTP", "GetHttp", "__init__"),
]


def public_names(source: str) -> list[str]:
    """Every public name of a module and of its classes, in order."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.ClassDef):
            functions = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            found += [node.name, *(f"{node.name}.{function.name}" for function in functions)]
    return [name for name in found if not name.startswith("_")]


def test_an_appended_rpc_renames_nothing(generate: Generate) -> None:
    head = 'syntax = "proto3"; package a; message M {} service AsyncGreeter { rpc Say(M) returns (M); }'
    before: list[str] = []
    for length in range(len(AWKWARD) + 1):
        rpcs = " ".join(f"rpc {rpc}(M) returns (M);" for rpc in AWKWARD[:length])
        source = f"{head} service Greeter {{ {rpcs} }} service Last {{ rpc Say(M) returns (M); }}"
        now = public_names(generate({"greeter.proto": source})["greeter_pb2_connect.py"])
        assert [name for name in now if name in before] == before
        # In each of both clients a method and its low-level form; in each of both protocols a method.
        assert len(now) == (len(before) + 6 if before else 33)
        before = now


def test_what_is_left_out_does_not_rename_the_rest(generate: Generate) -> None:
    services = " ".join(f"service {name} {{ rpc Say(M) returns (M); }}" for name in ("Foo", "AsyncFoo", "FOO"))
    sources = {"a.proto": f'syntax = "proto3"; message M {{}} {services}'}
    whole = public_names(generate(sources)["a_pb2_connect.py"])
    for parameter in "sides=client", "sides=server", "styles=sync", "styles=async", "sides=client,styles=async":
        part = public_names(generate(sources, parameter)["a_pb2_connect.py"])
        assert part == [name for name in whole if name in part]


# --- imports


def imports_of(source: str) -> list[str]:
    return [line for line in source.splitlines() if "_pb2" in line and ("import " in line or "import_module" in line)]


@pytest.mark.parametrize(
    ("user", "used", "absolute", "relative"),
    [
        ("a.proto", "a.proto", "import a_pb2", "from . import a_pb2"),
        ("a.proto", "b.proto", "import b_pb2", "from . import b_pb2"),
        ("a.proto", "x/y/b-c.proto", "from x.y import b_c_pb2", "from .x.y import b_c_pb2"),
        ("x/a.proto", "b.proto", "import b_pb2", "from .. import b_pb2"),
        ("x/y/a.proto", "x/b.proto", "from x import b_pb2", "from .. import b_pb2"),
        ("x/y/a.proto", "x/z/b.proto", "from x.z import b_pb2", "from ..z import b_pb2"),
        ("x/y/a.proto", "z/b.proto", "from z import b_pb2", "from ...z import b_pb2"),
        # Twins.
        ("x/a.proto", "y/a.proto", "from y import a_pb2 as _y_a_pb2", "from ..y import a_pb2 as _y_a_pb2"),
        # Below the runtime's own name.
        ("connectrpc/x/a.proto", "connectrpc/y/b.proto", "from ..y import b_pb2", "from ..y import b_pb2"),
        ("x/a.proto", "connectrpc/b.proto", "from connectrpc import b_pb2", "from ..connectrpc import b_pb2"),
        # Keywords in the path: they may be left unsaid from inside of the folder, and only there.
        ("import/a.proto", "import/a.proto", "from . import a_pb2", "from . import a_pb2"),
        ("import/a.proto", "import/x/b.proto", "from .x import b_pb2", "from .x import b_pb2"),
        ("x/import/a.proto", "x/import/b.proto", "from . import b_pb2", "from . import b_pb2"),
        ("x/import/a.proto", "x/b.proto", "from x import b_pb2", "from .. import b_pb2"),
        (
            "a.proto",
            "import/b.proto",
            'b_pb2 = importlib.import_module("import.b_pb2")',
            'b_pb2 = importlib.import_module(".import.b_pb2", __package__)',
        ),
        (
            "x/a.proto",
            "x/import/b.proto",
            'b_pb2 = importlib.import_module("x.import.b_pb2")',
            'b_pb2 = importlib.import_module(".import.b_pb2", __package__)',
        ),
        (
            "x/y/a.proto",
            "import/b.proto",
            'b_pb2 = importlib.import_module("import.b_pb2")',
            'b_pb2 = importlib.import_module("...import.b_pb2", __package__)',
        ),
        # What is no identifier.
        (
            "a.proto",
            "1st.proto",
            '_1st_pb2 = importlib.import_module("1st_pb2")',
            '_1st_pb2 = importlib.import_module(".1st_pb2", __package__)',
        ),
        (
            "2024/a.proto",
            "2024/a.proto",
            'a_pb2 = importlib.import_module("2024.a_pb2")',
            'a_pb2 = importlib.import_module(".a_pb2", __package__)',
        ),
        (
            "a.proto",
            "with space.proto",
            'with_space_pb2 = importlib.import_module("with space_pb2")',
            'with_space_pb2 = importlib.import_module(".with space_pb2", __package__)',
        ),
        # Names that Python would rewrite within a class.
        ("a.proto", "_b.proto", "import _b_pb2", "from . import _b_pb2"),
        ("a.proto", "__b.proto", "import __b_pb2 as _b_pb2", "from . import __b_pb2 as _b_pb2"),
    ],
)
def test_imports_of_messages(user: str, used: str, absolute: str, relative: str, generate: Generate) -> None:
    service = "service S { rpc R(stream u.M) returns (u.M); }"
    if user == used:
        sources = {user: f'syntax = "proto3"; package u; message M {{}} {service}'}
    else:
        sources = {
            user: f'syntax = "proto3"; package s; import "{used}"; {service}',
            used: 'syntax = "proto3"; package u; message M {}',
        }
    for imports, expected in ("absolute", absolute), ("relative", relative):
        (content,) = generate(sources, f"imports={imports}", only=[user]).values()
        compile(content, user, "exec")
        assert imports_of(content) == [expected]


def test_protobufs_own_messages_are_where_protobuf_is(generate: Generate) -> None:
    imported = 'import "google/protobuf/empty.proto";'
    source = f'syntax = "proto3"; package s; {imported} service S {{ rpc R(google.protobuf.Empty) returns (M); }}'
    (content,) = generate({"x/a.proto": f"{source} message M {{}}"}, "imports=relative").values()
    assert imports_of(content) == ["from google.protobuf import empty_pb2", "from . import a_pb2"]


def test_the_path_of_a_file_is_quoted(generate: Generate) -> None:
    name = 'it\'s "x" \\ é \u202e \n.proto'
    (content,) = generate({name: 'syntax = "proto3"; message M {} service S { rpc R(M) returns (M); }'}).values()
    tree = ast.parse(content)
    assert ast.get_docstring(tree) == f"Clients and services of {name}."
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert name in constants
    assert names.module_name(name) in constants


# --- failures


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "cannot read the request: "),
        (b"\x12\x01\xff", "unknown option '"),
        (b"\x0a\x01\xff", "\\xff: the request asks for "),
        (b"this is no request", "cannot read the request: "),
        (CodeGeneratorRequest(parameter="side=client").SerializeToString(), "unknown option 'side'; the options are "),
        (CodeGeneratorRequest(parameter="styles=\n").SerializeToString(), "option styles is one of "),
        (CodeGeneratorRequest(file_to_generate=["a.proto"]).SerializeToString(), "a.proto: the request asks for "),
    ],
)
def test_failures_are_one_line_of_the_answer(data: bytes, message: str) -> None:
    response = program.respond(data)
    assert response.error.startswith(message)
    assert "\n" not in response.error
    assert len(response.file) == 0


def test_a_spoiled_request_is_answered(compile_protos: Compile) -> None:
    request = compile_protos({"a/v1/greeter.proto": SOURCE}).SerializeToString()
    choose = random.Random(7)
    answers = set()
    for _ in range(500):
        spoiled = bytearray(request)
        for _ in range(choose.randrange(1, 4)):
            spoiled[choose.randrange(len(spoiled))] = choose.randrange(256)
        response = program.respond(bytes(spoiled))
        answers.add(bool(response.error))
        for file in response.file:
            compile(file.content, file.name, "exec")
    assert answers == {True, False}


def test_without_protogen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name in ("protogen", "protoc_gen_connect_python.model"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("protoc_gen_connect_python.model")
    monkeypatch.setattr(sys, "meta_path", [Missing("protogen"), *sys.meta_path])
    assert program.respond(b"").error == "the module protogen is missing: install connect-python[compiler]"


class Missing:
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# --- the command line


def run(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: object = None
) -> tuple[int, str, str, CodeGeneratorResponse]:
    buffer, err = io.BytesIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, write_through=True))
    monkeypatch.setattr(sys, "stderr", err)
    status = program.main(arguments)
    written = buffer.getvalue()
    if arguments:
        return status, written.decode(), err.getvalue(), CodeGeneratorResponse()
    return status, "", err.getvalue(), CodeGeneratorResponse.FromString(written)


def test_it_answers_on_standard_output(monkeypatch: pytest.MonkeyPatch, compile_protos: Compile) -> None:
    request = compile_protos({"a.proto": SOURCE})
    stdin = SimpleNamespace(buffer=io.BytesIO(request.SerializeToString()), isatty=lambda: False)
    assert run(monkeypatch, stdin=stdin) == (0, "", "", respond(request))


def test_it_answers_when_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> bytes:
        raise OSError(5, "Input/output error")

    stdin = SimpleNamespace(buffer=SimpleNamespace(read=read), isatty=lambda: False)
    status, _, err, response = run(monkeypatch, stdin=stdin)
    assert (status, err, response.error) == (0, "", "cannot read the request: [Errno 5] Input/output error")


@pytest.mark.parametrize("stdin", [SimpleNamespace(isatty=lambda: True), None])
def test_from_a_terminal_it_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch, stdin: object) -> None:
    status, out, err, _ = run(monkeypatch, stdin=stdin)
    assert (status, out) == (2, "")
    assert "--connect_python_out=." in err


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err, _ = run(monkeypatch, "--version")
    assert (status, err) == (0, "")
    assert out == f"protoc-gen-connect_python {connectrpc.__version__}\n"


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help(monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    status, out, err, _ = run(monkeypatch, argument)
    assert (status, err) == (0, "")
    assert "sides=client|server|both" in out


def test_unknown_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err, _ = run(monkeypatch, "eliza.proto")
    assert (status, out) == (2, "")
    assert err.startswith("protoc-gen-connect_python: unknown arguments: eliza.proto\n")


def test_protoc_shows_a_failure_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text(SOURCE)
    protoc = Path(sys.executable).parent / "protoc"
    options = ["-I.", f"--plugin={PLUGIN}", "--connect_python_out=sides=x:."]
    done = subprocess.run(
        [protoc, *options, "a.proto"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "--connect_python_out: option sides is one of client, server, both, not 'x'\n"
