"""``ConnectError`` and its details, as users make and read them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from harness import ask


def test_members() -> None:
    error = ConnectError(ConnectErrorCode.NOT_FOUND, "no such thing")
    assert isinstance(error, Exception)
    assert error.code is ConnectErrorCode.NOT_FOUND
    assert error.message == "no such thing"
    assert error.details == []
    assert dict(error.response_headers()) == {}
    assert dict(error.response_trailers()) == {}


def test_text_names_code_and_message() -> None:
    assert str(ConnectError(ConnectErrorCode.NOT_FOUND, "no such thing")) == "not_found: no such thing"
    assert str(ConnectError(ConnectErrorCode.NOT_FOUND)) == "not_found"
    assert "NOT_FOUND" in repr(ConnectError(ConnectErrorCode.NOT_FOUND, "no such thing"))
    assert "no such thing" in repr(ConnectError(ConnectErrorCode.NOT_FOUND, "no such thing"))


def test_details_of_messages() -> None:
    error = ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
    error.add_detail(ask("a", 1))
    assert [detail.type for detail in error.details] == ["google.protobuf.Duration", "google.protobuf.EnumValue"]
    assert error.details[0].value == b"\x08\x05"
    assert [detail.message() for detail in error.details] == [Duration(seconds=5), ask("a", 1)]
    assert [detail.debug for detail in error.details] == [None, None]


def test_debug_is_only_there_when_asked_for() -> None:
    error = ConnectError(ConnectErrorCode.ABORTED, "m")
    error.add_detail(ask("a", 1), include_debug=True)
    assert error.details[0].debug == {"name": "a", "number": 1}


def test_a_message_that_cannot_be_read_by_people_is_sent_without_debug() -> None:
    unknown = Any(type_url="type.googleapis.com/no.Such", value=b"x")
    error = ConnectError(ConnectErrorCode.ABORTED, "m")
    error.add_detail(unknown, include_debug=True)
    error.add_detail(Value(number_value=math.nan), include_debug=True)
    assert error.details[0] == ConnectErrorDetail("no.Such", b"x")
    assert error.details[1].message() is not None
    assert [detail.debug for detail in error.details] == [None, None]


def test_an_any_is_what_it_holds() -> None:
    holder = Any()
    holder.Pack(Duration(seconds=5))
    error = ConnectError(ConnectErrorCode.ABORTED, "m", [holder])
    assert error.details == [ConnectErrorDetail("google.protobuf.Duration", b"\x08\x05")]
    assert error.details[0].message() == Duration(seconds=5)


@pytest.mark.parametrize("detail", ["a", b"a", None, 5, Duration])
def test_what_is_no_detail(detail: object) -> None:
    with pytest.raises(TypeError, match="a detail is a message, not"):
        ConnectError(ConnectErrorCode.INTERNAL, "", [detail])  # type: ignore[list-item]


def test_ready_made_details_are_taken_as_they_are() -> None:
    detail = ConnectErrorDetail("a.B", b"\1", {"x": 1})
    error = ConnectError(ConnectErrorCode.ABORTED, "m", (detail,))
    assert error.details == [detail]
    assert error.details[0] is detail


@pytest.mark.parametrize("name", ["no.such.Type", "", "nonsense", ".google.protobuf.Duration", "\ud800", "a" * 10_000])
def test_a_type_that_is_not_known(name: str) -> None:
    assert ConnectErrorDetail(name, b"").message() is None


def test_a_value_that_is_no_such_message() -> None:
    with pytest.raises(DecodeError):
        ConnectErrorDetail("google.protobuf.Duration", b"\xff").message()


def test_details_compare_by_what_is_sent() -> None:
    one, same = ConnectErrorDetail("a.B", b"\1", {"x": 1}), ConnectErrorDetail("a.B", b"\1")
    assert one == same
    assert hash(one) == hash(same)
    assert one != ConnectErrorDetail("a.B", b"\2")
    assert one != ConnectErrorDetail("a.C", b"\1")
    assert one != "a.B"
    assert "a.B" in repr(one)


@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_travels_between_processes(travel: object) -> None:
    """concurrent.futures and multiprocessing pickle what a worker raises."""
    error = ConnectError(ConnectErrorCode.ABORTED, "m", [Duration(seconds=5)])
    arrived = travel(error)  # type: ignore[operator]
    assert type(arrived) is ConnectError
    assert (arrived.code, arrived.message, arrived.details) == (error.code, error.message, error.details)
    assert str(arrived) == str(error)


def test_lists_of_details_are_not_shared() -> None:
    details = [Duration(seconds=5)]
    one, other = (
        ConnectError(ConnectErrorCode.ABORTED, "", details),
        ConnectError(ConnectErrorCode.ABORTED, "", details),
    )
    one.add_detail(Duration(seconds=6))
    assert len(other.details) == 1
    assert len(details) == 1
