"""What applications may send as headers and trailers."""

from __future__ import annotations

from typing import Any

import pytest
from multidict import CIMultiDict
from urllib3 import HTTPHeaderDict

from connectrpc._core.metadata import checked, received, split_trailers, split_trailers_only

RESERVED = [
    "content-type",
    "Content-Length",
    "content-encoding",
    "ACCEPT-ENCODING",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "connect-protocol-version",
    "Connect-Timeout-Ms",
    "connect-anything",
    "grpc-status",
    "Grpc-Message",
    "grpc-status-details-bin",
    "trailer-x",
    "Trailer-X",
]


@pytest.mark.parametrize("name", RESERVED)
def test_names_of_the_protocol(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        checked({name: "x"})


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "X-Custom",
        "x-connect-y",
        "user-agent",
        "authorization",
        "cookie",
        "x_y",
        "te-x",
        "connection-id",
        "!#$%&'*+.^_`|~9",
    ],
)
def test_names_of_the_application(name: str) -> None:
    assert checked({name: "v"}) == [(name.lower(), "v")]


@pytest.mark.parametrize("name", ["", " ", "x y", "x:", ":path", "x\r\ny", "x\n", "n\u00e4me", "x\0", "(x)", "a,b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError):
        checked({name: "x"})


@pytest.mark.parametrize("value", ["", "v", "~", "a b", "a\tb", "a,b", '"q"', "=" * 5000])
def test_values(value: str) -> None:
    assert checked({"x": value}) == [("x", value)]


@pytest.mark.parametrize(("given", "sent"), [(" a ", "a"), ("\ta b\t ", "a b"), (" ", "")])
def test_white_space_around_a_value_is_no_part_of_it(given: str, sent: str) -> None:
    assert checked({"x": given}) == [("x", sent)]


def test_a_trailer_of_grpc_that_belongs_to_handlers() -> None:
    assert checked({"Grpc-Retry-Pushback-Ms": "500"}) == [("grpc-retry-pushback-ms", "500")]


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx-injected: 1", "a\0", "\x7f", "\u00e4", "\u20ac", "a\n", "\ud800"])
def test_values_that_cannot_be_sent(value: str) -> None:
    with pytest.raises(ValueError) as caught:
        checked({"x-name": value})
    assert "x-name" in str(caught.value)
    assert value not in str(caught.value), "it may be a secret"


@pytest.mark.parametrize("headers", [{"x": b"bytes"}, {"x": 1}, {"x": None}, {"x": [1]}, {b"x": "v"}, {1: "v"}])
def test_wrong_types(headers: Any) -> None:
    with pytest.raises(TypeError):
        checked(headers)


def test_order_and_repetition() -> None:
    mapping = HTTPHeaderDict()
    mapping.add("B", "1")
    mapping.add("a", "2")
    mapping.add("b", "3")
    assert sorted(checked(mapping)) == [("a", "2"), ("b", "1"), ("b", "3")]
    assert checked(CIMultiDict([("B", "1"), ("a", "2"), ("b", "3")])) == [("b", "1"), ("a", "2"), ("b", "3")]


JOINED = [("x-a", "1,2"), ("X-Data-Bin", "AAE,AAI=\t, AAM"), ("x-data-bin", "AAQ"), ("x-bin-not", "1,2"), ("-bin", "")]
APART = [("x-a", "1,2"), *(("X-Data-Bin", value) for value in ("AAE", "AAI=", "AAM")), *JOINED[2:]]


def test_binary_values_that_were_joined() -> None:
    assert list(received(JOINED).items()) == APART
    assert list(split_trailers(JOINED)[0].items()) == APART
    assert list(split_trailers_only(JOINED)[1].items()) == APART
    ((name, one), (_, two)) = split_trailers([("trailer-x-bin", "AAE,AAI")])[1].items()
    assert (name, one, two) == ("x-bin", "AAE", "AAI")


def test_one_block_for_headers_and_trailers() -> None:
    of_http = [("Date", "d"), ("content-type", "c"), ("grpc-encoding", "e"), ("server", "s")]
    of_the_application = [("x-a", "1"), ("Grpc-Retry-Pushback-Ms", "5")]
    headers, trailers = split_trailers_only([*of_http, *of_the_application])
    assert (list(headers.items()), list(trailers.items())) == (of_http, of_the_application)


def test_split_trailers() -> None:
    headers, trailers = split_trailers(
        [("X-H", "1"), ("Trailer-X-T", "2"), ("trailer-x-t", "3"), ("TRAILER-Y", "4"), ("x-h", "5"), ("Trailer", "x")]
    )
    assert headers.getall("x-h") == ["1", "5"]
    assert headers["trailer"] == "x"
    assert trailers.getall("X-T") == ["2", "3"]
    assert trailers["y"] == "4"
    assert (len(headers), len(trailers)) == (3, 3)
