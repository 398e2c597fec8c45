"""The header Connect-Timeout-Ms, both ways."""

from __future__ import annotations

import math

import pytest

from connectrpc._core.timeout import format_connect_timeout, parse_connect_timeout, timeout_ms
from connectrpc.errors import ConnectError
from harness import code_of


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (1, 1000),
        (0.001, 1),
        (0.0001, 1),  # never none at all
        (5e-324, 1),
        (0.0011, 2),  # rounded up
        (1.5, 1500),
        (2.0005, 2001),
        (9_999_999.999, 9_999_999_999),
    ],
)
def test_seconds_to_milliseconds(seconds: float, milliseconds: int) -> None:
    assert timeout_ms(seconds) == milliseconds


@pytest.mark.parametrize("seconds", [0, 0.0, -0.0, -1, -math.inf])
def test_no_time_left(seconds: float) -> None:
    with pytest.raises(ConnectError) as caught:
        timeout_ms(seconds)
    assert code_of(caught.value) == "deadline_exceeded"


def test_not_a_number() -> None:
    with pytest.raises(ValueError, match="NaN"):
        timeout_ms(math.nan)


@pytest.mark.parametrize("seconds", [1e7, 9.3e9, 1e10, 1e11, 1e300, math.inf])
def test_longer_than_the_header_can_say(seconds: float) -> None:
    """Still a deadline on the clock, and one that no clock chokes on: no header then."""
    milliseconds = timeout_ms(seconds)
    assert format_connect_timeout(milliseconds) is None
    # threading.TIMEOUT_MAX where it is smallest among 64-bit Unix systems, in seconds
    assert milliseconds / 1000 < 9_223_372_036


@pytest.mark.parametrize(
    ("milliseconds", "header"),
    [(1, "1"), (1500, "1500"), (9_999_999_999, "9999999999"), (10_000_000_000, None)],
)
def test_format(milliseconds: int, header: str | None) -> None:
    assert format_connect_timeout(milliseconds) == header


@pytest.mark.parametrize(
    ("header", "milliseconds"),
    [("0", 0), ("1", 1), ("0000000001", 1), ("1500", 1500), ("9999999999", 9_999_999_999)],
)
def test_parse(header: str, milliseconds: int) -> None:
    assert parse_connect_timeout(header) == milliseconds


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "10s",
        "abc",
        " 1",
        "1 ",
        "1_000",
        "12345678901",
        "00000000001",
        "\u0661",
        "1\n",
        "\u00b2",
    ],
)
def test_parse_refuses(header: str) -> None:
    with pytest.raises(ConnectError) as caught:
        parse_connect_timeout(header)
    assert code_of(caught.value) == "invalid_argument"
