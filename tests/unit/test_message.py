"""One message: codec, compression and limit together."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from google.protobuf.type_pb2 import EnumValue

from connectrpc import compression
from connectrpc._core.message import MessageReader, MessageWriter, choose_compression
from connectrpc.codec import JsonCodec, ProtoCodec
from connectrpc.errors import ConnectError, ConnectErrorCode
from harness import ask, code_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from connectrpc.compression import Compression

FAULT = ConnectErrorCode.DATA_LOSS
GZIP = compression.named("gzip")
BIG = ask("x" * 1000)


def reader(compression: Compression | None = GZIP, max_bytes: int | None = None) -> MessageReader[EnumValue]:
    return MessageReader(ProtoCodec(), EnumValue, compression, max_bytes, FAULT)


def test_reads_what_was_written() -> None:
    for min_bytes, compressed in ((0, True), (10_000, False)):
        payload, flag = MessageWriter(ProtoCodec().encode, GZIP, min_bytes).write(BIG)
        assert flag is compressed
        assert (len(payload) < 500) is compressed
        assert reader().read(payload, flag) == BIG


@pytest.mark.parametrize(("min_bytes", "compressed"), [(1003, True), (1004, False)])
def test_the_threshold_is_the_smallest_that_is_compressed(min_bytes: int, compressed: bool) -> None:
    assert len(BIG.SerializeToString()) == 1003
    assert MessageWriter(ProtoCodec().encode, GZIP, min_bytes).write(BIG)[1] is compressed


@pytest.mark.parametrize("compression", [None, GZIP])
def test_limit_for_sending(compression: Compression | None) -> None:
    """It is the message that is limited, not what compression makes of it."""
    assert MessageWriter(ProtoCodec().encode, compression, 0, 1003).write(BIG)
    with pytest.raises(ConnectError) as caught:
        MessageWriter(ProtoCodec().encode, compression, 0, 1002).write(BIG)
    assert code_of(caught.value) == "resource_exhausted"
    assert "1002" in caught.value.message


def test_no_compression() -> None:
    assert MessageWriter(JsonCodec().encode, None, 0).write(ask("a")) == (b'{"name":"a"}', False)


def test_nobody_decompresses_nothing() -> None:
    assert reader().read(b"", True) == ask()


def test_compressed_without_a_declaration() -> None:
    with pytest.raises(ConnectError) as caught:
        reader(None).read(GZIP.compress(b""), True)
    assert code_of(caught.value) == "internal"


@pytest.mark.parametrize(("payload", "compressed", "what"), [(b"\xff", False, "proto"), (b"\xff", True, "gzip")])
def test_a_payload_that_cannot_be_read(payload: bytes, compressed: bool, what: str) -> None:
    with pytest.raises(ConnectError) as caught:
        reader().read(payload, compressed)
    assert caught.value.code is FAULT
    assert what in caught.value.message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("compressed", [False, True])
def test_limit(compressed: bool) -> None:
    payload = BIG.SerializeToString()
    sent = GZIP.compress(payload) if compressed else payload
    assert reader(max_bytes=1003).read(sent, compressed) == BIG
    with pytest.raises(ConnectError) as caught:
        reader(max_bytes=1002).read(sent, compressed)
    assert code_of(caught.value) == "resource_exhausted"
    assert "1002" in caught.value.message


def test_what_a_codec_raises_is_not_told() -> None:
    class Leaky:
        name = "leaky"

        def encode(self, message: Message) -> bytes:
            raise NotImplementedError

        def decode(self, data: bytes, message_type: type[EnumValue]) -> EnumValue:
            raise RuntimeError("secret")

    with pytest.raises(ConnectError) as caught:
        MessageReader(Leaky(), EnumValue, None, None, FAULT).read(b"", False)  # type: ignore[arg-type]
    assert caught.value.code is FAULT
    assert "secret" not in str(caught.value)


# What to answer with, of gzip and br in this order.
@pytest.mark.parametrize(
    ("accepted", "sent", "chosen"),
    [
        (None, None, None),
        (None, "br", "br"),
        (None, "zstd", None),
        (None, "identity", None),
        ("", None, None),
        ("gzip", None, "gzip"),
        ("GZip", None, "gzip"),
        ("gzip", "br", "gzip"),
        ("zstd", "br", None),
        ("br, gzip", None, "br"),
        ("gzip,br", None, "gzip"),
        ("zstd, br", None, "br"),
        ("gzip;q=0.5, br;q=0.6", None, "br"),
        ("gzip; q=0.5 , br ; Q=0.6", None, "br"),
        ("gzip;q=0", None, None),
        ("gzip;q=0, br", None, "br"),
        ("gzip;q=0.0,br;q=0.000", None, None),
        ("identity, gzip", None, None),
        ("identity, deflate, gzip", "gzip", "gzip"),
        ("identity, deflate, gzip", "br", None),
        ("identity, gzip;q=0", "gzip", None),
        ("identity;q=0.5, gzip", None, "gzip"),
        ("identity;q=0", None, None),
        ("*", None, "gzip"),
        ("gzip;q=0, *", None, "br"),
        ("*;q=0", None, None),
        ("gzip, *;q=0", None, "gzip"),
        ("*;q=0.1, br", None, "br"),
        ("zstd, *;q=0.1", None, "gzip"),
        ("gzip;q=x, br", None, "br"),
        ("gzip;q=nan", None, None),
        (",, gzip ,", None, "gzip"),
        (";;;", None, None),
        ("gzip;level=9", None, "gzip"),
    ],
)
def test_choose_compression(accepted: str | None, sent: str | None, chosen: str | None) -> None:
    available = {"gzip": GZIP, "br": compression.named("br")}
    assert choose_compression(accepted, sent, available) == chosen


def test_nothing_to_choose_from() -> None:
    assert choose_compression("gzip, *", "gzip", {}) is None


def test_long_lists_of_a_peer_are_not_kept() -> None:
    lists = [f"{number}," + "gzip," * 5_000 for number in range(12)]
    choose_compression(lists[0], None, {"gzip": GZIP})
    tracemalloc.start()
    try:
        assert {choose_compression(accepted, None, {"gzip": GZIP}) for accepted in lists} == {"gzip"}
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
