"""How a gRPC call ended, in trailers: ``grpc-status``, ``grpc-message`` and ``grpc-status-details-bin``.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md "Responses". ``google.rpc.Status`` is encoded by hand, so
that no descriptor of ours enters Protobuf's default pool, where a user's own copy would clash with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from google.protobuf.any_pb2 import Any

from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from connectrpc.headers import decode_binary, encode_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from connectrpc._core.http import HeaderList

__all__ = ["DETAILS", "MESSAGE", "STATUS", "error_from_status", "status_of"]

STATUS, MESSAGE, DETAILS = "grpc-status", "grpc-message", "grpc-status-details-bin"

# "Percent-Encoded": printable ASCII but for the percent sign stands for itself.
_UNRESERVED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

_STATUS_MAX_DIGITS = 10

# Many clients take no more than 8 KiB of trailers, and drop the call, or the connection, with what is in them. And some
# servers take seconds to compress very long ones.
_MESSAGE_MAX_BYTES = 6 * 1024

_TYPE_URL_PREFIX = "type.googleapis.com/"


def status_of(error: ConnectError | None) -> HeaderList:
    """The trailers that say how a call ended."""
    if error is None:
        return [(STATUS, "0")]
    # A handler's message may hold lone surrogates, for which UTF-8 has no bytes.
    message, quoted = _shorten(error.message.encode("utf-8", "replace"))
    pairs = [(STATUS, str(error.code.grpc_number)), (MESSAGE, quoted)]
    if error.details:
        pairs.append((DETAILS, encode_binary(_encode_status(error.code.grpc_number, message, error.details))))
    return pairs


def _shorten(message: bytes) -> tuple[bytes, str]:
    """A message, and how it is sent, which may not be too long."""
    quoted = _quote(message[: _MESSAGE_MAX_BYTES + 1])
    if len(quoted) <= _MESSAGE_MAX_BYTES:
        return message, quoted
    # Quoting makes three bytes of one at the most.
    for size in _MESSAGE_MAX_BYTES * 2 // 3, _MESSAGE_MAX_BYTES // 3:
        shortened = message[: size - 3].decode("utf-8", "ignore").encode() + b"..."
        quoted = _quote(shortened)
        if len(quoted) <= _MESSAGE_MAX_BYTES:
            break
    return shortened, quoted


def _quote(message: bytes) -> str:
    text = quote_from_bytes(message, _UNRESERVED)
    inner = text.strip(" ")  # RFC 9110 section 5.5: white space around it is no part of a value
    if len(inner) == len(text):
        return text
    start = len(text) - len(text.lstrip(" "))
    return "%20" * start + inner + "%20" * (len(text) - start - len(inner))


def error_from_status(status: str, message: str, details: str) -> ConnectError | None:
    """The error that trailers describe; None when the call went well.

    Raises:
        ConnectError: ``internal``: they are not what ends a call.
    """
    if not (status.isascii() and status.isdigit()):
        raise ConnectError(ConnectErrorCode.INTERNAL, f"the status {status[:20]!r} that ends the answer is no number")
    number = int(status) if len(status) <= _STATUS_MAX_DIGITS else -1
    if number == 0:
        return None
    code = ConnectErrorCode.from_grpc_number(number) or ConnectErrorCode.UNKNOWN
    error = ConnectError(code, unquote_to_bytes(message.encode("utf-8", "replace")).decode("utf-8", "replace"))
    if details:
        try:
            first = details.partition(",")[0].strip()  # several values are as good
            for detail in _decode_details(decode_binary(first)):
                error.add_detail(detail)
        except ValueError:
            pass  # malformed: the error that they would have adorned is worth more than the complaint
    return error


# google.rpc.Status: int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3.


_DETAILS_TAG = 3 << 3 | 2
_FIXED = {1: 8, 5: 4}
"""How many bytes a field has, by its wire type."""


def _encode_status(number: int, message: bytes, details: Iterable[ConnectErrorDetail]) -> bytes:
    parts = [b"\x08", _varint(number), b"\x12", _varint(len(message)), message]
    for detail in details:
        name = detail.type.encode("utf-8", "replace").decode()
        packed = Any(type_url=_TYPE_URL_PREFIX + name, value=detail.value).SerializeToString()
        parts += (b"\x1a", _varint(len(packed)), packed)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _decode_details(data: bytes) -> Iterator[ConnectErrorDetail]:
    """The details in an encoded ``google.rpc.Status``.

    Raises:
        ValueError: it is none.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            _, position = _read_varint(data, position)
            continue
        if kind in _FIXED:  # nothing of a google.rpc.Status that we know of
            size = _FIXED[kind]
        elif kind == 2:
            size, position = _read_varint(data, position)
        else:
            raise ValueError("a google.rpc.Status has no groups")
        if position + size > len(data):
            raise ValueError("the message is cut off")
        if tag == _DETAILS_TAG:
            try:
                packed = Any.FromString(data[position : position + size])
            except Exception as error:  # Protobuf's own
                raise ValueError("a detail is malformed") from error
            yield ConnectErrorDetail(packed.type_url.rpartition("/")[2], packed.value)
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number is cut off")
