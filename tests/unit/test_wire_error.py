"""Errors in Connect's JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from connectrpc._core.wire_error import end_stream_from_json, end_stream_to_json, error_from_json, error_to_json
from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from harness import code_of

INFERRED = ConnectErrorCode.UNAVAILABLE


def test_form() -> None:
    error = ConnectError(ConnectErrorCode.NOT_FOUND, 'n\u00f6 "x"', [Duration(seconds=5)])
    expected = {
        "code": "not_found",
        "message": 'n\u00f6 "x"',
        "details": [{"type": "google.protobuf.Duration", "value": "CAU"}],
    }
    body = error_to_json(error)
    assert json.loads(body) == expected
    assert "\u00f6".encode() in body


def test_absent_parts_are_not_written() -> None:
    assert json.loads(error_to_json(ConnectError(ConnectErrorCode.INTERNAL))) == {"code": "internal"}


def test_debug() -> None:
    error = ConnectError(ConnectErrorCode.INTERNAL)
    error.add_detail(Duration(seconds=5), include_debug=True)
    assert json.loads(error_to_json(error))["details"] == [
        {"type": "google.protobuf.Duration", "value": "CAU", "debug": "5s"}
    ]


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\1", b"\0\1\2", b"\xfb\xff\xfe"])
def test_details_there_and_back(value: bytes) -> None:
    body = error_to_json(ConnectError(ConnectErrorCode.INTERNAL, "", [ConnectErrorDetail("a.B", value)]))
    assert b"=" not in body, "unpadded"
    error = error_from_json(body, INFERRED)
    assert error is not None
    assert error.details == [ConnectErrorDetail("a.B", value)]


@pytest.mark.parametrize("code", ConnectErrorCode)
def test_codes_there_and_back(code: ConnectErrorCode) -> None:
    error = error_from_json(error_to_json(ConnectError(code, "m")), INFERRED)
    assert error is not None
    assert (error.code, error.message) == (code, "m")


def test_lone_surrogates_of_a_peer_become_something_that_can_be_printed() -> None:
    escaped = r"a\ud800b"
    detail = f'{{"type":"t{escaped}","value":""}}'
    wire = f'{{"code":"aborted","message":"{escaped}","details":[{detail}]}}'
    error = error_from_json(wire.encode(), INFERRED)
    assert error is not None
    assert (error.message, error.details[0].type) == ("a?b", "ta?b")
    end = f'{{"error":{wire},"metadata":{{"x-{escaped}":["{escaped}"]}}}}'
    error, trailers = end_stream_from_json(end.encode())
    assert error is not None
    assert (error.message, dict(trailers)) == ("a?b", {"x-a?b": "a?b"})


def test_a_lone_surrogate_in_a_message_is_sent_all_the_same() -> None:
    error = error_from_json(error_to_json(ConnectError(ConnectErrorCode.INTERNAL, "a\ud800b")), INFERRED)
    assert error is not None
    assert error.code is ConnectErrorCode.INTERNAL
    assert error.message.startswith("a")
    assert error.message.endswith("b")


def detail(**changes: Any) -> dict[str, Any]:
    return {"type": "a.B", "value": "CAU", **changes}


@pytest.mark.parametrize(
    ("wire", "code", "message", "values"),
    [
        ({"code": "not_found", "message": "m"}, "not_found", "m", []),
        ({"code": "not_found", "surprise": 1}, "not_found", "", []),
        ({"message": "m"}, "unavailable", "m", []),
        ({"code": "no_such_code", "message": "m"}, "unavailable", "m", []),
        ({"code": 5, "message": "m"}, "unavailable", "m", []),
        ({"code": None, "message": None, "details": None}, "unavailable", "", []),
        ({"code": "internal", "message": 5}, "internal", "", []),
        ({"code": "internal", "details": "x"}, "internal", "", []),
        ({"code": "internal", "details": [detail()]}, "internal", "", [b"\x08\x05"]),
        ({"code": "internal", "details": [detail(value="CAU=")]}, "internal", "", [b"\x08\x05"]),
        ({"code": "internal", "details": [detail(value="")]}, "internal", "", [b""]),
        # The error is worth more than a complaint about what adorns it.
        ({"code": "internal", "details": [1, None, [], {}, detail()]}, "internal", "", [b"\x08\x05"]),
        ({"code": "internal", "details": [detail(type=1), detail(value=1)]}, "internal", "", []),
        ({"code": "internal", "details": [detail(value="A"), detail(value="!!!!")]}, "internal", "", []),
        ({"code": "internal", "details": [detail(value="C\u00c4U"), detail(value="CA U")]}, "internal", "", []),
    ],
)
def test_reading(wire: dict[str, Any], code: str, message: str, values: list[bytes]) -> None:
    error = error_from_json(json.dumps(wire).encode(), INFERRED)
    assert error is not None
    assert (error.code.code_name, error.message) == (code, message)
    assert [detail.value for detail in error.details] == values


def test_debug_is_read() -> None:
    body = json.dumps({"code": "internal", "details": [detail(debug={"a": [1]})]}).encode()
    error = error_from_json(body, INFERRED)
    assert error is not None
    assert error.details[0].debug == {"a": [1]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"5",
        b"{",
        b"\xff",
        b"<html>",
        b"[" * 200_000,
        b'{"code":' * 50_000,
        b"1" * 10_000,
        b"\xef\xbb\xbf{}",
        b"{}",
        b'{"detail":"Not Found"}',
    ],
    ids=lambda body: body[:8],
)
def test_no_error_at_all(body: bytes) -> None:
    assert error_from_json(body, INFERRED) is None


# The end of a stream


def test_end_form() -> None:
    assert json.loads(end_stream_to_json(None, [])) == {}
    error = ConnectError(ConnectErrorCode.ABORTED, "m")
    payload = end_stream_to_json(error, [("a", "1"), ("b-bin", "AA"), ("a", "2")])
    assert json.loads(payload) == {
        "error": {"code": "aborted", "message": "m"},
        "metadata": {"a": ["1", "2"], "b-bin": ["AA"]},
    }


def test_end_there_and_back() -> None:
    trailers = [("a", "1"), ("b", "x"), ("a", "2")]
    error, read = end_stream_from_json(end_stream_to_json(None, trailers))
    assert error is None
    assert (read.getall("A"), read.getall("B")) == (["1", "2"], ["x"])
    error, read = end_stream_from_json(end_stream_to_json(ConnectError(ConnectErrorCode.ABORTED, "m"), []))
    assert error is not None
    assert (error.code.code_name, error.message, len(read)) == ("aborted", "m", 0)


@pytest.mark.parametrize("payload", ["{}", '{"error":null,"metadata":null}', '{"metadata":{}}', '{"surprise":1}'])
def test_end_without_anything(payload: str) -> None:
    error, trailers = end_stream_from_json(payload.encode())
    assert error is None
    assert len(trailers) == 0


@pytest.mark.parametrize("wire", [{}, {"code": "nonsense"}, {"code": 1}])
def test_end_with_an_unknown_code(wire: dict[str, Any]) -> None:
    error, _ = end_stream_from_json(json.dumps({"error": wire}).encode())
    assert code_of(error) == "unknown"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"error":"x"}',
        b'{"error":[]}',
        b'{"metadata":[]}',
        b'{"metadata":{"a":"x"}}',
        b'{"metadata":{"a":[1]}}',
        b'{"error":false}',
    ],
)
def test_end_that_is_malformed(payload: bytes) -> None:
    with pytest.raises(ConnectError) as caught:
        end_stream_from_json(payload)
    assert code_of(caught.value) == "internal"
