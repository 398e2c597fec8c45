"""How a message becomes bytes and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

    MessageT = TypeVar("MessageT", bound="Message")

__all__ = ["Codec", "JsonCodec", "ProtoCodec"]


class Codec(Protocol):
    """An encoding of messages. Used by many threads at once, so it keeps no state of a call.

    Methods may raise anything: it becomes a coded error of the call, and never reaches the other side as text.

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
    """Protobuf's binary encoding.

    Args:
        deterministic: equal messages become equal bytes (map entries are sorted), within one version of Protobuf.
    """

    name = "proto"

    def __init__(self, *, deterministic: bool = False) -> None:
        self._deterministic = deterministic

    def encode(self, message: Message) -> bytes:
        if self._deterministic:
            return message.SerializeToString(deterministic=True)
        return message.SerializeToString()

    def decode(self, data: bytes, message_type: type[MessageT]) -> MessageT:
        return message_type.FromString(data)


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
        self._parse = json_format.Parse
        self._to_dict = json_format.MessageToDict
        self._dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode

    def encode(self, message: Message) -> bytes:
        value = self._to_dict(
            message,
            preserving_proto_field_name=self._preserving_proto_field_name,
            always_print_fields_with_no_presence=self._emit_default_values,
            descriptor_pool=self._descriptor_pool,
        )
        return self._dumps(value).encode()

    def decode(self, data: bytes, message_type: type[MessageT]) -> MessageT:
        # Strict UTF-8: json.loads on bytes would guess among the encodings, which no peer means.
        return self._parse(
            data.decode("utf-8"),
            message_type(),
            ignore_unknown_fields=self._ignore_unknown_fields,
            descriptor_pool=self._descriptor_pool,
        )
