"""The description of a request, and where protogen alone would go wrong."""

from __future__ import annotations

import inspect
import random
import time
from typing import TYPE_CHECKING

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
    SourceCodeInfo,
)

from protoc_gen_connect_python import model
from protoc_gen_connect_python.model import MessageType

if TYPE_CHECKING:
    from tests.unit.plugin.conftest import Compile


def test_a_whole_file(compile_protos: Compile) -> None:
    source = """
        syntax = "proto3";
        package a.v1;
        // The service.
        service Greeter {
          // The method.
          rpc SayHello(stream Hello) returns (stream Hello.Inner) { option idempotency_level = IDEMPOTENT; }
          rpc Old(Hello) returns (Hello) { option deprecated = true; }
        }
        message Hello { message Inner {} }
        """
    (file,) = model.read(compile_protos({"a/v1/hello-world.proto": source}))
    assert (file.source, file.module) == ("a/v1/hello-world.proto", "a.v1.hello_world_pb2")
    (service,) = file.services
    assert (service.full_name, service.comment, service.deprecated) == ("a.v1.Greeter", "The service.", False)
    assert service.methods == (
        model.Method(
            name="SayHello",
            python_name="say_hello",
            constant="_GREETER_SAY_HELLO",
            client_streams=True,
            server_streams=True,
            idempotency_level="IDEMPOTENT",
            input=MessageType("a.v1.hello_world_pb2", ("Hello",)),
            output=MessageType("a.v1.hello_world_pb2", ("Hello", "Inner")),
            comment="The method.",
            deprecated=False,
        ),
        model.Method(
            name="Old",
            python_name="old",
            constant="_GREETER_OLD",
            client_streams=False,
            server_streams=False,
            idempotency_level="IDEMPOTENCY_UNKNOWN",
            input=MessageType("a.v1.hello_world_pb2", ("Hello",)),
            output=MessageType("a.v1.hello_world_pb2", ("Hello",)),
            comment="",
            deprecated=True,
        ),
    )


def test_only_files_that_were_asked_for_and_have_services(compile_protos: Compile) -> None:
    sources = {
        "with.proto": 'syntax = "proto3"; package a; message M {} service With { rpc R(M) returns (M); }',
        "without.proto": 'syntax = "proto3"; package b; message M {}',
        "other.proto": 'syntax = "proto3"; package c; message M {} service Other { rpc R(M) returns (M); }',
    }
    files = model.read(compile_protos(sources, only=["without.proto", "with.proto"]))
    assert [file.source for file in files] == ["with.proto"]


def test_messages_without_a_package(compile_protos: Compile) -> None:
    sources = {
        "none.proto": 'syntax = "proto3"; message M { message N {} } service S { rpc R(M) returns (M.N); }',
        "some.proto": 'syntax = "proto3"; package p; import "none.proto"; service S { rpc R(M.N) returns (M); }',
    }
    none, some = model.read(compile_protos(sources))
    assert [service.full_name for service in (*none.services, *some.services)] == ["S", "p.S"]
    outer, inner = MessageType("none_pb2", ("M",)), MessageType("none_pb2", ("M", "N"))
    for file, expected in (none, (outer, inner)), (some, (inner, outer)):
        (method,) = file.services[0].methods
        assert (method.input, method.output) == expected


def test_messages_have_their_own_names(compile_protos: Compile) -> None:
    source = """
        syntax = "proto3"; package a;
        message str { message class { message _Hidden {} } }
        service S { rpc R(str) returns (str.class._Hidden); }
        """
    (file,) = model.read(compile_protos({"a.proto": source}))
    (method,) = file.services[0].methods
    assert (method.input.path, method.output.path) == (("str",), ("str", "class", "_Hidden"))


def test_what_deprecates_a_service(compile_protos: Compile) -> None:
    source = 'syntax = "proto3"; package {0}; {1} message M {{}} service S {{ {2} rpc R(M) returns (M); }}'
    deprecated = "option deprecated = true;"
    sources = {
        "a.proto": source.format("a", "", ""),
        "b.proto": source.format("b", deprecated, ""),
        "c.proto": source.format("c", "", deprecated),
    }
    services = [file.services[0] for file in model.read(compile_protos(sources))]
    assert [service.deprecated for service in services] == [False, True, True]
    assert not any(method.deprecated for service in services for method in service.methods)


# --- comments


