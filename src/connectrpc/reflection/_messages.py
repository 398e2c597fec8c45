"""``reflection.proto`` of ``grpc.reflection``, ``v1`` and ``v1alpha``, in an own pool. Only their packages differ."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.descriptor_pool import DescriptorPool

from connectrpc._descriptors import add_file, field, message, message_class, method, service_of
from connectrpc.method import MethodKind, Service

__all__ = [
    "POOL",
    "REFLECTION_SERVICE_PATH_PREFIX",
    "REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX",
    "VERSIONS",
    "Version",
]

POOL = DescriptorPool()
"""Where the messages and the services of both versions are described."""


class Version(NamedTuple):
    """One version of the protocol.

    Attributes:
        service: the service, as generated code would describe it.
        response: the class of its answers.
    """

    service: Service
    response: type


def _version(version: str) -> Version:
    package = f"grpc.reflection.{version}"

    def of(name: str) -> str:
        return f"message .{package}.{name}"

    add_file(
        POOL,
        f"grpc/reflection/{version}/reflection.proto",
        package,
        "ServerReflection",
        [
            method(
                "ServerReflectionInfo",
                f".{package}.ServerReflectionRequest",
                f".{package}.ServerReflectionResponse",
                MethodKind.BIDI_STREAM,
            )
        ],
        [
            message(
                "ServerReflectionRequest",
                field(1, "host", "string"),
                field(3, "file_by_filename", "string", oneof=True),
                field(4, "file_containing_symbol", "string", oneof=True),
                field(5, "file_containing_extension", of("ExtensionRequest"), oneof=True),
                field(6, "all_extension_numbers_of_type", "string", oneof=True),
                field(7, "list_services", "string", oneof=True),
                oneof="message_request",
            ),
            message(
                "ExtensionRequest",
                field(1, "containing_type", "string"),
                field(2, "extension_number", "int32"),
            ),
            message(
                "ServerReflectionResponse",
                field(1, "valid_host", "string"),
                field(2, "original_request", of("ServerReflectionRequest")),
                field(4, "file_descriptor_response", of("FileDescriptorResponse"), oneof=True),
                field(5, "all_extension_numbers_response", of("ExtensionNumberResponse"), oneof=True),
                field(6, "list_services_response", of("ListServiceResponse"), oneof=True),
                field(7, "error_response", of("ErrorResponse"), oneof=True),
                oneof="message_response",
            ),
            message("FileDescriptorResponse", field(1, "file_descriptor_proto", "bytes", repeated=True)),
            message(
                "ExtensionNumberResponse",
                field(1, "base_type_name", "string"),
                field(2, "extension_number", "int32", repeated=True),
            ),
            message("ListServiceResponse", field(1, "service", of("ServiceResponse"), repeated=True)),
            message("ServiceResponse", field(1, "name", "string")),
            message("ErrorResponse", field(1, "error_code", "int32"), field(2, "error_message", "string")),
        ],
    )
    return Version(
        service_of(POOL, f"{package}.ServerReflection"), message_class(POOL, f"{package}.ServerReflectionResponse")
    )


VERSIONS = (_version("v1"), _version("v1alpha"))
"""Both versions, the newer first."""

REFLECTION_SERVICE_PATH_PREFIX = f"/{VERSIONS[0].service.name}"
"""What the path of the method of ``v1`` begins with."""

REFLECTION_V1ALPHA_SERVICE_PATH_PREFIX = f"/{VERSIONS[1].service.name}"
"""What the path of the method of ``v1alpha`` begins with."""
