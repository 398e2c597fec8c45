"""The parts of the core that read what others sent, fed with anything."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import cut, fuzz, noise, spoil, spoil_text
from google.protobuf.type_pb2 import EnumValue
from multidict import CIMultiDict

from connectrpc import compression
from connectrpc._core.connect_get import parse_query
from connectrpc._core.envelope import EnvelopeReader
from connectrpc._core.grpc_status import error_from_status, status_of
from connectrpc._core.message import choose_compression
from connectrpc._core.timeout import parse_connect_timeout, parse_grpc_timeout
from connectrpc._core.wire_error import end_stream_from_json, error_from_json
from connectrpc.client.options import Procedures
from connectrpc.codec import JsonCodec
from connectrpc.compression import TooLargeError
from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from harness import BIDI, JSON, PROTO, STREAM_PROTO, UNARY, WEB, WEB_JSON, WEB_PROTO, ask, frame, reply

if TYPE_CHECKING:
    import random

NAMES = ["gzip", "br", "zstd"]


def read_envelopes(pieces: list[bytes], limit: int | None) -> tuple[list[tuple[int, bytes]], bool, bool]:
    reader, found = EnvelopeReader(limit), []
    try:
        for piece in pieces:
            for envelope in reader.feed(piece):
                found.append(envelope)  # noqa: PERF402  what came before an error counts
    except ConnectError as error:
        assert error.code is ConnectErrorCode.RESOURCE_EXHAUSTED  # noqa: PT017
        return found, True, False
    return found, False, reader.at_boundary


def test_envelopes_in_any_pieces() -> None:
    def case(chance: random.Random) -> None:
        whole = b"".join(frame(noise(chance, 50), chance.randrange(256)) for _ in range(chance.randrange(5)))
        data = spoil(chance, whole)
        limit = chance.choice((None, 0, 10, 40))
        assert read_envelopes(cut(chance, data), limit) == read_envelopes([data], limit)

    fuzz(case)


def test_envelopes_by_what_is_missing() -> None:
    """Reading just what is missing finds the same, and stops nowhere before the data ends."""

    def case(chance: random.Random) -> None:
        stream = [(chance.randrange(256), noise(chance, 50)) for _ in range(chance.randrange(6))]
        rest = b"".join(frame(payload, flags) for flags, payload in stream)
        reader, found = EnvelopeReader(None), []
        while rest:
            assert reader.missing > 0 or reader.missing == 0
            size = max(reader.missing, 1)
            found += list(reader.feed(rest[:size]))
            rest = rest[size:]
        assert found == stream
        assert reader.at_boundary

    fuzz(case)


@pytest.mark.parametrize("name", NAMES)
def test_decompression(name: str) -> None:
    """Spoiled or not: an exception or a result, and never more of that than the limit."""
    method = compression.named(name)

    def case(chance: random.Random) -> None:
        plain = noise(chance, 3000) if chance.random() < 0.5 else noise(chance, 10) * chance.randrange(20_000)
        compressed = method.compress(plain)
        data = spoil(chance, compressed) if chance.random() < 0.8 else noise(chance)
        limit = chance.choice((None, 0, 1, len(plain), max(len(plain) - 1, 0), 100))
        try:
            result = method.decompress(data, limit)
        except TooLargeError:
            assert limit is not None
        except Exception:
            assert data != compressed
        else:
            assert limit is None or len(result) <= limit
            assert data != compressed or result == plain

    fuzz(case)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_data_is_never_a_result(name: str) -> None:
    method = compression.named(name)

    def case(chance: random.Random) -> None:
        compressed = method.compress(noise(chance, 3000) * chance.choice((1, 1, 50)))
        truncated = compressed[: chance.randrange(len(compressed))]
        with pytest.raises(Exception) as caught:
            method.decompress(truncated, 10**7)
        assert not isinstance(caught.value, TooLargeError)

    fuzz(case)


@pytest.mark.parametrize("name", NAMES)
def test_compression(name: str) -> None:
    method = compression.named(name)

    def case(chance: random.Random) -> None:
        plain = noise(chance, 3000) * chance.choice((1, 1, 2, 100))
        assert method.decompress(method.compress(plain), len(plain)) == plain

    fuzz(case)


ERROR = json.dumps(
    {
        "code": "aborted",
        "message": "m \u00e4 \U0001f600",
        "details": [{"type": "google.protobuf.Duration", "value": "CAU", "debug": {"a": [1, 2.5, None, True]}}],
    }
).encode()
END = b'{"error":' + ERROR + b',"metadata":{"a":["1","2"],"b-bin":["AAE"]}}'


def test_error_json() -> None:
    def case(chance: random.Random) -> None:
        error = error_from_json(spoil(chance, ERROR), ConnectErrorCode.UNAVAILABLE)
        if error is None:
            return
        assert isinstance(error.code, ConnectErrorCode)
        assert isinstance(error.message, str)
        for detail in error.details:
            assert isinstance(detail.type, str)
            assert isinstance(detail.value, bytes)
            with contextlib.suppress(Exception):  # DecodeError: it says so
                detail.message()

    fuzz(case)


def test_end_stream_json() -> None:
    def case(chance: random.Random) -> None:
        try:
            error, trailers = end_stream_from_json(spoil(chance, END))
        except ConnectError as malformed:
            assert malformed.code is ConnectErrorCode.INTERNAL  # noqa: PT017
            return
        assert error is None or isinstance(error.code, ConnectErrorCode)
        assert all(isinstance(name, str) and isinstance(value, str) for name, value in trailers.items())

    fuzz(case)


def test_json_of_any_shape() -> None:
    """Valid JSON, but with any value in any place."""

    def value(chance: random.Random, depth: int = 0) -> Any:
        words = [
            "code",
            "message",
            "details",
            "type",
            "value",
            "debug",
            "error",
            "metadata",
            "aborted",
            "CAU",
            "\ud800",
            "",
            "a.B",
        ]
        kind = chance.randrange(7 if depth < 5 else 5)
        if kind == 5:
            return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
        if kind == 6:
            return {chance.choice(words): value(chance, depth + 1) for _ in range(chance.randrange(5))}
        return (None, True, chance.choice((0, -1, 1e300, 10**30, 1.5)), chance.choice(words), chance.choice(words))[
            kind
        ]

    def case(chance: random.Random) -> None:
        body = json.dumps(
            {**value_of(chance), "code": value(chance), "error": value(chance), "metadata": value(chance)}
        ).encode()
        error = error_from_json(body, ConnectErrorCode.UNKNOWN)
        assert error is not None
        for detail in error.details:
            with contextlib.suppress(ConnectError, ValueError, KeyError):
                detail.message()
        try:
            end_stream_from_json(body)
        except ConnectError as malformed:
            assert malformed.code is ConnectErrorCode.INTERNAL  # noqa: PT017

    def value_of(chance: random.Random) -> dict[str, Any]:
        found = value(chance)
        return found if isinstance(found, dict) else {}

    fuzz(case)


OPTIONS: list[dict[str, Any]] = [{}, {"read_max_bytes": 20}, {"accept_compression": ()}, {"codec": "json"}]
EXPECTED = {code for code in ConnectErrorCode if code is not ConnectErrorCode.CANCELED} | {ConnectErrorCode.CANCELED}


def headers_of(chance: random.Random, content_type: str, compressed: str) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict(
        {"content-type": spoil_text(chance, content_type) if chance.random() < 0.2 else content_type}
    )
    if chance.random() < 0.5:
        headers[compressed] = chance.choice(("gzip", "br", "zstd", "identity", "GZIP", "", "x"))
    if chance.random() < 0.3:
        headers["Trailer-X"] = spoil_text(chance, "x")
    return headers


def test_unary_answers() -> None:
    """A message or a ConnectError; whatever was answered."""
    clients = [Procedures("http://h", options, asynchronous=False).unary(UNARY) for options in OPTIONS]  # type: ignore[arg-type]
    bodies = [
        b"",
        ERROR,
        reply("a" * 30).SerializeToString(),
        b'{"fileName":"a"}',
        *(compression.named(name).compress(ERROR) for name in NAMES),
    ]

    def case(chance: random.Random) -> None:
        status = chance.choice((200, 200, 200, 400, 404, 500, 503, 204, 301, 999))
        content_type = chance.choice((PROTO, JSON, JSON, STREAM_PROTO, "text/html"))
        body = spoil(chance, chance.choice(bodies))
        headers = headers_of(chance, content_type, "content-encoding")
        client = chance.choice(clients)
        try:
            message, metadata = client.response(status, headers, body, None)
        except ConnectError as error:
            assert isinstance(error.code, ConnectErrorCode)  # noqa: PT017
            error.response_headers()
            error.response_trailers()
            str(error)
        else:
            assert isinstance(message, UNARY.output)
            assert status == 200
            metadata()

    fuzz(case)


def test_streamed_answers() -> None:
    """Messages, and then an end or a ConnectError; the same in whatever pieces it comes."""
    clients = [Procedures("http://h", options, asynchronous=False).stream(BIDI) for options in OPTIONS]  # type: ignore[arg-type]
    gzip = compression.named("gzip")
    parts = [
        frame(reply("a").SerializeToString()),
        frame(reply("b" * 30).SerializeToString()),
        frame(gzip.compress(reply("c").SerializeToString()), 1),
        frame(b'{"fileName":"d"}'),
        frame(b"{}", 2),
        frame(END, 2),
        frame(gzip.compress(END), 3),
    ]

    def read(client: Any, status: int, headers: CIMultiDict[str], pieces: list[bytes]) -> tuple[list[Any], Any]:
        call, found = client.call(), []
        try:
            call.head(status, headers)
            for piece in pieces:
                for message in call.feed(piece):
                    found.append(message)  # noqa: PERF402
            call.feed_end(None)
        except ConnectError as error:
            error.response_headers()
            error.response_trailers()
            return found, (error.code, error.message, error.details)
        assert call.complete
        return found, None

    def case(chance: random.Random) -> None:
        body = b"".join(chance.choices(parts, k=chance.randrange(5)))
        if chance.random() < 0.7:
            body = spoil(chance, body)
        status = chance.choice((200, 200, 200, 200, 404))
        headers = headers_of(
            chance,
            chance.choice((STREAM_PROTO, STREAM_PROTO, STREAM_PROTO, "application/connect+json")),
            "connect-content-encoding",
        )
        client = chance.choice(clients)
        assert read(client, status, headers, [body]) == read(client, status, headers, cut(chance, body))

    fuzz(case)


STATUS = dict(status_of(ConnectError(ConnectErrorCode.ABORTED, "m \u00e4%", [reply("a"), ask("b", 5)])))


def test_status_trailers() -> None:
    """An error, success or a complaint: nothing else."""

    def spoiled(chance: random.Random, name: str, words: list[str]) -> str:
        return spoil_text(chance, STATUS[name], words) if chance.random() < 0.7 else STATUS[name]

    def case(chance: random.Random) -> None:
        try:
            error = error_from_status(
                spoiled(chance, "grpc-status", ["0", "1", "9", "-", "\u0661"]),
                spoiled(chance, "grpc-message", ["%", "%ff", "%c3%a4", "\udce4"]),
                spoiled(chance, "grpc-status-details-bin", ["=", "/", ",", "A", "\udce4"]),
            )
        except ConnectError as malformed:
            assert malformed.code is ConnectErrorCode.INTERNAL  # noqa: PT017
            return
        if error is not None:
            assert error.message.encode() is not None
            for detail in error.details:
                with contextlib.suppress(Exception):  # DecodeError: it says so
                    detail.message()

    fuzz(case)


def test_status_there_and_back() -> None:
    def case(chance: random.Random) -> None:
        text = "".join(chr(chance.choice((chance.randrange(256), chance.randrange(0xD800)))) for _ in range(20))
        details = [ConnectErrorDetail("a.B", noise(chance, 300)) for _ in range(chance.randrange(4))]
        error = ConnectError(chance.choice(list(ConnectErrorCode)), text, details)
        pairs = dict(status_of(error))
        assert all(value.isascii() and value.isprintable() for value in pairs.values())
        found = error_from_status(pairs["grpc-status"], pairs["grpc-message"], pairs.get("grpc-status-details-bin", ""))
        assert found is not None
        assert (found.code, found.message, found.details) == (error.code, text, details)

    fuzz(case)


def test_answers_of_grpc_web() -> None:
    """Messages, and then an end or a ConnectError; the same in whatever pieces it comes, and for a unary call."""
    made = [Procedures("http://h", {"protocol": "grpc-web", **options}, asynchronous=False) for options in OPTIONS]  # type: ignore[typeddict-item]
    gzip = compression.named("gzip")
    block = "".join(f"{name}: {value}\r\n" for name, value in STATUS.items()).encode()
    parts = [
        frame(reply("a").SerializeToString()),
        frame(reply("b" * 30).SerializeToString()),
        frame(gzip.compress(reply("c").SerializeToString()), 1),
        frame(b'{"fileName":"d"}'),
        frame(b"grpc-status: 0\r\nx-t: 1\r\n", 0x80),
        frame(block, 0x80),
        frame(gzip.compress(block), 0x81),
    ]

    def read(client: Any, status: int, headers: CIMultiDict[str], pieces: list[bytes]) -> tuple[list[Any], Any]:
        call, found = client.call(), []
        try:
            call.head(status, headers)
            for piece in pieces:
                for message in call.feed(piece):
                    found.append(message)  # noqa: PERF402
            call.feed_end(None)
        except ConnectError as error:
            error.response_headers()
            error.response_trailers()
            return found, (error.code, error.message, error.details)
        return found, None

    def case(chance: random.Random) -> None:
        body = b"".join(chance.choices(parts, k=chance.randrange(5)))
        if chance.random() < 0.7:
            body = spoil(chance, body)
        status = chance.choice((200, 200, 200, 200, 404))
        headers = headers_of(chance, chance.choice((WEB_PROTO, WEB_PROTO, WEB, WEB_JSON)), "grpc-encoding")
        if chance.random() < 0.3:
            headers["grpc-status"] = chance.choice(("0", "5", "99", "x", ""))
        procedures = chance.choice(made)
        client = procedures.stream(BIDI)
        found, error = read(client, status, headers, [body])
        assert read(client, status, headers, cut(chance, body)) == (found, error)
        try:
            message, metadata = procedures.unary(UNARY).response(status, headers, body, None)
        except ConnectError as failure:
            of_unary = (failure.code, failure.message, failure.details)
            assert of_unary == error or (error is None and len(found) != 1)
        else:
            assert ([message], None) == (found, error)
            metadata()

    fuzz(case)


def test_accept_encoding() -> None:
    available = {"gzip": None, "br": None}

    def case(chance: random.Random) -> None:
        header = spoil_text(
            chance, chance.choice(("gzip;q=0.5, br;q=1, *;q=0", "br", "*", "gzip, identity")), ["gzip", "br", "q="]
        )
        assert choose_compression(header, None, available) in (None, "gzip", "br")

    fuzz(case)


def test_timeouts() -> None:
    def case(chance: random.Random) -> None:
        header = spoil_text(chance, str(chance.randrange(10**10)))
        try:
            assert 0 <= parse_connect_timeout(header) < 10**10
        except ConnectError as error:
            assert error.code is ConnectErrorCode.INVALID_ARGUMENT  # noqa: PT017

    fuzz(case)


def test_grpc_timeouts() -> None:
    def case(chance: random.Random) -> None:
        header = spoil_text(chance, f"{chance.randrange(10**8)}{chance.choice('HMSmun')}", list("HMSmun"))
        try:
            assert 0 <= parse_grpc_timeout(header) < 10**10
        except ConnectError as error:
            assert error.code is ConnectErrorCode.INVALID_ARGUMENT  # noqa: PT017

    fuzz(case)


def test_queries() -> None:
    def case(chance: random.Random) -> None:
        query = spoil_text(
            chance, "connect=v1&base64=1&encoding=proto&message=CgFh", ["%", "%ff", "&", "=", "+", "message="]
        )
        found = parse_query(query.encode("latin-1", "replace").decode("latin-1"))
        assert all(isinstance(name, str) and isinstance(value, str) for name, value in found.items())

    fuzz(case)


def test_json_messages() -> None:
    """The codec may raise anything, but a RecursionError is as good; it must not crash, hang or give another type."""
    codec, text = (
        JsonCodec(),
        b'{"name":"a\\u00e4","number":5,"options":[{"name":"o","value":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"5s"}}]}',
    )

    def case(chance: random.Random) -> None:
        try:
            message = codec.decode(spoil(chance, text), EnumValue)
        except Exception:
            return
        assert isinstance(message, EnumValue)
        assert codec.decode(codec.encode(message), EnumValue) == message or message.options

    fuzz(case)


def test_there_and_back() -> None:
    """Any text and number that a message can hold arrives as it was, in both codecs."""
    clients = {codec: Procedures("http://h", {"codec": codec}, asynchronous=False) for codec in ("proto", "json")}

    def case(chance: random.Random) -> None:
        text = "".join(
            chr(chance.choice((chance.randrange(128), chance.randrange(0xD800), chance.randrange(0xE000, 0x110000))))
            for _ in range(chance.randrange(30))
        )
        message = ask(text, chance.randrange(-(2**31), 2**31))
        for procedures in clients.values():
            _, body = procedures.unary(UNARY).request(message, None, None)
            assert procedures._settings.codec.decode(body or b"", EnumValue) == message

    fuzz(case)
