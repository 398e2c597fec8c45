"""Messages to bytes and back."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.type_pb2 import EnumValue, Field, Option
from google.protobuf.wrappers_pb2 import BytesValue, DoubleValue, FloatValue, Int64Value

from connectrpc.codec import FieldError, JsonCodec, ProtoCodec
from harness import ask

MESSAGES = [
    EnumValue(),
    ask("n\u00e4me \u20ac \U0001f600", -5),
    EnumValue(name="x" * 5000, options=[Option(name="o", value=Any(type_url="a/b.C", value=b"\0\xff"))]),
]


@pytest.mark.parametrize("message", MESSAGES[:2])
@pytest.mark.parametrize("codec", [ProtoCodec(), JsonCodec()])
def test_there_and_back(codec: ProtoCodec | JsonCodec, message: EnumValue) -> None:
    assert codec.decode(codec.encode(message), EnumValue) == message


def test_proto_is_the_wire_format() -> None:
    assert ProtoCodec.name == "proto"
    assert ProtoCodec().encode(ask("a", 7)) == b"\x0a\x01a\x10\x07"
    assert ProtoCodec().decode(MESSAGES[2].SerializeToString(), EnumValue) == MESSAGES[2]


def test_proto_refuses_what_is_none() -> None:
    with pytest.raises(DecodeError):
        ProtoCodec().decode(b"\xff", EnumValue)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"name": 1}, "name"),
        ({"options": [{"name": 5}]}, "options.name"),
        ({"options": [{"value": {"@type": "Failed to parse secret field: x"}}]}, "options.value"),
    ],
)
def test_the_field_that_is_wrong_in_json(data: object, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        JsonCodec().decode(json.dumps(data).encode(), EnumValue)
    assert caught.value.field == field


@pytest.mark.parametrize("data", ["{", "[]", "1", '{"name":', '{"name":"a","name":"b"}'])
def test_what_is_wrong_with_json_itself_is_no_fields(data: str) -> None:
    with pytest.raises(Exception) as caught:
        JsonCodec().decode(data.encode(), EnumValue)
    assert not isinstance(caught.value, FieldError)


def test_proto_deterministic() -> None:
    one, other = Struct(), Struct()
    for name in "abcdefgh":
        one[name] = 1
    for name in "hgfedcba":
        other[name] = 1
    codec = ProtoCodec()
    assert codec.encode_deterministic(one) == codec.encode_deterministic(other)
    assert codec.decode(codec.encode_deterministic(one), Struct) == one


def test_json_deterministic() -> None:
    one, other = Struct(), Struct()
    for name in "abcdefgh":
        one[name] = 1
    for name in "hgfedcba":
        other[name] = 1
    codec = JsonCodec()
    assert codec.encode_deterministic(one) == codec.encode_deterministic(other)
    assert codec.decode(codec.encode_deterministic(one), Struct) == one


def test_json_form() -> None:
    assert JsonCodec.name == "json"
    encoded = JsonCodec().encode(Field(json_name="j\u00e4", type_url="t", number=3))
    assert encoded == '{"number":3,"typeUrl":"t","jsonName":"j\u00e4"}'.encode(), "compact, and UTF-8 as it is"


def test_json_default_values() -> None:
    assert JsonCodec().encode(ask()) == b"{}"
    assert json.loads(JsonCodec(emit_default_values=True).encode(ask())) == {"name": "", "number": 0, "options": []}


def test_json_field_names() -> None:
    message = Field(json_name="j")
    assert JsonCodec(preserving_proto_field_name=True).encode(message) == b'{"json_name":"j"}'
    for spelling in (b'{"json_name":"j"}', b'{"jsonName":"j"}'):
        assert JsonCodec().decode(spelling, Field) == message


def test_json_unknown_fields() -> None:
    data = b'{"name":"a","surprise":{"deep":[1]}}'
    assert JsonCodec().decode(data, EnumValue) == ask("a")
    with pytest.raises(json_format.ParseError):
        JsonCodec(ignore_unknown_fields=False).decode(data, EnumValue)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"{} x",
        b'{"name":5}',
        b'{"number":"x"}',
        b'{"number":1e99}',
        b'{"name":"\xff"}',
        '{"name":"a"}'.encode("utf-16"),
        '{"name":"a"}'.encode("utf-8-sig"),
        b'{"name":"a","name":"b"}',
        b'{"name":"\\ud800"}',
        b"[" * 100_000,
        b'{"options":' * 2_000,
    ],
)
def test_json_refuses(data: bytes) -> None:
    with pytest.raises((ValueError, json_format.ParseError, RecursionError)):
        JsonCodec().decode(data, EnumValue)


def test_json_numbers() -> None:
    codec = JsonCodec()
    assert codec.encode(Int64Value(value=2**53 + 1)) == b'"9007199254740993"'
    assert codec.decode(b"9007199254740993", Int64Value).value == 2**53 + 1
    assert codec.encode(BytesValue(value=b"\xfb\xff")) == b'"+/8="'
    assert codec.decode(b'"-_8"', BytesValue).value == b"\xfb\xff", "URL-safe base64 without padding is fine too"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_refuses_to_write_what_is_no_json(number: float) -> None:
    with pytest.raises((ValueError, json_format.Error)):
        JsonCodec().encode(Value(number_value=number))


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1.0E+999", "9" * 400 + ".0", "9" * 400]
)
@pytest.mark.parametrize(
    ("message_type", "text"),
    [
        (Struct, '{"a":%s}'),
        (Struct, '{"a":{"b":[1,%s]}}'),
        (Value, "%s"),
        (ListValue, "[%s]"),
        (DoubleValue, "%s"),
        (FloatValue, "%s"),
        (Int64Value, "%s"),
    ],
)
def test_json_has_no_such_numbers(message_type: type[Message], text: str, number: str) -> None:
    """What is read can be written again."""
    with pytest.raises((ValueError, OverflowError, json_format.ParseError)):
        JsonCodec().decode((text % number).encode(), message_type)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_json_has_no_such_numbers_in_fields_that_are_unknown(number: str) -> None:
    with pytest.raises(ValueError, match="is no JSON"):
        JsonCodec().decode(b'{"surprise":%s}' % number.encode(), EnumValue)


@pytest.mark.parametrize("message_type", [DoubleValue, FloatValue])
@pytest.mark.parametrize(("text", "number"), [("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf)])
def test_json_has_them_as_strings(message_type: type[DoubleValue | FloatValue], text: str, number: float) -> None:
    """Protobuf's mapping, for its own floats. Elsewhere they are strings like others."""
    found = JsonCodec().decode(b'"%s"' % text.encode(), message_type)
    assert repr(found.value) == repr(number)
    assert JsonCodec().encode(found) == b'"%s"' % text.encode()
    data = b'{"a":"%s"}' % text.encode()
    assert JsonCodec().decode(data, Struct)["a"] == text
    assert JsonCodec().encode(JsonCodec().decode(data, Struct)) == data


