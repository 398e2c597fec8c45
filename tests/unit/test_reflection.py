"""Server reflection under both kinds of application, and peace with grpcio's packages for the same protos."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pool, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

import connectrpc
from connectrpc._descriptors import service_of
from connectrpc.health import Health, asgi_health, wsgi_health
from connectrpc.health import _messages as health_messages
from connectrpc.reflection import (
    REFLECTION_SERVICE_PATH_PREFIX,
    REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX,
    asgi_reflection,
    with_reflection,
    wsgi_reflection,
)
from connectrpc.reflection._messages import POOL, VERSIONS
from connectrpc.server import asgi_app, asgi_service, wsgi_app, wsgi_service
from harness import (
    NAME,
    STREAM_JSON,
    STREAM_PROTO,
    UNARY,
    Answer,
    Connection,
    Starter,
    asgi,
    call_asgi,
    call_wsgi,
    environ,
    frame,
    frames,
    part,
    pieces,
    reply,
    scope,
    serve,
    wsgi,
)

if TYPE_CHECKING:
    from harness import Event

BIN = Path(sys.executable).parent
ROOT = Path(connectrpc.__file__).parent

V1, V1ALPHA = VERSIONS
REFLECTION = [V1.service.name, V1ALPHA.service.name]
HEALTH = "grpc.health.v1.Health"
NOT_FOUND, INVALID_ARGUMENT = 5, 3
ABSENT = "grpcio's packages are only there on the Python that development runs on"

PROTOS = {
    "zoo/base.proto": """
        syntax = "proto2";
        package zoo;
        import "google/protobuf/duration.proto";
        message Base { optional google.protobuf.Duration age = 1; extensions 100 to 200; }
        message Closed { optional string name = 1; }
    """,
    "zoo/left.proto": """
        syntax = "proto2";
        package zoo;
        import "zoo/base.proto";
        extend Base { optional string weight = 150; }
        message Left {
          optional Base base = 1;
          extend Base { optional Left left = 100; }
        }
    """,
    "zoo/right.proto": """
        syntax = "proto3";
        package zoo;
        import "zoo/base.proto";
        message Right {
          message Inner { message Innermost { int32 depth = 1; } Innermost innermost = 1; }
          enum Side { NONE = 0; FAR = 1; }
          oneof choice { Base base = 1; Side side = 2; }
          map<string, Inner> by_name = 3;
        }
        enum Kind { KIND_UNKNOWN = 0; KIND_CAT = 1; }
    """,
    "zoo/zoo.proto": """
        syntax = "proto3";
        package zoo;
        import "zoo/left.proto";
        import "zoo/right.proto";
        service Zoo { rpc FeedAll(Left) returns (stream Right); }
    """,
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pool of a user who has one of their own."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, source in PROTOS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    command = [str(BIN / "protoc"), "-I.", "--include_imports", "--descriptor_set_out=all", *PROTOS]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString((folder / "all").read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


class Apps:
    """What makes apps of one kind, and calls them."""

    def __init__(self, kind: str) -> None:
        self.wsgi = kind == "wsgi"
        self.app: Any = wsgi_app if self.wsgi else asgi_app
        self.health: Any = wsgi_health if self.wsgi else asgi_health
        self.reflection: Any = wsgi_reflection if self.wsgi else asgi_reflection
        self.service: Any = wsgi_service if self.wsgi else asgi_service

    def echo(self) -> Any:
        return (wsgi if self.wsgi else asgi)(unary=lambda _: reply("echo"))

    def zoo(self, pool: Any) -> Any:
        return self.service(service_of(pool, "zoo.Zoo"), types.SimpleNamespace(feed_all=lambda _: []))

    def call(self, app: Any, path: str, body: bytes, content_type: str) -> Answer:
        if self.wsgi:
            return call_wsgi(app, environ(path, body, content_type))
        return call_asgi(app, scope(path, content_type), body)

    def ask(self, app: Any, *questions: dict[str, Any], version: Any = V1) -> list[Any]:
        """The answers to questions of one stream."""
        (method,) = version.service.methods
        body = b"".join(frame(method.input(**question).SerializeToString()) for question in questions)
        *messages, (flags, end) = frames(self.call(app, method.path, body, STREAM_PROTO).body)
        assert (flags, end) == (2, b"{}")
        assert not any(flags for flags, _ in messages)
        return [method.output.FromString(payload) for _, payload in messages]

    def files(self, app: Any, *questions: dict[str, Any]) -> list[list[str]]:
        """The names of the files in each answer of one stream."""
        return [names(answer) for answer in self.ask(app, *questions)]

    def listed(self, app: Any, **version: Any) -> list[str]:
        (answer,) = self.ask(app, {"list_services": "*"}, **version)
        return [service.name for service in answer.list_services_response.service]


def names(answer: Any) -> list[str]:
    assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
    files = answer.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(file).name for file in files]


def missing(answer: Any) -> str:
    assert answer.WhichOneof("message_response") == "error_response", answer
    assert answer.error_response.error_code == NOT_FOUND
    message: str = answer.error_response.error_message
    return message


@pytest.fixture(params=["wsgi", "asgi"])
def apps(request: pytest.FixtureRequest) -> Apps:
    return Apps(request.param)


@pytest.fixture
def app(apps: Apps, zoo: Any) -> Any:
    """An app with services of several pools."""
    return with_reflection(apps.app(apps.zoo(zoo), apps.health(Health())))


# What is listed


@pytest.mark.parametrize("version", VERSIONS, ids=["v1", "v1alpha"])
def test_what_is_mounted_is_listed(apps: Apps, app: Any, version: Any) -> None:
    assert apps.listed(app, version=version) == [HEALTH, *REFLECTION, "zoo.Zoo"]


def test_one_line_mounts_it(apps: Apps) -> None:
    app = with_reflection(apps.echo())
    assert type(app) is type(apps.echo())
    assert apps.call(app, UNARY.path, b"", "application/proto").message() == reply("echo")
    assert apps.listed(app) == sorted([NAME, *REFLECTION])


def test_several_apps_and_names(apps: Apps, zoo: Any) -> None:
    described = zoo.FindServiceByName("zoo.Zoo")
    assert apps.listed(apps.reflection()) == REFLECTION
    assert apps.listed(apps.reflection(apps.echo(), apps.health(Health()))) == sorted([NAME, HEALTH, *REFLECTION])
    assert apps.listed(apps.reflection("zoo.Zoo", pool=zoo)) == [*REFLECTION, "zoo.Zoo"]
    assert apps.listed(apps.reflection(described, apps.zoo(zoo), described)) == [*REFLECTION, "zoo.Zoo"]


def test_a_service_of_the_other_kind_is_listed() -> None:
    """They may be served side by side, by different servers of one process."""
    assert Apps("wsgi").listed(wsgi_reflection(asgi_health(Health()))) == [HEALTH, *REFLECTION]
    assert Apps("asgi").listed(asgi_reflection(wsgi_health(Health()))) == [HEALTH, *REFLECTION]


def test_names_that_nobody_knows(apps: Apps) -> None:
    with pytest.raises(ValueError, match=r"'zoo\.Zooo'"):
        apps.reflection("zoo.Zooo")


@pytest.mark.parametrize("wrong", [None, 5, object(), lambda environ, start_response: []])
def test_what_is_no_service(apps: Apps, wrong: Any) -> None:
    with pytest.raises(TypeError):
        apps.reflection(wrong)
    with pytest.raises(TypeError):
        with_reflection(wrong)


def test_it_is_mounted_once(app: Any) -> None:
    with pytest.raises(ValueError, match="served twice"):
        with_reflection(app)


def test_options(apps: Apps) -> None:
    app = with_reflection(apps.echo(), prefix="/tools")
    assert apps.call(app, "/tools" + V1.service.methods[0].path, b"", STREAM_PROTO).status == 200
    assert apps.call(app, UNARY.path, b"", "application/proto").status == 200
    with pytest.raises(TypeError, match="prefixx"):
        with_reflection(apps.echo(), prefixx="/api")  # type: ignore[call-arg]
    small = apps.reflection(read_max_bytes=10)
    answer = apps.call(small, V1.service.methods[0].path, frame(bytes(11)), STREAM_PROTO)
    assert b"resource_exhausted" in answer.body


def test_an_implementation_that_is_made_in_the_lifespan_is_listed() -> None:
    async def made() -> Any:
        yield types.SimpleNamespace()

    app = asgi_service(V1.service, made)
    assert Apps("asgi").listed(asgi_reflection(app)) == REFLECTION
    app = asgi_service(health_messages.SERVICE, made)
    assert Apps("asgi").listed(with_reflection(app)) == [HEALTH, *REFLECTION]


# Files


ALL = ["zoo/zoo.proto", "zoo/left.proto", "zoo/right.proto", "zoo/base.proto", "google/protobuf/duration.proto"]


def test_a_file_comes_with_its_dependencies(apps: Apps, app: Any) -> None:
    (found,) = apps.files(app, {"file_by_filename": "zoo/zoo.proto"})
    assert found[0] == "zoo/zoo.proto"
    assert sorted(found) == sorted(ALL)


def test_files_are_sent_once(apps: Apps, app: Any) -> None:
    """What was asked for always comes, and what it needs only once in a stream."""
    left, zoo, again = apps.files(app, *({"file_by_filename": f"zoo/{name}.proto"} for name in ("left", "zoo", "left")))
    assert left == ["zoo/left.proto", "zoo/base.proto", "google/protobuf/duration.proto"]
    assert zoo == ["zoo/zoo.proto", "zoo/right.proto"]
    assert again == ["zoo/left.proto"]
    assert apps.files(app, {"file_by_filename": "zoo/left.proto"}) == [left], "each stream is a new one"


def test_files_are_whole(apps: Apps, app: Any, zoo: Any) -> None:
    """From what is sent, a tool can make a pool that knows all that ours knows."""
    (answer,) = apps.ask(app, {"file_containing_symbol": "zoo.Zoo"})
    theirs = descriptor_pool.DescriptorPool()
    for file in reversed(answer.file_descriptor_response.file_descriptor_proto):
        theirs.AddSerializedFile(file)
    for name in ALL:
        sent, meant = FileDescriptorProto(), FileDescriptorProto()
        theirs.FindFileByName(name).CopyToProto(sent)
        zoo.FindFileByName(name).CopyToProto(meant)
        assert sent == meant


def test_fields_have_their_names_in_json(apps: Apps, app: Any) -> None:
    """Tools that do not make them up themselves would print JSON of their own."""
    (answer,) = apps.ask(app, {"file_by_filename": "google/protobuf/type.proto"})
    (file,) = (
        found
        for found in map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
        if found.name == "google/protobuf/type.proto"
    )
    (field,) = (message for message in file.message_type if message.name == "Field")
    assert {"typeUrl", "oneofIndex", "jsonName", "name"} <= {known.json_name for known in field.field}


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("zoo.Zoo", "zoo/zoo.proto"),
        ("zoo.Zoo.FeedAll", "zoo/zoo.proto"),
        ("zoo.Left", "zoo/left.proto"),
        ("zoo.Left.base", "zoo/left.proto"),
        ("zoo.Left.left", "zoo/left.proto"),
        ("zoo.weight", "zoo/left.proto"),
        ("zoo.Right.Inner", "zoo/right.proto"),
        ("zoo.Right.Inner.Innermost", "zoo/right.proto"),
        ("zoo.Right.Inner.Innermost.depth", "zoo/right.proto"),
        ("zoo.Right.ByNameEntry", "zoo/right.proto"),
        ("zoo.Right.choice", "zoo/right.proto"),
        ("zoo.Right.Side", "zoo/right.proto"),
        ("zoo.Right.FAR", "zoo/right.proto"),
        ("zoo.Kind", "zoo/right.proto"),
        ("zoo.KIND_CAT", "zoo/right.proto"),
        ("google.protobuf.Duration", "google/protobuf/duration.proto"),
        (f"{HEALTH}", "grpc/health/v1/health.proto"),
        (f"{HEALTH}.Watch", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"),
        (V1.service.name, "grpc/reflection/v1/reflection.proto"),
        (V1ALPHA.service.name, "grpc/reflection/v1alpha/reflection.proto"),
    ],
)
def test_symbols(apps: Apps, app: Any, symbol: str, file: str) -> None:
    ((first, *_),) = apps.files(app, {"file_containing_symbol": symbol})
    assert first == file


@pytest.mark.parametrize(
    "symbol", ["", ".", "zoo", "zoo.", "zoo.Nothing", "zoo.Zoo.Nothing", "zoo.Left.nothing", "Zoo", "\0", "x" * 100_000]
)
def test_symbols_that_nobody_declares(apps: Apps, app: Any, symbol: str) -> None:
    first, second, third = apps.ask(
        app, {"file_containing_symbol": symbol}, {"file_by_filename": symbol}, {"file_by_filename": "zoo/left.proto"}
    )
    assert repr(symbol) in missing(first)
    assert repr(symbol) in missing(second)
    assert names(third)[0] == "zoo/left.proto", "the stream goes on"


def test_the_health_service_is_described_only_where_it_is_mounted(apps: Apps) -> None:
    app = with_reflection(apps.echo(), pool=descriptor_pool.DescriptorPool())
    (answer,) = apps.ask(app, {"file_containing_symbol": HEALTH})
    assert HEALTH in missing(answer)


def test_generated_code_is_found_and_a_pool_of_ones_own_keeps_it_out(apps: Apps, zoo: Any) -> None:
    question = {"file_containing_symbol": "google.protobuf.Timestamp"}
    assert timestamp_pb2.DESCRIPTOR.pool is descriptor_pool.Default()
    assert apps.files(with_reflection(apps.echo()), question) == [["google/protobuf/timestamp.proto"]]
    (answer,) = apps.ask(apps.reflection(apps.zoo(zoo), pool=zoo), question)
    assert "google.protobuf.Timestamp" in missing(answer)


# Extensions


def extension(containing_type: str, number: int) -> dict[str, Any]:
    return {"file_containing_extension": {"containing_type": containing_type, "extension_number": number}}


def test_extensions(apps: Apps, app: Any) -> None:
    for number in (100, 150):
        ((first, *_),) = apps.files(app, extension("zoo.Base", number))
        assert first == "zoo/left.proto"
    for question in (
        *(extension("zoo.Base", number) for number in (0, 1, 101, -1, 2**31 - 1, -(2**31))),
        extension("zoo.Nothing", 100),
        extension("", 100),
    ):
        (answer,) = apps.ask(app, question)
        assert repr(question["file_containing_extension"]["containing_type"]) in missing(answer)


def test_the_numbers_of_extensions(apps: Apps, app: Any) -> None:
    base, closed, nothing, well_known = apps.ask(
        app,
        *(
            {"all_extension_numbers_of_type": name}
            for name in ("zoo.Base", "zoo.Closed", "zoo.Nothing", "google.protobuf.Timestamp")
        ),
    )
    found = base.all_extension_numbers_response
    assert (found.base_type_name, list(found.extension_number)) == ("zoo.Base", [100, 150])
    for answer, name in ((closed, "zoo.Closed"), (well_known, "google.protobuf.Timestamp")):
        found = answer.all_extension_numbers_response
        assert (found.base_type_name, list(found.extension_number)) == (name, [])
    assert "'zoo.Nothing'" in missing(nothing)


# The conversation


class Database:
    """What a pool may get its files from when somebody asks for them, here without one that is imported."""

    def __init__(self) -> None:
        self._broken = FileDescriptorProto(name="broken.proto", package="broken", dependency=["absent.proto"])
        field = self._broken.message_type.add(name="Broken").field.add(name="absent", number=1, type_name=".absent.M")
        field.label, field.type = field.LABEL_OPTIONAL, field.TYPE_MESSAGE

    def FindFileByName(self, name: str) -> FileDescriptorProto:  # noqa: N802  as protobuf calls it
        if name == "broken.proto":
            return self._broken
        raise KeyError(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptorProto:  # noqa: N802  as above
        if symbol == "broken.Broken":
            return self._broken
        raise KeyError(symbol)


def test_files_whose_imports_are_missing(apps: Apps) -> None:
    """They cannot be told, and the questions behind the one for them are answered all the same."""
    pool: Any = descriptor_pool.DescriptorPool(Database())
    answers = apps.ask(
        apps.reflection(pool=pool),
        {"file_by_filename": "broken.proto"},
        {"file_containing_symbol": "broken.Broken"},
        {"file_containing_extension": {"containing_type": "broken.Broken", "extension_number": 1}},
        {"all_extension_numbers_of_type": "broken.Broken"},
        {"file_containing_symbol": V1.service.name},
    )
    assert all(map(missing, answers[:-1]))
    assert names(answers[-1]) == ["grpc/reflection/v1/reflection.proto"]


@pytest.mark.parametrize("version", VERSIONS, ids=["v1", "v1alpha"])
def test_answers_say_what_they_answer(apps: Apps, app: Any, version: Any) -> None:
    questions: list[dict[str, Any]] = [
        {"host": "zoo.example", "list_services": ""},
        {"host": "zoo.example", "file_by_filename": "nothing"},
        {"host": "zoo.example"},
    ]
    answers = apps.ask(app, *questions, version=version)
    for question, answer in zip(questions, answers, strict=True):
        assert answer.valid_host == "zoo.example"
        assert answer.original_request == version.service.methods[0].input(**question)
    assert answers[-1].error_response.error_code == INVALID_ARGUMENT


def test_no_questions(apps: Apps, app: Any) -> None:
    assert apps.ask(app) == []


def test_json(apps: Apps, app: Any) -> None:
    answer = apps.call(app, V1.service.methods[0].path, frame(b'{"listServices":"*"}'), STREAM_JSON)
    assert b'{"service":[{"name":"grpc.health.v1.Health"},' in frames(answer.body)[0][1]


LIST_SERVICES: bytes = frame(V1.service.methods[0].input(list_services="*").SerializeToString())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_asgi_app_answers_before_the_next_question(size: int) -> None:
    """A tool asks, reads, and asks again in the same stream."""
    left: list[int] = []

    async def on_send(event: Event) -> None:
        if event.get("body") and event["more_body"]:
            left.append(connection.left)

    questions = [part(piece, True) for piece in pieces(LIST_SERVICES, size)]
    connection = Connection([*questions, *questions, part()], on_send)
    made = scope(V1.service.methods[0].path, STREAM_PROTO)
    asyncio.run(serve(with_reflection(asgi_health(Health())), made, connection))
    assert left == [len(questions) + 1, 1]


def test_a_wsgi_app_answers_before_the_next_question() -> None:
    body = io.BytesIO(LIST_SERVICES * 2)
    made = environ(
        V1.service.methods[0].path,
        content_type=STREAM_PROTO,
        CONTENT_LENGTH=None,
        wsgi_input=body,
        wsgi_input_terminated=True,
    )
    taken = [body.tell() for piece in with_reflection(wsgi_health(Health()))(made, Starter()) if piece]
    assert taken == [len(LIST_SERVICES), 2 * len(LIST_SERVICES), 2 * len(LIST_SERVICES)]


# Descriptors


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_the_proto_is_that_of_grpcio(version: str) -> None:
    """It has the older version only, from which the newer one differs in its name."""
    reflection_pb2: Any = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2", reason=ABSENT)
    theirs, ours = FileDescriptorProto(), FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(theirs)
    theirs.ClearField("options")  # what other languages' code generators want to know
    name = f"grpc/reflection/{version}/reflection.proto"
    POOL.FindFileByName(name).CopyToProto(ours)
    assert str(ours) == str(theirs).replace(theirs.name, name).replace("reflection.v1alpha", f"reflection.{version}")


def test_the_paths_are_those_of_the_protocol() -> None:
    assert REFLECTION_SERVICE_PATH_PREFIX == "/grpc.reflection.v1.ServerReflection"
    assert REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX == "/grpc.reflection.v1alpha.ServerReflection"


def run(script: str) -> str:
    """What a fresh interpreter prints."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


