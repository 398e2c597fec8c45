"""Headers and trailers of the application: what may be sent, and what is handed over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from connectrpc.headers import iter_headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from connectrpc._core.http import HeaderList
    from connectrpc.headers import HeaderInput

__all__ = ["TRAILER_PREFIX", "Metadata", "checked", "received", "split_trailers", "split_trailers_only"]

Metadata = tuple[CIMultiDict[str], CIMultiDict[str]]
"""The headers and the trailers of an answer."""

TRAILER_PREFIX = "trailer-"
"""What marks a trailer among the headers of a unary Connect answer."""

# RFC 9110 section 5.6.2, and the printable ASCII that Connect allows in values.
_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile("[ -~\t]*")

# What a protocol or HTTP itself says with a header is not for the application to say.
_RESERVED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OF_ANSWERS = _RESERVED | {"date", "server"}
_FREE = "grpc-retry-pushback-ms"  # gRFC A6: a trailer by which a handler tells when to try again
_RESERVED_PREFIXES = ("connect-", "grpc-", TRAILER_PREFIX)


def checked(metadata: HeaderInput) -> HeaderList:
    """The names, in lower case, and values of ``metadata``.

    Raises:
        TypeError: a name or a value is not a string.
        ValueError: a name or a value cannot be sent, or the name belongs to the protocol.
    """
    pairs: HeaderList = []
    for given, value in iter_headers(metadata):
        if not isinstance(given, str) or not isinstance(value, str):
            raise TypeError(f"header {given!r}: names and values are strings")
        name, value = given.lower(), value.strip(" \t")  # RFC 9110 section 5.5: no part of a value
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{given!r} is not the name of a header")
        if name in _RESERVED or (name.startswith(_RESERVED_PREFIXES) and name != _FREE):
            raise ValueError(f"header {given!r} belongs to the protocol and cannot be set")
        if _VALUE.fullmatch(value) is None:
            raise ValueError(
                f"header {given!r}: values are printable ASCII; binary ones go, as base64, under names ending in -bin"
            )
        pairs.append((name, value))
    return pairs


def received(pairs: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """What the application sees of headers or trailers that have come."""
    return CIMultiDict(_apart(pairs))


def _apart(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """``pairs``, with the values of each binary one apart.

    HTTP may join what was sent several times. Base64 has no comma, so it can come apart again (gRPC "Custom-Metadata":
    implementations must split before they decode).
    """
    for name, value in pairs:
        if "," in value and name[-4:].lower() == "-bin":
            for part in value.split(","):
                yield name, part.strip(" \t")
        else:
            yield name, value


def split_trailers(pairs: Iterable[tuple[str, str]]) -> Metadata:
    """The headers and the trailers of a unary Connect answer, whose trailers are marked headers."""
    headers: CIMultiDict[str] = CIMultiDict()
    trailers: CIMultiDict[str] = CIMultiDict()
    for name, value in _apart(pairs):
        if name[: len(TRAILER_PREFIX)].lower() == TRAILER_PREFIX:
            trailers.add(name[len(TRAILER_PREFIX) :], value)
        else:
            headers.add(name, value)
    return headers, trailers


def split_trailers_only(pairs: Iterable[tuple[str, str]]) -> Metadata:
    """The headers and the trailers of an answer that has one block for both: what the application says are trailers."""
    headers: CIMultiDict[str] = CIMultiDict()
    trailers: CIMultiDict[str] = CIMultiDict()
    for name, value in _apart(pairs):
        lower = name.lower()
        of_http = lower in _OF_ANSWERS or (lower.startswith(_RESERVED_PREFIXES) and lower != _FREE)
        (headers if of_http else trailers).add(name, value)
    return headers, trailers