def test_json_floats() -> None:
    found = JsonCodec().decode(b"[0.1,-2.5e-3,1e308,1e-999,-0.0,12]", ListValue)
    assert list(found) == [0.1, -2.5e-3, 1e308, 0, 0, 12]


def test_json_any_needs_the_type() -> None:
    """A pool of one's own serves messages that the process has no generated code of."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(
        FileDescriptorProto(
            name="private.proto",
            package="private",
            message_type=[
                DescriptorProto(
                    name="Note",
                    field=[
                        FieldDescriptorProto(
                            name="text",
                            number=1,
                            label=FieldDescriptorProto.LABEL_OPTIONAL,
                            type=FieldDescriptorProto.TYPE_STRING,
                        )
                    ],
                )
            ],
        )
    )
    note_class = GetMessageClass(pool.FindMessageTypeByName("private.Note"))
    holder = Any(type_url="type.googleapis.com/private.Note", value=note_class(text="hi").SerializeToString())
    encoded = b'{"@type":"type.googleapis.com/private.Note","text":"hi"}'
    with pytest.raises(TypeError):
        JsonCodec().encode(holder)
    with pytest.raises((TypeError, json_format.ParseError)):
        JsonCodec().decode(encoded, Any)
    codec = JsonCodec(descriptor_pool=pool)
    assert codec.encode(holder) == encoded
    assert codec.decode(encoded, Any) == holder
