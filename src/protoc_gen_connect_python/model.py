"""A plain description of what to generate, read from protoc's request.

protogen resolves the request: it links services, methods and messages. What it cannot do correctly is done here, with
the reason beside it; ``_essentials`` holds most of that. Everything after this module sees the description alone, which
knows no descriptor and can be built by hand.
"""

from __future__ import annotations

import inspect
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import protogen
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, MethodOptions

from protoc_gen_connect_python import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["File", "MessageType", "Method", "RequestError", "Service", "read", "text"]


class RequestError(Exception):
    """A request that does not describe legal ``.proto`` files; the message is one line, for people."""


@dataclass(frozen=True)
class MessageType:
    """Where the class of a message is.

    Attributes:
        module: the dotted name of the module that protoc generates for the message's file.
        path: the message's name, after the names of the messages that it is nested in, as the ``.proto`` spells them.
    """

    module: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """An RPC.

    Attributes:
        name: the name in the ``.proto``.
        python_name: the name of the method in Python.
        constant: the private constant that describes the RPC.
        client_streams: whether the request is a stream.
        server_streams: whether the response is a stream.
        idempotency_level: a name of ``google.protobuf.MethodOptions.IdempotencyLevel``.
        input: the request's message.
        output: the response's message.
        comment: the comment in the ``.proto``, without its markers; empty when there is none.
        deprecated: whether the RPC's own options say so.
    """

    name: str
    python_name: str
    constant: str
    client_streams: bool
    server_streams: bool
    idempotency_level: str
    input: MessageType
    output: MessageType
    comment: str
    deprecated: bool


@dataclass(frozen=True)
class Service:
    """A service.

    Attributes:
        full_name: the package and the name, as on the wire.
        names: the names in Python.
        methods: the RPCs, in file order.
        comment: the comment in the ``.proto``, without its markers; empty when there is none.
        deprecated: whether the service's own options, or those of its file, say so.
    """

    full_name: str
    names: names.ServiceNames
    methods: tuple[Method, ...]
    comment: str
    deprecated: bool


@dataclass(frozen=True)
class File:
    """A ``.proto`` file with services.

    Attributes:
        source: its path, as protoc knows it.
        module: the dotted name of the module that protoc generates for it.
        services: the services, in file order.
    """

    source: str
    module: str
    services: tuple[Service, ...]


def read(request: CodeGeneratorRequest) -> list[File]:
    """Describe the files that ``request`` asks for. Those without services are left out.

    Raises:
        RequestError: the request contradicts itself or the grammar of ``.proto`` files.
    """
    sources = {text(file.name): file for file in request.proto_file}
    for name in map(text, request.file_to_generate):
        if name not in sources:
            raise RequestError(f"{name}: the request asks for this file and does not describe it")
    files: list[File] = []

    def collect(plugin: protogen.Plugin) -> None:
        files.extend(
            _file(file, _comments(sources[file.proto.name])) for file in plugin.files_to_generate if file.services
        )

    # protogen's own response goes nowhere: it has no way to announce editions, and there is nothing else in it.
    resolver = protogen.Options(
        py_import_func=_import_path,
        input=io.BytesIO(_essentials(request).SerializeToString()),
        output=io.BytesIO(),
    )
    try:
        resolver.run(collect)
    except protogen.ResolutionError as error:
        raise RequestError(
            f"{error.file}: {error.desc.lstrip('.')} refers to {error.ref.lstrip('.')}, "
            "which the request does not describe"
        ) from error
    return files


