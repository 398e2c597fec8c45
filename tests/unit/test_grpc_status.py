"""How a gRPC call ended, in trailers, both ways, against Protobuf's own encoding of ``google.rpc.Status``."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration

from connectrpc._core.grpc_status import DETAILS, MESSAGE, STATUS, error_from_status, status_of
from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from harness import ask, code_of, reply


def _status_class() -> Any:
    """``google.rpc.Status``, in a pool of its own: in the default pool it may be somebody else's."""
    file = descriptor_pb2.FileDescriptorProto(
        name="google/rpc/status.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto"],
    )
    message = file.message_type.add(name="Status")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    message.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    message.field.add(
        name="details",
        number=3,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Any",
        label=field.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))


Status = _status_class()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def decoded(header: str) -> bytes:
    return base64.b64decode(header + "=" * (-len(header) % 4), validate=True)


def written(error: ConnectError | None) -> dict[str, str]:
    pairs = status_of(error)
    assert len(dict(pairs)) == len(pairs)
    assert all(value.isascii() and value.isprintable() for _, value in pairs), "it can be sent as a header"
    return dict(pairs)


def read(status: str, message: str = "", details: str = "") -> ConnectError:
    error = error_from_status(status, message, details)
    assert error is not None
    return error


# The status


def test_no_error() -> None:
    assert status_of(None) == [("grpc-status", "0")]
    assert error_from_status("0", "", "") is None
    assert error_from_status("0", "ignored", "ignored") is None, "a call that went well has no message"
    assert error_from_status("00", "", "") is None


NUMBERS = dict(enumerate(ConnectErrorCode, 1))


def test_numbers() -> None:
    names = (
        *("canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists"),
        *("permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range"),
        *("unimplemented", "internal", "unavailable", "data_loss", "unauthenticated"),
    )
    for number, name in enumerate(names, 1):
        code = ConnectErrorCode.from_name(name)
        assert code is not None
        assert written(ConnectError(code))[STATUS] == str(number)
        for spelling in (str(number), f"0{number}", f"{number:010}"):
            assert code_of(read(spelling)) == name


@pytest.mark.parametrize(
    "status",
    ["17", "18", "99", "100", "4294967296", "4294967297", "18446744073709551617", "9" * 10, "1" + "0" * 10, "9" * 5000],
)
def test_numbers_that_mean_nothing(status: str) -> None:
    """What a later version of gRPC may say is a failure that is not known here, never success."""
    error = read(status, "m")
    assert (code_of(error), error.message) == ("unknown", "m")


@pytest.mark.parametrize("zeros", [1, 9, 10, 11, 100])
def test_leading_zeros_do_not_make_it_success(zeros: int) -> None:
    assert error_from_status("0" * zeros + "5", "", "") is not None


@pytest.mark.parametrize(
    "status",
    [
        *("", " ", "-1", "+1", "1.0", "1e1", "0x1", "OK", "NOT_FOUND", "5 ", " 5", "5,5", "0, 5", "1_0", "\0"),
        *("\u0661", "\u00b2", "\u00bd", "5\n", "\udc35", "x" * 5000),
    ],
)
def test_what_is_no_number(status: str) -> None:
    with pytest.raises(ConnectError) as caught:
        error_from_status(status, "m", "")
    assert code_of(caught.value) == "internal"
    assert len(caught.value.message) < 200


# The message


@pytest.mark.parametrize(
    ("message", "header"),
    [
        ("", ""),
        ("plain text, of 20 words!", "plain text, of 20 words!"),
        ("\"quoted\" <tag> & 'more' #?/\\:;=@[]{}|^`~+$*()-._", "\"quoted\" <tag> & 'more' #?/\\:;=@[]{}|^`~+$*()-._"),
        ("100%", "100%25"),
        ("%41", "%2541"),
        ("%", "%25"),
        ("\u00e4", "%C3%A4"),
        ("\u20ac \U0001f600", "%E2%82%AC %F0%9F%98%80"),
        ("a\r\nb", "a%0D%0Ab"),
        ("\0\t\x1f\x7f", "%00%09%1F%7F"),
        ("\x80\x85\xa0\u2028\ufeff", "%C2%80%C2%85%C2%A0%E2%80%A8%EF%BB%BF"),
        ("a  b", "a  b"),
    ],
)
def test_messages(message: str, header: str) -> None:
    assert written(ConnectError(ConnectErrorCode.ABORTED, message)) == {STATUS: "10", MESSAGE: header}
    assert read("10", header).message == message