OURS = """
from connectrpc.health import Health, asgi_health, wsgi_health
from connectrpc.reflection import with_reflection
from connectrpc.health._messages import HealthCheckRequest
with_reflection(wsgi_health(Health()))
with_reflection(asgi_health(Health()))
"""
THEIRS = ["import grpc_health.v1.health_pb2_grpc", "import grpc_reflection.v1alpha.reflection_pb2_grpc"]


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_it_needs_no_grpcio_and_leaves_the_default_pool_alone(implementation: str) -> None:
    script = f"""
import os, sys
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = {implementation!r}
{OURS}
from google.protobuf import descriptor_pool
assert not [name for name in sys.modules if name.split(".")[0] in ("grpc", "grpc_health", "grpc_reflection")]
for package in ("health.v1.Health", "reflection.v1.ServerReflection", "reflection.v1alpha.ServerReflection"):
    try:
        print(descriptor_pool.Default().FindFileContainingSymbol("grpc." + package).name)
    except KeyError:
        print("nothing")
"""
    assert run(script).split() == ["nothing"] * 3


@pytest.mark.parametrize("order", list(itertools.permutations([OURS, *THEIRS])), ids=itertools.count())
def test_grpcios_packages_in_the_same_process(order: tuple[str, ...]) -> None:
    pytest.importorskip("grpc_health", reason=ABSENT)
    pytest.importorskip("grpc_reflection", reason=ABSENT)
    statements = "\n".join(order)
    script = f"""
{statements}
from grpc_health.v1 import health_pb2
from google.protobuf import descriptor_pool
body = HealthCheckRequest(service="a").SerializeToString()
print(health_pb2.HealthCheckRequest.FromString(body).service)
print(descriptor_pool.Default().FindFileContainingSymbol("grpc.health.v1.Health").name)
print(HealthCheckRequest.DESCRIPTOR.file.name)
from connectrpc.reflection.catalogue import Catalogue
print(Catalogue([wsgi_health(Health())], None).file_of_symbol("grpc.health.v1.HealthCheckResponse").name)
print(Catalogue([], None).file_of_symbol("grpc.health.v1.HealthCheckResponse").name)
"""
    theirs, ours = "grpc_health/v1/health.proto", "grpc/health/v1/health.proto"
    assert run(script).split() == ["a", theirs, ours, ours, theirs]
