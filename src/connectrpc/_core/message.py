"""One message: codec, compression and size limit, for all protocols and both sides."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import Message

from connectrpc._core.envelope import LAST_MAX_BYTES
from connectrpc.codec import FieldError, ProtoCodec
from connectrpc.compression import TooLargeError
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from connectrpc.codec import Codec
    from connectrpc.compression import Compression

__all__ = [
    "MessageReader",
    "MessageWriter",
    "UnencodableError",
    "choose_compression",
    "compress",
    "decompress",
    "encode",
    "encoder_of",
    "limited",
    "too_large",
]

MessageT = TypeVar("MessageT", bound=Message)

IDENTITY = "identity"


def too_large(max_bytes: int | None) -> ConnectError:
    """The error of a message that exceeds the limit for what is received."""
    return ConnectError(
        ConnectErrorCode.RESOURCE_EXHAUSTED, f"the message is larger than the limit of {max_bytes} bytes"
    )


class MessageReader(Generic[MessageT]):
    """Makes messages of payloads. It keeps no state of a call.

    Args:
        codec: what the media type names.
        message_type: what to make.
        compression: what compressed payloads are compressed with; None when the other side declared none.
        max_bytes: the largest message to accept, compressed or not, or None.
        fault: the code for a payload that cannot be read: ``invalid_argument`` when a server reads its client's,
            ``internal`` when a client reads its server's.

    Attributes:
        decode: makes a message of a payload that is not compressed, and not too large. What the codec raises passes
            through.
    """

    __slots__ = ("_codec", "_compression", "_fault", "_max_bytes", "_type", "decode")

    def __init__(
        self,
        codec: Codec,
        message_type: type[MessageT],
        compression: Compression | None,
        max_bytes: int | None,
        fault: ConnectErrorCode,
    ) -> None:
        self._codec = codec
        self._type = message_type
        self.decode = _decoder(codec, message_type)
        self._compression = compression
        self._max_bytes = max_bytes
        self._fault = fault

    def read(self, payload: bytes, compressed: bool) -> MessageT:
        """The message in ``payload``.

        Raises:
            ConnectError: ``resource_exhausted`` when it is too large, else the code of a fault.
        """
        if compressed:
            payload = self.decompress(payload)
        elif self._max_bytes is not None and len(payload) > self._max_bytes:
            raise too_large(self._max_bytes)
        try:
            return self.decode(payload)
        except Exception as error:
            raise self.malformed(error) from error

    def malformed(self, error: Exception) -> ConnectError:
        """The coded error for what ``decode`` has raised."""
        # Anything else that codecs raise may hold anything.
        where = f", in the field {error.field}" if isinstance(error, FieldError) else ""
        name = self._type.DESCRIPTOR.full_name
        return ConnectError(self._fault, f"the message is not valid {self._codec.name} of {name}{where}")

    def decompress(self, payload: bytes, max_bytes: int | None = None) -> bytes:
        """What a payload that is marked as compressed holds.

        Args:
            payload: as it came.
            max_bytes: stands instead of the call's limit.

        Raises:
            ConnectError: as ``read``; ``internal`` when no compression was declared.
        """
        if self._compression is None:
            raise ConnectError(
                ConnectErrorCode.INTERNAL,
                "a message is marked as compressed, but no compression was declared",
            )
        return decompress(self._compression, payload, max_bytes or self._max_bytes, self._fault)

    def decompress_last(self, payload: bytes) -> bytes:
        """``decompress`` for the envelope that ends an answer, which may be longer than a message.

        Raises:
            ConnectError: as ``decompress``.
        """
        return self.decompress(payload, None if self._max_bytes is None else max(self._max_bytes, LAST_MAX_BYTES))


def _decoder(codec: Codec, message_type: type[MessageT]) -> Callable[[bytes], MessageT]:
    if type(codec) is ProtoCodec:
        return message_type.FromString  # what it would call itself, and that for every message of a stream
    return lambda payload: codec.decode(payload, message_type)


def decompress(compression: Compression, payload: bytes, max_bytes: int | None, fault: ConnectErrorCode) -> bytes:
    """``payload`` decompressed. An empty one stays empty: nobody compresses nothing.

    Raises:
        ConnectError: ``resource_exhausted`` or the code ``fault``.
    """
    if not payload:
        return payload
    try:
        return compression.decompress(payload, max_bytes)
    except TooLargeError:
        raise too_large(max_bytes) from None
    except Exception as error:
        raise ConnectError(fault, f"the message is not valid {compression.name}") from error


def encoder_of(codec: Codec, message_type: type[MessageT]) -> Callable[[MessageT], bytes]:
    """What makes bytes of messages of this type."""
    if type(codec) is ProtoCodec:
        return message_type.SerializeToString  # what it would call itself, as for decoding
    return codec.encode


class UnencodableError(Exception):
    """What a handler gave is of the right type, but has no bytes in the call's codec. The cause is what that raised."""


