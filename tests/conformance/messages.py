"""The runner's messages: how they travel, and what is in them in connect-python's own terms."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from multidict import CIMultiDict

from connectrpc.conformance.v1.config_pb2 import Code
from connectrpc.conformance.v1.service_pb2 import Error, Header
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

__all__ = ["error_from_proto", "error_to_proto", "headers_from_proto", "headers_to_proto", "read", "write"]

MessageT = TypeVar("MessageT", bound=Message)

# Every message is preceded by its size.
_SIZE = struct.Struct(">I")


def read(stream: IO[bytes], message_type: type[MessageT]) -> MessageT | None:
    """The next message, or None at the end of the stream."""
    prefix = stream.read(_SIZE.size)
    if not prefix:
        return None
    (size,) = _SIZE.unpack(prefix)
    return message_type.FromString(stream.read(size))


def write(stream: IO[bytes], message: Message) -> None:
    """Send ``message`` at once."""
    payload = message.SerializeToString()
    stream.write(_SIZE.pack(len(payload)) + payload)
    stream.flush()


def headers_from_proto(headers: Iterable[Header]) -> CIMultiDict[str]:
    return CIMultiDict((header.name, value) for header in headers for value in header.value)


def headers_to_proto(headers: CIMultiDict[str]) -> list[Header]:
    values: dict[str, list[str]] = {}
    for name, value in headers.items():
        values.setdefault(name.lower(), []).append(value)
    return [Header(name=name, value=value) for name, value in values.items()]


def error_from_proto(error: Error, *more_details: Message) -> ConnectError:
    # The runner numbers its codes as gRPC does.
    code = ConnectErrorCode.from_grpc_number(error.code) or ConnectErrorCode.UNKNOWN
    return ConnectError(code, error.message, [*error.details, *more_details])


def error_to_proto(error: ConnectError) -> Error:
    return Error(
        code=Code.Name(error.code.grpc_number),
        message=error.message,
        details=[Any(type_url=f"type.googleapis.com/{detail.type}", value=detail.value) for detail in error.details],
    )
