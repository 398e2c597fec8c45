"""Headers and trailers as callers give them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Union

from multidict import CIMultiDict, MultiDict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import HTTPHeaderDict

__all__ = ["HeaderInput", "decode_binary", "encode_binary", "iter_headers"]

HeaderInput = Union[
    dict[str, str],
    dict[str, list[str]],
    MultiDict[str],
    CIMultiDict[str],
    "HTTPHeaderDict",
    Mapping[str, str | list[str] | tuple[str, ...]],
]
"""What may be given wherever headers or trailers are taken: names with one value or a list of values each, or one
of the multi-value mappings of multidict and urllib3. Names are case-insensitive; repeated names keep their order."""


def iter_headers(headers: HeaderInput) -> Iterator[tuple[str, str]]:
    """Every name and value of ``headers``, a name with several values once for each.

    urllib3's mapping is never imported: like multidict's, its ``items()`` already repeats the name.

    Raises:
        TypeError: they are no mapping.
    """
    if not hasattr(headers, "items"):
        raise TypeError(f"headers and trailers are a dict or a multidict, not {type(headers).__name__}")
    for name, value in headers.items():
        if isinstance(value, list | tuple):
            for one in value:
                yield name, one
        else:
            yield name, value


def encode_binary(value: bytes) -> str:
    """``value`` as a header or trailer carries it whose name ends in ``-bin``: base64, without padding."""
    return base64.b64encode(value).decode().rstrip("=")


def decode_binary(value: str) -> bytes:
    """The bytes in a header or trailer whose name ends in ``-bin``, with or without padding.

    Raises:
        ValueError: they are not base64.
    """
    value = value.rstrip("=")
    return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
