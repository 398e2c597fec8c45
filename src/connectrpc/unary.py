"""The outcome of a call that is answered by one message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc.errors import ConnectError

__all__ = ["UnaryOutput"]

T = TypeVar("T")


class UnaryOutput(Generic[T]):
    """A message or an error, with the headers and trailers that came with it. Immutable."""

    __slots__ = ("_error", "_message", "_read_metadata")

    def __init__(
        self,
        message: T | None,
        error: ConnectError | None,
        read_metadata: Callable[[], tuple[CIMultiDict[str], CIMultiDict[str]]] | None,
    ) -> None:
        self._message = message
        self._error = error
        self._read_metadata = read_metadata

    def message(self) -> T | None:
        """The message, or None when the call failed."""
        return self._message

    def error(self) -> ConnectError | None:
        """Why the call failed, or None when it did not."""
        return self._error

    def response_headers(self) -> CIMultiDict[str]:
        """The answer's headers; empty when no answer came."""
        return CIMultiDict() if self._read_metadata is None else self._read_metadata()[0]

    def response_trailers(self) -> CIMultiDict[str]:
        """The answer's trailers; empty when no answer came."""
        return CIMultiDict() if self._read_metadata is None else self._read_metadata()[1]

    def __repr__(self) -> str:
        return f"<UnaryOutput {self._message!r}>" if self._error is None else f"<UnaryOutput {self._error!r}>"