def test_every_character_there_and_back() -> None:
    for start in range(0, 0x110000, 0x880):
        if 0xD800 <= start < 0xE000 or start <= 0xD800 < start + 0x880:
            continue
        message = ".".join(map(chr, range(start, start + 0x880, 7)))
        assert read("10", written(ConnectError(ConnectErrorCode.ABORTED, f"|{message}|"))[MESSAGE]).message == (
            f"|{message}|"
        )


@pytest.mark.parametrize(
    "message", ["x" * 6_145, "x" * 4_000_000, "\u00e4" * 3_000, "a" + "\U0001f600" * 1_000_000, "%" * 9_000]
)
def test_long_messages_are_shortened(message: str) -> None:
    """Clients drop a call with long trailers, and servers that compress them are slow with one."""
    headers = written(ConnectError(ConnectErrorCode.ABORTED, message, [Duration()]))
    assert len(headers[MESSAGE]) <= 6 * 1024
    shortened = read("10", headers[MESSAGE]).message
    assert shortened.endswith("...")
    assert message.startswith(shortened[:-3])
    assert len(shortened.encode()) > 1_900
    assert Status.FromString(decoded(headers[DETAILS])).message == shortened, "some clients compare them"


@pytest.mark.parametrize("message", ["x" * 6_144, "\u00e4" * 1_024, "%" * 2_048])
def test_messages_that_just_fit(message: str) -> None:
    assert read("10", written(ConnectError(ConnectErrorCode.ABORTED, message))[MESSAGE]).message == message


def test_lone_surrogates() -> None:
    """UTF-8 has no bytes for them: they do not get through, but the error does."""
    header = written(ConnectError(ConnectErrorCode.ABORTED, "a\ud800b\udfffc"))[MESSAGE]
    message = read("10", header).message
    assert [message[0], message[-1]] == ["a", "c"]
    assert "b" in message
    assert message.encode()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("%c3%a4", "\u00e4"),  # either case
        ("%41%42", "AB"),  # what need not be encoded
        ("a+b", "a+b"),  # no form
        # What is broken is left as it stands: half a message is better than none.
        ("%", "%"),
        ("%4", "%4"),
        ("%zz", "%zz"),
        ("a%c3", "a\ufffd"),
        ("%ff%fe", "\ufffd\ufffd"),
        ("%%41", "%A"),
        ("100% of it", "100% of it"),
        ("%u20ac", "%u20ac"),
        ("%+1", "%+1"),
        ("% 1", "% 1"),
        ("%ed%a0%80", "\ufffd\ufffd\ufffd"),  # a surrogate
    ],
)
def test_messages_of_others(header: str, message: str) -> None:
    assert read("10", header).message == message


@pytest.mark.parametrize("header", ["m\u00e4", "m\udce4", "\ud800", "m\udcc3\udca4 %41", "\U0001f600", "a\0b"])
def test_messages_that_were_not_encoded(header: str) -> None:
    """HTTP libraries give bytes above 127 as Latin-1 or as surrogates: neither is to hide the error."""
    error = read("5", header)
    assert code_of(error) == "not_found"
    assert error.message
    assert error.message.encode(), "it can be printed"


# The details


BIG = reply("x" * 70_000)


