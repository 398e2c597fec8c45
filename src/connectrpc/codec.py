"""How a message becomes bytes and back."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

    MessageT = TypeVar("MessageT", bound="Message")

__all__ = ["Codec", "FieldError", "JsonCodec", "ProtoCodec"]


class FieldError(ValueError):
    """A field of a message does not hold what it should.

    Attributes:
        field: its name, with those of the messages around it before it. It is told to whoever sent the message.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class Codec(Protocol):
    """An encoding of messages. Used by many threads at once, so it keeps no state of a call.

    Methods may raise anything: it becomes a coded error of the call, and never reaches the other side as text, but for
    the field of a ``FieldError``.

    A codec may also have ``encode_deterministic(message)``, which makes equal bytes of equal messages. Only such codecs
    are used for GET requests, whose URLs are what caches know them by.

    Attributes:
        name: the last part of the media type: ``"proto"`` is ``application/proto`` and ``application/connect+proto``.
    """

    @property
    def name(self) -> str: ...

    def encode(self, message: Message) -> bytes:
        """The message as bytes."""
        ...

    def decode(self, data: bytes, message_type: type[MessageT]) -> MessageT:
        """The message of type ``message_type`` that ``data`` holds."""
        ...


class ProtoCodec:
    """Protobuf's binary encoding."""

    name = "proto"

    def encode(self, message: Message) -> bytes:
        return message.SerializeToString()

    def encode_deterministic(self, message: Message) -> bytes:
        """The message as bytes, with the entries of maps in order. Another version of Protobuf may have another."""
        return message.SerializeToString(deterministic=True)

    def decode(self, data: bytes, message_type: type[MessageT]) -> MessageT:
        return message_type.FromString(data)


_NOT_OBJECTS = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("BoolValue", "BytesValue", "DoubleValue", "FloatValue", "Int32Value", "Int64Value", "StringValue"),
        *("UInt32Value", "UInt64Value", "Duration", "FieldMask", "ListValue", "Timestamp", "Value"),
    )
)
"""The messages that Protobuf's JSON mapping writes as something else than an object."""


# How json_format says where it was. The rest of its texts may repeat what was sent.
_FIELD = re.compile(r"Failed to parse (\w+) field: ")
_FIELDS = re.compile(rf"(?:{_FIELD.pattern})+")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name may stand twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


class JsonCodec:
    """Protobuf's JSON mapping.

    Args:
        ignore_unknown_fields: pass over fields that the message does not have, as ``proto`` does (the default), or
            refuse them.
        emit_default_values: also write fields that hold their default value.
        preserving_proto_field_name: write ``field_name`` as the ``.proto`` does instead of ``fieldName``. Both are
            always understood.
        descriptor_pool: where the messages inside ``google.protobuf.Any`` are looked up; by default among the
            generated code that the process imported.
    """

    name = "json"

    def __init__(
        self,
        *,
        ignore_unknown_fields: bool = True,
        emit_default_values: bool = False,
        preserving_proto_field_name: bool = False,
        descriptor_pool: DescriptorPool | None = None,
    ) -> None:
        # Loaded here because most processes speak proto alone and json_format is slow to import.
        import json

        from google.protobuf import json_format

        self._ignore_unknown_fields = ignore_unknown_fields
        self._emit_default_values = emit_default_values
        self._preserving_proto_field_name = preserving_proto_field_name
        self._descriptor_pool: Any = descriptor_pool
        # Not json_format.Parse: it takes Python's NaN and Infinity, and numbers too large for any float, as values of a
        # google.protobuf.Struct, which nobody can write again. JSON has none of these; Protobuf's floats have strings.
        self._loads = json.JSONDecoder(
            object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        ).decode
        self._parse = json_format.ParseDict
        self._parse_error = json_format.ParseError
        self._to_dict = json_format.MessageToDict
        self._dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
        self._dumps_sorted = json.JSONEncoder(
            separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True
        ).encode

    def encode(self, message: Message) -> bytes:
        return self._dumps(self._to_value(message)).encode()

    def encode_deterministic(self, message: Message) -> bytes:
        """The message as bytes, with all names and keys in order."""
        return self._dumps_sorted(self._to_value(message)).encode()

    def _to_value(self, message: Message) -> dict[str, Any]:
        return self._to_dict(
            message,
            preserving_proto_field_name=self._preserving_proto_field_name,
            always_print_fields_with_no_presence=self._emit_default_values,
            descriptor_pool=self._descriptor_pool,
        )

    def decode(self, data: bytes, message_type: type[MessageT]) -> MessageT:
        # Strict UTF-8: json.loads on bytes would guess among the encodings, which no peer means.
        text = data.decode("utf-8")
        if not text.lstrip(" \t\r\n").startswith("{") and message_type.DESCRIPTOR.full_name not in _NOT_OBJECTS:
            raise ValueError("a message is a JSON object")  # json_format takes lists and strings for empty ones
        try:
            return self._parse(
                self._loads(text),
                message_type(),
                ignore_unknown_fields=self._ignore_unknown_fields,
                descriptor_pool=self._descriptor_pool,
            )
        except self._parse_error as error:
            path = _FIELDS.match(str(error))
            if path is None:
                raise
            raise FieldError(".".join(_FIELD.findall(path[0])), str(error)) from error
