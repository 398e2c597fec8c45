"""Framing: whatever pieces a stream comes in, the same envelopes come out."""

from __future__ import annotations

import pytest

from connectrpc._core.envelope import COMPRESSED, HEADER_SIZE, EnvelopeReader, envelope
from connectrpc.errors import ConnectError
from harness import code_of, frame, pieces

STREAM = [(0, b"one"), (1, b""), (2, b"x" * 300), (0xFF, b"last")]
BYTES = b"".join(frame(payload, flags) for flags, payload in STREAM)


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        (0, b"", b"\0\0\0\0\0"),
        (COMPRESSED, b"ab", b"\x01\0\0\0\x02ab"),
        (0x80, b"x" * 0x1234, b"\x80\0\0\x12\x34" + b"x" * 0x1234),
    ],
)
def test_envelope(flags: int, payload: bytes, expected: bytes) -> None:
    assert envelope(flags, payload) == expected


def test_a_payload_that_no_length_can_say() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(ConnectError) as caught:
        envelope(0, Huge())
    assert code_of(caught.value) == "resource_exhausted"


@pytest.mark.parametrize("size", [*range(16), 299, 300, 305, 400])
def test_any_pieces_give_the_same(size: int) -> None:
    reader = EnvelopeReader(None)
    assert [found for piece in pieces(BYTES, size) for found in reader.feed(piece)] == STREAM
    assert reader.at_boundary


def test_empty_pieces_change_nothing() -> None:
    reader = EnvelopeReader(None)
    found = []
    for byte in BYTES:
        found += [*reader.feed(b""), *reader.feed(bytes([byte]))]
    assert found == STREAM


def test_each_envelope_comes_with_its_last_byte() -> None:
    """Nothing is held back until something follows: the peer may be waiting for the answer."""
    reader = EnvelopeReader(None)
    for flags, payload in STREAM:
        framed = frame(payload, flags)
        assert list(reader.feed(framed[:-1])) == []
        assert list(reader.feed(framed[-1:])) == [(flags, payload)]


def test_boundary() -> None:
    reader = EnvelopeReader(None)
    boundaries = []
    for byte in frame(b"ab") + frame(b""):
        boundaries.append(reader.at_boundary)
        list(reader.feed(bytes([byte])))
    assert boundaries == [True] + [False] * 6 + [True] + [False] * 4
    assert reader.at_boundary


def test_missing_never_asks_for_more_than_a_message_needs() -> None:
    """Reading just what is missing takes the stream apart without ever waiting for the next message."""
    reader = EnvelopeReader(None)
    assert reader.missing == HEADER_SIZE
    rest, found, asked = BYTES, [], []
    while rest:
        asked.append(reader.missing)
        piece, rest = rest[: reader.missing], rest[reader.missing :]
        found += list(reader.feed(piece))
    assert found == STREAM
    assert asked == [5, 3, 5, 5, 300, 5, 4]


def test_missing_counts_what_has_come() -> None:
    reader = EnvelopeReader(None)
    list(reader.feed(b"\0\0"))
    assert reader.missing == 3
    list(reader.feed(b"\0\0\x0a123"))
    assert reader.missing == 7


@pytest.mark.parametrize("size", [0, 1, 7])
def test_the_limit_is_the_largest_that_passes(size: int) -> None:
    reader = EnvelopeReader(10)
    data = frame(b"x" * 10) + frame(b"x" * 11)
    found = []
    with pytest.raises(ConnectError) as caught:
        for piece in pieces(data, size):
            for envelope_ in reader.feed(piece):
                found.append(envelope_)  # noqa: PERF402  what came before the error counts
    assert found == [(0, b"x" * 10)]
    assert code_of(caught.value) == "resource_exhausted"
    assert "11" in caught.value.message
    assert "10" in caught.value.message


def test_the_limit_holds_before_the_payload_comes() -> None:
    with pytest.raises(ConnectError):
        list(EnvelopeReader(10).feed(b"\0\xff\xff\xff\xff"))


def test_a_limit_of_zero_takes_empty_messages_only() -> None:
    assert list(EnvelopeReader(0).feed(frame(b""))) == [(0, b"")]
    with pytest.raises(ConnectError):
        list(EnvelopeReader(0).feed(frame(b"x")))


def test_no_limit() -> None:
    reader = EnvelopeReader(None)
    assert list(reader.feed(b"\0\xff\xff\xff\xff")) == []
    assert reader.missing == 0xFFFFFFFF
