"""Everything that can be given as headers comes out as the same names and values."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import pytest
from multidict import CIMultiDict, MultiDict
from urllib3 import HTTPHeaderDict

from connectrpc._core.metadata import checked
from connectrpc.headers import HeaderInput, decode_binary, encode_binary, iter_headers

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = [("x-one", "1"), ("X-Two", "2"), ("X-Two", "3")]


def of_urllib3() -> HTTPHeaderDict:
    headers = HTTPHeaderDict()
    for name, value in PAIRS:
        headers.add(name, value)
    return headers


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"x-one": ["1"], "X-Two": ["2", "3"]},
        lambda: MultiDict(PAIRS),
        lambda: CIMultiDict(PAIRS),
        of_urllib3,
    ],
)
def test_repeated_names(make: Callable[[], HeaderInput]) -> None:
    assert list(iter_headers(make())) == PAIRS


def test_one_value_each() -> None:
    assert list(iter_headers({"b": "1", "a": "2"})) == [("b", "1"), ("a", "2")]


@pytest.mark.parametrize("empty", [{}, MultiDict(), CIMultiDict(), HTTPHeaderDict()])
def test_none_at_all(empty: HeaderInput) -> None:
    assert list(iter_headers(empty)) == []


def test_the_kinds_are_documented_by_the_type() -> None:
    assert len(get_args(HeaderInput)) == 6


def test_any_mapping_will_do() -> None:
    given: dict[str, str | list[str]] = {"x-one": "1", "X-Two": ["2", "3"]}
    assert list(iter_headers(MappingProxyType(given))) == PAIRS
    assert list(iter_headers({"x-one": "1", "X-Two": ("2", "3")})) == PAIRS


@pytest.mark.parametrize(
    ("value", "sent"), [(b"", ""), (b"\0", "AA"), (b"\0\xff", "AP8"), (b"abc", "YWJj"), (b"\xfb\xff\xfe", "+//+")]
)
def test_binary_values(value: bytes, sent: str) -> None:
    assert encode_binary(value) == sent, "gRPC over HTTP2: without padding"
    assert decode_binary(sent) == value
    assert decode_binary(sent + "=" * (-len(sent) % 4)) == value, "and with it"


@pytest.mark.parametrize("sent", ["A", "a b", "-_8", "\u00e4bc", "AA=A"])
def test_values_that_are_not_binary(sent: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_binary(sent)


def test_urllib3_is_not_imported() -> None:
    script = "import connectrpc.headers, sys; raise SystemExit('urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"a": 1}, "names and values are strings"),
        ({"a": [1]}, "names and values are strings"),
        ({"a": None}, "names and values are strings"),
        ([("a", "b")], "a dict or a multidict, not list"),
    ],
)
def test_what_is_no_header(headers: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        checked(headers)
