"""How messages are compressed.

``gzip`` is always there; ``br`` and ``zstd`` come with the extras of these names. Anything with the shape of
``Compression`` can be given to clients and services beside them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Compression", "TooLargeError", "installed", "named", "resolve"]


class TooLargeError(Exception):
    """What ``Compression.decompress`` raises when the data would exceed its limit."""


class Compression(Protocol):
    """A compression. Used by many threads at once, so it keeps no state of a call.

    Attributes:
        name: the token in ``Content-Encoding`` and its like, such as ``"gzip"``.
    """

    @property
    def name(self) -> str: ...

    def compress(self, data: bytes) -> bytes:
        """``data``, compressed."""
        ...

    def decompress(self, data: bytes, max_bytes: int | None) -> bytes:
        """What ``data`` was before it was compressed.

        Must not hold many more than ``max_bytes`` bytes in memory, whatever ``data`` would expand to.

        Raises:
            TooLargeError: it is longer than ``max_bytes``.
            Exception: anything else: ``data`` is damaged or incomplete.
        """
        ...


_cache: dict[str, Compression] = {}


def named(name: str) -> Compression:
    """The compression that comes with this package under ``name``: ``gzip``, ``br`` or ``zstd``.

    Raises:
        ValueError: there is none of that name, or its extra is not installed, or too old.
    """
    compression = _cache.get(name)
    if compression is None:
        try:
            compression = _cache[name] = _load(name)
        except ImportError as error:
            raise ValueError(
                f"compression {name!r} needs a package that is not installed, or too old: "
                f"pip install 'connect-python[{name}]'"
            ) from error
    return compression


def _load(name: str) -> Compression:
    # One leaf module each, so that nobody loads a library that no call uses.
    if name == "gzip":
        from connectrpc.compression.gzip import GzipCompression

        return GzipCompression()
    if name == "br":
        from connectrpc.compression.br import BrotliCompression

        return BrotliCompression()
    if name == "zstd":
        from connectrpc.compression.zstd import ZstdCompression

        return ZstdCompression()
    raise ValueError(f"no compression is called {name!r}: there are gzip, br and zstd, or give an object")


def installed() -> tuple[Compression, ...]:
    """Every compression that can be used here, the one that does most for its time first."""
    found = []
    for name, package in (("zstd", _ZSTD), ("br", "brotli"), ("gzip", "zlib")):
        if _is_installed(package):  # much cheaper than an import that fails
            with suppress(ValueError):  # it is there, but of no use
                found.append(named(name))
    return tuple(found)


# Only asked for where it is the standard library's: on older Pythons `compression` may be anybody's package.
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # a parent package is missing
        return False


def resolve(compressions: Iterable[str | Compression] | None) -> dict[str, Compression]:
    """Compressions by name, in the order given; all installed ones for None. ``identity`` is always understood."""
    if compressions is None:
        return {compression.name: compression for compression in installed()}
    if isinstance(compressions, str):
        raise TypeError(f"compressions are a list: [{compressions!r}]")
    resolved = (named(item) if isinstance(item, str) else item for item in compressions if item != "identity")
    return {compression.name: compression for compression in resolved}