@pytest.mark.parametrize(
    "details",
    [
        [Duration(seconds=5)],
        [Duration()],
        [ask("a", 5), Duration(seconds=-1), ask("a", 5)],
        [reply("x" * 127), reply("x" * 128), reply("x" * 16_383), reply("x" * 16_384)],
        [BIG],
    ],
    ids=len,
)
@pytest.mark.parametrize("message", ["", "m", "\u00e4%", "x" * 130, "x" * 4_000])
@pytest.mark.parametrize("code", [ConnectErrorCode.CANCELED, ConnectErrorCode.UNAUTHENTICATED])
def test_details_as_protobuf_encodes_them(code: ConnectErrorCode, message: str, details: list[Any]) -> None:
    headers = written(ConnectError(code, message, details))
    assert "=" not in headers[DETAILS], "values of -bin headers go without padding"
    found = Status.FromString(decoded(headers[DETAILS]))
    assert (found.code, found.message) == (code.grpc_number, message)
    assert [(detail.type_url, detail.value) for detail in found.details] == [
        (f"type.googleapis.com/{detail.DESCRIPTOR.full_name}", detail.SerializeToString()) for detail in details
    ]

    # and the other way
    made = Status(code=code.grpc_number, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    error = read(str(code.grpc_number), "m", encoded(made.SerializeToString()))
    assert [detail.message() for detail in error.details] == details
    assert [detail.type for detail in error.details] == [detail.DESCRIPTOR.full_name for detail in details]


def test_an_error_without_details_has_no_header_for_them() -> None:
    assert DETAILS not in written(ConnectError(ConnectErrorCode.ABORTED, "m"))


def test_details_of_types_that_nobody_knows() -> None:
    detail = ConnectErrorDetail("no.such.Type", b"\xff\0")
    error = read("10", "m", written(ConnectError(ConnectErrorCode.ABORTED, "m", [detail]))[DETAILS])
    assert error.details == [detail]
    assert error.details[0].message() is None


def test_types_with_another_prefix() -> None:
    made = Status(code=10)
    made.details.add(type_url="example.com/types/google.protobuf.Duration", value=b"\x08\x05")
    made.details.add(type_url="google.protobuf.Duration", value=b"\x08\x05")
    made.details.add(value=b"x")
    error = read("10", "", encoded(made.SerializeToString()))
    assert [(detail.type, detail.value) for detail in error.details] == [
        ("google.protobuf.Duration", b"\x08\x05"),
        ("google.protobuf.Duration", b"\x08\x05"),
        ("", b"x"),
    ]


def test_details_whose_type_no_utf8_can_say() -> None:
    """They cannot be sent; the error that they adorn is."""
    error = ConnectError(ConnectErrorCode.ABORTED, "m", [ConnectErrorDetail("\ud800", b"x"), Duration(seconds=5)])
    headers = written(error)
    assert (headers[STATUS], headers[MESSAGE]) == ("10", "m")


def status_bytes() -> bytes:
    made = Status(code=5, message="m")
    made.details.add().Pack(Duration(seconds=5))
    data: bytes = made.SerializeToString()
    return data


DETAIL = [Duration(seconds=5)]


@pytest.mark.parametrize(
    ("data", "details"),
    [
        (b"", []),
        (b"\x08\x05", []),
        (status_bytes(), DETAIL),
        # The code and the message are those of the other trailers.
        (Status(code=7, message="other").SerializeToString(), []),
        # Codes below zero take ten bytes.
        (Status(code=-1).SerializeToString() + status_bytes(), DETAIL),
        # Fields that a later version may have.
        (b"\x20\x01" + status_bytes() + b"\x2a\x03abc", DETAIL),
        (status_bytes() + b"\xfa\xff\xff\xff\x0f\x00", DETAIL),
        (b"\x21" + bytes(8) + b"\x25" + bytes(4) + status_bytes(), DETAIL),
        (b"\x19" + bytes(8) + b"\x1d" + bytes(4) + status_bytes(), DETAIL),
    ],
)
@pytest.mark.parametrize("pad", [False, True])
def test_details_that_are_read(data: bytes, details: list[Any], pad: bool) -> None:
    header = base64.b64encode(data).decode() if pad else encoded(data)
    error = read("5", "m", header)
    assert (code_of(error), error.message) == ("not_found", "m")
    assert [detail.message() for detail in error.details] == details


def test_several_values_of_details() -> None:
    """Repeated headers come joined by a comma."""
    header = encoded(status_bytes())
    for given in (f"{header},{header}", f"{header}=, {header}", f" {header} "):
        assert [detail.message() for detail in read("5", "m", given).details] == DETAIL


WHOLE = status_bytes()


@pytest.mark.parametrize(
    "header",
    [
        "!",
        "A",
        "AAAAA",
        "-_-_",
        "CAU\n",
        "C\u00e4",
        "\udce4",
        "====",
        encoded(b"\xff"),
        encoded(b"\xff" * 20),
        encoded(b"\x80" * 30),
        encoded(b"\x1a\xff\xff\xff\xff\x0f"),
        encoded(b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        encoded(b"\x1a\x01\xff"),
        encoded(b"\x1a\x03\x0a\x01\xff"),
        encoded(b"\x1b"),
        encoded(b"\x0c"),
        encoded(b"\x1f\x00"),
        encoded(b"\x12\x05m"),
        encoded(b"\x21" + bytes(7)),
        encoded(b"\x25" + bytes(3)),
        encoded(b"<html>"),
        *(encoded(WHOLE[:cut]) for cut in range(5, len(WHOLE))),
        *(encoded(WHOLE[:-1] + bytes([byte])) for byte in b"\x80\xff"),
        "A" * 100_000,
    ],
)
def test_broken_details(header: str) -> None:
    """The error is worth more than a complaint about what adorns it."""
    error = read("5", "m", header)
    assert (code_of(error), error.message) == ("not_found", "m")
    for detail in error.details:
        assert isinstance(detail.type, str)
        assert isinstance(detail.value, bytes)
