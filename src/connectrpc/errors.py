"""The error of an RPC, and its details."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from connectrpc.code import ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

__all__ = ["ConnectError", "ConnectErrorCode", "ConnectErrorDetail"]


class ConnectErrorDetail:
    """A message that says more about an error, as ``google.protobuf.Any`` would carry it.

    Attributes:
        type: the message's full name, such as ``"google.rpc.RetryInfo"``.
        value: the message in Protobuf's binary encoding.
        debug: what the other side added for people to read (a JSON value), or None. Never a basis for decisions.
    """

    __slots__ = ("debug", "type", "value")

    def __init__(self, type: str, value: bytes, debug: object = None) -> None:
        if not isinstance(type, str) or not isinstance(value, bytes):
            raise TypeError("a detail has the full name of its type, and a value in bytes")
        self.type = type
        self.value = value
        self.debug = debug

    @classmethod
    def from_message(cls, message: Message, *, include_debug: bool = False) -> ConnectErrorDetail:
        """The detail that carries ``message``; an ``Any`` gives what it holds.

        Args:
            message: any message.
            include_debug: also send it as readable JSON, if it has any. It is for people with ``curl`` in their hands.

        Raises:
            TypeError: it is no message.
        """
        if not hasattr(message, "DESCRIPTOR") or isinstance(message, type):
            raise TypeError(f"a detail is a message, not {message!r}")
        debug: object = None
        if include_debug:
            from google.protobuf import json_format

            # It may hold a type that this process does not know. The error is worth more than what adorns it.
            with contextlib.suppress(Exception):
                debug = json_format.MessageToDict(message)
        if message.DESCRIPTOR.full_name == "google.protobuf.Any":
            type_url: str = message.type_url  # type: ignore[attr-defined]
            value: bytes = message.value  # type: ignore[attr-defined]
            return cls(type_url.rpartition("/")[2], value, debug)
        return cls(message.DESCRIPTOR.full_name, message.SerializeToString(), debug)

    def message(self) -> Message | None:
        """The message itself, or None when its type is not among the generated code that this process imported.

        Raises:
            google.protobuf.message.DecodeError: the value is not a message of that type.
        """
        from google.protobuf import descriptor_pool, message_factory

        try:
            descriptor = descriptor_pool.Default().FindMessageTypeByName(self.type)
        except (KeyError, TypeError):  # TypeError: a name that is no valid Unicode
            return None
        message = message_factory.GetMessageClass(descriptor)()
        message.ParseFromString(self.value)
        return message

    def __repr__(self) -> str:
        return f"ConnectErrorDetail(type={self.type!r}, value={self.value!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConnectErrorDetail):
            return NotImplemented
        return self.type == other.type and self.value == other.value

    def __hash__(self) -> int:
        return hash((self.type, self.value))


class ConnectError(Exception):
    """How an RPC fails, on either side.

    A handler raises (or gives) one to choose what the caller sees; a client raises the one it was sent, or one that
    says what became of the call (``unavailable``, ``deadline_exceeded``, ``canceled`` ...) with the cause chained.

    Args:
        code: why.
        message: for people. It is sent to the caller as it is, so it holds nothing that is not theirs to know.
        details: messages that say more, for programs.

    Attributes:
        code: as given.
        message: as given.
        details: a list of ``ConnectErrorDetail``.
    """

    def __init__(
        self,
        code: ConnectErrorCode,
        message: str = "",
        details: Iterable[Message | ConnectErrorDetail] | None = None,
    ) -> None:
        if not isinstance(code, ConnectErrorCode):
            raise TypeError(f"code {code!r} is not a ConnectErrorCode")
        if not isinstance(message, str):
            raise TypeError(f"message {message!r} is not a string")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details: list[ConnectErrorDetail] = []
        self._read_metadata: Callable[[], tuple[CIMultiDict[str], CIMultiDict[str]]] | None = None
        for detail in details or ():
            self.add_detail(detail)

    def add_detail(self, message: Message | ConnectErrorDetail, include_debug: bool = False) -> None:
        """Append a detail.

        Args:
            message: the detail, or the message that it shall carry.
            include_debug: also send the message as readable JSON.

        Raises:
            TypeError: it is neither.
        """
        if not isinstance(message, ConnectErrorDetail):
            message = ConnectErrorDetail.from_message(message, include_debug=include_debug)
        self.details.append(message)

    def response_headers(self) -> CIMultiDict[str]:
        """The headers of the answer that brought this error to a client; empty when there was none."""
        return CIMultiDict() if self._read_metadata is None else self._read_metadata()[0]

    def response_trailers(self) -> CIMultiDict[str]:
        """The trailers of the answer that brought this error to a client; empty when there was none."""
        return CIMultiDict() if self._read_metadata is None else self._read_metadata()[1]

    def __str__(self) -> str:
        return f"{self.code.code_name}: {self.message}" if self.message else self.code.code_name

    def __reduce__(self) -> tuple[object, ...]:
        # What reads the metadata is bound to a response, which stays in its process.
        return (type(self), (self.code, self.message, self.details))
