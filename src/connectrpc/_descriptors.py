"""Services of our own that no generated code describes.

Generated code would put its descriptors into protobuf's default pool, where those of other packages for the same
protos, such as grpcio's, may be already: that is a crash on import. So their files are made here, and each goes into a
pool of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MessageOptions,
    MethodDescriptorProto,
    OneofDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.message_factory import GetMessageClass

from connectrpc.method import Method, MethodKind, Service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["add_file", "enum", "field", "map_field", "message", "message_class", "method", "service_of"]

_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "message": FieldDescriptorProto.TYPE_MESSAGE,
    "enum": FieldDescriptorProto.TYPE_ENUM,
}

_KINDS = {(kind.client_streams, kind.server_streams): kind for kind in MethodKind}


def field(number: int, name: str, type: str, *, repeated: bool = False, oneof: bool = False) -> FieldDescriptorProto:
    """A field.

    Args:
        number: its number.
        name: its name.
        type: a scalar type, or ``"message .package.Name"``, or ``"enum .package.Name"``.
        repeated: whether it is repeated.
        oneof: whether it belongs to the one oneof of its message.
    """
    kind, _, type_name = type.partition(" ")
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    made = FieldDescriptorProto(name=name, number=number, label=label, type=_TYPES[kind])
    if type_name:
        made.type_name = type_name
    if oneof:
        made.oneof_index = 0
    return made


def map_field(number: int, name: str, value: str, *, within: str) -> tuple[FieldDescriptorProto, DescriptorProto]:
    """A map from strings, and the message of its entries, which its message has to hold.

    Args:
        number: its number.
        name: its name.
        value: the type of its values, as for ``field``.
        within: the full name of its message, with a dot in front.
    """
    entry = message(f"{name.title()}Entry", field(1, "key", "string"), field(2, "value", value))
    entry.options.CopyFrom(MessageOptions(map_entry=True))
    return field(number, name, f"message {within}.{entry.name}", repeated=True), entry


def enum(name: str, *values: str) -> EnumDescriptorProto:
    """An enum whose values count up from zero."""
    numbered = [EnumValueDescriptorProto(name=value, number=number) for number, value in enumerate(values)]
    return EnumDescriptorProto(name=name, value=numbered)


def message(
    name: str,
    *fields: FieldDescriptorProto,
    oneof: str | None = None,
    messages: Iterable[DescriptorProto] = (),
    enums: Iterable[EnumDescriptorProto] = (),
) -> DescriptorProto:
    """A message with its fields, the name of its oneof, and what is declared in it."""
    oneofs = [] if oneof is None else [OneofDescriptorProto(name=oneof)]
    return DescriptorProto(name=name, field=fields, oneof_decl=oneofs, nested_type=messages, enum_type=enums)


def method(name: str, input: str, output: str, kind: MethodKind) -> MethodDescriptorProto:
    """An RPC; its types are full names with a dot in front."""
    made = MethodDescriptorProto(name=name, input_type=input, output_type=output)
    if kind.client_streams:
        made.client_streaming = True
    if kind.server_streams:
        made.server_streaming = True
    return made


def add_file(
    pool: DescriptorPool,
    name: str,
    package: str,
    service: str,
    methods: Iterable[MethodDescriptorProto],
    messages: Iterable[DescriptorProto],
) -> None:
    """Put a proto3 file with one service into ``pool``."""
    file = FileDescriptorProto(
        name=name,
        package=package,
        syntax="proto3",
        message_type=messages,
        service=[ServiceDescriptorProto(name=service, method=methods)],
    )
    pool.AddSerializedFile(file.SerializeToString())


def message_class(pool: DescriptorPool, name: str) -> Any:
    """The class of the message with this full name. Of no type: type checkers know generated code only."""
    return GetMessageClass(pool.FindMessageTypeByName(name))


def service_of(pool: DescriptorPool, name: str) -> Service:
    """The service with this full name, as generated code would describe it to the runtime."""
    methods = [
        Method(
            name,
            found.name,
            _KINDS[found.client_streaming, found.server_streaming],
            GetMessageClass(found.input_type),
            GetMessageClass(found.output_type),
            python_name=re.sub(r"(?<!^)(?=[A-Z])", "_", found.name).lower(),
        )
        for found in pool.FindServiceByName(name).methods
    ]
    return Service(name, methods)
