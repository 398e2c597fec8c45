"""The headers Connect-Timeout-Ms and grpc-timeout, both ways."""

from __future__ import annotations

import math

import pytest

from connectrpc._core.timeout import (
    format_connect_timeout,
    format_grpc_timeout,
    parse_connect_timeout,
    parse_grpc_timeout,
    timeout_ms,
)
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


# gRPC: grpc-timeout


@pytest.mark.parametrize(
    ("header", "milliseconds"),
    [
        ("0n", 0),
        ("0H", 0),
        ("00000000m", 0),
        ("1n", 1),  # never rounded down to a deadline that has passed
        ("1u", 1),
        ("999999n", 1),
        ("1000000n", 1),
        ("1000001n", 2),
        ("1000u", 1),
        ("1001u", 2),
        ("99999999n", 100),
        ("99999999u", 100_000),
        ("1m", 1),
        ("00000001m", 1),
        ("99999999m", 99_999_999),
        ("1S", 1000),
        ("1M", 60_000),
        ("1H", 3_600_000),
        ("2777H", 9_997_200_000),
        ("99999999S", 9_999_999_999),  # three years and more: no clock has to deal with them
        ("99999999M", 9_999_999_999),
        ("99999999H", 9_999_999_999),
    ],
)
def test_parse_grpc(header: str, milliseconds: int) -> None:
    assert parse_grpc_timeout(header) == milliseconds


@pytest.mark.parametrize(
    "header",
    [
        *("", " ", "m", "1", "-1m", "+1m", "1.5S", "1e3m", " 1m", "1m ", "1 m", "1_0m", "1mm", "1ms", "1m\n", "m1"),
        *("1s", "1h", "1N", "1U", "1d", "1\u00b5", "123456789m", "000000001m", "\u0661m", "\u00b2m", "0x1m", "1m,1m"),
    ],
)
def test_parse_grpc_refuses(header: str) -> None:
    with pytest.raises(ConnectError) as caught:
        parse_grpc_timeout(header)
    assert code_of(caught.value) == "invalid_argument"


@pytest.mark.parametrize(
    ("milliseconds", "header"),
    [
        (1, "1m"),
        (1500, "1500m"),
        (99_999_999, "99999999m"),
        (100_000_000, "100000S"),
        (100_000_001, "100001S"),  # rounded up: the server gives up no sooner than the client
        (9_999_999_999, "10000000S"),
        (10_000_000_000, "10000000S"),
        (99_999_999_000, "99999999S"),
        (99_999_999_001, "1666667M"),
        (5_999_999_940_000, "99999999M"),
        (5_999_999_940_001, "1666667H"),
        (359_999_996_400_000, "99999999H"),
        (10**30, "99999999H"),
    ],
)
def test_format_grpc(milliseconds: int, header: str) -> None:
    assert format_grpc_timeout(milliseconds) == header


@pytest.mark.parametrize("seconds", [5e-324, 0.0001, 0.0011, 1, 59.9999, 1e5, 123_456.789, 1e7, 9.3e9, 1e300, math.inf])
def test_grpc_there_and_back(seconds: float) -> None:
    """Nothing is lost but what the last digit cannot say, and that in the caller's favour."""
    milliseconds = timeout_ms(seconds)
    found = parse_grpc_timeout(format_grpc_timeout(milliseconds))
    if milliseconds < 10**10:
        assert milliseconds <= found < milliseconds + 1000
        assert found == milliseconds or milliseconds > 99_999_999