@pytest.mark.parametrize(
    ("before", "behind", "comment"),
    [
        ("// One line.", "", "One line."),
        ("//One line.  ", "", "One line."),
        ("// Two\n// lines.", "", "Two\nlines."),
        ("// A list:\n//   - one\n//     more", "", "A list:\n- one\n  more"),
        ("/* A block. */", "", "A block."),
        ("/** As in Java.\n * More.\n */", "", "As in Java.\nMore."),
        ("/**\n * As in Java.\n *\n * More.\n */", "", "As in Java.\n\nMore."),
        ("//\n//\n// Blank lines around.\n//", "", "Blank lines around."),
        ("//", "", ""),
        ("", "// Behind.", "Behind."),
        ("// Before.", "// Behind.", "Before."),
        ("// Detached.\n", "", ""),
        ("// Grüße \\ \"\"\" '''", "", "Grüße \\ \"\"\" '''"),
        ("// Separators \u2028 and \x0c are no line breaks.", "", "Separators \u2028 and \x0c are no line breaks."),
    ],
)
def test_comments(before: str, behind: str, comment: str, compile_protos: Compile) -> None:
    source = f"""syntax = "proto3";
message M {{}}

{before}
service S {{ {behind}

{before}
  rpc R(M) returns (M); {behind}

  rpc Other(M) returns (M);
}}
"""
    (file,) = model.read(compile_protos({"a.proto": source}))
    (service,) = file.services
    assert [service.comment, *(method.comment for method in service.methods)] == [comment, comment, ""]
    assert inspect.cleandoc(comment) == comment


def test_line_breaks_of_windows(compile_protos: Compile) -> None:
    source = 'syntax = "proto3";\r\nmessage M {}\r\n// Two\r\n// lines.\r\nservice S {}\r\n'
    (file,) = model.read(compile_protos({"a.proto": source}))
    assert file.services[0].comment == "Two\nlines."


def test_a_comment_in_latin_1(compile_protos: Compile) -> None:
    source = 'syntax = "proto3";\nmessage M {}\n// Grüße.\nservice S {}\n'.encode("latin-1")
    (file,) = model.read(compile_protos({"a.proto": source}))
    assert file.services[0].comment == r"Gr\xfc\xdfe."


# --- requests that no protoc sends


def small_request() -> CodeGeneratorRequest:
    method = MethodDescriptorProto(name="R", input_type=".a.M", output_type=".a.M")
    service = ServiceDescriptorProto(name="S", method=[method])
    file = FileDescriptorProto(name="a.proto", package="a", message_type=[DescriptorProto(name="M")], service=[service])
    return CodeGeneratorRequest(file_to_generate=["a.proto"], proto_file=[file])


def test_the_small_request_is_fine() -> None:
    assert len(model.read(small_request())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda request: request.file_to_generate.append("b.proto"),
            "b.proto: the request asks for this file and does not describe it",
        ),
        (
            lambda request: setattr(request.proto_file[0].service[0].method[0], "input_type", ".a.N"),
            "a.proto: a.S.R refers to a.N, which the request does not describe",
        ),
        (
            lambda request: request.proto_file[0].service[0].method[0].ClearField("output_type"),
            "a.proto: '' is not an identifier",
        ),
        (
            lambda request: setattr(request.proto_file[0].service[0], "name", "S:\n    pass"),
            r"a.proto: 'S:\n    pass' is not an identifier",
        ),
        (
            lambda request: setattr(request.proto_file[0].service[0].method[0], "name", ""),
            "a.proto: '' is not an identifier",
        ),
        (
            lambda request: setattr(request.proto_file[0].message_type[0], "name", "M.N"),
            "a.proto: 'M.N' is not an identifier",
        ),
        (
            lambda request: setattr(request.proto_file[0].service[0].method[0], "input_type", "M()"),
            "a.proto: 'M()' is not an identifier",
        ),
        (
            lambda request: setattr(request.proto_file[0], "package", "a..b"),
            "a.proto: '' is not an identifier",
        ),
    ],
)
def test_contradictions(change: object, message: str) -> None:
    request = small_request()
    assert callable(change)
    change(request)
    with pytest.raises(model.RequestError) as raised:
        model.read(request)
    assert str(raised.value) == message


def test_fields_and_other_declarations_do_not_matter() -> None:
    # A kind of field, or an import, that a later protoc may have and protogen does not know.
    request = small_request()
    file = request.proto_file[0]
    file.message_type[0].field.append(FieldDescriptorProto(name="f", type_name=".nowhere.N"))
    file.dependency.append("nowhere.proto")
    assert len(model.read(request)) == 1


def test_a_large_file_takes_no_time() -> None:
    # protogen alone compares every declaration with every location: some 10^8 comparisons here.
    request = small_request()
    file = request.proto_file[0]
    for i in range(3000):
        fields = [FieldDescriptorProto(name=f"f{j}", number=j + 1) for j in range(5)]
        file.message_type.append(DescriptorProto(name=f"M{i}", field=fields))
        locations = [SourceCodeInfo.Location(path=[4, i, 2, j], span=[i, 0, 1]) for j in range(5)]
        file.source_code_info.location.extend(locations)
    start = time.process_time()
    assert len(model.read(request)) == 1
    assert time.process_time() - start < 5


def test_a_comment_where_no_service_is() -> None:
    request = small_request()
    choose = random.Random(6)
    for _ in range(50):
        path = choose.choices([0, 2, 6, 99], k=choose.randrange(6))
        location = SourceCodeInfo.Location(path=path, leading_comments=" lost ")
        request.proto_file[0].source_code_info.location.append(location)
    assert len(model.read(request)) == 1