def encode(encoder: Callable[[MessageT], bytes], message: MessageT) -> bytes:
    """``message``, which a handler gave, as bytes.

    Args:
        encoder: see ``encoder_of``.
        message: the message.

    Raises:
        UnencodableError: the codec has none for it.
    """
    try:
        return encoder(message)
    except Exception as error:
        raise UnencodableError from error


class MessageWriter:
    """Makes payloads of the messages of one call.

    Args:
        encoder: see ``encoder_of``.
        compression: what to compress with, or None.
        min_bytes: the size from which on a message is compressed.
        max_bytes: the largest message to send, before it is compressed, or None.
    """

    __slots__ = ("_compression", "_encode", "_max_bytes", "_min_bytes", "plain")

    def __init__(
        self,
        encoder: Callable[[Any], bytes],
        compression: Compression | None,
        min_bytes: int,
        max_bytes: int | None = None,
    ) -> None:
        self._encode = encoder
        self._compression = compression
        self._min_bytes = min_bytes
        self._max_bytes = max_bytes
        self.plain = compression is None and max_bytes is None

    def write(self, message: Message) -> tuple[bytes, bool]:
        """The payload of a client's message, and whether it is compressed.

        Raises:
            ConnectError: ``internal``: the codec has no bytes for it; ``resource_exhausted``: it is too large.
        """
        try:
            payload = self._encode(message)
        except ConnectError:
            raise  # a codec of the user's says what it is
        except Exception as error:
            raise ConnectError(ConnectErrorCode.INTERNAL, "the request cannot be encoded") from error
        return self.finish(payload)

    def finish(self, payload: bytes) -> tuple[bytes, bool]:
        """The same, for a message that is encoded already.

        Raises:
            ConnectError: ``resource_exhausted``: the message is too large.
        """
        return (payload, False) if self.plain else self.compress(limited(payload, self._max_bytes))

    def compress(self, payload: bytes) -> tuple[bytes, bool]:
        """``payload``, compressed if that is wanted, and whether it is."""
        return compress(self._compression, payload, self._min_bytes)


def limited(payload: bytes, max_bytes: int | None) -> bytes:
    """``payload``, if it may be sent.

    Raises:
        ConnectError: ``resource_exhausted``: it is longer than ``max_bytes``.
    """
    if max_bytes is not None and len(payload) > max_bytes:
        raise ConnectError(
            ConnectErrorCode.RESOURCE_EXHAUSTED,
            f"a message of {len(payload)} bytes is larger than the limit of {max_bytes} for sending",
        )
    return payload


def compress(compression: Compression | None, payload: bytes, min_bytes: int) -> tuple[bytes, bool]:
    """``payload``, compressed if it is worth it, and whether it is."""
    if compression is None or len(payload) < min_bytes:
        return payload, False
    return compression.compress(payload), True


def choose_compression(accepted: str | None, sent: str | None, available: Mapping[str, Any]) -> str | None:
    """The name of the compression to answer with, or None to send as it is.

    The peer's choice by quality, then by its own order (Connect "Accept-Encoding"; RFC 9110 section 12.5.3).

    Args:
        accepted: the peer's list, or None when it sent none: then it takes what it used itself.
        sent: the compression of what the peer sent, or None.
        available: the compressions at hand, by name.
    """
    if accepted is None:
        return sent if sent in available else None
    names = _by_preference(accepted)
    for name in names:
        if name in available:
            return name
        if name == IDENTITY:
            # Whoever compresses wants it all the same. The clients of gRPC's C core always name identity first.
            return sent if sent in available and sent in names else None
        if name == "*":
            listed = _by_preference(accepted, with_refused=True)
            return next((name for name in available if name not in listed), None)
    return None


def _by_preference(accepted: str, with_refused: bool = False) -> tuple[str, ...]:
    """The tokens of an Accept-Encoding list, best first; those refused with q=0 only if asked for."""
    # Real lists are short and always the same. Long ones are not kept: a peer could fill the memory with them.
    parse = _parse_list if len(accepted) > _KEPT_MAX_LENGTH else _parse_list_once
    return parse(accepted, with_refused)


def _parse_list(accepted: str, with_refused: bool) -> tuple[str, ...]:
    weighted = []
    for item in accepted.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0  # not a weight: safer not to use it
        if name and (with_refused or quality > 0):
            weighted.append((quality, name))
    weighted.sort(key=lambda pair: -pair[0])  # stable: equal ones keep the peer's order
    return tuple(name for _, name in weighted)


_KEPT_MAX_LENGTH = 200
_parse_list_once = functools.lru_cache(maxsize=256)(_parse_list)