def text(value: str | bytes) -> str:
    """A string of a descriptor. Where it is not UTF-8, protobuf gives bytes: protoc does not look into comments."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


# --- before protogen


def _essentials(request: CodeGeneratorRequest) -> CodeGeneratorRequest:
    """The part of ``request`` that generated code depends on, in a form that protogen resolves correctly.

    Fields, enums, extensions, imports and source locations are left out. protogen would link them all, one by one
    (for each declaration it scans every location of the file, which takes minutes for large APIs), and refuses a
    descriptor with a kind of field that it does not know yet, while a service needs nothing but the names of messages.
    """
    essentials = CodeGeneratorRequest(file_to_generate=map(text, request.file_to_generate))
    without_package: set[str] = set()
    for file in request.proto_file:
        name = text(file.name)
        if file.package:
            _check_dotted(name, file.package)
        for service in file.service:
            _check(name, service.name)
            for method in service.method:
                _check(name, method.name)
                _check_dotted(name, method.input_type)
                _check_dotted(name, method.output_type)
        essentials.proto_file.append(
            FileDescriptorProto(
                name=name,
                package=file.package,
                message_type=_message_names(name, file.message_type),
                service=file.service,
                options=file.options,
            )
        )
        if not file.package:
            without_package.update(message.name for message in file.message_type)

    # protogen joins an empty package and a name with a dot, and then looks for the name without it: a message without
    # a package is never found. A second leading dot, of which protogen takes one off, leads to where it is.
    for file in essentials.proto_file:
        for service in file.service:
            for method in service.method:
                if _outermost(method.input_type) in without_package:
                    method.input_type = f".{method.input_type}"
                if _outermost(method.output_type) in without_package:
                    method.output_type = f".{method.output_type}"
    return essentials


def _message_names(source: str, messages: Iterable[DescriptorProto]) -> list[DescriptorProto]:
    names_only: list[DescriptorProto] = []
    for message in messages:
        _check(source, message.name)
        names_only.append(DescriptorProto(name=message.name, nested_type=_message_names(source, message.nested_type)))
    return names_only


def _outermost(type_name: str) -> str:
    return type_name.lstrip(".").partition(".")[0]


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check_dotted(source: str, name: str) -> None:
    for part in text(name).removeprefix(".").split("."):
        _check(source, part)


def _check(source: str, name: str) -> None:
    # protoc and buf have seen to it. But names go into generated code as they are: none is taken on trust.
    if not _IDENTIFIER.fullmatch(text(name)):
        raise RequestError(f"{source}: {text(name)!r} is not an identifier")


def _import_path(proto_path: str, package: str) -> protogen.PyImportPath:  # noqa: ARG001 - protogen's signature
    # protogen's default keeps dashes, and replaces every ".proto" in the path, not just the last.
    return protogen.PyImportPath(names.module_name(proto_path))


# --- after protogen


def _file(file: protogen.File, comments: Mapping[Sequence[int], str]) -> File:
    named = names.service_names(
        (service.proto.name, [method.proto.name for method in service.methods]) for service in file.services
    )
    return File(
        source=file.proto.name,
        module=names.module_name(file.proto.name),
        services=tuple(
            Service(
                full_name=_full_name(file, service.proto.name),
                names=named[i],
                methods=tuple(
                    _method(method, named[i].methods[j], named[i].method_constants[j], comments.get((6, i, 2, j), ""))
                    for j, method in enumerate(service.methods)
                ),
                comment=comments.get((6, i), ""),
                deprecated=service.proto.options.deprecated or file.proto.options.deprecated,
            )
            for i, service in enumerate(file.services)
        ),
    )


def _full_name(file: protogen.File, name: str) -> str:
    # Not protogen's, which has a leading dot in a file without a package.
    return f"{file.proto.package}.{name}" if file.proto.package else name


def _method(method: protogen.Method, python_name: str, constant: str, comment: str) -> Method:
    assert method.input is not None
    assert method.output is not None
    proto = method.proto
    return Method(
        name=proto.name,
        python_name=python_name,
        constant=constant,
        client_streams=proto.client_streaming,
        server_streams=proto.server_streaming,
        idempotency_level=MethodOptions.IdempotencyLevel.Name(proto.options.idempotency_level),
        input=_message_type(method.input),
        output=_message_type(method.output),
        comment=comment,
        deprecated=proto.options.deprecated,
    )


def _message_type(message: protogen.Message) -> MessageType:
    # Not from `py_ident`: protogen writes `str_` where protoc's Python has a message called `str`.
    path: list[str] = []
    scope: protogen.Message | None = message
    while scope is not None:
        path.insert(0, scope.proto.name)
        scope = scope.parent
    return MessageType(names.module_name(message.parent_file.proto.name), tuple(path))


# --- comments


def _comments(file: FileDescriptorProto) -> dict[Sequence[int], str]:
    """The comments of a file's services and RPCs, by their paths in the descriptor.

    A path is ``(6, service)`` or ``(6, service, 2, method)``: fields of ``FileDescriptorProto`` and
    ``ServiceDescriptorProto`` with the indexes in them. The comment above a declaration goes before the one behind it.
    """
    comments: dict[Sequence[int], str] = {}
    for location in file.source_code_info.location:
        path = tuple(location.path)
        if path[:1] == (6,) and (len(path) == 2 or (len(path) == 4 and path[2] == 2)):
            comments[path] = _clean(location.leading_comments) or _clean(location.trailing_comments)
    return comments


def _clean(comment: str | bytes) -> str:
    """A comment, from which protoc has removed the ``//`` or ``/* */``, as the text of a docstring."""
    lines = text(comment).removeprefix("*").split("\n")  # the asterisk is what "/**" leaves
    return inspect.cleandoc("\n".join(line.rstrip() for line in lines).strip())
